"""Stitching: exact on consistent windows, independent of the tile, smooth across windows, honest about validity."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.encode import stitch as stitching
from pipeline.encode.stitch import Field, ramp, stitch, strips, to_pixels, with_head
from pipeline.errors import ConfigError, InvalidInputError
from pipeline.plan.grid import window_origins
from pipeline.types import Box, GridSpec

SPEC = GridSpec(patch_px=4, window_px=32, overlap_px=12, tile_px=256)
DIMS = 5


def spec_of(overlap, how="blend"):
    return GridSpec(patch_px=4, window_px=32, overlap_px=overlap, tile_px=256, stitch=how)


def token_box(row, col, n, m, patch=4):
    return Box(zone=31, res_m=10 * patch, row=row, col=col, height=n, width=m)


def field(box, seed=0):
    """A float field that is a pure function of the lattice place."""
    r, c = np.mgrid[box.row : box.row_stop, box.col : box.col_stop]
    k = np.arange(DIMS)
    return np.sin(r[..., None] * 0.37 + k + seed).astype(np.float32) + np.cos(c[..., None] * 0.21 * (k + 1)).astype(
        np.float32
    )


def tokens_of(values, valid, box):
    return Field(values=torch.from_numpy(values), valid=valid, box=box)


def windows_over(box, spec=SPEC, noise=0.0, holes=0.0):
    """(origins, values, valid); with ``holes`` that share of the lattice's tokens is invalid and NaN."""
    ground = Box(zone=31, res_m=10, row=box.row * 4, col=box.col * 4, height=box.height * 4, width=box.width * 4)
    origins = window_origins(ground, spec)
    n = spec.window_px // spec.patch_px
    values, valid = [], []
    for r, c in origins:
        own = np.random.default_rng([r + 10**6, c + 10**6]).standard_normal((n, n, DIMS)) * noise
        place = token_box(r // 4, c // 4, n, n)
        rows, cols = np.mgrid[place.row : place.row_stop, place.col : place.col_stop]
        valid.append((rows * 7919 + cols * 104729) % 997 >= holes * 997)
        values.append(np.where(valid[-1][..., None], field(place) + own.astype(np.float32), np.float32(np.nan)))
    return origins, torch.from_numpy(np.stack(values)), np.stack(valid)


def stitched(box, spec=SPEC, noise=0.0, holes=0.0):
    origins, values, valid = windows_over(box, spec, noise, holes)
    return stitch(values, valid, origins=origins, grid=spec, box=box)


def plain_blend(origins, values, valid, *, spec, box):
    """The definition, one window after the other in numpy."""
    weight = ramp(spec)[:, None] * ramp(spec)[None, :]
    total, norm = np.zeros((*box.shape, values.shape[-1]), np.float32), np.zeros(box.shape, np.float32)
    n = spec.window_px // spec.patch_px
    for index, (row, col) in enumerate(origins):
        for r in range(n):
            for c in range(n):
                y, x = row // 4 + r - box.row, col // 4 + c - box.col
                if valid[index, r, c] and 0 <= y < box.height and 0 <= x < box.width:
                    total[y, x] += weight[r, c] * values[index, r, c]
                    norm[y, x] += weight[r, c]
    return total / np.where(norm > 0, norm, np.float32(1))[..., None], norm > 0


def plain_pixels(tokens, valid, box):
    """The definition in numpy."""
    patch = tokens.box.res_m // 10

    def mixed(data, start, count, origin, axis):
        doubled = 2 * np.arange(start, start + count) + 1 - patch
        first = doubled // (2 * patch)
        w = ((doubled - first * 2 * patch) / (2 * patch)).astype(np.float32)
        w = w[:, None, None] if axis == 0 else w[:, None]
        near, far = np.take(data, first - origin, axis=axis), np.take(data, first + 1 - origin, axis=axis)
        return near * (1 - w) + far * w

    def both(data):
        return mixed(mixed(data, box.row, box.height, tokens.box.row, 0), box.col, box.width, tokens.box.col, 1)

    weight = both(tokens.valid.astype(np.float32)[..., None])
    values = both(np.where(tokens.valid[..., None], tokens.values.numpy(), np.float32(0)))
    ok = valid & (weight[..., 0] > 0)
    return values / np.where(weight > 0, weight, np.float32(1)), ok


def test_windows_that_agree_are_returned_unchanged():
    box = token_box(-50, 30, 40, 37)
    out = stitched(box)
    assert out.valid.all()
    np.testing.assert_allclose(out.values, field(box), atol=1e-6)


@pytest.mark.parametrize("holes", [0.0, 0.1])
@pytest.mark.parametrize("overlap", [0, 8, 12, 20, 28])
def test_the_bytes_are_those_of_the_plain_sum_in_lattice_order(monkeypatch, overlap, holes):
    monkeypatch.setitem(stitching.RUN_BYTES, "cpu", 4 * 8 * 8 * DIMS * 4)  # runs of four windows
    box, spec = token_box(-50, 30, 21, 33), spec_of(overlap)
    origins, values, valid = windows_over(box, spec, 1.0, holes)
    want, ok = plain_blend(origins, values.numpy(), valid, spec=spec, box=box)
    out = stitch(values, valid, origins=origins, grid=spec, box=box)
    np.testing.assert_array_equal(out.valid, ok)
    np.testing.assert_array_equal(out.values, want)


@pytest.mark.parametrize("how", ["blend", "centre"])
@pytest.mark.parametrize("overlap", [0, 4, 12, 16, 20, 28])
def test_the_same_ground_has_the_same_bytes_whatever_box_asks_for_it(overlap, how):
    spec, big, small = spec_of(overlap, how), token_box(-50, 30, 64, 64), token_box(-31, 47, 17, 9)
    a, b = stitched(big, spec, 1.0), stitched(small, spec, 1.0)
    np.testing.assert_array_equal(a.values[small.slices_in(big)], b.values)


def test_windows_that_are_far_apart_leave_a_gap_that_is_not_valid():
    box = token_box(0, 0, 8, 40)
    origins, values, valid = windows_over(box)
    keep = [i for i, (row, col) in enumerate(origins) if row == 0 and col in (0, 20, 80, 100)]
    out = stitch(values[keep], valid[keep], origins=[origins[i] for i in keep], grid=SPEC, box=box)
    np.testing.assert_array_equal(out.valid.all(axis=0), [*[True] * 13, *[False] * 7, *[True] * 13, *[False] * 7])
    np.testing.assert_allclose(out.values[:, 20:33], field(box)[:, 20:33], atol=1e-6)


def test_ramp_weights_of_neighbouring_windows_sum_to_one():
    w = ramp(SPEC).astype(float)
    np.testing.assert_allclose(w[-3:] + w[:3], 1.0, atol=1e-6)
    assert (w[3:-3] == 1).all()


@pytest.mark.parametrize("overlap", [0, 4, 8, 12, 20, 28])
def test_centre_gives_every_token_to_exactly_one_window_and_keeps_its_bits(overlap):
    spec, box = spec_of(overlap, "centre"), token_box(-50, 30, 40, 40)
    origins, values, valid = windows_over(box, spec, 1.0)
    kept = ramp(spec) == 1
    assert set(np.unique(ramp(spec))) <= {0.0, 1.0}
    owners = np.zeros(box.shape, int)
    own = np.zeros((*box.shape, DIMS), np.float32)
    for index, (row, col) in enumerate(origins):
        for r in np.flatnonzero(kept):
            for c in np.flatnonzero(kept):
                y, x = row // 4 + r - box.row, col // 4 + c - box.col
                if 0 <= y < box.height and 0 <= x < box.width:
                    owners[y, x] += 1
                    own[y, x] = values[index, r, c]
    assert (owners == 1).all()
    out = stitch(values, valid, origins=origins, grid=spec, box=box)
    np.testing.assert_array_equal(out.values, own)


@pytest.mark.parametrize("overlap", [0, 4, 8, 12, 20, 28])
def test_centre_takes_a_token_from_the_window_whose_centre_is_nearest(overlap):
    spec, n = spec_of(overlap, "centre"), 8
    stride = n - overlap // 4
    for place in range(stride):  # a token of the window at 0, seen from all windows that hold it
        distance = {k: abs(place + 0.5 - (k * stride + n / 2)) for k in range(-n, n) if 0 <= place - k * stride < n}
        (owner,) = [k for k in distance if ramp(spec)[place - k * stride] == 1]
        assert distance[owner] == min(distance.values())
        assert owner == max(k for k in distance if distance[k] == distance[owner])  # of equals the southern, eastern


@pytest.mark.parametrize("how", ["blend", "centre"])
@pytest.mark.parametrize("overlap", [-4, -12, 32, 40])
def test_a_lattice_with_a_token_of_weight_zero_is_refused(overlap, how):
    with pytest.raises(ConfigError, match="weight zero"):
        ramp(spec_of(overlap, how))


def test_invalid_tokens_do_not_leak_into_their_neighbours():
    box = token_box(0, 0, 24, 24)
    origins, values, valid = windows_over(box)
    n = 8
    for i, (r, c) in enumerate(origins):
        rows = np.arange(n) + r // 4
        cols = np.arange(n) + c // 4
        hole = ((rows >= 5) & (rows < 11))[:, None] & (cols == 7)[None, :]
        values[i][torch.from_numpy(hole)] = 1e9
        valid[i][hole] = False
    out = stitch(values, valid, origins=origins, grid=SPEC, box=box)
    assert not out.valid[5:11, 7].any()
    assert out.valid.sum() == 24 * 24 - 6
    assert out.values.abs().max() < 3


def test_unsorted_windows_are_refused():
    origins, values, valid = windows_over(token_box(0, 0, 24, 24))
    with pytest.raises(InvalidInputError, match="sorted"):
        stitch(values, valid, origins=origins[::-1], grid=SPEC, box=token_box(0, 0, 24, 24))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_field_with_one_bad_number_is_not_finite(bad):
    values = torch.zeros(6, 7, 3)
    box = token_box(0, 0, 6, 7)
    assert Field(values=values, valid=np.ones(box.shape, bool), box=box).finite
    values[4, 5, 1] = bad
    assert not Field(values=values, valid=np.ones(box.shape, bool), box=box).finite


def head_of(dims, out, seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(dims, out), torch.nn.LayerNorm(out))


def test_a_head_is_applied_to_every_token_and_an_identity_costs_nothing():
    box = token_box(-20, 10, 70, 70)  # more tokens than go through the head at once
    tokens, head = tokens_of(field(box), np.ones(box.shape, bool), box), head_of(DIMS, 3)
    out = with_head(tokens, head)
    with torch.no_grad():
        torch.testing.assert_close(out.values.clone(), head(tokens.values))
    assert with_head(tokens, lambda values: values) is tokens


def test_a_head_gives_a_token_the_same_bytes_in_every_field_and_zero_in_a_hole():
    big, small, head = token_box(-50, 30, 70, 90), token_box(-31, 47, 17, 9), head_of(DIMS, 16)
    valid = np.random.default_rng(3).random(big.shape) > 0.2
    cut = small.slices_in(big)
    a = with_head(tokens_of(field(big), valid, big), head)
    b = with_head(tokens_of(field(small), valid[cut], small), head)
    np.testing.assert_array_equal(a.values[cut], b.values)
    assert (a.values.numpy()[~valid] == 0).all()


def test_pixels_of_a_linear_field_are_linear():
    box = token_box(-6, 4, 12, 12)
    r, c = np.mgrid[box.row : box.row_stop, box.col : box.col_stop]
    values = np.stack([(r + 0.5) * 4, (c + 0.5) * 4], axis=-1).astype(np.float32)
    target = Box(zone=31, res_m=10, row=-20, col=20, height=37, width=35)
    out = to_pixels(tokens_of(values, np.ones(box.shape, bool), box), np.ones(target.shape, bool), target)
    rows, cols = np.mgrid[target.row : target.row_stop, target.col : target.col_stop] + 0.5
    np.testing.assert_allclose(out.values[..., 0], rows, atol=1e-4)
    np.testing.assert_allclose(out.values[..., 1], cols, atol=1e-4)


@pytest.mark.parametrize("holes", [0.0, 0.3])
@pytest.mark.parametrize("patch", [2, 4, 8])
def test_the_bytes_of_pixels_are_those_of_the_plain_interpolation(patch, holes):
    box = token_box(-20, 10, 20, 21, patch)
    rng = np.random.default_rng(1)
    tokens = tokens_of(field(box), rng.random(box.shape) >= holes, box)
    target = Box(zone=31, res_m=10, row=-19 * patch + 3, col=11 * patch + 1, height=17 * patch, width=18 * patch - 3)
    seen = rng.random(target.shape) > 0.1
    want, ok = plain_pixels(tokens, seen, target)
    got = list(strips(tokens, seen, target, rows=5))
    np.testing.assert_array_equal(np.concatenate([s.valid for s in got]), ok)
    np.testing.assert_array_equal(np.concatenate([s.values for s in got])[ok], want[ok])
    assert [s.box.row for s in got] == list(range(target.row, target.row_stop, 5))


def test_interpolation_weights_by_validity_and_keeps_the_value_of_the_only_valid_token():
    box = token_box(0, 0, 3, 3)
    valid = np.zeros((3, 3), bool)
    valid[1, 1] = True
    values = np.full((3, 3, 1), 1e9, np.float32)
    values[1, 1] = 7
    target = Box(zone=31, res_m=10, row=4, col=4, height=4, width=4)
    out = to_pixels(tokens_of(values, valid, box), np.ones((4, 4), bool), target)
    assert out.valid.all()
    np.testing.assert_allclose(out.values, 7, rtol=1e-6)


def test_interpolated_pixels_do_not_depend_on_the_box():
    box = token_box(-20, 10, 40, 40)
    tokens = tokens_of(field(box), np.random.default_rng(1).random(box.shape) > 0.2, box)
    big = Box(zone=31, res_m=10, row=-70, col=50, height=120, width=120)
    small = Box(zone=31, res_m=10, row=-33, col=71, height=21, width=40)
    a = to_pixels(tokens, np.ones(big.shape, bool), big)
    cut = token_box(-10, 16, 16, 16)
    inner = Field(values=tokens.values[cut.slices_in(box)], valid=tokens.valid[cut.slices_in(box)], box=cut)
    b = to_pixels(inner, np.ones(small.shape, bool), small)
    part = small.slices_in(big)
    np.testing.assert_array_equal(a.valid[part], b.valid)
    np.testing.assert_array_equal(a.values[part][b.valid], b.values[b.valid])


def test_tokens_stay_what_they_are_where_a_pixel_of_the_store_is_a_token():
    box, part = token_box(-20, 10, 20, 20), token_box(-15, 12, 7, 9)
    tokens = tokens_of(field(box), np.random.default_rng(1).random(box.shape) > 0.2, box)
    seen = np.random.default_rng(2).random(part.shape) > 0.2
    out = to_pixels(tokens, seen, part)
    np.testing.assert_array_equal(out.values, field(part))
    np.testing.assert_array_equal(out.valid, tokens.valid[part.slices_in(box)] & seen)
