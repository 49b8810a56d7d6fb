"""One simulated sample for every test that runs the pipeline."""

from __future__ import annotations

import pytest

from pipeline.simulate.sample import SENSORS, make_sample


@pytest.fixture(scope="session")
def sample(tmp_path_factory):
    return make_sample(tmp_path_factory.mktemp("sample"))


@pytest.fixture(scope="session")
def sensor_sample(sample):
    """The same sample with what Sentinel-1 and Landsat see of its ground; the catalogue holds all three."""
    return make_sample(sample.folder, sensors=SENSORS)
