"""Scenes in memory: DN, clouds, shadows, scene classification, swath edge."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from pipeline.simulate.clouds import (
    SCL_CLEAR,
    SCL_CLOUD_HIGH,
    SCL_SHADOW,
    SHADOW_PX,
    Weather,
    level_for,
    sky_over,
)
from pipeline.simulate.landscape import reflectance, survey
from pipeline.simulate.scenes import Datatake, Granule, OrbitEdge, block_mean, digital_numbers, observe, swath
from pipeline.simulate.spectra import BANDS, RES_M
from pipeline.types import Box

WHEN = datetime(2024, 6, 14, 10, 26, 1, tzinfo=UTC)
WEST = Granule(name="32UMA", box=Box(zone=32, res_m=10, row=-552300, col=49860, height=180, width=240))
EAST = Granule(name="32UNA", box=Box(zone=32, res_m=10, row=-552300, col=49998, height=180, width=240))
BROKEN = Weather(salt=11, level=0.55, veil=0.12)


def take(*, baseline: str = "05.10", weather: Weather = BROKEN, edge: OrbitEdge | None = None) -> Datatake:
    orbit = {"relative_orbit": 65, "absolute_orbit": 46000}
    return Datatake(acquired=WHEN, platform="S2A", baseline=baseline, weather=weather, edge=edge, **orbit)


@pytest.fixture(scope="module")
def ground():
    return survey(WEST.box)


@pytest.fixture(scope="module")
def cloudy(ground):
    return observe(ground, WEST, take())


def test_bands_come_at_their_native_resolutions(cloudy) -> None:
    assert [band for band, _ in cloudy.bands] == list(BANDS)
    for band, dn in cloudy.bands:
        assert (dn.dtype, dn.shape) == (np.uint16, WEST.box.cover(RES_M[band]).shape)
    assert cloudy.scl.shape == WEST.box.cover(20).shape


@pytest.mark.parametrize("factor", [2, 6])
def test_coarse_pixels_are_block_means(factor: int) -> None:
    fine = reflectance(WEST.box, WHEN)["B11"]
    height, width = (n // factor for n in fine.shape)
    want = fine.astype(np.float64).reshape(height, factor, width, factor).mean(axis=(1, 3))
    np.testing.assert_allclose(block_mean(fine, factor), want, rtol=1e-6)


@pytest.mark.parametrize(
    ("value", "offset", "dn"), [(0.1234, 1000, 2234), (0.1234, 0, 1234), (0.0, 0, 1), (7.0, 0, 65535)]
)
def test_dn_follow_the_product_format_and_valid_is_never_zero(value: float, offset: int, dn: int) -> None:
    assert digital_numbers(np.array([[value]], np.float32), offset=offset)[0, 0] == dn


def test_old_and_new_baselines_decode_to_the_same_reflectance(ground, cloudy) -> None:
    old = observe(ground, WEST, take(baseline="02.14"))
    for (band, new_dn), (_, old_dn) in zip(cloudy.bands, old.bands, strict=True):
        np.testing.assert_array_equal(new_dn, old_dn + 1000, err_msg=band)


def test_two_tiles_of_one_datatake_show_the_same_ground_alike(cloudy) -> None:
    other = observe(survey(EAST.box), EAST, take())
    common = WEST.box.intersect(EAST.box)
    assert common is not None
    for (band, west), (_, east) in zip(cloudy.bands, other.bands, strict=True):
        part = common.cover(RES_M[band])
        cut_west, cut_east = (part.slices_in(g.box.cover(RES_M[band])) for g in (WEST, EAST))
        np.testing.assert_array_equal(west[cut_west], east[cut_east], err_msg=band)
    part = common.cover(20)
    np.testing.assert_array_equal(
        cloudy.scl[part.slices_in(WEST.box.cover(20))], other.scl[part.slices_in(EAST.box.cover(20))]
    )


def test_where_scl_says_clear_the_dn_are_the_landscapes(cloudy) -> None:
    clear = np.isin(cloudy.scl, SCL_CLEAR)
    assert 0.1 < clear.mean() < 0.9
    seen = reflectance(WEST.box, WHEN)
    for band, dn in cloudy.bands:
        factor = RES_M[band] // 10
        want = digital_numbers(block_mean(seen[band], factor))
        if factor == 6:
            here = clear.reshape(clear.shape[0] // 3, 3, clear.shape[1] // 3, 3).all(axis=(1, 3))
        else:
            here = clear.repeat(2 // factor, axis=0).repeat(2 // factor, axis=1)
        np.testing.assert_array_equal(dn[here], want[here], err_msg=band)


def test_where_scl_says_cloud_the_scene_is_bright_and_in_shadow_dark(ground, cloudy) -> None:
    blue, nir = (block_mean(dict(cloudy.bands)[b].astype(np.float32), 2) - 1000 for b in ("B02", "B08"))
    bare_nir = block_mean(reflectance(WEST.box, WHEN)["B08"], 2) * 10000
    assert blue[cloudy.scl == SCL_CLOUD_HIGH].min() > 3500
    shade = cloudy.scl == SCL_SHADOW
    assert shade.sum() > 50
    assert np.median(nir[shade] / bare_nir[shade]) < 0.85


def test_every_cloud_pixel_is_flagged_and_nothing_else(ground, cloudy) -> None:
    sky = sky_over(WEST.box, BROKEN)
    touched = (sky.opacity > 0) | (sky.shadow > 0)
    np.testing.assert_array_equal(np.isin(cloudy.scl, SCL_CLEAR), ~touched)


def test_a_shadow_is_its_cloud_moved_north_west() -> None:
    weather = replace(BROKEN, veil=0.0)
    sky = sky_over(WEST.box, weather)
    below = replace(WEST.box, row=WEST.box.row + SHADOW_PX[0], col=WEST.box.col + SHADOW_PX[1])
    np.testing.assert_allclose(sky.shadow * 0.98, sky_over(below, weather).opacity, atol=1e-6)


def test_cloud_edges_are_soft() -> None:
    opacity = sky_over(WEST.box, replace(BROKEN, veil=0.0)).opacity
    assert ((opacity > 0.05) & (opacity < 0.9)).sum() > 0.1 * (opacity >= 0.9).sum()


def test_the_level_gives_the_wanted_cover() -> None:
    level = level_for(BROKEN, (WEST.box, EAST.box), share=0.3)
    covers = [(sky_over(g.box, Weather(salt=11, level=level)).opacity > 0).mean() for g in (WEST, EAST)]
    assert max(covers) == pytest.approx(0.3, abs=0.03)


def test_the_orbit_edge_cuts_each_resolution_by_its_pixel_centres(ground) -> None:
    edge = OrbitEdge(x_m=500_000.0, y_m=5_522_000.0, slope=-0.26)
    image = observe(ground, WEST, take(weather=Weather(salt=1), edge=edge))
    for band, dn in image.bands:
        np.testing.assert_array_equal(dn > 0, swath(WEST.box.cover(RES_M[band]), edge), err_msg=band)
    np.testing.assert_array_equal(image.scl > 0, swath(WEST.box.cover(20), edge))
    assert 0.2 < (image.scl > 0).mean() < 0.95
