"""Traffic: what is asked for how often, what survives faults, what is counted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace

import numpy as np
import pytest
from files import write_cog
from range_server import serving
from remote_files import BOX, FAST, HTTP, VALUES, read

from pipeline.errors import DataError
from pipeline.read import gdal
from pipeline.read.access import Counts
from pipeline.types import Box
from tests.servers.ranges import Fault

LARGE = Box(zone=32, res_m=10, row=-550_000, col=40_000, height=1536, width=1536)
PIXELS = np.random.default_rng(2).integers(1, 9000, LARGE.shape).astype(np.uint16)
PATIENT = (*FAST, ("GDAL_HTTP_MAX_RETRY", "8"))


@pytest.fixture(name="folder", scope="module")
def _folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("network")
    large = write_cog(folder / "0.tif", PIXELS, box=LARGE)
    for number in range(1, 8):
        (folder / f"{number}.tif").hardlink_to(large)
    write_cog(folder / "b.tif", VALUES, box=BOX)
    return folder


@pytest.fixture(name="server")
def _server(folder):
    with serving(folder) as server:
        yield server


def since(before):
    after = HTTP.counts()
    return Counts(**{f.name: getattr(after, f.name) - getattr(before, f.name) for f in fields(Counts)})


@pytest.mark.parametrize("code", [403, 503])
def test_a_file_whose_first_request_fails_is_read_on_the_second_attempt(server, code):
    server.http_faults = [Fault(code=code, nth=1)]
    before = HTTP.counts()
    np.testing.assert_array_equal(read(server, replace(HTTP, gdal=(*FAST, ("GDAL_HTTP_MAX_RETRY", "0")))), VALUES)
    assert since(before).failures == 1


def test_a_file_that_failed_once_is_read_at_the_first_attempt_later(server):
    server.http_faults = [Fault(code=403, first=2)]
    access = replace(HTTP, gdal=(*FAST, ("GDAL_HTTP_MAX_RETRY", "0")), attempts=1)
    for _ in range(2):
        with pytest.raises(DataError):
            read(server, access)
    np.testing.assert_array_equal(read(server, access), VALUES)
    asked = len(server.log)
    np.testing.assert_array_equal(read(server, access), VALUES)
    assert len(server.log) == asked


def test_threads_whose_common_file_fails_recover_without_stalling(server):
    server.http_faults = [Fault(code=403, first=4)]
    start = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda _: read(server, replace(HTTP, attempts=6)), range(32)))
    assert all(np.array_equal(values, VALUES) for values in got)
    assert time.monotonic() - start < 10


def test_a_second_window_asks_for_no_header_again(server):
    top = replace(LARGE, height=512, width=512)
    below = replace(top, row=top.row + 1024)
    read(server, HTTP, "0.tif", box=top)
    first = len(server.log)
    read(server, HTTP, "0.tif", box=below)
    again = server.log[first:]
    assert {entry.method for entry in again} == {"GET"}
    assert not any(entry.range.startswith("bytes=0-") for entry in again)
    assert len(again) < first


def test_five_percent_of_503_cost_no_file(server):
    server.http_faults = [Fault(code=503, every=20)]
    access = replace(HTTP, gdal=PATIENT)
    boxes = [replace(LARGE, row=LARGE.row + 512 * k, height=512) for k in range(3)]
    jobs = [(f"{number}.tif", box) for number in range(8) for box in boxes]
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda job: read(server, access, job[0], box=job[1]), jobs))
    for (_, box), values in zip(jobs, got, strict=True):
        start = box.row - LARGE.row
        np.testing.assert_array_equal(values, PIXELS[start : start + 512])
    assert sum(entry.status == 503 for entry in server.log) >= 2


@pytest.mark.parametrize("kind", ["truncate", "reset"])
def test_a_broken_answer_is_never_taken_for_pixels(server, kind):
    server.http_faults = [Fault(kind=kind, ranges=True, nth=2)]
    np.testing.assert_array_equal(read(server, HTTP, "0.tif", box=LARGE), PIXELS)


def test_counted_requests_and_bytes_are_those_of_the_server(server):
    before = HTTP.counts()
    box = replace(LARGE, height=512)  # one run of blocks: one request
    read(server, HTTP, "1.tif", box=box)
    got = since(before)
    assert (got.requests, got.bytes) == (len(server.log), sum(entry.bytes for entry in server.log))
    assert (got.retries, got.failures) == (0, 0)


def test_ranges_that_are_asked_for_at_once_count_once_and_all_their_bytes(server):
    before = HTTP.counts()
    read(server, HTTP, "2.tif", box=replace(LARGE, width=512))
    got = since(before)
    assert got.bytes == sum(entry.bytes for entry in server.log)
    assert got.requests <= len(server.log)


def test_retries_and_failures_are_counted(server):
    server.http_faults = [Fault(code=503, first=2)]
    before = HTTP.counts()
    read(server, HTTP)
    got = since(before)
    assert (got.retries, got.failures) == (2, 0)
    assert got.requests == len(server.log)
    server.http_faults = [Fault(code=404)]
    before = HTTP.counts()
    with pytest.raises(DataError):
        read(server, HTTP, "gone.tif")
    assert (since(before).retries, since(before).failures) == (1, 2)


def test_counts_survive_a_full_book(server, monkeypatch):
    read(server, HTTP)
    before = HTTP.counts()
    monkeypatch.setattr(gdal, "MAX_STATS_BYTES", 0)
    assert HTTP.counts() == HTTP.counts() == before
    read(server, HTTP, "3.tif", box=LARGE)
    assert since(before).requests > 0
    assert HTTP.counts() == HTTP.counts()


COUNT = """
import json, sys
from dataclasses import asdict
sys.path[:0] = [{tests!r}]
from remote_files import HTTP, read_href
read_href({href!r}, HTTP)
print(json.dumps(asdict(HTTP.counts())))
"""


def test_without_gdals_statistics_attempts_are_counted(server):
    script = COUNT.format(tests=os.path.dirname(__file__), href=server.url("b.tif"))  # noqa: PTH120
    environment = os.environ | {gdal.STATS_OPTION: "NO"}
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, env=environment, timeout=60
    )
    assert json.loads(done.stdout) == {"requests": 1, "bytes": 0, "retries": 0, "failures": 0, "tokens": 0}


def test_the_statistics_come_from_rasterios_own_gdal():
    assert "rasterio" in gdal._libraries()[0]
