"""Attention over boxes on a GPU: the Triton kernel beside gathering and beside windows, milliseconds per call.

    python benchmarks/boxes_gpu.py [--seconds 1] [--dtypes bfloat16,float32] [--cells 128] [--device cuda]

Every column computes ``cells`` x ``cells`` cells: ``triton`` and ``gather`` (with torch's attention) give each cell the
box around it, ``windows`` is torch's attention in windows as large as a box, side by side without overlap: the same
products of matrices, and another function. TFLOP/s count the scores and values that a box needs, not those computed for
nothing. The columns take turns; figures are medians. Not run so far, for want of a GPU: please report the table with
the name of the card.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.encode import boxes, triton_boxes

if TYPE_CHECKING:
    from collections.abc import Callable

HEADS = ((8, 16), (3, 64), (12, 64))
"""Heads and head width of nano, tiny and base."""
SHAPES = ((4, 1), (4, 12), (8, 1), (8, 12), (16, 1))
"""Box and tokens of a cell: 16 px at patch 4, 32 px at patch 4 or 16 px at patch 2, 16 px at patch 1."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=1.0, help="time per row")
    parser.add_argument("--dtypes", default="bfloat16,float32")
    parser.add_argument("--cells", type=int, default=128, help="cells along a side, a multiple of 16")
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("there is no GPU that torch can use: this table needs one")
    if args.cells < 16 or args.cells % 16:
        sys.exit(f"--cells is {args.cells}, must be a multiple of 16")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    device = torch.device(args.device)
    torch.cuda.set_device(device)
    ready = triton_boxes.available()
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name(device)}, {datetime.now(UTC):%Y-%m-%d}")
    print("the Triton kernel is left out" if not ready else f"Triton kernel {triton_boxes.identity()}")
    print(f"{'dtype':9} {'heads':>7} {'box':>4} {'K':>3}   triton, gather, windows: ms (TFLOP/s); error against gather")
    with torch.inference_mode():
        for dtype in args.dtypes.split(","):
            for heads, dim in HEADS:
                for box, cell in SHAPES:
                    grid = Grid(args.cells, box, (cell, heads, dim), getattr(torch, dtype), device)
                    calls = {"triton": grid.triton} if ready else {}
                    text = row(calls | {"gather": grid.gather, "windows": grid.windows}, grid.flops, args.seconds)
                    error = f"  {grid.error():.1e}" if ready else ""
                    print(f"{dtype:9} {heads:>2} x {dim:>2} {box:>4} {cell:>3}   {text}{error}", flush=True)


class Grid:
    """A square of cells, and the ways to attend."""

    def __init__(
        self, side: int, box: int, tokens: tuple[int, int, int], dtype: torch.dtype, device: torch.device
    ) -> None:
        cell, heads, dim = tokens
        # as a block of the encoder has it: (row, col, token, 3, head, head_dim)
        qkv = torch.randn(side, side, cell, 3, heads, dim, device=device).to(dtype)
        self.qkv = qkv.unbind(3)
        self.box = box
        self.starts = boxes.box_starts(side, side, box).to(device)
        self.flops = 4 * side * side * cell * box * box * cell * heads * dim

    def triton(self) -> torch.Tensor:
        return triton_boxes.attend(*self.qkv, self.starts, self.starts, self.box)

    def gather(self) -> torch.Tensor:
        where = {"row_starts": self.starts, "col_starts": self.starts, "box": self.box}
        return boxes.attend_boxes("sdpa", *self.qkv, **where)

    def windows(self) -> torch.Tensor:
        q, k, v = (self._cut(part) for part in self.qkv)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    def error(self) -> float:
        ours, theirs = self.triton().double(), self.gather().double()
        return float((ours - theirs).norm() / theirs.norm())

    def _cut(self, part: torch.Tensor) -> torch.Tensor:
        """(row, col, token, head, head_dim) to (window, head, token, head_dim)."""
        side, _side, cell, heads, dim = part.shape
        count = side // self.box
        part = part.reshape(count, self.box, count, self.box, cell, heads, dim).transpose(1, 2)
        return part.reshape(count * count, self.box * self.box * cell, heads, dim).transpose(1, 2)


def row(calls: dict[str, Callable[[], torch.Tensor]], flops: int, seconds: float) -> str:
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        timed(call)  # compiles
        timed(call)
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop or len(next(iter(times.values()))) < 5:
        for name, call in calls.items():
            times[name].append(timed(call))
    medians = {name: statistics.median(found) for name, found in times.items()}
    return "".join(f"{name} {1e3 * s:8.3f} ({flops / s / 1e12:5.1f})  " for name, s in medians.items())


def timed(call: Callable[[], torch.Tensor]) -> float:
    torch.cuda.synchronize()
    begin = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
