"""Opens the raster file of an asset, local or remote: what may be opened, signing, retries, redaction.

Knows files, URLs and GDAL; nothing of lattices, bands or compositing. Every read of the project's archive data goes
through ``Access.read``. Evidence for the settings and the retry rule: measured on loopback servers with 30 ms latency
and injected 503s (216 instead of 650 requests; a failed open stays in GDAL's cache, so a plain retry never recovers).
"""

from __future__ import annotations

import ipaddress
import logging
import os
import re
import socket
import threading
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol, TypeVar
from urllib.parse import unquote, urlsplit

import rasterio
from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioError

from pipeline.errors import DataError, InvalidInputError, TransientError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pipeline.types import Asset

log = logging.getLogger(__name__)

T = TypeVar("T")

GDAL_SETTINGS: tuple[tuple[str, str], ...] = (
    ("GDAL_DISABLE_READDIR_ON_OPEN", "EMPTY_DIR"),  # no sibling probing: carries nearly all of the gain
    ("GDAL_INGESTED_BYTES_AT_OPEN", "32768"),
    ("GDAL_HTTP_MERGE_CONSECUTIVE_RANGES", "YES"),
    ("GDAL_HTTP_MULTIPLEX", "YES"),
    ("GDAL_HTTP_VERSION", "2TLS"),
    ("GDAL_HTTP_MAX_RETRY", "8"),
    ("GDAL_HTTP_RETRY_DELAY", "0.5"),
    ("GDAL_HTTP_CONNECTTIMEOUT", "10"),
    ("GDAL_HTTP_TIMEOUT", "60"),  # GDAL's default is to wait for ever
    ("GDAL_HTTP_LOW_SPEED_TIME", "30"),
    ("GDAL_HTTP_LOW_SPEED_LIMIT", "1000"),
    ("GDAL_CACHEMAX", "256"),  # windows are read once; 5 % of memory is waste
    ("CPL_VSIL_CURL_CACHE_SIZE", "134217728"),
)
ENV_LOGGERS = ("rasterio", "rasterio._base", "rasterio._env", "rasterio._err", "rasterio._io", "rasterio.env")
VSI = {"http": "/vsicurl/", "https": "/vsicurl/", "s3": "/vsis3/", "gs": "/vsigs/", "az": "/vsiaz/", "file": ""}
DRIVERS = {"jp2": "JP2OpenJPEG"}
"""GDAL driver by suffix, GTiff for all others. GDAL must not choose by content: a VRT could name any file here."""
ATTEMPTS = 2
"""Application attempts; GDAL's own HTTP retries happen inside each. The second recovered 7 of 7 in the measurement."""

_SECRET = re.compile(r"\?[^\s'\"<>]*|//[^/\s'\"@]*@")


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Traffic of this process with the archives.

    Attributes:
        requests: HTTP requests.
        bytes: Body bytes received.
        retries: Repeated requests and repeated reads.
        failures: Attempts to read that failed.
    """

    requests: int = 0
    bytes: int = 0
    retries: int = 0
    failures: int = 0


class _Counter:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = Counts()

    def add(self, *, requests: int = 0, retries: int = 0, failures: int = 0) -> None:
        with self._lock:
            now = self._counts
            self._counts = replace(
                now,
                requests=now.requests + requests,
                retries=now.retries + retries,
                failures=now.failures + failures,
            )

    def counts(self) -> Counts:
        with self._lock:
            return self._counts


_COUNTER = _Counter()


class Signer(Protocol):
    """Adds a short-lived token to a URL."""

    def sign(self, href: str) -> str:
        """The signed URL; called at open, under one lock per container."""

    def forget(self, href: str) -> None:
        """Drop the cached token of ``href``'s container, so that the next ``sign`` fetches a fresh one."""


class PlanetaryComputer:
    """Signs with the planetary-computer library, which caches one token per container and refreshes it."""

    def sign(self, href: str) -> str:
        """Sign ``href``; hosts that need no token come back unchanged.

        Raises:
            TransientError: The token service does not answer.
        """
        import planetary_computer  # noqa: PLC0415
        import requests  # noqa: PLC0415

        try:
            return str(planetary_computer.sign(href))
        except requests.RequestException as err:
            raise TransientError(
                f"no token for {redact(href)}: the signing service failed, {type(err).__name__}"
            ) from None

    def forget(self, href: str) -> None:
        """Drop the cached token of the container."""
        from planetary_computer.sas import TOKEN_CACHE  # noqa: PLC0415

        account, container = _container(href)
        for url in list(TOKEN_CACHE):
            if url.endswith("/" + "/".join((account.split(".")[0], container))):
                TOKEN_CACHE.pop(url, None)


class _Locks:
    """One lock per key, made on first use."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._locks: dict[tuple[str, ...], threading.Lock] = {}

    def __call__(self, key: tuple[str, ...]) -> threading.Lock:
        with self._guard:
            return self._locks.setdefault(key, threading.Lock())

    def __reduce__(self) -> tuple[type[_Locks], tuple[()]]:
        return _Locks, ()  # locks stay in their process


@dataclass(frozen=True, kw_only=True)
class Access:
    """What may be opened and how; safe to share between threads, picklable, holds no token.

    Redirects are followed by GDAL and host names are not resolved here: a deployment that reads catalogues of
    strangers sets ``hosts`` and an outbound firewall.

    Attributes:
        allow_local: Open plain paths and file:// URLs.
        allow_private: Open http(s) on loopback, link-local and private addresses.
        schemes: URL schemes that may be opened.
        hosts: Allowed hosts (for s3, gs, az: buckets); ``.example.org`` also allows every host below; empty: all.
        attempts: Application attempts per read.
        gdal: GDAL options; a variable of the same name in the environment wins.
        signer: Signs the URLs of scenes that ask for it; None: planetary-computer.
        requester_pays: Read s3 buckets whose requests the reader pays for.
        backend: Library that reads: "rasterio".
    """

    allow_local: bool = False
    allow_private: bool = False
    schemes: tuple[str, ...] = ("https", "http", "s3", "gs", "az")
    hosts: tuple[str, ...] = ()
    attempts: int = ATTEMPTS
    gdal: tuple[tuple[str, str], ...] = GDAL_SETTINGS
    signer: Signer = field(default_factory=PlanetaryComputer)
    requester_pays: bool = False
    backend: str = "rasterio"
    _locks: _Locks = field(default_factory=_Locks, repr=False, compare=False)

    @contextmanager
    def open(self, asset: Asset, *, sign: bool, item: str = "") -> Iterator[rasterio.DatasetReader]:
        """Open the file of ``asset`` for this thread; retries the opening, not what the caller does with it.

        Raises:
            InvalidInputError: The location is not allowed.
            DataError: The file cannot be opened.
            TransientError: The token service does not answer.
        """
        with ExitStack() as stack:
            yield self._retry(asset, lambda path, env: _enter(stack, path, env), sign=sign, item=item)

    def read(self, asset: Asset, work: Callable[[rasterio.DatasetReader], T], *, sign: bool, item: str = "") -> T:
        """Open the file and run ``work`` on it, both again when either fails.

        Args:
            asset: Which file.
            work: Reads from the open dataset; must be repeatable.
            sign: Whether the URL needs a token.
            item: Item id, for the error message.

        Raises:
            InvalidInputError: The location is not allowed.
            DataError: Still failing after all attempts; names item, band and the URL without its query.
            TransientError: The token service does not answer.
        """

        def once(path: str, env: dict[str, str | int]) -> T:
            with rasterio.Env(**env), _open(path) as dataset:
                return work(dataset)

        return self._retry(asset, once, sign=sign, item=item)

    def counts(self) -> Counts:
        """What this process has read so far, through whichever ``Access``."""
        return _COUNTER.counts()

    def check(self, href: str) -> str:
        """The scheme of ``href`` (``file`` for a plain path) when it may be opened.

        Raises:
            InvalidInputError: Scheme, host or path is not allowed.
        """
        shown = redact(href)
        parts = urlsplit(href)
        if re.search(r"[\x00-\x20\x7f\\]", href) and parts.scheme not in ("", "file"):
            raise InvalidInputError(f"{shown} is not a URL: it holds blanks, control characters or backslashes")
        if parts.scheme in ("", "file") or (parts.scheme not in VSI and "://" not in href):
            self._check_local(href, shown)
            return "file"
        if parts.scheme not in self.schemes or parts.scheme not in VSI:
            raise InvalidInputError(f"{shown}: scheme {parts.scheme!r} is not allowed; allowed: {self.schemes}")
        host = (parts.hostname or "").rstrip(".").lower()
        if not host or "@" in parts.netloc:
            raise InvalidInputError(f"{shown}: URLs need a host and must not hold a user name")
        if parts.scheme in ("http", "https") and not self.allow_private and _internal(host):
            raise InvalidInputError(f"{shown}: loopback and link-local addresses are not allowed")
        if self.hosts and not any(host == h or (h.startswith(".") and host.endswith(h)) for h in self.hosts):
            raise InvalidInputError(f"{shown}: host {host} is not among the allowed ones: {self.hosts}")
        return parts.scheme

    def _check_local(self, href: str, shown: str) -> None:
        if re.match(r"/+vsi\w+([/?]|$)", _local_path(href)):
            raise InvalidInputError(f"{shown}: /vsi paths are not allowed; give the URL itself")
        if not self.allow_local:
            raise InvalidInputError(f"{shown} is a local file and local files are not allowed here (allow_local)")

    def _retry(self, asset: Asset, once: Callable[[str, dict[str, str | int]], T], *, sign: bool, item: str) -> T:
        scheme = self.check(asset.href)
        _hide_tokens_in_logs()
        attempts = 1 if scheme == "file" else self.attempts
        why, failed = "", ""
        for attempt in range(attempts):
            href = self._signed(asset.href, failed=failed) if sign else asset.href
            if scheme != "file":
                _COUNTER.add(requests=1, retries=int(attempt > 0))
            try:
                return once(_gdal_path(href, scheme), self._env(scheme, again=attempt > 0))
            except (RasterioError, CPLE_BaseError) as err:
                why, failed = redact(str(err)), href
                _COUNTER.add(failures=1)
                log.info("attempt %d of %d at %s failed: %s", attempt + 1, attempts, redact(asset.href), why)
        # Raised outside the except block: the cause's own text holds the signed URL.
        where = f"item {item}, band {asset.band}" if item else f"band {asset.band}"
        raise DataError(f"{where}: {redact(asset.href)} cannot be read after {attempts} attempts: {why}")

    def _signed(self, href: str, *, failed: str) -> str:
        # One lock per container: 64 signs on 32 threads made 32 token requests without it, one with it.
        with self._locks(_container(href)):
            signed = self.signer.sign(href)
            if failed and signed == failed:
                self.signer.forget(href)
                signed = self.signer.sign(href)
            return signed

    def _env(self, scheme: str, *, again: bool) -> dict[str, str | int]:
        env: dict[str, str | int] = {k: v for k, v in self.gdal if k not in os.environ}
        if "GDAL_CACHEMAX" in env:
            env["GDAL_CACHEMAX"] = int(env["GDAL_CACHEMAX"]) << 20  # rasterio wants bytes where GDAL wants megabytes
        if again:
            # A failed open stays in GDAL's cache and would fail for ever without this.
            env["CPL_VSIL_CURL_NON_CACHED"] = VSI[scheme]
        return env


def redact(text: str) -> str:
    """``text`` without URL queries and user names: what may be logged or raised.

    >>> redact("https://a.example/x.tif?sig=1 failed")
    'https://a.example/x.tif failed'
    """
    return _SECRET.sub(lambda m: "//" if m.group().startswith("//") else "", text)


def _enter(stack: ExitStack, path: str, env: dict[str, str | int]) -> rasterio.DatasetReader:
    with ExitStack() as trial:
        trial.enter_context(rasterio.Env(**env))
        dataset = trial.enter_context(_open(path))
        stack.push(trial.pop_all())
        return dataset


def _open(path: str) -> rasterio.DatasetReader:
    suffix = path.partition("?")[0].rpartition(".")[2].lower()
    return rasterio.open(path, driver=DRIVERS.get(suffix, "GTiff"), sharing=False)


def _gdal_path(href: str, scheme: str) -> str:
    if scheme == "file":
        return _local_path(href)
    if scheme in ("http", "https"):
        return VSI[scheme] + href
    parts = urlsplit(href)
    return f"{VSI[scheme]}{parts.netloc}{parts.path}"


def _local_path(href: str) -> str:
    return os.path.abspath(unquote(urlsplit(href).path) if href.lower().startswith("file:") else href)  # noqa: PTH100


def _container(href: str) -> tuple[str, str]:
    parts = urlsplit(href)
    return parts.netloc, parts.path.lstrip("/").partition("/")[0]


def _internal(host: str) -> bool:
    """Whether a host name or address means this machine or its link; also in the forms only curl understands."""
    if host == "localhost" or host.endswith(".localhost") or host == "metadata.google.internal":
        return True
    address: ipaddress.IPv4Address | ipaddress.IPv6Address
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        try:
            address = ipaddress.IPv4Address(socket.inet_aton(host))  # 2130706433, 0x7f.1, 127.1
        except (OSError, UnicodeError):
            return False
    mapped = getattr(address, "ipv4_mapped", None)
    address = mapped or address
    return address.is_loopback or address.is_link_local or address.is_unspecified or address.is_multicast


class _TokenFilter(logging.Filter):
    """Takes URL queries out of GDAL's messages, which rasterio logs with the signed URL."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = redact(record.getMessage()), ()
        if "Retrying again in" in record.msg:
            _COUNTER.add(requests=1, retries=1)
        return True


_TOKEN_FILTER = _TokenFilter()


def _hide_tokens_in_logs() -> None:
    for name in ENV_LOGGERS:
        logging.getLogger(name).addFilter(_TOKEN_FILTER)  # adding it again does nothing
