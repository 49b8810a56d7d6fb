"""Short-lived tokens for URLs: when one is fetched, how long it is used, when it is dropped.

Assets keep their unsigned hrefs everywhere; a URL is signed when it is opened. All files of a container share one token
of this process, because GDAL's cache of headers keys on the whole URL.

``planetary_computer.sign`` is not used: its session has no time limit, it renews a token only in its last minute (a
tile's reads take longer), and 32 threads with an empty cache make 32 requests. The request itself is one GET; address
and subscription key come from ``planetary_computer.settings`` (PC_SDK_SAS_URL, PC_SDK_SUBSCRIPTION_KEY, settings.env).
"""

from __future__ import annotations

import logging
import math
import threading
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import parse_qs, urlsplit

from pipeline.errors import TransientError
from pipeline.read.allow import redact
from pipeline.read.gdal import TRAFFIC

if TYPE_CHECKING:
    from collections.abc import Mapping

log = logging.getLogger(__name__)

BLOB_HOSTS = (".blob.core.windows.net",)
OPEN_HOSTS = ("ai4edatasetspublicassets.blob.core.windows.net",)  # planetary_computer.sas: public, takes no token
RENEW_S = 600.0
"""A token with less than this left is renewed: no read of a tile takes longer. Tokens live 45 minutes or more."""
TIMEOUT_S = (10.0, 30.0)  # connect, read
TRIES = 6
AGAIN_S = 60.0
"""After an early renewal that failed, the next is tried so much later: reads must not wait for it."""
BACKOFF_S = 0.8  # as planetary_computer
MAX_WAIT_S = 60.0
BUSY = (429, 500, 502, 503, 504)


class Signer(Protocol):
    """Adds a short-lived token to a URL."""

    def sign(self, href: str) -> str:
        """The signed URL; called at open, under one lock per container."""

    def forget(self, href: str) -> None:
        """Drop the cached token of ``href``'s container, so that the next ``sign`` fetches a fresh one."""


def signed(signer: Signer, href: str, *, refused: str = "") -> str:
    """Sign ``href``; a token that the archive refused (URL ``refused``) is replaced, once for all threads.

    Raises:
        TransientError: The token service does not answer.
    """
    key, arrived_s = container_of(href), time.monotonic()
    with _LOCKS(key):
        failed_s, why = _FAILED.get(key, (-math.inf, ""))
        if failed_s > arrived_s:  # while this thread waited: it would only wait as long again, one after the other
            raise TransientError(why)
        try:
            url = signer.sign(href)
            if refused and url == refused:
                signer.forget(href)
                url = signer.sign(href)
        except TransientError as err:
            _FAILED[key] = time.monotonic(), str(err)
            raise
        return url


@dataclass(frozen=True, slots=True)
class _Token:
    query: str
    expires_s: float  # seconds since the epoch
    fetched_s: float
    again_s: float = 0.0  # not renewed before

    def due_s(self, early_s: float) -> float:
        """When to renew it: ``early_s`` before it ends, but not in the first half of its life."""
        due_s = max(self.expires_s - early_s, (self.fetched_s + self.expires_s) / 2)
        return max(due_s, min(self.again_s, self.expires_s))

    def __repr__(self) -> str:
        return "_Token(...)"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanetaryComputer:
    """Signs blobs of the Planetary Computer; one token per container and process.

    Attributes:
        hosts: Hosts whose URLs are signed; ``.example.org``: every host below. Others come back unchanged.
        renew_s: Remaining life below which a token is renewed; one that lives shorter than twice that, at half of it.
    """

    hosts: tuple[str, ...] = BLOB_HOSTS
    renew_s: float = RENEW_S

    def sign(self, href: str) -> str:
        """Sign ``href``; hosts that need no token, and URLs that have one, come back unchanged.

        Raises:
            TransientError: The token service does not answer, or refuses.
        """
        if not self._mine(href):
            return href
        place = self._place(href)
        token = _TOKENS.get(place)
        if token is None or time.time() > token.due_s(self.renew_s):
            token = _TOKENS[place] = self._renewed(place, token)
        parts = urlsplit(href)
        return f"{href}{'&' if parts.query else '?'}{token.query}"

    def forget(self, href: str) -> None:
        """Drop the cached token of the container."""
        if self._mine(href):
            _TOKENS.pop(self._place(href), None)

    def _mine(self, href: str) -> bool:
        parts = urlsplit(href)
        host = (parts.hostname or "").lower()
        if (
            parts.scheme not in ("http", "https")
            or host in OPEN_HOSTS
            or {"st", "se", "sp"} & set(parse_qs(parts.query))
        ):
            return False
        return any(host == h or (h.startswith(".") and host.endswith(h)) for h in self.hosts)

    def _place(self, href: str) -> str:
        from planetary_computer.settings import Settings  # noqa: PLC0415

        host, container = container_of(href)
        return f"{Settings.get().sas_url}/{host.split('.')[0]}/{container}"

    def _renewed(self, place: str, old: _Token | None) -> _Token:
        if old is None or old.expires_s <= time.time():
            return _fetch(place, tries=TRIES)
        try:
            return _fetch(place, tries=1)
        except TransientError as err:
            log.warning("%s; the token at hand still holds", err)
            return replace(old, again_s=time.time() + AGAIN_S)


_TOKENS: dict[str, _Token] = {}


def _fetch(place: str, *, tries: int) -> _Token:
    """One token from the service; waits as it is told to when it is busy.

    Raises:
        TransientError: No usable answer after ``tries``; names account and container, never a key or token.
    """
    import requests  # noqa: PLC0415
    from planetary_computer.settings import Settings  # noqa: PLC0415

    key = Settings.get().subscription_key
    headers = {"Ocp-Apim-Subscription-Key": key} if key else {}
    why = ""
    for attempt in range(tries):
        TRAFFIC.add(tokens=1)
        try:
            answer = requests.get(place, headers=headers, timeout=TIMEOUT_S, allow_redirects=False)
        except requests.RequestException as err:
            why, wait_s = type(err).__name__, BACKOFF_S * 2**attempt
        else:
            if answer.status_code not in BUSY:
                return _token(answer, place)
            why, wait_s = f"HTTP {answer.status_code}", _wait_s(answer.headers, attempt)
        if attempt + 1 < tries:
            time.sleep(min(wait_s, MAX_WAIT_S))
    raise TransientError(f"no token from {redact(place)}: {why} after {tries} attempts; run the same command later")


def _token(answer: Any, place: str) -> _Token:
    if answer.status_code != 200:
        raise TransientError(
            f"no token from {redact(place)}: HTTP {answer.status_code}; is the container one of the Planetary Computer?"
        )
    try:
        found = answer.json()
        expires = datetime.fromisoformat(str(found["msft:expiry"]))
        query = found["token"]
    except (ValueError, KeyError, TypeError):
        query, expires = None, datetime.now(UTC)
    if not isinstance(query, str) or not query or any(c.isspace() or not c.isprintable() for c in query):
        raise TransientError(f"no token from {redact(place)}: the answer holds no token with an expiry")
    if expires.tzinfo is None:
        expires = expires.replace(tzinfo=UTC)
    return _Token(query.lstrip("?"), expires.timestamp(), time.time())


def _wait_s(headers: Mapping[str, str], attempt: int) -> float:
    """Seconds to wait: Retry-After (seconds or a date, RFC 9110), else doubling."""
    text = headers.get("Retry-After", "").strip()
    if text.isdigit():
        return float(text)
    try:
        when = parsedate_to_datetime(text)
    except ValueError:
        return BACKOFF_S * float(2**attempt)
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return max(0.0, when.timestamp() - time.time())


def container_of(href: str) -> tuple[str, str]:
    """Host and container (first part of the path) of a URL."""
    parts = urlsplit(href)
    return parts.netloc.lower(), parts.path.lstrip("/").partition("/")[0]


class _Locks:
    """One lock per key, made on first use; for the whole process, however many ``Access`` there are."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._locks: dict[tuple[str, str], threading.Lock] = {}

    def __call__(self, key: tuple[str, str]) -> threading.Lock:
        with self._guard:
            return self._locks.setdefault(key, threading.Lock())


_LOCKS = _Locks()
_FAILED: dict[tuple[str, str], tuple[float, str]] = {}
"""Last failure by container: when (monotonic) and why; guarded by the container's lock."""
