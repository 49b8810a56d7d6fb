"""Calibrations: made from a sample of vectors, frozen in a file, read back only where they belong.

``Sample`` takes vectors in as they come and keeps what a calibration needs of them: how far each dimension reaches,
moments, and a thin part of the vectors themselves. ``calibrate`` makes the scales (``linear``) or the scores
(``pca:K``) of it; the other quantisers are formulas and need none. What a code means is told in ``pipeline.codes``.

Knows nothing of places, scenes or stores. Numbers are rounded, so that rounding noise of another machine's float32
encoder mostly gives the same calibration, hence the same hash; what must be the same everywhere is the file.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from pipeline.codes import MAX_CODE, signed
from pipeline.errors import ConfigError, InvalidInputError
from pipeline.types import Calibration, ModelCard

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

HEADROOM = 1.25
"""Largest value that is not clipped, over the largest of the sample: in a stress test (other places with very different
spectra) 1.25 clipped 0.001 % of the values where percentiles of the same sample clipped 0.03 %."""
PROVISIONAL_HEADROOM = 2.0
"""The same of a calibration from the packaged simulated sample, which knows four places: with 1.25 two of two real
scenes were clipped beyond 1 % of their values (2.8 and 1.3 %)."""
DIGITS = 3
"""Significant digits of scales."""
VECTOR_DIGITS = 5
"""Digits after the point of a component, which is a unit vector, and of a mean in units of the largest value: a step of
a code is about 1 % of the largest score, a thousand times more."""
KEPT_BYTES = 2**22
"""Vectors that a ``Sample`` keeps, bytes: 8192 vectors of 128 dimensions, the tokens of two blocks at patch 4. A sample
of a hundred places stays below half a gigabyte."""
BLOCK_VECTORS = 4096
"""Vectors whose moments are summed at once, in float64."""
RANK = 1e-12
"""Variance of a component, over that of the first, below which there is nothing but rounding."""
SAMPLED = ("linear", "pca")
"""Methods whose numbers come from a sample."""
S2_ONLY = ("sentinel2_l2a",)


class Sample:
    """What a calibration needs of many vectors, which come block by block.

    The same blocks in the same order give the same sample.

    Attributes:
        count: Vectors so far.
        peak: (dim,) float64, largest magnitude of each dimension.
    """

    def __init__(self, dims: int) -> None:
        """Start empty.

        Args:
            dims: Length of a vector.
        """
        self.count = 0
        self.peak = np.zeros(dims, np.float64)
        self._sum = np.zeros(dims, np.float64)
        self._products = np.zeros((dims, dims), np.float64)
        self._thin, self._far = [np.empty((0, dims), np.float32)], [np.empty((0, dims), np.float32)]
        self._every = 1

    @classmethod
    def of(cls, blocks: Iterable[NDArray[np.float32]], *, dims: int) -> Sample:
        """The sample of some blocks, see ``add``."""
        sample = cls(dims)
        for block in blocks:
            sample.add(block)
        return sample

    @classmethod
    def merged(cls, samples: Sequence[Sample]) -> Sample:
        """One sample of several, which keeps the vectors that they keep; to be read, not added to.

        Raises:
            InvalidInputError: No sample.
        """
        if not samples:
            raise InvalidInputError("no sample to merge")
        one = cls(samples[0].dims)
        for sample in samples:
            one.count += sample.count
            one.peak = np.fmax(one.peak, sample.peak)
            one._sum += sample._sum  # noqa: SLF001 - of its own class
            one._products += sample._products  # noqa: SLF001 - of its own class
        one._thin = [part for sample in samples for part in sample._thin]  # noqa: SLF001 - of its own class
        one._far = [part for sample in samples for part in sample._far]  # noqa: SLF001 - of its own class
        return one

    @property
    def dims(self) -> int:
        """Length of a vector."""
        return len(self.peak)

    @property
    def mean(self) -> NDArray[np.float64]:
        """(dim,) mean of the vectors."""
        return self._sum / max(self.count, 1)

    @property
    def covariance(self) -> NDArray[np.float64]:
        """(dim, dim) covariance of the vectors."""
        mean = self.mean
        return np.asarray(self._products / max(self.count, 1) - np.outer(mean, mean))

    @property
    def thin(self) -> NDArray[np.float32]:
        """(sample, dim) every n-th vector, all of them up to ``KEPT_BYTES``: for shares and colours."""
        return np.concatenate(self._thin)

    @property
    def outermost(self) -> NDArray[np.float32]:
        """(sample, dim) the thin sample and the vectors that lie farthest out, of each dimension and of all."""
        return np.concatenate([*self._thin, *self._far])

    def add(self, vectors: NDArray[np.float32]) -> None:
        """Take vectors in.

        Args:
            vectors: (sample, dim) float32 of valid vectors, as they are written (after the model's head).

        Raises:
            InvalidInputError: Another number of dimensions, or a value that is not finite.
        """
        if vectors.ndim != 2 or vectors.shape[1] != self.dims:
            raise InvalidInputError(f"a sample of {self.dims} dimensions got an array {vectors.shape}")
        if not len(vectors):
            return
        magnitude = np.abs(vectors)
        if not np.isfinite(magnitude.max()):
            raise InvalidInputError("a calibration sample holds NaN or infinite values")
        self.peak = np.maximum(self.peak, magnitude.max(axis=0).astype(np.float64))
        for start in range(0, len(vectors), BLOCK_VECTORS):
            part = vectors[start : start + BLOCK_VECTORS].astype(np.float64)
            self._sum += part.sum(axis=0)
            self._products += part.T @ part
        self._keep(vectors, magnitude)
        self.count += len(vectors)

    def _keep(self, vectors: NDArray[np.float32], magnitude: NDArray[np.float32]) -> None:
        first = -self.count % self._every
        thin = np.concatenate([*self._thin, vectors[first :: self._every]])
        while thin.nbytes > KEPT_BYTES:
            thin, self._every = thin[::2].copy(), self._every * 2
        far = np.concatenate([*self._far, vectors[_outermost(magnitude)]])
        self._thin, self._far = [thin], [far[_outermost(np.abs(far))]]


def _outermost(magnitude: NDArray[np.float32]) -> NDArray[np.int64]:
    """Indices of the vectors that have the largest magnitude of a dimension, or are the longest."""
    return np.unique([*magnitude.argmax(axis=0), (magnitude**2).sum(axis=1).argmax()])


def method_of(quantiser: str, *, dims: int) -> tuple[str, int]:
    """(method, bands) of ``store.quantiser`` for vectors of ``dims`` dimensions.

    Raises:
        ConfigError: More components than dimensions.

    >>> method_of("pca:16", dims=128)
    ('pca', 16)
    """
    method, _, bands = quantiser.partition(":")
    count = int(bands) if bands else dims
    if count > dims:
        raise ConfigError(
            f"store.quantiser={quantiser} asks for {count} components, the vectors have {dims} dimensions: use pca:K "
            f"with K up to {dims}, or linear"
        )
    return method, count


def needs_sample(quantiser: str) -> bool:
    """Whether the numbers of a quantiser come from a sample; the others are formulas."""
    return quantiser.partition(":")[0] in SAMPLED


def formula(
    quantiser: str, *, card: ModelCard, patch_px: int, sensors: tuple[str, ...] = S2_ONLY, basis: str = ""
) -> Calibration:
    """The calibration of a quantiser that needs no sample; the same for everybody.

    Args:
        quantiser: ``power``, ``power_raw``, ``per_pixel``, ``float16`` or ``float32``.
        card: The model and which of its vectors is written.
        patch_px: Patch of the vectors.
        sensors: What the model is fed with.
        basis: Frozen colours, see ``Calibration.basis``.

    Raises:
        ConfigError: A quantiser whose numbers come from a sample.
    """
    if needs_sample(quantiser):
        raise ConfigError(f"store.quantiser={quantiser} needs a calibration made from a sample")
    return Calibration(
        scale=(),
        provisional=False,
        source="formula",
        model_sha256=card.sha256,
        patch_px=patch_px,
        output=card.output,
        sensors=sensors,
        method=method_of(quantiser, dims=card.dims)[0],
        dims=card.dims,
        basis=basis,
    )


def calibrate(
    samples: Sample | Iterable[NDArray[np.float32]],
    quantiser: str = "linear",
    *,
    card: ModelCard,
    patch_px: int,
    source: str,
    provisional: bool,
    sensors: tuple[str, ...] = S2_ONLY,
) -> Calibration:
    """A calibration from sample vectors.

    ``linear``: per dimension 1.25 x the largest magnitude, over 127. ``pca:K``: the first K principal components, the
    largest loading of each positive, and one scale for all of them, 1.25 x the largest magnitude of a score over 127.
    Provisional ones take 2 x for 1.25.
    A formula takes nothing from the sample.

    Args:
        samples: The sample, or the blocks of one (see ``Sample.add``).
        quantiser: As ``store.quantiser``.
        card: The model and which of its vectors is written.
        patch_px: Patch that the samples were encoded with.
        source: Where the samples come from, for the metadata.
        provisional: Whether only the packaged simulated sample was used.
        sensors: What the model was fed with.

    Raises:
        ConfigError: More components than dimensions.
        InvalidInputError: No sample, a dimension that is zero everywhere, values that are not finite, or fewer
            directions in the sample than components.
    """
    method, bands = method_of(quantiser, dims=card.dims)
    if not needs_sample(quantiser):
        return formula(quantiser, card=card, patch_px=patch_px, sensors=sensors)
    sample = samples if isinstance(samples, Sample) else Sample.of(samples, dims=card.dims)
    headroom = PROVISIONAL_HEADROOM if provisional else HEADROOM
    numbers = _linear(sample, headroom, card=card) if method == "linear" else _pca(sample, bands, headroom, card=card)
    return Calibration(
        provisional=provisional,
        source=source,
        model_sha256=card.sha256,
        patch_px=patch_px,
        output=card.output,
        sensors=sensors,
        **numbers,
    )


def _linear(sample: Sample, headroom: float, *, card: ModelCard) -> dict[str, Any]:
    bad = np.flatnonzero(sample.peak <= 0)
    if bad.size:
        raise InvalidInputError(f"calibration of {card.name}: dimensions {bad[:5].tolist()} have no usable range")
    return {"scale": tuple(_step(peak, headroom) for peak in sample.peak.tolist())}


def _pca(sample: Sample, bands: int, headroom: float, *, card: ModelCard) -> dict[str, Any]:
    variances, vectors = np.linalg.eigh(sample.covariance)
    variances = variances[::-1]
    usable = int((variances > max(variances[0], 0.0) * RANK).sum()) if sample.count > 1 else 0
    if usable < bands:
        raise InvalidInputError(
            f"calibration of {card.name}: {sample.count} sample vectors differ in {usable} directions, fewer than the "
            f"{bands} of store.quantiser=pca:{bands}: use more places, or pca:K with K up to {usable}"
        )
    # rounded first: equal loadings then give the same sign on every machine
    components = signed(np.round(vectors[:, ::-1][:, :bands].T, VECTOR_DIGITS)) + 0.0  # no -0.0
    digits = VECTOR_DIGITS - math.ceil(math.log10(sample.peak.max()))
    mean = np.round(sample.mean, digits) + 0.0
    scores = np.abs((sample.outermost - mean) @ components.T)
    return {
        "method": "pca",
        "dims": bands,
        "scale": (_step(float(scores.max()), headroom),) * bands,
        "mean": tuple(mean.tolist()),
        "components": tuple(tuple(row) for row in components.tolist()),
    }


def _step(peak: float, headroom: float) -> float:
    return float(f"{headroom * peak / MAX_CODE:.{DIGITS - 1}e}")


def load_calibration(
    path: str,
    *,
    card: ModelCard,
    patch_px: int,
    sensors: tuple[str, ...] = S2_ONLY,
    quantiser: str | None = None,
) -> Calibration:
    """Read a calibration file and check that it belongs to this model, output, patch, input and quantiser.

    Args:
        path: JSON file.
        card: The model and which of its vectors is written.
        patch_px: Patch that is asked for.
        sensors: What the model is fed with.
        quantiser: As ``store.quantiser``; None: any.

    Raises:
        ConfigError: Not a calibration file, one with impossible numbers, or of another model, output, patch, input or
            quantiser; says how to go on.
    """
    calibration = read_calibration(path)
    instead = "use another file, or, for a plan, store.calibration=auto"
    if calibration.model_sha256 != card.sha256 or calibration.patch_px != patch_px:
        raise ConfigError(
            f"calibration {path} belongs to weights {calibration.model_sha256[:12]} at patch {calibration.patch_px}, "
            f"asked for are {card.sha256[:12]} at patch {patch_px}: {instead}"
        )
    if (calibration.output, calibration.sensors) != (card.output, sensors):
        raise ConfigError(
            f"calibration {path} belongs to the vector {calibration.output!r} from {', '.join(calibration.sensors)}, "
            f"asked for is {card.output!r} from {', '.join(sensors)}: {instead}"
        )
    if quantiser is not None and calibration.quantiser != quantiser:
        raise ConfigError(
            f"calibration {path} is of the quantiser {calibration.quantiser}, store.quantiser asks for {quantiser}: "
            f"set store.quantiser={calibration.quantiser}, or {instead}"
        )
    wrong = _wrong_numbers(calibration, dims=card.dims)
    if wrong:
        raise ConfigError(f"calibration {path} {wrong}: {instead}")
    return calibration


def read_calibration(path: str) -> Calibration:
    """Read a calibration file, whatever it belongs to.

    Raises:
        ConfigError: Not a calibration file.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise ConfigError(f"calibration file {path} cannot be read: {err}") from err
    try:
        return TypeAdapter(Calibration).validate_python(json.loads(text))
    except (ValidationError, json.JSONDecodeError) as err:
        raise ConfigError(
            f"{path} is not a calibration file ({_wrong(err)}): name another one, or delete it and have it made anew"
        ) from err


def _wrong_numbers(calibration: Calibration, *, dims: int) -> str:
    """What is impossible about the numbers of a calibration for vectors of ``dims`` dimensions; "" for nothing."""
    scale = calibration.scale
    count = calibration.bands if calibration.method == "pca" else dims
    if needs_sample(calibration.method):
        if len(scale) != count or not all(math.isfinite(s) and s > 0 for s in scale):
            return f"needs {count} positive scales, has {len(scale)}"
    elif scale or calibration.dims != dims:
        return f"is of {calibration.dims} dimensions with {len(scale)} scales, {calibration.method} needs {dims} and 0"
    if calibration.method == "pca":
        return _wrong_components(calibration, dims=dims)
    return "holds components, which only pca has" if calibration.mean or calibration.components else ""


def _wrong_components(calibration: Calibration, *, dims: int) -> str:
    bands, rows = calibration.bands, {len(row) for row in calibration.components}
    if len(calibration.mean) != dims or len(calibration.components) != bands or rows != {dims} or bands > dims:
        return f"needs a mean of {dims} numbers and {bands} components of {dims}"
    components = np.asarray(calibration.components)
    # NaN and infinity fail here too
    if not np.isfinite(calibration.mean).all() or not (np.abs(components @ components.T - np.eye(bands)) < 1e-3).all():
        return "holds a mean that is not finite, or components that are not orthonormal"
    return "" if len(set(calibration.scale)) == 1 else "needs one scale for all components"


def _wrong(err: ValidationError | json.JSONDecodeError) -> str:
    if isinstance(err, json.JSONDecodeError):
        return "it is no JSON"
    return "; ".join(f"{'.'.join(map(str, part['loc'])) or 'it'}: {part['msg']}" for part in err.errors())


def calibration_bytes(calibration: Calibration) -> bytes:
    """The file that ``load_calibration`` reads: JSON, the same bytes for the same calibration."""
    return (json.dumps(asdict(calibration), indent=1, sort_keys=True) + "\n").encode()
