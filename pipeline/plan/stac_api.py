"""A STAC API over the network, never trusted: pages may loop, repeat items, break off or come back as something else.

Asked month by month, one request after the other (an archive has banned a user for parallel searches). No message holds
a query string or a password.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

import shapely
from urllib3.util.retry import Retry

from pipeline.errors import InvalidInputError, TransientError
from pipeline.plan.hrefs import redact
from pipeline.types import canonical_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shapely.geometry.base import BaseGeometry

    Item = dict[str, Any]

PAGE_ITEMS = 250
"""Items asked per page: the Planetary Computer caps at 1000 and answers large pages slowly."""
CAPS = frozenset([100, 250, 500, 1000, 2000, 5000, 10_000])
"""Answers of exactly so many items look cut: the time is split and asked again."""
MAX_VERTICES = 500
"""Vertices of a query geometry: larger ones time out (Planetary Computer issue 442)."""
STALE_PAGES = 3
"""Pages in a row without a new item after which paging counts as a loop."""
MAX_RETRY_AFTER_S = 120.0
TIMEOUT_S = 60


def query_shape(part: BaseGeometry) -> BaseGeometry:
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
        self._io = StacApiIO(timeout=TIMEOUT_S, max_retries=retries)
        self._io.session.hooks["response"].append(self._refuse_redirect)
        landing = self._get(url, at_open=True)
        links = [k for k in landing.get("links") or () if isinstance(k, dict) and k.get("rel") == "search"]
        if "id" not in landing or not (links or landing.get("conformsTo")):
            raise InvalidInputError(
                f"{redact(url)} is not a STAC API with item search (no link rel=search, no conformsTo); "
                "download a static catalogue and give its path"
            )
        href = str(links[0].get("href")) if links else "search"
        self._search_url = self._own(urljoin(url.split("?", maxsplit=1)[0].rstrip("/") + "/", href))

    def base_of(self, item: dict[str, Any]) -> str | None:  # noqa: ARG002
        """The API's own address: remote, so its items may name no local file."""
        return self.url

    def search(
        self, *, collection: str, geometry: BaseGeometry, start: datetime, end: datetime
    ) -> Iterator[dict[str, Any]]:
        """Items that touch the geometry, page by page; see ``Catalog``."""
        empty, shape = True, query_shape(geometry)
        for first, last in _months(start, end):
            for item in self._slice(collection=collection, shape=shape, start=first, end=last):
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
        count, last, matched = 0, 0, 0
        for page in self._pages(search):
            last, matched = len(page["features"]), max(matched, _matched(page))
            count += last
            yield from page["features"]
        # A full last page without a next link, fewer items than the server counts, or a round number of them is how
        # servers that lose pages look: ask for the halves as well. What comes twice is told apart by its id.
        cut = last == self._page_items or count in CAPS or matched > count
        if cut and (end - start).total_seconds() > 2:
            middle = start + (end - start) / 2
            yield from self._slice(collection=collection, shape=shape, start=start, end=middle)
            yield from self._slice(collection=collection, shape=shape, start=middle, end=end)

    def _pages(self, search: Any) -> Iterator[Item]:
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
            yield page
            links = (k for k in page.get("links") or () if isinstance(k, dict))
            link = next((k for k in links if k.get("rel") == "next" and k.get("href")), None)
            if link is None:
                return
            key = canonical_json([link.get(k) for k in ("href", "method", "body")])
            if key in asked or stale >= STALE_PAGES:
                raise InvalidInputError(
                    f"paging of {redact(self.url)} runs in a circle after {len(asked) + 1} pages ({len(ids)} items): "
                    "report it to the provider, or use a file catalogue"
                )
            asked.add(key)
            self._own(urljoin(search.url, str(link["href"])))
            page = self._get(Link.from_dict(link), parameters=parameters)

    def _own(self, url: str) -> str:
        """The URL, if it is of the API's own host: a link elsewhere would take the search, and us, where it likes.

        Raises:
            InvalidInputError: Another host or scheme.
        """
        here, there = urlsplit(self.url), urlsplit(url)
        safe = there.scheme == here.scheme or (here.scheme, there.scheme) == ("http", "https")
        if there.hostname != here.hostname or not safe:
            raise InvalidInputError(
                f"{redact(self.url)} sends the search on to {there.scheme}://{there.hostname}: refused; if that is its "
                "new address, use it as the catalogue"
            )
        return url

    def _refuse_redirect(self, response: Any, **_: Any) -> None:
        """Called for every answer, before a redirect is followed."""
        if response.is_redirect:
            self._own(urljoin(response.url, response.headers["Location"]))

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


def _matched(page: Item) -> int:
    """How many items the server says there are; 0 when it does not."""
    context = page.get("context")
    told = (page.get("numberMatched"), context.get("matched") if isinstance(context, dict) else None)
    return max((n for n in told if isinstance(n, int) and not isinstance(n, bool)), default=0)


def _months(start: datetime, end: datetime) -> Iterator[tuple[datetime, datetime]]:
    """The interval, cut at the first of every month when it is longer: archives lose pages of large answers."""
    if end - start <= timedelta(days=31):
        yield start, end
        return
    first = start
    while first < end:
        year, month = (first.year, first.month + 1) if first.month < 12 else (first.year + 1, 1)
        last = min(end, datetime(year, month, 1, tzinfo=UTC))
        yield first, last
        first = last


def _api_error(err: Exception, *, name: str) -> InvalidInputError | TransientError:
    status = getattr(err, "status_code", None)
    text = redact(" ".join(str(err).split()))[:300]
    if status is not None and 400 <= status < 500 and status not in {408, 425, 429}:
        return InvalidInputError(f"STAC API {name} refused the request with status {status}: {text}")
    return TransientError(
        f"STAC API {name} does not answer (status {status or 'none'}), retries included: {text}; is the address right?"
    )
