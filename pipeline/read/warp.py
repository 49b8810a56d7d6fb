"""Pixels of one open file laid onto a lattice box: by plain window where they lie on it, by GDAL's warper elsewhere.

Knows one dataset and one box; nothing of scenes, sensors or what the numbers mean. What a missing pixel is, the caller
says: ``clean`` turns what the file holds into uint16 with 0 or float32 with NaN where nothing is known, BEFORE any
interpolation, so that a value that only our rules call missing (the zeros around an old radar scene whose declared
nodata is -32768) is never blended into its neighbours.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.io import MemoryFile
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform as project
from rasterio.windows import Window

from pipeline.types import Box

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray
    from rasterio import DatasetReader

    from pipeline.read.raster import Raster

    Clean = Callable[[NDArray[Any]], NDArray[Any]]

SOUTH_SHIFT_M = 10_000_000
"""False northing of the southern UTM zones (EPSG:327NN); lattice y = northing - this."""
WARP_CHUNK_PX = 512
"""Side of what is warped at once. Measured, 2048 px of another zone: 570 ms of CPU with chunks of 256, 490 with 512
(one WarpedVRT of the whole: 550); small tiles warp more than they need with larger chunks."""
WARP_TOLERANCE_PX = 0.001
"""Error of GDAL's approximate transformer. It interpolates along the rows of the target grid, so the result depends
on where that grid starts: two boxes over the same ground differed in 97 % of pixels (noise image, default 0.125), and
still in 5 % at 1e-4. Warping always whole chunks of the lattice makes the result independent of the box; this
tolerance then only bounds the error, at a fifth of the price of an exact transform."""
_EDGE_POINTS = 21
"""Points per side of a chunk that are projected to find its source window; between two of them the edge of one UTM zone
bends by millimetres in the next (256 m of the 10 m lattice; centimetres at 60 m)."""
_BORDER = 1e-9
"""A centre on the border of two pixels belongs to the one further south or east, whatever the last bit says."""


def on_lattice(dataset: Raster, box: Box) -> tuple[int, int] | None:
    """Lattice (row, col) of the file's north-west pixel; None when the file is not on the box's lattice."""
    epsg, t, res = dataset.crs.to_epsg() if dataset.crs else None, dataset.transform, box.res_m
    if epsg not in (32600 + box.zone, 32700 + box.zone) or (t.a, t.b, t.d, t.e) != (res, 0, 0, -res):
        return None
    north_m = t.f - (SOUTH_SHIFT_M if epsg > 32700 else 0)
    row, col = round(-north_m / res), round(t.c / res)
    # Some writers leave float noise in the origin; a thousandth of a millimetre is none.
    if abs(row * res + north_m) > 1e-6 or abs(col * res - t.c) > 1e-6:
        return None
    return row, col


def cut(dataset: Raster, index: int, *, box: Box, origin: tuple[int, int], clean: Clean, dtype: str) -> NDArray[Any]:
    """The pixels of ``box`` of a file on its lattice, bit for bit.

    Args:
        dataset: The open file.
        index: Its band.
        box: What to read.
        origin: From ``on_lattice``.
        clean: (row, col) raw values to the same of ``dtype``, missing ones 0 or NaN.
        dtype: ``uint16``, ``uint8`` or ``float32``.

    Returns:
        (row, col) of ``dtype``; 0 or NaN outside the file.
    """
    height, width = dataset.shape
    file_box = Box(zone=box.zone, res_m=box.res_m, row=origin[0], col=origin[1], height=height, width=width)
    part = box.intersect(file_box)
    if part is None:
        return blank(box.shape, dtype)
    raw = dataset.read(index, window=Window(part.col - origin[1], part.row - origin[0], part.width, part.height))
    if part == box:
        return clean(raw)
    values = blank(box.shape, dtype)
    values[part.slices_in(box)] = clean(raw)
    return values


def warped(dataset: DatasetReader, index: int, *, box: Box, nearest: bool, clean: Clean, dtype: str) -> NDArray[Any]:
    """The pixels of ``box`` of any georeferenced file, by GDAL's warper: bilinear, or nearest neighbour.

    Equals a ``WarpedVRT`` on the same grid (integers: up to ties, where GDAL's own coordinates decide the rounding),
    with what ``clean`` calls missing as nodata: a pixel has a value where its nearest source pixel has one.

    Args:
        dataset: The open file.
        index: Its band.
        box: What to read.
        nearest: Take the nearest source pixel.
        clean: As for ``cut``.
        dtype: As for ``cut``.

    Returns:
        (row, col) of ``dtype``; the same for a pixel whatever the box around it.
    """
    values, crs = blank(box.shape, dtype), CRS.from_epsg(box.epsg)
    chunks = [(chunk, _source_window(dataset, chunk, crs)) for chunk in _chunks(box)]
    needed = [window for _, window in chunks if window is not None]
    if not needed:
        return values
    whole = _around(needed)  # read once: chunks overlap in the source, and not every reader has a cache
    source = clean(dataset.read(index, window=whole))
    options = {
        "crs": crs,
        "src_nodata": _missing(dtype),
        "nodata": _missing(dtype),
        "resampling": Resampling.nearest if nearest else Resampling.bilinear,
        "tolerance": WARP_TOLERANCE_PX,
        **_kernel_scale(dataset, box),
    }
    for chunk, window in chunks:
        part = chunk.intersect(box)
        if window is None or part is None:
            continue
        row, col = window.row_off - whole.row_off, window.col_off - whole.col_off
        pixels = source[row : row + window.height, col : col + window.width]
        transform = dataset.transform * Affine.translation(window.col_off, window.row_off)
        with (
            _in_memory(pixels, transform, crs=dataset.crs) as file,
            WarpedVRT(file, transform=chunk.transform, width=WARP_CHUNK_PX, height=WARP_CHUNK_PX, **options) as vrt,
        ):
            values[part.slices_in(box)] = vrt.read(1)[part.slices_in(chunk)]
    return values


@contextmanager
def _in_memory(pixels: NDArray[Any], transform: Affine, *, crs: CRS) -> Iterator[DatasetReader]:
    """A file of (row, col) pixels for GDAL; ``rasterio.warp.reproject`` takes arrays, but not a tolerance."""
    height, width = pixels.shape
    profile = {"driver": "GTiff", "height": height, "width": width, "count": 1, "dtype": pixels.dtype}
    with MemoryFile() as memory:
        with memory.open(**profile, crs=crs, transform=transform) as file:
            file.write(pixels, 1)
        with memory.open() as file:
            yield file


def picked(dataset: DatasetReader, index: int, *, box: Box, clean: Clean, dtype: str) -> NDArray[Any] | None:
    """The file's pixels in which the centres of ``box``'s pixels lie: ``warped``'s nearest ones, for less.

    Args:
        dataset: The open file.
        index: Its band.
        box: What to read.
        clean: As for ``cut``.
        dtype: As for ``cut``.

    Returns:
        (row, col) of ``dtype``; None for a file of another zone or not north-up, for which this is no way.
    """
    epsg, t = dataset.crs.to_epsg(), dataset.transform
    if epsg not in (32600 + box.zone, 32700 + box.zone) or t.b or t.d or t.a <= 0 or t.e >= 0:
        return None
    shift_m = SOUTH_SHIFT_M if epsg > 32700 else 0
    x = (np.arange(box.col, box.col_stop) + 0.5) * box.res_m
    y = (np.arange(box.row, box.row_stop) + 0.5) * -box.res_m + shift_m
    cols = np.floor((x - t.c) / t.a + _BORDER).astype(int)
    rows = np.floor((y - t.f) / t.e + _BORDER).astype(int)
    values = blank(box.shape, dtype)
    at_row, at_col = ((i >= 0) & (i < size) for i, size in ((rows, dataset.height), (cols, dataset.width)))
    rows, cols = rows[at_row], cols[at_col]
    if rows.size and cols.size:
        window = Window(cols[0], rows[0], cols[-1] - cols[0] + 1, rows[-1] - rows[0] + 1)
        raw = dataset.read(index, window=window)
        values[np.ix_(at_row, at_col)] = clean(raw[np.ix_(rows - rows[0], cols - cols[0])])
    return values


def blank(shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    """An array in which everything is missing: zeros, NaN for floats."""
    return np.full(shape, _missing(dtype), dtype)


def metric_res_m(dataset: DatasetReader) -> float | None:
    """Side of a pixel in metres; None where the file's units are not metres."""
    if not dataset.crs.is_projected or dataset.crs.linear_units_factor[1] != 1.0:
        return None
    return float(np.hypot(dataset.transform.a, dataset.transform.d))


def _missing(dtype: str) -> float:
    return math.nan if dtype == "float32" else 0


def _kernel_scale(dataset: DatasetReader, box: Box) -> dict[str, float]:
    """Fix the warper's kernel to the size of the file's pixels: at its centre, where their unit is not the metre.

    GDAL takes the scale from the source window of the target grid, which a rotated neighbour zone makes larger than
    it is: the bilinear kernel would be widened by a few per cent, and by another amount for every grid.
    """
    t = dataset.transform
    if metric_res_m(dataset) is not None:
        sides = np.hypot(t.a, t.d), np.hypot(t.b, t.e)
    else:
        col, row = dataset.width / 2, dataset.height / 2
        x, y = t * (np.array([col, col + 1, col]), np.array([row, row, row + 1]))
        x, y = np.asarray(project(dataset.crs, CRS.from_epsg(box.epsg), x, y))
        sides = np.hypot(x[1] - x[0], y[1] - y[0]), np.hypot(x[2] - x[0], y[2] - y[0])
    if not np.isfinite(sides).all():
        return {}
    return {"XSCALE": min(1.0, float(sides[0]) / box.res_m), "YSCALE": min(1.0, float(sides[1]) / box.res_m)}


def _chunks(box: Box) -> Iterator[Box]:
    n = WARP_CHUNK_PX
    for row in range(box.row // n * n, box.row_stop, n):
        for col in range(box.col // n * n, box.col_stop, n):
            yield Box(zone=box.zone, res_m=box.res_m, row=row, col=col, height=n, width=n)


def _source_window(dataset: DatasetReader, chunk: Box, crs: CRS) -> Window | None:
    """The pixels of the file that a chunk can need, within the file; None when there are none."""
    x_min, y_min, x_max, y_max = chunk.bounds_m
    xs, ys = np.linspace(x_min, x_max, _EDGE_POINTS), np.linspace(y_min, y_max, _EDGE_POINTS)
    edge_x = np.concatenate((xs, xs, np.full_like(ys, x_min), np.full_like(ys, x_max)))
    edge_y = np.concatenate((np.full_like(xs, y_min), np.full_like(xs, y_max), ys, ys))
    there = np.asarray(project(crs, dataset.crs, edge_x, edge_y))
    there = there[:, np.isfinite(there).all(axis=0)]
    if not there.size:
        return None
    cols, rows = ~dataset.transform * (there[0], there[1])
    row, row_stop = _span(rows, dataset.height)
    col, col_stop = _span(cols, dataset.width)
    if row_stop <= row or col_stop <= col:
        return None
    return Window(col, row, col_stop - col, row_stop - row)


def _span(places: NDArray[np.float64], size: int) -> tuple[int, int]:
    """First and last + 1 source pixel for places along one axis: with twice the kernel's radius around them."""
    low, high = float(places.min()), float(places.max())
    pad = 2 * math.ceil(max(1.0, (high - low) / WARP_CHUNK_PX)) + 2
    return max(0, math.floor(low) - pad), min(size, math.ceil(high) + pad)


def _around(windows: list[Window]) -> Window:
    row, col = min(w.row_off for w in windows), min(w.col_off for w in windows)
    row_stop, col_stop = max(w.row_off + w.height for w in windows), max(w.col_off + w.width for w in windows)
    return Window(col, row, col_stop - col, row_stop - row)
