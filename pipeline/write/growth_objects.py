"""Make and grow a store in an object store, where nothing can be renamed or linked.

Growth to the south and east, new zones and new time steps change metadata only. The order makes every moment readable:

1. new chunks of coordinates (old metadata does not know them; old chunks keep their bytes, see ``zones.zone_objects``);
2. ``zarr.json`` of the arrays;
3. ``zarr.json`` of the zone group, with the consolidated metadata of its arrays: from here on this is the zone;
4. ``zarr.json`` of the root, with everything consolidated.

A reader holds either the old or the new metadata of a zone, and a pixel's object and index are the same in both, so no
pixel is ever misplaced. After a crash the same call goes on: it compares what is there with what should be. Growth to
the north or west would give every object another name, which an object store can only do by copying each: refused.
All callers hold the lease of the store (``place_object.py``).
"""

from __future__ import annotations

import json
import logging
from dataclasses import replace as with_changes
from typing import TYPE_CHECKING, Any

import zarr

from pipeline.errors import OutputError
from pipeline.write import durable, true_colour
from pipeline.write.growth import merged_times
from pipeline.write.layout import union, zone_name
from pipeline.write.zones import cuts_of, read_extent, read_periods, read_times, root_object, zone_objects

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from pipeline.types import Box
    from pipeline.write.durable import Checkpoint
    from pipeline.write.layout import StoreSpec
    from pipeline.write.place import ObjectPlace

log = logging.getLogger(__name__)

NODE = "zarr.json"


def zones_of(place: ObjectPlace) -> dict[int, tuple[Box, tuple[tuple[datetime, datetime], ...]]]:
    """Extent (in pixels of the arrays) and time steps of every zone that the root names."""
    found = {}
    for zone in _zones(_node(place, NODE)):
        group = _group(place, zone)
        found[zone] = (read_extent(group, zone), read_times(group))
    return found


def create(place: ObjectPlace, spec: StoreSpec, *, still: Callable[[], None], at: Checkpoint = durable.passed) -> None:
    """Make the store; its root appears last, so that half a store is none."""
    nodes: dict[str, bytes] = {}
    for extent in spec.boxes:
        nodes |= _put_zone(place, spec, extent=extent, cuts={}, still=still, at=at)
    still()
    if not place.create(NODE, root_object(spec, attributes=None, zones=nodes)):
        raise OutputError(f"{place}: another process made this store meanwhile: run again")
    at("create:placed")


def grow(place: ObjectPlace, spec: StoreSpec, *, still: Callable[[], None], at: Checkpoint = durable.passed) -> bool:
    """Make the store cover the union of what it covers and ``spec``; returns whether anything changed.

    Raises:
        OutputError: The union reaches further north or west than the store, or the lease was lost.
    """
    present = zones_of(place)
    zone = max(present, key=lambda z: len(present[z][1]))
    held = _group(place, zone)
    merged = merged_times(place.name, present[zone][1], read_periods(held), spec)
    merged = with_changes(merged, true_colour=true_colour.NAME in held)
    wanted = {box.zone: box for box in spec.boxes}
    targets = {z: _target(place, z, present=present, wanted=wanted) for z in sorted(present.keys() | wanted.keys())}
    nodes: dict[str, bytes] = {}
    for z, target in targets.items():
        name = zone_name(z)
        if z in present and (target, merged.times) == present[z]:
            nodes[name] = _node(place, f"{name}/{NODE}")
        else:
            cuts = cuts_of(_node(place, f"{name}/{NODE}")) if z in present else {}
            nodes |= _put_zone(place, merged, extent=target, cuts=cuts, still=still, at=at)
    old = _node(place, NODE)
    root = root_object(merged, attributes=json.loads(old)["attributes"], zones=nodes)
    if json.loads(root) == json.loads(old):
        return False
    still()
    place.put(NODE, root)
    at("grow:consolidated")
    return True


def _target(
    place: ObjectPlace,
    zone: int,
    *,
    present: dict[int, tuple[Box, tuple[tuple[datetime, datetime], ...]]],
    wanted: dict[int, Box],
) -> Box:
    if zone not in present:
        return wanted[zone]
    old = present[zone][0]
    target = union(old, wanted[zone]) if zone in wanted else old
    if target.row < old.row or target.col < old.col:
        sides = [name for name, more in (("north", target.row < old.row), ("west", target.col < old.col)) if more]
        raise OutputError(
            f"store {place.name} in an object store cannot grow to the {' and '.join(sides)} (zone {zone}): every "
            "object would need another name. Use another store.path for this area, make the store once with a plan of "
            "the whole area, or keep it in a local folder, which grows in every direction, and copy it when it is done"
        )
    return target


def _put_zone(
    place: ObjectPlace,
    spec: StoreSpec,
    *,
    extent: Box,
    cuts: dict[str, int],
    still: Callable[[], None],
    at: Checkpoint,
) -> dict[str, bytes]:
    """Write a zone in the order of the module's text; {group name: its ``zarr.json``}."""
    name = zone_name(extent.zone)
    objects = zone_objects(spec, extent=extent, cuts=cuts)
    order = sorted(objects, key=lambda key: (key == NODE, key.endswith(NODE), key))
    for key in order:
        if place.read(f"{name}/{key}") != objects[key]:
            if key == NODE:
                still()  # from here on this is the zone: the index of a time step must not change under who was faster
            place.put(f"{name}/{key}", objects[key])
            at(f"put:{name}/{key}")
    return {name: objects[NODE]}


def _node(place: ObjectPlace, key: str) -> bytes:
    data = place.read(key)
    if data is None:
        raise OutputError(f"{place}: {key} is missing: this is not a whole store")
    return data


def _zones(root: bytes) -> list[int]:
    nodes = json.loads(root).get("consolidated_metadata", {}).get("metadata", {})
    return sorted(int(name[3:]) for name in nodes if name.startswith("utm") and name[3:].isdigit())


def _group(place: ObjectPlace, zone: int) -> Any:
    return zarr.open_group(place.zarr(), path=zone_name(zone), mode="r", zarr_format=3, use_consolidated=True)
