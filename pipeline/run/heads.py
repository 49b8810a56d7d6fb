"""Probes and maps on a store: labels to probe or regression, these to GeoTIFF."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.codes import Coded, decode
from pipeline.errors import InvalidInputError, NoDataError
from pipeline.maps import fitting, heads, ridge_fit
from pipeline.maps import labels as labelled
from pipeline.plan.planner import load_plan
from pipeline.run import finalise
from pipeline.run.class_maps import PROBE_SUFFIX, ClassMap, ValueMap, head_map
from pipeline.run.folder import output_of, settings_of
from pipeline.run.ground import committed
from pipeline.run.local import Progress
from pipeline.run.map_layers import MapHead
from pipeline.run.prepare import unsure_maps
from pipeline.run.publish import publish
from pipeline.run.stored import Stored

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from pipeline.maps.fitting import ProbeReport
    from pipeline.maps.heads import Head
    from pipeline.maps.labels import Labels
    from pipeline.maps.probe import Probe
    from pipeline.maps.ridge import Regressor
    from pipeline.maps.ridge_fit import RidgeReport
    from pipeline.run.published import Published
    from pipeline.types import Plan, Tile

MAP_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def fit_probe(
    place: str, labels_path: str, *, column: str, output: str | None = None, seed: int = 0
) -> tuple[Probe, ProbeReport, str]:
    """Fit a probe of classes on the embeddings under labelled points or polygons.

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
    vectors, index = _samples(plan, labels, place=place, path=labels_path)
    places = labelled.places_of(labels)
    probe, report = fitting.fit(
        vectors,
        [labels.classes[i] for i in index],
        [labels.groups[i] for i in index],
        [places[i] for i in index],
        card=plan.model,
        calibration=plan.calibration,
        created=datetime.now(UTC),
        seed=seed,
    )
    return probe, report, _saved(plan, probe, labels_path, output=output)


def fit_regressor(
    place: str, labels_path: str, *, column: str, units: str = "", output: str | None = None, seed: int = 0
) -> tuple[Regressor, RidgeReport, str]:
    """Fit a regression of a quantity on the embeddings under labelled points or polygons.

    Args:
        place: Output folder or store.
        labels_path: As ``fit_probe``.
        column: Column of the numbers.
        units: Of the numbers, e.g. ``m``; goes into the maps.
        output: As ``fit_probe``.
        seed: As ``fit_probe``.

    Returns:
        (regressor, its validation, the file written).

    Raises:
        InvalidInputError: Labels cannot be used: not numbers, too few, or all equal.
        NoDataError: No label lies on a pixel with an embedding.
    """
    plan = load_plan(output_of(place))
    labels = labelled.read_numbers(labels_path, column=column)
    vectors, index = _samples(plan, labels, place=place, path=labels_path)
    places = labelled.places_of(labels)
    regressor, report = ridge_fit.fit(
        vectors,
        [float(labels.classes[i]) for i in index],
        [labels.groups[i] for i in index],
        [places[i] for i in index],
        name=column,
        units=units,
        card=plan.model,
        calibration=plan.calibration,
        created=datetime.now(UTC),
        seed=seed,
    )
    return regressor, report, _saved(plan, regressor, labels_path, output=output)


def map_store(
    place: str,
    head: str,
    *,
    name: str | None = None,
    bands: tuple[str, ...] = (),
    progress: Callable[[Progress], None] = lambda _p: None,
) -> Published:
    """Map every committed pixel of a store and publish the map.

    The values are computed from the stored codes, so they equal those that a run writes in the same pass. There is no
    instability band: the store holds what the windows became, not what each saw; plan with ``maps: instability: true``.

    Args:
        place: Output folder or store.
        head: File of a probe or regressor.
        name: Of the map; None: the head's file name.
        bands: Some of ``map_layers.BANDS``, for a map of classes.
        progress: Called after every tile.

    Raises:
        InvalidInputError: The head belongs to another store, the name is not a plain one, or a regression with bands.
    """
    plan = load_plan(output_of(place))
    loaded = heads.load(head)
    loaded.check(plan.calibration.hash, plan.model.sha256)
    title = name or Path(head).name.split(".")[0]
    if not MAP_NAME.fullmatch(title):
        raise InvalidInputError(f"map name {title!r} must be letters, digits, '_' and '-': use --name")
    if title in unsure_maps(settings_of(plan)):
        raise InvalidInputError(
            f"the map {title!r} was made in the same pass and has bands of instability, which a store cannot give "
            "again: use another --name"
        )
    tiles = [tile for tile, _ in committed(plan)]
    made = head_map(plan, MapHead(name=title, head=loaded, bands=bands))
    kept = Path(plan.output) / "maps" / f"{title}{PROBE_SUFFIX}"
    kept.parent.mkdir(parents=True, exist_ok=True)
    heads.keep(loaded, str(kept), bands=bands)  # first: whoever comes after a kill goes on with this map
    finalise.make_map(plan, _watched(made, total=len(tiles), progress=progress))
    return publish(plan.output)


def _watched(made: ClassMap | ValueMap, *, total: int, progress: Callable[[Progress], None]) -> ClassMap | ValueMap:
    """The same map, telling about every tile when it is asked for first."""
    start = time.monotonic()
    seen: set[Tile] = set()

    def layer(tile: Tile) -> NDArray[Any]:
        values = made.layer(tile)
        if tile not in seen:
            seen.add(tile)
            progress(
                Progress(
                    done=len(seen),
                    total=total,
                    km2=len(seen) * tile.tile_px**2 * 1e-4,
                    elapsed_s=time.monotonic() - start,
                    tile_id=tile.id,
                    status="mapped",
                )
            )
        return values

    return replace(made, layer=layer)


def _saved(plan: Plan, head: Head, labels_path: str, *, output: str | None) -> str:
    path = Path(output) if output else Path(plan.output) / "probes" / f"{Path(labels_path).stem}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    head.save(str(path))
    return str(path)


def _samples(plan: Plan, labels: Labels, *, place: str, path: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """(sample, band) decoded values of the labelled pixels that have an embedding, and the label of each."""
    parts = list(_labelled(plan, labels))
    if not sum(len(index) for _, index in parts):
        raise NoDataError(
            f"none of the {len(labels.classes)} labels of {path} lies on a pixel with an embedding of {place}: "
            "do area and labels overlap?"
        )
    return np.concatenate([v for v, _ in parts]), np.concatenate([i for _, i in parts])


def _labelled(plan: Plan, labels: Labels) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    held = Stored.of(plan)
    for tile, _ in committed(plan):
        box = plan.grid.on_store(tile.box)
        rows, cols, index = labelled.pixels_of(labels, box=box)
        if not len(rows):
            continue
        coded = held.coded(tile)
        at = (rows - box.row, cols - box.col)
        scale = None if coded.pixel_scale is None else coded.pixel_scale[at]
        picked = Coded(codes=coded.codes[:, *at], pixel_scale=scale)
        yield decode(picked, plan.calibration)[:, picked.valid].T, index[picked.valid]
