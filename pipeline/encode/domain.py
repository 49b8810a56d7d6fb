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

from dataclasses import replace
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import nn

from pipeline.encode import rope
from pipeline.encode.checkpoint import pooler_norm
from pipeline.encode.domain_embed import Embed
from pipeline.encode.domain_layers import Layer, Span, Spare, Style, axial, mixed, offsets, strips
from pipeline.encode.layers import Norm
from pipeline.encode.olmoearth import LOCATION_OUTPUTS
from pipeline.encode.patch import token_grid
from pipeline.encode.pooler import STEM as POOLER
from pipeline.errors import ConfigError, InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import date

    from pipeline.encode.checkpoint import Checkpoint

    Pixels = torch.Tensor | tuple[torch.Tensor, ...]
    Weights = Mapping[str, torch.Tensor]


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
        style = Style(cells=self.cells, box=box, heads=config.heads, dtype=dtype, kind=attention)
        self.parts = _parts(location_px, patch_px) if self.output == "location" else 1
        self.field_grid, self.field_dims = (self.core.count * self.parts,) * 2, config.dims
        self.pooler: Pooler | None = None
        if self.output == "location":
            self.pooler = Pooler(checkpoint, core=self.core, step=step, parts=self.parts, style=style)
        times = rope.time_coordinates(dates, config.time_scale)
        slots = np.concatenate([np.repeat(times, sets) for sets in self.sets])
        spans = [self.pooler.tokens if self.pooler else self.core]
        for _ in range(config.depth):
            spans.insert(0, spans[0].grown(box, self.cells))
        self.spans = tuple(spans)
        self.embeds = nn.ModuleList(
            Embed(checkpoint, sensor=name, cells=self.cells, patch_px=patch_px, dates=dates, dtype=dtype)
            for name in sensors
        )
        self.blocks = nn.ModuleList(
            Layer(
                checkpoint.tensors,
                f"blocks.{i}",
                asks=mixed(checkpoint.tensors[f"blocks.{i}.attn.rope_mixed_freqs"], self.cells, step, slots),
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
            cast("Embed", embed)(part[0], into=stream[:, :, slots], wanted=wanted)
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
        spare = Spare()
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
        return self.core.within(Span(0, self.cells))

    def _pooled(self, stream: torch.Tensor, seen: torch.Tensor | None) -> torch.Tensor:
        """(row, col, k, dim) of the core to (1, row, col, dim), strip by strip."""
        out = stream.new_empty(1, *self.field_grid, self.dims)
        for rows in strips(stream, least=1):
            x = self.norm(stream[rows])
            shown = None if seen is None else seen[self._inside(), self._inside()][rows]
            out[0, rows] = _largest(x, shown) if self.output == "max" else _mean(x, shown, tuple(self._slots()))
        return out


class Pooler(nn.Module):
    """``pooler.Pooler`` with boxes: reads and blocks over a grid of cells with ``parts`` x ``parts`` queries each."""

    query: torch.Tensor

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        core: Span,
        step: float,
        parts: int,
        style: Style,
    ) -> None:
        super().__init__()
        config, tensors = checkpoint.config.pooler, checkpoint.tensors
        if config is None:
            card = checkpoint.card
            raise ConfigError(f"model {card.name} ({card.version}) has no location tokens")
        style = replace(style, heads=config.heads)
        cells, box = style.cells, style.box
        self.parts, last = parts, core
        layers: list[tuple[Span, Span]] = []
        for _ in range(config.depth):
            layers.insert(0, (last.grown(box, cells), last))
            last = layers[0][0]
        self.tokens = last.grown(box, cells)
        """Tokens that the reads need: those of the first, which has the most queries."""
        self.first = last
        keys, asks = axial(config, cells, step, np.zeros((1, 2))), axial(config, cells, step, offsets(parts, step))
        self.register_buffer("query", tensors[f"{POOLER}.learned_query"].clone())
        self.reads = nn.ModuleList(
            Layer(
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
            Layer(tensors, f"{POOLER}.self_attn_blocks.{i}", asks=asks, spans=spans, style=style)
            for i, spans in enumerate(layers)
        )
        self.norm = Norm(tensors, f"{POOLER}.norm")

    def forward(self, tokens: torch.Tensor, norm: Norm, *, visible: torch.Tensor | None, spare: Spare) -> torch.Tensor:
        """(row, col, k, dim) of the tokens before the final ``norm`` to (1, query_row, query_col, dim) of the core."""
        side = self.first.count
        x = self.query.expand(side, side, self.parts**2, -1)
        for read, block in zip(self.reads, self.blocks, strict=True):
            x = read(x, tokens, visible=visible, spare=spare, before=norm)
            x = block(x, x, spare=spare)
        x = torch.cat([self.norm(x[rows]) for rows in strips(x, least=1)])
        x = torch.unflatten(x, 2, (self.parts, self.parts)).transpose(1, 2)  # (row, part, col, part, dim)
        return x.flatten(2, 3).flatten(0, 1).unsqueeze(0)


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


def _core_span(core: tuple[int, int] | None, cells: int) -> Span:
    first, count = core or (0, cells)
    if first < 0 or count < 1 or first + count > cells:
        raise ConfigError(f"core of {count} tokens from {first} does not lie in a domain of {cells} tokens")
    return Span(first, count)


def _parts(location_px: int | None, patch_px: int) -> int:
    if location_px is not None and (location_px < 1 or patch_px % location_px):
        raise ConfigError(f"location_px {location_px} does not divide the patch of {patch_px} px")
    return 1 if location_px is None else patch_px // location_px
