"""Stacks of the landscape straight from memory: what reading clear scenes would give, without any file.

``calibration_stacks`` is the packaged simulated sample from which a provisional int8 calibration is derived; it spans
dark water to snow and cloud, cities, deserts, missing bands and missing dates. ``calibration_stack_sets`` shows the
same places to several sensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import InvalidInputError
from pipeline.simulate.clouds import Weather, level_for, seen_through, sky_over
from pipeline.simulate.landscape import DEFAULT_SEED, Biome, reflectance_of, survey
from pipeline.simulate.noise import salt_of
from pipeline.simulate.scenes import native_dn
from pipeline.simulate.sensor_stacks import landsat_stack, observation_date, radar_stack
from pipeline.simulate.spectra import RES_M
from pipeline.types import PIXEL_M, Box, Layer, Period, PeriodSource, Stack

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

LAYER_BANDS = (
    (10, ("B02", "B03", "B04", "B08")),
    (20, ("B05", "B06", "B07", "B8A", "B11", "B12")),
    (60, ("B01", "B09")),
)
"""Bands of each layer of a Sentinel-2 Stack, finest first."""
_PAD_PX = {10: 0, 20: 2, 60: 2}
CALIBRATION_PX = 96


@dataclass(frozen=True, slots=True, kw_only=True)
class Flaws:
    """What is wrong with the periods of a stack.

    Attributes:
        cloud_share: Share of the ground under cloud in every second period, from the first.
        missing_bands: Bands that are 0 in every third period, from the first.
        missing_period: Index of a period without any observation.
        hidden_share: Share of the columns without observation in every fourth period, from the west.
    """

    cloud_share: float = 0.0
    missing_bands: tuple[str, ...] = ()
    missing_period: int | None = None
    hidden_share: float = 0.0


def sample_stack(
    box: Box,
    periods: tuple[Period, ...],
    *,
    seed: int = DEFAULT_SEED,
    biome: Biome = "temperate",
    flaws: Flaws | None = None,
) -> Stack:
    """A Stack of the landscape under a clear sky (or as ``flaws`` says), one date in the middle of each period.

    Layer boxes are ``box.cover(res)`` plus 2 native pixels at 20 and 60 m; the encoding is ``DN_OFFSET``'s.

    Raises:
        InvalidInputError: ``box`` is not of 10 m pixels or the biome is unknown.
    """
    flaws = flaws or Flaws()
    boxes = {res: box.cover(res, pad_px=_PAD_PX[res]) for res, _ in LAYER_BANDS}
    whole = boxes[60].cover(PIXEL_M)  # whole 60 m pixels around everything, 20 m ones included
    ground = survey(whole, seed=seed, biome=biome)
    dates: list[dict[str, NDArray[np.uint16]]] = []
    for period in periods:
        seen = reflectance_of(ground, observation_date(period), seed=seed)
        if flaws.cloud_share > 0 and period.index % 2 == 0:
            seen = seen_through(seen, sky_over(whole, _weather(whole, period, seed=seed, share=flaws.cloud_share)))
        dates.append({band: _spoilt(band, dn, period, flaws) for band, dn in native_dn(seen)})
    layers = tuple(_layer(dates, res, bands, box=boxes[res], whole=whole) for res, bands in LAYER_BANDS)
    decoded = sum(layer.pixels.nbytes for layer in layers)
    sources = tuple(
        PeriodSource(cell_id=f"simulated-{biome}", period=p.index, selected=(f"simulated-{seed}-{p.index}",))
        for p in periods
    )
    return Stack(sensor="sentinel2_l2a", box=box, layers=layers, periods=periods, sources=sources, bytes_read=decoded)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One box of the calibration sample.

    Attributes:
        box: Its 10 m pixels.
        biome: What lies there.
        flaws: Of Sentinel-2; Landsat shares its clouds.
        without_radar: Periods without Sentinel-1: those with ``index % 3`` in here.
        without_landsat: Periods without Landsat, likewise.
    """

    box: Box
    biome: Biome
    flaws: Flaws
    without_radar: tuple[int, ...] = ()
    without_landsat: tuple[int, ...] = ()


def calibration_places(count: int) -> tuple[Place, ...]:
    """The places of the calibration sample for ``count`` periods.

    Eight boxes of 96 x 96 pixels: farmland, farmland under broken cloud, river and forest, city, desert, snow, sea, and
    farmland of the southern hemisphere with missing bands, a hidden strip and (from three periods on) a period without
    observation. Two lack radar and four lack Landsat in some periods, one lacks both in all.
    """
    cloudy = Flaws(cloud_share=0.45)
    broken = Flaws(
        missing_bands=("B01", "B09", "B8A"), missing_period=count - 1 if count > 2 else None, hidden_share=0.4
    )
    places: tuple[tuple[int, int, int, Biome, Flaws, tuple[int, ...], tuple[int, ...]], ...] = (
        (32, -552300, 50240, "temperate", Flaws(), (), ()),
        (32, -552360, 49980, "temperate", cloudy, (1,), (0, 2)),
        (32, -552120, 50000, "temperate", Flaws(), (), (0,)),
        (31, -540864, 45432, "city", cloudy, (), (1,)),
        (36, -300000, 52200, "desert", Flaws(), (), ()),
        (33, -689568, 48336, "snow", cloudy, (0, 1, 2), (0, 1, 2)),
        (30, -479616, 51336, "sea", cloudy, (), ()),
        (21, 276000, 54000, "temperate", broken, (0,), (1, 2)),
    )
    return tuple(
        Place(
            box=Box(zone=zone, res_m=PIXEL_M, row=row, col=col, height=CALIBRATION_PX, width=CALIBRATION_PX),
            biome=biome,
            flaws=flaws,
            without_radar=without_radar,
            without_landsat=without_landsat,
        )
        for zone, row, col, biome, flaws, without_radar, without_landsat in places
    )


def calibration_stacks(periods: tuple[Period, ...], *, seed: int = DEFAULT_SEED) -> Iterator[Stack]:
    """Sentinel-2 at every one of ``calibration_places``, in a fixed order; pure, no files."""
    for place in calibration_places(len(periods)):
        yield sample_stack(place.box, periods, seed=seed, biome=place.biome, flaws=place.flaws)


def calibration_stack_sets(
    periods: tuple[Period, ...], *, sensors: tuple[str, ...] = ("sentinel2_l2a",), seed: int = DEFAULT_SEED
) -> Iterator[tuple[Stack, ...]]:
    """One Stack per sensor at every one of ``calibration_places``, in their order; pure, no files.

    Sentinel-2 is that of ``calibration_stacks``, bit for bit, whatever the other sensors.

    Args:
        periods: The time axis.
        sensors: ``sentinel2_l2a``, ``sentinel1``, ``landsat``, in any order.
        seed: Of the landscape.

    Raises:
        InvalidInputError: An unknown sensor.
    """
    for place in calibration_places(len(periods)):
        yield stack_set(place, periods, sensors=sensors, seed=seed)


def stack_set(
    place: Place, periods: tuple[Period, ...], *, sensors: tuple[str, ...], seed: int = DEFAULT_SEED
) -> tuple[Stack, ...]:
    """One Stack per sensor at a place; arguments and errors as ``calibration_stack_sets``."""
    unknown = [name for name in sensors if name not in _OF_SENSOR]
    if unknown:
        raise InvalidInputError(f"no simulated stacks of {', '.join(unknown)}; known: {', '.join(_OF_SENSOR)}")
    return tuple(_OF_SENSOR[name](place, periods, seed) for name in sensors)


def _sentinel2(place: Place, periods: tuple[Period, ...], seed: int) -> Stack:
    return sample_stack(place.box, periods, seed=seed, biome=place.biome, flaws=place.flaws)


def _radar(place: Place, periods: tuple[Period, ...], seed: int) -> Stack:
    without = tuple(p.index for p in periods if p.index % 3 in place.without_radar)
    return radar_stack(place.box, periods, seed=seed, biome=place.biome, without=without)


def _landsat(place: Place, periods: tuple[Period, ...], seed: int) -> Stack:
    without = tuple(p.index for p in periods if p.index % 3 in place.without_landsat)
    share = place.flaws.cloud_share
    return landsat_stack(place.box, periods, seed=seed, biome=place.biome, without=without, cloud_share=share)


_OF_SENSOR = {"sentinel2_l2a": _sentinel2, "sentinel1": _radar, "landsat": _landsat}


def _weather(box: Box, period: Period, *, seed: int, share: float) -> Weather:
    fog = Weather(salt=salt_of(seed, "stack clouds", period.index), veil=0.2)
    return Weather(salt=fog.salt, level=level_for(fog, (box,), share=share), veil=fog.veil)


def _spoilt(band: str, dn: NDArray[np.uint16], period: Period, flaws: Flaws) -> NDArray[np.uint16]:
    if period.index == flaws.missing_period or (band in flaws.missing_bands and period.index % 3 == 0):
        return np.zeros_like(dn)
    if flaws.hidden_share > 0 and period.index % 4 == 1:
        # The same ground is hidden at every resolution: whole 60 m pixels.
        pixels_60m = dn.shape[1] * RES_M[band] // 60
        dn = dn.copy()
        dn[:, : int(pixels_60m * flaws.hidden_share) * 60 // RES_M[band]] = 0
    return dn


def _layer(
    dates: list[dict[str, NDArray[np.uint16]]], res_m: int, bands: tuple[str, ...], *, box: Box, whole: Box
) -> Layer:
    cut = box.slices_in(whole.cover(res_m))
    pixels = np.stack([np.stack([bands_of[band][cut] for band in bands]) for bands_of in dates])
    return Layer(res_m=res_m, bands=bands, pixels=pixels, valid=(pixels != 0).any(axis=1), box=box)
