"""Pictures of UTM ground moved to Web Mercator, so that all zones and layers share one map.

A picture of a UTM zone is turned by up to 2.5 degrees against meridians, and neighbouring zones meet at an angle. Every
target pixel takes the value of the source pixel under its centre. Places are exact at the nodes of a grid and
interpolated between them. Longitudes are continuous around a reference, so that an area over the antimeridian stays in
one piece. Pure: arrays in, arrays out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pipeline.types import Box

Bounds = tuple[float, float, float, float]
"""(x_min, y_min, x_max, y_max) in metres of EPSG:3857; x may lie beyond +-180 degrees."""
RADIUS_M = 6_378_137.0
"""Of the sphere of EPSG:3857: the semi-major axis of WGS 84."""
NODES = 65
"""Grid nodes per side. Between them a place is off by at most side^2 / 8 R: 5 m over 1000 km, where a pixel of a
picture has 700 m, and less than a millimetre over 10 km."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """Where a picture of a zone lies, north-up, in the plane of EPSG:326NN (also in the south, as ``types.Box``).

    Attributes:
        zone: UTM zone.
        west_m: x of the western edge.
        north_m: y of the northern edge.
        pixel_m: Side of a pixel.
        height: Rows.
        width: Columns.
    """

    zone: int
    west_m: float
    north_m: float
    pixel_m: float
    height: int
    width: int

    @classmethod
    def of(cls, box: Box) -> Ground:
        """One pixel per pixel of ``box``."""
        west, _, _, north = box.bounds_m
        return cls(zone=box.zone, west_m=west, north_m=north, pixel_m=box.res_m, height=box.height, width=box.width)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Warp:
    """Which source pixel lies under the centre of every target pixel.

    Attributes:
        bounds: Of the target.
        rows: (row, col) float32 row of the source, in pixels, 0.5 is the centre of the first.
        cols: (row, col) float32 column of the source.
    """

    bounds: Bounds
    rows: NDArray[np.float32]
    cols: NDArray[np.float32]

    def nearest(self, values: NDArray[Any], *, fill: int) -> NDArray[Any]:
        """The nearest value; ``fill`` outside.

        Args:
            values: (row, col) of any dtype.
            fill: Value of target pixels without a source.

        Returns:
            (row, col) of the same dtype.
        """
        rows, cols, inside = self._nearest(values.shape[0], values.shape[1])
        return np.where(inside, values[rows, cols], values.dtype.type(fill))

    def colours(self, rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Colours between the four nearest pixels; transparent ones do not mix in, and stay transparent.

        Args:
            rgba: (row, col, 4) uint8.

        Returns:
            (row, col, 4) uint8, alpha 0 or 255 as the nearest pixel has it.
        """
        height, width = rgba.shape[:2]
        rows, cols, inside = self._nearest(height, width)
        down, across = self.rows - np.float32(0.5), self.cols - np.float32(0.5)
        top, left = np.floor(down).astype(np.int32), np.floor(across).astype(np.int32)
        below, right = (down - top)[..., None], (across - left)[..., None]
        total = np.zeros((*self.rows.shape, 3), np.float32)
        weight = np.zeros((*self.rows.shape, 1), np.float32)
        for row, share_row in ((top, 1 - below), (top + 1, below)):
            for col, share_col in ((left, 1 - right), (left + 1, right)):
                part = rgba[np.clip(row, 0, height - 1), np.clip(col, 0, width - 1)]
                share = share_row * share_col * (part[..., 3:] > 0)
                total += share * part[..., :3]
                weight += share
        out = np.zeros((*self.rows.shape, 4), np.uint8)
        out[..., 3] = np.where(inside & (rgba[rows, cols, 3] > 0), 255, 0)
        out[..., :3] = np.where(out[..., 3:] > 0, np.rint(total / np.maximum(weight, 1e-6)), 0)
        return out

    def _nearest(self, height: int, width: int) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.bool_]]:
        rows, cols = np.floor(self.rows).astype(np.int32), np.floor(self.cols).astype(np.int32)
        inside = (rows >= 0) & (rows < height) & (cols >= 0) & (cols < width)
        return np.clip(rows, 0, height - 1), np.clip(cols, 0, width - 1), inside


def warp(ground: Ground, *, most_px: int, reference_lon: float) -> Warp:
    """The way from a picture over ``ground`` to Web Mercator.

    Args:
        ground: Of the source.
        most_px: Longest side of the target; it gets no more pixels than twice those of the source.
        reference_lon: Longitudes are within 180 degrees of it.
    """
    from pyproj import Transformer  # noqa: PLC0415

    bounds = bounds_of(ground, reference_lon=reference_lon)
    x_min, y_min, x_max, y_max = bounds
    longest = max(x_max - x_min, y_max - y_min)
    step = longest / min(most_px, 2 * max(ground.height, ground.width))
    height, width = (max(1, math.ceil(side / step - 1e-9)) for side in (y_max - y_min, x_max - x_min))
    node_x, node_y = np.linspace(x_min, x_max, NODES), np.linspace(y_max, y_min, NODES)
    lon, lat = np.meshgrid(np.degrees(node_x / RADIUS_M), np.degrees(np.arctan(np.sinh(node_y / RADIUS_M))))
    to_zone = Transformer.from_crs(4326, 32600 + ground.zone, always_xy=True)
    x, y = to_zone.transform((lon + 180) % 360 - 180, lat)
    return Warp(
        bounds=bounds,
        rows=_between((ground.north_m - y) / ground.pixel_m, height, width),
        cols=_between((x - ground.west_m) / ground.pixel_m, height, width),
    )


def bounds_of(ground: Ground, *, reference_lon: float) -> Bounds:
    """The smallest rectangle of Web Mercator around ``ground``; edges are bent, so they are followed."""
    from pyproj import Transformer  # noqa: PLC0415

    east = np.linspace(0, ground.width * ground.pixel_m, NODES) + ground.west_m
    south = ground.north_m - np.linspace(0, ground.height * ground.pixel_m, NODES)
    x = np.concatenate([east, east, np.full(NODES, east[0]), np.full(NODES, east[-1])])
    y = np.concatenate([np.full(NODES, south[0]), np.full(NODES, south[-1]), south, south])
    lon, lat = Transformer.from_crs(32600 + ground.zone, 4326, always_xy=True).transform(x, y)
    across, up = project(lon, lat, reference_lon=reference_lon)
    return float(across.min()), float(up.min()), float(across.max()), float(up.max())


def rings(boxes: Sequence[Box], *, reference_lon: float) -> list[tuple[tuple[float, float], ...]]:
    """(lon, lat) of the corners of every box, clockwise from the north-west.

    The edges between them are drawn straight: of a box of 20 km they bend by less than 10 m.
    """
    from pyproj import Transformer  # noqa: PLC0415

    found: list[tuple[tuple[float, float], ...]] = [()] * len(boxes)
    for zone in {box.zone for box in boxes}:
        places = [n for n, box in enumerate(boxes) if box.zone == zone]
        sides = np.array([boxes[n].bounds_m for n in places])
        to_lonlat = Transformer.from_crs(32600 + zone, 4326, always_xy=True)
        lon, lat = to_lonlat.transform(sides[:, [0, 2, 2, 0]], sides[:, [3, 3, 1, 1]])
        near = near_lon(np.asarray(lon), reference_lon=reference_lon)
        for n, ring in zip(places, np.stack([near, lat], axis=-1).tolist(), strict=True):
            found[n] = tuple((x, y) for x, y in ring)
    return found


def project(
    lon: NDArray[np.float64], lat: NDArray[np.float64], *, reference_lon: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Web Mercator metres of lon/lat degrees (EPSG Guidance Note 7-2, method 1024)."""
    near = near_lon(lon, reference_lon=reference_lon)
    return RADIUS_M * np.radians(near), RADIUS_M * np.arcsinh(np.tan(np.radians(lat)))


def near_lon(lon: NDArray[np.float64], *, reference_lon: float) -> NDArray[np.float64]:
    """The same meridians within 180 degrees of ``reference_lon``.

    >>> near_lon(np.array([-179.5]), reference_lon=177.0).tolist()
    [180.5]
    """
    return reference_lon + (lon - reference_lon + 180) % 360 - 180


def _between(nodes: NDArray[np.float64], height: int, width: int) -> NDArray[np.float32]:
    """Values at the centres of ``height`` x ``width`` pixels from those at the nodes, which include the edges."""
    last = NODES - 1
    down = (np.arange(height) + 0.5) / height * last
    across = (np.arange(width) + 0.5) / width * last
    row, col = np.minimum(down.astype(int), last - 1), np.minimum(across.astype(int), last - 1)
    below, right = (down - row)[:, None], (across - col)[None, :]
    upper = nodes[row][:, col] * (1 - right) + nodes[row][:, col + 1] * right
    lower = nodes[row + 1][:, col] * (1 - right) + nodes[row + 1][:, col + 1] * right
    return np.asarray(upper * (1 - below) + lower * below, np.float32)
