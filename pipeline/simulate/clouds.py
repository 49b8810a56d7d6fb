"""Clouds, their shadows and the scene classification (SCL) that goes with them.

A cloud field is a pure function of lattice position and weather, so the two tiles of one datatake show the same
clouds. Knows nothing of files.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.simulate.landscape import WATER
from pipeline.simulate.noise import fractal, salt_of
from pipeline.simulate.spectra import BANDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pipeline.types import Box

SHADOW_PX = (58, 24)
"""A shadow lies this many rows north and columns west of its cloud: about 850 m high, sun at 37 degrees zenith."""
_SOFT = 0.07
"""Rise of the cloud field over which a cloud's edge goes from clear to opaque."""
_CLOUD = dict(zip(BANDS, (60, 62, 64, 66, 67, 69, 70, 71, 71, 58, 46, 35), strict=True))
"""Reflectance of cloud, percent, before its brightness."""
_SHADE = 0.55
"""Share of the light that a full shadow takes."""

SCL_NODATA, SCL_SHADOW, SCL_VEGETATION, SCL_BARE, SCL_WATER, SCL_UNCLASSIFIED = 0, 3, 4, 5, 6, 7
SCL_CLOUD_MEDIUM, SCL_CLOUD_HIGH, SCL_CIRRUS = 8, 9, 10
SCL_CLEAR = (SCL_VEGETATION, SCL_BARE, SCL_WATER)
"""Classes that a scene's SCL gives only where neither cloud nor shadow dims a pixel at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weather:
    """The clouds of one datatake.

    Attributes:
        salt: Which clouds.
        level: The cloud field must rise above this to be a cloud; 1 and more is a clear sky, 0.5 about half covered.
        east: Rise of the field per 100 pixels eastwards of ``col``.
        col: Lattice column where ``east`` is zero.
        veil: Greatest opacity of a thin high veil, 0..1.
    """

    salt: int
    level: float = 1.0
    east: float = 0.0
    col: int = 0
    veil: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sky:
    """What stands between ground and sensor, on 20 m pixels; all (row, col) float32.

    Attributes:
        opacity: Cloud, 0 clear .. 1 opaque.
        bright: Brightness of the cloud.
        shadow: 0 lit .. 1 shaded.
    """

    opacity: NDArray[np.float32]
    bright: NDArray[np.float32]
    shadow: NDArray[np.float32]


def level_for(weather: Weather, boxes: Sequence[Box], *, share: float) -> float:
    """The ``level`` at which clouds, thin edges included, cover ``share`` of the cloudiest of some 10 m boxes."""
    levels = []
    for box in boxes:
        y, x = np.arange(box.row, box.row_stop, 4) + 0.5, np.arange(box.col, box.col_stop, 4) + 0.5
        field = np.sort(_above(*_grid(y, x), replace(weather, level=0.0)), axis=None)
        levels.append(float(field[min(int((1.0 - share) * field.size), field.size - 1)]))
    return max(levels)


def sky_over(box: Box, weather: Weather) -> Sky:
    """The sky over a 10 m box of whole 20 m pixels."""
    down, right = SHADOW_PX[0] // 2, SHADOW_PX[1] // 2
    y = np.arange(box.row // 2, box.row_stop // 2 + down) * 2.0 + 1.0
    x = np.arange(box.col // 2, box.col_stop // 2 + right) * 2.0 + 1.0
    y, x = _grid(y, x)
    above = _above(y, x, weather)
    shadow = _smooth(above[down:, right:] / _SOFT)
    above, y, x = above[:-down, :-right], y[:-down, :-right], x[:-down, :-right]
    opacity = 0.98 * _smooth(above / _SOFT)
    if weather.veil > 0:
        high = fractal(0.3 * y, x, wave_px=120.0, salt=salt_of(weather.salt, "veil"), octaves=2)
        opacity = np.maximum(opacity, weather.veil * _smooth((high - 0.45) / 0.3))
    bright = 0.85 + 0.5 * np.minimum(np.maximum(above, 0.0), 0.5)
    return Sky(opacity=opacity.astype(np.float32), bright=bright.astype(np.float32), shadow=shadow.astype(np.float32))


def seen_through(reflectance: dict[str, NDArray[np.float32]], sky: Sky) -> dict[str, NDArray[np.float32]]:
    """Reflectance as the sensor sees it: ground dimmed by shadow, mixed with cloud; unchanged where the sky is clear.

    Args:
        reflectance: Band -> (row, col) float32 at 10 m.
        sky: Over the same ground, half as many rows and columns.
    """
    ground_share = _to_10m((np.float32(1.0) - np.float32(_SHADE) * sky.shadow) * (np.float32(1.0) - sky.opacity))
    lit = sky.bright * np.float32(0.013)
    result = {}
    for band, ground in reflectance.items():
        cloud = np.minimum(np.float32(_CLOUD[band]) * lit, np.float32(1.0)) * sky.opacity
        result[band] = ground * ground_share + _to_10m(cloud)
    return result


def classify(
    *,
    truth: NDArray[np.uint8],
    red: NDArray[np.float32],
    nir: NDArray[np.float32],
    opacity: NDArray[np.float32],
    shadow: NDArray[np.float32],
) -> NDArray[np.uint8]:
    """Scene classification at 20 m, with the legend of Sen2Cor (ESA, Sentinel-2 L2A ATBD, scene classification).

    Args:
        truth: (row, col) truth of the 10 m pixels, twice as many rows and columns as the rest.
        red: B04 reflectance at 20 m.
        nir: B8A reflectance at 20 m.
        opacity: Cloud opacity at 20 m, 0..1.
        shadow: Shadow at 20 m, 0..1.
    """
    wet = (truth == WATER).reshape(truth.shape[0] // 2, 2, truth.shape[1] // 2, 2).sum(axis=(1, 3)) >= 2
    ndvi = (nir - red) / (nir + red)
    scl = np.where(wet, SCL_WATER, np.where(ndvi > 0.4, SCL_VEGETATION, SCL_BARE)).astype(np.uint8)
    scl[(shadow > 0) | (opacity > 0)] = SCL_UNCLASSIFIED
    scl[shadow > 0.2] = SCL_SHADOW
    scl[opacity > 0.03] = SCL_CIRRUS
    scl[opacity > 0.25] = SCL_CLOUD_MEDIUM
    scl[opacity > 0.65] = SCL_CLOUD_HIGH
    return scl


def _grid(
    y: NDArray[np.floating[Any]], x: NDArray[np.floating[Any]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rows, cols = np.broadcast_arrays(y[:, None], x[None, :])
    return np.ascontiguousarray(rows, np.float64), np.ascontiguousarray(cols, np.float64)


def _to_10m(coarse: NDArray[np.float32]) -> NDArray[np.float32]:
    return coarse.repeat(2, axis=0).repeat(2, axis=1)


def _above(y: NDArray[np.float64], x: NDArray[np.float64], weather: Weather) -> NDArray[np.float64]:
    field = fractal(y, x, wave_px=130.0, salt=salt_of(weather.salt, "clouds"), octaves=5)
    return np.asarray(field + (x - weather.col) * (weather.east / 100.0) - weather.level)


def _smooth(share: NDArray[np.float64]) -> NDArray[np.float64]:
    share = np.minimum(np.maximum(share, 0.0), 1.0)
    return np.asarray(share * share * (3.0 - 2.0 * share))
