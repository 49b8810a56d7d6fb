"""Landsat windows: a grid with its corner at 15 m goes onto the lattice as GDAL's warper puts it there."""

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

from pipeline.errors import InvalidInputError
from pipeline.read.access import Access
from pipeline.read.sensors import LANDSAT, LANDSAT_PRETRAIN, SENTINEL1, SENTINEL2_L2A, present, sensor
from pipeline.read.windows import read_band
from pipeline.types import Asset, Box

LOCAL = Access(allow_local=True)
GRIDS = {"B8": (15, 400_207.5, 5_499_907.5), "B4": (30, 400_215, 5_499_915)}
"""(pixel, west, north): Level-1 corners lie half a pixel off multiples of the pixel."""
TILE = Path(__file__).resolve().parents[2] / "../shared/data/worldcereal-landsat-tile"


def landsat(path, band: str):
    return replace(scene_of("L", Asset(band=band, href=str(path))), sensor="landsat", collection="landsat-c2-l1")


def made(tmp_path, band: str, *, seed: int = 0, epsg: int = 32632):
    side, west, north = GRIDS[band]
    shape = (3600 // side, 3000 // side)
    rng = np.random.default_rng(seed)
    values = rng.integers(5000, 30_000, shape).astype(np.uint16)
    values[:, 40:44] = 0
    values[np.tril_indices(shape[1], -shape[1] // 2)] = 0
    box = Box(zone=32, res_m=30, row=0, col=0, height=1, width=1)
    return write_cog(
        tmp_path / f"{band}.tif", values, box=box, transform=Affine(side, 0, west, 0, -side, north), epsg=epsg
    )


def warped(path, box: Box, *, shift_m: float = 0.0):
    with (
        rasterio.open(path) as dataset,
        WarpedVRT(
            dataset,
            crs=dataset.crs,
            transform=Affine.translation(0, shift_m) * box.transform,
            width=box.width,
            height=box.height,
            src_nodata=0,
            nodata=0,
            resampling=Resampling.bilinear,
            XSCALE=1,
            YSCALE=1,
        ) as vrt,
    ):
        return vrt.read(1)


def equal_up_to_ties(got, want) -> None:
    """Edges equal; values equal but where an exact half was rounded the other way."""
    np.testing.assert_array_equal(got == 0, want == 0)
    assert np.abs(got.astype(int) - want.astype(int)).max() <= 1
    assert (got != want).mean() < 0.02


@pytest.mark.parametrize(("band", "res_m"), [("B8", 10), ("B4", 10), ("B4", 20)])
def test_a_window_equals_a_warped_vrt(tmp_path, band, res_m):
    path = made(tmp_path, band)
    box = Box(zone=32, res_m=10, row=-550_003, col=40_011, height=300, width=280).cover(res_m)
    got, want = read_band(landsat(path, band), band, box=box, access=LOCAL), warped(path, box)
    assert 0.3 < (want > 0).mean() < 0.9
    equal_up_to_ties(got, want)


@pytest.mark.parametrize("band", ["B8", "B4"])
def test_a_pixel_does_not_depend_on_the_box(tmp_path, band):
    scene = landsat(made(tmp_path, band), band)
    whole = Box(zone=32, res_m=10, row=-550_003, col=40_011, height=300, width=280)
    large = read_band(scene, band, box=whole, access=LOCAL)
    for row, col, height, width in ((33, 71, 200, 190), (1, 2, 30, 270), (151, 139, 4, 4)):
        part = Box(zone=32, res_m=10, row=whole.row + row, col=whole.col + col, height=height, width=width)
        np.testing.assert_array_equal(large[part.slices_in(whole)], read_band(scene, band, box=part, access=LOCAL))


def test_southern_scenes_come_in_the_northern_zone_with_negative_northings(tmp_path):
    values = np.random.default_rng(1).integers(5000, 30_000, (90, 80)).astype(np.uint16)
    box = Box(zone=33, res_m=10, row=350_010, col=40_030, height=100, width=90)
    transform = Affine(30, 0, 400_215, 0, -30, -3_500_015)  # USGS keeps EPSG:326NN south of the equator
    path = write_cog(tmp_path / "B4.tif", values, box=box, transform=transform)
    equal_up_to_ties(read_band(landsat(path, "B4"), "B4", box=box, access=LOCAL), warped(path, box))


def test_numbers_pass_without_any_offset(tmp_path):
    box = Box(zone=32, res_m=10, row=-550_000, col=40_030, height=90, width=90)
    transform = Affine(30, 0, 400_215, 0, -30, 5_500_065)
    path = write_cog(tmp_path / "B4.tif", np.full((60, 60), 7000, np.uint16), box=box, transform=transform)
    assert (read_band(landsat(path, "B4"), "B4", box=box, access=LOCAL) == 7000).all()


@pytest.mark.skipif(not TILE.is_dir(), reason="real pixels are not at hand: no shared/data/worldcereal-landsat-tile")
def test_a_real_30_m_raster_equals_a_warped_vrt_along_the_edge_of_its_swath():
    # A Level-2 raster moved to the grid of a Sentinel-2 tile: same numbers, same nodata, corner at a multiple of 30.
    (path,) = TILE.glob("*_B10.tif")
    with rasterio.open(path) as dataset:
        values = dataset.read(1)
    rows, cols = np.nonzero((values[:, 1:] == 0) != (values[:, :-1] == 0))
    row, col = rows[len(rows) // 2], cols[len(rows) // 2]
    box = Box(
        zone=30, res_m=10, row=-420_000 + 3 * int(row) - 150, col=30_000 + 3 * int(col) - 160, height=300, width=320
    )
    got, want = read_band(landsat(path, "B10"), "B10", box=box, access=LOCAL), warped(path, box)
    assert 0.05 < (want > 0).mean() < 0.95
    equal_up_to_ties(got, want)


# --- tables ----------------------------------------------------------------------------------------------------------


def test_layers_hold_the_bands_in_the_models_order():
    from pipeline.encode.bands import DEFAULT_BANDS

    for spec in (SENTINEL2_L2A, SENTINEL1, LANDSAT, LANDSAT_PRETRAIN):
        assert tuple(b for layer in spec.layers for b in layer.bands) == DEFAULT_BANDS[spec.name]
        assert len(spec.margin_px) == len(spec.layers)
        assert [layer.res_m for layer in spec.layers] == sorted({layer.res_m for layer in spec.layers})


def test_resampling_changes_the_layers_of_landsat_only():
    assert [(layer.res_m, len(layer.bands)) for layer in sensor("landsat").layers] == [(10, 11)]
    assert [(layer.res_m, len(layer.bands)) for layer in sensor("landsat", "pretrain").layers] == [(10, 1), (20, 10)]
    for name in ("sentinel2_l2a", "sentinel1"):
        assert sensor(name) == sensor(name, "pretrain")


def test_radar_is_kept_in_floats_and_ranked_by_no_classification():
    assert (SENTINEL1.dtype, LANDSAT.dtype, SENTINEL2_L2A.dtype) == ("float32", "uint16", "uint16")
    assert (SENTINEL1.class_band, LANDSAT.class_band) == ("", "")


def test_bands_that_no_scene_has_are_left_out_of_any_sensor(tmp_path):
    assert present(LANDSAT_PRETRAIN, [landsat("x.tif", "B4")]) == ((1, ("B4",)),)
    assert present(SENTINEL1, []) == ((0, ("vv", "vh")),)


def test_an_unknown_sensor_is_refused():
    with pytest.raises(InvalidInputError, match=r"'sentinel3'.*landsat"):
        sensor("sentinel3")
