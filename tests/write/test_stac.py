"""The static STAC catalogue: valid, relative, the same bytes every time, readable wherever its writer stops."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pystac
import pytest
from pystac.extensions.projection import ProjectionExtension
from shapely.geometry import shape

from pipeline.types import Box
from pipeline.write import stac
from pipeline.write.stac import CatalogContent, ItemContent, Link, Made, write_catalog
from pipeline.write.stac_fields import PROCESSING, PROJECTION, footprint, projection

NORTH = Box(zone=31, res_m=10, row=-500_000, col=50_000, height=512, width=768)
SOUTH = Box(zone=32, res_m=40, row=80_000, col=12_000, height=64, width=64)
PACIFIC = Box(zone=60, res_m=10, row=100_000, col=80_000, height=512, width=6_000)
STEPS = ((datetime(2024, 3, 1, tzinfo=UTC), datetime(2024, 9, 1, tzinfo=UTC)),)
TWO_STEPS = (*STEPS, (datetime(2025, 3, 1, tzinfo=UTC), datetime(2025, 9, 1, tzinfo=UTC)))
PROPERTIES = (("earthpress:seam_score", 1.01), ("processing:software", {"earthpress": "0.1.0"}))


def item_of(root, box, start, end):
    return ItemContent(
        id=f"fields-utm{box.zone:02d}-{start:%Y%m%d}",
        box=box,
        start=start,
        end=end,
        assets=(
            Made(key="embeddings", path=f"{root}/store.zarr/utm{box.zone:02d}", media_type=stac.ZARR, roles=("data",)),
            Made(key="far", path="s3://bucket/far.tif", media_type=stac.COG, roles=("data",), fields=(("gsd", 10),)),
        ),
        properties=PROPERTIES,
        links=(Link(rel="derived_from", href="https://example.org/items/S2A", media_type=stac.GEOJSON),),
        extensions=(PROJECTION, PROCESSING),
    )


def content(root, *boxes, steps=STEPS):
    (root / "store.zarr").mkdir(exist_ok=True)
    for box in boxes:
        (root / "store.zarr" / f"utm{box.zone:02d}").mkdir(exist_ok=True)
    return CatalogContent(
        id="fields",
        title="Fields",
        description="Embeddings.",
        start=steps[0][0],
        end=steps[-1][1],
        items=tuple(item_of(root, box, *step) for step in steps for box in boxes),
        keywords=("embeddings",),
        providers=(("ESA", "Source data", ("producer", "licensor"), "https://example.org"),),
        summaries=(("gsd", [10]),),
        fields=(("gsd", 10),),
        links=(Link(rel="emb:model", href="./model-x.json", media_type=stac.GEOJSON),),
        model=ItemContent(
            id="model-x",
            box=None,
            start=steps[0][0],
            end=steps[-1][1],
            assets=(Made(key="weights", path="urn:olmoearth:x", media_type="", roles=("mlm:model",)),),
            properties=(("earthpress:trained", False),),
        ),
        files=(("configuration.json", b"{}\n"),),
    )


def valid(thing):
    """By the schemas that lie inside pystac: no extension, so nothing is fetched."""
    from pystac.validation import validate_dict

    return validate_dict(thing if isinstance(thing, dict) else thing.to_dict(), extensions=[])


def names_in(folder):
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("boxes", [(NORTH,), (NORTH, SOUTH), (SOUTH, PACIFIC)], ids=["one", "two", "antimeridian"])
def test_collection_items_and_model_are_valid_by_the_core_schemas(tmp_path, boxes):
    catalog = pystac.Collection.from_file(write_catalog(tmp_path / "stac", content(tmp_path, *boxes)))
    assert valid(catalog)
    assert [bool(valid(item)) for item in catalog.get_items()] == [True] * len(boxes)
    assert valid(json.loads((tmp_path / "stac" / "model-x.json").read_text(encoding="utf-8")))


def test_two_time_steps_of_a_zone_are_two_items(tmp_path):
    catalog = pystac.Collection.from_file(write_catalog(tmp_path / "stac", content(tmp_path, NORTH, steps=TWO_STEPS)))
    first, second = catalog.get_items()
    assert [first.id, second.id] == ["fields-utm31-20240301", "fields-utm31-20250301"]
    assert first.to_dict()["properties"]["datetime"] is None
    assert first.to_dict()["properties"]["start_datetime"] == "2024-03-01T00:00:00Z"
    assert second.to_dict()["properties"]["end_datetime"] == "2025-09-01T00:00:00Z"
    assert first.assets["embeddings"].href == second.assets["embeddings"].href
    assert catalog.extent.spatial.bboxes == [first.bbox]


def test_the_projection_of_an_item_reads_back(tmp_path):
    catalog = pystac.Collection.from_file(write_catalog(tmp_path / "stac", content(tmp_path, NORTH, SOUTH)))
    north, south = (ProjectionExtension.ext(item) for item in catalog.get_items())
    assert (north.code, north.shape) == ("EPSG:32631", [512, 768])
    assert north.transform == [10, 0, 500_000, 0, -10, 5_000_000]
    assert north.bbox == [500_000, 4_994_880, 507_680, 5_000_000]
    assert south.code == "EPSG:32732"
    assert south.bbox[3] == 10_000_000 - 3_200_000
    assert catalog.extent.spatial.bboxes[1:] == [item.bbox for item in catalog.get_items()]


def test_a_store_in_the_south_is_described_in_its_own_plane():
    fields = projection(SOUTH, southern=False)
    assert fields["proj:code"] == "EPSG:32632"
    assert fields["proj:bbox"] == [480_000, -3_202_560, 482_560, -3_200_000]
    assert fields["proj:transform"][5] == fields["proj:bbox"][3]


def test_hrefs_are_relative_and_no_local_path_is_inside(tmp_path):
    write_catalog(tmp_path / "stac", content(tmp_path, NORTH))
    item = json.loads((tmp_path / "stac" / "fields-utm31-20240301.json").read_text(encoding="utf-8"))
    assert item["assets"]["embeddings"]["href"] == "../store.zarr/utm31"
    assert item["assets"]["far"]["href"] == "s3://bucket/far.tif"
    for path in (tmp_path / "stac").iterdir():
        assert str(tmp_path) not in path.read_text(encoding="utf-8")


def test_every_link_of_the_catalogue_leads_to_a_file(tmp_path):
    catalog = pystac.Collection.from_file(write_catalog(tmp_path / "stac", content(tmp_path, NORTH, SOUTH)))
    for thing in (catalog, *catalog.get_items()):
        local = [link.get_absolute_href() for link in thing.links if not link.get_href().startswith("https://")]
        assert local
        assert all(Path(href).is_file() for href in local)


def test_writing_again_changes_no_file(tmp_path):
    folder = tmp_path / "stac"
    write_catalog(folder, content(tmp_path, NORTH))
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    write_catalog(folder, content(tmp_path, NORTH))
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()} == before
    assert set(before) == {"collection.json", "configuration.json", "model-x.json", "fields-utm31-20240301.json"}


def test_items_of_what_is_no_more_disappear_and_foreign_files_stay(tmp_path):
    folder = tmp_path / "stac"
    write_catalog(folder, content(tmp_path, NORTH, SOUTH))
    (folder / "mine.json").write_text('{"type": "Feature", "properties": {"a": 1}}', encoding="utf-8")
    (folder / "list.json").write_text("[1, 2]", encoding="utf-8")
    (folder / "broken.json").write_text("{", encoding="utf-8")
    write_catalog(folder, content(tmp_path, NORTH))
    assert "fields-utm32-20240301.json" not in names_in(folder)
    assert {"mine.json", "list.json", "broken.json", "fields-utm31-20240301.json"} <= names_in(folder)


class StoppedAtError(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("step", ["item", "collection", "deleted"])
def test_a_writer_stopped_at_any_step_leaves_a_catalogue_that_reads(tmp_path, step):
    folder = tmp_path / "stac"
    write_catalog(folder, content(tmp_path, NORTH, SOUTH))
    new = replace(content(tmp_path, NORTH, PACIFIC), title="New")

    def at(name):
        if name == step:
            raise StoppedAtError

    with pytest.raises(StoppedAtError):
        write_catalog(folder, new, at=at)
    catalog = pystac.Collection.from_file(str(folder / "collection.json"))
    assert catalog.title == ("Fields" if step == "item" else "New")
    assert len(list(catalog.get_items())) == 2
    write_catalog(folder, new)
    assert {item.id for item in pystac.Collection.from_file(str(folder / "collection.json")).get_items()} == {
        "fields-utm31-20240301",
        "fields-utm60-20240301",
    }
    assert "fields-utm32-20240301.json" not in names_in(folder)


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
    geometry, bbox = footprint(PACIFIC)
    parts = shape(geometry)
    assert geometry["type"] == "MultiPolygon"
    assert [p.is_valid for p in parts.geoms] == [True, True]
    assert bbox[0] > bbox[2]
    assert (bbox[0], bbox[2]) == (parts.geoms[0].bounds[0], pytest.approx(parts.geoms[1].bounds[2]))
    assert parts.geoms[0].bounds[2] == 180
    assert parts.geoms[1].bounds[0] == -180


def test_the_whole_of_a_catalogue_across_the_antimeridian_spans_the_globe(tmp_path):
    write_catalog(tmp_path / "stac", content(tmp_path, NORTH, PACIFIC))
    boxes = json.loads((tmp_path / "stac" / "collection.json").read_text(encoding="utf-8"))["extent"]["spatial"]["bbox"]
    assert (boxes[0][0], boxes[0][2]) == (-180, 180)
    assert len(boxes) == 3
