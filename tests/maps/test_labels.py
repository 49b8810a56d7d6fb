"""Labels: every format gives the same rows, and pixels are those whose centres lie inside."""

import logging
from pathlib import Path

import geopandas
import numpy as np
import pandas as pd
import pytest
import shapely
from pyproj import Transformer

from pipeline.errors import InvalidInputError
from pipeline.maps.labels import Labels, pixels_of, places_of, read_labels
from pipeline.types import Box

SHARED = Path(__file__).resolve().parents[2] / "../shared"
BOX = Box(zone=31, res_m=10, row=-510_000, col=45_000, height=300, width=400)


def _blob(x: float, y: float, radius_m: float, *, seed: int) -> shapely.Polygon:
    """A star-shaped polygon in the plane of EPSG:32631."""
    angles = np.linspace(0, 2 * np.pi, 17)[:-1]
    radii = radius_m * np.random.default_rng(seed).uniform(0.4, 1.0, len(angles))
    return shapely.Polygon(np.column_stack([x + radii * np.cos(angles), y + radii * np.sin(angles)]))


def _frame(crs: int = 4326) -> geopandas.GeoDataFrame:
    x0, _, _, y1 = BOX.bounds_m
    shapes = [_blob(x0 + 600 + 900 * i, y1 - 700 - 60 * i, 350, seed=i) for i in range(4)]
    names = ["water", "forest", "water", "crops"]
    return geopandas.GeoDataFrame({"class": names}, geometry=shapes, crs=32631).to_crs(crs)


def _labels(shapes: list[shapely.Geometry], classes: list[str], *, epsg: int = 32631) -> Labels:
    lonlat = geopandas.GeoSeries(shapes, crs=epsg).to_crs(4326)
    return Labels(
        geometries=tuple(shapely.to_wkb(lonlat.values, hex=True)),
        classes=tuple(classes),
        groups=tuple(range(len(classes))),
    )


def _brute_force(shape: shapely.Geometry, box: Box) -> set[tuple[int, int]]:
    """(row, col) of pixel centres inside the lon/lat shape, tested in the zone plane."""
    to_plane = Transformer.from_crs(4326, box.epsg, always_xy=True).transform
    plane = shapely.transform(shape, lambda xy: np.column_stack(to_plane(xy[:, 0], xy[:, 1])))
    rows, cols = np.mgrid[box.row : box.row_stop, box.col : box.col_stop]
    inside = shapely.contains_xy(plane, (cols + 0.5) * box.res_m, -(rows + 0.5) * box.res_m)
    return set(zip(rows[inside].tolist(), cols[inside].tolist(), strict=True))


@pytest.mark.parametrize("name", ["a.geojson", "a.gpkg", "a.shp", "a.parquet", "a.fgb"])
def test_every_format_gives_the_same_labels(tmp_path, name):
    path = tmp_path / name
    frame = _frame(4326 if name == "a.geojson" else 3857)
    frame.to_parquet(path) if name.endswith("parquet") else frame.to_file(path)
    got = read_labels(str(path), column="class")
    shapes = shapely.from_wkb(got.geometries)
    if name != "a.fgb":  # FlatGeobuf sorts features by place
        assert got.classes == ("water", "forest", "water", "crops")
    assert sorted(got.classes) == sorted(frame["class"])
    want = shapely.union_all(_frame().geometry.values)
    assert shapely.area(shapely.symmetric_difference(shapely.union_all(shapes), want)) < 1e-9 * shapely.area(want)


@pytest.mark.parametrize(("lon", "lat", "sep"), [("lon", "lat", ","), ("Longitude", "LATITUDE", ";"), ("x", "y", "\t")])
def test_csv_coordinates_become_points_in_degrees(tmp_path, lon, lat, sep):
    path = tmp_path / "points.csv"
    path.write_text(f"{lon}{sep}{lat}{sep}kind\n3.25{sep}50.5{sep}crops\n-60{sep}-3.1{sep}forest\n")
    labels = read_labels(str(path), column="kind")
    assert [shapely.from_wkb(g).wkt for g in labels.geometries] == ["POINT (3.25 50.5)", "POINT (-60 -3.1)"]
    assert labels.classes == ("crops", "forest")


def test_plain_parquet_with_coordinates_is_read_like_csv(tmp_path):
    path = tmp_path / "points.parquet"
    pd.DataFrame({"lon": [1.0, 2.0], "lat": [3.0, 4.0], "kind": [7, 9]}).to_parquet(path)
    assert read_labels(str(path), column="kind").classes == (7, 9)


def test_rows_without_class_or_place_are_dropped_and_counted(tmp_path, caplog):
    path = tmp_path / "points.csv"
    path.write_text("lon,lat,kind\n1,1,crops\n2,2,\n3,3,   \n,4,forest\n5,5,forest\n")
    with caplog.at_level(logging.WARNING):
        labels = read_labels(str(path), column="kind")
    assert (labels.classes, labels.groups, labels.dropped) == (("crops", "forest"), (0, 4), 3)
    assert "3 of 5 rows" in caplog.text


def test_whole_numbers_stay_numbers_though_some_are_missing(tmp_path):
    path = tmp_path / "points.csv"
    path.write_text("lon,lat,kind\n1,1,10\n2,2,\n3,3,9\n")
    labels = read_labels(str(path), column="kind")
    assert labels.classes == (10, 9)
    assert labels.names == ("9", "10")


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("lon,lat,landcover\n1,1,a\n2,2,b\n", "land_cover", "did you mean 'landcover'"),
        ("lon,lat,kind\n1,1,a\n2,2,a\n", "kind", "at least two"),
        ("lon,lat,kind\n1,1,\n2,2,\n", "kind", "at least two"),
        ("lon,lat,kind\n1,1,0.5\n2,2,1.5\n", "kind", "fractional"),
        ("east,north,kind\n1,1,a\n2,2,b\n", "kind", "no coordinates"),
        ("x,y,kind\n500000,5600000,a\n500010,5600000,b\n", "kind", "not degrees"),
        ("", "kind", "cannot be read"),
    ],
)
def test_unusable_tables_are_refused_with_the_reason(tmp_path, text, column, message):
    path = tmp_path / "points.csv"
    path.write_text(text)
    with pytest.raises(InvalidInputError, match=message):
        read_labels(str(path), column=column)


def test_a_file_without_crs_is_refused(tmp_path):
    path = tmp_path / "a.parquet"
    geopandas.GeoDataFrame({"kind": ["a", "b"]}, geometry=geopandas.points_from_xy([1, 2], [1, 2])).to_parquet(path)
    with pytest.raises(InvalidInputError, match="no CRS"):
        read_labels(str(path), column="kind")


def test_lines_are_refused(tmp_path):
    path = tmp_path / "a.geojson"
    line = shapely.LineString([(0, 0), (1, 1)])
    geopandas.GeoDataFrame({"kind": ["a", "b"]}, geometry=[line, line], crs=4326).to_file(path)
    with pytest.raises(InvalidInputError, match="row 0 is a LineString"):
        read_labels(str(path), column="kind")


@pytest.mark.parametrize("name", ["missing.geojson", "broken.geojson", "broken.gpkg", "broken.parquet"])
def test_files_that_cannot_be_read_are_named(tmp_path, name):
    if name.startswith("broken"):
        (tmp_path / name).write_bytes(b"\x00\x01 nothing")
    with pytest.raises(InvalidInputError, match=name):
        read_labels(str(tmp_path / name), column="kind")


def test_the_only_layer_with_the_column_is_read(tmp_path):
    path = tmp_path / "a.gpkg"
    _frame().rename(columns={"class": "other"}).to_file(path, layer="first")
    _frame().to_file(path, layer="second")
    assert len(read_labels(str(path), column="class").classes) == 4
    _frame().to_file(path, layer="third")
    with pytest.raises(InvalidInputError, match="3 layers"):
        read_labels(str(path), column="class")


def test_a_polygon_that_crosses_itself_is_repaired(tmp_path, caplog):
    path = tmp_path / "a.geojson"
    bow = shapely.Polygon([(0, 0), (1, 1), (1, 0), (0, 1)])
    geopandas.GeoDataFrame({"kind": ["a", "b"]}, geometry=[bow, shapely.box(3, 3, 4, 4)], crs=4326).to_file(path)
    with caplog.at_level(logging.WARNING):
        labels = read_labels(str(path), column="kind")
    assert shapely.from_wkb(labels.geometries[0]).area == pytest.approx(0.5)
    assert "1 polygons cross themselves" in caplog.text


@pytest.mark.parametrize("res_m", [10, 40])
def test_pixels_are_those_whose_centres_lie_inside(res_m):
    labels = _labels(list(_frame(32631).geometry), ["water", "forest", "water", "crops"])
    box = BOX.cover(res_m)
    rows, cols, index = pixels_of(labels, box=box)
    for k, wkb in enumerate(labels.geometries):
        got = set(zip(rows[index == k].tolist(), cols[index == k].tolist(), strict=True))
        assert got == _brute_force(shapely.from_wkb(wkb), box)
        assert got


def test_southern_labels_have_positive_lattice_rows():
    box = Box(zone=20, res_m=10, row=34_200, col=61_000, height=80, width=80)
    x0, y0, _, _ = box.bounds_m
    labels = _labels([_blob(x0 + 400, y0 + 400, 200, seed=1)], ["forest"], epsg=32620)
    rows, cols, _ = pixels_of(labels, box=box)
    assert set(zip(rows.tolist(), cols.tolist(), strict=True)) == _brute_force(
        shapely.from_wkb(labels.geometries[0]), box
    )
    assert len(rows) > 100


def test_pixels_do_not_depend_on_the_box():
    labels = _labels(list(_frame(32631).geometry), ["water", "forest", "water", "crops"])
    whole = np.column_stack(pixels_of(labels, box=BOX))
    parts = []
    for row in range(BOX.row, BOX.row_stop, 50):
        for col in range(BOX.col, BOX.col_stop, 80):
            part = Box(zone=31, res_m=10, row=row, col=col, height=50, width=80)
            parts.append(np.column_stack(pixels_of(labels, box=part)))
    joined = np.concatenate(parts)
    joined = joined[np.lexsort((joined[:, 1], joined[:, 0], joined[:, 2]))]
    np.testing.assert_array_equal(joined, whole)


def test_a_polygon_without_a_pixel_centre_takes_the_pixel_under_it():
    x0, _, _, y1 = BOX.bounds_m
    speck = shapely.box(x0 + 21, y1 - 33, x0 + 23, y1 - 31)
    rows, cols, index = pixels_of(_labels([speck], ["water"]), box=BOX)
    assert (rows.tolist(), cols.tolist(), index.tolist()) == ([BOX.row + 3], [BOX.col + 2], [0])


def test_a_large_polygon_that_only_grazes_the_box_takes_no_pixel_of_it():
    x0, _, _, y1 = BOX.bounds_m
    graze = shapely.box(x0 - 500, y1 - 300, x0 + 2, y1 - 100)
    assert len(pixels_of(_labels([graze], ["water"]), box=BOX)[0]) == 0


def test_points_take_the_pixel_under_them():
    x0, _, _, y1 = BOX.bounds_m
    points = [shapely.Point(x0 + 10 * c + 3, y1 - 10 * r - 8) for r, c in [(0, 0), (299, 399), (7, 5)]]
    rows, cols, index = pixels_of(_labels([*points, shapely.Point(x0 - 5, y1)], list("abca")), box=BOX)
    assert (rows - BOX.row).tolist() == [0, 299, 7]
    assert (cols - BOX.col).tolist() == [0, 399, 5]
    assert index.tolist() == [0, 1, 2]


def test_a_pixel_of_two_classes_is_left_out_and_of_one_class_counted_once(caplog):
    x0, _, _, y1 = BOX.bounds_m
    squares = [shapely.box(x0 + 10 * c, y1 - 50, x0 + 10 * c + 50, y1) for c in (0, 2, 4)]
    with caplog.at_level(logging.WARNING):
        rows, cols, index = pixels_of(_labels(squares, ["a", "a", "b"]), box=BOX)
    assert np.bincount(index).tolist() == [5 * 4, 0, 5 * 2]
    assert len(set(zip(rows.tolist(), cols.tolist(), strict=True))) == len(rows)
    assert "15 pixels" in caplog.text


def test_labels_on_both_sides_of_the_antimeridian_reach_zone_1():
    x, y = Transformer.from_crs(4326, 32601, always_xy=True).transform([179.99, -179.99], [-16.8, -16.8])
    labels = Labels(
        geometries=tuple(shapely.to_wkb(shapely.points([179.99, -179.99], [-16.8, -16.8]), hex=True)),
        classes=("a", "b"),
        groups=(0, 1),
    )
    col, row = int(min(x) // 10), int(-max(y) // 10)
    box = Box(zone=1, res_m=10, row=row - 50, col=col - 50, height=200, width=500)
    assert pixels_of(labels, box=box)[2].tolist() == [0, 1]


def test_labels_of_other_parts_of_the_world_are_ignored():
    geometries = shapely.to_wkb(shapely.points([-170.0, 3.0, 60.0], [10.0, -80.0, 46.0]), hex=True)
    labels = Labels(geometries=tuple(geometries), classes=("a", "b", "c"), groups=(0, 1, 2))
    assert len(pixels_of(labels, box=BOX)[0]) == 0


def test_polygons_of_one_640_m_square_share_a_place():
    side = 640
    x0, y0 = 700 * side, 8000 * side
    inside = [shapely.Point(x0 + 5, y0 + 5), shapely.box(x0 + 500, y0 + 500, x0 + 700, y0 + 600)]
    beside = shapely.Point(x0 - 5, y0 + 5)
    places = places_of(_labels([*inside, beside], ["a", "b", "a"]))
    assert places == ("z31_r-8001_c700", "z31_r-8001_c700", "z31_r-8001_c699")


def test_the_published_training_polygons_are_read():
    path = SHARED / "data/rstoolbox-sen2/trainingPolygons_sen2.geojson"
    if not path.exists():
        pytest.skip("the real-data pack is not beside the project")
    labels = read_labels(str(path), column="class")
    counts = {name: labels.classes.count(name) for name in labels.names}
    assert counts == {"dryout": 4, "forest": 8, "village": 9, "water": 4}
