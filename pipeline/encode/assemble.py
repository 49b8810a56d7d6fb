"""Stacks at native resolutions to normalised 10 m pixels, one strip of windows at a time.

Upsampling is bilinear and equals GDAL's warper with nodata 0: every band is weighted by its own validity, the result is
rounded to a whole DN, and a pixel is missing where its nearest native pixel is. Taps follow from the phase of the
GLOBAL lattice, and the weights are whole numbers, so all sums are exact in float32: a pixel's value cannot depend on
the tile. ``resampling: pretrain`` makes what pretraining stored and fed instead: 60 m bilinear to the 40 m lattice,
then that, and 20 m, repeated. Only then the offset of the encoding is removed and the value normalised; a missing value
is 0 after that, or, for v1, taken from the band nearest in wavelength before. Native pixels go to the device once per
tile, as they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
import torch

from pipeline.encode.bands import scale_offset, substitutes
from pipeline.errors import InvalidInputError
from pipeline.types import DN_OFFSET, PIXEL_M, Box, Layer, Stack

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

CPU = torch.device("cpu")
RESAMPLINGS = ("bilinear", "pretrain")
PRETRAIN_STEP_M = 40
"""60 m bands were stored at this resolution: olmoearth_pretrain ``config_*.json`` (band sets at 10, 20 and
40 m, bilinear), repeated to 10 m by ``dataset/sample.py``. Its lattice begins at UTM (0, 0), as ours does; the southern
zones' false northing is a multiple of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """What an encoder wants of one sensor.

    Attributes:
        sensor: Its name.
        bands: Band order of the model.
        substitute: Whether a missing band takes the value of its neighbour in wavelength (v1).
        resampling: How coarse layers reach 10 m, see ``upsampled``.
    """

    sensor: str
    bands: tuple[str, ...]
    substitute: bool = False
    resampling: str = "bilinear"

    def __post_init__(self) -> None:
        if self.resampling not in RESAMPLINGS:
            raise InvalidInputError(f"Input.resampling is {self.resampling!r}, must be one of {RESAMPLINGS}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Strip:
    """Normalised pixels under one row of windows.

    Attributes:
        box: The 10 m box, as high as a window.
        pixels: One (time, band, row, col) float32 per sensor, on the device, 0 where missing.
        valid: (sensor, time, row, col) bool: the nearest native pixel has data. On the host, so that deciding which
            windows are full never waits for the device.
        origins: (index, row, col): position in the caller's list and north-west lattice pixel of each window.
    """

    box: Box
    pixels: tuple[torch.Tensor, ...]
    valid: NDArray[np.bool_]
    origins: tuple[tuple[int, int, int], ...]


class Resident:
    """The native pixels of Stacks on a device, uploaded once per tile and cut into windows there.

    On a CPU they stay where they are. On a GPU they travel as they were read (uint16: 2.2 times fewer bytes than 10 m
    pixels, 4 times fewer than float32, and never once per overlapping window), from pinned memory; ``stage`` sends them
    on a stream of their own while the tile before is still in work. The CUDA path was not run for lack of a GPU.
    """

    def __init__(self, stacks: tuple[Stack, ...], device: torch.device = CPU) -> None:
        """Keep one Stack per sensor for a device; nothing is copied yet."""
        self.stacks, self.device = stacks, device
        self._held: dict[int, torch.Tensor] = {}
        self._ready: torch.cuda.Event | None = None

    def stage(self, stream: torch.cuda.Stream) -> None:
        """Begin to upload everything on a stream, without waiting and beside whatever the device is doing."""
        with torch.cuda.stream(stream):
            for stack in self.stacks:
                for layer in stack.layers:
                    self.native(layer)
            self._ready = stream.record_event()

    def native(self, layer: Layer) -> torch.Tensor:
        """(time, band, row, col) int16 (bits of uint16) or float32 of a layer, on the device."""
        if self._ready is not None:
            torch.cuda.current_stream(self.device).wait_event(self._ready)
        key = id(layer)
        if key not in self._held:
            pixels = layer.pixels
            host = torch.from_numpy(pixels.view(np.int16) if pixels.dtype == np.uint16 else pixels)
            if self.device.type != "cpu":
                host = host.pin_memory().to(self.device, non_blocking=True)
            self._held[key] = host
        return self._held[key]


def strips(
    resident: Resident, origins: Sequence[tuple[int, int]], *, window_px: int, inputs: tuple[Input, ...]
) -> Iterator[Strip]:
    """Yield the pixels of every row of windows; memory stays bounded by one strip.

    Args:
        resident: One tile with halo, one Stack per input; must hold every window.
        origins: Lattice (row, col) of each window's north-west 10 m pixel.
        window_px: Side of a window.
        inputs: What the model wants; a band that a Stack lacks is missing everywhere.

    Raises:
        InvalidInputError: A window lies outside a Stack or its layers.
    """
    numbered = sorted((row, col, i) for i, (row, col) in enumerate(origins))
    zone = resident.stacks[0].box.zone
    for row, group in groupby(numbered, key=lambda entry: entry[0]):
        members = tuple((i, row, col) for _, col, i in group)
        west, east = members[0][2], members[-1][2] + window_px
        box = Box(zone=zone, res_m=PIXEL_M, row=row, col=west, height=window_px, width=east - west)
        pairs = tuple(zip(resident.stacks, inputs, strict=True))
        yield Strip(
            box=box,
            pixels=tuple(normalised(stack, box, wanted=wanted, resident=resident) for stack, wanted in pairs),
            valid=np.stack([observed_per_period(stack, box) for stack, _ in pairs]),
            origins=members,
        )


def window_pixels(
    strip: Strip, origin: tuple[int, int], *, window_px: int, patch_px: int
) -> tuple[tuple[torch.Tensor, ...], NDArray[np.bool_]]:
    """Cut one window out of its strip.

    Returns:
        (pixels of each sensor (time, band, row, col) float32 (views), valid (sensor, time, token_row, token_col) bool:
        tokens with at least one valid pixel in that period, which are the ones in attention).
    """
    box = Box(zone=strip.box.zone, res_m=PIXEL_M, row=origin[0], col=origin[1], height=window_px, width=window_px)
    rows, cols = box.slices_in(strip.box)
    side = window_px // patch_px
    sensors, periods = strip.valid.shape[:2]
    patches = strip.valid[:, :, rows, cols].reshape(sensors, periods, side, patch_px, side, patch_px)
    return tuple(part[:, :, rows, cols] for part in strip.pixels), np.asarray(patches.any(axis=(3, 5)))


def normalised(stack: Stack, box: Box, *, wanted: Input, resident: Resident | None = None) -> torch.Tensor:
    """(time, band, row, col) float32 normalised values over a 10 m box; 0 where missing.

    Args:
        stack: Pixels of ``wanted.sensor``.
        box: 10 m box to fill.
        wanted: Band order and rule for missing bands.
        resident: The stack's pixels on a device; None: on the CPU.

    Raises:
        InvalidInputError: Another sensor, or a layer does not cover the box with the margin that interpolation needs.
    """
    if stack.sensor != wanted.sensor:
        raise InvalidInputError(f"the stack holds {stack.sensor}, the encoder wants {wanted.sensor} here")
    place = resident or Resident((stack,))
    out = torch.zeros((len(stack.periods), len(wanted.bands), *box.shape), dtype=torch.float32, device=place.device)
    scale, offset = _constants(wanted, device=place.device)
    for t in range(len(stack.periods)):  # one period at a time keeps the temporaries in cache
        if wanted.substitute:
            raw, have = torch.zeros_like(out[t]), torch.zeros(out[t].shape, dtype=torch.bool, device=place.device)
            for source, target, value in _raw(stack, box, period=t, wanted=wanted, place=place):
                raw[target], have[target] = value[source], _have(value[source], wanted.sensor)
            raw, have = substituted(raw, have, wanted)
            out[t] = torch.where(have, _scaled(raw, wanted.sensor, scale, offset), 0.0)
            continue
        for source, target, value in _raw(stack, box, period=t, wanted=wanted, place=place):
            dn = value[source]
            scaled = _scaled(dn, wanted.sensor, scale[target], offset[target])
            out[t, target] = torch.where(_have(dn, wanted.sensor), scaled, 0.0)
    return out


def _raw(
    stack: Stack, box: Box, *, period: int, wanted: Input, place: Resident
) -> Iterator[tuple[list[int], list[int], torch.Tensor]]:
    """(bands of the layer, bands of the model, values (band, row, col)) of every layer that has a wanted band."""
    for layer in stack.layers:
        known = [(i, wanted.bands.index(name)) for i, name in enumerate(layer.bands) if name in wanted.bands]
        if known:
            source, target = ([pair[k] for pair in known] for k in (0, 1))
            value = upsampled(layer, box, period=period, resident=place, resampling=wanted.resampling)
            yield source, target, value


def _have(value: torch.Tensor, sensor: str) -> torch.Tensor:
    """Where there is data: DN are positive; decibels, which may be 0, are not NaN."""
    return ~value.isnan() if sensor == "sentinel1" else value != 0


def _scaled(value: torch.Tensor, sensor: str, scale: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    """Normalise; Sentinel-2 DN lose the offset of their encoding first and stay at least 1 (0 is nodata)."""
    raw = (value - DN_OFFSET).clamp_(min=1) if sensor == "sentinel2_l2a" else value
    return (raw * scale).add_(offset)  # two roundings, never a fused one


def substituted(raw: torch.Tensor, have: torch.Tensor, wanted: Input) -> tuple[torch.Tensor, torch.Tensor]:
    """Fill every missing value from the present band nearest in wavelength, as v1 was evaluated.

    Args:
        raw: (band, row, col) values before normalising.
        have: (band, row, col) bool: present.
        wanted: The sensor and its band order.

    Returns:
        (raw, have) with what could be filled.
    """
    if bool(have.all()):
        return raw, have
    filled, found = raw.clone(), have.clone()
    for target, name in enumerate(wanted.bands):
        for other in substitutes(wanted.sensor, name):
            source = wanted.bands.index(other)
            take = ~found[target] & have[source]
            filled[target] = torch.where(take, raw[source], filled[target])
            found[target] |= take
    return filled, found


def upsampled(
    layer: Layer, box: Box, *, period: int, resident: Resident | None = None, resampling: str = "bilinear"
) -> torch.Tensor:
    """Values of one period of a layer on the 10 m lattice, still in the Stack's encoding. A 10 m layer passes.

    ``bilinear``: between the centres of valid native pixels, rounded half up to a whole number; 0 (missing) where the
    nearest native pixel is 0. Equals GDAL's bilinear warper (20 m exactly; 60 m within 1 DN).
    ``pretrain``: every native pixel repeated, as the nearest one; 60 m first becomes 40 m by the rule above (a 40 m
    pixel between two 60 m pixels counts the one further south or east as its nearest, as GDAL does).

    Args:
        layer: Native pixels.
        box: 10 m box to fill.
        period: Index of the period.
        resident: The layer's pixels on a device; None: on the CPU.
        resampling: ``bilinear`` or ``pretrain``.

    Returns:
        (band, row, col) float32 holding whole numbers (float layers: as they are, NaN where missing).

    Raises:
        InvalidInputError: The layer does not cover the box and its taps, or holds floats at another resolution.
    """
    place = resident or Resident(())
    if layer.pixels.dtype != np.uint16 and layer.res_m != PIXEL_M:
        raise InvalidInputError(f"a layer of floats has {layer.res_m} m pixels: it must be read at {PIXEL_M} m")
    step = PIXEL_M  # the resolution up to which pixels are interpolated; from there they are repeated
    if resampling == "pretrain":
        step = min(layer.res_m, PRETRAIN_STEP_M)
    values = _resampled(layer, box.cover(step), period=period, place=place)
    if step == PIXEL_M:
        return values
    rows, cols = (
        torch.from_numpy(np.arange(first, stop) * PIXEL_M // step - first * PIXEL_M // step).to(place.device)
        for first, stop in ((box.row, box.row_stop), (box.col, box.col_stop))
    )
    return values.index_select(1, rows).index_select(2, cols)


def _resampled(layer: Layer, box: Box, *, period: int, place: Resident) -> torch.Tensor:
    """(band, row, col) float32 of a period over a box of any resolution that is not coarser than the layer's."""
    lattice = layer.res_m, box.res_m
    rows = _taps(box.row, box.height, lattice, first=layer.box.row, size=layer.box.height, what=f"{box} rows")
    cols = _taps(box.col, box.width, lattice, first=layer.box.col, size=layer.box.width, what=f"{box} columns")
    cut = np.s_[period, :, rows.start : rows.stop, cols.start : cols.stop]
    native = place.native(layer)[cut]
    if layer.pixels.dtype != np.uint16:
        return native
    # int16 holds the bits of uint16: torch computes with few unsigned types
    native = native.to(torch.int32).bitwise_and_(0xFFFF).to(torch.float32)
    if layer.res_m == box.res_m:
        return native
    row, col = rows.to(place.device), cols.to(place.device)
    # at most 144 * 65535 < 2**24: every sum of products is exact in float32, whatever the order
    total = _interpolate(native, row, col)
    weight: torch.Tensor | float = float(rows.total * cols.total)
    have = native > 0
    if not layer.pixels[cut].all():
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

    def to(self, device: torch.device) -> _Axis:
        """The same on a device."""
        if device.type == "cpu":
            return self
        moved = {name: getattr(self, name).to(device) for name in _TENSORS}
        return _Axis(start=self.start, stop=self.stop, total=self.total, **moved)


_TENSORS = ("near", "far", "near_weight", "far_weight", "nearest")


def _taps(origin: int, count: int, lattice: tuple[int, int], *, first: int, size: int, what: str) -> _Axis:
    """Taps of the lattice pixels ``origin`` .. ``origin + count`` in a native axis of ``size`` from ``first``.

    ``lattice`` is (native, target) resolution, as 60 m and 10 m or 40 m. Pixel g has its centre at native coordinate
    (g + 0.5) * target / native - 0.5. In units of 1 / unit everything is a whole number, and weights add up to unit.
    """
    common = math.gcd(*lattice)
    native, target = lattice[0] // common, lattice[1] // common
    unit = 2 * native
    centre = (2 * np.arange(origin, origin + count) + 1) * target - native
    near = centre // unit
    far_weight = centre - near * unit
    nearest = (centre + native) // unit
    far = near + 1 if native != target else near
    if near[0] < first or far[-1] >= first + size:
        raise InvalidInputError(
            f"{what} need native pixels {near[0]}..{far[-1]}, the {lattice[0]} m layer has "
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


def _constants(wanted: Input, *, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and offset of the wanted bands, each (band, 1, 1) float32."""
    values = [scale_offset(name, sensor=wanted.sensor) for name in wanted.bands]
    table = torch.tensor(values, dtype=torch.float32, device=device).reshape(-1, 2)
    return table[:, 0, None, None], table[:, 1, None, None]
