"""What people look at, kept up to date: pictures, class maps and one report page.

Idempotent. Pictures are made again only when the committed objects have changed since; the report page always, because
the ledger grows with every run.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from pipeline.account import fold
from pipeline.account.ledger import read as read_ledger
from pipeline.maps import probe as probes
from pipeline.plan.estimate import total
from pipeline.plan.planner import load_plan
from pipeline.run import pictures, seam_report
from pipeline.run.folder import credit_of, settings_of, store_path
from pipeline.run.status import tile_status
from pipeline.types import BLOCK_PX, PIXEL_M, GridSpec, Plan, Receipt, Task, Tile, canonical_json, content_hash
from pipeline.write import durable, page, stac

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

CLIP_WARNING = 1e-3
"""Share of clipped values above which the page warns."""
PARTS = ("allocated", "useful", "waste", "overhead")
PROBE_COLUMNS = ("name", "samples", "precision", "recall", "f1", "iou")
PUBLISHED = 1
"""Version of what publish makes; raised when its pictures change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """Where everything is.

    Attributes:
        store: The embedding store.
        page: report.html.
        ledger: Folder of the ledger.
        seams: JSON of the seam scores.
        stac: STAC collection.
        seam_faults: One sentence per seam score above ``run.max_seam_score``.
        quicklooks: PNG and COG of the embeddings.
        maps: Class map COGs.
        pictures: PNG of the class maps.
    """

    store: str
    page: str
    ledger: str
    seams: str = ""
    stac: str = ""
    seam_faults: tuple[str, ...] = ()
    quicklooks: tuple[str, ...] = ()
    maps: tuple[str, ...] = ()
    pictures: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        return asdict(self)

    def lines(self) -> tuple[str, ...]:
        """For people."""
        named = [("store", (self.store,)), ("quicklook", self.quicklooks), ("map", self.maps + self.pictures)]
        named += [("stac", (self.stac,)), ("seams", (self.seams,))]
        named += [("ledger", (self.ledger,)), ("report", (self.page,))]
        return tuple(f"{label:<10} {path}" for label, paths in named for path in paths if path)


def publish(output: str, *, maps: Sequence[str] = (), map_pngs: Sequence[str] = ()) -> Published:
    """Make quicklooks, map GeoTIFFs, seam scores, a STAC catalogue and the report page of what ``output`` holds.

    Args:
        output: The folder.
        maps: COGs that were just made beside (``map_store``); they and their PNGs are listed from now on.
        map_pngs: Their PNGs.

    Raises:
        InvalidInputError: There is no plan.
        OutputError: There is no store yet, or a file cannot be written.
    """
    plan = load_plan(output)
    tiles = pictures.committed(plan)
    made = _kept(plan, tiles) or _pictures(plan, tiles)
    made = replace(made, maps=_merged(made.maps, maps), pictures=_merged(made.pictures, map_pngs))
    found = seam_report.measured(plan, tiles)
    root = Path(plan.output)
    made = replace(made, seams=str(root / seam_report.SEAMS_FILE), seam_faults=seam_report.over_limit(plan, found))
    written = Path(stac.write_catalog(root / "stac", _catalog(plan, made, found)))
    made = replace(made, stac=str(root / "stac" / written.name))  # as the other paths are given
    _remember(plan, tiles, made)
    _page(plan, made, found)
    return made


def _merged(old: Sequence[str], new: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*old, *new)))


def summarise(output: str) -> fold.Summary:
    """Fold the ledger of every run in ``output``."""
    plan = load_plan(output)
    return _summary(plan, pictures.committed(plan))


def _state(plan: Plan, tiles: Sequence[tuple[Tile, Receipt]]) -> str:
    return content_hash([PUBLISHED, plan.recipe, [[t.id, r.fingerprint, r.objects] for t, r in tiles]])


def _kept(plan: Plan, tiles: Sequence[tuple[Tile, Receipt]]) -> Published | None:
    try:
        record = json.loads((Path(plan.output) / "published.json").read_text(encoding="utf-8"))
        made = TypeAdapter(Published).validate_python(record["made"])
        same = record["state"] == _state(plan, tiles) and record["output"] == plan.output
    except (OSError, ValueError, KeyError, TypeError):
        return None
    files = (*made.quicklooks, *made.maps, *made.pictures)
    return made if same and all(Path(f).is_file() for f in files) else None


def _remember(plan: Plan, tiles: Sequence[tuple[Tile, Receipt]], made: Published) -> None:
    record = {"state": _state(plan, tiles), "output": plan.output, "made": asdict(made)}
    durable.replace(Path(plan.output) / "published.json", canonical_json(record).encode())


def _pictures(plan: Plan, tiles: Sequence[tuple[Tile, Receipt]]) -> Published:
    places = [tile for tile, _ in tiles]
    quicklooks = pictures.quicklooks(plan, places)
    cogs: list[str] = []
    pngs: list[str] = []
    for made in (*pictures.store_maps(plan), *pictures.kept_maps(plan)):
        files, images = pictures.publish_map(plan, places, made)
        cogs += files
        pngs += images
    root = Path(plan.output)
    return Published(
        store=str(store_path(plan.output)),
        page=str(root / "report.html"),
        ledger=str(root / "ledger"),
        quicklooks=quicklooks,
        maps=tuple(cogs),
        pictures=tuple(pngs),
    )


def _summary(plan: Plan, tiles: Sequence[tuple[Tile, Receipt]]) -> fold.Summary:
    current = {tile.id: receipt for tile, receipt in tiles}
    done = [t for t in plan.tasks if t.tile.id in current and current[t.tile.id].fingerprint == t.fingerprint]
    alone = len(done) == len(current)
    return fold.fold(
        read_ledger(plan.output),
        winners=[(r.tile_id, r.attempt) for r in current.values()],
        km2=_committed_km2(plan, done) if alone else _blocks_km2(current.values()),
        estimate=total([t.estimate for t in done]) if done and alone else None,
    )


def _committed_km2(plan: Plan, done: Sequence[Task]) -> float | None:
    """Area inside the request that is committed: exact when all is, else in proportion to the wanted blocks."""
    wanted = sum(len(t.blocks) for t in plan.tasks)
    share = sum(len(t.blocks) for t in done) / wanted if wanted else 0.0
    return plan.area.km2 * share or None


def _blocks_km2(receipts: Iterable[Receipt]) -> float:
    """Area of all committed blocks: what remains to be said when the store holds tiles of several requests."""
    side_km = BLOCK_PX * PIXEL_M / 1000
    return sum(len(r.blocks) for r in receipts) * side_km**2


def _page(plan: Plan, made: Published, seams: seam_report.Seams) -> None:
    tiles = pictures.committed(plan)
    summary = _summary(plan, tiles)
    rows = tile_status(plan.output)
    span = f"{plan.periods[0].start:%Y-%m-%d} to {plan.periods[-1].end:%Y-%m-%d}"
    content = page.PageContent(
        title=f"earthpress: {Path(plan.output).resolve().name}",
        subtitle=f"{plan.area.km2:,.1f} km2, {span}, {len(plan.periods)} periods, OlmoEarth {plan.model.version} "
        f"{plan.model.size}, patch {plan.grid.patch_px}, one vector per {plan.grid.pixel_m} m",
        warnings=_warnings(plan, tiles) + seam_report.warnings(plan, seams),
        facts=_facts(plan, summary),
        pictures=pictures.page_pictures(plan, made.maps),
        tiles=page.Table(
            title="Tiles",
            columns=("tile", "state", "blocks", "attempts since commit", "reason"),
            rows=tuple((r.tile_id, r.state, r.blocks, r.attempts, r.reason) for r in rows),
        ),
        cost=_cost(summary),
        estimates=tuple((r.quantity, r.estimated, r.measured, "") for r in summary.ratios if r.measured is not None),
        seams=seam_report.section(plan, seams, pictures.basis_of(plan)),
        tables=(_sources(plan, tiles), *_probe_tables(made)),
        provenance=tuple((k, str(v)) for k, v in _provenance_rows(plan)),
        notes=summary.notes,
        made=f"made by earthpress {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    )
    page.write_page(made.page, content)


def _catalog(plan: Plan, made: Published, seams: seam_report.Seams) -> stac.CatalogContent:
    """What the STAC catalogue says about everything that is committed."""
    grid, name = plan.grid, Path(plan.output).resolve().name
    shared: dict[str, Any] = {
        **seam_report.properties(seams),
        "earthpress:stitch": grid.stitch,
        **_lattice(plan.grid),
        "earthpress:patch_px": grid.patch_px,
        "earthpress:dense": grid.dense,
        "earthpress:recipe": plan.recipe,
        "earthpress:model": f"OlmoEarth {plan.model.version} {plan.model.size}",
        "earthpress:trained": plan.model.trained,
        "earthpress:report": Path(made.page).name,
    }
    untrained = "" if plan.model.trained else " UNTRAINED random weights: for demonstration only."
    return stac.CatalogContent(
        id=re.sub(r"[^A-Za-z0-9._-]+", "-", name),
        title=f"Embeddings {name}",
        description=f"int8 embeddings of OlmoEarth {plan.model.version} {plan.model.size}, one vector per "
        f"{grid.pixel_m} m; {credit_of(plan)}.{untrained}",
        start=plan.periods[0].start,
        end=plan.periods[-1].end,
        items=tuple(
            stac.ZoneItem(box=box, assets=_assets(made, box.zone), properties=tuple(shared.items()))
            for box in pictures.ground(plan)
        ),
        software=(("earthpress", version("earthpress")),),
    )


def _lattice(grid: GridSpec) -> dict[str, Any]:
    """The sides of windows, or of boxes and domains."""
    if grid.stitch == "neighbourhood":
        sides = {"box_px": grid.box_px, "core_px": grid.core_px, "halo_px": grid.halo_px}
    else:
        sides = {"window_px": grid.window_px, "overlap_px": grid.overlap_px}
    return {f"earthpress:{name}": side for name, side in sides.items()}


def _assets(made: Published, zone: int) -> tuple[stac.Made, ...]:
    group = f"utm{zone:02d}"
    cogs = [
        path
        for path in (*made.maps, *made.quicklooks)
        if path.endswith(".tif") and re.search(rf"_{group}(?!.*_utm\d\d)", Path(path).stem)
    ]
    store = stac.Made(
        key="embeddings", path=f"{made.store}/{group}", media_type=stac.ZARR, roles=("data",), title="Embedding store"
    )
    return (
        store,
        *(
            stac.Made(
                key=Path(path).stem,
                path=path,
                media_type=stac.COG,
                roles=("data",) if path in made.maps else ("overview",),
                title=Path(path).stem.replace("_", " "),
            )
            for path in cogs
        ),
        stac.Made(
            key="seams", path=made.seams, media_type="application/json", roles=("metadata",), title="Seam scores"
        ),
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
