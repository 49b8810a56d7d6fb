"""Layers about the composites under the embeddings: how clear, how many scenes, since which day.

``qa_clear_pct``, ``qa_scenes`` and ``qa_first_day`` (time, sensor, period, block_y, block_x) hold one value per block
of ``BLOCK_PX``. Their chunks are a tile wide, so that a tile is one object of each. Their blocks have a grid mapping of
their own (``block_spatial_ref``), because readers take the side of a pixel from it. Pure: knows values and no file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import InvalidInputError
from pipeline.types import BLOCK_PX, FIRST_DAY, NO_CLEAR, PIXEL_M

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pipeline.types import Quality, Tile

BLOCK_M = BLOCK_PX * PIXEL_M
"""Side of a block, metres."""
PREFIX = "qa_"
"""Of the names of these arrays, and of no others."""
GRID_MAPPING = "block_spatial_ref"
SPACE = ("block_y", "block_x")
LAYERS: tuple[tuple[str, str, int], ...] = (
    ("qa_clear_pct", "uint8", NO_CLEAR),
    ("qa_scenes", "uint8", 0),
    ("qa_first_day", "uint16", 0),
)
"""(array, dtype, fill) of every layer."""
_ATTRIBUTES: dict[str, dict[str, Any]] = {
    "qa_clear_pct": {
        "long_name": "part of the block that its scenes classify as clear",
        "units": "percent",
        "valid_min": 0,
        "valid_max": 100,
        "nodata": NO_CLEAR,
        "comment": f"{NO_CLEAR}: not known (no classification, no scene, or block not requested)",
    },
    "qa_scenes": {
        "long_name": "scenes that gave pixels to the composite around the block",
        "units": "1",
        "comment": "0: no scene, or block not requested",
    },
    "qa_first_day": {
        "long_name": "day of the first of these scenes",
        "units": f"days since {FIRST_DAY:%Y-%m-%d}",
        "calendar": "proleptic_gregorian",
        # Unlike the codes this is a date: xarray decodes it anyway, and with this "no scene" becomes NaT, not 1970.
        "_FillValue": 0,
        "comment": "0: no scene, or block not requested",
    },
}


def attributes(name: str) -> dict[str, Any]:
    """What the values of layer ``name`` mean."""
    return dict(_ATTRIBUTES[name])


def layers(quality: Sequence[Quality], tile: Tile) -> tuple[tuple[str, NDArray[Any]], ...]:
    """The (sensor, period, block_row, block_col) values of every layer of a tile.

    Args:
        quality: One per sensor of the store, in its order; boxes are the tile's blocks.
        tile: Which tile.

    Raises:
        InvalidInputError: None at all, another box, or arrays of different shapes.
    """
    box = tile.box.cover(BLOCK_M)
    if not quality:
        raise InvalidInputError(f"tile {tile.id}: the store has {PREFIX} layers, the tile brings no quality")
    periods = len(quality[0].scenes)
    for one in quality:
        shapes = {one.clear_pct.shape, one.scenes.shape, one.first_day.shape}
        shape = (periods, *box.shape)
        if one.box != box or shapes != {shape}:
            raise InvalidInputError(
                f"tile {tile.id}: quality is {sorted(shapes)} on {one.box}, every array must be {shape} on {box}"
            )
    return (
        ("qa_clear_pct", np.stack([one.clear_pct for one in quality])),
        ("qa_scenes", np.stack([one.scenes for one in quality])),
        ("qa_first_day", np.stack([one.first_day for one in quality])),
    )
