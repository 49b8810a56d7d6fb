"""The classification of a cell from overviews."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import rasterio
from files import scene_of, write_cog

from pipeline.errors import DataError, InvalidInputError
from pipeline.read.access import Access
from pipeline.read.overviews import read_classes, read_coarsest
from pipeline.types import Asset, Box

if TYPE_CHECKING:
    from affine import Affine

LOCAL = Access(allow_local=True)
FILE = Box(zone=32, res_m=20, row=-275_002, col=20_001, height=549, width=549)
CELL = Box(zone=32, res_m=20, row=-274_944, col=20_096, height=256, width=256)


def classes(box: Box = FILE, *, seed: int = 0) -> np.ndarray:
    """Patches of 9 pixels of SCL classes 2..11."""
    rng = np.random.default_rng(seed)
    small = rng.integers(2, 12, (box.height // 9 + 1, box.width // 9 + 1)).astype(np.uint8)
    return small.repeat(9, axis=0).repeat(9, axis=1)[: box.height, : box.width]


def file_of(path, values, *, box: Box = FILE, factors=(2, 4, 8), mode="nearest", **options):
    """A tiled file with chosen overviews."""
    write_cog(path, values, box=box, driver="GTiff", **options)
    if factors:
        with rasterio.open(path, "r+") as dataset:
            dataset.build_overviews(factors, rasterio.enums.Resampling[mode])
    return path


def scene(path, scene_id: str = "S"):
    return scene_of(scene_id, Asset(band="SCL", href=str(path)))


def level(path, factor: int) -> tuple[np.ndarray, Affine]:
    with rasterio.open(path) as dataset:
        at = dataset.overviews(1).index(factor)
    with rasterio.open(path, overview_level=at) as dataset:
        return dataset.read(1), dataset.transform


def picked(values: np.ndarray, transform: Affine, box: Box) -> np.ndarray:
    """The pixels of a raster in which the centres of a lattice box lie; 0 outside."""
    x = (np.arange(box.col, box.col_stop) + 0.5) * box.res_m
    y = -(np.arange(box.row, box.row_stop) + 0.5) * box.res_m
    cols = np.floor((x - transform.c) / transform.a + 1e-9).astype(int)
    rows = np.floor((y - transform.f) / transform.e + 1e-9).astype(int)
    out = np.zeros(box.shape, np.uint8)
    ok = np.ix_((rows >= 0) & (rows < values.shape[0]), (cols >= 0) & (cols < values.shape[1]))
    out[ok] = values[np.ix_(rows[(rows >= 0) & (rows < values.shape[0])], cols[(cols >= 0) & (cols < values.shape[1])])]
    return out


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_a_cell_is_read_from_the_overview_of_its_factor(tmp_path, factor):
    path = file_of(tmp_path / "scl.tif", classes())
    with rasterio.open(path, "r+") as dataset:  # full resolution is spoilt: whoever reads it shows
        assert dataset.overviews(1) == [2, 4, 8]
        dataset.write(np.full(FILE.shape, 99, np.uint8), 1)
    notes = []
    got = read_classes(scene(path), box=CELL, factor=factor, access=LOCAL, note=notes.append)
    assert (got.dtype, got.shape) == (np.uint8, (256 // factor, 256 // factor))
    np.testing.assert_array_equal(got, picked(*level(path, factor), CELL.cover(20 * factor)))
    assert notes == []


def test_factor_1_is_full_resolution(tmp_path):
    values = classes()
    path = file_of(tmp_path / "scl.tif", values)
    got = read_classes(scene(path), box=CELL, factor=1, access=LOCAL)
    np.testing.assert_array_equal(got, values[CELL.slices_in(FILE)])


def test_a_file_without_overviews_is_thinned_to_its_nearest_pixels_and_says_so(tmp_path):
    values = classes()
    path = file_of(tmp_path / "scl.tif", values, factors=())
    notes = []
    got = read_classes(scene(path), box=CELL, factor=4, access=LOCAL, note=notes.append)
    np.testing.assert_array_equal(got, picked(values, FILE.transform, CELL.cover(80)))
    assert notes == ["classification of S thinned by 4 from overview 1 (1: full resolution)"]


def test_the_next_finer_overview_is_thinned_where_the_factor_is_missing(tmp_path):
    path = file_of(tmp_path / "scl.tif", classes(), factors=(2, 16))
    notes = []
    got = read_classes(scene(path), box=CELL, factor=8, access=LOCAL, note=notes.append)
    np.testing.assert_array_equal(got, picked(*level(path, 2), CELL.cover(160)))
    assert notes == ["classification of S thinned by 8 from overview 2 (1: full resolution)"]


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_a_part_of_a_cell_has_the_pixels_of_the_cell(tmp_path, factor):
    path = file_of(tmp_path / "scl.tif", classes())
    part = Box(zone=32, res_m=20, row=CELL.row + 64, col=CELL.col + 24, height=128, width=200)
    whole = read_classes(scene(path), box=CELL, factor=factor, access=LOCAL)
    rows, cols = part.cover(20 * factor).slices_in(CELL.cover(20 * factor))
    np.testing.assert_array_equal(read_classes(scene(path), box=part, factor=factor, access=LOCAL), whole[rows, cols])


@pytest.mark.parametrize("factor", [1, 4])
def test_a_cell_that_the_file_covers_in_part_is_0_elsewhere(tmp_path, factor):
    path = file_of(tmp_path / "scl.tif", classes())
    cell = Box(zone=32, res_m=20, row=CELL.row, col=CELL.col - 200, height=256, width=256)
    got = read_classes(scene(path), box=cell, factor=factor, access=LOCAL)
    inside = (FILE.col - cell.col) // factor
    assert not got[:, : inside - 1].any()
    assert got[:, inside + 1 :].all()


@pytest.mark.parametrize("factor", [1, 4])
def test_the_classification_of_another_zone_is_warped_by_nearest_neighbour(tmp_path, factor):
    far = Box(zone=31, res_m=20, row=-274_600, col=37_000, height=400, width=400)
    path = file_of(tmp_path / "scl.tif", np.full(far.shape, 4, np.uint8), box=far)
    x, y = rasterio.warp.transform("EPSG:32631", "EPSG:32632", [743_000], [5_489_000])
    cell = Box(zone=32, res_m=20, row=int(-y[0] // 160) * 8, col=int(x[0] // 160) * 8, height=128, width=128)
    got = read_classes(scene(path), box=cell, factor=factor, access=LOCAL)
    assert set(np.unique(got)) <= {0, 4}
    assert (got == 4).mean() > 0.9


def test_declared_nodata_becomes_0(tmp_path):
    values = classes()
    values[:300] = 255
    path = file_of(tmp_path / "scl.tif", values, nodata=255)
    got = read_classes(scene(path), box=CELL, factor=4, access=LOCAL)
    assert not got[:50].any()
    assert got[62:].all()


def test_a_broken_classification_is_read_from_an_alternate(tmp_path):
    path = file_of(tmp_path / "scl.tif", classes())
    torn = tmp_path / "torn.tif"
    torn.write_text("no such page")  # what some servers send instead of a file
    both = replace(scene(torn, "A"), alternates=(scene(path, "B"),))
    got = read_classes(both, box=CELL, factor=4, access=LOCAL)
    np.testing.assert_array_equal(got, read_classes(scene(path), box=CELL, factor=4, access=LOCAL))
    with pytest.raises(DataError, match="item A, band SCL"):
        read_classes(scene(torn, "A"), box=CELL, factor=4, access=LOCAL)


@pytest.mark.parametrize("factor", [3, 16])
def test_other_factors_are_refused(tmp_path, factor):
    with pytest.raises(InvalidInputError, match=f"thinned by {factor}"):
        read_classes(scene("x.tif"), box=CELL, factor=factor, access=LOCAL)


def test_a_box_that_the_factor_does_not_divide_is_refused():
    with pytest.raises(InvalidInputError, match="thinned by 4"):
        read_classes(scene("x.tif"), box=CELL.pad(1), factor=4, access=LOCAL)


def test_floats_are_no_classes(tmp_path):
    path = file_of(tmp_path / "scl.tif", np.full(FILE.shape, 4, np.float32), factors=())
    with pytest.raises(DataError, match="classes must be integers"):
        read_classes(scene(path), box=CELL, factor=1, access=LOCAL)


@pytest.mark.parametrize(("factors", "shape"), [((2, 4, 8), (138, 138)), ((), (549, 549))])
def test_a_whole_file_is_read_from_its_coarsest_overview_of_100_pixels_or_more(tmp_path, factors, shape):
    path = file_of(tmp_path / "b.tif", classes(), factors=factors)
    with rasterio.open(path) as dataset:
        assert read_coarsest(dataset, 1).shape == shape


def test_a_large_file_without_overviews_is_thinned(tmp_path):
    box = Box(zone=32, res_m=10, row=0, col=0, height=1500, width=3000)
    path = file_of(tmp_path / "b.tif", np.zeros(box.shape, np.uint16), box=box, factors=())
    with rasterio.open(path) as dataset:
        assert read_coarsest(dataset, 1).shape == (512, 1024)
