"""How good a composite is, per block: clear share, number of scenes, day of the first one.

A block's numbers follow from the pixels of the finest layer in the block and from the ranking of its cell. Only blocks
that lie wholly inside a read are judged, so that a block is judged alike whatever the tile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.read.scores import BLOCKS
from pipeline.read.windows import pixels_centred_in
from pipeline.types import BLOCK_PX, FIRST_DAY, NO_CLEAR, PIXEL_M, Box, Cell, Quality

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from pipeline.types import Scene

BLOCK_M = BLOCK_PX * PIXEL_M
MOST_SCENES = 255
"""More scenes than a uint8 holds count as this many."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Taken:
    """What the blocks of one cell and period are made of.

    Attributes:
        time: Position on the time axis.
        blocks: The blocks, in lattice pixels of ``BLOCK_M``.
        scene_ids: Scenes that gave pixels, in the order in which they were asked.
        pixels: (scene, row, col) pixels of the finest layer that each gave.
        total: (row, col) pixels of a block.
        clear: (row, col) of them that are known to be clear; None: the scenes' clear shares say.
        shares: (scene, row, col) uint8: clear percent of each scene in each block; ``NO_CLEAR``: unknown.
    """

    time: int
    blocks: Box
    scene_ids: tuple[str, ...]
    pixels: NDArray[np.int64]
    total: NDArray[np.int64]
    clear: NDArray[np.int64] | None
    shares: NDArray[np.uint8]


def whole_blocks(box: Box) -> Box | None:
    """The blocks that lie wholly inside a 10 m box, in lattice pixels of ``BLOCK_M``; None when there are none.

    >>> whole_blocks(Box(zone=31, res_m=10, row=-260, col=0, height=600, width=600)).shape
    (2, 2)
    """
    row, col = -(-box.row // BLOCK_PX), -(-box.col // BLOCK_PX)
    height, width = box.row_stop // BLOCK_PX - row, box.col_stop // BLOCK_PX - col
    if height <= 0 or width <= 0:
        return None
    return Box(zone=box.zone, res_m=BLOCK_M, row=row, col=col, height=height, width=width)


def blocks_of(cell: Cell) -> Box:
    """The blocks of a cell."""
    return Box(zone=cell.zone, res_m=BLOCK_M, row=cell.row * BLOCKS, col=cell.col * BLOCKS, height=BLOCKS, width=BLOCKS)


def per_block(mask: NDArray[np.bool_], box: Box, blocks: Box) -> NDArray[np.int64]:
    """Count the pixels of a mask in each block; a pixel belongs to the block of its centre.

    Args:
        mask: (row, col) bool over ``box``.
        box: Lattice box of any resolution that holds all pixels of ``blocks``.
        blocks: Lattice box of ``BLOCK_M``.

    Returns:
        (row, col) over ``blocks``.
    """
    return lines_per_block(per_line(mask, box, blocks), box, blocks)


def per_line(mask: NDArray[np.bool_], box: Box, blocks: Box) -> NDArray[np.uint16]:
    """(row of ``box``, col of ``blocks``) pixels of a mask in each line of each column of blocks."""
    own = _under(blocks, box.res_m)
    cols = [_under(_one(blocks, 0, i), box.res_m).col - own.col for i in range(blocks.width)]
    start = own.col - box.col
    # uint16 is enough for a line of a block and four times faster than the default of int64
    return np.add.reduceat(mask[:, start : start + own.width], cols, axis=1, dtype=np.uint16)


def lines_per_block(lines: NDArray[np.uint16], box: Box, blocks: Box) -> NDArray[np.int64]:
    """(row, col) over ``blocks``: the sums of ``per_line``."""
    own = _under(blocks, box.res_m)
    rows = [_under(_one(blocks, i, 0), box.res_m).row - own.row for i in range(blocks.height)]
    start = own.row - box.row
    return np.add.reduceat(lines[start : start + own.height], rows, axis=0, dtype=np.int64)


def shares_of(clear: Mapping[str, bytes], scene_ids: Iterable[str], *, cell: Cell, blocks: Box) -> NDArray[np.uint8]:
    """(scene, row, col) clear percent over ``blocks``, which lie in ``cell``, from the ranking's record."""
    unknown = bytes([NO_CLEAR]) * (BLOCKS * BLOCKS)
    found = b"".join(clear.get(scene_id) or unknown for scene_id in scene_ids)
    cut = blocks.slices_in(blocks_of(cell))
    return np.frombuffer(found, np.uint8).reshape(-1, BLOCKS, BLOCKS)[:, cut[0], cut[1]]


def quality_of(box: Box, taken: Iterable[Taken], *, times: int, scenes: Mapping[str, Scene]) -> Quality | None:
    """Judge the blocks of a read.

    Args:
        box: 10 m box that was read.
        taken: What its cells are made of.
        times: Length of the time axis.
        scenes: By id.

    Returns:
        Over the blocks wholly inside ``box``; None when there are none.
    """
    blocks = whole_blocks(box)
    if blocks is None:
        return None
    shape = (times, *blocks.shape)
    quality = Quality(
        box=blocks,
        clear_pct=np.full(shape, NO_CLEAR, np.uint8),
        scenes=np.zeros(shape, np.uint8),
        first_day=np.zeros(shape, np.uint16),
    )
    for one in taken:
        rows, cols = one.blocks.slices_in(blocks)
        gave = one.pixels > 0
        quality.scenes[one.time, rows, cols] = np.minimum(gave.sum(axis=0), MOST_SCENES)
        quality.clear_pct[one.time, rows, cols] = _clear_pct(one, gave)
        if one.scene_ids:
            days = np.array([(scenes[i].acquired.date() - FIRST_DAY).days for i in one.scene_ids])
            quality.first_day[one.time, rows, cols] = np.where(gave.any(axis=0), days[gave.argmax(axis=0)], 0)
    return quality


def _clear_pct(taken: Taken, gave: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Percent, half up; pixels of a scene are as clear as the scene is in the block."""
    known = gave.any(axis=0)
    if taken.clear is not None:
        hundredfold = 100 * taken.clear
    else:
        known &= ~(gave & (taken.shares == NO_CLEAR)).any(axis=0)
        hundredfold = np.where(gave, taken.pixels * taken.shares.astype(np.int64), 0).sum(axis=0)
    percent = (2 * hundredfold + taken.total) // (2 * taken.total)
    return np.where(known, percent, NO_CLEAR).astype(np.uint8)


def _under(blocks: Box, res_m: int) -> Box:
    """The pixels of ``res_m`` that belong to blocks."""
    own = pixels_centred_in(blocks, res_m)
    assert own is not None  # noqa: S101 - a block has 256 pixels of 10 m
    return own


def _one(blocks: Box, row: int, col: int) -> Box:
    return Box(zone=blocks.zone, res_m=BLOCK_M, row=blocks.row + row, col=blocks.col + col, height=1, width=1)
