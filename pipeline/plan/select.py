"""Which scenes may fill which period of which cell.

A pure function of the scenes that touch the cell: neither the area of the request nor the order in which a catalogue
answered decides anything, so two runs that share a cell choose alike. Pixels are not looked at; workers rank the
candidates later from the scene classification.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

from pipeline.plan.items import wrap
from pipeline.types import Candidates, Cell, Period, Scene, content_hash

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from shapely.geometry.base import BaseGeometry

EDGE_POINTS = 17
"""Points per edge of a cell before projecting: a 1.3 km chord leaves the projected edge by less than a metre."""
SAME_GROUND = 0.9
"""Share of a scene's footprint that a newer version must cover to replace it: a granule that was split over two
datastrips is complementary and stays (measured habit of the Planetary Computer, issue 291)."""


class Selector:
    """Candidates for many cells from one set of scenes: one tree, built once.

    Args:
        scenes: Scenes with unique ids, in any order.
    """

    def __init__(self, scenes: Iterable[Scene]) -> None:
        self._scenes = list(scenes)
        self._shapes = shapely.from_wkb([s.footprint for s in self._scenes])
        self._tree = shapely.STRtree(self._shapes)
        self._planes: dict[int, Any] = {}

    def candidates(
        self, cell: Cell, *, periods: Sequence[Period], max_cloud_pct: float, max_candidates: int
    ) -> tuple[Candidates, ...]:
        """The candidates of one cell; see ``cell_candidates``."""
        from pyproj import Transformer  # noqa: PLC0415

        if cell.zone not in self._planes:
            self._planes[cell.zone] = Transformer.from_crs(32600 + cell.zone, 4326, always_xy=True)
        outline = cell_polygon(cell, transformer=self._planes[cell.zone])
        touching = self._tree.query(outline, predicate="intersects").tolist()
        scenes = newest_versions([self._scenes[i] for i in touching], [self._shapes[i] for i in touching])
        clear = [s for s in scenes if s.cloud_pct is None or s.cloud_pct <= max_cloud_pct]
        return tuple(
            _candidates(cell, period, [s for s in clear if period.start <= s.acquired < period.end], max_candidates)
            for period in periods
        )


def cell_candidates(
    scenes: Sequence[Scene], *, cell: Cell, periods: tuple[Period, ...], max_cloud_pct: float, max_candidates: int
) -> tuple[Candidates, ...]:
    """Choose the candidates of one cell; for many cells build one ``Selector``.

    Args:
        scenes: Scenes with unique ids, in any order; those that do not touch the cell are ignored.
        cell: The cell.
        periods: Half-open periods.
        max_cloud_pct: Scenes above are left out, 0..100; a scene that does not say passes and ranks last.
        max_candidates: Kept per period.

    Returns:
        One Candidates per period, in the order of ``periods``, also where no scene is left; scenes in the total order
        (cloud, newest first, id). Older versions of a granule are left out, see ``newest_versions``.
    """
    return Selector(scenes).candidates(
        cell, periods=periods, max_cloud_pct=max_cloud_pct, max_candidates=max_candidates
    )


def cell_polygon(cell: Cell, *, transformer: Any = None) -> BaseGeometry:
    """Outline of a cell in lon/lat, edges densified, cut at the antimeridian.

    Search the union of these, not the area of the request: a scene that touches a cell but not the area would stay
    unseen, and the candidates of the cell would depend on the request.

    Args:
        cell: The cell; its plane is EPSG:326NN in both hemispheres (negative northings in the south).
        transformer: From that plane to lon/lat, to save making one.
    """
    if transformer is None:
        from pyproj import Transformer  # noqa: PLC0415

        transformer = Transformer.from_crs(32600 + cell.zone, 4326, always_xy=True)
    x_min, y_min, x_max, y_max = cell.box.bounds_m
    corners = [(x_min, y_min), (x_max, y_min), (x_max, y_max), (x_min, y_max), (x_min, y_min)]
    ring = np.concatenate([np.linspace(a, b, EDGE_POINTS) for a, b in pairwise(corners)])
    lon, lat = transformer.transform(ring[:, 0], ring[:, 1])
    return wrap(shapely.polygons(np.column_stack([lon, lat])))


def newest_versions(
    scenes: Sequence[Scene], shapes: Sequence[BaseGeometry], *, whole: bool = False
) -> tuple[Scene, ...]:
    """Leave out what was processed again: older versions of a granule whose ground a newer version covers.

    Args:
        scenes: Scenes; those with the same ``acquisition`` show the same granule of the same overpass.
        shapes: Their footprints, in the same order.
        whole: Ask for the whole footprint, not ``SAME_GROUND`` of it. Then every cell that the older version touches
            is touched by the newer one, so the choice may be made before cells are known.

    Returns:
        The scenes that stay, in the order given; highest version wins, then the id that sorts first.
    """
    groups: dict[str, list[int]] = {}
    for i, scene in enumerate(scenes):
        groups.setdefault(scene.acquisition, []).append(i)
    dropped: set[int] = set()
    for acquisition, group in groups.items():
        if not acquisition or len(group) == 1:
            continue
        kept: list[int] = []
        for i in sorted(sorted(group, key=lambda i: scenes[i].id), key=lambda i: scenes[i].version, reverse=True):
            if any(_covered(shapes[i], shapes[k], whole=whole) for k in kept):
                dropped.add(i)
            else:
                kept.append(i)
    return tuple(scene for i, scene in enumerate(scenes) if i not in dropped)


def _covered(older: BaseGeometry, newer: BaseGeometry, *, whole: bool) -> bool:
    if whole:
        return bool(newer.covers(older))
    return bool(newer.intersection(older).area > SAME_GROUND * older.area)


def _candidates(cell: Cell, period: Period, scenes: list[Scene], limit: int) -> Candidates:
    ranked = sorted(scenes, key=_rank)[:limit]
    return Candidates(
        cell=cell,
        period=period.index,
        scene_ids=tuple(s.id for s in ranked),
        fingerprint=content_hash([_identity(s) for s in ranked]),
    )


def _identity(scene: Scene) -> tuple[object, ...]:
    """What of a scene decides pixels; where its files lie does not (an archive may move)."""
    bands = [(asset.band, asset.band_index) for asset in scene.assets]
    return scene.id, scene.version, scene.boa_offset, bands


def _rank(scene: Scene) -> tuple[float, float, str]:
    """(cloud, newest first, id); unknown cloud comes last."""
    return 101.0 if scene.cloud_pct is None else scene.cloud_pct, -scene.acquired.timestamp(), scene.id
