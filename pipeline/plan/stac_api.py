"""A STAC API over the network, never trusted: pages may loop, repeat items, break off or come back as something else.

A search is asked in slices of a month at most, one request after the other: archives lose pages of large answers, and
one has banned a user for parallel searches (Planetary Computer issue 427). What comes back may hold too much or things
twice; ``catalog.scenes_of`` filters exactly and tells items apart by their ids.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import shapely

from pipeline.errors import InvalidInputError, TransientError
from pipeline.plan.hrefs import redact

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shapely.geometry.base import BaseGeometry

    Item = dict[str, Any]

PAGE_ITEMS = 250
"""Items asked per page: the Planetary Computer caps at 1000 and answers large pages slowly."""
CAPS = frozenset([100, 200, 250, 500, 1000, 2000, 2500, 5000, 10_000])
"""Answers of exactly so many items look cut: the time is split and asked again."""
MAX_VERTICES = 500
"""Vertices of a query geometry: larger ones time out (Planetary Computer issue 442)."""
MONTH = timedelta(days=31)
SHORTEST = timedelta(seconds=2)
"""Slices are not split below: an archive's times have seconds."""
STALE_PAGES = 3
"""Pages in a row without a new item after which paging counts as a loop."""
MAX_PAGES = 4000
"""Of one slice: a million items, more than any archive has in a month."""
SCENE_DEG = 3.0
"""Scenes are at most this wide on the ground, degrees of latitude: Sentinel-1 IW has 250 km and a slanted outline."""
SLIVER_DEG = 0.001
"""Width of the query on the other side of the antimeridian."""


def query_shapes(part: BaseGeometry) -> tuple[tuple[BaseGeometry, BaseGeometry | None], ...]:
    """Geometries of few vertices that cover a part of the area: enough for a query, whose answers are filtered exactly.

    A scene across the antimeridian may be written in longitudes beyond 180 (Planetary Computer issue 296), and then
    lies nowhere near a part on the other side. So beside the antimeridian the part is asked for a second time, in those
    longitudes; a server that refuses them is asked for a sliver on the far side, which such a scene touches unless all
    of its valid pixels lie beyond.

    Args:
        part: lon/lat polygons on one side of the antimeridian.

    Returns:
        (geometry, what to ask for where the server refuses it; None when it must not).
    """
    west, south, east, north = part.bounds
    reach = SCENE_DEG / max(math.cos(math.radians(max(abs(south), abs(north)))), 0.01)
    low, high = max(south - SCENE_DEG, -90.0), min(north + SCENE_DEG, 90.0)
    shapes: list[tuple[BaseGeometry, BaseGeometry | None]] = [(_simplified(part), None)]
    if east > 180 - reach:
        sliver = shapely.box(-180, low, -180 + SLIVER_DEG, high)
        shapes.append((shapely.box(-180 - min(reach, 180 - west), low, -180 + SLIVER_DEG, high), sliver))
    if west < -180 + reach:
        sliver = shapely.box(180 - SLIVER_DEG, low, 180, high)
        shapes.append((shapely.box(180 - SLIVER_DEG, low, 180 + min(reach, 180 + east), high), sliver))
    return tuple(shapes)


def _simplified(part: BaseGeometry) -> BaseGeometry:
    if shapely.get_num_coordinates(part) <= MAX_VERTICES:
        return part
    for step in (0.001, 0.01, 0.1):
        simple = part.buffer(2 * step, join_style="mitre").simplify(step)
        simple = simple.intersection(shapely.box(-180, -90, 180, 90))
        if shapely.get_num_coordinates(simple) <= MAX_VERTICES and simple.covers(part):
            return simple
    return shapely.box(*part.bounds)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Query:
    collection: str
    shape: BaseGeometry
    start: datetime
    end: datetime


@dataclass(slots=True, kw_only=True)
class _Answer:
    """All pages of one query.

    Attributes:
        items: As they came, some maybe twice.
        ids: Of the items.
        last: Items of the last page.
        matched: How many the server says there are; 0 when it does not say.
    """

    items: list[Item]
    ids: set[str]
    last: int = 0
    matched: int = 0


class ApiCatalog:
    """A STAC API (Item Search), asked with pystac-client.

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
        from pipeline.plan.stac_http import ApiIO  # noqa: PLC0415

        self.url, self.sign, self._page_items = url, sign, page_items
        self._io = ApiIO(url, backoff_s=backoff_s)
        self._known: set[str] = set()
        self._counts = True  # whether the server's own count of items is to be believed
        landing = self._landing()
        links = _links(landing, "search")
        if "id" not in landing or not (links or landing.get("conformsTo")):
            raise InvalidInputError(
                f"{redact(url)} is not a STAC API with item search (no link rel=search, no conformsTo); "
                "download a static catalogue and give its path"
            )
        # A link that says only GET is taken at its word; servers with one link and no method serve both.
        told = [str(link.get("method", "")).upper() for link in links]
        self._method = "GET" if told and all(method == "GET" for method in told) else "POST"
        href = next((str(k.get("href")) for k, method in zip(links, told, strict=True) if method == "POST"), None)
        href = href or (str(links[0].get("href")) if links else "search")
        self._search_url = self._io.own(href, base=url.split("?", maxsplit=1)[0].rstrip("/") + "/")

    def base_of(self, item: dict[str, Any]) -> str | None:  # noqa: ARG002
        """The API's own address: remote, so its items may name no local file."""
        return self.url

    def search(
        self, *, collection: str, geometry: BaseGeometry, start: datetime, end: datetime
    ) -> Iterator[dict[str, Any]]:
        """Items that touch the geometry, page by page; see ``Catalog``.

        Raises:
            InvalidInputError: No such collection, pages in a circle, or what ``stac_http`` refuses.
            TransientError: The API does not answer.
        """
        empty = True
        for shape, spare in query_shapes(geometry):
            for item in self._searched(shape, spare, collection=collection, start=start, end=end):
                empty = False
                yield item
        if empty:
            self._check_collection(collection)

    def _searched(
        self, shape: BaseGeometry, spare: BaseGeometry | None, *, collection: str, start: datetime, end: datetime
    ) -> Iterator[Item]:
        for first, last in _months(start, end):
            query = _Query(collection=collection, shape=shape, start=first, end=last)
            if spare is None:
                yield from self._slice(query)
                continue
            try:
                found = list(self._slice(query))
            except InvalidInputError:
                found = list(self._slice(replace(query, shape=spare)))
            yield from found

    def _slice(self, query: _Query) -> Iterator[Item]:
        answer = self._answer(query)
        yield from answer.items
        halves = _halves(query)
        if halves and self._looks_cut(answer, halves):
            for half in halves:
                yield from self._slice(half)

    def _looks_cut(self, answer: _Answer, halves: tuple[_Query, ...]) -> bool:
        """Whether there may be items that the server did not return.

        A full last page without a next link, or a round number of items, is how servers that lose pages look. Fewer
        items than the server counts may also mean that it only estimates: then its counts are not believed again.
        """
        if answer.last == self._page_items or len(answer.ids) in CAPS:
            return True
        if not self._counts or answer.matched <= len(answer.ids):
            return False
        self._counts = any(self._answer(half).ids - answer.ids for half in halves)
        return self._counts

    def _answer(self, query: _Query) -> _Answer:
        from pystac_client.item_search import ItemSearch  # noqa: PLC0415

        # A query string of 500 vertices is longer than servers take: by GET the box is asked for.
        place: dict[str, Any] = {"intersects": shapely.geometry.mapping(query.shape)}
        if self._method == "GET":
            place = {"bbox": list(query.shape.bounds)}
        search = ItemSearch(
            self._search_url,
            method=self._method,
            stac_io=self._io,
            collections=[query.collection],
            datetime=(query.start, query.end),
            limit=self._page_items,
            **place,
        )
        answer = _Answer(items=[], ids=set())
        for page in self._pages(search):
            answer.last = len(page["features"])
            answer.matched = max(answer.matched, _matched(page))
            answer.items += page["features"]
            answer.ids |= {str(item.get("id")) for item in page["features"]}
        return answer

    def _pages(self, search: Any) -> Iterator[Item]:
        parameters = search.get_parameters()
        page = self._page(search.url, method=search.method, parameters=parameters)
        ids: set[str] = set()
        stale, count = 0, 1
        while True:
            new = {str(item.get("id")) for item in page["features"]} - ids
            stale = 0 if new else stale + 1
            ids |= new
            yield page
            link = next((k for k in _links(page, "next") if k.get("href")), None)
            if link is None:
                return
            if stale >= STALE_PAGES or count >= MAX_PAGES:
                raise InvalidInputError(
                    f"paging of {redact(self.url)} runs in a circle after {count} pages ({len(ids)} items): "
                    "report it to the provider, or use a file catalogue"
                )
            count += 1
            page = self._page(**self._following(link, base=search.url, parameters=parameters))

    def _following(self, link: Item, *, base: str, parameters: Item) -> Item:
        """The request of a next link (STAC API, item search): all is in the href by GET, in the body by POST."""
        method, body, headers = str(link.get("method") or "GET").upper(), link.get("body"), link.get("headers")
        if method not in {"GET", "POST"}:
            raise InvalidInputError(f"{redact(self.url)} wants its next page asked for by {method[:20]!r}: refused")
        body = body if isinstance(body, dict) else {}
        return {
            "href": self._io.own(str(link["href"]), base=base),
            "method": method,
            "headers": {str(k): str(v) for k, v in headers.items()} if isinstance(headers, dict) else None,
            "parameters": ({**parameters, **body} if link.get("merge") else body) if method == "POST" else None,
        }

    def _page(self, href: str, **request: Any) -> Item:
        page = self._get(href, **request)
        features = page.get("features")
        if not isinstance(features, list) or not all(isinstance(f, dict) for f in features):
            raise TransientError(f"{redact(self.url)} answered a search without a list of features")
        return page

    def _landing(self) -> Item:
        landing = _json_object(self._io.request(self.url))
        if landing is None:
            raise InvalidInputError(f"{redact(self.url)} is not a STAC API: its landing page is not a JSON object")
        return landing

    def _get(self, href: str, **request: Any) -> Item:
        """One JSON object; what is none is asked for again: a gateway's page in between passes."""
        from pipeline.plan.stac_http import ATTEMPTS  # noqa: PLC0415

        for attempt in range(ATTEMPTS):
            found = _json_object(self._io.request(href, **request))
            if found is not None:
                return found
            if attempt + 1 < ATTEMPTS:
                self._io.pause(attempt)
        raise TransientError(
            f"{redact(self.url)} answered {ATTEMPTS} times with something that is not a JSON object; try again later"
        )

    def _check_collection(self, collection: str) -> None:
        if collection in self._known:
            return
        url = f"{self.url.split('?')[0].rstrip('/')}/collections/{quote(collection, safe='')}"
        try:
            self._get(url)
        except InvalidInputError as err:
            raise InvalidInputError(f"{redact(self.url)} has no collection {collection!r}: {err}") from None
        self._known.add(collection)


def _links(page: Item, rel: str) -> list[Item]:
    links = page.get("links")
    return [k for k in links if isinstance(k, dict) and k.get("rel") == rel] if isinstance(links, list) else []


def _matched(page: Item) -> int:
    """How many items the server says there are; 0 when it does not."""
    context = page.get("context")
    told = (page.get("numberMatched"), context.get("matched") if isinstance(context, dict) else None)
    return max((n for n in told if isinstance(n, int) and not isinstance(n, bool)), default=0)


def _json_object(text: str) -> Item | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _halves(query: _Query) -> tuple[_Query, ...]:
    """The query, cut in the middle of its time; nothing below ``SHORTEST``."""
    if query.end - query.start <= SHORTEST:
        return ()
    middle = query.start + (query.end - query.start) / 2
    return tuple(
        _Query(collection=query.collection, shape=query.shape, start=start, end=end)
        for start, end in ((query.start, middle), (middle, query.end))
    )


def _months(start: datetime, end: datetime) -> Iterator[tuple[datetime, datetime]]:
    """The interval, cut at the first of every month when it is longer than a month."""
    if end - start <= MONTH:
        yield start, end
        return
    first = start
    while first < end:
        year, month = (first.year, first.month + 1) if first.month < 12 else (first.year + 1, 1)
        last = min(end, datetime(year, month, 1, tzinfo=UTC))
        yield first, last
        first = last
