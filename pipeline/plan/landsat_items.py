"""Landsat 8 and 9 Collection 2 Level-1 items.

The model was trained on Level-1 DN of eleven bands, B1 to B11. Read are items of the USGS (``landsat-c2l1`` of
https://landsatlook.usgs.gov/stac-server: keys ``coastal`` .. ``lwir12``) and items of one's own with those keys, with
band names ``B1`` .. ``B11``, or with the USGS' file names (``.._B8.TIF``).

The files lie in the bucket ``usgs-landsat``, which is requester-pays: the reader pays with its own AWS credentials.
The https hrefs of the USGS (landsatlook.usgs.gov/data) answer only to a browser that is logged in, so the ``s3``
alternate is taken before them, and made from them where an item has none: both name the same key.

Refused as a product: Level-2, which is surface reflectance and surface temperature in other units and lacks B8, B9
and B11; and Collection 1, calibrated differently. Single items of other satellites (their bands differ) and those
without terrain correction (L1GS) are left out. Quality bands are not needed.
"""

from __future__ import annotations

import re
from typing import Any

from pipeline.plan.item_values import (
    Product,
    UnusableItemError,
    WrongProductError,
    assets_of,
    bands_of,
    first_time,
    listing,
    name_of,
    properties_of,
    quoted,
    require_family,
    roles_of,
    stamp_of,
    text,
    time_of,
)

BANDS = ("B8", "B1", "B2", "B3", "B4", "B5", "B6", "B7", "B9", "B10", "B11")
"""In the order of the model."""
COMMON_NAMES = {
    "coastal": "B1", "blue": "B2", "green": "B3", "red": "B4", "nir08": "B5", "swir16": "B6", "swir22": "B7",
    "pan": "B8", "cirrus": "B9", "lwir11": "B10", "lwir12": "B11",
}  # fmt: skip
"""Asset keys of the USGS' ``landsat-c2l1``."""
LEVELS = ("L1TP", "L1GT")
SATELLITES = ("LC08", "LC09")
"""OLI and TIRS together; LO08 lacks the thermal bands, LT08 all others."""
_NAME = re.compile(
    r"(?P<satellite>L[COTEM]\d{2})_(?P<level>L[12][A-Z]{2})_(?P<pathrow>\d{6})_(?P<date>\d{8})(?:_(?P<made>\d{8}))?_"
    r"(?P<collection>\d{2})_(?P<category>RT|T1|T2)"
)
"""Product identifier (USGS LSDS-1747, Landsat Collection 2 Level-1 data format control book, section 3.1); the
Planetary Computer leaves out the date of processing."""
_BAND = re.compile(r"(?:OLI_|TIRS_)?B0?(\d{1,2})(?:\.TIFF?)?", re.IGNORECASE)
_FILE = re.compile(r"_B(\d{1,2})\.TIFF?(?:$|\?)", re.IGNORECASE)
_USGS_HTTPS = "https://landsatlook.usgs.gov/data/"
_USGS_S3 = "s3://usgs-landsat/"


def product_of(item: dict[str, Any]) -> Product:
    """What an item says of a Landsat scene.

    Raises:
        UnusableItemError: Another mission, another satellite than Landsat 8 and 9, no terrain correction, a band is
            missing, or it does not say what it is.
        WrongProductError: Level-2, or Collection 1.
    """
    require_family(item, "landsat")
    name = _name(item)
    _require_level1(item, name)
    files = _files(item)
    return Product(
        files=files,
        version=_version(item, name),
        acquisition=f"{name['satellite']}_{name['pathrow']}_{name['date']}",
        prefer="s3",
    )


def _name(item: dict[str, Any]) -> re.Match[str]:
    properties = properties_of(item)
    names = [text(properties.get("landsat:product_id")), text(item.get("id"))]
    names += [text(asset.get("href")) for asset in assets_of(item).values()]
    found = [m for m in map(_NAME.search, names) if m]
    if not found:
        raise UnusableItemError(
            f"{name_of(item)} does not say which Landsat product it is: give it an id like "
            "LC09_L1TP_090091_20250310_20250310_02_T1, or landsat:product_id"
        )
    # Identifiers with the date of processing say more than the Planetary Computer's ids.
    return next((m for m in found if m["made"]), found[0])


def _require_level1(item: dict[str, Any], name: re.Match[str]) -> None:
    told = text(properties_of(item).get("landsat:correction")).upper() or name["level"]
    for level in (name["level"], told):
        if level.startswith("L2"):
            raise WrongProductError(
                f"{name_of(item)} is Landsat Level-2 ({listing([level])}): surface reflectance and temperature, other "
                "units without B8, B9 and B11, while the model was trained on Level-1 DN; search landsat-c2l1 of "
                "https://landsatlook.usgs.gov/stac-server (files are requester-pays) or a local copy of Level-1"
            )
        if level not in LEVELS:
            raise UnusableItemError(
                f"{name_of(item)} is {quoted(level, 20)}, must be {' or '.join(LEVELS)}: without terrain correction "
                "pixels do not lie where they say"
            )
    if name["collection"] != "02":
        raise WrongProductError(
            f"{name_of(item)} is of Landsat Collection {name['collection']}, calibrated differently from Collection 02"
        )
    if name["satellite"] not in SATELLITES:
        raise UnusableItemError(
            f"{name_of(item)} is of {name['satellite']}, whose bands differ from {' and '.join(SATELLITES)}"
        )


def _files(item: dict[str, Any]) -> tuple[tuple[str, dict[str, Any], int], ...]:
    found: dict[str, dict[str, Any]] = {}
    assets = assets_of(item)
    for key, asset in assets.items():
        band = None if roles_of(asset) & {"thumbnail", "overview", "metadata"} else _band_of(key, asset)
        if band is not None:
            found.setdefault(band, _with_s3(asset))
    missing = [band for band in BANDS if band not in found]
    if missing:
        raise UnusableItemError(
            f"{name_of(item)} has no asset for {', '.join(missing)}: the model needs all of B1 to B11; its assets are "
            f"{listing(assets)}"
        )
    return tuple((band, found[band], 1) for band in sorted(found))


def _band_of(key: str, asset: dict[str, Any]) -> str | None:
    """The band of an asset: by the USGS' file name, which cannot be translated wrongly, else by key, else by name."""
    match = _FILE.search(text(asset.get("href")))
    if match:
        return _known(match[1])
    for told in (key, *(text(b.get("name")) for b in bands_of(asset)[:1])):
        if told.lower() in COMMON_NAMES:
            return COMMON_NAMES[told.lower()]
        match = _BAND.fullmatch(told)
        if match:
            return _known(match[1])
    return None


def _known(digits: str) -> str | None:
    band = f"B{int(digits)}"
    return band if band in BANDS else None


def _with_s3(asset: dict[str, Any]) -> dict[str, Any]:
    """The asset, with the requester-pays href of the same file where the USGS' item gives only https."""
    href = text(asset.get("href"))
    if not href.startswith(_USGS_HTTPS) or asset.get("alternate"):
        return asset
    return {**asset, "alternate": {"s3": {"href": _USGS_S3 + href.removeprefix(_USGS_HTTPS).split("?", 1)[0]}}}


def _version(item: dict[str, Any], name: re.Match[str]) -> str:
    """``02.1@2025-03-10T00:00:00.000000Z``: collection, 0 for real-time and 1 for final, date of processing."""
    made = time_of(name["made"]) or first_time(properties_of(item), ("processing:datetime", "updated"))
    return f"{name['collection']}.{0 if name['category'] == 'RT' else 1}@{stamp_of(made)}"
