"""First valid pixel in rank order, layer by layer, written in place.

A piece is the part of a Stack that lies in one cell and one period. Its scenes are read one after the other until no
hole is left; all bands of a scene, and several periods, are read in parallel. Pieces of one period that are at the
same scene share their windows: a tile's halo reaches into eight more cells, and reading its strips one by one would
decode most blocks twice. The pixels depend on the rank order only, never on which read finishes first or how windows
are shared. Knows nothing of how scenes were ranked.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import DataError
from pipeline.read.windows import read_native
from pipeline.types import Box, PeriodSource

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from concurrent.futures import Executor

    from numpy.typing import NDArray

    from pipeline.read.access import Access
    from pipeline.read.rank import Ranking
    from pipeline.types import Asset, Cell, Layer, Scene

log = logging.getLogger(__name__)

READS_IN_FLIGHT = 32
"""Reads handed to the pool at a time: two for each of 16 threads, so that none waits for a composite. Three periods'
windows are in hand then, a quarter of a twelve-period Stack."""
MERGE_WASTE = 1.1
"""Windows are read as one when their common rectangle has at most this times their pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What one cell and period contribute to a Stack.

    Attributes:
        cell: The cell.
        period: ``Period.index``.
        time: Position on the layers' time axis.
        ranking: The scenes, best first.
        parts: (position of the layer, box of its pixels that belong to the cell).
    """

    cell: Cell
    period: int
    time: int
    ranking: Ranking
    parts: tuple[tuple[int, Box], ...]


def compose(
    pieces: Iterable[Piece], layers: Sequence[Layer], *, scenes: Mapping[str, Scene], access: Access, pool: Executor
) -> tuple[tuple[PeriodSource, ...], int]:
    """Fill the layers' arrays, which the caller has just made (all zero), and say from what.

    A pixel of a layer belongs to the first scene in which any band of that layer is not 0. A scene of which a needed
    band cannot be read is left out, in all bands and layers, of every piece whose turn it shared. Must not be called
    from inside ``pool``.

    Args:
        pieces: Disjoint parts of the layers.
        layers: ``pixels`` and ``valid`` are written.
        scenes: By id, at least those ranked.
        access: Opens files.
        pool: Runs the reads.

    Returns:
        (one source per piece in the pieces' order, bytes of pixels decoded).

    Raises:
        InvalidInputError: A scene's location is not allowed.
        TransientError: No token.
    """
    fillings = [_Filling(piece, layers) for piece in pieces]
    rounds = [
        _Round([f for f in fillings if f.piece.time == time], layers, scenes)
        for time in sorted({f.piece.time for f in fillings})
    ]
    waiting = deque(rounds)
    running: dict[Future[NDArray[np.uint16]], _Round] = {}
    try:
        while waiting or running:
            while waiting and len(running) < READS_IN_FLIGHT:
                current = waiting.popleft()
                running |= dict.fromkeys(current.start(access, pool), current)
            for job in wait(running, return_when=FIRST_COMPLETED).done if running else ():
                current = running.pop(job)
                if current.arrived(job):
                    running |= dict.fromkeys(current.start(access, pool), current)
    finally:
        for job in running:
            job.cancel()
    return tuple(f.source() for f in fillings), sum(r.bytes_read for r in rounds)


class _Filling:
    """One piece while its scenes are tried in order."""

    def __init__(self, piece: Piece, layers: Sequence[Layer]) -> None:
        self.piece = piece
        self._layers = layers
        self._ranked = deque(piece.ranking.scene_ids)
        self._selected: list[str] = []
        self._skipped: list[str] = []

    def advance(self, scenes: Mapping[str, Scene]) -> tuple[Scene, list[int]] | None:
        """The next scene and the layers in which it may fill a hole; None when the piece is finished."""
        open_layers = [layer for layer, box in self.piece.parts if not self.valid(layer, box).all()]
        while self._ranked and open_layers:
            scene = scenes[self._ranked.popleft()]
            have = {a.band for a in scene.assets}
            wanted = [layer for layer in open_layers if have.intersection(self._layers[layer].bands)]
            if wanted:
                return scene, wanted
        return None

    def skip(self, scene: Scene) -> None:
        """Leave ``scene`` out."""
        self._skipped.append(scene.id)

    def take(self, scene: Scene, windows: Mapping[tuple[int, int], list[tuple[Box, NDArray[np.uint16]]]]) -> None:
        """Fill holes from the windows of ``scene``, given by (layer, band)."""
        used = False
        for layer, part in self.piece.parts:
            own = {
                band: next(values[part.slices_in(box)] for box, values in read if _around(box, part) == box)
                for (of, band), read in windows.items()
                if of == layer and any(_around(box, part) == box for box, _ in read)
            }
            if own:
                rows, cols = part.slices_in(self._layers[layer].box)
                pixels = self._layers[layer].pixels[self.piece.time, :, rows, cols]
                used |= fill_holes(pixels, self.valid(layer, part), own)
        if used:
            self._selected.append(scene.id)

    def valid(self, layer: int, part: Box) -> NDArray[np.bool_]:
        """View of the part's mask."""
        view: NDArray[np.bool_] = self._layers[layer].valid[self.piece.time][part.slices_in(self._layers[layer].box)]
        return view

    def source(self) -> PeriodSource:
        """What filled the piece; scenes without a readable classification count as skipped, even if used last."""
        ranking = self.piece.ranking
        skipped = {*self._skipped, *ranking.failed}
        return PeriodSource(
            cell_id=self.piece.cell.id,
            period=self.piece.period,
            selected=tuple(self._selected),
            skipped=tuple(i for i in ranking.scene_ids if i in skipped),
            scores=tuple(score if math.isfinite(score) else None for score in ranking.scores),
        )


class _Round:
    """The pieces of one period: each tries its next scene, those at the same scene share windows."""

    def __init__(self, fillings: Sequence[_Filling], layers: Sequence[Layer], scenes: Mapping[str, Scene]) -> None:
        self._fillings = fillings
        self._layers = layers
        self._scenes = scenes
        self._turns: list[tuple[_Filling, Scene]] = []
        self._jobs: dict[Future[NDArray[np.uint16]], tuple[str, int, int, Box]] = {}
        self._late: set[Future[NDArray[np.uint16]]] = set()
        self.bytes_read = 0

    def start(self, access: Access, pool: Executor) -> list[Future[NDArray[np.uint16]]]:
        """Hand out the reads of the next round; empty when the period is finished."""
        parts: dict[tuple[str, int], list[Box]] = {}
        self._turns = []
        for filling in self._fillings:
            step = filling.advance(self._scenes)
            if step is not None:
                self._turns.append((filling, step[0]))
                for layer, part in filling.piece.parts:
                    if layer in step[1]:
                        parts.setdefault((step[0].id, layer), []).append(part)
        self._jobs = {}
        for (scene_id, layer), boxes in parts.items():
            scene = self._scenes[scene_id]
            for band, name in enumerate(self._layers[layer].bands):
                asset = scene.href(name)
                if asset is None:
                    continue
                for box in merge_boxes(boxes):
                    job = pool.submit(_read_band, scene, asset, box, access)
                    self._jobs[job] = scene_id, layer, band, box
        self._late = set(self._jobs)
        return list(self._jobs)

    def arrived(self, job: Future[NDArray[np.uint16]]) -> bool:
        """Note that a read has finished; True when it was the round's last and the round has been dealt with."""
        self._late.discard(job)
        if self._late:
            return False
        windows: dict[str, dict[tuple[int, int], list[tuple[Box, NDArray[np.uint16]]]]] = {}
        failed: set[str] = set()
        for done, (scene_id, layer, band, box) in self._jobs.items():
            try:
                values = done.result()
            except DataError as err:
                if scene_id not in failed:  # one line a scene, not one a band
                    log.warning("scene %s left out: %s", scene_id, err)
                failed.add(scene_id)
            else:
                self.bytes_read += values.nbytes
                windows.setdefault(scene_id, {}).setdefault((layer, band), []).append((box, values))
        for filling, scene in self._turns:
            if scene.id in failed:
                filling.skip(scene)
            else:
                filling.take(scene, windows[scene.id])
        self._jobs = {}
        return True


def merge_boxes(boxes: Iterable[Box]) -> tuple[Box, ...]:
    """Join rectangles while their common rectangle wastes little; every box lies inside one of the result.

    >>> west = Box(zone=31, res_m=10, row=0, col=0, height=8, width=8)
    >>> east = Box(zone=31, res_m=10, row=0, col=8, height=8, width=2)
    >>> [b.shape for b in merge_boxes([west, east])]
    [(8, 10)]
    """
    merged: list[Box] = []
    for box in boxes:
        joined, again = box, True
        while again:
            again = False
            for other in merged:
                common = _around(joined, other)
                if _area(common) <= MERGE_WASTE * (_area(joined) + _area(other)):
                    merged.remove(other)
                    joined, again = common, True
                    break
        merged.append(joined)
    return tuple(merged)


def _around(a: Box, b: Box) -> Box:
    row, col = min(a.row, b.row), min(a.col, b.col)
    height, width = max(a.row_stop, b.row_stop) - row, max(a.col_stop, b.col_stop) - col
    return Box(zone=a.zone, res_m=a.res_m, row=row, col=col, height=height, width=width)


def _area(box: Box) -> int:
    return box.height * box.width


def fill_holes(pixels: NDArray[np.uint16], valid: NDArray[np.bool_], bands: Mapping[int, NDArray[np.uint16]]) -> bool:
    """Put one scene under what is there already.

    Args:
        pixels: (band, row, col), written.
        valid: (row, col), written: which pixels are taken.
        bands: (row, col) by position of the band; a band that is missing stays 0 in the scene's pixels.

    Returns:
        Whether a pixel was taken from the scene.
    """
    found = np.zeros(valid.shape, dtype=np.bool_)
    for values in bands.values():
        found |= values != 0
    found &= ~valid
    if not found.any():
        return False
    for band, values in bands.items():
        np.copyto(pixels[band], values, where=found)
    valid |= found
    return True


def add_offset(pixels: NDArray[np.uint16], offset: int) -> NDArray[np.uint16]:
    """``pixels`` + ``offset`` where not 0, saturating at 65535; 0 is nodata and stays.

    >>> add_offset(np.array([0, 1, 65000], dtype=np.uint16), 1000).tolist()
    [0, 1001, 65535]
    """
    if offset == 0:
        return pixels
    top = np.uint16(65535 - offset)
    return np.where(pixels == 0, pixels, np.minimum(pixels, top) + np.uint16(offset))


def _read_band(scene: Scene, asset: Asset, box: Box, access: Access) -> NDArray[np.uint16]:
    return add_offset(read_native(scene, asset, box=box, access=access), scene.boa_offset)
