"""Decoded blocks of files kept for the next tile: neighbours share their halo, and most of a small tile's blocks.

Only below the level of windows: what is read is the same, whoever asks and in which order. GDAL cannot do this: its
block cache goes with the dataset, which is closed after every read, and its network cache keeps nothing of what it
fetches in several ranges at once (128 MB or 1 GB of it: the same bytes).

Measured over loopback, twelve periods of twelve bands of one scene each in files of 512 px blocks, tiles row by row,
two at a time, with 40 px of halo (MB of network and ms of CPU per megapixel of one band on the 10 m grid)::

    tiles             without        256 MB        512 MB        1024 MB
    256 px, 6 x 6     15.8, 140      4.6, 63       1.8, 42
    512 px, 6 x 6     3.64, 35       2.22, 26      1.76, 23      1.10, 19
    1024 px, 3 x 3    2.02, 18                     1.60, 17      1.10, 14
    2048 px, 2 x 2    1.15, 12                     1.00, 11
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
from rasterio.windows import Window

from pipeline.read.access import Access

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray
    from rasterio import DatasetReader

    from pipeline.read.raster import Raster
    from pipeline.types import Asset

T = TypeVar("T")
Key = tuple[str, int, int, int]
"""(unsigned location, band of the file, block row, block column)."""

CACHE_BYTES = 512_000_000
"""The blocks of a 512 px tile of twelve periods of Sentinel-2 are 230 MB: what its eastern neighbour asks again is held
while two tiles are read at once."""
WORTH_BELOW_PX = 2048
"""Tiles of this side and more do without: an eighth of the bytes is not worth the memory."""
LEAST_SIDE_PX, MOST_SIDE_PX = 64, 1024
"""Blocks whose sides are not within are left alone: strips are as wide as the file."""


class _Coming:
    """A block that a thread is reading; others wait for it."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.block: NDArray[Any] | None = None


class BlockCache:
    """Blocks by file and place, the least recently asked dropped first; safe to share between threads.

    A block that is being read by one thread is not read by another, who waits.

    Args:
        limit_bytes: What it holds at most; blocks being read come on top.
    """

    def __init__(self, limit_bytes: int = CACHE_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._blocks: OrderedDict[Key, NDArray[Any]] = OrderedDict()
        self._coming: dict[Key, _Coming] = {}
        self._held_bytes = 0
        self._hits = 0
        self._misses = 0

    @property
    def held_bytes(self) -> int:
        """Bytes of the blocks held now."""
        return self._held_bytes

    def counts(self) -> tuple[int, int]:
        """(blocks found or waited for, blocks read) so far."""
        return self._hits, self._misses

    def claim(self, keys: Iterable[Key]) -> tuple[dict[Key, NDArray[Any]], dict[Key, _Coming], list[Key]]:
        """Sort keys into (held, being read by others, the caller's to read: each must be ``put`` or ``drop``-ed)."""
        held: dict[Key, NDArray[Any]] = {}
        coming: dict[Key, _Coming] = {}
        mine: list[Key] = []
        with self._lock:
            for key in keys:
                if key in self._blocks:
                    self._blocks.move_to_end(key)
                    held[key] = self._blocks[key]
                elif key in self._coming:
                    coming[key] = self._coming[key]
                else:
                    self._coming[key] = _Coming()
                    mine.append(key)
            self._hits += len(held) + len(coming)
            self._misses += len(mine)
        return held, coming, mine

    def put(self, key: Key, block: NDArray[Any]) -> None:
        """Keep a claimed block; nobody may write into it any more."""
        with self._lock:
            coming = self._coming.pop(key)
            self._blocks[key] = block
            self._held_bytes += block.nbytes
            while self._held_bytes > self._limit_bytes and self._blocks:
                self._held_bytes -= self._blocks.popitem(last=False)[1].nbytes
        coming.block = block
        coming.done.set()

    def drop(self, keys: Iterable[Key]) -> None:
        """Give up what was claimed and could not be read; who waits reads it himself."""
        with self._lock:
            given_up = [coming for key in keys if (coming := self._coming.pop(key, None)) is not None]
        for coming in given_up:
            coming.done.set()


def cache_for(tile_px: int) -> BlockCache | None:
    """A cache for a run with tiles of ``tile_px``, None where it does not pay."""
    return BlockCache() if tile_px < WORTH_BELOW_PX else None


@dataclass(frozen=True, kw_only=True)
class CachedAccess(Access):
    """Access whose windows are cut out of whole blocks, which it keeps.

    Attributes:
        cache: Where; not shared with other processes.
    """

    cache: BlockCache = field(default_factory=BlockCache, repr=False, compare=False)

    @classmethod
    def around(cls, access: Access, cache: BlockCache) -> CachedAccess:
        """``access`` with a cache."""
        return cls(**{f.name: getattr(access, f.name) for f in fields(access) if f.init}, cache=cache)

    def read(self, asset: Asset, work: Callable[[DatasetReader], T], *, sign: bool, item: str = "") -> T:
        """See ``Access.read``."""

        def cached(dataset: DatasetReader) -> T:
            return work(cast("DatasetReader", _Blocks(dataset, asset.href, self.cache)))

        return super().read(asset, cached, sign=sign, item=item)

    def read_plain(
        self, asset: Asset, work: Callable[[Raster], T], *, fits: Callable[[Raster], bool], sign: bool, item: str = ""
    ) -> T:
        """See ``Access.read_plain``; a backend that does not tell the blocks of its files reads without the cache."""

        def cached(raster: Raster) -> T:
            # What comes by way of read() is wrapped already; twice, it would wait for itself.
            return work(raster if isinstance(raster, _Blocks) else _Blocks(raster, asset.href, self.cache))

        return super().read_plain(asset, cached, fits=fits, sign=sign, item=item)


class _Blocks:
    """An open file whose windows come out of the cache; everything else is the file's own."""

    def __init__(self, dataset: Raster | DatasetReader, href: str, cache: BlockCache) -> None:
        self._dataset: Any = dataset
        self._href, self._cache = href, cache

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dataset, name)

    def read(self, index: int, *, window: Window | None = None, **options: Any) -> NDArray[Any]:
        """(row, col) raw values of a window of one band."""
        shapes = getattr(self._dataset, "block_shapes", None)
        side = shapes[index - 1] if shapes else (0, 0)
        if window is None or options or not all(LEAST_SIDE_PX <= s <= MOST_SIDE_PX for s in side):
            found: NDArray[Any] = self._dataset.read(index, window=window, **options)
            return found
        grid = _Grid(window, side, self._dataset.shape)
        keys = {(self._href, index, row, col): (row, col) for row, col in grid.blocks()}
        held, coming, mine = self._cache.claim(keys)
        left = set(mine)  # not those that were put: they may be gone already, and claimed by somebody else
        try:
            held |= self._load(index, left, grid)
        finally:
            self._cache.drop(left)
        for key, other in coming.items():
            other.done.wait()
            held[key] = other.block if other.block is not None else self._one(index, keys[key], grid)
        return grid.assemble({keys[key]: block for key, block in held.items()}, self._dataset.dtypes[index - 1])

    def _load(self, index: int, left: set[Key], grid: _Grid) -> dict[Key, NDArray[Any]]:
        """Read blocks, as few rectangles as they make, and keep them; takes each out of ``left`` when it is kept."""
        found = {}
        for row, row_stop, col, col_stop in _rectangles({key[2:] for key in left}):
            whole = self._dataset.read(index, window=grid.window(row, row_stop, col, col_stop))
            for r in range(row, row_stop):
                for c in range(col, col_stop):
                    block = np.ascontiguousarray(whole[grid.cut(r - row, c - col)])
                    key = (self._href, index, r, c)
                    found[key] = block if block.base is None else block.copy()
                    left.discard(key)
                    self._cache.put(key, found[key])
        return found

    def _one(self, index: int, place: tuple[int, int], grid: _Grid) -> NDArray[Any]:
        row, col = place
        block: NDArray[Any] = self._dataset.read(index, window=grid.window(row, row + 1, col, col + 1))
        return block


class _Grid:
    """The blocks of a file under one window."""

    def __init__(self, window: Window, side: tuple[int, int], shape: tuple[int, int]) -> None:
        self._row, self._col = int(window.row_off), int(window.col_off)
        self._height, self._width = int(window.height), int(window.width)
        self._side, self._shape = side, shape

    def blocks(self) -> Iterator[tuple[int, int]]:
        """(block row, block column), row by row."""
        rows = range(self._row // self._side[0], (self._row + self._height - 1) // self._side[0] + 1)
        cols = range(self._col // self._side[1], (self._col + self._width - 1) // self._side[1] + 1)
        return ((row, col) for row in rows for col in cols)

    def window(self, row: int, row_stop: int, col: int, col_stop: int) -> Window:
        """The pixels of a rectangle of blocks, within the file."""
        north, west = row * self._side[0], col * self._side[1]
        south, east = min(row_stop * self._side[0], self._shape[0]), min(col_stop * self._side[1], self._shape[1])
        return Window(west, north, east - west, south - north)

    def cut(self, row: int, col: int) -> tuple[slice, slice]:
        """Slices of one block in a rectangle of blocks, counted from its first."""
        height, width = self._side
        return slice(row * height, (row + 1) * height), slice(col * width, (col + 1) * width)

    def assemble(self, blocks: dict[tuple[int, int], NDArray[Any]], dtype: str) -> NDArray[Any]:
        """(row, col) the window's pixels."""
        out = np.empty((self._height, self._width), dtype)
        for (row, col), block in blocks.items():
            north, west = row * self._side[0] - self._row, col * self._side[1] - self._col
            top, left = max(0, north), max(0, west)
            bottom, right = min(self._height, north + block.shape[0]), min(self._width, west + block.shape[1])
            out[top:bottom, left:right] = block[top - north : bottom - north, left - west : right - west]
        return out


def _rectangles(places: set[tuple[int, ...]]) -> Iterator[tuple[int, int, int, int]]:
    """(row, row_stop, col, col_stop) of rectangles that make up ``places``: runs of columns, joined over rows."""
    left = sorted(places)
    while left:
        row, col = left[0]
        col_stop = col
        while (row, col_stop) in places:
            col_stop += 1
        row_stop = row + 1
        while all((row_stop, c) in places for c in range(col, col_stop)):
            row_stop += 1
        yield row, row_stop, col, col_stop
        places = places - {(r, c) for r in range(row, row_stop) for c in range(col, col_stop)}
        left = sorted(places)
