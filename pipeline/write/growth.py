"""Grow a store: more ground in any direction, more zones, more time steps; no pixel is written or lost.

Objects are named by their place in the array, so ground added in the north or west gives every old shard a new name.
The grown zones are built beside the store with hard links to the old shards, and then exchanged:

    STORE.growth/building/utmNN   being built; of no value until it is renamed to ready (crash: thrown away)
    STORE.growth/ready/utmNN      complete (crash: ``finish`` goes on from where it stopped)
    STORE.growth/old/utmNN        the zone before, until the root's consolidated metadata is new

Every zone folder has its own consolidated metadata and moves with it, and the root's is taken away before the first
exchange, so a reader sees the old zone, the new zone, or none, and never pixels at a wrong place. All callers hold the
exclusive lock of the store; writers of shards hold the shared one (``store.py``).
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from dataclasses import replace as with_changes
from itertools import chain
from typing import TYPE_CHECKING

import zarr
from zarr.storage import LocalStore

from pipeline.errors import OutputError
from pipeline.write import durable, true_colour
from pipeline.write.layout import arrays, union, zone_name
from pipeline.write.zones import build_zone, consolidate, read_extent, read_periods, read_times, sync_tree

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime
    from pathlib import Path

    from pipeline.types import Box, Period
    from pipeline.write.durable import Checkpoint
    from pipeline.write.layout import StoreSpec

log = logging.getLogger(__name__)


def growth_folder(root: Path) -> Path:
    """Where a growing store keeps its new zones."""
    return root.with_name(f"{root.name}.growth")


def unfinished(root: Path) -> bool:
    """Whether an interrupted growth has begun to exchange zones and must be finished before the store is used."""
    return (growth_folder(root) / "ready").is_dir()


def zones_of(root: Path) -> dict[int, tuple[Box, tuple[tuple[datetime, datetime], ...]]]:
    """Extent (in pixels of the arrays) and time steps of every zone of a store."""
    found = {}
    for folder in sorted(root.glob("utm[0-9][0-9]")):
        zone = int(folder.name.removeprefix("utm"))
        group = zarr.open_group(LocalStore(folder, read_only=True), mode="r", use_consolidated=False)
        found[zone] = (read_extent(group, zone), read_times(group))
    return found


def grow(root: Path, spec: StoreSpec, *, at: Checkpoint = durable.passed) -> bool:
    """Make the store cover the union of what it covers and ``spec``; returns whether anything changed.

    Raises:
        OutputError: The file system has no hard links or the folder cannot be written.
    """
    present = zones_of(root)
    zone, (_, known) = max(present.items(), key=lambda item: len(item[1][1]))
    group = zarr.open_group(LocalStore(root / zone_name(zone), read_only=True), mode="r", use_consolidated=False)
    merged = merged_times(root.name, known, read_periods(group), spec)
    # Layers that are no part of a store's identity stay as they are: objects of layers left out would be lost.
    merged = with_changes(merged, true_colour=true_colour.NAME in group)
    times = merged.times
    wanted = {box.zone: box for box in spec.boxes}
    changed: list[tuple[Box, Box | None]] = []
    for zone in sorted(present.keys() | wanted.keys()):
        if zone not in present:
            changed.append((wanted[zone], None))
            continue
        old, old_times = present[zone]
        target = union(old, wanted[zone]) if zone in wanted else old
        if target != old or times != old_times:
            changed.append((target, old))
    if not changed:
        return False
    build(root, merged, changed=tuple(changed), at=at)
    finish(root, at=at)
    return True


def build(
    root: Path, spec: StoreSpec, *, changed: tuple[tuple[Box, Box | None], ...], at: Checkpoint = durable.passed
) -> None:
    """Build the (new extent, old extent or None) zones beside the store and declare them ready."""
    building = growth_folder(root) / "building"
    building.mkdir(parents=True)
    for target, old in changed:
        name = zone_name(target.zone)
        build_zone(building / name, spec, extent=target)
        if old is not None:
            _link_shards(root / name, building / name, spec=spec, shift=_shift_m(old, target))
        at(f"grow:built:{name}")
    sync_tree(building)
    building.rename(building.with_name("ready"))
    durable.sync_folder(growth_folder(root))
    at("grow:ready")


def finish(root: Path, *, at: Checkpoint = durable.passed) -> None:
    """Exchange the zones that are ready; may be called again after a crash at any point."""
    growth = growth_folder(root)
    ready, old = growth / "ready", growth / "old"
    old.mkdir(exist_ok=True)
    _drop_consolidated(root)
    at("grow:unconsolidated")
    for fresh in sorted(ready.iterdir()):
        place = root / fresh.name
        if place.exists():
            place.rename(old / fresh.name)
            at(f"grow:moved:{fresh.name}")
        fresh.rename(place)
        at(f"grow:placed:{fresh.name}")
    durable.sync_folder(root)
    consolidate(root)
    at("grow:consolidated")
    shutil.rmtree(old)
    at("grow:cleaned")
    shutil.rmtree(growth)


def recover(root: Path, *, at: Checkpoint = durable.passed) -> None:
    """Finish or throw away what an interrupted growth left."""
    growth = growth_folder(root)
    if not growth.is_dir():
        return
    if unfinished(root):
        log.warning("finishing an interrupted growth of %s", root.name)
        finish(root, at=at)
    else:
        log.warning("throwing away an interrupted growth of %s", root.name)
        shutil.rmtree(growth)


def drop_partial(root: Path) -> None:
    """Delete what killed shard writers left; the exclusive lock says that no writer is alive."""
    for base, _, files in os.walk(root):
        for name in files:
            if name.endswith(".partial"):
                (root / base / name).unlink(missing_ok=True)


def merged_times(
    name: str,
    known: tuple[tuple[datetime, datetime], ...],
    held: tuple[tuple[Period, ...], ...],
    spec: StoreSpec,
) -> StoreSpec:
    """``spec`` with the time steps ``known`` of a store, which have the periods ``held``, and its own.

    Steps are only appended: an index that a receipt or a reader holds stays what it was.

    Raises:
        OutputError: A step has other periods in the store.
    """
    wanted = dict(zip(spec.times, spec.steps, strict=True))
    for step, periods in zip(known, held, strict=True):
        own, asked = (_edges(some) for some in (periods, wanted.get(step, periods)))
        if own != asked:
            raise OutputError(
                f"store {name}: step {step[0]:%Y-%m-%d}..{step[1]:%Y-%m-%d} has the periods {own}, the run has "
                f"{asked}: use another output"
            )
    fresh = tuple(step for step in spec.times if step not in known)
    return with_changes(
        spec,
        times=(*known, *fresh),
        periods=tuple(chain(*held, *(wanted[step] for step in fresh))),
    )


def _edges(periods: tuple[Period, ...]) -> list[str]:
    return [f"{p.start:%Y-%m-%d}..{p.end:%Y-%m-%d}" for p in periods]


def _shift_m(old: Box, target: Box) -> tuple[int, int]:
    """Ground that ``target`` has more than ``old`` in the (north, west), metres."""
    return (old.row - target.row) * old.res_m, (old.col - target.col) * old.res_m


def _link_shards(source: Path, target: Path, *, spec: StoreSpec, shift: tuple[int, int]) -> None:
    """Give the objects of a zone the names that they have in the grown one; ``shift`` as ``_shift_m`` says."""
    for layout in arrays(spec):
        rows, cols = (s // (layout.shard_px * layout.px_m) for s in shift)
        made: set[Path] = set()
        for parts in _shard_keys(source / layout.name / "c"):
            *lead, row, col = parts
            link = (target / layout.name / "c").joinpath(*lead, str(int(row) + rows), str(int(col) + cols))
            if link.parent not in made:
                link.parent.mkdir(parents=True, exist_ok=True)
                made.add(link.parent)
            try:
                os.link((source / layout.name / "c").joinpath(*parts), link)
            except OSError as err:
                raise OutputError(f"{link}: growing a store needs hard links: {err.strerror}") from err


def _shard_keys(folder: Path) -> Iterator[tuple[str, ...]]:
    """Keys below ``folder`` as parts; names that are not numbers are temporary files of killed writers."""
    if not folder.is_dir():
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.isdigit():
                continue
            if entry.is_dir():
                yield from ((entry.name, *rest) for rest in _shard_keys(folder / entry.name))
            else:
                yield (entry.name,)


def _drop_consolidated(root: Path) -> None:
    file = root / "zarr.json"
    metadata = json.loads(file.read_text(encoding="utf-8"))
    if metadata.pop("consolidated_metadata", None) is not None:
        durable.replace(file, json.dumps(metadata, indent=2).encode())
