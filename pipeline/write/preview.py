"""Pictures: embeddings as PCA colours, class maps in their colours, PNG files with legend and label.

Takes arrays and small values, knows nothing of stores or probes. The colour basis is made once per store from a sample
and frozen (``Basis.to_json``), so that tiles and years have the same colours.
"""

from __future__ import annotations

import io
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import codes
from pipeline.errors import InvalidInputError
from pipeline.write import durable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from PIL import Image, ImageDraw, ImageFont

    from pipeline.codes import Coded
    from pipeline.types import Calibration

MAX_SIDE_PX = 2000
NODATA_CLASS = 255
GAMMA = 1.6
"""Of true colours: land reflects 3 to 15 per cent, which would be almost black beside clouds."""
RAMP = (
    "#440154", "#482878", "#3e4a89", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6dcd59", "#b4de2c", "#fde725"
)  # fmt: skip
"""Viridis (van der Walt and Smith, matplotlib 2.0) at ten even places."""
_PERCENTILES = (2.0, 98.0)
"""Ends of the stretch: the usual 2 % cut keeps single bright pixels from flattening the picture."""
_CHUNK_PX = 65_536
_HEX = re.compile(r"#[0-9a-fA-F]{6}")
MIN_WIDTH_PX = 640
"""Narrower pictures are enlarged by whole pixels, so that title and legend stay readable."""
_INK, _MUTED, _PAPER, _ALARM = "#1c2430", "#5a6676", "#ffffff", "#b3261e"


@dataclass(frozen=True, slots=True, kw_only=True)
class Basis:
    """How vectors become colours: three principal components, stretched between two percentiles.

    Attributes:
        mean: (dim,) centre of the sample.
        components: (3, dim) unit vectors, largest variance first; the largest loading of each is positive.
        low: (3,) scores that become 0.
        high: (3,) scores that become 255; larger than ``low``.
        explained: (3,) share of the sample's variance.
    """

    mean: tuple[float, ...]
    components: tuple[tuple[float, ...], ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    explained: tuple[float, ...]

    def __post_init__(self) -> None:
        dims = len(self.mean)
        if len(self.components) != 3 or any(len(c) != dims for c in self.components):
            raise InvalidInputError(f"Basis.components must be 3 x {dims}, got {[len(c) for c in self.components]}")
        if not len(self.low) == len(self.high) == len(self.explained) == 3:
            raise InvalidInputError("Basis.low, high and explained must hold 3 numbers each")
        numbers = np.concatenate([self.mean, *self.components, self.low, self.high, self.explained])
        if not np.isfinite(numbers).all():
            raise InvalidInputError("Basis holds NaN or infinite numbers")
        if not all(low < high for low, high in zip(self.low, self.high, strict=True)):
            raise InvalidInputError(f"Basis.low {self.low} must be below Basis.high {self.high}")

    def to_json(self) -> str:
        """The basis as one JSON object, numbers in full precision."""
        return json.dumps(asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Basis:
        """Read what ``to_json`` wrote.

        Raises:
            InvalidInputError: Not a basis.
        """
        try:
            data = json.loads(text)
            return cls(
                components=tuple(tuple(float(v) for v in row) for row in data["components"]),
                **{name: tuple(float(v) for v in data[name]) for name in ("mean", "low", "high", "explained")},
            )
        except InvalidInputError:
            raise
        except (KeyError, TypeError, ValueError) as err:
            raise InvalidInputError(f"the colour basis is damaged: {err!r}") from err


def pca_basis(samples: NDArray[np.float32]) -> Basis:
    """Principal components of a sample, with signs fixed so that the same sample always gives the same colours.

    Args:
        samples: (n, dim) float32, decoded vectors of valid pixels; some ten thousand are plenty. Of fewer than three
            dimensions the other colours are mid grey.

    Raises:
        InvalidInputError: Fewer than 4 vectors, or values that are not finite.
    """
    if samples.ndim != 2 or samples.shape[0] < 4 or samples.shape[1] < 1:
        raise InvalidInputError(f"a colour basis needs at least 4 vectors, got {samples.shape}")
    if not np.isfinite(samples).all():
        raise InvalidInputError("the sample of a colour basis holds NaN or infinite numbers: use valid pixels only")
    dims = samples.shape[1]
    x = np.pad(samples.astype(np.float64), ((0, 0), (0, max(0, 3 - dims))))
    mean = x.mean(axis=0)
    components, variances = codes.principal(np.cov(x - mean, rowvar=False), 3)
    low, high = np.percentile((x - mean) @ components.T, _PERCENTILES, axis=0)
    # A component without spread is mid grey, whatever the rounding of its scores.
    flat = high - low <= 1e-9 * max(float(np.abs(x).max()), 1e-30)
    low, high = np.where(flat, -1.0, low), np.where(flat, 1.0, high)
    total = max(float(variances.sum()), 1e-30)
    return Basis(
        mean=tuple(mean[:dims].tolist()),
        components=tuple(tuple(row) for row in components[:, :dims].tolist()),
        low=tuple(low.tolist()),
        high=tuple(high.tolist()),
        explained=tuple((np.maximum(variances[:3], 0) / total).tolist()),
    )


def render(
    stored: NDArray[Any], scale: NDArray[np.float32], valid: NDArray[np.bool_], basis: Basis
) -> NDArray[np.uint8]:
    """Embeddings as colours.

    Args:
        stored: (dim, row, col) codes, or values.
        scale: (dim,) value of one code step; ones for values.
        valid: (row, col) bool.
        basis: From ``pca_basis``.

    Returns:
        (row, col, 4) uint8 RGBA; transparent black where not valid.

    Raises:
        InvalidInputError: Shapes do not agree.
    """
    dims, (rows, cols) = len(basis.mean), valid.shape
    if stored.shape != (dims, rows, cols) or scale.shape != (dims,):
        raise InvalidInputError(
            f"codes {stored.shape}, scale {scale.shape}, valid {valid.shape}: want {dims} dimensions"
        )
    low, span = np.array(basis.low), np.array(basis.high) - np.array(basis.low)
    components = np.array(basis.components)
    gain = (components * scale.astype(np.float64) / span[:, None]).astype(np.float32)
    offset = ((-components @ np.array(basis.mean) - low) / span).astype(np.float32)
    picture = np.zeros((rows, cols, 4), dtype=np.uint8)
    step = max(1, _CHUNK_PX // max(cols, 1))
    for row in range(0, rows, step):
        part, keep = stored[:, row : row + step], valid[row : row + step]
        if keep.any():
            scores = gain @ part.reshape(dims, -1).astype(np.float32) + offset[:, None]
            rgb = np.rint(np.clip(scores, 0, 1) * 255).astype(np.uint8).T.reshape(*keep.shape, 3)
            picture[row : row + step, :, :3] = np.where(keep[..., None], rgb, 0)
            picture[row : row + step, :, 3] = np.where(keep, 255, 0)
    return picture


def render_coded(coded: Coded, calibration: Calibration, basis: Basis) -> NDArray[np.uint8]:
    """Stored vectors of any quantiser as colours.

    Args:
        coded: (band, row, col) codes.
        calibration: How to read them.
        basis: From ``pca_basis``, of decoded vectors.

    Returns:
        (row, col, 4) uint8 RGBA; transparent black where there is no vector.

    Raises:
        InvalidInputError: Bands or dtype do not agree.
    """
    stored, valid = coded.codes, coded.valid
    if calibration.scale and calibration.dtype == "int8" and calibration.method in ("linear", "pca"):
        return render(stored, np.asarray(calibration.scale, np.float32), valid, basis)
    picture = np.zeros((*valid.shape, 4), np.uint8)
    step = max(1, _CHUNK_PX // max(valid.shape[1], 1))
    ones = np.ones(len(stored), np.float32)
    for row in range(0, len(valid), step):
        cut = slice(row, row + step)
        scale = None if coded.pixel_scale is None else coded.pixel_scale[cut]
        values = codes.decode(codes.Coded(codes=stored[:, cut], pixel_scale=scale), calibration)
        picture[cut] = render(np.nan_to_num(values), ones, valid[cut], basis)
    return picture


def opaque(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(row, col, 4) uint8 of (channel, row, col) true colours as a store keeps them: transparent where they are 0."""
    picture = np.zeros((*rgb.shape[1:], 4), np.uint8)
    picture[..., :3] = np.moveaxis(rgb, 0, -1)
    picture[..., 3] = np.where(rgb[0] > 0, 255, 0)
    return picture


def brightened(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """True colours as a screen shows them: ``GAMMA`` over the linear values of a store, which go from 1 to 255."""
    table = np.rint(255 * (np.maximum(np.arange(256) - 1, 0) / 254) ** (1 / GAMMA)).astype(np.uint8)
    out = rgba.copy()
    out[..., :3] = np.where(rgba[..., 3:] > 0, table[rgba[..., :3]], 0)
    return out


def ramp(top: int) -> tuple[str, ...]:
    """``#rrggbb`` of the values 0, 1, ... ``top``: dark for little, light for much, even steps for the eye."""
    at = np.linspace(0, 1, top + 1) if top else np.ones(1)
    known = np.array([_rgb(colour) for colour in RAMP])
    shares = np.linspace(0, 1, len(RAMP))
    mixed = np.rint([np.interp(at, shares, known[:, k]) for k in range(3)]).astype(int).T
    return tuple(f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in mixed.tolist())


def render_classes(classes: NDArray[np.uint8], colours: Sequence[str]) -> NDArray[np.uint8]:
    """A class map as colours.

    Args:
        classes: (row, col) uint8; 255 is nodata.
        colours: ``#rrggbb`` of class 0, 1, ...

    Returns:
        (row, col, 4) uint8 RGBA; transparent where nodata.

    Raises:
        InvalidInputError: A class without a colour, or a colour of another form.
    """
    table = np.zeros((256, 4), dtype=np.uint8)
    for code, colour in enumerate(colours):
        table[code] = (*_rgb(colour), 255)
    table[NODATA_CLASS] = 0
    present = np.flatnonzero(np.bincount(classes.ravel(), minlength=256)[:NODATA_CLASS])
    if len(present) and present[-1] >= len(colours):
        raise InvalidInputError(f"the map holds class {present[-1]}, but only {len(colours)} colours were given")
    return table[classes]


def factor_for(height: int, width: int, *, max_side_px: int = MAX_SIDE_PX) -> int:
    """The smallest power of two that brings both sides to ``max_side_px`` or less.

    A power of two divides every tile, so tiles shrunk one by one fit together.

    >>> factor_for(4096, 9000)
    8
    """
    factor = 1
    while max(height, width) > max_side_px * factor:
        factor *= 2
    return factor


def shrink_rgba(rgba: NDArray[np.uint8], *, factor: int) -> NDArray[np.uint8]:
    """Average squares of ``factor`` pixels; transparent pixels do not count, a square without others is transparent.

    Args:
        rgba: (row, col, 4) uint8; rows and columns that do not fill a square count as transparent.
        factor: Side of a square.
    """
    if factor == 1:
        return rgba
    squares = _squares(rgba, factor, fill=0)
    opaque = squares[..., 3:] > 0
    count = opaque.sum(axis=(1, 3))
    total = np.where(opaque, squares[..., :3], 0).sum(axis=(1, 3), dtype=np.int64)
    out = np.zeros((*count.shape[:2], 4), dtype=np.uint8)
    out[..., :3] = np.rint(total / np.maximum(count, 1))
    out[..., 3] = np.where(count[..., 0] > 0, 255, 0)
    return out


def shrink_classes(classes: NDArray[np.uint8], *, factor: int) -> NDArray[np.uint8]:
    """The commonest class of every square of ``factor`` pixels, the smallest of equals; nodata only where all is.

    Args:
        classes: (row, col) uint8; 255 is nodata, and so are rows and columns beyond the edge.
        factor: Side of a square.
    """
    if factor == 1:
        return classes
    squares = _squares(classes[..., None], factor, fill=NODATA_CLASS)[..., 0]
    best = np.zeros((squares.shape[0], squares.shape[2]), dtype=np.int64)
    out = np.full(best.shape, NODATA_CLASS, dtype=np.uint8)
    for value in np.flatnonzero(np.bincount(classes.ravel(), minlength=256)[:NODATA_CLASS]):
        count = (squares == value).sum(axis=(1, 3))
        out[count > best] = value
        best = np.maximum(best, count)
    return out


def png_bytes(rgba: NDArray[np.uint8]) -> bytes:
    """The picture as a PNG file without any frame (for the report)."""
    buffer = io.BytesIO()
    _image(rgba).save(buffer, format="PNG")
    return buffer.getvalue()


def save_png(
    path: str,
    rgba: NDArray[np.uint8],
    *,
    title_lines: Sequence[str] = (),
    legend: Sequence[tuple[str, str]] = (),
    label: str | None = None,
) -> None:
    """Write a picture with what is needed to read it; atomic.

    Args:
        path: PNG file.
        rgba: (row, col, 4) uint8; at most ``MAX_SIDE_PX`` is kept per side, narrow pictures are enlarged.
        title_lines: Above the picture; the first is larger.
        legend: (name, ``#rrggbb``) below the picture.
        label: A warning in a red strip below the picture, e.g. ``UNTRAINED random weights``.

    Raises:
        OutputError: The file cannot be written.
    """
    small = shrink_rgba(rgba, factor=factor_for(rgba.shape[0], rgba.shape[1]))
    times = max(1, -(-MIN_WIDTH_PX // small.shape[1])) if small.shape[1] < MIN_WIDTH_PX else 1
    picture = _image(np.kron(small, np.ones((times, times, 1), dtype=np.uint8)) if times > 1 else small)
    parts = [_title(picture.width, title_lines), picture, _label(picture.width, label), _legend(picture.width, legend)]
    buffer = io.BytesIO()
    _stacked([part for part in parts if part is not None]).save(buffer, format="PNG")
    durable.replace(Path(path), buffer.getvalue())


def _squares(array: NDArray[np.uint8], factor: int, *, fill: int) -> NDArray[np.uint8]:
    """(row, factor, col, factor, channel): the array padded to whole squares."""
    rows, cols = (-(-n // factor) for n in array.shape[:2])
    pad = ((0, rows * factor - array.shape[0]), (0, cols * factor - array.shape[1]), (0, 0))
    return np.pad(array, pad, constant_values=fill).reshape(rows, factor, cols, factor, -1)


def _rgb(colour: str) -> tuple[int, int, int]:
    if not _HEX.fullmatch(colour):
        raise InvalidInputError(f"colour {colour!r} is not of the form #rrggbb")
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _image(rgba: NDArray[np.uint8]) -> Image.Image:
    from PIL import Image  # noqa: PLC0415

    if rgba.ndim != 3 or rgba.shape[2] != 4 or rgba.dtype != np.uint8:
        raise InvalidInputError(f"a picture must be uint8 (row, col, 4), got {rgba.dtype} {rgba.shape}")
    return Image.fromarray(np.ascontiguousarray(rgba), mode="RGBA")


def _font(size_px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    from PIL import ImageFont  # noqa: PLC0415

    return ImageFont.load_default(size=size_px)


def _strip(width: int, height: int, colour: str) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    from PIL import Image, ImageDraw  # noqa: PLC0415

    strip = Image.new("RGBA", (width, height), colour)
    return strip, ImageDraw.Draw(strip)


def _wrapped(text: str, width: int, size_px: int) -> list[str]:
    """Lines of at most ``width`` pixels; a word that is longer is cut."""
    font = _font(size_px)
    lines: list[str] = []
    line = ""
    for word in text.split():
        joined = f"{line} {word}".strip()
        if line and font.getlength(joined) > width:
            lines.append(line)
            joined = word
        while font.getlength(joined) > width and len(joined) > 1:
            joined = joined[:-1]
        line = joined
    return [*lines, line]


def _title(width: int, lines: Sequence[str]) -> Image.Image | None:
    sized = [(part, 22 if n == 0 else 15) for n, text in enumerate(lines) for part in _wrapped(text, width - 32, 22)]
    if not sized:
        return None
    strip, draw = _strip(width, 20 + sum(size + 8 for _, size in sized), _PAPER)
    top = 12
    for text, size in sized:
        draw.text((16, top), text, fill=_INK if size == 22 else _MUTED, font=_font(size))
        top += size + 8
    return strip


def _label(width: int, label: str | None) -> Image.Image | None:
    if not label:
        return None
    lines = _wrapped(label, width - 32, 20)
    strip, draw = _strip(width, 18 + 28 * len(lines), _ALARM)
    for n, text in enumerate(lines):
        draw.text((16, 11 + 28 * n), text, fill="#ffffff", font=_font(20))
    return strip


def _legend(width: int, legend: Sequence[tuple[str, str]]) -> Image.Image | None:
    if not legend:
        return None
    font = _font(16)
    places: list[tuple[int, int, str, str]] = []
    left, row = 16, 0
    for name, colour in legend:
        _rgb(colour)
        shown = _wrapped(name, width - 72, 16)[0]
        need = 30 + int(font.getlength(shown)) + 24
        if left > 16 and left + need > width - 8:
            left, row = 16, row + 1
        places.append((left, 14 + 28 * row, shown, colour))
        left += need
    strip, draw = _strip(width, 28 * (row + 1) + 20, _PAPER)
    for x, y, name, colour in places:
        draw.rectangle((x, y, x + 20, y + 18), fill=colour, outline="#8a94a3")
        draw.text((x + 30, y), name, fill=_INK, font=font)
    return strip


def _stacked(parts: Sequence[Image.Image]) -> Image.Image:
    from PIL import Image  # noqa: PLC0415

    sheet = Image.new("RGBA", (parts[0].width, sum(p.height for p in parts)), (0, 0, 0, 0))
    top = 0
    for part in parts:
        sheet.paste(part, (0, top))
        top += part.height
    return sheet
