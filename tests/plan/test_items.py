"""Items of every archive become the same Scene, and an item cannot make the reader go where it has no business."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
import shapely

from pipeline.errors import DataError
from pipeline.plan.items import BAND_RES_M, UnusableItemError, footprint_of, scene_from_item, unsigned, wrap

STAC = Path(__file__).resolve().parents[2] / "../shared/data/stac"
ALL_BANDS = tuple(sorted(BAND_RES_M))
SELF = "https://archive.example/v1/collections/s2/items/x"


def recorded(name, number=0):
    path = STAC / name
    if not path.is_file():
        pytest.skip(f"recorded answer {name} is not beside the project")
    data = json.loads(path.read_text())
    data = data.get("response", data)
    return data["features"][number] if "features" in data else data


def item(**properties):
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": "S2A_TEST",
        "collection": "sentinel-2-l2a",
        "geometry": shapely.geometry.mapping(shapely.box(10, 48, 11, 49)),
        "bbox": [10, 48, 11, 49],
        "properties": {"datetime": "2024-06-01T10:00:00Z", "s2:processing_baseline": "05.10"} | properties,
        "assets": {band: {"href": f"https://data.example/{band}.tif"} for band in ALL_BANDS},
        "links": [],
    }


def scene(changed, *, base=SELF, sign=False):
    return scene_from_item(changed, base=base, sign=sign)


def with_href(href):
    changed = item()
    changed["assets"]["B02"]["href"] = href
    return changed


EARTH = "pystac-client/decoded/TestCLISearch.test_filter_inprocess_.1.json"
RECORDED = {
    "PC 05.11": ("rustac/two-sentinel-2-items.json", 0, 0, "05.11@2024-08-25T21:57:47.000000Z", "B02_10m.tif"),
    "PC 04.00": ("rustac/search-page-1.json", 0, 0, "04.00@2023-02-17T08:29:24.578825Z", "B02_10m.tif"),
    "PC 02.12": (
        "odc-stac/S2B_MSIL2A_20190629T212529_R043_T06VVN_20201006T080531.json",
        0, 1000, "02.12@2020-10-06T08:05:31.830000Z", "B02_10m.tif",
    ),
    "earth-search c1": (EARTH, 3, 0, "05.11@2025-07-31T14:39:19.000000Z", "/B02.tif"),
    "earth-search v1, offset applied": (EARTH, 4, 1000, "05.11@2025-07-31T14:39:19.000000Z", "/B02.tif"),
    "earth-search v0": ("odc-stac/S2A_28QCH_20200714_0_L2A.json", 0, 1000, "02.14@", "/B02.tif"),
    "CDSE": (
        "openeo-cdse/FeatureCollection.issue1043.json", 0, 0, "05.00@2023-06-12T21:42:23.000000Z", "B02_10m.jp2",
    ),
    "stactools 04.00": (
        "stactools-sentinel2/S2B_MSIL2A_20220413T150759_N0400_R025_T33XWJ_20220414T082126.json",
        0, 0, "04.00@2022-04-14T08:21:26.580338Z", "B02_10m.tif",
    ),
    "stactools 02.12": (
        "stactools-sentinel2/S2A_MSIL2A_20190212T192651_N0212_R013_T07HFE_20201007T160857.json",
        0, 1000, "02.12@2020-10-07T16:08:57.135000Z", "B02_10m.tif",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RECORDED)
def test_a_recorded_item_becomes_a_whole_scene(name):
    file, number, offset, version, blue = RECORDED[name]
    made = scene(recorded(file, number))
    assert tuple(a.band for a in made.assets) == ALL_BANDS
    assert made.boa_offset == offset
    assert made.version == version
    assert made.href("B02").href.endswith(blue)
    assert made.acquired.tzinfo is UTC
    assert shapely.is_valid(shapely.from_wkb(made.footprint))


@pytest.mark.parametrize("name", ["CDSE", "stactools 04.00"])
def test_the_file_of_native_resolution_is_chosen(name):
    made = scene(recorded(*RECORDED[name][:2]))
    for band, res_m in BAND_RES_M.items():
        assert f"{band}_{res_m}m." in made.href(band).href


def test_a_tiff_is_taken_before_the_jpeg_2000_of_the_same_band():
    made = scene(recorded(*RECORDED["earth-search v1, offset applied"][:2]))
    assert {a.href.rsplit(".", 1)[-1] for a in made.assets} == {"tif"}


def test_the_key_of_an_asset_tells_its_resolution_better_than_its_gsd():
    # CDSE describes some 60 m files with gsd 20 and a transform of 20 m.
    changed = item()
    del changed["assets"]["B01"]
    wrong = {"gsd": 20, "proj:transform": [20, 0, 0, 0, -20, 0]}
    changed["assets"] |= {
        "B01_20m": {"href": "https://data.example/coarse.tif", **wrong},
        "B01_60m": {"href": "https://data.example/native.tif", **wrong},
    }
    assert scene(changed).href("B01").href.endswith("native.tif")


def test_the_format_decides_before_the_name_of_the_asset():
    changed = item()
    changed["assets"]["B02"] |= {"type": "image/jp2"}
    changed["assets"]["blue"] = {"href": "https://data.example/blue.tif", "type": "image/tiff"}
    assert scene(changed).href("B02").href.endswith("blue.tif")


def test_an_item_of_the_planetary_computer_asks_for_signing_wherever_it_was_kept():
    assert scene(recorded(*RECORDED["PC 05.11"][:2]), base="/data/items.json").sign
    assert not scene(recorded(*RECORDED["CDSE"][:2])).sign
    assert scene(item(), sign=True).sign


def test_versions_of_one_granule_share_their_acquisition():
    old = item(**{"s2:mgrs_tile": "06VVN", "s2:datatake_id": "GS2B_20190629T212529_012081_N02.12"})
    new = item(**{"grid:code": "MGRS-6VVN", "s2:datatake_id": "GS2B_20190629T212529_012081_N05.00"})
    bare = item(**{"s2:product_uri": "S2B_MSIL2A_20190629T212529_N0212_R043_T06VVN_20201006T080531.SAFE"})
    assert {scene(i).acquisition for i in (old, new, bare)} == {"S2B_20190629T212529_6VVN"}
    assert scene(item()).acquisition == ""


def offset_of(changed):
    changed["properties"].pop("s2:processing_baseline", None)
    return scene(changed).boa_offset


@pytest.mark.parametrize(("baseline", "offset"), [("04.00", 0), ("05.11", 0), ("03.01", 1000), ("02.12", 1000)])
def test_the_baseline_decides_the_offset(baseline, offset):
    assert scene(item(**{"s2:processing_baseline": baseline})).boa_offset == offset


def test_an_offset_that_earth_search_removed_is_added_again():
    assert scene(item(**{"earthsearch:boa_offset_applied": True})).boa_offset == 1000
    assert scene(item(**{"earthsearch:boa_offset_applied": False})).boa_offset == 0


@pytest.mark.parametrize(("offset", "added"), [(-0.1, 0), (0, 1000)])
@pytest.mark.parametrize("where", ["raster:bands", "raster:offset", "bands"])
def test_without_a_baseline_the_raster_offset_decides(offset, added, where):
    changed = item()
    for asset in changed["assets"].values():
        asset[where] = {
            "raster:bands": [{"offset": offset}],
            "raster:offset": offset,
            "bands": [{"raster:offset": offset}],
        }[where]
    assert offset_of(changed) == added


@pytest.mark.parametrize(("code", "added"), [("N0400", 0), ("N0214", 1000)])
def test_without_a_baseline_the_product_name_decides(code, added):
    changed = item(**{"s2:product_uri": f"S2B_MSIL2A_20220413T150759_{code}_R025_T33XWJ_20220414T082126.SAFE"})
    assert offset_of(changed) == added


def test_an_unknown_offset_is_refused_by_item():
    with pytest.raises(DataError, match=r"S2A_TEST .*\+1000 offset.*s2:processing_baseline"):
        offset_of(item())


@pytest.mark.parametrize("missing", [["SCL"], [b for b in ALL_BANDS if b != "SCL"], ALL_BANDS])
def test_an_item_without_scl_or_bands_is_unusable(missing):
    changed = item()
    for band in missing:
        del changed["assets"][band]
    with pytest.raises(UnusableItemError, match="S2A_TEST has no asset for"):
        scene(changed)


@pytest.mark.parametrize("assets", [None, [], "x", {"B02": None, "SCL": "x"}])
def test_assets_that_are_no_mapping_are_unusable(assets):
    with pytest.raises(UnusableItemError):
        scene(item() | {"assets": assets})


def test_a_lacking_band_is_absent():
    changed = item()
    del changed["assets"]["B09"]
    assert scene(changed).href("B09") is None


def test_pictures_are_no_bands():
    changed = item()
    names = [{"name": b} for b in ("B04", "B03", "B02")]
    changed["assets"]["visual"] = {"href": "https://data.example/tci.tif", "roles": ["data"], "eo:bands": names}
    changed["assets"]["red"] = {"href": "https://data.example/a.png", "roles": ["thumbnail"]}
    del changed["assets"]["B04"]
    assert scene(changed).href("B04") is None


def test_bands_of_one_file_are_found_by_their_place():
    changed = item()
    changed["assets"] = {
        "stack": {"href": "https://data.example/all.tif", "bands": [{"name": "B02"}, {"name": "x"}, {"name": "nir"}]},
        "SCL": {"href": "https://data.example/SCL.tif"},
    }
    assert [(a.band, a.band_index) for a in scene(changed).assets] == [("B02", 1), ("B08", 3), ("SCL", 1)]


@pytest.mark.parametrize(
    ("cloud", "kept"),
    [(12.5, 12.5), (0, 0.0), (None, None), ("12", None), (float("nan"), None), (-1, None), (101, None)],
)
def test_cloud_cover_is_a_percentage_or_unknown(cloud, kept):
    assert scene(item(**{"eo:cloud_cover": cloud})).cloud_pct == kept


@pytest.mark.parametrize(
    "times",
    [
        {"datetime": "2024-06-01T10:00:00Z"},
        {"datetime": "2024-06-01T12:00:00.000+02:00"},
        {"datetime": "2024-06-01T10:00:00"},
        {"datetime": datetime(2024, 6, 1, 10, tzinfo=UTC)},
        {"datetime": None, "start_datetime": "2024-06-01T10:00:00Z", "end_datetime": "2024-06-01T10:10:00Z"},
    ],
)
def test_the_time_is_utc_whatever_it_was_written_in(times):
    assert scene(item(**times)).acquired == datetime(2024, 6, 1, 10, tzinfo=UTC)


@pytest.mark.parametrize("time", [None, "yesterday", 5])
def test_an_item_without_a_time_is_refused(time):
    with pytest.raises(DataError, match="S2A_TEST has no time"):
        scene(item(datetime=time))


@pytest.mark.parametrize("change", [{"id": None}, {"id": ""}, {"properties": None}])
def test_what_is_no_item_is_refused(change):
    with pytest.raises(DataError, match="not a STAC item"):
        scene(item() | change)


def test_a_null_geometry_falls_back_on_the_bbox():
    made = footprint_of(item() | {"geometry": None})
    assert made.equals(shapely.box(10, 48, 11, 49))


@pytest.mark.parametrize(
    "bbox", [[10, 48, 0, 11, 49, 500], {"xmin": 10, "ymin": 48, "xmax": 11, "ymax": 49}]
)  # fmt: skip
def test_a_bbox_may_have_heights_or_names(bbox):
    assert footprint_of(item() | {"geometry": None, "bbox": bbox}).equals(shapely.box(10, 48, 11, 49))


@pytest.mark.parametrize(
    "change",
    [
        {"geometry": None, "bbox": None},
        {"geometry": None, "bbox": [1, 2]},
        {"geometry": {"type": "Polygon"}},
        {"geometry": {"type": "Polygon", "coordinates": [[[1, 1], [2, float("nan")], [2, 2], [1, 1]]]}},
        {"geometry": {"type": "Polygon", "coordinates": [[[1, 1], [2, 1], [1, 1]]]}},
        {"geometry": {"type": "Point", "coordinates": [1, 2]}},
        {"geometry": {"type": "Nonsense", "coordinates": []}},
    ],
)
def test_an_item_without_a_place_is_refused(change):
    with pytest.raises(DataError, match="S2A_TEST"):
        footprint_of(item() | change)


SPLIT = shapely.MultiPolygon([shapely.box(179, 10, 180, 11), shapely.box(-180, 10, -179, 11)])


@pytest.mark.parametrize(
    "ring",
    [
        [(179, 10), (181, 10), (181, 11), (179, 11)],
        [(-181, 10), (-179, 10), (-179, 11), (-181, 11)],
        [(179, 10), (-179, 10), (-179, 11), (179, 11)],
    ],
)
def test_a_footprint_over_the_antimeridian_is_cut_there(ring):
    assert wrap(shapely.Polygon(ring)).equals(SPLIT)


def test_a_bbox_over_the_antimeridian_is_cut_there():
    assert footprint_of(item() | {"geometry": None, "bbox": [179, 10, -179, 11]}).equals(SPLIT)


def test_a_twisted_footprint_is_repaired():
    twisted = shapely.Polygon([(10, 48), (11, 49), (11, 48), (10, 49)])
    assert shapely.is_valid(wrap(twisted))
    assert wrap(twisted).area == pytest.approx(0.5)


@pytest.mark.parametrize("base", [None, SELF, "s3://bucket/catalog.json"])
@pytest.mark.parametrize(
    "href",
    ["/etc/passwd", "file:///etc/passwd", "FILE:/etc/passwd", "/vsicurl/http://x/a.tif", "/VSIZIP/a.zip", "vrt://a.tif",
     "NETCDF:a.nc:B02", "ftp://x/a.tif", "<VRTDataset/>", "a\0.tif", "a%00.tif", "a\n.tif", "\\\\host\\a.tif",
     "", " ", None, 3],
)  # fmt: skip
def test_a_remote_item_reaches_no_local_file(href, base):
    with pytest.raises(DataError, match="S2A_TEST, asset B02"):
        scene(with_href(href), base=base)


def test_a_remote_item_cannot_make_itself_local_by_its_self_link():
    changed = with_href("passwd") | {"links": [{"rel": "self", "href": "file:///etc/item.json"}]}
    assert scene(changed).href("B02").href == "https://archive.example/v1/collections/s2/items/passwd"


@pytest.mark.parametrize(
    "href", ["/vsicurl/http://x/a.tif", "/./vsizip/a.tif", "a\0.tif", "file://host/a.tif", "vrt://a.tif"]
)
def test_a_local_item_reaches_plain_files_only(href):
    with pytest.raises(DataError, match="S2A_TEST, asset B02"):
        scene(with_href(href), base="/data/items.json")


@pytest.mark.parametrize(
    ("href", "base", "found"),
    [
        ("B02.tif", "/data/s2/items.json", "/data/s2/B02.tif"),
        ("./img/B02.tif", "/data/s2/items.json", "/data/s2/img/B02.tif"),
        ("../img/B02.tif", "/data/s2/items.json", "/data/img/B02.tif"),
        ("/archive/B02.tif", "/data/s2/items.json", "/archive/B02.tif"),
        ("file:///archive/my%20B02.tif", "/data/s2/items.json", "/archive/my B02.tif"),
        ("B02.tif", "file:///data/s2/items.json", "/data/s2/B02.tif"),
        ("https://data.example/B02.tif", "/data/s2/items.json", "https://data.example/B02.tif"),
        ("./B02.tif", SELF, "https://archive.example/v1/collections/s2/items/B02.tif"),
        ("../B02.tif", "s3://bucket/a/b/item.json", "s3://bucket/a/B02.tif"),
        ("//data.example/B02.tif", SELF, "https://data.example/B02.tif"),
        ("s3://eodata/B02.jp2", SELF, "s3://eodata/B02.jp2"),
    ],
)
def test_hrefs_are_resolved_against_where_the_item_lies(href, base, found):
    assert scene(with_href(href), base=base).href("B02").href == found


def test_the_self_link_of_a_remote_item_wins_over_the_catalogue():
    changed = with_href("./B02.tif") | {"links": [{"rel": "self", "href": "https://other.example/a/item.json"}]}
    assert scene(changed).href("B02").href == "https://other.example/a/B02.tif"


def test_a_relative_href_without_a_place_is_refused():
    with pytest.raises(DataError, match="relative"):
        scene(with_href("B02.tif"), base=None)


@pytest.mark.parametrize(
    ("href", "kept"),
    [
        ("https://a.blob.core.windows.net/c/B02.tif?st=1&se=2&sp=rl&sv=3&sr=c&skoid=4&sig=abc%3D", "https://a.blob.core.windows.net/c/B02.tif"),
        ("https://x.example/a.tif?X-Amz-Signature=1&X-Amz-Date=2&versionId=7", "https://x.example/a.tif?versionId=7"),
        ("https://x.example/a.tif?token=1", "https://x.example/a.tif"),
        ("https://user:word@x.example/a.tif", "https://x.example/a.tif"),
        ("https://x.example/a.tif?sp=2&b=%20c", "https://x.example/a.tif?sp=2&b=%20c"),
        ("https://x.example/Nodes(a)/$value", "https://x.example/Nodes(a)/$value"),
    ],
)  # fmt: skip
def test_signatures_are_not_kept_and_nothing_else_is_lost(href, kept):
    assert unsigned(href) == kept
    assert scene(with_href(href)).href("B02").href == kept


def test_a_refusal_does_not_show_the_signature():
    with pytest.raises(DataError) as caught:
        scene(with_href("ftp://user:hunter2@x.example/a.tif?sig=hunter2"))
    assert "hunter2" not in str(caught.value)
