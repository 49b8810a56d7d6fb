"""Reads at once: fewer when the archive is busy, slowly more again, never none."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from files import write_cog
from range_server import serving
from remote_files import FAST, HTTP, read

from pipeline.errors import DataError
from pipeline.read import throttle
from pipeline.read.gdal import environment
from pipeline.read.throttle import HOLD_S, MOST, RISE_S, Throttle, throttle_of
from pipeline.types import Asset, Box
from tests.servers.ranges import Fault

AREA = Box(zone=32, res_m=10, row=-550_000, col=40_000, height=1024, width=1024)
COLUMN = replace(AREA, width=128, height=512)  # of blocks of 128 px that are not neighbours in the file: several ranges
PIXELS = np.random.default_rng(5).integers(1, 9000, AREA.shape).astype(np.uint16)
PATIENT = (*FAST, ("GDAL_HTTP_MAX_RETRY", "12"), ("GDAL_HTTP_RETRY_DELAY", "0.03"))


class Clock:
    """Time that passes when told to."""

    def __init__(self):
        self.now_s = 1000.0

    def __call__(self):
        return self.now_s


@pytest.fixture(name="clock")
def _clock():
    return Clock()


@pytest.fixture(name="folder", scope="module")
def _folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("throttle")
    first = write_cog(folder / "0.tif", PIXELS, box=AREA)
    for number in range(1, 24):
        (folder / f"{number}.tif").hardlink_to(first)
    return folder


def busy_with(one, count, *, refused=None):
    """``count`` threads hold a place; ``refused`` of them (all) are told that the archive is busy, five times."""
    gate = threading.Barrier(count, timeout=5)

    def hold(number):
        with one.place():
            gate.wait()
            if number < (count if refused is None else refused):
                for _ in range(5):
                    one.busy()
            gate.wait()

    with ThreadPoolExecutor(count) as pool:
        list(pool.map(hold, range(count)))


def test_there_is_no_limit_before_anybody_complains(clock):
    one = Throttle("x", clock=clock)
    assert (one.limit, one.slowed) == (MOST, False)


def test_a_busy_archive_halves_what_runs_at_once(clock):
    one = Throttle("x", clock=clock)
    busy_with(one, 16)
    assert (one.limit, one.slowed) == (8, True)
    clock.now_s += HOLD_S
    busy_with(one, 8)
    assert one.limit == 4


def test_answers_to_requests_that_were_sent_together_halve_it_once(clock):
    one = Throttle("x", clock=clock)
    busy_with(one, 16)
    clock.now_s += 0.9 * HOLD_S
    busy_with(one, 8)
    assert one.limit == 8


def test_a_few_refused_reads_do_not_slow_the_others(clock):
    one = Throttle("x", clock=clock)
    for _ in range(20):
        busy_with(one, 16, refused=3)  # as with 5 % of 503 at random
        clock.now_s += HOLD_S
    assert not one.slowed
    for _ in range(5):
        if not one.slowed:
            busy_with(one, 16, refused=12)
    assert one.slowed


def test_one_refused_read_alone_slows_an_archive_no_further(clock):
    one = Throttle("x", clock=clock)
    busy_with(one, 4)
    clock.now_s += HOLD_S
    busy_with(one, 2, refused=1)
    assert one.limit == 2
    busy_with(one, 2)
    assert one.limit == 1


def test_one_read_may_always_run(clock):
    one = Throttle("x", clock=clock)
    for count in (4, 2, 1, 1):
        busy_with(one, count)
        clock.now_s += HOLD_S
    assert one.limit == 1
    with one.place():
        pass


def test_the_limit_grows_by_one_at_a_time_and_goes_when_all_may_run_again(clock):
    one = Throttle("x", clock=clock)
    busy_with(one, 4)
    seen = []
    for _ in range(4):
        with one.place():
            seen.append(one.limit)
        clock.now_s += RISE_S
    assert seen == [2, 3, 4, MOST]
    assert not one.slowed


def test_an_idle_while_counts_as_quiet_time(clock):
    one = Throttle("x", clock=clock)
    busy_with(one, 64)
    clock.now_s += 3 * RISE_S
    with one.place():
        assert one.limit == 32 + 3


def test_no_more_than_the_limit_run_at_once(clock):
    one = Throttle("x", clock=clock)
    busy_with(one, 8)
    running, most, lock = 0, 0, threading.Lock()

    def work(_):
        nonlocal running, most
        with one.place():
            with lock:
                running += 1
                most = max(most, running)
            time.sleep(0.002)
            with lock:
                running -= 1

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(64)))
    assert most == 4


def test_a_read_within_a_read_takes_no_second_place(clock):
    one = Throttle("x", clock=clock)
    busy_with(one, 1)
    with one.place(), one.place():
        assert one.limit == 1
    with one.place():  # and the first was given back once
        pass


def test_a_place_is_given_back_after_an_error(clock):
    one = Throttle("x", clock=clock)
    busy_with(one, 1)
    for _ in range(2):
        with pytest.raises(ValueError, match="inside"), one.place():
            raise ValueError("inside")


def test_archives_do_not_slow_each_other():
    busy_with(throttle_of("https://a.example"), 1)
    assert throttle_of("https://a.example").slowed
    assert not throttle_of("https://b.example").slowed


def test_a_slowed_read_asks_for_one_range_at_a_time(folder):
    with serving(folder, delay_s=0.02) as server:
        np.testing.assert_array_equal(read(server, HTTP, "0.tif", box=COLUMN), PIXELS[:512, :128])
        assert server.peak_in_flight > 1
        busy_with(throttle_of(f"http://127.0.0.1:{server.server_port}"), 1)
        server.peak_in_flight = 0
        np.testing.assert_array_equal(read(server, HTTP, "1.tif", box=COLUMN), PIXELS[:512, :128])
        assert server.peak_in_flight == 1


def test_five_percent_of_503_slow_nobody(folder):
    with serving(folder) as server, ThreadPoolExecutor(8) as pool:
        server.http_faults = [Fault(code=503, every=20)]
        list(pool.map(lambda n: read(server, HTTP, f"{n}.tif", box=COLUMN), range(24)))
        assert sum(entry.status == 503 for entry in server.log) >= 5
        assert not throttle_of(f"http://127.0.0.1:{server.server_port}").slowed


def test_how_ranges_are_asked_for_is_the_users_if_he_says_so(monkeypatch):
    monkeypatch.delenv("GDAL_HTTP_MULTIRANGE", raising=False)
    options = {"scheme": "https", "pays": False, "proxy": None}
    assert environment((), serial=True, **options) == {"GDAL_HTTP_MULTIRANGE": "SERIAL"}
    monkeypatch.setenv("GDAL_HTTP_MULTIRANGE", "PARALLEL")
    assert environment((), serial=True, **options) == {}


@pytest.mark.parametrize("code", [429, 503])
def test_a_repeated_request_slows_the_archive_before_the_read_ends(folder, code):
    with serving(folder) as server:
        server.http_faults = [Fault(code=code, nth=1)]
        seen = []

        def work(dataset):
            seen.append(throttle_of(f"http://127.0.0.1:{server.server_port}").slowed)
            return dataset.read(1)

        HTTP.read(Asset(band="B02", href=server.url("0.tif")), work, sign=False)
        assert seen == [True]


@pytest.mark.parametrize(("code", "slowed"), [(503, True), (404, False), (500, False)])
def test_what_gdal_does_not_repeat_counts_too_when_it_means_busy(folder, code, slowed):
    with serving(folder) as server:
        server.http_faults = [Fault(code=code)]
        with pytest.raises(DataError):
            read(server, replace(HTTP, gdal=(*FAST, ("GDAL_HTTP_MAX_RETRY", "0"))), "0.tif")
        assert throttle_of(f"http://127.0.0.1:{server.server_port}").slowed is slowed


def test_a_busy_archive_is_asked_less_until_it_is_no_more(folder, monkeypatch):
    monkeypatch.setattr(throttle, "HOLD_S", 0.05)
    access = replace(HTTP, gdal=PATIENT)
    with serving(folder, delay_s=0.02) as server, ThreadPoolExecutor(12) as pool:
        server.http_faults = [Fault(code=503, in_flight_over=4)]
        refused = []
        for first in (0, 12):
            got = list(pool.map(lambda n: read(server, access, f"{n}.tif", box=COLUMN), range(first, first + 12)))
            assert all(np.array_equal(values, PIXELS[:512, :128]) for values in got)
            refused.append(sum(entry.status == 503 for entry in server.log) - sum(refused))
        assert refused[0] > 8
        assert refused[1] < refused[0] / 4
