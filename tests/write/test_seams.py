"""Seam scores on fields whose seams are known, because they were planted, or absent."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import InvalidInputError
from pipeline.types import GridSpec
from pipeline.write import seams
from pipeline.write.seams import (
    Lattice,
    anisotropy,
    join,
    lattice_dependence,
    lattices,
    measure,
    paired_score,
    rho,
    strip,
)

SIDE = 768
FIRST = 1000
"""Lattice index of the first row and column of the fields: not a multiple of any period."""
PERIODS = (("window", 40), ("tile", 128), ("shard", 256), ("cell", 384))
STEP = np.float32(5 / 127)
CHIP = Path(__file__).resolve().parents[3] / "shared" / "data" / "dsen2-s2-l1c" / "S2A_MSIL1C_20170527_T33UUB.mat"


@lru_cache(maxsize=16)
def smooth(side, *, dims=4, seed=0, slope=3.0):
    """(dim, row, col) float32 of power spectrum k^-slope, mean 0, deviation 1."""
    draw = np.random.default_rng(seed)
    k = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    k[0, 0] = 1
    amplitude = k ** (-slope / 2)
    amplitude[0, 0] = 0
    fields = np.stack(
        [
            np.fft.irfft2((draw.normal(size=k.shape) + 1j * draw.normal(size=k.shape)) * amplitude, s=(side, side))
            for _ in range(dims)
        ]
    )
    return (fields / fields.std(axis=(1, 2), keepdims=True)).astype(np.float32)


def to_pixels(tokens, patch):
    """Bilinear between token centres, as a store of 10 m pixels is made; one token is lost on every side."""
    for axis in (1, 2):
        place = np.arange(patch, (tokens.shape[axis] - 1) * patch)
        doubled = 2 * place + 1 - patch
        near = doubled // (2 * patch)
        shape = (1, -1, 1) if axis == 1 else (1, 1, -1)
        share = ((doubled - near * 2 * patch) / (2 * patch)).astype(np.float32).reshape(shape)
        tokens = np.take(tokens, near, axis) * (1 - share) + np.take(tokens, near + 1, axis) * share
    return tokens


@lru_cache(maxsize=16)
def field(patch, *, seed=0):
    return smooth(SIDE, seed=seed) if patch == 1 else to_pixels(smooth(SIDE // patch + 2, seed=seed), patch)


def codes(values):
    return np.clip(np.rint(values / STEP), -127, 127).astype(np.int8)


def planted(values, axis, *, period, phase, height):
    """``values`` with a step at every line of a phase, up and down in turn."""
    places = FIRST + np.arange(values.shape[1 if axis == "row" else 2])
    level = ((places - phase) // period % 2 * height * values.std()).astype(np.float32)
    return values + (level[:, None] if axis == "row" else level)


def strips_of(values, *, valid=None, **options):
    valid = np.ones(values.shape[1:], bool) if valid is None else valid
    scale = np.full(len(values), STEP) if values.dtype == np.int8 else None
    return [strip(values, valid, axis=axis, first=FIRST, scale=scale, **options) for axis in seams.AXES]


def scores_of(values, *, token=1, periods=PERIODS, **options):
    wanted = [Lattice(kind=kind, period=period, token=token) for kind, period in periods]
    return {s.name: s for s in measure(strips_of(values, **options), wanted)}


@pytest.mark.parametrize("stored", [True, False], ids=["int8", "float"])
@pytest.mark.parametrize(("patch", "seed"), [(1, 0), (1, 1), (4, 2), (4, 3), (8, 4), (8, 5)])
def test_a_smooth_field_scores_one_within_its_interval(patch, seed, stored):
    values = field(patch, seed=seed)
    found = scores_of(codes(values) if stored else values, token=patch)
    assert len(found) == 8
    assert all(s.low <= 1 <= s.high for s in found.values()), found.values()
    assert all(s.score < 1.05 for s in found.values() if s.kind == "window")


def test_noise_scores_one_within_its_interval():
    values = np.random.default_rng(1).normal(size=(4, SIDE, SIDE)).astype(np.float32)
    assert all(s.low <= 1 <= s.high for s in scores_of(values).values())


@pytest.mark.skipif(not CHIP.is_file(), reason="the real chip is not here")
@pytest.mark.parametrize("patch", [1, 2])
def test_real_content_has_no_seam(patch):
    import h5py

    with h5py.File(CHIP) as source:
        bands = np.log(np.asarray(source["im10"], np.float32).transpose(0, 2, 1))
    bands = (bands - bands.mean(axis=(1, 2), keepdims=True)) / bands.std(axis=(1, 2), keepdims=True)
    found = scores_of(bands if patch == 1 else to_pixels(bands, patch), token=patch)
    assert found
    assert all(s.low <= 1 for s in found.values()), found.values()


@pytest.mark.parametrize("patch", [1, 4])
@pytest.mark.parametrize("axis", seams.AXES)
@pytest.mark.parametrize(("kind", "period"), PERIODS)
def test_a_step_of_a_tenth_of_the_deviation_is_caught_at_any_phase(kind, period, axis, patch):
    clean = field(patch, seed=6)
    other = "col" if axis == "row" else "row"
    for phase in (1, period // 2, period - 1):
        stored = codes(planted(clean, axis, period=period, phase=phase, height=0.1))
        found = scores_of(stored, token=patch, periods=((kind, period),))
        assert found[f"{kind}/{axis}"].phase == phase
        assert found[f"{kind}/{axis}"].low > 1.1
        assert found[f"{kind}/{other}"].low <= 1


def test_a_phase_is_compared_with_the_same_position_within_a_token():
    values = field(4, seed=2)
    naive, fair = (scores_of(values, token=token)["window/row"].profile for token in (1, 4))
    assert max(naive[2::4]) < 0.85  # steps across a token's centre are the mean of two slopes, hence smaller
    assert 0.95 < min(fair) < max(fair) < 1.05


def test_a_seam_of_the_windows_is_not_found_again_in_tiles():
    values = planted(field(1, seed=3), "row", period=40, phase=24, height=0.3)
    found = scores_of(values)
    assert found["window/row"].low > 2
    assert found["tile/row"].low < 1.05
    both = scores_of(planted(values, "row", period=128, phase=5, height=0.3))
    assert both["tile/row"].phase == 5
    assert both["tile/row"].low > 1.5


def test_the_worst_place_lies_on_the_worst_line():
    found = scores_of(planted(field(1), "col", period=256, phase=9, height=0.5), along=70, zone=31)["shard/col"]
    zone, row, col = found.at
    assert (zone, col % 256) == (31, 9)
    assert 70 <= row < 70 + SIDE


def test_few_lines_say_so_and_have_a_wide_interval():
    values = planted(field(1), "row", period=40, phase=0, height=0.1)
    many, few = scores_of(values)["window/row"], scores_of(values[:, :120, :448])["window/row"]
    assert (many.lines, many.segments) == (19, 19 * 12)
    assert few.lines < 4
    assert few.high - few.low > 2 * (many.high - many.low)


def test_strips_side_by_side_see_the_same_lines():
    values, valid = field(1), np.ones((SIDE, SIDE), bool)
    parts = [
        strip(values[:, :, k : k + 256], valid[:, k : k + 256], axis="row", first=FIRST, along=k) for k in (0, 256, 512)
    ]
    (found,) = measure(parts, [Lattice(kind="window", period=40)])
    assert found.lines <= 20
    assert found.segments == 12 * found.lines


def test_a_lattice_without_a_line_is_left_out():
    assert "cell/row" not in scores_of(field(1)[:, :100], periods=(("window", 40), ("cell", 2048)))
    beside = scores_of(field(4)[:, :200], token=4, periods=(("window", 40), ("cell", FIRST)))
    assert "cell/row" not in beside  # the strip begins at the line and does not cross it
    assert "window/row" in beside


def test_nodata_does_not_count():
    values = field(1, seed=4)
    valid = np.ones((SIDE, SIDE), bool)
    valid[100:300, 200:500] = False
    broken = np.where(valid, values, np.float32(99))
    holes = scores_of(broken, valid=valid)
    assert all(s.low <= 1 <= s.high for s in holes.values())
    assert holes["window/row"].segments < scores_of(values)["window/row"].segments


def test_codes_and_their_values_give_the_same_steps():
    stored = np.random.default_rng(0).integers(-127, 128, (3, 130, 90), dtype=np.int8)
    for one, two in zip(strips_of(stored, segment=8), strips_of(stored * STEP, segment=8), strict=True):
        np.testing.assert_allclose(one.steps, two.steps, rtol=1e-5)


def test_a_strip_holds_the_mean_step_over_dimensions_of_each_segment():
    values = np.zeros((2, 3, 8), np.float32)
    values[0, 1:] = 1.0
    values[1, 2, 4:] = -4.0
    found = strip(values, np.ones((3, 8), bool), axis="row", first=FIRST, segment=4)
    assert found.first == FIRST + 1
    np.testing.assert_allclose(found.steps, [[0.5, 0.0], [0.5, 2.0]])


def test_pieces_that_overlap_by_a_vector_join_to_the_whole():
    values = field(1)
    valid = np.ones(values.shape[1:], bool)
    whole = strip(values, valid, axis="row", first=5)
    pieces = [
        strip(values[:, a:b], valid[a:b], axis="row", first=5 + a) for a, b in ((0, 301), (300, 501), (500, SIDE))
    ]
    np.testing.assert_array_equal(join(pieces).steps, whole.steps)
    with pytest.raises(InvalidInputError, match="wanted"):
        join([pieces[0], pieces[2]])


def test_the_energy_at_the_period_shows_the_lattice():
    clean = field(1)
    assert 0.5 < scores_of(clean)["window/row"].fft < 2
    assert scores_of(planted(clean, "row", period=40, phase=7, height=0.1))["window/row"].fft > 10
    assert scores_of(clean)["shard/row"].fft is None


def test_stripes_show_as_anisotropy():
    values = field(1)
    stretched = np.repeat(values[:, :, : SIDE // 2], 2, axis=2)
    assert anisotropy(strips_of(values)) == pytest.approx(1, abs=0.1)
    assert anisotropy(strips_of(stretched)) > 2
    assert anisotropy(strips_of(values)[:1]) is None


GRID = {"patch_px": 4, "window_px": 64, "overlap_px": 24, "tile_px": 512}


@pytest.mark.parametrize(
    ("grid", "wanted"),
    [
        (GridSpec(**GRID), [("window", 40, (0, 24)), ("tile", 512, (0,)), ("shard", 256, (0,)), ("cell", 2048, (0,))]),
        (GridSpec(**GRID, stitch="centre"), [("window", 40, (12,))]),
        (GridSpec(**GRID, token_px=4), [("window", 10, (0, 6)), ("tile", 128, (0,)), ("shard", 256, (0,))]),
        (
            GridSpec(
                patch_px=4, window_px=320, overlap_px=64, tile_px=512, stitch="neighbourhood", box_px=16, halo_px=32
            ),
            [("domain", 256, (0,)), ("block", 256, (0,)), ("tile", 512, (0,))],
        ),
    ],
)
def test_every_way_of_stitching_has_its_lattices(grid, wanted):
    found = lattices(grid, shard=256)
    assert [(x.kind, x.period, x.lines) for x in found][: len(wanted)] == wanted
    assert {x.token for x in found} == {4 // grid.token_px}


@pytest.mark.parametrize(("freedom", "within"), [(5, 0.25), (7, 0.1), (15, 0.01), (60, 0.001), (500, 0.001)])
def test_the_quantile_is_students(freedom, within):
    special = pytest.importorskip("scipy.special")
    level = seams._level(512)
    assert float(seams._student(level, np.array(freedom))) == pytest.approx(special.stdtrit(freedom, level), rel=within)


def test_a_border_scores_its_steps_over_those_beside_it():
    draw = np.random.default_rng(3)
    beside = draw.uniform(0.9, 1.1, 40).astype(np.float32)
    clean = seams.pair_score(beside[::-1], beside)
    assert clean.low <= 1 <= clean.high
    assert seams.pair_score(1.5 * beside[::-1], beside).low > 1.3
    assert seams.pair_score(beside[:3], beside[:3]) is None


def on_lattice(content, origin, *, stride, height):
    """(row, col, dim) content with a step at every line of a lattice from ``origin``."""
    row, col = (((np.arange(content.shape[k]) - origin[k]) // stride % 2)[..., None] for k in (0, 1))
    return content + (height * content.std() * (row[:, None] + col[None])).astype(np.float32)


ORIGINS = [(0, 0), (2, 3), (4, 6), (6, 1)]


def test_the_paired_score_of_a_method_without_lattice_is_one():
    content = np.random.default_rng(0).normal(size=(60, 50, 5))
    found = paired_score([(origin, content) for origin in ORIGINS], stride=8)
    assert found.line == pytest.approx(1, abs=1e-12)
    assert found.max == pytest.approx(1, abs=1e-12)
    assert found.dim == pytest.approx(1, abs=1e-12)
    assert lattice_dependence(content, content) == 0


def test_the_paired_score_finds_a_step_that_content_hides():
    content = np.random.default_rng(1).normal(size=(64, 64, 5)).astype(np.float32)
    fields = [(origin, on_lattice(content, origin, stride=8, height=0.3)) for origin in ORIGINS]
    found = paired_score(fields, stride=8)
    # E|N(d, 2)| / E|N(0, 2)| with d = 0.3: the steps of white noise have variance 2
    assert found.line == pytest.approx(1.022, abs=0.02)
    assert found.line > 1.005
    assert found.max >= found.line
    assert found.dim >= found.max
    assert rho(fields, stride=8) == found.max
    others = [v for k, v in enumerate(found.profile[0]) if k]
    assert max(others) < found.profile[0][0]
    assert lattice_dependence(fields[0][1], fields[1][1]) > 0.1


def test_the_paired_score_counts_only_lines_at_which_a_window_ends():
    content = smooth(64, dims=3).transpose(1, 2, 0)
    fields = [(origin, on_lattice(content, (origin[0] + 3, origin[1] + 3), stride=8, height=1.0)) for origin in ORIGINS]
    found = paired_score(fields, stride=8, lines=(0,))
    assert found.line < 1.1
    assert found.max > 2
    assert paired_score(fields, stride=8, lines=(0, 3)).line == found.max


def test_lattice_dependence_is_in_units_of_the_deviation():
    draw = np.random.default_rng(2)
    one, two = 7 + draw.normal(size=(80, 80, 4)), 7 + draw.normal(size=(80, 80, 4))
    assert lattice_dependence(one, two) == pytest.approx(2**0.5, rel=0.02)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: paired_score([((0, 0), np.zeros((9, 9, 2)))], stride=4), "two or more fields"),
        (lambda: paired_score([((0, 0), np.zeros((9, 9, 2)))] * 2, stride=4), "same origin"),
        (lambda: lattice_dependence(np.zeros((9, 9, 2)), np.zeros((9, 9, 2))), "without deviation"),
        (lambda: lattice_dependence(np.zeros((9, 9, 2)), np.zeros((9, 8, 2))), "one shape"),
        (lambda: strip(np.zeros((2, 9, 9)), np.ones((9, 8), bool), axis="row", first=0), "need"),
        (lambda: strip(np.zeros((2, 9, 9)), np.ones((9, 9), bool), axis="row", first=0), "no segment of 64"),
    ],
)
def test_what_cannot_be_scored_is_refused(call, says):
    with pytest.raises(InvalidInputError, match=says):
        call()
