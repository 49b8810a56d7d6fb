"""Vectors as one NumPy array per zone, with a text file beside it that says where it lies and how to read it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import InvalidInputError
from pipeline.write import durable
from pipeline.write.frames import place

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.types import Box

FILL_ROWS = 256


def write_array(
    path: Path,
    parts: Iterable[tuple[Box, NDArray[Any], int]],
    *,
    box: Box,
    bands: int,
    dtype: str,
    nodata: float,
    about: dict[str, Any],
) -> int:
    """Write (band, row, col) over ``box``; array and text appear whole or not at all, the array last.

    Args:
        path: ``.npy`` file; the text is ``.json`` beside it.
        parts: (box, (band, row, col), pixels that have a vector) of pieces.
        box: Ground of the array.
        bands: Bands.
        dtype: ``int8`` or ``float32``.
        nodata: Value where no piece is.
        about: What else the text says.

    Returns:
        Pixels that have a vector; with none nothing is written.

    Raises:
        InvalidInputError: A piece lies outside.
        OutputError: A file cannot be written.
    """
    count = 0
    with durable.placed(path) as temp:
        whole = np.lib.format.open_memmap(temp, mode="w+", dtype=np.dtype(dtype), shape=(bands, *box.shape))  # type: ignore[no-untyped-call]
        for row in range(0, box.height, FILL_ROWS):
            whole[:, row : row + FILL_ROWS] = nodata
        for part, values, pixels in parts:
            inside = part.intersect(box)
            if inside is None or values.shape != (bands, *part.shape):
                raise InvalidInputError(f"piece {values.shape} of {part} does not fit the array over {box}")
            whole[:, *inside.slices_in(box)] = values[:, *inside.slices_in(part)]
            count += pixels
        whole.flush()
        del whole
        if count:
            durable.replace(path.with_suffix(".json"), _text(path, box, bands, dtype=dtype, nodata=nodata, about=about))
        else:
            temp.unlink()
    return count


def _text(path: Path, box: Box, bands: int, *, dtype: str, nodata: float, about: dict[str, Any]) -> bytes:
    epsg, transform = place(box)
    own = {
        "array": path.name,
        "axes": ["band", "row", "col"],
        "shape": [bands, *box.shape],
        "crs": f"EPSG:{epsg}",
        "transform": list(transform)[:6],
    }
    value = None if np.isnan(nodata) else nodata
    return (json.dumps(about | own | {"dtype": dtype, "nodata": value}, indent=1) + "\n").encode()
