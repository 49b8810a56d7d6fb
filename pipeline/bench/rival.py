"""The same work by the reference package, pass after pass beside ours: how many times faster is ours?

The package is optional (``pip install olmoearth-pretrain-minimal``). It gets our weights, our pixels and our dates, so
the two fields can be compared, and is timed at its best: inputs prepared beforehand, its fast path without masks, eager
and through torch.compile, float32, under autocast and, where its resizing allows it (patch 8), with bfloat16 weights.
"""

from __future__ import annotations

import importlib
import warnings
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from pipeline.bench import device as devices
from pipeline.bench import encoder, timing
from pipeline.bench.rows import Case, DuelCase, DuelResult, Request
from pipeline.bench.table import Files, Table
from pipeline.encode.patch import KERNEL_PX
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pipeline.encode.checkpoint import Checkpoint

PACKAGE = "olmoearth-pretrain-minimal"
MODULE = "olmoearth_pretrain_minimal"


def bench(
    request: Request,
    *,
    device: str = "auto",
    threads: int = 0,
    seconds: float = 30.0,
    folder: Path,
    rival_compiled: tuple[bool, ...] = (False, True),
    note: Callable[[str], None] = lambda _text: None,
) -> tuple[tuple[DuelCase, DuelResult], ...]:
    """Measure every case of a request beside the reference; arguments, skipping and errors as ``encoder.bench``.

    Args:
        request: What to measure.
        device: ``auto``, ``cpu`` or ``cuda``.
        threads: torch threads of both.
        seconds: Time of a row; five pairs of passes at least.
        folder: Where the tables are.
        rival_compiled: Whether the reference runs eager, compiled, or each in a row of its own.
        note: Called with a line of text before each row.

    Raises:
        ConfigError: The package is not installed.
    """
    require()
    place, wanted = encoder.start(request, device=device, threads=threads, seconds=seconds)
    duels = tuple(duel for case in wanted for duel in duels_of(case, rival_compiled))
    files = Files(folder=folder, device=devices.name_of(place))
    table = Table(files.csv("vs_reference"), DuelCase, DuelResult)
    todo = [duel for duel in duels if duel not in table]
    note(f"{len(todo)} rows beside {PACKAGE} to measure, {len(duels) - len(todo)} are in {table.path}")
    if todo:
        devices.write_sidecar(files, devices.describe(place))
    lab = encoder.Lab(place)
    for number, duel in enumerate(todo, start=1):
        how = f"{duel.rival_precision}{' compiled' if duel.rival_compiled else ''}"
        note(f"{number}/{len(todo)} {duel.label()} beside the reference in {how}")
        table.append(duel, attempt(duel, lab, seconds=seconds, note=note))
    return tuple((duel, table[duel]) for duel in duels)


def require() -> Any:
    """The package.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of what it imports
            return importlib.import_module(MODULE)
    except ImportError as err:
        raise ConfigError(f"--vs-reference needs the reference package ({err}): pip install {PACKAGE}") from err


def duels_of(case: Case, rival_compiled: tuple[bool, ...]) -> tuple[DuelCase, ...]:
    """The ways in which the reference may compete with a case."""
    if case.precision == "fp32":
        precisions: tuple[str, ...] = ("fp32",)
    else:
        # with weights in bfloat16 its resizing fails: no kernel of that dtype
        cast = case.precision == "bf16" and case.patch_px == KERNEL_PX
        precisions = ("autocast", "bf16") if cast else ("autocast",)
    return tuple(
        DuelCase(**asdict(case), rival_precision=precision, rival_compiled=how)
        for precision in precisions
        for how in rival_compiled
    )


def attempt(
    duel: DuelCase,
    lab: encoder.Lab,
    *,
    seconds: float,
    note: Callable[[str], None] = lambda _text: None,
    rival: Callable[[DuelCase, Checkpoint, encoder.Built, torch.device], Callable[[], torch.Tensor]] | None = None,
) -> DuelResult:
    """Measure a pair; whatever stops it becomes the row's error.

    Args:
        duel: Our case and how the reference runs.
        lab: Where.
        seconds: Time of the row.
        note: Told when others use the device.
        rival: Makes the other's pass from our model and pixels; None: the reference package.
    """
    timing.forget(lab.device)
    busy = devices.look(lab.device)
    if busy.text:
        note(busy.text)
    common: dict[str, Any] = {
        "rival": devices.version_of(PACKAGE),
        "others_busy": busy.others,
        "torch": devices.version_of("torch"),
        "commit": devices.commit(),
    }
    try:
        with encoder.threads_of(duel.threads):
            measured = _measure(duel, lab, seconds=seconds, rival=rival or reference)
    except Exception as err:  # noqa: BLE001 - as in encoder.attempt: a failure is a result
        note(f"failed: {encoder.reason(err)}")
        measured = {"error": encoder.reason(err)}
    return DuelResult(**(common | measured), measured=devices.now())


def _measure(
    duel: DuelCase,
    lab: encoder.Lab,
    *,
    seconds: float,
    rival: Callable[[DuelCase, Checkpoint, encoder.Built, torch.device], Callable[[], torch.Tensor]],
) -> dict[str, Any]:
    model, place = lab.model(duel.model), lab.device
    built = encoder.build_encoder(duel, place, model)
    theirs = rival(duel, model, built, place)
    mine, other = built.run().float().clone(), theirs().float()
    difference = float((mine - other).norm() / other.norm())
    for call in (built.run, theirs):
        timing.warm(call, place)
    found = timing.duel(built.run, theirs, place, seconds=seconds)
    return {
        "images_per_s": duel.batch / found.first.median,
        "rival_images_per_s": duel.batch / found.second.median,
        "ratio": found.ratio.median,
        "ratio_low": found.ratio.low,
        "ratio_high": found.ratio.high,
        "pairs": found.ratio.count,
        "difference": difference,
        "kernel": built.kernel,
    }


def reference(
    duel: DuelCase, model: Checkpoint, built: encoder.Built, place: torch.device
) -> Callable[[], torch.Tensor]:
    """A pass of the reference over our pixels with our weights: (window, token_row, token_col, dim).

    Raises:
        ConfigError: The package is not installed, or does not take our weights.
    """
    network = reference_encoder(model, place)
    cast = devices.dtype_of("autocast", place) if duel.rival_precision == "autocast" else None
    dtype = torch.bfloat16 if duel.rival_precision == "bf16" else torch.float32
    sample = sample_of(duel, model, built.pixels, dtype=dtype)
    network = network.to(dtype)
    run: Callable[..., Any] = torch.compile(network, dynamic=False) if duel.rival_compiled else network
    pooled = model.card.output not in ("mean", "max")

    def call() -> torch.Tensor:
        with torch.inference_mode(), encoder.casting(place, cast):
            output = run(sample, patch_size=duel.patch_px, fast_pass=True)
            if pooled:
                field: torch.Tensor = output["location_tokens"]
                return field
            tokens = [getattr(output["tokens_and_masks"], name) for name in duel.sensor_names]
            # (window, row, col, time, band set, dim): the mean of each sensor, then of the sensors
            return torch.stack([part.mean(dim=(3, 4)) for part in tokens]).mean(dim=0)

    return call


def reference_encoder(model: Checkpoint, place: torch.device) -> torch.nn.Module:
    """The package's own encoder of the same version and size, holding our tensors.

    Raises:
        ConfigError: The package is not installed, or does not take our weights.
    """
    names = [sensor.name for sensor in model.config.sensors]
    whole = require().OlmoEarthPretrain_v1(
        model_size=model.card.size, model_version=model.card.version, supported_modality_names=names
    )
    network: torch.nn.Module = whole.model.encoder.eval()
    own = network.state_dict()
    # the random v1.3 has one norm for all layers of its pooler, the package's one per layer; there is one layer
    tensors = {
        name if name in own else name.replace("attention_pooler.input_norm.", "attention_pooler.input_norms.0."): value
        for name, value in model.tensors.items()
    }
    missing, unexpected = network.load_state_dict(tensors, strict=False)
    # parts that only training uses keep their own values, all others must be ours
    parts = {name.split(".")[0] for name in tensors}
    lacking = [name for name in missing if name.split(".")[0] in parts]
    if unexpected or lacking:
        names = [*unexpected, *lacking]
        raise ConfigError(f"{PACKAGE} {devices.version_of(PACKAGE)} has other tensors than ours: {names[:3]}")
    return network.to(place)


def sample_of(duel: Case, model: Checkpoint, pixels: tuple[torch.Tensor, ...], *, dtype: torch.dtype) -> Any:
    """Our pixels as the package wants them: (window, row, col, time, band), masks of zeros, day, month, year."""
    datatypes = importlib.import_module(f"{MODULE}.olmoearth_pretrain_v1.utils.datatypes")
    dates = encoder.DATES[: duel.periods]
    stamps = torch.tensor([[day.day, day.month - 1, day.year] for day in dates], device=pixels[0].device)
    inputs: dict[str, torch.Tensor] = {"timestamps": stamps.repeat(duel.batch, 1, 1)}
    for name, part in zip(duel.sensor_names, pixels, strict=True):
        inputs[name] = part.permute(0, 3, 4, 1, 2).contiguous().to(dtype)
        sets = len(model.config.sensor(name).band_sets)
        inputs[f"{name}_mask"] = torch.zeros(*inputs[name].shape[:4], sets, device=part.device)
    return datatypes.MaskedOlmoEarthSample(**inputs)
