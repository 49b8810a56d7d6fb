"""Create, grow, write, check and open embedding stores (Zarr v3, sharded).

One process makes the metadata (``create_store``); workers write tiles (``write_tile``, in ``shards.py``) and never
touch metadata. The public names of both are here.
"""

from __future__ import annotations

import json
import logging
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import InvalidInputError, OutputError
from pipeline.types import NODATA_CODE
from pipeline.write import durable, growth
from pipeline.write.layout import FORMAT_VERSION, MapLayer, StoreSpec, identity, zone_name
from pipeline.write.opened import lock_file, require, shared
from pipeline.write.shards import Objects, check_objects, read_box, read_map, read_tile, write_tile
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
    "check_objects",
    "create_store",
    "open_store",
    "read_box",
    "read_map",
    "read_tile",
    "time_index",
    "write_tile",
    "zones",
]

log = logging.getLogger(__name__)


def create_store(path: str | Path, spec: StoreSpec, *, at: Checkpoint = durable.passed) -> None:
    """Make the store, or make an existing one cover ``spec`` too; safe to call again, also after a crash.

    The existing store may have other extents and time steps: it grows to the union and every pixel stays at its ground
    place. Callers of other functions of this module wait while it grows.

    Args:
        path: Local folder of the store (``name.zarr``).
        spec: What the metadata says.
        at: Called after every step that a crash can separate (tests).

    Raises:
        OutputError: The folder holds something else, or a store of another recipe, calibration, grid or maps; or it
            cannot be written.
    """
    root = durable.local_path(path)
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise OutputError(f"{root.parent}: cannot be made: {err.strerror}") from err
    with durable.locked(lock_file(root), exclusive=True):
        growth.recover(root, at=at)
        if not (root / "zarr.json").is_file():
            _create(root, spec, at=at)
            return
        _check_same(root, spec)
        growth.drop_partial(root)
        if growth.grow(root, spec, at=at):
            log.info("store %s grew", root.name)


def zones(path: str | Path) -> tuple[Box, ...]:
    """The extent of every zone of a store in pixels of its arrays (``res_m`` says their side), sorted by zone."""
    root = durable.local_path(path)
    with shared(root):
        return tuple(box for box, _ in growth.zones_of(root).values())


def time_index(path: str | Path, start: datetime, end: datetime) -> int:
    """Index of the time step [start, end) of a store; steps are appended, so it never changes.

    Raises:
        OutputError: The store has no such step.
    """
    root = durable.local_path(path)
    with shared(root):
        steps = next(iter(growth.zones_of(root).values()))[1]
    if (start, end) not in steps:
        raise OutputError(f"store {root.name} has no time step {start:%Y-%m-%d}..{end:%Y-%m-%d}; call create_store")
    return steps.index((start, end))


def open_store(path: str | Path, *, zone: int | None = None, dequantise: bool = False) -> xarray.Dataset:
    """Open one UTM zone of a store lazily, georeferenced, one dask chunk per shard.

    Args:
        path: The store.
        zone: UTM zone; may be left out when the store has only one. Zones have different coordinate systems, so
            there is no Dataset of several.
        dequantise: True replaces the int8 codes by float32 values with NaN nodata (still lazy).

    Returns:
        ``embeddings (time, band, y, x)`` int8 with nodata -128, ``reason``, ``n_obs``, ``map_*``, and the coordinates
        ``scale (band)``, ``x``, ``y``, ``time``, ``spatial_ref``; ``ds.rio.crs`` works. A pixel is 10 m, or a token in
        a store of token resolution (``ds.attrs["earthpress"]["token_px"]`` 10 m pixels). Where the store has them,
        ``qa_clear_pct``, ``qa_scenes`` and ``qa_first_day`` (dates, NaT without a scene) with the axes (time, sensor,
        period, block_y, block_x), one value per block of 2560 m; see ``quality.py``.

    Raises:
        OutputError: Not a store, or its interrupted growth cannot be finished.
        InvalidInputError: Several zones and none asked for, or a zone that the store does not have.
    """
    import rioxarray  # noqa: F401, PLC0415  (gives the Dataset its .rio)
    import xarray as xr  # noqa: PLC0415

    root = durable.local_path(path)
    if growth.unfinished(root):
        with durable.locked(lock_file(root), exclusive=True):
            growth.recover(root)
    require(root)
    found = tuple(int(p.name[3:]) for p in sorted(root.glob("utm[0-9][0-9]")))
    if zone is None and len(found) != 1:
        raise InvalidInputError(
            f"store {root.name} has the zones {found}: say which, open_store(path, zone={found[0]})"
        )
    if zone is not None and zone not in found:
        raise InvalidInputError(f"store {root.name} has no zone {zone}, only {found}")
    group = zone_name(zone or found[0])
    shard = json.loads((root / group / "zarr.json").read_text(encoding="utf-8"))["attributes"]["earthpress"]["shard_px"]
    chunks = {"time": 1, "band": -1, "y": shard, "x": shard}
    data: xarray.Dataset = xr.open_zarr(str(root), group=group, consolidated=True, chunks=chunks, decode_coords="all")
    if "sensor" in data.coords:
        # numpy's own string type: formats that xarray writes (NetCDF) do not know it yet
        data = data.assign_coords(sensor=data["sensor"].astype(object))
    if dequantise:
        values = data["embeddings"].where(data["embeddings"] != NODATA_CODE) * data["scale"]
        kept = {k: v for k, v in data["embeddings"].attrs.items() if k in ("long_name", "warning", "trained")}
        data["embeddings"] = values.astype(np.float32).transpose(*data["embeddings"].dims).assign_attrs(kept)
    return data


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


def _check_same(root: Path, spec: StoreSpec) -> None:
    own = _root_attributes(root).get("earthpress")
    if not isinstance(own, dict) or own.get("format") != FORMAT_VERSION:
        raise OutputError(f"{root} is not an earthpress store of format {FORMAT_VERSION}: choose another output")
    wanted, held = identity(spec), own.get("identity", {})
    different = [
        f"{k} is {held.get(k, 'none')}, the run has {wanted.get(k, 'none')}"
        for k in wanted | held
        if held.get(k) != wanted.get(k)
    ]
    if different:
        raise OutputError(
            f"store {root.name} was made differently: {'; '.join(different)}. Vectors of different recipes cannot be "
            "compared: use another output, or the settings of the store"
        )


def _root_attributes(root: Path) -> dict[str, Any]:
    try:
        metadata = json.loads((root / "zarr.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise OutputError(f"{root} is not a readable Zarr store: {err}") from err
    attributes = metadata.get("attributes", {}) if isinstance(metadata, dict) else {}
    return attributes if isinstance(attributes, dict) else {}
