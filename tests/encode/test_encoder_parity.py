"""Tokens of our encoder against the reference package's, and what pooling and masking promise."""

from __future__ import annotations

from datetime import date

import numpy as np
import pytest
import torch
from checkpoints import reference_model, reference_tokens, write_checkpoint

from pipeline.encode import checkpoint
from pipeline.encode.olmoearth import Encoder
from pipeline.errors import CheckpointError, ConfigError, InvalidInputError

WINDOWS = {1: (8, 8), 2: (16, 8), 4: (24, 32), 8: (64, 64), 3: (12, 9), 5: (10, 20)}
TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}


def dates(count: int) -> tuple[date, ...]:
    """Irregular dates over a year's end and a 29 February."""
    months = [(2023, 10), (2023, 11), (2023, 12), *((2024, m) for m in range(1, 10))]
    return tuple(date(*months[i], 29 if months[i] == (2024, 2) else 1 + (5 * i) % 28) for i in range(count))


def pixels(windows: int, periods: int, side: tuple[int, int], *, seed: int = 0) -> torch.Tensor:
    values = np.random.default_rng(seed).normal(0.4, 0.3, (windows, periods, 12, *side))
    return torch.from_numpy(values.astype(np.float32))


@pytest.fixture(scope="module", params=["nano", "tiny"])
def pair(request, tmp_path_factory):
    """(reference model, our checkpoint read from the folder it was written to)."""
    model = reference_model(request.param)
    return model, checkpoint.load(str(write_checkpoint(tmp_path_factory.mktemp(request.param), model)))


@pytest.fixture(scope="module")
def nano(tmp_path_factory):
    model = reference_model("nano", seed=3)
    return model, checkpoint.load(str(write_checkpoint(tmp_path_factory.mktemp("nano"), model)))


@pytest.mark.parametrize("periods", [1, 3, 12])
@pytest.mark.parametrize("patch_px", [1, 2, 4, 8])
def test_tokens_equal_the_references(pair, patch_px, periods):
    model, ours = pair
    side = WINDOWS[patch_px]
    x = pixels(2 if periods < 12 else 1, periods, side)
    want = reference_tokens(model, x, dates(periods), patch_px=patch_px)
    encoder = Encoder(ours, window_px=side, patch_px=patch_px, dates=dates(periods))
    torch.testing.assert_close(encoder.tokens(x), want, **TOLERANCE)


@pytest.mark.parametrize("patch_px", [3, 5])
def test_odd_patches_equal_the_references_too(nano, patch_px):
    model, ours = nano
    x = pixels(1, 2, WINDOWS[patch_px])
    want = reference_tokens(model, x, dates(2), patch_px=patch_px)
    encoder = Encoder(ours, window_px=WINDOWS[patch_px], patch_px=patch_px, dates=dates(2))
    torch.testing.assert_close(encoder.tokens(x), want, **TOLERANCE)


def test_halves_for_compiled_graphs_equal_the_references(nano):
    model, ours = nano
    x = pixels(2, 3, (16, 24))
    encoder = Encoder(ours, window_px=(16, 24), patch_px=8, dates=dates(3), halves=True)
    torch.testing.assert_close(encoder.tokens(x), reference_tokens(model, x, dates(3), patch_px=8), **TOLERANCE)


@pytest.mark.parametrize(("sensor", "bands"), [("sentinel1", 2), ("landsat", 11)])
def test_other_sensors_have_their_own_embedding(nano, sensor, bands):
    model, ours = nano
    x = pixels(1, 2, (16, 16))[:, :, :bands]
    want = reference_tokens(model, x, dates(2), patch_px=4, sensor=sensor)
    encoder = Encoder(ours, window_px=(16, 16), patch_px=4, dates=dates(2), sensor=sensor)
    torch.testing.assert_close(encoder.tokens(x), want, **TOLERANCE)


@pytest.mark.parametrize("missing", [(0,), (1,), (3,), (0, 2)])
def test_a_missing_period_equals_the_references_missing_mask(pair, missing):
    model, ours = pair
    x = pixels(1, 4, (32, 24))
    visible = torch.ones(1, 4, 8, 6, dtype=torch.bool)
    visible[:, list(missing)] = False
    want = reference_tokens(model, x, dates(4), patch_px=4, visible=visible)
    got = Encoder(ours, window_px=(32, 24), patch_px=4, dates=dates(4)).tokens(x, visible)
    torch.testing.assert_close(got[visible], want[visible], **TOLERANCE)


def test_single_missing_tokens_equal_the_references_missing_mask(pair):
    model, ours = pair
    x = pixels(1, 3, (16, 32), seed=5)
    visible = torch.from_numpy(np.random.default_rng(2).random((1, 3, 2, 4)) > 0.35)
    want = reference_tokens(model, x, dates(3), patch_px=8, visible=visible)
    got = Encoder(ours, window_px=(16, 32), patch_px=8, dates=dates(3)).tokens(x, visible)
    torch.testing.assert_close(got[visible], want[visible], **TOLERANCE)


def test_masking_a_period_equals_leaving_it_out(nano):
    _, ours = nano
    days, x = dates(4), pixels(2, 4, (32, 32))
    kept = [0, 1, 3]
    visible = torch.ones(2, 4, 4, 4, dtype=torch.bool)
    visible[:, 2] = False
    masked = Encoder(ours, window_px=(32, 32), patch_px=8, dates=days)(x, visible)
    dropped = Encoder(ours, window_px=(32, 32), patch_px=8, dates=[days[i] for i in kept])(x[:, kept])
    torch.testing.assert_close(masked, dropped, atol=2e-5, rtol=1e-5)


def test_what_a_masked_token_holds_has_no_influence(nano):
    _, ours = nano
    x, visible = pixels(1, 2, (32, 32)), torch.ones(1, 2, 4, 4, dtype=torch.bool)
    visible[0, 1, 2, 3] = False
    other = x.clone()
    other[0, 1, :, 16:24, 24:32] = 9.0
    encoder = Encoder(ours, window_px=(32, 32), patch_px=8, dates=dates(2))
    torch.testing.assert_close(encoder(x, visible), encoder(other, visible), atol=0, rtol=0)


def test_an_all_visible_mask_equals_the_unmasked_path(nano):
    _, ours = nano
    x = pixels(2, 3, (32, 32))
    encoder = Encoder(ours, window_px=(32, 32), patch_px=8, dates=dates(3))
    masked = encoder(x, torch.ones(2, 3, 4, 4, dtype=torch.bool))
    torch.testing.assert_close(masked, encoder(x), atol=1e-5, rtol=1e-5)


def test_pooling_is_the_mean_over_a_cells_visible_periods(nano):
    _, ours = nano
    x = pixels(1, 3, (16, 16))
    visible = torch.ones(1, 3, 2, 2, dtype=torch.bool)
    visible[0, 0, 0, 0] = visible[0, 1, 0, 0] = visible[0, 2, 1, 1] = False
    visible[0, :, 1, 0] = False
    encoder = Encoder(ours, window_px=(16, 16), patch_px=8, dates=dates(3))
    tokens, got = encoder.tokens(x, visible)[0], encoder(x, visible)[0]
    torch.testing.assert_close(got[0, 0], tokens[2, 0, 0])
    torch.testing.assert_close(got[1, 1], tokens[:2, 1, 1].mean(dim=0))
    torch.testing.assert_close(got[0, 1], tokens[:, 0, 1].mean(dim=0))
    assert not got[1, 0].any()  # a cell without any visible period is zero, not NaN
    torch.testing.assert_close(encoder(x), encoder.tokens(x).mean(dim=1))


def test_bfloat16_error_is_at_most_that_of_the_references_autocast(tmp_path):
    ratios = []
    for seed in range(5):
        model = reference_model("nano", seed=seed)
        ours = checkpoint.load(str(write_checkpoint(tmp_path / str(seed), model)))
        x = pixels(2, 3, (32, 32), seed=seed)
        exact = reference_tokens(model, x, dates(3), patch_px=4)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            theirs = reference_tokens(model, x, dates(3), patch_px=4).float()
        encoder = Encoder(ours, window_px=(32, 32), patch_px=4, dates=dates(3), dtype=torch.bfloat16)
        ratios.append(float((encoder.tokens(x) - exact).norm() / (theirs - exact).norm()))
    assert float(np.median(ratios)) <= 1.15


def test_bfloat16_keeps_norms_and_positions_in_float32():
    encoder = Encoder(
        checkpoint.load("random:v1.2-nano:0"),
        window_px=(32, 32),
        patch_px=8,
        dates=dates(12),
        dtype=torch.bfloat16,
    )
    exact = Encoder(checkpoint.load("random:v1.2-nano:0"), window_px=(32, 32), patch_px=8, dates=dates(12), halves=True)
    assert encoder.norm.weight.dtype == encoder.blocks[0].norm1.weight.dtype == torch.float32
    assert float((encoder.blocks[0].cos.float() - exact.blocks[0].cos).abs().max()) <= 2**-8


def test_shapes_and_sensors_that_do_not_fit_are_refused():
    model = checkpoint.load("random:v1.2-nano:0")
    with pytest.raises(ConfigError, match="not a positive multiple"):
        Encoder(model, window_px=(30, 32), patch_px=4, dates=dates(1))
    with pytest.raises(CheckpointError, match="not naip"):
        Encoder(model, window_px=(32, 32), patch_px=4, dates=dates(1), sensor="naip")
    with pytest.raises(InvalidInputError, match="at least one date"):
        Encoder(model, window_px=(32, 32), patch_px=4, dates=())
