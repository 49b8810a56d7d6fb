"""Traps of pixels: one value per place, what is missing, how coarse bands reach 10 m, one grid per zone."""

from __future__ import annotations

from dataclasses import replace
from math import log10

import numpy as np
import rasterio
import torch
from affine import Affine
from pyproj import Transformer

from pipeline.encode import assemble
from pipeline.plan import aoi, grid
from pipeline.read import composite, decibels, reads, warp, windows
from pipeline.read.rank import MemoryRanks
from pipeline.read.reads import Reads
from pipeline.read.windows import read_band
from pipeline.types import Asset, Box, Layer
from tests.gdal import warped
from tests.read.files import make_scene, scene_of, write_cog
from tests.traps.grounds import LOCAL, REGION, SMALL, blue, radar, stack_of, with_files
from tests.traps.traps import swap, trap

# --- 6 and 7: one value per pixel, from the first scene that has any band there ---------------------------------------

_fill = composite.fill


def _overwriting(pixels, valid, bands, *, where):
    return _fill(pixels, valid, bands, where=np.ones_like(where))


def _where_whole(pixels, valid, bands, *, where):
    return _fill(pixels, valid, bands, where=where & np.all([v > 0 for v in bands.values()], axis=0))


def _by_footprint(pixels, valid, bands, *, where):
    _fill(pixels, valid, bands, where=where)
    valid |= where
    return where.copy()


def two_scenes(folder):
    """Two scenes over the same ground, the first one with holes; what the first layer must hold of them."""
    first, second = (make_scene(folder, n, region=REGION, seed=s, holes=h) for n, s, h in (("a", 1, 0.4), ("b", 2, 0)))
    bands = ("B02", "B03", "B04", "B08")
    upper, lower = (np.stack([made.pixels[b] for b in bands]) for made in (first, second))
    assert ((upper == 0).any(axis=0) & (upper > 0).any(axis=0)).any()  # some bands missing, others not
    return first.scene, second.scene, np.where((upper > 0).any(axis=0), upper, lower)


@trap(6, off=swap(composite, "fill", _overwriting))
def where_tiles_overlap_a_pixel_is_the_first_ones(folder, patch):
    first, second, want = two_scenes(folder)
    np.testing.assert_array_equal(stack_of(first, second).layers[0].pixels[0], want)


@trap(7, off=swap(composite, "fill", _where_whole))
def a_pixel_is_replaced_only_where_every_band_is_missing(folder, patch):
    first, second, want = two_scenes(folder)
    np.testing.assert_array_equal(stack_of(first, second).layers[0].pixels[0], want)


@trap(7, off=swap(composite, "fill", _by_footprint))
def pixels_not_footprints_say_what_a_scene_covers(folder, patch):
    first, second, want = two_scenes(folder)
    empty = make_scene(folder, "e", region=REGION, seed=3, holes=1.0).scene
    stack = stack_of(empty, first, second)
    np.testing.assert_array_equal(stack.layers[0].pixels[0], want)
    assert stack.sources[0].selected == ("a", "b")


def _any_zone(dataset, box):
    t = dataset.transform
    return round(-t.f / box.res_m), round(t.c / box.res_m)


@trap(6, off=swap(warp, "on_lattice", _any_zone))
def a_tile_of_the_neighbouring_zone_is_warped_onto_the_lattice(folder, patch):
    to_31 = Transformer.from_crs(SMALL.epsg, 32631, always_xy=True)
    x, y = (corner - corner % 10 for corner in to_31.transform(*SMALL.bounds_m[:2]))
    west, north = x - 1000, y + 2000
    rows, cols = np.mgrid[:300, :300]
    ramp = (1000 + 7 * cols + 3 * rows).astype(np.uint16)
    transform = Affine(10, 0, west, 0, -10, north)
    path = write_cog(folder / "31.tif", ramp, box=SMALL, epsg=32631, transform=transform, driver="GTiff")
    got = blue(scene_of("S", Asset(band="B02", href=str(path)))).astype(float)
    xs, ys = np.meshgrid(*((np.arange(96) + 0.5) * 10 * sign for sign in (1, -1)))
    xs, ys = to_31.transform(xs + SMALL.bounds_m[0], ys + SMALL.bounds_m[3])
    want = 1000 + 7 * ((xs - west) / 10 - 0.5) + 3 * ((north - ys) / 10 - 0.5)
    assert np.abs(got - want).max() <= 1


# --- 8: what is missing -----------------------------------------------------------------------------------------------


def _as_declared(raw, *, nodata, where):
    """Missing is what the file declares and nothing else."""
    return np.where(raw == nodata, np.nan, raw).astype(np.float32) if nodata is not None else raw


def backscatter(folder, *, border, nodata, transform=None):
    """Decibels of a scene of 0.1 with a border of other values of four pixels in the west."""
    power = np.full(SMALL.shape, 0.1, np.float32)
    power[:, :4] = border
    path = write_cog(folder / "vv.tif", power, box=SMALL, nodata=nodata, transform=transform, driver="GTiff")
    return read_band(radar(path), "vv", box=SMALL, access=LOCAL)


@trap(8, off=swap(windows, "power", _as_declared))
def minus_32768_is_no_backscatter_even_where_the_file_does_not_say_so(folder, patch):
    for nodata in (-32768, None):
        got = backscatter(folder, border=-32768, nodata=nodata)
        assert np.isnan(got[:, :4]).all()
        np.testing.assert_allclose(got[:, 4:], -10, atol=1e-5)


@trap(8, off=swap(windows, "power", _as_declared))
def borders_of_zeros_in_an_old_radar_scene_are_no_backscatter(folder, patch):
    got = backscatter(folder, border=0, nodata=-32768)
    assert np.isnan(got[:, :4]).all()
    np.testing.assert_allclose(got[:, 4:], -10, atol=1e-5)


@trap(8, off=swap(windows, "power", _as_declared))
def borders_of_zeros_do_not_bleed_into_their_neighbours_when_warped(folder, patch):
    shifted = SMALL.transform * Affine.translation(0.25, 0.25)
    got = backscatter(folder, border=0, nodata=-32768, transform=shifted)
    seen = got[~np.isnan(got)]
    assert seen.size > 0.9 * got.size
    np.testing.assert_allclose(seen, -10, atol=1e-5)


@trap(8, off=swap(assemble, "_have", lambda value, sensor: torch.ones_like(value, dtype=torch.bool)))
def a_missing_pixel_is_0_for_the_model_and_not_a_dark_one(folder, patch):
    box = Box(zone=32, res_m=10, row=0, col=0, height=1, width=2)
    dn = np.array([[0, 1500]], np.uint16)
    layer = Layer(res_m=10, bands=("B02",), pixels=dn[None, None], valid=(dn > 0)[None], box=box)
    stack = replace(stack_of(), box=box, layers=(layer,))
    got = assemble.normalised(stack, box, wanted=assemble.Input(sensor="sentinel2_l2a", bands=("B02",)))
    assert got[0, 0, 0, 0] == 0
    assert got[0, 0, 0, 1] != 0


_interpolate = assemble._interpolate


def _unweighted(values, row, col):
    """Weighs missing pixels like any others."""
    return _interpolate(torch.ones_like(values) if values.max() <= 1 else values, row, col)


@trap(8, off=swap(assemble, "_interpolate", _unweighted))
def nodata_is_not_blended_into_its_neighbours(folder, patch):
    raster, box, dn = coarse(20)
    dn[::5, ::3] = 0
    np.testing.assert_array_equal(upsampled(dn, raster, box), warped(dn, raster.transform, box))


_numbers = windows._numbers


@trap(8, off=swap(windows, "_numbers", lambda raw, *, nodata, where: _numbers(raw, nodata=None, where=where)))
def a_nodata_value_of_a_files_own_is_0_in_the_stack(folder, patch):
    pixels = np.full(SMALL.shape, 1500)
    pixels[:8] = 65535
    scene = with_files(scene_of("S"), folder, B02=pixels)
    with rasterio.open(scene.href("B02").href, "r+") as file:
        file.nodata = 65535
    got = blue(scene)
    assert (set(got[:8].ravel()), set(got[8:].ravel())) == ({0}, {1500})


# --- 9: from power to decibels ----------------------------------------------------------------------------------------


@trap(9, off=swap(windows, "decibels", lambda power: power))
def linear_power_becomes_decibels(folder, patch):
    np.testing.assert_allclose(backscatter(folder, border=0.25, nodata=-32768)[:, 0], 10 * log10(0.25), atol=1e-5)


@trap(9, off=swap(decibels, "FLOOR", 1e-6))
def decibels_go_down_to_minus_100_as_in_pretraining(folder, patch):
    np.testing.assert_allclose(backscatter(folder, border=1e-9, nodata=-32768)[:, :4], -90, atol=1e-4)
    np.testing.assert_allclose(backscatter(folder, border=1e-20, nodata=-32768)[:, :4], -100, atol=1e-4)


_power, _decibels = windows.power, windows.decibels


def _decibels_before_warping(patch):
    patch.setattr(windows, "power", lambda raw, **more: _decibels(_power(raw, **more)))
    patch.setattr(windows, "decibels", lambda values: values)


@trap(9, off=_decibels_before_warping)
def power_is_interpolated_and_decibels_are_not(folder, patch):
    half = SMALL.transform * Affine.translation(0.5, 0)
    got = backscatter(folder, border=0.3, nodata=-32768, transform=half)
    np.testing.assert_allclose(got[5:-5, 4], 10 * log10(0.2), atol=1e-4)  # midway between 0.3 and 0.1


# --- 11: mixed resolutions --------------------------------------------------------------------------------------------


def coarse(res_m):
    """(native box, 10 m box well inside, random DN)."""
    raster = Box(zone=32, res_m=res_m, row=-4_800_060 // res_m, col=500_040 // res_m, height=24, width=24)
    n = res_m // 10
    box = Box(
        zone=32, res_m=10, row=(raster.row + 4) * n + 1, col=(raster.col + 4) * n + 3, height=12 * n, width=12 * n
    )
    return raster, box, np.random.default_rng(res_m).integers(1, 12_000, raster.shape).astype(np.uint16)


def upsampled(dn, raster, box, *, resampling="bilinear"):
    layer = Layer(res_m=raster.res_m, bands=("B",), pixels=dn[None, None], valid=(dn > 0)[None], box=raster)
    return assemble.upsampled(layer, box, period=0, resampling=resampling)[0].numpy()


_upsampled = assemble.upsampled


def _always(resampling):
    return lambda layer, box, **more: _upsampled(layer, box, **more | {"resampling": resampling})


@trap(11, off=swap(assemble, "upsampled", _always("pretrain")))
def bilinear_goes_straight_to_10_m_as_gdal_does(folder, patch):
    for res_m, within in ((20, 0), (60, 1)):
        raster, box, dn = coarse(res_m)
        want = warped(dn, raster.transform, box)
        assert np.abs(upsampled(dn, raster, box) - want).max() <= within


@trap(11, off=swap(assemble, "upsampled", _always("bilinear")))
def pretrain_repeats_20_m_and_brings_60_m_to_40_m_first(folder, patch):
    for res_m, step in ((20, 20), (60, 40)):
        raster, box, dn = coarse(res_m)
        stored = box.cover(step)
        values = dn[stored.slices_in(raster)] if step == res_m else warped(dn, raster.transform, stored)
        n = step // 10
        fine = Box(zone=32, res_m=10, row=stored.row * n, col=stored.col * n, height=stored.height * n,
                   width=stored.width * n)  # fmt: skip
        want = values.repeat(n, 0).repeat(n, 1)[box.slices_in(fine)]
        assert np.abs(upsampled(dn, raster, box, resampling="pretrain") - want).max() <= step // 40


_read_native = windows.read_native


@trap(
    11,
    off=swap(reads, "read_native", lambda scene, asset, **how: _read_native(scene, asset, **how | {"nearest": False})),
)
def classes_are_never_interpolated(folder, patch):
    box = SMALL.cover(20)
    classes = np.random.default_rng(1).choice([4, 9], box.shape).astype(np.uint8)
    shifted = box.transform * Affine.translation(0.3, 0.3)
    path = write_cog(folder / "scl.tif", classes, box=box, transform=shifted, driver="GTiff")
    scene = scene_of("S", replace(with_files(scene_of("S"), folder, B02=1).assets[0], band="SCL", href=str(path)))
    got = Reads(LOCAL, MemoryRanks()).classes(scene, "SCL", box).values
    assert set(got[2:-2, 2:-2].ravel()) == {4, 9}


# --- 12: areas over several zones -------------------------------------------------------------------------------------


def _one_zone(geometry):
    return ((31, geometry),)


@trap(12, off=swap(aoi, "split_zones", _one_zone))
def an_area_over_two_zones_gets_a_grid_in_each(folder, patch):
    area = aoi.area_from_bbox((5.97, 47.0, 6.03, 47.03))
    tiles = {zone: grid.wanted_blocks(zone, part, tile_px=256) for zone, part in aoi.zone_parts(area)}
    assert set(tiles) == {31, 32}
    for zone, found in tiles.items():
        assert {tile.zone for tile, _ in found} == {zone}


@trap(12, off=swap(grid, "owned", lambda box: np.ones(box.shape, np.bool_)))
def a_ground_pixel_near_a_zone_border_is_mapped_once(folder, patch):
    rng = np.random.default_rng(2)
    lon, lat = 6 + rng.uniform(-0.002, 0.002, 200), 47 + rng.uniform(0, 0.002, 200)
    owners = np.zeros(200, int)
    for zone in (31, 32):
        x, y = Transformer.from_crs(4326, 32600 + zone, always_xy=True).transform(lon, lat)
        rows, cols = np.floor(-y / 10).astype(int), np.floor(x / 10).astype(int)
        box = Box(zone=zone, res_m=10, row=rows.min(), col=cols.min(), height=np.ptp(rows) + 1, width=np.ptp(cols) + 1)
        owners += grid.owned(box)[rows - box.row, cols - box.col]
    far = np.abs(lon - 6) > 0.0002  # ownership is of pixel centres: beside the border the point may lie elsewhere
    assert far.sum() > 100
    assert set(owners[far]) == {1}
