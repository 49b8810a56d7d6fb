"""Labelled places from a file, of classes or numbers, and the lattice pixels they cover.

Reads any vector format that GDAL knows, GeoParquet, and CSV or Parquet with lon/lat columns. Knows nothing of
embeddings: it says which pixel carries which label; the caller looks the vectors up and gives them to
``fitting.fit`` or ``ridge_fit.fit``.
"""

from __future__ import annotations

import difflib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import InvalidInputError
from pipeline.types import Box

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

PLACE_M = 640
"""Side of the square in which polygons share a cross-validation group: the ground that one 64 px window sees, so that
two pixels of different squares have rarely looked at the same context."""
_COORDINATES = (("lon", "lat"), ("longitude", "latitude"), ("long", "lat"), ("lng", "lat"), ("x", "y"))
_POINTS = ("Point", "MultiPoint")
_POLYGONS = ("Polygon", "MultiPolygon")
_STRIP_PX = 4_000_000
"""Pixels rasterised at once, so that a polygon of any size needs little memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """Labelled points and polygons, one entry per row that has a class or number.

    Attributes:
        geometries: (Multi)points and (multi)polygons, lon/lat EPSG:4326, hexadecimal WKB.
        classes: Class of each, all text or all whole numbers; numbers (float) of ``read_numbers``.
        groups: Row number in the file (0-based, before rows were dropped): the polygon id of cross-validation.
        dropped: Rows without a label or without a geometry.
    """

    geometries: tuple[str, ...]
    classes: tuple[str | int | float, ...]
    groups: tuple[int, ...]
    dropped: int = 0

    def __post_init__(self) -> None:
        sizes = len(self.geometries), len(self.classes), len(self.groups)
        if len(set(sizes)) != 1:
            raise InvalidInputError(f"Labels: {sizes[0]} geometries, {sizes[1]} classes and {sizes[2]} groups")

    @property
    def numeric(self) -> bool:
        """Whether labels are numbers, not classes."""
        return bool(self.classes) and isinstance(self.classes[0], float)

    @property
    def names(self) -> tuple[str, ...]:
        """Distinct classes as text; whole numbers in numeric order, text in alphabetic order."""
        return tuple(str(c) for c in sorted(set(self.classes), key=lambda c: (isinstance(c, str), c)))


def read_labels(path: str, *, column: str) -> Labels:
    """Read points or polygons and the class column that goes with them.

    Args:
        path: Vector file of any GDAL format, GeoParquet, or CSV/Parquet with lon, lat (longitude, latitude, x, y)
            columns in degrees.
        column: Column that holds the class: text or whole numbers.

    Returns:
        The labels in file order. Rows without class or geometry are dropped and counted in the log; self-intersecting
        polygons are repaired and counted in the log.

    Raises:
        InvalidInputError: No such file or column (the nearest columns are named), no CRS, fractional classes, lines,
            coordinates outside the world, fewer than two classes.
    """
    labels = _labels(path, column, _class_values)
    if len(labels.names) < 2:
        raise InvalidInputError(
            f"{path}: column {column!r} holds {len(labels.names)} class(es) {labels.names}; a probe needs at least two"
        )
    return labels


def read_numbers(path: str, *, column: str) -> Labels:
    """Read points or polygons and the column of numbers that goes with them.

    Args:
        path: As ``read_labels``.
        column: Column that holds the number: a height, a share, a mass.

    Returns:
        The labels in file order, ``classes`` as floats. Rows are dropped and polygons repaired as by ``read_labels``.

    Raises:
        InvalidInputError: As ``read_labels``; something that is not a number, infinite numbers, or only missing ones.
    """
    labels = _labels(path, column, _number_values)
    if not labels.classes:
        raise InvalidInputError(f"{path}: column {column!r} holds no number beside a geometry")
    return labels


def _labels(path: str, column: str, values_of: Callable[[Any, str, str], Sequence[str | int | float | None]]) -> Labels:
    """Labels whose values ``values_of`` (column, path, its name) makes."""
    import shapely  # noqa: PLC0415

    if not Path(path).exists():
        raise InvalidInputError(f"label file {path} does not exist")
    frame = read_frame(path, column)
    geometries = shapely.force_2d(np.asarray(frame.geometry.values, dtype=object))
    present = ~(shapely.is_missing(geometries) | shapely.is_empty(geometries))
    values = values_of(frame[column], path, column)
    keep = [row for row, value in enumerate(values) if value is not None and present[row]]
    dropped = len(values) - len(keep)
    if dropped:
        logger.warning("%s: %d of %d rows have no %r or no geometry: dropped", path, dropped, len(values), column)
    return Labels(
        geometries=tuple(shapely.to_wkb(_checked(geometries[keep], keep, path), hex=True, byte_order=1)),
        classes=tuple(value for value in (values[row] for row in keep) if value is not None),
        groups=tuple(keep),
        dropped=dropped,
    )


def places_of(labels: Labels, *, place_m: int = PLACE_M) -> tuple[str, ...]:
    """The coarse place of every label: the square of ``place_m`` of the zone lattice that holds its centroid.

    Returns:
        One name per label, ``z31_r-8800_c781``; labels of one place must not be split by cross-validation.
    """
    import shapely  # noqa: PLC0415

    centres = shapely.centroid(shapely.from_wkb(np.array(labels.geometries, dtype=object)))
    lon, lat = shapely.get_x(centres), shapely.get_y(centres)
    zones = np.clip((lon + 180) // 6 + 1, 1, 60).astype(np.int64)
    names = np.empty(len(centres), dtype=object)
    for zone in np.unique(zones):
        here = np.flatnonzero(zones == zone)
        x, y = _to_plane(int(zone)).transform(lon[here], lat[here])
        rows, cols = np.floor(-y / place_m).astype(np.int64), np.floor(x / place_m).astype(np.int64)
        names[here] = [f"z{zone:02d}_r{row}_c{col}" for row, col in zip(rows, cols, strict=True)]
    return tuple(names)


def pixels_of(labels: Labels, *, box: Box) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """The lattice pixels of ``box`` that the labels cover.

    A polygon covers the pixels whose centre lies inside it; a polygon that holds no pixel centre of the lattice takes
    the pixel under its representative point. A point covers the pixel under it. A pixel of several labels of one class
    belongs to the first; a pixel of several classes is ambiguous and left out (counted in the log). A pixel of several
    numbers has all of them, so that a fit sees their mean. What a pixel gets does not depend on ``box``. Near a zone
    border a pixel may be owned by the other zone: the store says so.

    Args:
        labels: From ``read_labels``.
        box: Part of one zone's lattice, any resolution; may be as large as the zone.

    Returns:
        (rows, cols, label_index): lattice rows and columns (subtract ``box.row`` and ``box.col`` for array indices)
        and the index into ``labels``; int64, sorted by (label, row, col).
    """
    import shapely  # noqa: PLC0415

    geometries = shapely.from_wkb(np.array(labels.geometries, dtype=object))
    near = _near(geometries, box)
    transform = _to_plane(box.zone).transform
    planes = shapely.transform(geometries[near], lambda xy: np.column_stack(transform(xy[:, 0], xy[:, 1])))
    parts: list[NDArray[np.int64]] = []
    for index, plane in zip(near, planes, strict=True):
        pixels = _points(plane, box) if plane.geom_type in _POINTS else _polygon(plane, box)
        parts.append(np.column_stack([pixels, np.full(len(pixels), index, dtype=np.int64)]))
    found = np.concatenate(parts) if parts else np.empty((0, 3), dtype=np.int64)
    if not labels.numeric:
        found = _without_conflicts(found, labels.classes)
    return found[:, 0], found[:, 1], found[:, 2]


def read_frame(path: str, column: str | None = None, *, what: str = "label file") -> Any:
    """A GeoDataFrame in EPSG:4326, rows as in the file.

    Args:
        path: As for ``read_labels``.
        column: A column that it must have; None: any.
        what: What messages call the file.

    Raises:
        InvalidInputError: Not readable, no such column, no CRS, no coordinates, or several layers that may be meant.
    """
    import geopandas  # noqa: PLC0415
    import pandas as pd  # noqa: PLC0415

    suffix = Path(path).suffix.lower()
    try:
        if suffix in {".csv", ".txt", ".tsv"}:
            frame = pd.read_csv(path, sep=_separator(path), encoding="utf-8-sig", low_memory=False)
        elif suffix in {".parquet", ".geoparquet", ".pq"}:
            frame = _read_parquet(path)
        else:
            frame = geopandas.read_file(path, layer=_layer(path, column, what=what), engine="pyogrio")
    except (OSError, ValueError, RuntimeError) as err:
        if isinstance(err, InvalidInputError):
            raise
        raise InvalidInputError(f"{what} {path} cannot be read: {err}") from err
    if column is not None:
        _check_column(column, [str(c) for c in frame.columns if c != "geometry"], path)
    if not isinstance(frame, geopandas.GeoDataFrame):
        frame = _from_coordinates(frame, path, what=what)
    if frame.crs is None:
        raise InvalidInputError(f"{what} {path} has no CRS: set one (e.g. with ogr2ogr -a_srs EPSG:4326)")
    return frame.to_crs(4326)


def _separator(path: str) -> str:
    """The separator of a table: whichever of comma, semicolon and tab the header holds most of."""
    with Path(path).open(encoding="utf-8-sig") as file:
        header = file.readline()
    return max(",;\t", key=header.count)


def _read_parquet(path: str) -> Any:
    import geopandas  # noqa: PLC0415
    import pandas as pd  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    metadata = pq.read_schema(path).metadata or {}
    return geopandas.read_parquet(path) if b"geo" in metadata else pd.read_parquet(path)


def _layer(path: str, column: str | None, *, what: str) -> str | None:
    """The layer to read: the only one, or the only one that has the column."""
    import pyogrio  # noqa: PLC0415

    layers = [str(name) for name in pyogrio.list_layers(path)[:, 0]]
    if len(layers) < 2:
        return None
    if column is None:
        raise InvalidInputError(
            f"{what} {path} has {len(layers)} layers ({', '.join(layers)}): save the wanted one to a file of its own"
        )
    having = [name for name in layers if column in pyogrio.read_info(path, layer=name)["fields"]]
    if len(having) != 1:
        raise InvalidInputError(
            f"label file {path} has {len(layers)} layers ({', '.join(layers)}), of which {len(having)} have a column "
            f"{column!r}: save the wanted layer to a file of its own"
        )
    return having[0]


def _check_column(column: str, columns: list[str], path: str) -> None:
    if column in columns:
        return
    folded = {c.lower(): c for c in reversed(columns)}
    near = [folded[m] for m in difflib.get_close_matches(column.lower(), list(folded), n=3, cutoff=0.4)]
    hint = f"did you mean {' or '.join(repr(c) for c in near)}? " if near else ""
    raise InvalidInputError(f"label file {path} has no column {column!r}; {hint}It has: {', '.join(columns) or 'none'}")


def _from_coordinates(frame: Any, path: str, *, what: str) -> Any:
    import geopandas  # noqa: PLC0415
    import pandas as pd  # noqa: PLC0415

    folded = {str(c).strip().lower(): c for c in frame.columns}
    pair = next(((folded[x], folded[y]) for x, y in _COORDINATES if x in folded and y in folded), None)
    if pair is None:
        raise InvalidInputError(
            f"{what} {path} has no coordinates: it needs columns lon and lat (or longitude and latitude, x and y), "
            f"in degrees; it has: {', '.join(map(str, frame.columns))}"
        )
    lon, lat = (pd.to_numeric(frame[name], errors="coerce") for name in pair)
    points = geopandas.points_from_xy(lon, lat, crs=4326)
    points[np.asarray(lon.isna() | lat.isna())] = None
    return geopandas.GeoDataFrame(frame, geometry=points)


def _class_values(series: Any, path: str, column: str) -> list[str | int | None]:
    """Classes as text or int, None where missing."""
    import pandas as pd  # noqa: PLC0415

    values = [None if missing else value for value, missing in zip(series.tolist(), pd.isna(series), strict=True)]
    known = [v for v in values if v is not None]
    if known and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in known):
        fractional = [v for v in known if v != int(v)] if np.isfinite(known).all() else known
        if fractional:
            raise InvalidInputError(
                f"{path}: column {column!r} holds fractional numbers such as {fractional[0]}: a class must be text or "
                "a whole number"
            )
        return [None if v is None else int(v) for v in values]
    texts = [None if v is None else str(v).strip() for v in values]
    return [text or None for text in texts]


def _number_values(series: Any, path: str, column: str) -> list[float | None]:
    """Numbers, None where missing; texts that spell a number count as numbers."""
    import pandas as pd  # noqa: PLC0415

    numbers = pd.to_numeric(series, errors="coerce").astype(float)
    wrong = series[numbers.isna() & ~series.isna() & (series.astype(str).str.strip() != "")]
    if len(wrong) or series.dtype == bool:
        example = repr(wrong.iloc[0]) if len(wrong) else "true or false"
        raise InvalidInputError(
            f"{path}: column {column!r} holds {example}, which is no number: a regression needs numbers; for classes "
            "leave out --regression"
        )
    if np.isinf(numbers).any():
        raise InvalidInputError(f"{path}: column {column!r} holds infinite numbers: leave these rows empty")
    return [None if missing else float(value) for value, missing in zip(numbers, numbers.isna(), strict=True)]


def _checked(geometries: NDArray[Any], rows: list[int], path: str) -> NDArray[Any]:
    """The geometries, repaired; refuses lines and places outside the world."""
    import shapely  # noqa: PLC0415

    for row, geometry in zip(rows, geometries, strict=True):
        if geometry.geom_type not in (*_POINTS, *_POLYGONS):
            raise InvalidInputError(f"{path}: row {row} is a {geometry.geom_type}; labels must be points or polygons")
        west, south, east, north = geometry.bounds
        if not (west >= -180 and east <= 180 and south >= -90 and north <= 90):
            raise InvalidInputError(
                f"{path}: row {row} lies at ({west:.6g}, {south:.6g}), outside longitudes -180..180 and latitudes "
                "-90..90: wrong CRS, or coordinates that are not degrees"
            )
    broken = np.flatnonzero(~shapely.is_valid(geometries))
    if len(broken):
        logger.warning("%s: %d polygons cross themselves (first: row %d): repaired", path, len(broken), rows[broken[0]])
        geometries = geometries.copy()
        geometries[broken] = [_areas(g) for g in shapely.make_valid(geometries[broken])]
    return geometries


def _areas(geometry: Any) -> Any:
    """The polygons of a repaired geometry; one that had no area becomes its representative point."""
    import shapely  # noqa: PLC0415

    parts = shapely.get_parts(shapely.get_parts(geometry))
    polygons = [part for part in parts if part.geom_type == "Polygon"]
    return shapely.MultiPolygon(polygons) if polygons else geometry.representative_point()


def _to_plane(zone: int) -> Any:
    from pyproj import Transformer  # noqa: PLC0415

    return Transformer.from_crs(4326, 32600 + zone, always_xy=True)


def _near(geometries: NDArray[Any], box: Box) -> NDArray[np.int64]:
    """Indices of geometries that may touch the box; longitudes are compared relative to the zone's meridian."""
    import shapely  # noqa: PLC0415
    from pyproj import Transformer  # noqa: PLC0415

    x0, y0, x1, y1 = box.bounds_m
    along = np.linspace(0.0, 1.0, 33)
    x = np.concatenate([x0 + (x1 - x0) * along, x0 + (x1 - x0) * along, np.full(33, x0), np.full(33, x1)])
    y = np.concatenate([np.full(33, y0), np.full(33, y1), y0 + (y1 - y0) * along, y0 + (y1 - y0) * along])
    lon, lat = Transformer.from_crs(box.epsg, 4326, always_xy=True).transform(x, y)
    meridian = box.zone * 6 - 183
    lon = (lon - meridian + 180) % 360 - 180
    bounds = shapely.bounds(geometries)
    west = (bounds[:, 0] - meridian + 180) % 360 - 180
    east = west + (bounds[:, 2] - bounds[:, 0])
    margin = 0.02
    touches = (bounds[:, 1] <= lat.max() + margin) & (bounds[:, 3] >= lat.min() - margin)
    touches &= (west <= lon.max() + margin) & (east >= lon.min() - margin)
    return np.flatnonzero(touches)


def _points(plane: Any, box: Box) -> NDArray[np.int64]:
    """(n, 2) distinct lattice (row, col) under the points, inside the box."""
    import shapely  # noqa: PLC0415

    xy = shapely.get_coordinates(plane)
    pixels = np.floor(np.column_stack([-xy[:, 1], xy[:, 0]]) / box.res_m).astype(np.int64)
    return _inside(np.unique(pixels, axis=0), box)


def _inside(pixels: NDArray[np.int64], box: Box) -> NDArray[np.int64]:
    first, stop = np.array([box.row, box.col]), np.array([box.row_stop, box.col_stop])
    return pixels[((pixels >= first) & (pixels < stop)).all(axis=1)]


def _polygon(plane: Any, box: Box) -> NDArray[np.int64]:
    """(n, 2) lattice (row, col) of the box whose centres lie inside the polygon."""
    x0, y0, x1, y1 = plane.bounds
    if not np.isfinite([x0, y0, x1, y1]).all():
        raise InvalidInputError(f"a label polygon reaches too far from UTM zone {box.zone}: cut it into smaller ones")
    row, col = int(np.floor(-y1 / box.res_m)), int(np.floor(x0 / box.res_m))
    row_stop, col_stop = int(np.floor(-y0 / box.res_m)) + 1, int(np.floor(x1 / box.res_m)) + 1
    whole = Box(zone=box.zone, res_m=box.res_m, row=row, col=col, height=row_stop - row, width=col_stop - col)
    part = whole.intersect(box)
    if part is None:
        return np.empty((0, 2), dtype=np.int64)
    pixels = np.concatenate(list(_rasterised(plane, part)))
    if len(pixels) or any(len(strip) for strip in _rasterised(plane, whole)):
        return pixels
    return _points(plane.representative_point(), box)


def _rasterised(plane: Any, box: Box) -> Iterator[NDArray[np.int64]]:
    """(n, 2) lattice (row, col) inside the polygon, strip by strip from the north."""
    from rasterio.features import rasterize  # noqa: PLC0415

    rows = max(1, _STRIP_PX // box.width)
    for row in range(box.row, box.row_stop, rows):
        height = min(rows, box.row_stop - row)
        strip = Box(zone=box.zone, res_m=box.res_m, row=row, col=box.col, height=height, width=box.width)
        burnt = rasterize([(plane, 1)], out_shape=strip.shape, transform=strip.transform, dtype="uint8")
        yield np.argwhere(burnt) + np.array([strip.row, strip.col])


def _without_conflicts(found: NDArray[np.int64], classes: tuple[str | int | float, ...]) -> NDArray[np.int64]:
    """One row (row, col, label) per pixel: the first label of a class; none where classes disagree."""
    if not len(found):
        return found
    codes = {name: code for code, name in enumerate(dict.fromkeys(classes))}
    code = np.array([codes[c] for c in classes], dtype=np.int64)[found[:, 2]]
    order = np.lexsort((found[:, 2], found[:, 1], found[:, 0]))
    found, code = found[order], code[order]
    starts = np.flatnonzero(np.r_[True, (found[1:, :2] != found[:-1, :2]).any(axis=1)])
    agree = np.minimum.reduceat(code, starts) == np.maximum.reduceat(code, starts)
    if not agree.all():
        logger.warning("%d pixels lie in labels of different classes: left out", int((~agree).sum()))
    kept: NDArray[np.int64] = found[starts[agree]]
    return np.asarray(kept[np.lexsort((kept[:, 1], kept[:, 0], kept[:, 2]))])
