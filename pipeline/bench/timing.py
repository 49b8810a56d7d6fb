"""Timing passes: the device is synchronised, medians are taken over many passes, and rivals take turns.

A pass shorter than ``GROUP_S`` on a GPU is timed in groups, between two events, so that neither the launch of the next
pass nor the synchronisation counts; on a CPU every pass is timed by itself.
"""

from __future__ import annotations

import ctypes
import gc
import statistics
import sys
import time
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

import psutil
import torch

from pipeline.account.meter import PeakMemory

if TYPE_CHECKING:
    from collections.abc import Callable

GROUP_S = 0.05
"""A group of passes on a GPU lasts this long: thousands of times an event's resolution of half a microsecond."""
LEAST = 5
"""Passes (or pairs) at least, however long they take."""
WARM = 3
"""Passes before the clock starts: allocators, caches and clocks settle; CUDA graphs are recorded in the first ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Median and quartiles of many measurements."""

    low: float
    median: float
    high: float
    count: int

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """The spread of at least one value.

        >>> Spread.of([3.0, 1.0, 2.0, 5.0, 4.0])
        Spread(low=2.0, median=3.0, high=4.0, count=5)
        """
        if len(values) == 1:
            return cls(low=values[0], median=values[0], high=values[0], count=1)
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(low=low, median=median, high=high, count=len(values))


@dataclass(frozen=True, slots=True, kw_only=True)
class Duel:
    """Two calls that took turns: seconds of each, and the ratio of every pair (second over first)."""

    first: Spread
    second: Spread
    ratio: Spread


def synchronise(device: torch.device) -> None:
    """Wait until a GPU has done everything that was queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(call: Callable[[], object], device: torch.device, *, repeats: int = 1) -> float:
    """Seconds per call over ``repeats`` calls in a row."""
    if device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        for _ in range(repeats):
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            call()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1000 / repeats
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def grouping(call: Callable[[], object], device: torch.device) -> int:
    """How many passes make a group; the caller has warmed up."""
    return max(1, ceil(GROUP_S / max(timed(call, device), 1e-6))) if device.type == "cuda" else 1


def passes(call: Callable[[], object], device: torch.device, *, seconds: float, least: int = LEAST) -> Spread:
    """Seconds of a pass: repeated until the time is over, ``least`` times at least."""
    repeats = grouping(call, device)
    values: list[float] = []
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop or len(values) < least:
        values.append(timed(call, device, repeats=repeats))
    return Spread.of(values)


def duel(
    first: Callable[[], object],
    second: Callable[[], object],
    device: torch.device,
    *,
    seconds: float,
    least: int = LEAST,
) -> Duel:
    """Let two calls take turns, pass after pass, so that a busy moment slows both; each pair gives a ratio."""
    groups = grouping(first, device), grouping(second, device)
    pairs: list[tuple[float, float]] = []
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop or len(pairs) < least:
        pairs.append((timed(first, device, repeats=groups[0]), timed(second, device, repeats=groups[1])))
    ours, theirs = ([pair[i] for pair in pairs] for i in (0, 1))
    return Duel(first=Spread.of(ours), second=Spread.of(theirs), ratio=Spread.of([b / a for a, b in pairs]))


def warm(call: Callable[[], object], device: torch.device, *, times: int = WARM) -> None:
    """Run a call before it is timed."""
    for _ in range(times):
        call()
    synchronise(device)


def peak_bytes(call: Callable[[], object], device: torch.device, *, held: int) -> int:
    """Memory that passes need.

    Args:
        call: A pass, warmed up.
        device: Where it runs.
        held: Bytes of weights and input, which are there before a pass.

    Returns:
        GPU: the most that torch has had allocated since ``forget``, weights and input included. CPU: ``held`` plus the
        growth of resident memory while a few passes run, which misses what the allocator had kept from before.
    """
    if device.type == "cuda":
        warm(call, device)
        return int(torch.cuda.max_memory_allocated(device))
    process = psutil.Process()
    trim()
    before = int(process.memory_info().rss)
    with PeakMemory(interval_s=0.002, resident=lambda: int(process.memory_info().rss)) as memory:
        warm(call, device)
    return held + max(0, memory.peak_bytes() - before)


def forget(device: torch.device) -> None:
    """Give back what the last row held, and begin to count anew."""
    gc.collect()
    trim()
    torch.compiler.reset()  # every row is a graph of its own: without this the sixth would hit torch's limit
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def trim() -> None:
    """Hand freed memory back to the system, where the C library can (glibc)."""
    if sys.platform == "linux":
        release = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if release is not None:
            release(0)
