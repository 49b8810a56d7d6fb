"""One tile, from task to receipt. Whoever reads ``run_tile`` knows the system."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from pipeline.encode import assemble, quantize, stitch
from pipeline.errors import DataError
from pipeline.plan import grid
from pipeline.types import (
    BLOCK_PX,
    NODATA_CODE,
    PIXEL_M,
    Box,
    Calibration,
    GridSpec,
    Int8Embedding,
    Reason,
    Receipt,
    Stack,
    Task,
    Usage,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Future

    from numpy.typing import NDArray

    from pipeline.account.meter import PeakMemory, StageClock
    from pipeline.encode.session import WindowFields
    from pipeline.maps.probe import Probe
    from pipeline.write.commit import Commits

At = Callable[[str, str], None]
"""Called with (stage, tile id) when a tile passes a stage boundary: progress, and where tests kill the process."""
STAGES = ("attempted", "read", "encoded", "stitched", "intended", "written", "checked", "committed")
"""The boundaries of one tile, in order."""


class Encoder(Protocol):
    """What a tile needs of the encoder."""

    flops_per_window: float

    @property
    def busy_s(self) -> float:
        """Device seconds worked so far."""
        ...

    def encode(self, stack: Stack, origins: Sequence[tuple[int, int]]) -> WindowFields:
        """Token fields of the windows at ``origins``."""
        ...


class Writer(Protocol):
    """What a tile needs of the store."""

    def write(self, task: Task, result: Int8Embedding, maps: Maps) -> tuple[tuple[str, str], ...]:
        """Write every shard of the tile; returns (object, sha256)."""
        ...

    def check(self, objects: tuple[tuple[str, str], ...]) -> int:
        """Read back what was written; returns its bytes."""
        ...


Maps = tuple[tuple[str, "NDArray[np.uint8]"], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TileContext:
    """What all tiles of a run share.

    Attributes:
        grid: The window lattice.
        calibration: Of the quantiser; names the weights it belongs to.
        encoder: The warm encoder.
        writer: The store.
        commits: Attempts, intents and receipts.
        heads: (map name, probe).
        clock: Thread-seconds by stage.
        memory: Peak memory.
        at: Called at every stage boundary.
    """

    grid: GridSpec
    calibration: Calibration
    encoder: Encoder
    writer: Writer
    commits: Commits
    heads: tuple[tuple[str, Probe], ...]
    clock: StageClock
    memory: PeakMemory
    at: At


def run_tile(task: Task, attempt: int, *, reading: Future[Stack], context: TileContext) -> tuple[Receipt, bool]:
    """Compute, write and commit one tile.

    Args:
        task: What to compute.
        attempt: Number of this attempt, recorded before the tile's reading began.
        reading: The tile's pixels, being read.
        context: What all tiles share.

    Returns:
        (receipt, whether this attempt won the commit).

    Raises:
        EarthpressError: Whatever stopped the tile; nothing of it counts as done.
    """
    c, name = context, task.tile.id
    origins = grid.tile_windows(task.tile, task.blocks, c.grid)
    stack = reading.result()
    c.at("read", name)
    busy = c.encoder.busy_s
    with c.clock.stage("encode"):
        fields = c.encoder.encode(stack, origins)
    c.at("encoded", name)
    with c.clock.stage("stitch"):
        result, maps = finish(task, stack, fields, origins=origins, context=c)
    c.at("stitched", name)
    c.commits.intent(name, attempt, task.fingerprint, blocks=task.blocks)
    c.at("intended", name)
    with c.clock.stage("write"):
        objects = c.writer.write(task, result, maps)
    c.at("written", name)
    with c.clock.stage("check"):
        written = c.writer.check(objects)
    c.at("checked", name)
    encoded = int(fields.valid.any(axis=(1, 2)).sum())  # a window without a valid token is not encoded
    usage = Usage(
        windows=encoded,
        tokens=task.estimate.tokens // task.estimate.windows * encoded,
        flops=c.encoder.flops_per_window * encoded,
        bytes_read=stack.bytes_read,
        bytes_written=written,
        peak_bytes=c.memory.peak_bytes(),
        busy_s=c.encoder.busy_s - busy,
    )
    receipt = _receipt(task, stack, result, objects=objects, usage=usage, attempt=attempt, calibration=c.calibration)
    won = c.commits.commit(receipt)
    c.at("committed", name)
    return receipt, won


def finish(
    task: Task,
    stack: Stack,
    fields: WindowFields,
    *,
    origins: Sequence[tuple[int, int]],
    context: TileContext,
) -> tuple[Int8Embedding, Maps]:
    """Stitch, interpolate, quantise and classify the wanted blocks of a tile.

    Works block by block, so that the float pixels of a whole tile never exist at once.
    """
    tile, spec = task.tile, context.grid
    tokens = stitch.stitch(fields.values, fields.valid, origins=origins, grid=spec, box=_token_box(task, spec))
    dims = tokens.values.shape[-1]
    codes = np.full((dims, *tile.box.shape), NODATA_CODE, np.int8)
    reason = np.full(tile.box.shape, Reason.NOT_REQUESTED, np.uint8)
    n_obs = np.zeros(tile.box.shape, np.uint8)
    classes = tuple((name, np.full(tile.box.shape, 255, np.uint8)) for name, _ in context.heads)
    failed_cells = {source.cell_id for source in stack.sources if source.skipped}
    clipped = 0.0
    for block_row, block_col in task.blocks:
        box = tile.block_box(block_row, block_col)
        cut = box.slices_in(tile.box)
        seen, own = assemble.observed(stack, box), grid.owned(box)
        pixels = stitch.to_pixels(tokens, (seen > 0) & own, box)
        if not np.isfinite(pixels.values[pixels.valid]).all():
            raise DataError(
                f"tile {tile.id}, block {block_row},{block_col}: the encoder gave values that are not finite"
            )
        block_codes, share = quantize.quantise(pixels, context.calibration)
        codes[:, cut[0], cut[1]] = block_codes
        # a block lies in one cell; only there can an unreadable scene be the reason for a hole
        missing = Reason.READ_FAILED if grid.cells_of(box)[0].id in failed_cells else Reason.NO_OBSERVATION
        reason[cut] = np.select([~own, pixels.valid], [Reason.OTHER_ZONE, Reason.VALID], missing)
        n_obs[cut] = np.where(own, seen, 0)
        clipped += share * float(pixels.valid.sum())
        for (_, probe), (_, layer) in zip(context.heads, classes, strict=True):
            scale = np.asarray(context.calibration.scale, np.float32)
            layer[cut] = probe.classify(block_codes, scale, pixels.valid)
    count = float((reason == Reason.VALID).sum())
    result = Int8Embedding(
        codes=codes, reason=reason, n_obs=n_obs, box=tile.box, clipped=clipped / count if count else 0.0
    )
    return result, classes


def _token_box(task: Task, spec: GridSpec) -> Box:
    """Token box under all wanted blocks with the one-token margin that interpolation reads."""
    patch = spec.patch_px
    boxes = grid.needed_boxes(task.tile, task.blocks, spec)
    row, col = min(b.row for b in boxes) // patch, min(b.col for b in boxes) // patch
    row_stop, col_stop = max(b.row_stop for b in boxes) // patch, max(b.col_stop for b in boxes) // patch
    return Box(
        zone=task.tile.zone,
        res_m=PIXEL_M * patch,
        row=row,
        col=col,
        height=row_stop - row,
        width=col_stop - col,
    )


def _receipt(
    task: Task,
    stack: Stack,
    result: Int8Embedding,
    *,
    objects: tuple[tuple[str, str], ...],
    usage: Usage,
    attempt: int,
    calibration: Calibration,
) -> Receipt:
    valid_px = int((result.reason == Reason.VALID).sum())
    status = "degraded" if stack.degraded else "done" if valid_px else "empty"
    return Receipt(
        tile_id=task.tile.id,
        fingerprint=task.fingerprint,
        status=status,
        blocks=task.blocks,
        objects=objects,
        sources=stack.sources,
        usage=usage,
        attempt=attempt,
        calibration=calibration.hash,
        weights_sha256=calibration.model_sha256,
        valid_px=valid_px,
        clipped=result.clipped,
    )


def wanted_px(task: Task) -> int:
    """10 m pixels of the wanted blocks."""
    return len(task.blocks) * BLOCK_PX * BLOCK_PX
