"""Probabilities, confidence and maps of numbers: of the same pass as from the store, and they say what they are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio

from pipeline import api
from pipeline.errors import ConfigError, InvalidInputError, OutputError
from pipeline.maps import heads
from pipeline.maps.probe import Probe
from pipeline.run.class_maps import head_map, kept_maps, publish_map, store_maps
from pipeline.run.heads import fit_regressor, map_store
from pipeline.run.map_layers import BANDS, MapHead
from pipeline.write import store
from tests.run.sampled import part, request_of, run_request

END = "2024-05-31"
"""Two periods are enough here."""
HEIGHTS = {"forest": 22.0, "water": 0.0}
"""Metres by class; other classes are 2 m high."""


@pytest.fixture(scope="module")
def labels(sample, tmp_path_factory):
    """The sample's polygons with a height that depends on the class and, a little, on the polygon."""
    found = json.loads(Path(sample.labels).read_text())
    for number, feature in enumerate(found["features"]):
        own = feature["properties"]
        own["height"] = HEIGHTS.get(own["class"], 2.0) + 0.1 * (number % 5)
    path = tmp_path_factory.mktemp("labels") / "trees.geojson"
    path.write_text(json.dumps(found))
    return str(path)


@pytest.fixture(scope="module")
def later(sample, labels, tmp_path_factory):
    """(plan, probe file, regressor file, report of the regressor) of a store without maps."""
    folder = tmp_path_factory.mktemp("later") / "out"
    plan, _ = run_request(request_of(sample, folder, end=END, bbox=part(sample.bbox, 0.05, 0.1, 0.5, 0.95)))
    head = str(folder / "cover.json")
    probe_of(plan).save(head)
    _, report, numbers = fit_regressor(str(folder), labels, column="height", units="m")
    return plan, head, numbers, report


def probe_of(plan):
    """Three classes by chance: what is promised here does not depend on how good they are."""
    rng = np.random.default_rng(0)
    return Probe(
        weights=rng.normal(size=(3, plan.model.dims)), bias=np.zeros(3), names=("a", "b", "c"),
        colours=("#aa0000", "#00aa00", "#0000aa"), calibration=plan.calibration.hash, model_sha256=plan.model.sha256,
        model_name=plan.model.name, trained=False, patch_px=8, created="2026-01-02", report="{}",
    )  # fmt: skip


def maps_of(head, numbers, **wish):
    return ({"name": "cover", "head": head} | wish, {"name": "height", "head": numbers})


@pytest.fixture(scope="module")
def same_pass(sample, later, tmp_path_factory):
    """The plan of a run over a corner of the sample that made the maps itself."""
    folder = tmp_path_factory.mktemp("same") / "out"
    maps = maps_of(*later[1:3], probability=True, confidence=True)
    return run_request(request_of(sample, folder, end=END, maps=maps, bbox=corner(sample)))[0]


def corner(sample):
    """Ground of one tile."""
    return part(sample.bbox, 0.05, 0.6, 0.3, 0.95)


def read(plan, tile, name):
    return store.read_map(Path(plan.output) / "store.zarr", tile, name)


def tiles_of(plan):
    return [task.tile for task in plan.tasks]


@pytest.mark.parametrize(("name", "bands", "count"), [("cover", BANDS, 5), ("height", (), 1)])
def test_layers_of_the_same_pass_have_the_bytes_of_those_from_the_store(same_pass, later, name, bands, count):
    head = MapHead(name=name, head=heads.load(later[1] if bands else later[2]), bands=bands)
    made = head_map(later[0], head)
    computed = {name: made.layer} | {f"{name}_{band.name}": band.layer for band in getattr(made, "further", ())}
    assert len(computed) == count
    for tile in tiles_of(same_pass):
        for layer, of_tile in computed.items():
            np.testing.assert_array_equal(read(same_pass, tile, layer), of_tile(tile))


def test_per_cents_add_up_and_the_best_class_leads_by_the_confidence(same_pass):
    for tile in tiles_of(same_pass):
        classes, confidence = (read(same_pass, tile, name) for name in ("cover", "cover_confidence"))
        shares = np.stack([read(same_pass, tile, f"cover_p{k}") for k in range(3)])
        known = classes < 255
        assert (shares[:, ~known] == 255).all()
        assert (confidence[~known] == 255).all()
        found = shares[:, known].astype(int)
        assert np.abs(found.sum(axis=0) - 100).max() <= 1
        best, second = np.sort(found, axis=0)[:-3:-1]
        assert (found[classes[known], np.arange(known.sum())] == best).all()
        assert np.abs(best - second - confidence[known]).max() <= 1


def test_heights_of_held_out_polygons_are_found_and_shuffled_ones_are_not(later):
    assert later[3].r2 > 0.5
    assert later[3].control_r2 < 0.2
    assert later[3].rmse < 0.7 * later[3].baseline_rmse


def test_numbers_are_float32_with_units_and_known_where_classes_are(same_pass):
    layer = store.open_store(Path(same_pass.output) / "store.zarr")["map_height"]
    assert layer.dtype == np.float32
    assert (layer.attrs["units"], layer.attrs["long_name"], "nodata" in layer.attrs) == ("m", "height", False)
    assert layer.attrs["fitted_range"] == [0.0, 22.4]
    for tile in tiles_of(same_pass):
        np.testing.assert_array_equal(np.isnan(read(same_pass, tile, "height")), read(same_pass, tile, "cover") == 255)


def test_the_store_says_what_the_bands_are(same_pass):
    layers = store.open_store(Path(same_pass.output) / "store.zarr")
    assert layers["map_cover_p1"].attrs["units"] == layers["map_cover_confidence"].attrs["units"] == "%"
    assert layers["map_cover_p1"].attrs["long_name"] == "probability of class b of cover, per cent"
    assert layers["map_cover_p1"].attrs["nodata"] == 255


def test_files_of_the_same_pass_say_what_their_bands_are(same_pass):
    cover, height = (publish_map(same_pass, tiles_of(same_pass), made) for made in store_maps(same_pass))
    with rasterio.open(cover.cogs[0]) as found:
        assert (found.count, found.nodata, set(found.dtypes)) == (5, 255, {"uint8"})
        assert found.descriptions[0] == "class"
        assert "ahead of the second" in found.descriptions[1]
        assert [title[:22] for title in found.descriptions[2:]] == [f"probability of class {k}" for k in "abc"]
        assert set(found.units[1:]) == {"%"}
    with rasterio.open(height.cogs[0]) as found:
        assert (found.descriptions, found.units, found.dtypes) == (("height",), ("m",), ("float32",))
        assert np.isnan(found.nodata)


def test_another_wish_is_another_request_of_every_tile(sample, same_pass, later, tmp_path):
    plain, sure = (
        api.plan(
            request_of(
                sample, tmp_path / str(len(wish)), end=END, maps=maps_of(*later[1:3], **wish), bbox=corner(sample)
            )
        )
        for wish in ({}, {"confidence": True})
    )
    one, two, three = ({task.fingerprint for task in plan.tasks} for plan in (plain, sure, same_pass))
    assert not one & two
    assert not two & three


def test_an_output_made_with_bands_is_not_mixed_with_maps_without_them(sample, same_pass, later):
    with pytest.raises(OutputError, match="maps"):
        api.plan(request_of(sample, same_pass.output, end=END, maps=maps_of(*later[1:3]), bbox=corner(sample)))


@pytest.mark.parametrize("wish", ["probability", "confidence", "instability"])
def test_bands_of_classes_are_refused_for_numbers_at_planning(sample, later, tmp_path, wish):
    maps = ({"name": "height", "head": later[2], wish: True},)
    with pytest.raises(ConfigError, match=f"height is a regression: {wish}"):
        api.plan(request_of(sample, tmp_path / "out", "encode.overlap_px=32", end=END, maps=maps))


def test_bands_of_classes_are_refused_for_numbers_from_the_store(later):
    with pytest.raises(InvalidInputError, match="is a regression"):
        map_store(later[0].output, later[2], bands=("confidence",))


def test_a_map_with_the_name_of_a_band_is_refused_at_planning(sample, later, tmp_path):
    maps = ({"name": "cover", "head": later[1], "confidence": True}, {"name": "cover_confidence", "head": later[1]})
    with pytest.raises(ConfigError, match="cover_confidence"):
        api.plan(request_of(sample, tmp_path / "out", end=END, maps=maps))


def test_the_command_line_fits_numbers_and_refuses_what_are_none(earthpress, later, labels, tmp_path):
    fit, path = ("probe", "fit", later[0].output, labels, "--column"), tmp_path / "h.json"
    code, text, _ = earthpress(*fit, "height", "--regression", "--units", "m", "-o", path)
    assert (code, "R2" in text) == (0, True)
    assert heads.load(str(path)).hash == heads.load(later[2]).hash
    for wrong, said in [(("class", "--regression"), "no number"), (("class", "--units", "m"), "--regression")]:
        code, _, text = earthpress(*fit, *wrong)
        assert (code != 0, said in text) == (True, True)


def test_the_command_line_maps_with_bands_and_they_are_made_again_with_the_map(earthpress, later):
    plan, head = later[:2]
    code, text, _ = earthpress("map", plan.output, "--head", head, "--probability", "--confidence", "--json")
    assert code == 0
    with rasterio.open(json.loads(text)["maps"][0]) as found:
        assert found.count == 5
    again = next(iter(kept_maps(plan)))
    assert [band.name for band in again.further] == ["confidence", "p0", "p1", "p2"]
