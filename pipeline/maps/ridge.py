"""Regression probes: ridge regression on embeddings, saved without pickle, applied to what a store holds.

Knows codes and numbers; nothing of labels or stores. A regressor belongs to one calibration and one set of weights, as
a ``Probe`` does. ``ridge_fit.py`` makes it.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import InvalidInputError
from pipeline.maps import files, scores
from pipeline.types import content_hash

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.codes import Coded
    from pipeline.types import Calibration

FORMAT = "earthpress-regressor/1"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Regressor(files.Fitted):
    """A linear function of decoded embeddings: value = weights @ vector + bias.

    Attributes:
        weights: (band,) float64, standardisation folded in; units of the quantity.
        bias: Value of the vector 0.
        name: The quantity: column of the labels.
        units: Of the quantity, e.g. ``m``; "" when nobody said.
        low: Smallest value it was fitted on: what lies outside ``low`` to ``high`` is extrapolated.
        high: Largest value it was fitted on.
        report: ``RidgeReport.to_json()``.
    """

    weights: NDArray[np.float64]
    bias: float
    name: str
    units: str
    low: float
    high: float

    def __post_init__(self) -> None:
        if self.weights.ndim != 1 or not len(self.weights) or self.weights.dtype != np.float64:
            raise InvalidInputError(
                f"Regressor.weights are {self.weights.dtype} {self.weights.shape}, want float64 (band,)"
            )
        if not np.isfinite([*self.weights, self.bias, self.low, self.high]).all():
            raise InvalidInputError("Regressor.weights, bias, low or high hold NaN or infinite numbers")
        if not self.low < self.high:
            raise InvalidInputError(f"Regressor.low is {self.low}, must be less than high, {self.high}")

    @property
    def dims(self) -> int:
        """Width of the vectors."""
        return len(self.weights)

    @property
    def hash(self) -> str:
        """Content hash of everything that decides a map's pixels and their meaning."""
        return content_hash([self.weights.tolist(), self.bias, self.name, self.units, self.calibration])

    def predict(self, coded: Coded, calibration: Calibration, valid: NDArray[np.bool_]) -> NDArray[np.float32]:
        """The value of every pixel; it depends on the pixel's own codes only, see ``scores``.

        Values outside ``low`` to ``high`` are kept: they are extrapolated, not wrong by themselves.

        Args:
            coded: (band, row, col) codes.
            calibration: How to read them.
            valid: (row, col) bool.

        Returns:
            (row, col) float32 in ``units``, NaN where not valid or nodata.

        Raises:
            InvalidInputError: Shapes or dtypes do not agree with the regressor or the calibration.
        """
        values = np.full(valid.shape, np.nan, dtype=np.float32)
        for strip in scores.strips(self.weights[None], np.array([self.bias]), coded, calibration, valid):
            values[strip.rows] = np.where(strip.keep, strip.scores[0], np.nan)
        return values

    def payload(self) -> dict[str, Any]:
        """What its file holds."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        return {"format": FORMAT} | own | {"weights": self.weights.tolist(), "report": json.loads(self.report)}


def of_payload(payload: Any, path: str) -> Regressor:
    """The regressor of what a file held.

    Raises:
        InvalidInputError: Not a regressor, another format, wrong shapes or numbers that are not finite.
    """
    if not isinstance(payload, dict) or payload.get("format") != FORMAT:
        raise InvalidInputError(f"{path} is not a probe file of format {FORMAT}")
    try:
        numbers: dict[str, Any] = {k: _number(payload[k]) for k in ("bias", "low", "high")}
        texts: dict[str, Any] = {
            k: files.text(payload[k]) for k in ("name", "units", "calibration", "model_sha256", "model_name", "created")
        }
        return Regressor(
            weights=np.array(payload["weights"], dtype=np.float64),
            trained=payload["trained"] is True,
            patch_px=int(payload["patch_px"]),
            report=json.dumps(payload["report"], allow_nan=False),
            **numbers,
            **texts,
        )
    except KeyError as err:
        raise InvalidInputError(f"probe file {path} lacks {err.args[0]!r}") from err
    except (TypeError, ValueError) as err:
        raise InvalidInputError(f"probe file {path} is damaged: {err}") from err


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError(f"expected a finite number, got {value!r}")
    return float(value)
