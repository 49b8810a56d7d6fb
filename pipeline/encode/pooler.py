"""The attention pooler of v1.3: a grid of queries reads the tokens and becomes the location tokens.

All queries start from one learned vector; their places alone, as axial rotary positions, tell them apart. Every layer
is a read (queries attend to all visible tokens of all sensors and times) and a self-attention block over the grid. In
the first layer the queries are equal, so their product is one vector and the rotated queries are a constant of the
grid.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from pipeline.encode import attention, rope
from pipeline.encode.checkpoint import pooler_norm
from pipeline.encode.layers import Block, Linear, Norm, Style
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.encode.checkpoint import Checkpoint

STEM = "attention_pooler"


class Pooler(nn.Module):
    """Tokens to location tokens, one per query."""

    query: torch.Tensor

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        tokens: rope.Coordinates,
        queries: rope.Coordinates,
        style: Style,
        core: torch.Tensor | None = None,
    ) -> None:
        """Build for one shape.

        Args:
            checkpoint: A model with a pooler.
            tokens: (token, 2) coordinates (row, col) of all tokens.
            queries: (query, 2) coordinates of the queries.
            style: How the blocks compute.
            core: Queries that are wanted; None: all.
        """
        super().__init__()
        config, tensors = checkpoint.config.pooler, checkpoint.tensors
        if config is None:
            raise ConfigError(f"model {checkpoint.card.name} has no attention pooler")
        head_dim = config.dims // config.heads
        keys, turns = (
            rope.axial_tables(places, heads=config.heads, head_dim=head_dim, base=config.rope_base)
            for places in (tokens, queries)
        )
        self.count = len(queries)
        self.register_buffer("query", tensors[f"{STEM}.learned_query"].clone())
        self.norms = nn.ModuleList(Norm(tensors, pooler_norm(config, i)) for i in range(config.depth))
        self.reads = nn.ModuleList(
            Read(tensors, f"{STEM}.read_blocks.{i}", heads=config.heads, keys=keys, turns=turns, style=style)
            for i in range(config.depth)
        )
        last = config.depth - 1
        self.blocks = nn.ModuleList(
            Block(
                tensors,
                f"{STEM}.self_attn_blocks.{i}",
                heads=config.heads,
                turns=turns,
                style=style,
                core=core if i == last else None,
            )
            for i in range(config.depth)
        )
        self.norm = Norm(tensors, f"{STEM}.norm")

    def forward(self, tokens: torch.Tensor, visible: torch.Tensor | None) -> torch.Tensor:
        """(window, token, dim) float32 to (window, query, dim) float32.

        Args:
            tokens: After the encoder's final norm.
            visible: (window, token) bool; None: all.
        """
        x = self.query.expand(tokens.shape[0], self.count, -1)
        for norm, read, block in zip(self.norms, self.reads, self.blocks, strict=True):
            x = block(read(x, norm(tokens), visible))
        out: torch.Tensor = self.norm(x)
        return out


class Read(nn.Module):
    """A block whose queries come from the grid and whose keys and values come from the tokens."""

    key_cos: torch.Tensor
    key_sin: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        stem: str,
        *,
        heads: int,
        keys: tuple[torch.Tensor, torch.Tensor],
        turns: tuple[torch.Tensor, torch.Tensor],
        style: Style,
    ) -> None:
        """Take the weights of ``stem``; pairs are always stored as halves, for one code path."""
        super().__init__()
        dims, dtype = len(tensors[f"{stem}.attn.q.bias"]), style.dtype
        self.shape = (heads, dims // heads)
        order, rows = rope.half_split_order(*self.shape), torch.arange(dims)
        self.norm1 = Norm(tensors, f"{stem}.norm1")
        self.q = Linear(tensors, (f"{stem}.attn.q",), dtype=dtype, orders=(order,))
        names = (f"{stem}.attn.k", f"{stem}.attn.v")
        self.kv = Linear(tensors, names, dtype=dtype, orders=(order, rows))
        self.proj = Linear(tensors, (f"{stem}.attn.proj",), dtype=dtype)
        self.norm2 = Norm(tensors, f"{stem}.norm2")
        self.fc1 = Linear(tensors, (f"{stem}.mlp.fc1",), dtype=dtype)
        self.fc2 = Linear(tensors, (f"{stem}.mlp.fc2",), dtype=dtype)
        self.kind = style.attention
        for name, table in zip(("key_cos", "key_sin", "cos", "sin"), (*keys, *turns), strict=True):
            self.register_buffer(name, table)

    def forward(self, x: torch.Tensor, tokens: torch.Tensor, visible: torch.Tensor | None) -> torch.Tensor:
        """(window, query, dim) and (window, token, dim) float32 to (window, query, dim) float32.

        ``x`` may be the same for every query and window (stride 0): then its product is made once.
        """
        same = x.stride(0) == 0 and x.stride(1) == 0
        q = torch.unflatten(self.q(self.norm1(x[:1, :1] if same else x)), -1, self.shape)
        q = q.expand(-1, x.shape[1], -1, -1).contiguous()  # (window or 1, query, head, head_dim)
        kv = torch.unflatten(self.kv(tokens), -1, (2, *self.shape))
        turns = {"q_turns": (self.cos, self.sin), "k_turns": (self.key_cos, self.key_sin)}
        x = x + self.proj(attention.cross(self.kind, q, kv, **turns, visible=visible))
        out: torch.Tensor = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return out
