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


def test_what_was_measured_for_another_time_axis_is_not_used():
    unmeasured, _ = lattice()
    assert lattice(calibration=measured(windows(1.2, periods=6)))[0] == unmeasured


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
    assert "cut short, as measured" in text
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
