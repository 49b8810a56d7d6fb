"""Vectors taken out of a store: the same numbers at the same places, in formats that other tools read."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import geopandas as gpd
import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
from pyproj import Transformer
from rio_cogeo import cog_validate
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.errors import InvalidInputError, NoDataError
from pipeline.run import export as exports
from pipeline.run.export import Request, export, request_of
from pipeline.types import Box, Tile
from pipeline.write.store import create_store, open_store, write_tile

HERE = ((-2000, 200), (-1999, 201))
"""Tiles that are written; the other two of the store have no vector."""


@pytest.fixture(scope="module")
def stored(tmp_path_factory, spec, data_of):
    """Store of two tiles that touch at a corner; a strip of the first has no vector."""
    path = tmp_path_factory.mktemp("export") / "store.zarr"
    create_store(path, spec)
    for row, col in HERE:
        tile = Tile(zone=31, row=row, col=col, tile_px=256)
        data, crops = data_of(tile)
        codes, reason = data.codes.copy(), data.reason.copy()
        codes[:, :32], reason[:32] = -128, 2
        write_tile(path, tile, replace(data, codes=codes, reason=reason), maps=(("crops", crops),))
    return path


@pytest.fixture(scope="module")
def values(stored):
    """(band, y, x) float32 as xarray decodes them, with coordinates."""
    return open_store(stored, dequantise=True).embeddings[0].load()


@pytest.fixture(scope="module")
def points(stored, tmp_path_factory):
    """The store as GeoParquet: what the export said, and the table."""
    made = export(str(stored), Request(form="parquet"), to=str(tmp_path_factory.mktemp("points") / "v.parquet"))
    return made, gpd.read_parquet(made.files[0])


def at(values, row, col):
    """The vector of a lattice pixel."""
    return values.sel(x=(col + 0.5) * 10, y=-(row + 0.5) * 10).values


def test_rows_of_geoparquet_hold_the_codes_of_their_pixel(points, values):
    made, table = points
    assert len(table) == made.rows == int(values[0].notnull().sum())
    scale = json.loads(pq.read_metadata(made.files[0]).metadata[b"earthpress"])["scale"]
    for k in (0, 777, len(table) - 1):
        one = table.iloc[k]
        np.testing.assert_allclose(one.embedding * np.array(scale, np.float32), at(values, one.row, one.col))


def test_points_of_geoparquet_lie_in_the_middle_of_their_pixel(points):
    one = points[1].iloc[123]
    x, y = Transformer.from_crs(4326, 32631, always_xy=True).transform(one.geometry.x, one.geometry.y)
    assert (x, y) == pytest.approx(((one.col + 0.5) * 10, -(one.row + 0.5) * 10), abs=1e-3)


def test_a_bounding_box_reads_less_of_geoparquet_and_the_right_rows(stored, tmp_path):
    made = export(str(stored), Request(form="parquet", shape="square"), to=str(tmp_path / "v.parquet"))
    table = gpd.read_parquet(made.files[0])
    west, south, east, north = table.geometry.iloc[:40].total_bounds
    found = gpd.read_parquet(made.files[0], bbox=(west, south, east, north))
    assert 40 <= len(found) < len(table) / 100
    assert found.intersects(table.geometry.iloc[20]).any()


def test_neighbours_along_the_rows_of_geoparquet_are_neighbours_on_the_ground(points):
    table = points[1]
    steps = np.abs(np.diff(table.row)) + np.abs(np.diff(table.col))
    assert np.median(steps) == 1
    assert (steps == 1).mean() > 0.99


def test_cells_are_means_of_their_pixels(stored, values, tmp_path):
    made = export(str(stored), Request(form="parquet", cell_px=4, values=True), to=str(tmp_path / "c.parquet"))
    one = gpd.read_parquet(made.files[0]).iloc[200]
    pixels = [at(values, 4 * one.row + r, 4 * one.col + c) for r in range(4) for c in range(4)]
    np.testing.assert_allclose(one.embedding, np.mean(pixels, axis=0), rtol=1e-5, atol=1e-5)


def test_codes_of_cells_are_the_codes_of_the_means(stored, values, tmp_path):
    made = export(str(stored), Request(form="parquet", cell_px=4), to=str(tmp_path / "c.parquet"))
    one = gpd.read_parquet(made.files[0]).iloc[200]
    assert one.embedding.dtype == np.int8
    pixels = [at(values, 4 * one.row + r, 4 * one.col + c) for r in range(4) for c in range(4)]
    scale = 0.25 * np.arange(1, 5)
    np.testing.assert_allclose(one.embedding * scale, np.mean(pixels, axis=0), atol=0.5 * scale.max() + 1e-5)


def test_an_array_lies_where_its_text_says(stored, values, tmp_path):
    made = export(str(stored), Request(form="npy", values=True, bands=(3, 1)), to=str(tmp_path / "out"))
    array, text = np.load(made.files[0]), json.loads((tmp_path / made.files[1]).read_text())
    assert array.shape == tuple(text["shape"]) == (2, 512, 512)
    column, line = (~rasterio.Affine(*text["transform"])) @ (200 * 2560 + 5, 2000 * 2560 - 325)
    np.testing.assert_allclose(array[:, int(line), int(column)], at(values, -2000 * 256 + 32, 200 * 256)[[3, 1]])
    assert np.isnan(array[:, 0, 0]).all()


def test_bands_leave_as_int8_with_gdals_scale_and_nodata(stored, values, tmp_path):
    made = export(str(stored), Request(form="cog", bands=(0, 2)), to=str(tmp_path / "cog"))
    assert cog_validate(made.files[0], strict=True)[0]
    with rasterio.open(made.files[0]) as found:
        assert (found.count, found.dtypes[0], found.nodata, found.scales) == (2, "int8", -128, (0.25, 0.75))
        row, col = found.index(200 * 2560 + 5, 2000 * 2560 - 325)
        codes = found.read()[:, row, col]
        assert found.read(1)[0, 0] == -128
    np.testing.assert_allclose(codes * [0.25, 0.75], at(values, -2000 * 256 + 32, 200 * 256)[[0, 2]])


def test_components_are_projections_of_the_vectors(stored, values, tmp_path):
    made = export(str(stored), Request(form="pca", components=2), to=str(tmp_path / "pca"))
    about = json.loads((tmp_path / "pca").joinpath(made.files[-1].rsplit("/", 1)[-1]).read_text())
    with rasterio.open(made.files[0]) as found:
        row, col = found.index(200 * 2560 + 5, 2000 * 2560 - 325)
        scores = found.read()[:, row, col] * about["scale"]
    vector = at(values, -2000 * 256 + 32, 200 * 256)
    wanted = np.array(about["components"]) @ (vector - np.array(about["mean"]))
    np.testing.assert_allclose(scores, wanted, atol=about["scale"] / 2 + 1e-6)
    np.testing.assert_allclose(np.linalg.norm(about["components"], axis=1), 1)


def test_files_of_the_south_are_in_its_own_plane(tmp_path, spec, data_of):
    path, tile = tmp_path / "store.zarr", Tile(zone=33, row=2000, col=200, tile_px=256)
    box = Box(zone=33, res_m=10, row=2000 * 256, col=200 * 256, height=256, width=256)
    create_store(path, replace(spec, extents=(box,)))
    data, crops = data_of(tile)
    write_tile(path, tile, data, maps=(("crops", crops),))
    made = export(str(path), Request(form="cog", bands=(1,)), to=str(tmp_path / "cog"))
    with rasterio.open(made.files[0]) as found:
        assert found.crs.to_epsg() == 32733
        assert found.bounds.top == 10_000_000 - 2000 * 2560
    points = export(str(path), Request(form="parquet"), to=str(tmp_path / "v.parquet"))
    assert gpd.read_parquet(points.files[0]).geometry.y.max() < -40


def test_a_part_is_cut_out_by_degrees(stored, tmp_path):
    x, y = 200 * 2560 + 1000, 2000 * 2560 - 1000
    to_degrees = Transformer.from_crs(32631, 4326, always_xy=True)
    (west, south), (east, north) = to_degrees.transform(x, y - 300), to_degrees.transform(x + 300, y)
    made = export(str(stored), Request(form="npy", bbox=(west, south, east, north)), to=str(tmp_path / "out"))
    assert all(30 <= side <= 33 for side in np.load(made.files[0]).shape[1:])


def test_a_part_without_a_vector_is_no_file(stored, tmp_path):
    to_degrees = Transformer.from_crs(32631, 4326, always_xy=True)
    west, south = to_degrees.transform(201 * 2560 + 500, 1999 * 2560 + 500)
    request = Request(form="parquet", bbox=(west, south, west + 0.002, south + 0.002))
    with pytest.raises(NoDataError, match="no vector"):
        export(str(stored), request, to=str(tmp_path / "v.parquet"))
    assert not list(tmp_path.iterdir())


def test_an_area_elsewhere_is_refused(stored, tmp_path):
    with pytest.raises(NoDataError, match="does not touch"):
        export(str(stored), Request(form="npy", bbox=(100, 10, 101, 11)), to=str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ({"form": "netcdf"}, "must be one of"),
        ({"form": "cog", "cell_px": 4}, "overviews"),
        ({"form": "npy", "cell_px": 3}, "must divide"),
        ({"form": "npy", "bands": "1;2"}, "numbers and ranges"),
        ({"form": "npy", "on": "May"}, "not a date"),
        ({"form": "pca", "components": 0}, "must be 1 to"),
    ],
)
def test_words_that_mean_nothing_are_refused(words, text):
    form = words.pop("form")
    with pytest.raises(InvalidInputError, match=text):
        request_of(form, **words)


def test_a_band_that_the_store_does_not_have_is_refused(stored):
    with pytest.raises(InvalidInputError, match="bands 0 to 3"):
        export(str(stored), Request(form="npy", bands=(4,)))


def test_a_date_outside_every_step_names_the_steps(stored):
    with pytest.raises(InvalidInputError, match="2024-03-01 to 2024-09-01"):
        export(str(stored), request_of("npy", on="2023-05-01"))


def test_the_command_refuses_options_that_would_do_nothing(stored):
    ran = CliRunner().invoke(app, ["export", str(stored), "cog", "--simplify", "5"])
    assert isinstance(ran.exception, InvalidInputError)
    assert "--simplify" in str(ran.exception)


def test_the_command_tells_what_it_wrote(stored, tmp_path):
    ran = CliRunner().invoke(app, ["export", str(stored), "npy", "-o", str(tmp_path / "out"), "--json"])
    assert ran.exit_code == 0, ran.output
    told = json.loads(ran.stdout)
    assert told["bytes"] > 0
    assert all((tmp_path / "out").joinpath(f.rsplit("/", 1)[-1]).is_file() for f in told["files"])


@pytest.mark.parametrize("form", ["parquet", "npy"])
def test_a_cell_has_the_same_vector_whatever_part_is_asked_for(stored, tmp_path, form):
    to_degrees = Transformer.from_crs(32631, 4326, always_xy=True)
    (west, south), (east, north) = (
        to_degrees.transform(200 * 2560 + x, 2000 * 2560 + y) for x, y in ((630, -1310), (1270, -730))
    )
    suffix = ".parquet" if form == "parquet" else ""
    made = [
        export(str(stored), Request(form=form, cell_px=8, bbox=bbox), to=str(tmp_path / f"{k}{suffix}"))
        for k, bbox in enumerate([None, (west, south, east, north)])
    ]
    whole, part = ({(row, col): vector for row, col, vector in cells_of(one.files, form)} for one in made)
    assert 40 < len(part) < len(whole)
    assert all(np.array_equal(vector, whole[place]) for place, vector in part.items())


def cells_of(files, form):
    """(row, col, vector) of every cell that has one."""
    if form == "parquet":
        table = gpd.read_parquet(files[0])
        yield from zip(table.row, table.col, table.embedding, strict=True)
        return
    array, text = np.load(files[0]), json.loads(Path(files[1]).read_text())
    assert text["cell_px"] == 8
    col, row = round(text["transform"][2] / 80), -round(text["transform"][5] / 80)
    for r, c in zip(*np.nonzero(array[0] != -128), strict=True):
        yield row + r, col + c, array[:, r, c]


@pytest.mark.parametrize(("zone", "bbox"), [(1, (179.0, 9.99, 180.0, 10.01)), (60, (-180.0, 9.99, -179.0, 10.01))])
def test_a_part_beyond_the_180th_meridian_does_not_grow_around_the_earth(zone, bbox):
    box = Box(zone=zone, res_m=10, row=-110_810, col=5_000, height=10, width=90_000)
    part = exports._cut(box, bbox)
    edge = Transformer.from_crs(4326, box.epsg, always_xy=True)
    west, east = (edge.transform(lon, 10.0)[0] / 10 for lon in (bbox[0], bbox[2]))
    assert part is not None
    assert abs(part.col - west) < 10
    assert abs(part.col_stop - east) < 10


def test_what_killed_exports_left_is_deleted_after_an_hour(stored, tmp_path):
    old, young, folder = (tmp_path / f".tmp-v.parquet-1-{name}" for name in ("00000000", "11111111", "22222222"))
    folder.mkdir()
    for file in (old, young, folder / "v.gpkg"):
        file.write_bytes(b"half")
    for left in (old, folder):
        os.utime(left, (0, 0))
    export(str(stored), Request(form="parquet", cell_px=64), to=str(tmp_path / "v.parquet"))
    assert sorted(file.name for file in tmp_path.iterdir()) == [young.name, "v.parquet"]


@pytest.mark.parametrize("method", ["power", "per_pixel", "float16"])
def test_values_of_other_quantisers_leave_decoded_from_every_zone(tmp_path, spec, data_of, method):
    path, tiles = tmp_path / "store.zarr", [Tile(zone=zone, row=-2000, col=200, tile_px=256) for zone in (31, 32)]
    calibration = replace(spec.calibration, scale=(), method=method, dims=4)
    create_store(path, replace(spec, calibration=calibration, extents=tuple(tile.box for tile in tiles)))
    for tile in tiles:
        data, crops = data_of(tile)
        codes, reason = data.codes.astype(calibration.dtype), data.reason.copy()
        codes[:, :32], reason[:32] = (np.nan if method == "float16" else -128), 2
        scale = np.where(reason == 0, np.float32(0.5), np.float32(np.nan)) if method == "per_pixel" else None
        write_tile(path, tile, replace(data, codes=codes, reason=reason, pixel_scale=scale), maps=(("crops", crops),))
    made = export(str(path), Request(form="cog"), to=str(tmp_path / "cog"))
    rows = gpd.read_parquet(export(str(path), Request(form="parquet"), to=str(tmp_path / "v.parquet")).files[0])
    assert set(rows.zone) == {31, 32}
    for zone, file in zip((31, 32), made.files, strict=False):
        wanted = open_store(path, zone=zone, dequantise=True).embeddings[0].values
        with rasterio.open(file) as found:
            assert (found.crs.to_epsg(), found.dtypes[0]) == (32600 + zone, "float32")
            np.testing.assert_allclose(found.read(), wanted, rtol=1e-6)
        one = rows[rows.zone == zone].iloc[777]
        np.testing.assert_allclose(one.embedding, wanted[:, one.row + 512_000, one.col - 51_200], rtol=1e-6)
