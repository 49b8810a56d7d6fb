"""Sentinel-1-like scenes of the landscape: terrain-corrected backscatter gamma0 as linear power, VV and VH, 10 m.

The means per state of the ground are simulated: plausible for C band at some 38 degrees of incidence (open water
darkest, crops by growth, forest, roofs brightest), taken from no measurement. Speckle is multiplicative, of 4 looks,
and hashed from place and pass like every noise here, so any two windows of one pass agree bit for bit. Pixels outside
the swath hold -32768; a scene may have the zeros along its border that products before 2018 have.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from pipeline.simulate.landscape import BARE, BUILT, CLASSES, CROP, DEFAULT_SEED, FOREST, WATER
from pipeline.simulate.noise import hashed, salt_of, unit
from pipeline.simulate.scenes import swath, write_raster
from pipeline.simulate.spectra import COVERS, SHIFT_DAYS, day_of, mixture

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.simulate.landscape import Ground
    from pipeline.simulate.scenes import OrbitEdge
    from pipeline.types import Box

BANDS = ("vv", "vh")
NODATA = -32768
"""Nodata of Planetary Computer's ``sentinel-1-rtc``."""
LOOKS = 4
"""Looks of the speckle; Sentinel-1 IW GRD has 4.4 (ESA, Sentinel-1 Product Definition, table of IW GRDH)."""

GAMMA0_DB: dict[str, tuple[float, float]] = {
    "soil": (-11.0, -19.0),
    "sprout": (-11.5, -18.5),
    "green": (-13.5, -18.5),
    "maize": (-9.5, -14.5),
    "beet": (-8.5, -14.0),
    "bloom": (-10.5, -15.0),
    "ripe": (-12.0, -17.5),
    "stubble": (-11.5, -19.0),
    "winter_grass": (-13.0, -20.0),
    "mown": (-12.5, -20.0),
    "dry_grass": (-12.5, -19.5),
    "twigs": (-9.5, -15.5),
    "fresh_leaf": (-8.8, -14.2),
    "leaf": (-9.0, -14.4),
    "autumn": (-9.3, -15.0),
    "needle": (-9.2, -14.8),
    "lake": (-21.0, -27.5),
    "river": (-19.5, -26.5),
    "red_roof": (-4.0, -11.5),
    "grey_roof": (-2.5, -10.5),
    "bright_roof": (0.0, -9.0),
    "asphalt": (-14.5, -21.5),
    "garden": (-9.0, -15.5),
    "sand": (-14.0, -22.5),
    "quarry": (-10.0, -18.5),
    "dry_earth": (-12.5, -20.5),
    "dune": (-20.0, -28.5),
    "rock": (-9.5, -17.5),
    "snow": (-12.5, -20.5),
    "snowy_wood": (-9.5, -15.5),
    "ice": (-16.0, -24.0),
    "sea": (-17.0, -26.0),
    "shoal": (-15.5, -25.0),
}
"""Simulated mean gamma0 (VV, VH), decibels, of the states of ``spectra``."""
_UNEVEN = {WATER: 0.5, FOREST: 0.6, CROP: 0.8, BUILT: 3.0, BARE: 1.0}
"""How much a pixel's brightness in the optical says of its roughness; corners of houses scatter most."""
_LEAST_GAIN = 0.25
_DATE_DB = {WATER: 3.0, FOREST: 0.3, CROP: 1.0, BUILT: 0.2, BARE: 1.0}
"""A date lies up to this far above or below the mean: wind on water, moisture of the soil."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RadarPass:
    """One overpass in mode IW.

    Attributes:
        acquired: UTC time of the middle of the scene.
        platform: ``S1A`` .. ``S1D``.
        orbit_state: ``ascending`` or ``descending``.
        relative_orbit: Relative orbit, 1..175.
        absolute_orbit: Absolute orbit.
        take: Number of the datatake.
        edge: Border of the swath, None when the scene's box lies inside.
        zeros_px: Pixels along the western and eastern border of what was seen that hold 0.
    """

    acquired: datetime
    platform: str
    orbit_state: str
    relative_orbit: int
    absolute_orbit: int
    take: int
    edge: OrbitEdge | None = None
    zeros_px: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RadarImage:
    """The pixels of one scene.

    Attributes:
        box: 10 m box under the bands.
        overpass: Which pass.
        bands: (band, (row, col) float32 linear power, ``NODATA`` outside the swath), order of ``BANDS``.
    """

    box: Box
    overpass: RadarPass
    bands: tuple[tuple[str, NDArray[np.float32]], ...]


def backscatter_of(ground: Ground, when: datetime, *, seed: int = DEFAULT_SEED) -> dict[str, NDArray[np.float32]]:
    """Gamma0 of surveyed ground in one pass: band -> (row, col) float32 linear power, above 0, speckle included.

    A pass is named by its date and by morning or evening.
    """
    at = ground.cover.astype(np.int32) * (2 * SHIFT_DAYS + 1) + ground.shift + SHIFT_DAYS
    uneven = _by_class(_UNEVEN)[ground.truth]
    gain = np.maximum(np.float32(1.0) + uneven * (ground.gain - np.float32(1.0)), np.float32(_LEAST_GAIN))
    gain *= _date_gain(when, seed=seed)[ground.truth]
    table, speckle = _power_table(day_of(when)), _speckle(ground.box, when, seed=seed)
    return {band: table[index][at] * gain * speckle[index] for index, band in enumerate(BANDS)}


def observe_radar(ground: Ground, overpass: RadarPass, *, seed: int = DEFAULT_SEED) -> RadarImage:
    """One scene over the box of surveyed ground."""
    power = backscatter_of(ground, overpass.acquired, seed=seed)
    shape = ground.box.shape
    seen = np.ones(shape, np.bool_) if overpass.edge is None else swath(ground.box, overpass.edge)
    measured = _away_from_border(seen, overpass.zeros_px)
    bands = tuple(
        (band, np.where(measured, values, np.where(seen, np.float32(0), np.float32(NODATA))))
        for band, values in power.items()
    )
    return RadarImage(box=ground.box, overpass=overpass, bands=bands)


def write_radar(image: RadarImage, folder: Path) -> dict[str, str]:
    """Write one COG per band into ``folder``; returns asset key -> file name."""
    folder.mkdir(parents=True, exist_ok=True)
    names = {band: f"iw-{band}.rtc.tiff" for band, _ in image.bands}
    for band, pixels in image.bands:
        write_raster(folder / names[band], pixels, box=image.box, nodata=NODATA)
    return names


def _by_class(values: dict[int, float]) -> NDArray[np.float32]:
    return np.array([values[land.code] for land in CLASSES], np.float32)


def _date_gain(when: datetime, *, seed: int) -> NDArray[np.float32]:
    """Factor on power of every truth class on a date; land gets wet together, water has its wind."""
    day = np.full(2, when.date().toordinal())
    wind, wet = (2.0 * float(d) - 1.0 for d in unit(hashed(day, np.arange(2), salt=salt_of(seed, "radar weather"))))
    return _by_class({code: 10.0 ** (db * (wind if code == WATER else wet) / 10.0) for code, db in _DATE_DB.items()})


@cache
def _power_table(day: int) -> NDArray[np.float32]:
    """(band, cover * shifts + shift) mean power; states of a calendar mix as power."""
    shifts = range(-SHIFT_DAYS, SHIFT_DAYS + 1)
    rows = [_mean_power(*mixture(cover, day + shift)) for cover in COVERS for shift in shifts]
    return np.ascontiguousarray(np.array(rows, np.float32).T)


def _mean_power(before: str, after: str, share: float) -> tuple[float, ...]:
    pairs = zip(GAMMA0_DB[before], GAMMA0_DB[after], strict=True)
    return tuple(10.0 ** (a / 10.0) * (1.0 - share) + 10.0 ** (b / 10.0) * share for a, b in pairs)


@cache
def _exponential() -> NDArray[np.float32]:
    """Quantiles of the exponential distribution of mean 1 in 65536 steps.

    A table, because a vectorised log is not exactly rounded and could differ between two windows.
    """
    return np.array([-math.log1p(-(step + 0.5) / 65536.0) for step in range(65536)], np.float32)


def _speckle(box: Box, when: datetime, *, seed: int) -> tuple[NDArray[np.float32], ...]:
    """Factors of mean 1 per band, (row, col).

    Each is the mean of 2 x 2 looks, so neighbours share some, as in IW GRD, whose resolution (20 m) is coarser than
    its pixels.
    """
    rows, cols = np.arange(box.row, box.row_stop + 1), np.arange(box.col, box.col_stop + 1)
    half = "am" if when.hour < 12 else "pm"
    bits = hashed(rows[:, None], cols[None, :], salt=salt_of(seed, box.zone, "speckle", when.date().toordinal(), half))
    factors = []
    for lane in range(len(BANDS)):
        looks = _exponential()[((bits >> np.uint64(16 * lane)) & np.uint64(0xFFFF)).astype(np.int32)]
        pairs = looks[:, :-1] + looks[:, 1:]
        factors.append((pairs[:-1] + pairs[1:]) * np.float32(1.0 / LOOKS))
    return tuple(factors)


def _away_from_border(seen: NDArray[np.bool_], px: int) -> NDArray[np.bool_]:
    """Seen pixels with ``px`` seen pixels to the west and to the east."""
    if px == 0:
        return seen
    inner = np.zeros_like(seen)
    inner[:, px:-px] = seen[:, : -2 * px] & seen[:, 2 * px :]
    return inner & seen
