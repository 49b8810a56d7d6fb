"""Pictures moved to Web Mercator lie where they belong: any zone, both hemispheres, over the antimeridian."""

import numpy as np
import pytest
from pyproj import Transformer

from pipeline.types import Box
from pipeline.write.mercator import Ground, bounds_of, near_lon, project, rings, warp

PLACES = (
    Box(zone=31, res_m=10, row=-553_000, col=30_000, height=700, width=900),
    Box(zone=32, res_m=640, row=-9_000, col=300, height=900, width=900),
    Box(zone=56, res_m=10, row=375_000, col=33_000, height=300, width=200),
    Box(zone=60, res_m=40, row=-190_000, col=17_000, height=600, width=600),
    Box(zone=33, res_m=10, row=-920_000, col=20_000, height=512, width=512),
)


def middle(box):
    return box.zone * 6.0 - 183.0


def centres(way):
    """(lon, lat) of the centres of the target pixels, by pyproj and not by the code under test."""
    x_min, y_min, x_max, y_max = way.bounds
    height, width = way.rows.shape
    x = x_min + (np.arange(width) + 0.5) / width * (x_max - x_min)
    y = y_max - (np.arange(height) + 0.5) / height * (y_max - y_min)
    lon, lat = Transformer.from_crs(3857, 4326, always_xy=True).transform(*np.meshgrid(x, y))
    return (lon + 180) % 360 - 180, lat


@pytest.mark.parametrize("box", PLACES, ids=lambda b: f"zone {b.zone}")
def test_every_pixel_shows_the_ground_that_lies_under_it(box):
    way = warp(Ground.of(box), most_px=500, reference_lon=middle(box))
    x, y = Transformer.from_crs(4326, box.epsg, always_xy=True).transform(*centres(way))
    west, _, _, north = box.bounds_m
    off = np.hypot(way.rows - (north - y) / box.res_m, way.cols - (x - west) / box.res_m)
    assert off.max() < 0.05


@pytest.mark.parametrize("box", PLACES, ids=lambda b: f"zone {b.zone}")
def test_the_whole_source_is_inside_and_no_side_is_longer_than_asked(box):
    way = warp(Ground.of(box), most_px=400, reference_lon=middle(box))
    assert max(way.rows.shape) == 400
    shown = way.nearest(np.ones(box.shape, np.uint8), fill=0)
    assert shown[0].any()
    assert shown[-1].any()
    assert shown[:, 0].any()
    assert shown[:, -1].any()
    assert shown.mean() > 0.55  # far from its middle meridian and far in the north a zone is turned by 20 degrees


def test_a_small_picture_is_not_blown_up_more_than_twice():
    box = Box(zone=31, res_m=10, row=-553_000, col=50_000, height=30, width=50)
    assert max(warp(Ground.of(box), most_px=1400, reference_lon=3.0).rows.shape) == 100


def test_neighbouring_zones_share_a_plane_and_meet_at_their_border():
    lon, lat = 6.0, 47.0
    found = []
    for zone in (31, 32):
        x, y = Transformer.from_crs(4326, 32600 + zone, always_xy=True).transform(lon, lat)
        box = Box(zone=zone, res_m=10, row=round(-y / 10) - 50, col=round(x / 10) - 50, height=100, width=100)
        found.append(bounds_of(Ground.of(box), reference_lon=3.0))
    np.testing.assert_allclose(*found, atol=70)


def test_ground_over_the_antimeridian_stays_in_one_piece():
    east = Box(zone=60, res_m=10, row=-190_000, col=77_000, height=100, width=100)
    west = Box(zone=1, res_m=10, row=-190_000, col=21_000, height=100, width=100)
    x = [bounds_of(Ground.of(box), reference_lon=-177.0)[0] for box in (east, west)]
    assert abs(x[0] - x[1]) < 200_000
    corners = rings([east, west], reference_lon=-177.0)
    assert all(-185 < lon < -175 for ring in corners for lon, _ in ring)


def test_rings_run_around_their_boxes_in_the_order_given():
    boxes = [PLACES[2], PLACES[0]]
    for box, ring in zip(boxes, rings(boxes, reference_lon=0.0), strict=True):
        lon, lat = np.array(ring).T
        x, y = Transformer.from_crs(4326, box.epsg, always_xy=True).transform((lon + 180) % 360 - 180, lat)
        west, south, east, north = box.bounds_m
        np.testing.assert_allclose(x, [west, east, east, west], atol=1e-3)
        np.testing.assert_allclose(y, [north, north, south, south], atol=1e-3)


def test_web_mercator_is_that_of_the_registry():
    lon, lat = np.array([-170.0, 0.0, 12.5]), np.array([-80.0, 0.0, 71.0])
    want = Transformer.from_crs(4326, 3857, always_xy=True).transform(lon, lat)
    np.testing.assert_allclose(project(lon, lat, reference_lon=0.0), want, atol=1e-6)
    np.testing.assert_allclose(near_lon(np.array([-179.0, 179.0]), reference_lon=-177.0), [-179.0, -181.0])


def test_transparent_pixels_neither_mix_in_nor_get_colours():
    box = Box(zone=31, res_m=10, row=-553_000, col=30_000, height=200, width=200)
    rgba = np.zeros((200, 200, 4), np.uint8)
    rgba[50:150, 50:150] = (200, 100, 50, 255)
    shown = warp(Ground.of(box), most_px=400, reference_lon=3.0).colours(rgba)
    assert set(np.unique(shown[..., 3])) == {0, 255}
    assert (shown[shown[..., 3] > 0] == (200, 100, 50, 255)).all()
    assert not shown[shown[..., 3] == 0].any()


def test_colours_between_pixels_are_mixed():
    box = Box(zone=31, res_m=10, row=-553_000, col=30_000, height=40, width=40)
    grey = np.tile((np.arange(40, dtype=np.uint8) * 6)[:, None], (1, 40))
    rgba = np.dstack([grey, grey, grey, np.full_like(grey, 255)])
    way = warp(Ground.of(box), most_px=80, reference_lon=3.0)
    shown = way.colours(rgba)
    seen = shown[..., 3] > 0
    want = np.clip((way.rows - 0.5) * 6, 0, 39 * 6)
    assert np.abs(shown[..., 0].astype(float) - want)[seen].max() <= 0.51
