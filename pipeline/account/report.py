"""Shows a Summary: tables for a terminal, JSON for everything else. ``fold`` makes it; this module only words it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from pipeline.account.fold import Hours, InstanceCost, Ratio, Summary, fold
from pipeline.types import canonical_json

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Hours", "InstanceCost", "Ratio", "Summary", "fold", "tables", "to_json"]

UNKNOWN = "unknown"
_UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def to_json(summary: Summary) -> str:
    """Canonical JSON of all fields; unknown values are null."""
    return canonical_json(asdict(summary))


def tables(summary: Summary) -> list[Table]:
    """Rich tables: device-hours, quantities, stages, money, estimates against measurements, notes; empty ones left out.

    Args:
        summary: As ``fold`` returns it.
    """
    made = (_hours(summary), _quantities(summary), _stages(summary), _money(summary), _ratios(summary), _notes(summary))
    return [table for table in made if table.row_count]


def _hours(summary: Summary) -> Table:
    table = _table("Device-hours", "kind", ">allocated", ">useful", ">waste", ">overhead", ">busy")
    pairs = (("GPU", summary.gpu_h, summary.busy_gpu_h), ("CPU core", summary.core_h, summary.busy_core_h))
    for kind, hours, busy in pairs:
        parts = (hours.allocated, hours.useful, hours.waste, hours.overhead, busy)
        table.add_row(kind, *(f"{part:.4f}" for part in parts))
    return table


def _quantities(summary: Summary) -> Table:
    table = _table("Work", "quantity", ">value")
    attempts = ", ".join(f"{count} {status}" for status, count in summary.attempts)
    used = summary.usage
    rows = (
        ("tiles committed", str(summary.tiles)),
        ("attempts", attempts or "0"),
        ("processes", str(summary.leases)),
        ("area", _number(summary.km2, "km2")),
        ("windows", f"{used.windows:,}"),
        ("tokens", f"{used.tokens:,}"),
        ("encoder work", f"{used.flops / 1e12:,.3f} TFLOP"),
        ("read", _bytes(used.bytes_read)),
        ("written", _bytes(used.bytes_written)),
        ("peak memory", _bytes(used.peak_bytes)),
        ("CPU time of the processes", _number(summary.cpu_h, "h")),
        ("device time per km2", _number(summary.device_s_per_km2, "s")),
        ("busy / allocated", _percent(summary.utilisation)),
        ("useful / allocated", _percent(summary.goodput)),
    )
    for name, value in rows:
        table.add_row(name, value)
    for name, count in summary.network:
        table.add_row(f"archive: {name}", _bytes(count) if name == "bytes" else f"{count:,}")
    return table


def _stages(summary: Summary) -> Table:
    table = _table("Stages (thread-seconds; they overlap)", "stage", ">seconds")
    for name, seconds in sorted(summary.stage_s, key=lambda pair: (-pair[1], pair[0])):
        table.add_row(name, f"{seconds:,.2f}")
    return table


def _money(summary: Summary) -> Table:
    table = _table("Cost", "machine", ">processes", ">hours", ">USD/h", ">USD")
    for row in summary.instances:
        table.add_row(
            row.instance or "(not named)",
            str(row.leases),
            f"{row.hours:.4f}",
            _plain(row.usd_per_hour),
            _plain(row.usd),
        )
    if summary.instances:
        table.add_row("total", "", "", "", _plain(summary.usd))
        table.add_row("per 1000 km2", "", "", "", _plain(summary.usd_per_1000_km2))
    return table


def _ratios(summary: Summary) -> Table:
    table = _table("Measured against estimated", "quantity", ">estimated", ">measured", ">measured/estimated")
    if all(r.estimated is None for r in summary.ratios):
        return table
    for row in summary.ratios:
        show = _bytes if "bytes" in row.quantity else _plain
        table.add_row(row.quantity, show(row.estimated), show(row.measured), _plain(row.ratio))
    return table


def _notes(summary: Summary) -> Table:
    table = _table("Notes", "note")
    for note in summary.notes:
        table.add_row(note)
    return table


def _table(title: str, *columns: str) -> Table:
    """A table; a column that begins with '>' is right-aligned."""
    from rich.table import Table  # noqa: PLC0415

    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column.removeprefix(">"), justify="right" if column.startswith(">") else "left")
    return table


def _bytes(count: float | None) -> str:
    if count is None:
        return UNKNOWN
    size, unit = next(((s, u) for s, u in _UNITS if count >= s), (1.0, "B"))
    return f"{count / size:.2f} {unit}" if size > 1 else f"{count:.0f} B"


def _number(value: float | None, unit: str) -> str:
    return UNKNOWN if value is None else f"{value:,.4g} {unit}"


def _plain(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:,.4g}"


def _percent(share: float | None) -> str:
    return UNKNOWN if share is None else f"{100 * share:.1f} %"
