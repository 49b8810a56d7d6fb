"""How values become colours on the report page, so that they can be read back from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.run import class_maps
from pipeline.write import preview

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.write import shrunk


COLOUR_STEPS = 100
"""Colours of a map of numbers; fewer than a palette has, so that values are read back from colours to 1 per cent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How values of a layer become colours.

    Attributes:
        low: Value of the first colour.
        high: Value of the last one; larger ones get it too.
        ticks: (value, ``#rrggbb``) between which colours are mixed.
        texts: Of the ticks in the legend; () for the values.
        unit: Of what is shown.
        times: What is shown is the value times this.
    """

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    texts: tuple[str, ...] = ()
    unit: str = ""
    times: float = 1.0

    def rgba(self, values: NDArray[np.float32]) -> NDArray[np.uint8]:
        """(row, col, 4) uint8 colours, transparent where NaN; to ``COLOUR_STEPS`` even steps."""
        known = np.isfinite(values)
        span = max(self.high - self.low, 1e-30)
        share = np.clip((np.where(known, values, self.low) - self.low) / span, 0, 1)
        step = np.rint(share * COLOUR_STEPS).astype(np.intp)
        at = self.low + np.arange(COLOUR_STEPS + 1) / COLOUR_STEPS * span
        colours = np.array([rgb(colour) for _, colour in self.ticks])
        places = [value for value, _ in self.ticks]
        table = np.stack([np.interp(at, places, colours[:, k]) for k in range(3)], axis=-1)
        out = np.zeros((*values.shape, 4), np.uint8)
        out[..., :3] = np.where(known[..., None], np.rint(table)[step], 0)
        out[..., 3] = np.where(known, 255, 0)
        return out


def spread(band: shrunk.Band, values: NDArray[np.float32]) -> Scale:
    """Colours of a map of numbers: over the range that it was fitted on, else over nearly all values."""
    low, high = band.valid_range or _ends(values[np.isfinite(values)])
    high = high if low < high else low + 1.0
    return Scale(low=low, high=high, ticks=viridis(low, high), unit=band.units)


def shading_of(band: shrunk.Band) -> class_maps.Shading | None:
    """How a band beside classes is shown; None: it is for machines (one probability per class would fill the page)."""
    return next((s for s in class_maps.SHADINGS if s.name == band.name or s.title == band.title), None)


def shaded(shading: class_maps.Shading) -> Scale:
    """The colours of a band beside classes, as its PNG has them."""
    ticks = tuple((share * shading.top, colour) for share, colour in shading.ramp)
    texts = dict(shading.ticks)
    # The spread counts tenths of a step, because bytes hold no fractions.
    times = 0.1 if shading.name == class_maps.SPREAD.name else 1.0
    return Scale(
        low=0.0,
        high=float(shading.top),
        ticks=ticks,
        texts=tuple(texts.get(round(value), f"{value * times:g}") for value, _ in ticks),
        unit="%" if times == 1.0 else "code steps",
        times=times,
    )


def viridis(low: float, high: float) -> tuple[tuple[float, str], ...]:
    """(value, ``#rrggbb``) of ``preview.RAMP`` from ``low`` to ``high``."""
    share = np.linspace(0, 1, len(preview.RAMP)).tolist()
    return tuple((low + part * (high - low), colour) for part, colour in zip(share, preview.RAMP, strict=True))


def _ends(known: NDArray[np.float32]) -> tuple[float, float]:
    """The range of nearly all values: single ones would flatten the colours."""
    if not known.size:
        return 0.0, 1.0
    low, high = np.percentile(known, (2, 98)).tolist()
    return low, high


def rgb(colour: str) -> tuple[int, int, int]:
    """Red, green and blue of ``#rrggbb``."""
    red, green, blue = bytes.fromhex(colour.removeprefix("#"))
    return red, green, blue
