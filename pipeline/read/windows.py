"""Reads one lattice window of one file at native resolution.

A file on the lattice of its resolution (same zone, north-up) is read by plain window, bit for bit. Any other file
(another zone, rotated, off the lattice) goes through GDAL's warper onto the lattice. Knows nothing of scenes' order,
offsets or layers; never applies scale and offset tags.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform_bounds
from rasterio.windows import Window

from pipeline.errors import DataError
from pipeline.types import Box

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from rasterio import DatasetReader

    from pipeline.read.access import Access
    from pipeline.types import Asset, Scene

SOUTH_SHIFT_M = 10_000_000
"""False northing of the southern UTM zones (EPSG:327NN); lattice y = northing - this."""
WARP_CHUNK_PX = 256
WARP_TOLERANCE_PX = 0.001
"""Error of GDAL's approximate transformer. It interpolates along the rows of the target grid, so the result depends
on where that grid starts: two boxes over the same ground differed in 97 % of pixels (noise image, default 0.125), and
still in 5 % at 1e-4. Warping always whole chunks of the lattice makes the result independent of the box; this
tolerance then only bounds the error, at a fifth of the price of an exact transform."""
_INTEGER = ("uint8", "uint16", "int16", "int32", "uint32")


def read_native(scene: Scene, asset: Asset, *, box: Box, access: Access, nearest: bool = False) -> NDArray[np.uint16]:
    """Read the pixels of ``box`` from one file.

    Args:
        scene: Whose file it is (signing, messages).
        asset: The file and its band.
        box: Lattice box of the band's native resolution.
        access: Opens and retries.
        nearest: Warp by nearest neighbour (classes) instead of bilinear; plain windows need no resampling.

    Returns:
        (row, col) uint16, raw DN; 0 outside the file and where the file says nodata.

    Raises:
        DataError: The file cannot be read, or its pixels are not integers that fit uint16.
        InvalidInputError: The location is not allowed.
        TransientError: No token.
    """
    where = f"item {scene.id}, band {asset.band}"

    def work(dataset: DatasetReader) -> NDArray[np.uint16]:
        _check(dataset, asset, where)
        origin = _lattice_origin(dataset, box)
        if origin is None:
            values = _warped(dataset, asset.band_index, box=box, nearest=nearest)
        else:
            values = _direct(dataset, asset.band_index, box=box, origin=origin)
        return _to_uint16(values, where)

    return access.read(asset, work, sign=scene.sign, item=scene.id)


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


def _check(dataset: DatasetReader, asset: Asset, where: str) -> None:
    if not 1 <= asset.band_index <= dataset.count:
        raise DataError(f"{where}: the file has {dataset.count} bands, band {asset.band_index} is asked for")
    dtype = dataset.dtypes[asset.band_index - 1]
    if dtype not in _INTEGER:
        raise DataError(
            f"{where}: pixels are {dtype}, digital numbers must be integers (uint16); "
            "is this a rescaled or derived product?"
        )
    if dataset.crs is None:
        raise DataError(f"{where}: the file has no coordinate reference system")


def _lattice_origin(dataset: DatasetReader, box: Box) -> tuple[int, int] | None:
    """Lattice (row, col) of the file's north-west pixel; None when the file is not on the box's lattice."""
    epsg, t, res = dataset.crs.to_epsg(), dataset.transform, box.res_m
    if epsg not in (32600 + box.zone, 32700 + box.zone) or (t.a, t.b, t.d, t.e) != (res, 0, 0, -res):
        return None
    north_m = t.f - (SOUTH_SHIFT_M if epsg > 32700 else 0)
    row, col = round(-north_m / res), round(t.c / res)
    # Some writers leave float noise in the origin; a thousandth of a millimetre is none.
    if abs(row * res + north_m) > 1e-6 or abs(col * res - t.c) > 1e-6:
        return None
    return row, col


def _direct(dataset: DatasetReader, index: int, *, box: Box, origin: tuple[int, int]) -> NDArray[np.generic]:
    height, width = dataset.shape
    file_box = Box(zone=box.zone, res_m=box.res_m, row=origin[0], col=origin[1], height=height, width=width)
    part = box.intersect(file_box)
    values = np.zeros(box.shape, dtype=dataset.dtypes[index - 1])
    if part is not None:
        window = Window(part.col - origin[1], part.row - origin[0], part.width, part.height)
        values[part.slices_in(box)] = dataset.read(index, window=window)
    if dataset.nodata:
        values[values == dataset.nodata] = 0
    return values


def _warped(dataset: DatasetReader, index: int, *, box: Box, nearest: bool) -> NDArray[np.generic]:
    crs = CRS.from_epsg(box.epsg)
    west, south, east, north = transform_bounds(dataset.crs, crs, *dataset.bounds, densify_pts=51)
    margin_m = 2.0 * box.res_m
    options = {
        "crs": crs,
        "resampling": Resampling.nearest if nearest else Resampling.bilinear,
        "src_nodata": dataset.nodata or 0,
        "nodata": 0,
        "tolerance": WARP_TOLERANCE_PX,
        **_kernel_scale(dataset, box.res_m),
    }
    values = np.zeros(box.shape, dtype=dataset.dtypes[index - 1])
    for chunk in _chunks(box):
        x_min, y_min, x_max, y_max = chunk.bounds_m
        if x_min > east + margin_m or x_max < west - margin_m or y_min > north + margin_m or y_max < south - margin_m:
            continue
        with WarpedVRT(dataset, transform=chunk.transform, width=WARP_CHUNK_PX, height=WARP_CHUNK_PX, **options) as vrt:
            whole = vrt.read(index)
        part = chunk.intersect(box)
        if part is not None:
            values[part.slices_in(box)] = whole[part.slices_in(chunk)]
    return values


def _kernel_scale(dataset: DatasetReader, res_m: int) -> dict[str, float]:
    """Fix the warper's kernel for metric files.

    GDAL takes the scale from the source window of the target grid, which a rotated neighbour zone makes larger than
    it is: the bilinear kernel would be widened by a few per cent, and by another amount for every grid.
    """
    if not dataset.crs.is_projected or dataset.crs.linear_units_factor[1] != 1.0:
        return {}
    scale = min(1.0, float(np.hypot(dataset.transform.a, dataset.transform.d)) / res_m)
    return {"XSCALE": scale, "YSCALE": scale}


def _chunks(box: Box) -> Iterator[Box]:
    n = WARP_CHUNK_PX
    for row in range(box.row // n * n, box.row_stop, n):
        for col in range(box.col // n * n, box.col_stop, n):
            yield Box(zone=box.zone, res_m=box.res_m, row=row, col=col, height=n, width=n)


def _to_uint16(values: NDArray[np.generic], where: str) -> NDArray[np.uint16]:
    if values.dtype == np.uint16:
        return values.view(np.uint16)
    if values.dtype != np.uint8 and (int(values.min()) < 0 or int(values.max()) > 65535):  # type: ignore[call-overload]
        raise DataError(
            f"{where}: {values.dtype} pixels from {values.min()} to {values.max()} do not fit uint16 digital numbers"  # type: ignore[attr-defined]
        )
    return values.astype(np.uint16)
