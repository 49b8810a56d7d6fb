"""Windows of one sensor to tokens: patch embedding and the encodings that are added to it.

Two kinds: from v1.1 on a linear layer per sample and one per token, in v1 one convolution per band set. A patch size
other than 8 px changes the input: the window is resized so that every token covers 8 x 8 samples, by two constant
matrices in float32. What is added to the tokens (channel, month, and in v1 and v1.1 slot, row and column) is constant
for one (window, patch, dates) and therefore part of the bias.
"""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from pipeline.encode.checkpoint import patch_stem
from pipeline.encode.layers import Linear
from pipeline.encode.patch import KERNEL_PX, resize_matrix, token_grid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.encode.checkpoint import Checkpoint, EncoderConfig

SQUARE = 16
"""Tokens along a side of what is embedded at once: large enough for matrix products, small enough that little beyond
the windows of a tile is embedded."""
ANY_DATE = date(2020, 1, 1)
"""Embedded patches know no date; encodings are added where windows are."""


class PatchEmbed(nn.Module):
    """Pixels of one sensor to its tokens, in the order (time, row, col, band set)."""

    rows: torch.Tensor
    cols: torch.Tensor
    bias: torch.Tensor

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        sensor: str,
        window_px: tuple[int, int],
        patch_px: int,
        dates: Sequence[date],
        dtype: torch.dtype,
        margin_px: int = 0,
    ) -> None:
        """Build for one shape; arguments as for ``Encoder``.

        With ``margin_px`` (a multiple of the patch) pixels come with as much more on every side, which resizing reads
        and no token holds.
        """
        super().__init__()
        config, tensors = checkpoint.config, checkpoint.tensors
        self.resized = patch_px != KERNEL_PX
        if self.resized:
            rows, cols = (_resize(side, patch_px, margin_px=margin_px) for side in window_px)
            self.register_buffer("rows", rows)
            self.register_buffer("cols", cols.T.contiguous())
        groups = config.sensor(sensor).band_sets
        self.sizes = [len(group) for group in groups]
        stems = [patch_stem(sensor, i) for i in range(len(groups))]
        kind = Samples if config.hidden else Convolution
        self.sets = nn.ModuleList(kind(checkpoint, stem, dtype=dtype) for stem in stems)
        own = torch.stack([tensors[f"{stem}.proj.bias"] for stem in stems])  # (band set, dim)
        grid = token_grid(window_px, patch_px)
        bias = own + composite_encoding(checkpoint, sensor=sensor, dates=dates, grid=grid, patch_px=patch_px)
        self.register_buffer("bias", bias.contiguous())  # (time, row or 1, col or 1, band set, dim)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(window, time, band, row, col) float32 to (window, token, dim) float32."""
        return self.placed(self.patches(pixels))

    def placed(self, patches: torch.Tensor) -> torch.Tensor:
        """Add what depends on date and place: ``patches`` to (window, token, dim) float32."""
        return (patches + self.bias).flatten(1, 4)

    def patches(self, pixels: torch.Tensor) -> torch.Tensor:
        """(window, time, band, row, col) float32 to (window, time, token_row, token_col, band set, dim) float32.

        The embedded patches alone: equal pixels give equal vectors at every place and date.
        """
        x = torch.matmul(pixels, self.cols) if self.resized else pixels  # (w, t, band, row, 8 gw)
        x = x.permute(0, 1, 3, 4, 2).flatten(-2)  # (w, t, row, 8 gw band)
        x = torch.matmul(self.rows, x) if self.resized else x  # (w, t, 8 gh, 8 gw band)
        x = torch.unflatten(torch.unflatten(x, -1, (-1, KERNEL_PX, pixels.shape[2])), 2, (-1, KERNEL_PX))
        x = x.transpose(3, 4)  # (w, t, gh, gw, 8, 8, band)
        parts = [module(group) for module, group in zip(self.sets, torch.split(x, self.sizes, dim=-1), strict=True)]
        return torch.stack(parts, dim=-2) if len(parts) > 1 else parts[0].unsqueeze(-2)


class Squares(nn.Module):
    """Squares of the token lattice to embedded patches, each once, for all windows over them.

    A square is ``SQUARE`` x ``SQUARE`` tokens and comes with the pixels around it that resizing reads, so that a patch
    is embedded as in the middle of an endless image: the border of a window leaves no trace.
    """

    def __init__(
        self, checkpoint: Checkpoint, *, patch_px: int, margin_px: int, sensors: tuple[str, ...], dtype: torch.dtype
    ) -> None:
        """Build for one patch; ``margin_px`` as ``GridSpec.embed_px``, other arguments as for ``Encoder``."""
        super().__init__()
        side = SQUARE * patch_px
        self.embeds = nn.ModuleList(
            PatchEmbed(
                checkpoint,
                sensor=name,
                window_px=(side, side),
                patch_px=patch_px,
                dates=(ANY_DATE,),
                dtype=dtype,
                margin_px=margin_px,
            )
            for name in sensors
        )

    def forward(self, pixels: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Embed squares.

        Args:
            pixels: One (square, time, band, row, col) float32 per sensor, ``SQUARE`` patches and the margin wide.

        Returns:
            One (square, time, SQUARE, SQUARE, band set, dim) float32 per sensor.
        """
        pairs = zip(self.embeds, pixels, strict=True)
        return tuple(cast("PatchEmbed", embed).patches(part) for embed, part in pairs)


def _resize(side: int, patch_px: int, *, margin_px: int) -> torch.Tensor:
    """(samples, pixels and margins) float32 of one axis."""
    matrix = torch.from_numpy(resize_matrix(side + 2 * margin_px, patch_px)).float()
    cut = margin_px * KERNEL_PX // patch_px
    return matrix[cut : len(matrix) - cut].contiguous()


class Samples(nn.Module):
    """Patch embedding from v1.1 on: ReLU of a linear layer per sample, then a linear layer over 8 x 8 of them."""

    weight: torch.Tensor

    def __init__(self, checkpoint: Checkpoint, stem: str, *, dtype: torch.dtype) -> None:
        """Take the weights of ``stem``; its bias is added by ``PatchEmbed``."""
        super().__init__()
        self.pixel = Linear(checkpoint.tensors, (f"{stem}.pixel_proj.0",), dtype=dtype)
        self.register_buffer("weight", checkpoint.tensors[f"{stem}.proj.weight"].to(dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(w, t, gh, gw, 8, 8, band) to (w, t, gh, gw, dim)."""
        return F.linear(F.relu(self.pixel(x)).flatten(-3), self.weight)


class Convolution(nn.Module):
    """Patch embedding of v1: a convolution of 8 x 8 samples with stride 8, as one product."""

    weight: torch.Tensor

    def __init__(self, checkpoint: Checkpoint, stem: str, *, dtype: torch.dtype) -> None:
        """Take the weights of ``stem``; its bias is added by ``PatchEmbed``."""
        super().__init__()
        kernel = checkpoint.tensors[f"{stem}.proj.weight"]  # (dim, band, 8, 8)
        self.register_buffer("weight", kernel.permute(0, 2, 3, 1).flatten(1).to(dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(w, t, gh, gw, 8, 8, band) to (w, t, gh, gw, dim)."""
        return F.linear(x.flatten(-3).to(self.weight.dtype), self.weight)


def composite_encoding(
    checkpoint: Checkpoint, *, sensor: str, dates: Sequence[date], grid: tuple[int, int], patch_px: int
) -> torch.Tensor:
    """What is added to a sensor's tokens, a quarter of the width each: channel, slot, month, place.

    v1.2 and v1.3 add channel and month only; their times and places are rotary. v1 and v1.1 also add the index of the
    period and, in the last quarter, column then row in 10 m pixels.

    Returns:
        (time, row, col, band set, dim) float32; row and col are 1 for rotary models.
    """
    config, tensors = checkpoint.config, checkpoint.tensors
    channels = tensors[f"composite_encodings.per_modality_channel_embeddings.{sensor}"]  # (band set, dim / 4)
    n, sets = config.dims // 4, len(channels)
    shape = (1, 1) if config.rope else grid
    encoding = torch.zeros(len(dates), *shape, sets, config.dims)
    encoding[..., :n] = channels
    months = torch.tensor([d.month - 1 for d in dates])
    encoding[..., 2 * n : 3 * n] = tensors["composite_encodings.month_embed.weight"][months][:, None, None, None]
    if not config.rope:
        _add_places(encoding, config, patch_px=patch_px)
    return encoding


def _add_places(encoding: torch.Tensor, config: EncoderConfig, *, patch_px: int) -> None:
    """Fill slot and place of v1 and v1.1 in (time, row, col, band set, dim)."""
    n, (periods, rows, cols) = config.dims // 4, encoding.shape[:3]
    encoding[..., n : 2 * n] = sin_cos(torch.arange(periods), n)[:, None, None, None]
    half = n // 2
    encoding[..., 3 * n : 3 * n + half] = sin_cos(torch.arange(cols) * patch_px, half)[:, None]
    encoding[..., 3 * n + half :] = sin_cos(torch.arange(rows) * patch_px, half)[:, None, None]


def sin_cos(places: torch.Tensor, width: int) -> torch.Tensor:
    """(place,) to (place, width) float32: sines, then cosines, of ``place * 10000 ** (-i / (2 * width))``.

    The exponent spans 1 to 0.1 only: an oddity of the released models, kept.
    """
    turn = 10_000.0 ** (-torch.arange(width // 2, dtype=torch.float64) / (2 * width))
    angles = places.double()[:, None] * turn
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()
