"""Seams paired over shifted lattices, and how far an encoder looks: against fields and encoders with known answers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from stacks import make_stack
from stacks import periods as axis

from pipeline.encode import checkpoint, reach, rho
from pipeline.errors import InvalidInputError
from pipeline.plan.ramp import exact_halo_px, score
from pipeline.simulate.stacks import calibration_places, sample_stack
from pipeline.types import Box, GridSpec

S2 = ("sentinel2_l2a",)
STRIDE, SHIFTS = 6, (0, 2, 4)


@pytest.fixture(scope="module")
def toy():
    return checkpoint.load("random:v1.2-toy:0")


@pytest.fixture(scope="module")
def loud(toy):
    """The toy with strong attention, whose windows disagree like different scenes."""
    return replace(toy, tensors={k: v * 8 if ".attn.proj." in k else v for k, v in toy.tensors.items()})


def ground(toy, side_px, *, count=2):
    """Simulated places, farmland first: at least as smooth as real ground, so that seams show."""
    places = []
    for spot in calibration_places(1)[:count]:
        box = replace(spot.box, height=side_px, width=side_px)
        places.append(rho.place_of((sample_stack(box, axis(1), biome=spot.biome),), toy, box=box))
    return places


def dates():
    return tuple(p.start.date() for p in axis(1))


# ---- paired lattices -------------------------------------------------------------------------------------------------


def planted(step, *, seed=0, side=60, dims=16, phase=0):
    """Fields with natural steps of size 1 and, on shifted lattices, a step at every seam."""
    rng = np.random.default_rng(seed)
    content = rng.standard_normal((2, side, dims)).cumsum(axis=1)
    base = content[0][:, None] + content[1][None]  # a step between neighbours is N(0, 1) along both axes
    fields = []
    for shift in SHIFTS:
        cells = (np.arange(side) - shift - phase) // STRIDE
        jumps = rng.standard_normal((2, 40, dims)).cumsum(axis=1) * step
        fields.append(torch.from_numpy(base + jumps[0][cells + 5][:, None] + jumps[1][cells + 5][None]))
    return fields


def test_fields_that_do_not_depend_on_the_lattice_score_exactly_one():
    fields = [planted(0.0)[0]] * 3
    found = rho.paired(fields, firsts=SHIFTS, stride=STRIDE)
    np.testing.assert_allclose(found.phases, 1, rtol=1e-12)
    assert found.lattice == 0


@pytest.mark.parametrize("step", [0.5, 1.0, 2.0])
def test_a_planted_step_is_measured_as_squares_add(step):
    lines = [rho.paired(planted(step, seed=s), firsts=SHIFTS, stride=STRIDE).line for s in range(4)]
    assert np.mean(lines) == pytest.approx(np.sqrt(1 + step**2), rel=0.04)


@pytest.mark.parametrize("phase", range(STRIDE))
def test_a_step_of_a_third_is_found_at_its_phase(phase):
    found = rho.paired(planted(0.4, phase=phase, dims=64), firsts=SHIFTS, stride=STRIDE)
    assert int(found.phases.argmax()) == phase
    assert found.worst > 1.04 > np.delete(found.phases, phase).max()


def test_equal_lattices_cannot_be_paired():
    with pytest.raises(InvalidInputError, match="different lattices"):
        rho.paired(planted(1.0), firsts=(0, 6, 4), stride=STRIDE)


def test_a_field_without_steps_cannot_be_scored():
    with pytest.raises(InvalidInputError, match="no steps"):
        rho.paired([torch.ones(20, 20, 4)] * 3, firsts=SHIFTS, stride=STRIDE)


def test_a_place_with_gaps_is_refused(toy):
    box = Box(zone=31, res_m=10, row=0, col=0, height=40, width=40)
    hole = (0, Box(zone=31, res_m=10, row=6, col=6, height=6, width=6))
    with pytest.raises(InvalidInputError, match="misses pixels"):
        rho.place_of((make_stack(box, holes=(hole,)),), toy, box=box)


def lattice(model, *, overlap, stitch, cells=12):
    grid = GridSpec(patch_px=4, window_px=4 * cells, overlap_px=4 * overlap, tile_px=256, stitch=stitch)
    return rho.Lattice(model, grid=grid, dates=dates(), sensors=S2)


@pytest.mark.parametrize("ramp", [2, 4])
def test_the_law_predicts_what_blending_leaves(loud, ramp):
    crops, blend = (lattice(loud, overlap=ramp, stitch=kind) for kind in ("centre", "blend"))
    places = ground(loud, rho.side_tokens(blend.grid) * 4)
    measured = np.mean([blend.score(place).worst for place in places])
    centre = np.mean([crops.score(place).line for place in places])
    assert centre > 1.5
    assert measured == pytest.approx(score(centre, ramp), rel=0.05)


def test_crops_jump_at_phase_zero_only(loud):
    crops = lattice(loud, overlap=2, stitch="centre", cells=8)
    found = crops.score(ground(loud, rho.side_tokens(crops.grid) * 4, count=1)[0])
    assert found.line > 1.5
    assert found.phases[1:].max() < 1.1


# ---- gradients and context -------------------------------------------------------------------------------------------


def fake(window_px=36, patch_px=4, radius=1):
    """An encoder that sees the patches up to ``radius`` cells away, all alike."""

    def vectors(place):
        patches = F.avg_pool2d(place[0].mean(dim=0)[None], patch_px)  # (1, band, row, col)
        seen = F.avg_pool2d(patches, 2 * radius + 1, stride=1, padding=radius)
        return seen[0].permute(1, 2, 0)

    cell = window_px // patch_px // 2
    return reach.Eye(vectors=vectors, window_px=window_px, patch_px=patch_px, cell=cell, out=cell)


@pytest.mark.parametrize("radius", [0, 1, 2])
def test_gradient_lies_where_the_encoder_looks(toy, radius):
    eye = fake(radius=radius)
    found = reach.gradient_mass(eye, ground(toy, eye.window_px), scale=[0.1] * 12)
    side = (2 * radius + 1) * 4
    assert found.side_holding(1.0) == found.side_holding(1.0, "squared") == side
    inside = found.absolute[found.sides_px.index(side - 2)]
    assert inside == pytest.approx(((side - 2) / side) ** 2, rel=1e-5)


def test_looking_everywhere_alike_holds_the_area(toy):
    eye = fake()
    found = reach.gradient_mass(eye, ground(toy, eye.window_px), scale=[0.1] * 12)
    assert found.uniform == pytest.approx([(s / 36) ** 2 for s in found.sides_px])
    assert found.side_holding(0.5, "uniform") == 26


def test_context_beyond_what_the_encoder_sees_changes_nothing(toy):
    eye = fake(radius=2)
    found = reach.context_change(eye, ground(toy, eye.window_px), scale=[0.01] * 12)
    by_side = dict(zip(found.kept_px, found.changes, strict=True))
    assert by_side[20] == by_side[28] == reach.Change(deviation=0, codes=0, step=0)
    assert by_side[12].codes > 0.5
    assert by_side[4].deviation > by_side[12].deviation > 0


def test_a_change_is_counted_in_codes(toy):
    """A place 0.25 brighter with codes of 0.1: two or three steps, and every code."""
    place = ground(toy, 36, count=1)[0]
    brighter = tuple(part + 0.25 for part in place)
    found = reach.context_change(fake(radius=4), [place, brighter], scale=[0.1] * 12)
    assert found.changes[0].codes == 1
    # beyond the centre patch, 80 of the 81 patches that the centre sees are brighter or darker
    assert found.changes[0].step == pytest.approx(2.5 * 80 / 81, abs=0.3)


def test_one_place_has_no_other_context(toy):
    with pytest.raises(InvalidInputError, match="another place"):
        reach.context_change(fake(), ground(toy, 36, count=1), scale=[0.1] * 12)


@pytest.mark.parametrize(("version", "patch"), [("v1.2", 4), ("v1.2", 8), ("v1.3", 4)])
def test_the_exact_halo_is_where_gradients_end(version, patch):
    """Of a domain with two tokens to spare on every side: pixels within the exact halo matter, none beyond does."""
    model = checkpoint.load(f"random:{version}-toy:0")
    front, behind = exact_halo_px(model.card, 16, patch)
    spare = 2 * patch
    eye = reach.domain_eye(
        model, box_px=16, halo_px=(front + spare, behind + spare), patch_px=patch, dates=dates(), sensors=S2
    )
    pixels = ground(model, eye.window_px, count=1)[0][0].clone().requires_grad_()
    eye.vectors((pixels,))[0, 0].sum().backward()
    rows = pixels.grad.abs().amax(dim=(0, 1, 3)).nonzero().flatten()
    unread = patch - 2 if patch < 8 else 0  # of the token that resizing reads, two pixels
    assert (int(rows[0]), eye.window_px - 1 - int(rows[-1])) == (spare + unread, spare + unread)


def test_the_edge_error_falls_with_the_halo_and_ends_at_zero(toy):
    exact = exact_halo_px(toy.card, 16, 4)
    side = reach.edge_side_px(16, 4, exact)
    found = reach.edge_error(
        toy, ground(toy, side), box_px=16, patch_px=4, exact_px=exact, dates=dates(), sensors=S2, scale=[0.02] * 64
    )
    codes = [change.codes for change in found.changes]
    assert found.halos_px == (0, 8, 16, 20)
    assert codes == sorted(codes, reverse=True)
    assert codes[0] > 0.3
    assert found.changes[-1] == reach.Change(deviation=0, codes=0, step=0)
    fits = [halo for halo, change in zip(found.halos_px, found.changes, strict=True) if change.within()]
    assert found.halo_px == fits[0] < 20


def test_without_tolerance_only_the_exact_halo_will_do(loud):
    exact = exact_halo_px(loud.card, 32, 4)
    places = ground(loud, reach.edge_side_px(32, 4, exact))
    found = reach.edge_error(
        loud, places, box_px=32, patch_px=4, exact_px=exact, dates=dates(), sensors=S2, scale=[0.03] * 64,
        tolerance=(0.0, 0.0),
    )  # fmt: skip
    assert found.halo_px == max(exact)
    assert found.changes[-2].codes > 0


@pytest.mark.parametrize(("codes", "step", "good"), [(0.01, 0.02, True), (0.011, 0.01, False), (0.005, 0.03, False)])
def test_both_figures_of_codes_must_be_within_the_tolerance(codes, step, good):
    assert reach.Change(deviation=0.5, codes=codes, step=step).within() == good


@pytest.mark.parametrize("patch", [1, 2, 4, 8])
def test_halos_to_try_end_at_the_exact_one(patch):
    tried = reach.halos_px(patch, 112)
    assert tried[0] == 0
    assert tried[-1] == 112
    assert len(tried) <= reach.MOST_HALOS + 1
    assert all(halo % patch == 0 for halo in tried)
