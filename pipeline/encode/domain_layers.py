"""Layers of an encoder over a domain: positions by axis, boxes of keys, strips of rows.

A layer makes the keys and values of the whole span that it is given, then everything else strip by strip, so that what
it holds beside stream, keys and values does not grow with the domain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows
from torch import nn

from pipeline.encode import boxes, rope
from pipeline.encode.layers import Linear, Norm

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from pipeline.encode.layout import PoolerConfig

    Weights = Mapping[str, torch.Tensor]

STRIP_TOKENS = {"cpu": 4096}
MANY_TOKENS = 32768
"""Tokens of a strip on CPUs, where their hidden layer should stay in the cache, and elsewhere. A strip has whole rows
and at least as many as a block of ``boxes``; beside stream, keys and values a layer holds some 16 vectors of every
token of one strip and ``boxes.GATHER_BYTES``."""


@dataclass(frozen=True, slots=True)
class Span:
    """Cells of a domain along both axes: from ``first`` on, ``count`` of them."""

    first: int
    count: int

    @property
    def stop(self) -> int:
        """One behind the last."""
        return self.first + self.count

    def grown(self, box: int, n: int) -> Span:
        """All cells in the boxes of these, in a domain of ``n``."""
        starts = boxes.box_starts(self.count, n, box, self.first)
        first, last = int(starts[0]), int(starts[-1])
        return Span(first, last + box - first)

    def within(self, other: Span) -> slice:
        """Where these lie among ``other``."""
        return slice(self.first - other.first, self.stop - other.first)


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """What all layers of an encoder, or of its pooler, have in common.

    Attributes:
        cells: Cells along a side of the domain.
        box: Cells along a side of a box.
        heads: Attention heads.
        dtype: Of weights, products and attention.
        kind: Kernel of boxes.
    """

    cells: int
    box: int
    heads: int
    dtype: torch.dtype
    kind: str


class Layer(nn.Module):
    """One transformer block whose queries attend to boxes of its own tokens or, in a read, of other tokens."""

    starts: torch.Tensor

    def __init__(
        self,
        tensors: Weights,
        stem: str,
        *,
        asks: Turns,
        answers: tuple[Turns, Norm] | None = None,
        spans: tuple[Span, Span],
        style: Style,
    ) -> None:
        """Take the weights of ``stem``.

        Args:
            tensors: The model's tensors.
            stem: Name of the block.
            asks: Rotation of the queries.
            answers: Of a read: rotation and norm of the tokens; else the queries' own.
            spans: What it is given (for a read: the tokens) and what it must give.
            style: How it computes.
        """
        super().__init__()
        dims = len(tensors[f"{stem}.attn.q.bias"])
        self.shape, self.kind, self.box = (style.heads, dims // style.heads), style.kind, style.box
        self.source, self.wanted = spans
        self.reads = answers is not None
        self.norm1 = Norm(tensors, f"{stem}.norm1")
        self.asks, self.key_norm = asks, self.norm1
        self.answers = asks
        if answers is not None:
            self.answers, self.key_norm = answers
        self.q = Linear(tensors, (f"{stem}.attn.q",), dtype=style.dtype)
        self.kv = Linear(tensors, (f"{stem}.attn.k", f"{stem}.attn.v"), dtype=style.dtype)
        self.proj = Linear(tensors, (f"{stem}.attn.proj",), dtype=style.dtype)
        self.norm2 = Norm(tensors, f"{stem}.norm2")
        self.fc1 = Linear(tensors, (f"{stem}.mlp.fc1",), dtype=style.dtype)
        self.fc2 = Linear(tensors, (f"{stem}.mlp.fc2",), dtype=style.dtype)
        starts = boxes.box_starts(self.wanted.count, style.cells, style.box, self.wanted.first) - self.source.first
        self.register_buffer("starts", starts)

    def forward(
        self,
        x: torch.Tensor,
        tokens: torch.Tensor,
        *,
        visible: torch.Tensor | None = None,
        spare: Spare,
        before: Norm | None = None,
    ) -> torch.Tensor:
        """(row, col, k, dim) float32 to the same of the wanted cells; overwrites ``x`` if it may.

        Args:
            x: The stream; in a read: the queries of the wanted cells, or one vector expanded to them.
            tokens: What keys and values are made of: the stream, or the tokens that are read.
            visible: (row, col, k) bool of the whole domain: tokens that others attend to; None: all.
            spare: Memory for keys and values.
            before: A norm that ``tokens`` still lack.
        """
        k, v = self._keys(tokens, spare=spare, before=before)
        if visible is not None:
            inside = self.source.within(Span(0, len(visible)))
            visible = visible[inside, inside].contiguous()
        if not self.reads:
            inside = self.wanted.within(self.source)
            x = x[inside, inside]
        # strips read rows that no later strip needs: with keys and values made, the stream can be overwritten
        out = torch.empty_like(x, memory_format=torch.contiguous_format) if self.reads or graded(x) else x
        for rows in strips(x, least=boxes.block_side(self.box, k.shape[2])):
            mixed = boxes.attend_boxes(
                self.kind,
                self._queries(x, rows),
                k,
                v,
                row_starts=self.starts[rows],
                col_starts=self.starts,
                box=self.box,
                visible=visible,
            )
            h = x[rows] + self.proj(mixed)
            out[rows] = h + self.fc2(F.gelu(self.fc1(self.norm2(h))))
        return out

    def _queries(self, x: torch.Tensor, rows: slice) -> torch.Tensor:
        """Rotated queries of some rows: (row, col, k, head, head_dim)."""
        part = x[rows]
        same = x.stride(0) == 0  # one vector for all: its product is made once
        q = self.q(self.norm1(part[:1, :1, :1] if same else part)).expand(*part.shape[:3], -1)
        turned: torch.Tensor = self.asks(torch.unflatten(q, -1, self.shape), span=self.wanted, rows=rows)
        return turned

    def _keys(self, tokens: torch.Tensor, *, spare: Spare, before: Norm | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotated keys, and values, each (row, col, k, head, head_dim) of all tokens."""
        shape = (*tokens.shape[:3], *self.shape)
        k, v = spare.pair(tokens, shape, dtype=self.kv.weight.dtype)
        for rows in strips(tokens, least=1):
            h = tokens[rows] if before is None else before(tokens[rows])
            kv = torch.unflatten(self.kv(self.key_norm(h)), -1, (2, *self.shape))
            k[rows] = self.answers(kv[..., 0, :, :], span=self.source, rows=rows)
            v[rows] = kv[..., 1, :, :]
        return k, v


class Spare:
    """Memory for the keys and values of one layer, used again by the next."""

    def __init__(self) -> None:
        self._flat: list[torch.Tensor] = []

    def pair(self, like: torch.Tensor, shape: tuple[int, ...], *, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        """Two tensors; new ones where gradients still need the last."""
        count = int(np.prod(shape))
        if graded(like):
            return tuple(like.new_empty(shape, dtype=dtype) for _ in range(2))
        if not self._flat or len(self._flat[0]) < count:
            self._flat = []  # give the memory back before asking for more
            self._flat = [like.new_empty(count, dtype=dtype) for _ in range(2)]
        return tuple(part[:count].view(shape) for part in self._flat)


def graded(x: torch.Tensor) -> bool:
    """Whether gradients through ``x`` are wanted, so that it must stay as it is."""
    return torch.is_grad_enabled() and x.requires_grad


def strips(x: torch.Tensor, *, least: int) -> Iterator[slice]:
    """Cut (row, col, k, dim) into rows: about ``STRIP_TOKENS`` tokens, a multiple of ``least`` rows."""
    height = least * max(1, strip_tokens(x) // (least * x.shape[1] * x.shape[2]))
    for first in range(0, len(x), height):
        yield slice(first, min(first + height, len(x)))


def strip_tokens(x: torch.Tensor) -> int:
    """How many tokens go at once on a tensor's device."""
    return STRIP_TOKENS.get(x.device.type, MANY_TOKENS)


class Turns(nn.Module):
    """Rotary tables of a domain by axis: the rotation of a token is the product of its row's, column's and slot's.

    A table of every token of every layer would be larger than the tokens themselves. Angles are made in float64; the
    product of three float32 factors errs by 2e-7. Pairs of channels are interleaved, as released.
    """

    rows: torch.Tensor
    cols: torch.Tensor
    slots: torch.Tensor

    def __init__(self, rows: torch.Tensor, cols: torch.Tensor, slots: torch.Tensor) -> None:
        """Take angles (cell, pair of every head) of rows and columns, and (slot, pair) of the tokens of a cell."""
        super().__init__()
        self.register_buffer("rows", _cis(rows))
        self.register_buffer("cols", _cis(cols))
        self.still = not bool(slots.any())
        self.register_buffer("slots", _cis(slots))

    def forward(self, x: torch.Tensor, *, span: Span, rows: slice) -> torch.Tensor:
        """Rotate (row, col, slot, head, head_dim) of the ``rows`` of a span of cells; the same dtype."""
        down = self.rows[span.first + rows.start : span.first + rows.stop]
        across = self.cols[span.first : span.stop]
        turns = (down[:, None] * across[None]).unsqueeze(2)  # (row, col, 1, pair)
        if not self.still:
            turns = turns * self.slots
        pairs = torch.view_as_complex(torch.unflatten(x.flatten(-2).float(), -1, (-1, 2)))
        return torch.view_as_real(pairs * turns).flatten(-2).view(x.shape).to(x.dtype)


def _cis(angles: torch.Tensor) -> torch.Tensor:
    return torch.complex(angles.cos().float(), angles.sin().float())


def mixed(frequencies: torch.Tensor, cells: int, step: float, times: NDArray[np.float64]) -> Turns:
    """Positions of a block: (3, head, head_dim / 2) frequencies of time, row and column."""
    turn = frequencies.double().flatten(1)
    places = torch.arange(cells, dtype=torch.float64)[:, None] * step
    return Turns(places * turn[1], places * turn[2], torch.from_numpy(times)[:, None] * turn[0])


def axial(config: PoolerConfig, cells: int, step: float, slots: NDArray[np.float64]) -> Turns:
    """Positions in the pooler; ``slots`` (slot, 2) are rows and columns of the tokens of a cell, from its own.

    See ``rope.axial_tables``: the first half of a head's pairs turns with the row, the second with the column.
    """
    pairs = config.dims // config.heads // 4
    turn = torch.from_numpy(config.rope_base ** (-np.arange(pairs) / pairs))
    none = torch.zeros_like(turn)
    down, across = (torch.cat(parts).repeat(config.heads) for parts in ((turn, none), (none, turn)))
    places, within = torch.arange(cells, dtype=torch.float64)[:, None] * step, torch.from_numpy(slots)
    return Turns(places * down, places * across, within[:, :1] * down + within[:, 1:] * across)


def offsets(parts: int, step: float) -> NDArray[np.float64]:
    """(query of a cell, 2) rows and columns of a cell's location tokens from the cell's own, row by row."""
    return rope.query_places((parts, parts), step=step, share=1.0 / parts)
