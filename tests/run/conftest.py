"""The ground of the end-to-end tests."""

from __future__ import annotations

import pytest

from tests.run.sampled import part
from tests.run.two_dates import shared_outputs


@pytest.fixture(scope="session")
def small_bbox(sample):
    """About 2 x 2 km in the middle of the sample: a handful of blocks."""
    return part(sample.bbox, 0.3, 0.3, 0.62, 0.62)


@pytest.fixture(scope="session")
def shared_store(sample, tmp_path_factory):
    """{"early": plan, "late": plan}: two outputs of other dates that share a store, without pictures."""
    return shared_outputs(sample, tmp_path_factory.mktemp("shared"))
