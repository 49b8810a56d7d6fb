"""The area of a request: from a bounding box or a vector file to checked lon/lat polygons, and their UTM zones.

Everything a user can get wrong with a geometry is refused here, in words; later rooms take an ``Area`` for granted.
Knows nothing of tiles or scenes. Coordinates are EPSG:4326 in lon, lat order; an edge is the straight line between its
ends in lon/lat (GeoJSON, RFC 7946 section 3.1.1).
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

from pipeline.errors import InvalidInputError
from pipeline.types import Area

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shapely.geometry.base import BaseGeometry

LAT_MIN, LAT_MAX = -80.0, 84.0
"""Range of the UTM grid (NGA.SIG.0012, section 3): beyond it lies UPS."""
ZONE_DEG = 6
STEP_M = 1000.0
"""Longest straight edge of a projected file before it is turned into lon/lat: it then bends by a few centimetres."""
STEP_DEG = 0.1
"""Longest edge when the geodesic area is summed, degrees: along a parallel at 80 degrees the chord errs by < 1e-6."""
ANTIMERIDIAN = "cut it at the antimeridian: give two boxes, or a multipolygon with one part on each side of 180"

logger = logging.getLogger(__name__)


def area_from_bbox(text: str | tuple[float, float, float, float]) -> Area:
    """Make an area from a bounding box.

    Args:
        text: ``"west,south,east,north"`` or the four numbers, degrees.

    Returns:
        The box and its geodesic area.

    Raises:
        InvalidInputError: Not four finite numbers, reversed, outside the world or beyond 84 N / 80 S.

    Example:
        >>> round(area_from_bbox("11.0,48.0,11.1,48.1").km2, 1)
        82.9
    """
    west, south, east, north = _four_numbers(text)
    shown = f"bbox {west:g},{south:g},{east:g},{north:g}"
    for name, lon in (("west", west), ("east", east)):
        if not -180 <= lon <= 180:
            raise InvalidInputError(f"{shown}: {name} {lon:g} is not a longitude of -180..180 (order: W,S,E,N)")
    if west > east:
        raise InvalidInputError(f"{shown}: west {west:g} > east {east:g}; if it crosses 180 degrees, {ANTIMERIDIAN}")
    if west == east or south == north:
        raise InvalidInputError(f"{shown} is empty: west and east, south and north must differ")
    if south > north:
        raise InvalidInputError(f"{shown}: south {south:g} > north {north:g} (order: W,S,E,N)")
    return _area(shapely.box(west, south, east, north), shown)


def area_from_file(path: str) -> Area:
    """Read an area from a vector file: all its polygons, united.

    Args:
        path: Any format pyogrio reads (GeoJSON, GeoPackage, Shapefile, FlatGeobuf, ...) or GeoParquet. Another CRS is
            reprojected, edges densified to ``STEP_M`` first.

    Returns:
        The union and its geodesic area.

    Raises:
        InvalidInputError: No such file, not a vector file, no CRS, nothing in it, no polygon, an invalid polygon (where
            is said), coordinates outside the world or beyond 84 N / 80 S, or an edge across the antimeridian.
    """
    frame = _read(path)
    if frame.crs is None:
        raise InvalidInputError(f"area {path} has no CRS: assign one, e.g. 'ogr2ogr -a_srs EPSG:4326 out.gpkg {path}'")
    polygons = _polygons(frame.geometry, path)
    crs = frame.crs.to_2d()
    if not crs.equals(4326, ignore_axis_order=True):
        polygons = _to_lonlat(polygons, crs=crs)
    _check_world(polygons, path)
    for part in polygons:
        _check_valid(part, f"area {path}, after reprojecting to lon/lat")
    return _area(shapely.union_all(polygons), f"area {path}")


def geometry_of(area: Area) -> BaseGeometry:
    """The polygon or multipolygon of an area, lon/lat."""
    return shapely.from_wkb(area.wkb)


def zone_of(lon: float) -> int:
    """UTM zone 1..60 of a longitude: plain six-degree zones, west edge inclusive; 180 belongs to zone 60.

    The Norway and Svalbard exceptions of the UTM grid are not made: every point has one owner by longitude alone.
    """
    return min(math.floor((lon + 180) / ZONE_DEG) + 1, 60)


def zone_parts(area: Area) -> tuple[tuple[int, BaseGeometry], ...]:
    """Cut an area into UTM zones.

    Returns:
        (zone, polygon or multipolygon in lon/lat), sorted by zone, only parts with an area.
    """
    return split_zones(geometry_of(area))


def split_zones(geometry: BaseGeometry) -> tuple[tuple[int, BaseGeometry], ...]:
    """Cut a lon/lat geometry into UTM zones; see ``zone_parts``."""
    west, _, east, _ = geometry.bounds
    shapely.prepare(geometry)
    parts = []
    for zone in range(zone_of(west), zone_of(east) + 1):
        edge = ZONE_DEG * (zone - 1) - 180
        strip = shapely.box(edge, -90, edge + ZONE_DEG, 90)
        if not shapely.intersects(geometry, strip):
            continue
        part = only_polygons(shapely.intersection(geometry, strip))
        if not part.is_empty:
            parts.append((zone, part))
    return tuple(parts)


def only_polygons(geometry: BaseGeometry) -> BaseGeometry:
    """The polygons of a geometry, without the lines and points that cutting leaves; maybe empty."""
    pieces = shapely.get_parts(geometry)
    while (shapely.get_type_id(pieces) == shapely.GeometryType.GEOMETRYCOLLECTION).any():
        pieces = shapely.get_parts(shapely.get_parts(pieces))
    pieces = pieces[(shapely.get_type_id(pieces) == shapely.GeometryType.POLYGON) & (shapely.area(pieces) > 0)]
    return pieces[0] if len(pieces) == 1 else shapely.multipolygons(pieces)


def _four_numbers(text: str | tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    pieces: Sequence[Any] = text.split(",") if isinstance(text, str) else text
    try:
        numbers = [float(p) for p in pieces]
    except (TypeError, ValueError) as err:
        raise InvalidInputError(f"bbox {text!r} must be four numbers W,S,E,N, e.g. 11.0,48.0,11.1,48.1") from err
    if len(numbers) != 4:
        raise InvalidInputError(f"bbox {text!r} has {len(numbers)} numbers, must have four: W,S,E,N")
    if not all(map(math.isfinite, numbers)):
        raise InvalidInputError(f"bbox {text!r} holds NaN or infinity, must be four finite numbers W,S,E,N")
    return numbers[0], numbers[1], numbers[2], numbers[3]


def _area(geometry: BaseGeometry, name: str) -> Area:
    from pyproj import Geod  # noqa: PLC0415

    geometry = only_polygons(geometry)
    if geometry.is_empty:
        raise InvalidInputError(f"{name} has no area: its polygons are empty or flat")
    _, south, _, north = geometry.bounds
    if south < LAT_MIN or north > LAT_MAX:
        raise InvalidInputError(
            f"{name} reaches from {south:g} to {north:g} degrees latitude, UTM has {LAT_MIN:g} to {LAT_MAX:g}: cut it"
        )
    geometry = shapely.normalize(geometry)
    geod, square_m = Geod(ellps="WGS84"), 0.0
    # By zone: the geodesic sum of one ring that goes round the world is that of its complement.
    for _, part in split_zones(geometry):
        fine = shapely.orient_polygons(shapely.segmentize(part, STEP_DEG))
        square_m += geod.geometry_area_perimeter(fine)[0]
    return Area(wkb=shapely.to_wkb(geometry, hex=True, byte_order=1, output_dimension=2), km2=square_m / 1e6)


def _read(path: str) -> Any:
    import geopandas as gpd  # noqa: PLC0415
    import pyogrio  # noqa: PLC0415
    from pyarrow import ArrowException  # noqa: PLC0415

    file = Path(path)
    if not file.is_file() and not (file.is_dir() and file.suffix.lower() == ".gdb"):
        what = "is a folder, not a file" if file.is_dir() else "does not exist"
        raise InvalidInputError(f"area {path} {what}: give a vector file (GeoJSON, GeoPackage, GeoParquet, ...)")
    try:
        if file.suffix.lower() in {".parquet", ".geoparquet", ".pq"}:
            with np.errstate(invalid="ignore"):  # NaN coordinates are reported below, with their feature
                return gpd.read_parquet(path)
        return gpd.read_file(path, layer=_polygon_layer(path), engine="pyogrio", columns=[])
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, ArrowException, ValueError) as err:
        if isinstance(err, InvalidInputError):
            raise
        raise InvalidInputError(f"area {path} cannot be read as a vector file: {str(err)[:300]}") from err


def _polygon_layer(path: str) -> str:
    import pyogrio  # noqa: PLC0415

    layers = pyogrio.list_layers(path).tolist()
    spatial = [str(name) for name, kind in layers if kind is not None]
    if not spatial:
        raise InvalidInputError(f"area {path} has no layer with geometry")
    shaped = [str(name) for name, kind in layers if kind and ("Polygon" in kind or "Unknown" in kind)]
    if len(shaped) > 1:
        raise InvalidInputError(f"area {path} has several polygon layers ({', '.join(shaped)}): keep one per file")
    return (shaped or spatial)[0]


def _polygons(geometries: Any, path: str) -> list[BaseGeometry]:
    present = [(i, g) for i, g in enumerate(geometries) if g is not None and not g.is_empty]
    if not present:
        raise InvalidInputError(f"area {path} is empty: it has {len(geometries)} features and none has a geometry")
    kinds = sorted({g.geom_type for _, g in present})
    polygons = []
    for i, geometry in present:
        flat = shapely.force_2d(geometry)
        pieces = [p for p in _leaves(flat) if p.geom_type == "Polygon" and not p.is_empty]
        if len(pieces) < len(_leaves(flat)):
            logger.warning("area %s: feature %d is a %s; only its polygons count", path, i, geometry.geom_type)
        for piece in pieces if geometry.geom_type == "GeometryCollection" else [flat] * bool(pieces):
            _check_valid(piece, f"area {path}, feature {i}")
            polygons.append(piece)
    if not polygons:
        raise InvalidInputError(f"area {path} has no polygon, only {', '.join(kinds)}: buffer them or draw polygons")
    return polygons


def _leaves(geometry: BaseGeometry) -> list[BaseGeometry]:
    if hasattr(geometry, "geoms"):
        return [leaf for part in geometry.geoms for leaf in _leaves(part)]
    return [geometry]


def _check_valid(geometry: BaseGeometry, name: str) -> None:
    if not all(map(math.isfinite, shapely.get_coordinates(geometry).ravel().tolist())):
        raise InvalidInputError(f"{name} has a coordinate that is NaN or infinite: repair the file")
    if not shapely.is_valid(geometry):
        raise InvalidInputError(
            f"{name} is not a valid polygon: {shapely.is_valid_reason(geometry)} (x y). Repair it, e.g. with "
            "'ogr2ogr -makevalid out.gpkg in.gpkg' or the fix-geometries tool of QGIS"
        )


def _to_lonlat(polygons: list[BaseGeometry], *, crs: Any) -> list[BaseGeometry]:
    from pyproj import Transformer  # noqa: PLC0415
    from pyproj.exceptions import ProjError  # noqa: PLC0415

    to_lonlat = Transformer.from_crs(crs, 4326, always_xy=True)
    factor = crs.axis_info[0].unit_conversion_factor if crs.axis_info else 1.0
    step = math.degrees(STEP_M / 6.371e6) if crs.is_geographic else STEP_M / (factor or 1.0)
    try:
        return [
            shapely.transform(shapely.segmentize(p, step), to_lonlat.transform, interleaved=False) for p in polygons
        ]
    except ProjError as err:
        raise InvalidInputError(f"the area cannot be reprojected from {crs.name} to lon/lat: {err}") from err


def _check_world(polygons: list[BaseGeometry], path: str) -> None:
    for polygon in polygons:
        rings = shapely.get_rings(polygon)
        for ring in rings:
            lons, lats = shapely.get_coordinates(ring).T
            if not (abs(lons) <= 180).all() or not (abs(lats) <= 90).all():
                far = next((x, y) for x, y in zip(lons, lats, strict=True) if not (abs(x) <= 180 and abs(y) <= 90))
                raise InvalidInputError(
                    f"area {path} has a vertex at lon {far[0]:g}, lat {far[1]:g}, outside -180..180, -90..90: is the "
                    f"CRS right? If it crosses 180 degrees, {ANTIMERIDIAN}"
                )
            spans = abs(lons[1:] - lons[:-1])
            if ((spans > 180) & ~((abs(lons[1:]) == 180) & (abs(lons[:-1]) == 180))).any():
                raise InvalidInputError(
                    f"area {path} has an edge that spans {spans.max():g} degrees of longitude: {ANTIMERIDIAN}"
                )
