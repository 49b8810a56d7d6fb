"""On which token grids each version was trained: the limits that windows should respect.

Rotary models run on any grid, but what they give beyond the grids of training is not known to be as good. The common
64 px at patch 4 is a grid of 16 x 16 cells: outside for every version up to v1.2, and for v1.3 with more than four
periods.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.types import GridSpec

MAX_PERIODS = 12
"""Most periods in training (twelve of 30 days)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """How training drew the grid of a sample: a side, then as many periods as a budget of tokens allows.

    A grid of n x n cells with T periods counted n^2 (``per_period`` T + ``fixed``) tokens, all sensors and maps
    present, whatever the patch. Source: ``token_budget`` and ``sampled_hw_p_list`` of the official training scripts
    (allenai/olmoearth_pretrain, ``scripts/official``). About half of the tokens were hidden from the encoder. Fewer
    periods than the budget allows count as trained too.

    Attributes:
        budget: Tokens per sample at most.
        per_period: Tokens per cell and period.
        fixed: Tokens per cell of maps, which have no periods.
        least: Smallest side, cells.
        most: Largest side, cells.
    """

    budget: int
    per_period: int
    fixed: int
    least: int
    most: int

    def periods(self, side: int) -> int:
        """Most periods that a grid of ``side`` cells was trained with; 0: no such grid."""
        if not self.least <= side <= self.most:
            return 0
        return min(MAX_PERIODS, (self.budget // side**2 - self.fixed) // self.per_period)


TRAINED = {
    "v1": Trained(budget=2250, per_period=6, fixed=6, least=1, most=12),
    "v1.1": Trained(budget=2250, per_period=3, fixed=6, least=1, most=12),
    "v1.2": Trained(budget=2250, per_period=3, fixed=6, least=1, most=12),
    "v1.3": Trained(budget=3072, per_period=3, fixed=0, least=3, most=16),
}
"""By version. v1.3 is the script of the model with four pooler layers; that of the released one was not found. It also
drew a few grids of 18 to 32 cells with at most three periods; 16 is where the bulk ends."""
MOST_CELLS = max(t.most for t in TRAINED.values())


def trained_grids(version: str) -> Trained:
    """How a version was trained.

    Raises:
        ConfigError: Nothing is known about this version.
    """
    if version not in TRAINED:
        raise ConfigError(
            f"no trained grids are known for model version {version!r} (known: {', '.join(TRAINED)}): "
            "set encode.window_px and encode.overlap_px yourself"
        )
    return TRAINED[version]


def trained_side(version: str, periods: int) -> int:
    """Largest grid side, in cells, that a version was trained on with ``periods``.

    Beyond twelve periods, which no version saw, the side for twelve.

    Raises:
        ConfigError: Nothing is known about this version.

    >>> [trained_side("v1.2", t) for t in (1, 3, 4, 9, 12)]
    [12, 12, 11, 8, 7]
    """
    known = trained_grids(version)
    return max(n for n in range(1, known.most + 1) if known.periods(n) >= min(periods, MAX_PERIODS))


def outside(version: str, grid: GridSpec, periods: int) -> str:
    """What to say about windows that a user set beyond the trained grids; "" within them or of an unknown version.

    >>> from pipeline.types import GridSpec
    >>> outside("v1.2", GridSpec(patch_px=4, window_px=64, overlap_px=24, tile_px=512), 12)
    'window 64 px at patch 4 is 16 cells per side; at T=12 v1.2 was trained on 1 to 7 cells (up to 28 px)'
    """
    if version not in TRAINED:
        return ""
    side = grid.window_px // grid.patch_px
    least, limit = trained_grids(version).least, trained_side(version, periods)
    if least <= side <= limit:
        return ""
    return (
        f"window {grid.window_px} px at patch {grid.patch_px} is {side} cells per side; at T={periods} {version} "
        f"was trained on {least} to {limit} cells (up to {limit * grid.patch_px} px)"
    )
