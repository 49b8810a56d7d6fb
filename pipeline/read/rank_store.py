"""Where rankings are remembered: in this process, or in a folder that several processes share.

Texts by key, the first writer wins. Knows nothing of what the texts say.
"""

from __future__ import annotations

import os
import re
import threading
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager

_KEY = re.compile(r"[A-Za-z0-9_.-]{1,200}")


class RankStore(Protocol):
    """Remembers rankings; the first writer wins."""

    def get(self, key: str) -> str | None:
        """What is stored under ``key``."""

    def put(self, key: str, text: str) -> str:
        """Store ``text`` unless something is stored already; returns what is stored."""

    def turn(self) -> AbstractContextManager[Any]:
        """Held while a thread of this process ranks, so that two tiles do not read the same cell twice."""


class MemoryRanks:
    """Rankings of this process; a copy sent to another process starts with what is known."""

    def __init__(self, texts: Mapping[str, str] | None = None) -> None:
        self._texts = dict(texts or {})
        self._lock = threading.Lock()
        self._turn = threading.Lock()

    def turn(self) -> AbstractContextManager[Any]:
        """See ``RankStore``."""
        return self._turn

    def get(self, key: str) -> str | None:
        """What is stored under ``key``."""
        return self._texts.get(key)

    def put(self, key: str, text: str) -> str:
        """Store ``text`` unless something is stored already; returns what is stored."""
        with self._lock:
            return self._texts.setdefault(key, text)

    def __reduce__(self) -> tuple[type[MemoryRanks], tuple[dict[str, str]]]:
        with self._lock:
            return MemoryRanks, (dict(self._texts),)


class FolderRanks:
    """Rankings in a folder that several processes share: one small JSON file each.

    A file is complete when it ends with a newline; a torn one counts as absent.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._turn = threading.Lock()

    def turn(self) -> AbstractContextManager[Any]:
        """See ``RankStore``."""
        return self._turn

    def __reduce__(self) -> tuple[type[FolderRanks], tuple[Path]]:
        return FolderRanks, (self._path,)  # locks stay in their process

    def get(self, key: str) -> str | None:
        """What is stored under ``key``.

        Raises:
            OutputError: The folder cannot be read.
        """
        try:
            text = self._file(key).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except OSError as err:
            raise OutputError(f"ranking {key} cannot be read: {err.strerror}") from err
        return text[:-1] if text.endswith("\n") else None

    def put(self, key: str, text: str) -> str:
        """Store ``text`` unless something is stored already; returns what is stored.

        Raises:
            OutputError: The folder cannot be written.
        """
        file = self._file(key)
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            self._create(file, f"{text}\n".encode())
        except FileExistsError:
            stored = self.get(key)
            return text if stored is None else stored
        except OSError as err:
            raise OutputError(f"ranking {key} cannot be written to {self._path}: {err.strerror}") from err
        return text

    def _create(self, file: Path, data: bytes) -> None:
        trial = file.with_name(f".{uuid.uuid4().hex}.tmp")
        try:
            trial.write_bytes(data)
            try:
                os.link(trial, file)
            except FileExistsError:
                raise
            except OSError:  # no hard links here (mounted object stores): exclusive create, newline as end mark
                with file.open("xb") as stream:
                    stream.write(data)
        finally:
            trial.unlink(missing_ok=True)

    def _file(self, key: str) -> Path:
        if not _KEY.fullmatch(key):
            raise OutputError(f"{key!r} cannot name a ranking: letters, digits, '_', '.', '-' only")
        return self._path / f"{key}.json"
