"""Encoder processes: the bytes of a plain session, whoever computes them; and what happens when one of them dies."""

from __future__ import annotations

import dataclasses
import gc
import os
import signal
import subprocess
import sys
import textwrap
import time
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from stacks import make_stack, periods

from pipeline import errors
from pipeline.account.meter import cpu_seconds
from pipeline.config import EncodeSettings
from pipeline.encode import assemble, checkpoint, session
from pipeline.encode.attention import named, use_own
from pipeline.encode.child import portable
from pipeline.encode.gate import FLOAT32_LIMIT
from pipeline.encode.workers import AHEAD, Workers, batched, bytes_per_worker, guided, kinds, wanted
from pipeline.errors import ConfigError, DataError, InvalidInputError, StoppedError, TransientError
from pipeline.types import Box, GridSpec, Layer, Numerics, Stack

ROOT = Path(__file__).resolve().parents[2]
MODEL = "random:v1.2-toy:0"
GRID = GridSpec(patch_px=8, window_px=32, overlap_px=16, tile_px=256)
BOX = Box(zone=32, res_m=10, row=-320, col=640, height=80, width=112)
ORIGINS = [(row, col) for row in (-320, -304, -288, -272) for col in range(640, 721, 16)]
HOLES = (
    (0, Box(zone=32, res_m=10, row=-320, col=640, height=24, width=30)),
    (1, Box(zone=32, res_m=10, row=-300, col=700, height=60, width=52)),
)
ENDED_S = 10.0
"""How long a process may take to end on a busy machine; a forward pass of the slow windows takes longer."""


@pytest.fixture(scope="module")
def model():
    return checkpoint.load(MODEL)


@pytest.fixture(scope="module")
def stack():
    return make_stack(BOX, count=2, holes=HOLES)


def numerics(*, batch: int = 3) -> Numerics:
    settings = EncodeSettings(device="cpu", dtype="float32", batch_windows=batch, compile="off", attention="sdpa")
    return session.settle(settings, card=checkpoint.describe(MODEL), grid=GRID, periods=2)


def shape(**changes) -> dict:
    return {"grid": GRID, "periods": periods(2), "numerics": numerics()} | changes


class Shares:
    """What a pool asks for the size of its next piece; tests say what it answers and what it does then."""

    def __init__(self):
        self.answer = guided
        self.asked = 0

    def __call__(self, left, workers):
        self.asked += 1
        return self.answer(left, workers)


@pytest.fixture(scope="module")
def shares():
    return Shares()


@pytest.fixture(scope="module")
def everyones(model, shares):
    with Workers(model, processes=2, share=shares, **shape()) as workers:
        workers.warm_up()
        yield workers


@pytest.fixture
def workers(everyones, shares):
    shares.answer, shares.asked = guided, 0
    return everyones


@pytest.fixture(scope="module")
def plain(model, stack):
    return session.Session(model, threads=1, **shape()).encode(stack, ORIGINS)


def same(got, want, some=None) -> bool:
    where = range(len(want.valid)) if some is None else some
    return (
        got.values.numpy().tobytes() == want.values[list(where)].numpy().tobytes()
        and got.valid.tobytes() == want.valid[list(where)].tobytes()
    )


def gone(pids, *, within_s: float = ENDED_S) -> bool:
    stop = time.monotonic() + within_s
    while time.monotonic() < stop:
        alive = [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"]
        if not alive:
            return True
        time.sleep(0.02)
    return False


def open_files() -> int:
    return sum(1 for _ in Path("/dev/fd").iterdir())


# --- bytes ------------------------------------------------------------------------------------------------------------


def test_bytes_are_those_of_a_plain_session(workers, stack, plain):
    assert same(workers.encode(stack, ORIGINS), plain)
    assert workers.field_dims == plain.values.shape[-1]


@pytest.mark.parametrize("seed", range(4))
def test_bytes_do_not_depend_on_the_pieces_or_on_which_windows_are_asked_for(workers, stack, plain, shares, seed):
    rng = np.random.default_rng(seed)
    shares.answer = lambda _left, _workers: int(rng.integers(1, 5))
    some = rng.permutation(len(ORIGINS))[: rng.integers(12, len(ORIGINS))]
    assert same(workers.encode(stack, [ORIGINS[i] for i in some]), plain, some)
    assert shares.asked > 1


@pytest.mark.parametrize("processes", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_bytes_do_not_depend_on_the_number_of_processes_or_the_sensors(processes):
    """Location tokens of v1.3 from two sensors, one window per batch, interpolated patches."""
    model = checkpoint.load("random:v1.3-toy:0")
    spec = dataclasses.replace(GRID, patch_px=4, window_px=16, overlap_px=8)
    given = shape(grid=spec, numerics=numerics(batch=1), sensors=("sentinel2_l2a", "sentinel1"))
    stacks = (make_stack(BOX, count=2, holes=HOLES), radar())
    inside = [(row, col) for row, col in ORIGINS if row > BOX.row and col > BOX.col]  # patches read 4 px around
    want = session.Session(model, threads=1, **given).encode(stacks, inside)
    with Workers(model, processes=processes, **given) as workers:
        assert same(workers.encode(stacks, inside), want)
        head = session.Session(model, threads=1, **given).head(want.values)
        assert torch.equal(workers.head(want.values), head)
        assert head.shape[-1] == model.card.dims != workers.field_dims


def radar() -> Stack:
    rng = np.random.default_rng(0)
    pixels = rng.normal(-12, 3, (2, 2, *BOX.shape)).astype(np.float32)
    pixels[0, :, 20:50, 60:] = np.nan
    layer = Layer(res_m=10, bands=("vv", "vh"), pixels=pixels, valid=~np.isnan(pixels).any(axis=1), box=BOX)
    return Stack(sensor="sentinel1", box=BOX, layers=(layer,), periods=periods(2), sources=(), bytes_read=0)


def test_windows_without_data_are_zero_and_not_valid(workers):
    fields = workers.encode(make_stack(BOX, count=2, holes=((0, BOX), (1, BOX))), ORIGINS)
    assert not fields.valid.any()
    assert not fields.values.any()


def test_no_windows_are_no_fields(workers, stack):
    fields = workers.encode(stack, [])
    assert fields.values.shape == (0, 4, 4, workers.field_dims)
    assert fields.valid.shape == (0, 4, 4)


def test_a_result_outlives_the_next_tile(workers, stack, plain):
    first = workers.encode(stack, ORIGINS)
    workers.encode(make_stack(BOX, count=2), ORIGINS)
    assert same(first, plain)


def test_tiles_that_were_staged_are_the_ones_that_are_encoded(workers, stack, plain):
    other = make_stack(BOX, count=2)
    workers.stage(stack)
    workers.stage(other)
    assert same(workers.encode(stack, ORIGINS), plain)
    assert not same(workers.encode(other, ORIGINS), plain)
    assert same(workers.encode(stack, ORIGINS), plain)  # which is not staged any more


def test_tiles_that_are_staged_and_not_asked_for_are_forgotten(workers, stack):
    before = open_files()
    for _ in range(5):
        workers.stage(make_stack(BOX, count=2))
    assert open_files() <= before + 2 * AHEAD  # a descriptor and a mapping each


def test_the_gate_passes_in_a_process(workers):
    assert workers.gate().ratio < FLOAT32_LIMIT


@pytest.mark.skipif(not use_own(), reason="no C++ compiler here: the own attention kernel cannot be built")
def test_processes_with_the_own_kernel_give_the_bytes_of_a_plain_session(model, stack):
    given = shape(numerics=dataclasses.replace(numerics(), attention=named("own")))
    want = session.Session(model, threads=1, **given).encode(stack, ORIGINS)
    with Workers(model, processes=2, **given) as workers:
        assert same(workers.encode(stack, ORIGINS), want)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sdpa", "own"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")
def test_compiled_processes_give_the_bytes_of_a_compiled_session(model, stack, kind):
    given = shape(numerics=dataclasses.replace(numerics(), compiled=True, attention=named(kind)))
    want = session.Session(model, threads=1, **given).encode(stack, ORIGINS)
    with Workers(model, processes=2, **given) as workers:
        assert workers.warm_up() > 0
        assert same(workers.encode(stack, ORIGINS), want)


# --- pieces -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 3, 5])
def test_batches_are_those_of_a_plain_session(model, stack, size):
    work = session.Session(model, threads=1, **shape(numerics=numerics(batch=size)))
    valid = np.zeros((len(ORIGINS), 4, 4), bool)
    batches = work._batches(
        assemble.Resident((stack,)), ORIGINS, valid, lambda pixels: partial(tuple, work._embedded(pixels))
    )
    theirs = [batch.indices for batch in batches]
    ours = [tuple(i for i, _, _ in batch) for batch in batched(kinds((stack,), ORIGINS, grid=GRID), size)]
    assert ours == theirs


def test_empty_windows_come_with_others_and_every_window_comes_once():
    gone = Box(zone=32, res_m=10, row=-320, col=640, height=48, width=48)
    stack = make_stack(BOX, count=2, holes=((0, gone), (1, gone)))
    found = [i for batch in batched(kinds((stack,), ORIGINS, grid=GRID), 4) for i, _, _ in batch]
    assert sorted(found) == list(range(len(ORIGINS)))


@pytest.mark.parametrize("workers", [1, 2, 7, 64])
def test_pieces_start_large_and_end_with_single_batches(workers):
    left, pieces = 1000, []
    while left:
        pieces.append(guided(left, workers))
        left -= pieces[-1]
    assert pieces == sorted(pieces, reverse=True)
    assert pieces[0] * workers <= 500
    assert pieces[-1] == 1
    assert len(pieces) < 12 * workers + 12  # what a piece costs beside its batches stays small


@pytest.mark.parametrize(
    ("asked", "device", "workers", "core_s", "want"),
    [
        ("auto", "cpu", 8, 1000.0, True),
        ("auto", "cpu", 8, 100.0, False),
        ("auto", "cpu", 2, 1000.0, False),
        ("auto", "cpu", 1, 1000.0, False),
        ("auto", "cuda", 8, 1000.0, False),
        ("processes", "cpu", 1, 0.0, True),
        ("processes", "cuda", 4, 1000.0, False),
        ("threads", "cpu", 4, 1000.0, False),
    ],
)
def test_processes_are_chosen_for_runs_of_minutes_on_many_cores(asked, device, workers, core_s, want):
    assert wanted(asked, device=device, workers=workers, core_s=core_s) is want


# --- failures ---------------------------------------------------------------------------------------------------------


def test_a_process_killed_at_work_fails_the_tile_and_is_replaced_for_the_next(workers, stack, plain, shares):
    def kill(_left, _workers):
        if shares.asked == 1:
            os.kill(workers.pids[0], signal.SIGKILL)
        return 1

    shares.answer = kill
    before = workers.pids
    with pytest.raises(TransientError, match=r"SIGKILL \(out of memory\? It takes 200 MB.*run.encoder_threads"):
        workers.encode(stack, ORIGINS)
    assert same(workers.encode(stack, ORIGINS), plain)
    assert workers.pids[0] != before[0]
    assert workers.pids[1] == before[1]


def test_a_process_that_ended_while_idle_costs_no_tile(workers, stack, plain):
    os.kill(workers.pids[1], signal.SIGKILL)
    os.waitid(os.P_PID, workers.pids[1], os.WEXITED | os.WNOWAIT)
    assert same(workers.encode(stack, ORIGINS), plain)


def test_a_process_says_what_made_it_end(workers, stack, shares):
    def abort(_left, _workers):
        if shares.asked == 1:
            os.kill(workers.pids[0], signal.SIGABRT)
        return 1

    shares.answer = abort
    with pytest.raises(TransientError, match="SIGABRT") as caught:
        workers.encode(stack, ORIGINS)
    assert "out of memory" not in str(caught.value)


def test_an_error_in_a_process_arrives_as_ours_and_the_next_tile_succeeds(workers, stack, plain):
    with pytest.raises(InvalidInputError, match="the session encodes sentinel2_l2a at 2 periods"):
        workers.encode(make_stack(BOX, count=3), ORIGINS)
    assert same(workers.encode(stack, ORIGINS), plain)


def test_a_window_outside_the_stack_is_refused(workers, stack):
    with pytest.raises(InvalidInputError):
        workers.encode(stack, [(-320, 736)])


def test_a_tile_that_was_interrupted_does_not_reach_into_the_next(workers, stack, plain, shares):
    def stop(left, workers):
        if shares.asked == 2:  # one piece is in work
            raise StoppedError("SIGTERM")
        return guided(left, workers)

    shares.answer = stop
    with pytest.raises(StoppedError):
        workers.encode(make_stack(BOX, count=2), ORIGINS)
    assert same(workers.encode(stack, ORIGINS), plain)


def test_signals_are_left_to_the_parent(workers, stack, plain):
    before = workers.pids
    for pid in before:
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)
    assert same(workers.encode(stack, ORIGINS), plain)
    assert workers.pids == before


@pytest.mark.parametrize("kind", [v for v in vars(errors).values() if isinstance(v, type)], ids=lambda k: k.__name__)
def test_errors_of_ours_stay_what_they_are(kind):
    error = kind("tile 7: wrong")
    assert portable(error) is error


class ForeignError(errors.DataError):
    """One that loses its message when it is pickled."""

    def __init__(self, tile: int, *, band: str) -> None:
        super().__init__(f"tile {tile}, band {band}")


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyError("B02"), ForeignError(7, band="B02")])
def test_other_errors_become_data_errors_with_their_trace(error):
    try:
        raise error
    except type(error) as raised:
        found = portable(raised)
    assert type(found) is DataError
    assert str(error) in str(found)
    assert type(error).__name__ in str(found)
    assert "test_workers.py" in found.__notes__[0]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_running_out_of_memory_may_be_tried_again(error):
    assert isinstance(portable(error), TransientError)
    assert "encoder_threads" in str(portable(error))


def test_a_gpu_is_refused(model):
    with pytest.raises(ConfigError, match="run.encoders=threads"):
        Workers(model, processes=2, **shape(numerics=dataclasses.replace(numerics(), device="cuda")))


# --- beginning and end ------------------------------------------------------------------------------------------------

SCRIPT = """
    import sys
    sys.path[:0] = [{root!r}, {here!r}]
    from stacks import make_stack, periods
    from test_workers import BOX, GRID, ORIGINS, numerics
    from pipeline.encode import checkpoint
    from pipeline.encode.workers import Workers

    model = checkpoint.load("random:v1.2-toy:0")
    workers = Workers(model, grid=GRID, periods=periods(2), numerics=numerics(), processes=1)
    workers.encode(make_stack(BOX, count=2), ORIGINS)
    print(*workers.pids, flush=True)
    while True:
        workers.encode(make_stack(BOX, count=2), ORIGINS * 20)
"""


def test_processes_end_with_a_killed_parent_and_need_no_guarded_main_module(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT.format(root=str(ROOT), here=str(Path(__file__).parent))), encoding="utf-8")
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as parent:
        pids = [int(text) for text in parent.stdout.readline().split()]
        assert len(pids) == 1
        parent.kill()
    assert gone(pids)


def test_closing_in_the_middle_of_a_piece_takes_moments_and_leaves_nothing(model, stack):
    files, before = open_files(), signal.signal(signal.SIGALRM, stop)
    try:
        workers = Workers(model, processes=1, share=lambda left, _workers: left, **shape())
        workers.warm_up()
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        with pytest.raises(StoppedError):
            workers.encode(stack, ORIGINS * 1000)  # one piece, which takes minutes
    finally:
        signal.signal(signal.SIGALRM, before)
    pids, begin = workers.pids, time.monotonic()
    workers.close()
    assert time.monotonic() - begin < 3
    assert gone(pids, within_s=0.1)
    gc.collect()  # the error's traceback holds the tile
    assert open_files() <= files
    with pytest.raises(InvalidInputError, match="closed"):
        workers.encode(stack, ORIGINS)


def stop(_number, _frame):
    raise StoppedError("SIGALRM")


def test_files_do_not_pile_up_from_tile_to_tile(workers, stack):
    workers.encode(stack, ORIGINS)
    before = open_files()
    theirs = [psutil.Process(pid).num_fds() for pid in workers.pids]
    for _ in range(5):
        workers.encode(stack, ORIGINS)
    assert open_files() == before
    time.sleep(0.2)  # what they let go of is not answered
    assert [psutil.Process(pid).num_fds() for pid in workers.pids] == pytest.approx(theirs, abs=4)


def test_busy_time_is_core_seconds_of_the_processes(workers, stack):
    first, begin = workers.busy_s, time.perf_counter()
    workers.encode(stack, ORIGINS)
    assert 0 < workers.busy_s - first < len(workers.pids) * (time.perf_counter() - begin)


def test_core_seconds_of_a_process_count_once_before_and_after_its_end(model, stack):
    with Workers(model, processes=1, **shape()) as workers:
        workers.encode(stack, ORIGINS)
        child = psutil.Process(workers.pids[0]).cpu_times()
        used = child.user + child.system
        before = cpu_seconds()
    assert used > 0.5  # importing torch
    assert cpu_seconds() - before < used / 2


def test_only_compiled_processes_are_estimated_with_weights_of_their_own():
    small, large = checkpoint.describe(MODEL), checkpoint.describe("random:v1.2-nano:0")
    assert bytes_per_worker(small) == bytes_per_worker(large)
    extra = bytes_per_worker(large, compiled=True) - bytes_per_worker(small, compiled=True)
    assert extra == 4 * (large.parameters - small.parameters)


def test_private_memory_stays_within_the_estimate(workers, stack, model):
    workers.encode(stack, ORIGINS)
    assert max(psutil.Process(pid).memory_full_info().uss for pid in workers.pids) < bytes_per_worker(model.card)
