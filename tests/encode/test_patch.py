"""Resize matrices against torch, normalisation constants against the reference package."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from olmoearth_pretrain_minimal.olmoearth_pretrain_v1.data.normalize import load_computed_config
from olmoearth_pretrain_minimal.olmoearth_pretrain_v1.utils.constants import Modality

from pipeline.encode import bands
from pipeline.encode.patch import resize_matrix, token_grid
from pipeline.errors import ConfigError


@pytest.mark.parametrize("patch_px", range(1, 9))
def test_two_matrices_equal_torchs_antialiased_bicubic(patch_px):
    height, width = 3 * patch_px, 5 * patch_px
    pixels = torch.from_numpy(np.random.default_rng(patch_px).standard_normal((1, 2, max(height, 2), max(width, 2))))
    rows, cols = (torch.from_numpy(resize_matrix(side, patch_px)) for side in (height, width))
    want = torch.nn.functional.interpolate(pixels, size=(24, 40), mode="bicubic", antialias=True, align_corners=False)
    torch.testing.assert_close(rows @ pixels @ cols.T, want, atol=1e-12, rtol=0)


@pytest.mark.parametrize("patch_px", [1, 2, 4])
def test_rows_sum_to_one_also_at_the_border(patch_px):
    np.testing.assert_allclose(resize_matrix(16, patch_px).sum(axis=1), 1.0, rtol=1e-12)


@pytest.mark.parametrize(("window_px", "patch_px"), [((10, 8), 4), ((8, 0), 8), ((9, 9), 9)])
def test_a_window_that_patches_do_not_fill_is_refused(window_px, patch_px):
    with pytest.raises(ConfigError):
        token_grid(window_px, patch_px)


def test_normalisation_constants_are_the_packages():
    for sensor, ours in bands.MEAN_STD.items():
        table = load_computed_config()[sensor]
        assert {name: (row["mean"], row["std"]) for name, row in table.items()} == ours
    assert tuple(Modality.SENTINEL2_L2A.band_order) == bands.DEFAULT_BANDS["sentinel2_l2a"]
    assert tuple(Modality.SENTINEL1.band_order) == bands.DEFAULT_BANDS["sentinel1"]
    assert tuple(Modality.LANDSAT.band_order) == bands.DEFAULT_BANDS["landsat"]
