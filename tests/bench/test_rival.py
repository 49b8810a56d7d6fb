"""The duel with the reference package."""

from __future__ import annotations

import sys

import pytest
import torch

from pipeline.bench import encoder, rival
from pipeline.bench.rows import Request
from pipeline.errors import ConfigError

CPU = torch.device("cpu")


def duel(size="toy", version="v1.2", precision="fp32", shapes="T2x16/8", batch=2, sensors="sentinel2_l2a"):
    request = Request.parse(
        versions=version, sizes=size, precisions=precision, compiled="off", shapes=shapes, attention="sdpa",
        batch=batch, sensors=sensors,
    )  # fmt: skip
    return rival.duels_of(next(encoder.cases(request, CPU, threads=1)), (False,))[0]


def test_a_rival_that_is_ours_is_as_fast_and_gives_the_same():
    row = rival.attempt(
        duel(shapes="T1x64/8", batch=8), encoder.Lab(CPU), seconds=0.3, rival=lambda _d, _m, built, _p: built.run
    )
    assert row.error == ""
    assert row.difference == 0
    assert 0.5 < row.ratio < 2  # pairs on a busy machine scatter


def test_the_ratio_says_how_many_times_faster_ours_is():
    def slow(_duel, _model, built, _place):
        def call():
            for _ in range(3):
                field = built.run()
            return field

        return call

    row = rival.attempt(duel(shapes="T1x64/8", batch=8), encoder.Lab(CPU), seconds=0.3, rival=slow)
    assert 2 < row.ratio < 4.5
    assert row.ratio == pytest.approx(row.images_per_s / row.rival_images_per_s, rel=0.6)  # medians of each alone


CASES = [
    ({"version": "v1"}, 1e-5),
    ({"version": "v1.1"}, 1e-5),
    ({"version": "v1.2", "shapes": "T2x16/4"}, 1e-5),
    ({"version": "v1.2", "precision": "autocast"}, 0.03),
    ({"version": "v1.2", "precision": "bf16"}, 0.03),
    ({"version": "v1", "sensors": "sentinel2_l2a,sentinel1"}, 1e-5),
]


@pytest.mark.parametrize(("options", "limit"), CASES, ids=lambda v: "-".join(v.values()) if isinstance(v, dict) else "")
def test_the_reference_computes_the_same_field(options, limit):
    pytest.importorskip("olmoearth_pretrain_minimal")
    row = rival.attempt(duel(size="nano", batch=1, **options), encoder.Lab(CPU), seconds=0.0)
    assert row.error == ""
    assert row.difference < limit


@pytest.mark.slow
def test_the_reference_s_location_tokens_are_compared_for_v1_3():
    row = rival.attempt(duel(size="base", version="v1.3", batch=1), encoder.Lab(CPU), seconds=0.0)
    assert row.error == ""
    assert row.difference < 1e-5


def test_the_reference_may_use_its_weights_in_bfloat16_only_where_it_does_not_resize():
    whole, resized = (duel(precision="bf16", shapes=shape) for shape in ("T1x16/8", "T1x16/4"))
    assert [d.rival_precision for d in rival.duels_of(_case(whole), (False,))] == ["autocast", "bf16"]
    assert [d.rival_precision for d in rival.duels_of(_case(resized), (False,))] == ["autocast"]
    assert len(rival.duels_of(_case(whole), (False, True))) == 4


def _case(found):
    return encoder.Case(**{name: getattr(found, name) for name in encoder.Case.__dataclass_fields__})


def test_pairs_are_kept_and_not_measured_again(tmp_path):
    pytest.importorskip("olmoearth_pretrain_minimal")
    request = Request.parse(
        versions="v1.2", sizes="nano", precisions="fp32", compiled="off", shapes="T1x8/8", attention="sdpa", batch=1
    )
    options = {"device": "cpu", "seconds": 0.0, "folder": tmp_path, "rival_compiled": (False,)}
    ((_, before),) = rival.bench(request, **options)
    ((_, after),) = rival.bench(request, **options)
    assert before.error == ""
    assert after.measured == before.measured
    assert [path.name.endswith("_vs_reference.csv") for path in tmp_path.glob("*.csv")] == [True]


def test_a_missing_package_is_told_with_the_way_out(monkeypatch):
    monkeypatch.setitem(sys.modules, rival.MODULE, None)
    with pytest.raises(ConfigError, match="pip install olmoearth-pretrain-minimal"):
        rival.require()
