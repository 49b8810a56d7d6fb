"""Make the groups and arrays of a store: metadata and coordinates, never a pixel.

Only the process that plans comes here; workers write shards and nothing else. Knows zarr and the layout; does not know
which store exists or whether it grows (``growth.py``).
"""

from __future__ import annotations

import os
import warnings
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec
from zarr.storage import LocalStore

from pipeline.types import Box, Period
from pipeline.write import quality
from pipeline.write.attributes import array_attributes, crs_attributes, root_attributes, zone_attributes
from pipeline.write.durable import sync_file, sync_folder
from pipeline.write.layout import arrays, zone_name

if TYPE_CHECKING:
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
    group = zarr.create_group(LocalStore(folder), attributes=zone_attributes(spec, extent), overwrite=False)
    for layout in arrays(spec):
        _pixel_array(group, spec, extent=extent, layout=layout)
    _space(group, extent)
    _time(group, spec)
    if spec.periods:
        _blocks(group, spec, extent=extent.cover(quality.BLOCK_M))
    _coordinate(group, "band", np.arange(spec.dims, dtype=np.int16), ("band",), {"long_name": "embedding dimension"})
    scale = np.asarray(spec.calibration.scale, dtype=np.float32)
    text = {"long_name": "value of one code step", "calibration": spec.calibration.hash}
    _coordinate(group, "scale", scale, ("band",), text)
    consolidate(folder)


def consolidate(folder: Path) -> None:
    """Write the consolidated metadata of a group: one request opens it."""
    with warnings.catch_warnings():
        # zarr-python warns that the v3 specification does not have it yet; readers that do not know it skip it.
        warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
        zarr.consolidate_metadata(LocalStore(folder))


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


def _space(group: Any, extent: Box) -> None:
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
        _coordinate(group, name, centres, (name,), attrs)
    _coordinate(group, "spatial_ref", np.asarray(0, dtype=np.int64), (), crs_attributes(extent))


def _blocks(group: Any, spec: StoreSpec, *, extent: Box) -> None:
    """The axes of the layers of blocks; ``extent`` counts blocks."""
    x_min, _, _, y_max = extent.bounds_m
    row, col = quality.SPACE
    # Without axis and standard_name: with them rioxarray finds two pairs of spatial axes in the group and gives up.
    text = {"long_name": "centre of the block, northing in the plane of the northern hemisphere", "units": "m"}
    _coordinate(group, row, _centres(y_max, -float(extent.res_m), extent.height), (row,), text)
    text = {"long_name": "centre of the block, easting", "units": "m"}
    _coordinate(group, col, _centres(x_min, float(extent.res_m), extent.width), (col,), text)
    _coordinate(group, quality.GRID_MAPPING, np.asarray(0, dtype=np.int64), (), crs_attributes(extent))
    names = np.array(spec.sensors, dtype=np.dtypes.StringDType())
    _coordinate(group, "sensor", names, ("sensor",), {"long_name": "sensor of the composite"})
    index = np.arange(len(spec.steps[0]), dtype=np.int16)
    _coordinate(group, "period", index, ("period",), {"long_name": "period inside the time step"})
    units = {"units": _TIME_UNITS, "calendar": "proleptic_gregorian"}
    for name, long_name in (("start", "start of the period"), ("end", "end of the period, not included")):
        moments = np.array([[_seconds(getattr(p, name)) for p in step] for step in spec.steps], dtype=np.int64)
        _coordinate(group, f"period_{name}", moments, ("time", "period"), {"long_name": long_name, **units})


def _centres(first: float, step: float, size: int) -> NDArray[np.float64]:
    return first + step * (np.arange(size, dtype=np.float64) + 0.5)


def _time(group: Any, spec: StoreSpec) -> None:
    bounds = np.array([[_seconds(a), _seconds(b)] for a, b in spec.times], dtype=np.int64)
    units = {"units": _TIME_UNITS, "calendar": "proleptic_gregorian"}
    attrs = {"standard_name": "time", "axis": "T", "bounds": "time_bnds", **units}
    _coordinate(group, "time", np.ascontiguousarray(bounds[:, 0]), ("time",), attrs)
    _coordinate(group, "time_bnds", bounds, ("time", "bnds"), units)


def _moment(seconds: int) -> datetime:
    return _EPOCH + timedelta(seconds=int(seconds))


def _seconds(moment: datetime) -> int:
    return int((moment - _EPOCH).total_seconds())


def _coordinate(group: Any, name: str, values: NDArray[Any], dims: tuple[str, ...], attrs: dict[str, Any]) -> None:
    # One object per coordinate: opening a zone costs one request for each, however large the country. Bounds are cut
    # by time step as the pixels are, because xarray gives both the same dask chunks.
    array = group.create_array(
        name,
        shape=values.shape,
        dtype=values.dtype,
        chunks=(1, *values.shape[1:]) if len(dims) > 1 else values.shape,
        fill_value=0,
        dimension_names=dims,
        attributes=attrs,
    )
    array[...] = values
