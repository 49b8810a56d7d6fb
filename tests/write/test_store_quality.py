"""Layers about the composites: one value per block, beside the embeddings and with the same promises."""

from __future__ import annotations

import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
import rioxarray  # noqa: F401  (gives xarray its .rio)
import xarray as xr
import zarr
from rasterio.transform import Affine

from pipeline.errors import InvalidInputError, OutputError
from pipeline.types import NO_CLEAR, Box, Period, Quality, Tile
from pipeline.write import layout
from pipeline.write.store import check_objects, create_store, open_store, read_tile, write_tile

PX = 512
SIDE = 2
SENSORS = ("sentinel2_l2a", "sentinel1")
LATER = (datetime(2025, 3, 1, tzinfo=UTC), datetime(2025, 9, 1, tzinfo=UTC))
STEPS = ("grow:built:utm31", "grow:ready", "grow:moved:utm31", "grow:placed:utm31", "grow:cleaned")


def periods_in(step, *, count=3):
    edges = [step[0] + timedelta(days=30 * k) for k in range(count + 1)]
    return tuple(Period(index=k, start=edges[k], end=edges[k + 1]) for k in range(count))


def tile_at(row, col, tile_px=PX):
    return Tile(zone=31, row=row, col=col, tile_px=tile_px)


def extent(rows, cols, tile_px=PX):
    n = tile_px
    height, width = (rows[1] - rows[0]) * n, (cols[1] - cols[0]) * n
    return Box(zone=31, res_m=10, row=rows[0] * n, col=cols[0] * n, height=height, width=width)


def quality_of(tile, *, sensors=SENSORS, periods=3):
    """Values that depend on ground place, sensor and period only."""
    box = tile.box.cover(2560)
    rows, cols = np.arange(box.row, box.row_stop)[:, None], np.arange(box.col, box.col_stop)[None, :]
    place = (rows * 5 + cols * 3)[None] + np.arange(periods)[:, None, None] * 17
    return tuple(
        Quality(
            box=box,
            clear_pct=((place + 29 * k) % 101).astype(np.uint8),
            scenes=((place + k) % 7 + 1).astype(np.uint8),
            first_day=((place + 1000 * k) % 3000 + 19000).astype(np.uint16),
        )
        for k in range(len(sensors))
    )


@pytest.fixture(scope="module")
def own_spec(spec):
    """Two by two tiles of 2 x 2 blocks, two sensors, three periods, no map."""
    grid = replace(spec.grid, tile_px=PX)
    box = extent((-1000, -998), (100, 102))
    return replace(spec, grid=grid, maps=(), extents=(box,), sensors=SENSORS, periods=periods_in(spec.times[0]))


@pytest.fixture(scope="module")
def write(data_of):
    """Write one tile with its quality; returns its objects."""

    def run(path, tile, *, time_index=0, quality=None):
        wanted = quality_of(tile) if quality is None else quality
        return write_tile(path, tile, replace(data_of(tile)[0], quality=wanted), time_index=time_index)

    return run


@pytest.fixture(scope="module")
def made(tmp_path_factory, own_spec, write):
    """A store of which two of four tiles are written, not to be changed; gives (path, objects by tile)."""
    path = tmp_path_factory.mktemp("quality") / "store.zarr"
    create_store(path, own_spec)
    return path, {tile: write(path, tile) for tile in (tile_at(-1000, 100), tile_at(-999, 101))}


@pytest.fixture
def filled(tmp_path, made):
    """A copy of ``made`` for one test."""
    path = tmp_path / "store.zarr"
    shutil.copytree(made[0], path)
    return path, dict(made[1])


def at_ground(ds, name, tile):
    x_min, y_min, x_max, y_max = tile.box.bounds_m
    return ds[name].sel(block_x=slice(x_min, x_max), block_y=slice(y_max, y_min)).values


def check_quality(path, objects, *, time_index=0):
    with xr.open_zarr(str(path), group="utm31", decode_coords="all", decode_times=False, mask_and_scale=False) as ds:
        for tile, written in objects.items():
            for name in ("clear_pct", "scenes", "first_day"):
                want = np.stack([getattr(one, name) for one in quality_of(tile)])
                found = at_ground(ds, f"qa_{name}", tile)[time_index]
                np.testing.assert_array_equal(found, want)
                assert found.dtype == want.dtype
            check_objects(path, written, tile=tile)


def test_every_sensor_and_period_is_read_back_at_its_ground_place(filled):
    path, objects = filled
    check_quality(path, objects)
    array = zarr.open_group(str(path), mode="r")["utm31/qa_first_day"]
    assert array.metadata.dimension_names == ("time", "sensor", "period", "block_y", "block_x")
    assert (array.shape, array.chunks, array.shards) == ((1, 2, 3, 4, 4), (1, 2, 3, 2, 2), None)
    want = np.stack([one.first_day for one in quality_of(tile_at(-999, 101))])
    np.testing.assert_array_equal(array[0, :, :, 2:, 2:], want)


def test_axes_say_sensor_period_and_centre_of_the_block(filled, own_spec):
    ds = open_store(filled[0])
    assert list(ds.sensor.values) == list(SENSORS)
    assert ds.sensor.dtype == object
    assert ds.sensor.attrs["long_name"]
    assert list(ds.period.values) == [0, 1, 2]
    starts = [np.datetime64(p.start.replace(tzinfo=None)) for p in own_spec.periods]
    ends = [np.datetime64(p.end.replace(tzinfo=None)) for p in own_spec.periods]
    assert {"period_start", "period_end"} <= set(ds.qa_scenes.coords)
    assert ds.period_start.dims == ("time", "period")
    assert list(ds.period_start.values[0]) == starts
    assert list(ds.period_end.values[0]) == ends
    assert float(ds.block_x[0]) == 100 * PX * 10 + 1280
    assert float(ds.block_y[0]) == 1000 * PX * 10 - 1280
    assert float(ds.block_y[1] - ds.block_y[0]) == -2560
    assert ds.qa_scenes.sel(sensor="sentinel1").dims == ("time", "period", "block_y", "block_x")


def test_values_say_what_they_mean(filled):
    ds = open_store(filled[0])
    assert ds.qa_clear_pct.dtype == np.uint8
    assert ds.qa_clear_pct.attrs["units"] == "percent"
    assert ds.qa_clear_pct.attrs["nodata"] == NO_CLEAR
    for name in ("qa_clear_pct", "qa_scenes", "qa_first_day"):
        assert ds[name].attrs["long_name"]
        assert ds[name].attrs["comment"]
        assert ds[name].attrs["spatial:transform"] == [2560.0, 0.0, 512000.0, 0.0, -2560.0, 5120000.0]
        assert ds[name].attrs["spatial:shape"] == [4, 4]


def test_the_first_day_is_a_date_and_none_where_there_was_no_scene(filled):
    ds = open_store(filled[0])
    tile = tile_at(-1000, 100)
    days = at_ground(ds, "qa_first_day", tile)[0]
    want = np.stack([one.first_day for one in quality_of(tile)])
    np.testing.assert_array_equal(days, np.datetime64("1970-01-01") + want.astype("timedelta64[D]"))
    assert np.isnat(at_ground(ds, "qa_first_day", tile_at(-1000, 101))).all()


def test_blocks_and_pixels_both_have_their_transform_and_crs(filled):
    ds = open_store(filled[0])
    assert ds.rio.crs.to_epsg() == 32631
    assert ds.embeddings.rio.transform() == Affine(10, 0, 512000, 0, -10, 5120000)
    blocks = ds.qa_clear_pct[0, 0].rio.set_spatial_dims("block_x", "block_y")
    assert blocks.rio.crs.to_epsg() == 32631
    assert blocks.rio.transform() == Affine(2560, 0, 512000, 0, -2560, 5120000)


def test_dequantised_embeddings_leave_the_quality_as_it_is(filled):
    plain, values = open_store(filled[0]), open_store(filled[0], dequantise=True)
    assert values.embeddings.dtype == np.float32
    xr.testing.assert_identical(values.qa_clear_pct.compute(), plain.qa_clear_pct.compute())


def test_a_tile_is_one_object_of_every_layer(filled):
    path, objects = filled
    names = ("qa_clear_pct", "qa_first_day", "qa_scenes")
    found = [key for key, digest in objects[tile_at(-999, 101)] if "/qa_" in key and digest]
    assert found == [f"utm31/{name}/c/0/0/0/1/1" for name in names]
    on_disk = {p.relative_to(path).as_posix() for name in names for p in (path / "utm31" / name / "c").rglob("*")}
    assert {key for own in objects.values() for key, _ in own if "/qa_" in key} == {
        key for key in on_disk if (path / key).is_file()
    }


def test_metadata_is_consolidated(filled):
    group = zarr.open_group(str(filled[0]), mode="r")
    assert "utm31/qa_scenes" in group.metadata.consolidated_metadata.flattened_metadata


def test_unwanted_blocks_say_that_nothing_is_known(tmp_path, own_spec, write):
    create_store(tmp_path / "s.zarr", own_spec)
    tile = tile_at(-1000, 100)
    cut = (slice(None), 0, 1)
    holes = []
    for one in quality_of(tile):
        clear, scenes, first_day = (a.copy() for a in (one.clear_pct, one.scenes, one.first_day))
        clear[cut], scenes[cut], first_day[cut] = NO_CLEAR, 0, 0
        holes.append(replace(one, clear_pct=clear, scenes=scenes, first_day=first_day))
    check_objects(tmp_path / "s.zarr", write(tmp_path / "s.zarr", tile, quality=tuple(holes)), tile=tile)
    ds = open_store(tmp_path / "s.zarr")
    assert (ds.qa_clear_pct.values == NO_CLEAR).sum() == 2 * 3 * (16 - 3)
    assert (ds.qa_scenes.values == 0).sum() == 2 * 3 * (16 - 3)
    assert (ds.qa_clear_pct.values[0, :, :, 0, 1] == NO_CLEAR).all()
    np.testing.assert_array_equal(ds.qa_clear_pct.values[0, 1, :, 1, 1], quality_of(tile)[1].clear_pct[:, 1, 1])


def test_a_tile_of_which_nothing_is_known_has_no_object_and_the_older_one_is_gone(filled, write):
    path, objects = filled
    tile = tile_at(-1000, 100)
    nothing = tuple(
        replace(
            one,
            clear_pct=np.full_like(one.clear_pct, NO_CLEAR),
            scenes=np.zeros_like(one.scenes),
            first_day=np.zeros_like(one.first_day),
        )
        for one in quality_of(tile)
    )
    after = dict(write(path, tile, quality=nothing))
    for key, digest in objects[tile]:
        assert digest
        assert (path / key).exists() == ("/qa_" not in key)
        assert (after[key] == "") == ("/qa_" in key)
    check_objects(path, tuple(after.items()), tile=tile)
    check_quality(path, {tile_at(-999, 101): objects[tile_at(-999, 101)]})


def test_a_tile_of_one_block_has_one_value(tmp_path, own_spec, data_of):
    grid = replace(own_spec.grid, tile_px=256)
    create_store(tmp_path / "s.zarr", replace(own_spec, grid=grid, extents=(extent((-4, -2), (7, 9), 256),)))
    objects = {}
    for place in ((-4, 8), (-3, 7)):
        tile = tile_at(*place, 256)
        objects[tile] = write_tile(tmp_path / "s.zarr", tile, replace(data_of(tile)[0], quality=quality_of(tile)))
    check_quality(tmp_path / "s.zarr", objects)
    assert open_store(tmp_path / "s.zarr").qa_scenes.shape == (1, 2, 3, 2, 2)


def test_a_store_of_tokens_has_the_same_blocks(tmp_path, own_spec, data_of):
    grid = replace(own_spec.grid, token_px=4)
    create_store(tmp_path / "s.zarr", replace(own_spec, grid=grid))
    tile = tile_at(-999, 101)
    data, _ = data_of(tile)
    tokens = replace(
        data,
        codes=data.codes[:, ::4, ::4],
        reason=data.reason[::4, ::4],
        n_obs=data.n_obs[::4, ::4],
        box=tile.box.cover(40),
        quality=quality_of(tile),
    )
    check_quality(tmp_path / "s.zarr", {tile: write_tile(tmp_path / "s.zarr", tile, tokens)})


@pytest.mark.parametrize(
    ("rows", "cols"),
    [((-1002, -998), (100, 102)), ((-1000, -998), (97, 102)), ((-1000, -997), (100, 103)), ((-1001, -997), (99, 103))],
)
def test_growth_keeps_every_value_at_its_ground_place(filled, own_spec, write, rows, cols):
    path, objects = filled
    create_store(path, replace(own_spec, extents=(extent(rows, cols),)))
    check_quality(path, objects)
    ds = open_store(path)
    assert int((ds.qa_scenes != 0).sum()) == len(objects) * 2 * 3 * SIDE**2
    assert float(ds.block_x[0]) == cols[0] * PX * 10 + 1280
    assert ds.qa_scenes.rio.set_spatial_dims("block_x", "block_y").rio.transform().f == -rows[0] * PX * 10
    corner = tile_at(rows[0], cols[1] - 1)
    objects[corner] = write(path, corner)
    check_quality(path, objects)


def test_growth_moves_tiles_of_several_shards_and_their_one_object_of_blocks(tmp_path, own_spec, write, monkeypatch):
    monkeypatch.setattr(layout, "MAX_SHARD_BYTES", own_spec.dims * 256**2)
    path, tile = tmp_path / "s.zarr", tile_at(-999, 101)
    create_store(path, own_spec)
    objects = {tile: write(path, tile)}
    assert sum("/embeddings/" in key for key, _ in objects[tile]) == 4 * sum(
        "/qa_scenes/" in k for k, _ in objects[tile]
    )
    create_store(path, replace(own_spec, extents=(extent((-1001, -998), (99, 102)),)))
    check_quality(path, objects)


@pytest.mark.parametrize("step", STEPS)
def test_a_growth_killed_after_any_step_keeps_the_quality(filled, own_spec, step):
    path, objects = filled
    wanted = replace(own_spec, extents=(extent((-1002, -998), (99, 102)),))

    def die(passed):
        if passed == step:
            raise InterruptedError(step)

    with pytest.raises(InterruptedError):
        create_store(path, wanted, at=die)
    open_store(path)
    check_quality(path, objects)
    create_store(path, wanted)
    check_quality(path, objects)
    assert open_store(path).sizes["block_y"] == 8


def test_a_new_time_step_brings_its_own_periods(filled, own_spec, write):
    path, objects = filled
    create_store(path, replace(own_spec, times=(LATER,), periods=periods_in(LATER)))
    check_quality(path, objects)
    tile = tile_at(-999, 100)
    later = {tile: write(path, tile, time_index=1)}
    check_quality(path, later, time_index=1)
    check_quality(path, objects)
    starts = open_store(path).period_start.values
    assert [str(day)[:10] for day in starts[:, 0]] == ["2024-03-01", "2025-03-01"]
    create_store(path, replace(own_spec, extents=(extent((-1000, -997), (100, 102)),)))
    np.testing.assert_array_equal(open_store(path).period_start.values, starts)


def test_a_store_of_two_time_steps_has_the_periods_of_both(tmp_path, own_spec):
    times = (own_spec.times[0], LATER)
    both = (*own_spec.periods, *periods_in(LATER))
    create_store(tmp_path / "s.zarr", replace(own_spec, times=times, periods=both))
    starts = open_store(tmp_path / "s.zarr").period_start.values
    assert [str(day)[:10] for day in starts[:, 1]] == ["2024-03-31", "2025-03-31"]


def test_other_sensors_are_refused(filled, own_spec):
    with pytest.raises(OutputError, match="quality is sentinel2_l2a, sentinel1; 3 periods, the run has sentinel2_l2a;"):
        create_store(filled[0], replace(own_spec, sensors=SENSORS[:1]))


def test_another_number_of_periods_is_refused(filled, own_spec):
    with pytest.raises(OutputError, match="3 periods, the run has sentinel2_l2a, sentinel1; 2 periods"):
        create_store(filled[0], replace(own_spec, periods=own_spec.periods[:2]))


def test_other_periods_of_the_same_time_step_are_refused(filled, own_spec):
    first = own_spec.periods[0]
    other = (replace(first, end=first.end - timedelta(days=1)), *own_spec.periods[1:])
    with pytest.raises(OutputError, match=r"2024-03-01\.\.2024-03-31.*2024-03-01\.\.2024-03-30"):
        create_store(filled[0], replace(own_spec, periods=other))


@pytest.mark.parametrize("held", [True, False])
def test_stores_with_and_without_layers_of_blocks_do_not_mix(tmp_path, own_spec, held):
    without = replace(own_spec, periods=())
    create_store(tmp_path / "s.zarr", own_spec if held else without)
    with pytest.raises(OutputError, match="quality is none|the run has none"):
        create_store(tmp_path / "s.zarr", without if held else own_spec)


def test_a_store_without_periods_has_no_layers_of_blocks(tmp_path, own_spec, write):
    path, tile = tmp_path / "s.zarr", tile_at(-1000, 100)
    create_store(path, replace(own_spec, periods=()))
    objects = write(path, tile)
    assert not any("/qa_" in key for key, _ in objects)
    assert not {"sensor", "period", "block_x", "qa_scenes"} & set(open_store(path).variables)
    assert (read_tile(path, tile)[1] == 0).all()


def test_a_tile_that_brings_no_quality_is_refused(filled, write):
    with pytest.raises(InvalidInputError, match="brings no quality"):
        write(filled[0], tile_at(-1000, 101), quality=())


def test_a_tile_that_brings_fewer_sensors_is_refused(filled, write):
    tile = tile_at(-1000, 101)
    with pytest.raises(InvalidInputError, match=r"qa_clear_pct is uint8 \(1, 3, 2, 2\), the store has"):
        write(filled[0], tile, quality=quality_of(tile)[:1])


def test_quality_of_other_ground_is_refused(filled, write):
    with pytest.raises(InvalidInputError, match="every array must be"):
        write(filled[0], tile_at(-1000, 101), quality=quality_of(tile_at(-1000, 100)))


def test_a_changed_object_is_found(filled):
    path, objects = filled
    written = objects[tile_at(-1000, 100)]
    file = path / next(key for key, _ in written if "qa_first_day" in key)
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(bytes(raw))
    with pytest.raises(OutputError, match=r"qa_first_day.*sha256"):
        check_objects(path, written)


def test_periods_outside_their_time_step_are_refused(own_spec):
    with pytest.raises(InvalidInputError, match="do not lie in it"):
        replace(own_spec, periods=periods_in(LATER))
