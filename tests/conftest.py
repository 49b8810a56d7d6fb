"""One simulated sample for every test that runs the pipeline."""

from __future__ import annotations

import pytest

from pipeline.simulate.sample import make_sample


@pytest.fixture(scope="session")
def sample(tmp_path_factory):
    return make_sample(tmp_path_factory.mktemp("sample"))
