"""Encoder processes that share one tile: a Session from outside, N single-threaded ones inside.

On CPUs N processes of one thread each share nothing but memory: no interpreter lock, no barrier that a preempted thread
stalls. The parent lays a tile's native pixels into shared memory once and hands out pieces; the processes write
their windows' vectors into shared memory that becomes the result. The weights, too, exist once: the parent builds the
encoder, the processes map it (so nothing on disk is read twice, and all compute with what the parent has checked).

A piece is a run of whole batches, the very ones that a plain Session would make, so that no more of them are padded
than there; pieces are large at first and single batches at the end. A window's bytes depend on none of that.

The processes end with their parent (see ``child``), and nothing that they share has a name (see ``shared``): a kill
leaves nothing behind.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from itertools import chain
from multiprocessing import connection
from threading import Lock
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
import torch

from pipeline.encode import patches
from pipeline.encode.child import STOP_S, Child, Members
from pipeline.encode.olmoearth import Head
from pipeline.encode.patch import token_grid
from pipeline.encode.session import SENSOR, Session, WindowFields
from pipeline.encode.shared import Shared, pack
from pipeline.errors import ConfigError, EarthpressError, InvalidInputError, TransientError
from pipeline.types import GridSpec, ModelCard, Numerics, Period, Stack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from pipeline.encode.checkpoint import Checkpoint
    from pipeline.encode.domain import DomainEncoder
    from pipeline.encode.gate import GateReport
    from pipeline.encode.olmoearth import Encoder

    Share = Callable[[int, int], int]

log = logging.getLogger(__name__)

MIN_WORKERS = 8
"""``auto`` keeps to single-threaded threads of one process below this many encoders. Measured on two cores (nano,
patch 4 and 8): threads 1.89-1.94 times one thread, processes 1.76-1.82; beside a busy process 1.31-1.36 and
1.16-1.21. But one thread then assembles windows for all of them, 5-6 % of nano's time, which a dozen encoders would
use up; that many cores were not to be had for measuring."""
MIN_CORE_S = 60.0
"""``auto`` starts processes for at least this much work per core: they cost seconds of start-up."""
AHEAD = 2
"""Tiles that may be staged: as many as are read at once."""
WORKER_BYTES = 200_000_000
"""Measured (torch 2.13, v1.2 nano to v1.3 base): 157-183 MB private to a process that has run its gate and a tile. Its
resident memory is 260-290 MB and the weights more, which all processes share."""
COMPILER_BYTES = 150_000_000
"""What torch.compile adds to that: 153 MB measured, nano."""


def wanted(asked: str, *, device: str, workers: int, core_s: float) -> bool:
    """Whether a run should use encoder processes; results are the same bytes either way.

    Args:
        asked: ``run.encoders``: ``auto``, ``processes`` or ``threads``.
        device: ``cpu`` or ``cuda``.
        workers: Encoders at once.
        core_s: Estimated core-seconds of the encoder for what the run has to do.
    """
    if device != "cpu" or asked == "threads":
        return False
    return asked == "processes" or (workers >= MIN_WORKERS and core_s > MIN_CORE_S * workers)


def bytes_per_worker(card: ModelCard, *, compiled: bool = False) -> int:
    """Private memory of one encoder process beside its pixels and activations, bytes: for estimates.

    The interpreter with torch and this package; eager encoders share their weights, compiled ones pack a copy each.
    """
    return WORKER_BYTES + (COMPILER_BYTES + 4 * card.parameters if compiled else 0)


class Movable(Session):
    """A session whose encoder can be taken out here and put into another process."""

    def __init__(
        self, checkpoint: Checkpoint, *, encoder: Encoder | DomainEncoder | None = None, **arguments: Any
    ) -> None:
        """As ``Session``; ``encoder`` is used instead of building one for the run."""
        self._given = encoder
        super().__init__(checkpoint, **arguments)

    @property
    def encoder(self) -> Encoder | DomainEncoder:
        """The encoder of the run, not compiled."""
        return self._encoder

    def _build(self, *args: Any, **kwargs: Any) -> Encoder | DomainEncoder:
        encoder, self._given = self._given, None
        return super()._build(*args, **kwargs) if encoder is None else encoder


def field_arrays(memory: Shared, shape: tuple[int, ...]) -> tuple[torch.Tensor, NDArray[np.bool_]]:
    """(values (window, token_row, token_col, dim) float32, valid (window, token_row, token_col)) of a tile's memory."""
    return memory.tensor(shape, torch.float32), memory.array(shape[:-1], np.bool_, 4 * int(np.prod(shape)))


def guided(left: int, workers: int) -> int:
    """Batches of the next piece: half of what each worker has still to do, in the end one."""
    return max(1, left // (2 * workers))


class Workers:
    """Encoder processes behind the interface of a Session; results are the same bytes.

    Processes start when it is made and get ready in the background; whoever needs them first waits. A process that
    dies fails the tile in work, which may be tried again: it is replaced when the next one begins. Use it as a
    context manager, or ``close`` it.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        grid: GridSpec,
        periods: tuple[Period, ...],
        numerics: Numerics,
        processes: int,
        sensors: tuple[str, ...] = (SENSOR,),
        resampling: str = "bilinear",
        share: Share = guided,
    ) -> None:
        """Start the processes and build the encoder for them.

        Args:
            checkpoint: The model, checked; it is not kept.
            grid: The window lattice.
            periods: The time axis.
            numerics: From ``settle``, of a CPU.
            processes: How many.
            sensors: What the stacks hold, in their order.
            resampling: As for ``Session``.
            share: Batches of the next piece, from the batches left and the number of processes.

        Raises:
            ConfigError: The numerics class is of a GPU, or window and patch do not fit.
            DeviceError: Processes cannot be started.
        """
        if numerics.device != "cpu":
            raise ConfigError(f"encoder processes are for CPUs, not for {numerics.device}: use run.encoders=threads")
        self._grid, self._numerics, self._card, self._share = grid, numerics, checkpoint.card, share
        side = token_grid((grid.window_px, grid.window_px), grid.patch_px)
        self._tokens = (grid.kept[1], grid.kept[1]) if grid.stitch == "neighbourhood" else side
        self._busy_s, self._tile = 0.0, 0
        self._staged: dict[int, tuple[tuple[Stack, ...], Shared]] = {}
        self._lock = Lock()
        self._children: list[Child] = []
        self._parts: Shared | None = None
        try:
            self._children.extend(Child() for _ in range(max(1, processes)))
            arguments: dict[str, Any] = {
                "grid": grid,
                "periods": periods,
                "numerics": numerics,
                "sensors": sensors,
                "resampling": resampling,
            }
            encoder = Movable(checkpoint, threads=1, **arguments).encoder  # while they import torch
            self._dims, self._head = encoder.field_dims, Head(checkpoint).eval()
            self._parts = pack((encoder, replace(checkpoint, tensors=dict(checkpoint.tensors)), arguments))
            for child in self._children:
                child.build(self._parts)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes, also in the middle of their work; nothing happens the second time."""
        children, self._children = self._children, []
        self._parts = None
        self._staged.clear()
        for child in children:
            child.connection.close()  # all of them, before the first is waited for
        stop = time.monotonic() + STOP_S
        for child in children:
            child.end(max(0.0, stop - time.monotonic()))

    @property
    def busy_s(self) -> float:
        """Core-seconds that the processes spent in forward passes so far, as ``Session.busy_s``."""
        return self._busy_s

    @property
    def field_dims(self) -> int:
        """Width of the vectors that ``encode`` gives."""
        return self._dims

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of the encoders, also of any that died and is not replaced yet."""
        return tuple(child.process.pid for child in self._children)

    def head(self, values: torch.Tensor) -> torch.Tensor:
        """As ``Session.head``."""
        with torch.inference_mode():
            out: torch.Tensor = self._head(values)
        return out

    def warm_up(self) -> float:
        """Wait until every process is ready and has run one batch; returns the seconds that took.

        The first one compiles, if the numerics class says so; the others then find its work in inductor's cache.

        Raises:
            TransientError: A process died.
            DeviceError: An encoder cannot run here.
        """
        begin = time.perf_counter()
        self._revive()
        first = 1 if self._numerics.compiled else len(self._children)
        for crew in (self._children[:first], self._children[first:]):
            self._ask(crew, "warm_up")
        return time.perf_counter() - begin

    def gate(self) -> GateReport:
        """Run the start-up gate in one of the processes; they are all alike.

        Raises:
            DeviceError: The encoder is wrong on this device.
            TransientError: A process died.
        """
        self._revive()
        (report,) = self._ask(self._children[:1], "gate")
        found: GateReport = report
        return found

    def stage(self, stacks: Stack | Sequence[Stack]) -> None:
        """Lay the next tile's pixels into shared memory; for the thread that has read it.

        ``encode`` must be called with the same stacks; tiles that failed are forgotten when others come.
        """
        given = (stacks,) if isinstance(stacks, Stack) else tuple(stacks)
        packed = pack(given)
        with self._lock:
            self._staged[id(given[0])] = (given, packed)  # which keeps the stack, and therefore its id
            for old in tuple(self._staged)[:-AHEAD]:
                del self._staged[old]

    def encode(self, stacks: Stack | Sequence[Stack], origins: Sequence[tuple[int, int]]) -> WindowFields:
        """Encode the windows of a tile; arguments and result as ``Session.encode``.

        Raises:
            InvalidInputError: As ``Session.encode``.
            TransientError: A process died: the tile may be tried again.
        """
        given = (stacks,) if isinstance(stacks, Stack) else tuple(stacks)
        self._revive()
        shape = (len(origins), *self._tokens, self._dims)
        fields = Shared.create(len(origins) * self._tokens[0] * self._tokens[1] * (4 * self._dims + 1))
        values, valid = field_arrays(fields, shape)
        pixels = self._pixels(given)
        self._tile += 1
        try:
            self._finish(self._batches(given, origins), shape=shape, fds=(pixels.fd, fields.fd))
        finally:
            for child in self._children:
                child.drop(self._tile)
            pixels.close()
            fields.close()
        return WindowFields(values=values, valid=valid)

    def _pixels(self, stacks: tuple[Stack, ...]) -> Shared:
        """Packed stacks: those that were staged, if they are the same."""
        with self._lock:
            given, packed = self._staged.pop(id(stacks[0]), ((), None))
        same = len(given) == len(stacks) and all(a is b for a, b in zip(given, stacks, strict=True))
        return packed if same and packed is not None else pack(stacks)

    def _batches(self, stacks: tuple[Stack, ...], origins: Sequence[tuple[int, int]]) -> tuple[Members, ...]:
        """The windows in the batches that a plain session makes of them: (index, row, col) each."""
        size = self._numerics.batch_windows
        if size == 1:
            rows = sorted((row, col, index) for index, (row, col) in enumerate(origins))
            return tuple(((index, row, col),) for row, col, index in rows)
        return tuple(batched(kinds(stacks, origins, grid=self._grid), size))

    def _finish(self, batches: tuple[Members, ...], *, shape: tuple[int, ...], fds: tuple[int, int]) -> None:
        """Hand out every batch to whoever is free, and wait for the last."""
        done, open_ = 0, 0
        while done < len(batches) or open_:
            for child in self._children:
                if not child.free or done == len(batches):
                    continue
                count = min(self._share(len(batches) - done, len(self._children)), len(batches) - done)
                members = tuple(chain.from_iterable(batches[done : done + count]))
                child.piece(self._tile, shape, members, fds=fds)
                done, open_ = done + count, open_ + 1
            open_ -= sum(tile == self._tile for _, tile, _ in self._answers())

    def _ask(self, children: Sequence[Child], name: str) -> list[Any]:
        """The answers of several processes to one question, in their order, when all have answered."""
        got: dict[Child, Any] = {}
        asked: set[Child] = set()
        while len(got) < len(children):
            for child in children:
                if child.free and child not in asked:
                    child.ask(name)
                    asked.add(child)
            got |= {child: value for child, _, value in self._answers() if child in asked}
        return [got[child] for child in children]

    def _answers(self) -> list[tuple[Child, int, Any]]:
        """(process, tile it worked on or 0, what it says): at least one, as they come.

        Raises:
            EarthpressError: What went wrong in a process, unless it was about a tile of the past.
            TransientError: A process died.
        """
        found = []
        ready = connection.wait([child.connection for child in self._children])
        for child in self._children:
            if child.connection not in ready:
                continue
            try:
                name, fine, value = child.answer()
            except (EOFError, OSError) as err:
                raise TransientError(self._obituary(child)) from err
            if name == "piece" and fine:
                self._busy_s += value
            if name == "build" and not fine:
                child.process.kill()  # it is of no use
            if not fine and child.about in (0, self._tile):
                raise cast("EarthpressError", value)
            found.append((child, child.about, value))
        return found

    def _revive(self) -> None:
        """Replace the processes that ended.

        Raises:
            InvalidInputError: They were closed.
        """
        if self._parts is None:
            raise InvalidInputError("these encoder processes are closed: make new ones")
        for place, child in enumerate(self._children):
            if child.lost():
                log.warning("%s; starting another", self._obituary(child))
                child.end()
                self._children[place] = Child()
                self._children[place].build(self._parts)

    def _obituary(self, child: Child) -> str:
        return child.obituary(bytes_per_worker(self._card, compiled=self._numerics.compiled))


def kinds(
    stacks: tuple[Stack, ...], origins: Sequence[tuple[int, int]], *, grid: GridSpec
) -> Iterator[tuple[tuple[int, int, int], bool | None]]:
    """((index, row, col), whether it has missing tokens; None: nothing but missing ones) of each window, row by row.

    Raises:
        InvalidInputError: A window lies outside a stack.
    """
    for members in patches.rows(origins, grid.patch_px):
        strip = patches.empty_strip(stacks, members, grid=grid)
        for member in members:
            _, visible = strip.window(member, grid=grid)
            yield member, (None if not visible.any() else not visible.all())


def batched(windows: Iterator[tuple[tuple[int, int, int], bool | None]], size: int) -> Iterator[Members]:
    """Batches of one kind as they fill, then what is left, as ``Session`` makes them; empty windows join the next."""
    waiting: dict[bool, list[tuple[int, int, int]]] = {False: [], True: []}
    empty: list[tuple[int, int, int]] = []
    for member, masked in windows:
        if masked is None:
            empty.append(member)
            continue
        waiting[masked].append(member)
        if len(waiting[masked]) == size:
            yield (*waiting[masked], *empty)
            waiting[masked], empty = [], []
    for rest in (waiting[False], waiting[True], empty):
        if rest:
            yield tuple(rest)
