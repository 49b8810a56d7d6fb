"""Float vectors to what the store holds, on the device that made them; ``pipeline.codes`` says what the codes mean.

A few rows of pixels at a time: floats of a whole tile never exist at once, and only codes come back to the host. What a
calibration holds (scales, components) is frozen and never derived from the data of a run, because two runs would then
not share a code space.

A pixel's codes do not depend on the piece it is quantised in. Everything is element-wise and rounded on its own; the
length of a vector adds its squares in halves; scores are made ``SCORE_PX`` pixels at a time by one thread, always,
because a row of a product of matrices may depend on the number of rows and of threads. On a GPU this was not run.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipeline.codes import MAX_CODE, MAX_FLOAT16, POWER_STEPS, Coded
from pipeline.encode.stitch import filled, strips
from pipeline.errors import InvalidInputError
from pipeline.types import NODATA_CODE, Box, Calibration

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from pipeline.encode.stitch import Field

STRIP_BYTES = {"cpu": 2**20, "cuda": 2**28}
"""Float pixels that exist at once: on a CPU what stays in cache; on a GPU enough to fill it."""
SCORE_PX = 1024
"""Pixels of which scores are made at once, always: enough to keep a product of matrices busy."""
FILL: dict[str, np.int8 | np.float16 | np.float32] = {
    "int8": np.int8(NODATA_CODE),
    "float16": np.float16(np.nan),
    "float32": np.float32(np.nan),
}
"""Nodata of what is stored, by dtype."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Counted:
    """What quantising some pixels lost.

    Attributes:
        clipped: (row, col) int64: values that lie beyond the codes; None where there are none.
        squares: (2,) float64 on the device: sum of squares of the error and of the vectors.
    """

    clipped: NDArray[np.int64] | None
    squares: torch.Tensor


class Quantiser:
    """The codes of one calibration on one device.

    Attributes:
        method: Of the calibration.
        dims: Length of the vectors that it takes.
        bands: Length of what is stored.
        nodata: What is stored where there is no vector.
    """

    def __init__(self, calibration: Calibration, device: torch.device) -> None:
        """Bring what the calibration holds to the device."""
        self.method, self.bands, self.nodata = calibration.method, calibration.bands, FILL[calibration.dtype]
        self.dims = len(calibration.mean) if self.method == "pca" else self.bands
        scale = np.asarray(calibration.scale, np.float32)
        self._scale = torch.from_numpy(scale).to(device)
        self._inverse = torch.from_numpy(np.float32(1) / scale).to(device)
        self._mean = torch.from_numpy(np.asarray(calibration.mean, np.float32)).to(device)
        rows = np.asarray(calibration.components or ((),), np.float32)
        self._components = torch.from_numpy(np.ascontiguousarray(rows.T)).to(device)

    @torch.inference_mode()
    def fill(self, field: Field, *, out: torch.Tensor, steps: torch.Tensor | None = None) -> Counted:
        """Quantise a field.

        Args:
            field: (row, col, dim) float32 with its validity; what it holds where not valid does not matter.
            out: (band, row, col) tensor of the calibration's dtype to fill; nodata where not valid.
            steps: (row, col) float32 to fill, for ``per_pixel``: value of one code step, NaN where not valid.

        Raises:
            InvalidInputError: The calibration is for another number of dimensions.
        """
        if field.values.shape[-1] != self.dims:
            raise InvalidInputError(f"calibration has {self.dims} dimensions, the embedding {field.values.shape[-1]}")
        holes = None if field.valid.all() else torch.from_numpy(~field.valid).to(out.device)[..., None]
        values = field.values if holes is None else field.values.masked_fill(holes, 0)
        if out.dtype != torch.int8:
            return _fill_floats(values, holes, out=out)
        wanted, missed = self._wanted(values, holes)
        scaled, step = self._scaled(wanted)
        scaled.round_()  # half to even, as numpy's rint
        clipped = _beyond(scaled, MAX_CODE)
        if clipped is not None:
            scaled.clamp_(-MAX_CODE, MAX_CODE)
        error = _squares(self._decoded(scaled, step).sub_(wanted)) + missed
        length = _squares(wanted if self.method == "power" else values)
        if holes is not None:
            scaled.masked_fill_(holes, NODATA_CODE)
        out.copy_(scaled.to(torch.int8).permute(2, 0, 1))  # converted first: the scattered copy then moves bytes
        if steps is not None and step is not None:
            steps.copy_((step if holes is None else step.masked_fill(holes, torch.nan))[..., 0])
        return Counted(clipped=clipped, squares=torch.stack((error, length)))

    def coded(self, field: Field) -> Coded:
        """The codes of a field on the host, see ``fill``."""
        shape, device = field.box.shape, field.values.device
        out = filled((self.bands, *shape), self.nodata, device)
        steps = torch.empty(shape, device=device) if self.method == "per_pixel" else None
        self.fill(field, out=out, steps=steps)
        return Coded(codes=out.cpu().numpy(), pixel_scale=None if steps is None else steps.cpu().numpy())

    def _wanted(self, values: torch.Tensor, holes: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """What decoding shall give, and the squares of what it cannot give whatever the codes."""
        nothing = values.new_zeros((), dtype=torch.float64)
        if self.method == "power":
            whole = _length(values)
            return values / torch.where(whole > 0, whole, 1.0), nothing
        if self.method != "pca":
            return values, nothing
        centred = values - self._mean
        if holes is not None:
            centred.masked_fill_(holes, 0)
        scores = self._scores(centred)
        # the components are orthonormal: what they leave out is the rest of the length
        return scores, (_squares(centred) - _squares(scores)).clamp_(min=0)

    def _scores(self, centred: torch.Tensor) -> torch.Tensor:
        flat = centred.reshape(-1, self.dims)
        scores = flat.new_empty((len(flat), self.bands))
        with _one_thread():
            for start in range(0, len(flat), SCORE_PX):
                part = flat[start : start + SCORE_PX]
                missing = SCORE_PX - len(part)
                whole = torch.cat((part, part.new_zeros((missing, self.dims)))) if missing else part
                scores[start : start + SCORE_PX] = (whole @ self._components)[: len(part)]
        return scores.reshape(*centred.shape[:2], self.bands)

    def _scaled(self, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """In code steps, a new tensor, not always rounded; and the value of a step of each pixel, (row, col, 1)."""
        if self.method in ("linear", "pca"):
            return wanted * self._inverse, None
        if self.method == "per_pixel":
            step = wanted.abs().amax(-1, keepdim=True) / MAX_CODE
            return wanted / torch.where(step > 0, step, 1.0), step
        # torch's float32 square root may be off by a bit (a vector library); float64 is exact once it is rounded
        steps = wanted.abs().double().sqrt_().mul_(POWER_STEPS).round_().float()
        return steps.mul_(wanted.sign()), None

    def _decoded(self, codes: torch.Tensor, step: torch.Tensor | None) -> torch.Tensor:
        if self.method in ("linear", "pca"):
            return codes * self._scale
        return codes * step if step is not None else codes.abs().mul_(codes).mul_(POWER_STEPS**-2)


class TileCodes:
    """The codes of one tile, filled piece by piece on a device and copied to the host once.

    Attributes:
        box: Box of the tile in pixels of the store.
    """

    def __init__(self, box: Box, calibration: Calibration, *, like: torch.Tensor, shard_px: int | None = None) -> None:
        """Start with nodata everywhere.

        Args:
            box: Box of the tile in pixels of the store.
            calibration: Which codes.
            like: Any tensor on the device.
            shard_px: Side of the squares, counted from the tile's north-west corner, whose clipped values are counted
                apart; None: one for the whole tile.
        """
        self.box, self._shard = box, shard_px or max(box.shape)
        self._quantiser = Quantiser(calibration, like.device)
        self._codes = filled((calibration.bands, *box.shape), self._quantiser.nodata, like.device)
        per_pixel = calibration.method == "per_pixel"
        self._steps = filled(box.shape, FILL["float32"], like.device) if per_pixel else None
        self._clipped = np.zeros(tuple(-(-side // self._shard) for side in box.shape), np.int64)
        self._squares = torch.zeros(2, dtype=torch.float64, device=like.device)

    def fill(self, tokens: Field, valid: NDArray[np.bool_], box: Box) -> NDArray[np.bool_]:
        """Interpolate and quantise one piece of the tile.

        Args:
            tokens: Token field under ``box``, see ``stitch.to_pixels``.
            valid: (row, col) bool over ``box``: pixels that have an observation.
            box: Part of the tile.

        Returns:
            (row, col) bool: pixels that got a vector.

        Raises:
            InvalidInputError: The calibration has another number of dimensions, or ``box`` lies outside the tile.
        """
        rows, cols = box.slices_in(self.box)
        piece = self._codes[:, rows, cols]
        steps = None if self._steps is None else self._steps[rows, cols]
        done = np.empty(box.shape, np.bool_)
        at_once = max(1, STRIP_BYTES[piece.device.type] // (4 * box.width * self._quantiser.dims))
        for strip in strips(tokens, valid, box, rows=at_once):
            part = slice(strip.box.row - box.row, strip.box.row_stop - box.row)
            counted = self._quantiser.fill(strip, out=piece[:, part], steps=None if steps is None else steps[part])
            self._squares += counted.squares
            if counted.clipped is not None:
                self._count(counted.clipped, strip.box)
            done[part] = strip.valid
        return done

    @property
    def clipped(self) -> int:
        """Values that were clipped so far."""
        return int(self._clipped.sum())

    @property
    def rms_error(self) -> float | None:
        """Root mean square of (decoded - vector) over that of the vectors, so far; None while there is no vector.

        The vectors at unit length for ``power``; for ``pca`` decoded to whole vectors.
        """
        error, whole = self._squares.tolist()
        return float((error / whole) ** 0.5) if whole else None

    def clipped_share(self, valid: NDArray[np.bool_]) -> float:
        """Share of the values of the ``valid`` pixels that were clipped, 0..1."""
        count = int(valid.sum()) * len(self._codes)
        return self.clipped / count if count else 0.0

    def clipped_shards(self, valid: NDArray[np.bool_]) -> tuple[tuple[int, int, float], ...]:
        """(row, col, share of its ``valid`` values) of every shard with clipped values, from the tile's north-west."""
        rows, cols = np.nonzero(self._clipped)
        found = []
        for row, col in zip(rows.tolist(), cols.tolist(), strict=True):
            part = valid[row * self._shard : (row + 1) * self._shard, col * self._shard : (col + 1) * self._shard]
            found.append((row, col, float(self._clipped[row, col] / (int(part.sum()) * len(self._codes)))))
        return tuple(found)

    def to_host(self) -> Coded:
        """(band, row, col) codes and (row, col) steps, nodata where nothing was filled."""
        return Coded(codes=_on_host(self._codes), pixel_scale=None if self._steps is None else _on_host(self._steps))

    def _count(self, clipped: NDArray[np.int64], box: Box) -> None:
        rows, cols = box.slices_in(self.box)
        down, across = (np.arange(part.start, part.stop) // self._shard for part in (rows, cols))
        place = down[:, None] * self._clipped.shape[1] + across
        counts = np.bincount(place.ravel(), clipped.ravel(), minlength=self._clipped.size)
        self._clipped += counts.astype(np.int64).reshape(self._clipped.shape)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Products of matrices as one thread makes them: with more, MKL adds in another order where columns are odd."""
    threads = torch.get_num_threads()
    if threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _fill_floats(values: torch.Tensor, holes: torch.Tensor | None, *, out: torch.Tensor) -> Counted:
    """Vectors as they are, or at half precision."""
    stored, clipped = values, None
    if out.dtype == torch.float16:
        clipped = _beyond(values, MAX_FLOAT16)
        stored = values.clamp(-MAX_FLOAT16, MAX_FLOAT16).to(torch.float16)
    error = _squares(stored.float() - values)
    if holes is not None:
        stored = stored.masked_fill(holes, torch.nan)
    out.copy_(stored.permute(2, 0, 1))
    return Counted(clipped=clipped, squares=torch.stack((error, _squares(values))))


def _beyond(values: torch.Tensor, limit: float) -> NDArray[np.int64] | None:
    """(row, col) how many values of a pixel lie beyond +-limit; None where none does."""
    low, high = torch.aminmax(values)
    if not bool((low < -limit) | (high > limit)):
        return None
    return np.asarray((values.abs() > limit).sum(-1).cpu().numpy(), np.int64)


def _squares(values: torch.Tensor) -> torch.Tensor:
    flat = values.reshape(-1)
    return torch.dot(flat, flat).double()


def _length(values: torch.Tensor) -> torch.Tensor:
    """(row, col, 1) Euclidean length of (row, col, dim): squares are added in halves, as ``codes.length`` does."""
    squares = values * values
    n = values.shape[-1]
    while n > 1:
        half = (n + 1) // 2
        squares[..., : n - half] += squares[..., half:n]
        n = half
    return squares[..., :1].double().sqrt().float()  # see Quantiser: exact once rounded


def _on_host(data: torch.Tensor) -> NDArray[Any]:
    if data.device.type == "cpu":
        return np.asarray(data.numpy())
    return np.asarray(torch.empty(data.shape, dtype=data.dtype, pin_memory=True).copy_(data).numpy())
