"""True colours of a Stack: a fixed stretch of the reflectance, means of what was seen, the same wherever it is cut."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from pipeline.read.colours import colour_stack, true_colours
from pipeline.types import Box, Layer, Period, Stack

BOX = Box(zone=31, res_m=80, row=-40, col=8, height=4, width=6)
"""80 m pixels."""
BANDS = {"sentinel2_l2a": ("B02", "B03", "B04", "B08"), "landsat": ("B8", "B2", "B3", "B4")}
DECEMBER = tuple(
    Period(index=k, start=datetime(2024, 12, 1 + k, tzinfo=UTC), end=datetime(2024, 12, 2 + k, tzinfo=UTC))
    for k in range(2)
)


def stack_of(dn, *, sensor="sentinel2_l2a", res_m=10, margin=3):
    """A Stack whose bands are all ``dn``, a number or (row, col); its layer reaches further than ``BOX``."""
    box = BOX.cover(res_m, pad_px=margin)
    pixels = np.zeros((2, len(BANDS[sensor]), *box.shape), np.uint16)
    pixels[...] = np.pad(dn, margin) if np.ndim(dn) else dn
    layer = Layer(res_m=res_m, bands=BANDS[sensor], pixels=pixels, valid=(pixels > 0).any(axis=1), box=box)
    return Stack(sensor=sensor, box=BOX.cover(10), layers=(layer,), periods=DECEMBER, sources=(), bytes_read=0)


@pytest.mark.parametrize(
    ("dn", "value"),
    [(1000, 1), (2500, 128), (4000, 255), (9000, 255), (900, 1), (0, 0)],
    ids=["black", "half", "white", "cloud", "below zero", "nodata"],
)
def test_reflectance_of_sentinel2_is_stretched_alike_everywhere(dn, value):
    assert np.unique(true_colours(stack_of(dn), BOX)).tolist() == [value]


@pytest.mark.parametrize("res_m", [10, 20])
def test_landsat_is_rescaled_as_usgs_says(res_m):
    found = true_colours(stack_of(12_500, sensor="landsat", res_m=res_m), BOX)
    assert np.unique(found).tolist() == [1 + 127]  # 12500 * 2e-5 - 0.1 is 0.15, half of what is shown
    assert found.shape == (2, 3, *BOX.shape)


def test_a_colour_is_the_mean_of_the_pixels_that_were_seen():
    dn = np.zeros(BOX.cover(10).shape)
    dn[:8, :4], dn[:4, :3] = 1000, 4000
    found = true_colours(stack_of(dn), BOX)[0, 0]
    assert found[0, 0] == round(1 + 254 * 12 / 32)
    assert np.count_nonzero(found) == 1


def test_a_pixel_without_one_of_its_bands_has_no_colour():
    stack = stack_of(2500)
    stack.layers[0].pixels[0, 1] = 0
    found = true_colours(stack, BOX)
    assert not found[0].any()
    assert found[1].all()


def test_red_is_first():
    stack = stack_of(1000)
    stack.layers[0].pixels[:, 2] = 4000  # B04
    assert true_colours(stack, BOX)[0, :, 0, 0].tolist() == [255, 1, 1]


def test_a_colour_does_not_depend_on_what_is_cut_around_it():
    rng = np.random.default_rng(0)
    stack = stack_of(rng.integers(0, 6000, BOX.cover(10).shape))
    whole = true_colours(stack, BOX)
    part = replace(BOX, row=BOX.row + 1, col=BOX.col + 2, height=2, width=3)
    np.testing.assert_array_equal(true_colours(stack, part), whole[..., 1:3, 2:5])


def test_sentinel2_is_shown_before_landsat_and_radar_never():
    optical, landsat = stack_of(2500), stack_of(2500, sensor="landsat")
    radar = replace(optical, sensor="sentinel1")
    assert colour_stack((landsat, radar, optical)) is optical
    assert colour_stack((radar, landsat)) is landsat
    assert colour_stack((radar,)) is None
