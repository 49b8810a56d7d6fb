"""Class maps as polygons: nothing lost at the borders of squares, areas of the pixels, joined outlines."""

from __future__ import annotations

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from pyproj import Transformer

from pipeline.errors import InvalidInputError
from pipeline.run.export import export_polygons
from pipeline.types import Box
from pipeline.write.areas import pixel_areas_m2
from pipeline.write.geotiff import CLASSES_TAG, write_cog
from pipeline.write.polygons import Patches, simplified, write_polygons

CLASSES = ((0, "water", "#3b7dd8"), (1, "crops", "#e3b23c"), (2, "forest", "#1f7a3d"))


def box_at(row, col, height, width, zone=31):
    return Box(zone=zone, res_m=10, row=row, col=col, height=height, width=width)


@pytest.fixture
def land():
    """(box, classes): stripes, a disk across the middle and a corner without data."""
    box = box_at(-500_032, 50_000, 64, 64)
    rows, cols = np.mgrid[:64, :64]
    classes = (cols // 20 % 2).astype(np.uint8)
    classes[(rows - 32) ** 2 + (cols - 32) ** 2 < 15**2] = 2
    classes[50:, 50:] = 255
    return box, classes


def quarters(box, classes):
    """The same in four squares."""
    for row in (0, 32):
        for col in (0, 32):
            part = box_at(box.row + row, box.col + col, 32, 32)
            yield part, classes[row : row + 32, col : col + 32]


def patches_of(pieces):
    found = Patches(zone=31, res_m=10)
    for box, classes in pieces:
        found.add(box, classes)
    return found


def test_squares_leave_no_border_in_the_polygons(land):
    whole, cut = patches_of([land]), patches_of(quarters(*land))
    assert [value for value, _ in cut.joined()] == [value for value, _ in whole.joined()]
    for (_, one), (_, other) in zip(whole.joined(), cut.joined(), strict=True):
        assert one.equals(other)


def test_pixels_and_areas_are_those_of_the_map(land, tmp_path):
    box, classes = land
    write_polygons(tmp_path / "p.parquet", [patches_of([land])], classes=CLASSES)
    table = gpd.read_parquet(tmp_path / "p.parquet")
    areas = pixel_areas_m2(box)
    for value, _, _ in CLASSES:
        own = table[table["class"] == value]
        assert own.pixels.sum() == (classes == value).sum()
        assert own.area_m2.sum() == pytest.approx(float((areas * (classes == value)).sum()), rel=1e-6)


def test_simplified_outlines_stay_joined_and_are_fewer(land):
    patches = [patch for _, patch in patches_of([land]).joined()]
    drawn = simplified(patches, tolerance_m=30, res_m=10)
    assert shapely.coverage_is_valid(np.array(drawn, dtype=object))
    assert shapely.get_num_coordinates(drawn).sum() < shapely.get_num_coordinates(patches).sum() / 2
    assert sum(patch.area for patch in drawn) == pytest.approx(sum(patch.area for patch in patches), rel=0.02)


@pytest.mark.parametrize("name", ["p.gpkg", "p.parquet"])
def test_both_formats_hold_class_name_colour_and_place(land, tmp_path, name):
    count = write_polygons(tmp_path / name, [patches_of([land])], classes=CLASSES)
    table = gpd.read_file(tmp_path / name) if name.endswith("gpkg") else gpd.read_parquet(tmp_path / name)
    assert len(table) == count
    assert table.crs.to_epsg() == 32631
    forest = table[table.name == "forest"].iloc[0]
    assert (forest["class"], forest.colour) == (2, "#1f7a3d")
    x, y = (land[0].col + 32) * 10, -(land[0].row + 32) * 10
    assert forest.geometry.contains(shapely.Point(x, y))
    assert not [p for p in tmp_path.iterdir() if p.name != name]


def test_several_zones_share_one_file_in_degrees(land, tmp_path):
    other = Patches(zone=32, res_m=10)
    other.add(box_at(-500_032, 50_000, 8, 8, zone=32), np.ones((8, 8), np.uint8))
    write_polygons(tmp_path / "p.parquet", [patches_of([land]), other], classes=CLASSES)
    table = gpd.read_parquet(tmp_path / "p.parquet")
    assert table.crs.to_epsg() == 4326
    assert set(table.zone) == {31, 32}


def test_the_south_is_written_in_its_own_plane(tmp_path):
    south = Patches(zone=31, res_m=10)
    south.add(box_at(200_000, 50_000, 8, 8), np.zeros((8, 8), np.uint8))
    write_polygons(tmp_path / "p.gpkg", [south], classes=CLASSES)
    table = gpd.read_file(tmp_path / "p.gpkg")
    assert table.crs.to_epsg() == 32731
    assert table.geometry.bounds.maxy.iloc[0] == 10_000_000 - 2_000_000


@pytest.mark.parametrize(
    ("name", "crs", "text"), [("p.shp", "", "not '.shp'"), ("p.gpkg", "EPSG:1", "not a coordinate system")]
)
def test_what_cannot_be_written_is_refused(land, tmp_path, name, crs, text):
    with pytest.raises(InvalidInputError, match=text):
        write_polygons(tmp_path / name, [patches_of([land])], classes=CLASSES, crs=crs)


def test_a_map_without_classes_here_is_refused(tmp_path):
    empty = Patches(zone=31, res_m=10)
    empty.add(box_at(0, 0, 8, 8), np.full((8, 8), 255, np.uint8))
    with pytest.raises(InvalidInputError, match="no class here"):
        write_polygons(tmp_path / "p.gpkg", [empty], classes=CLASSES)


def test_the_geotiffs_of_an_output_become_polygons(land, tmp_path):
    maps = tmp_path / "maps"
    maps.mkdir()
    box, classes = land
    for k, (part, values) in enumerate(quarters(box, classes)):
        write_cog(
            maps / f"crops_utm31_r{k}_c0.tif",
            values,
            box=part,
            colours=[(value, colour) for value, _, colour in CLASSES],
            class_names=[(value, name) for value, name, _ in CLASSES],
            tags=((CLASSES_TAG, str([list(c) for c in CLASSES]).replace("'", '"')),),
        )
    made = export_polygons(str(tmp_path))
    assert made.files == (str(tmp_path / "exports" / "crops.gpkg"),)
    assert len(gpd.read_file(made.files[0])) == len(patches_of([land]).joined())


def test_an_unknown_map_names_those_that_are_there(tmp_path):
    with pytest.raises(InvalidInputError, match="it has none"):
        export_polygons(str(tmp_path), name="crops")


def test_a_patch_across_the_180th_meridian_is_not_stretched_around_the_earth(tmp_path):
    west, south = Transformer.from_crs(4326, 32660, always_xy=True).transform(179.999, 0.01)
    across = Patches(zone=60, res_m=10)
    across.add(box_at(-int(south // 10) - 8, int(west // 10), 8, 40, zone=60), np.ones((8, 40), np.uint8))
    write_polygons(tmp_path / "p.parquet", [across], classes=CLASSES, crs="EPSG:4326")
    west, _, east, _ = gpd.read_parquet(tmp_path / "p.parquet").total_bounds
    assert west < 180 < east < west + 0.004


@pytest.mark.parametrize("epsg", [3035, 4326])
def test_a_mosaic_is_refused_instead_of_laid_into_a_wrong_zone(tmp_path, epsg):
    path = tmp_path / "crops_mosaic.tif"
    place = (
        rasterio.Affine(10, 0, 4_000_000, 0, -10, 3_000_000)
        if epsg == 3035
        else rasterio.Affine(1e-4, 0, 9, 0, -1e-4, 50)
    )
    with rasterio.open(
        path, "w", driver="GTiff", count=1, height=8, width=8, dtype="uint8", crs=epsg, transform=place
    ) as file:
        file.write(np.ones((1, 8, 8), np.uint8))
        file.update_tags(**{CLASSES_TAG: '[[1, "crops", "#e3b23c"]]'})
    with pytest.raises(InvalidInputError, match="not in the plane of a UTM zone"):
        export_polygons(str(path), to=str(tmp_path / "p.gpkg"))
