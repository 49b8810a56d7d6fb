"""Make the groups and arrays of a store: metadata and coordinates, never a pixel.

Only the process that plans comes here; workers write shards and nothing else. Knows zarr and the layout; does not know
which store exists or whether it grows (``growth.py``).
"""

from __future__ import annotations

import json
import os
import warnings
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec
from zarr.core.buffer import cpu
from zarr.storage import LocalStore, MemoryStore

from pipeline.types import COLOUR_M, Box, Period
from pipeline.write import quality, true_colour
from pipeline.write.attributes import SCALED, array_attributes, crs_attributes, root_attributes, zone_attributes
from pipeline.write.durable import sync_file, sync_folder
from pipeline.write.layout import arrays, zone_name

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.write.layout import ArrayLayout, StoreSpec

_TIME_UNITS = "seconds since 1970-01-01 00:00:00"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def build_root(folder: Path, spec: StoreSpec) -> None:
    """Make a whole store in the empty ``folder`` and flush it to the disk."""
    zarr.create_group(LocalStore(folder), attributes=root_attributes(spec), overwrite=False)
    for extent in spec.boxes:
        build_zone(folder / zone_name(extent.zone), spec, extent=extent)
    consolidate(folder)
    sync_tree(folder)


def build_zone(folder: Path, spec: StoreSpec, *, extent: Box) -> None:
    """Make one zone group in ``folder``: arrays without pixels over ``extent``, coordinates, consolidated metadata.

    ``extent`` counts pixels of the arrays.
    """
    _fill_zone(LocalStore(folder), spec, extent=extent)
    consolidate(folder)


def zone_objects(spec: StoreSpec, *, extent: Box, cuts: Mapping[str, int]) -> dict[str, bytes]:
    """The same as {name inside the group: bytes}, for places that are no folders.

    ``cuts`` gives the chunk side of coordinates that exist already: their old objects then keep their bytes when they
    grow at the end, so that whoever holds the old metadata still reads them right.
    """
    held: dict[str, Any] = {}
    memory = MemoryStore(held)
    _fill_zone(memory, spec, extent=extent, cuts=cuts)
    _consolidate(memory)
    return {key: value.to_bytes() for key, value in held.items()}


def root_object(spec: StoreSpec, *, attributes: Mapping[str, Any] | None, zones: Mapping[str, bytes]) -> bytes:
    """The root's ``zarr.json`` with the consolidated metadata of all zones.

    Args:
        spec: What the metadata says, for a new store.
        attributes: Of the existing root; None for a new store.
        zones: Group name to its ``zarr.json``, which holds its own consolidated metadata.
    """
    held: dict[str, Any] = {}
    memory = MemoryStore(held)
    zarr.create_group(memory, attributes=dict(attributes) if attributes is not None else root_attributes(spec))
    for name, data in zones.items():
        nodes = json.loads(data)["consolidated_metadata"]["metadata"]
        held[f"{name}/zarr.json"] = cpu.Buffer.from_bytes(data)
        for key, metadata in nodes.items():
            held[f"{name}/{key}/zarr.json"] = cpu.Buffer.from_bytes(json.dumps(metadata).encode())
    _consolidate(memory)
    return bytes(held["zarr.json"].to_bytes())


def cuts_of(zone: bytes) -> dict[str, int]:
    """Chunk sides of the coordinates with one axis, of a zone's ``zarr.json``."""
    nodes = json.loads(zone)["consolidated_metadata"]["metadata"]
    sides = {name: node["chunk_grid"]["configuration"]["chunk_shape"] for name, node in nodes.items()}
    return {name: int(side[0]) for name, side in sides.items() if len(side) == 1}


def _fill_zone(store: Any, spec: StoreSpec, *, extent: Box, cuts: Mapping[str, int] = MappingProxyType({})) -> None:
    group = zarr.create_group(store, attributes=zone_attributes(spec, extent), overwrite=False)
    for layout in arrays(spec):
        _pixel_array(group, spec, extent=extent, layout=layout)
    _space(group, extent, cuts=cuts)
    _time(group, spec, cuts=cuts)
    if spec.periods:
        _blocks(group, spec, extent=extent.cover(quality.BLOCK_M), cuts=cuts)
        if spec.true_colour:
            _colours(group, extent=extent.cover(COLOUR_M), cuts=cuts)
    _coordinate(group, "band", np.arange(spec.dims, dtype=np.int16), ("band",), {"long_name": "embedding dimension"})
    _decoding(group, spec)


def _decoding(group: Any, spec: StoreSpec) -> None:
    """What decoding needs beside the codes, each in one object."""
    calibration = spec.calibration
    if calibration.method in SCALED:
        text = {"long_name": "value of one code step", "calibration": calibration.hash}
        _coordinate(group, "scale", np.asarray(calibration.scale, np.float32), ("band",), text)
    if calibration.method == "pca":
        components = np.asarray(calibration.components, np.float32)
        text = {"long_name": "principal components, score = components (vector - mean)"}
        _coordinate(group, "pca_components", components, ("band", "dim"), text, whole=True)
        text = {"long_name": "centre of the model's vectors"}
        _coordinate(group, "pca_mean", np.asarray(calibration.mean, np.float32), ("dim",), text)


def consolidate(folder: Path) -> None:
    """Write the consolidated metadata of a group: one request opens it."""
    _consolidate(LocalStore(folder))


def _consolidate(store: Any) -> None:
    with warnings.catch_warnings():
        # zarr-python warns that the v3 specification does not have it yet; readers that do not know it skip it.
        warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
        zarr.consolidate_metadata(store)


def read_extent(group: Any, zone: int) -> Box:
    """The box under the arrays of an opened zone group, in their pixels."""
    own = group.attrs["earthpress"]
    return Box(zone=zone, res_m=own["pixel_m"], **own["extent"])


def read_times(group: Any) -> tuple[tuple[datetime, datetime], ...]:
    """The (start, end) of every time step of an opened zone group."""
    bounds = np.asarray(group["time_bnds"][...])
    return tuple((_moment(a), _moment(b)) for a, b in bounds)


def read_periods(group: Any) -> tuple[tuple[Period, ...], ...]:
    """The periods of every time step of an opened zone group; none for stores without layers of blocks."""
    if "period_start" not in group:
        return ((),) * len(read_times(group))
    starts, ends = (np.asarray(group[name][...]) for name in ("period_start", "period_end"))
    return tuple(
        tuple(Period(index=k, start=_moment(a), end=_moment(b)) for k, (a, b) in enumerate(zip(*step, strict=True)))
        for step in zip(starts, ends, strict=True)
    )


def sync_tree(folder: Path) -> None:
    """Flush names and own files of a folder to the disk; files with further hard links are old and already there."""
    for base, _, files in os.walk(folder):
        for name in files:
            path = folder.__class__(base) / name
            if path.stat().st_nlink == 1:
                sync_file(path)
        sync_folder(folder.__class__(base))


def _pixel_array(group: Any, spec: StoreSpec, *, extent: Box, layout: ArrayLayout) -> None:
    # The measured best of size and speed on stitched fields: Blosc zstd 1 with bitshuffle, 1.7 x at 380 MB/s.
    codec = BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle", typesize=np.dtype(layout.dtype).itemsize)
    lead = layout.sizes(1, 0, 0)[:-2]
    ground = extent.cover(layout.px_m)
    group.create_array(
        layout.name,
        shape=layout.sizes(len(spec.times), *ground.shape),
        dtype=layout.dtype,
        chunks=(*lead, layout.chunk_px, layout.chunk_px),
        shards=(*lead, layout.shard_px, layout.shard_px) if layout.sharded else None,
        fill_value=layout.fill,
        compressors=[codec],
        dimension_names=layout.dims,
        attributes=array_attributes(layout.name, spec, extent),
    )


def _space(group: Any, extent: Box, *, cuts: Mapping[str, int]) -> None:
    x_min, _, _, y_max = extent.bounds_m
    step = float(extent.res_m)
    for name, size, first, sign, text in (
        ("x", extent.width, x_min, 1.0, "easting"),
        ("y", extent.height, y_max, -1.0, "northing in the plane of the northern hemisphere"),
    ):
        centres = _centres(first, sign * step, size)
        attrs = {
            "standard_name": f"projection_{name}_coordinate",
            "long_name": text,
            "units": "m",
            "axis": name.upper(),
        }
        _coordinate(group, name, centres, (name,), attrs, cut=cuts.get(name))
    _coordinate(group, "spatial_ref", np.asarray(0, dtype=np.int64), (), crs_attributes(extent))


def _blocks(group: Any, spec: StoreSpec, *, extent: Box, cuts: Mapping[str, int]) -> None:
    """The axes of the layers of blocks; ``extent`` counts blocks."""
    _further_space(group, extent, names=quality.SPACE, mapping=quality.GRID_MAPPING, what="block", cuts=cuts)
    names = np.array(spec.sensors, dtype=np.dtypes.StringDType())
    _coordinate(group, "sensor", names, ("sensor",), {"long_name": "sensor of the composite"})
    index = np.arange(len(spec.steps[0]), dtype=np.int16)
    _coordinate(group, "period", index, ("period",), {"long_name": "period inside the time step"})
    units = {"units": _TIME_UNITS, "calendar": "proleptic_gregorian"}
    for name, long_name in (("start", "start of the period"), ("end", "end of the period, not included")):
        moments = np.array([[_seconds(getattr(p, name)) for p in step] for step in spec.steps], dtype=np.int64)
        _coordinate(group, f"period_{name}", moments, ("time", "period"), {"long_name": long_name, **units})


def _colours(group: Any, *, extent: Box, cuts: Mapping[str, int]) -> None:
    """The axes of the true colours; ``extent`` counts their pixels."""
    _further_space(group, extent, names=true_colour.SPACE, mapping=true_colour.GRID_MAPPING, what="pixel", cuts=cuts)
    names = np.array(true_colour.CHANNELS, dtype=np.dtypes.StringDType())
    _coordinate(group, "channel", names, ("channel",), {"long_name": "colour"})


def _further_space(
    group: Any, extent: Box, *, names: tuple[str, str], mapping: str, what: str, cuts: Mapping[str, int]
) -> None:
    """Axes and grid mapping of layers with pixels of another side; ``extent`` counts those."""
    x_min, _, _, y_max = extent.bounds_m
    row, col = names
    # Without axis and standard_name: with them rioxarray finds two pairs of spatial axes in the group and gives up.
    text = {"long_name": f"centre of the {what}, northing in the plane of the northern hemisphere", "units": "m"}
    _coordinate(group, row, _centres(y_max, -float(extent.res_m), extent.height), (row,), text, cut=cuts.get(row))
    text = {"long_name": f"centre of the {what}, easting", "units": "m"}
    _coordinate(group, col, _centres(x_min, float(extent.res_m), extent.width), (col,), text, cut=cuts.get(col))
    _coordinate(group, mapping, np.asarray(0, dtype=np.int64), (), crs_attributes(extent))


def _centres(first: float, step: float, size: int) -> NDArray[np.float64]:
    return first + step * (np.arange(size, dtype=np.float64) + 0.5)


def _time(group: Any, spec: StoreSpec, *, cuts: Mapping[str, int]) -> None:
    bounds = np.array([[_seconds(a), _seconds(b)] for a, b in spec.times], dtype=np.int64)
    units = {"units": _TIME_UNITS, "calendar": "proleptic_gregorian"}
    attrs = {"standard_name": "time", "axis": "T", "bounds": "time_bnds", **units}
    _coordinate(group, "time", np.ascontiguousarray(bounds[:, 0]), ("time",), attrs, cut=cuts.get("time"))
    _coordinate(group, "time_bnds", bounds, ("time", "bnds"), units)


def _moment(seconds: int) -> datetime:
    return _EPOCH + timedelta(seconds=int(seconds))


def _seconds(moment: datetime) -> int:
    return int((moment - _EPOCH).total_seconds())


def _coordinate(
    group: Any,
    name: str,
    values: NDArray[Any],
    dims: tuple[str, ...],
    attrs: dict[str, Any],
    *,
    cut: int | None = None,
    whole: bool = False,
) -> None:
    # One object per coordinate: opening a zone costs one request for each, however large the country. Bounds are cut
    # by time step as the pixels are, because xarray gives both the same dask chunks.
    chunks = (1, *values.shape[1:]) if len(dims) > 1 and not whole else values.shape
    array = group.create_array(
        name,
        shape=values.shape,
        dtype=values.dtype,
        chunks=(cut,) if cut else chunks,
        fill_value=0,
        dimension_names=dims,
        attributes=attrs,
    )
    array[...] = values
