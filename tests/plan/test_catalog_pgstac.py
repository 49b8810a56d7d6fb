"""The engine of the Planetary Computer's API, asked by our client; see tests/servers/pgstac.py for how to start one."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
import uuid
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
import shapely

from pipeline.errors import InvalidInputError
from pipeline.plan.catalog import ApiCatalog, find, scenes_of
from pipeline.plan.items import BAND_RES_M
from pipeline.types import Period

pytestmark = pytest.mark.integration

START = datetime(2024, 3, 1, tzinfo=UTC)
PERIODS = tuple(
    Period(index=i, start=START + timedelta(days=30 * i), end=START + timedelta(days=30 * (i + 1))) for i in range(3)
)
AREA = shapely.box(10.2, 48.2, 10.8, 48.8)
FIJI = shapely.MultiPolygon([shapely.box(179, -18, 180, -17), shapely.box(-180, -18, -179, -17)])


def item(name, *, days=1.0, shape=None, **properties):
    shape = shape or shapely.box(10, 48, 11, 49)
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "geometry": shapely.geometry.mapping(shape),
        "bbox": list(shape.bounds),
        "properties": {
            "datetime": (START + timedelta(days=days)).isoformat().replace("+00:00", "Z"),
            "eo:cloud_cover": 10.0,
            "s2:processing_baseline": "05.10",
        }
        | properties,
        "assets": {band: {"href": f"https://data.example/{name}/{band}.tif"} for band in BAND_RES_M},
        "links": [],
    }


EAST = shapely.box(179.2, -17.6, 179.9, -17.2)
WEST = shapely.box(-179.9, -17.6, -179.2, -17.2)
ITEMS = [
    *(item(f"s{i:02d}", days=i * 3.0 + 0.5) for i in range(29)),
    item("edge-start", days=0),
    item("edge-between", days=30),
    item("edge-end", days=90),
    item("early", days=-0.001),
    item("elsewhere", shape=shapely.box(20, 48, 21, 49)),
    item("east", shape=EAST),
    item("west", shape=WEST),
    # Written with longitudes below -180.
    item("across", shape=shapely.box(-180.8, -17.6, -179.9, -17.2)),
    item("beyond", shape=shapely.box(-180.8, -17.6, -180.1, -17.2)),
    item("both", shape=shapely.MultiPolygon([EAST, WEST])),
    item("far", shape=shapely.box(7, -17.6, 13, -17.2)),  # where a bbox with west > east ends up
]
HERE = sorted([*(f"s{i:02d}" for i in range(29)), "edge-start", "edge-between"])


def send(url, body=None, *, method):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, method=method, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def collection(name):
    extent = {"spatial": {"bbox": [[-180, -90, 180, 90]]}, "temporal": {"interval": [[None, None]]}}
    return {
        "type": "Collection",
        "id": name,
        "stac_version": "1.0.0",
        "description": "test",
        "license": "other",
        "extent": extent,
        "links": [],
    }


@pytest.fixture(scope="module")
def server():
    """Landing page and a collection of its own, which is removed again."""
    url = os.environ.get("EARTHPRESS_TEST_PGSTAC", "").rstrip("/")
    if not url:
        pytest.skip("EARTHPRESS_TEST_PGSTAC is not set: start a server with tests/servers/pgstac.py")
    name = f"sentinel-2-test-{uuid.uuid4().hex[:12]}"
    send(f"{url}/collections", collection(name), method="POST")
    try:
        for one in ITEMS:
            send(f"{url}/collections/{name}/items", one | {"collection": name}, method="POST")
        yield url, name
    finally:
        send(f"{url}/collections/{name}", method="DELETE")


def names(server, *, geometry=AREA, periods=PERIODS, page_items=250):
    url, name = server
    catalog = ApiCatalog(url, sign=False, backoff_s=0, page_items=page_items)
    return [s.id for s in scenes_of(catalog, collection=name, geometry=geometry, periods=periods)]


@pytest.mark.parametrize("page_items", [3, 7, 250])
def test_every_item_is_found_once_through_real_pages(server, page_items):
    assert names(server, page_items=page_items) == HERE


def test_a_year_is_asked_in_slices_and_nothing_falls_between_them(server):
    year = (Period(index=0, start=START, end=START + timedelta(days=365)),)
    assert names(server, periods=year, page_items=5) == sorted([*HERE, "edge-end"])


def test_periods_are_half_open_although_the_server_answers_closed_intervals(server):
    url, name = server
    first = send(
        f"{url}/search",
        {"collections": [name], "datetime": f"{PERIODS[0].start.isoformat()}/{PERIODS[0].end.isoformat()}"},
        method="POST",
    )
    assert "edge-between" in {i["id"] for i in first["features"]}
    found = [names(server, periods=(period,)) for period in PERIODS]
    assert [("edge-start" in ids, "edge-between" in ids, "edge-end" in ids) for ids in found] == [
        (True, False, False),
        (False, True, False),
        (False, False, False),
    ]
    assert not any(set(a) & set(b) for a, b in pairwise(found))


def test_both_sides_of_the_antimeridian_are_found_and_nothing_between(server):
    assert names(server, geometry=FIJI) == ["across", "beyond", "both", "east", "west"]


def test_an_item_written_beyond_180_degrees_is_found_from_the_other_side(server):
    assert names(server, geometry=shapely.box(179.3, -17.5, 179.8, -17.3)) == ["across", "beyond", "both", "east"]


def test_the_answer_is_filtered_exactly_where_the_query_was_simplified(server):
    ring = shapely.Point(10.5, 48.5).buffer(3, quad_segs=1000).difference(shapely.Point(10.5, 48.5).buffer(2))
    assert names(server, geometry=ring) == []


def test_the_front_door_finds_the_same(server):
    url, name = server
    found = find(url, sensor="sentinel2_l2a", collection=name, geometry=AREA, periods=PERIODS)
    assert [s.id for s in found] == HERE


def test_a_collection_that_the_server_lacks_is_refused_by_name(server):
    url, _ = server
    with pytest.raises(InvalidInputError, match="no collection 'sentinel-2-nowhere'"):
        find(url, sensor="sentinel2_l2a", collection="sentinel-2-nowhere", geometry=AREA, periods=PERIODS[:1])
