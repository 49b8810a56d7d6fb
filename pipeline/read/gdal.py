"""GDAL as this project uses it: settings, opening by name, messages without tokens, and counts of its traffic.

Evidence for the settings: measured on loopback servers with 30 ms latency and injected 503s (216 instead of 650
requests; a failed open stays in GDAL's cache, so a plain retry never recovers).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import re
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import rasterio

from pipeline.read.allow import VSI, local_path, redact
from pipeline.read.throttle import BUSY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

log = logging.getLogger(__name__)

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
DRIVERS = {"jp2": "JP2OpenJPEG"}
"""GDAL driver by suffix, GTiff for all others. GDAL must not choose by content: a VRT could name any file here."""
ENV_LOGGERS = ("rasterio", "rasterio._base", "rasterio._env", "rasterio._err", "rasterio._io", "rasterio.env")
STATS_OPTION = "CPL_VSIL_NETWORK_STATS_ENABLED"
MAX_STATS_BYTES = 1 << 20
MAX_NAMES = 100_000

Env = dict[str, str | int]


def environment(
    settings: tuple[tuple[str, str], ...], *, scheme: str, pays: bool, proxy: str | None, serial: bool = False
) -> Env:
    """Options for ``rasterio.Env``; a variable of the same name in the process's environment wins.

    Args:
        settings: GDAL options.
        scheme: Of the URL to open.
        pays: The reader pays for requests to s3.
        proxy: See ``pipeline.read.guard``.
        serial: One request after the other; otherwise GDAL asks for all ranges of a window at once.
    """
    env: Env = {k: v for k, v in settings if k not in os.environ}
    if "GDAL_CACHEMAX" in env:
        env["GDAL_CACHEMAX"] = int(env["GDAL_CACHEMAX"]) << 20  # rasterio wants bytes where GDAL wants megabytes
    if pays and scheme == "s3" and "AWS_REQUEST_PAYER" not in os.environ:
        env["AWS_REQUEST_PAYER"] = "requester"
    if proxy:
        env["GDAL_HTTP_PROXY"] = proxy
    if serial and "GDAL_HTTP_MULTIRANGE" not in os.environ:
        env["GDAL_HTTP_MULTIRANGE"] = "SERIAL"
    return env


def open_file(path: str) -> rasterio.DatasetReader:
    """Open a GDAL path with the driver of its suffix."""
    return rasterio.open(path, driver=driver_of(path), sharing=False)


def driver_of(path: str) -> str:
    """The driver for a GDAL path, by its suffix.

    >>> driver_of("/vsicurl/https://a.example/b.jp2#7")
    'JP2OpenJPEG'
    """
    suffix = re.sub(r"#\d+$", "", path.partition("?")[0]).rpartition(".")[2].lower()
    return DRIVERS.get(suffix, "GTiff")


def path_of(href: str, scheme: str, *, name: int = 0) -> str:
    """GDAL's name for a URL or local path; for http(s) another one for every ``name``, see ``Names``."""
    if scheme == "file":
        return local_path(href)
    if scheme in ("http", "https"):
        return f"{VSI[scheme]}{href}#{name}" if name else VSI[scheme] + href
    parts = urlsplit(href)
    return f"{VSI[scheme]}{parts.netloc}{parts.path}"


class Names:
    """Numbers that give a URL a fresh name after a failure, because GDAL remembers a failed open for ever.

    For http(s) the number becomes the URL's fragment: part of GDAL's name, never sent to the server. The documented
    way, ``CPL_VSIL_CURL_NON_CACHED`` for the repeated attempt, stalls GDAL 3.10 for as long as its time limits when
    several threads have the same URL open (measured: 14 of 16 reads on 8 threads, "Operation too slow"; 0 with
    fragments). For s3, gs and az, whose names have no fragment, what GDAL remembers of the file is dropped instead,
    once for all threads that failed together; a thread that is reading the same file at that moment may stall likewise
    and then repeats its attempt.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers: dict[str, int] = {}
        self._last = 0

    def of(self, href: str) -> int:
        """The number of an unsigned URL; 0: it never failed."""
        with self._lock:
            return self._numbers.get(href, 0)

    def renew(self, href: str, *, failed: int, scheme: str) -> None:
        """The name with number ``failed`` has failed; threads that fail together get one new name together."""
        with self._lock:
            if self._numbers.get(href, 0) != failed:
                return
            if len(self._numbers) >= MAX_NAMES:
                self._numbers.clear()  # a name may be used again only if its number differs: the numbers go on
            self._last += 1
            self._numbers[href] = self._last
        if scheme not in ("http", "https"):
            TRAFFIC.forget(path_of(href, scheme))


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Traffic of this process with the archives, by rasterio and the optional backend.

    Attributes:
        requests: HTTP requests for files. GDAL counts a read of several ranges at once as one; without GDAL's
            statistics (another build, or switched off in the environment): attempts to read plus repeated requests.
        bytes: Body bytes received, those of failed requests included (not by the optional backend); rasterio's are 0
            without GDAL's statistics.
        retries: Requests that were repeated and reads that were repeated. GDAL's are counted from its warnings: none
            where the logger ``rasterio`` is set above WARNING.
        failures: Attempts to read that failed.
        tokens: Requests to token services, repeated ones included.
    """

    requests: int = 0
    bytes: int = 0
    retries: int = 0
    failures: int = 0
    tokens: int = 0


@dataclass(slots=True)
class Seen:
    """What GDAL said in this thread during one attempt.

    Attributes:
        statuses: HTTP status codes.
        busy: Called at once when the archive says that it is busy; GDAL may then go on repeating for minutes.
        torn: A directory of the file could not be read; GDAL raises nothing and goes on without its overviews or mask.
    """

    statuses: set[int] = field(default_factory=set)
    busy: Callable[[], None] = lambda: None
    torn: bool = False

    def note(self, message: str) -> None:
        """GDAL said this."""
        statuses = statuses_in(message)
        self.statuses |= statuses
        self.torn |= _TORN.search(message) is not None
        if statuses & BUSY:
            self.busy()


class Traffic:
    """Counts; all methods are safe to call from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._attempts = self._retries = self._failures = self._tokens = 0
        self._own_requests = self._own_bytes = 0
        self._past_requests = self._past_bytes = 0
        self._gdal: ctypes.CDLL | None = None
        self._counted = False
        self._started = False

    def start(self) -> None:
        """Switch GDAL's statistics on, once, before the first read."""
        with self._lock:
            if not self._started:
                self._started = True
                self._gdal = _library()
                self._counted = self._gdal is not None and _switch_on(self._gdal)

    def forget(self, path: str) -> None:
        """Drop what GDAL remembers of a file."""
        if self._gdal is not None:
            self._gdal.VSICurlPartialClearCache(path.encode())

    def add(
        self,
        *,
        attempts: int = 0,
        retries: int = 0,
        failures: int = 0,
        tokens: int = 0,
        requests: int = 0,
        size: int = 0,
    ) -> None:
        """Count what happened: attempts are rasterio's, whose requests GDAL counts; the others come with theirs."""
        with self._lock:
            self._own_requests += requests
            self._own_bytes += size
            self._tokens += tokens
            self._attempts += attempts
            self._retries += retries
            self._failures += failures

    def counts(self) -> Counts:
        """So far."""
        with self._lock:
            requests, size = self._attempts + self._retries, 0
            if self._gdal is not None and self._counted:
                requests, size = self._read(self._gdal)
            return Counts(
                requests=requests + self._own_requests,
                bytes=size + self._own_bytes,
                retries=self._retries,
                failures=self._failures,
                tokens=self._tokens,
            )

    def _read(self, gdal: ctypes.CDLL) -> tuple[int, int]:
        pointer = gdal.VSINetworkStatsGetAsSerializedJSON(None)
        text = ctypes.string_at(pointer) if pointer else b"{}"
        gdal.VSIFree(ctypes.c_void_p(pointer))
        requests, size = totals(text)
        requests, size = self._past_requests + requests, self._past_bytes + size
        if (
            len(text) > MAX_STATS_BYTES
        ):  # GDAL keeps a line per file for ever; what ends between the calls is not counted
            gdal.VSINetworkStatsReset()
            self._past_requests, self._past_bytes = requests, size
        return requests, size


def totals(text: bytes) -> tuple[int, int]:
    """Requests and bytes of GDAL's statistics, which hold signed URLs: nothing else may leave this function.

    >>> totals(b'{"methods": {"HEAD": {"count": 1}, "GET": {"count": 2, "downloaded_bytes": 30}}}')
    (3, 30)
    """
    methods = json.loads(text or b"{}").get("methods", {}).values()
    return sum(m.get("count", 0) for m in methods), sum(m.get("downloaded_bytes", 0) for m in methods)


def _library() -> ctypes.CDLL | None:
    """The libgdal that rasterio loaded; None where it cannot be found."""
    for path in _libraries():
        with contextlib.suppress(OSError, AttributeError):
            gdal = ctypes.CDLL(path)
            gdal.VSINetworkStatsGetAsSerializedJSON.restype = ctypes.c_void_p
            gdal.VSINetworkStatsGetAsSerializedJSON.argtypes = [ctypes.c_void_p]
            gdal.CPLSetConfigOption.argtypes = [ctypes.c_char_p, ctypes.c_char_p]
            gdal.VSICurlPartialClearCache.argtypes = [ctypes.c_char_p]
            return gdal
    log.info("libgdal cannot be called directly; requests are counted by attempts")
    return None


def _switch_on(gdal: ctypes.CDLL) -> bool:
    """Switch GDAL's statistics on, unless the environment says no."""
    if os.environ.get(STATS_OPTION, "YES").upper() not in ("YES", "TRUE", "ON", "1"):
        return False
    gdal.CPLSetConfigOption(STATS_OPTION.encode(), b"YES")
    gdal.VSINetworkStatsReset()  # makes GDAL read the option again: it may have looked already
    return True


def _libraries() -> list[str]:
    """Paths of the loaded libgdals, rasterio's own first (pyogrio's wheel brings another)."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    paths = dict.fromkeys(line.split(maxsplit=5)[-1] for line in lines if "/libgdal" in line)
    return sorted((p for p in paths if "pyogrio" not in p), key=lambda p: "rasterio" not in p)


TRAFFIC = Traffic()
NAMES = Names()
_LOCAL = threading.local()
_TORN = re.compile(r"read (?:TIFF )?directory|TIFFFetchDirectory|TIFFReadDirectory", re.IGNORECASE)
_STATUS = re.compile(r"(?:HTTP response code(?: on \S+)?: |HTTP error code: |response_code=)(\d{3})")


def statuses_in(text: str) -> set[int]:
    """HTTP status codes that a message of GDAL names."""
    return {int(code) for code in _STATUS.findall(text)}


@contextlib.contextmanager
def listening(busy: Callable[[], None]) -> Iterator[Seen]:
    """Collect what GDAL says in this thread; its errors often leave the status out."""
    seen = _LOCAL.seen = Seen(busy=busy)
    try:
        yield seen
    finally:
        _LOCAL.seen = None


class _Filter(logging.Filter):
    """Takes URL queries out of GDAL's messages, which rasterio logs with the signed URL; learns from them.

    GDAL's errors arrive at level INFO where rasterio raises nothing, so its loggers listen to them whatever the
    application wants to see; what goes on from here is what the level of the logger ``rasterio`` lets through.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        record.msg, record.args = redact(message), ()
        if "Retrying again in" in message:
            TRAFFIC.add(retries=1)
        seen: Seen | None = getattr(_LOCAL, "seen", None)
        if seen is not None:
            seen.note(message)
        return logging.getLogger("rasterio").isEnabledFor(record.levelno)


_FILTER = _Filter()


def hide_tokens_in_logs() -> None:
    """Put the filter on rasterio's loggers, and let them hear what it needs."""
    for name in ENV_LOGGERS:
        logger = logging.getLogger(name)
        logger.addFilter(_FILTER)  # adding it again does nothing
        if name != "rasterio" and not logger.isEnabledFor(logging.INFO):
            logger.setLevel(logging.INFO)
