"""Codes: half a step of error, nodata kept, clipping counted, calibrations that belong to something else refused."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from pipeline.encode import quantize
from pipeline.encode.quantize import TileCodes, calibrate, dequantise, load_calibration, quantise
from pipeline.encode.stitch import Field
from pipeline.errors import ConfigError, InvalidInputError
from pipeline.types import Box, ModelCard

CARD = ModelCard(
    name="random:v1.2-nano:0", version="v1.2", size="nano", dims=6, depth=1, heads=1, parameters=1,
    sensors=("sentinel2_l2a",), sha256="ab" * 32, trained=False,
)  # fmt: skip
BOX = Box(zone=31, res_m=10, row=0, col=0, height=20, width=30)


def embedding(seed=0, spread=1.0):
    rng = np.random.default_rng(seed)
    values = (rng.standard_normal((20, 30, 6)) * spread * np.arange(1, 7)).astype(np.float32)
    return Field(values=torch.from_numpy(values), valid=rng.random((20, 30)) > 0.1, box=BOX)


def calibration(field):
    return calibrate([field.values.numpy()[field.valid]], card=CARD, patch_px=4, source="test", provisional=True)


def plain_codes(field, cal):
    """The definition in numpy: (codes, number clipped)."""
    scaled = np.rint(field.values.numpy() * (np.float32(1) / np.asarray(cal.scale, np.float32)))
    codes = np.where(field.valid[..., None], np.clip(scaled, -127, 127), -128).astype(np.int8)
    return codes.transpose(2, 0, 1), int((np.abs(scaled[field.valid]) > 127).sum())


@pytest.mark.parametrize("spread", [1.0, 3.0])
@pytest.mark.parametrize("holes", [True, False])
def test_codes_and_count_are_those_of_the_plain_rounding(spread, holes):
    field = embedding()
    cal = calibration(field)
    field = replace(field, values=field.values * spread, valid=field.valid if holes else np.ones_like(field.valid))
    codes, clipped = quantise(field, cal)
    want, count = plain_codes(field, cal)
    np.testing.assert_array_equal(codes, want)
    assert clipped == count
    assert (count > 100) == (spread > 1)


def test_dequantised_error_is_at_most_half_a_step():
    field = embedding()
    cal = calibration(field)
    codes, clipped = quantise(field, cal)
    error = np.abs(dequantise(codes.numpy(), cal).transpose(1, 2, 0) - field.values.numpy())[field.valid]
    assert clipped == 0
    assert (error <= np.asarray(cal.scale) / 2 * 1.0001).all()


def test_nodata_is_minus_128_and_no_valid_code_is_whatever_the_holes_hold():
    field = embedding()
    cal = calibration(field)
    field.values[torch.from_numpy(~field.valid)] = float("nan")
    codes, clipped = quantise(field, cal)
    assert (codes.numpy()[:, ~field.valid] == -128).all()
    assert codes.numpy()[:, field.valid].min() >= -127
    assert clipped == 0


def test_another_number_of_dimensions_is_refused():
    field = embedding()
    with pytest.raises(InvalidInputError, match="6 dimensions, the embedding 5"):
        quantise(replace(field, values=field.values[..., :5]), calibration(field))


@pytest.mark.parametrize("patch", [1, 4])
@pytest.mark.parametrize("strip_bytes", [1, 10**4, 10**9])
def test_a_tile_filled_in_pieces_equals_one_made_at_once(monkeypatch, patch, strip_bytes):
    monkeypatch.setitem(quantize.STRIP_BYTES, "cpu", strip_bytes)
    tokens = replace(embedding(), box=Box(zone=31, res_m=10 * patch, row=-10, col=5, height=20, width=30))
    tile = Box(zone=31, res_m=10, row=-8 * patch, col=8 * patch, height=16 * patch, width=16 * patch)
    cal = calibration(tokens)
    seen = np.random.default_rng(5).random(tile.shape) > 0.3
    whole, parts = TileCodes(tile, cal, like=tokens.values), TileCodes(tile, cal, like=tokens.values)
    assert (whole.to_host() == -128).all()
    done = whole.fill(tokens, seen, tile)
    half = 8 * patch
    for row in (0, half):
        for col in (0, half):
            box = replace(tile, row=tile.row + row, col=tile.col + col, height=half, width=half)
            mine = parts.fill(tokens, seen[row : row + half, col : col + half], box)
            np.testing.assert_array_equal(mine, done[row : row + half, col : col + half])
    np.testing.assert_array_equal(whole.to_host(), parts.to_host())
    np.testing.assert_array_equal((whole.to_host() == -128).all(axis=0), ~done)
    assert not done[~seen].any()


def test_headroom_is_a_quarter_of_the_largest_magnitude():
    field = embedding()
    peak = np.abs(field.values.numpy()[field.valid]).max(axis=0)
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


def test_a_calibration_knows_which_vector_of_the_model_and_which_inputs_it_belongs_to(tmp_path):
    field, both = embedding(), ("sentinel2_l2a", "sentinel1")
    cal = calibrate(
        [field.values.numpy()[field.valid]], card=replace(CARD, output="max"), patch_px=4, source="t", provisional=True,
        sensors=both,
    )  # fmt: skip
    path = tmp_path / "c.json"
    path.write_text(json.dumps(asdict(cal)))
    assert load_calibration(str(path), card=replace(CARD, output="max"), patch_px=4, sensors=both) == cal
    assert cal.hash not in {replace(cal, output="mean").hash, replace(cal, sensors=both[:1]).hash}


@pytest.mark.parametrize(
    ("change", "patch", "message"),
    [
        ({"model_sha256": "cd" * 32}, 4, "belongs to weights"),
        ({}, 8, "patch"),
        ({"output": "max"}, 4, "the vector 'max'"),
        ({"sensors": ("sentinel1", "sentinel2_l2a")}, 4, "from sentinel1, sentinel2_l2a"),
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
    piece, _ = quantise(Field(values=field.values[cut], valid=field.valid[cut], box=part), cal)
    np.testing.assert_array_equal(whole[:, *cut], piece)
