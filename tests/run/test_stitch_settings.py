"""From settings and what was measured to the lattice of a plan."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.config import load
from pipeline.encode import checkpoint
from pipeline.errors import ConfigError
from pipeline.plan.ramp import exact_halo_px, tokens_for
from pipeline.run.prepare import grid_of
from pipeline.types import Calibration, SeamProfile

S2 = ("sentinel2_l2a",)
PERIODS = 3


def card(name: str = "random:v1.2-toy:0"):
    return checkpoint.describe(name)


def measured(*profiles: SeamProfile, patch_px: int = 4) -> Calibration:
    scales = Calibration(scale=(0.1,) * 64, provisional=True, source="test", model_sha256="0" * 64, patch_px=patch_px)
    return scales.with_seams(*profiles)


def windows(rho: float, *, periods: int = PERIODS) -> SeamProfile:
    return SeamProfile(patch_px=4, periods=periods, sensors=S2, window_px=48, rho=rho, rho_dim=rho)


def boxes(halo_px: int, *, box_px: int = 32) -> SeamProfile:
    return SeamProfile(patch_px=4, periods=PERIODS, sensors=S2, box_px=box_px, halo_px=halo_px)


def lattice(
    *overrides: str, name: str = "random:v1.2-toy:0", calibration: Calibration | None = None, tile_px: int = 512
):
    settings = load(None, overrides=overrides)
    return grid_of(settings, card(name), periods=PERIODS, tile_px=tile_px, calibration=calibration, device="cpu")


def test_the_ramp_follows_from_what_was_measured():
    spec, _ = lattice(calibration=measured(windows(1.5)))
    assert spec.overlap_px == 4 * tokens_for(1.5) == 12
    spec, _ = lattice(calibration=measured(windows(2.0)))
    assert spec.overlap_px == 4 * tokens_for(2.0) == 20


@pytest.mark.parametrize(
    ("overrides", "overlap_px"),
    [(["encode.ramp=2"], 8), (["encode.overlap_px=16"], 16), (["encode.margin_px=12"], 24)],
)
def test_what_the_user_sets_wins_over_what_was_measured(overrides, overlap_px):
    assert lattice(*overrides, calibration=measured(windows(1.5)))[0].overlap_px == overlap_px


def test_a_ramp_longer_than_half_a_window_is_cut_and_said():
    spec, text = lattice("encode.window_px=32", calibration=measured(replace(windows(5.0), window_px=32)))
    assert spec.overlap_px == 16
    assert "ask for a ramp of 15 tokens; it is cut to 4" in text
    assert "ramp of 3 tokens, from the seams" in lattice(calibration=measured(windows(1.5)))[1]


def test_what_was_measured_for_another_time_axis_is_not_used_and_that_is_said():
    unmeasured, _ = lattice()
    spec, text = lattice(calibration=measured(windows(1.2, periods=6)))
    assert spec == unmeasured
    assert "holds seams of T=6 window 48 px, none of this plan's (T=3)" in text
    _, text = lattice("encode.stitch=neighbourhood", "encode.box_px=16", calibration=measured(boxes(16)))
    assert "holds seams of T=3 box 32 px" in text


def test_a_measured_ramp_comes_with_its_window():
    spec, _ = lattice(calibration=measured(replace(windows(1.2), window_px=36)))
    assert (spec.window_px, spec.overlap_px) == (36, 4 * tokens_for(1.2))
    longest = measured(replace(windows(1.2), window_px=36), replace(windows(2.0), window_px=40))
    assert lattice(calibration=longest)[0].window_px == 40
    usual, _ = lattice()
    both = measured(replace(windows(1.2), window_px=usual.window_px), replace(windows(2.0), window_px=40))
    assert lattice(calibration=both)[0].window_px == usual.window_px


@pytest.mark.parametrize(
    ("name", "overrides", "says"),
    [
        ("v1", ["encode.box_px=32"], "encode.box_px would do nothing with encode.stitch=centre"),
        ("v1", ["encode.ramp=6"], "encode.ramp would do nothing"),
        ("v1.2", ["encode.stitch=centre", "encode.ramp=6"], "encode.ramp would do nothing"),
        ("v1.3", ["encode.box_px=32", "encode.window_px=64"], "encode.window_px would do nothing"),
        ("v1.3", ["encode.batch_windows=4"], "encode.batch_windows would do nothing"),
        ("v1", ["encode.dense=2"], "encode.dense=2 needs rotary positions"),
    ],
)
def test_a_setting_that_would_be_dropped_is_refused(name, overrides, says):
    with pytest.raises(ConfigError, match=says):
        lattice(*overrides, name=f"random:{name}-toy:0")


def test_boxes_that_are_set_mean_neighbourhood():
    assert lattice("encode.box_px=16")[0].stitch == "neighbourhood"


def test_windows_that_do_not_overlap_are_warned_about():
    assert "windows do not overlap" in lattice("encode.ramp=0")[1]
    assert "windows do not overlap" not in lattice()[1]


def test_instability_warns_where_pixels_lie_in_one_window_only():
    maps = "maps=[{name: lc, head: lc.json, instability: true}]"
    assert "25% of the pixels" in lattice(maps, "encode.window_px=48", "encode.overlap_px=16")[1]
    assert "in one window only" not in lattice(maps, "encode.window_px=48", "encode.overlap_px=24")[1]


def test_centre_crops_have_no_ramp():
    v1 = lattice(name="random:v1-toy:0")[0]
    assert v1.stitch == "centre"
    assert lattice(name="random:v1-toy:0", calibration=measured(windows(5.0)))[0] == v1


def test_versions_with_absolute_positions_are_warned_about():
    assert "faint stripes of the window lattice" in lattice(name="random:v1.1-toy:0")[1]
    with pytest.raises(ConfigError, match="rotary positions"):
        lattice("encode.stitch=neighbourhood", name="random:v1.1-toy:0")


def test_domains_read_the_halo_that_was_measured_or_everything():
    front, behind = exact_halo_px(card(), 32, 4)
    exact, text = lattice("encode.stitch=neighbourhood")
    assert (exact.halo_px, exact.overlap_px) == (front + 4, front + behind + 8)
    assert "all that attention reaches" in text
    cut, text = lattice("encode.stitch=neighbourhood", calibration=measured(boxes(16)))
    assert (cut.halo_px, cut.overlap_px) == (16 + 4, 2 * (16 + 4))
    assert "less than attention reaches" in text
    for overrides in (["encode.halo_px=exact"], ["encode.box_px=16"]):  # the second was not measured
        spec, _ = lattice("encode.stitch=neighbourhood", *overrides, calibration=measured(boxes(16)))
        assert spec.halo_px > 20 or spec.box_px == 16
    assert lattice("encode.stitch=neighbourhood", "encode.halo_px=exact", calibration=measured(boxes(16)))[0] == exact


def test_v13_gets_domains_unless_windows_are_set():
    assert lattice(name="random:v1.3-toy:0")[0].stitch == "neighbourhood"
    spec, _ = lattice("encode.window_px=32", name="random:v1.3-toy:0")
    assert (spec.stitch, spec.window_px) == ("blend", 32)


def test_shifts_are_part_of_the_lattice():
    assert lattice("encode.dense=2")[0].step_px == 2
    spec, _ = lattice("encode.dense=2", "encode.stitch=neighbourhood", "encode.patch_px=8", tile_px=1024)
    assert (spec.dense, spec.step_px, spec.box_px) == (2, 4, 64)
