"""The embedding store: what readers see, one PUT per shard, and who may write."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import rioxarray  # noqa: F401  (gives xarray its .rio)
import xarray as xr
import zarr
from rasterio.transform import Affine
from xarray import testing as xrt

from pipeline.errors import InvalidInputError, OutputError
from pipeline.types import Box, Tile
from pipeline.write.layout import chunk_px, shard_px, tile_shards
from pipeline.write.store import (
    check_objects,
    create_store,
    open_store,
    read_map,
    read_tile,
    time_index,
    write_tile,
    zones,
)


@pytest.fixture
def store(tmp_path, spec):
    path = tmp_path / "out" / "store.zarr"
    create_store(path, spec)
    return path


@pytest.fixture
def written(store, tile, data_of):
    data, crops = data_of(tile)
    objects = write_tile(store, tile, data, time_index=0, maps=(("crops", crops),))
    return store, objects


@pytest.mark.parametrize(
    ("dims", "shard", "inner"), [(64, 2048, 256), (128, 1024, 128), (192, 1024, 128), (768, 512, 64), (1024, 512, 64)]
)
def test_shards_and_chunks_have_the_published_sizes(dims, shard, inner):
    assert shard_px(dims, tile_px=2048) == shard
    assert chunk_px(dims, shard=shard) == inner


def test_a_shard_is_never_larger_than_a_tile():
    assert shard_px(8, tile_px=256) == 256


def test_xarray_and_rioxarray_see_int8_codes_with_crs_transform_and_nodata(written, data_of, tile):
    store, _ = written
    with xr.open_zarr(str(store), group="utm31", decode_coords="all") as ds:
        assert ds.embeddings.dtype == np.int8
        assert ds.embeddings.rio.nodata == -128
        assert ds.rio.crs.to_epsg() == 32631
        assert ds.rio.transform() == Affine(10, 0, 200 * 2560, 0, -10, 2000 * 2560)
        assert ds.embeddings.rio.shape == (512, 512)
        assert "_FillValue" not in ds.embeddings.attrs | ds.embeddings.encoding
        np.testing.assert_array_equal(ds.embeddings[0, :, :256, :256], data_of(tile)[0].codes)


def test_coordinates_are_cell_centres(written):
    ds = open_store(written[0])
    assert float(ds.x[0]) == 200 * 2560 + 5
    assert float(ds.y[0]) == 2000 * 2560 - 5
    assert ds.time.values[0] == np.datetime64("2024-03-01")
    assert ds.time_bnds.values[0, 1] == np.datetime64("2024-09-01")


def test_plain_zarr_reads_the_same_pixels(written, data_of, tile):
    store, _ = written
    group = zarr.open_group(str(store), mode="r")
    array = group["utm31/embeddings"]
    assert array.shards == (1, 4, 256, 256)
    assert array.metadata.dimension_names == ("time", "band", "y", "x")
    np.testing.assert_array_equal(array[0, :, :256, :256], data_of(tile)[0].codes)
    np.testing.assert_array_equal(array[0, :, 256:, 256:], -128)


def test_codec_is_blosc_zstd_one_with_bitshuffle(store):
    metadata = json.loads((store / "utm31" / "embeddings" / "zarr.json").read_text())
    codecs = metadata["codecs"][0]["configuration"]["codecs"]
    blosc = next(c["configuration"] for c in codecs if c["name"] == "blosc")
    assert (blosc["cname"], blosc["clevel"], blosc["shuffle"]) == ("zstd", 1, "bitshuffle")
    assert metadata["fill_value"] == -128
    assert metadata["attributes"]["nodata"] == -128


def test_conventions_are_on_group_and_array(store):
    for folder in ("utm31", "utm31/embeddings"):
        attrs = json.loads((store / folder / "zarr.json").read_text())["attributes"]
        assert attrs["proj:code"] == "EPSG:32631"
        assert attrs["spatial:transform"] == [10.0, 0.0, 512000.0, 0.0, -10.0, 5120000.0]
        assert attrs["spatial:bbox"] == [512000.0, 5114880.0, 517120.0, 5120000.0]
        assert {c["name"] for c in attrs["zarr_conventions"]} >= {"proj", "spatial"}


def test_untrained_model_is_labelled_everywhere(store):
    for folder in (".", "utm31", "utm31/embeddings", "utm31/map_crops"):
        attrs = json.loads((store / folder / "zarr.json").read_text())["attributes"]
        assert attrs["trained"] is False
        assert "UNTRAINED" in attrs["warning"]
    assert "UNTRAINED" in open_store(store, dequantise=True).embeddings.attrs["warning"]


def test_provenance_says_recipe_calibration_and_numerics(store, spec):
    own = dict(zarr.open_group(str(store), mode="r").attrs["earthpress"])
    assert own["recipe"] == "recipe-1"
    assert own["calibration"]["hash"] == spec.calibration.hash
    assert own["calibration"]["provisional"] is True
    assert own["numerics"]["dtype"] == "float32"
    assert own["grid"]["window_px"] == 64


def test_reason_and_map_say_what_their_numbers_mean(store):
    ds = open_store(store)
    assert ds.reason.attrs["flag_values"] == [0, 1, 2, 3, 4]
    assert ds.reason.attrs["flag_meanings"].split()[1] == "not_requested"
    assert ds.map_crops.attrs["class_names"] == ["bare soil", "maize"]
    assert ds.map_crops.attrs["flag_colors"] == "#884400 #ffee00"
    assert (ds.reason == 1).all()
    assert (ds.map_crops == 255).all()


def test_dequantised_values_are_code_times_scale_and_nan(written, data_of, tile, spec):
    values = open_store(written[0], dequantise=True).embeddings
    assert values.dtype == np.float32
    assert values.chunks is not None
    want = data_of(tile)[0].codes * np.asarray(spec.calibration.scale, np.float32)[:, None, None]
    np.testing.assert_array_equal(values[0, :, :256, :256], want)
    assert np.isnan(values[0, :, 300, 300]).all()


def test_one_dask_chunk_is_one_shard(written):
    assert open_store(written[0]).embeddings.chunks == ((1,), (4,), (256, 256), (256, 256))


def test_what_was_written_is_read_back(written, tile, data_of):
    store, _ = written
    data, crops = data_of(tile)
    codes, reason, n_obs = read_tile(store, tile)
    np.testing.assert_array_equal(codes, data.codes)
    np.testing.assert_array_equal(reason, data.reason)
    np.testing.assert_array_equal(n_obs, data.n_obs)
    np.testing.assert_array_equal(read_map(store, tile, "crops"), crops)


def test_rewriting_a_tile_gives_identical_bytes(written, tile, data_of):
    store, objects = written
    data, crops = data_of(tile)
    assert write_tile(store, tile, data, maps=(("crops", crops),)) == objects
    check_objects(store, objects, tile=tile)


PUTS = """
import sys
renamed = []
sys.addaudithook(lambda event, args: renamed.append(str(args[1])) if event == "os.rename" else None)
sys.path.insert(0, "tests/write")
import conftest
from pipeline.types import Tile
from pipeline.write.store import write_tile
tile = Tile(zone=31, row=-2000, col=200, tile_px=256)
data, crops = conftest.make_data(tile)
for _ in range(2):
    write_tile(PATH, tile, data, maps=(("crops", crops),))
print(*renamed, sep="\\n")
"""


def test_every_shard_is_put_exactly_once_per_write(store, in_process):
    done = in_process(f"PATH = {str(store)!r}\n{PUTS}")
    assert done.returncode == 0, done.stderr
    puts = [Path(line).relative_to(store).as_posix() for line in done.stdout.split()]
    keys = [
        f"utm31/{name}" for name in ("embeddings/c/0/0/0/0", "map_crops/c/0/0/0", "n_obs/c/0/0/0", "reason/c/0/0/0")
    ]
    assert sorted(puts) == sorted(2 * keys)


def test_shards_of_a_tile_follow_each_other_from_its_place_in_the_array(extent_of):
    tile = Tile(zone=31, row=-1999, col=201, tile_px=256)
    places = tile_shards(tile, extent=extent_of(31, rows=(-2000, -1998), cols=(200, 202)), shard=128)
    assert [p[:2] for p in places] == [(2, 2), (2, 3), (3, 2), (3, 3)]
    assert places[1][2:] == (slice(0, 128), slice(128, 256))


@pytest.mark.slow
def test_tile_of_several_shards_has_one_object_each(tmp_path, spec, changed, data_of):
    # The fewest dimensions of which a 512 px tile does not fit into one shard of 256 MiB.
    dims = 1025
    calibration = replace(spec.calibration, scale=(1.0,) * dims)
    extent = Box(zone=31, res_m=10, row=0, col=0, height=512, width=512)
    wide = changed(dims=dims, calibration=calibration, maps=(), extents=(extent,), grid=replace(spec.grid, tile_px=512))
    store = tmp_path / "wide.zarr"
    create_store(store, wide)
    tile = Tile(zone=31, row=0, col=0, tile_px=512)
    codes = np.full((dims, 512, 512), -128, np.int8)
    codes[:, :2, 300:302] = 5
    objects = write_tile(store, tile, replace(data_of(tile, dims=1)[0], codes=codes))
    assert [(k, bool(h)) for k, h in objects if "embeddings" in k] == [
        ("utm31/embeddings/c/0/0/0/0", False),
        ("utm31/embeddings/c/0/0/0/1", True),
        ("utm31/embeddings/c/0/0/1/0", False),
        ("utm31/embeddings/c/0/0/1/1", False),
    ]
    np.testing.assert_array_equal(read_tile(store, tile)[0], codes)


def test_an_all_nodata_tile_has_no_object_and_the_older_one_is_gone(written, tile, empty_of):
    store, before = written
    assert all((store / key).exists() for key, _ in before)
    empty, crops = empty_of(tile)
    after = write_tile(store, tile, empty, maps=(("crops", crops),))
    assert after == tuple((key, "") for key, _ in before)
    assert not any((store / key).exists() for key, _ in before)
    check_objects(store, after, tile=tile)


def test_a_left_over_object_of_an_elided_shard_is_found(written):
    store, objects = written
    with pytest.raises(OutputError, match="left over"):
        check_objects(store, ((objects[0][0], ""),))


def test_a_changed_object_is_found(written):
    store, objects = written
    file = store / objects[0][0]
    raw = bytearray(file.read_bytes())
    raw[100] ^= 1
    file.write_bytes(bytes(raw))
    with pytest.raises(OutputError, match="sha256"):
        check_objects(store, objects)


def test_a_missing_object_is_found(written):
    store, objects = written
    (store / objects[1][0]).unlink()
    with pytest.raises(OutputError, match=r"map_crops.*missing"):
        check_objects(store, objects)


def test_an_object_that_cannot_be_decoded_is_found_although_its_hash_is_right(written, tmp_path):
    store, objects = written
    file = store / objects[0][0]
    file.write_bytes(file.read_bytes()[:-40])
    torn = ((objects[0][0], hashlib.sha256(file.read_bytes()).hexdigest()),)
    with pytest.raises(OutputError, match="cannot be decoded"):
        check_objects(store, torn)


def test_a_broken_shard_is_healed_by_writing_the_tile_again(written, tile, data_of):
    store, objects = written
    (store / objects[0][0]).write_bytes(b"broken")
    data, crops = data_of(tile)
    assert write_tile(store, tile, data, maps=(("crops", crops),)) == objects


def _write_many(path: str, row: int) -> None:
    sys.path.insert(0, str(Path(__file__).parent))
    import conftest

    for col in (200, 201):
        tile = Tile(zone=31, row=row, col=col, tile_px=256)
        data, crops = conftest.make_data(tile)
        for _ in range(3):
            write_tile(path, tile, data, maps=(("crops", crops),))


def test_two_processes_write_disjoint_tiles_at_the_same_time(store, data_of):
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=_write_many, args=(str(store), row)) for row in (-2000, -1999)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [w.exitcode for w in workers] == [0, 0]
    for row in (-2000, -1999):
        for col in (200, 201):
            tile = Tile(zone=31, row=row, col=col, tile_px=256)
            np.testing.assert_array_equal(read_tile(store, tile)[0], data_of(tile)[0].codes)


def test_writing_a_tile_changes_no_metadata(store, tile, data_of):
    def metadata():
        return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in store.rglob("zarr.json")}

    before = metadata()
    data, crops = data_of(tile)
    write_tile(store, tile, data, maps=(("crops", crops),))
    assert metadata() == before


def test_creating_twice_changes_nothing(written, spec):
    store, objects = written
    before = {p: p.stat().st_mtime_ns for p in store.rglob("*")}
    create_store(store, spec)
    assert {p: p.stat().st_mtime_ns for p in store.rglob("*")} == before
    check_objects(store, objects)


def test_partial_files_of_killed_writers_are_removed(store, spec):
    stray = store / "utm31" / "embeddings" / "c" / "0" / "0" / "0" / "1.0123.partial"
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"half")
    create_store(store, spec)
    assert not stray.exists()


def test_another_recipe_is_refused_and_both_are_named(store, changed):
    with pytest.raises(OutputError, match="recipe is recipe-1, the run has recipe-2"):
        create_store(store, changed(recipe="recipe-2"))


def test_another_calibration_is_refused_and_both_hashes_are_named(store, spec, changed):
    other = spec.calibration.__class__(
        scale=(1.0,) * 4, provisional=False, source="file", model_sha256="ab", patch_px=4
    )
    with pytest.raises(OutputError, match=f"calibration is {spec.calibration.hash}, the run has {other.hash}"):
        create_store(store, changed(calibration=other))


def test_a_folder_with_other_things_is_refused(tmp_path, spec):
    (tmp_path / "store.zarr").mkdir()
    (tmp_path / "store.zarr" / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(OutputError, match="not an earthpress store"):
        create_store(tmp_path / "store.zarr", spec)
    assert [p.name for p in (tmp_path / "store.zarr").iterdir()] == ["holiday.jpg"]


def test_a_store_that_was_not_finished_is_made_anew(tmp_path, spec):
    class StopError(Exception):
        pass

    def stop(step):
        raise StopError(step)

    with pytest.raises(StopError):
        create_store(tmp_path / "s.zarr", spec, at=stop)
    assert not (tmp_path / "s.zarr").exists()
    create_store(tmp_path / "s.zarr", spec)
    assert open_store(tmp_path / "s.zarr").sizes["x"] == 512
    assert not (tmp_path / "s.zarr.creating").exists()


def test_southern_ground_has_negative_northings_in_the_northern_plane(tmp_path, changed, extent_of, data_of):
    create_store(tmp_path / "s.zarr", changed(extents=(extent_of(36, rows=(40, 41), cols=(150, 151)),)))
    tile = Tile(zone=36, row=40, col=150, tile_px=256)
    data, crops = data_of(tile)
    write_tile(tmp_path / "s.zarr", tile, data, maps=(("crops", crops),))
    ds = open_store(tmp_path / "s.zarr")
    assert ds.rio.crs.to_epsg() == 32636
    assert float(ds.y[0]) == -40 * 2560 - 5
    np.testing.assert_array_equal(ds.embeddings[0].values, data.codes)


def test_several_zones_need_a_choice(tmp_path, changed, extent_of):
    extents = (extent_of(31, rows=(0, 1), cols=(0, 1)), extent_of(32, rows=(0, 1), cols=(0, 1)))
    create_store(tmp_path / "s.zarr", changed(extents=extents))
    assert [z.zone for z in zones(tmp_path / "s.zarr")] == [31, 32]
    with pytest.raises(InvalidInputError, match=r"zones \(31, 32\)"):
        open_store(tmp_path / "s.zarr")
    with pytest.raises(InvalidInputError, match="no zone 33"):
        open_store(tmp_path / "s.zarr", zone=33)
    assert open_store(tmp_path / "s.zarr", zone=32).rio.crs.to_epsg() == 32632


def test_a_tile_outside_the_store_is_refused(store, data_of):
    tile = Tile(zone=31, row=-1990, col=200, tile_px=256)
    data, crops = data_of(tile)
    with pytest.raises(InvalidInputError, match="does not lie inside"):
        write_tile(store, tile, data, maps=(("crops", crops),))


@pytest.mark.parametrize("maps", [(), (("other", np.zeros((256, 256), np.uint8)),)])
def test_a_tile_without_the_maps_of_the_store_is_refused(store, tile, data_of, maps):
    with pytest.raises(InvalidInputError, match="map_crops"):
        write_tile(store, tile, data_of(tile)[0], maps=maps)


def test_a_wrong_dtype_is_refused(store, tile, data_of):
    data, crops = data_of(tile)
    with pytest.raises(InvalidInputError, match="float32"):
        write_tile(store, tile, data, maps=(("crops", crops.astype(np.float32)),))


def test_a_time_step_beyond_the_store_is_refused(store, tile, data_of):
    data, crops = data_of(tile)
    with pytest.raises(InvalidInputError, match="time_index 1"):
        write_tile(store, tile, data, time_index=1, maps=(("crops", crops),))


def test_an_extent_that_is_not_whole_tiles_is_refused(changed):
    with pytest.raises(InvalidInputError, match="tile_px 256"):
        changed(extents=(Box(zone=31, res_m=10, row=0, col=100, height=256, width=256),))


def test_time_steps_are_found_by_their_dates(store):
    assert time_index(store, datetime(2024, 3, 1, tzinfo=UTC), datetime(2024, 9, 1, tzinfo=UTC)) == 0
    with pytest.raises(OutputError, match="no time step 2025"):
        time_index(store, datetime(2025, 3, 1, tzinfo=UTC), datetime(2025, 9, 1, tzinfo=UTC))


def test_consolidated_and_plain_metadata_agree(written):
    store, _ = written
    with (
        xr.open_zarr(str(store), group="utm31", consolidated=True) as one,
        xr.open_zarr(str(store), group="utm31", consolidated=False) as other,
    ):
        xrt.assert_identical(one, other)
