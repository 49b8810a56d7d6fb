"""Quality of composites: what a block says of itself, and that it says the same from every tile."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

import numpy as np
import pytest
from files import CORNER, ZONE, make_radar, make_scene, region_around, stack_of

from pipeline.read.access import Access
from pipeline.read.quality import Taken, per_block, quality_of, shares_of, whole_blocks
from pipeline.read.rules import ReadRule
from pipeline.types import FIRST_DAY, NO_CLEAR, Box, Cell

LOCAL = Access(allow_local=True)
NORTH, WEST = CORNER[0] - 256, CORNER[1] - 256
"""Four blocks of four cells meet at the corner."""
BOX = Box(zone=ZONE, res_m=10, row=NORTH - 20, col=WEST - 30, height=540, width=550)
CELL = Cell(zone=ZONE, row=3, col=-2)
DAY = datetime(2024, 5, 7, 10, 30, tzinfo=UTC)


read = partial(stack_of, box=BOX)


def on(made, when):
    return replace(made, scene=replace(made.scene, acquired=when))


def day(when):
    return (when.date() - FIRST_DAY).days


@pytest.fixture(name="views", scope="module")
def _views(tmp_path_factory):
    """A clear strip in the west, and a clouded scene that covers everything."""
    folder = tmp_path_factory.mktemp("views")
    west = Box(zone=ZONE, res_m=10, row=NORTH - 24 - NORTH % 24, col=WEST - 24 - WEST % 24, height=600, width=432)
    whole = region_around(*CORNER, half_px=324)
    classes = np.full(whole.cover(20).shape, 9)
    classes[: (CORNER[0] - whole.row) // 2] = 4  # clear in the north, cloud in the south
    return [
        on(make_scene(folder, "west", region=west, seed=1, classes=4), DAY),
        on(make_scene(folder, "whole", region=whole, seed=2, classes=classes), DAY.replace(day=9)),
    ]


def test_blocks_know_their_scenes_their_first_day_and_how_clear_they_are(views):
    quality = read([views], rule=ReadRule(composite="scl_first_valid")).quality
    assert quality.box == Box(zone=ZONE, res_m=2560, row=NORTH // 256, col=WEST // 256, height=2, width=2)
    # The whole one is clear in the north and covers more than the strip, so it ranks first there; in the south it is
    # clouded, and fills what the strip leaves open in the east.
    share = round(100 * (views[0].boxes[10].col_stop - CORNER[1]) / 256)
    assert 0 < share < 100
    np.testing.assert_array_equal(quality.scenes[0], [[1, 1], [1, 2]])
    np.testing.assert_array_equal(quality.clear_pct[0], [[100, 100], [100, share]])
    np.testing.assert_array_equal(quality.first_day[0], [[day(DAY) + 2, day(DAY) + 2], [day(DAY), day(DAY)]])


def test_one_scene_for_all_leaves_open_what_it_does_not_cover(views):
    quality = read([views], rule=ReadRule(composite="scl_best_clear")).quality
    share = round(100 * (views[0].boxes[10].col_stop - CORNER[1]) / 256)
    np.testing.assert_array_equal(quality.scenes[0], [[1, 1], [1, 1]])
    np.testing.assert_array_equal(quality.clear_pct[0], [[100, 100], [100, share]])


def test_a_block_of_two_scenes_is_as_clear_as_they_are_together(views):
    quality = read([views], rule=ReadRule(composite="first_clear", dilate_px=0)).quality
    share = round(100 * (views[0].boxes[10].col_stop - CORNER[1]) / 256)
    np.testing.assert_array_equal(quality.scenes[0, 1], [1, 2])  # in the south the strip is clear, the other is not
    np.testing.assert_array_equal(quality.clear_pct[0], [[100, 100], [100, share]])


@pytest.mark.parametrize("composite", ["scl_first_valid", "scl_best_clear", "first_clear", "median", "rslearn_mosaic"])
def test_a_block_is_judged_alike_from_every_box(views, composite):
    rule = ReadRule(composite=composite)
    one = read([views], rule=rule).quality
    other = Box(zone=ZONE, res_m=10, row=NORTH - 3, col=WEST + 200, height=300, width=400)
    two = read([views], rule=rule, box=other).quality
    assert two.box.shape == (1, 1)
    cut = two.box.slices_in(one.box)
    for name in ("clear_pct", "scenes", "first_day"):
        np.testing.assert_array_equal(getattr(one, name)[:, *cut], getattr(two, name))


def test_a_median_counts_the_scenes_that_gave_values_and_where_one_is_clear(views):
    quality = read([views], rule=ReadRule(composite="median", dilate_px=0)).quality
    share = round(100 * (views[0].boxes[10].col_stop - CORNER[1]) / 256)
    np.testing.assert_array_equal(quality.scenes[0], [[2, 2], [1, 2]])  # the clouded one has no say in the south west
    np.testing.assert_array_equal(quality.clear_pct[0], [[100, 100], [100, share]])


def test_an_empty_period_is_0_scenes_and_unknown(views):
    quality = read([views, []]).quality
    assert not quality.scenes[1].any()
    assert not quality.first_day[1].any()
    assert (quality.clear_pct[1] == NO_CLEAR).all()


def test_radar_has_scenes_and_days_but_no_clear_share(tmp_path):
    made = on(make_radar(tmp_path, "s1", region=region_around(*CORNER, half_px=324), seed=1), DAY)
    quality = read([[made]], rule=ReadRule(sensor="sentinel1", composite="first_valid")).quality
    assert (quality.scenes == 1).all()
    assert (quality.first_day == day(DAY)).all()
    assert (quality.clear_pct == NO_CLEAR).all()


def test_a_box_without_a_whole_block_is_not_judged(views):
    assert read([views], box=Box(zone=ZONE, res_m=10, row=NORTH + 1, col=WEST, height=256, width=256)).quality is None


def test_only_blocks_inside_a_box_are_whole():
    box = Box(zone=ZONE, res_m=10, row=-257, col=1, height=600, width=600)
    assert whole_blocks(box) == Box(zone=ZONE, res_m=2560, row=-1, col=1, height=2, width=1)


@pytest.mark.parametrize("res_m", [10, 20, 60])
def test_pixels_are_counted_in_the_block_of_their_centre(res_m):
    blocks = Box(zone=ZONE, res_m=2560, row=-3, col=5, height=2, width=3)
    box = blocks.cover(res_m, pad_px=3)
    mask = np.random.default_rng(res_m).random(box.shape) < 0.5
    want = np.zeros(blocks.shape, int)
    for row, col in zip(*np.nonzero(mask), strict=True):
        y, x = ((box.row + row + 0.5) * res_m // 2560, (box.col + col + 0.5) * res_m // 2560)
        if blocks.row <= y < blocks.row_stop and blocks.col <= x < blocks.col_stop:
            want[int(y) - blocks.row, int(x) - blocks.col] += 1
    np.testing.assert_array_equal(per_block(mask, box, blocks), want)


def taken(**changed):
    """One block of 100 pixels, half from a scene that is clear to 80 percent, a quarter from one of 20."""
    values = {
        "time": 0,
        "blocks": Box(zone=ZONE, res_m=2560, row=24, col=-16, height=1, width=1),
        "scene_ids": ("a", "b"),
        "pixels": np.array([[[50]], [[25]]]),
        "total": np.array([[100]]),
        "clear": None,
        "shares": np.array([[[80]], [[20]]], np.uint8),
    }
    return Taken(**values | changed)


@pytest.mark.parametrize(
    ("changed", "clear_pct"),
    [
        ({}, 45),
        ({"shares": np.array([[[80]], [[NO_CLEAR]]], np.uint8)}, NO_CLEAR),
        ({"shares": np.array([[[80]], [[NO_CLEAR]]], np.uint8), "pixels": np.array([[[50]], [[0]]])}, 40),
        ({"clear": np.array([[7]])}, 7),
        ({"clear": np.array([[0]]), "pixels": np.array([[[0]], [[0]]])}, NO_CLEAR),
    ],
)
def test_the_clear_share_is_of_the_whole_block_and_known_or_not(made_scenes, changed, clear_pct):
    one = taken(**changed)
    box = Box(zone=ZONE, res_m=10, row=24 * 256, col=-16 * 256, height=256, width=256)
    quality = quality_of(box, [one], times=1, scenes=made_scenes)
    assert quality.clear_pct.item() == clear_pct


@pytest.fixture(name="made_scenes")
def _made_scenes(views):
    return {"a": views[0].scene, "b": views[1].scene}


def test_shares_are_cut_out_of_the_cells_record():
    record = bytes(range(64))
    blocks = Box(zone=ZONE, res_m=2560, row=3 * 8 + 2, col=-2 * 8 + 5, height=2, width=3)
    found = shares_of({"a": record}, ("a", "b"), cell=CELL, blocks=blocks)
    np.testing.assert_array_equal(found[0], [[21, 22, 23], [29, 30, 31]])
    assert (found[1] == NO_CLEAR).all()
