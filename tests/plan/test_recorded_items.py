"""Every recorded item of the archives becomes the right Scene, or is refused for the right reason.

The recordings lie beside the project (``shared/data/stac``, and two items beside pixels); without them these tests are
skipped. Counts are part of what is expected, so that no item is passed over.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import shapely

from pipeline.plan.items import (
    BAND_RES_M,
    SENSORS,
    UnusableItemError,
    WrongProductError,
    scene_from_item,
    unsigned,
)
from pipeline.plan.select import newest_versions

DATA = (Path(__file__).resolve().parents[2] / "../shared/data").resolve()
STAC = DATA / "stac"
S2, S1, LANDSAT = SENSORS
S2_BANDS = tuple(sorted(BAND_RES_M))
PC_S2, PC_S1 = "sentinel2l2a01.blob.core.windows.net", "sentinel1euwestrtc.blob.core.windows.net"
COGS, C1 = "sentinel-cogs.s3.us-west-2.amazonaws.com", "e84-earth-search-sentinel-data.s3.us-west-2.amazonaws.com"


@dataclass(frozen=True, kw_only=True)
class Good:
    """What a scene of these items must be; ``host`` None: files beside the catalogue."""

    count: int
    host: str | None
    baseline: str = ""
    offset: int = 0
    check: bool = False
    sign: bool = False
    sensor: str = S2
    bands: tuple[str, ...] = S2_BANDS
    orbit: str = ""
    quantity: str = ""


@dataclass(frozen=True, kw_only=True)
class Refused:
    """Why these items are refused, when they are read as their own sensor."""

    count: int
    error: type[Exception]
    reason: str
    sensor: str = S2


GRD = r"is Sentinel-1 GRD: neither terrain-corrected nor geocoded"
LEVEL_2 = r"is Landsat Level-2 \(L2S[PR]\): surface reflectance and temperature, other units without B8, B9 and B11"
LEVEL_1C = r"is Sentinel-2 Level-1C \('S2MSI1C'\): top-of-atmosphere reflectance"
NO_SCL = r"has no asset for SCL; its assets are "
DECODED = "pystac-client/decoded/"
SMOKE = "stac-geoparquet/decoded/test_smoke_"
OLD_PC = {"host": PC_S2, "baseline": "02.12", "offset": 1000, "sign": True}
EXPECTED = {
    ("odc-stac/S2A_28QCH_20200714_0_L2A.json", "sentinel-s2-l2a-cogs"): Good(
        count=1, host=COGS, baseline="02.14", offset=1000
    ),
    ("odc-stac/S2B_MSIL2A_20190629T212529_R043_T06VVN_20201006T080531.json", "sentinel-2-l2a"): Good(count=1, **OLD_PC),
    ("odc-stac/site1-20200606-tall-strip-africa.geojson", "sentinel-2-l2a"): Good(count=9, **OLD_PC),
    ("openeo-cdse/FeatureCollection.issue1043.json", "sentinel-2-l2a"): Good(count=1, host="eodata", baseline="05.00"),
    (f"{DECODED}TestCLISearch.test_filter_inprocess_.1.json", "sentinel-2-c1-l2a"): Good(
        count=3, host=C1, baseline="05.11"
    ),
    (f"{DECODED}TestCLISearch.test_filter_inprocess_.1.json", "sentinel-2-l2a"): Good(
        count=2, host=COGS, baseline="05.11", offset=1000, check=True
    ),
    (f"{DECODED}TestCLISearch.test_filter_inprocess_.1.json", "sentinel-1-grd"): Refused(
        count=3, sensor=S1, error=WrongProductError, reason=GRD
    ),
    (f"{DECODED}TestCLISearch.test_filter_inprocess_.1.json", "sentinel-2-l1c"): Refused(
        count=2, error=WrongProductError, reason=LEVEL_1C
    ),
    (f"{DECODED}TestCLISearch.test_filter_inprocess_.2.json", "sentinel-2-c1-l2a"): Good(
        count=3, host=C1, baseline="05.11"
    ),
    (f"{DECODED}TestCLISearch.test_filter_inprocess_.2.json", "sentinel-2-l2a"): Good(
        count=4, host=COGS, baseline="05.11", offset=1000, check=True
    ),
    (f"{DECODED}TestCLISearch.test_filter_inprocess_.2.json", "sentinel-2-l1c"): Refused(
        count=3, error=WrongProductError, reason=LEVEL_1C
    ),
    (f"{DECODED}TestItemSearch.test_datetime_results.0.json", "sentinel-2-l2a"): Good(count=33, **OLD_PC),
    (f"{DECODED}TestItemSearch.test_datetime_results.1.json", "sentinel-2-l2a"): Good(count=33, **OLD_PC),
    (f"{DECODED}TestItemSearch.test_result_paging.0.json", "naip"): Refused(
        count=10, error=UnusableItemError, reason=NO_SCL
    ),
    (f"{DECODED}TestItemSearch.test_result_paging.1.json", "naip"): Refused(
        count=10, error=UnusableItemError, reason=NO_SCL
    ),
    (f"{DECODED}test_fallback_strategy.2.json", "landsat-c2-l2"): Refused(
        count=10, sensor=LANDSAT, error=WrongProductError, reason=LEVEL_2
    ),
    (f"{DECODED}test_fields.0.json", "sentinel-2-c1-l2a"): Refused(
        count=10, error=UnusableItemError, reason=r"has no assets: .*a search with excluded fields"
    ),
    (f"{DECODED}test_multiple_collections.0.json", "sentinel-2-l2a"): Good(
        count=1, host=COGS, baseline="05.09", offset=1000, check=True
    ),
    (f"{DECODED}test_multiple_collections.0.json", "landsat-c2-l2"): Refused(
        count=1, sensor=LANDSAT, error=WrongProductError, reason=LEVEL_2
    ),
    ("rustac/search-page-1.json", "sentinel-2-l2a"): Good(count=1, host=PC_S2, baseline="04.00", sign=True),
    ("rustac/search-page-2.json", "sentinel-2-l2a"): Good(count=1, host=PC_S2, baseline="04.00", sign=True),
    ("rustac/two-sentinel-2-items.json", "sentinel-2-l2a"): Good(count=2, host=PC_S2, baseline="05.11", sign=True),
    ("rustac/100-sentinel-2-items.parquet", "sentinel-2-l2a"): Good(
        count=100, host=PC_S2, baseline="05.1[01]", sign=True
    ),
    (f"{SMOKE}cop-dem-glo-30_.0.json", "cop-dem-glo-30"): Refused(count=1, error=UnusableItemError, reason=NO_SCL),
    (f"{SMOKE}esa-worldcover_.0.json", "esa-worldcover"): Refused(count=1, error=UnusableItemError, reason=NO_SCL),
    (f"{SMOKE}landsat-c2-l2_.0.json", "landsat-c2-l2"): Refused(
        count=1, sensor=LANDSAT, error=WrongProductError, reason=LEVEL_2
    ),
    (f"{SMOKE}sentinel-1-grd_.0.json", "sentinel-1-grd"): Refused(
        count=1, sensor=S1, error=WrongProductError, reason=GRD
    ),
    (f"{SMOKE}sentinel-1-rtc_.0.json", "sentinel-1-rtc"): Good(
        count=1, host=PC_S1, baseline="sentinel-1-rtc", sign=True, sensor=S1, bands=("vh", "vv"), orbit="descending",
        quantity="gamma0",
    ),
    (f"{SMOKE}sentinel-2-l2a_.0.json", "sentinel-2-l2a"): Good(count=1, host=PC_S2, baseline="05.11", sign=True),
    ("stactools-sentinel2/S2A_MSIL2A_20190212T192651_N0212_R013_T07HFE_20201007T160857.json", None): Good(
        count=1, host=None, baseline="02.12", offset=1000
    ),
    ("stactools-sentinel2/S2B_MSIL2A_20220413T150759_N0400_R025_T33XWJ_20220414T082126.json", None): Good(
        count=1, host=None, baseline="04.00"
    ),
    ("../rio-tiler-pds-s2-l2a/S2A_29RKH_20200219_0_L2A/S2A_29RKH_20200219_0_L2A.json", "sentinel-2-l2a"): Good(
        count=1, host=COGS, baseline="02.14", offset=1000
    ),
    ("../landsat-c2-l2/LC08_L2SP_008059_20191201_20200825_02_T1_SR_stac.json", "landsat-c2l2-sr"): Refused(
        count=1, sensor=LANDSAT, error=WrongProductError, reason=LEVEL_2
    ),
}  # fmt: skip
OTHERS = {
    S2: r"is a Sentinel-2 item, (Sentinel-1|Landsat) is asked for",
    S1: r"is a Sentinel-1 item, (Sentinel-2|Landsat) is asked for",
    LANDSAT: r"is a Landsat item, (Sentinel-1|Sentinel-2) is asked for",
    "": r"has no asset for SCL|has no VV and VH|does not say which Landsat product",
}


def features(value):
    """Every item of a document, whatever it is wrapped in."""
    if isinstance(value, dict) and value.get("type") == "Feature":
        yield value
    else:
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        for part in inner:
            yield from features(part)


def bare(value):
    """Without the nulls that Parquet fills in."""
    if isinstance(value, dict):
        return {k: bare(v) for k, v in value.items() if v is not None}
    return [bare(v) for v in value] if isinstance(value, list) else value


def rows(path):
    import pyarrow.parquet as pq

    top = {"type", "stac_version", "stac_extensions", "id", "collection", "links", "assets", "bbox", "geometry"}
    for row in pq.read_table(path).to_pylist():
        kept = bare(row)
        kept["geometry"] = shapely.geometry.mapping(shapely.from_wkb(kept["geometry"]))
        yield {k: v for k, v in kept.items() if k in top} | {
            "properties": {k: v for k, v in kept.items() if k not in top}
        }


def load():
    """(file relative to STAC, item) of every recorded item, and the files without one."""
    found, empty = [], []
    beside = [DATA / file.removeprefix("../") for file, _ in EXPECTED if file.startswith("../")]
    for path in [*sorted(STAC.rglob("*")), *beside]:
        if path.suffix not in {".json", ".geojson", ".parquet"}:
            continue
        items = list(rows(path) if path.suffix == ".parquet" else features(json.loads(path.read_text())))
        name = str(path.relative_to(STAC)) if path.is_relative_to(STAC) else f"../{path.relative_to(DATA)}"
        found += [(name, item) for item in items]
        empty += [] if items else [name]
    return found, empty


RECORDED, EMPTY = load() if STAC.is_dir() else ([], [])
ABSENT = pytest.mark.skipif(not RECORDED, reason=f"no recorded items in {STAC}")
EVERY = pytest.mark.parametrize(
    ("file", "item"),
    [pytest.param(f, i, id=f"{f.rsplit('/', 1)[-1]}-{i['id']}") for f, i in RECORDED]
    or [pytest.param("", {}, marks=ABSENT)],
)


def parsed(file, item, sensor):
    # stactools writes hrefs relative to the item, as for a catalogue on disk; the others come over the network.
    base = str(STAC / file) if file.startswith("stactools") else "https://archive.example/v1/search"
    return scene_from_item(item, base=base, sign=False, sensor=sensor)


@ABSENT
def test_every_recorded_item_is_expected_and_counted():
    assert Counter((file, item.get("collection")) for file, item in RECORDED) == {
        key: expected.count for key, expected in EXPECTED.items()
    }
    assert len(RECORDED) == 254


@ABSENT
def test_the_recorded_files_without_items_are_known():
    kinds = Counter(re.sub(r"test_smoke_.*_\.[12]\.json", "catalogue pages", name) for name in EMPTY)
    assert kinds == {
        "odc-stac/sentinel-2-l2a.collection.json": 1,
        "pc-sas-doc-sample/sign-response.json": 1,
        "pc-sas-doc-sample/token-response.json": 1,
        "planetary-computer-tasks/landsat-c2-l2.collection-template.json": 1,
        "planetary-computer-tasks/sentinel-1-rtc.collection-template.json": 1,
        "planetary-computer-tasks/sentinel-2.collection-template.json": 1,
        f"{DECODED}TestCLISearch.test_filter_inprocess_.0.json": 1,
        f"{DECODED}test_fallback_strategy.0.json": 1,
        f"{DECODED}test_fallback_strategy.1.json": 1,
        f"{DECODED}test_multiple_collections.1.json": 1,
        "stac-geoparquet/decoded/catalogue pages": 12,
    }


@ABSENT
def test_every_answer_of_the_cassettes_is_among_the_decoded_files():
    cassettes = sorted(STAC.rglob("cassettes/*.yaml"))
    assert len(cassettes) == 12
    for cassette in cassettes:
        answers = len(re.findall(r"^- request:", cassette.read_text(), flags=re.MULTILINE))
        decoded = cassette.parents[1] / "decoded"
        assert [(decoded / f"{cassette.stem}.{n}.json").is_file() for n in range(answers + 1)] == [True] * answers + [
            False
        ]


@EVERY
def test_a_recorded_item_becomes_the_right_scene_or_is_refused_for_the_right_reason(file, item):
    expected = EXPECTED[file, item.get("collection")]
    if isinstance(expected, Refused):
        with pytest.raises(expected.error, match=expected.reason) as caught:
            parsed(file, item, expected.sensor)
        assert caught.type is expected.error
        assert item["id"] in str(caught.value)
        return
    made = parsed(file, item, expected.sensor)
    check_identity(made, item, expected)
    check_files(made, expected)
    assert (made.boa_offset, made.check_offset) == (expected.offset, expected.check)
    assert (made.sign, made.orbit, made.quantity) == (expected.sign, expected.orbit, expected.quantity)


def check_identity(made, item, expected):
    properties = item["properties"]
    assert made.id == item["id"]
    assert made.collection == (item.get("collection") or "")
    assert made.sensor == expected.sensor
    said = properties["datetime"]
    said = said if isinstance(said, datetime) else datetime.fromisoformat(said)
    assert made.acquired == said
    assert made.acquired.tzinfo is UTC
    assert made.cloud_pct == properties.get("eo:cloud_cover")
    baseline, _, generated = made.version.partition("@")
    assert re.fullmatch(expected.baseline, baseline)
    assert generated == "" or datetime.fromisoformat(generated) > made.acquired
    platform = properties["platform"].lower().replace("sentinel-", "S").upper()
    pattern = r"_\d{8}T\d{6}_073302_gamma0" if expected.sensor == S1 else r"_\d{8}T\d{6}_\d{1,2}[A-Z]{3}"
    assert re.fullmatch(platform + pattern, made.acquisition)
    footprint = shapely.from_wkb(made.footprint)
    assert shapely.is_valid(footprint)
    assert footprint.area > 0
    assert shapely.box(-180, -90, 180, 90).covers(footprint)


def check_files(made, expected):
    assert tuple(a.band for a in made.assets) == expected.bands
    for asset in made.assets:
        parts = urlsplit(asset.href)
        assert asset.band_index == 1
        assert parts.query == ""
        assert unsigned(asset.href) == asset.href
        assert parts.hostname == expected.host
        assert expected.host or Path(asset.href).is_relative_to(STAC / "stactools-sentinel2")
        name = parts.path.rsplit("/", 1)[-1]
        assert re.search(rf"(^|[_-]){asset.band}[_.]", name)
        assert name.endswith(".jp2" if expected.host == "eodata" else (".tif", ".tiff"))
        res = re.search(r"_(\d\d)m\.", name)
        assert res is None or int(res[1]) == BAND_RES_M[asset.band]


@EVERY
def test_a_recorded_item_is_refused_as_another_sensor(file, item):
    maps = {"naip", "cop-dem-glo-30", "esa-worldcover"}
    own = "" if item.get("collection") in maps else EXPECTED[file, item.get("collection")].sensor
    for sensor in SENSORS:
        if sensor != own:
            with pytest.raises(UnusableItemError, match=OTHERS[own]):
                parsed(file, item, sensor)


def scenes(*files):
    found = {}
    for file, item in RECORDED:
        if file in files and item["collection"] in {"sentinel-2-l2a", "sentinel-2-c1-l2a"}:
            scene = parsed(file, item, S2)
            found[scene.id] = scene
    return found


@ABSENT
def test_a_recorded_granule_that_was_split_over_two_datastrips_keeps_both_parts():
    found = scenes("rustac/100-sentinel-2-items.parquet")
    groups = Counter(s.acquisition for s in found.values())
    assert [key for key, count in groups.items() if count > 1] == ["S2B_20240530T174909_13TDE"]
    parts = [s for s in found.values() if s.acquisition == "S2B_20240530T174909_13TDE"]
    shapes = list(shapely.from_wkb([s.footprint for s in parts]))
    assert len({s.version for s in parts}) == 2
    assert set(newest_versions(parts, shapes)) == set(parts)


@ABSENT
def test_of_a_granule_processed_again_the_later_version_stays():
    # The recordings hold no such pair; a recorded item with a later baseline and time is how one looks.
    file, item = next((f, i) for f, i in RECORDED if f.startswith("odc-stac/S2B_MSIL2A_20190629T212529"))
    again = json.loads(json.dumps(item).replace("_20201006T080531", "_20230601T101112").replace("02.12", "05.00"))
    again["properties"]["s2:generation_time"] = "2023-06-01T10:11:12.000000Z"
    pair = [parsed(file, item, S2), parsed(file, again, S2)]
    assert pair[0].acquisition == pair[1].acquisition
    assert [s.boa_offset for s in pair] == [1000, 0]
    shapes = list(shapely.from_wkb([s.footprint for s in pair]))
    assert newest_versions(pair, shapes, whole=True) == (pair[1],)


@ABSENT
def test_the_same_product_in_two_collections_of_earth_search_is_known_as_such():
    found = scenes(
        f"{DECODED}TestCLISearch.test_filter_inprocess_.1.json", f"{DECODED}TestCLISearch.test_filter_inprocess_.2.json"
    )
    by_acquisition = {}
    for scene in found.values():
        by_acquisition.setdefault((scene.acquisition, scene.version), {})[scene.collection] = scene
    assert len(by_acquisition) == 6
    for pair in by_acquisition.values():
        # Equal but for the offset: each scene must carry its own.
        assert pair["sentinel-2-c1-l2a"].boa_offset == 0
        assert pair["sentinel-2-l2a"].boa_offset == 1000
        assert shapely.from_wkb(pair["sentinel-2-l2a"].footprint).area == pytest.approx(
            shapely.from_wkb(pair["sentinel-2-c1-l2a"].footprint).area, rel=0.01
        )


@ABSENT
def test_recorded_items_of_the_trusted_collection_declare_an_offset_that_agrees_with_their_baseline():
    declared = Counter()
    for _, item in RECORDED:
        if item.get("collection") in {"sentinel-2-c1-l2a", "sentinel-2-l2a"} and "earth-search" in str(
            item.get("links")
        ):
            offsets = {b.get("offset") for k in ("blue", "nir08") for b in item["assets"][k]["raster:bands"]}
            flag = item["properties"].get("earthsearch:boa_offset_applied")
            declared[item["collection"], flag, *offsets] += 1
    assert declared == {
        ("sentinel-2-c1-l2a", None, -0.1): 6,
        # The contradiction for which pixels are looked at: subtracted, and still to be subtracted.
        ("sentinel-2-l2a", True, -0.1): 7,
        # Baseline 02.14: not subtracted, because there never was an offset.
        ("sentinel-2-l2a", False, 0): 1,
    }
