"""The simulated sample: a small catalogue of scenes, reference polygons and the truth, written to a folder.

Twelve Sentinel-2 scenes of four 30-day periods in two neighbouring tiles of UTM 32. In every period each tile has a
nearly clear scene; the others are cloudy, one is cut by the edge of the swath, one has a processing baseline before
04.00. On request, what Sentinel-1 and Landsat see of the same ground (``sensors``).
"""

from __future__ import annotations

import functools
import json
import logging
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import InvalidInputError, OutputError
from pipeline.simulate.clouds import Weather, level_for
from pipeline.simulate.items import item_id, make_item
from pipeline.simulate.labels import choose_patches, feature_collection
from pipeline.simulate.landscape import CLASSES, DEFAULT_SEED, TRUTH_NODATA, LandClass, joined, survey
from pipeline.simulate.noise import salt_of
from pipeline.simulate.scenes import Datatake, Granule, OrbitEdge, observe, write_raster, write_scene
from pipeline.simulate.sensors import WRITERS
from pipeline.simulate.stacks import calibration_stack_sets, calibration_stacks, sample_stack
from pipeline.types import Box, canonical_json

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from pipeline.simulate.landscape import Ground

__all__ = [
    "AREA",
    "GRANULES",
    "Sample",
    "calibration_stack_sets",
    "calibration_stacks",
    "datatakes",
    "make_sample",
    "sample_stack",
]

log = logging.getLogger(__name__)

SAMPLE_VERSION = 1
"""Raise it whenever the pixels or the files change: samples on disk are then made anew."""
MARKER = "sample.json"
START, END = date(2024, 4, 1), date(2024, 7, 30)
AREA = Box(zone=32, res_m=10, row=-552448, col=49920, height=512, width=512)
"""The ground of the sample: 5.1 km x 5.1 km, 2 x 2 blocks, across the border of two tiles of 512 pixels. It lies by
the central meridian, so a lon/lat box has nearly the same outline."""
_TOP, _SIDE = -552552, 720
GRANULES = (
    Granule(name="32UMA", box=Box(zone=32, res_m=10, row=_TOP, col=50100 - _SIDE, height=_SIDE, width=_SIDE)),
    Granule(name="32UNA", box=Box(zone=32, res_m=10, row=_TOP, col=49998, height=_SIDE, width=_SIDE)),
)
"""West and east; real borders (499,980 m and 501,000 m east), 7.2 km wide instead of 109.8 km, 1.02 km of overlap."""
SENSORS = ("sentinel2_l2a", "sentinel1", "landsat")
SENSOR_BOX = replace(AREA, row=_TOP, col=AREA.col - (AREA.row - _TOP), height=_SIDE, width=_SIDE)
"""What a Sentinel-1 or Landsat scene of the sample covers: as far around ``AREA`` as the tiles reach in the north."""
_AROUND = "around"
"""Key of the ground of ``SENSOR_BOX``."""
_SENSOR_VERSION = 1
"""Raise it whenever pixels or files of the other sensors change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What ``make_sample`` wrote.

    Attributes:
        folder: The sample's folder.
        catalog: STAC ItemCollection, JSON, of all sensors asked for.
        labels: GeoJSON polygons with ``class``, ``code`` and ``polygon``.
        truth: COG uint8 of the true classes, nodata 255.
        bbox: west, south, east, north of the area, degrees; its blocks are exactly ``AREA``'s.
        start: First day.
        end: Day after the last.
        classes: (code, name, colour).
        sensors: Whose scenes the catalogue has.
    """

    folder: Path
    catalog: Path
    labels: Path
    truth: Path
    bbox: tuple[float, float, float, float]
    start: date
    end: date
    classes: tuple[LandClass, ...]
    sensors: tuple[str, ...] = SENSORS[:1]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pass:
    """A line of the schedule: when, where from, which tiles, how cloudy the cloudiest of ``sure`` may be."""

    day: date
    tiles: tuple[int, ...]
    share: float
    sure: tuple[int, ...] = (0, 1)
    east: float = 0.0
    veil: float = 0.0
    baseline: str = "05.10"
    edge: bool = False


_SCHEDULE = (
    _Pass(day=date(2024, 4, 10), tiles=(1,), share=0.72, sure=(1,), veil=0.2),
    _Pass(day=date(2024, 4, 20), tiles=(0, 1), share=0.035),
    _Pass(day=date(2024, 5, 5), tiles=(0, 1), share=0.03, sure=(0,), east=0.045),
    _Pass(day=date(2024, 5, 25), tiles=(1,), share=0.03, sure=(1,), baseline="02.14"),
    _Pass(day=date(2024, 6, 11), tiles=(0,), share=0.02, sure=(0,), edge=True),
    _Pass(day=date(2024, 6, 14), tiles=(0, 1), share=0.05),
    _Pass(day=date(2024, 7, 4), tiles=(0,), share=0.45, sure=(0,), veil=0.15),
    _Pass(day=date(2024, 7, 19), tiles=(0, 1), share=0.02),
)
"""Every fifth day is a pass of orbit 65, S2A and S2B in turn; 11 June is the neighbouring orbit 22 with its edge."""


def make_sample(
    folder: str | os.PathLike[str], *, seed: int = DEFAULT_SEED, sensors: tuple[str, ...] = SENSORS[:1]
) -> Sample:
    """Write the sample into ``folder``; what is there already, complete and of the same seed, is left alone.

    Args:
        folder: Where to.
        seed: Of the landscape.
        sensors: Whose scenes the catalogue shall have; those of Sentinel-2 are written in any case.

    Raises:
        InvalidInputError: An unknown sensor.
        OutputError: The folder cannot be written.
    """
    unknown = [name for name in sensors if name not in SENSORS]
    if unknown or not sensors:
        raise InvalidInputError(f"sensors of the sample are {', '.join(SENSORS)}, got {', '.join(unknown) or 'none'}")
    sample = _sample(Path(folder), sensors)
    try:
        _complete(sample, seed=seed)
    except OSError as err:
        raise OutputError(
            f"the simulated sample cannot be written to {sample.folder}: {err}; choose another folder"
        ) from err
    return sample


def datatakes(seed: int = DEFAULT_SEED) -> tuple[tuple[Datatake, tuple[Granule, ...]], ...]:
    """Every pass of the sample with the tiles it delivers, in order of time."""
    return tuple((_datatake(line, seed=seed), tuple(GRANULES[n] for n in line.tiles)) for line in _SCHEDULE)


def area_bbox() -> tuple[float, float, float, float]:
    """A lon/lat box 40-60 m inside ``AREA``."""
    from rasterio.warp import transform  # noqa: PLC0415

    x_min, y_min, x_max, y_max = AREA.bounds_m
    inset = 40.0
    xs = [x_min + inset, x_max - inset, x_max - inset, x_min + inset]
    ys = [y_min + inset, y_min + inset, y_max - inset, y_max - inset]
    lons, lats = transform(f"EPSG:{AREA.epsg}", "EPSG:4326", xs, ys)
    west, east = max(lons[0], lons[3]), min(lons[1], lons[2])
    south, north = max(lats[0], lats[1]), min(lats[2], lats[3])
    return round(west, 6), round(south, 6), round(east, 6), round(north, 6)


def _sample(root: Path, sensors: tuple[str, ...]) -> Sample:
    ordered = tuple(name for name in SENSORS if name in sensors)
    return Sample(
        folder=root,
        catalog=root / ("items.json" if ordered == SENSORS[:1] else f"items-{'-'.join(ordered)}.json"),
        labels=root / "labels.geojson",
        truth=root / "truth.tif",
        bbox=area_bbox(),
        start=START,
        end=END,
        classes=CLASSES,
        sensors=ordered,
    )


def _complete(sample: Sample, *, seed: int) -> None:
    """Write what is missing: the base, the scenes of other sensors, the catalogue of those asked for."""
    root = sample.folder
    root.mkdir(parents=True, exist_ok=True)
    grounds: dict[str, Ground] = {}

    def base() -> None:
        grounds.update({granule.name: survey(granule.box, seed=seed) for granule in GRANULES})
        _write(sample, grounds, seed=seed)

    fresh = _once(root / MARKER, {"seed": seed, "version": SAMPLE_VERSION}, base)
    for sensor in (name for name in sample.sensors if name in WRITERS):
        key = {"seed": seed, "version": [SAMPLE_VERSION, _SENSOR_VERSION]}
        write = functools.partial(_write_sensor, root, sensor, grounds, seed)
        fresh |= _once(root / f"sample-{sensor}.json", key, write)
    if sample.catalog.name != "items.json" and (fresh or not sample.catalog.is_file()):
        features = [one for sensor in sample.sensors for one in _features(root, sensor)]
        _write_json(sample.catalog, {"type": "FeatureCollection", "features": features})


def _once(marker: Path, key: dict[str, Any], write: Callable[[], None]) -> bool:
    """Call ``write`` unless ``marker`` says that it was done; returns whether it was called."""
    text = canonical_json(key)
    if marker.is_file() and marker.read_text(encoding="utf-8") == text:
        log.info("the simulated sample in %s is complete (%s)", marker.parent, marker.name)
        return False
    marker.unlink(missing_ok=True)
    write()
    marker.write_text(text, encoding="utf-8")
    return True


def _write(sample: Sample, grounds: dict[str, Ground], *, seed: int) -> None:
    items = [
        _write_one(sample.folder, grounds[granule.name], granule, datatake, seed=seed)
        for datatake, granules in datatakes(seed)
        for granule in granules
    ]
    _write_json(sample.folder / "items.json", {"type": "FeatureCollection", "features": items})
    area = survey(AREA, seed=seed)
    patches = choose_patches(area.truth, box=AREA, seed=seed)
    _write_json(sample.labels, feature_collection(patches, box=AREA, seed=seed))
    colours = {land.code: (*bytes.fromhex(land.colour[1:]), 255) for land in CLASSES}
    write_raster(sample.truth, area.truth, box=AREA, nodata=TRUTH_NODATA, colours=colours)
    log.info("wrote %d scenes and %d polygons to %s", len(items), len(patches), sample.folder)


def _write_sensor(root: Path, sensor: str, grounds: dict[str, Ground], seed: int) -> None:
    """The scenes of another sensor; ``grounds`` are the tiles' if they were surveyed just now."""
    if _AROUND not in grounds:
        tiles = [grounds[granule.name] for granule in GRANULES if granule.name in grounds]
        grounds[_AROUND] = joined(tiles, SENSOR_BOX) if tiles else survey(SENSOR_BOX, seed=seed)
    items = WRITERS[sensor](root, grounds[_AROUND], seed=seed)
    _write_json(_catalog_of(root, sensor), {"type": "FeatureCollection", "features": items})
    log.info("wrote %d scenes of %s to %s", len(items), sensor, root)


def _catalog_of(root: Path, sensor: str) -> Path:
    return root / ("items.json" if sensor == SENSORS[0] else f"items-{sensor}.json")


def _features(root: Path, sensor: str) -> list[Any]:
    return list(json.loads(_catalog_of(root, sensor).read_text(encoding="utf-8"))["features"])


def _write_one(root: Path, ground: Ground, granule: Granule, datatake: Datatake, *, seed: int) -> dict[str, Any]:
    image = observe(ground, granule, datatake, seed=seed)
    folder = f"scenes/{item_id(granule, datatake)}"
    return make_item(image, files=write_scene(image, root / folder), folder=folder)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")


def _datatake(line: _Pass, *, seed: int) -> Datatake:
    boxes = tuple(GRANULES[n].box for n in line.sure)
    weather = Weather(
        salt=salt_of(seed, "weather", line.day.isoformat()), east=line.east, col=boxes[0].col_stop, veil=line.veil
    )
    passes = (line.day - date(2024, 4, 10)).days // 5
    orbit = 22 if line.edge else 65
    return Datatake(
        acquired=datetime(line.day.year, line.day.month, line.day.day, 10, 26 if orbit == 65 else 36, 1, 24000, UTC),
        platform=("S2A", "S2B")[passes % 2],
        relative_orbit=orbit,
        absolute_orbit=(46000, 37000)[passes % 2] + passes * 71,
        baseline=line.baseline,
        weather=replace(weather, level=level_for(weather, boxes, share=line.share)),
        edge=OrbitEdge(x_m=499_400.0, y_m=5_522_000.0, slope=-0.26) if line.edge else None,
    )
