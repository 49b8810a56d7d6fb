"""HTTP to a STAC API: patient with a busy server, bounded, and faithful to one address."""

from __future__ import annotations

import time

import pytest
from catalog_items import ITEMS, PERIODS, WANTED, api, find, names

from pipeline.errors import InvalidInputError, TransientError
from pipeline.plan import stac_http
from pipeline.plan.catalog import ApiCatalog, open_catalog
from pipeline.plan.stac_http import ApiIO
from tests.servers.base import Fault
from tests.servers.stac import StacServer

ELSEWHERE = [
    "http://127.0.0.1:9/v1/search?sig=hunter2",
    "http://localhost:9/v1/search?sig=hunter2",
    "http://169.254.169.254/latest/meta-data/?sig=hunter2",
    "http://10.0.0.1/v1/search",
    "http://user:hunter2@10.0.0.1/v1/search",
    "https://evil.example/v1/search#hunter2",
    "file:///etc/hunter2",
    "//evil.example/search",
    "http://[broken/hunter2",
    "http://127.0.0.1:99999999/hunter2",
]


@pytest.mark.parametrize("place", ELSEWHERE)
@pytest.mark.parametrize("path", ["/v1", "/v1/search"])
def test_a_redirect_to_another_address_is_refused(place, path):
    redirect = Fault(kind="redirect", to=place, path=path)
    refused = pytest.raises(InvalidInputError, match=r"another address .*: refused")
    with StacServer(ITEMS, http_faults=[redirect]) as server, refused as caught:
        find(api(server))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("place", ELSEWHERE)
def test_a_next_link_to_another_address_is_refused(place):
    with StacServer(ITEMS, faults={"next": place}, page_cap=3) as server:
        with pytest.raises(InvalidInputError, match=r"another address .*: refused") as caught:
            find(api(server))
        assert len(server.searches) == 1
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("place", ELSEWHERE)
def test_a_search_link_to_another_address_is_refused(place):
    landing = {"type": "Catalog", "id": "a", "links": [{"rel": "search", "href": place, "method": "POST"}]}
    with StacServer(ITEMS, landing=landing) as server, pytest.raises(InvalidInputError, match="another address"):
        api(server)


def test_another_server_on_this_machine_gets_no_request():
    with StacServer([]) as private, StacServer(ITEMS) as server:
        server.http_faults.append(Fault(kind="redirect", to=f"{private.url}/search", path="search"))
        with pytest.raises(InvalidInputError, match="another address"):
            find(api(server))
        assert private.log == []


def test_a_redirect_within_the_api_is_followed_and_stays_a_search():
    with StacServer(ITEMS) as server:
        server.http_faults.append(Fault(kind="redirect", to="/v1/search", path="search", every=2))
        assert names(api(server)) == WANTED
        assert {(e.method, e.status) for e in server.log if "search" in e.target} == {("POST", 200), ("POST", 302)}


def test_redirects_in_a_circle_end():
    with StacServer(ITEMS, http_faults=[Fault(kind="redirect", to="/v1/search", path="search")]) as server:
        with pytest.raises(TransientError, match="redirects more than 5 times"):
            find(api(server))
        assert len(server.log) == 1 + 6


@pytest.mark.parametrize(
    ("home", "link", "want"),
    [
        ("https://a.example/v1", "search", "https://a.example/v1/search"),
        ("https://a.example/v1", "http://a.example/v1/search", "https://a.example/v1/search"),
        ("https://a.example/v1", "http://a.example:80/search", "https://a.example/search"),
        ("https://a.example/v1", "https://A.example:443/search", "https://A.example:443/search"),
        ("http://a.example/v1", "https://a.example/search", "https://a.example/search"),
        ("https://a.example/v1", "http://a.example:8080/search", None),
        ("https://a.example/v1", "https://b.a.example/search", None),
        ("http://a.example:8000/v1", "http://a.example/search", None),
    ],
)
def test_an_address_is_scheme_host_and_port_but_for_a_proxy_that_forgot_https(home, link, want):
    io = ApiIO(home, backoff_s=0)
    if want is None:
        with pytest.raises(InvalidInputError, match="another address"):
            io.own(link, base=home + "/")
    else:
        assert io.own(link, base=home + "/") == want


@pytest.mark.parametrize(
    "fault",
    [
        Fault(kind="truncate", path="search", every=2),
        Fault(kind="reset", path="search", every=2),
        Fault(kind="reset", path="search", every=2, after_bytes=20),
        Fault(code=429, retry_after="0", path="search", every=2),
        Fault(code=429, retry_after="soon", path="search", every=2),
        Fault(code=502, path="search", every=2),
        Fault(code=504, path="search", every=2),
        Fault(kind="truncate", nth=1),
        Fault(kind="reset", nth=1),
        Fault(code=503, nth=1),
    ],
    ids=lambda f: f"{f.kind}-{f.code}-{f.path}-{f.after_bytes}-{f.retry_after}",
)
def test_what_breaks_once_is_asked_again(fault):
    with StacServer(ITEMS, http_faults=[fault], page_cap=4) as server:
        assert names(api(server)) == WANTED


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault(kind="truncate", path="search"), "3 answers broke off"),
        (Fault(kind="reset", path="search"), "does not answer"),
        (Fault(code=429, retry_after="0", path="search"), "status 429"),
        (Fault(code=503, path="search"), "status 503: .*ServerBusy"),
    ],
)
def test_what_stays_broken_is_transient_and_bounded(fault, said):
    with StacServer(ITEMS, http_faults=[fault]) as server:
        with pytest.raises(TransientError, match=said):
            find(api(server))
        assert len(server.log) <= 2 + stac_http.RETRIES


def test_a_server_may_ask_to_wait():
    with StacServer(ITEMS, faults={"429": 1, "retry_after": "1"}) as server:
        begin = time.monotonic()
        assert names(api(server)) == WANTED
        assert time.monotonic() - begin > 1


def test_a_server_may_not_ask_to_wait_for_ever(monkeypatch):
    monkeypatch.setattr(stac_http, "MAX_RETRY_AFTER_S", 0.05)
    with StacServer(ITEMS, faults={"429": 1, "retry_after": "86400"}) as server:
        begin = time.monotonic()
        assert names(api(server)) == WANTED
        assert time.monotonic() - begin < 5


def test_a_server_that_falls_silent_once_is_asked_again(monkeypatch):
    monkeypatch.setattr(stac_http, "READ_S", 0.2)
    with StacServer(ITEMS, http_faults=[Fault(kind="stall", seconds=2, path="search", nth=1)]) as server:
        assert names(api(server)) == WANTED


def test_a_server_that_stays_silent_is_transient(monkeypatch):
    monkeypatch.setattr(stac_http, "READ_S", 0.1)
    stall = Fault(kind="stall", seconds=5, path="search")
    refused = pytest.raises(TransientError, match="does not answer.*timed out")
    with StacServer(ITEMS, http_faults=[stall]) as server, refused:
        find(api(server))


def test_an_answer_that_drips_is_given_up(monkeypatch):
    monkeypatch.setattr(stac_http, "ANSWER_S", 0.05)
    drip = Fault(kind="stall", seconds=0.2, after_bytes=30, path="search")
    refused = pytest.raises(TransientError, match=r"it takes more than 0\.05 s")
    with StacServer(ITEMS, http_faults=[drip]) as server, refused:
        find(api(server), periods=PERIODS[:1])


def test_an_answer_without_end_is_given_up(monkeypatch):
    monkeypatch.setattr(stac_http, "MAX_ANSWER_BYTES", 1 << 10)
    with StacServer(ITEMS) as server, pytest.raises(InvalidInputError, match="answers with more than"):
        find(api(server))


def test_connections_are_kept_for_the_next_request():
    with StacServer(ITEMS, page_cap=2) as server:
        find(api(server))
        assert server.connections == 1


def test_no_secret_is_logged(caplog):
    with StacServer(ITEMS, page_cap=5, faults={"get": True}) as server, caplog.at_level("INFO"):
        url = server.url.replace("http://", "http://user:hunter2@") + "?token=hunter2"
        find(ApiCatalog(url, sign=False, backoff_s=0))
    assert "hunter2" not in caplog.text


@pytest.mark.parametrize("url", ["http://u:p@a.example/v1", "https://a.example/v1?token=x", "https://a.example/v1#x"])
def test_a_catalogue_with_a_secret_in_its_address_is_refused(url):
    with pytest.raises(InvalidInputError, match="must not hold a user name, password or query"):
        open_catalog(url)
