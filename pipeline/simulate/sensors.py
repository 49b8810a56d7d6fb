"""What other satellites see of the sample's ground: its Sentinel-1 and Landsat scenes and their items.

Schedules are made to hold what archives hold: Sentinel-1 has two orbits, a swath edge with a border of zeros, and no
scene at all in the third period; Landsat has a cloudy scene beside a clear one that a swath edge cuts, and none in the
second period.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

from pipeline.simulate.clouds import Weather, level_for
from pipeline.simulate.items_landsat import landsat_id, make_landsat_item
from pipeline.simulate.items_radar import make_radar_item, radar_id
from pipeline.simulate.landsat import LandsatPass, observe_landsat, write_landsat
from pipeline.simulate.noise import salt_of
from pipeline.simulate.radar import RadarPass, observe_radar, write_radar
from pipeline.simulate.scenes import OrbitEdge

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.simulate.landscape import Ground
    from pipeline.types import Box

EDGE = OrbitEdge(x_m=502_600.0, y_m=5_522_000.0, slope=0.21)
"""Border of the ascending swath of 22 May, a little east of the middle of the sample."""
ZEROS_PX = 12
"""Columns of zeros along the borders of that scene."""


def radar_passes() -> tuple[RadarPass, ...]:
    """The Sentinel-1 scenes of the sample, in order of time."""
    morning = RadarPass(
        acquired=datetime(2024, 4, 9, 5, 34, 12, 345000, UTC),
        platform="S1A",
        orbit_state="descending",
        relative_orbit=66,
        absolute_orbit=53363,
        take=0x067842,
    )
    evening = replace(
        morning,
        acquired=datetime(2024, 4, 16, 17, 9, 3, 120000, UTC),
        orbit_state="ascending",
        relative_orbit=117,
        absolute_orbit=53414,
        take=0x0679F0,
    )
    return (
        morning,
        evening,
        replace(morning, acquired=datetime(2024, 5, 15, 5, 34, 13, 210000, UTC), absolute_orbit=53888, take=0x068C15),
        replace(
            evening,
            acquired=datetime(2024, 5, 22, 17, 9, 2, 905000, UTC),
            absolute_orbit=53939,
            take=0x0693AB,
            edge=EDGE,
            zeros_px=ZEROS_PX,
        ),
        replace(morning, acquired=datetime(2024, 7, 14, 5, 34, 15, 5000, UTC), absolute_orbit=54763, take=0x06AB21),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pass:
    """A line of Landsat's schedule: when, which satellite, how much of the scene is cloudy."""

    day: date
    platform: str
    share: float
    sun: float
    edge: bool = False


_LANDSAT = (
    _Pass(day=date(2024, 4, 13), platform="LC09", share=0.04, sun=47.1),
    _Pass(day=date(2024, 6, 8), platform="LC08", share=0.55, sun=60.9),
    _Pass(day=date(2024, 6, 16), platform="LC09", share=0.05, sun=61.2, edge=True),
    _Pass(day=date(2024, 7, 18), platform="LC09", share=0.02, sun=58.3),
)


def landsat_passes(box: Box, *, seed: int) -> tuple[LandsatPass, ...]:
    """The Landsat scenes of the sample, in order of time, with their clouds over a 10 m box."""
    return tuple(_landsat_pass(line, box, seed=seed) for line in _LANDSAT)


def write_radar_scenes(root: Path, ground: Ground, *, seed: int) -> list[dict[str, Any]]:
    """Write every Sentinel-1 scene of surveyed ground below ``root``; returns their items."""
    items = []
    for overpass in radar_passes():
        image = observe_radar(ground, overpass, seed=seed)
        folder = f"scenes/{radar_id(overpass)}"
        items.append(make_radar_item(image, files=write_radar(image, root / folder), folder=folder))
    return items


def write_landsat_scenes(root: Path, ground: Ground, *, seed: int) -> list[dict[str, Any]]:
    """Write every Landsat scene of surveyed ground below ``root``; returns their items."""
    items = []
    for overpass in landsat_passes(ground.box, seed=seed):
        image = observe_landsat(ground, overpass, seed=seed)
        name = landsat_id(overpass)
        files = write_landsat(image, root / "scenes" / name, stem=name)
        items.append(make_landsat_item(image, files=files, folder=f"scenes/{name}"))
    return items


WRITERS = {"sentinel1": write_radar_scenes, "landsat": write_landsat_scenes}
"""Sensor -> what writes its scenes."""


def _landsat_pass(line: _Pass, box: Box, *, seed: int) -> LandsatPass:
    weather = Weather(salt=salt_of(seed, "landsat weather", line.day.isoformat()), col=box.col_stop)
    return LandsatPass(
        acquired=datetime(line.day.year, line.day.month, line.day.day, 10, 15, 31, 440000, UTC),
        platform=line.platform,
        path=195,
        row=25,
        sun_elevation=line.sun,
        weather=replace(weather, level=level_for(weather, (box,), share=line.share)),
        edge=OrbitEdge(x_m=503_100.0, y_m=5_522_000.0, slope=-0.24) if line.edge else None,
    )
