"""Land forms as functions of lattice position: rivers, ponds and pits, woods, parcels, towns and roads.

Every function takes the positions ``y`` and ``x`` of pixel centres in pixels of 10 m (row grows southwards) as float64
arrays of one shape and returns arrays of that shape. What a pixel gets depends on its position and the salt alone;
the loops over sites visit all that can reach a pixel. Knows nothing of classes, spectra or dates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.simulate.noise import Site, fractal, grid_noise, hashed, sites_near, unit, value_noise, voronoi

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Field = NDArray[np.float64]
    Mask = NDArray[np.bool_]

_HEADINGS = np.array(
    [(1.0, 0.0), (0.96, 0.28), (0.8, 0.6), (0.6, 0.8), (0.28, 0.96), (0.96, -0.28), (0.8, -0.6), (0.936, 0.352)]
)
"""(cos, sin) of field and street axes, exact in decimals."""
_ROAD_BEND_PX = 22.0
"""Roads leave the straight line by at most half of this."""
TOWN_SPACING_PX = 210
"""Towns lie about 2 km apart."""


def river(y: Field, x: Field, *, salt: int) -> tuple[Mask, Field]:
    """Meandering rivers 50-110 m wide along a contour of smooth noise, and the distance to their middle in pixels."""
    turned_y, turned_x = 0.8 * y + 0.6 * x, 0.8 * x - 0.6 * y
    bend_y = turned_y + 95.0 * (fractal(y, x, wave_px=95.0, salt=salt + 11, octaves=2) - 0.5)
    bend_x = turned_x + 95.0 * (fractal(y, x, wave_px=95.0, salt=salt + 17, octaves=2) - 0.5)
    here = value_noise(bend_y, bend_x, wave_px=430.0, salt=salt)
    south = value_noise(bend_y + 1.0, bend_x, wave_px=430.0, salt=salt)
    east = value_noise(bend_y, bend_x + 1.0, wave_px=430.0, salt=salt)
    slope = np.sqrt((south - here) ** 2 + (east - here) ** 2)
    away = np.abs(here - 0.5) / np.maximum(slope, 2e-4)
    half_width = 2.6 + 3.0 * grid_noise(y, x, wave_px=160.0, salt=salt + 23)
    return away < half_width, away - half_width


def blobs(
    y: Field, x: Field, *, spacing_px: int, reach_px: int, salt: int, radius_px: Callable[[Site], float]
) -> Field:
    """Distance to the nearest blob's centre over its radius, below 1 inside; the outline is uneven."""
    ratio = np.full(y.shape, np.inf)
    (row, col), (height, width) = _corner(y, x), y.shape
    for where in sites_near(
        (row, row + height), (col, col + width), spacing_px=spacing_px, reach_px=reach_px, salt=salt
    ):
        radius, part = radius_px(where), _around(y, x, where, reach_px=reach_px)
        if radius > 0 and part is not None:
            away = np.sqrt((y[part] - where.y) ** 2 + (x[part] - where.x) ** 2)
            ratio[part] = np.minimum(ratio[part], away / radius)
    uneven = fractal(y, x, wave_px=24.0, salt=salt + 3, octaves=3)
    return np.asarray(ratio * (0.3 + 1.4 * uneven))


def woods(y: Field, x: Field, *, salt: int) -> Field:
    """How wooded the land is, 0..1, with borders as smooth as old forest edges."""
    warp_y = y + 40.0 * (grid_noise(y, x, wave_px=55.0, salt=salt + 1) - 0.5)
    warp_x = x + 40.0 * (grid_noise(y, x, wave_px=55.0, salt=salt + 2) - 0.5)
    return fractal(warp_y, warp_x, wave_px=190.0, salt=salt, octaves=2)


def stands(y: Field, x: Field, *, salt: int) -> tuple[NDArray[np.uint64], Field]:
    """Forest stands of some 250 m: identity and distance to the next stand, pixels."""
    warp_y = y + 8.0 * (grid_noise(y, x, wave_px=12.0, salt=salt + 1) - 0.5)
    warp_x = x + 8.0 * (grid_noise(y, x, wave_px=12.0, salt=salt + 2) - 0.5)
    return voronoi(warp_y, warp_x, spacing_px=26, salt=salt)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Parcels:
    """Fields.

    Attributes:
        bits: (row, col) uint64, 64 hashed bits per parcel.
        edge_px: (row, col) distance to the parcel's border.
        track_px: (row, col) distance to the border of the block of parcels, where a track runs.
        along_px: (row, col) position across the tillage, for its stripes.
    """

    bits: NDArray[np.uint64]
    edge_px: Field
    track_px: Field
    along_px: Field


def parcels(y: Field, x: Field, *, salt: int) -> Parcels:
    """Rectangular parcels of 100-500 m in blocks that turn to the lie of the land."""
    warp_y = y + 18.0 * (grid_noise(y, x, wave_px=48.0, salt=salt + 1) - 0.5)
    warp_x = x + 18.0 * (grid_noise(y, x, wave_px=48.0, salt=salt + 2) - 0.5)
    block, track_px = voronoi(warp_y, warp_x, spacing_px=88, salt=salt)
    cos, sin = np.moveaxis(_HEADINGS[(block >> np.uint64(48)).astype(np.int64) % len(_HEADINGS)], -1, 0)
    u, v = y * cos + x * sin, x * cos - y * sin
    depth = 14.0 + 24.0 * unit(block, lane=0)
    strip = np.floor(v / depth)
    of_strip = hashed(block.view(np.int64), strip, salt=salt + 5)
    length = 11.0 + 38.0 * unit(of_strip, lane=0) ** 2
    start = 50.0 * unit(of_strip, lane=1)
    field = np.floor((u + start) / length)
    in_u, in_v = (u + start) - field * length, v - strip * depth
    edge_px = np.minimum(np.minimum(in_u, length - in_u), np.minimum(in_v, depth - in_v))
    bits = hashed(of_strip.view(np.int64), field, salt=salt + 7)
    return Parcels(bits=bits, edge_px=np.minimum(edge_px, track_px), track_px=track_px, along_px=v)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Towns:
    """Settlements.

    Attributes:
        ratio: (row, col) distance to the nearest town's middle over its radius, below 1 inside.
        street: (row, col) bool: pixel of a street, meaningful inside a town.
        plot: (row, col) uint64 bits per building plot.
        works: (row, col) 0..1, above 0.5 in the part of town with large halls.
    """

    ratio: Field
    street: Mask
    plot: NDArray[np.uint64]
    works: Field


def town_radius(where: Site) -> float:
    """Radius of the town at a site, pixels: none, village or small town."""
    if where.dice[0] < 0.18:
        return 0.0
    return 13.0 + 12.0 * where.dice[1] if where.dice[0] < 0.72 else 28.0 + 20.0 * where.dice[1]


def towns(y: Field, x: Field, *, salt: int, everywhere: bool = False) -> Towns:
    """Towns with a street grid that turns from quarter to quarter; ``everywhere`` makes one endless city."""
    if everywhere:
        ratio = np.zeros(y.shape)
    else:
        ratio = blobs(y, x, spacing_px=TOWN_SPACING_PX, reach_px=90, salt=salt, radius_px=town_radius)
    quarter, edge_px = voronoi(y, x, spacing_px=44, salt=salt + 31)
    cos, sin = np.moveaxis(_HEADINGS[(quarter >> np.uint64(48)).astype(np.int64) % len(_HEADINGS)], -1, 0)
    u, v = y * cos + x * sin, x * cos - y * sin
    works = grid_noise(y, x, wave_px=38.0, salt=salt + 37)
    big = works > 0.62
    pitch_u, pitch_v = np.where(big, 15.0, 7.0), np.where(big, 19.0, 10.0)
    in_u, in_v = u - np.floor(u / pitch_u) * pitch_u, v - np.floor(v / pitch_v) * pitch_v
    street = (in_u < 1.15) | (in_v < 1.15) | (edge_px < 0.8)
    size = np.where(big, 5.0, 1.6)
    plot = hashed(np.floor(u / size), np.floor(v / size), salt=salt + 41)
    return Towns(ratio=ratio, street=street, plot=plot, works=works)


def roads(y: Field, x: Field, *, salt: int) -> Mask:
    """Roads about 15 m wide from every town site to its eastern and southern neighbour.

    ``salt`` must be the towns'.
    """
    bend_y = y + _ROAD_BEND_PX * (grid_noise(y, x, wave_px=75.0, salt=salt + 43) - 0.5)
    bend_x = x + _ROAD_BEND_PX * (grid_noise(y, x, wave_px=75.0, salt=salt + 47) - 0.5)
    away = np.full(y.shape, np.inf)
    (row, col), (height, width) = _corner(y, x), y.shape
    reach = 3 * TOWN_SPACING_PX
    near = sites_near((row, row + height), (col, col + width), spacing_px=TOWN_SPACING_PX, reach_px=reach, salt=salt)
    by_key = {one.key: one for one in near}
    for one in near:
        for down, right in ((0, 1), (1, 0)):
            # A neighbour beyond the reach of sites_near belongs to a road that cannot come here.
            other = by_key.get((one.key[0] + down, one.key[1] + right))
            if other is None or one.dice[2 + down] < 0.12:
                continue
            part = _between(y, x, one, other)
            if part is not None:
                away[part] = np.minimum(away[part], _to_segment(bend_y[part], bend_x[part], one, other))
    return np.asarray(away < 0.75)


def _to_segment(y: Field, x: Field, one: Site, other: Site) -> Field:
    step_y, step_x = other.y - one.y, other.x - one.x
    share = ((y - one.y) * step_y + (x - one.x) * step_x) / (step_y * step_y + step_x * step_x)
    share = np.minimum(np.maximum(share, 0.0), 1.0)
    return np.asarray(np.sqrt((y - one.y - share * step_y) ** 2 + (x - one.x - share * step_x) ** 2))


def _corner(y: Field, x: Field) -> tuple[int, int]:
    return int(np.floor(y[0, 0])), int(np.floor(x[0, 0]))


def _around(y: Field, x: Field, where: Site, *, reach_px: int) -> tuple[slice, slice] | None:
    return _part(y, x, (where.y - reach_px, where.y + reach_px), (where.x - reach_px, where.x + reach_px))


def _between(y: Field, x: Field, one: Site, other: Site) -> tuple[slice, slice] | None:
    low_y, low_x = min(one.y, other.y) - _ROAD_BEND_PX, min(one.x, other.x) - _ROAD_BEND_PX
    high_y, high_x = max(one.y, other.y) + _ROAD_BEND_PX, max(one.x, other.x) + _ROAD_BEND_PX
    return _part(y, x, (low_y, high_y), (low_x, high_x))


def _part(y: Field, x: Field, span_y: tuple[float, float], span_x: tuple[float, float]) -> tuple[slice, slice] | None:
    (row, col), (height, width) = _corner(y, x), y.shape
    top, left = math.floor(span_y[0]) - row, math.floor(span_x[0]) - col
    bottom, right = math.ceil(span_y[1]) - row + 1, math.ceil(span_x[1]) - col + 1
    if bottom <= 0 or right <= 0 or top >= height or left >= width:
        return None
    return slice(max(top, 0), min(bottom, height)), slice(max(left, 0), min(right, width))
