"""Start-up gate: does the encoder, as it will run, still know where and when its tokens are?

Compiled encoders of this model family have been published that silently lost their positions. The gate compares the
encoder with the plain forward pass of ``plain`` on structured input with six irregular dates: with every token visible
and with tokens and a whole period missing, which are different code paths and different compiled graphs. The error must
be small against the error that missing positions would make; it must not point towards any known fault, which finds a
fault of one axis even where rounding is larger; and a window must give the same bytes at every position of the batch.
An encoder whose tokens attend to boxes is compared on a domain larger than a box, the plain one with an explicit mask.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from datetime import date
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipeline.encode import plain
from pipeline.errors import DeviceError, InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.encode.checkpoint import Checkpoint

    Run = Callable[[tuple[torch.Tensor, ...], torch.Tensor | None], torch.Tensor]

log = logging.getLogger(__name__)

DATES = (
    date(2021, 10, 5),
    date(2021, 11, 1),
    date(2021, 12, 20),
    date(2022, 1, 10),
    date(2022, 3, 15),
    date(2022, 4, 2),
)
"""Irregular, over a year's end, so that a wrong order, unit or origin of time shows."""
MAX_CELLS = 6
"""Token rows and columns of the gate's window: enough to see positions, cheap at every patch size."""
MAX_TOKENS = 1000
"""Tokens for which all ``DATES`` are used; domains with more take fewer dates, because every pair of tokens has a score
in the plain pass."""
LIMIT = 0.25
"""Largest error allowed, as a share of the error of an encoder whose positions are all missing; also the largest share
of any fault that the error may contain. bfloat16 makes 0.006 to 0.10 with random weights of the released sizes."""
FLOAT32_LIMIT = 0.01
"""The same for float32, where rounding makes 1e-5 (measured): finds faults too small for bfloat16."""
NEGLIGIBLE = 1e-3
"""An error below this share is not searched for faults: one in it would be too small to matter."""
SEEN = 0.5
"""Smallest effect of a fault that is looked for, as a share of the error: less cannot be told from rounding."""
RIGHT = "right"
BLIND = "missing positions"
"""The fault that errors are measured against."""
SWAPPED = "swapped rows and columns"
BOUNDLESS = "attention beyond the box"
LOCATIONS = ("location", "student", "student64")
"""Outputs whose field are the pooler's location tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateCase:
    """One comparison.

    Attributes:
        name: What was compared.
        error: Root mean square difference between the encoder and the plain forward pass.
        blind_error: The same for the plain forward pass without positions.
        faults: How much of each fault the error contains: 0 none, 1 the fault itself; sorted by name. Empty when the
            error is negligible.
    """

    name: str
    error: float
    blind_error: float
    faults: tuple[tuple[str, float], ...] = ()

    @property
    def ratio(self) -> float:
        """Error as a share of the error without positions."""
        return self.error / self.blind_error if self.blind_error else float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class GateReport:
    """What the gate measured.

    Attributes:
        cases: One per code path and content of the batch.
        limit: Largest ``ratio`` allowed.
    """

    cases: tuple[GateCase, ...]
    limit: float

    @property
    def worst(self) -> GateCase:
        """The case with the largest ratio."""
        return max(self.cases, key=lambda case: case.ratio)

    @property
    def ratio(self) -> float:
        """Largest error as a share of the error without positions."""
        return self.worst.ratio

    def __str__(self) -> str:
        """One line for logs and reports."""
        return f"error {self.worst.error:.2g}, {self.ratio:.2g} of what missing positions make (limit {self.limit:g})"


def gate_window(window_px: int, patch_px: int, box_px: int = 0) -> int:
    """Side of the gate's window, pixels: the run's, cut to ``MAX_CELLS`` tokens, or to two more than a box has.

    >>> gate_window(96, 4), gate_window(512, 4, 32), gate_window(512, 8, 16)
    (24, 40, 48)
    """
    return min(window_px, max(MAX_CELLS * patch_px, box_px + 2 * patch_px if box_px else 0))


def gate_dates(window_px: int, patch_px: int, sensors: int) -> tuple[date, ...]:
    """The dates of the gate's window: ``DATES``, or the least around the year's end if its tokens are too many.

    >>> len(gate_dates(48, 8, 3)), [day.isoformat() for day in gate_dates(18, 1, 1)]
    (6, ['2021-11-01', '2021-12-20', '2022-01-10'])
    """
    count = max(2, min(len(DATES), MAX_TOKENS // ((window_px // patch_px) ** 2 * sensors)))
    first = max(0, 4 - count)  # the fourth date is the first of the new year
    return DATES[first : first + count]


def check(
    run: Run,
    checkpoint: Checkpoint,
    *,
    window_px: int,
    patch_px: int,
    batch_windows: int,
    dtype: str,
    sensors: tuple[str, ...] = ("sentinel2_l2a",),
    output: str | None = None,
    core: tuple[int, int] | None = None,
    box_px: int = 0,
    margin: int = 0,
    dates: tuple[date, ...] = DATES,
) -> GateReport:
    """Compare an encoder with the plain forward pass.

    Args:
        run: The encoder as it will run, built for ``dates`` and ``window_px``: one (window, time, band, row, col)
            float32 CPU tensor per sensor, and visible (window, sensor, time, token_row, token_col) bool or None, to
            (window, token_row, token_col, dim), the field of ``Encoder.forward``.
        checkpoint: Its model.
        window_px: Side of the gate's window, see ``gate_window``.
        patch_px: Side of a token.
        batch_windows: Windows per call.
        dtype: ``float32``, or a shorter one, which decides how much rounding is allowed.
        sensors: Which sensors, in the order of the pixels.
        output: What the field is of; None: as the checkpoint's card says.
        core: (first token, tokens) along both axes of those that the encoder computes; None: all.
        box_px: Side of the box that a token attends to, smaller than the window; 0: tokens attend to all of it.
        margin: Tokens on every side that the pixels have more than the window: for an encoder whose patches are cut out
            of something larger, so that resizing never sees the border of a window.
        dates: Of the periods, see ``gate_dates``.

    Raises:
        InvalidInputError: The window is no larger than a box, so that boxes would not show.
        DeviceError: The error is too large, or the batch position changes the result.
    """
    side = window_px // patch_px
    if box_px and box_px >= window_px:
        raise InvalidInputError(f"the gate's window of {window_px} px must be larger than the box of {box_px} px")
    whole_px = window_px + 2 * margin * patch_px
    pixels = structured_pixels(checkpoint, sensors, window_px=whole_px, periods=len(dates))
    gaps = structured_visible(len(sensors), side, periods=len(dates))
    equal, turns = _outputs(run, pixels, gaps, batch_windows=batch_windows)
    inside = _inside(side, core)
    shown = inside & gaps[0].any(dim=0).any(dim=0)  # what a cell without any visible token holds does not matter
    _same_at_every_position(equal[:, inside], turns[:, shown])
    output = checkpoint.card.output if output is None else output
    whole, holed = (
        _Plain(
            checkpoint,
            pixels,
            visible,
            sensors=sensors,
            dates=dates,
            patch_px=patch_px,
            output=output,
            box=box_px // patch_px or None,
            margin=margin,
        )
        for visible in (None, gaps)
    )
    cases = [
        _compared("all tokens visible", equal[0], whole, cells=inside, names=whole.faults),
        # fewer faults, for time: this path differs from the other by its mask alone
        _compared("tokens missing", turns[0], holed, cells=shown, names=(BLIND, SWAPPED)),
    ]
    if batch_windows > 1:
        cases.append(_compared("windows with and without gaps", turns[1], whole, cells=shown, names=()))
    report = GateReport(cases=tuple(cases), limit=FLOAT32_LIMIT if dtype == "float32" else LIMIT)
    log.info("gate: %s; %s", report, report.cases)
    _refuse(report)
    return report


def structured_pixels(
    checkpoint: Checkpoint, sensors: tuple[str, ...], *, window_px: int, periods: int = len(DATES)
) -> tuple[torch.Tensor, ...]:
    """One window per sensor of waves and noise, different in every band and period.

    Each (1, time, band, row, col) float32, normalised.
    """
    rng = np.random.default_rng(6)
    row, col = np.meshgrid(np.arange(window_px), np.arange(window_px), indexing="ij")
    found = []
    for sensor in sensors:
        shape = (periods, len(checkpoint.config.bands(sensor)), 1, 1)
        level, phase = rng.normal(0.4, 0.15, shape), rng.uniform(0, 2 * np.pi, shape)
        wave = np.sin(row * rng.uniform(0.05, 0.5, shape) + col * rng.uniform(-0.5, 0.5, shape) + phase)
        noise = rng.standard_normal((*shape[:2], window_px, window_px))
        found.append(torch.from_numpy((level + 0.15 * wave + 0.05 * noise).astype(np.float32))[None])
    return tuple(found)


def structured_visible(sensors: int, side: int, *, periods: int = len(DATES)) -> torch.Tensor:
    """What a real window may lack: (1, sensor, time, token_row, token_col) bool.

    Single tokens of every sensor, a whole period of the first, half of the area of the last of several sensors, and one
    cell in every period; every other cell has a token.
    """
    visible = np.random.default_rng(7).random((sensors, periods, side, side)) < 0.7
    visible[0, 1] = False
    if sensors > 1:
        visible[-1, :, :, : side // 2] = False
    visible[0, 0] = True
    if side > 1:
        visible[..., -1, -1] = False
    return torch.from_numpy(visible)[None]


def faults(right: plain.Places, *, pooled: bool) -> dict[str, plain.Places]:
    """What the parts of a faulty encoder would be told, by the name of the fault.

    Args:
        right: The right places.
        pooled: Whether the pooler makes the field.
    """
    lost = {"positions": (0, 1, 2), "times": (0,), "rows": (1,), "columns": (2,)}
    told = {f"missing {name}": _without(right.tokens, axes) for name, axes in lost.items()}
    told |= {SWAPPED: right.tokens[..., [0, 2, 1]], "reversed times": torch.flip(right.tokens, (0,))}
    found = {name: replace(right, tokens=tokens) for name, tokens in told.items()}
    if not pooled:
        return found
    for name, axes in {"positions": (0, 1), "rows": (0,), "columns": (1,)}.items():
        keys, queries = _without(right.keys, axes), _without(right.queries, axes)
        found[f"missing pooler {name}"] = replace(right, keys=keys, queries=queries)
    found["swapped pooler rows and columns"] = replace(
        right, keys=right.keys[..., [1, 0]], queries=right.queries[..., [1, 0]]
    )
    found["missing block positions"] = found[BLIND]
    found[BLIND] = replace(found["missing pooler positions"], tokens=found[BLIND].tokens)
    return found


def _without(places: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
    """Coordinates (..., axis) of which some are not told."""
    found = places.clone()
    found[..., list(axes)] = float("nan")
    return found


class _Plain:
    """The plain forward pass over the gate's window, with the right places and with wrong ones."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        pixels: tuple[torch.Tensor, ...],
        visible: torch.Tensor | None,
        *,
        sensors: tuple[str, ...],
        dates: tuple[date, ...],
        patch_px: int,
        output: str,
        box: int | None,
        margin: int,
    ) -> None:
        self._checkpoint, self._pixels, self._visible = checkpoint, pixels, visible
        self._shape: dict[str, Any] = {"sensors": sensors, "dates": dates, "patch_px": patch_px, "margin": margin}
        self._output = output
        side = pixels[0].shape[-1] // patch_px - 2 * margin
        right = plain.places(checkpoint.config, dates, (side, side), patch_px=patch_px)
        told = {RIGHT: right} | faults(right, pooled=output in LOCATIONS)
        self._told = {name: (at, box) for name, at in told.items()}
        if box is not None:
            self._told[BOUNDLESS] = (right, None)
        self._passes: dict[tuple[int, int | None], tuple[torch.Tensor, ...]] = {}

    @property
    def faults(self) -> tuple[str, ...]:
        """Names of the known faults."""
        return tuple(name for name in self._told if name != RIGHT)

    def field(self, name: str) -> torch.Tensor:
        """(row, col, dim) float32 as it should be (``RIGHT``) or with a fault."""
        at, box = self._told[name]
        key = (id(at.tokens), box)  # faults of the pooler share the right tokens
        with torch.inference_mode():
            if key not in self._passes:
                self._passes[key] = plain.tokens(
                    self._checkpoint, self._pixels, self._visible, at=at, box=box, **self._shape
                )
            found = self._passes[key]
            return plain.field(self._checkpoint, found, self._visible, output=self._output, at=at, box=box)[0]


def _inside(side: int, core: tuple[int, int] | None) -> torch.Tensor:
    """(row, col) bool: the cells that the encoder computes."""
    first, count = core or (0, side)
    inside = torch.zeros(side, side, dtype=torch.bool)
    inside[first : first + count, first : first + count] = True
    return inside


def _outputs(
    run: Run, pixels: tuple[torch.Tensor, ...], gaps: torch.Tensor, *, batch_windows: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the encoder makes of a batch of equal windows, and of one where gaps and none take turns.

    Turns show a mask that reaches the next window. Each (window, row, col, dim) float32 on the CPU.
    """
    batch = tuple(part.expand(batch_windows, *part.shape[1:]) for part in pixels)
    whole = (torch.arange(batch_windows) % 2 == 1)[:, None, None, None, None]
    return run(batch, None).float().cpu(), run(batch, gaps | whole).float().cpu()


def _same_at_every_position(whole: torch.Tensor, mixed: torch.Tensor) -> None:
    """Refuse different bytes of equal windows; ``mixed`` holds two kinds in turn."""
    for found, kinds in ((whole, 1), (mixed, 2)):
        first = found[torch.arange(len(found)) % kinds]
        if not bool(found.isfinite().all()):
            raise DeviceError(
                "start-up gate: the encoder makes NaN or infinity of ordinary pixels: this build of the encoder is "
                "wrong; try encode.compile=off or encode.dtype=float32"
            )
        if not torch.equal(found, first):
            worst = float((found - first).abs().max())
            raise DeviceError(
                f"a window's vector depends on its position in the batch of {len(found)} (by up to {worst:.3g}): "
                f"two runs would not agree; use encode.batch_windows=1, or encode.compile=off"
            )


def _compared(name: str, got: torch.Tensor, want: _Plain, *, cells: torch.Tensor, names: tuple[str, ...]) -> GateCase:
    """Compare one window (row, col, dim) with what is right and, unless the error is negligible, with faults."""
    right = want.field(RIGHT)[cells].double()  # (cell, dim)
    error, blind = got[cells].double() - right, want.field(BLIND)[cells].double() - right
    case = GateCase(name=name, error=_rms(error), blind_error=_rms(blind))
    if case.ratio <= NEGLIGIBLE:
        return case
    shares, differing = {}, _differing(error)
    for fault in names:
        effect = _differing(want.field(fault)[cells].double() - right)
        if _rms(effect) > SEEN * _rms(differing):
            shares[fault] = float((differing * effect).sum() / effect.square().sum())
    return replace(case, faults=tuple(sorted(shares.items())))


def _differing(x: torch.Tensor) -> torch.Tensor:
    """What differs between cells, (cell, dim).

    Rounded weights err alike in all cells, which can look like a fault: without that part the largest share of a fault
    that is not there falls from 0.45 to 0.08 (random weights, bfloat16, 64 wide).
    """
    return x - x.mean(dim=0) if len(x) > 1 else x


def _refuse(report: GateReport) -> None:
    """Raise what the report says, naming the fault that the error is most like."""
    for case in report.cases:
        found = [pair for pair in case.faults if abs(pair[1]) > LIMIT]
        if case.ratio <= report.limit and not found:
            continue
        name, share = min(found, key=lambda pair: abs(pair[1] - 1), default=("", 0.0))
        looks = f"; the error looks like {name} (share {share:.2f}, limit {LIMIT})" if found else ""
        raise DeviceError(
            f"start-up gate: with {case.name} the encoder differs from the plain float32 one by {case.error:.3g}, "
            f"which is {case.ratio:.2f} of the difference that missing positions make (limit {report.limit}){looks}: "
            f"this build of the encoder is wrong; try encode.compile=off or encode.dtype=float32"
        )


def _rms(x: torch.Tensor) -> float:
    return float(x.double().square().mean().sqrt())
