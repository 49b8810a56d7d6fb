"""Maps as files of a run over a zone border: complete, up to date, made once, whole whenever the process dies."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import rasterio
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.errors import InvalidInputError, OutputError
from pipeline.maps import heads
from pipeline.maps.probe import Probe
from pipeline.maps.ridge import Regressor
from pipeline.plan.planner import load_plan
from pipeline.run import class_maps, ground
from pipeline.run.finalise import RECEIPT, bring, finalise
from pipeline.run.map_layers import BANDS
from pipeline.run.publish import publish
from pipeline.write import areas, geotiff, qml
from tests.run.sampled import request_of, run_request
from tests.run.test_zones import two_granules

PROJECT = Path(__file__).resolve().parents[2]
LAT = -30.0
NAMES = ("bare soil", "maize & more", "eau é")
COLOURS = ("#884400", "#ffee00", "#0000ff")


def owner(plan):
    card = plan.model
    return {
        "calibration": plan.calibration.hash, "model_sha256": card.sha256, "model_name": card.name,
        "trained": False, "patch_px": plan.grid.patch_px, "created": "2026-01-01T00:00:00+00:00", "report": "{}",
    }  # fmt: skip


def probe_of(plan, *, seed=0):
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(len(NAMES), plan.calibration.bands))
    return Probe(weights=weights, bias=np.zeros(len(NAMES)), names=NAMES, colours=COLOURS, **owner(plan))


def regressor_of(plan):
    weights = np.random.default_rng(1).normal(size=plan.calibration.bands)
    return Regressor(weights=weights, bias=3.0, name="height", units="m", low=-2.0, high=8.0, **owner(plan))


def keep(output, name, head, *, bands=()):
    """What ``earthpress map`` leaves beside the files of a map."""
    (output / "maps").mkdir(exist_ok=True)
    heads.keep(head, str(output / "maps" / f"{name}{class_maps.PROBE_SUFFIX}"), bands=bands)


@pytest.fixture(scope="module")
def mapped(sample, tmp_path_factory):
    """The output of a run over the border of zones 31 and 32 in the south, with a map of classes and one of numbers."""
    folder = tmp_path_factory.mktemp("finalise")
    settings = request_of(
        sample, folder / "out", bbox=(5.996, LAT - 0.003, 6.004, LAT + 0.003), end="2024-05-01",
        inputs={"catalog": str(two_granules(folder / "scenes", LAT))},
    )  # fmt: skip
    plan, _ = run_request(settings)
    keep(folder / "out", "crops", probe_of(plan), bands=BANDS)
    keep(folder / "out", "height", regressor_of(plan))
    publish(plan.output)
    return folder / "out"


@pytest.fixture
def out(mapped, tmp_path):
    """A copy that a test may change."""
    return Path(shutil.copytree(mapped, tmp_path / "out"))


def digest(folder, pattern="*"):
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted((folder / "maps").glob(pattern))
    }


def opened(path):
    with rasterio.open(path) as found:
        return found.read(), found.crs.to_epsg(), found.transform


# --- what there is ----------------------------------------------------------------------------------------------------


def test_every_file_that_the_issue_names_lies_in_the_folder(mapped):
    names = {file.name for file in (mapped / "maps").iterdir() if ".tif" not in file.name}
    per_zone = {
        f"{stem}_utm{zone}{end}"
        for zone in (31, 32)
        for stem, ends in (("crops", ("_all.vrt", "_all.qml", ".png")), ("height", ("_all.vrt", "_all.qml", ".png")))
        for end in ends
    }
    assert per_zone | {"crops.confidence_utm31.png", "crops.areas.json", "crops.areas.csv"} <= names
    for cog in (mapped / "maps").glob("*.tif"):
        assert qml.style_path(cog).is_file()
    assert not list((mapped / "maps").glob("*.tmp"))
    assert not list((mapped / "maps").glob(".*"))


def test_every_file_is_a_strictly_valid_cog_in_the_southern_plane(mapped):
    cogeo = pytest.importorskip("rio_cogeo.cogeo")
    cogs = sorted((mapped / "maps").glob("*_r*_c*.tif"))
    assert len(cogs) >= 4
    for cog in cogs:
        assert cogeo.cog_validate(cog, strict=True) == (True, [], [])
        with rasterio.open(cog) as found:
            assert found.crs.to_epsg() in (32731, 32732)


def test_a_virtual_raster_has_the_pixels_and_bands_of_its_files(mapped):
    for zone in (31, 32):
        whole, epsg, transform = opened(mapped / "maps" / f"crops_utm{zone}_all.vrt")
        (cog,) = (mapped / "maps").glob(f"crops_utm{zone}_r*.tif")
        pixels, *place = opened(cog)
        assert place == [epsg, transform]
        np.testing.assert_array_equal(whole, pixels)
        assert geotiff.layers(mapped / "maps" / f"crops_utm{zone}_all.vrt") == ("", "confidence", "p0", "p1", "p2")


def test_bands_are_per_cents_that_are_known_where_the_class_is(mapped):
    classes, confidence, *shares = opened(mapped / "maps" / "crops_utm31_all.vrt")[0]
    known = classes < 255
    assert known.any()
    assert not known.all()
    for band in (confidence, *shares):
        np.testing.assert_array_equal(band < 255, known)
    shares = np.stack(shares)[:, known].astype(int)
    assert np.abs(shares.sum(axis=0) - 100).max() <= 2
    assert (np.take_along_axis(shares, classes[known][None], 0)[0] >= shares.max(axis=0) - 1).all()


def test_numbers_have_units_a_range_and_a_ramp_of_colours(mapped):
    (cog,) = (mapped / "maps").glob("height_utm32_r*.tif")
    with rasterio.open(cog) as found:
        assert (found.dtypes[0], found.units[0]) == ("float32", "m")
        assert np.isfinite(found.read(1)).any()
    items = [float(i.get("value")) for i in ET.parse(qml.style_path(cog)).iter("item")]
    assert (items[0], items[-1]) == (-2.0, 8.0)


def test_styles_name_the_classes(mapped):
    (cog,) = (mapped / "maps").glob("crops_utm31_r*.tif")
    entries = [(e.get("label"), e.get("color")) for e in ET.parse(qml.style_path(cog)).iter("paletteEntry")]
    assert entries == list(zip(NAMES, COLOURS, strict=True))


def test_areas_are_those_of_the_pixels_and_stand_in_the_report(mapped):
    found = areas.read_areas(mapped / "maps" / "crops.areas.json")
    pixels = [opened(mapped / "maps" / f"crops_utm{zone}_all.vrt")[0][0] for zone in (31, 32)]
    for value in range(3):
        (every,) = (a for a in found if (a.zone, a.value) == (0, value))
        assert every.pixels == sum((classes == value).sum() for classes in pixels)
        assert every.km2 == pytest.approx(every.pixels * 1e-4, rel=3e-3)
    (table,) = class_maps.area_tables(bring(load_plan(str(mapped))).of("areas"))
    assert table.title == "Areas of map crops"
    assert [row[0] for row in table.rows] == list(NAMES)
    assert "31, 32" in table.note


def test_groups_lie_on_the_lattice_and_do_not_overlap(out, monkeypatch):
    monkeypatch.setattr(ground, "GROUP_PX", 256)
    plan = load_plan(str(out))
    whole = {zone: opened(out / "maps" / f"crops_utm{zone}_all.vrt")[0] for zone in (31, 32)}
    shutil.rmtree(out / "maps")
    (out / RECEIPT).unlink()
    groups = list(ground.groups(plan))
    assert len(groups) >= 4
    for k, box in enumerate(groups):
        assert all(edge % 256 == 0 for edge in (box.row, box.col, box.row_stop, box.col_stop))
        assert all(box.zone != other.zone or box.intersect(other) is None for other in groups[k + 1 :])
    keep(out, "crops", probe_of(plan), bands=BANDS)
    cogs = bring(plan).of("cogs")
    assert len(cogs) == len(groups)
    for path in cogs:
        with rasterio.open(path) as found:
            assert f"_r{round((10_000_000 - found.transform.f) / 2560)}_" in path
            assert f"_c{round(found.transform.c / 2560)}." in path
    for zone, pixels in whole.items():
        np.testing.assert_array_equal(opened(out / "maps" / f"crops_utm{zone}_all.vrt")[0], pixels)


# --- once -------------------------------------------------------------------------------------------------------------


def test_a_second_call_writes_nothing_and_says_so(out):
    before = {file: file.stat().st_mtime_ns for file in (out / "maps").iterdir()}
    made = finalise(str(out))
    assert made.written == ()
    assert made.lines()[-1] == "nothing has changed: no file was written"
    assert {file: file.stat().st_mtime_ns for file in (out / "maps").iterdir()} == before


def test_a_report_needs_no_head_once_the_maps_are_made(out):
    (out / "maps" / "crops.probe.json").write_text("{}")
    assert bring(load_plan(str(out))).of("virtuals")
    with pytest.raises(InvalidInputError, match="not a probe file"):
        finalise(str(out))
    (out / "maps" / "crops_utm31_all.vrt").unlink()
    with pytest.raises(InvalidInputError, match="not a probe file"):
        bring(load_plan(str(out)))


def test_what_was_lost_or_changed_is_made_again_byte_for_byte(out):
    before = digest(out)
    (out / "maps" / "crops_utm31_all.vrt").unlink()
    (cog,) = (out / "maps").glob("height_utm31_r*.tif")
    cog.write_bytes(cog.read_bytes()[:-1] + b"\0")
    made = finalise(str(out))
    assert {Path(path).name.split("_")[0].split(".")[0] for path in made.written} == {"crops", "height"}
    assert digest(out) == before


def test_the_receipt_holds_the_sha256_of_every_file(mapped):
    record = json.loads((mapped / RECEIPT).read_text())
    for made in record["maps"].values():
        for name, seen in made["files"].items():
            assert seen["sha256"] == hashlib.sha256((mapped / name).read_bytes()).hexdigest()


def test_only_the_named_map_is_made(out):
    for file in (out / "maps").glob("*.vrt"):
        file.unlink()
    finalise(str(out), only="height")
    assert sorted(file.name for file in (out / "maps").glob("*.vrt")) == [
        "height_utm31_all.vrt",
        "height_utm32_all.vrt",
    ]


def test_files_that_a_map_no_longer_has_disappear(out):
    record = json.loads((out / RECEIPT).read_text())
    (out / "maps" / "crops_utm31_r0_c99.tif").write_bytes(b"old")
    record["maps"]["crops"]["files"]["maps/crops_utm31_r0_c99.tif"] = {"sha256": "", "bytes": 3}
    record["maps"]["crops"]["state"] = "older"
    (out / RECEIPT).write_text(json.dumps(record))
    bring(load_plan(str(out)))
    assert not (out / "maps" / "crops_utm31_r0_c99.tif").exists()


KILLING = """
import hashlib, json, os, shutil, signal, sys
from pathlib import Path
from pipeline.run.finalise import RECEIPT, finalise
root = Path(sys.argv[1])

def in_child(step):
    child = os.fork()
    if child == 0:
        def at(name):
            if name == step:
                os.kill(os.getpid(), signal.SIGKILL)
        try:
            finalise(str(root), at=at)
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1]

def fresh():
    for file in (root / "maps").iterdir():
        if not file.name.endswith(".probe.json"):
            shutil.rmtree(file) if file.is_dir() else file.unlink()
    (root / RECEIPT).unlink(missing_ok=True)

def held():
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted((root / "maps").glob("[!.]*"))}

fresh()
for step in sys.argv[2:]:
    print(json.dumps({"step": step, "killed": in_child(step), "seen": held()}))
ended = in_child(None)
left = [f.name for f in (root / "maps").glob(".*") if f.is_dir()]
print(json.dumps({"ended": ended, "seen": held(), "left": left}))
"""
STEPS = ("filled", "written", "names", "placed", "virtual", "temp", "areas", "pictures", "made")


def test_a_process_that_is_killed_leaves_whole_files_and_the_next_one_the_same(out):
    for file in (out / "maps").glob("height*"):
        file.unlink()  # one map has every step
    wanted = digest(out)
    ended = subprocess.run(
        [sys.executable, "-c", KILLING, str(out), *STEPS],
        capture_output=True, text=True, timeout=300, cwd=PROJECT, check=True,
    )  # fmt: skip
    *found, last = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [one["step"] for one in found] == list(STEPS)
    for one in found:
        assert one["killed"] == signal.SIGKILL, one["step"]
        assert one["seen"].items() <= wanted.items(), one["step"]
        if one["step"] in ("filled", "written", "names"):
            assert not [name for name in one["seen"] if name.endswith(".tif")], one["step"]
    assert last == {"ended": 0, "seen": wanted, "left": []}


# --- mosaics ----------------------------------------------------------------------------------------------------------


def test_a_mosaic_of_all_zones_is_made_once_and_kept_up_to_date(out, mapped):
    made = finalise(str(out), crs="auto", only="crops", resolution_m=20)
    (mosaic,) = made.mosaics
    assert (mosaic.crs, Path(mosaic.path).name) == ("EPSG:4326", "crops_epsg4326_20m.tif")
    assert Path(mosaic.style).is_file()
    with rasterio.open(mosaic.path) as found:
        assert (found.crs.to_epsg(), found.count, found.nodata) == (4326, 5, 255)
        known = (found.read(1) < 255).sum() * 400
    area = sum(a.km2 for a in areas.read_areas(out / "maps" / "crops.areas.json") if a.zone == 0)
    assert known / 1e6 == pytest.approx(area * np.cos(np.radians(LAT)) ** -1, rel=0.05)
    assert finalise(str(out), crs="EPSG:4326", only="crops", resolution_m=20).written == ()
    plan = load_plan(str(out))
    assert bring(plan).mosaics == (mosaic,)
    keep(out, "crops", probe_of(plan, seed=5), bands=BANDS)
    later = bring(plan)
    assert (later.mosaics, later.stale) == ((), (mosaic.path,))
    old = digest(out, "crops_epsg4326_20m.tif")
    again = finalise(str(out))
    assert again.mosaics == (mosaic,)
    assert digest(out, "crops_epsg4326_20m.tif") != old


def test_the_command_lets_the_catalogue_name_a_mosaic_and_then_changes_nothing(out):
    arguments = ["finalise", str(out), "--map", "crops", "--mosaic", "auto", "--resolution", "20"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert "mosaic-crops_epsg4326_20m" in json.loads((out / "stac" / "collection.json").read_text())["assets"]
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*") if file.is_file()}
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*") if file.is_file()} == before


def test_the_report_shows_no_areas_of_a_map_that_is_no_more(out):
    (out / "maps" / "crops.probe.json").unlink()
    assert publish(str(out)).areas == ()
    assert "Areas of map crops" not in (out / "report.html").read_text()
    left = finalise(str(out)).left
    assert left
    assert all("crops_utm" in path for path in left)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"crs": "EPSG:31370"}, "the map lies elsewhere"),
        ({"crs": "utm"}, "neither 'auto' nor"),
        ({"only": "corn"}, "no map 'corn'; it has crops, height"),
        ({"resolution_m": 20.0}, "belongs to a mosaic"),
        ({"crs": "auto", "resolution_m": -1.0}, "must be positive"),
    ],
)
def test_what_makes_no_sense_is_refused(mapped, options, text):
    with pytest.raises(InvalidInputError, match=text):
        finalise(str(mapped), **options)


def test_an_output_without_tiles_is_refused(out):
    shutil.rmtree(out / "receipts")
    with pytest.raises(OutputError, match="no committed tile"):
        finalise(str(out))


def test_the_command_says_where_things_are(mapped):
    shown = CliRunner().invoke(app, ["finalise", str(mapped)])
    assert shown.exit_code == 0, shown.output
    assert "crops_utm31_all.vrt" in shown.output
    assert "nothing has changed" in shown.output
    answer = CliRunner().invoke(app, ["finalise", str(mapped), "--map", "height", "--json"])
    assert set(json.loads(answer.stdout)["maps"]) == {"crops", "height"}
