"""Projections, by hand."""

from __future__ import annotations

from datetime import date

import pytest

from pipeline.account.prices import PriceRow
from pipeline.bench import show
from pipeline.bench.project import Factors, project, usd_per_device_hour
from pipeline.bench.rows import Case, Result
from pipeline.errors import InvalidInputError

CASE = Case(
    device="NVIDIA H100 NVL", threads=1, version="v1", size="large", precision="bf16", compiled=True, attention="auto",
    periods=1, window_px=128, patch_px=8, batch=512,
)  # fmt: skip
PLAIN = Factors(overlap=0.0)


def price(**changed):
    values = {
        "instance": "x", "usd_per_hour": 8.0, "currency": "USD", "region": "", "date": date(2026, 1, 1), "source": "s",
        "spot": False, "gpus": 4, "cores": 16,
    }  # fmt: skip
    return PriceRow.model_validate(values | {"region": "r"} | changed)


def test_the_published_example_comes_out():
    """604 images/s at 3.11 USD: about 1,840 hours and 5,720 USD for 4 billion images (ThroughputBench)."""
    found = project(((CASE, Result(images_per_s=604.0)),), factors=PLAIN, usd_per_hour=3.11, cuda=True)[0]
    assert found.lines[0].hours == pytest.approx(1840, abs=1)
    assert found.lines[0].usd == pytest.approx(5721, abs=3)
    assert found.unit == "GPU-hours"


def test_ground_is_counted_in_windows_of_the_row():
    found = project(((CASE, Result(images_per_s=1000.0)),), factors=PLAIN, cuda=True)[1]
    assert found.workload.images == pytest.approx(4e9 * (224 / 128) ** 2)
    assert found.workload.km2 == pytest.approx(4e9 * 2.24**2)
    assert found.lines[-1].hours == pytest.approx(4e9 * 3.0625 / 1000 / 3600)
    assert found.lines[-1].usd is None


def test_an_area_is_computed_as_often_as_it_is_revisited():
    rows = ((CASE, Result(images_per_s=10.0)),)
    found = project(rows, factors=PLAIN, area_km2=1.28**2 * 3600, revisits=5, usd_per_hour=2.0, cuda=True)[2]
    assert found.workload.images == pytest.approx(18_000)
    assert found.lines[0].hours == pytest.approx(0.5)
    assert found.lines[0].usd == pytest.approx(1.0)


def test_every_multiplier_stands_alone_and_all_together_last():
    factors = Factors(overlap=0.5, augmentations=8, waiting=0.2)
    lines = project(((CASE, Result(images_per_s=604.0)),), factors=factors, cuda=True)[0].lines
    assert [line.factor for line in lines] == pytest.approx([1, 4, 8, 1.25, 40])
    assert lines[-1].hours == pytest.approx(40 * lines[0].hours)
    assert lines[0].what == "encoder alone"


def test_rows_that_failed_are_left_out():
    assert project(((CASE, Result(error="no")),), factors=PLAIN, cuda=True) == ()


def test_an_instance_is_shared_by_its_devices():
    assert usd_per_device_hour(price(), threads=1, cuda=True) == 2.0
    assert usd_per_device_hour(price(), threads=2, cuda=False) == 1.0
    with pytest.raises(InvalidInputError, match="0 GPUs"):
        usd_per_device_hour(price(gpus=0), threads=1, cuda=True)


@pytest.mark.parametrize("wrong", [{"overlap": 1.0}, {"waiting": -0.1}, {"augmentations": 0}])
def test_impossible_factors_are_refused(wrong):
    with pytest.raises(InvalidInputError, match=next(iter(wrong))):
        Factors(**wrong)


@pytest.mark.parametrize("wrong", [{"area_km2": 0.0}, {"revisits": -1.0}, {"usd_per_hour": 0.0}])
def test_impossible_workloads_are_refused(wrong):
    with pytest.raises(InvalidInputError, match="want more than 0"):
        project((), factors=PLAIN, cuda=True, **wrong)


def test_a_projection_is_a_table_of_its_own():
    found = project(((CASE, Result(images_per_s=604.0)),), factors=Factors(overlap=0.5), usd_per_hour=3.11, cuda=True)
    tables = show.projection_tables(found)
    assert [table.row_count for table in tables] == [5, 5]
    assert list(tables[0].columns[2].cells)[:2] == ["1,840", "7,358"]
    assert show.to_json(projections=found)["projections"][0]["lines"][0]["hours"] == found[0].lines[0].hours
