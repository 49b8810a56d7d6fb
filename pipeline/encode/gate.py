"""Start-up gate: does the encoder, as it will run, still know where and when its tokens are?

Compiled encoders of this model family have been published that silently lost their positions. The gate compares the
encoder with a plain forward pass written straight from the released weights (interleaved pairs, explicit softmax,
``F.interpolate``, float32 on the CPU, no table in common) on structured input with six irregular dates. Its error must
be small against the error that missing positions would make; it must not point towards any known fault, which finds a
fault of one axis even where rounding is larger; and a window must give the same bytes at every position of the batch.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

from pipeline.encode.checkpoint import patch_stem
from pipeline.encode.patch import KERNEL_PX
from pipeline.errors import DeviceError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pipeline.encode.checkpoint import Checkpoint

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
LIMIT = 0.25
"""Largest error allowed, as a share of the error of an encoder whose positions are all zero; also the largest share of
any fault that the error may contain."""
FLOAT32_LIMIT = 0.01
"""The same for float32, where rounding makes 1e-5 (measured): finds faults too small for bfloat16."""

VISIBLE = 0.1
"""Smallest effect of a fault that is looked for, as a share of the error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateReport:
    """What the gate measured.

    Attributes:
        error: Root mean square difference between the encoder and the plain forward pass.
        blind_error: The same for the plain forward pass with all positions zero.
        faults: How much of each fault the error contains: 0 none, 1 the fault itself; sorted by name.
        limit: Largest ``ratio`` allowed.
    """

    error: float
    blind_error: float
    faults: tuple[tuple[str, float], ...]
    limit: float

    @property
    def ratio(self) -> float:
        """Error as a share of the error without positions."""
        return self.error / self.blind_error

    def __str__(self) -> str:
        """One line for logs and reports."""
        return f"error {self.error:.2g}, {self.ratio:.2g} of what missing positions make (limit {self.limit:g})"


def gate_window(window_px: int, patch_px: int) -> int:
    """Side of the gate's window, pixels: the run's, cut to ``MAX_CELLS`` tokens."""
    return min(window_px, MAX_CELLS * patch_px)


def check(
    run: Callable[[torch.Tensor], torch.Tensor],
    checkpoint: Checkpoint,
    *,
    window_px: int,
    patch_px: int,
    batch_windows: int,
    dtype: str,
    sensor: str = "sentinel2_l2a",
) -> GateReport:
    """Compare an encoder with the plain forward pass.

    Args:
        run: The encoder as it will run, built for ``DATES`` and ``window_px``: (window, time, band, row, col) float32
            on the CPU to (window, token_row, token_col, dim).
        checkpoint: Its model.
        window_px: Side of the gate's window, see ``gate_window``.
        patch_px: Side of a token.
        batch_windows: Windows per call.
        dtype: ``float32`` or ``bfloat16``, which decides how much rounding is allowed.
        sensor: Which sensor.

    Raises:
        DeviceError: The error is too large, or the batch position changes the result.
    """
    bands = len(checkpoint.config.bands(sensor))
    pixels = structured_pixels(bands, window_px=window_px)
    got = run(pixels.expand(batch_windows, *pixels.shape[1:])).float().cpu()
    if not bool((got == got[:1]).all()):
        worst = float((got - got[:1]).abs().max())
        raise DeviceError(
            f"a window's vector depends on its position in the batch of {batch_windows} (by up to {worst:.3g}): "
            f"two runs would not agree; use encode.batch_windows=1, or encode.compile=off"
        )
    limit = FLOAT32_LIMIT if dtype == "float32" else LIMIT
    report = _measure(got[:1], checkpoint, pixels, patch_px=patch_px, sensor=sensor, limit=limit)
    log.info("gate: %s; %s", report, report.faults)
    if not report.ratio <= limit:  # also refuses NaN
        raise DeviceError(
            f"start-up gate: the encoder differs from the plain float32 one by {report.error:.3g}, which is "
            f"{report.ratio:.2f} of the difference that missing positions make (limit {limit}): this build of the "
            f"encoder is wrong; try encode.compile=off or encode.dtype=float32"
        )
    for fault, share in report.faults:
        if abs(share) > LIMIT:
            raise DeviceError(
                f"start-up gate: the encoder's error looks like {fault} (share {share:.2f}, limit {LIMIT}): this build "
                f"of the encoder is wrong; try encode.compile=off"
            )
    return report


def _measure(
    got: torch.Tensor, checkpoint: Checkpoint, pixels: torch.Tensor, *, patch_px: int, sensor: str, limit: float
) -> GateReport:
    grid = (got.shape[1], got.shape[2])
    places = plain_places(checkpoint, grid, patch_px=patch_px)
    cells = grid[0] * grid[1]

    def pooled(at: torch.Tensor) -> torch.Tensor:
        return plain_tokens(checkpoint, pixels, at, patch_px=patch_px, sensor=sensor).mean(dim=1)

    want = pooled(places)
    faults = {
        "missing positions": 0 * places,
        "missing times": places * torch.tensor([0.0, 1.0, 1.0]),
        "missing rows": places * torch.tensor([1.0, 0.0, 1.0]),
        "missing columns": places * torch.tensor([1.0, 1.0, 0.0]),
        "swapped rows and columns": places[:, [0, 2, 1]],
        "reversed times": places.unflatten(0, (-1, cells)).flip(0).flatten(0, 1),  # type: ignore[no-untyped-call]
    }
    error, shares, blind_error = (got - want).double(), [], 0.0
    for name, at in faults.items():
        fault = (pooled(at) - want).double()
        # an effect far below rounding cannot be told from it (and does no harm): the share would be noise
        seen = _rms(fault) > VISIBLE * _rms(error)
        shares.append((name, float((error * fault).sum() / fault.square().sum()) if seen else 0.0))
        if name == "missing positions":
            blind_error = _rms(fault)
    return GateReport(error=_rms(error), blind_error=blind_error, faults=tuple(sorted(shares)), limit=limit)


def structured_pixels(bands: int, *, window_px: int) -> torch.Tensor:
    """One window of waves and noise, different in every band and period: (1, time, band, row, col) float32."""
    rng = np.random.default_rng(6)
    row, col = np.meshgrid(np.arange(window_px), np.arange(window_px), indexing="ij")
    shape = (len(DATES), bands, 1, 1)
    level, phase = rng.normal(0.4, 0.15, shape), rng.uniform(0, 2 * np.pi, shape)
    wave = np.sin(row * rng.uniform(0.05, 0.5, shape) + col * rng.uniform(-0.5, 0.5, shape) + phase)
    noise = rng.standard_normal((len(DATES), bands, window_px, window_px))
    return torch.from_numpy((level + 0.15 * wave + 0.05 * noise).astype(np.float32))[None]


def plain_places(checkpoint: Checkpoint, grid: tuple[int, int], *, patch_px: int) -> torch.Tensor:
    """(token, 3) float32 coordinates (time, row, col) at ``DATES``; tokens run (time, row, col)."""
    config = checkpoint.config
    step = patch_px * config.coordinate_scale
    rows, cols = range(grid[0]), range(grid[1])
    return torch.tensor([(_days(d) * config.time_scale, i * step, j * step) for d in DATES for i in rows for j in cols])


def plain_tokens(
    checkpoint: Checkpoint, pixels: torch.Tensor, places: torch.Tensor, *, patch_px: int, sensor: str
) -> torch.Tensor:
    """The v1.2 forward pass, written plainly: (window, time, token_row, token_col, dim) float32.

    Args:
        checkpoint: The model.
        pixels: (window, time, band, row, col) float32, CPU, at ``DATES``.
        places: (token, 3) coordinates, see ``plain_places``.
        patch_px: Side of a token.
        sensor: Which sensor.
    """
    config, weights = checkpoint.config, checkpoint.tensors
    with torch.inference_mode():
        x = _plain_embed(weights, pixels, patch_px=patch_px, sensor=sensor)
        quarter = config.dims // 4
        for t, day in enumerate(DATES):
            x[:, t, ..., :quarter] += weights[f"composite_encodings.per_modality_channel_embeddings.{sensor}"][0]
            x[:, t, ..., 2 * quarter : 3 * quarter] += weights["composite_encodings.month_embed.weight"][day.month - 1]
        grid = tuple(x.shape[1:4])
        x = x.flatten(1, 3)
        for i in range(config.depth):
            x = _plain_block(weights, f"blocks.{i}", x, places)
        return torch.unflatten(_norm(weights, "norm", x), 1, grid)


def _days(day: date) -> float:
    """Days since the first gate date by the reference's rule (a year has 365.25 days, no leap day)."""
    first = DATES[0]
    january = [date(2001, d.month, d.day).timetuple().tm_yday for d in (first, day)]
    return (day.year - first.year) * 365.25 + january[1] - january[0]


def _plain_embed(
    weights: Mapping[str, torch.Tensor], pixels: torch.Tensor, *, patch_px: int, sensor: str
) -> torch.Tensor:
    stem, (count, periods, _, height, width) = patch_stem(sensor), pixels.shape
    size = (height * KERNEL_PX // patch_px, width * KERNEL_PX // patch_px)
    x = pixels.flatten(0, 1)
    if patch_px != KERNEL_PX:
        x = F.interpolate(x, size=size, mode="bicubic", antialias=True, align_corners=False)
    x = x.permute(0, 2, 3, 1)
    x = F.relu(F.linear(x, weights[f"{stem}.pixel_proj.0.weight"], weights[f"{stem}.pixel_proj.0.bias"]))
    rows, cols = size[0] // KERNEL_PX, size[1] // KERNEL_PX
    x = x.reshape(count, periods, rows, KERNEL_PX, cols, KERNEL_PX, -1).transpose(4, 3).flatten(4)
    return F.linear(x, weights[f"{stem}.proj.weight"], weights[f"{stem}.proj.bias"])


def _plain_block(weights: Mapping[str, torch.Tensor], stem: str, x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    frequencies = weights[f"{stem}.attn.rope_mixed_freqs"]  # (3, head, pair)
    angles = (places[:, :, None, None] * frequencies).sum(dim=1).transpose(0, 1)  # (head, token, pair)
    heads = frequencies.shape[1]
    h = _norm(weights, f"{stem}.norm1", x)
    q, k, v = (
        torch.unflatten(_linear(weights, f"{stem}.attn.{part}", h), -1, (heads, -1)).transpose(1, 2)
        for part in ("q", "k", "v")
    )
    scores = _turned(q, angles) @ _turned(k, angles).transpose(-1, -2) / q.shape[-1] ** 0.5
    mixed = (scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)
    x = x + _linear(weights, f"{stem}.attn.proj", mixed)
    h = F.gelu(_linear(weights, f"{stem}.mlp.fc1", _norm(weights, f"{stem}.norm2", x)))
    return x + _linear(weights, f"{stem}.mlp.fc2", h)


def _turned(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    even, odd = x[..., 0::2], x[..., 1::2]
    turned = torch.empty_like(x)
    turned[..., 0::2] = even * angles.cos() - odd * angles.sin()
    turned[..., 1::2] = odd * angles.cos() + even * angles.sin()
    return turned


def _linear(weights: Mapping[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def _norm(weights: Mapping[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-5)


def _rms(x: torch.Tensor) -> float:
    return float(x.double().square().mean().sqrt())
