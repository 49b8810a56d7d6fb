"""Fit a probe and score it by place.

Beside the scores of pooled held-out predictions stand the majority-class baseline and a control that repeats the
validation with the classes permuted between polygons: a control well above chance means a leak.
"""

from __future__ import annotations

import json
import logging
import math
import warnings
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import InvalidInputError
from pipeline.maps.colours import default_colours
from pipeline.maps.folds import cap_note, capped, components, grouped_folds, integers, permuted
from pipeline.maps.probe import MAX_CLASSES, Probe
from pipeline.maps.words import score_table, shown

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence
    from datetime import datetime

    from numpy.typing import NDArray
    from rich.table import Table

    from pipeline.maps.folds import Fold
    from pipeline.types import Calibration, ModelCard

    _Floats = NDArray[np.float64]

logger = logging.getLogger(__name__)

C_GRID = (0.01, 0.1, 1.0, 10.0)
"""Inverse regularisations tried inside every training part (smaller is stronger); features are standardised."""
_MAX_ITER = 500
_CHOICE_SAMPLES = 4000
"""Samples on which C is chosen: the choice is coarse, and this keeps the inner folds to seconds."""


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
        rows = (
            (c.name, str(c.samples), str(c.groups), *map(shown, (c.precision, c.recall, c.f1, c.iou)))
            for c in self.classes
        )
        heads = ("class", "pixels", "places", "precision", "recall", "F1", "IoU")
        return score_table("Scores on held-out places", heads, rows, notes=self.notes)

    def headline(self) -> str:
        """One line: score, baseline, control."""
        if not self.folds:
            return "not validated"
        return (
            f"balanced accuracy {shown(self.balanced_accuracy)} (chance {shown(self.chance)}, shuffled control "
            f"{shown(self.control_balanced_accuracy)}), accuracy {shown(self.accuracy)} (majority class "
            f"{shown(self.baseline_accuracy)}), {self.folds} folds by place"
        )


def fit(
    features: NDArray[np.float32],
    classes: Sequence[str | int | float],
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
    kept, cap = capped(groups, seed=seed, per_polygon=max_px_per_polygon, total=max_samples)
    x, y = features[kept].astype(np.float64), y_all[kept]
    polygons = integers([groups[i] for i in kept])
    component = components(polygons, integers([places[i] for i in kept]))
    trainer = _Trainer(balanced=balanced, c_grid=c_grid, seed=seed)
    folds, notes = grouped_folds(y, component, names=names, seed=seed)
    predicted = trainer.held_out(x, y, component, folds)
    control = [
        _balanced(_confusion(shuffled, trainer.held_out(x, shuffled, component, folds, c=1.0), len(names)))
        for shuffled in permuted(y, polygons, seed=seed)
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
        notes=(*notes, *trainer.notes(), *cap_note(len(y_all), len(kept), cap)),
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
    features: NDArray[np.float32],
    classes: Sequence[str | int | float],
    groups: Sequence[Hashable],
    places: Sequence[Hashable],
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
