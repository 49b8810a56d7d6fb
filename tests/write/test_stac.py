"""The static STAC catalogue: valid, relative, the same bytes every time."""

from __future__ import annotations

from datetime import UTC, datetime

import pystac
import pytest
from shapely.geometry import shape

from pipeline.types import Box
from pipeline.write import stac
from pipeline.write.stac import CatalogContent, Made, ZoneItem, footprint, write_catalog

NORTH = Box(zone=31, res_m=10, row=-500_000, col=50_000, height=512, width=768)
SOUTH = Box(zone=32, res_m=40, row=80_000, col=12_000, height=64, width=64)
PROPERTIES = (("earthpress:seam_score", 1.01), ("earthpress:seam_scores", {"tile/row": {"score": 1.01, "lines": 4}}))


def content(root, *boxes):
    return CatalogContent(
        id="fields-2024",
        title="Fields",
        description="Embeddings.",
        start=datetime(2024, 3, 1, tzinfo=UTC),
        end=datetime(2024, 9, 1, tzinfo=UTC),
        items=tuple(
            ZoneItem(
                box=box,
                assets=(
                    Made(
                        key="embeddings",
                        path=f"{root}/store.zarr/utm{box.zone:02d}",
                        media_type=stac.ZARR,
                        roles=("data",),
                    ),
                    Made(key="crops", path=f"{root}/maps/crops.tif", media_type=stac.COG, roles=("data",)),
                ),
                properties=PROPERTIES,
            )
            for box in boxes
        ),
        software=(("earthpress", "0.1.0"),),
    )


@pytest.fixture
def catalog(tmp_path):
    return pystac.Collection.from_file(write_catalog(tmp_path / "stac", content(tmp_path, NORTH, SOUTH)))


def test_the_catalogue_has_what_core_stac_requires(catalog):
    data = catalog.to_dict()
    assert {"type", "stac_version", "id", "description", "license", "extent", "links"} <= data.keys()
    for item in catalog.get_items():
        data = item.to_dict()
        assert {"type", "stac_version", "id", "geometry", "bbox", "properties", "links", "assets"} <= data.keys()
        assert data["collection"] == catalog.id
        assert data["properties"]["datetime"] is None
        assert data["properties"]["start_datetime"] == "2024-03-01T00:00:00Z"
        assert data["properties"]["end_datetime"] == "2024-09-01T00:00:00Z"


def test_the_catalogue_is_valid_by_the_core_schemas(catalog):
    pytest.importorskip("jsonschema", reason="pystac validates with jsonschema; its core schemas are in the package")
    from pystac.validation import validate_dict

    for thing in (catalog, *catalog.get_items()):
        assert validate_dict(thing.to_dict(), extensions=[])


def test_every_zone_has_an_item_with_its_scores_and_place(catalog):
    north, south = sorted(catalog.get_items(), key=lambda item: item.id)
    assert (north.id, south.id) == ("fields-2024-utm31", "fields-2024-utm32")
    assert north.properties["earthpress:seam_score"] == 1.01
    assert north.properties["processing:software"] == {"earthpress": "0.1.0"}
    assert north.properties["proj:code"] == "EPSG:32631"
    assert north.properties["proj:shape"] == [512, 768]
    assert north.properties["proj:transform"] == [10, 0, 500_000, 0, -10, 5_000_000]
    assert north.properties["proj:bbox"] == [500_000, 4_994_880, 507_680, 5_000_000]
    assert south.properties["proj:code"] == "EPSG:32732"
    assert south.properties["proj:bbox"][3] == 10_000_000 - 3_200_000
    assert catalog.extent.spatial.bboxes[1:] == [north.bbox, south.bbox]


def test_hrefs_are_relative_and_no_local_path_is_inside(tmp_path, catalog):
    item = next(catalog.get_items())
    assert item.assets["embeddings"].href == "../store.zarr/utm31"
    assert item.assets["crops"].href == "../maps/crops.tif"
    for path in (tmp_path / "stac").iterdir():
        assert str(tmp_path) not in path.read_text(encoding="utf-8")


def test_writing_again_gives_the_same_bytes(tmp_path):
    folder = tmp_path / "stac"
    write_catalog(folder, content(tmp_path, NORTH))
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    write_catalog(folder, content(tmp_path, NORTH))
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert set(before) == {"collection.json", "fields-2024-utm31.json"}


@pytest.mark.parametrize("box", [NORTH, SOUTH])
def test_the_footprint_holds_the_corners(box):
    from pyproj import Transformer

    geometry, bbox = footprint(box)
    ring = shape(geometry)
    west, south, east, north = box.bounds_m
    to_lonlat = Transformer.from_crs(box.epsg, 4326, always_xy=True)
    inside = to_lonlat.transform((west + east) / 2, (south + north) / 2)
    assert ring.is_valid
    assert ring.exterior.is_ccw
    assert ring.distance(shape({"type": "Point", "coordinates": inside})) == 0
    for x in (west, east):
        for y in (south, north):
            corner = shape({"type": "Point", "coordinates": to_lonlat.transform(x, y)})
            assert ring.distance(corner) < 1e-6
    assert tuple(bbox) == ring.bounds


def test_a_footprint_across_the_antimeridian_has_two_parts():
    geometry, bbox = footprint(Box(zone=60, res_m=10, row=100_000, col=80_000, height=512, width=6_000))
    parts = shape(geometry)
    assert geometry["type"] == "MultiPolygon"
    assert [p.is_valid for p in parts.geoms] == [True, True]
    assert bbox[0] > bbox[2]
    assert (bbox[0], bbox[2]) == (parts.geoms[0].bounds[0], pytest.approx(parts.geoms[1].bounds[2]))
    assert parts.geoms[0].bounds[2] == 180
    assert parts.geoms[1].bounds[0] == -180
