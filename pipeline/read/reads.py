"""What composites ask of a scene: a band or the scene classification over a box, with what people should know of it.

Joins access, offsets and alternates for one run; remembers nothing of pixels. Knows nothing of composites.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import DataError
from pipeline.read.alternates import first_readable
from pipeline.read.offsets import offset_of
from pipeline.read.windows import read_band, read_native

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.read.access import Access
    from pipeline.read.offsets import OffsetMemory
    from pipeline.types import Asset, Box, Scene

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pixels:
    """Some pixels and what was decided to get them.

    Attributes:
        values: (row, col).
        notes: For people.
    """

    values: NDArray[Any]
    notes: tuple[str, ...]


class Reads:
    """Reads bands and classes of scenes; safe to share between threads.

    Args:
        access: Opens files.
        memory: Remembers offsets that had to be asked of pixels.
    """

    def __init__(self, access: Access, memory: OffsetMemory) -> None:
        self.access = access
        self._memory = memory
        self._guard = threading.Lock()
        self._settling: dict[str, threading.Lock] = {}

    def band(self, scene: Scene, band: str, box: Box) -> Pixels:
        """A band over ``box`` in the encoding of a Stack; raises as ``read_band``."""
        self._settle(scene)
        notes: list[str] = []
        values = read_band(scene, band, box=box, access=self.access, memory=self._memory, note=notes.append)
        return Pixels(values=values, notes=tuple(notes))

    def classes(self, scene: Scene, band: str, box: Box) -> Pixels:
        """The scene classification over ``box`` at full resolution, uint8, 0 for nodata; raises as ``read_native``."""
        notes: list[str] = []

        def read(source: Scene, asset: Asset) -> NDArray[np.uint8]:
            values = read_native(source, asset, box=box, access=self.access, nearest=True)
            if values.size and int(values.max()) > 255:
                raise DataError(f"item {source.id}, band {asset.band}: {int(values.max())} is no class (0 to 255)")
            return values.astype(np.uint8)

        return Pixels(values=first_readable(scene, band, read, note=notes.append), notes=tuple(notes))

    def _settle(self, scene: Scene) -> None:
        """Ask a scene's pixels for its offset once, although a dozen bands are read at the same time."""
        if not scene.check_offset:
            return
        with self._guard:
            lock = self._settling.setdefault(scene.id, threading.Lock())
        with lock:
            try:
                offset_of(scene, access=self.access, memory=self._memory)
            except DataError as err:  # read_band meets it again and turns to the alternates
                log.info("%s", err)


def has_band(scene: Scene, band: str) -> bool:
    """Whether the scene or an alternate of it has a file of ``band``."""
    return any(source.href(band) is not None for source in (scene, *scene.alternates))
