"""What the tests of this room share: a small specification, its tiles, and a way to run a step in another process."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pipeline.types import Box, Calibration, Embedding, GridSpec, ModelCard, Numerics, Tile
from pipeline.write.layout import MapLayer, StoreSpec

if TYPE_CHECKING:
    from collections.abc import Callable

TILE_PX = 256
DIMS = 4
PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def spec() -> StoreSpec:
    """Two by two tiles in the north of zone 31, one map, random weights."""
    return StoreSpec(
        name="test store",
        dims=DIMS,
        grid=GridSpec(patch_px=4, window_px=64, overlap_px=24, tile_px=TILE_PX),
        times=((datetime(2024, 3, 1, tzinfo=UTC), datetime(2024, 9, 1, tzinfo=UTC)),),
        model=ModelCard(
            name="random:v1.2-nano:0",
            version="v1.2",
            size="nano",
            dims=DIMS,
            depth=4,
            heads=2,
            parameters=10,
            sensors=("sentinel2_l2a",),
            sha256="ab" * 32,
            trained=False,
        ),
        calibration=Calibration(
            scale=tuple(0.25 * (k + 1) for k in range(DIMS)),
            provisional=True,
            source="packaged sample",
            model_sha256="ab" * 32,
            patch_px=4,
        ),
        numerics=Numerics(
            device="cpu", device_name="x86-64-v3", dtype="float32", compiled=False, batch_windows=4, torch="2.13.0"
        ),
        recipe="recipe-1",
        extents=(tiles_box(31, rows=(-2000, -1998), cols=(200, 202)),),
        maps=(MapLayer(name="crops", classes=((0, "bare soil", "#884400"), (1, "maize", "#ffee00"))),),
    )


def tiles_box(zone: int, *, rows: tuple[int, int], cols: tuple[int, int]) -> Box:
    """Extent of whole tiles, half-open tile rows and columns."""
    n = TILE_PX
    return Box(
        zone=zone,
        res_m=10,
        row=rows[0] * n,
        col=cols[0] * n,
        height=(rows[1] - rows[0]) * n,
        width=(cols[1] - cols[0]) * n,
    )


@pytest.fixture(scope="session")
def extent_of() -> Callable[..., Box]:
    """``tiles_box``."""
    return tiles_box


@pytest.fixture
def tile() -> Tile:
    """The north-western tile of ``spec``."""
    return Tile(zone=31, row=-2000, col=200, tile_px=TILE_PX)


def make_data(tile: Tile, *, dims: int = DIMS) -> tuple[Embedding, np.ndarray]:
    """Pixels and a map that depend on the ground place only, so that a shift by one pixel shows."""
    box = tile.box
    rows = np.arange(box.row, box.row_stop)[:, None]
    cols = np.arange(box.col, box.col_stop)[None, :]
    codes = np.stack([(rows * 31 + cols * 7 + k * 13) % 255 - 127 for k in range(dims)]).astype(np.int8)
    shape = box.shape
    reason, n_obs = np.zeros(shape, np.uint8), ((rows + cols) % 6 + 1).astype(np.uint8)
    return Embedding(codes=codes, reason=reason, n_obs=n_obs, box=box, clipped=0.0), ((rows - cols) % 2).astype(
        np.uint8
    )


def make_empty(tile: Tile, *, dims: int = DIMS) -> tuple[Embedding, np.ndarray]:
    """A tile of which nothing was requested: every object is elided."""
    shape = tile.box.shape
    empty = Embedding(
        codes=np.full((dims, *shape), -128, np.int8),
        reason=np.full(shape, 1, np.uint8),
        n_obs=np.zeros(shape, np.uint8),
        box=tile.box,
        clipped=0.0,
    )
    return empty, np.full(shape, 255, np.uint8)


@pytest.fixture(scope="session")
def data_of() -> Callable[..., tuple[Embedding, np.ndarray]]:
    """``make_data``."""
    return make_data


@pytest.fixture(scope="session")
def empty_of() -> Callable[..., tuple[Embedding, np.ndarray]]:
    """``make_empty``."""
    return make_empty


@pytest.fixture(scope="session")
def changed(spec: StoreSpec) -> Callable[..., StoreSpec]:
    """``spec`` with other fields."""

    def change(**fields: Any) -> StoreSpec:
        return dataclasses.replace(spec, **fields)

    return change


@pytest.fixture
def in_process() -> Callable[[str], subprocess.CompletedProcess[str]]:
    """Run Python text in a fresh process that imports the project; returns what came of it."""

    def run(code: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=PROJECT)

    return run
