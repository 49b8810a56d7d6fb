"""What both loopback servers share: keep-alive HTTP, request counts, and faults that hit a request by its number.

Everything is deterministic: a fault counts the requests it looks at and hits some of them by number, so the same
sequence of requests meets the same faults, and a repeated request gets another number.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import sys
import threading
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

MAX_STALL_S = 60.0
NO_LINGER = struct.pack("ii", 1, 0)  # closing a socket then sends RST instead of FIN
BUSY = (
    b'<?xml version="1.0" encoding="utf-8"?><Error><Code>ServerBusy</Code>'
    b"<Message>Egress is over the account limit.</Message></Error>"
)
"""What Azure Blob Storage says with its 503."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fault:
    """One way to fail, and the requests it hits.

    Which requests are looked at: those whose path contains ``path`` and, with ``ranges``, have a Range header. Which of
    them are hit: the first ``first``, the ``nth`` (from 1), every ``every``-th, those that arrive while more than
    ``in_flight_over`` requests (this one included) are in hand; all of them when none of the four is given.
    ``per_path`` counts each path for itself: ``Fault(nth=1, per_path=True)`` fails the first request of every file.

    What happens: ``status`` answers ``code`` (``retry_after`` becomes the header of that name); ``truncate`` promises
    the whole body, sends ``after_bytes`` of it (default: half) and closes; ``reset`` breaks the connection with RST
    (default: without any answer; else after so many bytes of the body); ``stall`` pauses ``seconds`` and then goes on
    (default: before the answer; else after so many bytes of the body); ``redirect`` answers 302 to ``to``.
    """

    kind: Literal["status", "truncate", "reset", "stall", "redirect"] = "status"
    code: int = 503
    retry_after: str | None = None
    after_bytes: int | None = None
    seconds: float = 1.0
    to: str = ""
    path: str = ""
    ranges: bool = False
    first: int | None = None
    nth: int | None = None
    every: int | None = None
    in_flight_over: int | None = None
    per_path: bool = False

    def __post_init__(self) -> None:  # eq=False: two equal faults count apart
        if not 0 <= self.seconds <= MAX_STALL_S:
            raise ValueError(f"a stall of {self.seconds} s: must be between 0 and {MAX_STALL_S}")

    def hits(self, number: int, *, in_flight: int) -> bool:
        """Whether request ``number`` (from 1) of those looked at is hit."""
        when = (
            self.first is not None and number <= self.first,
            self.nth is not None and number == self.nth,
            self.every is not None and number % self.every == 0,
            self.in_flight_over is not None and in_flight > self.in_flight_over,
        )
        return any(when) or (self.first, self.nth, self.every, self.in_flight_over) == (None,) * 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One answered request; ``status`` 0: the connection was reset without an answer."""

    method: str
    target: str
    range: str
    status: int
    bytes: int


@dataclass(slots=True)
class Reply:
    """An answer before any fault: status, headers, body."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class FaultyServer(ThreadingHTTPServer):
    """HTTP/1.1 on 127.0.0.1, one thread per connection. Change ``http_faults`` and ``delay_s`` while it runs.

    A context manager: it serves from ``with`` on, and closes its connections at the end.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        handler: type[FaultyHandler],
        *,
        port: int = 0,
        http_faults: Sequence[Fault] = (),
        delay_s: float = 0.0,
    ) -> None:
        super().__init__(("127.0.0.1", port), handler)
        self.lock = threading.Lock()
        self.http_faults = list(http_faults)
        self.delay_s = delay_s
        self.log: list[Entry] = []
        """Every request, in the order of the answers."""
        self.connections = 0
        """Connections accepted so far."""
        self.peak_in_flight = 0
        self.stopping = threading.Event()
        self.open: set[socket.socket] = set()
        self._seen: Counter[tuple[Fault, str]] = Counter()
        self._in_flight = 0
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stopping.set()
        self.shutdown()
        self.server_close()
        self._thread.join()
        with self.lock:
            for connection in self.open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def counts(self) -> dict[str, int]:
        """Requests answered so far, faulty ones included, and the bytes of their bodies."""
        with self.lock:
            return {"requests": len(self.log), "bytes": sum(e.bytes for e in self.log)}

    def enter(self, target: str, *, ranged: bool) -> Fault | None:
        """A request begins; returns the fault that it meets."""
        path = urlsplit(target).path
        with self.lock:
            self._in_flight += 1
            self.peak_in_flight = max(self.peak_in_flight, self._in_flight)
            hit = None
            for fault in self.http_faults:
                if fault.path not in path or (fault.ranges and not ranged):
                    continue
                key = (fault, path if fault.per_path else "")
                self._seen[key] += 1
                if hit is None and fault.hits(self._seen[key], in_flight=self._in_flight):
                    hit = fault
            return hit

    def leave(self) -> None:
        """The request is answered."""
        with self.lock:
            self._in_flight -= 1

    def note(self, entry: Entry) -> None:
        """Add to the log."""
        with self.lock:
            self.log.append(entry)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is nobody's fault; anything else is shown."""
        if not isinstance(sys.exception(), (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


class FaultyHandler(BaseHTTPRequestHandler, ABC):
    """A request with the server's faults; a server's own handler says what the answer would be (``reply``)."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # a header and a body sent apart would wait for the client's delayed ACK (40 ms)
    server: FaultyServer

    def setup(self) -> None:
        super().setup()
        with self.server.lock:
            self.server.open.add(self.connection)
            self.server.connections += 1

    def finish(self) -> None:
        with self.server.lock:
            self.server.open.discard(self.connection)
        super().finish()

    @abstractmethod
    def reply(self, body: bytes) -> Reply:
        """The answer to this request (``self.path``, ``self.command``, ``self.headers``), whose body is given."""

    def arrived(self) -> None:
        """Called when a request arrives, before any fault or delay."""

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))  # before any answer: the next one follows
        self.arrived()
        fault = self.server.enter(self.path, ranged="Range" in self.headers)
        try:
            self.server.stopping.wait(self.server.delay_s)
            self._answer(fault, body)
        finally:
            self.server.leave()

    do_HEAD = do_POST = do_GET  # noqa: N815

    def _answer(self, fault: Fault | None, asked: bytes) -> None:
        kind = fault.kind if fault is not None else ""
        if fault is None:
            return self._send(self.reply(asked))
        if kind == "status":
            headers = {"Retry-After": fault.retry_after} if fault.retry_after is not None else {}
            return self._send(Reply(fault.code, BUSY if fault.code == 503 else b"fault", headers))
        if kind == "redirect":
            return self._send(Reply(302, b"", {"Location": fault.to}))
        if kind == "reset" and fault.after_bytes is None:
            self._note(0, 0)
            return self._reset()
        if kind == "stall" and fault.after_bytes is None:
            self.server.stopping.wait(fault.seconds)
            return self._send(self.reply(asked))
        return self._send_in_parts(self.reply(asked), fault)

    def _send(self, reply: Reply) -> None:
        body = b"" if self.command == "HEAD" else reply.body
        self._note(reply.status, len(body))  # before sending: a client that has its answer finds it in the log
        self._head(reply)
        self.wfile.write(body)

    def _send_in_parts(self, reply: Reply, fault: Fault) -> None:
        """The body's beginning, then what the fault does."""
        half = len(reply.body) // 2 if fault.after_bytes is None else min(fault.after_bytes, len(reply.body))
        sent = len(reply.body) if fault.kind == "stall" else half
        self._note(reply.status, 0 if self.command == "HEAD" else sent)
        self._head(reply)
        if self.command == "HEAD":
            return
        self.wfile.write(reply.body[:half])
        if fault.kind == "stall":
            self.server.stopping.wait(fault.seconds)
            self.wfile.write(reply.body[half:])
        elif fault.kind == "reset":
            self._reset()
        else:
            self.close_connection = True

    def _head(self, reply: Reply) -> None:
        self.send_response(reply.status)
        for key, value in ({"Content-Length": str(len(reply.body))} | reply.headers).items():
            self.send_header(key, value)
        self.end_headers()

    def _reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
        with self.server.lock:
            self.server.open.discard(self.connection)
        os.close(self.connection.detach())

    def _note(self, status: int, size: int) -> None:
        entry = Entry(
            method=self.command, target=self.path, range=self.headers.get("Range", ""), status=status, bytes=size
        )
        self.server.note(entry)

    def log_message(self, *args: object) -> None:
        pass


def json_reply(value: object, *, status: int = HTTPStatus.OK, kind: str = "application/json") -> Reply:
    """A JSON document; text is taken as it is."""
    text = value.encode() if isinstance(value, str) else json.dumps(value).encode()
    return Reply(int(status), text, {"Content-Type": kind})
