"""Traps of selection: versions and halves of granules, overlaps, coverage, periods, orders, clouds."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import numpy as np
import shapely

from pipeline.plan import catalog, item_values, select, sentinel2_items
from pipeline.plan.items import scene_from_item
from pipeline.plan.select import Rule, Selector, cell_candidates, cell_polygon
from pipeline.read import scores
from pipeline.types import Cell
from tests.plan.catalog_items import PERIODS, api, find, item, names
from tests.servers.stac import StacServer
from tests.traps.grounds import SELF
from tests.traps.traps import swap, trap

CELL = Cell(zone=32, row=-263, col=29)  # 48.3..48.5 N, 10.3..10.6 E
RULE = Rule(sensor="sentinel2_l2a", composite="scl_first_valid")
WHOLE = cell_polygon(CELL).envelope.buffer(0.05)
GRANULE = {"s2:mgrs_tile": "32UPU", "s2:datatake_id": "GS2B_20240302T100000_012081_N05.00"}
BASELINE, MADE = "s2:processing_baseline", "s2:generation_time"


def part(west, east):
    """A part of the ground of ``WHOLE``, by shares of its width."""
    x_min, y_min, x_max, y_max = WHOLE.bounds
    return shapely.box(x_min + west * (x_max - x_min), y_min, x_min + east * (x_max - x_min), y_max)


def scene(name, *, shape=WHOLE, cloud=10.0, without=(), **more):
    made = item(name, shape=shape, **{"eo:cloud_cover": cloud} | more)
    for key in without:
        del made["properties"][key]
    return scene_from_item(made, base=SELF, sign=False)


def chosen(*scenes, rule=RULE, periods=PERIODS[:1]):
    """Candidates' ids of each period of the cell."""
    return [c.scene_ids for c in cell_candidates(scenes, cell=CELL, periods=periods, rule=rule)]


def found_in(*items):
    with StacServer(items) as server:
        return names(api(server))


# --- 5: versions and halves -------------------------------------------------------------------------------------------


@trap(5, off=swap(select, "_outdated", lambda *_, **__: set()))
def a_granule_that_was_processed_again_is_taken_once_with_its_highest_baseline(folder, patch):
    new, old = item("a-new", **GRANULE | {BASELINE: "05.11"}), item("b-old", **GRANULE | {BASELINE: "02.12"})
    assert found_in(old, new) == ["a-new"]
    assert chosen(*(scene(n, **GRANULE | {BASELINE: b}) for n, b in (("n", "05.11"), ("o", "02.12")))) == [("n",)]


@trap(5, off=swap(sentinel2_items, "_version", lambda found, baseline: f"{baseline:05.2f}@"))
def of_one_baseline_the_latest_generation_is_taken(folder, patch):
    first = item("a", **GRANULE, **{MADE: "2024-03-02T12:00:00Z"})
    later = item("b", **GRANULE, **{MADE: "2024-03-02T18:00:00Z"})
    assert found_in(first, later) == ["b"]


@trap(5, off=swap(select, "_covered", lambda *_, **__: True))
def halves_of_a_granule_that_was_split_over_two_datastrips_complete_each_other(folder, patch):
    west, east = part(0, 0.55), part(0.45, 1)
    assert found_in(item("w", shape=west, **GRANULE), item("e", shape=east, **GRANULE)) == ["e", "w"]
    assert chosen(scene("w", shape=west, **GRANULE), scene("e", shape=east, **GRANULE)) == [("e", "w")]


@trap(5, off=swap(select, "SAME_GROUND", 1.0))
def a_newer_version_of_nearly_the_same_ground_replaces_the_older_one(folder, patch):
    old = scene("a-old", shape=part(0, 1), **GRANULE)
    new = scene("b-new", shape=part(0, 0.93), **GRANULE | {BASELINE: "05.11"})
    assert chosen(old, new) == [("b-new",)]


# --- 6: overlaps ------------------------------------------------------------------------------------------------------


@trap(6, off=swap(select, "_zone", lambda *_: 0))
def of_equally_clear_tiles_the_one_in_the_cells_own_zone_comes_first(folder, patch):
    take = {"s2:datatake_id": "GS2B_20240302T100000_012081_N05.00"}
    other = scene("a", days=2, **take | {"s2:mgrs_tile": "31UGP"})
    own, clearer = scene("b", days=1, **take | {"s2:mgrs_tile": "32UPU"}), scene("c", cloud=9.0, **take)
    assert chosen(other, own, replace(clearer, acquisition="S2B_20240302T100000_31UGQ")) == [("c", "b", "a")]


# --- 7: coverage ------------------------------------------------------------------------------------------------------


@trap(7, off=swap(select, "GAP_SHARE", 1.0))
def a_scene_beyond_the_cap_stays_where_it_alone_covers_ground(folder, patch):
    west = [scene(f"w{i}", cloud=float(i), shape=part(0, 0.6)) for i in range(3)]
    east = [scene(f"e{i}", cloud=50.0 + i, shape=part(0.4, 1)) for i in range(3)]
    assert chosen(*west, *east, rule=replace(RULE, max_candidates=2)) == [("w0", "w1", "e0")]


@trap(7, off=swap(scores, "CLASS_WEIGHTS", tuple(p for p in scores.CLASS_WEIGHTS if p[0] != 0)))
def a_clear_sliver_does_not_outrank_a_whole_scene_with_a_cloud(folder, patch):
    sliver, whole = np.zeros((64, 64), np.uint8), np.full((64, 64), 4, np.uint8)
    sliver[:, :3] = 4
    whole[:8, :8] = 9
    assert scores.by_classes(whole).score < scores.by_classes(sliver).score


# --- 16: closed intervals ---------------------------------------------------------------------------------------------

_candidates = Selector.candidates


def _closed(self, cell, *, periods, rule):
    closed = tuple(replace(p, end=p.end + timedelta(microseconds=1)) for p in periods)
    return _candidates(self, cell, periods=closed, rule=rule)


EDGES = [("first", 0), ("between", 30), ("end", 90)]


@trap(16, off=swap(Selector, "candidates", _closed))
def an_instant_between_two_periods_belongs_to_the_later_one_only(folder, patch):
    scenes = [scene(name, days=days) for name, days in EDGES]
    assert chosen(*scenes, periods=PERIODS) == [("first",), ("between",), ()]


_acquired_of = catalog.acquired_of


@trap(16, off=swap(catalog, "acquired_of", lambda found: _acquired_of(found) - timedelta(microseconds=1)))
def the_end_of_the_last_period_is_not_in_it_although_the_api_answers_so(folder, patch):
    with StacServer([item(name, days=days) for name, days in EDGES]) as server:
        assert names(api(server)) == ["between", "first"]


_first_time = item_values.first_time


@trap(16, off=swap(item_values, "first_time", lambda properties, keys: _first_time(properties, keys[:1])))
def an_item_without_an_instant_is_taken_at_its_start(folder, patch):
    span = {"start_datetime": "2024-03-05T10:00:00Z", "end_datetime": "2024-04-20T10:00:00Z"}
    with StacServer([item("span", **span | {"datetime": None})]) as server:
        (got,) = find(api(server))
    assert got.acquired.isoformat() == "2024-03-05T10:00:00+00:00"
    assert chosen(scene("span", **span | {"datetime": None}), periods=PERIODS) == [("span",), (), ()]


# --- 17: order --------------------------------------------------------------------------------------------------------


def _as_given(self, rule, zone):
    return np.arange(len(self._scenes))


@trap(17, off=swap(Selector, "_order", _as_given))
def candidates_have_a_total_order_of_their_own(folder, patch):
    scenes = [
        scene("d", cloud=5.0, days=1),
        scene("c", cloud=5.0, days=2),
        scene("a", cloud=7.0, days=9),
        scene("b", cloud=5.0, days=1),
    ]
    assert chosen(*scenes) == chosen(*scenes[::-1]) == [("c", "b", "d", "a")]


def _unsorted(patch):
    patch.setattr(catalog, "sorted", list, raising=False)


@trap(17, off=_unsorted)
def the_order_of_an_answer_decides_nothing(folder, patch):
    items = [item(f"s{i}", days=i + 1) for i in (3, 1, 2)]
    with StacServer(items) as one, StacServer(items, faults={"reverse": True}) as other:
        assert find(api(one)) == find(api(other))


# --- 22: no cloud cover -----------------------------------------------------------------------------------------------


@trap(22, off=swap(select, "UNKNOWN_CLOUD", 0.0))
def a_scene_that_does_not_say_its_clouds_comes_last(folder, patch):
    assert chosen(scene("a", days=5, without=("eo:cloud_cover",)), scene("b", cloud=99.0)) == [("b", "a")]


_cloud_of = item_values.cloud_of


def _wrapped(patch):
    """As if a missing value counted as fully clouded: then a limit would leave the scene out."""
    from pipeline.plan import items

    def overcast(found):
        told = _cloud_of(found)
        return 100.0 if told is None else told

    patch.setattr(items, "cloud_of", overcast)


@trap(22, off=_wrapped)
def a_cloud_limit_spares_the_scene_that_does_not_say(folder, patch):
    silent, wrong = scene("a", without=("eo:cloud_cover",)), scene("b", cloud=-1)
    assert chosen(silent, wrong, scene("c", cloud=60.0), rule=replace(RULE, max_cloud_pct=50.0)) == [("a", "b")]
