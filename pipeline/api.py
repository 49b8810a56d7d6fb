"""The same from Python: what the command line calls, as functions with keyword arguments.

Everything heavy is imported inside the functions, so that ``import pipeline`` stays light.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import xarray as xr

    from pipeline.config import Settings
    from pipeline.run.local import Outcome
    from pipeline.types import Plan


def plan(settings: Settings | None = None, *, note: Callable[[str], None] = lambda _text: None, **values: Any) -> Plan:
    """Resolve the area, search scenes, price the work and write the plan folder; computes and spends nothing.

    Args:
        settings: From ``pipeline.config.load``; or give the values as keywords.
        note: Called with a line of text before each slow step.
        **values: Top-level settings (``bbox``, ``aoi``, ``start``, ``end``, ``model``, ``output``, ``inputs`` ...).

    Returns:
        The plan; it is also in ``<output>/plan``.

    Raises:
        InvalidInputError: Area, dates or settings are wrong.
        NoDataError: No scene at all.
        OutputError: The output folder holds another plan.
    """
    from pipeline.config import load  # noqa: PLC0415
    from pipeline.run.prepare import prepare  # noqa: PLC0415

    return prepare(settings if settings is not None else load(None, values=values), note=note)


def run(plan: Plan | str, **options: Any) -> Outcome:
    """Compute what a plan still lacks.

    Args:
        plan: A plan, or the output folder that holds one.
        **options: ``progress``, ``at``, ``signals`` and ``pictures``, see ``pipeline.run.local.run``.

    Returns:
        What happened; ``exit_code`` follows the command line's table.
    """
    from pipeline.plan.planner import load_plan  # noqa: PLC0415
    from pipeline.run.local import run as run_local  # noqa: PLC0415

    return run_local(load_plan(plan) if isinstance(plan, str) else plan, **options)


def open_tiles(plan: Plan | str) -> xr.DataTree:
    """The scenes of a plan as a lazy, georeferenced view: one node per zone and native resolution, one chunk per tile.

    The pixels equal those that the run encodes, byte for byte.
    """
    from pipeline.plan.planner import load_plan  # noqa: PLC0415
    from pipeline.read.rank import FolderRanks  # noqa: PLC0415
    from pipeline.read.tiles import open_tiles as open_lazy  # noqa: PLC0415
    from pipeline.run.folder import access_of  # noqa: PLC0415

    made = load_plan(plan) if isinstance(plan, str) else plan
    return open_lazy(made, access=access_of(made), ranks=FolderRanks(Path(made.output) / "ranks"))


def open_store(path: str | Path, *, zone: int | None = None, dequantise: bool = False) -> xr.Dataset:
    """Open an embedding store with xarray; its pixels are 10 m, or tokens in a store of token resolution.

    Args:
        path: Output folder, a store (``<output>/store.zarr``), or its URL (``s3://``, ``gs://``, ``az://``).
        zone: UTM zone; needed only to choose one of several.
        dequantise: Return float32 with NaN for nodata instead of int8 codes.
    """
    from pipeline.run.folder import store_at  # noqa: PLC0415
    from pipeline.write.store import open_store as open_zarr  # noqa: PLC0415

    return open_zarr(store_at(path), zone=zone, dequantise=dequantise)
