"""One STAC item becomes one ``Scene``: the dialects of the archives end here.

What differs between sensors lies in ``sentinel2_items``, ``sentinel1_items`` and ``landsat_items``; places of files in
``hrefs``, footprints in ``footprints``. An item is somebody else's text: whatever it holds, it becomes a scene or is
refused with the reason. Nothing is fetched, and nothing but product metadata beside a local catalogue is opened.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import shapely

from pipeline.errors import InvalidInputError
from pipeline.plan import landsat_items, sentinel1_items, sentinel2_items
from pipeline.plan.footprints import footprint_of, wrap
from pipeline.plan.hrefs import href_of, is_local, local_path, unsigned
from pipeline.plan.item_values import (
    UnusableItemError,
    WrongProductError,
    acquired_of,
    cloud_of,
    collection_of,
    links_to,
    safe_id,
)
from pipeline.plan.sentinel2_files import BAND_RES_M
from pipeline.types import Asset, Scene

if TYPE_CHECKING:
    from pipeline.plan.item_values import Product

__all__ = [
    "BAND_RES_M",
    "PLANETARY_COMPUTER",
    "SENSORS",
    "UnusableItemError",
    "WrongProductError",
    "acquired_of",
    "footprint_of",
    "is_local",
    "local_path",
    "scene_from_item",
    "unsigned",
    "wrap",
]

SENSORS = ("sentinel2_l2a", "sentinel1", "landsat")
PLANETARY_COMPUTER = "planetarycomputer.microsoft.com"


def scene_from_item(
    item: dict[str, Any], *, base: str | None, sign: bool, sensor: str = "sentinel2_l2a", offset: str = "auto"
) -> Scene:
    """Reduce an item to a Scene.

    Args:
        item: STAC item as parsed JSON; datetimes may be ``datetime`` objects (stac-geoparquet).
        base: Where the item comes from: URL, or path of the local file that holds it, or None for an unknown remote
            place. Relative hrefs are resolved against it; only a local base may name local files.
        sign: Whether the hrefs need planetary-computer signing at open; also set when the item links to that service.
        sensor: Whose scene it shall be: one of ``SENSORS``.
        offset: Sentinel-2: ``auto``, or the user's word that the +1000 of baseline 04.00 is ``present`` in the DN or
            was ``removed``; see ``sentinel2_items``.

    Returns:
        The scene; hrefs unsigned, assets sorted by band, footprint inside -180..180, id safe as a file name. Bands are
        ``B01`` .. ``B12`` and ``SCL``, or ``vh`` and ``vv``, or ``B1`` .. ``B11``.

    Raises:
        UnusableItemError: This item cannot be used (files missing, another mission, mode or satellite); others can.
        WrongProductError: The collection is not what the model was trained on (Level-1C, GRD, Landsat Level-2, dB).
        DataError: No safe id, no time, no place, an unknown radiometric offset, or an href that this catalogue may not
            name.
        InvalidInputError: Unknown ``sensor`` or ``offset``.
    """
    name = safe_id(item)
    product = _product(item, sensor=sensor, base=base, offset=offset)
    assets = tuple(
        Asset(band=band, href=href_of(asset, item=item, base=base, band=band, prefer=product.prefer), band_index=index)
        for band, asset, index in product.files
    )
    return Scene(
        id=name,
        collection=collection_of(item),
        sensor=sensor,
        acquired=acquired_of(item),
        cloud_pct=cloud_of(item),
        footprint=shapely.to_wkb(footprint_of(item), hex=True, byte_order=1, output_dimension=2),
        assets=assets,
        boa_offset=product.boa_offset,
        version=product.version,
        sign=sign or links_to(item, PLANETARY_COMPUTER),
        acquisition=product.acquisition,
        check_offset=product.check_offset,
        orbit=product.orbit,
        quantity=product.quantity,
    )


def _product(item: dict[str, Any], *, sensor: str, base: str | None, offset: str) -> Product:
    if sensor == "sentinel2_l2a":
        return sentinel2_items.product_of(item, base=base, offset=offset)
    if sensor == "sentinel1":
        return sentinel1_items.product_of(item)
    if sensor == "landsat":
        return landsat_items.product_of(item)
    raise InvalidInputError(f"sensor {sensor!r} must be one of {', '.join(SENSORS)}")
