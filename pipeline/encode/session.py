"""The encoder on a device: settled numerics, fixed batches, worker threads, and the time the device worked.

A window's bytes depend on its own pixels and the numerics class, and on nothing else: batches always have the same
shape (the last one is padded), and windows with missing tokens never share a batch, or a code path, with full ones.
Measured on CPUs (AVX2, float32 and bfloat16, nano and tiny): a window gives the same bytes at every position of the
batch, beside any others; the start-up gate repeats that check on the device at hand.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
import torch

from pipeline.encode import assemble, gate
from pipeline.encode.olmoearth import Encoder
from pipeline.encode.patch import KERNEL_PX, token_grid
from pipeline.errors import ConfigError, DeviceError, InvalidInputError
from pipeline.types import GridSpec, ModelCard, Numerics, Period, Stack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import date

    from numpy.typing import NDArray

    from pipeline.config import EncodeSettings
    from pipeline.encode.checkpoint import Checkpoint

log = logging.getLogger(__name__)

SENSOR = "sentinel2_l2a"
CPU_TOKENS = 1024
"""Tokens per forward pass on a CPU: activations stay in cache; 256 and 4096 were 20-25 % slower (one thread)."""
CUDA_TOKENS = 65536
"""Tokens per forward pass on a GPU: a constant, because free memory must not decide a result."""
MAX_BATCH = 512
IN_FLIGHT = 2
"""Batches queued per worker: enough that none waits, few enough that strips do not pile up in memory."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WindowFields:
    """The vectors of many windows.

    Attributes:
        values: (window, token_row, token_col, dim) float32: mean over the valid periods; 0 where not valid.
        valid: (window, token_row, token_col) bool: some period is valid.
    """

    values: NDArray[np.float32]
    valid: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Batch:
    """Windows that go through one forward pass, not yet copied together."""

    indices: tuple[int, ...]
    pixels: tuple[torch.Tensor, ...]
    visible: tuple[NDArray[np.bool_], ...] | None


def settle(settings: EncodeSettings, *, card: ModelCard, grid: GridSpec, periods: int) -> Numerics:
    """Resolve every ``auto`` of the encoder into the numerics class of a store.

    Looks at the device, the model's card and the shape of a window; never at the area, free memory or a try.

    Args:
        settings: The ``encode`` section.
        card: The model.
        grid: The window lattice.
        periods: Time steps.

    Raises:
        DeviceError: No CUDA device, or one without bfloat16 when bfloat16 is asked for.
        ConfigError: Window and patch do not fit, the model does not take the sensor, or compile=on without a compiler.
    """
    if SENSOR not in card.sensors:
        raise ConfigError(f"model {card.name} takes {card.sensors}, not {SENSOR}")
    device = pick_device(settings)
    rows, cols = token_grid((grid.window_px, grid.window_px), grid.patch_px)
    budget = CUDA_TOKENS if device == "cuda" else CPU_TOKENS
    batch = min(MAX_BATCH, max(1, budget // (rows * cols * periods)))
    return Numerics(
        device=device,
        device_name=device_name(device),
        dtype=_settle_dtype(settings.dtype, device),
        compiled=_settle_compile(settings.compile, device),
        batch_windows=batch if settings.batch_windows == "auto" else settings.batch_windows,
        torch=_torch_version(),
    )


def pick_device(settings: EncodeSettings) -> str:
    """``cpu`` or ``cuda``: what ``encode.device`` means on this machine.

    Raises:
        DeviceError: No CUDA device, but one is asked for.
    """
    cuda = torch.cuda.is_available()
    if settings.device == "cuda" and not cuda:
        raise DeviceError("encode.device is cuda, but torch finds no CUDA device: use encode.device=cpu")
    return ("cuda" if cuda else "cpu") if settings.device == "auto" else settings.device


def describe_device(settings: EncodeSettings) -> tuple[str, str]:
    """(product name, dtype) that ``settle`` would choose here, without a model.

    Raises:
        DeviceError: As ``settle``.
    """
    device = pick_device(settings)
    return device_name(device), _settle_dtype(settings.dtype, device)


def device_name(device: str) -> str:
    """Product name of the GPU, or the instruction-set level that torch uses on this CPU."""
    return torch.cuda.get_device_name(0) if device == "cuda" else torch.backends.cpu.get_cpu_capability()


def _torch_version() -> str:
    return str(torch.__version__).split("+", maxsplit=1)[0]


def _settle_dtype(asked: str, device: str) -> str:
    if device == "cpu":
        # without bfloat16 instructions it is emulated: valid, but several times slower than float32
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()  # noqa: SLF001 - no public name
        return ("bfloat16" if fast else "float32") if asked == "auto" else asked
    return cuda_dtype(asked, name=device_name(device), bf16=torch.cuda.is_bf16_supported(including_emulation=False))


def cuda_dtype(asked: str, *, name: str, bf16: bool) -> str:
    """Return the dtype on a GPU: bfloat16 unless float32 is asked for.

    Args:
        asked: ``encode.dtype``.
        name: Product name, for the message.
        bf16: Whether the GPU has bfloat16 arithmetic (Ampere and newer).

    Raises:
        DeviceError: The GPU has no bfloat16 and float32 was not asked for.
    """
    if asked != "float32" and not bf16:
        raise DeviceError(f"{name} has no bfloat16 arithmetic: use encode.dtype=float32 or a GPU from Ampere on")
    return "bfloat16" if asked == "auto" else asked


def _settle_compile(asked: str, device: str) -> bool:
    if asked == "auto":
        return device == "cuda"
    if asked == "on" and device == "cpu":
        compiler = os.environ.get("CXX", "")
        if not any(shutil.which(name) for name in (compiler, "g++", "clang++", "c++") if name):
            raise ConfigError(
                "encode.compile is on, but there is no C++ compiler: install g++ or use encode.compile=off"
            )
    return asked == "on"


class Session:
    """One model on one device for one window lattice and time axis.

    On a CPU it sets torch to one thread per operation, for the whole process: parallelism comes from ``threads``
    workers, which beats threads inside small products and keeps results independent of the number of cores.

    Attributes:
        flops_per_window: Floating point operations of one window, attention included (a multiply-add counts two).
    """

    def __init__(
        self, checkpoint: Checkpoint, *, grid: GridSpec, periods: tuple[Period, ...], numerics: Numerics, threads: int
    ) -> None:
        """Build the encoder on its device.

        Args:
            checkpoint: The model.
            grid: The window lattice.
            periods: The time axis; the model date of a period is its start.
            numerics: From ``settle``.
            threads: Encoder threads on a CPU.

        Raises:
            DeviceError: The numerics class is of a CUDA device and there is none here.
            ConfigError: Window and patch do not fit.
        """
        if numerics.device == "cuda" and not torch.cuda.is_available():
            raise DeviceError("the store was made on a CUDA device and torch finds none here")
        self._checkpoint, self._grid, self._periods, self._numerics = checkpoint, grid, periods, numerics
        self._threads, self._device = max(1, threads), torch.device(numerics.device)
        self._bands = checkpoint.config.bands(SENSOR)
        self._tokens = token_grid((grid.window_px, grid.window_px), grid.patch_px)
        self._busy_s, self._lock, self._warm = 0.0, Lock(), False
        self.flops_per_window = self._flops()
        if numerics.device == "cpu":
            torch.set_num_threads(1)
        self._run = self._build(tuple(p.start.date() for p in periods), window_px=grid.window_px)

    @property
    def busy_s(self) -> float:
        """Seconds the device has worked so far: core-seconds of the workers on a CPU, event time on a GPU."""
        return self._busy_s

    def warm_up(self) -> float:
        """Run one batch of nothing, the first time through every code path that is compiled; returns its seconds."""
        begin = time.perf_counter()
        shape = (len(self._periods), len(self._bands), self._grid.window_px, self._grid.window_px)
        window = torch.zeros(shape, device=self._device)
        self._forward(_Batch(indices=(0,), pixels=(window,), visible=None))
        if self._numerics.compiled and not self._warm:
            visible = np.ones((len(self._periods), *self._tokens), np.bool_)
            self._forward(_Batch(indices=(0,), pixels=(window,), visible=(visible,)))
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        self._warm = True
        return time.perf_counter() - begin

    def gate(self) -> gate.GateReport:
        """Run the start-up gate on the encoder as it will run; see ``pipeline.encode.gate``.

        Raises:
            DeviceError: The encoder is wrong on this device.
        """
        side = gate.gate_window(self._grid.window_px, self._grid.patch_px)
        run = self._build(gate.DATES, window_px=side)

        def on_device(pixels: torch.Tensor) -> torch.Tensor:
            with torch.inference_mode():
                return run(pixels.to(self._device).contiguous(), None)

        return gate.check(
            on_device,
            self._checkpoint,
            window_px=side,
            patch_px=self._grid.patch_px,
            batch_windows=self._numerics.batch_windows,
            dtype=self._numerics.dtype,
            sensor=SENSOR,
        )

    def encode(self, stack: Stack, origins: Sequence[tuple[int, int]]) -> WindowFields:
        """Encode the windows of a tile.

        Args:
            stack: Pixels that hold every window.
            origins: Lattice (row, col) of each window's north-west 10 m pixel.

        Returns:
            One entry per origin, in the order given. A window without any valid token is not encoded.

        Raises:
            InvalidInputError: The stack is of another sensor or time axis, or does not hold a window.
        """
        if stack.sensor != SENSOR or tuple(p.start for p in stack.periods) != tuple(p.start for p in self._periods):
            raise InvalidInputError(
                f"the session encodes {SENSOR} at {len(self._periods)} periods from {self._periods[0].start:%Y-%m-%d}, "
                f"the stack holds {stack.sensor} at {len(stack.periods)}"
            )
        if self._numerics.compiled and not self._warm:
            self.warm_up()  # threads must not compile at the same time
        shape = (len(origins), *self._tokens)
        values = np.zeros((*shape, self._checkpoint.config.dims), np.float32)
        valid = np.zeros(shape, np.bool_)
        batches = self._batches(stack, origins, valid)
        if self._device.type == "cuda":
            self._encode_cuda(batches, values)
        else:
            self._encode_cpu(batches, values)
        return WindowFields(values=values, valid=valid)

    def _build(self, dates: tuple[date, ...], *, window_px: int) -> Callable[..., torch.Tensor]:
        encoder = Encoder(
            self._checkpoint,
            window_px=(window_px, window_px),
            patch_px=self._grid.patch_px,
            dates=dates,
            sensor=SENSOR,
            dtype=getattr(torch, self._numerics.dtype),
            halves=True if self._numerics.compiled or self._numerics.dtype != "float32" else None,
        )
        encoder = encoder.eval().to(self._device)
        # the default mode: autotuning picks kernels by timing, so two processes could differ in their bytes
        return torch.compile(encoder, dynamic=False, fullgraph=True) if self._numerics.compiled else encoder

    def _batches(self, stack: Stack, origins: Sequence[tuple[int, int]], valid: NDArray[np.bool_]) -> Iterator[_Batch]:
        """Full batches as windows come in, then what is left; fills ``valid`` on the way."""
        size, window_px = self._numerics.batch_windows, self._grid.window_px
        waiting: dict[bool, list[tuple[int, torch.Tensor, NDArray[np.bool_]]]] = {False: [], True: []}
        for strip in assemble.strips(stack, origins, window_px=window_px, bands=self._bands, device=self._device):
            for index, row, col in strip.origins:
                pixels, visible = assemble.window_pixels(
                    strip, (row, col), window_px=window_px, patch_px=self._grid.patch_px
                )
                valid[index] = visible.any(axis=0)
                if not visible.any():
                    continue
                masked = not visible.all()
                waiting[masked].append((index, pixels, visible))
                if len(waiting[masked]) == size:
                    yield _batch(waiting[masked], masked=masked)
                    waiting[masked] = []
        for masked, rest in waiting.items():
            if rest:
                yield _batch(rest, masked=masked)

    def _forward(self, batch: _Batch) -> torch.Tensor:
        """(batch_windows, token_row, token_col, dim) float32 on the device; the last entries may be padding."""
        missing = self._numerics.batch_windows - len(batch.pixels)
        blank = torch.zeros_like(batch.pixels[0])
        with torch.inference_mode():
            pixels = torch.stack((*batch.pixels, *(blank,) * missing))
            if batch.visible is None:
                return self._run(pixels, None)
            every = np.ones_like(batch.visible[0])
            visible = torch.from_numpy(np.stack((*batch.visible, *(every,) * missing)))
            return self._run(pixels, visible.to(self._device, non_blocking=True))

    def _encode_cpu(self, batches: Iterator[_Batch], values: NDArray[np.float32]) -> None:
        def work(batch: _Batch) -> None:
            begin = time.perf_counter()
            result = self._forward(batch).numpy()
            values[list(batch.indices)] = result[: len(batch.indices)]  # batches share no window
            with self._lock:
                self._busy_s += time.perf_counter() - begin

        if self._threads == 1:  # no second thread beside the caller's
            for batch in batches:
                work(batch)
            return
        with ThreadPoolExecutor(self._threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            pending: deque[Future[None]] = deque()
            for batch in batches:
                pending.append(pool.submit(work, batch))
                if len(pending) > IN_FLIGHT * self._threads:
                    pending.popleft().result()
            while pending:
                pending.popleft().result()

    def _encode_cuda(self, batches: Iterator[_Batch], values: NDArray[np.float32]) -> None:
        pending: deque[tuple[_Batch, torch.Tensor, torch.cuda.Event, torch.cuda.Event, torch.cuda.Event]] = deque()

        def collect() -> None:
            batch, host, begin, end, copied = pending.popleft()
            copied.synchronize()
            values[list(batch.indices)] = host.numpy()[: len(batch.indices)]
            self._busy_s += begin.elapsed_time(end) / 1000

        for batch in batches:
            begin, end, copied = (torch.cuda.Event(enable_timing=True) for _ in range(3))  # type: ignore[no-untyped-call]
            begin.record()
            result = self._forward(batch)
            end.record()
            host = torch.empty(result.shape, dtype=result.dtype, pin_memory=True)
            host.copy_(result, non_blocking=True)
            copied.record()
            pending.append((batch, host, begin, end, copied))
            if len(pending) > IN_FLIGHT:
                collect()
        while pending:
            collect()

    def _flops(self) -> float:
        config, (rows, cols) = self._checkpoint.config, self._tokens
        n, d = rows * cols * len(self._periods), config.dims
        embed = 2 * n * KERNEL_PX * KERNEL_PX * config.hidden * (len(self._bands) + d)
        block = 2 * n * d * (4 * d + 2 * config.mlp) + 4 * n * n * d
        return float(embed + config.depth * block)


def _batch(windows: list[tuple[int, torch.Tensor, NDArray[np.bool_]]], *, masked: bool) -> _Batch:
    indices, pixels, visible = zip(*windows, strict=True)
    return _Batch(indices=indices, pixels=pixels, visible=visible if masked else None)
