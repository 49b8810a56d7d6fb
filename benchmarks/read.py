"""Read cost: ``read_stack`` at native resolution against GDAL's WarpedVRT to 10 m, on generated granules.

    python benchmarks/read.py [--size 4096] [--box 2048] [--periods 2] [--rounds 5]

Local files, one process, the two readers interleaved round by round; medians. CPU milliseconds are per megapixel of one
band on the 10 m grid (Mpb), so that native and resampled reads count the same ground. ``native`` includes ranking on
the first round only (rankings are remembered, as in a run); its cost is printed apart.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import rasterio
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT

from pipeline.read.access import Access
from pipeline.read.rank import MemoryRanks
from pipeline.read.sensors import SENTINEL2_L2A
from pipeline.read.tiles import needed_cells, read_stack
from pipeline.types import CELL_PX, Asset, Box, Candidates, Period, Scene, content_hash

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.types import Stack

T = TypeVar("T")

ZONE = 32
ORIGIN = (-265 * CELL_PX - 300, 24 * CELL_PX - 300)


def texture(side: int, *, seed: int) -> np.ndarray:
    """Pixels that deflate to about 70 % of raw, as real granules do: smooth relief plus 10 bits of noise."""
    rng = np.random.default_rng(seed)
    rows, cols = np.ogrid[:side, :side]
    relief = 3000 + 1200 * np.sin(rows / 97) + 900 * np.cos(cols / 131)
    return (relief + rng.normal(0, 250, (side, side))).astype(np.uint16)


def write_granule(folder: Path, name: str, *, size_px: int, seed: int) -> Scene:
    """One scene in the archive's layout: tiled 512, deflate, predictor 2."""
    region = Box(zone=ZONE, res_m=10, row=ORIGIN[0] // 6 * 6, col=ORIGIN[1] // 6 * 6, height=size_px, width=size_px)
    assets = []
    res = {b: layer.res_m for layer in SENTINEL2_L2A.layers for b in layer.bands} | {"SCL": 20}
    for i, (band, res_m) in enumerate(sorted(res.items())):
        box = region.cover(res_m)
        values = texture(max(box.shape), seed=seed + i)[: box.height, : box.width]
        if band == "SCL":
            values = np.where(values > 4500, 9, 4).astype(np.uint8)
        path = folder / f"{name}_{band}.tif"
        with rasterio.open(
            path, "w", driver="GTiff", width=box.width, height=box.height, count=1, dtype=values.dtype, nodata=0,
            crs=f"EPSG:{box.epsg}", transform=box.transform, tiled=True, blockxsize=512, blockysize=512,
            compress="deflate", predictor=2,
        ) as dataset:  # fmt: skip
            dataset.write(values, 1)
        assets.append(Asset(band=band, href=str(path)))
    return Scene(
        id=name, collection="sentinel-2-l2a", sensor="sentinel2_l2a", acquired=datetime(2024, 5, 1, tzinfo=UTC),
        cloud_pct=0.0, footprint="", assets=tuple(assets),
    )  # fmt: skip


def warped(scenes: list[Scene], *, box: Box, pool: ThreadPoolExecutor) -> np.ndarray:
    """What rslearn does: every band through WarpedVRT straight to 10 m."""
    bands = [b for layer in SENTINEL2_L2A.layers for b in layer.bands]
    out = np.zeros((len(scenes), len(bands), *box.shape), dtype=np.uint16)

    def one(job: tuple[int, int]) -> None:
        asset = scenes[job[0]].href(bands[job[1]])
        with rasterio.Env(GDAL_CACHEMAX=256 << 20), rasterio.open(asset.href) as dataset, WarpedVRT(
            dataset, crs=f"EPSG:{box.epsg}", transform=box.transform, width=box.width, height=box.height,
            resampling=Resampling.bilinear,
        ) as vrt:  # fmt: skip
            out[job] = vrt.read(1)

    list(pool.map(one, [(t, b) for t in range(len(scenes)) for b in range(len(bands))]))
    return out


def measure(work: Callable[[], T]) -> tuple[float, float, T]:
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return time.perf_counter() - wall, time.process_time() - cpu, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, default in (("size", 4096), ("box", 2048), ("halo", 64), ("periods", 2), ("rounds", 5), ("threads", 16)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(args.threads) as pool:
        folder = Path(name)
        scenes = [write_granule(folder, f"s{t}", size_px=args.size, seed=100 * t) for t in range(args.periods)]
        start = scenes[0].acquired
        periods = tuple(
            Period(index=t, start=start + timedelta(days=30 * t), end=start + timedelta(days=30 * (t + 1)))
            for t in range(args.periods)
        )
        row, col = ORIGIN[0] + 300, ORIGIN[1] + 300
        box = Box(zone=ZONE, res_m=10, row=row, col=col, height=args.box, width=args.box).pad(args.halo)
        candidates = tuple(
            Candidates(cell=c, period=t, scene_ids=(s.id,), fingerprint=content_hash(s.id))
            for c in needed_cells(box)
            for t, s in enumerate(scenes)
        )
        ranks, by_id = MemoryRanks(), {s.id: s for s in scenes}

        def native() -> Stack:
            return read_stack(
                box=box, periods=periods, candidates=candidates, scenes=by_id,
                access=Access(allow_local=True), ranks=ranks, pool=pool,
            )  # fmt: skip

        _, first_cpu, stack = measure(native)
        runs: dict[str, list[tuple[float, float]]] = {"native": [], "warped": []}
        for _ in range(args.rounds):
            for label, work in (("native", native), ("warped", lambda: warped(scenes, box=box, pool=pool))):
                wall, cpu, result = measure(work)
                runs[label].append((wall, cpu))
                stack = result if label == "native" else stack
                del result
        megapixel_bands = box.height * box.width * 12 * args.periods / 1e6
        raw_mb = sum(layer.pixels.nbytes for layer in stack.layers) / 1e6
        report: dict[str, object] = {"mpb": round(megapixel_bands, 1), "native_mb": round(raw_mb, 1)}
        for label, pairs in runs.items():
            wall, cpu = (statistics.median(p[i] for p in pairs) for i in (0, 1))
            held_mb = raw_mb if label == "native" else megapixel_bands * 2
            report[label] = {
                "wall_s": round(wall, 2),
                "cpu_ms_per_mpb": round(cpu * 1e3 / megapixel_bands, 2),
                "mb_per_s": round(held_mb / wall, 1),
            }
        cpu = {label: statistics.median(p[1] for p in pairs) for label, pairs in runs.items()}
        report["cpu_ratio_warped_to_native"] = round(cpu["warped"] / cpu["native"], 2)
        report["ranking_cpu_s"] = round(first_cpu - cpu["native"], 2)
        print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
