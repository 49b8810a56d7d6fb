"""The promises, end to end on the simulated sample: same pixel same bytes, killed equals undisturbed, nothing twice."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline import api
from pipeline.errors import DeviceError, NoDataError, OutputError
from pipeline.plan.planner import load_plan, save_plan
from pipeline.run.local import run
from pipeline.run.status import tile_status
from pipeline.run.tile import STAGES
from pipeline.types import BLOCK_PX, NODATA_CODE, Reason, Tile
from pipeline.write import store
from pipeline.write.commit import Commits
from tests.run.sampled import digest, part, request_of, run_request

TWO_PERIODS = ("end=2024-05-31",)


@pytest.fixture(scope="module")
def undisturbed(sample, small_bbox, tmp_path_factory):
    """(plan, outcome, folder) of a run that nobody disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed") / "out"
    plan, outcome = run_request(request_of(sample, folder, *TWO_PERIODS, bbox=small_bbox), pictures=True)
    return plan, outcome, folder


@pytest.fixture(scope="module")
def pair(sample, tmp_path_factory):
    """(settings of an output, digest of its store) of an area of two tiles."""
    bbox = part(sample.bbox, 0.3, 0.3, 0.62, 0.45)
    folder = tmp_path_factory.mktemp("pair") / "out"
    plan, _ = run_request(request_of(sample, folder, *TWO_PERIODS, bbox=bbox))
    assert len(plan.tasks) == 2
    return lambda output: request_of(sample, output, *TWO_PERIODS, bbox=bbox), digest(folder)


def blocks_of(folder):
    """(zone, block row, block col) of the lattice -> codes of every committed block."""
    plan = load_plan(str(folder))
    found = {}
    for receipt in Commits(folder).receipts():
        tile = Tile.parse(receipt.tile_id, tile_px=plan.grid.tile_px)
        codes, reason, n_obs = store.read_tile(folder / "store.zarr", tile)
        for row, col in receipt.blocks:
            cut = tile.block_box(row, col).slices_in(tile.box)
            box = tile.block_box(row, col)
            found[box.row // BLOCK_PX, box.col // BLOCK_PX] = (codes[:, *cut], reason[cut], n_obs[cut])
    return found


def test_every_tile_is_committed_and_valid_pixels_have_codes(undisturbed):
    plan, outcome, folder = undisturbed
    assert outcome.exit_code == 0
    assert {row.state for row in tile_status(str(folder))} == {"done"}
    for codes, reason, n_obs in blocks_of(folder).values():
        valid = reason == Reason.VALID
        assert ((codes[0] != NODATA_CODE) == valid).all()
        assert ((n_obs > 0) == valid).all()
    assert outcome.valid_px > 0
    assert outcome.computed == len(plan.tasks) > 1
    assert {r.weights_sha256 for r in Commits(folder).receipts()} == {plan.model.sha256}


def test_a_second_run_does_nothing_and_says_so(undisturbed):
    plan, _, folder = undisturbed
    before = digest(folder)
    again = run(plan)
    assert (again.computed, again.skipped, again.exit_code) == (0, len(plan.tasks), 0)
    assert "nothing to do" in again.text()
    assert digest(folder) == before


@pytest.mark.parametrize(
    ("name", "box", "overrides"),
    [
        ("another area", (-0.2, 0.2, 0.4, 0.7), ()),
        ("larger tiles", (0.3, 0.3, 0.62, 0.62), ("store.tile_px=512",)),
        ("more encoder threads", (0.3, 0.3, 0.62, 0.62), ("run.encoder_threads=2",)),
    ],
)
def test_the_same_ground_has_the_same_bytes(sample, undisturbed, tmp_path, name, box, overrides):
    del name
    settings = request_of(sample, tmp_path / "out", *TWO_PERIODS, *overrides, bbox=part(sample.bbox, *box))
    run_request(settings)
    ours, theirs = blocks_of(tmp_path / "out"), blocks_of(undisturbed[2])
    common = ours.keys() & theirs.keys()
    assert len(common) >= 2
    for key in common:
        for mine, other in zip(ours[key], theirs[key], strict=True):
            np.testing.assert_array_equal(mine, other)


def test_tile_order_does_not_matter(sample, small_bbox, undisturbed, tmp_path):
    plan = api.plan(request_of(sample, tmp_path / "out", *TWO_PERIODS, bbox=small_bbox))
    run(replace(plan, tasks=plan.tasks[::-1]), pictures=False)
    assert digest(tmp_path / "out") == digest(undisturbed[2])


def killed_at(stage, output, done):
    """Run the plan and die when its second and last tile reaches ``stage``; the first, when that is its end."""
    seen = []

    def at(name, tile):
        if name == stage:
            seen.append(tile)
            if len(seen) == 2 - (stage == STAGES[-1]):
                os.kill(os.getpid(), signal.SIGKILL)

    run(load_plan(output), at=at, pictures=False)
    Path(done).touch()


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_killed_at_a_stage_boundary_resumes_to_the_same_bytes(pair, tmp_path, stage):
    output = str(tmp_path / "out")
    plan = api.plan(pair[0](output))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pipeline.run.local", "pipeline.encode.session", "pipeline.run.publish"])
    process = context.Process(target=killed_at, args=(stage, output, str(tmp_path / "ended")))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / "ended").exists()
    assert {row.state for row in tile_status(output)} != {"done"}
    resumed = run(plan, pictures=False)
    assert resumed.exit_code == 0
    assert resumed.computed >= 1
    assert digest(Path(output)) == pair[1]
    receipts = Commits(Path(output)).receipts()
    assert len({r.tile_id for r in receipts}) == len(receipts) == len(plan.tasks)


def test_a_grown_area_computes_only_what_is_missing(sample, small_bbox, undisturbed, tmp_path):
    output = tmp_path / "out"
    first, _ = run_request(request_of(sample, output, *TWO_PERIODS, bbox=part(sample.bbox, 0.55, 0.55, 0.62, 0.62)))
    done = {t.tile.id for t in first.tasks}
    grown, outcome = run_request(request_of(sample, output, *TWO_PERIODS, bbox=small_bbox))
    assert outcome.skipped == len(done & {t.tile.id for t in grown.tasks}) > 0
    assert outcome.computed == len(grown.tasks) - outcome.skipped > 0
    ours, theirs = blocks_of(output), blocks_of(undisturbed[2])
    assert ours.keys() >= theirs.keys()
    for key in theirs:
        np.testing.assert_array_equal(ours[key][0], theirs[key][0])


def test_an_area_that_grows_inside_a_tile_keeps_its_blocks(sample, tmp_path):
    output, bigger = tmp_path / "out", ("store.tile_px=1024", *TWO_PERIODS)
    run_request(request_of(sample, output, *bigger, bbox=part(sample.bbox, 0.1, 0.1, 0.2, 0.2)))
    before = blocks_of(output)
    run_request(request_of(sample, output, *bigger, bbox=part(sample.bbox, 0.1, 0.7, 0.2, 0.8)))
    after = blocks_of(output)
    assert after.keys() > before.keys()
    for key, (codes, _, _) in before.items():
        np.testing.assert_array_equal(after[key][0], codes)


def test_two_plans_that_interleave_on_one_tile_lose_no_block(sample, tmp_path):
    output, bigger = tmp_path / "out", ("store.tile_px=1024", *TWO_PERIODS)
    first = api.plan(request_of(sample, output, *bigger, bbox=part(sample.bbox, 0.1, 0.1, 0.2, 0.2)))
    second = api.plan(request_of(sample, output, *bigger, bbox=part(sample.bbox, 0.1, 0.7, 0.2, 0.8)))
    run(first, pictures=False)
    before = blocks_of(output)
    run(second, pictures=False)
    after = blocks_of(output)
    assert after.keys() > before.keys()
    for key, (codes, reason, _) in before.items():
        assert (reason == Reason.VALID).any()
        np.testing.assert_array_equal(after[key][0], codes)


def test_maps_added_to_a_store_that_has_tiles_are_refused_with_the_way_out(sample, small_bbox, undisturbed):
    before = load_plan(str(undisturbed[2]))
    other = replace(before, heads=(("crops", "0" * 32),))
    with pytest.raises(OutputError, match="earthpress map"):
        save_plan(other)
    assert load_plan(str(undisturbed[2])) == before


def test_another_configuration_beside_the_same_weights_is_another_recipe(undisturbed):
    plan = undisturbed[0]
    other = replace(plan, recipe="0" * 32, model=replace(plan.model, config="other"))
    with pytest.raises(OutputError, match="configuration"):
        save_plan(other)


def test_an_output_that_cannot_be_written_ends_the_run_and_keeps_what_is_committed(sample, small_bbox, tmp_path):
    output = tmp_path / "out"
    plan = api.plan(request_of(sample, output, *TWO_PERIODS, bbox=small_bbox))

    def at(stage, tile):
        del tile
        if stage == "committed":
            (output / "store.zarr" / "zarr.json").rename(output / "gone.json")

    with pytest.raises(OutputError):
        run(plan, at=at, pictures=False)
    (output / "gone.json").rename(output / "store.zarr" / "zarr.json")
    states = [row.state for row in tile_status(str(output))]
    assert states.count("done") == 1
    assert run(plan, pictures=False).computed == len(plan.tasks) - 1


def test_another_recipe_in_the_same_folder_is_refused(sample, small_bbox, undisturbed):
    folder = undisturbed[2]
    before = digest(folder)
    with pytest.raises(OutputError, match="another plan.*model there.*toy:7"):
        api.plan(request_of(sample, folder, *TWO_PERIODS, bbox=small_bbox, model="random:v1.2-toy:8"))
    assert digest(folder) == before


def test_radar_of_another_quantity_in_the_same_store_is_refused(undisturbed, tmp_path):
    plans = {
        quantity: replace(
            undisturbed[0],
            output=str(tmp_path),
            scenes=tuple(replace(scene, sensor="sentinel1", quantity=quantity) for scene in undisturbed[0].scenes),
        )
        for quantity in ("gamma0", "sigma0", "")
    }
    save_plan(plans["sigma0"])
    save_plan(plans["gamma0"])  # nothing is computed yet
    (tmp_path / "receipts" / "z32").mkdir(parents=True)
    (tmp_path / "receipts" / "z32" / "1.json").touch()
    with pytest.raises(OutputError, match="made from Sentinel-1 gamma0, this plan's scenes are sigma0"):
        save_plan(plans["sigma0"])
    save_plan(plans["gamma0"])
    save_plan(plans[""])  # no radar found: missing, not another quantity


def test_another_numerics_class_is_refused(undisturbed, tmp_path):
    plan = undisturbed[0]
    other = replace(plan, output=str(tmp_path), numerics=replace(plan.numerics, torch="1.0.0"))
    with pytest.raises(DeviceError, match="torch"):
        run(other)


def test_a_period_without_scenes_is_recorded_and_the_rest_goes_on(sample, tmp_path):
    settings = request_of(
        sample, tmp_path / "out", "start=2024-02-01", "end=2024-05-01", bbox=part(sample.bbox, 0.4, 0.4, 0.45, 0.45),
        start=None, end=None,
    )  # fmt: skip
    plan, outcome = run_request(settings)
    assert plan.empty_periods == (0, 1)
    assert outcome.exit_code == 0
    assert outcome.valid_px > 0
    n_obs = np.concatenate([n.ravel() for _, _, n in blocks_of(tmp_path / "out").values()])
    assert n_obs.max() == 1


def test_no_scene_at_all_is_an_error_before_anything_is_written(sample, tmp_path):
    settings = request_of(sample, tmp_path / "out", start="2023-01-01", end="2023-03-01")
    with pytest.raises(NoDataError, match="no usable scene"):
        api.plan(settings)
    assert not (tmp_path / "out").exists()


def test_an_area_that_the_scenes_do_not_reach_ends_with_65_and_a_reason(sample, tmp_path):
    beyond = part(sample.bbox, 0.4, 1.6, 0.45, 1.65)  # inside the ranking cell, north of every scene
    _, outcome = run_request(request_of(sample, tmp_path / "out", *TWO_PERIODS, bbox=beyond), pictures=True)
    assert outcome.exit_code == 65
    assert "no pixel" in outcome.text()
    reasons = {int(r) for _, reason, _ in blocks_of(tmp_path / "out").values() for r in np.unique(reason)}
    assert reasons == {int(Reason.NO_OBSERVATION)}


def broken_copy(sample, folder, needle):
    """The sample's catalogue with the files of one item truncated."""
    import shutil

    shutil.copytree(sample.folder, folder)
    items = json.loads((folder / sample.catalog.name).read_text())["features"]
    victim = next(i for i in items if needle in i["id"])
    for asset in victim["assets"].values():
        path = folder / asset["href"]
        if path.suffix == ".tif":
            path.write_bytes(path.read_bytes()[:300])
    return victim["id"]


def test_an_unreadable_scene_degrades_the_tile_and_a_later_run_repairs_it(sample, undisturbed, small_bbox, tmp_path):
    import shutil

    victim = broken_copy(sample, tmp_path / "sample", "20240420")
    settings = request_of(sample, tmp_path / "out", *TWO_PERIODS, bbox=small_bbox).model_copy(
        update={
            "inputs": request_of(
                sample, tmp_path, inputs={"catalog": str(tmp_path / "sample" / sample.catalog.name)}
            ).inputs
        }
    )
    _, outcome = run_request(settings)
    assert outcome.degraded > 0
    assert outcome.too_degraded
    assert outcome.exit_code == 65
    assert any(victim in row.reason for row in tile_status(str(tmp_path / "out")))
    shutil.rmtree(tmp_path / "sample")
    shutil.copytree(sample.folder, tmp_path / "sample")
    again = run(load_plan(str(tmp_path / "out")))
    assert (again.degraded, again.exit_code) == (0, 0)
    assert digest(tmp_path / "out") == digest(undisturbed[2])


def test_the_ledger_adds_up_and_a_cpu_run_has_no_gpu_hours(undisturbed):
    from pipeline.run.summary import summarise

    plan, _, folder = undisturbed
    summary = summarise(str(folder))
    hours = summary.core_h
    assert summary.identity_holds
    assert hours.allocated == pytest.approx(hours.useful + hours.waste + hours.overhead)
    assert hours.overhead >= 0 < hours.useful
    assert summary.gpu_h.allocated == 0
    assert any("GPU" in note for note in summary.notes)
    assert summary.usd is None
    assert summary.km2 == pytest.approx(plan.area.km2)
    assert dict(summary.attempts) == {"won": len(plan.tasks)}
    assert 0 < summary.usage.windows <= plan.estimate.windows


def test_pictures_and_report_are_there_and_say_that_the_model_is_untrained(undisturbed):
    published = undisturbed[1].published
    text = Path(published.page).read_text(encoding="utf-8")
    assert "UNTRAINED" in text
    assert "data:image/png;base64," in text
    assert all(Path(p).is_file() for p in published.quicklooks)


def test_the_store_opens_georeferenced_and_dequantises(undisturbed):
    plan, _, folder = undisturbed
    data = api.open_store(str(folder / "store.zarr"))
    assert data.rio.crs.to_epsg() == 32600 + plan.tasks[0].tile.zone
    assert data.embeddings.dtype == np.int8
    floats = api.open_store(str(folder / "store.zarr"), dequantise=True).embeddings
    codes = data.embeddings.isel(time=0, band=5).values
    expected = np.where(codes == NODATA_CODE, np.nan, codes * np.float32(plan.calibration.scale[5]))
    np.testing.assert_allclose(floats.isel(time=0, band=5).values, expected, rtol=1e-6)
