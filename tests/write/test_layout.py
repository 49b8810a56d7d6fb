"""The shape of a store by quantiser: sizes in bytes, dtype and fill, the array of pixel scales."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline.errors import InvalidInputError
from pipeline.types import GridSpec
from pipeline.write import layout
from tests.quantisers import METHODS, calibration_of

DIMS = 192


@pytest.fixture
def spec_for(spec, extent_of):
    """A store of 2048 px tiles with a quantiser."""
    grid = GridSpec(patch_px=4, window_px=64, overlap_px=24, tile_px=2048)
    box = replace(extent_of(31, rows=(0, 8), cols=(0, 8)))

    def make(method):
        calibration = calibration_of(method, DIMS, bands=64)
        return replace(spec, dims=calibration.bands, calibration=calibration, grid=grid, extents=(box,))

    return make


@pytest.mark.parametrize(
    ("method", "dtype", "shard", "chunk"),
    [
        ("linear", "int8", 1024, 128),
        ("power", "int8", 1024, 128),
        ("per_pixel", "int8", 1024, 128),
        ("pca", "int8", 2048, 256),
        ("float16", "float16", 512, 64),
        ("float32", "float32", 512, 64),
    ],
)
def test_shards_and_chunks_are_as_large_as_their_bytes_allow(spec_for, method, dtype, shard, chunk):
    vectors, *layers = layout.arrays(spec_for(method))
    assert (vectors.name, vectors.dtype, vectors.shard_px, vectors.chunk_px) == ("embeddings", dtype, shard, chunk)
    size = vectors.lead[0][1] * np.dtype(dtype).itemsize
    assert layout.MAX_SHARD_BYTES / 4 < size * shard**2 <= layout.MAX_SHARD_BYTES
    assert layout.MAX_CHUNK_BYTES / 4 < size * chunk**2 <= layout.MAX_CHUNK_BYTES
    assert {layer.shard_px for layer in layers} == {shard}
    assert layout.shard_of(spec_for(method).calibration, spec_for(method).grid) == shard


@pytest.mark.parametrize("method", METHODS)
def test_no_object_means_nodata_whatever_the_dtype(spec_for, method):
    fill = layout.arrays(spec_for(method))[0].fill
    assert np.isnan(fill) if method.startswith("float") else fill == -128


@pytest.mark.parametrize("method", METHODS)
def test_only_a_scale_per_pixel_has_an_array_of_scales(spec_for, method):
    found = {array.name: array for array in layout.arrays(spec_for(method))}
    assert (layout.PIXEL_SCALE in found) == (method == "per_pixel")
    if method == "per_pixel":
        array = found[layout.PIXEL_SCALE]
        assert (array.dtype, array.dims) == ("float32", ("time", "y", "x"))
        assert np.isnan(array.fill)


def test_the_quantiser_is_part_of_the_identity_of_a_store(spec_for):
    known = [layout.identity(spec_for(method)) for method in METHODS]
    assert len({found["calibration"] for found in known}) == len(METHODS)


def test_a_store_of_other_bands_than_its_calibration_is_refused(spec_for):
    with pytest.raises(InvalidInputError, match="64 bands, the store 192"):
        replace(spec_for("pca"), dims=192)
