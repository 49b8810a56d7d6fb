"""Reads plain windows of remote COGs with async-geotiff and obstore instead of GDAL; whatever else, rasterio reads.

Optional (extra ``async``): the same pixels for less memory and, on slow connections, less time. It takes files whose
decoding was compared with GDAL's value for value: one band of integers or float32, tiled, without holes, deflate, LZW,
ZSTD or uncompressed, north-up in a UTM zone. Any other file, and any that fails here in any way, is read by rasterio
from then on, which also finds the words for what is wrong: errors do not depend on the backend. Warping, overviews and
classifications never come here.

Where it may connect. obstore resolves names and follows redirects by itself, and it knows HTTP proxies only (0.12 on
the guard's address: "unsupported scheme socks5h"), so ``pipeline.read.guard`` cannot watch it. So it is used only
where no watch is needed (``Allowed.needs_guard``): the object storage of the large providers over https, s3, and
everywhere if private addresses and all hosts are allowed. Where the environment names a proxy, rasterio reads.

All requests run on one event loop in a thread of its own; headers are kept by signed URL, so that the next window of a
file asks for pixels only.
"""

from __future__ import annotations

import asyncio
import atexit
import importlib.util
import logging
import os
import re
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from rasterio.crs import CRS

from pipeline.errors import ConfigError
from pipeline.read import tiff_tags
from pipeline.read.allow import redact
from pipeline.read.gdal import TRAFFIC
from pipeline.read.guard import PROXY_VARIABLES

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence
    from concurrent.futures import Future

    from affine import Affine
    from async_geotiff import GeoTIFF
    from numpy.typing import NDArray
    from obstore.store import HTTPStore, S3Store
    from rasterio.windows import Window

    from pipeline.read.gdal import Env
    from pipeline.read.raster import Raster

log = logging.getLogger(__name__)

T = TypeVar("T")

NAME = "async-geotiff"
"""The value of ``inputs.reader``."""
HEADER_BYTES = 32768
"""First request, as GDAL_INGESTED_BYTES_AT_OPEN."""
GAP_BYTES = 1 << 17
"""Ranges with at most this between them are asked for at once: 128 KiB take less time than another request."""
MAX_FILES, MAX_STORES, MAX_REMEMBERED = 2048, 64, 100_000
RETRY_S = 180.0
WAIT_S = RETRY_S + 120.0
"""obstore's own time limits end earlier; this only keeps a fault of the event loop from holding up a run."""
CLOSE_S, SETTLE_S = 5.0, 0.1
"""At the end of the process: for what the loop is doing, and for what the libraries' threads are."""
PLAIN_PATH = re.compile(r"(/[A-Za-z0-9_~+=,@:-][A-Za-z0-9._~+=,@:-]*)+")
"""Paths that obstore sends as they are written; it would encode a percent sign again."""
MODULES = ("async_geotiff", "async_tiff", "obstore")


class LeaveItError(Exception):
    """This backend does not read the file; rasterio shall."""


def require() -> None:
    """Raise unless the extra is installed.

    Raises:
        ConfigError: It is not.
    """
    missing = [name for name in MODULES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"inputs.reader={NAME} needs {', '.join(missing)}, not installed here: pip install 'earthpress[async]', "
            "or set inputs.reader=rasterio"
        )


def may_read(href: str, scheme: str, *, guarded: bool) -> bool:
    """Whether a file may be tried here at all.

    Args:
        href: Unsigned URL that is allowed.
        scheme: Its scheme.
        guarded: Connections for it must be watched, which this backend cannot.
    """
    if scheme not in ("http", "https", "s3") or href in _STATE.left or not PLAIN_PATH.fullmatch(urlsplit(href).path):
        return False
    host = urlsplit(href).hostname
    if guarded:
        _say_once(f"connections to {host} must be watched, which {NAME} cannot: its files are read by rasterio")
    elif any(os.environ.get(name) for name in (*PROXY_VARIABLES, "HTTP_PROXY")):
        _say_once(f"the environment names a proxy: files are read by rasterio, not by {NAME}")
    elif not _STATE.here():
        _say_once(f"this process was forked from one that had used {NAME}: files are read by rasterio")
    else:
        return True
    return False


def attempt(
    href: str, *, url: str, env: Env, fits: Callable[[Raster], bool], work: Callable[[Raster], T]
) -> tuple[T] | None:
    """Run ``work`` on the open file.

    Args:
        href: Unsigned URL, by which a failure is remembered for this process.
        url: What is asked for, signed where needed.
        env: GDAL's options, of which retries and the access to s3 are obeyed.
        fits: Whether plain windows of the file are what is wanted.
        work: Reads; its own errors are raised as they are.

    Returns:
        What ``work`` returns, alone in a tuple; None: rasterio shall read the file.
    """
    try:
        file = _open(url, env)
        return (work(file),) if fits(file) else None
    except LeaveItError as err:
        why = str(err)
    if _STATE.leave(href):
        log.info("%s is read by rasterio, not by %s: %s", redact(href), NAME, why)
    return None


@dataclass(frozen=True, slots=True)
class _File:
    """An open file as a ``Raster``; usable from any thread."""

    count: int
    dtypes: tuple[str, ...]
    crs: CRS
    transform: Affine
    height: int
    width: int
    nodata: float | None
    _geotiff: GeoTIFF = field(repr=False)

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width)."""
        return self.height, self.width

    def read(self, index: int, *, window: Window) -> NDArray[Any]:
        """(row, col) raw values of band ``index`` (1), as rasterio's dataset gives them.

        Raises:
            LeaveItError: They cannot be had.
        """
        from async_geotiff import Window as Part  # noqa: PLC0415

        part = Part(col_off=window.col_off, row_off=window.row_off, width=window.width, height=window.height)
        pixels = _STATE.run(self._geotiff.read(window=part)).data
        if pixels.dtype.name != self.dtypes[index - 1] or pixels.shape[1:] != (window.height, window.width):
            raise LeaveItError(f"{pixels.dtype} {pixels.shape} came for {self.dtypes} {window}")
        values: NDArray[Any] = pixels[index - 1]
        return values


def _open(url: str, env: Env) -> _File:
    """The file behind a URL, with its header read.

    Raises:
        LeaveItError: It is not a file for this backend, or cannot be read.
    """
    found = _STATE.run(_STATE.file(url, env))
    if isinstance(found, str):
        raise LeaveItError(found)
    return found


async def _load(url: str, env: Env) -> _File | str:
    """An open file, or why not: as text, since an exception that nobody collects is logged with its URL."""
    from async_geotiff import GeoTIFF  # noqa: PLC0415
    from async_tiff import TIFF  # noqa: PLC0415

    try:
        source = _Source(_STATE.store(url, env))
        path = urlsplit(url).path.lstrip("/")
        tiff = await TIFF.open(path, store=source, prefetch=HEADER_BYTES)
        if why := tiff_tags.why_not(tiff):
            return why
        first = tiff.ifds[0]
        crs = CRS.from_epsg(tiff_tags.epsg_of(first))
        crs.to_epsg()  # kept by the object from now on: threads that share it only read
        return _File(
            count=1,
            dtypes=(tiff_tags.dtype_of(first),),
            crs=crs,
            transform=tiff_tags.transform_of(first),
            height=first.image_height,
            width=first.image_width,
            nodata=tiff_tags.nodata_of(first),
            _geotiff=GeoTIFF(tiff),
        )
    except LeaveItError as err:
        return str(err)
    except BaseException as err:  # noqa: BLE001 - a panic of the library is a BaseException; rasterio decides
        return _words(err)


class _Source:
    """Byte ranges of the files of one store, as async-tiff asks for them; counts them."""

    def __init__(self, store: HTTPStore | S3Store) -> None:
        self._store = store

    async def get_range_async(self, path: str, *, start: int, end: int | None = None, length: int | None = None) -> Any:
        """The bytes from ``start``; fewer at the end of the file."""
        TRAFFIC.add(requests=1)
        stop = end if end is not None else start + (length or 0)
        found = await self._store.get_range_async(path, start=start, end=stop)
        TRAFFIC.add(size=len(found))
        return found

    async def get_ranges_async(
        self,
        path: str,
        *,
        starts: Sequence[int],
        ends: Sequence[int] | None = None,
        lengths: Sequence[int] | None = None,
    ) -> list[Any]:
        """Bytes of blocks, which are complete or an error."""
        if ends is None:
            ends = [start + length for start, length in zip(starts, lengths or (), strict=True)]
        wanted = list(zip(starts, ends, strict=True))
        spans = merged(wanted)
        bodies = await asyncio.gather(*(self.get_range_async(path, start=s, end=e) for s, e in spans))
        for (start, stop), body in zip(spans, bodies, strict=True):
            if len(body) != stop - start:
                raise LeaveItError(f"{len(body)} bytes came for the {stop - start} asked for")
        views = [(start, memoryview(body)) for (start, _), body in zip(spans, bodies, strict=True)]
        return [_cut(views, start, stop) for start, stop in wanted]


def merged(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges in ascending order, those with small gaps between them as one.

    >>> merged([(500_000, 500_010), (0, 10), (20, 30)])
    [(0, 30), (500000, 500010)]
    """
    spans: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if spans and start - spans[-1][1] <= GAP_BYTES:
            spans[-1] = (spans[-1][0], max(stop, spans[-1][1]))
        else:
            spans.append((start, stop))
    return spans


def _cut(views: list[tuple[int, memoryview]], start: int, stop: int) -> memoryview:
    at, view = next((at, view) for at, view in views if at <= start and stop <= at + len(view))
    return view[start - at : stop - at]


class _State:
    """What this process keeps: the event loop, open files, clients, and what rasterio shall read."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._pid = 0
        self._files: OrderedDict[str, asyncio.Task[_File | str]] = OrderedDict()  # of the loop's thread alone
        self._stores: OrderedDict[tuple[Any, ...], HTTPStore | S3Store] = OrderedDict()  # likewise
        self.left: dict[str, None] = {}

    def here(self) -> bool:
        """Whether the loop runs, or may be started, in this process: neither it nor obstore survives a fork."""
        return self._pid in (0, os.getpid())

    def leave(self, href: str) -> bool:
        """Remember that rasterio reads a file; False: it was known."""
        with self._lock:
            if href in self.left:
                return False
            if len(self.left) >= MAX_REMEMBERED:
                self.left.clear()
            self.left[href] = None
            return True

    def run(self, coroutine: Coroutine[Any, Any, T] | Awaitable[T]) -> T:
        """Wait for a coroutine on the loop.

        Raises:
            LeaveItError: It failed; the text holds no token.
        """
        future: Future[T] = asyncio.run_coroutine_threadsafe(_awaited(coroutine), self._started())
        try:
            return future.result(WAIT_S)
        except LeaveItError as err:
            why = str(err)
        except BaseException as err:
            future.cancel()
            if isinstance(err, (KeyboardInterrupt, SystemExit)):
                raise
            why = _words(err)
        TRAFFIC.add(failures=1)
        raise LeaveItError(why)  # outside the except block: the cause's own text holds the signed URL

    async def file(self, url: str, env: Env) -> _File | str:
        """An open file, opened once however many threads ask."""
        task = self._files.get(url)
        if task is None:
            task = self._files[url] = asyncio.ensure_future(_load(url, env))
            while len(self._files) > MAX_FILES:
                self._files.popitem(last=False)
        else:
            self._files.move_to_end(url)
        found = await asyncio.shield(task)
        if isinstance(found, str):
            self._files.pop(url, None)
        return found

    def store(self, url: str, env: Env) -> HTTPStore | S3Store:
        """The client for a URL; files of one host and token share one, with its connections."""
        parts = urlsplit(url)
        key = (parts.scheme, parts.netloc, parts.query, tuple(sorted(env.items())))
        found = self._stores.get(key)
        if found is None:
            found = self._stores[key] = _s3(parts.netloc, env) if parts.scheme == "s3" else _http(url, env)
            while len(self._stores) > MAX_STORES:
                self._stores.popitem(last=False)
        self._stores.move_to_end(key)
        return found

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop, self._pid = asyncio.new_event_loop(), os.getpid()
                self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="earthpress-async")
                self._thread.start()
                atexit.register(self.close)
            return self._loop

    def close(self) -> None:
        """Stop before Python does: threads of the libraries give up Python objects a moment after they answered.

        Without this 5 of 80 processes that ended right after a read were killed by a signal (PyGILState_Release); with
        it none of 120. The libraries offer nothing to wait for, hence the pause.
        """
        with self._lock:
            loop, thread, self._loop = self._loop, self._thread, None
        if loop is None or thread is None or not self.here():
            return
        loop.call_soon_threadsafe(loop.stop)
        thread.join(CLOSE_S)
        if not thread.is_alive():
            loop.close()
        self._files.clear()
        self._stores.clear()
        time.sleep(SETTLE_S)


_STATE = _State()
_SAID: set[str] = set()


def _say_once(text: str) -> None:
    if text not in _SAID:
        _SAID.add(text)
        log.info(text)


async def _awaited(coroutine: Awaitable[T]) -> T:
    return await coroutine


def _words(err: BaseException) -> str:
    """An error in one line without tokens; obstore writes a page."""
    return redact(f"{type(err).__name__}: {err}".partition("\n")[0])


def _option(env: Env, name: str, default: str = "") -> str:
    """A GDAL option: of the environment, else of the settings."""
    return os.environ.get(name) or str(env.get(name, default))


def _seconds(env: Env, name: str, default: str) -> timedelta:
    return timedelta(seconds=float(_option(env, name, default)))


def _client(env: Env, *, plain_http: bool) -> dict[str, Any]:
    """What both kinds of store take: time limits and repetitions, as GDAL's options say."""
    return {
        "client_options": {
            "allow_http": plain_http,
            "connect_timeout": _seconds(env, "GDAL_HTTP_CONNECTTIMEOUT", "10"),
            "timeout": _seconds(env, "GDAL_HTTP_TIMEOUT", "60"),
            "read_timeout": _seconds(env, "GDAL_HTTP_LOW_SPEED_TIME", "30"),
        },
        "retry_config": {
            "max_retries": int(_option(env, "GDAL_HTTP_MAX_RETRY", "8")),
            "backoff": {"init_backoff": _seconds(env, "GDAL_HTTP_RETRY_DELAY", "0.5")},
            "retry_timeout": timedelta(seconds=RETRY_S),
        },
    }


def _http(url: str, env: Env) -> HTTPStore:
    from obstore.store import HTTPStore  # noqa: PLC0415

    parts = urlsplit(url)
    base = parts._replace(path="", fragment="").geturl()  # the query, a token, stays with every request
    return HTTPStore(base, **_client(env, plain_http=parts.scheme == "http"))


def _s3(bucket: str, env: Env) -> S3Store:
    """A bucket, read with keys of the environment or without any.

    Raises:
        LeaveItError: The keys must be looked for where only GDAL does (profiles, roles).
    """
    from obstore.store import S3Store  # noqa: PLC0415

    unsigned = _option(env, "AWS_NO_SIGN_REQUEST").upper() in ("YES", "TRUE", "ON", "1")
    keys = {name: _option(env, f"AWS_{name.upper()}") for name in ("access_key_id", "secret_access_key")}
    if not unsigned and not all(keys.values()):
        raise LeaveItError("AWS credentials are not in the environment and AWS_NO_SIGN_REQUEST is not set")
    secure = _option(env, "AWS_HTTPS", "YES").upper() not in ("NO", "FALSE", "OFF", "0")
    config: dict[str, Any] = {"skip_signature": True} if unsigned else dict(keys)
    if not unsigned and (token := _option(env, "AWS_SESSION_TOKEN")):
        config["session_token"] = token
    if host := _option(env, "AWS_S3_ENDPOINT"):
        if _option(env, "AWS_VIRTUAL_HOSTING", "TRUE").upper() in ("YES", "TRUE", "ON", "1"):
            raise LeaveItError("AWS_S3_ENDPOINT with virtual hosting is GDAL's")
        config["endpoint"] = f"{'https' if secure else 'http'}://{host}"
    region = _option(env, "AWS_REGION") or _option(env, "AWS_DEFAULT_REGION", "us-east-1")
    pays = _option(env, "AWS_REQUEST_PAYER") == "requester"
    return S3Store(bucket, region=region, request_payer=pays, **config, **_client(env, plain_http=not secure))
