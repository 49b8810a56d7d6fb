"""Recorded answers of the archives, served over the loopback interface through the real client code."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import shapely
from catalog_items import api

from pipeline.errors import InvalidInputError
from pipeline.plan import catalog
from pipeline.types import Period
from tests.servers.replay import ReplayServer
from tests.servers.stac import StacServer

STAC = Path(__file__).resolve().parents[2] / "../shared/data/stac"
KAMCHATKA = shapely.box(166, 53, 174.2, 59.2)
COLORADO = shapely.box(-106.2, 39.6, -104.9, 40.7)
KENYA = shapely.box(34.7, 1.6, 35.9, 2.8)
CORAL_SEA = shapely.box(158.5, -33, 169.5, 7)


def recorded(name):
    """A recorded JSON document; of a decoded cassette {"request": ..., "response": ...}."""
    if not (STAC / name).is_file():
        pytest.skip(f"recorded answer {name} is not beside the project")
    return json.loads((STAC / name).read_text())


def cassette(name):
    return recorded(f"pystac-client/decoded/{name}.json")


def day(*date, days=1):
    start = datetime(*date, tzinfo=UTC)
    return (Period(index=0, start=start, end=datetime.fromtimestamp(start.timestamp() + 86400 * days, tz=UTC)),)


def find(server, *, geometry, periods, sensor="sentinel2_l2a", collection="auto"):
    spec = server.url if isinstance(server, StacServer) else str(server)
    return catalog.find(spec, sensor=sensor, collection=collection, geometry=geometry, periods=periods)


def raw(server, page, *, collection, geometry):
    """Items as the client hands them on, of the day of a page's first item."""
    period = of(page)[0]
    return list(api(server).search(collection=collection, geometry=geometry, start=period.start, end=period.end))


def of(page, *, days=1):
    """The period that begins with the day of a page's first item."""
    taken = datetime.fromisoformat(page["features"][0]["properties"]["datetime"])
    return day(taken.year, taken.month, taken.day, days=days)


def test_pages_of_the_planetary_computer_follow_its_tokens():
    first, second = recorded("rustac/search-page-1.json"), recorded("rustac/search-page-2.json")
    token = first["links"][0]["body"]["token"]
    area = shapely.geometry.shape(first["features"][0]["geometry"]).centroid.buffer(0.1)
    with ReplayServer([first, second]) as server:
        items = raw(server, first, collection="sentinel-2-l2a", geometry=area)
        assert [i["id"] for i in items] == [first["features"][0]["id"], second["features"][0]["id"]]
        assert [s.get("token") for s in server.searches[:2]] == [None, token]
        assert server.searches[0]["limit"] == 250
        [scene] = find(server, periods=of(first), geometry=area)
    assert (scene.id, scene.sign, scene.boa_offset) == (first["features"][0]["id"], True, 0)
    assert len(scene.assets) == 13


def test_two_pages_of_a_recorded_paging_are_asked_for_as_pystac_client_did():
    pages = [cassette(f"TestItemSearch.test_result_paging.{i}") for i in (0, 1)]
    bodies = [json.loads(p["request"]["body"]) for p in pages]
    with ReplayServer([p["response"] for p in pages], collections=["naip"]) as server:
        items = raw(server, pages[0]["response"], collection="naip", geometry=shapely.box(-73.21, 43.99, -73.12, 44.05))
        assert server.searches[1] == bodies[1]
    assert len({i["id"] for i in items}) == 20


def test_a_recorded_answer_gives_every_granule_of_its_datatake():
    answer = cassette("TestItemSearch.test_datetime_results.0")["response"]
    with ReplayServer([answer], landing=cassette("test_fallback_strategy.0")["response"]) as server:
        found = find(server, periods=of(answer), geometry=KAMCHATKA)
        assert {e.method for e in server.log} == {"GET", "POST"}
    assert [s.id for s in found] == sorted(i["id"] for i in answer["features"])
    assert all(-180 <= b <= 180 for s in found for b in shapely.from_wkb(s.footprint).bounds)
    assert {s.boa_offset for s in found} == {1000}


def test_recorded_items_of_the_planetary_computers_landsat_are_refused_with_the_reason():
    answer = cassette("test_fallback_strategy.2")["response"]
    answer["links"] = [link for link in answer["links"] if link["rel"] != "next"]  # by GET to a place not recorded
    refused = pytest.raises(InvalidInputError, match=r"Landsat Level-2.*trained on Level-1 DN")
    with ReplayServer([answer], collections=["landsat-c2-l2"]) as server, refused:
        find(server, periods=of(answer), geometry=CORAL_SEA, sensor="landsat", collection="landsat-c2-l2")


def test_recorded_pages_of_earth_search_end_although_the_last_has_a_next_link():
    landing = cassette("TestCLISearch.test_filter_inprocess_.0")["response"]
    pages = [cassette(f"test_multiple_collections.{i}")["response"] for i in (0, 1)]
    asked = json.loads(cassette("test_multiple_collections.1")["request"]["body"])
    with ReplayServer(pages, landing=landing) as server:
        found = find(server, periods=of(pages[0]), geometry=COLORADO, collection="sentinel-2-l2a")
        assert asked in server.searches
    assert {s.id for s in found} == {f["id"] for f in pages[0]["features"] if f["collection"] == "sentinel-2-l2a"}
    assert all(s.check_offset for s in found)


def test_a_recorded_answer_of_cdse_gives_scenes_whose_files_lie_in_eodata():
    answer = recorded("openeo-cdse/FeatureCollection.issue1043.json")
    with ReplayServer([answer]) as server:
        found = find(server, periods=of(answer), geometry=KENYA)
    assert found
    assert all(a.href.startswith("s3://eodata/") for s in found for a in s.assets)


def test_recorded_items_give_equal_scenes_from_a_file_and_from_an_api(tmp_path):
    collection = recorded("rustac/two-sentinel-2-items.json")
    (tmp_path / "items.json").write_text(json.dumps(collection))
    year = day(2024, 1, 1, days=366)
    with StacServer(collection["features"]) as server:
        from_api = find(server, periods=year, geometry=COLORADO)
    assert len(from_api) == 2
    from_file = find(tmp_path, periods=year, geometry=COLORADO)
    assert from_file == from_api


def test_the_recorded_parquet_equals_its_own_table():
    path = STAC / "rustac/100-sentinel-2-items.parquet"
    if not path.is_file():
        pytest.skip(f"recorded answer {path.name} is not beside the project")
    denver = shapely.box(-105.2, 39.9, -104.9, 40.2)
    scenes = find(path, periods=day(2024, 1, 1, days=366), geometry=denver)
    table = pq.read_table(path, columns=["id", "eo:cloud_cover", "geometry", "s2:processing_baseline"]).to_pylist()
    want = {r["id"]: r for r in table if shapely.from_wkb(r["geometry"]).intersects(denver)}
    assert want
    assert {s.id: s.cloud_pct for s in scenes} == {k: r["eo:cloud_cover"] for k, r in want.items()}
    assert all(s.sign and s.boa_offset == 0 and len(s.assets) == 13 for s in scenes)
    assert all(s.version.startswith(want[s.id]["s2:processing_baseline"]) for s in scenes)
