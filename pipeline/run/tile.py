"""One tile, from task to receipt. Whoever reads ``run_tile`` knows the system."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pipeline.codes import CLIP_WARNING, SATURATES, Coded
from pipeline.encode import assemble, instability, quantize, stitch
from pipeline.errors import DataError
from pipeline.maps.probe import Probe
from pipeline.plan import grid
from pipeline.read import colours
from pipeline.types import (
    BLOCK_PX,
    COLOUR_M,
    NO_CLEAR,
    PIXEL_M,
    Box,
    Calibration,
    Embedding,
    GridSpec,
    Quality,
    Reason,
    Receipt,
    Stack,
    Task,
    Tile,
    Usage,
)
from pipeline.write import layout

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from concurrent.futures import Future

    from numpy.typing import NDArray

    from pipeline.account.meter import PeakMemory, StageClock
    from pipeline.encode.session import WindowFields
    from pipeline.encode.stitch import Head
    from pipeline.run.map_layers import MapHead
    from pipeline.write.commit import Commits

log = logging.getLogger(__name__)

At = Callable[[str, str], None]
"""Called with (stage, tile id) when a tile passes a stage boundary: progress, and where tests kill the process."""
STAGES = ("attempted", "read", "encoded", "stitched", "intended", "written", "checked", "committed")
"""The boundaries of one tile, in order."""


class Encoder(Protocol):
    """What a tile needs of the encoder."""

    @property
    def busy_s(self) -> float:
        """Device seconds worked so far."""
        ...

    def stage(self, stacks: Sequence[Stack]) -> None:
        """Begin to bring a tile's pixels to the device while the tile before is in work."""
        ...

    def encode(self, stacks: Sequence[Stack], origins: Sequence[tuple[int, int]]) -> WindowFields:
        """Token fields of the windows at ``origins``, on the device."""
        ...

    @property
    def head(self) -> Head:
        """Stitched vectors (token, dim) to written ones; gives back the same object where the model has no head."""
        ...


class Writer(Protocol):
    """What a tile needs of the store."""

    def write(self, task: Task, result: Embedding, maps: Maps) -> tuple[tuple[str, str], ...]:
        """Write every shard of the tile; returns (object, sha256)."""
        ...

    def check(self, objects: tuple[tuple[str, str], ...]) -> int:
        """Read back what was written; returns its bytes."""
        ...


Maps = tuple[tuple[str, "NDArray[Any]"], ...]
"""(name of a layer, (row, col) uint8 or float32)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TileContext:
    """What all tiles of a run share.

    Attributes:
        grid: The window lattice.
        calibration: Of the quantiser; names the weights it belongs to.
        encoder: The warm encoder.
        writer: The store.
        commits: Attempts, intents and receipts.
        heads: Of the maps of the same pass.
        unsure: Names of the maps whose instability is written beside them.
        max_clipped_pct: Per cent of a shard's values that may be clipped; above that the tile fails.
        true_colour: Whether true colours are kept beside the vectors.
        clock: Thread-seconds by stage.
        memory: Peak memory.
        at: Called at every stage boundary.
    """

    grid: GridSpec
    calibration: Calibration
    encoder: Encoder
    writer: Writer
    commits: Commits
    heads: tuple[MapHead, ...]
    clock: StageClock
    memory: PeakMemory
    at: At
    unsure: tuple[str, ...] = ()
    max_clipped_pct: float = 1.0
    true_colour: bool = False


def run_tile(
    task: Task, attempt: int, *, reading: Future[tuple[Stack, ...]], context: TileContext
) -> tuple[Receipt, bool]:
    """Compute, write and commit one tile.

    Args:
        task: What to compute.
        attempt: Number of this attempt, recorded before the tile's reading began.
        reading: The tile's pixels, one Stack per sensor, being read.
        context: What all tiles share.

    Returns:
        (receipt, whether this attempt won the commit).

    Raises:
        EarthpressError: Whatever stopped the tile; nothing of it counts as done.
    """
    c, name = context, task.tile.id
    origins = grid.tile_windows(task.tile, task.blocks, c.grid)
    stacks = reading.result()
    c.at("read", name)
    busy = c.encoder.busy_s
    with c.clock.stage("encode"):
        fields = c.encoder.encode(stacks, origins)
    c.at("encoded", name)
    with c.clock.stage("stitch"):
        result, maps = finish(task, stacks, fields, origins=origins, context=c)
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
        flops=task.estimate.flops / task.estimate.windows * encoded,
        bytes_read=sum(stack.bytes_read for stack in stacks),
        bytes_written=written,
        peak_bytes=c.memory.peak_bytes(),
        busy_s=c.encoder.busy_s - busy,
    )
    receipt = _receipt(task, stacks, result, objects=objects, usage=usage, attempt=attempt, calibration=c.calibration)
    won = c.commits.commit(receipt)
    c.at("committed", name)
    return receipt, won


def finish(
    task: Task,
    stacks: Sequence[Stack],
    fields: WindowFields,
    *,
    origins: Sequence[tuple[int, int]],
    context: TileContext,
) -> tuple[Embedding, Maps]:
    """Stitch, apply the head, interpolate, quantise and classify the wanted blocks of a tile.

    Floats stay on the encoder's device, one row of blocks (or core of a domain) at a time, so that those of a whole
    tile never exist at once; codes come to the host once.

    Raises:
        DataError: Vectors are not finite, or more of a shard's values lie beyond the codes than
            ``context.max_clipped_pct``.
    """
    tile, spec = task.tile, context.grid
    box = spec.on_store(tile.box)
    shard = layout.shard_of(context.calibration, spec)
    codes = quantize.TileCodes(box, context.calibration, like=fields.values, shard_px=shard)
    reason = np.full(box.shape, Reason.NOT_REQUESTED, np.uint8)
    n_obs = np.zeros(box.shape, np.uint8)
    failed_cells = {source.cell_id for stack in stacks for source in stack.sources if source.skipped}
    for blocks, stitched in stitched_fields(task, fields, origins=origins, spec=spec):
        tokens = stitch.with_head(stitched, context.encoder.head)
        if not tokens.finite:
            raise DataError(f"tile {tile.id}, blocks {blocks}: the encoder gave values that are not finite")
        for block in blocks:
            ground = tile.block_box(*block)
            part = spec.on_store(ground)
            seen, own = _seen(stacks, ground, spec.token_px), grid.owned(part)
            valid = codes.fill(tokens, (seen > 0) & own, part)
            # a block lies in one cell; only there can an unreadable scene be the reason for a hole
            missing = Reason.READ_FAILED if grid.cells_of(ground)[0].id in failed_cells else Reason.NO_OBSERVATION
            cut = part.slices_in(box)
            reason[cut] = np.select([~own, valid], [Reason.OTHER_ZONE, Reason.VALID], missing)
            n_obs[cut] = np.where(own, seen, 0)
    shares = codes.clipped_shards(reason == Reason.VALID)
    _check_clipped(tile, shares, context=context)
    stored = codes.to_host()
    result = Embedding(
        codes=stored.codes,
        pixel_scale=stored.pixel_scale,
        reason=reason,
        n_obs=n_obs,
        box=box,
        clipped=codes.clipped_share(reason == Reason.VALID),
        clipped_shards=shares,
        rms_error=codes.rms_error,
        quality=tuple(_quality(task, stack.quality) for stack in stacks if stack.quality is not None),
        colours=_colours(task, stacks) if context.true_colour else None,
    )
    maps = _classified(task, result, context=context)
    return result, maps + _instability(task, fields, origins=origins, written=(result, maps), context=context)


def _check_clipped(tile: Tile, shares: Sequence[tuple[int, int, float]], *, context: TileContext) -> None:
    """Warn of a shard of which many values lie beyond the codes, and refuse one of which too many do.

    Raises:
        DataError: More than ``context.max_clipped_pct`` of a shard's values.
    """
    row, col, worst = max(shares, key=lambda place: place[2], default=(0, 0, 0.0))
    if worst <= CLIP_WARNING and 100 * worst <= context.max_clipped_pct:
        return
    method = context.calibration.quantiser
    if method in SATURATES:
        done, way_out = "saturate", "store.quantiser=power (vectors at unit length) or linear"
    else:
        done = "are clipped"
        way_out = (
            "a calibration from a sample that holds such ground ('earthpress calibrate'), a store.quantiser that clips "
            "nothing (per_pixel, power, float32)"
        )
    said = f"tile {tile.id}, shard ({row}, {col}): {worst:.2%} of its values {done} with store.quantiser={method}"
    if 100 * worst > context.max_clipped_pct:
        raise DataError(
            f"{said}, more than store.max_clipped_pct={context.max_clipped_pct:g}: plan into another output with "
            f"{way_out}, or plan again with a higher store.max_clipped_pct"
        )
    log.warning("%s: above %.1f %% the stored vectors may be too short; consider %s", said, 100 * CLIP_WARNING, way_out)


def stitched_fields(
    task: Task, fields: WindowFields, *, origins: Sequence[tuple[int, int]], spec: GridSpec
) -> Iterator[tuple[tuple[tuple[int, int], ...], stitch.Field]]:
    """(blocks, the token field under them and the margin of interpolation), until all wanted blocks are there."""
    if spec.stitch != "neighbourhood":
        for _, group in groupby(task.blocks, key=lambda block: block[0]):
            blocks = tuple(group)
            box = _token_box(task.tile, blocks, spec)
            yield (
                blocks,
                stitch.stitch_shifts(fields.values, fields.valid, origins=origins, grid=spec, box=box),
            )
        return
    side = spec.core_px

    def core(block: tuple[int, int]) -> tuple[int, int]:
        box = task.tile.block_box(*block)
        return box.row // side, box.col // side

    for (row, col), group in groupby(sorted(task.blocks, key=core), key=core):
        box = Box(zone=task.tile.zone, res_m=PIXEL_M, row=row * side, col=col * side, height=side, width=side)
        yield tuple(group), stitch.domain_field(fields.values, fields.valid, origins=origins, grid=spec, box=box)


def _token_box(tile: Tile, blocks: Sequence[tuple[int, int]], spec: GridSpec) -> Box:
    """Token box under wanted blocks, with the one-token margin that interpolation reads."""
    boxes = [box.cover(PIXEL_M * spec.patch_px) for box in grid.needed_boxes(tile, blocks, spec)]
    row, col = min(b.row for b in boxes), min(b.col for b in boxes)
    return replace(
        boxes[0],
        row=row,
        col=col,
        height=max(b.row_stop for b in boxes) - row,
        width=max(b.col_stop for b in boxes) - col,
    )


def _quality(task: Task, quality: Quality) -> Quality:
    """The part of a composite's quality that lies over the wanted blocks, laid over the whole tile."""
    box = task.tile.box.cover(BLOCK_PX * PIXEL_M)
    shape = (len(quality.scenes), *box.shape)
    clear = np.full(shape, NO_CLEAR, np.uint8)
    scenes, first_day = np.zeros(shape, np.uint8), np.zeros(shape, np.uint16)
    for block_row, block_col in task.blocks:
        block = task.tile.block_box(block_row, block_col).cover(BLOCK_PX * PIXEL_M)
        row, col = (place.start for place in block.slices_in(quality.box))
        clear[:, block_row, block_col] = quality.clear_pct[:, row, col]
        scenes[:, block_row, block_col] = quality.scenes[:, row, col]
        first_day[:, block_row, block_col] = quality.first_day[:, row, col]
    return Quality(box=box, clear_pct=clear, scenes=scenes, first_day=first_day)


def _colours(task: Task, stacks: Sequence[Stack]) -> NDArray[np.uint8] | None:
    """True colours of the wanted blocks, as ``Embedding`` has them; None where no sensor has any."""
    stack = colours.colour_stack(stacks)
    if stack is None:
        return None
    box = task.tile.box.cover(COLOUR_M)
    out = np.zeros((len(stack.periods), 3, *box.shape), np.uint8)
    for block in task.blocks:
        part = task.tile.block_box(*block).cover(COLOUR_M)
        out[:, :, *part.slices_in(box)] = colours.true_colours(stack, part) * grid.owned(part)
    return out


def _seen(stacks: Sequence[Stack], box: Box, token_px: int) -> NDArray[np.uint8]:
    """Periods in which a pixel of the store has an observation of any sensor, (row, col) uint8 over a 10 m box.

    A token counts in every period in which any of its 10 m pixels is observed: then it takes part in attention.
    """
    seen = np.logical_or.reduce([assemble.observed_per_period(stack, box) for stack in stacks])
    if token_px > 1:
        height, width = box.height // token_px, box.width // token_px
        seen = np.asarray(seen.reshape(len(seen), height, token_px, width, token_px).any(axis=(2, 4)))
    return np.asarray(seen.sum(axis=0), np.uint8)


def _classified(task: Task, result: Embedding, *, context: TileContext) -> Maps:
    """The layers of every map of the same pass; nodata outside the wanted blocks."""
    wanted = [(head, [np.full(result.box.shape, own.fill, own.dtype) for own in head.layers]) for head in context.heads]
    for block in task.blocks:
        cut = context.grid.on_store(task.tile.block_box(*block)).slices_in(result.box)
        valid = result.reason[cut] == Reason.VALID
        coded = _coded(result, cut)
        for head, layers in wanted:
            for layer, values in zip(layers, head.values(coded, context.calibration, valid), strict=True):
                layer[cut] = values
    return tuple((own.name, values) for head, layers in wanted for own, values in zip(head.layers, layers, strict=True))


def _instability(
    task: Task,
    fields: WindowFields,
    *,
    origins: Sequence[tuple[int, int]],
    written: tuple[Embedding, Maps],
    context: TileContext,
) -> Maps:
    """What overlapping windows say against the written classes and vectors; 255 outside the wanted blocks."""
    result, classes_of = written[0], dict(written[1])
    heads = [
        (own.name, own.head, classes_of[own.name])
        for own in context.heads
        if own.name in context.unsure and isinstance(own.head, Probe)
    ]
    if not heads:
        return ()
    names = (*(layout.instability_of(name) for name, _, _ in heads), layout.SPREAD)
    layers = tuple((name, np.full(result.box.shape, instability.NODATA, np.uint8)) for name in names)
    for _, group in groupby(task.blocks, key=lambda block: block[0]):
        blocks = tuple(group)
        parts = []
        for block in blocks:
            box = context.grid.on_store(task.tile.block_box(*block))
            cut = box.slices_in(result.box)
            parts.append(
                instability.Part(
                    box=box,
                    codes=result.codes[:, *cut],
                    valid=result.reason[cut] == Reason.VALID,
                    classes=tuple(classes[cut] for _, _, classes in heads),
                    disagreement=tuple(layer[cut] for _, layer in layers[:-1]),
                    spread=layers[-1][1][cut],
                )
            )
        instability.fill(
            fields.values,
            fields.valid,
            origins=origins,
            grid=context.grid,
            box=_token_box(task.tile, blocks, context.grid),
            head=context.encoder.head,
            calibration=context.calibration,
            classifiers=[_classifier(probe, context.calibration) for _, probe, _ in heads],
            parts=parts,
        )
    return layers


def _classifier(probe: Probe, calibration: Calibration) -> instability.Classify:
    return lambda coded, valid: probe.classify(coded, calibration, valid)


def _coded(result: Embedding, cut: tuple[slice, slice]) -> Coded:
    """What was written to a part of a tile."""
    scale = None if result.pixel_scale is None else result.pixel_scale[cut]
    return Coded(codes=result.codes[:, *cut], pixel_scale=scale)


def _receipt(
    task: Task,
    stacks: Sequence[Stack],
    result: Embedding,
    *,
    objects: tuple[tuple[str, str], ...],
    usage: Usage,
    attempt: int,
    calibration: Calibration,
) -> Receipt:
    valid_px = int((result.reason == Reason.VALID).sum())
    status = "degraded" if any(stack.degraded for stack in stacks) else "done" if valid_px else "empty"
    return Receipt(
        tile_id=task.tile.id,
        fingerprint=task.fingerprint,
        status=status,
        blocks=task.blocks,
        objects=objects,
        sources=tuple(source for stack in stacks for source in stack.sources),
        usage=usage,
        attempt=attempt,
        calibration=calibration.hash,
        weights_sha256=calibration.model_sha256,
        valid_px=valid_px,
        clipped=result.clipped,
        clipped_worst=max((share for _, _, share in result.clipped_shards), default=0.0),
        clipped_shards=result.clipped_shards,
        rms_error=result.rms_error,
    )


def wanted_px(task: Task) -> int:
    """10 m pixels of the wanted blocks."""
    return len(task.blocks) * BLOCK_PX * BLOCK_PX
