"""JSON files of probes: read without executing anything, checked, written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from pathlib import Path
from typing import Any, Protocol

from pipeline.errors import InvalidInputError, OutputError

MAX_FILE_BYTES = 64_000_000


class Owned(Protocol):
    """A head that belongs to the vectors of one model and calibration."""

    @property
    def calibration(self) -> str:
        """Hash of the calibration."""
        ...

    @property
    def model_sha256(self) -> str:
        """Weights of the model."""
        ...

    @property
    def model_name(self) -> str:
        """Name of the model."""
        ...


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


def check_owner(head: Owned, calibration_hash: str, model_sha256: str) -> None:
    """Refuse vectors of another calibration or model than those a head was fitted on.

    Raises:
        InvalidInputError: Either differs; both sides are named.
    """
    if calibration_hash != head.calibration:
        raise InvalidInputError(
            f"the probe was fitted on calibration {head.calibration}, the store has {calibration_hash}: "
            "fit a probe on this store"
        )
    if model_sha256 != head.model_sha256:
        raise InvalidInputError(
            f"the probe was fitted on model {head.model_name} (sha256 {head.model_sha256}), the store was made by "
            f"sha256 {model_sha256}: fit a probe on this store"
        )
