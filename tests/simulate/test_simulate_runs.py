"""The sample of all sensors through a whole run: they share the periods, and each is missing where it saw nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.types import Reason
from pipeline.write.commit import Commits
from tests.real.archive import mosaic, stacks_of
from tests.run.sampled import part, request_of, run_request


def inputs(sample, **values):
    return {"catalog": str(sample.catalog), "sensors": list(sample.sensors)} | values


@pytest.fixture(scope="module")
def bbox(sample):
    """Inside one block, east of the middle: the edges of radar and Landsat swaths cross it."""
    return part(sample.bbox, 0.55, 0.55, 0.6, 0.6)


@pytest.fixture(scope="module")
def finished(sensor_sample, bbox, tmp_path_factory):
    settings = request_of(
        sensor_sample, tmp_path_factory.mktemp("all") / "out", bbox=bbox, inputs=inputs(sensor_sample)
    )
    plan, outcome = run_request(settings)
    assert (outcome.computed, outcome.degraded, outcome.failures) == (1, 0, ())
    return plan


@pytest.fixture(scope="module")
def stacks(finished):
    return stacks_of(finished, finished.tasks[0])


def test_every_pixel_has_a_vector_and_every_period_an_observation(finished):
    _, reason, n_obs = mosaic(Path(finished.output), finished.tasks[0].tile.box)
    assert (reason == Reason.VALID).all()
    assert (n_obs == 4).all()


def test_a_sensor_is_missing_in_the_period_that_it_did_not_see(stacks):
    inner = [s.layers[0].valid[:, 40:-40, 40:-40] for s in stacks]
    assert [stack.sensor for stack in stacks] == ["sentinel2_l2a", "sentinel1", "landsat"]
    assert [[bool(v.all()) for v in valid] for valid in inner] == [
        [True, True, True, True],
        [True, True, False, True],
        [True, False, True, True],
    ]
    assert np.isnan(stacks[1].layers[0].pixels[2]).all()
    assert not stacks[2].layers[0].pixels[1].any()


def test_zeros_and_swath_edge_of_the_newest_radar_scene_are_filled_from_the_one_before(finished, stacks):
    used = next(s.selected for s in stacks[1].sources if s.period == 1)
    assert [name[17:25] for name in used] == ["20240522", "20240515"]
    decibels = stacks[1].layers[0].pixels[1]
    assert np.isfinite(decibels).all()
    assert decibels.min() > -60  # a zero would be -100


def test_the_catalogue_of_one_file_gives_each_sensor_its_own_collection(finished):
    assert {(s.sensor, s.collection) for s in finished.scenes} == {
        ("sentinel2_l2a", "sentinel-2-l2a"),
        ("sentinel1", "sentinel-1-rtc"),
        ("landsat", "landsat-c2l1"),
    }
    root = json.loads((Path(finished.output) / "store.zarr" / "zarr.json").read_text())["attributes"]
    assert root["geoemb:source_data"] == ["landsat-c2l1", "sentinel-1-rtc (gamma0)", "sentinel-2-l2a"]


def test_receipts_name_the_scenes_of_every_sensor(finished):
    (receipt,) = Commits(Path(finished.output)).receipts()
    used = {(s.sensor, s.period): len(s.selected) for s in receipt.sources}
    assert {key for key, count in used.items() if count == 0} == {("sentinel1", 2), ("landsat", 1)}
    assert len(used) == 12


@pytest.mark.parametrize(("orbit", "days"), [("ascending", ["0416", "0522"]), ("descending", ["0409", "0515", "0714"])])
def test_only_the_orbit_asked_for_is_used(sensor_sample, bbox, tmp_path, orbit, days):
    from pipeline import api

    only = inputs(sensor_sample, sensors=["sentinel1"], sentinel1={"orbit": orbit})
    plan = api.plan(request_of(sensor_sample, tmp_path / "out", bbox=bbox, inputs=only))
    assert sorted(f"{s.acquired:%m%d}" for s in plan.scenes) == days
    assert {s.orbit for s in plan.scenes} == {orbit}
