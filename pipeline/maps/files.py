"""JSON files of probes: read without executing anything, checked, written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import InvalidInputError, OutputError

MAX_FILE_BYTES = 64_000_000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fitted(ABC):
    """What every fitted head knows of the vectors that it was fitted on.

    Attributes:
        calibration: Hash of the calibration of the vectors it was fitted on.
        model_sha256: Weights of the model that made the vectors.
        model_name: Name of that model.
        trained: False when that model had random weights: maps must be labelled.
        patch_px: Patch of the embedding.
        created: ISO 8601 UTC.
        report: Of its validation, JSON.
    """

    calibration: str
    model_sha256: str
    model_name: str
    trained: bool
    patch_px: int
    created: str
    report: str

    def check(self, calibration_hash: str, model_sha256: str) -> None:
        """Refuse vectors of another calibration or model.

        Raises:
            InvalidInputError: Either differs; both sides are named.
        """
        if calibration_hash != self.calibration:
            raise InvalidInputError(
                f"the probe was fitted on calibration {self.calibration}, the store has {calibration_hash}: "
                "fit a probe on this store"
            )
        if model_sha256 != self.model_sha256:
            raise InvalidInputError(
                f"the probe was fitted on model {self.model_name} (sha256 {self.model_sha256}), the store was made by "
                f"sha256 {model_sha256}: fit a probe on this store"
            )

    @abstractmethod
    def payload(self) -> dict[str, Any]:
        """What its file holds: JSON values."""

    def save(self, path: str) -> None:
        """Write it as one JSON file, numbers in full precision; atomic.

        Raises:
            OutputError: The file cannot be written.
        """
        write_json(path, self.payload())


def text(value: Any) -> str:
    """The value, which must be text.

    Raises:
        TypeError: It is not.
    """
    if not isinstance(value, str):
        raise TypeError(f"expected text, got {type(value).__name__}")
    return value


def texts(value: Any) -> tuple[str, ...]:
    """The values of a list of texts.

    Raises:
        TypeError: It is none.
    """
    if not isinstance(value, list):
        raise TypeError(f"expected a list of texts, got {type(value).__name__}")
    return tuple(text(v) for v in value)


def read_json(path: str) -> Any:
    """What a file holds; nothing in it is executed.

    Raises:
        InvalidInputError: No such file, too large, not JSON, or a number that is not finite.
    """
    file = Path(path)
    if not file.is_file():
        raise InvalidInputError(f"probe file {path} does not exist: make one with 'earthpress probe fit'")
    if file.stat().st_size > MAX_FILE_BYTES:
        raise InvalidInputError(f"probe file {path} has {file.stat().st_size} bytes, the limit is {MAX_FILE_BYTES}")
    try:
        return json.loads(file.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as err:
        raise InvalidInputError(f"probe file {path} is not a JSON probe file: {err}") from err


def _refuse_constant(name: str) -> float:
    raise ValueError(f"it holds {name}")


def write_json(path: str, payload: dict[str, Any]) -> None:
    """Write one JSON object, numbers in full precision; the file is there whole or not at all.

    Raises:
        OutputError: The file cannot be written.
    """
    _write(Path(path), json.dumps(payload, allow_nan=False, indent=None, separators=(",", ":")))


def _write(path: Path, content: str) -> None:
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(content, encoding="utf-8")
        temporary.replace(path)
    except OSError as err:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise OutputError(f"probe file {path} cannot be written: {err}") from err
