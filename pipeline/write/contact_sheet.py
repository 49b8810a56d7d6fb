"""A sheet of small pictures of the same ground with a line below each: periods side by side.

Takes arrays; the frame around the sheet is ``preview.save_png``'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import InvalidInputError
from pipeline.write import preview

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

WIDTH_PX = 1800
"""Of a whole sheet; ``preview.save_png`` would average down what is wider than 2000, with its words."""
CELL_PX = 640
"""Longest side of a picture."""
_LEAST_CELL_PX = 150
"""Narrower cells would not hold a date."""
_ASPECT = 1.5
"""Width over height that a sheet comes near to."""
_GAP_PX, _TEXT_PX, _MARGIN_PX = 16, 15, 16
_INK, _EMPTY = (28, 36, 48, 255), (232, 236, 241, 255)
"""Ground without an observation is light grey, so that the shape of the area shows in every picture."""


def contact_sheet(pictures: Sequence[tuple[str, NDArray[np.uint8]]]) -> NDArray[np.uint8]:
    """(row, col, 4) uint8 of all pictures, row by row, in the order given.

    Args:
        pictures: (line below it, (row, col, 4) uint8), all of one shape. Larger ones are averaged down by a power of
            two, smaller ones enlarged by whole pixels.

    Raises:
        InvalidInputError: None, or different shapes.
    """
    from PIL import Image, ImageDraw, ImageFont  # noqa: PLC0415

    shapes = {picture.shape for _, picture in pictures}
    if len(shapes) != 1:
        raise InvalidInputError(f"a sheet needs pictures of one shape, got {sorted(shapes)}")
    height, width, _ = shapes.pop()
    columns = columns_for(len(pictures), height=height, width=width)
    most = min(CELL_PX, (WIDTH_PX - 2 * _MARGIN_PX) // columns - _GAP_PX)
    shrunk = preview.factor_for(height, width, max_side_px=max(most, 1))
    rows_px, cols_px = -(-height // shrunk), -(-width // shrunk)
    times = max(1, most // max(rows_px, cols_px))
    cell_w, cell_h = max(cols_px * times, _LEAST_CELL_PX) + _GAP_PX, rows_px * times + 2 * _TEXT_PX + _GAP_PX
    lines = -(-len(pictures) // columns)
    # preview.save_png enlarges what is narrower, with its words
    size = max(columns * cell_w + 2 * _MARGIN_PX - _GAP_PX, preview.MIN_WIDTH_PX), lines * cell_h + _MARGIN_PX
    sheet = Image.new("RGBA", size, (255, 255, 255, 255))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=_TEXT_PX)
    for n, (text, picture) in enumerate(pictures):
        left, top = _MARGIN_PX + n % columns * cell_w, _MARGIN_PX // 2 + n // columns * cell_h
        small = preview.shrink_rgba(picture, factor=shrunk)
        cell = Image.new("RGBA", (cols_px * times, rows_px * times), _EMPTY)
        shown = Image.fromarray(np.ascontiguousarray(np.kron(small, np.ones((times, times, 1), np.uint8))), mode="RGBA")
        cell.paste(shown, (0, 0), shown)
        sheet.paste(cell, (left, top))
        words = text if small[..., 3].any() else f"{text.split()[0]}: no observation"
        while font.getlength(words) > cell_w - _GAP_PX // 2 and " " in words:
            words = words.rsplit(" ", 1)[0]
        draw.text((left, top + rows_px * times + 4), words, fill=_INK, font=font)
    return np.asarray(sheet)


def columns_for(count: int, *, height: int, width: int) -> int:
    """How many pictures of a shape stand in a row, so that the sheet is about half as wide again as high.

    >>> [columns_for(n, height=100, width=100) for n in (1, 3, 12, 24)]
    [1, 3, 4, 6]
    """

    def cost(columns: int) -> float:
        lines = -(-count // columns)
        aspect = columns * width / (lines * height)
        empty = (lines * columns - count) / count
        return float(abs(np.log(aspect / _ASPECT)) + 2 * empty)

    most = max(1, min(count, (WIDTH_PX - 2 * _MARGIN_PX) // (_LEAST_CELL_PX + _GAP_PX)))
    return min(range(1, most + 1), key=cost)
