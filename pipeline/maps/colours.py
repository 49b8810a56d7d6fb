"""Colours of classes by their names, so that water is blue in every map."""

from __future__ import annotations

import colorsys
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_KNOWN_COLOURS = (
    ("mangrove", "#0f8f86"),
    ("wet|wetland|marsh|marshes|swamp|bog|peat", "#6fb7b0"),
    ("water|waters|river|lake|ocean|sea|pond|reservoir", "#3b7dd8"),
    ("forest|tree|wood|woody", "#1f7a3d"),
    ("crop|cropping|farm|agriculture|agricultural|arable|field|cultivated", "#e3b23c"),
    ("grass|pasture|meadow|savanna|savannah", "#9bc86a"),
    ("shrub|scrub|bush", "#a38a3f"),
    ("built|builtup|urban|village|town|city|cities|settlement|building|house|road|impervious", "#c8434a"),
    ("bare|barren|soil|sand|desert|dry|dryout|rock", "#c9a883"),
    ("snow|ice|glacier", "#bfe3f5"),
    ("cloud", "#b9bcc6"),
)
_PALETTE = (
    "#4269d0", "#efb118", "#ff725c", "#3ca951", "#a463f2", "#6cc5b0", "#ff8ab7", "#9c6b4e", "#97bbf5", "#5b5f97",
    "#d45087", "#8c9a1e", "#0090a8", "#b35900", "#7a7a7a", "#c2a5f0",
)  # fmt: skip


def default_colours(names: Sequence[str]) -> tuple[str, ...]:
    """``#rrggbb`` per class: by well-known words (water, forest, crops, built, bare, ...), else from a palette.

    >>> default_colours(["Water", "rice", "cropland"])
    ('#3b7dd8', '#4269d0', '#e3b23c')
    """
    chosen: dict[str, str] = {}
    for name in names:
        words = re.sub(r"[\W_]+", " ", name.lower())
        known = next(
            (c for pattern, c in _KNOWN_COLOURS if re.search(rf"\b(?:{pattern})(?:s|ed|lands?)?\b", words)), None
        )
        if known is not None and known not in chosen.values():
            chosen[name] = known
    spare = iter(_PALETTE)
    for index, name in enumerate(n for n in names if n not in chosen):
        chosen[name] = next(spare, None) or _golden_colour(index)
    return tuple(chosen[name] for name in names)


def _golden_colour(index: int) -> str:
    """Hues a golden ratio of the circle apart: neighbours differ, however many there are."""
    red, green, blue = colorsys.hsv_to_rgb(index * 0.618033988749895 % 1.0, 0.45 + 0.2 * (index % 3), 0.85)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"
