"""Create, grow, write, check and open embedding stores (Zarr v3, sharded).

One process makes the metadata (``create_store``); workers write tiles (``write_tile``, in ``shards.py``) and never
touch metadata. The public names of both are here.
"""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.codes import POWER, POWER_STEPS
from pipeline.errors import InvalidInputError, OutputError
from pipeline.types import NODATA_CODE
from pipeline.write import durable, growth, growth_objects
from pipeline.write.attributes import SCALED
from pipeline.write.layout import FORMAT_VERSION, PIXEL_SCALE, MapLayer, StoreSpec, identity, zone_name
from pipeline.write.opened import require, shared
from pipeline.write.place import LocalPlace, ObjectPlace, place_of
from pipeline.write.shards import Objects, array_names, check_objects, read_box, read_map, read_tile, write_tile
from pipeline.write.zones import build_root

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    import xarray

    from pipeline.types import Box
    from pipeline.write.durable import Checkpoint

__all__ = [
    "MapLayer",
    "Objects",
    "StoreSpec",
    "array_names",
    "check_objects",
    "check_store",
    "create_store",
    "open_store",
    "read_box",
    "read_map",
    "read_tile",
    "root_attributes",
    "time_index",
    "times",
    "write_tile",
    "zones",
]

log = logging.getLogger(__name__)


def create_store(path: str | Path, spec: StoreSpec, *, at: Checkpoint = durable.passed) -> None:
    """Make the store, or make an existing one cover ``spec`` too; safe to call again, also after a crash.

    The existing store may have other extents and time steps: it grows to the union and every pixel stays at its ground
    place. In a folder, callers of other functions of this module wait while it grows; in an object store they go on,
    and it grows to the south and east, by zones and by time steps only (``growth_objects.py`` says why).

    Args:
        path: Local folder of the store (``name.zarr``), or its URL in an object store.
        spec: What the metadata says.
        at: Called after every step that a crash can separate (tests).

    Raises:
        OutputError: The place holds something else, or a store of another recipe, calibration, grid or maps; it cannot
            be written; or the object store has no conditional create.
    """
    place = place_of(path)
    if isinstance(place, ObjectPlace):
        _create_or_grow_objects(place, spec, at=at)
        return
    root = place.root
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise OutputError(f"{root.parent}: cannot be made: {err.strerror}") from err
    with place.exclusive():
        growth.recover(root, at=at)
        if not (root / "zarr.json").is_file():
            _create(root, spec, at=at)
            return
        held = _root_attributes(place)
        _check_same(place, held, spec)
        growth.drop_partial(root)
        if growth.grow(root, _titled(spec, held), at=at):
            log.info("store %s grew", root.name)


def check_store(path: str | Path, spec: StoreSpec) -> bool:
    """Refuse a store that ``create_store`` would refuse, before anything is computed; returns whether there is one.

    Raises:
        OutputError: It was made differently; says what differs.
    """
    place = place_of(path)
    if place.size("zarr.json") is None:
        return False
    _check_same(place, _root_attributes(place), spec)
    return True


def root_attributes(path: str | Path) -> dict[str, Any]:
    """The attributes of the root group; empty when there is no store.

    Raises:
        OutputError: It cannot be read.
    """
    place = place_of(path)
    return {} if place.size("zarr.json") is None else _root_attributes(place)


def zones(path: str | Path) -> tuple[Box, ...]:
    """The extent of every zone of a store in pixels of its arrays (``res_m`` says their side), sorted by zone."""
    return tuple(box for box, _ in _zones_of(path).values())


def times(path: str | Path) -> tuple[tuple[datetime, datetime], ...]:
    """The (start, end) of every time step, in the order of the time axis."""
    return max((steps for _, steps in _zones_of(path).values()), key=len)


def time_index(path: str | Path, start: datetime, end: datetime) -> int:
    """Index of the time step [start, end) of a store; steps are appended, so it never changes.

    Raises:
        OutputError: The store has no such step.
    """
    steps = next(iter(_zones_of(path).values()))[1]
    if (start, end) not in steps:
        name = place_of(path).name
        raise OutputError(f"store {name} has no time step {start:%Y-%m-%d}..{end:%Y-%m-%d}; call create_store")
    return steps.index((start, end))


def open_store(path: str | Path, *, zone: int | None = None, dequantise: bool = False) -> xarray.Dataset:
    """Open one UTM zone of a store lazily, georeferenced, one dask chunk per shard.

    Args:
        path: The store: a folder, or the URL of an object store.
        zone: UTM zone; may be left out when the store has only one. Zones have different coordinate systems, so
            there is no Dataset of several.
        dequantise: True replaces the codes by float32 values with NaN nodata (still lazy): the model's vectors, or
            scores for ``pca``.

    Returns:
        ``embeddings (time, band, y, x)`` int8 with nodata -128, ``reason``, ``n_obs``, ``map_*``, and the coordinates
        ``scale (band)``, ``x``, ``y``, ``time``, ``spatial_ref``; ``ds.rio.crs`` works. A pixel is 10 m, or a token in
        a store of token resolution (``ds.attrs["earthpress"]["token_px"]`` 10 m pixels). Where the store has them,
        ``qa_clear_pct``, ``qa_scenes`` and ``qa_first_day`` (dates, NaT without a scene) with the axes (time, sensor,
        period, block_y, block_x), one value per block of 2560 m; see ``quality.py``. ``rgb`` (time, period, channel,
        rgb_y, rgb_x) are true colours at 80 m, see ``true_colour.py``.

    Raises:
        OutputError: Not a store, or its interrupted growth cannot be finished.
        InvalidInputError: Several zones and none asked for, or a zone that the store does not have.
    """
    import rioxarray  # noqa: F401, PLC0415  (gives the Dataset its .rio)
    import xarray as xr  # noqa: PLC0415

    place = place_of(path)
    if isinstance(place, LocalPlace) and growth.unfinished(place.root):
        with place.exclusive():
            growth.recover(place.root)
    require(place)
    found = _zone_numbers(place)
    if zone is None and len(found) != 1:
        raise InvalidInputError(
            f"store {place.name} has the zones {found}: say which, open_store(path, zone={found[0]})"
        )
    if zone is not None and zone not in found:
        raise InvalidInputError(f"store {place.name} has no zone {zone}, only {found}")
    group = zone_name(zone or found[0])
    shard = json.loads(place.read(f"{group}/zarr.json") or b"")["attributes"]["earthpress"]["shard_px"]
    chunks = {"time": 1, "band": -1, "y": shard, "x": shard}
    source = str(place.root) if isinstance(place, LocalPlace) else place.zarr()
    data: xarray.Dataset = xr.open_zarr(source, group=group, consolidated=True, chunks=chunks, decode_coords="all")
    if "sensor" in data.coords:
        # numpy's own string type: formats that xarray writes (NetCDF) do not know it yet
        data = data.assign_coords(sensor=data["sensor"].astype(object))
    if dequantise:
        kept = {k: v for k, v in data["embeddings"].attrs.items() if k in ("long_name", "warning", "trained")}
        data["embeddings"] = _decoded(data).transpose(*data["embeddings"].dims).assign_attrs(kept)
    return data


def _decoded(data: xarray.Dataset) -> xarray.DataArray:
    """float32 values, lazy; the same numbers as ``pipeline.codes.decode``."""
    own, codes = data.attrs["earthpress"]["calibration"], data["embeddings"]
    method = own.get("method", "linear")
    if codes.dtype != np.int8:
        return codes.astype(np.float32)
    values = codes.where(codes != NODATA_CODE).astype(np.float32)
    if method in SCALED:
        return values * data["scale"]
    if method == "per_pixel":
        return values * data[PIXEL_SCALE]
    sign = values.clip(-1, 1)  # of whole numbers
    return sign * np.float32(POWER_STEPS**-POWER) * values * values


def _create(root: Path, spec: StoreSpec, *, at: Checkpoint) -> None:
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise OutputError(f"{root} exists and is not an earthpress store: choose another output")
    temp = root.with_name(f"{root.name}.creating")
    shutil.rmtree(temp, ignore_errors=True)
    try:
        temp.mkdir()
        build_root(temp, spec)
        at("create:built")
        temp.rename(root)
        durable.sync_folder(root.parent)
    except OSError as err:
        raise OutputError(f"store {root} cannot be made: {err.strerror or err}") from err
    at("create:placed")


def _create_or_grow_objects(place: ObjectPlace, spec: StoreSpec, *, at: Checkpoint) -> None:
    if place.size("zarr.json") is None:
        place.check_conditional()
    with place.exclusive() as still:
        if place.size("zarr.json") is None:
            if any(not key.startswith("utm") for key, _ in place.list()):
                raise OutputError(f"{place} holds other objects: choose another store.path")
            growth_objects.create(place, spec, still=still, at=at)
            return
        held = _root_attributes(place)
        _check_same(place, held, spec)
        if growth_objects.grow(place, _titled(spec, held), still=still, at=at):
            log.info("store %s grew", place.name)


def _zones_of(path: str | Path) -> dict[int, tuple[Box, tuple[tuple[datetime, datetime], ...]]]:
    place = place_of(path)
    require(place)
    with shared(place):
        return growth.zones_of(place.root) if isinstance(place, LocalPlace) else growth_objects.zones_of(place)


def _zone_numbers(place: LocalPlace | ObjectPlace) -> tuple[int, ...]:
    if isinstance(place, LocalPlace):
        return tuple(int(p.name[3:]) for p in sorted(place.root.glob("utm[0-9][0-9]")))
    return tuple(growth_objects.zones_of(place))


def _titled(spec: StoreSpec, held: dict[str, Any]) -> StoreSpec:
    """``spec`` under the store's own name: an output that joins a store does not rename it."""
    return replace(spec, name=str(held.get("title", spec.name)))


def _check_same(place: LocalPlace | ObjectPlace, attributes: dict[str, Any], spec: StoreSpec) -> None:
    own = attributes.get("earthpress")
    if not isinstance(own, dict) or own.get("format") != FORMAT_VERSION:
        raise OutputError(f"{place} is not an earthpress store of format {FORMAT_VERSION}: choose another output")
    wanted, held = identity(spec), own.get("identity", {})
    if spec.dated_recipe and held.get("recipe") == spec.dated_recipe:
        wanted["recipe"] = spec.dated_recipe  # of a version whose stores could not be shared by several dates
    different = [
        f"{k} is {held.get(k, 'none')}, the run has {wanted.get(k, 'none')}"
        for k in wanted | held
        if held.get(k) != wanted.get(k)
    ]
    if different:
        # of a version that did not say who made it, and whose recipes hold the dates
        dated = "" if "software" in own else " (an earlier version made this store: it takes no further dates)"
        raise OutputError(
            f"store {place.name} was made differently: {'; '.join(different)}{dated}. Vectors of different recipes "
            "cannot be compared: use another output (or store.path), or the settings of the store"
        )


def _root_attributes(place: LocalPlace | ObjectPlace) -> dict[str, Any]:
    try:
        metadata = json.loads(place.read("zarr.json") or b"")
    except (OSError, ValueError) as err:
        raise OutputError(f"{place} is not a readable Zarr store: {err}") from err
    attributes = metadata.get("attributes", {}) if isinstance(metadata, dict) else {}
    return attributes if isinstance(attributes, dict) else {}
