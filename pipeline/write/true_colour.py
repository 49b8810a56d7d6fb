"""True colours of every period under the embeddings, at 80 m: a layer of the store for pictures.

``rgb (time, period, channel, rgb_y, rgb_x)`` uint8, made in the pass that makes the embeddings, from the same
composites. Its chunks are a tile wide, so that a tile is one object. Its pixels have axes and a grid mapping of their
own (``rgb_spatial_ref``), because readers take the side of a pixel from it. Pure: knows values and no file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import InvalidInputError
from pipeline.types import COLOUR_M, COLOUR_TOP

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.types import Tile

NAME = "rgb"
"""Of the array."""
GRID_MAPPING = "rgb_spatial_ref"
SPACE = ("rgb_y", "rgb_x")
CHANNELS = ("red", "green", "blue")
FILL = 0


def attributes() -> dict[str, Any]:
    """What the values mean."""
    return {
        "long_name": "true colours of the composites",
        "units": "1",
        "valid_min": 1,
        "valid_max": 255,
        "nodata": FILL,
        "comment": f"reflectance = (value - 1) * {COLOUR_TOP / 254:.9f}, cut at 0 and {COLOUR_TOP}; mean of the valid "
        f"pixels under {COLOUR_M} m; Sentinel-2 Level-2A, or Landsat at the top of the atmosphere without correction "
        "for the sun's height; 0: not observed or not requested",
    }


def reflectance(values: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What the values say, 0..``COLOUR_TOP``; NaN where nodata."""
    return np.where(values == FILL, np.nan, (values.astype(np.float32) - 1) * (COLOUR_TOP / 254)).astype(np.float32)


def layer(colours: NDArray[np.uint8] | None, tile: Tile, *, shape: tuple[int, int]) -> tuple[str, NDArray[np.uint8]]:
    """The named layer of a tile; nodata everywhere, which costs no object, when the run made no colours.

    Args:
        colours: (period, channel, row, col) uint8.
        tile: Which tile.
        shape: (periods, channels) of the store.

    Raises:
        InvalidInputError: Another shape or dtype.
    """
    want = (*shape, *tile.box.cover(COLOUR_M).shape)
    if colours is None:
        return NAME, np.full(want, FILL, np.uint8)
    if colours.shape != want or colours.dtype != np.uint8:
        raise InvalidInputError(
            f"tile {tile.id}: true colours are {colours.dtype} {colours.shape}, the store has uint8 {want}"
        )
    return NAME, colours
