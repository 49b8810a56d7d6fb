"""The global lattice: which tiles, blocks, windows and cells an area needs.

Pure geometry on integers; knows nothing of scenes, models or files. All places are lattice pixels of 10 m unless a
name says otherwise. Window origins are integer multiples of the stride from the zone origin, so two tiles that share
ground evaluate the same windows there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.types import BLOCK_PX, CELL_PX, PIXEL_M, Box, Cell, GridSpec, Tile

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray
    from shapely.geometry.base import BaseGeometry

DENSIFY_DEG = 0.05
"""Longest straight piece of an area's edge before projecting, degrees: its projection then bends by less than 1 m
(sagitta of a 5.6 km parallel in a UTM zone at 80 degrees)."""


def wanted_blocks(
    zone: int, part: BaseGeometry, *, tile_px: int
) -> tuple[tuple[Tile, tuple[tuple[int, int], ...]], ...]:
    """The tiles of one zone and in each the blocks that touch the area.

    Args:
        zone: UTM zone.
        part: The part of the area in this zone, lon/lat EPSG:4326.
        tile_px: Side of a tile, 10 m pixels.

    Returns:
        (tile, ((block_row, block_col), ...)) sorted by tile; blocks sorted.
    """
    import shapely  # noqa: PLC0415
    from pyproj import Transformer  # noqa: PLC0415

    to_zone = Transformer.from_crs(4326, 32600 + zone, always_xy=True)
    plane = shapely.transform(shapely.segmentize(part, DENSIFY_DEG), to_zone.transform, interleaved=False)
    x_min, y_min, x_max, y_max = plane.bounds
    side_m = BLOCK_PX * PIXEL_M
    cols = np.arange(int(x_min // side_m), int(x_max // side_m) + 1)
    rows = np.arange(int(-y_max // side_m), int(-y_min // side_m) + 1)
    shapely.prepare(plane)
    tiles: dict[Tile, list[tuple[int, int]]] = {}
    per_tile = tile_px // BLOCK_PX
    for row in rows.tolist():
        north = -row * side_m
        squares = shapely.box(cols * side_m, north - side_m, (cols + 1) * side_m, north)
        touching = shapely.intersects(plane, squares) & ~shapely.touches(plane, squares)
        for col in cols[touching].tolist():
            tile = Tile(zone=zone, row=row // per_tile, col=col // per_tile, tile_px=tile_px)
            tiles.setdefault(tile, []).append((row % per_tile, col % per_tile))
    return tuple((tile, tuple(sorted(tiles[tile]))) for tile in sorted(tiles))


def window_origins(box: Box, grid: GridSpec) -> tuple[tuple[int, int], ...]:
    """North-west pixels (row, col) of every lattice window of which a used part touches ``box``, row by row.

    >>> box = Box(zone=31, res_m=10, row=-100, col=40, height=10, width=10)
    >>> window_origins(box, GridSpec(patch_px=4, window_px=64, overlap_px=24, tile_px=512))
    ((-160, 0), (-160, 40), (-120, 0), (-120, 40))
    """
    rows = _axis_origins(box.row, box.row_stop, grid)
    cols = _axis_origins(box.col, box.col_stop, grid)
    return tuple((r, c) for r in rows for c in cols)


def _axis_origins(start: int, stop: int, grid: GridSpec) -> range:
    """Origins of the windows of which the used part touches ``start`` .. ``stop``.

    Windows begin at multiples of the stride; of domains the cores do, so that every block lies in one core.
    """
    stride, shift = grid.stride_px, -grid.trim_px if grid.stitch == "neighbourhood" else 0
    used = grid.trim_px + shift
    first = (start - used - grid.core_px) // stride + 1
    last = (stop - 1 - used) // stride
    return range(first * stride + shift, last * stride + shift + 1, stride)


def needed_boxes(tile: Tile, blocks: Iterable[tuple[int, int]], grid: GridSpec) -> tuple[Box, ...]:
    """The 10 m box of each wanted block, grown by what interpolation to pixels reads beyond it.

    At patch > 1 an output pixel mixes the four nearest tokens, so one token more is needed on every side; a store of
    tokens interpolates nothing, and a domain brings its own margin.
    """
    margin = 0 if grid.stitch == "neighbourhood" else grid.margin_px
    return tuple(tile.block_box(r, c).pad(margin) if margin else tile.block_box(r, c) for r, c in blocks)


def tile_windows(tile: Tile, blocks: Iterable[tuple[int, int]], grid: GridSpec) -> tuple[tuple[int, int], ...]:
    """Origins of all windows that the wanted blocks of a tile need, sorted, each once; shift by sub-patch shift."""
    places = sorted({o for box in needed_boxes(tile, blocks, grid) for o in window_origins(box, grid)})
    shifts = range(0, grid.patch_px, grid.step_px)
    return tuple((row + down, col + across) for down in shifts for across in shifts for row, col in places)


def read_box(tile: Tile, origins: tuple[tuple[int, int], ...], grid: GridSpec) -> Box:
    """The 10 m box under all windows: the tile's wanted blocks with their halo, and what embedding reads around it."""
    rows, cols = [r for r, _ in origins], [c for _, c in origins]
    row, col = min(rows), min(cols)
    box = Box(
        zone=tile.zone,
        res_m=PIXEL_M,
        row=row,
        col=col,
        height=max(rows) + grid.window_px - row,
        width=max(cols) + grid.window_px - col,
    )
    return box.pad(grid.embed_px) if grid.embed_px else box


def cells_of(box: Box) -> tuple[Cell, ...]:
    """The ranking cells that ``box`` touches, sorted; any resolution.

    A pixel belongs to the cell of its centre, so a coarse pixel that only straddles a cell border counts by its
    centre; the box of the pixel *extents* is used here, which can only add a cell, never miss one.
    """
    side_m = CELL_PX * PIXEL_M
    r = box.res_m
    rows = range(box.row * r // side_m, (box.row_stop * r - 1) // side_m + 1)
    cols = range(box.col * r // side_m, (box.col_stop * r - 1) // side_m + 1)
    return tuple(Cell(zone=box.zone, row=i, col=j) for i in rows for j in cols)


def owned(box: Box) -> NDArray[np.bool_]:
    """Which 10 m pixels of ``box`` this zone owns: those whose centre's longitude lies in the zone's six degrees.

    Returns:
        (row, col) bool. Every ground pixel is owned by one zone: west edge inclusive, east edge exclusive.
    """
    from pyproj import Transformer  # noqa: PLC0415

    west, east = box.zone * 6.0 - 186.0, box.zone * 6.0 - 180.0
    to_lonlat = Transformer.from_crs(box.epsg, 4326, always_xy=True)
    rows = (np.arange(box.height) + 0.5 + box.row) * -box.res_m
    cols = (np.arange(box.width) + 0.5 + box.col) * box.res_m
    corner_x, corner_y = np.meshgrid(cols[[0, -1]], rows[[0, -1]])
    lon, _ = to_lonlat.transform(corner_x, corner_y)
    # Meridians other than the central one bend by less than this over a tile, so a box whose corners are clearly
    # inside needs no pixel-wise test (20 km of meridian at 84 degrees moves 0.02 degrees in x of the plane).
    margin_deg = 0.5
    if (lon > west + margin_deg).all() and (lon < east - margin_deg).all():
        return np.ones(box.shape, dtype=np.bool_)
    x, y = np.meshgrid(cols, rows)
    lon, _ = to_lonlat.transform(x, y)
    lon = (lon + 180.0) % 360.0 - 180.0  # 180 and -180 are one meridian; it belongs to zone 1
    return np.asarray((lon >= west) & (lon < east), dtype=np.bool_)


def snapped_extent(tiles: Iterable[Tile]) -> tuple[Box, ...]:
    """Per zone the smallest box of whole tiles that holds all of them, sorted by zone."""
    by_zone: dict[int, list[Tile]] = {}
    for tile in tiles:
        by_zone.setdefault(tile.zone, []).append(tile)
    return tuple(_extent(group) for _, group in sorted(by_zone.items()))


def _extent(group: list[Tile]) -> Box:
    n = group[0].tile_px
    rows, cols = [t.row for t in group], [t.col for t in group]
    return Box(
        zone=group[0].zone,
        res_m=PIXEL_M,
        row=min(rows) * n,
        col=min(cols) * n,
        height=(max(rows) - min(rows) + 1) * n,
        width=(max(cols) - min(cols) + 1) * n,
    )
