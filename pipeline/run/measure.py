"""What ``earthpress seams`` measures of a model, on simulated places, and where that is kept; ``reach`` shares both.

The sample is fixed: the same model and shape give the same figures, without dates or names of machines in them. What a
plan reads of it (the ramp of blended windows, the halo of domains) is written into a calibration file, whose scales,
hence hash, it leaves alone.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import SENSOR_ORDER, EncodeSettings
from pipeline.errors import ConfigError, OutputError
from pipeline.plan import ramp, windows
from pipeline.plan.trained import MAX_PERIODS
from pipeline.run.prepare import ABSOLUTE, provisional
from pipeline.types import Box, Calibration, GridSpec, Period, SeamProfile
from pipeline.write import durable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import date

    from pipeline.encode.checkpoint import Checkpoint
    from pipeline.encode.rho import Place

SITES = ((0, "farmland"), (2, "river and forest"), (3, "city"), (6, "coast"))
"""(index in ``calibration_places``, name): from lively to smooth ground; seams show most on smooth ground."""
PATCHES = (1, 2, 4, 8)
"""Those of plans."""
MOST_SIDE = 64
"""Cells along the largest window or box that is measured: four times the largest grid of training."""
PERIODS = 6
"""Time steps where the user says nothing: those of the example configuration, 180 days by 30."""
OVERLAP_TOKENS = 2
"""Overlap of the centre crops that are compared: the least there is. Windows disagree most near their border, so rho is
largest here and the ramp that follows from it rather too long (nano, patch 4: rho 1.15 at 2 tokens, 1.09 at 6)."""
DIGITS = 4
UNTRAINED = "random weights: the figures show that the measurement works and say nothing about a trained model"
STRIPES = (
    "{version} adds positions to its tokens: its vectors depend on their place in the window, every step carries that "
    "pattern and no overlap repairs it, so these figures say little"
)
Rows = tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a measurement is of.

    Attributes:
        patch_px: Side of a token.
        periods: Time steps.
        sensors: What the model is fed with, in the usual order.
        output: Which vector, as ``encode.output``.
    """

    patch_px: int = 4
    periods: int = PERIODS
    sensors: tuple[str, ...] = ("sentinel2_l2a",)
    output: str = "auto"

    def __post_init__(self) -> None:
        unknown = [name for name in self.sensors if name not in SENSOR_ORDER]
        if unknown or not self.sensors or len(set(self.sensors)) < len(self.sensors):
            raise ConfigError(f"sensors {list(self.sensors)}: name one or more of {', '.join(SENSOR_ORDER)}, each once")
        if self.patch_px not in PATCHES or not 1 <= self.periods <= MAX_PERIODS:
            raise ConfigError(
                f"patch {self.patch_px} px must be one of {', '.join(map(str, PATCHES))} and periods {self.periods} "
                f"1 to {MAX_PERIODS}"
            )

    @classmethod
    def of(cls, *, patch_px: int, periods: int, sensors: str, output: str = "auto") -> Shape:
        """From the command line: ``sensors`` separated by commas, in any order.

        Raises:
            ConfigError: An unknown sensor, or impossible numbers.
        """
        named = {word.strip() for word in sensors.split(",")}
        ordered = (*(name for name in SENSOR_ORDER if name in named), *sorted(named - set(SENSOR_ORDER)))
        return cls(patch_px=patch_px, periods=periods, sensors=ordered, output=output)

    @property
    def time_axis(self) -> tuple[Period, ...]:
        """30 days each, from April of the year of the calibration sample."""
        start, step = datetime(2024, 4, 1, tzinfo=UTC), timedelta(days=30)
        return tuple(Period(index=i, start=start + step * i, end=start + step * (i + 1)) for i in range(self.periods))

    @property
    def dates(self) -> tuple[date, ...]:
        """Model date of each period."""
        return tuple(period.start.date() for period in self.time_axis)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seams:
    """What ``seams`` found.

    Attributes:
        model: Name of the model.
        profile: What is kept.
        places: (name, rho) of every place.
        target: Wanted score.
        ramp: Tokens that bring the mean over dimensions to the target by the law.
        ramp_dim: The same for the worst dimension.
        predicted: Score of windows blended over ``ramp`` by the law.
        blended: The same measured, worst phase, mean over places; None where such a ramp leaves nothing of the window.
        lattice: Of those blended windows: what moving the lattice still changes, share of the deviation.
        warnings: What makes the figures less than they look.
        path: File that it was written to; "" for none.
    """

    model: str
    profile: SeamProfile
    places: tuple[tuple[str, float], ...]
    target: float
    ramp: int
    ramp_dim: int
    predicted: float
    blended: float | None
    lattice: float | None
    warnings: tuple[str, ...]
    path: str

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        return asdict(self)

    @property
    def sentence(self) -> str:
        """The finding in words."""
        p, low_high = self.profile, "{:.2f} to {:.2f}".format(*self.profile.rho_range)
        checked = "too long for this window" if self.blended is None else f"measured {self.blended:.2f}"
        return (
            f"Where the centre crops of windows of {p.window_px} px meet, the embedding steps {p.rho:.2f} times as "
            f"much as inside them ({low_high} on {len(self.places)} simulated places, {p.rho_dim:.2f} in the worst "
            f"dimension); blending over {self.ramp} token{'s' * (self.ramp > 1)} ({self.ramp * p.patch_px} px) brings "
            f"that to {self.predicted:.2f} by the law ({checked})."
        )

    def table(self) -> Rows:
        """Header and rows."""
        p = self.profile
        rows = [(name, f"{rho:.3f}", str(ramp.tokens_for(rho, self.target))) for name, rho in self.places]
        mean = ("mean", f"{p.rho:.3f}", str(self.ramp))
        worst = ("worst dimension", f"{p.rho_dim:.3f}", str(self.ramp_dim))
        return (("place", "rho", f"ramp for {self.target:g}, tokens"), *rows, mean, worst)


def measure_seams(
    name: str,
    shape: Shape,
    *,
    window_px: int | None = None,
    overlap_px: int | None = None,
    target: float = ramp.TARGET,
    calibration: str | None = None,
    output: str | None = None,
    note: Callable[[str], None] = lambda _text: None,
) -> Seams:
    """Measure rho, the score of centre crops, and what ramp follows from it.

    Args:
        name: The model.
        shape: What to measure.
        window_px: Side of the windows; None: what a plan would choose.
        overlap_px: Overlap of the centre crops, an even number of tokens; None: two.
        target: Score that a ramp shall reach.
        calibration: Calibration file of this model and shape; None: the one of ``output``, or a provisional one.
        output: Calibration file to write, with the measurement in it; None: ``calibration``, if that is given.
        note: Called with a line of text before each slow step.

    Raises:
        ConfigError: The shape is impossible, or the calibration file belongs to something else.
        CheckpointError: The model's files cannot be used.
        OutputError: The file cannot be written, or holds other scales.
    """
    from pipeline.encode import checkpoint, rho  # noqa: PLC0415

    if not 1 < target < math.inf:
        raise ConfigError(f"--target {target:g} must be above 1 (the natural step), e.g. {ramp.TARGET:g}")
    check_side("--window-px", window_px, shape.patch_px)
    model = checkpoint.load(name, output=shape.output)
    path, patch = output or calibration, shape.patch_px
    kept = calibration_for(model, shape, calibration, path, note=note) if path else None
    window = (
        window_px
        or windows.choose(model.card, patch_px=patch, periods=shape.periods, sensors=shape.sensors).chosen.window_px
    )
    grid = _crops(patch, window, OVERLAP_TOKENS * patch if overlap_px is None else overlap_px)
    options: dict[str, Any] = {"dates": shape.dates, "sensors": shape.sensors, "device": device()}
    side = rho.side_tokens(replace(grid, overlap_px=0, stitch="blend")) * patch
    note(f"simulating {len(SITES)} places of {side} px")
    places = list(places_of(model, shape, side))
    note(f"encoding them on {rho.ORIGINS} lattices of windows of {window} px")
    crops = rho.Lattice(model, grid=grid, **options)
    scores = [crops.score(place) for place in places]
    profile = replace(_profile(shape, grid, scores=scores, side_px=side), target=target)
    tokens = ramp.tokens_for(profile.rho, target)
    blended = lattice = None
    if tokens <= window // patch - 2:
        note(f"encoding them again, blended over {tokens} tokens")
        lattices = rho.Lattice(model, grid=replace(grid, overlap_px=tokens * patch, stitch="blend"), **options)
        checked = [lattices.score(place) for place in places]
        blended, lattice = (_mean(values) for values in ([s.worst for s in checked], [s.lattice for s in checked]))
    if path and kept:
        save(kept.with_seams(profile), path)
    return Seams(
        model=model.card.name,
        profile=profile,
        places=tuple((site, rounded(s.line)) for (_, site), s in zip(SITES, scores, strict=True)),
        target=target,
        ramp=tokens,
        ramp_dim=ramp.tokens_for(profile.rho_dim, target),
        predicted=rounded(ramp.score(profile.rho, tokens)),
        blended=blended,
        lattice=lattice,
        warnings=warnings_of(model),
        path=path or "",
    )


def check_side(name: str, side_px: int | None, patch_px: int) -> None:
    """Refuse a side that is no multiple of the patch, or so large that measuring it would take for ever.

    Raises:
        ConfigError: It is.
    """
    most = MOST_SIDE * patch_px
    if side_px is not None and (side_px < patch_px or side_px % patch_px or side_px > most):
        raise ConfigError(f"{name} {side_px} must be a multiple of the patch of {patch_px} px, at most {most} px")


def _crops(patch: int, window: int, overlap: int) -> GridSpec:
    if overlap < 2 * patch or overlap % (2 * patch) or window % patch or window - overlap < 2 * patch:
        raise ConfigError(
            f"windows of {window} px that overlap by {overlap} px at patch {patch} px cannot be compared: the overlap "
            "must be an even number of tokens, two or more, and leave two tokens of the window"
        )
    return GridSpec(patch_px=patch, window_px=window, overlap_px=overlap, tile_px=256, stitch="centre")


def _profile(shape: Shape, grid: GridSpec, *, scores: list[Any], side_px: int) -> SeamProfile:
    lines = [s.line for s in scores]
    worst = max(_mean(values) for values in zip(*(s.dims.tolist() for s in scores), strict=True))
    return SeamProfile(
        patch_px=shape.patch_px,
        periods=shape.periods,
        sensors=shape.sensors,
        window_px=grid.window_px,
        overlap_px=grid.overlap_px,
        rho=_mean(lines),
        rho_dim=worst,
        rho_range=(rounded(min(lines)), rounded(max(lines))),
        sample=sample_name(side_px),
    )


def device() -> str:
    """Where encoders are measured: ``cpu`` or ``cuda``."""
    from pipeline.encode import session  # noqa: PLC0415

    return session.pick_device(EncodeSettings())


def places_of(model: Checkpoint, shape: Shape, side_px: int) -> Iterator[Place]:
    """The pixels of the sites, ``side_px`` around the middle of each, without gaps."""
    from pipeline.encode.rho import place_of  # noqa: PLC0415
    from pipeline.simulate.stacks import Flaws, calibration_places, stack_set  # noqa: PLC0415

    axis = shape.time_axis
    known = calibration_places(len(axis))
    for index, _ in SITES:
        old = known[index]
        row, col = (old.box.row + (old.box.height - side_px) // 2, old.box.col + (old.box.width - side_px) // 2)
        box = Box(zone=old.box.zone, res_m=old.box.res_m, row=row, col=col, height=side_px, width=side_px)
        flaws = Flaws(cloud_share=old.flaws.cloud_share)
        whole = replace(old, box=box, flaws=flaws, without_radar=(), without_landsat=())
        yield place_of(stack_set(whole, axis, sensors=shape.sensors), model, box=box)


def sample_name(side_px: int) -> str:
    """What a profile says it was measured on."""
    return f"simulated {', '.join(name for _, name in SITES)}, {side_px} px each, float32"


def calibration_for(
    model: Checkpoint, shape: Shape, given: str | None, target: str | None, *, note: Callable[[str], None]
) -> Calibration:
    """The scales, with what is already known: of the file given, else of the file to be written, else provisional.

    Raises:
        ConfigError: A file belongs to another model, vector, patch or input.
        OutputError: The file to be written exists with other scales.
    """
    from pipeline.encode.calibration import load_calibration  # noqa: PLC0415

    def load(path: str) -> Calibration:
        return load_calibration(path, card=model.card, patch_px=shape.patch_px, sensors=shape.sensors)

    there = load(target) if target and Path(target).exists() else None
    if given is None or (there is not None and Path(given) == Path(str(target))):
        if there is None:
            note("deriving a provisional int8 calibration from the weights and the packaged simulated sample")
        return there or provisional(model, patch_px=shape.patch_px, sensors=shape.sensors)
    base = load(given)
    if there is not None and there.hash != base.hash:
        raise OutputError(f"{target} holds other scales than {given}: write to another file")
    return base.with_seams(*there.seams) if there else base


def save(calibration: Calibration, path: str) -> None:
    """Write a calibration file; atomic.

    Raises:
        OutputError: It cannot be written.
    """
    from pipeline.encode.calibration import calibration_bytes  # noqa: PLC0415

    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise OutputError(f"the folder of {path} cannot be made ({err}): use another --output") from err
    durable.replace(Path(path), calibration_bytes(calibration))


def warnings_of(model: Checkpoint) -> tuple[str, ...]:
    """What makes figures of a model less than they look."""
    card = model.card
    stripes = (STRIPES.format(version=card.version),) if card.version in ABSOLUTE else ()
    return stripes if card.trained else (*stripes, UNTRAINED)


def rounded(value: float) -> float:
    """To digits that other machines' rounding leaves alone."""
    return round(float(value), DIGITS)


def _mean(values: Any) -> float:
    return rounded(sum(values) / len(values))
