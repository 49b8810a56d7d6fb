"""One tile's Stack, and the lazy view of a whole plan.

``read_stack`` is the read task of the runner: it cuts the tile's layers into pieces by ranking cell and period, ranks,
and composites into arrays made once. ``open_tiles`` shows the same pixels as an xarray tree chunked by tile, for
people and notebooks. Knows nothing of encoders or outputs.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import InvalidInputError
from pipeline.read.access import Access
from pipeline.read.composite import Piece, compose
from pipeline.read.rank import MemoryRanks, rank_all
from pipeline.read.sensors import present, sensor, sensor_of
from pipeline.read.windows import pixels_centred_in
from pipeline.types import CELL_PX, DN_OFFSET, Box, Candidates, Cell, Layer, PeriodSource, Stack

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from concurrent.futures import Executor

    import xarray as xr
    from numpy.typing import NDArray

    from pipeline.read.rank import RankStore
    from pipeline.read.sensors import SensorSpec
    from pipeline.types import Period, Plan, Scene, Task

IO_THREADS = 16
"""Past the knee at 30 ms latency; memory of readers grows from 118 MB (4 threads) to 332 MB (64)."""
REFLECTANCE_STEP = 1e-4
"""Reflectance per DN (ESA, Sentinel-2 Products Specification, QUANTIFICATION_VALUE 10000)."""


def layer_boxes(box: Box, *, spec_name: str = "sentinel2_l2a") -> tuple[Box, ...]:
    """The native boxes a Stack over ``box`` holds, finest first: cover plus what upsampling to 10 m reads."""
    spec = sensor(spec_name)
    margins = zip(spec.layers, spec.margin_px, strict=True)
    return tuple(box.cover(layer.res_m, pad_px=margin) for layer, margin in margins)


def needed_cells(box: Box) -> tuple[Cell, ...]:
    """The ranking cells for which ``read_stack`` over ``box`` wants candidates, sorted.

    More than the cells that ``box`` touches when it ends within 120 m of a cell border: the margin of the 60 m layer.
    """
    return tuple(sorted({cell for layer in layer_boxes(box) for cell, _ in _parts(layer)}))


def read_stack(
    *,
    box: Box,
    periods: tuple[Period, ...],
    candidates: tuple[Candidates, ...],
    scenes: Mapping[str, Scene],
    access: Access,
    ranks: RankStore,
    pool: Executor,
) -> Stack:
    """Read and composite everything under ``box``.

    Must not be called from inside ``pool``. The pixels depend on the scenes, not on the box or the order of reads.

    Args:
        box: 10 m box of all windows of the tile, halo included.
        periods: The time axis.
        candidates: At least those of ``needed_cells(box)`` in every period; others are ignored.
        scenes: Every scene of the run by id. Bands that none of them has are left out, so it must be the same
            mapping for every tile.
        access: Opens files.
        ranks: Remembers rankings.
        pool: Runs the reads; 16 threads.

    Returns:
        The Stack: layer boxes as ``layer_boxes``, uint16 in the encoding of ``DN_OFFSET``.

    Raises:
        InvalidInputError: Candidates or scenes are missing, or a location is not allowed.
        TransientError: No token for signed URLs.
        OutputError: The store of rankings fails.
    """
    spec = sensor_of(scenes.values())
    boxes = layer_boxes(box, spec_name=spec.name)
    layers = tuple(
        _empty(spec.layers[i].res_m, bands, box=boxes[i], times=len(periods))
        for i, bands in present(spec, scenes.values())
    )
    sources, bytes_read = _fill(
        layers, periods, candidates, spec=spec, scenes=scenes, access=access, ranks=ranks, pool=pool
    )
    return Stack(sensor=spec.name, box=box, layers=layers, periods=periods, sources=sources, bytes_read=bytes_read)


def open_tiles(plan: Plan, *, access: Access | None = None, ranks: RankStore | None = None) -> xr.DataTree:
    """Show what the runner reads as a lazy tree, one node per zone and resolution (``/utm32/10m``).

    Every node holds ``sentinel2_l2a`` (time, band, y, x), raw uint16, one chunk per tile; a 60 m pixel belongs to the
    tile in which its centre lies. ``xarray.decode_cf`` turns it into reflectance. Places outside the plan's tiles are
    0. Computing a chunk of one resolution reads the bands of that resolution only.

    Args:
        plan: The plan.
        access: Opens files; None: remote files only, as ``Access()``.
        ranks: Where rankings are remembered; None: in this process. The run's own store gives the run's own pixels
            even where scenes have failed.

    Returns:
        The tree; CRS EPSG:326NN in both hemispheres (negative y in the south), readable by rioxarray.
    """
    import xarray as xr  # noqa: PLC0415

    scenes = {s.id: s for s in plan.scenes}
    spec = sensor_of(plan.scenes)
    access, ranks = access or Access(), ranks or MemoryRanks()
    threads = int(json.loads(plan.settings or "{}").get("run", {}).get("io_threads", IO_THREADS))
    nodes: dict[str, xr.Dataset] = {}
    for zone in sorted({t.tile.zone for t in plan.tasks}):
        tasks = {(t.tile.row, t.tile.col): t for t in plan.tasks if t.tile.zone == zone}
        for i, bands in present(spec, plan.scenes):
            res_m = spec.layers[i].res_m
            reads = {
                place: TileRead(
                    task=task,
                    scenes=tuple(scenes[s] for s in sorted({s for c in task.candidates for s in c.scene_ids})),
                    sensor=spec.name,
                    res_m=res_m,
                    bands=bands,
                    periods=plan.periods,
                    access=access,
                    ranks=ranks,
                    io_threads=threads,
                )
                for place, task in tasks.items()
            }
            nodes[f"/utm{zone:02d}/{res_m}m"] = _dataset(reads, name=spec.name)
    tree = xr.DataTree.from_dict(nodes)
    tree.attrs["plan"] = plan.id
    return tree


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TileRead:
    """One chunk of the lazy view: calling it reads one resolution of one tile, all periods.

    Attributes:
        task: The tile and its candidates.
        scenes: The scenes its candidates name.
        sensor: Sensor of the scenes.
        res_m: Resolution of the chunk.
        bands: Bands of the chunk, model order.
        periods: The time axis.
        access: Opens files.
        ranks: Remembers rankings.
        io_threads: Threads of the read.
    """

    task: Task
    scenes: tuple[Scene, ...]
    sensor: str
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

    def __call__(self) -> NDArray[np.uint16]:
        """(time, band, row, col) uint16."""
        layer = _empty(self.res_m, self.bands, box=self.box, times=len(self.periods))
        with ThreadPoolExecutor(self.io_threads, thread_name_prefix="read") as pool:
            _fill(
                (layer,),
                self.periods,
                self.task.candidates,
                spec=sensor(self.sensor),
                scenes={s.id: s for s in self.scenes},
                access=self.access,
                ranks=self.ranks,
                pool=pool,
            )
        return layer.pixels


def _empty(res_m: int, bands: tuple[str, ...], *, box: Box, times: int) -> Layer:
    return Layer(
        res_m=res_m,
        bands=bands,
        pixels=np.zeros((times, len(bands), *box.shape), dtype=np.uint16),
        valid=np.zeros((times, *box.shape), dtype=np.bool_),
        box=box,
    )


def _parts(box: Box) -> tuple[tuple[Cell, Box], ...]:
    """The pixels of ``box`` by the cell in which their centres lie, in the cells' order."""
    side_m, res_m = CELL_PX * 10, box.res_m
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


def _fill(
    layers: Sequence[Layer],
    periods: tuple[Period, ...],
    candidates: Iterable[Candidates],
    *,
    spec: SensorSpec,
    scenes: Mapping[str, Scene],
    access: Access,
    ranks: RankStore,
    pool: Executor,
) -> tuple[tuple[PeriodSource, ...], int]:
    """Rank and composite into fresh ``layers``; returns the sources by (cell, period) and the bytes decoded."""
    parts: dict[Cell, list[tuple[int, Box]]] = {}
    for i, layer in enumerate(layers):
        for cell, part in _parts(layer.box):
            parts.setdefault(cell, []).append((i, part))
    given = {(c.cell, c.period): c for c in candidates}
    keys = [(cell, period.index) for cell in sorted(parts) for period in periods]
    _check(keys, given, scenes)
    groups = [given[key] for key in keys]
    rankings, rank_bytes = rank_all(groups, scenes=scenes, spec=spec, access=access, ranks=ranks, pool=pool)
    times = {period.index: t for t, period in enumerate(periods)}
    pieces = [
        Piece(cell=cell, period=period, time=times[period], ranking=ranking, parts=tuple(parts[cell]))
        for (cell, period), ranking in zip(keys, rankings, strict=True)
    ]
    sources, bytes_read = compose(pieces, layers, scenes=scenes, access=access, pool=pool)
    return sources, rank_bytes + bytes_read


def _check(
    keys: Iterable[tuple[Cell, int]], given: Mapping[tuple[Cell, int], Candidates], scenes: Mapping[str, Scene]
) -> None:
    for cell, period in keys:
        if (cell, period) not in given:
            raise InvalidInputError(
                f"no candidates for cell {cell.id}, period {period}: plan every cell of needed_cells(box), with an "
                "empty entry where there are no scenes"
            )
        missing = [i for i in given[cell, period].scene_ids if i not in scenes]
        if missing:
            raise InvalidInputError(f"candidates of cell {cell.id}, period {period} name unknown scenes: {missing[:3]}")


def _dataset(reads: Mapping[tuple[int, int], TileRead], *, name: str) -> xr.Dataset:
    """The node of one zone and resolution: the chunks side by side, with coordinates and CF attributes."""
    import dask.array as da  # noqa: PLC0415
    import rioxarray  # noqa: F401, PLC0415
    import xarray as xr  # noqa: PLC0415

    any_read = next(iter(reads.values()))
    zone, res_m, tile_px = any_read.task.tile.zone, any_read.res_m, any_read.task.tile.tile_px
    rows, cols = (_span(place[axis] for place in reads) for axis in (0, 1))
    lead = any_read.shape[:2]
    heights = {r: _side(r, tile_px, res_m) for r in rows}
    widths = {c: _side(c, tile_px, res_m) for c in cols}
    grid = [
        [
            _chunk(reads[r, c])
            if (r, c) in reads
            else da.zeros((*lead, heights[r][1], widths[c][1]), dtype=np.uint16, chunks=-1)
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
    array = xr.DataArray(
        data,
        dims=("time", "band", "y", "x"),
        coords={"time": starts, "time_end": ("time", ends), "band": list(any_read.bands), "y": y, "x": x},
        attrs={
            "long_name": "composited surface reflectance, digital numbers",
            # value = DN * scale_factor + add_offset; decode_cf applies it, nothing here does.
            "scale_factor": REFLECTANCE_STEP,
            "add_offset": -DN_OFFSET * REFLECTANCE_STEP,
            "_FillValue": np.uint16(0),
            "units": "1",
        },
    )
    dataset: xr.Dataset = array.to_dataset(name=name).rio.write_crs(32600 + zone).rio.write_coordinate_system()
    return dataset


def _chunk(read: TileRead) -> Any:  # a dask array: dask has no types
    import dask  # noqa: PLC0415
    import dask.array as da  # noqa: PLC0415

    name = f"read-{read.task.fingerprint}-{read.task.tile.id}-{read.res_m}m"
    delayed = dask.delayed(read, pure=False, traverse=False)(dask_key_name=name)
    return da.from_delayed(delayed, shape=read.shape, dtype=np.uint16)


def _span(indices: Iterable[int]) -> range:
    given = tuple(indices)
    return range(min(given), max(given) + 1)


def _side(index: int, tile_px: int, res_m: int) -> tuple[int, int]:
    """First pixel and number of pixels of lattice ``res_m`` centred in tile row (or column) ``index``."""
    box = pixels_centred_in(Box(zone=1, res_m=10, row=index * tile_px, col=0, height=tile_px, width=tile_px), res_m)
    assert box is not None  # noqa: S101
    return box.row, box.height
