"""Sessions: settled numerics, what a window's bytes may depend on, missing data, threads."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from stacks import make_stack, periods

from pipeline.config import EncodeSettings
from pipeline.encode import assemble, checkpoint, session
from pipeline.encode.bands import DEFAULT_BANDS
from pipeline.encode.gate import FLOAT32_LIMIT
from pipeline.encode.olmoearth import Encoder
from pipeline.errors import ConfigError, DeviceError, InvalidInputError
from pipeline.types import Box, GridSpec, Numerics

GRID = GridSpec(patch_px=8, window_px=32, overlap_px=16, tile_px=256)
BOX = Box(zone=32, res_m=10, row=-320, col=640, height=80, width=112)
ORIGINS = [(row, col) for row in (-320, -304, -288, -272) for col in range(640, 721, 16)]
S2 = assemble.Input(sensor="sentinel2_l2a", bands=DEFAULT_BANDS["sentinel2_l2a"])
HOLES = (
    (0, Box(zone=32, res_m=10, row=-320, col=640, height=24, width=30)),
    (1, Box(zone=32, res_m=10, row=-300, col=700, height=60, width=52)),
)


@pytest.fixture(scope="module")
def model():
    return checkpoint.load("random:v1.2-toy:0")


def numerics(*, batch: int = 4, dtype: str = "float32") -> Numerics:
    settings = EncodeSettings(device="cpu", dtype=dtype, batch_windows=batch, compile="off")
    card = checkpoint.describe("random:v1.2-toy:0")
    return session.settle(settings, card=card, grid=GRID, periods=2)


def open_session(model, *, batch: int = 4, dtype: str = "float32", threads: int = 1, count: int = 2):
    return session.Session(
        model, grid=GRID, periods=periods(count), numerics=numerics(batch=batch, dtype=dtype), threads=threads
    )


@pytest.fixture(scope="module")
def stack():
    return make_stack(BOX, count=2, holes=HOLES)


def test_windows_hold_what_the_encoder_gives_for_them_alone(model, stack):
    fields = open_session(model).encode(stack, ORIGINS)
    encoder = Encoder(model, window_px=(32, 32), patch_px=8, dates=[p.start.date() for p in periods(2)])
    kinds = set()
    for i, (row, col) in enumerate(ORIGINS):
        (strip,) = assemble.strips(assemble.Resident((stack,)), [(row, col)], window_px=32, inputs=(S2,))
        (pixels,), visible = assemble.window_pixels(strip, (row, col), window_px=32, patch_px=8)
        kinds.add(bool(visible.all()))
        with torch.inference_mode():
            want = encoder(pixels[None], None if visible.all() else torch.from_numpy(visible[None]))[0]
        np.testing.assert_allclose(fields.values[i], want, atol=1e-5, rtol=1e-5)
        np.testing.assert_array_equal(fields.valid[i], visible.any(axis=(0, 1)))
    assert kinds == {True, False}  # both paths were taken


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_a_windows_bytes_do_not_depend_on_order_mates_or_place_in_the_batch(model, stack, batch, dtype):
    want = open_session(model, batch=batch, dtype=dtype).encode(stack, ORIGINS)
    rng = np.random.default_rng(batch)
    for _ in range(2):
        some = rng.permutation(len(ORIGINS))[: rng.integers(2, len(ORIGINS))]
        got = open_session(model, batch=batch, dtype=dtype).encode(stack, [ORIGINS[i] for i in some])
        assert got.values.numpy().tobytes() == want.values[some].numpy().tobytes()
        np.testing.assert_array_equal(got.valid, want.valid[some])


def test_a_windows_bytes_do_not_depend_on_the_tile(model, stack):
    small = Box(zone=32, res_m=10, row=-304, col=672, height=48, width=64)
    origins = [(-304, 672), (-304, 688), (-288, 704)]
    want = open_session(model).encode(stack, ORIGINS)
    got = open_session(model).encode(make_stack(small, count=2, holes=HOLES), origins)
    picked = [ORIGINS.index(origin) for origin in origins]
    assert got.values.numpy().tobytes() == want.values[picked].numpy().tobytes()


def test_a_windows_bytes_do_not_depend_on_the_number_of_threads(model, stack):
    one = open_session(model, threads=1).encode(stack, ORIGINS)
    three = open_session(model, threads=3).encode(stack, ORIGINS)
    assert one.values.numpy().tobytes() == three.values.numpy().tobytes()
    np.testing.assert_array_equal(one.valid, three.valid)


def test_tokens_without_any_period_are_not_valid_and_zero(model):
    gone = Box(zone=32, res_m=10, row=-320, col=640, height=24, width=48)
    fields = open_session(model).encode(make_stack(BOX, count=2, holes=((0, gone), (1, gone))), ORIGINS)
    want = np.ones((4, 4), bool)
    want[:3] = False
    np.testing.assert_array_equal(fields.valid[0], want)
    assert not fields.values[0][~want].any()
    assert (fields.values[0][want] != 0).all()
    assert bool(fields.values.isfinite().all())


def test_a_window_without_any_pixel_is_not_encoded(model):
    work = open_session(model)
    fields = work.encode(make_stack(BOX, count=2, holes=((0, BOX), (1, BOX))), ORIGINS)
    assert not fields.valid.any()
    assert not fields.values.any()
    assert work.busy_s == 0


def test_a_wholly_missing_period_changes_nothing_but_its_absence(model):
    with_gap = make_stack(BOX, count=3, holes=((2, BOX),))
    three = open_session(model, count=3).encode(with_gap, ORIGINS[:4])
    two = open_session(model, count=2).encode(make_stack(BOX, count=2), ORIGINS[:4])
    np.testing.assert_allclose(three.values, two.values, atol=2e-5, rtol=1e-4)
    assert three.valid.all()


def test_busy_time_accumulates(model, stack):
    work = open_session(model, threads=2)
    work.encode(stack, ORIGINS[:4])
    first = work.busy_s
    work.encode(stack, ORIGINS[:4])
    assert 0 < first < work.busy_s


def test_the_gate_passes_on_this_machine(model):
    report = open_session(model).gate()
    assert report.ratio < FLOAT32_LIMIT


def test_a_stack_of_another_time_axis_is_refused(model):
    with pytest.raises(InvalidInputError, match="2 periods"):
        open_session(model).encode(make_stack(BOX, count=3), ORIGINS[:1])


def test_a_window_outside_the_stack_is_refused(model, stack):
    with pytest.raises(InvalidInputError):
        open_session(model).encode(stack, [(-320, 736)])


@pytest.mark.parametrize(
    ("patch_px", "window_px", "count", "batch"), [(4, 64, 1, 4), (8, 96, 1, 7), (8, 64, 12, 1), (1, 64, 12, 1)]
)
def test_auto_batches_hold_about_a_thousand_tokens_on_a_cpu(model, patch_px, window_px, count, batch):
    grid = GridSpec(patch_px=patch_px, window_px=window_px, overlap_px=8, tile_px=256)
    settings = EncodeSettings(device="cpu", attention="sdpa")
    got = session.settle(settings, card=model.card, grid=grid, periods=count)
    assert got.batch_windows == batch
    assert not got.compiled
    assert got.torch == torch.__version__.split("+")[0]


def test_settling_again_with_what_is_kept_gives_equal_numerics(model):
    first = numerics()
    settings = EncodeSettings(device="cpu", dtype="float32", batch_windows=4, compile="off")
    assert session.settle(settings, card=model.card, grid=GRID, periods=2, kept=first) == first
    assert first.device_name.startswith(torch.backends.cpu.get_cpu_capability())


def test_the_kernel_of_another_compiler_is_refused(model):
    other = dataclasses.replace(numerics(), attention="own-00000000")
    with pytest.raises(DeviceError, match=r"own"):
        session.Session(model, grid=GRID, periods=periods(2), numerics=other, threads=1)


def test_an_attention_kernel_that_this_device_lacks_is_refused(model):
    settings = EncodeSettings(device="cpu", dtype="float32", attention="cudnn")
    with pytest.raises(DeviceError, match="cudnn"):
        session.settle(settings, card=model.card, grid=GRID, periods=2)


def test_bfloat16_is_automatic_only_with_instructions_for_it(model):
    got = session.settle(EncodeSettings(device="cpu"), card=model.card, grid=GRID, periods=1)
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    assert got.dtype == ("bfloat16" if fast else "float32")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_without_a_device_is_refused(model):
    with pytest.raises(DeviceError, match="no CUDA device"):
        session.settle(EncodeSettings(device="cuda"), card=model.card, grid=GRID, periods=1)
    with pytest.raises(DeviceError, match="CUDA"):
        session.Session(
            model, grid=GRID, periods=periods(1), numerics=dataclasses.replace(numerics(), device="cuda"), threads=1
        )


def test_compiling_without_a_compiler_is_refused(model, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ConfigError, match=r"C\+\+ compiler"):
        session.settle(EncodeSettings(device="cpu", compile="on"), card=model.card, grid=GRID, periods=1)


def test_a_window_that_patches_do_not_fill_is_refused(model):
    bad = GridSpec(patch_px=8, window_px=60, overlap_px=8, tile_px=256)
    with pytest.raises(ConfigError):
        session.settle(EncodeSettings(device="cpu"), card=model.card, grid=bad, periods=1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")
def test_the_compiled_encoder_agrees_and_passes_the_gate(model, stack):
    settings = EncodeSettings(device="cpu", dtype="float32", batch_windows=4, compile="on")
    chosen = session.settle(settings, card=model.card, grid=GRID, periods=2)
    work = session.Session(model, grid=GRID, periods=periods(2), numerics=chosen, threads=2)
    assert work.warm_up() > 0
    assert work.gate().ratio < FLOAT32_LIMIT
    eager = open_session(model).encode(stack, ORIGINS)
    np.testing.assert_allclose(work.encode(stack, ORIGINS).values, eager.values, atol=2e-5, rtol=1e-4)


def test_a_gpu_without_bfloat16_is_refused_unless_float32_is_asked_for():
    assert session.cuda_dtype("float32", name="Tesla T4", bf16=False) == "float32"
    assert session.cuda_dtype("auto", name="NVIDIA A100", bf16=True) == "bfloat16"
    for asked in ("auto", "bfloat16"):
        with pytest.raises(DeviceError, match="Tesla T4.*encode.dtype=float32"):
            session.cuda_dtype(asked, name="Tesla T4", bf16=False)
