"""Hashed noise on the integer lattice: the same ground gives the same value in every window, on every platform.

Only exactly rounded operations (+ - * / floor, min, max, sqrt) touch pixel arrays: vectorised sin or exp may differ in
the last bit between the body and the tail of an array, and then two windows of one ground would disagree. Knows
nothing of land, bands or files.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_WORD = 0xFFFFFFFFFFFFFFFF
_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_ROTATIONS = ((1.0, 0.0), (0.8, 0.6), (-0.28, 0.96), (0.6, -0.8), (0.96, 0.28))
"""(cos, sin) of the axes of successive octaves, exact in decimals; hides that value noise follows a grid."""


def salt_of(*parts: int | str) -> int:
    """A 64-bit salt from a seed, a zone and a name; equal parts give equal salts everywhere."""
    text = "/".join(str(p) for p in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def hashed(first: NDArray[Any], second: NDArray[Any], *, salt: int) -> NDArray[np.uint64]:
    """64 hashed bits per pair of integers (SplitMix64 finaliser, Steele et al., OOPSLA 2014, applied per key)."""
    with np.errstate(over="ignore"):
        bits = np.uint64(salt & _WORD) ^ (np.asarray(first).astype(np.int64).astype(np.uint64) * np.uint64(_GOLDEN))
        bits = _mixed(bits) ^ (np.asarray(second).astype(np.int64).astype(np.uint64) * np.uint64(_MIX_1))
        return _mixed(bits)


def unit(bits: NDArray[np.uint64], *, lane: int = 0) -> NDArray[np.float64]:
    """Numbers in [0, 1) from 16 of the 64 bits; lanes 0..3 are independent."""
    return ((bits >> np.uint64(16 * lane)) & np.uint64(0xFFFF)).astype(np.float64) / 65536.0


def value_noise(y: NDArray[np.float64], x: NDArray[np.float64], *, wave_px: float, salt: int) -> NDArray[np.float64]:
    """Smooth value noise in [0, 1) at positions (y, x) in pixels; features are about ``wave_px`` wide."""
    row, col = np.floor(y / wave_px), np.floor(x / wave_px)
    fy, fx = y / wave_px - row, x / wave_px - col
    fy, fx = fy * fy * (3.0 - 2.0 * fy), fx * fx * (3.0 - 2.0 * fx)
    row_0, col_0 = int(row.min()), int(col.min())
    rows, cols = np.arange(row_0, int(row.max()) + 2), np.arange(col_0, int(col.max()) + 2)
    nodes = unit(hashed(rows[:, None], cols[None, :], salt=salt))
    flat, width = nodes.ravel(), nodes.shape[1]
    at = (row.astype(np.int64) - row_0) * width + (col.astype(np.int64) - col_0)
    north = flat[at] * (1.0 - fx) + flat[at + 1] * fx
    south = flat[at + width] * (1.0 - fx) + flat[at + width + 1] * fx
    return np.asarray(north * (1.0 - fy) + south * fy)


def grid_noise(y: NDArray[np.float64], x: NDArray[np.float64], *, wave_px: float, salt: int) -> NDArray[np.float64]:
    """``value_noise`` on a plain grid of positions (row, col), in a third of the time: only edges are looked at."""
    row, col = np.floor(y[:, 0] / wave_px), np.floor(x[0] / wave_px)
    fy, fx = (y[:, 0] / wave_px - row)[:, None], x[0] / wave_px - col
    fy, fx = fy * fy * (3.0 - 2.0 * fy), fx * fx * (3.0 - 2.0 * fx)
    rows, cols = np.arange(int(row[0]), int(row[-1]) + 2), np.arange(int(col[0]), int(col[-1]) + 2)
    nodes = unit(hashed(rows[:, None], cols[None, :], salt=salt))
    north, west = (row - row[0]).astype(np.int64), (col - col[0]).astype(np.int64)
    lines = nodes[north] * (1.0 - fy) + nodes[north + 1] * fy
    return np.asarray(lines[:, west] * (1.0 - fx) + lines[:, west + 1] * fx)


def fractal(
    y: NDArray[np.float64], x: NDArray[np.float64], *, wave_px: float, salt: int, octaves: int = 3
) -> NDArray[np.float64]:
    """Octaves of value noise on turned axes, each half as wide and half as strong; mean about 0.5, within [0, 1]."""
    total = np.zeros(np.broadcast_shapes(y.shape, x.shape))
    weight, weights = 1.0, 0.0
    for octave in range(octaves):
        cos, sin = _ROTATIONS[(octave + 1) % len(_ROTATIONS)]
        turned_y, turned_x = y * cos + x * sin, x * cos - y * sin
        total += weight * value_noise(turned_y, turned_x, wave_px=wave_px / 2.0**octave, salt=salt + octave)
        weights += weight
        weight /= 2.0
    return total / weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One jittered point per square of a lattice.

    Attributes:
        key: (row, col) of the square.
        y: Row position, pixels.
        x: Column position, pixels.
        dice: Four independent numbers in [0, 1).
    """

    key: tuple[int, int]
    y: float
    x: float
    dice: tuple[float, float, float, float]


def sites_near(
    rows: tuple[int, int], cols: tuple[int, int], *, spacing_px: int, reach_px: int, salt: int
) -> tuple[Site, ...]:
    """Every site that can reach a pixel of [rows[0], rows[1]) x [cols[0], cols[1]) from ``reach_px`` away.

    A site keeps a fifth of the spacing from its square's border.
    """
    row = np.arange((rows[0] - reach_px) // spacing_px - 1, (rows[1] + reach_px) // spacing_px + 2)
    col = np.arange((cols[0] - reach_px) // spacing_px - 1, (cols[1] + reach_px) // spacing_px + 2)
    row, col = (axis.ravel() for axis in np.meshgrid(row, col, indexing="ij"))
    where, bits = hashed(row, col, salt=salt), hashed(row, col, salt=salt ^ _GOLDEN)
    y, x = ((axis + 0.2 + 0.6 * unit(where, lane=n)) * spacing_px for n, axis in enumerate((row, col)))
    dice = np.stack([unit(bits, lane=n) for n in range(4)], axis=1)
    return tuple(
        Site(key=(r, c), y=at_y, x=at_x, dice=(a, b, d, e))
        for r, c, at_y, at_x, (a, b, d, e) in zip(
            row.tolist(), col.tolist(), y.tolist(), x.tolist(), dice.tolist(), strict=True
        )
    )


def voronoi(
    y: NDArray[np.float64], x: NDArray[np.float64], *, spacing_px: int, salt: int
) -> tuple[NDArray[np.uint64], NDArray[np.float64]]:
    """Cells of jittered sites.

    Returns:
        (cell, edge_px): hashed identity of the nearest site, and about how far the border to the second nearest is.
    """
    row, col = np.floor(y / spacing_px).astype(np.int64), np.floor(x / spacing_px).astype(np.int64)
    row_0, col_0 = int(row.min()) - 1, int(col.min()) - 1
    rows, cols = np.arange(row_0, int(row.max()) + 2)[:, None], np.arange(col_0, int(col.max()) + 2)[None, :]
    bits = hashed(rows, cols, salt=salt)
    site_y = ((rows + 0.15 + 0.7 * unit(bits, lane=0)) * spacing_px).ravel()
    site_x = ((cols + 0.15 + 0.7 * unit(bits, lane=1)) * spacing_px).ravel()
    width = bits.shape[1]
    centre = (row - row_0) * width + (col - col_0)
    first = np.full(y.shape, np.inf)
    second, owner = first.copy(), np.zeros(y.shape, np.int64)
    for step in (-width - 1, -width, -width + 1, -1, 0, 1, width - 1, width, width + 1):
        at = centre + step
        away = np.sqrt((y - site_y[at]) ** 2 + (x - site_x[at]) ** 2)
        closer = away < first
        second = np.where(closer, first, np.minimum(second, away))
        owner, first = np.where(closer, at, owner), np.minimum(first, away)
    identity = hashed(bits.ravel().view(np.int64), bits.ravel().view(np.int64), salt=salt + 1)
    return identity[owner], (second - first) / 2.0


def _mixed(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(_MIX_1)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(_MIX_2)
    return np.asarray(bits ^ (bits >> np.uint64(31)))
