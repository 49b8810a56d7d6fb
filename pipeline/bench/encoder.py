"""Rows of the encoder: build, compile, warm up, time, and say what it means.

Weights are random, which decides no speed; pixels lie on the device, normalised, as after reading and upsampling. What
is timed is ``Encoder.forward``: pixels to one vector per patch (v1.3: per location; its student comes after stitching).
"""

from __future__ import annotations

import contextlib
import time
import warnings
from dataclasses import dataclass
from datetime import date
from itertools import product
from typing import TYPE_CHECKING

import torch

from pipeline.bench import device as devices
from pipeline.bench import rows, timing
from pipeline.bench.rows import Case, Request, Result
from pipeline.bench.table import Files, Table
from pipeline.encode import attention, checkpoint, session, untrained
from pipeline.encode.olmoearth import Encoder
from pipeline.errors import DeviceError, InvalidInputError
from pipeline.plan import flops

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from pipeline.encode.checkpoint import Checkpoint

DATES = tuple(date(2023, month, 15) for month in range(1, 13))
"""Dates of an image, the first ones for fewer periods; v1.2 and v1.3 turn by their distances, at no cost."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Built:
    """An encoder on its device with a batch of pixels.

    Attributes:
        run: A pass over the batch, without gradients and at the row's precision; (window, row, col, dim) float32.
        pixels: (window, time, band, row, col) float32 on the device, one per sensor.
        kernel: Attention kernel, as numerics classes name it.
        held: Bytes of weights and pixels.
        build_s: Seconds it took to build.
        compile_s: Seconds of the first call, None where nothing is compiled.
    """

    run: Callable[[], torch.Tensor]
    pixels: tuple[torch.Tensor, ...]
    kernel: str
    held: int
    build_s: float
    compile_s: float | None


def bench(
    request: Request,
    *,
    device: str = "auto",
    threads: int = 0,
    seconds: float = 30.0,
    folder: Path,
    note: Callable[[str], None] = lambda _text: None,
    lab: Lab | None = None,
) -> tuple[tuple[Case, Result], ...]:
    """Measure every case of a request that the device's table does not hold yet.

    Args:
        request: What to measure.
        device: ``auto``, ``cpu`` or ``cuda``.
        threads: torch threads of a pass; 0: one, as every encoder of a run has.
        seconds: Time of a row after warming up; five passes at least.
        folder: Where the tables are.
        note: Called with a line of text before each row.
        lab: What is known of the device; None: nothing yet.

    Returns:
        Every row of the request, measured now or before. A row that failed holds its error.

    Raises:
        DeviceError: No such device.
        InvalidInputError: ``seconds`` or ``threads`` is negative.
        OutputError: The table cannot be used.
    """
    place, wanted = start(request, device=device, threads=threads, seconds=seconds)
    files = Files(folder=folder, device=devices.name_of(place))
    table = Table(files.csv(), Case, Result)
    todo = [case for case in wanted if case not in table]
    note(there(table, wanted, todo))
    if todo:
        devices.write_sidecar(files, devices.describe(place))
    lab = lab or Lab(place)
    for number, case in enumerate(todo, start=1):
        note(f"{number}/{len(todo)} {case.label()}")
        table.append(case, attempt(case, lab, seconds=seconds, note=note))
    return tuple((case, table[case]) for case in wanted)


def start(request: Request, *, device: str, threads: int, seconds: float) -> tuple[torch.device, tuple[Case, ...]]:
    """The device, and the cases of a request on it.

    Raises:
        DeviceError: No such device.
        InvalidInputError: ``seconds`` or ``threads`` is negative.
    """
    if seconds < 0 or threads < 0:
        raise InvalidInputError(f"seconds {seconds} and threads {threads} must not be negative")
    place = devices.pick(device)
    return place, tuple(cases(request, place, threads=threads or 1))


def cases(request: Request, place: torch.device, *, threads: int) -> Iterator[Case]:
    """Every combination, model by model; ``batch`` 0 becomes what a run would choose."""
    name = devices.name_of(place)
    for (version, size), shape, precision, compiled in product(
        request.models, request.shapes, request.precisions, request.compiled
    ):
        config, _ = untrained.parse(f"random:{version}-{size}:0")
        sets = sum(len(config.sensor(sensor).band_sets) for sensor in request.sensors)
        tokens = (shape.window_px // shape.patch_px) ** 2 * shape.periods * sets
        yield Case(
            device=name,
            threads=threads,
            version=version,
            size=size,
            precision=precision,
            compiled=compiled,
            attention=request.attention,
            periods=shape.periods,
            window_px=shape.window_px,
            patch_px=shape.patch_px,
            batch=request.batch or run_batch(tokens, place),
            sensors="+".join(request.sensors),
        )


def run_batch(tokens: int, place: torch.device) -> int:
    """Windows per pass that ``session.settle`` would choose for windows of so many tokens."""
    budget = session.CUDA_TOKENS if place.type == "cuda" else session.CPU_TOKENS
    return min(session.MAX_BATCH, max(1, budget // tokens))


def there(table: Table[Case, Result], wanted: tuple[Case, ...], todo: list[Case]) -> str:
    """What to tell about rows that are not measured again."""
    old = [case for case in wanted if case in table]
    failed = sum(bool(table[case].error) for case in old)
    text = f"{len(todo)} rows to measure, {len(old)} are in {table.path}"
    return f"{text}, {failed} of these failed: delete their lines to try again" if failed else text


class Lab:
    """A device, what is known about it, and the model of the last row."""

    def __init__(self, device: torch.device) -> None:
        """Measure and load nothing yet."""
        self.device = device
        self._known: set[tuple[torch.dtype, int, int, int]] = set()
        self._peaks: dict[tuple[torch.dtype, int], float] = {}
        self._model: Checkpoint | None = None

    def peak(self, dtype: torch.dtype, *, width: int, tokens: int) -> float:
        """Operations per second, see ``device.gemm_peak``: the best so far with the torch threads of this moment."""
        threads = torch.get_num_threads()
        key = (dtype, threads)
        if (dtype, width, tokens, threads) not in self._known:
            found = devices.gemm_peak(self.device, dtype, width=width, rows=tokens)
            self._peaks[key] = max(found, self._peaks.get(key, 0.0))
            self._known.add((dtype, width, tokens, threads))
        return self._peaks[key]

    def model(self, name: str) -> Checkpoint:
        """A model; the last one is kept, because rows of one model follow each other."""
        if self._model is None or self._model.card.name != name:
            self._model = checkpoint.load(name)
        return self._model


def attempt(
    case: Case,
    lab: Lab,
    *,
    seconds: float,
    note: Callable[[str], None] = lambda _text: None,
    model: Checkpoint | None = None,
    alter: Callable[[Encoder], torch.nn.Module] = lambda encoder: encoder,
) -> Result:
    """Measure a case; whatever stops it becomes the row's error, so that the rows after it are measured.

    Args:
        case: What to measure.
        lab: Where.
        seconds: Time of the row.
        note: Told when others use the device, and of a failure.
        model: The weights; None: random ones of the case's version and size.
        alter: As for ``build_encoder``.
    """
    timing.forget(lab.device)
    busy = devices.look(lab.device)
    if busy.text:
        note(busy.text)
    common = {"others_busy": busy.others, "torch": devices.version_of("torch"), "commit": devices.commit()}
    try:
        with threads_of(case.threads):
            model = model or lab.model(case.model)
            built = build_encoder(case, lab.device, model, alter=alter)
            measured = _measure(case, built, model, lab=lab, seconds=seconds)
    except Exception as err:  # noqa: BLE001 - out of memory, a dtype without kernels, a compiler that fails: all are results
        note(f"failed: {reason(err)}")
        measured = {"error": reason(err)}
    return Result(**(common | measured), measured=devices.now())  # type: ignore[arg-type]


def reason(err: BaseException) -> str:
    r"""An error in one short line: the first of torch's long ones, and the next where the first only announces it.

    >>> reason(RuntimeError("backend='inductor' raised:\nSyntaxError: x\n\nmore"))
    "RuntimeError: backend='inductor' raised: SyntaxError: x"
    """
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    count = 2 if lines and lines[0].endswith(":") else 1
    return f"{type(err).__name__}: {' '.join(lines[:count])}"[:300]


def _measure(case: Case, built: Built, model: Checkpoint, *, lab: Lab, seconds: float) -> dict[str, object]:
    place, card = lab.device, model.card
    timing.warm(built.run, place)
    peak = timing.peak_bytes(built.run, place, held=built.held)
    spread = timing.passes(built.run, place, seconds=seconds)
    tokens = case.batch * flops.tokens_per_window(card, case.grid, case.periods, sensors=case.sensor_names)
    gemm = lab.peak(devices.dtype_of(case.precision, place), width=card.token_width, tokens=tokens)
    return rows.figures(case, card, pass_s=spread.median, gemm=gemm) | {
        "peak_mb": peak / 1e6,
        "build_s": built.build_s,
        "compile_s": built.compile_s,
        "pass_s": spread.median,
        "pass_low_s": spread.low,
        "pass_high_s": spread.high,
        "passes": spread.count,
        "kernel": built.kernel,
    }


def build_encoder(
    case: Case,
    place: torch.device,
    model: Checkpoint,
    *,
    alter: Callable[[Encoder], torch.nn.Module] = lambda encoder: encoder,
) -> Built:
    """Build, and compile if the case says so.

    Args:
        case: The shape, precision and kernel.
        place: The device.
        model: The weights; may be another model than the case's version and size name.
        alter: Changes the encoder before it goes to the device.

    Raises:
        DeviceError: The attention kernel is not to be had.
        ConfigError: Window and patch do not fit.
    """
    begin = time.perf_counter()
    dtype = devices.dtype_of(case.precision, place)
    cast = case.precision == "autocast"
    kernel = kernel_of(case, model, place)
    encoder = Encoder(
        model,
        window_px=(case.window_px, case.window_px),
        patch_px=case.patch_px,
        dates=DATES[: case.periods],
        sensors=case.sensor_names,
        dtype=torch.float32 if cast else dtype,
        halves=True if case.compiled or cast else None,  # pairs turn as complex numbers, which bfloat16 lacks
        attention=kernel,
    )
    module = alter(encoder.eval()).to(place)
    pixels = pixels_of(case, model, place)
    run = session.compiled(module, place, width=model.config.dims) if case.compiled else module

    def call() -> torch.Tensor:
        with torch.inference_mode(), casting(place, dtype if cast else None):
            out: torch.Tensor = run(pixels)
        return out

    timing.synchronise(place)
    build_s = time.perf_counter() - begin
    return Built(
        run=call,
        pixels=pixels,
        kernel=attention.named(kernel),
        held=bytes_of(module) + sum(part.nbytes for part in pixels),
        build_s=build_s,
        compile_s=first_call(call, place) if case.compiled else None,
    )


def kernel_of(case: Case, model: Checkpoint, place: torch.device) -> str:
    """The attention kernel of a case: as asked for, or the fastest on this shape.

    Raises:
        DeviceError: The kernel that was asked for is not to be had here.
    """
    card, dtype = model.card, devices.dtype_of(case.precision, place)
    width = card.token_width // card.heads
    if case.attention == "auto":
        tokens = flops.tokens_per_window(card, case.grid, case.periods, sensors=case.sensor_names)
        count = min(tokens, session.PROBE_TOKENS)
        return attention.choose(place, dtype, heads=card.heads, head_dim=width, tokens=count, windows=case.batch)[0]
    have = attention.available(place, dtype, width)
    if case.attention not in have:
        raise DeviceError(f"attention kernel {case.attention} is not to be had for {dtype}, heads of {width}: {have}")
    return case.attention


def pixels_of(case: Case, model: Checkpoint, place: torch.device) -> tuple[torch.Tensor, ...]:
    """Random pixels as they are after normalising, (window, time, band, row, col) float32, one per sensor."""
    generator = torch.Generator().manual_seed(0)
    side = case.window_px
    shapes = ((case.batch, case.periods, len(model.config.bands(name)), side, side) for name in case.sensor_names)
    return tuple((torch.randn(shape, generator=generator) * 0.2 + 0.4).to(place) for shape in shapes)


def first_call(call: Callable[[], object], place: torch.device) -> float:
    """Seconds of the call that compiles, with the caches on disk turned off: what a fresh machine waits for."""
    from torch._inductor import config  # noqa: PLC0415

    begin = time.perf_counter()
    with config.patch(force_disable_caches=True), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="dynamo_pgo force disabled")  # it is what we want
        call()
        timing.synchronise(place)
    return time.perf_counter() - begin


def casting(place: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """Autocast to a dtype; None: nothing."""
    return contextlib.nullcontext() if dtype is None else torch.autocast(place.type, dtype)


def bytes_of(module: torch.nn.Module) -> int:
    """Bytes of all weights and tables of a module."""
    return sum(t.nbytes for t in (*module.parameters(), *module.buffers()))


@contextlib.contextmanager
def threads_of(count: int) -> Iterator[None]:
    """Set torch's threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
