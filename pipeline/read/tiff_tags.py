"""Which TIFFs async-tiff decodes as GDAL does, by their tags; and what the tags say, in GDAL's terms.

Narrow on purpose: what is not known to be equal is left to GDAL.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from affine import Affine

if TYPE_CHECKING:
    from async_tiff import TIFF, ImageFileDirectory

# TIFF 6.0 and its supplements; names by libtiff
UNCOMPRESSED, LZW, DEFLATE, OLD_DEFLATE, ZSTD = 1, 5, 8, 32946, 50000
COMPRESSIONS = (UNCOMPRESSED, LZW, DEFLATE, OLD_DEFLATE, ZSTD)
NO_PREDICTOR, HORIZONTAL, FLOATING_POINT = 1, 2, 3
MIN_IS_BLACK = 1
MASK = 4  # bit of NewSubfileType
TOP_LEFT = 1
DTYPES = {(1, 8): "uint8", (1, 16): "uint16", (2, 16): "int16", (1, 32): "uint32", (2, 32): "int32", (3, 32): "float32"}
"""By sample format (1 unsigned, 2 signed, 3 float) and bits."""
# GeoTIFF 1.1
PROJECTED, PIXEL_IS_AREA, METRE = 1, 1, 9001
UTM = (*range(32601, 32661), *range(32701, 32761))


def why_not(tiff: TIFF) -> str:
    """Why a file is left to GDAL; empty: it is not."""
    first = tiff.ifds[0]
    if any(ifd.strip_offsets is not None or ifd.strip_byte_counts is not None for ifd in tiff.ifds):
        return "it has strips"
    if any((ifd.new_subfile_type or 0) & MASK for ifd in tiff.ifds):
        return "it has a mask"
    return _layout(first) or _pixels(first) or _place(first)


def _layout(ifd: ImageFileDirectory) -> str:
    if not ifd.tile_offsets or not ifd.tile_byte_counts:
        return "it has no tiles"
    if not all(ifd.tile_offsets) or not all(ifd.tile_byte_counts):
        return "it is sparse"
    if ifd.compression not in COMPRESSIONS:
        return f"its compression is {int(ifd.compression)}"
    if ifd.orientation not in (None, TOP_LEFT):
        return f"its orientation is {ifd.orientation}"
    return ""


def _pixels(ifd: ImageFileDirectory) -> str:
    if ifd.samples_per_pixel != 1 or ifd.photometric_interpretation != MIN_IS_BLACK:
        return "it is not one band of plain values"
    name = DTYPES.get((int(ifd.sample_format[0]), ifd.bits_per_sample[0]))
    if name is None:
        return f"its samples are of format {int(ifd.sample_format[0])} and {ifd.bits_per_sample[0]} bits"
    wanted = FLOATING_POINT if name == "float32" else HORIZONTAL
    if ifd.predictor not in (None, NO_PREDICTOR, wanted):
        return f"its predictor is {int(ifd.predictor)} for {name}"
    try:
        nodata = nodata_of(ifd)
    except ValueError:
        return "its nodata is not a number"
    if nodata is not None and not (math.isnan(nodata) and name == "float32"):
        kind = np.dtype(name)
        fits = abs(nodata) <= np.finfo(kind).max if kind.kind == "f" else _holds(np.iinfo(kind), nodata)
        if not fits or float(kind.type(nodata)) != nodata:
            return f"its nodata {nodata} is not a {name}"
    return ""


def _holds(limits: np.iinfo[np.integer], value: float) -> bool:
    return limits.min <= value <= limits.max


def _place(ifd: ImageFileDirectory) -> str:
    keys = ifd.geo_key_directory
    if keys is None or keys.model_type != PROJECTED or keys.projected_type not in UTM:
        return "it is not in a UTM zone by its EPSG code"
    if keys.raster_type not in (None, PIXEL_IS_AREA) or keys.proj_linear_units not in (None, METRE):
        return "its coordinates are not metres of pixel corners"
    tie, scale = ifd.model_tiepoint, ifd.model_pixel_scale
    if ifd.model_transformation is not None or tie is None or scale is None:
        return "it is not placed by one corner and a scale"
    if len(tie) != 6 or any(tie[:3]) or min(scale[:2]) <= 0:
        return "it is not placed by one corner and a scale"
    return ""


def dtype_of(ifd: ImageFileDirectory) -> str:
    """Name of numpy's type."""
    return DTYPES[int(ifd.sample_format[0]), ifd.bits_per_sample[0]]


def nodata_of(ifd: ImageFileDirectory) -> float | None:
    """The value of a missing pixel; None: the file names none.

    Raises:
        ValueError: The tag holds no number.
    """
    text = (ifd.gdal_nodata or "").strip("\0 ")
    return float(text) if text else None


def epsg_of(ifd: ImageFileDirectory) -> int:
    """EPSG code of the UTM zone.

    Raises:
        ValueError: The file names none.
    """
    keys = ifd.geo_key_directory
    if keys is None or keys.projected_type is None:
        raise ValueError("no EPSG code of a projection")
    return keys.projected_type


def transform_of(ifd: ImageFileDirectory) -> Affine:
    """(column, row) of pixel corners to metres.

    Raises:
        ValueError: The file is not placed by one corner and a scale.
    """
    tie, scale = ifd.model_tiepoint, ifd.model_pixel_scale
    if tie is None or scale is None:
        raise ValueError("no corner or no scale")
    return Affine(scale[0], 0, tie[3], 0, -scale[1], tie[4])
