"""Overlapping windows to one field, and a token field to pixels, on the device that made the windows.

Vectors are torch tensors and never leave the device here; places, masks and weights are small and stay on the host.
Every sum runs in an order that follows from the global lattice alone, and every operation is element-wise and rounded
on its own (no fused multiply-add, whose tail would differ from its middle), so that a token's bytes do not depend on
the tile, the area, the number of windows around it or how the work was cut. The same code serves CPUs and GPUs;
on a GPU it was not run.

``blend`` is the token-aligned weighted mean with a linear ramp exactly as wide as the overlap (evidence: the ramp
length alone decides the seam, cosine ramps and discarded margins are worse). ``centre`` takes each token from the
window whose centre is nearest; where two are, with an odd overlap in tokens, from the one in the south or east.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import groupby, product
from typing import TYPE_CHECKING

import numpy as np
import torch

from pipeline.errors import ConfigError, InvalidInputError
from pipeline.types import PIXEL_M, Box, GridSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

Head = Callable[[torch.Tensor], torch.Tensor]
"""(token, dim of the stitched field) to (token, dim that is written)."""
RUN_BYTES = {"cpu": 2**20, "cuda": 2**28}
"""Bytes of windows that are added side by side: on a CPU what stays in cache (one window at patch 1), on a GPU enough
that launching kernels costs nothing."""
HEAD_TOKENS = 4096
"""Tokens that go through the head at once, always: a row of a product may depend on the number of rows."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Field:
    """A field of vectors on the token grid or on the pixels of the store.

    Attributes:
        values: (row, col, dim) float32 on a device; undefined where not valid.
        valid: (row, col) bool, on the host.
        box: Lattice box; ``res_m`` is 10 m times the distance of neighbouring vectors.
        patch_px: Side of the patch that a vector is of, where patches overlap (sub-patch shifts): a vector belongs to
            the middle of its patch, which begins where its pixel of ``box`` begins. 0: a patch is a pixel of ``box``.
    """

    values: torch.Tensor
    valid: NDArray[np.bool_]
    box: Box
    patch_px: int = 0

    def __post_init__(self) -> None:
        if self.values.shape[:2] != self.box.shape or self.valid.shape != self.box.shape:
            raise InvalidInputError(f"Field {tuple(self.values.shape)}, valid {self.valid.shape} on {self.box}")

    @property
    def finite(self) -> bool:
        """Whether no value is NaN or infinite."""
        # the smallest and largest value are NaN when any is; twenty times faster than asking every value
        return bool(torch.stack(torch.aminmax(self.values)).isfinite().all())


@dataclass(frozen=True, slots=True)
class _Piece:
    """The same tokens of neighbouring windows of one row, which lie in the field side by side or with equal gaps.

    Attributes:
        windows: Which windows.
        rows: Token rows of each of them.
        cols: Token columns of each of them.
        row: Field row of the first.
        col: Field column of the first.
    """

    windows: slice
    rows: slice
    cols: slice
    row: int
    col: int

    def source(self, data: torch.Tensor) -> torch.Tensor:
        """(window, token_row, token_col, dim) data of the windows as (token_row, window, dim, token_col)."""
        return data[self.windows, self.rows, self.cols].permute(1, 0, 3, 2)

    def target(self, field: torch.Tensor, stride: int) -> torch.Tensor:
        """The tokens of the (row, col, dim) field under ``source``, a view of the same shape."""
        height, width = self.rows.stop - self.rows.start, self.cols.stop - self.cols.start
        reach = (self.windows.stop - self.windows.start - 1) * stride + width
        return field[self.row : self.row + height, self.col : self.col + reach].unfold(1, width, stride)


def ramp(grid: GridSpec) -> NDArray[np.float32]:
    """Weight of each token along one axis of a window: (token,) float32.

    ``blend``: the weights of all windows over a token sum to the same value when the overlap is at most half a window;
    above that ``stitch`` divides by the sum. ``centre``: 1 in the core of the window, 0 around it, so that every token
    of the lattice has weight 1 in one window.

    Raises:
        ConfigError: Some token of the lattice would get weight zero.

    >>> [round(float(w), 3) for w in ramp(GridSpec(patch_px=4, window_px=24, overlap_px=8, tile_px=256))]
    [0.333, 0.667, 1.0, 1.0, 0.667, 0.333]
    """
    n, stride, trim = (side // grid.patch_px for side in (grid.window_px, grid.stride_px, grid.trim_px))
    place = np.arange(n)
    if grid.stitch == "centre":
        weights = ((place >= trim) & (place < trim + stride)).astype(np.float32)
    else:
        weights = np.minimum((np.minimum(place, place[::-1]) + 1) / (max(n - stride, 0) + 1), 1.0).astype(np.float32)
    if stride < 1 or (np.bincount(place % stride, weights, minlength=stride) <= 0).any():
        raise ConfigError(
            f"window {grid.window_px} px with overlap {grid.overlap_px} px at patch {grid.patch_px} gives a token "
            "weight zero: the overlap must be 0 or more and smaller than the window"
        )
    return weights


def filled(shape: tuple[int, ...], value: np.float32 | np.float16 | np.int8, device: torch.device) -> torch.Tensor:
    """A tensor of one value and its dtype."""
    # numpy asks the system for huge pages: 67 MB on a CPU take 9 ms instead of 39
    if device.type == "cpu":
        return torch.from_numpy(np.full(shape, value) if value else np.zeros(shape, value.dtype))
    return torch.full(shape, value.item(), dtype=torch.from_numpy(np.asarray(value)).dtype, device=device)


@torch.inference_mode()
def stitch(
    values: torch.Tensor, valid: NDArray[np.bool_], *, origins: Sequence[tuple[int, int]], grid: GridSpec, box: Box
) -> Field:
    """Make one token field of the windows of a tile.

    Args:
        values: (window, token_row, token_col, dim) float32 on a device; anything, also NaN, where not valid.
        valid: (window, token_row, token_col) bool; a token is valid in all windows over it or in none.
        origins: Lattice (row, col) of each window's north-west 10 m pixel, sorted.
        grid: The window lattice and the way of stitching.
        box: Token box (``res_m`` = 10 * patch) to fill.

    Returns:
        The field over ``box``; tokens that no window covers are not valid and 0.

    Raises:
        InvalidInputError: The origins are not sorted, so that the order of the sums would not be the lattice's.
        ConfigError: As ``ramp``.
    """
    if list(origins) != sorted(origins):
        raise InvalidInputError("window origins must be sorted: the order of the sums is part of the result")
    weights = ramp(grid)
    share = np.where(valid, weights[:, None] * weights[None, :], np.float32(0))[..., None]
    stride, dims = grid.stride_px // grid.patch_px, values.shape[-1]
    at_once = max(1, RUN_BYTES[values.device.type] // max(1, values[:1].nbytes))
    pieces = tuple(_pieces(origins, grid, box, at_once=at_once))
    norm = torch.zeros((*box.shape, 1))
    total = filled((*box.shape, dims), np.float32(0), values.device)
    host = torch.from_numpy(share)
    there = host.to(values.device)
    for piece in pieces:
        part = share[piece.windows, piece.rows, piece.cols]
        piece.target(norm, stride).add_(piece.source(host))
        term = piece.source(values)
        if not part.all():
            term = torch.where(piece.source(there) > 0, term, 0.0)  # nothing of an invalid token may come through
        piece.target(total, stride).add_(term if (part == 1).all() else term * piece.source(there))
    ok = norm > 0
    if not bool((norm == 1).all()):
        total.div_(torch.where(ok, norm, 1.0).to(total.device))
    return Field(values=total, valid=ok[..., 0].numpy(), box=box)


@torch.inference_mode()
def stitch_shifts(
    values: torch.Tensor, valid: NDArray[np.bool_], *, origins: Sequence[tuple[int, int]], grid: GridSpec, box: Box
) -> Field:
    """As ``stitch``, for windows of every sub-patch shift, whose fields are interleaved.

    Shift by shift in ``origins``, as ``plan.grid.tile_windows`` gives them. Vector (i, j) of the shift (a, b) becomes
    vector (i * dense + a, j * dense + b).
    """
    parts = tuple(
        stitch(values[part], valid[part], origins=moved, grid=grid, box=box) for part, moved in by_shift(origins, grid)
    )
    return parts[0] if grid.dense == 1 else interleaved(parts, grid)


@torch.inference_mode()
def domain_field(
    values: torch.Tensor, valid: NDArray[np.bool_], *, origins: Sequence[tuple[int, int]], grid: GridSpec, box: Box
) -> Field:
    """The field of one core and its margin, from the domains of every shift that give it.

    Args:
        values: (domain, token_row, token_col, dim) float32: what is kept of each domain.
        valid: (domain, token_row, token_col) bool.
        origins: Lattice (row, col) of each domain's north-west pixel, shift by shift.
        grid: The domain lattice.
        box: 10 m box of the core.

    Raises:
        InvalidInputError: A domain of the core is missing.
    """
    place = box.pad(grid.margin_px).cover(PIXEL_M * grid.patch_px)
    wanted = (box.row - grid.halo_px, box.col - grid.halo_px)
    parts = []
    for part, moved in by_shift(origins, grid):
        if wanted not in moved:
            raise InvalidInputError(f"no domain at {wanted} for the core {box}")
        at = part.start + moved.index(wanted)
        parts.append(Field(values=values[at], valid=valid[at], box=place))
    return parts[0] if grid.dense == 1 else interleaved(tuple(parts), grid)


def by_shift(
    origins: Sequence[tuple[int, int]], grid: GridSpec
) -> tuple[tuple[slice, tuple[tuple[int, int], ...]], ...]:
    """(which windows, their origins without the shift) of every sub-patch shift, in order.

    Raises:
        InvalidInputError: The windows are not given shift by shift, or the shifts are not alike.
    """
    count, rest = divmod(len(origins), grid.dense**2)
    found = []
    for i, (down, across) in enumerate(product(range(0, grid.patch_px, grid.step_px), repeat=2)):
        part = slice(i * count, (i + 1) * count)
        found.append((part, tuple((row - down, col - across) for row, col in origins[part])))
    if rest or any(moved != found[0][1] for _, moved in found):
        raise InvalidInputError(f"{len(origins)} windows are not {grid.dense**2} times the same ones, shift by shift")
    return tuple(found)


def interleaved(parts: Sequence[Field], grid: GridSpec) -> Field:
    """The fields of all sub-patch shifts, over the same token box, as one that is ``dense`` times finer."""
    k, box = grid.dense, parts[0].box
    fine = replace(
        box, res_m=PIXEL_M * grid.step_px, row=box.row * k, col=box.col * k, height=box.height * k, width=box.width * k
    )
    values = parts[0].values.new_empty((*fine.shape, parts[0].values.shape[-1]))
    valid = np.empty(fine.shape, np.bool_)
    for i, part in enumerate(parts):
        a, b = divmod(i, k)
        values[a::k, b::k], valid[a::k, b::k] = part.values, part.valid
    return Field(values=values, valid=valid, box=fine, patch_px=grid.patch_px)


@torch.inference_mode()
def with_head(tokens: Field, head: Head) -> Field:
    """Apply a model's head to a stitched field.

    Args:
        tokens: The field.
        head: The identity gives back the tensor that it got. It sees ``HEAD_TOKENS`` tokens at a time, the last ones
            padded with 0, so that a token's bytes do not depend on the size of the field.

    Returns:
        The field of results, with 0 where not valid; ``tokens`` itself when the head is the identity.
    """
    flat = tokens.values.flatten(0, 1)
    first = _padded(flat[:HEAD_TOKENS])
    made = head(first)
    if made is first:
        return tokens
    out = flat.new_empty((len(flat), made.shape[-1]))
    for start in range(0, len(flat), HEAD_TOKENS):
        part = out[start : start + HEAD_TOKENS]
        part.copy_((head(_padded(flat[start : start + HEAD_TOKENS])) if start else made)[: len(part)])
    values = out.reshape(*tokens.box.shape, -1)
    if not tokens.valid.all():
        values[torch.from_numpy(~tokens.valid).to(values.device)] = 0
    return replace(tokens, values=values)


def to_pixels(tokens: Field, valid: NDArray[np.bool_], box: Box) -> Field:
    """Bring a token field to the pixels of the store: bilinear between token centres, weighted by validity.

    Args:
        tokens: Token field that reaches one token beyond ``box`` on every side; ``box`` itself where a pixel of the
            store is a token.
        valid: (row, col) bool over ``box``: pixels that have an observation; others stay invalid.
        box: Box to fill, 10 m or with the tokens' own side.

    Returns:
        The pixel field over ``box``.
    """
    (field,) = strips(tokens, valid, box, rows=box.height)
    return field


def strips(tokens: Field, valid: NDArray[np.bool_], box: Box, *, rows: int) -> Iterator[Field]:
    """Yield what ``to_pixels`` gives, ``rows`` rows at a time, so that floats of few pixels exist at once."""
    same = box.res_m == tokens.box.res_m and tokens.patch_px * PIXEL_M in (0, box.res_m)
    mix = _Same(tokens, box) if same else _Bilinear(tokens, box)
    ok = valid & mix.valid
    for top in range(0, box.height, rows):
        part = slice(top, min(top + rows, box.height))
        strip = replace(box, row=box.row + top, height=part.stop - top)
        yield Field(values=mix.values(part), valid=ok[part], box=strip)


class _Same:
    """The pixels of the store are the tokens."""

    def __init__(self, tokens: Field, box: Box) -> None:
        cut = box.slices_in(tokens.box)
        self.valid, self._values = tokens.valid[cut], tokens.values[cut]

    def values(self, rows: slice) -> torch.Tensor:
        return self._values[rows]


class _Bilinear:
    """Two taps per axis, from the global phase of each pixel."""

    def __init__(self, tokens: Field, box: Box) -> None:
        step, device = tokens.box.res_m // PIXEL_M, tokens.values.device
        sides = step, tokens.patch_px or step
        cut, down = _taps(box.row, box.height, sides=sides, origin=tokens.box.row)
        cut_across, across = _taps(box.col, box.width, sides=sides, origin=tokens.box.col)
        near = tokens.valid[cut, cut_across]
        self.valid: NDArray[np.bool_] = np.ones(box.shape, np.bool_)
        self._weight: torch.Tensor | None = None
        self._tokens = tokens.values[cut, cut_across]
        self._down, self._across = down.to(device), across.to(device)
        if not near.all():
            mass = torch.from_numpy(near.astype(np.float32)[..., None])
            weight = across.mix(down.mix(mass, dim=0), dim=1)
            self.valid = (weight[..., 0] > 0).numpy()
            self._weight = torch.where(weight > 0, weight, 1.0).to(device)
            self._tokens = torch.where(mass.to(device) > 0, self._tokens, 0.0)

    def values(self, rows: slice) -> torch.Tensor:
        mixed = self._across.mix(self._down.part(rows).mix(self._tokens, dim=0), dim=1)
        return mixed if self._weight is None else mixed / self._weight[rows]


@dataclass(frozen=True, slots=True)
class _Taps:
    """Along one axis, for every pixel: index of the first of two tokens, weight of the first and of the second."""

    first: torch.Tensor
    one: torch.Tensor
    two: torch.Tensor

    def to(self, device: torch.device) -> _Taps:
        return _Taps(self.first.to(device), self.one.to(device), self.two.to(device))

    def part(self, pixels: slice) -> _Taps:
        return _Taps(self.first[pixels], self.one[pixels], self.two[pixels])

    @torch.inference_mode()
    def mix(self, data: torch.Tensor, *, dim: int) -> torch.Tensor:
        """(row, col, dim) with tokens along ``dim`` to the same with pixels."""
        shape = [-1 if axis == dim else 1 for axis in range(data.ndim)]
        one = data.index_select(dim, self.first).mul_(self.one.reshape(shape))
        two = data.index_select(dim, self.first + 1).mul_(self.two.reshape(shape))
        return one.add_(two)


def _taps(start: int, count: int, *, sides: tuple[int, int], origin: int) -> tuple[slice, _Taps]:
    """The tokens (counted from ``origin``) that ``count`` pixels from ``start`` on need, and their taps in them.

    ``sides``: pixels from one token to the next, and of a token's patch, in whose middle it lies.
    """
    step, patch = sides
    doubled = 2 * np.arange(start, start + count) + 1 - patch  # twice the pixel centre minus that of token 0
    first = doubled // (2 * step)
    weight = ((doubled - first * 2 * step) / (2 * step)).astype(np.float32)
    cut = slice(int(first[0]) - origin, int(first[-1]) + 2 - origin)
    taps = _Taps(torch.from_numpy(first - first[0]), torch.from_numpy(1 - weight), torch.from_numpy(weight))
    return cut, taps


def _padded(part: torch.Tensor) -> torch.Tensor:
    """(token, dim) padded with 0 to ``HEAD_TOKENS`` tokens."""
    missing = HEAD_TOKENS - len(part)
    return torch.cat((part, part.new_zeros((missing, part.shape[1])))) if missing else part


def _pieces(origins: Sequence[tuple[int, int]], grid: GridSpec, box: Box, *, at_once: int) -> Iterator[_Piece]:
    """What to add to the field over ``box``, in an order in which every token meets its windows in lattice order."""
    patch, trim, n = grid.patch_px, grid.trim_px // grid.patch_px, grid.core_px // grid.patch_px
    stride = grid.stride_px // patch
    places = [(row // patch + trim - box.row, col // patch + trim - box.col) for row, col in origins]
    for row, group in groupby(enumerate(places), key=lambda entry: entry[1][0]):
        top, bottom = max(0, -row), min(n, box.height - row)
        if top >= bottom:
            continue
        rows = slice(trim + top, trim + bottom)
        for first, cols in _runs([(i, col) for i, (_, col) in group], n, stride, width=box.width, at_once=at_once):
            windows = slice(first, first + len(cols))
            # of neighbours the later part first: a token's western window comes before its eastern one
            parts = [(k, min(k + stride, n)) for k in reversed(range(0, n, stride))] if len(cols) > 1 else [(0, n)]
            for west, east in parts:
                left, right = max(west, -cols[0]), min(east, box.width - cols[0] if len(cols) == 1 else east)
                if left < right:
                    yield _Piece(windows, rows, slice(trim + left, trim + right), row + top, cols[0] + left)


def _runs(
    members: Iterable[tuple[int, int]], n: int, stride: int, *, width: int, at_once: int
) -> Iterator[tuple[int, list[int]]]:
    """Cut one row of windows (index, field column) into neighbours that lie inside the field, and single ones."""
    first, cols = 0, list[int]()
    for index, col in members:
        inside = cols and cols[0] >= 0 and col + n <= width
        if cols and not (inside and col == cols[-1] + stride and len(cols) < at_once):
            yield first, cols
            cols = []
        first = first if cols else index
        cols.append(col)
    if cols:
        yield first, cols
