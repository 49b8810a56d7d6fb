"""Enter a store: its lock, its zones. What ``store.py`` and ``shards.py`` share."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import zarr

from pipeline.errors import OutputError
from pipeline.write import growth
from pipeline.write.layout import zone_name
from pipeline.write.place import LocalPlace
from pipeline.write.zones import read_extent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.types import Box
    from pipeline.write.place import ObjectPlace


@contextlib.contextmanager
def shared(place: LocalPlace | ObjectPlace) -> Iterator[None]:
    """Use a store that no other process is growing."""
    if not isinstance(place, LocalPlace):
        yield  # every request counts there: whether there is a store is seen when its zone is opened
        return
    require(place)
    with place.shared():
        if growth.unfinished(place.root):
            raise OutputError(
                f"growth of store {place.name} was interrupted: run the plan again (create_store finishes it)"
            )
        yield


def require(place: LocalPlace | ObjectPlace) -> None:
    """Refuse a place that holds no store.

    Raises:
        OutputError: There is none.
    """
    if place.size("zarr.json") is None:
        raise OutputError(f"there is no store at {place}")


def open_zone(place: LocalPlace | ObjectPlace, zone: int) -> tuple[Any, Box]:
    """The zone's group, read-only, and the box under its arrays, in their pixels.

    Raises:
        OutputError: The store does not have the zone.
    """
    try:
        group = zarr.open_group(
            place.zarr(), path=zone_name(zone), mode="r", zarr_format=3, use_consolidated=consolidated(place)
        )
    except FileNotFoundError:
        require(place)
        raise OutputError(f"store {place.name} has no zone {zone}: create_store with its extent first") from None
    return group, read_extent(group, zone)


def consolidated(place: LocalPlace | ObjectPlace) -> bool:
    """Whether a zone is read through its consolidated metadata.

    In an object store that is the one object that says what the zone is: it is replaced last when a store grows.
    In a folder all files of a zone are exchanged together.
    """
    return not place.is_local
