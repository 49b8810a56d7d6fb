"""Ranks the candidate scenes of a cell by their scene classification, and remembers the outcome.

The score is a pure function of the classification over the WHOLE cell, whatever part of it a tile reads, so that
neighbouring tiles and later runs choose alike. Knows nothing of the bands that are composited afterwards.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import threading
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pipeline.errors import DataError, OutputError
from pipeline.read.windows import pixels_centred_in, read_native
from pipeline.types import canonical_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from concurrent.futures import Executor, Future
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray

    from pipeline.read.access import Access
    from pipeline.read.sensors import SensorSpec
    from pipeline.types import Candidates, Cell, Scene

log = logging.getLogger(__name__)

CLASS_WEIGHTS: tuple[tuple[int, int], ...] = ((0, 1), (3, 1), (8, 1), (9, 5), (10, 1), (11, 1))
"""(SCL class, weight): cloud shadow, medium cloud, 5 x high cloud, cirrus and snow as in rslearn's
``Sentinel2SCLFirstValid``; plus nodata with weight 1, ours. rslearn divides by the valid pixels only; then a clear
sliver of a neighbouring orbit would score 0 and beat a scene that covers the whole cell with one small cloud, and
the cell would be patched from two dates. Counting nodata like shadow keeps coverage and clearness on one scale."""
RANK_VERSION = 1
"""Part of the key; goes up when the score changes."""
_KEY = re.compile(r"[A-Za-z0-9_.-]{1,200}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """The order in which scenes fill a period of a cell.

    Attributes:
        scene_ids: Best first.
        scores: Lower is better; inf when the scene has no readable classification.
        failed: Scenes whose classification could not be read now; such a ranking is not stored.
    """

    scene_ids: tuple[str, ...]
    scores: tuple[float, ...]
    failed: tuple[str, ...] = ()


class RankStore(Protocol):
    """Remembers rankings; the first writer wins."""

    def get(self, key: str) -> str | None:
        """What is stored under ``key``."""

    def put(self, key: str, text: str) -> str:
        """Store ``text`` unless something is stored already; returns what is stored."""

    def turn(self) -> AbstractContextManager[Any]:
        """Held while a thread of this process ranks, so that two tiles do not read the same cell twice."""


class MemoryRanks:
    """Rankings of this process; a copy sent to another process starts with what is known."""

    def __init__(self, texts: Mapping[str, str] | None = None) -> None:
        self._texts = dict(texts or {})
        self._lock = threading.Lock()
        self._turn = threading.Lock()

    def turn(self) -> AbstractContextManager[Any]:
        """See ``RankStore``."""
        return self._turn

    def get(self, key: str) -> str | None:
        """What is stored under ``key``."""
        return self._texts.get(key)

    def put(self, key: str, text: str) -> str:
        """Store ``text`` unless something is stored already; returns what is stored."""
        with self._lock:
            return self._texts.setdefault(key, text)

    def __reduce__(self) -> tuple[type[MemoryRanks], tuple[dict[str, str]]]:
        with self._lock:
            return MemoryRanks, (dict(self._texts),)


class FolderRanks:
    """Rankings in a folder that several processes share: one small JSON file each.

    A file is complete when it ends with a newline; a torn one counts as absent.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._turn = threading.Lock()

    def turn(self) -> AbstractContextManager[Any]:
        """See ``RankStore``."""
        return self._turn

    def __reduce__(self) -> tuple[type[FolderRanks], tuple[Path]]:
        return FolderRanks, (self._path,)  # locks stay in their process

    def get(self, key: str) -> str | None:
        """What is stored under ``key``.

        Raises:
            OutputError: The folder cannot be read.
        """
        try:
            text = self._file(key).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except OSError as err:
            raise OutputError(f"ranking {key} cannot be read: {err.strerror}") from err
        return text[:-1] if text.endswith("\n") else None

    def put(self, key: str, text: str) -> str:
        """Store ``text`` unless something is stored already; returns what is stored.

        Raises:
            OutputError: The folder cannot be written.
        """
        file = self._file(key)
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            self._create(file, f"{text}\n".encode())
        except FileExistsError:
            stored = self.get(key)
            return text if stored is None else stored
        except OSError as err:
            raise OutputError(f"ranking {key} cannot be written to {self._path}: {err.strerror}") from err
        return text

    def _create(self, file: Path, data: bytes) -> None:
        trial = file.with_name(f".{uuid.uuid4().hex}.tmp")
        try:
            trial.write_bytes(data)
            try:
                os.link(trial, file)
            except FileExistsError:
                raise
            except OSError:  # no hard links here (mounted object stores): exclusive create, newline as end mark
                with file.open("xb") as stream:
                    stream.write(data)
        finally:
            trial.unlink(missing_ok=True)

    def _file(self, key: str) -> Path:
        if not _KEY.fullmatch(key):
            raise OutputError(f"{key!r} cannot name a ranking: letters, digits, '_', '.', '-' only")
        return self._path / f"{key}.json"


def score_classes(classes: NDArray[np.integer[Any]]) -> float:
    """Weighted share of unwanted pixels, 0 (all clear) to 5 (all high-probability cloud).

    Args:
        classes: Scene classification of a whole cell, any shape, integers.

    >>> score_classes(np.array([4, 4, 9, 0]))
    1.5
    """
    counts = np.bincount(classes.ravel(), minlength=12)
    # Integers until the one division: the same float on every machine.
    return sum(weight * int(counts[value]) for value, weight in CLASS_WEIGHTS) / classes.size


def rank_scenes(scores: Mapping[str, float], candidates: Candidates, *, failed: Sequence[str] = ()) -> Ranking:
    """Order the candidates by score; ties keep the candidates' own order (cloud cover, newest first, id).

    Args:
        scores: By scene id; a missing one counts as inf.
        candidates: The scenes, in their total order.
        failed: Passed on into the ranking.
    """
    order = sorted(candidates.scene_ids, key=lambda i: scores.get(i, math.inf))  # sorted() is stable
    return Ranking(
        scene_ids=tuple(order),
        scores=tuple(scores.get(i, math.inf) for i in order),
        failed=tuple(i for i in order if i in set(failed)),
    )


def rank_key(candidates: Candidates) -> str:
    """Name of the ranking: cell, period, candidates and version of the score."""
    return f"{candidates.cell.id}_p{candidates.period}_{candidates.fingerprint}_v{RANK_VERSION}"


def rank_all(
    groups: Sequence[Candidates],
    *,
    scenes: Mapping[str, Scene],
    spec: SensorSpec,
    access: Access,
    ranks: RankStore,
    pool: Executor,
) -> tuple[tuple[Ranking, ...], int]:
    """Rank every group of candidates; stored rankings are used, the others computed in parallel and stored.

    Must not be called from inside ``pool``.

    Returns:
        (one ranking per group, bytes of pixels decoded).

    Raises:
        InvalidInputError: A scene's location is not allowed.
        TransientError: No token.
        OutputError: The store of rankings fails.
    """
    known = _known(groups, ranks)
    if all(known):
        return tuple(r for r in known if r is not None), 0
    with ranks.turn():
        return _rank_missing(
            groups, _known(groups, ranks), scenes=scenes, spec=spec, access=access, ranks=ranks, pool=pool
        )


def _known(groups: Sequence[Candidates], ranks: RankStore) -> list[Ranking | None]:
    return [_load(ranks, group) if group.scene_ids else Ranking(scene_ids=(), scores=()) for group in groups]


def _rank_missing(
    groups: Sequence[Candidates],
    known: list[Ranking | None],
    *,
    scenes: Mapping[str, Scene],
    spec: SensorSpec,
    access: Access,
    ranks: RankStore,
    pool: Executor,
) -> tuple[tuple[Ranking, ...], int]:
    jobs: dict[tuple[int, str], Future[tuple[float, int]]] = {}
    try:
        for i, group in enumerate(groups):
            if known[i] is None:
                for scene_id in group.scene_ids:
                    if spec.class_band and scenes[scene_id].href(spec.class_band) is not None:
                        jobs[i, scene_id] = pool.submit(_score, scenes[scene_id], group.cell, spec, access)
        results = {key: _result(job, key[1]) for key, job in jobs.items()}
    finally:
        for job in jobs.values():
            job.cancel()
    bytes_read = sum(r[1] for r in results.values() if r is not None)
    rankings = []
    for i, group in enumerate(groups):
        ranking = known[i]
        if ranking is None:
            own = {scene_id: result for (k, scene_id), result in results.items() if k == i}
            scores = {scene_id: result[0] for scene_id, result in own.items() if result is not None}
            ranking = rank_scenes(scores, group, failed=[s for s, result in own.items() if result is None])
            ranking = ranking if ranking.failed else _store(ranks, group, ranking)
        rankings.append(ranking)
    return tuple(rankings), bytes_read


def _score(scene: Scene, cell: Cell, spec: SensorSpec, access: Access) -> tuple[float, int]:
    asset, box = scene.href(spec.class_band), pixels_centred_in(cell.box, spec.class_res_m)
    assert asset is not None and box is not None  # noqa: PT018, S101
    classes = read_native(scene, asset, box=box, access=access, nearest=True)
    return score_classes(classes), classes.nbytes


def _result(job: Future[tuple[float, int]], scene_id: str) -> tuple[float, int] | None:
    try:
        return job.result()
    except DataError as err:
        log.warning("classification of %s cannot be read, ranked last: %s", scene_id, err)
        return None


def _store(ranks: RankStore, group: Candidates, ranking: Ranking) -> Ranking:
    scores = [None if math.isinf(s) else s for s in ranking.scores]
    text = canonical_json({"scene_ids": ranking.scene_ids, "scores": scores})
    return _parse(ranks.put(rank_key(group), text), group) or ranking


def _load(ranks: RankStore, group: Candidates) -> Ranking | None:
    text = ranks.get(rank_key(group))
    return None if text is None else _parse(text, group)


def _parse(text: str, group: Candidates) -> Ranking | None:
    """The ranking in ``text``; None (compute again) when it is torn or of other scenes."""
    try:
        data = json.loads(text)
        scene_ids = tuple(str(i) for i in data["scene_ids"])
        scores = tuple(math.inf if s is None else float(s) for s in data["scores"])
    except (ValueError, KeyError, TypeError):
        log.warning("stored ranking %s is not readable, computed again", rank_key(group))
        return None
    if sorted(scene_ids) != sorted(group.scene_ids) or len(scores) != len(scene_ids):
        log.warning("stored ranking %s is of other scenes, computed again", rank_key(group))
        return None
    return Ranking(scene_ids=scene_ids, scores=scores)
