"""The ledger: what a process held and did, as append-only JSON Lines, one file per process.

``<output>/ledger/<run_id>/<host>-<pid>.jsonl``. Every line is one event with the schema version, UTC for people and
monotonic seconds for arithmetic, written by a single ``write`` to a file opened for appending, so that a killed process
loses at most its last line. An event holds names, numbers and error kinds only, never messages or addresses, so no
secret can get into it. The lease (what is billed) and the attempts (what was done) are recorded apart and never mixed;
``report`` folds them.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import threading
import time
import uuid
from abc import ABC, abstractmethod
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, Self

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from pipeline.account.prices import PriceRow  # noqa: TC001  (pydantic reads the annotation)
from pipeline.errors import InvalidInputError, OutputError
from pipeline.types import Usage  # noqa: TC001  (pydantic reads the annotation)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

SCHEMA = 1
FOLDER = "ledger"
LOG = logging.getLogger(__name__)

_NAME = r"^[A-Za-z0-9_.@-]{0,200}$"
Name = Annotated[str, Field(pattern=_NAME)]
"""An identifier. Nothing with a slash, colon or question mark fits, so no URL does."""
Network = tuple[tuple[Annotated[str, Field(pattern=r"^[a-z_]{1,40}$")], int], ...]
"""Counters of a process's traffic so far, by name: ``requests``, ``bytes``, ``retries``, ``failures``, ..."""
AttemptStatus = Literal["won", "duplicate", "failed", "stopped"]
LeaseEndReason = Literal["finished", "stopped", "failed", "budget"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """What this process holds, and therefore what is billed.

    Attributes:
        device: ``cpu`` or ``cuda``.
        device_name: Product name of the device.
        gpus: GPUs held; 0 on a CPU.
        cores: CPU cores held.
        slot_cores: Cores that the device slot occupies while it is held (on a CPU: the encoder threads).
        instance: Row of the price table, "" when unknown.
        price: The row itself, so that a later change of the table changes no past cost.
        lead_s: Seconds from the start of the process (or of the machine) to ``lease_start``; they are billed too.
    """

    device: Literal["cpu", "cuda"]
    device_name: str
    gpus: int
    cores: int
    slot_cores: int = 1
    instance: str = ""
    price: PriceRow | None = None
    lead_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What every event has: ``lease`` names the process's life, ``seq`` its events in order."""

    schema: int
    run: Name
    lease: Name
    seq: int
    utc: datetime
    mono_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseStart(Header):
    """The process begins to cost."""

    host: str
    pid: int
    held: Lease
    event: Literal["lease_start"] = "lease_start"


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptStart(Header):
    """A try at a tile begins; the device slot comes later."""

    tile_id: Name
    attempt: int
    fingerprint: Name
    event: Literal["attempt_start"] = "attempt_start"


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot(Header):
    """An attempt takes or gives back the device slot."""

    tile_id: Name
    attempt: int
    taken: bool
    event: Literal["slot"] = "slot"


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptEnd(Header):
    """A try ended in the process's own hands; a killed one has no such event."""

    tile_id: Name
    attempt: int
    fingerprint: Name
    status: AttemptStatus
    error_kind: Name
    usage: Usage
    event: Literal["attempt_end"] = "attempt_end"


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat(Header):
    """The process is alive; ``cpu_s`` is its user+system time so far, children included, ``network`` its traffic."""

    cpu_s: float | None
    network: Network = ()
    event: Literal["heartbeat"] = "heartbeat"


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseEnd(Header):
    """The process stops; ``stage_s`` are stages outside attempts (start-up, warm-up, finalise)."""

    reason: LeaseEndReason
    cpu_s: float | None
    stage_s: tuple[tuple[str, float], ...]
    network: Network = ()
    event: Literal["lease_end"] = "lease_end"


Event = LeaseStart | AttemptStart | Slot | AttemptEnd | Heartbeat | LeaseEnd
_EVENTS: TypeAdapter[Event] = TypeAdapter(
    Annotated[Event, Field(discriminator="event")], config=ConfigDict(ser_json_inf_nan="null")
)


class Ledger(Protocol):
    """What the runner writes to; ``attempt`` is the number that the commit folder gave out for the tile."""

    def lease_start(self, held: Lease) -> None:
        """Record what the process holds; once, first."""

    def attempt_start(self, tile_id: str, attempt: int, *, fingerprint: str) -> None:
        """Record that a try begins."""

    def slot(self, tile_id: str, attempt: int, *, taken: bool) -> None:
        """Record that the device slot was taken or given back."""

    def attempt_end(
        self,
        tile_id: str,
        attempt: int,
        *,
        fingerprint: str,
        status: AttemptStatus,
        usage: Usage,
        error_kind: str = "",
    ) -> None:
        """Record how a try ended and what it used."""

    def heartbeat(self) -> None:
        """Record that the process lives."""

    def lease_end(self, reason: LeaseEndReason, *, stage_s: tuple[tuple[str, float], ...] = ()) -> None:
        """Record that the process stops; once, last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """Where events take their times from."""

    utc: Callable[[], datetime] = lambda: datetime.now(UTC)
    monotonic: Callable[[], float] = time.monotonic


class _Recorder(ABC):
    """Builds events and numbers them; safe for several threads. ``_put`` stores one.

    Attributes:
        network: Gives the traffic of the process so far, for heartbeats and the end; set once the readers exist.
    """

    def __init__(self, run_id: str, *, lease: str, clock: Clock, cpu_s: Callable[[], float] | None) -> None:
        self.network: Callable[[], Network] = tuple
        if not run_id or not re.fullmatch(_NAME, run_id):
            raise InvalidInputError(f"run id {run_id!r} must be letters, digits, '_', '.', '@' and '-'")
        self.run_id = run_id
        self.lease = lease
        self._clock = clock
        self._cpu_s = cpu_s
        self._seq = 0
        self._lock = threading.Lock()

    def lease_start(self, held: Lease) -> None:
        """See ``Ledger``."""
        with self._lock:
            self._put(LeaseStart(**self._header(), host=_host(), pid=os.getpid(), held=held))

    def attempt_start(self, tile_id: str, attempt: int, *, fingerprint: str) -> None:
        """See ``Ledger``."""
        with self._lock:
            self._put(AttemptStart(**self._header(), tile_id=tile_id, attempt=attempt, fingerprint=fingerprint))

    def slot(self, tile_id: str, attempt: int, *, taken: bool) -> None:
        """See ``Ledger``."""
        with self._lock:
            self._put(Slot(**self._header(), tile_id=tile_id, attempt=attempt, taken=taken))

    def attempt_end(
        self,
        tile_id: str,
        attempt: int,
        *,
        fingerprint: str,
        status: AttemptStatus,
        usage: Usage,
        error_kind: str = "",
    ) -> None:
        """See ``Ledger``."""
        with self._lock:
            self._put(
                AttemptEnd(
                    **self._header(),
                    tile_id=tile_id,
                    attempt=attempt,
                    fingerprint=fingerprint,
                    status=status,
                    error_kind=error_kind,
                    usage=usage,
                )
            )

    def heartbeat(self) -> None:
        """See ``Ledger``."""
        with self._lock:
            self._put(Heartbeat(**self._header(), cpu_s=self._cpu(), network=self.network()))

    def lease_end(self, reason: LeaseEndReason, *, stage_s: tuple[tuple[str, float], ...] = ()) -> None:
        """See ``Ledger``."""
        with self._lock:
            self._put(
                LeaseEnd(**self._header(), reason=reason, cpu_s=self._cpu(), stage_s=stage_s, network=self.network())
            )

    @abstractmethod
    def _put(self, event: Event) -> None:
        """Store one event."""

    def _cpu(self) -> float | None:
        return None if self._cpu_s is None else self._cpu_s()

    def _header(self) -> dict[str, Any]:
        self._seq += 1
        return {
            "schema": SCHEMA,
            "run": self.run_id,
            "lease": self.lease,
            "seq": self._seq,
            "utc": self._clock.utc(),
            "mono_s": self._clock.monotonic(),
        }


class JsonlLedger(_Recorder):
    """The ledger of this process on a local file system; a context manager that closes its file.

    Args:
        output: The output folder.
        run_id: Name of the run; a part of the path.
        clock: Times of the events.
        cpu_s: CPU seconds of the process so far, for heartbeats; None leaves them unknown.

    Raises:
        InvalidInputError: ``run_id`` is not a plain name.
        OutputError: The file cannot be made or written.
    """

    def __init__(
        self,
        output: str | Path,
        run_id: str,
        *,
        clock: Clock | None = None,
        cpu_s: Callable[[], float] | None = None,
    ) -> None:
        # The process id alone names no life of a process: a restarted container is process 1 on the same host again.
        super().__init__(run_id, lease=uuid.uuid4().hex[:16], clock=clock or Clock(), cpu_s=cpu_s)
        self.path = Path(output) / FOLDER / run_id / f"{_host()}-{os.getpid()}.jsonl"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            self._torn = _is_torn(self._file)
        except OSError as err:
            raise OutputError(f"the ledger {self.path} cannot be opened: {err.strerror or err}") from err

    def _put(self, event: Event) -> None:
        line = (b"\n" if self._torn else b"") + _encode(event) + b"\n"
        try:
            written = os.write(self._file, line)
        except OSError as err:
            raise OutputError(f"the ledger {self.path} cannot be written: {err.strerror or err}") from err
        self._torn = written != len(line)
        if self._torn:
            raise OutputError(f"the ledger {self.path} took {written} of {len(line)} bytes: is the disk full?")

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class MemoryLedger(_Recorder):
    """A ledger that keeps its events in ``events``: for tests and runs without an output folder."""

    def __init__(
        self, run_id: str = "memory", *, clock: Clock | None = None, cpu_s: Callable[[], float] | None = None
    ) -> None:
        super().__init__(run_id, lease=uuid.uuid4().hex[:16], clock=clock or Clock(), cpu_s=cpu_s)
        self.events: list[Event] = []

    def _put(self, event: Event) -> None:
        self.events.append(_EVENTS.validate_json(_encode(event)))


class HeartbeatThread:
    """Calls ``ledger.heartbeat`` every ``interval_s`` seconds between ``start`` (or ``with``) and ``stop``.

    An attempt that is killed is charged up to the last sign of life, so the interval is the largest error of that
    charge. A ledger that cannot be written stops the thread, with one warning: the run itself will meet the error.
    """

    def __init__(self, ledger: Ledger, *, interval_s: float = 10.0) -> None:
        if interval_s <= 0:
            raise InvalidInputError(f"heartbeat interval is {interval_s} s, must be positive")
        self._ledger = ledger
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="ledger-heartbeat", daemon=True)

    def start(self) -> None:
        """Start beating."""
        self._thread.start()

    def stop(self) -> None:
        """Stop and wait for the thread; no heartbeat is written after this returns."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _beat(self) -> None:
        while not self._stop.wait(self._interval_s):
            try:
                self._ledger.heartbeat()
            except OutputError as err:
                LOG.warning("no more heartbeats: %s", err)
                return


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerData:
    """What was read: the events as found, and how many lines could not be understood (cut by a kill, or foreign)."""

    events: tuple[Event, ...]
    damaged_lines: int


def read(output: str | Path, *, run_id: str | None = None) -> LedgerData:
    """Read every ledger file of an output folder (or of one run). No ledger at all is an empty one.

    Raises:
        OutputError: A file cannot be read.
    """
    events: list[Event] = []
    damaged = 0
    for path in sorted((Path(output) / FOLDER).glob(f"{run_id or '*'}/*.jsonl")):
        for line in _lines(path):
            try:
                events.append(_EVENTS.validate_json(line))
            except ValidationError:
                damaged += 1
    return LedgerData(events=tuple(events), damaged_lines=damaged)


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as lines:
            yield from (line for line in lines if line.strip())
    except OSError as err:
        raise OutputError(f"the ledger {path} cannot be read: {err.strerror or err}") from err


def _encode(event: Event) -> bytes:
    """One JSON object without a newline, proven to be readable again."""
    line = _EVENTS.dump_json(event)
    try:
        _EVENTS.validate_json(line)
    except ValidationError as err:
        first = err.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidInputError(f"ledger event {event.event}: {where}: {first['msg']}") from err
    return line


def _is_torn(file: int) -> bool:
    size = os.fstat(file).st_size
    return size > 0 and os.pread(file, 1, size - 1) != b"\n"


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "_", socket.gethostname())[:60] or "host"
