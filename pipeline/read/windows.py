"""Reads one lattice window of one band of a scene.

A file on the lattice of its resolution (same zone, north-up) is read by plain window, bit for bit. Any other file
(another zone, rotated, off the lattice, of another resolution) goes through GDAL's warper onto the lattice.
``read_native`` gives what one file holds; ``read_band`` gives what a Stack holds: offsets added, radar in decibels, and
another archive's copy where a file cannot be read. Scale and offset tags are never applied. Knows nothing of scenes'
order or of layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import DataError
from pipeline.read import warp
from pipeline.read.alternates import first_readable
from pipeline.read.decibels import decibels, power
from pipeline.read.offsets import offset_of
from pipeline.read.sensors import sensor
from pipeline.types import Box

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from pipeline.read.access import Access
    from pipeline.read.offsets import OffsetMemory
    from pipeline.read.raster import Raster
    from pipeline.types import Asset, Scene

_INTEGER = ("uint8", "uint16", "int16", "int32", "uint32")


def read_band(
    scene: Scene,
    band: str,
    *,
    box: Box,
    access: Access,
    memory: OffsetMemory | None = None,
    note: Callable[[str], None] | None = None,
) -> NDArray[Any]:
    """Read a band over ``box`` in the encoding of a Stack, from the scene or else from its alternates.

    Args:
        scene: Whose band; each alternate has an offset of its own.
        band: Name as the model calls it.
        box: Lattice box of the layer's resolution.
        access: Opens and retries.
        memory: Remembers offsets that had to be asked of pixels (``read.offsets``).
        note: Told what people should know: an alternate was read, an offset was found in pixels.

    Returns:
        (row, col): uint16 with 0 for nodata, Sentinel-2 in the encoding of ``DN_OFFSET``; for Sentinel-1 float32
        decibels with NaN.

    Raises:
        DataError: No copy of the file can be read.
        InvalidInputError: The location is not allowed.
        TransientError: No token.
        OutputError: The memory fails.
    """

    def read(source: Scene, asset: Asset) -> NDArray[Any]:
        if source.sensor == "sentinel1":
            return decibels(read_native(source, asset, box=box, access=access))
        offset, word = offset_of(source, access=access, memory=memory)
        if word and note is not None:
            note(word)
        return add_offset(read_native(source, asset, box=box, access=access), offset)

    return first_readable(scene, band, read, note=note)


def read_native(scene: Scene, asset: Asset, *, box: Box, access: Access, nearest: bool = False) -> NDArray[Any]:
    """Read the pixels of ``box`` from one file.

    Args:
        scene: Whose file it is (sensor, signing, messages).
        asset: The file and its band.
        box: Lattice box of the band's native resolution.
        access: Opens and retries.
        nearest: Warp by nearest neighbour (classes) instead of bilinear; plain windows need no resampling.

    Returns:
        (row, col): uint16 raw DN, 0 outside the file and where the file says nodata; for Sentinel-1 float32 linear
        power, NaN where there is no measurement (see ``read.decibels.power``).

    Raises:
        DataError: The file cannot be read, or its pixels are not what the sensor delivers.
        InvalidInputError: The location is not allowed.
        TransientError: No token.
    """
    where = f"item {scene.id}, band {asset.band}"
    dtype = sensor(scene.sensor).dtype

    def work(dataset: Raster) -> NDArray[Any]:
        _check(dataset, asset, where)
        nodata = dataset.nodata

        def clean(raw: NDArray[Any]) -> NDArray[Any]:
            if dtype == "float32":
                return power(raw, nodata=nodata, where=where)
            return _numbers(raw, nodata=nodata, where=where)

        origin = warp.on_lattice(dataset, box)
        if origin is None:
            return warp.warped(dataset, asset.band_index, box=box, nearest=nearest, clean=clean, dtype=dtype)
        return warp.cut(dataset, asset.band_index, box=box, origin=origin, clean=clean, dtype=dtype)

    def fits(dataset: Raster) -> bool:
        return warp.on_lattice(dataset, box) is not None

    return access.read_plain(asset, work, fits=fits, sign=scene.sign, item=scene.id)


def add_offset(pixels: NDArray[np.uint16], offset: int) -> NDArray[np.uint16]:
    """``pixels`` + ``offset`` where not 0, saturating at 65535; 0 is nodata and stays.

    >>> add_offset(np.array([0, 1, 65000], dtype=np.uint16), 1000).tolist()
    [0, 1001, 65535]
    """
    if offset == 0:
        return pixels
    top = np.uint16(65535 - offset)
    return np.where(pixels == 0, pixels, np.minimum(pixels, top) + np.uint16(offset))


def pixels_centred_in(box: Box, res_m: int) -> Box | None:
    """The pixels of lattice ``res_m`` whose centres lie in ``box``, or None: every pixel belongs to one tile and cell.

    >>> cell = Box(zone=31, res_m=10, row=2048, col=0, height=2048, width=2048)
    >>> pixels_centred_in(cell, 60)  # row 341 starts 20 m north of the cell, its centre lies 10 m inside
    Box(zone=31, res_m=60, row=341, col=0, height=342, width=341)
    """
    row, row_stop = (_first_centred(i * box.res_m, res_m) for i in (box.row, box.row_stop))
    col, col_stop = (_first_centred(i * box.res_m, res_m) for i in (box.col, box.col_stop))
    if row_stop <= row or col_stop <= col:
        return None
    return Box(zone=box.zone, res_m=res_m, row=row, col=col, height=row_stop - row, width=col_stop - col)


def _first_centred(border_m: int, res_m: int) -> int:
    return -((res_m - 2 * border_m) // (2 * res_m))  # ceil(border / res - 1/2) in integers


def _check(dataset: Raster, asset: Asset, where: str) -> None:
    if not 1 <= asset.band_index <= dataset.count:
        raise DataError(f"{where}: the file has {dataset.count} bands, band {asset.band_index} is asked for")
    if dataset.crs is None:
        raise DataError(f"{where}: the file has no coordinate reference system")


def _numbers(raw: NDArray[Any], *, nodata: float | None, where: str) -> NDArray[np.uint16]:
    """Digital numbers as uint16, 0 where the file says nodata."""
    if raw.dtype.name not in _INTEGER:
        raise DataError(
            f"{where}: pixels are {raw.dtype}, digital numbers must be integers (uint16); "
            "is this a rescaled or derived product?"
        )
    values = np.where(raw == nodata, raw.dtype.type(0), raw) if nodata else raw
    if values.dtype == np.uint16:
        return values
    if values.dtype != np.uint8 and values.size and (int(values.min()) < 0 or int(values.max()) > 65535):
        raise DataError(
            f"{where}: {values.dtype} pixels from {values.min()} to {values.max()} do not fit uint16 digital numbers"
        )
    return values.astype(np.uint16)
