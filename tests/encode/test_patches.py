"""Patches embedded once per tile: equal to the middle of a larger window, the same bytes in every tile, each once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from stacks import make_stack, periods

from pipeline.config import EncodeSettings
from pipeline.encode import assemble, checkpoint, patches, session
from pipeline.encode.bands import DEFAULT_BANDS
from pipeline.encode.embed import SQUARE, PatchEmbed, Squares
from pipeline.encode.olmoearth import Encoder
from pipeline.errors import InvalidInputError
from pipeline.plan import grid as lattice
from pipeline.types import Box, GridSpec, Tile

INPUTS = (assemble.Input(sensor="sentinel2_l2a", bands=DEFAULT_BANDS["sentinel2_l2a"]),)
TILE = Tile(zone=32, row=-2, col=3, tile_px=256)


@pytest.fixture(scope="module")
def model():
    return checkpoint.load("random:v1.2-toy:0")


def spec(patch_px: int = 4, *, cells: int = 8, overlap: int = 3, dense: int = 1) -> GridSpec:
    return GridSpec(
        patch_px=patch_px, window_px=cells * patch_px, overlap_px=overlap * patch_px, tile_px=256, dense=dense
    )


def origins_of(grid: GridSpec, side_px: int = 64) -> tuple[tuple[int, int], ...]:
    """Windows over a square in the north-west of the tile, shift by shift."""
    box = Box(zone=TILE.zone, res_m=10, row=TILE.box.row, col=TILE.box.col, height=side_px, width=side_px)
    places = lattice.window_origins(box, grid)
    shifts = range(0, grid.patch_px, grid.step_px)
    return tuple((row + down, col + across) for down in shifts for across in shifts for row, col in places)


def squares_of(model, grid: GridSpec) -> Squares:
    return Squares(
        model, patch_px=grid.patch_px, margin_px=grid.embed_px, sensors=("sentinel2_l2a",), dtype=torch.float32
    )


class Counted:
    """Embeds at once and counts the squares that are not padding."""

    def __init__(self, module: Squares) -> None:
        self.module, self.calls, self.shapes = module, 0, set()

    def __call__(self, pixels):
        self.calls += 1
        self.shapes.add(tuple(part.shape for part in pixels))
        with torch.inference_mode():
            found = self.module(pixels)
        return lambda: found


def strips_of(model, grid: GridSpec, origins, *, stack=None, at_once: int = 1):
    embed = Counted(squares_of(model, grid))
    stack = stack or make_stack(lattice.read_box(TILE, origins, grid), count=2)
    found = tuple(
        patches.strips(assemble.Resident((stack,)), origins, grid=grid, inputs=INPUTS, embed=embed, at_once=at_once)
    )
    return found, embed, stack


def windows_of(strips, grid):
    return {m[1:]: strip.window(m, grid=grid)[0][0].numpy().copy() for strip in strips for m in strip.windows}


@pytest.mark.parametrize(("patch_px", "dense"), [(1, 1), (2, 2), (4, 1), (4, 2), (8, 2)])
def test_a_patch_is_embedded_as_in_the_middle_of_a_larger_window(model, patch_px, dense):
    grid = spec(patch_px, dense=dense)
    origins = origins_of(grid, side_px=8 * patch_px)
    found, _, stack = strips_of(model, grid, origins)
    margin = grid.embed_px
    side = grid.window_px + 2 * margin
    whole = PatchEmbed(
        model,
        sensor="sentinel2_l2a",
        window_px=(side, side),
        patch_px=patch_px,
        dates=[p.start.date() for p in periods(2)],
        dtype=torch.float32,
    )
    cut = slice(margin // patch_px, (side - margin) // patch_px)
    for (row, col), got in windows_of(found, grid).items():
        box = Box(zone=TILE.zone, res_m=10, row=row - margin, col=col - margin, height=side, width=side)
        with torch.inference_mode():
            want = whole.patches(assemble.normalised(stack, box, wanted=INPUTS[0])[None])[0, :, cut, cut]
        np.testing.assert_allclose(got, want, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("dense", [1, 2])
def test_a_patchs_bytes_do_not_depend_on_the_tile_or_the_squares_beside_it(model, dense):
    grid = spec(4, dense=dense)
    many, few = origins_of(grid, side_px=96), origins_of(grid, side_px=24)
    want = windows_of(strips_of(model, grid, many)[0], grid)
    got = windows_of(strips_of(model, grid, few)[0], grid)
    assert len(got) < len(want)
    for place, part in got.items():
        assert part.tobytes() == want[place].tobytes(), place


def test_every_patch_is_embedded_once(model):
    grid = spec(4)
    origins = origins_of(grid, side_px=200)
    found, embed, _ = strips_of(model, grid, origins)
    rows = {row // 4 // SQUARE for row, _ in origins} | {(row // 4 + 7) // SQUARE for row, _ in origins}
    cols = {col // 4 // SQUARE for _, col in origins} | {(col // 4 + 7) // SQUARE for _, col in origins}
    assert embed.calls == len(rows) * len(cols)
    assert embed.calls * SQUARE**2 < 0.75 * len(origins) * 8**2  # windows of their own would embed that much
    assert sum(len(strip.windows) for strip in found) == len(origins)


def test_every_call_embeds_as_many_squares(model):
    _, embed, _ = strips_of(model, spec(4), origins_of(spec(4), side_px=200), at_once=3)
    assert {shape[0][0] for shape in embed.shapes} == {3}


def test_nothing_is_embedded_where_no_token_is_visible(model):
    grid = spec(4)
    origins = origins_of(grid)
    box = lattice.read_box(TILE, origins, grid)
    found, embed, _ = strips_of(model, grid, origins, stack=make_stack(box, count=2, holes=((0, box), (1, box))))
    assert embed.calls == 0
    assert not any(strip.visible.any() or strip.patches for strip in found)


def test_a_stack_without_the_pixels_around_its_windows_is_refused(model):
    grid = spec(4)
    origins = origins_of(grid)
    tight = lattice.read_box(TILE, origins, grid).pad(-grid.embed_px)
    with pytest.raises(InvalidInputError, match="read what"):
        strips_of(model, grid, origins, stack=make_stack(tight, count=2))


@pytest.mark.parametrize("version", ["v1", "v1.1", "v1.2", "v1.3"])
def test_an_encoder_gives_the_same_from_pixels_and_from_patches(version):
    model = checkpoint.load(f"random:{version}-toy:0")
    encoder = Encoder(model, window_px=(16, 16), patch_px=4, dates=[p.start.date() for p in periods(3)])
    pixels = torch.randn(2, 3, 12, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        embedded = encoder.embeds[0].patches(pixels)
        assert torch.equal(encoder.from_patches((embedded,)), encoder(pixels))


def test_shifts_come_from_ground_that_is_shifted(model):
    """A vector of the shift (2, 0) is the vector of the same windows over ground that lies 2 px further south."""
    plain, dense = spec(4), spec(4, dense=2)
    settings = EncodeSettings(device="cpu", dtype="float32", attention="sdpa", batch_windows=2, compile="off")
    numerics = session.settle(settings, card=model.card, grid=plain, periods=2)
    run = session.Session(model, grid=dense, periods=periods(2), numerics=numerics, threads=1)
    origins = origins_of(dense, side_px=32)
    stack = make_stack(lattice.read_box(TILE, origins, dense), count=2)
    count = len(origins) // 4
    third = [(row, col) for row, col in origins if (row % 4, col % 4) == (2, 0)]
    assert third == list(origins[2 * count : 3 * count])
    got = run.encode(stack, origins).values[2 * count : 3 * count]
    want = run.encode(stack, third).values
    assert torch.equal(got, want)
    assert not torch.equal(got, run.encode(stack, origins[:count]).values)
