"""Attention back ends."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812

from pipeline.encode import rope


def attend(
    kind: str,
    qkv: torch.Tensor,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    visible: torch.Tensor | None,
) -> torch.Tensor:
    """(window, token, 3, head, head_dim) to (window, token, head * head_dim)."""
    q, k, v = qkv.unbind(2)
    if cos is not None and sin is not None:
        cos, sin = cos.to(q.dtype), sin.to(q.dtype)
        q, k = rope.rotate_halves(q, cos, sin), rope.rotate_halves(k, cos, sin)
    keys = None if visible is None else visible[:, None, None, :]
    mixed = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=keys)
    return mixed.transpose(1, 2).flatten(2)
