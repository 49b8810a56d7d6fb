"""The OlmoEarth encoder, every release, inference only, one fixed shape.

An ``Encoder`` is built for one (window, patch, dates, sensors): everything that follows from them - interpolation
matrices, encodings, rotary tables - is computed once, and a forward pass is matrix products, attention and norms. It
reads normalised pixels and knows nothing of files, nodata rules or devices' batching.

    pixels of each sensor -> patch embedding + encodings -> blocks -> norm -> pooling (v1, v1.1, v1.2) or pooler (v1.3)

v1 has three band sets for Sentinel-2 (a token each), a convolution and added positions; v1.1 one band set and a linear
embedding; v1.2 rotary positions; v1.3 adds the pooler. Tokens run sensor by sensor, in each (time, row, col, band set).
Differences from the reference that change no result are named in ``layers``, ``embed`` and ``pooler``; time starts at 0
at the first date.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows
from torch import nn

from pipeline.encode import rope
from pipeline.encode.embed import PatchEmbed
from pipeline.encode.layers import Block, Linear, Norm, Style
from pipeline.encode.patch import token_grid
from pipeline.encode.pooler import STEM as POOLER
from pipeline.encode.pooler import Pooler
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import date

    from pipeline.encode.checkpoint import Checkpoint

Pixels = torch.Tensor | tuple[torch.Tensor, ...]
LOCATION_OUTPUTS = ("location", "student", "student64")
STUDENT_PREFIX = 64
"""Channels of ``student64``: the first of the normalised student, not normalised again (a Matryoshka prefix)."""


class Encoder(nn.Module):
    """Pixels of fixed-size windows to tokens or to one vector per patch."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        window_px: tuple[int, int],
        patch_px: int,
        dates: Sequence[date],
        sensors: tuple[str, ...] = ("sentinel2_l2a",),
        output: str | None = None,
        dtype: torch.dtype = torch.float32,
        halves: bool | None = None,
        attention: str = "sdpa",
        core: tuple[int, int] | None = None,
        location_px: int | None = None,
    ) -> None:
        """Build for one shape.

        Args:
            checkpoint: The model; its tensors are copied.
            window_px: (rows, cols) of a window, 10 m pixels, multiples of ``patch_px``.
            patch_px: Side of a token, 1..8.
            dates: Model date of each period, in order.
            sensors: Which sensors the pixels are of, in the order in which they are given.
            output: What ``forward`` gives: ``mean``, ``max``, ``location`` (also for ``student`` and ``student64``,
            whose
                ``Head`` comes after stitching); None: as the checkpoint's card says.
            dtype: float32, bfloat16 or float16: of weights, products and attention.
            halves: Store rotary pairs as halves, which compiled graphs and kernels want; eager float32 is faster with
                interleaved pairs. None: halves unless eager float32 with torch's attention.
            attention: Attention kernel, see ``pipeline.encode.attention``.
            core: (first token, tokens) along both axes of those that are wanted; the last block computes no others.
            location_px: v1.3: side of a location token, divides ``patch_px``; None: ``patch_px``. Whether released
                weights were trained for less is unknown.

        Raises:
            ConfigError: Window, patch, core or location do not fit, or the model has no such output.
            CheckpointError: The model does not take a sensor.
            InvalidInputError: No dates.
        """
        super().__init__()
        config, card = checkpoint.config, checkpoint.card
        output = card.output if output is None else output
        self.output = "location" if output in LOCATION_OUTPUTS else output
        split = (dtype != torch.float32 or attention != "sdpa") if halves is None else halves
        style = Style(dtype=dtype, halves=split, attention=attention)
        self.grid, self.dims, self.periods = token_grid(window_px, patch_px), config.dims, len(dates)
        self.sensors = sensors
        self.sets = tuple(len(config.sensor(name).band_sets) for name in sensors)
        self.bands = tuple(len(config.bands(name)) for name in sensors)
        self.core = self._checked_core(core)
        step = patch_px * config.coordinate_scale
        coords = rope.coordinates(dates, self.grid, step=step, scale=config.time_scale)
        coords = np.concatenate([np.repeat(coords, count, axis=0) for count in self.sets])
        self.embeds = nn.ModuleList(
            PatchEmbed(checkpoint, sensor=name, window_px=window_px, patch_px=patch_px, dates=dates, dtype=dtype)
            for name in sensors
        )
        wanted = self._core_tokens() if self.core and self.output != "location" else None
        self.blocks = nn.ModuleList(
            Block(
                checkpoint.tensors,
                f"blocks.{i}",
                heads=config.heads,
                turns=rope.tables(checkpoint.tensors[f"blocks.{i}.attn.rope_mixed_freqs"], coords)
                if config.rope
                else None,
                style=style,
                core=wanted if i == config.depth - 1 else None,
            )
            for i in range(config.depth)
        )
        self.norm = Norm(checkpoint.tensors, "norm")
        self.field_grid, self.field_dims = self.grid, self.dims
        self.pooler: Pooler | None = None
        if self.output == "location":
            self._add_pooler(
                checkpoint, coords[:, 1:], step=step, share=self._share(location_px, patch_px), style=style
            )
        elif self.output not in ("mean", "max"):
            raise ConfigError(f"output {output!r} is none of mean, max, location, student, student64")

    def _add_pooler(
        self, checkpoint: Checkpoint, places: rope.Coordinates, *, step: float, share: float, style: Style
    ) -> None:
        config = checkpoint.config.pooler
        if config is None:
            raise ConfigError(f"model {checkpoint.card.name} ({checkpoint.card.version}) has no location tokens")
        self.field_grid = (round(self.grid[0] / share), round(self.grid[1] / share))
        self.field_dims = config.dims
        if self.core and share != 1:
            raise ConfigError("a core needs location tokens as large as a patch")
        queries = rope.query_places(self.field_grid, step=step, share=share)
        core = self._core_cells() if self.core else None
        self.pooler = Pooler(checkpoint, tokens=places, queries=queries, style=style, core=core)

    @staticmethod
    def _share(location_px: int | None, patch_px: int) -> float:
        if location_px is not None and (location_px < 1 or patch_px % location_px):
            raise ConfigError(f"location_px {location_px} does not divide the patch of {patch_px} px")
        return 1.0 if location_px is None else location_px / patch_px

    def _checked_core(self, core: tuple[int, int] | None) -> tuple[int, int] | None:
        if core is None or core == (0, max(self.grid)):
            return None
        first, count = core
        if first < 0 or count < 1 or first + count > min(self.grid):
            raise ConfigError(f"core of {count} tokens from {first} does not lie in a grid of {self.grid} tokens")
        return core

    def _inside(self) -> slice:
        """The core along one axis; everything without one."""
        return slice(None) if self.core is None else slice(self.core[0], sum(self.core))

    def _core_cells(self) -> torch.Tensor:
        """Indices of the core's cells, row by row."""
        inside = self._inside()
        return torch.arange(self.grid[0] * self.grid[1]).view(self.grid)[inside, inside].flatten()

    def _core_tokens(self) -> torch.Tensor:
        """Indices of the core's tokens of all sensors."""
        cells, parts, start = self.grid[0] * self.grid[1], [], 0
        for sets in self.sets:
            every = torch.arange(self.periods * cells * sets).view(self.periods, cells, sets)
            parts.append(every[:, self._core_cells()].flatten() + start)
            start += every.numel()
        return torch.cat(parts)

    def encode(self, pixels: Pixels, visible: torch.Tensor | None = None) -> torch.Tensor:
        """Every token after the final norm, flat: (window, token, dim) float32, of the core only where it prunes.

        Args:
            pixels: One (window, time, band, row, col) float32 per sensor, normalised; a bare tensor for one sensor.
            visible: (window, sensor, time, token_row, token_col) bool, False for tokens kept out of attention; None
                when all are visible. A window without any gives zeros or, with torch's attention, numbers to ignore.
        """
        parts = (pixels,) if isinstance(pixels, torch.Tensor) else pixels
        return self._encode([embed(part) for embed, part in zip(self.embeds, parts, strict=True)], visible)

    def _encode(self, x: list[torch.Tensor], visible: torch.Tensor | None) -> torch.Tensor:
        """One (window, token, dim) per sensor to every token after the final norm."""
        stream = torch.cat(x, dim=1) if len(x) > 1 else x[0]  # (window, token, dim)
        keys = None if visible is None else self.flat(visible)
        for block in self.blocks:
            stream = block(stream, keys)
        out: torch.Tensor = self.norm(stream)
        return out

    def flat(self, visible: torch.Tensor) -> torch.Tensor:
        """(window, sensor, time, row, col) to (window, token) in the order of the tokens."""
        parts = [
            part.flatten(1).repeat_interleave(sets, dim=1) if sets > 1 else part.flatten(1)
            for part, sets in zip(visible.unbind(1), self.sets, strict=True)
        ]
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]

    def split(self, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(window, token, dim) to one (window, time, row, col, band set, dim) per sensor."""
        pruned = self.core if tokens.shape[1] != self._count(self.grid) else None
        grid = self.grid if pruned is None else (pruned[1], pruned[1])
        counts = [self.periods * grid[0] * grid[1] * sets for sets in self.sets]
        return tuple(
            torch.unflatten(part, 1, (self.periods, *grid, sets))
            for part, sets in zip(torch.split(tokens, counts, dim=1), self.sets, strict=True)
        )

    def _count(self, grid: tuple[int, int]) -> int:
        return self.periods * grid[0] * grid[1] * sum(self.sets)

    def tokens(self, pixels: Pixels, visible: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        """Unpooled tokens, one (window, time, token_row, token_col, band set, dim) float32 per sensor.

        Undefined where not visible. Arguments as for ``encode``.
        """
        return self.split(self.encode(pixels, visible))

    def per_sensor(self, pixels: Pixels, visible: torch.Tensor | None = None) -> torch.Tensor:
        """Mean of each sensor's visible tokens, zeros where none: (window, sensor, row, col, dim) float32."""
        means = [self._mean(part, seen)[0] for part, seen in self._with_visible(self.encode(pixels, visible), visible)]
        return torch.stack(means, dim=1)

    def forward(self, pixels: Pixels, visible: torch.Tensor | None = None) -> torch.Tensor:
        """One vector per patch; ``Head`` makes the written one of it.

        ``mean``: of each sensor's visible tokens over time and band sets, then over the sensors present in that patch;
        ``max``: over all visible tokens of the patch; ``location``: the pooler's location tokens.

        Args:
            pixels: As for ``encode``.
            visible: As for ``encode``.

        Returns:
            (window, token_row, token_col, ``field_dims``) float32; zeros outside the core; zeros (``location``:
            undefined) where no token of a patch is visible.
        """
        return self._pooled(self.encode(pixels, visible), visible)

    def from_patches(self, patches: tuple[torch.Tensor, ...], visible: torch.Tensor | None = None) -> torch.Tensor:
        """As ``forward``, from patches that are embedded already (``embed.Squares``).

        Args:
            patches: One (window, time, token_row, token_col, band set, dim) float32 per sensor.
            visible: As for ``encode``.
        """
        pairs = zip(self.embeds, patches, strict=True)
        placed = [cast("PatchEmbed", embed).placed(part) for embed, part in pairs]
        return self._pooled(self._encode(placed, visible), visible)

    def _pooled(self, tokens: torch.Tensor, visible: torch.Tensor | None) -> torch.Tensor:
        if self.pooler is not None:
            field = self.pooler(tokens, None if visible is None else self.flat(visible))
            grid = self.field_grid if self.core is None else (self.core[1], self.core[1])
            field = torch.unflatten(field, 1, grid)
        else:
            pairs = self._with_visible(tokens, visible)
            field = self._pool_max(pairs) if self.output == "max" else self._pool_mean(pairs)
        if self.core is None:
            return field
        (first, count), (rows, cols) = self.core, self.grid
        return F.pad(field, (0, 0, first, cols - first - count, first, rows - first - count))

    def _with_visible(
        self, tokens: torch.Tensor, visible: torch.Tensor | None
    ) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
        """(tokens, visible (window, time, row, col)) of each sensor, cut to the core where the tokens are."""
        parts = self.split(tokens)
        if visible is None:
            return [(part, None) for part in parts]
        if parts[0].shape[2] != visible.shape[3]:
            visible = visible[..., self._inside(), self._inside()]
        return list(zip(parts, visible.unbind(1), strict=True))

    @staticmethod
    def _mean(tokens: torch.Tensor, visible: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(mean (window, row, col, dim), number of visible periods (window, row, col, 1)) of one sensor."""
        if visible is None:
            return tokens.mean(dim=(1, 4)), None
        count = visible.sum(dim=1).unsqueeze(-1)  # (window, row, col, 1)
        total = torch.where(visible[..., None, None], tokens, 0.0).sum(dim=(1, 4))
        return total / (count * tokens.shape[4]).clamp(min=1), count

    def _pool_mean(self, pairs: list[tuple[torch.Tensor, torch.Tensor | None]]) -> torch.Tensor:
        means = [self._mean(part, seen) for part, seen in pairs]
        if len(means) == 1:
            return means[0][0]
        total = torch.stack([mean for mean, _ in means]).sum(dim=0)
        if means[0][1] is None:
            return total / len(means)
        present = torch.stack([count > 0 for _, count in means if count is not None]).sum(dim=0)
        return total / present.clamp(min=1)

    @staticmethod
    def _pool_max(pairs: list[tuple[torch.Tensor, torch.Tensor | None]]) -> torch.Tensor:
        best, seen = [], []
        for part, visible in pairs:
            shown = part if visible is None else torch.where(visible[..., None, None], part, -torch.inf)
            best.append(shown.amax(dim=(1, 4)))
            seen.append(None if visible is None else visible.any(dim=1))
        top = torch.stack(best).amax(dim=0)
        if seen[0] is None:
            return top
        some = torch.stack([part for part in seen if part is not None]).any(dim=0)
        return torch.where(some.unsqueeze(-1), top, 0.0)


class FromPatches(nn.Module):
    """An encoder whose windows come as embedded patches: what runs, and what is compiled."""

    def __init__(self, encoder: Encoder) -> None:
        """Wrap an encoder."""
        super().__init__()
        self.encoder, self.field_dims = encoder, encoder.field_dims

    def forward(self, patches: tuple[torch.Tensor, ...], visible: torch.Tensor | None = None) -> torch.Tensor:
        """See ``Encoder.from_patches``."""
        return self.encoder.from_patches(patches, visible)


class Head(nn.Module):
    """Stitched field vectors to written vectors: the student of v1.3 in float32, else nothing.

    It comes after stitching, because means of normalised student vectors leave the sphere that its last norm puts them
    on.
    """

    def __init__(self, checkpoint: Checkpoint, output: str | None = None) -> None:
        """Build for an output; None: as the card says.

        Raises:
            ConfigError: The model has no student.
        """
        super().__init__()
        output = checkpoint.card.output if output is None else output
        config = checkpoint.config.pooler
        self.student = output in ("student", "student64")
        self.prefix = STUDENT_PREFIX if output == "student64" else None
        self.norm: Norm | None = None
        if not self.student:
            return
        if config is None or not config.student:
            raise ConfigError(f"model {checkpoint.card.name} ({checkpoint.card.version}) has no student")
        self.linear = Linear(checkpoint.tensors, (f"{POOLER}.student.0",), dtype=torch.float32)
        if config.student_norm:
            self.norm = Norm(checkpoint.tensors, f"{POOLER}.student.1")

    def forward(self, field: torch.Tensor) -> torch.Tensor:
        """(..., field_dims) float32 to (..., dims) float32."""
        if not self.student:
            return field
        x: torch.Tensor = self.linear(field)
        if self.norm is not None:
            x = self.norm(x)
        return x if self.prefix is None else x[..., : self.prefix]
