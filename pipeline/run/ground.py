"""The ground of what is committed: extents, squares, pieces of tiles, and what every file over it is labelled with.

Everything counts pixels of the store, 10 m or tokens. Reads receipts and no pixel.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.run.folder import credit_of
from pipeline.types import BLOCK_PX, Box, Plan, Receipt, Tile, canonical_json
from pipeline.write import preview
from pipeline.write.commit import Commits
from pipeline.write.layout import union

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


GROUP_PX = 8192
"""Side of the ground square of one map GeoTIFF, 10 m pixels, anchored at the zone origin."""


def committed(plan: Plan) -> tuple[tuple[Tile, Receipt], ...]:
    """Every tile that the store holds, with the receipt that counts; also tiles of earlier areas."""
    commits = Commits(Path(plan.output))
    names = sorted({receipt.tile_id for receipt in commits.receipts()})
    current = ((name, commits.current(name)) for name in names)
    return tuple(
        (Tile.parse(name, tile_px=plan.grid.tile_px), max(receipts, key=lambda r: r.attempt))
        for name, receipts in current
        if receipts
    )


def extents(plan: Plan) -> tuple[Box, ...]:
    """Per zone the smallest box of whole blocks around everything committed, in pixels of the store.

    It is what pictures and maps show.
    """
    boxes: dict[int, Box] = {}
    for tile, receipt in committed(plan):
        for row, col in receipt.blocks:
            box = plan.grid.on_store(tile.block_box(row, col))
            boxes[tile.zone] = union(boxes[tile.zone], box) if tile.zone in boxes else box
    return tuple(boxes[zone] for zone in sorted(boxes))


def provenance(plan: Plan, **extra: str) -> tuple[tuple[str, str], ...]:
    """Tags of a file: enough to tell how it was made."""
    facts = {
        "software": "earthpress",
        "plan": plan.id,
        "recipe": plan.recipe,
        "model": f"OlmoEarth {plan.model.version} {plan.model.size}",
        "weights_sha256": plan.model.sha256,
        "trained": str(plan.model.trained).lower(),
        "calibration": plan.calibration.hash,
        "start": plan.periods[0].start.isoformat(),
        "end": plan.periods[-1].end.isoformat(),
        "source": credit_of(plan),
    }
    return (("EARTHPRESS_PROVENANCE", canonical_json(facts | extra)), ("TIFFTAG_SOFTWARE", "earthpress"))


def label(plan: Plan) -> str | None:
    """The warning that every picture of untrained weights carries."""
    return None if plan.model.trained else "UNTRAINED random weights: for demonstration only"


def titles(plan: Plan, what: str) -> tuple[str, ...]:
    """Lines above a picture."""
    span = f"{plan.periods[0].start:%Y-%m-%d} to {plan.periods[-1].end:%Y-%m-%d}"
    return (what, f"{plan.area.km2:,.1f} km2, {span}, OlmoEarth {plan.model.version} {plan.model.size}")


def parts(tiles: Sequence[Tile], box: Box) -> Iterator[tuple[Tile, Box, Box]]:
    """The tiles that touch ``box``, each with its own box and the part inside, in the pixels of ``box``."""
    for tile in tiles:
        whole = tile.box.cover(box.res_m)
        part = box.intersect(whole) if tile.zone == box.zone else None
        if part is not None:
            yield tile, whole, part


def factor(plan: Plan, box: Box, most_px: int) -> int:
    """How much a picture over ``box`` is averaged down; at most a block, so that blocks shrink one by one."""
    return min(preview.factor_for(box.height, box.width, max_side_px=most_px), BLOCK_PX // plan.grid.token_px)


def place(box: Box, outer: Box, factor: int) -> tuple[slice, slice]:
    """(row, col) slices of ``box`` in a picture of ``outer`` that is averaged down by ``factor``."""
    rows, cols = box.slices_in(outer)
    return (
        slice(rows.start // factor, rows.stop // factor),
        slice(cols.start // factor, cols.stop // factor),
    )


def coarse(box: Box, factor: int) -> Box:
    """The same ground in pixels that are ``factor`` times as wide."""
    return Box(
        zone=box.zone,
        res_m=box.res_m * factor,
        row=box.row // factor,
        col=box.col // factor,
        height=box.height // factor,
        width=box.width // factor,
    )


def groups(plan: Plan) -> Iterator[Box]:
    """The part of what is committed in each 8192 px ground square that holds a committed tile."""
    tiles = [tile for tile, _ in committed(plan)]
    side = GROUP_PX // plan.grid.token_px
    for extent in extents(plan):
        for row in range(extent.row // side, -(-extent.row_stop // side)):
            for col in range(extent.col // side, -(-extent.col_stop // side)):
                square = replace(extent, row=row * side, col=col * side, height=side, width=side)
                part = extent.intersect(square)
                if part is not None and any(True for _ in parts(tiles, part)):
                    yield part
