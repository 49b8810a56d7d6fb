"""The Triton kernel of ``pipeline.encode.triton_boxes``; importing this module needs triton.

It is a module of its own because Triton's interpreter looks for ``triton.language`` among a kernel's globals, and
triton must not be imported where it is not used. Read the other module first: it says what was run.
"""

from __future__ import annotations

import triton  # type: ignore[import-not-found,import-untyped]
import triton.language as tl  # type: ignore[import-not-found,import-untyped]


# Counts are not specialised: one binary serves every size of domain. Strides are, because wide loads need to know that
# they are multiples of 16.
@triton.jit(do_not_specialize=["heads", "row_queries", "cell_queries", "rows", "row_keys", "cell_keys", "box"])  # type: ignore[untyped-decorator]
def attend_boxes(
    q_at: tl.tensor,
    k_at: tl.tensor,
    v_at: tl.tensor,
    visible_at: tl.tensor | None,
    row_starts_at: tl.tensor,
    col_starts_at: tl.tensor,
    out_at: tl.tensor,
    q_row_stride: tl.tensor,
    q_stride: tl.tensor,
    q_head_stride: tl.tensor,
    k_row_stride: tl.tensor,
    k_stride: tl.tensor,
    k_head_stride: tl.tensor,
    v_row_stride: tl.tensor,
    v_stride: tl.tensor,
    v_head_stride: tl.tensor,
    heads: tl.tensor,
    row_queries: tl.tensor,
    cell_queries: tl.tensor,
    rows: tl.tensor,
    row_keys: tl.tensor,
    cell_keys: tl.tensor,
    box: tl.tensor,
    scale: tl.tensor,
    queries: tl.constexpr,
    keys: tl.constexpr,
    dim: tl.constexpr,
) -> None:
    """Compute one block of queries of one row for one head.

    Grid: (blocks of a row * heads, query rows). The keys that a block reads are, in each of the ``box`` key rows, the
    run from the first key of its first query to the last key of its last query. The runs are scanned as one sequence,
    row after row, so that only the last step is padded. Softmax is the online form of Milakov and Gimelshein (2018),
    in powers of two.

    Args:
        q_at: Queries, (query row, query in the row, head, dim) by the strides given; dims are adjacent.
        k_at: Keys, (key row, key in the row, head, dim), the same way.
        v_at: Values, as the keys.
        visible_at: uint8 (key row, key in the row), contiguous, 0 for hidden keys; None: all are visible.
        row_starts_at: int32 (query row,), first key row of the box.
        col_starts_at: int32 (query cell of a row,), first key column of the box.
        out_at: Output (query row, query in the row, head, dim), contiguous.
        q_row_stride: Elements from one row to the next; the other strides likewise.
        q_stride: From one query of a row to the next.
        q_head_stride: From one head to the next.
        k_row_stride: As for the queries.
        k_stride: As for the queries.
        k_head_stride: As for the queries.
        v_row_stride: As for the queries.
        v_stride: As for the queries.
        v_head_stride: As for the queries.
        heads: Heads.
        row_queries: Queries in a row.
        cell_queries: Queries in a cell.
        rows: Key rows.
        row_keys: Keys in a row.
        cell_keys: Keys in a cell.
        box: Side of the box, cells.
        scale: What scores are multiplied by; log2(e) is in it.
        queries: Queries of a block.
        keys: Keys of a step.
        dim: Width of a head.
    """
    first = tl.program_id(0) // heads * queries
    head = tl.program_id(0) % heads
    row = tl.program_id(1).to(tl.int64)
    at = first + tl.arange(0, queries)
    real = at < row_queries
    dims = tl.arange(0, dim)
    q_line = q_at + row * q_row_stride + head * q_head_stride
    q = tl.load(q_line + at[:, None] * q_stride + dims[None, :], mask=real[:, None], other=0.0)

    starts = tl.load(col_starts_at + at // cell_queries, mask=real, other=0) * cell_keys
    ends = starts + box * cell_keys
    last = tl.minimum(first + queries, row_queries) - 1
    run_start = tl.load(col_starts_at + first // cell_queries) * cell_keys
    run = (tl.load(col_starts_at + last // cell_queries) + box) * cell_keys - run_start
    first_row = tl.load(row_starts_at + row)

    top = tl.full([queries], float("-inf"), tl.float32)
    total = tl.zeros([queries], tl.float32)
    mixed = tl.zeros([queries, dim], tl.float32)
    for step in range(0, box * run, keys):
        place = step + tl.arange(0, keys)
        key_row = first_row + place // run
        key = run_start + place % run
        # The bounds of the grid are checked too: a box that leaves it must not read foreign memory.
        there = (place < box * run) & (key_row >= 0) & (key_row < rows) & (key >= 0) & (key < row_keys)
        key_row = key_row.to(tl.int64)  # a domain may hold more than 2^31 numbers
        if visible_at is not None:
            there = there & (tl.load(visible_at + key_row * row_keys + key, mask=there, other=0) != 0)
        k_from = k_at + head * k_head_stride + key_row * k_row_stride + key * k_stride
        k = tl.load(k_from[:, None] + dims[None, :], mask=there[:, None], other=0.0)
        # "ieee" keeps float32 at full precision; products of 16-bit numbers are exact in float32 anyway.
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale  # (queries, keys)
        allowed = there[None, :] & (key[None, :] >= starts[:, None]) & (key[None, :] < ends[:, None])
        scores = tl.where(allowed, scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        base = tl.where(new_top == float("-inf"), 0.0, new_top)  # nothing seen yet: exp2(-inf - 0) = 0, not NaN
        weights = tl.exp2(scores - base[:, None])
        shrink = tl.exp2(top - base)
        total = total * shrink + tl.sum(weights, 1)
        v_from = v_at + head * v_head_stride + key_row * v_row_stride + key * v_stride
        v = tl.load(v_from[:, None] + dims[None, :], mask=there[:, None], other=0.0)  # 0: hidden NaNs stay hidden
        mixed = tl.dot(weights.to(v.dtype), v, mixed * shrink[:, None], input_precision="ieee")
        top = new_top

    mixed = mixed / tl.where(total > 0, total, 1.0)[:, None]
    out_line = out_at + (row * row_queries * heads + head) * dim
    to = out_line + at[:, None] * (heads * dim) + dims[None, :]
    tl.store(to, mixed.to(out_at.dtype.element_ty), mask=real[:, None])
