"""One simulated sample for every test that runs the pipeline."""

from __future__ import annotations

import sys

import pytest

from pipeline import cli
from pipeline.simulate.sample import SENSORS, make_sample


@pytest.fixture(scope="session")
def sample(tmp_path_factory):
    return make_sample(tmp_path_factory.mktemp("sample"))


@pytest.fixture(scope="session")
def sensor_sample(sample):
    """The same sample with what Sentinel-1 and Landsat see of its ground; the catalogue holds all three."""
    return make_sample(sample.folder, sensors=SENSORS)


@pytest.fixture
def earthpress(monkeypatch, capsys):
    """Run a command line; returns (exit code, stdout, stderr)."""

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["earthpress", *map(str, args)])
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as stop:
            cli.main()
        text = capsys.readouterr()
        return stop.value.code or 0, text.out, " ".join(text.err.split())

    return call
