"""Rows on disk: one CSV per device and kind of measurement, appended to and never rewritten.

A row is written, flushed and synchronised as soon as it is measured, so an interrupted run keeps what it has; a line
that a crash cut short is ignored. The key of a row is a frozen dataclass, its values are another; their fields are the
columns.
"""

from __future__ import annotations

import csv
import os
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pipeline.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Mapping

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """Where the results of one device are.

    Attributes:
        folder: Where all devices' files lie.
        device: Product name.
    """

    folder: Path
    device: str

    @property
    def slug(self) -> str:
        """The device's name as part of a file name."""
        return slug(self.device)

    def csv(self, kind: str = "") -> Path:
        """The table of ``encoder`` rows (""), ``vs_reference`` or ``loader``."""
        return self.folder / f"{self.slug}{f'_{kind}' if kind else ''}.csv"

    @property
    def sidecar(self) -> Path:
        """What the device was when rows were measured."""
        return self.folder / f"{self.slug}_hardware.json"


def slug(name: str) -> str:
    """A product name as a file name.

    >>> slug("AMD EPYC 9B14 (AVX512 AVX512_BF16)")
    'amd_epyc_9b14_avx512_avx512_bf16'
    """
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "unknown"


def default_folder() -> Path:
    """``benchmarks/results`` in a checkout, else ``bench`` in the current folder."""
    return Path("benchmarks/results") if Path("benchmarks").is_dir() else Path("bench")


class Table(Generic[K, V]):
    """A CSV of keys and values."""

    def __init__(self, path: Path, key: type[K], value: type[V]) -> None:
        """Open or begin a table.

        Args:
            path: The file; need not exist.
            key: Frozen dataclass of strings, numbers and booleans.
            value: The same, whose fields may be None.

        Raises:
            OutputError: The file holds other columns, or cannot be read.
        """
        self.path, self._key, self._value = path, key, value
        names = [f.name for f in fields(key)] + [f.name for f in fields(value)]  # type: ignore[arg-type]
        self._types = {f.name: str(f.type) for kind in (key, value) for f in fields(kind)}  # type: ignore[arg-type]
        self._names = names
        self._rows = dict(self._read())

    def __contains__(self, key: K) -> bool:
        """Whether a row of this key is there, failed or not."""
        return key in self._rows

    def __getitem__(self, key: K) -> V:
        """The latest row of a key."""
        return self._rows[key]

    def rows(self) -> tuple[tuple[K, V], ...]:
        """Every key with its latest values, in the order of the file."""
        return tuple(self._rows.items())

    def append(self, key: K, value: V) -> None:
        """Add a row and see that it is on disk.

        Raises:
            OutputError: The file cannot be written.
        """
        line = asdict(key) | asdict(value)  # type: ignore[call-overload]
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            new = not self.path.exists() or not self.path.stat().st_size
            cut = not new and not self.path.read_bytes().endswith(b"\n")
            with self.path.open("a", encoding="utf-8", newline="") as file:
                if cut:
                    file.write("\n")
                writer = csv.writer(file, lineterminator="\n")
                if new:
                    writer.writerow(self._names)
                writer.writerow([_text(line[name]) for name in self._names])
                file.flush()
                os.fsync(file.fileno())
        except OSError as err:
            raise OutputError(f"{self.path} cannot be written: {err}; choose another folder with --output") from err
        self._rows[key] = value

    def _read(self) -> list[tuple[K, V]]:
        try:
            text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        except (OSError, UnicodeDecodeError) as err:
            raise OutputError(f"{self.path} cannot be read: {err}; choose another folder with --output") from err
        lines = text.splitlines()
        if not lines:
            return []
        if next(csv.reader(lines[:1])) != self._names:
            raise OutputError(f"{self.path} holds other columns than this version writes: move it away")
        whole = [row for row in csv.DictReader(lines) if None not in row and None not in row.values()]
        return [pair for pair in (self._pair(row) for row in whole) if pair is not None]

    def _pair(self, row: Mapping[str, str]) -> tuple[K, V] | None:
        try:
            found = {name: _value(self._types[name], text) for name, text in row.items()}
        except ValueError:  # a line that was cut within a number
            return None
        key = self._key(**{f.name: found[f.name] for f in fields(self._key)})  # type: ignore[arg-type]
        return key, self._value(**{f.name: found[f.name] for f in fields(self._value)})  # type: ignore[arg-type]


def _text(value: Any) -> str:
    """A cell: numbers with 6 digits, nothing for None, an error on one line."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else " ".join(str(value).split())


def _value(kind: str, text: str) -> Any:
    """A cell back into the type its dataclass names; raises ValueError."""
    kind, _, optional = kind.partition(" | ")
    if optional and not text:
        return None
    if kind == "bool":
        if text not in ("true", "false"):
            raise ValueError(text)
        return text == "true"
    return {"int": int, "float": float, "str": str}[kind](text)
