"""Real pixels as file catalogues, and the command line on them.

The pixels lie in ``shared/data`` beside the project and are never copied into it: the catalogues and COGs made here go
to temporary folders. What the sources do not record (product names, cloud cover, a scene classification, a place) is
invented by the test that needs it, which says so.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.warp import transform as project

from pipeline import cli
from pipeline.plan import grid
from pipeline.plan.planner import load_plan
from pipeline.read.rank import FolderRanks
from pipeline.read.rules import rules_of
from pipeline.read.tiles import read_stacks
from pipeline.run.folder import access_of, settings_of
from pipeline.run.local import run
from pipeline.types import Box, Tile
from pipeline.write import store
from pipeline.write.commit import Commits

DATA = Path(__file__).resolve().parents[2] / "../shared/data"
COG_TYPE = "image/tiff; application=geotiff; profile=cloud-optimized"
CLOUDY = (8, 9, 10)
"""SCL classes that ESA counts as cloud: medium and high probability, thin cirrus."""
BELOW_4 = "02.08"
"""A processing baseline before 04.00: DN without the +1000 offset."""
FROM_4 = "05.10"
"""A processing baseline from 04.00: DN hold +1000."""
MODEL = "random:v1.2-toy:7"
FAST = (
    "encode.patch_px=8",
    "encode.window_px=64",
    "encode.overlap_px=16",
    "store.tile_px=256",
    "encode.attention=sdpa",
)
"""Settings of small runs; one attention kernel, because a busy machine may measure another."""


def real(name: str) -> Path:
    """The folder of a data set; skips the test where the data are not at hand."""
    folder = DATA / name
    if not folder.is_dir():
        pytest.skip(f"real pixels are not at hand: there is no shared/data/{name} beside the project")
    return folder.resolve()


def hdf(path: Path):
    """An open HDF5 or NetCDF-4 file."""
    h5py = pytest.importorskip("h5py", reason="h5py (extra 'dev') reads the real pixels")
    return h5py.File(path)


# --- files and items -------------------------------------------------------------------------------------------------


def write_cog(path: Path, values, *, box: Box | None = None, transform=None, epsg: int = 0, nodata: float = 0) -> str:
    """Write (row, col) values as a COG over a lattice ``box`` or with any transform; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path,
        "w",
        driver="COG",
        height=values.shape[0],
        width=values.shape[1],
        count=1,
        dtype=values.dtype,
        crs=f"EPSG:{box.epsg if box else epsg}",
        transform=box.transform if box else transform,
        nodata=nodata,
        blocksize=256,
        compress="deflate",
        overviews="none",
    ) as file:
        file.write(values, 1)
    return str(path)


def asset(href: str, *, gsd: int, bands: tuple[str, ...] = ()):
    """A raster asset as Planetary Computer describes it; several ``bands`` make it a multi-band file."""
    found = {"href": href, "type": COG_TYPE, "gsd": gsd, "roles": ["data"]}
    return found | ({"eo:bands": [{"name": band} for band in bands]} if bands else {})


def item(name: str, assets, *, acquired: datetime, ring, cloud_pct: float, baseline: str, tile: str):
    """A STAC item in the property style of Planetary Computer's ``sentinel-2-l2a``.

    Platform, orbit and product names are left out where the source does not record them: they are optional.
    """
    lons, lats = zip(*ring, strict=True)
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "collection": "sentinel-2-l2a",
        "bbox": [min(lons), min(lats), max(lons), max(lats)],
        "geometry": {"type": "Polygon", "coordinates": [[list(point) for point in ring]]},
        "properties": {
            "datetime": acquired.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "constellation": "Sentinel 2",
            "instruments": ["msi"],
            "eo:cloud_cover": cloud_pct,
            "s2:mgrs_tile": tile,
            "s2:processing_baseline": baseline,
        },
        "links": [],
        "assets": assets,
    }


def radar_item(name: str, assets, *, acquired: datetime, ring, collection: str, **properties):
    """A STAC item of Sentinel-1; ``properties`` hold what the source says (mode, orbit, quantity)."""
    lons, lats = zip(*ring, strict=True)
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "collection": collection,
        "bbox": [min(lons), min(lats), max(lons), max(lats)],
        "geometry": {"type": "Polygon", "coordinates": [[list(point) for point in ring]]},
        "properties": {
            "datetime": acquired.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "constellation": "Sentinel-1",
            **properties,
        },
        "links": [],
        "assets": assets,
    }


def write_catalog(path: Path, items) -> Path:
    """Write an ItemCollection."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"type": "FeatureCollection", "features": list(items)}), encoding="utf-8")
    return path


def ring_of(box: Box) -> list[tuple[float, float]]:
    """Outline of a lattice box in lon/lat, closed; a few kilometres, so straight edges are straight enough."""
    x0, y0, x1, y1 = box.bounds_m
    lons, lats = project(f"EPSG:{box.epsg}", "EPSG:4326", [x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0])
    return list(zip(lons, lats, strict=True))


def bbox_of(box: Box) -> str:
    """``W,S,E,N`` inside a lattice box, for --bbox."""
    lons, lats = zip(*ring_of(box)[:-1], strict=True)
    west, east, south, north = sorted(lons)[1], sorted(lons)[-2], sorted(lats)[1], sorted(lats)[-2]
    return f"{west:.6f},{south:.6f},{east:.6f},{north:.6f}"


def cloud_pct(scl) -> float:
    """``eo:cloud_cover`` of a scene classification: cloudy share of the pixels with data, per cent."""
    return 100.0 * float(np.isin(scl, CLOUDY).sum()) / max(1, int((scl > 0).sum()))


# --- one chip with its time series -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Series:
    """WorldCereal sample 00002806639B424A: a 640 m chip of 31UDS in Flanders, L2A, before baseline 04.00.

    ``bands`` are (time, row, col) uint16 reflectance * 1e4 by name at their native resolution, ``scl`` (time, row,
    col) uint8 at 20 m, ``land_cover`` (row, col) at 10 m.
    """

    times: tuple[datetime, ...]
    bands: dict
    scl: np.ndarray
    land_cover: np.ndarray
    box: Box

    def of(self, day: str) -> int:
        """Position of the acquisition of a day."""
        return next(i for i, t in enumerate(self.times) if f"{t:%m-%d}" == day and t.year == 2018)


RES_10 = ("B02", "B03", "B04", "B08")
RES_20 = ("B05", "B06", "B07", "B8A", "B11", "B12")


def worldcereal() -> Series:
    """Read the sample; skips where it is absent."""
    folder = real("worldcereal-patches") / "00002806639B424A"
    tail = "_00002806639B424A_32631_2017-08-01_2018-11-30.nc"
    with hdf(folder / f"S2_L2A_10m{tail}") as fine, hdf(folder / f"S2_L2A_20m{tail}") as coarse:
        unit, _, epoch = fine["timestamp"].attrs["units"].partition(" since ")
        assert unit == "seconds"
        assert (fine["timestamp"][:] == coarse["timestamp"][:]).all()
        first = datetime.fromisoformat(epoch).replace(tzinfo=UTC)
        x, y = float(fine["x"][0]) - 5, float(fine["y"][0]) + 5
        assert fine["y"][1] < fine["y"][0]
        bands = {b: fine[b][:] for b in RES_10} | {b: coarse[b][:] for b in RES_20}
        seconds, scl = fine["timestamp"][:], coarse["SCL"][:]
    with hdf(folder / f"OUTPUT_POLY-110_10m{tail}") as truth:
        land_cover = truth["LC"][:]
    assert (x, y) == (501360, 5629680)  # as SOURCE.md states
    return Series(
        times=tuple(first + timedelta(seconds=int(s)) for s in seconds),
        bands=bands,
        scl=scl,
        land_cover=land_cover,
        box=Box(zone=31, res_m=10, row=round(-y / 10), col=round(x / 10), height=64, width=64),
    )


@dataclass(frozen=True)
class Radar:
    """Sentinel-1 GRD over the chip of ``Series``, ascending, exported as sigma0 in dB * 1e4 at 20 m.

    ``decibels`` are (time, row, col) float64 by band (``vv``, ``vh``), ``power`` the same as linear float32.
    """

    times: tuple[datetime, ...]
    decibels: dict
    power: dict
    box: Box

    def of(self, day: str) -> int:
        """Position of the acquisition of a day of 2018."""
        return next(i for i, t in enumerate(self.times) if f"{t:%Y-%m-%d}" == f"2018-{day}")


def worldcereal_radar() -> Radar:
    """Read the sample's radar; skips where it is absent."""
    folder = real("worldcereal-patches") / "00002806639B424A"
    with hdf(folder / "S1_GRD-ASCENDING_20m_00002806639B424A_32631_2017-08-01_2018-11-30.nc") as file:
        unit, _, epoch = file["timestamp"].attrs["units"].partition(" since ")
        assert unit == "seconds"
        first = datetime.fromisoformat(epoch).replace(tzinfo=UTC)
        seconds = file["timestamp"][:]
        raw = {band: file[band.upper()][:] for band in ("vv", "vh")}
        assert {float(file[band].attrs["scale_factor"]) for band in ("VV", "VH")} == {1e-4}
        x, y = float(file["x"][0]) - 10, float(file["y"][0]) + 10
    assert all((values != 0).all() for values in raw.values())  # 0 is the fill value: none is missing
    decibels = {band: values * 1e-4 for band, values in raw.items()}
    return Radar(
        times=tuple(first + timedelta(seconds=int(s)) for s in seconds),
        decibels=decibels,
        power={band: (10.0 ** (values / 10.0)).astype(np.float32) for band, values in decibels.items()},
        box=Box(zone=31, res_m=20, row=round(-y / 20), col=round(x / 20), height=32, width=32),
    )


# --- the command line ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self):
        """The JSON on stdout of a command that must have succeeded."""
        assert self.code == 0, self.err
        return json.loads(self.out)


def earthpress(*args) -> Answer:
    """Run a command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["earthpress", *map(str, args)])
        patch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as stop:
            cli.main()
    return Answer(code=int(stop.value.code or 0), out=out.getvalue(), err=err.getvalue())


def request(catalog: Path, output: Path, *sets: str, bbox: str, start: str, end: str) -> list[str]:
    """The options of ``plan`` and ``run`` for a request."""
    named = {"bbox": bbox, "start": start, "end": end, "model": MODEL, "output": output, "catalog": catalog}
    options = [part for key, value in named.items() for part in (f"--{key}={value}",)]
    return options + [part for text in ("run.encoder_threads=1", *sets) for part in ("--set", text)]


def killed_at(stage: str, output: str) -> None:
    """Run the plan in ``output`` and die when its second tile reaches ``stage``: the body of a child process."""
    seen: list[str] = []

    def at(name: str, tile: str) -> None:
        if name == stage:
            seen.append(tile)
            if len(seen) == 2:
                os.kill(os.getpid(), signal.SIGKILL)

    run(load_plan(output), at=at, pictures=False)


# --- what a run read and wrote ---------------------------------------------------------------------------------------


def stack_of(plan, task):
    """The only Stack of a task, see ``stacks_of``."""
    (stack,) = stacks_of(plan, task)
    return stack


def stacks_of(plan, task):
    """The Stacks of a task, read as the run reads them, with the rankings that the run stored."""
    origins = grid.tile_windows(task.tile, task.blocks, plan.grid)
    with ThreadPoolExecutor(4) as pool:
        return read_stacks(
            box=grid.read_box(task.tile, origins, plan.grid),
            periods=plan.periods,
            candidates=task.candidates,
            scenes={scene.id: scene for scene in plan.scenes},
            access=access_of(plan),
            ranks=FolderRanks(Path(plan.output) / "ranks"),
            pool=pool,
            rules=rules_of(settings_of(plan).inputs),
        )


def laid(values, *, source: Box, target: Box):
    """(..., row, col) ``values`` over ``source`` moved onto ``target`` of the same lattice, 0 elsewhere."""
    out = np.zeros((*values.shape[:-2], *target.shape), dtype=values.dtype)
    part = source.intersect(target)
    if part is not None:
        rows, cols = part.slices_in(target)
        out[..., rows, cols] = values[(..., *part.slices_in(source))]
    return out


def committed(output: Path):
    """(codes (dim, row, col), reason, n_obs, box) of every committed block."""
    plan = load_plan(str(output))
    for receipt in Commits(output).receipts():
        tile = Tile.parse(receipt.tile_id, tile_px=plan.grid.tile_px)
        codes, reason, n_obs = store.read_tile(output / "store.zarr", tile)
        for row, col in receipt.blocks:
            box = tile.block_box(row, col)
            cut = box.slices_in(tile.box)
            yield codes[:, *cut], reason[cut], n_obs[cut], box


def mosaic(output: Path, box: Box):
    """(codes (dim, row, col), reason, n_obs) over ``box`` from all committed blocks; reason 255 where none is."""
    dims = load_plan(str(output)).model.dims
    codes = np.full((dims, *box.shape), -128, np.int8)
    reason, n_obs = np.full(box.shape, 255, np.uint8), np.zeros(box.shape, np.uint8)
    for block_codes, block_reason, block_n_obs, block in committed(output):
        part = block.intersect(box)
        if part is not None:
            rows, cols = part.slices_in(box)
            cut = part.slices_in(block)
            codes[:, rows, cols] = block_codes[:, *cut]
            reason[rows, cols], n_obs[rows, cols] = block_reason[cut], block_n_obs[cut]
    return codes, reason, n_obs


def digest(output: Path) -> dict[str, bytes]:
    """Every file of the store by name."""
    root = output / "store.zarr"
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}
