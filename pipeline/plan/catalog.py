"""Catalogues: a STAC API over the network, or a file that is searched in process.

Both answer the same question (which items of a collection touch this geometry in this time) with item dictionaries;
``scenes_of`` asks it period by period and turns the answers into scenes. Catalogues are never trusted: pages may loop,
repeat items, break off or come back as something else. No message holds a query string or a password.
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urljoin, urlsplit

import shapely
from urllib3.util.retry import Retry

from pipeline.errors import DataError, InvalidInputError, TransientError
from pipeline.plan.aoi import split_zones
from pipeline.plan.items import (
    PLANETARY_COMPUTER,
    UnusableItemError,
    acquired_of,
    footprint_of,
    is_local,
    local_path,
    scene_from_item,
)
from pipeline.plan.select import newest_versions
from pipeline.types import Period, Scene, canonical_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import datetime

    from shapely.geometry.base import BaseGeometry

    Item = dict[str, Any]

PRESETS = {"planetary-computer": f"https://{PLANETARY_COMPUTER}/api/stac/v1"}
PAGE_ITEMS = 250
"""Items asked per page: the Planetary Computer caps at 1000 and answers large pages slowly."""
MAX_VERTICES = 500
"""Vertices of a query geometry: larger ones time out (Planetary Computer issue 442)."""
WIDE_DEG = 12.0
"""A wider area is asked zone by zone."""
STALE_PAGES = 3
"""Pages in a row without a new item after which paging counts as a loop."""
MAX_RETRY_AFTER_S = 120.0
ITEM_FILES = (".json", ".geojson", ".ndjson", ".jsonl", ".parquet", ".geoparquet")
EXPECTED = (
    "expected is a static catalogue (catalog.json), a STAC ItemCollection (.json, .geojson), one item per line "
    "(.ndjson, .jsonl), stac-geoparquet (.parquet), or a folder that holds one of them"
)

logger = logging.getLogger(__name__)


class Catalog(Protocol):
    """What ``scenes_of`` needs."""

    sign: bool
    """Whether hrefs need planetary-computer signing at open."""

    def search(
        self, *, collection: str, geometry: BaseGeometry, start: datetime, end: datetime
    ) -> Iterator[dict[str, Any]]:
        """Items that touch the geometry (lon/lat) with start <= time <= end; maybe more, maybe some twice."""
        ...

    def base_of(self, item: dict[str, Any]) -> str | None:
        """Where an item of this catalogue comes from: URL or local file; decides whether it may name local files."""
        ...


def open_catalog(spec: str) -> Catalog:
    """Open a catalogue.

    Args:
        spec: ``planetary-computer``, the URL of a STAC API, or a path or ``file://`` URL of a static catalogue, an
            ItemCollection, NDJSON, stac-geoparquet, or a folder that holds one of them.

    Raises:
        InvalidInputError: Nothing there, or it is none of these.
        TransientError: The API does not answer.
    """
    url = PRESETS.get(spec, spec)
    if urlsplit(url).scheme.lower() in {"http", "https"}:
        if urlsplit(url).query or "@" in urlsplit(url).netloc:
            raise InvalidInputError(
                f"catalogue {redact(spec)!r}: the URL must not hold a user name, password or query, because plans and "
                "reports keep it"
            )
        return ApiCatalog(url, sign=urlsplit(url).hostname == PLANETARY_COMPUTER)
    if not is_local(url):
        raise InvalidInputError(f"catalogue {redact(spec)!r} is neither {', '.join(PRESETS)} nor http(s) nor a file")
    return FileCatalog(local_path(url))


def scenes_of(
    catalog: Catalog, *, collection: str, geometry: BaseGeometry, periods: tuple[Period, ...]
) -> tuple[Scene, ...]:
    """All scenes of a collection that touch a geometry in one of the periods.

    Args:
        catalog: Where to look; asked once per period and part of the geometry, one request after the other.
        collection: STAC collection id.
        geometry: lon/lat polygons inside -180..180; give the union of ``select.cell_polygon`` of all cells, so
            that a cell's candidates do not depend on the area of the request.
        periods: Half-open periods.

    Returns:
        Scenes with unique ids, sorted by id. Older versions of a granule that a newer one covers wholly are left out;
        ``select`` does the rest per cell.

    Raises:
        DataError: Two different items share an id, or an item cannot be read (``scene_from_item``).
        InvalidInputError, TransientError: From the catalogue.
    """
    shapely.prepare(geometry)
    found: dict[str, Scene] = {}
    skipped: set[str] = set()
    for part in _query_parts(geometry):
        for period in periods:
            items = catalog.search(collection=collection, geometry=part, start=period.start, end=period.end)
            for item in items:
                scene = _scene(item, catalog=catalog, collection=collection, skipped=skipped)
                if scene is None or not period.start <= scene.acquired < period.end:
                    continue
                if scene.id not in found and not geometry.intersects(shapely.from_wkb(scene.footprint)):
                    continue
                if found.setdefault(scene.id, scene) != scene:
                    raise DataError(f"the catalogue returned two different items with the id {scene.id}")
    scenes = [found[key] for key in sorted(found)]
    if skipped:
        logger.warning("%d items of %s were left out for lack of files", len(skipped), collection)
    return newest_versions(scenes, list(shapely.from_wkb([s.footprint for s in scenes])), whole=True)


def redact(text: str) -> str:
    """Text without passwords and query strings of URLs."""
    return re.sub(r"\?[^\s'\")>]+", "?...", re.sub(r"://[^/\s@]*@", "://", text))


def _scene(item: Item, *, catalog: Catalog, collection: str, skipped: set[str]) -> Scene | None:
    if item.get("collection") not in {None, collection}:
        return None
    try:
        return scene_from_item(item, base=catalog.base_of(item), sign=catalog.sign)
    except UnusableItemError as err:
        if str(item.get("id")) not in skipped:
            logger.warning("left out: %s", err)
        skipped.add(str(item.get("id")))
        return None


def _query_parts(geometry: BaseGeometry) -> tuple[BaseGeometry, ...]:
    west, _, east, _ = geometry.bounds
    return (geometry,) if east - west <= WIDE_DEG else tuple(part for _, part in split_zones(geometry))


def _query_shape(part: BaseGeometry) -> BaseGeometry:
    """A geometry of few vertices that covers the part: enough for a query, whose answers are filtered exactly."""
    if shapely.get_num_coordinates(part) <= MAX_VERTICES:
        return part
    for step in (0.001, 0.01, 0.1):
        simple = part.buffer(2 * step, join_style="mitre").simplify(step)
        if shapely.get_num_coordinates(simple) <= MAX_VERTICES and simple.covers(part):
            return simple.intersection(shapely.box(-180, -90, 180, 90))
    return shapely.box(*part.bounds)


class _CappedRetry(Retry):
    """Retry that obeys Retry-After only up to ``MAX_RETRY_AFTER_S``."""

    def get_retry_after(self, response: Any) -> float | None:
        """Seconds to wait, or None when the server does not say."""
        seconds = super().get_retry_after(response)
        return None if seconds is None else min(seconds, MAX_RETRY_AFTER_S)


class ApiCatalog:
    """A STAC API (Item Search), asked by pystac-client.

    Args:
        url: Landing page.
        sign: Whether its hrefs need planetary-computer signing at open.
        backoff_s: Factor of the exponential back-off between retries.
        page_items: Items asked per page.

    Raises:
        InvalidInputError: The URL is not a STAC API with search.
        TransientError: It does not answer.
    """

    def __init__(self, url: str, *, sign: bool, backoff_s: float = 1.0, page_items: int = PAGE_ITEMS) -> None:
        from pystac_client.stac_api_io import StacApiIO  # noqa: PLC0415

        self.url, self.sign, self._page_items = url, sign, page_items
        self._known: set[str] = set()
        # pystac-client retries no status by itself, and urllib3 no POST unless every method is allowed (measured).
        retries = _CappedRetry(
            total=8,
            connect=3,
            backoff_factor=backoff_s,
            status_forcelist=[429, 502, 503, 504],
            allowed_methods=None,
        )
        self._io = StacApiIO(timeout=60, max_retries=retries)
        landing = self._get(url, at_open=True)
        links = [k for k in landing.get("links") or () if isinstance(k, dict) and k.get("rel") == "search"]
        if "id" not in landing or not (links or landing.get("conformsTo")):
            raise InvalidInputError(
                f"{redact(url)} is not a STAC API with item search (no link rel=search, no conformsTo); "
                "download a static catalogue and give its path"
            )
        href = str(links[0].get("href")) if links else "search"
        self._search_url = urljoin(url.split("?", maxsplit=1)[0].rstrip("/") + "/", href)

    def base_of(self, item: dict[str, Any]) -> str | None:  # noqa: ARG002
        """The API's own address: remote, so its items may name no local file."""
        return self.url

    def search(
        self, *, collection: str, geometry: BaseGeometry, start: datetime, end: datetime
    ) -> Iterator[dict[str, Any]]:
        """Items that touch the geometry, page by page; see ``Catalog``."""
        empty = True
        for item in self._slice(collection=collection, shape=_query_shape(geometry), start=start, end=end):
            empty = False
            yield item
        if empty:
            self._check_collection(collection)

    def _slice(self, *, collection: str, shape: BaseGeometry, start: datetime, end: datetime) -> Iterator[Item]:
        from pystac_client.item_search import ItemSearch  # noqa: PLC0415

        search = ItemSearch(
            self._search_url,
            stac_io=self._io,
            collections=[collection],
            intersects=shapely.geometry.mapping(shape),
            datetime=(start, end),
            limit=self._page_items,
        )
        last = 0
        for page in self._pages(search):
            last = len(page)
            yield from page
        # A full last page without a next link is how servers that lose pages look: ask for the halves as well.
        if last == self._page_items and (end - start).total_seconds() > 2:
            middle = start + (end - start) / 2
            yield from self._slice(collection=collection, shape=shape, start=start, end=middle)
            yield from self._slice(collection=collection, shape=shape, start=middle, end=end)

    def _pages(self, search: Any) -> Iterator[list[Item]]:
        from pystac.link import Link  # noqa: PLC0415

        parameters = search.get_parameters()
        page = self._get(search.url, method=search.method, parameters=parameters)
        asked: set[str] = set()
        ids: set[str] = set()
        stale = 0
        while True:
            features = page.get("features")
            if not isinstance(features, list) or not all(isinstance(f, dict) for f in features):
                raise TransientError(f"{redact(search.url)} answered a search without a list of features")
            new = {str(f.get("id")) for f in features} - ids
            stale = 0 if new else stale + 1
            ids |= new
            yield features
            link = next((k for k in page.get("links") or () if k.get("rel") == "next" and k.get("href")), None)
            if link is None:
                return
            key = canonical_json([link.get(k) for k in ("href", "method", "body")])
            if key in asked or stale >= STALE_PAGES:
                raise InvalidInputError(
                    f"paging of {redact(self.url)} runs in a circle after {len(asked) + 1} pages ({len(ids)} items): "
                    "report it to the provider, or use a file catalogue"
                )
            asked.add(key)
            page = self._get(Link.from_dict(link), parameters=parameters)

    def _get(self, place: Any, *, at_open: bool = False, **kwargs: Any) -> dict[str, Any]:
        """One JSON object; statuses are retried by urllib3, a body that is not JSON is asked for twice more."""
        from pystac_client.exceptions import APIError  # noqa: PLC0415

        name = redact(self.url)
        for _ in range(3):
            try:
                answer = self._io.read_json(place, **kwargs)
            except APIError as err:
                raise _api_error(err, name=name) from None
            except ValueError:
                if at_open:
                    break
                continue
            if isinstance(answer, dict):
                return answer
        if at_open:
            raise InvalidInputError(f"{name} is not a STAC API: its landing page is not a JSON object")
        raise TransientError(f"{name} answered three times with something that is not a JSON object; try again later")

    def _check_collection(self, collection: str) -> None:
        if collection in self._known:
            return
        url = f"{self.url.split('?')[0].rstrip('/')}/collections/{collection}"
        try:
            self._get(url)
        except InvalidInputError as err:
            raise InvalidInputError(f"{redact(self.url)} has no collection {collection!r}: {err}") from None
        self._known.add(collection)


def _api_error(err: Exception, *, name: str) -> InvalidInputError | TransientError:
    status = getattr(err, "status_code", None)
    text = redact(" ".join(str(err).split()))[:300]
    if status is not None and 400 <= status < 500 and status not in {408, 425, 429}:
        return InvalidInputError(f"STAC API {name} refused the request with status {status}: {text}")
    return TransientError(
        f"STAC API {name} does not answer (status {status or 'none'}), retries included: {text}; is the address right?"
    )


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
        self._collections = {self._rows.key(i).get("collection") for i in range(len(self._rows))}

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
            held = ", ".join(sorted(str(c) for c in self._collections)) or "nothing"
            raise InvalidInputError(f"catalogue {self.path} has no collection {collection!r}; it holds {held}")
        for number in sorted(self._tree.query(geometry, predicate="intersects").tolist()):
            time = self._times[number]
            if time is None or not start <= time <= end:
                continue
            item = self._rows.item(number)
            if item.get("collection") in {None, collection}:
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
