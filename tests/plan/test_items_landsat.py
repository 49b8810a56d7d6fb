"""Landsat items: Collection 2 Level-1 of Landsat 8 and 9 becomes a Scene, all else is refused with the reason."""

from __future__ import annotations

import pytest
import shapely

from pipeline.plan.items import UnusableItemError, WrongProductError, scene_from_item

SELF = "https://landsatlook.usgs.gov/stac-server/collections/landsat-c2l1/items/x"
NAME = "LC09_L1TP_090091_20250310_20250311_02_T1"
KEYS = {
    "coastal": "B1", "blue": "B2", "green": "B3", "red": "B4", "nir08": "B5", "swir16": "B6", "swir22": "B7",
    "pan": "B8", "cirrus": "B9", "lwir11": "B10", "lwir12": "B11",
}  # fmt: skip


def item(name=NAME, **properties):
    """As the STAC server of the USGS writes them."""
    folder = f"collection02/level-1/standard/oli-tirs/2025/090/091/{name}"
    assets = {
        key: {
            "href": f"https://landsatlook.usgs.gov/data/{folder}/{name}_{band}.TIF",
            "type": "image/vnd.stac.geotiff; cloud-optimized=true",
            "roles": ["data"],
            "eo:bands": [{"name": band, "common_name": key, "gsd": 30}],
            "alternate": {
                "s3": {"storage:requester_pays": True, "href": f"s3://usgs-landsat/{folder}/{name}_{band}.TIF"}
            },
        }
        for key, band in KEYS.items()
    }
    for key, end in {"thumbnail": "thumb_small.jpeg", "qa_pixel": "QA_PIXEL.TIF", "VAA": "VAA.TIF"}.items():
        assets[key] = {"href": f"https://landsatlook.usgs.gov/data/{folder}/{name}_{end}"}
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "collection": "landsat-c2l1",
        "geometry": shapely.geometry.mapping(shapely.box(145, -45, 148, -43)),
        "properties": {
            "datetime": "2025-03-10T23:53:08.935246Z",
            "platform": "LANDSAT_9",
            "eo:cloud_cover": 70.85,
            "landsat:correction": name[5:9],
        }
        | properties,
        "assets": assets,
        "links": [],
    }


def scene(changed, *, base=SELF):
    return scene_from_item(changed, base=base, sign=False, sensor="landsat")


def test_a_level_1_item_becomes_a_scene_of_eleven_requester_pays_files():
    made = scene(item())
    folder = f"s3://usgs-landsat/collection02/level-1/standard/oli-tirs/2025/090/091/{NAME}/{NAME}"
    assert {a.band: a.href for a in made.assets} == {band: f"{folder}_{band}.TIF" for band in KEYS.values()}
    assert made.sensor == "landsat"
    assert (made.boa_offset, made.quantity, made.orbit, made.cloud_pct) == (0, "", "", 70.85)
    assert made.acquisition == "LC09_090091_20250310"
    assert made.version == "02.1@2025-03-11T00:00:00.000000Z"


def test_https_hrefs_of_the_usgs_become_those_of_its_bucket():
    changed = item()
    for asset in changed["assets"].values():
        asset.pop("alternate", None)
    assert scene(changed).assets == scene(item()).assets


def test_files_of_a_local_copy_go_before_the_bucket():
    changed = item()
    for key, band in KEYS.items():
        changed["assets"][key]["href"] = f"./{NAME}_{band}.TIF"
    assert scene(changed, base="/data/landsat/items.json").href("B8").href == f"/data/landsat/{NAME}_B8.TIF"


@pytest.mark.parametrize("name_of", [str, lambda band: f"OLI_{band}", lambda band: f"B{int(band[1:]):02d}"])
def test_band_names_tell_the_band_where_key_and_file_do_not(name_of):
    changed = item()
    changed["assets"] = {
        f"asset-{n}": {"href": f"https://data.example/{n}.tif", "eo:bands": [{"name": name_of(band)}]}
        for n, band in enumerate(KEYS.values())
    }
    assert scene(changed).href("B10").href == "https://data.example/9.tif"


def test_the_file_name_of_the_usgs_tells_the_band_better_than_the_key():
    changed = item()
    assets = changed["assets"]
    assets["nir08"], assets["red"] = assets["red"], assets["nir08"]
    assert scene(changed).href("B5").href.endswith("_B5.TIF")


@pytest.mark.parametrize("category", ["T1", "T2", "RT"])
@pytest.mark.parametrize("level", ["L1TP", "L1GT"])
@pytest.mark.parametrize("satellite", ["LC08", "LC09"])
def test_both_satellites_and_all_terrain_corrected_products_are_read(satellite, level, category):
    made = scene(item(f"{satellite}_{level}_090091_20250310_20250311_02_{category}", platform=None))
    assert len(made.assets) == 11
    assert made.acquisition.startswith(satellite)


def test_the_final_product_is_a_newer_version_than_the_real_time_one():
    early, final = (
        scene(item(f"LC09_L1TP_090091_20250310_{made}_02_{category}"))
        for made, category in (("20250311", "RT"), ("20250311", "T1"))
    )
    assert early.acquisition == final.acquisition
    assert early.version < final.version


def test_a_scene_processed_again_has_the_later_version():
    old, new = (scene(item(f"LC09_L1TP_090091_20250310_{made}_02_T1")).version for made in ("20250311", "20260101"))
    assert old < new


@pytest.mark.parametrize("name", ["LC09_L2SP_090091_20250310_02_T1", "LC08_L2SR_090091_20250310_20250311_02_T1"])
def test_level_2_is_refused_with_the_reason_and_the_way_out(name):
    with pytest.raises(WrongProductError, match=r"Landsat Level-2 .*without B8, B9 and B11.*landsat-c2l1 of"):
        scene(item(name))


def test_level_2_is_refused_whatever_its_id_says():
    with pytest.raises(WrongProductError, match=r"Landsat Level-2 \(L2SP\)"):
        scene(item(**{"landsat:correction": "L2SP"}))


def test_collection_1_is_refused():
    with pytest.raises(WrongProductError, match="is of Landsat Collection 01, calibrated differently"):
        scene(item("LC08_L1TP_107018_20181001_20181001_01_T1"))


@pytest.mark.parametrize("satellite", ["LE07", "LT05", "LO08", "LT08", "LM01"])
def test_other_satellites_are_unusable(satellite):
    with pytest.raises(UnusableItemError, match=f"is of {satellite}, whose bands differ from LC08 and LC09"):
        scene(item(f"{satellite}_L1TP_090091_20250310_20250311_02_T1"))


def test_without_terrain_correction_an_item_is_unusable():
    with pytest.raises(UnusableItemError, match="is 'L1GS', must be L1TP or L1GT"):
        scene(item("LC09_L1GS_090091_20250310_20250311_02_T2"))


@pytest.mark.parametrize("key", KEYS)
def test_every_band_must_be_there(key):
    changed = item()
    del changed["assets"][key]
    with pytest.raises(UnusableItemError, match=f"has no asset for {KEYS[key]}: the model needs all of B1 to B11"):
        scene(changed)


def test_an_item_that_does_not_say_what_it_is_is_unusable():
    changed = item("scene-7")
    with pytest.raises(UnusableItemError, match=r"does not say which Landsat product it is.*landsat:product_id"):
        scene(changed)
    assert scene(
        changed | {"properties": changed["properties"] | {"landsat:product_id": NAME, "landsat:correction": None}}
    )


def test_the_date_of_processing_is_found_where_the_id_lacks_it():
    changed = item() | {"id": "LC09_L1TP_090091_20250310_02_T1"}
    assert scene(changed).version == "02.1@2025-03-11T00:00:00.000000Z"


def test_unknown_cloud_cover_of_the_usgs_is_unknown():
    assert scene(item(**{"eo:cloud_cover": -1})).cloud_pct is None


def test_an_item_of_another_mission_is_unusable():
    with pytest.raises(UnusableItemError, match="is a Sentinel-2 item, Landsat is asked for"):
        scene(item(platform="sentinel-2a"))
