"""Labelled real ground, from one multi-band file in degrees to a land cover map.

The pixels are L2A DN of twelve bands on the Amazon (forest, a village, water, dried-out bank) in EPSG:4326, with 25
labelled polygons; the minimum of 1032 shows that they hold the +1000 offset, so their baseline is 04.00 or later. The
source records no date: 2022-08-15 is invented, and so is the scene classification, from NDVI and NDWI. The file is read
where it lies.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
import shapely.geometry
from rasterio.warp import Resampling, reproject
from rasterio.warp import transform as project

from pipeline.maps.labels import pixels_of, read_labels
from pipeline.plan.planner import load_plan
from pipeline.types import Reason
from pipeline.write.geotiff import read_classes
from tests.real import archive
from tests.real.archive import earthpress

FAST = ("encode.patch_px=2", "encode.overlap_px=8", "store.tile_px=256", "encode.attention=sdpa")


@dataclass(frozen=True)
class Bank:
    """The catalogue, the multi-band file, the labels and the box in degrees."""

    catalog: Path
    file: Path
    labels: Path
    bbox: str


def classified(dn):
    """An invented SCL: 6 water where NDWI > 0, 4 vegetation where NDVI > 0.4, else 5; dn is (band, row, col)."""
    green, red, nir = (dn[i].astype(float) - 1000 for i in (2, 3, 7))
    return np.select(
        [(green - nir) / (green + nir) > 0, (nir - red) / (nir + red) > 0.4], [6, 4], default=5
    ).astype(np.uint8)  # fmt: skip


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    source, folder = archive.real("rstoolbox-sen2"), tmp_path_factory.mktemp("bank")
    with rasterio.open(source / "sen2_dn.tif") as file:
        names, dn, bounds = file.descriptions, file.read(), file.bounds
        scl = archive.write_cog(folder / "SCL.tif", classified(dn), transform=file.transform, epsg=4326)
    assert dn.min() > 1000
    outline = shapely.geometry.box(*bounds)
    item = archive.item(
        "S2_river_bank", {
            "bands": archive.asset(str(source / "sen2_dn.tif"), gsd=10, bands=names),
            "SCL": archive.asset(scl, gsd=10),
        },
        acquired=datetime(2022, 8, 15, 14, 0, tzinfo=UTC), ring=list(outline.exterior.coords), cloud_pct=0.0,
        baseline=archive.FROM_4, tile="21MVU",
    )  # fmt: skip
    return Bank(
        catalog=archive.write_catalog(folder / "items.json", [item]),
        file=source / "sen2_dn.tif",
        labels=source / "trainingPolygons_sen2.geojson",
        bbox=",".join(f"{x:.6f}" for x in bounds),
    )


@pytest.fixture(scope="module")
def finished(bank, tmp_path_factory):
    output = tmp_path_factory.mktemp("bank") / "out"
    options = archive.request(bank.catalog, output, *FAST, bbox=bank.bbox, start="2022-08-01", end="2022-08-31")
    ran = earthpress("run", *options, "--json").json
    assert (ran["exit_code"], ran["degraded"]) == (0, 0)
    return output


@pytest.fixture(scope="module")
def mapped(bank, finished):
    """(report of the probe, what ``map`` published)."""
    head = finished / "probes" / "bank.probe.json"
    report = earthpress("probe", "fit", finished, bank.labels, "--column", "class", "-o", head, "--json").json
    return report, earthpress("map", finished, "--head", head, "--name", "bank", "--json").json


def test_one_file_gives_every_band_its_own_index(bank, finished):
    (scene,) = load_plan(str(finished)).scenes
    with rasterio.open(bank.file) as file:
        for asset in scene.assets:
            expected = 1 if asset.band == "SCL" else file.descriptions.index(asset.band) + 1
            assert asset.band_index == expected
            assert asset.band == "SCL" or asset.href == str(bank.file)
    assert scene.boa_offset == 0


def test_degrees_are_warped_onto_the_lattice_as_gdal_does_it(bank, finished):
    plan = load_plan(str(finished))
    stack = archive.stack_of(plan, plan.tasks[-1])
    layer = next(layer for layer in stack.layers if layer.res_m == 10)
    assert layer.box.row > 0  # south of the equator
    with rasterio.open(bank.file) as file:
        for band, ours in zip(layer.bands, layer.pixels[0], strict=True):
            theirs = np.zeros_like(ours)
            reproject(
                rasterio.band(file, file.descriptions.index(band) + 1), theirs, dst_transform=layer.box.transform,
                dst_crs=f"EPSG:{layer.box.epsg}", resampling=Resampling.bilinear, src_nodata=0, dst_nodata=0,
                tolerance=0,
            )  # fmt: skip
            both = (ours > 0) & (theirs > 0)
            assert both.sum() > 10_000
            assert ((ours > 0) == (theirs > 0)).all()
            # One rounding apart: ours bounds GDAL's approximate transformer, theirs is exact.
            assert np.abs(ours.astype(int) - theirs).max() <= 1


def test_the_whole_file_has_embeddings_and_nothing_else(bank, finished):
    with rasterio.open(bank.file) as file:
        bounds = file.bounds
    for _, reason, n_obs, box in archive.committed(finished):
        x, y = (np.arange(n) + 0.5 for n in (box.width, box.height))
        x, y = np.meshgrid((x + box.col) * 10, -(y + box.row) * 10)
        lon, lat = (np.reshape(v, x.shape) for v in project(f"EPSG:{box.epsg}", "EPSG:4326", x.ravel(), y.ravel()))
        margin = 45 / 111_000  # a 60 m pixel whose centre lies in the file reaches 30 m beyond it, and a little more
        inside = (lon > bounds.left) & (lon < bounds.right) & (lat > bounds.bottom) & (lat < bounds.top)
        near = (lon > bounds.left - margin) & (lon < bounds.right + margin)
        near &= (lat > bounds.bottom - margin) & (lat < bounds.top + margin)
        assert (reason[inside] == Reason.VALID).all()
        assert (reason[~near] == Reason.NO_OBSERVATION).all()
        np.testing.assert_array_equal(n_obs, reason == Reason.VALID)


def test_a_linear_probe_tells_real_classes_apart_on_held_out_places(mapped):
    report = mapped[0]
    assert [c["name"] for c in report["classes"]] == ["dryout", "forest", "village", "water"]
    assert report["folds"] == 3
    assert report["accuracy"] > 0.85 > report["baseline_accuracy"] + 0.3
    # Measured over seeds, patches 1 and 2 and windows of 16 to 64 px: 0.83 to 0.92; raw bands of a pixel reach 0.99.
    assert report["balanced_accuracy"] > 0.75


def test_shuffled_labels_score_chance(mapped):
    report = mapped[0]
    assert report["chance"] == 0.25
    assert report["control_balanced_accuracy"] < 0.4


def test_the_map_is_a_southern_cog_and_right_in_the_middle_of_the_polygons(bank, mapped):
    (path,) = mapped[1]["maps"]
    values, box, classes = read_classes(path)
    names = {value: name for value, name, _ in classes}
    labels = json.loads(bank.labels.read_text())["features"]
    with rasterio.open(path) as file:
        assert file.crs.to_epsg() == 32721
        assert file.overviews(1)
        points = [shapely.geometry.shape(f["geometry"]).representative_point() for f in labels]
        x, y = project("EPSG:4326", file.crs, [p.x for p in points], [p.y for p in points])
        found = [names.get(int(v[0])) for v in file.sample(zip(x, y, strict=True))]
    right = sum(f["properties"]["class"] == name for f, name in zip(labels, found, strict=True))
    assert right >= 23
    rows, cols, index = pixels_of(read_labels(str(bank.labels), column="class"), box=box)
    wanted = np.array([labels[i]["properties"]["class"] for i in index])
    at = np.array([names.get(int(v), "") for v in values[rows - box.row, cols - box.col]])
    assert (wanted == at).mean() > 0.95


def test_every_class_has_its_colour_and_the_pictures_are_there(mapped):
    (path,), (picture,) = mapped[1]["maps"], mapped[1]["pictures"]
    _, _, classes = read_classes(path)
    with rasterio.open(path) as file:
        for value, _, colour in classes:
            assert "#{:02x}{:02x}{:02x}".format(*file.colormap(1)[value][:3]) == colour
    for name in (picture, *mapped[1]["quicklooks"]):
        assert Path(name).stat().st_size > 5000
