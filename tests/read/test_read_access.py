"""Opening files: attempts, errors, settings, and what an access carries along."""

from __future__ import annotations

import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from files import write_cog
from range_server import serving
from remote_files import BOX, FAST, HTTP, VALUES, Tokens, classes_of, far, read, read_href, with_tail_overviews

from pipeline.errors import DataError
from pipeline.read.access import GDAL_SETTINGS, Access, redact
from pipeline.read.gdal import driver_of, environment
from pipeline.types import Asset


@pytest.fixture(name="server")
def _server(tmp_path):
    write_cog(tmp_path / "b.tif", VALUES, box=BOX)
    with serving(tmp_path) as server:
        yield server


def test_a_remote_window_equals_the_file(server):
    np.testing.assert_array_equal(read(server, HTTP), VALUES)
    assert all(r for _, r in server.requests[1:])


def test_nothing_but_the_file_is_asked_for(server):
    read(server, HTTP)
    assert {p for p, _ in server.requests} == {"/b.tif"}


def test_throttling_is_survived_by_gdal(server):
    server.fail_first["/b.tif"] = 2
    np.testing.assert_array_equal(read(server, HTTP), VALUES)


def test_a_failed_open_is_tried_again_although_gdal_remembers_the_failure(server):
    server.fail_first["/b.tif"] = 2
    no_http_retry = replace(HTTP, gdal=(*FAST, ("GDAL_HTTP_MAX_RETRY", "0")), attempts=4)
    np.testing.assert_array_equal(read(server, no_http_retry), VALUES)


def test_lasting_throttling_is_a_data_error(server):
    server.fail_first["/b.tif"] = 1000
    with pytest.raises(
        DataError, match=r"item S, band B02: http://127.0.0.1:\d+/b.tif cannot be read after 2 attempts"
    ):
        read(server, HTTP)


def test_a_missing_file_is_a_data_error(server):
    with pytest.raises(DataError, match="item S, band B02"):
        read(server, HTTP, "gone.tif")


def test_scenes_that_need_no_token_are_not_signed(server):
    access = replace(HTTP, signer=Tokens())
    read(server, access, sign=False)
    assert access.signer.signed == 0


def settings(access, scheme="https", **changed):
    return environment(access.gdal, **({"scheme": scheme, "pays": False, "proxy": None} | changed))


@pytest.mark.parametrize("name", [name for name, _ in GDAL_SETTINGS])
def test_the_users_environment_wins_over_our_settings(monkeypatch, name):
    monkeypatch.delenv(name, raising=False)
    assert name in settings(Access())
    monkeypatch.setenv(name, "7")
    assert name not in settings(Access())


def test_a_setting_of_the_environment_reaches_gdal(server, monkeypatch):
    monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "0")
    server.fail_first["/b.tif"] = 1
    with pytest.raises(DataError):
        read(server, replace(HTTP, attempts=1))


def test_sixteen_threads_read_the_same_pixels(tmp_path):
    href = str(write_cog(tmp_path / "b.tif", VALUES, box=BOX))
    access, gate = Access(allow_local=True), threading.Barrier(16)

    def work(_):
        gate.wait()
        return [read_href(href, access) for _ in range(4)]

    with ThreadPoolExecutor(16) as pool:
        assert all(np.array_equal(a, VALUES) for got in pool.map(work, range(16)) for a in got)


def test_access_travels_to_another_process():
    access = Access(allow_local=True, hosts=("h",))
    assert pickle.loads(pickle.dumps(access)) == access


def test_redaction_keeps_what_helps():
    text = "'/vsicurl/https://u:p@h.org/a.tif?sv=1&sig=abc%3D' not recognized: HTTP 403"
    assert redact(text) == "'/vsicurl/https://h.org/a.tif' not recognized: HTTP 403"


@pytest.mark.parametrize(
    "path", ["/data/b.jp2", "/vsicurl/https://h.org/b.JP2?sig=x.tif", "/vsicurl/https://h.org/b.jp2#3"]
)
def test_the_suffix_decides_the_driver(path):
    assert driver_of(path) == "JP2OpenJPEG"
    assert driver_of(path.lower().replace("jp2", "tif")) == "GTiff"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are of POSIX systems")
def test_a_named_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "B02.tif")
    with pytest.raises(DataError, match="band B02: .* is no file but a pipe"):
        Access(allow_local=True).read(
            Asset(band="B02", href=str(tmp_path / "B02.tif")), lambda dataset: dataset.read(1), sign=False
        )


@pytest.mark.parametrize("every", [3, 4, 5])
def test_overviews_that_cannot_be_listed_are_never_done_without(tmp_path, every):
    # GDAL raises nothing when a directory cannot be read: it goes on as if the file had no overviews.
    box = with_tail_overviews(tmp_path / "SCL.tif")
    want = classes_of(str(tmp_path / "SCL.tif"), box, Access(allow_local=True))
    hasty = tuple({**dict(GDAL_SETTINGS), "GDAL_HTTP_MAX_RETRY": "0"}.items())
    access, failed = Access(allow_private=True, gdal=hasty), 0
    with far(tmp_path, "--fail-every", str(every)) as port:
        for query in range(6):  # another address, so that nothing is known of the file
            try:
                got = classes_of(f"http://127.0.0.1:{port}/SCL.tif?n={query}", box, access)
            except DataError:
                failed += 1
            else:
                np.testing.assert_array_equal(got, want)
    assert failed < 6
