"""Traps of searching: the antimeridian, pages, load, time limits."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import count, pairwise

import shapely
import urllib3.util.retry
from urllib3.util.retry import Retry

from pipeline.errors import DataError, InvalidInputError
from pipeline.plan import aoi, catalog, footprints, stac_api, stac_http
from pipeline.plan.catalog import ApiCatalog, open_catalog
from pipeline.plan.items import footprint_of
from pipeline.types import Period
from tests.plan.catalog_items import AREA, ITEMS, PERIODS, START, WANTED, api, item, names
from tests.servers.base import Fault
from tests.servers.stac import StacServer
from tests.traps.traps import refuses, swap, trap

YEAR = (Period(index=0, start=START, end=START + timedelta(days=366)),)
EAST, WEST = shapely.box(179.2, -17.5, 180, -17), shapely.box(-180, -17.5, -179.4, -17)
FIJI = shapely.MultiPolygon([EAST, WEST])
"""On both sides of 180 degrees."""

# --- 13: the antimeridian ---------------------------------------------------------------------------------------------


@trap(13, off=swap(catalog, "_query_parts", lambda geometry: (geometry,)))
def an_area_on_both_sides_of_180_degrees_is_asked_side_by_side(folder, patch):
    items = [item("east", shape=EAST), item("west", shape=WEST), item("far", shape=shapely.box(7, -18, 13, -17))]
    with StacServer(items, faults={"swap_bbox": True}) as server:
        assert names(api(server), geometry=FIJI, periods=PERIODS[:1]) == ["east", "west"]
        asked = [shapely.geometry.shape(s["intersects"]).bounds for s in server.searches]
    assert max(east - west for west, _, east, _ in asked) < 5


def _only_the_part(part):
    return ((part, None),)


@trap(13, off=swap(stac_api, "query_shapes", _only_the_part))
def an_item_written_beyond_180_degrees_is_found_from_the_other_side(folder, patch):
    for odd, side in ((shapely.box(-180.8, -17.6, -179.9, -17.2), EAST), (shapely.box(179.9, -17.6, 180.8, -17), WEST)):
        with StacServer([item("odd", shape=odd)]) as server:
            assert names(api(server), geometry=side, periods=PERIODS[:1]) == ["odd"]


@trap(13, off=swap(footprints, "_unwrap", lambda coordinates: coordinates))
def a_ring_that_jumps_over_180_degrees_is_not_taken_for_the_whole_world(folder, patch):
    ring = shapely.Polygon([(179.5, -18), (-179.5, -18), (-179.5, -17), (179.5, -17)])
    got = footprint_of(item("jump", shape=ring))
    assert round(got.area, 6) == 1
    assert not got.intersects(shapely.box(-170, -18, 170, -17))


def _straight(bbox):
    west, south, east, north = bbox
    return shapely.box(min(west, east), south, max(west, east), north)


def _straight_and_believed(patch):
    """Both, because what repairs rings that jump would also repair a box of the rest of the world."""
    patch.setattr(footprints, "_bbox_polygon", _straight)
    patch.setattr(footprints, "_unwrap", lambda coordinates: coordinates)


@trap(13, off=_straight_and_believed)
def a_bbox_whose_west_is_greater_than_its_east_crosses_180_degrees(folder, patch):
    got = footprint_of(item("box") | {"geometry": None, "bbox": [179.5, -18, -179.5, -17]})
    assert round(got.area, 6) == 1


_four_numbers = aoi._four_numbers


def _swapped(text):
    west, south, east, north = _four_numbers(text)
    return min(west, east), south, max(west, east), north  # as pgstac does


@trap(13, off=swap(aoi, "_four_numbers", _swapped))
def an_area_whose_west_is_greater_than_its_east_is_refused_and_not_swapped(folder, patch):
    with refuses(InvalidInputError, "cut it at the antimeridian"):
        aoi.area_from_bbox((179, 46.9, -179, 47.1))


# --- 14: paging -------------------------------------------------------------------------------------------------------


def _never_cut(self, answer, halves):
    return False


@trap(14, off=swap(ApiCatalog, "_looks_cut", _never_cut))
def a_full_last_page_is_not_believed(folder, patch):
    with StacServer(ITEMS, faults={"lose": True}) as server:
        assert names(ApiCatalog(server.url, sign=False, page_items=4)) == WANTED


@trap(14, off=swap(ApiCatalog, "_looks_cut", _never_cut))
def an_answer_of_exactly_a_servers_cap_is_not_believed(folder, patch):
    many = [item(f"m{i:03d}", days=0.1 + i * 0.2) for i in range(130)]
    with StacServer(many, faults={"cap_silently": 100}) as server:
        assert names(api(server), periods=PERIODS[:1]) == [i["id"] for i in many]


def _endless(patch):
    patch.setattr(stac_api, "STALE_PAGES", 10**9)
    patch.setattr(stac_api, "MAX_PAGES", 30)  # the next limit, lowered to keep the test short


@trap(14, off=_endless)
def pages_in_a_circle_end_soon(folder, patch):
    for fault in ("loop", "stale"):
        with StacServer(ITEMS, faults={fault: True}, page_cap=3) as server:
            with refuses(InvalidInputError, "runs in a circle"):
                names(api(server))
            assert len(server.searches) < 8


_scene = catalog._scene


def _counting_everything(patch):
    numbers = count()

    def fresh(found, **more):
        scene = _scene(found, **more)
        return replace(scene, id=f"{scene.id}-{next(numbers):04d}")

    patch.setattr(catalog, "_scene", fresh)


@trap(14, off=_counting_everything)
def an_item_that_is_on_two_pages_is_taken_once(folder, patch):
    with StacServer(ITEMS, faults={"repeat": True}, page_cap=4) as server:
        assert len(names(api(server))) == len(WANTED)


@trap(14, off=_counting_everything)
def two_items_that_share_an_id_are_refused(folder, patch):
    with (
        StacServer([item("twin", days=1), item("twin", days=2)]) as server,
        refuses(DataError, "two different items with the id twin"),
    ):
        names(api(server))


def _at_once(start, end):
    yield start, end


@trap(14, off=swap(stac_api, "_months", _at_once))
def a_year_is_asked_month_by_month(folder, patch):
    with StacServer([item(f"d{i:03d}", days=i) for i in range(0, 366, 30)]) as server:
        assert len(names(api(server), periods=YEAR)) == 13
        spans = [tuple(map(datetime.fromisoformat, s["datetime"].split("/"))) for s in server.searches]
    assert max(end - start for start, end in spans) <= timedelta(days=31)
    assert all(a[1] == b[0] for a, b in pairwise(spans))


# --- 15: load ---------------------------------------------------------------------------------------------------------

_PatientRetry = stac_http._PatientRetry


class _Impatient(_PatientRetry):
    """As urllib3 comes: a search by POST is not repeated."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options | {"allowed_methods": Retry.DEFAULT_ALLOWED_METHODS})


@trap(15, off=swap(stac_http, "_PatientRetry", _Impatient))
def a_throttled_search_by_post_is_repeated(folder, patch):
    with StacServer(ITEMS, faults={"429": 1}) as server:
        assert names(open_catalog(server.url)) == WANTED
        assert {e.method for e in server.log if e.status == 429} == {"POST"}


@trap(15, off=swap(stac_http, "RETRIED", frozenset()))
def a_server_that_is_busy_is_asked_again(folder, patch):
    for status in (429, 502, 503, 504):
        with StacServer(ITEMS, http_faults=[Fault(code=status, path="search", nth=2)]) as server:
            assert names(api(server)) == WANTED


@trap(15, off=swap(_PatientRetry, "get_retry_after", lambda self, response: None))
def retry_after_is_obeyed(folder, patch):
    waits = []
    patch.setattr(urllib3.util.retry.time, "sleep", waits.append)
    with StacServer(ITEMS, faults={"429": 1, "retry_after": "7"}) as server:
        assert names(api(server)) == WANTED
    assert 7 in waits


_request = stac_http.requests.Session.request


def _patient_for_ever(self, *args, **options):
    return _request(self, *args, **options | {"timeout": None})


@trap(15, off=swap(stac_http.requests.Session, "request", _patient_for_ever))
def a_server_that_falls_silent_is_asked_again(folder, patch):
    patch.setattr(stac_http, "READ_S", 0.5)
    with StacServer(ITEMS, http_faults=[Fault(kind="stall", seconds=1.5, path="search", nth=1)]) as server:
        assert names(api(server), periods=PERIODS[:1]) == WANTED[:8]
        assert server.connections > 1


DISC = shapely.Point(10.5, 48.5).buffer(0.3, quad_segs=1000)


@trap(15, off=swap(stac_api, "_simplified", lambda part: part))
def a_query_has_few_vertices(folder, patch):
    with StacServer([item("in")]) as server:
        assert names(api(server), geometry=DISC) == ["in"]
        asked = [shapely.geometry.shape(s["intersects"]) for s in server.searches]
    assert max(map(shapely.get_num_coordinates, asked)) <= 500
    assert all(shape.covers(DISC) for shape in asked)


def _believing(found, **more):
    return replace(_scene(found, **more), footprint=shapely.to_wkb(AREA, hex=True))


@trap(15, off=swap(catalog, "_scene", _believing))
def what_a_simplified_query_finds_too_much_is_filtered_here(folder, patch):
    corner = item("corner", shape=shapely.box(10.75, 48.75, 10.76, 48.76))  # in the disc's box, not in the disc
    with StacServer([corner, item("in")], faults={"ignore": True}) as server:
        assert names(api(server), geometry=DISC) == ["in"]


_searched = ApiCatalog._searched


def _side_by_side(self, shape, spare, *, start, end, **more):
    def month(span):
        return list(_searched(self, shape, spare, start=span[0], end=span[1], **more))

    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(month, list(stac_api._months(start, end))):
            yield from found


@trap(15, off=swap(ApiCatalog, "_searched", _side_by_side))
def searches_are_made_one_after_the_other(folder, patch):
    with StacServer(ITEMS, delay_s=0.03) as server:
        assert names(api(server), periods=YEAR) == WANTED
        assert server.peak_in_flight == 1
