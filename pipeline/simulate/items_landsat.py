"""STAC items of simulated Landsat scenes, in the property style of the USGS' ``landsat-c2l1``.

Hrefs are relative to the file that holds the items. Every item says ``earthpress:simulated``.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from pipeline.simulate.items import links_of, ring_of
from pipeline.simulate.landsat import PAN_M, RES_M

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.simulate.landsat import LandsatImage, LandsatPass

COLLECTION = "landsat-c2l1"
_EXTENSIONS = (
    "https://landsat.usgs.gov/stac/landsat-extension/v1.1.1/schema.json",
    *(
        f"https://stac-extensions.github.io/{name}/schema.json"
        for name in ("view/v1.0.0", "projection/v1.0.0", "eo/v1.0.0")
    ),
)
# Band -> (asset key, common name, title, centre wavelength in micrometres), as in the real items.
_NAMES: dict[str, tuple[str, str, str, float]] = {
    "B1": ("coastal", "coastal", "Coastal/Aerosol Band", 0.44),
    "B2": ("blue", "blue", "Blue Band", 0.48),
    "B3": ("green", "green", "Green Band", 0.56),
    "B4": ("red", "red", "Red Band", 0.65),
    "B5": ("nir08", "nir08", "Near Infrared Band 0.8", 0.86),
    "B6": ("swir16", "swir16", "Short-wave Infrared Band 1.6", 1.6),
    "B7": ("swir22", "swir22", "Short-wave Infrared Band 2.2", 2.2),
    "B8": ("pan", "pan", "Panchromatic Band", 0.59),
    "B9": ("cirrus", "cirrus", "Cirrus Band", 1.37),
    "B10": ("lwir11", "lwir11", "Thermal Infrared Band 10.9", 10.9),
    "B11": ("lwir12", "lwir12", "Thermal Infrared Band 12.0", 12.0),
}


def landsat_id(overpass: LandsatPass) -> str:
    """Product identifier (USGS LSDS-1747, section 3.1); made 10 days after acquisition, as final products are."""
    made = overpass.acquired + timedelta(days=10)
    place = f"{overpass.path:03d}{overpass.row:03d}"
    return f"{overpass.platform}_L1TP_{place}_{overpass.acquired:%Y%m%d}_{made:%Y%m%d}_02_T1"


def make_landsat_item(image: LandsatImage, *, files: Mapping[str, str], folder: str) -> dict[str, Any]:
    """The STAC item of a written scene.

    Args:
        image: The scene.
        files: Band -> file name.
        folder: Folder of the files, relative to the item collection.
    """
    ring = ring_of(image.frame.bounds_m, epsg=image.frame.epsg, edge=image.overpass.edge)
    lons, lats = zip(*ring, strict=True)
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "stac_extensions": list(_EXTENSIONS),
        "id": landsat_id(image.overpass),
        "description": "Simulated in the format of Landsat Collection 2 Level-1",
        "bbox": [min(lons), min(lats), max(lons), max(lats)],
        "geometry": {"type": "Polygon", "coordinates": [[list(point) for point in ring]]},
        "properties": _properties(image),
        "assets": {_NAMES[band][0]: _asset(band, f"./{folder}/{name}", image) for band, name in files.items()},
        "links": links_of(f"https://landsatlook.usgs.gov/stac-server/collections/{COLLECTION}"),
        "collection": COLLECTION,
    }


def _properties(image: LandsatImage) -> dict[str, Any]:
    overpass, frame = image.overpass, image.frame
    number, day = overpass.platform[-1], overpass.acquired
    return {
        "datetime": f"{day:%Y-%m-%dT%H:%M:%S.%f}Z",
        "eo:cloud_cover": image.cloud_pct,
        "view:sun_azimuth": 150.0,
        "view:sun_elevation": overpass.sun_elevation,
        "platform": f"LANDSAT_{number}",
        "instruments": ["OLI", "TIRS"],
        "view:off_nadir": 0,
        "landsat:cloud_cover_land": image.cloud_pct,
        "landsat:wrs_type": "2",
        "landsat:wrs_path": f"{overpass.path:03d}",
        "landsat:wrs_row": f"{overpass.row:03d}",
        "landsat:scene_id": f"LC{number}{overpass.path:03d}{overpass.row:03d}{day:%Y%j}LGN00",
        "landsat:collection_category": "T1",
        "landsat:collection_number": "02",
        "landsat:correction": "L1TP",
        "proj:epsg": frame.epsg,
        "proj:shape": list(frame.shape(30)),
        "proj:transform": [float(v) for v in frame.transform(30)[:6]],
        "earthpress:simulated": True,
    }


def _asset(band: str, href: str, image: LandsatImage) -> dict[str, Any]:
    key, common, title, centre = _NAMES[band]
    res_m = RES_M[band]
    kind = "Radiance" if key.startswith("lwir") else "Reflectance"
    asset: dict[str, Any] = {
        "title": f"{title} ({band})",
        "description": f"Collection 2 Level-1 {title} ({band}) Top of Atmosphere {kind}, simulated",
        "type": "image/vnd.stac.geotiff; cloud-optimized=true",
        "roles": ["data"],
        "eo:bands": [{"name": band, "common_name": common, "gsd": res_m, "center_wavelength": centre}],
        "href": href,
    }
    if res_m == PAN_M:
        asset["proj:shape"] = list(image.frame.shape(res_m))
        asset["proj:transform"] = [float(v) for v in image.frame.transform(res_m)[:6]]
    return asset
