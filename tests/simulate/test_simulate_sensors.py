"""The sample for several sensors, and stacks of several sensors from memory."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
import rasterio
from rasterio.features import geometry_mask
from rasterio.warp import Resampling, reproject, transform_geom

from pipeline.errors import InvalidInputError
from pipeline.simulate.landsat import RES_M, observe_landsat
from pipeline.simulate.landscape import joined, survey
from pipeline.simulate.sample import (
    AREA,
    GRANULES,
    SENSOR_BOX,
    SENSORS,
    START,
    calibration_stack_sets,
    calibration_stacks,
    make_sample,
)
from pipeline.simulate.sensor_stacks import landsat_stack, radar_stack
from pipeline.simulate.sensors import landsat_passes
from pipeline.simulate.stacks import CALIBRATION_PX, calibration_places
from pipeline.types import Box, Period

BOX = Box(zone=32, res_m=10, row=-552301, col=50017, height=70, width=83)


def make_periods(count):
    first = datetime(2024, 4, 1, tzinfo=UTC)
    days = [first + timedelta(days=30 * n) for n in range(count + 1)]
    return tuple(Period(index=n, start=days[n], end=days[n + 1]) for n in range(count))


@pytest.fixture(scope="module")
def items(sensor_sample):
    return json.loads(sensor_sample.catalog.read_text(encoding="utf-8"))["features"]


@pytest.fixture(scope="module")
def sets():
    return list(calibration_stack_sets(make_periods(4), sensors=SENSORS))


def of(items, collection):
    return [item for item in items if item["collection"] == collection]


# --- the sample ------------------------------------------------------------------------------------------------------


def test_one_catalogue_holds_the_scenes_of_all_sensors(items) -> None:
    assert [len(of(items, c)) for c in ("sentinel-2-l2a", "sentinel-1-rtc", "landsat-c2l1")] == [12, 5, 4]
    assert len({item["id"] for item in items}) == len(items)
    assert all(item["properties"]["earthpress:simulated"] for item in items)


def test_the_scenes_of_sentinel_2_and_their_catalogue_stay_as_they_are(sample, sensor_sample, items) -> None:
    base = json.loads((sample.folder / "items.json").read_text(encoding="utf-8"))["features"]
    assert of(items, "sentinel-2-l2a") == base
    assert (sample.catalog.name, sample.sensors) == ("items.json", ("sentinel2_l2a",))
    assert sensor_sample.catalog != sample.catalog
    assert (sensor_sample.bbox, sensor_sample.truth) == (sample.bbox, sample.truth)


def test_a_complete_sample_of_all_sensors_is_left_alone(sensor_sample) -> None:
    before = {p: p.stat().st_mtime_ns for p in sensor_sample.folder.rglob("*")}
    assert make_sample(sensor_sample.folder, sensors=SENSORS) == sensor_sample
    assert {p: p.stat().st_mtime_ns for p in sensor_sample.folder.rglob("*")} == before


def test_ground_cut_out_of_the_tiles_is_the_ground_surveyed_anew() -> None:
    """Hence the files of other sensors are the same whether they are written with the tiles or later."""
    top = GRANULES[0].box.row
    tiles = [survey(replace(granule.box, height=40)) for granule in GRANULES]
    box = replace(SENSOR_BOX, row=top + 7, height=30)
    ground, again = joined(tiles, box), survey(box)
    for name in ("truth", "cover", "shift", "gain"):
        np.testing.assert_array_equal(getattr(ground, name), getattr(again, name), err_msg=name)


def test_ground_that_parts_do_not_cover_is_refused() -> None:
    part = survey(BOX)
    with pytest.raises(InvalidInputError, match="not covered"):
        joined([part], Box(zone=32, res_m=10, row=BOX.row, col=BOX.col, height=70, width=90))


def test_ground_with_a_gap_between_its_parts_is_refused() -> None:
    west, east = (survey(replace(BOX, col=BOX.col + at, width=20)) for at in (0, 30))
    with pytest.raises(InvalidInputError, match="not covered"):
        joined([west, east], replace(BOX, width=50))


def test_an_unknown_sensor_is_refused_with_the_known_ones(tmp_path) -> None:
    with pytest.raises(InvalidInputError, match="sentinel2_l2a, sentinel1, landsat, got modis"):
        make_sample(tmp_path, sensors=("modis",))


def test_each_sensor_lacks_a_period_of_its_own(items) -> None:
    start = datetime(START.year, START.month, START.day, tzinfo=UTC)
    seen = {
        c: {(datetime.fromisoformat(i["properties"]["datetime"]) - start).days // 30 for i in of(items, c)}
        for c in ("sentinel-1-rtc", "landsat-c2l1")
    }
    assert seen == {"sentinel-1-rtc": {0, 1, 3}, "landsat-c2l1": {0, 2, 3}}


def test_the_radar_has_two_orbits_a_swath_edge_and_a_border_of_zeros(sensor_sample, items) -> None:
    radar = of(items, "sentinel-1-rtc")
    assert {i["properties"]["sat:orbit_state"] for i in radar} == {"ascending", "descending"}
    cut = SENSOR_BOX.intersect(AREA)
    holes = {}
    for item in radar:
        with rasterio.open(sensor_sample.folder / item["assets"]["vv"]["href"]) as file:
            pixels = file.read(1)[cut.slices_in(SENSOR_BOX)]
        holes[item["properties"]["datetime"][:10]] = ((pixels == -32768).mean(), (pixels == 0).mean())
    edged = holes.pop("2024-05-22")
    assert 0.1 < edged[0] < 0.6
    assert 0.01 < edged[1] < 0.1
    assert set(holes.values()) == {(0.0, 0.0)}


def test_footprints_cover_exactly_the_seen_pixels(sensor_sample, items) -> None:
    for collection, key, nodata in (("sentinel-1-rtc", "vh", -32768), ("landsat-c2l1", "red", 0)):
        for item in of(items, collection):
            with rasterio.open(sensor_sample.folder / item["assets"][key]["href"]) as file:
                seen, transform, crs = file.read(1) != nodata, file.transform, file.crs
            shape = transform_geom("EPSG:4326", crs, item["geometry"])
            inside = geometry_mask([shape], out_shape=seen.shape, transform=transform, invert=True)
            assert (inside != seen).sum() <= 2 * max(seen.shape), item["id"]


def test_the_landsat_scenes_are_as_cloudy_as_planned(items) -> None:
    clouds = [i["properties"]["eo:cloud_cover"] for i in of(items, "landsat-c2l1")]
    assert [round(c / 10) for c in clouds] == [0, 5, 0, 0]


# --- stacks ----------------------------------------------------------------------------------------------------------


def test_stack_sets_hold_one_stack_per_sensor_over_the_same_box_and_periods(sets) -> None:
    assert len(sets) == 8
    for stacks in sets:
        assert tuple(stack.sensor for stack in stacks) == SENSORS
        assert {stack.box.shape for stack in stacks} == {(CALIBRATION_PX, CALIBRATION_PX)}
        assert len({stack.box for stack in stacks}) == len({stack.periods for stack in stacks}) == 1


def test_sentinel_2_of_a_set_is_that_of_the_plain_calibration(sets) -> None:
    for stacks, plain in zip(sets, calibration_stacks(make_periods(4)), strict=True):
        for one, two in zip(stacks[0].layers, plain.layers, strict=True):
            np.testing.assert_array_equal(one.pixels, two.pixels)


def test_sensors_come_in_the_order_asked_for() -> None:
    (first, *_) = calibration_stack_sets(make_periods(1), sensors=("landsat", "sentinel1"))
    assert [stack.sensor for stack in first] == ["landsat", "sentinel1"]


def test_stacks_of_an_unknown_sensor_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="modis"):
        next(calibration_stack_sets(make_periods(1), sensors=("modis",)))


def test_radar_stacks_are_decibels_at_10_m_with_nan_where_nothing_was_seen(sets) -> None:
    found = []
    for _, radar, _ in sets:
        (layer,) = radar.layers
        assert (layer.res_m, layer.bands, layer.pixels.dtype) == (10, ("vv", "vh"), np.float32)
        np.testing.assert_array_equal(layer.valid, ~np.isnan(layer.pixels).any(axis=1))
        found.append(layer.pixels[np.isfinite(layer.pixels)])
    values = np.concatenate(found)
    assert np.percentile(values, 1) < -25
    assert np.percentile(values, 99) > -5


def test_landsat_stacks_are_one_layer_of_eleven_bands_at_10_m(sets) -> None:
    for _, _, landsat in sets:
        (layer,) = landsat.layers
        assert (layer.res_m, layer.bands[0], len(layer.bands)) == (10, "B8", 11)
        assert layer.pixels.dtype == np.uint16
        np.testing.assert_array_equal(layer.valid, (layer.pixels > 0).all(axis=1))


def test_some_periods_of_some_places_lack_a_sensor_and_some_have_all(sets) -> None:
    seen = np.array([[s.layers[0].valid.any(axis=(1, 2)) for s in stacks] for stacks in sets])
    assert seen.shape == (8, 3, 4)
    for sensor in (1, 2):
        assert 0.3 < seen[:, sensor].mean() < 0.95
        assert not seen[:, sensor].all(axis=1).all()
    assert seen.all(axis=(1, 2)).any()
    assert any(not place[1:].any() for place in seen)
    sources = [
        (s.sensor, i, bool(src.selected)) for stacks in sets for s in stacks[1:] for i, src in enumerate(s.sources)
    ]
    assert [had for _, _, had in sources] == seen[:, 1:].ravel().tolist()


@pytest.mark.parametrize("count", [1, 2, 12])
def test_stack_sets_work_for_any_number_of_periods(count: int) -> None:
    stacks = next(iter(calibration_stack_sets(make_periods(count), sensors=SENSORS)))
    assert [len(stack.layers[0].pixels) for stack in stacks] == [count] * 3
    assert len(calibration_places(count)) == 8


@pytest.mark.parametrize("make", [radar_stack, landsat_stack])
def test_neighbouring_stacks_agree_where_they_overlap(make) -> None:
    other = Box(zone=32, res_m=10, row=BOX.row + 13, col=BOX.col + 29, height=70, width=83)
    (one,), (two,) = (make(box, make_periods(1)).layers for box in (BOX, other))
    common = one.box.intersect(two.box)
    np.testing.assert_array_equal(
        one.pixels[..., *common.slices_in(one.box)], two.pixels[..., *common.slices_in(two.box)]
    )


def test_a_radar_stack_equals_the_files_of_that_pass_as_decibels(sensor_sample, items) -> None:
    item = of(items, "sentinel-1-rtc")[0]
    day = datetime.fromisoformat(item["properties"]["datetime"]).replace(hour=0, minute=0, second=0, microsecond=0)
    stack = radar_stack(BOX, (Period(index=0, start=day, end=day + timedelta(hours=12)),))
    for index, band in enumerate(("vv", "vh")):
        with rasterio.open(sensor_sample.folder / item["assets"][band]["href"]) as file:
            power = file.read(1)[BOX.slices_in(SENSOR_BOX)]
        want = (10.0 * np.log10(power.astype(np.float64))).astype(np.float32)
        np.testing.assert_array_equal(stack.layers[0].pixels[0, index], want)


def test_a_landsat_stack_is_its_scene_as_gdal_brings_it_to_10_m() -> None:
    period = make_periods(1)[0]
    stack = landsat_stack(BOX, (period,), cloud_share=0.0)
    around = Box(zone=32, res_m=10, row=-552330, col=49990, height=140, width=150)
    overpass = landsat_passes(around, seed=7)[0]
    clear = type(overpass)(
        acquired=period.start + (period.end - period.start) / 2, platform="LC08", path=1, row=1, sun_elevation=52.0,
        weather=type(overpass.weather)(salt=1),
    )  # fmt: skip
    image = observe_landsat(survey(around), clear)
    for index, (band, dn) in enumerate(image.bands):
        want = np.zeros(BOX.shape, np.uint16)
        reproject(
            dn, want, src_transform=image.frame.transform(RES_M[band]), src_crs="EPSG:32632",
            dst_transform=BOX.transform, dst_crs="EPSG:32632", resampling=Resampling.bilinear,
        )  # fmt: skip
        assert np.abs(stack.layers[0].pixels[0, index].astype(int) - want).max() <= 1, band
