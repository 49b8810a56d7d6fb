"""Attention of many small windows, by several back ends behind one call.

``own`` is the kernel of ``attention.cpp``: it takes the fused projection as it is, rotates while packing, leaves out
masked keys and keeps scores and sums in float32. It is compiled at first use (``use_own``) and checked against plain
arithmetic before it is trusted; without a compiler the others remain. Its code for AVX512-BF16 was compiled and read,
its logic for 16 lanes and bfloat16 pairs was run with ordinary instructions, but not on such a processor. ``flex`` is
torch's FlexAttention; the rest is torch's ``scaled_dot_product_attention``, as it chooses itself (``sdpa``) or held to
one implementation. GPU back ends were not run.

Back ends round differently, so the one used belongs to the numerics class of a store: ``choose`` measures once, when a
store is planned, and everything after that is given its answer. Knows nothing of models, windows in space or files.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import math
import statistics
import time
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention

from pipeline.encode import native, rope
from pipeline.errors import DeviceError, InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable

    Turns = tuple[torch.Tensor, torch.Tensor]

log = logging.getLogger(__name__)

KINDS = ("own", "sdpa", "flash", "efficient", "cudnn", "math", "flex")
SOURCE = Path(__file__).with_name("attention.cpp")
MAX_DIM = 128
"""Head widths of the own kernel: multiples of 16 up to this."""
MARGIN = 1.05
"""The first back end stays the choice unless another is this much faster: noise must not decide a numerics class."""
CHECK_LIMIT = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""Largest relative error (L2) with which the own kernel is trusted; it makes 3e-7 and 4e-3."""

_BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
_DTYPES = (torch.float32, torch.bfloat16)
_SCHEMAS = (
    "attend(Tensor qkv, Tensor? cos, Tensor? sin, Tensor? visible) -> Tensor",
    "cross(Tensor q, Tensor kv, Tensor? q_cos, Tensor? q_sin, Tensor? cos, Tensor? sin, Tensor? visible) -> Tensor",
)


# ---- calls -----------------------------------------------------------------------------------------------------------


def attend(
    kind: str,
    qkv: torch.Tensor,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    visible: torch.Tensor | None,
) -> torch.Tensor:
    """Attention of every token over the visible tokens of its window.

    Inside a compiled graph ``own`` needs a ``use_own`` before; nothing here breaks a graph.

    Args:
        kind: One of ``KINDS``.
        qkv: (window, token, 3, head, head_dim), float32 or bfloat16, contiguous; not rotated.
        cos: (token, head, head_dim / 2) float32, rotating halves as ``rope.rotate_halves``; None for no rotation.
        sin: As ``cos``.
        visible: (window, token) bool, False for keys that nobody attends to; None when all are visible.

    Returns:
        (window, token, head * head_dim) in the dtype of ``qkv``. A window without any visible key gives zeros.

    Raises:
        InvalidInputError: Unknown kind, or shapes and dtypes that do not fit (``own``).
        DeviceError: ``own`` is not to be had on this machine.
    """
    if kind == "own":
        _demand_own()
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
    """Attention of queries over the tokens of another sequence, for pooled reads and blocks that keep few tokens.

    Args:
        kind: One of ``KINDS``.
        q: (window or 1, query, head, head_dim), contiguous; 1 when every window has the same queries.
        kv: (window, token, 2, head, head_dim), contiguous, same dtype.
        q_turns: Cosines and sines of the queries, each (query, head, head_dim / 2) float32; None: no rotation.
        k_turns: The same of the keys, (token, head, head_dim / 2).
        visible: As for ``attend``.

    Returns:
        (window, query, head * head_dim) in the dtype of ``q``.

    Raises:
        InvalidInputError: As ``attend``.
        DeviceError: As ``attend``.
    """
    if kind == "own":
        _demand_own()
        turns = (*(q_turns or (None, None)), *(k_turns or (None, None)))
        out: torch.Tensor = torch.ops.earthpress.cross(q, kv, *turns, visible)
        return out
    k, v = kv[:, :, :1], kv[:, :, 1]
    if k_turns is not None:
        k = _rotate(k, k_turns)
    if q_turns is not None:
        q = _rotate(q.unsqueeze(2), q_turns).squeeze(2)
    return _standard(kind, q.expand(len(kv), -1, -1, -1), k[:, :, 0], v, visible)


def _rotate(x: torch.Tensor, turns: Turns) -> torch.Tensor:
    cos, sin = (part.unsqueeze(1).to(x.dtype) for part in turns)
    return rope.rotate_halves(x, cos, sin)


def _standard(
    kind: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, visible: torch.Tensor | None
) -> torch.Tensor:
    """(window, token, head, head_dim) each, rotated, to (window, token, head * head_dim)."""
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    if kind == "flex":
        return _flex(q, k, v, visible).transpose(1, 2).flatten(2)
    mask = None if visible is None else visible[:, None, None, :]
    if kind == "sdpa":
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    elif kind in _BACKENDS:
        with sdpa_kernel(_BACKENDS[kind]):
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    else:
        raise InvalidInputError(f"attention back end is {kind!r}, must be one of {', '.join(KINDS)}")
    return mixed.transpose(1, 2).flatten(2)


def _flex(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, visible: torch.Tensor | None) -> torch.Tensor:
    """FlexAttention, compiled here unless a graph around it is being compiled; keys are masked per score."""
    run = flex_attention if torch.compiler.is_compiling() else _compiled_flex()
    if visible is None:
        out: torch.Tensor = run(q, k, v)
        return out

    def mask(
        score: torch.Tensor, window: torch.Tensor, _head: torch.Tensor, _query: torch.Tensor, key: torch.Tensor
    ) -> torch.Tensor:
        return torch.where(visible[window, key], score, -math.inf)

    out = run(q, k, v, score_mod=mask)
    return out


@functools.cache
def _compiled_flex() -> Callable[..., Any]:
    compiled: Callable[..., Any] = torch.compile(flex_attention, dynamic=False)
    return compiled


# ---- which -----------------------------------------------------------------------------------------------------------


def available(device: torch.device | str, dtype: torch.dtype, head_dim: int) -> tuple[str, ...]:
    """Back ends worth measuring on a device, the preferred one first.

    Left out: ``math`` everywhere (it writes the whole matrix of scores to memory) and ``flex`` on CPUs, where it
    reached 0.4-0.9 of SDPA's speed (torch 2.13, one thread, float32 and bfloat16, head widths 16 and 64).
    """
    if torch.device(device).type == "cpu":
        fits = dtype in _DTYPES and head_dim % 16 == 0 and 0 < head_dim <= MAX_DIM
        return ("own", "sdpa") if fits and use_own() else ("sdpa",)
    if dtype == torch.float32:  # the other two have no float32
        return ("sdpa", "efficient", "flex")
    return ("sdpa", "cudnn", "flash", "efficient", "flex")


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
    """Measure the back ends on one shape, with rotary positions.

    Args:
        device: Where.
        dtype: float32 or bfloat16.
        heads: Heads.
        head_dim: Width of a head.
        tokens: Tokens per window.
        windows: Windows per call.
        masked: Keep a quarter of the keys out; back ends that take no mask then drop out.
        seconds: Time for measuring, without warming up and compiling.

    Returns:
        The fastest, and (kind, median seconds per call) of each that ran, in order of preference. The first of them
        stays unless another is ``MARGIN`` times faster.

    Raises:
        DeviceError: None ran.
    """
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(windows, tokens, 3, heads, head_dim, generator=generator).to(device, dtype)
    angles = torch.randn(tokens, heads, head_dim // 2, generator=generator).to(device)
    visible = (torch.rand(windows, tokens, generator=generator) < 0.75).to(device) if masked else None
    cos, sin = angles.cos(), angles.sin()

    def call(kind: str) -> float:
        begin = time.perf_counter()
        attend(kind, qkv, cos, sin, visible)
        if qkv.is_cuda:
            torch.cuda.synchronize(qkv.device)
        return time.perf_counter() - begin

    with torch.inference_mode():
        kinds = tuple(kind for kind in available(device, dtype, head_dim) if _runs(kind, call))
        if not kinds:
            raise DeviceError(f"no attention back end runs on {device} in {dtype} with head width {head_dim}")
        times = _interleave(kinds, call, seconds=seconds)
    table = tuple((kind, statistics.median(times[kind])) for kind in kinds)
    best, best_s = min(table, key=lambda row: row[1])
    kind = best if best_s * MARGIN < table[0][1] else kinds[0]
    log.info("attention on %s: %s of %s", device, kind, ", ".join(f"{name} {1e3 * s:.2f} ms" for name, s in table))
    return kind, table


def _runs(kind: str, call: Callable[[str], float]) -> bool:
    """Warm a back end up; False if torch says that it does not take this shape here."""
    try:
        call(kind)
        call(kind)
    except (RuntimeError, NotImplementedError) as err:
        log.info("attention back end %s drops out: %s", kind, str(err).splitlines()[0])
        return False
    return True


def _interleave(kinds: tuple[str, ...], call: Callable[[str], float], *, seconds: float) -> dict[str, list[float]]:
    """Take turns, at least three each, so that a busy moment slows all of them."""
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop or len(times[kinds[-1]]) < 3:
        for kind in kinds:
            times[kind].append(call(kind))
    return times


# ---- the own kernel --------------------------------------------------------------------------------------------------


def use_own() -> bool:
    """Make ``own`` available: compile or load the kernel, check it, register it with torch, once per process.

    Safe to call again and from several threads.

    Returns:
        Whether it is available; if not, the reason was logged.
    """
    return _OWN.ready()


def own_target() -> str:
    """What the own kernel was compiled to, for logs: ``16 lanes, bfloat16 instructions``.

    Raises:
        DeviceError: It is not available.
    """
    _demand_own()
    return _OWN.target


def _demand_own() -> None:
    # a graph under compilation cannot wait for a lock; whoever compiles has called use_own before
    if not torch.compiler.is_compiling() and not use_own():
        raise DeviceError("the own attention kernel is not available on this machine (see the log): use sdpa")


class _Own:
    """The kernel of this process: torch's registry is global, so there is one."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._ready: bool | None = None
        self._kept: tuple[Any, ...] = ()  # torch forgets a registration when its Library object goes
        self.target = ""

    def ready(self) -> bool:
        if self._ready is None:
            with self._lock:
                if self._ready is None:
                    self._ready = self._prepare()
        return self._ready

    def _prepare(self) -> bool:
        try:
            kernel = Kernel(native.load(SOURCE))
        except DeviceError as err:
            log.warning("no attention kernel of our own, torch's is used: %s", err)
            return False
        for dtype, limit in CHECK_LIMIT.items():
            error = kernel.error(dtype)
            if not error <= limit:
                log.warning("the own attention kernel errs by %.2g in %s (limit %g): not used", error, dtype, limit)
                return False
        self.target = kernel.target
        self._kept = _register(kernel)
        return True


_OWN = _Own()


class Kernel:
    """The compiled kernel on tensors, without torch's dispatcher.

    Attributes:
        target: Vector width, and whether products of bfloat16 are an instruction.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        """Take a library made from ``attention.cpp``."""
        pointers, sizes = [ctypes.c_void_p] * 9, [ctypes.c_int64] * 9
        self._call = library.earthpress_attention
        self._call.argtypes = [ctypes.c_int, *pointers, *sizes]
        code = library.earthpress_attention_target()
        self.target = f"{code // 10} lanes, bfloat16 {'instructions' if code % 10 else 'emulated'}"

    def attend(
        self,
        qkv: torch.Tensor,
        cos: torch.Tensor | None,
        sin: torch.Tensor | None,
        visible: torch.Tensor | None,
    ) -> torch.Tensor:
        """See ``attend`` of this module."""
        qkv = qkv.contiguous()
        windows, tokens, _three, heads, dim = qkv.shape
        out = qkv.new_empty(windows, tokens, heads * dim)
        turns = _turns(cos, sin, (tokens, heads, dim // 2))
        step, row = heads * dim * qkv.element_size(), 3 * heads * dim
        q = qkv.data_ptr()
        self._run(
            qkv,
            out,
            pointers=(q, q + step, q + 2 * step, out.data_ptr(), *turns.pointers, *turns.pointers),
            visible=visible,
            sizes=(windows, tokens, tokens, heads, dim, tokens * row, row, tokens * row, row),
        )
        return out
