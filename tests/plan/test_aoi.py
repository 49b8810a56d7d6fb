"""Areas: what a user can get wrong is refused in words; what is right is measured and cut so that nothing is lost."""

from __future__ import annotations

import json
import logging
import math
import struct

import geopandas as gpd
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Geod

from pipeline.errors import InvalidInputError
from pipeline.plan.aoi import area_from_bbox, area_from_file, geometry_of, zone_of, zone_parts

SQUARE = shapely.box(11.0, 48.0, 11.1, 48.1)
BOWTIE = shapely.Polygon([(11, 48), (11.1, 48.1), (11.1, 48), (11, 48.1)])


def geojson(path, *geometries):
    features = [
        {"type": "Feature", "properties": {}, "geometry": g and shapely.geometry.mapping(g)} for g in geometries
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return str(path)


def test_a_bbox_text_and_its_numbers_are_the_same_area():
    assert area_from_bbox(" 11.0, 48.0,11.1,48.1 ") == area_from_bbox((11.0, 48.0, 11.1, 48.1))


def test_the_area_of_a_box_is_its_zone_of_the_ellipsoid():
    a, e = 6378.137, math.sqrt(Geod(ellps="WGS84").es)

    def band(lat):  # area from the equator to a parallel: Snyder, Map Projections, 3-12, q(lat) * pi * a^2
        s = math.sin(math.radians(lat))
        return math.pi * a**2 * (1 - e**2) * (s / (1 - e**2 * s**2) + math.atanh(e * s) / e)

    assert area_from_bbox("-180,-80,180,84").km2 == pytest.approx(band(84) + band(80), rel=1e-6)
    assert area_from_bbox("11,48,11.1,48.1").km2 == pytest.approx((band(48.1) - band(48)) / 3600, rel=1e-6)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("11,48,11.1", "has 3 numbers"),
        ("11,48,11.1,48.1,0", "has 5 numbers"),
        ("11;48;11.1;48.1", "four numbers"),
        ("", "four numbers"),
        ("a,b,c,d", "four numbers"),
        ("nan,48,11.1,48.1", "NaN"),
        ("11,48,inf,48.1", "infinity"),
        ("179,48,-179,48.1", "antimeridian"),
        ("11.1,48,11,48.1", "west 11.1 > east 11"),
        ("11,48,11,48.1", "empty"),
        ("11,48.1,11.1,48", "south 48.1 > north 48"),
        ("-181,48,11,48.1", "west -181 is not a longitude"),
        ("170,48,190,48.1", "east 190 is not a longitude"),
        ("11,83,11.1,84.1", "84"),
        ("11,-80.1,11.1,-79", "-80"),
        ("11,48,11.1,91", "84"),
    ],
)
def test_a_wrong_bbox_is_refused_with_what_is_wrong(text, said):
    with pytest.raises(InvalidInputError, match=said.replace("(", r"\(")):
        area_from_bbox(text)


@pytest.mark.parametrize("suffix", [".geojson", ".gpkg", ".parquet", ".fgb", ".shp"])
def test_every_vector_format_gives_the_same_area(tmp_path, suffix):
    path = str(tmp_path / f"a{suffix}")
    frame = gpd.GeoDataFrame({"name": ["x"]}, geometry=[SQUARE], crs=4326)
    frame.to_parquet(path) if suffix == ".parquet" else frame.to_file(path)
    assert area_from_file(path) == area_from_bbox("11.0,48.0,11.1,48.1")


def test_features_are_united_and_overlap_counts_once(tmp_path):
    path = geojson(tmp_path / "a.geojson", SQUARE, shapely.box(11.05, 48.0, 11.2, 48.1), SQUARE)
    assert area_from_file(path).km2 == pytest.approx(area_from_bbox("11,48,11.2,48.1").km2)


def test_a_projected_file_is_reprojected(tmp_path):
    path = str(tmp_path / "a.gpkg")
    gpd.GeoDataFrame(geometry=[shapely.box(500_000, 5e6, 510_000, 5.01e6)], crs=32632).to_file(path)
    area = area_from_file(path)
    assert area.km2 == pytest.approx(100 / 0.9996**2, rel=1e-4)  # the scale on the central meridian
    assert geometry_of(area).bounds[0] == pytest.approx(9.0)


def test_the_long_edge_of_a_projected_file_keeps_its_course(tmp_path):
    path = str(tmp_path / "a.parquet")
    wide = shapely.box(300_000, 5e6, 700_000, 5.05e6)
    gpd.GeoDataFrame(geometry=[wide], crs=32632).to_parquet(path)
    fine = shapely.segmentize(geometry_of(area_from_file(path)), 0.01)
    back = gpd.GeoSeries([fine], crs=4326).to_crs(32632).iloc[0]
    assert back.hausdorff_distance(wide) < 1.0  # one chord per edge would be 400 m off


def test_a_file_without_a_crs_is_refused(tmp_path):
    path = str(tmp_path / "a.parquet")
    gpd.GeoDataFrame(geometry=[SQUARE]).to_parquet(path)
    with pytest.raises(InvalidInputError, match="no CRS"):
        area_from_file(path)


def test_a_self_intersection_is_refused_with_its_place(tmp_path):
    path = geojson(tmp_path / "a.geojson", SQUARE, BOWTIE)
    with pytest.raises(InvalidInputError, match=r"feature 1 .*Self-intersection\[11.05 48.05\].*makevalid"):
        area_from_file(path)


@pytest.mark.parametrize(
    ("geometries", "said"),
    [
        ([], "empty"),
        ([None], "empty"),
        ([shapely.Point(11, 48)], "no polygon, only Point"),
        ([shapely.LineString([(11, 48), (12, 48)]), shapely.Point(11, 48)], "no polygon, only LineString, Point"),
        ([shapely.box(11, 84.5, 12, 85)], "84"),
        ([shapely.box(-60, -85, -59, -79)], "-80"),
        ([shapely.box(179, 10, 181, 11)], r"lon 181.*antimeridian"),
        ([shapely.box(5, 80, 6, 95)], "outside"),
        ([shapely.box(-179, 10, 179.5, 11)], "antimeridian"),
    ],
)
def test_a_wrong_file_is_refused_with_what_is_wrong(tmp_path, geometries, said):
    with pytest.raises(InvalidInputError, match=said):
        area_from_file(geojson(tmp_path / "a.geojson", *geometries))


def test_nan_coordinates_are_refused(tmp_path):
    path = str(tmp_path / "a.parquet")
    whole, broken = (struct.pack("<d", value) for value in (48.1, math.nan))
    with np.errstate(invalid="ignore"):
        broken = shapely.from_wkb(shapely.to_wkb(SQUARE, byte_order=1).replace(whole, broken))
    gpd.GeoDataFrame(geometry=[broken], crs=4326).to_parquet(path)
    with pytest.raises(InvalidInputError, match="NaN"):
        area_from_file(path)


def test_a_projected_polygon_over_the_antimeridian_is_refused(tmp_path):
    path = str(tmp_path / "a.gpkg")
    gpd.GeoDataFrame(geometry=[shapely.box(160_000, -1e5, 200_000, -5e4)], crs=32601).to_file(path)
    with pytest.raises(InvalidInputError, match="antimeridian"):
        area_from_file(path)


def test_a_multipolygon_on_both_sides_of_the_antimeridian_is_accepted(tmp_path):
    both = shapely.MultiPolygon([shapely.box(179, 10, 180, 11), shapely.box(-180, 10, -179, 11)])
    area = area_from_file(geojson(tmp_path / "a.geojson", both))
    assert [zone for zone, _ in zone_parts(area)] == [1, 60]
    assert area.km2 == pytest.approx(2 * area_from_bbox("179,10,180,11").km2)


@pytest.mark.parametrize(("name", "said"), [("none.gpkg", "does not exist"), (".", "folder")])
def test_what_is_no_file_is_refused(tmp_path, name, said):
    with pytest.raises(InvalidInputError, match=said):
        area_from_file(str(tmp_path / name))


@pytest.mark.parametrize("name", ["a.geojson", "a.gpkg", "a.parquet", "a.txt"])
def test_what_is_no_vector_file_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"Dear archive,\nplease send scenes.\n")
    with pytest.raises(InvalidInputError, match="cannot be read"):
        area_from_file(str(tmp_path / name))


def test_several_polygon_layers_are_refused_by_name(tmp_path):
    path = str(tmp_path / "a.gpkg")
    for layer in ("fields", "farms"):
        gpd.GeoDataFrame(geometry=[SQUARE], crs=4326).to_file(path, layer=layer)
    with pytest.raises(InvalidInputError, match="fields, farms"):
        area_from_file(path)


def test_the_one_polygon_layer_among_others_is_read(tmp_path):
    path = str(tmp_path / "a.gpkg")
    gpd.GeoDataFrame(geometry=[shapely.Point(0, 0)], crs=4326).to_file(path, layer="trees")
    gpd.GeoDataFrame(geometry=[SQUARE], crs=4326).to_file(path, layer="fields")
    assert area_from_file(path) == area_from_bbox("11.0,48.0,11.1,48.1")


def test_lines_beside_polygons_are_left_out_and_named(tmp_path, caplog):
    mixed = shapely.GeometryCollection([SQUARE, shapely.LineString([(0, 0), (1, 1)])])
    path = geojson(tmp_path / "a.geojson", shapely.Point(1, 1), mixed)
    with caplog.at_level(logging.WARNING):
        assert area_from_file(path) == area_from_bbox("11.0,48.0,11.1,48.1")
    assert "feature 0 is a Point" in caplog.text


def test_heights_are_dropped(tmp_path):
    path = geojson(tmp_path / "a.geojson", shapely.force_3d(SQUARE, 500.0))
    assert area_from_file(path) == area_from_bbox("11.0,48.0,11.1,48.1")


@pytest.mark.parametrize(
    ("lon", "zone"), [(-180, 1), (-174.000001, 1), (-174, 2), (0, 31), (5.999999, 31), (6, 32), (179.9, 60), (180, 60)]
)
def test_the_west_edge_of_a_zone_belongs_to_it(lon, zone):
    assert zone_of(lon) == zone


def test_norway_has_plain_zones():
    assert [zone for zone, _ in zone_parts(area_from_bbox("4,60,7,61"))] == [31, 32]


def test_an_area_that_ends_on_a_zone_edge_has_no_part_beyond():
    assert [zone for zone, _ in zone_parts(area_from_bbox("0,10,6,11"))] == [31]
    assert [zone for zone, _ in zone_parts(area_from_bbox("6,10,12,11"))] == [32]


def micro(low, high):
    """Degrees in millionths: finer floats next to a zone edge are the edge itself once 180 is added."""
    return st.one_of(st.integers(low, high), st.integers(low * 1_000_000, high * 1_000_000).map(lambda n: n / 1e6))


boxes = st.tuples(micro(-180, 179), micro(-80, 83), micro(1, 90), micro(1, 40)).map(
    lambda b: (b[0], b[1], min(round(b[0] + b[2], 6), 180), min(round(b[1] + b[3], 6), 84))
)


@given(boxes)
@settings(max_examples=60, deadline=None)
def test_the_parts_make_up_the_area_and_share_nothing(bbox):
    area = area_from_bbox(bbox)
    parts = zone_parts(area)
    assert shapely.union_all([p for _, p in parts]).symmetric_difference(geometry_of(area)).area < 1e-9
    assert sum(p.area for _, p in parts) == pytest.approx(geometry_of(area).area)
    assert [z for z, _ in parts] == sorted({z for z, _ in parts})


@given(boxes, micro(0, 1), micro(0, 1))
@settings(max_examples=60, deadline=None)
def test_every_point_lies_in_the_part_of_its_own_zone(bbox, across, up):
    west, south, east, north = bbox
    # the product may round past the edge by one bit
    point = shapely.Point(round(west + across * (east - west), 6), min(south + up * (north - south), north))
    parts = dict(zone_parts(area_from_bbox(bbox)))
    owner = zone_of(point.x)
    inside = [z for z, p in parts.items() if p.intersects(point)]
    on_edge = (point.x + 180) % 6 == 0
    # On a zone edge the part to the west touches the point as well. An area that ends there has no part to the east.
    assert owner in inside or (on_edge and point.x == east)
    assert inside == [owner] or on_edge
