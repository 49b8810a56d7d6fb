"""Ground, scenes and reference pixels that several traps share."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from pipeline.plan.items import scene_from_item
from pipeline.read.access import Access
from pipeline.read.rank import MemoryRanks
from pipeline.read.rules import ReadRule
from pipeline.read.windows import read_band
from pipeline.types import Asset, Box, Cell
from tests.plan.catalog_items import item
from tests.read.files import CORNER, ZONE, candidates, periods, read_stack, region_around, scene_of, write_cog

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.types import Scene, Stack

LOCAL = Access(allow_local=True)
SELF = "https://archive.example/v1/collections/c/items/x"
REGION = region_around(CORNER[0] + 200, CORNER[1] + 200, half_px=48)
"""Ground of 96 to 120 px inside one cell."""
CELL = Cell(zone=ZONE, row=REGION.row // 2048, col=REGION.col // 2048)
SMALL = Box(zone=32, res_m=10, row=-552_300, col=49_860, height=96, width=96)
GIVEN = ReadRule(composite="rslearn_mosaic")
"""Scenes in the order in which they are given."""


def s2(name: str, *, base: str = SELF, offset: str = "auto", without: tuple[str, ...] = (), **properties) -> Scene:
    """The scene of a Sentinel-2 item."""
    made = item(name, **properties)
    for key in without:
        del made["properties"][key]
    return scene_from_item(made, base=base, sign=False, offset=offset)


def with_files(scene: Scene, folder: Path, **values: int | NDArray) -> Scene:
    """The scene with files of these DN over ``SMALL``, in place of its own."""
    assets = []
    for band, dn in values.items():
        box = SMALL.cover({"B02": 10, "B12": 20}[band])
        pixels = np.broadcast_to(np.asarray(dn, np.uint16), box.shape)
        path = write_cog(folder / f"{scene.id}_{band}.tif", pixels, box=box, driver="GTiff")
        assets.append(Asset(band=band, href=str(path)))
    return replace(scene, assets=tuple(assets))


def blue(scene: Scene, box: Box = SMALL) -> NDArray:
    """Band B02 in a Stack's encoding."""
    return read_band(scene, "B02", box=box, access=LOCAL)


def radar(path: Path, band: str = "vv") -> Scene:
    """A Sentinel-1 scene of one file."""
    scene = scene_of("R", Asset(band=band, href=str(path)))
    return replace(scene, sensor="sentinel1", collection="sentinel-1-rtc", quantity="gamma0")


def stack_of(*scenes: Scene, rule: ReadRule = GIVEN, box: Box = REGION, access: Access = LOCAL) -> Stack:
    """One period, filled from these scenes in this order."""
    with ThreadPoolExecutor(4) as pool:
        return read_stack(
            box=box,
            periods=periods(1),
            candidates=candidates((CELL,), {0: tuple(s.id for s in scenes)}, sensor=rule.sensor),
            scenes={s.id: s for s in scenes},
            access=access,
            ranks=MemoryRanks(),
            pool=pool,
            rule=rule,
        )
