"""Tokens: fetched once, renewed in time, replaced when refused, seen nowhere."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from urllib.parse import unquote

import numpy as np
import pytest
from files import write_cog
from range_server import serving
from remote_files import BOX, CANARY, HTTP, VALUES, Tokens, error_chain, read

from pipeline.errors import DataError, TransientError
from pipeline.read import signing
from pipeline.read.access import Access, PlanetaryComputer
from pipeline.read.signing import signed
from pipeline.types import Asset
from tests.servers.ranges import Fault, Sas

BLOB = "https://sentinel2l2a01.blob.core.windows.net/sentinel2-l2/32/U/b.tif"
HERE = PlanetaryComputer(hosts=("127.0.0.1",))


@pytest.fixture(autouse=True)
def _no_tokens(monkeypatch):
    monkeypatch.setattr(signing, "_TOKENS", {})
    monkeypatch.setattr(signing, "BACKOFF_S", 0.01)


@contextmanager
def archive(folder, monkeypatch, **sas):
    """A container whose files need tokens, with the service that issues them."""
    from planetary_computer.settings import Settings

    (folder / "box").mkdir(exist_ok=True)
    for name in ("box/b.tif", "box/c.tif"):
        write_cog(folder / name, VALUES, box=BOX)
    with serving(folder, sas=Sas(**sas)) as server:
        monkeypatch.setattr(Settings.get(), "sas_url", server.sas_url)
        monkeypatch.setattr(Settings.get(), "subscription_key", None)
        yield server


def test_64_signs_on_32_threads_make_one_token_request(tmp_path, monkeypatch):
    with archive(tmp_path, monkeypatch) as server:
        server.delay_s = 0.05  # a window for the race
        gate = threading.Barrier(32)

        def sign(number):
            if number < 32:
                gate.wait()
            return signed(PlanetaryComputer(), BLOB.replace("b.tif", f"{number}.tif"))

        with ThreadPoolExecutor(32) as pool:
            urls = list(pool.map(sign, range(64)))
        assert len(server.sas.issued) == len(server.log) == 1
        assert len({url.partition("?")[2] for url in urls}) == 1


def test_each_container_has_its_own_token(tmp_path, monkeypatch):
    with archive(tmp_path, monkeypatch) as server:
        for href in (BLOB, BLOB.replace("sentinel2-l2", "other"), BLOB.replace("sentinel2l2a01", "account2")):
            PlanetaryComputer().sign(href)
        assert [place for place, _ in server.sas.issued] == [
            "sentinel2l2a01/sentinel2-l2",
            "sentinel2l2a01/other",
            "account2/sentinel2-l2",
        ]


@pytest.mark.parametrize(
    "href",
    [
        "https://example.org/b.tif",
        "https://ai4edatasetspublicassets.blob.core.windows.net/c/b.png",
        "https://blob.core.windows.net.evil.org/c/b.tif",
        "s3://bucket/b.tif",
        f"{BLOB}?se=2026-01-01&sig=x",
    ],
)
def test_hosts_that_need_no_token_and_signed_urls_are_left_alone(href):
    assert PlanetaryComputer().sign(href) == href


@pytest.mark.parametrize(
    ("life_s", "still_s", "renewed_s"),
    [
        pytest.param(3600, 2950, 3050, id="ten minutes before it ends"),
        pytest.param(300, 130, 170, id="a short one at half its life"),
    ],
)
def test_a_token_is_renewed_before_it_ends(tmp_path, monkeypatch, life_s, still_s, renewed_s):
    with archive(tmp_path, monkeypatch, life_s=life_s) as server:
        signer, now = PlanetaryComputer(), time.time()
        first = signer.sign(BLOB)
        monkeypatch.setattr(signing.time, "time", lambda: now + still_s)
        assert signer.sign(BLOB) == first
        monkeypatch.setattr(signing.time, "time", lambda: now + renewed_s)
        assert signer.sign(BLOB) != first
        assert len(server.sas.issued) == 2


def test_the_old_token_serves_on_when_the_early_renewal_fails(tmp_path, monkeypatch):
    with archive(tmp_path, monkeypatch, life_s=3600) as server:
        signer, now = PlanetaryComputer(), time.time()
        first = signer.sign(BLOB)
        server.http_faults = [Fault(code=503)]
        monkeypatch.setattr(signing.time, "time", lambda: now + 3100)
        for _ in range(5):
            assert signer.sign(BLOB) == first
        assert len(server.log) == 2  # asked once more, and then not for a while
        monkeypatch.setattr(signing.time, "time", lambda: now + 3170)
        assert signer.sign(BLOB) == first
        assert len(server.log) == 3
        monkeypatch.setattr(signing.time, "time", lambda: now + 3700)
        with pytest.raises(TransientError, match="HTTP 503"):
            signer.sign(BLOB)


def test_all_files_of_a_container_are_read_with_one_token(tmp_path, monkeypatch):
    with archive(tmp_path, monkeypatch) as server:
        access = replace(HTTP, signer=HERE)
        for name in ("box/b.tif", "box/c.tif", "box/b.tif"):
            np.testing.assert_array_equal(read(server, access, name, sign=True), VALUES)
        assert len(server.sas.issued) == 1


def test_a_token_that_ends_between_two_reads_is_replaced(tmp_path, monkeypatch):
    with archive(tmp_path, monkeypatch) as server:
        access = replace(HTTP, signer=HERE)
        read(server, access, "box/b.tif", sign=True)
        server.sas.revoke()
        np.testing.assert_array_equal(read(server, access, "box/c.tif", sign=True), VALUES)
        assert len(server.sas.issued) == 2


def test_a_token_that_ends_in_the_middle_of_a_read_is_replaced(tmp_path, monkeypatch):
    with archive(tmp_path, monkeypatch) as server:
        access = replace(HTTP, signer=HERE)
        runs = []

        def work(dataset):
            if not runs:
                server.sas.revoke()
            runs.append(1)
            return dataset.read(1)

        values = access.read(Asset(band="B02", href=server.url("box/b.tif")), work, sign=True)
        np.testing.assert_array_equal(values, VALUES)
        assert len(server.sas.issued) == 2


def test_a_refused_token_is_replaced_once_for_all_threads(tmp_path, monkeypatch):
    with archive(tmp_path, monkeypatch) as server:
        access = replace(HTTP, signer=HERE)
        read(server, access, "box/b.tif", sign=True)
        server.sas.revoke()
        with ThreadPoolExecutor(8) as pool:
            got = list(pool.map(lambda _: read(server, access, "box/c.tif", sign=True), range(16)))
        assert all(np.array_equal(values, VALUES) for values in got)
        assert len(server.sas.issued) == 2


def test_an_ended_token_costs_no_attempt(tmp_path, monkeypatch):
    with archive(tmp_path, monkeypatch) as server:
        access = replace(HTTP, signer=HERE, attempts=1)
        read(server, access, "box/b.tif", sign=True)
        server.sas.revoke()
        np.testing.assert_array_equal(read(server, access, "box/c.tif", sign=True), VALUES)


def test_an_archive_that_refuses_every_token_is_a_data_error_soon(tmp_path, monkeypatch):
    with archive(tmp_path, monkeypatch, life_s=-1.0, told_life_s=3600.0) as server:
        with pytest.raises(DataError, match="after 3 attempts"):
            read(server, replace(HTTP, signer=HERE), "box/b.tif", sign=True)
        assert len(server.sas.issued) <= 3


@pytest.mark.parametrize(("name", "faults"), [("box/gone.tif", []), ("box/b.tif", [Fault(code=503, path="/box/")])])
def test_a_missing_file_or_a_busy_archive_costs_no_token(tmp_path, monkeypatch, name, faults):
    with archive(tmp_path, monkeypatch) as server:
        server.http_faults = faults
        with pytest.raises(DataError):
            read(server, replace(HTTP, signer=HERE), name, sign=True)
        assert len(server.sas.issued) == 1


def test_requests_for_tokens_are_counted(tmp_path, monkeypatch):
    with archive(tmp_path, monkeypatch) as server:
        server.http_faults = [Fault(code=503, nth=1)]
        before = HTTP.counts().tokens
        for name in ("b.tif", "c.tif"):
            PlanetaryComputer().sign(BLOB.replace("b.tif", name))
        assert HTTP.counts().tokens - before == len(server.log) == 2


def test_retry_after_of_the_token_service_is_honoured(tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr(signing.time, "sleep", waits.append)
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=9))
    with archive(tmp_path, monkeypatch) as server:
        server.http_faults = [Fault(code=429, retry_after="7", nth=1), Fault(code=503, retry_after=soon, nth=2)]
        PlanetaryComputer().sign(BLOB)
        assert waits[0] == 7.0
        assert 6.0 < waits[1] <= 9.0
        assert len(server.sas.issued) == 1


def test_threads_that_wait_for_a_token_fail_together(tmp_path, monkeypatch):
    monkeypatch.setattr(signing, "TRIES", 2)
    with archive(tmp_path, monkeypatch) as server, ThreadPoolExecutor(8) as pool:
        server.http_faults = [Fault(code=503)]
        server.delay_s = 0.05
        gate = threading.Barrier(8)

        def sign(_):
            gate.wait()
            with pytest.raises(TransientError, match="HTTP 503 after 2 attempts"):
                signed(PlanetaryComputer(), BLOB)

        list(pool.map(sign, range(8)))
        assert len(server.log) == 2
        server.http_faults = []
        assert signed(PlanetaryComputer(), BLOB) != BLOB  # whoever comes later asks again


def test_a_token_service_that_hangs_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(signing, "TIMEOUT_S", (0.1, 0.1))
    monkeypatch.setattr(signing, "TRIES", 2)
    with archive(tmp_path, monkeypatch) as server:
        server.http_faults = [Fault(kind="stall", seconds=5)]
        with pytest.raises(TransientError, match="ReadTimeout after 2 attempts"):
            PlanetaryComputer().sign(BLOB)


def test_a_token_service_that_refuses_is_not_asked_again(tmp_path, monkeypatch):
    with archive(tmp_path, monkeypatch) as server:
        server.http_faults = [Fault(code=404)]
        with pytest.raises(TransientError, match="HTTP 404"):
            PlanetaryComputer().sign(BLOB)
        assert len(server.log) == 1


def test_the_subscription_key_goes_to_the_service_and_nowhere_else(tmp_path, monkeypatch, caplog):
    from planetary_computer.settings import Settings

    caplog.set_level(logging.DEBUG)
    with archive(tmp_path, monkeypatch) as server:
        monkeypatch.setattr(Settings.get(), "subscription_key", CANARY)
        keys = []
        monkeypatch.setattr(
            server.RequestHandlerClass, "arrived", lambda h: keys.append(h.headers.get("Ocp-Apim-Subscription-Key"))
        )
        signer = PlanetaryComputer()
        assert CANARY not in signer.sign(BLOB)
        server.http_faults = [Fault(kind="redirect", to=server.url("elsewhere"))]
        signer.forget(BLOB)
        with pytest.raises(TransientError, match="HTTP 302") as caught:
            signer.sign(BLOB)
        assert keys == [CANARY, CANARY]
        assert all(CANARY not in text for text in error_chain(caught.value))
    assert CANARY not in caplog.text


def test_no_token_in_errors_logs_and_reprs(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    with archive(tmp_path, monkeypatch) as server:
        (tmp_path / "box" / "text.tif").write_text("GDAL names the whole URL when it does not know the format")
        access = replace(HTTP, signer=HERE)
        errors = []
        for name, faults in {
            "box/gone.tif": [],
            "box/text.tif": [],
            "box/b.tif": [Fault(code=503, path="/box/")],
            "box/c.tif": [Fault(kind="truncate", path="/box/", ranges=True)],
        }.items():
            server.http_faults = faults
            with pytest.raises(DataError) as caught:
                read(server, access, name, sign=True)
            errors.extend(error_chain(caught.value))
        seen = " ".join([*errors, caplog.text, repr(access), repr(signing._TOKENS)])
        for _, signature in server.sas.issued:
            assert any(signature in unquote(entry.target) for entry in server.log)
            assert signature not in seen
            assert signature not in unquote(seen)


def test_a_signed_file_that_is_refused_leaks_no_token_either(tmp_path):
    with serving(tmp_path) as server:
        server.tokens = set()
        with pytest.raises(DataError) as caught:
            read(server, replace(HTTP, signer=Tokens()), sign=True)
    assert all(CANARY not in text for text in error_chain(caught.value))


def test_assets_stay_unsigned(tmp_path, monkeypatch):
    with archive(tmp_path, monkeypatch) as server:
        asset = Asset(band="B02", href=server.url("box/b.tif"))
        assert replace(HTTP, signer=HERE).read(asset, lambda dataset: dataset.shape, sign=True) == BOX.shape
        assert asset.href == server.url("box/b.tif")


def test_an_access_without_more_signs_for_the_planetary_computer():
    assert Access().signer == PlanetaryComputer()
