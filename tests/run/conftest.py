"""The ground of the end-to-end tests."""

from __future__ import annotations

import pytest

from tests.run.sampled import part


@pytest.fixture(scope="session")
def small_bbox(sample):
    """About 2 x 2 km in the middle of the sample: a handful of blocks."""
    return part(sample.bbox, 0.3, 0.3, 0.62, 0.62)
