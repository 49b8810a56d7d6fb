"""A loopback file server with Range requests and faults: 503 for a while, 404, tokens that expire. Stdlib only."""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class RangeServer(ThreadingHTTPServer):
    """Serves ``folder``; change the fault fields while it runs."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.lock = threading.Lock()
        self.requests: list[tuple[str, str]] = []
        """(path with query, range header)."""
        self.fail_first: Counter[str] = Counter()
        """Answers 503 this many times, by path."""
        self.tokens: set[str] | None = None
        """Accepted values of ?sig=; None: no token is needed."""

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"

    def status(self, target: str) -> int:
        parts = urlsplit(target)
        with self.lock:
            if self.fail_first[parts.path] > 0:
                self.fail_first[parts.path] -= 1
                return 503
        if self.tokens is not None and parse_qs(parts.query).get("sig", [""])[0] not in self.tokens:
            return 403
        return 200 if (self.folder / parts.path.lstrip("/")).is_file() else 404


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: RangeServer

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        wanted = self.headers.get("Range", "")
        with self.server.lock:
            self.server.requests.append((self.path, wanted))
        status = self.server.status(self.path)
        data, extra = b"", {}
        if status == 200:
            data = (self.server.folder / urlsplit(self.path).path.lstrip("/")).read_bytes()
            if wanted:
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                start, stop = int(first), min(int(last) + 1 if last else len(data), len(data))
                extra["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
                data, status = data[start:stop], 206
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(data)), "Accept-Ranges": "bytes"} | extra).items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def serving(folder: Path) -> Iterator[RangeServer]:
    """Run a server over ``folder``."""
    server = RangeServer(folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
