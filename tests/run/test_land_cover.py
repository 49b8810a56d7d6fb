"""The map against the simulated truth, and the control that shows the score means something."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.run.demo import read_pair
from pipeline.run.heads import fit_probe, map_store
from tests.run.sampled import digest, part, request_of, run_request

LAND = ("encode.patch_px=4", "encode.window_px=32", "encode.overlap_px=8", "run.encoder_threads=auto")


@pytest.fixture(scope="module")
def mapped(sample, tmp_path_factory):
    """(folder, probe file, published) on the sample."""
    folder = tmp_path_factory.mktemp("land") / "out"
    settings = request_of(sample, folder, *LAND)
    run_request(settings)
    _, report, head = fit_probe(str(folder), str(sample.labels), column="class")
    return folder, head, map_store(str(folder), head, name="landcover"), report


def test_the_map_is_right_where_a_clear_view_existed(sample, mapped):
    published = mapped[2]
    right = total = 0
    for path in published.maps:
        found, truth = read_pair(path, sample)
        both = (found >= 0) & (truth >= 0)
        right += (found[both] == truth[both]).sum()
        total += both.sum()
    assert total > 50_000
    assert right / total >= 0.9


def test_shuffled_labels_give_chance(mapped):
    report = mapped[3]
    assert report.folds >= 2
    assert report.balanced_accuracy >= 0.85
    assert report.control_balanced_accuracy <= report.chance + 0.15


def test_a_map_made_in_the_same_pass_equals_the_one_made_from_the_store(sample, mapped, tmp_path):
    import rasterio

    folder, head, published, _ = mapped
    settings = request_of(
        sample, tmp_path / "out", *LAND,
        maps=({"name": "landcover", "head": head},),
    )  # fmt: skip
    _, outcome = run_request(settings, pictures=True)
    assert len(outcome.published.maps) == len(published.maps) > 0
    for mine, other in zip(sorted(outcome.published.maps), sorted(published.maps), strict=True):
        with rasterio.open(mine) as a, rasterio.open(other) as b:
            np.testing.assert_array_equal(a.read(), b.read())
            assert a.nodata == 255
            assert a.overviews(1)
            assert a.colormap(1) == b.colormap(1)
    embeddings = {k: v for k, v in digest(tmp_path / "out").items() if "/embeddings/c/" in k}
    assert embeddings.items() <= digest(folder).items()


def test_the_probe_is_refused_on_another_store(sample, mapped, tmp_path):
    from pipeline.errors import InvalidInputError

    settings = request_of(
        sample,
        tmp_path / "out",
        "end=2024-05-01",
        bbox=part(sample.bbox, 0.4, 0.4, 0.42, 0.42),
        model="random:v1.2-toy:8",
    )
    run_request(settings)
    with pytest.raises(InvalidInputError, match="fit a probe on this store"):
        map_store(str(tmp_path / "out"), mapped[1])


def test_the_probe_file_is_json_without_pickle(mapped):
    data = json.loads(Path(mapped[1]).read_text())
    assert data["trained"] is False
