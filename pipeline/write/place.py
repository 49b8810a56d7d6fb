"""Where a store lies: a local folder or the URL of an object store, with the same few things to do in both.

Small objects beside a store (``<store>.basis.json``) are reached as siblings::

    place_of(path).sibling(".basis.json").read()
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from zarr.storage import LocalStore

from pipeline.write import durable
from pipeline.write.place_object import ObjectPlace, split_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

__all__ = ["LocalPlace", "ObjectPlace", "Place", "place_of"]


class Place(Protocol):
    """Named bytes. Keys have slashes; "" is the file or object whose name is the place itself.

    Every method may raise ``OutputError``; nobody ever sees half an object.
    """

    @property
    def name(self) -> str:
        """Last part of the path or URL."""

    @property
    def is_local(self) -> bool:
        """Whether it is a folder of this machine."""

    def zarr(self, *, read_only: bool = True) -> Any:
        """The place as zarr-python's store."""

    def read(self, key: str = "") -> bytes | None:
        """The bytes of ``key``; None when there is none."""

    def put(self, key: str, data: bytes) -> None:
        """Write ``key``, replacing what was there."""

    def create(self, key: str, data: bytes) -> bool:
        """Write ``key`` unless it exists; returns False when it did."""

    def size(self, key: str) -> int | None:
        """Bytes of ``key``; None when there is none."""

    def digest(self, key: str) -> str | None:
        """sha256 of ``key``, read back; None when there is none."""

    def delete(self, key: str = "") -> None:
        """Delete ``key``; one that does not exist is no error."""

    def list(self, prefix: str = "") -> tuple[tuple[str, int], ...]:
        """(key, bytes) of everything below the folder ``prefix``, sorted."""

    def sibling(self, suffix: str) -> Self:
        """The place beside this one whose name has ``suffix`` behind it."""

    def shared(self) -> AbstractContextManager[None]:
        """Use the place while nobody changes its shape."""

    def exclusive(self) -> AbstractContextManager[Callable[[], None]]:
        """Be the only one to change its shape; yields a function that raises when that is true no more."""


@dataclass(frozen=True, slots=True)
class LocalPlace:
    """A folder of this machine, or a file for key "".

    Attributes:
        root: Absolute path.
    """

    root: Path

    def __str__(self) -> str:
        return str(self.root)

    @property
    def name(self) -> str:
        """Last part of the path."""
        return self.root.name

    @property
    def is_local(self) -> bool:
        """True."""
        return True

    def zarr(self, *, read_only: bool = True) -> LocalStore:
        """The folder as zarr-python's store."""
        return LocalStore(self.root, read_only=read_only)

    def read(self, key: str = "") -> bytes | None:
        """The bytes of a file; None when there is none."""
        try:
            return self._file(key).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def put(self, key: str, data: bytes) -> None:
        """Write a file, replacing what was there."""
        durable.replace(self._file(key), data)

    def create(self, key: str, data: bytes) -> bool:
        """Write a file unless it exists; returns False when it did."""
        return durable.create(self._file(key), data)

    def size(self, key: str) -> int | None:
        """Bytes of a file; None when there is none."""
        try:
            return self._file(key).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def digest(self, key: str) -> str | None:
        """sha256 of a file; None when there is none."""
        try:
            with self._file(key).open("rb") as handle:
                return hashlib.file_digest(handle, "sha256").hexdigest()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def delete(self, key: str = "") -> None:
        """Delete a file; one that does not exist is no error."""
        self._file(key).unlink(missing_ok=True)

    def list(self, prefix: str = "") -> tuple[tuple[str, int], ...]:
        """(key, bytes) of every file below the folder ``prefix``, sorted; none where there is no folder."""
        found = []
        for base, _, names in os.walk(self._file(prefix)):
            for name in names:
                file = Path(base) / name
                with contextlib.suppress(FileNotFoundError):  # another process's temporary file
                    found.append((file.relative_to(self.root).as_posix(), file.stat().st_size))
        return tuple(sorted(found))

    def sibling(self, suffix: str) -> LocalPlace:
        """The place beside this one whose name has ``suffix`` behind it."""
        return LocalPlace(self.root.with_name(self.root.name + suffix))

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        """Use the folder while nobody changes its shape: a lock that the system drops with the process."""
        with durable.locked(self._lock, exclusive=False):
            yield

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[Callable[[], None]]:
        """Be the only one to change its shape."""
        with durable.locked(self._lock, exclusive=True):
            yield _still

    @property
    def _lock(self) -> Path:
        """Beside the folder, so that a store holds nothing but Zarr."""
        return self.root.with_name(f"{self.root.name}.lock")

    def _file(self, key: str) -> Path:
        return self.root / key if key else self.root


def place_of(path: str | Path | LocalPlace | ObjectPlace) -> LocalPlace | ObjectPlace:
    """The place that a path or URL means; makes and opens nothing.

    Raises:
        ConfigError: A URL of another kind than ``s3://``, ``gs://``, ``az://`` and ``file://``, or with credentials.
    """
    if isinstance(path, LocalPlace | ObjectPlace):
        return path
    text = str(path)
    if "://" in text and not text.startswith("file://"):
        return ObjectPlace(split_url(text))
    return LocalPlace(durable.local_path(text))


def _still() -> None:
    """A lock of the system is held until it is given back."""
