"""What a scene classification says of a cell: how good the scene is, and how clear each block of the cell.

Pure functions of class counts; integers until the last division, so that every machine ranks alike. Knows nothing of
files or of the order of candidates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.types import NO_CLEAR

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

NODATA, SATURATED, SHADOW, MEDIUM, HIGH, CIRRUS = 0, 1, 3, 8, 9, 10
"""SCL classes (ESA, Sentinel-2 Products Specification, scene classification)."""
CLASS_WEIGHTS: tuple[tuple[int, int], ...] = ((0, 1), (3, 1), (8, 1), (9, 5), (10, 1), (11, 1))
"""(SCL class, weight): cloud shadow, medium cloud, 5 x high cloud, cirrus and snow as in rslearn's
``Sentinel2SCLFirstValid``; plus nodata with weight 1, ours. rslearn divides by the valid pixels only; then a clear
sliver of a neighbouring orbit would score 0 and beat a scene that covers the whole cell with one small cloud, and
the cell would be patched from two dates. Counting nodata like shadow keeps coverage and clearness on one scale."""
BEST_CLEAR = (4, 5, 6)
"""Vegetation, bare soil and water: what rslearn's ``Sentinel2SCLBestClear`` counts."""
HIDDEN = (NODATA, SATURATED, SHADOW, MEDIUM, HIGH, CIRRUS)
"""Classes in which the ground is not seen. The others are clear: dark ground (2), vegetation, soil, water, unclassified
(7, in which bright soil and roofs end) and snow."""
GROWN = (SHADOW, MEDIUM, HIGH, CIRRUS)
"""Hidden classes with fuzzy edges: these are dilated, a swath's edge and single saturated pixels are not."""
MASK_WEIGHTS: tuple[tuple[int, int], ...] = ((1, 5), (2, 1), (3, 1))
"""(class of a cloud mask, weight): 5 x thick cloud, thin cloud, shadow, as in rslearn's ``OmniCloudMaskFirstValid``."""
MASK_NODATA = 255
"""What a cloud mask holds where the scene has no data; weight 1 as for the classification."""
BLOCKS = 8
"""Blocks per side of a cell: ``CELL_PX / BLOCK_PX``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Looked:
    """What was seen of one scene in one cell.

    Attributes:
        score: What decides; lower is better.
        tie: What decides among equal scores; lower is better.
        clear: Per block of the cell, row by row: percent of its observed pixels that are clear, ``NO_CLEAR`` where
            nothing is observed.
    """

    score: float
    tie: float
    clear: bytes


def by_classes(classes: NDArray[np.integer[Any]]) -> Looked:
    """Rank by ``score_classes``.

    Args:
        classes: (row, col) scene classification of a whole cell, sides multiples of ``BLOCKS``.
    """
    return Looked(score=score_classes(classes), tie=0.0, clear=clear_shares(classes))


def by_clear_cover(classes: NDArray[np.integer[Any]]) -> Looked:
    """Rank as rslearn's ``Sentinel2SCLBestClear``: most of ``BEST_CLEAR`` in the cell, then most valid pixels.

    Its thresholds are 0 by default and nobody can set them here. The score is the share that is not clear.
    """
    counts = np.bincount(classes.ravel(), minlength=12)
    good = sum(int(counts[value]) for value in BEST_CLEAR)
    return Looked(
        score=(classes.size - good) / classes.size, tie=int(counts[NODATA]) / classes.size, clear=clear_shares(classes)
    )


def by_mask(classes: NDArray[np.integer[Any]]) -> Looked:
    """Rank by a cloud mask: 0 clear, 1 thick cloud, 2 thin cloud, 3 shadow, ``MASK_NODATA``.

    >>> by_mask(np.repeat(np.array([[1, 0], [255, 0]], np.uint8), 4, axis=0).repeat(4, axis=1)).score
    1.5
    """
    counts = np.bincount(classes.ravel(), minlength=MASK_NODATA + 1)
    bad = sum(weight * int(counts[value]) for value, weight in (*MASK_WEIGHTS, (MASK_NODATA, 1)))
    return Looked(score=bad / classes.size, tie=0.0, clear=_shares(seen=classes != MASK_NODATA, clear=classes == 0))


def score_classes(classes: NDArray[np.integer[Any]]) -> float:
    """Weighted share of unwanted pixels, 0 (all clear) to 5 (all high-probability cloud).

    Args:
        classes: Scene classification of a whole cell, any shape, integers.

    >>> score_classes(np.array([4, 4, 9, 0]))
    1.5
    """
    counts = np.bincount(classes.ravel(), minlength=12)
    return sum(weight * int(counts[value]) for value, weight in CLASS_WEIGHTS) / classes.size


def clear_shares(classes: NDArray[np.integer[Any]]) -> bytes:
    """``Looked.clear`` of a scene classification."""
    return _shares(seen=classes != NODATA, clear=~among(classes, HIDDEN))


def among(classes: NDArray[np.integer[Any]], wanted: Iterable[int]) -> NDArray[np.bool_]:
    """Where ``classes`` (0..255) are one of ``wanted``; a table is ten times faster than ``np.isin``."""
    table = np.zeros(256, dtype=np.bool_)
    table[list(wanted)] = True
    found: NDArray[np.bool_] = table[classes]
    return found


def _shares(*, seen: NDArray[np.bool_], clear: NDArray[np.bool_]) -> bytes:
    whole, part = _per_block(seen), _per_block(clear)
    percent = (200 * part + whole) // np.maximum(2 * whole, 1)  # half up
    return np.where(whole > 0, percent, NO_CLEAR).astype(np.uint8).tobytes()


def _per_block(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    height, width = mask.shape
    cut = mask.reshape(BLOCKS, height // BLOCKS, BLOCKS, width // BLOCKS)
    return np.asarray(cut.sum(axis=(1, 3)), np.int64)
