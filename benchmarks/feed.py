"""Feeding: how long a device waits for pixels, and what a large tile takes of the host's memory.

    python benchmarks/feed.py idle [--tiles 24] [--encoder-s 0.3] [--delay-ms 30]
    python benchmarks/feed.py memory [--periods 12] [--model random:v1.2-toy:0]

``idle``: tiles of 1024 px, one period, 12 bands, over a loopback server that waits ``delay-ms`` before every answer,
read ahead as a run reads them (two tiles at once, 16 files at once), for an encoder that sleeps ``encoder-s`` per tile.
Idle is the share of the time from the start of the first read (and, beside it, from the first tile on) in which it has
nothing to do. The rival reads a tile, encodes it, reads the next.

``memory``: a real run of one whole 2048 px tile and a strip of its neighbour, 12 periods, 12 bands and classification,
on this machine; the peak of resident memory against the plan's estimate. Takes minutes of encoding.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from read import BANDS, ORIGIN, ZONE, lonlat, served, write_scenes

from pipeline import api
from pipeline.account import ledger
from pipeline.account.fold import fold
from pipeline.config import load
from pipeline.read.rank import MemoryRanks
from pipeline.run.local import READERS
from pipeline.run.reading import Source
from pipeline.types import Box
from pipeline.write.commit import Commits

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.types import Plan, Stack, Task

START = datetime(2024, 1, 1, tzinfo=UTC)


def write_catalog(folder: Path, url: str, *, periods: int, size_px: int, kinds: int) -> Path:
    """Items of one scene per period; the files of ``kinds`` scenes are used in turn."""
    region = Box(zone=ZONE, res_m=10, row=ORIGIN[0] // 6 * 6, col=ORIGIN[1] // 6 * 6, height=size_px, width=size_px)
    lon, lat = lonlat(region)
    ring = [[lon[i], lat[i]] for i in (0, 1, 2, 3, 0)]
    items = []
    for t in range(periods):
        day = START + timedelta(days=30 * t + 3)
        assets = {
            band: {"href": f"{url}/s{t % kinds}_{band}.tif"} for bands in (*BANDS.values(), ("SCL",)) for band in bands
        }
        items.append(
            {
                "type": "Feature", "stac_version": "1.0.0", "id": f"scene-{t}", "collection": "sentinel-2-l2a",
                "bbox": [min(lon), min(lat), max(lon), max(lat)],
                "geometry": {"type": "Polygon", "coordinates": [ring]},
                "properties": {
                    "datetime": day.isoformat(), "eo:cloud_cover": 5.0, "s2:processing_baseline": "05.10",
                },
                "links": [], "assets": assets,
            }
        )  # fmt: skip
    path = folder / "items.json"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    return path


def plan_of(folder: Path, catalog: Path, box: Box, *, periods: int, tile_px: int, model: str) -> Plan:
    lon, lat = lonlat(box.pad(-2))
    settings = load(
        None,
        overrides=[f"store.tile_px={tile_px}", "encode.patch_px=8"],
        values={
            "bbox": (min(lon), min(lat), max(lon), max(lat)),
            "start": START.date(),
            "end": (START + timedelta(days=30 * periods)).date(),
            "model": model,
            "output": str(folder / "out"),
            "inputs": {"catalog": str(catalog), "allow_private_hosts": True},
        },
    )
    return api.plan(settings)


def fed(plan: Plan, tasks: tuple[Task, ...], encode: Callable[[tuple[Stack, ...]], None], *, ahead: int) -> float:
    """Seconds from the first tile being there to the last being encoded; ``ahead`` 0: one after the other."""
    source, first = Source(plan, ranks=MemoryRanks()), 0.0
    with ThreadPoolExecutor(16) as io, ThreadPoolExecutor(max(ahead, 1)) as readers:
        waiting, queue = deque(), deque(tasks)
        while queue or waiting:
            while queue and len(waiting) <= ahead:
                waiting.append(readers.submit(source.read, queue.popleft(), pool=io))
            stacks = waiting.popleft().result()
            first = first or time.perf_counter()
            encode(stacks)
    return time.perf_counter() - first


def idle(args: argparse.Namespace) -> None:
    rows = max(1, args.tiles // 6)
    with tempfile.TemporaryDirectory() as name, served(Path(name), delay_s=args.delay_ms / 1000) as server:
        folder = Path(name)
        write_scenes(folder, 1, size_px=6 * 1024 + 600)
        catalog = write_catalog(folder, server.url, periods=1, size_px=6 * 1024 + 600, kinds=1)
        row, col = -265 * 2048, 24 * 2048
        box = Box(zone=ZONE, res_m=10, row=row, col=col, height=rows * 1024, width=6 * 1024)
        plan = plan_of(folder, catalog, box, periods=1, tile_px=1024, model=args.model)
        report = {"tiles": len(plan.tasks), "encoder_s": args.encoder_s, "delay_ms": args.delay_ms}
        for label, ahead in (("read ahead", READERS), ("one after the other", 0)):
            begin = time.perf_counter()
            after_first = fed(plan, plan.tasks, lambda _: time.sleep(args.encoder_s), ahead=ahead)
            wall, busy = time.perf_counter() - begin, len(plan.tasks) * args.encoder_s
            report[label] = {
                "wall_s": round(wall, 2),
                "idle_pct": round(100 * (1 - busy / wall), 1),
                "idle_pct_after_first_tile": round(100 * (1 - busy / after_first), 1),
            }
    print(json.dumps(report, indent=1))


def memory(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as name, served(Path(name), delay_s=args.delay_ms / 1000) as server:
        folder = Path(name)
        write_scenes(folder, 2, size_px=3 * 1024)
        catalog = write_catalog(folder, server.url, periods=args.periods, size_px=3 * 1024, kinds=2)
        box = Box(zone=ZONE, res_m=10, row=-265 * 2048, col=24 * 2048, height=2048, width=2048 + 256)
        plan = plan_of(folder, catalog, box, periods=args.periods, tile_px=2048, model=args.model)
        outcome = api.run(plan, pictures=False)
        winners = [(r.tile_id, r.attempt) for r in Commits(Path(plan.output)).receipts()]
        summary = fold(ledger.read(plan.output), winners=winners, estimate=plan.estimate)
        ratios = {r.quantity: (r.estimated, r.measured, r.ratio and round(r.ratio, 3)) for r in summary.ratios}
        print(json.dumps({"exit_code": outcome.exit_code, "tiles": len(plan.tasks), "ratios": ratios,
                          "network": dict(summary.network)}, indent=1))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=["idle", "memory"], nargs="?", default="idle")
    for name, kind, default in (
        ("tiles", int, 24),
        ("periods", int, 12),
        ("encoder-s", float, 0.3),
        ("delay-ms", float, 30),
        ("model", str, "random:v1.2-nano:0"),
    ):
        parser.add_argument(f"--{name}", type=kind, default=default)
    args = parser.parse_args()
    {"idle": idle, "memory": memory}[args.what](args)


if __name__ == "__main__":
    main()
