"""True colours of a Stack at 80 m: what a person would have seen, for pictures beside the embeddings.

The stretch is fixed, never a tile's or a date's own, so that no border shows and years can be compared. Sums are of
whole numbers over squares of the zone's lattice: a colour does not depend on the tile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.types import COLOUR_TOP, DN_OFFSET

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pipeline.types import Box, Stack

BANDS: dict[str, tuple[tuple[str, str, str], float, float]] = {
    "sentinel2_l2a": (("B04", "B03", "B02"), 1e-4, -DN_OFFSET * 1e-4),
    "landsat": (("B4", "B3", "B2"), 2e-5, -0.1),
}
"""Sensor -> its red, green and blue, and reflectance = DN * gain + offset. Sentinel-2: the encoding of ``DN_OFFSET``.
Landsat Collection 2 Level-1: REFLECTANCE_MULT_BAND and REFLECTANCE_ADD_BAND of every OLI product (USGS, Landsat 8-9
Collection 2 Level 1 Data Format Control Book), at the top of the atmosphere, without the sun's elevation."""


def colour_stack(stacks: Sequence[Stack]) -> Stack | None:
    """The Stack whose colours are shown: Sentinel-2 before Landsat; None where neither has all three bands."""
    found = {stack.sensor: stack for stack in stacks}
    for sensor, (bands, _, _) in BANDS.items():
        stack = found.get(sensor)
        if stack is not None and set(bands) <= {band for layer in stack.layers for band in layer.bands}:
            return stack
    return None


def true_colours(stack: Stack, box: Box) -> NDArray[np.uint8]:
    """Colours of every period of a box.

    A square of 80 m has a colour where any of its pixels has all three bands; the mean is over those pixels.

    Args:
        stack: From ``colour_stack``.
        box: Lattice box of ``COLOUR_M`` inside the Stack.

    Returns:
        (period, channel, row, col) uint8 in the order red, green, blue: 1..255 for reflectance 0..``COLOUR_TOP``,
        0 is nodata.

    Raises:
        InvalidInputError: The box does not lie inside the Stack's layers.
    """
    bands, gain, offset = BANDS[stack.sensor]
    planes = [_native(stack, band, box) for band in bands]
    least = np.minimum(np.minimum(planes[0], planes[1]), planes[2])
    whole = bool(least.all())
    seen = least != 0
    count = (least.shape[1] // box.height) ** 2 if whole else _sums(seen, box)
    out = np.zeros((len(least), 3, *box.shape), np.uint8)
    for channel, plane in enumerate(planes):
        mean = _sums(plane if whole else plane * seen, box) / np.maximum(count, 1)
        share = np.clip((mean * gain + offset) / COLOUR_TOP, 0, 1)
        out[:, channel] = np.rint(1 + 254 * share) * (count > 0)
    return out


def _native(stack: Stack, band: str, box: Box) -> NDArray[np.uint16]:
    """(period, row, col) DN of a band under a box, at the band's own resolution."""
    layer = next(layer for layer in stack.layers if band in layer.bands)
    rows, cols = box.cover(layer.res_m).slices_in(layer.box)
    return np.asarray(layer.pixels[:, layer.bands.index(band), rows, cols])


def _sums(plane: NDArray[np.uint16] | NDArray[np.bool_], box: Box) -> NDArray[np.uint32]:
    """(period, row, col) sums over the squares of a box; whole rows first, which is 2.5 times as fast as one sum."""
    side = plane.shape[1] // box.height
    rows = plane.reshape(len(plane), box.height, side, box.width * side)
    added = rows[:, :, 0].astype(np.uint32)
    for k in range(1, side):
        added += rows[:, :, k]
    cols = added.reshape(len(plane), box.height, box.width, side)
    out = cols[..., 0].copy()
    for k in range(1, side):
        out += cols[..., k]
    return out
