"""The Triton kernel of box attention: in Triton's interpreter against dense float64, and compiled for GPUs, not run.

All cases go through one process with ``TRITON_INTERPRET=1``, which must be set before Triton is imported. The
interpreter keeps bfloat16 as bare 16-bit words and would multiply those, so its product is taught to read them.
"""

from __future__ import annotations

import importlib.util
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.encode import triton_boxes
from pipeline.errors import DeviceError, InvalidInputError

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
ROOT = Path(__file__).resolve().parents[2]
ROUNDING = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
SLICED, HIDDEN, BLIND = "slices of a fused projection", "hidden keys", "queries that see nothing"

INTERPRETER = """
import sys
import numpy as np
import torch
from pipeline.encode import triton_boxes
early = "pipeline.encode.triton_kernel" in sys.modules or "triton.language" in sys.modules
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle
import triton.language as tl

def wide(x):
    if x.dtype.scalar != tl.bfloat16:
        return x
    return TensorHandle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

dot = InterpreterBuilder.create_dot
InterpreterBuilder.create_dot = lambda self, a, b, *rest: dot(self, wide(a), wide(b), *rest)

cases = torch.load(sys.argv[1])
done = [triton_boxes.attend(*case) for case in cases]
whole = torch.compile(triton_boxes.attend, backend="aot_eager", fullgraph=True)(*cases[0])
found = {"early": early, "available": triton_boxes.available(), "done": done, "compiled": whole}
torch.save(found, sys.argv[2])
"""
COMPILER = """
import itertools, sys
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from pipeline.encode import triton_boxes, triton_kernel

names = triton_kernel.attend_boxes.arg_names
for arch, dtype, dim, cell in ((90, torch.bfloat16, 16, 12), (80, torch.float32, 64, 12)):
    cut = triton_boxes.blocks(dtype, dim, cell)
    sizes = {"queries": cut.queries, "keys": cut.keys, "dim": dim}
    number = {torch.bfloat16: "*bf16", torch.float32: "*fp32"}[dtype]
    types = {"visible_at": "*u8", "row_starts_at": "*i32", "col_starts_at": "*i32", "scale": "fp32"}
    types |= dict.fromkeys(("q_at", "k_at", "v_at", "out_at"), number) | dict.fromkeys(sizes, "constexpr")
    wide = [i for i, name in enumerate(names) if name.endswith("stride") or types.get(name) == number]
    source = ASTSource(
        triton_kernel.attend_boxes,
        {name: types.get(name, "i32") for name in names},
        {(names.index(name),): size for name, size in sizes.items()},
        {(i,): [["tt.divisibility", 16]] for i in wide},
    )
    options = {"num_warps": cut.warps, "num_stages": triton_boxes.STAGES, "enable_fp_fusion": True}
    made = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    print(arch, dtype, made.metadata.shared, "mma" in made.asm["ptx"], len(made.asm["cubin"]) > 0)
"""


def starts(count, keys, box, first=0):
    return (torch.arange(first, first + count) - box // 2).clamp(0, keys - box).int()


def case(*, box=4, cells=(1, 1), dim=16, dtype=torch.float32, grid=None, kept=None, heads=1, special=""):
    """Queries of ``kept`` = (first, count) rows and columns of a ``grid`` of keys, ``cells`` = (queries, keys) each."""
    rows, cols = grid or (box + 1, box + 3)
    (top, height), (left, width) = kept or ((0, rows), (0, cols))
    generator = torch.Generator().manual_seed(box * dim + cells[1])
    if special == SLICED:
        qkv = torch.randn(rows, cols, cells[1], 3, heads, dim, generator=generator).to(dtype)
        q, k, v = qkv.unbind(3)
        q = q[top : top + height, left : left + width]
    else:
        q = (2 * torch.randn(height, width, cells[0], heads, dim, generator=generator)).to(dtype)
        k, v = (2 * torch.randn(2, rows, cols, cells[1], heads, dim, generator=generator)).to(dtype).unbind(0)
    visible = None
    if special in {HIDDEN, BLIND}:
        visible = torch.rand(rows, cols, cells[1], generator=generator) < 0.6
        visible[: box + 1 if special == BLIND else 1] = False
        v = v.masked_fill(~visible[..., None, None], math.nan)
    return q, k, v, starts(height, rows, box, top), starts(width, cols, box, left), box, visible


def exact(q, k, v, row_starts, col_starts, box, visible):
    """The definition, in float64: one query cell at a time."""
    rows, cols, _cell, heads, dim = q.shape
    out = torch.zeros(*q.shape[:3], heads * dim, dtype=torch.float64)
    for row in range(rows):
        for col in range(cols):
            down = slice(row_starts[row], row_starts[row] + box)
            across = slice(col_starts[col], col_starts[col] + box)
            keys, values = (part[down, across].reshape(-1, heads, dim).double() for part in (k, v))
            if visible is not None:
                seen = visible[down, across].flatten()
                keys, values = keys[seen], values[seen]
            scores = torch.einsum("qhd,nhd->qhn", q[row, col].double(), keys) / dim**0.5
            out[row, col] = torch.einsum("qhn,nhd->qhd", scores.softmax(-1), values).flatten(1)
    return out


CASES = {
    **{f"box {box}": case(box=box) for box in (1, 2, 4)},
    "box 8": case(box=8, grid=(9, 12), kept=((3, 3), (0, 12))),
    "box 16": case(box=16, grid=(17, 20), kept=((8, 2), (0, 20))),
    "box as large as the grid": case(box=4, grid=(4, 4), cells=(3, 3)),
    **{f"{k} to a cell": case(cells=(k, k), kept=((1, 2), (0, 7))) for k in (3, 5)},
    "12 to a cell": case(cells=(12, 12), kept=((1, 2), (0, 7))),
    "few queries, many keys": case(cells=(1, 12), kept=((1, 2), (0, 7))),
    "many queries, few keys": case(cells=(12, 3), kept=((1, 2), (0, 7))),
    **{f"head width {dim}": case(dim=dim, cells=(3, 3), kept=((1, 2), (0, 7))) for dim in (32, 64, 128)},
    **{
        f"{dtype}, width {dim}": case(dtype=dtype, dim=dim, cells=(4, 4), kept=((1, 2), (0, 7)))
        for dtype in ROUNDING
        for dim in (16, 64)
    },
    "a row of several blocks": case(grid=(4, 41), kept=((0, 2), (0, 41))),
    "more keys than queries": case(grid=(9, 11), kept=((4, 2), (2, 7)), cells=(3, 3)),
    "one query": case(grid=(9, 11), kept=((4, 1), (5, 1))),
    SLICED: case(special=SLICED, cells=(3, 3), kept=((1, 3), (2, 4)), heads=3),
    HIDDEN: case(special=HIDDEN, cells=(2, 3), kept=((0, 2), (0, 7))),
    BLIND: case(special=BLIND, cells=(2, 3), grid=(8, 6), kept=((2, 4), (0, 6))),
}


def run(code, *args, folder, **environment):
    path = os.pathsep.join((str(ROOT), *filter(None, (os.environ.get("PYTHONPATH"),))))
    environment = {**os.environ, "PYTHONPATH": path, "TRITON_CACHE_DIR": str(folder / "triton"), **environment}
    done = subprocess.run([sys.executable, "-c", code, *args], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("interpreter")
    given, found = folder / "cases.pt", folder / "found.pt"
    torch.save(list(CASES.values()), given)
    run(INTERPRETER, str(given), str(found), folder=folder, TRITON_INTERPRET="1")
    return torch.load(found)


@needs_triton
@pytest.mark.parametrize("name", CASES)
def test_the_kernel_is_attention_over_boxes(interpreted, name):
    ours, theirs = interpreted["done"][list(CASES).index(name)], exact(*CASES[name])
    assert ours.dtype == CASES[name][0].dtype
    assert float((ours.double() - theirs).norm() / theirs.norm()) < ROUNDING[ours.dtype]


@needs_triton
def test_a_query_that_sees_nothing_gives_zeros(interpreted):
    ours = interpreted["done"][list(CASES).index(BLIND)]
    assert (ours[:2] == 0).all()
    assert (ours[-1] != 0).all()


@needs_triton
def test_a_compiled_graph_holds_the_same_operator(interpreted):
    assert torch.equal(interpreted["compiled"], interpreted["done"][0])


@needs_triton
def test_the_check_at_first_use_passes(interpreted):
    assert interpreted["available"]


@needs_triton
def test_the_kernel_compiles_for_gpus_to_tensor_cores_where_they_are_exact(tmp_path):
    lines = run(COMPILER, folder=tmp_path, TRITON_INTERPRET="0").splitlines()
    made = [line.split() for line in lines]
    assert [(arch, tensor_cores, binary) for arch, _dtype, _shared, tensor_cores, binary in made] == [
        ("90", "True", "True"),
        ("80", "False", "True"),
    ]
    assert all(int(shared) < 48 << 10 for _arch, _dtype, shared, *_rest in made)


@pytest.mark.parametrize("dtype", triton_boxes.BITS)
def test_every_block_is_a_tile_that_triton_takes(dtype):
    cuts = [triton_boxes.blocks(dtype, dim, cell) for dim in (16, 32, 64, 128) for cell in (1, 4, 12, 36)]
    assert {size & (size - 1) for cut in cuts for size in (cut.queries, cut.keys, cut.warps)} == {0}
    assert min(min(cut.queries, cut.keys) for cut in cuts) == 16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(3, 3, 1, 2, 24)}, "same heads"),
        ({name: torch.zeros(6, 6, 1, 2, 24) for name in "qkv"}, "width 24: use sdpa"),
        ({"k": torch.zeros(6, 6, 1, 2, 16, dtype=torch.float16)}, "must be the same"),
        ({"box": 7}, "a box of 7 cells does not fit a grid of 6 x 6"),
        ({"row_starts": torch.zeros(6, dtype=torch.int64)}, "row_starts is"),
        ({"visible": torch.ones(6, 6, dtype=torch.bool)}, "visible is"),
        ({"col_starts": torch.zeros(6, dtype=torch.int32, device="meta")}, "on cpu and meta"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    tokens = {name: torch.zeros(6, 6, 1, 2, 16) for name in "qkv"}
    fitting = {**tokens, "row_starts": starts(6, 6, 4), "col_starts": starts(6, 6, 4), "box": 4, "visible": None}
    with pytest.raises(InvalidInputError, match=message):
        triton_boxes.attend(**(fitting | change))


def test_a_machine_without_triton_is_told_what_to_use(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.setattr(triton_boxes, "_KERNEL", triton_boxes._Kernel())
    assert not triton_boxes.available()
    with pytest.raises(DeviceError, match="Triton cannot be imported.*use own or sdpa"):
        triton_boxes.attend(*case())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@needs_triton
def test_a_machine_without_a_gpu_is_told_what_to_use(monkeypatch):
    monkeypatch.setattr(triton_boxes, "_KERNEL", triton_boxes._Kernel())
    with pytest.raises(DeviceError, match="there is no GPU; use own or sdpa"):
        triton_boxes.attend(*case())


@needs_triton
def test_importing_the_module_does_not_import_triton(interpreted):
    assert not interpreted["early"]


@pytest.mark.gpu
@needs_triton
@pytest.mark.parametrize("name", CASES)
def test_a_gpu_computes_the_same(name):
    theirs = exact(*CASES[name])
    given = (part.cuda() if isinstance(part, torch.Tensor) else part for part in CASES[name])
    ours = triton_boxes.attend(*given).double().cpu()
    assert float((ours - theirs).norm() / theirs.norm()) < ROUNDING[CASES[name][0].dtype]
