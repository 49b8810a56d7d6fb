"""A store of one vector per token: the same promises on coarser pixels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import rasterio
import zarr
from rasterio.transform import Affine

from pipeline.errors import InvalidInputError, OutputError
from pipeline.types import Box, Embedding, Tile
from pipeline.write.geotiff import CLASSES_TAG, read_classes, write_cog
from pipeline.write.layout import tile_shards
from pipeline.write.store import check_objects, create_store, open_store, read_map, read_tile, write_tile, zones

SIDE = 64  # tokens of 4 px along a tile of 256 px


@pytest.fixture
def token_spec(spec):
    return replace(spec, grid=replace(spec.grid, token_px=4, stitch="centre"))


def data_at(tile, dims=4):
    """Tokens that depend on the ground place only: ((codes, reason, n_obs), map)."""
    box = tile.box.cover(40)
    rows, cols = np.arange(box.row, box.row_stop)[:, None], np.arange(box.col, box.col_stop)[None, :]
    codes = np.stack([(rows * 31 + cols * 7 + k * 13) % 255 - 127 for k in range(dims)]).astype(np.int8)
    n_obs = ((rows + cols) % 6 + 1).astype(np.uint8)
    int8 = Embedding(codes=codes, reason=np.zeros(box.shape, np.uint8), n_obs=n_obs, box=box, clipped=0.0)
    return int8, ((rows - cols) % 2).astype(np.uint8)


@pytest.fixture
def filled(tmp_path, token_spec):
    """(path, objects by tile) of a store of 2 x 2 tiles of which two are written."""
    path, objects = tmp_path / "store.zarr", {}
    create_store(path, token_spec)
    for row, col in ((-2000, 200), (-1999, 201)):
        tile = Tile(zone=31, row=row, col=col, tile_px=256)
        data, crops = data_at(tile)
        objects[tile] = write_tile(path, tile, data, maps=(("crops", crops),))
    return path, objects


def test_arrays_have_the_side_of_a_token_and_the_place_of_the_ground(filled):
    ds = open_store(filled[0])
    assert ds.embeddings.shape == (1, 4, 2 * SIDE, 2 * SIDE)
    assert ds.rio.transform() == Affine(40, 0, 200 * 2560, 0, -40, 2000 * 2560)
    assert float(ds.x[0]) == 200 * 2560 + 20
    assert float(ds.y[-1]) == 1998 * 2560 + 20
    assert ds.attrs["spatial:shape"] == [2 * SIDE, 2 * SIDE]
    assert ds.attrs["spatial:transform"] == [40.0, 0.0, 512000.0, 0.0, -40.0, 5120000.0]
    assert ds.attrs["spatial:bbox"] == [512000.0, 5114880.0, 517120.0, 5120000.0]
    assert zones(filled[0]) == (Box(zone=31, res_m=40, row=-2000 * 64, col=200 * 64, height=128, width=128),)


def test_the_side_of_a_token_and_the_way_of_stitching_are_recorded(filled):
    attrs = dict(zarr.open_group(str(filled[0]), mode="r").attrs)
    assert attrs["earthpress"]["token_px"] == 4
    assert attrs["earthpress"]["pixel_m"] == 40
    assert attrs["earthpress"]["grid"]["stitch"] == "centre"
    assert attrs["geoemb:gsd"] == 40
    assert "any 10 m pixel of the token" in open_store(filled[0]).n_obs.attrs["long_name"]


def test_a_tile_of_tokens_is_read_back_and_checks(filled):
    path, objects = filled
    for tile, written in objects.items():
        data, crops = data_at(tile)
        codes, reason, n_obs = read_tile(path, tile)
        np.testing.assert_array_equal(codes, data.codes)
        np.testing.assert_array_equal(reason, data.reason)
        np.testing.assert_array_equal(n_obs, data.n_obs)
        np.testing.assert_array_equal(read_map(path, tile, "crops"), crops)
        assert check_objects(path, written, tile=tile) > 0
    ds = open_store(path)
    assert int((ds.reason == 0).sum()) == 2 * SIDE * SIDE
    x_min, y_min, x_max, y_max = tile.box.bounds_m
    found = ds.embeddings.sel(x=slice(x_min, x_max), y=slice(y_max, y_min))
    np.testing.assert_array_equal(found[0].values, data_at(tile)[0].codes)


def test_shards_divide_a_tile_of_tokens():
    tile = Tile(zone=31, row=-1999, col=201, tile_px=256)
    extent = Box(zone=31, res_m=40, row=-2000 * 64, col=200 * 64, height=128, width=128)
    places = tile_shards(tile, extent=extent, shard=32)
    assert [p[:2] for p in places] == [(2, 2), (2, 3), (3, 2), (3, 3)]
    assert places[1][2:] == (slice(0, 32), slice(32, 64))


def test_a_shard_is_as_large_as_tile_and_limit_allow(token_spec):
    assert token_spec.shard_px == SIDE
    wide = replace(token_spec.calibration, scale=(1.0,) * 1024)
    big = replace(token_spec.grid, tile_px=2048)
    extent = Box(zone=31, res_m=10, row=0, col=0, height=2048, width=2048)
    spec = replace(token_spec, dims=1024, calibration=wide, grid=big, extents=(extent,))
    assert spec.shard_px == 512


@pytest.mark.parametrize(("rows", "cols"), [((-2002, -1998), (199, 203)), ((-2001, -1997), (200, 202))])
def test_a_store_of_tokens_grows_and_every_token_keeps_its_place(filled, token_spec, extent_of, rows, cols):
    path, objects = filled
    create_store(path, replace(token_spec, extents=(extent_of(31, rows=rows, cols=cols),)))
    for tile, written in objects.items():
        data, crops = data_at(tile)
        np.testing.assert_array_equal(read_tile(path, tile)[0], data.codes)
        np.testing.assert_array_equal(read_map(path, tile, "crops"), crops)
        check_objects(path, written, tile=tile)
    (box,) = zones(path)
    assert (box.res_m, box.row, box.height) == (40, rows[0] * SIDE, (max(rows[1], -1998) - rows[0]) * SIDE)
    assert open_store(path).embeddings.shape[-2:] == box.shape


def test_pixels_of_another_side_are_refused(filled, data_of):
    tile = next(iter(filled[1]))
    data, crops = data_of(tile)
    with pytest.raises(InvalidInputError, match="the tile of the store is"):
        write_tile(filled[0], tile, data, maps=(("crops", crops),))


@pytest.mark.parametrize("change", [{"token_px": 1}, {"stitch": "blend"}])
def test_a_store_takes_tokens_of_its_own_kind_only(filled, token_spec, change):
    with pytest.raises(OutputError, match="one vector per 40 m, centre"):
        create_store(filled[0], replace(token_spec, grid=replace(token_spec.grid, **change)))


def test_a_map_of_tokens_is_a_geotiff_at_their_side(tmp_path):
    tile = Tile(zone=31, row=-2000, col=200, tile_px=256)
    _, crops = data_at(tile)
    box, classes = tile.box.cover(40), ((0, "bare", "#884400"), (1, "maize", "#ffee00"))
    path = tmp_path / "map.tif"
    tags = ((CLASSES_TAG, '[[0, "bare", "#884400"], [1, "maize", "#ffee00"]]'),)
    write_cog(path, crops, box=box, colours=[(v, c) for v, _, c in classes], tags=tags)
    with rasterio.open(path) as found:
        assert found.res == (40, 40)
        assert found.bounds == box.bounds_m
    values, place, names = read_classes(path)
    np.testing.assert_array_equal(values, crops)
    assert (place, names) == (box, classes)
