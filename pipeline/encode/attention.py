"""Attention of many windows, by several back ends behind one call, and the choice between them by measurement.

``own`` is the kernel of ``attention.cpp`` (see ``pipeline.encode.kernel``): it takes the fused projection as it is,
rotates while packing, leaves masked keys out and keeps scores and sums in float32. ``flex`` is torch's FlexAttention.
The others are torch's ``scaled_dot_product_attention``: as torch chooses (``sdpa``) or held to one implementation.
The back ends of GPUs were not run.

Back ends round differently, so the one used is part of a store's numerics class: ``choose`` is for the moment when that
is settled, and everything after is given its answer. Knows nothing of models, of where windows lie, or of files.
"""

from __future__ import annotations

import functools
import logging
import math
import statistics
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention

from pipeline.encode import kernel, rope, triton_boxes
from pipeline.errors import DeviceError, InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Turns = tuple[torch.Tensor, torch.Tensor]

log = logging.getLogger(__name__)

KINDS = ("own", "sdpa", "flash", "efficient", "cudnn", "math", "flex")
MARGIN = 1.05
"""The preferred back end stays the choice unless another is this much faster: noise must not decide."""

_BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}

use_own = kernel.use_own


def named(kind: str) -> str:
    """What a numerics class calls a kind: for our own kernels with what decides their bytes, ``own-1a2b3c4d``.

    Raises:
        DeviceError: As ``attend``.
    """
    if kind == "triton":
        return f"{kind}-{triton_boxes.identity()}"
    return f"{kind}-{kernel.identity()}" if kind == "own" else kind


def kind_of(name: str) -> str:
    """The kind of a name from ``named``.

    >>> kind_of("own-1a2b3c4d"), kind_of("sdpa")
    ('own', 'sdpa')
    """
    return name.partition("-")[0]


def attend(
    kind: str,
    qkv: torch.Tensor,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    visible: torch.Tensor | None,
) -> torch.Tensor:
    """Attention of every token over the visible tokens of its window.

    Nothing here breaks a graph that is being compiled; for ``own``, call ``use_own`` before compiling.

    Args:
        kind: One of ``KINDS``.
        qkv: (window, token, 3, head, head_dim), float32 or bfloat16, contiguous, not rotated.
        cos: (token, head, head_dim / 2) float32, which turns halves as ``rope.rotate_halves``; None: no rotation.
        sin: As ``cos``.
        visible: (window, token) bool, False for keys that nobody attends to; None: all are visible.

    Returns:
        (window, token, head * head_dim) in the dtype of ``qkv``. A window without any visible key gives zeros.

    Raises:
        InvalidInputError: Unknown kind; shapes or dtypes that do not fit (``own``).
        DeviceError: ``own`` is not to be had on this machine.
    """
    if kind == "own":
        kernel.demand_own()
        out: torch.Tensor = torch.ops.earthpress.attend(qkv, cos, sin, visible)
        return out
    qk, v = qkv[:, :, :2], qkv[:, :, 2]
    if cos is not None and sin is not None:
        qk = _rotate(qk, (cos, sin))
    return _standard(kind, qk[:, :, 0], qk[:, :, 1], v, visible)


def cross(
    kind: str,
    q: torch.Tensor,
    kv: torch.Tensor,
    *,
    q_turns: Turns | None = None,
    k_turns: Turns | None = None,
    visible: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of queries over the tokens of another sequence: pooled reads, and blocks that keep few tokens.

    Args:
        kind: One of ``KINDS``.
        q: (window or 1, query, head, head_dim), contiguous; 1 when every window has the same queries.
        kv: (window, token, 2, head, head_dim), contiguous, in the dtype of ``q``.
        q_turns: Cosines and sines of the queries, each (query, head, head_dim / 2) float32; None: no rotation.
        k_turns: The same of the keys, each (token, head, head_dim / 2).
        visible: As for ``attend``.

    Returns:
        (window, query, head * head_dim) in the dtype of ``q``.

    Raises:
        InvalidInputError: As ``attend``.
        DeviceError: As ``attend``.
    """
    if kind == "own":
        kernel.demand_own()
        turns = (*(q_turns or (None, None)), *(k_turns or (None, None)))
        out: torch.Tensor = torch.ops.earthpress.cross(q, kv, *turns, visible)
        return out
    k, v = kv[:, :, :1], kv[:, :, 1]
    if k_turns is not None:
        k = _rotate(k, k_turns)
    if q_turns is not None:
        q = _rotate(q.unsqueeze(2), q_turns).squeeze(2)
    return _standard(kind, q.expand(len(kv), -1, -1, -1), k[:, :, 0], v, visible)


def available(device: torch.device | str, dtype: torch.dtype, head_dim: int) -> tuple[str, ...]:
    """Back ends that a device should run, the preferred one first; ``own`` only if this process could make it.

    On CPUs ``flash`` is what ``sdpa`` chooses anyway, and ``flex`` is left out: torch 2.13's template for CPUs reads
    past its inputs when the tokens do not fill a block (216 tokens: errors up to 0.15, seen), besides being slower
    (0.3-0.9 of SDPA's speed). On GPUs a shape or a mask may still rule one out.
    """
    if torch.device(device).type == "cpu":
        own = ("own",) if kernel.fits(dtype, head_dim) and use_own() else ()
        return (*own, "sdpa", "math")
    if dtype == torch.float32:  # flash and cuDNN have no float32
        return ("sdpa", "efficient", "flex", "math")
    return ("sdpa", "cudnn", "flash", "efficient", "flex", "math")


def _measured(device: torch.device | str, dtype: torch.dtype, head_dim: int) -> tuple[str, ...]:
    """Back ends worth measuring: not ``math``, which writes the whole matrix of scores to memory."""
    return tuple(kind for kind in available(device, dtype, head_dim) if kind != "math")


def choose(
    device: torch.device | str,
    dtype: torch.dtype,
    *,
    heads: int,
    head_dim: int,
    tokens: int,
    windows: int,
    masked: bool = False,
    seconds: float = 0.2,
) -> tuple[str, tuple[tuple[str, float], ...]]:
    """Measure back ends on one shape, with rotary positions: all that are ``available`` and may be the fastest.

    Args:
        device: Where.
        dtype: float32 or bfloat16.
        heads: Heads.
        head_dim: Width of a head.
        tokens: Tokens per window.
        windows: Windows per call.
        masked: Keep a quarter of the keys out; back ends that take no mask then drop out.
        seconds: Time for measuring; warming up and compiling come on top.

    Returns:
        The fastest, and (kind, median seconds per call) of each that ran, in order of preference. The first of them
        is chosen unless another is ``MARGIN`` times faster.

    Raises:
        DeviceError: None ran.
    """
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(windows, tokens, 3, heads, head_dim, generator=generator).to(device, dtype)
    angles = torch.randn(tokens, heads, head_dim // 2, generator=generator).to(device)
    visible = (torch.rand(windows, tokens, generator=generator) < 0.75).to(device) if masked else None
    cos, sin = angles.cos(), angles.sin()

    place = f"{device} in {dtype} with head width {head_dim}"
    kinds = _measured(device, dtype, head_dim)
    return quickest(kinds, lambda kind: attend(kind, qkv, cos, sin, visible), place=place, seconds=seconds)


def quickest(
    kinds: tuple[str, ...], attended: Callable[[str], torch.Tensor], *, place: str, seconds: float
) -> tuple[str, tuple[tuple[str, float], ...]]:
    """Measure kernels in turn on one thread: the fastest of those that run, see ``choose``.

    Args:
        kinds: In order of preference.
        attended: Runs one of them once; its result shows on which device.
        place: Where and with what, for messages.
        seconds: Time for measuring.

    Raises:
        DeviceError: None ran.
    """

    def call(kind: str) -> float:
        begin = time.perf_counter()
        out = attended(kind)
        if out.is_cuda:
            torch.cuda.synchronize(out.device)
        return time.perf_counter() - begin

    with torch.inference_mode(), _one_thread():
        able = tuple(kind for kind in kinds if _runs(kind, call))
        if not able:
            raise DeviceError(f"no attention back end runs on {place}")
        table = _medians(able, call, seconds=seconds)
    kind = fastest(table)
    log.info("attention on %s: %s (%s)", place, kind, ", ".join(f"{name} {1e3 * s:.2f} ms" for name, s in table))
    return kind, table


@contextmanager
def _one_thread() -> Iterator[None]:
    """Measure as runs compute on CPUs: one thread per encoder. torch's kernels would use them all, ours never does."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def fastest(table: tuple[tuple[str, float], ...]) -> str:
    """The first of (kind, seconds), unless another takes less by more than ``MARGIN``.

    >>> fastest((("own", 1.04), ("sdpa", 1.0))), fastest((("own", 1.06), ("sdpa", 1.0)))
    ('own', 'sdpa')
    """
    best, seconds = min(table, key=lambda row: row[1])
    return best if seconds * MARGIN < table[0][1] else table[0][0]


def _runs(kind: str, call: Callable[[str], float]) -> bool:
    """Warm a back end up; False if torch says that it does not take this shape on this device.

    Raises:
        DeviceError: Out of memory: what is free now must not decide which kernel a store is made with.
    """
    try:
        call(kind)
        call(kind)
    except torch.OutOfMemoryError as err:
        raise DeviceError(
            f"out of memory while measuring the attention kernel {kind}: free the device, use a smaller "
            f"encode.batch_windows, or name a kernel with encode.attention"
        ) from err
    except RuntimeError as err:  # a shape, mask or dtype that it does not take; also what torch.compile raises
        log.info("attention back end %s drops out: %s", kind, (str(err).splitlines() or [type(err).__name__])[0])
        return False
    return True


def _medians(kinds: tuple[str, ...], call: Callable[[str], float], *, seconds: float) -> tuple[tuple[str, float], ...]:
    """Take turns, at least three each, so that a busy moment slows all of them alike."""
    rounds: list[tuple[float, ...]] = []
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop or len(rounds) < 3:
        rounds.append(tuple(call(kind) for kind in kinds))
    return tuple((kind, statistics.median(times)) for kind, times in zip(kinds, zip(*rounds, strict=True), strict=True))


def _rotate(x: torch.Tensor, turns: Turns) -> torch.Tensor:
    """Turn (window, token, n, head, head_dim) in its own dtype."""
    cos, sin = (part.unsqueeze(1).to(x.dtype) for part in turns)
    return rope.rotate_halves(x, cos, sin)


def _standard(
    kind: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, visible: torch.Tensor | None
) -> torch.Tensor:
    """Torch's back ends: (window, token, head, head_dim) each, rotated, to (window, token, head * head_dim)."""
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    mask = None if visible is None else visible[:, None, None, :]
    if kind == "sdpa":
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    elif kind == "flex":
        mixed = _flex(q, k, v, visible)
    elif kind in _BACKENDS:
        with sdpa_kernel(_BACKENDS[kind]):
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    else:
        raise InvalidInputError(f"attention back end is {kind!r}, must be one of {', '.join(KINDS)}")
    return mixed.transpose(1, 2).flatten(2)


def _flex(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, visible: torch.Tensor | None) -> torch.Tensor:
    """FlexAttention, compiled here unless a graph around it is being compiled; keys are masked per score."""
    if q.device.type == "cpu":
        raise DeviceError("FlexAttention on CPUs reads past its inputs (torch 2.13): use own or sdpa")
    run = cast("Callable[..., torch.Tensor]", flex_attention) if torch.compiler.is_compiling() else _compiled_flex()
    if visible is None:
        return run(q, k, v)

    def mask(
        score: torch.Tensor, window: torch.Tensor, _head: torch.Tensor, _query: torch.Tensor, key: torch.Tensor
    ) -> torch.Tensor:
        return torch.where(visible[window, key], score, -math.inf)

    return run(q, k, v, score_mod=mask)


@functools.cache
def _compiled_flex() -> Callable[..., torch.Tensor]:
    compiled: Callable[..., torch.Tensor] = torch.compile(flex_attention, dynamic=False)
    return compiled
