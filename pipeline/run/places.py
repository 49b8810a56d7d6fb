"""Places of a sample: points or polygons of a file, and the blocks of the lattice that stand for each of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import InvalidInputError
from pipeline.plan import aoi, grid
from pipeline.types import BLOCK_PX, PIXEL_M, Box, Tile

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry

NAMES = ("name", "place", "id", "label")
"""Columns that may hold a place's name, in this order, in upper or lower case."""
KINDS = ("Point", "MultiPoint", "Polygon", "MultiPolygon")
MIDDLE_M = 50.0
"""Half the side of the square that stands for a block in its plan: it lies inside, whatever the rounding of degrees."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spot:
    """One place.

    Attributes:
        name: For people.
        wkb: Point or polygon, lon/lat EPSG:4326, hexadecimal WKB.
        lon: Of a point in it, degrees.
        lat: Of that point, degrees.
    """

    name: str
    wkb: str
    lon: float
    lat: float


def read_places(path: str) -> tuple[Spot, ...]:
    """The places of a file, one per row, in its order.

    Args:
        path: Points or polygons in any vector format, GeoParquet, or a table with lon and lat. A column ``name``
            (``place``, ``id``, ``label``) names them.

    Raises:
        InvalidInputError: No such file, nothing in it, lines, broken polygons, or coordinates that are not of this
            world or lie beyond UTM; the row is named.
    """
    import shapely  # noqa: PLC0415

    from pipeline.maps.labels import read_frame  # noqa: PLC0415

    if not Path(path).exists():
        raise InvalidInputError(
            f"place file {path} does not exist: give points or polygons (GeoJSON, GeoPackage, ...), a CSV with lon and "
            "lat, or 'simulated'"
        )
    frame = read_frame(path, what="place file")
    names, found = _names(frame), []
    for row, geometry in enumerate(frame.geometry):
        if geometry is None or geometry.is_empty:
            continue
        _check(geometry, f"place file {path}, row {row}")
        flat = shapely.force_2d(geometry)
        inside = flat.representative_point()
        wkb = str(shapely.to_wkb(flat, hex=True, byte_order=1))
        found.append(Spot(name=names[row], wkb=wkb, lon=float(inside.x), lat=float(inside.y)))
    if not found:
        raise InvalidInputError(f"place file {path} holds no point and no polygon")
    return tuple(found)


def blocks_of(spot: Spot, *, count: int) -> tuple[Box, ...]:
    """The 10 m blocks that stand for a place.

    Args:
        spot: The place.
        count: How many at most: of a polygon those that it touches, evenly spread over them; of a point the one that
            holds it and those next to it.
    """
    import shapely  # noqa: PLC0415

    geometry = shapely.from_wkb(spot.wkb)
    if geometry.geom_type in KINDS[:2]:
        return _nearest(spot, count)
    touched = [
        tile.box
        for zone, part in aoi.split_zones(geometry)
        for tile, _ in grid.wanted_blocks(zone, part, tile_px=BLOCK_PX)
    ]
    chosen = min(count, len(touched))
    return tuple(touched[(2 * i + 1) * len(touched) // (2 * chosen)] for i in range(chosen))


def middles(boxes: tuple[Box, ...]) -> BaseGeometry:
    """lon/lat squares in the middle of blocks: the area of a plan that wants these blocks and no other."""
    import shapely  # noqa: PLC0415
    from pyproj import Transformer  # noqa: PLC0415

    squares = []
    for box in boxes:
        west, south, east, north = box.bounds_m
        x, y = (west + east) / 2, (south + north) / 2
        square = shapely.box(x - MIDDLE_M, y - MIDDLE_M, x + MIDDLE_M, y + MIDDLE_M)
        to_lonlat = Transformer.from_crs(box.epsg, 4326, always_xy=True)
        squares.append(shapely.transform(square, to_lonlat.transform, interleaved=False))
    return shapely.multipolygons(squares)


def _nearest(spot: Spot, count: int) -> tuple[Box, ...]:
    from pyproj import Transformer  # noqa: PLC0415

    zone, side_m = aoi.zone_of(spot.lon), BLOCK_PX * PIXEL_M
    x, y = Transformer.from_crs(4326, 32600 + zone, always_xy=True).transform(spot.lon, spot.lat)
    row, col = math.floor(-y / side_m), math.floor(x / side_m)
    reach = range(-math.isqrt(count), math.isqrt(count) + 1)

    def distance(place: tuple[int, int]) -> tuple[float, tuple[int, int]]:
        return math.hypot((place[0] + 0.5) * side_m + y, (place[1] + 0.5) * side_m - x), place

    near = sorted(((row + down, col + across) for down in reach for across in reach), key=distance)
    return tuple(Tile(zone=zone, row=r, col=c, tile_px=BLOCK_PX).box for r, c in near[:count])


def _names(frame: Any) -> list[str]:
    columns = {str(column).lower(): column for column in reversed(frame.columns)}
    named = next((columns[name] for name in NAMES if name in columns), None)
    given = ["" if value is None or value != value else str(value).strip() for value in frame[named]] if named else []  # noqa: PLR0124 - NaN is not itself
    return [(given[row] if given else "") or f"place {row + 1}" for row in range(len(frame))]


def _check(geometry: BaseGeometry, where: str) -> None:
    import shapely  # noqa: PLC0415

    if geometry.geom_type not in KINDS:
        raise InvalidInputError(f"{where} is a {geometry.geom_type}: places are points or polygons")
    west, south, east, north = geometry.bounds
    if not (-180 <= west <= east <= 180 and aoi.LAT_MIN <= south <= north <= aoi.LAT_MAX):  # NaN fails too
        raise InvalidInputError(
            f"{where} lies at ({west:.6g}, {south:.6g}) to ({east:.6g}, {north:.6g}): longitudes are -180..180, "
            f"latitudes of UTM {aoi.LAT_MIN:g}..{aoi.LAT_MAX:g}; wrong CRS, or coordinates that are not degrees"
        )
    if not shapely.is_valid(geometry):
        raise InvalidInputError(f"{where} is not a valid polygon: {shapely.is_valid_reason(geometry)} (x y)")
