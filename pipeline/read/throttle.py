"""How many reads may run at an archive at once: fewer after it said that it is busy, slowly more again.

Archives limit what goes out of one account (Azure: 503 "Egress is over the account limit", seen by others at the
Planetary Computer) and answer whoever asks more with 503 or 429. Repeating alone keeps the pressure up and can end in
failed tiles; asking less ends it. One limit per archive and process, whatever number of ``Access`` there are.

Additive increase, multiplicative decrease, as TCP does it: the limit is halved when half of the reads are refused
something, and grows by one after every ``RISE_S`` seconds without. An archive that fails at random (5 % of requests are
20 % of reads) is not asked less: that would not help, and repeating does.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

log = logging.getLogger(__name__)

BUSY = frozenset({429, 503})
"""HTTP: too many requests, service unavailable."""
MOST = 256
"""Reads at once before anybody complains: no limit of ours, it is what ``run.io_threads`` can be."""
SHARE = 0.5
"""Of the reads, from which on their being refused is the archive's load."""
AGAIN = 2
"""Reads that must be refused before another cut: after one, few are known of."""
MEMORY = 32
"""Reads after which earlier ones count half."""
HOLD_S = 1.0
"""Busy answers within this time after a cut belong to requests that were sent before it."""
RISE_S = 5.0
"""Longer than GDAL's first three waits (0.5, 1, 2 s): a request that was refused has been repeated by then."""


class Throttle:
    """The limit of one archive; all methods are safe to call from any thread.

    A read that is inside another one of the same thread takes no place of its own.
    """

    def __init__(self, name: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._name, self._clock = name, clock
        self._changed = threading.Condition()
        self._limit = MOST
        self._before = self._running = 0
        self._finished = self._refused = 0.0  # reads of late
        self._cut_s = self._step_s = -math.inf  # when the limit was last halved, and last changed
        self._cuts = 0
        self._mine = threading.local()  # held: this thread has a place; refused: the cut after which its read was

    @property
    def limit(self) -> int:
        """Reads that may run at once now."""
        return self._limit

    @property
    def slowed(self) -> bool:
        """Whether the archive was busy lately: then a read should also not ask for several things at once."""
        return self._limit < MOST

    @contextmanager
    def place(self) -> Iterator[None]:
        """Wait until the limit leaves a place, and hold it."""
        if getattr(self._mine, "held", False):
            yield
            return
        with self._changed:
            self._rise()
            while self._running >= self._limit:
                self._changed.wait(timeout=RISE_S)
                self._rise()
            self._running += 1
            since = self._cuts
        self._mine.held, self._mine.refused = True, None
        try:
            yield
        finally:
            self._mine.held = False
            with self._changed:
                self._finish(since)
                self._rise()
                self._changed.notify_all()

    def busy(self) -> None:
        """The archive said so to the read of this thread."""
        with self._changed:
            now_s = self._clock()
            if now_s - self._cut_s < HOLD_S or getattr(self._mine, "refused", None) == self._cuts:
                return
            self._mine.refused = self._cuts
            self._refused += 1
            enough = self._refused >= SHARE * (self._running + self._finished)
            if not enough or (self.slowed and self._refused < AGAIN):
                return
            self._before = max(self._before, self._running)
            self._limit = max(1, min(self._limit, self._running) // 2)
            self._cut_s = self._step_s = now_s
            self._cuts, self._refused, self._finished = self._cuts + 1, 0.0, 0.0
            log.warning("%s is busy: at most %d reads at once there", self._name, self._limit)

    def _finish(self, since: int) -> None:
        self._running -= 1
        self._finished += since == self._cuts  # what began before the last cut tells nothing about it
        if self._finished >= MEMORY:
            self._finished, self._refused = self._finished / 2, self._refused / 2

    def _rise(self) -> None:
        """One more for every ``RISE_S`` seconds; no limit again once it is what ran before the first cut."""
        while self.slowed and self._clock() - self._step_s >= RISE_S:
            self._limit, self._step_s = self._limit + 1, self._step_s + RISE_S
            if self._limit > self._before:
                self._limit, self._before = MOST, 0
            self._changed.notify_all()


_ALL: dict[str, Throttle] = {}
_LOCK = threading.Lock()


def throttle_of(archive: str) -> Throttle:
    """The one of an archive (scheme and host, or bucket)."""
    with _LOCK:
        return _ALL.setdefault(archive, Throttle(archive))
