"""What covers reflect in the twelve Sentinel-2 bands, by day of year.

A cover is a calendar of named spectra; between two dates of the calendar the spectrum is their linear mixture.
Crop and grass numbers follow medians of clear Sentinel-2 L2A dates over fields in Flanders in 2018 (ESA WorldCereal
extraction 00002806639B424A, MIT, contains modified Copernicus Sentinel data 2018); the others are typical of L2A.
"""

from __future__ import annotations

import calendar
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from datetime import datetime

    from numpy.typing import NDArray

BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
"""Band order of every spectrum here."""
RES_M = dict(zip(BANDS, (60, 10, 10, 10, 20, 20, 20, 10, 20, 60, 20, 20), strict=True))
"""Native resolution of each band, metres."""
SHIFT_DAYS = 16
"""Ground may be ahead or behind the calendar by at most this many days."""

# Reflectance in per mille, order of BANDS.
_SPECTRA: dict[str, tuple[int, ...]] = {
    "soil": (66, 84, 114, 142, 174, 205, 224, 236, 250, 258, 276, 236),
    "sprout": (47, 58, 90, 88, 138, 212, 240, 262, 270, 280, 235, 175),
    "green": (20, 30, 64, 33, 108, 350, 455, 490, 505, 510, 205, 103),
    "maize": (23, 33, 60, 42, 92, 278, 375, 388, 402, 410, 186, 102),
    "beet": (24, 34, 78, 40, 118, 372, 452, 480, 492, 500, 196, 98),
    "bloom": (36, 50, 148, 138, 182, 350, 420, 455, 470, 475, 215, 118),
    "ripe": (50, 66, 108, 132, 172, 240, 268, 300, 312, 322, 318, 205),
    "stubble": (70, 92, 126, 158, 190, 228, 250, 272, 290, 300, 352, 268),
    "winter_grass": (25, 36, 62, 45, 100, 245, 288, 315, 330, 335, 205, 120),
    "mown": (45, 58, 96, 88, 148, 262, 300, 330, 345, 352, 268, 168),
    "dry_grass": (40, 55, 84, 88, 145, 245, 285, 320, 345, 350, 310, 190),
    "twigs": (24, 31, 44, 48, 70, 108, 126, 138, 152, 160, 168, 108),
    "fresh_leaf": (16, 24, 54, 27, 88, 275, 360, 385, 400, 405, 172, 82),
    "leaf": (14, 20, 38, 21, 64, 220, 290, 308, 326, 332, 148, 66),
    "autumn": (20, 27, 48, 58, 98, 195, 235, 250, 268, 275, 180, 92),
    "needle": (12, 17, 29, 18, 44, 128, 162, 176, 190, 196, 92, 44),
    "lake": (34, 32, 30, 17, 15, 9, 9, 8, 7, 7, 5, 4),
    "river": (46, 50, 66, 48, 44, 24, 24, 21, 18, 18, 9, 7),
    "red_roof": (62, 72, 92, 136, 158, 170, 180, 188, 198, 205, 236, 206),
    "grey_roof": (92, 104, 116, 124, 132, 140, 147, 154, 160, 166, 186, 176),
    "bright_roof": (228, 262, 288, 300, 308, 316, 322, 330, 332, 338, 320, 286),
    "asphalt": (68, 80, 92, 100, 108, 116, 122, 128, 134, 140, 154, 146),
    "garden": (34, 44, 68, 60, 100, 198, 236, 256, 266, 275, 190, 124),
    "sand": (126, 150, 200, 252, 276, 290, 302, 314, 322, 330, 392, 352),
    "quarry": (190, 222, 262, 294, 308, 318, 326, 334, 338, 342, 372, 322),
    "dry_earth": (74, 92, 128, 172, 200, 220, 236, 250, 264, 272, 342, 300),
    "dune": (118, 148, 236, 356, 398, 420, 436, 452, 460, 470, 560, 512),
    "rock": (88, 104, 136, 172, 186, 196, 204, 212, 220, 228, 268, 246),
    "snow": (880, 900, 910, 905, 890, 870, 850, 842, 812, 760, 110, 90),
    "snowy_wood": (240, 252, 258, 246, 268, 322, 345, 352, 352, 340, 105, 62),
    "ice": (520, 560, 575, 540, 500, 440, 410, 380, 340, 310, 40, 30),
    "sea": (36, 28, 14, 6, 4, 3, 3, 2, 2, 2, 1, 1),
    "shoal": (74, 86, 92, 48, 30, 12, 10, 9, 7, 7, 4, 3),
}

# Cover -> ((day of year, spectrum), ...), ascending; the year is a circle.
_CALENDAR: dict[str, tuple[tuple[int, str], ...]] = {
    "lake": ((1, "lake"),),
    "river": ((1, "river"),),
    "broadleaf": ((98, "twigs"), (126, "fresh_leaf"), (160, "leaf"), (262, "leaf"), (290, "autumn"), (318, "twigs")),
    "conifer": ((1, "needle"),),
    "cereal": (
        *((15, "sprout"), (70, "sprout"), (108, "green"), (152, "green"), (182, "ripe"), (200, "ripe")),
        *((208, "stubble"), (245, "stubble"), (262, "soil"), (305, "soil"), (340, "sprout")),
    ),
    "rape": (
        *((60, "winter_grass"), (100, "green"), (112, "bloom"), (130, "bloom"), (142, "green"), (180, "ripe")),
        *((196, "stubble"), (228, "soil"), (250, "soil"), (285, "winter_grass")),
    ),
    "maize": (
        *((30, "stubble"), (85, "soil"), (142, "soil"), (165, "sprout"), (192, "maize"), (248, "maize")),
        *((278, "ripe"), (288, "stubble")),
    ),
    "beet": ((60, "soil"), (130, "soil"), (150, "sprout"), (172, "beet"), (262, "beet"), (288, "soil")),
    "grass": (
        *((20, "winter_grass"), (78, "winter_grass"), (104, "green"), (136, "green"), (142, "mown"), (166, "green")),
        *((174, "mown"), (205, "dry_grass"), (248, "green"), (300, "winter_grass")),
    ),
    "red_roof": ((1, "red_roof"),),
    "grey_roof": ((1, "grey_roof"),),
    "bright_roof": ((1, "bright_roof"),),
    "asphalt": ((1, "asphalt"),),
    "garden": ((70, "winter_grass"), (125, "garden"), (270, "garden"), (320, "winter_grass")),
    "sand": ((1, "sand"),),
    "quarry": ((1, "quarry"),),
    "dry_earth": ((1, "dry_earth"),),
    "dune": ((1, "dune"),),
    "rock": ((1, "rock"),),
    "snow": ((1, "snow"),),
    "snowy_wood": ((1, "snowy_wood"),),
    "ice": ((1, "ice"),),
    "sea": ((1, "sea"),),
    "shoal": ((1, "shoal"),),
}

STATES = tuple(_SPECTRA)
"""Names of what ground can look like: the spectra that calendars are made of."""
COVERS = tuple(_CALENDAR)
"""Names of the covers; the code of a cover is its place here."""
CROPS = ("cereal", "rape", "maize", "beet", "grass")
"""Covers that a parcel of the truth class 'crops' can have: the sub-label."""


def code(cover: str) -> int:
    """Code of a cover."""
    return COVERS.index(cover)


def mixture(cover: str, day: float) -> tuple[str, str, float]:
    """(state before, state after, share of the state after) of a cover on a day of the year; see ``spectrum``."""
    dates = _CALENDAR[cover]
    day = (day - 1.0) % 365.0 + 1.0
    later = next((n for n, (start, _) in enumerate(dates) if start > day), len(dates))
    start, before = dates[later - 1]
    stop, after = dates[later % len(dates)]
    span = (stop - start) % 365 or 365
    return before, after, ((day - start) % 365.0) / span


def spectrum(cover: str, day: float) -> tuple[float, ...]:
    """Reflectance 0..1 of a cover on a day of the year (fractions and days outside 1..365 allowed), order of BANDS."""
    before, after, share = mixture(cover, day)
    return tuple(
        (a * (1.0 - share) + b * share) / 1000.0 for a, b in zip(_SPECTRA[before], _SPECTRA[after], strict=True)
    )


def day_of(when: datetime) -> int:
    """Day of the year 1..365; 29 February counts as the 28th."""
    day = when.timetuple().tm_yday
    return day - (1 if calendar.isleap(when.year) and day > 59 else 0)


def spectrum_table(when: datetime) -> NDArray[np.float32]:
    """Reflectance of every cover at every shift on a date.

    Returns:
        (band, cover * (2 * SHIFT_DAYS + 1) + shift + SHIFT_DAYS) float32; a positive shift is ahead of the calendar.
    """
    day = day_of(when)
    shifts = range(-SHIFT_DAYS, SHIFT_DAYS + 1)
    rows = [spectrum(cover, day + shift) for cover in COVERS for shift in shifts]
    return np.ascontiguousarray(np.array(rows, np.float32).T)
