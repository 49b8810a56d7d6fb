"""What the encoder is fed, against the landscape itself."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import rasterio
from rasterio.windows import from_bounds

from pipeline import api
from pipeline.read.rank import MemoryRanks
from pipeline.run.folder import access_of
from pipeline.simulate.landscape import reflectance
from pipeline.simulate.scenes import digital_numbers
from pipeline.types import Box
from tests.read.files import read_stack
from tests.run.sampled import request_of

CLEAR = (4, 5, 6)
GROUND = Box(zone=32, res_m=10, row=-552448, col=49920, height=512, width=512)


@pytest.fixture(scope="module")
def composed(sample, tmp_path_factory):
    """(plan, stack over the whole ground of the sample)."""
    plan = api.plan(request_of(sample, tmp_path_factory.mktemp("composed") / "out"))
    every = {c for task in plan.tasks for c in task.candidates}
    with ThreadPoolExecutor(4) as pool:
        stack = read_stack(
            box=GROUND,
            periods=plan.periods,
            candidates=tuple(sorted(every, key=lambda c: (c.cell, c.period))),
            scenes={scene.id: scene for scene in plan.scenes},
            access=access_of(plan),
            ranks=MemoryRanks(),
            pool=pool,
        )
    return plan, stack


def under(path, resolution):
    """The file's pixels over the ground, 0 where it does not reach."""
    with rasterio.open(path) as found:
        window = from_bounds(*GROUND.bounds_m, found.transform).round_offsets().round_lengths()
        data = found.read(1, window=window, boundless=True, fill_value=0)
    return data.repeat(resolution // 10, axis=0).repeat(resolution // 10, axis=1)


def test_composites_equal_the_truth_where_the_chosen_view_is_clear(sample, composed):
    plan, stack = composed
    scenes = {scene.id: scene for scene in plan.scenes}
    ten = stack.layers[0]
    clear_px = 0
    for source in stack.sources:
        empty = np.ones(GROUND.shape, bool)
        for item in source.selected:
            scene = scenes[item]
            mine = empty & (under(scene.href("B04").href, 10) > 0)
            empty &= ~mine
            clear = mine & np.isin(under(scene.href("SCL").href, 20), CLEAR)
            truth = reflectance(GROUND, scene.acquired)
            for band in ten.bands:
                got = ten.pixels[source.period, ten.bands.index(band)]
                np.testing.assert_array_equal(got[clear], digital_numbers(truth[band])[clear])
            clear_px += int(clear.sum())
    assert clear_px > 0.9 * 4 * 512 * 512


def test_the_least_cloudy_scenes_are_chosen(sample, composed):
    plan, stack = composed
    items = {i["id"]: i for i in json.loads(sample.catalog.read_text())["features"]}
    for source in stack.sources:
        cloud = {c.id: c.cloud_pct for c in plan.scenes if c.acquired >= plan.periods[source.period].start}
        first = source.selected[0]
        assert items[first]["properties"]["eo:cloud_cover"] == cloud[first]
        assert cloud[first] < 10


def test_both_processing_baselines_fill_the_composites(sample, composed):
    items = {
        i["id"]: i["properties"]["s2:processing_baseline"] for i in json.loads(sample.catalog.read_text())["features"]
    }
    used = {items[item] for source in composed[1].sources for item in source.selected}
    assert {"02.14", "05.10"} <= used
