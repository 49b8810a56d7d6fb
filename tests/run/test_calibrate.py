"""``earthpress calibrate``: a file from many places, the same every time, which plans accept where it belongs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pyproj import Transformer

from pipeline import api
from pipeline.encode import checkpoint
from pipeline.encode.calibration import calibration_bytes, read_calibration
from pipeline.errors import ConfigError, InvalidInputError, NoDataError, OutputError
from pipeline.run import prepare
from pipeline.run.calibrate import calibrate
from pipeline.run.places import blocks_of, read_places
from pipeline.types import SeamProfile
from pipeline.write.preview import Basis
from tests.run.sampled import MODEL, request_of, run_request
from tests.run.test_zones import two_granules

PLACES = "name,lon,lat\nwest,9.004,49.862\neast,9.044,49.862\nsouth,9.004,49.838\nelsewhere,20,10\n"


def places(folder, text=PLACES):
    path = Path(folder) / "places.csv"
    path.write_text(text)
    return str(path)


def settings_of(sample, *overrides, **values):
    given = {"output": "unused", "end": "2024-05-31"} | values
    return request_of(sample, given.pop("output"), *overrides, **given)


@pytest.fixture(scope="module")
def made(sample, tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibrate")
    return calibrate(settings_of(sample), places(folder), output=str(folder / "c.json"))


@pytest.fixture(scope="module")
def scores(sample, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scores")
    settings = settings_of(sample, "store.quantiser=pca:16")
    return calibrate(settings, places(folder), output=str(folder / "c.json"))


def test_the_file_holds_what_was_made_and_says_of_what(made, sample):
    held = read_calibration(made.path)
    assert held == made.calibration
    assert (held.provisional, held.quantiser, held.bands) == (False, "linear", 64)
    assert held.source == "3 places, 2024-04-01 to 2024-05-31 in 2 periods, files, float32"
    assert str(sample.folder) not in Path(made.path).read_text()


def test_every_place_says_what_it_gave_and_what_the_others_would_clip(made):
    *used, far = made.places
    assert [p.name for p in made.places] == ["west", "east", "south", "elsewhere"]
    assert all(p.scenes > 0 and p.tokens > 900 and p.valid > 0.9 for p in used)
    assert all(p.clipped is not None and p.clipped < 0.01 for p in used)
    assert "no usable scene" in far.skipped
    assert (far.tokens, far.clipped) == (0, None)
    assert any("elsewhere was left out" in text for text in made.warnings)


def test_the_same_places_give_the_same_bytes(made, sample, tmp_path):
    again = calibrate(settings_of(sample, "run.encoder_threads=2"), places(tmp_path), output=str(tmp_path / "c.json"))
    assert Path(again.path).read_bytes() == Path(made.path).read_bytes()


def test_a_store_of_calibrated_ground_is_not_clipped(made, sample, small_bbox, tmp_path):
    settings = settings_of(sample, bbox=small_bbox, output=str(tmp_path / "out"), store={"calibration": made.path})
    plan, outcome = run_request(settings)
    assert outcome.exit_code == 0
    assert plan.calibration == made.calibration
    receipts = [json.loads(p.read_text()) for p in (tmp_path / "out" / "receipts").rglob("*.json")]
    assert receipts
    assert max(r["clipped"] for r in receipts) < 1e-4


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("store.quantiser=power", "is of the quantiser linear, store.quantiser asks for power"),
        ("encode.patch_px=4", "at patch 8, asked for are .* at patch 4"),
    ],
)
def test_a_plan_of_something_else_refuses_the_file(made, sample, tmp_path, override, message):
    settings = settings_of(sample, override, f"store.calibration={made.path}", output=str(tmp_path / "out"))
    with pytest.raises(ConfigError, match=message):
        api.plan(settings)


def test_a_plan_refuses_a_file_with_damaged_colours(made, sample, tmp_path):
    path = tmp_path / "c.json"
    path.write_text(Path(made.path).read_text().replace(r"\"mean\"", r"\"middle\""))
    settings = settings_of(sample, output=str(tmp_path / "out"), store={"calibration": str(path)})
    with pytest.raises(ConfigError, match="colour basis is damaged.*make it anew"):
        api.plan(settings)


def test_frozen_colours_are_of_what_the_store_decodes_to(made, scores):
    assert len(Basis.from_json(made.calibration.basis).mean) == 64
    basis = Basis.from_json(scores.calibration.basis)
    assert len(basis.mean) == 16
    # scores are principal components already
    np.testing.assert_allclose(np.abs(np.asarray(basis.components)[:, :3]), np.eye(3), atol=0.05)


def test_scores_say_how_much_of_the_variance_they_hold(scores):
    assert 0.5 < scores.kept < 1
    assert f"{100 * scores.kept:.4g} % of the variance" in scores.lines[0]
    assert 'quantiser: "pca:16"' in scores.lines[-1]


def test_a_file_that_is_there_is_kept_unless_told_and_its_seams_anyway(made, sample, tmp_path):
    path = tmp_path / "c.json"
    shape = {"patch_px": 8, "periods": 2, "sensors": ("sentinel2_l2a",)}
    seams = SeamProfile(window_px=64, overlap_px=16, rho=1.2, rho_dim=1.5, **shape)
    path.write_bytes(calibration_bytes(made.calibration.with_seams(seams)))
    settings, where = settings_of(sample), places(tmp_path, PLACES[:30])
    with pytest.raises(OutputError, match=r"c.json is there already.*--overwrite"):
        calibrate(settings, where, output=str(path))
    again = calibrate(settings, where, output=str(path), overwrite=True)
    assert again.calibration.seams == (seams,)
    assert again.calibration.hash != made.calibration.hash
    assert any("1 place(s) only" in text for text in again.warnings)


def test_what_is_no_calibration_is_never_replaced(sample, tmp_path):
    (tmp_path / "my.yaml").write_text("model: nano\n")
    with pytest.raises(OutputError, match="not a calibration file and is not replaced"):
        calibrate(settings_of(sample), places(tmp_path), output=str(tmp_path / "my.yaml"), overwrite=True)


def test_no_data_anywhere_is_an_error_and_leaves_no_file(sample, tmp_path):
    where = places(tmp_path, "lon,lat\n20,10\n21,-10\n")
    with pytest.raises(NoDataError, match="place 1: no usable scene") as caught:
        calibrate(settings_of(sample), where, output=str(tmp_path / "c.json"))
    assert caught.value.exit_code == 65
    assert not (tmp_path / "c.json").exists()


def test_a_scene_that_cannot_be_read_is_told(sample, tmp_path):
    catalog = json.loads(sample.catalog.read_text())
    for feature in catalog["features"]:
        for band, asset in feature["assets"].items():
            asset["href"] = (
                str(sample.folder / asset["href"]) if band != "B02" or "20240420" not in asset["href"] else "x"
            )
    (tmp_path / "items.json").write_text(json.dumps(catalog))
    settings = settings_of(sample, end="2024-05-01", inputs={"catalog": str(tmp_path / "items.json")})
    made = calibrate(settings, places(tmp_path, "lon,lat\n9.044,49.862\n"), output=str(tmp_path / "c.json"))
    assert made.places[0].degraded
    assert any("place 1: a scene could not be read" in text for text in made.warnings)


def test_places_of_two_zones_south_of_the_equator(sample, tmp_path):
    catalog = two_granules(tmp_path / "scenes", -30.0)
    settings = settings_of(sample, end="2024-05-01", inputs={"catalog": str(catalog)})
    where = places(tmp_path, "id,longitude,latitude\nleft,5.99,-30\nright,6.01,-30\n")
    made = calibrate(settings, where, output=str(tmp_path / "c.json"))
    assert all(p.tokens > 300 and not p.skipped for p in made.places)


def test_the_packaged_sample_gives_the_provisional_calibration(earthpress, tmp_path):
    code, text, err = earthpress(
        "calibrate", "--places", "simulated", "--model", MODEL, "--set", "encode.patch_px=8", "--quantiser", "pca:8",
        "--output", tmp_path / "c.json", "--json",
    )  # fmt: skip
    told, held = json.loads(text), read_calibration(str(tmp_path / "c.json"))
    want = prepare.provisional(checkpoint.load(MODEL), patch_px=8, quantiser="pca:8")
    assert code == 0, err
    assert held.hash == want.hash == told["hash"]
    assert held.provisional
    assert told["provisional"]
    assert len(told["places"]) == 8


def test_a_formula_reports_what_saturates(earthpress, tmp_path):
    code, text, err = earthpress(
        "calibrate", "--places", "simulated", "--model", MODEL, "--set", "encode.patch_px=8", "--quantiser",
        "power_raw", "--output", tmp_path / "c.json",
    )  # fmt: skip
    assert code == 0, err
    assert "power_raw, int8: a formula, 64 dimensions" in text
    assert "lie beyond the codes of power_raw and saturate" in err
    assert read_calibration(str(tmp_path / "c.json")).source == "formula"


def test_provisional_calibrations_follow_the_quantiser(sample, small_bbox, tmp_path):
    settings = settings_of(sample, "store.quantiser=pca:8", bbox=small_bbox, output=str(tmp_path / "out"))
    plan = api.plan(settings)
    assert (plan.calibration.quantiser, plan.calibration.provisional) == ("pca:8", True)
    other = settings_of(sample, "store.quantiser=float16", bbox=small_bbox, output=str(tmp_path / "raw"))
    raw = api.plan(other).calibration
    assert (raw.quantiser, raw.provisional, raw.source) == ("float16", False, "formula")
    with pytest.raises(ConfigError, match="the vectors have 64 dimensions"):
        api.plan(settings_of(sample, "store.quantiser=pca:65", bbox=small_bbox, output=str(tmp_path / "more")))


def test_a_point_stands_for_its_block_and_those_next_to_it(tmp_path):
    (spot,) = read_places(places(tmp_path, "lon,lat\n149.1,-35.3\n"))
    blocks = blocks_of(spot, count=4)
    x, y = Transformer.from_crs(4326, 32655, always_xy=True).transform(spot.lon, spot.lat)
    west, south, east, north = blocks[0].bounds_m
    assert west <= x < east
    assert south < y <= north
    assert len(set(blocks)) == 4
    assert all(abs(b.row - blocks[0].row) + abs(b.col - blocks[0].col) <= 512 for b in blocks)
    assert {b.zone for b in blocks} == {55}


def test_a_polygon_stands_for_blocks_spread_over_it(tmp_path):
    ring = [[5.9, 50.0], [6.1, 50.0], [6.1, 50.1], [5.9, 50.1], [5.9, 50.0]]
    features = [
        {"type": "Feature", "properties": {"Name": "border"}, "geometry": {"type": "Polygon", "coordinates": [ring]}},
        {"type": "Feature", "properties": {}, "geometry": None},
    ]
    path = tmp_path / "p.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    (spot,) = read_places(str(path))
    assert spot.name == "border"
    few, all_of_them = blocks_of(spot, count=3), blocks_of(spot, count=1000)
    assert len(few) == 3
    assert set(few) < set(all_of_them)
    assert {b.zone for b in few} == {31, 32}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lon,lat\n", "holds no point and no polygon"),
        ("lon,lat\n500000,5500000\n", r"row 0 lies at \(500000, 5.5e\+06\).*not degrees"),
        ("lon,lat\n10,85\n", "latitudes of UTM"),
        ("a,b\n1,2\n", "place file .* has no coordinates"),
    ],
)
def test_a_file_without_usable_places_is_refused(tmp_path, text, message):
    with pytest.raises(InvalidInputError, match=message):
        read_places(places(tmp_path, text))


def test_a_missing_file_of_places_is_named(tmp_path):
    with pytest.raises(InvalidInputError, match="nowhere.csv does not exist"):
        read_places(str(tmp_path / "nowhere.csv"))
