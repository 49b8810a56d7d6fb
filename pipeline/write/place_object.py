"""A place in an object store: ``s3://``, ``gs://`` or ``az://``, through obstore.

Endpoint and credentials come from the usual environment variables (``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``,
``AWS_SESSION_TOKEN``, ``AWS_REGION``, ``AWS_ENDPOINT_URL``; ``GOOGLE_*``; ``AZURE_STORAGE_*``), never from the URL. The
texts of obstore's own errors are not passed on: they quote requests, and requests may hold signatures.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import socket
import time
import uuid
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from zarr.storage import ObjectStore

from pipeline.errors import ConfigError, OutputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SCHEMES = ("s3", "gs", "az")
LEASE_S = 120.0
"""How long a lease counts after its owner was last heard of; metadata is written in seconds."""
POLL_S = 0.5
RETRY_S = 60.0
"""A request is tried again for this long; a wrong endpoint must not hold a run for minutes."""
_FAMILY = {"s3": "AWS_", "gs": "GOOGLE_", "az": "AZURE_"}


def split_url(text: str) -> str:
    """The URL of a place without a slash at its end.

    Raises:
        ConfigError: Another scheme, no bucket or no name in it, or something that may be a secret.
    """
    parts = urlsplit(text)
    if parts.scheme not in SCHEMES:
        raise ConfigError(f"{parts.scheme}:// is not a place for a store: use a local folder, s3://, gs:// or az://")
    if parts.username or parts.password or parts.query or parts.fragment or "@" in parts.netloc:
        raise ConfigError(
            f"the {parts.scheme}:// URL of a store must not hold credentials, queries or fragments: set "
            f"{_FAMILY[parts.scheme]}... variables in the environment"
        )
    path = parts.path.strip("/")
    if not parts.netloc or not path or any(part in ("", ".", "..") for part in path.split("/")):
        raise ConfigError(f"{text} is not a place for a store: use {parts.scheme}://bucket/folder/name.zarr")
    return f"{parts.scheme}://{parts.netloc}/{path}"


@dataclass(frozen=True, slots=True)
class ObjectPlace:
    """Objects under one URL. Writes are whole or absent (one PUT each) and seen by every later read.

    Attributes:
        url: Without a slash at its end.
    """

    url: str

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """Last part of the URL."""
        return self.url.rsplit("/", 1)[1]

    @property
    def is_local(self) -> bool:
        """False: no folders, no hard links, no locks of the system."""
        return False

    def zarr(self, *, read_only: bool = True) -> SpokenStore:
        """The place as zarr-python's store."""
        return SpokenStore(_opened(self.url), read_only=read_only)

    def read(self, key: str = "") -> bytes | None:
        """The bytes of an object; None when there is none. ``key`` "": the object whose name is the place itself."""
        obstore = _obstore()
        store, path = self._at(key)
        with spoken(self.url, "reading", key):
            try:
                return bytes(obstore.get(store, path).bytes())
            except FileNotFoundError:
                return None

    def put(self, key: str, data: bytes) -> None:
        """Write an object, replacing what was there."""
        obstore = _obstore()
        store, path = self._at(key)
        with spoken(self.url, "writing", key):
            obstore.put(store, path, data)

    def create(self, key: str, data: bytes) -> bool:
        """Write an object unless it exists; returns False when it did."""
        obstore = _obstore()
        store, path = self._at(key)
        with spoken(self.url, "writing", key):
            try:
                # One request: a multipart upload has no condition in every store.
                obstore.put(store, path, data, mode="create", use_multipart=False)
            except obstore.exceptions.AlreadyExistsError:
                return False
        return True

    def size(self, key: str) -> int | None:
        """Bytes of an object; None when there is none."""
        obstore = _obstore()
        store, path = self._at(key)
        with spoken(self.url, "looking at", key):
            try:
                return int(obstore.head(store, path)["size"])
            except FileNotFoundError:
                return None

    def digest(self, key: str) -> str | None:
        """sha256 of an object, read back; None when there is none."""
        data = self.read(key)
        return None if data is None else hashlib.sha256(data).hexdigest()

    def delete(self, key: str = "") -> None:
        """Delete an object; one that does not exist is no error."""
        obstore = _obstore()
        store, path = self._at(key)
        with spoken(self.url, "deleting", key), contextlib.suppress(FileNotFoundError):
            obstore.delete(store, path)

    def list(self, prefix: str = "") -> tuple[tuple[str, int], ...]:
        """(key, bytes) of every object below the folder ``prefix``, sorted."""
        obstore = _obstore()
        with spoken(self.url, "listing", prefix):
            pages = obstore.list(_opened(self.url), prefix=prefix or None)
            return tuple(sorted((str(entry["path"]), int(entry["size"])) for page in pages for entry in page))

    def sibling(self, suffix: str) -> ObjectPlace:
        """The place beside this one whose name has ``suffix`` behind it."""
        return ObjectPlace(self.url + suffix)

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        """Use the place. Nothing is held: objects never move, and every object is replaced in one step."""
        yield

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[Callable[[], None]]:
        """Be the only one to write metadata here: a lease with owner and expiry in ``<name>.lock/<number>.json``.

        Every taking of the lease is a conditional create of the next number, so two can never take the same; a lease
        counts until its owner gives it back or its time is over. Clocks of machines may differ by less than
        ``LEASE_S``. Yields a function that raises when the lease has been lost meanwhile: to be called before
        the last step of what must not be done twice.

        Raises:
            OutputError: Another process holds it for longer than a lease lasts.
        """
        lease = _Lease(self.sibling(".lock"))
        lease.take()
        try:
            yield lease.check
        finally:
            lease.give_back()

    def check_conditional(self) -> None:
        """Refuse a service that overwrites where it should only create: there "first one wins" would be a wish.

        Raises:
            OutputError: It has no conditional create.
        """
        probe = self.sibling(f".probe-{uuid.uuid4().hex}")
        try:
            first, second, kept = probe.create("", b"1"), probe.create("", b"2"), probe.read()
        except NotOfferedError:
            first, second, kept = True, True, b""
        finally:
            with contextlib.suppress(OutputError):  # what the probe found matters more
                probe.delete()
        if not first or second or kept != b"1":
            raise OutputError(
                f"{self.url}: this object store has no conditional create (If-None-Match), so two runs could overwrite "
                "each other unseen: use a service that has it (Amazon S3, Google Cloud Storage, Azure, recent MinIO), "
                "or a local folder that is copied when it is done"
            )

    def _at(self, key: str) -> tuple[Any, str]:
        if key:
            return _opened(self.url), key
        parent, name = self.url.rsplit("/", 1)
        return _opened(parent), name


class NotOfferedError(OutputError):
    """The service does not know the request."""


class SpokenStore(ObjectStore):  # type: ignore[misc]
    """zarr-python's object store with errors that may be shown."""

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        """See ``zarr.abc.store.Store``."""
        with spoken(str(self.store.prefix or ""), "reading", key):
            return await super().get(key, prototype, byte_range)

    async def set(self, key: str, value: Any) -> None:
        """See ``zarr.abc.store.Store``."""
        with spoken(str(self.store.prefix or ""), "writing", key):
            await super().set(key, value)

    async def delete(self, key: str) -> None:
        """See ``zarr.abc.store.Store``."""
        with spoken(str(self.store.prefix or ""), "deleting", key):
            await super().delete(key)


@contextlib.contextmanager
def spoken(place: str, doing: str, key: str) -> Iterator[None]:
    """Turn obstore's errors into one line without the request.

    Raises:
        OutputError: What went wrong, in short.
    """
    known = _obstore().exceptions
    try:
        yield
    except (known.BaseError, FileNotFoundError, PermissionError) as err:
        text = f"{place}: {doing} {key or 'it'} failed: {_why(err)}"
        raise (NotOfferedError if isinstance(err, known.NotSupportedError) else OutputError)(text) from None


class _Lease:
    """One taking of the lease of a place."""

    def __init__(self, folder: ObjectPlace) -> None:
        self._folder, self._number, self._until = folder, 0, 0.0
        self._owner = f"{socket.gethostname()}, process {os.getpid()}, {uuid.uuid4().hex[:8]}"

    def take(self) -> None:
        deadline = time.monotonic() + LEASE_S + 10 * POLL_S
        while not self._try():
            if time.monotonic() > deadline:
                raise OutputError(f"{self._folder}: held by {self._holder()}: wait until it has ended, then run again")
            time.sleep(POLL_S)

    def check(self) -> None:
        if time.time() > self._until or self._newest() != self._number:
            raise OutputError(f"{self._folder}: the lease was lost after {LEASE_S:.0f} s: run again")

    def give_back(self) -> None:
        if time.time() < self._until:
            self._folder.put(_numbered(self._number), self._record(until=0.0))

    def _try(self) -> bool:
        newest = self._newest()
        if newest:
            record = _parsed(self._folder.read(_numbered(newest)))
            # One that is gone was taken and given back meanwhile: look again.
            if record is None or record.get("expires", 0.0) > time.time():
                return False
        self._number, self._until = newest + 1, time.time() + LEASE_S
        if not self._folder.create(_numbered(self._number), self._record(until=self._until)):
            return False
        if self._newest() != self._number:
            # Numbers below the newest are deleted, so an old one can be free again; it is worth nothing.
            self._folder.delete(_numbered(self._number))
            return False
        for key, _ in self._folder.list():
            if key < _numbered(self._number):
                self._folder.delete(key)
        return True

    def _newest(self) -> int:
        return max((int(key.removesuffix(".json")) for key, _ in self._folder.list()), default=0)

    def _record(self, *, until: float) -> bytes:
        return json.dumps({"owner": self._owner, "expires": until}).encode()

    def _holder(self) -> str:
        record = _parsed(self._folder.read(_numbered(self._newest()))) or {}
        return str(record.get("owner", "another process"))


def _numbered(number: int) -> str:
    return f"{number:08d}.json"


def _parsed(data: bytes | None) -> dict[str, Any] | None:
    if data is None:
        return None
    try:
        record = json.loads(data)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _opened(url: str) -> Any:
    scheme = urlsplit(url).scheme
    own = {k: v for k, v in os.environ.items() if k.startswith(_FAMILY[scheme])}
    return _open(url, hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest())


@functools.lru_cache(maxsize=64)
def _open(url: str, _environment: str) -> Any:
    """The obstore store; made again when the variables that it is made from change."""
    obstore = _obstore()
    scheme = urlsplit(url).scheme
    names = {
        "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
        "gs": ("GOOGLE_BASE_URL",),
        "az": ("AZURE_ENDPOINT", "AZURE_STORAGE_ENDPOINT"),
    }[scheme]
    endpoint = next((os.environ[name] for name in names if os.environ.get(name)), "")
    options: dict[str, Any] = {"retry_config": {"max_retries": 5, "retry_timeout": timedelta(seconds=RETRY_S)}}
    if endpoint.startswith("http://"):
        options["client_options"] = {"allow_http": True}
    if scheme == "s3" and endpoint:
        options["config"] = {"endpoint": endpoint}
    try:
        return obstore.store.from_url(url, **options)
    except (obstore.exceptions.BaseError, ValueError, OSError) as err:
        raise ConfigError(
            f"{url}: cannot be opened ({type(err).__name__}): check the {_FAMILY[scheme]}... variables in the "
            "environment"
        ) from None


def _obstore() -> Any:
    """The library, which not everybody needs.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        import obstore.exceptions  # noqa: PLC0415
        import obstore.store  # noqa: PLC0415
    except ImportError as err:
        raise ConfigError("object stores need obstore: pip install 'earthpress[cloud]'") from err
    return obstore


def _why(err: Exception) -> str:
    text = str(err)
    code = re.search(r"<Code>(\w{1,60})</Code>", text)
    status = re.search(r"status code: (\d{3})", text)
    known = ", ".join(match[1] for match in (status, code) if match)
    if "NoSuchBucket" in known or isinstance(err, FileNotFoundError):
        return f"there is no such bucket or object{f' ({known})' if known else ''}"
    if known.startswith(("401", "403")) or isinstance(err, PermissionError):
        return f"access denied ({known}): check the credentials in the environment and their rights"
    if known:
        return known
    return "no connection to the service" if "error sending request" in text else type(err).__name__
