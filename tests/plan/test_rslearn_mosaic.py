"""Parity with rslearn's coverage rule, on cells: fixed answers of rslearn, an independent reference, rslearn itself."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import shapely
from pyproj import Transformer

from pipeline.plan.select import Rule, Selector
from pipeline.types import CELL_PX, Cell, Period
from tests.plan.scenes import START, scene

DAYS = 30
PERIODS = tuple(
    Period(index=i, start=START + timedelta(days=DAYS * i), end=START + timedelta(days=DAYS * (i + 1)))
    for i in range(2)
)
CELL = Cell(zone=32, row=-260, col=24)  # 47.9..48.1 N, 8.9..9.2 E
RULE = Rule(sensor="sentinel2_l2a", composite="rslearn_mosaic", max_candidates=1)
SCRIPT = Path(__file__).with_name("rslearn_match.py")


def lonlat(cell, west, south, east, north):
    """A rectangle in units of the cell (0..1 from its south-west corner) as a lon/lat polygon with fine edges."""
    ring = shapely.get_coordinates(shapely.segmentize(shapely.box(west, south, east, north), 0.1))
    return to_lonlat(cell, ring)


def to_lonlat(cell, ring):
    """A ring in units of the cell as a lon/lat polygon."""
    x, y, *_ = cell.box.bounds_m
    plane = np.asarray(ring) * CELL_PX * 10 + (x, y)
    transform = Transformer.from_crs(32600 + cell.zone, 4326, always_xy=True).transform
    return shapely.polygons(np.column_stack(transform(plane[:, 0], plane[:, 1])))


def scenes_of(rectangles, *, cell=CELL):
    """One scene per rectangle, named a, b, ..., ever cloudier."""
    return [scene(chr(97 + i), lonlat(cell, *r), cloud=float(i)) for i, r in enumerate(rectangles)]


def ours(scenes, *, cell=CELL, periods=PERIODS, rule=RULE):
    return [list(c.scene_ids) for c in Selector(scenes).candidates(cell, periods=periods, rule=rule)]


EVERYTHING = (-2, -2, 3, 3)
WEST_EAST_STRIP = (-10, 0.50, 10, 0.55)  # 1 km x 410 km: a tenth of its own area only after it was cut to 190 km
CASES = {
    "one scene covers all": scenes_of([EVERYTHING, EVERYTHING]),
    "two halves, then nothing is missing": scenes_of([(-1, -1, 0.5, 2), (0.5, -1, 2, 2), EVERYTHING]),
    "the last hundredth is not filled": scenes_of([(-1, -1, 0.5, 2), (0.5, -1, 0.995, 2), EVERYTHING]),
    "the last fiftieth is": scenes_of([(-1, -1, 0.5, 2), (0.5, -1, 0.98, 2), EVERYTHING]),
    "half a hundredth left by the first scene is filled": scenes_of([(-1, -1, 0.995, 2), EVERYTHING, EVERYTHING]),
    "a tenth of the hole is enough": scenes_of([(-2, -2, 0.5, 3), (-3, -3, 0.56, 4), EVERYTHING]),
    "less than a tenth of hole and scene is not": scenes_of([(-2, -2, 0.5, 3), (-3, -3, 0.54, 4), EVERYTHING]),
    "a small scene that gives a tenth of itself is taken": scenes_of(
        [(-2, -2, 0.5, 3), (0.48, 0, 0.54, 0.3), EVERYTHING]
    ),
    "a corner does not start a mosaic": scenes_of([(0.9, 0.9, 3, 3), EVERYTHING]),
    "a strip is measured after it was cut": scenes_of([WEST_EAST_STRIP, EVERYTHING]),
    "a scene beside adds nothing": scenes_of([(1.0001, 0, 2, 1), (-1, 0, 0.7, 1), (0.2, 0, 2, 1)]),
    "a window that is never complete": scenes_of([(0, 0, 0.4, 1), (0.1, 0, 0.45, 1), (0.3, 0, 0.7, 1)]),
    "every period has its own": [
        scene("a", lonlat(CELL, *EVERYTHING), cloud=50.0, days=1),
        scene("b", lonlat(CELL, *EVERYTHING), cloud=60.0, days=31),
        scene("c", lonlat(CELL, -1, -1, 0.5, 2), cloud=1.0, days=29),
        scene("d", lonlat(CELL, 0.2, -1, 2, 2), cloud=2.0, days=59),
    ],
    "equal cloud: newest first, then the id that sorts last": [
        scene("a", lonlat(CELL, *EVERYTHING), cloud=0.0, days=1),
        scene("b", lonlat(CELL, -1, -1, 0.5, 2), cloud=0.0, days=2),
        scene("c", lonlat(CELL, -1, -1, 0.6, 2), cloud=0.0, days=2),
        scene("d", lonlat(CELL, 0.5, -1, 2, 2), cloud=0.0, days=1.5),
    ],
}
BY_RSLEARN = {
    "one scene covers all": [["a"], []],
    "two halves, then nothing is missing": [["a", "b"], []],
    "the last hundredth is not filled": [["a", "b"], []],
    "the last fiftieth is": [["a", "b", "c"], []],
    "half a hundredth left by the first scene is filled": [["a", "b"], []],
    "a tenth of the hole is enough": [["a", "b", "c"], []],
    "less than a tenth of hole and scene is not": [["a", "c"], []],
    "a small scene that gives a tenth of itself is taken": [["a", "b", "c"], []],
    "a corner does not start a mosaic": [["b"], []],
    "a strip is measured after it was cut": [["a", "b"], []],
    "a scene beside adds nothing": [["b", "c"], []],
    "a window that is never complete": [["a", "b", "c"], []],
    "every period has its own": [["c", "a"], ["d", "b"]],
    "equal cloud: newest first, then the id that sorts last": [["c", "d"], []],
}
"""What ``match_candidate_items_to_window`` of rslearn 0.1.19 answers to CASES, through ``rslearn_match.py`` (Python
3.11, shapely 2.2.0 with GEOS 3.14.1, rasterio 1.4.4). This module, run as a program with the root of the project on
PYTHONPATH and rslearn's Python in RSLEARN_PYTHON, prints it anew."""


@pytest.mark.parametrize("name", CASES)
def test_the_choice_is_what_rslearn_answered(name):
    assert ours(CASES[name]) == BY_RSLEARN[name]


def test_a_scene_without_cloud_cover_comes_last():
    scenes = [scene("a", lonlat(CELL, *EVERYTHING), cloud=None), scene("b", lonlat(CELL, -1, -1, 0.5, 2), cloud=99.0)]
    assert ours(scenes)[0] == ["b", "a"]


def test_sentinel1_is_taken_newest_first_whatever_its_clouds():
    rule = Rule(sensor="sentinel1", composite="rslearn_mosaic")
    scenes = [
        scene("a", lonlat(CELL, *EVERYTHING), cloud=0.0, days=1, sensor="sentinel1"),
        scene("b", lonlat(CELL, -1, -1, 0.5, 2), cloud=None, days=2, sensor="sentinel1"),
    ]
    assert ours(scenes, rule=rule)[0] == ["b", "a"]


def test_the_zone_of_a_scene_does_not_change_rslearns_order():
    tiles = {"a": "32TMT", "b": "31UGP"}
    where = lonlat(CELL, *EVERYTHING)
    scenes = [scene(n, where, cloud=0.0, acquisition=f"S2A_20240301T101021_{t}") for n, t in tiles.items()]
    assert ours(scenes)[0] == ["b"]


def test_an_older_version_is_no_part_of_a_mosaic():
    scenes = [
        scene("old", lonlat(CELL, *EVERYTHING), cloud=0.0, acquisition="g", version="1"),
        scene("new", lonlat(CELL, *EVERYTHING), cloud=5.0, acquisition="g", version="2"),
    ]
    assert ours(scenes)[0] == ["new"]


def test_the_cap_does_not_tear_holes_into_a_mosaic():
    assert RULE.max_candidates == 1
    assert ours(scenes_of([(-1, -1, 0.5, 2), (0.5, -1, 2, 2)]))[0] == ["a", "b"]


MARGIN = 0.004
"""Shares nearer to a limit than this may fall on either side, because footprints go through lon/lat."""


def reference(rectangles):
    """The rule by its description, on the pieces between all edges; None where a share lies too near to a limit."""
    xs, ys = (np.unique(np.clip([0, 1, *(r[k] for r in rectangles for k in (a, a + 2))], 0, 1)) for a in (0, 1))
    areas = np.outer(np.diff(ys), np.diff(xs))
    x, y = (xs[1:] + xs[:-1]) / 2, (ys[1:] + ys[:-1]) / 2
    hole, taken = np.ones_like(areas, dtype=bool), []
    for i, (west, south, east, north) in enumerate(rectangles):
        inside = np.outer((y > south) & (y < north), (x > west) & (x < east))
        added = areas[inside & hole].sum()
        shares = added / ((east - west) * (north - south)), added / areas[hole].sum()
        if any(abs(share - 0.1) < MARGIN for share in shares):
            return None
        if max(shares) < 0.1:
            continue
        taken.append(i)
        hole &= ~inside
        left = areas[hole].sum()
        if left == 0 or (len(taken) > 1 and left < 0.01):
            break
        if left < MARGIN or abs(left - 0.01) < MARGIN:
            return None
    return taken


def test_the_choice_follows_the_rule_as_described():
    rng, lengths = random.Random(3), []
    for _ in range(300):
        corners = [(rng.uniform(-1, 0.95), rng.uniform(-1, 0.95)) for _ in range(rng.randint(1, 7))]
        rectangles = [(x, y, x + rng.uniform(0.1, 2.5), y + rng.uniform(0.1, 2.5)) for x, y in corners]
        expected = reference(rectangles)
        if expected is not None:
            assert ours(scenes_of(rectangles))[0] == [chr(97 + i) for i in expected], rectangles
            lengths.append(len(expected))
    assert len(lengths) > 200
    assert set(lengths) >= {0, 1, 2, 3, 4}


def case(scenes, cell):
    box = cell.box
    catalogue = sorted(sorted(scenes, key=lambda s: s.id, reverse=True), key=lambda s: s.acquired, reverse=True)
    return {
        "zone": cell.zone,
        "window": [box.col, box.row, box.col_stop, box.row_stop],
        "start": PERIODS[0].start.isoformat(),
        "end": PERIODS[-1].end.isoformat(),
        "days": DAYS,
        "items": [
            {
                "id": s.id,
                "wkt": shapely.from_wkb(s.footprint).wkt,
                "time": s.acquired.isoformat(),
                "cloud": s.cloud_pct,
            }
            for s in catalogue
        ],
    }


def rslearn(cases):
    """rslearn's answers, or skip."""
    python = os.environ.get("RSLEARN_PYTHON", sys.executable)
    if subprocess.run([python, "-W", "ignore", "-c", "import rslearn"], capture_output=True, check=False).returncode:
        pytest.skip(f"rslearn is not installed in {python}: name another Python in RSLEARN_PYTHON")
    done = subprocess.run(
        [python, "-W", "ignore", str(SCRIPT)], input=json.dumps(cases), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def granule(rng, cell):
    """A footprint as archives have them: a square of 110 km, a slanted part of it, a radar swath of 250 km."""
    west, south = rng.uniform(-5.4, 0.95), rng.uniform(-5.4, 0.95)
    side = rng.choice([5.36, 5.36, 12.2, 0.4])
    if side > 6:
        west, south = west - 6, south - 6
    corners = np.array([(0, 0), (1, 0), (1, 1), (0, 1)]) * side + (west, south)
    if rng.random() < 0.5:  # the edge of an orbit
        cut = rng.uniform(0.1, 0.9) * side
        corners[1:3, 0] = west + np.array([cut, min(side, cut + 0.2 * side)])
    ring = shapely.get_coordinates(to_lonlat(cell, corners))
    if np.ptp(ring[:, 0]) < 180:
        return shapely.polygons(ring)
    ring[:, 0] += 360 * (ring[:, 0] < 0)
    halves = [shapely.polygons(ring).intersection(shapely.box(w, -90, w + 180, 90)) for w in (0, 180)]
    return shapely.MultiPolygon([halves[0], shapely.transform(halves[1], lambda c: c - (360, 0))])


WORLD = [
    CELL,
    Cell(zone=33, row=150, col=24),  # 29 S
    Cell(zone=35, row=-380, col=20),  # 70 N
    Cell(zone=1, row=-1, col=8),  # across the antimeridian, at the equator
    Cell(zone=60, row=-260, col=35),  # beside it
]


@pytest.mark.slow
def test_the_choice_is_rslearns_own_on_random_scenes_all_over_the_world():
    rng = random.Random(7)
    asked = []
    for i in range(400):
        cell = WORLD[i % len(WORLD)]
        scenes = [
            scene(f"s{k}", granule(rng, cell), cloud=float(rng.randrange(15)), days=rng.choice([1, 2, 2.5, 31, 40]))
            for k in range(rng.randrange(1, 14))
        ]
        asked.append((scenes, cell))
    theirs = rslearn([case(*pair) for pair in asked])
    assert [ours(scenes, cell=cell) for scenes, cell in asked] == theirs
    assert sum(len(ids) > 1 for answer in theirs for ids in answer) > 100


@pytest.mark.slow
def test_the_recorded_answers_are_rslearns():
    assert dict(zip(CASES, rslearn([case(scenes, CELL) for scenes in CASES.values()]), strict=True)) == BY_RSLEARN


if __name__ == "__main__":
    answers = rslearn([case(scenes, CELL) for scenes in CASES.values()])
    print("\n".join(f'    "{name}": {json.dumps(answer)},' for name, answer in zip(CASES, answers, strict=True)))
