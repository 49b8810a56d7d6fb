"""From settings to a Plan, and a Plan to a folder and back.

Composes area, grid, catalogue, selection and estimate. It knows the model only by its card and the device only by its
numerics class: both are handed in. Nothing is read but metadata and nothing is spent.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import TypeAdapter, ValidationError

from pipeline.config import SENSOR_ORDER
from pipeline.errors import ConfigError, DataError, InvalidInputError, NoDataError, OutputError
from pipeline.plan import aoi, catalog, estimate, grid, select
from pipeline.plan.periods import periods_of
from pipeline.types import (
    Area,
    Calibration,
    Candidates,
    Cell,
    GridSpec,
    ModelCard,
    Numerics,
    Period,
    Plan,
    Scene,
    Task,
    Tile,
    block_grid,
    canonical_json,
    content_hash,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from datetime import datetime

    from shapely.geometry.base import BaseGeometry

    from pipeline.config import Settings

ALGORITHM = 4
"""Raised whenever the same inputs would give other bytes; part of every fingerprint."""
COARSEST_RES_M = 60
"""Coarsest native resolution; its layer, with its margin, reaches furthest beyond the windows."""
MARGIN_PX = 2
"""Native pixels read beyond the windows at 20 and 60 m, for interpolation."""
PLAN_FOLDER = "plan"
NO_PIXEL_KEYS = frozenset([
    "catalog", "requester_pays", "reader", "allowed_hosts", "allow_private_hosts", "period_days", "periods", "anchor"
])  # fmt: skip
"""Keys of ``inputs`` that decide no pixel beyond the dates of the periods, which are compared themselves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Basis:
    """What the planner is told and does not find out.

    Attributes:
        grid: The window lattice.
        model: The model card.
        numerics: The numerics class.
        calibration: Of the quantiser.
        heads: (map name, content hash of its head).
        rate: Prices and speed, for the estimate.
        mask: Cloud mask that ranks scenes, with its version; "" when none does.
        layer_bytes: Bytes per pixel of the map layers that are not made of classes.
    """

    grid: GridSpec
    model: ModelCard
    numerics: Numerics
    calibration: Calibration
    heads: tuple[tuple[str, str], ...]
    rate: estimate.Rate
    mask: str = ""
    layer_bytes: int = 0


def make_plan(
    settings: Settings,
    basis: Basis,
    *,
    now: datetime,
    held: Mapping[str, tuple[tuple[int, int], ...]] | None = None,
    note: Callable[[str], None] = lambda _text: None,
) -> Plan:
    """Resolve the area, search the catalogue and price every tile.

    Args:
        settings: The configuration; ``output`` must be set.
        basis: Grid, model, numerics, calibration.
        now: UTC now, for dates in the future and the creation time.
        held: Blocks that the store already holds, by tile id: a tile is rewritten whole, so they stay wanted.
        note: Called with a line of text before each slow step.

    Raises:
        InvalidInputError: Area or dates are wrong.
        NoDataError: The catalogue has no scene at all for the area and dates.
    """
    periods = periods_of(settings, today=now.date())
    _note_short(periods, settings, note=note)
    area = _area(settings)
    note("laying the lattice over the area")
    wanted = [
        (tile, tuple(sorted({*blocks, *(held or {}).get(tile.id, ())})))
        for zone, part in aoi.zone_parts(area)
        for tile, blocks in grid.wanted_blocks(zone, part, tile_px=basis.grid.tile_px)
    ]
    if not wanted:
        raise NoDataError(f"the area of {area.km2:.6f} km2 touches no block of the lattice")
    cells_by_tile = {tile: _cells(tile, basis.grid) for tile, _ in wanted}
    cells = sorted({cell for group in cells_by_tile.values() for cell in group})
    scenes, by_cell = _search(settings, cells, periods, note=note)
    recipe = recipe_of(settings, basis, periods)
    used = {sid for group in by_cell.values() for c in group for sid in c.scene_ids}
    feeds = feeds_of(settings)
    shares = {cell: 1 / count for cell, count in Counter(c for group in cells_by_tile.values() for c in group).items()}
    tasks = tuple(
        _task(
            tile,
            blocks,
            candidates=_gather(by_cell, cells_by_tile[tile]),
            shares=shares,
            basis=basis,
            recipe=recipe,
            periods=periods,
            feeds=feeds,
        )
        for tile, blocks in wanted
    )
    seen = {c.period for group in by_cell.values() for c in group if c.scene_ids}
    empty = tuple(p.index for p in periods if p.index not in seen)
    return Plan(
        id=content_hash([recipe, [[t.fingerprint, t.blocks] for t in tasks]]),
        recipe=recipe,
        created=now,
        output=str(settings.output),
        area=area,
        periods=periods,
        grid=basis.grid,
        model=basis.model,
        numerics=basis.numerics,
        calibration=basis.calibration,
        settings=canonical_json(settings.model_dump(mode="json")),
        scenes=tuple(s for s in scenes if s.id in used),
        tasks=tasks,
        empty_periods=empty,
        estimate=estimate.total([t.estimate for t in tasks]),
        heads=basis.heads,
        mask=basis.mask,
    )


def check_recipe(plan: Plan, settings: Settings) -> None:
    """Refuse a plan that another version of earthpress made, whose pixels this one would not give.

    Raises:
        ConfigError: The plan's recipe is not what its own content gives here.
    """
    if recipe_of(settings, plan, plan.periods) != plan.recipe:
        raise ConfigError(
            f"the plan in {plan.output} was made by another version of earthpress, which computes other pixels: "
            "plan again into another output"
        )


class Recipe(Protocol):
    """What of a plan, or of its basis, decides pixels."""

    @property
    def grid(self) -> GridSpec:
        """The window lattice."""

    @property
    def model(self) -> ModelCard:
        """The model."""

    @property
    def numerics(self) -> Numerics:
        """The numerics class."""

    @property
    def calibration(self) -> Calibration:
        """Of the quantiser."""

    @property
    def mask(self) -> str:
        """Cloud mask that ranks scenes."""


def recipe_of(settings: Settings, basis: Recipe, periods: Sequence[Period]) -> str:
    """Hash of everything that decides pixels except the area and the scenes: the identity of a plan."""
    return _recipe(settings, basis, [[p.start, p.end] for p in periods])


def store_recipe_of(settings: Settings, basis: Recipe, periods: Sequence[Period]) -> str:
    """The same without dates, the identity of a store: years of one recipe are time steps of one store.

    What is left of the periods is their number and length as they were asked for. A shorter one at the end counts as
    one, and days are counted without 29 February, so that leap years have the recipe of others.
    """
    return _recipe(settings, basis, {"count": len(periods), "length": _length(settings, periods)})


def _length(settings: Settings, periods: Sequence[Period]) -> str | float:
    """``month``, or days."""
    inputs = settings.inputs
    if inputs.period_days == "month" or inputs.periods is None or settings.start is None or settings.end is None:
        return inputs.period_days
    first, last = settings.start, settings.end
    days = sum((first + timedelta(days=k)).strftime("%m-%d") != "02-29" for k in range((last - first).days))
    return round(days / len(periods), 2)


def _recipe(settings: Settings, basis: Recipe, periods: Any) -> str:
    return content_hash(
        {
            "algorithm": ALGORITHM,
            "periods": periods,
            "inputs": _pixel_inputs(settings),
            "output": basis.model.output,
            "grid": asdict(basis.grid),
            "weights": basis.model.sha256,
            "encoder": basis.model.config,
            "numerics": asdict(basis.numerics),
            "calibration": basis.calibration.hash,
            "mask": basis.mask,
        }
    )


def feeds_of(settings: Settings) -> tuple[estimate.Feed, ...]:
    """What decides how much is read, one per sensor."""
    inputs = settings.inputs
    return tuple(
        estimate.Feed(sensor=name, composite=inputs.of(name).composite, resampling=inputs.resampling)
        for name in inputs.sensors
    )


def _pixel_inputs(settings: Settings) -> dict[str, Any]:
    """The part of ``inputs`` that decides pixels: not where files come from nor who pays for them."""
    inputs = settings.inputs
    return {
        "resampling": inputs.resampling,
        "sensors": [
            {"sensor": name} | inputs.of(name).model_dump(mode="json", exclude={"catalog", "requester_pays"})
            for name in inputs.sensors
        ],
    }


def _search(
    settings: Settings, cells: Sequence[Cell], periods: tuple[Period, ...], *, note: Callable[[str], None]
) -> tuple[tuple[Scene, ...], dict[Cell, tuple[Candidates, ...]]]:
    """All scenes, sorted by id, and the candidates of every cell: sensor by sensor, then by period."""
    inputs, geometry = settings.inputs, _cells_geometry(cells)
    found: dict[str, Scene] = {}
    by_cell: dict[Cell, tuple[Candidates, ...]] = dict.fromkeys(cells, ())
    for name in inputs.sensors:
        own, place = inputs.of(name), inputs.catalog_of(name)
        note(f"searching {catalog.redact(place)} for {name}: {len(periods)} periods over {len(cells)} cells")
        try:
            scenes = catalog.find(
                place,
                sensor=name,
                collection=own.collection,
                geometry=geometry,
                periods=periods,
                offset=inputs.sentinel2.offset,
                note=note,
            )
        except DataError as err:  # of one tile elsewhere; here no tile exists yet and another catalogue is wanted
            raise InvalidInputError(str(err)) from err
        for scene in scenes:
            if found.setdefault(scene.id, scene) != scene:
                raise InvalidInputError(f"{name} and {found[scene.id].sensor} both have a scene with the id {scene.id}")
        _check_quantity(scenes, note=note)
        selector, rule = select.Selector(scenes), select.rule_of(inputs, name)
        for cell in cells:
            by_cell[cell] += selector.candidates(cell, periods=periods, rule=rule)
        _note_periods(name, by_cell, periods, note=note)
    _refuse_nothing(settings, by_cell, periods)
    return tuple(found[key] for key in sorted(found)), by_cell


def _note_short(periods: Sequence[Period], settings: Settings, *, note: Callable[[str], None]) -> None:
    """Say that what is left over makes a shorter period: its image has fewer scenes to choose from."""
    days = settings.inputs.period_days
    for period in (periods[0], periods[-1]):
        length = (period.end - period.start).total_seconds() / 86_400
        if days != "month" and settings.inputs.periods is None and length < days:
            note(f"the period from {period.start:%Y-%m-%d} has {length:g} days only, the others {days}")
            return


def _check_quantity(scenes: Sequence[Scene], *, note: Callable[[str], None]) -> None:
    """Sentinel-1: one quantity in one store, and a word where it is not the one the models were trained on.

    Raises:
        InvalidInputError: Both gamma0 and sigma0: on slopes they differ by decibels, and maps would show the scenes.
    """
    held = {s.quantity for s in scenes if s.quantity}
    if len(held) > 1:
        raise InvalidInputError(
            f"the Sentinel-1 scenes are {' and '.join(sorted(held))}: a store holds one of them; give "
            "inputs.sentinel1.catalog or inputs.sentinel1.collection with one"
        )
    if held == {"sigma0"}:
        note("the Sentinel-1 scenes are sigma0, the models were trained on gamma0: slopes and near range differ")


def _note_periods(
    sensor: str,
    by_cell: Mapping[Cell, tuple[Candidates, ...]],
    periods: Sequence[Period],
    *,
    note: Callable[[str], None],
) -> None:
    """Say which periods have no scene of a sensor anywhere: the model takes them as missing."""
    seen = {c.period for group in by_cell.values() for c in group if c.sensor == sensor and c.scene_ids}
    missing = [f"{p.start:%Y-%m-%d}" for p in periods if p.index not in seen]
    if missing and seen:
        note(f"no scene of {sensor} in the periods from {', '.join(missing)}: missing there")
    elif missing:
        note(f"no scene of {sensor} at all: missing everywhere")


def _area(settings: Settings) -> Area:
    if (settings.bbox is None) == (settings.aoi is None):
        raise InvalidInputError("give the area once: either --bbox W,S,E,N or --aoi FILE")
    return aoi.area_from_bbox(settings.bbox) if settings.bbox is not None else aoi.area_from_file(str(settings.aoi))


def _cells(tile: Tile, spec: GridSpec) -> tuple[Cell, ...]:
    """Cells that the whole tile's halo touches, whatever blocks are wanted: they are part of the fingerprint."""
    box = grid.read_box(tile, grid.tile_windows(tile, block_grid(tile), spec), spec)
    return grid.cells_of(box.cover(COARSEST_RES_M, pad_px=MARGIN_PX))


def _cells_geometry(cells: Sequence[Cell]) -> BaseGeometry:
    import shapely  # noqa: PLC0415

    return shapely.union_all([select.cell_polygon(cell) for cell in cells])


def _refuse_nothing(
    settings: Settings, by_cell: Mapping[Cell, tuple[Candidates, ...]], periods: Sequence[Period]
) -> None:
    if any(c.scene_ids for group in by_cell.values() for c in group):
        return
    inputs = settings.inputs
    places = ", ".join(f"{inputs.catalog_of(name)} ({name})" for name in inputs.sensors)
    raise NoDataError(
        f"no usable scene for this area between {periods[0].start:%Y-%m-%d} and {periods[-1].end:%Y-%m-%d} in "
        f"{places}: check the area, the dates, and the collections, cloud limits and orbits under inputs"
    )


def _gather(by_cell: Mapping[Cell, tuple[Candidates, ...]], cells: Iterable[Cell]) -> tuple[Candidates, ...]:
    """Sensor by sensor, then by cell and period; a cell's own are in the order of sensors already."""
    given = [c for cell in sorted(cells) for c in by_cell[cell]]
    return tuple(sorted(given, key=lambda c: SENSOR_ORDER.index(c.sensor)))  # sorted() is stable


def _task(
    tile: Tile,
    blocks: tuple[tuple[int, int], ...],
    *,
    candidates: tuple[Candidates, ...],
    shares: Mapping[Cell, float],
    basis: Basis,
    recipe: str,
    periods: tuple[Period, ...],
    feeds: tuple[estimate.Feed, ...],
) -> Task:
    origins = grid.tile_windows(tile, blocks, basis.grid)
    fingerprint = content_hash(
        {
            "recipe": recipe,
            "tile": asdict(tile),
            "candidates": [[c.sensor, c.cell.id, c.period, c.fingerprint] for c in candidates],
            "heads": basis.heads,
        }
    )
    priced = estimate.estimate_tile(
        windows=len(origins),
        blocks=len(blocks),
        card=basis.model,
        grid=basis.grid,
        periods=len(periods),
        read_box=grid.read_box(tile, origins, basis.grid),
        candidates=candidates,
        cell_shares=shares,
        rate=basis.rate,
        feeds=feeds,
        vector=estimate.Vector.of(basis.calibration),
        layer_bytes=basis.layer_bytes,
    )
    return Task(tile=tile, blocks=blocks, candidates=candidates, fingerprint=fingerprint, estimate=priced)


def save_plan(plan: Plan) -> Path:
    """Write the plan folder ``<output>/plan``, replacing an older plan of the same recipe.

    The folder holds request.json, tiles.ndjson and items.ndjson.

    Raises:
        OutputError: The output holds a plan of another recipe (what differs is named), or cannot be written.
    """
    folder = Path(plan.output) / PLAN_FOLDER
    refuse_other(plan, folder)
    data = TypeAdapter(Plan).dump_python(plan, mode="json")
    tiles, items = data.pop("tasks"), data.pop("scenes")
    draft = folder.with_name(f".{PLAN_FOLDER}-{os.getpid()}")
    try:
        draft.mkdir(parents=True)
        (draft / "tiles.ndjson").write_text("".join(canonical_json(t) + "\n" for t in tiles), encoding="utf-8")
        (draft / "items.ndjson").write_text("".join(canonical_json(s) + "\n" for s in items), encoding="utf-8")
        (draft / "request.json").write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        folder.mkdir(exist_ok=True)
        for name in ("items.ndjson", "tiles.ndjson", "request.json"):  # request last: it names the plan's id
            (draft / name).replace(folder / name)
    except OSError as err:
        raise OutputError(f"the plan cannot be written to {folder}: {err.strerror or err}") from err
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def load_plan(output: str) -> Plan:
    """Read ``<output>/plan`` back.

    Raises:
        InvalidInputError: There is no plan, or it is damaged.
    """
    folder = Path(output) / PLAN_FOLDER
    if not (folder / "request.json").is_file():
        raise InvalidInputError(f"{output} holds no plan: make one with 'earthpress plan ... --output {output}'")
    try:
        data: dict[str, Any] = json.loads((folder / "request.json").read_text(encoding="utf-8"))
        data["tasks"] = _lines(folder / "tiles.ndjson")
        data["scenes"] = _lines(folder / "items.ndjson")
        plan = TypeAdapter(Plan).validate_python(data)
    except (OSError, ValueError, ValidationError) as err:
        raise InvalidInputError(f"the plan in {folder} is damaged ({type(err).__name__}): plan again") from err
    if plan.id != content_hash([plan.recipe, [[t.fingerprint, t.blocks] for t in plan.tasks]]):
        raise InvalidInputError(f"the plan in {folder} is damaged (its tiles are of another plan): plan again")
    return replace(plan, output=output)


def _lines(path: Path) -> list[Any]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def refuse_other(plan: Plan, folder: Path) -> None:
    """Raise OutputError when ``folder`` holds a plan of another recipe, or radar of another quantity, naming it."""
    if not (folder / "request.json").is_file():
        return
    try:
        old = load_plan(str(folder.parent))
    except InvalidInputError:
        return  # half-written: the store itself still refuses another recipe
    held = _has_receipts(folder.parent)
    quantities = [{s.quantity for s in p.scenes if s.quantity} for p in (old, plan)]
    if old.recipe == plan.recipe and held and all(quantities) and quantities[0] != quantities[1]:
        # The catalogue is no part of the recipe, because archives move; what its radar pixels are must not change.
        there, here = (" and ".join(sorted(q)) for q in quantities)
        raise OutputError(
            f"{plan.output} holds tiles made from Sentinel-1 {there}, this plan's scenes are {here}: a store holds one "
            "of them; use another --output, or the catalogue of before (inputs.sentinel1.catalog)"
        )
    if old.recipe == plan.recipe and (old.heads == plan.heads or not held):
        return
    if old.recipe == plan.recipe:
        raise OutputError(
            f"{plan.output} holds tiles made with the maps {[n for n, _ in old.heads]}, this plan wants "
            f"{[n for n, _ in plan.heads]}: make the map from the store (earthpress map {plan.output} --head PROBE) "
            "or use another --output"
        )
    raise OutputError(
        f"{plan.output} holds another plan: {_difference(old, plan)}. Use another --output, or the same settings "
        "(only the area may change)"
    )


def _has_receipts(output: Path) -> bool:
    return any((output / "receipts").glob("*/*.json"))


def _difference(old: Plan, new: Plan) -> str:
    pairs = {
        "dates": (_span(old), _span(new)),
        "model": (_weights(old), _weights(new)),
        "lattice": tuple(f"{p.grid.stitch} ({p.grid.summary}, tiles {p.grid.tile_px} px)" for p in (old, new)),
        "numerics": tuple(_numerics(p) for p in (old, new)) if old.grid == new.grid else ("", ""),
        "calibration": (old.calibration.hash, new.calibration.hash),
    }
    there, here = (_leaves(json.loads(p.settings)["inputs"], "inputs") for p in (old, new))
    pairs |= {k: (there.get(k, "-"), here.get(k, "-")) for k in sorted({*there, *here})}
    return "; ".join(f"{k} there {a}, here {b}" for k, (a, b) in pairs.items() if a != b) or "other algorithm version"


def _numerics(plan: Plan) -> str:
    n = plan.numerics
    compiled = "compiled" if n.compiled else "eager"
    return f"{n.device} ({n.device_name}) {n.dtype} {compiled}, batch {n.batch_windows}, torch {n.torch}, {n.attention}"


def _leaves(section: dict[str, Any], prefix: str) -> dict[str, str]:
    """Settings by dotted key, without those that decide no pixel."""
    found: dict[str, str] = {}
    for key, value in section.items():
        if isinstance(value, dict):
            found |= _leaves(value, f"{prefix}.{key}")
        elif key not in NO_PIXEL_KEYS:
            found[f"{prefix}.{key}"] = str(value)
    return found


def _weights(plan: Plan) -> str:
    return f"{plan.model.name} {plan.model.sha256[:12]} configuration {plan.model.config[:12]}"


def _span(plan: Plan) -> str:
    return f"{plan.periods[0].start:%Y-%m-%d}..{plan.periods[-1].end:%Y-%m-%d} in {len(plan.periods)} periods"
