"""What people look at, kept up to date: pictures, class maps and one report page.

Idempotent. Pictures are made again only when the committed objects have changed since; the report page always, because
the ledger grows with every run.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from pipeline.plan.planner import load_plan
from pipeline.run import finalise, ground, quicklooks, seam_report
from pipeline.run.catalogue import catalog_of
from pipeline.run.folder import store_of
from pipeline.run.page_content import write_report
from pipeline.run.published import Published
from pipeline.types import Plan, Receipt, Tile, canonical_json, content_hash
from pipeline.write import durable, stac

if TYPE_CHECKING:
    from collections.abc import Sequence


PUBLISHED = 2
"""Version of what publish makes; raised when its pictures change."""


def publish(output: str) -> Published:
    """Make quicklooks, the files of maps, seam scores, a STAC catalogue and the report page of what ``output`` holds.

    Args:
        output: The folder.

    Raises:
        InvalidInputError: There is no plan.
        OutputError: There is no store yet, or a file cannot be written.
    """
    plan = load_plan(output)
    tiles = ground.committed(plan)
    made = _kept(plan, tiles) or _pictures(plan, tiles)
    made, found = _catalogued(plan, tiles, made, finalise.bring(plan))
    write_report(plan, made, found)
    return made


def refresh(output: str, done: finalise.Finalised) -> None:
    """Let the catalogue name what ``finalise`` made; the report too, when a file was written.

    Args:
        output: The folder.
        done: What there is now.

    Raises:
        OutputError: A file cannot be written.
    """
    plan = load_plan(output)
    tiles = ground.committed(plan)
    made = _kept(plan, tiles)
    if made is None:
        publish(output)
        return
    before, (made, found) = made, _catalogued(plan, tiles, made, done)
    if done.written or made != before:
        write_report(plan, made, found)


def _catalogued(
    plan: Plan, tiles: Sequence[tuple[Tile, Receipt]], made: Published, done: finalise.Finalised
) -> tuple[Published, seam_report.Seams]:
    made = replace(
        made,
        maps=done.of("cogs"),
        pictures=done.of("pictures"),
        virtuals=done.of("virtuals"),
        areas=done.of("areas"),
        mosaics=tuple(mosaic.path for mosaic in done.mosaics),
    )
    found = seam_report.measured(plan, tiles)
    root = Path(plan.output)
    made = replace(made, seams=str(root / seam_report.SEAMS_FILE), seam_faults=seam_report.over_limit(plan, found))
    written = Path(stac.write_catalog(root / "stac", catalog_of(plan, made, found)))
    made = replace(made, stac=str(root / "stac" / written.name))  # as the other paths are given
    _remember(plan, tiles, made)
    return made, found


def _state(plan: Plan, tiles: Sequence[tuple[Tile, Receipt]]) -> str:
    return content_hash([PUBLISHED, plan.recipe, [[t.id, r.fingerprint, r.objects] for t, r in tiles]])


def _kept(plan: Plan, tiles: Sequence[tuple[Tile, Receipt]]) -> Published | None:
    try:
        record = json.loads((Path(plan.output) / "published.json").read_text(encoding="utf-8"))
        made = TypeAdapter(Published).validate_python(record["made"])
        same = record["state"] == _state(plan, tiles) and record["output"] == plan.output
    except (OSError, ValueError, KeyError, TypeError):
        return None
    files = (*made.quicklooks, *made.true_colours, *made.observations)
    return made if same and all(Path(f).is_file() for f in files) else None


def _remember(plan: Plan, tiles: Sequence[tuple[Tile, Receipt]], made: Published) -> None:
    record = {"state": _state(plan, tiles), "output": plan.output, "made": asdict(made)}
    path, data = Path(plan.output) / "published.json", canonical_json(record).encode()
    if not path.is_file() or path.read_bytes() != data:
        durable.replace(path, data)


def _pictures(plan: Plan, tiles: Sequence[tuple[Tile, Receipt]]) -> Published:
    places = [tile for tile, _ in tiles]
    looks = quicklooks.publish_looks(plan, places)
    root = Path(plan.output)
    return Published(
        store=store_of(plan),
        page=str(root / "report.html"),
        ledger=str(root / "ledger"),
        quicklooks=looks.quicklooks,
        true_colours=looks.true_colours,
        observations=looks.observations,
    )
