"""Fit a regression probe and score it by place.

Beside the scores of pooled held-out predictions stand the baseline (the mean of the training part, said everywhere) and
a control that repeats the validation with the values permuted between polygons: a control well above 0 means a leak.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import InvalidInputError
from pipeline.maps.folds import cap_note, capped, components, integers, permuted
from pipeline.maps.ridge import Regressor
from pipeline.maps.words import score_table

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence
    from datetime import datetime

    from numpy.typing import NDArray
    from rich.table import Table

    from pipeline.maps.folds import Fold
    from pipeline.types import Calibration, ModelCard

    _Floats = NDArray[np.float64]

logger = logging.getLogger(__name__)

ALPHAS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Penalties tried inside every training part, per sample; features are standardised, so they have no unit."""
MIN_LABELS = 10
"""Labelled points or polygons below which nothing is fitted: a line through a few points says nothing."""
MAX_FOLDS = 5
RANGES = 5
_CHOICE_SAMPLES = 8000
"""Samples on which the penalty is chosen: the choice is coarse."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RangeScore:
    """Held-out errors of the samples whose true value lies in a range, in units of the quantity.

    Attributes:
        low: Smallest true value.
        high: Largest true value.
        samples: Pixels.
        places: Independent places.
        rmse: Root of the mean squared error.
        bias: Mean of predicted minus true: above 0 too high.
    """

    low: float
    high: float
    samples: int
    places: int
    rmse: float
    bias: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RidgeReport:
    """Scores of pooled held-out predictions; None (and a note) when nothing could be validated.

    Attributes:
        name: The quantity.
        units: Its units, which errors have too.
        r2: 1 - squared errors / squared deviations from the mean; below 0: worse than the mean.
        rmse: Root of the mean squared error.
        mae: Mean of the absolute error.
        bias: Mean of predicted minus true.
        baseline_rmse: The same validation of a map that says the mean of the training part everywhere.
        control_r2: The same validation with values permuted between polygons; about 0 or less is expected.
        folds: Folds used; 0 when not validated.
        fold_rmse: Of each fold.
        ranges: By true value, rising; they show whether low values are overrated and high ones underrated.
        samples: Pixels used after the cap.
        places: Independent places.
        max_px_per_polygon: The cap that was applied.
        alpha: Penalty of the final fit, per sample.
        low: Smallest value.
        high: Largest value.
        notes: What a reader of the scores must know.
    """

    name: str
    units: str
    r2: float | None
    rmse: float | None
    mae: float | None
    bias: float | None
    baseline_rmse: float | None
    control_r2: float | None
    folds: int
    fold_rmse: tuple[float, ...]
    ranges: tuple[RangeScore, ...]
    samples: int
    places: int
    max_px_per_polygon: int
    alpha: float
    low: float
    high: float
    notes: tuple[str, ...]

    def to_json(self) -> str:
        """The report as one JSON object."""
        return json.dumps(asdict(self), allow_nan=False)

    def table(self) -> Table:
        """The errors as a rich table, one row per range of true values."""
        unit = f" ({self.units})" if self.units else ""
        rows = (
            (f"{r.low:.4g} to {r.high:.4g}", str(r.samples), str(r.places), f"{r.rmse:.4g}", f"{r.bias:+.4g}")
            for r in self.ranges
        )
        heads = (f"true {self.name}{unit}", "pixels", "places", "RMSE", "bias")
        return score_table(f"Errors on held-out places, by true {self.name}", heads, rows, notes=self.notes)

    def headline(self) -> str:
        """One line: score, baseline, control."""
        if self.rmse is None or self.bias is None or self.baseline_rmse is None:
            return "not validated"
        unit = f" {self.units}" if self.units else ""
        r2, control = (f"{v:.3f}" if v is not None else "-" for v in (self.r2, self.control_r2))
        return (
            f"R2 {r2} (shuffled control {control}), RMSE {self.rmse:.4g}{unit} (always the mean: "
            f"{self.baseline_rmse:.4g}{unit}), bias {self.bias:+.3g}{unit}, {self.folds} folds by place"
        )


def fit(
    features: NDArray[np.float32],
    values: Sequence[float],
    groups: Sequence[Hashable],
    places: Sequence[Hashable],
    *,
    name: str,
    card: ModelCard,
    calibration: Calibration,
    created: datetime,
    units: str = "",
    seed: int = 0,
    max_px_per_polygon: int = 100,
    max_samples: int = 50_000,
    alphas: tuple[float, ...] = ALPHAS,
) -> tuple[Regressor, RidgeReport]:
    """Fit a regressor and validate it by place.

    Polygons are capped as for classes. The penalty is chosen anew inside every training part, so that the choice has
    not seen the test part.

    Args:
        features: (sample, band) float32, decoded codes.
        values: Value of each sample, finite.
        groups: Polygon of each sample; all its samples have one value.
        places: Coarse place of each sample; samples that share a polygon or a place are never split.
        name: The quantity.
        card: Model that made the vectors.
        calibration: Calibration of the vectors.
        created: Time of the fit, UTC.
        units: Of the values.
        seed: Of the draw, the folds and the control.
        max_px_per_polygon: Cap on the pixels of one polygon.
        max_samples: Cap on all pixels.
        alphas: Penalties to choose from.

    Returns:
        The regressor, fitted on all samples, and the report of the validation.

    Raises:
        InvalidInputError: Sizes disagree, numbers not finite, fewer than ``MIN_LABELS`` polygons, or all values equal.
    """
    from threadpoolctl import threadpool_limits  # noqa: PLC0415

    known = _checked(features, values, groups, places, name=name)
    kept, cap = capped(groups, seed=seed, per_polygon=max_px_per_polygon, total=max_samples)
    x, y = features[kept].astype(np.float64), known[kept]
    polygons = integers([groups[i] for i in kept])
    component = components(polygons, integers([places[i] for i in kept]))
    folds, notes = place_folds(component, seed=seed)
    with threadpool_limits(1):  # many small products: see the classifier
        alpha = _choose(x, y, component, alphas=alphas, seed=seed)
        predicted = _held_out(x, y, component, folds, alphas=alphas, seed=seed)
        controls = [
            _r2(shuffled, _held_out(x, shuffled, component, folds, alphas=(alpha,), seed=seed))
            for shuffled in permuted(y, polygons, seed=seed)
            if folds
        ]
        weights, bias = _Ridge(x, y).at(alpha)
    report = _report(
        y,
        predicted,
        component,
        folds,
        text=(name, units),
        control=controls,
        cap=cap,
        alpha=alpha,
        notes=(*notes, *cap_note(len(known), len(kept), cap)),
    )
    logger.info("regression of %s from %d samples: %s", name, len(y), report.headline())
    regressor = Regressor(
        weights=weights,
        bias=bias,
        name=name,
        units=units,
        low=float(y.min()),
        high=float(y.max()),
        calibration=calibration.hash,
        model_sha256=card.sha256,
        model_name=card.name,
        trained=card.trained,
        patch_px=calibration.patch_px,
        created=created.isoformat(),
        report=report.to_json(),
    )
    return regressor, report


def place_folds(component: NDArray[np.int64], *, seed: int) -> tuple[tuple[Fold, ...], tuple[str, ...]]:
    """Split samples into folds that keep components whole, with about as many samples each.

    Components go to the smallest fold so far, the large ones first, equal ones in an order that ``seed`` draws.

    Returns:
        ((train, test) sample indices of every fold, notes for the reader of the scores).
    """
    _, own, sizes = np.unique(component, return_inverse=True, return_counts=True)
    places = len(sizes)
    count = min(MAX_FOLDS, places)
    if count < 2:
        return (), ("not validated: all labels lie in one place",)
    notes = (f"{count} folds only: {places} separate places",) if count < MAX_FOLDS else ()
    fold, filled = np.zeros(places, np.int64), np.zeros(count, np.int64)
    drawn = np.random.default_rng(seed).permutation(places)
    for place in drawn[np.argsort(-sizes[drawn], kind="stable")]:
        fold[place] = filled.argmin()
        filled[fold[place]] += sizes[place]
    of_sample = fold[own]
    return tuple((np.flatnonzero(of_sample != k), np.flatnonzero(of_sample == k)) for k in range(count)), notes


class _Ridge:
    """Ridge regression on standardised features, for any penalty from one eigendecomposition.

    (Z'Z/n + alpha) coef = Z'y/n with Z standardised and y centred: Hastie, Tibshirani, Friedman, The Elements of
    Statistical Learning, section 3.4.1. A feature that does not vary gets no weight.
    """

    def __init__(self, x: _Floats, y: _Floats) -> None:
        self._centre, spread = x.mean(axis=0), x.std(axis=0)
        self._scale = np.where(spread > 0, spread, 1.0)
        self._mean = float(y.mean())
        z = (x - self._centre) / self._scale
        self._values, self._vectors = np.linalg.eigh(z.T @ z / len(y))
        self._turned = self._vectors.T @ (z.T @ (y - self._mean) / len(y))

    def at(self, alpha: float) -> tuple[_Floats, float]:
        """(band,) weights in units of ``x`` and the bias, for a penalty."""
        # rounding may leave an eigenvalue of 0 slightly below it
        weights = self._vectors @ (self._turned / (np.maximum(self._values, 0) + alpha)) / self._scale
        return weights, float(self._mean - weights @ self._centre)


def _held_out(
    x: _Floats,
    y: _Floats,
    component: NDArray[np.int64],
    folds: tuple[Fold, ...],
    *,
    alphas: tuple[float, ...],
    seed: int,
) -> _Floats:
    """Predicted value of every sample by the fit that has not seen its component; NaN without folds."""
    predicted = np.full(len(y), np.nan)
    for train, test in folds:
        alpha = _choose(x[train], y[train], component[train], alphas=alphas, seed=seed)
        weights, bias = _Ridge(x[train], y[train]).at(alpha)
        predicted[test] = x[test] @ weights + bias
    return predicted


def _choose(x: _Floats, y: _Floats, component: NDArray[np.int64], *, alphas: tuple[float, ...], seed: int) -> float:
    """The penalty with the least held-out squared error, the strongest of equals; the middle one without folds."""
    some = np.sort(np.random.default_rng(seed).permutation(len(y))[:_CHOICE_SAMPLES])
    folds, _ = place_folds(component[some], seed=seed)
    if len(alphas) == 1 or not folds:
        return sorted(alphas)[len(alphas) // 2]
    errors = dict.fromkeys(alphas, 0.0)
    for train, test in folds[:3]:
        fitted = _Ridge(x[some[train]], y[some[train]])
        for alpha in alphas:
            weights, bias = fitted.at(alpha)
            errors[alpha] += float(((x[some[test]] @ weights + bias - y[some[test]]) ** 2).sum())
    return min(alphas, key=lambda alpha: (errors[alpha], -alpha))


def _checked(
    features: NDArray[np.float32],
    values: Sequence[float],
    groups: Sequence[Hashable],
    places: Sequence[Hashable],
    *,
    name: str,
) -> _Floats:
    known = np.asarray(values, dtype=np.float64)
    sizes = (len(known), len(groups), len(places))
    if features.ndim != 2 or any(n != len(features) for n in sizes):
        raise InvalidInputError(f"features are {features.shape}, values, groups and places count {sizes}")
    if not np.isfinite(features).all():
        raise InvalidInputError("features hold NaN or infinite numbers: leave pixels without an embedding out")
    if not np.isfinite(known).all():
        raise InvalidInputError(
            f"{int((~np.isfinite(known)).sum())} values of {name} are NaN or infinite: leave them out"
        )
    labels = len(set(groups))
    if labels < MIN_LABELS:
        raise InvalidInputError(
            f"{labels} labels of {name} lie on pixels with an embedding, a regression needs {MIN_LABELS} and more: "
            "check that the labels lie inside the store"
        )
    if known.min() == known.max():
        raise InvalidInputError(f"all values of {name} are {known[0]:g}: there is nothing to learn")
    return known


def _r2(y: _Floats, predicted: _Floats) -> float | None:
    deviation = float(((y - y.mean()) ** 2).sum())
    return 1 - float(((predicted - y) ** 2).sum()) / deviation if deviation > 0 else None


def _rmse(errors: _Floats) -> float:
    return float(np.sqrt((errors**2).mean()))


def _report(
    y: _Floats,
    predicted: _Floats,
    component: NDArray[np.int64],
    folds: tuple[Fold, ...],
    *,
    text: tuple[str, str],
    control: list[float | None],
    cap: int,
    alpha: float,
    notes: tuple[str, ...],
) -> RidgeReport:
    errors = predicted - y
    mean = np.full(len(y), np.nan)
    for train, test in folds:
        mean[test] = y[train].mean()
    known = [value for value in control if value is not None]
    return RidgeReport(
        name=text[0],
        units=text[1],
        r2=_r2(y, predicted) if folds else None,
        rmse=_rmse(errors) if folds else None,
        mae=float(np.abs(errors).mean()) if folds else None,
        bias=float(errors.mean()) if folds else None,
        baseline_rmse=_rmse(mean - y) if folds else None,
        control_r2=float(np.mean(known)) if known else None,
        folds=len(folds),
        fold_rmse=tuple(_rmse(errors[test]) for _, test in folds),
        ranges=_ranges(y, errors, component) if folds else (),
        samples=len(y),
        places=len(np.unique(component)),
        max_px_per_polygon=cap,
        alpha=alpha,
        low=float(y.min()),
        high=float(y.max()),
        notes=notes,
    )


def _ranges(y: _Floats, errors: _Floats, component: NDArray[np.int64]) -> tuple[RangeScore, ...]:
    """Errors by fifths of the true values; equal values share a range."""
    edges = np.unique(np.quantile(y, np.linspace(0, 1, RANGES + 1)[1:-1]))
    index = np.searchsorted(edges, y, side="left")
    found = []
    for k in np.unique(index):
        inside = index == k
        found.append(
            RangeScore(
                low=float(y[inside].min()),
                high=float(y[inside].max()),
                samples=int(inside.sum()),
                places=len(np.unique(component[inside])),
                rmse=_rmse(errors[inside]),
                bias=float(errors[inside].mean()),
            )
        )
    return tuple(found)
