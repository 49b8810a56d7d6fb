"""One GeoTIFF of all zones of a map, in a plane of the user's choice: a view, the files of the zones are the truth.

Every zone is warped by itself, window by window, and a ground pixel takes the value of the zone that owns it: the one
in whose six degrees its centre lies. Along a border the pixel of a zone nearest to such a centre may belong to the
neighbour and be nodata in both zones: these pixels, and only they, take the nearest one that their own zone owns. So
borders have neither gaps nor overlaps, and nodata elsewhere stays nodata.
"""

from __future__ import annotations

import re
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import InvalidInputError, OutputError
from pipeline.write import durable, geotiff, streamed
from pipeline.write.frames import Frame, box_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from pyproj import CRS

    from pipeline.types import Box
    from pipeline.write.durable import Checkpoint

AUTO = "auto"
EUROPE, WORLD = "EPSG:3035", "EPSG:4326"
EUROPE_LONLAT = (-16.1, 32.88, 40.18, 84.73)
"""Area of use of EPSG:3035 in the EPSG registry."""
ROUND_SCALE = 0.05
"""A plane whose metres are true within this share gets pixels of exactly the side asked for."""
EXACT_PX = 0.01
"""How far GDAL may place a pixel from where it belongs, in pixels of the zone; its own limit is 0.125."""
COARSE = 2.0
"""From this many pixels of the zone per pixel on, classes are the commonest and numbers the mean of what they cover."""
NEAR_PX = 2.5
"""Pixels of the zone on both sides of a border that are looked at for gaps."""
_STEP_PX = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class _Zone:
    """A zone's virtual raster, open, and its views in the target plane."""

    box: Box
    source: Any
    views: tuple[Any, ...]  # one for the first band, one for the others
    bounds: tuple[float, float, float, float]  # in the target plane


def checked_crs(text: str) -> str:
    """``auto`` or ``EPSG:N`` in the usual spelling.

    Raises:
        InvalidInputError: Anything else, an unknown number, or no plane that a map can be drawn in.
    """
    if text.lower() == AUTO:
        return AUTO
    if not re.fullmatch(r"epsg:[0-9]{1,6}", text, re.IGNORECASE):
        raise InvalidInputError(f"CRS {text!r} is neither 'auto' nor of the form EPSG:3035")
    crs = _known(text.upper())
    if not (crs.is_projected or crs.is_geographic) or len(crs.axis_info) != 2:
        raise InvalidInputError(f"{text} ({crs.name}) is not a map plane of two axes: use e.g. EPSG:3035 or EPSG:4326")
    return text.upper()


def chosen_crs(text: str, virtuals: Sequence[Path]) -> str:
    """``EPSG:N``; for ``auto`` the plane of the only zone, EPSG:3035 within Europe, else EPSG:4326.

    Raises:
        InvalidInputError: As ``checked_crs``; or the plane is meant for another part of the world, or is torn apart
            where the map crosses the 180th meridian.
    """
    name = checked_crs(text)
    boxes = [_box(path) for path in virtuals]
    if name == AUTO:
        if len(boxes) == 1:
            return Frame.of(boxes[0]).crs
        within = all(_within(_lonlat(box), EUROPE_LONLAT) for box in boxes)
        name = EUROPE if within else WORLD
    crs = _known(name)
    if {1, 60} <= {box.zone for box in boxes} and (crs.is_geographic or name == "EPSG:3857"):
        raise InvalidInputError(
            f"the map crosses the 180th meridian, where {name} is torn apart: use e.g. EPSG:3832 (Pacific)"
        )
    area = crs.area_of_use
    if area is not None and not any(_touches(_lonlat(box), area.bounds) for box in boxes):
        west, south, east, north = area.bounds
        raise InvalidInputError(
            f"{name} ({crs.name}) is meant for longitudes {west:g} to {east:g} and latitudes {south:g} to {north:g}, "
            "the map lies elsewhere: use 'auto'"
        )
    return name


def frame_of(virtuals: Sequence[Path], *, crs: str, side_m: float | None) -> Frame:
    """The grid of a mosaic: edges at multiples of its pixel, so that mosaics of growing maps fit together.

    Args:
        virtuals: Virtual rasters of the zones.
        crs: ``EPSG:N``.
        side_m: Side of a pixel on the ground, metres; None: that of the zones. In a plane that is true to scale it is
            the side in the plane too, elsewhere that of the narrower direction in the middle of the map.
    """
    from affine import Affine  # noqa: PLC0415

    boxes = [_box(path) for path in virtuals]
    bounds = np.array([_bounds(box, crs) for box in boxes])
    west, south = bounds[:, :2].min(axis=0)
    east, north = bounds[:, 2:].max(axis=0)
    side = (side_m or boxes[0].res_m) * _units_per_m(crs, (west + east) / 2, (south + north) / 2)
    # A hair inside: an edge that lies on the grid but for rounding must not add a pixel.
    left, right = np.floor(west / side + 1e-6), np.ceil(east / side - 1e-6)
    bottom, top = np.floor(south / side + 1e-6), np.ceil(north / side - 1e-6)
    return Frame(
        crs=crs,
        transform=Affine(side, 0, left * side, 0, -side, top * side),
        height=int(top - bottom),
        width=int(right - left),
    )


def write_mosaic(
    path: Path,
    virtuals: Sequence[Path],
    *,
    crs: str,
    side_m: float | None = None,
    at: Checkpoint = durable.passed,
) -> None:
    """Write one COG over the virtual rasters of all zones of a map, square by square.

    Classes are the nearest pixel's, further bands and numbers bilinear; from ``COARSE`` on the commonest and the mean.
    Names, colours, bands, units and tags are those of the zones.

    Args:
        path: The file; an existing one is replaced at once or not at all.
        virtuals: One per zone.
        crs: From ``chosen_crs``.
        side_m: As ``frame_of``.
        at: Called after every step that a kill can separate (tests).

    Raises:
        OutputError: A file cannot be read or written.
    """
    from rasterio.errors import RasterioError  # noqa: PLC0415

    frame = frame_of(virtuals, crs=crs, side_m=side_m)
    tags = geotiff.tags_of(virtuals[0])
    try:
        with ExitStack() as held:
            reader = _Reader(frame, [_open(held, virtual, frame) for virtual in virtuals])
            if geotiff.CLASSES_TAG in tags:
                _write_classes(path, virtuals[0], reader, frame, at=at)
            else:
                geotiff.write_values(
                    path,
                    lambda rows, cols: None if (found := reader.read(rows, cols)) is None else found[0],
                    box=frame,
                    units=tags["units"],
                    title=tags["title"],
                    valid_range=geotiff.range_of(tags),
                    tags=geotiff.own_tags(virtuals[0]),
                    at=at,
                )
    except RasterioError as err:
        raise OutputError(f"{path.name}: {err}") from err


def _write_classes(path: Path, first: Path, reader: _Reader, frame: Frame, *, at: Checkpoint) -> None:
    classes, further = geotiff.classes_of(first), geotiff.further_of(first)
    geotiff.write_classes(
        path,
        reader.read,
        box=frame,
        colours=tuple((value, colour) for value, _, colour in classes),
        class_names=tuple((value, name) for value, name, _ in classes),
        tags=geotiff.own_tags(first),
        further=further,
        predictor=any(band.units == "%" for band in further),
        at=at,
    )


class _Reader:
    """Squares of the mosaic out of the zones."""

    def __init__(self, frame: Frame, zones: Sequence[_Zone]) -> None:
        from pyproj import Transformer  # noqa: PLC0415

        self._frame = frame
        self._zones = {zone.box.zone: zone for zone in zones}
        self._nodata = zones[0].source.nodata
        self._to_lonlat = Transformer.from_crs(frame.crs, 4326, always_xy=True)

    def read(self, rows: slice, cols: slice) -> list[NDArray[Any]] | None:
        """(row, col) arrays of all bands; None where everything is nodata."""
        near = [zone for zone in self._zones.values() if self._overlaps(zone, rows, cols)]
        owners = self._owners(rows, cols, _STEP_PX) if len(near) > 1 else None
        if owners is not None and (own := self._only(owners)) is not None:
            near = [zone for zone in near if zone.box.zone == own]
        if not near:
            return None
        parts = {zone.box.zone: _warped(zone, rows, cols) for zone in near}
        if len(near) == 1:
            (found,) = parts.values()
        else:
            found = self._joined(parts, rows, cols)
        return None if all(self._empty(band).all() for band in found) else found

    def _joined(self, parts: dict[int, list[NDArray[Any]]], rows: slice, cols: slice) -> list[NDArray[Any]]:
        lon, lat = self._lonlat(rows, cols, 1)
        owner = _zone_of(lon)
        count = len(next(iter(parts.values())))
        found = [np.full(lon.shape, self._nodata, part.dtype) for part in next(iter(parts.values()))]
        for own in (True, False):  # who owns the place first; then a neighbour whose nearest pixel reaches over
            for zone, part in sorted(parts.items()):
                for k in range(count):
                    take = self._empty(found[k]) & ~self._empty(part[k])
                    if own:
                        take &= owner == zone
                    found[k][take] = part[k][take]
        self._fill_gaps(found, owner, lon=lon, lat=lat)
        return found

    def _fill_gaps(
        self, found: list[NDArray[Any]], owner: NDArray[np.int64], *, lon: NDArray[np.float64], lat: NDArray[np.float64]
    ) -> None:
        """Give pixels along a border that are nodata in both zones the nearest pixel that their own zone owns."""
        metres = np.abs((lon + 3) % 6 - 3) * np.cos(np.radians(lat)) * 111_320
        gap = self._empty(found[0])
        for number, zone in self._zones.items():
            rows, cols = np.nonzero(gap & (owner == number) & (metres < NEAR_PX * zone.box.res_m))
            if len(rows):
                values = _nearest_owned(zone, lon[rows, cols], lat[rows, cols], nodata=self._nodata)
                for band, value in zip(found, values, strict=True):
                    band[rows, cols] = np.where(self._empty(band[rows, cols]), value, band[rows, cols])

    def _only(self, owners: NDArray[np.int64]) -> int | None:
        first = int(owners.flat[0])
        return first if (owners == first).all() else None

    def _owners(self, rows: slice, cols: slice, step: int) -> NDArray[np.int64]:
        """Zones of a coarse lattice over the square, and of the places a little east and west of them."""
        lon, _ = self._lonlat(rows, cols, step)
        reach = max(zone.box.res_m for zone in self._zones.values()) * NEAR_PX * 10 / 111_320  # at 84 degrees too
        width = np.ptp(lon) / max(1, -(-(cols.stop - cols.start) // step))
        return np.stack([_zone_of(lon - reach - width), _zone_of(lon + reach + width)])

    def _lonlat(self, rows: slice, cols: slice, step: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(row, col) longitudes and latitudes of the centres of every ``step``-th pixel, the last ones included."""
        row, col = (_every(cut, step) for cut in (rows, cols))
        transform = self._frame.transform
        x, y = np.meshgrid(transform.c + (col + 0.5) * transform.a, transform.f + (row + 0.5) * transform.e)
        lon, lat = self._to_lonlat.transform(x, y)
        return np.asarray(lon), np.asarray(lat)

    def _overlaps(self, zone: _Zone, rows: slice, cols: slice) -> bool:
        transform, (west, south, east, north) = self._frame.transform, zone.bounds
        left, right = transform.c + cols.start * transform.a, transform.c + cols.stop * transform.a
        top, bottom = transform.f + rows.start * transform.e, transform.f + rows.stop * transform.e
        return bool(left < east and right > west and bottom < north and top > south)

    def _empty(self, values: NDArray[Any]) -> NDArray[np.bool_]:
        return np.asarray(np.isnan(values) if values.dtype.kind == "f" else values == self._nodata, np.bool_)


def _open(held: ExitStack, virtual: Path, frame: Frame) -> _Zone:
    import rasterio  # noqa: PLC0415
    from rasterio.enums import Resampling  # noqa: PLC0415
    from rasterio.vrt import WarpedVRT  # noqa: PLC0415

    held.enter_context(rasterio.Env(GDAL_CACHEMAX=streamed.CACHE_BYTES))
    source = held.enter_context(rasterio.open(virtual))
    box = box_of(source)
    coarse = _coarseness(box, frame) >= COARSE
    classes = source.dtypes[0] == "uint8"
    kinds = [Resampling.average if coarse else Resampling.bilinear]
    if classes:
        kinds.insert(0, Resampling.mode if coarse else Resampling.nearest)
    views = tuple(
        held.enter_context(
            WarpedVRT(
                source,
                crs=frame.crs,
                transform=frame.transform,
                height=frame.height,
                width=frame.width,
                resampling=kind,
                src_nodata=source.nodata,
                nodata=source.nodata,
                tolerance=EXACT_PX,
            )
        )
        for kind in kinds[: 1 if source.count == 1 else None]
    )
    return _Zone(box=box, source=source, views=views, bounds=_bounds(box, frame.crs))


def _warped(zone: _Zone, rows: slice, cols: slice) -> list[NDArray[Any]]:
    from rasterio.windows import Window  # noqa: PLC0415

    window = Window(cols.start, rows.start, cols.stop - cols.start, rows.stop - rows.start)
    first = [zone.views[0].read(1, window=window)]
    others = range(2, zone.source.count + 1)
    return first + [zone.views[-1].read(band, window=window) for band in others]


def _nearest_owned(
    zone: _Zone, lon: NDArray[np.float64], lat: NDArray[np.float64], *, nodata: float
) -> list[NDArray[Any]]:
    """Per band the values of the nearest pixels that the zone owns, of the nine around each place; else nodata."""
    from pyproj import Transformer  # noqa: PLC0415
    from rasterio.windows import Window  # noqa: PLC0415

    box = zone.box
    to_zone = Transformer.from_crs(4326, box.epsg, always_xy=True)
    x, y = to_zone.transform(lon, lat)
    col, row = np.asarray(x) / box.res_m - box.col, -np.asarray(y) / box.res_m - box.row
    best = np.full(lon.shape, np.inf)
    at_row, at_col = np.zeros(lon.shape, np.int64), np.zeros(lon.shape, np.int64)
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            r, c = np.floor(row).astype(np.int64) + down, np.floor(col).astype(np.int64) + right
            centre = to_zone.transform(
                (box.col + c + 0.5) * box.res_m, -(box.row + r + 0.5) * box.res_m, direction="INVERSE"
            )
            usable = (_zone_of(np.asarray(centre[0])) == box.zone) & (r >= 0) & (c >= 0)
            usable &= (r < box.height) & (c < box.width)
            far = (r + 0.5 - row) ** 2 + (c + 0.5 - col) ** 2
            closer = usable & (far < best)
            best = np.where(closer, far, best)
            at_row, at_col = np.where(closer, r, at_row), np.where(closer, c, at_col)
    known = np.isfinite(best)
    out = [np.full(lon.shape, nodata, dtype) for dtype in zone.source.dtypes]
    if known.any():
        top, left = int(at_row[known].min()), int(at_col[known].min())
        window = Window(left, top, int(at_col[known].max()) - left + 1, int(at_row[known].max()) - top + 1)
        for band, values in enumerate(out, 1):
            values[known] = zone.source.read(band, window=window)[at_row[known] - top, at_col[known] - left]
    return out


def _known(name: str) -> CRS:
    from pyproj import CRS  # noqa: PLC0415
    from pyproj.exceptions import CRSError  # noqa: PLC0415

    try:
        return CRS.from_user_input(name)
    except CRSError as err:
        raise InvalidInputError(f"{name} is not in the EPSG registry of this installation: use e.g. EPSG:3035") from err


def _box(path: Path) -> Box:
    import rasterio  # noqa: PLC0415
    from rasterio.errors import RasterioError  # noqa: PLC0415

    try:
        with rasterio.open(path) as found:
            return box_of(found)
    except RasterioError as err:
        raise OutputError(f"{path} cannot be read: {err}") from err


def _bounds(box: Box, crs: str) -> tuple[float, float, float, float]:
    """(west, south, east, north) of a box in a plane, its edges followed closely."""
    from pyproj import Transformer  # noqa: PLC0415

    frame = Frame.of(box)
    if frame.crs == crs:
        left, top = frame.transform.c, frame.transform.f
        return left, top - box.height * box.res_m, left + box.width * box.res_m, top
    west, south, east, north = Transformer.from_crs(box.epsg, crs, always_xy=True).transform_bounds(
        *box.bounds_m, densify_pts=101
    )
    return west, south, east, north


def _lonlat(box: Box) -> tuple[float, float, float, float]:
    return _bounds(box, "EPSG:4326")


def _units_per_m(crs: str, x: float, y: float) -> float:
    """Length in the plane of a metre on the ground at (x, y), in the direction in which it is shorter."""
    from pyproj import Geod, Transformer  # noqa: PLC0415

    to_lonlat = Transformer.from_crs(crs, 4326, always_xy=True)
    lon, lat = to_lonlat.transform(x, y)
    step_m, geod = 100.0, Geod(ellps="WGS84")
    lengths = []
    for azimuth in (0.0, 90.0):
        other_lon, other_lat, _ = geod.fwd(lon, lat, azimuth, step_m)
        other_x, other_y = to_lonlat.transform(other_lon, other_lat, direction="INVERSE")
        lengths.append(float(np.hypot(other_x - x, other_y - y)) / step_m)
    shorter = min(lengths)
    return 1.0 if abs(shorter - 1) < ROUND_SCALE else shorter


def _coarseness(box: Box, frame: Frame) -> float:
    """Pixels of a zone per pixel of the mosaic, along a side."""
    west, south, east, north = _bounds(box, frame.crs)
    return frame.transform.a / (_units_per_m(frame.crs, (west + east) / 2, (south + north) / 2) * box.res_m)


def _zone_of(lon: NDArray[np.float64]) -> NDArray[np.int64]:
    """UTM zone of a longitude: west edge inclusive, 180 belongs to zone 1."""
    return ((lon + 180) // 6 % 60 + 1).astype(np.int64)


def _every(cut: slice, step: int) -> NDArray[np.float64]:
    found = np.arange(cut.start, cut.stop, step, dtype=np.float64)
    return found if found[-1] == cut.stop - 1 else np.append(found, cut.stop - 1.0)


def _within(inner: tuple[float, float, float, float], outer: tuple[float, float, float, float]) -> bool:
    return inner[0] >= outer[0] and inner[1] >= outer[1] and inner[2] <= outer[2] and inner[3] <= outer[3]


def _touches(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    crossing = other[0] > other[2]  # an area of use over the 180th meridian
    beside = one[0] > other[2] and one[2] < other[0] if crossing else one[0] > other[2] or one[2] < other[0]
    return not (beside or one[1] > other[3] or one[3] < other[1])
