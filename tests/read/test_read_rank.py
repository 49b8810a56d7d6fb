"""Ranking: scores from whole cells, ties, failures, and stores in which the first writer wins."""

from __future__ import annotations

import json
import math
import multiprocessing
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from files import CORNER, candidates, make_scene, region_around, scene_of, write_cog

from pipeline.errors import OutputError
from pipeline.read.access import Access
from pipeline.read.rank import FolderRanks, MemoryRanks, Ranks, rank_all, rank_key, rank_scenes
from pipeline.read.reads import Reads
from pipeline.read.rules import ReadRule
from pipeline.read.scores import Looked, by_clear_cover, clear_shares, score_classes
from pipeline.types import NO_CLEAR, Asset, Box, Cell

LOCAL = Access(allow_local=True)
CELL = Cell(zone=32, row=CORNER[0] // 2048, col=CORNER[1] // 2048)
CELL_20 = Box(zone=32, res_m=20, row=CELL.row * 1024, col=CELL.col * 1024, height=1024, width=1024)
CELL_80 = (256, 256)


def group(*scene_ids):
    return candidates((CELL,), {0: scene_ids})[0]


def rank(scenes, ranks, *, groups=None, composite="scl_first_valid"):
    by_id = {s.id: s for s in scenes}
    groups = groups or [group(*by_id)]
    with ThreadPoolExecutor(4) as pool:
        tools = Ranks(store=ranks, reads=Reads(LOCAL, ranks), pool=pool)
        return rank_all(groups, scenes=by_id, rule=ReadRule(composite=composite), ranks=tools)


def classified(folder, scene_id, classes):
    path = write_cog(folder / f"{scene_id}_SCL.tif", classes.astype(np.uint8), box=CELL_20)
    return scene_of(scene_id, Asset(band="SCL", href=str(path)))


@pytest.mark.parametrize(
    ("value", "weight"),
    [(0, 1), (1, 0), (2, 0), (3, 1), (4, 0), (5, 0), (6, 0), (7, 0), (8, 1), (9, 5), (10, 1), (11, 1)],
)
def test_each_class_counts_with_its_weight(value, weight):
    assert score_classes(np.array([[value, 4, 4, 5]])) == weight / 4


def test_a_clear_sliver_does_not_beat_a_scene_with_a_small_cloud():
    sliver, small_cloud = np.zeros((100, 100), int), np.full((100, 100), 4)
    sliver[:, :5], small_cloud[:10] = 4, 8
    assert score_classes(small_cloud) < score_classes(sliver)


def test_a_better_score_ranks_first_and_ties_keep_the_candidates_order():
    looked = {i: Looked(score=s, tie=0.0, clear=b"") for i, s in {"a": 0.5, "b": 0.1, "c": 0.5, "d": 0.1}.items()}
    ranking = rank_scenes(looked, group("c", "a", "d", "b"))
    assert ranking.scene_ids == ("d", "b", "c", "a")
    assert ranking.scores == (0.1, 0.1, 0.5, 0.5)


def test_the_score_covers_the_whole_cell(tmp_path):
    classes = np.full((1024, 1024), 4)
    classes[:256] = 9
    (ranking,), bytes_read = rank([classified(tmp_path, "S", classes)], MemoryRanks())
    assert ranking.scores == (5 * 0.25,)
    assert bytes_read == 256 * 256  # the overview of 80 m


def test_scenes_are_ranked_by_their_classification(tmp_path):
    made = [classified(tmp_path, f"S{c}", np.full((1024, 1024), c)) for c in (9, 8, 4)]
    (ranking,), _ = rank(made, MemoryRanks())
    assert ranking.scene_ids == ("S4", "S8", "S9")


def test_an_unreadable_classification_ranks_last_and_the_ranking_is_not_stored(tmp_path):
    good = classified(tmp_path, "good", np.full((1024, 1024), 9))
    bad = scene_of("bad", Asset(band="SCL", href=str(tmp_path / "gone.tif")))
    ranks, groups = MemoryRanks(), [group("bad", "good")]
    (ranking,), _ = rank([good, bad], ranks, groups=groups)
    assert ranking.scene_ids == ("good", "bad")
    assert ranking.scores == (5.0, math.inf)
    assert ranking.failed == ("bad",)
    assert ranks.get(rank_key(groups[0])) is None


def test_a_scene_without_classification_ranks_last_and_the_ranking_is_stored(tmp_path):
    made = classified(tmp_path, "with", np.full((1024, 1024), 9))
    ranks, groups = MemoryRanks(), [group("without", "with")]
    (first,), _ = rank([made, scene_of("without")], ranks, groups=groups)
    (second,), bytes_read = rank([made, scene_of("without")], ranks, groups=groups)
    assert first == second
    assert first.scene_ids == ("with", "without")
    assert bytes_read == 0


def test_a_stored_ranking_decides_without_a_read(tmp_path):
    ranks, groups = MemoryRanks(), [group("a", "b")]
    record = {"scene_ids": ["b", "a"], "scores": [0.25, None], "clear_pct": ["07" * 64, None], "notes": ["seen"]}
    ranks.put(rank_key(groups[0]), json.dumps(record))
    (ranking,), bytes_read = rank([scene_of("a"), scene_of("b")], ranks, groups=groups)
    assert ranking.scene_ids == ("b", "a")
    assert ranking.scores == (0.25, math.inf)
    assert ranking.clear == (("b", bytes([7] * 64)),)
    assert ranking.notes == ("seen",)
    assert bytes_read == 0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"scene_ids":["a"],"scores":[0]}',  # of the version before
        '{"scene_ids":["x"],"scores":[1],"clear_pct":[null],"notes":[]}',
        '{"scene_ids":["a"],"scores":[],"clear_pct":[null],"notes":[]}',
        '{"scene_ids":["a"],"scores":[0],"clear_pct":["07"],"notes":[]}',
        '{"scene_ids":["a"],"scores":[0],"clear_pct":["xy"],"notes":[]}',
    ],
)
def test_a_stored_ranking_that_makes_no_sense_is_computed_again(tmp_path, text):
    made = classified(tmp_path, "a", np.full((1024, 1024), 8))
    ranks, groups = MemoryRanks(), [group("a")]
    ranks.put(rank_key(groups[0]), text)
    (ranking,), _ = rank([made], ranks, groups=groups)
    assert ranking.scores == (1.0,)


def test_the_key_tells_cells_periods_and_candidates_apart():
    other = Cell(zone=32, row=1, col=2)
    keys = {
        rank_key(c) for c in (*candidates((CELL, other), {0: ("a",), 1: ("a",)}), *candidates((CELL,), {0: ("b",)}))
    }
    assert len(keys | {rank_key(group("a"), by="clear")}) == 6


def test_what_was_seen_is_remembered_as_it_was_seen(tmp_path):
    made = [classified(tmp_path, f"S{c}", np.full((1024, 1024), c)) for c in (9, 4)]
    ranks = FolderRanks(tmp_path / "ranks")
    (first,), _ = rank(made, ranks)
    (second,), bytes_read = rank(made, FolderRanks(tmp_path / "ranks"))
    assert first == second
    assert first.clear == (("S4", bytes([100] * 64)), ("S9", bytes(64)))
    assert bytes_read == 0


def test_clear_shares_are_percent_of_what_is_observed_in_each_block():
    classes = np.zeros(CELL_80, np.uint8)
    classes[:32, :32] = 4
    classes[:32, 32:64] = np.tile([0, 4, 9, 9], 8)
    classes[32:64, :32] = np.where(np.arange(32) < 21, 5, 3)
    shares = np.frombuffer(clear_shares(classes), np.uint8).reshape(8, 8)
    assert shares[0, 0] == 100
    assert shares[0, 1] == 33  # one of three; nodata is not observed
    assert shares[1, 0] == 66  # 65.6 rounded
    assert shares[7, 7] == NO_CLEAR


@pytest.mark.parametrize(("value", "clear"), [(c, c in (2, 4, 5, 6, 7, 11)) for c in range(1, 12)])
def test_a_class_is_clear_or_hidden(value, clear):
    assert set(clear_shares(np.full(CELL_80, value, np.uint8))) == {100 if clear else 0}


def test_best_clear_counts_vegetation_soil_and_water_over_the_whole_cell(tmp_path):
    full, sliver, snow = np.full((1024, 1024), 9), np.zeros((1024, 1024)), np.full((1024, 1024), 11)
    full[:512], sliver[:256] = 5, 6
    made = [classified(tmp_path, name, c) for name, c in (("snow", snow), ("sliver", sliver), ("full", full))]
    (ranking,), _ = rank(made, MemoryRanks(), composite="scl_best_clear")
    assert ranking.scene_ids == ("full", "sliver", "snow")
    assert ranking.scores == (0.5, 0.75, 1.0)


def test_best_clear_prefers_more_valid_pixels_among_equally_clear_scenes():
    half, cloudy = np.zeros(CELL_80, np.uint8), np.full(CELL_80, 9, np.uint8)
    half[:128], cloudy[:128] = 4, 4
    looked = {"half": by_clear_cover(half), "cloudy": by_clear_cover(cloudy)}
    assert rank_scenes(looked, group("half", "cloudy")).scene_ids == ("cloudy", "half")


def test_rankings_by_different_rules_are_kept_apart(tmp_path):
    snow, half = np.full((1024, 1024), 11), np.full((1024, 1024), 9)
    half[:512] = 4
    made, ranks = [classified(tmp_path, "snow", snow), classified(tmp_path, "half", half)], MemoryRanks()
    (by_scl,), _ = rank(made, ranks)
    (by_clear,), _ = rank(made, ranks, composite="scl_best_clear")
    assert by_scl.scene_ids == ("snow", "half")
    assert by_clear.scene_ids == ("half", "snow")


@pytest.mark.parametrize("composite", ["rslearn_mosaic", "first_valid", "median"])
def test_other_composites_take_the_order_given_and_look_at_nothing(composite):
    gone = [scene_of(i, Asset(band="SCL", href="/nowhere.tif")) for i in ("b", "a")]
    (ranking,), bytes_read = rank(gone, MemoryRanks(), composite=composite)
    assert ranking.scene_ids == ("b", "a")
    assert (ranking.scores, ranking.failed, bytes_read) == ((), (), 0)


def test_a_ranking_that_an_alternate_decided_is_used_but_not_remembered(tmp_path):
    other = classified(tmp_path, "other", np.full((1024, 1024), 4))
    own = classified(tmp_path, "S", np.full((1024, 1024), 8))
    kept = Path(own.href("SCL").href).read_bytes()
    Path(own.href("SCL").href).unlink()
    made, ranks = replace(own, alternates=(other,)), MemoryRanks()
    (ranking,), _ = rank([made], ranks)
    assert (ranking.failed, ranking.scores) == (("S",), (0.0,))
    assert "alternate other" in ranking.notes[0]
    Path(own.href("SCL").href).write_bytes(kept)
    (again,), _ = rank([made], ranks)
    assert (again.failed, again.scores, again.notes) == ((), (1.0,), ())


def test_a_classification_that_only_an_alternate_has_is_kept_with_its_note(tmp_path):
    other = classified(tmp_path, "other", np.full((1024, 1024), 4))
    without = scene_of("S", Asset(band="B02", href=str(tmp_path / "b.tif")))
    made, ranks = replace(without, alternates=(other,)), MemoryRanks()
    (ranking,), _ = rank([made], ranks)
    (again,), _ = rank([made], ranks)
    assert ranking.failed == ()
    assert ranking == again
    assert "alternate other" in ranking.notes[0]


def test_a_cell_of_four_files_scores_the_same_from_every_tile(tmp_path):
    # The region covers a corner of the cell only; what a tile reads plays no part.
    made = make_scene(tmp_path, "S", region=region_around(*CORNER), seed=1, classes=4)
    (ranking,), _ = rank([made.scene], MemoryRanks())
    inside = made.boxes[20].intersect(CELL_20)
    assert ranking.scores == (1 - inside.height * inside.width / 1024**2,)


@pytest.mark.parametrize("store", ["memory", "folder"])
def test_the_first_writer_wins(tmp_path, store):
    ranks = MemoryRanks() if store == "memory" else FolderRanks(tmp_path / "ranks")
    assert ranks.get("k") is None
    assert ranks.put("k", "one") == "one"
    assert ranks.put("k", "two") == "one"
    assert ranks.get("k") == "one"


def test_a_race_of_threads_has_one_winner(tmp_path):
    gate = threading.Barrier(16)

    def work(i):
        gate.wait()
        return [FolderRanks(tmp_path).put(f"k{n}", f"text{i}") for n in range(20)]

    with ThreadPoolExecutor(16) as pool:
        got = list(pool.map(work, range(16)))
    assert all(len({g[n] for g in got}) == 1 for n in range(20))
    assert len(list(tmp_path.iterdir())) == 20


def _put(args):
    folder, i = args
    return FolderRanks(folder).put("key", f"text{i}" * 1000)


def test_a_race_of_processes_has_one_winner(tmp_path):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        got = pool.map(_put, [(str(tmp_path), i) for i in range(12)], chunksize=1)
    assert len(set(got)) == 1


def test_a_torn_file_counts_as_absent(tmp_path):
    (tmp_path / "k.json").write_text('{"scene_ids":["a"')
    ranks = FolderRanks(tmp_path)
    assert ranks.get("k") is None
    assert ranks.put("k", "mine") == "mine"


@pytest.mark.parametrize("key", ["../k", "a/b", "", "a\nb"])
def test_a_key_cannot_leave_the_folder(tmp_path, key):
    with pytest.raises(OutputError, match="cannot name a ranking"):
        FolderRanks(tmp_path).put(key, "x")


def test_a_folder_that_cannot_be_written_is_an_output_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        FolderRanks(tmp_path / "file" / "ranks").put("k", "x")


def test_memory_ranks_travel_with_what_they_know():
    ranks = MemoryRanks()
    ranks.put("k", "text")
    assert pickle.loads(pickle.dumps(ranks)).get("k") == "text"
