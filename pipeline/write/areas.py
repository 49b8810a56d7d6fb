"""How much ground the pixels of a zone really cover, and how much of it every class has.

A UTM pixel of 10 m is 100 m2 in the plane of the projection only. The projection is conformal with a point scale k, so
that the pixel covers (side / k)^2 on the ellipsoid: 0.08 % more than 100 m2 on the central meridian, 0.2 % less at the
edge of a zone on the equator. Areas come from full resolution, because overviews by mode shift them.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.write import durable, geotiff

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.types import Box

K0 = 0.9996
"""Scale of UTM on the central meridian."""
FALSE_EASTING_M = 500_000.0
WGS84_A_M = 6_378_137.0
WGS84_E2 = 0.0066943799901413165
NODE_M = 2560.0
"""Spacing of the nodes at which areas are computed. 1/k^2 is a parabola across the zone with second derivative 2/R^2:
the error of linear interpolation is NODE_M^2 / (4 R^2) = 4e-8."""
METHOD = (
    "sum over pixels of full resolution of (pixel side / k)^2 on the WGS 84 ellipsoid, k the point scale factor of the "
    "transverse Mercator projection at the pixel"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassArea:
    """The ground of one class in one zone, or in all.

    Attributes:
        zone: UTM zone; 0 for all of them.
        value: Value of the class in the map.
        name: Its name.
        pixels: Number of pixels.
        km2: Their area on the ellipsoid.
        share: Part of the area of all classes of the zone; 0 where that is none.
    """

    zone: int
    value: int
    name: str
    pixels: int
    km2: float
    share: float


def pixel_areas_m2(box: Box) -> NDArray[np.float64]:
    """(row, col) area of every pixel of ``box`` on the WGS 84 ellipsoid, m2.

    Error below 1e-7 inside a zone (``scale_factor`` and interpolation).
    """
    side = max(1, round(NODE_M / box.res_m))
    rows, cols = _nodes(box.height, side), _nodes(box.width, side)
    x = (box.col + cols) * box.res_m
    y = -(box.row + rows) * box.res_m
    areas = np.asarray((box.res_m / scale_factor(x[None, :], y[:, None])) ** 2, np.float64)
    row, col = (np.arange(n, dtype=np.float64) + 0.5 for n in box.shape)
    return _linear(_linear(areas, rows, row).T, cols, col).T


def scale_factor(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Point scale factor k of UTM at (x, y) in the plane of EPSG:326NN, metres; any zone, both hemispheres.

    Snyder (1987), Map Projections: A Working Manual, USGS Professional Paper 1395: 3-24 and 3-26 for the latitude of
    the foot point, 4-20 for the radius of curvature N, and for k in rectangular coordinates the series of 8-12 with one
    term more, in the Gaussian radius. It differs from PROJ's factors by less than 1e-8 inside a zone.
    """
    e2 = WGS84_E2
    ep2 = e2 / (1 - e2)
    mu = (y / K0) / (WGS84_A_M * (1 - e2 / 4 - 3 * e2**2 / 64 - 5 * e2**3 / 256))
    e1 = (1 - np.sqrt(1 - e2)) / (1 + np.sqrt(1 - e2))
    foot = (
        mu
        + (3 * e1 / 2 - 27 * e1**3 / 32) * np.sin(2 * mu)
        + (21 * e1**2 / 16 - 55 * e1**4 / 32) * np.sin(4 * mu)
        + (151 * e1**3 / 96) * np.sin(6 * mu)
    )
    eta2 = ep2 * np.cos(foot) ** 2
    n1 = WGS84_A_M / np.sqrt(1 - e2 * np.sin(foot) ** 2)
    # The square of the Gaussian radius at the foot point is N1 R1 = N1^2 / (1 + eta2).
    d2 = ((x - FALSE_EASTING_M) / K0) ** 2 * (1 + eta2) / n1**2
    return np.asarray(K0 * (1 + d2 / 2 + d2**2 / 24), np.float64)


def file_areas(path: str | Path, *, values: Sequence[int]) -> tuple[int, dict[int, tuple[int, float]]]:
    """Count the classes of one GeoTIFF of a zone, square by square.

    Args:
        path: A class map of ``geotiff``.
        values: Of the classes; other values, nodata too, are not counted.

    Returns:
        (zone, value -> (pixels, m2)).
    """
    pixels, m2 = np.zeros(256, np.int64), np.zeros(256)
    zone = 0
    for box, codes in geotiff.squares(path):
        zone = box.zone
        counts = np.bincount(codes.ravel(), minlength=256)
        if counts[list(values)].any():
            pixels += counts
            m2 += np.bincount(codes.ravel(), weights=pixel_areas_m2(box).ravel(), minlength=256)
    return zone, {value: (int(pixels[value]), float(m2[value])) for value in values}


def class_areas(files: Sequence[str | Path], classes: Sequence[tuple[int, str, str]]) -> tuple[ClassArea, ...]:
    """Areas of the classes of one map over all its files: zone by zone, then all of them (zone 0).

    Args:
        files: GeoTIFFs that do not overlap. A pixel that another zone owns is nodata in them: ground counts once.
        classes: (value, name, colour).
    """
    sums: dict[int, dict[int, tuple[int, float]]] = {}
    for path in sorted(files, key=str):  # one order: sums of floats depend on it
        zone, found = file_areas(path, values=[value for value, _, _ in classes])
        known = sums.setdefault(zone, {})
        for value, (pixels, m2) in found.items():
            before = known.get(value, (0, 0.0))
            known[value] = (before[0] + pixels, before[1] + m2)
    zones = sorted(sums)
    every = {
        value: (sum(sums[z][value][0] for z in zones), sum(sums[z][value][1] for z in zones))
        for value, _, _ in (classes if zones else ())
    }
    return tuple(
        area for zone, found in (*((z, sums[z]) for z in zones), (0, every)) for area in _listed(zone, found, classes)
    )


def write_areas(folder: Path, name: str, areas: Sequence[ClassArea]) -> tuple[Path, Path]:
    """Write ``NAME.areas.json`` and ``NAME.areas.csv`` into ``folder``; returns their paths.

    The CSV has the columns zone (``all`` for the sum), value, class, pixels, km2, share.
    """
    places = folder / f"{name}.areas.json", folder / f"{name}.areas.csv"
    durable.replace(places[0], to_json(name, areas).encode())
    durable.replace(places[1], _csv(areas).encode())
    return places


def read_areas(path: Path) -> tuple[ClassArea, ...]:
    """What ``write_areas`` wrote into the JSON file."""
    document = json.loads(path.read_text(encoding="utf-8"))
    return tuple(
        ClassArea(
            zone=group["zone"] or 0,
            value=row["value"],
            name=row["class"],
            pixels=row["pixels"],
            km2=row["km2"],
            share=row["share"],
        )
        for group in (*document["zones"], document["total"])
        for row in group["classes"]
    )


def to_json(name: str, areas: Sequence[ClassArea]) -> str:
    """The areas of a map as one JSON object: ``zones`` and ``total``, each with its ``classes``."""
    groups = [_group(zone, [a for a in areas if a.zone == zone]) for zone in sorted({a.zone for a in areas} - {0})]
    document = {
        "map": name,
        "unit": "km2",
        "method": METHOD,
        "zones": groups,
        "total": _group(0, [a for a in areas if a.zone == 0]),
    }
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _group(zone: int, areas: Sequence[ClassArea]) -> dict[str, Any]:
    rows = [{"value": a.value, "class": a.name, "pixels": a.pixels, "km2": a.km2, "share": a.share} for a in areas]
    return {"zone": zone or None, "km2": sum(a.km2 for a in areas), "classes": rows}


def _csv(areas: Sequence[ClassArea]) -> str:
    import csv  # noqa: PLC0415

    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("zone", "value", "class", "pixels", "km2", "share"))
    for a in areas:
        rows.writerow((a.zone or "all", a.value, a.name, a.pixels, f"{a.km2:.9g}", f"{a.share:.6f}"))
    return text.getvalue()


def _listed(
    zone: int, found: dict[int, tuple[int, float]], classes: Sequence[tuple[int, str, str]]
) -> tuple[ClassArea, ...]:
    total = sum(m2 for _, m2 in found.values())
    return tuple(
        ClassArea(
            zone=zone,
            value=value,
            name=name,
            pixels=found[value][0],
            km2=found[value][1] * 1e-6,
            share=found[value][1] / total if total else 0.0,
        )
        for value, name, _ in classes
        if value in found
    )


def _nodes(length: int, side: int) -> NDArray[np.float64]:
    """Positions of nodes, pixels from the edge: at both ends and at most ``side`` apart."""
    return np.linspace(0.0, length, -(-length // side) + 1)


def _linear(values: NDArray[np.float64], nodes: NDArray[np.float64], at: NDArray[np.float64]) -> NDArray[np.float64]:
    """Interpolate along the first axis from evenly spaced nodes."""
    place = at / (nodes[1] - nodes[0])
    low = np.minimum(place.astype(np.int64), len(nodes) - 2)
    part = (place - low)[:, None]
    return np.asarray(values[low] * (1 - part) + values[low + 1] * part, np.float64)
