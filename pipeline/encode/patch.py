"""Resizing of a window so that every token covers 8 x 8 samples: two constant matrices.

A patch size other than 8 changes the input of the encoder and not its weights: the reference resizes the whole window
by 8/p with anti-aliased bicubic interpolation. That is linear and separable, ``rows @ x @ cols.T``, and its matrices
depend on the window alone, so they are built once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

KERNEL_PX = 8
"""Samples per token side that the stored patch embedding reads."""
CUBIC_A = -0.5
"""Keys' cubic convolution constant as torch uses it with ``antialias=True`` (-0.75 without)."""


def token_grid(window_px: tuple[int, int], patch_px: int) -> tuple[int, int]:
    """(token rows, token columns) of a window.

    Raises:
        ConfigError: Patch outside 1..8, or a side that is not a positive multiple of it (the reference would stretch
            such a window silently).
    """
    if not 1 <= patch_px <= KERNEL_PX:
        raise ConfigError(f"patch {patch_px} px is outside 1..{KERNEL_PX}")
    if any(side <= 0 or side % patch_px for side in window_px):
        raise ConfigError(
            f"window {window_px[0]} x {window_px[1]} px is not a positive multiple of patch {patch_px} px"
        )
    return window_px[0] // patch_px, window_px[1] // patch_px


def resize_matrix(size_px: int, patch_px: int) -> NDArray[np.float64]:
    """Matrix (8 * size_px / patch_px, size_px) that resizes one axis; rows sum to 1.

    Equals ``F.interpolate(mode="bicubic", antialias=True, align_corners=False)``. Output sample i has its centre at
    ``(i + 0.5) * patch / 8`` source pixels; its taps lie within 2 px and are cut at the border and renormalised, with
    neither clamping nor reflection (torch, ``aten/src/ATen/native/cpu/UpSampleKernel.cpp``).

    >>> bool(np.array_equal(resize_matrix(16, 8), np.eye(16)))
    True
    """
    count = size_px * KERNEL_PX // patch_px
    matrix = np.zeros((count, size_px))
    for i in range(count):
        centre = patch_px / KERNEL_PX * (i + 0.5)
        start = max(0, int(centre - 1.5))
        stop = min(size_px, int(centre + 2.5))
        taps = np.arange(start, stop)
        weights = _cubic(taps - centre + 0.5)
        matrix[i, start:stop] = weights / weights.sum()
    return matrix


def _cubic(x: NDArray[np.floating]) -> NDArray[np.float64]:
    """Keys' cubic convolution kernel (IEEE Trans. ASSP 29, 1981) with a = ``CUBIC_A``; support 2."""
    a, x = CUBIC_A, np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
