"""From settings to a plan on this machine: model card, numerics class, calibration, prices, then the planner.

The one place where the planner meets the encoder: the planner itself is told all of this and imports no torch.
"""

from __future__ import annotations

import importlib.metadata
import logging
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import numpy as np
import psutil

from pipeline.errors import ConfigError, InvalidInputError
from pipeline.plan import domains, estimate, flops, planner, windows
from pipeline.plan.periods import periods_of
from pipeline.plan.ramp import halo_of, ramps_of
from pipeline.plan.trained import trained_side
from pipeline.read import colours
from pipeline.read.rules import rules_of
from pipeline.run.folder import access_of
from pipeline.run.map_layers import MapHead, no_classes, wanted_bands
from pipeline.types import Calibration, GridSpec, ModelCard, Numerics, Period, Plan
from pipeline.write import layout, preview
from pipeline.write.place import place_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from pipeline.config import EncodeSettings, InputSettings, Settings
    from pipeline.encode.checkpoint import Checkpoint

log = logging.getLogger(__name__)

ABSOLUTE = ("v1", "v1.1")
"""Versions whose positions are added to the tokens: vectors depend on the place in the window; no blending repairs
that."""

STRIPES = "warning: {version} adds positions to its tokens, so its vectors keep faint stripes of the window lattice"
S2_ONLY = ("sentinel2_l2a",)
CALIBRATION_PERIODS = 3
PROVISIONAL = f"packaged simulated sample, {CALIBRATION_PERIODS} periods, float32"
"""What a provisional calibration says about where it comes from."""
CALIBRATION_PX = 96
"""Largest side of a calibration window: every simulated place holds at least one."""
SMALLER = 0.9
"""Share of the trained side down to which a window may shrink so that another one fits beside it."""
CALIBRATION_WINDOWS = 4
"""Windows per simulated place and axis at most: bounds the cost at patch 1."""
PROBE_FLOPS = 40e9
"""A forward pass up to this size is timed to price the plan; above it the rates table is used."""


def prepare(
    settings: Settings, *, now: datetime | None = None, note: Callable[[str], None] = lambda _text: None
) -> Plan:
    """Make a plan on this machine and write its folder.

    Args:
        settings: Everything the user said; ``model`` and ``output`` are required.
        now: UTC now; None reads the clock.
        note: Called with a line of text before each slow step.

    Raises:
        InvalidInputError: Area, dates or settings are wrong.
        CheckpointError: The model's files cannot be used.
        NoDataError: No scene at all.
        OutputError: The output holds another plan.
    """
    from pipeline.encode import checkpoint, session  # noqa: PLC0415
    from pipeline.run import joining  # noqa: PLC0415

    if not settings.model:
        raise ConfigError("no model: --model FOLDER, FILE, owner/name of Hugging Face, or random:v1.2-nano:0")
    if not settings.output:
        raise ConfigError("no output folder: --output DIR")
    now = now or datetime.now(UTC)
    settings = _with_absolute_paths(settings)
    periods = periods_of(settings, today=now.date())
    note(f"reading the model {settings.model}")
    model = checkpoint.load(str(settings.model), output=settings.encode.output)
    device = session.pick_device(settings.encode)
    tile_px = tile_px_of(settings, device=device, stitch=stitching(settings.encode, version=model.card.version))
    calibration = _calibration(settings, model, note=note)
    spec, text = grid_of(
        settings, model.card, periods=len(periods), tile_px=tile_px, calibration=calibration, device=device
    )
    if text:
        note(text)
    mask = checked_reading(settings, device=device)
    numerics = session.settle(
        settings.encode,
        card=model.card,
        grid=spec,
        periods=len(periods),
        sensors=settings.inputs.sensors,
        kept=_kept_numerics(settings, card=model.card),
    )
    heads = load_heads(settings, card=model.card, calibration=calibration)
    basis = planner.Basis(
        grid=spec,
        model=model.card,
        numerics=numerics,
        calibration=calibration,
        heads=(
            *(pair for head in heads for pair in head.fingerprints),
            *_instability(settings, spec, calibration),
        ),
        rate=_rate(settings, model, spec=spec, periods=periods, numerics=numerics),
        mask=mask,
        layer_bytes=sum(
            np.dtype(layer.dtype).itemsize
            for layer in (
                *(layer for head in heads for layer in head.layers),
                *layout.instability_layers(unsure_maps(settings)),
            )
            if not layer.classes
        ),
    )
    plan = planner.make_plan(settings, basis, now=now, held=held_blocks(str(settings.output)), note=note)
    check_places(plan)
    planner.refuse_other(plan, Path(plan.output) / planner.PLAN_FOLDER)  # says more than the store could
    said = joining.check(plan, heads=heads)
    if said:
        note(said)
    planner.save_plan(plan)
    return plan


def checked_reading(settings: Settings, *, device: str) -> str:
    """Make sure that what shall read is installed, before anything is planned with it; the cloud mask's name.

    Raises:
        ConfigError: The async reader or the cloud mask is missing; the message says how to get it.
    """
    from pipeline.read import async_geotiff  # noqa: PLC0415
    from pipeline.read.cloudmask import OmniCloudMask  # noqa: PLC0415

    if settings.inputs.reader == async_geotiff.NAME:
        async_geotiff.require()
    masked = any(rule.how.order == "mask" for rule in rules_of(settings.inputs))
    return OmniCloudMask(device=device).name if masked else ""


def check_places(plan: Plan) -> None:
    """Refuse files that a run may not open, by the text of their addresses; one file of every host is enough.

    Raises:
        InvalidInputError: A place is not allowed; names the item and band.
    """
    access, seen = access_of(plan), set()
    for scene in plan.scenes:
        for asset in scene.assets:
            parts = urlsplit(asset.href)
            place = (parts.scheme, parts.netloc) if parts.netloc else asset.href
            if place in seen:
                continue
            seen.add(place)
            try:
                access.check(asset.href)
            except InvalidInputError as err:
                raise InvalidInputError(f"item {scene.id}, band {asset.band}: {err}") from None


def _with_absolute_paths(settings: Settings) -> Settings:
    """Local paths made absolute, so that the plan runs from any folder."""

    def absolute(text: str) -> str:
        return str(Path(text).resolve()) if text and Path(text).exists() else text

    maps = tuple(m.model_copy(update={"head": absolute(m.head)}) for m in settings.maps)
    inputs = _with_absolute_catalogs(settings.inputs, absolute)
    account = settings.account.model_copy(update={"prices": absolute(settings.account.prices)})
    model = absolute(str(settings.model))
    place = settings.store.path  # a store that shall be made does not exist yet
    path = str(place_of(place)) if place else ""
    store = settings.store.model_copy(update={"path": path})
    settings = settings.model_copy(update={"store": store})
    return settings.model_copy(update={"maps": maps, "inputs": inputs, "account": account, "model": model})


def _with_absolute_catalogs(inputs: InputSettings, absolute: Callable[[str], str]) -> InputSettings:
    def every(spec: str) -> str:
        return absolute(spec) if Path(spec).exists() else ",".join(absolute(part.strip()) for part in spec.split(","))

    fields = ("sentinel2", "sentinel1", "landsat")
    sections = {name: getattr(inputs, name) for name in fields}
    own = {name: part.model_copy(update={"catalog": every(part.catalog)}) for name, part in sections.items()}
    return inputs.model_copy(update={"catalog": every(inputs.catalog)} | own)


def unsure_maps(settings: Settings) -> tuple[str, ...]:
    """Names of the maps whose instability is asked for."""
    return tuple(m.name for m in settings.maps if m.instability)


def true_colour(settings: Settings) -> bool:
    """Whether the store keeps true colours: asked for, and a sensor has them."""
    return settings.store.true_colour and not set(settings.inputs.sensors).isdisjoint(colours.BANDS)


def _instability(settings: Settings, spec: GridSpec, calibration: Calibration) -> tuple[tuple[str, str], ...]:
    """(layer, version) of the layers that say how sure the windows are: they belong to what a tile is asked for.

    Raises:
        ConfigError: The windows do not overlap, or the quantiser has no frozen step.
    """
    from pipeline.encode import instability  # noqa: PLC0415

    layers = layout.instability_layers(unsure_maps(settings))
    if not layers:
        return ()
    instability.check(spec, calibration)
    return tuple((layer.name, instability.VERSION) for layer in layers)


def load_heads(settings: Settings, *, card: ModelCard, calibration: Calibration) -> tuple[MapHead, ...]:
    """What computes ``maps:``, each checked to belong to this model and calibration.

    Raises:
        InvalidInputError: A file is missing, damaged or of another store.
        ConfigError: A regression with bands of classes, or a map with the name of another map's band.
    """
    from pipeline.maps.heads import load  # noqa: PLC0415

    heads = tuple(MapHead(name=m.name, head=load(m.head), bands=wanted_bands(m)) for m in settings.maps)
    unsure = unsure_maps(settings)
    for head in heads:
        head.head.check(calibration_hash=calibration.hash, model_sha256=card.sha256)
        if head.name in unsure and not head.has_classes:
            raise ConfigError(no_classes(head.name, ("instability",)))
    layers = [layer.name for head in heads for layer in head.layers]
    layers += [layer.name for layer in layout.instability_layers(unsure)]
    twice = sorted({name for name in layers if layers.count(name) > 1})
    if twice:
        raise ConfigError(f"maps are called {', '.join(twice)}, as a band of another map: rename them")
    return heads


def encoder_threads(settings: Settings, *, device: str) -> int:
    """Single-threaded encoders that share a tile: one per core; one for a GPU."""
    if device == "cuda":
        return 1
    return cores() if settings.run.encoder_threads == "auto" else settings.run.encoder_threads


def cores() -> int:
    """Cores that this process may use."""
    process = psutil.Process()
    return len(process.cpu_affinity()) if hasattr(process, "cpu_affinity") else psutil.cpu_count() or 1


def held_blocks(output: str) -> dict[str, tuple[tuple[int, int], ...]]:
    """Blocks already committed in ``output``, by tile id: a rewritten tile must keep them."""
    from pipeline.write.commit import Commits  # noqa: PLC0415

    if not Path(output).is_dir():
        return {}
    held: dict[str, set[tuple[int, int]]] = {}
    for receipt in Commits(Path(output)).receipts():
        held.setdefault(receipt.tile_id, set()).update(receipt.blocks)
    return {tile: tuple(sorted(blocks)) for tile, blocks in held.items()}


def grid_of(
    settings: Settings, card: ModelCard, *, periods: int, tile_px: int, calibration: Calibration | None, device: str
) -> tuple[GridSpec, str]:
    """The lattice that the settings mean for a model, and what to tell the user about the choice.

    Args:
        settings: What the user said.
        card: The model.
        periods: Time steps.
        tile_px: Side of a tile.
        calibration: What the store is quantised by; what was measured about seams is in there.
        device: ``cpu`` or ``cuda``.

    Raises:
        ConfigError: The settings do not fit the model.
    """
    encode, sensors = settings.encode, settings.inputs.sensors
    stitch = stitching(encode, version=card.version)
    _check_stitching(encode, stitch, card=card)
    if stitch == "neighbourhood":
        return _domains_of(settings, card, periods=periods, tile_px=tile_px, calibration=calibration, device=device)
    window_px, margin_px, overlap_px = (
        None if value == "auto" else value for value in (encode.window_px, encode.margin_px, encode.overlap_px)
    )
    said = ""
    if stitch == "blend" and overlap_px is margin_px is None:
        window_px, overlap_px, said = _ramp(settings, card, periods=periods, calibration=calibration)
    window, overlap, text = windows.settle(
        card,
        patch_px=encode.patch_px,
        periods=periods,
        window_px=window_px,
        margin_px=margin_px,
        overlap_px=overlap_px,
        stitch=stitch,
        sensors=sensors,
    )
    spec = GridSpec(
        patch_px=encode.patch_px,
        window_px=window,
        overlap_px=overlap,
        tile_px=tile_px,
        token_px=encode.token_px(card.dims if calibration is None else calibration.bands),
        stitch=stitch,
        dense=encode.dense,
    )
    stripes = STRIPES.format(version=card.version) if card.version in ABSOLUTE else ""
    return spec, "\n".join(part for part in (text, said, stripes, _gaps(settings, spec)) if part)


def _gaps(settings: Settings, spec: GridSpec) -> str:
    """Warnings about windows that overlap too little for what is asked of them."""
    found = []
    if not spec.overlap_px:
        found.append(
            "warning: windows do not overlap, so their borders will show: use encode.ramp=1 or more, or "
            "encode.stitch=neighbourhood (v1.2, v1.3)"
        )
    if unsure_maps(settings) and spec.stitch == "blend" and 2 * spec.overlap_px < spec.window_px:
        once = ((spec.window_px - 2 * spec.overlap_px) / spec.stride_px) ** 2
        found.append(
            f"warning: {once:.0%} of the pixels lie in one window only and get no instability: use "
            f"encode.overlap_px={-(-spec.window_px // 2 // spec.patch_px) * spec.patch_px} with "
            f"encode.window_px={spec.window_px}"
        )
    return "\n".join(found)


WINDOWS = ("window_px", "overlap_px", "margin_px", "ramp")
BOXES = ("box_px", "core_px", "halo_px")
USELESS = {"neighbourhood": (*WINDOWS, "batch_windows"), "blend": BOXES, "centre": (*BOXES, "ramp")}
"""Settings that mean nothing for a way of stitching."""


def stitching(encode: EncodeSettings, *, version: str) -> str:
    """How a field is made for a version: as set, else what fits it.

    Boxes or windows that the user sets say which of the two is meant.
    """
    if encode.stitch != "auto":
        return encode.stitch
    if version in ABSOLUTE:
        return "centre"
    if any(getattr(encode, name) != "auto" for name in BOXES):
        return "neighbourhood"
    windowed = any(getattr(encode, name) != "auto" for name in WINDOWS)
    return "neighbourhood" if version == "v1.3" and not windowed else "blend"


def _check_stitching(encode: EncodeSettings, stitch: str, *, card: ModelCard) -> None:
    """Refuse settings that would be dropped without a word."""
    useless = [f"encode.{name}" for name in USELESS[stitch] if getattr(encode, name) != "auto"]
    if useless:
        raise ConfigError(
            f"{' and '.join(useless)} would do nothing with encode.stitch={stitch}, which {card.version} gets here: "
            "set encode.stitch, or leave them out"
        )
    if encode.dense > 1 and card.version in ABSOLUTE:
        raise ConfigError(
            f"encode.dense={encode.dense} needs rotary positions; {card.version} adds the place in a window to its "
            "tokens, which shifts would show as a pattern: use encode.dense=1"
        )


def _ramp(
    settings: Settings, card: ModelCard, *, periods: int, calibration: Calibration | None
) -> tuple[int | None, int | None, str]:
    """(window in pixels, overlap in pixels, what to say) of a blend without an overlap or margin of the user's.

    A ramp that was measured belongs to its window, which is taken with it unless the user set one.
    """
    encode, sensors = settings.encode, settings.inputs.sensors
    patch, window = encode.patch_px, None if encode.window_px == "auto" else encode.window_px
    if encode.ramp != "auto":
        return window, encode.ramp * patch, ""
    ramps = {} if calibration is None else ramps_of(calibration, patch, periods, sensors)
    if window is None and ramps:
        usual = windows.choose(card, patch_px=patch, periods=periods, sensors=sensors).chosen.window_px
        window = usual if usual in ramps else max(ramps, key=lambda side: (ramps[side], side))
    if window not in ramps:
        return window, None, _unmeasured(calibration, periods)
    tokens, most = ramps[window], max(1, window // patch // 2)
    if tokens <= most:
        return (
            window,
            tokens * patch,
            f"ramp of {_tokens(tokens)}, from the seams that were measured (store.calibration)",
        )
    said = (
        f"the seams that were measured (store.calibration) ask for a ramp of {tokens} tokens; it is cut to {most}, "
        "half of a window: a step may be seen"
    )
    return window, most * patch, said


def _tokens(count: int) -> str:
    return "1 token" if count == 1 else f"{count} tokens"


def _unmeasured(calibration: Calibration | None, periods: int) -> str:
    """What to say where a calibration holds seams, but none of this shape."""
    if calibration is None or not calibration.seams:
        return ""
    held = ", ".join(
        f"T={p.periods} {f'window {p.window_px}' if p.window_px else f'box {p.box_px}'} px" for p in calibration.seams
    )
    return f"store.calibration holds seams of {held}, none of this plan's (T={periods}): the usual values are taken"


def _domains_of(
    settings: Settings, card: ModelCard, *, periods: int, tile_px: int, calibration: Calibration | None, device: str
) -> tuple[GridSpec, str]:
    encode, sensors = settings.encode, settings.inputs.sensors
    said = ""
    box = domains.default_box(card.version, encode.patch_px) if encode.box_px == "auto" else encode.box_px
    halo = encode.halo_px if isinstance(encode.halo_px, int) else None
    if encode.halo_px == "auto" and calibration is not None:
        halo = halo_of(calibration, encode.patch_px, periods, sensors, box)
        said = _unmeasured(calibration, periods) if halo is None else ""
    spec = domains.settle_domain(
        card,
        patch_px=encode.patch_px,
        tile_px=tile_px,
        device=device,
        token_px=encode.token_px(card.dims if calibration is None else calibration.bands),
        box_px=box,
        core_px=None if encode.core_px == "auto" else encode.core_px,
        halo_px=halo,
        dense=encode.dense,
        per_cell=periods * sum(len(sets) for sets in flops.band_sets(card, sensors)),
    )
    text = domains.explain(card, spec, periods, sensors=sensors)
    return spec, "\n".join(part for part in (text, said) if part)


def tile_px_of(settings: Settings, *, device: str, stitch: str) -> int:
    """Side of a tile: as set, else what fits the device and the way of stitching."""
    if settings.store.tile_px != "auto":
        return settings.store.tile_px
    if device == "cuda":
        return 2048
    return domains.TILE_PX if stitch == "neighbourhood" else 512


def _calibration(settings: Settings, model: Checkpoint, *, note: Callable[[str], None]) -> Calibration:
    """What the store is quantised by: from the file named, or made here as ``store.quantiser`` says.

    Raises:
        ConfigError: The file does not fit the model or the settings, or the quantiser does not fit the model.
    """
    from pipeline.encode import calibration as making  # noqa: PLC0415

    sensors, patch_px, quantiser = settings.inputs.sensors, settings.encode.patch_px, settings.store.quantiser
    if settings.store.calibration != "auto":
        given = making.load_calibration(
            settings.store.calibration, card=model.card, patch_px=patch_px, sensors=sensors, quantiser=quantiser
        )
        _check_basis(given, settings.store.calibration)
        return given
    if not making.needs_sample(quantiser):
        return making.formula(quantiser, card=model.card, patch_px=patch_px, sensors=sensors)
    making.method_of(quantiser, dims=model.card.dims)
    kept = _kept_calibration(
        str(settings.output), card=model.card, patch_px=patch_px, sensors=sensors, quantiser=quantiser
    )
    if kept is not None:
        return kept
    note("deriving a provisional int8 calibration from the weights and the packaged simulated sample")
    return provisional(model, patch_px=patch_px, sensors=sensors, quantiser=quantiser)


def _check_basis(calibration: Calibration, path: str) -> None:
    """Refuse a file whose frozen colours would stop the pictures, when everything has been computed.

    Raises:
        ConfigError: The colours are damaged, or of other vectors.
    """
    if not calibration.basis:
        return
    try:
        dims = len(preview.Basis.from_json(calibration.basis).mean)
    except InvalidInputError as err:
        raise ConfigError(f"calibration {path}: {err}: make it anew with 'earthpress calibrate'") from err
    if dims != calibration.bands:
        raise ConfigError(
            f"calibration {path} has colours of {dims} dimensions, its vectors have {calibration.bands}: make it anew "
            "with 'earthpress calibrate'"
        )


def _kept_calibration(
    output: str, *, card: ModelCard, patch_px: int, sensors: tuple[str, ...], quantiser: str
) -> Calibration | None:
    """The provisional calibration of the plan that ``output`` holds, if it is of this model, patch and the like."""
    plan = _kept_plan(output, card=card)
    if plan is None or not plan.calibration.provisional:
        return None
    kept = plan.calibration
    wanted = (card.sha256, patch_px, card.output, sensors, quantiser)
    return kept if (kept.model_sha256, kept.patch_px, kept.output, kept.sensors, kept.quantiser) == wanted else None


def _kept_numerics(settings: Settings, *, card: ModelCard) -> Numerics | None:
    """The numerics class of the output's plan or of the store it joins: what was measured is not measured again."""
    from pipeline.run import joining  # noqa: PLC0415

    plan = _kept_plan(str(settings.output), card=card)
    return plan.numerics if plan else joining.kept_numerics(settings.store.path, card=card)


def _kept_plan(output: str, *, card: ModelCard) -> Plan | None:
    try:
        plan = planner.load_plan(output)
    except InvalidInputError:
        return None
    return plan if (plan.model.sha256, plan.model.config) == (card.sha256, card.config) else None


def provisional(
    model: Checkpoint, *, patch_px: int, sensors: tuple[str, ...] = S2_ONLY, quantiser: str = "linear"
) -> Calibration:
    """A calibration from the weights and the packaged simulated sample only, always by the same float32 encoder.

    Independent of the request: fixed dates, fixed windows, eager float32 on the CPU, so that every store of one model
    and patch gets the same scales. Components of ``pca:K`` may differ in their last digit on another machine: stores
    that several machines write need a file.

    Raises:
        ConfigError: More components than dimensions.
    """
    from pipeline.encode import calibration as making  # noqa: PLC0415

    samples = [
        making.Sample.of([vectors], dims=model.card.dims)
        for vectors in sample_vectors(model, patch_px=patch_px, sensors=sensors)
    ]
    return making.calibrate(
        making.Sample.merged(samples),
        quantiser,
        card=model.card,
        patch_px=patch_px,
        source=PROVISIONAL,
        provisional=True,
        sensors=sensors,
    )


def sample_vectors(model: Checkpoint, *, patch_px: int, sensors: tuple[str, ...]) -> Iterator[NDArray[np.float32]]:
    """(sample, dim) float32 vectors of every place of the packaged simulated sample, in its order."""
    from pipeline.encode.session import Session  # noqa: PLC0415
    from pipeline.simulate.stacks import calibration_stack_sets  # noqa: PLC0415

    start = datetime(2024, 4, 1, tzinfo=UTC)
    step = timedelta(days=30)
    periods = tuple(
        Period(index=i, start=start + step * i, end=start + step * (i + 1)) for i in range(CALIBRATION_PERIODS)
    )
    spec = _calibration_grid(trained_side(model.card.version, CALIBRATION_PERIODS), patch_px)
    encoder = Session(model, grid=spec, periods=periods, numerics=_plain_numerics(), threads=1, sensors=sensors)
    for stacks in calibration_stack_sets(periods, sensors=sensors):
        box, window = stacks[0].box.pad(-spec.embed_px), spec.window_px
        count = min(CALIBRATION_WINDOWS, box.height // window)
        origins = [(box.row + i * window, box.col + j * window) for i in range(count) for j in range(count)]
        fields = encoder.encode(stacks, origins)
        yield encoder.head(fields.values).numpy()[fields.valid]


def _calibration_grid(trained: int, patch_px: int) -> GridSpec:
    """Windows inside a simulated place: as large as trained, or a little smaller where one more fits then."""
    spec = GridSpec(patch_px=patch_px, window_px=patch_px, overlap_px=0, tile_px=256)
    cells = CALIBRATION_PX // patch_px - 2 * spec.embed_px // patch_px
    side = min(trained, cells)
    more = cells // (cells // side + 1)
    return replace(spec, window_px=patch_px * (more if more >= SMALLER * side else side))


def _plain_numerics() -> Numerics:
    from pipeline.encode import session  # noqa: PLC0415

    return Numerics(
        device="cpu",
        device_name=session.device_name("cpu"),
        dtype="float32",
        compiled=False,
        batch_windows=1,
        torch=importlib.metadata.version("torch").partition("+")[0],
    )


def _rate(
    settings: Settings, model: Checkpoint, *, spec: GridSpec, periods: tuple[Period, ...], numerics: Numerics
) -> estimate.Rate:
    """Speed and price: measured by one small forward pass where that is cheap, else from the rates table."""
    from pipeline.account import prices  # noqa: PLC0415

    row = prices.load(settings.account.prices).row(settings.account.instance)
    count, sensors = encoder_threads(settings, device=numerics.device), settings.inputs.sensors
    rate = replace(
        estimate.rate_for(numerics, price=row, encoders=count), encoder_bytes=_encoder_bytes(settings, model, numerics)
    )
    work = estimate.flops_per_window(model.card, spec, len(periods), sensors=sensors) * numerics.batch_windows
    if work > PROBE_FLOPS or numerics.compiled:
        return rate
    measured = _measured_s(model, spec=spec, periods=periods, numerics=numerics, sensors=sensors)
    return replace(rate, flops_per_s=work / measured)


def _encoder_bytes(settings: Settings, model: Checkpoint, numerics: Numerics) -> int:
    """Private memory of an encoder process if a long run will use processes, else 0."""
    from pipeline.encode import workers  # noqa: PLC0415

    count = encoder_threads(settings, device=numerics.device)
    processes = workers.wanted(settings.run.encoders, device=numerics.device, workers=count, core_s=float("inf"))
    return workers.bytes_per_worker(model.card, compiled=numerics.compiled) if processes else 0


def _measured_s(
    model: Checkpoint,
    *,
    spec: GridSpec,
    periods: tuple[Period, ...],
    numerics: Numerics,
    sensors: tuple[str, ...],
) -> float:
    """Seconds of one forward pass on one thread."""
    from pipeline.encode.session import Session  # noqa: PLC0415

    encoder = Session(model, grid=spec, periods=periods, numerics=numerics, threads=1, sensors=sensors)
    encoder.warm_up()
    return max(encoder.warm_up(), 1e-9)
