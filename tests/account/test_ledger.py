from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime

import pytest

from pipeline.account import prices
from pipeline.account.fold import fold
from pipeline.account.ledger import (
    AttemptEnd,
    Clock,
    Heartbeat,
    HeartbeatThread,
    JsonlLedger,
    Lease,
    LeaseEnd,
    LeaseStart,
    MemoryLedger,
    Slot,
    read,
)
from pipeline.errors import InvalidInputError, OutputError
from pipeline.types import Usage

CPU = Lease(device="cpu", device_name="avx512", gpus=0, cores=2, slot_cores=2)


def one_run(ledger) -> None:
    ledger.lease_start(CPU)
    ledger.attempt_start("z31_r1_c2", 1, fingerprint="f0")
    ledger.slot("z31_r1_c2", 1, taken=True)
    ledger.slot("z31_r1_c2", 1, taken=False)
    usage = Usage(windows=3, busy_s=1.5, stage_s=(("encode", 1.0), ("read", 2.0)))
    ledger.attempt_end("z31_r1_c2", 1, fingerprint="f0", status="won", usage=usage)
    ledger.heartbeat()
    ledger.lease_end("finished", stage_s=(("load", 0.5),))


def test_what_is_written_is_what_is_read(tmp_path):
    with JsonlLedger(tmp_path, "run1", cpu_s=lambda: 7.0) as ledger:
        one_run(ledger)
    data = read(tmp_path)
    assert [e.event for e in data.events] == [
        "lease_start", "attempt_start", "slot", "slot", "attempt_end", "heartbeat", "lease_end"
    ]  # fmt: skip
    assert data.damaged_lines == 0
    start, *_, end, beat, stop = data.events
    assert isinstance(start, LeaseStart)
    assert start.held == CPU
    assert isinstance(end, AttemptEnd)
    assert end.usage.stage_s == (("encode", 1.0), ("read", 2.0))
    assert isinstance(beat, Heartbeat)
    assert beat.cpu_s == 7.0
    assert isinstance(stop, LeaseEnd)
    assert stop.stage_s == (("load", 0.5),)


def test_every_line_has_schema_utc_and_monotonic_time(tmp_path):
    clock = Clock(utc=lambda: datetime(2026, 1, 2, tzinfo=UTC), monotonic=lambda: 12.25)
    with JsonlLedger(tmp_path, "run1", clock=clock) as ledger:
        one_run(ledger)
        lines = [json.loads(line) for line in ledger.path.read_text().splitlines()]
    assert {(x["schema"], x["utc"], x["mono_s"]) for x in lines} == {(1, "2026-01-02T00:00:00Z", 12.25)}
    assert [x["seq"] for x in lines] == list(range(1, 8))


def test_price_row_travels_with_the_lease(tmp_path):
    row = prices.find("g5.xlarge")
    with JsonlLedger(tmp_path, "run1") as ledger:
        ledger.lease_start(Lease(device="cuda", device_name="A10G", gpus=1, cores=4, instance="g5.xlarge", price=row))
    (start,) = read(tmp_path).events
    assert isinstance(start, LeaseStart)
    assert start.held.price == row


def test_a_cut_last_line_costs_only_that_line(tmp_path):
    with JsonlLedger(tmp_path, "run1") as ledger:
        one_run(ledger)
    os.truncate(ledger.path, ledger.path.stat().st_size - 30)
    data = read(tmp_path)
    assert len(data.events) == 6
    assert data.damaged_lines == 1


def test_a_new_process_after_a_cut_line_begins_on_a_new_one(tmp_path):
    with JsonlLedger(tmp_path, "run1") as ledger:
        one_run(ledger)
    os.truncate(ledger.path, ledger.path.stat().st_size - 30)
    with JsonlLedger(tmp_path, "run1") as again:  # same host and process id, as in a restarted container
        one_run(again)
    data = read(tmp_path)
    assert len(data.events) == 13
    assert data.damaged_lines == 1
    assert len({e.lease for e in data.events}) == 2


def test_lines_of_a_newer_schema_are_counted_not_guessed(tmp_path):
    with JsonlLedger(tmp_path, "run1") as ledger:
        ledger.heartbeat()
        with ledger.path.open("a") as file:
            file.write('{"schema":2,"event":"teleport"}\nnot json\n')
    data = read(tmp_path)
    assert (len(data.events), data.damaged_lines) == (1, 2)


def test_threads_do_not_mix_their_lines(tmp_path):
    with JsonlLedger(tmp_path, "run1") as ledger:
        threads = [threading.Thread(target=lambda: [ledger.heartbeat() for _ in range(50)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    data = read(tmp_path)
    assert data.damaged_lines == 0
    assert [e.seq for e in data.events] == list(range(1, 201))


def test_a_killed_process_leaves_every_event_it_recorded(tmp_path):
    code = (
        "import os, signal, sys\n"
        "from pipeline.account.ledger import JsonlLedger, Lease\n"
        "ledger = JsonlLedger(sys.argv[1], 'run1')\n"
        "ledger.lease_start(Lease(device='cpu', device_name='x', gpus=0, cores=1))\n"
        "ledger.attempt_start('t', 1, fingerprint='f')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == -9
    assert [e.event for e in read(tmp_path).events] == ["lease_start", "attempt_start"]


@pytest.mark.parametrize("secret", ["https://x/y?sig=CANARY", "CANARY TOKEN", "a/../CANARY", "x" * 300])
def test_nothing_but_plain_names_gets_in(tmp_path, secret):
    with JsonlLedger(tmp_path, "run1") as ledger:
        with pytest.raises(InvalidInputError) as raised:
            ledger.attempt_end("t", 1, fingerprint="f", status="failed", usage=Usage(), error_kind=secret)
        with pytest.raises(InvalidInputError):
            ledger.slot(secret, 1, taken=True)
        assert "CANARY" not in ledger.path.read_text()
        assert "CANARY" not in str(raised.value)


@pytest.mark.parametrize("run_id", ["", "../up", "a b"])
def test_a_run_id_that_is_no_plain_name_is_refused(tmp_path, run_id):
    with pytest.raises(InvalidInputError, match="run id"):
        JsonlLedger(tmp_path, run_id)


def test_a_folder_that_cannot_be_made_is_an_output_error(tmp_path):
    (tmp_path / "ledger").write_text("a file")
    with pytest.raises(OutputError, match="cannot be opened"):
        JsonlLedger(tmp_path, "run1")


def test_a_full_disk_is_an_output_error():
    if not os.path.exists("/dev/full"):  # noqa: PTH110
        pytest.skip("no /dev/full here")
    ledger = MemoryLedger()
    assert ledger.events == []
    broken = JsonlLedger.__new__(JsonlLedger)
    JsonlLedger.__bases__[0].__init__(broken, "run1", lease="x", clock=Clock(), cpu_s=None)
    broken.path, broken._torn, broken._file = "/dev/full", False, os.open("/dev/full", os.O_WRONLY)
    with broken, pytest.raises(OutputError, match="cannot be written"):
        broken.heartbeat()


def test_memory_ledger_keeps_the_same_events():
    ledger = MemoryLedger()
    one_run(ledger)
    assert [e.event for e in ledger.events][:3] == ["lease_start", "attempt_start", "slot"]
    assert isinstance(ledger.events[2], Slot)


def test_heartbeats_come_at_the_interval_and_stop_for_good():
    ledger = MemoryLedger()
    with HeartbeatThread(ledger, interval_s=0.01):
        deadline = time.monotonic() + 5
        while len(ledger.events) < 3 and time.monotonic() < deadline:
            time.sleep(0.005)
    count = len(ledger.events)
    assert count >= 3
    time.sleep(0.05)
    assert len(ledger.events) == count


def test_a_long_interval_does_not_delay_the_stop():
    start = time.monotonic()
    with HeartbeatThread(MemoryLedger(), interval_s=3600):
        pass
    assert time.monotonic() - start < 5


def test_heartbeats_end_quietly_when_the_ledger_cannot_be_written(caplog):
    class Full(MemoryLedger):
        def heartbeat(self) -> None:
            raise OutputError("disk full")

    beats = HeartbeatThread(Full(), interval_s=0.001)
    beats.start()
    beats._thread.join(5)
    beats.stop()
    assert "no more heartbeats: disk full" in caplog.text


def test_no_ledger_is_an_empty_one(tmp_path):
    assert read(tmp_path).events == ()


def test_the_traffic_of_a_process_is_its_last_count_and_of_a_run_the_sum(tmp_path):
    for run, counts in (("a", [(("requests", 5), ("retries", 1)), (("requests", 9), ("retries", 2))]), ("b", [()])):
        with JsonlLedger(tmp_path, run) as ledger:
            ledger.lease_start(Lease(device="cpu", device_name="t", gpus=0, cores=1))
            for count in counts:
                ledger.network = lambda count=count: count
                ledger.heartbeat()
    with JsonlLedger(tmp_path, "c") as ledger:
        ledger.lease_start(Lease(device="cpu", device_name="t", gpus=0, cores=1))
        ledger.network = lambda: (("requests", 1),)
        ledger.lease_end("finished")
    assert fold(read(tmp_path), winners=()).network == (("requests", 10), ("retries", 2))
