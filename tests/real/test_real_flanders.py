"""A real time series, plan to report: bands missing, clouds, a swath edge, four tiles that meet in a 640 m chip.

Places, times, pixels and scene classification are real (WorldCereal sample 00002806639B424A, tile 31UDS, 2018). Three
things are ours: the dates picked, the baseline (the source records none, its DN have no offset), and one swath edge:
the chip was exported whole on every date, so the scene of 26 September is cut off 400 m from the west.
"""

from __future__ import annotations

import json
import multiprocessing
import signal
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import rasterio.features
from rasterio.warp import transform_geom

from pipeline import api
from pipeline.encode.assemble import Input, normalised
from pipeline.maps.labels import pixels_of, read_labels
from pipeline.plan.planner import load_plan
from pipeline.run.status import tile_status
from pipeline.types import DN_OFFSET, NODATA_CODE, Reason
from pipeline.write.commit import Commits
from tests.real import archive
from tests.real.archive import FAST, RES_10, RES_20, earthpress

if TYPE_CHECKING:
    from pathlib import Path

START, END = "2018-04-01", "2018-09-28"
PICKED = (
    ("04-11", "04-19", "04-26"),  # overcast, clear, clear but one pixel
    ("05-01", "05-04", "05-06"),  # overcast, then two that score alike: the newer one is wanted
    ("05-31", "06-03", "06-25"),  # overcast, little cloud but shadows, more cloud but no shadow
    ("07-03", "07-18"),
    ("08-12", "08-27"),  # cirrus everywhere, overcast: a bad month
    ("09-11", "09-26"),  # thin cirrus, and a clear one that a swath edge cuts
)
EDGE = {"09-26": 40}
"""Day -> columns of 10 m from the west that the scene covers."""
WEIGHTS = {0: 1, 3: 1, 8: 1, 9: 5, 10: 1, 11: 1}
"""How much a pixel of an SCL class counts against a scene (as the settings' documentation has it)."""


@dataclass(frozen=True)
class Chip:
    """The catalogue, and per date (day) what its files hold: bands and SCL, 0 beyond the swath edge."""

    catalog: Path
    series: archive.Series
    files: dict
    names: dict


def cut(series, day):
    """The day's bands and SCL as written: real pixels, 0 beyond an invented swath edge."""
    index, width = series.of(day), EDGE.get(day, 64)
    found = {band: values[index].copy() for band, values in series.bands.items()} | {"SCL": series.scl[index].copy()}
    for values in found.values():
        values[:, width * values.shape[1] // 64 :] = 0
    return found


@pytest.fixture(scope="module")
def chip(tmp_path_factory):
    series, folder = archive.worldcereal(), tmp_path_factory.mktemp("flanders")
    files = {day: cut(series, day) for period in PICKED for day in period}
    items, names = [], {}
    for day, pixels in files.items():
        time, name = series.times[series.of(day)], f"S2_31UDS_2018-{day}"
        covered = replace(series.box, width=EDGE.get(day, 64))
        assets = {}
        for band, values in pixels.items():
            res_m = 10 if band in RES_10 else 20
            box = covered.cover(res_m)
            href = archive.write_cog(folder / name / f"{band}.tif", values[:, : box.width], box=box)
            assets[band] = archive.asset(href, gsd=res_m)
        items.append(
            archive.item(
                name, assets, acquired=time, ring=archive.ring_of(covered), cloud_pct=archive.cloud_pct(pixels["SCL"]),
                baseline=archive.BELOW_4, tile="31UDS",
            )
        )  # fmt: skip
        names[day] = name
    return Chip(catalog=archive.write_catalog(folder / "items.json", items), series=series, files=files, names=names)


def options(chip, output):
    return archive.request(chip.catalog, output, *FAST, bbox=archive.bbox_of(chip.series.box), start=START, end=END)


@pytest.fixture(scope="module")
def finished(chip, tmp_path_factory):
    """Output folder of ``plan`` and ``run`` that nobody disturbed, and what both printed."""
    output = tmp_path_factory.mktemp("finished") / "out"
    planned = earthpress("plan", *options(chip, output), "--json").json
    return output, planned, earthpress("run", output, "--json").json


@pytest.fixture(scope="module")
def plan(finished):
    return load_plan(str(finished[0]))


def expected_order(chip, period):
    """The days of a period, best first, from their SCL: weight, then cloud cover, then the newer."""

    def rank(day):
        scl = chip.files[day]["SCL"]
        return sum(w * int((scl == c).sum()) for c, w in WEIGHTS.items()), archive.cloud_pct(scl), -chip.series.of(day)

    return sorted(PICKED[period], key=rank)


def expected_pixels(chip, bands):
    """(time, band, row, col) uint16 in the encoding of baseline 04.00, over the chip: first day with data."""
    composite = []
    for period in range(len(PICKED)):
        filled = None
        for day in expected_order(chip, period):
            pixels = np.stack([chip.files[day][b] for b in bands]).astype(np.uint16)
            lifted = np.where(pixels > 0, pixels + DN_OFFSET, 0).astype(np.uint16)
            filled = lifted if filled is None else np.where((filled == 0).all(axis=0), lifted, filled)
        composite.append(filled)
    return np.stack(composite)


def test_plan_prices_the_real_scenes_and_writes_nothing_but_the_plan(chip, tmp_path):
    output = tmp_path / "out"
    planned = earthpress("plan", *options(chip, output), "--json").json
    assert planned["scenes"] == sum(map(len, PICKED))
    assert (len(planned["periods"]), planned["empty_periods"]) == (6, [])
    assert [tile["blocks"] for tile in planned["tiles"]] == [1, 1, 1, 1]
    assert planned["area_km2"] == pytest.approx(0.64**2, rel=0.05)
    assert planned["estimate"]["bytes_read"] > 0 < planned["estimate"]["device_s"]
    assert [p.name for p in output.iterdir()] == ["plan"]


def test_the_run_commits_every_tile(finished):
    output, planned, ran = finished
    assert (ran["computed"], ran["degraded"], ran["failures"]) == (len(planned["tiles"]), 0, [])
    assert {row.state for row in tile_status(str(output))} == {"done"}


def test_bands_that_the_archive_lacks_are_absent_and_become_zero(plan):
    stack = archive.stack_of(plan, plan.tasks[0])
    assert [(layer.res_m, sorted(layer.bands)) for layer in stack.layers] == [
        (10, sorted(RES_10)),
        (20, sorted(RES_20)),
    ]
    wanted = Input(sensor="sentinel2_l2a", bands=("B01", "B09", "B02"))
    values = normalised(stack, plan.tasks[0].tile.box, wanted=wanted).numpy()
    assert (values[:, :2] == 0).all()
    assert values[:, 2].any()


def test_every_stack_holds_the_pixels_of_the_best_scene_and_nothing_outside_the_chip(chip, plan):
    for task in plan.tasks:
        stack = archive.stack_of(plan, task)
        for layer in stack.layers:
            want = archive.laid(
                expected_pixels(chip, layer.bands), source=chip.series.box.cover(layer.res_m), target=layer.box
            )
            np.testing.assert_array_equal(layer.pixels, want)
            np.testing.assert_array_equal(layer.valid, (want > 0).any(axis=1))


def test_open_tiles_shows_the_same_pixels_and_decodes_to_reflectance(chip, finished):
    import xarray as xr

    tree = api.open_tiles(str(finished[0]))
    for bands, res_m in ((RES_10, 10), (RES_20, 20)):
        node = tree[f"/utm31/{res_m}m"].to_dataset().load()
        assert set(node.band.values) == set(bands)
        x0, y0, x1, y1 = chip.series.box.bounds_m
        data = node.sel(band=list(bands), x=slice(x0, x1), y=slice(y1, y0))
        want = expected_pixels(chip, bands)
        np.testing.assert_array_equal(data.sentinel2_l2a.values, want)
        assert int((node.sentinel2_l2a > 0).sum()) == (want > 0).sum()
        reflectance = xr.decode_cf(data).sentinel2_l2a.values
        np.testing.assert_allclose(reflectance, (want - 1000.0) / 10000, atol=1e-6)


def test_receipts_name_the_scenes_that_the_classification_prefers(chip, finished):
    for receipt in Commits(finished[0]).receipts():
        for source in receipt.sources:
            order = [chip.names[day] for day in expected_order(chip, source.period)]
            assert source.selected == tuple(order[: len(source.selected)])
            assert source.skipped == ()
    first = {s.period: s.selected[0] for r in Commits(finished[0]).receipts() for s in r.sources if s.selected}
    assert [first[p].removeprefix("S2_31UDS_2018-") for p in range(6)] == [
        "04-19", "05-06", "06-25", "07-18", "08-12", "09-26",
    ]  # fmt: skip


def test_a_swath_edge_is_filled_from_the_next_scene(chip, finished):
    used = {s.selected for r in Commits(finished[0]).receipts() for s in r.sources if s.period == 5 and s.selected}
    assert (chip.names["09-26"], chip.names["09-11"]) in used


def test_embeddings_are_valid_exactly_on_the_chip_and_elsewhere_the_reason_is_no_observation(chip, finished):
    total = 0
    for codes, reason, n_obs, box in archive.committed(finished[0]):
        inside = archive.laid(np.ones(chip.series.box.shape, bool), source=chip.series.box, target=box)
        np.testing.assert_array_equal(reason == Reason.VALID, inside)
        assert (reason[~inside] == Reason.NO_OBSERVATION).all()
        assert ((codes != NODATA_CODE) == inside).all()
        np.testing.assert_array_equal(n_obs, np.where(inside, len(PICKED), 0))
        assert inside.mean() < 0.05  # most of the block has no observation
        total += int(inside.sum())
    assert total == 64 * 64 == finished[2]["valid_px"]


def test_real_ground_is_not_one_vector(finished, chip):
    codes, _, _ = archive.mosaic(finished[0], chip.series.box)
    assert (codes.reshape(len(codes), -1).std(axis=1) > 0).mean() > 0.9


def test_a_killed_run_resumes_to_the_bytes_of_an_undisturbed_one(chip, finished, tmp_path):
    output = tmp_path / "out"
    assert earthpress("plan", *options(chip, output)).code == 0
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pipeline.run.local", "pipeline.encode.session", "pipeline.run.publish"])
    process = context.Process(target=archive.killed_at, args=("written", str(output)))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    states = [row["state"] for row in earthpress("status", output, "--json").json]
    assert 0 < states.count("done") < len(states)
    resumed = earthpress("run", output, "--json").json
    assert (resumed["computed"], resumed["skipped"]) == (len(states) - states.count("done"), states.count("done"))
    assert archive.digest(output) == archive.digest(finished[0])
    killed = earthpress("report", output, "--json").json
    # Tiles that were being read ahead count as attempts that died, too.
    assert dict(killed["attempts"]) == {"killed": states.count("interrupted"), "won": len(states)}
    assert killed["identity_holds"]
    assert killed["leases"] == 2
    assert any("have no end" in note for note in killed["notes"])


def test_the_report_accounts_for_cores_and_bytes_and_no_gpu(finished, plan):
    report = earthpress("report", finished[0], "--json").json
    hours = report["core_h"]
    assert report["usage"]["bytes_read"] > 0 < report["usage"]["bytes_written"]
    assert hours["allocated"] == pytest.approx(hours["useful"] + hours["waste"] + hours["overhead"])
    assert hours["useful"] > 0 == hours["waste"]
    assert set(report["gpu_h"].values()) == {0.0}
    assert report["usd"] is None
    assert report["km2"] == pytest.approx(plan.area.km2)
    assert dict(report["attempts"]) == {"won": 4}


def polygons(chip, path):
    """The land cover raster as GeoJSON polygons in lon/lat; 99 (no reference) left out."""
    found = rasterio.features.shapes(
        chip.series.land_cover.astype(np.int32), mask=chip.series.land_cover != 99, transform=chip.series.box.transform
    )
    features = [
        {
            "type": "Feature",
            "properties": {"LC": int(value)},
            "geometry": transform_geom("EPSG:32631", "EPSG:4326", shape, precision=9),
        }
        for shape, value in found
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def test_land_cover_polygons_cover_the_pixels_of_their_raster(chip, tmp_path):
    labels = read_labels(str(polygons(chip, tmp_path / "lc.geojson")), column="LC")
    assert labels.names == ("11", "13", "60")
    box = chip.series.box
    rows, cols, index = pixels_of(labels, box=box)
    found = np.full(box.shape, 99)
    found[rows - box.row, cols - box.col] = [labels.classes[i] for i in index]
    np.testing.assert_array_equal(found, chip.series.land_cover)


def test_a_probe_fits_on_real_labels_and_says_how_little_they_validate(chip, finished, tmp_path):
    labels, head = polygons(chip, tmp_path / "lc.geojson"), tmp_path / "lc.probe.json"
    report = earthpress("probe", "fit", finished[0], labels, "--column", "LC", "-o", head, "--json").json
    assert [c["name"] for c in report["classes"]] == ["11", "13", "60"]
    assert sum(c["samples"] for c in report["classes"]) == report["samples"] > 500
    assert (report["groups"], report["folds"]) == (4, 2)  # the chip touches four squares of 640 m
    assert any("60 labelled in 2 separate places" in note for note in report["notes"])
    assert json.loads(head.read_text())["trained"] is False
