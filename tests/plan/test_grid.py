"""The lattice: every pixel owned once, windows shared between tiles, blocks exactly those that touch the area."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Transformer

from pipeline.plan import grid
from pipeline.types import BLOCK_PX, Box, GridSpec, Tile, block_grid

SPEC = GridSpec(patch_px=4, window_px=64, overlap_px=24, tile_px=512)


def lonlat(zone, x, y):
    return Transformer.from_crs(32600 + zone, 4326, always_xy=True).transform(x, y)


def square(zone, x, y, side_m):
    xs, ys = np.array([0, 1, 1, 0]) * side_m + x, np.array([0, 0, 1, 1]) * side_m + y
    return shapely.Polygon(list(zip(*lonlat(zone, xs, ys), strict=True)))


def test_an_area_inside_one_block_wants_that_block_only():
    part = square(31, 500_000 + 2560 * 3 + 300, 5_000_000, 500)
    (tile, blocks), *rest = grid.wanted_blocks(31, part, tile_px=512)
    assert not rest
    assert len(blocks) in (1, 2)
    box = tile.block_box(*blocks[0])
    x_min, y_min, x_max, y_max = box.bounds_m
    assert x_min <= 500_000 + 2560 * 3 + 300 < x_max
    assert y_min <= 5_000_250 < y_max or len(blocks) == 2


def test_tile_size_does_not_change_the_wanted_ground():
    part = square(33, 412_340, 4_123_450, 9_000)
    ground = [
        {tile.block_box(*b) for tile, blocks in grid.wanted_blocks(33, part, tile_px=px) for b in blocks}
        for px in (256, 512, 2048)
    ]
    assert ground[0] == ground[1] == ground[2]
    assert len(ground[0]) >= 16


def test_wanted_blocks_cover_the_area_in_the_south_too():
    part = square(36, 612_340, -1_234_560, 3_000)
    boxes = [tile.block_box(*b) for tile, blocks in grid.wanted_blocks(36, part, tile_px=512) for b in blocks]
    plane = shapely.union_all([shapely.box(*b.bounds_m) for b in boxes])
    assert plane.contains(shapely.box(612_341, -1_234_559, 615_339, -1_231_561))
    assert all(b.row > 0 for b in boxes)


@settings(max_examples=60, deadline=None)
@given(
    row=st.integers(-900_000, 800_000),
    col=st.integers(20_000, 80_000),
    size=st.integers(1, 700),
    patch=st.sampled_from([1, 2, 4, 8]),
    tokens=st.integers(2, 16),
    share=st.floats(0, 0.95),
)
def test_windows_cover_a_box_and_only_windows_that_touch_it(row, col, size, patch, tokens, share):
    overlap = int(tokens * share) * patch
    spec = GridSpec(patch_px=patch, window_px=tokens * patch, overlap_px=overlap, tile_px=256)
    box = Box(zone=31, res_m=10, row=row, col=col, height=size, width=size)
    rows = sorted({r for r, _ in grid.window_origins(box, spec)})
    assert all(r % spec.stride_px == 0 for r in rows)
    assert rows[0] <= row
    assert rows[-1] + spec.window_px >= row + size
    assert all(r < row + size and r + spec.window_px > row for r in rows)
    # one more on either side would not touch the box
    assert rows[0] - spec.stride_px + spec.window_px <= row
    assert rows[-1] + spec.stride_px >= row + size


def test_neighbouring_tiles_evaluate_the_same_border_windows():
    left, right = Tile(zone=31, row=-1000, col=90, tile_px=512), Tile(zone=31, row=-1000, col=91, tile_px=512)
    a = set(grid.tile_windows(left, block_grid(left), SPEC))
    b = set(grid.tile_windows(right, block_grid(right), SPEC))
    edge = right.box.col
    crossing = {o for o in a | b if o[1] < edge - 4 and o[1] + 64 > edge + 4}
    assert crossing
    assert crossing <= a & b


def test_windows_of_single_blocks_add_up_to_those_of_the_tile():
    tile = Tile(zone=31, row=-1000, col=90, tile_px=512)
    parts = [set(grid.tile_windows(tile, [b], SPEC)) for b in block_grid(tile)]
    assert set().union(*parts) == set(grid.tile_windows(tile, block_grid(tile), SPEC))


def test_cells_are_those_of_the_pixels():
    box = Box(zone=31, res_m=10, row=-2049, col=2047, height=2, width=2)
    assert [(c.row, c.col) for c in grid.cells_of(box)] == [(-2, 0), (-2, 1), (-1, 0), (-1, 1)]


@pytest.mark.parametrize("lat", [-79.5, -33.0, 0.1, 52.0, 83.5])
def test_every_ground_point_near_a_zone_border_is_owned_by_exactly_one_zone(lat):
    owners = np.zeros(400, int)
    lon = np.linspace(5.98, 6.02, 400)
    for zone in (31, 32):
        x, y = Transformer.from_crs(4326, 32600 + zone, always_xy=True).transform(lon, np.full(400, lat))
        rows, cols = np.floor(-y / 10).astype(int), np.floor(x / 10).astype(int)
        box = Box(
            zone=zone,
            res_m=10,
            row=int(rows.min()),
            col=int(cols.min()),
            height=int(np.ptp(rows)) + 1,
            width=int(np.ptp(cols)) + 1,
        )
        owners += grid.owned(box)[rows - box.row, cols - box.col]
    far = np.abs(lon - 6.0) > 0.001  # a pixel is owned whole: its centre decides, half a pixel off at the border
    assert (owners[far] == 1).all()


def test_a_box_in_the_middle_of_a_zone_is_owned_whole():
    box = Box(zone=31, res_m=10, row=-500_000, col=50_000, height=64, width=64)
    assert grid.owned(box).all()


def test_extent_is_whole_tiles():
    tiles = [Tile(zone=31, row=-3, col=4, tile_px=512), Tile(zone=31, row=-1, col=9, tile_px=512)]
    (box,) = grid.snapped_extent(tiles)
    assert (box.row, box.col, box.height, box.width) == (-1536, 2048, 1536, 3072)
    assert box.height % BLOCK_PX == 0


@pytest.mark.parametrize("stitch", ["blend", "centre"])
@pytest.mark.parametrize(("window", "overlap"), [(24, 8), (28, 12), (20, 16), (16, 0)])
def test_the_used_parts_of_the_windows_cover_a_box_and_each_touches_it(stitch, window, overlap):
    spec = GridSpec(patch_px=4, window_px=window, overlap_px=overlap, tile_px=256, stitch=stitch)
    box = Box(zone=31, res_m=10, row=-52, col=1204, height=36, width=44)
    covered = np.zeros(box.shape, int)
    for row, col in grid.window_origins(box, spec):
        used = Box(
            zone=31,
            res_m=10,
            row=row + spec.trim_px,
            col=col + spec.trim_px,
            height=spec.core_px,
            width=spec.core_px,
        )
        common = used.intersect(box)
        assert common is not None
        covered[common.slices_in(box)] += 1
    assert covered.min() >= 1
    assert stitch == "blend" or covered.max() == 1


def test_a_store_of_tokens_needs_no_margin_for_interpolation():
    tile = Tile(zone=31, row=-3, col=2, tile_px=256)
    pixel = GridSpec(patch_px=4, window_px=64, overlap_px=0, tile_px=256)
    token = GridSpec(patch_px=4, window_px=64, overlap_px=0, tile_px=256, token_px=4)
    assert len(grid.tile_windows(tile, ((0, 0),), pixel)) == 36
    assert len(grid.tile_windows(tile, ((0, 0),), token)) == 16
