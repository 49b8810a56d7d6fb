"""Ranks the candidate scenes of a cell by how clear they are, and remembers the outcome.

The score is a pure function of the classification over the WHOLE cell, whatever part of it a tile reads, so that
neighbouring tiles and later runs choose alike. It is taken from overviews, at 80 m. Composites that do not rank take
the candidates as they come. Knows nothing of the bands that are composited afterwards.
"""

from __future__ import annotations

import json
import logging
import math
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from pipeline.errors import DataError, TransientError
from pipeline.read.cloudmask import BANDS, OmniCloudMask, masked_cell
from pipeline.read.overviews import read_classes
from pipeline.read.rank_store import FolderRanks, MemoryRanks, RankStore
from pipeline.read.reads import has_band
from pipeline.read.scores import BLOCKS, Looked, by_classes, by_clear_cover, by_mask
from pipeline.read.windows import pixels_centred_in
from pipeline.types import canonical_json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from concurrent.futures import Executor, Future

    import numpy as np
    from numpy.typing import NDArray

    from pipeline.read.cloudmask import CloudMask
    from pipeline.read.reads import Reads
    from pipeline.read.rules import ReadRule
    from pipeline.types import Box, Candidates, Cell, Scene

__all__ = ["FolderRanks", "MemoryRanks", "RankStore", "Ranking", "Ranks", "rank_all", "rank_key", "rank_scenes"]

log = logging.getLogger(__name__)

RANK_VERSION = 2
"""Part of the key; goes up when a score changes. 2: from overviews, with clear shares."""
RANK_FACTOR = 4
"""Overview that ranks: 80 m, 65 thousand pixels a cell; shares stand still to a few tenths of a percent there, for a
sixteenth of the pixels (an archive's classification has overviews of 2, 4, 8, 16)."""
_BY = {"scl": by_classes, "clear": by_clear_cover}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """The order in which scenes fill a period of a cell.

    Attributes:
        scene_ids: Best first.
        scores: Lower is better; inf when the scene has no readable classification; () where nothing was ranked.
        failed: Scenes that could not be looked at now, or only through an alternate: overviews of another provider are
            made otherwise, and the order must not depend on which copy could be read. Such a ranking is not stored.
        clear: (scene id, percent of its observed pixels that are clear, per block: see ``scores.Looked``).
        notes: What people should know.
    """

    scene_ids: tuple[str, ...]
    scores: tuple[float, ...] = ()
    failed: tuple[str, ...] = ()
    clear: tuple[tuple[str, bytes], ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ranks:
    """What ranking needs.

    Attributes:
        store: Remembers rankings.
        reads: Reads classifications and bands.
        pool: Runs the reads.
        mask: For ``composite: omnicloudmask``; None: OmniCloudMask itself, loaded when it is needed.
    """

    store: RankStore
    reads: Reads
    pool: Executor
    mask: CloudMask | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """A scene looked at.

    Attributes:
        seen: Its score and clear shares.
        nbytes: Bytes of pixels decoded.
        notes: For people.
        borrowed: Whether the scene has a classification of its own and an alternate's stood in for it.
    """

    seen: Looked
    nbytes: int
    notes: tuple[str, ...] = ()
    borrowed: bool = False


def rank_scenes(looked: Mapping[str, Looked], candidates: Candidates, *, failed: Sequence[str] = ()) -> Ranking:
    """Order the candidates by score; ties keep the candidates' own order.

    Args:
        looked: By scene id; a missing one counts as worst.
        candidates: The scenes, in their total order.
        failed: Passed on into the ranking.
    """
    scores = {i: (looked[i].score, looked[i].tie) if i in looked else (math.inf, 0.0) for i in candidates.scene_ids}
    order = sorted(candidates.scene_ids, key=lambda i: scores[i])  # sorted() is stable
    return Ranking(
        scene_ids=tuple(order),
        scores=tuple(scores[i][0] for i in order),
        failed=tuple(i for i in order if i in set(failed)),
        clear=tuple((i, looked[i].clear) for i in order if i in looked),
    )


def rank_key(candidates: Candidates, *, by: str = "scl") -> str:
    """Name of the ranking: cell, period, candidates, what ranked and its version."""
    return f"{candidates.cell.id}_p{candidates.period}_{candidates.fingerprint}_{by}_v{RANK_VERSION}"


def rank_all(
    groups: Sequence[Candidates], *, scenes: Mapping[str, Scene], rule: ReadRule, ranks: Ranks
) -> tuple[tuple[Ranking, ...], int]:
    """Rank every group of candidates; stored rankings are used, the others computed in parallel and stored.

    Must not be called from inside the pool.

    Args:
        groups: One per cell and period.
        scenes: By id.
        rule: Its composite says how to rank, or not to.
        ranks: Store, reads and pool.

    Returns:
        (one ranking per group, bytes of pixels decoded).

    Raises:
        ConfigError: A cloud mask is wanted that is not installed.
        InvalidInputError: A scene's location is not allowed.
        TransientError: No token.
        OutputError: The store of rankings fails.
    """
    if rule.how.order == "given":
        return tuple(Ranking(scene_ids=group.scene_ids) for group in groups), 0
    look = _Looking(rule, ranks)
    known = look.known(groups)
    if all(known):
        return tuple(r for r in known if r is not None), 0
    with ranks.store.turn():
        return look.missing(groups, look.known(groups), scenes)


class _Looking:
    """How one rule looks at scenes."""

    def __init__(self, rule: ReadRule, ranks: Ranks) -> None:
        self._ranks = ranks
        self._spec = rule.spec
        self._order = rule.how.order
        self._mask = (ranks.mask or OmniCloudMask()) if self._order == "mask" else None
        self._by = self._mask.name if self._mask else self._order

    def known(self, groups: Sequence[Candidates]) -> list[Ranking | None]:
        """What is stored already."""
        return [self._load(group) if group.scene_ids else Ranking(scene_ids=()) for group in groups]

    def missing(
        self, groups: Sequence[Candidates], known: list[Ranking | None], scenes: Mapping[str, Scene]
    ) -> tuple[tuple[Ranking, ...], int]:
        """Look at the scenes of what is not ``known``."""
        jobs: dict[tuple[int, str], Future[_Look]] = {}
        try:
            for i, group in enumerate(groups):
                for scene_id in group.scene_ids if known[i] is None else ():
                    if self._can_look_at(scenes[scene_id]):
                        jobs[i, scene_id] = self._ranks.pool.submit(self._look, scenes[scene_id], group.cell)
            results = {key: _result(job, key[1]) for key, job in jobs.items()}
        finally:
            for job in jobs.values():
                job.cancel()
        rankings = []
        for i, group in enumerate(groups):
            own = {scene_id: result for (k, scene_id), result in results.items() if k == i}
            rankings.append(known[i] or self._rank(group, own))
        return tuple(rankings), sum(look.nbytes for look in results.values() if look is not None)

    def _rank(self, group: Candidates, results: Mapping[str, _Look | None]) -> Ranking:
        looks = {scene_id: look for scene_id, look in results.items() if look is not None}
        failed = [i for i in results if i not in looks or looks[i].borrowed]
        found = rank_scenes({i: look.seen for i, look in looks.items()}, group, failed=failed)
        notes = tuple(dict.fromkeys(note for i in found.scene_ids if i in looks for note in looks[i].notes))
        ranking = Ranking(
            scene_ids=found.scene_ids, scores=found.scores, failed=found.failed, clear=found.clear, notes=notes
        )
        return ranking if ranking.failed else self._store(group, ranking)

    def _can_look_at(self, scene: Scene) -> bool:
        return all(has_band(scene, band) for band in (BANDS if self._mask else (self._spec.class_band,)))

    def _look(self, scene: Scene, cell: Cell) -> _Look:
        if self._mask is not None:
            masked, bytes_read = masked_cell(scene, cell, mask=self._mask, reads=self._ranks.reads)
            return _Look(seen=by_mask(masked), nbytes=bytes_read)
        box = pixels_centred_in(cell.box, self._spec.class_res_m)
        assert box is not None  # noqa: S101 - a cell has 1024
        notes: list[str] = []
        classes, borrowed = self._classes(scene, box, notes)
        score: Callable[[Any], Looked] = _BY[self._order]
        return _Look(seen=score(classes), nbytes=classes.nbytes, notes=tuple(notes), borrowed=borrowed)

    def _classes(self, scene: Scene, box: Box, notes: list[str]) -> tuple[NDArray[np.uint8], bool]:
        """The classes of a cell, and whether they are an alternate's although the scene has its own."""
        read = partial(read_classes, box=box, factor=RANK_FACTOR, access=self._ranks.reads.access, note=notes.append)
        if scene.href(self._spec.class_band) is None or not scene.alternates:
            return read(scene), False
        try:
            return read(replace(scene, alternates=())), False
        except (DataError, TransientError) as err:
            log.info("%s", err)
            return read(scene), True

    def _store(self, group: Candidates, ranking: Ranking) -> Ranking:
        clear = {scene_id: shares.hex() for scene_id, shares in ranking.clear}
        text = canonical_json(
            {
                "scene_ids": ranking.scene_ids,
                "scores": [None if math.isinf(s) else s for s in ranking.scores],
                "clear_pct": [clear.get(i) for i in ranking.scene_ids],
                "notes": ranking.notes,
            }
        )
        return self._parse(self._ranks.store.put(rank_key(group, by=self._by), text), group) or ranking

    def _load(self, group: Candidates) -> Ranking | None:
        text = self._ranks.store.get(rank_key(group, by=self._by))
        return None if text is None else self._parse(text, group)

    def _parse(self, text: str, group: Candidates) -> Ranking | None:
        """The ranking in ``text``; None (compute again) when it is torn or of other scenes."""
        try:
            data = json.loads(text)
            ranking = Ranking(
                scene_ids=tuple(str(i) for i in data["scene_ids"]),
                scores=tuple(math.inf if s is None else float(s) for s in data["scores"]),
                clear=tuple(
                    (str(i), bytes.fromhex(shares))
                    for i, shares in zip(data["scene_ids"], data["clear_pct"], strict=True)
                    if shares is not None
                ),
                notes=tuple(str(note) for note in data["notes"]),
            )
        except (ValueError, KeyError, TypeError):
            log.warning("stored ranking %s is not readable, computed again", rank_key(group, by=self._by))
            return None
        whole = all(len(shares) == BLOCKS * BLOCKS for _, shares in ranking.clear)
        same = sorted(ranking.scene_ids) == sorted(group.scene_ids)
        if not (whole and same and len(ranking.scores) == len(ranking.scene_ids)):
            log.warning("stored ranking %s is of other scenes, computed again", rank_key(group, by=self._by))
            return None
        return ranking


def _result(job: Future[_Look], scene_id: str) -> _Look | None:
    try:
        return job.result()
    except DataError as err:
        log.warning("%s cannot be looked at, ranked last: %s", scene_id, err)
        return None
