"""Linear probes: logistic regression on embeddings, scored by place, saved without pickle, applied to int8 codes.

Knows vectors, classes and group names; nothing of files of labels or stores. A probe belongs to one calibration and one
set of weights, and refuses others.

Scores come from cross-validation in which whole places are held out. Two samples share a group when they share a
polygon or a place (transitively), because neighbouring pixels see the same ground through the encoder's window and a
random split would score memory instead of skill. Beside the scores stand the majority-class baseline and a control
that repeats the validation with the classes permuted between polygons: a control well above chance means a leak.
"""

from __future__ import annotations

import colorsys
import contextlib
import json
import logging
import math
import os
import re
import uuid
import warnings
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import InvalidInputError, OutputError
from pipeline.types import NODATA_CODE, Calibration, ModelCard, content_hash

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Sequence
    from datetime import datetime

    from numpy.typing import NDArray
    from rich.table import Table

    Fold = tuple[NDArray[np.int64], NDArray[np.int64]]
    _Floats = NDArray[np.float64]

logger = logging.getLogger(__name__)

FORMAT = "earthpress-probe/1"
MAX_CLASSES = 254
"""uint8 codes 0..253; 255 is nodata and 254 stays free for tools that want an 'other'."""
NODATA_CLASS = 255
MAX_FILE_BYTES = 64_000_000
C_GRID = (0.01, 0.1, 1.0, 10.0)
"""Inverse regularisations tried inside every training part (smaller is stronger); features are standardised."""
_CONTROLS = 3
_CHUNK_PX = 4096
_MAX_ITER = 500
_CHOICE_SAMPLES = 4000
"""Samples on which C is chosen: the choice is coarse, and this keeps the inner folds to seconds."""
_HEX = re.compile(r"#[0-9a-f]{6}")

_KNOWN_COLOURS = (
    ("mangrove", "#0f8f86"),
    ("wet|wetland|marsh|marshes|swamp|bog|peat", "#6fb7b0"),
    ("water|waters|river|lake|ocean|sea|pond|reservoir", "#3b7dd8"),
    ("forest|tree|wood|woody", "#1f7a3d"),
    ("crop|cropping|farm|agriculture|agricultural|arable|field|cultivated", "#e3b23c"),
    ("grass|pasture|meadow|savanna|savannah", "#9bc86a"),
    ("shrub|scrub|bush", "#a38a3f"),
    ("built|builtup|urban|village|town|city|cities|settlement|building|house|road|impervious", "#c8434a"),
    ("bare|barren|soil|sand|desert|dry|dryout|rock", "#c9a883"),
    ("snow|ice|glacier", "#bfe3f5"),
    ("cloud", "#b9bcc6"),
)
_PALETTE = (
    "#4269d0", "#efb118", "#ff725c", "#3ca951", "#a463f2", "#6cc5b0", "#ff8ab7", "#9c6b4e", "#97bbf5", "#5b5f97",
    "#d45087", "#8c9a1e", "#0090a8", "#b35900", "#7a7a7a", "#c2a5f0",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassScore:
    """How well one class was found; None where it could not be validated.

    Attributes:
        name: Class.
        samples: Pixels used in the fit.
        groups: Independent places.
        precision: Share of the pixels called this class that are.
        recall: Share of the pixels of this class that were found.
        f1: Harmonic mean of both.
        iou: Intersection over union.
    """

    name: str
    samples: int
    groups: int
    precision: float | None
    recall: float | None
    f1: float | None
    iou: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeReport:
    """Scores of pooled held-out predictions; None (and a note) when nothing could be validated.

    Attributes:
        accuracy: Share of right pixels.
        balanced_accuracy: Mean recall of the validated classes.
        baseline_accuracy: Share of the largest class: what always guessing it scores.
        control_balanced_accuracy: The same validation with classes permuted between polygons; chance is expected.
        chance: 1 / validated classes.
        folds: Folds used; 0 when not validated.
        fold_scores: Balanced accuracy of each fold.
        classes: Per class.
        confusion: (true, predicted) counts, rows and columns in the order of ``classes``.
        samples: Pixels used after the cap.
        groups: Independent places.
        max_px_per_polygon: The cap that was applied.
        c: Inverse regularisation of the final fit.
        notes: What a reader of the scores must know.
    """

    accuracy: float | None
    balanced_accuracy: float | None
    baseline_accuracy: float | None
    control_balanced_accuracy: float | None
    chance: float | None
    folds: int
    fold_scores: tuple[float, ...]
    classes: tuple[ClassScore, ...]
    confusion: tuple[tuple[int, ...], ...]
    samples: int
    groups: int
    max_px_per_polygon: int
    c: float
    notes: tuple[str, ...]

    def to_json(self) -> str:
        """The report as one JSON object."""
        return json.dumps(asdict(self), allow_nan=False)

    def table(self) -> Table:
        """The scores as a rich table, one row per class."""
        from rich.table import Table  # noqa: PLC0415

        head = ("class", "pixels", "places", "precision", "recall", "F1", "IoU")
        table = Table(
            title="Scores on held-out places",
            title_justify="left",
            caption="\n".join(self.notes) or None,
            caption_justify="left",
        )
        for index, name in enumerate(head):
            table.add_column(name, justify="right" if index else "left")
        for c in self.classes:
            scores = (c.precision, c.recall, c.f1, c.iou)
            table.add_row(c.name, str(c.samples), str(c.groups), *(_shown(s) for s in scores))
        return table

    def headline(self) -> str:
        """One line: score, baseline, control."""
        if not self.folds:
            return "not validated"
        return (
            f"balanced accuracy {_shown(self.balanced_accuracy)} (chance {_shown(self.chance)}, shuffled control "
            f"{_shown(self.control_balanced_accuracy)}), accuracy {_shown(self.accuracy)} (majority class "
            f"{_shown(self.baseline_accuracy)}), {self.folds} folds by place"
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Probe:
    """A linear classifier of dequantised embeddings: score = weights @ vector + bias, largest score wins.

    Attributes:
        weights: (class, dim) float64, standardisation folded in.
        bias: (class,) float64.
        names: Class names; the uint8 code of a class is its position.
        colours: ``#rrggbb`` of each class.
        calibration: Hash of the calibration of the vectors it was fitted on.
        model_sha256: Weights of the model that made the vectors.
        model_name: Name of that model.
        trained: False when that model had random weights: maps must be labelled.
        patch_px: Patch of the embedding.
        created: ISO 8601 UTC.
        report: ``ProbeReport.to_json()``.
    """

    weights: NDArray[np.float64]
    bias: NDArray[np.float64]
    names: tuple[str, ...]
    colours: tuple[str, ...]
    calibration: str
    model_sha256: str
    model_name: str
    trained: bool
    patch_px: int
    created: str
    report: str

    def __post_init__(self) -> None:
        classes = len(self.names)
        if not 2 <= classes <= MAX_CLASSES:
            raise InvalidInputError(f"a probe has 2..{MAX_CLASSES} classes (uint8 map, 255 is nodata), got {classes}")
        if self.weights.ndim != 2 or self.weights.shape[0] != classes or not self.weights.shape[1]:
            raise InvalidInputError(f"Probe.weights have shape {self.weights.shape}, want ({classes}, dim)")
        if self.bias.shape != (classes,):
            raise InvalidInputError(f"Probe.bias has shape {self.bias.shape}, want ({classes},)")
        if self.weights.dtype != np.float64 or self.bias.dtype != np.float64:
            raise InvalidInputError(f"Probe arrays are {self.weights.dtype} and {self.bias.dtype}, want float64")
        if not (np.isfinite(self.weights).all() and np.isfinite(self.bias).all()):
            raise InvalidInputError("Probe.weights or Probe.bias hold NaN or infinite numbers")
        if len(set(self.names)) != classes:
            raise InvalidInputError(f"Probe.names are not distinct: {self.names}")
        if len(self.colours) != classes or not all(_HEX.fullmatch(c) for c in self.colours):
            raise InvalidInputError(f"Probe.colours must be {classes} of the form #rrggbb, got {self.colours}")

    @property
    def dims(self) -> int:
        """Width of the vectors."""
        return int(self.weights.shape[1])

    @property
    def values(self) -> tuple[int, ...]:
        """uint8 code of every class in a map."""
        return tuple(range(len(self.names)))

    @property
    def hash(self) -> str:
        """Content hash of everything that decides a map's pixels and their meaning."""
        return content_hash([self.weights.tolist(), self.bias.tolist(), self.names, self.calibration])

    def check(self, calibration_hash: str, model_sha256: str) -> None:
        """Refuse vectors of another calibration or model.

        Raises:
            InvalidInputError: Either differs; both sides are named.
        """
        if calibration_hash != self.calibration:
            raise InvalidInputError(
                f"the probe was fitted on calibration {self.calibration}, the store has {calibration_hash}: "
                "fit a probe on this store"
            )
        if model_sha256 != self.model_sha256:
            raise InvalidInputError(
                f"the probe was fitted on model {self.model_name} (sha256 {self.model_sha256}), the store was made by "
                f"sha256 {model_sha256}: fit a probe on this store"
            )

    def classify(
        self, codes: NDArray[np.int8], scale: NDArray[np.float32], valid: NDArray[np.bool_]
    ) -> NDArray[np.uint8]:
        """The class of every pixel.

        The result of a pixel depends on its codes only: weights times scale are rounded to integers small enough that
        every partial sum is exact in float64, so neither the order of summation nor the shape of the array can matter.

        Args:
            codes: (dim, row, col) int8; -128 is nodata.
            scale: (dim,) value of one code step.
            valid: (row, col) bool.

        Returns:
            (row, col) uint8: position in ``names``, the first of equal scores; 255 where not valid.

        Raises:
            InvalidInputError: Shapes or dtypes do not agree with the probe.
        """
        if codes.ndim != 3 or codes.shape[0] != self.dims or codes.dtype != np.int8:
            raise InvalidInputError(
                f"codes are {codes.dtype} {codes.shape}, the probe wants int8 ({self.dims}, row, col)"
            )
        if scale.shape != (self.dims,) or valid.shape != codes.shape[1:] or valid.dtype != np.bool_:
            raise InvalidInputError(
                f"scale {scale.shape} and valid {valid.dtype} {valid.shape} do not fit {codes.shape}"
            )
        weights, bias = self._integer_scores(scale)
        rows, cols = valid.shape
        classes = np.full((rows, cols), NODATA_CLASS, dtype=np.uint8)
        step = max(1, _CHUNK_PX // max(cols, 1))
        for row in range(0, rows, step):
            part = codes[:, row : row + step]
            keep = valid[row : row + step] & (part[0] != NODATA_CODE)
            if keep.any():
                scores = weights @ part.reshape(self.dims, -1).astype(np.float64) + bias[:, None]
                winner = scores.argmax(axis=0).astype(np.uint8).reshape(keep.shape)
                classes[row : row + step] = np.where(keep, winner, np.uint8(NODATA_CLASS))
        return classes

    def _integer_scores(self, scale: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Weights and bias for codes, as integers (in float64) whose sums stay below 2**53.

        The largest possible |score| becomes less than 2**51; rounding adds at most half a unit per code step, i.e. a
        relative error of 127 * dim / 2**52, about 1e-11.
        """
        weights = self.weights * scale.astype(np.float64)
        if not np.isfinite(weights).all():
            raise InvalidInputError("scale holds NaN or infinite numbers")
        bound = float((128 * np.abs(weights).sum(axis=1) + np.abs(self.bias)).max())
        exponent = 51 - math.frexp(bound)[1]
        return np.rint(np.ldexp(weights, exponent)), np.rint(np.ldexp(self.bias, exponent))

    def save(self, path: str) -> None:
        """Write the probe as one JSON file, numbers in full precision; atomic.

        Raises:
            OutputError: The file cannot be written.
        """
        payload = {"format": FORMAT} | {f.name: getattr(self, f.name) for f in fields(self)}
        payload |= {"weights": self.weights.tolist(), "bias": self.bias.tolist(), "report": json.loads(self.report)}
        _write_atomically(Path(path), json.dumps(payload, allow_nan=False, indent=None, separators=(",", ":")))


def load(path: str) -> Probe:
    """Read a probe written by ``Probe.save``; nothing in the file is executed.

    Raises:
        InvalidInputError: No such file, not a probe, another format, wrong shapes or numbers that are not finite.
    """
    payload = _read_json(path)
    if not isinstance(payload, dict) or payload.get("format") != FORMAT:
        raise InvalidInputError(f"{path} is not a probe file of format {FORMAT}")
    try:
        return Probe(
            weights=np.array(payload["weights"], dtype=np.float64),
            bias=np.array(payload["bias"], dtype=np.float64),
            names=_texts(payload["names"]),
            colours=_texts(payload["colours"]),
            trained=payload["trained"] is True,
            patch_px=int(payload["patch_px"]),
            report=json.dumps(payload["report"], allow_nan=False),
            **{k: _text(payload[k]) for k in ("calibration", "model_sha256", "model_name", "created")},
        )
    except KeyError as err:
        raise InvalidInputError(f"probe file {path} lacks {err.args[0]!r}") from err
    except (TypeError, ValueError) as err:
        raise InvalidInputError(f"probe file {path} is damaged: {err}") from err


def fit(
    features: NDArray[np.float32],
    classes: Sequence[str | int],
    groups: Sequence[Hashable],
    places: Sequence[Hashable],
    *,
    card: ModelCard,
    calibration: Calibration,
    created: datetime,
    seed: int = 0,
    balanced: bool = True,
    max_px_per_polygon: int = 100,
    max_samples: int = 50_000,
    c_grid: tuple[float, ...] = C_GRID,
    colours: tuple[str, ...] | None = None,
) -> tuple[Probe, ProbeReport]:
    """Fit a probe and validate it by place.

    At most ``max_px_per_polygon`` pixels of a polygon are used, drawn with ``seed``, so that one big polygon does not
    decide the fit; the cap is lowered further until at most ``max_samples`` remain.

    Args:
        features: (sample, dim) float32, dequantised codes.
        classes: Class of each sample.
        groups: Polygon of each sample.
        places: Coarse place of each sample; samples that share a polygon or a place are never split.
        card: Model that made the vectors.
        calibration: Calibration of the vectors.
        created: Time of the fit, UTC.
        seed: Of the draw, the folds and the control.
        balanced: Weigh classes inversely to their number of samples.
        max_px_per_polygon: Cap on the pixels of one polygon.
        max_samples: Cap on all pixels.
        c_grid: Inverse regularisations to choose from.
        colours: ``#rrggbb`` per class in the order of sorted names; by default chosen by name.

    Returns:
        The probe, fitted on all samples, and the report of the validation.

    Raises:
        InvalidInputError: Sizes disagree, features not finite, fewer than two or more than 254 classes.
    """
    names, y_all = _encoded(features, classes, groups, places)
    kept, cap = _capped(groups, seed=seed, per_polygon=max_px_per_polygon, total=max_samples)
    x, y = features[kept].astype(np.float64), y_all[kept]
    polygons = _integers([groups[i] for i in kept])
    component = components(polygons, _integers([places[i] for i in kept]))
    trainer = _Trainer(balanced=balanced, c_grid=c_grid, seed=seed)
    folds, notes = grouped_folds(y, component, names=names, seed=seed)
    predicted = trainer.held_out(x, y, component, folds)
    control = [
        _balanced(_confusion(shuffled, trainer.held_out(x, shuffled, component, folds, c=1.0), len(names)))
        for shuffled in _permuted(y, polygons, seed=seed)
        if folds
    ]
    c = trainer.choose(x, y, component)
    weights, bias = trainer.train(x, y, c)
    report = _report(
        names,
        y=y,
        predicted=predicted,
        component=component,
        folds=folds,
        control=float(np.mean(control)) if control else None,
        cap=cap,
        c=c,
        notes=(*notes, *trainer.notes(), *_cap_note(len(y_all), len(kept), cap)),
    )
    logger.info("probe of %d classes from %d samples: %s", len(names), len(y), report.headline())
    probe = Probe(
        weights=weights,
        bias=bias,
        names=names,
        colours=colours or default_colours(names),
        calibration=calibration.hash,
        model_sha256=card.sha256,
        model_name=card.name,
        trained=card.trained,
        patch_px=calibration.patch_px,
        created=created.isoformat(),
        report=report.to_json(),
    )
    return probe, report


def components(polygons: NDArray[np.int64], places: NDArray[np.int64]) -> NDArray[np.int64]:
    """The cross-validation group of every sample: samples that share a polygon or a place, transitively.

    >>> components(np.array([0, 0, 1, 2]), np.array([5, 6, 6, 7])).tolist()
    [0, 0, 0, 1]
    """
    from scipy.sparse import coo_array  # noqa: PLC0415
    from scipy.sparse.csgraph import connected_components  # noqa: PLC0415

    left, right = (np.unique(a, return_inverse=True)[1] for a in (polygons, places))
    size = int(left.max()) + 1
    nodes = size + int(right.max()) + 1
    graph = coo_array((np.ones(len(left)), (left, right + size)), shape=(nodes, nodes))
    return np.asarray(connected_components(graph, directed=False)[1][left], dtype=np.int64)


def grouped_folds(
    y: NDArray[np.int64], component: NDArray[np.int64], *, names: tuple[str, ...], seed: int, most: int = 5
) -> tuple[tuple[Fold, ...], tuple[str, ...]]:
    """Split samples into folds that keep components whole and class shares alike.

    As many folds as the rarest class has components, at most ``most``. A class of a single component cannot be held out
    and learned at once: its samples only train. With fewer than two other classes there are no folds.

    Returns:
        ((train, test) sample indices of every fold, notes for the reader of the scores).
    """
    from sklearn.model_selection import StratifiedGroupKFold  # noqa: PLC0415

    places = [len(np.unique(component[y == k])) for k in range(len(names))]
    notes = [
        f"class {names[k]!r} comes from {n} place: it is learned but not validated; label it in more places"
        for k, n in enumerate(places)
        if n == 1
    ]
    testable = np.flatnonzero(np.array(places) >= 2)
    if len(testable) < 2:
        return (), (*notes, "not validated: fewer than two classes were labelled in two or more separate places")
    inside = np.flatnonzero(np.isin(y, testable))
    count = min(most, *(places[k] for k in testable))
    if count < most:
        rare = [names[k] for k in testable if places[k] == count]
        notes.append(f"{count} folds only: {', '.join(rare)} labelled in {count} separate places")
    splitter = StratifiedGroupKFold(n_splits=count, shuffle=True, random_state=seed)
    folds: list[Fold] = []
    for _, test in splitter.split(inside, y[inside], component[inside]):
        train = np.flatnonzero(~np.isin(component, component[inside[test]]))
        missing = np.setdiff1d(y[inside[test]], y[train])
        if len(test) == 0 or len(np.unique(y[train])) < 2:
            notes.append("a fold was left out: what remains without it holds fewer than two classes")
            continue
        if len(missing):
            notes.append(f"a fold tests {', '.join(names[k] for k in missing)} without having seen it: scores are low")
        folds.append((train, inside[test]))
    return tuple(folds), tuple(notes)


class _Trainer:
    """Fits standardised logistic regressions; remembers what went wrong."""

    def __init__(self, *, balanced: bool, c_grid: tuple[float, ...], seed: int) -> None:
        self._weight = "balanced" if balanced else None
        self._grid = tuple(sorted(c_grid))
        self._seed = seed
        self._unfinished = 0

    def train(self, x: NDArray[np.float64], y: NDArray[np.int64], c: float) -> tuple[_Floats, _Floats]:
        """(class, dim) weights and (class,) bias in units of ``x``; classes absent from ``y`` have bias -inf."""
        from sklearn.exceptions import ConvergenceWarning  # noqa: PLC0415
        from sklearn.linear_model import LogisticRegression  # noqa: PLC0415
        from sklearn.preprocessing import StandardScaler  # noqa: PLC0415
        from threadpoolctl import threadpool_limits  # noqa: PLC0415

        scaler = StandardScaler().fit(x)
        model = LogisticRegression(C=c, class_weight=self._weight, max_iter=_MAX_ITER)
        # One thread: on a shared machine the barriers of many small products cost far more than they gain (measured
        # 15 s against more than 5 minutes for the demo's probe on two busy cores).
        with threadpool_limits(1), warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(scaler.transform(x), y)
        self._unfinished += int(model.n_iter_.max() >= _MAX_ITER)
        coef, intercept = model.coef_, model.intercept_
        if len(model.classes_) == 2:  # sklearn keeps one row: the score of the second class against the first
            coef, intercept = np.vstack([0 * coef, coef]), np.concatenate([[0.0], intercept])
        weights = np.zeros((int(y.max()) + 1, x.shape[1]))
        bias = np.full(len(weights), -np.inf)
        weights[model.classes_] = coef / scaler.scale_
        bias[model.classes_] = intercept - weights[model.classes_] @ scaler.mean_
        return weights, bias

    def held_out(
        self,
        x: NDArray[np.float64],
        y: NDArray[np.int64],
        component: NDArray[np.int64],
        folds: tuple[Fold, ...],
        *,
        c: float | None = None,
    ) -> NDArray[np.int64]:
        """Predicted class of every sample by the fit that has not seen its component; -1 where there is none.

        Without ``c`` it is chosen anew inside every training part, so that the choice has not seen the test part.
        """
        predicted = np.full(len(y), -1, dtype=np.int64)
        for train, test in folds:
            if len(np.unique(y[train])) < 2:
                continue
            chosen = self.choose(x[train], y[train], component[train]) if c is None else c
            weights, bias = self.train(x[train], y[train], chosen)
            predicted[test] = (x[test] @ weights.T + bias).argmax(axis=1)
        return predicted

    def choose(self, x: NDArray[np.float64], y: NDArray[np.int64], component: NDArray[np.int64]) -> float:
        """The C of the grid with the best grouped balanced accuracy, the smallest of equals; 1.0 without folds."""
        some = np.sort(np.random.default_rng(self._seed).permutation(len(y))[:_CHOICE_SAMPLES])
        codes, inner = np.unique(y[some], return_inverse=True)
        names = tuple(str(k) for k in codes)
        folds, _ = grouped_folds(inner, component[some], names=names, seed=self._seed, most=3)
        if not folds or len(self._grid) == 1:
            return min(self._grid, key=lambda c: abs(math.log(c)))
        scores = {
            c: _balanced(_confusion(inner, self.held_out(x[some], inner, component[some], folds, c=c), len(codes)))
            for c in self._grid
        }
        return max(self._grid, key=lambda c: (round(scores[c], 6), -c))

    def notes(self) -> tuple[str, ...]:
        """What the reader of the scores must know about the fits."""
        if not self._unfinished:
            return ()
        return (f"{self._unfinished} fits stopped at {_MAX_ITER} iterations before they had converged",)


def _encoded(
    features: NDArray[np.float32], classes: Sequence[str | int], groups: Sequence[Hashable], places: Sequence[Hashable]
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """(sorted class names, code of every sample); checks sizes and values."""
    sizes = (len(classes), len(groups), len(places))
    if features.ndim != 2 or any(n != len(features) for n in sizes):
        raise InvalidInputError(f"features are {features.shape}, classes, groups and places count {sizes}")
    if not np.isfinite(features).all():
        raise InvalidInputError("features hold NaN or infinite numbers: leave pixels without an embedding out")
    ordered = sorted(set(classes), key=lambda c: (isinstance(c, str), c))
    names = tuple(dict.fromkeys(str(c) for c in ordered))
    if not 2 <= len(names) <= MAX_CLASSES:
        raise InvalidInputError(
            f"{len(names)} class(es) have pixels with an embedding, a probe takes 2..{MAX_CLASSES}: check that the "
            "labels lie inside the store"
        )
    code = {name: k for k, name in enumerate(names)}
    return names, np.array([code[str(c)] for c in classes], dtype=np.int64)


def _integers(keys: Sequence[Hashable]) -> NDArray[np.int64]:
    """Equal keys become equal numbers, in order of appearance."""
    number = {key: n for n, key in enumerate(dict.fromkeys(keys))}
    return np.array([number[key] for key in keys], dtype=np.int64)


def _capped(groups: Sequence[Hashable], *, seed: int, per_polygon: int, total: int) -> tuple[NDArray[np.int64], int]:
    """(sorted indices of the samples to use, the cap): a seeded draw, at least one sample of every polygon."""
    polygon = _integers(groups)
    order = np.lexsort((np.random.default_rng(seed).random(len(polygon)), polygon))
    counts = np.bincount(polygon)
    rank = np.arange(len(polygon)) - np.repeat(np.cumsum(counts) - counts, counts)
    cap = per_polygon
    while cap > 1 and np.minimum(counts, cap).sum() > total:
        cap -= 1
    return np.sort(order[rank < cap]), cap


def _cap_note(before: int, after: int, cap: int) -> tuple[str, ...]:
    if after == before:
        return ()
    return (f"{after} of {before} labelled pixels used: at most {cap} per polygon, drawn at random",)


def _permuted(y: NDArray[np.int64], polygons: NDArray[np.int64], *, seed: int) -> Iterator[NDArray[np.int64]]:
    """Class codes with the classes of whole polygons exchanged at random."""
    _, first, inverse = np.unique(polygons, return_index=True, return_inverse=True)
    for control in range(_CONTROLS):
        yield np.random.default_rng([seed, control]).permutation(y[first])[inverse]


def _confusion(y: NDArray[np.int64], predicted: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """(true, predicted) counts of the samples that were predicted."""
    seen = predicted >= 0
    counts = np.bincount(y[seen] * classes + predicted[seen], minlength=classes * classes)
    return counts.reshape(classes, classes)


def _balanced(confusion: NDArray[np.int64]) -> float:
    """Mean recall of the classes that were tested."""
    true = confusion.sum(axis=1)
    tested = true > 0
    return float((confusion.diagonal()[tested] / true[tested]).mean()) if tested.any() else 0.0


def _report(
    names: tuple[str, ...],
    *,
    y: NDArray[np.int64],
    predicted: NDArray[np.int64],
    component: NDArray[np.int64],
    folds: tuple[Fold, ...],
    control: float | None,
    cap: int,
    c: float,
    notes: tuple[str, ...],
) -> ProbeReport:
    confusion = _confusion(y, predicted, len(names))
    true, total = confusion.sum(axis=1), int(confusion.sum())
    by_fold = [_confusion(y[test], predicted[test], len(names)) for _, test in folds]
    return ProbeReport(
        accuracy=float(confusion.trace() / total) if total else None,
        balanced_accuracy=_balanced(confusion) if total else None,
        baseline_accuracy=float(true.max() / total) if total else None,
        control_balanced_accuracy=control,
        chance=1.0 / int((true > 0).sum()) if total else None,
        folds=len(folds),
        fold_scores=tuple(_balanced(part) for part in by_fold),
        classes=tuple(
            _class_score(
                confusion, k, name=name, samples=int((y == k).sum()), groups=len(set(component[y == k].tolist()))
            )
            for k, name in enumerate(names)
        ),
        confusion=tuple(tuple(int(n) for n in row) for row in confusion),
        samples=len(y),
        groups=len(set(component.tolist())),
        max_px_per_polygon=cap,
        c=c,
        notes=notes,
    )


def _class_score(confusion: NDArray[np.int64], k: int, *, name: str, samples: int, groups: int) -> ClassScore:
    right, true, called = int(confusion[k, k]), int(confusion[k].sum()), int(confusion[:, k].sum())
    tested = true > 0
    return ClassScore(
        name=name,
        samples=samples,
        groups=groups,
        precision=right / called if tested and called else None,
        recall=right / true if tested else None,
        f1=2 * right / (true + called) if tested else None,
        iou=right / (true + called - right) if tested else None,
    )


def default_colours(names: Sequence[str]) -> tuple[str, ...]:
    """``#rrggbb`` per class: by well-known words (water, forest, crops, built, bare, ...), else from a palette.

    >>> default_colours(["Water", "rice", "cropland"])
    ('#3b7dd8', '#4269d0', '#e3b23c')
    """
    chosen: dict[str, str] = {}
    for name in names:
        words = re.sub(r"[\W_]+", " ", name.lower())
        known = next(
            (c for pattern, c in _KNOWN_COLOURS if re.search(rf"\b(?:{pattern})(?:s|ed|lands?)?\b", words)), None
        )
        if known is not None and known not in chosen.values():
            chosen[name] = known
    spare = iter(_PALETTE)
    for index, name in enumerate(n for n in names if n not in chosen):
        chosen[name] = next(spare, None) or _golden_colour(index)
    return tuple(chosen[name] for name in names)


def _golden_colour(index: int) -> str:
    """Hues a golden ratio of the circle apart: neighbours differ, however many there are."""
    red, green, blue = colorsys.hsv_to_rgb(index * 0.618033988749895 % 1.0, 0.45 + 0.2 * (index % 3), 0.85)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"


def _shown(score: float | None) -> str:
    return "-" if score is None else f"{score:.3f}"


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, got {type(value).__name__}")
    return value


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError(f"expected a list of texts, got {type(value).__name__}")
    return tuple(_text(v) for v in value)


def _read_json(path: str) -> Any:
    file = Path(path)
    if not file.is_file():
        raise InvalidInputError(f"probe file {path} does not exist: make one with 'earthpress probe fit'")
    if file.stat().st_size > MAX_FILE_BYTES:
        raise InvalidInputError(f"probe file {path} has {file.stat().st_size} bytes, the limit is {MAX_FILE_BYTES}")
    try:
        return json.loads(file.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as err:
        raise InvalidInputError(f"probe file {path} is not a JSON probe file: {err}") from err


def _refuse_constant(name: str) -> float:
    raise ValueError(f"it holds {name}")


def _write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as err:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise OutputError(f"probe file {path} cannot be written: {err}") from err
