"""What a block needs never depends on who asks: windows, domains, cells and owners over random places and lattices."""

from __future__ import annotations

from dataclasses import replace
from math import lcm

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import settings as options
from hypothesis import strategies as st
from pyproj import Transformer

from pipeline.plan import grid
from pipeline.plan.domains import settle_domain
from pipeline.types import BLOCK_PX, CELL_PX, RESIZE_REACH_PX, RESIZED_PX, Box, Cell, GridSpec, ModelCard, Tile

TILES = (256, 512, 1024, 2048)
lattice = options(max_examples=60, deadline=None, derandomize=True, database=None)

# A block of any zone, by its row and column in units of blocks.
places = st.tuples(st.integers(-3640, 3900), st.integers(70, 320))


@st.composite
def windows(draw):
    """Lattices of windows."""
    patch = draw(st.sampled_from((1, 2, 4, 8)))
    stride = draw(st.integers(8 // patch, 16))  # smaller ones make many windows and nothing new
    overlap = draw(st.integers(0, 12))
    token_px = draw(st.sampled_from((1, patch)))
    return GridSpec(
        patch_px=patch,
        window_px=(stride + overlap) * patch,
        overlap_px=overlap * patch,
        tile_px=256,
        token_px=token_px,
        stitch=draw(st.sampled_from(("blend", "centre"))),
        dense=draw(st.sampled_from((1, 2))) if patch > 1 and token_px == 1 else 1,
    )


def card(version, depth, pooler):
    return ModelCard(
        name="m", version=version, size="nano", dims=64, depth=depth, heads=4, parameters=0, sensors=("sentinel2_l2a",),
        sha256="", trained=False, pooler_depth=pooler, output="student" if pooler else "mean",
    )  # fmt: skip


cards = st.builds(card, st.just("v1.2"), st.integers(1, 12), st.just(0)) | st.builds(
    card, st.just("v1.3"), st.integers(1, 12), st.integers(1, 2)
)


@st.composite
def domains(draw):
    """(model, its lattice of domains)."""
    model, patch = draw(cards), draw(st.sampled_from((1, 2, 4, 8)))
    token_px = draw(st.sampled_from((1, patch)))
    spec = settle_domain(
        model,
        patch_px=patch,
        tile_px=512,
        device="cpu",
        token_px=token_px,
        box_px=patch * draw(st.integers(1, 12)),
        core_px=draw(st.sampled_from((256, 512))),
        halo_px=draw(st.none() | st.integers(4, 12).map(lambda cells: cells * patch)),
        dense=draw(st.sampled_from((1, 2))) if patch > 1 and token_px == 1 else 1,
    )
    return model, spec


lattices = windows() | domains().map(lambda pair: pair[1])


def block_at(place, tile_px, zone=31):
    """(tile, (block row, block col) in it) of a block of the lattice."""
    per_tile = tile_px // BLOCK_PX
    (row, col) = place
    return Tile(zone=zone, row=row // per_tile, col=col // per_tile, tile_px=tile_px), (row % per_tile, col % per_tile)


def box_at(place, zone=31):
    tile, block = block_at(place, 256, zone)
    return tile.block_box(*block)


def alone(place, spec):
    """The windows of one block, computed in a tile of its own."""
    tile, block = block_at(place, 256)
    return set(grid.tile_windows(tile, (block,), spec))


@lattice
@given(place=places, spec=lattices)
def test_a_block_needs_the_same_windows_in_a_tile_of_any_size(place, spec):
    for tile_px in TILES:
        tile, block = block_at(place, tile_px)
        assert set(grid.tile_windows(tile, (block,), replace(spec, tile_px=tile_px))) == alone(place, spec)


@lattice
@given(place=places, spec=lattices, mates=st.sets(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1))
def test_a_tile_evaluates_the_windows_of_its_blocks_each_once_and_no_other(place, spec, mates):
    tile, _ = block_at(place, 1024)
    blocks = tuple(sorted(mates))
    found = grid.tile_windows(tile, blocks, replace(spec, tile_px=1024))
    assert len(found) == len(set(found))
    each = [alone((tile.row * 4 + row, tile.col * 4 + col), spec) for row, col in blocks]
    assert set(found) == set().union(*each)


@lattice
@given(place=places, spec=windows(), steps=st.tuples(st.integers(-9, 9), st.integers(-9, 9)))
def test_windows_lie_on_one_lattice_and_move_with_it(place, spec, steps):
    period = lcm(spec.stride_px, BLOCK_PX)
    moved = tuple(at + step * period // BLOCK_PX for at, step in zip(place, steps, strict=True))
    down, right = (step * period for step in steps)
    assert alone(moved, spec) == {(row + down, col + right) for row, col in alone(place, spec)}
    shifts = set(range(0, spec.patch_px, spec.step_px))
    assert {at % spec.stride_px for origin in alone(place, spec) for at in origin} <= {
        shift % spec.stride_px for shift in shifts
    }


@lattice
@given(place=places, pair=domains())
def test_a_block_lies_in_one_domain_whose_core_is_on_the_lattice_of_cores(place, pair):
    _, spec = pair
    block, core = box_at(place), spec.stride_px
    unshifted = {
        (row, col) for row, col in alone(place, spec) if (row + spec.halo_px) % core == 0 == (col + spec.halo_px) % core
    }
    assert unshifted == {(block.row // core * core - spec.halo_px, block.col // core * core - spec.halo_px)}
    ((row, col),) = unshifted
    shifts = range(0, spec.patch_px, spec.step_px)
    assert alone(place, spec) == {(row + down, col + right) for down in shifts for right in shifts}
    first, count = spec.kept
    margin = spec.margin_px
    assert row + first * spec.patch_px <= block.row - margin
    assert row + (first + count) * spec.patch_px >= block.row_stop + margin
    assert first >= 0
    assert (first + count) * spec.patch_px <= spec.window_px


@lattice
@given(place=places, pair=domains())
def test_nothing_that_a_kept_token_depends_on_is_cut_or_clipped_by_its_domain(place, pair):
    model, cut = pair
    spec = settle_domain(
        model, patch_px=cut.patch_px, tile_px=512, device="cpu", token_px=cut.token_px, box_px=cut.box_px, core_px=256
    )
    cells, width = spec.window_px // spec.patch_px, spec.box_px // spec.patch_px
    first, count = spec.kept
    low, high = first, first + count - 1
    layers = model.depth + (1 + model.pooler_depth if model.pooler_depth else 0)
    for _ in range(layers):
        assert low - width // 2 >= 0  # else the box of this token would be pushed inwards
        assert high - width // 2 + width <= cells
        low, high = low - width // 2, high - width // 2 + width - 1
    around = 0 if spec.patch_px == RESIZED_PX else -(-RESIZE_REACH_PX // spec.patch_px)  # tokens that resizing reads
    assert low - around >= 0
    assert high + around < cells


@lattice
@given(place=places, spec=windows())
def test_vectors_surround_every_pixel_of_a_block(place, spec):
    """Their places, along each axis: every step of the field from before the first pixel to behind the last."""
    block, origins = box_at(place), alone(place, spec)
    patch, step = spec.patch_px, spec.step_px
    side = spec.token_px / 2  # of a pixel of the store
    used = np.arange(spec.trim_px, spec.trim_px + spec.core_px, patch)
    for axis, (start, stop) in enumerate(((block.row, block.row_stop), (block.col, block.col_stop))):
        centres = {float(at) + patch / 2 for at in np.add.outer([o[axis] for o in origins], used).ravel()}
        first = max(c for c in centres if c <= start + side)
        last = min(c for c in centres if c >= stop - side)
        assert set(np.arange(first, last, step)) <= centres


@lattice
@given(place=places, spec=windows())
def test_each_window_of_a_block_gives_it_something_and_centres_do_not_overlap(place, spec):
    block = box_at(place).pad(0 if spec.token_px > 1 or spec.patch_px == 1 else spec.patch_px)
    count = np.zeros(block.shape, int)
    plain = replace(spec, dense=1)
    for row, col in alone(place, plain):
        used = replace(block, row=row + spec.trim_px, col=col + spec.trim_px, height=spec.core_px, width=spec.core_px)
        common = used.intersect(block)
        assert common is not None
        count[common.slices_in(block)] += 1
    assert count.min() >= 1
    assert spec.stitch == "blend" or count.max() == 1


@lattice
@given(place=places, spec=lattices, mates=st.sets(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1))
def test_what_is_read_holds_every_window_and_what_embedding_reads_around_it(place, spec, mates):
    tile, _ = block_at(place, 1024)
    spec = replace(spec, tile_px=1024)
    origins = grid.tile_windows(tile, sorted(mates), spec)
    read = grid.read_box(tile, origins, spec)
    side = spec.window_px
    for row, col in origins:
        Box(zone=31, res_m=10, row=row, col=col, height=side, width=side).pad(spec.embed_px).slices_in(read)
    some = sorted(mates)[:1]
    grid.read_box(tile, grid.tile_windows(tile, some, spec), spec).slices_in(read)  # more blocks never read less


rectangles = st.builds(
    lambda x, y, w, h: shapely.box(x, y, x + w, y + h),
    st.floats(7.0, 7.3), st.floats(-30.2, -30.0), st.floats(1e-4, 0.15), st.floats(1e-4, 0.1),
)  # fmt: skip


def ground(area, tile_px=256):
    return {tile.block_box(*b) for tile, blocks in grid.wanted_blocks(32, area, tile_px=tile_px) for b in blocks}


@options(max_examples=25, deadline=None, derandomize=True, database=None)
@given(one=rectangles, other=rectangles, tile_px=st.sampled_from(TILES))
def test_an_area_wants_the_blocks_of_its_parts_whatever_the_tile(one, other, tile_px):
    assert ground(one, tile_px) == ground(one)
    assert ground(shapely.union_all([one, other]), tile_px) == ground(one) | ground(other)


@lattice
@given(
    row=st.integers(-900_000, 900_000),
    col=st.integers(10_000, 90_000),
    height=st.integers(1, 3 * CELL_PX),
    width=st.integers(1, 3 * CELL_PX),
    res_m=st.sampled_from((10, 20, 60, 100)),
)
def test_the_cells_of_a_box_are_those_of_its_pixels(row, col, height, width, res_m):
    box = Box(zone=31, res_m=res_m, row=row, col=col, height=height, width=width).cover(res_m)
    side_m = CELL_PX * 10
    centres = [
        (np.arange(start, stop) + 0.5) * res_m // side_m
        for start, stop in ((box.row, box.row_stop), (box.col, box.col_stop))
    ]
    needed = {Cell(zone=31, row=int(r), col=int(c)) for r in np.unique(centres[0]) for c in np.unique(centres[1])}
    found = grid.cells_of(box)
    assert list(found) == sorted(found)
    assert needed <= set(found)
    assert needed == set(found) or res_m > 10  # extents of coarse pixels may touch one cell more
    assert all(cell.box.cover(res_m).intersect(box) is not None for cell in found)


@lattice
@given(place=places, tile_px=st.sampled_from(TILES))
def test_a_block_and_a_tile_lie_in_one_cell(place, tile_px):
    tile, block = block_at(place, tile_px)
    (cell,) = grid.cells_of(tile.box)
    assert grid.cells_of(tile.block_box(*block)) == (cell,)


def near_the_border(zone, lat, px_away, side, size):
    """A box of a zone whose western edge lies ``px_away`` from its eastern (side 1) or western (side 0) meridian."""
    lon = zone * 6.0 - 186.0 + 6.0 * side
    x, y = Transformer.from_crs(4326, 32600 + zone, always_xy=True).transform(lon, lat)
    return Box(zone=zone, res_m=10, row=int(-y // 10), col=int(x // 10) + px_away, height=size[0], width=size[1])


@options(max_examples=25, deadline=None, derandomize=True, database=None)
@given(
    zone=st.sampled_from((1, 2, 31, 60)),
    lat=st.floats(-80, 84),
    px_away=st.integers(-3000, 200),
    side=st.sampled_from((0, 1)),
    size=st.tuples(st.integers(64, 512), st.integers(64, 512)),
    cut=st.tuples(*[st.floats(0, 0.9)] * 2),
)
def test_an_owner_does_not_depend_on_the_box_that_is_asked(zone, lat, px_away, side, size, cut):
    box = near_the_border(zone, lat, px_away, side, size)
    row, col = (int(share * n) for share, n in zip(cut, size, strict=True))
    part = replace(box, row=box.row + row, col=box.col + col, height=box.height - row, width=box.width - col)
    np.testing.assert_array_equal(grid.owned(box)[part.slices_in(box)], grid.owned(part))


@pytest.mark.parametrize("zone", [1, 31, 60])
def test_a_box_across_a_border_is_owned_on_one_side_of_it(zone):
    box = near_the_border(zone, -39.2, -128, 1, (256, 256))
    own = grid.owned(box)
    assert 0 < own.sum() < own.size
    assert (np.diff(own.astype(int), axis=1) <= 0).all()  # owned in the west, once, then not any more
