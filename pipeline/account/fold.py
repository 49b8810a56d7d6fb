"""Folds ledger events and receipts to one Summary.

Pure: the same events in any order, any number of times, give the same Summary. Leases give the money, attempts give the
attribution, and the two are never mixed:

- allocated: devices x seconds of every lease, start-up and idle time included;
- occupied: devices x seconds an attempt held the device slot; of an attempt that never ended, up to the last sign of
  life of its process (or until another attempt took the slot);
- useful: the occupied part of the attempts whose receipts count, once per tile; waste: all other occupied time;
- overhead: allocated - occupied. The identity allocated = useful + waste + overhead therefore holds by construction,
  and the check is overhead >= 0.

GPU-hours and CPU core-hours are kept apart and never added.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.account.ledger import (
    AttemptEnd,
    AttemptStart,
    Heartbeat,
    LeaseEnd,
    LeaseStart,
    Slot,
)
from pipeline.types import Estimate, Usage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from datetime import datetime

    from pipeline.account.ledger import Event, Lease, LedgerData

HOUR_S = 3600.0
OVERHEAD_TOLERANCE_S = 0.05
"""Slots and leases are timed by different calls; a remainder less negative than this is rounding, not double charge."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hours:
    """Device-hours of one kind of device; allocated = useful + waste + overhead."""

    allocated: float
    useful: float
    waste: float
    overhead: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """An estimate and its measured twin; ``ratio`` = measured / estimated, None when either is unknown or 0."""

    quantity: str
    estimated: float | None
    measured: float | None
    ratio: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceCost:
    """One kind of machine: hours of all its leases and their cost, None when its price is unknown."""

    instance: str
    leases: int
    hours: float
    usd_per_hour: float | None
    usd: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What was used and what it cost.

    Attributes:
        runs: Run ids, sorted.
        first_utc: First event.
        last_utc: Last event.
        leases: Processes.
        devices: (device name, leases), sorted.
        tiles: Tiles whose winning attempt is in the ledger.
        attempts: (status, count), sorted; ``killed`` are attempts without an end.
        gpu_h: GPU-hours; all zero without a GPU (a note says so).
        core_h: CPU core-hours: cores held x wall; occupied = slot seconds x cores the slot uses.
        cpu_h: User+system CPU hours of the processes, None when not recorded.
        busy_gpu_h: Hours the GPUs worked.
        busy_core_h: Core-hours the encoder threads of CPU leases worked.
        utilisation: Busy / allocated of the device that encodes (GPU if there is one, else cores).
        goodput: Useful / allocated of that device.
        stage_s: (stage, thread-seconds) of all attempts and leases; stages overlap.
        network: (counter, sum over the processes) of the traffic with the archives; empty when none was counted.
        usage: Sum over all attempts that ended (peak_bytes: maximum); stage_s is left empty.
        km2: Committed area inside the request, None when unknown.
        device_s_per_km2: Allocated device seconds per km2.
        usd: Cost, None when the price of any lease is unknown.
        usd_per_1000_km2: ``usd`` over ``km2``.
        instances: By kind of machine.
        ratios: Measured against estimated; of the winning attempts only.
        identity_holds: False when some device's occupied time is more than was allocated.
        notes: What a reader must know to read the numbers.
    """

    runs: tuple[str, ...]
    first_utc: datetime | None
    last_utc: datetime | None
    leases: int
    devices: tuple[tuple[str, int], ...]
    tiles: int
    attempts: tuple[tuple[str, int], ...]
    gpu_h: Hours
    core_h: Hours
    cpu_h: float | None
    busy_gpu_h: float
    busy_core_h: float
    utilisation: float | None
    goodput: float | None
    stage_s: tuple[tuple[str, float], ...]
    network: tuple[tuple[str, int], ...]
    usage: Usage
    km2: float | None
    device_s_per_km2: float | None
    usd: float | None
    usd_per_1000_km2: float | None
    instances: tuple[InstanceCost, ...]
    ratios: tuple[Ratio, ...]
    identity_holds: bool
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attempt:
    """One try of one process at one tile."""

    lease: str
    tile_id: str
    attempt: int
    status: str
    slot_s: float
    usage: Usage

    @property
    def key(self) -> tuple[str, int]:
        return self.tile_id, self.attempt


@dataclass(frozen=True, slots=True, kw_only=True)
class _Life:
    """One process, folded."""

    lease: str
    held: Lease | None
    wall_s: float
    ended: bool
    cpu_s: float | None
    stage_s: tuple[tuple[str, float], ...]
    network: tuple[tuple[str, int], ...]
    attempts: tuple[_Attempt, ...]


def fold(
    data: LedgerData,
    *,
    winners: Iterable[tuple[str, int]],
    km2: float | None = None,
    estimate: Estimate | None = None,
) -> Summary:
    """Fold a ledger.

    Args:
        data: As ``ledger.read`` returns it.
        winners: (tile id, attempt) of every receipt.
        km2: Area of the committed tiles inside the request.
        estimate: What the plan expected for the tiles in ``winners``.
    """
    events = sorted({(e.lease, e.seq): e for e in data.events}.values(), key=lambda e: (e.lease, e.seq))
    lives = _lives(events)
    attempts = [a for life in lives for a in life.attempts]
    won = _winning(attempts, set(winners))
    gpu_h = _hours(lives, won, devices=lambda held: held.gpus, slot=lambda held: held.gpus)
    core_h = _hours(lives, won, devices=lambda held: held.cores, slot=lambda held: held.slot_cores)
    instances = _instances(lives)
    usd = _sum_or_none([row.usd for row in instances])
    busy_gpu_h, busy_core_h = (_busy_h(lives, device) for device in ("cuda", "cpu"))
    on_gpu = gpu_h.allocated > 0
    head, busy = (gpu_h, busy_gpu_h) if on_gpu else (core_h, busy_core_h)
    holds = all(h.overhead * HOUR_S >= -OVERHEAD_TOLERANCE_S for h in (gpu_h, core_h))
    return Summary(
        runs=tuple(sorted({e.run for e in events})),
        first_utc=min((e.utc for e in events), default=None),
        last_utc=max((e.utc for e in events), default=None),
        leases=len(lives),
        devices=tuple(sorted(Counter(life.held.device_name for life in lives if life.held).items())),
        tiles=len({a.tile_id for a in won}),
        attempts=tuple(sorted(Counter(a.status for a in attempts).items())),
        gpu_h=gpu_h,
        core_h=core_h,
        cpu_h=_cpu_h(lives),
        busy_gpu_h=busy_gpu_h,
        busy_core_h=busy_core_h,
        utilisation=_per(busy, head.allocated),
        goodput=_per(head.useful, head.allocated),
        stage_s=_stages(lives),
        network=_network(lives),
        usage=_total(a.usage for a in attempts),
        km2=km2,
        device_s_per_km2=_per(head.allocated * HOUR_S, km2),
        usd=usd,
        usd_per_1000_km2=_per(None if usd is None else usd * 1000.0, km2),
        instances=instances,
        ratios=_ratios(estimate, _total(a.usage for a in won), usd=usd),
        identity_holds=holds,
        notes=_notes(data, lives, attempts, won=won, winners=set(winners), on_gpu=on_gpu, usd=usd, holds=holds),
    )


def _lives(events: Sequence[Event]) -> tuple[_Life, ...]:
    by_lease: dict[str, list[Event]] = {}
    for event in events:
        by_lease.setdefault(event.lease, []).append(event)
    return tuple(_life(lease, group) for lease, group in sorted(by_lease.items()))


def _life(lease: str, events: Sequence[Event]) -> _Life:
    start = next((e for e in events if isinstance(e, LeaseStart)), None)
    end = next((e for e in events if isinstance(e, LeaseEnd)), None)
    last_s = max(e.mono_s for e in events)
    signs = [e for e in events if isinstance(e, Heartbeat | LeaseEnd)]
    cpu = [e.cpu_s for e in signs if e.cpu_s is not None]
    return _Life(
        lease=lease,
        held=start.held if start else None,
        wall_s=last_s - start.mono_s + start.held.lead_s if start else 0.0,
        ended=end is not None,
        cpu_s=max(cpu, default=None),
        stage_s=end.stage_s if end else (),
        network=signs[-1].network if signs else (),  # the events are in order and the counters only rise
        attempts=_attempts(lease, events, last_s=last_s),
    )


def _attempts(lease: str, events: Sequence[Event], *, last_s: float) -> tuple[_Attempt, ...]:
    by_key: dict[tuple[str, int], list[AttemptStart | Slot | AttemptEnd]] = {}
    for event in events:
        if isinstance(event, AttemptStart | Slot | AttemptEnd):
            by_key.setdefault((event.tile_id, event.attempt), []).append(event)
    taken = tuple(e for e in events if isinstance(e, Slot) and e.taken)
    return tuple(_attempt(lease, key, group, taken=taken, last_s=last_s) for key, group in sorted(by_key.items()))


def _attempt(
    lease: str,
    key: tuple[str, int],
    events: Sequence[AttemptStart | Slot | AttemptEnd],
    *,
    taken: Sequence[Slot],
    last_s: float,
) -> _Attempt:
    end = next((e for e in events if isinstance(e, AttemptEnd)), None)
    slots = [e for e in events if isinstance(e, Slot)]
    # A process that records no slots still says in its usage how long it held one.
    slot_s = end.usage.slot_s if end else 0.0
    if slots:
        slot_s = _held_s(slots, taken=taken, until_s=end.mono_s if end else last_s)
    return _Attempt(
        lease=lease,
        tile_id=key[0],
        attempt=key[1],
        status=end.status if end else "killed",
        slot_s=slot_s,
        usage=end.usage if end else Usage(),
    )


def _held_s(slots: Sequence[Slot], *, taken: Sequence[Slot], until_s: float) -> float:
    """Seconds between each taking of the slot and its release.

    A process has one slot. Where a release is missing (a kill, a lost line), the next taking by anyone in the process
    or ``until_s`` stands for it.
    """
    held_s, since = 0.0, None
    for slot in slots:
        if slot.taken and since is None:
            since = slot
        elif not slot.taken and since is not None:
            held_s, since = held_s + slot.mono_s - since.mono_s, None
    if since is None:
        return held_s
    later = [slot.mono_s for slot in taken if slot.seq > since.seq]
    return held_s + max(0.0, min([until_s, *later]) - since.mono_s)


def _winning(attempts: Iterable[_Attempt], winners: set[tuple[str, int]]) -> tuple[_Attempt, ...]:
    """One attempt per receipt: the one that says it won, else the first that has its number."""
    best: dict[tuple[str, int], _Attempt] = {}
    for attempt in sorted(attempts, key=lambda a: (a.key, a.status != "won", a.lease)):
        if attempt.key in winners:
            best.setdefault(attempt.key, attempt)
    return tuple(best[key] for key in sorted(best))


def _hours(
    lives: Iterable[_Life],
    won: Iterable[_Attempt],
    *,
    devices: Callable[[Lease], int],
    slot: Callable[[Lease], int],
) -> Hours:
    winning = {(a.lease, *a.key) for a in won}
    allocated: list[float] = []
    useful: list[float] = []
    waste: list[float] = []
    for life in lives:
        if life.held is None:
            continue
        allocated.append(devices(life.held) * life.wall_s)
        for attempt in life.attempts:
            share = useful if (attempt.lease, *attempt.key) in winning else waste
            share.append(slot(life.held) * attempt.slot_s)
    total = [math.fsum(part) / HOUR_S for part in (allocated, useful, waste)]
    return Hours(allocated=total[0], useful=total[1], waste=total[2], overhead=total[0] - total[1] - total[2])


def _busy_h(lives: Iterable[_Life], device: str) -> float:
    return math.fsum(a.usage.busy_s for life in lives if _device(life) == device for a in life.attempts) / HOUR_S


def _device(life: _Life) -> str | None:
    return life.held.device if life.held else None


def _cpu_h(lives: Iterable[_Life]) -> float | None:
    known = [life.cpu_s for life in lives if life.cpu_s is not None]
    return math.fsum(known) / HOUR_S if known else None


def _instances(lives: Iterable[_Life]) -> tuple[InstanceCost, ...]:
    groups: dict[tuple[str, float | None], list[float]] = {}
    for life in lives:
        if life.held is not None:
            price = life.held.price.usd_per_hour if life.held.price else None
            groups.setdefault((life.held.instance, price), []).append(life.wall_s / HOUR_S)
    return tuple(
        InstanceCost(
            instance=name,
            leases=len(hours),
            hours=math.fsum(hours),
            usd_per_hour=price,
            usd=None if price is None else math.fsum(hours) * price,
        )
        for (name, price), hours in sorted(groups.items(), key=lambda g: (g[0][0], g[0][1] or 0.0))
    )


def _network(lives: Iterable[_Life]) -> tuple[tuple[str, int], ...]:
    total: Counter[str] = Counter()
    for life in lives:
        for name, count in life.network:
            total[name] += count
    return tuple(sorted(total.items()))


def _stages(lives: Iterable[_Life]) -> tuple[tuple[str, float], ...]:
    seconds: dict[str, list[float]] = {}
    for life in lives:
        for name, value in (*life.stage_s, *(pair for a in life.attempts for pair in a.usage.stage_s)):
            seconds.setdefault(name, []).append(value)
    return tuple((name, math.fsum(values)) for name, values in sorted(seconds.items()))


def _total(usages: Iterable[Usage]) -> Usage:
    parts = tuple(usages)
    return Usage(
        windows=sum(u.windows for u in parts),
        tokens=sum(u.tokens for u in parts),
        flops=math.fsum(u.flops for u in parts),
        bytes_read=sum(u.bytes_read for u in parts),
        bytes_written=sum(u.bytes_written for u in parts),
        peak_bytes=max((u.peak_bytes for u in parts), default=0),
        slot_s=math.fsum(u.slot_s for u in parts),
        busy_s=math.fsum(u.busy_s for u in parts),
    )


def _ratios(estimate: Estimate | None, usage: Usage, *, usd: float | None) -> tuple[Ratio, ...]:
    """Estimates of 0 are unknown ones (``Estimate.device_s`` without a known speed)."""
    want = estimate or Estimate()
    pairs: tuple[tuple[str, float | None, float | None], ...] = (
        ("device_s", want.device_s, usage.busy_s),
        ("bytes_read", want.bytes_read, usage.bytes_read),
        ("bytes_written", want.bytes_written, usage.bytes_written),
        ("peak_bytes", want.peak_bytes, usage.peak_bytes),
        ("usd", want.usd, usd),
    )
    return tuple(
        Ratio(quantity=name, estimated=plan or None, measured=got, ratio=_per(got, plan)) for name, plan, got in pairs
    )


def _notes(
    data: LedgerData,
    lives: Sequence[_Life],
    attempts: Sequence[_Attempt],
    *,
    won: Sequence[_Attempt],
    winners: set[tuple[str, int]],
    on_gpu: bool,
    usd: float | None,
    holds: bool,
) -> tuple[str, ...]:
    unended = sum(1 for life in lives if not life.ended)
    killed = sum(1 for a in attempts if a.status == "killed")
    headless = sum(1 for life in lives if life.held is None)
    missing = len(winners) - len(won)
    priceless = sum(1 for life in lives if life.held and life.held.price is None)
    checks = (
        (not lives, "the ledger is empty: nothing was recorded"),
        (bool(lives) and not on_gpu, "no GPU was held: GPU-hours are 0 and the device-hours are CPU core-hours"),
        (not holds, "VIOLATION: more device time is charged to attempts than was held (overhead is negative)"),
        (unended > 0, f"{unended} processes have no end: still running or killed; counted to their last sign of life"),
        (killed > 0, f"{killed} attempts have no end; their slot is charged to the last sign of life of the process"),
        (headless > 0, f"{headless} processes have no start record; their time and cost are missing here"),
        (missing > 0, f"{missing} receipts have no attempt in this ledger; their time is missing here"),
        (data.damaged_lines > 0, f"{data.damaged_lines} ledger lines could not be read (cut by a kill, or foreign)"),
        (
            priceless > 0 and usd is None,
            f"USD is unknown: {priceless} processes ran on a machine without a price (set account.instance)",
        ),
    )
    return tuple(text for applies, text in checks if applies)


def _per(value: float | None, divisor: float | None) -> float | None:
    return None if value is None or not divisor else value / divisor


def _sum_or_none(values: Sequence[float | None]) -> float | None:
    """Sum; None when nothing or something unknown is in it."""
    known = [v for v in values if v is not None]
    return math.fsum(known) if known and len(known) == len(values) else None
