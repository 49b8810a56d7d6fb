"""Every band at its native resolution on real pixels: 10, 20 and 60 m layers, seams, and the place-invariance.

The pixels are a 6 km chip of S2A, tile T33UUB, 27 May 2017, product level L1C: top of the atmosphere, the wrong level
for the models, which does not matter to a test of reading and bytes. Place and scene classification are ours: the
source records no position inside the tile, so the chip lies where four ranking cells meet, on the granule's lattice
(origin 300000, 6200040, multiples of 60 m), and SCL is vegetation, bare soil or water by NDVI and NDWI.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np
import pytest
import rasterio
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT

from pipeline import api
from pipeline.encode.assemble import upsampled
from pipeline.plan.planner import load_plan
from pipeline.types import CELL_PX, DN_OFFSET, NODATA_CODE, Box, Reason
from tests.real import archive
from tests.real.archive import earthpress

if TYPE_CHECKING:
    from pathlib import Path

CHIP = Box(zone=33, res_m=10, row=-618798, col=32466, height=600, width=600)
ORDER = {
    10: ("B04", "B03", "B02", "B08"),
    20: ("B05", "B06", "B07", "B8A", "B11", "B12"),
    60: ("B01", "B09"),
}
"""Bands of im10, im20 and im60 in the order of the file."""
FAST = ("encode.patch_px=4", "encode.overlap_px=8", "encode.attention=sdpa")


@dataclass(frozen=True)
class Chip:
    """The catalogue, its files, and per resolution (band, row, col) uint16 as in the source."""

    catalog: Path
    files: dict
    pixels: dict


def classified(fine):
    """An invented SCL at 20 m: 6 water where NDWI > 0, 4 vegetation where NDVI > 0.4, else 5."""
    means = fine.astype(float).reshape(4, 300, 2, 300, 2).mean(axis=(2, 4))
    red, green, _, nir = means
    return np.select(
        [(green - nir) / (green + nir) > 0, (nir - red) / (nir + red) > 0.4], [6, 4], default=5
    ).astype(np.uint8)  # fmt: skip


@pytest.fixture(scope="module")
def chip(tmp_path_factory):
    with archive.hdf(archive.real("dsen2-s2-l1c") / "S2A_MSIL1C_20170527_T33UUB.mat") as source:
        # MATLAB writes columns first: h5py shows (band, x, y).
        pixels = {res: source[f"im{res}"][:].transpose(0, 2, 1).astype(np.uint16) for res in ORDER}
    folder, assets, files = tmp_path_factory.mktemp("l1c"), {}, {}
    layers = [(res, band, pixels[res][i]) for res, bands in ORDER.items() for i, band in enumerate(bands)]
    for res_m, band, values in [*layers, (20, "SCL", classified(pixels[10]))]:
        files[band] = archive.write_cog(folder / f"{band}.tif", values, box=CHIP.cover(res_m))
        assets[band] = archive.asset(files[band], gsd=res_m)
    item = archive.item(
        "S2A_T33UUB_20170527", assets, acquired=datetime(2017, 5, 27, 10, 20, tzinfo=UTC), ring=archive.ring_of(CHIP),
        cloud_pct=0.0, baseline=archive.BELOW_4, tile="33UUB",
    )  # fmt: skip
    return Chip(catalog=archive.write_catalog(folder / "items.json", [item]), files=files, pixels=pixels)


def computed(chip, output, part, *sets):
    """The finished run of a part of the chip, given in 10 m pixels from its north-west corner (row, col, side)."""
    row, col, side = part
    area = Box(zone=33, res_m=10, row=CHIP.row + row, col=CHIP.col + col, height=side, width=side)
    named = {"bbox": archive.bbox_of(area), "start": "2017-05-20", "end": "2017-06-10"}
    ran = earthpress("run", *archive.request(chip.catalog, output, *FAST, *sets, **named), "--json").json
    assert (ran["exit_code"], ran["degraded"]) == (0, 0)
    return output


@pytest.fixture(scope="module")
def finished(chip, tmp_path_factory):
    """A square kilometre over the point where four ranking cells and four tiles meet."""
    return computed(chip, tmp_path_factory.mktemp("l1c") / "out", (250, 250, 100), "store.tile_px=256")


def lifted(chip, res_m, bands):
    """(band, row, col) uint16 of the source with the offset of baseline 04.00."""
    return np.stack([chip.pixels[res_m][ORDER[res_m].index(band)] for band in bands]) + np.uint16(DN_OFFSET)


def test_the_chip_lies_on_the_granule_and_over_a_corner_of_cells():
    x0, _, _, y1 = CHIP.bounds_m
    assert ((x0 - 300000) % 60, (6200040 - y1) % 60) == (0, 0)
    assert CHIP.row // CELL_PX < (CHIP.row_stop - 1) // CELL_PX
    assert CHIP.col // CELL_PX < (CHIP.col_stop - 1) // CELL_PX


def test_all_twelve_bands_reach_the_stack_pixel_for_pixel(chip, finished):
    plan = load_plan(str(finished))
    for task in plan.tasks:
        stack = archive.stack_of(plan, task)
        assert sorted(b for layer in stack.layers for b in layer.bands) == sorted(
            b for bs in ORDER.values() for b in bs
        )
        for layer in stack.layers:
            source = CHIP.cover(layer.res_m)
            want = archive.laid(lifted(chip, layer.res_m, layer.bands), source=source, target=layer.box)
            np.testing.assert_array_equal(layer.pixels[0], want)


def test_tiles_of_the_lazy_view_meet_without_a_seam_at_every_resolution(chip, finished):
    tree = api.open_tiles(str(finished))
    for res_m, bands in ORDER.items():
        node = tree[f"/utm33/{res_m}m"].to_dataset()
        data = node.sel(band=list(bands)).sentinel2_l2a[0]
        row, col = round(-float(data.y[0]) / res_m - 0.5), round(float(data.x[0]) / res_m - 0.5)
        box = Box(zone=33, res_m=res_m, row=row, col=col, height=data.sizes["y"], width=data.sizes["x"])
        want = archive.laid(lifted(chip, res_m, bands), source=CHIP.cover(res_m), target=box)
        assert len(node.chunks["y"]) > 1 < len(node.chunks["x"])
        np.testing.assert_array_equal(data.values, want)


@pytest.mark.parametrize(("res_m", "within"), [(20, 0), (60, 1)])
def test_upsampling_real_pixels_equals_the_warper_of_gdal(chip, finished, res_m, within):
    plan = load_plan(str(finished))
    stack = archive.stack_of(plan, plan.tasks[0])
    layer = next(layer for layer in stack.layers if layer.res_m == res_m)
    box = CHIP.intersect(plan.tasks[0].tile.box.pad(-40))
    ours = upsampled(layer, box, period=0).numpy()
    for band, values in zip(layer.bands, ours, strict=True):
        with (
            rasterio.open(chip.files[band]) as source,
            WarpedVRT(
                source, crs=source.crs, transform=box.transform, height=box.height, width=box.width,
                resampling=Resampling.bilinear,
            ) as warped,
        ):  # fmt: skip
            theirs = warped.read(1).astype(float)
        assert np.abs(values - DN_OFFSET - theirs).max() <= within


def test_every_pixel_of_the_chip_has_one_observation_and_a_vector(finished):
    for codes, reason, n_obs, box in archive.committed(finished):
        inside = archive.laid(np.ones(CHIP.shape, bool), source=CHIP, target=box)
        np.testing.assert_array_equal(reason == Reason.VALID, inside)
        assert ((codes != NODATA_CODE) == inside).all()
        np.testing.assert_array_equal(n_obs, inside)


@pytest.mark.parametrize(
    ("part", "tile_px"), [((310, 310, 150), 512), ((310, 30, 100), 256)],
    ids=["larger tiles", "moved to the west"],
)  # fmt: skip
def test_the_same_real_ground_has_the_same_bytes(chip, finished, tmp_path, part, tile_px):
    other = computed(chip, tmp_path / "out", part, f"store.tile_px={tile_px}")
    blocks = {box: block for *block, box in archive.committed(finished)}
    others = {box: block for *block, box in archive.committed(other)}
    common = blocks.keys() & others.keys()
    assert len(common) >= 1
    for box in common:
        for mine, theirs in zip(blocks[box], others[box], strict=True):
            np.testing.assert_array_equal(mine, theirs)
