"""Reads a file coarser than it is, from the overviews that its provider put into it.

For what needs a look at much ground and no exact pixel: the classification of a whole ranking cell, the darkest pixels
of a whole scene. What an overview holds is the provider's choice (nearest, mode; for bands, means), so a score from an
overview is not the one from full resolution; but it is a function of the file and the cell alone, and who uses it says
by which factor.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio

from pipeline.errors import DataError, InvalidInputError
from pipeline.read import warp
from pipeline.read.alternates import first_readable
from pipeline.read.sensors import sensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray
    from rasterio import DatasetReader

    from pipeline.read.access import Access
    from pipeline.types import Asset, Box, Scene

log = logging.getLogger(__name__)

FACTORS = (1, 2, 4, 8)
COARSEST_SIDE_PX = 100
"""An overview that is asked about a whole scene has at least this side: ten thousand pixels, a hundred in a
percentile."""
FALLBACK_SIDE_PX = 1024
"""A file without overviews is thinned to at most this side; it is decoded whole for that."""


def read_classes(
    scene: Scene, *, box: Box, factor: int, access: Access, note: Callable[[str], None] | None = None
) -> NDArray[np.uint8]:
    """Read the scene classification over a box, thinned by a factor.

    Every value is a pixel of the coarsest overview that is not coarser than ``factor`` times the native pixels,
    the one in which the centre of the thinned pixel lies. A file without such an overview is thinned itself, which
    need not give the same values; the note says so. The alternates of the scene are tried as for bands.

    Args:
        scene: Its sensor must have a classification.
        box: Lattice box of the classification's native resolution whose edges are multiples of ``factor``, such as a
            ranking cell.
        factor: 1, 2, 4 or 8; 1 reads full resolution.
        access: Opens files.
        note: Told where an alternate was read, or a file without overviews.

    Returns:
        (row, col) uint8 of ``box.height // factor`` rows and ``box.width // factor`` columns; 0 where nothing is known.

    Raises:
        DataError: No classification, one that cannot be read, or values above 255.
        InvalidInputError: The location is not allowed, or box and factor do not fit.
        TransientError: No token.
    """
    band = sensor(scene.sensor).class_band
    if factor not in FACTORS or any(edge % factor for edge in (box.row, box.col, box.height, box.width)):
        raise InvalidInputError(f"classes over {box} cannot be thinned by {factor}: use one of {FACTORS} that fits")
    coarse = box.cover(box.res_m * factor)

    def read(source: Scene, asset: Asset) -> NDArray[np.uint8]:
        where = f"item {source.id}, band {asset.band}"

        def work(dataset: DatasetReader) -> tuple[NDArray[np.uint8], int]:
            _check(dataset, asset, where)
            res_m = warp.metric_res_m(dataset)
            wanted = coarse.res_m / res_m if res_m else float(factor)
            with overview(dataset, asset.band_index, wanted) as (level, used):
                return _classes(level, asset, box=coarse, where=where), used

        values, used = access.read(asset, work, sign=source.sign, item=source.id)
        if used < factor and note is not None:
            note(f"classification of {source.id} thinned by {factor} from overview {used} (1: full resolution)")
        return values

    return first_readable(scene, band, read, note=note)


def read_coarsest(dataset: DatasetReader, index: int) -> NDArray[Any]:
    """(row, col) raw values of a whole file, of the coarsest overview with sides of 100 pixels or more."""
    fits = [f for f in dataset.overviews(index) if min(dataset.shape) / f >= COARSEST_SIDE_PX]
    with overview(dataset, index, max(fits, default=1)) as (level, _):
        shrink = max(1.0, max(level.shape) / FALLBACK_SIDE_PX)
        shape = tuple(max(1, int(side / shrink)) for side in level.shape)
        found: NDArray[Any] = level.read(index, out_shape=shape)
        return found


@contextmanager
def overview(dataset: DatasetReader, index: int, factor: float) -> Iterator[tuple[DatasetReader, int]]:
    """The coarsest overview that is at most ``factor`` times coarser than the file, as (dataset, its factor).

    (The dataset itself, 1) when there is none. The file is opened a second time for it, from GDAL's cache.
    """
    found = dataset.overviews(index)
    fits = [(f, level) for level, f in enumerate(found) if f <= factor * 1.01]  # 5490 / 1373 is 3.9985
    if not fits:
        yield dataset, 1
        return
    used, level = max(fits)
    with rasterio.open(dataset.name, driver=dataset.driver, sharing=False, overview_level=level) as coarse:
        yield coarse, used


def _classes(dataset: DatasetReader, asset: Asset, *, box: Box, where: str) -> NDArray[np.uint8]:
    nodata = dataset.nodata

    def clean(raw: NDArray[Any]) -> NDArray[np.uint8]:
        if raw.dtype != np.uint8 and raw.size and (int(raw.min()) < 0 or int(raw.max()) > 255):
            raise DataError(f"{where}: values from {raw.min()} to {raw.max()} are no classes")
        values = raw.astype(np.uint8, copy=False)
        return np.where(raw == nodata, np.uint8(0), values) if nodata else values

    origin = warp.on_lattice(dataset, box)
    if origin is not None:
        return warp.cut(dataset, asset.band_index, box=box, origin=origin, clean=clean, dtype="uint8")
    found = warp.picked(dataset, asset.band_index, box=box, clean=clean, dtype="uint8")
    if found is not None:
        return found
    return warp.warped(dataset, asset.band_index, box=box, nearest=True, clean=clean, dtype="uint8")


def _check(dataset: DatasetReader, asset: Asset, where: str) -> None:
    if not 1 <= asset.band_index <= dataset.count:
        raise DataError(f"{where}: the file has {dataset.count} bands, band {asset.band_index} is asked for")
    if not np.issubdtype(np.dtype(dataset.dtypes[asset.band_index - 1]), np.integer) or dataset.crs is None:
        raise DataError(f"{where}: classes must be integers in a file with a coordinate reference system")
