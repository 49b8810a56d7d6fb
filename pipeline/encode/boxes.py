"""Attention of every cell over the box of cells around it, by several kernels behind one call.

Queries and keys lie on grids of cells with a few tokens each. Every query attends to the tokens of ``box`` x ``box``
cells; where that box begins is an argument, one number per query row and one per query column, so that the caller
decides what happens at the edge of a grid and may ask for some of the queries only.

``sdpa`` gathers: a square block of query cells shares the square of keys that all their boxes lie in, a mask leaves out
what lies beyond a query's own box, and torch's attention takes many blocks at once. ``own`` is the kernel for CPUs (see
``pipeline.encode.kernel``), ``triton`` the one for CUDA; both read the boxes in place.

Kernels round differently, so the one used is part of a store's numerics class, and nothing here depends on free memory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows

from pipeline.encode import kernel, triton_boxes
from pipeline.encode.attention import quickest
from pipeline.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterator

KINDS = ("own", "triton", "sdpa")
GATHER_BYTES = 64 << 20
"""What the gathered queries, keys, values and masks of one call of torch's attention may take; at least one block."""
BLOCKS = ((2, 4, 8, 8), (7, 2, 4, 4), (23, 1, 2, 2))
"""(tokens of a cell up to this; side of blocks for boxes up to so many cells; side for larger boxes)."""
PROBE_BLOCKS = 8
"""Blocks along an axis of the grid with which kernels are compared."""


def box_starts(count: int, n: int, box: int, first: int = 0) -> torch.Tensor:
    """First cell of the box of each of ``count`` cells from ``first`` on, along an axis of ``n`` cells.

    The box leans to lower indices by half a cell if it is even, and is shifted inward, not cut, at both ends:
    ``clip(i - box // 2, 0, n - box)``, the rule of the reference's Searchlight mode.

    >>> box_starts(6, 6, 4).tolist()
    [0, 0, 0, 1, 2, 2]

    Returns:
        (count,) int32.

    Raises:
        InvalidInputError: The box is empty or larger than the axis, or the cells are not all on it.
    """
    if not 0 < box <= n or first < 0 or first + count > n:
        raise InvalidInputError(f"boxes of {box} cells around cells {first} to {first + count} of {n} are impossible")
    return (torch.arange(first, first + count) - box // 2).clamp(0, n - box).int()


def attend_boxes(
    kind: str,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    row_starts: torch.Tensor,
    col_starts: torch.Tensor,
    box: int,
    visible: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of every query over the visible tokens of its box of keys.

    Args:
        kind: One of ``KINDS``.
        q: (query row, query col, query, head, head_dim), float32 or bfloat16, rotated already.
        k: (key row, key col, key, head, head_dim), rotated already.
        v: As ``k``.
        row_starts: (query row,) int32: first key row of each query's box; from one to the next it grows by 0 or 1.
        col_starts: (query col,) int32: the same of columns.
        box: Rows and columns of a box.
        visible: (key row, key col, key) bool, False for keys that nobody attends to; None: all are visible.

    Returns:
        (query row, query col, query, head * head_dim) in the dtype of ``q``; zeros for a query without any visible key.

    Raises:
        InvalidInputError: Unknown kind; boxes that are not on the grid of keys, or too far apart (``sdpa``).
        DeviceError: The kernel is not to be had on this machine.
    """
    if kind == "own":
        kernel.demand_own()
        own: torch.Tensor = torch.ops.earthpress.boxes(q, k, v, row_starts, col_starts, box, visible)
        return own
    if kind == "triton":
        return triton_boxes.attend(q, k, v, row_starts, col_starts, box, visible)
    if kind != "sdpa":
        raise InvalidInputError(f"kernel of boxes is {kind!r}, must be one of {', '.join(KINDS)}")
    return _gathered(q, k, v, row_starts=row_starts, col_starts=col_starts, box=box, visible=visible)


def available_boxes(device: torch.device | str, dtype: torch.dtype, head_dim: int) -> tuple[str, ...]:
    """Kernels that a device should run, the preferred one first; ours only if this process could make it."""
    if torch.device(device).type == "cpu":
        own = ("own",) if kernel.fits(dtype, head_dim) and kernel.use_own() else ()
        return (*own, "sdpa")
    triton = ("triton",) if triton_boxes.fits(dtype, head_dim) and triton_boxes.available() else ()
    return (*triton, "sdpa")


def choose_boxes(
    device: torch.device | str,
    dtype: torch.dtype,
    *,
    heads: int,
    head_dim: int,
    box: int,
    per_cell: int,
    masked: bool = False,
    seconds: float = 0.2,
) -> tuple[str, tuple[tuple[str, float], ...]]:
    """Measure the kernels that are available on a small grid of cells; as ``attention.choose``.

    Args:
        device: Where.
        dtype: float32 or bfloat16.
        heads: Heads.
        head_dim: Width of a head.
        box: Rows and columns of a box.
        per_cell: Tokens of a cell.
        masked: Keep a quarter of the keys out.
        seconds: Time for measuring; warming up and compiling come on top.

    Returns:
        The fastest, and (kind, median seconds per call) of each that ran, in order of preference. The first of them is
        chosen unless another is ``attention.MARGIN`` times faster.

    Raises:
        DeviceError: None ran, or out of memory.
    """
    generator = torch.Generator().manual_seed(0)
    side = box + PROBE_BLOCKS * block_side(box, per_cell)
    shape = (3, side, side, per_cell, heads, head_dim)
    q, k, v = torch.randn(shape, generator=generator).to(device, dtype).unbind(0)
    visible = (torch.rand(shape[1:4], generator=generator) < 0.75).to(device) if masked else None
    starts = box_starts(side, side, box).to(device)

    def attended(kind: str) -> torch.Tensor:
        return attend_boxes(kind, q, k, v, row_starts=starts, col_starts=starts, box=box, visible=visible)

    place = f"boxes on {device} in {dtype} with head width {head_dim}"
    return quickest(available_boxes(device, dtype, head_dim), attended, place=place, seconds=seconds)


def block_side(box: int, per_cell: int) -> int:
    """Cells along a block of queries that shares its keys, from a table.

    Larger blocks copy fewer keys and compute more scores for nothing. Measured on one thread of a CPU (head widths 16
    and 64, float32 and bfloat16, boxes of 2 to 16 cells, 1, 4 and 12 tokens per cell). Free memory must not decide: the
    order of sums follows from it.

    >>> block_side(16, 1), block_side(4, 1), block_side(4, 4), block_side(4, 12)
    (8, 4, 2, 2)
    """
    for tokens, small, cells, large in BLOCKS:
        if per_cell <= tokens:
            return small if box <= cells else large
    return 1


# ---- gathered blocks -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """Equal blocks in a row along one axis: they share a mask.

    Attributes:
        first: First query.
        blocks: Blocks.
        key: First key of the first block; every block's keys begin ``len(offsets)`` behind the last one's.
        keys: Keys of a block.
        offsets: Where each query's box begins among a block's keys.
    """

    first: int
    blocks: int
    key: int
    keys: int
    offsets: tuple[int, ...]

    @property
    def side(self) -> int:
        """Queries of a block."""
        return len(self.offsets)

    def queries(self) -> slice:
        """All queries of the run."""
        return slice(self.first, self.first + self.blocks * self.side)

    def squares(self, grid: torch.Tensor, axis: int) -> torch.Tensor:
        """The keys of every block along one axis of a grid: that axis becomes the blocks, the keys come last."""
        count = (self.blocks - 1) * self.side + self.keys
        return grid.narrow(axis, self.key, count).unfold(axis, self.keys, self.side)

    def inside(self, box: int, device: torch.device) -> torch.Tensor | None:
        """(query of a block, key of a block) bool: what lies in the query's box; None if everything does."""
        if self.keys == box:
            return None
        begin = torch.tensor(self.offsets, device=device)[:, None]
        key = torch.arange(self.keys, device=device)
        return (key >= begin) & (key < begin + box)

    def split(self, blocks: int) -> Iterator[_Run]:
        """Shorter runs of at most so many blocks."""
        for done in range(0, self.blocks, blocks):
            ahead = done * self.side
            count = min(blocks, self.blocks - done)
            yield replace(self, first=self.first + ahead, key=self.key + ahead, blocks=count)


def _runs(starts: list[int], *, side: int, box: int, keys: int) -> list[_Run]:
    """Cut one axis into blocks of at most ``side`` queries and put equal neighbours together."""
    found: list[_Run] = []
    for first in range(0, len(starts), side):
        part = starts[first : first + side]
        reach = min(len(part) + box - 1, keys)
        key = min(part[0], keys - reach)
        offsets = tuple(start - key for start in part)
        if min(offsets) < 0 or max(offsets) + box > reach:
            raise InvalidInputError(
                f"boxes of {box} cells that begin at {part} do not lie side by side on an axis of {keys} cells"
            )
        last = found[-1] if found else None
        if last is not None and last.offsets == offsets and key == last.key + last.blocks * len(part):
            found[-1] = replace(last, blocks=last.blocks + 1)
        else:
            found.append(_Run(first=first, blocks=1, key=key, keys=reach, offsets=offsets))
    return found


def _gathered(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    row_starts: torch.Tensor,
    col_starts: torch.Tensor,
    box: int,
    visible: torch.Tensor | None,
) -> torch.Tensor:
    """``attend_boxes`` by torch's attention, a bounded number of blocks at a time."""
    out = q.new_empty(*q.shape[:3], q.shape[3] * q.shape[4])
    side = block_side(box, k.shape[2])
    down, across = (
        _runs(starts.tolist(), side=side, box=box, keys=keys)
        for starts, keys in ((row_starts, k.shape[0]), (col_starts, k.shape[1]))
    )
    for rows in down:
        for cols in across:
            most = max(1, GATHER_BYTES // _block_bytes(q, k, rows, cols, masked=visible is not None))
            for upper in rows.split(max(1, most // cols.blocks)):
                for left in cols.split(most):
                    found = _attend_blocks(q, k, v, rows=upper, cols=left, box=box, visible=visible)
                    out[upper.queries(), left.queries()] = found
    return out


def _block_bytes(q: torch.Tensor, k: torch.Tensor, rows: _Run, cols: _Run, *, masked: bool) -> int:
    """What one block takes gathered: queries and results, keys and values, its mask in bool and as numbers."""
    asks, answers = rows.side * cols.side * q.shape[2], rows.keys * cols.keys * k.shape[2]
    vectors = 2 * (asks + answers) * q.shape[3] * q.shape[4] * q.element_size()
    return vectors + (asks * answers * (1 + q.element_size()) if masked else 0)


def _attend_blocks(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, rows: _Run, cols: _Run, box: int, visible: torch.Tensor | None
) -> torch.Tensor:
    """Blocks of one run of rows and one of columns: (query row, query col, query, head * head_dim)."""
    slots, heads, dim = q.shape[2:]
    q = q[rows.queries(), cols.queries()]
    q = q.reshape(rows.blocks, rows.side, cols.blocks, cols.side, slots, heads, dim).permute(0, 2, 5, 1, 3, 4, 6)
    q = q.reshape(-1, heads, rows.side * cols.side * slots, dim)  # (block, head, query, head_dim)
    k, v = (_squares(part, rows, cols).flatten(0, 1).flatten(2, 4) for part in (k, v))  # (block, head, key, head_dim)
    inside = _inside(rows, cols, box=box, keys=k.shape[2], device=q.device)  # (cell, key) or None
    mask, blind = _mask(inside, None if visible is None else _seen(visible, rows, cols), slots=slots)
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    if blind is not None:
        mixed = mixed.masked_fill(blind, 0)
    mixed = mixed.view(rows.blocks, cols.blocks, heads, rows.side, cols.side, slots, dim).permute(0, 3, 1, 4, 5, 2, 6)
    return mixed.reshape(rows.blocks * rows.side, cols.blocks * cols.side, slots, heads * dim)


def _squares(grid: torch.Tensor, rows: _Run, cols: _Run) -> torch.Tensor:
    """(row, col, key, head, head_dim) to (row block, col block, head, key row, key col, key, head_dim)."""
    return cols.squares(rows.squares(grid, 0), 1).permute(0, 1, 3, 5, 6, 2, 4)


def _seen(visible: torch.Tensor, rows: _Run, cols: _Run) -> torch.Tensor:
    """(row, col, key) to (block, 1, 1, key of a block)."""
    squares = cols.squares(rows.squares(visible, 0), 1).permute(0, 1, 3, 4, 2)
    return squares.reshape(rows.blocks * cols.blocks, 1, 1, -1)


def _inside(rows: _Run, cols: _Run, *, box: int, keys: int, device: torch.device) -> torch.Tensor | None:
    """(query cell, key) bool of a block: keys in the cell's box; None if all are."""
    down, across = rows.inside(box, device), cols.inside(box, device)
    if down is None and across is None:
        return None
    down = torch.ones(rows.side, rows.keys, dtype=torch.bool, device=device) if down is None else down
    across = torch.ones(cols.side, cols.keys, dtype=torch.bool, device=device) if across is None else across
    cells = (down[:, None, :, None] & across[None, :, None, :]).flatten(0, 1).flatten(1)
    return cells.repeat_interleave(keys // cells.shape[1], dim=1)


def _mask(
    inside: torch.Tensor | None, seen: torch.Tensor | None, *, slots: int
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """(mask of scores, queries that see nothing), each broadcastable to (block, head, query, key) or None.

    A query that sees nothing looks at everything instead, so that it makes no NaN, and its result is dropped.
    """
    if seen is None:
        return None if inside is None else inside.repeat_interleave(slots, dim=0), None
    mask = seen if inside is None else inside & seen  # (block, 1, cell or 1, key)
    blind = ~mask.any(dim=-1, keepdim=True)
    mask = mask | blind
    if inside is not None:
        mask, blind = (part.repeat_interleave(slots, dim=2) for part in (mask, blind))
    return mask, blind
