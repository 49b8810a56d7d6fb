"""What ``serve`` shows: layers of files and of stores that give map tiles and the values at a place.

Tiles are 256 px of Web Mercator, numbered as every web map does (z, x, y from the north-west). GeoTIFFs are read by
rio-tiler. A store is read by windows: every pixel of a tile takes the vector, class or colour under its centre; zooms
at which a tile would hold too many vectors come from the quicklook GeoTIFF. Reads only, and knows no HTTP.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pipeline.errors import InvalidInputError
from pipeline.types import Box
from pipeline.write import geotiff, preview, store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

TILE_PX = 256
MAX_ZOOM = 24
"""Deeper tiles are smaller than a metre."""
LEAST_MAX_ZOOM = 16
"""Of coarse layers too: viewers enlarge the tiles of the last zoom, and one that is enlarged 100 times is a blur."""
WINDOW_BYTES = 64 * 2**20
"""What a tile may read of a store (before compression)."""
FINE_PX = 64
"""Pixels of a layer in a row under one of a tile, up to which whole pixels of the tile are read."""
READERS = 4
"""Tiles that read a store at the same time: a browser asks for a whole screen of them at once."""
RADIUS_M = 6_378_137.0
"""Of the sphere of EPSG:3857: the semi-major axis of WGS 84."""
EQUATOR_M = 2 * math.pi * RADIUS_M
_NODES = 17
"""Places under a tile are exact at the nodes of a grid and interpolated between them: at zoom 7, where a tile is 313 km
wide, that is off by less than 8 m of pixels of 1200 m."""
_WORLD = (-180.0, -85.06, 180.0, 85.06)

Bounds = tuple[float, float, float, float]
"""(west, south, east, north) degrees."""
Paint = Callable[[tuple["NDArray[Any]", ...]], "NDArray[np.uint8]"]
"""Values of n pixels, (..., n) of every array that is read, to (n, 4) uint8 RGBA."""
Describe = Callable[[tuple["NDArray[Any]", ...]], dict[str, Any]]
"""Values of one pixel, (..., 1), in words and numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Info:
    """A layer in words.

    Attributes:
        name: In the address: letters, digits, ``_``, ``.`` and ``-``.
        title: For people.
        bounds: Where there is something to see.
        min_zoom: First zoom with pictures.
        max_zoom: Zoom at which a pixel of a tile is no larger than a pixel of the layer, or more.
        legend: (text, ``#rrggbb``).
        warning: What must be said beside it, e.g. of untrained weights; "" for nothing.
    """

    name: str
    title: str
    bounds: Bounds
    min_zoom: int
    max_zoom: int
    legend: tuple[tuple[str, str], ...] = ()
    warning: str = ""


class Layer(Protocol):
    """What the server needs of a layer; safe to be used by several threads at once."""

    @property
    def info(self) -> Info:
        """In words."""

    def tile(self, at: Square) -> NDArray[np.uint8]:
        """(256, 256, 4) uint8 RGBA, transparent where there is nothing."""

    def point(self, lon: float, lat: float) -> dict[str, Any]:
        """What lies at a place; empty where nothing does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Square:
    """A tile of the map.

    Attributes:
        z: Zoom.
        x: Column from the west.
        y: Row from the north.
    """

    z: int
    x: int
    y: int

    @property
    def bounds_m(self) -> Bounds:
        """(x_min, y_min, x_max, y_max) in metres of EPSG:3857."""
        side, half = EQUATOR_M / 2**self.z, EQUATOR_M / 2
        return self.x * side - half, half - (self.y + 1) * side, (self.x + 1) * side - half, half - self.y * side

    @property
    def bounds(self) -> Bounds:
        """In degrees."""
        west, south, east, north = self.bounds_m
        low, high = (math.degrees(math.atan(math.sinh(y / RADIUS_M))) for y in (south, north))
        return math.degrees(west / RADIUS_M), low, math.degrees(east / RADIUS_M), high

    def touches(self, bounds: Bounds) -> bool:
        """Whether some of the ground within ``bounds`` may lie in the tile."""
        west, south, east, north = self.bounds
        return west < bounds[2] and bounds[0] < east and south < bounds[3] and bounds[1] < north

    def cut(self, bounds: Bounds, *, res_m: float) -> tuple[slice, slice, Bounds]:
        """(rows, cols) of the tile around ground within ``bounds``, which it touches, and the metres to read for them.

        A reader works at full resolution on all that it is asked for: a world around a village would take it hours.
        So it is asked for no more than the ground has, stretched by less than a pixel, where pixels are large.
        """
        x_min, y_min, x_max, y_max = self.bounds_m
        low, high = (max(min(lat, _WORLD[3]), _WORLD[1]) for lat in (bounds[1], bounds[3]))
        own = [RADIUS_M * math.radians(lon) for lon in (bounds[0], bounds[2])]
        own += [RADIUS_M * math.asinh(math.tan(math.radians(lat))) for lat in (low, high)]
        west, east, south, north = max(own[0], x_min), min(own[1], x_max), max(own[2], y_min), min(own[3], y_max)
        side = (x_max - x_min) / TILE_PX
        top, left = (min(max(math.floor(away / side), 0), TILE_PX - 1) for away in (y_max - north, west - x_min))
        bottom = min(max(math.ceil((y_max - south) / side), top + 1), TILE_PX)
        right = min(max(math.ceil((east - x_min) / side), left + 1), TILE_PX)
        if side <= FINE_PX * res_m:
            west, east = x_min + left * side, x_min + right * side
            south, north = y_max - bottom * side, y_max - top * side
        return slice(top, bottom), slice(left, right), (west, south, east, north)

    def lattice(self, zone: int, res_m: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(row, col) of the lattice pixel of a UTM zone under the centre of every pixel, each (256, 256) int64."""
        from pyproj import Transformer  # noqa: PLC0415

        x_min, y_min, x_max, y_max = self.bounds_m
        lon = np.degrees(np.linspace(x_min, x_max, _NODES) / RADIUS_M)
        lat = np.degrees(np.arctan(np.sinh(np.linspace(y_max, y_min, _NODES) / RADIUS_M)))
        x, y = Transformer.from_crs(4326, 32600 + zone, always_xy=True).transform(*np.meshgrid(lon, lat))
        return np.floor(_between(y) / -res_m).astype(np.int64), np.floor(_between(x) / res_m).astype(np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """One GeoTIFF of a layer."""

    path: str
    bounds: Bounds


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FilesLayer:
    """GeoTIFFs laid side by side; the first one counts where they lie over each other.

    Attributes:
        info: In words.
        files: What is read; each request opens them for itself.
        bands: Bands that are read, from 1.
        res_m: Side of a pixel, metres.
        paint: (band, n) values as colours.
        describe: (band, 1) values in words.
    """

    info: Info
    files: tuple[File, ...]
    bands: tuple[int, ...]
    res_m: float
    paint: Paint
    describe: Describe

    def tile(self, at: Square) -> NDArray[np.uint8]:
        """See ``Layer``."""
        from rio_tiler.io import Reader  # noqa: PLC0415

        out = np.zeros((TILE_PX, TILE_PX, 4), np.uint8)
        touched = [file for file in self.files if at.touches(file.bounds)]
        for file in touched:
            rows, cols, bounds = at.cut(file.bounds, res_m=self.res_m)
            size = {"height": rows.stop - rows.start, "width": cols.stop - cols.start}
            with Reader(file.path) as source:
                image = source.part(bounds, bounds_crs="EPSG:3857", dst_crs="EPSG:3857", indexes=self.bands, **size)
            part = out[rows, cols]
            free = (image.mask > 0) & (part[..., 3] == 0)
            if free.any():
                part[free] = self.paint((image.data[:, free],))
        return bridged(out, at, res_m=self.res_m) if len(touched) > 1 else out

    def point(self, lon: float, lat: float) -> dict[str, Any]:
        """See ``Layer``."""
        from rio_tiler.errors import PointOutsideBounds  # noqa: PLC0415
        from rio_tiler.io import Reader  # noqa: PLC0415

        for file in self.files:
            west, south, east, north = file.bounds
            if not (west <= lon <= east and south <= lat <= north):
                continue
            try:
                with Reader(file.path) as source:
                    found = source.point(lon, lat, indexes=self.bands)
            except PointOutsideBounds:
                continue
            if not np.ma.getmaskarray(found.array).all():
                return self.describe((found.data[:, np.newaxis],))
        return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """One zone of a store: the box under an array, in its pixels."""

    box: Box
    bounds: Bounds


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StoreLayer:
    """Arrays of a store at one time step.

    Attributes:
        info: In words.
        path: Folder or URL of the store.
        arrays: Names of the arrays that are read together, of one pixel.
        time_index: Of the time step.
        zones: Where the arrays lie.
        paint: (..., n) values of every array as colours.
        describe: (..., 1) values of every array in words.
        from_zoom: First zoom that is read from the store.
        below: What shows the zooms before it.
        gate: Lets a few readers in.
    """

    info: Info
    path: str
    arrays: tuple[str, ...]
    time_index: int
    zones: tuple[Ground, ...]
    paint: Paint
    describe: Describe
    from_zoom: int
    below: FilesLayer | None = None
    gate: threading.BoundedSemaphore = field(default_factory=lambda: threading.BoundedSemaphore(READERS))

    def tile(self, at: Square) -> NDArray[np.uint8]:
        """See ``Layer``."""
        if at.z < self.from_zoom:
            return np.zeros((TILE_PX, TILE_PX, 4), np.uint8) if self.below is None else self.below.tile(at)
        out = np.zeros((TILE_PX, TILE_PX, 4), np.uint8)
        touched = [ground for ground in self.zones if at.touches(ground.bounds)]
        for ground in touched:
            rows, cols = at.lattice(ground.box.zone, ground.box.res_m)
            free = _inside(ground.box, rows, cols) & (out[..., 3] == 0)
            if free.any():
                out[free] = self.paint(self._read(ground.box, rows[free], cols[free]))
        return bridged(out, at, res_m=self.zones[0].box.res_m) if len(touched) > 1 else out

    def point(self, lon: float, lat: float) -> dict[str, Any]:
        """See ``Layer``."""
        from pyproj import Transformer  # noqa: PLC0415

        for ground in self.zones:
            box = ground.box
            x, y = Transformer.from_crs(4326, box.epsg, always_xy=True).transform(lon, lat)
            if not (math.isfinite(x) and math.isfinite(y)):
                continue
            row, col = np.array([math.floor(-y / box.res_m)]), np.array([math.floor(x / box.res_m)])
            if _inside(box, row, col).all():
                values = self._read(box, row, col)
                if self.paint(values)[0, 3]:
                    return self.describe(values)
        return {}

    def _read(self, box: Box, rows: NDArray[np.int64], cols: NDArray[np.int64]) -> tuple[NDArray[Any], ...]:
        """(..., n) of every array at lattice pixels, by one window."""
        row, col = int(rows.min()), int(cols.min())
        size = {"height": int(rows.max()) - row + 1, "width": int(cols.max()) - col + 1}
        window = Box(zone=box.zone, res_m=box.res_m, row=row, col=col, **size)
        with self.gate:
            found = (store.read_box(self.path, window, name, time_index=self.time_index) for name in self.arrays)
            return tuple(values[..., rows - row, cols - col] for values in found)


def bridged(picture: NDArray[np.uint8], at: Square, *, res_m: float) -> NDArray[np.uint8]:
    """Close the gaps between zones.

    Where two lattices meet, a place may lie in a pixel of each whose centre belongs to the other: a dotted line of
    nothing, less than a pixel wide. It takes the colour beside it.

    Args:
        picture: (256, 256, 4) uint8 RGBA.
        at: The tile.
        res_m: Side of a pixel of the layer.
    """
    west, south, east, north = at.bounds
    lon = west + (east - west) * (np.arange(TILE_PX) + 0.5) / TILE_PX
    degree_m = EQUATOR_M / 360 * math.cos(math.radians((south + north) / 2))
    reach_m = 1.5 * res_m
    near = np.abs((lon + 3) % 6 - 3) * degree_m < reach_m
    if not near.any():
        return picture
    out = picture.copy()
    for step in range(1, math.ceil(reach_m / ((east - west) * degree_m / TILE_PX)) + 1):
        for side in (-step, step):
            beside = np.clip(np.arange(TILE_PX) + side, 0, TILE_PX - 1)
            gap = (out[..., 3] == 0) & near & (picture[:, beside, 3] > 0)
            out[gap] = picture[:, beside][gap]
    return out


def zooms(bounds: Bounds, res_m: float, *, pixel_bytes: int = 0) -> tuple[int, int]:
    """(first zoom at which a tile reads no more than ``WINDOW_BYTES``, zoom of the native resolution or more)."""
    south, north = bounds[1], bounds[3]
    lat = 0.0 if south <= 0 <= north else min(abs(south), abs(north))
    around = EQUATOR_M * math.cos(math.radians(min(lat, 85.0)))
    native = math.ceil(math.log2(around / TILE_PX / res_m) - 0.2)
    # A tile is turned against the lattice, by up to 3 degrees in a zone's corner: its window is a little larger.
    side_m = res_m * math.sqrt(WINDOW_BYTES / max(pixel_bytes, 1)) / 1.1
    first = math.ceil(math.log2(around / side_m)) if pixel_bytes else 0
    return min(max(first, 0), MAX_ZOOM), min(max(native, first, LEAST_MAX_ZOOM), MAX_ZOOM)


def bounds_of(box: Box) -> Bounds:
    """Degrees around a box; the whole way round where it lies over the antimeridian."""
    from pyproj import Transformer  # noqa: PLC0415

    west_m, south_m, east_m, north_m = box.bounds_m
    x, y = np.meshgrid(np.linspace(west_m, east_m, _NODES), np.linspace(south_m, north_m, _NODES))
    lon, lat = Transformer.from_crs(box.epsg, 4326, always_xy=True).transform(x, y)
    west, east = float(lon.min()), float(lon.max())
    if east - west > 180:
        west, east = _WORLD[0], _WORLD[2]
    return west, float(lat.min()), east, float(lat.max())


def around(parts: Sequence[Bounds]) -> Bounds:
    """The smallest rectangle around others."""
    west, south, east, north = zip(*parts, strict=True)
    return min(west), min(south), max(east), max(north)


def files_of(path: str) -> tuple[File, ...]:
    """A GeoTIFF and the degrees around it; twice, once for each side, where it lies over the antimeridian.

    Raises:
        InvalidInputError: Not a GeoTIFF, or one without a place on the Earth.
    """
    import rasterio  # noqa: PLC0415
    from rasterio.errors import RasterioError  # noqa: PLC0415
    from rasterio.warp import transform_bounds  # noqa: PLC0415

    try:
        with rasterio.open(path, driver="GTiff") as found:
            if found.crs is None:
                raise InvalidInputError(f"{path} has no coordinate system: it cannot be put on a map")
            west, south, east, north = transform_bounds(found.crs, "EPSG:4326", *found.bounds)
    except RasterioError as err:
        raise InvalidInputError(f"{path} cannot be read as a GeoTIFF") from err
    if west <= east:
        return (File(path=path, bounds=(west, south, east, north)),)
    sides = (west, south, _WORLD[2], north), (_WORLD[0], south, east, north)
    return tuple(File(path=path, bounds=bounds) for bounds in sides)


def classes_style(classes: Sequence[tuple[int, str, str]]) -> tuple[Paint, Describe]:
    """Colours and words of (value, name, ``#rrggbb``) classes; other values are nodata."""
    table = table_of({value: colour for value, _, colour in classes})
    names = {value: name for value, name, _ in classes}

    def describe(values: tuple[NDArray[Any], ...]) -> dict[str, Any]:
        value = int(values[0].reshape(-1)[0])
        return {"value": value} | ({"class": names[value]} if names.get(value) else {})

    return lambda values: table[values[0].reshape(-1, values[0].shape[-1])[0]], describe


def ramp_style(
    *, low: float, high: float, nodata: float | None, units: str = ""
) -> tuple[Paint, Describe, tuple[tuple[str, str], ...]]:
    """Colours, words and legend of continuous values; NaN and ``nodata`` are transparent."""
    steps = 254
    table = table_of(dict(enumerate(preview.ramp(steps))))
    span = high - low if high > low else 1.0

    def paint(values: tuple[NDArray[Any], ...]) -> NDArray[np.uint8]:
        found = values[0].reshape(-1, values[0].shape[-1])[0].astype(np.float64)
        share = np.clip((np.nan_to_num(found) - low) / span, 0, 1)
        out = np.asarray(table[np.rint(share * steps).astype(np.uint8)])
        out[np.isnan(found) | (found == nodata)] = 0
        return out

    def describe(values: tuple[NDArray[Any], ...]) -> dict[str, Any]:
        value = float(values[0].reshape(-1)[0])
        return {"value": value, "units": units} if units else {"value": value}

    colours = preview.ramp(4)
    marks = (low + span * k / 4 for k in range(5))
    return paint, describe, tuple((f"{mark:g} {units}".strip(), colours[k]) for k, mark in enumerate(marks))


def rgb_style() -> tuple[Paint, Describe]:
    """Colours of three bands as they are."""

    def paint(values: tuple[NDArray[Any], ...]) -> NDArray[np.uint8]:
        rgb = values[0][:3].T
        return np.concatenate([rgb, np.full((len(rgb), 1), 255)], axis=1).astype(np.uint8)

    return paint, lambda values: {"rgb": [int(v) for v in values[0][:3].reshape(-1)]}


def table_of(colours: dict[int, str]) -> NDArray[np.uint8]:
    """(256, 4) uint8 RGBA by value; transparent where there is no colour."""
    table = np.zeros((256, 4), np.uint8)
    for value, colour in colours.items():
        table[value] = (*(int(colour[k : k + 2], 16) for k in (1, 3, 5)), 255)
    return table


def files_layers(name: str, title: str, paths: Sequence[str], *, warning: str = "") -> tuple[FilesLayer, ...]:
    """The layers of GeoTIFFs of one kind: a map and one layer per further band, or a picture.

    Args:
        name: Of the first layer.
        title: Of the first layer.
        paths: Files with the same bands.
        warning: What must be said beside them.
    """
    import rasterio  # noqa: PLC0415

    files = tuple(file for path in sorted(paths) for file in files_of(path))
    with rasterio.open(files[0].path) as first:
        tags, count, dtypes = first.tags(), first.count, first.dtypes
        texts = [text or "" for text in first.descriptions]
        own = [first.tags(band) for band in range(1, count + 1)]
        units = [unit or "" for unit in first.units]
        palette = _palette(first)
        res_m = _res_m(first)
    bounds = around([file.bounds for file in files])
    _, native = zooms(bounds, res_m)

    def layer(suffix: str, text: str, bands: tuple[int, ...], style: Sequence[Any]) -> FilesLayer:
        legend = style[2] if len(style) > 2 else ()
        info = Info(
            name=f"{name}{suffix}",
            title=text,
            bounds=bounds,
            min_zoom=0,
            max_zoom=native,
            legend=legend,
            warning=warning,
        )
        return FilesLayer(info=info, files=files, bands=bands, res_m=res_m, paint=style[0], describe=style[1])

    if geotiff.CLASSES_TAG in tags:
        classes = tuple((int(v), str(n), str(c)) for v, n, c in json.loads(tags[geotiff.CLASSES_TAG]))
        legend = tuple((text, colour) for _, text, colour in classes)
        made = [layer("", title, (1,), (*classes_style(classes), legend))]
    elif palette:
        made = [layer("", title, (1,), (*classes_style(palette), ()))]
    elif count in (3, 4) and set(dtypes) == {"uint8"}:
        return (layer("", title, (1, 2, 3), rgb_style()),)
    else:
        made = [layer("", texts[0] or title, (1,), _values_style(files, 1, own[0], units[0]))]
    for band in range(2, count + 1):
        short = own[band - 1].get(geotiff.LAYER_TAG) or f"band{band}"
        style = _values_style(files, band, own[band - 1], units[band - 1])
        made.append(layer(f".{short}", f"{title}: {texts[band - 1] or short}", (band,), style))
    return tuple(made)


def _values_style(files: Sequence[File], band: int, tags: dict[str, str], units: str) -> Sequence[Any]:
    """Continuous values of a band between what its file says it may hold, or what it mostly holds."""
    known = tags.get(geotiff.RANGE_TAG)
    if known:
        low, high = json.loads(known)[:2]
    elif units == "%":
        low, high = 0.0, 100.0
    else:
        low, high = usual_range([_thin(file.path, band) for file in files[:8]])
    return ramp_style(low=low, high=high, nodata=None, units=units)


def usual_range(samples: Sequence[NDArray[Any]]) -> tuple[float, float]:
    """The ends of all but the outermost 2 per cent on each side of what is finite; 0 to 1 of nothing."""
    values = np.concatenate([np.asarray(sample, np.float64).ravel() for sample in samples])
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    low, high = np.percentile(values, (2, 98))
    return float(low), float(high)


def _thin(path: str, band: int) -> NDArray[Any]:
    """Some values of a band, without nodata."""
    import rasterio  # noqa: PLC0415

    with rasterio.open(path) as found:
        shape = tuple(min(side, 512) for side in found.shape)
        return np.asarray(found.read(band, out_shape=shape, masked=True).compressed())


def _palette(found: Any) -> tuple[tuple[int, str, str], ...]:
    """(value, "", colour) of the colour table of a file of one such band; nodata left out."""
    try:
        table = found.colormap(1)
    except ValueError:
        return ()
    opaque = {value: entry for value, entry in table.items() if entry[3] and value != found.nodata}
    return tuple((value, "", f"#{r:02x}{g:02x}{b:02x}") for value, (r, g, b, _) in opaque.items() if value < 256)


def _res_m(found: Any) -> float:
    """Side of a pixel of an open file, metres."""
    side = abs(float(found.transform.a))
    return side * EQUATOR_M / 360 if found.crs.is_geographic else side


def _inside(box: Box, rows: NDArray[np.int64], cols: NDArray[np.int64]) -> NDArray[np.bool_]:
    return (rows >= box.row) & (rows < box.row_stop) & (cols >= box.col) & (cols < box.col_stop)


def _between(nodes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values at the centres of the pixels of a tile from those at the nodes, which include its edges."""
    last = len(nodes) - 1
    at = (np.arange(TILE_PX) + 0.5) / TILE_PX * last
    low = np.minimum(at.astype(int), last - 1)
    share = at - low
    rows = nodes[low] * (1 - share)[:, None] + nodes[low + 1] * share[:, None]
    return np.asarray(rows[:, low] * (1 - share) + rows[:, low + 1] * share)
