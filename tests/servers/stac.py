"""A STAC API on the loopback interface, with the faults that real ones show; see tests/servers/README.md.

::

    with StacServer(items, faults={"429": 2}) as server:
        catalog = open_catalog(server.url)

``faults`` are faults of the API, by the number of the search where there is a number:

* ``{"429": n}`` and ``{"503": n}`` answer the n-th search with that status, 429 with ``Retry-After`` (``{"retry_after":
  "2"}``, default "0"); ``{"status": code}`` answers every search so;
* ``{"loop": True}`` repeats the same next link; ``{"stale": True}`` makes up new next links to the same page;
  ``{"repeat": True}`` starts each page with the last item of the one before; ``{"lose": True}`` forgets the next link
  of a full page; ``{"cap_silently": n}`` returns n items and no next link; ``{"next": url}`` points every next
  link at another address; ``{"get": True}`` pages by GET;
* ``{"broken": n}`` cuts the JSON of the n-th search off; ``{"ignore": True}`` returns everything, whatever was asked;
  ``{"reverse": True}`` returns the items in the other order; ``{"swap_bbox": True}`` reads a bbox over the
  antimeridian as pgstac does, west and east swapped.

``http_faults`` are faults of the connection (tests.servers.base.Fault): resets, stalls, truncated answers, redirects,
throttling. A search that they refuse, redirect or reset never reaches the API and is not in ``searches``.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, urlsplit

import shapely

from tests.servers.base import Fault, FaultyHandler, FaultyServer, Reply, json_reply

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Fault", "StacServer"]

CONFORMS_TO = ["https://api.stacspec.org/v1.0.0/core", "https://api.stacspec.org/v1.0.0/item-search"]


class StacServer(FaultyServer):
    """Serves ``items``; a context manager.

    Args:
        items: STAC items as dictionaries, returned in this order.
        faults: See the module.
        page_cap: Most items of a page, whatever ``limit`` says.
        collections: Ids of the collections that exist.
        landing: Landing page; text is sent as it is. None: a proper one.
        http_faults: See ``Fault``.
        delay_s: Pause before every answer.
    """

    def __init__(
        self,
        items: Iterable[dict[str, Any]],
        *,
        faults: dict[str, Any] | None = None,
        page_cap: int = 1000,
        collections: Iterable[str] = ("sentinel-2-l2a",),
        landing: object = None,
        http_faults: Sequence[Fault] = (),
        delay_s: float = 0.0,
    ) -> None:
        super().__init__(_Handler, http_faults=http_faults, delay_s=delay_s)
        self.items, self.faults, self.page_cap = list(items), dict(faults or {}), page_cap
        self.collections, self.landing = set(collections), landing
        self.searches: list[dict[str, Any]] = []
        """The parameters of every search that reached the API, refused ones included."""
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def answer(self, target: str, method: str, asked: dict[str, Any]) -> Reply:
        """The answer to one request."""
        path = urlsplit(target).path.rstrip("/")
        if path == "/v1":
            return _reply(self.landing if self.landing is not None else self._landing())
        if path == "/v1/search":
            return self._search(asked, method)
        if path == "/v1/collections":
            return _reply({"collections": [_collection(c) for c in sorted(self.collections)], "links": []})
        name = path.removeprefix("/v1/collections/")
        if name in self.collections:
            return _reply(_collection(name))
        return _reply({"code": "NotFoundError", "description": f"no {path}"}, status=404)

    def _landing(self) -> dict[str, Any]:
        return {
            "type": "Catalog",
            "id": "loopback",
            "stac_version": "1.0.0",
            "description": "test",
            "conformsTo": CONFORMS_TO,
            "links": [{"rel": "search", "href": f"{self.url}/search", "method": "POST"}],
        }

    def _search(self, asked: dict[str, Any], method: str) -> Reply:
        with self.lock:
            self.searches.append(asked)
            count = len(self.searches)
        if count == self.faults.get("429"):
            reply = _reply({"description": "slow down"}, status=429)
            reply.headers["Retry-After"] = self.faults.get("retry_after", "0")
            return reply
        if count == self.faults.get("503"):
            return _reply({"description": "busy"}, status=503)
        if "status" in self.faults:
            refusal = {"description": f"see {self.url}?token=hunter2"}
            return _reply(refusal, status=self.faults["status"])
        reply = _reply(self._page(asked, method))
        if count == self.faults.get("broken"):
            reply.body = reply.body[: len(reply.body) // 2]
        return reply

    def _found(self, asked: dict[str, Any]) -> list[dict[str, Any]]:
        items = self.items[::-1] if "reverse" in self.faults else self.items
        if "ignore" in self.faults:
            return items
        found = [i for i in items if _matches(i, asked, swap="swap_bbox" in self.faults)]
        return found[: self.faults.get("cap_silently")]

    def _page(self, asked: dict[str, Any], method: str) -> dict[str, Any] | str:
        """The answer to a search; tests override it to answer with something else."""
        found = self._found(asked)
        at, limit = int(asked.get("token", 0)), min(int(asked.get("limit", 10)), self.page_cap)
        first = at - 1 if at and "repeat" in self.faults else at
        page: dict[str, Any] = {"type": "FeatureCollection", "features": found[first : at + limit], "links": []}
        follow = at + limit
        if "loop" in self.faults or "stale" in self.faults:
            follow, page["features"] = 0, found[:limit]
        elif follow >= len(found) or "lose" in self.faults:
            return page
        body = {**asked, "token": str(follow)} | ({"serial": len(self.searches)} if "stale" in self.faults else {})
        link = {"rel": "next", "href": self.faults.get("next", f"{self.url}/search"), "method": "POST", "body": body}
        if method == "GET" or "get" in self.faults:
            link = {"rel": "next", "href": f"{link['href']}?{_flat(body)}"}
        page["links"].append(link)
        return page


class _Handler(FaultyHandler):
    server: StacServer

    def reply(self, body: bytes) -> Reply:
        if self.command == "POST":
            asked = json.loads(body)
        else:
            asked = {k: v[0] for k, v in parse_qs(urlsplit(self.path).query).items()}
        return self.server.answer(self.path, self.command, asked)


def _reply(value: object, *, status: int = 200) -> Reply:
    return json_reply(value, status=status, kind="application/geo+json")


def _collection(name: str) -> dict[str, Any]:
    return {"type": "Collection", "id": name, "links": []}


def _flat(body: dict[str, Any]) -> str:
    """The query string of a search by GET."""
    flat = {
        key: value if isinstance(value, str) else ",".join(value) if key == "collections" else json.dumps(value)
        for key, value in body.items()
    }
    return "&".join(f"{key}={quote(value)}" for key, value in flat.items())


def _matches(item: dict[str, Any], asked: dict[str, Any], *, swap: bool) -> bool:
    wanted = _listed(asked.get("collections"))
    ids = _listed(asked.get("ids"))
    return (
        (not wanted or item["collection"] in wanted)
        and (not ids or item["id"] in ids)
        and _in_time(item["properties"], asked.get("datetime"))
        and _in_space(item, asked, swap=swap)
    )


def _listed(value: list[str] | str | None) -> list[str]:
    return value.split(",") if isinstance(value, str) else list(value or ())


def _in_time(properties: dict[str, Any], wanted: str | None) -> bool:
    """Whether the item's time or time span touches the interval, closed at both ends as the standard says."""
    if not wanted:
        return True
    start, _, end = wanted.partition("/")
    low = properties.get("datetime") or properties["start_datetime"]
    high = properties.get("datetime") or properties["end_datetime"]
    after = start in {"", ".."} or _time(start) <= _time(high)
    return after and (end == ".." or _time(low) <= _time(end or start))


def _time(text: str) -> datetime:
    time = datetime.fromisoformat(text)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _in_space(item: dict[str, Any], asked: dict[str, Any], *, swap: bool) -> bool:
    shape, bbox = asked.get("intersects"), asked.get("bbox")
    if bbox is not None:
        west, south, east, north = (float(v) for v in (bbox.split(",") if isinstance(bbox, str) else bbox))
        crossing = west > east
        if crossing and swap:
            west, east, crossing = east, west, False
        area = (
            shapely.union_all([shapely.box(west, south, 180, north), shapely.box(-180, south, east, north)])
            if crossing
            else shapely.box(west, south, east, north)
        )
    elif shape is not None:
        area = shapely.geometry.shape(json.loads(shape) if isinstance(shape, str) else shape)
    else:
        return True
    return bool(shapely.geometry.shape(item["geometry"]).intersects(area))
