"""Recorded answers of a real STAC API, served again as they were; only the API's own links lead to this machine.

::

    with ReplayServer(pages, landing=landing) as server:
        catalog = open_catalog(server.url)
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from tests.servers.base import json_reply
from tests.servers.stac import Fault, StacServer

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tests.servers.base import Reply

__all__ = ["ReplayServer"]

EMPTY: dict[str, Any] = {"type": "FeatureCollection", "features": [], "links": []}


class ReplayServer(StacServer):
    """Pages of one recorded search, in their order.

    A new search whose time holds the first recorded item gets the first page, any other an empty one; a request that
    equals the recorded next link of a page gets the page after it, an empty one after the last. A request that follows
    a link and changed something on the way is answered 400, as a server would that keeps its state in the link.

    Args:
        pages: Answers to the searches.
        landing: Recorded landing page; None: that of ``StacServer``.
        collections: Ids of the collections that exist.
        http_faults: See ``Fault``.
    """

    def __init__(
        self,
        pages: Sequence[dict[str, Any]],
        *,
        landing: dict[str, Any] | None = None,
        collections: Iterable[str] = ("sentinel-2-l2a",),
        http_faults: Sequence[Fault] = (),
    ) -> None:
        super().__init__((), collections=collections, http_faults=http_faults)
        self.pages = [page | {"links": self._ours(page["links"])} for page in pages]
        if landing is not None:
            self.landing = landing | {"links": self._ours(landing["links"])}

    def _ours(self, links: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The links with the address of the API, which the one with rel=root tells, replaced."""
        root = next((str(link["href"]) for link in links if link["rel"] == "root"), "").rstrip("/")
        return [link | {"href": str(link["href"]).replace(root, self.url, 1)} for link in links] if root else links

    def _search(self, asked: dict[str, Any], method: str) -> Reply:
        following = [link["body"] for page in self.pages for link in page["links"] if link["rel"] == "next"]
        if asked not in following and {"token", "next"} & asked.keys():
            return json_reply({"description": "no recorded link asks for this"}, status=400)
        return super()._search(asked, method)

    def _page(self, asked: dict[str, Any], method: str) -> dict[str, Any]:
        for page, after in zip(self.pages, [*self.pages[1:], EMPTY], strict=True):
            if any(link["rel"] == "next" and link["body"] == asked for link in page["links"]):
                return after
        start, _, end = asked["datetime"].partition("/")
        time = datetime.fromisoformat(self.pages[0]["features"][0]["properties"]["datetime"])
        return self.pages[0] if datetime.fromisoformat(start) <= time <= datetime.fromisoformat(end) else EMPTY
