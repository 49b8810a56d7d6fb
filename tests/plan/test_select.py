"""Candidates of a cell: half-open periods, a total order, and nothing that depends on the request."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Transformer

from pipeline.plan.select import Selector, cell_candidates, cell_polygon, newest_versions
from pipeline.types import CELL_PX, Asset, Cell, Period, Scene

START = datetime(2024, 3, 1, tzinfo=UTC)
PERIODS = tuple(
    Period(index=i, start=START + timedelta(days=30 * i), end=START + timedelta(days=30 * (i + 1))) for i in range(3)
)
SIDE_M = CELL_PX * 10
CELL = Cell(zone=32, row=-260, col=24)  # 47.9..48.1 N, 8.9..9.2 E


def scene(name, *, shape=None, days=1.0, cloud=10.0, **more):
    where = shape or cell_polygon(CELL).envelope
    return Scene(
        id=name,
        collection="c",
        sensor="sentinel2_l2a",
        acquired=START + timedelta(days=days),
        cloud_pct=cloud,
        footprint=shapely.to_wkb(where, hex=True),
        assets=(),
        **more,
    )


def choose(scenes, *, cell=CELL, periods=PERIODS, cloud=100.0, limit=24):
    return cell_candidates(scenes, cell=cell, periods=periods, max_cloud_pct=cloud, max_candidates=limit)


def ids(scenes, **more):
    return [c.scene_ids for c in choose(scenes, **more)]


def test_every_period_gets_candidates_even_without_scenes():
    got = choose([])
    assert [(c.cell, c.period, c.scene_ids) for c in got] == [(CELL, 0, ()), (CELL, 1, ()), (CELL, 2, ())]


def test_an_instant_between_two_periods_belongs_to_the_later_one():
    tick = 1e-6 / 86400
    scenes = [scene("at", days=30), scene("before", days=30 - 2 * tick), scene("first", days=0), scene("end", days=90)]
    assert ids(scenes) == [("before", "first"), ("at",), ()]


def test_the_order_is_cloud_then_newest_then_id_and_unknown_cloud_last():
    scenes = [
        scene("f", cloud=None),
        scene("e", cloud=90.0),
        scene("d", cloud=5.0, days=1),
        scene("c", cloud=5.0, days=2),
        scene("b", cloud=5.0, days=1),
        scene("a", cloud=0.0, days=1),
    ]
    assert ids(scenes)[0] == ("a", "c", "b", "d", "e", "f")


def test_the_cloud_limit_includes_itself_and_spares_the_unknown():
    scenes = [scene("a", cloud=20.0), scene("b", cloud=20.1), scene("c", cloud=None)]
    assert ids(scenes, cloud=20.0)[0] == ("a", "c")


def test_the_cap_keeps_the_best():
    scenes = [scene(f"s{i}", cloud=float(i)) for i in range(10)]
    assert ids(scenes, limit=3)[0] == ("s0", "s1", "s2")


@given(st.permutations(range(12)))
@settings(max_examples=30, deadline=None)
def test_the_order_of_the_catalogue_decides_nothing(order):
    rng = random.Random(5)
    scenes = [scene(f"s{i}", cloud=rng.choice([1.0, 2.0, None]), days=rng.choice([1, 2, 40])) for i in range(12)]
    assert choose([scenes[i] for i in order]) == choose(scenes)


def test_scenes_elsewhere_decide_nothing():
    near = [scene(f"s{i}", cloud=float(i)) for i in range(3)]
    far = [scene(f"f{i}", cloud=0.0, shape=shapely.box(20 + i, 10, 21 + i, 11)) for i in range(30)]
    assert choose(near + far, limit=2) == choose(near, limit=2)


def test_the_fingerprint_changes_with_everything_of_the_candidates_that_decides_pixels():
    a, b = scene("a", version="05.00@1"), scene("b", cloud=20.0)
    first = choose([a, b])[0].fingerprint
    assert choose([b, a])[0].fingerprint == first
    moved = tuple(replace(asset, href=f"elsewhere/{asset.band}.tif") for asset in a.assets)
    assert choose([replace(a, assets=moved), b])[0].fingerprint == first
    assert choose([b, replace(a, cloud_pct=30.0)])[0].fingerprint != first
    assert choose([replace(a, boa_offset=1000), b])[0].fingerprint != first
    assert choose([replace(a, assets=(*a.assets, Asset(band="B13", href="x"))), b])[0].fingerprint != first
    assert choose([replace(a, version="05.11@2"), b])[0].fingerprint != first
    assert choose([a])[0].fingerprint != first
    assert choose([a, b], limit=1)[0].fingerprint == choose([a])[0].fingerprint


def test_one_selector_serves_many_cells_as_if_asked_one_by_one():
    cells = [
        Cell(zone=zone, row=row, col=col) for zone in (31, 32) for row in (-261, -260, 100) for col in (23, 24, 25)
    ]
    shapes = [cell_polygon(c) for c in cells]
    scenes = [scene(f"s{i}", shape=s, cloud=float(i)) for i, s in enumerate(shapes)]
    selector = Selector(scenes)
    for cell in cells:
        got = selector.candidates(cell, periods=PERIODS, max_cloud_pct=100, max_candidates=24)
        assert got == choose(scenes, cell=cell)
        assert got[0].scene_ids


@pytest.mark.parametrize(("zone", "row"), [(32, -260), (32, 0), (32, -1), (33, 150), (60, 260), (1, -340), (20, 430)])
@pytest.mark.parametrize("col", [9, 24, 39])
def test_the_polygon_of_a_cell_is_the_cell_in_both_hemispheres(zone, row, col):
    cell = Cell(zone=zone, row=row, col=col)
    # Truth by the CRS of the hemisphere, as rasters of that hemisphere are written.
    south = row >= 0
    crs = (32700 if south else 32600) + zone
    x, y = (col + 0.5) * SIDE_M, -(row + 0.5) * SIDE_M + (1e7 if south else 0)
    inward = np.array([[-0.499, -0.499], [0.499, 0.499], [0, 0]]) * SIDE_M
    outward = np.array([[-0.501, 0], [0, 0.501], [0.501, 0.501]]) * SIDE_M
    polygon = cell_polygon(cell)
    for offsets, inside in ((inward, True), (outward, False)):
        lons, lats = Transformer.from_crs(crs, 4326, always_xy=True).transform(x + offsets[:, 0], y + offsets[:, 1])
        assert shapely.contains_xy(polygon, lons, lats).tolist() == [inside] * len(offsets)


@pytest.mark.parametrize(("zone", "col"), [(1, 8), (60, 40)])
def test_a_cell_over_the_antimeridian_finds_scenes_on_both_sides(zone, col):
    # Cell 8 of zone 1 (and its mirror 40 of zone 60) lies across 180 degrees at the equator.
    cell = Cell(zone=zone, row=-1, col=col)
    polygon = cell_polygon(cell)
    assert polygon.geom_type == "MultiPolygon"
    assert polygon.bounds[0] == -180
    assert polygon.bounds[2] == 180
    east, west = shapely.box(-180, 0, -179, 1), shapely.box(179, 0, 180, 1)
    elsewhere = shapely.box(-1, 0, 1, 1)
    found = ids([scene("e", shape=east), scene("w", shape=west), scene("x", shape=elsewhere)], cell=cell)[0]
    assert found == ("e", "w")


def test_a_cell_beside_the_antimeridian_stays_on_its_side():
    polygon = cell_polygon(Cell(zone=1, row=-1, col=9))
    assert polygon.bounds[2] < -179


def test_a_scene_that_ends_before_the_cell_is_no_candidate():
    west, south, _, north = cell_polygon(CELL).bounds
    beside = shapely.box(west - 1, south, west - 1e-6, north)
    assert ids([scene("beside", shape=beside)])[0] == ()


GRANULE = shapely.box(8.0, 47.0, 10.0, 49.0)


def versions(*scenes, whole=False):
    kept = newest_versions(scenes, [shapely.from_wkb(s.footprint) for s in scenes], whole=whole)
    return [s.id for s in kept]


def test_the_newest_version_of_a_granule_replaces_the_others():
    old = scene("old", shape=GRANULE, version="02.12@2020-01-01", acquisition="g")
    redone = scene("redone", shape=GRANULE, version="05.00@2023-01-01", acquisition="g")
    again = scene("again", shape=GRANULE, version="05.00@2023-02-01", acquisition="g")
    assert versions(old, again, redone) == ["again"]
    assert ids([old, redone, again])[0] == ("again",)


def test_a_granule_split_over_two_datastrips_keeps_both_parts():
    north, south = shapely.box(8, 47.9, 10, 49), shapely.box(8, 47, 10, 48)
    pair = [
        scene("n", shape=north, acquisition="g", version="2"),
        scene("s", shape=south, acquisition="g", version="1"),
    ]
    assert versions(*pair) == ["n", "s"]


def test_a_small_new_version_does_not_replace_a_large_old_one():
    old = scene("old", shape=GRANULE, version="1", acquisition="g")
    new = scene("new", shape=shapely.box(8, 47, 9, 48), version="2", acquisition="g")
    assert versions(old, new) == ["old", "new"]


def test_nine_tenths_of_the_ground_are_enough_in_a_cell_but_not_before_cells_are_known():
    old = scene("old", shape=GRANULE, version="1", acquisition="g")
    new = scene("new", shape=shapely.box(8.0, 47.0, 10.0, 48.9), version="2", acquisition="g")
    assert versions(old, new) == ["new"]
    assert versions(old, new, whole=True) == ["old", "new"]


@pytest.mark.parametrize("acquisition", ["", "other"])
def test_scenes_of_other_or_unknown_overpasses_are_never_versions(acquisition):
    a = scene("a", shape=GRANULE, version="1", acquisition="g" if acquisition else "")
    b = scene("b", shape=GRANULE, version="2", acquisition=acquisition)
    assert versions(a, b) == ["a", "b"]


def test_equal_versions_are_settled_by_id():
    pair = [scene(n, shape=GRANULE, version="1", acquisition="g") for n in ("b", "a")]
    assert versions(*pair) == versions(*reversed(pair)) == ["a"]


def test_a_superseded_scene_is_left_out_even_where_the_new_one_is_too_cloudy():
    old = scene("old", shape=GRANULE, version="1", acquisition="g", cloud=5.0)
    new = scene("new", shape=GRANULE, version="2", acquisition="g", cloud=95.0)
    assert ids([old, new], cloud=50.0)[0] == ()
