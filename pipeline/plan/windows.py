"""Which window and overlap: the cheapest per kept km2 that a version was trained on.

Three things pull at a window. Its overlap is paid for by a larger window; attention, which grows with the square of the
tokens, by a smaller one; and a model is only known to work on the grids it saw in training, the fewer cells the more
periods. ``choose`` takes the overlap from the wanted margin, tries every window of whole tokens and keeps the cheapest
that lies within the trained grids. Pure arithmetic: the same request gives the same lattice on every machine, which it
must, since the lattice is part of a store's recipe.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import ConfigError
from pipeline.plan.flops import KERNEL_PX, S2, Cost, cost_per_km2
from pipeline.plan.trained import MAX_PERIODS, MOST_CELLS, outside, trained_grids, trained_side
from pipeline.types import BLOCK_PX, GridSpec, ModelCard

if TYPE_CHECKING:
    from collections.abc import Mapping

RAMP_TOKENS = 6
"""Overlap without a wanted margin: on random weights a linear ramp of 6 tokens brings the step at a seam to 1.03-1.04
times the natural one at patch 4 (64 and 96 px windows, one period)."""
LEAST_CELLS = 4
"""Smallest side that is chosen: without overlap the cheapest window would be a single token, which sees nothing."""
RAMP_TOKENS_8 = 4
"""The same at patch 8, where 4 tokens are 32 px: 1.03-1.04."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One window and what it costs.

    Attributes:
        window_px: Side, 10 m pixels.
        overlap_px: Overlap, 10 m pixels.
        cells: Side in tokens.
        trained_periods: Most periods that a grid of this side was trained with, 0: never seen.
        cost: Tokens and operations per kept km2.
        relative: Operations per kept km2 over those of the chosen window.
        rejected: Why not; "" for the chosen one.
    """

    window_px: int
    overlap_px: int
    cells: int
    trained_periods: int
    cost: Cost
    relative: float
    rejected: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The window that was picked, and those that were not.

    Attributes:
        version: Of the model.
        patch_px: Side of a token.
        periods: Time steps.
        sensors: Sensors that are fed.
        stitch: How windows become a field.
        limit_cells: Largest side trained with that many periods.
        chosen: The cheapest within the trained grids.
        rejected: All others, smallest window first.
        notes: What a user should know about this choice, one sentence each.
    """

    version: str
    patch_px: int
    periods: int
    sensors: tuple[str, ...]
    stitch: str
    limit_cells: int
    chosen: Option
    rejected: tuple[Option, ...]
    notes: tuple[str, ...] = ()

    def table(self) -> tuple[tuple[str, ...], ...]:
        """Header and one row of text per option, smallest window first, the chosen one among them."""
        options = sorted((self.chosen, *self.rejected), key=lambda o: o.window_px)
        header = ("window", "overlap", "GFLOP/km2", "attention", "tokens/km2", "times encoded", "trained", "verdict")
        return (header, *map(_row, options))


def settle_overlap(
    version: str,
    *,
    patch_px: int,
    periods: int,
    margin_px: int | None = None,
    overlap_px: int | None = None,
    stitch: str = "blend",
    cells: int | None = None,
) -> int:
    """Overlap in tokens, from what was asked for.

    Without a wish the ramp's default, but at most half of a window. Beyond half more than two windows overlap and the
    cost runs away (6 of 7 tokens: every cell is encoded 49 times) while the ramp gains little: at the seam of a model
    whose centre crops step 1.5 times too high, a ramp of 3 tokens leaves 1.04, one of 6 leaves 1.01
    (score^2 = 1 + (1.5^2 - 1) / (tokens + 1)^2).

    Args:
        version: Of the model.
        patch_px: Side of a token.
        periods: Time steps.
        margin_px: As for ``choose``.
        overlap_px: As for ``choose``.
        stitch: For ``centre`` the default is even: the same number of tokens goes on each side.
        cells: Side of the window, tokens; None: the largest that was trained with these periods.

    Raises:
        ConfigError: Patch, margin or overlap are impossible, or margin and overlap are both given.

    >>> [settle_overlap("v1.2", patch_px=4, periods=t) for t in (1, 4, 12)]
    [6, 5, 3]
    >>> settle_overlap("v1.2", patch_px=4, periods=12, margin_px=6)
    4
    """
    _check_overlap(patch_px, periods, margin_px=margin_px, overlap_px=overlap_px)
    if overlap_px is not None:
        return overlap_px // patch_px
    if margin_px is not None:
        return 2 * -(-margin_px // patch_px)
    side = trained_side(version, periods) if cells is None else cells
    tokens = min(_ramp(patch_px), side // 2)
    return tokens - tokens % 2 if stitch == "centre" else tokens


def choose(
    card: ModelCard,
    *,
    patch_px: int,
    periods: int,
    margin_px: int | None = None,
    overlap_px: int | None = None,
    sensors: tuple[str, ...] = (S2,),
    stitch: str = "blend",
) -> Choice:
    """Pick the window.

    Args:
        card: The model.
        patch_px: Side of a token, 1..8.
        periods: Time steps.
        margin_px: Context wanted on every side of what is kept, 10 m pixels: the overlap is twice as much, in whole
            tokens; None: see ``settle_overlap``.
        overlap_px: The overlap itself, a multiple of the patch, instead of a margin.
        sensors: Sensors that are fed.
        stitch: ``centre`` keeps the core of each window and prunes the last layer to it; others blend all tokens.

    Returns:
        The cheapest window of the trained grids from ``LEAST_CELLS`` on, by operations per kept km2; of equals the
        smaller.

    Raises:
        ConfigError: Nothing is known about this version, patch or overlap are impossible, or the overlap leaves
            nothing of the largest trained grid.
    """
    overlap = settle_overlap(
        card.version, patch_px=patch_px, periods=periods, margin_px=margin_px, overlap_px=overlap_px, stitch=stitch
    )
    known, limit = trained_grids(card.version), trained_side(card.version, periods)
    if overlap >= limit:
        raise ConfigError(
            f"an overlap of {overlap * patch_px} px ({overlap} tokens) leaves nothing of the {limit} cells per side "
            f"that {card.version} was trained on at T={periods}: ask for less (encode.ramp at most {limit - 1}, "
            f"encode.margin_px at most {(limit - 1) // 2 * patch_px}), fewer periods, or set encode.window_px yourself"
        )
    costs = {
        n: cost_per_km2(card, _spec(patch_px, n, overlap, stitch), periods, sensors=sensors)
        for n in range(max(overlap + 1, known.least), MOST_CELLS + 1)
    }
    wide = min(LEAST_CELLS, limit)
    best = _cheapest({n: cost.flops for n, cost in costs.items() if wide <= n <= limit})
    options = tuple(
        Option(
            window_px=n * patch_px,
            overlap_px=overlap * patch_px,
            cells=n,
            trained_periods=known.periods(n),
            cost=cost,
            relative=cost.flops / costs[best].flops,
            rejected="" if n == best else _reason(n, (wide, limit), periods, cost.flops / costs[best].flops),
        )
        for n, cost in costs.items()
    )
    return Choice(
        version=card.version,
        patch_px=patch_px,
        periods=periods,
        sensors=sensors,
        stitch=stitch,
        limit_cells=limit,
        chosen=next(o for o in options if not o.rejected),
        rejected=tuple(o for o in options if o.rejected),
        notes=_notes(card.version, patch_px, periods, overlap=overlap, best=best, free=margin_px is overlap_px is None),
    )


def settle(
    card: ModelCard,
    *,
    patch_px: int,
    periods: int,
    window_px: int | None = None,
    margin_px: int | None = None,
    overlap_px: int | None = None,
    sensors: tuple[str, ...] = (S2,),
    stitch: str = "blend",
) -> tuple[int, int, str]:
    """Window and overlap in pixels, and what to tell the user about them.

    Args:
        card: The model.
        patch_px: As for ``choose``.
        periods: As for ``choose``.
        window_px: What the user set, which is taken even beyond the trained grids; None: ``choose`` picks it.
        margin_px: As for ``choose``.
        overlap_px: As for ``choose``.
        sensors: As for ``choose``.
        stitch: As for ``choose``.

    Returns:
        (window_px, overlap_px, ``explain`` of the choice, or a warning where a window that was set is untrained).

    Raises:
        ConfigError: As ``choose``, or window and patch do not fit, or the overlap leaves nothing of the window.
    """
    if window_px is None:
        choice = choose(
            card,
            patch_px=patch_px,
            periods=periods,
            margin_px=margin_px,
            overlap_px=overlap_px,
            sensors=sensors,
            stitch=stitch,
        )
        return choice.chosen.window_px, choice.chosen.overlap_px, explain(choice)
    if window_px <= 0 or window_px % patch_px:
        raise ConfigError(f"window {window_px} px is not a positive multiple of patch {patch_px} px")
    cells = window_px // patch_px
    overlap = settle_overlap(
        card.version,
        patch_px=patch_px,
        periods=periods,
        margin_px=margin_px,
        overlap_px=overlap_px,
        stitch=stitch,
        cells=cells,
    )
    if overlap >= cells:
        raise ConfigError(
            f"an overlap of {overlap * patch_px} px leaves nothing of a window of {window_px} px: "
            "ask for less overlap or margin, or a larger window"
        )
    return window_px, overlap * patch_px, outside(card.version, _spec(patch_px, cells, overlap, stitch), periods)


def explain(choice: Choice) -> str:
    """The choice, its notes and the table of all windows as plain text, lines joined by newlines."""
    took, cost = choice.chosen, choice.chosen.cost
    head = (
        f"window {took.window_px} px, overlap {took.overlap_px} px ({took.cells} and "
        f"{took.overlap_px // choice.patch_px} tokens of {choice.patch_px} px): {_giga(cost.flops)} GFLOP and "
        f"{cost.tokens:,.0f} tokens per kept km2, attention {cost.work.attention_share:.0%}; {choice.version} was "
        f"trained on up to {choice.limit_cells} cells per side at T={choice.periods}"
    )
    rows = choice.table()
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join((head, *choice.notes, *lines))


def _check_overlap(patch_px: int, periods: int, *, margin_px: int | None, overlap_px: int | None) -> None:
    if not 1 <= patch_px <= KERNEL_PX or periods < 1:
        raise ConfigError(f"patch {patch_px} px must be 1..{KERNEL_PX} and periods {periods} at least 1")
    if margin_px is not None and overlap_px is not None:
        raise ConfigError(f"give a margin ({margin_px} px) or an overlap ({overlap_px} px), not both")
    if margin_px is not None and margin_px < 0:
        raise ConfigError(f"margin {margin_px} px must be 0 or more")
    if overlap_px is not None and (overlap_px < 0 or overlap_px % patch_px):
        raise ConfigError(f"overlap {overlap_px} px must be 0 or a multiple of patch {patch_px} px")


def _ramp(patch_px: int) -> int:
    return RAMP_TOKENS_8 if patch_px == KERNEL_PX else RAMP_TOKENS


def _cheapest(flops: Mapping[int, float]) -> int:
    """The side of the least operations; of equals the smallest."""
    return min(flops, key=lambda n: (flops[n], n))


def _spec(patch_px: int, cells: int, overlap: int, stitch: str) -> GridSpec:
    """A lattice to cost; the side of a tile plays no part in that."""
    return GridSpec(
        patch_px=patch_px,
        window_px=cells * patch_px,
        overlap_px=overlap * patch_px,
        tile_px=BLOCK_PX,
        stitch=stitch,
    )


def _reason(cells: int, sides: tuple[int, int], periods: int, relative: float) -> str:
    costs, (least, limit) = f"costs {relative:.2f}x", sides
    if cells < least:
        return f"fewer than {least} cells see too little ({costs})"
    return costs if cells <= limit else f"beyond the trained grid of {limit} cells at T={periods} ({costs})"


def _notes(version: str, patch_px: int, periods: int, *, overlap: int, best: int, free: bool) -> tuple[str, ...]:
    notes = []
    wanted = _ramp(patch_px)
    if periods > MAX_PERIODS:
        notes.append(
            f"no version was trained with more than {MAX_PERIODS} periods: the grid for {MAX_PERIODS} is taken"
        )
    if free and overlap < wanted:
        notes.append(
            f"the usual overlap of {wanted} tokens is cut to {overlap}, half of the largest grid that {version} was "
            f"trained on at T={periods}"
        )
    if 2 * overlap > best:
        notes.append(
            f"the overlap is more than half of the window: every cell is encoded {(best / (best - overlap)) ** 2:.1f} "
            "times; a smaller margin is much cheaper"
        )
    return tuple(notes)


def _row(option: Option) -> tuple[str, ...]:
    cost = option.cost
    return (
        f"{option.window_px} px ({option.cells})",
        f"{option.overlap_px} px",
        _giga(cost.flops),
        f"{cost.work.attention_share:.0%}",
        f"{cost.tokens:,.0f}",
        f"{cost.evaluations:.2f}",
        f"to T={option.trained_periods}" if option.trained_periods else "never",
        option.rejected or "chosen",
    )


def _giga(flops: float) -> str:
    """In units of 1e9, three significant digits at least."""
    value = flops / 1e9
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
