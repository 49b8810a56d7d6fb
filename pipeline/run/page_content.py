"""What the report page says of everything that is committed: map, tables and figures."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.codes import CLIP_WARNING, SATURATES
from pipeline.run import class_maps, ground, page_layers, page_records, page_view, quicklooks, seam_report, summary
from pipeline.run.status import tile_status
from pipeline.write import page

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.account import fold
    from pipeline.run.published import Published
    from pipeline.types import Plan, Receipt, Tile


def write_report(plan: Plan, made: Published, seams: seam_report.Seams) -> None:
    """Write report.html.

    Raises:
        OutputError: It cannot be written.
    """
    page.write_page(made.page, report_content(plan, made, seams))


def report_content(plan: Plan, made: Published, seams: seam_report.Seams) -> page.PageContent:
    """Everything that report.html shows."""
    tiles = ground.committed(plan)
    totals = summary.summary_of(plan, tiles)
    rows = tile_status(plan.output)
    tables = (
        *class_maps.area_tables(made.areas),
        *page_records.probe_tables(plan),
        page_records.process_table(plan, tiles),
        page_records.machine_table(totals),
        page_records.source_table(plan, tiles),
    )
    return page.PageContent(
        title=f"earthpress: {Path(plan.output).resolve().name}",
        subtitle=_subtitle(plan),
        warnings=_warnings(plan, tiles) + seam_report.warnings(plan, seams),
        facts=_facts(plan, totals),
        pictures=page_layers.pictures(plan, made),
        view=page_view.view(plan, tiles, rows, label=ground.label(plan) or ""),
        tiles=page_records.tile_table(plan, tiles, rows),
        cost=page_records.cost_rows(totals),
        storage=page_records.storage_rows(plan, tiles),
        estimates=page_records.estimate_rows(totals),
        seams=seam_report.section(plan, seams, quicklooks.basis_of(plan)),
        tables=tuple(table for table in tables if table.rows),
        provenance=page_records.provenance(plan),
        notes=(*totals.notes, *quicklooks.missing(plan)),
        made=f"made by earthpress {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    )


def _subtitle(plan: Plan) -> str:
    span = f"{plan.periods[0].start:%Y-%m-%d} to {plan.periods[-1].end:%Y-%m-%d}"
    periods = f"{len(plan.periods)} {'period' if len(plan.periods) == 1 else 'periods'}"
    return (
        f"{plan.area.km2:,.1f} km2, {span}, {periods}, OlmoEarth {plan.model.version} {plan.model.size}, patch "
        f"{plan.grid.patch_px}, one vector per {plan.grid.pixel_m} m"
    )


def _warnings(plan: Plan, tiles: Sequence[tuple[Tile, Receipt]]) -> tuple[str, ...]:
    found: list[str] = []
    if not plan.model.trained:
        found.append("The model has UNTRAINED random weights: pictures and maps only show that the pipeline works.")
    if plan.calibration.provisional:
        found.append("The int8 calibration is provisional: derived from the weights and a simulated sample only.")
    degraded = [r.tile_id for _, r in tiles if r.status == "degraded"]
    if degraded:
        found.append(f"{len(degraded)} tiles are degraded (a scene could not be read): {', '.join(degraded[:5])}")
    if plan.empty_periods:
        names = ", ".join(f"{plan.periods[i].start:%Y-%m-%d}" for i in plan.empty_periods)
        found.append(f"No scene in the period(s) starting {names}.")
    clipped = max((max(r.clipped, r.clipped_worst) for _, r in tiles), default=0.0)
    if clipped > CLIP_WARNING:
        how = "saturated" if plan.calibration.method in SATURATES else "were clipped"
        found.append(f"Up to {clipped:.2%} of a shard's values {how} (store.quantiser={plan.calibration.quantiser}).")
    return tuple(found)


def _facts(plan: Plan, summary: fold.Summary) -> tuple[tuple[str, str, str], ...]:
    hours, kind = (summary.gpu_h, "GPU-hours") if summary.gpu_h.allocated else (summary.core_h, "CPU core-hours")
    return (
        ("area", f"{plan.area.km2:,.1f}", "km2"),
        ("tiles", f"{summary.tiles:,}", f"of {len(plan.tasks):,}"),
        ("device", f"{hours.allocated:,.4f}", kind),
        ("cost", "unknown" if summary.usd is None else f"{summary.usd:,.4f}", "USD"),
    )
