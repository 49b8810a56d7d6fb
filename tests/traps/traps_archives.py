"""Traps of archives that serve files: signatures, token services, throttling, files that are corrupt or gone."""

from __future__ import annotations

import functools
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import numpy as np
import requests

from pipeline.errors import NoDataError, TransientError
from pipeline.plan import hrefs
from pipeline.read import access, composite, gdal, rank, signing, throttle, windows
from pipeline.read.access import GDAL_SETTINGS, Access
from pipeline.read.rules import ReadRule
from pipeline.read.throttle import MOST, throttle_of
from pipeline.read.windows import read_native
from pipeline.run.status import to_do
from pipeline.simulate.sample import make_sample
from pipeline.types import Asset, Box
from tests.plan.catalog_items import item
from tests.read.files import make_scene, scene_of, write_cog
from tests.run.sampled import part, request_of, run_request
from tests.servers.ranges import Fault, Sas, serving
from tests.traps.grounds import REGION, SELF, SMALL, blue, s2, stack_of, with_files
from tests.traps.traps import refuses, swap, trap

QUICK = tuple({**dict(GDAL_SETTINGS), "GDAL_HTTP_MAX_RETRY": "8", "GDAL_HTTP_RETRY_DELAY": "0.02"}.items())
HTTP = Access(allow_private=True, gdal=QUICK)
BLOB = "https://sentinel2l2a01.blob.core.windows.net/sentinel2-l2/32/U/b.tif"
PIXELS = np.random.default_rng(1).integers(1, 9000, SMALL.shape).astype(np.uint16)


def read(server, how, name="box/b.tif", *, sign=False):
    """A served file, whole."""
    asset = Asset(band="B02", href=server.url(name))
    return read_native(scene_of("S", asset, sign=sign), asset, box=SMALL, access=how)


@contextmanager
def archive(folder, patch, *, sas=None, **options):
    """A container of two files, with the service that issues tokens for it."""
    from planetary_computer.settings import Settings

    (folder / "box").mkdir(exist_ok=True)
    for name in ("b", "c"):
        write_cog(folder / "box" / f"{name}.tif", PIXELS, box=SMALL)
    with serving(folder, sas=sas, **options) as server:
        patch.setattr(Settings.get(), "sas_url", server.sas_url)
        patch.setattr(Settings.get(), "subscription_key", None)
        yield server


def here():
    """Signs for the loopback server."""
    return replace(HTTP, signer=signing.PlanetaryComputer(hosts=("127.0.0.1",)))


# --- 18: signatures expire --------------------------------------------------------------------------------------------


@trap(18, off=swap(hrefs, "unsigned", lambda href: href))
def scenes_keep_unsigned_hrefs(folder, patch):
    assert "sig=hunter2" in str(item("s"))
    assert "hunter2" not in repr(s2("s"))


@trap(18, off=swap(access, "signed", lambda signer, href, *, refused="": signer.sign(href)))
def a_token_that_expired_is_replaced_once_it_is_refused(folder, patch):
    with archive(folder, patch, sas=Sas()) as server:
        read(server, here(), sign=True)
        server.sas.revoke()
        np.testing.assert_array_equal(read(server, here(), "box/c.tif", sign=True), PIXELS)
        assert len(server.sas.issued) == 2


_Signer = signing.PlanetaryComputer


@trap(18, off=swap(signing, "PlanetaryComputer", functools.partial(_Signer, renew_s=60.0)))
def a_token_is_renewed_ten_minutes_before_it_ends(folder, patch):
    with archive(folder, patch, sas=Sas(life_s=3600)):
        signer, now_s = signing.PlanetaryComputer(), signing.time.time()
        first = signer.sign(BLOB)
        patch.setattr(signing.time, "time", lambda: now_s + 2950)
        assert signer.sign(BLOB) == first
        patch.setattr(signing.time, "time", lambda: now_s + 3050)
        assert signer.sign(BLOB) != first


# --- 19: the token service --------------------------------------------------------------------------------------------


@trap(19, off=swap(signing, "_LOCKS", lambda key: nullcontext()))
def sixty_four_signs_on_32_threads_make_one_token_request(folder, patch):
    with archive(folder, patch, sas=Sas()) as server:
        server.delay_s = 0.05  # a window for the race
        gate = threading.Barrier(32)

        def sign(number):
            if number < 32:
                gate.wait()
            return signing.signed(signing.PlanetaryComputer(), BLOB.replace("b.tif", f"{number}.tif"))

        with ThreadPoolExecutor(32) as pool:
            urls = list(pool.map(sign, range(64)))
        assert len(server.sas.issued) == 1
        assert len({url.partition("?")[2] for url in urls}) == 1


@trap(19, off=swap(signing, "BUSY", ()))
def a_token_service_that_is_busy_is_asked_again_when_it_says(folder, patch):
    waits = []
    patch.setattr(signing.time, "sleep", waits.append)
    with archive(folder, patch, sas=Sas()) as server:
        server.http_faults = [Fault(code=429, retry_after="7", nth=1)]
        assert "sig=" in signing.PlanetaryComputer().sign(BLOB)
    assert waits == [7.0]


_get = requests.get


@trap(19, off=swap(requests, "get", lambda url, **options: _get(url, **options | {"timeout": None})))
def a_token_service_that_hangs_is_given_up(folder, patch):
    patch.setattr(signing, "TIMEOUT_S", (0.2, 0.2))
    patch.setattr(signing, "TRIES", 2)
    with archive(folder, patch, sas=Sas()) as server:
        server.http_faults = [Fault(kind="stall", seconds=0.8)]
        with refuses(TransientError, "ReadTimeout after 2 attempts"):
            signing.PlanetaryComputer().sign(BLOB)


# --- 20: throttling ---------------------------------------------------------------------------------------------------

_environment = access.environment


def _without_retries(settings, **more):
    return _environment(settings, **more) | {"GDAL_HTTP_MAX_RETRY": "0"}


@trap(20, off=swap(access, "environment", _without_retries))
def requests_that_are_answered_503_are_repeated(folder, patch):
    patch.delenv("GDAL_HTTP_MAX_RETRY", raising=False)
    with archive(folder, patch, http_faults=[Fault(code=503, first=2)]) as server:
        np.testing.assert_array_equal(read(server, replace(HTTP, attempts=1)), PIXELS)
        assert sum(e.status == 503 for e in server.log) == 2


@trap(20, off=swap(throttle.Throttle, "busy", lambda self: None))
def an_archive_that_says_it_is_busy_is_asked_less_at_once(folder, patch):
    with archive(folder, patch, http_faults=[Fault(code=503, nth=1, per_path=True)]) as server:
        first = folder / "box" / "b.tif"
        for number in range(16):
            (folder / "box" / f"{number}.tif").hardlink_to(first)
        with ThreadPoolExecutor(8) as pool:
            got = list(pool.map(lambda n: read(server, HTTP, f"box/{n}.tif"), range(16)))
        assert all(np.array_equal(values, PIXELS) for values in got)
        assert throttle_of(f"http://127.0.0.1:{server.server_port}").limit < MOST


# --- 21: files that are corrupt or gone -------------------------------------------------------------------------------


class _NeverError(Exception):
    """Nothing raises this."""


def broken_and_whole(folder, how):
    """Two scenes: ``how`` happened to B03 of the first one."""
    first, second = (make_scene(folder, n, region=REGION, seed=s, classes=4) for n, s in (("a", 1), ("b", 2)))
    file = folder / "a_B03.tif"
    file.unlink() if how == "gone" else file.write_bytes(file.read_bytes()[: len(file.read_bytes()) // 3])
    return first.scene, second


def _no_next(patch):
    patch.setattr(composite, "DataError", _NeverError)
    patch.setattr(rank, "DataError", _NeverError)


@trap(21, off=_no_next)
def a_broken_scene_is_replaced_whole_by_the_next_one_and_named(folder, patch):
    for how in ("gone", "cut"):
        first, second = broken_and_whole(folder, how)
        stack = stack_of(first, second.scene, rule=ReadRule())
        np.testing.assert_array_equal(stack.layers[0].pixels[0, 0], second.pixels["B02"])
        np.testing.assert_array_equal(stack.layers[0].pixels[0, 1], second.pixels["B03"])
        assert (stack.sources[0].selected, stack.sources[0].skipped) == (("b",), ("a",))


def _own_only(scene, band, read_one, *, note=None):
    return read_one(scene, scene.href(band))


@trap(21, off=swap(windows, "first_readable", _own_only))
def the_same_product_of_another_catalogue_is_read_with_its_own_offset(folder, patch):
    whole = with_files(replace(scene_of("B"), boa_offset=1000), folder, B02=500)
    gone = replace(scene_of("A", Asset(band="B02", href=str(folder / "gone.tif"))), alternates=(whole,))
    assert set(blue(gone).ravel()) == {1500}


@trap(21, off=swap(gdal.Names, "renew", lambda self, href, *, failed, scheme: None))
def a_file_that_could_not_be_opened_once_is_not_taken_for_gone(folder, patch):
    with archive(folder, patch, http_faults=[Fault(code=404, first=1)]) as server:
        np.testing.assert_array_equal(read(server, HTTP), PIXELS)


@trap(21, off=swap(access, "ATTEMPTS", 1))
def a_broken_answer_is_never_taken_for_pixels(folder, patch):
    box = Box(zone=32, res_m=10, row=SMALL.row, col=SMALL.col, height=512, width=512)
    pixels = np.random.default_rng(2).integers(1, 9000, box.shape).astype(np.uint16)
    write_cog(folder / "large.tif", pixels, box=box)
    with serving(folder, http_faults=[Fault(kind="truncate", ranges=True, nth=2)]) as server:
        asset = Asset(band="B02", href=server.url("large.tif"))
        how = replace(HTTP, attempts=access.ATTEMPTS)
        got = read_native(scene_of("S", asset), asset, box=box, access=how)
        np.testing.assert_array_equal(got, pixels)


SELF_LINK = SELF


@trap(21, off=swap(composite._Filling, "skip", lambda self, scene, notes: None), sample=True)
def a_tile_with_a_replaced_scene_is_degraded_and_tried_again_and_many_of_them_fail_the_run(folder, patch):
    sample = make_sample(folder / "sample")  # is there already
    items = json.loads(sample.catalog.read_text(encoding="utf-8"))["features"]
    for found in items:
        if found["properties"]["datetime"].startswith("2024-04-20"):  # the clear day of the first period
            (sample.folder / found["assets"]["B04"]["href"]).unlink()
    bbox = part(sample.bbox, 0.4, 0.4, 0.45, 0.45)
    plan, outcome = run_request(request_of(sample, folder / "out", bbox=bbox, end="2024-05-01"))
    assert outcome.degraded == outcome.computed == len(plan.tasks) > 0
    assert (outcome.too_degraded, outcome.exit_code) == (True, NoDataError.exit_code)
    assert to_do(plan) == plan.tasks
