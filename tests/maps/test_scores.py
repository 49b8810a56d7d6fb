"""Scores of stored codes: right, and the same for a pixel whatever the array around it, for every quantiser."""

import math

import numpy as np
import pytest

from pipeline.codes import Coded, decode
from pipeline.errors import InvalidInputError
from pipeline.maps.probe import Probe
from pipeline.maps.scores import integers, margin, per_cent, softmax, strips
from pipeline.types import METHODS, Calibration

BANDS, ROWS, COLS = 40, 37, 29
EVERY = pytest.mark.parametrize("method", METHODS)


def calibration_of(method):
    scale = {"linear": [0.01 + 0.001 * k for k in range(BANDS)], "pca": [0.02] * BANDS}.get(method, [])
    return Calibration(
        scale=tuple(scale), provisional=True, source="t", model_sha256="m", patch_px=4, method=method, dims=BANDS
    )


def field_of(method):
    """(coded, valid): random codes with holes that are nodata, and pixels that are not wanted."""
    rng = np.random.default_rng(5)
    holes, wanted = rng.random((ROWS, COLS)) < 0.1, rng.random((ROWS, COLS)) > 0.1
    if method.startswith("float"):
        codes = rng.normal(size=(BANDS, ROWS, COLS)).astype(method)
        codes[:, holes] = np.nan
        return Coded(codes=codes), wanted
    codes = rng.integers(-127, 128, size=(BANDS, ROWS, COLS), dtype=np.int8)
    codes[:, holes] = -128
    scale = rng.uniform(0.001, 0.1, (ROWS, COLS)).astype(np.float32)
    scale[holes] = np.nan
    return Coded(codes=codes, pixel_scale=scale if method == "per_pixel" else None), wanted


def cut_of(coded, cut):
    return Coded(codes=coded.codes[:, *cut], pixel_scale=None if coded.pixel_scale is None else coded.pixel_scale[cut])


def probe_of(classes=5, *, spread=1.0):
    """Classes that are nearly alike when ``spread`` is small: sums must then agree to the last bit."""
    rng = np.random.default_rng(1)
    names = tuple(f"class {k}" for k in range(classes))
    return Probe(
        weights=rng.normal(size=BANDS) + spread * rng.normal(size=(classes, BANDS)),
        bias=spread * rng.normal(size=classes),
        names=names, colours=("#000000",) * classes, calibration="c", model_sha256="m", model_name="n", trained=True,
        patch_px=4, created="2026-01-02", report="{}",
    )  # fmt: skip


def reference(probe, coded, calibration):
    """float64 scores of the decoded vectors, (class, row, col)."""
    vectors = decode(coded, calibration).astype(np.float64)
    return np.einsum("kd,drc->krc", probe.weights, vectors) + probe.bias[:, None, None]


@EVERY
def test_classes_are_those_of_float64_scores_of_decoded_vectors(method):
    (coded, wanted), calibration, probe = field_of(method), calibration_of(method), probe_of()
    got = probe.classify(coded, calibration, wanted)
    known = wanted & coded.valid
    scores = np.sort(reference(probe, coded, calibration)[:, known], axis=0)
    clear = scores[-1] - scores[-2] > 1e-4
    assert clear.mean() > 0.99
    best = reference(probe, coded, calibration)[:, known].argmax(axis=0)
    np.testing.assert_array_equal(got[known][clear], best[clear])
    assert (got[~known] == 255).all()


@EVERY
def test_a_pixel_gets_the_same_bytes_in_every_array(method):
    (coded, wanted), calibration, probe = field_of(method), calibration_of(method), probe_of(spread=2.0**-50)
    whole = probe.graded(coded, calibration, wanted)
    shares = probe.probabilities(coded, calibration, wanted)
    for rows, cols in [(1, COLS), (ROWS, 1), (7, 5), (1, 1)]:
        for row in range(0, ROWS, rows if rows > 1 else 6):
            for col in range(0, COLS, cols if cols > 1 else 5):
                cut = np.s_[row : row + rows, col : col + cols]
                part = probe.graded(cut_of(coded, cut), calibration, wanted[cut])
                np.testing.assert_array_equal(part.classes, whole.classes[cut])
                np.testing.assert_array_equal(part.probability, whole.probability[:, *cut])
                np.testing.assert_array_equal(part.confidence, whole.confidence[cut])
                again = probe.probabilities(cut_of(coded, cut), calibration, wanted[cut])
                np.testing.assert_array_equal(again, shares[:, *cut])


@EVERY
def test_strides_and_order_in_memory_do_not_matter(method):
    (coded, wanted), calibration, probe = field_of(method), calibration_of(method), probe_of(spread=2.0**-50)
    whole = probe.classify(coded, calibration, wanted)
    turned = Coded(codes=np.asfortranarray(coded.codes), pixel_scale=coded.pixel_scale)
    np.testing.assert_array_equal(probe.classify(turned, calibration, wanted), whole)
    every = np.s_[::3, ::2]
    np.testing.assert_array_equal(probe.classify(cut_of(coded, every), calibration, wanted[every]), whole[every])


@EVERY
def test_probabilities_are_the_softmax_of_the_scores(method):
    (coded, wanted), calibration, probe = field_of(method), calibration_of(method), probe_of()
    shares = probe.probabilities(coded, calibration, wanted)
    known = wanted & coded.valid
    powers = np.exp(reference(probe, coded, calibration)[:, known])
    np.testing.assert_allclose(shares[:, known], powers / powers.sum(axis=0), atol=2e-5)
    assert shares.dtype == np.float32
    assert np.isnan(shares[:, ~known]).all()


def test_classes_per_cents_and_confidence_come_from_the_same_scores():
    (coded, wanted), calibration, probe = field_of("linear"), calibration_of("linear"), probe_of(spread=0.1)
    found = probe.graded(coded, calibration, wanted)
    shares = probe.probabilities(coded, calibration, wanted)
    known = wanted & coded.valid
    np.testing.assert_array_equal(found.classes, probe.classify(coded, calibration, wanted))
    assert np.abs(found.probability[:, known] - 100 * shares[:, known]).max() <= 0.5001
    first, second = np.sort(shares[:, known], axis=0)[:-3:-1]
    assert np.abs(found.confidence[known] - 100 * (first - second)).max() <= 0.5001
    assert (found.probability[:, ~known] == 255).all()
    assert (found.confidence[~known] == 255).all()
    assert 5 < found.confidence[known].mean() < 95


def test_two_equal_classes_share_the_probability_and_have_no_confidence():
    scores = np.array([[2.0, 800.0], [2.0, -800.0]])
    shares = softmax(scores)
    np.testing.assert_array_equal(shares, [[0.5, 1.0], [0.5, 0.0]])
    np.testing.assert_array_equal(margin(shares), [0.0, 1.0])
    np.testing.assert_array_equal(per_cent(shares, np.array([True, False])), [[50, 255], [50, 255]])


@pytest.mark.parametrize("largest", [128, 128**2])
def test_integer_weights_leave_every_sum_exact_in_float64(largest):
    rng = np.random.default_rng(2)
    weights = rng.normal(size=(3, 768)) * np.logspace(-9, 9, 768)
    whole, bias, exponent = integers(weights, rng.normal(size=3) * 1e6, largest=largest)
    np.testing.assert_array_equal(whole, np.rint(whole))
    most = max(largest * sum(abs(int(w)) for w in row) + abs(int(b)) for row, b in zip(whole, bias, strict=True))
    assert 2**49 < most < 2**53
    assert np.abs(np.ldexp(whole, -exponent) - weights).max() <= 2.0 ** -(exponent + 1)


def test_codes_that_do_not_fit_the_calibration_are_refused():
    probe = probe_of()
    (coded, wanted), (scaled, _) = field_of("linear"), field_of("per_pixel")
    for bad, method in [(coded, "per_pixel"), (scaled, "linear"), (coded, "float16")]:
        with pytest.raises(InvalidInputError, match="codes"):
            probe.classify(bad, calibration_of(method), wanted)


def test_rows_without_a_wanted_pixel_are_left_out():
    (coded, wanted), calibration = field_of("linear"), calibration_of("linear")
    assert not list(strips(probe_of().weights, probe_of().bias, coded, calibration, np.zeros_like(wanted)))
    assert math.prod(next(strips(probe_of().weights, probe_of().bias, coded, calibration, wanted)).keep.shape)
