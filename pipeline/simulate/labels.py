"""Reference polygons cut from the truth: what a person would digitise, well inside single-class areas."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.simulate.landscape import CLASSES
from pipeline.simulate.noise import hashed, salt_of, unit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.types import Box

PER_CLASS = 14
MARGIN_PX = 2
"""Polygons keep this far from any other class."""
_SIDES_PX = (21, 17, 13, 11, 9, 7)
"""Sides of the single-class squares looked for, margin included, the large ones first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patch:
    """A square of one class: class code, first lattice row and column, side in pixels (margin included)."""

    code: int
    row: int
    col: int
    side_px: int


def choose_patches(truth: NDArray[np.uint8], *, box: Box, seed: int) -> tuple[Patch, ...]:
    """``PER_CLASS`` squares per class (fewer where the class is rare), spread over the area, never overlapping.

    Args:
        truth: (row, col) uint8 over ``box``.
        box: 10 m box.
        seed: Decides which of the possible squares are taken.
    """
    return tuple(patch for land in CLASSES for patch in _of_class(truth == land.code, land.code, box=box, seed=seed))


def feature_collection(patches: tuple[Patch, ...], *, box: Box, seed: int) -> dict[str, Any]:
    """GeoJSON (EPSG:4326) of one four-sided polygon per patch, ``MARGIN_PX`` away from the patch's border."""
    from rasterio.warp import transform  # noqa: PLC0415

    features = []
    for number, patch in enumerate(patches, start=1):
        x, y = _corners(patch, box=box, seed=seed)
        lons, lats = transform(f"EPSG:{box.epsg}", "EPSG:4326", x, y)
        ring = [[round(lon, 7), round(lat, 7)] for lon, lat in zip(lons, lats, strict=True)]
        features.append(
            {
                "type": "Feature",
                "id": number,
                "properties": {"polygon": number, "class": CLASSES[patch.code].name, "code": patch.code},
                "geometry": {"type": "Polygon", "coordinates": [[*ring, ring[0]]]},
            }
        )
    return {"type": "FeatureCollection", "features": features}


def _of_class(where: NDArray[np.bool_], code: int, *, box: Box, seed: int) -> list[Patch]:
    """Greedy choice in hashed order; the wanted distance shrinks until enough squares are found."""
    for apart_px in (64, 48, 36, 26, 18, 12):
        chosen: list[Patch] = []
        for side_px in _SIDES_PX:
            rows, cols = np.nonzero(_pure_squares(where, side_px))
            order = np.argsort(hashed(rows + box.row, cols + box.col, salt=salt_of(seed, box.zone, "labels", code)))
            for index in order:
                patch = Patch(
                    code=code, row=int(rows[index]) + box.row, col=int(cols[index]) + box.col, side_px=side_px
                )
                if all(_apart(patch, other) >= apart_px for other in chosen):
                    chosen.append(patch)
                if len(chosen) == PER_CLASS:
                    return chosen
    return chosen


def _pure_squares(where: NDArray[np.bool_], side_px: int) -> NDArray[np.bool_]:
    """Places of north-west corners of squares that lie wholly in ``where``; every third place is looked at."""
    sums = np.zeros((where.shape[0] + 1, where.shape[1] + 1), np.int32)
    sums[1:, 1:] = where.cumsum(axis=0, dtype=np.int32).cumsum(axis=1, dtype=np.int32)
    n = side_px
    full = sums[n:, n:] - sums[:-n, n:] - sums[n:, :-n] + sums[:-n, :-n] == n * n
    thin = np.zeros(full.shape, np.bool_)
    thin[::3, ::3] = full[::3, ::3]
    return thin


def _apart(one: Patch, other: Patch) -> float:
    """Distance of the middles, pixels (Chebyshev)."""
    half = (one.side_px - other.side_px) / 2.0
    return max(abs(one.row - other.row + half), abs(one.col - other.col + half))


def _corners(patch: Patch, *, box: Box, seed: int) -> tuple[list[float], list[float]]:
    """Corners x, y in metres, north-west first and counter-clockwise, each moved inwards by up to a fifth."""
    inner = patch.side_px - 2 * MARGIN_PX
    bits = hashed(np.full(8, patch.row), patch.col * 8 + np.arange(8), salt=salt_of(seed, "corners"))
    moved = 0.2 * inner * unit(bits)
    south, east = (0, inner, inner, 0), (0, 0, inner, inner)
    rows = [patch.row + MARGIN_PX + s + (m if s == 0 else -m) for s, m in zip(south, moved[:4], strict=True)]
    cols = [patch.col + MARGIN_PX + e + (m if e == 0 else -m) for e, m in zip(east, moved[4:], strict=True)]
    return [float(c) * box.res_m for c in cols], [-float(r) * box.res_m for r in rows]
