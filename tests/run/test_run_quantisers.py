"""Quantisers end to end: plan, run, store, decoded as the plain definition says, in 10 m pixels and in tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from pipeline import api, codes
from pipeline.plan.estimate import Vector
from pipeline.run import ground, prepare, seam_report
from pipeline.run.stored import Stored
from pipeline.types import Reason
from pipeline.write.commit import Commits
from tests.quantisers import calibration_of
from tests.run.sampled import part, request_of, run_request
from tests.run.test_stitch_settings import card

END = "2024-05-31"
"""Two periods."""
TOKENS = "encode.resolution=token"


@pytest.fixture(scope="module")
def run_with(sample, tmp_path_factory):
    """Run one block's area with a quantiser; runs are kept: (plan, folder)."""
    kept = {}

    def run(quantiser):
        if quantiser not in kept:
            folder = tmp_path_factory.mktemp("quantiser") / "out"
            request = request_of(
                sample, folder, TOKENS, f"store.quantiser={quantiser}", "store.true_colour=false", end=END,
                bbox=part(sample.bbox, 0.3, 0.3, 0.5, 0.5),
            )  # fmt: skip
            plan, outcome = run_request(request)
            assert outcome.exit_code == 0
            kept[quantiser] = plan, folder
        return kept[quantiser]

    return run


def vectors_of(plan):
    """(band, pixel) decoded vectors of all tiles, and what was stored of them."""
    held, found, kept = Stored.of(plan), [], []
    for tile, _ in ground.committed(plan):
        valid = held.layer(tile, "reason") == Reason.VALID
        found.append(held.vectors(tile)[:, valid])
        kept.append(held.coded(tile).codes[:, valid])
    return np.concatenate(found, axis=1), np.concatenate(kept, axis=1)


@pytest.mark.parametrize("quantiser", ["per_pixel", "float16"])
def test_a_store_decodes_to_the_vectors_of_the_model(run_with, quantiser):
    exact, _ = vectors_of(run_with("float32")[0])
    plan, folder = run_with(quantiser)
    assert plan.calibration.quantiser == quantiser
    assert plan.calibration.source
    found, stored = vectors_of(plan)
    assert np.isfinite(exact).all()
    again = codes.encode(exact, plan.calibration)
    np.testing.assert_array_equal(stored, again.codes)
    np.testing.assert_array_equal(found, codes.decode(again, plan.calibration))
    data = api.open_store(str(folder))
    line = data.embeddings.attrs["dequantise"]
    values = eval(line, {"ds": data, "np": np, "xr": xr}).transpose("time", "band", "y", "x")
    floats = api.open_store(str(folder), dequantise=True).embeddings.transpose("time", "band", "y", "x")
    np.testing.assert_allclose(values, floats, rtol=1e-6)
    assert np.isfinite(values.values).all(axis=1).sum() == found.shape[1]


@pytest.mark.parametrize("quantiser", ["per_pixel", "float16", "float32"])
def test_receipts_say_what_was_lost_and_how_much_was_written(run_with, quantiser):
    plan, _ = run_with(quantiser)
    receipts = Commits(Path(plan.output)).receipts()
    assert receipts
    for receipt in receipts:
        assert receipt.clipped_shards == ()
        assert (receipt.rms_error == 0) == (quantiser == "float32")
        assert receipt.rms_error < 0.01
    raw = sum(receipt.valid_px for receipt in receipts) * Vector.of(plan.calibration).nbytes
    written = sum(receipt.usage.bytes_written for receipt in receipts)
    assert 0.4 * raw < written < 1.1 * raw


def test_seams_are_those_of_the_vectors(run_with):
    scores = [
        seam_report.measured(plan, ground.committed(plan)).scores
        for plan, _ in (run_with(name) for name in ("float32", "per_pixel"))
    ]
    assert [s.name for s in scores[0]] == [s.name for s in scores[1]]
    for exact, coded in zip(*scores, strict=True):
        assert coded.score == pytest.approx(exact.score, rel=0.02)


def test_automatic_resolution_counts_what_is_stored_not_what_the_model_writes(sample, tmp_path):
    base = replace(card(), dims=768)
    settings = request_of(sample, tmp_path)
    made = {
        bands: prepare.grid_of(
            settings, base, periods=2, tile_px=256, calibration=calibration_of("pca", 768, bands=bands), device="cpu"
        )[0]
        for bands in (64, 256)
    }
    assert {bands: spec.token_px for bands, spec in made.items()} == {64: 1, 256: settings.encode.patch_px}
    whole, _ = prepare.grid_of(
        settings, base, periods=2, tile_px=256, calibration=calibration_of("linear", 768), device="cpu"
    )
    assert whole.token_px == settings.encode.patch_px
