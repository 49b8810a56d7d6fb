"""Maps of a store as files: GeoTIFFs with styles and one virtual raster for work, tables of areas, PNGs for people.

Reads the store tile by tile, once per tile, and changes none of it. When maps are made again is ``finalise``'s
business.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.maps import heads
from pipeline.run import ground
from pipeline.run.folder import settings_of
from pipeline.run.map_layers import PER_CENT, MapHead
from pipeline.run.stored import Stored
from pipeline.types import PIXEL_M, Box, Plan, Tile, canonical_json, content_hash
from pipeline.write import areas, durable, frames, geotiff, layout, page, preview, qml, vrt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from pipeline.write.durable import Checkpoint
    from pipeline.write.streamed import Read

    Layer = Callable[[Tile], NDArray[Any]]
    """(row, col) values of a tile."""


RAMP = (
    (0.0, "#f4f1ea"), (0.1, "#fbdc8c"), (0.25, "#f59b4a"), (0.5, "#d6455b"), (1.0, "#5a1a5e")
)  # fmt: skip
"""Colours of a continuous layer, light to dark, by share of its range; between them mixed. Low values, where most
pixels lie, get most of the colours."""
SURE_RAMP = (
    (0.0, "#5a1a5e"), (0.25, "#d6455b"), (0.5, "#f59b4a"), (0.75, "#fbdc8c"), (1.0, "#f4f1ea")
)  # fmt: skip
"""Of a layer in which little is bad: as in ``RAMP`` dark is where the map deserves less trust."""
PROBE_SUFFIX = ".probe.json"
"""Beside the maps that ``map_store`` made lie their heads, so that they can be made again."""
AREA_COLUMNS = ("class", "km2", "share", "pixels")
CLASS_TITLE, VALUE_TITLE = "Class of every pixel.", "of every pixel; the colours span the values the map was fitted on."
VALUE_STOPS = 9
"""Colours of the ramp of a map of numbers that a style names; between them QGIS mixes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shading:
    """A continuous layer beside a map, shown by a ramp of colours.

    Attributes:
        name: Short name: of the band, and part of file names.
        title: What the values are.
        top: Value that gets the last colour; larger ones get it too.
        ticks: (value, text) of the legend.
        ramp: (share of ``top``, ``#rrggbb``).
    """

    name: str
    title: str
    top: int
    ticks: tuple[tuple[int, str], ...]
    ramp: tuple[tuple[float, str], ...] = RAMP

    @property
    def colours(self) -> tuple[str, ...]:
        """``#rrggbb`` of value 0, 1, ... 254."""
        at = np.minimum(np.arange(255) / self.top, 1)
        known = [(share, [int(text[k : k + 2], 16) for k in (1, 3, 5)]) for share, text in self.ramp]
        shares, colours = [share for share, _ in known], np.array([colour for _, colour in known])
        mixed = np.rint([np.interp(at, shares, colours[:, k]) for k in range(3)]).astype(int).T
        return tuple(f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in mixed.tolist())

    @property
    def legend(self) -> tuple[tuple[str, str], ...]:
        """(text, colour) of the ticks."""
        colours = self.colours
        return tuple((text, colours[value]) for value, text in self.ticks)


DISAGREEMENT = Shading(
    name="instability",
    title="Where overlapping windows see another class: per cent of their weight; empty where fewer than two look",
    top=100,
    ticks=((0, "0 %"), (10, "10 %"), (25, "25 %"), (50, "50 %"), (100, "100 %")),
)
SPREAD = Shading(
    name="spread",
    title="How far the vectors of overlapping windows lie apart, in code steps; empty where fewer than two look",
    top=100,
    ticks=((0, "0 steps"), (10, "1"), (25, "2.5"), (50, "5"), (100, "10 and more")),
)
CONFIDENCE = Shading(
    name="confidence",
    title="How far the probability of the best class is ahead of that of the second, per cent",
    top=100,
    ticks=((0, "0 %"), (25, "25 %"), (50, "50 %"), (75, "75 %"), (100, "100 %")),
    ramp=SURE_RAMP,
)
SHADINGS = (DISAGREEMENT, SPREAD, CONFIDENCE)
"""The further bands of a map that are shown; probabilities of single classes are for machines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """A continuous band beside the classes of a map.

    Attributes:
        name: Short name of the band: ``confidence``, ``p3``.
        title: Its description.
        units: Unit of the values; "" for none.
        layer: (row, col) uint8 of a tile, 255 nodata.
    """

    name: str
    title: str
    units: str
    layer: Layer


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassMap:
    """A map of classes to publish.

    Attributes:
        name: File name part.
        classes: (value, class name, colour).
        tags: Provenance.
        trained: Whether the embeddings come from trained weights.
        layer: (row, col) uint8 classes of a tile, 255 nodata.
        further: The bands after the classes. For one tile ``layer`` is asked first, then these in order.
    """

    name: str
    classes: tuple[tuple[int, str, str], ...]
    tags: tuple[tuple[str, str], ...]
    trained: bool
    layer: Layer
    further: tuple[Beside, ...] = ()

    @property
    def identity(self) -> str:
        """Hash of what the files say beside the pixels."""
        bands = [[b.name, b.title, b.units] for b in self.further]
        return content_hash(["classes", self.name, self.classes, self.tags, self.trained, bands])

    @property
    def style(self) -> str:
        """Its QGIS style."""
        return qml.class_style(self.classes)


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueMap:
    """A map of numbers to publish.

    Attributes:
        name: File name part.
        title: What the numbers are.
        units: Their unit; "" when nobody said.
        valid_range: (least, greatest) number that the map was fitted on: the ends of its colours.
        tags: Provenance.
        trained: Whether the embeddings come from trained weights.
        layer: (row, col) float32 of a tile, NaN nodata.
    """

    name: str
    title: str
    units: str
    valid_range: tuple[float, float]
    tags: tuple[tuple[str, str], ...]
    trained: bool
    layer: Layer

    @property
    def identity(self) -> str:
        """Hash of what the files say beside the pixels."""
        return content_hash(["values", self.name, self.title, self.units, self.valid_range, self.tags, self.trained])

    @property
    def style(self) -> str:
        """Its QGIS style."""
        low, high = self.valid_range
        colours = preview.ramp(VALUE_STOPS - 1)
        stops = [(low + (high - low) * k / (VALUE_STOPS - 1), colour) for k, colour in enumerate(colours)]
        return qml.value_style(stops, units=self.units)


@dataclass(frozen=True, slots=True, kw_only=True)
class MapFiles:
    """The files of one map, in the order in which they were made.

    Attributes:
        cogs: GeoTIFFs, one per 8192 px group.
        virtuals: One virtual raster per zone over them.
        styles: QGIS styles beside both.
        areas: Tables of class areas, JSON and CSV; none for numbers.
        pictures: PNGs.
    """

    cogs: tuple[str, ...] = ()
    virtuals: tuple[str, ...] = ()
    styles: tuple[str, ...] = ()
    areas: tuple[str, ...] = ()
    pictures: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """A layer of a map as colours.

    Attributes:
        layer: "" for the map itself, else the name of its shading.
        name: Heading.
        caption: A sentence.
        rgba: (row, col, 4) uint8, transparent where nodata.
        legend: (text, ``#rrggbb``).
    """

    layer: str
    name: str
    caption: str
    rgba: NDArray[np.uint8] = field(repr=False, compare=False)
    legend: tuple[tuple[str, str], ...]


def publish_map(
    plan: Plan, tiles: Sequence[Tile], made: ClassMap | ValueMap, *, at: Checkpoint = durable.passed
) -> MapFiles:
    """Write the files of a map into ``maps/`` of the output.

    ``NAME_utmZZ_rR_cC.tif`` per 8192 px square of the zone's lattice, R and C its place in squares;
    ``NAME_utmZZ_all.vrt`` over them; ``.qml`` beside both; ``NAME.areas.json`` and ``.csv``; PNGs. Whatever names a
    file is written after it.

    Args:
        plan: What made the store.
        tiles: Everything committed.
        made: The map.
        at: Called after every step that a kill can separate (tests).
    """
    folder = Path(plan.output) / "maps"
    folder.mkdir(parents=True, exist_ok=True)
    by_zone: dict[int, list[Path]] = {}
    for box in ground.groups(plan):
        by_zone.setdefault(box.zone, []).append(_map_cog(folder, box, tiles=tiles, made=made, at=at))
    cogs = [cog for zone in by_zone.values() for cog in zone]
    virtuals = []
    for extent in ground.extents(plan):
        path = folder / f"{made.name}_utm{extent.zone:02d}_all.vrt"
        vrt.write_vrt(path, by_zone[extent.zone], at=at)
        virtuals.append(path)
    styles = [qml.write_style(path, made.style, at=at) for path in (*cogs, *virtuals)]
    tables: tuple[Path, ...] = ()
    if isinstance(made, ClassMap):
        tables = areas.write_areas(folder, made.name, areas.class_areas(cogs, made.classes))
        at("areas")
    pictures = [
        _save_picture(plan, made, extent.zone, picture)
        for extent, path in zip(ground.extents(plan), virtuals, strict=True)
        for picture in rendered(made.name, [path], extent, ground.factor(plan, extent, preview.MAX_SIDE_PX))
    ]
    at("pictures")
    return MapFiles(
        cogs=tuple(map(str, cogs)),
        virtuals=tuple(map(str, virtuals)),
        styles=tuple(map(str, styles)),
        areas=tuple(map(str, tables)),
        pictures=tuple(pictures),
    )


def store_maps(plan: Plan) -> Iterator[ClassMap | ValueMap]:
    """The maps that the run wrote into the store."""
    from pipeline.run.prepare import load_heads  # noqa: PLC0415

    settings = settings_of(plan)
    unsure = {m.name for m in settings.maps if m.instability}
    for head in load_heads(settings, card=plan.model, calibration=plan.calibration):
        beside = layout.instability_layers((head.name,)) if head.name in unsure else ()
        own, *bands = head.layers
        read = {layer.name: partial(_map_layer, plan, layer.name) for layer in (own, *beside, *bands)}
        yield _made(plan, head, beside=beside, read=read)


def kept_maps(plan: Plan) -> Iterator[ClassMap | ValueMap]:
    """The maps that ``map_store`` made: made again from their heads when the store has changed."""
    own = {m.name for m in settings_of(plan).maps}
    for path in sorted((Path(plan.output) / "maps").glob(f"*{PROBE_SUFFIX}")):
        name = path.name.removesuffix(PROBE_SUFFIX)
        if name not in own:
            head, bands = heads.load_kept(str(path))
            yield head_map(plan, MapHead(name=name, head=head, bands=bands))


def head_map(plan: Plan, head: MapHead) -> ClassMap | ValueMap:
    """A map computed from the stored codes, tile by tile; equal to the one a run writes in the same pass.

    It has no instability: the store holds what the windows became, not what each of them saw.
    """
    values = _LastTile(plan, head)
    read = {layer.name: partial(values.of, number) for number, layer in enumerate(head.layers)}
    return _made(plan, head, beside=(), read=read)


def area_tables(files: Sequence[str]) -> tuple[page.Table, ...]:
    """Class areas of maps as tables of the report; several zones are added up.

    Args:
        files: ``Published.areas``; what lies beside them may belong to a map that is no more.
    """
    tables: list[page.Table] = []
    for path in sorted(Path(file) for file in files if file.endswith(".json")):
        found = areas.read_areas(path)
        zones = sorted({area.zone for area in found} - {0})
        rows = tuple((a.name, round(a.km2, 4), f"{a.share:.2%}", a.pixels) for a in found if a.zone == 0)
        note = f"UTM {'zones' if len(zones) > 1 else 'zone'} {', '.join(map(str, zones))}. " if zones else ""
        tables.append(
            page.Table(
                title=f"Areas of map {path.name.removesuffix('.areas.json')}",
                columns=AREA_COLUMNS,
                rows=rows,
                note=f"{note}From every pixel, on the ellipsoid; by zone in {path.parent.name}/{path.name}.",
            )
        )
    return tuple(tables)


def rendered(name: str, paths: Sequence[Path], extent: Box, factor: int) -> tuple[Rendered, ...]:
    """A map and its shadings as colours over ``extent``, averaged down by ``factor``; read square by square.

    Args:
        name: Of the map.
        paths: Its GeoTIFFs, or virtual rasters of them.
        extent: Ground of the pictures, in pixels of the files.
        factor: Divides the edges of ``extent`` and of the files.
    """
    first = paths[0]
    tags = geotiff.tags_of(first)
    if geotiff.CLASSES_TAG not in tags:
        return (_rendered_values(name, paths, extent, factor),)
    classes = geotiff.classes_of(first)
    canvas = np.full((extent.height // factor, extent.width // factor), geotiff.NODATA, np.uint8)
    for box, part in _parts(paths, 1, extent):
        canvas[ground.place(box, extent, factor)] = preview.shrink_classes(part, factor=factor)
    pictures = [
        Rendered(
            layer="",
            name=f"Map {name}",
            caption=CLASS_TITLE,
            rgba=preview.render_classes(canvas, _palette(classes)),
            legend=tuple((title, colour) for _, title, colour in classes),
        )
    ]
    bands = geotiff.layers(first)
    for shading in (shading for shading in SHADINGS if shading.name in bands):
        rgba = np.zeros((*canvas.shape, 4), np.uint8)
        for box, part in _parts(paths, bands.index(shading.name) + 1, extent):
            colours = preview.render_classes(part, shading.colours)
            rgba[ground.place(box, extent, factor)] = preview.shrink_rgba(colours, factor=factor)
        pictures.append(
            Rendered(
                layer=shading.name,
                name=f"{shading.name.capitalize()} of {name}",
                caption=f"{shading.title}.",
                rgba=rgba,
                legend=shading.legend,
            )
        )
    return tuple(pictures)


class _LastTile:
    """The layers of a head, computed once per tile: whoever writes files asks for one after the other."""

    def __init__(self, plan: Plan, head: MapHead) -> None:
        self._plan, self._head = plan, head
        self._tile: Tile | None = None
        self._values: tuple[NDArray[Any], ...] = ()

    def of(self, number: int, tile: Tile) -> NDArray[Any]:
        if tile != self._tile:
            coded = Stored.of(self._plan).coded(tile)
            self._values = self._head.values(coded, self._plan.calibration, coded.valid)
            self._tile = tile
        return self._values[number]


def _made(
    plan: Plan, head: MapHead, *, beside: Sequence[layout.MapLayer], read: Mapping[str, Layer]
) -> ClassMap | ValueMap:
    own, *bands = head.layers
    tags = ground.provenance(plan, probe=head.head.hash)
    if own.fitted_range is not None:
        return ValueMap(
            name=head.name,
            title=own.title,
            units=own.units,
            valid_range=own.fitted_range,
            tags=tags,
            trained=plan.model.trained,
            layer=read[own.name],
        )
    confidence = layout.confidence_of(head.name)
    ordered = (*beside, *sorted(bands, key=lambda band: band.name != confidence))  # the many probabilities last
    return ClassMap(
        name=head.name,
        classes=own.classes,
        tags=tags,
        trained=plan.model.trained,
        layer=read[own.name],
        further=tuple(
            Beside(name=_short(head.name, band.name), title=band.title, units=band.units, layer=read[band.name])
            for band in ordered
        ),
    )


def _short(name: str, layer: str) -> str:
    return SPREAD.name if layer == layout.SPREAD else layer.removeprefix(f"{name}_")


def _map_layer(plan: Plan, name: str, tile: Tile) -> NDArray[Any]:
    return Stored.of(plan).layer(tile, f"map_{name}")


def _map_cog(folder: Path, box: Box, *, tiles: Sequence[Tile], made: ClassMap | ValueMap, at: Checkpoint) -> Path:
    side = ground.GROUP_PX * PIXEL_M // box.res_m
    path = folder / f"{made.name}_utm{box.zone:02d}_r{box.row // side}_c{box.col // side}.tif"
    here = [tile for tile, _, _ in ground.parts(tiles, box)]
    if isinstance(made, ValueMap):
        read = _reader(box, here, [made.layer], dtype=np.float32, nodata=np.nan)
        geotiff.write_values(
            path,
            lambda rows, cols: None if (found := read(rows, cols)) is None else found[0],
            box=box,
            units=made.units,
            title=made.title,
            valid_range=made.valid_range,
            tags=made.tags,
            at=at,
        )
        return path
    layers = [made.layer, *(band.layer for band in made.further)]
    geotiff.write_classes(
        path,
        _reader(box, here, layers, dtype=np.uint8, nodata=geotiff.NODATA),
        box=box,
        colours=tuple((value, colour) for value, _, colour in made.classes),
        class_names=tuple((value, name) for value, name, _ in made.classes),
        tags=(*made.tags, (geotiff.CLASSES_TAG, canonical_json(made.classes))),
        further=tuple(geotiff.Further(name=b.name, title=b.title, units=b.units) for b in made.further),
        predictor=any(b.units == PER_CENT for b in made.further),
        at=at,
    )
    return path


def _reader(box: Box, tiles: Sequence[Tile], layers: Sequence[Layer], *, dtype: Any, nodata: float) -> Read:
    """What a file over ``box`` asks for its squares: every tile once, all layers of it in a row."""

    def read(rows: slice, cols: slice) -> list[NDArray[Any]] | None:
        square = frames.part_of(box, rows, cols)
        found = list(ground.parts(tiles, square))
        if not found:
            return None
        canvases = [np.full(square.shape, nodata, dtype) for _ in layers]
        for tile, whole, part in found:
            cut, where = part.slices_in(whole), part.slices_in(square)
            for canvas, layer in zip(canvases, layers, strict=True):
                canvas[where] = layer(tile)[cut]
        return canvases

    return read


def _rendered_values(name: str, paths: Sequence[Path], extent: Box, factor: int) -> Rendered:
    tags = geotiff.tags_of(paths[0])
    low, high = geotiff.range_of(tags)
    colours = preview.ramp(geotiff.NODATA - 1)
    canvas = np.zeros((extent.height // factor, extent.width // factor, 4), np.uint8)
    for box, part in _parts(paths, 1, extent):
        levels = np.clip((part - low) / (high - low), 0, 1) * (len(colours) - 1)
        codes = np.where(np.isnan(part), geotiff.NODATA, np.rint(np.nan_to_num(levels))).astype(np.uint8)
        rgba = preview.render_classes(codes, colours)
        canvas[ground.place(box, extent, factor)] = preview.shrink_rgba(rgba, factor=factor)
    title, units = tags["title"], tags["units"]
    ticks = [(share, low + share * (high - low)) for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    return Rendered(
        layer="",
        name=f"Map {name}",
        caption=f"{title}{f' in {units}' if units else ''} {VALUE_TITLE}",
        rgba=canvas,
        legend=tuple(
            (f"{value:.4g} {units}".rstrip(), colours[round(share * (len(colours) - 1))]) for share, value in ticks
        ),
    )


def _parts(paths: Sequence[Path], band: int, extent: Box) -> Iterator[tuple[Box, NDArray[Any]]]:
    """The squares of a band of all files, cut to ``extent``."""
    for path in paths:
        for box, values in geotiff.squares(path, band=band):
            part = box.intersect(extent) if box.zone == extent.zone else None
            if part is not None:
                yield part, values[part.slices_in(box)]


def _palette(classes: Sequence[tuple[int, str, str]]) -> list[str]:
    """Colours by value; values without a class get one that no pixel shows."""
    known = {value: colour for value, _, colour in classes}
    return [known.get(value, "#000000") for value in range(max(known, default=-1) + 1)]


def _save_picture(plan: Plan, made: ClassMap | ValueMap, zone: int, picture: Rendered) -> str:
    suffix = f".{picture.layer}" if picture.layer else ""  # no map has a dot
    path = Path(plan.output) / "maps" / f"{made.name}{suffix}_utm{zone:02d}.png"
    what = f"{picture.layer.capitalize()} of map {made.name}" if picture.layer else f"Map {made.name}"
    plain = isinstance(made, ClassMap) and not picture.layer
    preview.save_png(
        str(path),
        picture.rgba,
        title_lines=ground.titles(plan, what if plain else f"{what}: {picture.caption.removesuffix('.')}"),
        legend=picture.legend,
        label=None if made.trained else ground.label(plan),
    )
    return str(path)
