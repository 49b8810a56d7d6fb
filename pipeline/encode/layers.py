"""Building blocks of the encoder: products, norms, transformer blocks; all constants are made when they are built.

Weights, products and attention have the block's dtype; the stream of tokens and the norms stay float32, which halves
the error of bfloat16 against a stream in bfloat16. Queries, keys and values share one product. Rotary pairs are stored
either as halves (``halves``: rows of the query and key weights are permuted, which changes no dot product, and every
kernel and compiled graph takes them) or as released (interleaved, rotated as complex numbers: faster for eager
float32).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows
from torch import nn

from pipeline.encode import attention, rope

if TYPE_CHECKING:
    from collections.abc import Mapping

NORM_EPS = 1e-5
Tables = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines, each (token, head, head_dim / 2) float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """How the blocks of an encoder compute.

    Attributes:
        dtype: Of weights, products and attention.
        halves: Rotary pairs stored as halves.
        attention: Attention kernel, see ``pipeline.encode.attention``.
    """

    dtype: torch.dtype = torch.float32
    halves: bool = False
    attention: str = "sdpa"


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


class Block(nn.Module):
    """Pre-norm transformer block with global self-attention, rotary or without positions.

    Args:
        tensors: The model's tensors.
        stem: Name of the block.
        heads: Attention heads.
        turns: Rotary tables; None for models whose positions are added to the tokens.
        style: How it computes.
        core: Tokens that the block must give; None: all. Only for the last block: the others still attend to them all.
    """

    cos: torch.Tensor
    sin: torch.Tensor
    turns: torch.Tensor
    core: torch.Tensor

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        stem: str,
        *,
        heads: int,
        turns: Tables | None,
        style: Style,
        core: torch.Tensor | None = None,
    ) -> None:
        """Take the weights of ``stem``."""
        super().__init__()
        dims = len(tensors[f"{stem}.attn.q.bias"])
        self.shape, self.kind = (3, heads, dims // heads), style.attention
        rows = torch.arange(dims)
        self.rotary = "none" if turns is None else "halves" if style.halves else "pairs"
        order = rope.half_split_order(heads, dims // heads) if self.rotary == "halves" else rows
        names = tuple(f"{stem}.attn.{part}" for part in "qkv")
        self.norm1 = Norm(tensors, f"{stem}.norm1")
        self.pruned = core is not None
        if core is None:
            self.qkv = Linear(tensors, names, dtype=style.dtype, orders=(order, order, rows))
        else:
            self.register_buffer("core", core)
            self.q = Linear(tensors, names[:1], dtype=style.dtype, orders=(order,))
            self.kv = Linear(tensors, names[1:], dtype=style.dtype, orders=(order, rows))
        self.proj = Linear(tensors, (f"{stem}.attn.proj",), dtype=style.dtype)
        self.norm2 = Norm(tensors, f"{stem}.norm2")
        self.fc1 = Linear(tensors, (f"{stem}.mlp.fc1",), dtype=style.dtype)
        self.fc2 = Linear(tensors, (f"{stem}.mlp.fc2",), dtype=style.dtype)
        if turns is not None:
            register_turns(self, turns, halves=style.halves)

    def forward(self, x: torch.Tensor, visible: torch.Tensor | None = None) -> torch.Tensor:
        """(window, token, dim) float32 to the same (of the ``core`` tokens where it is set).

        Args:
            x: The stream.
            visible: (window, token) bool: tokens that others attend to; None: all.
        """
        h = self.norm1(x)
        if self.pruned:
            x, mixed = x[:, self.core], self._attend_core(h, visible)
        else:
            mixed = self._attend(torch.unflatten(self.qkv(h), -1, self.shape), visible)
        x = x + self.proj(mixed)
        out: torch.Tensor = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return out

    def _attend(self, qkv: torch.Tensor, visible: torch.Tensor | None) -> torch.Tensor:
        """(window, token, 3, head, head_dim) to (window, token, dim)."""
        if self.rotary == "pairs":
            q, k = rope.rotate_pairs(qkv[:, :, :2], self.turns).unbind(2)
            return plain_attention(q, k, qkv[:, :, 2], visible)
        cos, sin = (self.cos, self.sin) if self.rotary == "halves" else (None, None)
        return attention.attend(self.kind, qkv, cos, sin, visible)

    def _attend_core(self, h: torch.Tensor, visible: torch.Tensor | None) -> torch.Tensor:
        """Queries of the core only; keys and values of every token: (window, core token, dim)."""
        q = torch.unflatten(self.q(h[:, self.core]), -1, self.shape[1:])
        kv = torch.unflatten(self.kv(h), -1, (2, *self.shape[1:]))
        if self.rotary == "pairs":
            q = rope.rotate_pairs(q.unsqueeze(2), self.turns[self.core]).squeeze(2)
            k = rope.rotate_pairs(kv[:, :, :1], self.turns).squeeze(2)
            return plain_attention(q, k, kv[:, :, 1], visible)
        if self.rotary == "none":
            return attention.cross(self.kind, q, kv, visible=visible)
        at = (self.cos[self.core], self.sin[self.core])
        return attention.cross(self.kind, q, kv, q_turns=at, k_turns=(self.cos, self.sin), visible=visible)


def register_turns(module: nn.Module, turns: Tables, *, halves: bool) -> None:
    """Keep rotary tables as a module's buffers: ``cos`` and ``sin``, or ``turns`` (complex) for interleaved pairs."""
    cos, sin = turns
    if halves:
        module.register_buffer("cos", cos.contiguous())
        module.register_buffer("sin", sin.contiguous())
    else:
        module.register_buffer("turns", torch.complex(cos, sin).flatten(1).unsqueeze(1))


def plain_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, visible: torch.Tensor | None) -> torch.Tensor:
    """Torch's attention over (window, token, head, head_dim), with any number of queries.

    Returns:
        (window, query, head * head_dim).
    """
    keys = None if visible is None else visible[:, None, None, :]
    mixed = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=keys)
    return mixed.transpose(1, 2).flatten(2)
