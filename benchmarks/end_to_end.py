"""A whole run on the simulated sample: km2/s, where the time goes, memory beside its estimate.

    python benchmarks/end_to_end.py [--runs 3]

Prints medians over the runs; the sample is made once and not timed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CASES = (
    ("nano p4 64/24, T=4", ("encode.patch_px=4",)),
    ("nano p8 96/32, T=4", ("encode.patch_px=8",)),
    ("tiny p8 96/32, T=4", ("encode.patch_px=8", "model=random:v1.2-tiny:0")),
)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--runs", type=int, default=3)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as folder:
        sample = json.loads(_child("sample", folder))
        print("| case | wall s | km2/s (tiles only) | core-s/km2 | peak MB: measured / estimated | device s: same |")
        print("|---|---|---|---|---|---|")
        stages = {}
        for name, sets in CASES:
            rows = [
                json.loads(_child("run", folder, json.dumps(sample), json.dumps(sets), str(i))) for i in range(runs)
            ]
            print(f"| {name} | " + " | ".join(_cells(rows)) + " |")
            stages[name] = {k: statistics.median(r["stages"].get(k, 0.0) for r in rows) for k in rows[0]["stages"]}
        print("\nThread-seconds by stage (they overlap):")
        for name, found in stages.items():
            print(f"- {name}: " + ", ".join(f"{k} {v:.1f}" for k, v in sorted(found.items(), key=lambda p: -p[1])))


def _cells(rows: list[dict]) -> list[str]:
    def mid(key: str) -> float:
        return statistics.median(r[key] for r in rows)

    return [
        f"{mid('wall_s'):.1f}",
        f"{mid('km2_per_s'):.3f}",
        f"{mid('core_s_per_km2'):.2f}",
        f"{mid('peak') / 1e6:.0f} / {mid('peak_estimate') / 1e6:.0f}",
        f"{mid('busy_s'):.1f} / {mid('device_s'):.1f}",
    ]


def _child(*args: str) -> str:
    """Each run in a process of its own, so that peak memory is its own."""
    done = subprocess.run([sys.executable, __file__, "--child", *args], check=True, capture_output=True, text=True)
    return done.stdout.strip().splitlines()[-1]


def _sample(folder: str) -> None:
    from pipeline.simulate.sample import make_sample

    sample = make_sample(Path(folder) / "sample")
    print(
        json.dumps(
            {
                "bbox": sample.bbox,
                "start": str(sample.start),
                "end": str(sample.end),
                "inputs": {"catalog": str(sample.catalog)},
            }
        )
    )


def _run(folder: str, sample: str, sets: str, index: str) -> None:
    from pipeline import api
    from pipeline.config import load
    from pipeline.run.summary import summarise

    output = f"{folder}/out-{abs(hash(sets))}-{index}"
    values = {"model": "random:v1.2-nano:0"} | json.loads(sample) | {"output": output}
    overrides = json.loads(sets)
    values = {k: v for k, v in values.items() if not any(o.startswith(f"{k}=") for o in overrides)}
    plan = api.plan(load(None, overrides=overrides, values=values))
    last = []
    start = time.perf_counter()
    outcome = api.run(plan, progress=last.append, pictures=False)
    wall_s = time.perf_counter() - start
    summary = summarise(output)
    tile = [p for p in last if p.tile_id][-1]
    print(
        json.dumps(
            {
                "wall_s": wall_s,
                "km2_per_s": tile.km2 / tile.elapsed_s,
                "core_s_per_km2": summary.usage.busy_s / tile.km2,
                "peak": summary.usage.peak_bytes,
                "peak_estimate": plan.estimate.peak_bytes,
                "busy_s": summary.usage.busy_s,
                "device_s": plan.estimate.device_s,
                "stages": dict(summary.stage_s),
                "tiles": outcome.computed,
            }
        )
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        {"sample": _sample, "run": _run}[sys.argv[2]](*sys.argv[3:])
    else:
        main()
