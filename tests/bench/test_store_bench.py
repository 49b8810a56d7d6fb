"""The figures of ``benchmarks/stores.py``: objects counted by hand, reads counted, tables of one small tile."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from benchmarks import stores
from pipeline.codes import Coded
from pipeline.types import GridSpec, ModelCard, Numerics, Period
from pipeline.write import layout
from tests.quantisers import calibration_of

START = datetime(2024, 6, 1, tzinfo=UTC)
CARD = ModelCard(
    name="random:v1.2-toy:0",
    version="v1.2",
    size="toy",
    dims=192,
    depth=2,
    heads=4,
    parameters=10,
    sensors=("sentinel2_l2a",),
    sha256="ab" * 32,
    trained=False,
)
NUMERICS = Numerics(device="cpu", device_name="x86", dtype="float32", compiled=False, batch_windows=4, torch="2.13.0")


def spec_of(dims, *, tile_px, token_px=1, method="linear"):
    return stores.spec_of(
        calibration_of(method, dims),
        grid=GridSpec(patch_px=4, window_px=64, overlap_px=24, tile_px=tile_px, token_px=token_px),
        card=CARD,
        numerics=NUMERICS,
        period=Period(index=0, start=START, end=START + timedelta(days=30)),
    )


def smooth(dims, side):
    rows, cols = np.mgrid[:side, :side] / side
    waves = [90 * np.sin(3 * rows + k) * np.cos(2 * cols + k) for k in range(dims)]
    return np.rint(waves).astype(np.int8)


@pytest.mark.parametrize(
    ("dims", "token_px", "method", "vectors", "every"),
    [
        (64, 1, "linear", 1, 3 + 4),
        (128, 1, "linear", 4, 3 * 4 + 4),
        (192, 1, "per_pixel", 8, 4 * 4 + 4),  # the scale of a pixel is an array of its own
        (192, 1, "float32", 16, 3 * 16 + 4),
        (768, 4, "linear", 1, 3 + 4),
        (768, 1, "linear", 16, 3 * 16 + 4),
    ],
)
def test_objects_of_a_tile_are_those_of_every_layer(dims, token_px, method, vectors, every):
    """Vectors, reason and n_obs have as many shards each; three layers of quality and the true colours one object."""
    spec = spec_of(dims, tile_px=2048, token_px=token_px, method=method)
    assert (stores.objects_of_tile(spec, stores.VECTORS), stores.objects_of_tile(spec)) == (vectors, every)


def test_one_object_per_tile_is_per_1000_km2_what_the_facts_say():
    assert stores.per_1000_km2(1, tile_px=2048) == pytest.approx(2.384, abs=1e-3)  # France (550): 1.3 k, 1.4 with edges


def test_a_tile_is_made_smaller_until_its_vectors_fit():
    spec = spec_of(768, tile_px=2048)
    assert stores.fitting(spec, 600_000_000).tile_px == 512
    assert stores.fitting(replace(spec, grid=replace(spec.grid, token_px=4)), 600_000_000).tile_px == 2048


@pytest.fixture(scope="module")
def row(tmp_path_factory):
    """Tile of 512 px of which a piece of 256 px is repeated; chunks of 128 px in a shard of 512."""
    spec = spec_of(66, tile_px=512)
    assert layout.arrays(spec)[0].chunk_px == 128
    folder = tmp_path_factory.mktemp("stores")
    return stores.measured("66, 10 m", Coded(codes=smooth(66, 256)), spec, folder=folder, rounds=1, places=3)


def test_a_pixel_costs_the_index_and_one_chunk_ours_and_one_chunk_the_rival_s(row):
    pixel, window, chunk = row.reads
    index_bytes = 16 * 4**2 + 4  # offset and length of 16 chunks, and the checksum
    assert (pixel.objects, pixel.requests) == (1, 2)
    assert (chunk.objects, chunk.requests) == (1, 2)
    assert index_bytes < pixel.nbytes < row.stored_bytes / 8
    assert window.requests == 10  # a window of 256 px anywhere touches 3 x 3 chunks of 128 px
    assert (row.rival_reads[0].requests, row.rival_reads[1].requests) == (1, 4)


def test_the_tables_hold_what_was_measured(row):
    text = stores.stores_table([row]).splitlines()[-1].split(" | ")
    assert text[1] == f"512, {66 * 512**2 / 1e6:.0f}"
    assert float(text[7]) == pytest.approx(row.raw_bytes / row.stored_bytes, abs=0.01)
    assert float(text[7]) > float(text[9]) > 1  # smooth ground compresses, its shuffled pixels less
    assert stores.objects_table([row]).splitlines()[-1] == "| 66, 10 m | 1024 | 128 | 9.5 | 38.1 | 41.2 | 267 | 153 |"
    assert stores.reads_table([row]).splitlines()[-2].startswith("| 66, 10 m | 1 / 2 / ")
    assert len(stores.codecs_table([row]).splitlines()[-1].split(" | ")) == 1 + len(row.codecs)


def test_quantisers_say_the_bytes_of_a_pixel(row):
    assert stores.quantisers_table([row]).splitlines()[-1].split(" | ")[1] == "66"


def test_noise_does_not_compress():
    assert stores.noise_ratio((8, 64, 64)) == pytest.approx(1, abs=0.01)


def test_a_piece_of_broken_chunks_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="whole chunks"):
        stores.measured("x", Coded(codes=smooth(66, 192)), spec_of(66, tile_px=512), folder=tmp_path, rounds=1)


@pytest.mark.parametrize("files", [["a", "b"], ["a", "b", "c", "d"], ["a", "b", "x"]])
def test_other_files_than_the_layout_says_are_refused(files):
    with pytest.raises(SystemExit, match="3 written, 3 by the layout"):
        stores.check_files("x", files, ["a", "b", "c"], count=3)
