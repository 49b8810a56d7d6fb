"""Tiles and area of the map of the report page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.run import ground
from pipeline.types import BLOCK_PX, PIXEL_M
from pipeline.write import mercator, page

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from pipeline.run.status import TileStatus
    from pipeline.types import Plan, Receipt, Tile


AREA_POINTS = 20_000
"""Corners of the area that are drawn; more are thinned out."""


def reference_lon(plan: Plan) -> float:
    """Meridian around which the map is drawn: the middle of the first zone with something committed."""
    zones = [extent.zone for extent in ground.extents(plan)] or [task.tile.zone for task in plan.tasks]
    return zones[0] * 6.0 - 183.0 if zones else 0.0


def view(plan: Plan, tiles: Sequence[tuple[Tile, Receipt]], rows: Sequence[TileStatus], *, label: str) -> page.MapView:
    """Tiles and area of the map.

    Args:
        plan: Which tiles were asked for.
        tiles: What is committed, also for earlier areas.
        rows: Status of the plan's tiles, in its order.
        label: A warning over the map.
    """
    lon = reference_lon(plan)
    receipts = {tile.id: receipt for tile, receipt in tiles}
    status = {row.tile_id: row for row in rows}
    places = {task.tile.id: task.tile for task in plan.tasks} | {tile.id: tile for tile, _ in tiles}
    named = sorted(places.values())
    rings = mercator.rings([tile.box for tile in named], reference_lon=lon)
    return page.MapView(
        tiles=tuple(
            _tile(plan, tile, ring, status.get(tile.id), receipts.get(tile.id))
            for tile, ring in zip(named, rings, strict=True)
        ),
        tile_m=plan.grid.tile_px * PIXEL_M,
        area=_area(plan, lon),
        reference_lon=lon,
        label=label,
        note="Longitude and latitude in WGS 84; north is up. Pictures are averaged down: the files have every pixel.",
    )


def state_of(row: TileStatus | None, receipt: Receipt | None) -> str:
    """Where a tile stands; a tile without a valid pixel is ``empty``."""
    state = "done" if row is None else row.state
    return "empty" if state == "done" and receipt is not None and receipt.status == "empty" else state


def valid_share(plan: Plan, receipt: Receipt) -> float:
    """Part of the pixels of the committed blocks that have an embedding."""
    side = BLOCK_PX // plan.grid.token_px
    return receipt.valid_px / max(1, len(receipt.blocks) * side**2)


def _tile(plan: Plan, tile: Tile, ring: page.Ring, row: TileStatus | None, receipt: Receipt | None) -> page.MapTile:
    facts: list[tuple[str, str]] = []
    if row is not None and row.attempts:
        facts.append(("attempts since", f"{row.attempts}"))
    if receipt is not None:
        facts += [
            ("valid", f"{valid_share(plan, receipt):.1%}"),
            ("clipped", f"{max(receipt.clipped, receipt.clipped_worst):.3%}"),
            ("device", f"{receipt.usage.busy_s:.1f} s"),
            ("attempt", f"{receipt.attempt}"),
        ]
    if row is not None and row.reason:
        facts.append(("reason", row.reason))
    if row is None:
        facts.append(("asked for", "by an earlier request"))
    return page.MapTile(tile_id=tile.id, state=state_of(row, receipt), ring=ring, facts=tuple(facts))


def _area(plan: Plan, lon: float) -> tuple[page.Ring, ...]:
    import shapely  # noqa: PLC0415

    shape = shapely.from_wkb(plan.area.wkb)
    west, south, east, north = shape.bounds
    tolerance = max(east - west, north - south) / 4000
    while shapely.get_num_coordinates(shape) > AREA_POINTS:
        shape, tolerance = shapely.simplify(shape, tolerance), tolerance * 2
    polygons = shapely.get_parts(shape).tolist()
    rings = [ring for polygon in polygons for ring in (polygon.exterior, *polygon.interiors)]
    return tuple(_ring(shapely.get_coordinates(ring)[:-1], lon) for ring in rings)


def _ring(points: NDArray[np.float64], lon: float) -> page.Ring:
    near = mercator.near_lon(points[:, 0], reference_lon=lon)
    return tuple((x, y) for x, y in zip(near.tolist(), points[:, 1].tolist(), strict=True))
