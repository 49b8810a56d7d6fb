"""A static STAC catalogue beside a store: one Collection, Items beside it, the Item of the model, lists of scenes.

Core STAC 1.1; what the extensions say is made in ``stac_fields`` and ``stac_model``. Links and assets are relative
where they lie on this machine, so the folder can be moved or served as it is. Takes finished values, knows nothing of
plans. Written without reading any schema, hence offline.

Every file is replaced whole, in an order that leaves a readable catalogue wherever the process stops: what the
collection will name, then the collection, then what it names no more is deleted.
"""

from __future__ import annotations

import json
import os.path
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import OutputError
from pipeline.write import durable
from pipeline.write.stac_fields import Fields, footprint, projection

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from pipeline.types import Box
    from pipeline.write.durable import Checkpoint

ZARR = "application/vnd.zarr; version=3"
"""Media type of a Zarr store (registered vendor tree; STAC best practices name it)."""
COG = "image/tiff; application=geotiff; profile=cloud-optimized"
PNG = "image/png"
JSON = "application/json"
GEOJSON = "application/geo+json"
OWN = "earthpress:"
"""Prefix of our own fields: a file with one of them in a catalogue's folder was written by us."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A file that belongs to an item or to the collection.

    Attributes:
        key: Key of the asset.
        path: Local path, made relative to the catalogue, or the URL of an object or a URN, which stays as it is.
        media_type: Media type, "" for none.
        roles: Roles of the asset.
        title: One line for people.
        fields: Further (key, value) fields, values as JSON has them.
    """

    key: str
    path: str
    media_type: str
    roles: tuple[str, ...]
    title: str = ""
    fields: Fields = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A link of an item or of the collection.

    Attributes:
        rel: Relation.
        href: URL, or a href relative to the folder of the catalogue.
        media_type: Of what is there, "" when unknown.
        title: One line for people.
    """

    rel: str
    href: str
    media_type: str = ""
    title: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemContent:
    """What an Item says.

    Attributes:
        id: Identifier, also the name of its file.
        box: Ground that holds data; None: the item has no place (a model).
        start: UTC, inclusive.
        end: UTC, exclusive.
        assets: Its files.
        properties: Further (key, value) properties, values as JSON has them.
        links: Beside those that make the catalogue.
        extensions: Schema URLs of the extensions that it uses.
    """

    id: str
    box: Box | None
    start: datetime
    end: datetime
    assets: tuple[Made, ...]
    properties: Fields = ()
    links: tuple[Link, ...] = ()
    extensions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogContent:
    """Everything that the catalogue says.

    Attributes:
        id: Identifier of the collection.
        title: One line.
        description: What the data are and where they come from.
        start: UTC, inclusive.
        end: UTC, exclusive.
        items: Of the collection; each has a box.
        licence: SPDX identifier or ``other``.
        keywords: For searches.
        providers: (name, description, roles, URL) of who provided what the data are made of.
        summaries: (key, values) over the items.
        fields: Further (key, value) fields of the collection.
        assets: Files of the whole collection.
        links: Beside those to its items.
        extensions: Schema URLs of the extensions that the collection uses.
        model: Item of the model: beside the collection, not part of it.
        files: (name, content) of further files that links and assets name.
    """

    id: str
    title: str
    description: str
    start: datetime
    end: datetime
    items: tuple[ItemContent, ...]
    licence: str = "other"
    keywords: tuple[str, ...] = ()
    providers: tuple[tuple[str, str, tuple[str, ...], str], ...] = ()
    summaries: tuple[tuple[str, list[Any]], ...] = ()
    fields: Fields = ()
    assets: tuple[Made, ...] = ()
    links: tuple[Link, ...] = ()
    extensions: tuple[str, ...] = ()
    model: ItemContent | None = None
    files: tuple[tuple[str, bytes], ...] = ()


def write_catalog(folder: str | Path, content: CatalogContent, *, at: Checkpoint = durable.passed) -> str:
    """Write ``collection.json`` and everything that it names into ``folder``, and delete what it names no more.

    Args:
        folder: Local folder of the catalogue.
        content: What to write.
        at: Called after every step that a kill can separate (tests).

    Returns:
        Path of the collection.

    Raises:
        OutputError: A file cannot be written or deleted.
    """
    root = durable.local_path(folder)
    collection = _collection(content, root)
    written = dict(content.files)
    if content.model is not None:
        written[f"{content.model.id}.json"] = _json(_item(content.model, root))
    for item in collection.get_items():
        written[Path(item.get_self_href()).name] = _json(item)
    for name, data in written.items():
        _replace(root / name, data)
        at("item")
    _replace(root / "collection.json", _json(collection))
    at("collection")
    for path in _stale(root, {*written, "collection.json"}):
        try:
            path.unlink(missing_ok=True)
        except OSError as err:
            raise OutputError(f"{path}: an item of what is no more cannot be deleted: {err.strerror or err}") from err
        at("deleted")
    return str(root / "collection.json")


def relative(path: str, folder: Path) -> str:
    """The href of a file or URL in a catalogue that lies in ``folder``: relative, also upwards; URLs stay.

    >>> relative("/data/out/store.zarr/utm31", Path("/data/out/stac"))
    '../store.zarr/utm31'
    >>> relative("s3://bucket/store.zarr/utm31", Path("/data/out/stac"))
    's3://bucket/store.zarr/utm31'
    """
    if "://" in path or path.startswith("urn:"):
        return path
    href = Path(os.path.relpath(Path(path).absolute(), folder)).as_posix()
    return href if href.startswith(".") else f"./{href}"


def json_bytes(value: Any) -> bytes:
    """A JSON file as this module writes it."""
    return f"{json.dumps(value, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False)}\n".encode()


def _collection(content: CatalogContent, root: Path) -> Any:
    import pystac  # noqa: PLC0415

    items = [_item(item, root) for item in content.items]
    collection = pystac.Collection(
        id=content.id,
        title=content.title,
        description=content.description,
        license=content.licence,
        keywords=list(content.keywords) or None,
        providers=[
            pystac.Provider(name=name, description=text, roles=[pystac.ProviderRole(role) for role in roles], url=url)
            for name, text, roles, url in content.providers
        ]
        or None,
        extent=pystac.Extent(
            pystac.SpatialExtent(_bboxes([item.bbox for item in items])),
            pystac.TemporalExtent([[content.start, content.end]]),
        ),
        summaries=pystac.Summaries(dict(content.summaries)),
        stac_extensions=list(content.extensions),
        extra_fields=dict(content.fields),
        assets={made.key: _asset(made, root) for made in content.assets},
    )
    for item in items:
        collection.add_item(item)
    for link in content.links:
        collection.add_link(_link(link))
    collection.normalize_hrefs(str(root), strategy=_beside())
    collection.catalog_type = pystac.CatalogType.SELF_CONTAINED
    return collection


def _bboxes(boxes: list[list[float]]) -> list[list[float]]:
    """The whole, then every different box of the items.

    Across the antimeridian the whole spans the globe; the other boxes say where.
    """
    crossing = any(west > east for west, _, east, _ in boxes)
    west, east = (-180.0, 180.0) if crossing else (min(b[0] for b in boxes), max(b[2] for b in boxes))
    whole = [west, min(b[1] for b in boxes), east, max(b[3] for b in boxes)]
    different = list(dict.fromkeys(tuple(box) for box in boxes))
    return [whole, *map(list, different)] if len(different) > 1 else [whole]


def _item(content: ItemContent, root: Path) -> Any:
    import pystac  # noqa: PLC0415

    geometry, bbox = footprint(content.box) if content.box is not None else (None, None)
    item = pystac.Item(
        id=content.id,
        geometry=geometry,
        bbox=bbox,
        datetime=None,
        start_datetime=content.start,
        end_datetime=content.end,
        properties={**(projection(content.box) if content.box is not None else {}), **dict(content.properties)},
        stac_extensions=list(content.extensions),
        assets={made.key: _asset(made, root) for made in content.assets},
    )
    for link in content.links:
        item.add_link(_link(link))
    return item


def _asset(made: Made, root: Path) -> Any:
    import pystac  # noqa: PLC0415

    return pystac.Asset(
        href=relative(made.path, root),
        title=made.title or None,
        media_type=made.media_type or None,
        roles=list(made.roles),
        extra_fields=dict(made.fields),
    )


def _link(link: Link) -> Any:
    import pystac  # noqa: PLC0415

    return pystac.Link(link.rel, link.href, media_type=link.media_type or None, title=link.title or None)


def _beside() -> Any:
    """Items lie beside the collection."""
    from pystac.layout import CustomLayoutStrategy  # noqa: PLC0415

    return CustomLayoutStrategy(item_func=lambda item, parent: f"{parent}/{item.id}.json")


def _replace(path: Path, data: bytes) -> None:
    """Write a file unless it says the same already: catalogues of countries have thousands."""
    try:
        same = path.read_bytes() == data
    except OSError:
        same = False
    if not same:
        durable.replace(path, data)


def _stale(root: Path, names: set[str]) -> Iterator[Path]:
    """Our files of earlier catalogues; what others put into the folder stays."""
    for path in sorted(root.glob("*.json")):
        if path.name not in names and not path.name.startswith(durable.TEMP_PREFIX) and _ours(path):
            yield path


def _ours(path: Path) -> bool:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    parts = [found, found.get("properties")] if isinstance(found, dict) else []
    return any(str(key).startswith(OWN) for part in parts if isinstance(part, dict) for key in part)


def _json(thing: Any) -> bytes:
    # a self link would hold the local path
    return json_bytes(thing.to_dict(include_self_link=False))
