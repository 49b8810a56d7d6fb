"""The ground that an item covers: valid lon/lat polygons inside -180..180, cut at the antimeridian."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

from pipeline.errors import DataError
from pipeline.plan.aoi import only_polygons
from pipeline.plan.item_values import name_of, quoted

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry

_UNREADABLE = (
    KeyError,
    TypeError,
    ValueError,
    AttributeError,
    IndexError,
    OverflowError,
    RecursionError,
    shapely.errors.ShapelyError,
)
"""What shapely raises on an object that is not GeoJSON."""


def footprint_of(item: dict[str, Any]) -> BaseGeometry:
    """Valid polygons of an item, cut at the antimeridian; the bbox where the geometry is null.

    Raises:
        DataError: Neither a polygon nor a bbox.
    """
    try:
        with np.errstate(all="ignore"):
            geometry = shapely.force_2d(shapely.geometry.shape(item["geometry"])) if item.get("geometry") else None
            if geometry is None:
                geometry = _bbox_polygon(item["bbox"])
            # One NaN would make every comparison of the tree false: such a footprint counts as empty.
            known = bool(np.isfinite(shapely.get_coordinates(geometry)).all())
            geometry = wrap(geometry) if known else shapely.MultiPolygon()
    except _UNREADABLE as err:
        raise DataError(f"{name_of(item)} has neither a readable geometry nor a bbox") from err
    if geometry.is_empty:
        raise DataError(f"{name_of(item)} has a footprint without area: {quoted(item.get('geometry'), 120)}")
    return geometry


def wrap(geometry: BaseGeometry) -> BaseGeometry:
    """Bring lon/lat polygons into -180..180 and repair them.

    A ring wider than 180 degrees is taken for one that crosses the antimeridian with wrapped vertices, because no
    granule is that wide; vertices beyond +-180 are moved to the other side.
    """
    west, _, east, _ = geometry.bounds or (0.0, 0.0, 0.0, 0.0)
    if geometry.geom_type == "Polygon" and -180 <= west <= east <= 180 and east - west <= 180 and geometry.is_valid:
        return shapely.normalize(geometry)
    pieces = []
    for part in shapely.get_parts(geometry):
        west, _, east, _ = part.bounds or (0.0, 0.0, 0.0, 0.0)
        moved = shapely.transform(part, _unwrap) if east - west > 180 else part
        moved = moved if shapely.is_valid(moved) else shapely.make_valid(moved)
        for turn in (-360.0, 0.0, 360.0):
            world = shapely.box(-180 + turn, -90, 180 + turn, 90)
            pieces.append(shapely.transform(shapely.intersection(moved, world), _shift(-turn)))
    cut = [only_polygons(p) for p in pieces if not p.is_empty]
    return shapely.normalize(only_polygons(shapely.union_all(cut)))


def _unwrap(coordinates: Any) -> Any:
    moved = coordinates.copy()
    moved[:, 0] += 360.0 * (moved[:, 0] < 0)
    return moved


def _shift(degrees: float) -> Any:
    return lambda coordinates: coordinates + np.array([degrees, 0.0])


def _bbox_polygon(bbox: Any) -> BaseGeometry:
    values = [bbox[k] for k in ("xmin", "ymin", "xmax", "ymax")] if isinstance(bbox, dict) else list(bbox)
    west, south, east, north = (values[0], values[1], values[3], values[4]) if len(values) == 6 else values
    # STAC: a bbox that crosses the antimeridian has west > east (RFC 7946 section 5.2).
    return shapely.box(west, south, east + 360 if west > east else east, north)
