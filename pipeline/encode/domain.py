"""The OlmoEarth encoder over a domain: every token attends to the box of cells around its own.

No windows: a domain is as large as memory allows, tokens attend to the tokens of all sensors and periods of a sliding
box of cells (``pipeline.encode.boxes``), in the blocks as in the pooler of v1.3, and every layer sees half a box
further. The model is the one of ``olmoearth``, which this equals on a domain one box wide; versions with
added positions have none of this, because their tokens depend on where a window begins.

    pixels -> patches, square by square -> layer by layer over the domain -> norm and pooling, or pooler -> core

Tokens are stored (row, col, k), k = sensors, then periods, then band sets. The stream of tokens and the keys and values
of one layer are whole; everything else goes in strips of rows. A layer computes what the layers after it need for the
core and no more. Strips, blocks and boxes follow from the domain alone, so a domain gives the same bytes in any tile.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows
from torch import nn

from pipeline.encode import boxes, rope
from pipeline.encode.checkpoint import pooler_norm
from pipeline.encode.embed import PatchEmbed
from pipeline.encode.layers import Linear, Norm
from pipeline.encode.olmoearth import LOCATION_OUTPUTS
from pipeline.encode.patch import KERNEL_PX, resize_matrix, token_grid
from pipeline.encode.pooler import STEM as POOLER
from pipeline.errors import ConfigError, InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import date

    from numpy.typing import NDArray

    from pipeline.encode.checkpoint import Checkpoint
    from pipeline.encode.layout import PoolerConfig

    Pixels = torch.Tensor | tuple[torch.Tensor, ...]
    Weights = Mapping[str, torch.Tensor]

STRIP_TOKENS = {"cpu": 4096}
MANY_TOKENS = 32768
"""Tokens of a strip on CPUs, where their hidden layer should stay in the cache, and elsewhere. A strip has whole rows
and at least as many as a block of ``boxes``; beside stream, keys and values a layer holds some 16 vectors of every
token of one strip and ``boxes.GATHER_BYTES``."""
SQUARE = 16
"""Cells along a square that is embedded at once, margin included: what resizing costs grows with it, the margin
shrinks."""
REACH_PX = 2
"""Pixels beyond its patch that a token sees by resizing, unless the patch is 8 px (see ``patch.resize_matrix``)."""


@dataclass(frozen=True, slots=True)
class _Span:
    """Cells of a domain along both axes: from ``first`` on, ``count`` of them."""

    first: int
    count: int

    @property
    def stop(self) -> int:
        """One behind the last."""
        return self.first + self.count

    def grown(self, box: int, n: int) -> _Span:
        """All cells in the boxes of these, in a domain of ``n``."""
        starts = boxes.box_starts(self.count, n, box, self.first)
        first, last = int(starts[0]), int(starts[-1])
        return _Span(first, last + box - first)

    def within(self, other: _Span) -> slice:
        """Where these lie among ``other``."""
        return slice(self.first - other.first, self.stop - other.first)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Style:
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


class DomainEncoder(nn.Module):
    """Pixels of one domain to one vector per patch of its core."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        window_px: int,
        patch_px: int,
        dates: Sequence[date],
        sensors: tuple[str, ...] = ("sentinel2_l2a",),
        box_px: int,
        core: tuple[int, int] | None = None,
        output: str | None = None,
        dtype: torch.dtype = torch.float32,
        attention: str = "sdpa",
        location_px: int | None = None,
    ) -> None:
        """Build for one shape.

        Args:
            checkpoint: The model; its tensors are copied.
            window_px: Side of the domain, 10 m pixels, a multiple of ``patch_px``.
            patch_px: Side of a token, 1..8.
            dates: Model date of each period, in order.
            sensors: Which sensors the pixels are of, in the order in which they are given.
            box_px: Side of the box that a token attends to, a multiple of ``patch_px``, at most ``window_px``.
            core: (first token, tokens) along both axes of those that are wanted; None: all. What they need and the
                domain does not have is cut off: boxes are shifted inward at the edge of the domain.
            output: As for ``Encoder``.
            dtype: As for ``Encoder``.
            attention: Kernel of boxes, see ``pipeline.encode.boxes``.
            location_px: v1.3: side of a location token, divides ``patch_px``; None: ``patch_px``.

        Raises:
            ConfigError: The model adds its positions to the tokens; domain, patch, box, core or location do not fit, or
                the model has no such output.
            CheckpointError: The model does not take a sensor.
            InvalidInputError: No dates.
        """
        super().__init__()
        config, card = checkpoint.config, checkpoint.card
        if not config.rope:
            raise ConfigError(
                f"model {card.name} ({card.version}) adds positions to its tokens, so its vectors depend on where a "
                f"window begins and boxes cannot slide over a domain: use grid.stitch=centre, or a version from v1.2 on"
            )
        output = card.output if output is None else output
        self.output = "location" if output in LOCATION_OUTPUTS else output
        if self.output not in ("mean", "max", "location"):
            raise ConfigError(f"output {output!r} is none of mean, max, location, student, student64")
        self.cells, self.dims, self.sensors = token_grid((window_px, window_px), patch_px)[0], config.dims, sensors
        self.periods, self.patch_px = len(dates), patch_px
        self.sets = tuple(len(config.sensor(name).band_sets) for name in sensors)
        box = _box_cells(box_px, patch_px, cells=self.cells)
        self.core = _core_span(core, self.cells)
        step = patch_px * config.coordinate_scale
        style = _Style(cells=self.cells, box=box, heads=config.heads, dtype=dtype, kind=attention)
        self.parts = _parts(location_px, patch_px) if self.output == "location" else 1
        self.field_grid, self.field_dims = (self.core.count * self.parts,) * 2, config.dims
        self.pooler: _Pooler | None = None
        if self.output == "location":
            self.pooler = _Pooler(checkpoint, core=self.core, step=step, parts=self.parts, style=style)
        times = rope.time_coordinates(dates, config.time_scale)
        slots = np.concatenate([np.repeat(times, sets) for sets in self.sets])
        spans = [self.pooler.tokens if self.pooler else self.core]
        for _ in range(config.depth):
            spans.insert(0, spans[0].grown(box, self.cells))
        self.spans = tuple(spans)
        self.embeds = nn.ModuleList(
            _Embed(checkpoint, sensor=name, cells=self.cells, patch_px=patch_px, dates=dates, dtype=dtype)
            for name in sensors
        )
        self.blocks = nn.ModuleList(
            _Layer(
                checkpoint.tensors,
                f"blocks.{i}",
                asks=_mixed(checkpoint.tensors[f"blocks.{i}.attn.rope_mixed_freqs"], self.cells, step, slots),
                spans=(spans[i], spans[i + 1]),
                style=style,
            )
            for i in range(config.depth)
        )
        self.norm = Norm(checkpoint.tensors, "norm")

    def forward(self, pixels: Pixels, visible: torch.Tensor | None = None) -> torch.Tensor:
        """One vector per patch of the core; ``Head`` makes the written one of it, see ``Encoder.forward``.

        Args:
            pixels: One (1, time, band, row, col) float32 per sensor, normalised; a bare tensor for one sensor.
            visible: (1, sensor, time, token_row, token_col) bool, False for tokens that nobody attends to; None when
                all are visible.

        Returns:
            (1, row, col, ``field_dims``) float32 of ``field_grid``; zeros where no token of a patch is visible.

        Raises:
            InvalidInputError: More than one domain.
        """
        parts = (pixels,) if isinstance(pixels, torch.Tensor) else pixels
        _one(parts)
        wanted, stream = self.spans[0], self._stream(parts[0])
        for embed, part, slots in zip(self.embeds, parts, self._slots(), strict=True):
            cast("_Embed", embed)(part[0], into=stream[:, :, slots], wanted=wanted)
        return self._finish(stream, visible)

    def from_patches(self, patches: tuple[torch.Tensor, ...], visible: torch.Tensor | None = None) -> torch.Tensor:
        """As ``forward``, from patches that are embedded already (``embed.Squares``).

        Args:
            patches: One (1, time, token_row, token_col, band set, dim) float32 per sensor, of the whole domain.
            visible: As for ``forward``.
        """
        _one(patches)
        inside, stream = self.spans[0].within(_Span(0, self.cells)), self._stream(patches[0])
        for embed, part, slots in zip(self.embeds, patches, self._slots(), strict=True):
            placed = part[0, :, inside, inside] + cast("_Embed", embed).embed.bias
            stream[:, :, slots] = placed.permute(1, 2, 0, 3, 4).flatten(2, 3)
        return self._finish(stream, visible)

    def _stream(self, like: torch.Tensor) -> torch.Tensor:
        """An empty (row, col, k, dim) float32 of the tokens that are needed."""
        side = self.spans[0].count
        return like.new_empty(side, side, self.periods * sum(self.sets), self.dims)

    def _slots(self) -> Iterator[slice]:
        """Each sensor's tokens of a cell."""
        first = 0
        for sets in self.sets:
            yield slice(first, first + self.periods * sets)
            first += self.periods * sets

    def _finish(self, stream: torch.Tensor, visible: torch.Tensor | None) -> torch.Tensor:
        """Embedded tokens of the first span to the field of the core."""
        seen = None if visible is None else self._by_cell(visible)
        spare = _Spare()
        for block in self.blocks:
            stream = block(stream, stream, visible=seen, spare=spare)
        if self.pooler is None:
            return self._pooled(stream, seen)
        field = self.pooler(stream, self.norm, visible=seen, spare=spare)
        if seen is None:
            return cast("torch.Tensor", field)
        some = seen[self._inside(), self._inside()].any(dim=-1)
        some = some.repeat_interleave(self.parts, dim=0).repeat_interleave(self.parts, dim=1)
        return cast("torch.Tensor", field.masked_fill(~some[None, :, :, None], 0.0))

    def _by_cell(self, visible: torch.Tensor) -> torch.Tensor:
        """(1, sensor, time, row, col) to (row, col, k) of the whole domain."""
        parts = [
            part.permute(1, 2, 0).repeat_interleave(sets, dim=2)
            for part, sets in zip(visible[0].unbind(0), self.sets, strict=True)
        ]
        return torch.cat(parts, dim=2)

    def _inside(self) -> slice:
        """The core, in the domain."""
        return self.core.within(_Span(0, self.cells))

    def _pooled(self, stream: torch.Tensor, seen: torch.Tensor | None) -> torch.Tensor:
        """(row, col, k, dim) of the core to (1, row, col, dim), strip by strip."""
        out = stream.new_empty(1, *self.field_grid, self.dims)
        for rows in strips(stream, least=1):
            x = self.norm(stream[rows])
            shown = None if seen is None else seen[self._inside(), self._inside()][rows]
            out[0, rows] = _largest(x, shown) if self.output == "max" else _mean(x, shown, tuple(self._slots()))
        return out


class _Pooler(nn.Module):
    """``pooler.Pooler`` with boxes: reads and blocks over a grid of cells with ``parts`` x ``parts`` queries each."""

    query: torch.Tensor

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        core: _Span,
        step: float,
        parts: int,
        style: _Style,
    ) -> None:
        super().__init__()
        config, tensors = checkpoint.config.pooler, checkpoint.tensors
        if config is None:
            card = checkpoint.card
            raise ConfigError(f"model {card.name} ({card.version}) has no location tokens")
        style = replace(style, heads=config.heads)
        cells, box = style.cells, style.box
        self.parts, last = parts, core
        layers: list[tuple[_Span, _Span]] = []
        for _ in range(config.depth):
            layers.insert(0, (last.grown(box, cells), last))
            last = layers[0][0]
        self.tokens = last.grown(box, cells)
        """Tokens that the reads need: those of the first, which has the most queries."""
        self.first = last
        keys, asks = _axial(config, cells, step, np.zeros((1, 2))), _axial(config, cells, step, _offsets(parts, step))
        self.register_buffer("query", tensors[f"{POOLER}.learned_query"].clone())
        self.reads = nn.ModuleList(
            _Layer(
                tensors,
                f"{POOLER}.read_blocks.{i}",
                asks=asks,
                answers=(keys, Norm(tensors, pooler_norm(config, i))),
                spans=(self.tokens, wide),
                style=style,
            )
            for i, (wide, _) in enumerate(layers)
        )
        self.blocks = nn.ModuleList(
            _Layer(tensors, f"{POOLER}.self_attn_blocks.{i}", asks=asks, spans=spans, style=style)
            for i, spans in enumerate(layers)
        )
        self.norm = Norm(tensors, f"{POOLER}.norm")

    def forward(self, tokens: torch.Tensor, norm: Norm, *, visible: torch.Tensor | None, spare: _Spare) -> torch.Tensor:
        """(row, col, k, dim) of the tokens before the final ``norm`` to (1, query_row, query_col, dim) of the core."""
        side = self.first.count
        x = self.query.expand(side, side, self.parts**2, -1)
        for read, block in zip(self.reads, self.blocks, strict=True):
            x = read(x, tokens, visible=visible, spare=spare, before=norm)
            x = block(x, x, spare=spare)
        x = torch.cat([self.norm(x[rows]) for rows in strips(x, least=1)])
        x = torch.unflatten(x, 2, (self.parts, self.parts)).transpose(1, 2)  # (row, part, col, part, dim)
        return x.flatten(2, 3).flatten(0, 1).unsqueeze(0)


class _Layer(nn.Module):
    """One transformer block whose queries attend to boxes of its own tokens or, in a read, of other tokens."""

    starts: torch.Tensor

    def __init__(
        self,
        tensors: Weights,
        stem: str,
        *,
        asks: _Turns,
        answers: tuple[_Turns, Norm] | None = None,
        spans: tuple[_Span, _Span],
        style: _Style,
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
        spare: _Spare,
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
            inside = self.source.within(_Span(0, len(visible)))
            visible = visible[inside, inside].contiguous()
        if not self.reads:
            inside = self.wanted.within(self.source)
            x = x[inside, inside]
        # strips read rows that no later strip needs: with keys and values made, the stream can be overwritten
        out = torch.empty_like(x, memory_format=torch.contiguous_format) if self.reads or _graded(x) else x
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

    def _keys(self, tokens: torch.Tensor, *, spare: _Spare, before: Norm | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotated keys, and values, each (row, col, k, head, head_dim) of all tokens."""
        shape = (*tokens.shape[:3], *self.shape)
        k, v = spare.pair(tokens, shape, dtype=self.kv.weight.dtype)
        for rows in strips(tokens, least=1):
            h = tokens[rows] if before is None else before(tokens[rows])
            kv = torch.unflatten(self.kv(self.key_norm(h)), -1, (2, *self.shape))
            k[rows] = self.answers(kv[..., 0, :, :], span=self.source, rows=rows)
            v[rows] = kv[..., 1, :, :]
        return k, v


class _Spare:
    """Memory for the keys and values of one layer, used again by the next."""

    def __init__(self) -> None:
        self._flat: list[torch.Tensor] = []

    def pair(self, like: torch.Tensor, shape: tuple[int, ...], *, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        """Two tensors; new ones where gradients still need the last."""
        count = int(np.prod(shape))
        if _graded(like):
            return tuple(like.new_empty(shape, dtype=dtype) for _ in range(2))
        if not self._flat or len(self._flat[0]) < count:
            self._flat = []  # give the memory back before asking for more
            self._flat = [like.new_empty(count, dtype=dtype) for _ in range(2)]
        return tuple(part[:count].view(shape) for part in self._flat)


def _graded(x: torch.Tensor) -> bool:
    """Whether gradients through ``x`` are wanted, so that it must stay as it is."""
    return torch.is_grad_enabled() and x.requires_grad


def strips(x: torch.Tensor, *, least: int) -> Iterator[slice]:
    """Cut (row, col, k, dim) into rows: about ``STRIP_TOKENS`` tokens, a multiple of ``least`` rows."""
    height = least * max(1, _strip_tokens(x) // (least * x.shape[1] * x.shape[2]))
    for first in range(0, len(x), height):
        yield slice(first, min(first + height, len(x)))


def _strip_tokens(x: torch.Tensor) -> int:
    """How many tokens go at once on a tensor's device."""
    return STRIP_TOKENS.get(x.device.type, MANY_TOKENS)


# ---- positions -------------------------------------------------------------------------------------------------------


class _Turns(nn.Module):
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

    def forward(self, x: torch.Tensor, *, span: _Span, rows: slice) -> torch.Tensor:
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


def _mixed(frequencies: torch.Tensor, cells: int, step: float, times: NDArray[np.float64]) -> _Turns:
    """Positions of a block: (3, head, head_dim / 2) frequencies of time, row and column."""
    turn = frequencies.double().flatten(1)
    places = torch.arange(cells, dtype=torch.float64)[:, None] * step
    return _Turns(places * turn[1], places * turn[2], torch.from_numpy(times)[:, None] * turn[0])


def _axial(config: PoolerConfig, cells: int, step: float, slots: NDArray[np.float64]) -> _Turns:
    """Positions in the pooler; ``slots`` (slot, 2) are rows and columns of the tokens of a cell, from its own.

    See ``rope.axial_tables``: the first half of a head's pairs turns with the row, the second with the column.
    """
    pairs = config.dims // config.heads // 4
    turn = torch.from_numpy(config.rope_base ** (-np.arange(pairs) / pairs))
    none = torch.zeros_like(turn)
    down, across = (torch.cat(parts).repeat(config.heads) for parts in ((turn, none), (none, turn)))
    places, within = torch.arange(cells, dtype=torch.float64)[:, None] * step, torch.from_numpy(slots)
    return _Turns(places * down, places * across, within[:, :1] * down + within[:, 1:] * across)


def _offsets(parts: int, step: float) -> NDArray[np.float64]:
    """(query of a cell, 2) rows and columns of a cell's location tokens from the cell's own, row by row."""
    return rope.query_places((parts, parts), step=step, share=1.0 / parts)


# ---- pixels ----------------------------------------------------------------------------------------------------------


class _Embed(nn.Module):
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
        self.margin = -(-REACH_PX // patch_px) if self.resized else 0
        side_px = self.side * KERNEL_PX
        self.embed = PatchEmbed(
            checkpoint, sensor=sensor, window_px=(side_px, side_px), patch_px=KERNEL_PX, dates=dates, dtype=dtype
        )
        if self.resized:
            matrix = torch.from_numpy(resize_matrix(self.side * patch_px, patch_px)).float()
            self.register_buffer("matrix", matrix)

    def forward(self, pixels: torch.Tensor, *, into: torch.Tensor, wanted: _Span) -> None:
        """(time, band, row, col) float32 of the domain into (row, col, time and band set, dim) of the wanted cells."""
        at_once = max(1, _strip_tokens(pixels) // (len(pixels) * self.side**2))
        squares = self._squares(wanted)
        for down in squares:
            for first in range(0, len(squares), at_once):
                across = squares[first : first + at_once]
                samples = torch.stack([self._samples(pixels, down, part) for part in across])
                found = self.embed.patches(samples) + self.embed.bias  # (square, time, row, col, band set, dim)
                for one, part in zip(found, across, strict=True):
                    rows, cols = (square.span.within(wanted) for square in (down, part))
                    into[rows, cols] = one.permute(1, 2, 0, 3, 4).flatten(2, 3)

    def _squares(self, wanted: _Span) -> list[_Square]:
        """Squares along one axis."""
        side = self.side if self.side == self.cells else self.side - 2 * self.margin
        found = []
        for first in range(wanted.first, wanted.stop, side):
            span = _Span(min(first, max(wanted.first, wanted.stop - side)), min(side, wanted.count))
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

    span: _Span
    origin: int

    def samples(self) -> slice:
        """Where the samples of its cells lie among those of its pixels."""
        first = (self.span.first - self.origin) * KERNEL_PX
        return slice(first, first + self.span.count * KERNEL_PX)


# ---- pooling ---------------------------------------------------------------------------------------------------------


def _mean(x: torch.Tensor, shown: torch.Tensor | None, sensors: tuple[slice, ...]) -> torch.Tensor:
    """(row, col, k, dim) to (row, col, dim): mean of a sensor's visible tokens, then of the sensors that have any."""
    if shown is None:
        means = [x[:, :, slots].mean(dim=2) for slots in sensors]
        return torch.stack(means).sum(dim=0) / len(means) if len(means) > 1 else means[0]
    total, present = torch.zeros_like(x[:, :, 0]), torch.zeros_like(x[:, :, 0, :1])
    for slots in sensors:
        count = shown[:, :, slots].sum(dim=2).unsqueeze(-1)
        total = total + x[:, :, slots].masked_fill(~shown[:, :, slots, None], 0.0).sum(dim=2) / count.clamp(min=1)
        present = present + (count > 0)
    return total / present.clamp(min=1)


def _largest(x: torch.Tensor, shown: torch.Tensor | None) -> torch.Tensor:
    """(row, col, k, dim) to (row, col, dim): the largest of the visible tokens; zeros where there is none."""
    if shown is None:
        return x.amax(dim=2)
    most = x.masked_fill(~shown.unsqueeze(-1), -torch.inf).amax(dim=2)
    return most.masked_fill(~shown.any(dim=2).unsqueeze(-1), 0.0)


# ---- checks ----------------------------------------------------------------------------------------------------------


def _one(parts: tuple[torch.Tensor, ...]) -> None:
    if any(len(part) != 1 for part in parts):
        raise InvalidInputError(f"a domain encoder takes one domain at a time, got {[len(part) for part in parts]}")


def _box_cells(box_px: int, patch_px: int, *, cells: int) -> int:
    if box_px < 1 or box_px % patch_px or box_px > cells * patch_px:
        raise ConfigError(
            f"a box of {box_px} px is not a positive multiple of patch {patch_px} px within a domain of "
            f"{cells * patch_px} px"
        )
    return box_px // patch_px


def _core_span(core: tuple[int, int] | None, cells: int) -> _Span:
    first, count = core or (0, cells)
    if first < 0 or count < 1 or first + count > cells:
        raise ConfigError(f"core of {count} tokens from {first} does not lie in a domain of {cells} tokens")
    return _Span(first, count)


def _parts(location_px: int | None, patch_px: int) -> int:
    if location_px is not None and (location_px < 1 or patch_px % location_px):
        raise ConfigError(f"location_px {location_px} does not divide the patch of {patch_px} px")
    return 1 if location_px is None else patch_px // location_px
