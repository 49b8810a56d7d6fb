"""Which file of a Sentinel-2 item is which band."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pipeline.plan.item_values import (
    UnusableItemError,
    assets_of,
    bands_of,
    listing,
    mapping,
    name_of,
    number,
    roles_of,
    sequence,
    text,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

BAND_RES_M = {
    "B01": 60, "B02": 10, "B03": 10, "B04": 10, "B05": 20, "B06": 20, "B07": 20, "B08": 10, "B8A": 20, "B09": 60,
    "B11": 20, "B12": 20, "SCL": 20,
}  # fmt: skip
"""Native resolution of the files that are read (Sentinel-2 Products Specification, table 3-1; B10 is not in L2A)."""
COMMON_NAMES = {
    "coastal": "B01", "blue": "B02", "green": "B03", "red": "B04", "rededge1": "B05", "rededge2": "B06",
    "rededge3": "B07", "nir": "B08", "nir08": "B8A", "nir09": "B09", "swir16": "B11", "swir22": "B12", "scl": "SCL",
}  # fmt: skip
"""Asset keys of earth-search v1 and stactools-sentinel2 (common names of the eo extension, numbered where needed)."""
PICTURE_ROLES = frozenset(["visual", "overview", "thumbnail", "metadata"])
_PICTURE_KEYS = frozenset(["visual", "tci", "preview", "thumbnail", "overview"])
_KEY = re.compile(r"^(?P<name>[A-Za-z]+\d{0,2}A?)(?:[_-](?P<res>10|20|60)m)?(?P<jp2>-jp2)?$", re.IGNORECASE)


def files_of(item: dict[str, Any], *, jp2: bool = True) -> tuple[tuple[str, dict[str, Any], int], ...]:
    """The best (band, asset, 1-based band of the file) per band, sorted by band.

    Files of one band go before stacks, native resolution before others, TIFF before JPEG 2000.

    Args:
        item: The item.
        jp2: Whether JPEG 2000 counts.

    Raises:
        UnusableItemError: No SCL, or no spectral band.
    """
    best: dict[str, tuple[tuple[Any, ...], dict[str, Any], int]] = {}
    assets = assets_of(item)
    for key, asset in assets.items():
        if _is_jp2(key, asset) and not jp2:
            continue
        for band, index, count in _bands_of(key, asset):
            rank = (count > 1, _misfit(key, asset, BAND_RES_M[band]), _is_jp2(key, asset), key)
            if band not in best or rank < best[band][0]:
                best[band] = (rank, asset, index)
    missing = "SCL" if "SCL" not in best else "" if len(best) > 1 else "any spectral band"
    if missing:
        raise UnusableItemError(f"{name_of(item)} has no asset for {missing}; its assets are {listing(assets)}")
    return tuple((band, asset, index) for band, (_, asset, index) in sorted(best.items()))


def _bands_of(key: str, asset: dict[str, Any]) -> Iterator[tuple[str, int, int]]:
    """(band, 1-based index in the file, bands in the file) of an asset; nothing for pictures and metadata."""
    if PICTURE_ROLES & roles_of(asset) or key.lower().split("_")[0] in _PICTURE_KEYS:
        return
    names = [_band_name(text(b.get("name"))) for b in bands_of(asset)]
    if len(names) <= 1:
        match = _KEY.match(key)
        band = (names[0] if names else None) or (_band_name(match["name"]) if match else None)
        if band:
            yield band, 1, 1
        return
    for index, band in enumerate(names, start=1):
        if band:
            yield band, index, len(names)


def _band_name(told: str) -> str | None:
    if told.lower() in COMMON_NAMES:
        return COMMON_NAMES[told.lower()]
    upper = told.upper()
    padded = f"B0{upper[1:]}" if re.fullmatch(r"B\d", upper) else upper
    return padded if padded in BAND_RES_M else None


def _misfit(key: str, asset: dict[str, Any], native_m: int) -> tuple[bool, float]:
    """Distance of an asset's resolution from the native one; unknown counts as native but ranks after it."""
    match = _KEY.match(key)
    # The key first: CDSE writes gsd 20 and a 20 m transform on some 60 m files.
    if match and match["res"]:
        return False, abs(float(match["res"]) - native_m)
    transform, rasters = sequence(asset.get("proj:transform")), sequence(asset.get("raster:bands"))
    told = [*transform[:1], *(mapping(r).get("spatial_resolution") for r in rasters[:1]), asset.get("gsd")]
    known = next((n for n in map(number, told) if n), None)
    return known is None, abs((known or native_m) - native_m)


def _is_jp2(key: str, asset: dict[str, Any]) -> bool:
    return key.endswith("-jp2") or "jp2" in text(asset.get("type"))
