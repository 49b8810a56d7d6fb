"""Maps as GeoTIFFs: every kind is a strictly valid COG, streamed or not, and is never seen half-written."""

from __future__ import annotations

import signal

import numpy as np
import pytest
import rasterio

from pipeline.errors import InvalidInputError, OutputError
from pipeline.types import Box
from pipeline.write import frames, geotiff, streamed
from pipeline.write.frames import Frame

NORTH = Box(zone=31, res_m=10, row=-512_000, col=51_200, height=1100, width=1300)
SOUTH = Box(zone=36, res_m=10, row=20_480, col=40_960, height=700, width=600)
SMALL = Box(zone=31, res_m=80, row=-64_003, col=6401, height=33, width=40)
ROW = Box(zone=31, res_m=10, row=-512_000, col=51_200, height=1, width=900)
PLACES = {"north": NORTH, "south": SOUTH, "small": SMALL, "row": ROW}
COLOURS = ((0, "#884400"), (1, "#ffee00"), (7, "#0000ff"))
NAMES = ((0, "bare soil"), (1, "maize & more"), (7, "eau é"))
FURTHER = (
    geotiff.Further(name="confidence", title="how sure", units="%"),
    geotiff.Further(name="p0", title="probability of bare soil", units="%"),
    geotiff.Further(name="p1", title="probability of maize & more", units="%"),
)


def layers_of(box, count=1):
    rng = np.random.default_rng(1)
    classes = rng.choice(np.array([0, 1, 7, 255], np.uint8), box.shape)
    others = [rng.integers(0, 101, box.shape, dtype=np.uint8) for _ in range(count - 1)]
    for values in others:
        values[classes == 255] = 255
    return [classes, *others]


def write_classes(path, box, layers, **options):
    geotiff.write_classes(
        path,
        lambda rows, cols: [layer[rows, cols] for layer in layers],
        box=box,
        colours=COLOURS,
        class_names=NAMES,
        further=FURTHER[: len(layers) - 1],
        **options,
    )


def numbers_of(box):
    field = np.random.default_rng(2).normal(5, 2, box.shape).astype(np.float32)
    field[: box.height // 3] = np.nan
    return field


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", ["classes", "bands", "values"])
def test_every_kind_is_a_strictly_valid_cog_at_its_place(tmp_path, kind, place):
    cogeo = pytest.importorskip("rio_cogeo.cogeo")
    box, path = PLACES[place], tmp_path / "m.tif"
    if kind == "values":
        wanted = numbers_of(box)[np.newaxis]
        geotiff.write_values(path, wanted[0], box=box, units="m", title="height")
    else:
        wanted = np.stack(layers_of(box, 4 if kind == "bands" else 1))
        write_classes(path, box, list(wanted), predictor=kind == "bands")
    assert cogeo.cog_validate(path, strict=True) == (True, [], [])
    with rasterio.open(path) as found:
        np.testing.assert_array_equal(found.read(), wanted)
        epsg, transform = frames.place(box)
        assert (found.crs.to_epsg(), found.transform) == (epsg, transform)
        assert epsg == (32736 if place == "south" else 32631)
        assert found.compression.name == "deflate"
        assert found.overviews(1)
        assert set(found.block_shapes) == {(512, 512)}


@pytest.mark.parametrize("place", ["north", "small"])
def test_streamed_classes_equal_those_written_from_memory(tmp_path, place):
    box = PLACES[place]
    (classes,) = layers_of(box)
    write_classes(tmp_path / "streamed.tif", box, [classes])
    geotiff.write_cog(tmp_path / "whole.tif", classes, box=box, colours=COLOURS, class_names=NAMES)
    assert (tmp_path / "streamed.tif").read_bytes() == (tmp_path / "whole.tif").read_bytes()
    sides = [(tmp_path / f"{name}.tif.aux.xml").read_bytes() for name in ("streamed", "whole")]
    assert sides[0] == sides[1]


def test_numbers_say_what_they_are(tmp_path):
    geotiff.write_values(
        tmp_path / "v.tif", numbers_of(NORTH), box=NORTH, units="t/ha", title="yield", valid_range=(0.5, 12.0),
        tags=(("EARTHPRESS_PROVENANCE", '{"a":1}'),),
    )  # fmt: skip
    with rasterio.open(tmp_path / "v.tif") as found:
        assert found.dtypes == ("float32",)
        assert np.isnan(found.nodata)
        assert (found.units[0], found.descriptions[0]) == ("t/ha", "yield")
        assert found.tags(ns="IMAGE_STRUCTURE")["PREDICTOR"] == "3"
        assert found.tags()["EARTHPRESS_PROVENANCE"] == '{"a":1}'
    assert geotiff.range_of(geotiff.tags_of(tmp_path / "v.tif")) == (0.5, 12.0)


def test_overviews_of_numbers_are_means_of_what_is_known(tmp_path):
    field = numbers_of(NORTH)
    geotiff.write_values(tmp_path / "v.tif", field, box=NORTH, units="m", title="height")
    with rasterio.open(tmp_path / "v.tif", overview_level=0) as found:
        small = found.read(1)
    start = NORTH.height // 3 // 2 + 1
    mean = field[2 * start : 2 * start + 200, :400].reshape(100, 2, 200, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(small[start : start + 100, :200], mean, rtol=1e-5)
    assert np.isnan(small[: start - 2]).all()


def test_bands_are_found_by_name(tmp_path):
    layers = layers_of(NORTH, 4)
    write_classes(tmp_path / "m.tif", NORTH, layers)
    assert geotiff.layers(tmp_path / "m.tif") == ("", "confidence", "p0", "p1")
    values, box, title = geotiff.read_layer(tmp_path / "m.tif", "p1")
    np.testing.assert_array_equal(values, layers[3])
    assert (box, title) == (NORTH, "probability of maize & more")
    assert geotiff.read_layer(tmp_path / "m.tif", "spread")[2] == ""
    with rasterio.open(tmp_path / "m.tif") as found:
        assert found.units[1] == "%"
        assert found.colormap(1)[1][:3] == (255, 238, 0)


def test_ground_without_data_is_never_asked_for_twice_and_reads_nodata(tmp_path):
    asked = []

    def read(rows, cols):
        asked.append((rows.start, cols.start))
        return None if rows.start == 0 else [np.ones((rows.stop - rows.start, cols.stop - cols.start), np.uint8)]

    box = Box(zone=31, res_m=10, row=-2048 - 300, col=0, height=600, width=100)
    geotiff.write_classes(tmp_path / "m.tif", read, box=box, colours=COLOURS, class_names=NAMES)
    assert asked == [(0, 0), (300, 0)]
    with rasterio.open(tmp_path / "m.tif") as found:
        values = found.read(1)
    assert (values[:300] == 255).all()
    assert (values[300:] == 1).all()


def test_squares_are_cut_at_multiples_of_the_lattice(tmp_path):
    box = Box(zone=31, res_m=10, row=-2348, col=2000, height=600, width=100)
    (classes,) = layers_of(box)
    write_classes(tmp_path / "m.tif", box, [classes])
    found = list(geotiff.squares(tmp_path / "m.tif"))
    assert [(part.row, part.col, part.height, part.width) for part, _ in found] == [
        (-2348, 2000, 300, 48), (-2348, 2048, 300, 52), (-2048, 2000, 300, 48), (-2048, 2048, 300, 52),
    ]  # fmt: skip
    for part, values in found:
        np.testing.assert_array_equal(values, classes[part.slices_in(box)])


def test_a_result_that_differs_from_what_went_in_is_not_published(tmp_path, monkeypatch):
    copied = streamed.assemble

    def damage(sources, target, form):
        copied(sources, target, form)
        with rasterio.open(target, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as file:
            values = file.read(1)
            values[5, 7] = 1 - values[5, 7] % 2
            file.write(values, 1)

    monkeypatch.setattr(streamed, "assemble", damage)
    with pytest.raises(OutputError, match="reads back differently"):
        write_classes(tmp_path / "m.tif", SOUTH, layers_of(SOUTH))
    assert list(tmp_path.glob("*")) == []


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (np.zeros((5, 5), np.float32), "must be"),
        (np.zeros(SMALL.shape, np.float64), "must have a name and be float32"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(tmp_path, values, text):
    with pytest.raises(InvalidInputError, match=text):
        geotiff.write_values(tmp_path / "v.tif", values, box=SMALL, units="m", title="height")
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_another_plane_is_a_valid_cog(tmp_path):
    cogeo = pytest.importorskip("rio_cogeo.cogeo")
    from affine import Affine

    frame = Frame(crs="EPSG:3035", transform=Affine(10, 0, 4_000_000, 0, -10, 3_000_000), height=600, width=700)
    (classes,) = layers_of(Box(zone=31, res_m=10, row=0, col=0, height=600, width=700))
    write_classes(tmp_path / "m.tif", frame, [classes])
    assert cogeo.cog_validate(tmp_path / "m.tif", strict=True) == (True, [], [])
    with rasterio.open(tmp_path / "m.tif") as found:
        assert (found.crs.to_epsg(), found.transform) == (3035, frame.transform)


KILLED = """
import os, signal
import numpy as np
from pipeline.types import Box
from pipeline.write import geotiff
def at(step):
    if step == STEP:
        os.kill(os.getpid(), signal.SIGKILL)
box = Box(zone=31, res_m=10, row=0, col=0, height=300, width=300)
ones = np.ones(box.shape, np.uint8)
if KIND == "values":
    geotiff.write_values(PATH, ones.astype(np.float32), box=box, units="m", title="x", at=at)
else:
    bands = [geotiff.Further(name="a", title="a")] if KIND == "bands" else []
    geotiff.write_classes(PATH, lambda r, c: [ones[r, c]] * (1 + len(bands)), box=box, colours=((1, "#ffffff"),),
                          class_names=((1, "one"),), further=bands, at=at)
"""


@pytest.mark.parametrize(
    ("kind", "step"),
    [("classes", "filled"), ("bands", "filled"), ("bands", "written"), ("bands", "names"), ("values", "written")],
)
def test_a_killed_writer_leaves_no_file_and_the_next_one_cleans_up(tmp_path, in_process, kind, step):
    path = tmp_path / "map.tif"
    killed = in_process(f"KIND, STEP, PATH = {kind!r}, {step!r}, {str(path)!r}\n{KILLED}")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert list(tmp_path.glob("*.tif")) == []
    assert list(tmp_path.glob(".map.tif.*.tmp"))
    box = Box(zone=31, res_m=10, row=0, col=0, height=300, width=300)
    geotiff.write_values(path, np.ones(box.shape, np.float32), box=box, units="", title="x")
    assert [p.name for p in tmp_path.iterdir()] == ["map.tif"]
