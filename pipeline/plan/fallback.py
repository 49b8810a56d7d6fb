"""Scenes of several catalogues: one list, in which the same product is one scene with several places.

Two catalogues often hold the same product under two ids. Counting it twice would rank it twice and fill a period with
itself; here the first catalogue's scene stays and carries the other's files as ``Scene.alternates``, which the reader
turns to when a file cannot be read. Alternates decide no pixel: they are the same pixels elsewhere.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import shapely

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.types import Scene

SAME_FOOTPRINT = 0.9
"""Share of both footprints that two descriptions of one product have in common; halves of a granule that was split over
two datastrips share everything but their ground."""

logger = logging.getLogger(__name__)


def merged(catalogs: Sequence[tuple[Scene, ...]]) -> tuple[Scene, ...]:
    """One scene per product, of the first catalogue that has it; the others become its alternates.

    Args:
        catalogs: Scenes of every catalogue, without alternates, the preferred one first.

    Returns:
        Scenes with unique ids, sorted by id. Where two catalogues have an id and it is not the same product, the first
        one's stays.
    """
    kept: dict[str, Scene] = {}
    products: dict[tuple[str, str, str], list[str]] = {}
    for scenes in catalogs:
        before = {key: tuple(ids) for key, ids in products.items()}  # a catalogue is not compared with itself
        for scene in scenes:
            key = _product(scene)
            twin = next((i for i in before.get(key, ()) if _same_ground(kept[i], scene)), None) if key else None
            if twin is not None:
                kept[twin] = replace(kept[twin], alternates=(*kept[twin].alternates, scene))
            elif scene.id in kept:
                logger.warning("two catalogues have an item %s: the one of the first is taken", scene.id)
            else:
                kept[scene.id] = scene
                if key:
                    products.setdefault(key, []).append(scene.id)
    return tuple(kept[key] for key in sorted(kept))


def _product(scene: Scene) -> tuple[str, str, str] | None:
    """What two descriptions of one product have in common; None when the scene does not say."""
    baseline = scene.version.partition("@")[0]
    return (scene.sensor, scene.acquisition, baseline) if scene.acquisition and baseline else None


def _same_ground(a: Scene, b: Scene) -> bool:
    one, other = shapely.from_wkb([a.footprint, b.footprint])
    common = one.intersection(other).area
    return bool(common > SAME_FOOTPRINT * max(one.area, other.area))
