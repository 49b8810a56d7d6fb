"""The attention kernel of ``attention.cpp`` on tensors and as operators of torch (``torch.ops.earthpress``).

``use_own`` compiles or loads it once per process, checks it against plain arithmetic in float64 and registers it. The
operators work under ``torch.inference_mode`` and inside compiled graphs, on CPU tensors alone, on the thread that calls
them; they have no gradient.

The code for AVX512-BF16 was compiled and its inner loops were read, and its logic (16 lanes, pairs of bfloat16) was run
with ordinary instructions; it has not run on such a processor. The check is there for that reason too.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import math
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import torch

from pipeline.encode import native
from pipeline.errors import DeviceError, InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Tensor = torch.Tensor

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("attention.cpp")
MAX_DIM = 128
"""Head widths: multiples of 16 up to this."""
BITS = {torch.float32: 32, torch.bfloat16: 16}
"""Storage types, as the library calls them."""
CASES = ((37, 32), (300, 16), (260, 64))
"""(tokens, head width) of the check at load; a block of the kernel holds 128 keys."""
BOX_CASES = ((4, 1, 16), (3, 41, 64))
"""(box in cells, keys per cell, head width) of the check at load of boxes: several rows of keys in a block of the
kernel, and several blocks in a row of keys."""
LIMIT = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""Largest relative error (L2) with which the kernel is trusted; it makes 7e-7 and 6e-3 (AVX2 and emulated)."""
SCHEMAS = (
    "attend(Tensor qkv, Tensor? cos, Tensor? sin, Tensor? visible) -> Tensor",
    "cross(Tensor q, Tensor kv, Tensor? q_cos, Tensor? q_sin, Tensor? cos, Tensor? sin, Tensor? visible) -> Tensor",
    "boxes(Tensor q, Tensor k, Tensor v, Tensor row_starts, Tensor col_starts, int box, Tensor? visible) -> Tensor",
)


def use_own() -> bool:
    """Make ``torch.ops.earthpress`` available; the first call may compile for a few seconds.

    Safe to call again and from several threads.

    Returns:
        Whether it is available; if not, the reason was logged.
    """
    return _OWN.ready()


def demand_own() -> None:
    """Do the same, or fail; nothing inside a graph that is being compiled, which must not wait for a lock.

    Raises:
        DeviceError: The kernel is not to be had on this machine.
    """
    if not torch.compiler.is_compiling() and not use_own():
        raise DeviceError("the own attention kernel is not available on this machine (see the log): use sdpa")


def identity() -> str:
    """Eight hex digits for what decides the kernel's bytes: its source, the compiler and the vectors it was built for.

    Raises:
        DeviceError: The kernel is not to be had on this machine.
    """
    demand_own()
    return _OWN.identity


def fits(dtype: torch.dtype, head_dim: int) -> bool:
    """Whether the kernel handles a storage type and head width."""
    return dtype in BITS and head_dim % 16 == 0 and 0 < head_dim <= MAX_DIM


class Kernel:
    """The compiled library on tensors, without torch's dispatcher.

    Attributes:
        target: Vector width, and whether products of bfloat16 pairs are an instruction.
        compiler: What made it.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        """Take a library made from ``attention.cpp``."""
        self._call = library.earthpress_attention
        self._call.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 9, *[ctypes.c_int64] * 9]
        self._call_boxes = library.earthpress_boxes
        self._call_boxes.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 7, *[ctypes.c_int64] * 15]
        code = library.earthpress_attention_target()
        library.earthpress_attention_compiler.restype = ctypes.c_char_p
        self.compiler = str(library.earthpress_attention_compiler().decode("utf-8", "replace"))
        self.target = f"{code // 10} lanes, bfloat16 {'instructions' if code % 10 else 'emulated'}"

    def attend(self, qkv: Tensor, cos: Tensor | None, sin: Tensor | None, visible: Tensor | None) -> Tensor:
        """See ``pipeline.encode.attention.attend``."""
        qkv = qkv.contiguous()
        turns = _turns(cos, sin, (qkv.shape[1], qkv.shape[3], qkv.shape[4] // 2))
        q, k, v = qkv.unbind(2)
        return self._mix(q, k, v, q_turns=turns, k_turns=turns, visible=visible)

    def cross(
        self,
        q: Tensor,
        kv: Tensor,
        q_cos: Tensor | None,
        q_sin: Tensor | None,
        cos: Tensor | None,
        sin: Tensor | None,
        visible: Tensor | None,
    ) -> Tensor:
        """See ``pipeline.encode.attention.cross``."""
        q, kv = q.contiguous(), kv.contiguous()
        q_turns = _turns(q_cos, q_sin, (q.shape[1], q.shape[2], q.shape[3] // 2))
        k_turns = _turns(cos, sin, (kv.shape[1], kv.shape[3], kv.shape[4] // 2))
        k, v = kv.unbind(2)
        return self._mix(q.expand(len(kv), -1, -1, -1), k, v, q_turns=q_turns, k_turns=k_turns, visible=visible)

    def boxes(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        row_starts: Tensor,
        col_starts: Tensor,
        box: int,
        visible: Tensor | None,
    ) -> Tensor:
        """Attention of every query over the visible tokens of its box of ``box`` x ``box`` cells.

        The bytes of a query follow from the keys of its box, the size of the box, the tokens per cell and the query's
        place in the query grid; but a value that is not finite may also reach queries up to a few cells away.

        Args:
            q: (query row, query col, query k, head, head_dim), float32 or bfloat16, rotated.
            k: (key row, key col, key k, head, head_dim), rotated. Views need no copy where a token is contiguous and
                the tokens of a row lie at even distances.
            v: As ``k``, not rotated.
            row_starts: (query row,) int32, never falling: first key row of the boxes of a query row.
            col_starts: (query col,) int32, never falling: first key column of the boxes of a query column.
            box: Cells along each side of a box.
            visible: (key row, key col, key k) bool, False for keys that nobody attends to; None: all are visible.

        Returns:
            (query row, query col, query k, head * head_dim) in the dtype of ``q``. A query without any visible key
            gives zeros.

        Raises:
            InvalidInputError: Shapes, dtypes or starts that do not fit.
            MemoryError: No room for the rows of keys that a box spans.
        """
        _check_boxes(q, k, v, row_starts=row_starts, col_starts=col_starts, box=box, visible=visible)
        rows, cols, cell, heads, dim = q.shape
        out = q.new_empty(rows, cols, cell, heads * dim)
        if not out.numel():
            return out
        q, k, v = _even(q), _even(k), _even(v)
        row_starts, col_starts = row_starts.contiguous(), col_starts.contiguous()
        visible = None if visible is None else visible.contiguous()
        done: int = self._call_boxes(
            BITS[q.dtype],
            *(q.data_ptr(), k.data_ptr(), v.data_ptr(), out.data_ptr(), row_starts.data_ptr(), col_starts.data_ptr()),
            None if visible is None else visible.data_ptr(),
            *(box, rows, cols, cell, *k.shape[:3], heads, dim),
            *(number for x in (q, k, v) for number in (x.stride(0) // x.stride(2), x.stride(2))),
        )
        if done == 1:
            raise MemoryError(f"no memory for {box} rows of keys of shape {tuple(k.shape[1:])}")
        if done == 3:
            raise InvalidInputError(
                f"row_starts and col_starts must not fall, and boxes of {box} cells from there must lie inside the "
                f"{k.shape[0]} x {k.shape[1]} cells of the keys"
            )
        if done:
            raise InvalidInputError(
                f"the own attention kernel refuses {tuple(q.shape)} over {tuple(k.shape)}: use sdpa"
            )
        return out

    def error(self, dtype: torch.dtype) -> float:
        """Largest relative error (L2) against float64: windows, fewer and more tokens than a block, and boxes."""
        windows = (self._error(dtype, tokens=tokens, dim=dim) for tokens, dim in CASES)
        boxes = (self._box_error(dtype, box=box, cell=cell, dim=dim) for box, cell, dim in BOX_CASES)
        return _largest((*windows, *boxes))

    def _box_error(self, dtype: torch.dtype, *, box: int, cell: int, dim: int) -> float:
        generator = torch.Generator().manual_seed(0)
        rows, cols = box + 3, box + 9
        qkv = (2 * torch.randn(rows, cols, cell, 3, 2, dim, generator=generator)).to(dtype)
        visible = torch.rand(rows, cols, cell, generator=generator) < 0.7
        visible[:, :2] = False
        q, (k, v) = qkv[:, :, ::7, 0], qkv[..., 1:, :, :].unbind(3)  # (row, col, k, head, head_dim) each
        row_starts, col_starts = ((torch.arange(n) - box // 2).clip(0, n - box).int() for n in (rows, cols))
        ours = self.boxes(q, k, v, row_starts, col_starts, box, visible).double()
        in_row, in_col = (_inside(starts, box, n) for starts, n in ((row_starts, rows), (col_starts, cols)))
        # (query row, query col, key row, key col, key k)
        seen = in_row[:, None, :, None, None] & in_col[None, :, None, :, None] & visible
        scores = torch.einsum("rcnhd,stmhd->hrcnstm", q.double(), k.double()) / dim**0.5
        scores = scores.masked_fill(~seen[:, :, None], -torch.inf)
        weights = scores.flatten(-3).softmax(-1).nan_to_num(0.0).unflatten(-1, (rows, cols, cell))
        theirs = torch.einsum("hrcnstm,stmhd->rcnhd", weights, v.double()).flatten(3)
        return float((ours - theirs).norm() / theirs.norm())

    def _error(self, dtype: torch.dtype, *, tokens: int, dim: int) -> float:
        generator = torch.Generator().manual_seed(0)
        qkv = (2 * torch.randn(2, tokens, 3, 2, dim, generator=generator)).to(dtype)
        angles = torch.randn(tokens, 2, dim // 2, generator=generator)
        visible = torch.rand(2, tokens, generator=generator) < 0.7
        cos, sin = angles.cos(), angles.sin()
        ours = self.attend(qkv, cos, sin, visible).double()
        some = slice(0, tokens, 3)
        pooled = self.cross(qkv[:, some, 0], qkv[:, :, 1:], cos[some], sin[some], cos, sin, visible).double()
        turns = torch.polar(torch.ones_like(angles), angles).to(torch.complex128)
        halves = torch.unflatten(qkv.double(), -1, (2, dim // 2))  # (window, token, 3, head, half, head_dim / 2)
        q, k = (torch.complex(x[..., 0, :], x[..., 1, :]) * turns for x in (halves[:, :, 0], halves[:, :, 1]))
        scores = torch.einsum("bnhd,bmhd->bhnm", q, k.conj()).real / dim**0.5
        weights = scores.masked_fill(~visible[:, None, None, :], -torch.inf).softmax(-1)
        theirs = torch.einsum("bhnm,bmhd->bnhd", weights, qkv[:, :, 2].double()).flatten(2)
        pairs = ((ours, theirs), (pooled, theirs[:, some]))
        return _largest(float((got - want).norm() / want.norm()) for got, want in pairs)

    def _mix(
        self, q: Tensor, k: Tensor, v: Tensor, *, q_turns: _Turns, k_turns: _Turns, visible: Tensor | None
    ) -> Tensor:
        """(window, query or token, head, head_dim) each to (window, query, head * head_dim)."""
        windows, queries, heads, dim = q.shape
        tokens = k.shape[1]
        if not fits(q.dtype, dim) or k.dtype != q.dtype:
            raise InvalidInputError(
                f"the own attention kernel takes float32 or bfloat16 and head widths that are multiples of 16 up to "
                f"{MAX_DIM}, not {q.dtype} over {k.dtype} of width {dim}: use sdpa"
            )
        if (len(k), *k.shape[2:]) != (windows, heads, dim):
            raise InvalidInputError(f"queries of shape {tuple(q.shape)} do not fit keys of shape {tuple(k.shape)}")
        if visible is not None:
            if visible.shape != (windows, tokens) or visible.dtype != torch.bool:
                raise InvalidInputError(f"visible is {_say(visible)}, must be {(windows, tokens)} bool")
            visible = visible.contiguous()
        out = q.new_empty(windows, queries, heads * dim)
        done: int = self._call(
            BITS[q.dtype],
            *(q.data_ptr(), k.data_ptr(), v.data_ptr(), out.data_ptr()),
            *(q_turns.cos_at, q_turns.sin_at, k_turns.cos_at, k_turns.sin_at),
            None if visible is None else visible.data_ptr(),
            *(windows, queries, tokens, heads, dim),
            *(q.stride(0), q.stride(1), k.stride(0), k.stride(1)),
        )
        if done == 1:
            raise MemoryError(f"no memory for the attention of {tokens} tokens")
        if done:
            raise InvalidInputError(
                f"the own attention kernel refuses {tuple(q.shape)} over {tuple(k.shape)}: use sdpa"
            )
        return out


def _check_boxes(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    row_starts: Tensor,
    col_starts: Tensor,
    box: int,
    visible: Tensor | None,
) -> None:
    rows, cols, _cell, heads, dim = q.shape
    if not fits(q.dtype, dim) or k.dtype != q.dtype or v.dtype != q.dtype:
        raise InvalidInputError(
            f"the own attention kernel takes float32 or bfloat16 and head widths that are multiples of 16 up to "
            f"{MAX_DIM}, not {q.dtype} over {k.dtype} and {v.dtype} of width {dim}: use sdpa"
        )
    if k.shape != v.shape or k.shape[3:] != (heads, dim):
        raise InvalidInputError(
            f"queries of shape {tuple(q.shape)} do not fit keys of shape {tuple(k.shape)} and values of shape "
            f"{tuple(v.shape)}"
        )
    if box < 1 or not k.numel():
        raise InvalidInputError(f"boxes of {box} cells over keys of shape {tuple(k.shape)}: both must hold something")
    for name, starts, count in (("row_starts", row_starts, rows), ("col_starts", col_starts, cols)):
        if starts.shape != (count,) or starts.dtype != torch.int32:
            raise InvalidInputError(f"{name} is {_say(starts)}, must be {(count,)} int32")
    if visible is not None and (visible.shape != k.shape[:3] or visible.dtype != torch.bool):
        raise InvalidInputError(f"visible is {_say(visible)}, must be {tuple(k.shape[:3])} bool")


def _even(x: Tensor) -> Tensor:
    """Lay (row, col, k, head, head_dim) out as the kernel walks it, with a copy only where it is not so already.

    Tokens are contiguous and at one distance within a row; rows are a whole number of tokens apart.
    """
    _rows, cols, cell, _heads, dim = x.shape
    row, col, token, *inner = x.stride()
    even = inner == [dim, 1] and token > 0 and row >= 0 and row % token == 0 and (cols == 1 or col == cell * token)
    return x if even else x.clone(memory_format=torch.contiguous_format)


def _inside(starts: Tensor, box: int, cells: int) -> Tensor:
    """(query, cell) bool: whether a cell lies in the run of ``box`` cells that begins at a query's start."""
    past = torch.arange(cells) - starts[:, None]
    return (past >= 0) & (past < box)


def _largest(errors: Iterable[float]) -> float:
    """Not a number if any is: ``max`` would pass over it."""
    return max(errors, key=lambda error: math.inf if math.isnan(error) else error)


class _Turns:
    """Tables of a rotation, kept alive while their addresses are in use."""

    def __init__(self, cos: Tensor | None = None, sin: Tensor | None = None) -> None:
        self._tables = (cos, sin)
        self.cos_at = None if cos is None else cos.data_ptr()
        self.sin_at = None if sin is None else sin.data_ptr()


def _turns(cos: Tensor | None, sin: Tensor | None, shape: tuple[int, int, int]) -> _Turns:
    if cos is None or sin is None:
        if cos is not sin:
            raise InvalidInputError("cos and sin come together or not at all")
        return _Turns()
    for table in (cos, sin):
        if table.shape != shape or table.dtype != torch.float32:
            raise InvalidInputError(f"cos and sin must be {shape} float32, got {_say(table)}")
    return _Turns(cos.contiguous(), sin.contiguous())


def _say(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


# ---- torch -----------------------------------------------------------------------------------------------------------


class _Own:
    """The kernel of this process: torch's registry of operators is global, so there is one."""

    def __init__(self, source: Path = SOURCE) -> None:
        self._source = source
        self._lock = Lock()
        self._ready: bool | None = None
        self.identity = ""
        self._library: torch.library.Library | None = None  # torch forgets the operators when this object goes

    def ready(self) -> bool:
        if self._ready is None:
            with self._lock:
                if self._ready is None:
                    self._ready = self._prepare()
        return self._ready

    def _prepare(self) -> bool:
        try:
            kernel = Kernel(native.load(self._source))
        except DeviceError as err:
            log.warning("no attention kernel of our own, torch's is used: %s", err)
            return False
        for dtype, limit in LIMIT.items():
            error = kernel.error(dtype)
            if not error <= limit:  # NaN too
                log.warning(
                    "the own attention kernel errs by %.2g in %s, limit %g: torch's is used", error, dtype, limit
                )
                return False
        made_of = (self._source.read_bytes(), kernel.compiler.encode(), kernel.target.encode())
        self.identity = hashlib.sha256(b"\0".join(made_of)).hexdigest()[:8]
        self._library = _register(kernel)
        log.info("own attention kernel: %s", kernel.target)
        return True


_OWN = _Own()


def _register(kernel: Kernel) -> torch.library.Library:
    """Define the operators: plain functions for the CPU, which cost 3 us per call; ``custom_op`` cost 7."""
    library = torch.library.Library("earthpress", "FRAGMENT")  # type: ignore[no-untyped-call]

    def attend_shape(qkv: Tensor, _cos: Tensor | None, _sin: Tensor | None, _visible: Tensor | None) -> Tensor:
        windows, tokens, _three, heads, dim = qkv.shape
        return qkv.new_empty(windows, tokens, heads * dim)

    def cross_shape(q: Tensor, kv: Tensor, *_tables: Tensor | None) -> Tensor:
        return q.new_empty(len(kv), q.shape[1], q.shape[2] * q.shape[3])

    def boxes_shape(q: Tensor, *_rest: Tensor | int | None) -> Tensor:
        return q.new_empty(*q.shape[:3], q.shape[3] * q.shape[4])

    calls: tuple[tuple[Callable[..., Tensor], Callable[..., Tensor]], ...] = (
        (kernel.attend, attend_shape),
        (kernel.cross, cross_shape),
        (kernel.boxes, boxes_shape),
    )
    for schema, (call, shape) in zip(SCHEMAS, calls, strict=True):
        name = schema.partition("(")[0]
        library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))  # type: ignore[no-untyped-call]
        library.impl(name, call, "CPU")  # type: ignore[no-untyped-call]
        torch.library.register_fake(f"earthpress::{name}", shape, lib=library)
    return library
