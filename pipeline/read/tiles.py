"""The public face of reading: one tile's Stacks, and the lazy view of a whole plan.

``read_stacks`` is the read task of the runner. ``open_tiles`` shows the same pixels as an xarray tree chunked by tile,
for people and notebooks. Knows nothing of encoders or outputs.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.config import Settings
from pipeline.read.access import Access
from pipeline.read.pieces import missing_of
from pipeline.read.rank import MemoryRanks, Ranks
from pipeline.read.reads import Reads
from pipeline.read.rules import rules_of
from pipeline.read.sensors import SENTINEL1, SENTINEL2_L2A, present
from pipeline.read.stacks import (
    DEFAULT_RULES,
    empty_layer,
    fill_layers,
    layer_boxes,
    needed_cells,
    read_stacks,
)
from pipeline.read.windows import pixels_centred_in
from pipeline.types import DN_OFFSET, Box

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import xarray as xr
    from numpy.typing import NDArray

    from pipeline.read.rank import RankStore
    from pipeline.read.rules import ReadRule
    from pipeline.types import Period, Plan, Scene, Task

__all__ = ["IO_THREADS", "TileRead", "layer_boxes", "needed_cells", "open_tiles", "read_stacks"]

IO_THREADS = 16
"""Past the knee at 30 ms latency; memory of readers grows from 118 MB (4 threads) to 332 MB (64)."""
REFLECTANCE_STEP = 1e-4
"""Reflectance per DN (ESA, Sentinel-2 Products Specification, QUANTIFICATION_VALUE 10000)."""


def open_tiles(plan: Plan, *, access: Access | None = None, ranks: RankStore | None = None) -> xr.DataTree:
    """Show what the runner reads as a lazy tree, one node per zone and resolution (``/utm32/10m``).

    Every node holds one variable per sensor, named after it (time, band, y, x), one chunk per tile; a 60 m pixel
    belongs to the tile in which its centre lies. ``sentinel2_l2a`` is raw uint16, which ``xarray.decode_cf`` turns into
    reflectance; ``sentinel1`` float32 decibels; ``landsat`` raw uint16. The band axes of other sensors than Sentinel-2
    are called ``sentinel1_band`` and ``landsat_band``. Places outside the plan's tiles are missing (0, or NaN).
    Computing a chunk of one resolution reads the bands of that resolution only.

    Args:
        plan: The plan; its settings say which sensors and how.
        access: Opens files; None: remote files only, as ``Access()``.
        ranks: Where rankings are remembered; None: in this process. The run's own store gives the run's own pixels
            even where scenes have failed.

    Returns:
        The tree; CRS EPSG:326NN in both hemispheres (negative y in the south), readable by rioxarray.
    """
    import xarray as xr  # noqa: PLC0415

    settings = Settings.model_validate_json(plan.settings) if plan.settings else None
    rules = rules_of(settings.inputs) if settings else DEFAULT_RULES
    view = _View(
        plan=plan,
        access=access or Access(),
        ranks=ranks or MemoryRanks(),
        io_threads=settings.run.io_threads if settings else IO_THREADS,
    )
    nodes: dict[str, xr.Dataset] = {}
    for zone in sorted({t.tile.zone for t in plan.tasks}):
        by_res: dict[int, dict[str, xr.DataArray]] = {}
        for rule in rules:
            for res_m, reads in view.reads(zone, rule):
                by_res.setdefault(res_m, {})[rule.sensor] = _variable(reads)
        for res_m, variables in sorted(by_res.items()):
            node = xr.Dataset(variables).rio.write_crs(32600 + zone).rio.write_coordinate_system()
            nodes[f"/utm{zone:02d}/{res_m}m"] = node
    tree = xr.DataTree.from_dict(nodes)
    tree.attrs["plan"] = plan.id
    return tree


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TileRead:
    """One chunk of the lazy view: calling it reads one resolution of one sensor over one tile, all periods.

    Attributes:
        task: The tile and its candidates.
        scenes: The scenes of the sensor that its candidates name.
        rule: Sensor and composite.
        res_m: Resolution of the chunk.
        bands: Bands of the chunk, model order.
        periods: The time axis.
        access: Opens files.
        ranks: Remembers rankings.
        io_threads: Threads of the read.
    """

    task: Task
    scenes: tuple[Scene, ...]
    rule: ReadRule
    res_m: int
    bands: tuple[str, ...]
    periods: tuple[Period, ...]
    access: Access
    ranks: RankStore
    io_threads: int

    @property
    def box(self) -> Box:
        """The chunk's pixels."""
        box = pixels_centred_in(self.task.tile.box, self.res_m)
        assert box is not None  # noqa: S101 - a tile has 256 pixels of 10 m at least
        return box

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(time, band, row, col)."""
        return len(self.periods), len(self.bands), *self.box.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint16 or float32."""
        return np.dtype(self.rule.spec.dtype)

    def __call__(self) -> NDArray[Any]:
        """(time, band, row, col) of ``dtype``."""
        layer = empty_layer(self.res_m, self.bands, box=self.box, times=len(self.periods), dtype=self.rule.spec.dtype)
        with ThreadPoolExecutor(self.io_threads, thread_name_prefix="read") as pool:
            fill_layers(
                (layer,),
                self.periods,
                self.task.candidates,
                rule=self.rule,
                scenes={s.id: s for s in self.scenes},
                tools=Ranks(store=self.ranks, reads=Reads(self.access, self.ranks), pool=pool),
            )
        return layer.pixels


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _View:
    """What all chunks of a view share."""

    plan: Plan
    access: Access
    ranks: RankStore
    io_threads: int

    def reads(self, zone: int, rule: ReadRule) -> Iterable[tuple[int, dict[tuple[int, int], TileRead]]]:
        """(resolution, chunks by tile row and column) of one sensor in one zone."""
        own = {s.id: s for s in self.plan.scenes if s.sensor == rule.sensor}
        for i, bands in present(rule.spec, own.values()):
            chunks = {
                (task.tile.row, task.tile.col): TileRead(
                    task=task,
                    scenes=tuple(own[i] for i in sorted(_named(task, rule.sensor))),
                    rule=rule,
                    res_m=rule.spec.layers[i].res_m,
                    bands=bands,
                    periods=self.plan.periods,
                    access=self.access,
                    ranks=self.ranks,
                    io_threads=self.io_threads,
                )
                for task in self.plan.tasks
                if task.tile.zone == zone
            }
            yield rule.spec.layers[i].res_m, chunks


def _named(task: Task, sensor: str) -> set[str]:
    """Ids of a tile's candidates of one sensor."""
    return {i for c in task.candidates if c.sensor == sensor for i in c.scene_ids}


def _variable(reads: Mapping[tuple[int, int], TileRead]) -> xr.DataArray:
    """The chunks of one sensor, zone and resolution side by side, with coordinates and CF attributes."""
    import dask.array as da  # noqa: PLC0415
    import rioxarray  # noqa: F401, PLC0415
    import xarray as xr  # noqa: PLC0415

    any_read = next(iter(reads.values()))
    res_m, tile_px = any_read.res_m, any_read.task.tile.tile_px
    rows, cols = (_span(place[axis] for place in reads) for axis in (0, 1))
    lead, missing = any_read.shape[:2], missing_of(np.empty(0, any_read.dtype))
    heights = {r: _side(r, tile_px, res_m) for r in rows}
    widths = {c: _side(c, tile_px, res_m) for c in cols}
    grid = [
        [
            _chunk(reads[r, c])
            if (r, c) in reads
            else da.full((*lead, heights[r][1], widths[c][1]), missing, dtype=any_read.dtype, chunks=-1)
            for c in cols
        ]
        for r in rows
    ]
    data = da.block(grid)
    y = -(heights[rows[0]][0] + np.arange(data.shape[2]) + 0.5) * res_m
    x = (widths[cols[0]][0] + np.arange(data.shape[3]) + 0.5) * res_m
    starts, ends = (
        np.array([t.replace(tzinfo=None) for t in times], dtype="datetime64[ns]")
        for times in ([p.start for p in any_read.periods], [p.end for p in any_read.periods])
    )
    sensor = any_read.rule.sensor
    band = "band" if sensor == SENTINEL2_L2A.name else f"{sensor}_band"
    return xr.DataArray(
        data,
        dims=("time", band, "y", "x"),
        coords={"time": starts, "time_end": ("time", ends), band: list(any_read.bands), "y": y, "x": x},
        attrs=_attributes(sensor),
    )


def _attributes(sensor: str) -> dict[str, Any]:
    """CF attributes of a sensor's variable."""
    if sensor == SENTINEL1.name:
        return {"long_name": "composited radar backscatter", "_FillValue": np.float32(np.nan), "units": "dB"}
    if sensor != SENTINEL2_L2A.name:
        return {"long_name": "composited digital numbers", "_FillValue": np.uint16(0), "units": "1"}
    return {
        "long_name": "composited surface reflectance, digital numbers",
        # value = DN * scale_factor + add_offset; decode_cf applies it, nothing here does.
        "scale_factor": REFLECTANCE_STEP,
        "add_offset": -DN_OFFSET * REFLECTANCE_STEP,
        "_FillValue": np.uint16(0),
        "units": "1",
    }


def _chunk(read: TileRead) -> Any:  # a dask array: dask has no types
    import dask  # noqa: PLC0415
    import dask.array as da  # noqa: PLC0415

    name = f"read-{read.task.fingerprint}-{read.task.tile.id}-{read.rule.sensor}-{read.res_m}m"
    delayed = dask.delayed(read, pure=False, traverse=False)(dask_key_name=name)
    return da.from_delayed(delayed, shape=read.shape, dtype=read.dtype)


def _span(indices: Iterable[int]) -> range:
    given = tuple(indices)
    return range(min(given), max(given) + 1)


def _side(index: int, tile_px: int, res_m: int) -> tuple[int, int]:
    """First pixel and number of pixels of lattice ``res_m`` centred in tile row (or column) ``index``."""
    box = pixels_centred_in(Box(zone=1, res_m=10, row=index * tile_px, col=0, height=tile_px, width=tile_px), res_m)
    assert box is not None  # noqa: S101
    return box.row, box.height
