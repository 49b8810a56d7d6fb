"""What stored vectors mean: the codes of every quantiser and how they are read back.

Pure numpy, known to all rooms. ``encode/quantize.py`` makes the codes on a device; tests hold the two together. The
value of a code ``q`` is, by ``Calibration.method``:

- ``linear``: ``q * scale[band]``, the model's vector.
- ``pca``: ``q * scale[band]``, one shared scale; scores, ``components @ (vector - mean)``.
- ``power``: ``sign(q) * (|q| / 127.5)**2``, the vector at unit length (AlphaEarth Foundations' annual embeddings).
- ``power_raw``: the same of the vector as it is; values of 1 and more saturate at 0.992 (olmoearth_pretrain,
  ``quantize_embeddings``).
- ``per_pixel``: ``q * pixel_scale[row, col]``, the model's vector (as TESSERA stores it).
- ``float16``, ``float32``: itself.

``encode`` is the definition of every code in plain numpy. Squares of a vector are added in halves (``length``), so that
a code is the same whatever the shape of the array. Scores of ``pca`` are the exception, a product of matrices: another
library may round them differently in the last bit, which now and then moves a code by one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import InvalidInputError
from pipeline.types import NODATA_CODE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.types import Calibration

POWER = 2.0
POWER_STEPS = 127.5
MAX_CODE = 127
MAX_FLOAT16 = 65504.0
CLIP_WARNING = 1e-3
"""Share of clipped (or saturated) values of a shard above which people are warned."""
SATURATES = ("power_raw",)
"""Methods whose code space is given: what lies beyond it saturates, and no calibration can change that."""
_CODE = "ds.embeddings.where(ds.embeddings != -128)"
_POWER = f"{_CODE} * abs(ds.embeddings.astype('float32')) / {POWER_STEPS}**2"
DEQUANTISE = {
    "linear": f"{_CODE} * ds.scale",
    "pca": f"{_CODE} * ds.scale",
    "power": _POWER,
    "power_raw": _POWER,
    "per_pixel": f"{_CODE} * ds.pixel_scale",
    "float16": "ds.embeddings.astype('float32')",
    "float32": "ds.embeddings",
}
"""Python that decodes a store, NaN where nodata, by method; ``ds`` is the Dataset of a zone. Scores for ``pca``."""
RECONSTRUCT = f"({DEQUANTISE['pca']}).dot(ds.pca_components, dim='band') + ds.pca_mean"
"""The same to the model's vectors, (..., dim) and as near as the components allow, for ``pca``."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Coded:
    """Stored vectors of some pixels.

    Attributes:
        codes: (band, ...) int8, float16 or float32.
        pixel_scale: (...) float32, for ``per_pixel``.
    """

    codes: NDArray[Any]
    pixel_scale: NDArray[np.float32] | None = None

    @property
    def valid(self) -> NDArray[np.bool_]:
        """(...) bool: pixels that have a vector."""
        return valid_of(self.codes)


def valid_of(codes: NDArray[Any]) -> NDArray[np.bool_]:
    """(...) bool of (band, ...) codes: pixels that have a vector."""
    if codes.dtype == np.int8:
        return np.asarray(codes[0] != NODATA_CODE)
    return np.asarray(~np.isnan(codes[0]))


def signed(components: NDArray[np.float64]) -> NDArray[np.float64]:
    """(k, dim) rows turned so that the largest loading of each is positive: eigenvectors have no sign of their own."""
    largest = np.abs(components).argmax(axis=1)
    return components * np.where(components[np.arange(len(components)), largest] < 0, -1.0, 1.0)[:, None]


def principal(covariance: NDArray[np.float64], count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Principal components: the eigenvectors of a covariance with the largest eigenvalues.

    Args:
        covariance: (dim, dim) float64.
        count: How many, at most dim.

    Returns:
        ((count, dim) orthonormal rows, largest variance first, see ``signed``; (dim,) variances in that order).
    """
    variances, vectors = np.linalg.eigh(covariance)
    return signed(vectors[:, ::-1][:, :count].T), variances[::-1]


def length(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """(...) float32 Euclidean length of (dim, ...) vectors; squares are added in halves."""
    squares = vectors * vectors
    n = len(squares)
    while n > 1:
        half = (n + 1) // 2
        squares[: n - half] += squares[half:n]
        n = half
    return np.asarray(np.sqrt(squares[0]), np.float32)


def encode(values: NDArray[np.float32], calibration: Calibration) -> Coded:
    """The codes of vectors: the plain definition.

    Args:
        values: (dim, ...) float32 vectors of the model, NaN where nodata.
        calibration: Which codes.

    Raises:
        InvalidInputError: The calibration is for another number of dimensions.
    """
    dims = len(calibration.mean) if calibration.method == "pca" else calibration.bands
    if len(values) != dims:
        raise InvalidInputError(f"calibration has {dims} dimensions, the embedding {len(values)}")
    valid = ~np.isnan(values[0])
    known = np.where(valid, values, np.float32(0))
    if calibration.method == "float32":
        return Coded(codes=np.where(valid, known, np.float32(np.nan)))
    if calibration.method == "float16":
        half = np.clip(known, -MAX_FLOAT16, MAX_FLOAT16).astype(np.float16)
        return Coded(codes=np.where(valid, half, np.float16(np.nan)))
    scaled, pixel_scale = _scaled(known, calibration)
    codes = np.clip(np.rint(scaled), -MAX_CODE, MAX_CODE).astype(np.int8)
    return Coded(
        codes=np.where(valid, codes, np.int8(NODATA_CODE)),
        pixel_scale=None if pixel_scale is None else np.where(valid, pixel_scale, np.float32(np.nan)),
    )


def clipped(values: NDArray[np.float32], calibration: Calibration) -> int:
    """How many values of (dim, ...) vectors, none of them NaN, lie beyond the codes, so that ``encode`` clips them."""
    if calibration.method == "float32":
        return 0
    if calibration.method == "float16":
        return int((np.abs(values) > MAX_FLOAT16).sum())
    return int((np.abs(np.rint(_scaled(values, calibration)[0])) > MAX_CODE).sum())


def _scaled(
    values: NDArray[np.float32], calibration: Calibration
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Vectors in code steps, not always rounded; and the value of a step of each pixel."""
    if calibration.method in ("linear", "pca"):
        if calibration.method == "pca":
            mean = np.asarray(calibration.mean, np.float32).reshape(-1, *(1,) * (values.ndim - 1))
            values = np.tensordot(np.asarray(calibration.components, np.float32), values - mean, axes=1)
        inverse = np.float32(1) / np.asarray(calibration.scale, np.float32)
        return values * inverse.reshape(-1, *(1,) * (values.ndim - 1)), None
    if calibration.method == "per_pixel":
        step = np.asarray(np.abs(values).max(axis=0) / np.float32(MAX_CODE), np.float32)
        return values / _divisor(step), step
    if calibration.method == "power":
        values = values / _divisor(length(values))
    steps = np.sqrt(np.abs(values).astype(np.float64)) * POWER_STEPS
    return np.sign(values) * np.rint(steps).astype(np.float32), None


def _divisor(number: NDArray[np.float32]) -> NDArray[np.float32]:
    """The same, 1 instead of 0: a vector of zeros stays one."""
    return np.where(number > 0, number, np.float32(1)).astype(np.float32)


def decode(coded: Coded, calibration: Calibration) -> NDArray[np.float32]:
    """(band, ...) float32 values, NaN where nodata; scores for ``pca``.

    Raises:
        InvalidInputError: Other bands or dtype than the calibration's, or a missing ``pixel_scale``.
    """
    codes = coded.codes
    if len(codes) != calibration.bands or codes.dtype != calibration.dtype:
        raise InvalidInputError(
            f"codes are {codes.dtype} with {len(codes)} bands, the calibration is {calibration.dtype} with "
            f"{calibration.bands}"
        )
    if calibration.dtype != "int8":
        return codes.astype(np.float32)
    values = codes.astype(np.float32)
    if calibration.method in ("linear", "pca"):
        values *= np.asarray(calibration.scale, np.float32).reshape(-1, *(1,) * (codes.ndim - 1))
    elif calibration.method == "per_pixel":
        if coded.pixel_scale is None:
            raise InvalidInputError("per_pixel codes need their pixel_scale")
        values *= coded.pixel_scale
    else:
        values = np.sign(values) * np.float32(POWER_STEPS**-POWER) * values * values
    values[:, ~coded.valid] = np.nan
    return values
