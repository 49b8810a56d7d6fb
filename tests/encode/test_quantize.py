"""Codes on a device: those of the plain definition, wherever the pixel lies; what is lost is counted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline import codes
from pipeline.encode import quantize
from pipeline.encode.quantize import Quantiser, TileCodes
from pipeline.encode.stitch import Field
from pipeline.errors import InvalidInputError
from pipeline.types import Box
from tests.quantisers import METHODS, PCA, calibration_of

BOX = Box(zone=31, res_m=10, row=0, col=0, height=20, width=30)
DIMS = 6
CPU = torch.device("cpu")


def embedding(seed=0, spread=1.0):
    """A field with holes that hold NaN; dimensions of different sizes."""
    rng = np.random.default_rng(seed)
    values = (rng.standard_normal((20, 30, DIMS)) * spread * np.arange(1, DIMS + 1) / DIMS).astype(np.float32)
    valid = rng.random((20, 30)) > 0.1
    values[~valid] = np.nan
    return Field(values=torch.from_numpy(values), valid=valid, box=BOX)


def planes(field):
    """(dim, row, col) of a field, NaN where not valid."""
    return np.where(field.valid[..., None], field.values.numpy(), np.nan).transpose(2, 0, 1).astype(np.float32)


def coded(field, calibration):
    return Quantiser(calibration, CPU).coded(field)


def same(one, other):
    np.testing.assert_array_equal(one.codes, other.codes)
    if other.pixel_scale is None:
        assert one.pixel_scale is None
    else:
        np.testing.assert_array_equal(one.pixel_scale, other.pixel_scale)


@pytest.mark.parametrize("method", [m for m in METHODS if m != PCA])
@pytest.mark.parametrize("spread", [1.0, 300.0])
@pytest.mark.parametrize("holes", [True, False])
def test_codes_are_those_of_the_plain_definition(method, spread, holes):
    field = embedding(spread=spread)
    if not holes:
        field = replace(field, values=field.values.nan_to_num(0.5), valid=np.ones_like(field.valid))
    calibration = calibration_of(method, DIMS)
    same(coded(field, calibration), codes.encode(planes(field), calibration))


def test_scores_are_those_of_the_plain_definition_up_to_the_last_bit_of_their_sums():
    field, calibration = embedding(), calibration_of(PCA, DIMS)
    mine, plain = coded(field, calibration), codes.encode(planes(field), calibration)
    apart = np.abs(mine.codes.astype(int) - plain.codes)
    assert apart.max() <= 1
    assert (apart > 0).mean() < 1e-3


def test_linear_codes_are_the_rounded_products_with_the_inverse_scale():
    """Spelt out once more: bytes of stores that exist depend on it."""
    field, calibration = embedding(spread=3.0), calibration_of("linear", DIMS)
    scaled = np.rint(field.values.numpy() * (np.float32(1) / np.asarray(calibration.scale, np.float32)))
    want = np.where(field.valid[..., None], np.clip(np.nan_to_num(scaled), -127, 127), -128).astype(np.int8)
    np.testing.assert_array_equal(coded(field, calibration).codes, want.transpose(2, 0, 1))


@pytest.mark.parametrize("method", METHODS)
def test_a_hole_is_nodata_and_no_pixel_with_a_vector_is(method):
    field = embedding()
    made = coded(field, calibration_of(method, DIMS))
    np.testing.assert_array_equal(made.valid, field.valid)
    assert not codes.valid_of(made.codes[:, ~field.valid]).any()
    if made.pixel_scale is not None:
        np.testing.assert_array_equal(np.isnan(made.pixel_scale), ~field.valid)


@pytest.mark.parametrize("method", METHODS)
def test_another_number_of_dimensions_is_refused(method):
    field = embedding()
    with pytest.raises(InvalidInputError, match="6 dimensions, the embedding 5"):
        coded(replace(field, values=field.values[..., :5]), calibration_of(method, DIMS))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("patch", [1, 4])
@pytest.mark.parametrize("strip_bytes", [1, 10**4, 10**9])
def test_a_tile_filled_in_pieces_equals_one_made_at_once(monkeypatch, method, patch, strip_bytes):
    monkeypatch.setitem(quantize.STRIP_BYTES, "cpu", strip_bytes)
    tokens = replace(embedding(), box=Box(zone=31, res_m=10 * patch, row=-10, col=5, height=20, width=30))
    tile = Box(zone=31, res_m=10, row=-8 * patch, col=8 * patch, height=16 * patch, width=16 * patch)
    calibration = calibration_of(method, DIMS)
    seen = np.random.default_rng(5).random(tile.shape) > 0.3
    whole, parts = TileCodes(tile, calibration, like=tokens.values), TileCodes(tile, calibration, like=tokens.values)
    assert not whole.to_host().valid.any()
    done = whole.fill(tokens, seen, tile)
    half = 8 * patch
    for row in (0, half):
        for col in (0, half):
            box = replace(tile, row=tile.row + row, col=tile.col + col, height=half, width=half)
            mine = parts.fill(tokens, seen[row : row + half, col : col + half], box)
            np.testing.assert_array_equal(mine, done[row : row + half, col : col + half])
    same(parts.to_host(), whole.to_host())
    np.testing.assert_array_equal(whole.to_host().valid, done)
    assert not done[~seen].any()
    assert parts.rms_error == pytest.approx(whole.rms_error, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dims", [64, 129])
def test_a_pixel_has_the_same_codes_in_every_piece(method, dims):
    """Rows of odd widths, single pixels, and every place within the pixels of which scores are made at once."""
    rng = np.random.default_rng(3)
    box = replace(BOX, height=40, width=41)
    field = Field(
        values=torch.from_numpy(rng.standard_normal((40, 41, dims)).astype(np.float32)), valid=np.ones((40, 41), bool),
        box=box,
    )  # fmt: skip
    quantiser = Quantiser(calibration_of(method, dims), CPU)
    whole = quantiser.coded(field)
    for height, width in ((1, 1), (3, 7), (1, 41), (40, 1), (17, 40)):
        for row, col in rng.integers((0, 0), (41 - height, 42 - width), (8, 2)):
            part = replace(box, row=int(row), col=int(col), height=height, width=width)
            cut = part.slices_in(box)
            piece = quantiser.coded(Field(values=field.values[cut], valid=field.valid[cut], box=part))
            scale = None if whole.pixel_scale is None else whole.pixel_scale[cut]
            same(piece, codes.Coded(codes=whole.codes[:, *cut], pixel_scale=scale))


@pytest.mark.parametrize("threads", [2, 4, 8])
def test_scores_do_not_depend_on_the_number_of_threads(threads):
    """100 columns: with four threads MKL adds the rows of such a product in another order."""
    rng, before = np.random.default_rng(0), torch.get_num_threads()
    values = torch.from_numpy(rng.standard_normal((40, 41, 128)).astype(np.float32))
    quantiser = Quantiser(calibration_of(PCA, 128, bands=100), CPU)
    try:
        torch.set_num_threads(1)
        plain = quantiser._scores(values)
        torch.set_num_threads(threads)
        assert torch.equal(quantiser._scores(values), plain)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def tile_of(field, calibration, *, shard_px=None):
    tile = TileCodes(field.box, calibration, like=field.values, shard_px=shard_px)
    for row in range(0, 20, 10):
        part = replace(field.box, row=row, height=10)
        tile.fill(field, field.valid[row : row + 10], part)
    return tile


@pytest.mark.parametrize("method", ["linear", "pca", "power_raw", "float16"])
def test_clipped_values_are_counted_by_shard(method):
    big = 1e6 if method == "float16" else 50.0
    field = embedding()
    field.values[:] = field.values.clamp(-0.5, 0.5)
    field.values[3, 7], field.values[15, 29], field.values[16, 29] = -big, big, big
    field = replace(field, valid=np.ones_like(field.valid), values=field.values.nan_to_num(0.1))
    calibration = calibration_of(method, DIMS)
    tile = tile_of(field, calibration, shard_px=10)
    bands = calibration.bands
    assert tile.clipped == 3 * bands
    assert tile.clipped_shards(field.valid) == (
        (0, 0, pytest.approx(1 / 100)),
        (1, 2, pytest.approx(2 / 100)),
    )
    assert tile.clipped_share(field.valid) == pytest.approx(3 / 600)
    only = field.valid.copy()
    only[10:, 20:] = False
    only[15:17, 29] = True
    assert tile.clipped_shards(only)[1] == (1, 2, 1.0)


@pytest.mark.parametrize("method", ["power", "per_pixel", "float32"])
def test_these_clip_nothing(method):
    field = embedding(spread=1e6)
    tile = tile_of(field, calibration_of(method, DIMS), shard_px=10)
    assert tile.clipped == 0
    assert tile.clipped_shards(field.valid) == ()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("spread", [0.3, 2.0])
def test_the_error_is_that_of_the_decoded_vectors(method, spread):
    """With and without clipped values."""
    field, calibration = embedding(spread=spread), calibration_of(method, DIMS)
    tile = tile_of(field, calibration)
    decoded = codes.decode(tile.to_host(), calibration)[:, field.valid].astype(np.float64)
    vectors = planes(field)[:, field.valid].astype(np.float64)
    if method == PCA:
        decoded = np.array(calibration.components).T @ decoded + np.array(calibration.mean)[:, None]
    if method == "power":
        vectors /= np.linalg.norm(vectors, axis=0)
    want = np.sqrt(((decoded - vectors) ** 2).sum() / (vectors**2).sum())
    assert tile.rms_error == pytest.approx(want, rel=1e-3, abs=1e-7)
    assert (tile.clipped > 0) == (spread > 1 and method in ("linear", "power_raw", PCA))


def test_without_a_vector_there_is_no_error_to_tell():
    field = replace(embedding(), valid=np.zeros(BOX.shape, np.bool_))
    assert tile_of(field, calibration_of("linear", DIMS)).rms_error is None


@pytest.mark.parametrize("method", ["power", "per_pixel"])
def test_a_vector_of_zeros_stays_one(method):
    field = Field(values=torch.zeros(1, 1, DIMS), valid=np.ones((1, 1), bool), box=replace(BOX, height=1, width=1))
    calibration = calibration_of(method, DIMS)
    np.testing.assert_array_equal(codes.decode(coded(field, calibration), calibration), 0)
