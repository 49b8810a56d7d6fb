"""A STAC API that misbehaves loses nothing and never hangs."""

from __future__ import annotations

import logging
import random
import socket
from datetime import datetime, timedelta
from itertools import pairwise

import pytest
import shapely
from catalog_items import ITEMS, PERIODS, START, WANTED, api, find, item, names

from pipeline.errors import DataError, InvalidInputError, TransientError
from pipeline.plan.catalog import ApiCatalog, open_catalog, redact
from pipeline.types import Period
from tests.servers.base import json_reply
from tests.servers.stac import StacServer


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
    assert [round(w.bounds[2] - w.bounds[0]) for w in widths] == [1] * 4  # each part twice, beyond 180 degrees too


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


def test_an_answer_of_a_round_number_of_items_is_not_believed():
    many = [item(f"m{i:03d}", days=0.1 + i * 0.2) for i in range(130)]
    with StacServer(many, faults={"cap_silently": 100}) as server:
        assert names(api(server), periods=PERIODS[:1]) == [i["id"] for i in many]


class Counting(StacServer):
    """Says how many items match, as ``count`` has it."""

    count = staticmethod(len)

    def _page(self, asked, method):
        page = super()._page(asked, method)
        cap = self.faults.pop("cap_silently")
        page["numberMatched"] = self.count(self._found(asked))
        self.faults["cap_silently"] = cap
        return page


def test_fewer_items_than_the_server_counts_are_not_believed():
    with Counting(ITEMS, faults={"cap_silently": 3}) as server:
        assert names(api(server)) == WANTED


def test_a_server_that_only_estimates_its_counts_is_not_asked_for_ever():
    with Counting(ITEMS, faults={"cap_silently": None}) as server:
        server.count = lambda found: 10_000
        assert names(api(server)) == WANTED
        assert len(server.searches) == len(PERIODS) + 2


def test_a_long_period_is_asked_month_by_month_and_nothing_falls_between():
    year = (Period(index=0, start=START, end=START + timedelta(days=366)),)
    edges = [item(f"d{i:03d}", days=i) for i in range(0, 366, 3)]
    with StacServer(edges) as server:
        assert names(api(server), periods=year) == [i["id"] for i in edges]
        spans = [tuple(map(datetime.fromisoformat, s["datetime"].split("/"))) for s in server.searches]
    assert len(spans) == 13
    assert max(end - start for start, end in spans) <= timedelta(days=31)
    assert all(a[1] == b[0] for a, b in pairwise(spans))


def test_searches_are_made_one_after_the_other():
    year = (Period(index=0, start=START, end=START + timedelta(days=366)),)
    with StacServer(ITEMS, delay_s=0.01, page_cap=3) as server:
        names(api(server), periods=year)
        assert server.peak_in_flight == 1


def test_the_order_of_the_answer_decides_nothing():
    with StacServer(ITEMS) as one, StacServer(ITEMS, faults={"reverse": True}, page_cap=4) as other:
        assert find(api(one)) == find(api(other))


class Strict(StacServer):
    """Refuses longitudes beyond 180, as a server may."""

    def _search(self, asked, method):
        west, _, east, _ = shapely.geometry.shape(asked["intersects"]).bounds
        return json_reply({}, status=400) if west < -180 or east > 180 else super()._search(asked, method)


@pytest.mark.parametrize("side", [1, -1])
@pytest.mark.parametrize(
    ("server", "edge"),
    [(StacServer, -179.9), (StacServer, -180.3), (Strict, -179.9)],
    ids=["across", "beyond", "strict"],
)
def test_an_item_written_beyond_180_degrees_is_found_from_the_other_side(server, edge, side):
    def mirrored(box):
        return shapely.affinity.scale(box, side, 1, origin=(0, 0))

    odd = item("odd", shape=mirrored(shapely.box(-180.8, -17.6, edge, -17.2)))
    with server([odd, item("far", shape=shapely.box(7, -17.6, 13, -17.2))]) as running:
        assert names(api(running), geometry=mirrored(shapely.box(179.3, -17.5, 179.8, -17.3))) == ["odd"]


def test_an_area_away_from_180_degrees_is_asked_once():
    with StacServer([]) as server:
        names(api(server), geometry=shapely.box(170, 60, 171, 61), periods=PERIODS[:1])
        assert len(server.searches) == 1


def test_a_damaged_item_of_another_time_or_collection_hurts_nobody():
    early, foreign = item("early", days=-1) | {"id": "../early"}, item("foreign", collection="other") | {"id": "../f"}
    with StacServer([early, foreign, item("good")], faults={"ignore": True}) as server:
        assert names(api(server)) == ["good"]


def test_a_collection_id_is_quoted_when_it_is_looked_up():
    with StacServer([]) as server:
        with pytest.raises(InvalidInputError, match="no collection"):
            find(api(server), collection="a/../b?c", periods=PERIODS[:1])
        assert server.log[-1].target == "/v1/collections/a%2F..%2Fb%3Fc"


def test_an_api_that_offers_search_by_get_only_is_asked_by_get():
    with StacServer(ITEMS, page_cap=4) as server:
        server.landing = {"type": "Catalog", "id": "a", "links": [{"rel": "search", "href": "search", "method": "GET"}]}
        assert names(api(server)) == WANTED
        assert {e.method for e in server.log} == {"GET"}
        assert {"bbox" in s for s in server.searches} == {True}


@pytest.mark.parametrize("href", ["/v1/search", "search"])
@pytest.mark.parametrize("faults", [{}, {"get": True}])
def test_a_next_link_may_be_relative(href, faults):
    with StacServer(ITEMS, faults=faults | {"next": href}, page_cap=4) as server:
        assert names(api(server)) == WANTED


def test_a_next_link_that_is_no_search_is_refused():
    class Deleting(StacServer):
        def _page(self, asked, method):
            page = super()._page(asked, method)
            return page | {"links": [link | {"method": "DELETE"} for link in page["links"]]}

    with Deleting(ITEMS, page_cap=2) as server:
        with pytest.raises(InvalidInputError, match="'DELETE': refused"):
            find(api(server))
        assert {e.method for e in server.log} == {"GET", "POST"}


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
