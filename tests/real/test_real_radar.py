"""Real Sentinel-1 pixels end to end, beside Sentinel-2 and alone.

Flanders (WorldCereal sample 00002806639B424A): sigma0 of GRD, ascending, exported in dB * 1e4 at 20 m. It becomes
linear power here and is labelled sigma0, because the models were trained on gamma0. Papua New Guinea (OPERA RTC-S1,
burst T009-019294-IW2): gamma0, linear, 30 m, NaN; those files are read where they lie. Places, times and pixels are
real; the dates are picked, and item fields that the sources do not record are left out. Sentinel-2 of Flanders comes
as in ``test_real_flanders``; its baseline is ours.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.warp import Resampling, reproject

from pipeline.plan.planner import load_plan
from pipeline.types import Box, Reason
from pipeline.write.commit import Commits
from tests.real import archive
from tests.real.archive import FAST, RES_10, earthpress

BOTH = "inputs.sensors=[sentinel2_l2a, sentinel1]"
BACKSCATTER = "earthpress:backscatter"

# --- Flanders: Sentinel-2 and Sentinel-1 -----------------------------------------------------------------------------

START, END = "2018-04-01", "2018-07-30"
OPTICAL = ("04-19", "05-06", "06-25")  # one in each of the first three periods; none in the last
RADAR = ("04-22", "04-28", "06-08", "07-21")  # two in the first period, none in the second
PART = Box(zone=31, res_m=10, row=-562944, col=50136, height=40, width=40)
"""The part of the chip that lies in one block."""


@dataclass(frozen=True)
class Flanders:
    """The catalogue of both sensors, and what it was made of."""

    catalog: Path
    radar: archive.Radar


def radar_name(day):
    return f"s1_sigma0_31UDS_2018-{day}"


def optical_item(folder, series, day):
    index, name, assets = series.of(day), f"S2_31UDS_2018-{day}", {}
    for band, values in (*series.bands.items(), ("SCL", series.scl)):
        res_m = 10 if band in RES_10 else 20
        href = archive.write_cog(folder / name / f"{band}.tif", values[index], box=series.box.cover(res_m))
        assets[band] = archive.asset(href, gsd=res_m)
    return archive.item(
        name, assets, acquired=series.times[index], ring=archive.ring_of(series.box),
        cloud_pct=archive.cloud_pct(series.scl[index]), baseline=archive.BELOW_4, tile="31UDS",
    )  # fmt: skip


def radar_item(folder, radar, day):
    index, name = radar.of(day), radar_name(day)
    assets = {}
    for band, values in radar.power.items():
        href = archive.write_cog(folder / name / f"{band}.tif", values[index], box=radar.box, nodata=-32768)
        assets[band.upper()] = archive.asset(href, gsd=20)
    told = {"sar:instrument_mode": "IW", "sat:orbit_state": "ascending", BACKSCATTER: "sigma0"}
    ring = archive.ring_of(radar.box)
    return archive.radar_item(
        name, assets, acquired=radar.times[index], ring=ring, collection="sentinel-1-sigma0-worldcereal", **told
    )


@pytest.fixture(scope="module")
def flanders(tmp_path_factory):
    series, radar, folder = archive.worldcereal(), archive.worldcereal_radar(), tmp_path_factory.mktemp("flanders")
    items = [optical_item(folder, series, day) for day in OPTICAL] + [radar_item(folder, radar, d) for d in RADAR]
    return Flanders(catalog=archive.write_catalog(folder / "items.json", items), radar=radar)


def run_flanders(flanders, output, *sets):
    options = archive.request(
        flanders.catalog, output, *FAST, BOTH, *sets, bbox=archive.bbox_of(PART.pad(-6)), start=START, end=END
    )
    ran = earthpress("run", *options, "--json").json
    assert (ran["exit_code"], ran["computed"], ran["degraded"]) == (0, 1, 0)
    return output


@pytest.fixture(scope="module")
def finished(flanders, tmp_path_factory):
    return run_flanders(flanders, tmp_path_factory.mktemp("both") / "out")


@pytest.fixture(scope="module")
def stacks(finished):
    plan = load_plan(str(finished))
    (task,) = plan.tasks
    return archive.stacks_of(plan, task)


def test_vectors_are_valid_exactly_on_the_chip(flanders, finished):
    ((_, reason, n_obs, box),) = archive.committed(finished)
    chip = flanders.radar.box.cover(10)
    inside = archive.laid(np.ones(chip.shape, bool), source=chip, target=box)
    np.testing.assert_array_equal(reason == Reason.VALID, inside)
    # Some sensor saw every period: the second has Sentinel-2 only, the last Sentinel-1 only.
    np.testing.assert_array_equal(n_obs, np.where(inside, 4, 0))


def test_the_plan_and_the_store_say_that_the_radar_is_sigma0(finished):
    scenes = [s for s in load_plan(str(finished)).scenes if s.sensor == "sentinel1"]
    assert {s.id for s in scenes} == set(map(radar_name, RADAR))
    assert {(s.quantity, s.orbit) for s in scenes} == {("sigma0", "ascending")}
    root = json.loads((finished / "store.zarr" / "zarr.json").read_text())["attributes"]
    assert root["geoemb:source_data"] == ["sentinel-1-sigma0-worldcereal (sigma0)", "sentinel-2-l2a"]


def test_a_period_without_radar_is_missing_there_and_the_others_are_not(stacks):
    optical, radar = stacks
    rows, cols = PART.slices_in(radar.layers[0].box)
    assert [bool(valid[rows, cols].all()) for valid in radar.layers[0].valid] == [True, False, True, True]
    assert not radar.layers[0].valid[1].any()
    assert np.isnan(radar.layers[0].pixels[1]).all()
    assert [bool(valid.any()) for valid in optical.layers[0].valid] == [True, True, True, False]


def test_receipts_name_the_newest_radar_scene_of_each_period(finished):
    (receipt,) = Commits(finished).receipts()
    used = {s.period: s.selected for s in receipt.sources if s.sensor == "sentinel1" and s.selected}
    assert used == {0: (radar_name("04-28"),), 2: (radar_name("06-08"),), 3: (radar_name("07-21"),)}


def test_the_stack_holds_the_decibels_of_interpolated_power(flanders, stacks):
    """20 m pixels reach 10 m as power, as GDAL's warper does it; the mean of decibels would be lower."""
    layer = stacks[1].layers[0]
    for time, day in ((0, "04-28"), (2, "06-08"), (3, "07-21")):
        for index, band in enumerate(layer.bands):
            power = flanders.radar.power[band][flanders.radar.of(day)]
            theirs = np.full(layer.box.shape, np.nan, np.float32)
            reproject(
                power, theirs, src_transform=flanders.radar.box.transform, src_crs="EPSG:32631",
                dst_transform=layer.box.transform, dst_crs="EPSG:32631", resampling=Resampling.bilinear,
                src_nodata=np.nan, dst_nodata=np.nan,
            )  # fmt: skip
            ours = layer.pixels[time, index]
            np.testing.assert_array_equal(np.isnan(ours), np.isnan(theirs))
            np.testing.assert_allclose(ours, 10 * np.log10(theirs), atol=1e-4)


def test_the_stack_is_as_bright_as_the_source(flanders, stacks):
    """By the source's own decibels: interpolation keeps the mean of power, not of decibels."""
    layer, source = stacks[1].layers[0], flanders.radar
    for index, band in enumerate(layer.bands):
        told = source.decibels[band][source.of("06-08")][PART.cover(20).slices_in(source.box)]
        ours = layer.pixels[2, index][PART.slices_in(layer.box)]
        assert 10 * np.log10((10 ** (ours / 10)).mean()) == pytest.approx(
            10 * np.log10((10 ** (told / 10)).mean()), abs=0.1
        )
        assert np.corrcoef(ours[::2, ::2].ravel(), told.ravel())[0, 1] > 0.9


def test_the_radar_changes_the_vectors(flanders, finished, tmp_path):
    """Every real scene is ascending: asking for descending ones leaves the same run without radar."""
    without = run_flanders(flanders, tmp_path / "out", "inputs.sentinel1.orbit=descending")
    plan = load_plan(str(without))
    assert plan.calibration.hash == load_plan(str(finished)).calibration.hash
    assert {s.sensor for s in plan.scenes} == {"sentinel2_l2a"}
    codes, reason, _ = archive.mosaic(finished, PART)
    plain, plain_reason, n_obs = archive.mosaic(without, PART)
    assert (reason == Reason.VALID).all()
    assert (plain_reason == Reason.VALID).all()
    assert (n_obs == 3).all()
    assert (codes != plain).any(axis=0).all()


# --- Papua New Guinea: OPERA RTC-S1 ----------------------------------------------------------------------------------

NAME = re.compile(r"(OPERA_L2_RTC-S1_T009-019294-IW2_(\d{8}T\d{6})Z_\w+_S1A_30_v1\.0)_(V[VH])_")
DESPECKLED, BURST = "T009_019294_IW2_cropped_tv", "T009_019294_IW2_cropped"
OPERA = ("2024-01-15", "2024-04-14")
INNER = Box(zone=54, res_m=10, row=59392, col=76032, height=180, width=256)
"""The part of the despeckled crop in one block."""
EDGE = Box(zone=54, res_m=10, row=59136, col=76032, height=256, width=256)
"""A block that the edge of the burst crosses."""


def opera_scenes(folder):
    """Item id -> (time, {polarisation: file})."""
    scenes = {}
    for path in sorted((archive.real("opera-rtc-s1") / folder).glob("*.tif")):
        name, time, pol = NAME.match(path.name).groups()
        start = datetime.strptime(time, "%Y%m%dT%H%M%S").replace(tzinfo=UTC)
        scenes.setdefault(name, (start, {}))[1][pol] = path
    return scenes


def opera_catalog(path, folder, *, twice=False):
    """Items of files where they lie; ``twice`` lets VH stand for the VV that a crop lacks."""
    items = []
    for name, (start, files) in opera_scenes(folder).items():
        with rasterio.open(next(iter(files.values()))) as file:
            x0, y0, x1, y1 = file.bounds
        box = Box(
            zone=54, res_m=30, row=round((1e7 - y1) / 30), col=round(x0 / 30), height=round((y1 - y0) / 30),
            width=round((x1 - x0) / 30),
        )  # fmt: skip
        ring = archive.ring_of(replace(box, res_m=10, row=round((1e7 - y1) / 10), col=round(x0 / 10),
                                       height=box.height * 3, width=box.width * 3))  # fmt: skip
        held = files | ({"VV": files["VH"]} if twice else {})
        assets = {pol: archive.asset(str(where), gsd=30) for pol, where in held.items()}
        items.append(archive.radar_item(name, assets, acquired=start, ring=ring, collection="OPERA_L2_RTC-S1_V1"))
    return archive.write_catalog(path, items)


def run_opera(catalog, output, box):
    options = archive.request(
        catalog,
        output,
        *FAST,
        "inputs.sensors=[sentinel1]",
        bbox=archive.bbox_of(box.pad(-6)),
        start=OPERA[0],
        end=OPERA[1],
    )
    return earthpress("run", *options, "--json")


@pytest.fixture(scope="module")
def despeckled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("opera")
    ran = run_opera(opera_catalog(folder / "items.json", DESPECKLED), folder / "out", INNER).json
    assert (ran["exit_code"], ran["computed"], ran["degraded"]) == (0, 1, 0)
    return folder / "out"


def warped(path, box):
    """A file's power on the lattice, as GDAL brings it there; the lattice counts northings from the equator."""
    out = np.full(box.shape, np.nan, np.float32)
    with rasterio.open(path) as file:
        reproject(
            rasterio.band(file, 1), out, dst_transform=box.transform, dst_crs=f"EPSG:{box.epsg}",
            resampling=Resampling.bilinear, src_nodata=np.nan, dst_nodata=np.nan, tolerance=0,
        )  # fmt: skip
    return out


def test_opera_files_are_gamma0_by_their_name_and_read_where_they_lie(despeckled):
    scenes = load_plan(str(despeckled)).scenes
    assert len(scenes) == 7
    assert {(s.sensor, s.quantity) for s in scenes} == {("sentinel1", "gamma0")}
    files = {path for _, held in opera_scenes(DESPECKLED).values() for path in held.values()}
    assert {Path(a.href) for s in scenes for a in s.assets} == files
    assert all(s.acquisition.startswith("S1A_") for s in scenes)


def test_radar_alone_gives_a_vector_to_every_pixel_of_the_crop(despeckled):
    ((_, reason, n_obs, _),) = archive.committed(despeckled)
    codes, part_reason, part_n_obs = archive.mosaic(despeckled, INNER)
    assert (part_reason == Reason.VALID).all()
    assert (part_n_obs == 3).all()
    assert (reason != Reason.VALID).any()  # the block reaches beyond the crop
    assert ((n_obs == 0) == (reason != Reason.VALID)).all()
    assert (codes.reshape(len(codes), -1).std(axis=1) > 0).mean() > 0.9


def test_opera_at_30_m_reaches_10_m_in_the_south_as_gdal_does_it(despeckled):
    plan = load_plan(str(despeckled))
    stack = archive.stack_of(plan, plan.tasks[0])
    layer = stack.layers[0]
    newest = sorted(opera_scenes(DESPECKLED).values(), key=lambda pair: pair[0])[1]  # of the first period
    assert f"{newest[0]:%m-%d}" == "02-04"
    rows, cols = INNER.slices_in(layer.box)
    for index, band in enumerate(layer.bands):
        theirs = 10 * np.log10(warped(newest[1][band.upper()], INNER))
        np.testing.assert_allclose(layer.pixels[0, index][rows, cols], theirs, atol=2e-3)
    assert -16 < np.median(layer.pixels[0, 0][rows, cols]) < -4  # vv
    assert np.median((layer.pixels[0, 0] - layer.pixels[0, 1])[rows, cols]) > 4


def test_the_edge_of_a_burst_is_nodata_and_gets_no_vector(tmp_path):
    """65 % of this crop is NaN. It has VH only: here the same files stand for VV too."""
    ran = run_opera(opera_catalog(tmp_path / "items.json", BURST, twice=True), tmp_path / "out", EDGE).json
    assert ran["exit_code"] == 0
    ((_, reason, _, box),) = archive.committed(tmp_path / "out")
    files = [held["VH"] for _, held in opera_scenes(BURST).values()]
    measured = np.logical_or.reduce([np.isfinite(warped(path, box)) for path in files])
    assert 0.05 < measured.mean() < 0.95
    np.testing.assert_array_equal(reason == Reason.VALID, measured)
    assert (reason[~measured] == Reason.NO_OBSERVATION).all()


def test_a_burst_with_vh_only_is_no_candidate(tmp_path, caplog):
    ran = run_opera(opera_catalog(tmp_path / "items.json", BURST), tmp_path / "out", EDGE)
    assert ran.code == 65
    assert "no usable scene" in ran.err
    assert "has no VV: the model needs VV and VH" in caplog.text
    assert not (tmp_path / "out" / "store.zarr").exists()
