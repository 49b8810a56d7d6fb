"""Probes and maps on a store: labels to probe, probe to GeoTIFF."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import InvalidInputError, NoDataError
from pipeline.maps import labels as labelled
from pipeline.maps import probe as probes
from pipeline.plan.planner import load_plan
from pipeline.run.class_maps import PROBE_SUFFIX, ClassMap, probe_map, publish_map
from pipeline.run.folder import output_of, settings_of
from pipeline.run.ground import committed
from pipeline.run.local import Progress
from pipeline.run.prepare import unsure_maps
from pipeline.run.publish import publish
from pipeline.run.stored import Stored
from pipeline.types import NODATA_CODE, Plan, Tile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from pipeline.maps.labels import Labels
    from pipeline.maps.probe import Probe, ProbeReport
    from pipeline.run.published import Published

KEPT_BYTES = 500_000_000
MAP_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def fit_probe(
    place: str, labels_path: str, *, column: str, output: str | None = None, seed: int = 0
) -> tuple[Probe, ProbeReport, str]:
    """Fit a probe on the embeddings under labelled points or polygons.

    Args:
        place: Output folder or store.
        labels_path: Any vector file, GeoParquet, or CSV with lon, lat.
        column: Column of the class.
        output: File to write; None: ``<output>/probes/<name of the label file>.json``.
        seed: Of sampling, folds and control.

    Returns:
        (probe, its validation, the file written).

    Raises:
        InvalidInputError: Labels cannot be used.
        NoDataError: No label lies on a pixel with an embedding.
    """
    plan = load_plan(output_of(place))
    labels = labelled.read_labels(labels_path, column=column)
    vectors, index = _vectors(plan, labels)
    if not len(index):
        raise NoDataError(
            f"none of the {len(labels.classes)} labels of {labels_path} lies on a pixel with an embedding of {place}: "
            "do area and labels overlap?"
        )
    places = labelled.places_of(labels)
    probe, report = probes.fit(
        vectors * np.asarray(plan.calibration.scale, np.float32),
        [labels.classes[i] for i in index],
        [labels.groups[i] for i in index],
        [places[i] for i in index],
        card=plan.model,
        calibration=plan.calibration,
        created=datetime.now(UTC),
        seed=seed,
    )
    path = Path(output) if output else Path(plan.output) / "probes" / f"{Path(labels_path).stem}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    probe.save(str(path))
    return probe, report, str(path)


def map_store(
    place: str, head: str, *, name: str | None = None, progress: Callable[[Progress], None] = lambda _p: None
) -> Published:
    """Classify every committed pixel of a store and publish the map.

    The classes are computed from the stored codes, so they equal those that a run writes in the same pass. There is no
    instability band: the store holds what the windows became, not what each saw; plan with ``maps: instability: true``.

    Args:
        place: Output folder or store.
        head: Probe file.
        name: Of the map; None: the probe's file name.
        progress: Called after every tile.

    Raises:
        InvalidInputError: The probe belongs to another store, or the name is not a plain one.
    """
    plan = load_plan(output_of(place))
    probe = probes.load(head)
    probe.check(plan.calibration.hash, plan.model.sha256)
    title = name or Path(head).name.split(".")[0]
    if not MAP_NAME.fullmatch(title):
        raise InvalidInputError(f"map name {title!r} must be letters, digits, '_' and '-': use --name")
    if title in unsure_maps(settings_of(plan)):
        raise InvalidInputError(
            f"the map {title!r} was made in the same pass and has bands of instability, which a store cannot give "
            "again: use another --name"
        )
    tiles = [tile for tile, _ in committed(plan)]
    cogs, pngs = publish_map(plan, tiles, _watched(probe_map(plan, title, probe), total=len(tiles), progress=progress))
    probe.save(str(Path(plan.output) / "maps" / f"{title}{PROBE_SUFFIX}"))
    return publish(plan.output, maps=cogs, map_pngs=pngs)


def _watched(made: ClassMap, *, total: int, progress: Callable[[Progress], None]) -> ClassMap:
    """The same map, telling about every tile; classes of the GeoTIFF are kept for the picture while they are small."""
    start = time.monotonic()
    seen: set[Tile] = set()
    kept: dict[Tile, NDArray[np.uint8]] = {}

    def layer(tile: Tile) -> NDArray[np.uint8]:
        if tile in kept:
            return kept[tile]
        classes = made.layer(tile)
        if total * classes.nbytes <= KEPT_BYTES:
            kept[tile] = classes
        seen.add(tile)
        progress(
            Progress(
                done=len(seen),
                total=total,
                km2=len(seen) * tile.tile_px**2 * 1e-4,
                elapsed_s=time.monotonic() - start,
                tile_id=tile.id,
                status="classified",
            )
        )
        return classes

    return replace(made, layer=layer)


def _vectors(plan: Plan, labels: Labels) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Codes (sample, dim) as float32 of the labelled pixels that have an embedding, and the label of each."""
    parts = list(_labelled(plan, labels))
    if not parts:
        return np.empty((0, plan.model.dims), np.float32), np.empty(0, np.int64)
    return np.concatenate([v for v, _ in parts]), np.concatenate([i for _, i in parts])


def _labelled(plan: Plan, labels: Labels) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    held = Stored.of(plan)
    for tile, _ in committed(plan):
        box = plan.grid.on_store(tile.box)
        rows, cols, index = labelled.pixels_of(labels, box=box)
        if not len(rows):
            continue
        codes = held.coded(tile).codes
        picked = codes[:, rows - box.row, cols - box.col]
        ok = picked[0] != NODATA_CODE
        yield picked[:, ok].T.astype(np.float32), index[ok]
