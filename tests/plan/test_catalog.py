"""Catalogues: an API that misbehaves loses nothing and never hangs; files of every kind give the scenes they hold."""

from __future__ import annotations

import json
import logging
import random
import shutil
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely

from pipeline.errors import DataError, InvalidInputError, TransientError
from pipeline.plan.catalog import ApiCatalog, FileCatalog, open_catalog, redact, scenes_of
from pipeline.plan.items import BAND_RES_M
from pipeline.types import Period
from tests.stac_server import StacServer

STAC = Path(__file__).resolve().parents[2] / "../shared/data/stac"
START = datetime(2024, 3, 1, tzinfo=UTC)
PERIODS = tuple(
    Period(index=i, start=START + timedelta(days=30 * i), end=START + timedelta(days=30 * (i + 1))) for i in range(3)
)
AREA = shapely.box(10.2, 48.2, 10.8, 48.8)


def item(name, *, days=1.0, shape=None, collection="sentinel-2-l2a", **properties):
    shape = shape or shapely.box(10, 48, 11, 49)
    time = (START + timedelta(days=days)).isoformat().replace("+00:00", "Z")
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "collection": collection,
        "geometry": shapely.geometry.mapping(shape),
        "bbox": list(shape.bounds),
        "properties": {"datetime": time, "eo:cloud_cover": 10.0, "s2:processing_baseline": "05.10"} | properties,
        "assets": {band: {"href": f"https://data.example/{name}/{band}.tif?sig=hunter2"} for band in BAND_RES_M},
        "links": [],
    }


ITEMS = [item(f"s{i:02d}", days=i * 4.0 + 0.5) for i in range(23)]


def find(catalog, *, geometry=AREA, periods=PERIODS, collection="sentinel-2-l2a"):
    return scenes_of(catalog, collection=collection, geometry=geometry, periods=periods)


def names(*args, **more):
    return [s.id for s in find(*args, **more)]


def api(server):
    return ApiCatalog(server.url, sign=False, backoff_s=0)


WANTED = [f"s{i:02d}" for i in range(23)]


@pytest.mark.parametrize(
    "faults", [{}, {"429": 2}, {"503": 1}, {"repeat": True}, {"get": True}, {"broken": 3}, {"ignore": True}]
)
@pytest.mark.parametrize("page_cap", [1000, 3])
def test_every_item_is_found_once_whatever_the_api_does(faults, page_cap):
    items = [*random.Random(1).sample(ITEMS, 23), item("foreign", collection="sentinel-2-l1c")]
    with StacServer(items, faults=faults, page_cap=page_cap) as server:
        assert names(api(server)) == WANTED


def test_a_throttled_search_by_post_is_retried():
    with StacServer(ITEMS, faults={"429": 1}) as server:
        assert names(open_catalog(server.url)) == WANTED
        assert len(server.searches) == len(PERIODS) + 1


def test_one_request_is_made_per_period_and_asks_for_large_pages():
    with StacServer(ITEMS) as server:
        find(api(server))
        assert len(server.searches) == 3
        assert {s["limit"] for s in server.searches} == {250}
        assert {tuple(s["collections"]) for s in server.searches} == {("sentinel-2-l2a",)}


def test_a_wide_area_is_asked_zone_by_zone():
    area = shapely.MultiPolygon([shapely.box(-180, 0, -179, 1), shapely.box(179, 0, 180, 1)])
    east, west = item("east", shape=shapely.box(-180, 0, -179, 1)), item("west", shape=shapely.box(178.5, 0, 180, 1))
    with StacServer([east, west, item("far", shape=shapely.box(0, 0, 1, 1))]) as server:
        assert names(api(server), geometry=area, periods=PERIODS[:1]) == ["east", "west"]
        widths = [shapely.geometry.shape(s["intersects"]) for s in server.searches]
    assert [round(w.bounds[2] - w.bounds[0]) for w in widths] == [1, 1]


def test_a_query_has_few_vertices_and_the_answer_is_filtered_exactly():
    disc = shapely.Point(10.5, 48.5).buffer(0.3, quad_segs=1000)
    corner = item("corner", shape=shapely.box(10.75, 48.75, 10.76, 48.76))  # in the disc's box, not in the disc
    with StacServer([corner, item("in")], faults={"ignore": True}) as server:
        assert names(api(server), geometry=disc) == ["in"]
        asked = shapely.geometry.shape(server.searches[0]["intersects"])
    assert shapely.get_num_coordinates(asked) <= 500
    assert asked.covers(disc)


def test_an_item_on_a_period_edge_is_found_once_and_one_on_the_end_not():
    edges = [item("first", days=0), item("between", days=30), item("end", days=90)]
    with StacServer(edges) as server:
        assert names(api(server)) == ["between", "first"]


def test_a_full_last_page_is_not_believed():
    with StacServer(ITEMS, faults={"lose": True}) as server:
        assert names(ApiCatalog(server.url, sign=False, page_items=4)) == WANTED


@pytest.mark.parametrize("fault", ["loop", "stale"])
def test_pages_in_a_circle_end_with_an_error(fault):
    with StacServer(ITEMS, faults={fault: True}, page_cap=3) as server:
        with pytest.raises(InvalidInputError, match="circle"):
            find(api(server))
        assert len(server.searches) < 8


def test_an_answer_that_stays_broken_is_transient():
    class Broken(StacServer):
        def _page(self, asked, method):
            return "<html>gateway"

    with Broken(ITEMS) as server, pytest.raises(TransientError, match="not a JSON object"):
        find(api(server))


def test_a_search_answer_without_features_is_transient():
    class Empty(StacServer):
        def _page(self, asked, method):
            return {"message": "ok"}

    with Empty(ITEMS) as server, pytest.raises(TransientError, match="without a list of features"):
        find(api(server))


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, InvalidInputError), (403, InvalidInputError), (500, TransientError), (503, TransientError)],
)
def test_a_refused_search_names_the_status_and_no_secret(status, kind):
    with StacServer(ITEMS, faults={"status": status}) as server:
        url = server.url.replace("http://", "http://user:hunter2@") + "?token=hunter2"
        with pytest.raises(kind, match=rf"{status}|does not answer") as caught:
            find(ApiCatalog(url, sign=False, backoff_s=0))
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_an_api_that_is_not_there_is_transient_and_named():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
        with pytest.raises(TransientError, match="does not answer"):
            ApiCatalog(url + "?key=hunter2", sign=False, backoff_s=0)


@pytest.mark.parametrize("landing", ["<html>hello</html>", [], {}, {"type": "Catalog", "id": "static", "links": []}])
def test_what_is_no_stac_api_is_refused(landing):
    with StacServer([], landing=landing) as server, pytest.raises(InvalidInputError, match="not a STAC API"):
        open_catalog(server.url)


def test_a_collection_that_the_api_lacks_is_refused_and_an_empty_one_is_empty():
    with StacServer([]) as server:
        assert names(api(server)) == []
        with pytest.raises(InvalidInputError, match="no collection 'sentinel-3'"):
            find(api(server), collection="sentinel-3")


def test_two_items_with_one_id_are_refused():
    twins = [item("twin", days=1), item("twin", days=2)]
    with StacServer(twins) as server, pytest.raises(DataError, match="two different items with the id twin"):
        find(api(server))


def test_items_without_files_are_left_out_and_named(caplog):
    bare = item("bare") | {"assets": {}}
    with StacServer([bare, item("whole")]) as server, caplog.at_level(logging.WARNING):
        assert names(api(server)) == ["whole"]
    assert "item bare has no asset for SCL" in caplog.text


def test_an_api_cannot_name_local_files():
    spy = item("spy")
    spy["assets"]["B02"]["href"] = "/etc/passwd"
    spy["links"] = [{"rel": "self", "href": "/etc/item.json"}]
    with StacServer([spy]) as server, pytest.raises(DataError, match=r"item spy, asset B02.*remote"):
        find(api(server))


def test_older_versions_of_a_granule_are_left_out():
    same = {"s2:mgrs_tile": "32UPU", "s2:datatake_id": "GS2B_20240302T100000_012081_N05.00"}
    old = item("old", **same)
    new = item("new", **same | {"s2:processing_baseline": "05.11"})
    part = item("part", shape=shapely.box(10.5, 47, 11, 48.5), **same)
    with StacServer([old, new, part]) as server:
        assert names(api(server)) == ["new", "part"]


def test_stored_scenes_hold_no_signature():
    with StacServer(ITEMS) as server:
        assert "hunter2" not in repr(find(api(server)))


def test_no_periods_make_no_request():
    with StacServer(ITEMS) as server:
        assert find(api(server), periods=()) == ()
        assert server.searches == []


@pytest.mark.parametrize("spec", ["planetary-computr", "s3://bucket/catalog.json", "/no/such/catalog.json"])
def test_an_unknown_catalogue_is_refused(spec):
    with pytest.raises(InvalidInputError, match="catalogue"):
        open_catalog(spec)


def test_redacting_keeps_the_place():
    text = "GET https://me:pw@x.example/a?sig=1&b=2 and /search?token=3)"
    assert redact(text) == "GET https://x.example/a?... and /search?...)"


# ---- files


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


def recorded(name):
    if not (STAC / name).is_file():
        pytest.skip(f"recorded answer {name} is not beside the project")
    return STAC / name


DENVER = shapely.box(-105.2, 39.9, -104.9, 40.2)
YEAR = (Period(index=0, start=datetime(2024, 1, 1, tzinfo=UTC), end=datetime(2025, 1, 1, tzinfo=UTC)),)


def test_the_recorded_parquet_equals_its_own_table():
    path = recorded("rustac/100-sentinel-2-items.parquet")
    scenes = find(open_catalog(str(path)), geometry=DENVER, periods=YEAR)
    table = pq.read_table(path, columns=["id", "eo:cloud_cover", "geometry", "s2:processing_baseline"]).to_pylist()
    want = {r["id"]: r for r in table if shapely.from_wkb(r["geometry"]).intersects(DENVER)}
    assert want
    assert {s.id: s.cloud_pct for s in scenes} == {k: r["eo:cloud_cover"] for k, r in want.items()}
    assert all(s.sign and s.boa_offset == 0 and len(s.assets) == 13 for s in scenes)
    assert all(s.version.startswith(want[s.id]["s2:processing_baseline"]) for s in scenes)


def test_recorded_items_give_equal_scenes_from_a_file_and_from_an_api(tmp_path):
    path = recorded("rustac/two-sentinel-2-items.json")
    items = json.loads(path.read_text())["features"]
    area = shapely.geometry.shape(items[0]["geometry"]).union(shapely.geometry.shape(items[1]["geometry"]))
    shutil.copy(path, tmp_path / "items.json")
    with StacServer(items) as server:
        from_api = find(api(server), geometry=area, periods=YEAR)
    assert len(from_api) == 2
    assert find(open_catalog(str(tmp_path)), geometry=area, periods=YEAR) == from_api


def test_recorded_pages_of_the_planetary_computer_over_the_antimeridian_are_found():
    path = recorded("pystac-client/decoded/TestItemSearch.test_datetime_results.0.json")
    items = json.loads(path.read_text())["response"]["features"]
    day = (Period(index=0, start=datetime(2019, 1, 1, tzinfo=UTC), end=datetime(2019, 1, 2, tzinfo=UTC)),)
    with StacServer(items, page_cap=10) as server:
        found = find(api(server), geometry=shapely.box(-180, -80, 180, 84), periods=day)
    assert [s.id for s in found] == sorted(i["id"] for i in items)
    assert all(-180 <= b <= 180 for s in found for b in shapely.from_wkb(s.footprint).bounds)
