"""Linear probes: logistic regression on embeddings, saved without pickle, applied to what a store holds.

Knows codes and classes; nothing of labels or stores. A probe belongs to one calibration and one set of weights, and
refuses others. ``fitting.py`` makes it.
"""

from __future__ import annotations

import json
import re
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

FORMAT = "earthpress-probe/1"
MAX_CLASSES = 254
"""uint8 codes 0..253; 255 is nodata and 254 stays free for tools that want an 'other'."""
NODATA_CLASS = 255
_HEX = re.compile(r"#[0-9a-f]{6}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Graded:
    """What a probe says about pixels, and how sure it is.

    Attributes:
        classes: (row, col) uint8, 255 nodata.
        probability: (class, row, col) uint8 per cent, 255 nodata.
        confidence: (row, col) uint8: how far the best class is ahead of the second, per cent; 255 nodata.
    """

    classes: NDArray[np.uint8]
    probability: NDArray[np.uint8]
    confidence: NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Probe(files.Fitted):
    """A linear classifier of dequantised embeddings: score = weights @ vector + bias, largest score wins.

    Attributes:
        weights: (class, dim) float64, standardisation folded in.
        bias: (class,) float64.
        names: Class names; the uint8 code of a class is its position.
        colours: ``#rrggbb`` of each class.
        report: ``ProbeReport.to_json()``.
    """

    weights: NDArray[np.float64]
    bias: NDArray[np.float64]
    names: tuple[str, ...]
    colours: tuple[str, ...]

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

    def classify(self, coded: Coded, calibration: Calibration, valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
        """The class of every pixel; it depends on the pixel's own codes only, see ``scores``.

        Args:
            coded: (band, row, col) codes.
            calibration: How to read them.
            valid: (row, col) bool.

        Returns:
            (row, col) uint8: position in ``names``, the first of equal scores; 255 where not valid or nodata.

        Raises:
            InvalidInputError: Shapes or dtypes do not agree with the probe or the calibration.
        """
        classes = np.full(valid.shape, NODATA_CLASS, dtype=np.uint8)
        for strip in scores.strips(self.weights, self.bias, coded, calibration, valid):
            winner = strip.scores.argmax(axis=0).astype(np.uint8)
            classes[strip.rows] = np.where(strip.keep, winner, np.uint8(NODATA_CLASS))
        return classes

    def probabilities(self, coded: Coded, calibration: Calibration, valid: NDArray[np.bool_]) -> NDArray[np.float32]:
        """The probability of every class: softmax of the scores of the logistic regression, not calibrated further.

        They are those of a world in which the classes are equally frequent where the fit was ``balanced``, and are
        overconfident where pixels differ from the labelled ones.

        Args:
            coded: As ``classify``.
            calibration: As ``classify``.
            valid: As ``classify``.

        Returns:
            (class, row, col) float32, 0..1, NaN where not valid or nodata.

        Raises:
            InvalidInputError: As ``classify``.
        """
        shares = np.full((len(self.names), *valid.shape), np.nan, dtype=np.float32)
        for strip in scores.strips(self.weights, self.bias, coded, calibration, valid):
            shares[:, strip.rows] = np.where(strip.keep, scores.softmax(strip.scores), np.nan)
        return shares

    def graded(self, coded: Coded, calibration: Calibration, valid: NDArray[np.bool_]) -> Graded:
        """Classes, probabilities and confidence from one scoring.

        Args:
            coded: As ``classify``.
            calibration: As ``classify``.
            valid: As ``classify``.

        Raises:
            InvalidInputError: As ``classify``.
        """
        classes = np.full(valid.shape, NODATA_CLASS, dtype=np.uint8)
        probability = np.full((len(self.names), *valid.shape), scores.NODATA_PCT, dtype=np.uint8)
        confidence = np.full(valid.shape, scores.NODATA_PCT, dtype=np.uint8)
        for strip in scores.strips(self.weights, self.bias, coded, calibration, valid):
            shares = scores.softmax(strip.scores)
            winner = strip.scores.argmax(axis=0).astype(np.uint8)
            classes[strip.rows] = np.where(strip.keep, winner, np.uint8(NODATA_CLASS))
            probability[:, strip.rows] = scores.per_cent(shares, strip.keep)
            confidence[strip.rows] = scores.per_cent(scores.margin(shares), strip.keep)
        return Graded(classes=classes, probability=probability, confidence=confidence)

    def payload(self) -> dict[str, Any]:
        """What its file holds."""
        own = {"format": FORMAT} | {f.name: getattr(self, f.name) for f in fields(self)}
        return own | {
            "weights": self.weights.tolist(),
            "bias": self.bias.tolist(),
            "report": json.loads(self.report),
        }


def load(path: str) -> Probe:
    """Read a probe written by ``Probe.save``; nothing in the file is executed.

    Raises:
        InvalidInputError: No such file, not a probe, another format, wrong shapes or numbers that are not finite.
    """
    return of_payload(files.read_json(path), path)


def of_payload(payload: Any, path: str) -> Probe:
    """The probe of what a file held.

    Raises:
        InvalidInputError: As ``load``.
    """
    if not isinstance(payload, dict) or payload.get("format") != FORMAT:
        raise InvalidInputError(f"{path} is not a probe file of format {FORMAT}")
    try:
        return Probe(
            weights=np.array(payload["weights"], dtype=np.float64),
            bias=np.array(payload["bias"], dtype=np.float64),
            names=files.texts(payload["names"]),
            colours=files.texts(payload["colours"]),
            trained=payload["trained"] is True,
            patch_px=int(payload["patch_px"]),
            report=json.dumps(payload["report"], allow_nan=False),
            **{k: files.text(payload[k]) for k in ("calibration", "model_sha256", "model_name", "created")},
        )
    except KeyError as err:
        raise InvalidInputError(f"probe file {path} lacks {err.args[0]!r}") from err
    except (TypeError, ValueError) as err:
        raise InvalidInputError(f"probe file {path} is damaged: {err}") from err
