from __future__ import annotations

import itertools
import subprocess
import sys
import threading
import time

import pytest

from pipeline.account.meter import (
    PeakMemory,
    StageClock,
    cpu_seconds,
    lifetime_peak_bytes,
    process_age_s,
    resident_bytes,
)
from pipeline.errors import InvalidInputError


def test_stages_add_up_by_name():
    clock = StageClock(monotonic=itertools.count(0.0, 1.0).__next__)
    for name in ("read", "encode", "read"):
        with clock.stage(name):
            pass
    assert clock.seconds() == (("encode", 1.0), ("read", 2.0))


def test_a_stage_that_raises_is_counted():
    clock = StageClock(monotonic=itertools.count(0.0, 1.0).__next__)
    with pytest.raises(KeyError), clock.stage("read"):
        raise KeyError
    assert clock.seconds() == (("read", 1.0),)


def test_threads_lose_no_time():
    clock = StageClock()
    threads = [threading.Thread(target=lambda: [clock.add("x", 1.0) for _ in range(2000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert clock.seconds() == (("x", 8000.0),)


def test_peak_is_the_highest_sample_and_restarts_per_tile():
    values = iter([10, 50, 20, 15, 15, 15, 15])
    memory = PeakMemory(resident=lambda: next(values))
    memory.sample()
    memory.sample()
    assert memory.restart() == 50
    assert memory.peak_bytes() == 20


def test_the_thread_sees_a_peak_between_two_looks():
    level = [10]
    with PeakMemory(interval_s=0.001, resident=lambda: level[0]) as memory:
        level[0] = 99
        deadline = time.monotonic() + 5
        while memory._peak < 99 and time.monotonic() < deadline:
            time.sleep(0.001)
        level[0] = 10
    assert memory.peak_bytes() == 99


def test_a_large_array_shows_in_resident_memory():
    before = resident_bytes()
    block = bytearray(b"x") * 50_000_000
    assert resident_bytes() - before > 40_000_000
    assert lifetime_peak_bytes() > len(block)


def test_children_count_in_memory_and_cpu():
    code = (
        "import time\nx = bytearray(b'x') * 60_000_000\n"
        "while time.process_time() < 0.3: pass\nprint(1, flush=True)\ninput()\n"
    )
    cpu_s, held = cpu_seconds(), resident_bytes()
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        assert resident_bytes() - held > 50_000_000
        assert cpu_seconds() - cpu_s > 0.25
        child.communicate(b"\n")
    assert cpu_seconds() - cpu_s > 0.25


def test_cpu_seconds_grow_with_work():
    start = cpu_seconds()
    until = time.process_time() + 0.05
    while time.process_time() < until:
        pass
    assert cpu_seconds() - start >= 0.04


def test_process_age_is_positive_and_grows():
    first = process_age_s()
    time.sleep(0.02)
    assert process_age_s() > first > 0


@pytest.mark.parametrize("interval_s", [0.0, -1.0])
def test_an_interval_that_is_not_positive_is_refused(interval_s):
    with pytest.raises(InvalidInputError, match="interval"):
        PeakMemory(interval_s=interval_s)
