"""Sentinel-1 items: terrain-corrected backscatter, linear power, IW, VV and VH.

**What is read.** The model knows gamma0 with radiometric terrain correction (RTC). Read are the Planetary Computer's
``sentinel-1-rtc``, OPERA RTC-S1, Indigo's RTC on AWS (keys ``gamma0_vv``), normalised radar backscatter of CEOS
(``sar:product_type`` NRB, keys ``vv-g-lin``), and items that people make of their own files.

**What the pixels are** must be said by the item, because a file does not tell gamma0 from sigma0 or power from
amplitude. An item of your own says it in one property::

    "earthpress:backscatter": "gamma0"        (or "sigma0"; always linear power, geocoded)

It wins over what the product usually is; the scene's ``quantity`` keeps it. Where an item has both, gamma0 is read.
Values are linear power as float32 or float64 without scale and offset. An item whose pixels are in dB
(``raster:bands[].unit``, ``unit``, a key ``vv-g-log``), integers or scaled is refused, because the one place that
makes dB of power would make dB of dB.

**What is refused** as a product: GRD and SLC (not terrain-corrected, not geocoded; ``sar:product_type`` does not tell,
the Planetary Computer writes GRD on its RTC items too), and items that do not say what they are. Single items that
lack IW, VV or VH are left out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from pipeline.errors import DataError
from pipeline.plan.item_values import (
    Product,
    UnusableItemError,
    WrongProductError,
    acquired_of,
    assets_of,
    bands_of,
    collection_of,
    first_time,
    listing,
    name_of,
    number,
    properties_of,
    quoted,
    raster_of,
    require_family,
    roles_of,
    sequence,
    stamp_of,
    text,
    time_of,
)

BANDS = ("vh", "vv")
BACKSCATTER = "earthpress:backscatter"
"""Property of an item that says what its pixels are: ``gamma0`` or ``sigma0``, linear power."""
QUANTITIES = ("gamma0", "sigma0")
RTC_COLLECTIONS = frozenset(["sentinel-1-rtc"])
RTC_PRODUCTS = frozenset(["RTC", "RTC-S1", "NRB"])
"""``sar:product_type`` of gamma0 with radiometric terrain correction (Indigo, Digital Earth Africa; OPERA; CEOS)."""
_POLARISATIONS = frozenset(["vv", "vh", "hh", "hv"])
_KEY = re.compile(
    r"(?:(?P<quantity>gamma0|sigma0)[_-])?(?P<pol>vv|vh|hh|hv)(?:-(?P<short>[gs])-(?P<scale>lin|log))?", re.IGNORECASE
)
_FILE = re.compile(r"[_-](vv|vh|hh|hv)(?:\.rtc)?\.tiff?(?:$|\?)", re.IGNORECASE)
_SCENE = re.compile(
    r"(?P<platform>S1[A-D])_(?P<mode>[A-Z0-9]{2})_[A-Z]{3}[A-Z_]_[0-9A-Z]{4}_(?P<start>\d{8}T\d{6})_\d{8}T\d{6}_\d{6}_"
    r"(?P<take>[0-9A-F]{6})"
)
"""Names of ESA's products (Sentinel-1 Product Specification, section 3.4), which derived products keep."""
_BURST = re.compile(
    r"OPERA_L2_RTC-S1_(?P<burst>T\d{3}-\d{6}-(?P<mode>[A-Z]{2})\d)_(?P<start>\d{8}T\d{6})Z_\d{8}T\d{6}Z_(?P<platform>S1[A-D])"
)
"""Names of OPERA RTC-S1 (JPL D-108758, section 3.3)."""
_RTC_FILE = re.compile(r"\.rtc\.tiff?(?:$|\?)", re.IGNORECASE)
_TILE = ("sentinel:mgrs", "s1:mgrs", "grid:code")


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    pol: str
    asset: dict[str, Any]
    index: int
    quantity: str
    log: bool


def product_of(item: dict[str, Any]) -> Product:
    """What an item says of a Sentinel-1 scene; bands ``vh`` and ``vv``.

    Raises:
        UnusableItemError: Another mission, another mode than IW, VV or VH missing.
        WrongProductError: GRD, SLC, dB, scaled or integer pixels, or it does not say what its pixels are.
        DataError: It says two different things.
    """
    require_family(item, "sentinel-1")
    found = _files(item)
    # What the product is comes before what this item lacks: it holds for the whole collection.
    quantity = _quantity(item, found) if found else ""
    if found:
        _require_mode(item)
    found = [f for f in found if f.quantity in {quantity, ""}]
    chosen = {pol: next((f for f in found if f.pol == pol), None) for pol in BANDS}
    missing = [pol.upper() for pol in reversed(BANDS) if chosen[pol] is None]
    if missing:
        raise UnusableItemError(
            f"{name_of(item)} has no {' and '.join(missing)}: the model needs VV and VH; it has {_held(item, found)}"
        )
    files = tuple((pol, file.asset, file.index) for pol, file in sorted(chosen.items()) if file is not None)
    for pol, file in chosen.items():
        if file is not None:
            _require_power(item, pol, file)
    return Product(
        files=files,
        version=_version(item),
        acquisition=_acquisition(item, quantity),
        orbit=_orbit(item),
        quantity=quantity,
    )


def _files(item: dict[str, Any]) -> list[_File]:
    """Every polarisation of every raster asset; linear before dB, files of one band before stacks, then by key."""
    ranked = []
    for key, asset in assets_of(item).items():
        if roles_of(asset) & {"metadata", "thumbnail", "overview"} or "xml" in text(asset.get("type")):
            continue
        match = _KEY.fullmatch(key)
        parts = {name: (part or "").lower() for name, part in match.groupdict().items()} if match else {}
        quantity = parts.get("quantity") or {"g": "gamma0", "s": "sigma0"}.get(parts.get("short", ""), "")
        log = parts.get("scale") == "log"
        pols = _pols(asset, parts.get("pol"))
        ranked += [
            ((log, len(pols), key, index), _File(pol=pol, asset=asset, index=index, quantity=quantity, log=log))
            for index, pol in enumerate(pols, start=1)
            if pol in _POLARISATIONS
        ]
    return [file for _, file in sorted(ranked, key=lambda pair: pair[0])]


def _pols(asset: dict[str, Any], of_key: str | None) -> list[str]:
    """Polarisation of each band of a file: by key, else by its bands, its ``sar:polarizations``, or its name."""
    if of_key:
        return [of_key]
    named = [text(band.get("name")).lower() for band in bands_of(asset)]
    if set(named) & _POLARISATIONS:
        return named
    told = [text(p).lower() for p in sequence(asset.get("sar:polarizations"))]
    if len(told) == 1:
        return told
    match = _FILE.search(text(asset.get("href")))
    return [match[1].lower()] if match else []


def _held(item: dict[str, Any], files: list[_File]) -> str:
    told = {text(p).upper() for p in sequence(properties_of(item).get("sar:polarizations"))}
    return listing({f.pol.upper() for f in files} | told)


def _quantity(item: dict[str, Any], files: list[_File]) -> str:
    """``gamma0`` or ``sigma0``."""
    declared = properties_of(item).get(BACKSCATTER)
    if declared is not None and declared not in QUANTITIES:
        raise DataError(f"{name_of(item)}: {BACKSCATTER} is {quoted(declared, 40)}, must be {' or '.join(QUANTITIES)}")
    keys = {f.quantity for f in files if f.pol in BANDS and f.quantity}
    if declared is not None and keys and declared not in keys:
        raise DataError(
            f"{name_of(item)}: {BACKSCATTER} is {declared}, but its assets are {listing(keys)}; correct one"
        )
    if declared is not None:
        return str(declared)
    whole = [q for q in sorted(keys) if all(any((f.pol, f.quantity) == (pol, q) for f in files) for pol in BANDS)]
    if len(keys) > 1 and not whole:
        raise DataError(f"{name_of(item)} has {listing(keys)}, but none of them in both VV and VH")
    if keys:
        return whole[0] if whole else keys.pop()
    return _usual_quantity(item)


def _usual_quantity(item: dict[str, Any]) -> str:
    """What products are whose items do not say it."""
    if _is_rtc(item):
        return "gamma0"
    kind = text(properties_of(item).get("sar:product_type")).upper() or "unknown"
    if kind in {"GRD", "SLC"} or re.search(r"_(GRD[A-Z]|SLC_)_", text(item.get("id"))):
        raise WrongProductError(
            f"{name_of(item)} is Sentinel-1 {listing([kind])}: neither terrain-corrected nor geocoded, while the "
            "model was trained on terrain-corrected gamma0; search sentinel-1-rtc of planetary-computer, or process it "
            f"and set {BACKSCATTER} in the item"
        )
    raise WrongProductError(
        f"{name_of(item)} (sar:product_type {quoted(kind, 40)}) does not say what its pixels are: set {BACKSCATTER} to "
        "'gamma0' or 'sigma0' in the item, if they are geocoded linear power"
    )


def _is_rtc(item: dict[str, Any]) -> bool:
    properties = properties_of(item)
    names = [text(item.get("id")), *(text(asset.get("href")) for asset in assets_of(item).values())]
    return (
        collection_of(item) in RTC_COLLECTIONS
        or text(properties.get("sar:product_type")).upper() in RTC_PRODUCTS
        or text(properties.get("ceosard:specification")).upper() == "NRB"
        or any(_BURST.search(name) or _RTC_FILE.search(name) for name in names)
    )


def _require_mode(item: dict[str, Any]) -> None:
    scene = _scene(item)
    mode = text(properties_of(item).get("sar:instrument_mode")).upper() or (scene["mode"] if scene else "")
    if mode != "IW":
        raise UnusableItemError(
            f"{name_of(item)} has the mode {quoted(mode, 20)}, the model needs IW"
            + ("" if mode else "; set sar:instrument_mode in the item")
        )


def _require_power(item: dict[str, Any], pol: str, file: _File) -> None:
    """Refuse what is not linear power as it stands in the file."""
    name, asset = f"{name_of(item)}, asset {pol}", file.asset
    units = {text(unit).strip().lower() for unit in raster_of(asset, "unit")}
    if file.log or units & {"db", "decibel", "decibels"}:
        raise WrongProductError(
            f"{name}: pixels are in dB, must be linear power, because reading turns power into dB once: write "
            "10 ** (dB / 10) to float32 files and drop the unit"
        )
    scales, offsets = ({number(v) for v in raster_of(asset, key)} for key in ("scale", "offset"))
    if scales - {1.0, None} or offsets - {0.0, None}:
        raise WrongProductError(f"{name}: pixels are scaled (raster scale or offset), must be linear power as stored")
    types = {text(kind).lower() for kind in raster_of(asset, "data_type")}
    if types - {"float32", "float64", ""}:
        raise WrongProductError(
            f"{name}: pixels are {listing(types)}, must be float32 or float64 linear power (integers are amplitudes or "
            "scaled dB)"
        )


def _orbit(item: dict[str, Any]) -> str:
    told = text(properties_of(item).get("sat:orbit_state")).strip().lower()
    return told if told in {"ascending", "descending"} else ""


def _scene(item: dict[str, Any]) -> re.Match[str] | None:
    """The name of the product that the item was made of, with platform, mode and start."""
    properties = properties_of(item)
    names = [text(item.get("id")), text(properties.get("s1:product_identifier"))]
    names += [text(name) for name in sequence(properties.get("sentinel:product_ids"))]
    names += [text(asset.get("href")) for asset in assets_of(item).values()]
    return next((m for name in names for m in [_SCENE.search(name) or _BURST.search(name)] if m), None)


def _version(item: dict[str, Any]) -> str:
    """``sentinel-1-rtc@2025-03-11T08:00:00.000000Z``: who processed it, as far as the collection tells, and when."""
    made = first_time(properties_of(item), ("s1:processing_datetime", "processing:datetime", "updated"))
    return f"{collection_of(item)}@{stamp_of(made)}"


def _acquisition(item: dict[str, Any], quantity: str) -> str:
    """``S1A_20250311T044231_073302_gamma0``: platform, start, datatake or burst, tile if cut into tiles, quantity.

    The quantity is part of it, so that sigma0 never replaces gamma0 of the same overpass as its newer version.
    """
    scene, properties = _scene(item), properties_of(item)
    tile = next((t for k in _TILE if (t := text(properties.get(k)))), "").upper().removeprefix("MGRS-")
    end = [quantity] if not re.fullmatch(r"[A-Z0-9_-]{1,20}", tile) else [tile, quantity]
    if scene:
        last = scene.groupdict().get("take") or scene.groupdict().get("burst") or ""
        return "_".join([scene["platform"], scene["start"], last, *end])
    match = re.fullmatch(r"sentinel[-_]?1([a-d])", text(properties.get("platform")).lower())
    start = time_of(properties.get("start_datetime")) or acquired_of(item)
    return "_".join([f"S1{match[1].upper()}", f"{start:%Y%m%dT%H%M%S}", *end]) if match else ""
