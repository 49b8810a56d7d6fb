"""Memory that processes share: what comes out is what went in, and nothing stays behind."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from stacks import make_stack

from pipeline.encode.shared import ALIGN, Shared, pack, unpack
from pipeline.errors import TransientError
from pipeline.types import Box

BOX = Box(zone=32, res_m=10, row=-320, col=640, height=64, width=64)


def open_files() -> int:
    return sum(1 for _ in Path("/dev/fd").iterdir())


@pytest.mark.parametrize("dtype", [np.uint16, np.float32, np.bool_, np.int64])
@pytest.mark.parametrize("shape", [(3, 5), (7,), (), (0, 4)])
def test_arrays_come_back_equal(dtype, shape):
    array = (np.arange(15) % 5).astype(dtype)[: int(np.prod(shape))].reshape(shape)
    found = unpack(pack({"array": array}))["array"]
    np.testing.assert_array_equal(found, array)
    assert (found.dtype, found.shape) == (array.dtype, shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.int64, torch.complex64])
def test_tensors_come_back_equal_also_where_they_were_strided(dtype):
    tensor = torch.arange(24).reshape(4, 6).to(dtype).T[::2]
    found = unpack(pack((tensor, "beside")))[0]
    assert found.dtype == dtype
    assert torch.equal(found, tensor)
    assert found.data_ptr() % ALIGN == 0


def test_what_was_one_array_is_one_again():
    array = np.arange(1000)
    memory = pack([array, array])
    first, second = unpack(memory)
    first[0] = 7
    assert second[0] == 7
    assert memory.nbytes < 1.5 * array.nbytes


def test_a_stacks_pixels_are_in_the_memory_once_and_not_in_its_pickle():
    stack = make_stack(BOX, count=2)
    memory = pack((stack,))
    assert stack.nbytes <= memory.nbytes < stack.nbytes + 4096
    (found,) = unpack(memory)
    for ours, theirs in zip(stack.layers, found.layers, strict=True):
        np.testing.assert_array_equal(ours.pixels, theirs.pixels)
        np.testing.assert_array_equal(ours.valid, theirs.valid)
    assert found.box == BOX


def test_both_mappings_see_a_write_unless_it_is_private():
    here = Shared.create(64)
    there, own = Shared(os.dup(here.fd)), Shared(os.dup(here.fd), private=True)
    there.array((4,), np.uint8)[...] = 5
    own.array((4,), np.uint8, 8)[...] = 6
    np.testing.assert_array_equal(here.array((12,), np.uint8), [5] * 4 + [0] * 8)
    np.testing.assert_array_equal(own.array((12,), np.uint8), [5] * 4 + [0] * 4 + [6] * 4)


def test_views_outlive_the_descriptor_and_descriptors_do_not_pile_up():
    before = open_files()
    view = Shared.create(64).array((16,), np.float32)
    view[...] = 3
    np.testing.assert_array_equal(view, np.full(16, 3, np.float32))
    del view
    assert open_files() == before


def test_memory_that_cannot_be_mapped_is_an_error_of_ours():
    with pytest.raises(TransientError, match="MB of shared memory"):
        Shared.create(1 << 62)
