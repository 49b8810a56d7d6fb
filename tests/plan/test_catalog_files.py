"""Catalogues on this machine: files of every kind give the scenes they hold, anything else is refused by name."""

from __future__ import annotations

import json
import logging

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely
from catalog_items import AREA, ITEMS, PERIODS, START, WANTED, find, item, names

from pipeline.errors import InvalidInputError
from pipeline.plan.catalog import FileCatalog, open_catalog
from pipeline.plan.items import BAND_RES_M


def local_item(name, **more):
    made = item(name, **more)
    for band in BAND_RES_M:
        made["assets"][band]["href"] = f"./{name}/{band}.tif"
    return made


def write_collection(folder, items, name="items.json"):
    path = folder / name
    path.write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    return path


def write_ndjson(folder, items):
    path = folder / "items.ndjson"
    path.write_text("\n".join(json.dumps(i) for i in items) + "\n\n")
    return path


def write_parquet(folder, items):
    rows = [
        {k: v for k, v in i.items() if k != "properties"}
        | {"geometry": shapely.to_wkb(shapely.geometry.shape(i["geometry"])), "links": [{"rel": "root", "href": "x"}]}
        | i["properties"]
        for i in items
    ]
    path = folder / "items.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def write_static(folder, items):
    def node(path, kind, links):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"type": kind, "id": path.parent.name, "stac_version": "1.0.0", "links": links}))

    hrefs = []
    for i in items:
        (folder / "c" / i["id"]).mkdir(parents=True)
        (folder / "c" / i["id"] / "item.json").write_text(json.dumps(i))
        hrefs.append({"rel": "item", "href": f"./{i['id']}/item.json"})
    up = [{"rel": "parent", "href": "../catalog.json"}, {"rel": "child", "href": "../catalog.json"}]
    node(folder / "c" / "collection.json", "Collection", hrefs + up)
    node(folder / "catalog.json", "Catalog", [{"rel": "child", "href": "./c/collection.json"}])
    return folder / "catalog.json"


WRITERS = {"json": write_collection, "ndjson": write_ndjson, "parquet": write_parquet, "static": write_static}


@pytest.mark.parametrize("as_folder", [False, True])
@pytest.mark.parametrize("kind", WRITERS)
def test_every_kind_of_file_gives_the_same_scenes(tmp_path, kind, as_folder):
    items = [local_item(f"s{i:02d}", days=i * 4.0) for i in range(10)]
    path = WRITERS[kind](tmp_path, items)
    scenes = find(open_catalog(str(path.parent if as_folder else path)))
    assert [s.id for s in scenes] == [f"s{i:02d}" for i in range(10)]
    home = tmp_path / "c" / "s03" if kind == "static" else tmp_path
    assert scenes[3].href("B02").href == str(home / "s03" / "B02.tif")
    assert (scenes[3].cloud_pct, scenes[3].boa_offset) == (10.0, 0)


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_is_searched_by_place_time_and_collection(tmp_path, kind):
    items = [
        local_item("hit"),
        local_item("elsewhere", shape=shapely.box(20, 48, 21, 49)),
        local_item("early", days=-1),
        local_item("end", days=90),
        local_item("other", collection="landsat"),
    ]
    assert names(open_catalog(str(WRITERS[kind](tmp_path, items)))) == ["hit"]


def test_a_parquet_row_is_the_item_without_what_other_rows_added(tmp_path):
    full = local_item("full", **{"s2:mgrs_tile": "32UPU"})
    full["assets"]["B02"] |= {"eo:bands": [{"name": "B02", "common_name": "blue"}]}
    bare = local_item("bare")
    del bare["assets"]["B09"]
    catalog = FileCatalog(str(write_parquet(tmp_path, [full, bare])))
    found = catalog.search(collection="sentinel-2-l2a", geometry=AREA, start=START, end=PERIODS[0].end)
    for got, want in zip(found, (full, bare), strict=True):
        assert got["assets"] == want["assets"]
        assert got["properties"] == want["properties"]


def test_a_file_url_is_a_path(tmp_path):
    folder = tmp_path / "my items"
    folder.mkdir()
    assert names(open_catalog(write_collection(folder, ITEMS).as_uri())) == WANTED


def test_items_without_a_collection_belong_to_any(tmp_path):
    bare = local_item("bare")
    del bare["collection"]
    assert names(open_catalog(str(write_collection(tmp_path, [bare])))) == ["bare"]


def test_a_collection_that_the_file_lacks_is_refused_by_name(tmp_path):
    path = write_collection(tmp_path, ITEMS)
    with pytest.raises(InvalidInputError, match=r"no collection 'sentinel-1'.*it holds sentinel-2-l2a"):
        find(open_catalog(str(path)), collection="sentinel-1")


def test_items_without_place_or_time_are_left_out_and_named(tmp_path, caplog):
    lost = item("lost") | {"geometry": None, "bbox": None}
    timeless = item("timeless", datetime=None)
    with caplog.at_level(logging.WARNING):
        assert names(FileCatalog(str(write_collection(tmp_path, [lost, timeless, item("good")])))) == ["good"]
    assert "lost" in caplog.text
    assert "timeless" in caplog.text


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.json", "{", "not JSON"),
        ("a.json", "[1]", "must be an object"),
        ("a.json", '{"type": "Topology"}', "Topology"),
        ("a.json", '{"type": "FeatureCollection", "features": []}', "no item"),
        (
            "a.geojson",
            '{"type": "FeatureCollection", "features": [{"type": "Feature", "geometry": null}]}',
            "no STAC item",
        ),
        ("a.ndjson", '{"type": "Feature", "assets": {}, "id": "a"}\nx', "line 2 is not JSON"),
        ("a.parquet", "PAR1", "not a Parquet file"),
        ("a.tif", "II*", "unknown suffix"),
        ("a.json", b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_a_file_that_is_no_catalogue_is_refused_with_what_was_expected(tmp_path, name, text, said):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InvalidInputError, match=f"(?s){said}") as caught:
        open_catalog(str(tmp_path / name))
    assert "no item" in said or "ItemCollection" in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "said"),
    [({"id": ["a"]}, "no column"), ({"id": ["a"], "assets": [{"x": 1}], "geometry": ["POINT (1 1)"]}, "must be WKB")],
)
def test_a_parquet_of_something_else_is_refused(tmp_path, columns, said):
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(InvalidInputError, match=said):
        open_catalog(str(tmp_path / "a.parquet"))


def test_a_folder_with_several_candidates_or_none_is_refused(tmp_path):
    with pytest.raises(InvalidInputError, match="holds 0 possible catalogues"):
        open_catalog(str(tmp_path))
    for name in ("a.json", "b.json"):
        write_collection(tmp_path, ITEMS, name)
    with pytest.raises(InvalidInputError, match="holds 2 possible catalogues"):
        open_catalog(str(tmp_path))


@pytest.mark.parametrize(
    ("href", "said"), [("./gone.json", "cannot be read"), ("https://x.example/i.json?sig=hunter2", "on disk")]
)
def test_a_static_catalogue_must_be_whole(tmp_path, href, said):
    text = {"type": "Catalog", "id": "a", "stac_version": "1.0.0", "links": [{"rel": "item", "href": href}]}
    (tmp_path / "catalog.json").write_text(json.dumps(text))
    with pytest.raises(InvalidInputError, match=said) as caught:
        open_catalog(str(tmp_path))
    assert "hunter2" not in str(caught.value)
