"""A store that grows: every pixel keeps its ground place, whatever the direction and whenever the process dies."""

from __future__ import annotations

import warnings
from datetime import UTC, datetime

import numpy as np
import pytest
import xarray as xr
import zarr

from pipeline.errors import OutputError
from pipeline.types import Tile
from pipeline.write.store import check_objects, create_store, open_store, read_map, read_tile, write_tile, zones

STEPS = (
    "grow:built:utm31",
    "grow:ready",
    "grow:unconsolidated",
    "grow:moved:utm31",
    "grow:placed:utm31",
    "grow:consolidated",
    "grow:cleaned",
)
DIRECTIONS = {
    "north": ((-2002, -1998), (200, 202)),
    "south": ((-2000, -1997), (200, 202)),
    "west": ((-2000, -1998), (197, 202)),
    "east": ((-2000, -1998), (200, 203)),
    "all": ((-2001, -1997), (199, 203)),
    "beside": ((-1998, -1997), (203, 204)),
}


class KilledError(Exception):
    """Stands for the death of the process: nothing after it runs, nothing is cleaned up by the code itself."""


def tile_at(row, col):
    return Tile(zone=31, row=row, col=col, tile_px=256)


@pytest.fixture
def filled(tmp_path, spec, data_of):
    """A store of which three of four tiles are written; gives (path, objects by tile)."""
    path = tmp_path / "store.zarr"
    create_store(path, spec)
    objects = {}
    for row, col in ((-2000, 200), (-2000, 201), (-1999, 201)):
        tile = tile_at(row, col)
        data, crops = data_of(tile)
        objects[tile] = write_tile(path, tile, data, maps=(("crops", crops),))
    return path, objects


def check_pixels(path, objects, data_of):
    for tile, written in objects.items():
        data, crops = data_of(tile)
        codes, reason, n_obs = read_tile(path, tile)
        np.testing.assert_array_equal(codes, data.codes)
        np.testing.assert_array_equal(n_obs, data.n_obs)
        np.testing.assert_array_equal(reason, 0)
        np.testing.assert_array_equal(read_map(path, tile, "crops"), crops)
        check_objects(path, written, tile=tile)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_every_pixel_keeps_its_ground_place(filled, changed, extent_of, data_of, direction):
    path, objects = filled
    rows, cols = DIRECTIONS[direction]
    create_store(path, changed(extents=(extent_of(31, rows=rows, cols=cols),)))
    check_pixels(path, objects, data_of)
    ds = open_store(path)
    assert int((ds.reason == 0).sum()) == 3 * 256 * 256
    tile = tile_at(-1999, 201)
    x_min, y_min, x_max, y_max = tile.box.bounds_m
    found = ds.embeddings.sel(x=slice(x_min, x_max), y=slice(y_max, y_min))
    np.testing.assert_array_equal(found[0].values, data_of(tile)[0].codes)


def test_a_grown_store_accepts_the_new_tiles(filled, changed, extent_of, data_of):
    path, objects = filled
    create_store(path, changed(extents=(extent_of(31, rows=(-2002, -1998), cols=(199, 202)),)))
    tile = tile_at(-2002, 199)
    data, crops = data_of(tile)
    objects[tile] = write_tile(path, tile, data, maps=(("crops", crops),))
    assert dict(objects[tile]).keys() >= {"utm31/embeddings/c/0/0/0/0"}
    check_pixels(path, objects, data_of)


def test_a_smaller_area_takes_nothing_away(filled, changed, extent_of, data_of):
    path, objects = filled
    create_store(path, changed(extents=(extent_of(31, rows=(-2000, -1999), cols=(200, 201)),)))
    assert zones(path)[0].shape == (512, 512)
    check_pixels(path, objects, data_of)


def test_a_new_zone_is_added(filled, changed, extent_of, data_of):
    path, objects = filled
    create_store(path, changed(extents=(extent_of(32, rows=(5, 6), cols=(180, 181)),)))
    check_pixels(path, objects, data_of)
    assert open_store(path, zone=32).rio.crs.to_epsg() == 32632
    assert set(zarr.open_group(str(path), mode="r").group_keys()) == {"utm31", "utm32"}


def test_a_new_time_step_is_appended(filled, spec, changed, data_of):
    path, objects = filled
    later = (datetime(2025, 3, 1, tzinfo=UTC), datetime(2025, 9, 1, tzinfo=UTC))
    create_store(path, changed(times=(later,)))
    check_pixels(path, objects, data_of)
    tile = tile_at(-1999, 200)
    data, crops = data_of(tile)
    write_tile(path, tile, data, time_index=1, maps=(("crops", crops),))
    ds = open_store(path)
    assert list(ds.time.dt.year.values) == [2024, 2025]
    assert int((ds.reason == 0).sum()) == 4 * 256 * 256
    np.testing.assert_array_equal(read_tile(path, tile, time_index=1)[0], data.codes)
    np.testing.assert_array_equal(read_tile(path, tile, time_index=0)[0], -128)


@pytest.mark.parametrize("step", STEPS)
def test_a_growth_killed_after_any_step_is_finished_or_undone(filled, changed, extent_of, data_of, step):
    path, objects = filled
    wanted = changed(extents=(extent_of(31, rows=(-2002, -1998), cols=(199, 202)),))

    def die(passed):
        if passed == step:
            raise KilledError(step)

    with pytest.raises(KilledError):
        create_store(path, wanted, at=die)
    assert open_store(path).sizes["y"] in (512, 1024)
    check_pixels(path, objects, data_of)
    create_store(path, wanted)
    assert open_store(path).sizes["y"] == 1024
    check_pixels(path, objects, data_of)
    assert sorted(p.name for p in path.parent.iterdir()) == ["store.zarr", "store.zarr.lock"]
    group = zarr.open_group(str(path), mode="r")
    assert group.metadata.consolidated_metadata is not None


@pytest.mark.parametrize("step", STEPS)
def test_plain_readers_never_see_pixels_at_a_wrong_place(filled, changed, extent_of, data_of, step):
    path, objects = filled

    def look_and_die(passed):
        if passed == step:
            raise KilledError(step)

    with pytest.raises(KilledError):
        create_store(path, changed(extents=(extent_of(31, rows=(-2002, -1998), cols=(199, 202)),)), at=look_and_die)
    tile = next(iter(objects))
    x_min, y_min, x_max, y_max = tile.box.bounds_m
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Failed to open Zarr store with consolidated")
            ds = xr.open_zarr(str(path), group="utm31", decode_coords="all")
    except (FileNotFoundError, KeyError):
        assert step == "grow:moved:utm31"
        return
    with ds:
        found = ds.embeddings.sel(x=slice(x_min, x_max), y=slice(y_max, y_min))
        np.testing.assert_array_equal(found[0].values, data_of(tile)[0].codes)
    if "utm31" in (group := zarr.open_group(str(path), mode="r")):
        array = group["utm31/embeddings"]
        origin = group["utm31"].attrs["earthpress"]["extent"]
        row, col = tile.box.row - origin["row"], tile.box.col - origin["col"]
        np.testing.assert_array_equal(array[0, :, row : row + 256, col : col + 256], data_of(tile)[0].codes)


def test_no_tile_is_written_into_a_half_grown_store(filled, changed, extent_of, data_of):
    path, _ = filled

    def die(passed):
        if passed == "grow:ready":
            raise KilledError(passed)

    with pytest.raises(KilledError):
        create_store(path, changed(extents=(extent_of(31, rows=(-2002, -1998), cols=(200, 202)),)), at=die)
    tile = tile_at(-2000, 200)
    data, crops = data_of(tile)
    with pytest.raises(OutputError, match="interrupted"):
        write_tile(path, tile, data, maps=(("crops", crops),))
