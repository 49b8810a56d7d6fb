"""Mosaics of zones: whole at zone borders, bit-equal in the zone's own plane, refused where they make no sense."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio
from pyproj import Transformer
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT

from pipeline.errors import InvalidInputError
from pipeline.plan.grid import owned
from pipeline.types import Box
from pipeline.write import frames, geotiff, mosaic, vrt
from pipeline.write.frames import Frame

CLASSES = ((0, "bare soil", "#884400"), (1, "maize & more", "#ffee00"), (2, "eau é", "#0000ff"))
BORDER = 6.0
CELL_DEG = 0.004
TAGS = ((geotiff.CLASSES_TAG, '[[0,"bare soil","#884400"],[1,"maize & more","#ffee00"],[2,"eau é","#0000ff"]]'),)


def pattern(lon, lat):
    """Squares of a class, 300 m wide and more: what every pixel of the ground is."""
    return ((np.floor(lon / CELL_DEG) + np.floor(lat / CELL_DEG)) % 3).astype(np.uint8)


def number(lon, lat):
    """A smooth field."""
    return (100 * (lon - BORDER) + 1000 * (lat - np.round(lat))).astype(np.float32)


def centres(frame):
    x = frame.transform.c + (np.arange(frame.width) + 0.5) * frame.transform.a
    y = frame.transform.f + (np.arange(frame.height) + 0.5) * frame.transform.e
    return Transformer.from_crs(frame.crs, 4326, always_xy=True).transform(*np.meshgrid(x, y))


def zone_box(zone, lat, *, side=320):
    x, y = Transformer.from_crs(4326, 32600 + zone, always_xy=True).transform(BORDER, lat)
    return Box(
        zone=zone, res_m=10, row=int(-y // 10) - side // 2, col=int(x // 10) - side // 2, height=side, width=side
    )


def two_zones(folder, lat, *, values=False):
    """A map over the border between zones 31 and 32: every pixel known in the zone that owns it, and only there."""
    made = []
    for zone in (31, 32):
        box = zone_box(zone, lat)
        lon, lats = centres(Frame.of(box))
        own = owned(box)
        cog, virtual = folder / f"m_utm{zone}_r0_c0.tif", folder / f"m_utm{zone}_all.vrt"
        if values:
            field = np.where(own, number(lon, lats), np.nan).astype(np.float32)
            geotiff.write_values(cog, field, box=box, units="m", title="height", valid_range=(0, 1))
        else:
            field = np.where(own, pattern(lon, lats), 255).astype(np.uint8)
            share = np.where(own, 40 + 5 * pattern(lon, lats), 255).astype(np.uint8)
            layers = (field, share)
            geotiff.write_classes(
                cog,
                lambda rows, cols, layers=layers: [layer[rows, cols] for layer in layers],
                box=box,
                colours=[(value, colour) for value, _, colour in CLASSES],
                class_names=[(value, name) for value, name, _ in CLASSES],
                tags=TAGS,
                further=(geotiff.Further(name="confidence", title="how sure", units="%"),),
            )
        vrt.write_vrt(virtual, [cog])
        made.append(virtual)
    return made


@pytest.fixture(scope="module")
def north(tmp_path_factory):
    return two_zones(tmp_path_factory.mktemp("north"), 47.0)


@pytest.fixture(scope="module")
def south(tmp_path_factory):
    return two_zones(tmp_path_factory.mktemp("south"), -30.0)


def inside(lon, lat, middle):
    """Ground that both boxes reach over."""
    return (np.abs(lon - BORDER) < 0.015) & (np.abs(lat - middle) < 0.012)


@pytest.mark.parametrize(("crs", "lat"), [("EPSG:3035", 47.0), ("EPSG:4326", 47.0), ("EPSG:3857", -30.0)])
def test_a_zone_border_has_no_gap_and_every_pixel_its_own_class(tmp_path, north, south, crs, lat):
    path = tmp_path / "m.tif"
    virtuals = north if lat > 0 else south
    mosaic.write_mosaic(path, virtuals, crs=crs)
    frame = mosaic.frame_of(virtuals, crs=crs, side_m=None)
    lon, lats = centres(frame)
    with rasterio.open(path) as found:
        classes, share = found.read()
    here = inside(lon, lats, lat)
    assert here.sum() > 40_000
    assert (classes[here] < 255).all()
    assert (share[here] < 255).all()
    edge = np.zeros(lon.shape, np.bool_)  # within a pixel of another class the nearest centre may be its
    for values in (lon, lats):
        edge |= np.abs((values / CELL_DEG + 0.5) % 1 - 0.5) * CELL_DEG < 1.5e-4
    sure = here & ~edge
    np.testing.assert_array_equal(classes[sure], pattern(lon, lats)[sure])
    np.testing.assert_allclose(share[sure], 40 + 5 * pattern(lon, lats)[sure], atol=1)


def test_zones_that_are_only_laid_over_each_other_would_have_gaps(north):
    virtuals = north
    frame = mosaic.frame_of(virtuals, crs="EPSG:3035", side_m=None)
    gaps = np.ones(frame.shape, np.bool_)
    for virtual in virtuals:
        with (
            rasterio.open(virtual) as source,
            WarpedVRT(
                source, crs=frame.crs, transform=frame.transform, height=frame.height, width=frame.width,
                resampling=Resampling.nearest, tolerance=0.01,
            ) as view,
        ):  # fmt: skip
            gaps &= view.read(1) == 255
    lon, lats = centres(frame)
    assert (gaps & inside(lon, lats, 47.0)).sum() > 20


def test_numbers_are_smooth_across_a_border(tmp_path):
    path = tmp_path / "m.tif"
    virtuals = two_zones(tmp_path, 47.0, values=True)
    mosaic.write_mosaic(path, virtuals, crs="EPSG:3035")
    lon, lats = centres(mosaic.frame_of(virtuals, crs="EPSG:3035", side_m=None))
    with rasterio.open(path) as found:
        values = found.read(1)
        assert (found.units[0], found.descriptions[0]) == ("m", "height")
        assert np.isnan(found.nodata)
    here = inside(lon, lats, 47.0)
    # half a pixel of 10 m changes the field by less than this
    np.testing.assert_allclose(values[here], number(lon, lats)[here], atol=0.08)


def test_a_mosaic_is_a_strictly_valid_cog_with_names_colours_and_bands(tmp_path, north):
    cogeo = pytest.importorskip("rio_cogeo.cogeo")
    path = tmp_path / "m.tif"
    mosaic.write_mosaic(path, north, crs="EPSG:3035")
    assert cogeo.cog_validate(path, strict=True) == (True, [], [])
    assert geotiff.classes_of(path) == CLASSES
    assert geotiff.layers(path) == ("", "confidence")
    with rasterio.open(path) as found:
        assert found.nodata == 255
        assert found.colormap(1)[1][:3] == (255, 238, 0)


def test_one_zone_in_its_own_plane_is_the_same_pixel_for_pixel(tmp_path, south):
    virtual = south[0]
    crs = mosaic.chosen_crs("auto", [virtual])
    assert crs == "EPSG:32731"
    mosaic.write_mosaic(tmp_path / "m.tif", [virtual], crs=crs)
    with rasterio.open(virtual) as one, rasterio.open(tmp_path / "m.tif") as other:
        assert one.transform == other.transform
        np.testing.assert_array_equal(one.read(), other.read())


def test_a_coarse_mosaic_holds_the_commonest_class(tmp_path, north):
    path = tmp_path / "m.tif"
    virtuals = north
    mosaic.write_mosaic(path, virtuals, crs="EPSG:3035", side_m=100)
    with rasterio.open(path) as found:
        assert found.res == (100.0, 100.0)
        classes = found.read(1)
    lon, lats = centres(mosaic.frame_of(virtuals, crs="EPSG:3035", side_m=100))
    here = inside(lon, lats, 47.0)
    assert (classes[here] < 255).all()
    assert (classes[here] == pattern(lon, lats)[here]).mean() > 0.8


@pytest.mark.parametrize(("crs", "side"), [("EPSG:3035", 10.0), ("EPSG:4326", 10 / 111_169), ("EPSG:3857", 14.66)])
def test_a_pixel_has_the_side_asked_for_on_the_ground(north, crs, side):
    frame = mosaic.frame_of(north, crs=crs, side_m=None)
    assert frame.transform.a == pytest.approx(side, rel=0.003)
    edges = np.array([frame.transform.c, frame.transform.f]) / frame.transform.a
    np.testing.assert_allclose(edges, np.round(edges), atol=1e-6)


def test_auto_is_european_in_europe_and_geographic_elsewhere(north, south):
    assert mosaic.chosen_crs("auto", north) == "EPSG:3035"
    assert mosaic.chosen_crs("auto", south) == "EPSG:4326"


@pytest.mark.parametrize(
    ("crs", "text"),
    [
        ("mercator", "neither 'auto' nor"),
        ("EPSG:999999", "not in the EPSG registry"),
        ("EPSG:4978", "not a map plane"),
        ("EPSG:5703", "not a map plane"),
        ("epsg:31983", "the map lies elsewhere"),
    ],
)
def test_planes_that_make_no_map_are_refused(north, crs, text):
    with pytest.raises(InvalidInputError, match=text):
        mosaic.chosen_crs(crs, north)


def test_a_mosaic_does_not_depend_on_the_squares_in_which_it_is_made(tmp_path, monkeypatch, north):
    mosaic.write_mosaic(tmp_path / "whole.tif", north, crs="EPSG:3035")
    monkeypatch.setattr(frames, "SQUARE_PX", 96)
    mosaic.write_mosaic(tmp_path / "pieces.tif", north, crs="EPSG:3035")
    with rasterio.open(tmp_path / "whole.tif") as one, rasterio.open(tmp_path / "pieces.tif") as other:
        np.testing.assert_array_equal(one.read(), other.read())


def test_the_180th_meridian_is_not_torn(tmp_path):
    virtuals = []
    for zone, col in ((60, 70_000), (1, 30_000)):
        box = Box(zone=zone, res_m=10, row=-512, col=col, height=16, width=16)
        cog = tmp_path / f"m_utm{zone:02d}_r0_c0.tif"
        geotiff.write_cog(cog, np.ones(box.shape, np.uint8), box=box, tags=TAGS)
        vrt.write_vrt(tmp_path / f"m_utm{zone:02d}_all.vrt", [cog])
        virtuals.append(tmp_path / f"m_utm{zone:02d}_all.vrt")
    with pytest.raises(InvalidInputError, match="180th meridian"):
        mosaic.chosen_crs("EPSG:4326", virtuals)
    assert mosaic.chosen_crs("EPSG:3832", virtuals) == "EPSG:3832"
