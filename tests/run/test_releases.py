"""Every kind of release end to end: the same ground gives the same codes from two areas, tilings and kinds of crew."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from pipeline import api
from pipeline.errors import ConfigError
from pipeline.types import NODATA_CODE, Reason
from tests.run.sampled import digest, part, request_of, run_request

SHORT = ("encode.window_px=auto", "encode.overlap_px=auto")
END = "2024-05-31"
RELEASES = {
    "v1": ("random:v1-toy:0", "mean", 64, "centre"),
    "v1.1": ("random:v1.1-toy:0", "mean", 64, "centre"),
    "v1.3": ("random:v1.3-toy:1", "student", 16, "neighbourhood"),
}


def codes_of(folder):
    return api.open_store(str(folder)).isel(time=0).load()


@pytest.mark.parametrize("version", list(RELEASES))
def test_a_release_writes_the_same_codes_whatever_the_area_and_the_tile(sample, tmp_path, version):
    model, output, dims, stitch = RELEASES[version]
    west = part(sample.bbox, 0.30, 0.42, 0.45, 0.52)
    wide = part(sample.bbox, 0.30, 0.42, 0.60, 0.52)
    plan, outcome = run_request(request_of(sample, tmp_path / "a", *SHORT, model=model, end=END, bbox=west))
    assert outcome.exit_code == 0
    assert (plan.model.version, plan.model.output, plan.model.dims, plan.grid.stitch) == (version, output, dims, stitch)
    run_request(request_of(sample, tmp_path / "b", *SHORT, "store.tile_px=512", model=model, end=END, bbox=wide))
    a, b = codes_of(tmp_path / "a"), codes_of(tmp_path / "b")
    x, y = np.intersect1d(a.x, b.x), np.intersect1d(a.y, b.y)[::-1]
    a, b = a.sel(x=x, y=y), b.sel(x=x, y=y)
    both = ((a.reason == Reason.VALID) & (b.reason == Reason.VALID)).values
    assert both.sum() > 60_000
    assert a.sizes["band"] == dims
    assert (a.embeddings.values[:, both] == b.embeddings.values[:, both]).all()
    assert (a.embeddings.values[:, both] != NODATA_CODE).all()
    assert np.ptp(a.embeddings.values[:, both].astype(int), axis=1).min() > 10  # no dimension is flat


def test_a_plan_of_another_version_of_the_algorithm_is_refused(sample, small_bbox, tmp_path):
    plan = api.plan(request_of(sample, tmp_path / "out", bbox=small_bbox, end=END))
    older = dataclasses.replace(plan, recipe="0" * 32)
    with pytest.raises(ConfigError, match="another version of earthpress"):
        api.run(older, pictures=False)


def test_encoder_processes_write_the_bytes_of_threads(sample, tmp_path):
    bbox = part(sample.bbox, 0.30, 0.42, 0.40, 0.50)
    for crew in ("threads", "processes"):
        settings = request_of(
            sample, tmp_path / crew / "out", *SHORT, "run.encoder_threads=2", f"run.encoders={crew}", bbox=bbox, end=END
        )
        _, outcome = run_request(settings)
        assert outcome.exit_code == 0
    assert digest(tmp_path / "threads/out") == digest(tmp_path / "processes/out")
