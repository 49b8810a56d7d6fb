"""Calibrations: made from samples the same on every machine, read back only where they belong."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from pipeline.encode import calibration as calibration_module
from pipeline.encode.calibration import Sample, calibrate, calibration_bytes, formula, load_calibration
from pipeline.errors import ConfigError, InvalidInputError
from pipeline.types import ModelCard

CARD = ModelCard(
    name="random:v1.2-nano:0", version="v1.2", size="nano", dims=6, depth=1, heads=1, parameters=1,
    sensors=("sentinel2_l2a",), sha256="ab" * 32, trained=False,
)  # fmt: skip
BOTH = ("sentinel2_l2a", "sentinel1")


def vectors(seed=0, *, count=3000, dims=6, shift=2.0):
    """Correlated, off centre, some directions much longer than others."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((count, dims)) * 2.0 ** -np.arange(dims)
    turn = np.linalg.qr(rng.standard_normal((dims, dims)))[0]
    return (mixed @ turn + shift * rng.standard_normal(dims)).astype(np.float32)


def made(quantiser, samples=None, **changes):
    given = {"card": CARD, "patch_px": 4, "source": "test", "provisional": True} | changes
    return calibrate([vectors()] if samples is None else samples, quantiser, **given)


@pytest.mark.parametrize(("provisional", "times"), [(False, 1.25), (True, 2.0)])
@pytest.mark.parametrize("quantiser", ["linear", "pca:3"])
def test_the_largest_value_of_a_sample_has_room_and_more_in_a_provisional_calibration(quantiser, provisional, times):
    cal, x = made(quantiser, provisional=provisional), vectors().astype(np.float64)
    values = x if quantiser == "linear" else (x - np.asarray(cal.mean)) @ np.asarray(cal.components).T
    peak = np.abs(values).max(axis=0) if quantiser == "linear" else np.full(3, np.abs(values).max())
    np.testing.assert_allclose(cal.scale, times * peak / 127, rtol=6e-3)


def test_a_dimension_without_range_is_refused():
    x = vectors()
    x[:, 2] = 0
    with pytest.raises(InvalidInputError, match=r"dimensions \[2\] have no usable range"):
        made("linear", [x])


def test_a_calibration_knows_which_vector_of_the_model_and_which_inputs_it_belongs_to(tmp_path):
    other = replace(CARD, output="max")
    cal = made("linear", card=other, sensors=BOTH)
    path = tmp_path / "c.json"
    path.write_text(json.dumps(asdict(cal)))
    assert load_calibration(str(path), card=other, patch_px=4, sensors=BOTH) == cal
    assert cal.hash not in {replace(cal, output="mean").hash, replace(cal, sensors=BOTH[:1]).hash}


@pytest.mark.parametrize(
    ("change", "patch", "message"),
    [
        ({"model_sha256": "cd" * 32}, 4, "belongs to weights"),
        ({}, 8, "patch"),
        ({"output": "max"}, 4, "the vector 'max'"),
        ({"sensors": BOTH}, 4, "from sentinel2_l2a, sentinel1"),
        ({"scale": (1.0, 2.0)}, 4, "6 positive scales"),
        ({"scale": (1.0, -1.0, 1.0, 1.0, 1.0, 1.0)}, 4, "positive"),
    ],
)
def test_a_foreign_calibration_is_refused(tmp_path, change, patch, message):
    path = tmp_path / "c.json"
    path.write_text(json.dumps(asdict(replace(made("linear"), **change))))
    with pytest.raises(ConfigError, match=message):
        load_calibration(str(path), card=CARD, patch_px=patch)


@pytest.mark.parametrize("text", ["[1, 2", '{"scale": 3}', "{}"])
def test_a_file_that_is_no_calibration_is_refused(tmp_path, text):
    path = tmp_path / "c.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="not a calibration"):
        load_calibration(str(path), card=CARD, patch_px=4)


def test_a_sample_in_blocks_is_the_sample_at_once():
    whole, x = Sample.of([vectors()], dims=6), vectors()
    parts = Sample.of([x[:7], x[7:7], x[7:1000], x[1000:]], dims=6)
    np.testing.assert_array_equal(parts.peak, whole.peak)
    np.testing.assert_array_equal(parts.thin, x)
    np.testing.assert_allclose(parts.covariance, np.cov(x.T.astype(np.float64), bias=True), atol=1e-12)
    np.testing.assert_allclose(parts.mean, x.mean(axis=0, dtype=np.float64), atol=1e-12)
    assert parts.count == len(x)


def test_a_long_sample_keeps_every_nth_vector_and_those_farthest_out(monkeypatch):
    monkeypatch.setattr(calibration_module, "KEPT_BYTES", 4 * 6 * 500)
    x = vectors(count=5000)
    x[4321, 3], x[17] = 99.0, -40.0
    sample = Sample.of(np.array_split(x, 7), dims=6)
    np.testing.assert_array_equal(sample.thin, x[::16])
    assert sample.outermost.max() == 99
    assert (sample.outermost == x[17]).all(axis=1).any()
    assert len(sample.outermost) <= len(sample.thin) + 7


def test_merged_samples_are_one_sample():
    parts = [Sample.of([vectors(seed)], dims=6) for seed in range(3)]
    whole = Sample.of([vectors(seed) for seed in range(3)], dims=6)
    merged = Sample.merged(parts)
    np.testing.assert_array_equal(merged.thin, whole.thin)
    np.testing.assert_allclose(merged.covariance, whole.covariance, atol=1e-12)
    assert made("pca:3", merged) == made("pca:3", whole)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_a_sample_refuses_values_that_are_not_finite(wrong):
    x = vectors()
    x[5, 2] = wrong
    with pytest.raises(InvalidInputError, match="NaN or infinite"):
        Sample.of([x], dims=6)


def test_scores_are_those_of_the_principal_components_with_the_largest_loading_positive():
    cal, x = made("pca:3"), vectors().astype(np.float64)
    components = np.asarray(cal.components)
    np.testing.assert_allclose(components @ components.T, np.eye(3), atol=1e-4)
    assert (components[np.arange(3), np.abs(components).argmax(axis=1)] > 0).all()
    scores = (x - np.asarray(cal.mean)) @ components.T
    np.testing.assert_allclose(scores.mean(axis=0), 0, atol=1e-3)
    singular = np.linalg.svd(x - x.mean(axis=0), compute_uv=False)[:3]
    np.testing.assert_allclose(np.sqrt((scores**2).sum(axis=0)), singular, rtol=1e-3)
    assert (len(set(cal.scale)), cal.bands, cal.quantiser) == (1, 3, "pca:3")


def test_noise_of_another_machine_leaves_the_scales_and_the_signs_alone():
    noise = np.random.default_rng(1).uniform(-1e-7, 1e-7, (3000, 6)).astype(np.float32)
    for quantiser in ("linear", "pca:3"):
        one, other = made(quantiser), made(quantiser, [vectors() * (1 + noise)])
        assert one.scale == other.scale
    np.testing.assert_allclose(other.components, one.components, atol=2e-5)


def test_more_components_than_dimensions_are_refused():
    with pytest.raises(ConfigError, match="7 components, the vectors have 6 dimensions"):
        made("pca:7")


def test_more_components_than_the_sample_has_directions_are_refused():
    x = vectors()
    x[:, 5] = x[:, 0] + x[:, 1]
    assert made("pca:5", [x]).bands == 5
    with pytest.raises(InvalidInputError, match="differ in 5 directions"):
        made("pca:6", [x])
    with pytest.raises(InvalidInputError, match="differ in 0 directions"):
        made("pca:2", [x[:1]])


@pytest.mark.parametrize("quantiser", ["power", "power_raw", "per_pixel", "float16", "float32"])
def test_a_formula_takes_nothing_from_the_sample(quantiser):
    cal = made(quantiser)
    assert cal == made(quantiser, [vectors(9)]) == formula(quantiser, card=CARD, patch_px=4)
    assert (cal.scale, cal.bands, cal.quantiser, cal.provisional) == ((), 6, quantiser, False)


@pytest.mark.parametrize("quantiser", ["linear", "pca:1", "pca:3", "power", "power_raw", "per_pixel", "float16"])
def test_every_kind_of_calibration_comes_back_from_its_file(tmp_path, quantiser):
    path, cal = tmp_path / "c.json", made(quantiser)
    path.write_bytes(calibration_bytes(cal))
    assert load_calibration(str(path), card=CARD, patch_px=4, quantiser=quantiser) == cal
    assert load_calibration(str(path), card=CARD, patch_px=4).hash == cal.hash


def test_a_file_of_another_quantiser_is_refused_with_the_way_out(tmp_path):
    path = tmp_path / "c.json"
    path.write_bytes(calibration_bytes(made("pca:3")))
    with pytest.raises(ConfigError, match=r"is of the quantiser pca:3, .* linear: set store.quantiser=pca:3, or use"):
        load_calibration(str(path), card=CARD, patch_px=4, quantiser="linear")


SKEWED = ((1.0, 0.0, 0.0, 0.0, 0.0, 0.0), (0.6, 0.8, 0.0, 0.0, 0.0, 0.0))


@pytest.mark.parametrize(
    ("quantiser", "change", "message"),
    [
        ("pca:2", {"mean": (0.0,)}, "mean of 6 numbers"),
        ("pca:2", {"mean": (float("nan"),) * 6}, "not finite"),
        ("pca:2", {"components": SKEWED}, "not orthonormal"),
        ("pca:2", {"components": SKEWED[:1]}, "2 components of 6"),
        ("pca:2", {"scale": (0.1, 0.2)}, "one scale for all"),
        ("pca:2", {"scale": (0.1, float("inf"))}, "2 positive scales"),
        ("power", {"scale": (0.1,) * 6}, "6 scales"),
        ("per_pixel", {"dims": 5}, "5 dimensions"),
        ("linear", {"mean": (0.0,) * 6}, "only pca has"),
    ],
)
def test_impossible_numbers_are_refused(tmp_path, quantiser, change, message):
    path = tmp_path / "c.json"
    path.write_bytes(calibration_bytes(replace(made(quantiser), **change)))
    with pytest.raises(ConfigError, match=message):
        load_calibration(str(path), card=CARD, patch_px=4)
