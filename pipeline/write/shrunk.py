"""GeoTIFFs of a zone read small, from their overviews: what a page shows of a country costs as much as of a village."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pipeline.errors import OutputError
from pipeline.write import geotiff
from pipeline.write.frames import box_of
from pipeline.write.mercator import Ground

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """A band of a file.

    Attributes:
        number: From 1.
        name: Short name of a further band of a class map, "" else.
        title: Description.
        units: Of the values.
        valid_range: (least, greatest) value that it means to hold; None: not said.
    """

    number: int
    name: str
    title: str
    units: str
    valid_range: tuple[float, float] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """What a file says of itself.

    Attributes:
        ground: Where it lies, at full resolution.
        dtype: Of its bands.
        classes: (value, name, ``#rrggbb``); none: not a class map.
        bands: All of them.
    """

    ground: Ground
    dtype: str
    classes: tuple[tuple[int, str, str], ...]
    bands: tuple[Band, ...]


def describe(path: Path) -> Described:
    """Read what a file of ``geotiff`` is.

    Raises:
        OutputError: Not such a file.
    """
    import rasterio  # noqa: PLC0415
    from rasterio.errors import RasterioError  # noqa: PLC0415

    try:
        with rasterio.open(path) as found:
            classes = json.loads(found.tags().get(geotiff.CLASSES_TAG, "[]"))
            return Described(
                ground=Ground.of(box_of(found)),
                dtype=found.dtypes[0],
                classes=tuple((int(value), str(name), str(colour)) for value, name, colour in classes),
                bands=tuple(_band(found, number) for number in range(1, found.count + 1)),
            )
    except (RasterioError, ValueError) as err:
        raise OutputError(f"{path} is not a file of earthpress: {type(err).__name__}") from err


def read(path: Path, band: int, *, factor: int, how: Literal["mode", "average"]) -> NDArray[Any]:
    """One band, every square of ``factor`` pixels as one; nodata does not mix in.

    Args:
        path: A GeoTIFF with overviews.
        band: From 1.
        factor: A power of two; rows and columns that do not fill a square are left out.
        how: Of classes by mode, of numbers by average.

    Returns:
        (row, col), of the dtype of the file.

    Raises:
        OutputError: Unreadable.
    """
    import rasterio  # noqa: PLC0415
    from rasterio.enums import Resampling  # noqa: PLC0415
    from rasterio.errors import RasterioError  # noqa: PLC0415
    from rasterio.windows import Window  # noqa: PLC0415

    try:
        with rasterio.open(path) as found:
            height, width = found.height // factor, found.width // factor
            values = found.read(
                band,
                window=Window(0, 0, width * factor, height * factor),
                out_shape=(height, width),
                resampling=Resampling[how],
            )
            return np.asarray(values)
    except RasterioError as err:
        raise OutputError(f"{path} cannot be read: {err}") from err


def read_rgba(path: Path, *, factor: int) -> NDArray[np.uint8]:
    """(row, col, 4) uint8 colours of a picture, averaged over what is not transparent; alpha is 0 or 255.

    Raises:
        OutputError: Unreadable, or no picture with transparency.
    """
    # GDAL leaves transparent pixels out of the means of the colours, so that only alpha is a share.
    bands = [read(path, number, factor=factor, how="average") for number in (1, 2, 3, 4)]
    rgba = np.stack(bands, axis=-1)
    rgba[..., 3] = np.where(rgba[..., 3] > 0, 255, 0)
    return np.where(rgba[..., 3:] > 0, rgba, np.uint8(0))


def _band(found: Any, number: int) -> Band:
    tags = found.tags(number)
    spread = json.loads(tags.get(geotiff.RANGE_TAG, "null"))
    return Band(
        number=number,
        name=tags.get(geotiff.LAYER_TAG, ""),
        title=found.descriptions[number - 1] or "",
        units=found.units[number - 1] or "",
        valid_range=None if spread is None else (float(spread[0]), float(spread[1])),
    )
