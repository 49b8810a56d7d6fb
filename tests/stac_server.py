"""A STAC API on the loopback interface, with the faults that real ones show; a real server, no patching.

::

    with StacServer(items, faults={"429": 2}) as server:
        catalog = open_catalog(server.url)

Faults: ``{"429": n}`` and ``{"503": n}`` answer the n-th search with that status (429 with ``Retry-After: 0``);
``{"status": code}`` answers every search so; ``{"loop": True}`` repeats the same next link; ``{"stale": True}`` makes
up new next links to the same page; ``{"repeat": True}`` starts each page with the last item of the one before;
``{"broken": n}`` cuts the JSON of the n-th search off; ``{"lose": True}`` forgets the next link of a full page;
``{"get": True}`` pages by GET; ``{"ignore": True}`` returns everything, whatever was asked.
"""

from __future__ import annotations

import json
import threading
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, urlsplit

import shapely


class StacServer:
    def __init__(self, items, *, faults=None, page_cap=1000, collections=("sentinel-2-l2a",), landing=None):
        self.items, self.faults, self.page_cap = list(items), dict(faults or {}), page_cap
        self.collections, self.landing = set(collections), landing
        self.searches = []  # the parameters of every search request, faulty ones included
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                server.answer(self, {k: v[0] for k, v in parse_qs(urlsplit(self.path).query).items()})

            def do_POST(self):
                server.answer(self, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def log_message(self, *args):
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *exc):
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def answer(self, request, asked):
        path = urlsplit(request.path).path
        if path == "/v1":
            return self._send(request, 200, self.landing if self.landing is not None else self._landing())
        if path == "/v1/search":
            return self._search(request, asked)
        name = path.removeprefix("/v1/collections/")
        if name in self.collections:
            return self._send(request, 200, {"type": "Collection", "id": name, "links": []})
        return self._send(request, 404, {"code": "NotFoundError", "description": f"no {path}"})

    def _landing(self):
        return {
            "type": "Catalog",
            "id": "loopback",
            "stac_version": "1.0.0",
            "description": "test",
            "conformsTo": ["https://api.stacspec.org/v1.0.0/core", "https://api.stacspec.org/v1.0.0/item-search"],
            "links": [{"rel": "search", "href": f"{self.url}/search", "method": "POST"}],
        }

    def _search(self, request, asked):
        self.searches.append(asked)
        count = len(self.searches)
        if count == self.faults.get("429"):
            return self._send(request, 429, {"description": "slow down"}, retry_after="0")
        if count == self.faults.get("503"):
            return self._send(request, 503, {"description": "busy"})
        if "status" in self.faults:
            return self._send(request, self.faults["status"], {"description": f"see {self.url}?token=hunter2"})
        page = self._page(asked, request.command)
        return self._send(request, 200, page, cut=count == self.faults.get("broken"))

    def _page(self, asked, method):
        found = self.items if "ignore" in self.faults else [i for i in self.items if _matches(i, asked)]
        at, limit = int(asked.get("token", 0)), min(int(asked.get("limit", 10)), self.page_cap)
        first = at - 1 if at and "repeat" in self.faults else at
        page = {"type": "FeatureCollection", "features": found[first : at + limit], "links": []}
        follow, serial = at + limit, len(self.searches)
        if "loop" in self.faults or "stale" in self.faults:
            follow, page["features"] = 0, found[:limit]
        elif follow >= len(found) or "lose" in self.faults:
            return page
        body = {**asked, "token": str(follow)} | ({"serial": serial} if "stale" in self.faults else {})
        link = {"rel": "next", "href": f"{self.url}/search", "method": "POST", "body": body}
        if method == "GET" or "get" in self.faults:
            flat = {
                k: v if isinstance(v, str) else ",".join(v) if k == "collections" else json.dumps(v)
                for k, v in body.items()
            }
            link = {"rel": "next", "href": link["href"] + "?" + "&".join(f"{k}={quote(v)}" for k, v in flat.items())}
        page["links"].append(link)
        return page

    @staticmethod
    def _send(request, status, answer, *, retry_after=None, cut=False):
        text = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        text = text[: len(text) // 2] if cut else text
        request.send_response(status)
        request.send_header("Content-Type", "application/geo+json")
        request.send_header("Content-Length", str(len(text)))
        if retry_after is not None:
            request.send_header("Retry-After", retry_after)
        request.end_headers()
        request.wfile.write(text)


def _matches(item, asked):
    wanted = asked.get("collections")
    wanted = wanted.split(",") if isinstance(wanted, str) else wanted
    shape = asked.get("intersects")
    shape = json.loads(shape) if isinstance(shape, str) else shape
    start, end = (datetime.fromisoformat(t) for t in asked["datetime"].split("/"))
    return (
        (not wanted or item["collection"] in wanted)
        and start <= datetime.fromisoformat(item["properties"]["datetime"]) <= end  # closed, as the standard says
        and (not shape or shapely.geometry.shape(item["geometry"]).intersects(shapely.geometry.shape(shape)))
    )
