"""Whatever an item holds, it becomes a Scene or is refused on purpose, in one printable message without its secrets."""

from __future__ import annotations

import copy
import json
import re
from datetime import datetime, timedelta, timezone

import pytest
import shapely
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pipeline.errors import EarthpressError
from pipeline.plan.hrefs import unsigned
from pipeline.plan.item_values import SAFE_ID
from pipeline.plan.items import SENSORS, acquired_of, footprint_of, scene_from_item
from pipeline.types import Scene, canonical_json

WEST = timezone(timedelta(hours=-12))
CANARY = "c4n4ry"
SECRET = f"?sv=1&se=2&sr=c&sig={CANARY}"


def base_item(name, collection, properties, assets):
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "collection": collection,
        "geometry": shapely.geometry.mapping(shapely.box(10, 48, 11, 49)),
        "bbox": [10, 48, 11, 49],
        "properties": {"datetime": "2024-06-01T10:00:00Z", "eo:cloud_cover": 3.0, "updated": "2024-06-02T10:00:00Z"}
        | properties,
        "assets": assets,
        "links": [{"rel": "self", "href": "https://planetarycomputer.microsoft.com/x"}],
    }


def asset(name, **fields):
    return {
        "href": f"https://data.example/{name}{SECRET}",
        "type": "image/tiff",
        "roles": ["data"],
        "alternate": {"s3": {"href": f"s3://user:{CANARY}@bucket/{name}"}},
        "raster:bands": [{"data_type": "float32", "spatial_resolution": 10}],
        "proj:transform": [10.0, 0.0, 0.0, 0.0, -10.0, 0.0],
    } | fields


S2_BANDS = ("B01", "B02", "B03", "B8A", "B12", "SCL")
WHOLE = {
    "sentinel2_l2a": base_item(
        "S2A_MSIL2A_20230216T150721_R082_T19PHS_20230217T082924",
        "sentinel-2-l2a",
        {
            "platform": "Sentinel-2A",
            "s2:processing_baseline": "05.11",
            "s2:mgrs_tile": "19PHS",
            "s2:datatake_id": "GS2A_20230216T150721_039976_N05.11",
            "earthsearch:boa_offset_applied": False,
            "s2:product_uri": "S2A_MSIL2A_20230216T150721_N0511_R082_T19PHS_20230217T082924.SAFE",
        },
        {b: asset(f"{b}.tif", **{"eo:bands": [{"name": b}]}) for b in S2_BANDS}
        | {
            "product-metadata": asset("MTD_MSIL2A.xml"),
            "stack": asset("s.tif", bands=[{"name": "B04"}, {"name": "x"}]),
        },
    ),
    "sentinel1": base_item(
        "S1A_IW_GRDH_1SDV_20250311T044231_20250311T044249_058252_073302_rtc",
        "sentinel-1-rtc",
        {
            "platform": "SENTINEL-1A",
            "sar:instrument_mode": "IW",
            "sar:polarizations": ["VV", "VH"],
            "sar:product_type": "GRD",
            "sat:orbit_state": "descending",
            "earthpress:backscatter": "gamma0",
            "sentinel:mgrs": "17RMJ",
            "sentinel:product_ids": ["S1A_IW_GRDH_1SDV_20250311T044231_20250311T044249_058252_073302"],
        },
        {pol: asset(f"iw-{pol}.rtc.tiff", **{"sar:polarizations": [pol]}) for pol in ("vv", "vh")},
    ),
    "landsat": base_item(
        "LC09_L1TP_090091_20250310_20250311_02_T1",
        "landsat-c2l1",
        {"platform": "LANDSAT_9", "landsat:correction": "L1TP", "landsat:product_id": None},
        {f"b{n}": asset(f"{n}.tif", **{"eo:bands": [{"name": f"B{n}"}]}) for n in range(1, 12)},
    ),
}


def paths(value, path=()):
    """Every place of a JSON value."""
    yield path
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    for key, inner in pairs:
        yield from paths(inner, (*path, key))


def damaged(item, path, what):
    """A copy in which the value at a path is replaced, or removed for ``...``."""
    made = json.loads(json.dumps(item))
    if not path:
        return made if what is ... else what
    node = made
    for key in path[:-1]:
        if not (isinstance(node, (dict, list)) and (key in node if isinstance(node, dict) else key < len(node))):
            return made
        node = node[key]
    if not isinstance(node, (dict, list)) or (isinstance(node, list) and path[-1] >= len(node)):
        return made
    if what is ...:
        node.pop(path[-1], None) if isinstance(node, dict) else node.pop(path[-1])
    else:
        node[path[-1]] = copy.deepcopy(what)
    return made


ODD = [
    ..., None, True, 0, -1, 1e308, float("nan"), float("inf"), 10**400, "", " ", "x", "a\nb", "\x00", "\ud800",
    "9999-12-31T23:59:59-23:00", "0001-01-01T00:00:00+23:00", "file:///etc/passwd", "http://[x", "\u2028", "é" * 5000,
    f"https://u:{CANARY}@h/x{SECRET}", f"x.tif{SECRET}", f"/x{SECRET}", [], {}, [None], [[]], [{}], {"": None},
    {"name": 5}, [{"name": ["B02"]}], [{"offset": {}}], ["B02", {}], {"href": 3}, {"s3": "x"}, [{"unit": []}],
    {"type": "Polygon", "coordinates": "x"}, {"type": "GeometryCollection", "geometries": [{"type": "Point"}]},
    [1, 2, 3], [1, 2, 3, "x"], [10**400] * 4, datetime.max.replace(tzinfo=WEST), datetime(1, 1, 1),  # noqa: DTZ001
]  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
# Not every vertex and not every band: they are read alike.
ALIKE = re.compile(r"coordinates \d+ [1-9]|bbox [1-9]|proj:transform [1-9]|assets (B0[23]|B12|B8A|vh|b[2-9]|b1\d)")
EVERY = [
    (sensor, path)
    for sensor in SENSORS
    for path in paths(WHOLE[sensor])
    if not ALIKE.search(" ".join(str(key) for key in path))
]


BASES = ("https://archive.example/items/x", "/data/items.json", None)


def check(item, sensor, bases=BASES):
    """The property: a storable Scene, or a purposeful and harmless refusal."""
    for base in bases:
        try:
            made = scene_from_item(item, base=base, sign=False, sensor=sensor)
        except EarthpressError as err:
            told = str(err)
            assert told.isprintable()
            assert len(told) < 2000
        else:
            assert isinstance(made, Scene)
            assert SAFE_ID.fullmatch(made.id)
            assert all(unsigned(a.href) == a.href for a in made.assets if "://" in a.href)
            told = canonical_json([made.id, made.collection, made.footprint, *(a.href for a in made.assets)])
            told += f"{made.version}{made.acquisition}{made.orbit}{made.quantity}"
            assert told.isprintable()
        assert CANARY not in told
    for read in (acquired_of, footprint_of) if isinstance(item, dict) else ():
        assert refusal(read, item).isprintable()


def refusal(read, item):
    try:
        read(item)
    except EarthpressError as err:
        return str(err)
    return ""


@pytest.mark.parametrize("sensor", SENSORS)
def test_the_undamaged_item_becomes_a_scene(sensor):
    scene = scene_from_item(WHOLE[sensor], base=None, sign=False, sensor=sensor)
    assert scene.sensor == sensor
    check(WHOLE[sensor], sensor)


@pytest.mark.parametrize("what", ODD, ids=lambda what: repr(what)[:30].encode("ascii", "replace").decode())
def test_one_damage_anywhere_is_survived(what):
    for number, (sensor, path) in enumerate(EVERY):
        check(damaged(WHOLE[sensor], path, what), sensor, [BASES[number % 3]])


@given(
    sensor=st.sampled_from(SENSORS),
    damages=st.lists(st.tuples(st.integers(0, 10**6), st.sampled_from(ODD) | JSON), min_size=1, max_size=4),
)
@example(sensor="sentinel2_l2a", damages=[(0, ...)])
@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
def test_several_damages_are_survived(sensor, damages):
    item = WHOLE[sensor]
    for number, what in damages:
        found = list(paths(item)) if isinstance(item, dict) else [()]
        # Damages stay JSON, so that the next one can go into what this one left; dates come alone above.
        item = item if isinstance(what, datetime) else damaged(item, found[number % len(found)], what)
    check(item, sensor)


@given(href=st.text(max_size=60) | st.from_regex(r"(https?|s3|file|/vsi\w*)?:?/{0,3}[\w.@:/?&=%#\[\]-]{0,40}"))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_any_text_as_an_href_is_resolved_or_refused(href):
    item = damaged(WHOLE["sentinel1"], ("assets", "vv", "href"), href)
    del item["assets"]["vv"]["alternate"]
    check(item, "sentinel1")
