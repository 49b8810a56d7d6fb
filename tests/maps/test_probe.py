"""Probes: honest scores, files that cannot run code, and classes that do not depend on the array around them."""

import json
import math
import pickle
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import rasterio
from pyproj import Transformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pipeline.codes import Coded
from pipeline.errors import InvalidInputError, OutputError
from pipeline.maps.colours import default_colours
from pipeline.maps.fitting import fit
from pipeline.maps.folds import components, grouped_folds
from pipeline.maps.labels import pixels_of, places_of, read_labels
from pipeline.maps.probe import MAX_CLASSES, Probe, load
from pipeline.types import Box, Calibration, ModelCard

DIMS = 24
CARD = ModelCard(
    name="random:v1.2-nano:0",
    version="v1.2",
    size="nano",
    dims=DIMS,
    depth=4,
    heads=3,
    parameters=1,
    sensors=("sentinel2_l2a",),
    sha256="ab" * 32,
    trained=False,
)
CALIBRATION = Calibration(
    scale=tuple(0.01 + 0.001 * d for d in range(DIMS)),
    provisional=True,
    source="test",
    model_sha256="ab" * 32,
    patch_px=4,
)
SCALE = np.array(CALIBRATION.scale, dtype=np.float32)
WHEN = datetime(2026, 1, 2, tzinfo=UTC)
NAMES = ("crops", "forest", "water")


def _samples(*, spread: float, polygons: int = 18, px: int = 30, seed: int = 0):
    """Features of polygons of three classes; ``spread`` is the noise against class centres of length about 1."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(3, DIMS)) / math.sqrt(DIMS) * 3
    kind = np.arange(polygons) % 3
    own = rng.normal(scale=spread, size=(polygons, DIMS))
    x = np.repeat(centres[kind] + own, px, axis=0) + rng.normal(scale=spread, size=(polygons * px, DIMS))
    polygon = np.repeat(np.arange(polygons), px).tolist()
    return x.astype(np.float32), [NAMES[kind[p]] for p in polygon], polygon, [f"place{p}" for p in polygon]


def _fit(*samples, **options):
    options.setdefault("c_grid", (0.1, 1.0))
    return fit(*samples, card=CARD, calibration=CALIBRATION, created=WHEN, **options)


@pytest.fixture(scope="module")
def fitted():
    return _fit(*_samples(spread=0.1))


@pytest.fixture(scope="module")
def field():
    """int8 codes (dim, row, col) around the classes' centres and a validity mask with holes."""
    rng = np.random.default_rng(3)
    codes = rng.integers(-127, 128, size=(DIMS, 61, 47), dtype=np.int8)
    valid = rng.random((61, 47)) > 0.1
    codes[:, ~valid] = -128
    return codes, valid


def test_well_separated_classes_are_found_and_the_shuffled_control_is_near_chance(fitted):
    _, report = fitted
    assert report.balanced_accuracy > 0.97
    assert report.accuracy > 0.97
    assert report.chance == pytest.approx(1 / 3)
    assert report.control_balanced_accuracy < 0.55
    assert report.baseline_accuracy == pytest.approx(1 / 3)
    assert report.folds == 5


def test_noise_scores_at_chance_when_polygons_are_held_out():
    x, classes, polygons, places = _samples(spread=0.1)
    marks = np.random.default_rng(5).normal(size=(18, DIMS))
    x = (marks[polygons] + 0.01 * x).astype(np.float32)  # every polygon recognisable, no class signal
    _, report = _fit(x, classes, polygons, places)
    assert report.balanced_accuracy < 0.65


def test_probe_equals_the_reference_pipeline_of_scikit_learn(fitted):
    x, classes, polygons, places = _samples(spread=0.5)
    probe, report = _fit(x, classes, polygons, places, c_grid=(1.0,))
    reference = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, class_weight="balanced", max_iter=500))
    reference.fit(x.astype(np.float64), classes)
    got = x @ probe.weights.T + probe.bias
    want = reference.decision_function(x.astype(np.float64))
    np.testing.assert_allclose(got - got.mean(1, keepdims=True), want - want.mean(1, keepdims=True), atol=1e-6)
    assert report.c == 1.0


def test_two_classes_decide_like_scikit_learn():
    x, classes, polygons, places = _samples(spread=0.5)
    keep = [i for i, c in enumerate(classes) if c != "crops"]
    x, classes = x[keep], [classes[i] for i in keep]
    probe, _ = _fit(x, classes, [polygons[i] for i in keep], [places[i] for i in keep], c_grid=(1.0,))
    reference = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, class_weight="balanced", max_iter=500))
    reference.fit(x.astype(np.float64), classes)
    got = np.array(probe.names)[(x @ probe.weights.T + probe.bias).argmax(axis=1)]
    np.testing.assert_array_equal(got, reference.predict(x.astype(np.float64)))


def test_no_polygon_or_place_is_in_train_and_test():
    rng = np.random.default_rng(1)
    polygons = np.repeat(np.arange(40), 5)
    places = polygons // 4
    places[::35] += 100  # polygons that lie in two places
    y = rng.integers(0, 3, 40)[polygons]
    folds, _ = grouped_folds(y, components(polygons, places), names=NAMES, seed=0)
    assert len(folds) >= 2
    for train, test in folds:
        assert not set(polygons[train]) & set(polygons[test])
        assert not set(places[train]) & set(places[test])


def test_every_sample_is_tested_exactly_once():
    polygons = np.repeat(np.arange(30), 4)
    y = polygons % 3
    folds, notes = grouped_folds(y, components(polygons, polygons // 2), names=NAMES, seed=0)
    assert np.sort(np.concatenate([test for _, test in folds])).tolist() == list(range(120))
    assert (len(folds), notes) == (5, ())


def test_components_join_what_shares_a_polygon_or_a_place_transitively():
    polygons, places = np.array([0, 0, 1, 2, 3]), np.array([10, 11, 11, 12, 12])
    assert components(polygons, places).tolist() == [0, 0, 0, 1, 1]


def test_fewer_places_make_fewer_folds_and_say_so():
    x, classes, polygons, places = _samples(spread=0.1, polygons=9)
    _, report = _fit(x, classes, polygons, places)
    assert report.folds == 3
    assert any("3 folds only" in note for note in report.notes)


def test_a_class_of_one_place_is_learned_but_not_scored():
    x, classes, polygons, places = _samples(spread=0.1)
    keep = [i for i, p in enumerate(polygons) if classes[i] != "water" or p == 2]
    take = [[s[i] for i in keep] for s in (classes, polygons, places)]
    probe, report = _fit(x[keep], *take)
    water = report.classes[2]
    assert (water.name, water.groups, water.recall, water.iou) == ("water", 1, None, None)
    assert report.chance == pytest.approx(1 / 2)
    assert probe.names == NAMES
    assert any("'water' comes from 1 place" in note for note in report.notes)


def test_labels_of_one_place_are_fitted_but_not_validated():
    x, classes, polygons, _ = _samples(spread=0.1)
    probe, report = _fit(x, classes, polygons, ["here"] * len(x))
    assert (report.folds, report.accuracy, report.control_balanced_accuracy) == (0, None, None)
    assert report.headline() == "not validated"
    assert any("not validated" in note for note in report.notes)
    assert probe.dims == DIMS


def test_a_big_polygon_is_capped_and_the_draw_is_repeatable():
    x, classes, polygons, places = _samples(spread=0.1, px=50)
    first, report = _fit(x, classes, polygons, places, max_px_per_polygon=7, seed=4)
    second, _ = _fit(x, classes, polygons, places, max_px_per_polygon=7, seed=4)
    assert report.samples == 18 * 7
    assert any("at most 7 per polygon" in note for note in report.notes)
    np.testing.assert_array_equal(first.weights, second.weights)


def test_the_cap_is_lowered_to_the_limit_of_samples():
    _, report = _fit(*_samples(spread=0.1), max_samples=200)
    assert (report.max_px_per_polygon, report.samples) == (11, 18 * 11)


def test_the_scores_agree_with_the_confusion_matrix():
    _, report = _fit(*_samples(spread=0.9))
    m = np.array(report.confusion)
    assert m.sum() == report.samples
    for k, c in enumerate(report.classes):
        assert c.recall == pytest.approx(m[k, k] / m[k].sum())
        assert c.precision == pytest.approx(m[k, k] / m[:, k].sum())
        assert c.f1 == pytest.approx(2 * c.precision * c.recall / (c.precision + c.recall))
        assert c.iou == pytest.approx(m[k, k] / (m[k].sum() + m[:, k].sum() - m[k, k]))
    assert 0.4 < report.accuracy < 1


def test_report_becomes_json_and_a_table(fitted):
    _, report = fitted
    assert json.loads(report.to_json())["classes"][0]["name"] == "crops"
    assert report.table().row_count == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, c, p, q: (x, c[:-1], p, q), "count"),
        (lambda x, c, p, q: (x, ["a"] * len(c), p, q), "1 class"),
        (lambda x, c, p, q: (np.where(x == x[0, 0], np.nan, x), c, p, q), "NaN"),
        (lambda x, c, p, q: (x, [f"c{i}" for i in range(len(c))], p, q), f"2..{MAX_CLASSES}"),
    ],
)
def test_samples_that_make_no_probe_are_refused(change, message):
    with pytest.raises(InvalidInputError, match=message):
        _fit(*change(*_samples(spread=0.1)))


def test_numeric_classes_are_ordered_as_numbers():
    x, classes, polygons, places = _samples(spread=0.1)
    probe, _ = _fit(x, [{"crops": 10, "forest": 9, "water": 100}[c] for c in classes], polygons, places)
    assert probe.names == ("9", "10", "100")


def test_classify_equals_float64_scores_of_dequantised_vectors(fitted, field):
    probe, (codes, valid) = fitted[0], field
    vectors = codes.astype(np.float64) * SCALE.astype(np.float64)[:, None, None]
    scores = np.einsum("kd,drc->krc", probe.weights, vectors) + probe.bias[:, None, None]
    got = probe.classify(Coded(codes=codes), CALIBRATION, valid)
    np.testing.assert_array_equal(got[valid], scores.argmax(axis=0)[valid])
    assert (got[~valid] == 255).all()


def test_classes_do_not_depend_on_how_the_array_is_cut(fitted, field):
    probe, (codes, valid) = fitted[0], field
    whole = probe.classify(Coded(codes=codes), CALIBRATION, valid)
    for rows, cols in [(1, 47), (61, 1), (7, 13), (60, 46)]:
        for row in range(0, 61, rows):
            for col in range(0, 47, cols):
                cut = np.s_[row : row + rows, col : col + cols]
                got = probe.classify(Coded(codes=codes[:, *cut]), CALIBRATION, valid[cut])
                np.testing.assert_array_equal(got, whole[cut])


def test_near_ties_are_decided_alike_wherever_the_pixel_lies(field):
    rng = np.random.default_rng(9)
    base = rng.normal(size=DIMS)
    weights = np.stack([base, base * (1 + 2**-50), base * (1 - 2**-51)])
    probe = _handmade(weights, np.zeros(3))
    codes, valid = field
    whole = probe.classify(Coded(codes=codes), CALIBRATION, valid)
    for row in range(61):
        for col in range(47):
            cut = np.s_[row : row + 1, col : col + 1]
            one = probe.classify(Coded(codes=codes[:, *cut]), CALIBRATION, valid[cut])
            assert one[0, 0] == whole[row, col]


def test_equal_scores_go_to_the_first_class(field):
    codes, valid = field
    got = _handmade(np.ones((3, DIMS)), np.zeros(3)).classify(Coded(codes=codes), CALIBRATION, valid)
    assert set(np.unique(got)) == {0, 255}


def test_a_nodata_code_is_never_classified(fitted, field):
    codes, valid = field
    got = fitted[0].classify(Coded(codes=codes), CALIBRATION, np.ones_like(valid))
    np.testing.assert_array_equal(got == 255, ~valid)


def test_arrays_that_do_not_fit_are_refused(fitted, field):
    probe, (codes, valid) = fitted[0], field
    for bad in [(codes[1:], valid), (codes.astype(np.int16), valid), (codes, valid[1:]), (codes, valid.astype(int))]:
        with pytest.raises(InvalidInputError):
            probe.classify(Coded(codes=bad[0]), CALIBRATION, bad[1])
    broken = replace(CALIBRATION, scale=(math.nan,) * DIMS)
    with pytest.raises(InvalidInputError, match="scale"):
        probe.classify(Coded(codes=codes), broken, valid)


def test_saved_and_loaded_probe_gives_identical_classes(fitted, field, tmp_path):
    probe, (codes, valid) = fitted[0], field
    path = tmp_path / "sub" / "probe.json"
    probe.save(str(path))
    again = load(str(path))
    np.testing.assert_array_equal(again.weights, probe.weights)
    np.testing.assert_array_equal(
        again.classify(Coded(codes=codes), CALIBRATION, valid), probe.classify(Coded(codes=codes), CALIBRATION, valid)
    )
    assert (again.names, again.colours, again.hash, again.trained) == (probe.names, probe.colours, probe.hash, False)
    assert json.loads(again.report) == json.loads(probe.report)
    assert [p.name for p in path.parent.iterdir()] == ["probe.json"]


def test_a_probe_refuses_another_store(fitted):
    probe = fitted[0]
    probe.check(CALIBRATION.hash, CARD.sha256)
    with pytest.raises(InvalidInputError, match=f"{CALIBRATION.hash}.*feedbeef"):
        probe.check("feedbeef", CARD.sha256)
    with pytest.raises(InvalidInputError, match=f"{CARD.sha256}.*feedbeef"):
        probe.check(CALIBRATION.hash, "feedbeef")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("weights", [[1.0, 2.0]]),
        ("weights", [[1.0], [2.0, 3.0], [1.0]]),
        ("weights", "abc"),
        ("weights", {"a": 1}),
        ("weights", [[1e999]] * 3),
        ("bias", [0.0, 0.0]),
        ("names", ["a", "a", "b"]),
        ("names", [1, 2, 3]),
        ("names", "abc"),
        ("colours", ["#12", "red", "#000000"]),
        ("calibration", None),
        ("format", "earthpress-probe/0"),
        ("bias", ...),
    ],
)
def test_a_damaged_file_is_refused(fitted, tmp_path, key, value):
    path = tmp_path / "probe.json"
    fitted[0].save(str(path))
    payload = json.loads(path.read_text())
    payload[key] = value
    if value is ...:
        del payload[key]
    path.write_text(json.dumps(payload))
    with pytest.raises(InvalidInputError, match=r"probe\.json"):
        load(str(path))


def test_nan_pickles_and_nonsense_are_refused(fitted, tmp_path):
    path = tmp_path / "probe.json"
    fitted[0].save(str(path))
    text = path.read_text()
    nan = text.replace('"bias":[', '"bias":[NaN,', 1).encode()
    deep = b"[" * 200_000
    for content in [nan, pickle.dumps({"weights": 1}), b"[]", b"", b"{", text[:1000].encode(), deep]:
        path.write_bytes(content)
        with pytest.raises(InvalidInputError, match=r"probe\.json"):
            load(str(path))


def test_a_missing_file_says_how_to_make_one(tmp_path):
    with pytest.raises(InvalidInputError, match="probe fit"):
        load(str(tmp_path / "none.json"))


def test_a_place_that_cannot_be_written_is_an_output_error(fitted, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        fitted[0].save(str(tmp_path / "file" / "probe.json"))


def test_more_than_254_classes_are_refused():
    with pytest.raises(InvalidInputError, match="255"):
        _handmade(np.zeros((255, 4)), np.zeros(255))


def test_well_known_names_have_their_colours_and_all_colours_differ():
    names = ["water", "Cropland", "seasonal rice", "built-up", "tree_cover", "forest", "watermelon"]
    colours = dict(zip(names, default_colours(names), strict=True))
    assert colours["water"] == "#3b7dd8"
    assert colours["Cropland"] == "#e3b23c"
    assert colours["built-up"] == "#c8434a"
    assert len(set(colours.values())) == len(names)
    assert len(set(default_colours([f"class {i}" for i in range(200)]))) > 190


def test_the_hash_changes_with_the_weights(fitted):
    probe = fitted[0]
    assert replace(probe, weights=probe.weights + 1e-12).hash != probe.hash
    assert replace(probe, report="{}").hash == probe.hash


def test_real_reflectances_of_published_polygons_are_told_apart():
    folder = Path(__file__).resolve().parents[2] / "../shared/data/rstoolbox-sen2"
    if not folder.exists():
        pytest.skip("the real-data pack is not beside the project")
    labels = read_labels(str(folder / "trainingPolygons_sen2.geojson"), column="class")
    box = Box(zone=21, res_m=10, row=16_100, col=56_900, height=300, width=400)
    rows, cols, index = pixels_of(labels, box=box)
    to_lonlat = Transformer.from_crs(box.epsg, 4326, always_xy=True).transform
    lon, lat = to_lonlat((cols + 0.5) * 10, -(rows + 0.5) * 10)
    with rasterio.open(folder / "sen2_dn.tif") as source:
        bands = np.array(list(source.sample(zip(lon, lat, strict=True))), dtype=np.float32)
    keep = np.flatnonzero((bands > 1000).all(axis=1))
    places = places_of(labels)
    _, report = _fit(
        (bands[keep] - 1000) / 10_000,
        [labels.classes[i] for i in index[keep]],
        [labels.groups[i] for i in index[keep]],
        [places[i] for i in index[keep]],
    )
    assert len(keep) > 1500
    assert report.folds >= 2
    assert report.balanced_accuracy > 0.9
    assert report.control_balanced_accuracy < 0.5


def _handmade(weights: np.ndarray, bias: np.ndarray) -> Probe:
    names = tuple(f"class {k}" for k in range(len(bias)))
    return Probe(
        weights=weights,
        bias=bias,
        names=names,
        colours=("#000000",) * len(names),
        calibration="c",
        model_sha256="m",
        model_name="n",
        trained=True,
        patch_px=4,
        created=WHEN.isoformat(),
        report="{}",
    )
