"""Catalogues: which items of a collection touch this geometry in this time, and the scenes that they become.

A STAC API over the network (``stac_api``), or files that are searched in process (``item_files``); several of them
complete each other (``fallback``). ``find`` is the front door.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

import shapely

from pipeline.errors import DataError, InvalidInputError, TransientError
from pipeline.plan import items as dialects
from pipeline.plan.aoi import split_zones
from pipeline.plan.fallback import merged
from pipeline.plan.hrefs import redact
from pipeline.plan.item_files import EXPECTED, FileCatalog
from pipeline.plan.item_values import listing
from pipeline.plan.items import (
    PLANETARY_COMPUTER,
    UnusableItemError,
    WrongProductError,
    acquired_of,
    scene_from_item,
)
from pipeline.plan.select import newest_versions
from pipeline.plan.stac_api import ApiCatalog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from datetime import datetime

    from shapely.geometry.base import BaseGeometry

    from pipeline.types import Period, Scene

    Item = dict[str, Any]

__all__ = ["PRESETS", "ApiCatalog", "FileCatalog", "find", "is_local", "open_catalog", "redact", "scenes_of"]

USUAL = {"sentinel2_l2a": "sentinel-2-l2a", "sentinel1": "sentinel-1-rtc", "landsat": "landsat-c2l1"}
"""Collection of a sensor where a catalogue is no preset: ids of the Planetary Computer and of the USGS."""
FAMILIES = {
    "sentinel2_l2a": ("sentinel-2", "sentinel2", "sentinel-s2", "s2-"),
    "sentinel1": ("sentinel-1", "sentinel1", "sentinel-s1", "s1-", "opera-l2-rtc"),
    "landsat": ("landsat",),
}
"""How ids of a sensor's collections begin."""
WIDE_DEG = 12.0
"""A wider area is asked zone by zone; one on both sides of the antimeridian always is."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A catalogue with a name.

    Attributes:
        url: Landing page of its API.
        collections: (sensor, collection) of what can be used.
        refused: (sensor, reason) of what it has but the models were not trained on.
        sign: Whether hrefs need planetary-computer signing at open.
        hint: What a user must know to read its files, "" for nothing.
    """

    url: str
    collections: tuple[tuple[str, str], ...]
    refused: tuple[tuple[str, str], ...] = ()
    sign: bool = False
    hint: str = ""


_LEVEL_2_ONLY = (
    "it has Landsat Collection 2 Level-2 only: surface reflectance without B8, B9 and B11, while the models take "
    "Level-1 numbers of all eleven bands; use inputs.landsat.catalog=https://landsatlook.usgs.gov/stac-server with AWS "
    "credentials and inputs.landsat.requester_pays=true, or your own files"
)
_GRD_ONLY = (
    "it has Sentinel-1 GRD only, which is not terrain-corrected; use inputs.sentinel1.catalog=planetary-computer"
)
_EODATA = (
    "its files lie at s3://eodata: reading them needs an account there, AWS_VIRTUAL_HOSTING=FALSE, AWS_ACCESS_KEY_ID, "
    "AWS_SECRET_ACCESS_KEY and AWS_S3_ENDPOINT=eodata.dataspace.copernicus.eu in the environment"
)
PRESETS: Mapping[str, Preset] = {
    "planetary-computer": Preset(
        url=f"https://{PLANETARY_COMPUTER}/api/stac/v1",
        collections=(("sentinel2_l2a", "sentinel-2-l2a"), ("sentinel1", "sentinel-1-rtc")),
        refused=(("landsat", _LEVEL_2_ONLY),),
        sign=True,
    ),
    "earth-search": Preset(
        url="https://earth-search.aws.element84.com/v1",
        collections=(("sentinel2_l2a", "sentinel-2-c1-l2a"),),
        refused=(("sentinel1", _GRD_ONLY), ("landsat", _LEVEL_2_ONLY)),
    ),
    "cdse": Preset(
        url="https://stac.dataspace.copernicus.eu/v1",
        collections=(("sentinel2_l2a", "sentinel-2-l2a"),),
        refused=(("sentinel1", _GRD_ONLY),),
        hint=_EODATA,
    ),
}


class Catalog(Protocol):
    """What ``scenes_of`` needs."""

    sign: bool
    """Whether hrefs need planetary-computer signing at open."""

    def search(
        self, *, collection: str, geometry: BaseGeometry, start: datetime, end: datetime
    ) -> Iterator[dict[str, Any]]:
        """Items that touch the geometry (lon/lat) with start <= time <= end; maybe more, maybe some twice."""
        ...

    def base_of(self, item: dict[str, Any]) -> str | None:
        """Where an item of this catalogue comes from: URL or local file; decides whether it may name local files."""
        ...


def find(
    spec: str,
    *,
    sensor: str,
    collection: str,
    geometry: BaseGeometry,
    periods: tuple[Period, ...],
    offset: str = "auto",
    note: Callable[[str], None] | None = None,
) -> tuple[Scene, ...]:
    """All scenes of a sensor that touch a geometry in one of the periods.

    Args:
        spec: As ``open_catalog``, or several of them separated by commas: what the first lacks comes from the next,
            and the same product in a later one becomes an alternate of the first one's scene.
        sensor: ``sentinel2_l2a``, ``sentinel1`` or ``landsat``.
        collection: STAC collection id; ``auto``: the catalogue's own for this sensor.
        geometry: lon/lat polygons inside -180..180: the union of ``select.cell_polygon`` of all cells.
        periods: Half-open periods.
        offset: See ``items.scene_from_item``.
        note: Called with what a user should know.

    Returns:
        Scenes with unique ids, sorted by id.

    Raises:
        InvalidInputError: Nothing there, no such collection, or a product that the models were not trained on.
        DataError: See ``scenes_of``.
        TransientError: No catalogue answers.
    """
    tell = note or logger.warning
    parts = _parts(spec)
    for part in parts:
        _check_spec(part)
    found: list[tuple[Scene, ...]] = []
    failed: list[InvalidInputError | TransientError] = []
    for part in parts:
        try:
            scenes = _find_in(
                part, sensor=sensor, collection=collection, geometry=geometry, periods=periods, offset=offset
            )
        except (InvalidInputError, TransientError) as err:
            if len(parts) == 1:
                raise
            tell(f"catalogue {redact(part)} is left out: {err}")
            failed.append(err)
            continue
        found.append(scenes)
        preset = _preset(part)
        if preset is not None and preset.hint and scenes:
            tell(f"{redact(part)}: {preset.hint}")
    if not found:
        raise next((e for e in failed if isinstance(e, TransientError)), failed[0])
    return merged(found)


def is_local(spec: str) -> bool:
    """Whether any of the catalogues of ``spec`` is a file on this machine, whose items may name local files."""
    return any(part not in PRESETS and dialects.is_local(part) for part in _parts(spec))


def kinds(spec: str) -> tuple[str, ...]:
    """What the catalogues of ``spec`` are, without an address or a path: the name of a preset, ``STAC API``, ``files``.

    >>> kinds("planetary-computer, https://example.org/stac")
    ('planetary-computer', 'STAC API')
    """
    return tuple(
        part if part in PRESETS else "files" if dialects.is_local(part) else "STAC API" for part in _parts(spec)
    )


def _parts(spec: str) -> tuple[str, ...]:
    """The catalogues of a setting; an existing path may hold a comma."""
    if spec.strip() and dialects.is_local(spec) and Path(dialects.local_path(spec)).exists():
        return (spec,)
    parts = tuple(part.strip() for part in spec.split(",") if part.strip())
    if not parts:
        raise InvalidInputError(f"no catalogue: inputs.catalog is {spec!r}; use {', '.join(PRESETS)}, a URL or a file")
    return parts


def _find_in(
    part: str, *, sensor: str, collection: str, geometry: BaseGeometry, periods: tuple[Period, ...], offset: str
) -> tuple[Scene, ...]:
    """The scenes of one catalogue."""
    chosen = _collection(part, sensor=sensor) if collection == "auto" else collection
    source = open_catalog(part)
    if not chosen:
        chosen = _usual_collection(source, part, sensor=sensor)
    return scenes_of(source, collection=chosen, geometry=geometry, periods=periods, sensor=sensor, offset=offset)


def _collection(part: str, *, sensor: str) -> str:
    """The collection of a sensor in a preset, before it is asked anything; "" for other catalogues."""
    preset = _preset(part)
    if preset is None:
        return ""
    if sensor in dict(preset.refused):
        raise InvalidInputError(f"catalogue {part} cannot give {sensor}: {dict(preset.refused)[sensor]}")
    if sensor not in dict(preset.collections):
        raise InvalidInputError(
            f"no collection of {sensor} is known in catalogue {part}: name one with {_setting(sensor)}, or use another "
            f"catalogue with {_setting(sensor, 'catalog')}"
        )
    return dict(preset.collections)[sensor]


def _usual_collection(source: Catalog, part: str, *, sensor: str) -> str:
    """The collection of a sensor in a catalogue without a name: the usual one, or the only one that can be meant."""
    usual = USUAL[sensor]
    held = source.collections if isinstance(source, FileCatalog) else ()
    if not held or usual in held:
        return usual
    fitting = [name for name in held if _sensor_of(name) == sensor]
    if len(fitting) == 1:
        return fitting[0]
    if len(held) == 1 and _sensor_of(held[0]) is None:
        return held[0]
    raise InvalidInputError(
        f"catalogue {redact(part)} holds the collections {listing(held)}: say which one is {sensor} with "
        f"{_setting(sensor)}, or take the sensor out of inputs.sensors"
    )


def _setting(sensor: str, name: str = "collection") -> str:
    return f"inputs.{'sentinel2' if sensor == 'sentinel2_l2a' else sensor}.{name}"


def _sensor_of(collection: str) -> str | None:
    """Whose a collection is by its id; None when that does not tell."""
    name = collection.lower().replace("_", "-")
    return next((sensor for sensor, starts in FAMILIES.items() if name.startswith(starts)), None)


def _preset(part: str) -> Preset | None:
    """The preset of a name or of its URL."""
    url = part.rstrip("/").lower()
    return PRESETS.get(part) or next((p for p in PRESETS.values() if p.url.lower() == url), None)


def _check_spec(spec: str) -> None:
    """Refuse what cannot be a catalogue, before any is asked: a misspelt one must not be passed over for the next.

    Raises:
        InvalidInputError: Neither a preset nor a URL nor a file that exists; or a URL with a secret.
    """
    if spec in PRESETS:
        return
    try:
        parts = urlsplit(spec)
    except ValueError:
        raise InvalidInputError(f"catalogue {redact(spec)!r} is not a URL") from None
    if parts.scheme.lower() in {"http", "https"}:
        if parts.query or parts.fragment or "@" in parts.netloc:
            raise InvalidInputError(
                f"catalogue {redact(spec)!r}: the URL must not hold a user name, password or query, because plans and "
                "reports keep it"
            )
        return
    if not dialects.is_local(spec):
        raise InvalidInputError(f"catalogue {redact(spec)!r} is neither {', '.join(PRESETS)} nor http(s) nor a file")
    if not Path(dialects.local_path(spec)).exists():
        raise InvalidInputError(
            f"catalogue {redact(spec)!r} does not exist: give {', '.join(PRESETS)}, the URL of a STAC API, or a file; "
            f"{EXPECTED}"
        )


def open_catalog(spec: str) -> Catalog:
    """Open one catalogue.

    Args:
        spec: Name of a preset, the URL of a STAC API, or a path or ``file://`` URL of a static catalogue, an
            ItemCollection, NDJSON, stac-geoparquet, or a folder that holds one of them.

    Raises:
        InvalidInputError: Nothing there, or it is none of these.
        TransientError: The API does not answer.
    """
    _check_spec(spec)
    preset = _preset(spec)
    if preset is not None:
        return ApiCatalog(preset.url, sign=preset.sign)
    if urlsplit(spec).scheme.lower() in {"http", "https"}:
        return ApiCatalog(spec, sign=urlsplit(spec).hostname == PLANETARY_COMPUTER)
    return FileCatalog(dialects.local_path(spec))


def scenes_of(
    catalog: Catalog,
    *,
    collection: str,
    geometry: BaseGeometry,
    periods: tuple[Period, ...],
    sensor: str = "sentinel2_l2a",
    offset: str = "auto",
) -> tuple[Scene, ...]:
    """All scenes of a collection of one catalogue that touch a geometry in one of the periods.

    Args:
        catalog: Where to look; asked once per period and part of the geometry, one request after the other.
        collection: STAC collection id.
        geometry: lon/lat polygons inside -180..180; give the union of ``select.cell_polygon`` of all cells, so
            that a cell's candidates do not depend on the area of the request.
        periods: Half-open periods.
        sensor: Whose scenes.
        offset: See ``items.scene_from_item``.

    Returns:
        Scenes with unique ids, sorted by id. Older versions of a granule that a newer one covers wholly are left out;
        ``select`` does the rest per cell.

    Raises:
        DataError: Two different items share an id, or an item cannot be read (``scene_from_item``).
        InvalidInputError: The collection is not what the models were trained on; or from the catalogue.
        TransientError: From the catalogue.
    """
    shapely.prepare(geometry)
    found: dict[str, Scene] = {}
    skipped: dict[str, str] = {}
    for part in _query_parts(geometry):
        for period in periods:
            items = catalog.search(collection=collection, geometry=part, start=period.start, end=period.end)
            for item in items:
                # Intervals of the STAC API are closed at both ends; periods are half-open.
                if not _asked_for(item, collection=collection) or not period.start <= acquired_of(item) < period.end:
                    continue
                scene = _scene(item, catalog=catalog, skipped=skipped, sensor=sensor, offset=offset)
                if scene is None:
                    continue
                if scene.id not in found and not geometry.intersects(shapely.from_wkb(scene.footprint)):
                    continue
                if found.setdefault(scene.id, scene) != scene:
                    raise DataError(f"the catalogue returned two different items with the id {scene.id}")
    scenes = [found[key] for key in sorted(found)]
    if skipped:
        logger.warning("%d items of %s were left out, e.g. %s", len(skipped), collection, next(iter(skipped.values())))
    return newest_versions(scenes, list(shapely.from_wkb([s.footprint for s in scenes])), whole=True)


def _asked_for(item: Item, *, collection: str) -> bool:
    """Whether an item is of the collection, or does not say."""
    told = item.get("collection")
    return told is None or told == collection


def _scene(item: Item, *, catalog: Catalog, skipped: dict[str, str], sensor: str, offset: str) -> Scene | None:
    try:
        return scene_from_item(item, base=catalog.base_of(item), sign=catalog.sign, sensor=sensor, offset=offset)
    except UnusableItemError as err:
        skipped.setdefault(str(item.get("id")), str(err))
        return None
    except WrongProductError as err:
        raise InvalidInputError(str(err)) from None


def _query_parts(geometry: BaseGeometry) -> Sequence[BaseGeometry]:
    west, _, east, _ = geometry.bounds
    return (geometry,) if east - west <= WIDE_DEG else tuple(part for _, part in split_zones(geometry))
