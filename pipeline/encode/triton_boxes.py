"""Attention of every cell over the box of cells around it, as a Triton kernel for GPUs.

A program takes a block of consecutive queries of one row and one head, and reads the keys in place: with tokens stored
(row, col, key), a box is ``box`` runs of adjacent keys, so nothing is gathered. Scores, softmax and sums are float32;
float32 inputs are multiplied in full float32, not in TF32. Blocks have fixed sizes by storage type, head width and
queries per cell: a tuner that goes by time could choose other sizes on another day, hence other bytes.

**No GPU was at hand.** What was run: the kernel in Triton's interpreter on a CPU (Triton 3.7.1 and 3.9.0), against
dense float64, which checks indices, masks, softmax and types. What was compiled but not run: every entry of the table
of blocks for sm_80 and sm_90 (3.5.1, 3.7.1 and 3.9.0), which checks that 16-bit types get tensor-core instructions,
that memory suffices and that registers are not spilled. What was not: a launch, its speed, how real tensor cores round.
So the first use in a process compares the kernel with float64 on that GPU, and it is refused if it errs.
``benchmarks/boxes_gpu.py`` is for whoever has a GPU.

Triton is imported when the kernel is first asked for, never before: installations for CPUs do not have it.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import math
import subprocess
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import torch

from pipeline.errors import DeviceError, InvalidInputError

if TYPE_CHECKING:
    from types import ModuleType

    Tensor = torch.Tensor

log = logging.getLogger(__name__)

KERNEL = Path(__file__).with_name("triton_kernel.py")
BITS = {torch.float16: 16, torch.bfloat16: 16, torch.float32: 32}
"""Storage types of queries, keys and values."""
LIMIT = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}
"""Largest relative error (L2) with which the kernel is trusted; the interpreter makes 5e-7, 2e-4 and 4e-3."""
SCHEMA = (
    "triton_boxes(Tensor q, Tensor k, Tensor v, Tensor row_starts, Tensor col_starts, SymInt box, Tensor? visible) "
    "-> Tensor"
)


@dataclass(frozen=True, slots=True)
class Blocks:
    """How a launch is cut.

    Attributes:
        queries: Queries of a program; at least 16, the smallest tile of tensor cores.
        keys: Keys of a step.
        warps: Warps of a program.
    """

    queries: int
    keys: int
    warps: int


STAGES = 2
"""Steps whose loads are in flight together."""
SOME, MANY = 4, 8
"""Queries per cell from which the second and the third entry of ``TABLE`` hold."""
TABLE = {
    (16, 16): (Blocks(16, 32, 1), Blocks(32, 64, 2), Blocks(64, 64, 4)),
    (16, 32): (Blocks(16, 32, 1), Blocks(32, 64, 2), Blocks(64, 64, 4)),
    (16, 64): (Blocks(16, 32, 2), Blocks(32, 32, 2), Blocks(64, 64, 4)),
    (16, 128): (Blocks(16, 32, 2), Blocks(32, 32, 4), Blocks(64, 32, 4)),
    (32, 16): (Blocks(16, 32, 2), Blocks(16, 32, 2), Blocks(32, 32, 4)),
    (32, 32): (Blocks(16, 32, 2), Blocks(16, 32, 2), Blocks(32, 32, 4)),
    (32, 64): (Blocks(16, 32, 4), Blocks(16, 32, 4), Blocks(32, 32, 4)),
    (32, 128): (Blocks(16, 16, 4), Blocks(16, 16, 4), Blocks(32, 16, 4)),
}
"""By (bits of a number, head width). m queries with k to a cell read ``(m / k + box) / box`` times the keys that one
query needs, so blocks are small where cells hold few queries. The sizes follow what the compilers named above report:
at most 48 KiB of shared memory, 245 registers, 8 bytes spilled. They were not tuned by time, for want of a GPU."""


def attend(
    q: Tensor, k: Tensor, v: Tensor, row_starts: Tensor, col_starts: Tensor, box: int, visible: Tensor | None = None
) -> Tensor:
    """Attention of every query over the visible tokens of its box of keys.

    Works eagerly and in compiled graphs (call ``available`` before compiling), without gradient. All tensors are on one
    GPU. Inputs may be slices of a fused projection: only what is not adjacent within a head, or whose cells do not
    follow each other evenly in a row, is copied. Values must be finite; those of hidden keys are never read.

    Args:
        q: (query row, query col, query, head, head_dim), float16, bfloat16 or float32, rotated already.
        k: (key row, key col, key, head, head_dim) in the dtype of ``q``, rotated already.
        v: As ``k``.
        row_starts: (query row,) int32: first key row of each query's box.
        col_starts: (query col,) int32: first key column of each query's box, must not decrease; neither is checked.
            What a box holds beyond the grid of keys counts as hidden.
        box: Rows and columns of a box.
        visible: (key row, key col, key) bool, False for keys that nobody attends to; None: all are visible.

    Returns:
        (query row, query col, query, head * head_dim) in the dtype of ``q``; zeros for a query without any visible key.

    Raises:
        InvalidInputError: Shapes, dtypes or devices that do not fit.
        DeviceError: No Triton, no GPU, or a kernel that errs there.
    """
    _check(q, k, v, row_starts, col_starts, box, visible)
    if not torch.compiler.is_compiling():
        _KERNEL.demand(q.device)
    out: Tensor = torch.ops.earthpress.triton_boxes(q, k, v, row_starts, col_starts, box, visible)
    return out


def available() -> bool:
    """Make the kernel and its operator ready; the first call compiles for some seconds.

    Safe to call again and from several threads.

    Returns:
        Whether this process has Triton and a GPU on which the kernel is right; if not, the reason was logged.
    """
    return not _KERNEL.ready()


def fits(dtype: torch.dtype, head_dim: int) -> bool:
    """Whether the kernel handles a storage type and head width; says nothing about the machine."""
    return (BITS.get(dtype, 0), head_dim) in TABLE


def identity() -> str:
    """Eight hex digits for what decides the kernel's bytes: its source, its blocks, Triton and the kind of GPU.

    Raises:
        DeviceError: As ``attend``.
    """
    _KERNEL.demand()
    return _KERNEL.identity


def blocks(dtype: torch.dtype, head_dim: int, cell_queries: int) -> Blocks:
    """How a launch is cut, from the table.

    >>> blocks(torch.bfloat16, 64, 12)
    Blocks(queries=64, keys=64, warps=4)

    Raises:
        InvalidInputError: The kernel does not handle them, see ``fits``.
    """
    if not fits(dtype, head_dim):
        raise InvalidInputError(
            f"the Triton kernel takes {', '.join(_name(known) for known in BITS)} and head widths 16, 32, 64 and 128, "
            f"not {_name(dtype)} of width {head_dim}: use sdpa"
        )
    few, some, many = TABLE[BITS[dtype], head_dim]
    return few if cell_queries < SOME else some if cell_queries < MANY else many


def _check(
    q: Tensor, k: Tensor, v: Tensor, row_starts: Tensor, col_starts: Tensor, box: int, visible: Tensor | None
) -> None:
    if q.ndim != 5 or k.ndim != 5 or k.shape != v.shape or q.shape[3:] != k.shape[3:]:
        raise InvalidInputError(
            f"queries {tuple(q.shape)}, keys {tuple(k.shape)} and values {tuple(v.shape)} must be (row, col, token, "
            f"head, head_dim) with the same heads"
        )
    if not q.dtype == k.dtype == v.dtype:
        raise InvalidInputError(f"queries, keys and values are {q.dtype}, {k.dtype} and {v.dtype}, must be the same")
    blocks(q.dtype, q.shape[4], q.shape[2])
    if not 0 < box <= min(k.shape[:2]):
        raise InvalidInputError(f"a box of {box} cells does not fit a grid of {k.shape[0]} x {k.shape[1]} key cells")
    wanted = {
        "row_starts": (row_starts, (q.shape[0],), torch.int32),
        "col_starts": (col_starts, (q.shape[1],), torch.int32),
        "visible": (visible, tuple(k.shape[:3]), torch.bool),
    }
    for name, (found, shape, dtype) in wanted.items():
        if found is not None and (tuple(found.shape) != shape or found.dtype != dtype):
            raise InvalidInputError(
                f"{name} is {tuple(found.shape)} {_name(found.dtype)}, must be {shape} {_name(dtype)}"
            )
    places = {str(part.device) for part in (q, k, v, row_starts, col_starts, visible) if part is not None}
    if len(places) > 1:
        raise InvalidInputError(f"tensors lie on {' and '.join(sorted(places))}, must be on one device")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# ---- the kernel of this process --------------------------------------------------------------------------------------


class _Kernel:
    """The kernel, loaded and checked once per process: torch's registry of operators is global, so there is one."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._problem: str | None = None
        self._device = ""
        self.identity = ""
        self._library: torch.library.Library | None = None  # torch forgets the operator when this object goes

    def ready(self) -> str:
        """Prepare once; what is in the way, or nothing."""
        if self._problem is None:
            with self._lock:
                if self._problem is None:
                    try:
                        self._prepare()
                        self._problem = ""
                    except DeviceError as err:
                        log.warning("no Triton kernel for boxes: %s", err)
                        self._problem = str(err)
        return self._problem

    def demand(self, device: torch.device | None = None) -> None:
        """Be ready for tensors of a device, or raise DeviceError."""
        problem = self.ready()
        if not problem and device is not None and device.type != self._device:
            problem = f"it runs on {self._device}, the tensors are on {device.type}"
        if problem:
            raise DeviceError(f"the Triton kernel for boxes is not available: {problem}; use own or sdpa")

    def _prepare(self) -> None:
        triton, kernel = _load()
        # Under TRITON_INTERPRET=1 Triton hands out another class and computes on the CPU, which is for tests.
        compiled = isinstance(kernel, triton.JITFunction)
        if compiled and not torch.cuda.is_available():
            raise DeviceError("there is no GPU")
        self._device = "cuda" if compiled else "cpu"
        launcher = _Launcher(triton, kernel)
        for dtype, limit in LIMIT.items():
            error = _error(launcher, dtype, self._device)
            if not error <= limit:  # NaN too
                raise DeviceError(f"it errs by {error:.2g} in {_name(dtype)}, limit {limit:g}")
        kind = str(torch.cuda.get_device_capability()) if compiled else "interpreter"
        made_of = (KERNEL.read_text(encoding="utf-8"), repr(TABLE), str(STAGES), str(triton.__version__), kind)
        self.identity = hashlib.sha256("\0".join(made_of).encode()).hexdigest()[:8]
        self._library = _register(launcher, self._device)
        log.info("Triton kernel for boxes: Triton %s, %s", triton.__version__, kind)


def _load() -> tuple[ModuleType, Any]:
    """Triton and the kernel, or DeviceError."""
    try:
        triton = importlib.import_module("triton")
        return triton, importlib.import_module("pipeline.encode.triton_kernel").attend_boxes
    except ImportError as err:
        raise DeviceError(f"Triton cannot be imported ({err}); it comes with torch for CUDA") from err


class _Launcher:
    """The kernel on tensors that were checked, without torch's dispatcher."""

    def __init__(self, triton: ModuleType, kernel: Any) -> None:
        # Its own errors; those of the driver; and those of the C compiler that it builds its launcher with.
        self._refusals = (triton.TritonError, RuntimeError, OSError, subprocess.SubprocessError)
        self._kernel = kernel

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        row_starts: Tensor,
        col_starts: Tensor,
        box: int,
        visible: Tensor | None,
    ) -> Tensor:
        """See ``attend``."""
        out = _empty(q)
        if not out.numel():
            return out
        rows, cols, cell, heads, dim = q.shape
        cell_keys = k.shape[2]
        cut = blocks(q.dtype, dim, cell)
        q, k, v = _lines(q), _lines(k), _lines(v)
        seen = None if visible is None else visible.contiguous().view(torch.uint8)
        launch = self._kernel[-(-cols * cell // cut.queries) * heads, rows]
        scale = math.log2(math.e) / math.sqrt(dim)
        with torch.cuda.device(q.device) if q.is_cuda else nullcontext():  # Triton launches on the current device
            try:
                launch(
                    *(q, k, v, seen, row_starts.contiguous(), col_starts.contiguous(), out),
                    *(*q.stride()[:3], *k.stride()[:3], *v.stride()[:3]),
                    *(heads, cols * cell, cell, k.shape[0], k.shape[1], cell_keys, box, scale),
                    *(cut.queries, cut.keys, dim),
                    num_warps=cut.warps,
                    num_stages=STAGES,
                    enable_fp_fusion=True,  # said, because Triton's default is about to change
                )
            except torch.OutOfMemoryError:  # what is free now must not decide which kernel a store is made with
                raise
            except self._refusals as err:
                raise DeviceError(f"Triton cannot run it here: {type(err).__name__}: {err}") from err
        return out


def _lines(x: Tensor) -> Tensor:
    """(row, col, token, head, head_dim) as (row, token of the row, head, head_dim), copied only if it must be."""
    x = x.flatten(1, 2)
    return x if x.stride(3) == 1 else x.contiguous()


def _empty(q: Tensor) -> Tensor:
    return q.new_empty(*q.shape[:3], q.shape[3] * q.shape[4])


def _error(launcher: _Launcher, dtype: torch.dtype, device: str) -> float:
    """Largest relative error (L2) against float64: clipped boxes, a larger grid of keys, hidden keys."""
    generator = torch.Generator().manual_seed(0)
    box, errors = 4, []
    row_starts = torch.tensor([0, 1, 1], dtype=torch.int32)
    col_starts = torch.tensor([0, 0, 1, 2, 3, 3], dtype=torch.int32)
    for cell, cell_keys, dim in ((1, 3, 16), (9, 9, 64)):
        q = (2 * torch.randn(3, 6, cell, 2, dim, generator=generator)).to(dtype)
        k, v = (2 * torch.randn(2, 5, 7, cell_keys, 2, dim, generator=generator)).to(dtype).unbind(0)
        visible = torch.rand(5, 7, cell_keys, generator=generator) < 0.7
        q, k, v, down, across = (part.to(device) for part in (q, k, v, row_starts, col_starts))
        ours = launcher(q, k, v, down, across, box, visible.to(device)).double().cpu()
        q, k, v = q.double().cpu(), k.double().cpu(), v.double().cpu()
        cells = [
            (a[:, None] >= starts) & (a[:, None] < starts + box)
            for a, starts in ((torch.arange(5), row_starts), (torch.arange(7), col_starts))
        ]  # (key row, query row), (key col, query col)
        inside = (
            cells[0].T[:, None, :, None, None] & cells[1].T[:, None, :, None] & visible
        )  # (row, col, row, col, key)
        scores = torch.einsum("rcqhd,RCkhd->rcqhRCk", q, k) / math.sqrt(dim)
        scores = scores.masked_fill(~inside[:, :, None, None], -math.inf).flatten(4)
        theirs = torch.einsum("rcqhn,nhd->rcqhd", scores.softmax(-1), v.flatten(0, 2)).flatten(3)
        errors.append(float((ours - theirs).norm() / theirs.norm()))
    return max(errors)


def _register(launcher: _Launcher, device: str) -> torch.library.Library:
    """Define the operator as opaque to torch's compiler, so that compiled graphs launch the same blocks."""
    library = torch.library.Library("earthpress", "FRAGMENT")  # type: ignore[no-untyped-call]

    def shape(q: Tensor, *_others: Any) -> Tensor:
        return _empty(q)

    library.define(SCHEMA, tags=(torch.Tag.pt2_compliant_tag,))  # type: ignore[no-untyped-call]
    library.impl("triton_boxes", launcher, device.upper())  # type: ignore[no-untyped-call]
    torch.library.register_fake("earthpress::triton_boxes", shape, lib=library)
    return library


_KERNEL = _Kernel()
