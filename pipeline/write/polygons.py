"""Class maps as polygons: one row per patch of equal pixels, in a GeoParquet or GeoPackage file.

Patches are found square by square and joined across the squares' borders, so that nobody sees a square. Simplified
outlines keep the edges that neighbours share: no gaps and no overlaps. Areas are those of the pixels, on the ellipsoid.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import InvalidInputError
from pipeline.write import durable
from pipeline.write.frames import SOUTH_SHIFT_M, place

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.types import Box

SUFFIXES = (".parquet", ".gpkg")
NODATA = 255
MAX_CORNERS = 20_000_000
"""Of the outlines that are simplified together: they are cut at every pixel corner, 16 bytes each, several times."""


@dataclass(slots=True, kw_only=True)
class Patches:
    """The patches of one zone, filled square by square.

    Attributes:
        zone: UTM zone.
        res_m: Side of a pixel, metres.
    """

    zone: int
    res_m: int
    _whole: dict[int, list[Any]] = field(default_factory=dict)
    _cut: dict[int, list[Any]] = field(default_factory=dict)

    def add(self, box: Box, classes: NDArray[np.uint8]) -> None:
        """Find the patches of a square.

        Args:
            box: Its ground, of this zone and resolution.
            classes: (row, col) uint8; 255 is nodata.

        Raises:
            InvalidInputError: Another zone or resolution.
        """
        import shapely  # noqa: PLC0415
        from rasterio.features import shapes  # noqa: PLC0415
        from shapely.geometry import shape  # noqa: PLC0415

        if (box.zone, box.res_m) != (self.zone, self.res_m):
            raise InvalidInputError(f"{box} does not lie in zone {self.zone} at {self.res_m} m")
        west, south, east, north = box.bounds_m
        for outline, value in shapes(classes, mask=classes != NODATA, connectivity=4, transform=box.transform):
            patch = shape(outline)
            x0, y0, x1, y1 = shapely.bounds(patch)
            cut = x0 <= west or y0 <= south or x1 >= east or y1 >= north
            (self._cut if cut else self._whole).setdefault(int(value), []).append(patch)

    def joined(self) -> tuple[tuple[int, Any], ...]:
        """(class, polygon in the plane of EPSG:326NN), sorted by class and then from the north-west."""
        import shapely  # noqa: PLC0415

        found: list[tuple[int, Any]] = []
        for value in sorted({*self._whole, *self._cut}):
            merged = shapely.get_parts(shapely.union_all(self._cut.get(value, []))).tolist()
            found += [(value, shapely.normalize(patch)) for patch in (*self._whole.get(value, []), *merged)]
        return tuple(sorted(found, key=lambda one: (one[0], -one[1].bounds[3], one[1].bounds[0])))


def simplified(patches: Sequence[Any], *, tolerance_m: float, res_m: int) -> list[Any]:
    """Outlines with fewer corners; neighbours keep their common edges (Visvalingam and Whyatt, 1993, as GEOS has it).

    Args:
        patches: Polygons that cover a zone without overlaps, edges along pixels.
        tolerance_m: A corner goes when the triangle with its neighbours is smaller than the square of this.
        res_m: Side of a pixel.

    Raises:
        InvalidInputError: More corners than fit into memory.
    """
    import shapely  # noqa: PLC0415

    outlines = np.asarray(patches, dtype=object)
    corners = int((shapely.length(outlines) / res_m).sum())
    if corners > MAX_CORNERS:
        raise InvalidInputError(
            f"outlines of {corners:,} pixel edges cannot be simplified together (limit {MAX_CORNERS:,}): export a "
            "smaller --bbox, or without --simplify"
        )
    # where three patches meet, all of them need a corner: so all corners of pixels become corners of outlines
    return list(shapely.coverage_simplify(shapely.segmentize(outlines, float(res_m)), tolerance_m))


def area_m2(patch: Any, *, zone: int) -> float:
    """Area of a polygon of the plane of EPSG:326NN on the WGS 84 ellipsoid."""
    import shapely  # noqa: PLC0415
    from pyproj import Geod, Transformer  # noqa: PLC0415

    to_degrees = Transformer.from_crs(32600 + zone, 4326, always_xy=True)
    lonlat = shapely.transform(patch, lambda xy: np.column_stack(to_degrees.transform(xy[:, 0], xy[:, 1])))
    return abs(float(Geod(ellps="WGS84").geometry_area_perimeter(lonlat)[0]))


def write_polygons(
    path: str | Path,
    zones: Iterable[Patches],
    *,
    classes: Sequence[tuple[int, str, str]],
    simplify_m: float = 0.0,
    crs: str = "",
) -> int:
    """Write the patches of a map; the file appears whole or not at all.

    Columns: ``class`` (value), ``name``, ``colour`` (``#rrggbb``), ``area_m2`` (of the pixels, before simplifying),
    ``pixels``, ``zone``.

    Args:
        path: ``.parquet`` (GeoParquet, zstd, with a bbox column) or ``.gpkg``; an existing file is replaced.
        zones: The patches.
        classes: (value, name, colour).
        simplify_m: Tolerance of ``simplified``; 0 keeps the outlines of pixels.
        crs: Of the file; "": the zone's (327NN where its patches lie in the south), EPSG:4326 for several zones.

    Returns:
        Polygons.

    Raises:
        InvalidInputError: Another suffix, an unknown CRS, or there is nothing to write.
        OutputError: The file cannot be written.
    """
    import geopandas as gpd  # noqa: PLC0415
    import pandas as pd  # noqa: PLC0415
    from pyproj.exceptions import CRSError  # noqa: PLC0415

    file = durable.local_path(path)
    if file.suffix not in SUFFIXES:
        raise InvalidInputError(f"{file.name}: polygons are written as {' or '.join(SUFFIXES)}, not {file.suffix!r}")
    parts = [part for zone in zones if (part := _table(zone, classes=classes, simplify_m=simplify_m)) is not None]
    if not parts:
        raise InvalidInputError(f"{file.name}: the map holds no class here")
    target = crs or (str(parts[0].crs) if len(parts) == 1 else "EPSG:4326")
    try:
        table = pd.concat([_moved(part, target) for part in parts], ignore_index=True)
    except CRSError as err:
        raise InvalidInputError(f"--crs {crs!r} is not a coordinate system, e.g. EPSG:3035: {err}") from err
    _write(file, gpd.GeoDataFrame(table, geometry="geometry", crs=target))
    return len(table)


def _moved(part: Any, target: str) -> Any:
    """The rows of a zone in another CRS; in degrees a patch across the 180th meridian goes beyond it, in one piece."""
    import shapely  # noqa: PLC0415

    moved = part.to_crs(target)
    if moved.crs.is_geographic:
        bounds = moved.bounds
        crossing = (bounds.maxx - bounds.minx > 180).to_numpy()
        whole = shapely.transform(
            moved.geometry.values[crossing],
            lambda xy: np.where((xy < 0) & [True, False], xy + [360.0, 0.0], xy),  # noqa: RUF005
        )
        moved.loc[crossing, "geometry"] = whole
    return moved


def _table(zone: Patches, *, classes: Sequence[tuple[int, str, str]], simplify_m: float) -> Any:
    """The rows of a zone in the CRS of its files; None for none."""
    import geopandas as gpd  # noqa: PLC0415
    import shapely  # noqa: PLC0415

    from pipeline.types import Box  # noqa: PLC0415

    found = zone.joined()
    if not found:
        return None
    names = {value: (name, colour) for value, name, colour in classes}
    patches = [patch for _, patch in found]
    drawn = simplified(patches, tolerance_m=simplify_m, res_m=zone.res_m) if simplify_m > 0 else patches
    _, south, _, north = shapely.total_bounds(np.asarray(patches, dtype=object))
    rows = (round(-north / zone.res_m), round(-south / zone.res_m))
    ground = Box(zone=zone.zone, res_m=zone.res_m, row=rows[0], col=0, height=max(1, rows[1] - rows[0]), width=1)
    epsg = place(ground)[0]
    if epsg != ground.epsg:
        drawn = list(shapely.transform(np.asarray(drawn, dtype=object), lambda xy: xy + [0.0, SOUTH_SHIFT_M]))  # noqa: RUF005
    return gpd.GeoDataFrame(
        {
            "class": np.array([value for value, _ in found], np.uint8),
            "name": [names.get(value, (str(value), ""))[0] for value, _ in found],
            "colour": [names.get(value, ("", ""))[1] for value, _ in found],
            "area_m2": [round(area_m2(patch, zone=zone.zone), 1) for patch in patches],
            "pixels": np.array([round(patch.area / zone.res_m**2) for patch in patches], np.int64),
            "zone": np.full(len(found), zone.zone, np.uint8),
        },
        geometry=drawn,
        crs=f"EPSG:{epsg}",
    )


def _write(file: Path, table: Any) -> None:
    with durable.placed(file) as temp:
        if file.suffix == ".gpkg":
            table.to_file(temp, driver="GPKG", engine="pyogrio", layer=file.stem)
        else:
            table.to_parquet(temp, compression="zstd", write_covering_bbox=True)
