"""The main job on the simulated sample, offline: plan, run, probe, map, report.

The weights are random, so everything is labelled as untrained; a linear probe on random features of four dates still
tells the five simulated classes apart, which the accuracy against the known truth shows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import api
from pipeline.config import load
from pipeline.run.heads import fit_probe, map_store
from pipeline.simulate.sample import make_sample

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pipeline.run.local import Progress
    from pipeline.run.published import Published
    from pipeline.simulate.sample import Sample

MODEL = "random:v1.2-nano:7"
SETTINGS = ("encode.patch_px=4", "encode.overlap_px=16", "store.tile_px=256")
"""Small windows and tiles: quick on two cores, and several tiles to show."""
MAP = "landcover"


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """What the demo made."""

    published: Published
    accuracy: float
    headline: str

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        return self.published.to_json() | {"accuracy": self.accuracy, "probe": self.headline}

    def lines(self) -> tuple[str, ...]:
        """For people."""
        score = f"accuracy   {self.accuracy:.3f} of the map against the simulated truth, all pixels"
        return (*self.published.lines(), f"probe      {self.headline}", score)


def run_demo(
    folder: Path,
    *,
    note: Callable[[str], None] = lambda _t: None,
    progress: Callable[[Progress], None] = lambda _p: None,
) -> Demo:
    """Make the sample in ``folder/sample`` and everything else in ``folder/out``.

    Running it again does nothing but the probe and the map.
    """
    note("simulating scenes")
    sample = make_sample(folder / "sample")
    output = str(folder / "out")
    settings = load(None, overrides=SETTINGS, values=demo_request(sample, output=output))
    plan = api.plan(settings, note=note)
    api.run(plan, progress=progress)
    note("fitting a probe on the labelled polygons")
    _, report, head = fit_probe(output, str(sample.labels), column="class")
    note("mapping")
    published = map_store(output, head, name=MAP)
    return Demo(published=published, accuracy=accuracy(published.maps, sample), headline=report.headline())


def demo_request(sample: Sample, *, output: str) -> dict[str, Any]:
    """The request for a simulated sample, as top-level settings."""
    return {
        "bbox": sample.bbox,
        "start": sample.start,
        "end": sample.end,
        "model": MODEL,
        "output": output,
        "inputs": {"catalog": str(sample.catalog)},
    }


def accuracy(maps: tuple[str, ...], sample: Sample) -> float:
    """Share of the mapped pixels whose class name is that of the truth."""
    right = total = 0
    for path in maps:
        found, truth = read_pair(path, sample)
        both = (found >= 0) & (truth >= 0)
        right += int((found[both] == truth[both]).sum())
        total += int(both.sum())
    return right / total if total else float("nan")


def read_pair(path: str, sample: Sample) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """A map and the truth under it as truth codes, (row, col) int; -1 where nodata."""
    import rasterio  # noqa: PLC0415
    from rasterio.windows import from_bounds  # noqa: PLC0415

    from pipeline.write.geotiff import read_classes  # noqa: PLC0415

    values, box, classes = read_classes(path)
    codes = {c.name: c.code for c in sample.classes}
    lookup = np.full(256, -1, np.int16)
    for value, name, _ in classes:
        lookup[value] = codes[name]
    with rasterio.open(sample.truth) as truth:
        window = from_bounds(*box.bounds_m, truth.transform).round_offsets().round_lengths()
        under = truth.read(1, window=window, boundless=True, fill_value=255)
    return lookup[values], np.where(under == 255, -1, under.astype(np.int16))
