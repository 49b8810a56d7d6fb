"""Sentinel-2 L2A items in the dialects of the archives.

Read are items of STAC 1.0 and 1.1 as the Planetary Computer (keys ``B02``), earth-search (``blue``, band names in
``eo:bands``), CDSE (``B02_10m``) and stactools (``blue``, ``blue_20m``) write them. Which file is which band comes from
``sentinel2_files``; here is what the pixels mean and which version of which acquisition they are.

**The offset of baseline 04.00.** DN of processing baseline 04.00 and later hold +1000 (ESA, Sentinel-2 Products
Specification, BOA_ADD_OFFSET). Who knows it best, in this order:

1. A baseline below 04.00, by number, never by date (old scenes are processed again): there never was an offset to
   keep or to remove, so neither a flag nor the user's ``offset`` matters.
2. The user's ``offset``: ``present`` or ``removed`` for all scenes of 04.00 and later of a run.
3. earth-search's collections that rewrote the pixels, ``sentinel-2-l2a`` and ``sentinel-s2-l2a-cogs`` (bucket
   ``sentinel-cogs``): ``*:boa_offset_applied`` says that the offset was subtracted from the files. The flag is wrong in
   both directions (Element84/earth-search issues 9, 24, 66, 71), and recorded items contradict themselves (flag true,
   raster offset -0.1). So the flag is only what is assumed, and ``check_offset`` asks the reader to look at pixels.
4. The baseline of the item or of its product name. earth-search's ``sentinel-2-c1-l2a`` belongs here: every recorded
   item of it has the baseline (05.11), a raster offset of -0.1 that agrees with it, ESA's own product metadata beside
   the files, and no flag, because this collection converts Collection-1 products without touching DN.
5. ``BOA_ADD_OFFSET`` of the product metadata, when that XML is a local file; planning fetches no remote XML. This also
   settles baseline 99.99, which Sen2Cor writes into products that people process themselves and which says nothing.
6. Raster offsets of the bands: all -0.1 or all 0.

An item that answers none of these is refused. One whose baseline and raster offsets contradict each other goes with
the baseline and gets ``check_offset``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pipeline.errors import DataError, InvalidInputError
from pipeline.plan.hrefs import href_of, is_local
from pipeline.plan.item_values import (
    Product,
    WrongProductError,
    assets_of,
    collection_of,
    first_time,
    hostname_of,
    name_of,
    number,
    properties_of,
    quoted,
    raster_of,
    require_family,
    stamp_of,
    text,
)
from pipeline.plan.sentinel2_files import files_of
from pipeline.types import DN_OFFSET

OFFSET_BASELINE = 4.0
"""Processing baseline from which L2A DN hold +1000 (ESA, Sentinel-2 Products Specification, BOA_ADD_OFFSET)."""
OWN_BASELINE = 99.0
"""Baselines from here on (Sen2Cor: 99.99) do not tell which processor made a product."""
OFFSETS = ("auto", "present", "removed")
MAX_XML_BYTES = 16_000_000
"""Product metadata have about 60 kB; nothing larger is read."""
REWRITTEN = frozenset(["sentinel-s2-l2a-cogs"])
"""Collections whose files lie in the bucket of rewritten pixels but whose items may lack the flag."""
REWRITTEN_HOSTS = ("sentinel-cogs", "sentinel-cogs.s3.us-west-2.amazonaws.com", "sentinel-cogs.s3.amazonaws.com")
_FLAGS = ("earthsearch:boa_offset_applied", "sentinel:boa_offset_applied")
_PRODUCT = re.compile(r"_N(\d{2})(\d{2})_R\d{3}_T")
_L1C = re.compile(r"MSIL1C|S2MSI1C|(?:^|[_-])L1C(?:$|[_-])", re.IGNORECASE)
_METADATA_KEYS = frozenset(["product-metadata", "product_metadata", "metadata"])
_METADATA_FILE = "MTD_MSIL2A.XML"
_ADD_OFFSET = re.compile(r"<BOA_ADD_OFFSET\b[^>]*>\s*(-?\d{1,6})\s*</BOA_ADD_OFFSET>")
_QUANTIFICATION = re.compile(r"<BOA_QUANTIFICATION_VALUE\b")


def product_of(item: dict[str, Any], *, base: str | None, offset: str = "auto") -> Product:
    """What an item says of a Sentinel-2 L2A granule.

    Args:
        item: The item.
        base: Where it comes from, see ``scene_from_item``.
        offset: ``auto``, ``present`` or ``removed``: the user's word on the offset of baseline 04.00 and later.

    Raises:
        UnusableItemError: Another mission; no SCL or no spectral band.
        WrongProductError: Level-1C.
        DataError: The offset is unknown.
        InvalidInputError: Not an ``offset``.
    """
    if offset not in OFFSETS:
        raise InvalidInputError(f"offset {offset!r} must be one of {', '.join(OFFSETS)}")
    require_family(item, "sentinel-2")
    _refuse_level1(item)
    # earth-search keeps ESA's JPEG 2000 beside the rewritten TIFFs: other DN, no offset could be right for both.
    files = files_of(item, jp2=not _rewritten(item))
    baseline = _baseline(item)
    boa_offset, check = _offset(item, base=base, choice=offset, baseline=baseline, files=files)
    return Product(
        files=files,
        boa_offset=boa_offset,
        check_offset=check,
        version=_version(item, baseline),
        acquisition=_acquisition(item),
    )


def _refuse_level1(item: dict[str, Any]) -> None:
    properties = properties_of(item)
    told = [text(properties.get(k)) for k in ("s2:product_type", "product:type", "processing:level", "s2:product_uri")]
    found = next((t for t in (*told, text(item.get("collection")), text(item.get("id"))) if _L1C.search(t)), None)
    if found:
        raise WrongProductError(
            f"{name_of(item)} is Sentinel-2 Level-1C ({quoted(found)}): top-of-atmosphere reflectance without scene "
            "classification, while the model was trained on Level-2A; search a Level-2A collection"
        )


def _product_id(item: dict[str, Any]) -> str:
    """The SAFE name: the only text that all archives keep somewhere."""
    properties = properties_of(item)
    keys = ("s2:product_uri", "sentinel:product_id", "s2:product_id")
    texts = [text(properties.get(k)) for k in keys] + [text(item.get("id"))]
    texts += [text(asset.get("href")) for asset in assets_of(item).values()]
    found = next((t for t in texts if _PRODUCT.search(t)), "")
    return next((p for p in re.split(r"[/()]", found) if _PRODUCT.search(p)), "")


def _baseline(item: dict[str, Any]) -> float | None:
    properties = properties_of(item)
    for key in ("s2:processing_baseline", "processing:version"):
        told = text(properties.get(key))
        if re.fullmatch(r"\d{1,2}(\.\d{1,2})?", told):
            return float(told)
    match = _PRODUCT.search(_product_id(item))
    return float(f"{match[1]}.{match[2]}") if match else None


def _offset(
    item: dict[str, Any],
    *,
    base: str | None,
    choice: str,
    baseline: float | None,
    files: tuple[tuple[str, dict[str, Any], int], ...],
) -> tuple[int, bool]:
    """(what to add to DN to reach the encoding of baseline 04.00, whether pixels must confirm it)."""
    rasters = _raster_offsets(files)
    if baseline is not None and baseline < OFFSET_BASELINE:
        return DN_OFFSET, rasters == {-0.1} and not _rewritten(item)
    if choice != "auto":
        return (0 if choice == "present" else DN_OFFSET), False
    if _rewritten(item):
        return (DN_OFFSET if _flag(item) else 0), True
    if baseline is not None and baseline < OWN_BASELINE:
        return 0, rasters == {0.0}
    added = _xml_offset(item, base=base)
    if added is None and len(rasters) == 1:
        added = {-0.1: 0, 0.0: DN_OFFSET}.get(next(iter(rasters)))
    if added is not None:
        return added, False
    raise DataError(
        f"{name_of(item)} does not say whether its DN hold the +1000 offset: it has no s2:processing_baseline below "
        f"99, no product name with _Nxxxx_, no local product metadata with BOA_ADD_OFFSET, and raster offsets "
        f"{sorted(rasters)}; add s2:processing_baseline to the item, or set inputs.sentinel2.offset"
    )


def _flag(item: dict[str, Any]) -> bool | None:
    """earth-search's word that the offset was subtracted from the files; None when it says nothing."""
    told = [properties_of(item).get(key) for key in _FLAGS]
    return next((value for value in told if isinstance(value, bool)), None)


def _rewritten(item: dict[str, Any]) -> bool:
    """Whether earth-search may have subtracted the offset from the files."""
    if _flag(item) is not None or collection_of(item) in REWRITTEN:
        return True
    return any(hostname_of(text(a.get("href"))) in REWRITTEN_HOSTS for a in assets_of(item).values())


def _raster_offsets(files: tuple[tuple[str, dict[str, Any], int], ...]) -> set[float]:
    """Offsets of the spectral bands as the raster extension has them, in reflectance."""
    values = [number(value) for band, asset, _ in files if band != "SCL" for value in raster_of(asset, "offset")]
    return {round(value, 6) for value in values if value is not None}


def _xml_offset(item: dict[str, Any], *, base: str | None) -> int | None:
    """What product metadata beside a local catalogue say; None when there are none.

    Raises:
        DataError: An offset other than -1000, or not the same for all bands.
    """
    for key, asset in assets_of(item).items():
        named = key.lower() in _METADATA_KEYS or text(asset.get("href")).upper().endswith(_METADATA_FILE)
        found = _read_xml(asset, item=item, base=base) if named else ""
        offsets = {int(value) for value in _ADD_OFFSET.findall(found)}
        if offsets == {-DN_OFFSET}:
            return 0
        if offsets:
            raise DataError(
                f"{name_of(item)}: product metadata give BOA_ADD_OFFSET {sorted(offsets)[:5]}, must be {-DN_OFFSET} "
                "for all bands; set inputs.sentinel2.offset if you know better"
            )
        if _QUANTIFICATION.search(found):
            return DN_OFFSET
    return None


def _read_xml(asset: dict[str, Any], *, item: dict[str, Any], base: str | None) -> str:
    """Text of a file beside a local catalogue; "" when it is anything else or too large. Never parsed as XML."""
    try:
        place = href_of(asset, item=item, base=base, band="product metadata")
        if not is_local(place) or not Path(place).is_file() or Path(place).stat().st_size > MAX_XML_BYTES:
            return ""
        return Path(place).read_text(encoding="utf-8", errors="replace")
    except (DataError, OSError, ValueError):
        return ""


def _version(item: dict[str, Any], baseline: float | None) -> str:
    """``05.11@2024-08-25T21:57:47.000000Z``: sorts by baseline, then by time of generation."""
    made = first_time(properties_of(item), ("s2:generation_time", "processing:datetime", "updated"))
    return f"{'' if baseline is None else f'{baseline:05.2f}'}@{stamp_of(made)}"


def _acquisition(item: dict[str, Any]) -> str:
    """``S2B_20190629T212529_6VVN``: platform and start of the datatake, MGRS tile without leading zero.

    Equal for versions of a granule, and for its parts when it was split over two datastrips: what was processed again
    and what completes the tile is told apart by the ground that they cover (``select.newest_versions``).
    """
    properties, product = properties_of(item), _product_id(item)
    told = [text(properties.get(k)).upper().removeprefix("MGRS-") for k in ("s2:mgrs_tile", "grid:code")]
    tile = next((t for t in told if re.fullmatch(r"\d{1,2}[A-Z]{3}", t)), None)
    if tile is None and (match := re.search(r"_T(\d{2}[A-Z]{3})(?:_|$)", product)):
        tile = match[1]
    take = next((t for k in ("s2:datatake_id", "eopf:datatake_id") if (t := text(properties.get(k)))), "")
    match = re.fullmatch(r"G(S2[A-Z])_(\d{8}T\d{6})_\d+_N\d\d\.\d\d", take) or re.match(
        r"(S2[A-Z])_MSIL2A_(\d{8}T\d{6})_", product
    )
    return f"{match[1]}_{match[2]}_{tile.lstrip('0')}" if match and tile else ""
