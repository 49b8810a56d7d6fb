"""The front door: names of catalogues, collections of sensors, and catalogues that complete each other."""

from __future__ import annotations

import json
import socket
from dataclasses import replace

import pytest
import shapely
from catalog_items import AREA, PERIODS, START, item

from pipeline.errors import InvalidInputError, TransientError
from pipeline.plan import catalog
from pipeline.plan.fallback import merged
from pipeline.plan.select import Rule, Selector, cell_polygon
from pipeline.types import Cell
from tests.servers.stac import StacServer

TAKE, OTHER_TAKE = "GS2B_20240302T100000_012081_N05.10", "GS2A_20240304T100000_012082_N05.10"
HALF, OTHER_HALF = shapely.box(10, 48, 10.5, 49), shapely.box(10.5, 48, 11, 49)


def granule(name, *, take=TAKE, tile="32UPU", **more):
    return item(name, **{"s2:mgrs_tile": tile, "s2:datatake_id": take} | more)


def radar(name, *, collection="sentinel-1-rtc"):
    made = item(name, collection=collection, **{"sar:instrument_mode": "IW", "sar:product_type": "GRD"})
    made["assets"] = {pol: {"href": f"https://data.example/{name}/{pol}.tif"} for pol in ("vv", "vh")}
    return made | {"properties": made["properties"] | {"platform": "sentinel-1a"}}


def find(*servers, sensor="sentinel2_l2a", collection="auto", note=None, periods=PERIODS):
    spec = ",".join(s.url if isinstance(s, StacServer) else str(s) for s in servers)
    return catalog.find(spec, sensor=sensor, collection=collection, geometry=AREA, periods=periods, note=note)


def ids(*servers, **more):
    return [s.id for s in find(*servers, **more)]


@pytest.fixture
def nobody():
    """The address of a port that nobody listens on."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{closed.getsockname()[1]}/v1"


@pytest.fixture
def patient(monkeypatch):
    """No pause between retries."""
    monkeypatch.setattr(catalog.ApiCatalog.__init__, "__kwdefaults__", {"backoff_s": 0.0, "page_items": 250})


# ---- several catalogues


def test_what_the_first_catalogue_lacks_comes_from_the_second():
    with StacServer([granule("a")]) as one, StacServer([granule("b", take=OTHER_TAKE)]) as other:
        assert ids(one, other) == ["a", "b"]
        assert ids(one, other) == ids(other, one)


def test_the_same_product_of_the_second_catalogue_becomes_an_alternate_of_the_first_ones_scene():
    with StacServer([granule("a")]) as one, StacServer([granule("b")]) as other:
        [scene] = find(one, other)
        [alone] = find(one)
        [second] = find(other)
        assert scene == replace(alone, alternates=(second,))
        [turned] = find(other, one)
        assert turned == replace(second, alternates=(alone,))


def test_alternates_have_the_order_of_their_catalogues_and_none_of_their_own():
    with StacServer([granule("a")]) as one, StacServer([granule("b")]) as two, StacServer([granule("c")]) as three:
        [scene] = find(two, three, one)
    assert (scene.id, [s.id for s in scene.alternates]) == ("b", ["c", "a"])
    assert all(s.alternates == () for s in scene.alternates)


def test_another_baseline_is_another_product():
    newer = granule("b", **{"s2:processing_baseline": "05.11"})
    with StacServer([granule("a")]) as one, StacServer([newer]) as other:
        scenes = find(one, other)
    assert [(s.id, s.alternates) for s in scenes] == [("a", ()), ("b", ())]


def test_scenes_that_do_not_say_what_they_are_are_never_the_same_product():
    with StacServer([item("a")]) as one, StacServer([item("b")]) as other:
        assert [s.alternates for s in find(one, other)] == [(), ()]


def test_scenes_without_a_baseline_are_never_the_same_product():
    with StacServer([granule("a")]) as one, StacServer([granule("b")]) as other:
        ours, theirs = (tuple(replace(s, version="@2024") for s in find(server)) for server in (one, other))
    assert merged([ours, theirs]) == (*ours, *theirs)


def test_a_catalogue_is_not_compared_with_itself():
    with StacServer([granule("a")]) as one:
        [scene] = find(one)
    twins = (scene, replace(scene, id="b"))
    assert merged([twins]) == twins
    assert merged([(), twins]) == twins


def test_halves_of_a_granule_find_their_own_alternates():
    ours = [granule("a1", shape=HALF), granule("a2", shape=OTHER_HALF)]
    theirs = [granule("b2", shape=OTHER_HALF), granule("b1", shape=HALF)]
    with StacServer(ours) as one, StacServer(theirs) as other:
        found = {s.id: [t.id for t in s.alternates] for s in find(one, other)}
    assert found == {"a1": ["b1"], "a2": ["b2"]}


def test_a_half_is_no_alternate_of_the_whole():
    with StacServer([granule("whole")]) as one, StacServer([granule("half", shape=HALF)]) as other:
        assert [(s.id, s.alternates) for s in find(one, other)] == [("half", ()), ("whole", ())]


def test_of_one_id_with_two_meanings_the_first_catalogues_stays():
    newer = granule("a", **{"s2:processing_baseline": "05.11"})
    with StacServer([granule("a")]) as one, StacServer([newer]) as other:
        [first], [second] = find(one, other), find(other, one)
    assert (first.version[:5], first.alternates) == ("05.10", ())
    assert (second.version[:5], second.alternates) == ("05.11", ())


def test_alternates_do_not_change_the_fingerprint_of_candidates():
    zone_cell = Cell(zone=32, row=-261, col=28)
    assert cell_polygon(zone_cell).intersects(shapely.box(10, 48, 11, 49))
    with StacServer([granule("a")]) as one, StacServer([granule("b")]) as other:
        both, alone = find(one, other), find(one)
    rule = Rule(sensor="sentinel2_l2a", composite="scl_first_valid")
    with_alternates = Selector(both).candidates(zone_cell, periods=PERIODS, rule=rule)
    without = Selector(alone).candidates(zone_cell, periods=PERIODS, rule=rule)
    assert both != alone
    assert with_alternates[0].scene_ids == ("a",)
    assert with_alternates == without


def test_a_band_that_only_an_alternate_has_is_part_of_the_fingerprint():
    cell, rule = Cell(zone=32, row=-261, col=28), Rule(sensor="sentinel2_l2a", composite="scl_first_valid")
    with StacServer([granule("a")]) as one, StacServer([granule("b")]) as other:
        [scene] = find(one, other)
    lacking = replace(scene, assets=tuple(a for a in scene.assets if a.band != "B02"))
    prints = {
        Selector([s]).candidates(cell, periods=PERIODS, rule=rule)[0].fingerprint
        for s in (lacking, replace(lacking, alternates=()))
    }
    assert len(prints) == 2  # the pixels of B02 are there or missing


def test_each_place_keeps_its_own_offset_and_signing():
    old = {"s2:processing_baseline": "02.09"}
    ours, theirs = granule("a", **old), granule("b", **old)
    ours["links"] = [{"rel": "collection", "href": "https://planetarycomputer.microsoft.com/api/stac/v1/x"}]
    with StacServer([ours]) as one, StacServer([theirs]) as other:
        [scene] = find(one, other)
    assert (scene.sign, scene.alternates[0].sign) == (True, False)
    assert (scene.boa_offset, scene.alternates[0].boa_offset) == (1000, 1000)


@pytest.mark.usefixtures("patient")
def test_a_catalogue_that_does_not_answer_is_replaced_with_a_word(nobody):
    told = []
    with StacServer([granule("b")]) as other:
        assert ids(nobody, other, note=told.append) == ["b"]
        assert ids(other, nobody, note=told.append) == ["b"]
    assert len(told) == 2
    assert all("is left out: STAC API" in text and "does not answer" in text for text in told)


@pytest.mark.usefixtures("patient")
def test_without_a_listener_the_word_is_a_warning(nobody, caplog):
    with StacServer([granule("b")]) as other:
        assert ids(nobody, other) == ["b"]
    assert [r.levelname for r in caplog.records if "is left out" in r.message] == ["WARNING"]


@pytest.mark.parametrize("status", [401, 404, 500])
def test_a_catalogue_that_refuses_is_replaced(status):
    with StacServer([], faults={"status": status}) as broken, StacServer([granule("b")]) as other:
        told = []
        assert ids(broken, other, note=told.append) == ["b"]
    assert "hunter2" not in told[0]


def test_a_catalogue_that_breaks_off_half_way_gives_nothing():
    many = [granule(f"a{i}", take=f"GS2B_2024030{i}T100000_012081_N05.10", days=i * 29.0) for i in range(3)]
    with StacServer(many, faults={"next": "http://10.0.0.1/"}, page_cap=1) as broken:
        broken.items.append(granule("a9", days=59))
        with StacServer([granule("b")]) as other:
            assert ids(broken, other, note=[].append) == ["b"]


@pytest.mark.usefixtures("patient")
def test_when_no_catalogue_answers_the_run_may_be_tried_again(nobody):
    with StacServer([], faults={"status": 403}) as broken, pytest.raises(TransientError, match="does not answer"):
        find(broken, nobody, note=[].append)


@pytest.mark.usefixtures("patient")
def test_a_single_catalogue_that_does_not_answer_is_an_error(nobody):
    with pytest.raises(TransientError, match="does not answer"):
        find(nobody)


@pytest.mark.parametrize(
    "wrong", ["planetary-computr", "/no/such/items.json", "s3://bucket/items.json", "https://x/?a"]
)
def test_a_misspelt_catalogue_is_not_passed_over_for_the_next(wrong):
    with StacServer([granule("b")]) as other:
        for specs in ((wrong, other), (other, wrong)):
            with pytest.raises(InvalidInputError, match="catalogue"):
                find(*specs)
        assert other.log == []


@pytest.mark.parametrize("spec", ["", " , "])
def test_no_catalogue_at_all_is_refused(spec):
    with pytest.raises(InvalidInputError, match="no catalogue: inputs.catalog is"):
        find(spec)


# ---- presets


def at(monkeypatch, name, server):
    monkeypatch.setitem(catalog.PRESETS, name, replace(catalog.PRESETS[name], url=server.url))


@pytest.mark.parametrize(
    ("name", "sensor", "collection", "sign"),
    [
        ("planetary-computer", "sentinel2_l2a", "sentinel-2-l2a", True),
        ("planetary-computer", "sentinel1", "sentinel-1-rtc", True),
        ("earth-search", "sentinel2_l2a", "sentinel-2-c1-l2a", False),
        ("cdse", "sentinel2_l2a", "sentinel-2-l2a", False),
    ],
)
def test_a_preset_knows_its_collection_and_signing(monkeypatch, name, sensor, collection, sign):
    made = radar("x") if sensor == "sentinel1" else item("x", collection=collection)
    with StacServer([made, item("y", collection="other")], collections=[collection]) as server:
        at(monkeypatch, name, server)
        for spec in (name, server, f"{server.url}/"):
            scenes = find(spec, sensor=sensor, note=[].append)
            assert [(s.id, s.sensor, s.collection, s.sign) for s in scenes] == [("x", sensor, collection, sign)]
        assert {tuple(s["collections"]) for s in server.searches} == {(collection,)}


@pytest.mark.parametrize(
    ("name", "sensor", "reason"),
    [
        ("planetary-computer", "landsat", r"Level-2 only: .*B8, B9 and B11.*landsatlook\.usgs\.gov/stac-server"),
        ("earth-search", "landsat", "Level-2 only"),
        ("earth-search", "sentinel1", r"GRD only, .*not terrain-corrected; use .*catalog=planetary-computer"),
        ("cdse", "sentinel1", "GRD only"),
        ("cdse", "landsat", r"no collection of landsat is known in catalogue cdse: name one with inputs\.landsat"),
    ],
)
def test_a_preset_without_the_right_product_is_refused_before_it_is_asked(monkeypatch, name, sensor, reason):
    with StacServer([]) as server:
        at(monkeypatch, name, server)
        with pytest.raises(InvalidInputError, match=reason):
            find(name, sensor=sensor)
        assert server.log == []


def test_a_preset_without_the_right_product_is_completed_by_the_next_catalogue(monkeypatch):
    with StacServer([]) as aws, StacServer([radar("x")], collections=["sentinel-1-rtc"]) as other:
        at(monkeypatch, "earth-search", aws)
        told = []
        assert ids("earth-search", other, sensor="sentinel1", note=told.append) == ["x"]
    assert "earth-search is left out" in told[0]


def test_a_collection_of_ones_own_choice_is_asked_for_in_a_preset(monkeypatch):
    with StacServer([item("x", **{"earthsearch:boa_offset_applied": True})]) as server:
        at(monkeypatch, "earth-search", server)
        [scene] = find("earth-search", collection="sentinel-2-l2a")
    assert (scene.collection, scene.check_offset) == ("sentinel-2-l2a", True)


def test_cdse_says_what_reading_needs(monkeypatch):
    told = []
    with StacServer([item("x")]) as server:
        at(monkeypatch, "cdse", server)
        find("cdse", note=told.append)
    assert "eodata" in told[0]
    assert "AWS_ACCESS_KEY_ID" in told[0]


def test_other_apis_are_asked_for_the_usual_collections():
    usual = {"sentinel2_l2a": "sentinel-2-l2a", "sentinel1": "sentinel-1-rtc", "landsat": "landsat-c2l1"}
    with StacServer([], collections=usual.values()) as server:
        for sensor, collection in usual.items():
            assert find(server, sensor=sensor) == ()
            assert server.searches[-1]["collections"] == [collection]


def test_the_presets_are_what_their_providers_say():
    assert {name: preset.url for name, preset in catalog.PRESETS.items()} == {
        "planetary-computer": "https://planetarycomputer.microsoft.com/api/stac/v1",
        "earth-search": "https://earth-search.aws.element84.com/v1",
        "cdse": "https://stac.dataspace.copernicus.eu/v1",
    }


# ---- files


def write(folder, items, name="items.json"):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    return folder / name


def test_the_only_collection_of_a_file_that_fits_the_sensor_is_taken(tmp_path):
    mixed = [item("s2", collection="sentinel-2-mine"), radar("s1"), item("l", collection="landsat-c2l1")]
    assert ids(write(tmp_path, mixed)) == ["s2"]
    assert ids(write(tmp_path, mixed), sensor="sentinel1") == ["s1"]


def test_the_only_collection_of_a_file_is_taken_whatever_its_name(tmp_path):
    assert ids(write(tmp_path, [item("s2", collection="field campaign")])) == ["s2"]


def test_the_usual_collection_of_a_file_is_taken_before_others(tmp_path):
    assert ids(write(tmp_path, [item("a"), item("b", collection="sentinel-2-c1-l2a")])) == ["a"]


@pytest.mark.parametrize(
    "collections", [("sentinel-2-a", "sentinel-2-b"), ("mine", "yours"), ("sentinel-1-rtc",), ("landsat-c2l1", "mine")]
)
def test_a_file_whose_collections_do_not_tell_is_refused_with_the_setting(tmp_path, collections):
    path = write(tmp_path, [item(f"i{n}", collection=name) for n, name in enumerate(collections)])
    with pytest.raises(InvalidInputError, match=r"holds the collections .*inputs\.sentinel2\.collection"):
        find(path)


def test_a_file_completes_an_api(tmp_path):
    local = granule("copy")
    for asset in local["assets"].values():
        asset["href"] = "./b.tif"
    with StacServer([granule("a")]) as server:
        [scene] = find(server, write(tmp_path, [local]))
    assert scene.alternates[0].href("B02").href == str(tmp_path / "b.tif")


def test_a_path_may_hold_a_comma(tmp_path):
    path = write(tmp_path / "north, south", [item("a")])
    assert ids(path) == ["a"]
    assert catalog.is_local(str(path))


@pytest.mark.parametrize(
    ("spec", "local"),
    [
        ("planetary-computer", False),
        ("https://a.example/v1,earth-search", False),
        ("planetary-computer,/data/items.json", True),
        ("file:///data/items.json", True),
    ],
)
def test_only_files_are_local(spec, local):
    assert catalog.is_local(spec) == local


def test_the_wrong_product_is_refused_with_its_reason(tmp_path):
    ground = [radar("S1A_IW_GRDH_1SDV_20240302T053000_20240302T053025_052800_066400", collection="sentinel-1-grd")]
    path = write(tmp_path, ground)
    with pytest.raises(InvalidInputError, match="neither terrain-corrected nor geocoded"):
        find(path, sensor="sentinel1")


def test_periods_are_half_open_for_files_too(tmp_path):
    path = write(tmp_path, [item("first", days=0), item("between", days=30), item("end", days=90)])
    assert [ids(path, periods=(p,)) for p in PERIODS] == [["first"], ["between"], []]
    assert PERIODS[0].start == START
