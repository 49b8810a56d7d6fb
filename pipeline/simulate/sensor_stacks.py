"""Stacks of Sentinel-1 and Landsat from memory: what reading scenes of the landscape would give, without any file.

Sentinel-1 is float32 decibels at 10 m with NaN for nodata. Landsat is the DN of its own grid brought to 10 m by
bilinear interpolation, as its files are read: one layer of eleven bands.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.simulate.clouds import Weather, level_for
from pipeline.simulate.landsat import BANDS as LANDSAT_BANDS
from pipeline.simulate.landsat import RES_M, LandsatPass, observe_landsat
from pipeline.simulate.landscape import DEFAULT_SEED, Biome, survey
from pipeline.simulate.noise import salt_of
from pipeline.simulate.radar import BANDS as RADAR_BANDS
from pipeline.simulate.radar import backscatter_of
from pipeline.types import PIXEL_M, Box, Layer, PeriodSource, Stack

if TYPE_CHECKING:
    from datetime import datetime

    from numpy.typing import NDArray

    from pipeline.simulate.landsat import LandsatImage
    from pipeline.types import Period

SUN_ELEVATION = 52.0
"""Of every simulated Landsat Stack, degrees."""
_AROUND_PX = 8
"""Pixels of ground around a Landsat Stack: more than the two pixels of 30 m that interpolation and frame need."""


def observation_date(period: Period) -> datetime:
    """When a simulated Stack looks at the ground: the middle of the period."""
    return period.start + (period.end - period.start) / 2


def radar_stack(
    box: Box,
    periods: tuple[Period, ...],
    *,
    seed: int = DEFAULT_SEED,
    biome: Biome = "temperate",
    without: tuple[int, ...] = (),
) -> Stack:
    """A Sentinel-1 Stack, one pass in the middle of each period.

    Args:
        box: 10 m box.
        periods: The time axis.
        seed: Of the landscape.
        biome: What lies there.
        without: Indices of periods without a pass: NaN.

    Raises:
        InvalidInputError: ``box`` is not of 10 m pixels or the biome is unknown.
    """
    ground = survey(box, seed=seed, biome=biome)
    pixels = np.full((len(periods), len(RADAR_BANDS), *box.shape), np.nan, np.float32)
    for time, period in enumerate(periods):
        if period.index not in without:
            power = backscatter_of(ground, observation_date(period), seed=seed)
            for index, band in enumerate(RADAR_BANDS):
                pixels[time, index] = 10.0 * np.log10(power[band].astype(np.float64))
    layer = Layer(
        res_m=PIXEL_M, bands=RADAR_BANDS, pixels=pixels, valid=np.asarray(np.isfinite(pixels).any(axis=1)), box=box
    )
    return _stack("sentinel1", layer, periods, name=f"{biome}-{seed}", without=without)


def landsat_stack(
    box: Box,
    periods: tuple[Period, ...],
    *,
    seed: int = DEFAULT_SEED,
    biome: Biome = "temperate",
    without: tuple[int, ...] = (),
    cloud_share: float = 0.0,
) -> Stack:
    """A Landsat Stack, one scene in the middle of each period; arguments and errors as ``radar_stack``.

    Args:
        box: 10 m box.
        periods: The time axis.
        seed: Of the landscape.
        biome: What lies there.
        without: Indices of periods without a scene: 0.
        cloud_share: Share of the ground under cloud in every second period, from the first.
    """
    around = box.pad(_AROUND_PX).cover(20).cover(PIXEL_M)
    ground = survey(around, seed=seed, biome=biome)
    pixels = np.zeros((len(periods), len(LANDSAT_BANDS), *box.shape), np.uint16)
    for time, period in enumerate(periods):
        if period.index in without:
            continue
        clear = Weather(salt=salt_of(seed, "stack clouds", period.index))
        cloudy = cloud_share > 0 and period.index % 2 == 0
        weather = replace(clear, level=level_for(clear, (around,), share=cloud_share)) if cloudy else clear
        overpass = LandsatPass(
            acquired=observation_date(period),
            platform="LC08",
            path=1,
            row=1,
            sun_elevation=SUN_ELEVATION,
            weather=weather,
        )
        image = observe_landsat(ground, overpass, seed=seed)
        for index, (band, dn) in enumerate(image.bands):
            pixels[time, index] = _at_10m(dn, image, RES_M[band], box)
    layer = Layer(res_m=PIXEL_M, bands=LANDSAT_BANDS, pixels=pixels, valid=(pixels != 0).any(axis=1), box=box)
    return _stack("landsat", layer, periods, name=f"{biome}-{seed}", without=without)


def _stack(sensor: str, layer: Layer, periods: tuple[Period, ...], *, name: str, without: tuple[int, ...]) -> Stack:
    sources = tuple(
        PeriodSource(
            cell_id=f"simulated-{name}",
            period=p.index,
            selected=() if p.index in without else (f"simulated-{sensor}-{name}-{p.index}",),
            sensor=sensor,
        )
        for p in periods
    )
    box, held = layer.box, layer.pixels.nbytes
    return Stack(sensor=sensor, box=box, layers=(layer,), periods=periods, sources=sources, bytes_read=held)


def _at_10m(dn: NDArray[np.uint16], image: LandsatImage, res_m: int, box: Box) -> NDArray[np.uint16]:
    """Bilinear interpolation of valid DN in whole numbers, rounded half up, as GDAL's warper does it."""
    x, y = image.frame.corner_m(res_m)
    first_row, row_part = _taps(-y, box.row, box.height, res_m)
    first_col, col_part = _taps(x, box.col, box.width, res_m)
    wide = dn.astype(np.int64)
    lines = wide[first_row] * (2 * res_m - row_part)[:, None] + wide[first_row + 1] * row_part[:, None]
    total = lines[:, first_col] * (2 * res_m - col_part) + lines[:, first_col + 1] * col_part
    unit = 4 * res_m * res_m
    return np.asarray((2 * total + unit) // (2 * unit), np.uint16)


def _taps(edge_m: float, first: int, count: int, res_m: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """(first of two pixels, share of the second in halves of a metre) for 10 m pixels along an axis from ``edge_m``."""
    halves = (2 * np.arange(first, first + count) + 1) * PIXEL_M - round(2 * edge_m) - res_m  # between centres
    return halves // (2 * res_m), halves % (2 * res_m)
