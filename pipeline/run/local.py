"""One machine: read ahead, encode, write, commit; stop and resume anywhere.

Tiles are read by threads, bounded by bytes, while the encoder works on the tile before. Everything that is expensive
happens between an attempt record and a receipt, so a kill at any point costs at most the tiles in work.
"""

from __future__ import annotations

import logging
import signal
import time
import uuid
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import psutil

from pipeline.account.ledger import HeartbeatThread, JsonlLedger, Lease
from pipeline.account.meter import PeakMemory, StageClock, cpu_seconds
from pipeline.errors import (
    CheckpointError,
    DataError,
    DeviceError,
    EarthpressError,
    NoDataError,
    OutputError,
    StoppedError,
    TransientError,
)
from pipeline.plan import grid, planner
from pipeline.read.access import redact
from pipeline.read.rank import FolderRanks
from pipeline.run import joining, prepare
from pipeline.run.folder import encoder_arguments, settings_of
from pipeline.run.reading import Source
from pipeline.run.status import to_do
from pipeline.run.tile import At, Encoder, Maps, TileContext, run_tile, wanted_px
from pipeline.types import Embedding, Plan, Receipt, Stack, Task, Tile, Usage
from pipeline.write import layout, store
from pipeline.write.commit import Commits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pipeline.account.ledger import Ledger
    from pipeline.config import Settings
    from pipeline.run.map_layers import MapHead
    from pipeline.run.published import Published

log = logging.getLogger(__name__)

HEARTBEAT_S = 5.0
"""Largest error of what a killed process is charged."""
READERS = 2
"""Tiles read at once: the one that is needed next, and one more to hide latency; depth is bounded by bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What a front end shows.

    Attributes:
        done: Tiles committed by this run so far.
        total: Tiles this run has to do.
        km2: Area of the committed tiles' blocks.
        elapsed_s: Since the first tile began.
        tile_id: The tile that just ended, "" otherwise.
        status: Its status.
        text: A line of its own (start-up, errors), "" for a tile.
    """

    done: int = 0
    total: int = 0
    km2: float = 0.0
    elapsed_s: float = 0.0
    tile_id: str = ""
    status: str = ""
    text: str = ""

    def rate(self) -> str:
        """km2 per second, for people."""
        return f"{self.km2 / self.elapsed_s:.3g} km2/s" if self.elapsed_s > 0 and self.km2 else ""

    def line(self) -> str:
        """One plain line."""
        left = self.elapsed_s / self.done * (self.total - self.done) if self.done else 0.0
        return f"{self.done}/{self.total} tiles, {self.rate()}, {left:.0f} s left, {self.tile_id} {self.status}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A tile that did not succeed in this run."""

    tile_id: str
    kind: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run did.

    Attributes:
        output: The folder.
        tiles: Tiles of the plan.
        computed: Tiles committed by this run.
        skipped: Tiles that were done before.
        degraded: Tiles committed with a scene replaced, by this run.
        failures: Tiles that failed.
        too_degraded: Whether the share of degraded tiles passed ``run.max_degraded_pct``.
        max_degraded_pct: That limit.
        valid_px: Pixels with an embedding, of the tiles of this run.
        stopped: Signal that ended the run, "" when it ended by itself.
        published: Pictures, maps and report; None when nothing is committed.
        seam_faults: One sentence per seam score above ``run.max_seam_score``, of everything that is committed.
    """

    output: str
    tiles: int
    computed: int
    skipped: int
    degraded: int
    failures: tuple[Failure, ...] = ()
    too_degraded: bool = False
    max_degraded_pct: float = 100.0
    valid_px: int = 0
    stopped: str = ""
    published: Published | None = field(default=None)
    seam_faults: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 all done, 3 some tiles failed, 65 too many degraded, no valid pixel at all or seams, 75 stopped."""
        if self.stopped:
            return StoppedError.exit_code
        if self.failures:
            return DataError.exit_code
        return NoDataError.exit_code if self.too_degraded or self.nothing_seen or self.seam_faults else 0

    @property
    def nothing_seen(self) -> bool:
        """Whether this run committed tiles and none of them has a single valid pixel."""
        return self.computed > 0 and not self.valid_px

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        data = {k: v for k, v in asdict(self).items() if k != "published"}
        return data | {"exit_code": self.exit_code} | (self.published.to_json() if self.published else {})

    def text(self) -> str:
        """For people."""
        if self.stopped:
            return (
                f"stopped ({self.stopped}): {self.computed} tiles committed; go on with: earthpress run {self.output}"
            )
        lines = []
        if not self.computed and not self.failures:
            lines.append(f"nothing to do: all {self.tiles} tiles of the plan are committed already")
        else:
            lines.append(
                f"{self.computed} tiles computed, {self.skipped} were done before, {len(self.failures)} failed"
            )
        if self.nothing_seen:
            why = "see the scenes that could not be read" if self.degraded else "the scenes do not reach the area"
            lines.append(f"no pixel of these tiles has a valid observation: {why}")
        if self.degraded:
            lines.append(f"{self.degraded} tiles degraded (a scene could not be read); run again to retry them")
        if self.too_degraded:
            lines.append(
                f"{self.degraded} of {self.tiles} tiles ({100 * self.degraded / self.tiles:.3g}%) are more than "
                f"run.max_degraded_pct={self.max_degraded_pct:g} allows: exit code {NoDataError.exit_code}"
            )
        lines += [f"{fault}: exit code {NoDataError.exit_code}" for fault in self.seam_faults]
        lines += [f"failed {f.tile_id}: {f.kind}: {f.message}" for f in self.failures]
        return "\n".join(lines + (list(self.published.lines()) if self.published else []))


class StoreWriter:
    """The store as ``run_tile`` needs it."""

    def __init__(self, path: str, time_index: int) -> None:
        self._path, self._time = path, time_index
        self._tile: Tile | None = None

    def write(self, task: Task, result: Embedding, maps: Maps) -> tuple[tuple[str, str], ...]:
        """See ``Writer``."""
        self._tile = task.tile
        return store.write_tile(self._path, task.tile, result, time_index=self._time, maps=maps)

    def check(self, objects: tuple[tuple[str, str], ...]) -> int:
        """See ``Writer``; with the tile, because another output may have made the store grow since it was written."""
        return store.check_objects(self._path, objects, tile=self._tile)


def run(
    plan: Plan,
    *,
    progress: Callable[[Progress], None] = lambda _p: None,
    at: At = lambda _stage, _tile: None,
    signals: bool = False,
    pictures: bool = True,
    lead_s: float = 0.0,
) -> Outcome:
    """Compute every tile of ``plan`` that is not done, commit it, and publish.

    Args:
        plan: From ``plan``; its output folder may hold earlier work of the same recipe.
        progress: Called after every tile and start-up step.
        at: Called at every stage boundary of every tile (tests kill the process there).
        signals: Turn SIGINT and SIGTERM into an orderly stop (main thread only).
        pictures: Publish at the end; without, ``publish`` or ``earthpress preview`` does it later.
        lead_s: Seconds that the machine was held for this run before the call; they are billed too. The command line
            gives the age of its process; a notebook has none.

    Returns:
        What happened. Failed tiles do not raise: they are in ``failures``.

    Raises:
        DeviceError: This machine is not of the plan's numerics class, or the start-up gate refuses.
        CheckpointError: The weights are not those of the plan.
        OutputError: The store cannot be made or written.
    """
    root = Path(plan.output)
    commits = Commits(root)
    commits.clean()
    todo = list(to_do(plan))
    tally = _Tally(total=len(todo), report=progress)
    if todo:
        with JsonlLedger(root, run_id=_run_id(), cpu_s=cpu_seconds) as ledger, _Signals(enabled=signals):
            _lease(plan, todo, commits=commits, ledger=ledger, lead_s=lead_s, tally=tally, at=at, pictures=pictures)
    published = None
    if pictures and not tally.stopped and any(commits.current(task.tile.id) for task in plan.tasks):
        published = _publish(plan)  # again after the lease: the report then shows the finished ledger
    degraded = sum(r.status == "degraded" for r in tally.receipts)
    settings = settings_of(plan)
    return Outcome(
        output=plan.output,
        tiles=len(plan.tasks),
        computed=len(tally.receipts),
        skipped=len(plan.tasks) - len(todo),
        degraded=degraded,
        failures=tuple(tally.failures),
        too_degraded=degraded * 100 > settings.run.max_degraded_pct * len(plan.tasks),
        max_degraded_pct=settings.run.max_degraded_pct,
        valid_px=sum(r.valid_px for r in tally.receipts),
        stopped=tally.stopped,
        published=published,
        seam_faults=() if tally.stopped else _seam_faults(plan, settings),
    )


class _Tally:
    """What this run has done so far; the only mutable thing of the loop."""

    def __init__(self, *, total: int, report: Callable[[Progress], None]) -> None:
        self.receipts: list[Receipt] = []
        self.failures: list[Failure] = []
        self.stopped = ""
        self._total, self._report = total, report
        self._km2, self._start = 0.0, time.monotonic()

    def note(self, text: str) -> None:
        """Show a line of text."""
        self._report(Progress(total=self._total, done=self._ended, text=text))

    def begin(self) -> None:
        """Start the clock of the rate: the encoder is ready."""
        self._start = time.monotonic()

    def committed(self, task: Task, receipt: Receipt) -> None:
        """Count a tile."""
        self.receipts.append(receipt)
        self._km2 += wanted_px(task) * 1e-4  # a 10 m pixel is 1e-4 km2
        self._show(task, receipt.status)

    def failed(self, task: Task, error: EarthpressError) -> None:
        """Count a failure."""
        self.failures.append(Failure(tile_id=task.tile.id, kind=error.kind, message=str(error)))
        self._show(task, f"failed: {error}")

    @property
    def _ended(self) -> int:
        return len(self.receipts) + len(self.failures)

    def _show(self, task: Task, status: str) -> None:
        elapsed_s = time.monotonic() - self._start
        self._report(
            Progress(
                done=self._ended,
                total=self._total,
                km2=self._km2,
                elapsed_s=elapsed_s,
                tile_id=task.tile.id,
                status=status,
            )
        )


def _lease(
    plan: Plan,
    todo: list[Task],
    *,
    commits: Commits,
    ledger: JsonlLedger,
    lead_s: float,
    tally: _Tally,
    at: At,
    pictures: bool,
) -> None:
    """Everything that is billed: from building the encoder to the pictures."""
    settings = settings_of(plan)
    threads = prepare.encoder_threads(settings, device=plan.numerics.device)
    ledger.lease_start(_held(plan, settings, lead_s=lead_s, threads=threads))
    clock = StageClock()
    reason: Any = "failed"
    try:
        with HeartbeatThread(ledger, interval_s=HEARTBEAT_S), PeakMemory() as memory:
            with ExitStack() as held:
                encoder = _encoder(plan, settings, todo, clock=clock, tally=tally, held=held)
                context = _context(plan, settings, encoder=encoder, commits=commits, clock=clock, memory=memory, at=at)
                tally.begin()
                _tiles(plan, todo, settings=settings, context=context, ledger=ledger, tally=tally)
            if pictures and tally.receipts:
                tally.note("making pictures, maps and the report")
                with clock.stage("publish"):
                    _publish(plan)
        reason = "finished"
    except StoppedError as stop:
        tally.stopped = str(stop)
        reason = "stopped"
    finally:
        ledger.lease_end(reason, stage_s=clock.seconds())


def _encoder(
    plan: Plan, settings: Settings, todo: list[Task], *, clock: StageClock, tally: _Tally, held: ExitStack
) -> Encoder:
    """The warm encoder with the plan's weights, behind its gate: threads of this process, or processes of its own."""
    from pipeline.encode import checkpoint, session, workers  # noqa: PLC0415

    _check_numerics(plan, settings)
    planner.check_recipe(plan, settings)
    said = joining.check(plan, heads=prepare.load_heads(settings, card=plan.model, calibration=plan.calibration))
    if said:
        tally.note(said)
    count = prepare.encoder_threads(settings, device=plan.numerics.device)
    processes = workers.wanted(
        settings.run.encoders,
        device=plan.numerics.device,
        workers=count,
        core_s=sum(task.estimate.device_s for task in todo),
    )
    crew = f" in {count} processes" if processes else ""
    tally.note(f"loading the encoder{crew} and checking it against the plain float32 one")
    with clock.stage("load"):
        model = checkpoint.load(plan.model.name, output=plan.model.output)
        if (model.card.sha256, model.card.config) != (plan.model.sha256, plan.model.config):
            raise CheckpointError(
                f"the model {plan.model.name} has changed since the plan ({plan.model.sha256[:12]} then, "
                f"{model.card.sha256[:12]} now): plan again into another output"
            )
        encoder: session.Session | workers.Workers
        given = encoder_arguments(plan)
        if processes:
            encoder = held.enter_context(workers.Workers(model, processes=count, **given))
        else:
            encoder = session.Session(model, threads=count, **given)
    with clock.stage("warm_up"):
        encoder.warm_up()
    with clock.stage("gate"):
        gate = encoder.gate()
    log.info("start-up gate passed: %s", gate)
    return encoder


def _context(
    plan: Plan,
    settings: Settings,
    *,
    encoder: Encoder,
    commits: Commits,
    clock: StageClock,
    memory: PeakMemory,
    at: At,
) -> TileContext:
    """What all tiles share: the encoder, the maps' heads, the store with its metadata."""
    heads = prepare.load_heads(settings, card=plan.model, calibration=plan.calibration)
    with clock.stage("create_store"):
        path, time_index = joining.join(plan, heads=heads)
    return TileContext(
        grid=plan.grid,
        calibration=plan.calibration,
        encoder=encoder,
        writer=StoreWriter(path, time_index),
        commits=commits,
        heads=heads,
        unsure=prepare.unsure_maps(settings),
        max_clipped_pct=settings.store.max_clipped_pct,
        true_colour=prepare.true_colour(settings),
        clock=clock,
        memory=memory,
        at=at,
    )


def _check_numerics(plan: Plan, settings: Settings) -> None:
    from pipeline.encode import session  # noqa: PLC0415

    here = session.settle(
        settings.encode,
        card=plan.model,
        grid=plan.grid,
        periods=len(plan.periods),
        sensors=settings.inputs.sensors,
        kept=plan.numerics,
    )
    if here != plan.numerics:
        changed = [k for k, v in asdict(plan.numerics).items() if asdict(here)[k] != v]
        raise DeviceError(
            f"this machine gives {', '.join(f'{k}={asdict(here)[k]}' for k in changed)}, the plan was made for "
            f"{', '.join(f'{k}={asdict(plan.numerics)[k]}' for k in changed)}: bytes would differ inside one store. "
            "Run on the same kind of machine, or plan here into another output"
        )


def store_spec(plan: Plan, *, heads: tuple[MapHead, ...]) -> store.StoreSpec:
    """What the store's metadata says about a plan."""
    return store.StoreSpec(
        name=Path(plan.output).name or "embeddings",
        dims=plan.calibration.bands,
        grid=plan.grid,
        times=((plan.periods[0].start, plan.periods[-1].end),),
        model=plan.model,
        calibration=plan.calibration,
        numerics=plan.numerics,
        recipe=planner.store_recipe_of(settings_of(plan), plan, plan.periods),
        dated_recipe=plan.recipe,
        extents=grid.snapped_extent(task.tile for task in plan.tasks),
        maps=tuple(layer for head in heads for layer in head.layers)
        + layout.instability_layers(prepare.unsure_maps(settings_of(plan))),
        source_data=tuple(
            sorted({f"{s.collection} ({s.quantity})" if s.quantity else s.collection for s in plan.scenes})
        ),
        sensors=settings_of(plan).inputs.sensors,
        periods=plan.periods,
        true_colour=prepare.true_colour(settings_of(plan)),
    )


def _tiles(
    plan: Plan, todo: list[Task], *, settings: Settings, context: TileContext, ledger: JsonlLedger, tally: _Tally
) -> None:
    """The loop: one tile on the device, the next ones being read."""
    limit = _read_ahead_bytes(settings)
    with _Reading(plan, settings=settings, context=context, ledger=ledger) as reading:
        waiting: deque[tuple[Task, int, Future[tuple[Stack, ...]]]] = deque()
        queue = deque(todo)
        while queue or waiting:
            while queue and _may_read(waiting, queue[0], limit_bytes=limit):
                task = _with_held_blocks(queue.popleft(), context.commits)
                waiting.append((task, *reading.start(task)))
            task, attempt, future = waiting.popleft()
            try:
                retry = _tile(task, attempt, future=future, context=context, ledger=ledger, tally=tally)
            except BaseException:
                _abandon(waiting, ledger)
                raise
            if retry and context.commits.attempts(task.tile.id, run_id=reading.run_id) < settings.run.max_attempts:
                log.warning("tile %s: trying again", task.tile.id)
                tally.failures.pop()
                queue.appendleft(task)


def _with_held_blocks(task: Task, commits: Commits) -> Task:
    """The task with the blocks that the tile holds now: it is rewritten whole, so what is left out would be lost.

    The plan has united them already; another plan may have committed to the tile since.
    """
    held = {block for receipt in commits.current(task.tile.id) for block in receipt.blocks}
    return replace(task, blocks=tuple(sorted(held.union(task.blocks))))


def _abandon(waiting: Iterable[tuple[Task, int, Future[tuple[Stack, ...]]]], ledger: Ledger) -> None:
    """Record the end of attempts whose reading had begun."""
    for task, attempt, _ in waiting:
        ledger.attempt_end(
            task.tile.id, attempt, fingerprint=task.fingerprint, status="stopped", usage=Usage(), error_kind="stopped"
        )


def _may_read(waiting: Iterable[tuple[Task, int, Future[tuple[Stack, ...]]]], task: Task, *, limit_bytes: int) -> bool:
    """Whether another tile may be held: always one, a second and more while their bytes fit."""
    held = [t.estimate.bytes_read for t, _, _ in waiting]
    return not held or (len(held) <= READERS and sum(held) + task.estimate.bytes_read <= limit_bytes)


def _tile(
    task: Task,
    attempt: int,
    *,
    future: Future[tuple[Stack, ...]],
    context: TileContext,
    ledger: Ledger,
    tally: _Tally,
) -> bool:
    """One attempt at one tile, from error to record; returns whether its error may pass.

    Raises:
        OutputError, DeviceError: No other tile can succeed either: the run ends.
        StoppedError: A signal.
    """
    name, kind, usage = task.tile.id, "", Usage()
    status: Any = "failed"
    started = time.monotonic()
    try:
        future.exception()  # waiting for pixels does not hold the slot
        ledger.slot(name, attempt, taken=True)
        started = time.monotonic()
        receipt, won = run_tile(task, attempt, reading=future, context=context)
        usage, status = receipt.usage, "won" if won else "duplicate"
        tally.committed(task, receipt)
    except StoppedError:
        status, kind = "stopped", StoppedError.kind
        raise
    except EarthpressError as error:
        error.add_note(f"tile {name}, attempt {attempt}")
        kind = error.kind
        if isinstance(error, OutputError | DeviceError):
            raise
        context.commits.fail(name, attempt, error.kind, str(error))
        tally.failed(task, error)
        return isinstance(error, TransientError)
    except Exception as error:
        log.exception("tile %s, attempt %d", name, attempt)
        broken = DataError(f"{type(error).__name__}: {redact(str(error))}")
        kind = "internal"
        context.commits.fail(name, attempt, kind, str(broken))
        tally.failed(task, broken)
    finally:
        if usage.slot_s == 0:
            usage = _with_slot(usage, time.monotonic() - started)
        ledger.slot(name, attempt, taken=False)
        ledger.attempt_end(name, attempt, fingerprint=task.fingerprint, status=status, usage=usage, error_kind=kind)
    return False


def _with_slot(usage: Usage, slot_s: float) -> Usage:
    return Usage(**(asdict(usage) | {"slot_s": slot_s, "stage_s": usage.stage_s}))


class _Reading:
    """Starts reading tiles in the background; records the attempt first."""

    def __init__(self, plan: Plan, *, settings: Settings, context: TileContext, ledger: JsonlLedger) -> None:
        self.run_id = ledger.run_id
        self._context, self._ledger = context, ledger
        self._source = Source(plan, ranks=FolderRanks(Path(plan.output) / "ranks"))
        ledger.network = self._source.network
        self._io = ThreadPoolExecutor(settings.run.io_threads, thread_name_prefix="io")
        self._tiles = ThreadPoolExecutor(READERS, thread_name_prefix="tile")

    def start(self, task: Task) -> tuple[int, Future[tuple[Stack, ...]]]:
        """Record an attempt at ``task`` and begin to read it."""
        name = task.tile.id
        attempt = self._context.commits.start_attempt(name, self.run_id)
        self._ledger.attempt_start(name, attempt, fingerprint=task.fingerprint)
        self._context.at("attempted", name)
        return attempt, self._tiles.submit(self._read, task)

    def _read(self, task: Task) -> tuple[Stack, ...]:
        with self._context.clock.stage("read"):
            stacks = self._source.read(task, pool=self._io)
        self._context.encoder.stage(stacks)
        return stacks

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._io.shutdown(wait=False, cancel_futures=True)  # first: a tile being read then ends at its next band
        self._tiles.shutdown(cancel_futures=True)


class _Signals:
    """Turns SIGINT and SIGTERM into a StoppedError in the main thread; a second one acts as usual."""

    NAMES = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, *, enabled: bool) -> None:
        self._enabled = enabled
        self._before: list[Any] = []

    def __enter__(self) -> None:
        if self._enabled:
            self._before = [signal.signal(s, self._stop) for s in self.NAMES]

    def __exit__(self, *_: object) -> None:
        for name, before in zip(self.NAMES, self._before, strict=False):
            signal.signal(name, before)

    def _stop(self, number: int, _frame: object) -> None:
        for name, before in zip(self.NAMES, self._before, strict=False):
            signal.signal(name, before)
        raise StoppedError(signal.Signals(number).name)


def _publish(plan: Plan) -> Published:
    from pipeline.run.publish import publish  # noqa: PLC0415

    return publish(plan.output)


def _seam_faults(plan: Plan, settings: Settings) -> tuple[str, ...]:
    """Also without pictures: the limit is part of the request."""
    from pipeline.run import ground, seam_report  # noqa: PLC0415

    tiles = ground.committed(plan) if settings.run.max_seam_score is not None else ()
    return seam_report.over_limit(plan, seam_report.measured(plan, tiles)) if tiles else ()


def _held(plan: Plan, settings: Settings, *, lead_s: float, threads: int) -> Lease:
    from pipeline.account import prices  # noqa: PLC0415

    table = prices.load(settings.account.prices)
    return Lease(
        device="cuda" if plan.numerics.device == "cuda" else "cpu",
        device_name=plan.numerics.device_name,
        gpus=1 if plan.numerics.device == "cuda" else 0,
        cores=prepare.cores(),
        slot_cores=threads,
        instance=settings.account.instance,
        price=table.row(settings.account.instance),
        lead_s=lead_s,
    )


def _read_ahead_bytes(settings: Settings) -> int:
    if settings.run.read_ahead_bytes != "auto":
        return settings.run.read_ahead_bytes
    return int(psutil.virtual_memory().total) // 4


def _run_id() -> str:
    return f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{uuid.uuid4().hex[:6]}"
