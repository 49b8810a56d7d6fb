"""Tables of the report page: tiles, processes, machines, storage, sources, probes, provenance."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.account import fold
from pipeline.account.ledger import LeaseEnd, LeaseStart, LedgerData
from pipeline.account.ledger import read as read_ledger
from pipeline.maps import heads
from pipeline.maps.probe import Probe
from pipeline.run.folder import credit_of, settings_of, store_of
from pipeline.run.page_view import state_of, valid_share
from pipeline.types import BLOCK_PX, PIXEL_M
from pipeline.write import page

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.account.ledger import Event
    from pipeline.run.status import TileStatus
    from pipeline.types import GridSpec, Numerics, Plan, Receipt, Tile


PARTS = ("allocated", "useful", "waste", "overhead")
PROBE_COLUMNS = ("name", "samples", "groups", "precision", "recall", "f1", "iou")
RANGE_COLUMNS = ("low", "high", "samples", "places", "rmse", "bias")
QUANTITIES = {
    "device_s": ("device time", 1.0, "s"),
    "bytes_read": ("read", 1e-6, "MB"),
    "bytes_written": ("written", 1e-6, "MB"),
    "peak_bytes": ("peak memory", 1e-6, "MB"),
    "usd": ("cost", 1.0, "USD"),
}
"""(label, factor, unit) of what is estimated."""


def tile_table(plan: Plan, tiles: Sequence[tuple[Tile, Receipt]], rows: Sequence[TileStatus]) -> page.Table:
    """Where every tile of the plan stands, and what it took."""
    receipts = {tile.id: receipt for tile, receipt in tiles}
    found: list[tuple[page.Value, ...]] = []
    for row in rows:
        receipt = receipts.get(row.tile_id)
        known: tuple[page.Value, ...] = (None, None, None)
        if receipt is not None:
            known = (
                round(100 * valid_share(plan, receipt), 2),
                round(100 * max(receipt.clipped, receipt.clipped_worst), 4),
                round(receipt.usage.busy_s, 2),
            )
        found.append((row.tile_id, state_of(row, receipt), row.blocks, row.attempts, *known, row.reason))
    return page.Table(
        title="Tiles",
        columns=("tile", "state", "blocks", "attempts since commit", "valid %", "clipped %", "device s", "reason"),
        rows=tuple(found),
    )


def cost_rows(summary: fold.Summary) -> tuple[tuple[str, page.Value, str], ...]:
    """The ledger as (label, value, unit)."""
    rows: list[tuple[str, page.Value, str]] = []
    for kind, hours in (("GPU-hours", summary.gpu_h), ("CPU core-hours", summary.core_h)):
        if hours.allocated or kind != "GPU-hours":
            rows += [(f"{kind} {part}", round(getattr(hours, part), 5), "h") for part in PARTS]
    rows += [
        ("useful share of the device", _percent(summary.goodput), "%"),
        ("busy share of the device", _percent(summary.utilisation), "%"),
        ("cost", summary.usd, "USD"),
        ("cost per 1000 km2", summary.usd_per_1000_km2, "USD"),
        ("device seconds per km2", summary.device_s_per_km2, "s/km2"),
        ("read", summary.usage.bytes_read / 1e6, "MB"),
        ("written", summary.usage.bytes_written / 1e6, "MB"),
        ("peak memory", summary.usage.peak_bytes / 1e6, "MB"),
    ]
    rows += [(f"attempts {status}", count, "") for status, count in summary.attempts]
    rows += [(f"network {name}", count, "") for name, count in summary.network]
    rows += [(f"stage {name}", round(seconds, 2), "thread-s") for name, seconds in summary.stage_s]
    return tuple(rows)


def estimate_rows(summary: fold.Summary) -> tuple[tuple[str, page.Value, page.Value, str], ...]:
    """What was expected and what came, in units for people."""
    rows: list[tuple[str, page.Value, page.Value, str]] = []
    for ratio in summary.ratios:
        if ratio.measured is not None:
            label, factor, unit = QUANTITIES.get(ratio.quantity, (ratio.quantity, 1.0, ""))
            estimate = None if ratio.estimated is None else ratio.estimated * factor
            rows.append((label, estimate, ratio.measured * factor, unit))
    return tuple(rows)


def process_table(plan: Plan, tiles: Sequence[tuple[Tile, Receipt]]) -> page.Table:
    """What every process held and did: the ledger, folded for each of them by itself."""
    winners = [(receipt.tile_id, receipt.attempt) for _, receipt in tiles]
    leases: dict[str, list[Event]] = {}
    for event in read_ledger(plan.output).events:
        leases.setdefault(event.lease, []).append(event)
    rows = [_process(events, winners) for events in leases.values()]
    return page.Table(
        title="Processes",
        columns=("started", "run", "machine", "end", "tiles", "device h", "useful", "waste", "overhead", "USD"),
        rows=tuple(sorted(rows, key=lambda row: str(row[0]))),
        note="Device hours are GPU-hours where a GPU was held, else CPU core-hours; useful is what committed a tile.",
    )


def machine_table(summary: fold.Summary) -> page.Table:
    """Hours and cost by kind of machine."""
    return page.Table(
        title="Machines",
        columns=("machine", "processes", "hours", "USD per hour", "USD"),
        rows=tuple(
            (row.instance or "not named", row.leases, row.hours, row.usd_per_hour, row.usd) for row in summary.instances
        ),
    )


def storage_rows(plan: Plan, tiles: Sequence[tuple[Tile, Receipt]]) -> tuple[tuple[str, page.Value, str], ...]:
    """What the store holds as (label, value, unit)."""
    receipts = [receipt for _, receipt in tiles]
    if not receipts:
        return ()
    side = BLOCK_PX // plan.grid.token_px
    blocks = sum(len(receipt.blocks) for receipt in receipts)
    valid = sum(receipt.valid_px for receipt in receipts)
    written = sum(receipt.usage.bytes_written for receipt in receipts)
    objects = sum(bool(digest) for receipt in receipts for _, digest in receipt.objects)
    vector = plan.calibration.bands * np.dtype(plan.calibration.dtype).itemsize
    km2 = blocks * (BLOCK_PX * PIXEL_M / 1000) ** 2
    return (
        ("place", store_of(plan), ""),
        ("vectors", valid, ""),
        ("valid", 100 * valid / max(1, blocks * side**2), "%"),
        ("quantiser", plan.calibration.quantiser, ""),
        ("bytes of a vector", vector, "B"),
        ("written", written / 1e6, "MB"),
        ("per valid vector", written / valid if valid else None, "B"),
        ("vectors over what was written", valid * vector / written if written else None, ""),
        ("objects", objects, ""),
        ("objects per 1000 km2", 1000 * objects / km2 if km2 else None, ""),
    )


def source_table(plan: Plan, tiles: Sequence[tuple[Tile, Receipt]]) -> page.Table:
    """Which scenes filled what."""
    used: dict[tuple[int, str, str], int] = {}
    for _, receipt in tiles:
        for source in receipt.sources:
            for item in source.selected:
                key = (source.period, source.sensor, item)
                used[key] = used.get(key, 0) + 1
    rows = tuple(
        (f"{plan.periods[period].start:%Y-%m-%d}", sensor, item, count)
        for (period, sensor, item), count in sorted(used.items())
    )
    return page.Table(title="Scenes used", columns=("period from", "sensor", "item", "cell parts"), rows=rows)


def probe_tables(plan: Plan) -> tuple[page.Table, ...]:
    """The validation of every probe that was fitted on this store."""
    return tuple(_probe_table(path) for path in sorted((Path(plan.output) / "probes").glob("*.json")))


def provenance(plan: Plan) -> tuple[tuple[str, str], ...]:
    """What the vectors were made with, in words."""
    inputs, model = settings_of(plan).inputs, plan.model
    calibration = plan.calibration
    rows = (
        ("plan", f"{plan.id}, made {plan.created:%Y-%m-%d %H:%M} UTC"),
        ("recipe", plan.recipe),
        ("model", f"{model.name}: OlmoEarth {model.version} {model.size}, {model.dims} dimensions ({model.output})"),
        ("weights", f"sha256 {model.sha256}, {'trained' if model.trained else 'UNTRAINED random numbers'}"),
        ("licence of the weights", model.licence or "unknown"),
        ("quantiser", f"{calibration.quantiser}, calibration {calibration.hash}"),
        ("calibration from", calibration.source + (" (provisional)" if calibration.provisional else "")),
        ("windows", _windows(plan.grid)),
        ("numerics", _numerics(plan.numerics)),
        ("sensors", ", ".join(inputs.sensors)),
        ("catalogue", "; ".join(dict.fromkeys(inputs.catalog_of(name) for name in inputs.sensors))),
        ("collections", ", ".join(sorted({f"{s.collection} {s.quantity}".strip() for s in plan.scenes}))),
        ("cloud mask", plan.mask),
        ("maps in the same pass", ", ".join(f"{name} ({digest})" for name, digest in plan.heads)),
        ("source data", credit_of(plan)),
    )
    return tuple((label, text) for label, text in rows if text)


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _process(events: Sequence[Event], winners: Sequence[tuple[str, int]]) -> tuple[page.Value, ...]:
    found = fold.fold(LedgerData(events=tuple(events), damaged_lines=0), winners=winners)
    start = next((event for event in events if isinstance(event, LeaseStart)), None)
    end = next((event for event in events if isinstance(event, LeaseEnd)), None)
    hours = found.gpu_h if found.gpu_h.allocated else found.core_h
    machine = "unknown" if start is None else f"{start.host}, {start.held.device_name}"
    return (
        f"{min(event.utc for event in events):%Y-%m-%d %H:%M:%S}",
        events[0].run,
        machine,
        "none: running or killed" if end is None else end.reason,
        found.tiles,
        *(round(getattr(hours, part), 5) for part in PARTS),
        found.usd,
    )


def _probe_table(path: Path) -> page.Table:
    head = heads.load(str(path))
    report = json.loads(head.report)
    notes = " ".join(report.get("notes", ()))
    columns: tuple[str, ...]
    if isinstance(head, Probe):
        columns, rows = PROBE_COLUMNS, report.get("classes", ())
        note = (
            f"Held out by place: balanced accuracy {_score(report.get('balanced_accuracy'))}, accuracy "
            f"{_score(report.get('accuracy'))}; the largest class alone scores "
            f"{_score(report.get('baseline_accuracy'))}, shuffled labels "
            f"{_score(report.get('control_balanced_accuracy'))}, chance {_score(report.get('chance'))}."
        )
    else:
        columns, rows = RANGE_COLUMNS, report.get("ranges", ())
        note = (
            f"{head.name}{f' ({head.units})' if head.units else ''}, held out by place: R2 {_score(report.get('r2'))}, "
            f"RMSE {_score(report.get('rmse'))}, bias {_score(report.get('bias'))}; the mean everywhere has RMSE "
            f"{_score(report.get('baseline_rmse'))}, shuffled values R2 {_score(report.get('control_r2'))}."
        )
    return page.Table(
        title=f"Probe {path.stem}",
        columns=columns,
        rows=tuple(tuple(row.get(name) for name in columns) for row in rows),
        note=f"{note} {notes}".strip(),
    )


def _score(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"


def _windows(grid: GridSpec) -> str:
    stored = "one vector per 10 m pixel" if grid.token_px == 1 else f"one vector per token of {grid.pixel_m} m"
    joined = {
        "blend": f"windows of {grid.window_px} px that overlap by {grid.overlap_px} px and are blended",
        "centre": f"windows of {grid.window_px} px that overlap by {grid.overlap_px} px, each token from the nearest",
        "neighbourhood": f"domains of {grid.window_px} px, every token sees a box of {grid.box_px} px",
    }.get(grid.stitch, grid.stitch)
    shifts = f", {grid.dense} x {grid.dense} sub-patch shifts" if grid.dense > 1 else ""
    return f"patches of {grid.patch_px} px; {joined}{shifts}; {stored}; tiles of {grid.tile_px} px"


def _numerics(numerics: Numerics) -> str:
    compiled = "compiled" if numerics.compiled else "not compiled"
    return (
        f"{numerics.device} ({numerics.device_name}), {numerics.dtype}, {compiled}, {numerics.batch_windows} windows "
        f"per batch, attention {numerics.attention}, torch {numerics.torch}"
    )
