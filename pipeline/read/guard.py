"""Watches the connections of GDAL: a SOCKS5 proxy of our own that dials only where the rules allow.

GDAL follows redirects by itself and offers no way to limit or see them (3.10: no such option; ``strings libgdal``). A
request beforehand would not help against a server that redirects only the second time, nor against a name whose
address changes in between. So GDAL is given a proxy on loopback (``GDAL_HTTP_PROXY=socks5h://...``: names are resolved
by the proxy), which looks at every connection, the first and those after redirects: it checks the host, resolves it,
checks every address and connects to exactly the address that it checked. TLS goes end to end through it.

It runs as a process of its own: rasterio holds Python's lock in some calls that read the network (lists of overviews),
and a proxy in the same interpreter would then wait for its own client (measured: 30 s, after which GDAL goes on without
the overviews, silently). It ends with this process.

It is not used where it is not needed (``Allowed.needs_guard``): object storage of the large providers cannot redirect
to a customer's choice. What it costs elsewhere: the bytes pass through one process more.

What remains: where the environment names a proxy (http_proxy, https_proxy, all_proxy, GDAL_HTTP_PROXY), that proxy is
used and this one is not: it must itself refuse private addresses. Hosts in NO_PROXY are dialled by curl directly,
also after a redirect. Both are said once in the log. Another user of this machine may use the proxy to reach what the
rules allow.
"""

from __future__ import annotations

import atexit
import ipaddress
import json
import logging
import os
import select
import socket
import struct
import subprocess
import sys
import threading
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pipeline.errors import TransientError
from pipeline.read.allow import Allowed, parse_address, public, resolve

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

PROXY_VARIABLES = ("http_proxy", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "GDAL_HTTP_PROXY")
"""What curl and GDAL look at; curl ignores HTTP_PROXY in capitals."""
DIAL_S = 10.0
HELLO_S = 10.0
CHUNK_BYTES = 1 << 18
# RFC 1928
GRANTED, NOT_ALLOWED, UNREACHABLE, WRONG = 0, 2, 4, 7
V4, NAME, V6 = 1, 3, 4


class _NotAllowedError(Exception):
    """The rules forbid this connection."""


class Guard:
    """One proxy for one set of rules, in threads of this process; serves until the process ends."""

    def __init__(self, allowed: Allowed) -> None:
        self._allowed = allowed
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        threading.Thread(target=self._accept, daemon=True, name="earthpress-guard").start()

    @property
    def url(self) -> str:
        """What GDAL_HTTP_PROXY is set to."""
        return f"socks5h://127.0.0.1:{self._listener.getsockname()[1]}"

    @property
    def alive(self) -> bool:
        """Whether it still serves."""
        return self._listener.fileno() >= 0

    def close(self) -> None:
        """Take no more connections (tests)."""
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True, name="earthpress-guard").start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            try:
                client.settimeout(HELLO_S)
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                target = _greet(client)
                if target is None:
                    _reply(client, WRONG)
                elif server := self._answer(client, *target):
                    with server:
                        _pump(client, server)
            except OSError as err:  # either side went away; curl sees the end of its connection
                log.debug("connection ended: %s", err)

    def _answer(self, client: socket.socket, host: str, port: int) -> socket.socket | None:
        try:
            server = self._dial(host, port)
        except _NotAllowedError as err:
            log.warning("connection refused: %s", err)
            _reply(client, NOT_ALLOWED)
            return None
        except OSError:
            _reply(client, UNREACHABLE)
            return None
        _reply(client, GRANTED)
        return server

    def _dial(self, host: str, port: int) -> socket.socket:
        if why := self._allowed.why_not(host):
            raise _NotAllowedError(why)
        address = parse_address(host)
        found = resolve(host) if address is None else (address,)
        for one in found:
            if not self._allowed.private and not public(one):
                raise _NotAllowedError(f"host {host} stands for {one}, which is not a public address")
        failed = OSError(f"{host} does not resolve")
        for one in found:
            try:
                return dial(str(one), port)
            except OSError as err:
                failed = err
        raise failed


class GuardProcess:
    """The same as a process of its own, which ends when its standard input does: with this process.

    Raises:
        TransientError: It does not start.
    """

    def __init__(self, allowed: Allowed) -> None:
        from pathlib import Path  # noqa: PLC0415

        root = str(Path(__file__).resolve().parents[2])
        code = f"import sys; sys.path.insert(0, {root!r}); from pipeline.read.guard import main; main()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        assert self._process.stdin is not None  # noqa: S101
        assert self._process.stdout is not None  # noqa: S101
        self._process.stdin.write(json.dumps(asdict(allowed)).encode() + b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line.strip().isdigit():
            raise TransientError("the watch over connections (pipeline.read.guard) did not start: see standard error")
        self._port = int(line)

    @property
    def url(self) -> str:
        """What GDAL_HTTP_PROXY is set to."""
        return f"socks5h://127.0.0.1:{self._port}"

    @property
    def alive(self) -> bool:
        """Whether it still serves."""
        return self._process.poll() is None

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def main() -> None:
    """Serve the rules on the first line of standard input until it ends; the first line of output is the port."""
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr)
    rules = json.loads(sys.stdin.readline())
    listed: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in rules.items()}
    watch = Guard(Allowed(**listed))
    sys.stdout.write(f"{watch.url.rsplit(':', 1)[1]}\n")
    sys.stdout.flush()
    sys.stdin.read()


def dial(address: str, port: int) -> socket.socket:
    """Connect to an address that was checked."""
    server = socket.create_connection((address, port), timeout=DIAL_S)
    server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return server


def proxy_for(allowed: Allowed) -> str | None:
    """The proxy that enforces the rules in this process; None: the environment has its own (said in the log)."""
    if any(os.environ.get(name) for name in PROXY_VARIABLES):
        _warn_once("the environment's proxy is used: it must refuse private addresses itself, also after redirects")
        return None
    if os.environ.get("no_proxy") or os.environ.get("NO_PROXY"):
        _warn_once("NO_PROXY is set: the hosts it names are reached unchecked, also after redirects")
    with _LOCK:
        key = (os.getpid(), allowed)  # a forked process starts its own
        if key in _GUARDS and not _GUARDS[key].alive:
            _GUARDS.pop(key).close()
        if key not in _GUARDS:
            _GUARDS[key] = _start(allowed)
            atexit.register(_GUARDS[key].close)
        return _GUARDS[key].url


_GUARDS: dict[tuple[int, Allowed], Guard | GuardProcess] = {}
_start: Callable[[Allowed], Guard | GuardProcess] = GuardProcess
"""Tests that change what a name stands for keep the guard in their own process."""
_LOCK = threading.Lock()
_SAID: set[str] = set()


def _warn_once(text: str) -> None:
    if text not in _SAID:
        _SAID.add(text)
        log.warning(text)


def _greet(client: socket.socket) -> tuple[str, int] | None:
    """Host (lower case) and port that the client asks for; None: it asks for something else than a connection."""
    _, methods = _take(client, 2)
    _take(client, methods)
    client.sendall(b"\x05\x00")  # no authentication
    version, command, _, kind = _take(client, 4)
    if kind == NAME:
        host = _take(client, _take(client, 1)[0]).decode("ascii", "replace").rstrip(".").lower()
    elif kind in (V4, V6):
        host = str(ipaddress.ip_address(_take(client, 4 if kind == V4 else 16)))
    else:
        return None
    (port,) = struct.unpack("!H", _take(client, 2))
    return (host, port) if (version, command) == (5, 1) else None


def _reply(client: socket.socket, code: int) -> None:
    client.sendall(bytes((5, code, 0, V4, 0, 0, 0, 0, 0, 0)))


def _take(client: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        part = client.recv(count - len(found))
        if not part:
            raise ConnectionResetError("the client left during the greeting")
        found += part
    return found


def _pump(client: socket.socket, server: socket.socket) -> None:
    """Copy both ways until one side ends; GDAL's own time limits end a connection that stalls."""
    client.settimeout(None)
    server.settimeout(None)
    other = {client.fileno(): (client, server), server.fileno(): (server, client)}
    poll = select.poll()
    for number in other:
        poll.register(number, select.POLLIN)
    buffer = memoryview(bytearray(CHUNK_BYTES))
    while True:
        for number, _ in poll.poll():
            source, target = other[number]
            count = source.recv_into(buffer)
            if not count:
                return
            target.sendall(buffer[:count])
