"""A loopback file server with Range requests, faults and signatures; see tests/servers/README.md. Stdlib only.

::

    with serving(folder, http_faults=[Fault(code=503, every=20, ranges=True)]) as server:
        read(server.url("B02.tif"))

As a process of its own, which prints its port: ``python -m tests.servers.ranges FOLDER --port 0 --delay-ms 30``.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote, urlsplit

from tests.servers.base import Fault, FaultyHandler, FaultyServer, Reply, json_reply
from tests.servers.sas import DENIED, Sas

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Fault", "RangeServer", "Sas", "serving"]

RANGE = re.compile(r"bytes=(\d*)-(\d*)")


class RangeServer(FaultyServer):
    """Serves the files below ``folder``; change the fault fields while it runs.

    Args:
        folder: Root of the served tree.
        port: 0 takes a free one.
        http_faults: See ``Fault``.
        delay_s: Pause before every answer.
        sas: Signatures that requests need; None: none.
    """

    def __init__(
        self,
        folder: Path,
        *,
        port: int = 0,
        http_faults: Sequence[Fault] = (),
        delay_s: float = 0.0,
        sas: Sas | None = None,
    ) -> None:
        super().__init__(_Handler, port=port, http_faults=http_faults, delay_s=delay_s)
        self.folder = Path(folder).resolve()
        self.sas = sas
        self.requests: list[tuple[str, str]] = []
        """(path with query, range header) of every request for a file, in order of arrival."""
        self.fail_first: Counter[str] = Counter()
        """Answers 503 this many times, by path."""
        self.tokens: set[str] | None = None
        """Accepted values of ?sig=; None: no token is needed."""

    def url(self, name: str) -> str:
        """Address of a file by its name relative to the folder."""
        return f"http://127.0.0.1:{self.server_port}/{name}"

    @property
    def sas_url(self) -> str:
        """What PC_SDK_SAS_URL is set to, so that ``planetary_computer`` asks this server for tokens."""
        return self.url("token")

    def status(self, target: str) -> int:
        """200, 403, 404, 503: before anything is read."""
        parts = urlsplit(target)
        with self.lock:
            if self.fail_first[parts.path] > 0:
                self.fail_first[parts.path] -= 1
                return 503
        if self.tokens is not None and parse_qs(parts.query).get("sig", [""])[0] not in self.tokens:
            return 403
        if self.sas is not None and not self.sas.accepts(target):
            return 403
        return 200 if self.file(target) is not None else 404

    def file(self, target: str) -> Path | None:
        """The file that a request means, never one outside the folder."""
        path = (self.folder / unquote(urlsplit(target).path).lstrip("/")).resolve()
        return path if path.is_relative_to(self.folder) and path.is_file() else None


class _Handler(FaultyHandler):
    server: RangeServer

    def do_GET(self) -> None:  # noqa: N802
        if urlsplit(self.path).path == "/_counts":  # neither delayed nor counted nor hit by a fault
            reply = json_reply(self.server.counts() | {"peak_in_flight": self.server.peak_in_flight})
            self._head(reply)
            self.wfile.write(reply.body)
            return
        super().do_GET()

    do_HEAD = do_POST = do_GET  # noqa: N815

    def arrived(self) -> None:
        if not self._token_path():
            with self.server.lock:
                self.server.requests.append((self.path, self.headers.get("Range", "")))

    def _token_path(self) -> str:
        path = urlsplit(self.path).path
        return path.removeprefix("/token/") if path.startswith("/token/") and self.server.sas is not None else ""

    def reply(self, body: bytes) -> Reply:
        if place := self._token_path():
            assert self.server.sas is not None
            return json_reply(self.server.sas.token(place))
        status = self.server.status(self.path)
        path = self.server.file(self.path)
        if status != 200 or path is None:
            return Reply(status, DENIED if status == 403 else b"")
        return _part(path, self.headers.get("Range", ""), head=self.command == "HEAD")


def _part(path: Path, wanted: str, *, head: bool) -> Reply:
    """The range asked for; the whole file for anything but one range, as S3 and Azure do."""
    size = path.stat().st_size
    span = _span(wanted, size)
    headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
    if span is None:
        headers["Content-Length"] = str(size)
        return Reply(200, b"" if head else path.read_bytes(), headers)
    start, stop = span
    if start >= stop:
        return Reply(416, b"", headers | {"Content-Range": f"bytes */{size}"})
    headers |= {"Content-Range": f"bytes {start}-{stop - 1}/{size}", "Content-Length": str(stop - start)}
    if head:
        return Reply(206, b"", headers)
    with path.open("rb") as file:
        file.seek(start)
        return Reply(206, file.read(stop - start), headers)


def _span(wanted: str, size: int) -> tuple[int, int] | None:
    """Half-open byte span of a Range header; None: there is none to obey."""
    match = RANGE.fullmatch(wanted)
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if not first:  # the last so many bytes
        return max(size - int(last), 0), size
    return int(first), min(int(last) + 1, size) if last else size


@contextmanager
def serving(
    folder: Path,
    *,
    http_faults: Sequence[Fault] = (),
    delay_s: float = 0.0,
    sas: Sas | None = None,
) -> Iterator[RangeServer]:
    """Run a server over ``folder`` in a thread; see ``RangeServer``."""
    with RangeServer(folder, http_faults=http_faults, delay_s=delay_s, sas=sas) as server:
        yield server


def main() -> None:
    """Serve a folder until SIGTERM or Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m tests.servers.ranges", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, default=0, help="0: a free one, printed on the first line")
    parser.add_argument("--delay-ms", type=float, default=0.0, help="pause before every answer")
    parser.add_argument("--fail-every", type=int, help="503 for every so many-th range request")
    parser.add_argument("--max-in-flight", type=int, help="503 while more requests than this are in hand")
    parser.add_argument(
        "--sas-life-s", type=float, help="files need tokens of this life, from /token/ACCOUNT/CONTAINER"
    )
    asked = parser.parse_args()
    if not asked.folder.is_dir():
        parser.error(f"{asked.folder} is not a folder")
    faults = []
    if asked.fail_every is not None:
        faults.append(Fault(every=asked.fail_every, ranges=True))
    if asked.max_in_flight is not None:
        faults.append(Fault(in_flight_over=asked.max_in_flight))
    sas = Sas(life_s=asked.sas_life_s) if asked.sas_life_s is not None else None
    server = RangeServer(asked.folder, port=asked.port, http_faults=faults, delay_s=asked.delay_ms / 1000.0, sas=sas)
    stop = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, stop)  # before any thread starts: they inherit it
    with server:
        print(server.server_port, flush=True)
        signal.sigwait(stop)
        print(json.dumps(server.counts()), flush=True)


if __name__ == "__main__":
    main()
