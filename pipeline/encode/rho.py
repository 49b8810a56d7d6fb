"""The paired-lattice score: how much a lattice of windows adds to the steps between neighbouring vectors.

The same ground is encoded on several lattices, shifted against each other. A step between two neighbours that falls on
a seam in one of them lies inside a window in the others, so the content of the ground cancels and what is left is the
seam: 1 without any, rho for centre crops. It sees a few per cent, where steps of different ground differ by more.
Everything is float32, whole windows, without missing data.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch

from pipeline.encode import assemble
from pipeline.encode.olmoearth import Encoder, Head
from pipeline.encode.stitch import stitch
from pipeline.errors import InvalidInputError
from pipeline.types import PIXEL_M, Box, GridSpec

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import date

    from numpy.typing import NDArray

    from pipeline.encode.checkpoint import Checkpoint
    from pipeline.types import Stack

Place = tuple[torch.Tensor, ...]
"""Normalised pixels of a square of ground: one (time, band, row, col) float32 per sensor."""
ORIGINS = 3
"""Lattices per place; the ground of a seam is then seen twice without it."""
TOKENS_AT_ONCE = {"cpu": 4096, "cuda": 65536}
"""Tokens per forward pass; one window at least."""
INSIDE_TOKENS = 24
"""Smallest side of what is scored of a place: 576 or more steps on seams per place."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Paired:
    """Scores of one place.

    Attributes:
        phases: (stride,) score of the steps into token 0, 1, ... of a window's core (``blend``: of a window), mean over
            dimensions. Phase 0 is where one centre crop meets the next.
        dims: (dim,) score of phase 0 by dimension.
        lattice: What moving the lattice changes, as a share of the deviation of the field from its mean.
    """

    phases: NDArray[np.float64]
    dims: NDArray[np.float64]
    lattice: float

    @property
    def line(self) -> float:
        """Score of phase 0."""
        return float(self.phases[0])

    @property
    def worst(self) -> float:
        """Largest score of all phases."""
        return float(self.phases.max())


def place_of(stacks: Sequence[Stack], checkpoint: Checkpoint, *, box: Box) -> Place:
    """The pixels of a place as the encoder takes them.

    Args:
        stacks: One Stack per sensor.
        checkpoint: The model: band order and rule for missing bands.
        box: 10 m box.

    Raises:
        InvalidInputError: A pixel has no observation in some period: what is missing would be a seam of its own.
    """
    found = []
    for stack in stacks:
        if not assemble.observed_per_period(stack, box).all():
            raise InvalidInputError(f"the {stack.sensor} stack misses pixels of {box}: seams need a place without gaps")
        wanted = assemble.Input(
            sensor=stack.sensor,
            bands=checkpoint.config.bands(stack.sensor),
            substitute=checkpoint.config.version == "v1",
        )
        found.append(assemble.normalised(stack, box, wanted=wanted))
    return tuple(found)


def side_tokens(grid: GridSpec) -> int:
    """Tokens along a side that a place needs: what is scored, two strides at least, and all windows around it."""
    cells, stride = grid.window_px // grid.patch_px, grid.stride_px // grid.patch_px
    return max(INSIDE_TOKENS, 2 * stride) + 2 * (cells - 1)


class Lattice:
    """One model on one window lattice; encodes places and stitches them."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        grid: GridSpec,
        dates: Sequence[date],
        sensors: tuple[str, ...],
        device: str = "cpu",
    ) -> None:
        """Build for one shape.

        Args:
            checkpoint: The model; its card says what is written.
            grid: ``blend`` or ``centre`` windows.
            dates: Model date of each period.
            sensors: What the places hold, in their order.
            device: ``cpu`` or ``cuda``.

        Raises:
            ConfigError: Window and patch do not fit.
            InvalidInputError: A stride of one token, which leaves no step without a seam.
        """
        self.grid, self.device = grid, torch.device(device)
        self.stride = grid.stride_px // grid.patch_px
        if self.stride < 2:
            raise InvalidInputError(
                f"windows of {grid.window_px} px that overlap by {grid.overlap_px} px move by one token: "
                "every step is a seam; ask for less overlap"
            )
        side = (grid.window_px, grid.window_px)
        encoder = Encoder(checkpoint, window_px=side, patch_px=grid.patch_px, dates=dates, sensors=sensors)
        self._encoder, self._head = encoder.eval().to(self.device), Head(checkpoint).eval().to(self.device)
        tokens = grid.window_px**2 // grid.patch_px**2 * len(dates) * sum(encoder.sets)
        self._batch = max(1, TOKENS_AT_ONCE[self.device.type] // tokens)

    @torch.inference_mode()
    def field(self, place: Place, shift: int) -> torch.Tensor:
        """Written vectors of a place on the lattice that begins ``shift`` tokens from its corner.

        Returns:
            (row, col, dim) float32 of the tokens that are not near the border, where windows are missing.
        """
        grid, patch = self.grid, self.grid.patch_px
        side, window = place[0].shape[-1], grid.window_px
        steps = range(shift * patch, side - window + 1, grid.stride_px)
        origins = [(row, col) for row in steps for col in steps]
        parts = []
        for start in range(0, len(origins), self._batch):
            some = origins[start : start + self._batch]
            windows = (torch.stack([p[:, :, r : r + window, c : c + window] for r, c in some]) for p in place)
            parts.append(self._encoder(tuple(w.to(self.device) for w in windows)))
        values = torch.cat(parts)
        box = Box(zone=1, res_m=PIXEL_M * patch, row=0, col=0, height=side // patch, width=side // patch)
        made = stitch(values, np.ones(values.shape[:3], np.bool_), origins=origins, grid=grid, box=box)
        border = window // patch - 1
        inside: torch.Tensor = self._head(made.values[border:-border, border:-border])
        return inside

    def score(self, place: Place, *, origins: int = ORIGINS) -> Paired:
        """Encode a place on ``origins`` lattices (2 or more, at most one per token of the stride) and compare them."""
        count = max(2, min(origins, self.stride))
        shifts = [j * self.stride // count for j in range(count)]
        border, trim = self.grid.window_px // self.grid.patch_px - 1, self.grid.trim_px // self.grid.patch_px
        fields = [self.field(place, shift) for shift in shifts]
        return paired(fields, firsts=[shift + trim - border for shift in shifts], stride=self.stride)


def paired(fields: Sequence[torch.Tensor], *, firsts: Sequence[int], stride: int) -> Paired:
    """Compare fields of the same ground that were made on shifted lattices.

    Args:
        fields: Two or more (row, col, dim), all of the same ground.
        firsts: Per field the token, along both axes, with which some window or crop begins; different modulo
            ``stride``.
        stride: Tokens from one window to the next.

    Returns:
        Per phase: mean absolute step on the lines of that phase, over that on the same lines in the other fields.

    Raises:
        InvalidInputError: Fewer than two lattices, two equal ones, or a field without any step.
    """
    if len(fields) < 2 or len({first % stride for first in firsts}) < len(fields) or len(firsts) != len(fields):
        raise InvalidInputError(f"pairing needs two or more different lattices, got {list(firsts)} at stride {stride}")
    steps, phases = [], []
    for axis in (0, 1):
        lines = torch.stack([field.double().diff(dim=axis).abs().mean(dim=1 - axis) for field in fields])
        steps.append(lines.cpu().numpy())  # (lattice, line, dim)
        places = np.arange(1, lines.shape[1] + 1)
        phases.append(np.stack([(places - first) % stride for first in firsts]))
    step, phase = np.concatenate(steps, axis=1), np.concatenate(phases, axis=1)
    elsewhere = (step.sum(axis=0) - step) / (len(fields) - 1)  # the same line in the other fields
    own, other = (np.stack([what[phase == k].sum(axis=0) for k in range(stride)]) for what in (step, elsewhere))
    if not (other.sum(axis=1) > 0).all():
        raise InvalidInputError("the field has no steps at all: seams cannot be scored on it")
    return Paired(
        phases=own.sum(axis=1) / other.sum(axis=1),
        dims=own[0] / np.maximum(other[0], np.finfo(np.float64).tiny),
        lattice=_lattice(fields),
    )


def _lattice(fields: Sequence[torch.Tensor]) -> float:
    """Root mean square difference of two fields over that of a field from its mean; mean of neighbouring pairs."""
    shares = [
        (one - two).square().mean().sqrt() / (one - one.mean(dim=(0, 1))).square().mean().sqrt()
        for one, two in pairwise(fields)
    ]
    return float(torch.stack(shares).mean())
