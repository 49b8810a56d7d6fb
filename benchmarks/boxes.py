"""Neighbourhood attention on one thread: microseconds per token and layer, interleaved, as a Markdown table.

    OMP_NUM_THREADS=1 python benchmarks/boxes.py [--seconds 0.7] [--dtypes float32,bfloat16] [--cells 48]

Three ways, each from rotated queries, keys and values to (token, width), as a layer of the encoder needs it:

``windows``  the own kernel on windows of as many cells as a box, which do not overlap: the same products per token
``sdpa``     boxes, gathered for torch's attention (``pipeline.encode.boxes``)
``own``      boxes, read in place by the own kernel

Head widths are those of nano (8 x 16) and tiny (3 x 64). A case is a patch size, the tokens of a cell (one sensor, T
periods) and the box in cells. Times are medians of the thread's CPU clock, ratios are medians over passes in turn.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.encode import attention, boxes

if TYPE_CHECKING:
    from collections.abc import Callable

HEADS = {"nano": (8, 16), "tiny": (3, 64)}


class Case(NamedTuple):
    patch_px: int
    periods: int
    box: int


CASES = (Case(4, 1, 4), Case(4, 1, 8), Case(4, 4, 4), Case(4, 4, 8), Case(4, 12, 4), Case(4, 12, 8), Case(1, 1, 16))
NAMES = ("windows", "sdpa", "own")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=0.7, help="time per row")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--cells", type=int, default=48, help="side of the grid where T is 1; a multiple of 16")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    attention.kernel.demand_own()
    capability = torch.backends.cpu.get_cpu_capability()
    print(f"torch {torch.__version__}, {capability}, 1 thread, {datetime.now(UTC):%Y-%m-%d}\n")
    print("| dtype | model | patch, T | box | windows us | sdpa us | own us | sdpa / own | own / windows |")
    print("|---|---|---|---|---|---|---|---|---|")
    with torch.inference_mode():
        for dtype in args.dtypes.split(","):
            for model, (heads, dim) in HEADS.items():
                for case in CASES:
                    calls = calls_of(case, getattr(torch, dtype), heads=heads, dim=dim, cells=args.cells)
                    tokens = side_of(case, args.cells) ** 2 * case.periods
                    name = f"{dtype} | {model} | p{case.patch_px} T{case.periods} | {case.box}"
                    print(f"| {name} | {row(calls, tokens=tokens, seconds=args.seconds)} |", flush=True)


def side_of(case: Case, cells: int) -> int:
    """Cells along the grid: about as many tokens whatever T is, and whole windows."""
    return max(16, round(cells / case.periods**0.5 / 16) * 16)


def calls_of(
    case: Case, dtype: torch.dtype, *, heads: int, dim: int, cells: int
) -> dict[str, Callable[[], torch.Tensor]]:
    side, box = side_of(case, cells), case.box
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(side, side, case.periods, 3, heads, dim, generator=generator).to(dtype)
    q, k, v = qkv.unbind(3)
    starts = boxes.box_starts(side, side, box)
    grid = qkv.unflatten(1, (side // box, box)).unflatten(0, (side // box, box))
    windows = grid.transpose(1, 2).flatten(2, 4).flatten(0, 1).contiguous()  # (window, token, 3, head, head_dim)

    def boxed(kind: str) -> torch.Tensor:
        return boxes.attend_boxes(kind, q, k, v, row_starts=starts, col_starts=starts, box=box)

    return {
        "windows": lambda: attention.attend("own", windows, None, None, None),
        "sdpa": lambda: boxed("sdpa"),
        "own": lambda: boxed("own"),
    }


def row(calls: dict[str, Callable[[], torch.Tensor]], *, tokens: int, seconds: float) -> str:
    for call in calls.values():
        call()
    times: dict[str, list[int]] = {name: [] for name in calls}
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop or len(times["own"]) < 3:
        for name, call in calls.items():
            times[name].append(timed(call))
    medians = (statistics.median(times[name]) / tokens / 1e3 for name in NAMES)
    ratios = (("sdpa", "own"), ("own", "windows"))
    return " | ".join(
        [f"{us:.2f}" for us in medians]
        + [f"{statistics.median(a / b for a, b in zip(times[x], times[y], strict=True)):.2f}" for x, y in ratios]
    )


def timed(call: Callable[[], torch.Tensor]) -> int:
    """Nanoseconds of this thread, so that other processes on the machine count less."""
    begin = time.thread_time_ns()
    call()
    return time.thread_time_ns() - begin


if __name__ == "__main__":
    main()
