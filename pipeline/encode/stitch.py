"""Overlapping windows to one field, and a token field to pixels.

Pure numpy on float32. Every sum runs in an order that follows from the global lattice alone, so that a token's bytes
do not depend on the tile, the area or the number of windows around it. ``blend`` is the token-aligned weighted mean
with a linear ramp exactly as wide as the overlap (evidence: the ramp length alone decides the seam, cosine ramps and
discarded margins are worse).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import ConfigError, InvalidInputError
from pipeline.types import PIXEL_M, Box, Embedding, GridSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


def ramp(grid: GridSpec) -> NDArray[np.float32]:
    """Blend weight of each token along one axis of a window: (token,) float32.

    The weights of all windows over a token sum to the same value when the overlap is at most half a window; above that
    ``stitch`` divides by the sum.

    Raises:
        ConfigError: Some token would get weight zero.

    >>> [round(float(w), 3) for w in ramp(GridSpec(patch_px=4, window_px=24, overlap_px=8, tile_px=256))]
    [0.333, 0.667, 1.0, 1.0, 0.667, 0.333]
    """
    n, overlap = grid.window_px // grid.patch_px, grid.overlap_px // grid.patch_px
    distance = np.minimum(np.arange(n), np.arange(n)[::-1]) + 1
    weights = np.minimum(distance / (overlap + 1), 1.0).astype(np.float32)
    if not (weights > 0).all():
        raise ConfigError(f"window {grid.window_px} px with overlap {grid.overlap_px} px gives a token weight zero")
    return weights


def stitch(
    values: NDArray[np.float32],
    valid: NDArray[np.bool_],
    *,
    origins: Sequence[tuple[int, int]],
    grid: GridSpec,
    box: Box,
) -> Embedding:
    """Blend the windows of a tile into one token field.

    Args:
        values: (window, token_row, token_col, dim) float32.
        valid: (window, token_row, token_col) bool; a token is valid in all windows over it or in none.
        origins: Lattice (row, col) of each window's north-west 10 m pixel, sorted.
        grid: The window lattice.
        box: Token box (``res_m`` = 10 * patch) to fill.

    Returns:
        The field over ``box``; tokens that no window covers are not valid.

    Raises:
        InvalidInputError: The origins are not sorted, so that the order of the sums would not be the lattice's.
    """
    if list(origins) != sorted(origins):
        raise InvalidInputError("window origins must be sorted: the order of the sums is part of the result")
    weights = ramp(grid)
    weight = weights[:, None] * weights[None, :]
    total = np.zeros((*box.shape, values.shape[-1]), np.float32)
    norm = np.zeros(box.shape, np.float32)
    for index, (row, col) in enumerate(origins):
        window = _token_box(row, col, grid=grid, zone=box.zone)
        common = window.intersect(box)
        if common is None:
            continue
        inside, out = common.slices_in(window), common.slices_in(box)
        share = np.where(valid[index][inside], weight[inside], np.float32(0))
        total[out] += share[..., None] * values[index][inside]
        norm[out] += share
    ok = norm > 0
    np.divide(total, norm[..., None], out=total, where=ok[..., None])
    return Embedding(values=total, valid=ok, box=box)


def to_pixels(tokens: Embedding, valid: NDArray[np.bool_], box: Box) -> Embedding:
    """Interpolate a token field to 10 m pixels: bilinear between token centres, weighted by validity.

    Args:
        tokens: Token field that reaches one token beyond ``box`` on every side (at patch 1: ``box`` itself).
        valid: (row, col) bool over ``box``: pixels that have an observation; others stay invalid.
        box: 10 m box to fill.

    Returns:
        The pixel field over ``box``. At patch 1 the tokens themselves.
    """
    patch = tokens.box.res_m // PIXEL_M
    if patch == 1:
        cut = box.slices_in(tokens.box)
        return Embedding(values=tokens.values[cut], valid=tokens.valid[cut] & valid, box=box)
    data = np.where(tokens.valid[..., None], tokens.values, np.float32(0))
    mass = tokens.valid.astype(np.float32)
    rows = _taps(box.row, box.height, patch, tokens.box.row)
    cols = _taps(box.col, box.width, patch, tokens.box.col)
    values = _lerp(_lerp(data, rows, axis=0), cols, axis=1)
    weight = _lerp(_lerp(mass, rows, axis=0), cols, axis=1)
    ok = valid & (weight > 0)
    np.divide(values, weight[..., None], out=values, where=ok[..., None])
    return Embedding(values=values, valid=ok, box=box)


def _token_box(row: int, col: int, *, grid: GridSpec, zone: int) -> Box:
    n = grid.window_px // grid.patch_px
    return Box(
        zone=zone,
        res_m=PIXEL_M * grid.patch_px,
        row=row // grid.patch_px,
        col=col // grid.patch_px,
        height=n,
        width=n,
    )


def _taps(start: int, count: int, patch: int, origin: int) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Index of the first of two tokens and weight of the second, from the global phase of each pixel."""
    doubled = 2 * (np.arange(start, start + count)) + 1 - patch  # twice the pixel centre minus half a token
    first = doubled // (2 * patch)
    weight = ((doubled - first * 2 * patch) / (2 * patch)).astype(np.float32)
    return (first - origin).astype(np.intp), weight


def _lerp(
    data: NDArray[np.float32], taps: tuple[NDArray[np.intp], NDArray[np.float32]], *, axis: int
) -> NDArray[np.float32]:
    first, weight = taps
    shape = [1] * data.ndim
    shape[axis] = weight.size
    w = weight.reshape(shape)
    mixed: NDArray[np.float32] = np.take(data, first, axis=axis) * (1 - w) + np.take(data, first + 1, axis=axis) * w
    return mixed
