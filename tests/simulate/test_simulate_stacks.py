"""Stacks from memory: geometry of the layers, encoding, and the range of the calibration sample."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from pipeline.simulate.landscape import reflectance
from pipeline.simulate.sample import calibration_stacks, sample_stack
from pipeline.simulate.scenes import native_dn
from pipeline.simulate.stacks import LAYER_BANDS, observation_date
from pipeline.types import Box, Period

BOX = Box(zone=32, res_m=10, row=-552301, col=50017, height=70, width=83)


def make_periods(count: int) -> tuple[Period, ...]:
    first = datetime(2024, 4, 1, tzinfo=UTC)
    days = [first + timedelta(days=30 * n) for n in range(count + 1)]
    return tuple(Period(index=n, start=days[n], end=days[n + 1]) for n in range(count))


@pytest.fixture(scope="module")
def calibration():
    return list(calibration_stacks(make_periods(4)))


def test_layers_cover_the_box_with_the_margin_that_readers_keep() -> None:
    stack = sample_stack(BOX, make_periods(2))
    assert tuple((layer.res_m, layer.bands) for layer in stack.layers) == LAYER_BANDS
    for layer in stack.layers:
        assert layer.box == BOX.cover(layer.res_m, pad_px=0 if layer.res_m == 10 else 2)
        assert layer.valid.all()


def test_a_stack_holds_the_landscape_in_the_encoding_of_the_new_baselines() -> None:
    (period,) = make_periods(1)
    stack = sample_stack(BOX, (period,))
    whole = BOX.cover(60, pad_px=2)
    fine = Box(zone=32, res_m=10, row=whole.row * 6, col=whole.col * 6, height=whole.height * 6, width=whole.width * 6)
    want = dict(native_dn(reflectance(fine, observation_date(period)), offset=1000))
    for layer in stack.layers:
        cut = layer.box.slices_in(fine.cover(layer.res_m))
        for index, band in enumerate(layer.bands):
            np.testing.assert_array_equal(layer.pixels[0, index], want[band][cut], err_msg=band)


def test_neighbouring_stacks_agree_where_they_overlap() -> None:
    other = Box(zone=32, res_m=10, row=BOX.row + 13, col=BOX.col + 29, height=70, width=83)
    for one, two in zip(
        sample_stack(BOX, make_periods(1)).layers, sample_stack(other, make_periods(1)).layers, strict=True
    ):
        common = one.box.intersect(two.box)
        assert common is not None
        cut_one, cut_two = common.slices_in(one.box), common.slices_in(two.box)
        np.testing.assert_array_equal(one.pixels[..., *cut_one], two.pixels[..., *cut_two])


def test_calibration_has_eight_boxes_and_is_repeatable(calibration) -> None:
    again = list(calibration_stacks(make_periods(4)))
    assert [stack.box.shape for stack in calibration] == [(96, 96)] * 8
    for one, two in zip(calibration, again, strict=True):
        for layer, other in zip(one.layers, two.layers, strict=True):
            np.testing.assert_array_equal(layer.pixels, other.pixels)


def test_calibration_spans_dark_water_to_snow_and_cloud(calibration) -> None:
    for index in range(3):
        layer_pixels = [stack.layers[index].pixels for stack in calibration]
        for band in range(layer_pixels[0].shape[1]):
            values = np.concatenate([pixels[:, band].ravel() for pixels in layer_pixels]).astype(int)
            values = values[values > 0] - 1000
            assert np.percentile(values, 1) < 500
            assert np.percentile(values, 99) > 3500


def test_calibration_holds_missing_bands_dates_and_strips(calibration) -> None:
    fine, middle, coarse = calibration[-1].layers
    assert not coarse.pixels[0].any()
    assert not middle.pixels[0, middle.bands.index("B8A")].any()
    assert middle.valid[0].all()
    assert not any(layer.valid[3].any() for layer in (fine, middle, coarse))
    assert 0.2 < fine.valid[1].mean() < 0.9


@pytest.mark.parametrize("count", [1, 2, 12])
def test_calibration_works_for_any_number_of_periods(count: int) -> None:
    stack = next(iter(calibration_stacks(make_periods(count))))
    assert len(stack.layers[0].pixels) == count
