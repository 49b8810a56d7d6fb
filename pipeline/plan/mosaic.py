"""rslearn's coverage rule: which scenes of a period make the mosaic of a window, from footprints alone.

Follows ``rslearn.data_sources.utils`` 0.1.19 (space mode ``MOSAIC``, one group per period, one overlap) and the
projection of ``rslearn.utils.geometry.safely_reproject_within_valid_area``; the window is a ranking cell. Scenes come
in the order in which rslearn meets them: as Planetary Computer's search engine answers when not asked for an order
(pgstac, ``sort_sqlorderby``: ``datetime DESC, id DESC``), then sorted stably by cloud cover where the layer says so.

What is ours and not rslearn's, because its own outcome is an accident there:

* a reprocessed scene replaces its older version before the rule is asked (rslearn takes the one that says less cloud);
* a scene without cloud cover comes last (rslearn raises KeyError);
* a scene taken at the very instant in which a period begins belongs to it (rslearn's comparison of ranges loses it);
* periods are those of the request: rslearn counts them back from the end and drops an incomplete first one, so for the
  same set use ``inputs.anchor: end`` and a range that ``inputs.period_days`` divides.

Coordinates: footprints lon/lat EPSG:4326 inside -180..180, areas in square metres of the cell's plane.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

from pipeline.plan.aoi import only_polygons
from pipeline.plan.footprints import wrap

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shapely.geometry.base import BaseGeometry

    from pipeline.types import Cell

MIN_SHARE = 0.1
"""A scene is taken if it adds this share of its own area or of what is still uncovered
(rslearn ``MOSAIC_MIN_ITEM_COVERAGE``)."""
UNCOVERED_SHARE = 0.01
"""A mosaic is complete when less than this share of the window is uncovered (rslearn ``MOSAIC_REMAINDER_EPSILON``)."""
CLIP_DEG = 1.0
"""Footprints are cut to the window's bounds plus this and half its size before they are projected
(rslearn ``WGS84_CLIP_BUFFER_DEGREES``); "its own area" is the area of what remains."""


class Window:
    """A cell as rslearn sees a window: corners projected, edges straight in lon/lat.

    Args:
        cell: The cell.
        to_lonlat: Transformer from the cell's plane to lon/lat (``always_xy``).
        to_plane: The way back.
    """

    def __init__(self, cell: Cell, *, to_lonlat: Any, to_plane: Any) -> None:
        bounds = cell.box.bounds_m
        self.plane = shapely.box(*bounds)
        self._to_plane = to_plane
        corners = shapely.get_coordinates(self.plane)
        lon, lat = to_lonlat.transform(corners[:, 0], corners[:, 1])
        self._outline = wrap(shapely.polygons(np.column_stack([lon, lat])))
        self._clip = shapely.union_all([_around(part) for part in shapely.get_parts(self._outline)])
        shapely.prepare(self._outline)
        shapely.prepare(self._clip)

    def project(self, footprint: BaseGeometry) -> BaseGeometry | None:
        """A footprint near the window, in the window's plane; None when it does not touch the window."""
        if not self._outline.intersects(footprint):
            return None
        near = footprint if self._clip.contains(footprint) else footprint.intersection(self._clip)
        shape = shapely.transform(_polygons(near), self._to_plane.transform, interleaved=False)
        if not shape.is_valid:
            shape = _polygons(shapely.make_valid(shape))
        return shape if shape.area > 0 else None


def mosaic(window: Window, footprints: Iterable[BaseGeometry]) -> tuple[int, ...]:
    """Choose scenes until the window is covered.

    Args:
        window: The window.
        footprints: Lon/lat polygons, in the order in which scenes are tried; consumed only as far as needed.

    Returns:
        Positions of the scenes taken, ascending.
    """
    taken: list[int] = []
    hole = window.plane
    for i, footprint in enumerate(footprints):
        shape = window.project(footprint)
        if shape is None:
            continue
        added = shape.intersection(hole).area
        if added / shape.area < MIN_SHARE and added / hole.area < MIN_SHARE:
            continue
        hole = _polygons(hole.difference(shape))
        taken.append(i)
        # rslearn does not look at the limit after the first scene: one that leaves 0.5 % open gets a second.
        if hole.is_empty or (len(taken) > 1 and hole.area / window.plane.area < UNCOVERED_SHARE):
            break
    return tuple(taken)


def _polygons(geometry: BaseGeometry) -> BaseGeometry:
    return geometry if geometry.geom_type == "Polygon" else only_polygons(geometry)


def _around(part: BaseGeometry) -> BaseGeometry:
    west, south, east, north = part.bounds
    pad = CLIP_DEG + max(east - west, north - south) / 2
    return shapely.box(west - pad, south - pad, east + pad, north + pad)
