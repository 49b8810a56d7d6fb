"""Composites: each equals slow numpy, and gives every box and every order of reads the same pixels."""

from __future__ import annotations

import functools
import json
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import rasterio
import reference
from files import (
    CORNER,
    ZONE,
    candidates,
    make_landsat,
    make_radar,
    make_scene,
    periods,
    read_stack,
    region_around,
    scene_of,
    stack_of,
)

from pipeline.errors import InvalidInputError
from pipeline.read import composite, pixelwise
from pipeline.read.access import Access
from pipeline.read.clearness import clear
from pipeline.read.pixelwise import median_of
from pipeline.read.rank import MemoryRanks, Ranks, rank_key
from pipeline.read.reads import Reads
from pipeline.read.rules import COMPOSITES, ReadRule, rules_of
from pipeline.read.stacks import empty_layer, fill_layers, needed_cells, read_stacks
from pipeline.types import Asset, Box

LOCAL = Access(allow_local=True)
REGION = region_around(*CORNER)
BOX = Box(zone=ZONE, res_m=10, row=CORNER[0] - 41, col=CORNER[1] - 37, height=83, width=79)
CELLS = needed_cells(BOX)
CLOUDS = (4, 4, 4, 5, 6, 7, 11, 2, 9, 8, 3, 10, 1, 0)
"""Classes of which half are hidden."""


read = partial(stack_of, box=BOX)


def cloudy(seed, region=REGION):
    """Classes at 20 m, constant over 80 m."""
    height, width = region.cover(80).shape
    coarse = np.random.default_rng(seed).choice(CLOUDS, (height, width))
    return np.kron(coarse, np.ones((4, 4), dtype=int))


@pytest.fixture(name="made", scope="module")
def _made(tmp_path_factory):
    """Two periods of clouded scenes with holes; one of an old baseline, one without B05, one that covers a part."""
    folder = tmp_path_factory.mktemp("clouded")
    small = region_around(CORNER[0] + 30, CORNER[1] - 20, half_px=36)
    return [
        [
            make_scene(folder, "a", region=REGION, seed=1, holes=0.2, classes=cloudy(1)),
            make_scene(folder, "b", region=REGION, seed=2, holes=0.3, classes=cloudy(2), boa_offset=1000),
            make_scene(folder, "c", region=REGION, seed=3, holes=0.1, classes=cloudy(3), without=("B05",)),
            make_scene(folder, "d", region=REGION, seed=6, classes=cloudy(6)),
        ],
        [
            make_scene(folder, "e", region=small, seed=4, holes=0.2, classes=4),
            make_scene(folder, "f", region=REGION, seed=5, holes=0.5, classes=cloudy(5)),
        ],
    ]


class ShuffledPool(ThreadPoolExecutor):
    """Finishes its jobs in another order than they were handed in."""

    def submit(self, fn, /, *args, **kwargs):
        def late(*a, **k):
            time.sleep(random.random() * 0.004)
            return fn(*a, **k)

        return super().submit(late, *args, **kwargs)


def assert_equal_layers(one, two):
    for a, b in zip(one.layers, two.layers, strict=True):
        np.testing.assert_array_equal(a.pixels, b.pixels)
        np.testing.assert_array_equal(a.valid, b.valid)


RULES = [
    ReadRule(composite="scl_first_valid"),
    ReadRule(composite="scl_best_clear"),
    ReadRule(composite="first_clear", dilate_px=1),
    ReadRule(composite="rslearn_mosaic"),
    ReadRule(composite="median", dilate_px=1),
]


@pytest.fixture(name="stack_by", scope="module")
def _stack_by(made):
    """The clouded scenes over ``BOX`` by a rule, each read once."""
    return functools.cache(lambda rule: read(made, rule=rule))


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.composite)
def test_two_boxes_over_the_same_ground_agree(made, stack_by, rule):
    one = stack_by(rule)
    two = read(made, rule=rule, box=Box(zone=ZONE, res_m=10, row=BOX.row + 23, col=BOX.col - 31, height=90, width=100))
    for a, b in zip(one.layers, two.layers, strict=True):
        both = a.box.intersect(b.box)
        cut_a, cut_b = both.slices_in(a.box), both.slices_in(b.box)
        np.testing.assert_array_equal(a.pixels[:, :, *cut_a], b.pixels[:, :, *cut_b])
        assert a.pixels[:, :, *cut_a].any()


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.composite)
def test_the_order_of_reads_plays_no_part(made, stack_by, rule):
    want = stack_by(rule)
    with ShuffledPool(8) as pool:
        got = read(made, rule=rule, pool=pool)
    assert got.sources == want.sources
    assert_equal_layers(got, want)


def test_little_room_for_windows_changes_nothing(made, stack_by, monkeypatch):
    rules = (RULES[2], RULES[4])
    want = [stack_by(rule) for rule in rules]
    monkeypatch.setattr(composite, "HELD_BYTES", 1)
    monkeypatch.setattr(composite, "LOOK_AHEAD", 1)
    monkeypatch.setattr(pixelwise, "STRIP_BYTES", 4000)
    for rule, stack in zip(rules, want, strict=True):
        got = read(made, rule=rule)
        assert_equal_layers(got, stack)
        assert [replace(s, notes=()) for s in got.sources] == [replace(s, notes=()) for s in stack.sources]


# first_clear --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grow", [0, 1, 3])
def test_first_clear_equals_slow_numpy(made, stack_by, grow):
    stack = stack_by(ReadRule(composite="first_clear", dilate_px=grow))
    for layer in stack.layers:
        want = reference.first_clear(layer.box, made, CELLS, layer.bands, grow)
        np.testing.assert_array_equal(layer.pixels, want)
        np.testing.assert_array_equal(layer.valid, (want > 0).any(axis=1))


def test_all_bands_of_a_ground_pixel_come_from_the_same_scene(tmp_path):
    # Every band of scene n is n everywhere, so that the pixels say where they come from.
    made = [make_scene(tmp_path, f"s{n}", region=REGION, seed=n, classes=cloudy(n)) for n in (1, 2, 3)]
    for n, one in enumerate(made, 1):
        for band, values in one.pixels.items():
            if band != "SCL":
                values[...] = n
                with rasterio.open(tmp_path / f"s{n}_{band}.tif", "r+") as dataset:
                    dataset.write(values, 1)
    ten, twenty, sixty = read([made], rule=ReadRule(composite="first_clear")).layers
    assert (ten.pixels == ten.pixels[:, :1]).all()
    assert len(np.unique(ten.pixels)) == 3
    fine = np.kron(twenty.pixels[0, 0], np.ones((2, 2), int))
    np.testing.assert_array_equal(ten.pixels[0, 0], fine[ten.box.slices_in(twenty.box.cover(10))])
    rows = 3 * (np.arange(sixty.box.height) + sixty.box.row) + 1 - twenty.box.row
    cols = 3 * (np.arange(sixty.box.width) + sixty.box.col) + 1 - twenty.box.col
    inside = np.ix_(rows[2:-2], cols[2:-2])
    np.testing.assert_array_equal(sixty.pixels[0, 0, 2:-2, 2:-2], twenty.pixels[0, 0][inside])


def test_bands_are_not_read_of_scenes_that_are_clear_nowhere_new(tmp_path):
    clear_one = make_scene(tmp_path, "clear", region=REGION, seed=1, classes=np.where(cloudy(1) == 9, 9, 4))
    hazy = make_scene(tmp_path, "hazy", region=REGION, seed=2, classes=10)
    for asset in hazy.scene.assets:
        if asset.band != "SCL":
            (tmp_path / f"hazy_{asset.band}.tif").unlink()
    stack = read([[hazy, clear_one]], rule=ReadRule(composite="first_clear"))
    assert {s.selected for s in stack.sources} == {("clear",)}
    assert not stack.degraded


def test_a_pixel_that_is_never_clear_comes_from_the_best_scene(tmp_path):
    thin = make_scene(tmp_path, "thin", region=REGION, seed=1, classes=10)
    thick = make_scene(tmp_path, "thick", region=REGION, seed=2, classes=9)
    stack = read([[thick, thin]], rule=ReadRule(composite="first_clear"))
    assert {s.selected for s in stack.sources} == {("thin",)}
    assert_equal_layers(stack, read([[thin]]))


def test_a_scene_replaced_everywhere_is_not_named_as_used(tmp_path):
    lower = make_scene(tmp_path, "lower", region=REGION, seed=1, classes=np.where(cloudy(2) == 9, 9, 10))
    upper = make_scene(tmp_path, "upper", region=REGION, seed=2, classes=4)
    stack = read([[lower, upper]], rule=ReadRule(composite="first_clear"))
    assert {s.selected for s in stack.sources} == {("upper",)}


@pytest.mark.parametrize("fill", ["first_clear", "median"])
def test_a_scene_whose_classification_breaks_at_full_resolution_is_left_out(tmp_path, fill):
    made = [make_scene(tmp_path, n, region=REGION, seed=i, classes=4) for i, n in enumerate(("a", "b"))]
    path = tmp_path / "a_SCL.tif"
    path.write_bytes(path.read_bytes()[:300])
    ranks = MemoryRanks()  # as if its overview could be read
    record = {"scene_ids": ["a", "b"], "scores": [0, 0], "clear_pct": [None, None], "notes": []}
    for group in candidates(CELLS, {0: ("a", "b")}):
        ranks.put(rank_key(group), json.dumps(record))
    stack = read([made], rule=ReadRule(composite=fill), ranks=ranks)
    assert {(s.selected, s.skipped) for s in stack.sources} == {(("b",), ("a",))}
    assert_equal_layers(stack, read([[made[1]]]))


@pytest.mark.parametrize("fill", ["first_clear", "median"])
def test_a_scene_without_classification_fills_what_no_other_does(tmp_path, fill):
    blind = make_scene(tmp_path, "blind", region=REGION, seed=1, without=("SCL",))
    half = make_scene(tmp_path, "half", region=REGION, seed=2, holes=0.5, classes=4)
    stack = read([[blind, half]], rule=ReadRule(composite=fill))
    for layer in stack.layers:
        blind_values, half_values = (reference.raw_of(m, layer.bands, layer.box) for m in (blind, half))
        have = half_values > 0 if fill == "median" else (half_values > 0).any(axis=0)[None]
        np.testing.assert_array_equal(layer.pixels[0], np.where(have, half_values, blind_values))
    assert not stack.degraded


def test_dilation_grows_clouds_and_shadows_in_a_square_and_nothing_else():
    classes = np.full((9, 9), 4, np.uint8)
    classes[4, 4] = 3
    assert clear(classes, grow_px=2).tolist() == [[False] * 5] * 5
    for value in (0, 1):
        classes[4, 4] = value
        seen = clear(classes, grow_px=2)
        assert not seen[2, 2]
        assert seen.sum() == 24


# scl_best_clear -----------------------------------------------------------------------------------------------------


def test_best_clear_takes_one_scene_and_leaves_its_holes(tmp_path):
    best = make_scene(tmp_path, "best", region=REGION, seed=1, holes=0.4, classes=4)
    full = make_scene(tmp_path, "full", region=REGION, seed=2, classes=9)
    stack = read([[full, best]], rule=ReadRule(composite="scl_best_clear"))
    assert {s.selected for s in stack.sources} == {("best",)}
    assert_equal_layers(stack, read([[best]]))
    assert not stack.layers[0].valid.all()


def test_a_broken_best_scene_is_replaced_by_the_next(tmp_path):
    best = make_scene(tmp_path, "best", region=REGION, seed=1, classes=4)
    next_one = make_scene(tmp_path, "next", region=REGION, seed=2, classes=9)
    last = make_scene(tmp_path, "last", region=REGION, seed=3, classes=9)
    (tmp_path / "best_B11.tif").unlink()
    stack = read([[best, next_one, last]], rule=ReadRule(composite="scl_best_clear"))
    assert {(s.selected, s.skipped) for s in stack.sources} == {(("next",), ("best",))}


def test_a_best_scene_that_lacks_a_bands_layer_is_not_replaced_there(tmp_path):
    twenty = ("B05", "B06", "B07", "B8A", "B11", "B12")
    best = make_scene(tmp_path, "best", region=REGION, seed=1, classes=4, without=twenty)
    other = make_scene(tmp_path, "other", region=REGION, seed=2, classes=9)
    stack = read([[other, best]], rule=ReadRule(composite="scl_best_clear"))
    layer = empty_layer(20, twenty, box=stack.layers[1].box, times=1, dtype="uint16")
    scenes, ranks = {"best": best.scene, "other": other.scene}, MemoryRanks()
    with ThreadPoolExecutor(2) as pool:  # as the lazy view reads: one resolution alone
        fill_layers(
            (layer,),
            periods(1),
            candidates(CELLS, {0: ("other", "best")}),
            rule=ReadRule(composite="scl_best_clear"),
            scenes=scenes,
            tools=Ranks(store=ranks, reads=Reads(LOCAL, ranks), pool=pool),
        )
    assert not stack.layers[1].pixels.any()
    np.testing.assert_array_equal(layer.pixels, stack.layers[1].pixels)


# given order --------------------------------------------------------------------------------------------------------


def test_a_given_order_is_final(tmp_path):
    cloudy_one = make_scene(tmp_path, "first", region=REGION, seed=1, holes=0.3, classes=9)
    clear_one = make_scene(tmp_path, "second", region=REGION, seed=2, classes=4)
    stack = read([[cloudy_one, clear_one]], rule=ReadRule(composite="rslearn_mosaic"))
    for layer in stack.layers:
        first, second = (reference.raw_of(m, layer.bands, layer.box) for m in (cloudy_one, clear_one))
        np.testing.assert_array_equal(layer.pixels[0], np.where((first > 0).any(axis=0), first, second))
    assert {s.scores for s in stack.sources} == {()}


# median -------------------------------------------------------------------------------------------------------------


def test_medians_equal_slow_numpy(made, stack_by):
    stack = stack_by(ReadRule(composite="median", dilate_px=1))
    for layer in stack.layers:
        want = reference.median(layer.box, made, layer.bands, 1)
        np.testing.assert_array_equal(layer.pixels, want)
        np.testing.assert_array_equal(layer.valid, (want > 0).any(axis=1))


@pytest.mark.parametrize("count", range(1, 9))
@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_a_median_equals_numpys_on_any_number_of_values(count, dtype):
    rng = np.random.default_rng(count)
    values = rng.integers(0, 65536, (count, 20, 30)).astype(dtype)
    usable = rng.random(values.shape) < 0.7
    want = np.ma.median(np.ma.array(values.astype(np.float64), mask=~usable), axis=0)
    want = np.where(
        np.ma.getmaskarray(want), 0, np.floor(want.filled(0) + 0.5) if dtype == np.uint16 else want.filled(0)
    )
    got, known = median_of(values.copy(), usable)
    np.testing.assert_array_equal(known, usable.any(axis=0))
    np.testing.assert_array_equal(np.nan_to_num(got), want.astype(dtype))


def test_a_saturated_value_is_a_value():
    values = np.full((3, 1, 1), 65535, np.uint16)
    assert median_of(values, np.ones((3, 1, 1), bool))[0].item() == 65535


def test_an_unreadable_band_leaves_its_scene_out_of_every_median(tmp_path):
    made = [make_scene(tmp_path, n, region=REGION, seed=i, classes=4) for i, n in enumerate("abc")]
    (tmp_path / "b_B09.tif").unlink()  # the last band that is read
    stack = read([made], rule=ReadRule(composite="median"))
    assert {(s.selected, s.skipped) for s in stack.sources} == {(("a", "c"), ("b",))}
    assert_equal_layers(stack, read([[made[0], made[2]]], rule=ReadRule(composite="median")))


# other sensors ------------------------------------------------------------------------------------------------------


def test_radar_is_decibels_of_the_first_valid_scene(tmp_path):
    made = [make_radar(tmp_path, n, region=REGION, seed=i, holes=0.3) for i, n in enumerate(("x", "y"))]
    stack = read([made, []], rule=ReadRule(sensor="sentinel1", composite="first_valid"))
    (layer,) = stack.layers
    first, second = (np.stack([m.pixels[b][BOX.slices_in(REGION)] for b in ("vv", "vh")]) for m in made)
    linear = np.where(first > 0, first, second)
    want = np.where(linear > 0, 10 * np.log10(np.maximum(linear, 1e-10)), np.nan)
    assert (stack.sensor, layer.bands, layer.pixels.dtype) == ("sentinel1", ("vv", "vh"), np.float32)
    np.testing.assert_allclose(layer.pixels[0], want, rtol=1e-5)
    np.testing.assert_array_equal(layer.valid[0], ~np.isnan(want[0]))
    assert np.isnan(layer.pixels[1]).all()
    assert not layer.valid[1].any()


def test_the_median_of_radar_is_taken_in_decibels(tmp_path):
    made = [make_radar(tmp_path, n, region=REGION, seed=i, holes=0.3) for i, n in enumerate("xyzw")]
    (layer,) = read([made], rule=ReadRule(sensor="sentinel1", composite="median")).layers
    linear = np.stack([m.pixels["vh"][BOX.slices_in(REGION)] for m in made])
    with np.errstate(invalid="ignore"):
        decibels = np.where(linear > 0, 10 * np.log10(np.abs(linear)), np.nan)
    seen = (linear > 0).any(axis=0)
    np.testing.assert_allclose(layer.pixels[0, 1][seen], np.nanmedian(decibels[:, seen], axis=0), rtol=1e-5)
    np.testing.assert_array_equal(layer.valid[0], seen)


def test_every_sensor_has_a_stack_over_the_same_box(tmp_path):
    made = [
        make_scene(tmp_path, "s2", region=REGION, seed=1, classes=4),
        make_radar(tmp_path, "s1", region=REGION, seed=2),
        make_landsat(tmp_path, "l8", region=REGION, seed=3),
    ]
    rules = (
        ReadRule(),
        ReadRule(sensor="sentinel1", composite="first_valid"),
        ReadRule(sensor="landsat", composite="median", resampling="pretrain"),
    )
    cells = needed_cells(BOX, rules=rules)
    lists = [candidates(cells, {0: (m.scene.id,)}, sensor=m.scene.sensor) for m in made]
    with ThreadPoolExecutor(4) as pool:
        stacks = read_stacks(
            box=BOX,
            periods=periods(1),
            candidates=tuple(c for group in lists for c in group),
            scenes={m.scene.id: m.scene for m in made},
            access=LOCAL,
            ranks=MemoryRanks(),
            pool=pool,
            rules=rules,
        )
    assert [s.sensor for s in stacks] == ["sentinel2_l2a", "sentinel1", "landsat"]
    assert {s.box for s in stacks} == {BOX}
    assert [[(layer.res_m, len(layer.bands)) for layer in s.layers] for s in stacks] == [
        [(10, 4), (20, 6), (60, 2)],
        [(10, 2)],
        [(10, 1), (20, 10)],
    ]
    assert all(layer.valid.all() for s in stacks[:2] for layer in s.layers[:1])
    assert {(source.sensor, source.selected) for s in stacks for source in s.sources} == {
        ("sentinel2_l2a", ("s2",)),
        ("sentinel1", ("s1",)),
        ("landsat", ("l8",)),
    }


def test_a_sensor_without_scenes_is_a_stack_of_nothing():
    stack = read([[], []], rule=ReadRule(sensor="sentinel1", composite="first_valid"))
    assert np.isnan(stack.layers[0].pixels).all()
    assert stack.layers[0].pixels.shape == (2, 2, *BOX.shape)


def test_candidates_of_one_sensor_do_not_stand_for_another():
    with pytest.raises(InvalidInputError, match="of sentinel1"), ThreadPoolExecutor(1) as pool:
        read_stack(
            box=BOX,
            periods=periods(1),
            candidates=candidates(CELLS, {0: ()}),
            scenes={},
            access=LOCAL,
            ranks=MemoryRanks(),
            pool=pool,
            rule=ReadRule(sensor="sentinel1", composite="first_valid"),
        )


# notes --------------------------------------------------------------------------------------------------------------


def notes_of(source):
    """Without those on the overviews that these small files lack."""
    return tuple(note for note in source.notes if "thinned" not in note)


@pytest.mark.parametrize("rule", [RULES[0], RULES[2], RULES[4]], ids=lambda r: r.composite)
def test_a_file_taken_from_an_alternate_is_noted_and_does_not_degrade(tmp_path, rule):
    main = make_scene(tmp_path, "main", region=REGION, seed=1, classes=4)
    (tmp_path / "other").mkdir()
    other = make_scene(tmp_path / "other", "other", region=REGION, seed=1, classes=4)
    (tmp_path / "main_B03.tif").unlink()
    both = replace(main, scene=replace(main.scene, alternates=(other.scene,)))
    stack = read([[both]], rule=rule)
    assert not stack.degraded
    assert {notes_of(s) for s in stack.sources} == {("B03 of main read from its alternate other (sentinel-2-l2a)",)}
    assert_equal_layers(stack, read([[other]], rule=rule))


def test_an_offset_found_in_pixels_is_noted_once_a_scene(tmp_path):
    made = make_scene(tmp_path, "unsure", region=REGION, seed=1, classes=4)
    stack = read([[replace(made, scene=replace(made.scene, check_offset=True))]])
    assert {len(notes_of(s)) for s in stack.sources} == {1}
    assert "unsure: offset removed by its pixels" in notes_of(stack.sources[0])[0]
    assert stack.layers[0].pixels.min() > 1000


class CountingRanks(MemoryRanks):
    """Counts what it is told."""

    def __init__(self):
        super().__init__()
        self.told = []

    def put(self, key, text):
        self.told.append(key)
        return super().put(key, text)


def test_bands_read_at_once_ask_the_pixels_for_the_offset_once(tmp_path):
    made = make_scene(tmp_path, "unsure", region=REGION, seed=1, classes=4)
    scene, ranks, gate = replace(made.scene, check_offset=True), CountingRanks(), threading.Barrier(8)
    reads = Reads(LOCAL, ranks)

    def work(band):
        gate.wait()
        return reads.band(scene, band, made.boxes[20])

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(work, ["B05", "B06", "B07", "B8A", "B11", "B12", "B05", "B06"]))
    assert len(ranks.told) == 1
    assert all(len(pixels.notes) == 1 for pixels in found)


# rules --------------------------------------------------------------------------------------------------------------


def test_rules_follow_the_configuration():
    from pipeline.config import InputSettings

    inputs = InputSettings.model_validate(
        {
            "sensors": ["landsat", "sentinel2_l2a"],
            "resampling": "pretrain",
            "sentinel2": {"composite": "first_clear", "dilate_px": 3},
        }
    )
    assert rules_of(inputs) == (
        ReadRule(composite="first_clear", dilate_px=3, resampling="pretrain"),
        ReadRule(sensor="landsat", composite="first_valid", dilate_px=0, resampling="pretrain"),
    )


def test_every_composite_of_the_configuration_can_be_read():
    from typing import get_args

    from pipeline.config import LandsatSettings, Sentinel1Settings, Sentinel2Settings

    offered = {
        c
        for s in (LandsatSettings, Sentinel1Settings, Sentinel2Settings)
        for c in get_args(s.model_fields["composite"].annotation)
    }
    assert offered == set(COMPOSITES)


@pytest.mark.parametrize("bad", [{"composite": "best"}, {"sensor": "sentinel1"}, {"dilate_px": -1}])
def test_a_rule_that_cannot_be_followed_is_refused(bad):
    with pytest.raises(InvalidInputError):
        ReadRule(**bad)


def test_bands_of_another_sensor_are_not_this_ones(tmp_path):
    made = make_scene(tmp_path, "s2", region=REGION, seed=1, classes=4, without=("B01", "B09"))
    foreign = replace(scene_of("x", Asset(band="B01", href="/nowhere")), sensor="landsat")
    with ThreadPoolExecutor(2) as pool:
        stack = read_stack(
            box=BOX,
            periods=periods(1),
            candidates=candidates(CELLS, {0: ("s2",)}),
            scenes={"s2": made.scene, "x": foreign},
            access=LOCAL,
            ranks=MemoryRanks(),
            pool=pool,
        )
    assert [len(layer.bands) for layer in stack.layers] == [4, 6]


def test_a_band_that_only_an_alternate_has_is_there_whatever_other_scenes_a_run_has(tmp_path):
    lacking = make_scene(tmp_path, "a", region=REGION, seed=1, classes=4, without=("B01", "B09"))
    (tmp_path / "other").mkdir()
    whole = make_scene(tmp_path / "other", "b", region=REGION, seed=1, classes=4)
    both = replace(lacking, scene=replace(lacking.scene, alternates=(whole.scene,)))
    assert_equal_layers(read([[both]]), read([[whole]]))
