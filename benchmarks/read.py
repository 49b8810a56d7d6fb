"""Reading side by side over loopback: earthpress, rasterio's WarpedVRT (rslearn's reader) and odc-stac with dask.

    python benchmarks/read.py [--box 2048] [--scenes 2] [--delay-ms 30] [--rounds 3]

Generated scenes in the archive's layout (COG, 512 px blocks, deflate, predictor 2, overviews; pixels that deflate to
about 70 % of raw) lie behind a file server of its own process that waits ``delay-ms`` before every answer. Every reader
reads the same windows, 12 bands of every scene, in a process of its own, the readers in turn round by round; medians.
CPU is user+system time of the reading process, per megapixel of one band on the 10 m grid (Mpb), so that native and
resampled reads count the same ground. ``as read`` ends with native pixels on the host, ``at 10 m`` includes the
upsampling that the encoder does (torch, one thread). Memory is the peak above what the imports took.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pipeline.read.access import Access
    from pipeline.types import Box, Scene

    Args = argparse.Namespace
    Work = Callable[[], int]

ROOT = Path(__file__).resolve().parents[1]
ZONE = 32
CELL = 2048
ORIGIN = (-265 * CELL - 300, 24 * CELL - 300)
SIZE_PX = {512: 1536, 1024: 2048, 2048: 3072}
BANDS = {
    10: ("B02", "B03", "B04", "B08"),
    20: ("B05", "B06", "B07", "B8A", "B11", "B12"),
    60: ("B01", "B09"),
}
STRIP_PX = 64
"""Rows that are upsampled at a time, as for one row of windows."""
READERS = ("earthpress as read", "earthpress at 10 m", "earthpress async as read", "WarpedVRT", "odc-stac + dask")
RIVAL = "odc-stac + dask"


# --- scenes -----------------------------------------------------------------------------------------------------------


def texture(shape: tuple[int, int], *, seed: int) -> np.ndarray:
    """Smooth relief plus noise of a few bits: deflates to about 70 % of raw, as real scenes do."""
    rng = np.random.default_rng(seed)
    rows, cols = np.ogrid[: shape[0], : shape[1]]
    relief = 3000 + 1200 * np.sin(rows / 97) + 900 * np.cos(cols / 131)
    return (relief + rng.normal(0, 250, shape)).astype(np.uint16)


def region_of(size_px: int) -> Box:
    from pipeline.types import Box

    return Box(zone=ZONE, res_m=10, row=ORIGIN[0] // 6 * 6, col=ORIGIN[1] // 6 * 6, height=size_px, width=size_px)


def write_scenes(folder: Path, count: int, *, size_px: int) -> None:
    """COGs of ``count`` scenes in the archive's layout."""
    import rasterio

    files = [(band, res) for res, bands in BANDS.items() for band in bands] + [("SCL", 20)]
    for scene in range(count):
        for i, (band, res) in enumerate(files):
            box = region_of(size_px).cover(res)
            values = texture(box.shape, seed=100 * scene + i)
            if band == "SCL":
                values = np.where(values > 4800, 9, 4).astype(np.uint8)
            with rasterio.open(
                folder / f"s{scene}_{band}.tif", "w", driver="COG", width=box.width, height=box.height, count=1,
                dtype=values.dtype, nodata=0, crs=f"EPSG:{box.epsg}", transform=box.transform, compress="deflate",
                predictor=2, blocksize=512, overview_resampling="nearest" if band == "SCL" else "average",
            ) as dataset:  # fmt: skip
                dataset.write(values, 1)


# --- readers: each runs in a process of its own -----------------------------------------------------------------------


def request_of(args: Args) -> Box:
    from pipeline.types import Box

    row, col = ORIGIN[0] + 300, ORIGIN[1] + 300
    return Box(zone=ZONE, res_m=10, row=row, col=col, height=args.box, width=args.box)


def scenes_of(args: Args) -> list[Scene]:
    from pipeline.types import Asset, Scene

    return [
        Scene(
            id=f"s{t}", collection="sentinel-2-l2a", sensor="sentinel2_l2a", acquired=datetime(2024, 5, 1, tzinfo=UTC),
            cloud_pct=0.0, footprint="",
            assets=tuple(Asset(band=b, href=f"{args.url}/s{t}_{b}.tif") for bs in BANDS.values() for b in bs),
        )
        for t in range(args.scenes)
    ]  # fmt: skip


def earthpress(args: Args, *, at_10_m: bool = False, backend: str = "rasterio") -> Work:
    """Windows of the run: no candidate has a classification, so nothing is ranked."""
    from pipeline.read.access import Access
    from pipeline.read.rank import MemoryRanks
    from pipeline.read.rules import ReadRule
    from pipeline.read.tiles import needed_cells, read_stacks
    from pipeline.types import Candidates, Period, content_hash

    scenes, box = scenes_of(args), request_of(args)
    start = scenes[0].acquired
    periods = tuple(
        Period(index=t, start=start + timedelta(days=30 * t), end=start + timedelta(days=30 * (t + 1)))
        for t in range(args.scenes)
    )
    rules = (ReadRule(),)
    candidates = tuple(
        Candidates(cell=c, period=t, scene_ids=(s.id,), fingerprint=content_hash(s.id))
        for c in needed_cells(box, rules=rules)
        for t, s in enumerate(scenes)
    )
    upsampled = None
    if at_10_m:
        import torch

        from pipeline.encode.assemble import upsampled

        torch.set_num_threads(1)
    access = Access(allow_private=True, backend=backend)

    def work() -> int:
        with ThreadPoolExecutor(args.threads) as pool:
            (stack,) = read_stacks(
                box=box, periods=periods, candidates=candidates, scenes={s.id: s for s in scenes}, access=access,
                ranks=MemoryRanks(), pool=pool, rules=rules,
            )  # fmt: skip
        if upsampled is None:
            return sum(layer.pixels.nbytes for layer in stack.layers)
        strips = [replace(box, row=row, height=STRIP_PX) for row in range(box.row, box.row_stop, STRIP_PX)]
        return sum(
            upsampled(layer, strip, period=t).to(torch.int16).nbytes  # kept as wide as the others' pixels
            for strip in strips
            for t in range(args.scenes)
            for layer in stack.layers
        )

    return work


def warped(args: Args) -> Work:
    """What rslearn's materialisation does: every band through WarpedVRT straight to 10 m."""
    import rasterio
    from rasterio.enums import Resampling
    from rasterio.vrt import WarpedVRT

    from pipeline.read.access import Access

    box, env = request_of(args), gdal_env(Access)
    bands = [b for bs in BANDS.values() for b in bs]

    def one(job: tuple[int, str]) -> np.ndarray:
        scene, band = job
        with rasterio.Env(**env), rasterio.open(f"{args.url}/s{scene}_{band}.tif") as dataset, WarpedVRT(
            dataset, crs=f"EPSG:{box.epsg}", transform=box.transform, width=box.width, height=box.height,
            resampling=Resampling.bilinear,
        ) as vrt:  # fmt: skip
            return vrt.read(1)

    def work() -> int:
        out = np.zeros((args.scenes, len(bands), *box.shape), np.uint16)
        jobs = [(t, b) for t in range(args.scenes) for b in bands]
        with ThreadPoolExecutor(args.threads) as pool:
            for (t, b), values in zip(jobs, pool.map(one, jobs), strict=True):
                out[t, bands.index(b)] = values
        return out.nbytes

    return work


def odc(args: Args) -> Work:
    """odc.stac.load to 10 m, bilinear, chunks of the whole window, dask's threads."""
    import dask
    import odc.stac
    import pystac
    from odc.geo.geobox import GeoBox

    from pipeline.read.access import Access

    box = request_of(args)
    region = region_of(SIZE_PX[args.box])
    items = []
    for t in range(args.scenes):
        item = pystac.Item(
            id=f"s{t}", geometry=None, bbox=None, datetime=datetime(2024, 5, 1 + t, tzinfo=UTC),
            properties={"proj:epsg": region.epsg},
        )  # fmt: skip
        for res, bands in BANDS.items():
            own = region.cover(res)
            for band in bands:
                fields = {
                    "proj:shape": list(own.shape),
                    "proj:transform": list(own.transform)[:6],
                    "proj:epsg": own.epsg,
                }
                item.add_asset(
                    band, pystac.Asset(href=f"{args.url}/s{t}_{band}.tif", extra_fields=fields, roles=["data"])
                )
        item.stac_extensions = ["https://stac-extensions.github.io/projection/v1.1.0/schema.json"]
        lon, lat = lonlat(region)
        item.bbox = [min(lon), min(lat), max(lon), max(lat)]
        ring = [[lon[i], lat[i]] for i in (0, 1, 2, 3, 0)]
        item.geometry = {"type": "Polygon", "coordinates": [ring]}
        items.append(item)
    geobox = GeoBox(box.shape, box.transform, f"EPSG:{box.epsg}")
    odc.stac.configure_rio(cloud_defaults=False, **gdal_env(Access))

    def work() -> int:
        data = odc.stac.load(
            items, bands=[b for bs in BANDS.values() for b in bs], geobox=geobox, resampling="bilinear", nodata=0,
            dtype="uint16", chunks={"x": args.box, "y": args.box},
        )  # fmt: skip
        with dask.config.set(scheduler="threads", num_workers=args.threads):
            return data.compute().nbytes

    return work


def lonlat(box: Box) -> tuple[list[float], list[float]]:
    from rasterio.warp import transform

    west, south, east, north = box.bounds_m
    return transform(f"EPSG:{box.epsg}", "EPSG:4326", [west, east, east, west], [south, south, north, north])


def gdal_env(access: type[Access]) -> dict[str, str | int]:
    """The same GDAL settings for everybody."""
    env: dict[str, str | int] = dict(access().gdal)
    env["GDAL_CACHEMAX"] = int(env["GDAL_CACHEMAX"]) << 20
    return env


def child(args: Args) -> None:
    makers = {
        "earthpress as read": earthpress,
        "earthpress at 10 m": lambda a: earthpress(a, at_10_m=True),
        "earthpress async as read": lambda a: earthpress(a, backend="async-geotiff"),
        "WarpedVRT": warped,
        "odc-stac + dask": odc,
    }
    work = makers[args.child](args)
    import psutil

    before = psutil.Process().memory_info().rss
    reset_peak()
    usage, wall = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    held = work()
    wall = time.perf_counter() - wall
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - usage.ru_utime - usage.ru_stime
    print(json.dumps({"cpu_s": cpu, "wall_s": wall, "peak_bytes": peak_bytes() - before, "held_bytes": held}))


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew


def peak_bytes() -> int:
    line = next(k for k in Path("/proc/self/status").read_text().splitlines() if k.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


# --- the table --------------------------------------------------------------------------------------------------------


def run_child(name: str, args: Args, url: str) -> dict[str, float]:
    command = [
        sys.executable, __file__, "--child", name, "--url", url, "--box", str(args.box), "--scenes", str(args.scenes),
        "--threads", str(args.threads),
    ]  # fmt: skip
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--box", type=int, default=2048, choices=sorted(SIZE_PX))
    for name, default in (("scenes", 2), ("rounds", 3), ("threads", 16)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--delay-ms", type=float, default=30.0)
    parser.add_argument("--readers", default=",".join(READERS), help="comma-separated")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args)
        return
    names = args.readers.split(",")
    results = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        write_scenes(Path(folder), args.scenes, size_px=SIZE_PX[args.box])
        with served(Path(folder), delay_s=args.delay_ms / 1000) as server:
            for _ in range(args.rounds):
                for name in names:
                    before = server.counts()
                    row = run_child(name, args, server.url)
                    after = server.counts()
                    row |= {key: after[key] - before[key] for key in after}
                    results[name].append(row)
    mpb = args.scenes * 12 * args.box**2 / 1e6
    table = {}
    for name, rows in results.items():
        middle = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        table[name] = {
            "cpu_ms_per_mpb": round(1e3 * middle["cpu_s"] / mpb, 2),
            "wall_s": round(middle["wall_s"], 2),
            "requests": middle["requests"],
            "mb": round(middle["bytes"] / 1e6, 1),
            "peak_mb": round(middle["peak_bytes"] / 1e6),
            "held_mb": round(middle["held_bytes"] / 1e6),
        }
    rival = table.get(RIVAL)
    report = {"box_px": args.box, "scenes": args.scenes, "delay_ms": args.delay_ms, "mpb": round(mpb, 1), "rows": table}
    if rival:
        report["cpu_against_odc_stac"] = {
            name: round(row["cpu_ms_per_mpb"] / rival["cpu_ms_per_mpb"], 3) for name, row in table.items()
        }
    print(json.dumps(report, indent=1))


class Server:
    """The file server of the tests as a process of its own."""

    def __init__(self, process: subprocess.Popen, port: int) -> None:
        self._process, self.url = process, f"http://127.0.0.1:{port}"

    def counts(self) -> dict[str, int]:
        with urllib.request.urlopen(f"{self.url}/_counts", timeout=10) as answer:  # noqa: S310
            return {k: v for k, v in json.load(answer).items() if k in ("requests", "bytes")}


@contextmanager
def served(folder: Path, *, delay_s: float) -> Iterator[Server]:
    command = [
        sys.executable,
        "-m",
        "tests.servers.ranges",
        str(folder),
        "--port",
        "0",
        "--delay-ms",
        str(1000 * delay_s),
    ]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        yield Server(process, int(process.stdout.readline()))
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main()
