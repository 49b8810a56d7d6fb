"""Which scenes of a sensor may fill which period of which cell, and in which order.

A pure function of the scenes that touch the cell: neither the area of the request nor the order in which a catalogue
answered decides anything, so two runs that share a cell choose alike. Pixels are not looked at; composites that rank by
the scene classification do so later, in the workers, and start from this order. For all others it is final.

Orders, all total:

* Sentinel-2 and Landsat: (cloud cover, unknown last; scenes in the cell's own UTM zone first; newest first; id). Own
  zone, because such pixels are neither warped nor resampled a second time.
* Sentinel-1: (newest first; id). The model was trained on the order in which the archive answered; that of Planetary
  Computer is newest first.
* ``rslearn_mosaic``: (cloud cover, unknown last, not for Sentinel-1; newest first; id descending), then the coverage
  rule of ``mosaic``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

from pipeline.plan.aoi import zone_of
from pipeline.plan.footprints import wrap
from pipeline.plan.mosaic import Window, mosaic
from pipeline.types import Candidates, Cell, Period, Scene, content_hash

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray
    from shapely.geometry.base import BaseGeometry

    from pipeline.config import InputSettings

EDGE_POINTS = 17
"""Points per edge of a cell before projecting: a 1.3 km chord leaves the projected edge by less than a metre."""
SAME_GROUND = 0.9
"""Share of a scene's footprint that a newer version must cover to replace it: a granule that was split over two
datastrips is complementary and stays (measured habit of the Planetary Computer, issue 291)."""
GAP_SHARE = 0.01
"""Share of a cell that a scene beyond ``Rule.max_candidates`` must add to what the others cover, by footprints. Below
lie the slivers by which footprints of one orbit differ from date to date."""
UNKNOWN_CLOUD = 101.0
"""Ranks behind every cloud cover, 0..100."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MGRS_ZONE = re.compile(r"_(\d{1,2})[C-X][A-Z]{2}$")
"""End of ``Scene.acquisition`` of Sentinel-2: the MGRS tile, whose number is the UTM zone of its pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What makes a scene of one sensor a candidate.

    Attributes:
        sensor: Only scenes of this sensor.
        composite: As ``inputs.<sensor>.composite``; decides the order and whether coverage does.
        max_cloud_pct: Scenes above are left out, 0..100; a scene that does not say passes and ranks last.
        max_candidates: Kept per period, best first; beyond them only scenes that alone cover ground of the cell. A
            mosaic is not cut.
        orbit: ``any``, or only ``ascending`` or ``descending``; then a scene that does not say is left out.
    """

    sensor: str
    composite: str
    max_cloud_pct: float = 100.0
    max_candidates: int = 24
    orbit: str = "any"


def rule_of(inputs: InputSettings, sensor: str) -> Rule:
    """The rule of one sensor in a configuration."""
    section = inputs.of(sensor)
    return Rule(
        sensor=sensor,
        composite=section.composite,
        max_cloud_pct=getattr(section, "max_cloud_pct", 100.0),
        max_candidates=section.max_candidates,
        orbit=getattr(section, "orbit", "any"),
    )


class Selector:
    """Candidates for many cells from one set of scenes: one tree and every order, built once.

    Args:
        scenes: Scenes of any sensors, in any order; ids are unique per sensor.
    """

    def __init__(self, scenes: Iterable[Scene]) -> None:
        self._scenes = list(scenes)
        self._shapes = np.atleast_1d(shapely.from_wkb(np.array([s.footprint for s in self._scenes], dtype=object)))
        self._tree = shapely.STRtree(self._shapes)
        self._taken_us = np.array([_microseconds(s.acquired) for s in self._scenes], dtype=np.int64)
        self._cloud = np.array([_cloud_rank(s) for s in self._scenes])
        self._zones = np.array([_zone(s, g) for s, g in zip(self._scenes, self._shapes, strict=True)], dtype=np.int64)
        self._by_id = np.argsort(np.argsort(np.array([s.id for s in self._scenes], dtype=object), kind="stable"))
        self._rivals = _with_rivals(self._scenes)
        self._age = np.argsort(np.array(_newest_first(self._scenes), dtype=np.int64))
        self._covers: dict[tuple[int, int], bool] = {}
        self._identities: dict[int, str] = {}
        self._passing: dict[Rule, NDArray[np.bool_]] = {}
        self._places: dict[tuple[str, str, int], NDArray[np.int64]] = {}
        self._planes: dict[int, tuple[Any, Any]] = {}

    def candidates(
        self,
        cell: Cell,
        *,
        periods: Sequence[Period],
        rule: Rule,
    ) -> tuple[Candidates, ...]:
        """The candidates of one cell; see ``cell_candidates``."""
        to_lonlat, to_plane = self._plane(cell.zone)
        outline = cell_polygon(cell, transformer=to_lonlat)
        ranked = self._ranked(self._tree.query(outline, predicate="intersects"), zone=cell.zone, rule=rule)
        window = Window(cell, to_lonlat=to_lonlat, to_plane=to_plane) if rule.composite == "rslearn_mosaic" else None
        taken_us = self._taken_us[ranked]
        chosen = []
        for period in periods:
            inside = (taken_us >= _microseconds(period.start)) & (taken_us < _microseconds(period.end))
            if window is not None:
                kept = ranked[inside][list(mosaic(window, (self._shapes[i] for i in ranked[inside])))]
            else:
                kept = self._best(ranked[inside], most=rule.max_candidates, outline=outline)
            chosen.append(self._candidates(kept.tolist(), cell=cell, period=period, rule=rule))
        return tuple(chosen)

    def _ranked(self, found: NDArray[np.int64], *, zone: int, rule: Rule) -> NDArray[np.int64]:
        """What passes of the scenes that touch a cell, in the rule's order."""
        if rule not in self._passing:
            self._passing[rule] = np.array([_passes(s, rule) for s in self._scenes], dtype=bool)
        # Versions are told apart before the filters: an older, clearer one does not come back.
        rivals = found[self._rivals[found]]
        rivals = rivals[np.argsort(self._age[rivals])]
        outdated = _outdated(self._scenes, rivals.tolist(), covered=self._replaced)
        found = found[self._passing[rule][found]]
        if outdated:
            found = found[~np.isin(found, list(outdated))]
        return found[np.argsort(self._order(rule, zone)[found], kind="stable")]

    def _order(self, rule: Rule, zone: int) -> NDArray[np.int64]:
        """Place of every scene in the total order of a rule and zone, (scenes,)."""
        key = (rule.sensor, rule.composite, zone)
        if key not in self._places:
            cloud, abroad, ids = self._cloud, self._zones != zone, self._by_id
            if rule.sensor == "sentinel1":
                cloud, abroad = np.zeros_like(cloud), np.zeros_like(abroad)
            if rule.composite == "rslearn_mosaic":
                abroad, ids = np.zeros_like(abroad), -ids
            # The last key is the first to decide.
            by_rank = np.lexsort((ids, -self._taken_us, abroad, cloud))
            self._places[key] = np.empty(len(by_rank), dtype=np.int64)
            self._places[key][by_rank] = np.arange(len(by_rank))
        return self._places[key]

    def _best(self, ranked: NDArray[np.int64], *, most: int, outline: BaseGeometry) -> NDArray[np.int64]:
        """The first ``most``, and those after them without which ground of the cell would have no scene."""
        best = ranked[:most]
        if len(ranked) <= most or shapely.covers(self._shapes[best], outline).any():
            return best
        gap = outline.difference(shapely.union_all(self._shapes[best]))
        more = []
        for i in ranked[most:].tolist():
            if gap.area <= GAP_SHARE * outline.area:
                break
            if gap.intersection(self._shapes[i]).area > GAP_SHARE * outline.area:
                gap = gap.difference(self._shapes[i])
                more.append(i)
        return np.concatenate([best, np.array(more, dtype=np.int64)])

    def _candidates(self, chosen: list[int], *, cell: Cell, period: Period, rule: Rule) -> Candidates:
        return Candidates(
            cell=cell,
            period=period.index,
            scene_ids=tuple(self._scenes[i].id for i in chosen),
            fingerprint=content_hash([rule.sensor, [self._identity(i) for i in chosen]]),
            sensor=rule.sensor,
        )

    def _plane(self, zone: int) -> tuple[Any, Any]:
        from pyproj import Transformer  # noqa: PLC0415

        if zone not in self._planes:
            epsg = 32600 + zone
            self._planes[zone] = (
                Transformer.from_crs(epsg, 4326, always_xy=True),
                Transformer.from_crs(4326, epsg, always_xy=True),
            )
        return self._planes[zone]

    def _replaced(self, older: int, newer: int) -> bool:
        if (older, newer) not in self._covers:
            self._covers[older, newer] = _covered(self._shapes[older], self._shapes[newer], whole=False)
        return self._covers[older, newer]

    def _identity(self, i: int) -> str:
        if i not in self._identities:
            self._identities[i] = content_hash(_identity(self._scenes[i]))
        return self._identities[i]


def cell_candidates(
    scenes: Sequence[Scene], *, cell: Cell, periods: tuple[Period, ...], rule: Rule
) -> tuple[Candidates, ...]:
    """Choose the candidates of one cell; for many cells build one ``Selector``.

    Args:
        scenes: Scenes in any order; those that do not touch the cell, or are of another sensor, are ignored.
        cell: The cell.
        periods: Half-open periods.
        rule: Which scenes pass and how they are ordered.

    Returns:
        One Candidates per period, in the order of ``periods``, also where no scene is left; scenes in the rule's total
        order. Older versions of a granule are left out, see ``newest_versions``.
    """
    return Selector(scenes).candidates(cell, periods=periods, rule=rule)


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
        The scenes that stay, in the order given. Newest is the highest baseline, then the latest time of generation;
        a version that lacks one of them is older than one that has it. Of equal ones, as two collections hold them,
        a scene whose offset is certain stays, then the id that sorts first.
    """
    dropped = _outdated(
        scenes, _newest_first(scenes), covered=lambda old, new: _covered(shapes[old], shapes[new], whole=whole)
    )
    return tuple(scene for i, scene in enumerate(scenes) if i not in dropped)


def _outdated(scenes: Sequence[Scene], newest_first: Iterable[int], *, covered: Callable[[int, int], bool]) -> set[int]:
    """Positions, of those given newest first, of scenes whose ground one newer version that stays covers."""
    kept: dict[tuple[str, str], list[int]] = {}
    dropped: set[int] = set()
    for i in newest_first:
        if not scenes[i].acquisition:
            continue
        newer = kept.setdefault((scenes[i].sensor, scenes[i].acquisition), [])
        if any(covered(i, k) for k in newer):
            dropped.add(i)
        else:
            newer.append(i)
    return dropped


def _newest_first(scenes: Sequence[Scene]) -> list[int]:
    """Positions by (baseline, time of generation) of ``Scene.version``; ties as in ``newest_versions``."""
    tied = sorted(range(len(scenes)), key=lambda i: (scenes[i].check_offset, scenes[i].id))
    return sorted(tied, key=lambda i: scenes[i].version.partition("@")[::2], reverse=True)


def _covered(older: BaseGeometry, newer: BaseGeometry, *, whole: bool) -> bool:
    if whole:
        return bool(newer.covers(older))
    return bool(newer.intersection(older).area > SAME_GROUND * older.area)


def _with_rivals(scenes: Sequence[Scene]) -> NDArray[np.bool_]:
    """Whether another scene shows the same granule, (scenes,)."""
    counts: dict[tuple[str, str], int] = {}
    for scene in scenes:
        counts[scene.sensor, scene.acquisition] = counts.get((scene.sensor, scene.acquisition), 0) + 1
    return np.array([bool(s.acquisition) and counts[s.sensor, s.acquisition] > 1 for s in scenes], dtype=bool)


def _passes(scene: Scene, rule: Rule) -> bool:
    if scene.sensor != rule.sensor or rule.orbit not in {"any", scene.orbit}:
        return False
    return scene.cloud_pct is None or scene.cloud_pct <= rule.max_cloud_pct


def _cloud_rank(scene: Scene) -> float:
    return UNKNOWN_CLOUD if scene.cloud_pct is None else scene.cloud_pct


def _zone(scene: Scene, footprint: BaseGeometry) -> int:
    """UTM zone of a scene's pixels: of its MGRS tile, else of the middle of its largest part.

    Landsat scenes lie in the zone of their middle; a Sentinel-2 scene that does not tell its tile may be taken for one
    of the neighbouring zone, which costs a resampling and nothing else.
    """
    told = _MGRS_ZONE.search(scene.acquisition) if scene.sensor == "sentinel2_l2a" else None
    if told and 1 <= int(told[1]) <= 60:
        return int(told[1])
    part = max(shapely.get_parts(footprint), key=shapely.area, default=footprint)
    return 0 if part.is_empty else zone_of(float(shapely.centroid(part).x))


def _identity(scene: Scene) -> tuple[object, ...]:
    """What of a scene decides pixels; where its files lie does not (an archive may move).

    Alternates hold the same pixels and count only for bands that the scene itself lacks.
    """
    bands = [(asset.band, asset.band_index) for asset in scene.assets]
    own = {asset.band for asset in scene.assets}
    bands += [(band, 0) for band in sorted({a.band for other in scene.alternates for a in other.assets} - own)]
    return scene.id, scene.version, scene.boa_offset, scene.check_offset, scene.quantity, bands


def _microseconds(time: datetime) -> int:
    return (time - _EPOCH) // timedelta(microseconds=1)
