"""Virtual rasters: the pixels of the files they name, at their place, with names and colours, movable."""

from __future__ import annotations

import shutil
import signal
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import rasterio
from rasterio.shutil import copy

from pipeline.errors import InvalidInputError, OutputError
from pipeline.types import Box
from pipeline.write import geotiff, vrt

CLASSES = ((0, "bare soil", "#884400"), (2, "eau é & <more>", "#0000ff"))
TAGS = (
    (geotiff.CLASSES_TAG, '[[0,"bare soil","#884400"],[2,"eau é & <more>","#0000ff"]]'),
    ("EARTHPRESS_PROVENANCE", '{"x":"<&>"}'),
)


def box(row, col, height=300, width=200, zone=36):
    return Box(zone=zone, res_m=10, row=row, col=col, height=height, width=width)


def cog(path, place, *, seed=0, bands=1):
    rng = np.random.default_rng(seed)
    layers = [rng.choice(np.array([0, 2, 255], np.uint8), place.shape) for _ in range(bands)]
    geotiff.write_classes(
        path,
        lambda rows, cols: [layer[rows, cols] for layer in layers],
        box=place,
        colours=[(value, colour) for value, _, colour in CLASSES],
        class_names=[(value, name) for value, name, _ in CLASSES],
        tags=TAGS,
        further=tuple(geotiff.Further(name=f"p{k}", title=f"share {k}", units="%") for k in range(bands - 1)),
    )
    return np.stack(layers)


@pytest.fixture(params=[1, 3])
def made(request, tmp_path):
    """(VRT, pixels it should have) of three files that leave a corner empty."""
    folder = tmp_path / "maps"
    folder.mkdir()
    places = [box(-300, 500), box(-300, 700, width=100), box(-500, 500, height=200)]
    whole = np.full((request.param, 500, 300), 255, np.uint8)
    for k, place in enumerate(places):
        rows, cols = slice(place.row + 500, place.row_stop + 500), slice(place.col - 500, place.col_stop - 500)
        whole[:, rows, cols] = cog(folder / f"{k}.tif", place, seed=k, bands=request.param)
    vrt.write_vrt(folder / "all.vrt", sorted(folder.glob("*.tif")))
    return folder / "all.vrt", whole


def test_its_pixels_are_those_of_the_files_and_nodata_elsewhere(made):
    with rasterio.open(made[0]) as found:
        np.testing.assert_array_equal(found.read(), made[1])
        assert set(found.nodatavals) == {255}
        assert found.crs.to_epsg() == 32636
        assert found.transform * (0, 0) == (5000, 5000)


def test_names_colours_bands_and_tags_are_those_of_the_files(made):
    bands = len(made[1])
    with rasterio.open(made[0]) as found:
        assert found.colormap(1)[2] == (0, 0, 255, 255)
        assert found.tags()["EARTHPRESS_PROVENANCE"] == '{"x":"<&>"}'
        if bands > 1:
            assert found.descriptions == ("class", "share 0", "share 1")
            assert found.units[1:] == ("%", "%")
    assert geotiff.layers(made[0]) == ("", "p0", "p1")[:bands]
    assert geotiff.read_classes(made[0])[2] == CLASSES
    assert geotiff.read_classes(made[0])[1] == box(-500, 500, height=500, width=300)


def test_gdal_knows_its_category_names(made, tmp_path):
    copy(made[0], tmp_path / "copy.tif", driver="GTiff")
    names = [node.text or "" for node in ET.parse(tmp_path / "copy.tif.aux.xml").iter("Category")]
    assert names == ["bare soil", "", "eau é & <more>"]


def test_a_folder_that_is_moved_still_opens(made, tmp_path):
    shutil.move(made[0].parent, tmp_path / "elsewhere")
    with rasterio.open(tmp_path / "elsewhere" / "all.vrt") as found:
        np.testing.assert_array_equal(found.read(), made[1])
    for node in ET.parse(tmp_path / "elsewhere" / "all.vrt").iter("SourceFilename"):
        assert node.get("relativeToVRT") == "1"
        assert "/" not in node.text


def test_files_that_are_not_given_are_not_listed(made):
    cog(made[0].parent / "stale.tif", box(-5000, 500))
    vrt.write_vrt(made[0], sorted(made[0].parent.glob("[0-9].tif")))
    assert "stale" not in made[0].read_text()


def test_numbers_keep_their_units_and_their_nodata(tmp_path):
    fields = []
    for k, place in enumerate((box(0, 500, zone=31), box(300, 500, zone=31))):
        fields.append(np.where(np.eye(*place.shape), np.nan, k + 0.5).astype(np.float32))
        geotiff.write_values(
            tmp_path / f"{k}.tif", fields[-1], box=place, units="m", title="height", valid_range=(0, 2)
        )
    vrt.write_vrt(tmp_path / "all.vrt", [tmp_path / "0.tif", tmp_path / "1.tif"])
    with rasterio.open(tmp_path / "all.vrt") as found:
        np.testing.assert_array_equal(found.read(1), np.concatenate(fields))
        assert np.isnan(found.nodata)
        assert (found.units[0], found.descriptions[0], found.dtypes[0]) == ("m", "height", "float32")
        assert found.crs.to_epsg() == 32731
    assert geotiff.range_of(geotiff.tags_of(tmp_path / "all.vrt")) == (0, 2)


def test_both_sides_of_the_equator_lie_in_one_plane(tmp_path):
    north, south = box(-100, 500, height=100), box(0, 500, height=200)
    pixels = np.concatenate([cog(tmp_path / "n.tif", north), cog(tmp_path / "s.tif", south)], axis=1)
    vrt.write_vrt(tmp_path / "all.vrt", [tmp_path / "n.tif", tmp_path / "s.tif"])
    with rasterio.open(tmp_path / "all.vrt") as found:
        np.testing.assert_array_equal(found.read(), pixels)
        assert found.crs.to_epsg() == 32736
        assert found.transform * (0, 0) == (5000, 10_001_000)


def test_files_that_overlap_are_refused(tmp_path):
    cog(tmp_path / "a.tif", box(-300, 500))
    cog(tmp_path / "b.tif", box(-200, 500))
    with pytest.raises(InvalidInputError, match="overlap"):
        vrt.write_vrt(tmp_path / "all.vrt", [tmp_path / "a.tif", tmp_path / "b.tif"])


def test_files_of_other_bands_or_zones_are_refused(tmp_path):
    cog(tmp_path / "a.tif", box(-300, 500))
    cog(tmp_path / "b.tif", box(-600, 500), bands=2)
    cog(tmp_path / "c.tif", box(-600, 500, zone=37))
    for other in ("b.tif", "c.tif"):
        with pytest.raises(OutputError, match="other bands or another grid"):
            vrt.write_vrt(tmp_path / "all.vrt", [tmp_path / "a.tif", tmp_path / other])
    with pytest.raises(OutputError, match="cannot be read"):
        vrt.write_vrt(tmp_path / "all.vrt", [tmp_path / "missing.tif"])


@pytest.mark.parametrize("step", ["virtual", "temp"])
def test_a_killed_writer_leaves_the_older_file(tmp_path, in_process, step):
    cog(tmp_path / "a.tif", box(-300, 500))
    (tmp_path / "all.vrt").write_text("older")
    code = f"""
import os, signal
from pipeline.write import vrt
def at(step):
    if step == {step!r}:
        os.kill(os.getpid(), signal.SIGKILL)
vrt.write_vrt({str(tmp_path / "all.vrt")!r}, [{str(tmp_path / "a.tif")!r}], at=at)
"""
    killed = in_process(code)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (tmp_path / "all.vrt").read_text() == "older"
