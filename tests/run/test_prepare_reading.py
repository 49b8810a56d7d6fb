"""What cannot be read is refused when a plan is made, not at its first tile."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline import api
from pipeline.errors import ConfigError, InvalidInputError
from pipeline.read.rank import MemoryRanks
from pipeline.run.reading import Source
from tests.run.sampled import request_of


@pytest.mark.parametrize(
    ("href", "setting"),
    [
        ("http://127.0.0.1/B03.tif", "inputs.allow_private_hosts"),
        ("https://elsewhere.example/B03.tif", "allowed_hosts"),
    ],
)
def test_a_place_that_a_run_may_not_open_is_refused_with_item_and_band(sample, small_bbox, tmp_path, href, setting):
    items = json.loads(Path(sample.catalog).read_text(encoding="utf-8"))
    for item in items["features"]:
        for name, asset in item["assets"].items():
            asset["href"] = href if name == "B03" else str(Path(sample.folder, asset["href"]))
    catalog = tmp_path / "items.json"
    catalog.write_text(json.dumps(items), encoding="utf-8")
    hosts = ["archive.example"] if "elsewhere" in href else []
    request = request_of(
        sample, tmp_path / "out", bbox=small_bbox, inputs={"catalog": str(catalog), "allowed_hosts": hosts}
    )
    with pytest.raises(InvalidInputError, match=f"item S2.*, band B03: .*{setting}"):
        api.plan(request)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(find_spec("omnicloudmask") is not None, reason="the cloud mask is installed here")
def test_a_cloud_mask_that_is_not_installed_stops_the_plan(sample, small_bbox, tmp_path):
    inputs = {"catalog": str(sample.catalog), "sentinel2": {"composite": "omnicloudmask"}}
    with pytest.raises(ConfigError, match=r"pip install 'earthpress\[cloudmask\]'"):
        api.plan(request_of(sample, tmp_path / "out", bbox=small_bbox, inputs=inputs))


def test_another_version_of_the_cloud_mask_is_refused_in_a_store(sample, small_bbox, tmp_path, monkeypatch):
    plan = replace(api.plan(request_of(sample, tmp_path / "out", bbox=small_bbox)), mask="omnicloudmask-4")
    monkeypatch.setattr("pipeline.run.reading.OmniCloudMask", lambda device: SimpleNamespace(name="omnicloudmask-5"))
    with pytest.raises(ConfigError, match="omnicloudmask-4, installed is omnicloudmask-5"):
        Source(plan, ranks=MemoryRanks())
