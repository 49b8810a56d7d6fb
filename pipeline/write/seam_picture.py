"""What a seam score looks like: the ground around a line at 100 %, and the profile of steps by phase.

The line is marked at the margins of the picture and not drawn over it, because a drawn line hides what it points at.
Takes arrays and scores, knows nothing of stores.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.write.seams import Score

SIDE = 384
"""Vectors along the sides of the picture."""
MARGIN_PX = 16
SHOWN = 128
"""Phases of a profile that are drawn at most, around the worst one."""
_MARK = (217, 72, 15, 255)
_WIDTH, _HEIGHT = 560, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 16, 44


def marked(rgba: NDArray[np.uint8], *, row: int | None = None, col: int | None = None) -> NDArray[np.uint8]:
    """Frame a picture with margins in which arrow heads point at the line between two rows or two columns.

    Args:
        rgba: (row, col, 4) uint8.
        row: The line lies above this row; None for no such line.
        col: The line lies west of this column; None for no such line.

    Returns:
        (row + 2 * ``MARGIN_PX``, col + 2 * ``MARGIN_PX``, 4) uint8, transparent margins.
    """
    m = MARGIN_PX
    framed = np.zeros((rgba.shape[0] + 2 * m, rgba.shape[1] + 2 * m, 4), np.uint8)
    framed[m:-m, m:-m] = rgba
    depth = np.arange(m - 2)
    for step in depth:
        half = (m - 2 - int(step)) // 2
        if row is not None:
            across = slice(m + row - half, m + row + half)
            framed[across, step] = framed[across, framed.shape[1] - 1 - step] = _MARK
        if col is not None:
            across = slice(m + col - half, m + col + half)
            framed[step, across] = framed[framed.shape[0] - 1 - step, across] = _MARK
    return framed


def enlarged(rgba: NDArray[np.uint8], *, least: int = SIDE) -> tuple[NDArray[np.uint8], int]:
    """A small picture enlarged by a whole factor, so that its longer side comes near ``least``; and the factor."""
    times = max(1, least // max(rgba.shape[:2]))
    return (np.kron(rgba, np.ones((times, times, 1), np.uint8)) if times > 1 else rgba), times


def profile_svg(score: Score, *, token_px: int = 1, limit: float | None = None) -> str:
    """The steps by phase as an inline SVG, all text escaped, colours from the page.

    Args:
        score: With a profile.
        token_px: 10 m pixels of a vector; phases are drawn in pixels.
        limit: ``run.max_seam_score``, drawn as a dashed line.

    Returns:
        ``<svg ...>``; "" for a score without profile.
    """
    if not score.profile:
        return ""
    phases = _around(score)
    values = [score.profile[k % score.period] for k in phases]
    known = [v for v in values if v is not None]
    tops = [score.high, 1.05, *known] + ([limit] if limit is not None else [])
    low, high = min(0.9, score.low, *known), min(max(tops), 3 * max(known))
    low = max(low, min(*known, 0.9) - 0.2)

    def x(n: float) -> float:
        return _LEFT + (n + 0.5) / len(phases) * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        share = (min(max(value, low), high) - low) / (high - low)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)

    own = [n for n, k in enumerate(phases) if k % score.period in score.own]
    worst = next(n for n, k in enumerate(phases) if k % score.period == score.phase)
    parts = [_level(y(tick), f"{tick:.2f}") for tick in _ticks(low, high)]
    parts += [_rule(x(n - 0.5), y(low), y(high)) for n in own]
    if limit is not None:
        parts.append(f'<path class="limit" d="M{_LEFT} {y(limit):.1f}H{_WIDTH - _RIGHT}"/>')
    runs = _runs(values)
    parts += [f'<polyline class="run" points="{" ".join(f"{x(n):.1f},{y(v):.1f}" for n, v in run)}"/>' for run in runs]
    parts += [f'<circle class="dot" cx="{x(n):.1f}" cy="{y(v):.1f}" r="1.6"/>' for run in runs for n, v in run]
    at = f"{x(worst):.1f}"
    parts.append(f'<path class="bar" d="M{at} {y(score.low):.1f}V{y(score.high):.1f}"/>')
    parts.append(f'<circle class="worst" cx="{at}" cy="{y(score.score):.1f}" r="4"/>')
    marks = sorted({0, len(phases) // 4, len(phases) // 2, 3 * len(phases) // 4, len(phases) - 1})
    parts += [_text(x(n), _HEIGHT - 24, f"{phases[n] % score.period * token_px}", "middle") for n in marks]
    parts.append(_text(_WIDTH / 2, _HEIGHT - 6, f"phase in the period of {score.period * token_px} px", "middle"))
    title = f"Step by phase, {score.kind} lines, steps between {_neighbours(score.axis)}"
    return (
        f'<svg class="profile" role="img" viewBox="0 0 {_WIDTH} {_HEIGHT}" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )


def _neighbours(axis: str) -> str:
    return {"row": "rows", "col": "columns"}.get(axis, "zones")


def _around(score: Score) -> list[int]:
    """All phases of a short period, the line at a quarter; of a long one those around the worst, which may wrap."""
    if score.period <= SHOWN:
        return list(range(-(score.period // 4), score.period - score.period // 4))
    return list(range(score.phase - SHOWN // 2, score.phase + SHOWN // 2))


def _runs(values: list[float | None]) -> list[list[tuple[int, float]]]:
    """Pieces of the profile without a gap."""
    runs: list[list[tuple[int, float]]] = [[]]
    for n, value in enumerate(values):
        if value is None:
            runs.append([])
        else:
            runs[-1].append((n, value))
    return [run for run in runs if run]


def _ticks(low: float, high: float) -> list[float]:
    """Round values inside the range, about five, always with 1."""
    step = next((s for s in (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0) if (high - low) / s <= 6), 10.0)
    first = int(np.ceil((low - 1) / step))
    return [1 + k * step for k in range(first, int((high - 1) / step) + 1)]


def _level(y: float, text: str) -> str:
    line = f'<path class="{"one" if text == "1.00" else "grid"}" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>'
    return line + _text(_LEFT - 8, y + 4, text, "end")


def _rule(x: float, bottom: float, top: float) -> str:
    return f'<path class="own" d="M{x:.1f} {bottom:.1f}V{top:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
