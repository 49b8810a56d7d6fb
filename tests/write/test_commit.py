"""Receipts: done means committed, whoever dies and whenever."""

from __future__ import annotations

import logging
import os
import signal
import threading
from dataclasses import replace

import pytest

from pipeline.errors import OutputError
from pipeline.types import Estimate, PeriodSource, Receipt, Task, Tile, Usage
from pipeline.write.commit import Commits, State

TILE = Tile(zone=31, row=-1100, col=97, tile_px=512)
BLOCKS = ((0, 0), (0, 1))


@pytest.fixture
def commits(tmp_path):
    return Commits(tmp_path / "out")


def task(*, fingerprint="f1", blocks=BLOCKS):
    return Task(tile=TILE, blocks=blocks, candidates=(), fingerprint=fingerprint, estimate=Estimate())


def receipt(attempt, *, fingerprint="f1", blocks=BLOCKS, status="done", digest="aa"):
    return Receipt(
        tile_id=TILE.id,
        fingerprint=fingerprint,
        status=status,
        blocks=blocks,
        objects=(("utm31/embeddings/c/0/0/1/2", digest),),
        sources=(PeriodSource(cell_id="z31_r-275_c24", period=0, selected=("a", "b"), scores=(0.5, float("nan"))),),
        usage=Usage(windows=9, busy_s=1.25, stage_s=(("read", 0.1),)),
        attempt=attempt,
        calibration="cal",
        valid_px=100,
        clipped=1e-7,
    )


def work(commits, *, fingerprint="f1", blocks=BLOCKS, **fields):
    """One whole attempt; returns whether it won."""
    attempt = commits.start_attempt(TILE.id, "run-1")
    commits.intent(TILE.id, attempt, fingerprint, blocks=blocks)
    return commits.commit(receipt(attempt, fingerprint=fingerprint, blocks=blocks, **fields))


def test_a_new_tile_is_pending(commits):
    assert commits.state(task()) is State.PENDING
    assert commits.receipt(TILE.id, "f1") is None
    assert commits.attempts(TILE.id) == 0
    assert not commits.root.exists()


def test_a_committed_tile_is_done_and_its_receipt_comes_back_whole(commits):
    assert work(commits)
    assert commits.state(task()) == "done"
    found = commits.receipt(TILE.id, "f1")
    assert repr(found) == repr(receipt(1))


def test_attempts_are_numbered_by_everybody(commits, tmp_path):
    other = Commits(tmp_path / "out")
    assert [
        commits.start_attempt(TILE.id, "a"),
        other.start_attempt(TILE.id, "b"),
        commits.start_attempt(TILE.id, "a"),
    ] == [1, 2, 3]
    assert commits.attempts(TILE.id) == 3
    assert commits.attempts(TILE.id, run_id="a") == 2


def test_concurrent_attempts_never_get_the_same_number(commits):
    numbers = []
    threads = [
        threading.Thread(target=lambda: numbers.extend(commits.start_attempt(TILE.id, "r") for _ in range(5)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(1, 21))


def test_attempts_of_a_committed_tile_start_again_at_zero(commits):
    commits.start_attempt(TILE.id, "r")
    work(commits)
    assert commits.attempts(TILE.id) == 0
    commits.start_attempt(TILE.id, "r")
    assert commits.attempts(TILE.id) == 1


def test_an_attempt_without_an_end_is_interrupted(commits):
    commits.start_attempt(TILE.id, "r")
    assert commits.state(task()) is State.INTERRUPTED


def test_a_failure_is_recorded_with_its_kind(commits):
    attempt = commits.start_attempt(TILE.id, "r")
    commits.fail(TILE.id, attempt, "data", "B02 cannot be decoded")
    assert commits.state(task()) is State.FAILED
    assert commits.failure(TILE.id) == (1, "data", "B02 cannot be decoded")


def test_a_failed_tile_that_was_done_before_stays_done_while_its_shards_were_not_touched(commits):
    work(commits)
    commits.fail(TILE.id, commits.start_attempt(TILE.id, "r"), "transient", "no answer")
    assert commits.state(task()) is State.DONE


def test_an_intent_newer_than_the_receipt_means_not_done(commits):
    work(commits)
    attempt = commits.start_attempt(TILE.id, "r")
    commits.intent(TILE.id, attempt, "f1", blocks=BLOCKS)
    assert commits.state(task()) is State.INTERRUPTED
    assert commits.receipt(TILE.id, "f1") is None


def test_the_same_work_twice_is_a_duplicate_and_done(commits):
    assert work(commits)
    assert not work(commits)
    assert commits.state(task()) is State.DONE
    assert len(commits.receipts()) == 1


def test_two_workers_of_one_tile_make_one_receipt(commits):
    one, two = commits.start_attempt(TILE.id, "a"), commits.start_attempt(TILE.id, "b")
    commits.intent(TILE.id, one, "f1")
    commits.intent(TILE.id, two, "f1")
    assert commits.commit(receipt(one))
    assert commits.state(task()) is State.INTERRUPTED
    assert not commits.commit(receipt(two))
    assert commits.state(task()) is State.DONE


def test_a_slow_worker_of_the_same_work_does_not_undo_the_fast_one(commits):
    one, two = commits.start_attempt(TILE.id, "a"), commits.start_attempt(TILE.id, "b")
    commits.intent(TILE.id, one, "f1")
    commits.intent(TILE.id, two, "f1")
    assert commits.commit(receipt(two))
    assert not commits.commit(receipt(one))
    assert commits.state(task()) is State.DONE


def test_a_slow_worker_of_another_plan_marks_the_tile_as_torn(commits, caplog):
    slow, fast = commits.start_attempt(TILE.id, "a"), commits.start_attempt(TILE.id, "b")
    commits.intent(TILE.id, slow, "old")
    commits.intent(TILE.id, fast, "f1")
    commits.commit(receipt(fast))
    with caplog.at_level(logging.WARNING):
        commits.commit(receipt(slow, fingerprint="old"))
    assert "overtaken" in caplog.text
    assert commits.state(task()) is not State.DONE
    assert commits.state(task(fingerprint="old")) is not State.DONE
    work(commits)
    assert commits.state(task()) is State.DONE


def test_a_receipt_of_another_fingerprint_is_not_done(commits):
    work(commits)
    assert commits.state(task(fingerprint="f2")) is State.PENDING


def test_returning_to_an_older_plan_computes_again(commits):
    work(commits, fingerprint="f1")
    work(commits, fingerprint="f2", digest="bb")
    assert commits.state(task(fingerprint="f1")) is not State.DONE
    assert not work(commits, fingerprint="f1")
    assert commits.state(task(fingerprint="f1")) is State.DONE
    assert commits.state(task(fingerprint="f2")) is not State.DONE


def test_a_grown_area_needs_the_union_and_keeps_the_smaller_plan_done(commits):
    work(commits, blocks=BLOCKS, digest="aa")
    wider = task(blocks=((0, 1), (1, 1)))
    assert commits.state(wider) is State.PENDING
    union = commits.blocks(wider)
    assert union == ((0, 0), (0, 1), (1, 1))
    assert work(commits, blocks=union, digest="bb")
    assert commits.state(wider) is State.DONE
    assert commits.state(task()) is State.DONE
    assert commits.receipt(TILE.id, "f1").blocks == union


def test_an_unchanged_selection_gets_a_new_receipt_without_an_intent(commits):
    work(commits, fingerprint="f1")
    attempt = commits.start_attempt(TILE.id, "r")
    assert commits.commit(replace(receipt(1), fingerprint="f2", attempt=attempt))
    assert commits.state(task(fingerprint="f2")) is State.DONE
    assert commits.state(task(fingerprint="f1")) is State.DONE


def test_a_degraded_tile_is_degraded_until_a_better_attempt_replaces_it(commits):
    work(commits, status="degraded", digest="aa")
    assert commits.state(task()) == "degraded"
    assert work(commits, status="done", digest="bb")
    assert commits.state(task()) is State.DONE
    assert commits.receipt(TILE.id, "f1").status == "done"


def test_an_empty_tile_is_done(commits):
    work(commits, status="empty")
    assert commits.state(task()) is State.DONE


@pytest.mark.parametrize("damage", [b"", b'{"tile_id": "z31', b"[]", b"\x00" * 50])
def test_a_damaged_receipt_is_ignored_and_replaced(commits, caplog, damage):
    work(commits)
    file = next((commits.root / "receipts" / TILE.id).iterdir())
    file.write_bytes(damage)
    assert commits.state(task()) is not State.DONE
    assert "damaged" in caplog.text
    assert work(commits)
    assert commits.state(task()) is State.DONE


def test_a_receipt_copied_to_another_tile_proves_nothing(commits):
    work(commits)
    file = next((commits.root / "receipts" / TILE.id).iterdir())
    other = commits.root / "receipts" / "z31_r0_c0" / file.name
    other.parent.mkdir()
    other.write_bytes(file.read_bytes())
    assert commits.receipt("z31_r0_c0", "f1") is None


def test_all_receipts_are_listed_for_the_ledger(commits):
    work(commits, fingerprint="f1")
    work(commits, fingerprint="f2", digest="bb")
    assert [(r.fingerprint, r.attempt) for r in commits.receipts()] == [("f1", 1), ("f2", 2)]


def test_stale_temporary_files_are_ignored_and_cleaned(commits):
    work(commits)
    stale = commits.root / "receipts" / TILE.id / ".tmp-f2-1-abcd"
    stale.write_text('{"tile_id":')
    assert len(commits.receipts()) == 1
    assert commits.clean() == 0, "a young one may belong to a live writer"
    os.utime(stale, (0, 0))
    assert commits.clean() == 1
    assert not stale.exists()


def test_a_url_is_refused():
    with pytest.raises(OutputError, match="s3://"):
        Commits("s3://bucket/out")


def test_a_folder_that_cannot_be_written_is_an_output_error(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OutputError, match="cannot be written"):
        Commits(tmp_path / "out").start_attempt(TILE.id, "r")


KILLED = """
import os, signal, sys
sys.path.insert(0, "tests/write")
from test_commit import TILE, Commits, work
def at(step):
    if step == STEP:
        os.kill(os.getpid(), signal.SIGKILL)
work(Commits(ROOT, at=at))
"""
STEPS = {
    "attempt:temp": State.PENDING,
    "attempt": State.INTERRUPTED,
    "intent:temp": State.INTERRUPTED,
    "intent": State.INTERRUPTED,
    "receipt:temp": State.INTERRUPTED,
    "receipt": State.DONE,
}


@pytest.mark.parametrize("step", STEPS)
def test_a_kill_at_any_step_leaves_a_tile_that_is_done_or_can_be_done(tmp_path, in_process, step):
    killed = in_process(f"STEP, ROOT = {step!r}, {str(tmp_path)!r}\n{KILLED}")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    commits = Commits(tmp_path)
    assert commits.state(task()) is STEPS[step]
    work(commits)
    assert commits.state(task()) is State.DONE
    assert len(commits.receipts()) == 1


@pytest.mark.parametrize("step", ["seal:temp", "seal"])
def test_a_kill_while_a_duplicate_is_sealed_leaves_a_tile_that_can_be_done(tmp_path, in_process, step):
    commits = Commits(tmp_path)
    work(commits)
    killed = in_process(f"STEP, ROOT = {step!r}, {str(tmp_path)!r}\n{KILLED}")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (commits.state(task()) is State.DONE) == (step == "seal")
    work(commits)
    assert commits.state(task()) is State.DONE
