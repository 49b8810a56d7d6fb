"""How far the encoder looks: gradients by distance, context replaced by another place, and the edge of a domain.

Three questions about one vector. Which pixels would move it (``gradient_mass``)? What happens to it when the ground
beyond some distance is another (``context_change``)? And how wrong is it beside the edge of a domain that does not hold
all that it could see (``edge_error``)? Everything is float32 and without missing data; answers are in 10 m pixels,
shares of the deviation (embedding minus its mean over the place) and int8 codes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from pipeline.codes import MAX_CODE
from pipeline.encode.domain import DomainEncoder
from pipeline.encode.olmoearth import Encoder, Head
from pipeline.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import date

    from numpy.typing import NDArray

    from pipeline.encode.checkpoint import Checkpoint
    from pipeline.encode.rho import Place

Vectors = Callable[["Place"], torch.Tensor]
"""A square of ground to its written vectors, (row, col, dim) float32, of all or of some of its tokens."""
PROBES = 4
"""Random directions of the embedding whose gradients are taken: the mean of their squares estimates the squares of all
dimensions (Hutchinson, Comm. Stat. 18, 1989). On toy and nano 4 gave the diameters of 32 within 2 px."""
SEED = 5
CODE_SHARE, CODE_STEP = 0.01, 0.02
"""Tolerance of an edge: share of int8 codes changed, mean absolute code step. Where an error is far below one code, a
share e of the codes moves by one when its mean size is e codes, so the first says 0.01 codes; the second bounds the
rare larger moves. Neighbours differ by several codes (standard deviation 6.7 on random nano): a step of 0.02 raises
the mean step at the edge by less than a thousandth. Another batch shape in bfloat16 moves half of the codes."""
CORE_CELLS = 8
"""Least side of the core beside whose edges the error is taken: 28 tokens there per place."""
FAR_BELOW = 10
"""Halos are tried until the error is so many times below the tolerance."""
MOST_HALOS = 13
"""About as many halos are tried, whatever the exact one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mass:
    """Where the gradient of a vector lies.

    Attributes:
        window_px: Side of what the encoder was given.
        box_px: Side of the boxes of neighbourhood attention; 0: a window in which everything attends to everything.
        sides_px: Sides of squares around the centre of the vector's patch, ascending.
        squared: Share of the squared gradient inside each.
        absolute: Share of the absolute gradient inside each.
        uniform: Share of the area inside each: what a gradient of the same size everywhere would give.
    """

    window_px: int
    box_px: int
    sides_px: tuple[int, ...]
    squared: tuple[float, ...]
    absolute: tuple[float, ...]
    uniform: tuple[float, ...]

    def side_holding(self, share: float, of: str = "absolute") -> int:
        """Side of the smallest square that holds a share (0..1) of ``squared``, ``absolute`` or ``uniform``."""
        shares = np.asarray(getattr(self, of))
        return self.sides_px[min(int(np.searchsorted(shares, share - 1e-9)), len(shares) - 1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """How much vectors change.

    Attributes:
        deviation: Mean length of the change over the mean length of the deviation.
        codes: Share of int8 codes that change, 0..1.
        step: Mean absolute change of an int8 code.
    """

    deviation: float
    codes: float
    step: float

    def within(self, share: float = CODE_SHARE, step: float = CODE_STEP) -> bool:
        """Whether both figures of codes are at most these."""
        return self.codes <= share and self.step <= step


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What the centre of a window loses without its surroundings.

    Attributes:
        window_px: Side of the window.
        kept_px: Sides of the squares around the centre beyond which the ground was another place's.
        changes: Change of the centre's vector for each.
    """

    window_px: int
    kept_px: tuple[int, ...]
    changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """The error at the edge of a neighbourhood domain.

    Attributes:
        box_px: Side of the boxes.
        exact_px: Halo that holds everything a kept token can see: (north and west, south and east).
        halos_px: Halos tried, north and west, and the exact one; south and east as much, but no more than ``exact_px``.
        changes: Change of the kept tokens of the outermost rows and columns, at the worse of the two sides.
        halo_px: Smallest of them whose change is within the tolerance.
    """

    box_px: int
    exact_px: tuple[int, int]
    halos_px: tuple[int, ...]
    changes: tuple[Change, ...]
    halo_px: int

    @property
    def chosen(self) -> Change:
        """The change that ``halo_px`` leaves."""
        return self.changes[self.halos_px.index(self.halo_px)]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Eye:
    """An encoder, and where its centre is.

    Attributes:
        vectors: What it gives for a square of ground.
        window_px: Side of that square.
        patch_px: Side of a token.
        cell: Token along both axes that counts as the centre.
        out: The same among the tokens that ``vectors`` gives.
        box_px: As in ``Mass``.
    """

    vectors: Vectors
    window_px: int
    patch_px: int
    cell: int
    out: int
    box_px: int = 0


def window_eye(
    checkpoint: Checkpoint,
    *,
    window_px: int,
    patch_px: int,
    dates: Sequence[date],
    sensors: tuple[str, ...],
    device: str = "cpu",
) -> Eye:
    """A window in which every token attends to every other.

    Raises:
        ConfigError: Window and patch do not fit.
    """
    side = (window_px, window_px)
    encoder = Encoder(checkpoint, window_px=side, patch_px=patch_px, dates=dates, sensors=sensors)
    cell = window_px // patch_px // 2
    return Eye(
        vectors=_vectors(encoder, checkpoint, device), window_px=window_px, patch_px=patch_px, cell=cell, out=cell
    )


def domain_eye(
    checkpoint: Checkpoint,
    *,
    box_px: int,
    halo_px: tuple[int, int],
    patch_px: int,
    dates: Sequence[date],
    sensors: tuple[str, ...],
    core: int = 1,
    device: str = "cpu",
) -> Eye:
    """A domain of ``core`` tokens with a halo in front and behind; its centre is the core's first token.

    Raises:
        ConfigError: The model has absolute positions, or the sides do not fit.
    """
    front, behind = (side // patch_px for side in halo_px)
    window_px = (front + core + behind) * patch_px
    encoder = DomainEncoder(
        checkpoint,
        window_px=window_px,
        patch_px=patch_px,
        dates=dates,
        sensors=sensors,
        box_px=box_px,
        core=(front, core),
    )
    vectors = _vectors(encoder, checkpoint, device)
    return Eye(vectors=vectors, window_px=window_px, patch_px=patch_px, cell=front, out=0, box_px=box_px)


def _vectors(encoder: torch.nn.Module, checkpoint: Checkpoint, device: str) -> Vectors:
    module, head = encoder.eval().to(device), Head(checkpoint).eval().to(device)

    def vectors(place: Place) -> torch.Tensor:
        made: torch.Tensor = head(module(tuple(part[None].to(device) for part in place))[0])
        return made

    return vectors


def gradient_mass(eye: Eye, places: Sequence[Place], *, scale: Sequence[float]) -> Mass:
    """Gradient of the centre's vector by distance, mean over places.

    Args:
        eye: The encoder.
        places: Squares of ground of ``eye.window_px``.
        scale: (dim,) value of one int8 code: vectors are weighed in codes.

    Raises:
        InvalidInputError: A place of another size.
    """
    rings, sides = _rings(eye)
    count, weights = len(sides), 1 / torch.tensor(scale)
    generator = torch.Generator().manual_seed(SEED)
    shares = np.zeros((2, count))
    for place in places:
        _check_side(eye, place)
        pixels = tuple(part.clone().requires_grad_() for part in place)
        vector = eye.vectors(pixels)[eye.out, eye.out].cpu()
        total = np.zeros((2, *rings.shape))
        for _ in range(PROBES):
            signs = torch.randint(0, 2, weights.shape, generator=generator) * 2 - 1
            found = torch.autograd.grad((vector * weights * signs).sum(), pixels, retain_graph=True)
            for part in found:
                total += np.stack([part.square().sum((0, 1)), part.abs().sum((0, 1))])
        by_ring = np.stack([np.bincount(rings.ravel(), part.ravel(), count) for part in total])
        shares += by_ring / by_ring.sum(axis=1, keepdims=True)
    area = np.bincount(rings.ravel(), minlength=count)
    squared, absolute, uniform = (
        tuple((np.cumsum(part) / np.sum(part)).tolist()) for part in (shares[0], shares[1], area)
    )
    return Mass(
        window_px=eye.window_px,
        box_px=eye.box_px,
        sides_px=sides,
        squared=squared,
        absolute=absolute,
        uniform=uniform,
    )


def _rings(eye: Eye) -> tuple[NDArray[np.int64], tuple[int, ...]]:
    """((row, col) number of the square ring around the centre that a pixel lies in, side of every ring's square)."""
    patch, size = eye.patch_px, eye.window_px
    away = np.abs(np.arange(size) + 0.5 - (eye.cell + 0.5) * patch)  # Chebyshev: the larger of the two axes
    rings = np.maximum(away[:, None], away[None, :]).astype(np.int64)
    return rings, tuple(2 * k + 2 - patch % 2 for k in range(int(rings.max()) + 1))


@torch.inference_mode()
def context_change(eye: Eye, places: Sequence[Place], *, scale: Sequence[float]) -> Context:
    """Change of the centre when everything beyond a square around it is replaced by the next place.

    Args:
        eye: The encoder; a window.
        places: Two or more squares of ground of ``eye.window_px``.
        scale: (dim,) value of one int8 code.

    Raises:
        InvalidInputError: Fewer than two places, or one of another size.
    """
    if len(places) < 2:
        raise InvalidInputError("context is replaced by that of another place: two or more are needed")
    plain = []
    for place in places:
        _check_side(eye, place)
        plain.append(eye.vectors(place))
    centre, patch = eye.out, eye.patch_px
    kept = [k for k in _doubling(eye.window_px // patch) if (2 * k + 1) * patch < eye.window_px]
    changes = []
    for k in kept:
        inside = slice((eye.cell - k) * patch, (eye.cell + k + 1) * patch)
        tally = _Tally(scale)
        for place, other, field in zip(places, (*places[1:], places[0]), plain, strict=True):
            mixed = tuple(part.clone() for part in other)
            for part, own in zip(mixed, place, strict=True):
                part[..., inside, inside] = own[..., inside, inside]
            tally.add(eye.vectors(mixed)[centre, centre][None], field[centre, centre][None], field=field)
        changes.append(tally.change())
    return Context(window_px=eye.window_px, kept_px=tuple((2 * k + 1) * patch for k in kept), changes=tuple(changes))


def _doubling(cells: int) -> list[int]:
    """Distances in cells: 0, 1, 2, 3, 4, 6, 8, 12, 16, 24, ..."""
    found = [0, 1]
    while found[-1] < cells:
        found.append(found[-1] + 1 if found[-1] < 3 else found[-1] + 2 ** (int(np.log2(found[-1])) - 1))
    return found


@torch.inference_mode()
def edge_error(
    checkpoint: Checkpoint,
    places: Sequence[Place],
    *,
    box_px: int,
    patch_px: int,
    exact_px: tuple[int, int],
    dates: Sequence[date],
    sensors: tuple[str, ...],
    scale: Sequence[float],
    tolerance: tuple[float, float] = (CODE_SHARE, CODE_STEP),
    device: str = "cpu",
) -> Edge:
    """Error of the outermost kept tokens of a domain by halo, against one with everything that they can see.

    Args:
        checkpoint: A model with rotary positions.
        places: Squares of ground, ``edge_side_px`` or larger.
        box_px: Side of the boxes.
        patch_px: Side of a token.
        exact_px: See ``Edge``.
        dates: Model date of each period.
        sensors: What the places hold, in their order.
        scale: (dim,) value of one int8 code.
        tolerance: (share of codes changed, mean absolute code step) at most.
        device: ``cpu`` or ``cuda``.

    Raises:
        ConfigError: The model has absolute positions, or the sides do not fit.
        InvalidInputError: A place is too small.
    """
    core = _core(box_px, patch_px)
    need = edge_side_px(box_px, patch_px, exact_px)
    if any(place[0].shape[-1] < need for place in places):
        raise InvalidInputError(f"the edge of a domain needs places of {need} px")

    def fields(halo: int) -> list[torch.Tensor]:
        around = min(halo, exact_px[0]), min(halo, exact_px[1])
        eye = domain_eye(
            checkpoint, box_px=box_px, halo_px=around, patch_px=patch_px, dates=dates, sensors=sensors, core=core,
            device=device,
        )  # fmt: skip
        cut = slice(exact_px[0] - around[0], exact_px[0] - around[0] + eye.window_px)
        return [eye.vectors(tuple(part[..., cut, cut] for part in place)) for place in places]

    *tries, last = halos_px(patch_px, exact_px[0])
    right, found = fields(last), dict[int, Change]()
    for halo in tries:
        found[halo] = _edge_change(fields(halo), right, scale)
        if found[halo].within(*(limit / FAR_BELOW for limit in tolerance)):
            break  # larger halos leave less
    found[last] = _edge_change(right, right, scale)
    chosen = next(halo for halo, change in found.items() if change.within(*tolerance))
    return Edge(box_px=box_px, exact_px=exact_px, halos_px=tuple(found), changes=tuple(found.values()), halo_px=chosen)


def edge_side_px(box_px: int, patch_px: int, exact_px: tuple[int, int]) -> int:
    """Side of the places that ``edge_error`` needs, 10 m pixels."""
    return sum(exact_px) + _core(box_px, patch_px) * patch_px


def halos_px(patch_px: int, exact_px: int) -> tuple[int, ...]:
    """Halos to try: 0, 8, 16, ... px (wider steps where those would be many), and the exact one.

    >>> halos_px(4, 36)
    (0, 8, 16, 24, 32, 36)
    """
    step = max(8, patch_px)
    step *= -(-exact_px // (step * (MOST_HALOS - 1)))
    return (*range(0, exact_px, max(step, 1)), exact_px)


def _core(box_px: int, patch_px: int) -> int:
    """Side of the core in tokens: a domain without halo must hold a box."""
    return max(CORE_CELLS, box_px // patch_px)


def _edge_change(found: list[torch.Tensor], right: list[torch.Tensor], scale: Sequence[float]) -> Change:
    """The larger change of the first row and column and of the last ones."""
    sides = []
    for line in (0, -1):
        tally = _Tally(scale)
        for one, two in zip(found, right, strict=True):
            lines = [torch.cat([field[line], field[:, line]]) for field in (one, two)]
            tally.add(lines[0], lines[1], field=two)
        sides.append(tally.change())
    return max(sides, key=lambda change: (change.codes, change.step))


class _Tally:
    """Sums over places, of which a mean is taken."""

    def __init__(self, scale: Sequence[float]) -> None:
        self._inverse = 1 / torch.tensor(scale)
        self._sums: list[tuple[float, float, float]] = []

    def add(self, found: torch.Tensor, right: torch.Tensor, *, field: torch.Tensor) -> None:
        """Count vectors (n, dim) against the right ones; ``field`` (row, col, dim) has the deviation."""
        spread = (field - field.mean(dim=(0, 1))).norm(dim=-1).mean()
        codes = [(v.cpu() * self._inverse).round().clamp(-MAX_CODE, MAX_CODE) for v in (found, right)]
        step = (codes[0] - codes[1]).abs()
        change = (found - right).norm(dim=-1).mean() / spread
        self._sums.append((float(change), float((step > 0).float().mean()), float(step.mean())))

    def change(self) -> Change:
        """Mean over places."""
        deviation, codes, step = (float(v) for v in np.mean(self._sums, axis=0))
        return Change(deviation=deviation, codes=codes, step=step)


def _check_side(eye: Eye, place: Place) -> None:
    if place[0].shape[-2:] != (eye.window_px, eye.window_px):
        raise InvalidInputError(f"a place has {tuple(place[0].shape[-2:])} px, the encoder takes {eye.window_px}")
