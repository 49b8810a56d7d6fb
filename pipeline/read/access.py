"""Opens the raster file of an asset, local or remote, and reads from it: rules, tokens, attempts, redaction.

Knows files and URLs; nothing of lattices, bands or compositing. Every read of the project's archive data goes through
``Access.read``.
"""

from __future__ import annotations

import logging
import os
import re
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

import rasterio
from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioError

from pipeline.errors import DataError, InvalidInputError
from pipeline.read import async_geotiff
from pipeline.read.allow import Allowed, local_path, redact
from pipeline.read.gdal import (
    GDAL_SETTINGS,
    NAMES,
    TRAFFIC,
    Counts,
    environment,
    hide_tokens_in_logs,
    listening,
    open_file,
    path_of,
)
from pipeline.read.guard import proxy_for
from pipeline.read.signing import PlanetaryComputer, Signer, signed
from pipeline.read.throttle import throttle_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pipeline.read.gdal import Env, Seen
    from pipeline.read.raster import Raster
    from pipeline.read.throttle import Throttle
    from pipeline.types import Asset

__all__ = ["ATTEMPTS", "GDAL_SETTINGS", "Access", "Counts", "PlanetaryComputer", "Signer", "redact"]

log = logging.getLogger(__name__)

T = TypeVar("T")

ATTEMPTS = 2
"""Application attempts; GDAL's own HTTP retries happen inside each. The second recovered 7 of 7 in the measurement."""
REFUSED = frozenset({401, 403})
NOT_THE_TOKEN = frozenset({404, 410, 429, 500, 502, 503, 504})

_DETOUR = re.compile(r"SOCKS5 connection to (\S+?)\.? \(2\)")


@dataclass(frozen=True, kw_only=True)
class Access:
    """What may be opened and how; safe to share between threads, picklable, holds no token.

    Attributes:
        allow_local: Open plain paths and file:// URLs.
        allow_private: Open http(s) on addresses that are not public: loopback, link-local, private. Otherwise such a
            host is refused, also by what its name resolves to and after redirects (``pipeline.read.guard``).
        schemes: URL schemes that may be opened.
        hosts: Allowed hosts (for s3, gs, az: buckets), after redirects too; ``.example.org`` also allows every host
            below; empty: all.
        attempts: Application attempts per read.
        gdal: GDAL options; a variable of the same name in the environment wins.
        signer: Signs the URLs of scenes that ask for it.
        requester_pays: Read s3 buckets that charge the reader, with the AWS credentials that GDAL finds.
        backend: What reads: "rasterio", or "async-geotiff" for the windows that it can read
            (``pipeline.read.async_geotiff``).
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

    def read(self, asset: Asset, work: Callable[[rasterio.DatasetReader], T], *, sign: bool, item: str = "") -> T:
        """Open the file and run ``work`` on it, both again when either fails.

        Args:
            asset: Which file.
            work: Reads from the open dataset; must be repeatable.
            sign: Whether the URL needs a token.
            item: Item id, for the error message.

        Raises:
            InvalidInputError: The location, or where it redirects to, is not allowed.
            DataError: Still failing after all attempts; names item, band and the URL without its query.
            TransientError: The token service does not answer.
        """

        def once(path: str, env: Env) -> T:
            with rasterio.Env(**env), open_file(path) as dataset:
                return work(dataset)

        return self._retry(asset, once, sign=sign, item=item)

    def read_plain(
        self, asset: Asset, work: Callable[[Raster], T], *, fits: Callable[[Raster], bool], sign: bool, item: str = ""
    ) -> T:
        """As ``read``, but ``work`` may get another backend's file where ``fits`` says that plain windows will do.

        Args:
            asset: Which file.
            work: Reads from the open file; must be repeatable.
            fits: Whether ``work`` needs no more of this file than plain windows.
            sign: Whether the URL needs a token.
            item: Item id, for the error message.

        Raises:
            ConfigError: The backend is not installed.
            InvalidInputError, DataError, TransientError: As ``read``, whatever the backend.
        """
        if self.backend == async_geotiff.NAME:
            found = self._async(asset, work, fits=fits, sign=sign)
            if found is not None:
                return found[0]
        return self.read(asset, work, sign=sign, item=item)

    def check(self, href: str) -> str:
        """The scheme of ``href`` (``file`` for a plain path) when it may be opened, by its text alone.

        Raises:
            InvalidInputError: Scheme, host or path is not allowed.
        """
        return self._allowed().check(href)

    def counts(self) -> Counts:
        """Traffic of this process so far, through whichever ``Access``."""
        return TRAFFIC.counts()

    def _allowed(self) -> Allowed:
        return Allowed(
            local=self.allow_local,
            private=self.allow_private,
            schemes=self.schemes,
            hosts=self.hosts,
            requester_pays=self.requester_pays or os.environ.get("AWS_REQUEST_PAYER") == "requester",
        )

    def _admit(self, href: str) -> tuple[str, str | None]:
        """Scheme of an allowed href, and the proxy to read it through."""
        allowed = self._allowed()
        scheme = allowed.check(href)
        if scheme not in ("http", "https"):
            return scheme, None
        allowed.check_address(href)
        return scheme, proxy_for(allowed) if allowed.needs_guard(href) else None

    def _async(
        self, asset: Asset, work: Callable[[Raster], T], *, fits: Callable[[Raster], bool], sign: bool
    ) -> tuple[T] | None:
        async_geotiff.require()
        scheme, _ = self._admit(asset.href)
        guarded = scheme in ("http", "https") and self._allowed().needs_guard(asset.href)
        if not async_geotiff.may_read(asset.href, scheme, guarded=guarded):
            return None
        url = signed(self.signer, asset.href) if sign else asset.href
        env = environment(self.gdal, scheme=scheme, pays=self.requester_pays, proxy=None)
        with _throttle(asset.href, scheme).place():  # obstore repeats by itself and tells nobody: it is slowed only
            return async_geotiff.attempt(asset.href, url=url, env=env, fits=fits, work=work)

    def _retry(self, asset: Asset, once: Callable[[str, Env], T], *, sign: bool, item: str) -> T:
        scheme, proxy = self._admit(asset.href)
        hide_tokens_in_logs()
        TRAFFIC.start()
        where = f"item {item}, band {asset.band}" if item else f"band {asset.band}"
        if scheme == "file" and _is_special(local_path(asset.href)):
            raise DataError(f"{where}: {redact(asset.href)} is no file but a pipe, socket or device; correct the item")
        throttle = _throttle(asset.href, scheme)
        left = 1 if scheme == "file" else self.attempts
        failure, tried, renewed = _Failure(), 0, False
        while left > 0:
            name = NAMES.of(asset.href)
            tried, left = tried + 1, left - 1
            TRAFFIC.add(attempts=int(scheme != "file"), retries=int(tried > 1))
            with throttle.place(), listening(throttle.busy) as seen:
                href = signed(self.signer, asset.href, refused=failure.suspect) if sign else asset.href
                env = environment(
                    self.gdal, scheme=scheme, pays=self.requester_pays, proxy=proxy, serial=throttle.slowed
                )
                try:
                    found = once(path_of(href, scheme, name=name), env)
                except (RasterioError, CPLE_BaseError) as err:
                    failure = _Failure.of(err, seen, href=href)
                else:
                    if not seen.torn:
                        return found
                    failure = _Failure(why="a directory of the file (overviews, mask) cannot be read")
            TRAFFIC.add(failures=1)
            log.info("attempt %d at %s failed: %s", tried, redact(asset.href), failure.why)
            if failure.detour:
                raise InvalidInputError(
                    f"{where}: {redact(asset.href)} leads to {failure.detour}, which is not an allowed host or not a "
                    "public address; allow it (allowed_hosts, allow_private_hosts) or drop the catalogue"
                )
            NAMES.renew(asset.href, failed=name, scheme=scheme)
            if sign and not renewed and failure.denied:
                renewed, left = True, left + 1  # an expired token is not the archive's fault
        # Raised outside the except block: the cause's own text holds the signed URL.
        raise DataError(f"{where}: {redact(asset.href)} cannot be read after {tried} attempts: {failure.why}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Failure:
    """Why an attempt failed.

    Attributes:
        why: GDAL's words, without tokens.
        suspect: The signed URL, when its token may be to blame; GDAL often hides the status, so it may unless something
            else is known to be wrong.
        denied: The archive refused the token.
        detour: Host to which the guard refused a connection.
    """

    why: str = ""
    suspect: str = field(default="", repr=False)
    denied: bool = False
    detour: str = ""

    @classmethod
    def of(cls, err: Exception, seen: Seen, *, href: str) -> _Failure:
        texts = " ".join(_chain(err))
        seen.note(texts)
        denied, detour = bool(seen.statuses & REFUSED), _DETOUR.search(texts)
        return cls(
            why=redact(str(err)),
            suspect=href if denied or not seen.statuses & NOT_THE_TOKEN else "",
            denied=denied,
            detour=detour[1] if detour else "",
        )


def _throttle(href: str, scheme: str) -> Throttle:
    return throttle_of(f"{scheme}://{urlsplit(href).netloc.lower()}")


def _is_special(path: str) -> bool:
    """Whether a local path is something that may never answer, such as a named pipe."""
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116
    except (OSError, ValueError):
        return False  # the reader says what is wrong
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _chain(err: BaseException | None) -> Iterator[str]:
    while err is not None:
        yield str(err)
        err = err.__cause__ or err.__context__
