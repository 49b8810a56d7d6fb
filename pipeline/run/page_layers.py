"""The pictures on the map of the report page, made from the files that were published.

Reads GeoTIFFs at their overviews and never the store, so that the page of a country is made in seconds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.run import page_scale, page_view
from pipeline.write import mercator, page, page_map, preview, shrunk

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from numpy.typing import NDArray

    from pipeline.run.published import Published
    from pipeline.types import Plan


PAGE_PX = 1400
"""Longest side of the pictures inside the report page."""
SERIES_PX = 700
"""The same of a step of a series: a year of months then takes as much of the page as three other pictures."""
NODATA = 255
"""Of classes and of bands of per cents."""
_FILE = re.compile(r"(?P<name>.+)_utm(?P<zone>\d\d)(_r-?\d+_c-?\d+)?\.tif")


@dataclass(slots=True, kw_only=True)
class _Sheets:
    """Web Mercator sheets of the zones; the way to each is computed once for all layers on the same pixels."""

    reference_lon: float
    ways: dict[tuple[mercator.Ground, int], mercator.Warp] = field(default_factory=dict)

    def way(self, place: mercator.Ground, most_px: int) -> mercator.Warp:
        key = (place, most_px)
        if key not in self.ways:
            self.ways[key] = mercator.warp(place, most_px=most_px, reference_lon=self.reference_lon)
        return self.ways[key]


def pictures(plan: Plan, made: Published) -> tuple[page.Picture, ...]:
    """Everything that was published and lies on the ground: backgrounds first, then maps, then what was seen."""
    sheets = _Sheets(reference_lon=page_view.reference_lon(plan))
    return (
        *_quicklooks(made.quicklooks, sheets),
        *_true_colours(plan, made.true_colours, sheets),
        *_maps(made.maps, sheets),
        *_seen(plan, made.observations, sheets),
    )


def _quicklooks(paths: Sequence[str], sheets: _Sheets) -> Iterator[page.Picture]:
    for _, path in _named(paths):
        rgba, place = _colours(path, PAGE_PX)
        yield _picture(
            sheets.way(place, PAGE_PX),
            place,
            rgba,
            name="Embeddings",
            kind="base",
            caption="The first three principal components of the embeddings as red, green, blue: equal colours are "
            "similar vectors. The colours themselves mean nothing.",
        )


def _true_colours(plan: Plan, paths: Sequence[str], sheets: _Sheets) -> Iterator[page.Picture]:
    for period in plan.periods:
        for name, path in _named(paths):
            if not name.endswith(f"{period.start:%Y-%m-%d}"):
                continue
            rgba, place = _colours(path, SERIES_PX)
            yield _picture(
                sheets.way(place, SERIES_PX),
                place,
                rgba,
                name="True colour",
                kind="period",
                step=f"{period.start:%Y-%m-%d} to {period.end:%Y-%m-%d}",
                caption="What the model was given of these dates, as the eye would see it.",
            )


def _maps(paths: Sequence[str], sheets: _Sheets) -> Iterator[page.Picture]:
    groups: dict[tuple[str, int], list[tuple[Path, shrunk.Described]]] = {}
    for name, path in _named(paths):
        found = shrunk.describe(path)
        groups.setdefault((name, found.ground.zone), []).append((path, found))
    for (name, _), files in sorted(groups.items()):
        first = files[0][1]
        place, factor = _common([found.ground for _, found in files], PAGE_PX)
        way = sheets.way(place, PAGE_PX)
        for band in first.bands:
            if first.classes and band.number == 1:
                yield _class_picture(name, files, way, place, factor=factor)
            elif not first.classes or page_scale.shading_of(band) is not None:
                yield _number_picture(name, files, band, way, place, factor=factor)


def _class_picture(
    name: str,
    files: Sequence[tuple[Path, shrunk.Described]],
    way: mercator.Warp,
    place: mercator.Ground,
    *,
    factor: int,
) -> page.Picture:
    canvas = np.full((place.height, place.width), NODATA, np.uint8)
    for path, found in files:
        part = shrunk.read(path, 1, factor=factor, how="mode")
        canvas[_place(found.ground, place, part.shape)] = part
    classes = files[0][1].classes
    table = np.zeros((256, 4), np.uint8)
    for value, _, colour in classes:
        table[value] = (*page_scale.rgb(colour), 255)
    return page.Picture(
        name=f"Map {name}",
        png=page_map.small_png(table[way.nearest(canvas, fill=NODATA)]),
        caption="Class of every pixel; where pixels are averaged down, the commonest one.",
        legend=tuple((title, colour) for _, title, colour in classes),
        kind="class",
        bounds=way.bounds,
        pixel_m=place.pixel_m,
    )


def _number_picture(
    name: str,
    files: Sequence[tuple[Path, shrunk.Described]],
    band: shrunk.Band,
    way: mercator.Warp,
    place: mercator.Ground,
    *,
    factor: int,
) -> page.Picture:
    canvas = np.full((place.height, place.width), np.nan, np.float32)
    for path, found in files:
        part = _floats(shrunk.read(path, band.number, factor=factor, how="average"))
        canvas[_place(found.ground, place, part.shape)] = part
    shading = page_scale.shading_of(band)
    if shading is not None:
        title, scale = f"{shading.name.capitalize()} of {name}", page_scale.shaded(shading)
    else:
        title, scale = f"Map {name}", page_scale.spread(band, canvas)
    caption = f"{band.title[:1].upper()}{band.title[1:]}." if band.title else ""
    return _value_picture(way, place, canvas, scale=scale, name=title, caption=caption)


def _seen(plan: Plan, paths: Sequence[str], sheets: _Sheets) -> Iterator[page.Picture]:
    periods = len(plan.periods)
    for name, path in sorted(_named(paths)):
        found = shrunk.describe(path)
        place, factor = _common([found.ground], PAGE_PX)
        values = _floats(shrunk.read(path, 1, factor=factor, how="average"))
        if name == "observations":
            title, top, unit = "Periods seen", float(periods), f"of {periods} periods"
            caption = f"In how many of the {periods} periods any sensor has data of the ground, clouds included."
        else:
            title, top, unit = f"Clear share, {name.removeprefix('clear_')}", 100.0, "%"
            caption = "Part of each block of 2.56 km that the scenes used classify as clear, mean over dates."
        scale = page_scale.Scale(low=0.0, high=top, ticks=page_scale.viridis(0.0, top), unit=unit)
        way = sheets.way(place, PAGE_PX)
        yield _value_picture(way, place, values, scale=scale, name=title, caption=caption)


def _value_picture(
    way: mercator.Warp,
    place: mercator.Ground,
    values: NDArray[np.float32],
    *,
    scale: page_scale.Scale,
    name: str,
    caption: str,
) -> page.Picture:
    rgba = scale.rgba(values)
    # The nearest pixel and no mixture: every colour on the page is then a value of the scale.
    index = np.arange(rgba.shape[0] * rgba.shape[1], dtype=np.int64).reshape(rgba.shape[:2])
    shown = np.concatenate([rgba.reshape(-1, 4), np.zeros((1, 4), np.uint8)])[way.nearest(index, fill=-1)]
    ramp = tuple((round(value * scale.times, 6), colour) for value, colour in scale.ticks)
    texts = scale.texts or tuple(f"{value:g}" for value, _ in ramp)
    return page.Picture(
        name=name,
        png=page_map.small_png(shown),
        caption=caption,
        legend=tuple((text, colour) for text, (_, colour) in zip(texts, ramp, strict=True)),
        kind="ramp",
        bounds=way.bounds,
        ramp=ramp,
        unit=scale.unit,
        pixel_m=place.pixel_m,
    )


def _picture(way: mercator.Warp, place: mercator.Ground, rgba: NDArray[np.uint8], **fields: Any) -> page.Picture:
    png = page_map.small_png(way.colours(rgba))
    return page.Picture(png=png, bounds=way.bounds, pixel_m=place.pixel_m, **fields)


def _colours(path: Path, most_px: int) -> tuple[NDArray[np.uint8], mercator.Ground]:
    place, factor = _common([shrunk.describe(path).ground], most_px)
    return shrunk.read_rgba(path, factor=factor), place


def _common(grounds: Sequence[mercator.Ground], most_px: int) -> tuple[mercator.Ground, int]:
    """The ground around all of one zone, averaged down by the smallest factor that makes it fit."""
    first = grounds[0]
    west, north = min(g.west_m for g in grounds), max(g.north_m for g in grounds)
    east = max(g.west_m + g.width * g.pixel_m for g in grounds)
    south = min(g.north_m - g.height * g.pixel_m for g in grounds)
    height, width = round((north - south) / first.pixel_m), round((east - west) / first.pixel_m)
    factor = preview.factor_for(height, width, max_side_px=most_px)
    whole = mercator.Ground(
        zone=first.zone,
        west_m=west,
        north_m=north,
        pixel_m=first.pixel_m * factor,
        height=max(1, height // factor),
        width=max(1, width // factor),
    )
    return whole, factor


def _place(part: mercator.Ground, whole: mercator.Ground, shape: tuple[int, ...]) -> tuple[slice, slice]:
    """Where the small picture of one file lies in that of all; files are cut at blocks, which the factor divides."""
    row = round((whole.north_m - part.north_m) / whole.pixel_m)
    col = round((part.west_m - whole.west_m) / whole.pixel_m)
    return slice(row, row + shape[0]), slice(col, col + shape[1])


def _named(paths: Sequence[str]) -> list[tuple[str, Path]]:
    """(layer name, path) of the GeoTIFFs of zones among ``paths``."""
    found = [(_FILE.fullmatch(Path(path).name), Path(path)) for path in paths]
    return [(match["name"], path) for match, path in found if match is not None]


def _floats(values: NDArray[Any]) -> NDArray[np.float32]:
    if values.dtype == np.uint8:
        return np.where(values == NODATA, np.float32(np.nan), values.astype(np.float32))
    return values.astype(np.float32)
