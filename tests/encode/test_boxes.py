"""Attention over boxes against dense masked attention in float64."""

from __future__ import annotations

import pytest
import torch

from pipeline.encode import boxes
from pipeline.encode.boxes import attend_boxes, available_boxes, block_side, box_starts, choose_boxes
from pipeline.errors import InvalidInputError

CASES = [
    (9, 4, 2, 3, (2, 5)),
    (7, 7, 1, 1, (0, 7)),
    (21, 8, 1, 1, (0, 21)),
    (20, 16, 1, 2, (3, 13)),
    (12, 2, 12, 12, (0, 12)),
    (12, 3, 4, 24, (5, 7)),
    (17, 1, 4, 1, (4, 9)),
]
"""Cells along the grid of keys, box, queries and keys of a cell, (first, count) of the cells that ask."""
KINDS = available_boxes("cpu", torch.float32, 16)


def inputs(case, *, heads=2, dim=16, dtype=torch.float32, grad=False):
    n, box, asks, answers, (first, count) = case
    generator = torch.Generator().manual_seed(n + box)
    q = torch.randn(count, count, asks, heads, dim, generator=generator).to(dtype)
    k, v = torch.randn(2, n, n, answers, heads, dim, generator=generator).to(dtype).unbind(0)
    starts = box_starts(count, n, box, first)
    seen = torch.rand(n, n, answers, generator=generator) < 0.2
    if grad:
        q, k, v = (part.requires_grad_() for part in (q, k, v))
    return (q, k, v), {"row_starts": starts, "col_starts": starts, "box": box}, seen


def dense(parts, *, row_starts, col_starts, box, visible=None):
    """Every query against every key in float64, with an explicit mask."""
    q, k, v = (part.double() for part in parts)

    def inside(starts, n):
        cells = torch.arange(n)
        return (cells >= starts[:, None]) & (cells < starts[:, None] + box)

    down, across = inside(row_starts, k.shape[0]), inside(col_starts, k.shape[1])
    mask = down[:, None, None, :, None, None] & across[None, :, None, None, :, None]
    mask = mask.expand(*q.shape[:3], *k.shape[:3])
    mask = mask if visible is None else mask & visible
    scores = torch.einsum("rcqhd,RCKhd->hrcqRCK", q, k) / q.shape[-1] ** 0.5
    weights = scores.masked_fill(~mask, -torch.inf).flatten(4).softmax(-1).nan_to_num(0.0)
    return torch.einsum("hrcqn,nhd->rcqhd", weights, v.flatten(0, 2)).flatten(3)


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_kernel_equals_dense_masked_attention(case, kind, hidden):
    parts, where, seen = inputs(case)
    visible = seen if hidden else None
    got = attend_boxes(kind, *parts, **where, visible=visible)
    torch.testing.assert_close(got.double(), dense(parts, **where, visible=visible), atol=3e-6, rtol=1e-5)


@pytest.mark.parametrize("case", CASES[:4], ids=str)
def test_bfloat16_errs_by_its_own_rounding_alone(case):
    parts, where, seen = inputs(case, dtype=torch.bfloat16)
    got, want = attend_boxes("sdpa", *parts, **where, visible=seen), dense(parts, **where, visible=seen)
    assert got.dtype == torch.bfloat16
    assert float((got.double() - want).norm() / want.norm()) < 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_a_query_without_any_visible_key_gives_zeros_and_its_neighbours_numbers(kind):
    parts, where, _ = inputs((9, 4, 2, 3, (0, 9)))
    visible = torch.zeros(9, 9, 3, dtype=torch.bool)
    visible[8, 8, 1] = True
    got = attend_boxes(kind, *parts, **where, visible=visible)
    sees = torch.zeros(9, 9, dtype=torch.bool)
    sees[7:, 7:] = True  # the boxes of rows 7 and 8 begin at row 5 and hold row 8
    assert not got[~sees].any()
    torch.testing.assert_close(got[sees], parts[2][8, 8, 1].flatten().expand_as(got[sees]), atol=1e-6, rtol=1e-6)


def test_a_bounded_number_of_blocks_at_a_time_changes_nothing(monkeypatch):
    parts, where, seen = inputs((21, 8, 1, 1, (0, 21)))
    want = attend_boxes("sdpa", *parts, **where, visible=seen)
    calls = []
    right = boxes._attend_blocks

    def counted(*args, **options):
        calls.append(options["rows"].blocks * options["cols"].blocks)
        return right(*args, **options)

    monkeypatch.setattr(boxes, "_attend_blocks", counted)
    monkeypatch.setattr(boxes, "GATHER_BYTES", 1)
    torch.testing.assert_close(attend_boxes("sdpa", *parts, **where, visible=seen), want, atol=1e-6, rtol=1e-6)
    assert set(calls) == {1}


def test_blocks_inside_a_grid_go_together_and_copy_no_more_than_the_bound(monkeypatch):
    parts, where, _ = inputs((64, 4, 1, 1, (0, 64)))
    bound = 1 << 20
    monkeypatch.setattr(boxes, "GATHER_BYTES", bound)
    gathered = []
    right = boxes._squares

    def counted(grid, rows, cols):
        found = right(grid, rows, cols)
        gathered.append(found.numel() * found.element_size())
        return found

    monkeypatch.setattr(boxes, "_squares", counted)
    attend_boxes("sdpa", *parts, **where)
    assert len(gathered) / 2 < 64 / block_side(4, 1)  # fewer calls than rows of blocks
    assert max(gathered) < bound / 2


def test_gradients_are_those_of_dense_attention():
    parts, where, seen = inputs((9, 4, 2, 3, (2, 5)), grad=True)
    found = []
    for run in (lambda *p, **o: attend_boxes("sdpa", *p, **o), lambda *p, **o: dense(p, **o)):
        loss = run(*parts, **where, visible=seen).double().square().sum()
        found.append(torch.autograd.grad(loss, parts))
    for got, want in zip(*found, strict=True):
        assert bool(got.isfinite().all())
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def test_boxes_lean_up_and_left_by_half_a_cell_and_are_shifted_inward_at_both_ends():
    assert box_starts(8, 8, 4).tolist() == [0, 0, 0, 1, 2, 3, 4, 4]
    assert box_starts(3, 8, 4, first=3).tolist() == [1, 2, 3]
    assert box_starts(5, 5, 3).tolist() == [0, 0, 1, 2, 2]
    assert box_starts(2, 2, 2).dtype == torch.int32


@pytest.mark.parametrize(("count", "n", "box", "first"), [(4, 4, 5, 0), (4, 4, 0, 0), (4, 6, 2, 3), (2, 6, 2, -1)])
def test_boxes_that_do_not_fit_are_refused(count, n, box, first):
    with pytest.raises(InvalidInputError, match="are impossible"):
        box_starts(count, n, box, first)


def test_unknown_kernels_and_boxes_that_are_not_side_by_side_are_refused():
    parts, where, _ = inputs((9, 4, 1, 1, (0, 9)))
    with pytest.raises(InvalidInputError, match="'flex', must be one of own, triton, sdpa"):
        attend_boxes("flex", *parts, **where)
    far = {**where, "row_starts": torch.tensor([0, 0, 0, 5, 5, 5, 5, 5, 5], dtype=torch.int32)}
    with pytest.raises(InvalidInputError, match="do not lie side by side"):
        attend_boxes("sdpa", *parts, **far)


def test_the_choice_is_one_of_those_that_were_measured():
    kind, table = choose_boxes("cpu", torch.float32, heads=2, head_dim=16, box=2, per_cell=2, masked=True, seconds=0)
    assert kind in dict(table)
    assert tuple(name for name, _ in table) == KINDS
    assert all(seconds > 0 for _, seconds in table)


def test_torch_is_left_where_the_own_kernel_does_not_fit():
    assert available_boxes("cpu", torch.float32, 20) == ("sdpa",)
