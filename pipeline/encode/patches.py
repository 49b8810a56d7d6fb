"""The patches under the windows of a tile, each embedded once.

Overlapping windows share most of their patches, and an embedded patch does not depend on the window: squares of the
token lattice are embedded as soon as a row of windows needs them, kept while later rows do, and windows are cut out of
the rows. Squares are anchored at the origin of the zone and always have the same shape, so that a patch's bytes do not
depend on the tile; what a square holds beyond the pixels of the tile is 0 and used by no window.

With sub-patch shifts every shift has squares of its own, on the lattice moved by it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
import torch

from pipeline.encode import assemble
from pipeline.encode.embed import SQUARE
from pipeline.errors import InvalidInputError
from pipeline.types import PIXEL_M, Box, GridSpec

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from pipeline.encode.assemble import Input, Resident
    from pipeline.types import Stack

Pixels = tuple[torch.Tensor, ...]
Patches = tuple[torch.Tensor, ...]
Job = Callable[[], Patches]
"""Waits for squares that are being embedded: one (square, time, SQUARE, SQUARE, band set, dim) per sensor."""
Member = tuple[int, int, int]
"""(index, row, col): position in the caller's list and north-west lattice pixel of a window."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PatchStrip:
    """Embedded patches under one row of windows.

    Attributes:
        row: Lattice row of its first pixel.
        col: Lattice column of its first pixel.
        patches: One (time, token_row, token_col, band set, dim) float32 per sensor, on the device; none where no token
            is visible.
        visible: (sensor, time, token_row, token_col) bool, on the host: tokens with at least one valid pixel.
        windows: The windows in it.
    """

    row: int
    col: int
    patches: Patches
    visible: NDArray[np.bool_]
    windows: tuple[Member, ...]

    def window(self, member: Member, *, grid: GridSpec) -> tuple[Patches, NDArray[np.bool_]]:
        """(patches, visible) of one window: views."""
        side, first = grid.window_px // grid.patch_px, (member[2] - self.col) // grid.patch_px
        cols = slice(first, first + side)
        return tuple(part[:, :, cols] for part in self.patches), self.visible[..., cols]


def strips(
    resident: Resident,
    origins: Sequence[tuple[int, int]],
    *,
    grid: GridSpec,
    inputs: tuple[Input, ...],
    embed: Callable[[Pixels], Job],
    at_once: int,
) -> Iterator[PatchStrip]:
    """Yield every row of windows of every shift, in order; the squares of the next row are being embedded meanwhile.

    Of a row without any visible token nothing is embedded: its ``patches`` are empty.

    Args:
        resident: One tile with halo, one Stack per input.
        origins: Lattice (row, col) of each window's north-west 10 m pixel.
        grid: The window lattice.
        inputs: What the model wants.
        embed: Begins to embed squares, see ``embed.Squares``: always ``at_once`` of them.
        at_once: Squares per call; missing ones are padded with 0.

    Raises:
        InvalidInputError: A window lies outside a Stack or its layers.
    """
    groups = rows(origins, grid.patch_px)
    held = _Squares(resident, grid=grid, inputs=inputs, embed=embed, at_once=at_once)
    ahead: PatchStrip | None = None
    for members, following in zip(groups, (*groups[1:], None), strict=True):
        strip = ahead or held.begin(members)
        ahead = None if following is None else held.begin(following)
        yield held.filled(strip)
        held.forget(following)


def empty_strip(stacks: Sequence[Stack], members: tuple[Member, ...], *, grid: GridSpec) -> PatchStrip:
    """A row of windows without its patches: which of its tokens are visible.

    Raises:
        InvalidInputError: A window lies outside a stack.
    """
    box = window_box(stacks[0].box.zone, members, grid.window_px)
    valid = np.stack([assemble.observed_per_period(stack, box) for stack in stacks])
    visible = visible_tokens(valid, grid.patch_px)
    return PatchStrip(row=box.row, col=box.col, patches=(), visible=visible, windows=members)


def window_box(zone: int, members: Sequence[Member], side: int) -> Box:
    """The 10 m box under the windows of one row."""
    west, east = members[0][2], members[-1][2] + side
    return Box(zone=zone, res_m=PIXEL_M, row=members[0][1], col=west, height=side, width=east - west)


def visible_tokens(valid: NDArray[np.bool_], patch_px: int) -> NDArray[np.bool_]:
    """(sensor, time, row, col) pixels to tokens with at least one valid pixel, which are the ones in attention."""
    sensors, periods, height, width = valid.shape
    parts = valid.reshape(sensors, periods, height // patch_px, patch_px, width // patch_px, patch_px)
    return np.asarray(parts.any(axis=(3, 5)))


def rows(origins: Sequence[tuple[int, int]], patch_px: int) -> tuple[tuple[Member, ...], ...]:
    """The windows by sub-patch shift and row, sorted: the order in which they are encoded."""
    numbered = [(row % patch_px, col % patch_px, row, col, i) for i, (row, col) in enumerate(origins)]
    groups = groupby(sorted(numbered), key=lambda entry: entry[:3])
    return tuple(tuple((i, row, col) for *_, row, col, i in group) for _, group in groups)


class _Squares:
    """Squares that are embedded or being embedded, by (shift down, shift across, square row, square column)."""

    def __init__(
        self,
        resident: Resident,
        *,
        grid: GridSpec,
        inputs: tuple[Input, ...],
        embed: Callable[[Pixels], Job],
        at_once: int,
    ) -> None:
        self._resident, self._grid, self._inputs = resident, grid, inputs
        self._embed, self._at_once = embed, at_once
        self._held: dict[tuple[int, int, int, int], tuple[Job, int]] = {}

    def begin(self, members: tuple[Member, ...]) -> PatchStrip:
        """Have the squares embedded that these windows need and that are not there yet; the strip to be filled."""
        self._check(members)
        strip = empty_strip(self._resident.stacks, members, grid=self._grid)
        if not strip.visible.any():
            return strip
        down, across, rows, cols = self._span(members)
        for row in range(rows.start // SQUARE, -(-rows.stop // SQUARE)):
            places = range(cols.start // SQUARE, -(-cols.stop // SQUARE))
            missing = [col for col in places if (down, across, row, col) not in self._held]
            for start in range(0, len(missing), self._at_once):
                part = missing[start : start + self._at_once]
                job = self._embed(self._pixels((down, across), row, part))
                self._held |= {(down, across, row, col): (job, i) for i, col in enumerate(part)}
        return strip

    def _check(self, members: tuple[Member, ...]) -> None:
        grid = self._grid
        for stack in self._resident.stacks:
            need = window_box(stack.box.zone, members, grid.window_px).pad(grid.embed_px)
            if need.intersect(stack.box) != need:
                raise InvalidInputError(
                    f"windows from row {members[0][1]} and their patches need {need}, the {stack.sensor} stack covers "
                    f"{stack.box}: read what plan.grid.read_box says"
                )

    def filled(self, strip: PatchStrip) -> PatchStrip:
        """Put the squares of a row of windows together."""
        if not strip.visible.any():
            return strip
        down, across, rows, cols = self._span(strip.windows)
        parts: list[torch.Tensor] = []
        for row in range(rows.start // SQUARE, -(-rows.stop // SQUARE)):
            for col in range(cols.start // SQUARE, -(-cols.stop // SQUARE)):
                job, place = self._held[down, across, row, col]
                into, out = _cut(rows, row), _cut(cols, col)
                found = job()
                parts = parts or [_empty(part, rows=len(rows), cols=len(cols)) for part in found]
                for target, part in zip(parts, found, strict=True):
                    target[:, into[0], out[0]] = part[place][:, into[1], out[1]]
        return replace(strip, patches=tuple(parts))

    def forget(self, following: tuple[Member, ...] | None) -> None:
        """Let go of squares above the next row of windows, and of other shifts."""
        if following is None:
            self._held.clear()
            return
        down, across, rows, _ = self._span(following)
        keep = (down, across), rows.start // SQUARE
        self._held = {at: job for at, job in self._held.items() if at[:2] == keep[0] and at[2] >= keep[1]}

    def _span(self, members: tuple[Member, ...]) -> tuple[int, int, range, range]:
        """(shift down, shift across, token rows, token columns) of a row of windows."""
        patch, side = self._grid.patch_px, self._grid.window_px // self._grid.patch_px
        (_, row, west), east = members[0], members[-1][2]
        top, left = row // patch, west // patch
        return row % patch, west % patch, range(top, top + side), range(left, east // patch + side)

    def _pixels(self, shift: tuple[int, int], row: int, cols: list[int]) -> Pixels:
        """``at_once`` squares with their margin, one (square, time, band, row, col) float32 per sensor."""
        patch, margin, side = self._grid.patch_px, self._grid.embed_px, SQUARE * self._grid.patch_px
        whole = Box(
            zone=self._resident.stacks[0].box.zone,
            res_m=PIXEL_M,
            row=row * SQUARE * patch + shift[0] - margin,
            col=cols[0] * SQUARE * patch + shift[1] - margin,
            height=side + 2 * margin,
            width=(cols[-1] - cols[0] + 1) * side + 2 * margin,
        )
        found = []
        for stack, wanted in zip(self._resident.stacks, self._inputs, strict=True):
            strip = _laid(stack, whole, wanted=wanted, resident=self._resident)
            lefts = [(col - cols[0]) * side for col in cols]
            squares = [strip[..., left : left + side + 2 * margin] for left in lefts]
            squares += [torch.zeros_like(squares[0])] * (self._at_once - len(squares))
            found.append(torch.stack(squares))
        return tuple(found)


def _laid(stack: Stack, whole: Box, *, wanted: Input, resident: Resident) -> torch.Tensor:
    """(time, band, row, col) float32 over ``whole``: normalised pixels where the stack has any, 0 elsewhere."""
    common = whole.intersect(stack.box)
    if common is None:
        raise InvalidInputError(f"no pixel of {whole} lies in the stack over {stack.box}")
    pixels = assemble.normalised(stack, common, wanted=wanted, resident=resident)
    if common == whole:
        return pixels
    strip = pixels.new_zeros((*pixels.shape[:2], *whole.shape))
    rows, cols = common.slices_in(whole)
    strip[..., rows, cols] = pixels
    return strip


def _cut(tokens: range, square: int) -> tuple[slice, slice]:
    """What a square and a range of tokens have in common: (in the range, in the square)."""
    first = max(tokens.start, square * SQUARE)
    stop = min(tokens.stop, (square + 1) * SQUARE)
    inside = slice(first - tokens.start, stop - tokens.start)
    return inside, slice(first - square * SQUARE, stop - square * SQUARE)


def _empty(like: torch.Tensor, *, rows: int, cols: int) -> torch.Tensor:
    """(time, row, col, band set, dim) on the device of a batch of squares."""
    _, periods, _, _, sets, dims = like.shape
    return like.new_empty((periods, rows, cols, sets, dims))
