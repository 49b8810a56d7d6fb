"""A static STAC catalogue beside a store: one Collection, one Item per UTM zone.

Core STAC 1.1 with the projection and processing extensions; links and assets are relative, so the folder can be moved
or served as it is. Takes finished values, knows nothing of plans. Written without reading any schema, hence offline.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.write import durable

if TYPE_CHECKING:
    from datetime import datetime

    from pipeline.types import Box

PROJECTION = "https://stac-extensions.github.io/projection/v2.0.0/schema.json"
PROCESSING = "https://stac-extensions.github.io/processing/v1.2.0/schema.json"
ZARR = "application/vnd.zarr; version=3"
"""Media type of a Zarr store (registered vendor tree; STAC best practices name it)."""
COG = "image/tiff; application=geotiff; profile=cloud-optimized"
EDGE_POINTS = 16
"""Points along a side of the footprint: a straight side of a UTM box is curved in lon/lat, by 20 m over 100 km."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A file that belongs to an item.

    Attributes:
        key: Key of the asset.
        path: Local path.
        media_type: Media type.
        roles: Roles of the asset.
        title: One line for people.
    """

    key: str
    path: str
    media_type: str
    roles: tuple[str, ...]
    title: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ZoneItem:
    """What an Item says about one zone of a store.

    Attributes:
        box: Ground that holds data, in pixels of the store.
        assets: Store group, maps, quicklooks.
        properties: Further (key, value) properties, values as JSON has them.
    """

    box: Box
    assets: tuple[Made, ...]
    properties: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogContent:
    """Everything that the catalogue says.

    Attributes:
        id: Identifier of the collection; items are ``ID-utmNN``.
        title: One line.
        description: What the data are and where they come from.
        start: UTC, inclusive.
        end: UTC, exclusive.
        items: One per zone.
        licence: SPDX identifier or ``other``.
        software: (name, version) pairs.
        properties: Summaries of the collection: (key, value).
    """

    id: str
    title: str
    description: str
    start: datetime
    end: datetime
    items: tuple[ZoneItem, ...]
    licence: str = "other"
    software: tuple[tuple[str, str], ...] = ()
    properties: tuple[tuple[str, Any], ...] = ()


def write_catalog(folder: str | Path, content: CatalogContent) -> str:
    """Write ``collection.json`` and its items into ``folder``; every file is replaced whole.

    Returns:
        Path of the collection.

    Raises:
        OutputError: A file cannot be written.
    """
    root = durable.local_path(folder)
    collection = _collection(content, root)
    for item in collection.get_items():
        durable.replace(Path(item.get_self_href()), _json(item))
    durable.replace(root / "collection.json", _json(collection))
    return str(root / "collection.json")


def footprint(box: Box) -> tuple[dict[str, Any], list[float]]:
    """GeoJSON geometry and bbox (west, south, east, north) of a box, lon/lat degrees.

    A box across the antimeridian becomes two polygons with a bbox whose west is larger than its east (RFC 7946, 3.1.9
    and 5.2).
    """
    from pyproj import Transformer  # noqa: PLC0415
    from shapely import box as rectangle  # noqa: PLC0415
    from shapely import intersection  # noqa: PLC0415
    from shapely.affinity import translate  # noqa: PLC0415
    from shapely.geometry import MultiPolygon, Polygon, mapping  # noqa: PLC0415

    west, south, east, north = box.bounds_m
    share = np.linspace(0, 1, EDGE_POINTS, endpoint=False)
    x, y = west + share * (east - west), south + share * (north - south)
    # counter-clockwise from the south-west
    edge_x = np.concatenate([x, np.full_like(y, east), x[::-1] + (east - x[-1]), np.full_like(y, west)])
    edge_y = np.concatenate([np.full_like(x, south), y, np.full_like(x, north), y[::-1] + (north - y[-1])])
    lon, lat = Transformer.from_crs(box.epsg, 4326, always_xy=True).transform(edge_x, edge_y)
    crossing = lon.max() - lon.min() > 180
    ring = Polygon(np.round(np.column_stack([np.where(crossing & (lon < 0), lon + 360, lon), lat]), 7))
    bounds = ring.bounds
    if not crossing:
        return mapping(ring), list(bounds)
    parts = [
        intersection(ring, rectangle(0, -90, 180, 90)),
        translate(intersection(ring, rectangle(180, -90, 360, 90)), -360),
    ]
    return mapping(MultiPolygon(parts)), [bounds[0], bounds[1], bounds[2] - 360, bounds[3]]


def _collection(content: CatalogContent, root: Path) -> Any:
    import pystac  # noqa: PLC0415

    items = [_item(content, zone) for zone in content.items]
    boxes = [item.bbox for item in items]
    # the first box is the whole; across the antimeridian it spans the globe, the items' boxes say where
    crossing = any(west > east for west, _, east, _ in boxes)
    west, east = (-180.0, 180.0) if crossing else (min(b[0] for b in boxes), max(b[2] for b in boxes))
    whole = [west, min(b[1] for b in boxes), east, max(b[3] for b in boxes)]
    collection = pystac.Collection(
        id=content.id,
        title=content.title,
        description=content.description,
        license=content.licence,
        extent=pystac.Extent(
            pystac.SpatialExtent([whole, *boxes] if len(boxes) > 1 else [whole]),
            pystac.TemporalExtent([[content.start, content.end]]),
        ),
        extra_fields=dict(content.properties),
    )
    for item in items:
        collection.add_item(item)
    collection.normalize_hrefs(str(root), strategy=_beside())
    collection.catalog_type = pystac.CatalogType.SELF_CONTAINED
    for item in items:
        for asset in item.assets.values():
            asset.href = _relative(asset.href, Path(item.get_self_href()).parent)
    return collection


def _item(content: CatalogContent, zone: ZoneItem) -> Any:
    import pystac  # noqa: PLC0415

    from pipeline.write.geotiff import place  # noqa: PLC0415

    geometry, bbox = footprint(zone.box)
    epsg, transform = place(zone.box)
    west, north = transform.c, transform.f
    height, width, res = zone.box.height, zone.box.width, zone.box.res_m
    item = pystac.Item(
        id=f"{content.id}-utm{zone.box.zone:02d}",
        geometry=geometry,
        bbox=bbox,
        datetime=None,
        start_datetime=content.start,
        end_datetime=content.end,
        properties={
            "proj:code": f"EPSG:{epsg}",
            "proj:shape": [height, width],
            "proj:transform": list(transform)[:6],
            "proj:bbox": [west, north - height * res, west + width * res, north],
            "gsd": res,
            "processing:software": dict(content.software),
            **dict(zone.properties),
        },
        stac_extensions=[PROJECTION, PROCESSING],
    )
    for made in zone.assets:
        item.add_asset(
            made.key,
            pystac.Asset(
                href=str(Path(made.path).absolute()),
                title=made.title or None,
                media_type=made.media_type,
                roles=list(made.roles),
            ),
        )
    return item


def _beside() -> Any:
    """Items lie beside the collection."""
    from pystac.layout import CustomLayoutStrategy  # noqa: PLC0415

    return CustomLayoutStrategy(item_func=lambda item, parent: f"{parent}/{item.id}.json")


def _relative(path: str, start: Path) -> str:
    """A relative href, as a URL has it, also upwards."""
    import os.path  # noqa: PLC0415

    href = Path(os.path.relpath(path, start)).as_posix()
    return href if href.startswith(".") else f"./{href}"


def _json(thing: Any) -> bytes:
    # a self link would hold the local path
    text = json.dumps(thing.to_dict(include_self_link=False), indent=1, sort_keys=True, allow_nan=False)
    return f"{text}\n".encode()
