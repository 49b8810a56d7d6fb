"""What may stand behind a map: a probe of classes or a regressor, told apart by its file."""

from __future__ import annotations

from typing import Any

from pipeline.errors import InvalidInputError
from pipeline.maps import files, probe, ridge

Head = probe.Probe | ridge.Regressor
BANDS = "bands"
"""Key of a kept file that says which further bands its map has."""


def load(path: str) -> Head:
    """Read a file written by ``Probe.save`` or ``Regressor.save``; nothing in it is executed.

    Raises:
        InvalidInputError: No such file, neither of both, another format, wrong shapes or numbers that are not finite.
    """
    return _of_payload(files.read_json(path), path)


def keep(head: Head, path: str, *, bands: tuple[str, ...]) -> None:
    """Write a head together with the further bands of its map, so that the map can be made again; atomic.

    Raises:
        OutputError: The file cannot be written.
    """
    files.write_json(path, head.payload() | {BANDS: list(bands)})


def load_kept(path: str) -> tuple[Head, tuple[str, ...]]:
    """What ``keep`` wrote: the head and the names of the bands; none for a file of an earlier version.

    Raises:
        InvalidInputError: As ``load``.
    """
    payload = files.read_json(path)
    head = _of_payload(payload, path)
    try:
        return head, files.texts(payload.get(BANDS, []))
    except TypeError as err:
        raise InvalidInputError(f"probe file {path} is damaged: {err}") from err


def _of_payload(payload: Any, path: str) -> Head:
    if isinstance(payload, dict) and payload.get("format") == ridge.FORMAT:
        return ridge.of_payload(payload, path)
    return probe.of_payload(payload, path)
