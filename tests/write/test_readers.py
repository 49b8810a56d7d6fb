"""Who can open our stores: every reader installed here, each with CRS, place of a known pixel, nodata and codes.

The table is in the facts of the project: what should open does, what cannot is asserted with its reason, so that the
day on which it begins to work is noticed. Also here: what readers see while others write, or after a writer was killed.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import signal
import uuid
import warnings
from dataclasses import replace

import numpy as np
import obstore.store
import pytest
import rasterio
import rioxarray  # noqa: F401  (gives xarray its .rio)
import s3fs
import xarray as xr
import zarr
from pyproj import Transformer
from rasterio.errors import RasterioIOError
from rasterio.transform import Affine
from zarr.storage import FsspecStore, ObjectStore

from pipeline import codes
from pipeline.types import Box, Embedding, Tile
from pipeline.write.store import check_objects, create_store, open_store, read_box, write_tile

TILE = Tile(zone=31, row=-2000, col=200, tile_px=256)
PLACE = Affine(10, 0, 200 * 2560, 0, -10, 2000 * 2560)
PIXEL = (37, 101)
"""(row, col) of a known pixel of ``TILE``."""


@pytest.fixture(scope="module")
def data(data_of):
    """(embedding, map) of ``TILE``, the western half of its north-western block without an observation."""
    made, crops = data_of(TILE)
    made.codes[:, :128, :64] = -128
    made.reason[:128, :64] = 2
    return made, crops


@pytest.fixture(scope="module")
def folder(tmp_path_factory, spec, data):
    """A store of two time steps, the second one empty."""
    path = tmp_path_factory.mktemp("readers") / "store.zarr"
    start, end = spec.times[0]
    create_store(path, replace(spec, times=((start, end), (start.replace(year=2025), end.replace(year=2025)))))
    write_tile(path, TILE, data[0], maps=(("crops", data[1]),))
    return path


@pytest.fixture(scope="module")
def expected(data):
    """(time, band, y, x) codes of the whole store."""
    whole = np.full((2, 4, 512, 512), -128, np.int8)
    whole[0, :, :256, :256] = data[0].codes
    return whole


@pytest.fixture
def url(s3, spec, data):
    """The same with one time step in an object store."""
    place = f"s3://maps/{uuid.uuid4().hex}/store.zarr"
    create_store(place, spec)
    write_tile(place, TILE, data[0], maps=(("crops", data[1]),))
    return place


def known_lonlat():
    """The middle of the known pixel."""
    row, col = PIXEL
    x, y = PLACE @ (col + 0.5, row + 0.5)
    return Transformer.from_crs(32631, 4326, always_xy=True).transform(x, y)


def check(array, expected):
    """What every xarray reader must give."""
    assert array.dtype == np.int8
    assert array.rio.crs.to_epsg() == 32631
    assert array.rio.transform() == PLACE
    assert array.rio.nodata == -128
    np.testing.assert_array_equal(array, expected)
    row, col = PIXEL
    x, y = PLACE @ (col + 0.5, row + 0.5)
    np.testing.assert_array_equal(array[0].sel(x=x, y=y), expected[0, :, row, col])


def test_xarray_and_rioxarray(folder, expected):
    with xr.open_zarr(folder, group="utm31", decode_coords="all") as ds:
        check(ds.embeddings, expected)


def test_xarray_without_dask_and_by_its_engine(folder, expected):
    with xr.open_dataset(folder, engine="zarr", group="utm31", decode_coords="all") as ds:
        check(ds.embeddings, expected)


def test_xarray_tree_of_the_whole_store(folder, expected):
    with xr.open_datatree(folder, engine="zarr", decode_coords="all") as tree:
        check(tree["utm31"].embeddings, expected)


def test_our_own_function(folder, expected):
    check(open_store(folder).embeddings, expected)


def test_codes_stay_codes_when_values_are_masked(folder):
    with xr.open_zarr(folder, group="utm31", mask_and_scale=True) as ds:
        assert {ds[name].dtype for name in ("embeddings", "n_obs", "reason", "map_crops")} == {
            np.dtype(np.int8),
            np.dtype(np.uint8),
        }


def test_zarr_python(folder, expected):
    group = zarr.open_group(folder, mode="r")
    array = group["utm31/embeddings"]
    assert (array.dtype, array.fill_value, array.attrs["nodata"]) == (np.int8, -128, -128)
    assert Affine(*array.attrs["spatial:transform"]) == PLACE
    np.testing.assert_array_equal(array, expected)


def test_s3_by_fsspec(url, s3, expected):
    files = s3fs.S3FileSystem(
        key="somebody", secret="wordless", endpoint_url=s3, asynchronous=True, skip_instance_cache=True
    )
    store = FsspecStore(files, read_only=True, path=url.removeprefix("s3://"))
    try:
        with xr.open_zarr(store, group="utm31", decode_coords="all") as ds:
            check(ds.embeddings, expected[:1])
    finally:
        zarr.core.sync.sync(files._s3.close())


def test_s3_by_obstore(url, s3, expected):
    bucket = obstore.store.from_url(url, client_options={"allow_http": True})
    with xr.open_zarr(ObjectStore(bucket, read_only=True), group="utm31", decode_coords="all") as ds:
        check(ds.embeddings, expected[:1])


def test_s3_by_our_own_function(url, expected):
    check(open_store(url).embeddings, expected[:1])


def test_titiler_xarray(folder, expected):
    from titiler.xarray.io import Reader

    with Reader(str(folder), variable="embeddings", group="utm31", sel=["time=2024-03-01"]) as reader:
        assert reader.crs.to_epsg() == 32631
        assert reader.bounds == PLACE_BOUNDS
        info = reader.info()
        assert (info.dtype, info.nodata_type, info.count) == ("int8", "Nodata", 4)
        assert reader.input.rio.nodata == -128
        check_point(reader, expected)
        check_part(reader, expected)


def test_rio_tiler_xarray(folder, expected):
    from rio_tiler.io.xarray import XarrayReader

    with xr.open_zarr(folder, group="utm31", decode_coords="all") as ds:
        reader = XarrayReader(ds.embeddings.sel(time="2024-03-01"))
        assert reader.crs.to_epsg() == 32631
        assert reader.bounds == PLACE_BOUNDS
        assert reader.info().nodata_type == "Nodata"
        check_point(reader, expected)
        check_part(reader, expected)


PLACE_BOUNDS = (200 * 2560, 2000 * 2560 - 5120, 200 * 2560 + 5120, 2000 * 2560)


def check_point(reader, expected):
    point = reader.point(*known_lonlat())
    np.testing.assert_array_equal(point.data, expected[0, :, PIXEL[0], PIXEL[1]])


def check_part(reader, expected):
    """The first 256 px in their own projection: nothing is resampled, and what is nodata is masked."""
    x, y = PLACE.c, PLACE.f
    image = reader.part((x, y - 2560, x + 2560, y), bounds_crs="epsg:32631", dst_crs="epsg:32631")
    assert image.data.dtype == np.int8
    np.testing.assert_array_equal(image.data, expected[0, :, :256, :256])
    np.testing.assert_array_equal(image.array.mask[0], expected[0, 0, :256, :256] == -128)


@pytest.fixture
def experimental():
    """rio-tiler's readers that look for the Zarr conventions instead of CF."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This module is experimental")
        from rio_tiler.experimental import zarr as module
    return module


def test_rio_tiler_conventions_reader_opens_layers(folder, experimental):
    array = zarr.open_array(folder, path="utm31/n_obs", mode="r")
    with experimental.ArrayReader(array) as reader:
        assert reader.crs.to_epsg() == 32631
        assert (reader.transform, reader.nbands) == (PLACE, 2)
        row, col = PIXEL
        np.testing.assert_array_equal(reader.point(*known_lonlat()).data, array[:, row, col])


def test_rio_tiler_conventions_reader_refuses_four_axes(folder, experimental):
    array = zarr.open_array(folder, path="utm31/embeddings", mode="r")
    with pytest.raises(ValueError, match="Expected 2D or 3D array, got 4D"):
        experimental.ArrayReader(array)


def test_rio_tiler_async_conventions_reader_opens_layers(folder, experimental):
    async def read():
        array = await zarr.api.asynchronous.open_array(store=folder, path="utm31/reason", mode="r")
        async with experimental.AsyncArrayReader(array) as reader:
            assert reader.crs.to_epsg() == 32631
            return await reader.point(*known_lonlat())

    np.testing.assert_array_equal(asyncio.run(read()).data, [0, 1])


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_gdal_of_rasterio_fails_for_its_reason(folder):
    """GDAL before 3.12 knows no final Zarr v3, before 3.13 no shards (its driver's documentation).

    When this fails because it opens: read a pixel here and say so in the README.
    """
    assert tuple(map(int, rasterio.__gdal_version__.split(".")[:2])) < (3, 13)
    name = f'ZARR:"{folder}":/utm31/embeddings'
    with pytest.raises(RasterioIOError), rasterio.open(name) as file:
        file.read(1)


@pytest.mark.parametrize(("north", "row"), [(True, -2000), (False, 3)])
def test_both_hemispheres_are_in_the_plane_of_the_north(tmp_path, changed, extent_of, north, row):
    path = tmp_path / "store.zarr"
    create_store(path, changed(extents=(extent_of(21, rows=(row, row + 1), cols=(200, 201)),)))
    with xr.open_zarr(path, group="utm21", decode_coords="all") as ds:
        assert ds.rio.crs.to_epsg() == 32621
        assert (float(ds.y[0]) > 0) is north
        latitude = Transformer.from_crs(32621, 4326, always_xy=True).transform(float(ds.x[0]), float(ds.y[0]))[1]
        assert (latitude > 0) is north


# What a store says about itself


def nodes_of(folder):
    return {p.parent.relative_to(folder).as_posix(): json.loads(p.read_bytes()) for p in folder.rglob("zarr.json")}


def test_root_and_zones_have_consolidated_metadata_of_everything_below(folder):
    nodes = nodes_of(folder)
    root = nodes["."]["consolidated_metadata"]["metadata"]
    assert root.keys() == nodes.keys() - {"."}
    zone = nodes["utm31"]["consolidated_metadata"]["metadata"]
    assert {f"utm31/{name}" for name in zone} == nodes.keys() - {".", "utm31"}


def test_geoemb_has_what_its_convention_requires(folder):
    for name in (".", "utm31"):
        attributes = nodes_of(folder)[name]["attributes"]
        own = {key.removeprefix("geoemb:"): value for key, value in attributes.items() if key.startswith("geoemb:")}
        assert (own["type"], own["dimensions"], own["data_type"], own["gsd"]) == ("pixel", 4, "int8", 10)
        assert own["model"].startswith("urn:olmoearth:v1.2:nano:sha256:")
        assert own["spatial_layout"] == "utm_zones"
        assert own["source_data"]
        assert own["build_version"].startswith("earthpress")
        assert own["quantization"].keys() <= {"method", "original_dtype", "quantized_dtype", "scale", "link"}
        (entry,) = [c for c in attributes["zarr_conventions"] if c["name"] == "geoemb:"]
        assert entry["uuid"] == "61c12cc5-0e28-4056-999a-480cf3fb7e4c"
        assert "/v1/" in entry["schema_url"]


def test_the_array_of_vectors_says_what_its_group_says_and_does_not_claim_the_convention(folder):
    nodes = nodes_of(folder)
    attributes, group = (nodes[name]["attributes"] for name in ("utm31/embeddings", "utm31"))
    for key in (key for key in group if key.startswith("geoemb:")):
        assert attributes[key] == group[key]
    assert attributes["geoemb:dimensions"] == 4
    assert {c["name"] for c in attributes["zarr_conventions"]} == {"proj", "spatial"}


def test_a_store_of_tokens_holds_chips_of_their_side(tmp_path, spec, changed, extent_of):
    path = tmp_path / "store.zarr"
    create_store(path, changed(grid=replace(spec.grid, token_px=4)))
    attributes = nodes_of(path)["utm31"]["attributes"]
    assert attributes["geoemb:type"] == "chip"
    assert attributes["geoemb:chip_layout"] == {"layout_type": "regular_grid", "chip_size": [4, 4], "stride": [4, 4]}
    assert attributes["geoemb:gsd"] == 40


def test_conventions_say_the_same_as_cf(folder):
    nodes = nodes_of(folder)
    with xr.open_zarr(folder, group="utm31", decode_coords="all") as ds:
        for name in ("utm31", "utm31/embeddings", "utm31/reason"):
            attributes = nodes[name]["attributes"]
            assert attributes["proj:code"] == f"EPSG:{ds.rio.crs.to_epsg()}"
            assert Affine(*attributes["spatial:transform"]) == ds.rio.transform()
            assert attributes["spatial:shape"] == list(ds.embeddings.shape[-2:])
            assert tuple(attributes["spatial:bbox"]) == ds.rio.bounds()
        text = ds.spatial_ref.attrs["GeoTransform"].split()
        assert Affine.from_gdal(*map(float, text)) == ds.rio.transform()


# Every quantiser: stored, read and decoded


def calibration_of(spec, method):
    fields = {"method": method, "dims": 4}
    if method == "pca":
        rows = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))[0][:4]
        fields |= {"scale": (0.01,) * 4, "mean": tuple(range(6)), "components": tuple(map(tuple, rows.tolist()))}
    elif method != "linear":
        fields["scale"] = ()
    return replace(spec.calibration, **fields)


@pytest.fixture(params=["linear", "pca", "power", "power_raw", "per_pixel", "float16", "float32"])
def quantised(request, tmp_path, spec, data_of):
    """(store, calibration, codes) of vectors of every kind, with a corner of nodata."""
    calibration = calibration_of(spec, request.param)
    path = tmp_path / "store.zarr"
    create_store(path, replace(spec, calibration=calibration, maps=()))
    vectors = np.random.default_rng(3).normal(0, 0.3, size=(6 if request.param == "pca" else 4, 256, 256))
    vectors[:, :9, :9] = np.nan
    coded = codes.encode(vectors.astype(np.float32), calibration)
    made, _ = data_of(TILE)
    objects = write_tile(path, TILE, replace(made, codes=coded.codes, pixel_scale=coded.pixel_scale))
    check_objects(path, objects, tile=TILE)
    return path, calibration, coded


def test_the_stored_line_decodes_as_the_definition_does(quantised):
    path, calibration, coded = quantised
    with xr.open_zarr(path, group="utm31", decode_coords="all") as ds:
        values = eval(ds.embeddings.attrs["dequantise"], {"ds": ds, "np": np, "xr": xr, "abs": abs})
        values = values.transpose("time", "band", "y", "x")[0, :, :256, :256]
        np.testing.assert_allclose(values, codes.decode(coded, calibration), rtol=1e-6)


def test_dequantised_values_are_those_of_the_definition(quantised):
    path, calibration, coded = quantised
    found = open_store(path, dequantise=True).embeddings
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[0, :, :256, :256], codes.decode(coded, calibration))


def test_every_dtype_has_its_nodata_and_no_masking(quantised):
    path, calibration, coded = quantised
    with xr.open_zarr(path, group="utm31", decode_coords="all") as ds:
        assert ds.embeddings.dtype == calibration.dtype
        nodata = ds.embeddings.rio.nodata if calibration.dtype == "int8" else ds.embeddings.rio.encoded_nodata
        assert nodata == -128 if calibration.dtype == "int8" else np.isnan(nodata)
        np.testing.assert_array_equal(ds.embeddings[0, :, :256, :256], coded.codes)
        assert ("scale" in ds.coords) is (calibration.method in ("linear", "pca"))
        assert ("pixel_scale" in ds) is (calibration.method == "per_pixel")
        assert ("pca_components" in ds) is (calibration.method == "pca")


def test_components_lead_back_to_the_vectors(tmp_path, spec, data_of):
    calibration = calibration_of(spec, "pca")
    path = tmp_path / "store.zarr"
    create_store(path, replace(spec, calibration=calibration, maps=()))
    rng = np.random.default_rng(3)
    scores = rng.uniform(-1.2, 1.2, size=(4, 256, 256))
    vectors = np.einsum("bd,byx->dyx", np.array(calibration.components), scores)
    vectors += np.array(calibration.mean)[:, None, None]
    coded = codes.encode(vectors.astype(np.float32), calibration)
    write_tile(path, TILE, replace(data_of(TILE)[0], codes=coded.codes))
    with xr.open_zarr(path, group="utm31", decode_coords="all") as ds:
        back = eval(ds.embeddings.attrs["reconstruct"], {"ds": ds})
        back = back.transpose("time", "dim", "y", "x")[0, :, :256, :256]
        assert float(abs(back - vectors).max()) < 0.02


# Writers at the same time, and writers that die

ROUNDS = 50
BOTH = Box(zone=31, res_m=10, row=-2000 * 256, col=200 * 256, height=256, width=512)


def codes_of(turn):
    """(band, row, col) of both tiles: other codes in every place and every round."""
    rows, cols = np.mgrid[:256, :512]
    return np.stack([(rows * 31 + cols * 7 + band + turn * 3) % 255 - 127 for band in range(2)]).astype(np.int8)


def write_in_turns(path, side, barrier):
    """Write one's own tile in every round, then look at both."""
    tile = Tile(zone=31, row=-2000, col=200 + side, tile_px=256)
    shape = (256, 256)
    for turn in range(ROUNDS):
        both = codes_of(turn)
        data = Embedding(
            codes=np.ascontiguousarray(both[:, :, side * 256 : side * 256 + 256]),
            reason=np.zeros(shape, np.uint8),
            n_obs=np.full(shape, turn, np.uint8),
            box=tile.box,
            clipped=0.0,
        )
        barrier.wait(60)
        objects = write_tile(path, tile, data)
        barrier.wait(60)
        np.testing.assert_array_equal(read_box(path, BOTH, "embeddings"), both)
    check_objects(path, objects)


def test_two_processes_at_neighbouring_tiles_never_lose_a_byte(tmp_path, spec):
    path = tmp_path / "store.zarr"
    calibration = replace(spec.calibration, scale=(1.0, 1.0))
    create_store(path, replace(spec, extents=(BOTH,), maps=(), calibration=calibration, dims=2))
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(2)
    neighbour = spawn.Process(target=write_in_turns, args=(str(path), 1, barrier))
    neighbour.start()
    write_in_turns(str(path), 0, barrier)
    neighbour.join(60)
    assert neighbour.exitcode == 0


KILLED_BEFORE_IT_IS_NAMED = """
import os, pathlib, signal, sys
sys.path.insert(0, "tests/write")
import conftest
from pipeline.types import Tile
from pipeline.write.store import write_tile

def die(self, target):
    if self.name.endswith(".partial") and "embeddings" in str(self):
        os.kill(os.getpid(), signal.SIGKILL)
    return os.replace(self, target)

tile = Tile(zone=31, row=-2000, col=200, tile_px=256)
data, crops = conftest.make_data(tile)
pathlib.Path.replace = die
write_tile({path!r}, tile, data, maps=(("crops", crops),))
"""


def test_a_writer_killed_inside_a_write_leaves_nothing_that_opens_as_data(tmp_path, spec, in_process):
    path = tmp_path / "store.zarr"
    create_store(path, spec)
    done = in_process(KILLED_BEFORE_IT_IS_NAMED.format(path=str(path)))
    assert done.returncode == -signal.SIGKILL
    partial = list((path / "utm31/embeddings/c").rglob("*.partial"))
    assert len(partial) == 1
    with xr.open_zarr(path, group="utm31", decode_coords="all") as ds:
        assert int((ds.embeddings != -128).sum()) == 0
        assert int((ds.reason != 1).sum()) == 0
    create_store(path, spec)
    assert not partial[0].exists()


def test_boxes_are_read_from_an_object_store(url, data):
    box = Box(zone=31, res_m=10, row=-2000 * 256 + 100, col=200 * 256 + 50, height=60, width=70)
    found = read_box(url, box, "embeddings")
    np.testing.assert_array_equal(found, data[0].codes[:, 100:160, 50:120])
