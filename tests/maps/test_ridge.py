"""Regression probes: the textbook's numbers, honest scores by place, files that cannot run code, deterministic maps."""

import json
import math
import pickle
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from pipeline.codes import Coded, decode
from pipeline.errors import InvalidInputError
from pipeline.maps import heads
from pipeline.maps.colours import default_colours
from pipeline.maps.labels import pixels_of, read_numbers
from pipeline.maps.probe import Probe
from pipeline.maps.ridge import Regressor
from pipeline.maps.ridge_fit import MIN_LABELS, fit, place_folds
from pipeline.types import METHODS, Box, Calibration, ModelCard

BANDS = 12
CARD = ModelCard(
    name="random:v1.2-nano:0", version="v1.2", size="nano", dims=BANDS, depth=4, heads=3, parameters=1,
    sensors=("sentinel2_l2a",), sha256="ab" * 32, trained=False,
)  # fmt: skip
CALIBRATION = Calibration(
    scale=tuple(0.01 + 0.001 * d for d in range(BANDS)), provisional=True, source="t", model_sha256="ab" * 32,
    patch_px=4,
)  # fmt: skip
WHEN = datetime(2026, 1, 2, tzinfo=UTC)
TRUE = np.linspace(-1, 2, BANDS)


def samples_of(*, noise=0.5, polygons=40, px=8, seed=0):
    """(features, values, polygons, places): a linear quantity of polygons around 20, and what else they differ in."""
    rng = np.random.default_rng(seed)
    own = rng.normal(size=(polygons, BANDS))
    values = own @ TRUE + 20 + noise * rng.normal(size=polygons)
    x = np.repeat(own, px, axis=0) + 0.05 * rng.normal(size=(polygons * px, BANDS))
    polygon = np.repeat(np.arange(polygons), px)
    return x.astype(np.float32), np.repeat(values, px).tolist(), polygon.tolist(), [f"p{k}" for k in polygon]


def fitted_on(*samples, **options):
    options = {"name": "height", "units": "m"} | options
    return fit(*samples, card=CARD, calibration=CALIBRATION, created=WHEN, **options)


@pytest.fixture(scope="module")
def fitted():
    return fitted_on(*samples_of())


def test_weights_are_those_of_scikit_learn():
    x, values, polygons, places = samples_of()
    found, report = fitted_on(x, values, polygons, places, alphas=(0.1,))
    scaler = StandardScaler().fit(x.astype(np.float64))
    reference = Ridge(alpha=0.1 * len(x)).fit(scaler.transform(x.astype(np.float64)), values)
    np.testing.assert_allclose(found.weights, reference.coef_ / scaler.scale_, rtol=1e-8)
    assert found.bias == pytest.approx(reference.intercept_ - found.weights @ scaler.mean_)
    assert report.alpha == 0.1


def test_a_linear_quantity_is_found_and_the_shuffled_control_is_not(fitted):
    _, report = fitted
    assert report.r2 > 0.9
    assert report.control_r2 < 0.1
    assert report.rmse < 0.3 * report.baseline_rmse
    assert abs(report.bias) < 0.2
    assert (report.folds, report.places, report.samples) == (5, 40, 320)


def test_what_only_names_the_polygon_scores_nothing_on_held_out_places():
    x, values, polygons, places = samples_of(polygons=30)
    marks = np.random.default_rng(5).normal(size=(30, BANDS))
    x = (marks[polygons] + 0.01 * x).astype(np.float32)
    _, report = fitted_on(x, values, polygons, places)
    assert report.r2 < 0.2


def test_folds_keep_places_whole_and_test_every_sample_once():
    component = np.repeat(np.arange(23), 4)
    folds, notes = place_folds(component, seed=0)
    assert np.sort(np.concatenate([test for _, test in folds])).tolist() == list(range(92))
    assert all(not set(component[train]) & set(component[test]) for train, test in folds)
    assert notes == ()


def test_the_penalty_grows_with_the_noise():
    strong, weak = (fitted_on(*samples_of(noise=n, polygons=20, px=2))[1].alpha for n in (30.0, 0.0))
    assert strong > weak


def test_errors_by_range_add_up_to_the_pooled_ones(fitted):
    _, report = fitted
    counts = np.array([r.samples for r in report.ranges])
    assert counts.sum() == report.samples
    assert math.sqrt((counts * [r.rmse**2 for r in report.ranges]).sum() / counts.sum()) == pytest.approx(report.rmse)
    assert (counts * [r.bias for r in report.ranges]).sum() / counts.sum() == pytest.approx(report.bias)
    assert (report.ranges[0].low, report.ranges[-1].high) == (report.low, report.high)
    assert report.table().row_count == len(report.ranges) == 5


def test_labels_of_one_place_are_fitted_but_not_validated():
    x, values, polygons, _ = samples_of()
    regressor, report = fitted_on(x, values, polygons, ["here"] * len(x))
    assert (report.folds, report.r2, report.rmse, report.control_r2) == (0, None, None, None)
    assert report.headline() == "not validated"
    assert json.loads(regressor.report)["notes"] == ["not validated: all labels lie in one place"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, v, p, q: (x, v[:-1], p, q), "count"),
        (lambda x, v, p, q: (x, [3.0] * len(v), p, q), "all values of height are 3"),
        (lambda x, v, p, q: (x, [math.nan, *v[1:]], p, q), "1 values of height are NaN"),
        (lambda x, v, p, q: (np.where(x == x[0, 0], np.nan, x), v, p, q), "features hold NaN"),
        (lambda x, v, p, q: (x[:72], v[:72], p[:72], q[:72]), f"9 labels of height.*needs {MIN_LABELS}"),
    ],
)
def test_samples_that_make_no_regression_are_refused(change, message):
    with pytest.raises(InvalidInputError, match=message):
        fitted_on(*change(*samples_of()))


# --- maps -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_predictions_are_right_and_do_not_depend_on_the_array(fitted, method):
    rng = np.random.default_rng(3)
    calibration = replace(
        CALIBRATION, method=method, dims=BANDS, scale=CALIBRATION.scale if method in ("linear", "pca") else ()
    )
    codes = rng.integers(-127, 128, size=(BANDS, 31, 17)).astype(calibration.dtype)
    codes[:, 4:6] = np.nan if codes.dtype.kind == "f" else -128
    scale = rng.uniform(0.001, 0.1, (31, 17)).astype(np.float32) if method == "per_pixel" else None
    coded, wanted = Coded(codes=codes, pixel_scale=scale), np.ones((31, 17), np.bool_)
    whole = fitted[0].predict(coded, calibration, wanted)
    vectors = decode(coded, calibration).astype(np.float64)
    want = np.einsum("d,drc->rc", fitted[0].weights, vectors) + fitted[0].bias
    np.testing.assert_allclose(whole, want, rtol=1e-5, atol=1e-4)
    assert whole.dtype == np.float32
    assert np.isnan(whole[4:6]).all()
    for row in range(0, 31, 3):
        cut = np.s_[row : row + 1, 2:5]
        part = Coded(codes=codes[:, *cut], pixel_scale=None if scale is None else scale[cut])
        np.testing.assert_array_equal(fitted[0].predict(part, calibration, wanted[cut]), whole[cut])


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_saved_regressor_is_the_same_again(fitted, tmp_path):
    path = str(tmp_path / "sub" / "height.json")
    fitted[0].save(path)
    again = heads.load(path)
    assert isinstance(again, Regressor)
    np.testing.assert_array_equal(again.weights, fitted[0].weights)
    assert (again.hash, again.units, again.low, again.high) == (
        fitted[0].hash, "m", fitted[0].low, fitted[0].high
    )  # fmt: skip
    assert json.loads(again.report) == json.loads(fitted[0].report)


def test_one_loader_tells_classes_from_numbers_and_keeps_the_bands(fitted, tmp_path):
    probe = Probe(
        weights=np.ones((2, 3)), bias=np.zeros(2), names=("a", "b"), colours=default_colours(("a", "b")),
        calibration="c", model_sha256="m", model_name="n", trained=True, patch_px=4, created="2026", report="{}",
    )  # fmt: skip
    for head, bands in [(probe, ("probability",)), (fitted[0], ())]:
        path = str(tmp_path / "kept.json")
        heads.keep(head, path, bands=bands)
        found, kept = heads.load_kept(path)
        assert (type(found), found.hash, kept) == (type(head), head.hash, bands)
        assert type(heads.load(path)) is type(head)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("weights", [[1.0, 2.0]]),
        ("weights", "abc"),
        ("weights", [1e999]),
        ("bias", "1"),
        ("bias", True),
        ("low", 1e6),
        ("units", None),
        ("format", "earthpress-regressor/0"),
        ("name", ...),
    ],
)
def test_a_damaged_file_is_refused(fitted, tmp_path, key, value):
    path = tmp_path / "height.json"
    payload = fitted[0].payload() | {key: value}
    if value is ...:
        del payload[key]
    path.write_text(json.dumps(payload))
    with pytest.raises(InvalidInputError, match=r"height\.json"):
        heads.load(str(path))


def test_a_pickle_is_refused(tmp_path):
    path = tmp_path / "height.json"
    path.write_bytes(pickle.dumps({"format": "earthpress-regressor/1"}))
    with pytest.raises(InvalidInputError, match=r"height\.json"):
        heads.load(str(path))


def test_a_regressor_refuses_another_store(fitted):
    fitted[0].check(CALIBRATION.hash, CARD.sha256)
    with pytest.raises(InvalidInputError, match=f"{CALIBRATION.hash}.*feedbeef"):
        fitted[0].check("feedbeef", CARD.sha256)


def test_the_hash_changes_with_weights_and_units(fitted):
    found = fitted[0]
    hashes = {found.hash, replace(found, bias=found.bias + 1e-9).hash, replace(found, units="cm").hash}
    assert len(hashes) == 3


# --- labels -----------------------------------------------------------------------------------------------------------


def table_of(folder, heights):
    path = folder / "trees.csv"
    rows = [f"{9 + 0.001 * k},47,{height},oak" for k, height in enumerate(heights)]
    path.write_text("\n".join(["lon,lat,height,kind", *rows]))
    return str(path)


def test_numbers_are_read_and_rows_without_one_are_dropped(tmp_path):
    labels = read_numbers(table_of(tmp_path, ["1.5", "", "-3", "2e1"]), column="height")
    assert labels.classes == (1.5, -3.0, 20.0)
    assert (labels.groups, labels.dropped, labels.numeric) == ((0, 2, 3), 1, True)


@pytest.mark.parametrize(
    ("heights", "column", "message"),
    [
        (["1.5", "tall"], "height", "holds 'tall', which is no number"),
        (["1.5", "inf"], "height", "infinite"),
        (["", ""], "height", "holds no number"),
        (["1", "2"], "kind", "holds 'oak'.*leave out --regression"),
        (["1", "2"], "heigth", "did you mean 'height'"),
    ],
)
def test_columns_that_hold_no_numbers_are_refused(tmp_path, heights, column, message):
    with pytest.raises(InvalidInputError, match=message):
        read_numbers(table_of(tmp_path, heights), column=column)


def test_a_pixel_of_several_numbers_has_all_of_them(tmp_path):
    path = tmp_path / "trees.csv"
    path.write_text("lon,lat,height\n9.00001,47.00001,3\n9.00002,47.00002,5\n9.01,47,7\n")
    labels = read_numbers(str(path), column="height")
    box = Box(zone=32, res_m=10, row=-521_000, col=49_000, height=1000, width=3000)
    rows, cols, index = pixels_of(labels, box=box)
    assert sorted(labels.classes[i] for i in index) == [3.0, 5.0, 7.0]
    assert len(set(zip(rows.tolist(), cols.tolist(), strict=True))) == 2
