"""Where every tile of a plan stands, for ``earthpress status``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.plan.planner import load_plan
from pipeline.write.commit import Commits, State

if TYPE_CHECKING:
    from pipeline.types import Plan, Task

_MEANING = {
    State.PENDING: "not started",
    State.INTERRUPTED: "an attempt was killed or is still at work",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TileStatus:
    """One line of the status table.

    Attributes:
        tile_id: Which tile.
        state: done, degraded, failed, interrupted or pending.
        attempts: Attempts since the last commit.
        blocks: Wanted blocks.
        reason: Why it is not done, or what was replaced.
    """

    tile_id: str
    state: str
    attempts: int
    blocks: int
    reason: str


def tile_status(output: str) -> tuple[TileStatus, ...]:
    """Status of every tile of the plan in ``output``, in the plan's order.

    Raises:
        InvalidInputError: There is no plan.
    """
    plan, commits = load_plan(output), Commits(Path(output))
    return tuple(_status(task, commits) for task in plan.tasks)


def to_do(plan: Plan) -> tuple[Task, ...]:
    """The tiles that a run of ``plan`` would compute."""
    commits = Commits(Path(plan.output))
    return tuple(task for task in plan.tasks if commits.state(task) != State.DONE)


def _status(task: Task, commits: Commits) -> TileStatus:
    state = commits.state(task)
    return TileStatus(
        tile_id=task.tile.id,
        state=str(state),
        attempts=commits.attempts(task.tile.id),
        blocks=len(task.blocks),
        reason=_reason(task, state, commits),
    )


def _reason(task: Task, state: State, commits: Commits) -> str:
    if state == State.FAILED:
        failure = commits.failure(task.tile.id)
        return f"{failure[1]}: {failure[2]}" if failure else "unknown"
    if state in (State.DEGRADED, State.DONE):
        receipt = commits.receipt(task.tile.id, task.fingerprint)
        skipped = sorted({item for s in receipt.sources for item in s.skipped}) if receipt else []
        if skipped:
            return f"could not be read and replaced: {', '.join(skipped)}"
        return "no valid pixel" if receipt and receipt.status == "empty" else ""
    return _MEANING[state]
