"""Boxes of cells in the own kernel: right for every shape, nothing from outside of a box, inside compiled graphs.

As in ``test_attention``, the kernel is run in three builds, so that the logic of wide vectors is tested where registers
are short.
"""

from __future__ import annotations

import functools
import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from pipeline.encode import kernel, native
from pipeline.errors import InvalidInputError

pytestmark = pytest.mark.skipif(not native.has_compiler(), reason="there is no C++ compiler")

BUILDS = {"native": (), "8 lanes": ("-DEARTHPRESS_LANES=8",), "16 lanes": ("-DEARTHPRESS_LANES=16",)}
DTYPES = (torch.float32, torch.bfloat16)
LIMIT = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@functools.cache
def built(build):
    return kernel.Kernel(native.load(kernel.SOURCE, flags=BUILDS[build]))


@pytest.fixture(params=BUILDS)
def own(request):
    return built(request.param)


def starts(count, cells, box, first=0):
    """The reference's rule: half a box before the cell, shifted inward at both ends."""
    return (torch.arange(first, first + count) - box // 2).clip(0, cells - box).int()


def case(*, rows=9, cols=13, cell=3, heads=2, dim=16, box=4, dtype=torch.float32, seed=0):
    """Arguments of ``boxes`` for a grid whose queries are its own cells, without a mask."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (1.5 * torch.randn(rows, cols, 3, cell, heads, dim, generator=generator)).to(dtype).unbind(2)
    return {
        "q": q,
        "k": k,
        "v": v,
        "row_starts": starts(rows, rows, box),
        "col_starts": starts(cols, cols, box),
        "box": box,
        "visible": None,
    }


def mask_of(args, share, seed=0):
    return torch.rand(args["k"].shape[:3], generator=torch.Generator().manual_seed(seed)) < share


def seen_of(args):
    """(query row, query col, key row, key col, key k): what each query may see."""
    row, col = (
        (torch.arange(cells) >= first[:, None]) & (torch.arange(cells) < first[:, None] + args["box"])
        for first, cells in zip((args["row_starts"], args["col_starts"]), args["k"].shape, strict=False)
    )
    seen = row[:, None, :, None, None] & col[None, :, None, :, None]
    visible = torch.ones(args["k"].shape[:3], dtype=torch.bool) if args["visible"] is None else args["visible"]
    return seen & visible


def exact(args):
    """The definition, dense and in float64."""
    scores = torch.einsum("rcnhd,stmhd->hrcnstm", args["q"].double(), args["k"].double())
    scores = scores / math.sqrt(args["q"].shape[-1])
    scores = scores.masked_fill(~seen_of(args)[:, :, None], -math.inf)
    weights = scores.flatten(-3).softmax(-1).nan_to_num(0.0)  # without any key: 0
    return torch.einsum("hrcnk,khd->rcnhd", weights, args["v"].double().flatten(0, 2)).flatten(3)


def error(out, truth):
    return float((out.double() - truth).norm() / truth.norm())


# ---- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("box", "rows", "cols"), [(2, 3, 5), (4, 9, 13), (5, 6, 8), (8, 11, 27), (16, 17, 21)], ids=str
)
def test_every_query_sees_its_box(own, box, rows, cols, dtype):
    for cell, dim in ((1, 16), (1, 64), (3, 32), *(((12, 128),) if box <= 4 else ())):
        args = case(rows=rows, cols=cols, cell=cell, dim=dim, box=box, dtype=dtype)
        for share in (None, 0.5):
            args["visible"] = None if share is None else mask_of(args, share)
            assert error(own.boxes(**args), exact(args)) < LIMIT[dtype], (cell, dim, share)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("queries", "keys"), [(1, 12), (4, 3), (16, 5), (64, 2), (5, 7), (1, 150)])
def test_queries_may_be_more_or_fewer_than_the_tokens_of_a_cell(own, queries, keys, dtype):
    args = case(rows=6, cols=7, cell=max(queries, keys), heads=1, box=4, dtype=dtype)
    args |= {"q": args["q"][:, :, :queries], "k": args["k"][:, :, :keys], "v": args["v"][:, :, :keys]}
    args["visible"] = mask_of(args, 0.7)
    assert error(own.boxes(**args), exact(args)) < LIMIT[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "cols"), [(slice(3, 9), slice(2, 21)), (slice(14, 15), slice(0, 30)), (slice(2), 7)])
def test_queries_may_be_some_of_the_cells(own, rows, cols, dtype):
    args = case(rows=15, cols=30, box=6, dtype=dtype)
    cols = slice(cols, cols + 1) if isinstance(cols, int) else cols
    args |= {
        "q": args["q"][rows, cols],
        "row_starts": args["row_starts"][rows],
        "col_starts": args["col_starts"][cols],
        "visible": mask_of(args, 0.8),
    }
    assert error(own.boxes(**args), exact(args)) < LIMIT[dtype]


def test_boxes_may_lie_anywhere_as_long_as_they_do_not_go_back(own):
    args = case(rows=20, cols=40, cell=2, box=3)
    args |= {
        "q": args["q"][:6, :11],
        "row_starts": torch.tensor([1, 1, 4, 4, 11, 17]).int(),
        "col_starts": torch.tensor([2, 2, 2, 5, 9, 9, 20, 21, 33, 37, 37]).int(),
    }
    assert error(own.boxes(**args), exact(args)) < LIMIT[torch.float32]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_box_as_wide_as_the_grid_is_a_window(own, dtype):
    qkv = torch.randn(1, 64 * 3, 3, 2, 32, generator=torch.Generator().manual_seed(1)).to(dtype)
    q, k, v = qkv[0].unflatten(0, (8, 8, 3)).unbind(3)
    zeros = torch.zeros(8, dtype=torch.int32)
    out = own.boxes(q, k, v, zeros, zeros, 8, None).flatten(0, 2)
    truth = own.attend(qkv.float(), None, None, None)[0]
    assert error(out, truth) < LIMIT[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [1e2, 1e10, 1e18])
def test_large_scores_pick_the_largest_without_overflow(own, dtype, size):
    generator = torch.Generator().manual_seed(3)
    keys = size * torch.nn.functional.normalize(torch.randn(7, 30, 1, 1, 64, generator=generator), dim=-1)
    v = torch.randn(7, 30, 1, 1, 64, generator=generator)
    q, k, v = (x.to(dtype) for x in (keys, keys, v))  # every token finds itself
    out = own.boxes(q, k, v, starts(7, 7, 4), starts(30, 30, 4), 4, None)
    torch.testing.assert_close(out, v[..., 0, :], atol=1e-3, rtol=1e-2)


# ---- what does not count ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cell", [1, 3, 4])
def test_hidden_keys_count_for_nothing_whatever_they_hold(own, cell, dtype):
    args = case(rows=12, cols=30, cell=cell, box=6, dtype=dtype)
    args["visible"] = mask_of(args, 0.5)
    before = own.boxes(**args)
    assert not before.isnan().any()
    for name in ("k", "v"):
        args[name] = args[name].clone()
        args[name][~args["visible"]] = math.nan
    assert torch.equal(own.boxes(**args), before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cell", [1, 3])
def test_queries_without_visible_keys_give_zeros_and_others_do_not(own, cell, dtype):
    args = case(rows=12, cols=40, cell=cell, box=4, dtype=dtype)
    args["visible"] = torch.ones(args["k"].shape[:3], dtype=torch.bool)
    args["visible"][2:9, 5:19] = False
    args["visible"][:, 33:] = False
    blind = ~seen_of(args).flatten(2).any(-1)
    out = own.boxes(**args)
    assert 20 < int(blind.sum()) < blind.numel()
    assert not out[blind].any()
    assert out[~blind].ne(0).any(-1).all()
    assert error(out, exact(args)) < LIMIT[dtype]


def test_nothing_visible_gives_zeros(own):
    args = case()
    args["visible"] = mask_of(args, 0.0)
    assert not own.boxes(**args).any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("cell", "box"), [(1, 4), (1, 16), (3, 4), (5, 8), (12, 4)])
def test_no_byte_depends_on_what_lies_outside_of_the_box(own, cell, box, dtype):
    args = case(rows=box + 5, cols=2 * box + 9, cell=cell, box=box, dtype=dtype)
    args["visible"] = mask_of(args, 0.6)
    other = args | {name: x.clone() for name, x in args.items() if name in {"k", "v", "visible"}}
    row, col = 3, box + 4
    outside = ~seen_of(args | {"visible": None})[row, col]
    other["k"][outside] = 5 * torch.randn_like(other["k"][outside])
    other["v"][outside] = 100 * torch.randn_like(other["v"][outside])
    other["visible"][outside] = mask_of(args, 0.8, seed=7)[outside]  # more and other keys, before and after
    before, after = own.boxes(**args), own.boxes(**other)
    assert torch.equal(after[row, col], before[row, col])
    assert not torch.equal(after, before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("cell", "box"), [(1, 8), (3, 4), (7, 5)])
def test_no_byte_depends_on_how_far_the_keys_go_on(own, cell, box, dtype):
    args = case(rows=14, cols=33, cell=cell, box=box, dtype=dtype)
    args["visible"] = mask_of(args, 0.7)
    inner = {"row_starts": args["row_starts"][5:12], "col_starts": args["col_starts"][9:30]}
    whole = own.boxes(**args | inner | {"q": args["q"][5:12, 9:30]})
    rows, cols = (slice(int(first[0]), int(first[-1]) + box) for first in inner.values())
    cut = {name: args[name][rows, cols] for name in ("k", "v", "visible")}
    offsets = {name: (first - first[0]).int() for name, first in inner.items()}
    assert torch.equal(own.boxes(**args | cut | offsets | {"q": args["q"][5:12, 9:30]}), whole)


def test_a_mask_that_hides_nothing_changes_no_byte(own):
    for dtype in DTYPES:
        args = case(dtype=dtype)
        assert torch.equal(own.boxes(**args | {"visible": mask_of(args, 1.1)}), own.boxes(**args))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["k", "v"])
def test_a_nan_in_a_visible_key_reaches_all_who_see_it_and_none_far_away(own, name, dtype):
    args = case(rows=30, cols=30, dtype=dtype)
    broken = args[name].clone()
    broken[4, 6, 1] = math.nan
    out = own.boxes(**args | {name: broken}).isnan().any(-1).all(-1)
    assert out[seen_of(args)[:, :, 4, 6, 1]].all()
    assert not out[16:].any()
    assert not out[:, 26:].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layout_of_the_input_does_not_matter(own, dtype):
    qkv = torch.randn(11, 19, 4, 3, 2, 32, generator=torch.Generator().manual_seed(2)).to(dtype)
    every = mask_of({"k": qkv}, 0.7)
    rest = (starts(6, 7, 4), starts(13, 14, 4), 4)
    crop = (slice(2, 9), slice(3, 17))
    views = [x[crop] for x in qkv.unbind(3)]  # the kernel reads these in place
    views[0] = views[0][:6, :13]
    want = own.boxes(*(x.contiguous() for x in views), *rest, every[crop].contiguous())
    assert torch.equal(own.boxes(*views, *rest, every[crop]), want)
    odd = [x.transpose(0, 4).contiguous().transpose(0, 4) for x in views]  # these it cannot
    assert torch.equal(own.boxes(*odd, *rest, every[crop]), want)
    shared = views[1][:, :, :1].expand(-1, -1, 4, -1, -1)
    assert torch.equal(
        own.boxes(views[0], shared, views[2], *rest, None),
        own.boxes(views[0], shared.contiguous(), views[2], *rest, None),
    )


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"row_starts": torch.zeros(9).int() + 6}, "must lie inside the 9 x 13 cells"),
        ({"col_starts": torch.arange(13).int()}, "must lie inside the 9 x 13 cells"),
        ({"row_starts": torch.arange(9).flip(0).int()}, "must not fall"),
        ({"row_starts": -torch.ones(9).int()}, "must lie inside"),
        ({"row_starts": torch.zeros(9)}, r"row_starts is \(9,\) float32, must be \(9,\) int32"),
        ({"col_starts": torch.zeros(9).int()}, r"col_starts is \(9,\) int32, must be \(13,\) int32"),
        ({"box": 0}, "boxes of 0 cells"),
        ({"box": 10}, "must lie inside"),
        ({"visible": torch.ones(9, 13, dtype=torch.bool)}, r"visible is \(9, 13\) bool, must be \(9, 13, 3\) bool"),
        ({"q": torch.ones(9, 13, 3, 2, 24)}, "multiples of 16 up to 128"),
        ({"k": torch.ones(9, 13, 3, 2, 16).bfloat16()}, "not torch.float32 over torch.bfloat16"),
        ({"k": torch.ones(9, 13, 2, 2, 16)}, "do not fit keys"),
        ({"q": torch.ones(9, 13, 3, 1, 16)}, "do not fit keys"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    with pytest.raises(InvalidInputError, match=message):
        built("native").boxes(**case() | change)


def test_no_queries_give_nothing():
    args = case()
    args |= {"q": args["q"][:0], "row_starts": args["row_starts"][:0]}
    assert built("native").boxes(**args).shape == (0, 13, 3, 32)


# ---- torch -----------------------------------------------------------------------------------------------------------


class Layer(torch.nn.Module):
    def forward(self, qkv, row_starts, col_starts, visible):
        q, k, v = (2 * qkv).unbind(3)
        return torch.ops.earthpress.boxes(q, k, v, row_starts, col_starts, 4, visible) + 1


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_it_stays_inside_a_compiled_graph(backend):
    assert kernel.use_own()
    qkv = torch.randn(6, 9, 2, 3, 2, 16, generator=torch.Generator().manual_seed(4)).bfloat16()
    args = (qkv, starts(6, 6, 4), starts(9, 9, 4), mask_of({"k": qkv}, 0.7))
    compiled = torch.compile(Layer(), fullgraph=True, dynamic=False, backend=backend)
    with torch.inference_mode():
        torch.testing.assert_close(compiled(*args), Layer()(*args), atol=2e-2, rtol=2e-2)


def test_threads_share_the_kernel_and_not_its_memory():
    own = built("native")
    cases = [case(rows=6 + i, cols=9 + 4 * i, cell=1 + i % 3, box=2 + i, seed=i) for i in range(5)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda args: own.boxes(**args), cases * 4))
    for args, out in zip(cases * 4, together, strict=True):
        assert torch.equal(out, own.boxes(**args))


def test_the_check_at_load_covers_boxes(monkeypatch):
    own = kernel.Kernel(native.load(kernel.SOURCE))
    assert own.error(torch.float32) < 1e-5
    right = own.boxes
    monkeypatch.setattr(own, "boxes", lambda *args: right(*args) * (1 + 1e-3))
    assert own.error(torch.float32) > 5e-4
    monkeypatch.setattr(own, "boxes", lambda *args: right(*args) * math.nan)
    assert math.isnan(own.error(torch.float32))
