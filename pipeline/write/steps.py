"""Whose a time step of a store is: ``<store>.steps/<start>.json``, made once, before the first tile is written.

Several outputs may share a store, each with dates of its own. A tile is written whole, so two outputs in one time step
would overwrite each other's blocks without either noticing; their records lie in different folders.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pipeline.errors import OutputError
from pipeline.write.place import place_of

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from pipeline.write.place import LocalPlace, ObjectPlace


def claim(store: str | Path, start: datetime, end: datetime, *, owner: str, output: str) -> None:
    """Make the time step [start, end) belong to an output; the same output may do it again.

    Args:
        store: Folder or URL of the store.
        start: First moment of the step.
        end: Its end, not included.
        owner: Identity of the output, which it keeps when its folder is moved.
        output: The output's folder, for people.

    Raises:
        OutputError: It belongs to another output (which is named), or the record cannot be written.
    """
    record = {"owner": owner, "output": output, "start": f"{start:%Y-%m-%d}", "end": f"{end:%Y-%m-%d}"}
    if not _steps(store).create(_key(start), (json.dumps(record, indent=2) + "\n").encode()):
        check(store, start, owner=owner)


def check(store: str | Path, start: datetime, *, owner: str) -> bool:
    """Refuse a time step that belongs to another output than ``owner``; returns whether there is a record of it.

    Raises:
        OutputError: It does; says whose it is and what can be done.
    """
    place = _steps(store)
    data = place.read(_key(start))
    if data is None:
        return False
    try:
        record = json.loads(data)
        theirs, output = str(record["owner"]), str(record["output"])
    except (ValueError, KeyError, TypeError):
        raise OutputError(f"{place}/{_key(start)} is damaged: delete it if no run is writing this time step") from None
    if theirs != owner:
        raise OutputError(
            f"{taken(store, start, output=output)}. If that output is gone for good, delete {place}/{_key(start)}"
        )
    return True


def taken(store: str | Path, start: datetime, *, output: str | Path) -> str:
    """What is said of a time step that belongs to another ``output``."""
    return (
        f"store {place_of(store).name}: the time step from {start:%Y-%m-%d} belongs to the output {output}; two "
        "outputs would overwrite each other's blocks. Plan into that output (it unites areas), or use other dates or "
        "another store.path"
    )


def _steps(store: str | Path) -> LocalPlace | ObjectPlace:
    return place_of(store).sibling(".steps")


def _key(start: datetime) -> str:
    return f"{start:%Y-%m-%d}.json"
