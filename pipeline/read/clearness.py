"""Where a scene shows the ground: its classification with clouds grown, laid over the pixels of any layer.

The decision is taken once per pixel of the classification (20 m) and handed to the layers: a 10 m pixel asks the one it
lies in, a 60 m pixel the one under its centre. So all bands of a ground pixel come from the same scene. Pure functions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.read.pieces import window_over
from pipeline.read.scores import GROWN, HIDDEN, among
from pipeline.types import Box

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray


def box_under(parts: Iterable[Box], res_m: int) -> Box:
    """The smallest box of the classification in which all pixels of ``parts`` find the one they ask."""
    boxes = [_asked(part, res_m) for part in parts]
    row, col = min(b.row for b in boxes), min(b.col for b in boxes)
    height, width = max(b.row_stop for b in boxes) - row, max(b.col_stop for b in boxes) - col
    return Box(zone=boxes[0].zone, res_m=res_m, row=row, col=col, height=height, width=width)


def clear(classes: NDArray[np.uint8], *, grow_px: int) -> NDArray[np.bool_]:
    """Where the ground is seen, at least ``grow_px`` pixels away (in rows and in columns) from cloud and shadow.

    Args:
        classes: (row, col) scene classification with a margin of ``grow_px`` on every side.
        grow_px: Reach of the dilation, a square.

    Returns:
        (row, col) bool without the margin.

    >>> clear(np.array([[4, 4, 4], [4, 4, 9], [4, 4, 4]], np.uint8), grow_px=1).tolist()
    [[False]]
    """
    height, width = (side - 2 * grow_px for side in classes.shape)
    grown = among(classes, GROWN)
    for axis, side in ((0, height), (1, width)):
        steps = range(2 * grow_px + 1)
        grown = np.logical_or.reduce([np.take(grown, range(s, s + side), axis=axis) for s in steps])
    inner = classes[grow_px : grow_px + height, grow_px : grow_px + width]
    return np.asarray(~(grown | among(inner, HIDDEN)))


def over(part: Box, mask: NDArray[np.bool_], box: Box) -> NDArray[np.bool_]:
    """``mask``, which lies over ``box``, as the pixels of ``part`` see it: (row, col) bool.

    >>> twenty = Box(zone=31, res_m=20, row=0, col=0, height=1, width=2)
    >>> ten = Box(zone=31, res_m=10, row=0, col=1, height=2, width=2)
    >>> over(ten, np.array([[True, False]]), twenty).tolist()
    [[True, False], [True, False]]
    """
    rows = _asked_index(part.row, part.height, part.res_m, box.res_m) - box.row
    cols = _asked_index(part.col, part.width, part.res_m, box.res_m) - box.col
    return mask[rows[:, None], cols[None, :]]


class Masks:
    """Where the scenes of one period are clear, as far as it has been looked at.

    Attributes:
        failed: Scenes whose classification could not be read.
    """

    def __init__(self) -> None:
        self.failed: set[str] = set()
        self._found: dict[str, list[tuple[Box, NDArray[np.bool_]]]] = {}

    def known(self, scene_id: str, under: Box) -> bool:
        """Whether it is known how clear a scene is there, or that nobody can say."""
        return scene_id in self.failed or window_over(self._found.get(scene_id, ()), under) is not None

    def put(self, scene_id: str, box: Box, mask: NDArray[np.bool_]) -> None:
        """Remember what was seen over a box of the classification."""
        self._found.setdefault(scene_id, []).append((box, mask))

    def hidden(self, scene_id: str, box: Box) -> None:
        """Remember that nobody knows where a scene is clear: it fills what nothing else does."""
        self.put(scene_id, box, np.zeros(box.shape, np.bool_))

    def over(self, scene_id: str, part: Box) -> NDArray[np.bool_]:
        """Where a scene is clear, as the pixels of a layer see it."""
        for box, mask in self._found[scene_id]:
            if window_over([(box, mask)], box_under([part], box.res_m)) is not None:
                return over(part, mask, box)
        raise AssertionError(f"{scene_id} was not looked at over {part}")


def _asked(part: Box, res_m: int) -> Box:
    rows = _asked_index(part.row, part.height, part.res_m, res_m)
    cols = _asked_index(part.col, part.width, part.res_m, res_m)
    row, col = int(rows[0]), int(cols[0])
    return Box(
        zone=part.zone,
        res_m=res_m,
        row=row,
        col=col,
        height=int(rows[-1]) - row + 1,
        width=int(cols[-1]) - col + 1,
    )


def _asked_index(start: int, count: int, res_m: int, class_res_m: int) -> NDArray[np.int64]:
    """Row (or column) of the classification in which the centres of ``count`` pixels lie, doubled to be integers."""
    return (2 * np.arange(start, start + count, dtype=np.int64) + 1) * res_m // (2 * class_res_m)
