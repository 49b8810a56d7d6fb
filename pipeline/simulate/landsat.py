"""Landsat-like scenes of the landscape: Collection 2 Level-1 digital numbers of eleven bands.

The grid is the archive's: centres of the 30 m pixels, and of every second 15 m pixel of the panchromatic band, lie at
multiples of 30 m, so neither grid falls on the lattice. Pixels are means over their area.

The rule from ground to DN is simple on purpose. Reflective bands: top-of-atmosphere reflectance is what the clouds let
through times the transmission, plus the path reflectance of the band; DN are what USGS' rescaling
``reflectance * sin(sun elevation) = DN * 2e-5 - 0.1`` gives back. Thermal bands: a temperature by season and by how
green the ground is, as radiance by Planck's law with USGS' constants, and ``radiance = DN * 3.342e-4 + 0.1``. 0 is
nodata; a valid pixel is at least 1. (USGS LSDS-1747, Landsat 8-9 Collection 2 Level-1 Data Format Control Book.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from pipeline.simulate.clouds import Weather, seen_through, sky_over
from pipeline.simulate.landscape import DEFAULT_SEED, reflectance_of
from pipeline.simulate.scenes import write_cog
from pipeline.simulate.spectra import BANDS as OPTICAL
from pipeline.simulate.spectra import COVERS, SHIFT_DAYS, day_of, spectrum
from pipeline.types import PIXEL_M, Box

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from affine import Affine
    from numpy.typing import NDArray

    from pipeline.simulate.landscape import Ground
    from pipeline.simulate.scenes import OrbitEdge

    Field = NDArray[np.float32]

BANDS = ("B8", "B1", "B2", "B3", "B4", "B5", "B6", "B7", "B9", "B10", "B11")
"""Panchromatic first, as the models take them."""
RES_M = {band: 15 if band == "B8" else 30 for band in BANDS}
COARSE_M, PAN_M = 30, 15
_SOURCES: dict[str, dict[str, float]] = {
    "B1": {"B01": 1.0},
    "B2": {"B02": 1.0},
    "B3": {"B03": 1.0},
    "B4": {"B04": 1.0},
    "B5": {"B8A": 1.0},
    "B6": {"B11": 1.0},
    "B7": {"B12": 1.0},
    "B8": {"B02": 0.2, "B03": 0.45, "B04": 0.35},  # 0.50 to 0.68 um
}
"""Shares of the Sentinel-2 bands that a reflective band looks like."""
_PATH = {"B1": 0.085, "B2": 0.062, "B3": 0.034, "B4": 0.021, "B5": 0.009, "B6": 0.002, "B7": 0.001, "B8": 0.032}
"""Reflectance of the air alone: Rayleigh scattering and a little haze."""
_TRANSMISSION = {"B1": 0.80, "B2": 0.84, "B3": 0.87, "B4": 0.91, "B5": 0.94, "B6": 0.94, "B7": 0.93, "B8": 0.88}
_CIRRUS = (0.001, 0.004, 0.04)
"""B9: the air, the share of the near infrared that vapour lets through, and what opaque cloud adds."""
_THERMAL = {"B10": (774.8853, 1321.0789), "B11": (480.8883, 1201.1442)}
"""(K1, K2) of Landsat 8 TIRS, from the MTL files."""
_CLOUD_K = 258.0
_CLOUDY = 0.03
"""Opacity from which a pixel counts as cloudy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LandsatPass:
    """One scene's circumstances.

    Attributes:
        acquired: UTC time of the scene's centre.
        platform: ``LC08`` or ``LC09``.
        path: WRS-2 path.
        row: WRS-2 row.
        sun_elevation: Degrees.
        weather: The clouds.
        edge: Border of the swath, None when the frame lies inside.
    """

    acquired: datetime
    platform: str
    path: int
    row: int
    sun_elevation: float
    weather: Weather
    edge: OrbitEdge | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """Where a scene's pixels lie, in the plane of EPSG:326NN.

    Attributes:
        zone: UTM zone.
        x_m: Western edge of the 30 m pixels, a multiple of 30 plus 15.
        y_m: Their northern edge, likewise.
        height: Rows of 30 m.
        width: Columns of 30 m.
    """

    zone: int
    x_m: int
    y_m: int
    height: int
    width: int

    @property
    def epsg(self) -> int:
        """EPSG code."""
        return 32600 + self.zone

    def shape(self, res_m: int) -> tuple[int, int]:
        """(rows, cols): the 15 m pixels go from the centre of the first 30 m pixel to the centre of the last."""
        return (self.height, self.width) if res_m == COARSE_M else (2 * self.height - 1, 2 * self.width - 1)

    def corner_m(self, res_m: int) -> tuple[float, float]:
        """(x, y) of the north-western corner, metres."""
        inset = (COARSE_M - res_m) / 2
        return self.x_m + inset, self.y_m - inset

    def transform(self, res_m: int) -> Affine:
        """Affine of the pixels of a resolution."""
        from affine import Affine  # noqa: PLC0415

        x, y = self.corner_m(res_m)
        return Affine(res_m, 0, x, 0, -res_m, y)

    @property
    def bounds_m(self) -> tuple[float, float, float, float]:
        """x_min, y_min, x_max, y_max of the 30 m pixels."""
        return self.x_m, self.y_m - COARSE_M * self.height, self.x_m + COARSE_M * self.width, self.y_m


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LandsatImage:
    """The pixels of one scene.

    Attributes:
        frame: Where they lie.
        overpass: The circumstances.
        bands: (band, (row, col) uint16 DN), order of ``BANDS``.
        cloud_pct: Cloudy share of the pixels with data, per cent.
    """

    frame: Frame
    overpass: LandsatPass
    bands: tuple[tuple[str, NDArray[np.uint16]], ...]
    cloud_pct: float


def frame_in(box: Box) -> Frame:
    """The largest frame inside a 10 m box."""
    x_min, y_min, x_max, y_max = (int(v) for v in box.bounds_m)
    west, south = (-(-(v - 15) // COARSE_M) * COARSE_M + 15 for v in (x_min, y_min))
    east, north = ((v - 15) // COARSE_M * COARSE_M + 15 for v in (x_max, y_max))
    return Frame(
        zone=box.zone, x_m=west, y_m=north, height=(north - south) // COARSE_M, width=(east - west) // COARSE_M
    )


def observe_landsat(ground: Ground, overpass: LandsatPass, *, seed: int = DEFAULT_SEED) -> LandsatImage:
    """One scene in the largest frame inside surveyed ground, whose box must be of whole 20 m pixels."""
    frame = frame_in(ground.box)
    seen, opacity = signals(ground, overpass, seed=seed)
    bands = tuple(
        (band, digital_numbers(area_means(seen[band], ground.box, frame, RES_M[band]), band)) for band in BANDS
    )
    cloudy = area_means(opacity, ground.box, frame, COARSE_M) > _CLOUDY
    if overpass.edge is not None:
        masks = {res: _swath(frame, res, overpass.edge) for res in (PAN_M, COARSE_M)}
        bands = tuple((band, np.where(masks[RES_M[band]], dn, 0).astype(np.uint16)) for band, dn in bands)
        cloudy = cloudy[masks[COARSE_M]]
    share = float(cloudy.mean()) if cloudy.size else 0.0
    return LandsatImage(frame=frame, overpass=overpass, bands=bands, cloud_pct=round(100.0 * share, 2))


def signals(ground: Ground, overpass: LandsatPass, *, seed: int = DEFAULT_SEED) -> tuple[dict[str, Field], Field]:
    """What reaches the sensor from every 10 m pixel.

    Returns:
        (band -> (row, col): reflectance times the sine of the sun's elevation, or radiance, W/(m2 sr um); opacity of
        the clouds, (row, col)).
    """
    sky = sky_over(ground.box, overpass.weather)
    opacity = sky.opacity.repeat(2, axis=0).repeat(2, axis=1)
    seen = seen_through(reflectance_of(ground, overpass.acquired, seed=seed), sky)
    sun = np.float32(math.sin(math.radians(overpass.sun_elevation)))
    found: dict[str, Field] = {}
    for band, shares in _SOURCES.items():
        surface = np.zeros_like(opacity)
        for name, share in shares.items():
            surface += seen[name] * np.float32(share)
        found[band] = (surface * np.float32(_TRANSMISSION[band]) + np.float32(_PATH[band])) * sun
    air, ground_share, cloud = (np.float32(value) for value in _CIRRUS)
    found["B9"] = (air + ground_share * seen["B8A"] + cloud * opacity) * sun
    at = ground.cover.astype(np.int32) * (2 * SHIFT_DAYS + 1) + ground.shift + SHIFT_DAYS
    for band in _THERMAL:
        warm, cold = _radiance_table(band, day_of(overpass.acquired))[at], np.float32(_radiance(band, _CLOUD_K))
        found[band] = warm * (np.float32(1) - opacity) + cold * opacity
    return found, opacity


def area_means(fine: Field, box: Box, frame: Frame, res_m: int) -> Field:
    """Means of 10 m pixels over the pixels of a frame, parts of pixels by their area; the same in every window."""
    x, y = frame.corner_m(res_m)
    rows, cols = frame.shape(res_m)
    x_min, _, _, y_max = box.bounds_m
    down = _line_means(fine, y_max - y, res_m, rows)
    return np.ascontiguousarray(_line_means(np.ascontiguousarray(down.T), x - x_min, res_m, cols).T)


def write_landsat(image: LandsatImage, folder: Path, *, stem: str) -> dict[str, str]:
    """Write one COG per band into ``folder``; returns band -> file name, as the USGS names them."""
    folder.mkdir(parents=True, exist_ok=True)
    names = {band: f"{stem}_{band}.TIF" for band in BANDS}
    for band, dn in image.bands:
        transform = image.frame.transform(RES_M[band])
        write_cog(folder / names[band], dn, epsg=image.frame.epsg, transform=transform, nodata=0)
    return names


def digital_numbers(signal: Field, band: str) -> NDArray[np.uint16]:
    """DN of reflectance times the sine of the sun's elevation, or of radiance; see the module."""
    step, base = (3.342e-4, 0.1) if band in _THERMAL else (2e-5, -0.1)
    return np.asarray(np.clip(np.rint((signal.astype(np.float64) - base) / step), 1, 65535), np.uint16)


def _line_means(fine: Field, first_m: float, res_m: int, count: int) -> Field:
    """Means along axis 0 over ``count`` intervals of ``res_m`` from ``first_m`` on, 10 m rows from 0 m on."""
    step = math.lcm(res_m, PIXEL_M)
    phases = step // res_m
    out = np.empty((count, fine.shape[1]), np.float32)
    for phase in range(phases):
        start = first_m + phase * res_m
        many = len(range(phase, count, phases))
        total = np.zeros((many, fine.shape[1]), np.float32)
        for row in range(int(start // PIXEL_M), math.ceil((start + res_m) / PIXEL_M)):
            inside_m = min((row + 1) * PIXEL_M, start + res_m) - max(row * PIXEL_M, start)
            total += fine[row :: step // PIXEL_M][:many] * np.float32(inside_m / res_m)
        out[phase::phases] = total
    return out


def _swath(frame: Frame, res_m: int, edge: OrbitEdge) -> NDArray[np.bool_]:
    (x, y), (rows, cols) = frame.corner_m(res_m), frame.shape(res_m)
    east, south = x + (np.arange(cols) + 0.5) * res_m, y - (np.arange(rows) + 0.5) * res_m
    return np.asarray((east[None, :] - edge.x_m) + edge.slope * (south[:, None] - edge.y_m) <= 0)


def _radiance(band: str, kelvin: float) -> float:
    k1, k2 = _THERMAL[band]
    return k1 / (math.exp(k2 / kelvin) - 1.0)


@cache
def _radiance_table(band: str, day: int) -> NDArray[np.float32]:
    """Radiance of every cover at every shift on a day of the year."""
    shifts = range(-SHIFT_DAYS, SHIFT_DAYS + 1)
    values = [_radiance(band, _kelvin(cover, day + shift)) for cover in COVERS for shift in shifts]
    return np.array(values, np.float32)


def _kelvin(cover: str, day: float) -> float:
    """Temperature of the surface: air by season, dry ground up to 14 K above, water 4 K below, snow at most 271 K."""
    seen = dict(zip(OPTICAL, spectrum(cover, day), strict=True))
    air = 287.0 + 10.0 * math.cos(2.0 * math.pi * (day - 200.0) / 365.0)
    if seen["B03"] > 0.2 > seen["B11"]:
        return min(air, 271.0)
    if seen["B11"] < 0.03:
        return air - 4.0
    green = (seen["B08"] - seen["B04"]) / (seen["B08"] + seen["B04"])
    return air + 14.0 * (1.0 - min(max((green - 0.1) / 0.7, 0.0), 1.0))
