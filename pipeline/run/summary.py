"""The ledger of every run of an output, folded with what is committed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.account import fold
from pipeline.account.ledger import read as read_ledger
from pipeline.plan.estimate import total
from pipeline.plan.planner import load_plan
from pipeline.run import ground
from pipeline.types import BLOCK_PX, PIXEL_M, Plan, Receipt, Task, Tile

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def summarise(output: str) -> fold.Summary:
    """Fold the ledger of every run in ``output``."""
    plan = load_plan(output)
    return summary_of(plan, ground.committed(plan))


def summary_of(plan: Plan, tiles: Sequence[tuple[Tile, Receipt]]) -> fold.Summary:
    """The same of a plan whose committed tiles are known."""
    current = {tile.id: receipt for tile, receipt in tiles}
    done = [t for t in plan.tasks if t.tile.id in current and current[t.tile.id].fingerprint == t.fingerprint]
    alone = len(done) == len(current)
    return fold.fold(
        read_ledger(plan.output),
        winners=[(r.tile_id, r.attempt) for r in current.values()],
        km2=_committed_km2(plan, done) if alone else _blocks_km2(current.values()),
        estimate=total([t.estimate for t in done]) if done and alone else None,
    )


def _committed_km2(plan: Plan, done: Sequence[Task]) -> float | None:
    """Area inside the request that is committed: exact when all is, else in proportion to the wanted blocks."""
    wanted = sum(len(t.blocks) for t in plan.tasks)
    share = sum(len(t.blocks) for t in done) / wanted if wanted else 0.0
    return plan.area.km2 * share or None


def _blocks_km2(receipts: Iterable[Receipt]) -> float:
    """Area of all committed blocks: what remains to be said when the store holds tiles of several requests."""
    side_km = BLOCK_PX * PIXEL_M / 1000
    return sum(len(r.blocks) for r in receipts) * side_km**2
