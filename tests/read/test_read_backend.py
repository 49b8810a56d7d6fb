"""The optional backend async-geotiff: rasterio's pixels, rasterio's errors, and rasterio where it does not reach."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import math
import multiprocessing
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from affine import Affine
from files import make_radar, make_scene, region_around, scene_of, write_cog
from range_server import serving
from remote_files import BOX, CANARY, FAST, HTTP, VALUES, Tokens, error_chain, read, read_href

from pipeline.errors import ConfigError, DataError, InvalidInputError
from pipeline.read import async_geotiff, gdal, guard
from pipeline.read.access import Access
from pipeline.read.overviews import read_classes
from pipeline.read.throttle import throttle_of
from pipeline.read.windows import read_band, read_native
from pipeline.types import Asset, Box
from tests.servers.ranges import Fault

INSTALLED = all(importlib.util.find_spec(name) for name in async_geotiff.MODULES)
needs_it = pytest.mark.skipif(not INSTALLED, reason="the extra 'async' is not installed (async-geotiff, obstore)")
ASYNC = replace(HTTP, backend="async-geotiff")
SMALL = {"tiled": True, "blockxsize": 64, "blockysize": 64}


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    """Nothing remembered of other tests' files, and no proxy of the environment."""
    monkeypatch.setattr(async_geotiff._STATE, "left", {})
    monkeypatch.setattr(async_geotiff, "_SAID", set())
    for name in (*guard.PROXY_VARIABLES, "HTTP_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(name="server")
def _server(tmp_path):
    write_cog(tmp_path / "b.tif", VALUES, box=BOX)
    with serving(tmp_path) as server:
        yield server


@pytest.fixture(name="by_rasterio")
def _by_rasterio(monkeypatch):
    """The paths that rasterio opens, in order."""
    opened = []
    real = gdal.open_file

    def spy(path):
        opened.append(path)
        return real(path)

    monkeypatch.setattr("pipeline.read.access.open_file", spy)
    return opened


def write(path, values, *, box=BOX, nodata=0, driver="GTiff", **options):
    """A GeoTIFF with chosen creation options."""
    profile = {"crs": f"EPSG:{box.epsg}", "transform": box.transform} | options
    height, width = values.shape[-2:]
    with rasterio.open(
        path, "w", driver=driver, width=width, height=height, count=1, dtype=values.dtype, nodata=nodata, **profile
    ) as dataset:
        dataset.write(values, 1)
    return path


def raw(href, access, *, box=BOX, sensor="sentinel2_l2a"):
    asset = Asset(band="vv" if sensor == "sentinel1" else "B02", href=href)
    return read_native(replace(scene_of("S", asset), sensor=sensor), asset, box=box, access=access)


def shifted(box, rows, cols):
    return replace(box, row=box.row + rows, col=box.col + cols)


FORMATS = [
    ("uint8", {"compress": "deflate", "predictor": 2}),
    ("uint8", {"compress": "lzw"}),
    ("uint16", {"compress": "deflate", "predictor": 2}),
    ("uint16", {"compress": "lzw", "predictor": 2}),
    ("uint16", {"compress": "zstd", "predictor": 2}),
    ("uint16", {"compress": "zstd"}),
    ("uint16", {}),
    ("uint16", {"compress": "deflate", "predictor": 2, "bigtiff": "yes"}),
    ("uint16", {"compress": "deflate", "predictor": 2, "endianness": "big"}),
    ("int16", {"compress": "deflate", "predictor": 2}),
    ("uint32", {"compress": "deflate", "predictor": 2}),
    ("int32", {"compress": "zstd", "predictor": 2}),
    ("float32", {"compress": "deflate", "predictor": 3}),
    ("float32", {"compress": "lzw", "predictor": 3}),
    ("float32", {"compress": "zstd", "predictor": 3}),
    ("float32", {"compress": "deflate"}),
    ("float32", {"compress": "deflate", "predictor": 3, "endianness": "big"}),
]


@needs_it
@pytest.mark.parametrize(("dtype", "options"), FORMATS)
def test_pixels_are_those_of_rasterio(tmp_path, by_rasterio, dtype, options):
    kind = "sentinel1" if dtype == "float32" else "sentinel2_l2a"
    top = {"uint8": 255, "int16": 32767}.get(dtype, 60000)
    values = np.random.default_rng(3).integers(0, top, BOX.shape) / (1e5 if kind == "sentinel1" else 1)
    write(tmp_path / "a.tif", values.astype(dtype), **SMALL, **options)
    with serving(tmp_path) as server:
        got = raw(server.url("a.tif"), ASYNC, sensor=kind)
        assert by_rasterio == []
        want = raw(server.url("a.tif"), HTTP, sensor=kind)
    assert got.dtype == want.dtype
    np.testing.assert_array_equal(got, want)
    assert len(np.unique(got)) > 200


@needs_it
@pytest.mark.parametrize(("rows", "cols"), [(-70, -70), (130, 150), (-199, 199), (1, 63), (-500, 0)], ids=str)
def test_windows_over_the_edge_are_those_of_rasterio(server, by_rasterio, rows, cols):
    box = shifted(BOX, rows, cols)
    got = read(server, ASYNC, box=box)
    assert by_rasterio == []
    np.testing.assert_array_equal(got, read(server, HTTP, box=box))


@needs_it
@pytest.mark.parametrize(
    ("dtype", "nodata"),
    [("uint16", 77), ("uint16", None), ("int16", -32768), ("float32", -32768), ("float32", math.nan)],
)
def test_nodata_is_that_of_rasterio(tmp_path, by_rasterio, dtype, nodata):
    values = np.random.default_rng(4).integers(70, 90, BOX.shape).astype(dtype)
    if nodata is not None:
        values[:50] = nodata
    write(tmp_path / "a.tif", values, nodata=nodata, compress="deflate", **SMALL)
    kind = "sentinel1" if dtype == "float32" else "sentinel2_l2a"
    with serving(tmp_path) as server:
        got = raw(server.url("a.tif"), ASYNC, sensor=kind)
        assert by_rasterio == []
        np.testing.assert_array_equal(got, raw(server.url("a.tif"), HTTP, sensor=kind))


@needs_it
def test_southern_files_lie_where_rasterio_puts_them(tmp_path, by_rasterio):
    box = replace(BOX, row=100_000)
    write_cog(tmp_path / "a.tif", VALUES, box=box, epsg=32732)
    with serving(tmp_path) as server:
        np.testing.assert_array_equal(read(server, ASYNC, "a.tif", box=box), VALUES)
    assert by_rasterio == []


def _odd(folder, name):
    noise = VALUES
    make = {
        "sparse": lambda p: write(p, np.where(np.arange(200) < 70, noise, 0), sparse_ok=True, **SMALL),
        "striped": lambda p: write(p, noise),
        "lerc": lambda p: write(p, noise, compress="lerc", **SMALL),
        "12 bits": lambda p: write(p, noise // 4, nbits=12, **SMALL),
        "point": lambda p: write(p, noise, **SMALL),
        "float predictor 2": lambda p: write(p, noise.astype(np.float32), compress="deflate", predictor=2, **SMALL),
        "float64": lambda p: write(p, noise.astype(np.float64), **SMALL),
        "rotated": lambda p: write(p, noise, transform=BOX.transform * Affine.rotation(3), **SMALL),
        "lonlat": lambda p: write(p, noise, crs="EPSG:4326", transform=Affine(1e-4, 0, 8.1, 0, -1e-4, 49.6), **SMALL),
        "mask": lambda p: write(p, noise, nodata=None),
    }
    path = make[name](folder / "a.tif")
    if name == "point":
        with rasterio.open(path, "r+") as dataset:
            dataset.update_tags(AREA_OR_POINT="Point")
    if name == "mask":
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as dataset:
            dataset.write_mask(np.full(BOX.shape, 255, np.uint8))
        path = folder / "m.tif"
        rasterio.shutil.copy(folder / "a.tif", path, driver="COG", blocksize=128)
        path.replace(folder / "a.tif")
        path = folder / "a.tif"
    return path


@needs_it
@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("sparse", "sparse"),
        ("striped", "strips"),
        ("lerc", "compression"),
        ("12 bits", "12 bits"),
        ("point", "pixel corners"),
        ("float predictor 2", "predictor is 2"),
        ("float64", "64 bits"),
        ("rotated", "corner and a scale"),
        ("lonlat", "UTM"),
        ("mask", "mask"),
    ],
)
def test_files_it_does_not_know_are_read_by_rasterio_and_said_once(tmp_path, by_rasterio, caplog, name, why):
    caplog.set_level(logging.INFO, logger="pipeline.read.async_geotiff")
    path = _odd(tmp_path, name)
    kind = "sentinel1" if name.startswith("float") else "sentinel2_l2a"
    want = raw(str(path), Access(allow_local=True), sensor=kind)
    by_rasterio.clear()
    with serving(tmp_path) as server:
        for _ in range(3):
            np.testing.assert_array_equal(raw(server.url("a.tif"), ASYNC, sensor=kind), want)
    assert len(by_rasterio) == 3
    assert [why in r.message and "is read by rasterio" in r.message for r in caplog.records] == [True]


@needs_it
def test_files_that_must_be_warped_are_rasterios_and_stay_open_to_plain_windows(server, by_rasterio):
    other = Box(zone=31, res_m=10, row=BOX.row, col=BOX.col + 43_500, height=300, width=300)
    np.testing.assert_array_equal(read(server, ASYNC, box=other), read(server, HTTP, box=other))
    assert len(by_rasterio) == 2
    np.testing.assert_array_equal(read(server, ASYNC), VALUES)
    assert len(by_rasterio) == 2


@needs_it
def test_classes_are_always_read_by_rasterio(tmp_path, by_rasterio):
    made = make_scene(tmp_path, "a", region=region_around(BOX.row, BOX.col), seed=1)
    with serving(tmp_path) as server:
        asset = Asset(band="SCL", href=server.url("a_SCL.tif"))
        box = made.boxes[20]
        box = replace(box, row=box.row // 4 * 4, col=box.col // 4 * 4, height=48, width=48)
        read_classes(scene_of("a", asset), box=box, factor=4, access=ASYNC)
    assert len(by_rasterio) >= 1


@needs_it
def test_bands_of_a_stack_are_the_same_with_both(tmp_path):
    region = region_around(BOX.row, BOX.col)
    made = make_radar(tmp_path, "r", region=region, seed=1, holes=0.2)
    values = made.pixels["vv"]
    write(tmp_path / "r_vv.tif", values, box=region, nodata=-32768, compress="deflate", predictor=3, **SMALL)
    with serving(tmp_path) as server:
        scene = replace(made.scene, assets=(Asset(band="vv", href=server.url("r_vv.tif")),))
        got, want = (read_band(scene, "vv", box=region, access=access) for access in (ASYNC, HTTP))
    np.testing.assert_array_equal(got, want)


@needs_it
def test_local_files_are_read_by_rasterio(tmp_path, by_rasterio):
    path = write_cog(tmp_path / "b.tif", VALUES, box=BOX)
    np.testing.assert_array_equal(read_href(str(path), replace(ASYNC, allow_local=True)), VALUES)
    assert len(by_rasterio) == 1


def fails_alike(server, name):
    """Both backends refuse a file in the same words."""
    texts = []
    for access in (HTTP, ASYNC):
        with pytest.raises(DataError) as caught:
            read(server, access, name)
        texts.append(str(caught.value))
    assert texts[0] == texts[1]


@needs_it
def test_a_missing_file_raises_the_same_error(server):
    fails_alike(server, "missing.tif")


@needs_it
def test_pixels_that_are_not_what_the_sensor_delivers_raise_the_same_error(tmp_path, by_rasterio):
    write(tmp_path / "a.tif", VALUES.astype(np.float32), compress="deflate", **SMALL)
    with serving(tmp_path) as server:
        for access in (ASYNC, HTTP):
            with pytest.raises(DataError, match="pixels are float32"):
                read(server, access, "a.tif")
            assert len(by_rasterio) == int(access is HTTP)


@needs_it
@pytest.mark.parametrize("fault", [Fault(code=503, nth=1), Fault(code=503, nth=2), Fault(kind="reset", nth=2)])
def test_a_request_that_fails_once_is_repeated(server, by_rasterio, fault):
    server.http_faults = [fault]
    np.testing.assert_array_equal(read(server, ASYNC), VALUES)
    assert by_rasterio == []


@needs_it
@pytest.mark.parametrize("kind", ["truncate", "reset"])
def test_a_broken_answer_is_never_taken_for_pixels(server, kind):
    server.http_faults = [Fault(kind=kind, after_bytes=20_000, ranges=True)]
    with pytest.raises(DataError):
        read(server, replace(ASYNC, gdal=(*FAST, ("GDAL_HTTP_MAX_RETRY", "1"))))


@needs_it
def test_a_file_that_fails_here_is_read_by_rasterio_from_then_on(server, by_rasterio):
    server.http_faults = [Fault(code=403, first=1)]
    for _ in range(2):
        np.testing.assert_array_equal(read(server, ASYNC), VALUES)
    assert len(by_rasterio) == 2


@needs_it
def test_damaged_blocks_raise_the_same_error(tmp_path):
    path = write_cog(tmp_path / "b.tif", VALUES, box=BOX)
    data = bytearray(path.read_bytes())
    data[-20_000:-1_000] = b"\x55" * 19_000
    path.write_bytes(data)
    texts = []
    with serving(tmp_path) as server:
        for access in (HTTP, ASYNC):
            with pytest.raises(DataError) as caught:
                read(server, access)
            texts.append(str(caught.value))
    assert texts[0] == texts[1]


@needs_it
def test_urls_are_signed_when_opened_and_the_header_is_kept(server, by_rasterio):
    server.tokens = {CANARY}
    tokens = Tokens()
    access = replace(ASYNC, signer=tokens)
    read(server, access, sign=True)
    asked = len(server.log)
    np.testing.assert_array_equal(read(server, access, sign=True), VALUES)
    assert tokens.signed == 2
    assert len(server.log) - asked == 1
    assert by_rasterio == []


@needs_it
def test_an_expired_token_is_replaced(server):
    server.tokens = {CANARY}
    tokens = Tokens(good_after=1)
    np.testing.assert_array_equal(read(server, replace(ASYNC, signer=tokens), sign=True), VALUES)
    assert tokens.issued == 2


@needs_it
@pytest.mark.parametrize("fault", [Fault(code=403), Fault(code=503), Fault(kind="reset"), Fault(kind="reset", nth=2)])
def test_no_token_is_seen_in_errors_or_logs(server, caplog, fault):
    caplog.set_level(logging.DEBUG)
    server.http_faults = [fault]
    access = replace(ASYNC, signer=Tokens(), gdal=(*FAST, ("GDAL_HTTP_MAX_RETRY", "0")), attempts=1)
    error = None
    try:
        read(server, access, sign=True)
    except DataError as err:
        error = err
    assert CANARY not in " ".join(error_chain(error))
    assert any("is read by rasterio" in r.message for r in caplog.records)
    assert CANARY not in caplog.text
    assert CANARY not in " ".join(str(r.args) + str(r.exc_info) for r in caplog.records)
    assert any(CANARY in target for target, _ in server.requests)


@needs_it
@pytest.mark.parametrize("hosts", [("127.0.0.1",), (".example.org", "127.0.0.1")])
def test_where_a_redirect_must_be_watched_rasterio_reads(server, by_rasterio, caplog, hosts):
    caplog.set_level(logging.INFO, logger="pipeline.read.async_geotiff")
    access = replace(ASYNC, hosts=hosts)
    for _ in range(2):
        np.testing.assert_array_equal(read(server, access), VALUES)
    assert len(by_rasterio) == 2
    assert len([r for r in caplog.records if "must be watched" in r.message]) == 1


@needs_it
def test_a_redirect_to_a_host_that_is_not_allowed_never_arrives(tmp_path, server):
    with serving(tmp_path) as inner:
        server.http_faults = [Fault(kind="redirect", to=f"http://localhost:{inner.server_port}/b.tif")]
        with pytest.raises(InvalidInputError, match="leads to localhost"):
            read(server, replace(ASYNC, hosts=("127.0.0.1",)))
        assert inner.connections == 0


@needs_it
def test_locations_that_are_not_allowed_are_refused_as_ever(server):
    with pytest.raises(InvalidInputError, match="not a public address"):
        read(server, replace(ASYNC, allow_private=False))
    assert server.connections == 0


@needs_it
@pytest.mark.parametrize(
    "href", ["http://h/a%20b.tif", "http://h/../b.tif", "http://h/.b.tif", "gs://b/a.tif", "http://h/"]
)
def test_names_that_obstore_would_write_otherwise_are_rasterios(href):
    assert not async_geotiff.may_read(href, href.partition(":")[0], guarded=False)
    assert async_geotiff.may_read("http://h/a/b-c_d.tif", "http", guarded=False)


@needs_it
def test_with_a_proxy_in_the_environment_rasterio_reads(server, by_rasterio, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # curl ignores it in capitals
    np.testing.assert_array_equal(read(server, ASYNC), VALUES)
    assert len(by_rasterio) == 1


@needs_it
def test_threads_open_a_file_once(server, by_rasterio):
    server.delay_s = 0.02
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda i: read(server, ASYNC, box=shifted(BOX, 0, i)), range(16)))
    assert all(np.array_equal(values, np.pad(VALUES, ((0, 0), (0, i)))[:, i:]) for i, values in enumerate(got))
    assert by_rasterio == []
    assert len([e for e in server.log if e.range.startswith("bytes=0-")]) <= 2


@needs_it
def test_requests_and_bytes_are_those_of_the_server(server):
    before = ASYNC.counts()
    read(server, ASYNC)
    after = ASYNC.counts()
    assert after.requests - before.requests == server.counts()["requests"]
    assert after.bytes - before.bytes == server.counts()["bytes"]


@needs_it
def test_s3_is_read_with_the_settings_of_the_environment(tmp_path, by_rasterio, monkeypatch):
    (tmp_path / "bucket").mkdir()
    write_cog(tmp_path / "bucket" / "b.tif", VALUES, box=BOX)
    monkeypatch.setenv("AWS_NO_SIGN_REQUEST", "YES")
    monkeypatch.setenv("AWS_HTTPS", "NO")
    monkeypatch.setenv("AWS_VIRTUAL_HOSTING", "FALSE")
    with serving(tmp_path) as server:
        monkeypatch.setenv("AWS_S3_ENDPOINT", f"127.0.0.1:{server.server_port}")
        np.testing.assert_array_equal(read_href("s3://bucket/b.tif", ASYNC), VALUES)
        assert by_rasterio == []
        assert server.log


def _in_a_fork(url, queue):
    values = read_href(url, ASYNC)
    queue.put(bool(np.array_equal(values, VALUES)))


@needs_it
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_reads_by_rasterio(server):
    np.testing.assert_array_equal(read(server, ASYNC), VALUES)
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_in_a_fork, args=(server.url("b.tif"), queue))
    child.start()
    child.join(20)
    assert child.exitcode == 0
    assert queue.get()


def test_without_the_extra_the_first_read_says_how_to_get_it(server, monkeypatch):
    monkeypatch.setattr(async_geotiff, "MODULES", ("async_geotiff", "no_such_module"))
    with pytest.raises(ConfigError, match=r"no_such_module.*pip install 'earthpress\[async\]'"):
        read(server, ASYNC)


def test_rasterio_needs_no_extra(server, monkeypatch):
    monkeypatch.setattr(async_geotiff, "MODULES", ("no_such_module",))
    np.testing.assert_array_equal(read(server, HTTP), VALUES)


@pytest.mark.parametrize("gap", [0, async_geotiff.GAP_BYTES, async_geotiff.GAP_BYTES + 1])
def test_ranges_close_to_each_other_are_asked_for_at_once(gap):
    ranges = [(0, 10), (10 + gap, 20 + gap)]
    assert (len(async_geotiff.merged(ranges)) == 1) == (gap <= async_geotiff.GAP_BYTES)
    assert all(a[1] < b[0] for a, b in pairwise(async_geotiff.merged(ranges)))


def test_a_block_that_comes_short_is_an_error():
    class Short:
        async def get_range_async(self, path, *, start, end):
            return b"x" * (end - start - 1)

    with pytest.raises(async_geotiff.LeaveItError, match="9 bytes came for the 10"):
        asyncio.run(async_geotiff._Source(Short()).get_ranges_async("a", starts=[5], ends=[15]))


@needs_it
def test_a_file_that_ends_early_raises_the_same_error(tmp_path):
    path = write(tmp_path / "a.tif", VALUES, **SMALL)
    path.write_bytes(path.read_bytes()[:-5])
    with serving(tmp_path) as server:
        fails_alike(server, "a.tif")


@needs_it
def test_a_server_that_hangs_costs_the_time_limit_once(server, by_rasterio):
    server.http_faults = [Fault(kind="stall", seconds=5, first=1)]
    start = time.monotonic()
    quick = (*FAST, ("GDAL_HTTP_LOW_SPEED_TIME", "1"), ("GDAL_HTTP_MAX_RETRY", "1"))
    np.testing.assert_array_equal(read(server, replace(ASYNC, gdal=tuple(dict(quick).items()))), VALUES)
    assert time.monotonic() - start < 4
    assert by_rasterio == []


@needs_it
def test_a_busy_archive_is_asked_less_by_this_backend_too(tmp_path, by_rasterio):
    for number in range(12):
        write_cog(tmp_path / f"{number}.tif", VALUES, box=BOX)
    with serving(tmp_path, delay_s=0.01) as server, ThreadPoolExecutor(12) as pool:
        slow = throttle_of(f"http://127.0.0.1:{server.server_port}")
        with slow.place():
            slow.busy()
        assert slow.limit == 1
        list(pool.map(lambda n: read(server, ASYNC, f"{n}.tif"), range(12)))
        assert server.peak_in_flight <= 2  # the server holds a request until after its last byte has been read
    assert by_rasterio == []


@needs_it
def test_what_runs_is_stopped_at_the_end_and_would_start_again(server, by_rasterio, monkeypatch):
    read(server, ASYNC)
    monkeypatch.setattr(async_geotiff, "SETTLE_S", 0.0)
    assert "earthpress-async" in {thread.name for thread in threading.enumerate()}
    async_geotiff._STATE.close()
    assert "earthpress-async" not in {thread.name for thread in threading.enumerate()}
    assert not async_geotiff._STATE._files
    np.testing.assert_array_equal(read(server, ASYNC), VALUES)
    assert by_rasterio == []


@needs_it
def test_a_process_that_ends_right_after_a_read_ends_well(server):
    script = f"""
import sys
sys.path[:0] = [{str(Path(__file__).parent)!r}]
from test_read_backend import ASYNC, read_href
for name in ("b.tif", "gone.tif"):
    try:
        read_href({server.url("")!r} + name, ASYNC)
    except Exception as err:
        assert "gone" in str(err), err
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
