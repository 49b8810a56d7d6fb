"""Codes: half a step of error, nodata kept, clipping counted, calibrations that belong to something else refused."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from pipeline.encode.quantize import calibrate, dequantise, load_calibration, quantise
from pipeline.errors import ConfigError, InvalidInputError
from pipeline.types import Box, Embedding, ModelCard

CARD = ModelCard(
    name="random:v1.2-nano:0", version="v1.2", size="nano", dims=6, depth=1, heads=1, parameters=1,
    sensors=("sentinel2_l2a",), sha256="ab" * 32, trained=False,
)  # fmt: skip
BOX = Box(zone=31, res_m=10, row=0, col=0, height=20, width=30)


def embedding(seed=0, spread=1.0):
    rng = np.random.default_rng(seed)
    values = (rng.standard_normal((20, 30, 6)) * spread * np.arange(1, 7)).astype(np.float32)
    return Embedding(values=values, valid=rng.random((20, 30)) > 0.1, box=BOX)


def calibration(field):
    return calibrate([field.values[field.valid]], card=CARD, patch_px=4, source="test", provisional=True)


def test_dequantised_error_is_at_most_half_a_step():
    field = embedding()
    cal = calibration(field)
    codes, clipped = quantise(field, cal)
    error = np.abs(dequantise(codes, cal).transpose(1, 2, 0) - field.values)[field.valid]
    assert clipped == 0
    assert (error <= np.asarray(cal.scale) / 2 * 1.0001).all()


def test_nodata_is_minus_128_and_no_valid_code_is():
    field = embedding()
    codes, _ = quantise(field, calibration(field))
    assert (codes[:, ~field.valid] == -128).all()
    assert codes[:, field.valid].min() >= -127


def test_clipping_is_counted_and_saturates():
    field = embedding()
    cal = calibration(field)
    codes, clipped = quantise(replace(field, values=field.values * 3), cal)
    beyond = np.abs(np.rint(field.values[field.valid] * 3 / np.float32(cal.scale))) > 127
    assert clipped == pytest.approx(beyond.mean(), abs=1e-4)
    assert clipped > 0
    assert codes.max() == 127


def test_headroom_is_a_quarter_of_the_largest_magnitude():
    field = embedding()
    peak = np.abs(field.values[field.valid]).max(axis=0)
    np.testing.assert_allclose(calibration(field).scale, 1.25 * peak / 127, rtol=6e-3)


def test_a_dimension_without_range_is_refused():
    field = embedding()
    field.values[..., 2] = 0
    with pytest.raises(InvalidInputError, match="2"):
        calibration(field)


def test_a_calibration_file_round_trips_and_keeps_its_hash(tmp_path):
    cal = calibration(embedding())
    path = tmp_path / "c.json"
    path.write_text(json.dumps(asdict(cal)))
    assert load_calibration(str(path), card=CARD, patch_px=4).hash == cal.hash


@pytest.mark.parametrize(
    ("change", "patch", "message"),
    [
        ({"model_sha256": "cd" * 32}, 4, "belongs to weights"),
        ({}, 8, "patch"),
        ({"scale": (1.0, 2.0)}, 4, "6 positive scales"),
        ({"scale": (1.0, -1.0, 1.0, 1.0, 1.0, 1.0)}, 4, "positive"),
    ],
)
def test_a_foreign_calibration_is_refused(tmp_path, change, patch, message):
    path = tmp_path / "c.json"
    path.write_text(json.dumps(asdict(replace(calibration(embedding()), **change))))
    with pytest.raises(ConfigError, match=message):
        load_calibration(str(path), card=CARD, patch_px=patch)


def test_a_file_that_is_no_calibration_is_refused(tmp_path):
    path = tmp_path / "c.json"
    path.write_text("[1, 2")
    with pytest.raises(ConfigError, match="not a calibration"):
        load_calibration(str(path), card=CARD, patch_px=4)


def test_codes_do_not_depend_on_the_array_around_them():
    field = embedding()
    cal = calibration(field)
    whole, _ = quantise(field, cal)
    part = Box(zone=31, res_m=10, row=3, col=7, height=5, width=11)
    cut = part.slices_in(BOX)
    piece, _ = quantise(Embedding(values=field.values[cut], valid=field.valid[cut], box=part), cal)
    np.testing.assert_array_equal(whole[:, *cut], piece)
