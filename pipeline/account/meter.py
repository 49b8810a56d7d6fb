"""What the process uses while it works: stage times, memory, CPU seconds.

Clocks and probes are arguments. Knows nothing of tiles or files.
"""

from __future__ import annotations

import resource
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

import psutil

from pipeline.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType


class StageClock:
    """Adds up thread-seconds by stage; safe for many threads.

    Stages of different threads overlap, so the sums do not add up to the wall time. A stage inside another counts in
    both.

    >>> ticks = iter([10.0, 12.5])
    >>> clock = StageClock(monotonic=lambda: next(ticks))
    >>> with clock.stage("read"):
    ...     pass
    >>> clock.seconds()
    (('read', 2.5),)
    """

    def __init__(self, *, monotonic: Callable[[], float] = time.perf_counter) -> None:
        self._monotonic = monotonic
        self._seconds: dict[str, float] = {}
        self._lock = threading.Lock()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the block, also when it raises."""
        start = self._monotonic()
        try:
            yield
        finally:
            self.add(name, self._monotonic() - start)

    def add(self, name: str, seconds: float) -> None:
        """Add time that was measured elsewhere."""
        with self._lock:
            self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    def seconds(self) -> tuple[tuple[str, float], ...]:
        """(stage, thread-seconds), sorted by stage: the form of ``Usage.stage_s``."""
        with self._lock:
            return tuple(sorted(self._seconds.items()))


class PeakMemory:
    """Samples resident memory in a thread and keeps the highest value; a context manager.

    Between two samples a short peak can be missed. What children share is left out where the system tells it
    (Linux): encoder processes map the pixels and weights of their parent.

    Args:
        interval_s: Time between samples.
        resident: Returns the bytes in use now.
    """

    def __init__(self, *, interval_s: float = 0.1, resident: Callable[[], int] | None = None) -> None:
        if interval_s <= 0:
            raise InvalidInputError(f"memory sampling interval is {interval_s} s, must be positive")
        self._interval_s = interval_s
        self._resident = resident or resident_bytes
        self._peak = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)

    def __enter__(self) -> Self:
        self.sample()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self.sample()

    def peak_bytes(self) -> int:
        """Highest value since the start or the last ``restart``."""
        self.sample()
        return self._peak

    def restart(self) -> int:
        """Return the peak so far and begin again: one call per tile."""
        now = self._resident()
        with self._lock:
            peak, self._peak = max(self._peak, now), now
        return peak

    def sample(self) -> None:
        """Look once, now."""
        now = self._resident()
        with self._lock:
            self._peak = max(self._peak, now)

    def _watch(self) -> None:
        while not self._stop.wait(self._interval_s):
            self.sample()


def resident_bytes() -> int:
    """Resident memory of this process and its children; where that is not to be had, its own lifetime peak."""
    try:
        own = psutil.Process()
        return int(own.memory_info().rss) + sum(_child_bytes(child) for child in own.children(recursive=True))
    except psutil.Error:
        return lifetime_peak_bytes()


def lifetime_peak_bytes() -> int:
    """Highest resident memory this process ever had, children not included (getrusage: KiB, on macOS bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else int(peak) * 1024


def cpu_seconds() -> float:
    """User and system seconds of this process so far, with ended and living children."""
    own = sum(
        usage.ru_utime + usage.ru_stime
        for usage in (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    )
    try:
        return own + sum(_child_cpu_s(child) for child in psutil.Process().children(recursive=True))
    except psutil.Error:
        return own


def process_age_s() -> float:
    """Seconds since this process was started: interpreter start and imports are billed like everything else."""
    try:
        return max(0.0, time.time() - float(psutil.Process().create_time()))
    except psutil.Error:
        return 0.0


def _child_bytes(child: psutil.Process) -> int:
    try:
        info = child.memory_info()
        return max(0, int(info.rss) - int(getattr(info, "shared", 0)))  # what it maps of ours is counted already
    except psutil.Error:  # it ended between the listing and the look
        return 0


def _child_cpu_s(child: psutil.Process) -> float:
    try:
        times = child.cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)
