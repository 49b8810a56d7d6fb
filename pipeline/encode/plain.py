"""The forward pass of every model version, written plainly: what the encoder that runs is measured against.

float32 on the CPU, straight from the released tensors, step by step as the models are described: ``F.interpolate``,
patch embedding, encodings, blocks with interleaved rotary pairs and an explicit softmax, the pooler of v1.3. Nothing is
folded, precomputed or shared with ``olmoearth``, ``pooler``, ``rope`` or ``patch``, so that a mistake there cannot hide
here too. Hidden tokens are left out of the sequence, window by window; the encoder masks them instead.

Where the tokens are is an argument (``Places``): the start-up gate plants its faults there. So is the box of cells that
a token attends to, by an explicit mask over all pairs; without one it attends to the whole window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812

from pipeline.encode.layout import patch_stem, pooler_norm
from pipeline.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import date

    from pipeline.encode.checkpoint import Checkpoint
    from pipeline.encode.layout import EncoderConfig, PoolerConfig

    Weights = Mapping[str, torch.Tensor]

SAMPLES = 8
"""Samples per token side that the patch embedding of every release reads (``max_patch_size``)."""
DAYS_BEFORE_MONTH = (0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334)
DAYS_PER_YEAR = 365.25
"""The reference counts days so: years of 365.25, months of a year without a leap day."""
ABSOLUTE_BASE = 10_000.0
NORM_EPS = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Places:
    """Coordinates as the parts of the model are told them, float32.

    A NaN is a coordinate that is not told: no rotation along that axis, or zeros in that part of an added encoding.

    Attributes:
        tokens: (time, row, col, 3) time, row and column of every token, for the blocks or the added encodings.
        keys: (row, col, 2) row and column of the tokens, for the pooler.
        queries: (query_row, query_col, 2) row and column of the location tokens, for the pooler.
    """

    tokens: torch.Tensor
    keys: torch.Tensor
    queries: torch.Tensor


def places(config: EncoderConfig, dates: Sequence[date], grid: tuple[int, int], *, patch_px: int) -> Places:
    """Where the tokens of a window are: rows and columns in 10 m pixels from the window's first token.

    Time is days since the first date times the model's scale (v1.2, v1.3) or the number of the period (v1, v1.1). One
    location token per cell, at the place of the cell's tokens.

    Args:
        config: Of the model.
        dates: Model date of each period.
        grid: (token rows, token columns).
        patch_px: Side of a token.
    """
    step = patch_px * (config.coordinate_scale if config.rope else 1.0)
    times = [(_days(day) - _days(dates[0])) * config.time_scale if config.rope else t for t, day in enumerate(dates)]
    axes = (torch.tensor(times, dtype=torch.float32), torch.arange(grid[0]) * step, torch.arange(grid[1]) * step)
    tokens = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    return Places(tokens=tokens, keys=tokens[0, ..., 1:], queries=tokens[0, ..., 1:])


def tokens(
    checkpoint: Checkpoint,
    pixels: Sequence[torch.Tensor],
    visible: torch.Tensor | None = None,
    *,
    sensors: Sequence[str],
    dates: Sequence[date],
    patch_px: int,
    at: Places,
    box: int | None = None,
    margin: int = 0,
) -> tuple[torch.Tensor, ...]:
    """Every token after the final norm, one tensor per sensor: (window, time, row, col, band_set, dim) float32.

    Args:
        checkpoint: The model.
        pixels: One tensor per sensor, (window, time, band, row, col) float32, normalised.
        visible: (window, sensor, time, row, col) bool, False for tokens left out; None when all are visible. The tokens
            left out come back as zeros.
        sensors: What the pixels are of.
        dates: Model date of each period.
        patch_px: Side of a token.
        at: Where the tokens are, see ``places``.
        box: Rows and columns of cells that a token attends to, see ``in_box``; None: the whole window.
        margin: Cells on every side that the pixels have more; they are embedded and then cut off, so that the window's
            border leaves no trace in the tokens.
    """
    config, weights = checkpoint.config, checkpoint.tensors
    found = tuple(
        _embed(weights, x, config=config, sensor=name, patch_px=patch_px, margin=margin)
        + _encoding(weights, config=config, sensor=name, dates=dates, at=at.tokens)
        for x, name in zip(pixels, sensors, strict=True)
    )
    cells = _cells(at.tokens.shape[1:3])
    for window in range(len(found[0])):
        shown = [torch.ones_like(x[window, ..., 0], dtype=torch.bool) for x in found]
        if visible is not None:
            shown = [seen & visible[window, i, ..., None] for i, seen in enumerate(shown)]
        x = torch.cat([x[window][seen] for x, seen in zip(found, shown, strict=True)])  # (token, dim)
        coords = torch.cat([at.tokens.unsqueeze(3).expand(*seen.shape, 3)[seen] for seen in shown])
        where = torch.cat([cells[:, :, None].expand(*seen.shape, 2)[seen] for seen in shown])
        mask = None if box is None else in_box(where, where, grid=at.tokens.shape[1:3], box=box)
        x = _blocks(weights, x, coords, config=config, mask=mask)
        for out, seen, part in zip(found, shown, torch.split(x, [int(seen.sum()) for seen in shown]), strict=True):
            out[window] = 0
            out[window][seen] = part
    return found


def field(
    checkpoint: Checkpoint,
    found: Sequence[torch.Tensor],
    visible: torch.Tensor | None = None,
    *,
    output: str,
    at: Places,
    box: int | None = None,
) -> torch.Tensor:
    """Turn tokens into one vector per cell: (window, row, col, dim) float32, the field that ``Encoder`` returns.

    ``mean`` is the mean over a sensor's visible tokens in the cell, then the mean over the sensors that have any;
    ``max`` the largest of all visible tokens; both are zero in a cell without any. Every other output is a head on the
    location tokens, which are returned.

    Args:
        checkpoint: The model.
        found: From ``tokens``.
        visible: As for ``tokens``.
        output: ``mean``, ``max``, ``location``, ``student`` or ``student64``.
        at: Where the tokens are.
        box: As for ``tokens``, for the pooler: of a location token the box of its cell.

    Raises:
        InvalidInputError: The model has no location tokens.
    """
    if output not in ("mean", "max"):
        return _locations(checkpoint, found, visible, at=at, box=box)
    if visible is None:
        windows, periods, rows, cols = found[0].shape[:4]
        visible = torch.ones(windows, len(found), periods, rows, cols, dtype=torch.bool)
    if output == "max":
        low = [x.masked_fill(~visible[:, i, ..., None, None], -torch.inf) for i, x in enumerate(found)]
        most = torch.stack([x.amax(dim=(1, 4)) for x in low]).amax(dim=0)
        return most.masked_fill(~visible.any(dim=2).any(dim=1).unsqueeze(-1), 0.0)
    sums = [(x * visible[:, i, ..., None, None]).sum(dim=(1, 4)) for i, x in enumerate(found)]
    counts = [visible[:, i].sum(dim=1).unsqueeze(-1) * x.shape[4] for i, x in enumerate(found)]
    means = torch.stack([s / n.clamp(min=1) for s, n in zip(sums, counts, strict=True)])
    present = torch.stack([n > 0 for n in counts]).sum(dim=0)
    return means.sum(dim=0) / present.clamp(min=1)


def student(checkpoint: Checkpoint, locations: torch.Tensor, *, dims: int | None = None) -> torch.Tensor:
    """Location tokens (..., dim) to the student's vectors (..., student); the first ``dims`` of them if given.

    Raises:
        KeyError: The model has no student.
    """
    weights, stem = checkpoint.tensors, "attention_pooler.student"
    x = _linear(weights, f"{stem}.0", locations)
    if f"{stem}.1.weight" in weights:
        x = _norm(weights, f"{stem}.1", x)
    return x[..., :dims]


def in_box(asks: torch.Tensor, answers: torch.Tensor, *, grid: Sequence[int], box: int) -> torch.Tensor:
    """Which of ``answers`` (key, 2) lie in the boxes around ``asks`` (query, 2), rows and columns: (query, key) bool.

    Along an axis of n cells the box of cell i begins at ``clip(i - box // 2, 0, n - box)``.

    >>> cells = torch.tensor([[0, i] for i in range(5)])
    >>> in_box(cells, cells, grid=(1, 5), box=1).int().diagonal().tolist()
    [1, 1, 1, 1, 1]
    """
    mask = torch.ones(len(asks), len(answers), dtype=torch.bool)
    for axis, n in enumerate(grid):
        first = (asks[:, axis] - box // 2).clamp(0, n - box)[:, None]
        mask &= (answers[None, :, axis] >= first) & (answers[None, :, axis] < first + box)
    return mask


def _cells(grid: Sequence[int]) -> torch.Tensor:
    """(row, col, 2) indices of the cells of a grid."""
    return torch.stack(torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij"), dim=-1)


def _days(day: date) -> float:
    return (day.year - 2000) * DAYS_PER_YEAR + DAYS_BEFORE_MONTH[day.month - 1] + day.day - 1


# --- from pixels to tokens -------------------------------------------------------------------------------------------


def _embed(
    weights: Weights, pixels: torch.Tensor, *, config: EncoderConfig, sensor: str, patch_px: int, margin: int = 0
) -> torch.Tensor:
    """(window, time, band, row, col) to (window, time, token_row, token_col, band_set, dim) without the margin."""
    sets, counts = [], [len(group) for group in config.sensor(sensor).band_sets]
    for index, bands in enumerate(torch.split(pixels, counts, dim=2)):
        stem = patch_stem(sensor, index)
        x = _resized(bands.flatten(0, 1), patch_px=patch_px)  # (window * time, band, 8 row, 8 col)
        if config.hidden:
            x = F.relu(_linear(weights, f"{stem}.pixel_proj.0", x.permute(0, 2, 3, 1)))
            rows, cols = x.shape[1] // SAMPLES, x.shape[2] // SAMPLES
            x = x.reshape(len(x), rows, SAMPLES, cols, SAMPLES, -1).transpose(2, 3).flatten(3)
            x = _linear(weights, f"{stem}.proj", x)
        else:
            x = F.conv2d(x, weights[f"{stem}.proj.weight"], weights[f"{stem}.proj.bias"], stride=SAMPLES)
            x = x.permute(0, 2, 3, 1)
        sets.append(torch.unflatten(x, 0, pixels.shape[:2]))
    x = torch.stack(sets, dim=4)
    return x[:, :, margin : x.shape[2] - margin, margin : x.shape[3] - margin]


def _resized(x: torch.Tensor, *, patch_px: int) -> torch.Tensor:
    """Give every token 8 x 8 samples.

    torch 2.13 returns wrong rows where the width is 1 before AND after (measured); here it is at least 8 after.
    """
    if patch_px == SAMPLES:
        return x
    size = [side * SAMPLES // patch_px for side in x.shape[2:]]
    return F.interpolate(x, size=size, mode="bicubic", antialias=True, align_corners=False)


def _encoding(
    weights: Weights, *, config: EncoderConfig, sensor: str, dates: Sequence[date], at: torch.Tensor
) -> torch.Tensor:
    """What is added to a sensor's tokens: (time, row, col, band_set, dim), in four quarters."""
    channel = weights[f"composite_encodings.per_modality_channel_embeddings.{sensor}"]  # (band set, quarter)
    month = weights["composite_encodings.month_embed.weight"][[day.month - 1 for day in dates]]  # (time, quarter)
    quarter = config.dims // 4
    shape = (*at.shape[:3], len(channel), quarter)
    time, space = torch.zeros(shape), torch.zeros(shape)
    if not config.rope:
        t, row, col = (part.unsqueeze(3) for part in at.unbind(dim=-1))  # (time, row, col, 1)
        time = _waves(t, quarter).expand(shape)
        space = torch.cat([_waves(col, quarter // 2), _waves(row, quarter // 2)], dim=-1).expand(shape)
    return torch.cat([channel.expand(shape), time, month[:, None, None, None].expand(shape), space], dim=-1)


def _waves(x: torch.Tensor, width: int) -> torch.Tensor:
    """Sines then cosines of (...) coordinates, (..., width); frequency i is 10000 ** (-i / (2 width)), as released."""
    turn = ABSOLUTE_BASE ** (-torch.arange(width // 2) / (2 * width))
    angles = x.unsqueeze(-1) * turn
    return torch.cat([angles.sin(), angles.cos()], dim=-1).nan_to_num(0.0)


# --- blocks and pooler -----------------------------------------------------------------------------------------------


def _blocks(
    weights: Weights, x: torch.Tensor, coords: torch.Tensor, *, config: EncoderConfig, mask: torch.Tensor | None
) -> torch.Tensor:
    """(token, dim) at (token, 3) coordinates through all blocks and the final norm."""
    for i in range(config.depth):
        stem, turn = f"blocks.{i}", None
        if config.rope:
            frequencies = weights[f"{stem}.attn.rope_mixed_freqs"]  # (3, head, pair)
            turn = (coords.nan_to_num(0.0)[:, :, None, None] * frequencies).sum(dim=1).transpose(0, 1)
        h = _norm(weights, f"{stem}.norm1", x)
        x = _block(weights, stem, x, asks=h, answers=h, heads=config.heads, turns=(turn, turn), mask=mask)
    return _norm(weights, "norm", x)


def _locations(
    checkpoint: Checkpoint,
    found: Sequence[torch.Tensor],
    visible: torch.Tensor | None,
    *,
    at: Places,
    box: int | None,
) -> torch.Tensor:
    """The pooler of v1.3: tokens to location tokens, (window, query_row, query_col, dim)."""
    config, weights = checkpoint.config.pooler, checkpoint.tensors
    if config is None:
        raise InvalidInputError(f"model {checkpoint.card.name} ({checkpoint.card.version}) has no location tokens")
    grid, results = at.queries.shape[:2], []
    queries = _axial(at.queries.flatten(0, 1), config)
    cells, parts = _cells(at.keys.shape[:2]), grid[0] // len(at.keys)  # parts * parts queries in a cell
    asks = (_cells(grid) // parts).flatten(0, 1)
    for window in range(len(found[0])):
        keep = [
            torch.ones(x.shape[1:5], dtype=torch.bool)
            if visible is None
            else visible[window, i, ..., None].expand(x.shape[1:5])
            for i, x in enumerate(found)
        ]
        seen = torch.cat([x[window][k] for x, k in zip(found, keep, strict=True)])
        spots = torch.cat([at.keys[None, :, :, None].expand(*k.shape, 2)[k] for k in keep])
        where = torch.cat([cells[None, :, :, None].expand(*k.shape, 2)[k] for k in keep])
        masks = (
            (None, None)
            if box is None
            else tuple(in_box(asks, keys, grid=at.keys.shape[:2], box=box) for keys in (where, asks))
        )
        x = weights["attention_pooler.learned_query"].expand(grid[0] * grid[1], -1)
        for layer in range(config.depth):
            turns = (queries, _axial(spots, config))
            x = _pooler_layer(weights, x, seen, config=config, layer=layer, turns=turns, masks=masks)
        results.append(torch.unflatten(_norm(weights, "attention_pooler.norm", x), 0, grid))
    return torch.stack(results)


def _pooler_layer(
    weights: Weights,
    x: torch.Tensor,
    seen: torch.Tensor,
    *,
    config: PoolerConfig,
    layer: int,
    turns: tuple[torch.Tensor, torch.Tensor],
    masks: tuple[torch.Tensor | None, ...],
) -> torch.Tensor:
    """Queries (query, dim) read the tokens (token, dim), then attend to each other."""
    kv = _norm(weights, pooler_norm(config, layer), seen)
    stem = f"attention_pooler.read_blocks.{layer}"
    h = _norm(weights, f"{stem}.norm1", x)
    x = _block(weights, stem, x, asks=h, answers=kv, heads=config.heads, turns=turns, mask=masks[0])
    stem = f"attention_pooler.self_attn_blocks.{layer}"
    h = _norm(weights, f"{stem}.norm1", x)
    return _block(weights, stem, x, asks=h, answers=h, heads=config.heads, turns=(turns[0], turns[0]), mask=masks[1])


def _axial(coords: torch.Tensor, config: PoolerConfig) -> torch.Tensor:
    """Angles (1, token, pair) at (token, 2) coordinates: rows turn half of a head's pairs, columns the other half."""
    pairs = config.dims // config.heads // 4
    turn = config.rope_base ** (-torch.arange(pairs) / pairs)
    return (coords.nan_to_num(0.0).unsqueeze(-1) * turn).flatten(1).unsqueeze(0)


def _block(
    weights: Weights,
    stem: str,
    x: torch.Tensor,
    *,
    asks: torch.Tensor,
    answers: torch.Tensor,
    heads: int,
    turns: tuple[torch.Tensor | None, torch.Tensor | None],
    mask: torch.Tensor | None,
) -> torch.Tensor:
    """Attention of ``asks`` (token, dim) to ``answers`` where ``mask`` says so, and the MLP, both added to ``x``."""
    parts = (("q", asks), ("k", answers), ("v", answers))
    q, k, v = (
        torch.unflatten(_linear(weights, f"{stem}.attn.{p}", h), 1, (heads, -1)).transpose(0, 1) for p, h in parts
    )
    q, k = _turned(q, turns[0]), _turned(k, turns[1])  # (head, token, head_dim)
    # head by head: the scores of all heads at once fall out of the processor's cache, twice as slow
    scores = (one @ other.T / one.shape[1] ** 0.5 for one, other in zip(q, k, strict=True))
    mixed = torch.cat([_weights(score, mask) @ values for score, values in zip(scores, v, strict=True)], dim=1)
    x = x + _linear(weights, f"{stem}.attn.proj", mixed)
    h = F.gelu(_linear(weights, f"{stem}.mlp.fc1", _norm(weights, f"{stem}.norm2", x)))
    return x + _linear(weights, f"{stem}.mlp.fc2", h)


def _weights(scores: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Softmax over the keys that the mask leaves, zeros for a query that it leaves none."""
    if mask is None:
        return scores.softmax(dim=1)
    return scores.masked_fill(~mask, -torch.inf).softmax(dim=1).nan_to_num(0.0)


def _turned(x: torch.Tensor, angles: torch.Tensor | None) -> torch.Tensor:
    """Rotate the pairs (2i, 2i + 1) of the last axis by ``angles``, broadcastable to (head, token, pair)."""
    if angles is None:
        return x
    even, odd, cos, sin = x[..., 0::2], x[..., 1::2], angles.cos(), angles.sin()
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)


def _linear(weights: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def _norm(weights: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], NORM_EPS)
