"""earthpress: from an area and dates to int8 embeddings and maps.

Public names: ``plan``, ``run``, ``open_tiles``, ``open_store``. The first two are also rooms of the code
(``pipeline.plan.grid``, ``pipeline.run.tile``), so the packages themselves can be called::

    import pipeline

    plan = pipeline.plan(bbox=(8.9, 47.3, 9.0, 47.4), start="2024-04-01", end="2024-07-30", model="random:v1.2-nano:0",
                         output="out", inputs={"catalog": "items.json"})
    outcome = pipeline.run(plan)
    embeddings = pipeline.open_store("out/store.zarr", dequantise=True)

Importing this package loads neither torch nor dask and does nothing else.
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Any

from pipeline import api as _api
from pipeline import plan, run

if TYPE_CHECKING:
    from collections.abc import Callable

open_store = _api.open_store
open_tiles = _api.open_tiles

__all__ = ["open_store", "open_tiles", "plan", "run"]


class _Room(ModuleType):
    """A package that can be called: ``pipeline.plan(...)`` runs the function of ``pipeline.api`` of that name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call: Callable[..., Any] = getattr(_api, self.__name__.rpartition(".")[2])
        return call(*args, **kwargs)


plan.__class__ = _Room
run.__class__ = _Room
