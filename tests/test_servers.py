"""What a client sees of the loopback servers' faults: a test that relies on one would otherwise pass without it."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import planetary_computer.sas
import pytest
import requests

from tests.servers.base import Fault
from tests.servers.ranges import Sas, serving
from tests.servers.stac import StacServer

DATA = bytes(range(256)) * 40


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.bin").write_bytes(DATA)
    (tmp_path / "b.bin").write_bytes(DATA[::-1])
    return tmp_path


def get(url, span=None, *, timeout=10.0):
    """(status, body), also of a refusal; one connection per call."""
    headers = {} if span is None else {"Range": f"bytes={span}"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as err:
        with err:
            return err.code, err.read()


def statuses(url, count, span="0-9"):
    return [get(url, span)[0] for _ in range(count)]


def item(name, *, collection="sentinel-2-l2a", west=10.0, time="2024-03-01T00:00:00Z"):
    ring = [[west, 48.0], [west + 1, 48.0], [west + 1, 49.0], [west, 49.0], [west, 48.0]]
    return {
        "id": name,
        "collection": collection,
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"datetime": time},
    }


def post(url, asked):
    return requests.post(url, json=asked, timeout=10)


def ids(answer):
    return [i["id"] for i in answer.json()["features"]]


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("span", "wanted", "place"),
    [
        ("0-9", DATA[:10], "bytes 0-9/10240"),
        ("100-", DATA[100:], "bytes 100-10239/10240"),
        ("-5", DATA[-5:], "bytes 10235-10239/10240"),
        ("10230-99999", DATA[10230:], "bytes 10230-10239/10240"),
    ],
)
def test_a_range_is_answered_by_its_bytes_and_their_place(folder, span, wanted, place):
    with serving(folder) as server:
        answer = requests.get(server.url("a.bin"), headers={"Range": f"bytes={span}"}, timeout=10)
    assert (answer.status_code, answer.content, answer.headers["Content-Range"]) == (206, wanted, place)


def test_a_range_behind_the_end_and_several_ranges_are_answered_as_object_stores_do(folder):
    with serving(folder) as server:
        assert get(server.url("a.bin"), "20000-20001")[0] == 416
        assert get(server.url("a.bin"), "0-1,5-6") == (200, DATA)


def test_a_head_request_tells_the_size_without_the_body(folder):
    with serving(folder) as server:
        answer = requests.head(server.url("a.bin"), timeout=10)
        assert (answer.status_code, answer.headers["Content-Length"], answer.content) == (200, "10240", b"")
        assert server.counts() == {"requests": 1, "bytes": 0}


def test_nothing_outside_the_folder_is_served(folder):
    inner = folder / "inner"
    inner.mkdir()
    with serving(inner) as server, closing(http.client.HTTPConnection("127.0.0.1", server.server_port)) as line:
        for path in ("/../a.bin", "/%2e%2e/a.bin"):
            line.request("GET", path)
            answer = line.getresponse()
            assert (answer.status, answer.read()) == (404, b"")


def test_requests_share_a_connection(folder):
    with serving(folder) as server, requests.Session() as session:
        for _ in range(5):
            assert session.get(server.url("a.bin"), timeout=10).content == DATA
        assert (server.connections, len(server.log)) == (1, 5)


def test_a_client_may_use_the_server_as_its_proxy(folder):
    """Hrefs of another host over http, such as blob storage, then come from the folder."""
    with serving(folder) as server:
        proxies = {"http": server.url("")}
        answer = requests.get("http://account.blob.core.windows.net/a.bin", proxies=proxies, timeout=10)
    assert answer.content == DATA


def test_requests_and_bytes_are_counted(folder):
    with serving(folder) as server:
        get(server.url("a.bin"), "0-9")
        get(server.url("b.bin"))
        get(server.url("none.bin"))
        assert server.counts() == {"requests": 3, "bytes": 10 + len(DATA)}
        assert server.requests == [("/a.bin", "bytes=0-9"), ("/b.bin", ""), ("/none.bin", "")]
        assert [e.status for e in server.log] == [206, 200, 404]


def test_every_request_is_delayed(folder):
    with serving(folder, delay_s=0.1) as server:
        began = time.monotonic()
        assert statuses(server.url("a.bin"), 3) == [206] * 3
    assert time.monotonic() - began >= 0.3


# --- faults -----------------------------------------------------------------------------------------------------------


def test_every_third_range_request_is_refused_and_its_repetition_is_not(folder):
    with serving(folder, http_faults=[Fault(every=3, ranges=True)]) as server:
        assert get(server.url("a.bin"))[0] == 200  # no range: not looked at
        assert statuses(server.url("a.bin"), 7) == [206, 206, 503, 206, 206, 503, 206]


def test_a_refusal_says_server_busy_as_blob_storage_does(folder):
    with serving(folder, http_faults=[Fault()]) as server:
        assert b"ServerBusy" in get(server.url("a.bin"))[1]


def test_a_fault_hits_the_nth_request_or_the_first_ones_or_each_files_own(folder):
    with serving(folder, http_faults=[Fault(nth=2)]) as server:
        assert statuses(server.url("a.bin"), 4) == [206, 503, 206, 206]
    with serving(folder, http_faults=[Fault(first=2, code=500)]) as server:
        assert statuses(server.url("a.bin"), 4) == [500, 500, 206, 206]
    with serving(folder, http_faults=[Fault(nth=1, per_path=True)]) as server:
        assert statuses(server.url("a.bin"), 2) + statuses(server.url("b.bin"), 2) == [503, 206, 503, 206]
    with serving(folder, http_faults=[Fault(path="b.bin", code=404)]) as server:
        assert [get(server.url(name))[0] for name in ("a.bin", "b.bin")] == [200, 404]


def test_equal_faults_count_apart_and_may_be_set_while_the_server_runs(folder):
    with serving(folder) as server:
        assert statuses(server.url("a.bin"), 2) == [206, 206]
        server.http_faults += [Fault(nth=1), Fault(nth=1, code=500)]
        assert statuses(server.url("a.bin"), 2) == [503, 206]
        server.http_faults[:] = [Fault(nth=1)]
        assert statuses(server.url("a.bin"), 2) == [503, 206]


def test_throttling_tells_when_to_come_back(folder):
    with serving(folder, http_faults=[Fault(code=429, retry_after="7", nth=1)]) as server:
        answer = requests.get(server.url("a.bin"), timeout=10)
        assert (answer.status_code, answer.headers["Retry-After"]) == (429, "7")


def test_more_requests_at_once_than_allowed_are_refused(folder):
    with serving(folder, http_faults=[Fault(in_flight_over=2)], delay_s=0.3) as server:
        with ThreadPoolExecutor(6) as pool:
            found = sorted(pool.map(lambda _: get(server.url("a.bin"))[0], range(6)))
        assert found == [200, 200, 503, 503, 503, 503]
        assert server.peak_in_flight == 6
        assert statuses(server.url("a.bin"), 2) == [206, 206]


def test_a_truncated_body_promises_more_than_it_sends(folder):
    with serving(folder, http_faults=[Fault(kind="truncate", nth=1, after_bytes=100)]) as server:
        with pytest.raises(http.client.IncompleteRead) as caught:
            get(server.url("a.bin"))
        assert (caught.value.partial, caught.value.expected) == (DATA[:100], len(DATA) - 100)
        assert get(server.url("a.bin")) == (200, DATA)
        assert server.counts()["bytes"] == 100 + len(DATA)


def test_a_reset_breaks_the_connection_without_an_answer(folder):
    with serving(folder, http_faults=[Fault(kind="reset", nth=1)]) as server:
        with closing(http.client.HTTPConnection("127.0.0.1", server.server_port)) as line:
            line.request("GET", "/a.bin")
            with pytest.raises(ConnectionResetError):
                line.getresponse()
        assert get(server.url("a.bin")) == (200, DATA)
        assert [e.status for e in server.log] == [0, 200]


def test_a_reset_may_come_in_the_middle_of_a_body(folder):
    with (
        serving(folder, http_faults=[Fault(kind="reset", after_bytes=100)]) as server,
        closing(http.client.HTTPConnection("127.0.0.1", server.server_port)) as line,
    ):
        line.request("GET", "/a.bin")
        with pytest.raises((ConnectionResetError, http.client.IncompleteRead)):
            line.getresponse().read()


def test_a_stall_outlasts_a_client_with_less_patience_and_not_one_with_more(folder):
    with serving(folder, http_faults=[Fault(kind="stall", seconds=0.6)]) as server:
        with pytest.raises(TimeoutError):
            get(server.url("a.bin"), timeout=0.2)
        assert get(server.url("a.bin"), timeout=10) == (200, DATA)


def test_a_stall_may_come_in_the_middle_of_a_body(folder):
    with serving(folder, http_faults=[Fault(kind="stall", seconds=0.6, after_bytes=100)]) as server:
        with closing(http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=0.3)) as line:
            line.request("GET", "/a.bin")
            answer = line.getresponse()
            assert answer.read(100) == DATA[:100]
            with pytest.raises(TimeoutError):
                answer.read()
        assert get(server.url("a.bin"), timeout=10) == (200, DATA)


def test_a_stall_ends_with_the_server(folder):
    began = time.monotonic()
    with serving(folder, http_faults=[Fault(kind="stall", seconds=60)]) as server:

        def ask():
            with contextlib.suppress(OSError, http.client.HTTPException):  # cut off, or answered at the last moment
                get(server.url("a.bin"), timeout=60)

        waiting = threading.Thread(target=ask, daemon=True)
        waiting.start()
        while server.peak_in_flight == 0:
            time.sleep(0.01)
    waiting.join(5)
    assert not waiting.is_alive()
    assert time.monotonic() - began < 10


def test_a_stall_without_bound_is_not_accepted():
    with pytest.raises(ValueError, match="must be between 0 and 60"):
        Fault(kind="stall", seconds=1e9)


def test_a_redirect_leads_to_another_address(folder):
    with serving(folder) as other, serving(folder) as server:
        server.http_faults.append(Fault(kind="redirect", to=other.url("b.bin")))
        answer = requests.get(server.url("a.bin"), timeout=10, allow_redirects=False)
        assert (answer.status_code, answer.headers["Location"]) == (302, other.url("b.bin"))
        assert get(server.url("a.bin")) == (200, DATA[::-1])
        assert other.requests == [("/b.bin", "")]


def test_a_fault_by_path_and_a_set_of_signatures_as_before(folder):
    with serving(folder) as server:
        server.fail_first["/a.bin"] = 2
        assert statuses(server.url("a.bin"), 3) == [503, 503, 206]
        server.tokens = {"good"}
        assert [get(server.url("a.bin" + q))[0] for q in ("", "?sig=bad", "?sig=good")] == [403, 403, 200]


# --- signatures -------------------------------------------------------------------------------------------------------


def token_of(server, place="account/container"):
    return json.loads(get(f"{server.sas_url}/{place}")[1])


def test_files_need_a_token_of_the_endpoint(folder):
    with serving(folder, sas=Sas()) as server:
        assert get(server.url("a.bin"))[0] == 403
        assert get(server.url("a.bin?" + token_of(server)["token"])) == (200, DATA)
        assert get(server.url("a.bin?se=2999-01-01T00%3A00%3A00Z&sig=made-up"))[0] == 403
        assert [place for place, _ in server.sas.issued] == ["account/container"]


def test_a_token_expires_on_the_servers_clock(folder):
    with serving(folder, sas=Sas(life_s=600)) as server:
        signed = server.url("a.bin?" + token_of(server)["token"])
        server.sas.advance(590)
        assert get(signed)[0] == 200
        server.sas.advance(20)
        status, body = get(signed)
        assert (status, b"AuthenticationFailed" in body) == (403, True)
        assert get(server.url("a.bin?" + token_of(server)["token"]))[0] == 200


def test_the_expiry_in_a_token_cannot_be_changed(folder):
    with serving(folder, sas=Sas(life_s=600)) as server:
        token = token_of(server)["token"]
        server.sas.advance(700)
        late = "&".join("se=2999-01-01T00%3A00%3A00Z" if p.startswith("se=") else p for p in token.split("&"))
        assert late != token
        assert get(server.url("a.bin?" + late))[0] == 403


def test_a_token_may_end_before_the_time_that_the_client_was_told_or_be_revoked(folder):
    with serving(folder, sas=Sas(life_s=0, told_life_s=3600)) as server:
        assert get(server.url("a.bin?" + token_of(server)["token"]))[0] == 403
    with serving(folder, sas=Sas()) as server:
        signed = server.url("a.bin?" + token_of(server)["token"])
        assert get(signed)[0] == 200
        server.sas.revoke()
        assert get(signed)[0] == 403


def test_the_token_endpoint_is_what_planetary_computer_asks(folder, monkeypatch):
    with serving(folder, sas=Sas(life_s=3600), http_faults=[Fault(path="/token/", nth=1, code=429)]) as server:
        monkeypatch.setattr(planetary_computer.sas, "TOKEN_CACHE", {})
        monkeypatch.setenv("PC_SDK_SAS_URL", server.sas_url)
        planetary_computer.settings.Settings.get.cache_clear()
        try:
            signed = planetary_computer.sas.sign_url("https://account.blob.core.windows.net/container/a.bin")
            token = planetary_computer.sas.get_token("account", "container")
        finally:
            planetary_computer.settings.Settings.get.cache_clear()
        assert 3500 < token.ttl() <= 3600
        assert server.requests == []  # files only
        assert [e.status for e in server.log] == [429, 200]
        assert get(server.url("a.bin?" + urlsplit(signed).query))[0] == 200


# --- as a process -----------------------------------------------------------------------------------------------------


def test_the_range_server_runs_as_a_process_and_tells_its_counts(folder):
    command = [sys.executable, "-m", "tests.servers.ranges", str(folder), "--delay-ms", "1", "--fail-every", "2"]
    root = Path(__file__).resolve().parents[1]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as process:
        try:
            base = f"http://127.0.0.1:{int(process.stdout.readline())}"
            assert statuses(f"{base}/a.bin", 3) == [206, 503, 206]
            counts = json.loads(get(f"{base}/_counts")[1])
            assert counts["requests"] == 3
            assert json.loads(get(f"{base}/_counts")[1]) == counts
        finally:
            process.send_signal(signal.SIGTERM)
        assert json.loads(process.stdout.readline())["requests"] == 3
        assert process.wait(10) == 0


# --- catalogue --------------------------------------------------------------------------------------------------------


def test_the_api_searches_by_collection_ids_time_and_place():
    items = [item("a"), item("b", west=20.0), item("c", time="2024-04-01T00:00:00Z"), item("d", collection="other")]
    with StacServer(items) as server:
        search = f"{server.url}/search"
        ours = {"collections": ["sentinel-2-l2a"]}
        assert ids(post(search, ours)) == ["a", "b", "c"]
        assert ids(post(search, {"ids": ["b", "d"]})) == ["b", "d"]
        assert ids(post(search, ours | {"datetime": "2024-03-01T00:00:00Z/2024-03-31T00:00:00Z"})) == ["a", "b"]
        assert ids(post(search, ours | {"datetime": "../2024-04-01T00:00:00Z"})) == ["a", "b", "c"]  # closed
        assert ids(post(search, ours | {"bbox": [9, 47, 12, 50]})) == ["a", "c"]
        assert ids(post(search, ours | {"intersects": items[1]["geometry"]})) == ["b"]
        assert ids(requests.get(f"{search}?collections=other&bbox=9,47,12,50", timeout=10)) == ["d"]
        assert server.counts()["requests"] == len(server.searches) == 7


def test_a_box_over_the_antimeridian_is_swapped_only_as_a_fault():
    items = [item("east", west=178.5), item("between")]
    crossing = {"bbox": [178, 47, -178, 50]}
    with StacServer(items) as server:
        assert ids(post(f"{server.url}/search", crossing)) == ["east"]
        server.faults["swap_bbox"] = True
        assert ids(post(f"{server.url}/search", crossing)) == ["between"]


def all_pages(server, asked, *, most=6):
    """Ids page by page, following the next links with plain requests."""
    found, answer = [], post(f"{server.url}/search", asked)
    for _ in range(most):
        found.append(ids(answer))
        link = next((k for k in answer.json()["links"] if k["rel"] == "next"), None)
        if link is None:
            return found
        by_post = link.get("method") == "POST"
        answer = post(link["href"], link["body"]) if by_post else requests.get(link["href"], timeout=10)
    return [*found, ["and so on"]]


@pytest.mark.parametrize(
    ("faults", "wanted"),
    [
        ({}, [["a", "b"], ["c", "d"], ["e"]]),
        ({"get": True}, [["a", "b"], ["c", "d"], ["e"]]),
        ({"reverse": True}, [["e", "d"], ["c", "b"], ["a"]]),
        ({"repeat": True}, [["a", "b"], ["b", "c", "d"], ["d", "e"]]),
        ({"lose": True}, [["a", "b"]]),
        ({"cap_silently": 3}, [["a", "b"], ["c"]]),
        ({"loop": True}, [["a", "b"]] * 6 + [["and so on"]]),
        ({"stale": True}, [["a", "b"]] * 6 + [["and so on"]]),
    ],
)
def test_pages_are_capped_and_go_wrong_as_asked(faults, wanted):
    with StacServer([item(name) for name in "abcde"], faults=faults, page_cap=2) as server:
        assert all_pages(server, {"collections": ["sentinel-2-l2a"], "limit": 250}) == wanted


def test_stale_links_differ_and_looping_links_do_not():
    for fault, different in (("stale", 2), ("loop", 1)):
        with StacServer([item("a"), item("b")], faults={fault: True}, page_cap=1) as server:
            links = [post(f"{server.url}/search", {}).json()["links"][0] for _ in range(2)]
        assert len({json.dumps(k) for k in links}) == different, fault


def test_a_next_link_may_point_at_another_host():
    with StacServer([item("a"), item("b")], faults={"next": "http://169.254.169.254/latest"}, page_cap=1) as server:
        assert post(f"{server.url}/search", {}).json()["links"][0]["href"] == "http://169.254.169.254/latest"


def test_searches_are_throttled_refused_and_cut_off_by_number():
    with StacServer([item("a")], faults={"429": 1, "retry_after": "2", "503": 2, "broken": 3}) as server:
        answers = [post(f"{server.url}/search", {}) for _ in range(4)]
    assert [a.status_code for a in answers] == [429, 503, 200, 200]
    assert answers[0].headers["Retry-After"] == "2"
    with pytest.raises(requests.JSONDecodeError):
        answers[2].json()
    assert ids(answers[3]) == ["a"]


def test_the_api_has_the_faults_of_connections_too():
    faults = [
        Fault(kind="reset", nth=1, path="/search"),
        Fault(kind="truncate", nth=2, path="/search"),
        Fault(kind="redirect", nth=3, path="/search", to="http://other.example/v1/search"),
    ]
    with StacServer([item("a")], http_faults=faults) as server:
        assert requests.get(server.url, timeout=10).json()["id"] == "loopback"
        for _ in range(2):
            with pytest.raises((requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
                post(f"{server.url}/search", {})
        answer = requests.post(f"{server.url}/search", json={}, timeout=10, allow_redirects=False)
        assert answer.headers["Location"] == "http://other.example/v1/search"
        assert ids(post(f"{server.url}/search", {})) == ["a"]
        assert len(server.searches) == 2  # the truncated one and the last


def test_what_is_not_there_is_not_found():
    with StacServer([], collections=["one"]) as server:
        assert get(f"{server.url}/collections/one")[0] == 200
        assert get(f"{server.url}/collections/two")[0] == 404
        assert json.loads(get(f"{server.url}/collections")[1])["collections"][0]["id"] == "one"
