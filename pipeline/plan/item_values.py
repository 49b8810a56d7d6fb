"""Reading values out of STAC items, which are somebody else's text: any field may be missing, null or of another type.

Everything here answers with a value or with a ``DataError``; nothing else is raised, whatever the item holds. Names of
items in messages are cut and escaped, so that an item can write neither lines nor control characters into a log.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from pipeline.errors import DataError

SAFE_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")
"""What an item id may be: ids become names of files, of rows in a store and in logs. A letter, digit, ``_`` or ``-``
first, hence neither ``..`` nor a hidden file, no separators, no blanks; every archive that is read here keeps to it."""
SAFE_COLLECTION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._:/+ -]{0,199}")
"""What a collection id may be: it is stored and shown, but names no file. No ``?`` and ``@``, hence no signed URL."""
_FAMILIES = {"sentinel-2": "Sentinel-2", "sentinel-1": "Sentinel-1", "landsat": "Landsat"}
# Not followed by another mission, as in the "sentinel-1,sentinel-2" of derived maps.
_FAMILY = re.compile(r"(?:sentinel-?(?P<sentinel>[12])|(?P<landsat>landsat))(?!.*,)")
_FAMILY_IDS = (
    (re.compile(r"S2[A-D]_"), "sentinel-2"),
    (re.compile(r"S1[A-D]_|OPERA_L2_RTC-S1_"), "sentinel-1"),
    (re.compile(r"L[COTEM]0\d_"), "landsat"),
)


class UnusableItemError(DataError):
    """This item cannot be a scene, others of its collection may be; a search goes on without it."""


class WrongProductError(DataError):
    """The items of this collection are a product that the model was not trained on; a search ends here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """What the dialect of a sensor finds in an item; the rest of a Scene is the same for all sensors.

    Attributes:
        files: (band, asset as it stands in the item, 1-based band of the file).
        version: See ``Scene``.
        acquisition: See ``Scene``.
        boa_offset: See ``Scene``.
        check_offset: See ``Scene``.
        orbit: See ``Scene``.
        quantity: See ``Scene``.
        prefer: Scheme that is taken before others where an asset has several hrefs; "" for the first one.
    """

    files: tuple[tuple[str, dict[str, Any], int], ...]
    version: str
    acquisition: str
    boa_offset: int = 0
    check_offset: bool = False
    orbit: str = ""
    quantity: str = ""
    prefer: str = ""


def mapping(value: Any) -> dict[str, Any]:
    """A JSON object; {} for anything else."""
    return value if isinstance(value, dict) else {}


def sequence(value: Any) -> list[Any]:
    """A JSON array; [] for anything else."""
    return list(value) if isinstance(value, (list, tuple)) else []


def text(value: Any) -> str:
    """A string as it is, a number as its decimal text; "" for anything else."""
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else ""


def number(value: Any) -> float | None:
    """A finite number; None for anything else, also for text and booleans."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def properties_of(item: dict[str, Any]) -> dict[str, Any]:
    """The properties of an item."""
    return mapping(item.get("properties"))


def assets_of(item: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The assets of an item that are objects, sorted by key.

    Raises:
        UnusableItemError: It has no such member, as in answers to searches that excluded fields.
    """
    assets = item.get("assets")
    if not isinstance(assets, dict):
        raise UnusableItemError(
            f"{name_of(item)} has no assets: a catalogue must keep them (a search with excluded fields does not)"
        )
    found = {str(key): asset for key, asset in assets.items() if isinstance(asset, dict)}
    return dict(sorted(found.items()))


def roles_of(asset: dict[str, Any]) -> frozenset[str]:
    """The roles of an asset."""
    return frozenset(r for r in sequence(asset.get("roles")) if isinstance(r, str))


def bands_of(asset: dict[str, Any]) -> list[dict[str, Any]]:
    """Descriptions of the bands of an asset (``bands`` of STAC 1.1, ``eo:bands`` before), those that are objects."""
    for key in ("bands", "eo:bands"):
        found = [b for b in sequence(asset.get(key)) if isinstance(b, dict)]
        if found:
            return found
    return []


def raster_of(asset: dict[str, Any], key: str) -> list[Any]:
    """All values of a field of the raster extension in an asset: 1.x ``raster:bands``, 2.x ``raster:*``, STAC 1.1."""
    holders = [asset, *(b for b in sequence(asset.get("bands")) if isinstance(b, dict))]
    found = [holder.get(name) for holder in holders for name in (f"raster:{key}", key)]
    found += [b.get(key) for b in sequence(asset.get("raster:bands")) if isinstance(b, dict)]
    return [value for value in found if value is not None]


def name_of(item: Any) -> str:
    """``item <id>`` for messages: quoted where the id is not a safe name."""
    found = item.get("id") if isinstance(item, dict) else None
    return f"item {found}" if isinstance(found, str) and SAFE_ID.fullmatch(found) else f"item {quoted(found)}"


def quoted(value: Any, limit: int = 80) -> str:
    """What an item holds, for a message: escaped, cut, and without what may be the secret part of a URL.

    >>> quoted("https://user:word@host/a.tif?sig=secret")
    "'https://host/a.tif?...'"
    """
    bare = re.sub(r"[?#].+", "?...", re.sub(r"//[^/?#]*@", "//", str(value)[:4000]), flags=re.DOTALL)
    return ascii(bare[:limit])


def listing(values: Any, limit: int = 20) -> str:
    """Up to ``limit`` names for a message, each as ``quoted`` does it but without quotation marks."""
    return ", ".join(quoted(v, 40)[1:-1] for v in sorted(values, key=str)[:limit]) or "none"


def safe_id(item: Any) -> str:
    """The id of an item.

    Raises:
        DataError: Not an item, or an id that is no ``SAFE_ID``.
    """
    if not isinstance(item, dict) or not item.get("id") or not isinstance(item.get("properties"), dict):
        raise DataError(f"catalogue entry {name_of(item)[5:]} is not a STAC item: it needs an id and properties")
    if not isinstance(item["id"], str) or not SAFE_ID.fullmatch(item["id"]):
        raise DataError(
            f"{name_of(item)}: the id is refused, because it becomes the name of files and rows: allowed are 1 to 200 "
            "of A-Z a-z 0-9 . _ - and no dot first; keep a copy of the item with another id in a file catalogue"
        )
    return item["id"]


def collection_of(item: dict[str, Any]) -> str:
    """The collection id; "" when the item has none.

    Raises:
        DataError: Not a ``SAFE_COLLECTION``.
    """
    found = item.get("collection")
    if found is None or found == "":
        return ""
    if not isinstance(found, str) or not SAFE_COLLECTION.fullmatch(found):
        raise DataError(
            f"{name_of(item)}: the collection {quoted(found)} is not a name of up to 200 of A-Z a-z 0-9 . _ : / + - "
            "and blanks"
        )
    return found


def time_of(value: Any) -> datetime | None:
    """UTC time of an ISO 8601 text or a datetime (naive: UTC); None for anything else."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value.strip())
        except ValueError:
            return None
    if not isinstance(value, datetime):
        return None
    try:
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    except (OverflowError, ValueError):
        return None


def acquired_of(item: dict[str, Any]) -> datetime:
    """UTC time of an item: ``datetime``, else ``start_datetime``.

    Raises:
        DataError: Neither is a time.
    """
    found = first_time(properties_of(item), ("datetime", "start_datetime"))
    if found is None:
        raise DataError(f"{name_of(item)} has no time: datetime and start_datetime are missing or unreadable")
    return found


def first_time(properties: dict[str, Any], keys: tuple[str, ...]) -> datetime | None:
    """The first of the properties that is a time."""
    return next((t for t in (time_of(properties.get(k)) for k in keys) if t is not None), None)


def stamp_of(made: datetime | None) -> str:
    """``2024-08-25T21:57:47.000000Z``, which sorts as time does; "" for None."""
    return made.strftime("%Y-%m-%dT%H:%M:%S.%fZ") if made else ""


def cloud_of(item: dict[str, Any]) -> float | None:
    """``eo:cloud_cover`` when it is a percentage (USGS writes -1 for unknown)."""
    value = number(properties_of(item).get("eo:cloud_cover"))
    return value if value is not None and 0 <= value <= 100 else None


def require_family(item: dict[str, Any], family: str) -> None:
    """Refuse an item of another mission; one that does not say its mission passes.

    Args:
        item: The item.
        family: ``sentinel-2``, ``sentinel-1`` or ``landsat``.

    Raises:
        UnusableItemError: Platform, constellation, id or collection name another mission.
    """
    found = _family(item)
    if found not in {None, family}:
        raise UnusableItemError(f"{name_of(item)} is a {_FAMILIES[str(found)]} item, {_FAMILIES[family]} is asked for")


def _family(item: dict[str, Any]) -> str | None:
    properties = properties_of(item)
    told = [text(properties.get(k)) for k in ("platform", "constellation", "eo:platform", "eo:constellation")]
    for word in (*told, text(item.get("collection"))):
        match = _FAMILY.match(word.lower().replace("_", "-").replace("sentinel-s", "sentinel-"))
        if match:
            return "landsat" if match["landsat"] else f"sentinel-{match['sentinel']}"
    return next((family for pattern, family in _FAMILY_IDS if pattern.match(text(item.get("id")))), None)


def links_to(item: dict[str, Any], host: str) -> bool:
    """Whether a link of the item leads to a host."""
    links = [text(mapping(link).get("href")) for link in sequence(item.get("links"))]
    return any(hostname_of(href) == host for href in links)


def hostname_of(url: str) -> str | None:
    """Host (or bucket) of a URL; None when there is none or the text is not a URL."""
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None
