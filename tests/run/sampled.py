"""Small fast requests on the simulated sample, and what a store holds."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pipeline import api
from pipeline.config import load

MODEL = "random:v1.2-toy:7"
"""The smallest encoder with every part; what these tests promise does not depend on its size."""
FAST = (
    "encode.patch_px=8",
    "encode.window_px=64",
    "encode.overlap_px=16",
    "store.tile_px=256",
    "run.encoder_threads=1",
    "encode.attention=sdpa",  # auto measures, and on a busy machine two plans may not choose alike
)


def part(bbox, left, bottom, right, top):
    west, south, east, north = bbox
    width, height = east - west, north - south
    return (
        round(west + left * width, 6),
        round(south + bottom * height, 6),
        round(west + right * width, 6),
        round(south + top * height, 6),
    )


def request_of(sample, output, *overrides, **values):
    base = {
        "bbox": sample.bbox,
        "start": sample.start,
        "end": sample.end,
        "model": MODEL,
        "output": str(output),
        "inputs": {"catalog": str(sample.catalog)},
    }
    return load(None, overrides=[*FAST, *overrides], values=base | values)


def run_request(settings, *, pictures=False, **options):
    plan = api.plan(settings)
    return plan, api.run(plan, pictures=pictures, **options)


def digest(folder: Path) -> dict[str, str]:
    """sha256 of every file of the store, by name."""
    root = Path(folder) / "store.zarr"
    return {
        str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(root.rglob("*"))
        if p.is_file()
    }
