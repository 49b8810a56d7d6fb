"""Simulated Landsat: the archive's grid, the stated rule from ground to DN, files and items."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rio_cogeo.cogeo import cog_validate

from pipeline.encode.bands import MEAN_STD
from pipeline.plan.items import scene_from_item
from pipeline.simulate.clouds import Weather
from pipeline.simulate.items_landsat import landsat_id, make_landsat_item
from pipeline.simulate.landsat import (
    BANDS,
    RES_M,
    LandsatPass,
    area_means,
    digital_numbers,
    frame_in,
    observe_landsat,
    signals,
    write_landsat,
)
from pipeline.simulate.landscape import BARE, FOREST, WATER, reflectance_of, survey
from pipeline.simulate.sample import AREA
from pipeline.simulate.scenes import OrbitEdge
from pipeline.types import Box

JULY = datetime(2024, 7, 18, 10, 15, 31, tzinfo=UTC)
CLEAR = LandsatPass(acquired=JULY, platform="LC09", path=195, row=25, sun_elevation=58.3, weather=Weather(salt=1))
BROKEN = replace(CLEAR, weather=Weather(salt=11, level=0.55))
LARGE = Box(zone=32, res_m=10, row=-552314, col=50020, height=152, width=172)
SMALL = Box(zone=32, res_m=10, row=-552290, col=50062, height=62, width=78)
EDGE = OrbitEdge(x_m=501_100.0, y_m=5_522_400.0, slope=-0.24)


@pytest.fixture(scope="module")
def ground():
    return survey(LARGE)


@pytest.fixture(scope="module")
def cloudy(ground):
    return observe_landsat(ground, BROKEN)


@pytest.mark.parametrize("box", [LARGE, SMALL, replace(LARGE, row=12_345_6, col=49_999)])
def test_pixel_centres_lie_at_multiples_of_30_m_and_the_frame_inside_the_ground(box: Box) -> None:
    frame = frame_in(box)
    x_min, y_min, x_max, y_max = box.bounds_m
    west, south, east, north = frame.bounds_m
    assert (west % 30, north % 30) == (15, 15)
    assert x_min <= west < x_min + 30
    assert x_max - 30 < east <= x_max
    assert y_min <= south < y_min + 30
    assert y_max - 30 < north <= y_max
    pan_x, pan_y = frame.corner_m(15)
    assert ((pan_x + 7.5) % 30, (pan_y - 7.5) % 30) == (0, 0)
    assert frame.shape(15) == (2 * frame.height - 1, 2 * frame.width - 1)


@pytest.mark.parametrize("res_m", [15, 30])
def test_pixels_are_means_over_their_area(ground, res_m: int) -> None:
    fine = reflectance_of(ground, JULY)["B04"]
    frame = frame_in(LARGE)
    (x, y), (rows, cols) = frame.corner_m(res_m), frame.shape(res_m)
    quarter = fine.repeat(4, axis=0).repeat(4, axis=1)  # 2.5 m
    top, left, side = round((LARGE.bounds_m[3] - y) / 2.5), round((x - LARGE.bounds_m[0]) / 2.5), round(res_m / 2.5)
    cut = quarter[top : top + rows * side, left : left + cols * side].astype(np.float64)
    want = cut.reshape(rows, side, cols, side).mean(axis=(1, 3))
    np.testing.assert_allclose(area_means(fine, LARGE, frame, res_m), want, rtol=1e-5)


def test_two_windows_of_one_scene_agree_in_every_dn(cloudy) -> None:
    other = observe_landsat(survey(SMALL), BROKEN)
    for (band, large), (_, small) in zip(cloudy.bands, other.bands, strict=True):
        (x, y), (at_x, at_y) = (image.frame.corner_m(RES_M[band]) for image in (cloudy, other))
        row, col = round((y - at_y) / RES_M[band]), round((at_x - x) / RES_M[band])
        np.testing.assert_array_equal(large[row : row + small.shape[0], col : col + small.shape[1]], small, band)


@pytest.mark.parametrize(
    ("band", "signal", "dn"),
    [
        ("B4", 0.1, 10000),
        ("B4", 0.0, 5000),
        ("B8", 0.3, 20000),
        ("B10", 9.0, 26631),
        ("B4", -0.2, 1),
        ("B1", 9.0, 65535),
    ],
)
def test_dn_follow_the_rescaling_of_the_usgs_and_valid_is_never_zero(band: str, signal: float, dn: int) -> None:
    assert digital_numbers(np.array([[signal]], np.float32), band)[0, 0] == dn


def test_a_dn_gives_back_the_reflectance_of_the_ground_through_the_air(ground) -> None:
    image = observe_landsat(ground, CLEAR)
    surface = area_means(reflectance_of(ground, JULY)["B8A"], LARGE, image.frame, 30)
    toa = (dict(image.bands)["B5"] * 2e-5 - 0.1) / np.sin(np.radians(58.3))
    np.testing.assert_allclose(toa, surface * 0.94 + 0.009, atol=2e-5)


def test_bands_come_in_the_order_of_the_models_at_15_and_30_m(cloudy) -> None:
    assert tuple(band for band, _ in cloudy.bands) == BANDS
    assert BANDS[0] == "B8"
    for band, dn in cloudy.bands:
        assert (dn.dtype, dn.shape) == (np.uint16, cloudy.frame.shape(RES_M[band]))
        assert dn.min() >= 1


def test_numbers_lie_where_the_models_expect_them() -> None:
    """Within the range that the normalisation is made for: mean and twice the standard deviation on either side."""
    for band, dn in observe_landsat(survey(AREA), CLEAR).bands:
        mean, std = MEAN_STD["landsat"][band]
        assert mean - 2 * std < np.percentile(dn, 1) < np.percentile(dn, 99) < mean + 2 * std, band


def test_clouds_are_white_cold_and_show_in_the_cirrus_band(ground, cloudy) -> None:
    opacity = area_means(signals(ground, BROKEN)[1], LARGE, cloudy.frame, 30)
    clear = dict(observe_landsat(ground, CLEAR).bands)
    thick, none = opacity > 0.9, opacity == 0
    assert 0.05 < thick.mean() < 0.95
    bands = dict(cloudy.bands)
    assert bands["B2"][thick].min() > clear["B2"][none].max()
    assert bands["B10"][thick].max() < clear["B10"].min()
    assert bands["B9"][thick].min() > bands["B9"][none].max()
    assert cloudy.cloud_pct == pytest.approx(100 * (opacity > 0.03).mean(), abs=0.01)


def test_dry_ground_is_warm_and_water_cool() -> None:
    area = survey(AREA)
    warm = signals(area, CLEAR)[0]["B10"]
    by_class = {c: float(np.median(warm[area.truth == c])) for c in (WATER, FOREST, BARE)}
    assert by_class[WATER] < by_class[FOREST] < by_class[BARE]


def test_a_swath_edge_leaves_nodata_by_pixel_centres(ground) -> None:
    image = observe_landsat(ground, replace(BROKEN, edge=EDGE))
    for band, dn in image.bands:
        rows, cols = np.indices(dn.shape) + 0.5
        x, y = image.frame.corner_m(RES_M[band])
        beyond = (x + cols * RES_M[band] - EDGE.x_m) + EDGE.slope * (y - rows * RES_M[band] - EDGE.y_m)
        np.testing.assert_array_equal(dn > 0, beyond <= 0, err_msg=band)
    assert 0.2 < (image.bands[0][1] > 0).mean() < 0.8


@pytest.fixture(scope="module")
def written(cloudy, tmp_path_factory):
    folder, name = tmp_path_factory.mktemp("landsat"), landsat_id(cloudy.overpass)
    files = write_landsat(cloudy, folder / name, stem=name)
    return folder, cloudy, make_landsat_item(cloudy, files=files, folder=name)


def test_files_are_valid_cogs_on_the_grid_of_the_item(written) -> None:
    folder, image, item = written
    for (band, dn), key in zip(image.bands, item["assets"], strict=True):
        asset = item["assets"][key]
        holder = asset if band == "B8" else item["properties"]
        path = folder / asset["href"]
        assert cog_validate(path, quiet=True)[0]
        with rasterio.open(path) as file:
            np.testing.assert_array_equal(file.read(1), dn)
            assert (file.nodata, file.dtypes[0]) == (0, "uint16")
            assert list(file.transform)[:6] == holder["proj:transform"]
            assert [file.height, file.width] == holder["proj:shape"]
            assert file.crs.to_epsg() == item["properties"]["proj:epsg"]
    with rasterio.open(folder / item["assets"]["pan"]["href"]) as file:
        assert file.transform.c % 15 == 7.5


def test_an_item_becomes_a_level_1_scene_of_eleven_bands(written) -> None:
    folder, image, item = written
    scene = scene_from_item(item, base=str(folder / "items.json"), sign=False, sensor="landsat")
    assert (scene.sensor, scene.cloud_pct) == ("landsat", image.cloud_pct)
    assert sorted(a.band for a in scene.assets) == sorted(BANDS)
    assert all(Path(a.href).is_file() for a in scene.assets)
    assert scene.href("B8").href.endswith("_B8.TIF")  # type: ignore[union-attr]
    assert scene.acquisition == "LC09_195025_20240718"
