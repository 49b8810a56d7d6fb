"""``earthpress calibrate``: a calibration from what the model makes of many places, frozen in a file.

Every place is planned, read, encoded and stitched by what a run uses; its tokens are the sample. A pixel of a store is
a mean of tokens, so none lies beyond them. The encoder is the eager float32 one whatever the plan's numerics: bfloat16
moves a vector by less than a hundredth of the headroom, while a file must not depend on the machine that made it.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import codes
from pipeline.encode import calibration as making
from pipeline.encode import checkpoint, session, stitch
from pipeline.encode.calibration import Sample
from pipeline.errors import ConfigError, DataError, InvalidInputError, NoDataError, OutputError, TransientError
from pipeline.plan import catalog, estimate, grid, planner
from pipeline.plan.periods import periods_of
from pipeline.read.rank import MemoryRanks
from pipeline.run import prepare
from pipeline.run.folder import encoder_arguments
from pipeline.run.measure import UNTRAINED
from pipeline.run.places import Spot, blocks_of, middles, read_places
from pipeline.run.reading import Source
from pipeline.run.tile import stitched_fields
from pipeline.write import durable, preview

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Executor

    from pipeline.config import Settings
    from pipeline.encode.checkpoint import Checkpoint
    from pipeline.types import Calibration, Period, Plan, Stack, Task

log = logging.getLogger(__name__)

SIMULATED = "simulated"
"""Name of the packaged sample as a source of places."""
SIMULATED_NAMES = (
    "farmland", "farmland under cloud", "river and forest", "city", "desert", "snow", "sea", "southern farmland"
)  # fmt: skip
"""Of ``calibration_places``, in their order."""
FEW = 3
"""Fewer places than this are warned about: one landscape does not know how far the next one reaches."""
AHEAD = 2
"""Places that are searched and read while one is encoded."""
COLOUR_VECTORS = 40_000
"""Vectors that the colours are made of, as for those of a store."""
DIGITS = 6
THERE = "{path} is there already, and stores may depend on it: write to another file, or say --overwrite"
Rows = tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceResult:
    """What became of one place.

    Attributes:
        name: Of the place.
        lon: Of a point in it, degrees.
        lat: Of that point, degrees.
        scenes: Scenes that its composites were made of; 0 for simulated ground.
        tokens: Vectors that it gave.
        valid: Share of its tokens that have an observation, 0..1.
        clipped: Share of its values that a calibration made of all the other places would clip (of a formula: that it
            clips), 0..1; None where nothing can be said.
        degraded: Whether a scene could not be read and was replaced.
        skipped: Why it gave nothing; "" where it did.
    """

    name: str
    lon: float
    lat: float
    scenes: int = 0
    tokens: int = 0
    valid: float = 0.0
    clipped: float | None = None
    degraded: bool = False
    skipped: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrated:
    """A calibration and what it was made of.

    Attributes:
        path: Where it was written.
        calibration: What was written.
        places: In the order given.
        model: Name of the model.
        kept: Share of the variance that the components of ``pca`` hold, 0..1; None for other quantisers.
        warnings: What makes it less than it looks.
    """

    path: str
    calibration: Calibration
    places: tuple[PlaceResult, ...]
    model: str
    kept: float | None
    warnings: tuple[str, ...]

    @property
    def table(self) -> Rows:
        """One row per place, below a row of titles."""
        rows = [("place", "lon", "lat", "scenes", "tokens", "valid", self._clip_title)]
        for p in self.places:
            where = (p.name, f"{p.lon:.4f}", f"{p.lat:.4f}")
            if p.skipped:
                rows.append((*where, "", "", "", "left out, see below"))
                continue
            clipped = "" if p.clipped is None else f"{100 * p.clipped:.3g} %"
            scenes = str(p.scenes) if p.scenes else ""
            rows.append((*where, scenes, f"{p.tokens}", f"{100 * p.valid:.3g} %", clipped))
        return tuple(rows)

    @property
    def _clip_title(self) -> str:
        return "clipped by the others" if self.calibration.scale else "clipped"

    @property
    def lines(self) -> tuple[str, ...]:
        """The scales in words, and what to put into the configuration."""
        c = self.calibration
        made = [f"{c.quantiser}, {c.dtype}: {self._numbers}; hash {c.hash[:12]}", f"from {c.source}"]
        if c.seams:
            made.append(f"{len(c.seams)} measurements of seams were kept")
        setting = f"store: {{calibration: {json.dumps(self.path)}, quantiser: {json.dumps(c.quantiser)}}}"
        return (*made, f"written: {self.path}", f"configuration: {setting}")

    @property
    def _numbers(self) -> str:
        c = self.calibration
        if self.kept is not None:
            return f"{c.bands} scores hold {100 * self.kept:.4g} % of the variance, one scale of {c.scale[0]:g}"
        if not c.scale:
            return f"a formula, {c.bands} dimensions"
        return f"{c.bands} scales, {min(c.scale):g} to {max(c.scale):g}, middle {sorted(c.scale)[len(c.scale) // 2]:g}"

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        c = self.calibration
        return {
            "path": self.path,
            "model": self.model,
            "quantiser": c.quantiser,
            "hash": c.hash,
            "provisional": c.provisional,
            "source": c.source,
            "scale": list(c.scale),
            "variance_kept": self.kept,
            "seams": len(c.seams),
            "places": [asdict(place) for place in self.places],
            "warnings": list(self.warnings),
        }


def calibrate(
    settings: Settings,
    places: str,
    *,
    output: str,
    per_place: int = 1,
    overwrite: bool = False,
    now: datetime | None = None,
    note: Callable[[str], None] = lambda _text: None,
) -> Calibrated:
    """Make a calibration of many places and write it.

    Args:
        settings: Model, dates, inputs, ``encode`` and ``store.quantiser`` as for a plan; area and output do not matter.
        places: File of points or polygons, see ``places.read_places``, or ``simulated``.
        output: JSON file to write.
        per_place: Blocks of 2.56 km at most that stand for a place.
        overwrite: Replace a calibration file that is there; what was measured about seams is taken over.
        now: UTC now; None reads the clock.
        note: Called with a line of text before each slow step.

    Raises:
        InvalidInputError: Places, dates or settings are wrong.
        ConfigError: No model, or a quantiser that does not fit it.
        NoDataError: No place has a single valid vector.
        TransientError: A catalogue or archive does not answer now: a sample must not depend on that.
        OutputError: ``output`` is there and may not be replaced, or cannot be written.
    """
    if not settings.model:
        raise ConfigError("no model: --model FOLDER, FILE, owner/name of Hugging Face, or random:v1.2-nano:0")
    if per_place < 1:
        raise InvalidInputError(f"blocks per place must be 1 or more, got {per_place}")
    spots = () if places == SIMULATED else read_places(places)
    before = _before(output, overwrite=overwrite)
    note(f"reading the model {settings.model}")
    model = checkpoint.load(str(settings.model), output=settings.encode.output)
    making.method_of(settings.store.quantiser, dims=model.card.dims)
    before = _fitting(before, model, settings)
    if places == SIMULATED:
        results, samples, source = _simulated(model, settings, note=note)
    else:
        field = _Field(settings, model, before=before, now=now or datetime.now(UTC))
        results, samples = field.sampled(spots, per_place=per_place, note=note)
        used = sum(not result.skipped for result in results)
        source = f"{used} places, {field.source}"
    note("making the scales")
    return _made(
        model,
        settings,
        results=results,
        samples=samples,
        source=source,
        provisional=places == SIMULATED,
        output=output,
        overwrite=overwrite,
        before=before,
    )


def _before(output: str, *, overwrite: bool) -> Calibration | None:
    """The calibration file that will be replaced; looked at before any work is done.

    Raises:
        OutputError: It may not be replaced, is something else, or its folder cannot be written.
    """
    folder = Path(output).absolute().parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise OutputError(f"the folder of {output} cannot be made ({err}): use another --output") from err
    if not os.access(folder, os.W_OK):
        raise OutputError(f"the folder of {output} cannot be written: use another --output")
    if not Path(output).exists():
        return None
    if not overwrite:
        raise OutputError(THERE.format(path=output))
    try:
        return making.read_calibration(output)
    except ConfigError as err:
        raise OutputError(f"{output} is not a calibration file and is not replaced: use another --output") from err


def _fitting(before: Calibration | None, model: Checkpoint, settings: Settings) -> Calibration | None:
    """The earlier calibration if what it knows about seams is about this model, vector, patch and input."""
    if before is None:
        return None
    known = (before.model_sha256, before.output, before.patch_px, before.sensors)
    card = model.card
    return before if known == (card.sha256, card.output, settings.encode.patch_px, settings.inputs.sensors) else None


def _simulated(
    model: Checkpoint, settings: Settings, *, note: Callable[[str], None]
) -> tuple[list[PlaceResult], list[Sample], str]:
    """The packaged sample, place by place: what a provisional calibration is made of."""
    from pyproj import Transformer  # noqa: PLC0415

    from pipeline.simulate.stacks import calibration_places  # noqa: PLC0415

    note("encoding the packaged simulated sample")
    results, samples = [], []
    vectors = prepare.sample_vectors(model, patch_px=settings.encode.patch_px, sensors=settings.inputs.sensors)
    for name, place, block in zip(
        SIMULATED_NAMES, calibration_places(prepare.CALIBRATION_PERIODS), vectors, strict=True
    ):
        west, south, east, north = place.box.bounds_m
        to_lonlat = Transformer.from_crs(place.box.epsg, 4326, always_xy=True)
        lon, lat = to_lonlat.transform((west + east) / 2, (south + north) / 2)
        samples.append(Sample.of([block], dims=model.card.dims))
        results.append(PlaceResult(name=name, lon=round(lon, 4), lat=round(lat, 4), tokens=len(block), valid=1.0))
    return results, samples, prepare.PROVISIONAL


class _Field:
    """Real places: one encoder for all of them, one small plan for each."""

    def __init__(self, settings: Settings, model: Checkpoint, *, before: Calibration | None, now: datetime) -> None:
        eager = {"dtype": "float32", "compile": "off", "attention": "sdpa"}
        self._settings = settings.model_copy(
            update={"bbox": None, "encode": settings.encode.model_copy(update=eager), "maps": ()}
        )
        self._now, self._model = now, model
        self._periods = periods_of(settings, today=now.date())
        self._basis = _basis(self._settings, model, periods=self._periods, before=before)

    @property
    def source(self) -> str:
        """Dates and kinds of catalogues, for the metadata."""
        inputs, dates = self._settings.inputs, (self._periods[0].start, self._periods[-1].end)
        kinds = dict.fromkeys(kind for name in inputs.sensors for kind in catalog.kinds(inputs.catalog_of(name)))
        span = " to ".join(f"{date:%Y-%m-%d}" for date in dates)
        return f"{span} in {len(self._periods)} periods, {', '.join(kinds)}, float32"

    def sampled(
        self, spots: Sequence[Spot], *, per_place: int, note: Callable[[str], None]
    ) -> tuple[list[PlaceResult], list[Sample]]:
        """What every place gave; those without data gave an empty sample."""
        note(f"{self._basis.grid.stitch}: {self._basis.grid.summary}; loading the encoder and checking it")
        encoder: session.Session | None = None
        results, samples = [], []
        for number, (spot, read) in enumerate(self._read(spots, per_place=per_place), 1):
            note(f"place {number} of {len(spots)}, {spot.name}")
            sample = Sample(self._model.card.dims)
            result = PlaceResult(name=spot.name, lon=round(spot.lon, 4), lat=round(spot.lat, 4))
            if isinstance(read, str):
                result = replace(result, skipped=read)
            else:
                encoder = encoder or self._encoder(read.plan)
                result = _encoded(read, encoder, sample, result)
            results.append(result)
            samples.append(sample)
        return results, samples

    def _encoder(self, plan: Plan) -> session.Session:
        threads = prepare.encoder_threads(self._settings, device=plan.numerics.device)
        encoder = session.Session(self._model, threads=threads, **encoder_arguments(plan))
        encoder.warm_up()
        log.info("start-up gate passed: %s", encoder.gate())
        return encoder

    def _read(self, spots: Sequence[Spot], *, per_place: int) -> Iterator[tuple[Spot, _Read | str]]:
        """Every place with its pixels, or why there are none; the next ones are read meanwhile."""
        with (
            tempfile.TemporaryDirectory(prefix="earthpress-calibrate-") as folder,
            ThreadPoolExecutor(self._settings.run.io_threads, thread_name_prefix="io") as io,
            ThreadPoolExecutor(AHEAD, thread_name_prefix="place") as readers,
        ):
            queue = deque(enumerate(spots))
            waiting: deque[tuple[Spot, Any]] = deque()
            try:
                while queue or waiting:
                    while queue and len(waiting) <= AHEAD:
                        index, spot = queue.popleft()
                        area = Path(folder) / f"{index}.geojson"
                        waiting.append((spot, readers.submit(self._read_one, spot, area, per_place, io)))
                    spot, future = waiting.popleft()
                    yield spot, future.result()
            finally:  # an error at one place must not wait for the others
                io.shutdown(wait=False, cancel_futures=True)
                readers.shutdown(wait=False, cancel_futures=True)

    def _read_one(self, spot: Spot, area: Path, per_place: int, io: Executor) -> _Read | str:
        """Plan and read one place.

        Raises:
            TransientError: The archive does not answer now; names the place.
        """
        import shapely  # noqa: PLC0415

        geometry = json.loads(shapely.to_geojson(middles(blocks_of(spot, count=per_place))))
        area.write_text(json.dumps({"type": "Feature", "properties": {}, "geometry": geometry}), encoding="utf-8")
        settings = self._settings.model_copy(update={"aoi": str(area), "output": str(area.parent)})
        try:
            plan = planner.make_plan(settings, self._basis, now=self._now, note=log.info)
            prepare.check_places(plan)
            source = Source(plan, ranks=MemoryRanks())
            tiles = tuple((task, source.read(task, pool=io)) for task in plan.tasks)
        except (NoDataError, DataError) as err:
            return str(err)
        except TransientError as err:
            raise TransientError(
                f"place {spot.name}: {err}; nothing was written: run it again, or leave the place out"
            ) from err
        return _Read(plan=plan, tiles=tiles)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Read:
    """A place with its pixels.

    Attributes:
        plan: Of the place alone.
        tiles: Its tiles and one Stack per sensor for each.
    """

    plan: Plan
    tiles: tuple[tuple[Task, tuple[Stack, ...]], ...]


def _basis(
    settings: Settings, model: Checkpoint, *, periods: tuple[Period, ...], before: Calibration | None
) -> planner.Basis:
    """What a plan of one place is told: as a run's, but for the numerics and for what such a plan has no use of."""
    card, sensors = model.card, settings.inputs.sensors
    device = session.pick_device(settings.encode)
    how = prepare.stitching(settings.encode, version=card.version)
    tile_px = prepare.tile_px_of(settings, device=device, stitch=how)
    spec, _ = prepare.grid_of(settings, card, periods=len(periods), tile_px=tile_px, calibration=before, device=device)
    numerics = session.settle(settings.encode, card=card, grid=spec, periods=len(periods), sensors=sensors)
    return planner.Basis(
        grid=spec,
        model=card,
        numerics=numerics,
        calibration=making.formula("float32", card=card, patch_px=settings.encode.patch_px, sensors=sensors),
        heads=(),
        rate=estimate.rate_for(numerics),
        mask=prepare.checked_reading(settings, device=device),
    )


def _encoded(read: _Read, encoder: session.Session, sample: Sample, result: PlaceResult) -> PlaceResult:
    """Add a place's tokens to its sample.

    Raises:
        DataError: The encoder gave values that are not finite.
    """
    seen, tokens, scenes, degraded = 0, 0, set[str](), False
    for task, stacks in read.tiles:
        origins = grid.tile_windows(task.tile, task.blocks, read.plan.grid)
        fields = encoder.encode(stacks, origins)
        for _, stitched in stitched_fields(task, fields, origins=origins, spec=read.plan.grid):
            field = stitch.with_head(stitched, encoder.head)
            if not field.finite:
                raise DataError(f"place {result.name}: the encoder gave values that are not finite")
            sample.add(field.values.cpu().numpy()[field.valid])
            seen, tokens = seen + int(field.valid.sum()), tokens + field.valid.size
        scenes.update(name for stack in stacks for source in stack.sources for name in source.selected)
        degraded = degraded or any(stack.degraded for stack in stacks)
    missing = "" if seen else "none of its scenes has a valid pixel there"
    return replace(
        result, scenes=len(scenes), tokens=seen, valid=round(seen / tokens, DIGITS), degraded=degraded, skipped=missing
    )


def _made(
    model: Checkpoint,
    settings: Settings,
    *,
    results: Sequence[PlaceResult],
    samples: Sequence[Sample],
    source: str,
    provisional: bool,
    output: str,
    overwrite: bool,
    before: Calibration | None,
) -> Calibrated:
    """The calibration of all samples, written, with what each place says about it."""

    def of(parts: Sequence[Sample]) -> Calibration:
        return making.calibrate(
            Sample.merged(parts),
            settings.store.quantiser,
            card=model.card,
            patch_px=settings.encode.patch_px,
            source=source,
            provisional=provisional,
            sensors=settings.inputs.sensors,
        )

    given = [sample for sample in samples if sample.count]
    if not given:
        reasons = "; ".join(dict.fromkeys(f"{result.name}: {result.skipped}" for result in results))
        raise NoDataError(f"no place has a single valid vector: {reasons}")
    made, whole = of(given), Sample.merged(given)
    made = replace(made, basis=_colours(whole, made)).with_seams(*(before.seams if before else ()))
    places = tuple(
        result if result.skipped else replace(result, clipped=_clipped(sample, given, of))
        for result, sample in zip(results, samples, strict=True)
    )
    _write(made, output, overwrite=overwrite)
    return Calibrated(
        path=output,
        calibration=made,
        places=places,
        model=model.card.name,
        kept=_variance_kept(whole, made),
        warnings=tuple(_warnings(model, made, places)),
    )


def _write(calibration: Calibration, path: str, *, overwrite: bool) -> None:
    """Write the file, and only over another one if that is wanted; a file may have come since the start.

    Raises:
        OutputError: It is there, or cannot be written.
    """
    if overwrite:
        durable.replace(Path(path), making.calibration_bytes(calibration))
    elif not durable.create(Path(path), making.calibration_bytes(calibration)):
        raise OutputError(THERE.format(path=path))


def _clipped(sample: Sample, given: Sequence[Sample], of: Callable[[Sequence[Sample]], Calibration]) -> float | None:
    """Share of a place's values that a calibration made of the other places clips; None where they make none."""
    others = [other for other in given if other is not sample]
    if not others:
        return None
    try:
        theirs = of(others)
    except InvalidInputError:
        return None
    vectors = sample.thin
    return round(codes.clipped(vectors.T, theirs) / (len(vectors) * theirs.bands), DIGITS)


def _colours(sample: Sample, calibration: Calibration) -> str:
    """Frozen colours of what a store of this calibration decodes to; "" where there are too few vectors or bands."""
    vectors = sample.thin[:: -(-len(sample.thin) // COLOUR_VECTORS)]
    if calibration.bands < 3 or len(vectors) < min(calibration.bands, 256):
        return ""
    decoded = codes.decode(codes.encode(np.ascontiguousarray(vectors.T), calibration), calibration)
    return preview.pca_basis(decoded.T).to_json()


def _variance_kept(sample: Sample, calibration: Calibration) -> float | None:
    if calibration.method != "pca":
        return None
    components, covariance = np.asarray(calibration.components), sample.covariance
    return float(np.trace(components @ covariance @ components.T) / np.trace(covariance))


def _warnings(model: Checkpoint, made: Calibration, places: Sequence[PlaceResult]) -> Iterator[str]:
    used = [place for place in places if not place.skipped]
    if made.provisional:
        yield "provisional: simulated ground only; give --places for a calibration of real ground"
    elif len(used) < FEW and made.scale:
        yield (
            f"{len(used)} place(s) only: other landscapes may lie outside these scales; use {FEW} and more, from water "
            "to desert and city"
        )
    for place in places:
        if place.skipped:
            yield f"{place.name} was left out: {place.skipped}"
        if place.degraded:
            yield f"{place.name}: a scene could not be read and was replaced; run it again for a sample of all scenes"
    worst = max(used, key=lambda place: place.clipped or 0.0)
    if (worst.clipped or 0.0) > codes.CLIP_WARNING:
        yield _clip_warning(worst, made)
    if not model.card.trained:
        yield UNTRAINED


def _clip_warning(worst: PlaceResult, made: Calibration) -> str:
    share = f"{100 * (worst.clipped or 0.0):.3g} % of the values of {worst.name}"
    if not made.scale:
        return f"{share} lie beyond the codes of {made.quantiser} and saturate: use linear or per_pixel"
    return f"the other places' scales would clip {share}: add places like it"
