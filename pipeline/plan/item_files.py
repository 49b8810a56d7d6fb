"""Catalogues on this machine: static catalogues, ItemCollections, NDJSON and stac-geoparquet, searched in process.

No server and no database: items are read once, a tree of their footprints answers every search.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import shapely

from pipeline.errors import DataError, InvalidInputError
from pipeline.plan.hrefs import is_local, local_path, redact
from pipeline.plan.item_values import listing
from pipeline.plan.items import acquired_of, footprint_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import datetime

    from shapely.geometry.base import BaseGeometry

    Item = dict[str, Any]

ITEM_FILES = (".json", ".geojson", ".ndjson", ".jsonl", ".parquet", ".geoparquet")
EXPECTED = (
    "expected is a static catalogue (catalog.json), a STAC ItemCollection (.json, .geojson), one item per line "
    "(.ndjson, .jsonl), stac-geoparquet (.parquet), or a folder that holds one of them"
)

logger = logging.getLogger(__name__)


class FileCatalog:
    """Items of a local file, loaded once and searched with a tree.

    Args:
        path: See ``open_catalog``.

    Raises:
        InvalidInputError: Nothing there, or none of the formats.
    """

    sign = False

    def __init__(self, path: str) -> None:
        self.path = _catalog_file(Path(path))
        self._rows: _Rows
        if self.path.suffix.lower() in {".parquet", ".geoparquet"}:
            self._rows = _ParquetRows(self.path)
        else:
            self._rows = _JsonRows(_load(self.path), self.path)
        self._times: list[datetime | None] = []
        shapes: list[BaseGeometry | None] = []
        for number in range(len(self._rows)):
            time, shape = self._place(number)
            self._times.append(time)
            shapes.append(shape)
        self._tree = shapely.STRtree(shapes)
        told = [self._rows.key(i).get("collection") for i in range(len(self._rows))]
        self._collections = {c for c in told if c is None or isinstance(c, str)}

    @property
    def collections(self) -> tuple[str, ...]:
        """Ids of the collections of its items, sorted."""
        return tuple(sorted(str(c) for c in self._collections if c is not None))

    def _place(self, number: int) -> tuple[datetime | None, BaseGeometry | None]:
        key = self._rows.key(number)
        try:
            return acquired_of(key), footprint_of(key)
        except DataError as err:
            logger.warning("%s: left out: %s", self.path, err)
            return None, None

    def base_of(self, item: dict[str, Any]) -> str | None:
        """The local file that holds the item."""
        return next(str(k["href"]) for k in item["links"] if k.get("rel") == "self")

    def search(
        self, *, collection: str, geometry: BaseGeometry, start: datetime, end: datetime
    ) -> Iterator[dict[str, Any]]:
        """Items that touch the geometry, in the order of the file; see ``Catalog``."""
        if not self._collections & {None, collection}:
            raise InvalidInputError(
                f"catalogue {self.path} has no collection {collection!r}; it holds {listing(self.collections)}"
            )
        for number in sorted(self._tree.query(geometry, predicate="intersects").tolist()):
            time = self._times[number]
            if time is None or not start <= time <= end:
                continue
            item = self._rows.item(number)
            if item.get("collection") is None or item["collection"] == collection:
                yield item


class _Rows(Protocol):
    """Items by number: ``key`` has what the index needs, ``item`` everything, with a self link to its file."""

    def __len__(self) -> int: ...
    def key(self, number: int) -> dict[str, Any]: ...
    def item(self, number: int) -> dict[str, Any]: ...


class _JsonRows:
    def __init__(self, found: Iterable[tuple[Item, Path]], path: Path) -> None:
        self._items = list(found)
        for item, place in self._items:
            if item.get("type") != "Feature" or not isinstance(item.get("assets"), dict):
                raise InvalidInputError(
                    f"{place} holds a {item.get('type')!r} that is no STAC item (no assets): {EXPECTED}"
                )
        if not self._items:
            raise InvalidInputError(f"catalogue {path} holds no item")

    def __len__(self) -> int:
        return len(self._items)

    def key(self, number: int) -> dict[str, Any]:
        return self._items[number][0]

    def item(self, number: int) -> dict[str, Any]:
        return _placed(*self._items[number])


class _ParquetRows:
    """stac-geoparquet 1.x: properties are columns, the geometry is WKB; one row becomes an item when asked for."""

    _TOP = ("type", "stac_version", "stac_extensions", "id", "collection", "links", "assets", "bbox", "geometry")

    def __init__(self, path: Path) -> None:
        import pyarrow as pa  # noqa: PLC0415
        import pyarrow.parquet as pq  # noqa: PLC0415

        try:
            self._table = pq.read_table(path)
        except (pa.ArrowException, OSError) as err:
            raise InvalidInputError(f"catalogue {path} is not a Parquet file: {str(err)[:200]}; {EXPECTED}") from err
        missing = {"id", "geometry", "assets"} - set(self._table.column_names)
        if missing:
            raise InvalidInputError(f"catalogue {path} is not stac-geoparquet: no column {sorted(missing)}; {EXPECTED}")
        if not self._table.num_rows:
            raise InvalidInputError(f"catalogue {path} holds no item")
        kind = self._table.schema.field("geometry").type
        kind = getattr(kind, "storage_type", kind)
        if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            raise InvalidInputError(f"catalogue {path}: the geometry column is {kind}, must be WKB")
        self._path = path
        names = {"id", "collection", "bbox", "geometry", "datetime", "start_datetime"} & set(self._table.column_names)
        self._keys = self._table.select(sorted(names)).to_pylist()

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def key(self, number: int) -> dict[str, Any]:
        return self._nested(self._keys[number])

    def item(self, number: int) -> dict[str, Any]:
        return _placed(self._nested(self._table.slice(number, 1).to_pylist()[0]), self._path)

    def _nested(self, row: dict[str, Any]) -> Item:
        row = _without_nulls(row)
        top = {k: v for k, v in row.items() if k in self._TOP}
        if "geometry" in top:
            try:
                top["geometry"] = shapely.geometry.mapping(shapely.from_wkb(top["geometry"]))
            except shapely.errors.ShapelyError as err:
                raise InvalidInputError(f"catalogue {self._path}: geometry of {row.get('id')} is not WKB") from err
        return {**top, "properties": {k: v for k, v in row.items() if k not in self._TOP}}


def _without_nulls(value: Any) -> Any:
    """Drop what Parquet had to fill in: every struct has the members of all rows."""
    if isinstance(value, dict):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    return [_without_nulls(v) for v in value] if isinstance(value, list) else value


def _placed(item: Item, place: Path) -> Item:
    links = [k for k in item.get("links") or () if isinstance(k, dict) and k.get("rel") != "self"]
    return {**item, "links": [*links, {"rel": "self", "href": str(place)}]}


def _catalog_file(path: Path) -> Path:
    """The file to load: the path itself, or the one in the folder."""
    path = path.absolute()
    if path.is_file():
        return path
    if not path.is_dir():
        raise InvalidInputError(f"catalogue {path} does not exist; {EXPECTED}")
    for name in ("catalog.json", "collection.json", "items.json"):
        if (path / name).is_file():
            return path / name
    files = sorted(f for f in path.iterdir() if f.suffix.lower() in ITEM_FILES and f.is_file())
    parquet = [f for f in files if f.suffix.lower() in {".parquet", ".geoparquet"}]
    for group in (parquet, files):
        if len(group) == 1:
            return group[0]
    raise InvalidInputError(f"folder {path} holds {len(files)} possible catalogues, must hold one; {EXPECTED}")


def _load(path: Path) -> Iterator[tuple[Item, Path]]:
    if path.suffix.lower() in {".ndjson", ".jsonl"}:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _parse(line, f"{path}, line {number}"), path
        return
    if path.suffix.lower() not in {".json", ".geojson"}:
        raise InvalidInputError(f"catalogue {path} has an unknown suffix {path.suffix!r}; {EXPECTED}")
    data = _read_object(path)
    if data.get("type") in {"Catalog", "Collection"} or ("stac_version" in data and "features" not in data):
        yield from _walk(path, data)
    elif data.get("type") == "FeatureCollection" and isinstance(data.get("features"), list):
        for feature in data["features"]:
            yield feature if isinstance(feature, dict) else {}, path
    else:
        raise InvalidInputError(f"catalogue {path} is a JSON of type {data.get('type')!r}; {EXPECTED}")


def _walk(root: Path, data: Item) -> Iterator[tuple[Item, Path]]:
    """All items below a static catalogue, following child and item links on this machine."""
    waiting = [(root, data)]
    seen = {root}
    while waiting:
        path, node = waiting.pop()
        if node.get("type") == "Feature":
            yield node, path
            continue
        for link in node.get("links") or ():
            if not isinstance(link, dict) or link.get("rel") not in {"child", "item"}:
                continue
            href = str(link.get("href"))
            if not is_local(href):
                raise InvalidInputError(f"{path} links to {redact(href)}: a static catalogue must be complete on disk")
            place = Path(local_path(href)) if is_local(href) else Path()
            place = (path.parent / place).resolve()
            if place not in seen:
                seen.add(place)
                waiting.append((place, _read_object(place)))


def _read_object(path: Path) -> Item:
    try:
        return _parse(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as err:
        raise InvalidInputError(f"catalogue file {path} cannot be read: {err}; {EXPECTED}") from err


def _parse(text: str, name: str) -> Item:
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as err:
        raise InvalidInputError(f"{name} is not JSON ({err}); {EXPECTED}") from err
    if not isinstance(value, dict):
        raise InvalidInputError(f"{name} is a JSON {type(value).__name__}, must be an object; {EXPECTED}")
    return value
