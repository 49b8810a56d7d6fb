"""STAC items of simulated radar scenes, in the property style of Planetary Computer's ``sentinel-1-rtc``.

Hrefs are relative to the file that holds the items. Every item says ``earthpress:simulated``.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from pipeline.simulate.items import COG_TYPE, footprint_ring, links_of
from pipeline.simulate.radar import LOOKS, NODATA

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from pipeline.simulate.radar import RadarImage, RadarPass

COLLECTION = "sentinel-1-rtc"
_EXTENSIONS = tuple(
    f"https://stac-extensions.github.io/{name}/schema.json"
    for name in ("sar/v1.0.0", "sat/v1.0.0", "projection/v1.1.0", "file/v2.0.0", "raster/v1.1.0")
)
_HALF = timedelta(seconds=9)
"""A slice lasts some 18 to 25 seconds."""
_TITLES = {
    "vv": ("VV: vertical transmit, vertical receive", "vertical polarization and received with vertical polarization"),
    "vh": (
        "VH: vertical transmit, horizontal receive",
        "vertical polarization and received with horizontal polarization",
    ),
}
_SATELLITES = {"S1A": "2014-016A", "S1B": "2016-025A", "S1C": "2024-232A"}
"""International designators."""


def radar_id(overpass: RadarPass) -> str:
    """Item id as Planetary Computer makes it: name of the GRD product without its last part, and ``rtc``."""
    start, end = (f"{t:%Y%m%dT%H%M%S}" for t in _span(overpass))
    orbit, take = f"{overpass.absolute_orbit:06d}", f"{overpass.take:06X}"
    return f"{overpass.platform}_IW_GRDH_1SDV_{start}_{end}_{orbit}_{take}_rtc"


def make_radar_item(image: RadarImage, *, files: Mapping[str, str], folder: str) -> dict[str, Any]:
    """The STAC item of a written scene.

    Args:
        image: The scene.
        files: Asset key -> file name.
        folder: Folder of the files, relative to the item collection.
    """
    ring = footprint_ring(image.box, image.overpass.edge)
    lons, lats = zip(*ring, strict=True)
    return {
        "id": radar_id(image.overpass),
        "bbox": [min(lons), min(lats), max(lons), max(lats)],
        "type": "Feature",
        "links": links_of(f"https://planetarycomputer.microsoft.com/api/stac/v1/collections/{COLLECTION}"),
        "assets": {key: _asset(key, f"./{folder}/{name}") for key, name in sorted(files.items())},
        "geometry": {"type": "Polygon", "coordinates": [[list(point) for point in ring]]},
        "collection": COLLECTION,
        "properties": _properties(image),
        "stac_extensions": list(_EXTENSIONS),
        "stac_version": "1.0.0",
    }


def _span(overpass: RadarPass) -> tuple[datetime, datetime]:
    return overpass.acquired - _HALF, overpass.acquired + _HALF


def _properties(image: RadarImage) -> dict[str, Any]:
    overpass, box = image.overpass, image.box
    start, end = (f"{t:%Y-%m-%d %H:%M:%S.%f}+00:00" for t in _span(overpass))
    return {
        "datetime": f"{overpass.acquired:%Y-%m-%dT%H:%M:%S.%f}Z",
        "platform": f"SENTINEL-1{overpass.platform[-1]}",
        "s1:shape": [box.width, box.height],
        "proj:bbox": list(box.bounds_m),
        "proj:epsg": box.epsg,
        "proj:shape": list(box.shape),
        "end_datetime": end,
        "constellation": "Sentinel-1",
        "s1:resolution": "high",
        "proj:transform": [float(v) for v in box.transform],
        "s1:datatake_id": str(overpass.take),
        "start_datetime": start,
        "s1:orbit_source": "RESORB",
        "s1:slice_number": "1",
        "s1:total_slices": "1",
        "sar:looks_range": 5,
        "sat:orbit_state": overpass.orbit_state,
        "sar:product_type": "GRD",  # sic: the Planetary Computer writes what its RTC was made of
        "sar:looks_azimuth": 1,
        "sar:polarizations": ["VV", "VH"],
        "sar:frequency_band": "C",
        "sat:absolute_orbit": overpass.absolute_orbit,
        "sat:relative_orbit": overpass.relative_orbit,
        "s1:processing_level": "1",
        "sar:instrument_mode": "IW",
        "sar:center_frequency": 5.405,
        "sar:resolution_range": 20,
        "s1:product_timeliness": "Fast-24h",
        "sar:resolution_azimuth": 22,
        "sar:pixel_spacing_range": 10,
        "sar:observation_direction": "right",
        "sar:pixel_spacing_azimuth": 10,
        "sar:looks_equivalent_number": float(LOOKS),
        "s1:instrument_configuration_ID": "7",
        "sat:platform_international_designator": _SATELLITES[overpass.platform],
        "earthpress:simulated": True,
    }


def _asset(key: str, href: str) -> dict[str, Any]:
    title, how = _TITLES[key]
    return {
        "href": href,
        "type": COG_TYPE,
        "roles": ["data"],
        "title": title,
        "description": f"Terrain-corrected gamma naught values of signal transmitted with {how} with radiometric "
        "terrain correction applied.",
        "raster:bands": [{"nodata": NODATA, "data_type": "float32", "spatial_resolution": 10.0}],
    }
