"""What stored vectors mean: the codes of every quantiser and how they are read back.

Pure numpy, known to all rooms. ``encode/quantize.py`` makes the codes on a device; tests hold the two together. The
value of a code ``q`` is, by ``Calibration.method``:

- ``linear``: ``q * scale[band]``, the model's vector.
- ``pca``: ``q * scale[band]``, one shared scale; scores, ``components @ (vector - mean)``.
- ``power``: ``sign(q) * (|q| / 127.5)**2``, the vector at unit length (AlphaEarth Foundations' annual embeddings).
- ``power_raw``: the same of the vector as it is; values beyond 0.99 saturate (olmoearth_pretrain,
  ``quantize_embeddings``).
- ``per_pixel``: ``q * pixel_scale[row, col]``, the model's vector (as TESSERA stores it).
- ``float16``, ``float32``: itself.
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
