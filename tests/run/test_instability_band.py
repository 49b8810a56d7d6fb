"""The bands beside a class map: where windows disagree, the map is wrong more often. Known truth, small encoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio

from pipeline import api
from pipeline.errors import ConfigError, InvalidInputError, OutputError, StoppedError
from pipeline.run.demo import read_pair
from pipeline.run.heads import fit_probe, map_store
from pipeline.types import Box
from pipeline.write import store
from pipeline.write.geotiff import read_band, read_classes, write_cog
from tests.run.sampled import digest, request_of, run_request

HALF = "encode.overlap_px=32"
"""Half a window: every pixel is seen by four."""
END = "2024-05-31"
"""Two periods are enough here."""


@pytest.fixture(scope="module")
def head(sample, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fit") / "out"
    run_request(request_of(sample, folder, HALF, end=END))
    return fit_probe(str(folder), str(sample.labels), column="class")[2]


def maps_of(head, *, name="landcover"):
    return ({"name": name, "head": head, "instability": True},)


def interrupted(after):
    """Stops a run when ``after`` tiles are committed."""
    done = []

    def at(stage, tile):
        if stage == "committed":
            done.append(tile)
            if len(done) == after:
                raise StoppedError("test")

    return at


@pytest.fixture(scope="module")
def made(sample, head, tmp_path_factory):
    """(folder, plan, outcome) of a run in tiles of 256 px that was stopped once and went on."""
    folder = tmp_path_factory.mktemp("band") / "out"
    plan, stopped = run_request(request_of(sample, folder, HALF, end=END, maps=maps_of(head)), at=interrupted(2))
    assert stopped.stopped
    assert 0 < stopped.computed < len(plan.tasks)
    return folder, plan, api.run(plan)


@pytest.fixture(scope="module")
def pixels(sample, made):
    """(found class, true class, disagreement, spread) of all maps, flat, where all are known."""
    parts = []
    for path in made[2].published.maps:
        found, truth = read_pair(path, sample)
        bands = [read_band(path, number)[0].astype(int) for number in (2, 3)]
        known = (found >= 0) & (truth >= 0) & (bands[0] < 255)
        parts.append(np.stack([values[known] for values in (found, truth, *bands)]))
    return np.concatenate(parts, axis=1)


def test_windows_disagree_more_where_the_map_is_wrong(pixels):
    found, truth, disagreement, _ = pixels
    right = found == truth
    assert right.mean() > 0.8
    assert (~right).sum() > 5000
    assert disagreement[~right].mean() > 3 * disagreement[right].mean()


def test_a_quarter_of_the_vote_against_a_class_makes_errors_several_times_likelier(pixels):
    found, truth, disagreement, _ = pixels
    wrong = found != truth
    assert (disagreement >= 25).sum() > 2000
    assert wrong[disagreement >= 25].mean() > 3 * wrong[disagreement == 0].mean()


def test_windows_disagree_at_borders_of_classes_more_than_inside(made):
    for path in made[2].published.maps:
        classes, _, _ = read_classes(path)
        disagreement = read_band(path, 2)[0].astype(int)
        down, across = classes[1:] != classes[:-1], classes[:, 1:] != classes[:, :-1]
        border = np.zeros(classes.shape, np.bool_)
        border[1:] |= down
        border[:-1] |= down
        border[:, 1:] |= across
        border[:, :-1] |= across
        known = disagreement < 255
        assert disagreement[border & known].mean() > 5 * disagreement[~border & known].mean()


def test_the_bands_are_known_exactly_where_the_map_is(made):
    for path in made[2].published.maps:
        classes, _, _ = read_classes(path)
        for number in (2, 3):
            np.testing.assert_array_equal(read_band(path, number)[0] == 255, classes == 255)
        assert read_band(path, 2)[0][classes < 255].max() <= 100


def test_the_map_is_a_cog_with_named_bands_and_its_colours(made, head):
    cogeo = pytest.importorskip("rio_cogeo.cogeo")
    for path in made[2].published.maps:
        assert cogeo.cog_validate(path, strict=True) == (True, [], [])
        with rasterio.open(path) as found:
            assert found.count == 3
            assert found.descriptions[0] == "class"
            assert "per cent" in found.descriptions[1]
            assert "tenths of a code step" in found.descriptions[2]
            assert found.nodatavals == (255, 255, 255)
            colours = found.colormap(1)
        for value, _, colour in read_classes(path)[2]:
            assert "#{:02x}{:02x}{:02x}".format(*colours[value][:3]) == colour


def test_pictures_of_both_layers_stand_beside_the_map(made):
    published = made[2].published
    assert {Path(p).name for p in published.pictures} == {
        "landcover_utm32.png", "landcover.instability_utm32.png", "landcover.spread_utm32.png",
    }  # fmt: skip
    text = Path(published.page).read_text(encoding="utf-8")
    for name in ("Map landcover", "Instability of landcover", "Spread of landcover", "10 and more"):
        assert name in text


def test_tiles_of_another_size_give_the_same_bytes_also_after_a_stop(sample, made, head, tmp_path):
    folder, plan, _ = made
    settings = request_of(sample, tmp_path / "out", HALF, "store.tile_px=512", end=END, maps=maps_of(head))
    other, _ = run_request(settings)
    compared = 0
    for task in other.tasks:
        big = task.tile.box
        for small in (t.tile for t in plan.tasks):
            if big.intersect(small.box) is None:
                continue
            cut = small.box.slices_in(big)
            for name in ("landcover", "landcover_instability", "embedding_spread"):
                mine = store.read_map(folder / "store.zarr", small, name)
                theirs = store.read_map(tmp_path / "out" / "store.zarr", task.tile, name)[cut]
                np.testing.assert_array_equal(mine, theirs)
                compared += mine.size
    assert compared == 3 * len(plan.tasks) * 256**2


def test_running_again_changes_nothing(made):
    folder, plan, outcome = made
    before = digest(folder)
    cogs = {path: Path(path).read_bytes() for path in outcome.published.maps}
    again = api.run(plan)
    assert again.computed == 0
    assert digest(folder) == before
    assert {path: Path(path).read_bytes() for path in again.published.maps} == cogs


def test_the_store_says_what_the_layers_are(made):
    layers = store.open_store(made[0] / "store.zarr")
    assert "per cent" in layers["map_landcover_instability"].attrs["long_name"]
    assert "tenths of a code step" in layers["map_embedding_spread"].attrs["long_name"]
    assert layers["map_landcover_instability"].attrs["nodata"] == 255


def test_a_map_made_later_from_the_store_has_no_instability(made, head):
    published = map_store(str(made[0]), head, name="later")
    later = [path for path in published.maps if Path(path).name.startswith("later_")]
    assert later
    for path in later:
        with rasterio.open(path) as found:
            assert found.count == 1
        assert read_band(path, 2)[2] == ""


@pytest.mark.parametrize(
    ("settings", "text"),
    [(("encode.stitch=centre", HALF), "stitch=centre"), (("encode.overlap_px=0",), "overlap_px is 0")],
)
def test_windows_that_do_not_overlap_are_refused_at_planning(sample, head, tmp_path, settings, text):
    with pytest.raises(ConfigError, match=text):
        api.plan(request_of(sample, tmp_path / "out", *settings, end=END, maps=maps_of(head)))


def test_a_map_with_the_name_of_a_layer_is_refused_at_planning(sample, head, tmp_path):
    maps = (*maps_of(head), {"name": "landcover_instability", "head": head})
    with pytest.raises(ConfigError, match="landcover_instability"):
        api.plan(request_of(sample, tmp_path / "out", HALF, end=END, maps=maps))


def test_an_output_made_without_the_layers_is_not_mixed_with_them(sample, made, head):
    plain = ({"name": "landcover", "head": head},)
    with pytest.raises(OutputError, match="landcover_instability"):
        api.plan(request_of(sample, made[0], HALF, end=END, maps=plain))


# --- the file alone ---------------------------------------------------------------------------------------------------

PLACE = Box(zone=36, res_m=10, row=20_480, col=40_960, height=1101, width=1303)
EVEN = Box(zone=36, res_m=10, row=20_480, col=40_960, height=1100, width=1300)


def bands_of(box):
    rng = np.random.default_rng(0)
    classes, share, spread = (rng.integers(0, top, box.shape, dtype=np.uint8) for top in (3, 101, 255))
    for values in (classes, share, spread):
        values[:100] = 255
    return classes, (("share", share), ("spread", spread))


def test_overviews_are_of_classes_by_mode_and_of_further_bands_by_average(tmp_path):
    classes, further = bands_of(EVEN)
    write_cog(tmp_path / "m.tif", classes, box=EVEN, colours=((0, "#884400"), (2, "#ffee00")), further=further)
    with rasterio.open(tmp_path / "m.tif", overview_level=0) as found:
        small = found.read()
    assert set(np.unique(small[0])) <= {0, 1, 2, 255}
    for band, (_, values) in enumerate(further, 1):
        mean = values[200:400, 200:400].reshape(100, 2, 100, 2).mean(axis=(1, 3))
        assert np.abs(small[band, 100:200, 100:200] - mean).max() <= 0.5
    assert (small[:, :50] == 255).all()


def test_a_file_with_further_bands_lies_at_its_place_and_has_the_same_bytes_again(tmp_path):
    classes, further = bands_of(PLACE)
    for name in ("a.tif", "b.tif"):
        write_cog(tmp_path / name, classes, box=PLACE, further=further, tags=(("KEY", 'x<"&>'),))
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()
    with rasterio.open(tmp_path / "a.tif") as found:
        assert found.crs.to_epsg() == 32736
        assert found.transform * (0, 0) == (409_600.0, 10_000_000.0 - 204_800.0)
        assert found.tags()["KEY"] == 'x<"&>'
        np.testing.assert_array_equal(found.read(), [classes, *(values for _, values in further)])
    assert read_band(tmp_path / "a.tif", 3)[1] == PLACE


@pytest.mark.parametrize(
    "further",
    [(("", np.zeros(PLACE.shape, np.uint8)),), (("x", np.zeros((5, 5), np.uint8)),), (("x", np.zeros(PLACE.shape)),)],
)
def test_further_bands_that_do_not_fit_are_refused(tmp_path, further):
    with pytest.raises(InvalidInputError, match="must have a name and be uint8"):
        write_cog(tmp_path / "m.tif", np.zeros(PLACE.shape, np.uint8), box=PLACE, further=further)
    assert list(tmp_path.iterdir()) == []


def test_a_map_with_bands_is_not_made_again_from_the_store(made, head):
    with pytest.raises(InvalidInputError, match="use another --name"):
        map_store(str(made[0]), head, name="landcover")
    assert rasterio.open(made[2].published.maps[0]).count == 3
