"""The start-up gate passes the encoder as it is and refuses planted faults."""

from __future__ import annotations

import pytest
import torch

from pipeline.encode import checkpoint, gate, rope
from pipeline.encode.olmoearth import Encoder
from pipeline.errors import DeviceError

MODELS = ["random:v1.2-nano:0", "random:v1.2-tiny:1"]


def encoder_for(model, *, patch_px=8, dates=gate.DATES, dtype=torch.float32, halves=None) -> Encoder:
    side = gate.gate_window(96, patch_px)
    return Encoder(model, window_px=(side, side), patch_px=patch_px, dates=dates, dtype=dtype, halves=halves)


def check(run, model, *, patch_px=8, batch_windows=2, dtype="bfloat16"):
    """By default with the wide limits of bfloat16: a fault that they find is found in float32 too."""
    side = gate.gate_window(96, patch_px)
    with torch.inference_mode():
        return gate.check(run, model, window_px=side, patch_px=patch_px, batch_windows=batch_windows, dtype=dtype)


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return checkpoint.load(request.param)


@pytest.mark.parametrize("patch_px", [1, 4, 8])
def test_the_eager_float32_encoder_passes_with_room(model, patch_px):
    report = check(encoder_for(model, patch_px=patch_px), model, patch_px=patch_px, dtype="float32")
    assert report.ratio < 1e-3


def test_the_bfloat16_encoder_passes(model):
    assert check(encoder_for(model, dtype=torch.bfloat16), model).ratio < gate.LIMIT


def test_missing_positions_are_refused(model):
    blind = encoder_for(model, halves=True)
    for block in blind.blocks:
        block.cos.fill_(1)
        block.sin.fill_(0)
    with pytest.raises(DeviceError, match=r"1\.00 of the difference that missing positions make"):
        check(blind, model)


def test_positions_missing_in_half_of_the_blocks_are_refused(model):
    half = encoder_for(model, halves=True)
    for block in half.blocks[: len(half.blocks) // 2]:
        block.cos.fill_(1)
        block.sin.fill_(0)
    with pytest.raises(DeviceError, match="start-up gate"):
        check(half, model)


def test_swapped_rows_and_columns_are_refused(model):
    swapped = encoder_for(model, halves=True)
    for block in swapped.blocks:
        for name in ("cos", "sin"):
            table = getattr(block, name)
            grid = table.unflatten(0, (len(gate.DATES), gate.MAX_CELLS, gate.MAX_CELLS))
            setattr(block, name, grid.transpose(1, 2).flatten(0, 2).contiguous())
    with pytest.raises(DeviceError, match="start-up gate"):
        check(swapped, model)


def test_reversed_time_is_refused(model):
    backwards = encoder_for(model, halves=True)
    for block in backwards.blocks:
        for name in ("cos", "sin"):
            table = getattr(block, name)
            grid = table.unflatten(0, (len(gate.DATES), gate.MAX_CELLS**2))
            setattr(block, name, grid.flip(0).flatten(0, 1).contiguous())
    with pytest.raises(DeviceError, match="start-up gate"):
        check(backwards, model)


def test_periods_in_reverse_order_are_refused(model):
    with pytest.raises(DeviceError, match="start-up gate"):
        check(encoder_for(model, dates=gate.DATES[::-1]), model)


def test_two_exchanged_periods_are_refused_in_float32(model):
    wrong = encoder_for(model, dates=(gate.DATES[1], gate.DATES[0], *gate.DATES[2:]))
    with pytest.raises(DeviceError, match="start-up gate"):
        check(wrong, model, dtype="float32")


def test_nan_is_refused(model):
    def broken(pixels):
        return encoder_for(model)(pixels).fill_(float("nan"))

    with pytest.raises(DeviceError):
        check(broken, model)


def test_a_result_that_depends_on_the_batch_position_is_refused(model):
    encoder = encoder_for(model)

    def drifting(pixels):
        out = encoder(pixels)
        out[-1, 0, 0, 0] += 1e-6
        return out

    with pytest.raises(DeviceError, match="position in the batch"):
        check(drifting, model, batch_windows=3)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_one_missing_axis_is_named(model, axis):
    lame = encoder_for(model, halves=True)
    places = gate.plain_places(model, (gate.MAX_CELLS, gate.MAX_CELLS), patch_px=8).double().numpy()
    places[:, axis] = 0
    for i, block in enumerate(lame.blocks):
        cos, sin = rope.tables(model.tensors[f"blocks.{i}.attn.rope_mixed_freqs"], places)
        block.cos.copy_(cos.unsqueeze(1))
        block.sin.copy_(sin.unsqueeze(1))
    with pytest.raises(DeviceError, match=r"start-up gate") as caught:
        check(lame, model)
    assert "missing" in str(caught.value)
