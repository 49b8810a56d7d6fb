"""What the tests of remote reading share: one small file, quick retries, a read."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from files import scene_of

from pipeline.read.access import GDAL_SETTINGS, Access
from pipeline.read.windows import read_native
from pipeline.types import Asset, Box

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
