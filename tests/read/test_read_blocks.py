"""The cache of decoded blocks: the same pixels from fewer bytes, within its bounds, and nobody waits for ever."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from files import ZONE, candidates, periods, read_stack, scene_of, write_cog
from range_server import serving
from rasterio.windows import Window
from remote_files import HTTP

from pipeline.errors import DataError
from pipeline.read.access import Access
from pipeline.read.blocks import BlockCache, CachedAccess, _Blocks, cache_for
from pipeline.read.rank import MemoryRanks
from pipeline.read.rules import ReadRule
from pipeline.read.stacks import needed_cells
from pipeline.read.windows import read_native
from pipeline.types import Asset, Box, Tile

FILE = Box(zone=ZONE, res_m=10, row=-543_000, col=48_000, height=700, width=650)
VALUES = np.random.default_rng(1).integers(1, 9000, FILE.shape).astype(np.uint16)
RULE = ReadRule(composite="rslearn_mosaic")


@pytest.fixture(name="place", scope="module")
def _place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("blocks")
    for band in ("B02", "B03"):
        write_cog(folder / f"{band}.tif", VALUES, box=FILE)  # blocks of 128
    write_cog(folder / "strips.tif", VALUES, box=FILE, driver="GTiff")
    return folder


def window(access, href, box=FILE):
    asset = Asset(band="B02", href=str(href))
    return read_native(scene_of("S", asset), asset, box=box, access=access)


def local(limit_bytes=10_000_000):
    cache = BlockCache(limit_bytes)
    return CachedAccess.around(Access(allow_local=True), cache), cache


@pytest.mark.parametrize("limit_bytes", [1, 200_000, 10_000_000])
def test_any_window_holds_the_same_pixels(place, limit_bytes):
    access, cache = local(limit_bytes)
    rng = random.Random(1)
    for _ in range(40):
        row, col = FILE.row + rng.randrange(-60, 650), FILE.col + rng.randrange(-60, 600)
        box = replace(FILE, row=row, col=col, height=rng.randrange(1, 300), width=rng.randrange(1, 300))
        got, want = window(access, place / "B02.tif", box), window(Access(allow_local=True), place / "B02.tif", box)
        np.testing.assert_array_equal(got, want)
        assert cache.held_bytes <= limit_bytes


def test_a_block_is_read_once_while_it_is_held(place):
    access, cache = local()
    window(access, place / "B02.tif")
    blocks = 6 * 6
    assert cache.counts() == (0, blocks)
    window(access, place / "B02.tif")
    assert cache.counts() == (blocks, blocks)
    window(access, place / "B03.tif")  # another file
    assert cache.counts() == (blocks, 2 * blocks)


def test_strips_are_left_alone(place):
    access, cache = local()
    np.testing.assert_array_equal(window(access, place / "strips.tif"), VALUES)
    assert cache.counts() == (0, 0)


def test_the_least_recently_asked_block_is_dropped():
    cache = BlockCache(200)
    for n in range(2):
        cache.claim([("f", 1, 0, n)])
        cache.put(("f", 1, 0, n), np.zeros(100, np.uint8))
    cache.claim([("f", 1, 0, 0)])
    cache.claim([("f", 1, 0, 2)])
    cache.put(("f", 1, 0, 2), np.zeros(100, np.uint8))
    held, _, mine = cache.claim([("f", 1, 0, n) for n in range(3)])
    assert set(held) == {("f", 1, 0, 0), ("f", 1, 0, 2)}
    assert mine == [("f", 1, 0, 1)]


def test_threads_that_want_the_same_block_read_it_once(place):
    access, cache = local()
    gate = threading.Barrier(8)

    def work(_):
        gate.wait()
        return window(access, place / "B02.tif")

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(work, range(8)))
    assert all((f == VALUES).all() for f in found)
    assert cache.counts() == (7 * 36, 36)


def test_who_waits_for_a_block_that_fails_reads_it_himself(place):
    access, cache = local()
    key = (str(place / "B02.tif"), 1, 0, 0)
    cache.claim([key])  # somebody reads it, and fails
    corner = replace(FILE, height=100, width=100)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(window, access, place / "B02.tif", corner)
        cache.drop([key])
        np.testing.assert_array_equal(waiting.result(timeout=10), VALUES[:100, :100])


class SlowRaster:
    """A file of blocks of 64 pixels whose reads take a while, each another one."""

    dtypes, block_shapes, shape = ("uint16",), ((64, 64),), (256, 256)
    values = VALUES[:256, :256]

    def read(self, index, *, window):
        time.sleep((window.row_off + window.col_off) % 5 * 0.001)
        row, col = window.row_off, window.col_off
        return self.values[row : row + window.height, col : col + window.width]


def test_blocks_dropped_for_want_of_room_are_read_again_by_who_asks_next():
    cache = BlockCache(limit_bytes=1)  # what is kept is dropped at once, while its reader is still at the next one

    def work(seed):
        rng = random.Random(seed)
        row, col = rng.randrange(200), rng.randrange(200)
        own = Window(col, row, rng.randrange(1, 256 - col), rng.randrange(1, 256 - row))
        got = _Blocks(SlowRaster(), "f", cache).read(1, window=own)
        return np.array_equal(got, SlowRaster.values[row : row + own.height, col : col + own.width])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(120)))


def test_a_file_that_breaks_leaves_nobody_waiting(tmp_path, place):
    broken = tmp_path / "broken.tif"
    whole = (place / "B02.tif").read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    access, _ = local()
    for _ in range(2):
        with pytest.raises(DataError):
            window(access, broken)


@pytest.mark.parametrize(("tile_px", "pays"), [(256, True), (1024, True), (2048, False)])
def test_large_tiles_have_no_cache(tile_px, pays):
    assert (cache_for(tile_px) is not None) is pays


# neighbours over HTTP -----------------------------------------------------------------------------------------------

TILES = tuple(Tile(zone=ZONE, row=FILE.row // 256 + 1, col=FILE.col // 256 + 1 + i, tile_px=256) for i in range(2))


def read_tiles(server, cache):
    scene = scene_of("s", *(Asset(band=b, href=server.url(f"{b}.tif")) for b in ("B02", "B03")))
    stacks = []
    with ThreadPoolExecutor(4) as pool:
        for tile in TILES:
            box = tile.box.pad(40)
            stacks.append(
                read_stack(
                    box=box,
                    periods=periods(1),
                    candidates=candidates(needed_cells(box, rules=(RULE,)), {0: ("s",)}),
                    scenes={"s": scene},
                    access=HTTP,
                    ranks=MemoryRanks(),
                    pool=pool,
                    rule=RULE,
                    cache=cache,
                )
            )
    return stacks


def test_neighbouring_tiles_fetch_fewer_bytes_for_the_same_pixels(place):
    found, fetched = {}, {}
    for name, cache in (("without", None), ("with", BlockCache())):
        with serving(place) as server:  # another port: GDAL knows nothing of the files
            found[name] = read_tiles(server, cache)
            fetched[name] = body_bytes(server, place)
    for a, b in zip(found["without"], found["with"], strict=True):
        np.testing.assert_array_equal(a.layers[0].pixels, b.layers[0].pixels)
        assert a.layers[0].pixels.any()
    assert fetched["with"] < 0.75 * fetched["without"]


def body_bytes(server, folder):
    """Bytes of the bodies that were sent, from the ranges asked for."""
    total = 0
    for path, wanted in server.requests:
        size = (folder / path.lstrip("/")).stat().st_size if (folder / path.lstrip("/")).is_file() else 0
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        total += min(int(last) + 1, size) - int(first) if wanted else 0
    return total


class PlainRaster:
    """A file of a backend that does not tell its blocks."""

    dtypes = ("uint16",)
    shape = FILE.shape

    def read(self, index, *, window):
        return VALUES[window.row_off : window.row_off + window.height, window.col_off : window.col_off + window.width]


def test_a_file_that_does_not_tell_its_blocks_is_read_without_the_cache():
    cache = BlockCache()
    got = _Blocks(PlainRaster(), "f", cache).read(1, window=Window(3, 5, 20, 10))
    np.testing.assert_array_equal(got, VALUES[5:15, 3:23])
    assert cache.counts() == (0, 0)
