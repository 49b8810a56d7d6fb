"""Seam scores of stores: measured once, shown, written to STAC, and able to fail a run."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import zarr
from pyproj import Transformer

from pipeline import api
from pipeline.plan.grid import owned, snapped_extent
from pipeline.run import ground as committed_ground
from pipeline.run import seam_report
from pipeline.run.publish import publish
from pipeline.run.stored import Stored
from pipeline.types import (
    BLOCK_PX,
    CELL_PX,
    NODATA_CODE,
    Calibration,
    Embedding,
    GridSpec,
    ModelCard,
    Numerics,
    Tile,
)
from pipeline.write import store
from pipeline.write.layout import StoreSpec
from tests.run.sampled import request_of, run_request

LIMIT = 1.5
"""Above what the random weights of the toy model leave at the lines of windows."""


@pytest.fixture(scope="module")
def made(sample, small_bbox, tmp_path_factory):
    """(plan, outcome) of a run with a limit."""
    output = tmp_path_factory.mktemp("seams") / "out"
    return run_request(request_of(sample, output, f"run.max_seam_score={LIMIT}", bbox=small_bbox), pictures=True)


def scores_in(output):
    return json.loads((Path(output) / "seams.json").read_text(encoding="utf-8"))["scores"]


def test_a_run_below_its_limit_ends_well_and_shows_its_scores(made):
    plan, outcome = made
    assert outcome.exit_code == 0
    assert not outcome.seam_faults
    html = Path(outcome.published.page).read_text(encoding="utf-8")
    section = html[html.index("<h2>Seams</h2>") : html.index("<h2>Provenance</h2>")]
    assert 'class="profile"' in section
    assert "Worst line" in section
    assert f"run.max_seam_score is {LIMIT:g}" in section
    assert {(s["kind"], s["axis"]) for s in scores_in(plan.output)} >= {("window", "row"), ("window", "col")}
    for score in scores_in(plan.output):
        assert score["low"] <= score["score"] <= score["high"]


def test_stac_says_the_same_scores(made):
    plan, outcome = made
    collection = json.loads(Path(outcome.published.stac).read_text(encoding="utf-8"))
    (link,) = [x["href"] for x in collection["links"] if x["rel"] == "item"]
    item = json.loads((Path(outcome.published.stac).parent / link).read_text(encoding="utf-8"))
    facts = item["properties"]
    scores = {f"{s['kind']}/{s['axis']}": s for s in scores_in(plan.output)}
    assert facts["earthpress:seam_scores"].keys() == scores.keys()
    worst = max(scores.values(), key=lambda s: s["low"])
    assert facts["earthpress:seam_score"] == round(max(1.0, worst["low"]), 4)
    assert (facts["earthpress:stitch"], facts["earthpress:overlap_px"]) == ("blend", 16)
    assert "earthpress" in facts["processing:software"]
    for asset in item["assets"].values():
        assert (Path(outcome.published.stac).parent / asset["href"]).exists()


def test_publishing_again_reads_no_pixel_and_changes_no_byte(made, monkeypatch):
    plan, _ = made
    files = [Path(plan.output) / "seams.json", *(Path(plan.output) / "stac").iterdir()]
    before = [f.read_bytes() for f in files]
    monkeypatch.setattr(seam_report, "_measure", None)
    publish(plan.output)
    assert [f.read_bytes() for f in files] == before


def test_a_seam_above_the_limit_fails_the_run_and_leaves_its_output(made):
    plan, _ = made
    shift(plan, period=BLOCK_PX, height=1.0)
    (Path(plan.output) / "seams.json").unlink()  # receipts do not know that the pixels were changed
    outcome = api.run(plan)
    assert outcome.exit_code == 65
    assert outcome.to_json()["exit_code"] == 65
    text = outcome.text()
    assert f"run.max_seam_score={LIMIT:g}" in text
    assert "seam at tile lines, steps between columns: score " in text
    assert "run again" in text
    assert "exit code 65" in text
    assert outcome.published is not None
    html = Path(outcome.published.page).read_text(encoding="utf-8")
    assert "seam at tile lines" in html[html.index('role="alert"') : html.index("</aside>")]
    assert api.run(plan, pictures=False).exit_code == 65


def shift(plan, *, period, height):
    """Plant a step of ``height`` deviations between neighbouring squares of ``period`` columns."""
    root = Path(plan.output) / "store.zarr"
    for box in store.zones(root):
        group = zarr.open_group(root, path=f"utm{box.zone:02d}", mode="r+", use_consolidated=False)
        codes = group["embeddings"][0].astype(np.float32)
        valid = codes[0] != NODATA_CODE
        deviation = codes[:, valid].std(axis=1)
        square = ((box.col + np.arange(box.width)) // period % 2).astype(np.float32)
        moved = codes + height * deviation[:, None, None] * square
        group["embeddings"][0] = np.where(valid, np.clip(np.rint(moved), -127, 127), NODATA_CODE).astype(np.int8)


def tiles_of(rows, cols, *, tile_px=2048):
    return [Tile(zone=31, row=row, col=col, tile_px=tile_px) for row in range(rows) for col in range(-3, cols - 3)]


def test_a_small_store_is_read_whole():
    tiles = tiles_of(2, 2, tile_px=256)
    bands, read = seam_report.chosen(tiles, dims=128, token_px=1)
    assert read == 1.0
    assert {b.axis: sum(x.box.height * x.box.width for x in bands if x.axis == b.axis) for b in bands} == {
        "row": 512 * 512,
        "col": 512 * 512,
    }


@pytest.mark.parametrize(("dims", "token_px"), [(64, 1), (192, 1), (768, 4)])
def test_of_a_country_a_bounded_and_fixed_part_is_read(dims, token_px):
    tiles = tiles_of(60, 40)
    bands, read = seam_report.chosen(tiles, dims=dims, token_px=token_px)
    for axis in ("row", "col"):
        boxes = [b.box for b in bands if b.axis == axis]
        assert seam_report.SAMPLE_BYTES / 2 < sum(b.height * b.width * dims for b in boxes) <= seam_report.SAMPLE_BYTES
        cell = CELL_PX // token_px
        inside = [
            line
            for b in boxes
            for line in range(b.row if axis == "row" else b.col, b.row_stop if axis == "row" else b.col_stop)
            if line % cell == 0
        ]
        assert len(inside) >= len(boxes)
        assert len({(b.row, b.col) for b in boxes}) == len(boxes)
    assert 0 < read < 0.01
    assert seam_report.chosen(list(reversed(tiles)), dims=dims, token_px=token_px)[0] == bands


def test_strips_end_where_tiles_are_missing():
    tiles = [t for t in tiles_of(1, 4, tile_px=256) if t.col != -1]
    bands, _ = seam_report.chosen(tiles, dims=4, token_px=1)
    assert sorted((b.box.col, b.box.width) for b in bands if b.axis == "col") == [(-768, 512), (0, 256)]


def ground(box, *, seed=0):
    """(dim, row, col) int8: smooth waves of longitude and latitude, so two zones see the same ground."""
    to_lonlat = Transformer.from_crs(box.epsg, 4326, always_xy=True)
    x, y = np.meshgrid((box.col + np.arange(box.width) + 0.5) * 10, -(box.row + np.arange(box.height) + 0.5) * 10)
    lon, lat = to_lonlat.transform(x, y)
    draw = np.random.default_rng(seed)
    waves = [
        sum(
            np.sin(draw.normal(0, 1.5e3) * (lon - 6) + draw.normal(0, 1.5e3) * (lat - 47) + draw.uniform(0, 6))
            for _ in range(3)
        )
        for _ in range(4)
    ]
    return np.clip(np.rint(np.stack(waves) * 20), -127, 127).astype(np.int8)


@pytest.fixture
def two_zones(tmp_path):
    """(store, tiles by zone, write): a store on both sides of 6 degrees east at 47 north."""
    tiles = {}
    for zone in (31, 32):
        x, y = Transformer.from_crs(4326, 32600 + zone, always_xy=True).transform(6.0, 47.0)
        row, col = int(-y // 10 // 256), int(x // 10 // 256)
        side = (col - 1, col) if zone == 31 else (col, col + 1)
        tiles[zone] = [Tile(zone=zone, row=r, col=c, tile_px=256) for r in range(row - 1, row + 2) for c in side]
    card = ModelCard(
        name="random", version="v1.2", size="toy", dims=4, depth=1, heads=1, parameters=1, sensors=("sentinel2_l2a",),
        sha256="ab" * 32, trained=False,
    )  # fmt: skip
    spec = StoreSpec(
        name="zones",
        dims=4,
        grid=GridSpec(patch_px=1, window_px=16, overlap_px=4, tile_px=256),
        times=((datetime(2024, 3, 1, tzinfo=UTC), datetime(2024, 9, 1, tzinfo=UTC)),),
        model=card,
        calibration=Calibration(scale=(0.1,) * 4, provisional=True, source="test", model_sha256="ab" * 32, patch_px=1),
        numerics=Numerics(
            device="cpu", device_name="x86", dtype="float32", compiled=False, batch_windows=1, torch="2.13.0"
        ),
        recipe="r",
        extents=snapped_extent([t for group in tiles.values() for t in group]),
    )
    path = tmp_path / "store.zarr"
    store.create_store(path, spec)

    def write(shift=0):
        for tile in (t for group in tiles.values() for t in group):
            mine = owned(tile.box)
            codes = np.clip(ground(tile.box).astype(int) + (shift if tile.zone == 32 else 0), -127, 127).astype(np.int8)
            made = Embedding(
                codes=np.where(mine, codes, np.int8(NODATA_CODE)),
                reason=np.where(mine, 0, 4).astype(np.uint8),
                n_obs=mine.astype(np.uint8),
                box=tile.box,
                clipped=0.0,
            )
            store.write_tile(path, tile, made)

    held = Stored(place=str(path), time_index=0, calibration=spec.calibration, token_px=1)
    return held, tiles, write


def test_two_zones_meet_without_a_seam_where_they_see_the_same_ground(two_zones):
    held, tiles, write = two_zones
    write()
    clean = seam_report.border_score(held, tiles[31], zone=31)
    assert (clean.kind, clean.axis) == ("zone", "border")
    assert clean.segments >= 6
    assert clean.low <= 1 <= clean.high
    assert clean.score == pytest.approx(1, abs=0.1)
    assert seam_report.border_score(held, tiles[32], zone=32) is None
    write(shift=20)
    assert seam_report.border_score(held, tiles[31], zone=31).low > 1.15


def test_without_a_limit_a_seam_is_a_warning_only(made):
    plan, _ = made
    found = seam_report.measured(plan, committed_ground.committed(plan))
    bad = replace(found, scores=tuple(replace(s, score=1.6, low=1.5, high=1.7) for s in found.scores[:1]))
    free = replace(plan, settings=plan.settings.replace(f'"max_seam_score":{LIMIT}', '"max_seam_score":null'))
    assert free.settings != plan.settings
    assert seam_report.over_limit(free, bad) == ()
    assert len(seam_report.warnings(free, bad)) == 1
    assert seam_report.warnings(plan, bad) == ()
