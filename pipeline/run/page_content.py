"""What the report page says: pictures, tables and figures of everything that is committed."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.maps import probe as probes
from pipeline.run import class_maps, ground, quicklooks, seam_report, summary
from pipeline.run.folder import credit_of, settings_of
from pipeline.run.status import tile_status
from pipeline.write import geotiff, page, preview

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.account import fold
    from pipeline.run.published import Published
    from pipeline.types import Box, Plan, Receipt, Tile


PAGE_PX = 1400
"""Longest side of the pictures inside the report page."""
CLIP_WARNING = 1e-3
"""Share of clipped values above which the page warns."""
PARTS = ("allocated", "useful", "waste", "overhead")
PROBE_COLUMNS = ("name", "samples", "precision", "recall", "f1", "iou")


def write_report(plan: Plan, made: Published, seams: seam_report.Seams) -> None:
    """Write report.html.

    Raises:
        OutputError: It cannot be written.
    """
    tiles = ground.committed(plan)
    totals = summary.summary_of(plan, tiles)
    rows = tile_status(plan.output)
    span = f"{plan.periods[0].start:%Y-%m-%d} to {plan.periods[-1].end:%Y-%m-%d}"
    content = page.PageContent(
        title=f"earthpress: {Path(plan.output).resolve().name}",
        subtitle=f"{plan.area.km2:,.1f} km2, {span}, {len(plan.periods)} periods, OlmoEarth {plan.model.version} "
        f"{plan.model.size}, patch {plan.grid.patch_px}, one vector per {plan.grid.pixel_m} m",
        warnings=_warnings(plan, tiles) + seam_report.warnings(plan, seams),
        facts=_facts(plan, totals),
        pictures=page_pictures(plan, made.maps),
        tiles=page.Table(
            title="Tiles",
            columns=("tile", "state", "blocks", "attempts since commit", "reason"),
            rows=tuple((r.tile_id, r.state, r.blocks, r.attempts, r.reason) for r in rows),
        ),
        cost=_cost(totals),
        estimates=tuple((r.quantity, r.estimated, r.measured, "") for r in totals.ratios if r.measured is not None),
        seams=seam_report.section(plan, seams, quicklooks.basis_of(plan)),
        tables=(_sources(plan, tiles), *_probe_tables(made)),
        provenance=tuple((k, str(v)) for k, v in _provenance_rows(plan)),
        notes=totals.notes,
        made=f"made by earthpress {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    )
    page.write_page(made.page, content)


def page_pictures(plan: Plan, maps: Sequence[str]) -> tuple[page.Picture, ...]:
    """Quicklook and class maps over the same ground, one zone after the other, without frame."""
    places = [tile for tile, _ in ground.committed(plan)]
    pictures: list[page.Picture] = []
    basis = quicklooks.basis_of(plan)
    for extent in ground.extents(plan):
        factor = ground.factor(plan, extent, PAGE_PX)
        if basis is not None:
            canvas = quicklooks.canvas(plan, extent, tiles=places, basis=basis, factor=factor)
            caption = "Embeddings: the first three principal components as red, green, blue."
            pictures.append(page.Picture(name="Quicklook", png=preview.png_bytes(canvas), caption=caption))
        files = [Path(path) for path in maps if f"_utm{extent.zone:02d}_" in path]
        for name in sorted({path.name.split("_utm")[0] for path in files}):
            same = [path for path in files if path.name.split("_utm")[0] == name]
            pictures.append(_map_picture(name, same, extent, factor))
            shown = (_shading_picture(name, same, extent, factor, shading=shading) for shading in class_maps.SHADINGS)
            pictures += [picture for picture in shown if picture is not None]
    return tuple(pictures)


def _map_picture(name: str, paths: Sequence[Path], extent: Box, factor: int) -> page.Picture:
    """The COGs of one map laid over the ground, each shrunk before the next is read."""
    canvas = np.full((extent.height // factor, extent.width // factor), 255, np.uint8)
    classes: tuple[tuple[int, str, str], ...] = ()
    for path in paths:
        values, box, classes = geotiff.read_classes(path)
        part = box.intersect(extent)
        if part is not None:
            small = preview.shrink_classes(values[part.slices_in(box)], factor=factor)
            canvas[ground.place(part, extent, factor)] = small
    colours = preview.render_classes(canvas, [colour for _, _, colour in classes])
    return page.Picture(
        name=f"Map {name}",
        png=preview.png_bytes(colours),
        caption="Class of every pixel.",
        legend=tuple((title, colour) for _, title, colour in classes),
    )


def _shading_picture(
    name: str, paths: Sequence[Path], extent: Box, factor: int, *, shading: class_maps.Shading
) -> page.Picture | None:
    """A further band of the COGs of one map laid over the ground; None where they have none."""
    canvas = np.zeros((extent.height // factor, extent.width // factor, 4), np.uint8)
    found = False
    for path in paths:
        values, box, title = geotiff.read_band(path, shading.band)
        part = box.intersect(extent)
        if title and part is not None:
            found = True
            colours = preview.render_classes(values[part.slices_in(box)], shading.colours)
            canvas[ground.place(part, extent, factor)] = preview.shrink_rgba(colours, factor=factor)
    if not found:
        return None
    return page.Picture(
        name=f"{shading.name.capitalize()} of {name}",
        png=preview.png_bytes(canvas),
        caption=f"{shading.title}.",
        legend=shading.legend,
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
    clipped = max((r.clipped for _, r in tiles), default=0.0)
    if clipped > CLIP_WARNING:
        found.append(f"Up to {clipped:.2%} of a tile's values were clipped by the int8 calibration.")
    return tuple(found)


def _facts(plan: Plan, summary: fold.Summary) -> tuple[tuple[str, str, str], ...]:
    hours, kind = (summary.gpu_h, "GPU-hours") if summary.gpu_h.allocated else (summary.core_h, "CPU core-hours")
    return (
        ("area", f"{plan.area.km2:,.1f}", "km2"),
        ("tiles", f"{summary.tiles}", f"of {len(plan.tasks)}"),
        ("device", f"{hours.allocated:.4f}", kind),
        ("cost", "unknown" if summary.usd is None else f"{summary.usd:,.4f}", "USD"),
    )


def _cost(summary: fold.Summary) -> tuple[tuple[str, str | float | None, str], ...]:
    rows: list[tuple[str, str | float | None, str]] = []
    for kind, hours in (("GPU-hours", summary.gpu_h), ("CPU core-hours", summary.core_h)):
        rows += [(f"{kind} {part}", round(getattr(hours, part), 5), "h") for part in PARTS]
    rows += [
        ("cost", summary.usd, "USD"),
        ("cost per 1000 km2", summary.usd_per_1000_km2, "USD"),
        ("device seconds per km2", summary.device_s_per_km2, "s/km2"),
        ("read", summary.usage.bytes_read / 1e6, "MB"),
        ("written", summary.usage.bytes_written / 1e6, "MB"),
        ("peak memory", summary.usage.peak_bytes / 1e6, "MB"),
    ]
    rows += [(f"stage {name}", round(seconds, 2), "thread-s") for name, seconds in summary.stage_s]
    return tuple(rows)


def _sources(plan: Plan, tiles: Sequence[tuple[Tile, Receipt]]) -> page.Table:
    """Which scenes filled what."""
    used: dict[tuple[int, str], int] = {}
    for _, receipt in tiles:
        for source in receipt.sources:
            for item in source.selected:
                used[source.period, item] = used.get((source.period, item), 0) + 1
    rows = tuple(
        (f"{plan.periods[period].start:%Y-%m-%d}", item, count) for (period, item), count in sorted(used.items())
    )
    return page.Table(title="Scenes used", columns=("period from", "item", "cell parts"), rows=rows)


def _probe_tables(made: Published) -> tuple[page.Table, ...]:
    """The validation of every probe that was fitted on this store."""
    tables: list[page.Table] = []
    for path in sorted((Path(made.store).parent / "probes").glob("*.json")):
        probe = probes.load(str(path))
        report = json.loads(probe.report)
        rows = tuple(tuple(c.get(k) for k in PROBE_COLUMNS) for c in report["classes"])
        note = (
            f"Held out by place: balanced accuracy {report['balanced_accuracy']}, shuffled labels "
            f"{report['control_balanced_accuracy']}, chance {report['chance']}."
        )
        tables.append(page.Table(title=f"Probe {path.stem}", columns=PROBE_COLUMNS, rows=rows, note=note))
    return tuple(tables)


def _provenance_rows(plan: Plan) -> tuple[tuple[str, object], ...]:
    inputs = settings_of(plan).inputs
    return (
        ("plan", plan.id),
        ("recipe", plan.recipe),
        ("model", plan.model.name),
        ("weights sha256", plan.model.sha256),
        ("calibration", plan.calibration.hash),
        ("numerics", asdict(plan.numerics)),
        ("windows", asdict(plan.grid)),
        ("sensors", ", ".join(inputs.sensors)),
        ("catalogue", "; ".join(dict.fromkeys(inputs.catalog_of(name) for name in inputs.sensors))),
        ("collections", ", ".join(sorted({f"{s.collection} {s.quantity}".strip() for s in plan.scenes}))),
        ("source data", credit_of(plan)),
    )
