"""Linear scores of stored codes that depend on a pixel's own codes only, whatever the array around it.

``score = weights @ vector + bias``, where the vector is what the codes mean (``pipeline.codes``). A product of matrices
adds in an order that depends on its shape, so the last bit of a sum may differ from tile to tile. Here either every
partial sum is exact, so that no order matters, or bands are added one after the other:

- ``linear``, ``pca``: weights times scale are rounded to integers small enough that sums of code times weight are exact
  in float64.
- ``power``, ``power_raw``: the same with ``sign(q) * q**2``, an integer too.
- ``per_pixel``: exact sums of codes, then times the pixel's scale, plus bias, element by element.
- ``float16``, ``float32``: element by element in float64, band by band.

Knows weights, codes and calibrations; nothing of classes, files or stores.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.codes import POWER, POWER_STEPS, valid_of
from pipeline.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from pipeline.codes import Coded
    from pipeline.types import Calibration

VERSION = "1"
"""Raised when the same weights and codes would give other probabilities."""
NODATA_PCT = 255
EXACT_BITS = 51
"""Scores are scaled below 2**51: rounding the weights then leaves every sum below 2**53, where float64 is exact."""
MAX_CODE = 128
_CHUNK_PX = 4096

_Score = Callable[["NDArray[Any]", "NDArray[np.float64] | None"], "NDArray[np.float64]"]
"""((band, px) codes, (px,) scale of the pixels) to (score, px)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Strip:
    """Scores of whole rows of an array.

    Attributes:
        rows: Where they lie.
        keep: (row, col) bool: pixels that have a vector and are wanted; what other pixels score means nothing.
        scores: (score, row, col) float64, finite.
    """

    rows: slice
    keep: NDArray[np.bool_]
    scores: NDArray[np.float64]


def strips(
    weights: NDArray[np.float64],
    bias: NDArray[np.float64],
    coded: Coded,
    calibration: Calibration,
    valid: NDArray[np.bool_],
) -> Iterator[Strip]:
    """Yield the scores of an array, a few rows at a time; rows without a wanted pixel are left out.

    The error against exact arithmetic is about 1e-11 of the largest possible score for ``linear`` and ``pca``, 1e-9 for
    ``power``, less for the others.

    Args:
        weights: (score, band) float64, of decoded values.
        bias: (score,) float64.
        coded: (band, row, col) codes.
        calibration: How to read them.
        valid: (row, col) bool: pixels that are wanted.

    Raises:
        InvalidInputError: Shapes or dtypes do not agree with each other or the calibration.
    """
    _check(weights, coded, calibration, valid)
    score = _score_of(weights, bias, calibration)
    rows, cols = valid.shape
    step = max(1, _CHUNK_PX // max(cols, 1))
    for row in range(0, rows, step):
        part = slice(row, min(row + step, rows))
        codes = coded.codes[:, part]
        keep = valid[part] & valid_of(codes)
        if not keep.any():
            continue
        scale = None
        if coded.pixel_scale is not None:
            scale = np.where(keep, coded.pixel_scale[part], 0).astype(np.float64).reshape(-1)
        if codes.dtype != np.int8:
            codes = np.where(keep, codes, codes.dtype.type(0))
        found = score(codes.reshape(len(codes), -1), scale)
        yield Strip(rows=part, keep=keep, scores=found.reshape(len(weights), *keep.shape))


def softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities of a multinomial logistic regression: exp(score) over the sum of all, along the first axis.

    Element by element, and the sum class by class, so that a pixel's values do not depend on the array.
    """
    powers = np.exp(scores - scores.max(axis=0))
    total = np.zeros_like(powers[0])
    for power in powers:
        total += power
    return np.asarray(powers / total)


def margin(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far the largest value along the first axis is ahead of the second largest."""
    best = np.partition(probabilities, len(probabilities) - 2, axis=0)
    return np.asarray(best[-1] - best[-2])


def per_cent(shares: NDArray[np.float64], keep: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Shares 0..1 as whole per cents, (..., row, col) uint8, 255 where not ``keep``."""
    return np.where(keep, np.rint(100 * shares), NODATA_PCT).astype(np.uint8)


def integers(
    weights: NDArray[np.float64], bias: NDArray[np.float64], *, largest: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
    """Weights and bias as integers (in float64) for features that are integers of at most ``largest``.

    The largest possible |score| becomes less than 2**51; rounding adds at most half a unit per step of a feature.

    Returns:
        (weights, bias, exponent): divide scores by 2**exponent.
    """
    bound = float((largest * np.abs(weights).sum(axis=1) + np.abs(bias)).max())
    exponent = EXACT_BITS - math.frexp(bound)[1]
    return np.rint(np.ldexp(weights, exponent)), np.rint(np.ldexp(bias, exponent)), exponent


def _check(weights: NDArray[np.float64], coded: Coded, calibration: Calibration, valid: NDArray[np.bool_]) -> None:
    codes, scale = coded.codes, coded.pixel_scale
    if codes.ndim != 3 or len(codes) != weights.shape[1] or codes.dtype != calibration.dtype:
        raise InvalidInputError(
            f"codes are {codes.dtype} {codes.shape}, the probe wants {calibration.dtype} ({weights.shape[1]}, row, col)"
        )
    if calibration.bands != weights.shape[1]:
        raise InvalidInputError(f"the calibration has {calibration.bands} bands, the probe {weights.shape[1]}")
    if valid.shape != codes.shape[1:] or valid.dtype != np.bool_:
        raise InvalidInputError(f"valid is {valid.dtype} {valid.shape}, the codes have shape {codes.shape}")
    if (scale is None) == (calibration.method == "per_pixel") or (scale is not None and scale.shape != valid.shape):
        held = "no pixel_scale" if scale is None else f"a pixel_scale of shape {scale.shape}"
        raise InvalidInputError(f"{calibration.method} codes of shape {codes.shape} come with {held}")


def _score_of(weights: NDArray[np.float64], bias: NDArray[np.float64], calibration: Calibration) -> _Score:
    method = calibration.method
    if method in ("linear", "pca"):
        scaled = weights * np.asarray(calibration.scale, np.float32).astype(np.float64)
        if not np.isfinite(scaled).all():
            raise InvalidInputError("the calibration's scale holds NaN or infinite numbers")
        return _exact(scaled, bias, squared=False)
    if method in ("power", "power_raw"):
        return _exact(weights * POWER_STEPS**-POWER, bias, squared=True)
    return _per_pixel(weights, bias) if method == "per_pixel" else _by_band(weights, bias)


def _exact(weights: NDArray[np.float64], bias: NDArray[np.float64], *, squared: bool) -> _Score:
    whole, start, exponent = integers(weights, bias, largest=MAX_CODE**2 if squared else MAX_CODE)

    def score(codes: NDArray[Any], _scale: NDArray[np.float64] | None) -> NDArray[np.float64]:
        steps = codes.astype(np.float64)
        if squared:
            steps *= np.abs(steps)
        return np.asarray(np.ldexp(whole @ steps + start[:, None], -exponent))

    return score


def _per_pixel(weights: NDArray[np.float64], bias: NDArray[np.float64]) -> _Score:
    whole, _, exponent = integers(weights, np.zeros_like(bias), largest=MAX_CODE)

    def score(codes: NDArray[Any], scale: NDArray[np.float64] | None) -> NDArray[np.float64]:
        return np.asarray(np.ldexp(whole @ codes.astype(np.float64), -exponent) * scale + bias[:, None])

    return score


def _by_band(weights: NDArray[np.float64], bias: NDArray[np.float64]) -> _Score:
    def score(codes: NDArray[Any], _scale: NDArray[np.float64] | None) -> NDArray[np.float64]:
        total = np.repeat(bias[:, None], codes.shape[1], axis=1)
        term = np.empty_like(total)
        for weight, values in zip(weights.T, codes, strict=True):
            np.multiply(weight[:, None], values.astype(np.float64), out=term)
            total += term
        return total

    return score
