"""What a tile will need, before anything is spent: work, bytes, memory, seconds, money.

Pure arithmetic on shapes. Every figure has a measured twin in ``Usage`` and the report prints the ratio, so a constant
here that does not fit a machine shows at once. Unknown prices give None; an unknown speed gives 0 device seconds.
The work itself is counted in ``pipeline.plan.flops``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from pipeline.plan.flops import S2, flops_per_window, tokens_per_window
from pipeline.types import BLOCK_PX, CELL_PX, PIXEL_M, Box, Candidates, Cell, Estimate, GridSpec, ModelCard, Numerics

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pipeline.types import Calibration

__all__ = [
    "RATES",
    "DeviceRate",
    "Feed",
    "Price",
    "Rate",
    "device_rate",
    "estimate_tile",
    "flops_per_window",
    "rate_for",
    "tokens_per_window",
    "total",
]

# --- speed and price --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRate:
    """Sustained speed of one device (on a CPU: one core) for this family of encoders.

    Attributes:
        match: Part of the device's product name, lower case; "" fits every device of the kind.
        device: ``cpu`` or ``cuda``.
        dtype: ``float32`` or ``bfloat16``.
        dims: Width of a token of the model it was taken with.
        gflops: 1e9 floating point operations per second, attention counted.
        source: Where the number is from.
    """

    match: str
    device: str
    dtype: str
    dims: int
    gflops: float
    source: str


_CPU = "measured 2026-11-20, one core of an AMD Zen 5 (avx512_bf16), 12 periods, 64 px windows, patch 4"
_H100 = "ThroughputBench, H100 NVL, OlmoEarth v1, 128 px windows, patch 8, one period; attention added to its count"


def _cuda_rates(match: str, share: float, how: str) -> tuple[DeviceRate, ...]:
    """The H100 NVL rows scaled by the ratio of dense bfloat16 peaks; fp32 rows by the same ratio."""
    rows = (
        ("bfloat16", 128, 72e3),
        ("bfloat16", 192, 149e3),
        ("bfloat16", 768, 280e3),
        ("bfloat16", 1024, 316e3),
        ("float32", 128, 13.9e3),
        ("float32", 192, 37.6e3),
        ("float32", 768, 91.8e3),
        ("float32", 1024, 107e3),
    )
    return tuple(
        DeviceRate(match=match, device="cuda", dtype=dtype, dims=dims, gflops=gflops * share, source=f"{_H100}; {how}")
        for dtype, dims, gflops in rows
    )


RATES: tuple[DeviceRate, ...] = (
    *(
        DeviceRate(match="", device="cpu", dtype=dtype, dims=dims, gflops=gflops, source=_CPU)
        for dtype, dims, gflops in (
            ("float32", 128, 59.0),
            ("float32", 192, 80.0),
            ("float32", 768, 96.0),
            ("bfloat16", 128, 54.4),
            ("bfloat16", 192, 100.2),
            ("bfloat16", 768, 156.6),
        )
    ),
    *_cuda_rates("h200", 989 / 835, "scaled by bf16 peak 989/835"),
    *_cuda_rates("h100 nvl", 1.0, "as measured"),
    *_cuda_rates("h100", 989 / 835, "scaled by bf16 peak 989/835 (SXM)"),
    *_cuda_rates("a100", 312 / 835, "scaled by bf16 peak 312/835"),
    *_cuda_rates("l40s", 362 / 835, "scaled by bf16 peak 362/835"),
    *_cuda_rates("l4", 121 / 835, "scaled by bf16 peak 121/835"),
    *_cuda_rates("a10g", 70 / 835, "scaled by bf16 peak 70/835"),
    *(
        DeviceRate(
            match="t4", device="cuda", dtype="float32", dims=d, gflops=g, source="assumed: 20-50 % of 8.1 TFLOP/s"
        )
        for d, g in ((128, 1.6e3), (192, 2.4e3), (768, 4.0e3))
    ),
)
"""First fit wins, so longer names come first. CUDA rows other than the H100 NVL are derived, not measured."""


def device_rate(numerics: Numerics, dims: int) -> DeviceRate | None:
    """The row for a device, dtype and the nearest token width; None for an unknown device.

    The width of a token, not of the vector that is written: v1.3 writes 128 numbers and works 768 wide.
    """
    name = numerics.device_name.lower()
    kind = [r for r in RATES if r.device == numerics.device and r.dtype == numerics.dtype and r.match in name]
    fit = [r for r in kind if r.match == kind[0].match] if kind else []
    return min(fit, key=lambda r: abs(math.log(r.dims / dims)), default=None)


class Price(Protocol):
    """A row of the price table, as far as an estimate needs it."""

    @property
    def usd_per_hour(self) -> float:
        """Price of the machine."""

    @property
    def gpus(self) -> int:
        """GPUs of the machine."""

    @property
    def cores(self) -> int:
        """CPU cores of the machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Feed:
    """What decides how much of a sensor is read.

    Attributes:
        sensor: Its name.
        composite: How a period becomes one image.
        resampling: How coarse bands reach 10 m.
    """

    sensor: str = S2
    composite: str = "scl_first_valid"
    resampling: str = "bilinear"


@dataclass(frozen=True, slots=True, kw_only=True)
class Vector:
    """What the store holds of one pixel.

    Attributes:
        bands: Numbers.
        dtype: numpy name of their dtype.
        stepped: Whether every pixel has the value of its own code step.
    """

    bands: int
    dtype: str = "int8"
    stepped: bool = False

    @classmethod
    def of(cls, calibration: Calibration) -> Vector:
        """Of a store of this calibration."""
        return cls(bands=calibration.bands, dtype=calibration.dtype, stepped=calibration.method == "per_pixel")

    @property
    def nbytes(self) -> int:
        """Bytes before compression."""
        return self.bands * np.dtype(self.dtype).itemsize + (STEP_BYTES if self.stepped else 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """Speed and price of the machine that will run.

    Attributes:
        numerics: Device and dtype.
        flops_per_s: Measured speed of one device (CPU: one core); None: taken from ``RATES``.
        usd_per_hour: Price of the machine; None when unknown.
        devices: Devices (CPU: cores) of that machine that work at once.
        encoders: Encoder threads or processes, for the memory model.
        encoder_bytes: Private memory of one encoder process; 0: they are threads of this one.
    """

    numerics: Numerics
    flops_per_s: float | None = None
    usd_per_hour: float | None = None
    devices: int = 1
    encoders: int = 1
    encoder_bytes: int = 0

    def speed(self, dims: int) -> float | None:
        """Floating point operations per second of one device for tokens of width ``dims``, None when unknown."""
        if self.flops_per_s is not None:
            return self.flops_per_s
        row = device_rate(self.numerics, dims)
        return row.gflops * 1e9 if row else None


def rate_for(numerics: Numerics, *, price: Price | None = None, encoders: int = 1) -> Rate:
    """The Rate of a machine: speed from ``RATES``, price from a price row (None: USD unknown)."""
    if price is None:
        return Rate(numerics=numerics, encoders=encoders)
    devices = price.gpus if numerics.device == "cuda" else price.cores
    return Rate(
        numerics=numerics, usd_per_hour=price.usd_per_hour if devices else None, devices=devices or 1, encoders=encoders
    )


# --- bytes and memory -------------------------------------------------------------------------------------------------

_S2 = ((10, 4, 0, 2), (20, 6, 2, 2), (60, 2, 2, 2))
NATIVE = {
    ("sentinel2_l2a", "bilinear"): _S2,
    ("sentinel2_l2a", "pretrain"): _S2,
    ("sentinel1", "bilinear"): ((10, 2, 0, 4),),
    ("sentinel1", "pretrain"): ((10, 2, 0, 4),),
    ("landsat", "bilinear"): ((10, 11, 0, 2),),
    ("landsat", "pretrain"): ((10, 1, 0, 2), (20, 10, 0, 2)),
}
"""(resolution in metres, bands, pixels of margin, bytes of a value) of what a Stack holds, by sensor and resampling."""
RANK_RES_M = 80
"""Resolution of the classification that ranks a cell's scenes: the second overview of a 20 m file."""
CLASS_RES_M = 20
RANKED = ("scl_first_valid", "scl_best_clear", "first_clear", "omnicloudmask")
"""Composites that look at every candidate's classification over the whole cell."""
MASKED = ("first_clear", "median")
"""Composites that read the classification of what they use at full resolution."""
STORE_RATIO = {"int8": 1.7, "float16": 1.6, "float32": 1.35}
"""Raw bytes per stored byte of vectors at 10 m, by dtype (Blosc zstd 1 with bitshuffle, interpolated from patch 4).
``linear``; codes of the other int8 quantisers are smaller and take less (2.4 for ``per_pixel`` to 4 for ``pca:32``)."""
TOKEN_RATIO = {"int8": 1.2, "float16": 1.3, "float32": 1.2}
"""The same for one vector per token, where neighbours have nothing in common by construction (int8: 1.17-1.34 on
stitched fields of the simulated sample, random nano and tiny, patch 4 and 8; floats: random nano, patch 4)."""
STEP_BYTES = 4
"""Of the value of a code step of one pixel, for ``per_pixel``; taken as incompressible."""
GRADED_RATIO = 2.5
"""Raw bytes per stored byte of a map layer that is not made of classes: probabilities, confidence, numbers. From
probabilities of the simulated sample (2.2 to 3.1); floats come close to the lower end of that or below."""
EXTRA_BYTES_PER_PX = 0.1
"""Stored bytes of ``reason``, ``n_obs`` and class maps together, per pixel of the store: long runs of one value, two or
three layers."""

PROCESS_BYTES = 700_000_000
"""Resident memory of a process with torch, rasterio, zarr and scikit-learn loaded (480 MB measured after the imports)
plus GDAL's block cache and the allocator's slack after the first tile."""
CUDA_BYTES = 1_500_000_000
"""Host memory that CUDA's context, libraries and pinned buffers add: assumed, not measured."""
GDAL_BYTES = 360_000_000
"""GDAL's block cache (256 MB) and the copies that 16 threads are decoding into: measured above one Stack of 2048 px,
12 periods and 12 bands, 400-420 MB, of which windows in hand are ``HELD_BYTES``."""
HELD_BYTES = 160_000_000
"""Windows in hand per tile that is being read, at most (``read.composite``)."""
MEDIAN_BYTES = 384_000_000
"""The same for a median: strips of all its scenes (``read.pixelwise``)."""
CACHE_BYTES = 512 << 20
"""Decoded blocks that tiles below 2048 px share (``read.blocks``)."""
READERS = 2
"""Tiles that are read at once."""
READS_HELD = 3
"""Stacks in memory at once: one in the encoder and two being read."""
ACTIVATIONS = 14
"""Float32 arrays of (token, token width) alive inside one encoder block: stream, norm, q, k, v, attention and its
output, and the MLP's hidden layer, which counts four (times gelu's copy)."""
DOMAIN_ARRAYS = 5
"""Float32 arrays of (token, token width) alive inside a domain: stream, keys, values, a layer's strip, results."""
DOMAINS_WAITING = 2
"""Domains whose pixels are ready or being made while others are in work."""
DOMAIN_BYTES = 200_000_000
"""What the strips of a domain's layer and the gathered keys of one attention call take."""
STRIP_TOKENS = 48
"""Rows of embedded patches that are held besides those of two rows of windows: squares of 16 tokens, and the next."""
BLOCK_ARRAYS = 4
"""Float32 (row, col, dim) arrays of one block while it is interpolated and quantised."""


def estimate_tile(
    *,
    windows: int,
    blocks: int,
    card: ModelCard,
    grid: GridSpec,
    periods: int,
    read_box: Box,
    candidates: Sequence[Candidates],
    cell_shares: Mapping[Cell, float],
    rate: Rate,
    feeds: tuple[Feed, ...] = (Feed(),),
    vector: Vector | None = None,
    layer_bytes: int = 0,
) -> Estimate:
    """Price one tile.

    Args:
        windows: Encoder windows evaluated.
        blocks: Blocks wanted.
        card: The model.
        grid: The window lattice.
        periods: Time steps.
        read_box: 10 m box under all windows.
        candidates: Per sensor, cell and period.
        cell_shares: Share of each cell's ranking that this tile carries: a cell is ranked once, whole, by whichever
            tile comes first, so the shares of a plan's tiles add up to one.
        rate: Speed and price.
        feeds: Sensors that are fed.
        vector: What is stored of a pixel; None: int8, as many numbers as the model writes.
        layer_bytes: Bytes per pixel of the map layers that are not made of classes.

    Raises:
        ConfigError: The model does not take a sensor.
    """
    vector = vector or Vector(bands=card.dims)
    sensors = tuple(feed.sensor for feed in feeds)
    flops = windows * flops_per_window(card, grid, periods, sensors=sensors)
    speed = rate.speed(card.token_width)
    device_s = flops / speed if speed else 0.0
    price = rate.usd_per_hour
    return Estimate(
        windows=windows,
        tokens=windows * tokens_per_window(card, grid, periods, sensors=sensors),
        flops=flops,
        bytes_read=sum(
            _bytes_read(
                read_box,
                [c for c in candidates if c.sensor == feed.sensor],
                cell_shares,
                periods=periods,
                feed=feed,
            )
            for feed in feeds
        ),
        bytes_written=_bytes_written(blocks, vector=vector, layer_bytes=layer_bytes, grid=grid),
        peak_bytes=_peak_bytes(
            windows,
            card=card,
            grid=grid,
            periods=periods,
            read_box=read_box,
            rate=rate,
            feeds=feeds,
            vector=vector,
            layer_bytes=layer_bytes,
        ),
        device_s=device_s,
        usd=None if price is None or not speed else device_s / rate.devices * price / 3600.0,
    )


def total(estimates: Iterable[Estimate]) -> Estimate:
    """Sum of estimates; memory is the largest; USD is None when any part is unknown.

    >>> total([Estimate(windows=2, peak_bytes=5, usd=1.0), Estimate(windows=3, peak_bytes=4, usd=0.5)]).usd
    1.5
    """
    parts = tuple(estimates)
    usd = [e.usd for e in parts if e.usd is not None]
    return Estimate(
        windows=sum(e.windows for e in parts),
        tokens=sum(e.tokens for e in parts),
        flops=math.fsum(e.flops for e in parts),
        bytes_read=sum(e.bytes_read for e in parts),
        bytes_written=sum(e.bytes_written for e in parts),
        peak_bytes=max((e.peak_bytes for e in parts), default=0),
        device_s=math.fsum(e.device_s for e in parts),
        usd=math.fsum(usd) if usd and len(usd) == len(parts) else None,
    )


def _bytes_read(
    read_box: Box, candidates: Sequence[Candidates], cell_shares: Mapping[Cell, float], *, periods: int, feed: Feed
) -> int:
    """Decoded bytes of one sensor: bands of the scenes that are used, and the classifications that are looked at.

    One scene per period that has candidates; ``median`` uses them all.
    """
    areas = {c.cell: _overlap(read_box, c.cell) for c in candidates}
    whole = sum(areas.values())
    if not whole:
        return 0
    used = [len(c.scene_ids) if feed.composite == "median" else min(1, len(c.scene_ids)) for c in candidates]
    covered = sum(areas[c.cell] * count for c, count in zip(candidates, used, strict=True)) / (whole * periods)
    bands = sum(size * count * _area(read_box.cover(res, pad_px=pad)) for res, count, pad, size in _native(feed))
    classes = 0.0
    if feed.sensor == S2 and feed.composite in RANKED:
        cell_px = (CELL_PX * PIXEL_M // RANK_RES_M) ** 2
        classes += sum(len(c.scene_ids) * cell_shares[c.cell] for c in candidates) * cell_px
    if feed.sensor == S2 and feed.composite in MASKED:
        classes += covered * periods * _area(read_box.cover(CLASS_RES_M))
    return round(bands * periods * covered + classes)


def _native(feed: Feed) -> tuple[tuple[int, int, int, int], ...]:
    return NATIVE[feed.sensor, feed.resampling]


def _bytes_written(blocks: int, *, vector: Vector, layer_bytes: int, grid: GridSpec) -> int:
    ratio = (STORE_RATIO if grid.token_px == 1 else TOKEN_RATIO)[vector.dtype]
    steps = STEP_BYTES if vector.stepped else 0
    each = (vector.nbytes - steps) / ratio + steps + layer_bytes / GRADED_RATIO + EXTRA_BYTES_PER_PX
    return round(blocks * (BLOCK_PX // grid.token_px) ** 2 * each)


def _overlap(box: Box, cell: Cell) -> int:
    """Pixels of ``box`` in the cell."""
    common = box.intersect(cell.box)
    return _area(common) if common else 0


def _area(box: Box) -> int:
    return box.height * box.width


def _reading_bytes(stack: int, *, grid: GridSpec, feeds: tuple[Feed, ...]) -> int:
    """What reading takes beside the Stacks; small tiles hold less than the limits."""
    median = any(feed.composite == "median" for feed in feeds)
    held = min(MEDIAN_BYTES if median else HELD_BYTES, stack)
    cache = min(CACHE_BYTES, 4 * stack) if grid.tile_px < CELL_PX else 0
    return READERS * held + min(GDAL_BYTES, stack) + cache


def _peak_bytes(
    windows: int,
    *,
    card: ModelCard,
    grid: GridSpec,
    periods: int,
    read_box: Box,
    rate: Rate,
    feeds: tuple[Feed, ...],
    vector: Vector,
    layer_bytes: int,
) -> int:
    """Host memory of the process at its fullest: everything below is alive while a tile is stitched and written.

    Windows and the stitched field are as wide as a token; only what leaves the head is as wide as what is written. On a
    GPU all of that stays on the device and codes come back.
    """
    stack = sum(
        periods * (size * count + 1) * _area(read_box.cover(res, pad_px=pad))
        for feed in feeds
        for res, count, pad, size in _native(feed)
    )
    codes = (2 * vector.nbytes + layer_bytes) * (grid.tile_px // grid.token_px) ** 2
    always = PROCESS_BYTES + 4 * card.parameters + READS_HELD * stack + _reading_bytes(stack, grid=grid, feeds=feeds)
    if rate.numerics.device != "cpu":
        return always + CUDA_BYTES + codes
    width, domains = card.token_width, grid.stitch == "neighbourhood"
    cells = (grid.kept[1] if domains else grid.window_px // grid.patch_px) ** 2
    fields = windows * cells * (4 * width + 1)
    head = 4 * card.dims if card.dims != width else 0  # the field before and after the student
    tokens = _area(read_box) // grid.step_px**2 * (4 * width + head + 4)
    pixels = BLOCK_ARRAYS * 4 * max(card.dims, vector.bands) * (BLOCK_PX // grid.token_px) ** 2
    sensors = tuple(feed.sensor for feed in feeds)
    batch = rate.numerics.batch_windows * tokens_per_window(card, grid, periods, sensors=sensors)
    working = rate.encoders * batch * width * 4 * (DOMAIN_ARRAYS if domains else ACTIVATIONS)
    if domains:
        bands = sum(count for feed in feeds for _, count, _, _ in _native(feed))
        pixels_each = 4 * bands * periods * grid.window_px**2
        working += rate.encoders * DOMAIN_BYTES + (rate.encoders + DOMAINS_WAITING) * pixels_each
    else:
        per_cell = batch // (rate.numerics.batch_windows * cells)
        rows = STRIP_TOKENS + 2 * grid.window_px // grid.patch_px
        always += 4 * width * per_cell * rows * (read_box.width // grid.patch_px)
    always += rate.encoders * rate.encoder_bytes
    return always + fields + tokens + max(pixels + codes, working)
