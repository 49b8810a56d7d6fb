"""The recipes run as they stand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import geopandas as gpd
import pytest
import yaml
from shapely import affinity

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def config(sample, tmp_path):
    path = tmp_path / "my.yaml"
    settings = {
        "bbox": list(sample.bbox),
        "start": "2024-04-01",
        "end": "2024-05-31",
        "model": "random:v1.2-toy:7",
        "inputs": {"catalog": str(sample.catalog)},
        "encode": {"patch_px": 8, "window_px": 64, "overlap_px": 16},
        "store": {"tile_px": 256},
    }
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture
def labels(sample, tmp_path):
    """The sample's polygons with a tenth of their ground: as many places, fewer pixels to fit."""
    path = tmp_path / "labels.geojson"
    frame = gpd.read_file(sample.labels)
    frame.geometry = frame.geometry.map(lambda shape: affinity.scale(shape, 0.3, 0.3, origin="centroid"))
    frame.to_file(path)
    return path


def recipe(labels, config, *extra):
    output = config.parent / "out"
    command = [sys.executable, "workflows/area_to_map.py", "--config", config, "--output", output,
               "--labels", labels, "--column", "class", *extra]  # fmt: skip
    done = subprocess.run(
        [str(part) for part in command], cwd=ROOT, capture_output=True, text=True, timeout=240, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return done, output


def test_area_to_map_makes_the_map(labels, config):
    done, output = recipe(labels, config)
    assert done.returncode == 0, done.stderr
    assert list((output / "maps").glob("*.tif"))
    assert "balanced accuracy" in done.stdout


def test_area_to_map_does_not_start_above_the_price(labels, config):
    done, output = recipe(labels, config, "--max-usd", "5")
    assert done.returncode == 75
    assert not (output / "store.zarr").exists()
