"""Sub-patch shifts and domains as fields: every vector lies in the middle of its patch, on one plane."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from pipeline.encode.stitch import by_shift, domain_field, stitch_shifts, to_pixels
from pipeline.errors import InvalidInputError
from pipeline.plan import domains, grid
from pipeline.types import Box, GridSpec, ModelCard, Tile

TILE = Tile(zone=31, row=-1, col=2, tile_px=256)
BLOCK = ((0, 0),)
NANO = ModelCard(
    name="", version="v1.2", size="nano", dims=128, depth=4, heads=8, parameters=0, sensors=(), sha256="", trained=False
)
WINDOWS = {
    "blend": {"overlap_px": 12},
    "blend, more than half": {"overlap_px": 20},
    "centre": {"overlap_px": 8, "stitch": "centre"},
}


def windows(name: str, *, patch_px: int, dense: int) -> GridSpec:
    scaled = {key: value * patch_px // 4 if key == "overlap_px" else value for key, value in WINDOWS[name].items()}
    return GridSpec(patch_px=patch_px, window_px=8 * patch_px, tile_px=256, dense=dense, **scaled)


def plane(origins, spec: GridSpec, first: int, count: int) -> torch.Tensor:
    """Vectors that are the place of the middle of their patch: (window, row, col, 2), 10 m pixels."""
    steps = (np.arange(first, first + count) + 0.5) * spec.patch_px
    rows, cols = np.array([r for r, _ in origins]), np.array([c for _, c in origins])
    down = np.broadcast_to((rows[:, None] + steps)[:, :, None], (len(origins), count, count))
    across = np.broadcast_to((cols[:, None] + steps)[:, None, :], (len(origins), count, count))
    return torch.from_numpy(np.stack([down, across], axis=-1).astype(np.float32))


def pixel_centres(box: Box) -> np.ndarray:
    rows, cols = np.mgrid[box.row : box.row_stop, box.col : box.col_stop]
    return np.stack([rows, cols], axis=-1) + 0.5


@pytest.mark.parametrize(("patch_px", "dense"), [(4, 1), (4, 2), (8, 2), (8, 4), (4, 4), (2, 2)])
@pytest.mark.parametrize("name", WINDOWS)
def test_pixels_get_the_plane_at_their_centres(name, patch_px, dense):
    spec = windows(name, patch_px=patch_px, dense=dense)
    origins = grid.tile_windows(TILE, BLOCK, spec)
    values = plane(origins, spec, 0, 8)
    box = TILE.box.pad(patch_px).cover(10 * patch_px)
    found = stitch_shifts(values, np.ones(values.shape[:3], np.bool_), origins=origins, grid=spec, box=box)
    assert found.box.res_m == 10 * spec.step_px
    pixels = to_pixels(found, np.ones(TILE.box.shape, np.bool_), TILE.box)
    assert pixels.valid.all()
    np.testing.assert_allclose(pixels.values, pixel_centres(TILE.box), atol=2e-3)


@pytest.mark.parametrize(("patch_px", "dense"), [(4, 1), (4, 2), (8, 2), (1, 1)])
def test_the_field_of_a_core_is_the_plane_too(patch_px, dense):
    spec = domains.settle_domain(NANO, patch_px=patch_px, tile_px=256, device="cpu", core_px=256, dense=dense)
    origins = grid.tile_windows(TILE, BLOCK, spec)
    values = plane(origins, spec, *spec.kept)
    valid = np.ones(values.shape[:3], np.bool_)
    found = domain_field(values, valid, origins=origins, grid=spec, box=TILE.box)
    pixels = to_pixels(found, np.ones(TILE.box.shape, np.bool_), TILE.box)
    assert pixels.valid.all()
    np.testing.assert_allclose(pixels.values, pixel_centres(TILE.box), atol=2e-3)


def test_pixels_whose_shifted_tokens_are_missing_get_the_rest():
    spec = windows("blend", patch_px=4, dense=2)
    origins = grid.tile_windows(TILE, BLOCK, spec)
    values, valid = plane(origins, spec, 0, 8), np.ones((len(origins), 8, 8), np.bool_)
    south_east = np.array([(row % 4, col % 4) == (2, 2) for row, col in origins])
    valid[south_east] = False
    values[torch.from_numpy(south_east)] = torch.nan
    box = TILE.box.pad(4).cover(40)
    found = stitch_shifts(values, valid, origins=origins, grid=spec, box=box)
    assert found.valid.mean() == 0.75
    pixels = to_pixels(found, np.ones(TILE.box.shape, np.bool_), TILE.box)
    assert pixels.valid.all()
    assert np.abs(pixels.values.numpy() - pixel_centres(TILE.box)).max() < 2  # within a step of the finer lattice


def test_windows_that_are_not_given_shift_by_shift_are_refused():
    spec = windows("blend", patch_px=4, dense=2)
    origins = grid.tile_windows(TILE, BLOCK, spec)
    shifts = [part for part, _ in by_shift(origins, spec)]
    assert [origins[part.start] for part in shifts] == [
        (origins[0][0] + a, origins[0][1] + b) for a, b in product((0, 2), repeat=2)
    ]
    for wrong in (sorted(origins), origins[:-1]):
        with pytest.raises(InvalidInputError, match="shift by shift"):
            by_shift(wrong, spec)


def test_a_core_without_its_domain_is_refused():
    spec = domains.settle_domain(NANO, patch_px=4, tile_px=256, device="cpu")
    origins = grid.tile_windows(TILE, BLOCK, spec)
    values = plane(origins, spec, *spec.kept)
    east = Box(zone=31, res_m=10, row=TILE.box.row, col=TILE.box.col + 256, height=256, width=256)
    with pytest.raises(InvalidInputError, match="no domain"):
        domain_field(values, np.ones(values.shape[:3], np.bool_), origins=origins, grid=spec, box=east)
