"""What the tests of remote reading share: one small file, quick retries, a read."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import rasterio
from files import scene_of

from pipeline.read.access import GDAL_SETTINGS, Access
from pipeline.read.overviews import read_classes
from pipeline.read.windows import read_native
from pipeline.types import Asset, Box

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

BOX = Box(zone=32, res_m=10, row=-550_000, col=40_000, height=200, width=200)
VALUES = np.random.default_rng(1).integers(1, 9000, BOX.shape).astype(np.uint16)
CANARY = "canary4711secret"
FAST = tuple({**dict(GDAL_SETTINGS), "GDAL_HTTP_MAX_RETRY": "3", "GDAL_HTTP_RETRY_DELAY": "0.02"}.items())
HTTP = Access(allow_private=True, gdal=FAST)


def read(server, access, name="b.tif", *, sign=False, box=BOX):
    """The window of a served file."""
    return read_href(server.url(name), access, sign=sign, box=box)


def read_href(href, access, *, sign=False, box=BOX):
    """The window of a file."""
    asset = Asset(band="B02", href=href)
    return read_native(scene_of("S", asset, sign=sign), asset, box=box, access=access)


def error_chain(err):
    """Everything that a traceback of ``err`` would show."""
    while err is not None:
        yield str(err) + repr(err)
        err = err.__cause__ or err.__context__


@dataclass
class Tokens:
    """Signs like the real one: one cached token per process, a fresh one after ``forget``."""

    good_after: int = 0
    issued: int = 0
    signed: int = 0
    _cached: str = field(default="")

    def sign(self, href: str) -> str:
        self.signed += 1
        if not self._cached:
            self.issued += 1
            self._cached = CANARY if self.issued > self.good_after else f"expired{CANARY}"
        return f"{href}?sig={self._cached}"

    def forget(self, href: str) -> None:
        self._cached = ""


def with_tail_overviews(path: Path) -> Box:
    """Write a classification of 1024 x 1024 pixels of 20 m whose overviews lie behind its pixels; returns its box."""
    box = Box(zone=32, res_m=20, row=-276480, col=24576, height=1024, width=1024)
    profile = {"width": 1024, "height": 1024, "count": 1, "dtype": "uint8", "crs": "EPSG:32632", "nodata": 0}
    with rasterio.open(path, "w", driver="GTiff", tiled=True, transform=box.transform, **profile) as made:
        made.write(np.random.default_rng(3).integers(1, 12, box.shape).astype(np.uint8), 1)
    with rasterio.open(path, "r+") as made:
        made.build_overviews([2, 4, 8])
    return box


def classes_of(href: str, box: Box, access: Access) -> NDArray:
    """The classification of a file, thinned by four as for ranking."""
    return read_classes(scene_of("s", Asset(band="SCL", href=href)), box=box, factor=4, access=access)


@contextmanager
def far(folder: Path, *more: str) -> Iterator[int]:
    """The port of a file server in a process of its own: rasterio lists overviews under Python's lock."""
    command = [sys.executable, "-m", "tests.servers.ranges", str(folder), *more]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield int(server.stdout.readline())
    finally:
        server.terminate()
        server.communicate()
