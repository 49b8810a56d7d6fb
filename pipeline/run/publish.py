"""What people look at: quicklook, class maps as GeoTIFF, and one report page.

Idempotent; reads the store and changes none of it.

Pictures are made again only when the committed objects have changed since; the report page always, because the ledger
grows with every run.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import TypeAdapter

from pipeline.account import fold
from pipeline.account.ledger import read as read_ledger
from pipeline.maps import probe as probes
from pipeline.plan.estimate import total
from pipeline.plan.planner import load_plan
from pipeline.run.folder import settings_of, store_path
from pipeline.run.status import tile_status
from pipeline.types import BLOCK_PX, NODATA_CODE, PIXEL_M, Box, Plan, Receipt, Task, Tile, canonical_json, content_hash
from pipeline.write import durable, geotiff, page, preview, store
from pipeline.write.commit import Commits
from pipeline.write.layout import union

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

GROUP_PX = 8192
"""Side of the ground square of one map GeoTIFF, anchored at the zone origin."""
QUICKLOOK_PX = 8192
"""Longest side of the quicklook GeoTIFF; larger areas are averaged down."""
SAMPLE_PX = 40_000
"""Pixels from which the colours of the quicklook are derived; the basis is then frozen for the store."""
PAGE_PX = 1400
"""Longest side of the pictures inside the report page."""
CLIP_WARNING = 1e-3
PARTS = ("allocated", "useful", "waste", "overhead")
PROBE_COLUMNS = ("name", "samples", "precision", "recall", "f1", "iou")
PROBE_SUFFIX = ".probe.json"
"""Beside the maps that ``map_store`` made lie their probes, so that they can be made again."""
PUBLISHED = 1
"""Version of what publish makes; raised when its pictures change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """Where everything is.

    Attributes:
        store: The embedding store.
        page: report.html.
        ledger: Folder of the ledger.
        quicklooks: PNG and COG of the embeddings.
        maps: Class map COGs.
        pictures: PNG of the class maps.
    """

    store: str
    page: str
    ledger: str
    quicklooks: tuple[str, ...] = ()
    maps: tuple[str, ...] = ()
    pictures: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        return asdict(self)

    def lines(self) -> tuple[str, ...]:
        """For people."""
        named = [("store", (self.store,)), ("quicklook", self.quicklooks), ("map", self.maps + self.pictures)]
        named += [("ledger", (self.ledger,)), ("report", (self.page,))]
        return tuple(f"{label:<10} {path}" for label, paths in named for path in paths)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassMap:
    """A map to publish.

    Attributes:
        name: File name part.
        classes: (value, class name, colour).
        tags: Provenance.
        trained: Whether the embeddings come from trained weights.
        layer: (row, col) uint8 classes of a tile, 255 nodata.
    """

    name: str
    classes: tuple[tuple[int, str, str], ...]
    tags: tuple[tuple[str, str], ...]
    trained: bool
    layer: Callable[[Tile], NDArray[np.uint8]]


def publish(output: str, *, maps: Sequence[str] = (), pictures: Sequence[str] = ()) -> Published:
    """Make quicklooks, map GeoTIFFs and the report page of what is committed in ``output``.

    Args:
        output: The folder.
        maps: COGs that were just made beside (``map_store``); they and their ``pictures`` are listed from now on.
        pictures: Their PNGs.

    Raises:
        InvalidInputError: There is no plan.
        OutputError: There is no store yet, or a file cannot be written.
    """
    plan = load_plan(output)
    tiles = committed(plan)
    made = _kept(plan, tiles) or _pictures(plan, tiles)
    made = replace(made, maps=_merged(made.maps, maps), pictures=_merged(made.pictures, pictures))
    _remember(plan, tiles, made)
    _page(plan, made)
    return made


def committed(plan: Plan) -> tuple[tuple[Tile, Receipt], ...]:
    """Every tile that the store holds, with the receipt that counts; also tiles of earlier areas."""
    commits = Commits(Path(plan.output))
    names = sorted({receipt.tile_id for receipt in commits.receipts()})
    current = ((name, commits.current(name)) for name in names)
    return tuple(
        (Tile.parse(name, tile_px=plan.grid.tile_px), max(receipts, key=lambda r: r.attempt))
        for name, receipts in current
        if receipts
    )


def _merged(old: Sequence[str], new: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*old, *new)))


def publish_map(plan: Plan, tiles: Sequence[Tile], made: ClassMap) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Write a class map: one COG per 8192 px group and zone, one PNG per zone.

    Returns:
        (COG paths, PNG paths).
    """
    folder = Path(plan.output) / "maps"
    folder.mkdir(parents=True, exist_ok=True)
    cogs = [str(_map_cog(folder, box, tiles=tiles, made=made)) for box in _groups(plan)]
    pngs = [_map_png(plan, box, tiles=tiles, made=made) for box in ground(plan)]
    return tuple(cogs), tuple(pngs)


def ground(plan: Plan) -> tuple[Box, ...]:
    """Per zone the smallest box of whole blocks around everything committed: what pictures and maps show."""
    boxes: dict[int, Box] = {}
    for tile, receipt in committed(plan):
        for row, col in receipt.blocks:
            box = tile.block_box(row, col)
            boxes[tile.zone] = union(boxes[tile.zone], box) if tile.zone in boxes else box
    return tuple(boxes[zone] for zone in sorted(boxes))


def summarise(output: str) -> fold.Summary:
    """Fold the ledger of every run in ``output``."""
    plan = load_plan(output)
    return _summary(plan, committed(plan))


def _store(plan: Plan) -> Path:
    return store_path(plan.output)


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
    quicklooks = _quicklooks(plan, places)
    cogs: list[str] = []
    pngs: list[str] = []
    for made in (*_store_maps(plan), *_kept_maps(plan)):
        files, pictures = publish_map(plan, places, made)
        cogs += files
        pngs += pictures
    root = Path(plan.output)
    return Published(
        store=str(_store(plan)),
        page=str(root / "report.html"),
        ledger=str(root / "ledger"),
        quicklooks=quicklooks,
        maps=tuple(cogs),
        pictures=tuple(pngs),
    )


def _store_maps(plan: Plan) -> Iterator[ClassMap]:
    """The maps that the run wrote into the store."""
    from pipeline.run.prepare import load_heads  # noqa: PLC0415

    for name, probe in load_heads(settings_of(plan), card=plan.model, calibration=plan.calibration):
        yield replace(probe_map(plan, name, probe), layer=partial(_map_layer, plan, name))


def _kept_maps(plan: Plan) -> Iterator[ClassMap]:
    """The maps that ``map_store`` made: made again from their probes when the store has changed."""
    own = {m.name for m in settings_of(plan).maps}
    for path in sorted((Path(plan.output) / "maps").glob(f"*{PROBE_SUFFIX}")):
        name = path.name.removesuffix(PROBE_SUFFIX)
        if name not in own:
            yield probe_map(plan, name, probes.load(str(path)))


def probe_map(plan: Plan, name: str, probe: probes.Probe) -> ClassMap:
    """A map computed from the stored codes, tile by tile; equal to the one a run writes in the same pass."""
    return ClassMap(
        name=name,
        classes=tuple(zip(probe.values, probe.names, probe.colours, strict=True)),
        tags=provenance(plan, probe=probe.hash),
        trained=plan.model.trained,
        layer=partial(_classified, plan, probe),
    )


def _classified(plan: Plan, probe: probes.Probe, tile: Tile) -> NDArray[np.uint8]:
    codes, _, _ = store.read_tile(_store(plan), tile)
    return probe.classify(codes, np.asarray(plan.calibration.scale, np.float32), codes[0] != NODATA_CODE)


def _map_layer(plan: Plan, name: str, tile: Tile) -> NDArray[np.uint8]:
    return store.read_map(_store(plan), tile, name)


def provenance(plan: Plan, **extra: str) -> tuple[tuple[str, str], ...]:
    """Tags of a file: enough to tell how it was made."""
    facts = {
        "software": "earthpress",
        "plan": plan.id,
        "recipe": plan.recipe,
        "model": f"OlmoEarth {plan.model.version} {plan.model.size}",
        "weights_sha256": plan.model.sha256,
        "trained": str(plan.model.trained).lower(),
        "calibration": plan.calibration.hash,
        "start": plan.periods[0].start.isoformat(),
        "end": plan.periods[-1].end.isoformat(),
        "source": "contains modified Copernicus Sentinel data",
    }
    return (("EARTHPRESS_PROVENANCE", canonical_json(facts | extra)), ("TIFFTAG_SOFTWARE", "earthpress"))


def _label(plan: Plan) -> str | None:
    return None if plan.model.trained else "UNTRAINED random weights: for demonstration only"


def _titles(plan: Plan, what: str) -> tuple[str, ...]:
    span = f"{plan.periods[0].start:%Y-%m-%d} to {plan.periods[-1].end:%Y-%m-%d}"
    return (what, f"{plan.area.km2:,.1f} km2, {span}, OlmoEarth {plan.model.version} {plan.model.size}")


def _quicklooks(plan: Plan, tiles: Sequence[Tile]) -> tuple[str, ...]:
    folder = Path(plan.output) / "preview"
    folder.mkdir(parents=True, exist_ok=True)
    basis = _basis(plan, folder / "basis.json", tiles)
    if basis is None:
        return ()
    made: list[str] = []
    for extent in ground(plan):
        factor = _factor(extent, QUICKLOOK_PX)
        canvas = _canvas(plan, extent, tiles=tiles, basis=basis, factor=factor)
        made += _quicklook_files(plan, folder, extent, canvas=canvas, factor=factor)
    return tuple(made)


def _canvas(plan: Plan, extent: Box, *, tiles: Sequence[Tile], basis: preview.Basis, factor: int) -> NDArray[np.uint8]:
    scale = np.asarray(plan.calibration.scale, np.float32)
    canvas = np.zeros((extent.height // factor, extent.width // factor, 4), np.uint8)
    for tile, part in _parts(tiles, extent):
        codes = store.read_tile(_store(plan), tile)[0][:, *part.slices_in(tile.box)]
        colours = preview.render(codes, scale, codes[0] != NODATA_CODE, basis)
        canvas[_place(part, extent, factor)] = preview.shrink_rgba(colours, factor=factor)
    return canvas


def _quicklook_files(
    plan: Plan, folder: Path, extent: Box, *, canvas: NDArray[np.uint8], factor: int
) -> tuple[str, str]:
    png, cog = folder / f"quicklook_utm{extent.zone:02d}.png", folder / f"quicklook_utm{extent.zone:02d}.tif"
    further = preview.factor_for(*canvas.shape[:2])
    titles = _titles(plan, "Embeddings, first three principal components")
    preview.save_png(str(png), preview.shrink_rgba(canvas, factor=further), title_lines=titles, label=_label(plan))
    geotiff.write_cog(
        cog,
        np.moveaxis(canvas, -1, 0),
        box=_coarse(extent, factor),
        nodata=None,
        overview="average",
        tags=provenance(plan),
    )
    return str(png), str(cog)


def _basis(plan: Plan, path: Path, tiles: Sequence[Tile]) -> preview.Basis | None:
    """The frozen colours of the store; made from a regular sample of the first tiles that have data."""
    if path.is_file():
        return preview.Basis.from_json(path.read_text(encoding="utf-8"))
    scale = np.asarray(plan.calibration.scale, np.float32)
    samples = list(_sample(plan, tiles))
    if sum(len(s) for s in samples) < plan.model.dims:
        return None
    basis = preview.pca_basis(np.concatenate(samples) * scale)
    durable.replace(path, basis.to_json().encode())
    return basis


def _sample(plan: Plan, tiles: Sequence[Tile]) -> Iterator[NDArray[np.float32]]:
    per_tile = max(1, SAMPLE_PX // max(1, len(tiles)))
    step = max(1, round(plan.grid.tile_px / per_tile**0.5))
    every = max(1, len(tiles) * plan.model.dims // (SAMPLE_PX * 4))
    for tile in tiles[::every]:
        codes, _, _ = store.read_tile(_store(plan), tile)
        thin = codes[:, ::step, ::step].reshape(codes.shape[0], -1)
        yield thin[:, thin[0] != NODATA_CODE].T.astype(np.float32)


def _map_cog(folder: Path, box: Box, *, tiles: Sequence[Tile], made: ClassMap) -> Path:
    path = folder / f"{made.name}_utm{box.zone:02d}_r{box.row // GROUP_PX}_c{box.col // GROUP_PX}.tif"
    geotiff.write_cog(
        path,
        _mosaic(box, tiles=tiles, layer=made.layer, factor=1),
        box=box,
        nodata=255,
        colours=tuple((value, colour) for value, _, colour in made.classes),
        class_names=tuple((value, name) for value, name, _ in made.classes),
        overview="mode",
        tags=(*made.tags, (geotiff.CLASSES_TAG, canonical_json(made.classes))),
    )
    return path


def _map_png(plan: Plan, extent: Box, *, tiles: Sequence[Tile], made: ClassMap) -> str:
    path = Path(plan.output) / "maps" / f"{made.name}_utm{extent.zone:02d}.png"
    factor = _factor(extent, preview.MAX_SIDE_PX)
    classes = _mosaic(extent, tiles=tiles, layer=made.layer, factor=factor)
    preview.save_png(
        str(path),
        preview.render_classes(classes, [colour for _, _, colour in made.classes]),
        title_lines=_titles(plan, f"Map {made.name}"),
        legend=[(name, colour) for _, name, colour in made.classes],
        label=None if made.trained else _label(plan),
    )
    return str(path)


def _mosaic(
    box: Box, *, tiles: Sequence[Tile], layer: Callable[[Tile], NDArray[np.uint8]], factor: int
) -> NDArray[np.uint8]:
    canvas = np.full((box.height // factor, box.width // factor), 255, np.uint8)
    for tile, part in _parts(tiles, box):
        classes = layer(tile)[part.slices_in(tile.box)]
        canvas[_place(part, box, factor)] = preview.shrink_classes(classes, factor=factor)
    return canvas


def _parts(tiles: Sequence[Tile], box: Box) -> Iterator[tuple[Tile, Box]]:
    """The tiles that touch ``box``, each with the part inside."""
    for tile in tiles:
        part = box.intersect(tile.box) if tile.zone == box.zone else None
        if part is not None:
            yield tile, part


def _factor(box: Box, most_px: int) -> int:
    """How much a picture over ``box`` is averaged down; at most a block, so that blocks shrink one by one."""
    return min(preview.factor_for(box.height, box.width, max_side_px=most_px), BLOCK_PX)


def _place(box: Box, outer: Box, factor: int) -> tuple[slice, slice]:
    rows, cols = box.slices_in(outer)
    return (
        slice(rows.start // factor, rows.stop // factor),
        slice(cols.start // factor, cols.stop // factor),
    )


def _coarse(box: Box, factor: int) -> Box:
    return Box(
        zone=box.zone,
        res_m=PIXEL_M * factor,
        row=box.row // factor,
        col=box.col // factor,
        height=box.height // factor,
        width=box.width // factor,
    )


def _groups(plan: Plan) -> Iterator[Box]:
    """The part of what is committed in each 8192 px ground square that holds a committed tile."""
    tiles = [tile for tile, _ in committed(plan)]
    for extent in ground(plan):
        for row in range(extent.row // GROUP_PX, -(-extent.row_stop // GROUP_PX)):
            for col in range(extent.col // GROUP_PX, -(-extent.col_stop // GROUP_PX)):
                square = replace(extent, row=row * GROUP_PX, col=col * GROUP_PX, height=GROUP_PX, width=GROUP_PX)
                part = extent.intersect(square)
                if part is not None and any(True for _ in _parts(tiles, part)):
                    yield part


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


def _page(plan: Plan, made: Published) -> None:
    tiles = committed(plan)
    summary = _summary(plan, tiles)
    rows = tile_status(plan.output)
    span = f"{plan.periods[0].start:%Y-%m-%d} to {plan.periods[-1].end:%Y-%m-%d}"
    content = page.PageContent(
        title=f"earthpress: {Path(plan.output).resolve().name}",
        subtitle=f"{plan.area.km2:,.1f} km2, {span}, {len(plan.periods)} periods, OlmoEarth {plan.model.version} "
        f"{plan.model.size}, patch {plan.grid.patch_px}",
        warnings=_warnings(plan, tiles),
        facts=_facts(plan, summary),
        pictures=_page_pictures(plan, made),
        tiles=page.Table(
            title="Tiles",
            columns=("tile", "state", "blocks", "attempts since commit", "reason"),
            rows=tuple((r.tile_id, r.state, r.blocks, r.attempts, r.reason) for r in rows),
        ),
        cost=_cost(summary),
        estimates=tuple((r.quantity, r.estimated, r.measured, "") for r in summary.ratios if r.measured is not None),
        tables=(_sources(plan, tiles), *_probe_tables(made)),
        provenance=tuple((k, str(v)) for k, v in _provenance_rows(plan)),
        notes=summary.notes,
        made=f"made by earthpress {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    )
    page.write_page(made.page, content)


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


def _page_pictures(plan: Plan, made: Published) -> tuple[page.Picture, ...]:
    """Quicklook and class maps over the same ground, one zone after the other, without frame."""
    places = [tile for tile, _ in committed(plan)]
    pictures: list[page.Picture] = []
    basis_file = Path(plan.output) / "preview" / "basis.json"
    for extent in ground(plan):
        factor = _factor(extent, PAGE_PX)
        if basis_file.is_file():
            basis = preview.Basis.from_json(basis_file.read_text(encoding="utf-8"))
            canvas = _canvas(plan, extent, tiles=places, basis=basis, factor=factor)
            caption = "Embeddings: the first three principal components as red, green, blue."
            pictures.append(page.Picture(name="Quicklook", png=preview.png_bytes(canvas), caption=caption))
        files = [Path(path) for path in made.maps if f"_utm{extent.zone:02d}_" in path]
        for name in sorted({path.name.split("_utm")[0] for path in files}):
            same = [path for path in files if path.name.split("_utm")[0] == name]
            pictures.append(_map_picture(name, same, extent, factor))
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
            canvas[_place(part, extent, factor)] = small
    colours = preview.render_classes(canvas, [colour for _, _, colour in classes])
    return page.Picture(
        name=f"Map {name}",
        png=preview.png_bytes(colours),
        caption="Class of every pixel.",
        legend=tuple((title, colour) for _, title, colour in classes),
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
    return (
        ("plan", plan.id),
        ("recipe", plan.recipe),
        ("model", plan.model.name),
        ("weights sha256", plan.model.sha256),
        ("calibration", plan.calibration.hash),
        ("numerics", asdict(plan.numerics)),
        ("windows", asdict(plan.grid)),
        ("catalogue", settings_of(plan).inputs.catalog),
        ("source data", "contains modified Copernicus Sentinel data"),
    )
