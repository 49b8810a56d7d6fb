"""Several outputs share one store, in a bucket or a folder: a time step each, one recipe, and nobody overwrites."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pytest

from pipeline import api
from pipeline.errors import NoDataError, OutputError
from pipeline.plan.planner import recipe_of, store_recipe_of
from pipeline.run.export import Request, export
from pipeline.run.folder import settings_of, store_at
from pipeline.run.inspect_store import inspect_store
from pipeline.run.stored import Stored
from pipeline.types import Period
from pipeline.write import store
from pipeline.write.place import place_of
from tests.run.sampled import part, request_of, run_request

SPRING, SUMMER = ("2024-04-01", "2024-05-31"), ("2024-05-31", "2024-07-30")
URL = "s3://maps/shared/store.zarr"


@pytest.fixture(scope="session")
def spot(sample):
    """A few blocks."""
    return part(sample.bbox, 0.4, 0.4, 0.5, 0.5)


def request(sample, output, place, dates, spot, *overrides, **values):
    start, end = dates
    return request_of(sample, output, f"store.path={place}", *overrides, start=start, end=end, bbox=spot, **values)


def credentials(patch, s3_server):
    """The environment of somebody who uses the server."""
    for name, value in (
        ("AWS_ENDPOINT_URL", s3_server),
        ("AWS_ACCESS_KEY_ID", "somebody"),
        ("AWS_SECRET_ACCESS_KEY", "wordless"),
        ("AWS_REGION", "us-east-1"),
    ):
        patch.setenv(name, value)


@pytest.fixture(scope="session")
def two_outputs(sample, spot, s3_server, tmp_path_factory):
    """Two outputs with a time step each in one bucket, the second one published; (plans, notes of the second)."""
    root = tmp_path_factory.mktemp("shared")
    with pytest.MonkeyPatch.context() as patch:
        credentials(patch, s3_server)
        first, outcome = run_request(request(sample, root / "spring", URL, SPRING, spot))
        assert outcome.exit_code == 0
        notes = []
        second = api.plan(request(sample, root / "summer", URL, SUMMER, spot), note=notes.append)
        outcome = api.run(second, pictures=True)
        assert outcome.exit_code == 0
    return (first, second), notes


@pytest.fixture
def shared(two_outputs, s3_server, monkeypatch):
    """Those outputs, and the environment to reach their store."""
    credentials(monkeypatch, s3_server)
    return two_outputs


@pytest.fixture(scope="session")
def local(sample, spot, tmp_path_factory):
    """(place, plans): one store in a folder, two plans for it made before either ran, and the first one's run."""
    root = tmp_path_factory.mktemp("local")
    place = root / "store.zarr"
    plans = tuple(api.plan(request(sample, root / name, place, SPRING, spot)) for name in ("a", "b"))
    assert api.run(plans[0], pictures=False).exit_code == 0
    return place, plans


def test_a_second_output_adds_its_dates_as_a_time_step(shared):
    (first, second), _ = shared
    days = [(a.date(), b.date()) for a, b in store.times(URL)]
    assert days == [(date(2024, 4, 1), date(2024, 5, 31)), (date(2024, 5, 31), date(2024, 7, 30))]
    ds = api.open_store(URL)
    assert int((ds.reason == 0).sum()) > 0
    for index, plan in enumerate((first, second)):
        stored = Stored.of(plan)
        assert stored.time_index == index
        codes = stored.coded(plan.tasks[0].tile).codes
        assert (codes != -128).any()
    assert (ds.embeddings[0] != ds.embeddings[1]).any()


def test_a_store_in_a_bucket_has_the_values_of_one_in_a_folder(shared, local):
    (first, _), _ = shared
    _, (plan, _) = local
    tile = plan.tasks[0].tile
    np.testing.assert_array_equal(Stored.of(plan).coded(tile).codes, Stored.of(first).coded(tile).codes)


def test_the_plan_says_what_it_adds(shared):
    _, notes = shared
    assert (
        f"store {URL}: adds the time step 2024-05-31 to 2024-07-30 to 1 that it has, the first from 2024-04-01" in notes
    )


def test_the_run_says_it_too(shared):
    (first, _), _ = shared
    said = []
    again = replace(first, tasks=tuple(replace(t, fingerprint="0" * 32) for t in first.tasks[:1]))

    def stop(stage, _tile):
        raise KeyboardInterrupt(stage)

    with pytest.raises(KeyboardInterrupt):
        api.run(again, pictures=False, at=stop, progress=lambda p: said.append(p.text))
    assert f"store {URL}: goes on with its time step 2024-04-01 to 2024-05-31" in said


def test_receipts_and_pictures_stay_in_the_output_folder(shared):
    (_, second), _ = shared
    root = place_of(second.output).root
    assert not (root / "store.zarr").exists()
    assert (root / "report.html").is_file()
    assert any((root / "receipts").rglob("*.json"))
    assert store_at(second.output) == URL


def test_no_secret_is_in_any_file_of_the_output(shared):
    (_, second), _ = shared
    for file in place_of(second.output).root.rglob("*"):
        assert not file.is_file() or b"wordless" not in file.read_bytes(), file


def test_the_same_output_resumes_and_finds_nothing_to_do(shared):
    (first, _), _ = shared
    outcome = api.run(first, pictures=False)
    assert (outcome.computed, outcome.skipped) == (0, len(first.tasks))


def test_another_output_with_the_same_dates_is_refused_and_the_first_is_named(shared, sample, spot, tmp_path):
    with pytest.raises(OutputError, match="2024-04-01 belongs to the output .*spring") as caught:
        api.plan(request(sample, tmp_path / "again", URL, SPRING, spot))
    assert caught.value.exit_code == 73
    assert not (tmp_path / "again" / "plan").exists()


def test_a_plan_made_before_the_step_was_taken_is_refused_by_the_run(local):
    _, (_, late) = local
    with pytest.raises(OutputError, match="belongs to the output .*/a;"):
        api.run(late, pictures=False)


def test_the_step_of_an_output_of_an_earlier_version_is_refused_too(local, sample, spot, tmp_path):
    """Those kept no record beside the store: it lies in its output, whose plan has the dates."""
    place, _ = local
    home = tmp_path / "home"
    api.plan(request(sample, home, "''", SPRING, spot))
    shutil.copytree(place, home / "store.zarr")
    with pytest.raises(OutputError, match=f"2024-04-01 belongs to the output {home};"):
        api.plan(request(sample, tmp_path / "b", home / "store.zarr", SPRING, spot))
    api.plan(request(sample, tmp_path / "b", home / "store.zarr", SUMMER, spot))
    api.plan(request(sample, home, "''", SPRING, spot))


def test_a_moved_output_is_still_the_same(shared, tmp_path):
    (first, _), _ = shared
    moved = tmp_path / "moved"
    shutil.copytree(first.output, moved)
    for task in first.tasks:
        shutil.rmtree(moved / "receipts" / task.tile.id)
    outcome = api.run(replace(first, output=str(moved)), pictures=False)
    assert (outcome.exit_code, outcome.computed) == (0, len(first.tasks))


def test_another_recipe_is_refused_and_the_difference_is_named(shared, sample, spot, tmp_path):
    with pytest.raises(
        OutputError, match=r"store store.zarr was made differently: .*grid is patch 8.*the run has patch 4"
    ):
        api.plan(request(sample, tmp_path / "other", URL, SUMMER, spot, "encode.patch_px=4"))


def test_another_number_of_periods_is_another_recipe(shared, sample, spot, tmp_path):
    with pytest.raises(OutputError, match="2 periods, the run has .*3 periods"):
        api.plan(request(sample, tmp_path / "other", URL, ("2024-06-01", "2024-08-30"), spot))


@pytest.mark.parametrize(
    ("one", "other", "inputs", "same"),
    [
        (("2023-01-01", "2024-01-01"), ("2024-01-01", "2025-01-01"), {"period_days": 40}, True),
        (("2023-01-01", "2024-01-01"), ("2024-01-01", "2025-01-01"), {"period_days": "month"}, True),
        (("2023-01-01", "2024-01-01"), ("2024-01-01", "2025-01-01"), {"periods": 4}, True),
        (("2023-01-01", "2024-01-01"), ("2024-01-01", "2024-12-01"), {"periods": 4}, False),
        (("2023-01-01", "2024-01-01"), ("2024-01-01", "2024-07-01"), {"period_days": 40}, False),
    ],
)
def test_years_have_one_recipe_whatever_leap_days_do(shared, one, other, inputs, same):
    from pipeline.plan.periods import periods_of

    (plan, _), _ = shared
    base = settings_of(plan)

    def recipe(dates):
        own = base.model_copy(
            update={
                "start": date.fromisoformat(dates[0]),
                "end": date.fromisoformat(dates[1]),
                "inputs": base.inputs.model_copy(update=inputs),
            }
        )
        return store_recipe_of(own, plan, periods_of(own, today=date(2026, 1, 1)))

    assert (recipe(one) == recipe(other)) is same


@pytest.fixture
def older(local):
    """That store as an earlier version would have made it: the dates are in its recipe; (place, plan)."""
    place, (plan, _) = local
    file = place / "zarr.json"
    before = file.read_bytes()
    root = json.loads(before)
    assert root["attributes"]["earthpress"]["identity"]["recipe"] != plan.recipe
    root["attributes"]["earthpress"]["identity"]["recipe"] = plan.recipe
    del root["attributes"]["earthpress"]["software"]
    file.write_text(json.dumps(root))
    yield place, plan
    file.write_bytes(before)


def test_a_store_of_earlier_versions_takes_its_own_plan_only(older, sample, spot, tmp_path):
    place, plan = older
    assert api.plan(request(sample, plan.output, place, SPRING, spot)).id == plan.id
    with pytest.raises(OutputError, match=f"recipe is {plan.recipe}, the run has.*takes no further dates"):
        api.plan(request(sample, tmp_path / "b", place, SUMMER, spot))


def test_dates_are_part_of_a_plans_recipe(shared):
    (first, second), _ = shared
    assert first.recipe == recipe_of(settings_of(first), first, first.periods) != second.recipe
    later = tuple(
        Period(index=p.index, start=p.start.replace(year=2023), end=p.end.replace(year=2023)) for p in first.periods
    )
    assert store_recipe_of(settings_of(first), first, later) == store_recipe_of(
        settings_of(first), first, first.periods
    )
    assert later[0].start == datetime(2023, 4, 1, tzinfo=UTC)


# earthpress inspect


def test_inspect_says_what_a_store_is(shared):
    (first, second), _ = shared
    found = inspect_store(second.output)
    assert found.place == URL
    assert found.times == (SPRING, SUMMER)
    assert (found.dims, found.dtype, found.quantiser) == (first.model.dims, "int8", "linear")
    assert found.calibration["hash"] == first.calibration.hash
    assert found.calibration["provisional"]
    (zone,) = found.zones
    (box,) = store.zones(URL)
    assert (zone.name, zone.epsg, zone.shape, zone.pixel_m) == (f"utm{box.zone}", box.epsg, box.shape, 10)
    west, south, east, north = zone.bbox
    assert west < first.tasks[0].tile.box.zone * 6 - 180 < east + 6
    assert south < north
    assert zone.km2 == pytest.approx(box.height * box.width * 1e-4)
    assert found.objects == len(place_of(URL).list())
    assert found.bytes == sum(size for _, size in place_of(URL).list())
    assert found.shard == (1, found.dims, 256, 256)
    assert found.ratio > 1
    assert found.decode == "ds.embeddings.where(ds.embeddings != -128) * ds.scale"
    assert any("UNTRAINED" in text for text in found.warnings)


def test_the_valid_share_is_that_of_the_receipts_or_of_a_sample(shared):
    (first, _), _ = shared
    receipts = inspect_store(first.output)
    sample = inspect_store(URL)
    assert "receipts" in receipts.valid_from
    assert "sample" in sample.valid_from
    ds = api.open_store(URL)
    asked, valid = ((ds.reason != 1).sum(), (ds.reason == 0).sum())
    assert sample.valid == pytest.approx(float(valid / asked))
    step = ds.isel(time=0)
    assert receipts.valid == pytest.approx(float((step.reason == 0).sum() / (step.reason != 1).sum()))


def test_inspect_takes_a_zone_and_prints_json(shared, earthpress):
    (zone,) = (box.zone for box in store.zones(URL))
    code, text, _ = earthpress("inspect", f"{URL}/utm{zone}", "--json")
    assert code == 0
    found = json.loads(text)
    assert [z["name"] for z in found["zones"]] == [f"utm{zone}"]
    assert found["place"] == URL


def test_the_valid_share_of_a_zone_leaves_the_receipts_of_others_out(local, tmp_path):
    place, (plan, _) = local
    out = tmp_path / "out"
    shutil.copytree(Path(plan.output) / "receipts", out / "receipts")
    shutil.copytree(place, out / "store.zarr")
    (zone,) = (box.zone for box in store.zones(place))
    before = inspect_store(str(out))
    (one, *_) = sorted((out / "receipts").iterdir())
    shutil.copytree(one, out / "receipts" / "z60_r0_c0")
    after = inspect_store(f"{out}/store.zarr/utm{zone}")
    assert before.valid_from == after.valid_from == f"{len(plan.tasks)} receipts in out"


def test_a_store_is_opened_by_a_path_as_by_text(local):
    place, (plan, _) = local
    for what in (place, str(place), Path(plan.output), plan.output):
        assert api.open_store(what).embeddings.dtype == np.int8


def test_inspect_prints_a_table_and_the_warnings(shared, earthpress):
    code, text, err = earthpress("inspect", URL)
    assert code == 0
    assert "2: 2024-04-01 to 2024-05-31, 2024-05-31 to 2024-07-30" in text
    assert "UNTRAINED" in err


def test_inspect_needs_no_plan(local, tmp_path):
    place, (plan, _) = local
    alone = tmp_path / "alone.zarr"
    shutil.copytree(place, alone)
    found = inspect_store(str(alone))
    assert "sample" in found.valid_from
    assert found.valid == pytest.approx(inspect_store(plan.output).valid)


def test_inspect_of_something_else_says_what_it_wants(tmp_path, earthpress):
    code, _, err = earthpress("inspect", tmp_path)
    assert code == 73
    assert "is not an earthpress store: no Zarr store there" in err


def test_an_export_of_an_output_has_its_dates_and_lies_in_it(shared_store):
    early = shared_store["early"]
    made = export(early.output, Request(form="npy", bands=(0,), cell_px=256))
    about = [path for path in made.files if path.endswith(".npy")]
    assert [Path(path).relative_to(early.output).as_posix() for path in about] == [
        "exports/embeddings_2024-04-01/embeddings_2024-04-01_utm32.npy"
    ]


def test_an_export_of_an_output_without_vectors_takes_no_other_dates(shared_store, sample, tmp_path):
    place = settings_of(shared_store["early"]).store.path
    start, end = "2024-05-01", "2024-06-30"
    box = part(sample.bbox, 0.3, 0.3, 0.62, 0.45)
    made = api.plan(request_of(sample, tmp_path / "new", f"store.path={place}", start=start, end=end, bbox=box))
    with pytest.raises(NoDataError, match="has written no vector of its dates yet: earthpress run"):
        export(made.output, Request(form="npy"))
