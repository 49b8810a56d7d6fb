"""A landscape with known truth: a pure function of lattice position, date and seed.

Any two windows of the same ground agree bit for bit, so scenes, stacks and the truth map can be cut wherever they are
needed. Five truth classes; crops hold five crop types with their own calendars, forest holds two.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import numpy as np

from pipeline.errors import InvalidInputError
from pipeline.simulate import terrain
from pipeline.simulate.noise import fractal, grid_noise, hashed, salt_of, unit
from pipeline.simulate.spectra import BANDS, CROPS, SHIFT_DAYS, code, spectrum_table
from pipeline.types import PIXEL_M

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from numpy.typing import NDArray

    from pipeline.simulate.noise import Site
    from pipeline.types import Box

Biome = Literal["temperate", "city", "desert", "snow", "sea"]
DEFAULT_SEED = 7
_FLOOR = 1e-4
"""Smallest reflectance: DN 1 without and DN 1001 with the offset, so that both encodings say the same."""


_STRIP_ROWS = 96
"""Ground is laid out in strips of rows, whose temporary arrays stay in the cache: twice as fast as in one piece."""


class LandClass(NamedTuple):
    """One truth class."""

    code: int
    name: str
    colour: str


CLASSES = (
    LandClass(0, "water", "#2f6fb5"),
    LandClass(1, "forest", "#1f6b3a"),
    LandClass(2, "crops", "#e3c34d"),
    LandClass(3, "built-up", "#c0392b"),
    LandClass(4, "bare", "#b39b83"),
)
"""The truth classes (code, name, colour); 255 is nodata in truth rasters."""
WATER, FOREST, CROP, BUILT, BARE = range(5)
TRUTH_NODATA = 255


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ground:
    """What does not change with the date.

    Attributes:
        box: 10 m box under the arrays.
        truth: (row, col) uint8, codes of ``CLASSES``.
        cover: (row, col) uint8, codes of ``spectra.COVERS``: the sub-label.
        shift: (row, col) int16, days ahead of the cover's calendar.
        gain: (row, col) float32, brightness relative to the cover.
    """

    box: Box
    truth: NDArray[np.uint8]
    cover: NDArray[np.uint8]
    shift: NDArray[np.int16]
    gain: NDArray[np.float32]


def truth(box: Box, seed: int = DEFAULT_SEED) -> NDArray[np.uint8]:
    """True class of every pixel of a 10 m box, (row, col) uint8 codes of ``CLASSES``."""
    return survey(box, seed=seed).truth


def reflectance(
    box: Box, when: datetime, seed: int = DEFAULT_SEED, *, biome: Biome = "temperate"
) -> dict[str, NDArray[np.float32]]:
    """Cloudless surface reflectance of a 10 m box on a date: band -> (row, col) float32, 0.0001..1."""
    return reflectance_of(survey(box, seed=seed, biome=biome), when, seed=seed)


def survey(box: Box, *, seed: int = DEFAULT_SEED, biome: Biome = "temperate") -> Ground:
    """Lay out the ground of a 10 m box.

    Raises:
        InvalidInputError: The box is not of 10 m pixels, or the biome is unknown.
    """
    if box.res_m != PIXEL_M:
        raise InvalidInputError(
            f"the landscape lives on {PIXEL_M} m pixels, got a box of {box.res_m} m; use Box.cover(10)"
        )
    if biome not in get_args(Biome):
        raise InvalidInputError(f"unknown biome {biome!r}; known are {', '.join(get_args(Biome))}")
    starts = range(box.row, box.row_stop, _STRIP_ROWS)
    boxes = (replace(box, row=row, height=min(_STRIP_ROWS, box.row_stop - row)) for row in starts)
    strips = [_survey_strip(strip, seed=seed, biome=biome) for strip in boxes]
    truth_, cover, shift, gain = (np.concatenate(arrays) for arrays in zip(*strips, strict=True))
    return Ground(box=box, truth=truth_, cover=cover, shift=shift, gain=gain)


def joined(parts: Sequence[Ground], box: Box) -> Ground:
    """The ground of a box that surveyed parts, side by side from west to east or overlapping, cover together.

    Raises:
        InvalidInputError: They do not cover it.
    """
    col, pieces = box.col, []
    for part in parts:
        strip = replace(part.box, row=box.row, height=box.height).intersect(
            replace(box, col=col, width=box.col_stop - col)
        )
        if strip is not None and strip.col == col:
            pieces.append((part, strip))
            col = strip.col_stop
        if col == box.col_stop:
            break
    if col != box.col_stop:
        raise InvalidInputError(f"{box} is not covered by the ground of {[part.box for part in parts]}")
    arrays = (
        np.concatenate([getattr(part, name)[strip.slices_in(part.box)] for part, strip in pieces], axis=1)
        for name in ("truth", "cover", "shift", "gain")
    )
    truth_, cover, shift, gain = arrays
    return Ground(box=box, truth=truth_, cover=cover, shift=shift, gain=gain)


def _survey_strip(
    box: Box, *, seed: int, biome: Biome
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.int16], NDArray[np.float32]]:
    rows, cols = np.arange(box.row, box.row_stop) + 0.5, np.arange(box.col, box.col_stop) + 0.5
    y, x = (np.ascontiguousarray(a) for a in np.broadcast_arrays(rows[:, None], cols[None, :]))
    draft = _Draft(y=y, x=x, seed=seed, zone=box.zone)
    _LAYOUTS[biome](draft)
    shift = np.clip(np.rint(draft.shift), -SHIFT_DAYS, SHIFT_DAYS).astype(np.int16)
    return draft.truth, draft.cover, shift, draft.gain.astype(np.float32)


def reflectance_of(ground: Ground, when: datetime, *, seed: int = DEFAULT_SEED) -> dict[str, NDArray[np.float32]]:
    """Reflectance of surveyed ground on a date; see ``reflectance``.

    Pixel noise and the residue of the atmosphere differ from date to date, as they do in real L2A.
    """
    box, table = ground.box, spectrum_table(when)
    at = ground.cover.astype(np.int32) * (2 * SHIFT_DAYS + 1) + ground.shift + SHIFT_DAYS
    rows, cols = np.arange(box.row, box.row_stop), np.arange(box.col, box.col_stop)
    bits = hashed(rows[:, None], cols[None, :], salt=salt_of(seed, box.zone, "noise", when.date().toordinal()))
    result = {}
    for index, band in enumerate(BANDS):
        haze, bright = _atmosphere(seed, when, band)
        grain = ((bits >> np.uint64(5 * index)) & np.uint64(31)).astype(np.float32) / np.float32(31) - np.float32(0.5)
        value = table[index][at] * ground.gain
        value = value * (bright + np.float32(0.03) * grain) + haze + np.float32(0.002) * grain
        result[band] = np.minimum(np.maximum(value, np.float32(_FLOOR)), np.float32(1.0))
    return result


def _atmosphere(seed: int, when: datetime, band: str) -> tuple[np.float32, np.float32]:
    """(added, factor) that atmospheric correction left in on that date; the blue end suffers most."""
    strength = {"B01": 0.010, "B02": 0.007, "B03": 0.004, "B04": 0.003}.get(band, 0.001)
    bits = hashed(np.array([when.date().toordinal()]), np.array([0]), salt=salt_of(seed, "atmosphere"))
    haze, bright = float(unit(bits, lane=0)[0]) - 0.4, float(unit(bits, lane=1)[0]) - 0.5
    return np.float32(strength * haze), np.float32(1.0 + 0.05 * bright)


class _Draft:
    """The arrays of a survey while it is laid out; painted from the back to the front."""

    def __init__(self, *, y: NDArray[np.float64], x: NDArray[np.float64], seed: int, zone: int) -> None:
        self.y, self.x, self.seed, self.zone = y, x, seed, zone
        self.truth = np.full(y.shape, CROP, np.uint8)
        self.cover = np.full(y.shape, code("grass"), np.uint8)
        self.shift = 9.0 * (self.noise("season", 34.0) - 0.5)
        self.gain = 0.94 + 0.12 * self.noise("soil", 60.0)
        self.dots = unit(hashed(np.floor(y), np.floor(x), salt=self.salt("dots")))

    def salt(self, name: str) -> int:
        return salt_of(self.seed, self.zone, name)

    def noise(self, name: str, wave_px: float) -> NDArray[np.float64]:
        return grid_noise(self.y, self.x, wave_px=wave_px, salt=self.salt(name))

    def paint(self, where: NDArray[np.bool_], land: int, cover: str, *, uneven: float = 0.0) -> None:
        """Give pixels a class and a cover; ``uneven`` is the relative brightness range of single pixels."""
        self.truth[where] = land
        self.cover[where] = code(cover)
        self.gain[where] *= 1.0 + uneven * (self.dots[where] - 0.5)


def _temperate(draft: _Draft) -> None:
    _paint_parcels(draft)
    _paint_forest(draft, terrain.woods(draft.y, draft.x, salt=draft.salt("woods")) > 0.575)
    _paint_pits(draft)
    _paint_water(draft)
    _paint_towns(draft)


def _paint_parcels(draft: _Draft) -> None:
    fields = terrain.parcels(draft.y, draft.x, salt=draft.salt("parcels"))
    dice, kind = unit(fields.bits, lane=0), unit(fields.bits, lane=1)
    limits = (0.34, 0.50, 0.70, 0.82, 1.0)
    for crop, low, high in zip(CROPS, (0.0, *limits), limits, strict=False):
        draft.paint((kind >= low) & (kind < high), CROP, crop, uneven=0.06)
    draft.shift += 20.0 * (dice - 0.5)
    draft.gain *= 0.88 + 0.24 * unit(fields.bits, lane=2)
    stripe = unit(hashed(np.floor(fields.along_px / 2.0), fields.bits.view(np.int64), salt=draft.salt("tillage")))
    draft.gain *= 0.97 + 0.06 * stripe
    draft.paint(fields.edge_px < 0.45, CROP, "grass")
    draft.paint(dice < 0.035, FOREST, "broadleaf", uneven=0.35)  # woodlots
    idle = (dice > 0.955) & (fields.edge_px > 0.6)
    draft.paint(idle, BARE, "dry_earth", uneven=0.10)


def _paint_forest(draft: _Draft, where: NDArray[np.bool_]) -> None:
    stand, edge_px = terrain.stands(draft.y, draft.x, salt=draft.salt("stands"))
    needle = unit(stand, lane=0) + 0.9 * (draft.noise("needle", 120.0) - 0.5) > 0.55
    draft.gain[where] = 0.80 + 0.40 * (0.4 * unit(stand, lane=1) + 0.6 * draft.noise("crowns", 2.6))[where]
    draft.shift[where] += 8.0 * (unit(stand, lane=2)[where] - 0.5)
    draft.paint(where & ~needle, FOREST, "broadleaf", uneven=0.16)
    draft.paint(where & needle, FOREST, "conifer", uneven=0.22)
    draft.gain[where & (edge_px < 0.35)] *= 1.12  # rides


def _radius(*, share: tuple[float, float], smallest: float, largest: float) -> Callable[[Site], float]:
    low, high = share

    def radius_px(where: Site) -> float:
        return smallest + (largest - smallest) * where.dice[1] if low <= where.dice[0] < high else 0.0

    return radius_px


def _paint_pits(draft: _Draft) -> None:
    y, x, salt = draft.y, draft.x, draft.salt("pits")
    pit = terrain.blobs(
        y, x, spacing_px=95, reach_px=48, salt=salt, radius_px=_radius(share=(0.0, 0.34), smallest=9, largest=21)
    )
    face = fractal(y, x, wave_px=16.0, salt=salt + 1)
    draft.gain[pit < 1] = 0.45 + 0.7 * fractal(y, x, wave_px=9.0, salt=salt + 2)[pit < 1]
    draft.paint(pit < 1, BARE, "sand", uneven=0.12)
    draft.paint((pit < 1) & (face > 0.56), BARE, "quarry", uneven=0.12)
    draft.paint((pit < 1) & (face < 0.40), BARE, "dry_earth", uneven=0.12)
    heath = fractal(y, x, wave_px=64.0, salt=draft.salt("heath"), octaves=2) > 0.80
    draft.paint(heath, BARE, "dry_earth", uneven=0.14)


def _paint_water(draft: _Draft) -> None:
    y, x = draft.y, draft.x
    lake = terrain.blobs(
        y,
        x,
        spacing_px=95,
        reach_px=48,
        salt=draft.salt("pits"),  # the same sites: a pit is either dug or drowned
        radius_px=_radius(share=(0.34, 0.60), smallest=9, largest=26),
    )
    stream, beyond_px = terrain.river(y, x, salt=draft.salt("river"))
    bank = ~stream & (beyond_px < 3.4) & (draft.noise("banks", 22.0) > 0.72)
    draft.paint(bank, BARE, "sand", uneven=0.08)
    for where, cover in ((lake < 1, "lake"), (stream, "river")):
        draft.gain[where] = 0.85 + 0.3 * draft.noise("water", 30.0)[where]
        draft.paint(where, WATER, cover, uneven=0.05)


def _paint_towns(draft: _Draft, *, everywhere: bool = False) -> None:
    salt = draft.salt("towns")
    towns = terrain.towns(draft.y, draft.x, salt=salt, everywhere=everywhere)
    inside = (towns.ratio < 1) & (draft.truth != WATER)
    dice, big = unit(towns.plot, lane=0), towns.works > 0.62
    draft.gain[inside] = 0.78 + 0.44 * unit(towns.plot, lane=1)[inside]
    dense = 0.62 - 0.3 * np.minimum(towns.ratio, 1.0)  # gardens take over towards the edge of town
    houses = inside & ~big & (dice < dense)
    draft.paint(inside & ~houses, BUILT, "garden", uneven=0.2)
    draft.paint(houses, BUILT, "red_roof", uneven=0.15)
    draft.paint(houses & (unit(towns.plot, lane=2) < 0.4), BUILT, "grey_roof")
    draft.paint(inside & big, BUILT, "grey_roof", uneven=0.06)
    draft.paint(inside & big & (dice < 0.30), BUILT, "bright_roof")
    draft.paint(inside & big & (dice > 0.8), BUILT, "asphalt")
    draft.paint(inside & towns.street, BUILT, "asphalt", uneven=0.1)
    road = terrain.roads(draft.y, draft.x, salt=salt)
    draft.gain[road] = 1.0
    draft.paint(road, BUILT, "asphalt", uneven=0.1)


def _city(draft: _Draft) -> None:
    _paint_towns(draft, everywhere=True)
    _paint_forest(draft, terrain.woods(draft.y, draft.x, salt=draft.salt("parks")) > 0.74)
    stream, _ = terrain.river(draft.y, draft.x, salt=draft.salt("river"))
    draft.paint(stream, WATER, "river", uneven=0.05)


def _desert(draft: _Draft) -> None:
    draft.gain *= 0.75 + 0.5 * fractal(draft.y, draft.x + 3.0 * draft.y, wave_px=22.0, salt=draft.salt("dunes"))
    draft.paint(np.ones(draft.y.shape, np.bool_), BARE, "dune", uneven=0.04)
    draft.paint(draft.noise("rock", 45.0) > 0.62, BARE, "rock", uneven=0.3)


def _snow(draft: _Draft) -> None:
    draft.gain = 0.86 + 0.26 * fractal(draft.y, draft.x, wave_px=30.0, salt=draft.salt("drifts"))
    draft.paint(np.ones(draft.y.shape, np.bool_), BARE, "snow", uneven=0.03)
    draft.paint(terrain.woods(draft.y, draft.x, salt=draft.salt("woods")) > 0.5, FOREST, "snowy_wood", uneven=0.5)
    draft.paint(draft.noise("ice", 60.0) > 0.7, WATER, "ice", uneven=0.1)


def _sea(draft: _Draft) -> None:
    draft.gain = 0.7 + 0.6 * fractal(draft.y, draft.x, wave_px=40.0, salt=draft.salt("swell"))
    draft.paint(np.ones(draft.y.shape, np.bool_), WATER, "sea", uneven=0.3)
    shoal = draft.noise("shoal", 70.0)
    draft.paint(shoal > 0.62, WATER, "shoal", uneven=0.1)
    draft.paint(shoal > 0.86, BARE, "sand", uneven=0.1)


_LAYOUTS: dict[Biome, Callable[[_Draft], None]] = {
    "temperate": _temperate,
    "city": _city,
    "desert": _desert,
    "snow": _snow,
    "sea": _sea,
}
