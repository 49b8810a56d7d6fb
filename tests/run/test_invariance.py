"""The same ground has the same bytes, whatever else a store holds and however it was made: drawn at random.

Compared are all layers of the store: codes, reasons, observations, quality, classes. The reference is one run over the
whole area per mode. What SIGKILL does is in ``test_end_to_end``; here a run is cut off and resumed among the rest.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
import zlib
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace

import numpy as np
import pytest
import rasterio
import shapely
from hypothesis import HealthCheck, Phase, given, seed
from hypothesis import settings as options
from rasterio.windows import from_bounds

from pipeline.encode import checkpoint
from pipeline.encode.session import Session
from pipeline.plan import grid
from pipeline.plan.planner import load_plan
from pipeline.read import stacks
from pipeline.read.rank import MemoryRanks
from pipeline.read.reads import Reads
from pipeline.run import local
from pipeline.run.folder import encoder_arguments
from pipeline.run.reading import Source
from pipeline.simulate.clouds import SCL_CLOUD_HIGH
from pipeline.types import NODATA_CODE, Reason
from pipeline.write.commit import Commits
from tests.run import invariance
from tests.run.invariance import Setting, compute, differences, reference_of, report, stored


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A folder that all processes of this session share."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "awkward"
    folder.mkdir(exist_ok=True)
    return folder


@contextmanager
def once(folder, name):
    """Whether ``name`` is still to be made in a folder that processes share; one of them at a time."""
    done = folder / f"{name}.done"
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield not done.exists()
        done.touch()


@pytest.fixture(scope="module")
def ground(shared):
    with once(shared, "archive") as missing:
        return invariance.make_archive(shared / "archive", write=missing)


@pytest.fixture(scope="module")
def reference(ground, shared):
    """Mode to (mode with its files, what the store of its whole ground holds)."""
    known = {}

    def of(mode):
        if mode not in known:
            folder = shared / mode.name
            folder.mkdir(exist_ok=True)
            with once(shared, mode.name) as missing:
                made = invariance.make(mode, ground, folder)  # the same bytes every time
                if missing:
                    compute(made, reference_of(mode), folder / "reference")
            known[mode] = made, stored(folder / "reference")
        return known[mode]

    return of


@pytest.fixture
def fresh(tmp_path_factory):
    """A new output for every store of a test."""
    return lambda: tmp_path_factory.mktemp("drawn") / "out"


def by_name(mode):
    return mode.name


every_mode = pytest.mark.parametrize("mode", invariance.MODES, ids=by_name)
with_radar = pytest.mark.parametrize("mode", [m for m in invariance.MODES if "radar" in m.name], ids=by_name)
BLEND = invariance.MODES[0]
ACROSS = shapely.box(-40, -200, 10, -40)
"""Two blocks, of two cells."""


def check(reference, mode, setting, output):
    made, whole = reference(mode)
    compute(made, setting, output)
    lines = differences(stored(output), whole)
    assert not lines, report(made, setting, lines)


@every_mode
def test_every_ground_pixel_has_one_vector(reference, fresh, mode):
    @seed(zlib.crc32(mode.name.encode()))  # the same in every session, others for every mode
    @options(
        max_examples=mode.examples,
        deadline=None,
        database=None,
        phases=(Phase.explicit, Phase.generate),  # a smaller area would say no more than the message does
        suppress_health_check=list(HealthCheck),
    )
    @given(setting=invariance.settings(mode))
    def drawn(setting):
        check(reference, mode, setting, fresh())

    drawn()


@with_radar
def test_encoder_processes_make_the_same_vectors(reference, fresh, mode):
    setting = Setting(areas=(ACROSS,), threads=2, encoders="processes", order=1)
    check(reference, mode, setting, fresh())


@every_mode
def test_the_reference_holds_what_makes_the_comparison_worth_something(reference, mode):
    _, whole = reference(mode)
    reason, codes = whole.all("reason"), whole.all("embeddings")
    assert len({zone for zone, _, _ in whole.layers}) == 1 + (mode.ground is not invariance.ONE_ZONE)
    assert len({cell.id for tile in whole.tiles.values() for cell in grid.cells_of(tile.box)}) >= 2
    assert {Reason.VALID, Reason.NO_OBSERVATION, Reason.OTHER_ZONE} <= set(np.unique(reason))
    assert set(np.unique(whole.all("n_obs"))) >= {0, 1, 2}
    assert len(np.unique(whole.all("map_drawn"))) >= 4
    assert {"qa_clear_pct", "qa_scenes", "qa_first_day"} <= set(next(iter(whole.layers.values())))
    valid = np.moveaxis(codes, 2, -1)[reason == Reason.VALID]
    assert (valid != NODATA_CODE).all()
    assert np.ptp(valid.astype(int), axis=0).min() > 20


@every_mode
def test_a_window_has_the_same_bytes_alone_and_among_any_others(reference, mode):
    """Batches are filled up by what comes next, so mates change with the area; here they are chosen."""
    made, _ = reference(mode)
    plan = load_plan(str(made.folder / "reference"))
    task = max(plan.tasks, key=lambda t: len(t.blocks))
    origins = grid.tile_windows(task.tile, task.blocks, plan.grid)[:9]
    with ThreadPoolExecutor(4) as pool:
        stacks = Source(plan, ranks=MemoryRanks()).read(task, pool=pool)
    session = Session(checkpoint.load(mode.model, output=plan.model.output), threads=1, **encoder_arguments(plan))
    together = session.encode(stacks, origins)
    assert len(origins) > 1
    assert together.valid.any(axis=(1, 2)).all()
    for some in (origins[:1], origins[1:4], origins[::2]):
        apart, at = session.encode(stacks, some), [origins.index(o) for o in some]
        np.testing.assert_array_equal(apart.valid, together.valid[at])
        np.testing.assert_array_equal(apart.values.numpy(), together.values.numpy()[at])


def test_a_tile_that_is_being_read_is_given_up_when_its_run_ends(reference, monkeypatch):
    """Else a run that is stopped, or fails, would wait for it for ever."""
    plan = load_plan(str(reference(BLEND)[0].folder / "reference"))
    pool, reading, go_on = ThreadPoolExecutor(1), threading.Event(), threading.Event()
    band = Reads.band

    def slow(*args):
        reading.set()
        go_on.wait(60)
        return band(*args)

    def read():
        with suppress(CancelledError, RuntimeError):  # of what was queued; of what is asked for afterwards
            Source(plan, ranks=MemoryRanks()).read(plan.tasks[0], pool=pool)

    monkeypatch.setattr(Reads, "band", slow)
    reader = threading.Thread(target=read, daemon=True)  # which may hang without the test session hanging
    reader.start()
    assert reading.wait(60)
    queued = -1
    while queued != (queued := pool._work_queue.qsize()) or not queued:  # until all that can be asked for is
        time.sleep(0.3)
    pool.shutdown(wait=False, cancel_futures=True)
    go_on.set()
    reader.join(20)
    assert not reader.is_alive()


# The comparison bites -------------------------------------------------------------------------------------------------

WEST_BLOCK, EAST_BLOCK = shapely.box(-480, -200, -470, -190), shapely.box(-200, -200, -190, -190)
"""In one tile of 512 pixels, and in one cell."""
BOTH_BLOCKS = shapely.box(-480, -200, -190, -190)


def found_in_two_runs(reference, fresh, *areas):
    """Differences between two stores of the same broken pipeline, the one of the first area and that of the second."""
    made, outputs = reference(BLEND)[0], []
    for area in areas:
        outputs.append(fresh())
        compute(made, Setting(areas=(area,), tile_px=512), outputs[-1])
    small, large = (stored(output) for output in outputs)
    return differences(small, large)


def test_windows_that_begin_with_the_area_are_found(reference, fresh, monkeypatch):
    def from_the_first_block(tile, blocks, spec):
        blocks = tuple(blocks)
        first = tile.block_box(*min(blocks))
        down, right = first.row % spec.stride_px, first.col % spec.stride_px
        boxes = [replace(b, row=b.row - down, col=b.col - right) for b in grid.needed_boxes(tile, blocks, spec)]
        return tuple(sorted({(r + down, c + right) for box in boxes for r, c in grid.window_origins(box, spec)}))

    monkeypatch.setattr(grid, "tile_windows", from_the_first_block)
    lines = found_in_two_runs(reference, fresh, EAST_BLOCK, BOTH_BLOCKS)
    assert lines[0].split(":")[0] == "embeddings of block (31, 1695, 295)"
    assert "of the window stride 48 px" in lines[0]


def test_scenes_that_are_ranked_for_the_tile_are_found(reference, fresh, monkeypatch):
    here = threading.local()
    per_cell, fill = stacks.rank_all, stacks.fill_layers

    def clouds(scene, cell):
        part = cell.box.intersect(here.box)
        with rasterio.open(scene.href("SCL").href) as file:
            window = from_bounds(*part.bounds_m, file.transform).round_offsets().round_lengths()
            return int((file.read(1, window=window, boundless=True, fill_value=0) == SCL_CLOUD_HIGH).sum())

    def per_tile(groups, *, scenes, **others):
        rankings, count = per_cell(groups, scenes=scenes, **others)
        pairs = zip(groups, rankings, strict=True)
        order = [sorted(r.scene_ids, key=lambda i, g=g: clouds(scenes[i], g.cell)) for g, r in pairs]
        return tuple(replace(r, scene_ids=tuple(o)) for r, o in zip(rankings, order, strict=True)), count

    def fill_layers(layers, *args, **kwargs):
        here.box = layers[0].box
        return fill(layers, *args, **kwargs)

    monkeypatch.setattr(stacks, "rank_all", per_tile)
    monkeypatch.setattr(stacks, "fill_layers", fill_layers)
    lines = found_in_two_runs(reference, fresh, WEST_BLOCK, BOTH_BLOCKS)
    assert any(line.startswith("embeddings of block (31, 1695, 294)") for line in lines)
    assert any(line.startswith("qa_clear_pct of block (31, 1695, 294)") for line in lines)


def test_a_resumed_run_that_leaves_out_what_was_begun_is_found(reference, fresh, monkeypatch):
    made, whole = reference(BLEND)
    begun = lambda plan, task: Commits(plan.output).attempts(task.tile.id)  # noqa: E731
    monkeypatch.setattr(local, "to_do", lambda plan: tuple(t for t in plan.tasks if not begun(plan, t)))
    output = fresh()
    compute(made, Setting(areas=(EAST_BLOCK,), stop=("written", 0)), output)
    assert differences(stored(output), whole) == ["block (31, 1695, 295) is wanted and not there"]
