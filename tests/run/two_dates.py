"""Two outputs of other dates that share one store, and small stores at places of one's choice."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
from pyproj import Transformer

from pipeline.plan.grid import owned, snapped_extent
from pipeline.types import (
    COLOUR_M,
    NODATA_CODE,
    Calibration,
    Embedding,
    GridSpec,
    ModelCard,
    Numerics,
    Period,
    Quality,
    Tile,
)
from pipeline.write import store
from pipeline.write.layout import MapLayer, StoreSpec
from tests.run.sampled import part, request_of, run_request

DATES = {"early": ("2024-04-01", "2024-05-31"), "late": ("2024-05-31", "2024-07-30")}
CLASSES = ((0, "west", "#884400"), (1, "east", "#ffee00"))
YEAR = (datetime(2024, 3, 1, tzinfo=UTC), datetime(2024, 9, 1, tzinfo=UTC))


def shared_outputs(sample, folder):
    """{"early": plan, "late": plan} over two tiles, without pictures."""
    bbox = part(sample.bbox, 0.3, 0.3, 0.62, 0.45)
    path = f"store.path={folder / 'shared.zarr'}"
    return {
        name: run_request(request_of(sample, folder / name, path, bbox=bbox, start=start, end=end))[0]
        for name, (start, end) in DATES.items()
    }


def tiles_around(lon, lat, zones, *, side=1):
    """The tiles of 256 px around a place, in several zones."""
    found = []
    for zone in zones:
        x, y = Transformer.from_crs(4326, 32600 + zone, always_xy=True).transform(lon, lat)
        row, col = int(-y // 2560), int(x // 2560)
        found += [
            Tile(zone=zone, row=r, col=c, tile_px=256)
            for r in range(row - side, row + side + 1)
            for c in range(col - side, col + side + 1)
        ]
    return tuple(found)


def small_store(path, tiles, *, middle_lon, token_px=1):
    """A store of 4 dimensions with a map of what lies west and east of a meridian, and true colours of one period."""
    period = Period(index=0, start=YEAR[0], end=YEAR[1])
    spec = StoreSpec(
        name="small",
        dims=4,
        grid=GridSpec(patch_px=max(token_px, 1), window_px=64, overlap_px=16, tile_px=256, token_px=token_px),
        times=(YEAR,),
        model=ModelCard(
            name="random", version="v1.2", size="toy", dims=4, depth=1, heads=1, parameters=1,
            sensors=("sentinel2_l2a",), sha256="ab" * 32, trained=False,
        ),
        calibration=Calibration(
            scale=(0.1, 0.2, 0.3, 0.4), provisional=True, source="test", model_sha256="ab" * 32, patch_px=4
        ),
        numerics=Numerics(
            device="cpu", device_name="x86", dtype="float32", compiled=False, batch_windows=1, torch="2.13.0"
        ),
        recipe="r",
        extents=snapped_extent(tiles),
        maps=(MapLayer(name="sides", classes=CLASSES),),
        periods=(period,),
        true_colour=True,
    )  # fmt: skip
    store.create_store(path, spec)
    for tile in tiles:
        box = spec.grid.on_store(tile.box)
        mine = owned(box)
        to_lonlat = Transformer.from_crs(box.epsg, 4326, always_xy=True)
        x, y = np.meshgrid(
            (box.col + np.arange(box.width) + 0.5) * box.res_m, -(box.row + np.arange(box.height) + 0.5) * box.res_m
        )
        lon, lat = to_lonlat.transform(x, y)
        waves = np.stack([np.sin(lon * 700), np.cos(lat * 500), np.sin(lon * 300 + lat * 400), np.cos(lat * 90)])
        codes = np.rint(waves * 100).astype(np.int8)
        blocks, coarse = tile.box.cover(2560), tile.box.cover(COLOUR_M)
        zeros = np.zeros((1, *blocks.shape), np.uint8)
        made = Embedding(
            codes=np.where(mine, codes, np.int8(NODATA_CODE)),
            reason=np.where(mine, 0, 4).astype(np.uint8),
            n_obs=mine.astype(np.uint8),
            box=box,
            clipped=0.0,
            quality=(Quality(box=blocks, clear_pct=zeros, scenes=zeros, first_day=zeros.astype(np.uint16)),),
            colours=np.full((1, 3, *coarse.shape), 90, np.uint8) * owned(coarse),
        )
        sides = np.where(mine, lon > middle_lon, 255).astype(np.uint8)
        store.write_tile(path, tile, made, maps=(("sides", sides),))
    return spec
