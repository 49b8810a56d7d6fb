"""A Stack at native resolutions to normalised 10 m pixels, one strip of windows at a time.

Upsampling is bilinear and equals GDAL's warper with nodata 0: every band is weighted by its own validity, the result is
rounded to a whole DN, and a pixel is missing where its nearest native pixel is. Taps follow from the phase of the
GLOBAL lattice, and the weights are whole numbers, so all sums are exact in float32: a pixel's value cannot depend on
the tile. Only then the offset of the encoding is removed and the value normalised; a missing value is 0 after that.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
import torch

from pipeline.encode.bands import scale_offset
from pipeline.errors import InvalidInputError
from pipeline.types import DN_OFFSET, PIXEL_M, Box, Layer, Stack

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Strip:
    """Normalised pixels under one row of windows.

    Attributes:
        box: The 10 m box, as high as a window.
        pixels: (time, band, row, col) float32 on the device, 0 where missing.
        valid: (time, row, col) bool: some band's nearest native pixel has data. On the host, so that deciding which
            windows are full never waits for the device.
        origins: (index, row, col): position in the caller's list and north-west lattice pixel of each window.
    """

    box: Box
    pixels: torch.Tensor
    valid: NDArray[np.bool_]
    origins: tuple[tuple[int, int, int], ...]


def strips(
    stack: Stack,
    origins: Sequence[tuple[int, int]],
    *,
    window_px: int,
    bands: tuple[str, ...],
    device: torch.device | None = None,
) -> Iterator[Strip]:
    """Yield the pixels of every row of windows; memory stays bounded by one strip.

    Args:
        stack: One tile with halo; must hold every window.
        origins: Lattice (row, col) of each window's north-west 10 m pixel.
        window_px: Side of a window.
        bands: Band order of the model; a band that the stack lacks is 0.
        device: Where the pixels are made; None: CPU.

    Raises:
        InvalidInputError: A window lies outside the stack or its layers.
    """
    numbered = sorted((row, col, i) for i, (row, col) in enumerate(origins))
    for row, group in groupby(numbered, key=lambda entry: entry[0]):
        members = tuple((i, row, col) for _, col, i in group)
        west, east = members[0][2], members[-1][2] + window_px
        box = Box(zone=stack.box.zone, res_m=PIXEL_M, row=row, col=west, height=window_px, width=east - west)
        yield Strip(
            box=box,
            pixels=normalised(stack, box, bands=bands, device=device),
            valid=observed_per_period(stack, box),
            origins=members,
        )


def window_pixels(
    strip: Strip, origin: tuple[int, int], *, window_px: int, patch_px: int
) -> tuple[torch.Tensor, NDArray[np.bool_]]:
    """Cut one window out of its strip.

    Returns:
        (pixels (time, band, row, col) float32 (a view), valid (time, token_row, token_col) bool: tokens with at least
        one valid pixel in that period, which are the ones in attention).
    """
    box = Box(zone=strip.box.zone, res_m=PIXEL_M, row=origin[0], col=origin[1], height=window_px, width=window_px)
    rows, cols = box.slices_in(strip.box)
    side = window_px // patch_px
    patches = strip.valid[:, rows, cols].reshape(-1, side, patch_px, side, patch_px)
    return strip.pixels[:, :, rows, cols], np.asarray(patches.any(axis=(2, 4)))


def normalised(stack: Stack, box: Box, *, bands: tuple[str, ...], device: torch.device | None = None) -> torch.Tensor:
    """(time, band, row, col) float32 normalised values over a 10 m box; 0 where missing.

    Raises:
        InvalidInputError: A layer does not cover the box with the margin that interpolation needs.
    """
    out = torch.zeros((len(stack.periods), len(bands), *box.shape), dtype=torch.float32, device=device)
    for layer in stack.layers:
        known = [(i, bands.index(name)) for i, name in enumerate(layer.bands) if name in bands]
        source, target = ([pair[k] for pair in known] for k in (0, 1))
        scale, offset = _constants([bands[i] for i in target], device=device)
        for t in range(len(stack.periods)):  # one period at a time keeps the temporaries in cache
            dn = upsampled(layer, box, period=t, device=device)[source]
            value = (dn - DN_OFFSET).clamp_(min=1).mul_(scale).add_(offset)  # two roundings, never a fused one
            out[t, target] = torch.where(dn > 0, value, 0.0)
    return out


def upsampled(layer: Layer, box: Box, *, period: int, device: torch.device | None = None) -> torch.Tensor:
    """DN of one period of a layer on the 10 m lattice, still in the Stack's encoding.

    Bilinear between the centres of valid native pixels, rounded half up to a whole number; 0 (missing) where the
    nearest native pixel is 0. Equals GDAL's bilinear warper (20 m exactly; 60 m within 1 DN).

    Args:
        layer: Native pixels.
        box: 10 m box to fill.
        period: Index of the period.
        device: Where to compute; None: CPU.

    Returns:
        (band, row, col) float32 holding whole numbers.

    Raises:
        InvalidInputError: The layer does not cover the box and its taps.
    """
    factor = layer.res_m // PIXEL_M
    rows = _taps(box.row, box.height, factor=factor, first=layer.box.row, size=layer.box.height, what=f"{box} rows")
    cols = _taps(box.col, box.width, factor=factor, first=layer.box.col, size=layer.box.width, what=f"{box} columns")
    cut = np.s_[period, :, rows.start : rows.stop, cols.start : cols.stop]
    source = layer.pixels[cut]
    native = torch.from_numpy(source.astype(np.float32)).to(device, non_blocking=True)
    if factor == 1:
        return native
    row, col = rows.to(device), cols.to(device)
    # at most 144 * 65535 < 2**24: every sum of products is exact in float32, whatever the order
    total = _interpolate(native, row, col)
    weight: torch.Tensor | float = float(rows.total * cols.total)
    have = native > 0
    if not source.all():
        weight = _interpolate(have.to(torch.float32), row, col).clamp_(min=1)
    dn = (total / weight).add_(0.5).floor_()
    nearest = have[:, row.nearest][:, :, col.nearest]
    return torch.where(nearest, dn, 0.0)


def observed(stack: Stack, box: Box) -> NDArray[np.uint8]:
    """Number of periods with a valid observation: (row, col) uint8 over a 10 m box.

    A pixel is observed in a period when its nearest pixel of the finest layer that the stack has holds data. Coarser
    bands reach further at the edge of a swath; a pixel that only they cover is not observed.

    Raises:
        InvalidInputError: A layer does not cover the box.
    """
    return np.asarray(observed_per_period(stack, box).sum(axis=0), np.uint8)


def observed_per_period(stack: Stack, box: Box) -> NDArray[np.bool_]:
    """(time, row, col) bool over a 10 m box: as ``observed``, by period.

    Raises:
        InvalidInputError: A layer does not cover the box.
    """
    layer = min(stack.layers, key=lambda found: found.res_m)
    native = box.cover(layer.res_m)
    if native.intersect(layer.box) != native:
        raise InvalidInputError(f"layer {layer.res_m} m covers {layer.box}, {box} needs {native}")
    factor = layer.res_m // PIXEL_M
    rows = np.arange(box.row, box.row_stop) // factor - layer.box.row
    cols = np.arange(box.col, box.col_stop) // factor - layer.box.col
    return layer.valid[:, rows[:, None], cols[None, :]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Axis:
    """Two taps of every 10 m pixel along one axis; indices count from ``start``."""

    start: int
    stop: int
    total: int
    near: torch.Tensor
    far: torch.Tensor
    near_weight: torch.Tensor
    far_weight: torch.Tensor
    nearest: torch.Tensor

    def to(self, device: torch.device | None) -> _Axis:
        """The same on a device."""
        if device is None or device.type == "cpu":
            return self
        moved = {name: getattr(self, name).to(device) for name in _TENSORS}
        return _Axis(start=self.start, stop=self.stop, total=self.total, **moved)


_TENSORS = ("near", "far", "near_weight", "far_weight", "nearest")


def _taps(origin: int, count: int, *, factor: int, first: int, size: int, what: str) -> _Axis:
    """Taps of the lattice pixels ``origin`` .. ``origin + count`` in a native axis of ``size`` from ``first``.

    Pixel g has its centre at native coordinate (g + 0.5) / factor - 0.5. In units of 1 / (2 * factor) everything is a
    whole number: centre = 2 g + 1 - factor, weights add up to 2 * factor.
    """
    unit = 2 * factor
    centre = 2 * np.arange(origin, origin + count) + 1 - factor
    near = centre // unit
    far_weight = centre - near * unit
    nearest = np.arange(origin, origin + count) // factor
    far = near + 1 if factor > 1 else near
    if near[0] < first or far[-1] >= first + size:
        raise InvalidInputError(
            f"{what} need native pixels {near[0]}..{far[-1]}, the {factor * PIXEL_M} m layer has "
            f"{first}..{first + size - 1}: read it with a margin for interpolation"
        )
    start, stop = int(near[0]), int(far[-1]) + 1
    return _Axis(
        start=start - first,
        stop=stop - first,
        total=unit,
        near=torch.from_numpy(near - start),
        far=torch.from_numpy(far - start),
        near_weight=torch.from_numpy((unit - far_weight).astype(np.float32)),
        far_weight=torch.from_numpy(far_weight.astype(np.float32)),
        nearest=torch.from_numpy(nearest - start),
    )


def _interpolate(values: torch.Tensor, row: _Axis, col: _Axis) -> torch.Tensor:
    """Weighted sums (not means): (band, row, col) native to (band, row, col) 10 m."""
    near, far = values.index_select(1, row.near), values.index_select(1, row.far)
    tall = near.mul_(row.near_weight[:, None]).add_(far.mul_(row.far_weight[:, None]))
    near, far = tall.index_select(2, col.near), tall.index_select(2, col.far)
    return near.mul_(col.near_weight).add_(far.mul_(col.far_weight))


def _constants(bands: list[str], *, device: torch.device | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and offset of bands, each (band, 1, 1) float32."""
    table = torch.tensor([scale_offset(name) for name in bands], dtype=torch.float32, device=device).reshape(-1, 2)
    return table[:, 0, None, None], table[:, 1, None, None]
