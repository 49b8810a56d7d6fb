"""Small Stacks with known pixels for the tests of the encoder's room."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np

from pipeline.types import Box, Layer, Period, Stack

BANDS = {10: ("B02", "B03", "B04", "B08"), 20: ("B05", "B06", "B07", "B8A", "B11", "B12"), 60: ("B01", "B09")}


def periods(count: int) -> tuple[Period, ...]:
    start = datetime(2023, 11, 10, tzinfo=UTC)
    return tuple(
        Period(index=i, start=start + timedelta(days=30 * i), end=start + timedelta(days=30 * (i + 1)))
        for i in range(count)
    )


def world(box: Box, *, count: int, band: int, seed: int = 0) -> np.ndarray:
    """DN that belong to a ground pixel, whatever the box: (time, row, col) uint16 over a native box."""
    row, col = np.meshgrid(np.arange(box.row, box.row_stop), np.arange(box.col, box.col_stop), indexing="ij")
    time = np.arange(count)[:, None, None]
    mixed = (row * 7919 + col * 104729 + time * 611953 + band * 15485863 + seed) % 2003
    wave = 900 * np.sin(row / 7 + band) * np.cos(col / 9 - time)
    return (2500 + mixed + wave).astype(np.uint16)


def make_stack(box: Box, *, count: int = 1, holes: tuple[tuple[int, Box], ...] = ()) -> Stack:
    """A Stack over a 10 m box with margins; ``holes`` are (period, 10 m box) without data."""
    layers = []
    for res, names in BANDS.items():
        native = box.cover(res, pad_px=0 if res == 10 else 2)
        pixels = np.stack([world(native, count=count, band=i + res) for i in range(len(names))], axis=1)
        for period, hole in holes:
            cut = hole.cover(res).intersect(native)
            if cut is not None:
                pixels[(period, slice(None), *cut.slices_in(native))] = 0
        layers.append(Layer(res_m=res, bands=names, pixels=pixels, valid=(pixels > 0).any(axis=1), box=native))
    return Stack(
        sensor="sentinel2_l2a", box=box, layers=tuple(layers), periods=periods(count), sources=(), bytes_read=0
    )


def native_pixels(box: Box, *, holes: bool, peak: int = 12000) -> np.ndarray:
    """Random (row, col) DN of one band, with a gap, a missing corner and single missing pixels when asked."""
    rng = np.random.default_rng(box.res_m)
    pixels = rng.integers(1, peak, box.shape).astype(np.uint16)
    if holes:
        pixels[:, 11:13] = 0
        pixels[np.tril_indices(min(box.shape), -12)] = 0
        pixels[rng.random(box.shape) < 0.05] = 0
    return pixels


def inside(raster: Box, *, odd: int, margin_px: int) -> Box:
    """A 10 m box well inside a raster, off its phase by ``odd`` pixels."""
    factor = raster.res_m // 10
    return Box(
        zone=raster.zone,
        res_m=10,
        row=(raster.row + margin_px) * factor + odd,
        col=(raster.col + margin_px) * factor + 2 * odd,
        height=(raster.height - 2 * margin_px - 2) * factor,
        width=(raster.width - 2 * margin_px - 2) * factor - 3,
    )
