"""Opening files: what is allowed, signing, retries, and that no token leaks."""

from __future__ import annotations

import logging
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from files import scene_of, write_cog
from range_server import serving

from pipeline.errors import DataError, InvalidInputError
from pipeline.read.access import GDAL_SETTINGS, Access, PlanetaryComputer, redact
from pipeline.read.windows import read_native
from pipeline.types import Asset, Box

BOX = Box(zone=32, res_m=10, row=-550_000, col=40_000, height=200, width=200)
VALUES = np.random.default_rng(1).integers(1, 9000, BOX.shape).astype(np.uint16)
CANARY = "canary4711secret"
FAST = tuple({**dict(GDAL_SETTINGS), "GDAL_HTTP_MAX_RETRY": "3", "GDAL_HTTP_RETRY_DELAY": "0.02"}.items())
HTTP = Access(allow_private=True, gdal=FAST)


class Tokens:
    """Signs like the real one: one cached token per process, a fresh one after ``forget``."""

    def __init__(self, *, good_after: int = 0) -> None:
        self.issued = self.signed = 0
        self.good_after = good_after
        self._cached = ""

    def sign(self, href: str) -> str:
        self.signed += 1
        if not self._cached:
            time.sleep(0.02)  # a window for the race
            self.issued += 1
            self._cached = CANARY if self.issued > self.good_after else f"expired{CANARY}"
        return f"{href}?sig={self._cached}"

    def forget(self, href: str) -> None:
        self._cached = ""


@pytest.fixture(name="server")
def _server(tmp_path):
    write_cog(tmp_path / "b.tif", VALUES, box=BOX)
    with serving(tmp_path) as server:
        yield server


def read(server, access, name="b.tif", *, sign=False, box=BOX):
    asset = Asset(band="B02", href=server.url(name))
    return read_native(scene_of("S", asset, sign=sign), asset, box=box, access=access)


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


def test_the_token_is_fetched_once_for_many_threads(server):
    server.tokens = {CANARY}
    access = replace(HTTP, signer=Tokens())
    with ThreadPoolExecutor(16) as pool:
        got = list(pool.map(lambda _: read(server, access, sign=True), range(32)))
    assert access.signer.issued == 1
    assert all(np.array_equal(g, VALUES) for g in got)


def test_an_expired_token_is_replaced_once(server):
    server.tokens = {CANARY}
    access = replace(HTTP, signer=Tokens(good_after=1))
    np.testing.assert_array_equal(read(server, access, sign=True), VALUES)
    assert access.signer.issued == 2


def test_scenes_that_need_no_token_are_not_signed(server):
    access = replace(HTTP, signer=Tokens())
    read(server, access, sign=False)
    assert access.signer.signed == 0


def test_assets_stay_unsigned(server):
    server.tokens = {CANARY}
    asset = Asset(band="B02", href=server.url("b.tif"))
    with replace(HTTP, signer=Tokens()).open(asset, sign=True) as dataset:
        assert dataset.shape == BOX.shape
    assert asset.href == server.url("b.tif")


def error_chain(err):
    while err is not None:
        yield str(err) + repr(err)
        err = err.__cause__ or err.__context__


def test_no_token_in_errors_and_logs(server, caplog):
    caplog.set_level(logging.DEBUG)
    server.tokens = {CANARY}
    server.fail_first["/b.tif"] = 1000
    (server.folder / "text.tif").write_text("GDAL names the whole URL when it does not know the format")
    access = replace(HTTP, signer=Tokens())
    for name in ("b.tif", "gone.tif", "text.tif"):
        with pytest.raises(DataError) as caught:
            read(server, access, name, sign=True)
        assert all(CANARY not in text for text in error_chain(caught.value))
    assert any(CANARY in path for path, _ in server.requests)
    assert CANARY not in caplog.text


def test_opening_a_signed_file_that_fails_leaks_no_token_either(server):
    server.tokens = set()
    access = replace(HTTP, signer=Tokens())
    with pytest.raises(DataError) as caught, access.open(Asset(band="B02", href=server.url("b.tif")), sign=True):
        pass
    assert all(CANARY not in text for text in error_chain(caught.value))


@pytest.mark.parametrize(
    "href",
    [
        "http://127.0.0.1/x.tif",
        "http://localhost:80/x.tif",
        "http://[::1]/x.tif",
        "http://2130706433/x.tif",
        "http://0x7f.1/x.tif",
        "http://169.254.169.254/latest",
        "http://0.0.0.0/x.tif",
        "http://LOCALHOST./x.tif",
        "http://[::ffff:127.0.0.1]/x.tif",
        "http://metadata.google.internal/x",
        "http://[fe80::1%25eth0]/x.tif",
    ],
)
def test_this_machine_and_its_link_are_refused(href):
    with pytest.raises(InvalidInputError, match="loopback"):
        Access().check(href)


@pytest.mark.parametrize(
    "href",
    [
        "/vsicurl/http://example.org/x.tif",
        "file:///vsizip/x.zip/a.tif",
        "//vsis3/bucket/x.tif",
        "ftp://h.org/x.tif",
        "http://user:pw@h.org/x.tif",
        "http://h.org/a b.tif",
        "http:///x.tif",
        "gopher://h.org/x",
        "vrt:///x.tif",
        "file:///%76sicurl/http://h.org/x.tif",
    ],
)
def test_detours_and_foreign_schemes_are_refused_even_where_local_files_are_allowed(href):
    with pytest.raises(InvalidInputError):
        Access(allow_local=True, allow_private=True).check(href)


@pytest.mark.parametrize("href", ["/data/x.tif", "data/x.tif", "file:///data/x.tif", "<VRTDataset></VRTDataset>"])
def test_local_files_are_refused_unless_asked_for(href):
    with pytest.raises(InvalidInputError, match="local file"):
        Access().check(href)
    assert Access(allow_local=True).check(href) == "file"


def test_hosts_can_be_limited():
    access = Access(hosts=(".blob.core.windows.net", "bucket"))
    assert access.check("https://a.blob.core.windows.net/x.tif") == "https"
    assert access.check("s3://bucket/x.tif") == "s3"
    for href in ("https://blob.core.windows.net.evil.org/x.tif", "s3://other/x.tif"):
        with pytest.raises(InvalidInputError, match="not among the allowed"):
            access.check(href)


def test_a_vrt_that_points_at_a_local_file_is_not_opened(tmp_path):
    target = write_cog(tmp_path / "secret.tif", VALUES, box=BOX)
    trap = tmp_path / "trap.tif"
    trap.write_text(
        f'<VRTDataset rasterXSize="200" rasterYSize="200"><VRTRasterBand dataType="UInt16" band="1"><SimpleSource>'
        f"<SourceFilename>{target}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    asset = Asset(band="B02", href=str(trap))
    with pytest.raises(DataError):
        read_native(scene_of("S", asset), asset, box=BOX, access=Access(allow_local=True))


def test_the_users_environment_wins_over_our_settings(monkeypatch):
    monkeypatch.setenv("GDAL_HTTP_TIMEOUT", "7")
    env = Access()._env("https", again=False)
    assert "GDAL_HTTP_TIMEOUT" not in env
    assert env["GDAL_DISABLE_READDIR_ON_OPEN"] == "EMPTY_DIR"


def test_sixteen_threads_read_the_same_pixels(tmp_path):
    asset = Asset(band="B02", href=str(write_cog(tmp_path / "b.tif", VALUES, box=BOX)))
    access, gate = Access(allow_local=True), threading.Barrier(16)

    def work(_):
        gate.wait()
        return [read_native(scene_of("S", asset), asset, box=BOX, access=access) for _ in range(4)]

    with ThreadPoolExecutor(16) as pool:
        assert all(np.array_equal(a, VALUES) for got in pool.map(work, range(16)) for a in got)


def test_access_travels_to_another_process():
    access = Access(allow_local=True, hosts=("h",))
    assert pickle.loads(pickle.dumps(access)).hosts == ("h",)


def test_redaction_keeps_what_helps():
    text = "'/vsicurl/https://u:p@h.org/a.tif?sv=1&sig=abc%3D' not recognized: HTTP 403"
    assert redact(text) == "'/vsicurl/https://h.org/a.tif' not recognized: HTTP 403"


def test_the_real_signer_adds_the_cached_token_and_forgets_it():
    from planetary_computer.sas import TOKEN_CACHE, SASToken
    from planetary_computer.settings import Settings

    key = f"{Settings.get().sas_url}/fakeaccount4711/container"
    expiry = datetime.now(UTC) + timedelta(hours=1)
    TOKEN_CACHE[key] = SASToken(**{"msft:expiry": expiry, "token": "sig=abc"})
    signer, href = PlanetaryComputer(), "https://fakeaccount4711.blob.core.windows.net/container/a/b.tif"
    assert signer.sign(href) == f"{href}?sig=abc"
    signer.forget(href)
    assert key not in TOKEN_CACHE


def test_hosts_that_need_no_token_are_left_alone():
    assert PlanetaryComputer().sign("https://example.org/b.tif") == "https://example.org/b.tif"
