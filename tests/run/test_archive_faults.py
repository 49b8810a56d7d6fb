"""Whole runs against archives that throttle, forget tokens and lose files: the same bytes, or the truth about it."""

from __future__ import annotations

import json
import logging
import pickle
import shutil
from collections import Counter
from pathlib import Path

import pytest

from pipeline import api as pipeline_api
from pipeline.account import ledger
from pipeline.account.fold import fold
from pipeline.read.tiles import open_tiles
from pipeline.run.folder import access_of
from pipeline.types import Reason
from pipeline.write import store
from tests.run.archive import REMOTE, archive
from tests.run.sampled import digest, request_of, run_request
from tests.servers.ranges import Fault, Sas


@pytest.fixture(scope="module")
def undisturbed(sample, tmp_path_factory):
    """Four tiles from local files: what every run below must give."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    plan, outcome = run_request(request_of(sample, out))
    assert (len(plan.tasks), outcome.exit_code) == (4, 0)
    return out


def remote_request(sample, out, api, *overrides):
    return request_of(sample, out, *REMOTE, *overrides, inputs={"catalog": api.url, "allow_private_hosts": True})


def network_of(out):
    return dict(fold(ledger.read(out), winners=()).network)


def test_throttled_ranges_and_tokens_that_expire_mid_run_change_no_byte(sample, undisturbed, tmp_path, monkeypatch):
    out, sas = tmp_path / "out", Sas(life_s=3600)
    monkeypatch.setattr("pipeline.run.reading.cache_for", lambda _px: None)  # every tile asks the archive
    expired = []

    def at(stage, _tile):
        if stage == "read" and not expired:
            expired.append(len(sas.issued))
            sas.advance(3 * 3600)  # every token issued so far is refused from here on

    with archive(sample, monkeypatch, http_faults=[Fault(code=503, every=20, ranges=True)], sas=sas) as (api, files, _):
        _, outcome = run_request(remote_request(sample, out, api), at=at)
        served = files.counts()
    assert (outcome.exit_code, outcome.computed, outcome.degraded) == (0, 4, 0)
    assert digest(out) == digest(undisturbed)
    assert expired
    assert len(sas.issued) > expired[0]
    network = network_of(out)
    assert network["retries"] > 0
    assert network["requests"] > 0.3 * served["requests"]  # GDAL counts parallel ranges of one read once


def test_no_signature_is_left_anywhere(sample, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    out = tmp_path / "out"
    with archive(sample, monkeypatch, http_faults=[Fault(code=503, every=9, ranges=True)]) as (api, _, sas):
        plan, outcome = run_request(remote_request(sample, out, api), pictures=True)
        assert outcome.exit_code == 0
        tree = open_tiles(plan, access=access_of(plan))
        graph = b"".join(
            pickle.dumps(dict(node.to_dataset()["sentinel2_l2a"].__dask_graph__())) for node in tree.leaves
        )
        signatures = [signature for _, signature in sas.issued]
    assert signatures
    texts = {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    texts |= {"the log": caplog.text.encode(), "the Dask graph": graph}
    assert len(texts) > 20
    canaries = [
        b"sig=",
        b"sig%",
        *(s.encode() for s in signatures),
        *(s.split("/")[0].encode() + b"/" for s in signatures),
    ]
    leaks = [(name, canary) for name, text in texts.items() for canary in canaries if canary in text]
    assert not leaks


def copied(sample, tmp_path):
    """(folder, catalogue, items) of a copy of the sample that may be damaged."""
    folder = tmp_path / "sample"
    shutil.copytree(sample.folder, folder)
    catalog = folder / Path(sample.catalog).name
    return folder, catalog, json.loads(catalog.read_text())["features"]


def test_a_scene_whose_file_is_gone_is_replaced_recorded_and_retried_by_the_next_run(sample, undisturbed, tmp_path):
    folder, catalog, items = copied(sample, tmp_path)
    used = Counter(i for r in _receipts(undisturbed) for s in r.sources for i in s.selected[:1]).most_common(1)[0][0]
    gone = folder / next(i for i in items if i["id"] == used)["assets"]["B04"]["href"]
    kept = gone.read_bytes()
    gone.unlink()
    out = tmp_path / "out"
    plan, outcome = run_request(request_of(sample, out, inputs={"catalog": str(catalog)}))
    assert outcome.degraded > 0
    assert (outcome.exit_code, outcome.too_degraded) == (65, True)  # more than a fifth of four tiles
    degraded = [r for r in _receipts(out) if r.status == "degraded"]
    assert all(used in {i for s in r.sources for i in s.skipped} for r in degraded)
    gone.write_bytes(kept)
    again = pipeline_api.run(plan, pictures=False)
    assert (again.computed, again.degraded, again.exit_code) == (len({r.tile_id for r in degraded}), 0, 0)
    assert digest(out) == digest(undisturbed)


def _receipts(out):
    from pipeline.write.commit import Commits

    return tuple(Commits(out).receipts())


def test_a_hole_that_an_unreadable_scene_leaves_is_nodata_with_its_reason(sample, small_bbox, tmp_path):
    folder, catalog, items = copied(sample, tmp_path)
    for item in items:
        (folder / item["assets"]["B08"]["href"]).write_bytes(b"not a raster")
    out = tmp_path / "out"
    _, outcome = run_request(request_of(sample, out, bbox=small_bbox, inputs={"catalog": str(catalog)}))
    assert outcome.exit_code == 65
    reasons = store.open_store(out / "store.zarr")["reason"].to_numpy()
    assert (reasons == Reason.READ_FAILED).any()
    assert not (reasons == Reason.NO_OBSERVATION).any()


def test_the_same_product_in_a_second_catalogue_stands_in_without_degrading(sample, undisturbed, tmp_path):
    folder, catalog, items = copied(sample, tmp_path)
    for item in items:
        (folder / item["assets"]["B03"]["href"]).unlink()
    out = tmp_path / "out"
    settings = request_of(sample, out, inputs={"catalog": f"{catalog},{sample.catalog}"})
    _, outcome = run_request(settings)
    assert (outcome.exit_code, outcome.degraded) == (0, 0)
    assert digest(out) == digest(undisturbed)
    assert any(
        "alternate" in note or "catalogue" in note for r in _receipts(out) for s in r.sources for note in s.notes
    )
