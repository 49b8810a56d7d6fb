"""Who has done what: attempts, intents, receipts and failures of tiles, as small files that survive a kill anywhere.

The protocol of one attempt at a tile::

    attempts/<tile>/<n>.json                      before anything else; n rises by one per attempt, whoever makes it
    intents/<tile>/<n>.json                       before the first shard: from here on the shards may be torn
    (shards, one PUT each, read back)             store.py
    receipts/<tile>/<fingerprint>-<outcome>.json  by conditional create, last: the tile is committed
    seals/<tile>/<n>.json                         instead, when that receipt exists already (same work)

A receipt counts while nothing newer has touched the shards: its level (its own attempt, or the newest seal that names
it) must reach the newest intent of the tile. Attempt numbers order events; clocks are never compared. A tile is done
for a task when a receipt that counts has the task's fingerprint and covers its blocks. One fingerprint may have several
receipts: more blocks after the area grew, other objects after a degraded tile was tried again; ``<outcome>`` is the
hash of that. Knows the file system only: no zarr, no plan. Two runs of *different* plans on one store at the same time
are not supported; when such an overtaken attempt is noticed at commit, the tile is marked as torn and computed again.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from pipeline.errors import OutputError
from pipeline.types import Receipt, canonical_json, content_hash
from pipeline.write import durable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pipeline.types import Task
    from pipeline.write.durable import Checkpoint

log = logging.getLogger(__name__)

Blocks = tuple[tuple[int, int], ...]
STALE_TEMP_S = 3600.0
"""Temporary files of this age belong to no live writer: a record is written in milliseconds."""
_RECEIPT = TypeAdapter(Receipt)
_OVERTAKEN = "overtaken"
_KINDS = ("attempts", "intents", "receipts", "seals", "failures")


class State(StrEnum):
    """Where a tile stands with respect to one task."""

    DONE = "done"
    DEGRADED = "degraded"
    """Committed, but some scene was replaced: tried again by the next run."""
    FAILED = "failed"
    """The newest attempt recorded a failure."""
    INTERRUPTED = "interrupted"
    """The newest attempt left neither receipt nor failure: killed, or still at work."""
    PENDING = "pending"


class Commits:
    """The records under one folder.

    Args:
        root: Local folder; made at the first write.
        at: Called with the name of every step that a kill can separate (``attempt``, ``intent``, ``receipt``,
            ``seal``, ``failure``, each also with ``:temp`` before it becomes visible).

    Raises:
        OutputError: ``root`` is a URL: no conditional create.
    """

    def __init__(self, root: str | Path, *, at: Checkpoint = durable.passed) -> None:
        self.root = durable.local_path(root)
        self._at = at

    def start_attempt(self, tile_id: str, run_id: str) -> int:
        """Record that an attempt begins, before it does anything; returns its number, 1 for the first.

        Raises:
            OutputError: The record cannot be written.
        """
        number = max(self._numbers("attempts", tile_id), default=0) + 1
        text = canonical_json({"attempt": number, "run": run_id})
        while not self._create("attempt", self._numbered("attempts", tile_id, number), text):
            number += 1
            text = canonical_json({"attempt": number, "run": run_id})
        return number

    def intent(self, tile_id: str, attempt: int, fingerprint: str, *, blocks: Blocks | None = None) -> None:
        """Record that the attempt is about to write shards: no older receipt counts any more.

        ``blocks`` says what it will write, when two attempts of one fingerprint may differ in that.

        Raises:
            OutputError: The record cannot be written.
        """
        digest = None if blocks is None else content_hash(blocks)
        text = canonical_json({"attempt": attempt, "fingerprint": fingerprint, "blocks": digest})
        self._create("intent", self._numbered("intents", tile_id, attempt), text)

    def commit(self, receipt: Receipt) -> bool:
        """Make the tile done. Call it after the shards were read back and found right.

        Returns:
            True when this receipt is the record; False when the same outcome (fingerprint, blocks, status, objects)
            was committed before: the tile is done, and this attempt was a duplicate.

        Raises:
            OutputError: The record cannot be written.
        """
        self._mark_if_overtaken(receipt)
        file = self._receipt_file(receipt)
        text = canonical_json(asdict(receipt))
        if self._create("receipt", file, text):
            return True
        if _parse(file) is None:
            durable.replace(file, text.encode(), at=lambda step: self._at(f"receipt:{step}"))
            self._at("receipt")
            return True
        seal = canonical_json({"attempt": receipt.attempt, "receipt": file.name})
        self._create("seal", self._numbered("seals", receipt.tile_id, receipt.attempt), seal)
        return False

    def receipt(self, tile_id: str, fingerprint: str) -> Receipt | None:
        """The receipt with this fingerprint that counts; of several the one with most blocks, then the newest."""
        found = [r for r in self.current(tile_id) if r.fingerprint == fingerprint]
        return max(found, key=lambda r: (len(r.blocks), r.attempt), default=None)

    def current(self, tile_id: str) -> tuple[Receipt, ...]:
        """The receipts of a tile that say what its shards hold now (several when plans differ in nothing used)."""
        touched = max(self._numbers("intents", tile_id), default=0)
        seals = dict(self._seals(tile_id))
        return tuple(
            receipt
            for file, receipt in self._receipts(tile_id)
            if max(receipt.attempt, seals.get(file.name, 0)) >= touched
        )

    def receipts(self) -> tuple[Receipt, ...]:
        """Every readable receipt ever committed, by tile and attempt; what was spent is summed over these."""
        tiles = (p.name for p in _entries(self.root / "receipts"))
        found = [receipt for tile_id in tiles for _, receipt in self._receipts(tile_id)]
        return tuple(sorted(found, key=lambda r: (r.tile_id, r.attempt)))

    def attempts(self, tile_id: str, *, run_id: str | None = None) -> int:
        """Attempts since the tile was last committed: what a limit on retries counts; with ``run_id``, of that run."""
        last = max((r.attempt for _, r in self._receipts(tile_id)), default=0)
        last = max(last, *(n for _, n in self._seals(tile_id)), 0)
        newer = [n for n in self._numbers("attempts", tile_id) if n > last]
        if run_id is None:
            return len(newer)
        records = (_load(self._numbered("attempts", tile_id, n)) for n in newer)
        return sum(record.get("run") == run_id for record in records)

    def fail(self, tile_id: str, attempt: int, kind: str, message: str) -> None:
        """Record why an attempt failed; the newest failure replaces the one before.

        Raises:
            OutputError: The record cannot be written.
        """
        text = canonical_json({"attempt": attempt, "kind": kind, "message": message})
        file = self.root / "failures" / f"{tile_id}.json"
        durable.replace(file, text.encode(), at=lambda step: self._at(f"failure:{step}"))
        self._at("failure")

    def failure(self, tile_id: str) -> tuple[int, str, str] | None:
        """(attempt, kind, message) of the newest recorded failure, also when a later attempt succeeded."""
        record = _load(self.root / "failures" / f"{tile_id}.json")
        if not isinstance(record.get("attempt"), int):
            return None
        return record["attempt"], str(record.get("kind", "error")), str(record.get("message", ""))

    def state(self, task: Task) -> State:
        """Where the task's tile stands."""
        tile_id = task.tile.id
        covering = [
            r for r in self.current(tile_id) if r.fingerprint == task.fingerprint and set(task.blocks) <= set(r.blocks)
        ]
        if covering:
            return State.DEGRADED if all(r.status == "degraded" for r in covering) else State.DONE
        newest = max(self._numbers("attempts", tile_id), default=0)
        failed = self.failure(tile_id)
        if newest and failed is not None and failed[0] == newest:
            return State.FAILED
        finished = max((r.attempt for _, r in self._receipts(tile_id)), default=0)
        finished = max(finished, *(n for _, n in self._seals(tile_id)), 0)
        return State.INTERRUPTED if newest > finished else State.PENDING

    def blocks(self, task: Task) -> Blocks:
        """What an attempt must compute: the wanted blocks and those that the tile already holds for this fingerprint.

        A tile is written whole, so blocks left out would be lost.
        """
        held = self.receipt(task.tile.id, task.fingerprint)
        return tuple(sorted({*task.blocks, *(held.blocks if held else ())}))

    def clean(self, *, older_than_s: float = STALE_TEMP_S) -> int:
        """Delete temporary files of killed writers; returns how many."""
        return sum(durable.sweep(self.root / kind, older_than_s=older_than_s) for kind in _KINDS)

    def _mark_if_overtaken(self, receipt: Receipt) -> None:
        newest = max(self._numbers("intents", receipt.tile_id), default=0)
        if newest <= receipt.attempt:
            return
        other = _load(self._numbered("intents", receipt.tile_id, newest))
        same_blocks = other.get("blocks") in (None, content_hash(receipt.blocks))
        rivals = [r for r in self.current(receipt.tile_id) if r.attempt == newest]
        same_bytes = all(r.objects == receipt.objects for r in rivals)
        if other.get("fingerprint") == receipt.fingerprint and same_blocks and same_bytes:
            return  # The same bytes: it does not matter whose PUT came last.
        log.warning("tile %s: attempt %d was overtaken by %d; marked as torn", receipt.tile_id, receipt.attempt, newest)
        self.intent(receipt.tile_id, self.start_attempt(receipt.tile_id, _OVERTAKEN), _OVERTAKEN)

    def _receipts(self, tile_id: str) -> Iterator[tuple[Path, Receipt]]:
        for file in _entries(self.root / "receipts" / tile_id):
            receipt = _parse(file)
            if receipt is not None and receipt.tile_id == tile_id and self._receipt_file(receipt) == file:
                yield file, receipt

    def _receipt_file(self, receipt: Receipt) -> Path:
        outcome = content_hash((receipt.blocks, receipt.status, receipt.objects))[:16]
        return self.root / "receipts" / receipt.tile_id / f"{receipt.fingerprint}-{outcome}.json"

    def _seals(self, tile_id: str) -> Iterator[tuple[str, int]]:
        """(receipt file name, attempt), rising by attempt."""
        for number in sorted(self._numbers("seals", tile_id)):
            name = _load(self._numbered("seals", tile_id, number)).get("receipt")
            if isinstance(name, str):
                yield name, number

    def _numbers(self, kind: str, tile_id: str) -> list[int]:
        return [int(file.stem) for file in _entries(self.root / kind / tile_id) if file.stem.isdigit()]

    def _numbered(self, kind: str, tile_id: str, number: int) -> Path:
        return self.root / kind / tile_id / f"{number:05d}.json"

    def _create(self, step: str, file: Path, text: str) -> bool:
        made = durable.create(file, text.encode(), at=lambda inner: self._at(f"{step}:{inner}"))
        if made:
            self._at(step)
        return made


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(p for p in folder.iterdir() if not p.name.startswith(durable.TEMP_PREFIX))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _load(file: Path) -> dict[str, Any]:
    """The object in a small record; empty when it is missing or damaged."""
    try:
        record = json.loads(file.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError:
        log.warning("record %s is damaged and ignored", file.name)
        return {}
    return record if isinstance(record, dict) else {}


def _parse(file: Path) -> Receipt | None:
    try:
        return _RECEIPT.validate_json(file.read_bytes())
    except ValidationError as err:
        # A damaged receipt proves nothing: the tile is computed again and the file replaced.
        log.warning("receipt %s/%s is damaged and ignored (%d errors)", file.parent.name, file.name, err.error_count())
        return None
    except OSError as err:
        raise OutputError(f"receipt {file} cannot be read: {err.strerror}") from err
