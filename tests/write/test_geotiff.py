"""GeoTIFFs: valid COGs at the right place with their colours and names, whole or absent."""

from __future__ import annotations

import signal
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import rasterio
from rasterio.enums import ColorInterp
from rasterio.shutil import copy

from pipeline.errors import InvalidInputError, OutputError
from pipeline.types import Box
from pipeline.write.geotiff import write_cog

NORTH = Box(zone=31, res_m=10, row=-512_000, col=51_200, height=1100, width=1300)
SOUTH = Box(zone=36, res_m=10, row=20_480, col=40_960, height=600, width=700)
COLOURS = ((0, "#884400"), (1, "#ffee00"), (7, "#0000FF"))
NAMES = ((0, "bare soil"), (1, "maize & more"), (7, "eau é"))


@pytest.fixture
def classes():
    rows, cols = np.indices(NORTH.shape)
    field = np.choose((rows // 90 + cols // 70) % 3, [0, 1, 7]).astype(np.uint8)
    field[:40] = 255
    return field


def test_classes_are_a_strictly_valid_cog(tmp_path, classes):
    cogeo = pytest.importorskip("rio_cogeo.cogeo")
    write_cog(tmp_path / "map.tif", classes, box=NORTH, colours=COLOURS, class_names=NAMES)
    valid, errors, warnings = cogeo.cog_validate(tmp_path / "map.tif", strict=True)
    assert valid, (errors, warnings)


def test_classes_read_back_at_their_place(tmp_path, classes):
    write_cog(tmp_path / "map.tif", classes, box=NORTH, colours=COLOURS)
    with rasterio.open(tmp_path / "map.tif") as ds:
        np.testing.assert_array_equal(ds.read(1), classes)
        assert ds.crs.to_epsg() == 32631
        assert ds.transform == NORTH.transform
        assert ds.nodata == 255
        assert ds.block_shapes == [(512, 512)]
        assert ds.compression.name == "deflate"
        assert ds.tags(ns="IMAGE_STRUCTURE").get("PREDICTOR") is None
        assert ds.overviews(1)


def test_colours_survive(tmp_path, classes):
    write_cog(tmp_path / "map.tif", classes, box=NORTH, colours=COLOURS)
    with rasterio.open(tmp_path / "map.tif") as ds:
        assert ds.colorinterp == (ColorInterp.palette,)
        table = ds.colormap(1)
    assert [table[v][:3] for v in (0, 1, 7)] == [(0x88, 0x44, 0), (255, 0xEE, 0), (0, 0, 255)]


def test_class_names_survive_in_gdal(tmp_path, classes):
    write_cog(tmp_path / "map.tif", classes, box=NORTH, colours=COLOURS, class_names=NAMES)
    copy(tmp_path / "map.tif", tmp_path / "copy.tif", driver="GTiff")
    names = [node.text or "" for node in ET.parse(tmp_path / "copy.tif.aux.xml").iter("Category")]
    assert names == ["bare soil", "maize & more", "", "", "", "", "", "eau é"]


def test_overviews_of_classes_hold_no_new_classes(tmp_path, classes):
    write_cog(tmp_path / "map.tif", classes, box=NORTH, colours=COLOURS)
    with rasterio.open(tmp_path / "map.tif", overview_level=0) as ds:
        assert set(np.unique(ds.read(1))) <= {0, 1, 7, 255}


def test_continuous_data_gets_a_predictor_and_mean_overviews(tmp_path):
    field = np.arange(NORTH.height * NORTH.width, dtype=np.float32).reshape(NORTH.shape)
    write_cog(tmp_path / "p.tif", field, box=NORTH, nodata=-1.0, overview="average")
    with rasterio.open(tmp_path / "p.tif") as ds:
        np.testing.assert_array_equal(ds.read(1), field)
        assert ds.tags(ns="IMAGE_STRUCTURE")["PREDICTOR"] == "3"
    with rasterio.open(tmp_path / "p.tif", overview_level=0) as ds:
        assert ds.read(1)[0, 0] == pytest.approx(field[:2, :2].mean())


def test_uint8_probability_gets_the_integer_predictor(tmp_path, classes):
    write_cog(tmp_path / "p.tif", classes, box=NORTH, overview="average")
    with rasterio.open(tmp_path / "p.tif") as ds:
        assert ds.tags(ns="IMAGE_STRUCTURE")["PREDICTOR"] == "2"


def test_southern_files_are_in_the_southern_plane(tmp_path):
    field = np.ones(SOUTH.shape, np.uint8)
    write_cog(tmp_path / "s.tif", field, box=SOUTH)
    with rasterio.open(tmp_path / "s.tif") as ds:
        assert ds.crs.to_epsg() == 32736
        assert ds.transform * (0, 0) == (409_600.0, 10_000_000.0 - 204_800.0)


def test_provenance_survives(tmp_path, classes):
    text = '{"recipe":"r1","model":"random"}'
    write_cog(tmp_path / "map.tif", classes, box=NORTH, tags=(("EARTHPRESS_PROVENANCE", text),))
    with rasterio.open(tmp_path / "map.tif") as ds:
        assert ds.tags()["EARTHPRESS_PROVENANCE"] == text


@pytest.mark.parametrize("bands", [3, 4])
def test_pictures_are_valid_cogs_with_their_bands_named(tmp_path, bands):
    cogeo = pytest.importorskip("rio_cogeo.cogeo")
    picture = np.random.default_rng(0).integers(0, 256, (bands, *SOUTH.shape), dtype=np.uint8)
    write_cog(tmp_path / "rgb.tif", picture, box=SOUTH, nodata=None, overview="average")
    assert cogeo.cog_validate(tmp_path / "rgb.tif", strict=True)[0]
    with rasterio.open(tmp_path / "rgb.tif") as ds:
        assert [c.name for c in ds.colorinterp] == ["red", "green", "blue", "alpha"][:bands]
        np.testing.assert_array_equal(ds.read(), picture)


def test_the_same_array_gives_the_same_bytes(tmp_path, classes):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_cog(tmp_path / name / "m.tif", classes, box=NORTH, colours=COLOURS, class_names=NAMES)
    for name in ("m.tif", "m.tif.aux.xml"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_nothing_else_is_left_beside_the_file(tmp_path, classes):
    write_cog(tmp_path / "map.tif", classes, box=NORTH, class_names=NAMES)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["map.tif", "map.tif.aux.xml"]


def test_names_of_an_older_map_do_not_stay(tmp_path, classes):
    write_cog(tmp_path / "map.tif", classes, box=NORTH, class_names=NAMES)
    write_cog(tmp_path / "map.tif", classes, box=NORTH)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["map.tif"]


KILLED = """
import os, signal
import numpy as np
from pipeline.types import Box
from pipeline.write.geotiff import write_cog
def at(step):
    if step == STEP:
        os.kill(os.getpid(), signal.SIGKILL)
box = Box(zone=31, res_m=10, row=0, col=0, height=300, width=300)
write_cog(PATH, np.ones(box.shape, np.uint8), box=box, class_names=((1, "one"),), at=at)
"""


@pytest.mark.parametrize("step", ["written", "names"])
def test_a_killed_writer_leaves_no_file_and_the_next_one_cleans_up(tmp_path, in_process, step):
    path = tmp_path / "map.tif"
    killed = in_process(f"STEP, PATH = {step!r}, {str(path)!r}\n{KILLED}")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert list(tmp_path.glob("*.tif")) == []
    box = Box(zone=31, res_m=10, row=0, col=0, height=300, width=300)
    write_cog(path, np.ones(box.shape, np.uint8), box=box)
    assert [p.name for p in tmp_path.iterdir()] == ["map.tif"]


def test_a_killed_writer_keeps_the_older_file(tmp_path, in_process):
    path = tmp_path / "map.tif"
    box = Box(zone=31, res_m=10, row=0, col=0, height=300, width=300)
    write_cog(path, np.full(box.shape, 9, np.uint8), box=box)
    killed = in_process(f"STEP, PATH = 'names', {str(path)!r}\n{KILLED}")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    with rasterio.open(path) as ds:
        assert (ds.read(1) == 9).all()


@pytest.mark.parametrize(
    ("array", "fields", "text"),
    [
        (np.zeros((5, 5), np.uint8), {}, "must be"),
        (np.zeros((2, *SOUTH.shape), np.uint8), {}, "must be"),
        (np.zeros((3, *SOUTH.shape), np.float32), {}, "uint8"),
        (np.zeros((4, *SOUTH.shape), np.uint8), {"nodata": 255}, "alpha"),
        (np.zeros(SOUTH.shape, np.int16), {"colours": COLOURS}, "uint8"),
        (np.zeros(SOUTH.shape, np.uint8), {"colours": COLOURS, "overview": "average"}, "mode"),
        (np.zeros(SOUTH.shape, np.uint8), {"colours": ((0, "red"),)}, "#rrggbb"),
    ],
)
def test_what_does_not_fit_together_is_refused(tmp_path, array, fields, text):
    with pytest.raises(InvalidInputError, match=text):
        write_cog(tmp_path / "x.tif", array, box=SOUTH, **fields)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_an_output_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot be written"):
        write_cog(tmp_path / "file" / "x.tif", np.zeros(SOUTH.shape, np.uint8), box=SOUTH)
