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
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from pipeline.encode import assemble, attention, boxes, gate, patches
from pipeline.encode.domain import DomainEncoder
from pipeline.encode.embed import SQUARE, Squares
from pipeline.encode.olmoearth import Encoder, FromPatches, Head
from pipeline.encode.patch import token_grid
from pipeline.errors import ConfigError, DeviceError, InvalidInputError
from pipeline.types import GridSpec, ModelCard, Numerics, Period, Stack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import date

    from numpy.typing import NDArray

    from pipeline.config import EncodeSettings
    from pipeline.encode.checkpoint import Checkpoint

    Embed = Callable[[patches.Pixels], patches.Job]

log = logging.getLogger(__name__)

SENSOR = "sentinel2_l2a"
CPU_TOKENS = 1024
"""Tokens per forward pass on a CPU: activations stay in cache; 256 and 4096 were 20-25 % slower (one thread)."""
CUDA_TOKENS = 65536
"""Tokens per forward pass on a GPU: a constant, because free memory must not decide a result."""
MAX_BATCH = 512
IN_FLIGHT = 2
"""Batches queued per worker: enough that none waits, few enough that strips do not pile up in memory."""
PROBE_TOKENS = 4096
"""Tokens per window, at most, with which attention kernels are compared: the ratio of two kernels was the same at 1024
and at 3072 (AVX2), while the time grows with the square."""
SQUARES = {"cpu": 1, "cuda": 16}
"""Squares of patches that are embedded by one call, always as many."""
AHEAD = 2
"""Tiles that may be staged: as many as are read at once."""
MAX_GRAPHS = 256
"""Compiled graphs of one process: a session has six (run and gate, with and without missing tokens, and patches)."""
GRAPH_WIDTH = 384
"""Models up to this width run as CUDA graphs: their kernels are shorter than the time it takes to launch them."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WindowFields:
    """The vectors of many windows, or of the kept tokens of many domains (``GridSpec.kept``).

    Attributes:
        values: (window, token_row, token_col, dim) float32 on the session's device: what ``Encoder.forward`` gives, to
            be stitched and then passed through ``Session.head``; 0 where not valid.
        valid: (window, token_row, token_col) bool: some sensor is valid in some period.
    """

    values: torch.Tensor
    valid: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Batch:
    """Windows that go through one forward pass, not yet copied together: per window one tensor per sensor.

    Embedded patches, or pixels of domains.
    """

    indices: tuple[int, ...]
    parts: tuple[tuple[torch.Tensor, ...], ...]
    visible: tuple[NDArray[np.bool_], ...] | None


def settle(
    settings: EncodeSettings,
    *,
    card: ModelCard,
    grid: GridSpec,
    periods: int,
    sensors: tuple[str, ...] = (SENSOR,),
    kept: Numerics | None = None,
) -> Numerics:
    """Resolve every ``auto`` of the encoder into the numerics class of a store.

    Looks at the device, the model's card and the shape of a window; never at the area, free memory or a try. The
    attention kernel is chosen by measuring those that this device has, once per store.

    Args:
        settings: The ``encode`` section.
        card: The model.
        grid: The window lattice.
        periods: Time steps.
        sensors: What the encoder reads.
        kept: The class of the store that exists already: its attention kernel is kept if this device has it.

    Raises:
        DeviceError: No CUDA device, one without bfloat16 when bfloat16 is asked for, or no such attention kernel.
        ConfigError: Window and patch do not fit, the model does not take a sensor, or compile=on without a compiler.
    """
    for sensor in sensors:
        if sensor not in card.sensors:
            raise ConfigError(f"model {card.name} takes {card.sensors}, not {sensor}")
    device = pick_device(settings)
    rows, cols = token_grid((grid.window_px, grid.window_px), grid.patch_px)
    sets = dict(card.band_sets)
    tokens = rows * cols * periods * sum(len(sets.get(sensor, (0,))) for sensor in sensors)
    batch = _settle_batch(settings, grid=grid, device=device, tokens=tokens)
    dtype = _settle_dtype(settings.dtype, device)
    return Numerics(
        device=device,
        device_name=device_name(device),
        dtype=dtype,
        compiled=_settle_compile(settings, device, domains=grid.stitch == "neighbourhood"),
        batch_windows=batch,
        torch=_torch_version(),
        attention=_settle_attention(
            settings, card=card, device=device, dtype=dtype, tokens=tokens, windows=batch, kept=kept, grid=grid
        ),
    )


def _settle_batch(settings: EncodeSettings, *, grid: GridSpec, device: str, tokens: int) -> int:
    if grid.stitch == "neighbourhood":
        return 1  # a domain is as large as a batch
    budget = CUDA_TOKENS if device == "cuda" else CPU_TOKENS
    return min(MAX_BATCH, max(1, budget // tokens)) if settings.batch_windows == "auto" else settings.batch_windows


def _settle_attention(
    settings: EncodeSettings,
    *,
    card: ModelCard,
    device: str,
    dtype: str,
    tokens: int,
    windows: int,
    kept: Numerics | None,
    grid: GridSpec,
) -> str:
    place, kind, width = torch.device(device), getattr(torch, dtype), card.token_width // card.heads
    domains = grid.stitch == "neighbourhood"
    have = (boxes.available_boxes if domains else attention.available)(place, kind, width)
    asked: str = settings.attention
    if asked == "auto" and kept is not None and (kept.device, kept.dtype) == (device, dtype):
        before = attention.kind_of(kept.attention)
        asked = before if before in have else asked  # a kernel of windows may know no boxes
    if asked == "auto":
        if domains:
            cells = (grid.window_px // grid.patch_px) ** 2
            chosen, seconds = boxes.choose_boxes(
                place,
                kind,
                heads=card.heads,
                head_dim=width,
                box=grid.box_px // grid.patch_px,
                per_cell=tokens // cells,
            )
        else:
            chosen, seconds = attention.choose(
                place, kind, heads=card.heads, head_dim=width, tokens=min(tokens, PROBE_TOKENS), windows=windows
            )
        log.info("attention: %s of %s", chosen, seconds)
        return attention.named(chosen)
    if asked not in have:
        raise DeviceError(
            f"attention kernel {asked} is not to be had here for {dtype} and heads of {width}; have {have}"
        )
    return attention.named(asked)


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
    """Product name of the GPU, or the instruction-set level of this CPU, with what it has for bfloat16."""
    if device == "cuda":
        return torch.cuda.get_device_name(0)
    extra = "".join(f" {name}" for name, has in _bf16_instructions().items() if has)
    return torch.backends.cpu.get_cpu_capability() + extra


def _bf16_instructions() -> dict[str, bool]:
    cpu = torch.cpu
    return {"AVX512_BF16": cpu._is_avx512_bf16_supported(), "AMX": cpu._is_amx_tile_supported()}  # noqa: SLF001 - no public name


def _torch_version() -> str:
    return str(torch.__version__).split("+", maxsplit=1)[0]


def _settle_dtype(asked: str, device: str) -> str:
    if device == "cpu":
        # without bfloat16 instructions it is emulated: valid, but several times slower than float32
        fast = any(_bf16_instructions().values())
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


def _settle_compile(settings: EncodeSettings, device: str, *, domains: bool) -> bool:
    asked = settings.compile
    if domains:  # a loop over pieces of a domain, not one graph; its matrix products and attention are kernels already
        if asked == "on":
            raise ConfigError("encode.compile=on is for windows: encode.stitch=neighbourhood runs eagerly, use auto")
        return False
    if asked == "auto":
        return device == "cuda"
    if asked == "on" and device == "cpu":
        compiler = os.environ.get("CXX", "")
        if not any(shutil.which(name) for name in (compiler, "g++", "clang++", "c++") if name):
            raise ConfigError(
                "encode.compile is on, but there is no C++ compiler: install g++ or use encode.compile=off"
            )
    return asked == "on"


def compiled(module: torch.nn.Module, device: torch.device, *, width: int) -> Callable[..., torch.Tensor]:
    """One static graph of an encoder. Never autotuned: that picks kernels by timing, so runs could differ in bytes.

    Args:
        module: An ``Encoder`` on its device.
        device: Where it runs.
        width: Of its tokens.
    """
    if device.type == "cuda":
        mode = "reduce-overhead" if width <= GRAPH_WIDTH else None
        graph = torch.compile(module, dynamic=False, fullgraph=True, mode=mode)
    else:
        # freezing turns weights into constants that are packed once for the CPU's matrix kernels
        graph = torch.compile(module, dynamic=False, fullgraph=True, options={"freezing": True})
    limits = torch._dynamo.config  # noqa: SLF001 - no public name

    def call(*args: Any, **values: Any) -> torch.Tensor:
        # torch counts graphs by line of code, and every Encoder of a process, of whatever shape, is the same lines; its
        # limit is a setting of the calling thread
        if limits.recompile_limit < MAX_GRAPHS:  # noqa: PLR1730 - a write makes torch hash its settings anew
            limits.recompile_limit = MAX_GRAPHS
        return cast("torch.Tensor", graph(*args, **values))

    return call


class Session:
    """One model on one device for one window lattice, time axis and set of sensors.

    On a CPU it sets torch to one thread per operation, for the whole process: parallelism comes from ``threads``
    workers, which beats threads inside small products and keeps results independent of the number of cores.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        grid: GridSpec,
        periods: tuple[Period, ...],
        numerics: Numerics,
        threads: int,
        sensors: tuple[str, ...] = (SENSOR,),
        resampling: str = "bilinear",
    ) -> None:
        """Build the encoder on its device.

        Args:
            checkpoint: The model; its card says what is written.
            grid: The window lattice.
            periods: The time axis; the model date of a period is its start.
            numerics: From ``settle``.
            threads: Encoder threads on a CPU.
            sensors: What the stacks hold, in their order.
            resampling: How coarse layers reach 10 m, see ``assemble.upsampled``.

        Raises:
            DeviceError: The numerics class is of a CUDA device and there is none here.
            DeviceError: The attention kernel is another one here.
            ConfigError: Window and patch do not fit.
            InvalidInputError: No such resampling.
        """
        if numerics.device == "cuda" and not torch.cuda.is_available():
            raise DeviceError("the store was made on a CUDA device and torch finds none here")
        kernel = attention.named(attention.kind_of(numerics.attention))  # loads it: a graph being compiled cannot
        if kernel != numerics.attention:
            raise DeviceError(
                f"the attention kernel of this machine is {kernel}, the store's {numerics.attention}: bytes would "
                f"differ; use the same compiler and earthpress, or another output"
            )
        self._checkpoint, self._grid, self._periods, self._numerics = checkpoint, grid, periods, numerics
        self._threads, self._device = max(1, threads), torch.device(numerics.device)
        self._sensors = sensors
        substitute = checkpoint.config.version == "v1"  # trained without band dropout
        self._inputs = tuple(
            assemble.Input(
                sensor=name, bands=checkpoint.config.bands(name), substitute=substitute, resampling=resampling
            )
            for name in sensors
        )
        self._domains = grid.stitch == "neighbourhood"
        side = token_grid((grid.window_px, grid.window_px), grid.patch_px)
        self._tokens = (grid.kept[1], grid.kept[1]) if self._domains else side
        self._busy_s, self._lock, self._warm = 0.0, Lock(), False
        self._staged: dict[int, assemble.Resident] = {}
        self._uploads: torch.cuda.Stream | None = None
        if numerics.device == "cpu":
            torch.set_num_threads(1)
        self._encoder = self._build(tuple(p.start.date() for p in periods), window_px=grid.window_px)
        self._run = self._running(self._encoder)
        self._squares: Callable[[tuple[torch.Tensor, ...]], patches.Patches] | None = None
        if not self._domains:
            self._squares = self._made_squares()
        self._head = Head(checkpoint).eval().to(self._device)

    @property
    def busy_s(self) -> float:
        """Seconds the device has worked so far: core-seconds of the workers on a CPU, event time on a GPU."""
        return self._busy_s

    @property
    def field_dims(self) -> int:
        """Width of the vectors that ``encode`` gives."""
        return self._encoder.field_dims

    def head(self, values: torch.Tensor) -> torch.Tensor:
        """Stitched vectors (..., field_dims) to written ones (..., dims); the same object where there is no head."""
        with torch.inference_mode():
            out: torch.Tensor = self._head(values)
        return out

    def warm_up(self) -> float:
        """Run one batch of nothing, the first time through every code path that is compiled; returns its seconds."""
        begin = time.perf_counter()
        count = len(self._periods)
        if self._squares is None:
            side = self._grid.window_px
            part = tuple(torch.zeros((count, len(e.bands), side, side), device=self._device) for e in self._inputs)
        else:
            part = tuple(found[0] for found in self._embedded(self._no_pixels(count)))
            part = tuple(self._zeros(like, count) for like in part)
        self._forward(_Batch(indices=(0,), parts=(part,), visible=None))
        if self._numerics.compiled and not self._warm:
            visible = np.ones((len(self._sensors), count, *self._tokens), np.bool_)
            self._forward(_Batch(indices=(0,), parts=(part,), visible=(visible,)))
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        self._warm = True
        return time.perf_counter() - begin

    def _no_pixels(self, periods: int) -> tuple[torch.Tensor, ...]:
        """Squares of nothing."""
        side, count = self._square_px, SQUARES[self._device.type]
        return tuple(torch.zeros((count, periods, len(e.bands), side, side), device=self._device) for e in self._inputs)

    def _zeros(self, like: torch.Tensor, periods: int) -> torch.Tensor:
        """Patches of nothing for one window, of the sensor whose squares ``like`` is one of."""
        return like.new_zeros((periods, *self._tokens, *like.shape[-2:]))

    @property
    def _square_px(self) -> int:
        """Side of a square of patches with the pixels around it that resizing reads."""
        return SQUARE * self._grid.patch_px + 2 * self._grid.embed_px

    def gate(self) -> gate.GateReport:
        """Run the start-up gate on the encoder as it will run; see ``pipeline.encode.gate``.

        Raises:
            DeviceError: The encoder is wrong on this device.
        """
        grid = self._grid
        side = gate.gate_window(grid.window_px, grid.patch_px, grid.box_px)
        cells = side // grid.patch_px
        core = (1, cells - 2) if grid.stitch == "centre" and self._core and cells > 2 else None  # the pruned path
        dates = gate.gate_dates(side, grid.patch_px, len(self._sensors))
        run = self._running(self._build(dates, window_px=side, core=core))

        def on_device(pixels: tuple[torch.Tensor, ...], visible: torch.Tensor | None) -> torch.Tensor:
            with torch.inference_mode():
                parts = tuple(part.to(self._device).contiguous() for part in pixels)
                if self._squares is not None:
                    count = range(len(parts[0]))
                    windows = [self._window_patches(tuple(p[i] for p in parts), cells, place=i) for i in count]
                    parts = tuple(torch.stack(found) for found in zip(*windows, strict=True))
                if self._graphs:
                    torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
                return run(parts, None if visible is None else visible.to(self._device))

        return gate.check(
            on_device,
            self._checkpoint,
            window_px=side,
            patch_px=grid.patch_px,
            batch_windows=self._numerics.batch_windows,
            dtype=self._numerics.dtype,
            sensors=self._sensors,
            core=core,
            box_px=grid.box_px,
            margin=grid.embed_px // grid.patch_px,
            dates=dates,
        )

    def _window_patches(self, pixels: tuple[torch.Tensor, ...], cells: int, *, place: int) -> tuple[torch.Tensor, ...]:
        """Patches of the north-west ``cells`` x ``cells`` tokens under pixels (time, band, row, col) with a margin.

        ``place``: which square of a call they are in, so that the gate sees whether that decides a byte.
        """
        squares = self._no_pixels(pixels[0].shape[0])
        at = place % len(squares[0])
        for square, part in zip(squares, pixels, strict=True):
            square[at, :, :, : part.shape[-2], : part.shape[-1]] = part
        return tuple(part[at, :, :cells, :cells] for part in self._embedded(squares))

    def _embedded(self, pixels: tuple[torch.Tensor, ...]) -> patches.Patches:
        """Squares to patches; timed as work of the device by whoever calls."""
        if self._squares is None:
            raise InvalidInputError("domains embed their own patches")
        if self._graphs:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        with torch.inference_mode():
            # compiled squares may reuse their output buffers (CUDA graphs)
            return tuple(part.clone() if self._graphs else part for part in self._squares(pixels))

    def stage(self, stacks: Stack | Sequence[Stack]) -> None:
        """Begin to upload the next tile while this one is in work; for the thread that has read it. No-op on a CPU.

        ``encode`` must be called with the same stacks.
        """
        given = (stacks,) if isinstance(stacks, Stack) else tuple(stacks)
        if self._device.type != "cuda":
            return
        with self._lock:
            if self._uploads is None:
                self._uploads = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            resident = assemble.Resident(given, self._device)
            resident.stage(self._uploads)
            self._staged[id(given[0])] = resident  # which holds the stack, so its id cannot be used again
            for old in tuple(self._staged)[:-AHEAD]:  # never encoded
                del self._staged[old]

    def encode(self, stacks: Stack | Sequence[Stack], origins: Sequence[tuple[int, int]]) -> WindowFields:
        """Encode the windows of a tile.

        Args:
            stacks: Pixels that hold every window, one Stack per sensor in the session's order (or the only one).
            origins: Lattice (row, col) of each window's north-west 10 m pixel.

        Returns:
            One entry per origin, in the order given. A window without any valid token is not encoded.

        Raises:
            InvalidInputError: A stack is of another sensor or time axis, or does not hold a window.
        """
        given = (stacks,) if isinstance(stacks, Stack) else tuple(stacks)
        self._check(given)
        if self._numerics.compiled and not self._warm:
            self.warm_up()  # threads must not compile at the same time
        shape = (len(origins), *self._tokens)
        values = torch.zeros((*shape, self.field_dims), device=self._device)
        valid = np.zeros(shape, np.bool_)
        with self._lock:
            resident = self._staged.pop(id(given[0]), None) or assemble.Resident(given, self._device)
        batches = partial(self._batches, resident, origins, valid)
        if self._device.type == "cuda":
            self._encode_cuda(batches, values)
        else:
            self._encode_cpu(batches, values)
        return WindowFields(values=values, valid=valid)

    def _check(self, stacks: tuple[Stack, ...]) -> None:
        starts = tuple(p.start for p in self._periods)
        if tuple(stack.sensor for stack in stacks) != self._sensors or any(
            tuple(p.start for p in stack.periods) != starts for stack in stacks
        ):
            raise InvalidInputError(
                f"the session encodes {', '.join(self._sensors)} at {len(starts)} periods from {starts[0]:%Y-%m-%d}, "
                f"the stacks hold {', '.join(f'{s.sensor} at {len(s.periods)}' for s in stacks)}"
            )

    @property
    def _core(self) -> tuple[int, int] | None:
        """(first token, tokens) of what the stitcher uses of a window along both axes; None: all."""
        return None if self._grid.stitch == "blend" else self._grid.kept

    @property
    def _graphs(self) -> bool:
        """Whether compiled modules run as CUDA graphs, which write every result to the same place."""
        return self._numerics.compiled and self._device.type == "cuda"

    def _build(
        self, dates: tuple[date, ...], *, window_px: int, core: tuple[int, int] | None = None
    ) -> Encoder | DomainEncoder:
        """The encoder on its device, before it is compiled; ``core`` is for windows of another size than the run's."""
        grid, numerics = self._grid, self._numerics
        core = self._core if window_px == grid.window_px else core
        shape: dict[str, Any] = {
            "patch_px": grid.patch_px,
            "dates": dates,
            "sensors": self._sensors,
            "dtype": getattr(torch, numerics.dtype),
            "attention": attention.kind_of(numerics.attention),
            "core": core,
        }
        if self._domains:
            domain = DomainEncoder(self._checkpoint, window_px=window_px, box_px=grid.box_px, **shape)
            return domain.eval().to(self._device)
        halves = True if numerics.compiled else None
        encoder = Encoder(self._checkpoint, window_px=(window_px, window_px), halves=halves, **shape)
        return encoder.eval().to(self._device)

    def _running(self, encoder: Encoder | DomainEncoder) -> Callable[..., torch.Tensor]:
        """An encoder as it runs: of windows from patches, compiled if the numerics class says so."""
        if isinstance(encoder, DomainEncoder):
            return encoder
        module = FromPatches(encoder)
        return self._compiled(module) if self._numerics.compiled else module

    def _made_squares(self) -> Callable[[tuple[torch.Tensor, ...]], patches.Patches]:
        grid = self._grid
        module = Squares(
            self._checkpoint,
            patch_px=grid.patch_px,
            margin_px=grid.embed_px,
            sensors=self._sensors,
            dtype=getattr(torch, self._numerics.dtype),
        )
        module = module.eval().to(self._device)
        return cast("Any", self._compiled(module)) if self._numerics.compiled else module

    def _compiled(self, module: torch.nn.Module) -> Callable[..., torch.Tensor]:
        return compiled(module, self._device, width=self._checkpoint.config.dims)

    def _batches(
        self,
        resident: assemble.Resident,
        origins: Sequence[tuple[int, int]],
        valid: NDArray[np.bool_],
        embed: Embed,
    ) -> Iterator[_Batch]:
        """Full batches as windows come in, then what is left; fills ``valid`` on the way."""
        size, first, side = self._numerics.batch_windows, *(self._grid.kept if self._domains else (0, self._tokens[0]))
        kept = slice(first, first + side)
        waiting: dict[bool, list[tuple[int, tuple[torch.Tensor, ...], NDArray[np.bool_]]]] = {False: [], True: []}
        for index, views, visible in self._windows(resident, origins, embed):
            valid[index] = visible[..., kept, kept].any(axis=(0, 1))
            if not valid[index].any():
                continue
            masked = not visible.all()
            # few windows of a row lack something: views would hold whole rows until a batch of them is full
            parts = tuple(view.clone() for view in views) if masked and not self._domains else views
            waiting[masked].append((index, parts, visible))
            if len(waiting[masked]) == size:
                yield _batch(waiting[masked], masked=masked)
                waiting[masked] = []
        for masked, rest in waiting.items():
            if rest:
                yield _batch(rest, masked=masked)

    def _windows(
        self,
        resident: assemble.Resident,
        origins: Sequence[tuple[int, int]],
        embed: Embed,
    ) -> Iterator[tuple[int, tuple[torch.Tensor, ...], NDArray[np.bool_]]]:
        """(index, patches or pixels of each sensor, visible tokens) of every window."""
        grid = self._grid
        if self._domains:
            for index, (row, col) in enumerate(origins):
                yield index, *domain_pixels(resident, (row, col), grid=grid, inputs=self._inputs)
            return
        at_once = SQUARES[self._device.type]
        rows = patches.strips(resident, origins, grid=grid, inputs=self._inputs, embed=embed, at_once=at_once)
        for strip in rows:
            for member in strip.windows:
                yield member[0], *strip.window(member, grid=grid)

    def _forward(self, batch: _Batch) -> torch.Tensor:
        """(batch_windows, token_row, token_col, dim) float32 on the device; the last entries may be padding."""
        missing = self._numerics.batch_windows - len(batch.parts)
        with torch.inference_mode():
            given = tuple(
                torch.stack((*parts, *(torch.zeros_like(parts[0]),) * missing))
                if len(parts) + missing > 1
                else parts[0].unsqueeze(0)  # no copy of a domain
                for parts in zip(*batch.parts, strict=True)
            )
            if batch.visible is None:
                return self._run(given, None)
            every = np.ones_like(batch.visible[0])
            visible = torch.from_numpy(np.stack((*batch.visible, *(every,) * missing)))
            return self._run(given, visible.to(self._device, non_blocking=True))

    def _encode_cpu(self, batches: Callable[[Embed], Iterator[_Batch]], values: torch.Tensor) -> None:
        def work(batch: _Batch) -> None:
            begin = time.perf_counter()
            result = self._forward(batch)
            values[list(batch.indices)] = result[: len(batch.indices)]  # batches share no window
            with self._lock:
                self._busy_s += time.perf_counter() - begin

        def embed(pixels: tuple[torch.Tensor, ...]) -> patches.Patches:
            begin = time.perf_counter()
            found = self._embedded(pixels)
            with self._lock:
                self._busy_s += time.perf_counter() - begin
            return found

        if self._threads == 1:  # no second thread beside the caller's
            for batch in batches(lambda pixels: partial(_same, embed(pixels))):
                work(batch)
            return
        with ThreadPoolExecutor(self._threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            pending: deque[Future[None]] = deque()
            for batch in batches(lambda pixels: pool.submit(embed, pixels).result):
                pending.append(pool.submit(work, batch))
                # the pixels of a domain are as many as those of a batch of windows and more: one waits
                if len(pending) > (self._threads if self._domains else IN_FLIGHT * self._threads):
                    pending.popleft().result()
            while pending:
                pending.popleft().result()

    def _encode_cuda(self, batches: Callable[[Embed], Iterator[_Batch]], values: torch.Tensor) -> None:
        """Queue everything; the fields stay on the device, so the host waits for events only."""
        pending: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()

        def collect() -> None:
            begin, end = pending.popleft()
            end.synchronize()
            self._busy_s += begin.elapsed_time(end) / 1000

        def embed(pixels: tuple[torch.Tensor, ...]) -> patches.Job:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            begin.record()
            found = self._embedded(pixels)
            end.record()
            pending.append((begin, end))
            return partial(_same, found)

        for batch in batches(embed):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            begin.record()
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            result = self._forward(batch)
            where = torch.tensor(batch.indices, device=self._device)
            values.index_copy_(0, where, result[: len(batch.indices)])
            end.record()
            pending.append((begin, end))
            while len(pending) > IN_FLIGHT:
                collect()
        while pending:
            collect()


def _batch(windows: list[tuple[int, tuple[torch.Tensor, ...], NDArray[np.bool_]]], *, masked: bool) -> _Batch:
    indices, parts, visible = zip(*windows, strict=True)
    return _Batch(indices=indices, parts=parts, visible=visible if masked else None)


def domain_pixels(
    resident: assemble.Resident, origin: tuple[int, int], *, grid: GridSpec, inputs: tuple[assemble.Input, ...]
) -> tuple[tuple[torch.Tensor, ...], NDArray[np.bool_]]:
    """Pixels of one domain, one (time, band, row, col) float32 per sensor, and (sensor, time, row, col) its tokens."""
    (strip,) = assemble.strips(resident, [origin], window_px=grid.window_px, inputs=inputs)
    return assemble.window_pixels(strip, origin, window_px=grid.window_px, patch_px=grid.patch_px)


def _same(found: patches.Patches) -> patches.Patches:
    """What was embedded at once."""
    return found
