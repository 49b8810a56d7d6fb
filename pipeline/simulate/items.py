"""STAC items of simulated scenes, in the property style of Planetary Computer's ``sentinel-2-l2a``.

Hrefs are relative to the file that holds the items. Every item says ``earthpress:simulated``.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.simulate.clouds import SCL_CIRRUS, SCL_CLOUD_HIGH, SCL_CLOUD_MEDIUM, SCL_NODATA
from pipeline.simulate.spectra import RES_M

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from pipeline.simulate.scenes import Datatake, Granule, OrbitEdge, SceneImage
    from pipeline.types import Box

COLLECTION = "sentinel-2-l2a"
COG_TYPE = "image/tiff; application=geotiff; profile=cloud-optimized"
_EXTENSIONS = tuple(
    f"https://stac-extensions.github.io/{name}/v1.0.0/schema.json" for name in ("eo", "sat", "projection")
)
_PLATFORMS = {"S2A": "Sentinel-2A", "S2B": "Sentinel-2B"}
# Band -> (title, common name, centre wavelength, full width at half maximum; micrometres), as in the real items.
_EO_BANDS: dict[str, tuple[str, str | None, float, float]] = {
    "B01": ("Coastal aerosol", "coastal", 0.443, 0.027),
    "B02": ("Blue", "blue", 0.49, 0.098),
    "B03": ("Green", "green", 0.56, 0.045),
    "B04": ("Red", "red", 0.665, 0.038),
    "B05": ("Vegetation red edge 1", "rededge", 0.704, 0.019),
    "B06": ("Vegetation red edge 2", "rededge", 0.74, 0.018),
    "B07": ("Vegetation red edge 3", "rededge", 0.783, 0.028),
    "B08": ("NIR", "nir", 0.842, 0.145),
    "B8A": ("Vegetation red edge 4", "rededge", 0.865, 0.033),
    "B09": ("Water vapor", None, 0.945, 0.026),
    "B11": ("SWIR (1.6)", "swir16", 1.61, 0.143),
    "B12": ("SWIR (2.2)", "swir22", 2.19, 0.242),
}
# SCL code -> property of the share of valid pixels.
_SHARES = {
    1: "s2:saturated_defective_pixel_percentage",
    2: "s2:dark_features_percentage",
    3: "s2:cloud_shadow_percentage",
    4: "s2:vegetation_percentage",
    5: "s2:not_vegetated_percentage",
    6: "s2:water_percentage",
    7: "s2:unclassified_percentage",
    8: "s2:medium_proba_clouds_percentage",
    9: "s2:high_proba_clouds_percentage",
    10: "s2:thin_cirrus_percentage",
    11: "s2:snow_ice_percentage",
}


def item_id(granule: Granule, datatake: Datatake) -> str:
    """Item id as Planetary Computer makes it: product name without the baseline."""
    sensed, made = f"{datatake.acquired:%Y%m%dT%H%M%S}", f"{_generated(datatake):%Y%m%dT%H%M%S}"
    return f"{datatake.platform}_MSIL2A_{sensed}_R{datatake.relative_orbit:03d}_T{granule.name}_{made}"


def make_item(image: SceneImage, *, files: Mapping[str, str], folder: str) -> dict[str, Any]:
    """The STAC item of a written scene.

    Args:
        image: The scene.
        files: Asset key -> file name.
        folder: Folder of the files, relative to the item collection.
    """
    ring = footprint_ring(image.granule.box, image.datatake.edge)
    lons, lats = zip(*ring, strict=True)
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "stac_extensions": list(_EXTENSIONS),
        "id": item_id(image.granule, image.datatake),
        "collection": COLLECTION,
        "bbox": [min(lons), min(lats), max(lons), max(lats)],
        "geometry": {"type": "Polygon", "coordinates": [[list(point) for point in ring]]},
        "properties": _properties(image),
        "links": links_of(f"https://planetarycomputer.microsoft.com/api/stac/v1/collections/{COLLECTION}"),
        "assets": {key: _asset(key, f"./{folder}/{name}", image.granule.box) for key, name in files.items()},
    }


def links_of(collection_url: str) -> list[dict[str, str]]:
    """Links of a simulated item: its licence, and the collection whose format is followed."""
    return [
        {
            "rel": "license",
            "href": "https://creativecommons.org/publicdomain/zero/1.0/",
            "title": "Simulated, no rights reserved",
        },
        {
            "rel": "collection",
            "href": collection_url,
            "type": "application/json",
            "title": "The collection whose format is followed",
        },
    ]


def footprint_ring(box: Box, edge: OrbitEdge | None) -> list[tuple[float, float]]:
    """The valid area's outline in lon/lat, closed, counter-clockwise.

    A box is a few kilometres wide, so straight edges in UTM and in lon/lat differ by less than a metre.
    """
    return ring_of(box.bounds_m, epsg=box.epsg, edge=edge)


def ring_of(
    bounds_m: tuple[float, float, float, float], *, epsg: int, edge: OrbitEdge | None
) -> list[tuple[float, float]]:
    """``footprint_ring`` of x_min, y_min, x_max, y_max on any grid."""
    from rasterio.warp import transform  # noqa: PLC0415

    x_min, y_min, x_max, y_max = bounds_m
    ring = [(x_min, y_min), (x_max, y_min), (x_max, y_max), (x_min, y_max)]
    if edge is not None:
        ring = _clip(ring, edge)
    lons, lats = transform(f"EPSG:{epsg}", "EPSG:4326", [x for x, _ in ring], [y for _, y in ring])
    points = [(round(lon, 8), round(lat, 8)) for lon, lat in zip(lons, lats, strict=True)]
    return [*points, points[0]]


def _clip(ring: list[tuple[float, float]], edge: OrbitEdge) -> list[tuple[float, float]]:
    """Cut a convex ring with the edge's half plane (Sutherland and Hodgman, CACM 1974)."""

    def beyond(point: tuple[float, float]) -> float:
        return (point[0] - edge.x_m) + edge.slope * (point[1] - edge.y_m)

    kept: list[tuple[float, float]] = []
    for start, stop in zip(ring, [*ring[1:], ring[0]], strict=True):
        a, b = beyond(start), beyond(stop)
        if a <= 0:
            kept.append(start)
        if (a < 0 < b) or (b < 0 < a):
            share = a / (a - b)
            kept.append((start[0] + share * (stop[0] - start[0]), start[1] + share * (stop[1] - start[1])))
    return kept


def _properties(image: SceneImage) -> dict[str, Any]:
    take, granule = image.datatake, image.granule
    sensed, made = f"{take.acquired:%Y%m%dT%H%M%S}", _generated(take)
    stamp, orbit = f"{made:%Y%m%dT%H%M%S}", f"A{take.absolute_orbit:06d}"
    product = f"{take.platform}_MSIL2A_{sensed}_N{take.baseline.replace('.', '')}_R{take.relative_orbit:03d}"
    oper = f"{take.platform}_OPER_MSI_L2A"
    return {
        "datetime": f"{take.acquired:%Y-%m-%dT%H:%M:%S}.{take.acquired.microsecond:06d}Z",
        "platform": _PLATFORMS[take.platform],
        "constellation": "Sentinel 2",
        "instruments": ["msi"],
        "proj:epsg": granule.box.epsg,
        "sat:orbit_state": "descending",
        "sat:relative_orbit": take.relative_orbit,
        "s2:mgrs_tile": granule.name,
        "s2:granule_id": f"{oper}_TL_SIMU_{stamp}_{orbit}_T{granule.name}_N{take.baseline}",
        "s2:datatake_id": f"G{take.platform}_{sensed}_{take.absolute_orbit:06d}_N{take.baseline}",
        "s2:datastrip_id": f"{oper}_DS_SIMU_{stamp}_S{sensed}_N{take.baseline}",
        "s2:product_uri": f"{product}_T{granule.name}_{stamp}.SAFE",
        "s2:product_type": "S2MSI2A",
        "s2:datatake_type": "INS-NOBS",
        "s2:generation_time": f"{made:%Y-%m-%dT%H:%M:%S}.{made.microsecond // 1000:03d}Z",
        "s2:processing_baseline": take.baseline,
        "s2:mean_solar_zenith": 37.0,
        "s2:mean_solar_azimuth": 157.5,
        "s2:reflectance_conversion_factor": 0.98,
        "s2:degraded_msi_data_percentage": 0.0,
        **_shares(image.scl),
        "earthpress:simulated": True,
    }


def _shares(scl: NDArray[np.uint8]) -> dict[str, float]:
    """Percentages from the SCL: classes over valid pixels, nodata over all, as ESA's quality indicators."""
    counts = np.bincount(scl.ravel(), minlength=12)
    valid = max(int(counts.sum() - counts[SCL_NODATA]), 1)
    cloudy = sum(int(counts[code]) for code in (SCL_CLOUD_MEDIUM, SCL_CLOUD_HIGH, SCL_CIRRUS))
    return {
        "eo:cloud_cover": round(100.0 * cloudy / valid, 6),
        "s2:nodata_pixel_percentage": round(100.0 * int(counts[SCL_NODATA]) / scl.size, 6),
        **{name: round(100.0 * int(counts[code]) / valid, 6) for code, name in _SHARES.items()},
    }


def _asset(key: str, href: str, granule_box: Box) -> dict[str, Any]:
    res_m = RES_M.get(key, 20)
    box = granule_box.cover(res_m)
    asset: dict[str, Any] = {
        "href": href,
        "type": COG_TYPE,
        "title": "Scene classfication map (SCL)",  # spelled as in the real items
        "gsd": res_m,
        "proj:bbox": list(box.bounds_m),
        "proj:shape": list(box.shape),
        "proj:transform": [float(v) for v in box.transform[:6]],
        "roles": ["data"],
    }
    if key in _EO_BANDS:
        title, common, centre, width = _EO_BANDS[key]
        name = f"Band {key[1:].lstrip('0')} - {title}"
        band: dict[str, Any] = {"name": key, "description": name, "center_wavelength": centre}
        asset["title"] = f"{name} - {res_m}m"
        asset["eo:bands"] = [band | {"full_width_half_max": width} | ({"common_name": common} if common else {})]
    return asset


def _generated(datatake: Datatake) -> datetime:
    """Processing ends some six hours after sensing."""
    return datatake.acquired + timedelta(hours=6, minutes=datatake.relative_orbit % 60, milliseconds=137)
