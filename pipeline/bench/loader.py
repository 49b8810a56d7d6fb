"""What feeding the encoder costs: the same tiles computed only, read only, and both at once as a run does.

The feeding loss is the share of the encoder's own speed that is lost because pixels come too late, and, on a CPU,
because reading takes cores from it. Reading is that of a run: tiles ahead of the encoder, a pool of threads for their
files; scenes are ranked anew each time. Stitching and writing are left out on both sides.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Self

from pipeline.bench import device as devices
from pipeline.bench.table import Files, Table
from pipeline.encode import checkpoint, session, workers
from pipeline.errors import InvalidInputError
from pipeline.plan import grid, planner
from pipeline.read.rank import MemoryRanks
from pipeline.read.tiles import IO_THREADS
from pipeline.run import prepare
from pipeline.run.folder import encoder_arguments, settings_of
from pipeline.run.local import READERS
from pipeline.run.reading import Source
from pipeline.run.tile import wanted_px

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pipeline.encode.session import WindowFields
    from pipeline.types import Plan, Stack, Task

SAMPLE_SETTINGS = ("encode.patch_px=8", "store.tile_px=256")
"""The simulated sample in four tiles."""
LEAST_READS = 8
"""A plan of fewer tiles is read over and over: reading ahead of a single tile would show nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderCase:
    """The key of a row.

    Attributes:
        device: Product name.
        plan: First characters of the plan's id.
        model: Name of the model.
        tiles: Tiles that were read, repeats included.
        threads: Encoders at once (GPU: 1).
        processes: Whether they are processes, as in long runs.
        readers: Threads that read files.
    """

    device: str
    plan: str
    model: str
    tiles: int
    threads: int
    processes: bool
    readers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderResult:
    """Medians over the rounds.

    Attributes:
        compute_tiles_per_s: The encoder on pixels in memory.
        fetch_tiles_per_s: Reading, ranking and compositing alone.
        tiles_per_s: Both at once.
        compute_km2_per_s: As the first, ground of the wanted blocks.
        fetch_km2_per_s: As the second.
        km2_per_s: As the third.
        fetch_mb_per_s: 10^6 bytes of decoded pixels per second while reading alone.
        mb_per_s: The same while both are at work.
        feeding_loss: Share of the encoder's speed that is lost, median of 1 - (computing alone / both) of each round;
            negative where others use the machine.
        rounds: Rounds.
        measured: UTC.
        commit: Of earthpress.
    """

    compute_tiles_per_s: float
    fetch_tiles_per_s: float
    tiles_per_s: float
    compute_km2_per_s: float
    fetch_km2_per_s: float
    km2_per_s: float
    fetch_mb_per_s: float
    mb_per_s: float
    feeding_loss: float
    rounds: int
    measured: str = ""
    commit: str = ""


def bench(
    output: str | None,
    *,
    readers: tuple[int, ...] = (1, 4, 16),
    tiles: int = 8,
    rounds: int = 3,
    threads: int = 0,
    folder: Path,
    note: Callable[[str], None] = lambda _text: None,
) -> tuple[tuple[LoaderCase, LoaderResult], ...]:
    """Measure on a plan, for several numbers of reading threads.

    Args:
        output: Folder of a plan; None: the simulated sample, made in a temporary folder.
        readers: Threads that read files.
        tiles: Tiles of the plan, the first ones; fewer are read repeatedly.
        rounds: How often everything is measured; computing, reading and both take turns.
        threads: Encoders at once on a CPU; 0: as a run.
        folder: Where the table is; rows are added to it each time, for networks and disks change.
        note: Called with a line of text before each step.

    Returns:
        A row per number of reading threads.

    Raises:
        InvalidInputError: Numbers that are not positive, or no plan in the folder.
        DeviceError: The plan is for a device that is not here.
        OutputError: The table cannot be used.
    """
    if not readers or min(*readers, tiles, rounds) < 1 or threads < 0:
        raise InvalidInputError(f"readers {readers}, tiles {tiles}, rounds {rounds}: want 1 or more of each")
    options = {"readers": readers, "tiles": tiles, "rounds": rounds, "threads": threads, "folder": folder}
    if output is not None:
        return _bench(planner.load_plan(output), note=note, **options)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as temporary:
        note("simulating scenes and planning them")
        return _bench(sample_plan(Path(temporary)), note=note, **options)  # type: ignore[arg-type]


def _bench(
    plan: Plan,
    *,
    readers: tuple[int, ...],
    tiles: int,
    rounds: int,
    threads: int,
    folder: Path,
    note: Callable[[str], None],
) -> tuple[tuple[LoaderCase, LoaderResult], ...]:
    place = devices.pick("cuda" if plan.numerics.device == "cuda" else "cpu")
    files = Files(folder=folder, device=devices.name_of(place))
    table = Table(files.csv("loader"), LoaderCase, LoaderResult)
    devices.write_sidecar(files, devices.describe(place))
    note("loading the encoder and reading the tiles once")
    with Feed(plan, tiles=tiles, threads=threads) as feed:
        seconds = _measure(feed, readers=readers, rounds=rounds, note=note)
    found = []
    for count in readers:
        case = LoaderCase(
            device=files.device,
            plan=plan.id[:12],
            model=plan.model.name,
            tiles=len(feed.tasks),
            threads=feed.threads,
            processes=feed.processes,
            readers=count,
        )
        result = rates(feed.tasks, read_bytes=feed.read_bytes, seconds=tuple(seconds[count]))
        table.append(case, result)
        found.append((case, result))
    return tuple(found)


def _measure(
    feed: Feed, *, readers: tuple[int, ...], rounds: int, note: Callable[[str], None]
) -> dict[int, list[tuple[float, float, float]]]:
    """(computing, reading, both) seconds of every round, by the number of reading threads."""
    seconds: dict[int, list[tuple[float, float, float]]] = {count: [] for count in readers}
    for number in range(1, rounds + 1):
        for count in readers:
            note(f"round {number}/{rounds}, {count} reading threads")
            fetch_s = clocked(partial(feed.fetch, count))
            compute_s = clocked(feed.compute)
            seconds[count].append((compute_s, fetch_s, clocked(partial(feed.both, count))))
    return seconds


def clocked(call: Callable[[], None]) -> float:
    """Seconds of a call."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def rates(tasks: tuple[Task, ...], *, read_bytes: int, seconds: tuple[tuple[float, float, float], ...]) -> LoaderResult:
    """A row from the seconds of every round.

    Args:
        tasks: The tiles that were read and encoded.
        read_bytes: Bytes of pixels decoded for all of them.
        seconds: (computing, reading, both) of each round. The loss is taken within a round, where computing was
            measured just before both, so that a machine that others use does not shift it.
    """
    count, km2 = len(tasks), sum(wanted_px(task) for task in tasks) * 1e-4  # a 10 m pixel is 1e-4 km2
    compute_s, fetch_s, both_s = (statistics.median(values) for values in zip(*seconds, strict=True))
    return LoaderResult(
        compute_tiles_per_s=count / compute_s,
        fetch_tiles_per_s=count / fetch_s,
        tiles_per_s=count / both_s,
        compute_km2_per_s=km2 / compute_s,
        fetch_km2_per_s=km2 / fetch_s,
        km2_per_s=km2 / both_s,
        fetch_mb_per_s=read_bytes / fetch_s / 1e6,
        mb_per_s=read_bytes / both_s / 1e6,
        feeding_loss=statistics.median(1 - alone / both for alone, _, both in seconds),
        rounds=len(seconds),
        measured=devices.now(),
        commit=devices.commit(),
    )


def sample_plan(folder: Path) -> Plan:
    """A plan of the simulated sample with nano and random weights, on this machine's own settings."""
    from pipeline.config import load  # noqa: PLC0415
    from pipeline.run.demo import demo_request  # noqa: PLC0415
    from pipeline.simulate.sample import make_sample  # noqa: PLC0415

    sample = make_sample(folder / "sample")
    values = demo_request(sample, output=str(folder / "out"))
    return prepare.prepare(load(None, overrides=SAMPLE_SETTINGS, values=values))


class Feed:
    """The tiles of a plan, read once and kept, and the encoder that takes them; a context manager."""

    def __init__(self, plan: Plan, *, tiles: int, threads: int = 0) -> None:
        """Load the encoder, as threads or processes like a run, warm it up, and read.

        Args:
            plan: What to read and encode.
            tiles: How many of its tiles.
            threads: Encoders at once on a CPU; 0: as a run.

        Raises:
            DeviceError: The plan is for a device that is not here.
        """
        first = plan.tasks[:tiles]
        self.tasks = tuple(islice(cycle(first), max(len(first), min(tiles, LEAST_READS))))
        self._plan = plan
        settings, kind = settings_of(plan), plan.numerics.device
        self.threads = threads or prepare.encoder_threads(settings, device=kind)
        core_s = plan.estimate.device_s
        self.processes = workers.wanted(settings.run.encoders, device=kind, workers=self.threads, core_s=core_s)
        self._held = ExitStack()
        model = checkpoint.load(plan.model.name, output=plan.model.output)
        given = encoder_arguments(plan)
        self._encoder: session.Session | workers.Workers
        if self.processes:
            self._encoder = self._held.enter_context(workers.Workers(model, processes=self.threads, **given))
        else:
            self._encoder = session.Session(model, threads=self.threads, **given)
        try:
            self._encoder.warm_up()
            self._stacks = {t.tile.id: stacks for t, stacks in self._stream(first, readers=IO_THREADS, stage=False)}
        except BaseException:
            self._held.close()
            raise
        self.read_bytes = sum(stack.bytes_read for task in self.tasks for stack in self._stacks[task.tile.id])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def compute(self) -> None:
        """Encode every tile from memory."""
        for task in self.tasks:
            self._encode(task, self._stacks[task.tile.id])

    def fetch(self, readers: int) -> None:
        """Read every tile and drop it."""
        for _ in self._stream(self.tasks, readers=readers, stage=False):
            pass

    def both(self, readers: int) -> None:
        """Encode tiles while the next ones are being read."""
        for task, stacks in self._stream(self.tasks, readers=readers, stage=True):
            self._encode(task, stacks)

    def _encode(self, task: Task, stacks: tuple[Stack, ...]) -> WindowFields:
        return self._encoder.encode(stacks, grid.tile_windows(task.tile, task.blocks, self._plan.grid))

    def _stream(
        self, tasks: tuple[Task, ...], *, readers: int, stage: bool
    ) -> Iterator[tuple[Task, tuple[Stack, ...]]]:
        """Tiles in order, read ahead by as many as a run holds."""
        source, queue = Source(self._plan, ranks=MemoryRanks()), deque(tasks)
        waiting: deque[tuple[Task, Future[tuple[Stack, ...]]]] = deque()
        with ThreadPoolExecutor(readers) as io, ThreadPoolExecutor(READERS) as ahead:

            def read(task: Task) -> tuple[Stack, ...]:
                stacks = source.read(task, pool=io)
                if stage:
                    self._encoder.stage(stacks)
                return stacks

            while queue or waiting:
                while queue and len(waiting) <= READERS:
                    task = queue.popleft()
                    waiting.append((task, ahead.submit(read, task)))
                task, future = waiting.popleft()
                yield task, future.result()
