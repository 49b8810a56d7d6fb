"""Quicklooks and class maps of a store: GeoTIFF for work, PNG for people, plain pictures for the report page.

Reads the store tile by tile and changes none of it. Everything is drawn in pixels of the store, 10 m or tokens. When
they are made again is ``publish``'s business.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.maps import probe as probes
from pipeline.run.folder import credit_of, settings_of, store_path
from pipeline.types import BLOCK_PX, NODATA_CODE, PIXEL_M, Box, Plan, Receipt, Tile, canonical_json
from pipeline.write import durable, geotiff, layout, page, preview, store
from pipeline.write.commit import Commits
from pipeline.write.layout import union

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

GROUP_PX = 8192
"""Side of the ground square of one map GeoTIFF, 10 m pixels, anchored at the zone origin."""
QUICKLOOK_PX = 8192
"""Longest side of the quicklook GeoTIFF; larger areas are averaged down."""
SAMPLE_PX = 40_000
"""Pixels from which the colours of the quicklook are derived; the basis is then frozen for the store."""
MIN_SAMPLE = 256
"""No picture, and no frozen colours, from fewer pixels than this or than dimensions, whichever is less: a block of a
store of token resolution has 1024 pixels and may have as many dimensions."""
PAGE_PX = 1400
"""Longest side of the pictures inside the report page."""
RAMP = (
    (0.0, "#f4f1ea"), (0.1, "#fbdc8c"), (0.25, "#f59b4a"), (0.5, "#d6455b"), (1.0, "#5a1a5e")
)  # fmt: skip
"""Colours of a continuous layer, light to dark, by share of its range; between them mixed. Low values, where most
pixels lie, get most of the colours."""
PROBE_SUFFIX = ".probe.json"
"""Beside the maps that ``map_store`` made lie their probes, so that they can be made again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shading:
    """A continuous layer beside a map, shown by ``RAMP``.

    Attributes:
        name: Short name, part of file names.
        band: Of the COG of the map.
        title: What the values are.
        top: Value that gets the last colour; larger ones get it too.
        ticks: (value, text) of the legend.
    """

    name: str
    band: int
    title: str
    top: int
    ticks: tuple[tuple[int, str], ...]

    @property
    def colours(self) -> tuple[str, ...]:
        """``#rrggbb`` of value 0, 1, ... 254."""
        at = np.minimum(np.arange(255) / self.top, 1)
        known = [(share, [int(text[k : k + 2], 16) for k in (1, 3, 5)]) for share, text in RAMP]
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
    band=2,
    title="Where overlapping windows see another class: per cent of their weight; empty where fewer than two look",
    top=100,
    ticks=((0, "0 %"), (10, "10 %"), (25, "25 %"), (50, "50 %"), (100, "100 %")),
)
SPREAD = Shading(
    name="spread",
    band=3,
    title="How far the vectors of overlapping windows lie apart, in code steps; empty where fewer than two look",
    top=100,
    ticks=((0, "0 steps"), (10, "1"), (25, "2.5"), (50, "5"), (100, "10 and more")),
)
SHADINGS = (DISAGREEMENT, SPREAD)
"""The further bands of a map with its instability, in their order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassMap:
    """A map to publish.

    Attributes:
        name: File name part.
        classes: (value, class name, colour).
        tags: Provenance.
        trained: Whether the embeddings come from trained weights.
        layer: (row, col) uint8 classes of a tile, 255 nodata.
        further: (description, layer) of the bands of ``SHADINGS``; none for a map without its instability.
    """

    name: str
    classes: tuple[tuple[int, str, str], ...]
    tags: tuple[tuple[str, str], ...]
    trained: bool
    layer: Callable[[Tile], NDArray[np.uint8]]
    further: tuple[tuple[str, Callable[[Tile], NDArray[np.uint8]]], ...] = ()


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


def ground(plan: Plan) -> tuple[Box, ...]:
    """Per zone the smallest box of whole blocks around everything committed, in pixels of the store.

    It is what pictures and maps show.
    """
    boxes: dict[int, Box] = {}
    for tile, receipt in committed(plan):
        for row, col in receipt.blocks:
            box = plan.grid.on_store(tile.block_box(row, col))
            boxes[tile.zone] = union(boxes[tile.zone], box) if tile.zone in boxes else box
    return tuple(boxes[zone] for zone in sorted(boxes))


def publish_map(plan: Plan, tiles: Sequence[Tile], made: ClassMap) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Write a class map: one COG per 8192 px group and zone, one PNG per zone and shown layer.

    Returns:
        (COG paths, PNG paths).
    """
    folder = Path(plan.output) / "maps"
    folder.mkdir(parents=True, exist_ok=True)
    cogs = [str(_map_cog(folder, box, tiles=tiles, made=made)) for box in _groups(plan)]
    pngs = [_map_png(plan, box, tiles=tiles, made=made) for box in ground(plan)]
    for shading, (_, layer) in zip(SHADINGS, made.further, strict=False):
        pngs += [_shading_png(plan, box, tiles, made=made, shading=shading, layer=layer) for box in ground(plan)]
    return tuple(cogs), tuple(pngs)


def store_maps(plan: Plan) -> Iterator[ClassMap]:
    """The maps that the run wrote into the store."""
    from pipeline.run.prepare import load_heads  # noqa: PLC0415

    settings = settings_of(plan)
    unsure = {m.name for m in settings.maps if m.instability}
    for name, probe in load_heads(settings, card=plan.model, calibration=plan.calibration):
        further = layout.instability_layers((name,)) if name in unsure else ()
        yield replace(
            probe_map(plan, name, probe),
            layer=partial(_map_layer, plan, name),
            further=tuple((layer.title, partial(_map_layer, plan, layer.name)) for layer in further),
        )


def kept_maps(plan: Plan) -> Iterator[ClassMap]:
    """The maps that ``map_store`` made: made again from their probes when the store has changed."""
    own = {m.name for m in settings_of(plan).maps}
    for path in sorted((Path(plan.output) / "maps").glob(f"*{PROBE_SUFFIX}")):
        name = path.name.removesuffix(PROBE_SUFFIX)
        if name not in own:
            yield probe_map(plan, name, probes.load(str(path)))


def probe_map(plan: Plan, name: str, probe: probes.Probe) -> ClassMap:
    """A map computed from the stored codes, tile by tile; equal to the one a run writes in the same pass.

    It has no instability: the store holds what the windows became, not what each of them saw.
    """
    return ClassMap(
        name=name,
        classes=tuple(zip(probe.values, probe.names, probe.colours, strict=True)),
        tags=provenance(plan, probe=probe.hash),
        trained=plan.model.trained,
        layer=partial(_classified, plan, probe),
    )


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
        "source": credit_of(plan),
    }
    return (("EARTHPRESS_PROVENANCE", canonical_json(facts | extra)), ("TIFFTAG_SOFTWARE", "earthpress"))


def quicklooks(plan: Plan, tiles: Sequence[Tile]) -> tuple[str, ...]:
    """Write PNG and GeoTIFF of the embeddings' first three components, per zone; paths, none without valid pixels."""
    folder = Path(plan.output) / "preview"
    folder.mkdir(parents=True, exist_ok=True)
    basis = _basis(plan, folder / "basis.json", tiles)
    if basis is None:
        return ()
    made: list[str] = []
    for extent in ground(plan):
        factor = _factor(plan, extent, QUICKLOOK_PX)
        canvas = _canvas(plan, extent, tiles=tiles, basis=basis, factor=factor)
        made += _quicklook_files(plan, folder, extent, canvas=canvas, factor=factor)
    return tuple(made)


def page_pictures(plan: Plan, maps: Sequence[str]) -> tuple[page.Picture, ...]:
    """Quicklook and class maps over the same ground, one zone after the other, without frame."""
    places = [tile for tile, _ in committed(plan)]
    pictures: list[page.Picture] = []
    basis = basis_of(plan)
    for extent in ground(plan):
        factor = _factor(plan, extent, PAGE_PX)
        if basis is not None:
            canvas = _canvas(plan, extent, tiles=places, basis=basis, factor=factor)
            caption = "Embeddings: the first three principal components as red, green, blue."
            pictures.append(page.Picture(name="Quicklook", png=preview.png_bytes(canvas), caption=caption))
        files = [Path(path) for path in maps if f"_utm{extent.zone:02d}_" in path]
        for name in sorted({path.name.split("_utm")[0] for path in files}):
            same = [path for path in files if path.name.split("_utm")[0] == name]
            pictures.append(_map_picture(name, same, extent, factor))
            shown = (_shading_picture(name, same, extent, factor, shading=shading) for shading in SHADINGS)
            pictures += [picture for picture in shown if picture is not None]
    return tuple(pictures)


def basis_of(plan: Plan) -> preview.Basis | None:
    """The frozen colours of the store; None before there is a quicklook."""
    path = Path(plan.output) / "preview" / "basis.json"
    return preview.Basis.from_json(path.read_text(encoding="utf-8")) if path.is_file() else None


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


def _shading_picture(
    name: str, paths: Sequence[Path], extent: Box, factor: int, *, shading: Shading
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
            canvas[_place(part, extent, factor)] = preview.shrink_rgba(colours, factor=factor)
    if not found:
        return None
    return page.Picture(
        name=f"{shading.name.capitalize()} of {name}",
        png=preview.png_bytes(canvas),
        caption=f"{shading.title}.",
        legend=shading.legend,
    )


def _classified(plan: Plan, probe: probes.Probe, tile: Tile) -> NDArray[np.uint8]:
    codes, _, _ = store.read_tile(store_path(plan.output), tile)
    return probe.classify(codes, np.asarray(plan.calibration.scale, np.float32), codes[0] != NODATA_CODE)


def _map_layer(plan: Plan, name: str, tile: Tile) -> NDArray[np.uint8]:
    return store.read_map(store_path(plan.output), tile, name)


def _label(plan: Plan) -> str | None:
    return None if plan.model.trained else "UNTRAINED random weights: for demonstration only"


def _titles(plan: Plan, what: str) -> tuple[str, ...]:
    span = f"{plan.periods[0].start:%Y-%m-%d} to {plan.periods[-1].end:%Y-%m-%d}"
    return (what, f"{plan.area.km2:,.1f} km2, {span}, OlmoEarth {plan.model.version} {plan.model.size}")


def _canvas(plan: Plan, extent: Box, *, tiles: Sequence[Tile], basis: preview.Basis, factor: int) -> NDArray[np.uint8]:
    scale = np.asarray(plan.calibration.scale, np.float32)
    canvas = np.zeros((extent.height // factor, extent.width // factor, 4), np.uint8)
    for tile, box, part in _parts(tiles, extent):
        codes = store.read_tile(store_path(plan.output), tile)[0][:, *part.slices_in(box)]
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
    if sum(len(s) for s in samples) < min(plan.model.dims, MIN_SAMPLE):
        return None
    basis = preview.pca_basis(np.concatenate(samples) * scale)
    durable.replace(path, basis.to_json().encode())
    return basis


def _sample(plan: Plan, tiles: Sequence[Tile]) -> Iterator[NDArray[np.float32]]:
    per_tile = max(1, SAMPLE_PX // max(1, len(tiles)))
    step = max(1, round(plan.grid.tile_px // plan.grid.token_px / per_tile**0.5))
    every = max(1, len(tiles) * plan.model.dims // (SAMPLE_PX * 4))
    for tile in tiles[::every]:
        codes, _, _ = store.read_tile(store_path(plan.output), tile)
        thin = codes[:, ::step, ::step].reshape(codes.shape[0], -1)
        yield thin[:, thin[0] != NODATA_CODE].T.astype(np.float32)


def _map_cog(folder: Path, box: Box, *, tiles: Sequence[Tile], made: ClassMap) -> Path:
    side = GROUP_PX * PIXEL_M // box.res_m
    path = folder / f"{made.name}_utm{box.zone:02d}_r{box.row // side}_c{box.col // side}.tif"
    geotiff.write_cog(
        path,
        _mosaic(box, tiles=tiles, layer=made.layer, factor=1),
        box=box,
        nodata=255,
        colours=tuple((value, colour) for value, _, colour in made.classes),
        class_names=tuple((value, name) for value, name, _ in made.classes),
        overview="mode",
        tags=(*made.tags, (geotiff.CLASSES_TAG, canonical_json(made.classes))),
        further=tuple((title, _mosaic(box, tiles=tiles, layer=layer, factor=1)) for title, layer in made.further),
    )
    return path


def _map_png(plan: Plan, extent: Box, *, tiles: Sequence[Tile], made: ClassMap) -> str:
    path = Path(plan.output) / "maps" / f"{made.name}_utm{extent.zone:02d}.png"
    factor = _factor(plan, extent, preview.MAX_SIDE_PX)
    classes = _mosaic(extent, tiles=tiles, layer=made.layer, factor=factor)
    preview.save_png(
        str(path),
        preview.render_classes(classes, [colour for _, _, colour in made.classes]),
        title_lines=_titles(plan, f"Map {made.name}"),
        legend=[(name, colour) for _, name, colour in made.classes],
        label=None if made.trained else _label(plan),
    )
    return str(path)


def _shading_png(
    plan: Plan,
    extent: Box,
    tiles: Sequence[Tile],
    *,
    made: ClassMap,
    shading: Shading,
    layer: Callable[[Tile], NDArray[np.uint8]],
) -> str:
    path = Path(plan.output) / "maps" / f"{made.name}.{shading.name}_utm{extent.zone:02d}.png"  # no map has a dot
    factor = _factor(plan, extent, preview.MAX_SIDE_PX)
    canvas = np.zeros((extent.height // factor, extent.width // factor, 4), np.uint8)
    for tile, whole, part in _parts(tiles, extent):
        colours = preview.render_classes(layer(tile)[part.slices_in(whole)], shading.colours)
        canvas[_place(part, extent, factor)] = preview.shrink_rgba(colours, factor=factor)
    preview.save_png(
        str(path),
        canvas,
        title_lines=_titles(plan, f"{shading.name.capitalize()} of map {made.name}: {shading.title}"),
        legend=shading.legend,
        label=None if made.trained else _label(plan),
    )
    return str(path)


def _mosaic(
    box: Box, *, tiles: Sequence[Tile], layer: Callable[[Tile], NDArray[np.uint8]], factor: int
) -> NDArray[np.uint8]:
    canvas = np.full((box.height // factor, box.width // factor), 255, np.uint8)
    for tile, whole, part in _parts(tiles, box):
        classes = layer(tile)[part.slices_in(whole)]
        canvas[_place(part, box, factor)] = preview.shrink_classes(classes, factor=factor)
    return canvas


def _parts(tiles: Sequence[Tile], box: Box) -> Iterator[tuple[Tile, Box, Box]]:
    """The tiles that touch ``box``, each with its own box and the part inside, in the pixels of ``box``."""
    for tile in tiles:
        whole = tile.box.cover(box.res_m)
        part = box.intersect(whole) if tile.zone == box.zone else None
        if part is not None:
            yield tile, whole, part


def _factor(plan: Plan, box: Box, most_px: int) -> int:
    """How much a picture over ``box`` is averaged down; at most a block, so that blocks shrink one by one."""
    return min(preview.factor_for(box.height, box.width, max_side_px=most_px), BLOCK_PX // plan.grid.token_px)


def _place(box: Box, outer: Box, factor: int) -> tuple[slice, slice]:
    rows, cols = box.slices_in(outer)
    return (
        slice(rows.start // factor, rows.stop // factor),
        slice(cols.start // factor, cols.stop // factor),
    )


def _coarse(box: Box, factor: int) -> Box:
    return Box(
        zone=box.zone,
        res_m=box.res_m * factor,
        row=box.row // factor,
        col=box.col // factor,
        height=box.height // factor,
        width=box.width // factor,
    )


def _groups(plan: Plan) -> Iterator[Box]:
    """The part of what is committed in each 8192 px ground square that holds a committed tile."""
    tiles = [tile for tile, _ in committed(plan)]
    side = GROUP_PX // plan.grid.token_px
    for extent in ground(plan):
        for row in range(extent.row // side, -(-extent.row_stop // side)):
            for col in range(extent.col // side, -(-extent.col_stop // side)):
                square = replace(extent, row=row * side, col=col * side, height=side, width=side)
                part = extent.intersect(square)
                if part is not None and any(True for _ in _parts(tiles, part)):
                    yield part
