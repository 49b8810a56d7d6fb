"""``resampling: pretrain``: what pretraining stored and repeated, against GDAL and ``np.repeat``."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stacks import inside, make_stack, native_pixels, periods

from pipeline.config import EncodeSettings
from pipeline.encode import assemble, checkpoint, session
from pipeline.encode.bands import DEFAULT_BANDS, scale_offset
from pipeline.encode.workers import Workers
from pipeline.errors import InvalidInputError
from pipeline.types import Box, GridSpec, Layer, Period, Stack
from tests.gdal import warped

PRETRAIN = assemble.Input(sensor="sentinel2_l2a", bands=DEFAULT_BANDS["sentinel2_l2a"], resampling="pretrain")
RASTER = {20: Box(zone=32, res_m=20, row=-240_003, col=25_001, height=60, width=70)}
RASTER[60] = Box(zone=32, res_m=60, row=-80_001, col=8_334, height=40, width=44)


def ours(pixels: np.ndarray, raster: Box, target: Box) -> np.ndarray:
    layer = Layer(res_m=raster.res_m, bands=("B01",), pixels=pixels[None, None], valid=(pixels > 0)[None], box=raster)
    return assemble.upsampled(layer, target, period=0, resampling="pretrain")[0].numpy()


def repeated(values: np.ndarray, source: Box, target: Box) -> np.ndarray:
    """A whole raster repeated to 10 m, and the target cut out of it."""
    factor = source.res_m // 10
    fine = Box(
        zone=source.zone,
        res_m=10,
        row=source.row * factor,
        col=source.col * factor,
        height=source.height * factor,
        width=source.width * factor,
    )
    return values.repeat(factor, axis=0).repeat(factor, axis=1)[target.slices_in(fine)]


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("odd", [0, 1, 3])
def test_60_m_goes_through_40_m_as_gdal_makes_it_and_is_repeated(holes, odd):
    raster, target = RASTER[60], inside(RASTER[60], odd=odd, margin_px=3)
    pixels, grid_40 = native_pixels(raster, holes=holes), inside(RASTER[60], odd=odd, margin_px=3).cover(40)
    want = repeated(warped(pixels, raster.transform, grid_40), grid_40, target).astype(np.float32)
    got = ours(pixels, raster, target)
    np.testing.assert_array_equal(got == 0, want == 0)
    assert np.abs(got - want).max() <= 1
    # Every third 40 m pixel lies halfway between two 60 m ones: exact halves, which GDAL's coordinates tip either way.
    assert (got != want).mean() < 0.05
    assert (got == 0).any() == holes


@pytest.mark.parametrize("odd", [0, 1])
def test_20_m_is_repeated(odd):
    raster, target = RASTER[20], inside(RASTER[20], odd=odd, margin_px=3)
    pixels = native_pixels(raster, holes=True)
    np.testing.assert_array_equal(ours(pixels, raster, target), repeated(pixels, raster, target))


def test_20_m_needs_no_margin_for_repeating():
    raster = RASTER[20]
    whole = Box(zone=32, res_m=10, row=raster.row * 2, col=raster.col * 2, height=120, width=140)
    pixels = native_pixels(raster, holes=False)
    np.testing.assert_array_equal(ours(pixels, raster, whole), repeated(pixels, raster, whole))


def test_blocks_of_4_pixels_at_multiples_of_40_m_share_their_60_m_value():
    target = Box(zone=32, res_m=10, row=-480_000, col=50_040, height=40, width=48)
    got = ours(native_pixels(RASTER[60], holes=False), RASTER[60], target)
    assert (got == got[::4, ::4].repeat(4, axis=0).repeat(4, axis=1)).all()
    assert (got[3, :-1:4] != got[4, :-1:4]).any()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 36), st.integers(1, 36))
def test_a_pixel_does_not_depend_on_the_box_it_is_made_in(row, col, height, width):
    whole = Box(zone=32, res_m=10, row=-701, col=903, height=96, width=96)
    part = Box(zone=32, res_m=10, row=whole.row + row, col=whole.col + col, height=height, width=width)
    hole = Box(zone=32, res_m=10, row=-690, col=910, height=25, width=31)
    large = assemble.normalised(make_stack(whole, holes=((0, hole),)), whole, wanted=PRETRAIN)
    small = assemble.normalised(make_stack(part, holes=((0, hole),)), part, wanted=PRETRAIN)
    rows, cols = part.slices_in(whole)
    assert large[..., rows, cols].contiguous().numpy().tobytes() == small.contiguous().numpy().tobytes()


def test_landsat_keeps_its_10_m_band_and_repeats_the_others():
    box = Box(zone=32, res_m=10, row=-83, col=17, height=7, width=9)
    rng, bands = np.random.default_rng(0), DEFAULT_BANDS["landsat"]
    layers = []
    for res_m, names in ((10, bands[:1]), (20, bands[1:])):
        pixels = rng.integers(1, 30_000, (1, len(names), *box.cover(res_m).shape)).astype(np.uint16)
        layers.append(
            Layer(res_m=res_m, bands=names, pixels=pixels, valid=(pixels > 0).any(axis=1), box=box.cover(res_m))
        )
    stack = Stack(sensor="landsat", box=box, layers=tuple(layers), periods=periods(1), sources=(), bytes_read=0)
    got = assemble.normalised(stack, box, wanted=assemble.Input(sensor="landsat", bands=bands, resampling="pretrain"))
    scale, offset = np.array([scale_offset(band, sensor="landsat") for band in bands]).T[:, :, None, None]
    fine = [repeated(p, layer.box, box) for layer in layers for p in layer.pixels[0]]
    np.testing.assert_allclose(got[0], np.stack(fine) * scale + offset, rtol=1e-5, atol=1e-6)


def test_an_unknown_resampling_is_refused():
    with pytest.raises(InvalidInputError, match="cubic"):
        assemble.Input(sensor="sentinel1", bands=("vv", "vh"), resampling="cubic")


# --- sessions --------------------------------------------------------------------------------------------------------

MODEL = "random:v1.2-toy:0"
GRID = GridSpec(patch_px=8, window_px=32, overlap_px=16, tile_px=256)
BOX = Box(zone=32, res_m=10, row=-320, col=640, height=48, width=64)
ORIGINS = [(-320, 640), (-304, 656)]


@pytest.fixture(scope="module")
def arguments():
    one = (Period(index=0, start=datetime(2024, 5, 1, tzinfo=UTC), end=datetime(2024, 5, 31, tzinfo=UTC)),)
    chosen = EncodeSettings(device="cpu", dtype="float32", batch_windows=2, compile="off", attention="sdpa")
    numerics = session.settle(chosen, card=checkpoint.describe(MODEL), grid=GRID, periods=1)
    return {"grid": GRID, "periods": one, "numerics": numerics}


def stack_at(arguments) -> Stack:
    made = make_stack(BOX)
    return Stack(
        sensor=made.sensor, box=BOX, layers=made.layers, periods=arguments["periods"], sources=(), bytes_read=0
    )


def test_a_session_feeds_the_encoder_as_it_is_told(arguments):
    model, stack = checkpoint.load(MODEL), stack_at(arguments)
    fields = {
        name: session.Session(model, threads=1, resampling=name, **arguments).encode(stack, ORIGINS).values
        for name in ("bilinear", "pretrain")
    }
    plain = session.Session(model, threads=1, **arguments).encode(stack, ORIGINS).values
    assert plain.equal(fields["bilinear"])
    assert not plain.equal(fields["pretrain"])


def test_encoder_processes_give_the_bytes_of_a_session_with_the_same_resampling(arguments):
    model, stack = checkpoint.load(MODEL), stack_at(arguments)
    want = session.Session(model, threads=1, resampling="pretrain", **arguments).encode(stack, ORIGINS).values
    with Workers(model, processes=1, resampling="pretrain", **arguments) as workers:
        assert workers.encode(stack, ORIGINS).values.equal(want)
