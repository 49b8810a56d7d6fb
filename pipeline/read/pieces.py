"""Values that composites share: a cell's part of a Stack, what it was made of, and rectangles read as one.

A piece is the part of a Stack that lies in one cell and one period. Pieces of one period that are at the same scene
share their windows: a tile's halo reaches into eight more cells, and reading its strips one by one would decode most
blocks twice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.read import quality
from pipeline.types import Box, PeriodSource

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from pipeline.read.rank import Ranking
    from pipeline.types import Cell

MERGE_WASTE = 1.1
"""Windows are read as one when their common rectangle has at most this times their pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What one cell and period contribute to a Stack.

    Attributes:
        cell: The cell.
        period: ``Period.index``.
        time: Position on the layers' time axis.
        ranking: The scenes, best first.
        parts: (position of the layer, box of its pixels that belong to the cell).
        blocks: Blocks of the cell that are judged, in lattice pixels of ``quality.BLOCK_M``; None: none.
        sensor: Of the scenes.
    """

    cell: Cell
    period: int
    time: int
    ranking: Ranking
    parts: tuple[tuple[int, Box], ...]
    blocks: Box | None = None
    sensor: str = "sentinel2_l2a"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Made:
    """What became of a piece.

    Attributes:
        source: The record for receipts.
        taken: What its blocks are made of; None when none is judged.
    """

    source: PeriodSource
    taken: quality.Taken | None


def source_of(piece: Piece, *, selected: Iterable[str], skipped: Iterable[str], notes: Iterable[str]) -> PeriodSource:
    """The record of a piece; scenes that could not be ranked count as skipped, even if used last."""
    ranking = piece.ranking
    left_out = {*skipped, *ranking.failed}
    return PeriodSource(
        cell_id=piece.cell.id,
        period=piece.period,
        selected=tuple(selected),
        skipped=tuple(i for i in ranking.scene_ids if i in left_out),
        scores=tuple(score if math.isfinite(score) else None for score in ranking.scores),
        sensor=piece.sensor,
        notes=tuple(dict.fromkeys((*ranking.notes, *notes))),
    )


def taken_of(
    piece: Piece,
    *,
    scene_ids: tuple[str, ...],
    gave: Iterable[NDArray[np.bool_]],
    clear: NDArray[np.bool_] | None,
) -> quality.Taken | None:
    """Count by block what the finest layer is made of.

    Args:
        piece: The piece; its parts start with the finest layer.
        scene_ids: Scenes asked, in order.
        gave: For each of them (row, col) over the finest part: pixels that it gave.
        clear: (row, col) over the finest part: pixels known to be clear; None: unknown by pixel.
    """
    if piece.blocks is None:
        return None
    part = piece.parts[0][1]
    pixels = [quality.per_block(mask, part, piece.blocks) for mask in gave]
    return quality.Taken(
        time=piece.time,
        blocks=piece.blocks,
        scene_ids=scene_ids,
        pixels=np.stack(pixels) if pixels else np.zeros((0, *piece.blocks.shape), np.int64),
        total=quality.per_block(np.ones(part.shape, np.bool_), part, piece.blocks),
        clear=None if clear is None else quality.per_block(clear, part, piece.blocks),
        shares=quality.shares_of(dict(piece.ranking.clear), scene_ids, cell=piece.cell, blocks=piece.blocks),
    )


def has_data(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Where a band of a Stack has data: not 0, floats not NaN."""
    return ~np.isnan(values) if values.dtype.kind == "f" else np.asarray(values != 0)


def missing_of(pixels: NDArray[Any]) -> float:
    """What a band of a Stack holds where it has no data."""
    return math.nan if pixels.dtype.kind == "f" else 0


def merge_boxes(boxes: Iterable[Box]) -> tuple[Box, ...]:
    """Join rectangles while their common rectangle wastes little; every box lies inside one of the result.

    >>> west = Box(zone=31, res_m=10, row=0, col=0, height=8, width=8)
    >>> east = Box(zone=31, res_m=10, row=0, col=8, height=8, width=2)
    >>> [b.shape for b in merge_boxes([west, east])]
    [(8, 10)]
    """
    merged: list[Box] = []
    for box in boxes:
        joined, again = box, True
        while again:
            again = False
            for other in merged:
                common = around(joined, other)
                if area(common) <= MERGE_WASTE * (area(joined) + area(other)):
                    merged.remove(other)
                    joined, again = common, True
                    break
        merged.append(joined)
    return tuple(merged)


def window_over(windows: Iterable[tuple[Box, NDArray[Any]]], part: Box) -> NDArray[Any] | None:
    """The pixels of ``part`` from the window that holds it; None when there is none."""
    return next((values[part.slices_in(box)] for box, values in windows if around(box, part) == box), None)


def around(a: Box, b: Box) -> Box:
    """The smallest box that holds both."""
    row, col = min(a.row, b.row), min(a.col, b.col)
    height, width = max(a.row_stop, b.row_stop) - row, max(a.col_stop, b.col_stop) - col
    return Box(zone=a.zone, res_m=a.res_m, row=row, col=col, height=height, width=width)


def area(box: Box) -> int:
    """Pixels of a box."""
    return box.height * box.width
