"""Files read small: the same ground, classes by mode, numbers by mean, nodata left out."""

import numpy as np
import pytest

from pipeline.errors import OutputError
from pipeline.types import Box, canonical_json
from pipeline.write import geotiff, shrunk

BOX = Box(zone=31, res_m=10, row=-553_216, col=30_208, height=1024, width=768)
CLASSES = ((0, "bare", "#c0a080"), (1, "water", "#2060e0"))


@pytest.fixture(scope="module")
def class_map(tmp_path_factory):
    values = np.zeros(BOX.shape, np.uint8)
    values[:, 300:] = 1
    values[:64] = 255
    sure = np.where(values == 255, 255, np.arange(768) // 8).astype(np.uint8)
    path = tmp_path_factory.mktemp("map") / "map.tif"

    def read(rows, cols):
        return [values[rows, cols], sure[rows, cols]]

    geotiff.write_classes(
        path,
        read,
        box=BOX,
        colours=tuple((value, colour) for value, _, colour in CLASSES),
        class_names=tuple((value, name) for value, name, _ in CLASSES),
        tags=((geotiff.CLASSES_TAG, canonical_json(CLASSES)),),
        further=(geotiff.Further(name="confidence", title="how sure", units="%"),),
    )
    return path, values, sure


def test_a_file_says_what_it_is_and_where_it_lies(class_map):
    found = shrunk.describe(class_map[0])
    assert (found.ground.zone, found.ground.pixel_m, found.ground.height, found.ground.width) == (31, 10, 1024, 768)
    assert (found.ground.west_m, found.ground.north_m) == (302_080, 5_532_160)
    assert found.classes == CLASSES
    assert [(band.number, band.name, band.units) for band in found.bands] == [(1, "", ""), (2, "confidence", "%")]


def test_a_file_in_the_south_lies_in_the_plane_of_the_lattice(tmp_path):
    box = Box(zone=56, res_m=10, row=375_040, col=33_024, height=256, width=256)
    geotiff.write_cog(tmp_path / "south.tif", np.zeros(box.shape, np.uint8), box=box)
    assert shrunk.describe(tmp_path / "south.tif").ground.north_m == -3_750_400


@pytest.mark.parametrize("factor", [1, 2, 4, 8, 64])
def test_classes_become_the_commonest_and_nodata_does_not_count(class_map, factor):
    path, values, _ = class_map
    small = shrunk.read(path, 1, factor=factor, how="mode")
    assert small.shape == (1024 // factor, 768 // factor)
    middle = values[factor // 2 :: factor, factor // 2 :: factor]
    edge = np.zeros(small.shape, np.bool_)
    edge[:, 300 // factor] = True
    np.testing.assert_array_equal(small[~edge], middle[~edge])


def test_numbers_become_means_without_nodata(class_map):
    path, _, sure = class_map
    small = shrunk.read(path, 2, factor=16, how="average")
    np.testing.assert_allclose(small[8], sure[512].reshape(48, 16).mean(axis=1), atol=1)
    assert (small[:4] == 255).all()


def test_colours_are_means_of_what_is_seen(tmp_path):
    seen = np.random.default_rng(0).random((512, 512)) < 0.3
    rgba = np.zeros((512, 512, 4), np.uint8)
    rgba[seen] = (200, 100, 50, 255)
    rgba[:128] = 0
    box = Box(zone=31, res_m=10, row=-553_216, col=30_208, height=512, width=512)
    geotiff.write_cog(tmp_path / "c.tif", np.moveaxis(rgba, -1, 0), box=box, nodata=None, overview="average")
    small = shrunk.read_rgba(tmp_path / "c.tif", factor=8)
    assert not small[:16].any()
    assert (small[16:] == (200, 100, 50, 255)).all()


def test_what_is_no_file_of_ours_is_an_output_error(tmp_path):
    (tmp_path / "x.tif").write_bytes(b"II*\0nothing")
    with pytest.raises(OutputError, match=r"x\.tif"):
        shrunk.describe(tmp_path / "x.tif")
    with pytest.raises(OutputError, match=r"x\.tif"):
        shrunk.read(tmp_path / "x.tif", 1, factor=1, how="mode")
