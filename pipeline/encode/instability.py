"""How sure the windows are of a pixel: where they disagree about its class, and how far their vectors lie apart.

Overlapping windows see the same ground with other surroundings. Where what surrounds a pixel decides its class, the
windows contradict each other, and such a pixel is more often wrong: an error map that needs no label.

The windows are split into ``m`` x ``m`` groups by their lattice index modulo ``m = ceil(window / stride)``: windows of
one group do not overlap, so each group is a field of its own in which every vector comes from one window. Each such
field goes the way of the blended one: head, interpolation, codes, classes. Then every pixel has

- ``disagreement``: share of the blend's weight that lies on windows whose own class differs from the written one;
- ``spread``: root of the weighted mean, over the windows, of the mean squared difference per dimension between the
  window's codes and the written ones. It is counted in code steps because their size is frozen in the calibration:
  relative to the deviation of a field it would depend on the area that was asked for. Quantisers without such a step
  (a scale per pixel, floats) are refused; those of ``power`` count steps of their curved code space.

The encoder is not run again; what follows it is, once per group: 44 to 62 ms per km2 at 128 dimensions and four groups
(overlap up to half a window), 109 at nine, against 8 for stitching and classifying alone, on one core of a busy AMD
EPYC. Whole numbers are compared (codes and classes), windows are added in the order of their groups, which the lattice
fixes, so a pixel's bytes do not depend on the tile. Classifiers are handed in.

Only ``blend`` has more than one window per written pixel; ``check`` refuses the rest. With an overlap below half a
window, the middle of a window is seen by that window alone: nothing can be said there, and it is nodata.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import torch

from pipeline.codes import Coded
from pipeline.encode import quantize, stitch
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from pipeline.encode.stitch import Field, Head
    from pipeline.types import Box, Calibration, GridSpec

VERSION = "1"
"""Raised when the same windows and classes would give other layers."""
NODATA = 255
"""Of both layers: no written pixel, or fewer than two windows over it."""
PER_STEP = 10
"""``spread`` counts tenths of a code step. Rounding of the codes alone gives about 0.4 steps (root of 1/6), so finer
would say nothing; on the simulated sample random weights gave 1.7 (median) and 4 to 6 (99 %)."""
STEPPED = ("linear", "pca", "power", "power_raw")
"""Quantisers whose code steps are the same in every pixel."""
MAX_SPREAD = 254
"""Largest spread that is told apart: 25.4 code steps."""

Classify = Callable[[Coded, "NDArray[np.bool_]"], "NDArray[np.uint8]"]
"""(codes (band, row, col), valid (row, col)) to classes (row, col) uint8, 255 where not valid."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """A written piece of a tile, e.g. a block, and the layers to fill for it.

    Attributes:
        box: Its place, in pixels of the store.
        codes: (dim, row, col) int8 that were written.
        valid: (row, col) bool: pixels that have a vector.
        classes: (row, col) uint8 that were written, one per map.
        disagreement: (row, col) uint8 per map, filled here: per cent, ``NODATA``.
        spread: (row, col) uint8, filled here: tenths of a code step, ``NODATA``.
    """

    box: Box
    codes: NDArray[np.int8]
    valid: NDArray[np.bool_]
    classes: tuple[NDArray[np.uint8], ...]
    disagreement: tuple[NDArray[np.uint8], ...]
    spread: NDArray[np.uint8]


def check(grid: GridSpec, calibration: Calibration) -> None:
    """Refuse a lattice without at least two windows over some written pixel, and codes without a frozen step.

    Raises:
        ConfigError: The way of stitching keeps one window per token, nothing overlaps, the tokens are interleaved
            (``dense``): neighbouring vectors are then of different windows, and no group is a field of its own; or the
            quantiser gives every pixel a step of its own, or none.
    """
    if calibration.method not in STEPPED:
        raise ConfigError(
            f"maps.instability counts the spread of windows in code steps of one frozen size, which "
            f"store.quantiser={calibration.quantiser} does not have: use store.quantiser=linear, pca:K or power, or "
            "leave out maps.instability"
        )
    way_out = "use encode.stitch=blend with an overlap (half a window to say something everywhere), or leave out "
    if grid.stitch != "blend":
        raise ConfigError(
            f"maps.instability compares overlapping windows, encode.stitch={grid.stitch} keeps one vector per token: "
            f"{way_out}maps.instability"
        )
    if grid.overlap_px == 0:
        raise ConfigError(
            f"maps.instability compares overlapping windows, encode.overlap_px is 0: {way_out}maps.instability"
        )
    if grid.dense > 1:
        raise ConfigError(
            f"maps.instability needs one window lattice, encode.dense={grid.dense} interleaves {grid.dense**2}: use "
            "encode.dense=1, or leave out maps.instability"
        )


def group_side(grid: GridSpec) -> int:
    """How many groups there are along each axis: the least number of strides that a window does not reach across.

    >>> group_side(GridSpec(patch_px=4, window_px=64, overlap_px=24, tile_px=256))
    2
    """
    return -(-grid.window_px // grid.stride_px)


def fill(
    values: torch.Tensor,
    valid: NDArray[np.bool_],
    *,
    origins: Sequence[tuple[int, int]],
    grid: GridSpec,
    box: Box,
    head: Head,
    calibration: Calibration,
    classifiers: Sequence[Classify],
    parts: Sequence[Part],
) -> None:
    """Fill the layers of parts under one token box, e.g. of the blocks of one row of a tile.

    Floats of one group over ``box`` exist at once, and of a few rows of pixels of one part.

    Args:
        values: As ``stitch.stitch``.
        valid: As ``stitch.stitch``.
        origins: As ``stitch.stitch``.
        grid: The window lattice.
        box: Token box under all parts, with the margin that interpolation reads.
        head: The model's.
        calibration: Of the written codes.
        classifiers: Of every map, in the order of ``Part.classes``.
        parts: What was written.

    Raises:
        ConfigError: As ``check``.
    """
    check(grid, calibration)
    quantiser = quantize.Quantiser(calibration, values.device)
    votes = [_Votes(part) for part in parts]
    for own, weight in group_fields(values, valid, origins=origins, grid=grid, box=box):
        tokens = stitch.with_head(own, head)
        for count in votes:
            count.add(tokens, weight, quantiser=quantiser, classifiers=classifiers)
    for count in votes:
        count.close()


def group_fields(
    values: torch.Tensor, valid: NDArray[np.bool_], *, origins: Sequence[tuple[int, int]], grid: GridSpec, box: Box
) -> Iterator[tuple[Field, Field]]:
    """Yield, group by group, the windows' own vectors and their weights in the blend.

    Args:
        values: (window, token_row, token_col, dim) float32 on a device.
        valid: (window, token_row, token_col) bool.
        origins: Lattice (row, col) of each window's north-west 10 m pixel.
        grid: The window lattice; ``blend``.
        box: Token box to fill.

    Yields:
        (field of vectors, valid where a valid token of a window of the group lies, 0 elsewhere;
        field (row, col, 1) of the weights on the host, valid everywhere, 0 where no window of the group lies).
    """
    ramp = stitch.ramp(grid)
    weights = torch.from_numpy(ramp[:, None] * ramp[None, :])
    side, patch, stride = group_side(grid), grid.patch_px, grid.stride_px
    for group in product(range(side), repeat=2):
        members = [k for k, (row, col) in enumerate(origins) if (row // stride % side, col // stride % side) == group]
        out = stitch.filled((*box.shape, values.shape[-1]), np.float32(0), values.device)
        weight = torch.zeros((*box.shape, 1))
        there = np.zeros(box.shape, np.bool_)
        for k in members:
            row, col = origins[k][0] // patch - box.row, origins[k][1] // patch - box.col
            rows, cols = _common(row, len(ramp), box.height), _common(col, len(ramp), box.width)
            if rows is None or cols is None:
                continue
            (to_rows, of_rows), (to_cols, of_cols) = rows, cols
            ok = valid[k, of_rows, of_cols]
            seen = torch.from_numpy(ok[..., None])
            there[to_rows, to_cols] = ok
            weight[to_rows, to_cols] = torch.where(seen, weights[of_rows, of_cols, None], 0.0)
            # where: what an invalid token holds may be NaN
            out[to_rows, to_cols] = torch.where(seen.to(out.device), values[k, of_rows, of_cols], 0.0)
        everywhere = np.ones(box.shape, np.bool_)
        yield stitch.Field(values=out, valid=there, box=box), stitch.Field(values=weight, valid=everywhere, box=box)


def _common(start: int, count: int, limit: int) -> tuple[slice, slice] | None:
    """Slices (in the field, in the window) of what a window at ``start`` shares with a field of ``limit`` tokens."""
    first, stop = max(start, 0), min(start + count, limit)
    return (slice(first, stop), slice(first - start, stop - start)) if first < stop else None


class _Votes:
    """What the windows say about one part, added up group by group.

    float64 throughout: whole numbers times weights, element by element, in the order of the groups.
    """

    def __init__(self, part: Part) -> None:
        self._part = part
        self._windows = np.zeros(part.box.shape, np.uint8)
        self._weight = np.zeros(part.box.shape)
        self._squares = np.zeros(part.box.shape)
        self._against = [np.zeros(part.box.shape) for _ in part.classes]

    def add(
        self, tokens: Field, weight: Field, *, quantiser: quantize.Quantiser, classifiers: Sequence[Classify]
    ) -> None:
        """Count one group."""
        part = self._part
        at_once = max(1, quantize.STRIP_BYTES[tokens.values.device.type] // (4 * part.box.width * quantiser.dims))
        shares = stitch.strips(weight, part.valid, part.box, rows=at_once)
        own = stitch.strips(tokens, part.valid, part.box, rows=at_once)
        for strip, share in zip(own, shares, strict=True):
            if not strip.valid.any():
                continue
            rows = slice(strip.box.row - part.box.row, strip.box.row_stop - part.box.row)
            coded = quantiser.coded(strip)
            votes = np.where(strip.valid, share.values[..., 0].numpy(), 0.0).astype(np.float64)
            self._windows[rows] += strip.valid
            self._weight[rows] += votes
            self._squares[rows] += votes * _squares(coded.codes, part.codes[:, rows])
            for classify, written, against in zip(classifiers, part.classes, self._against, strict=True):
                against[rows] += votes * (classify(coded, strip.valid) != written[rows])

    def close(self) -> None:
        """Write the layers."""
        part = self._part
        known = part.valid & (self._windows > 1)
        weight = np.where(known, self._weight, 1.0)
        for layer, against in zip(part.disagreement, self._against, strict=True):
            layer[...] = np.where(known, np.rint(100 * against / weight), NODATA)
        steps = np.sqrt(self._squares / (weight * len(part.codes)))
        part.spread[...] = np.where(known, np.minimum(np.rint(PER_STEP * steps), MAX_SPREAD), NODATA)


def _squares(one: NDArray[np.int8], other: NDArray[np.int8]) -> NDArray[np.int32]:
    """Sum over the dimensions of squared differences of codes, (row, col) int32: exact, in any order."""
    # Int16 holds a difference of codes, int32 the sum of 33,000 squares of them.
    step = np.subtract(one, other, dtype=np.int16)
    return np.asarray(np.einsum("krc,krc->rc", step, step, dtype=np.int32))
