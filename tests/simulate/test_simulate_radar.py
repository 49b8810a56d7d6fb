"""Simulated Sentinel-1: power with speckle that depends on place and pass alone, swath edges, files and items."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rio_cogeo.cogeo import cog_validate

from pipeline.plan.items import scene_from_item
from pipeline.simulate.items_radar import make_radar_item
from pipeline.simulate.landscape import BUILT, CROP, FOREST, WATER, survey
from pipeline.simulate.radar import GAMMA0_DB, NODATA, backscatter_of, observe_radar, write_radar
from pipeline.simulate.sample import AREA
from pipeline.simulate.scenes import OrbitEdge, swath
from pipeline.simulate.sensors import radar_passes
from pipeline.simulate.spectra import code
from pipeline.types import Box

MORNING, EVENING = datetime(2024, 7, 14, 5, 34, 12, tzinfo=UTC), datetime(2024, 7, 14, 17, 9, 3, tzinfo=UTC)
LARGE = Box(zone=32, res_m=10, row=-552313, col=50021, height=150, width=170)
SMALL = Box(zone=32, res_m=10, row=-552290, col=50063, height=61, width=77)
EDGE = OrbitEdge(x_m=501_100.0, y_m=5_522_400.0, slope=0.2)


@pytest.fixture(scope="module")
def area():
    return survey(AREA)


@pytest.fixture(scope="module")
def ground():
    return survey(LARGE)


def decibels(power):
    return 10.0 * np.log10(power.astype(np.float64))


def median_db(ground, when, band, where):
    return float(np.median(decibels(backscatter_of(ground, when)[band][where])))


def test_two_windows_of_one_pass_agree_in_every_bit(ground) -> None:
    whole, part = backscatter_of(ground, MORNING), backscatter_of(survey(SMALL), MORNING)
    for band in ("vv", "vh"):
        assert whole[band].dtype == np.float32
        np.testing.assert_array_equal(whole[band][SMALL.slices_in(LARGE)], part[band])


def test_every_measurement_is_a_power_above_zero(area) -> None:
    for power in backscatter_of(area, MORNING).values():
        assert power.min() > 0
        assert -40 < np.percentile(decibels(power), 1) < np.percentile(decibels(power), 99) < 5


def test_speckle_has_four_looks_and_neighbours_share_some(area) -> None:
    """Two passes of one day see the same ground: the ratio is that of two mean-of-four exponentials."""
    one, two = backscatter_of(area, MORNING), backscatter_of(area, EVENING)
    for band in ("vv", "vh"):
        ratio = np.log(one[band].astype(np.float64) / two[band])
        assert abs(ratio.mean()) < 0.02
        assert ratio.var() == pytest.approx(2 * 0.2838, rel=0.05)  # trigamma(4) of each
        assert 0.3 < np.corrcoef(ratio[:, 1:].ravel(), ratio[:, :-1].ravel())[0, 1] < 0.6
        assert abs(np.corrcoef(ratio[:, 2:].ravel(), ratio[:, :-2].ravel())[0, 1]) < 0.02
    noise = [np.log(one[b].astype(np.float64) / two[b]).ravel() for b in ("vv", "vh")]
    assert abs(np.corrcoef(*noise)[0, 1]) < 0.02


def test_the_mean_power_is_the_stated_one(area) -> None:
    needle = area.cover == code("conifer")
    for index, (band, power) in enumerate(backscatter_of(area, MORNING).items()):
        assert band == ("vv", "vh")[index]
        assert 10 * np.log10(power[needle].mean()) == pytest.approx(GAMMA0_DB["needle"][index], abs=0.5)


def test_wind_makes_water_change_from_date_to_date_more_than_forest(area) -> None:
    days = [MORNING.replace(day=day) for day in (2, 9, 16, 23, 30)]
    for land, low, high in ((WATER, 1.0, 6.0), (FOREST, 0.0, 0.7)):
        found = [median_db(area, day, "vv", area.truth == land) for day in days]
        assert low < max(found) - min(found) < high


def test_another_date_or_seed_is_other_speckle(ground) -> None:
    here = backscatter_of(ground, MORNING)["vv"]
    for other in (
        backscatter_of(ground, MORNING.replace(day=15))["vv"],
        backscatter_of(ground, MORNING, seed=8)["vv"],
    ):
        assert np.abs(decibels(here / other)).std() > 1.0


def test_classes_scatter_as_their_kind_does(area) -> None:
    vv, vh = ({c: median_db(area, MORNING, band, area.truth == c) for c in range(5)} for band in ("vv", "vh"))
    assert vv[WATER] < min(vv[c] for c in (FOREST, CROP, BUILT)) - 5
    bright = np.percentile(decibels(backscatter_of(area, MORNING)["vv"]), 99.5)
    roofs = np.isin(area.cover, [code(name) for name in ("red_roof", "grey_roof", "bright_roof")])
    assert vv[FOREST] + 4 < median_db(area, MORNING, "vv", roofs) < bright
    assert vh[FOREST] > vh[CROP] + 1
    assert all(3 < vv[c] - vh[c] < 12 for c in range(5))


def test_maize_grows_in_vh_and_conifers_do_not(area) -> None:
    spring, summer = datetime(2024, 4, 9, 5, tzinfo=UTC), datetime(2024, 8, 10, 5, tzinfo=UTC)
    maize, conifer = (area.cover == code(name) for name in ("maize", "conifer"))
    rise = {name: median_db(area, summer, "vh", m) - median_db(area, spring, "vh", m)
            for name, m in (("maize", maize), ("conifer", conifer))}  # fmt: skip
    assert rise["maize"] > 2.5
    assert abs(rise["conifer"]) < 1.0


def test_outside_the_swath_is_nodata_and_along_its_border_are_zeros(ground) -> None:
    overpass = replace(radar_passes()[0], edge=EDGE, zeros_px=5)
    image = observe_radar(ground, overpass)
    seen = swath(LARGE, EDGE)
    assert 0.2 < seen.mean() < 0.8
    for band, pixels in image.bands:
        np.testing.assert_array_equal(pixels == NODATA, ~seen)
        zeros = pixels == 0
        assert zeros[:, :5].all()  # the scene ends there
        inside = seen & ~zeros
        assert zeros.sum() == 10 * LARGE.height  # five columns on either side
        np.testing.assert_array_equal(pixels[inside], backscatter_of(ground, overpass.acquired)[band][inside])


def test_without_zeros_every_seen_pixel_is_measured(ground) -> None:
    image = observe_radar(ground, replace(radar_passes()[0], edge=EDGE))
    np.testing.assert_array_equal(dict(image.bands)["vh"] > 0, swath(LARGE, EDGE))


@pytest.fixture(scope="module")
def written(ground, tmp_path_factory):
    folder = tmp_path_factory.mktemp("radar")
    image = observe_radar(ground, replace(radar_passes()[3], edge=EDGE))
    return folder, image, make_radar_item(image, files=write_radar(image, folder / "scene"), folder="scene")


def test_files_are_valid_cogs_of_float32_where_the_item_says(written) -> None:
    folder, image, item = written
    for band, pixels in image.bands:
        path = folder / item["assets"][band]["href"]
        assert cog_validate(path, quiet=True)[0]
        with rasterio.open(path) as file:
            np.testing.assert_array_equal(file.read(1), pixels)
            assert (file.nodata, file.dtypes[0], file.crs.to_epsg()) == (NODATA, "float32", 32632)
            assert list(file.transform) == item["properties"]["proj:transform"]
            assert [file.height, file.width] == item["properties"]["proj:shape"]


def test_an_item_becomes_a_scene_of_gamma0_with_its_orbit(written) -> None:
    folder, _, item = written
    scene = scene_from_item(item, base=str(folder / "items.json"), sign=False, sensor="sentinel1")
    assert (scene.sensor, scene.quantity, scene.orbit) == ("sentinel1", "gamma0", "ascending")
    assert [a.band for a in scene.assets] == ["vh", "vv"]
    assert all(Path(a.href).is_file() for a in scene.assets)
    assert scene.acquired == radar_passes()[3].acquired
    assert scene.acquisition.startswith("S1A_")


def test_items_have_the_shape_of_a_recorded_one(written) -> None:
    path = Path(__file__).resolve().parents[2] / (
        "../shared/data/stac/stac-geoparquet/decoded/test_smoke_sentinel-1-rtc_.0.json"
    )
    if not path.is_file():
        pytest.skip("the recorded Planetary Computer item is not beside the project")
    (real,) = json.loads(path.read_text(encoding="utf-8"))["response"]["features"]
    item = written[2]
    assert set(real["properties"]) <= set(item["properties"])
    assert item["stac_extensions"] == real["stac_extensions"]
    for key in ("vv", "vh"):
        assert set(item["assets"][key]) == set(real["assets"][key]) - {"file:size", "file:checksum"}
        for name in ("title", "description", "raster:bands", "type", "roles"):
            assert item["assets"][key][name] == real["assets"][key][name]
    assert len(item["id"]) == len(real["id"])
