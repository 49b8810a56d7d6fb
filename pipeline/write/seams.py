"""Seam scores: how much larger the steps of a field are on the lines of a lattice than beside them.

Pure numbers, no file. Two scores, after the project's measurements of seams:

- *Unpaired*, for the report of every run: one field, nothing to compare with. ``strip`` turns vectors into mean
  absolute steps between neighbours, ``measure`` sorts the steps by phase of each lattice and compares. Content noise
  limits it, so every score comes with an interval.
- *Paired*, for tests and benchmarks: the same ground computed on shifted lattices. Content cancels, 1.00 means 1.00.

**Method of the unpaired score.** A line lies between vector ``line - 1`` and vector ``line`` of an axis; its phase is
``line`` modulo the period. Along a line, steps are averaged over all dimensions and over segments of 64 pixels. Each
segment is paired with a baseline of the same ground: the mean of the lines around it (one whole period of a short
lattice, 16 lines on either side for a long one) that have the same position within a token, because bilinear
interpolation between tokens makes some positions smoother than others. A phase's ratio is sum(segments) /
sum(baselines), divided by the median ratio of all phases of that position. The standard error is the largest of three:
the linearised (jackknife) error of that ratio over its own segments, the same pooled over all segments, and the
scatter of whole lines (median absolute deviation over all lines, which sees what segments of one line share). The
interval is simultaneous: Student's t at 99 % over all phases, both axes and up to five lattices (Bonferroni), so "the
worst of 2048 phases" is not a seam because it is the worst. The worst phase is the one with the highest lower bound. No
random number is drawn. Few lines give few segments and a wide interval.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pipeline.errors import InvalidInputError
from pipeline.types import BLOCK_PX, CELL_PX

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from pipeline.types import GridSpec

    Floats = NDArray[np.float64]

Axis = Literal["row", "col"]
"""``row``: steps from one row to the next (lines run east); ``col``: from one column to the next (lines run south)."""
AXES: tuple[Axis, Axis] = ("row", "col")
SEGMENT_PX = 64
"""10 m pixels of a line that are averaged to one observation: longer than most fields and roads are wide."""
MIN_SEGMENT = 8
"""Least vectors of a segment, in a store of tokens."""
MIN_SEGMENTS = 6
"""A phase with fewer segments has no score: the error of a mean cannot be told from so few."""
NEIGHBOURS = 16
"""Lines on either side that are the baseline of a long lattice."""
CONFIDENCE = 0.99
FAMILIES = 10
"""Scores of a report that share the confidence: two axes, five lattices."""
WELL_MEASURED = 8
"""Lines per phase from which the profile of the windows is taken out of the lattices above them."""
MAD_TO_SIGMA = 1.4826
"""Standard deviation of a normal variable over its median absolute deviation."""
MEDIAN_VARIANCE = 1.5708
"""Variance of a median over that of a mean, for normal variables (pi / 2)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Strip:
    """Steps across the lines of one piece of ground.

    Attributes:
        axis: Which steps.
        zone: UTM zone, 0 when it does not matter.
        first: Index of the first line: it lies between vectors ``first - 1`` and ``first`` of the zone's lattice.
        along: Index of the first vector along the lines.
        segment: Vectors of a segment along the lines.
        steps: (segment, line) float32, mean absolute step; NaN where less than half of the segment is valid.
    """

    axis: Axis
    zone: int
    first: int
    along: int
    segment: int
    steps: NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lattice:
    """Lines that a method may leave in a field, in vectors.

    Attributes:
        kind: ``window``, ``domain``, ``block``, ``tile``, ``shard`` or ``cell``.
        period: Distance of lines.
        lines: Phases at which something begins or ends.
        token: Period of the positions within a token: 1 in a store of tokens.
    """

    kind: str
    period: int
    lines: tuple[int, ...] = (0,)
    token: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """The unpaired seam score of one lattice along one axis.

    Attributes:
        axis: ``row``, ``col``, or ``border`` between two zones.
        kind: Of the lattice, or ``zone``.
        period: Of the lattice, in vectors.
        phase: The worst phase.
        score: Mean absolute step of that phase over that of all phases; 1 is no seam.
        low: Lower end of the interval.
        high: Upper end of the interval.
        line: The largest ratio at the lattice's own lines, up to half a token beside them.
        lines: Lines of the worst phase that were seen.
        segments: Segments of these.
        fft: Energy of the step series at the period and its harmonics over that of the frequencies around them;
            1 is no lattice; None with fewer than four periods in a row.
        profile: Ratio of every phase; None where it was not seen.
        own: Phases of the lattice's own lines.
        at: (zone, row, col) of the vector south or east of the worst line, at its worst segment.
        at_line: Whether the worst phase is one of the lattice's own lines, up to half a token beside it.
    """

    axis: str
    kind: str
    period: int
    phase: int
    score: float
    low: float
    high: float
    line: float | None
    lines: int
    segments: int
    fft: float | None = None
    profile: tuple[float | None, ...] = ()
    own: tuple[int, ...] = ()
    at: tuple[int, int, int] = (0, 0, 0)
    at_line: bool = True

    @property
    def name(self) -> str:
        """Short name: ``window/row``."""
        return f"{self.kind}/{self.axis}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """The paired score of a method.

    Attributes:
        line: Worst ratio at phases where a window begins or ends, mean over dimensions.
        max: Worst ratio of all phases.
        dim: Worst ratio of all phases in the worst single dimension.
        profile: (row axis, col axis) ratio of every phase of the stride.
    """

    line: float
    max: float
    dim: float
    profile: tuple[tuple[float, ...], tuple[float, ...]]


def lattices(grid: GridSpec, *, shard: int) -> tuple[Lattice, ...]:
    """The lattices that a store of ``grid`` may show.

    Args:
        grid: The window lattice.
        shard: Side of a shard, in vectors.

    >>> from pipeline.types import GridSpec
    >>> grid = GridSpec(patch_px=4, window_px=64, overlap_px=24, tile_px=256)
    >>> [(found.kind, found.period, found.lines) for found in lattices(grid, shard=256)][:2]
    [('window', 40, (0, 24)), ('tile', 256, (0,))]
    """
    px = grid.token_px
    token = max(1, grid.step_px // px)
    stride = grid.stride_px // px
    if grid.stitch == "neighbourhood":
        first: list[tuple[str, int, tuple[int, ...]]] = [("domain", stride, (0,)), ("block", BLOCK_PX // px, (0,))]
    elif grid.stitch == "centre":
        first = [("window", stride, (grid.trim_px // px % stride,))]
    else:
        first = [("window", stride, tuple(sorted({0, grid.overlap_px // px % stride})))]
    wider = [("tile", grid.tile_px // px, (0,)), ("shard", shard, (0,)), ("cell", CELL_PX // px, (0,))]
    return tuple(Lattice(kind=k, period=p, lines=at, token=token) for k, p, at in (*first, *wider) if p > 1)


def segment_of(token_px: int) -> int:
    """Vectors of a segment in a store with one vector per ``token_px`` pixels."""
    return max(MIN_SEGMENT, SEGMENT_PX // token_px)


def strip(
    values: NDArray[Any],
    valid: NDArray[np.bool_],
    *,
    axis: Axis,
    first: int,
    along: int = 0,
    zone: int = 0,
    scale: NDArray[np.float32] | None = None,
    segment: int = SEGMENT_PX,
) -> Strip:
    """Reduce vectors to their steps along one axis.

    Args:
        values: (dim, row, col) float, or int8 codes of a store whose steps are alike in every pixel.
        valid: (row, col) bool; a step counts where both its vectors are valid.
        axis: Which steps.
        first: Index of the first row (``row``) or column (``col``) of ``values`` on the lattice.
        along: Index of the first vector in the other direction.
        zone: For the place of the worst line.
        scale: (dim,) value of one code step; None: 1.
        segment: Vectors along the line that are averaged; what is left over at the end is not used.

    Returns:
        The strip; its first line is ``first + 1``, one less than vectors. Pieces that overlap by one vector ``join``.

    Raises:
        InvalidInputError: Shapes do not fit, or fewer than two vectors or not one segment.
    """
    if values.ndim != 3 or values.shape[1:] != valid.shape:
        raise InvalidInputError(f"a strip needs (dim, row, col) values, got {values.shape} and valid {valid.shape}")
    dims = values.shape[0]
    weight = np.ones(dims, np.float32) if scale is None else np.asarray(scale, np.float32)
    plane = _plane(values, weight / np.float32(dims), axis)
    both = valid[1:] & valid[:-1] if axis == "row" else valid[:, 1:] & valid[:, :-1]
    if axis == "col":
        plane, both = plane.T, both.T
    count = plane.shape[1] // segment
    if not plane.shape[0] or not count:
        raise InvalidInputError(f"a strip of {valid.shape} vectors holds no step or no segment of {segment}")
    shape = (plane.shape[0], count, segment)
    ok = both[:, : count * segment].reshape(shape)
    seen = ok.sum(axis=2)
    total = np.where(ok, plane[:, : count * segment].reshape(shape), np.float32(0)).sum(axis=2)
    steps = np.where(2 * seen >= segment, total / np.maximum(seen, 1), np.nan).astype(np.float32).T
    return Strip(axis=axis, zone=zone, first=first + 1, along=along, segment=segment, steps=steps)


def join(pieces: Sequence[Strip]) -> Strip:
    """One strip of pieces that follow each other across the lines, each from the last vector of the one before.

    Raises:
        InvalidInputError: They do not follow each other.
    """
    at = pieces[0].first
    for piece in pieces:
        if piece.first != at or _kind_of(piece) != _kind_of(pieces[0]):
            raise InvalidInputError(f"a piece {_kind_of(piece)} begins at line {piece.first}, wanted {at}")
        at += piece.steps.shape[1]
    return replace(pieces[0], steps=np.concatenate([piece.steps for piece in pieces], axis=1))


def measure(strips: Sequence[Strip], wanted: Sequence[Lattice]) -> tuple[Score, ...]:
    """Score every lattice along both axes; lattices without a line in the strips are left out.

    The first lattice is the one of the windows (or domains). Where its profile is known from ``WELL_MEASURED`` lines
    per phase it is taken out before wider lattices are scored, so that a window's seam is not found again in tiles.

    Args:
        strips: Of one store.
        wanted: From ``lattices``.
    """
    scores: list[Score] = []
    for axis in AXES:
        own = [s for s in strips if s.axis == axis]
        windows: Score | None = None
        for lattice in wanted:
            free = [_without(s, windows, lattice) for s in own]
            found = _score(free, lattice)
            if found is None:
                continue
            scores.append(found)
            windows = found if lattice is wanted[0] and _well_measured(own, lattice) else windows
    return tuple(scores)


def anisotropy(strips: Iterable[Strip]) -> float | None:
    """Mean square of the row steps over that of the column steps: 1 where neither direction is favoured.

    The squares of mean absolute steps over dimensions stand for the variances (a madogram, robust against edges).
    None when one of the axes has no valid step.
    """
    squares = {axis: [0.0, 0] for axis in AXES}
    for part in strips:
        found = part.steps[np.isfinite(part.steps)].astype(np.float64)
        squares[part.axis][0] += float((found**2).sum())
        squares[part.axis][1] += len(found)
    (row, rows), (col, cols) = (squares[axis] for axis in AXES)
    return (row / rows) / (col / cols) if rows and col else None


def pair_score(
    steps: NDArray[np.float32], baseline: NDArray[np.float32], *, at: tuple[int, int, int] = (0, 0, 0)
) -> Score | None:
    """Score of the border between two zones.

    Args:
        steps: (segment,) mean absolute step across the border.
        baseline: (segment,) mean absolute step beside it, over the same distance.
        at: (zone, row, col) of the border's middle.

    Returns:
        The score; None with fewer than ``MIN_SEGMENTS`` segments that have both.
    """
    ok = np.isfinite(steps) & np.isfinite(baseline)
    a, b = steps[ok].astype(np.float64), baseline[ok].astype(np.float64)
    if len(a) < MIN_SEGMENTS or b.sum() <= 0:
        return None
    ratio = float(a.sum() / b.sum())
    error = _ratio_error(((a - ratio * b) ** 2).sum(), b.sum(), len(a))
    half = float(_student(_level(1), np.array(len(a) - 1)) * error)
    return Score(
        axis="border",
        kind="zone",
        period=0,
        phase=0,
        score=ratio,
        low=ratio - half,
        high=ratio + half,
        line=ratio,
        lines=1,
        segments=len(a),
        at=at,
    )


def paired_score(
    fields: Sequence[tuple[tuple[int, int], NDArray[Any]]], *, stride: int, lines: Sequence[int] = (0,)
) -> Paired:
    """Compare the same ground on shifted lattices.

    A phase's ratio is the steps of its lines over the steps of the same lines in the fields where they have another
    phase, so the content of the image cancels.

    Args:
        fields: Per run ((row, col) of a lattice origin in tokens, (row, col, dim) field); the fields cover the same
            ground, and their origins differ modulo the stride along both axes.
        stride: Distance of windows, in tokens.
        lines: Phases at which a window begins or ends, e.g. 0 and the overlap.

    Raises:
        InvalidInputError: Fewer than two fields, different shapes, or all origins alike.
    """
    shapes = {field.shape for _, field in fields}
    if len(fields) < 2 or len(shapes) != 1:
        raise InvalidInputError(f"a paired score needs two or more fields of one shape, got {len(fields)}: {shapes}")
    per_axis = [_paired_axis(fields, axis=axis, stride=stride) for axis in (0, 1)]
    means = [mean for mean, _ in per_axis]
    return Paired(
        line=max(float(mean[k % stride]) for mean in means for k in lines),
        max=max(float(np.nanmax(mean)) for mean in means),
        dim=max(float(np.nanmax(dims)) for _, dims in per_axis),
        profile=(tuple(means[0].tolist()), tuple(means[1].tolist())),
    )


def lattice_dependence(field_a: NDArray[Any], field_b: NDArray[Any]) -> float:
    """How much the same ground changes when the lattice moves: rms of the change over the rms deviation; 0 is none.

    Args:
        field_a: (row, col, dim).
        field_b: The same ground from another lattice origin.

    Raises:
        InvalidInputError: Different shapes, or a field without any deviation from its mean.
    """
    if field_a.shape != field_b.shape:
        raise InvalidInputError(f"fields of the same ground have one shape, got {field_a.shape} and {field_b.shape}")
    a, b = field_a.astype(np.float64), field_b.astype(np.float64)
    deviation = float(np.sqrt(np.mean([(f - f.mean(axis=(0, 1))) ** 2 for f in (a, b)])))
    if deviation == 0:
        raise InvalidInputError("a field without deviation has no lattice dependence")
    return float(np.sqrt(np.mean((a - b) ** 2))) / deviation


def rho(cropped: Sequence[tuple[tuple[int, int], NDArray[Any]]], *, stride: int) -> float:
    """Score of the centre crop, from which the blend's score follows: sqrt(1 + (rho^2 - 1) / (ramp + 1)^2).

    Args:
        cropped: As ``paired_score``: fields of centre crops without any blending.
        stride: Distance of windows, in tokens.
    """
    return paired_score(cropped, stride=stride).max


def _kind_of(part: Strip) -> tuple[str, int, int, int, int]:
    return part.axis, part.zone, part.along, part.segment, len(part.steps)


def _plane(values: NDArray[Any], weight: NDArray[np.float32], axis: Axis) -> NDArray[np.float32]:
    """Weighted sum over dimensions of absolute steps, (row, col), one less along the axis."""
    one, two = (np.s_[1:], np.s_[:-1]) if axis == "row" else (np.s_[:, 1:], np.s_[:, :-1])
    plane = np.zeros(values[0][one].shape, np.float32)
    for dim, factor in zip(values, weight, strict=True):
        a, b = dim[one], dim[two]
        if values.dtype == np.int8:
            # the difference of two int8 fits uint8, and wraps around to it: twice as fast as int16
            step: NDArray[Any] = np.maximum(a, b).view(np.uint8) - np.minimum(a, b).view(np.uint8)
        else:
            step = np.abs(a - b)
        plane += np.multiply(step, factor, dtype=np.float32)
    return plane


def _baseline(part: Strip, lattice: Lattice) -> Floats:
    """(segment, line): what a step at this place should be, from lines of the same position within a token."""
    count = lattice.period // lattice.token
    if count <= 2 * NEIGHBOURS + 1:
        reach = count // 2
        weight = np.ones(2 * reach + 1)
        if count % 2 == 0:
            weight[[0, -1]] = 0.5  # one whole period: both ends are the same phase
    else:
        reach, weight = NEIGHBOURS, np.ones(2 * NEIGHBOURS + 1)
        weight[reach] = 0.0
    ok = np.isfinite(part.steps)
    values = np.where(ok, part.steps, 0.0)
    total, mass = np.zeros(ok.shape), np.zeros(ok.shape)
    for n, factor in enumerate(weight):
        shift = (n - reach) * lattice.token
        if abs(shift) >= ok.shape[1]:
            continue
        there = slice(max(0, shift), ok.shape[1] + min(0, shift))
        here = slice(max(0, -shift), ok.shape[1] + min(0, -shift))
        total[:, here] += factor * values[:, there]
        mass[:, here] += factor * ok[:, there]
    return np.where(2 * mass >= weight.sum(), total / np.maximum(mass, 1e-9), np.nan)


@dataclass(slots=True, eq=False)
class _Phases:
    """Sums by phase: of steps, baselines, squares, residuals."""

    step: Floats
    base: Floats
    squares: Floats
    line_squares: Floats
    segments: NDArray[np.int64]
    lines: NDArray[np.int64]

    @classmethod
    def of(cls, observed: Sequence[tuple[NDArray[np.int64], Floats, Floats]], period: int) -> _Phases:
        sums: list[Floats] = [np.zeros(period) for _ in range(4)]
        counts: list[NDArray[np.int64]] = [np.zeros(period, np.int64) for _ in range(2)]
        for phase, a, b in observed:
            for total, part in zip(sums, (a.sum(0), b.sum(0), (b * b).sum(0), b.sum(0) ** 2), strict=True):
                np.add.at(total, phase, part)
            seen = (b > 0).sum(0)
            np.add.at(counts[0], phase, seen)
            np.add.at(counts[1], phase, seen > 0)
        step, base, squares, line_squares = sums
        return cls(step, base, squares, line_squares, *counts)


def _observed(strips: Sequence[Strip], lattice: Lattice) -> list[tuple[NDArray[np.int64], Floats, Floats]]:
    """Per strip: phase of every line, steps and baselines (segment, line), both 0 where one of them is missing."""
    found = []
    for part in strips:
        base = _baseline(part, lattice)
        ok = np.isfinite(part.steps) & np.isfinite(base) & (base > 0)
        phase = (part.first + np.arange(part.steps.shape[1])) % lattice.period
        found.append((phase, np.where(ok, part.steps, 0.0), np.where(ok, base, 0.0)))
    return found


def _score(strips: Sequence[Strip], lattice: Lattice) -> Score | None:
    """The score of one lattice; None when none of its lines was seen often enough."""
    observed = _observed(strips, lattice)
    sums = _Phases.of(observed, lattice.period)
    seen = sums.segments >= MIN_SEGMENTS
    own = _near(lattice)
    if not seen[list(lattice.lines)].any():
        return None
    raw = np.where(sums.base > 0, sums.step / np.maximum(sums.base, 1e-30), np.nan)
    usual = _usual(raw, seen, lattice.token)
    ratio = raw / usual
    half = _half_width(observed, sums, ratio * usual, seen, lattice) / usual
    low = np.where(seen, ratio - half, -np.inf)
    worst = int(np.argmax(low))
    shown = np.where(seen, ratio, np.nan)
    return Score(
        axis=strips[0].axis,
        kind=lattice.kind,
        period=lattice.period,
        phase=worst,
        score=float(ratio[worst]),
        low=float(low[worst]),
        high=float(ratio[worst] + half[worst]),
        line=float(np.nanmax(shown[own])),
        lines=_distinct(strips, observed, worst),
        segments=int(sums.segments[worst]),
        fft=_harmonics(observed, usual, lattice),
        profile=tuple(None if np.isnan(v) else round(float(v), 4) for v in shown),
        own=lattice.lines,
        at=_place(strips, observed, worst),
        at_line=worst in own,
    )


def _near(lattice: Lattice) -> NDArray[np.int64]:
    """Phases of the own lines, and those beside them over which interpolation spreads a step between tokens."""
    beside = range(-(lattice.token // 2), lattice.token // 2 + 1)
    return np.unique([(line + k) % lattice.period for line in lattice.lines for k in beside])


def _usual(raw: Floats, seen: NDArray[np.bool_], token: int) -> Floats:
    """(phase,) the median ratio of all phases with the same position within a token."""
    position = np.arange(len(raw)) % token
    usual = np.ones(len(raw))
    for k in range(token):
        same = (position == k) & seen
        if same.any():
            usual[position == k] = np.median(raw[same])
    return np.where(usual > 0, usual, 1.0)


def _half_width(
    observed: Sequence[tuple[NDArray[np.int64], Floats, Floats]],
    sums: _Phases,
    ratio: Floats,
    seen: NDArray[np.bool_],
    lattice: Lattice,
) -> Floats:
    """(phase,) half of the simultaneous interval of ``ratio``, see the module's text."""
    fit = np.where(np.isfinite(ratio), ratio, 1.0)
    own = np.zeros(lattice.period)
    scatter: list[Floats] = []
    for phase, a, b in observed:
        np.add.at(own, phase, ((a - fit[phase] * b) ** 2).sum(0))
        mass = b.sum(0)
        scatter.append((a.sum(0) / np.maximum(mass, 1e-30))[mass > 0] / _typical(fit, phase[mass > 0], lattice))
    n = np.maximum(sums.segments, 1)
    segment = _ratio_error(own, sums.base, n)
    pooled = np.sqrt(own[seen].sum() / sums.squares[seen].sum() * sums.squares) / np.maximum(sums.base, 1e-30)
    lines = np.concatenate(scatter)
    spread = MAD_TO_SIGMA * float(np.median(np.abs(lines - np.median(lines))))
    whole = spread * np.sqrt(sums.line_squares) / np.maximum(sums.base, 1e-30)
    level = _level(int(seen.sum()))
    widest = np.maximum(_student(level, np.maximum(n - 1, 1)) * segment, NormalDist().inv_cdf(level) * pooled)
    widest = np.maximum(widest, NormalDist().inv_cdf(level) * whole)
    # the median of the phases of one position is measured too
    return np.asarray(widest * np.sqrt(1 + MEDIAN_VARIANCE * lattice.token / max(int(seen.sum()), 1)))


def _typical(fit: Floats, phase: NDArray[np.int64], lattice: Lattice) -> Floats:
    """(line,) the usual ratio of the lines' position within a token."""
    return _usual(fit, np.ones(len(fit), np.bool_), lattice.token)[phase]


def _level(tests: int) -> float:
    """One-sided level of a two-sided simultaneous interval over ``tests`` phases of every family (Bonferroni)."""
    return 1 - (1 - CONFIDENCE) / (2 * max(tests, 1) * FAMILIES)


def _ratio_error(residual_squares: Any, base: Any, n: Any) -> Any:
    """Linearised standard error of sum(a) / sum(b) over n segments (Cochran, Sampling Techniques, 1977, 6.4)."""
    return np.sqrt(residual_squares * n / np.maximum(n - 1, 1)) / np.maximum(base, 1e-30)


def _student(level: float, freedom: NDArray[Any]) -> Floats:
    """Quantile of Student's t (Abramowitz and Stegun 26.7.5), a little small below six degrees of freedom."""
    z, n = NormalDist().inv_cdf(level), freedom.astype(np.float64)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return np.asarray(z + first / n + second / n**2 + third / n**3)


def _harmonics(
    observed: Sequence[tuple[NDArray[np.int64], Floats, Floats]], usual: Floats, lattice: Lattice
) -> float | None:
    """Energy at the period and its harmonics over the mean energy of the frequencies between them."""
    at_lines = between = 0.0
    for phase, a, b in observed:
        periods = len(phase) // lattice.period
        if periods < 4:
            continue
        n = periods * lattice.period
        mass = b.sum(0)[:n]
        series = np.where(mass > 0, a.sum(0)[:n] / np.maximum(mass, 1e-30) / usual[phase[:n]], 1.0)
        if (mass > 0).mean() < 0.9:
            continue
        energy = np.abs(np.fft.rfft(series - series.mean())) ** 2
        harmonic = np.arange(periods, len(energy), periods)
        # bins on either side, half way to the next harmonic
        reach = np.arange(1, max(2, (periods + 1) // 2))
        around = np.concatenate([harmonic[:, None] - reach, harmonic[:, None] + reach], axis=1)
        around = np.clip(around, 1, len(energy) - 1)
        at_lines += float(energy[harmonic].sum())
        between += float(energy[around].mean(axis=1).sum())
    return at_lines / between if between > 0 else None


def _place(
    strips: Sequence[Strip], observed: Sequence[tuple[NDArray[np.int64], Floats, Floats]], phase: int
) -> tuple[int, int, int]:
    """(zone, row, col) of the segment with the largest excess among the lines of a phase."""
    best, at = -np.inf, (0, 0, 0)
    for part, (phases, a, b) in zip(strips, observed, strict=True):
        lines = np.flatnonzero(phases == phase)
        if not len(lines):
            continue
        excess = np.where(b[:, lines] > 0, a[:, lines] - b[:, lines], -np.inf)
        segment, n = np.unravel_index(int(np.argmax(excess)), excess.shape)
        if excess[segment, n] > best:
            best = float(excess[segment, n])
            across = part.first + int(lines[n])
            along = part.along + int(segment) * part.segment + part.segment // 2
            at = (part.zone, *((across, along) if part.axis == "row" else (along, across)))
    return at


def _distinct(strips: Sequence[Strip], observed: Sequence[tuple[NDArray[np.int64], Floats, Floats]], phase: int) -> int:
    """Lines of a phase that were seen; strips that lie side by side see the same ones."""
    lines: set[tuple[int, int]] = set()
    for part, (phases, _, b) in zip(strips, observed, strict=True):
        seen = np.flatnonzero((phases == phase) & (b > 0).any(axis=0))
        lines |= {(part.zone, part.first + int(line)) for line in seen}
    return len(lines)


def _well_measured(strips: Sequence[Strip], lattice: Lattice) -> bool:
    sums = _Phases.of(_observed(strips, lattice), lattice.period)
    return bool((sums.lines >= WELL_MEASURED).all())


def _without(part: Strip, windows: Score | None, lattice: Lattice) -> Strip:
    """The strip with the windows' profile divided out, for a wider lattice whose lines are few of the windows'."""
    if windows is None or lattice.period <= windows.period:
        return part
    if lattice.period % windows.period == 0 and lattice.period < WELL_MEASURED * windows.period:
        return part  # every line is a window's line too, and most window's lines are these
    usual = np.array([1.0 if v is None else v for v in windows.profile])
    phase = (part.first + np.arange(part.steps.shape[1])) % windows.period
    return replace(part, steps=(part.steps / np.maximum(usual[phase], 1e-6)).astype(np.float32))


def _paired_axis(
    fields: Sequence[tuple[tuple[int, int], NDArray[Any]]], *, axis: int, stride: int
) -> tuple[Floats, Floats]:
    """(phase,) mean over dimensions and (phase, dim): steps of a phase over those of the same lines elsewhere."""
    steps = np.stack([np.abs(np.diff(field.astype(np.float64), axis=axis)).mean(axis=1 - axis) for _, field in fields])
    phases = np.stack([(np.arange(1, steps.shape[1] + 1) - origin[axis]) % stride for origin, _ in fields])
    if (phases == phases[0]).all():
        raise InvalidInputError("all lattices have the same origin: their steps cannot be compared")
    means, dims = np.full(stride, np.nan), np.full((stride, steps.shape[2]), np.nan)
    for phase in range(stride):
        here = phases == phase
        counted = here & (~here).any(axis=0)
        if not counted.any():
            continue
        other = (np.where(here[..., None], 0.0, steps).sum(0) / np.maximum((~here).sum(0), 1)[:, None])[None]
        mine = steps[counted].sum(0)
        same = np.broadcast_to(other, steps.shape)[counted].sum(0)
        means[phase] = mine.sum() / max(same.sum(), 1e-30)
        dims[phase] = mine / np.maximum(same, 1e-30)
    return means, dims
