"""One tile by threads of one process and by single-threaded processes: wall seconds, alone and beside busy processes.

    python benchmarks/workers.py [--model random:v1.2-nano:0] [--patch 8] [--tile 512] [--rounds 5] [--busy 1]

The tile has 12 periods and 64 px windows that overlap by 16 px; laying its pixels into shared memory counts. "OpenMP"
is what torch does when it is left alone: one encoder, whose operations are split over the cores. Variants take turns,
so that whatever else runs slows all of them; figures are medians over the rounds, and ratios medians of the ratios
within a round. ``--busy N`` runs N other processes that only count, which stand for somebody else's work.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[1] / "tests/encode")]

from stacks import make_stack, periods  # noqa: E402

from pipeline.config import EncodeSettings  # noqa: E402
from pipeline.encode import checkpoint, session  # noqa: E402
from pipeline.encode.workers import Workers  # noqa: E402
from pipeline.plan import grid as lattice  # noqa: E402
from pipeline.types import GridSpec, Tile, block_grid  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pipeline.encode.session import WindowFields


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="random:v1.2-nano:0")
    parser.add_argument("--patch", type=int, default=8)
    parser.add_argument("--periods", type=int, default=12)
    parser.add_argument("--tile", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--busy", type=int, default=0, help="other busy processes")
    parser.add_argument("--openmp", action="store_true", help="with what torch does when it is left alone; slow")
    parser.add_argument("--attention", default="auto")
    args = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    spec = GridSpec(patch_px=args.patch, window_px=64, overlap_px=16, tile_px=args.tile)
    tile = Tile(zone=31, row=-1100, col=97, tile_px=args.tile)
    model = checkpoint.load(args.model)
    settings = EncodeSettings(device="cpu", attention=args.attention)
    numerics = session.settle(settings, card=model.card, grid=spec, periods=args.periods)
    origins = lattice.tile_windows(tile, tuple(block_grid(tile)), spec)
    stack = make_stack(lattice.read_box(tile, origins, spec), count=args.periods)
    print(
        f"{datetime.now(UTC):%Y-%m-%d}, torch {numerics.torch}, {cores} cores, {numerics.device_name}, "
        f"{numerics.dtype}, attention {numerics.attention}: {args.model}, 64/{args.patch} px, T {args.periods}, batch "
        f"{numerics.batch_windows}, {len(origins)} windows, {args.busy} busy processes beside"
    )
    shape = {"grid": spec, "periods": periods(args.periods), "numerics": numerics}
    begin = time.perf_counter()
    with Workers(model, processes=cores, **shape) as workers:
        built = time.perf_counter() - begin
        workers.warm_up()
        ready = time.perf_counter() - begin
        print(f"processes: built after {built:.2f} s, all ready after {ready:.2f} s, {held(workers)}")
        one, many = (session.Session(model, threads=count, **shape) for count in (1, cores))

        def openmp() -> WindowFields:
            torch.set_num_threads(cores)
            try:
                return one.encode(stack, origins)
            finally:
                torch.set_num_threads(1)

        calls = {
            "1 thread": lambda: one.encode(stack, origins),
            f"{cores} threads": lambda: many.encode(stack, origins),
            f"{cores} processes": lambda: workers.encode(stack, origins),
        }
        if args.openmp:
            calls[f"OpenMP, {cores}"] = openmp
        with others(args.busy):
            seconds, same = measure(calls, args.rounds)
    first = next(iter(seconds))
    for name, values in seconds.items():
        gain = statistics.median(a / b for a, b in zip(seconds[first], values, strict=True))
        spread = f"{min(values):.2f}-{max(values):.2f}"
        wall = statistics.median(values)
        print(f"{name:12} {wall:6.2f} s ({spread})  {len(origins) / wall:6.2f} windows/s  {gain:5.2f} x {first}")
    print(f"the same bytes: {same}; load average {os.getloadavg()[0]:.1f}")


def measure(calls: dict[str, Callable[[], WindowFields]], rounds: int) -> tuple[dict[str, list[float]], bool]:
    """Wall seconds of every call, taking turns; and whether all gave the same bytes."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    found = set()
    for _ in range(rounds):
        for name, call in calls.items():
            begin = time.perf_counter()
            fields = call()
            seconds[name].append(time.perf_counter() - begin)
            if not name.startswith("OpenMP"):  # which promises no bytes
                found.add(hash(fields.values.numpy().tobytes()))
    return seconds, len(found) == 1


def held(workers: Workers) -> str:
    parts = [psutil.Process(pid).memory_full_info() for pid in workers.pids]
    return (
        f"{max(p.uss for p in parts) / 1e6:.0f} MB private and {max(p.rss for p in parts) / 1e6:.0f} MB resident each"
    )


@contextmanager
def others(count: int) -> Iterator[None]:
    """Processes that only count, for as long as the block runs."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
