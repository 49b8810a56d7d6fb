"""One simulated sample for all end-to-end tests."""

from __future__ import annotations

import pytest

from pipeline.simulate.sample import make_sample
from tests.run.sampled import part


@pytest.fixture(scope="session")
def sample(tmp_path_factory):
    return make_sample(tmp_path_factory.mktemp("sample"))


@pytest.fixture(scope="session")
def small_bbox(sample):
    """About 2 x 2 km in the middle of the sample: a handful of blocks."""
    return part(sample.bbox, 0.3, 0.3, 0.62, 0.62)
