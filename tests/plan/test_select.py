"""Candidates of a cell: half-open periods, a total order, and nothing that depends on the request."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Transformer

from pipeline.config import InputSettings
from pipeline.plan.select import Rule, Selector, cell_candidates, cell_polygon, newest_versions, rule_of
from pipeline.types import CELL_PX, Asset, Cell, Period
from tests.plan.scenes import START
from tests.plan.scenes import scene as over

PERIODS = tuple(
    Period(index=i, start=START + timedelta(days=30 * i), end=START + timedelta(days=30 * (i + 1))) for i in range(3)
)
SIDE_M = CELL_PX * 10
CELL = Cell(zone=32, row=-260, col=24)  # 47.9..48.1 N, 8.9..9.2 E
COMPOSITES = {"sentinel2_l2a": "scl_first_valid", "sentinel1": "first_valid", "landsat": "first_valid"}


def scene(name, *, shape=None, **more):
    """A scene over the cell, or over ``shape``."""
    return over(name, shape or cell_polygon(CELL).envelope, **more)


def choose(scenes, *, cell=CELL, periods=PERIODS, cloud=100.0, limit=24, sensor="sentinel2_l2a", composite="", **more):
    composite = composite or COMPOSITES[sensor]
    rule = Rule(sensor=sensor, composite=composite, max_cloud_pct=cloud, max_candidates=limit, **more)
    return cell_candidates(scenes, cell=cell, periods=periods, rule=rule)


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


def strip(west, east):
    """A part of the cell's bounding box, by shares of its width."""
    x_min, y_min, x_max, y_max = cell_polygon(CELL).bounds
    width = x_max - x_min
    return shapely.box(x_min + west * width, y_min - 0.01, x_min + east * width, y_max + 0.01)


def test_ground_that_the_best_scenes_do_not_cover_keeps_the_best_of_the_others():
    west, east = strip(-0.1, 0.6), strip(0.4, 1.1)
    scenes = [scene(f"w{i}", cloud=float(i), shape=west) for i in range(4)]
    scenes += [scene(f"e{i}", cloud=50.0 + i, shape=east) for i in range(4)]
    assert ids(scenes, limit=3)[0] == ("w0", "w1", "w2", "e0")


def test_a_sliver_beyond_the_best_scenes_keeps_no_other():
    scenes = [scene("a", cloud=0.0, shape=strip(-0.1, 0.993)), scene("b", shape=strip(0.1, 1.1))]
    assert ids(scenes, limit=1)[0] == ("a",)


def test_own_zone_comes_first_where_cloud_is_equal():
    scenes = [
        scene("a", cloud=5.0, days=3, acquisition="S2A_20240301T101021_31UGP"),
        scene("b", cloud=5.0, days=1, acquisition="S2A_20240301T101021_32TMT"),
        scene("c", cloud=5.0, days=2, acquisition="S2A_20240302T101021_32TMT"),
        scene("d", cloud=4.0, days=1, acquisition="S2B_20240301T101021_31UGP"),
    ]
    assert ids(scenes)[0] == ("d", "c", "b", "a")


def test_a_scene_without_a_tile_counts_as_of_the_zone_of_its_middle():
    astride = shapely.box(5.0, 47, 9.5, 49)  # the middle, 7.25 E, lies in zone 32
    scenes = [
        scene("a", cloud=5.0, days=3, shape=shapely.box(2.0, 47, 9.5, 49), sensor="landsat"),
        scene("b", cloud=5.0, days=1, shape=astride, sensor="landsat"),
    ]
    assert ids(scenes, sensor="landsat")[0] == ("b", "a")


def test_sentinel1_is_ordered_newest_first_and_by_nothing_else():
    over = shapely.box(2.0, 47, 9.5, 49)  # the middle lies in zone 31
    scenes = [
        scene("b", days=1, cloud=None, sensor="sentinel1"),
        scene("a", days=1, cloud=50.0, shape=over, sensor="sentinel1"),
        scene("c", days=2, cloud=99.0, shape=over, sensor="sentinel1"),
    ]
    assert ids(scenes, sensor="sentinel1")[0] == ("c", "a", "b")


def test_only_scenes_of_the_sensor_are_candidates_and_the_sensor_is_said():
    scenes = [scene("a"), scene("a", sensor="sentinel1"), scene("b", sensor="landsat")]
    for sensor, expected in (("sentinel2_l2a", ("a",)), ("sentinel1", ("a",)), ("landsat", ("b",))):
        got = choose(scenes, sensor=sensor)[0]
        assert (got.scene_ids, got.sensor) == (expected, sensor)


@pytest.mark.parametrize(
    ("orbit", "expected"), [("any", ("a", "d", "u")), ("ascending", ("a",)), ("descending", ("d",))]
)
def test_the_orbit_is_as_asked_and_an_unknown_one_is_none(orbit, expected):
    scenes = [scene(o[:1] or "u", orbit=o, sensor="sentinel1") for o in ("ascending", "descending", "")]
    assert ids(scenes, sensor="sentinel1", orbit=orbit)[0] == expected


def test_a_rule_is_what_the_sensor_is_told_in_the_configuration():
    inputs = InputSettings.model_validate(
        {
            "sensors": ["sentinel2_l2a", "sentinel1", "landsat"],
            "sentinel2": {"composite": "median", "max_cloud_pct": 30, "max_candidates": 5},
            "sentinel1": {"orbit": "ascending", "max_candidates": 6},
            "landsat": {"max_cloud_pct": 40, "composite": "rslearn_mosaic"},
        }
    )
    assert [rule_of(inputs, sensor) for sensor in inputs.sensors] == [
        Rule(sensor="sentinel2_l2a", composite="median", max_cloud_pct=30, max_candidates=5, orbit="any"),
        Rule(sensor="sentinel1", composite="first_valid", max_cloud_pct=100, max_candidates=6, orbit="ascending"),
        Rule(sensor="landsat", composite="rslearn_mosaic", max_cloud_pct=40, max_candidates=24, orbit="any"),
    ]


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
    assert choose([replace(a, orbit="ascending", acquisition="x"), b])[0].fingerprint == first
    assert choose([replace(a, boa_offset=1000), b])[0].fingerprint != first
    assert choose([replace(a, check_offset=True), b])[0].fingerprint != first
    assert choose([replace(a, quantity="sigma0"), b])[0].fingerprint != first
    radar = [replace(s, sensor="sentinel1") for s in (a, b)]
    assert choose(radar, sensor="sentinel1")[0].fingerprint != first
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
        got = selector.candidates(cell, periods=PERIODS, rule=rule_of(InputSettings(), "sentinel2_l2a"))
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
    assert sorted(found) == ["e", "w"]


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


def test_the_highest_baseline_wins_over_a_later_generation_and_a_known_one_over_none():
    high = scene("high", shape=GRANULE, version="05.11@2024-01-01T00:00:00.000000Z", acquisition="g")
    late = scene("late", shape=GRANULE, version="05.10@2024-09-01T00:00:00.000000Z", acquisition="g")
    unsaid = scene("unsaid", shape=GRANULE, version="@2025-01-01T00:00:00.000000Z", acquisition="g")
    assert versions(unsaid, late, high) == ["high"]
    assert versions(unsaid, late) == ["late"]


def test_of_three_parts_only_the_covered_one_goes():
    whole = scene("whole", shape=GRANULE, version="1", acquisition="g")
    north = scene("north", shape=shapely.box(8, 48, 10, 49), version="2", acquisition="g")
    again = scene("again", shape=shapely.box(8, 48, 10, 49), version="3", acquisition="g")
    assert versions(whole, north, again) == ["whole", "again"]


def test_scenes_of_two_sensors_are_never_versions():
    a = scene("a", shape=GRANULE, version="1", acquisition="g")
    b = scene("b", shape=GRANULE, version="2", acquisition="g", sensor="landsat")
    assert versions(a, b) == ["a", "b"]


def test_a_newer_version_elsewhere_replaces_nothing_in_this_cell():
    # By what touches the cell alone: whether the newer one was found must not depend on the area of the request.
    x_min, y_min, x_max, y_max = cell_polygon(CELL).bounds
    old = scene("old", shape=shapely.box(x_min, y_min, x_max + 9, y_max), version="1", acquisition="g")
    new = scene("new", shape=shapely.box(x_max + 0.1, y_min, x_max + 9, y_max), version="2", acquisition="g")
    assert versions(old, new) == ["new"]
    assert ids([old, new])[0] == ("old",)


def test_equal_versions_are_settled_by_id():
    pair = [scene(n, shape=GRANULE, version="1", acquisition="g") for n in ("b", "a")]
    assert versions(*pair) == versions(*reversed(pair)) == ["a"]


def test_of_equal_versions_the_one_with_a_certain_offset_stays():
    a = scene("a", shape=GRANULE, version="1", acquisition="g", check_offset=True)
    b = scene("b", shape=GRANULE, version="1", acquisition="g")
    assert versions(a, b) == ["b"]


def test_a_superseded_scene_is_left_out_even_where_the_new_one_is_too_cloudy():
    old = scene("old", shape=GRANULE, version="1", acquisition="g", cloud=5.0)
    new = scene("new", shape=GRANULE, version="2", acquisition="g", cloud=95.0)
    assert ids([old, new], cloud=50.0)[0] == ()
