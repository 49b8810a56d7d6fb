"""Quicklooks of a store: embeddings as colours, true colours, how often and how clearly the ground was seen.

GeoTIFF for work and PNG for people, per zone. ``looks`` gives the same pictures to whoever shows them otherwise.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline import codes
from pipeline.run import ground
from pipeline.run.folder import settings_of, store_of
from pipeline.run.stored import Stored
from pipeline.types import BLOCK_PX, COLOUR_M, NO_CLEAR, PIXEL_M, Box, Period, Plan, Reason, Tile
from pipeline.write import contact_sheet, geotiff, preview, store, true_colour
from pipeline.write.place import place_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

log = logging.getLogger(__name__)

QUICKLOOK_PX = 8192
"""Longest side of the GeoTIFFs of quicklooks; larger areas are averaged down."""
SHEET_PX = 420
"""Longest side of one picture of a contact sheet."""
BATCH_BYTES = 512 * 2**20
"""Pictures of periods that are filled at once; with more of them the tiles are read again."""
SAMPLE_PX = 40_000
"""Pixels from which the colours of the quicklook are derived; the basis is then frozen for the store."""
MIN_SAMPLE = 256
"""No picture, and no frozen colours, from fewer pixels than this or than dimensions, whichever is less: a block of a
store of token resolution has 1024 pixels and may have as many dimensions."""
NODATA = 255
"""Of the maps of observations and of the clear share."""
BASIS_SUFFIX = ".basis.json"
"""Beside the store, so that every year and every output that share it have the same colours."""
EMBEDDINGS, TRUE_COLOUR, OBSERVATIONS, CLEAR = "embeddings", "true_colour", "observations", "clear"
"""``Look.kind``."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Look:
    """One picture of everything committed in one zone.

    Attributes:
        name: Unique in its zone, part of file names: ``true_colour_2024-04-01``.
        kind: What it shows: ``EMBEDDINGS``, ``TRUE_COLOUR`` (one per period), ``OBSERVATIONS`` or ``CLEAR`` (one per
            sensor).
        title: A few words.
        caption: One sentence: what the colours mean.
        legend: (text, ``#rrggbb``).
        rgba: (row, col, 4) uint8, transparent where nodata.
        box: Ground of the picture, in its own pixels (``box.res_m`` metres); its shape is that of ``rgba``.
        values: (row, col) uint8 under the colours, ``NODATA`` where none; None for colours without numbers.
        period: Of true colours.
    """

    name: str
    kind: str
    title: str
    caption: str
    legend: tuple[tuple[str, str], ...]
    rgba: NDArray[np.uint8]
    box: Box
    values: NDArray[np.uint8] | None = None
    period: Period | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """What ``publish_looks`` wrote: paths of PNG and COG.

    Attributes:
        quicklooks: Embeddings as colours.
        true_colours: True colours of every period, and a sheet of all.
        observations: How often and how clearly the ground was seen.
    """

    quicklooks: tuple[str, ...] = ()
    true_colours: tuple[str, ...] = ()
    observations: tuple[str, ...] = ()


def publish_looks(plan: Plan, tiles: Sequence[Tile]) -> Files:
    """Write PNG and COG of every look, and a contact sheet of the true colours of each zone.

    Without enough valid pixels there is no picture of embeddings, without its layer in the store none of true colours
    or of the clear share.
    """
    folder = Path(plan.output) / "preview"
    folder.mkdir(parents=True, exist_ok=True)
    made: dict[str, list[str]] = {kind: [] for kind in (EMBEDDINGS, TRUE_COLOUR, OBSERVATIONS, CLEAR)}
    sheets: dict[int, list[tuple[str, NDArray[np.uint8]]]] = {}
    for look in looks(plan, tiles):
        made[look.kind] += _write(plan, folder, look)
        if look.period is not None:
            factor = preview.factor_for(*look.box.shape, max_side_px=SHEET_PX)
            dates = f"{look.period.start:%Y-%m-%d} to {look.period.end:%Y-%m-%d}"
            sheets.setdefault(look.box.zone, []).append((dates, preview.shrink_rgba(look.rgba, factor=factor)))
    for zone, pictures in sheets.items():
        path = folder / f"true_colours_utm{zone:02d}.png"
        titles = ground.titles(plan, "True colours of every period")
        preview.save_png(str(path), contact_sheet.contact_sheet(pictures), title_lines=titles)
        made[TRUE_COLOUR].append(str(path))
    if not sheets:
        log.info("the store has no true colours: no pictures of them")
    return Files(
        quicklooks=tuple(made[EMBEDDINGS]),
        true_colours=tuple(made[TRUE_COLOUR]),
        observations=(*made[OBSERVATIONS], *made[CLEAR]),
    )


def looks(plan: Plan, tiles: Sequence[Tile], *, most_px: int = QUICKLOOK_PX) -> Iterator[Look]:
    """Every picture of what is committed, zone by zone: embeddings, true colours, observations, clear share.

    One after the other, so that few are in memory at once.

    Args:
        plan: Which store and dates.
        tiles: What is committed.
        most_px: Longest side; larger areas are averaged down by a power of two.
    """
    basis = _basis(plan, tiles)
    for extent in ground.extents(plan):
        factor = ground.factor(plan, extent, most_px)
        if basis is not None:
            yield Look(
                name="quicklook",
                kind=EMBEDDINGS,
                title="Embeddings, first three principal components",
                caption="Embeddings: the first three principal components as red, green, blue.",
                legend=(),
                rgba=canvas(plan, extent, tiles=tiles, basis=basis, factor=factor),
                box=ground.coarse(extent, factor),
            )
        names = store.array_names(store_of(plan), extent.zone)
        if true_colour.NAME in names:
            yield from _true_colours(plan, extent, tiles, most_px=most_px)
        yield _observations(plan, extent, tiles, factor=factor)
        if "qa_clear_pct" in names:
            yield from _clear(plan, extent, tiles)


def missing(plan: Plan) -> tuple[str, ...]:
    """What this store cannot show, in sentences for people: layers that it was made without."""
    zones = {extent.zone: store.array_names(store_of(plan), extent.zone) for extent in ground.extents(plan)}
    found = []
    if any(true_colour.NAME not in names for names in zones.values()):
        found.append(
            "no true colours: the store was made without them (by an earlier version, with store.true_colour=false, or "
            "without an optical sensor)"
        )
    if any("qa_clear_pct" not in names for names in zones.values()):
        found.append("no clear share: the store was made by an earlier version")
    return tuple(found)


def basis_of(plan: Plan) -> preview.Basis | None:
    """The frozen colours of the store; None before there is a quicklook.

    What is kept beside the store counts first: it was shown already. Then what the calibration brings.
    """
    text = _kept(plan) or plan.calibration.basis
    return preview.Basis.from_json(text) if text else None


def canvas(plan: Plan, extent: Box, *, tiles: Sequence[Tile], basis: preview.Basis, factor: int) -> NDArray[np.uint8]:
    """(row, col, 4) uint8 colours of the embeddings over ``extent``, averaged down by ``factor``."""
    canvas = np.zeros((extent.height // factor, extent.width // factor, 4), np.uint8)
    held = Stored.of(plan)
    for _, _, part in ground.parts(tiles, extent):
        for strip in _strips(part, BLOCK_PX // plan.grid.token_px):
            colours = preview.render_coded(held.coded(strip), plan.calibration, basis)
            canvas[ground.place(strip, extent, factor)] = preview.shrink_rgba(colours, factor=factor)
    return canvas


def _strips(box: Box, rows: int) -> Iterator[Box]:
    """Pieces of a box, ``rows`` high: floats of a whole tile would not fit into memory."""
    for row in range(box.row, box.row_stop, rows):
        height = min(rows, box.row_stop - row)
        yield Box(zone=box.zone, res_m=box.res_m, row=row, col=box.col, height=height, width=box.width)


def _true_colours(plan: Plan, extent: Box, tiles: Sequence[Tile], *, most_px: int) -> Iterator[Look]:
    whole = extent.cover(COLOUR_M)
    factor = min(preview.factor_for(*whole.shape, max_side_px=most_px), BLOCK_PX * PIXEL_M // COLOUR_M)
    shape = (whole.height // factor, whole.width // factor, 4)
    at_once = max(1, BATCH_BYTES // int(np.prod(shape)))
    held = Stored.of(plan)
    for first in range(0, len(plan.periods), at_once):
        periods = plan.periods[first : first + at_once]
        pictures = np.zeros((len(periods), *shape), np.uint8)
        for _, _, part in ground.parts(tiles, whole):
            colours = held.layer(part, true_colour.NAME)[first : first + at_once]
            for picture, rgb in zip(pictures, colours, strict=True):
                small = preview.shrink_rgba(preview.opaque(rgb), factor=factor)
                picture[ground.place(part, whole, factor)] = small
        for picture, period in zip(pictures, periods, strict=True):
            start, end = f"{period.start:%Y-%m-%d}", f"{period.end:%Y-%m-%d}"
            yield Look(
                name=f"true_colour_{start}",
                kind=TRUE_COLOUR,
                title=f"True colours {start} to {end}",
                caption=f"Composite of the scenes from {start} to {end}, red, green and blue as an eye sees them.",
                legend=(),
                rgba=preview.brightened(picture),
                box=ground.coarse(whole, factor),
                period=period,
            )


def _observations(plan: Plan, extent: Box, tiles: Sequence[Tile], *, factor: int) -> Look:
    held, periods = Stored.of(plan), len(plan.periods)
    values = np.full((extent.height // factor, extent.width // factor), NODATA, np.uint8)
    for _, _, part in ground.parts(tiles, extent):
        reason = held.layer(part, "reason")
        asked = (reason != Reason.NOT_REQUESTED) & (reason != Reason.OTHER_ZONE)
        counts = np.where(asked, np.minimum(held.layer(part, "n_obs"), NODATA - 1), NODATA).astype(np.uint8)
        values[ground.place(part, extent, factor)] = _mean(counts, factor)
    ticks = sorted({round(share * periods / 4) for share in range(5)}) if periods > 6 else range(periods + 1)
    colours = preview.ramp(periods)
    return Look(
        name="observations",
        kind=OBSERVATIONS,
        title="Periods with an observation",
        caption=f"In how many of the {periods} periods any sensor has data of the ground, clouds included.",
        legend=tuple((f"{tick} of {periods}", colours[tick]) for tick in ticks),
        rgba=preview.render_classes(values, colours),
        box=ground.coarse(extent, factor),
        values=values,
    )


def _clear(plan: Plan, extent: Box, tiles: Sequence[Tile]) -> Iterator[Look]:
    """The mean over the periods, per sensor that has a classification of its scenes."""
    held, whole = Stored.of(plan), extent.cover(BLOCK_PX * PIXEL_M)
    sensors = settings_of(plan).inputs.sensors
    values = np.full((len(sensors), *whole.shape), NODATA, np.uint8)
    for _, _, part in ground.parts(tiles, whole):
        found = held.layer(part, "qa_clear_pct").astype(np.float64)
        known = found != NO_CLEAR
        count = known.sum(axis=1)
        mean = np.rint(np.where(known, found, 0).sum(axis=1) / np.maximum(count, 1))
        values[:, *part.slices_in(whole)] = np.where(count > 0, mean, NODATA)
    colours = preview.ramp(100)
    for sensor, layer in zip(sensors, values, strict=True):
        if (layer != NODATA).any():
            yield Look(
                name=f"clear_{sensor}",
                kind=CLEAR,
                title=f"Clear share, {sensor}",
                caption=f"Part of each block of 2.56 km that the {sensor} scenes of the composites classify as clear, "
                "mean over the periods.",
                legend=tuple((f"{value} %", colours[value]) for value in (0, 25, 50, 75, 100)),
                rgba=preview.render_classes(layer, colours),
                box=whole,
                values=layer,
            )


def _mean(values: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Rounded means of squares of ``factor`` pixels, of what is not nodata."""
    if factor == 1:
        return values
    rows, cols = (n // factor for n in values.shape)
    squares = values.reshape(rows, factor, cols, factor)
    known = squares != NODATA
    count = known.sum(axis=(1, 3))
    mean = np.where(known, squares, 0).sum(axis=(1, 3), dtype=np.int64) / np.maximum(count, 1)
    return np.where(count > 0, np.rint(mean), NODATA).astype(np.uint8)


def _write(plan: Plan, folder: Path, look: Look) -> tuple[str, str]:
    stem = f"{look.name}_utm{look.box.zone:02d}"
    png, cog = folder / f"{stem}.png", folder / f"{stem}.tif"
    further = preview.factor_for(*look.box.shape)
    untrained = ground.label(plan) if look.kind == EMBEDDINGS else None
    preview.save_png(
        str(png),
        preview.shrink_rgba(look.rgba, factor=further),
        title_lines=ground.titles(plan, look.title),
        legend=look.legend,
        label=untrained,
    )
    tags = ground.provenance(plan, shows=look.title)
    if look.values is None:
        bands = np.moveaxis(look.rgba, -1, 0)
        geotiff.write_cog(cog, bands, box=look.box, nodata=None, overview="average", tags=tags)
    else:
        colours = preview.ramp(100 if look.kind == CLEAR else len(plan.periods))
        geotiff.write_cog(
            cog, look.values, box=look.box, nodata=NODATA, colours=tuple(enumerate(colours)), overview="mode", tags=tags
        )
    return str(png), str(cog)


def _basis(plan: Plan, tiles: Sequence[Tile]) -> preview.Basis | None:
    """The frozen colours of the store, kept beside it from now on; made from a regular sample where nobody has any."""
    known = basis_of(plan)
    if known is not None:
        _keep(plan, known.to_json())
        return known
    samples = list(_sample(plan, tiles))
    if sum(len(s) for s in samples) < min(plan.calibration.bands, MIN_SAMPLE):
        return None
    return preview.Basis.from_json(_keep(plan, preview.pca_basis(np.concatenate(samples)).to_json()))


def _kept(plan: Plan) -> str | None:
    """The text of the colours that are kept beside the store, or where earlier versions kept them."""
    data = place_of(store_of(plan)).sibling(BASIS_SUFFIX).read()
    old = Path(plan.output) / "preview" / "basis.json"
    if data is None and old.is_file():
        data = old.read_bytes()
    return None if data is None else data.decode()


def _keep(plan: Plan, text: str) -> str:
    """Keep colours beside the store unless another run was first; what is kept."""
    place = place_of(store_of(plan)).sibling(BASIS_SUFFIX)
    if place.read() is None:
        place.create("", text.encode())
    return (place.read() or text.encode()).decode()


def _sample(plan: Plan, tiles: Sequence[Tile]) -> Iterator[NDArray[np.float32]]:
    """(n, band) vectors of valid pixels, tile by tile."""
    per_tile = max(1, SAMPLE_PX // max(1, len(tiles)))
    step = max(1, round(plan.grid.tile_px // plan.grid.token_px / per_tile**0.5))
    every = max(1, len(tiles) * plan.calibration.bands // (SAMPLE_PX * 4))
    held = Stored.of(plan)
    for tile in tiles[::every]:
        whole = held.coded(tile)
        scale = None if whole.pixel_scale is None else whole.pixel_scale[::step, ::step].reshape(-1)
        thin = whole.codes[:, ::step, ::step].reshape(len(whole.codes), -1)
        coded = codes.Coded(codes=thin, pixel_scale=scale)
        yield codes.decode(coded, plan.calibration)[:, coded.valid].T
