"""The window planner: the cheapest window within the grids of training, and why not the others."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest

from pipeline.errors import ConfigError
from pipeline.plan import flops, trained, windows
from pipeline.types import GridSpec, ModelCard

SIZES = {"nano": (128, 4, 8), "tiny": (192, 12, 3), "base": (768, 12, 12)}
# Most periods by grid side 5..16, as the official training recipes allow (0: no such grid).
MOST_PERIODS = {
    "v1": (12, 9, 6, 4, 3, 2, 2, 1, 0, 0, 0, 0),
    "v1.1": (12, 12, 12, 9, 7, 5, 4, 3, 0, 0, 0, 0),
    "v1.2": (12, 12, 12, 9, 7, 5, 4, 3, 0, 0, 0, 0),
    "v1.3": (12, 12, 12, 12, 12, 10, 8, 7, 6, 5, 4, 4),
}
CASES = [(v, p, t) for v in MOST_PERIODS for p in (1, 2, 4, 8) for t in (1, 3, 12)]


def card(size: str = "nano", *, version: str = "v1.2") -> ModelCard:
    dims, depth, heads = SIZES[size]
    return ModelCard(
        name="x", version=version, size=size, dims=dims, depth=depth, heads=heads, parameters=1, sensors=(),
        sha256="", trained=False,
    )  # fmt: skip


@pytest.mark.parametrize("version", MOST_PERIODS)
def test_trained_grids_equal_the_table_of_the_recipes(version):
    assert tuple(trained.TRAINED[version].periods(n) for n in range(5, 17)) == MOST_PERIODS[version]
    assert trained.TRAINED[version].periods(17) == 0


def test_v13_never_saw_grids_of_one_or_two_cells():
    assert [trained.TRAINED["v1.3"].periods(n) for n in (1, 2, 3)] == [0, 0, 12]


@pytest.mark.parametrize(("version", "side"), [("v1", 5), ("v1.1", 7), ("v1.2", 7), ("v1.3", 9)])
def test_the_largest_side_for_twelve_periods_serves_for_more(version, side):
    assert trained.trained_side(version, 12) == side
    assert trained.trained_side(version, 20) == side


@pytest.mark.parametrize(("version", "patch", "periods"), CASES)
def test_the_choice_is_a_lattice_of_whole_tokens_within_the_trained_grid(version, patch, periods):
    got = windows.choose(card(version=version), patch_px=patch, periods=periods).chosen
    assert got.window_px == got.cells * patch <= 256
    assert got.window_px % patch == got.overlap_px % patch == 0
    assert 0 <= got.overlap_px < got.window_px
    assert periods <= got.trained_periods


@pytest.mark.parametrize(("version", "patch", "periods"), CASES)
def test_no_other_window_of_the_trained_grid_is_cheaper(version, patch, periods):
    got = windows.choose(card("tiny", version=version), patch_px=patch, periods=periods)
    within = [o for o in got.rejected if o.trained_periods >= periods]
    assert all(o.cost.flops > got.chosen.cost.flops for o in within)
    assert all(o.cells > got.limit_cells for o in got.rejected if o not in within)
    assert len(within) + 1 == got.limit_cells - got.chosen.overlap_px // patch


def test_of_equal_costs_the_smaller_window_wins():
    assert windows._cheapest({9: 2.0, 8: 1.0, 7: 1.0, 6: 3.0}) == 7


# GFLOP per km2 by window side for a margin on every side, computed apart from this module.
@pytest.mark.parametrize(
    ("size", "periods", "patch", "margin", "costs"),
    [
        ("nano", 1, 4, 8, {32: 4.8, 48: 2.93, 64: 2.57}),
        ("nano", 12, 4, 8, {32: 101.0, 48: 89.9, 64: 108.0}),
        ("nano", 1, 8, 16, {48: 2.62, 64: 1.2, 96: 0.732, 128: 0.642}),
        ("tiny", 1, 4, 16, {48: 76.6, 64: 36.6}),
        ("base", 12, 8, 16, {48: 3243.0, 64: 1534.0, 96: 1012.0, 128: 965.0}),
    ],
)
def test_costs_of_a_margin_equal_independent_figures(size, periods, patch, margin, costs):
    got = windows.choose(card(size), patch_px=patch, periods=periods, margin_px=margin)
    by_side = {o.window_px: o.cost.flops / 1e9 for o in (got.chosen, *got.rejected)}
    assert {side: by_side[side] for side in costs} == pytest.approx(costs, rel=6e-3)


def test_attention_pulls_towards_small_windows_and_overlap_towards_large_ones():
    def sides(size, periods, margin):
        return windows.choose(card(size), patch_px=4, periods=periods, margin_px=margin).chosen.cells

    assert sides("nano", 12, 0) < sides("nano", 12, 4) <= sides("nano", 12, 8)
    assert sides("nano", 3, 4) < sides("base", 3, 4) == 12


@pytest.mark.parametrize(("margin", "tokens"), [(0, 0), (1, 2), (4, 2), (5, 4), (8, 4)])
def test_a_margin_is_rounded_up_to_whole_tokens_on_both_sides(margin, tokens):
    assert windows.choose(card(), patch_px=4, periods=3, margin_px=margin).chosen.overlap_px == 4 * tokens


def test_an_overlap_is_taken_as_given():
    assert windows.choose(card(), patch_px=4, periods=3, overlap_px=12).chosen.overlap_px == 12


@pytest.mark.parametrize(
    ("version", "patch", "periods", "stitch", "tokens"),
    [
        ("v1.2", 4, 1, "blend", 6),
        ("v1.2", 8, 1, "blend", 4),
        ("v1.2", 4, 4, "blend", 5),
        ("v1.2", 4, 12, "blend", 3),
        ("v1.2", 8, 12, "blend", 3),
        ("v1.2", 4, 12, "centre", 2),
        ("v1.3", 1, 12, "blend", 4),
        ("v1", 8, 12, "centre", 2),
    ],
)
def test_the_default_overlap_is_at_most_half_of_the_largest_trained_grid(version, patch, periods, stitch, tokens):
    assert windows.settle_overlap(version, patch_px=patch, periods=periods, stitch=stitch) == tokens


def test_the_default_overlap_of_a_window_that_is_set_is_at_most_half_of_it():
    assert windows.settle_overlap("v1.2", patch_px=4, periods=12, cells=16) == 6
    assert windows.settle_overlap("v1.2", patch_px=4, periods=12, cells=4) == 2


def test_a_window_that_is_set_is_taken_and_named_when_untrained():
    assert windows.settle(card(), patch_px=4, periods=12, window_px=64)[:2] == (64, 24)
    assert "trained on 1 to 7 cells" in windows.settle(card(), patch_px=4, periods=12, window_px=64)[2]
    assert windows.settle(card(), patch_px=4, periods=12, window_px=28, margin_px=4) == (28, 8, "")
    assert windows.settle(card(version="v9"), patch_px=4, periods=12, window_px=64) == (64, 24, "")


def test_a_window_that_is_not_set_is_chosen_and_explained():
    got = windows.settle(card(), patch_px=8, periods=3, overlap_px=16, stitch="centre")
    choice = windows.choose(card(), patch_px=8, periods=3, overlap_px=16, stitch="centre")
    assert got == (choice.chosen.window_px, 16, windows.explain(choice))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"window_px": 30}, "multiple of patch 4"),
        ({"window_px": 0}, "positive multiple"),
        ({"window_px": 24, "overlap_px": 24}, "leaves nothing"),
        ({"window_px": 24, "margin_px": 12}, "leaves nothing"),
    ],
)
def test_a_window_that_cannot_be_is_refused(asked, message):
    with pytest.raises(ConfigError, match=message):
        windows.settle(card(), patch_px=4, periods=3, **asked)


def test_every_rejected_window_says_why():
    got = windows.choose(card(), patch_px=4, periods=12)
    assert got.chosen.rejected == ""
    reasons = {o.window_px: o.rejected for o in got.rejected}
    assert reasons[24] == "costs 1.17x"
    assert reasons[64] == "beyond the trained grid of 7 cells at T=12 (costs 1.34x)"
    assert sorted([*reasons, got.chosen.window_px]) == list(range(16, 65, 4))


def test_a_centre_crop_is_costed_with_the_pruned_last_block():
    blend, centre = (
        windows.choose(card(), patch_px=4, periods=3, margin_px=8, stitch=stitch).chosen
        for stitch in ("blend", "centre")
    )
    grid = GridSpec(patch_px=4, window_px=centre.window_px, overlap_px=16, tile_px=256, stitch="centre")
    assert centre.cost == flops.cost_per_km2(card(), grid, 3)
    assert centre.cost.flops < 0.95 * blend.cost.flops


def test_more_sensors_make_every_window_dearer_and_the_best_one_smaller():
    one, three = (
        windows.choose(card(), patch_px=4, periods=3, margin_px=8, sensors=sensors)
        for sensors in (("sentinel2_l2a",), ("sentinel2_l2a", "sentinel1", "landsat"))
    )
    assert three.chosen.cost.flops > 3 * one.chosen.cost.flops
    assert three.chosen.cells < one.chosen.cells


def test_a_margin_that_leaves_nothing_is_refused_with_the_largest_possible_one():
    with pytest.raises(ConfigError, match="margin_px at most 12"):
        windows.choose(card(), patch_px=4, periods=12, margin_px=16)
    assert windows.choose(card(), patch_px=4, periods=12, margin_px=12).chosen.window_px == 28


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"margin_px": -1}, "margin -1 px"),
        ({"overlap_px": 6}, "multiple of patch 4"),
        ({"overlap_px": -4}, "overlap -4 px"),
        ({"margin_px": 4, "overlap_px": 8}, "not both"),
        ({"patch_px": 9}, "patch 9 px"),
        ({"periods": 0}, "periods 0"),
        ({"sensors": ("naip",)}, "naip"),
    ],
)
def test_impossible_wishes_are_refused(asked, message):
    with pytest.raises(ConfigError, match=message):
        windows.choose(card(), **({"patch_px": 4, "periods": 3} | asked))


def test_an_unknown_version_is_refused_with_the_way_out():
    with pytest.raises(ConfigError, match=r"encode\.window_px"):
        windows.choose(card(version="v9"), patch_px=4, periods=3)


def test_notes_say_when_a_wish_was_cut_or_is_dear():
    def notes(**asked):
        return " ".join(windows.choose(card(), **({"patch_px": 4, "periods": 12} | asked)).notes)

    assert "6 tokens is cut to 3" in notes()
    assert "encoded 5.4 times" in notes(margin_px=8)
    assert "more than 12 periods" in notes(periods=13)
    assert notes(periods=1) == ""


def test_the_explanation_names_the_choice_and_every_other_window():
    got = windows.choose(card(), patch_px=4, periods=12)
    text = windows.explain(got)
    first, *lines = text.splitlines()
    assert first.startswith("window 28 px, overlap 12 px (7 and 3 tokens of 4 px): 68.7 GFLOP and 22,969 tokens")
    assert sum(line.rstrip().endswith("chosen") for line in lines) == 1
    assert all(any(line.startswith(f"{o.window_px} px") for line in lines) for o in got.rejected)


def test_the_table_has_one_row_per_window_in_order_of_size():
    got = windows.choose(card("base"), patch_px=8, periods=1)
    header, *rows = got.table()
    assert {len(header)} == {len(row) for row in rows}
    assert [row[0] for row in rows] == [f"{8 * n} px ({n})" for n in range(5, 17)]


def test_windows_beyond_training_are_named():
    def said(version, window, periods, patch=4):
        grid = GridSpec(patch_px=patch, window_px=window, overlap_px=0, tile_px=512)
        return trained.outside(version, grid, periods)

    assert "16 cells per side; at T=12 v1.2 was trained on 1 to 7 cells (up to 28 px)" in said("v1.2", 64, 12)
    assert said("v1.2", 28, 12) == ""
    assert said("v1.3", 16, 4, patch=1) == ""
    assert "3 to 16 cells" in said("v1.3", 2, 1, patch=1)


def test_a_choice_is_a_value():
    got = windows.choose(card(), patch_px=4, periods=3)
    assert got == windows.choose(card(), patch_px=4, periods=3)
    with pytest.raises(FrozenInstanceError):
        got.patch_px = 8
