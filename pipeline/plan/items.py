"""One STAC item becomes one ``Scene``: the dialects of the archives end here.

Read are Sentinel-2 L2A items of STAC 1.0 and 1.1 as the Planetary Computer (keys ``B02``), earth-search (``blue``, band
names in ``eo:bands``), CDSE (``B02_10m``) and stactools (``blue``, ``blue_20m``) write them. An item is somebody else's
text: hrefs are resolved, stripped of signatures and refused when they reach where the catalogue has no business.
Nothing is opened or fetched.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlencode, urljoin, urlsplit, urlunsplit

import numpy as np
import shapely

from pipeline.errors import DataError
from pipeline.plan.aoi import only_polygons
from pipeline.types import DN_OFFSET, Asset, Scene

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shapely.geometry.base import BaseGeometry

SENSOR = "sentinel2_l2a"
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
OFFSET_BASELINE = 4.0
"""Processing baseline from which L2A DN hold +1000 (ESA, Sentinel-2 Products Specification, BOA_ADD_OFFSET)."""
REMOTE_SCHEMES = ("http", "https", "s3", "gs", "az", "abfs", "abfss")
PLANETARY_COMPUTER = "planetarycomputer.microsoft.com"
_SAS_KEYS = frozenset([
    "sv", "ss", "srt", "st", "se", "sr", "sp", "sip", "spr", "sig", "skoid", "sktid", "skt", "ske", "sks", "skv", "sdd",
    "si", "ses", "saoid", "suoid", "scid", "rscc", "rscd", "rsce", "rscl", "rsct",
])  # fmt: skip
_SIGNED_KEYS = frozenset(["awsaccesskeyid", "googleaccessid", "signature", "expires", "key-pair-id", "policy", "token"])
_PRODUCT = re.compile(r"_N(\d{2})(\d{2})_R\d{3}_T")
_KEY = re.compile(r"^(?P<name>[A-Za-z]+\d{0,2}A?)(?:[_-](?P<res>10|20|60)m)?(?P<jp2>-jp2)?$", re.IGNORECASE)
_PICTURES = frozenset(["visual", "overview", "thumbnail", "metadata"])


class UnusableItemError(DataError):
    """The item lacks files that every scene must have; a search goes on without it."""


def scene_from_item(item: dict[str, Any], *, base: str | None, sign: bool) -> Scene:
    """Reduce a Sentinel-2 L2A item to a Scene.

    Args:
        item: STAC item as parsed JSON; datetimes may be ``datetime`` objects (stac-geoparquet).
        base: Where the item comes from: URL, or path of the local file that holds it, or None for an unknown remote
            place. Relative hrefs are resolved against it; only a local base may name local files.
        sign: Whether the hrefs need planetary-computer signing at open; also set when the item links to that service.

    Returns:
        The scene; hrefs unsigned, assets sorted by band, native resolutions preferred, footprint inside -180..180.

    Raises:
        UnusableItemError: No SCL or no spectral band.
        DataError: No id, time, place or known radiometric offset, or an href that this catalogue may not name.
    """
    name = item.get("id")
    properties = item.get("properties")
    if not isinstance(name, str) or not name or not isinstance(properties, dict):
        raise DataError(f"catalogue entry {str(name)[:80]!r} is not a STAC item: it needs an id and properties")
    chosen = _choose(item)
    assets = tuple(
        Asset(band=band, href=_href(asset.get("href"), item=item, base=base, band=band), band_index=index)
        for band, (asset, index) in sorted(chosen.items())
    )
    baseline = _baseline(item)
    return Scene(
        id=name,
        collection=str(item.get("collection") or ""),
        sensor=SENSOR,
        acquired=acquired_of(item),
        cloud_pct=_cloud(properties.get("eo:cloud_cover")),
        footprint=shapely.to_wkb(footprint_of(item), hex=True, byte_order=1, output_dimension=2),
        assets=assets,
        boa_offset=_boa_offset(item, baseline=baseline, assets=[a for b, (a, _) in chosen.items() if b != "SCL"]),
        version=_version(properties, baseline),
        sign=sign or _from_planetary_computer(item),
        acquisition=_acquisition(item),
    )


def acquired_of(item: dict[str, Any]) -> datetime:
    """UTC time of an item: ``datetime``, else ``start_datetime``.

    Raises:
        DataError: Neither is a time.
    """
    properties = item.get("properties") or {}
    for key in ("datetime", "start_datetime"):
        found = _time(properties.get(key))
        if found is not None:
            return found
    raise DataError(f"item {item.get('id')} has no time: datetime and start_datetime are missing or unreadable")


def footprint_of(item: dict[str, Any]) -> BaseGeometry:
    """Valid polygons of an item, cut at the antimeridian; the bbox where the geometry is null.

    Raises:
        DataError: Neither a polygon nor a bbox.
    """
    try:
        with np.errstate(invalid="ignore"):
            geometry = shapely.force_2d(shapely.geometry.shape(item["geometry"])) if item.get("geometry") else None
            if geometry is None:
                geometry = _bbox_polygon(item["bbox"])
            # One NaN would make every comparison of the tree false: such a footprint counts as empty.
            known = bool(np.isfinite(shapely.get_coordinates(geometry)).all())
            geometry = wrap(geometry) if known else shapely.MultiPolygon()
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, shapely.errors.ShapelyError) as err:
        raise DataError(f"item {item.get('id')} has neither a readable geometry nor a bbox") from err
    if geometry.is_empty:
        raise DataError(f"item {item.get('id')} has a footprint without area: {item.get('geometry')!s:.120}")
    return geometry


def wrap(geometry: BaseGeometry) -> BaseGeometry:
    """Bring lon/lat polygons into -180..180 and repair them.

    A ring wider than 180 degrees is taken for one that crosses the antimeridian with wrapped vertices, because no
    granule is that wide; vertices beyond +-180 are moved to the other side.
    """
    west, _, east, _ = geometry.bounds or (0.0, 0.0, 0.0, 0.0)
    if geometry.geom_type == "Polygon" and -180 <= west <= east <= 180 and east - west <= 180 and geometry.is_valid:
        return shapely.normalize(geometry)
    pieces = []
    for part in shapely.get_parts(geometry):
        west, _, east, _ = part.bounds or (0.0, 0.0, 0.0, 0.0)
        moved = shapely.transform(part, _unwrap) if east - west > 180 else part
        moved = moved if shapely.is_valid(moved) else shapely.make_valid(moved)
        for turn in (-360.0, 0.0, 360.0):
            world = shapely.box(-180 + turn, -90, 180 + turn, 90)
            pieces.append(shapely.transform(shapely.intersection(moved, world), _shift(-turn)))
    cut = [only_polygons(p) for p in pieces if not p.is_empty]
    return shapely.normalize(only_polygons(shapely.union_all(cut)))


def _unwrap(coordinates: Any) -> Any:
    moved = coordinates.copy()
    moved[:, 0] += 360.0 * (moved[:, 0] < 0)
    return moved


def _shift(degrees: float) -> Any:
    return lambda coordinates: coordinates + np.array([degrees, 0.0])


def _bbox_polygon(bbox: Any) -> BaseGeometry:
    values = [bbox[k] for k in ("xmin", "ymin", "xmax", "ymax")] if isinstance(bbox, dict) else list(bbox)
    west, south, east, north = (values[0], values[1], values[3], values[4]) if len(values) == 6 else values
    # STAC: a bbox that crosses the antimeridian has west > east (RFC 7946 section 5.2).
    return shapely.box(west, south, east + 360 if west > east else east, north)


def _choose(item: dict[str, Any]) -> dict[str, tuple[dict[str, Any], int]]:
    """The best (asset, 1-based band of the file) per band: native resolution first, then TIFF before JPEG 2000."""
    assets = item.get("assets")
    best: dict[str, tuple[tuple[Any, ...], dict[str, Any], int]] = {}
    for key, asset in sorted(assets.items()) if isinstance(assets, dict) else ():
        if not isinstance(asset, dict):
            continue
        for band, index, count in _bands_of(key, asset):
            rank = (count > 1, _misfit(key, asset, BAND_RES_M[band]), _is_jp2(key, asset), key)
            if band not in best or rank < best[band][0]:
                best[band] = (rank, asset, index)
    missing = "SCL" if "SCL" not in best else "" if len(best) > 1 else "any spectral band"
    if missing:
        held = sorted(assets)[:20] if isinstance(assets, dict) else assets
        raise UnusableItemError(f"item {item.get('id')} has no asset for {missing}; its assets are {held}")
    return {band: (asset, index) for band, (_, asset, index) in best.items()}


def _bands_of(key: str, asset: dict[str, Any]) -> Iterator[tuple[str, int, int]]:
    """(band, 1-based index in the file, bands in the file) of an asset; nothing for pictures and metadata."""
    roles = asset.get("roles") or ()
    if _PICTURES & set(roles) or key.lower().split("_")[0] in {"visual", "tci", "preview", "thumbnail", "overview"}:
        return
    described = asset.get("bands") or asset.get("eo:bands") or ()
    names = [_band_name(str(b.get("name", ""))) for b in described if isinstance(b, dict)]
    if len(names) <= 1:
        match = _KEY.match(key)
        band = (names[0] if names else None) or (_band_name(match["name"]) if match else None)
        if band:
            yield band, 1, 1
        return
    for index, band in enumerate(names, start=1):
        if band:
            yield band, index, len(names)


def _band_name(text: str) -> str | None:
    if text.lower() in COMMON_NAMES:
        return COMMON_NAMES[text.lower()]
    upper = text.upper()
    padded = f"B0{upper[1:]}" if re.fullmatch(r"B\d", upper) else upper
    return padded if padded in BAND_RES_M else None


def _misfit(key: str, asset: dict[str, Any], native_m: int) -> tuple[bool, float]:
    """Distance of an asset's resolution from the native one; unknown counts as native but ranks after it."""
    match = _KEY.match(key)
    # The key first: CDSE writes gsd 20 and a 20 m transform on some 60 m files.
    known: Any = match["res"] if match and match["res"] else None
    if known is None:
        raster = asset.get("raster:bands") or [{}]
        transform = asset.get("proj:transform") or [None]
        known = transform[0] or raster[0].get("spatial_resolution") or asset.get("gsd")
    try:
        return known is None, abs(float(known or native_m) - native_m)
    except (TypeError, ValueError):
        return True, 0.0


def _is_jp2(key: str, asset: dict[str, Any]) -> bool:
    return key.endswith("-jp2") or "jp2" in str(asset.get("type", ""))


def _time(value: Any) -> datetime | None:
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value.strip())
        except ValueError:
            return None
    if not isinstance(value, datetime):
        return None
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def _cloud(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value) if 0 <= value <= 100 else None


def _product_id(item: dict[str, Any]) -> str:
    """The SAFE name: the only text that all archives keep somewhere."""
    properties = item.get("properties") or {}
    keys = ("s2:product_uri", "sentinel:product_id", "s2:product_id")
    texts = [str(properties.get(k) or "") for k in keys] + [str(item.get("id"))]
    assets = item.get("assets")
    texts += [str(a.get("href")) for a in assets.values() if isinstance(a, dict)] if isinstance(assets, dict) else []
    found = next((t for t in texts if _PRODUCT.search(t)), "")
    return next((p for p in re.split(r"[/()]", found) if _PRODUCT.search(p)), "")


def _baseline(item: dict[str, Any]) -> float | None:
    properties = item.get("properties") or {}
    for key in ("s2:processing_baseline", "processing:version"):
        text = str(properties.get(key) or "")
        if re.fullmatch(r"\d{1,2}(\.\d{1,2})?", text):
            return float(text)
    match = _PRODUCT.search(_product_id(item))
    return float(f"{match[1]}.{match[2]}") if match else None


def _boa_offset(item: dict[str, Any], *, baseline: float | None, assets: list[dict[str, Any]]) -> int:
    """What to add to DN to reach the encoding of baseline 04.00: 0 or ``DN_OFFSET``."""
    properties = item["properties"]
    # earth-search subtracted the offset from the files of these items, whatever their baseline says.
    if any(properties.get(k) is True for k in ("earthsearch:boa_offset_applied", "sentinel:boa_offset_applied")):
        return DN_OFFSET
    if baseline is not None:
        return 0 if baseline >= OFFSET_BASELINE else DN_OFFSET
    offsets = {o for a in assets for o in _raster_offsets(a)}
    if offsets == {-0.1}:
        return 0
    if offsets == {0.0}:
        return DN_OFFSET
    raise DataError(
        f"item {item.get('id')} does not say whether its DN hold the +1000 offset: it has no s2:processing_baseline, "
        f"no product name with _Nxxxx_, and raster offsets {sorted(offsets)}; add s2:processing_baseline to the item"
    )


def _raster_offsets(asset: dict[str, Any]) -> Iterator[float]:
    holders = [asset.get("raster:offset"), *(b.get("offset") for b in asset.get("raster:bands") or ())]
    holders += [b.get("raster:offset") for b in asset.get("bands") or () if isinstance(b, dict)]
    yield from (float(o) for o in holders if isinstance(o, (int, float)))


def _version(properties: dict[str, Any], baseline: float | None) -> str:
    """``05.11@2024-08-25T21:57:47.000000Z``: sorts by baseline, then by time of generation."""
    keys = ("s2:generation_time", "processing:datetime", "updated")
    made = next((t for t in (_time(properties.get(k)) for k in keys) if t is not None), None)
    stamp = made.strftime("%Y-%m-%dT%H:%M:%S.%fZ") if made else ""
    return f"{'' if baseline is None else f'{baseline:05.2f}'}@{stamp}"


def _acquisition(item: dict[str, Any]) -> str:
    properties, product = item["properties"], _product_id(item)
    tile = str(properties.get("s2:mgrs_tile") or properties.get("grid:code") or "").upper().removeprefix("MGRS-")
    if not tile and (match := re.search(r"_T(\d{2}[A-Z]{3})(?:_|$)", product)):
        tile = match[1]
    take = str(properties.get("s2:datatake_id") or properties.get("eopf:datatake_id") or "")
    match = re.fullmatch(r"G(S2[A-Z])_(\d{8}T\d{6})_\d+_N\d\d\.\d\d", take) or re.match(
        r"(S2[A-Z])_MSIL2A_(\d{8}T\d{6})_", product
    )
    return f"{match[1]}_{match[2]}_{tile.lstrip('0')}" if match and tile else ""


def _from_planetary_computer(item: dict[str, Any]) -> bool:
    links = item.get("links") or ()
    hosts = {urlsplit(str(link.get("href"))).hostname for link in links if isinstance(link, dict)}
    return PLANETARY_COMPUTER in hosts


def _href(href: Any, *, item: dict[str, Any], base: str | None, band: str) -> str:
    """Resolve, check and unsign one href."""
    name = f"item {item.get('id')}, asset {band}"
    if not isinstance(href, str) or not href.strip():
        raise DataError(f"{name} has no href")
    if any(ord(c) < 32 or ord(c) == 127 for c in href + unquote(href)) or "\\" in href or href.startswith("<"):
        raise DataError(f"{name}: the href holds characters that no file name of an archive has; correct the item")
    scheme = urlsplit(href).scheme.lower()
    local = base is not None and is_local(base)
    if scheme in REMOTE_SCHEMES:
        return unsigned(href)
    if scheme not in {"", "file"} or href.lower().startswith("/vsi"):
        shown = href[:8] if not scheme else f"{scheme}:"
        raise DataError(f"{name}: href {shown}... is refused; allowed are {', '.join(REMOTE_SCHEMES)} and plain files")
    if local:
        return _local_href(href, base=str(base), name=name)
    if scheme == "file" or (href.startswith("/") and not href.startswith("//")):
        raise DataError(
            f"{name}: a remote catalogue names the local path {href[:120]!r}: refused; use a file catalogue"
        )
    links = (
        link.get("href") for link in item.get("links") or () if isinstance(link, dict) and link.get("rel") == "self"
    )
    own = next((str(h) for h in links if urlsplit(str(h)).scheme in REMOTE_SCHEMES), base)
    if own is None:
        raise DataError(f"{name}: href {href[:120]!r} is relative and the item has no self link to resolve it against")
    return unsigned(_join(own, href))


def _join(base: str, href: str) -> str:
    """``urljoin`` for all remote schemes (it leaves alone those that it does not know, e.g. s3)."""
    scheme, rest = base.split(":", 1)
    joined = urljoin(f"https:{rest}", href)
    return f"{scheme}:{joined.split(':', 1)[1]}"


def _local_href(href: str, *, base: str, name: str) -> str:
    if href.lower().startswith("file:"):
        parts = urlsplit(href)
        if parts.netloc not in {"", "localhost"}:
            raise DataError(f"{name}: {href[:120]!r} names the host {parts.netloc}; only file:///path is allowed")
        href = unquote(parts.path)
    folder = Path(local_path(base)).absolute().parent
    path = Path(*_squeeze((folder / href).parts))
    if str(path).lower().startswith("/vsi"):
        raise DataError(f"{name}: href {href[:120]!r} leads to {str(path)[:8]}...: refused")
    return str(path)


def _squeeze(parts: tuple[str, ...]) -> list[str]:
    """Drop ``.`` and resolve ``..`` by name: links on the disk are left to the reader."""
    kept: list[str] = []
    for part in parts:
        if part == ".." and len(kept) > 1:
            kept.pop()
        elif part not in {".", ".."}:
            kept.append(part)
    return kept


def is_local(place: str) -> bool:
    """Whether a place is a file on this machine (a path or ``file://``)."""
    return urlsplit(place).scheme.lower() in {"", "file"}


def local_path(place: str) -> str:
    """The path of a local place."""
    return unquote(urlsplit(place).path) if place.lower().startswith("file:") else place


def unsigned(href: str) -> str:
    """A URL without user, password and signature: what may be stored and shown.

    SAS parameters (Azure) are dropped only beside ``sig``, because ``se`` or ``sp`` alone may mean something else.
    """
    parts = urlsplit(href)
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    sas = any(k.lower() == "sig" for k, _ in pairs)
    kept = [(k, v) for k, v in pairs if not _secret(k.lower(), sas=sas)]
    query = parts.query if len(kept) == len(pairs) else urlencode(kept)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, query, ""))


def _secret(key: str, *, sas: bool) -> bool:
    return key in _SIGNED_KEYS or key.startswith(("x-amz-", "x-goog-")) or (sas and key in _SAS_KEYS)
