"""The STAC catalogue of outputs: what it says, that what it names is there, and that none of it is a lie."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pystac
import pytest

from pipeline import api
from pipeline.account import ledger
from pipeline.run import catalogue, catalogue_facts, catalogue_sources, ground, local, seam_report
from pipeline.run.publish import publish
from pipeline.run.published import Published
from pipeline.types import Box, PeriodSource, Receipt, Tile, Usage, content_hash
from pipeline.write import geotiff, stac, store
from pipeline.write.commit import Commits
from pipeline.write.stac_fields import CLASSIFICATION, EMBEDDINGS, PROCESSING, PROJECTION, RASTER
from tests.run.sampled import part, request_of, run_request

CLASSES = ((0, "bare soil", "#884400"), (1, "maize", "#ffee00"))
NO_SEAMS = seam_report.Seams(scores=(), anisotropy=None, strips=0, read=1.0)
NORTH = Tile(zone=31, row=-2150, col=200, tile_px=256)
SOUTH = Tile(zone=60, row=900, col=300, tile_px=256)
REMOTE = "https://user:secret@example.org/stac?token=CANARY"


@pytest.fixture(scope="module")
def made(sample, tmp_path_factory):
    """(plan, outcome) of a run with pictures over one tile or two, two periods."""
    output = tmp_path_factory.mktemp("catalogue") / "out"
    settings = request_of(
        sample, output, "inputs.periods=2", "store.true_colour=false", bbox=part(sample.bbox, 0.4, 0.4, 0.5, 0.5)
    )
    return run_request(settings, pictures=True)


@pytest.fixture(scope="module")
def collection(made):
    return pystac.Collection.from_file(made[1].published.stac)


@pytest.fixture(scope="module")
def planned(sample, tmp_path_factory):
    """A plan of which nothing is computed."""
    settings = request_of(
        sample,
        tmp_path_factory.mktemp("planned") / "out",
        "inputs.periods=2",
        bbox=part(sample.bbox, 0.4, 0.4, 0.42, 0.42),
    )
    return api.plan(settings)


def receipt_of(tile, *, status="done", scenes=()):
    return Receipt(
        tile_id=tile.id,
        fingerprint=content_hash(tile.id),
        status=status,
        blocks=((0, 0),),
        objects=(),
        sources=tuple(PeriodSource(cell_id="c", period=0, selected=(name,)) for name in scenes),
        usage=Usage(),
        attempt=1,
        calibration="",
        valid_px=100,
        clipped=0.0,
    )


@pytest.fixture
def pretend(planned, tmp_path):
    """An output whose receipts say that some tiles are committed: (plan, Published)."""

    def build(*receipts, name="out", token_px=1, settings=lambda text: text):
        output = tmp_path / name
        tiles = [Tile.parse(receipt.tile_id, tile_px=256) for receipt in receipts]
        plan = replace(
            planned,
            output=str(output),
            settings=settings(planned.settings),
            grid=replace(planned.grid, tile_px=256, token_px=token_px),
            tasks=tuple(replace(planned.tasks[0], tile=tile) for tile in tiles),
        )
        store.create_store(output / "store.zarr", local.store_spec(plan, heads=()))
        for receipt in receipts:
            Commits(output).commit(receipt)
        (output / "report.html").write_text("report")
        return plan, Published(store=str(output / "store.zarr"), page=str(output / "report.html"), ledger="")

    return build


def written(plan, made):
    """The catalogue of an output as pystac reads it back."""
    content = catalogue.catalog_of(plan, made, NO_SEAMS)
    return pystac.Collection.from_file(stac.write_catalog(Path(plan.output) / "stac", content))


def things(catalog):
    """The collection, its items and the item of the model."""
    (link,) = [link for link in catalog.links if link.rel == "emb:model"]
    return [catalog, *catalog.get_items(), pystac.Item.from_file(link.get_absolute_href())]


def save_map(plan, box, name="crops"):
    path = Path(plan.output) / "maps" / f"{name}_utm{box.zone:02d}_r0_c0.tif"
    path.parent.mkdir(exist_ok=True)
    geotiff.write_cog(
        path,
        np.zeros(box.shape, np.uint8),
        box=box,
        colours=[(value, colour) for value, _, colour in CLASSES],
        class_names=[(value, title) for value, title, _ in CLASSES],
        tags=[(geotiff.CLASSES_TAG, json.dumps(CLASSES)), *ground.provenance(plan, probe="abc123")],
    )
    return path


def valid(thing):
    from pystac.validation import validate_dict

    return bool(validate_dict(thing.to_dict(), extensions=[]))


def test_everything_is_valid_and_everything_it_names_is_there(made, collection):
    for thing in things(collection):
        assert valid(thing)
        hrefs = [link.get_absolute_href() for link in thing.links]
        hrefs += [asset.get_absolute_href() for asset in thing.assets.values()]
        lost = [href for href in hrefs if not href.startswith(("https://", "urn:")) and not Path(href).exists()]
        assert lost == []


def test_the_item_of_the_store_says_where_how_and_of_what(made, collection):
    plan, _ = made
    (item,) = collection.get_items()
    facts = item.properties
    tiles = ground.committed(plan)
    assert set(item.stac_extensions) == {PROJECTION, PROCESSING, EMBEDDINGS}
    assert facts["earthpress:recipe"] == plan.recipe
    assert facts["earthpress:fingerprint"] == content_hash(sorted([t.id, r.fingerprint] for t, r in tiles))
    assert facts["processing:software"]["torch"] == plan.numerics.torch
    assert facts["processing:version"].startswith(facts["processing:software"]["earthpress"])
    assert datetime.fromisoformat(facts["processing:datetime"]) <= datetime.now(UTC)
    assert "Copernicus" in facts["processing:lineage"]
    assert facts["emb:quantization"]["scale"] == list(plan.calibration.scale)
    assert facts["emb:runtime_parameters"]["patch_px"] == plan.grid.patch_px
    assert facts["earthpress:degraded_tiles"] == 0
    own = {key for key in facts if key.startswith("emb:")}
    assert own == {"emb:runtime_parameters", "emb:quantization", "emb:energy"}  # the proposal forbids unknown ones
    assert not [key for asset in item.assets.values() for key in asset.extra_fields if key.startswith("emb:")]
    assert "UNTRAINED" in facts["title"]
    asset = item.assets["embeddings"]
    assert (asset.media_type, asset.roles) == (stac.ZARR, ["data"])
    assert (asset.extra_fields["nodata"], asset.extra_fields["data_type"]) == (-128, "int8")
    (extent,) = store.zones(Path(plan.output) / "store.zarr")
    assert asset.extra_fields["proj:shape"] == list(extent.shape)


def test_energy_holds_what_was_measured_and_no_kilowatt_hours(made, collection):
    plan, _ = made
    (item,) = collection.get_items()
    energy = item.properties["emb:energy"]
    assert energy.keys() == {"device_type", "name", "inference_duration_s"}
    assert energy["device_type"] == "cpu"
    ends = [event for event in ledger.read(plan.output).events if isinstance(event, ledger.AttemptEnd)]
    assert energy["inference_duration_s"] == pytest.approx(sum(end.usage.slot_s for end in ends), abs=1e-3)
    assert energy["inference_duration_s"] > 0


def test_the_instance_of_a_price_table_is_named_and_lost_lines_leave_no_duration(made):
    plan, _ = made
    receipts = [receipt for _, receipt in ground.committed(plan)]
    works = catalogue_facts.works_of(plan, receipts)
    (key,) = works
    named = {key: replace(works[key], lease=replace(works[key].lease, instance="g5.xlarge", device_name="A10G"))}
    found = catalogue_facts.energy(plan, named, receipts)
    assert (found["instance_type"], found["name"]) == ("g5.xlarge", "A10G")
    lost = catalogue_facts.energy(plan, {}, receipts)
    assert lost == {"device_type": "cpu", "name": plan.numerics.device_name}


def test_the_collection_has_what_the_embedding_proposal_requires(made, collection):
    plan, _ = made
    data = collection.to_dict()
    assert EMBEDDINGS in data["stac_extensions"]
    assert (data["emb:type"], data["emb:dimensions"], data["data_type"]) == ("pixel", plan.calibration.bands, "int8")
    assert data["gsd"] == 10
    assert {"emb:model", "emb:source-data", "license"} <= {link["rel"] for link in data["links"]}
    assert "embeddings" in data["item_assets"]
    assert any({"producer", "processor"} & set(provider["roles"]) for provider in data["providers"])
    assert data["summaries"]["emb:dimensions"] == [plan.calibration.bands]
    assert "Copernicus" in data["sci:citation"]
    assert data["title"].startswith("UNTRAINED")


def test_scenes_of_a_local_catalogue_are_listed_without_links(made, collection):
    plan, _ = made
    (item,) = collection.get_items()
    (link,) = [link for link in item.links if link.rel == "emb:source-data"]
    listed = json.loads(Path(link.get_absolute_href()).read_text(encoding="utf-8"))["scenes"]
    used = {name for _, r in ground.committed(plan) for source in r.sources for name in source.selected}
    assert {scene["id"] for scene in listed} == used
    assert len(listed) == len(used) == item.properties["earthpress:source_scenes"] > 0
    assert {scene["href"] for scene in listed} == {""}
    assert not [link for link in item.links if link.rel == "derived_from"]


def test_the_configuration_is_a_file_with_its_hash_and_without_paths(made, collection):
    plan, _ = made
    (item,) = collection.get_items()
    path = Path(item.assets["configuration"].get_absolute_href())
    assert hashlib.sha256(path.read_bytes()).hexdigest() == item.properties["earthpress:configuration_sha256"]
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["output"] == "out"
    assert found["encode"]["patch_px"] == plan.grid.patch_px
    for file in path.parent.iterdir():
        assert str(Path(plan.output).parent) not in file.read_text(encoding="utf-8")


def test_publishing_again_changes_no_byte(made):
    plan, _ = made
    files = sorted((Path(plan.output) / "stac").iterdir())
    before = [(path, path.read_bytes()) for path in files]
    publish(plan.output)
    assert [(path, path.read_bytes()) for path in sorted((Path(plan.output) / "stac").iterdir())] == before


def test_zones_of_both_hemispheres_have_items_of_their_own(pretend):
    plan, looks = pretend(receipt_of(NORTH), receipt_of(SOUTH))
    north, south = written(plan, looks).get_items()
    start = plan.periods[0].start
    assert (north.id, south.id) == (
        f"out-utm31-{start:%Y%m%d}-{plan.periods[-1].end:%Y%m%d}",
        f"out-utm60-{start:%Y%m%d}-{plan.periods[-1].end:%Y%m%d}",
    )
    assert (north.properties["proj:code"], south.properties["proj:code"]) == ("EPSG:32631", "EPSG:32760")
    assert south.assets["embeddings"].extra_fields["proj:code"] == "EPSG:32660"
    assert south.assets["embeddings"].extra_fields["proj:bbox"][3] < 0
    assert north.properties["earthpress:fingerprint"] != south.properties["earthpress:fingerprint"]
    assert south.bbox[3] < 0
    assert "processing:datetime" not in north.properties  # no ledger: nobody knows


def test_a_map_has_an_item_per_file_with_classes_and_what_lies_beside(pretend):
    plan, looks = pretend(receipt_of(NORTH, scenes=("S2A",)), receipt_of(SOUTH, scenes=("S2B",)))
    path = save_map(plan, SOUTH.box)
    path.with_suffix(".qml").write_text("<qgis/>")
    picture = path.with_name("crops_utm60.png")
    picture.write_bytes(b"png")
    catalog = written(plan, replace(looks, maps=(str(path),), pictures=(str(picture),)))
    (item,) = [item for item in catalog.get_items() if "earthpress:map" in item.properties]
    assert valid(item)
    assert {PROJECTION, PROCESSING, RASTER, CLASSIFICATION} == set(item.stac_extensions)
    assert item.id == "out-crops_utm60_r0_c0"
    assert item.properties["proj:code"] == "EPSG:32760"
    assert (item.properties["earthpress:map"], item.properties["earthpress:probe"]) == ("crops", "abc123")
    assert (item.properties["earthpress:tiles"], item.properties["processing:level"]) == (1, "L4")
    assert item.assets.keys() >= {"map", "style", "names", "picture", "report", "configuration"}
    assert [c["name"] for c in item.assets["map"].extra_fields["classification:classes"]] == ["bare_soil", "maize"]
    (above,) = [link for link in item.links if link.rel == "derived_from"]
    assert pystac.Item.from_file(above.get_absolute_href()).properties["proj:code"] == "EPSG:32760"
    assert catalog.summaries.to_dict()["earthpress:map"] == ["crops"]


def test_a_map_that_is_no_more_has_no_item(pretend):
    plan, looks = pretend(receipt_of(NORTH))
    path = save_map(plan, NORTH.box)
    assert len(list(written(plan, replace(looks, maps=(str(path),))).get_items())) == 2
    assert len(list(written(plan, looks).get_items())) == 1
    assert not list((Path(plan.output) / "stac").glob("*crops*"))


def test_a_mosaic_of_all_zones_belongs_to_the_collection(pretend):
    plan, looks = pretend(receipt_of(NORTH))
    path = save_map(plan, NORTH.box).rename(Path(plan.output) / "maps" / "crops_epsg3857.tif")
    catalog = written(plan, replace(looks, mosaics=(str(path),)))
    assert Path(catalog.assets["mosaic-crops_epsg3857"].get_absolute_href()) == path
    assert len(list(catalog.get_items())) == 1


def test_degraded_tiles_are_told(pretend):
    plan, looks = pretend(receipt_of(NORTH, status="degraded"))
    (item,) = written(plan, looks).get_items()
    assert item.properties["earthpress:degraded_tiles"] == 1
    assert "1 of 1 tiles are degraded" in item.properties["processing:lineage"]


def test_a_store_of_tokens_has_pixels_of_its_tokens(pretend):
    plan, looks = pretend(receipt_of(NORTH), token_px=8)
    catalog = written(plan, looks)
    (item,) = catalog.get_items()
    assert catalog.to_dict()["gsd"] == 80
    assert catalog.to_dict()["emb:chip_layout"]["chip_size"] == [8, 8]
    assert (item.properties["gsd"], item.properties["proj:shape"]) == (80, [32, 32])
    assert item.properties["proj:transform"][0] == 80


def in_catalog(spec):
    """Settings of another catalogue."""

    def change(text):
        data = json.loads(text)
        data["inputs"]["catalog"] = spec
        return json.dumps(data)

    return change


def test_scenes_of_an_api_are_linked_once_and_without_secrets(pretend):
    scenes = ("S2A_1", "S2A_1", "S2B 2")
    plan, looks = pretend(receipt_of(NORTH, scenes=scenes), settings=in_catalog(REMOTE))
    catalog = written(plan, looks)
    (item,) = catalog.get_items()
    assert [link.get_href() for link in item.links if link.rel == "derived_from"] == [
        "https://example.org/stac/collections/sentinel-2-l2a/items/S2A_1",
        "https://example.org/stac/collections/sentinel-2-l2a/items/S2B%202",
    ]
    assert [link.get_href() for link in catalog.links if link.rel == "emb:source-data"] == [
        "https://example.org/stac/collections/sentinel-2-l2a"
    ]
    for path in (Path(plan.output) / "stac").iterdir():
        text = path.read_text(encoding="utf-8")
        assert "secret" not in text
        assert "CANARY" not in text


def test_more_scenes_than_a_viewer_would_open_are_in_the_list_only(pretend, monkeypatch):
    monkeypatch.setattr(catalogue_sources, "MAX_LINKS", 2)
    plan, looks = pretend(receipt_of(NORTH, scenes=("a", "b", "c")), settings=in_catalog("planetary-computer"))
    (item,) = written(plan, looks).get_items()
    assert not [link for link in item.links if link.rel == "derived_from"]
    (link,) = [link for link in item.links if link.rel == "emb:source-data"]
    listed = json.loads(Path(link.get_absolute_href()).read_text(encoding="utf-8"))["scenes"]
    assert [scene["id"] for scene in listed] == ["a", "b", "c"]
    assert all(scene["href"].startswith("https://planetarycomputer.microsoft.com/") for scene in listed)


def test_of_two_catalogues_a_scene_is_linked_in_the_one_that_signs_as_it_does(pretend, planned):
    scene = replace(planned.scenes[0], sign=True, collection="sentinel-2-l2a")
    plan, _ = pretend(receipt_of(NORTH, scenes=(scene.id, "unknown")), settings=in_catalog("cdse,planetary-computer"))
    receipts = [receipt for _, receipt in ground.committed(plan)]
    scenes = catalogue_sources.Scenes.of(replace(plan, scenes=(scene,)))
    found = {source.id: source.href for source in scenes.used(receipts)}
    assert found[scene.id].startswith("https://planetarycomputer.microsoft.com/")
    assert found["unknown"] == ""


def test_a_store_elsewhere_is_named_by_its_url(pretend, monkeypatch):
    plan, looks = pretend(receipt_of(NORTH))
    extents = store.zones(looks.store)
    monkeypatch.setattr(store, "zones", lambda place: extents if place.startswith("s3://") else ())
    (item,) = written(plan, replace(looks, store="s3://bucket/data/store.zarr")).get_items()
    assert item.assets["embeddings"].href == "s3://bucket/data/store.zarr/utm31"


def test_the_commit_comes_from_the_environment_first(monkeypatch):
    monkeypatch.setenv(catalogue_facts.COMMIT_VARIABLE, "abc123-dirty")
    assert catalogue_facts.commit() == "abc123-dirty"
    monkeypatch.setenv(catalogue_facts.COMMIT_VARIABLE, "no commit; at all")
    assert catalogue_facts.commit() != "no commit; at all"


def test_without_git_and_without_a_variable_nobody_knows_the_commit(monkeypatch, tmp_path):
    monkeypatch.delenv(catalogue_facts.COMMIT_VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert catalogue_facts.commit() == ""


def test_the_published_settings_hold_no_path_and_no_secret(planned):
    text = json.dumps(
        json.loads(planned.settings)
        | {"aoi": "/home/me/area.gpkg", "model": "~/models/olmo", "maps": [{"name": "a", "head": "heads/a.json"}]}
    )
    found = json.loads(catalogue_facts.configuration(replace(planned, settings=in_catalog(f"cdse,{REMOTE}")(text))))
    assert (found["aoi"], found["model"]) == ("area.gpkg", "olmo")
    assert found["maps"][0]["head"] == "heads/a.json"
    assert found["inputs"]["catalog"] == "cdse,https://example.org/stac"


def test_a_tile_beside_a_map_does_not_count_for_it(pretend):
    beside = replace(NORTH, col=NORTH.col + 1)
    plan, looks = pretend(receipt_of(NORTH), receipt_of(beside))
    box = NORTH.box
    inner = Box(zone=31, res_m=10, row=box.row, col=box.col, height=box.height, width=box.width)
    path = save_map(plan, inner)
    (item,) = [i for i in written(plan, replace(looks, maps=(str(path),))).get_items() if "map" in i.assets]
    assert item.properties["earthpress:tiles"] == 1
