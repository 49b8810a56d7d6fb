"""The sample on disk: COGs, items, polygons and truth that agree with each other and with the landscape."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pystac
import pytest
import rasterio
from rasterio.features import geometry_mask
from rasterio.warp import transform_geom
from rio_cogeo.cogeo import cog_validate

from pipeline.errors import OutputError
from pipeline.simulate.clouds import SCL_CLEAR
from pipeline.simulate.labels import PER_CLASS
from pipeline.simulate.landscape import CLASSES, truth
from pipeline.simulate.sample import AREA, END, GRANULES, START, Sample, make_sample, sample_stack
from pipeline.simulate.spectra import BANDS
from pipeline.types import Box, Period

PROPERTIES = {
    "datetime",
    "eo:cloud_cover",
    "platform",
    "proj:epsg",
    "s2:datatake_id",
    "s2:generation_time",
    "s2:mgrs_tile",
    "s2:processing_baseline",
    "s2:product_uri",
    "sat:relative_orbit",
}


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    return make_sample(tmp_path_factory.mktemp("sample"))


@pytest.fixture(scope="module")
def items(sample: Sample) -> list[dict]:
    return json.loads(sample.catalog.read_text(encoding="utf-8"))["features"]


def read(sample: Sample, item: dict, key: str) -> np.ndarray:
    with rasterio.open(sample.folder / item["assets"][key]["href"]) as file:
        return file.read(1)


def acquired(item: dict) -> datetime:
    return datetime.fromisoformat(item["properties"]["datetime"])


def old(item: dict) -> bool:
    return float(item["properties"]["s2:processing_baseline"]) < 4


def test_every_item_is_valid_stac_with_the_properties_of_planetary_computer(items: list[dict]) -> None:
    for item in items:
        parsed = pystac.Item.from_dict(item)
        assert parsed.datetime == acquired(item)
        assert set(item["properties"]) >= PROPERTIES
        assert isinstance(item["properties"]["s2:processing_baseline"], str)
        assert item["stac_version"] == "1.0.0"
        assert set(item["assets"]) == {*BANDS, "SCL"}


def test_items_have_the_shape_of_a_recorded_one(items: list[dict]) -> None:
    shared = Path(__file__).resolve().parents[2] / "../shared/data/stac/odc-stac"
    path = shared / "S2B_MSIL2A_20190629T212529_R043_T06VVN_20201006T080531.json"
    if not path.is_file():
        pytest.skip("the recorded Planetary Computer item is not beside the project")
    real = json.loads(path.read_text(encoding="utf-8"))
    assert set(real["properties"]) <= set(items[0]["properties"])
    assert items[0]["stac_extensions"] == real["stac_extensions"]
    for key in (*BANDS, "SCL"):
        assert set(items[0]["assets"][key]) == set(real["assets"][key])
        assert items[0]["assets"][key]["title"] == real["assets"][key]["title"]
        for name, value in items[0]["assets"][key].get("eo:bands", [{}])[0].items():
            assert real["assets"][key]["eo:bands"][0][name] == value


def test_every_file_is_a_valid_cog_where_its_item_says(sample: Sample, items: list[dict]) -> None:
    for item in items[::4]:
        for asset in item["assets"].values():
            path = sample.folder / asset["href"]
            assert cog_validate(path, quiet=True)[0], path.name
            with rasterio.open(path) as file:
                assert [file.height, file.width] == asset["proj:shape"]
                assert list(file.transform)[:6] == asset["proj:transform"]
                assert list(file.bounds) == asset["proj:bbox"]
                assert file.crs.to_epsg() == item["properties"]["proj:epsg"]
                assert file.nodata == 0
                assert asset["proj:transform"][2] % 60 == asset["proj:transform"][5] % 60 == 0


def test_large_bands_are_tiled_with_overviews(sample: Sample, items: list[dict]) -> None:
    with rasterio.open(sample.folder / items[0]["assets"]["B02"]["href"]) as file:
        assert file.block_shapes == [(512, 512)]
        assert file.overviews(1) == [2]
        assert file.tags(ns="IMAGE_STRUCTURE")["COMPRESSION"] == "DEFLATE"


def test_the_sample_is_small(sample: Sample) -> None:
    assert sum(f.stat().st_size for f in sample.folder.rglob("*") if f.is_file()) < 120e6


@pytest.mark.parametrize("index", range(4))
def test_in_every_period_each_tile_has_one_nearly_clear_whole_scene(items: list[dict], index: int) -> None:
    start = datetime(START.year, START.month, START.day, tzinfo=UTC) + timedelta(days=30 * index)
    clear = {
        item["properties"]["s2:mgrs_tile"]
        for item in items
        if start <= acquired(item) < start + timedelta(days=30)
        and item["properties"]["eo:cloud_cover"] < 8
        and item["properties"]["s2:nodata_pixel_percentage"] == 0
    }
    assert clear == {granule.name for granule in GRANULES}


def test_there_are_cloudy_scenes_an_old_baseline_and_an_orbit_edge(items: list[dict]) -> None:
    properties = [item["properties"] for item in items]
    assert sum(p["eo:cloud_cover"] > 40 for p in properties) >= 3
    assert [p["s2:processing_baseline"] for p in properties].count("02.14") == 1
    assert sum(p["s2:nodata_pixel_percentage"] > 10 for p in properties) == 1
    assert len({item["id"] for item in items}) == len(items)
    assert all(START <= acquired(item).date() < END for item in items)


def test_cloud_cover_is_that_of_the_scene_classification(sample: Sample, items: list[dict]) -> None:
    for item in items:
        scl = read(sample, item, "SCL")
        want = 100 * np.isin(scl, (8, 9, 10)).sum() / (scl != 0).sum()
        assert item["properties"]["eo:cloud_cover"] == pytest.approx(want, abs=1e-4)


def test_footprints_cover_exactly_the_valid_pixels(sample: Sample, items: list[dict]) -> None:
    for item in items:
        with rasterio.open(sample.folder / item["assets"]["B02"]["href"]) as file:
            valid, transform, crs = file.read(1) > 0, file.transform, file.crs
        shape = transform_geom("EPSG:4326", crs, item["geometry"])
        inside = geometry_mask([shape], out_shape=valid.shape, transform=transform, invert=True)
        wrong = np.argwhere(inside != valid)
        # A wrong pixel must lie within 60 m of a pixel of the other kind: shrunk and grown masks bracket the footprint.
        assert len(wrong) <= 2 * max(valid.shape), item["id"]
        for row, col in wrong:
            near = valid[max(row - 6, 0) : row + 7, max(col - 6, 0) : col + 7]
            at_border = min(row, col, valid.shape[0] - 1 - row, valid.shape[1] - 1 - col) < 6
            assert at_border or near.any() != near.all(), (item["id"], row, col)


def test_overlapping_tiles_of_a_datatake_agree_in_every_dn(sample: Sample, items: list[dict]) -> None:
    west, east = (i for i in items if i["properties"]["s2:datatake_id"] == items[1]["properties"]["s2:datatake_id"])
    common = GRANULES[0].box.intersect(GRANULES[1].box)
    assert common is not None
    for key, res_m in (("B04", 10), ("B11", 20), ("B09", 60), ("SCL", 20)):
        part = common.cover(res_m)
        one, two = (
            read(sample, item, key)[part.slices_in(granule.box.cover(res_m))]
            for item, granule in zip((west, east), GRANULES, strict=True)
        )
        assert one.any()
        np.testing.assert_array_equal(one, two, err_msg=key)


def test_a_memory_stack_equals_the_files_where_the_sky_is_clear(sample: Sample, items: list[dict]) -> None:
    box = Box(zone=32, res_m=10, row=-552407, col=50111, height=301, width=263)
    assert old(items[5])
    for item in (items[2], items[5]):
        day = acquired(item).replace(hour=0, minute=0, second=0, microsecond=0)
        stack = sample_stack(box, (Period(index=0, start=day, end=day + timedelta(days=1)),))
        scl_box = GRANULES[1].box.cover(20)
        clear = np.isin(read(sample, item, "SCL"), SCL_CLEAR)
        for layer in stack.layers:
            granule_box = GRANULES[1].box.cover(layer.res_m)
            cut = layer.box.slices_in(granule_box)
            here = at_resolution(clear, scl_box, granule_box)[cut]
            for index, band in enumerate(layer.bands):
                dn = read(sample, item, band)[cut].astype(int) + (1000 if old(item) else 0)
                np.testing.assert_array_equal(dn[here], layer.pixels[0, index][here], err_msg=f"{item['id']} {band}")


def at_resolution(clear: np.ndarray, scl_box: Box, box: Box) -> np.ndarray:
    """20 m mask at 10 m (repeated) or 60 m (all nine)."""
    if box.res_m == 10:
        return clear.repeat(2, axis=0).repeat(2, axis=1)
    factor = box.res_m // scl_box.res_m
    return clear.reshape(box.height, factor, box.width, factor).all(axis=(1, 3))


def test_truth_is_the_landscapes_with_colours(sample: Sample) -> None:
    with rasterio.open(sample.truth) as file:
        np.testing.assert_array_equal(file.read(1), truth(AREA))
        assert (file.crs.to_epsg(), file.transform, file.nodata) == (32632, AREA.transform, 255)
        assert file.colormap(1)[0][:3] == tuple(bytes.fromhex(CLASSES[0].colour[1:]))
    assert cog_validate(sample.truth, quiet=True)[0]


def test_every_pixel_inside_a_label_polygon_has_its_class(sample: Sample) -> None:
    features = json.loads(sample.labels.read_text(encoding="utf-8"))["features"]
    with rasterio.open(sample.truth) as file:
        codes, transform, crs = file.read(1), file.transform, file.crs
    covered = np.zeros(codes.shape, bool)
    for feature in features:
        shape = transform_geom("EPSG:4326", crs, feature["geometry"])
        touched = geometry_mask([shape], out_shape=codes.shape, transform=transform, invert=True, all_touched=True)
        assert touched.sum() >= 4
        assert (codes[touched] == feature["properties"]["code"]).all(), feature["properties"]
        assert CLASSES[feature["properties"]["code"]].name == feature["properties"]["class"]
        assert not covered[touched].any()
        covered |= touched
    assert covered.mean() < 0.05


def test_labels_are_many_per_class_and_spread_over_the_area(sample: Sample) -> None:
    features = json.loads(sample.labels.read_text(encoding="utf-8"))["features"]
    west, south, east, north = sample.bbox
    for land in CLASSES:
        mine = [f for f in features if f["properties"]["code"] == land.code]
        corners = np.array([f["geometry"]["coordinates"][0][0] for f in mine])
        assert 12 <= len(mine) <= PER_CLASS
        assert np.ptp(corners[:, 0]) > 0.5 * (east - west)
        assert np.ptp(corners[:, 1]) > 0.5 * (north - south)
    assert len({f["properties"]["polygon"] for f in features}) == len(features)


def test_the_bounding_box_wants_exactly_the_blocks_of_the_area(sample: Sample) -> None:
    west, south, east, north = sample.bbox
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    shape = transform_geom("EPSG:4326", "EPSG:32632", {"type": "Polygon", "coordinates": [ring]})
    xs, ys = np.array(shape["coordinates"][0]).T
    x_min, y_min, x_max, y_max = AREA.bounds_m
    assert x_min < xs.min() < x_min + 150
    assert x_max - 150 < xs.max() < x_max
    assert y_min < ys.min() < y_min + 150
    assert y_max - 150 < ys.max() < y_max


def test_a_complete_sample_is_left_alone(sample: Sample) -> None:
    before = {f: f.stat().st_mtime_ns for f in sample.folder.rglob("*")}
    assert make_sample(sample.folder) == sample
    assert {f: f.stat().st_mtime_ns for f in sample.folder.rglob("*")} == before


def test_a_folder_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="another folder"):
        make_sample(tmp_path / "file" / "sample")
