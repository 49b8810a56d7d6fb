"""Radar backscatter: which pixels of a file are measurements, and the one step from linear power to decibels.

Power is what may be interpolated and averaged, decibels are what the model reads; so the step is taken once, by
``read.windows.read_band``, after any resampling. Gamma0 and sigma0 are converted alike; they stay different quantities
(``Scene.quantity``), by the cosine of the local incidence angle or so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

FLOOR = 1e-10
"""Least power, -100 dB: ``10 * log10(clip(x, 1e-10))`` as in olmoearth_pretrain's conversion of its Sentinel-1 images
(``data/utils.py``); rslearn's ``Sentinel1ToDecibels`` clips at 1e-6."""
NODATA = -32768.0
"""Nodata of Planetary Computer's ``sentinel-1-rtc``, also where a copy of a file does not declare it."""
DECIBELS_BELOW = -1.0
"""Thermal noise removal leaves small negative powers over water; nothing but decibels lies below this."""
DECIBELS_SHARE = 0.05
"""More measurements than this below ``DECIBELS_BELOW`` make a window one of decibels; power has none."""
_ROWS = 64


def power(values: NDArray[Any], *, nodata: float | None, where: str) -> NDArray[np.float32]:
    """Linear power as read, NaN where it is no measurement.

    Invalid are NaN, infinities, the declared nodata, -32768 and everything from 0 down: scenes processed before 2018
    have borders of zeros that nothing declares.

    Args:
        values: (row, col) floats of a file.
        nodata: What the file declares.
        where: Item and band, for the message.

    Raises:
        DataError: Not floats, or decibels: they would pass as nodata and the sensor would be silently missing.

    >>> power(np.array([[0.25, 0.0, -32768.0]]), nodata=None, where="item S, band vv").tolist()
    [[0.25, nan, nan]]
    """
    if values.dtype.kind != "f":
        raise DataError(
            f"{where}: pixels are {values.dtype}, Sentinel-1 must be linear power in floats (RTC gamma0 or sigma0); "
            "is this a GRD product of amplitudes, or scaled?"
        )
    found = values.astype(np.float32, copy=False)
    given = np.isfinite(found) & (found != NODATA) & (found != 0)
    if nodata is not None:
        given &= found != np.float32(nodata)
    below, count = int((given & (found < DECIBELS_BELOW)).sum()), int(given.sum())
    if below > DECIBELS_SHARE * count:
        raise DataError(
            f"{where}: {below} of {count} pixels are below {DECIBELS_BELOW:g}: these are decibels, linear power is "
            "wanted"
        )
    return np.where(given & (found > 0), found, np.float32(np.nan))


def decibels(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """10 log10 of linear power, at least -100; NaN stays.

    Computed in float64: the float32 logarithm of numpy differs between instruction sets in the last bit.

    >>> decibels(np.array([[0.1, np.nan, 1e-30]], dtype=np.float32)).tolist()
    [[-10.0, nan, -100.0]]
    """
    out = np.empty(values.shape, np.float32)
    for row in range(0, values.shape[0], _ROWS):  # a strip at a time: its float64 copies stay in cache
        strip = np.maximum(values[row : row + _ROWS].astype(np.float64), FLOOR)
        out[row : row + _ROWS] = 10.0 * np.log10(strip, out=strip)
    return out
