"""Float vectors to int8 codes and back: symmetric, linear, one scale per dimension.

``value = code * scale[dim]``; codes lie in -127..127 and -128 is nodata. The scale belongs to (weights, patch,
pooling, inputs) and is frozen in a ``Calibration``; it is never derived from the data of a run, because two runs would
then not share a code space. Measured choice: 1.25 x max |value| keeps clipping below 0.1 % on other places.

Codes are made on the device that made the vectors, a few rows at a time: only int8 comes back to the host. This
was not run on a GPU.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError

from pipeline.encode.stitch import filled, strips
from pipeline.errors import ConfigError, InvalidInputError
from pipeline.types import NODATA_CODE, Box, Calibration, ModelCard

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from pipeline.encode.stitch import Field

HEADROOM = 1.25
MAX_CODE = 127
DIGITS = 3
"""Scales are rounded to this many significant digits, so that rounding noise of another machine's float32 encoder
gives the same calibration, hence the same hash."""
STRIP_BYTES = {"cpu": 2**20, "cuda": 2**28}
"""Float pixels that exist at once: on a CPU what stays in cache; on a GPU enough to fill it."""
S2_ONLY = ("sentinel2_l2a",)


class TileCodes:
    """The codes of one tile, filled piece by piece on a device and copied to the host once.

    Attributes:
        box: Box of the tile in pixels of the store.
        clipped: Values that were clipped so far.
    """

    def __init__(self, box: Box, calibration: Calibration, *, like: torch.Tensor) -> None:
        """Start with nodata everywhere.

        Args:
            box: Box of the tile in pixels of the store.
            calibration: Scales.
            like: Any tensor on the device.
        """
        self.box, self.clipped = box, 0
        self._inverse = _inverse(calibration, like.device)
        self._codes = filled((len(calibration.scale), *box.shape), np.int8(NODATA_CODE), like.device)

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
        done = np.empty(box.shape, np.bool_)
        at_once = max(1, STRIP_BYTES[piece.device.type] // (4 * box.width * len(piece)))
        for strip in strips(tokens, valid, box, rows=at_once):
            part = slice(strip.box.row - box.row, strip.box.row_stop - box.row)
            self.clipped += _quantise(strip, self._inverse, out=piece[:, part])
            done[part] = strip.valid
        return done

    def clipped_share(self, valid: NDArray[np.bool_]) -> float:
        """Share of the values of the ``valid`` pixels that were clipped, 0..1."""
        count = int(valid.sum()) * len(self._codes)
        return self.clipped / count if count else 0.0

    def to_host(self) -> NDArray[np.int8]:
        """(dim, row, col) int8, -128 where nothing was filled."""
        if self._codes.device.type == "cpu":
            return np.asarray(self._codes.numpy())
        pinned = torch.empty(self._codes.shape, dtype=torch.int8, pin_memory=True)
        return np.asarray(pinned.copy_(self._codes).numpy())


def quantise(field: Field, calibration: Calibration, *, out: torch.Tensor | None = None) -> tuple[torch.Tensor, int]:
    """Codes of a field, on its device.

    Args:
        field: (row, col, dim) float32 with its validity.
        calibration: Scales; its length is dim.
        out: Optional (dim, row, col) int8 tensor to fill.

    Returns:
        ((dim, row, col) int8 with -128 where not valid, number of valid values that were clipped).

    Raises:
        InvalidInputError: The calibration has another number of dimensions.
    """
    height, width, dims = field.values.shape
    device = field.values.device
    codes = torch.empty((dims, height, width), dtype=torch.int8, device=device) if out is None else out
    return codes, _quantise(field, _inverse(calibration, device), out=codes)


def _inverse(calibration: Calibration, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.float32(1) / np.asarray(calibration.scale, np.float32)).to(device)


@torch.inference_mode()
def _quantise(field: Field, inverse: torch.Tensor, *, out: torch.Tensor) -> int:
    if inverse.shape[0] != field.values.shape[-1]:
        raise InvalidInputError(
            f"calibration has {inverse.shape[0]} dimensions, the embedding {field.values.shape[-1]}"
        )
    scaled = (field.values * inverse).round_()  # half to even, as numpy's rint
    holes = None if field.valid.all() else torch.from_numpy(~field.valid).to(out.device)[..., None]
    if holes is not None:
        scaled.masked_fill_(holes, 0)
    low, high = torch.aminmax(scaled)
    clipped = 0
    if bool((low < -MAX_CODE) | (high > MAX_CODE)):
        # whole numbers: 1 for each beyond; summed by dimension, where float32 counts exactly
        beyond = scaled.abs().sub_(MAX_CODE).clamp_(0, 1).sum((0, 1))
        clipped = int(beyond.sum(dtype=torch.float64))
        scaled.clamp_(-MAX_CODE, MAX_CODE)
    if holes is not None:
        scaled.masked_fill_(holes, NODATA_CODE)
    out.copy_(scaled.to(torch.int8).permute(2, 0, 1))  # converted first: the scattered copy then moves bytes
    return clipped


def dequantise(codes: NDArray[np.int8], calibration: Calibration) -> NDArray[np.float32]:
    """(dim, row, col) float32 of (dim, row, col) int8 codes; NaN where nodata."""
    scale = np.asarray(calibration.scale, np.float32)[:, None, None]
    return np.where(codes == NODATA_CODE, np.float32(np.nan), codes * scale)


def calibrate(
    samples: Iterable[NDArray[np.float32]],
    *,
    card: ModelCard,
    patch_px: int,
    source: str,
    provisional: bool,
    sensors: tuple[str, ...] = S2_ONLY,
) -> Calibration:
    """Scales from sample vectors: 1.25 x the largest magnitude of each dimension, over 127.

    Args:
        samples: Arrays (sample, dim) float32 of valid vectors, as they are written (after the model's head).
        card: The model and which of its vectors is written.
        patch_px: Patch that the samples were encoded with.
        source: Where the samples come from, for the metadata.
        provisional: Whether only the packaged simulated sample was used.
        sensors: What the model was fed with.

    Raises:
        InvalidInputError: No sample, or a dimension that is zero everywhere or not finite.
    """
    peak = np.zeros(card.dims, np.float64)
    for block in samples:
        if block.size:
            peak = np.maximum(peak, np.abs(block.astype(np.float64)).max(axis=0))
    bad = np.flatnonzero(~np.isfinite(peak) | (peak <= 0))
    if bad.size:
        raise InvalidInputError(f"calibration of {card.name}: dimensions {bad[:5].tolist()} have no usable range")
    step = HEADROOM * peak / MAX_CODE
    scale = tuple(float(f"{value:.{DIGITS - 1}e}") for value in step.tolist())
    return Calibration(
        scale=scale,
        provisional=provisional,
        source=source,
        model_sha256=card.sha256,
        patch_px=patch_px,
        output=card.output,
        sensors=sensors,
    )


def load_calibration(path: str, *, card: ModelCard, patch_px: int, sensors: tuple[str, ...] = S2_ONLY) -> Calibration:
    """Read a calibration file and check that it belongs to this model, output, patch and input.

    Raises:
        ConfigError: Not a calibration file, or of another model, output, patch or input.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise ConfigError(f"calibration file {path} cannot be read: {err}") from err
    try:
        calibration = TypeAdapter(Calibration).validate_python(json.loads(text))
    except (ValidationError, json.JSONDecodeError) as err:
        raise ConfigError(
            f"{path} is not a calibration file ({_wrong(err)}): name another one, or delete it and have it made anew"
        ) from err
    if calibration.model_sha256 != card.sha256 or calibration.patch_px != patch_px:
        raise ConfigError(
            f"calibration {path} belongs to weights {calibration.model_sha256[:12]} at patch {calibration.patch_px}, "
            f"asked for are {card.sha256[:12]} at patch {patch_px}: use another file, or, for a plan, "
            "store.calibration=auto"
        )
    if (calibration.output, calibration.sensors) != (card.output, sensors):
        raise ConfigError(
            f"calibration {path} belongs to the vector {calibration.output!r} from {', '.join(calibration.sensors)}, "
            f"asked for is {card.output!r} from {', '.join(sensors)}: use another file, or, for a plan, "
            "store.calibration=auto"
        )
    if len(calibration.scale) != card.dims or not all(np.isfinite(s) and s > 0 for s in calibration.scale):
        raise ConfigError(f"calibration {path} needs {card.dims} positive scales, has {len(calibration.scale)}")
    return calibration


def _wrong(err: ValidationError | json.JSONDecodeError) -> str:
    if isinstance(err, json.JSONDecodeError):
        return "it is no JSON"
    return "; ".join(f"{'.'.join(map(str, part['loc'])) or 'it'}: {part['msg']}" for part in err.errors())


def calibration_bytes(calibration: Calibration) -> bytes:
    """The file that ``load_calibration`` reads: JSON, the same bytes for the same calibration."""
    return (json.dumps(asdict(calibration), indent=1, sort_keys=True) + "\n").encode()
