"""Class areas: the ground of a pixel on the ellipsoid, against geodesics; sums by zone and in all."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from pyproj import Geod, Proj, Transformer

from pipeline.types import Box
from pipeline.write import areas, geotiff

CLASSES = ((0, "bare soil", "#884400"), (2, "maize, more", "#ffee00"), (5, "none", "#000000"))


def at(lon, lat, *, zone=31, side=512, res_m=10):
    x, y = Transformer.from_crs(4326, 32600 + zone, always_xy=True).transform(lon, lat)
    return Box(zone=zone, res_m=res_m, row=int(-y // res_m), col=int(x // res_m), height=side, width=side)


def geodesic_m2(box):
    """Area of the polygon around a box, its edges cut so finely that geodesics and grid lines are one."""
    x0, y0, x1, y1 = box.bounds_m
    part = np.linspace(0, 1, 2000, endpoint=False)
    x = np.concatenate([x0 + (x1 - x0) * part, np.full(2000, x1), x1 - (x1 - x0) * part, np.full(2000, x0)])
    y = np.concatenate([np.full(2000, y0), y0 + (y1 - y0) * part, np.full(2000, y1), y1 - (y1 - y0) * part])
    return Geod(ellps="WGS84").polygon_area_perimeter(
        *Transformer.from_crs(box.epsg, 4326, always_xy=True).transform(x, y)
    )[0]


@pytest.mark.parametrize("lat", [-55.0, -0.02, 30.0, 47.0, 70.0, 83.0])
@pytest.mark.parametrize("lon", [0.01, 3.0, 5.98])
def test_the_pixels_of_a_box_cover_its_geodesic_polygon(lon, lat):
    box = at(lon, lat)
    assert areas.pixel_areas_m2(box).sum() == pytest.approx(geodesic_m2(box), rel=1e-6)


@pytest.mark.parametrize("lat", [-30.0, 0.0, 47.0, 80.0])
def test_every_pixel_agrees_with_the_projection_s_own_factors(lat):
    box = at(0.02, lat, side=600)
    found = areas.pixel_areas_m2(box)
    rows, cols = np.array([0, 17, 299, 599]), np.array([0, 300, 411, 599])
    x, y = (box.col + cols + 0.5) * 10, -(box.row + rows + 0.5) * 10
    lon, lats = Transformer.from_crs(box.epsg, 4326, always_xy=True).transform(x, y)
    wanted = 100 / np.asarray(Proj(f"EPSG:{box.epsg}").get_factors(lon, lats).areal_scale)
    np.testing.assert_allclose(found[rows, cols], wanted, rtol=2e-7)


def test_a_pixel_is_larger_in_the_middle_of_a_zone_than_at_its_edge():
    middle, edge = (areas.pixel_areas_m2(at(lon, 0.1, side=1))[0, 0] for lon in (3.0, 0.01))
    assert middle == pytest.approx(100.08, abs=0.01)
    assert edge == pytest.approx(99.80, abs=0.01)


def test_tokens_are_as_large_as_their_pixels():
    fine = at(1.0, 47.0, side=800)
    coarse = fine.cover(80)
    whole = Box(
        zone=31, res_m=10, row=coarse.row * 8, col=coarse.col * 8, height=8 * coarse.height, width=8 * coarse.width
    )
    assert areas.pixel_areas_m2(coarse).sum() == pytest.approx(areas.pixel_areas_m2(whole).sum(), rel=1e-7)


@pytest.fixture
def files(tmp_path):
    """Two files of zone 31 and one of zone 36 in the south."""
    places = (at(0.1, 47.0, side=300), at(3.0, 47.0, side=300), at(33.0, -20.0, zone=36, side=300))
    pixels = []
    for k, box in enumerate(places):
        pixels.append(np.random.default_rng(k).choice(np.array([0, 2, 255], np.uint8), box.shape, p=[0.5, 0.3, 0.2]))
        geotiff.write_cog(tmp_path / f"{k}.tif", pixels[-1], box=box)
    return [tmp_path / f"{k}.tif" for k in range(3)], places, pixels


def test_classes_are_summed_by_zone_and_in_all(files):
    paths, places, pixels = files
    found = {(a.zone, a.value): a for a in areas.class_areas(paths, CLASSES)}
    assert sorted(found) == [(zone, value) for zone in (0, 31, 36) for value in (0, 2, 5)]
    for value in (0, 2):
        km2 = [
            areas.pixel_areas_m2(box)[values == value].sum() / 1e6 for box, values in zip(places, pixels, strict=True)
        ]
        assert found[31, value].km2 == pytest.approx(km2[0] + km2[1], rel=1e-9)
        assert found[36, value].km2 == pytest.approx(km2[2], rel=1e-9)
        assert found[0, value].km2 == pytest.approx(sum(km2), rel=1e-9)
        assert found[0, value].pixels == sum(int((values == value).sum()) for values in pixels)
    assert sum(found[0, value].share for value in (0, 2, 5)) == pytest.approx(1)
    assert found[0, 5].km2 == 0


def test_tables_are_written_and_read_again(files, tmp_path):
    found = areas.class_areas(files[0], CLASSES)
    places = areas.write_areas(tmp_path, "crops", found)
    assert [place.name for place in places] == ["crops.areas.json", "crops.areas.csv"]
    assert areas.read_areas(places[0]) == found
    document = json.loads(places[0].read_text())
    assert (document["map"], document["unit"]) == ("crops", "km2")
    assert [group["zone"] for group in document["zones"]] == [31, 36]
    assert document["total"]["km2"] == pytest.approx(sum(group["km2"] for group in document["zones"]))
    with places[1].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["zone"], row["class"]) for row in rows[-3:]] == [("all", name) for _, name, _ in CLASSES]
    assert float(rows[0]["km2"]) == pytest.approx(found[0].km2, rel=1e-8)


def test_a_map_without_files_has_no_areas():
    assert areas.class_areas([], CLASSES) == ()
