"""Images per second of our encoder against the reference package's, in one process, interleaved, on one thread.

    OMP_NUM_THREADS=1 python benchmarks/encoder.py [--seconds 10] [--sizes nano,tiny] [--periods 1,12]

Both run v1.2 with the same random weights, float32, eager, on the batch that ours would choose. A pass of one is
followed by one of the other, so that a busy machine slows both; the ratio is the median of the paired ratios. A row of
which one pair of passes takes longer than its time is skipped.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[1] / "tests/encode")]

from checkpoints import reference_model, reference_tokens, write_checkpoint  # noqa: E402

from pipeline.config import EncodeSettings  # noqa: E402
from pipeline.encode import checkpoint, session  # noqa: E402
from pipeline.encode.olmoearth import Encoder  # noqa: E402
from pipeline.types import GridSpec, Period  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.encode.checkpoint import Checkpoint

SHAPES = ((64, 8), (96, 8), (64, 4))
"""(window, patch) pixels."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="time per row")
    parser.add_argument("--sizes", default="nano,tiny")
    parser.add_argument("--periods", default="1,12")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, 1 thread, {datetime.now(UTC):%Y-%m-%d}"
    )
    print("model  window/patch   T batch  ours img/s  ref img/s  ratio   GF/s runs")
    for size in args.sizes.split(","):
        reference = reference_model(size)
        with tempfile.TemporaryDirectory() as folder:
            ours = checkpoint.load(str(write_checkpoint(Path(folder), reference)))
        for count in (int(text) for text in args.periods.split(",")):
            for window, patch in SHAPES:
                text = row(reference, ours, window=window, patch=patch, count=count, seconds=args.seconds)
                print(f"{size:6} {text}", flush=True)


def row(reference: Any, ours: Checkpoint, *, window: int, patch: int, count: int, seconds: float) -> str:
    label = f"{f'{window}/{patch}':>12} {count:>3}"
    grid = GridSpec(patch_px=patch, window_px=window, overlap_px=0, tile_px=512)
    settings = EncodeSettings(device="cpu", dtype="float32")
    numerics = session.settle(settings, card=ours.card, grid=grid, periods=count)
    batch = numerics.batch_windows
    starts = [datetime(2024, 1, 1, tzinfo=UTC) + timedelta(days=30 * i) for i in range(count)]
    days = [start.date() for start in starts]
    periods = tuple(Period(index=i, start=s, end=s + timedelta(days=30)) for i, s in enumerate(starts))
    work = session.Session(ours, grid=grid, periods=periods, numerics=numerics, threads=1)
    pixels = torch.randn(batch, count, 12, window, window) * 0.2 + 0.4
    encoder = Encoder(ours, window_px=(window, window), patch_px=patch, dates=days).eval()

    def mine() -> None:
        with torch.inference_mode():
            encoder(pixels)

    def theirs() -> None:
        reference_tokens(reference, pixels, days, patch_px=patch).mean(dim=1)

    warm = timed(mine) + timed(theirs)
    if warm > seconds:
        return f"{label} {batch:>5} skipped: one pair takes {warm:.0f} s"
    pairs, stop = [], time.perf_counter() + seconds
    while time.perf_counter() < stop or len(pairs) < 3:
        pairs.append((timed(mine), timed(theirs)))
    fast, slow = (statistics.median(values) for values in zip(*pairs, strict=True))
    ratio = statistics.median(theirs_s / mine_s for mine_s, theirs_s in pairs)
    rate = work.flops_per_window * batch / fast / 1e9
    return f"{label} {batch:>5} {batch / fast:>11.2f} {batch / slow:>10.2f} {ratio:>6.2f} {rate:>6.1f} {len(pairs)}"


def timed(call: Callable[[], None]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
