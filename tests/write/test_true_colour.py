"""True colours beside the embeddings: a layer with pixels of its own, which a store may have or not."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
import rioxarray  # noqa: F401  (gives xarray its .rio)
import zarr
from rasterio.transform import Affine

from pipeline.errors import InvalidInputError
from pipeline.types import COLOUR_M, Box, Period, Quality, Tile
from pipeline.write import layout, true_colour
from pipeline.write.store import array_names, check_objects, create_store, open_store, read_box, read_tile, write_tile

PX = 512
LATER = (datetime(2025, 3, 1, tzinfo=UTC), datetime(2025, 9, 1, tzinfo=UTC))
PERIODS = 2


def periods_in(step):
    edges = [step[0] + timedelta(days=30 * k) for k in range(PERIODS + 1)]
    return tuple(Period(index=k, start=edges[k], end=edges[k + 1]) for k in range(PERIODS))


def tile_at(row, col):
    return Tile(zone=31, row=row, col=col, tile_px=PX)


def extent(rows, cols):
    height, width = (rows[1] - rows[0]) * PX, (cols[1] - cols[0]) * PX
    return Box(zone=31, res_m=10, row=rows[0] * PX, col=cols[0] * PX, height=height, width=width)


def colours_of(tile):
    """Values that depend on ground place, period and channel only."""
    box = tile.box.cover(COLOUR_M)
    rows, cols = np.arange(box.row, box.row_stop)[:, None], np.arange(box.col, box.col_stop)[None, :]
    lead = np.arange(PERIODS * 3).reshape(PERIODS, 3, 1, 1) * 37
    return ((rows * 5 + cols * 3 + lead) % 255 + 1).astype(np.uint8)


@pytest.fixture(scope="module")
def own_spec(spec):
    """Two by two tiles of 512 px, two periods, no map, with true colours."""
    return replace(
        spec,
        grid=replace(spec.grid, tile_px=PX),
        maps=(),
        extents=(extent((-1000, -998), (100, 102)),),
        periods=periods_in(spec.times[0]),
        true_colour=True,
    )


@pytest.fixture(scope="module")
def write(data_of):
    """Write one tile; returns its objects."""

    def run(path, tile, *, time_index=0, colours=True):
        box, shape = tile.box.cover(2560), (PERIODS, *tile.box.cover(2560).shape)
        zeros = np.zeros(shape, np.uint8)
        quality = Quality(box=box, clear_pct=zeros, scenes=zeros, first_day=zeros.astype(np.uint16))
        given = colours_of(tile) if colours is True else colours
        made = replace(data_of(tile)[0], quality=(quality,), colours=given)
        return write_tile(path, tile, made, time_index=time_index)

    return run


@pytest.fixture
def store(tmp_path, own_spec):
    """An empty store with the layer."""
    path = tmp_path / "store.zarr"
    create_store(path, own_spec)
    return path


def found(path, tile, *, time_index=0):
    return read_box(path, tile.box.cover(COLOUR_M), "rgb", time_index=time_index)


def test_colours_are_read_back_at_their_place_and_hashed(store, write):
    tile = tile_at(-999, 101)
    objects = write(store, tile)
    np.testing.assert_array_equal(found(store, tile), colours_of(tile))
    assert not found(store, tile_at(-1000, 100)).any()
    mine = [key for key, digest in objects if "/rgb/" in key and digest]
    assert mine == ["utm31/rgb/c/0/0/0/1/1"]
    assert check_objects(store, objects, tile=tile) > 0


def test_a_tile_is_one_object_of_80_m_pixels(store):
    array = zarr.open_group(str(store), mode="r")["utm31/rgb"]
    assert array.metadata.dimension_names == ("time", "period", "channel", "rgb_y", "rgb_x")
    side = PX // 8
    assert (array.shape, array.chunks, array.shards) == (
        (1, PERIODS, 3, 2 * side, 2 * side),
        (1, PERIODS, 3, side, side),
        None,
    )


def test_readers_find_the_pixels_of_both_resolutions(store, write):
    write(store, tile_at(-1000, 100))
    data = open_store(store)
    rgb = data["rgb"].rio.set_spatial_dims("rgb_x", "rgb_y")
    west, north = 100 * PX * 10, 1000 * PX * 10
    assert rgb.rio.crs.to_epsg() == 32631
    assert rgb.rio.transform() == Affine(80, 0, west, 0, -80, north)
    assert data["embeddings"].rio.transform() == Affine(10, 0, west, 0, -10, north)
    assert data["embeddings"].rio.crs.to_epsg() == 32631
    assert rgb.dtype == np.uint8
    assert list(data.channel.values) == ["red", "green", "blue"]
    assert rgb.attrs["spatial:transform"] == [80.0, 0.0, west, 0.0, -80.0, north]


def test_values_say_which_reflectance_they_are(store):
    data = open_store(store)
    assert "reflectance = (value - 1) * 0.00118110" in data.rgb.attrs["comment"]
    shares = true_colour.reflectance(np.array([0, 1, 255], np.uint8))
    np.testing.assert_allclose(shares, [np.nan, 0, 0.3], rtol=1e-6)


def test_a_run_without_colours_leaves_no_object(store, write):
    tile = tile_at(-1000, 100)
    objects = write(store, tile, colours=None)
    assert [digest for key, digest in objects if "/rgb/" in key] == [""]
    check_objects(store, objects, tile=tile)


@pytest.mark.parametrize("wrong", [np.zeros((PERIODS, 3, 9, 9), np.uint8), np.zeros((PERIODS, 3, 64, 64), np.float32)])
def test_colours_of_another_shape_are_refused(store, write, wrong):
    with pytest.raises(InvalidInputError, match="true colours are"):
        write(store, tile_at(-1000, 100), colours=wrong)


def test_a_store_without_the_layer_goes_on_without_it(tmp_path, own_spec, write):
    path, tile = tmp_path / "old.zarr", tile_at(-1000, 100)
    create_store(path, replace(own_spec, true_colour=False))
    first = write(path, tile)
    create_store(path, replace(own_spec, extents=(extent((-1001, -998), (100, 102)),)))  # grows north
    assert "rgb" not in array_names(path, 31)
    check_objects(path, first, tile=tile)
    check_objects(path, write(path, tile), tile=tile)


def test_growth_keeps_colours_at_their_ground_even_for_a_run_without(store, own_spec, write):
    tile = tile_at(-1000, 100)
    objects = write(store, tile)
    wider = extent((-1001, -998), (99, 102))
    grown = replace(own_spec, extents=(wider,), times=(LATER,), periods=periods_in(LATER), true_colour=False)
    create_store(store, grown)
    np.testing.assert_array_equal(found(store, tile), colours_of(tile))
    assert not found(store, tile, time_index=1).any()
    check_objects(store, objects, tile=tile)
    write(store, tile, time_index=1)
    np.testing.assert_array_equal(found(store, tile, time_index=1), colours_of(tile))
    np.testing.assert_array_equal(read_tile(store, tile)[0], read_tile(store, tile, time_index=1)[0])


def test_the_layer_is_no_part_of_what_a_store_is(own_spec):
    assert layout.identity(own_spec) == layout.identity(replace(own_spec, true_colour=False))


def test_a_store_of_tokens_has_pixels_of_80_m_too(tmp_path, own_spec):
    path = tmp_path / "tokens.zarr"
    create_store(path, replace(own_spec, grid=replace(own_spec.grid, token_px=4)))
    array = zarr.open_group(str(path), mode="r")["utm31/rgb"]
    assert array.shape[-2:] == (PX // 4, PX // 4)
