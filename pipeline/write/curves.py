"""Line charts as PNG files, drawn with Pillow: axes, curves, a legend, nothing else.

Takes numbers and names; knows nothing of what they mean. Everything is drawn twice as large and shrunk, which smooths
lines and text.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import InvalidInputError
from pipeline.write import durable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL import ImageDraw

COLOURS = ("#1f6fb4", "#d1600f", "#2b8a5b", "#8a4fae", "#b03048", "#7a6a12")
"""Of curves, in order; told apart also by colour-blind readers when neighbours are compared."""
GREY = "#98a2b0"
WIDTH_PX, HEIGHT_PX = 900, 330
"""Of one chart in the file."""
_INK, _MUTED, _GRID, _PAPER = "#1c2430", "#5a6676", "#e3e7ec", "#ffffff"
_LEFT, _RIGHT, _TOP, _BOTTOM = 74, 22, 66, 48
"""Space around the axes."""
_SMOOTH = 2
_LOWEST = 1e-4
"""What a logarithmic axis shows of smaller values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One line.

    Attributes:
        name: For the legend.
        points: (x, y), ascending x.
        colour: ``#rrggbb``.
        dashed: Broken, for what is only there to compare with.
    """

    name: str
    points: tuple[tuple[float, float], ...]
    colour: str
    dashed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """One pair of axes, both from 0; y may be logarithmic.

    Attributes:
        title: Above it: what one sees.
        x_label: Below the x axis, with unit.
        y_label: Above the y axis, with unit.
        curves: At least one, with at least one point each.
        logarithmic: y by powers of ten; values below 0.0001 are drawn there.
    """

    title: str
    x_label: str
    y_label: str
    curves: tuple[Curve, ...]
    logarithmic: bool = False


def save_charts(path: str | Path, charts: Sequence[Chart], *, title: str, note: str = "") -> None:
    """Write charts below each other; atomic.

    Args:
        path: PNG file.
        charts: At least one.
        title: Of the file.
        note: A line below the title.

    Raises:
        InvalidInputError: Nothing to draw.
        OutputError: The file cannot be written.
    """
    from PIL import Image, ImageDraw  # noqa: PLC0415

    if not charts or any(not chart.curves or any(not c.points for c in chart.curves) for chart in charts):
        raise InvalidInputError(f"nothing to draw in {path}: every chart needs curves with points")
    head = 66 if note else 44
    size = WIDTH_PX * _SMOOTH, (head + HEIGHT_PX * len(charts)) * _SMOOTH
    sheet = Image.new("RGB", size, _PAPER)
    pen = _Pen(ImageDraw.Draw(sheet))
    pen.text(16, 14, title, size=20)
    pen.text(16, 42, note, size=13, colour=_MUTED)
    for place, chart in enumerate(charts):
        _draw(pen, chart, top=head + place * HEIGHT_PX)
    small = sheet.resize((WIDTH_PX, size[1] // _SMOOTH), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, format="PNG")
    durable.replace(Path(path), buffer.getvalue())


class _Pen:
    """Draws in pixels of the file."""

    def __init__(self, draw: ImageDraw.ImageDraw) -> None:
        self._draw = draw

    def text(self, x: float, y: float, text: str, *, size: int = 13, colour: str = _INK, anchor: str = "la") -> None:
        from PIL import ImageFont  # noqa: PLC0415

        font = ImageFont.load_default(size=size * _SMOOTH)
        self._draw.text((x * _SMOOTH, y * _SMOOTH), text, fill=colour, font=font, anchor=anchor)

    def width(self, text: str, *, size: int = 13) -> float:
        from PIL import ImageFont  # noqa: PLC0415

        return ImageFont.load_default(size=size * _SMOOTH).getlength(text) / _SMOOTH

    def line(
        self, points: Sequence[tuple[float, float]], *, colour: str, width: float = 1, dashed: bool = False
    ) -> None:
        scaled = [(x * _SMOOTH, y * _SMOOTH) for x, y in points]
        for part in _dashes(scaled) if dashed else [scaled]:
            self._draw.line(part, fill=colour, width=round(width * _SMOOTH), joint="curve")

    def dot(self, x: float, y: float, *, colour: str) -> None:
        r = 3
        self._draw.ellipse([(v + d) * _SMOOTH for d in (-r, r) for v in (x, y)], fill=colour)


def _dashes(points: Sequence[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    """Pieces of a line, 8 px drawn, 6 px not."""
    on, off = 8 * _SMOOTH, 6 * _SMOOTH
    found: list[list[tuple[float, float]]] = []
    at = 0.0  # length of line so far
    for (x0, y0), (x1, y1) in pairwise(points):
        length = math.hypot(x1 - x0, y1 - y0)
        first = math.floor(at / (on + off)) * (on + off)
        while first < at + length:
            begin, end = max(first, at) - at, min(first + on, at + length) - at
            if begin < end:
                ends = (begin / length, end / length)
                found.append([(x0 + (x1 - x0) * t, y0 + (y1 - y0) * t) for t in ends])
            first += on + off
        at += length
    return found


def _draw(pen: _Pen, chart: Chart, *, top: float) -> None:
    left, right = _LEFT, WIDTH_PX - _RIGHT
    upper, lower = top + _TOP, top + HEIGHT_PX - _BOTTOM
    xs = [x for curve in chart.curves for x, _ in curve.points]
    ys = [y for curve in chart.curves for _, y in curve.points]
    x_ticks, y_ticks = _ticks(max(xs)), _powers(ys) if chart.logarithmic else _ticks(max(ys))
    x_end = max(*xs, x_ticks[-1])

    def x_of(x: float) -> float:
        return left + (right - left) * x / x_end

    def y_of(y: float) -> float:
        if not chart.logarithmic:
            return lower - (lower - upper) * y / y_ticks[-1]
        low, high = math.log10(y_ticks[0]), math.log10(y_ticks[-1])
        return lower - (lower - upper) * (math.log10(max(y, y_ticks[0])) - low) / (high - low)

    pen.text(16, top + 8, chart.title, size=15)
    pen.text(16, top + 34, chart.y_label, size=12, colour=_MUTED)
    for tick in y_ticks:
        pen.line([(left, y_of(tick)), (right, y_of(tick))], colour=_GRID)
        pen.text(left - 8, y_of(tick), f"{tick:g}", size=12, colour=_MUTED, anchor="rm")
    for tick in x_ticks:
        pen.line([(x_of(tick), lower), (x_of(tick), lower + 4)], colour=GREY)
        pen.text(x_of(tick), lower + 7, f"{tick:g}", size=12, colour=_MUTED, anchor="ma")
    pen.line([(left, lower), (right, lower)], colour=GREY)
    pen.text(right, lower + 25, chart.x_label, size=12, colour=_MUTED, anchor="ra")
    for curve in chart.curves:
        line = [(x_of(x), y_of(y)) for x, y in curve.points]
        pen.line(line, colour=curve.colour, width=2, dashed=curve.dashed)
        if not curve.dashed and len(line) <= 30:
            for x, y in line:
                pen.dot(x, y, colour=curve.colour)
    _legend(pen, chart, right=right, y=top + 41)


def _legend(pen: _Pen, chart: Chart, *, right: float, y: float) -> None:
    """Names from the right, on the line of the y label."""
    x = right
    for curve in reversed(chart.curves):
        x -= pen.width(curve.name, size=12)
        pen.text(x, y, curve.name, size=12, anchor="lm")
        pen.line([(x - 30, y), (x - 6, y)], colour=curve.colour, width=2, dashed=curve.dashed)
        x -= 46


def _ticks(most: float) -> list[float]:
    """About five round numbers from 0 to ``most`` or a little beyond."""
    if most <= 0:
        return [0.0, 1.0]
    rough = most / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * (1 - 1e-9))
    return [round(step * i, 10) for i in range(math.ceil(most / step - 1e-9) + 1)]


def _powers(values: Sequence[float]) -> list[float]:
    """Powers of ten around positive values."""
    shown = [max(v, _LOWEST) for v in values]
    low, high = math.floor(math.log10(min(shown)) + 1e-9), math.ceil(math.log10(max(shown)) - 1e-9)
    return [10.0**k for k in range(low, max(high, low + 1) + 1)]
