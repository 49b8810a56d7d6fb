"""What codes mean: half a step of error, averages of codes, and one line of Python that decodes each quantiser."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from pipeline import codes
from pipeline.errors import InvalidInputError
from pipeline.types import METHODS
from tests.quantisers import PCA, calibration_of

DIMS, SIDE = 12, 40
INT8 = [method for method in METHODS if not method.startswith("float")]


def ground(seed=0, *, spread=0.2):
    """(dim, row, col) float32 with holes: neighbours are alike, as between interpolated tokens."""
    rng = np.random.default_rng(seed)
    coarse = rng.standard_normal((DIMS, SIDE // 4 + 1, SIDE // 4 + 1))
    at = np.arange(SIDE) / 4
    down = np.stack([np.interp(at, np.arange(SIDE // 4 + 1), row) for row in np.eye(SIDE // 4 + 1)])
    values = np.einsum("kij,ir,jc->krc", coarse, down, down) * spread
    values[:, rng.random((SIDE, SIDE)) < 0.1] = np.nan
    return values.astype(np.float32)


def wanted(values, calibration):
    """What decoding should give back."""
    values = values.astype(np.float64)
    if calibration.method == PCA:
        mean = np.array(calibration.mean)[:, None, None]
        return np.einsum("kd,drc->krc", np.array(calibration.components), values - mean)
    return values / np.linalg.norm(values, axis=0) if calibration.method == "power" else values


def curved(values):
    """Into the code space of ``power``, in code steps."""
    return np.sign(values) * np.sqrt(np.abs(values)) * codes.POWER_STEPS


@pytest.mark.parametrize("method", INT8)
def test_decoded_values_are_within_half_a_step_where_nothing_is_clipped(method):
    calibration = calibration_of(method, DIMS)
    values = ground()
    made = codes.encode(values, calibration)
    decoded, want, valid = codes.decode(made, calibration), wanted(values, calibration), made.valid
    if method in ("power", "power_raw"):
        error, half = np.abs(curved(decoded.astype(np.float64)) - curved(want)), 0.5
    else:
        error = np.abs(decoded - want)
        half = 0.5 * (made.pixel_scale if method == "per_pixel" else np.array(calibration.scale)[:, None, None])
    inside = np.abs(made.codes) < codes.MAX_CODE
    if method != "per_pixel":
        assert inside[:, valid].all()
    assert (error <= half * (1 + 1e-4))[:, valid].all()


@pytest.mark.parametrize("method", METHODS)
def test_nodata_comes_back_as_nan_and_nothing_else_does(method):
    calibration, values = calibration_of(method, DIMS), ground()
    made = codes.encode(values, calibration)
    np.testing.assert_array_equal(np.isnan(codes.decode(made, calibration)), np.isnan(values)[: calibration.bands])
    assert made.codes.dtype == calibration.dtype


def averaged(planes):
    return planes.reshape(len(planes), SIDE // 2, 2, SIDE // 2, 2).mean(axis=(2, 4))


def apart(method):
    """(root mean square, largest) of (mean of four codes - code of the mean of four vectors), in code steps."""
    calibration = calibration_of(method, DIMS)
    values = np.nan_to_num(ground(), nan=0.1)
    made = codes.encode(values, calibration)
    small = codes.encode(averaged(values).astype(np.float32), calibration)
    error = averaged(made.codes.astype(np.float64)) - small.codes
    return float(np.sqrt((error**2).mean())), float(np.abs(error).max())


ROUNDING = np.sqrt(1 / 12 + 1 / 12 / 4)
"""Of one code, and of the mean of four that are rounded on their own."""


@pytest.mark.parametrize("method", ["linear", "pca"])
def test_averages_of_codes_are_codes_of_averages_but_for_rounding(method):
    usual, worst = apart(method)
    assert usual < 1.1 * ROUNDING
    assert worst <= 1  # half a step of the mean of four, and half of its own


@pytest.mark.parametrize("method", ["power", "power_raw", "per_pixel"])
def test_averages_of_other_codes_are_not_codes_of_averages(method):
    assert apart(method)[0] > 2 * ROUNDING


def dataset_of(made, calibration):
    """A zone as a store holds it."""
    data = xr.Dataset({"embeddings": (("time", "band", "y", "x"), made.codes[None])})
    if calibration.scale:
        data = data.assign_coords(scale=("band", np.asarray(calibration.scale, np.float32)))
    if made.pixel_scale is not None:
        data["pixel_scale"] = (("time", "y", "x"), made.pixel_scale[None])
    if calibration.method == PCA:
        data["pca_components"] = (("band", "dim"), np.asarray(calibration.components, np.float32))
        data["pca_mean"] = ("dim", np.asarray(calibration.mean, np.float32))
    return data


@pytest.mark.parametrize("method", METHODS)
def test_one_line_of_python_decodes_a_store(method):
    calibration = calibration_of(method, DIMS)
    made = codes.encode(ground(), calibration)
    found = eval(codes.DEQUANTISE[method], {"ds": dataset_of(made, calibration), "np": np, "xr": xr})
    found = found.transpose("time", "band", "y", "x")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.values[0], codes.decode(made, calibration), rtol=1e-6, atol=0)


def test_one_line_of_python_brings_scores_back_to_vectors():
    calibration = calibration_of(PCA, DIMS, bands=DIMS)
    values = ground()
    made = codes.encode(values, calibration)
    found = eval(codes.RECONSTRUCT, {"ds": dataset_of(made, calibration), "np": np, "xr": xr})
    error = found.transpose("time", "dim", "y", "x").values[0] - values
    np.testing.assert_array_equal(np.isnan(error), np.isnan(values))
    assert np.nanmax(np.abs(error)) <= 0.5 * calibration.scale[0] * np.sqrt(DIMS) * 1.001


def test_every_quantiser_has_its_line():
    assert set(codes.DEQUANTISE) == set(METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_vectors_of_another_length_are_refused(method):
    with pytest.raises(InvalidInputError, match="12 dimensions, the embedding 11"):
        codes.encode(ground()[1:], calibration_of(method, DIMS))
    made = codes.encode(ground(), calibration_of(method, DIMS))
    with pytest.raises(InvalidInputError, match="bands"):
        codes.decode(codes.Coded(codes=made.codes[1:]), calibration_of(method, DIMS))


def test_codes_of_power_are_those_that_the_readers_of_alphaearth_expect():
    """Google's text: value = sign(q) (|q| / 127.5)^2; 64 numbers of unit length."""
    vector = np.zeros((3, 1, 1), np.float32)
    vector[0], vector[1], vector[2] = 0.6, -0.8, 0.0
    made = codes.encode(vector, calibration_of("power", 3))
    np.testing.assert_array_equal(made.codes[:, 0, 0], [99, -114, 0])
    twice = codes.encode(7 * vector, calibration_of("power", 3))
    np.testing.assert_array_equal(twice.codes, made.codes)
    raw = codes.encode(2 * vector, calibration_of("power_raw", 3))
    np.testing.assert_array_equal(raw.codes[:, 0, 0], [127, -127, 0])
