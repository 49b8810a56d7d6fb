"""The law of blended seams, what a plan reads of a calibration, and how far neighbourhood attention reaches."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest

from pipeline.errors import InvalidInputError
from pipeline.plan.ramp import exact_halo_px, halo_of, ramps_of, reach_cells, score, tokens_for
from pipeline.types import Calibration, ModelCard, SeamProfile, content_hash

S2 = ("sentinel2_l2a",)
BARE = Calibration(scale=(0.5, 0.25), provisional=True, source="test", model_sha256="ab" * 32, patch_px=4)
CARD = ModelCard(
    name="", version="v1.3", size="base", dims=128, depth=12, heads=12, parameters=0, sensors=S2, sha256="",
    trained=False, pooler_depth=1, student=128, output="student",
)  # fmt: skip


def windows(rho=2.0, **changed):
    fields = {"patch_px": 4, "periods": 6, "sensors": S2, "window_px": 48, "overlap_px": 8, "rho_dim": 3.0}
    return SeamProfile(rho=rho, **(fields | changed))


def boxes(halo_px=32, **changed):
    return SeamProfile(**({"patch_px": 4, "periods": 6, "sensors": S2, "box_px": 32, "halo_px": halo_px} | changed))


@pytest.mark.parametrize("target", [1.01, 1.05, 1.3])
@pytest.mark.parametrize("rho", [1.02, 1.15, 1.5, 2.0, 3.3, 5.0, 17.0])
def test_the_ramp_is_the_shortest_that_reaches_the_target(rho, target):
    tokens = tokens_for(rho, target)
    assert score(rho, tokens) <= target
    assert tokens == 1 or score(rho, tokens - 1) > target


def test_a_ramps_of_nothing_leaves_what_centre_crops_have():
    assert score(2.5, 0) == 2.5


@pytest.mark.parametrize(("rho", "target"), [(0.0, 1.05), (float("nan"), 1.05), (float("inf"), 1.05), (2.0, 1.0)])
def test_impossible_numbers_are_refused(rho, target):
    with pytest.raises(InvalidInputError, match=r"above 1|positive"):
        tokens_for(rho, target)


def test_what_was_measured_of_seams_changes_no_hash():
    # the fields of the time before there were seams
    first = ("scale", "provisional", "source", "model_sha256", "patch_px", "output", "sensors")
    old = {name: value for name, value in asdict(BARE).items() if name in first}
    measured = BARE.with_seams(windows(), boxes())
    assert measured.hash == BARE.hash == content_hash(old)
    assert replace(measured, scale=(0.5, 0.5)).hash != BARE.hash


def test_a_new_measurement_of_the_same_shape_replaces_the_old_one():
    kept = BARE.with_seams(windows(2.0), windows(3.0, periods=12)).with_seams(windows(1.5))
    assert [(p.periods, p.rho) for p in kept.seams] == [(6, 1.5), (12, 3.0)]
    assert kept == BARE.with_seams(windows(1.5), windows(3.0, periods=12))


def test_the_plan_reads_the_ramps_of_its_own_shape():
    kept = BARE.with_seams(windows(2.0), windows(5.0, periods=12), windows(2.5, window_px=32), boxes())
    assert ramps_of(kept, 4, 6, S2) == {48: tokens_for(2.0), 32: tokens_for(2.5)}
    assert ramps_of(kept, 4, 12, S2) == {48: tokens_for(5.0)}


def test_what_was_not_measured_has_no_ramp():
    assert ramps_of(BARE.with_seams(windows()), 4, 1, S2) == {}


def test_the_target_that_was_asked_for_comes_with_the_measurement():
    kept = BARE.with_seams(windows(2.0, target=1.5))
    assert ramps_of(kept, 4, 6, S2) == {48: tokens_for(2.0, 1.5)}
    assert tokens_for(2.0, 1.5) < tokens_for(2.0)


def test_windows_have_no_halo_and_boxes_no_ramp():
    assert ramps_of(BARE.with_seams(boxes()), 4, 6, S2) == {}
    assert halo_of(BARE.with_seams(windows()), 4, 6, S2, 32) is None


def test_the_plan_reads_the_halo_of_its_own_box():
    kept = BARE.with_seams(boxes(24), boxes(16, box_px=16))
    assert (halo_of(kept, 4, 6, S2, 32), halo_of(kept, 4, 6, S2, 16), halo_of(kept, 4, 6, S2, 48)) == (24, 16, None)


@pytest.mark.parametrize(("patch", "sensors"), [(8, S2), (4, ("sentinel1",))])
def test_a_calibration_of_something_else_is_refused(patch, sensors):
    with pytest.raises(InvalidInputError, match="asked for"):
        ramps_of(BARE.with_seams(windows()), patch, 6, sensors)


@pytest.mark.parametrize(
    "wrong", [{"box_px": 16}, {"window_px": 0}, {"rho": 0.0}, {"overlap_px": 6}, {"periods": 0}, {"rho_dim": 0.0}]
)
def test_a_profile_that_says_nothing_or_both_is_refused(wrong):
    with pytest.raises(InvalidInputError, match="SeamProfile"):
        windows(**wrong)


def test_a_profile_survives_json():
    kept = BARE.with_seams(windows(), boxes())
    again = json.loads(json.dumps(asdict(kept)))["seams"]
    assert [entry["rho"] for entry in again] == [0.0, 2.0]


@pytest.mark.parametrize(
    ("output", "box_px", "patch_px", "reach"),
    [
        ("student", 16, 1, (14 * 8, 14 * 7)),  # 12 blocks, the read, one block of queries
        ("mean", 16, 1, (12 * 8, 12 * 7)),  # without the pooler
        ("mean", 16, 8, (12, 0)),  # two cells: nothing to the south and east is ever seen
        ("mean", 20, 4, (24, 24)),  # an odd box has its query in the middle
    ],
)
def test_reach_grows_with_every_attention(output, box_px, patch_px, reach):
    assert reach_cells(replace(CARD, output=output), box_px, patch_px) == reach


@pytest.mark.parametrize(("patch_px", "more"), [(1, 2), (2, 2), (4, 4), (8, 0)])
def test_the_exact_halo_holds_what_resizing_reads(patch_px, more):
    cells = reach_cells(CARD, 16, patch_px)
    assert exact_halo_px(CARD, 16, patch_px) == tuple(side * patch_px + more for side in cells)


def test_a_box_that_is_not_whole_patches_is_refused():
    with pytest.raises(InvalidInputError, match="multiple of patch 8"):
        reach_cells(CARD, 12, 8)
