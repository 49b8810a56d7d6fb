"""How wide windows must fade into each other, and how far neighbourhood attention reaches: arithmetic, no pixels.

Where two windows overlap, a linear ramp of r tokens spreads their disagreement D over r + 1 steps. D has nothing to do
with the natural step s between neighbours, so the two add as squares, and the step at a seam over the natural one is

    score = sqrt(1 + (rho^2 - 1) / (r + 1)^2)        with rho = sqrt(1 + (D / s)^2)

rho is the score of centre crops, which jump by D at once; ``earthpress seams`` measures it. Checked on 242 blends of
random models at one period and overlaps below half a window: measured over predicted has median 1.00, and 0.96 to 1.02
holds four fifths of them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pipeline.errors import InvalidInputError
from pipeline.plan.flops import KERNEL_PX, POOLED_TOKENS
from pipeline.types import RESIZE_REACH_PX

if TYPE_CHECKING:
    from pipeline.types import Calibration, ModelCard, SeamProfile

TARGET = 1.05
"""Score that a ramp shall reach: a step 5 % above the natural one is not seen in pictures of the embedding."""


def score(rho: float, ramp: int) -> float:
    """Step at the seam of two blended windows over the natural one.

    Args:
        rho: Score of centre crops; below 1 (no seam, measured with noise) it counts as 1.
        ramp: Tokens of the linear ramp, 0 or more.

    Raises:
        InvalidInputError: rho or ramp is impossible.

    >>> [round(score(2.5, r), 2) for r in (0, 3, 6)]
    [2.5, 1.15, 1.05]
    """
    if not 0 < rho < math.inf or ramp < 0:
        raise InvalidInputError(f"rho {rho} must be a positive number and the ramp of {ramp} tokens not negative")
    return math.sqrt(1 + max(0.0, rho**2 - 1) / (ramp + 1) ** 2)


def tokens_for(rho: float, target: float = TARGET) -> int:
    """Shortest ramp, in tokens, that brings the seam to ``target``; at least 1.

    rho is of windows that overlap; without any overlap the outermost tokens of two windows would meet, which differ
    more than what rho says.

    Args:
        rho: Score of centre crops.
        target: Wanted score, above 1.

    Raises:
        InvalidInputError: rho or target is impossible.

    >>> [tokens_for(rho) for rho in (1.0, 1.15, 1.3, 1.5, 2.0, 2.5, 3.3, 5.0)]
    [1, 1, 2, 3, 5, 7, 9, 15]
    """
    if not 0 < rho < math.inf or not 1 < target < math.inf:
        raise InvalidInputError(f"rho {rho} must be a positive number and the target {target} above 1")
    ratio = max(0.0, rho**2 - 1) / (target**2 - 1)
    ramp = max(1, math.ceil(math.sqrt(ratio) - 1))
    return ramp if score(rho, ramp) <= target else ramp + 1  # the root may round to just below a whole number


def ramps_of(calibration: Calibration, patch_px: int, periods: int, sensors: tuple[str, ...]) -> dict[int, int]:
    """Window in pixels -> ramp in tokens, by what ``earthpress seams`` measured for this shape; empty: nothing.

    Each ramp brings the seam of its own windows to the score that was wanted when it was measured.

    Args:
        calibration: With its ``seams``.
        patch_px: Side of a token.
        periods: Time steps.
        sensors: What the model is fed with.

    Raises:
        InvalidInputError: The calibration is of another patch or other sensors, or a number is impossible.
    """
    found = _measured(calibration, patch_px, periods, sensors)
    return {p.window_px: tokens_for(p.rho, p.target) for p in found if p.window_px}


def halo_of(calibration: Calibration, patch_px: int, periods: int, sensors: tuple[str, ...], box_px: int) -> int | None:
    """Halo of a neighbourhood domain that ``earthpress reach`` measured, 10 m pixels; None when it did not.

    North and west of the first kept token; south and east no more than ``reach_cells`` says. Arguments and errors as
    ``ramps_of``.
    """
    found = [p for p in _measured(calibration, patch_px, periods, sensors) if p.box_px == box_px > 0]
    return max((p.halo_px for p in found), default=None)


def _measured(calibration: Calibration, patch_px: int, periods: int, sensors: tuple[str, ...]) -> list[SeamProfile]:
    if patch_px < 1 or periods < 1:
        raise InvalidInputError(f"patch {patch_px} px and periods {periods} must be at least 1")
    if (calibration.patch_px, calibration.sensors) != (patch_px, sensors):
        raise InvalidInputError(
            f"the calibration is of patch {calibration.patch_px} px and {', '.join(calibration.sensors)}, asked for "
            f"patch {patch_px} px and {', '.join(sensors)}"
        )
    wanted = (patch_px, periods, sensors)
    return [p for p in calibration.seams if (p.patch_px, p.periods, p.sensors) == wanted]


def reach_cells(card: ModelCard, box_px: int, patch_px: int) -> tuple[int, int]:
    """How far attention carries within a domain: (cells to the north and west, cells to the south and east).

    A box of W cells begins W // 2 cells before the cell of its query, so each attention adds W // 2 cells in front and
    W - 1 - W // 2 behind. There is one per block; with v1.3's pooler one read more (earlier reads see the same tokens)
    and a self-attention per layer.

    Args:
        card: The model and which of its vectors is written.
        box_px: Side of the box.
        patch_px: Side of a token.

    Raises:
        InvalidInputError: The box is not a positive multiple of the patch.

    >>> from pipeline.types import ModelCard
    >>> nano = ModelCard(name="", version="v1.2", size="nano", dims=128, depth=4, heads=8, parameters=0,
    ...                  sensors=(), sha256="", trained=False)
    >>> reach_cells(nano, 16, 4), reach_cells(nano, 16, 8)
    ((8, 4), (4, 0))
    """
    if patch_px < 1 or box_px < patch_px or box_px % patch_px:
        raise InvalidInputError(f"box {box_px} px is not a positive multiple of patch {patch_px} px")
    pooled = card.pooler_depth > 0 and card.output not in POOLED_TOKENS
    layers = card.depth + (1 + card.pooler_depth if pooled else 0)
    width = box_px // patch_px
    return layers * (width // 2), layers * (width - 1 - width // 2)


def exact_halo_px(card: ModelCard, box_px: int, patch_px: int) -> tuple[int, int]:
    """Context that no pixel beyond can change a kept token through: (north and west, south and east), 10 m pixels.

    ``reach_cells`` and, below patch 8, the whole tokens that resizing reads around the outermost of them.
    """
    read = 0 if patch_px == KERNEL_PX else -(-RESIZE_REACH_PX // patch_px)
    front, behind = reach_cells(card, box_px, patch_px)
    return (front + read) * patch_px, (behind + read) * patch_px
