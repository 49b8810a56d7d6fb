"""Patches of a domain, square by square."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from pipeline.encode.domain_layers import Span, strip_tokens
from pipeline.encode.embed import PatchEmbed
from pipeline.encode.patch import KERNEL_PX, resize_matrix
from pipeline.types import RESIZE_REACH_PX

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import date

    from pipeline.encode.checkpoint import Checkpoint

SQUARE = 16
"""Cells along a square that is embedded at once, margin included: what resizing costs grows with it, the margin
shrinks."""


class Embed(nn.Module):
    """Patches of one sensor, square by square, as if the domain were embedded at once.

    Squares overlap by the pixels that resizing reads. Squares at an edge end there, and the taps of the resizing with
    them.
    """

    matrix: torch.Tensor

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        sensor: str,
        cells: int,
        patch_px: int,
        dates: Sequence[date],
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.cells, self.patch_px, self.resized = cells, patch_px, patch_px != KERNEL_PX
        self.side = min(SQUARE, cells)
        self.margin = -(-RESIZE_REACH_PX // patch_px) if self.resized else 0
        side_px = self.side * KERNEL_PX
        self.embed = PatchEmbed(
            checkpoint, sensor=sensor, window_px=(side_px, side_px), patch_px=KERNEL_PX, dates=dates, dtype=dtype
        )
        if self.resized:
            matrix = torch.from_numpy(resize_matrix(self.side * patch_px, patch_px)).float()
            self.register_buffer("matrix", matrix)

    def forward(self, pixels: torch.Tensor, *, into: torch.Tensor, wanted: Span) -> None:
        """(time, band, row, col) float32 of the domain into (row, col, time and band set, dim) of the wanted cells."""
        at_once = max(1, strip_tokens(pixels) // (len(pixels) * self.side**2))
        squares = self._squares(wanted)
        for down in squares:
            for first in range(0, len(squares), at_once):
                across = squares[first : first + at_once]
                samples = torch.stack([self._samples(pixels, down, part) for part in across])
                found = self.embed.patches(samples) + self.embed.bias  # (square, time, row, col, band set, dim)
                for one, part in zip(found, across, strict=True):
                    rows, cols = (square.span.within(wanted) for square in (down, part))
                    into[rows, cols] = one.permute(1, 2, 0, 3, 4).flatten(2, 3)

    def _squares(self, wanted: Span) -> list[_Square]:
        """Squares along one axis."""
        side = self.side if self.side == self.cells else self.side - 2 * self.margin
        found = []
        for first in range(wanted.first, wanted.stop, side):
            span = Span(min(first, max(wanted.first, wanted.stop - side)), min(side, wanted.count))
            origin = min(max(span.first - self.margin, 0), self.cells - self.side)
            found.append(_Square(span, origin))
        return found

    def _samples(self, pixels: torch.Tensor, down: _Square, across: _Square) -> torch.Tensor:
        """8 x 8 samples of every token of one square: (time, band, 8 rows, 8 cols)."""
        if not self.resized:
            rows, cols = (slice(s.span.first * KERNEL_PX, s.span.stop * KERNEL_PX) for s in (down, across))
            return pixels[..., rows, cols]
        size = self.side * self.patch_px
        rows, cols = (slice(s.origin * self.patch_px, s.origin * self.patch_px + size) for s in (down, across))
        upper, left = (self.matrix[s.samples()] for s in (down, across))
        return torch.matmul(upper, torch.matmul(pixels[..., rows, cols], left.T))


@dataclass(frozen=True, slots=True)
class _Square:
    """Along one axis: the cells that a square gives, and the first cell of the pixels that it is resized from."""

    span: Span
    origin: int

    def samples(self) -> slice:
        """Where the samples of its cells lie among those of its pixels."""
        first = (self.span.first - self.origin) * KERNEL_PX
        return slice(first, first + self.span.count * KERNEL_PX)
