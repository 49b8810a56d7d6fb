"""A store of one vector per token, end to end: run, grow, open, probe, map, pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio

from pipeline import api
from pipeline.run.heads import fit_probe, map_store
from pipeline.types import NODATA_CODE, Reason
from tests.run.sampled import digest, part, request_of, run_request

TOKENS = ("encode.resolution=token",)
SIDE_M = 80  # of a token: patch 8


@pytest.fixture(scope="module")
def made(sample, small_bbox, tmp_path_factory):
    """(plan, outcome, folder) of a store of tokens."""
    folder = tmp_path_factory.mktemp("tokens") / "out"
    plan, outcome = run_request(request_of(sample, folder, *TOKENS, bbox=small_bbox), pictures=True)
    assert outcome.exit_code == 0
    return plan, outcome, folder


@pytest.fixture(scope="module")
def fine(sample, small_bbox, tmp_path_factory):
    """The same ground in a store of 10 m pixels."""
    folder = tmp_path_factory.mktemp("pixels") / "out"
    run_request(request_of(sample, folder, bbox=small_bbox))
    return opened(folder)


def opened(folder):
    return api.open_store(str(folder)).isel(time=0).load()


def same_where_both_have_data(one, other):
    """Compare two stores by coordinates; returns the number of tokens compared."""
    a, b = (ds[["embeddings", "reason", "n_obs"]].drop_vars("spatial_ref") for ds in (one, other))
    x, y = np.intersect1d(a.x, b.x), np.intersect1d(a.y, b.y)[::-1]
    a, b = a.sel(x=x, y=y), b.sel(x=x, y=y)
    both = (a.reason != Reason.NOT_REQUESTED) & (b.reason != Reason.NOT_REQUESTED)
    for name in ("embeddings", "reason", "n_obs"):
        assert ((a[name] == b[name]) | ~both).all(), name
    return int(both.sum())


def test_the_store_has_one_vector_per_token_where_any_pixel_has_one(made, fine):
    plan, outcome, folder = made
    tokens = opened(folder)
    assert plan.grid.token_px == 8
    assert tokens.attrs["earthpress"]["recipe"] != fine.attrs["earthpress"]["recipe"]
    assert tokens.rio.resolution() == (SIDE_M, -SIDE_M)
    assert tokens.rio.bounds() == fine.rio.bounds()
    blocks = (fine.sizes["y"] // 8, 8, fine.sizes["x"] // 8, 8)
    valid = (fine.reason.values == Reason.VALID).reshape(blocks).any(axis=(1, 3))
    np.testing.assert_array_equal(tokens.reason.values == Reason.VALID, valid)
    np.testing.assert_array_equal((tokens.embeddings.values != NODATA_CODE).any(axis=0), valid)
    assert (tokens.n_obs.values >= fine.n_obs.values.reshape(blocks).max(axis=(1, 3))).all()
    assert outcome.valid_px == valid.sum()


def test_pixels_of_the_same_ground_lie_around_the_tokens(made, fine):
    tokens = opened(made[2])
    inner = fine.embeddings.values.reshape(-1, fine.sizes["y"] // 8, 8, fine.sizes["x"] // 8, 8)[:, :, 3:5, :, 3:5]
    valid = tokens.reason.values == Reason.VALID
    near = np.abs(inner.astype(float).mean(axis=(2, 4)) - tokens.embeddings.values)[:, valid]
    apart = np.abs(np.diff(tokens.embeddings.values.astype(float), axis=2))[:, valid[:, 1:] & valid[:, :-1]]
    assert near.mean() < 0.3 * apart.mean()


def test_the_same_ground_has_the_same_bytes_in_another_area_and_in_larger_tiles(sample, made, tmp_path):
    beside = part(sample.bbox, 0.2, 0.3, 0.4, 0.62)
    run_request(request_of(sample, tmp_path / "out", *TOKENS, "store.tile_px=512", bbox=beside))
    assert same_where_both_have_data(opened(tmp_path / "out"), opened(made[2])) >= 2 * 32 * 32


def test_a_grown_area_equals_one_made_at_once(sample, small_bbox, made, tmp_path):
    output = tmp_path / "out"
    run_request(request_of(sample, output, *TOKENS, bbox=part(sample.bbox, 0.55, 0.3, 0.62, 0.4)))
    _, outcome = run_request(request_of(sample, output, *TOKENS, bbox=small_bbox))
    assert outcome.skipped > 0
    assert digest(output) == digest(made[2])


def test_quicklook_and_report_are_at_the_side_of_a_token(made):
    published = made[1].published
    (cog,) = [path for path in published.quicklooks if path.endswith(".tif")]
    with rasterio.open(cog) as found:
        assert found.res == (SIDE_M, SIDE_M)
        assert found.read(4).any()
    assert "one vector per 80 m" in Path(published.page).read_text(encoding="utf-8")


def test_a_probe_learns_from_tokens_and_its_map_is_right_at_most_of_them(sample, tmp_path):
    run_request(request_of(sample, tmp_path / "out", "encode.resolution=token"))
    _, report, head = fit_probe(str(tmp_path / "out"), str(sample.labels), column="class")
    assert report.balanced_accuracy > 0.8
    published = map_store(str(tmp_path / "out"), head, name="landcover")
    right = total = 0
    for path in published.maps:
        with rasterio.open(path) as found, rasterio.open(sample.truth) as truth:
            assert found.res == (SIDE_M, SIDE_M)
            classes = found.read(1)
            rows, cols = np.nonzero(classes != found.nodata)
            places = [found.xy(row, col) for row, col in zip(rows, cols, strict=True)]
            under = np.array([value[0] for value in truth.sample(places)])
        code = np.array([c.code for c in sorted(sample.classes, key=lambda c: c.name)])
        right += (code[classes[rows, cols]] == under)[under != 255].sum()
        total += (under != 255).sum()
    assert total > 4_000
    assert right / total > 0.8
