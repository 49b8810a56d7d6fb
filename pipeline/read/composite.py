"""Composites made scene by scene in rank order, layer by layer, written in place.

The scenes of a piece are read one after the other until nothing is left to gain; all bands of a scene, and several
periods, are read in parallel, and a scene's windows are dropped as soon as they are laid in. The pixels depend on the
rank order only, never on which read finishes first or how windows are shared. Knows nothing of how scenes were ranked.
"""

from __future__ import annotations

import logging
from collections import deque
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import DataError
from pipeline.read import clearness
from pipeline.read.clearness import Masks
from pipeline.read.pieces import (
    Made,
    area,
    has_data,
    merge_boxes,
    missing_of,
    source_of,
    taken_of,
    window_over,
)
from pipeline.read.reads import has_band

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from concurrent.futures import Executor, Future

    from numpy.typing import NDArray

    from pipeline.read.pieces import Piece
    from pipeline.read.reads import Pixels, Reads
    from pipeline.read.rules import ReadRule
    from pipeline.types import Box, Layer, Scene

log = logging.getLogger(__name__)

READS_IN_FLIGHT = 32
"""Reads handed to the pool at a time: two for each of 16 threads, so that none waits for a composite."""
HELD_BYTES = 160_000_000
"""Another period is begun while the windows of those in work stay below: three of a 2048 px tile of Sentinel-2, a
quarter of a twelve-period Stack. One period is always in work, however large."""
LOOK_AHEAD = 4
"""Classifications that ``first_clear`` reads at once: fewer mean more round trips where many scenes are cloudy, more
mean classifications that nobody asks for."""


def compose(
    pieces: Iterable[Piece],
    layers: Sequence[Layer],
    *,
    rule: ReadRule,
    scenes: Mapping[str, Scene],
    reads: Reads,
    pool: Executor,
) -> tuple[tuple[Made, ...], int]:
    """Fill the layers' arrays, which the caller has just made (all missing), and say from what.

    A pixel of a layer belongs to a scene if any band of that layer has data there. A scene of which a needed band
    cannot be read is left out, in all bands and layers, of every piece whose turn it shared. Must not be called from
    inside ``pool``.

    Args:
        pieces: Disjoint parts of the layers.
        layers: ``pixels`` and ``valid`` are written.
        rule: Says which scene a pixel is taken from; any fill but ``median``.
        scenes: By id, at least those ranked.
        reads: Reads bands and classes.
        pool: Runs the reads.

    Returns:
        (what became of each piece, in the pieces' order, bytes of pixels decoded).

    Raises:
        InvalidInputError: A scene's location is not allowed.
        TransientError: No token.
    """
    fillings = [_Filling(piece, layers, rule) for piece in pieces]
    waiting = deque(
        _Round([f for f in fillings if f.piece.time == time], layers, rule=rule, scenes=scenes, reads=reads)
        for time in sorted({f.piece.time for f in fillings})
    )
    rounds = tuple(waiting)
    running: dict[Future[Pixels], _Round] = {}
    # not ``wait``: it never sees what a pool cancels when it is shut down, and a run that is stopped would hang
    ended: SimpleQueue[Future[Pixels]] = SimpleQueue()

    def begin(current: _Round) -> None:
        for job in current.start(pool):
            running[job] = current
            job.add_done_callback(ended.put)

    try:
        while waiting or running:
            while waiting and _room(waiting[0], running):
                begin(waiting.popleft())
            if running:
                job = ended.get()
                current = running.pop(job)
                if current.arrived(job):
                    begin(current)
    finally:
        for job in running:
            job.cancel()
    return tuple(f.made() for f in fillings), sum(r.bytes_read for r in rounds)


def _room(another: _Round, running: Mapping[Future[Pixels], _Round]) -> bool:
    """Whether another period may be begun beside those in work."""
    held = sum(r.turn_bytes for r in set(running.values()))
    return not running or (len(running) < READS_IN_FLIGHT and held + another.turn_bytes <= HELD_BYTES)


class _Filling:
    """One piece while its scenes are tried in order.

    For every pixel it keeps the number of the scene it was taken from (1 is the first one tried), and for
    ``first_clear`` whether that scene is clear there: such a pixel is settled, others may still be replaced.
    """

    def __init__(self, piece: Piece, layers: Sequence[Layer], rule: ReadRule) -> None:
        self.piece = piece
        self._layers = layers
        self._rule = rule
        self._ranked = deque(piece.ranking.scene_ids)
        self._tried: list[str] = []
        self._skipped: list[str] = []
        self._notes: list[str] = []
        self._origin: dict[int, NDArray[np.uint16]] = {}
        self._settled: dict[int, NDArray[np.bool_]] = {}
        self._made: Made | None = None

    @property
    def under(self) -> Box:
        """The classification's pixels that this piece asks."""
        return clearness.box_under([part for _, part in self.piece.parts], self._rule.spec.class_res_m)

    def unseen(self, masks: Masks, scenes: Mapping[str, Scene]) -> list[Scene]:
        """The scenes whose classification must be read before the next turn; empty when it is known."""
        if self._rule.how.fill != "first_clear" or not self._ranked or not self._open():
            return []
        if masks.known(self._ranked[0], self.under):
            return []
        coming = list(self._ranked)[:LOOK_AHEAD]
        return [scenes[i] for i in coming if not masks.known(i, self.under)]

    def advance(self, masks: Masks, scenes: Mapping[str, Scene]) -> tuple[Scene, list[int]] | None:
        """The next scene and the layers in which it may give a pixel; None when it is not known or nothing is left."""
        while self._ranked and self._open():
            scene = scenes[self._ranked[0]]
            if self._rule.how.fill == "first_clear" and not masks.known(scene.id, self.under):
                return None
            self._ranked.popleft()
            if scene.id in masks.failed:
                self._skipped.append(scene.id)
                continue
            wanted = [layer for layer, part in self.piece.parts if self._may_gain(layer, part, scene, masks)]
            if wanted:
                return scene, wanted
            if self._rule.how.fill == "one_scene":
                self._ranked.clear()
        return None

    def _open(self) -> bool:
        """Whether any pixel may still change."""
        return any(not self._final(layer, part).all() for layer, part in self.piece.parts)

    def _final(self, layer: int, part: Box) -> NDArray[np.bool_]:
        if self._rule.how.fill == "first_clear":
            return self._settled.get(layer, np.zeros(part.shape, np.bool_))
        return self.valid(layer, part)

    def _may_gain(self, layer: int, part: Box, scene: Scene, masks: Masks) -> bool:
        if not any(has_band(scene, band) for band in self._layers[layer].bands):
            return False
        if not self.valid(layer, part).all():
            return True
        if self._rule.how.fill != "first_clear":
            return False
        return bool((masks.over(scene.id, part) & ~self._final(layer, part)).any())

    def skip(self, scene: Scene, notes: Iterable[str]) -> None:
        """Leave ``scene`` out."""
        self._skipped.append(scene.id)
        self._notes += notes

    def take(self, scene: Scene, windows: Windows, masks: Masks, notes: Iterable[str]) -> None:
        """Lay in the windows of ``scene``, given by (layer, band)."""
        self._tried.append(scene.id)
        self._notes += notes
        for layer, part in self.piece.parts:
            bands = range(len(self._layers[layer].bands))
            own = {b: values for b in bands if (values := window_over(windows.get((layer, b), ()), part)) is not None}
            if own:
                self._lay(
                    layer, part, own, masks.over(scene.id, part) if self._rule.how.fill == "first_clear" else None
                )
        if self._rule.how.fill == "one_scene":
            self._ranked.clear()

    def _lay(self, layer: int, part: Box, bands: Mapping[int, NDArray[Any]], clear: NDArray[np.bool_] | None) -> None:
        origin = self._origin.setdefault(layer, np.zeros(part.shape, np.uint16))
        rows, cols = part.slices_in(self._layers[layer].box)
        pixels, valid = self._layers[layer].pixels[self.piece.time, :, rows, cols], self.valid(layer, part)
        if clear is None:
            found = fill(pixels, valid, bands, where=~valid)
        else:
            settled = self._settled.setdefault(layer, np.zeros(part.shape, np.bool_))
            found = fill(pixels, valid, bands, where=~valid | (clear & ~settled))
            settled |= found & clear
        origin[found] = len(self._tried)

    def valid(self, layer: int, part: Box) -> NDArray[np.bool_]:
        """View of the part's mask."""
        view: NDArray[np.bool_] = self._layers[layer].valid[self.piece.time][part.slices_in(self._layers[layer].box)]
        return view

    def made(self) -> Made:
        """What became of the piece; called when nothing is left to do. Forgets the origin of the pixels."""
        if self._made is None:
            numbered = list(enumerate(self._tried, 1))
            used = [np.bincount(o.ravel(), minlength=len(numbered) + 1) > 0 for o in self._origin.values()]
            kept = [(n, scene_id) for n, scene_id in numbered if any(u[n] for u in used)]
            layer, part = self.piece.parts[0]
            origin = self._origin.get(layer, np.zeros(part.shape, np.uint16))
            taken = taken_of(
                self.piece,
                scene_ids=tuple(scene_id for _, scene_id in kept),
                gave=(origin == n for n, _ in kept),
                clear=self._settled.get(layer),
            )
            selected = [scene_id for _, scene_id in kept]
            source = source_of(self.piece, selected=selected, skipped=self._skipped, notes=self._notes)
            self._origin, self._settled = {}, {}
            self._made = Made(source=source, taken=taken)
        return self._made


Windows = dict[tuple[int, int], list[tuple["Box", "NDArray[Any]"]]]
"""Windows of one scene by (layer, band)."""


class _Round:
    """The pieces of one period: each tries its next scene, those at the same scene share windows."""

    def __init__(
        self,
        fillings: Sequence[_Filling],
        layers: Sequence[Layer],
        *,
        rule: ReadRule,
        scenes: Mapping[str, Scene],
        reads: Reads,
    ) -> None:
        self._fillings = fillings
        self._layers = layers
        self._rule = rule
        self._scenes = scenes
        self._reads = reads
        self._masks = Masks()
        self._turns: list[tuple[_Filling, Scene]] = []
        self._bands: dict[Future[Pixels], tuple[str, int, int, Box]] = {}
        self._looks: dict[Future[Pixels], tuple[str, Box]] = {}
        self._late: set[Future[Pixels]] = set()
        self.bytes_read = 0
        self.turn_bytes = sum(
            area(part) * len(layers[layer].bands) * layers[layer].pixels.itemsize
            for f in fillings
            for layer, part in f.piece.parts
        )

    def start(self, pool: Executor) -> list[Future[Pixels]]:
        """Hand out the next reads: classifications that must be known first, else bands; empty when all is done."""
        while True:
            self._looks = self._ask_classes(pool)
            self._bands = {} if self._looks else self._ask_bands(pool)
            if self._looks or self._bands or not any(f.unseen(self._masks, self._scenes) for f in self._fillings):
                break
        if not (self._looks or self._bands):
            for filling in self._fillings:
                filling.made()
            self._masks = Masks()
        self._late = {*self._looks, *self._bands}
        return list(self._late)

    def _ask_classes(self, pool: Executor) -> dict[Future[Pixels], tuple[str, Box]]:
        wanted: dict[str, list[Box]] = {}
        for filling in self._fillings:
            for scene in filling.unseen(self._masks, self._scenes):
                if has_band(scene, self._rule.spec.class_band):
                    wanted.setdefault(scene.id, []).append(filling.under)
                else:  # nobody knows where it is clear: it fills what nothing else does
                    self._masks.hidden(scene.id, filling.under)
        jobs = {}
        for scene_id, boxes in wanted.items():
            for box in merge_boxes(boxes):
                margin = box.pad(self._rule.dilate_px) if self._rule.dilate_px else box
                job = pool.submit(self._reads.classes, self._scenes[scene_id], self._rule.spec.class_band, margin)
                jobs[job] = scene_id, box
        return jobs

    def _ask_bands(self, pool: Executor) -> dict[Future[Pixels], tuple[str, int, int, Box]]:
        parts: dict[tuple[str, int], list[Box]] = {}
        self._turns = []
        for filling in self._fillings:
            step = filling.advance(self._masks, self._scenes)
            if step is not None:
                self._turns.append((filling, step[0]))
                for layer, part in filling.piece.parts:
                    if layer in step[1]:
                        parts.setdefault((step[0].id, layer), []).append(part)
        jobs = {}
        for (scene_id, layer), boxes in parts.items():
            scene = self._scenes[scene_id]
            for band, name in enumerate(self._layers[layer].bands):
                if has_band(scene, name):
                    for box in merge_boxes(boxes):
                        jobs[pool.submit(self._reads.band, scene, name, box)] = scene_id, layer, band, box
        return jobs

    def arrived(self, job: Future[Pixels]) -> bool:
        """Note that a read has finished; True when it was the last one and all have been dealt with."""
        self._late.discard(job)
        if self._late:
            return False
        self._learn()
        self._deal()
        return True

    def _learn(self) -> None:
        for job, (scene_id, box) in self._looks.items():
            found = self._result(job, scene_id, self._masks.failed)
            if found is not None:
                self._masks.put(scene_id, box, clearness.clear(found.values, grow_px=self._rule.dilate_px))
        self._looks = {}

    def _deal(self) -> None:
        windows: dict[str, Windows] = {}
        notes: dict[str, list[str]] = {}
        failed: set[str] = set()
        for job, (scene_id, layer, band, box) in self._bands.items():
            found = self._result(job, scene_id, failed)
            if found is not None:
                windows.setdefault(scene_id, {}).setdefault((layer, band), []).append((box, found.values))
                notes.setdefault(scene_id, []).extend(found.notes)
        self._bands = {}
        for filling, scene in self._turns:
            if scene.id in failed:
                filling.skip(scene, notes.get(scene.id, ()))
            else:
                filling.take(scene, windows[scene.id], self._masks, notes.get(scene.id, ()))
        self._turns = []

    def _result(self, job: Future[Pixels], scene_id: str, failed: set[str]) -> Pixels | None:
        try:
            found = job.result()
        except DataError as err:
            if scene_id not in failed:  # one line a scene, not one a band
                log.warning("scene %s left out: %s", scene_id, err)
            failed.add(scene_id)
            return None
        self.bytes_read += found.values.nbytes
        return found


def fill(
    pixels: NDArray[Any], valid: NDArray[np.bool_], bands: Mapping[int, NDArray[Any]], *, where: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Lay one scene into the places where it may go and has data.

    Args:
        pixels: (band, row, col), written.
        valid: (row, col), written: which pixels are taken.
        bands: (row, col) by position of the band; what is replaced keeps nothing of a band that is not among them.
        where: (row, col) places that may be written.

    Returns:
        (row, col) which pixels were taken from the scene.
    """
    found = np.zeros(valid.shape, dtype=np.bool_)
    for values in bands.values():
        found |= has_data(values)
    found &= where
    if found.any():
        for band, own in enumerate(pixels):
            np.copyto(own, bands.get(band, missing_of(pixels)), where=found)
        valid |= found
    return found
