"""The attention back ends: right, independent of batch mates, never a crash; the own kernel compiled once and checked.

Most tests run the kernel in three builds: as this machine gets it, and with 8 and 16 lanes, so that the logic of wide
vectors is tested where registers are short. The instructions of AVX512-BF16 are compiled and read, not run.
"""

from __future__ import annotations

import functools
import math
import os
import platform
import re
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from pipeline.encode import attention, kernel, native
from pipeline.errors import DeviceError, InvalidInputError

needs_compiler = pytest.mark.skipif(not native.has_compiler(), reason="there is no C++ compiler")
BUILDS = {"native": (), "8 lanes": ("-DEARTHPRESS_LANES=8",), "16 lanes": ("-DEARTHPRESS_LANES=16",)}
DTYPES = (torch.float32, torch.bfloat16)
AVX512 = ("-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mavx512bf16", "-mfma")


@functools.cache
def built(build):
    return kernel.Kernel(native.load(kernel.SOURCE, flags=BUILDS[build]))


@pytest.fixture(params=BUILDS)
def own(request):
    if not native.has_compiler():
        pytest.skip("there is no C++ compiler")
    return built(request.param)


def case(*, windows=2, tokens=33, heads=2, dim=16, dtype=torch.float32, seed=0):
    """qkv, cos, sin and a mask that keeps about 60 % of the keys, at least one per window."""
    generator = torch.Generator().manual_seed(seed)
    qkv = (1.5 * torch.randn(windows, tokens, 3, heads, dim, generator=generator)).to(dtype)
    angles = 3 * torch.randn(tokens, heads, dim // 2, generator=generator)
    visible = torch.rand(windows, tokens, generator=generator) < 0.6
    visible[:, 0] = True
    return qkv, angles.cos(), angles.sin(), visible


def exact(qkv, cos, sin, visible):
    """The definition, in float64 with complex numbers."""
    q, k, v = qkv.double().unbind(2)  # (window, token, head, head_dim) each
    if cos is not None:
        half = q.shape[-1] // 2
        turns = torch.complex(cos.double(), sin.double())
        q, k = (torch.complex(x[..., :half], x[..., half:]) * turns for x in (q, k))
        scores = torch.einsum("bnhd,bmhd->bhnm", q, k.conj()).real
    else:
        scores = torch.einsum("bnhd,bmhd->bhnm", q, k)
    scores = scores / math.sqrt(qkv.shape[-1])
    if visible is not None:
        scores = scores.masked_fill(~visible[:, None, None, :], -math.inf)
    return torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), v).flatten(2)


def error(out, truth):
    return float((out.double() - truth).norm() / truth.norm())


# ---- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("rotary", [False, True], ids=["plain", "rotary"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_error_is_like_that_of_torchs_attention(own, dtype, rotary, masked):
    share, extra = (
        (1.1, 0.0) if dtype == torch.bfloat16 else (1.3, 1.5e-7)
    )  # float32: the order of sums, of 1e-7 to 1e-6
    for dim in (16, 32, 48, 64, 128):
        for tokens in (1, 7, 16, 33, 256, *((1000,) if dim in {16, 64} else ())):
            qkv, cos, sin, visible = case(tokens=tokens, dim=dim, dtype=dtype, windows=1, seed=tokens + dim)
            args = (qkv, *((cos, sin) if rotary else (None, None)), visible if masked else None)
            truth = exact(*args)
            ours, theirs = error(own.attend(*args), truth), error(attention.attend("sdpa", *args), truth)
            assert ours <= share * theirs + extra, (dim, tokens, ours, theirs)


def test_weights_keep_their_relative_precision_until_they_vanish(own):
    gap = torch.linspace(0, 50, 2000)
    qkv = torch.zeros(2000, 2, 3, 1, 16)
    qkv[:, :, 0, 0, 0] = 4.0  # the root of the width
    qkv[:, 1, 1, 0, 0] = -gap
    qkv[:, 1, 2] = 1.0
    weight = own.attend(qkv, None, None, None)[:, 0, 0].double()
    truth = torch.sigmoid(-gap.double())
    seen = gap < 64 * math.log(2) - 0.01
    assert float((weight / truth - 1)[seen].abs().max()) < 5e-7
    assert not weight[gap > 64 * math.log(2) + 0.01].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_masked_keys_count_for_nothing_whatever_they_hold(own, dtype):
    qkv, cos, sin, visible = case(tokens=150, dtype=dtype)
    other = qkv.clone()
    other[:, :, 1:][~visible] = math.nan
    torch.testing.assert_close(own.attend(other, cos, sin, visible), own.attend(qkv, cos, sin, visible), atol=0, rtol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_mask_that_hides_nothing_changes_no_byte(own, dtype):
    qkv, cos, sin, visible = case(tokens=130, dtype=dtype)
    every = torch.ones_like(visible)
    assert torch.equal(own.attend(qkv, cos, sin, every), own.attend(qkv, cos, sin, None))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_single_visible_key_gives_its_value(own, dtype):
    qkv, cos, sin, visible = case(tokens=20, dtype=dtype)
    only = torch.zeros_like(visible)
    only[:, 13] = True
    out = own.attend(qkv, cos, sin, only)
    assert torch.equal(out, qkv[:, 13:14, 2].flatten(2).expand_as(out))


def test_a_window_without_visible_keys_gives_zeros_and_disturbs_no_other(own):
    qkv, cos, sin, visible = case(windows=3)
    blind = visible.clone()
    blind[1] = False
    out = own.attend(qkv, cos, sin, blind)
    assert not out[1].any()
    assert torch.equal(out[[0, 2]], own.attend(qkv, cos, sin, visible)[[0, 2]])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bytes_of_a_window_depend_on_neither_place_nor_batch_mates(own, dtype):
    qkv, cos, sin, visible = case(windows=4, tokens=77, dim=64, dtype=dtype)
    whole = own.attend(qkv, cos, sin, visible)
    order = [2, 0, 3, 1]
    assert torch.equal(own.attend(qkv[order], cos, sin, visible[order]), whole[order])
    for i in range(4):
        alone = slice(i, i + 1)
        assert torch.equal(own.attend(qkv[alone], cos, sin, visible[alone]), whole[alone])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [1e2, 1e10, 1e18])
def test_large_scores_pick_the_largest_without_overflow(own, dtype, size):
    generator = torch.Generator().manual_seed(3)
    keys = torch.nn.functional.normalize(torch.randn(300, 64, generator=generator), dim=-1)
    v = torch.randn(300, 64, generator=generator)
    qkv = torch.stack((size * keys, size * keys, v), dim=1)[None, :, :, None].to(dtype)  # every token finds itself
    out = own.attend(qkv, None, None, None)
    torch.testing.assert_close(out[0], qkv[0, :, 2, 0], atol=1e-3, rtol=1e-2)


def test_not_a_number_stays_in_its_window(own):
    qkv, cos, sin, _ = case(windows=3)
    broken = qkv.clone()
    broken[1, 5] = math.nan
    out = own.attend(broken, cos, sin, None)
    assert out[1].isnan().all()
    assert torch.equal(out[[0, 2]], own.attend(qkv, cos, sin, None)[[0, 2]])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cross_attention_of_a_windows_own_tokens_is_attention(own, dtype):
    qkv, cos, sin, visible = case(tokens=50, dtype=dtype)
    some = torch.tensor([3, 4, 17, 40])
    q, kv = qkv[:, some, 0], qkv[:, :, 1:]
    out = own.cross(q, kv, cos[some], sin[some], cos, sin, visible)
    assert torch.equal(out, own.attend(qkv, cos, sin, visible)[:, some])


def test_queries_of_one_window_serve_all(own):
    qkv, cos, sin, visible = case(windows=3)
    kv, q = qkv[:, :, 1:], qkv[:1, :9, 0]
    shared = own.cross(q, kv, None, None, cos, sin, visible)
    assert torch.equal(shared, own.cross(q.repeat(3, 1, 1, 1), kv, None, None, cos, sin, visible))


# ---- back ends -------------------------------------------------------------------------------------------------------


@needs_compiler
@pytest.mark.parametrize("kind", ["sdpa", "math"])
def test_back_ends_agree(kind):
    qkv, cos, sin, visible = case(dim=64)
    ours = attention.attend("own", qkv, cos, sin, visible)
    torch.testing.assert_close(attention.attend(kind, qkv, cos, sin, visible), ours, atol=5e-6, rtol=0)
    turns = (cos, sin)
    some = {"q_turns": (cos[:7], sin[:7]), "k_turns": turns, "visible": visible}
    pooled = attention.cross("own", qkv[:1, :7, 0], qkv[:, :, 1:], **some)
    torch.testing.assert_close(attention.cross(kind, qkv[:1, :7, 0], qkv[:, :, 1:], **some), pooled, atol=5e-6, rtol=0)


def test_flex_attention_is_refused_on_cpus():
    assert "flex" not in attention.available("cpu", torch.float32, 64)
    with pytest.raises(DeviceError, match="reads past its inputs"):
        attention.attend("flex", *case(dim=64, tokens=64))


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("part", [0, 1, 2])
def test_a_nan_anywhere_reaches_the_result(dtype, part):
    qkv, cos, sin, _ = case(dim=16, tokens=200)
    qkv = qkv.to(dtype)
    qkv[0, 150, part] = float("nan")
    broken = attention.attend("own", qkv, cos, sin, None).isnan().any(dim=-1)
    assert bool(broken[0].all()) if part else bool(broken[0, 150])
    assert not broken[1:].any()


def test_kernels_are_compared_on_one_thread_as_runs_use_them(monkeypatch):
    seen = []

    def watched(*given):
        seen.append(torch.get_num_threads())
        return given[1]

    monkeypatch.setattr(attention, "attend", watched)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        attention.choose("cpu", torch.float32, heads=2, head_dim=16, tokens=8, windows=1, seconds=0)
        assert set(seen) == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_free_memory_does_not_decide_which_kernel_is_chosen():
    def full(_kind):
        raise torch.OutOfMemoryError("CUDA out of memory")

    def unfit(_kind):
        raise RuntimeError("No available kernel")

    with pytest.raises(DeviceError, match="smaller encode.batch_windows"):
        attention._runs("flash", full)
    assert not attention._runs("flash", unfit)


def test_an_unknown_back_end_is_refused_with_the_known_ones():
    with pytest.raises(InvalidInputError, match="'fast', must be one of own, sdpa"):
        attention.attend("fast", *case())


@needs_compiler
@pytest.mark.parametrize(
    ("dim", "change", "message"),
    [
        (24, {}, "multiples of 16 up to 128"),
        (144, {}, "multiples of 16 up to 128"),
        (16, {"visible": torch.ones(2, 32, dtype=torch.bool)}, r"visible is \(2, 32\) bool, must be \(2, 33\) bool"),
        (16, {"visible": torch.ones(2, 33)}, r"must be \(2, 33\) bool"),
        (16, {"cos": torch.ones(33, 1, 8)}, r"must be \(33, 2, 8\) float32"),
        (16, {"sin": None}, "come together"),
    ],
)
def test_the_own_kernel_refuses_what_it_cannot_read(dim, change, message):
    qkv, cos, sin, visible = case(dim=dim)
    args = {"qkv": qkv, "cos": cos, "sin": sin, "visible": visible} | change
    with pytest.raises(InvalidInputError, match=message):
        attention.attend("own", **args)


@needs_compiler
def test_layout_of_the_input_does_not_matter():
    qkv, cos, sin, visible = case()
    strided = qkv.transpose(1, 3).contiguous().transpose(1, 3)
    assert torch.equal(
        attention.attend("own", strided, cos, sin, visible), attention.attend("own", qkv, cos, sin, visible)
    )


@needs_compiler
def test_choose_returns_the_fastest_and_what_it_measured():
    kind, table = attention.choose("cpu", torch.float32, heads=2, head_dim=16, tokens=64, windows=2, seconds=0.02)
    times = dict(table)
    assert tuple(times) == ("own", "sdpa")
    assert times[kind] <= attention.MARGIN * min(times.values())
    assert min(times.values()) > 0


@pytest.mark.parametrize(("first_s", "chosen"), [(1.04, "own"), (1.06, "sdpa"), (0.5, "own")])
def test_the_preferred_back_end_stays_unless_clearly_slower(first_s, chosen):
    assert attention.fastest((("own", first_s), ("sdpa", 1.0), ("flex", 2.0))) == chosen


def test_other_head_widths_are_left_to_torch():
    assert attention.available("cpu", torch.float32, 24)[0] == "sdpa"
    assert attention.available("cpu", torch.float16, 16)[0] == "sdpa"


# ---- torch -----------------------------------------------------------------------------------------------------------


class Layer(torch.nn.Module):
    def forward(self, qkv, cos, sin, visible):
        both = attention.attend("own", qkv * 2, cos, sin, visible) + 1
        return both + attention.cross("own", qkv[:1, :, 0], qkv[:, :, 1:], k_turns=(cos, sin), visible=visible)


@needs_compiler
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_it_stays_inside_a_compiled_graph(backend):
    assert attention.use_own()
    args = case(dtype=torch.bfloat16)
    compiled = torch.compile(Layer(), fullgraph=True, dynamic=False, backend=backend)
    with torch.inference_mode():
        torch.testing.assert_close(compiled(*args), Layer()(*args), atol=2e-2, rtol=2e-2)


@needs_compiler
def test_threads_share_the_kernel_and_not_its_memory():
    cases = [case(tokens=20 + 30 * i, seed=i) for i in range(8)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda args: attention.attend("own", *args), cases * 4))
    for args, out in zip(cases * 4, together, strict=True):
        assert torch.equal(out, attention.attend("own", *args))


# ---- compiling -------------------------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path):
    file = tmp_path / "small.cpp"
    file.write_text('extern "C" int answer() { return 42; }\n')
    return file


CHILD = (
    "import sys, pathlib; from pipeline.encode import native; print(native.load(pathlib.Path(sys.argv[1])).answer())"
)


def environment(tmp_path, **changes):
    return {**os.environ, "EARTHPRESS_CACHE": str(tmp_path / "cache"), **changes}


def spy(tmp_path):
    """A compiler that notes what it compiles."""
    script, notes = tmp_path / "spy", tmp_path / "notes"
    real = shlex.join(native.find_compiler(os.environ))
    script.write_text(f'#!/bin/sh\ncase "$*" in *" -o "*) echo "$*" >> {notes};; esac\nexec {real} "$@"\n')
    script.chmod(0o755)
    notes.write_text("")
    return script, notes


@needs_compiler
def test_what_was_compiled_once_is_loaded_from_the_cache(tmp_path, source):
    script, notes = spy(tmp_path)
    env = environment(tmp_path, CXX=str(script))
    for _ in range(2):
        assert native.load(source, environment=env).answer() == 42
    assert len(notes.read_text().splitlines()) == 1
    assert [file.suffix for file in (tmp_path / "cache").iterdir()] == [".so"]


@needs_compiler
def test_another_source_or_flag_is_another_library(tmp_path, source):
    env = environment(tmp_path)
    native.load(source, environment=env)
    native.load(source, flags=("-DX=1",), environment=env)
    source.write_text('extern "C" int answer() { return 43; }\n')
    assert native.load(source, environment=env).answer() == 43
    assert len(list((tmp_path / "cache").iterdir())) == 3


@needs_compiler
def test_a_broken_library_is_compiled_again(tmp_path, source):
    env = environment(tmp_path)
    subprocess.run([sys.executable, "-c", CHILD, source], check=True, env=env)
    (library,) = (tmp_path / "cache").iterdir()
    library.write_bytes(b"not a library")
    assert native.load(source, environment=env).answer() == 42


@needs_compiler
@pytest.mark.parametrize("writable", ["folder", "file"])
def test_code_that_others_could_have_planted_is_not_loaded(tmp_path, source, caplog, writable):
    cache = tmp_path / "cache"
    env = environment(tmp_path, EARTHPRESS_CACHE=str(cache))
    native.load(source, environment=env)
    (library,) = cache.glob("*.so")
    library.unlink()  # not overwritten: it is mapped into this process
    library.write_bytes(b"planted")
    (cache if writable == "folder" else library).chmod(0o777)
    assert native.load(source, environment=env).answer() == 42
    assert "others may write to it" in caplog.text
    assert library.read_bytes() == b"planted"


@needs_compiler
def test_a_cache_that_cannot_be_written_only_costs_time(tmp_path, source, caplog):
    (tmp_path / "file").write_text("")
    env = environment(tmp_path, EARTHPRESS_CACHE=str(tmp_path / "file" / "cache"))
    assert native.load(source, environment=env).answer() == 42
    assert "compiled code cannot be kept" in caplog.text


@needs_compiler
def test_processes_may_compile_at_once(tmp_path, source):
    command, env = [sys.executable, "-c", CHILD, source], environment(tmp_path)
    runs = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE) for _ in range(3)]
    assert [run.communicate()[0].strip() for run in runs] == [b"42"] * 3
    assert [file.suffix for file in (tmp_path / "cache").iterdir()] == [".so"]


def test_without_a_compiler_the_reason_is_named(tmp_path, source):
    with pytest.raises(
        DeviceError, match=r"no C\+\+ compiler: CXX is 'nothing -x' and none of c\+\+, g\+\+, clang\+\+"
    ):
        native.load(source, environment=environment(tmp_path, CXX="nothing -x", PATH=str(tmp_path)))


@needs_compiler
def test_the_compilers_complaint_is_passed_on(tmp_path, source):
    source.write_text("nonsense here;\n")
    with pytest.raises(DeviceError, match=r"cannot compile small.cpp: .*error.*nonsense"):
        native.load(source, environment=environment(tmp_path))


def test_without_a_compiler_torchs_attention_is_left():
    code = """
import torch
from pipeline.encode import attention
from pipeline.errors import DeviceError
print(attention.available("cpu", torch.float32, 16), attention.available("cpu", torch.bfloat16, 64))
try:
    attention.attend("own", torch.zeros(1, 2, 3, 1, 16), None, None, None)
except DeviceError as err:
    print(err)
"""
    env = {name: value for name, value in os.environ.items() if name not in {"CXX", "PATH"}}
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=env)
    assert run.stdout.startswith("('sdpa', 'math') ('sdpa', 'math')\nthe own attention kernel is not available")
    assert run.stderr.count("no C++ compiler") == 1


@needs_compiler
def test_a_kernel_that_computes_something_else_is_not_used(tmp_path, monkeypatch, caplog):
    wrong = tmp_path / "wrong.cpp"
    wrong.write_text(kernel.SOURCE.read_text().replace("1.0f / __builtin_sqrtf", "1.1f / __builtin_sqrtf"))
    monkeypatch.setenv("EARTHPRESS_CACHE", str(tmp_path / "cache"))
    assert not kernel._Own(wrong).ready()
    assert "errs by" in caplog.text


# ---- AVX512-BF16, compiled only --------------------------------------------------------------------------------------


def assembly():
    """The kernel's assembly for AVX512-BF16, or None where the compiler cannot make it."""
    flags = [flag for flag in native.FLAGS if flag != "-shared"]
    command = [*native.find_compiler(os.environ), *flags, *AVX512, "-S", "-o", "-", str(kernel.SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout if done.returncode == 0 else None


def innermost_loops(text):
    """Lines between a label and a jump back to it, without a label in between."""
    label, body = None, []
    for line in text.splitlines():
        if found := re.match(r"(\.L\w+):", line):
            label, body = found[1], []
        elif (jump := re.match(r"\s+j\w+\s+(\.L\w+)", line)) and jump[1] == label:
            yield tuple(body)
        else:
            body.append(line)


@needs_compiler
@pytest.mark.skipif(platform.machine() not in {"x86_64", "AMD64"}, reason="not an x86-64 machine")
def test_for_avx512_bf16_the_tiles_are_one_instruction_per_product_and_stay_in_registers():
    text = assembly()
    if text is None:
        pytest.skip("the compiler has no -mavx512bf16")
    tiles = [loop for loop in innermost_loops(text) if sum("vdpbf16ps" in line for line in loop) == 16]
    assert len(tiles) >= 2, "scores and values of 8 x 2 vectors"
    for tile in tiles:
        assert not [line for line in tile if "%rsp" in line or "%rbp" in line]
        assert sum("zmm" in line for line in tile) <= 16 + 8 + 2  # products, broadcasts, loads


def test_the_source_is_part_of_the_package():
    assert Path(attention.__file__).with_name("attention.cpp") == kernel.SOURCE
    assert kernel.SOURCE.is_file()
