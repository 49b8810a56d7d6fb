"""Reads the tiles of a plan: what all of them share, and the one call per tile."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from pipeline.errors import ConfigError
from pipeline.plan import grid
from pipeline.read.blocks import cache_for
from pipeline.read.cloudmask import OmniCloudMask
from pipeline.read.rules import rules_of
from pipeline.read.tiles import read_stacks
from pipeline.run.folder import access_of, settings_of

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from pipeline.read.rank import RankStore
    from pipeline.types import Plan, Stack, Task


class Source:
    """The scenes of a plan and how they are read.

    Args:
        plan: The plan.
        ranks: Where rankings are remembered.

    Raises:
        ConfigError: The plan's cloud mask is missing here, or another version of it is installed.
    """

    def __init__(self, plan: Plan, *, ranks: RankStore) -> None:
        self._plan, self._ranks = plan, ranks
        self._access = access_of(plan)
        self._rules = rules_of(settings_of(plan).inputs)
        self._mask = OmniCloudMask(device=plan.numerics.device) if plan.mask else None
        if self._mask is not None and self._mask.name != plan.mask:
            raise ConfigError(
                f"the plan ranks scenes by {plan.mask}, installed is {self._mask.name}: cells would be ranked by both; "
                "install the plan's version, or plan again into another output"
            )
        self._cache = cache_for(plan.grid.tile_px)  # neighbours share halos, small tiles the blocks of a file
        self._scenes = {scene.id: scene for scene in plan.scenes}

    def read(self, task: Task, *, pool: Executor) -> tuple[Stack, ...]:
        """One Stack per sensor under all windows of a tile; not to be called from inside ``pool``."""
        spec = self._plan.grid
        return read_stacks(
            box=grid.read_box(task.tile, grid.tile_windows(task.tile, task.blocks, spec), spec),
            periods=self._plan.periods,
            candidates=task.candidates,
            scenes=self._scenes,
            access=self._access,
            ranks=self._ranks,
            pool=pool,
            rules=self._rules,
            mask=self._mask,
            cache=self._cache,
        )

    def network(self) -> tuple[tuple[str, int], ...]:
        """(counter, count) of this process's traffic with the archives so far, by name."""
        return tuple(sorted(asdict(self._access.counts()).items()))
