"""One simulated sample for every test that runs the pipeline."""

from __future__ import annotations

import logging
import sys
import urllib.request

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


@pytest.fixture(scope="session")
def s3_server():
    """A local server that speaks S3, with an empty bucket ``maps``; gives its address."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    address = "http://{}:{}".format(*server.get_host_and_port())
    urllib.request.urlopen(urllib.request.Request(f"{address}/maps", method="PUT"), timeout=30).close()
    yield address
    server.stop()


@pytest.fixture
def s3(s3_server, monkeypatch):
    """The environment of somebody who uses that server; gives its address."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wordless")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    return s3_server


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
