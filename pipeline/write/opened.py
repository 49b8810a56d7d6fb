"""Enter a store: its lock, its zones. What ``store.py`` and ``shards.py`` share."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import zarr
from zarr.storage import LocalStore

from pipeline.errors import OutputError
from pipeline.write import durable, growth
from pipeline.write.layout import zone_name
from pipeline.write.zones import read_extent

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pipeline.types import Box


def lock_file(root: Path) -> Path:
    """Beside the store, so that the store holds nothing but Zarr."""
    return root.with_name(f"{root.name}.lock")


@contextlib.contextmanager
def shared(root: Path) -> Iterator[None]:
    """Use a store that no other process is growing."""
    require(root)
    with durable.locked(lock_file(root), exclusive=False):
        if growth.unfinished(root):
            raise OutputError(
                f"growth of store {root.name} was interrupted: run the plan again (create_store finishes it)"
            )
        yield


def require(root: Path) -> None:
    """Refuse a folder that is not a store.

    Raises:
        OutputError: There is none.
    """
    if not (root / "zarr.json").is_file():
        raise OutputError(f"there is no store at {root}")


def open_zone(root: Path, zone: int) -> tuple[Any, Box]:
    """The zone's group, read-only, and the box under its arrays, in their pixels.

    Raises:
        OutputError: The store does not have the zone.
    """
    if not (root / zone_name(zone) / "zarr.json").is_file():
        raise OutputError(f"store {root.name} has no zone {zone}: create_store with its extent first")
    store = LocalStore(root, read_only=True)
    group = zarr.open_group(store, path=zone_name(zone), mode="r", use_consolidated=False)
    return group, read_extent(group, zone)
