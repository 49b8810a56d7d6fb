"""What feeding costs, on one tile of the simulated sample."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pipeline import api
from pipeline.bench import loader, show
from pipeline.errors import InvalidInputError
from tests.run.sampled import part, request_of

BLOCKS = tuple((row, col) for row in range(2) for col in range(2))


@pytest.fixture(scope="module")
def plan(sample, tmp_path_factory):
    box = part(sample.bbox, 0.55, 0.55, 0.6, 0.6)
    return api.plan(request_of(sample, tmp_path_factory.mktemp("loader") / "out", bbox=box))


def test_rates_by_hand():
    tasks = (SimpleNamespace(blocks=BLOCKS), SimpleNamespace(blocks=BLOCKS))
    row = loader.rates(tasks, read_bytes=50_000_000, seconds=((4.0, 1.0, 5.0), (4.0, 2.0, 8.0), (4.0, 3.0, 5.0)))
    assert (row.compute_tiles_per_s, row.fetch_tiles_per_s, row.tiles_per_s) == (0.5, 1.0, 0.4)
    assert row.km2_per_s == pytest.approx(0.4 * 4 * 2.56**2)
    assert (row.fetch_mb_per_s, row.mb_per_s) == (25.0, 10.0)
    assert row.feeding_loss == pytest.approx(0.2)  # median of 0.2, 0.5 and 0.2
    assert row.rounds == 3


def test_reading_computing_and_both_are_told_apart(plan, tmp_path):
    notes = []
    rows = loader.bench(plan.output, readers=(1, 2), tiles=1, rounds=1, threads=1, folder=tmp_path, note=notes.append)
    assert [case.readers for case, _ in rows] == [1, 2]
    for case, row in rows:
        assert (case.tiles, case.plan, case.processes) == (1, plan.id[:12], False)
        assert row.tiles_per_s < 1.2 * min(row.compute_tiles_per_s, row.fetch_tiles_per_s)  # one tile cannot overlap
        assert row.mb_per_s > 0
    table = show.loader_table(rows)
    assert list(table.columns[1].cells) == ["compute", "fetch", "end to end"] * 2
    assert "round 1/1, 2 reading threads" in notes


def test_what_is_read_is_what_a_run_reads(plan):
    with loader.Feed(plan, tiles=1, threads=1) as feed:
        ((stack,),) = feed._stacks.values()
        (task,) = feed.tasks
        assert stack.periods == plan.periods
        assert stack.bytes_read == feed.read_bytes > 0
        assert feed._encode(task, stack).valid.any()


def test_few_tiles_are_read_repeatedly(plan):
    with loader.Feed(plan, tiles=3, threads=1) as feed:
        assert [task.tile.id for task in feed.tasks] == [plan.tasks[0].tile.id] * 3


def test_numbers_must_be_positive(tmp_path):
    for wrong in ({"readers": ()}, {"readers": (0,)}, {"tiles": 0}, {"rounds": 0}):
        with pytest.raises(InvalidInputError, match="1 or more"):
            loader.bench(None, folder=tmp_path, **wrong)


@pytest.mark.slow
def test_without_a_plan_the_sample_is_used(tmp_path):
    ((case, row),) = loader.bench(None, readers=(4,), tiles=2, rounds=1, threads=1, folder=tmp_path)
    assert case.model.startswith("random:")
    assert row.tiles_per_s > 0
