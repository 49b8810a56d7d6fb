"""Upsampling against GDAL's warper, normalisation against the reference package, validity, independence of the tile."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from olmoearth_pretrain_minimal import NormalizerV1, NormalizerV1_2
from olmoearth_pretrain_minimal.olmoearth_pretrain_v1.utils.constants import Modality
from stacks import BANDS, inside, make_stack, native_pixels, periods, world

from pipeline.encode import assemble
from pipeline.encode.bands import DEFAULT_BANDS, MEAN_STD, scale_offset
from pipeline.errors import InvalidInputError
from pipeline.types import Box, Layer, Stack
from tests.gdal import warped

ORDER = DEFAULT_BANDS["sentinel2_l2a"]
S2 = assemble.Input(sensor="sentinel2_l2a", bands=ORDER)
RASTER = {20: Box(zone=32, res_m=20, row=-240_003, col=25_001, height=60, width=70)}
RASTER[60] = Box(zone=32, res_m=60, row=-80_001, col=8_334, height=30, width=30)


def ours(pixels: np.ndarray, raster: Box, target: Box) -> np.ndarray:
    layer = Layer(res_m=raster.res_m, bands=("B11",), pixels=pixels[None, None], valid=(pixels > 0)[None], box=raster)
    return assemble.upsampled(layer, target, period=0)[0].numpy()


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("odd", [0, 1])
def test_20_m_to_10_m_equals_gdal_bit_for_bit(holes, odd):
    raster = RASTER[20]
    pixels = native_pixels(raster, holes=holes, peak=65535)
    target = inside(raster, odd=odd, margin_px=2)
    np.testing.assert_array_equal(ours(pixels, raster, target), warped(pixels, raster.transform, target))


@pytest.mark.parametrize("holes", [False, True])
def test_60_m_to_10_m_equals_gdal_within_one_dn(holes):
    raster = RASTER[60]
    pixels = native_pixels(raster, holes=holes, peak=12000)
    target = inside(raster, odd=1, margin_px=2)
    got, want = ours(pixels, raster, target), warped(pixels, raster.transform, target).astype(np.float32)
    np.testing.assert_array_equal(got == 0, want == 0)
    assert np.abs(got - want).max() <= 1
    assert (got != want).mean() < 0.02


def test_10_m_pixels_pass_unchanged():
    box = Box(zone=32, res_m=10, row=-5, col=3, height=12, width=9)
    stack = make_stack(box)
    np.testing.assert_array_equal(assemble.upsampled(stack.layers[0], box, period=0), stack.layers[0].pixels[0])


def test_normalised_values_equal_the_reference_package():
    box = Box(zone=32, res_m=10, row=-501, col=1003, height=24, width=30)
    stack = make_stack(box, count=2)
    dn = {}
    for layer in stack.layers:
        for i, name in enumerate(layer.bands):
            dn[name] = np.stack([assemble.upsampled(layer, box, period=t)[i].numpy() for t in range(2)])
    raw = np.maximum(np.stack([dn[name] for name in ORDER], axis=-1) - 1000.0, 1.0)  # (time, row, col, band)
    want = NormalizerV1_2().normalize(Modality.SENTINEL2_L2A, raw)
    got = assemble.normalised(stack, box, wanted=S2)
    np.testing.assert_allclose(got.permute(0, 2, 3, 1).numpy(), want, rtol=1e-5, atol=1e-6)


def test_missing_bands_and_missing_pixels_are_zero_after_normalising():
    box = Box(zone=32, res_m=10, row=-120, col=60, height=36, width=36)
    hole = Box(zone=32, res_m=10, row=-120, col=60, height=12, width=12)
    stack = make_stack(box, holes=((0, hole),))
    without_60 = Stack(
        sensor=stack.sensor, box=box, layers=stack.layers[:2], periods=stack.periods, sources=(), bytes_read=0
    )
    got = assemble.normalised(without_60, box, wanted=S2)[0]
    assert not got[:, :12, :12].any()
    assert not got[10:].any()
    assert (got[:10, 12:, 12:] != 0).all()


def test_dark_pixels_are_floored_at_one_and_stay_valid():
    box = Box(zone=32, res_m=10, row=0, col=0, height=4, width=4)
    pixels = np.full((1, 1, 4, 4), 400, np.uint16)
    layer = Layer(res_m=10, bands=("B02",), pixels=pixels, valid=(pixels > 0)[:, 0], box=box)
    stack = Stack(sensor="sentinel2_l2a", box=box, layers=(layer,), periods=periods(1), sources=(), bytes_read=0)
    got = assemble.normalised(stack, box, wanted=S2)[0, 0]
    np.testing.assert_allclose(got, (1.0 - 1188.9412572078477) / (4 * 1859.1923971769581) + 0.5, rtol=1e-6)


@pytest.mark.parametrize("shift", [(0, 0), (7, 13), (31, 5)])
def test_a_pixel_does_not_depend_on_the_box_it_is_made_in(shift):
    whole = Box(zone=32, res_m=10, row=-700, col=900, height=96, width=96)
    part = Box(zone=32, res_m=10, row=-700 + shift[0], col=900 + shift[1], height=40, width=44)
    hole = Box(zone=32, res_m=10, row=-690, col=910, height=25, width=31)
    large = assemble.normalised(make_stack(whole, holes=((0, hole),)), whole, wanted=S2)
    small = assemble.normalised(make_stack(part, holes=((0, hole),)), part, wanted=S2)
    rows, cols = part.slices_in(whole)
    assert large[..., rows, cols].numpy().tobytes() == small.contiguous().numpy().tobytes()


def test_observed_counts_periods_in_which_some_layer_has_data():
    box = Box(zone=32, res_m=10, row=-120, col=60, height=60, width=60)
    first = Box(zone=32, res_m=10, row=-120, col=60, height=12, width=60)
    second = Box(zone=32, res_m=10, row=-120, col=60, height=60, width=18)
    got = assemble.observed(make_stack(box, count=3, holes=((0, first), (2, second))), box)
    want = np.full((60, 60), 3, np.uint8)
    want[:12] -= 1
    want[:, :18] -= 1
    np.testing.assert_array_equal(got, want)
    assert got.dtype == np.uint8


def test_the_finest_layer_of_the_stack_says_what_is_observed():
    box = Box(zone=32, res_m=10, row=-120, col=60, height=12, width=12)
    stack = make_stack(box)
    blank = Layer(
        res_m=10,
        bands=BANDS[10],
        pixels=np.zeros((1, 4, 12, 12), np.uint16),
        valid=np.zeros((1, 12, 12), bool),
        box=box,
    )
    partly = Stack(
        sensor=stack.sensor, box=box, layers=(blank, *stack.layers[1:]), periods=stack.periods, sources=(), bytes_read=0
    )
    assert (assemble.observed(partly, box) == 0).all()  # a swath edge: only coarser bands reach here
    coarse = replace(partly, layers=stack.layers[1:])
    assert (assemble.observed(coarse, box) == 1).all()


def test_strips_hold_every_window_at_its_place():
    box = Box(zone=32, res_m=10, row=-96, col=48, height=80, width=112)
    stack = make_stack(box, count=2)
    origins = [(-96, 48), (-80, 64), (-96, 96), (-80, 48)]
    whole = assemble.normalised(stack, box, wanted=S2)
    seen = {}
    for strip in assemble.strips(assemble.Resident((stack,)), origins, window_px=64, inputs=(S2,)):
        for index, row, col in strip.origins:
            assert origins[index] == (row, col)
            (seen[index],), _ = assemble.window_pixels(strip, (row, col), window_px=64, patch_px=8)
    assert sorted(seen) == [0, 1, 2, 3]
    for index, (row, col) in enumerate(origins):
        np.testing.assert_array_equal(seen[index], whole[..., row + 96 : row + 160, col - 48 : col + 16])


def test_a_token_is_in_attention_when_any_of_its_pixels_is_valid():
    box = Box(zone=32, res_m=10, row=-96, col=48, height=24, width=24)
    hole = Box(zone=32, res_m=10, row=-96, col=48, height=8, width=12)
    layer = make_stack(box).layers[0]
    pixels = layer.pixels.copy()
    pixels[(0, slice(None), *hole.slices_in(box))] = 0
    only_10 = Stack(
        sensor="sentinel2_l2a",
        box=box,
        layers=(Layer(res_m=10, bands=layer.bands, pixels=pixels, valid=(pixels > 0).any(axis=1), box=box),),
        periods=periods(1),
        sources=(),
        bytes_read=0,
    )
    (strip,) = assemble.strips(assemble.Resident((only_10,)), [(-96, 48)], window_px=24, inputs=(S2,))
    _, valid = assemble.window_pixels(strip, (-96, 48), window_px=24, patch_px=8)
    want = np.ones((1, 1, 3, 3), bool)
    want[0, 0, 0, 0] = False  # the token beside it keeps 4 valid columns
    np.testing.assert_array_equal(valid, want)


def test_a_layer_without_the_interpolation_margin_is_refused():
    box = Box(zone=32, res_m=10, row=-120, col=60, height=24, width=24)
    native = box.cover(20)
    pixels = world(native, count=1, band=0)[:, None]
    layer = Layer(res_m=20, bands=("B11",), pixels=pixels, valid=pixels[:, 0] > 0, box=native)
    with pytest.raises(InvalidInputError, match="20 m layer"):
        assemble.upsampled(layer, box, period=0)


@pytest.mark.parametrize("sensor", list(MEAN_STD))
def test_every_bands_constants_equal_the_reference_packages(sensor):
    modality = Modality.get(sensor)
    assert tuple(modality.band_order) == DEFAULT_BANDS[sensor]
    raw = np.linspace(-30, 20_000, 7)[:, None] * np.ones(len(modality.band_order))
    want = NormalizerV1_2().normalize(modality, raw[None, None])[0, 0]
    got = [raw[:, i] * scale + offset for i, (scale, offset) in enumerate(constants(sensor))]
    np.testing.assert_allclose(np.stack(got, axis=1), want, rtol=1e-9, atol=1e-12)


def constants(sensor: str) -> list[tuple[float, float]]:
    return [scale_offset(band, sensor=sensor) for band in DEFAULT_BANDS[sensor]]


def plain_stack(sensor: str, values: np.ndarray) -> Stack:
    """A Stack of one 10 m layer from (band, row, col), in the package's band order; 0 and NaN are missing."""
    box = Box(zone=32, res_m=10, row=-8, col=16, height=values.shape[1], width=values.shape[2])
    have = (np.nan_to_num(values) != 0).any(axis=0)[None]
    layer = Layer(res_m=10, bands=DEFAULT_BANDS[sensor], pixels=values[None], valid=have, box=box)
    return Stack(sensor=sensor, box=box, layers=(layer,), periods=periods(1), sources=(), bytes_read=0)


def test_sentinel_1_decibels_and_landsat_numbers_are_normalised_as_they_are():
    rng = np.random.default_rng(0)
    decibels = rng.normal(-12, 5, (2, 6, 7)).astype(np.float32)
    decibels[0, 0, 0], decibels[1, 2, 2] = np.nan, 0.0  # 0 dB is a value
    numbers = rng.integers(1, 30_000, (11, 6, 7)).astype(np.uint16)
    numbers[3, 1, 1] = 0
    for sensor, values in (("sentinel1", decibels), ("landsat", numbers)):
        stack = plain_stack(sensor, values)
        got = assemble.normalised(stack, stack.box, wanted=assemble.Input(sensor=sensor, bands=DEFAULT_BANDS[sensor]))
        scale, offset = np.array(constants(sensor)).T[:, :, None, None]
        missing = np.isnan(values) if sensor == "sentinel1" else values == 0
        want = np.where(missing, 0.0, values * scale + offset)
        np.testing.assert_allclose(got[0], want, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Up to")
@pytest.mark.parametrize("sensor", ["sentinel2_l2a", "landsat"])
def test_version_1_fills_missing_bands_as_the_reference_package_does(sensor):
    rng = np.random.default_rng(1)
    values = rng.integers(1200, 9000, (len(DEFAULT_BANDS[sensor]), 9, 8)).astype(np.uint16)
    values[rng.random(values.shape) < 0.3] = 0
    values[:, 0, 0] = 0
    stack, modality = plain_stack(sensor, values), Modality.get(sensor)
    wanted = assemble.Input(sensor=sensor, bands=DEFAULT_BANDS[sensor], substitute=True)
    raw = values.astype(np.float64) - (1000 if sensor == "sentinel2_l2a" else 0)
    raw[values == 0] = -99999
    want = NormalizerV1().normalize(modality, raw.transpose(1, 2, 0)[:, :, None])[:, :, 0].transpose(2, 0, 1)
    got = assemble.normalised(stack, stack.box, wanted=wanted)
    np.testing.assert_allclose(got[0], want, rtol=1e-5, atol=1e-6)


def test_a_stack_of_another_sensor_is_refused():
    stack = plain_stack("landsat", np.ones((11, 4, 4), np.uint16))
    with pytest.raises(InvalidInputError, match="holds landsat"):
        assemble.normalised(stack, stack.box, wanted=S2)
