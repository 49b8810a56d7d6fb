"""The OlmoEarth v1.2 encoder, inference only, one fixed shape.

An ``Encoder`` is built for one (window, patch, dates): everything that follows from them - interpolation matrices,
encodings, rotary tables - is computed once, and a forward pass is matrix products, attention and norms. It reads
normalised pixels of one sensor and knows nothing of files, nodata rules or devices' batching.

Differences from the reference that change no result: queries, keys and values share one product; query and key rows are
permuted so that rotary pairs are halves (``halves``); the channel and month encodings are part of the patch embedding's
bias; time starts at 0 at the first date. Tokens run (time, row, col). In bfloat16 the weights, products and attention
are bfloat16; the stream of tokens, norms and resizing stay float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows
from torch import nn

from pipeline.encode import rope
from pipeline.encode.checkpoint import patch_stem
from pipeline.encode.patch import KERNEL_PX, resize_matrix, token_grid

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import date

    from pipeline.encode.checkpoint import Checkpoint, EncoderConfig

NORM_EPS = 1e-5


class Encoder(nn.Module):
    """Pixels of fixed-size windows to tokens or to one vector per patch."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        window_px: tuple[int, int],
        patch_px: int,
        dates: Sequence[date],
        sensor: str = "sentinel2_l2a",
        dtype: torch.dtype = torch.float32,
        halves: bool | None = None,
    ) -> None:
        """Build for one shape.

        Args:
            checkpoint: The model; its tensors are copied.
            window_px: (rows, cols) of a window, 10 m pixels, multiples of ``patch_px``.
            patch_px: Side of a token, 1..8.
            dates: Model date of each period, in order.
            sensor: Which sensor the pixels are of.
            dtype: float32 or bfloat16: of weights, products and attention.
            halves: Store rotary pairs as halves, which a compiled graph fuses; eager float32 is faster with
                interleaved pairs. None: halves for bfloat16 only.

        Raises:
            ConfigError: Window and patch do not fit.
            CheckpointError: The model does not take this sensor.
            InvalidInputError: No dates.
        """
        super().__init__()
        config = checkpoint.config
        split = dtype != torch.float32 if halves is None else halves
        self.grid = token_grid(window_px, patch_px)
        self.dims, self.bands, self.periods = config.dims, len(config.bands(sensor)), len(dates)
        coords = rope.coordinates(dates, self.grid, step=patch_px * config.coordinate_scale, scale=config.time_scale)
        self.embed = PatchEmbed(
            checkpoint, sensor=sensor, window_px=window_px, patch_px=patch_px, dates=dates, dtype=dtype
        )
        self.blocks = nn.ModuleList(
            Block(checkpoint, i, coords=coords, dtype=dtype, halves=split) for i in range(config.depth)
        )
        self.norm = Norm(checkpoint.tensors, "norm")

    def tokens(self, pixels: torch.Tensor, visible: torch.Tensor | None = None) -> torch.Tensor:
        """Every token after the final norm.

        Args:
            pixels: (window, time, band, row, col) float32, normalised, missing values 0.
            visible: (window, time, token_row, token_col) bool, False for tokens kept out of attention; None when all
                are visible. Each window needs at least one.

        Returns:
            (window, time, token_row, token_col, dim) float32; undefined where not visible.
        """
        x = self.embed(pixels)  # (window, token, dim)
        keys = None if visible is None else visible.flatten(1)[:, None, None, :]  # (window, 1, 1, token)
        for block in self.blocks:
            x = block(x, keys)
        return torch.unflatten(self.norm(x), 1, (self.periods, *self.grid))

    def forward(self, pixels: torch.Tensor, visible: torch.Tensor | None = None) -> torch.Tensor:
        """One vector per patch: the mean of its visible tokens over time.

        Args:
            pixels: As for ``tokens``.
            visible: As for ``tokens``.

        Returns:
            (window, token_row, token_col, dim) float32; zeros where no period is visible.
        """
        tokens = self.tokens(pixels, visible)
        if visible is None:
            return tokens.mean(dim=1)
        count = visible.sum(dim=1).clamp(min=1).unsqueeze(-1)
        return torch.where(visible.unsqueeze(-1), tokens, 0.0).sum(dim=1) / count


class PatchEmbed(nn.Module):
    """Windows to tokens: resize to 8 x 8 samples per token, a linear layer per sample, a linear layer per token."""

    rows: torch.Tensor
    cols: torch.Tensor
    weight: torch.Tensor
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
    ) -> None:
        """Build for one shape; arguments as for ``Encoder``."""
        super().__init__()
        stem, tensors = patch_stem(sensor), checkpoint.tensors
        self.resized = patch_px != KERNEL_PX
        if self.resized:
            rows, cols = (torch.from_numpy(resize_matrix(side, patch_px)).float() for side in window_px)
            self.register_buffer("rows", rows)
            self.register_buffer("cols", cols.T.contiguous())
        self.pixel = Linear(tensors, (f"{stem}.pixel_proj.0",), dtype=dtype)
        self.register_buffer("weight", tensors[f"{stem}.proj.weight"].to(dtype))
        encoding = composite_encoding(checkpoint.config, tensors, sensor=sensor, dates=dates)
        bias = tensors[f"{stem}.proj.bias"] + encoding  # (time, dim)
        self.register_buffer("bias", bias[:, None, None, :].contiguous())

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(window, time, band, row, col) float32 to (window, token, dim) float32."""
        x = torch.matmul(pixels, self.cols) if self.resized else pixels  # (w, t, band, row, 8 gw)
        x = x.permute(0, 1, 3, 4, 2).flatten(-2)  # (w, t, row, 8 gw band)
        x = torch.matmul(self.rows, x) if self.resized else x  # (w, t, 8 gh, 8 gw band)
        x = torch.unflatten(torch.unflatten(x, -1, (-1, KERNEL_PX, pixels.shape[2])), 2, (-1, KERNEL_PX))
        x = x.transpose(3, 4).to(self.weight.dtype)  # (w, t, gh, gw, 8, 8, band)
        x = F.relu(self.pixel(x), inplace=True)  # (w, t, gh, gw, 8, 8, hidden)
        x = F.linear(x.flatten(-3), self.weight)  # (w, t, gh, gw, dim)
        return (x + self.bias).flatten(1, 3)


class Block(nn.Module):
    """Pre-norm transformer block with rotary positions and global attention."""

    cos: torch.Tensor
    sin: torch.Tensor
    turns: torch.Tensor

    def __init__(
        self, checkpoint: Checkpoint, index: int, *, coords: rope.Coordinates, dtype: torch.dtype, halves: bool
    ) -> None:
        """Build block ``index`` for tokens at ``coords`` (token, 3)."""
        super().__init__()
        config, tensors, stem = checkpoint.config, checkpoint.tensors, f"blocks.{index}"
        self.shape = (3, config.heads, config.head_dim)
        self.halves = halves
        rows = torch.arange(config.dims)
        order = rope.half_split_order(config.heads, config.head_dim) if halves else rows
        self.norm1 = Norm(tensors, f"{stem}.norm1")
        names = tuple(f"{stem}.attn.{part}" for part in "qkv")
        self.qkv = Linear(tensors, names, dtype=dtype, orders=(order, order, rows))
        self.proj = Linear(tensors, (f"{stem}.attn.proj",), dtype=dtype)
        self.norm2 = Norm(tensors, f"{stem}.norm2")
        self.fc1 = Linear(tensors, (f"{stem}.mlp.fc1",), dtype=dtype)
        self.fc2 = Linear(tensors, (f"{stem}.mlp.fc2",), dtype=dtype)
        cos, sin = rope.tables(tensors[f"{stem}.attn.rope_mixed_freqs"], coords)  # (token, head, head_dim / 2)
        if halves:
            self.register_buffer("cos", cos.unsqueeze(1).to(dtype))
            self.register_buffer("sin", sin.unsqueeze(1).to(dtype))
        else:
            self.register_buffer("turns", torch.complex(cos, sin).flatten(1).unsqueeze(1))

    def forward(self, x: torch.Tensor, keys: torch.Tensor | None) -> torch.Tensor:
        """(window, token, dim) to the same; ``keys`` (window, 1, 1, token) bool or None."""
        qkv = torch.unflatten(self.qkv(self.norm1(x)), -1, self.shape)  # (window, token, 3, head, head_dim)
        qk = qkv[:, :, :2]
        qk = rope.rotate_halves(qk, self.cos, self.sin) if self.halves else rope.rotate_pairs(qk, self.turns)
        q, k, v = (part.transpose(1, 2) for part in (qk[:, :, 0], qk[:, :, 1], qkv[:, :, 2]))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=keys)  # (window, head, token, head_dim)
        x = x + self.proj(mixed.transpose(1, 2).flatten(2))
        out: torch.Tensor = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return out


class Linear(nn.Module):
    """One or several linear layers over the same input as one product; casts its input to its own dtype."""

    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        names: tuple[str, ...],
        *,
        dtype: torch.dtype,
        orders: tuple[torch.Tensor, ...] | None = None,
    ) -> None:
        """Stack the rows of ``names``, each permuted by its order."""
        super().__init__()
        rows = orders or tuple(torch.arange(len(tensors[f"{name}.bias"])) for name in names)
        weight = torch.cat([tensors[f"{name}.weight"][order] for name, order in zip(names, rows, strict=True)])
        bias = torch.cat([tensors[f"{name}.bias"][order] for name, order in zip(names, rows, strict=True)])
        self.register_buffer("weight", weight.to(dtype))
        self.register_buffer("bias", bias.to(dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) to (..., out) in the dtype of the weights."""
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias)


class Norm(nn.Module):
    """LayerNorm in float32."""

    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, tensors: Mapping[str, torch.Tensor], name: str) -> None:
        """Take ``name``.weight and .bias."""
        super().__init__()
        self.register_buffer("weight", tensors[f"{name}.weight"].clone())
        self.register_buffer("bias", tensors[f"{name}.bias"].clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., dim) float32 to the same."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, NORM_EPS)


def composite_encoding(
    config: EncoderConfig, tensors: Mapping[str, torch.Tensor], *, sensor: str, dates: Sequence[date]
) -> torch.Tensor:
    """What v1.2 adds to a sensor's tokens: channel in the first quarter of the width, month in the third.

    Returns:
        (time, dim) float32.
    """
    n = config.dims // 4
    encoding = torch.zeros(len(dates), config.dims)
    encoding[:, :n] = tensors[f"composite_encodings.per_modality_channel_embeddings.{sensor}"][0]
    months = torch.tensor([d.month - 1 for d in dates])
    encoding[:, 2 * n : 3 * n] = tensors["composite_encodings.month_embed.weight"][months]
    return encoding
