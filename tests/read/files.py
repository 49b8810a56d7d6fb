"""Makers of small real files: COGs on the lattice, scenes of thirteen of them, and the pixels they hold."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
from affine import Affine

from pipeline.read.access import Access
from pipeline.read.rank_store import MemoryRanks
from pipeline.read.rules import ReadRule
from pipeline.read.sensors import LANDSAT, SENTINEL2_L2A
from pipeline.read.stacks import needed_cells, read_stacks
from pipeline.types import Asset, Box, Candidates, Cell, Period, Scene, content_hash

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from concurrent.futures import Executor
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.read.rank_store import RankStore
    from pipeline.types import Stack

START = datetime(2024, 5, 1, tzinfo=UTC)
CORNER = (-265 * 2048, 24 * 2048)
"""10 m (row, col) where four ranking cells meet; neither is a multiple of 6, so 60 m pixels straddle the borders."""
ZONE = 32
LOCAL = Access(allow_local=True)


def write_cog(
    path: Path,
    values: NDArray,
    *,
    box: Box,
    epsg: int | None = None,
    transform: Affine | None = None,
    nodata: float | None = 0,
    driver: str = "COG",
) -> Path:
    """A COG of ``values`` over ``box``; EPSG:327NN shifts the northings as southern products do."""
    epsg = epsg or box.epsg
    shift = 10_000_000 if epsg > 32700 else 0
    transform = transform or Affine.translation(0, shift) * box.transform
    options = {"blocksize": 128, "compress": "deflate", "predictor": 2} if driver == "COG" else {}
    with rasterio.open(
        path,
        "w",
        driver=driver,
        width=values.shape[-1],
        height=values.shape[-2],
        count=1,
        dtype=values.dtype,
        crs=f"EPSG:{epsg}",
        transform=transform,
        nodata=nodata,
        **options,
    ) as dataset:
        dataset.write(values, 1)
    return path


def scene_of(scene_id: str, *assets: Asset, boa_offset: int = 0, sign: bool = False, cloud: float = 0.0) -> Scene:
    """A scene of given files."""
    return Scene(
        id=scene_id,
        collection="sentinel-2-l2a",
        sensor="sentinel2_l2a",
        acquired=START,
        cloud_pct=cloud,
        footprint="",
        assets=tuple(sorted(assets, key=lambda a: a.band)),
        boa_offset=boa_offset,
        sign=sign,
    )


@dataclass(frozen=True)
class MadeScene:
    """A scene with the truth about its pixels: raw DN by band, over ``boxes`` by resolution."""

    scene: Scene
    pixels: dict[str, NDArray]
    boxes: dict[int, Box]


def region_around(row: int, col: int, *, half_px: int = 60, zone: int = ZONE) -> Box:
    """A 10 m box of whole pixels of 60 m and 80 m (at which scenes are ranked) around a lattice point."""
    row, col = (row - half_px) // 24 * 24, (col - half_px) // 24 * 24
    side = 2 * half_px // 24 * 24 + 24
    return Box(zone=zone, res_m=10, row=row, col=col, height=side, width=side)


def make_scene(
    folder: Path,
    scene_id: str,
    *,
    region: Box,
    seed: int,
    holes: float = 0.0,
    boa_offset: int = 0,
    without: tuple[str, ...] = (),
    classes: int | NDArray | None = None,
    epsg: int | None = None,
    only: dict[str, int] | None = None,
) -> MadeScene:
    """Thirteen small files with random pixels; ``holes`` of the blocks of 6 x 6 pixels are nodata, per band.

    Classes are random per 80 m, so that every overview and every thinning of them is the same; ``classes`` gives them
    all one value, or a (row, col) array of values at 20 m. ``only`` gives bands one value everywhere.
    """
    rng = np.random.default_rng(seed)
    pixels: dict[str, NDArray] = {}
    boxes = {r: region.cover(r) for r in (10, 20, 60)}
    for layer in SENTINEL2_L2A.layers:
        shape = boxes[layer.res_m].shape
        n = {10: 6, 20: 3, 60: 1}[layer.res_m]
        common = rng.random((shape[0] // n + 1, shape[1] // n + 1)) >= holes
        for band in layer.bands:
            own = common & (rng.random(common.shape) >= holes / 8)
            mask = np.kron(own, np.ones((n, n), dtype=bool))[: shape[0], : shape[1]]
            pixels[band] = np.where(mask, rng.integers(1, 12000, shape), 0).astype(np.uint16)
    shape = boxes[20].shape
    if classes is None:
        coarse = rng.integers(0, 12, (shape[0] // 4, shape[1] // 4))
        classes = np.kron(coarse, np.ones((4, 4), dtype=int))
    pixels["SCL"] = np.broadcast_to(classes, shape).astype(np.uint8)
    res = {b: layer.res_m for layer in SENTINEL2_L2A.layers for b in layer.bands} | {"SCL": 20}
    for name, value in (only or {}).items():
        pixels[name][...] = value
    for name in without:
        del pixels[name]
    assets = []
    for band, values in pixels.items():
        path = folder / f"{scene_id}_{band}.tif"
        write_cog(path, values, box=boxes[res[band]], epsg=epsg, driver="GTiff")
        assets.append(Asset(band=band, href=str(path)))
    return MadeScene(scene_of(scene_id, *assets, boa_offset=boa_offset), pixels, boxes)


def make_radar(folder: Path, scene_id: str, *, region: Box, seed: int, holes: float = 0.0) -> MadeScene:
    """A Sentinel-1 scene: vv and vh as linear power, -32768 where ``holes`` of the pixels are missing in both."""
    rng = np.random.default_rng(seed)
    gone = rng.random(region.shape) < holes
    pixels, assets = {}, []
    for band in ("vv", "vh"):
        pixels[band] = np.where(gone, -32768, rng.uniform(0.001, 0.4, region.shape)).astype(np.float32)
        path = write_cog(folder / f"{scene_id}_{band}.tif", pixels[band], box=region, nodata=-32768, driver="GTiff")
        assets.append(Asset(band=band, href=str(path)))
    scene = replace(scene_of(scene_id, *assets), sensor="sentinel1", collection="sentinel-1-rtc", quantity="gamma0")
    return MadeScene(scene, pixels, {10: region})


def make_landsat(folder: Path, scene_id: str, *, region: Box, seed: int) -> MadeScene:
    """A Landsat scene whose eleven files lie on the 10 m lattice already, so that nothing is resampled."""
    rng = np.random.default_rng(seed)
    pixels, assets = {}, []
    for band in (layer := LANDSAT.layers[0]).bands:
        pixels[band] = rng.integers(1, 30000, region.cover(layer.res_m).shape).astype(np.uint16)
        path = write_cog(folder / f"{scene_id}_{band}.tif", pixels[band], box=region, driver="GTiff")
        assets.append(Asset(band=band, href=str(path)))
    scene = replace(scene_of(scene_id, *assets), sensor="landsat", collection="landsat-c2-l1")
    return MadeScene(scene, pixels, {10: region})


def periods(count: int) -> tuple[Period, ...]:
    """``count`` periods of 30 days."""
    return tuple(
        Period(index=i, start=START + timedelta(days=30 * i), end=START + timedelta(days=30 * (i + 1)))
        for i in range(count)
    )


def candidates(
    cells: tuple[Cell, ...], by_period: dict[int, tuple[str, ...]], *, sensor: str = "sentinel2_l2a"
) -> tuple[Candidates, ...]:
    """The same candidates for every cell."""
    return tuple(
        Candidates(cell=cell, period=p, scene_ids=ids, fingerprint=content_hash(sorted(ids)), sensor=sensor)
        for cell in cells
        for p, ids in by_period.items()
    )


def read_stack(*, rule: ReadRule | None = None, **given: Any) -> Stack:
    """The Stack of one sensor; arguments as ``read_stacks``."""
    (stack,) = read_stacks(rules=(rule or ReadRule(),), **given)
    return stack


def stack_of(
    made_by_period: Sequence[Sequence[MadeScene]],
    *,
    box: Box,
    rule: ReadRule | None = None,
    pool: Executor | None = None,
    access: Access = LOCAL,
    ranks: RankStore | None = None,
    extra: Iterable[Scene] = (),
) -> Stack:
    """What is made of scenes, those of each period in the order given; ``extra`` scenes are candidates nowhere."""
    rule = rule or ReadRule()
    ids = {t: tuple(m.scene.id for m in made) for t, made in enumerate(made_by_period)}
    with ThreadPoolExecutor(8) as threads:
        return read_stack(
            box=box,
            periods=periods(len(made_by_period)),
            candidates=candidates(needed_cells(box, rules=(rule,)), ids, sensor=rule.sensor),
            scenes={m.scene.id: m.scene for made in made_by_period for m in made} | {s.id: s for s in extra},
            access=access,
            ranks=ranks or MemoryRanks(),
            pool=pool or threads,
            rule=rule,
        )
