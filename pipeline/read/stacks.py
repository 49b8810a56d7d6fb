"""One tile's Stacks: cut into pieces by ranking cell and period, ranked, composited into arrays made once.

One Stack per sensor, all over the same box. The pixels depend on the scenes, never on the box, the batch or the order
in which reads finish.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import InvalidInputError
from pipeline.read import quality
from pipeline.read.blocks import CachedAccess
from pipeline.read.composite import compose
from pipeline.read.pieces import Piece
from pipeline.read.pixelwise import compose_medians
from pipeline.read.rank import Ranks, rank_all
from pipeline.read.reads import Reads
from pipeline.read.rules import ReadRule
from pipeline.read.sensors import present
from pipeline.read.warp import blank
from pipeline.read.windows import pixels_centred_in
from pipeline.types import CELL_PX, PIXEL_M, Box, Candidates, Cell, Layer, Stack

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from concurrent.futures import Executor

    from pipeline.read.access import Access
    from pipeline.read.blocks import BlockCache
    from pipeline.read.cloudmask import CloudMask
    from pipeline.read.pieces import Made
    from pipeline.read.rank import RankStore
    from pipeline.types import Period, Scene

DEFAULT_RULES = (ReadRule(),)
"""Sentinel-2 by its scene classification."""


def layer_boxes(box: Box, *, rule: ReadRule | None = None) -> tuple[Box, ...]:
    """The boxes of the layers of a Stack over ``box``, finest first: cover plus what upsampling to 10 m reads."""
    spec = (rule or ReadRule()).spec
    margins = zip(spec.layers, spec.margin_px, strict=True)
    return tuple(box.cover(layer.res_m, pad_px=margin) for layer, margin in margins)


def needed_cells(box: Box, *, rules: Iterable[ReadRule] = DEFAULT_RULES) -> tuple[Cell, ...]:
    """The ranking cells for which ``read_stacks`` over ``box`` wants candidates of every sensor, sorted.

    More than the cells that ``box`` touches when it ends within 120 m of a cell border: the margin of the 60 m layer.
    """
    layers = [layer for rule in rules for layer in layer_boxes(box, rule=rule)]
    return tuple(sorted({cell for layer in layers for cell, _ in cell_parts(layer)}))


def read_stacks(
    *,
    box: Box,
    periods: tuple[Period, ...],
    candidates: tuple[Candidates, ...],
    scenes: Mapping[str, Scene],
    access: Access,
    ranks: RankStore,
    pool: Executor,
    rules: tuple[ReadRule, ...] = DEFAULT_RULES,
    mask: CloudMask | None = None,
    cache: BlockCache | None = None,
) -> tuple[Stack, ...]:
    """Read and composite everything under ``box``, one Stack per rule in their order.

    Must not be called from inside ``pool``. A sensor without a scene in a period is missing there.

    Args:
        box: 10 m box of all windows of the tile, halo included.
        periods: The time axis.
        candidates: At least those of ``needed_cells`` in every period for every rule's sensor; others are ignored.
        scenes: Every scene of the run by id. Bands that none of a sensor's has are left out, so it must be the same
            mapping for every tile.
        access: Opens files.
        ranks: Remembers rankings, and offsets that were asked of pixels.
        pool: Runs the reads; 16 threads.
        rules: Sensors and their composites.
        mask: For ``composite: omnicloudmask``; None: OmniCloudMask itself.
        cache: Keeps decoded blocks for neighbouring tiles, see ``blocks.cache_for``; one for all tiles of a run.

    Returns:
        Stacks: layer boxes as ``layer_boxes``, Sentinel-2 uint16 in the encoding of ``DN_OFFSET``, with ``quality``.

    Raises:
        ConfigError: A cloud mask is wanted that is not installed.
        InvalidInputError: Candidates or scenes are missing, or a location is not allowed.
        TransientError: No token for signed URLs.
        OutputError: The store of rankings fails.
    """
    opened = access if cache is None else CachedAccess.around(access, cache)
    tools = Ranks(store=ranks, reads=Reads(opened, ranks), pool=pool, mask=mask)
    return tuple(
        _read(rule, box=box, periods=periods, candidates=candidates, scenes=scenes, tools=tools) for rule in rules
    )


def _read(
    rule: ReadRule,
    *,
    box: Box,
    periods: tuple[Period, ...],
    candidates: Iterable[Candidates],
    scenes: Mapping[str, Scene],
    tools: Ranks,
) -> Stack:
    spec, boxes = rule.spec, layer_boxes(box, rule=rule)
    own = {i: scene for i, scene in scenes.items() if scene.sensor == spec.name}
    layers = tuple(
        empty_layer(spec.layers[i].res_m, bands, box=boxes[i], times=len(periods), dtype=spec.dtype)
        for i, bands in present(spec, own.values())
    )
    judged = quality.whole_blocks(box)
    made, bytes_read = fill_layers(layers, periods, candidates, rule=rule, scenes=own, tools=tools, judged=judged)
    return Stack(
        sensor=spec.name,
        box=box,
        layers=layers,
        periods=periods,
        sources=tuple(one.source for one in made),
        bytes_read=bytes_read,
        quality=quality.quality_of(
            box, (one.taken for one in made if one.taken is not None), times=len(periods), scenes=own
        ),
    )


def empty_layer(res_m: int, bands: tuple[str, ...], *, box: Box, times: int, dtype: str) -> Layer:
    """A layer in which everything is missing."""
    return Layer(
        res_m=res_m,
        bands=bands,
        pixels=blank((times, len(bands), *box.shape), dtype),
        valid=np.zeros((times, *box.shape), dtype=np.bool_),
        box=box,
    )


def cell_parts(box: Box) -> tuple[tuple[Cell, Box], ...]:
    """The pixels of ``box`` by the cell in which their centres lie, in the cells' order."""
    side_m, res_m = CELL_PX * PIXEL_M, box.res_m
    # Doubled, so that centres are integers: centre of row r lies at (2 r + 1) * res / 2.
    rows = range((2 * box.row + 1) * res_m // (2 * side_m), (2 * box.row_stop - 1) * res_m // (2 * side_m) + 1)
    cols = range((2 * box.col + 1) * res_m // (2 * side_m), (2 * box.col_stop - 1) * res_m // (2 * side_m) + 1)
    parts = []
    for cell in (Cell(zone=box.zone, row=row, col=col) for row in rows for col in cols):
        own = pixels_centred_in(cell.box, res_m)
        part = own.intersect(box) if own else None
        if part is not None:
            parts.append((cell, part))
    return tuple(parts)


def fill_layers(
    layers: Sequence[Layer],
    periods: tuple[Period, ...],
    candidates: Iterable[Candidates],
    *,
    rule: ReadRule,
    scenes: Mapping[str, Scene],
    tools: Ranks,
    judged: Box | None = None,
) -> tuple[tuple[Made, ...], int]:
    """Rank and composite into fresh ``layers``.

    Args:
        layers: Any of the sensor's layers, finest first, of any boxes.
        periods: The time axis.
        candidates: As for ``read_stacks``.
        rule: The sensor and its composite.
        scenes: The sensor's scenes by id.
        tools: Store of rankings, reads, pool.
        judged: Blocks whose quality is wanted; the finest layer must cover them.

    Returns:
        (what became of each piece, by cell and period; bytes of pixels decoded).

    Raises:
        As ``read_stacks``.
    """
    parts: dict[Cell, list[tuple[int, Box]]] = {}
    for i, layer in enumerate(layers):
        for cell, part in cell_parts(layer.box):
            parts.setdefault(cell, []).append((i, part))
    given = {(c.cell, c.period): c for c in candidates if c.sensor == rule.sensor}
    keys = [(cell, period.index) for cell in sorted(parts) for period in periods]
    _check(keys, given, scenes, sensor=rule.sensor)
    rankings, rank_bytes = rank_all([given[key] for key in keys], scenes=scenes, rule=rule, ranks=tools)
    times = {period.index: t for t, period in enumerate(periods)}
    pieces = [
        Piece(
            cell=cell,
            period=period,
            time=times[period],
            ranking=ranking,
            parts=tuple(parts[cell]),
            blocks=judged.intersect(quality.blocks_of(cell)) if judged else None,
            sensor=rule.sensor,
        )
        for (cell, period), ranking in zip(keys, rankings, strict=True)
    ]
    how = compose_medians if rule.how.fill == "median" else compose
    made, bytes_read = how(pieces, layers, rule=rule, scenes=scenes, reads=tools.reads, pool=tools.pool)
    return made, rank_bytes + bytes_read


def _check(
    keys: Iterable[tuple[Cell, int]],
    given: Mapping[tuple[Cell, int], Candidates],
    scenes: Mapping[str, Scene],
    *,
    sensor: str,
) -> None:
    for cell, period in keys:
        where = f"cell {cell.id}, period {period}"
        if (cell, period) not in given:
            raise InvalidInputError(
                f"no candidates for {where} of {sensor}: plan every cell of needed_cells(box), with an empty entry "
                "where there are no scenes"
            )
        missing = [i for i in given[cell, period].scene_ids if i not in scenes]
        if missing:
            raise InvalidInputError(f"candidates of {where} of {sensor} name unknown scenes: {missing[:3]}")
