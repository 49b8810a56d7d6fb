from __future__ import annotations

import io
import itertools
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from pipeline.account import prices
from pipeline.account.ledger import Clock, Lease, LedgerData, MemoryLedger
from pipeline.account.report import fold, tables, to_json
from pipeline.types import Estimate, Usage

START = datetime(2026, 1, 1, tzinfo=UTC)
CPU = Lease(device="cpu", device_name="avx512", gpus=0, cores=4, slot_cores=3)
GPU = Lease(
    device="cuda", device_name="A10G", gpus=1, cores=4, instance="g5.xlarge", price=prices.find("g5.xlarge"), lead_s=20
)


class Story:
    """A ledger with a clock that the test moves."""

    def __init__(self, held: Lease, *, cpu_s: float = 100.0) -> None:
        self.now_s = 1000.0
        clock = Clock(utc=lambda: START + timedelta(seconds=self.now_s), monotonic=lambda: self.now_s)
        self.ledger = MemoryLedger("run1", clock=clock, cpu_s=lambda: cpu_s)
        self.ledger.lease_start(held)

    def tile(self, name: str, attempt: int = 1, *, slot_s: float = 60.0, status: str | None = "won") -> Story:
        """One attempt; ``status`` None: killed, 10 s after its last heartbeat."""
        self.ledger.attempt_start(name, attempt, fingerprint="f")
        self.ledger.slot(name, attempt, taken=True)
        self.now_s += slot_s
        if status is None:
            self.ledger.heartbeat()
            return self
        self.ledger.slot(name, attempt, taken=False)
        usage = Usage(
            windows=10, busy_s=slot_s / 2, bytes_read=700, bytes_written=80, peak_bytes=9, stage_s=(("encode", slot_s),)
        )
        self.ledger.attempt_end(name, attempt, fingerprint="f", status=status, usage=usage)
        return self

    def end(self, after_s: float = 0.0) -> Story:
        self.now_s += after_s
        self.ledger.lease_end("finished", stage_s=(("load", 5.0),))
        return self

    def wait(self, seconds: float) -> Story:
        self.now_s += seconds
        return self


def data(*stories: Story, damaged: int = 0) -> LedgerData:
    return LedgerData(events=tuple(e for s in stories for e in s.ledger.events), damaged_lines=damaged)


def test_one_gpu_run_adds_up():
    story = Story(GPU).wait(40).tile("a").tile("b", slot_s=120).end(60)
    got = fold(data(story), winners=[("a", 1), ("b", 1)], km2=10.0)
    assert got.gpu_h.allocated == pytest.approx((20 + 40 + 60 + 120 + 60) / 3600)
    assert got.gpu_h.useful == pytest.approx(180 / 3600)
    assert (got.gpu_h.waste, got.tiles) == (0.0, 2)
    assert got.gpu_h.overhead == pytest.approx(120 / 3600)
    assert got.busy_gpu_h == pytest.approx(90 / 3600)
    assert got.goodput == pytest.approx(180 / 300)
    assert got.utilisation == pytest.approx(90 / 300)
    assert got.usd == pytest.approx(1.006 * 300 / 3600)
    assert got.usd_per_1000_km2 == pytest.approx(got.usd * 100)
    assert got.cpu_h == pytest.approx(100 / 3600)
    assert got.identity_holds


def test_a_cpu_run_has_no_gpu_hours_and_says_so():
    got = fold(data(Story(CPU).tile("a").end()), winners=[("a", 1)])
    assert got.gpu_h.allocated == 0.0
    assert got.core_h.allocated == pytest.approx(4 * 60 / 3600)
    assert got.core_h.useful == pytest.approx(3 * 60 / 3600)
    assert got.busy_core_h == pytest.approx(30 / 3600)
    assert any("GPU-hours are 0" in note for note in got.notes)


def test_failed_and_duplicate_attempts_are_waste():
    story = Story(GPU).tile("a", 1, status="failed").tile("a", 2).tile("b", 1, status="duplicate").end()
    got = fold(data(story), winners=[("a", 2)])
    assert got.gpu_h.useful == pytest.approx(60 / 3600)
    assert got.gpu_h.waste == pytest.approx(120 / 3600)
    assert dict(got.attempts) == {"won": 1, "failed": 1, "duplicate": 1}


def test_the_receipt_decides_not_the_attempts_own_word():
    got = fold(data(Story(GPU).tile("a", 1).end()), winners=[("a", 2)])
    assert got.gpu_h.useful == 0.0
    assert got.gpu_h.waste == pytest.approx(60 / 3600)
    assert any("1 receipts have no attempt" in note for note in got.notes)


def test_a_killed_attempt_is_charged_to_the_last_sign_of_life():
    story = Story(GPU).tile("a").tile("b", slot_s=45, status=None)
    got = fold(data(story), winners=[("a", 1)])
    assert got.gpu_h.waste == pytest.approx(45 / 3600)
    assert got.gpu_h.allocated == pytest.approx((20 + 60 + 45) / 3600)
    assert dict(got.attempts)["killed"] == 1
    assert any("1 attempts have no end" in note for note in got.notes)


def test_an_attempt_killed_while_reading_never_held_the_device():
    story = Story(GPU).tile("a")
    story.ledger.attempt_start("b", 1, fingerprint="f")
    story.wait(30).ledger.heartbeat()
    got = fold(data(story), winners=[("a", 1)])
    assert got.gpu_h.waste == 0.0
    assert got.gpu_h.overhead == pytest.approx((20 + 30) / 3600)


def test_a_lost_release_ends_when_the_next_attempt_takes_the_slot():
    story = Story(GPU).tile("a", slot_s=45, status=None).tile("b", slot_s=60).end()
    got = fold(data(story), winners=[("b", 1)])
    assert got.gpu_h.waste == pytest.approx(45 / 3600)
    assert got.identity_holds


def test_a_tile_counts_as_useful_once_when_two_processes_claim_it():
    first, second = Story(GPU).tile("a").end(), Story(GPU).tile("a", slot_s=90, status="duplicate").end()
    got = fold(data(second, first), winners=[("a", 1)])
    assert got.gpu_h.useful == pytest.approx(60 / 3600)
    assert got.gpu_h.waste == pytest.approx(90 / 3600)


def test_slot_seconds_of_the_usage_stand_in_where_no_slot_was_recorded():
    story = Story(GPU)
    story.wait(100).ledger.attempt_end("a", 1, fingerprint="f", status="won", usage=Usage(slot_s=70.0))
    assert fold(data(story), winners=[("a", 1)]).gpu_h.useful == pytest.approx(70 / 3600)


def test_charging_more_than_was_held_is_reported():
    story = Story(GPU)
    story.wait(10).ledger.attempt_end("a", 1, fingerprint="f", status="won", usage=Usage(slot_s=500.0))
    got = fold(data(story), winners=[("a", 1)])
    assert not got.identity_holds
    assert got.gpu_h.overhead < 0
    assert any(note.startswith("VIOLATION") for note in got.notes)


def test_one_lease_without_a_price_makes_the_cost_unknown_not_smaller():
    got = fold(data(Story(GPU).end(3600), Story(CPU).end(10)), winners=[])
    assert got.usd is None
    assert [row.usd is None for row in got.instances] == [True, False]
    assert any("USD is unknown: 1" in note for note in got.notes)


def test_free_machines_cost_zero_which_is_known():
    row = prices.find("g5.xlarge").model_copy(update={"usd_per_hour": 0.0})
    assert fold(data(Story(replace(GPU, price=row)).end(60)), winners=[]).usd == 0.0


def test_estimates_meet_their_measured_twins():
    story = Story(GPU).tile("a", 1, status="failed").tile("a", 2).end()
    plan = Estimate(device_s=60.0, bytes_read=1000, bytes_written=80, peak_bytes=18, usd=None)
    ratios = {r.quantity: r for r in fold(data(story), winners=[("a", 2)], estimate=plan).ratios}
    assert ratios["device_s"].ratio == pytest.approx(0.5)
    assert ratios["bytes_read"].ratio == pytest.approx(0.7)
    assert (ratios["bytes_written"].ratio, ratios["peak_bytes"].ratio) == (1.0, 0.5)
    assert ratios["usd"].ratio is None


def test_unknown_speed_gives_no_ratio():
    ratios = fold(data(Story(GPU).tile("a").end()), winners=[("a", 1)], estimate=Estimate()).ratios
    assert all(r.ratio is None for r in ratios)


def test_stages_of_tiles_and_process_are_summed():
    got = fold(data(Story(GPU).tile("a").tile("b").end()), winners=[])
    assert got.stage_s == (("encode", 120.0), ("load", 5.0))


def test_an_empty_ledger_is_a_summary_with_a_note():
    got = fold(LedgerData(events=(), damaged_lines=0), winners=[])
    assert (got.leases, got.usd, got.first_utc) == (0, None, None)
    assert got.notes == ("the ledger is empty: nothing was recorded",)


STATUSES = ["won", "failed", "stopped", "duplicate", None]


@settings(max_examples=25, deadline=None)
@given(
    tiles=st.lists(st.tuples(st.sampled_from(STATUSES), st.floats(0, 500), st.booleans()), max_size=8),
    order=st.randoms(use_true_random=False),
)
def test_duplicated_and_reordered_events_change_nothing(tiles, order):
    stories = [Story(GPU), Story(CPU)]
    for number, (status, slot_s, second) in enumerate(tiles):
        stories[second].tile(f"t{number}", slot_s=slot_s, status=status)
    winners = [(f"t{n}", 1) for n, (status, _, _) in enumerate(tiles) if status == "won"]
    plain = data(*stories)
    shuffled = [*plain.events, *order.sample(plain.events, len(plain.events) // 2)]
    order.shuffle(shuffled)
    expected = fold(plain, winners=winners)
    got = fold(LedgerData(events=tuple(shuffled), damaged_lines=0), winners=[*reversed(winners), *winners])
    assert got == expected
    for hours in (got.gpu_h, got.core_h):
        assert hours.allocated == pytest.approx(hours.useful + hours.waste + hours.overhead)
        assert hours.overhead >= -1e-9


def test_json_has_null_for_what_is_unknown():
    got = json.loads(to_json(fold(data(Story(CPU).tile("a").end()), winners=[("a", 1)])))
    assert (got["usd"], got["usd_per_1000_km2"], got["km2"]) == (None, None, None)
    assert got["first_utc"].startswith("2026-01-01T")


def text(summary) -> str:
    console = Console(file=io.StringIO(), width=140)
    for table in tables(summary):
        console.print(table)
    return console.file.getvalue()


def test_tables_show_hours_cost_and_ratios():
    story = Story(GPU).tile("a", slot_s=3580).end()
    shown = text(fold(data(story), winners=[("a", 1)], km2=100.0, estimate=Estimate(bytes_read=350)))
    for part in ("GPU", "0.9944", "1.006", "10.06", "g5.xlarge", "bytes_read", "encode", "3,580.00"):
        assert part in shown, part


def test_tables_say_unknown_where_nothing_is_known():
    shown = text(fold(data(Story(CPU).tile("a").end(), damaged=1), winners=[("a", 1)]))
    assert "unknown" in shown
    assert "1 ledger lines could not be read" in shown
    assert "Measured against" not in shown


def test_a_thousand_tiles_fold_to_the_sum_of_their_parts():
    story = Story(GPU)
    for number in range(1000):
        story.tile(f"t{number}", slot_s=1.0)
    got = fold(data(story.end()), winners=((f"t{n}", 1) for n in itertools.islice(itertools.count(), 1000)))
    assert got.usage.windows == 10_000
    assert got.gpu_h.useful == pytest.approx(1000 / 3600)
