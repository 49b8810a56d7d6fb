"""Class maps of a store: GeoTIFF for work, PNG for people.

Reads the store tile by tile and changes none of it. When they are made again is ``publish``'s business.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.maps import probe as probes
from pipeline.run import ground
from pipeline.run.folder import settings_of
from pipeline.run.stored import Stored
from pipeline.types import NODATA_CODE, PIXEL_M, Box, Plan, Tile, canonical_json
from pipeline.write import geotiff, layout, preview

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray


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


def publish_map(plan: Plan, tiles: Sequence[Tile], made: ClassMap) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Write a class map: one COG per 8192 px group and zone, one PNG per zone and shown layer.

    Returns:
        (COG paths, PNG paths).
    """
    folder = Path(plan.output) / "maps"
    folder.mkdir(parents=True, exist_ok=True)
    cogs = [str(_map_cog(folder, box, tiles=tiles, made=made)) for box in ground.groups(plan)]
    pngs = [_map_png(plan, box, tiles=tiles, made=made) for box in ground.extents(plan)]
    for shading, (_, layer) in zip(SHADINGS, made.further, strict=False):
        pngs += [
            _shading_png(plan, box, tiles, made=made, shading=shading, layer=layer) for box in ground.extents(plan)
        ]
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
        tags=ground.provenance(plan, probe=probe.hash),
        trained=plan.model.trained,
        layer=partial(_classified, plan, probe),
    )


def _classified(plan: Plan, probe: probes.Probe, tile: Tile) -> NDArray[np.uint8]:
    codes = Stored.of(plan).coded(tile).codes
    return probe.classify(codes, np.asarray(plan.calibration.scale, np.float32), codes[0] != NODATA_CODE)


def _map_layer(plan: Plan, name: str, tile: Tile) -> NDArray[np.uint8]:
    return Stored.of(plan).layer(tile, f"map_{name}")


def _map_cog(folder: Path, box: Box, *, tiles: Sequence[Tile], made: ClassMap) -> Path:
    side = ground.GROUP_PX * PIXEL_M // box.res_m
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
    factor = ground.factor(plan, extent, preview.MAX_SIDE_PX)
    classes = _mosaic(extent, tiles=tiles, layer=made.layer, factor=factor)
    preview.save_png(
        str(path),
        preview.render_classes(classes, [colour for _, _, colour in made.classes]),
        title_lines=ground.titles(plan, f"Map {made.name}"),
        legend=[(name, colour) for _, name, colour in made.classes],
        label=None if made.trained else ground.label(plan),
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
    factor = ground.factor(plan, extent, preview.MAX_SIDE_PX)
    canvas = np.zeros((extent.height // factor, extent.width // factor, 4), np.uint8)
    for tile, whole, part in ground.parts(tiles, extent):
        colours = preview.render_classes(layer(tile)[part.slices_in(whole)], shading.colours)
        canvas[ground.place(part, extent, factor)] = preview.shrink_rgba(colours, factor=factor)
    preview.save_png(
        str(path),
        canvas,
        title_lines=ground.titles(plan, f"{shading.name.capitalize()} of map {made.name}: {shading.title}"),
        legend=shading.legend,
        label=None if made.trained else ground.label(plan),
    )
    return str(path)


def _mosaic(
    box: Box, *, tiles: Sequence[Tile], layer: Callable[[Tile], NDArray[np.uint8]], factor: int
) -> NDArray[np.uint8]:
    canvas = np.full((box.height // factor, box.width // factor), 255, np.uint8)
    for tile, whole, part in ground.parts(tiles, box):
        classes = layer(tile)[part.slices_in(whole)]
        canvas[ground.place(part, box, factor)] = preview.shrink_classes(classes, factor=factor)
    return canvas
