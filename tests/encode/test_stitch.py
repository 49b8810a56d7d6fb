"""Blending: exact on consistent windows, independent of the tile, smooth across windows, honest about validity."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.encode.stitch import ramp, stitch, to_pixels
from pipeline.errors import InvalidInputError
from pipeline.plan.grid import window_origins
from pipeline.types import Box, Embedding, GridSpec

SPEC = GridSpec(patch_px=4, window_px=32, overlap_px=12, tile_px=256)
DIMS = 5


def token_box(row, col, n, m, patch=4):
    return Box(zone=31, res_m=10 * patch, row=row, col=col, height=n, width=m)


def field(box, seed=0):
    """A float field that is a pure function of the lattice place."""
    r, c = np.mgrid[box.row : box.row_stop, box.col : box.col_stop]
    k = np.arange(DIMS)
    return np.sin(r[..., None] * 0.37 + k + seed).astype(np.float32) + np.cos(c[..., None] * 0.21 * (k + 1)).astype(
        np.float32
    )


def windows_over(box, spec=SPEC, noise=0.0):
    ground = Box(zone=31, res_m=10, row=box.row * 4, col=box.col * 4, height=box.height * 4, width=box.width * 4)
    origins = window_origins(ground, spec)
    n = spec.window_px // spec.patch_px
    values = []
    for r, c in origins:
        own = np.random.default_rng([r + 10**6, c + 10**6]).standard_normal((n, n, DIMS)) * noise
        values.append(field(token_box(r // 4, c // 4, n, n)) + own.astype(np.float32))
    return origins, np.stack(values), np.ones((len(origins), n, n), bool)


def test_windows_that_agree_are_returned_unchanged():
    box = token_box(-50, 30, 40, 37)
    origins, values, valid = windows_over(box)
    out = stitch(values, valid, origins=origins, grid=SPEC, box=box)
    assert out.valid.all()
    np.testing.assert_allclose(out.values, field(box), atol=1e-6)


@pytest.mark.parametrize("overlap", [0, 4, 12, 16, 20, 28])
def test_the_same_ground_has_the_same_bytes_whatever_box_asks_for_it(overlap):
    spec = GridSpec(patch_px=4, window_px=32, overlap_px=overlap, tile_px=256)
    big, small = token_box(-50, 30, 64, 64), token_box(-31, 47, 17, 9)
    a = stitch(**dict(zip(("values", "valid"), windows_over(big, spec, 1.0)[1:], strict=True)),
               origins=windows_over(big, spec)[0], grid=spec, box=big)  # fmt: skip
    origins, values, valid = windows_over(small, spec, 1.0)
    b = stitch(values, valid, origins=origins, grid=spec, box=small)
    np.testing.assert_array_equal(a.values[small.slices_in(big)], b.values)


def test_ramp_weights_of_neighbouring_windows_sum_to_one():
    w = ramp(SPEC).astype(float)
    np.testing.assert_allclose(w[-3:] + w[:3], 1.0, atol=1e-6)
    assert (w[3:-3] == 1).all()


def test_invalid_tokens_do_not_leak_into_their_neighbours():
    box = token_box(0, 0, 24, 24)
    origins, values, valid = windows_over(box)
    n = 8
    for i, (r, c) in enumerate(origins):
        rows = np.arange(n) + r // 4
        cols = np.arange(n) + c // 4
        hole = ((rows >= 5) & (rows < 11))[:, None] & (cols == 7)[None, :]
        values[i][hole] = 1e9
        valid[i][hole] = False
    out = stitch(values, valid, origins=origins, grid=SPEC, box=box)
    assert not out.valid[5:11, 7].any()
    assert out.valid.sum() == 24 * 24 - 6
    assert np.abs(out.values[out.valid]).max() < 3


def test_unsorted_windows_are_refused():
    origins, values, valid = windows_over(token_box(0, 0, 24, 24))
    with pytest.raises(InvalidInputError, match="sorted"):
        stitch(values, valid, origins=origins[::-1], grid=SPEC, box=token_box(0, 0, 24, 24))


def test_pixels_of_a_linear_field_are_linear():
    box = token_box(-6, 4, 12, 12)
    r, c = np.mgrid[box.row : box.row_stop, box.col : box.col_stop]
    values = np.stack([(r + 0.5) * 4, (c + 0.5) * 4], axis=-1).astype(np.float32)
    target = Box(zone=31, res_m=10, row=-20, col=20, height=37, width=35)
    out = to_pixels(
        Embedding(values=values, valid=np.ones(box.shape, bool), box=box), np.ones(target.shape, bool), target
    )
    rows, cols = np.mgrid[target.row : target.row_stop, target.col : target.col_stop] + 0.5
    np.testing.assert_allclose(out.values[..., 0], rows, atol=1e-4)
    np.testing.assert_allclose(out.values[..., 1], cols, atol=1e-4)


def test_interpolation_weights_by_validity_and_keeps_the_value_of_the_only_valid_token():
    box = token_box(0, 0, 3, 3)
    valid = np.zeros((3, 3), bool)
    valid[1, 1] = True
    values = np.full((3, 3, 1), 1e9, np.float32)
    values[1, 1] = 7
    target = Box(zone=31, res_m=10, row=4, col=4, height=4, width=4)
    out = to_pixels(Embedding(values=values, valid=valid, box=box), np.ones((4, 4), bool), target)
    assert out.valid.all()
    np.testing.assert_allclose(out.values, 7, rtol=1e-6)


def test_interpolated_pixels_do_not_depend_on_the_box():
    box = token_box(-20, 10, 40, 40)
    tokens = Embedding(values=field(box), valid=np.random.default_rng(1).random(box.shape) > 0.2, box=box)
    big = Box(zone=31, res_m=10, row=-70, col=50, height=120, width=120)
    small = Box(zone=31, res_m=10, row=-33, col=71, height=21, width=40)
    a = to_pixels(tokens, np.ones(big.shape, bool), big)
    cut = token_box(-10, 16, 16, 16)
    inner = Embedding(values=tokens.values[cut.slices_in(box)], valid=tokens.valid[cut.slices_in(box)], box=cut)
    b = to_pixels(inner, np.ones(small.shape, bool), small)
    part = small.slices_in(big)
    np.testing.assert_array_equal(a.valid[part], b.valid)
    np.testing.assert_array_equal(a.values[part][b.valid], b.values[b.valid])
