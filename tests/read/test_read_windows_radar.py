"""Sentinel-1 windows: which pixels are measurements, resampling in linear power, decibels once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from files import scene_of, write_cog
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT

from pipeline.errors import DataError
from pipeline.read.access import Access
from pipeline.read.windows import read_band, read_native
from pipeline.types import Asset, Box, Scene

LOCAL = Access(allow_local=True)
BOX = Box(zone=32, res_m=10, row=-550_000, col=40_000, height=64, width=64)
OPERA = Path(__file__).resolve().parents[2] / "../shared/data/opera-rtc-s1/T009_019294_IW2_cropped"


def radar(path, *, quantity: str = "gamma0") -> Scene:
    scene = scene_of("S1", Asset(band="vv", href=str(path)))
    return replace(scene, collection="sentinel-1-rtc", sensor="sentinel1", quantity=quantity)


def linear(path, box):
    scene = radar(path)
    return read_native(scene, scene.assets[0], box=box, access=LOCAL)


def speckle(shape, *, seed: int = 0) -> np.ndarray:
    """Gamma distributed power around -12 dB, as of a few looks."""
    return np.random.default_rng(seed).gamma(4, 0.06 / 4, shape).astype(np.float32)


def in_decibels(power: np.ndarray) -> np.ndarray:
    return (10 * np.log10(np.maximum(power.astype(np.float64), 1e-10))).astype(np.float32)


def vrt(path, box: Box, **options) -> np.ndarray:
    """GDAL's bilinear warper in linear power over a lattice box."""
    with (
        rasterio.open(path) as dataset,
        WarpedVRT(
            dataset,
            crs=f"EPSG:{box.epsg}",
            transform=box.transform,
            width=box.width,
            height=box.height,
            nodata=np.nan,
            resampling=Resampling.bilinear,
            dtype="float32",
            **options,
        ) as warper,
    ):
        return warper.read(1)


def test_pixels_on_the_lattice_are_the_files_power_bit_for_bit(tmp_path):
    values = speckle(BOX.shape)
    path = write_cog(tmp_path / "vv.tif", values, box=BOX, nodata=-32768)
    got = linear(path, BOX.pad(3))
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got[3:-3, 3:-3], values)
    assert np.isnan(got[:3]).all()
    assert np.isnan(got[:, -3:]).all()


@pytest.mark.parametrize("quantity", ["gamma0", "sigma0"])
def test_a_band_is_ten_log_ten_of_power_in_single_precision(tmp_path, quantity):
    values = speckle(BOX.shape)
    path = write_cog(tmp_path / "vv.tif", values, box=BOX, nodata=-32768)
    got = read_band(radar(path, quantity=quantity), "vv", box=BOX, access=LOCAL)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, in_decibels(values))


@pytest.mark.parametrize("nodata", [0, np.nan, -32768, None])
@pytest.mark.parametrize("resampled", [False, True])
def test_zero_negative_nodata_and_not_finite_pixels_are_missing_whatever_the_file_declares(tmp_path, nodata, resampled):
    values = speckle(BOX.shape)
    bad = (0.0, -0.01, -32768.0, np.nan, np.inf, -np.inf)
    values[[5, 15, 25, 35, 45, 55], 20] = bad
    transform = Affine.translation(0, 3) * BOX.transform if resampled else None
    path = write_cog(tmp_path / "vv.tif", values, box=BOX, nodata=nodata, transform=transform)
    got = read_band(radar(path), "vv", box=BOX, access=LOCAL)
    want = np.ones(BOX.shape, bool)
    want[[5, 15, 25, 35, 45, 55], 20] = False
    np.testing.assert_array_equal(np.isfinite(got)[2:-2], want[2:-2])
    assert np.nanmin(got) > -40  # none of them was blended into a neighbour


def test_the_least_power_is_minus_100_decibels(tmp_path):
    path = write_cog(tmp_path / "vv.tif", np.full(BOX.shape, 1e-30, np.float32), box=BOX, nodata=-32768)
    assert (read_band(radar(path), "vv", box=BOX, access=LOCAL) == -100).all()


def test_decibels_are_taken_after_resampling_not_before(tmp_path):
    values = np.tile(np.array([0.1, 0.4], np.float32), (64, 32))
    half = Affine.translation(5, 0) * BOX.transform  # every lattice pixel lies halfway between a dark and a bright one
    path = write_cog(tmp_path / "vv.tif", values, box=BOX, nodata=-32768, transform=half)
    got = read_band(radar(path), "vv", box=BOX, access=LOCAL)[2:-2, 2:-2]
    np.testing.assert_allclose(got, 10 * np.log10(0.25), rtol=1e-5)  # the mean of decibels would be -7.0


def coarse_file(tmp_path, *, holes: bool = True, nodata: float | None = np.nan, seed: int = 0):
    """30 m pixels whose grid is that of OPERA: not on multiples of 30 m of our lattice."""
    values = speckle((90, 80), seed=seed)
    if holes:
        values[:, 30:33] = np.nan
        values[np.tril_indices(60, -20)] = np.nan
    transform = Affine(30, 0, 400_010, 0, -30, 5_500_020)
    return write_cog(tmp_path / "vv.tif", values, box=BOX, nodata=nodata, transform=transform)


def test_30_m_pixels_become_10_m_as_gdals_warper_makes_them_in_linear_power(tmp_path):
    path = coarse_file(tmp_path)
    box = Box(zone=32, res_m=10, row=-549_990, col=40_013, height=230, width=210)
    got, want = linear(path, box), vrt(path, box)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    np.testing.assert_allclose(got, want, rtol=3e-7)
    assert 0.1 < np.isnan(want).mean() < 0.8


def test_zeros_that_nothing_declares_are_not_blended_into_the_edge_of_a_resampled_scene(tmp_path):
    values = speckle((90, 80))
    values[:, 40:] = 0  # a scene processed before 2018
    transform = Affine(30, 0, 400_010, 0, -30, 5_500_020)
    path = write_cog(tmp_path / "vv.tif", values, box=BOX, nodata=-32768, transform=transform)
    marked = write_cog(tmp_path / "marked.tif", np.where(values == 0, np.float32(np.nan), values), box=BOX,
                       nodata=np.nan, transform=transform)  # fmt: skip
    box = Box(zone=32, res_m=10, row=-549_990, col=40_013, height=200, width=200)
    np.testing.assert_array_equal(linear(path, box), linear(marked, box))
    plain = vrt(path, box, src_nodata=-32768)
    assert (plain[np.isfinite(linear(path, box))] < 0.7 * linear(path, box)[np.isfinite(linear(path, box))]).any()


@pytest.mark.parametrize("where", ["other zone", "30 m"])
def test_a_resampled_pixel_does_not_depend_on_the_box(tmp_path, where):
    if where == "30 m":
        path, corner = coarse_file(tmp_path), (-549_990, 40_013)
    else:
        far = Box(zone=31, res_m=10, row=-549_200, col=74_000, height=700, width=700)
        path = write_cog(tmp_path / "z31.tif", speckle(far.shape), box=far, nodata=-32768)
        x, y = rasterio.warp.transform("EPSG:32631", "EPSG:32632", [743_000], [5_489_000])
        corner = int(-y[0] // 10), int(x[0] // 10)
    whole = Box(zone=32, res_m=10, row=corner[0], col=corner[1], height=230, width=220)
    part = Box(zone=32, res_m=10, row=corner[0] + 33, col=corner[1] + 71, height=150, width=130)
    one, two = linear(path, whole), linear(path, part)
    assert np.isfinite(two).mean() > 0.3
    assert one[part.slices_in(whole)].tobytes() == two.tobytes()


def test_decibels_in_a_file_are_refused_not_taken_for_nodata(tmp_path):
    path = write_cog(tmp_path / "vv.tif", in_decibels(speckle(BOX.shape)), box=BOX, nodata=-32768)
    with pytest.raises(DataError, match=r"item S1, band vv: .*decibels"):
        linear(path, BOX)


@pytest.mark.parametrize("nodata", [-32768, None])
def test_a_file_that_is_mostly_nodata_is_not_taken_for_decibels(tmp_path, nodata):
    values = speckle(BOX.shape)
    values[:, 5:] = -32768
    path = write_cog(tmp_path / "vv.tif", values, box=BOX, nodata=nodata)
    np.testing.assert_array_equal(np.isfinite(linear(path, BOX)), values > 0)


def test_small_negative_powers_after_noise_removal_are_missing_and_no_error(tmp_path):
    values = speckle(BOX.shape) - np.float32(0.08)
    path = write_cog(tmp_path / "vv.tif", values, box=BOX, nodata=-32768)
    assert (values < 0).mean() > 0.5
    np.testing.assert_array_equal(np.isfinite(linear(path, BOX)), values > 0)


def test_integers_are_refused(tmp_path):
    path = write_cog(tmp_path / "vv.tif", np.full(BOX.shape, 300, np.uint16), box=BOX)
    with pytest.raises(DataError, match="uint16.*linear power"):
        linear(path, BOX)


def test_a_southern_scene_is_read_in_the_shifted_plane(tmp_path):
    south = Box(zone=33, res_m=10, row=350_000, col=60_000, height=64, width=64)
    values = speckle(south.shape)
    path = write_cog(tmp_path / "vv.tif", values, box=south, epsg=32733, nodata=-32768)
    np.testing.assert_array_equal(linear(path, south), values)


@pytest.mark.skipif(not OPERA.is_dir(), reason="real pixels are not at hand: no shared/data/opera-rtc-s1")
def test_real_30_m_gamma0_equals_gdals_warper_in_linear_power():
    path = min(OPERA.glob("*_VH_cropped.tif"))
    with rasterio.open(path) as dataset:  # EPSG:32754: northings fall by the false one in our plane
        t = dataset.transform
    box = Box(
        zone=54, res_m=10, row=round((10_000_000 - t.f) / 10) + 40, col=round(t.c / 10) + 7, height=600, width=900
    )
    got = linear(path, box)
    south = Affine.translation(0, 10_000_000) * box.transform
    with (
        rasterio.open(path) as dataset,
        WarpedVRT(
            dataset, crs=dataset.crs, transform=south, width=900, height=600, resampling=Resampling.bilinear
        ) as v,
    ):
        want = v.read(1)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    np.testing.assert_allclose(got, want, rtol=1e-6)
    assert 0.2 < np.isfinite(want).mean() < 0.9
