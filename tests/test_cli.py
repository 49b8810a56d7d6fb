"""The command line: every wrong input gets one clear line and the right exit code, every command works as JSON."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

FAST = [
    "encode.patch_px=8",
    "encode.window_px=64",
    "encode.overlap_px=16",
    "store.tile_px=256",
    "encode.attention=sdpa",
]
MODEL = "random:v1.2-toy:7"


def options(sample, place, /, **changed):
    west, south, east, north = sample.bbox
    mid_x, mid_y = (west + east) / 2, (south + north) / 2
    base = {
        "bbox": f"{mid_x},{mid_y},{mid_x + 0.004},{mid_y + 0.004}",
        "start": "2024-04-01",
        "end": "2024-05-31",
        "model": MODEL,
        "output": place,
        "catalog": sample.catalog,
    } | changed
    args = [part for key, value in base.items() if value is not None for part in (f"--{key}", value)]
    return args + [part for text in FAST for part in ("--set", text)]


TOMORROW = (datetime.now(UTC) + timedelta(days=40)).date().isoformat()
LATER = (datetime.now(UTC) + timedelta(days=60)).date().isoformat()
BAD = [
    ({"bbox": "1,2,3"}, 2, "four numbers"),
    ({"bbox": "10,47,9,48"}, 2, "west"),
    ({"bbox": "9,48,10,47"}, 2, "south"),
    ({"bbox": "9,84.5,10,85"}, 2, "84"),
    ({"bbox": "9,-82,10,-81"}, 2, "80"),
    ({"bbox": None, "aoi": "nowhere.gpkg"}, 2, "nowhere.gpkg"),
    ({"aoi": "also.gpkg"}, 2, "area once"),
    ({"bbox": None}, 2, "area once"),
    ({"start": "2024-06-01"}, 2, "not after start"),
    ({"start": TOMORROW, "end": LATER}, 2, "future"),
    ({"start": "2022-01-01"}, 2, "at most 12"),
    ({"start": "2023-04-01", "end": "2023-05-01"}, 65, "no scene"),
    ({"bbox": "-60,10,-59.99,10.01"}, 65, "no scene"),
    ({"start": "yesterday"}, 78, "start"),
    ({"model": "nowhere"}, 78, "nowhere"),
    ({"model": "random:v9-huge:0"}, 78, "random"),
    ({"model": None}, 78, "no model"),
    ({"output": None}, 78, "no output"),
    ({"set": "encode.pach_px=4"}, 78, "did you mean 'encode.patch_px'"),
    ({"set": "encode.window_px=60"}, 78, "multiple of encode.patch_px"),
    ({"set": "encode.overlap_px=64"}, 78, "smaller than encode.window_px"),
    ({"set": "encode.device=cuda"}, 78, "CUDA"),
    ({"set": "account.instance=g5.xlage"}, 78, "g5.xlarge"),
    ({"config": "none.yaml"}, 78, "does not exist"),
    ({"catalog": "none.json"}, 2, "none.json"),
]


@pytest.mark.parametrize(("changed", "code", "text"), BAD, ids=[f"{next(iter(c))}-{t}" for c, _, t in BAD])
def test_bad_input_gets_one_clear_line_and_writes_nothing(sample, earthpress, tmp_path, changed, code, text):
    args = options(sample, tmp_path / "out", **{k: v for k, v in changed.items() if k != "set"})
    if "set" in changed:
        args += ["--set", changed["set"]]
    got, out, err = earthpress("plan", *args)
    assert (got, out) == (code, "")
    assert "error:" in err
    assert text in err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("weights", [b"", b"PK\x03\x04 cut short", b"not a checkpoint at all"])
def test_damaged_weights_are_named(sample, earthpress, tmp_path, weights):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "weights.pth").write_bytes(weights)
    code, _, err = earthpress("plan", *options(sample, tmp_path / "out", model=folder))
    assert code == 78
    assert "model" in err
    assert not (tmp_path / "out").exists()


def test_a_catalogue_url_with_a_secret_is_refused_without_repeating_it(sample, earthpress, tmp_path):
    for url in ("https://user:CANARY@example.org/stac", "https://example.org/stac?key=CANARY"):
        code, out, err = earthpress("plan", *options(sample, tmp_path / "out", catalog=url))
        assert code == 2
        assert "CANARY" not in out + err
        assert not (tmp_path / "out").exists()


def geojson(path, ring, crs=None):
    feature = {
        "type": "Feature",
        "properties": {},
        "geometry": {"type": "Polygon", "coordinates": [ring] if ring else []},
    }
    data = {"type": "FeatureCollection", "features": [feature]}
    if crs:
        data["crs"] = {"type": "name", "properties": {"name": crs}}
    path.write_text(json.dumps(data))
    return path


def test_a_self_intersecting_area_says_where(sample, earthpress, tmp_path):
    bow = geojson(tmp_path / "a.geojson", [[9, 49], [9.1, 49.1], [9.1, 49], [9, 49.1], [9, 49]])
    code, _, err = earthpress("plan", *options(sample, tmp_path / "out", bbox=None, aoi=bow))
    assert code == 2
    assert "9.05" in err


def test_an_area_in_another_crs_is_the_same_area(sample, earthpress, tmp_path):
    import geopandas as gpd
    import shapely

    west, south, east, north = sample.bbox
    box = gpd.GeoDataFrame(geometry=[shapely.box(west, south, (west + east) / 2, (south + north) / 2)], crs=4326)
    box.to_crs(3857).to_file(tmp_path / "mercator.gpkg")
    box.to_parquet(tmp_path / "lonlat.parquet")
    plans = []
    for name in ("mercator.gpkg", "lonlat.parquet"):
        args = options(sample, tmp_path / name.split(".")[0], bbox=None, aoi=tmp_path / name)
        code, out, _ = earthpress("plan", *args, "--json")
        assert code == 0
        plans.append(json.loads(out))
    assert [t["fingerprint"] for t in plans[0]["tiles"]] == [t["fingerprint"] for t in plans[1]["tiles"]]


@pytest.fixture(scope="module")
def finished(sample, tmp_path_factory):
    """Folder of a small finished run."""
    from pipeline import api
    from pipeline.config import load

    folder = tmp_path_factory.mktemp("finished") / "out"
    args = options(sample, folder)
    pairs = dict(zip(args[::2], args[1::2], strict=True))
    settings = load(
        None,
        overrides=[*FAST, f"inputs.catalog={json.dumps(str(sample.catalog))}"],
        values={
            "bbox": [float(x) for x in pairs["--bbox"].split(",")],
            "start": "2024-04-01",
            "end": "2024-05-31",
            "model": MODEL,
            "output": str(folder),
        },
    )
    api.run(api.plan(settings))
    return folder


def test_plan_prints_the_price_and_spends_nothing(sample, earthpress, tmp_path):
    code, out, _ = earthpress("plan", *options(sample, tmp_path / "out"), "--set", "account.instance=g5.xlarge")
    assert code == 0
    assert "USD" in out
    assert "peak memory" in out
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["plan"]


def test_a_plan_without_a_price_says_unknown_and_never_zero(sample, earthpress, tmp_path):
    code, out, _ = earthpress("plan", *options(sample, tmp_path / "out"), "--json")
    data = json.loads(out)
    assert code == 0
    assert data["estimate"]["usd"] is None
    assert data["estimate"]["device_s"] > 0
    assert all(len(t["fingerprint"]) == 32 for t in data["tiles"])


def test_no_token_is_ever_written_to_a_plan(sample, earthpress, tmp_path):
    items = json.loads(sample.catalog.read_text())
    for item in items["features"]:
        for asset in item["assets"].values():
            asset["href"] = f"https://account.blob.core.windows.net/c/{asset['href']}?sig=CANARY&se=2030"
    (tmp_path / "signed.json").write_text(json.dumps(items))
    code, _, _ = earthpress("plan", *options(sample, tmp_path / "out", catalog=tmp_path / "signed.json"))
    assert code == 0
    assert not any("CANARY" in p.read_text() for p in (tmp_path / "out").rglob("*") if p.is_file())


def test_run_in_a_folder_with_another_plan_is_refused(sample, earthpress, finished):
    code, _, err = earthpress("run", *options(sample, finished, model="random:v1.2-toy:9"))
    assert code == 73
    assert "another plan" in err


def test_running_a_finished_plan_says_that_there_is_nothing_to_do(earthpress, finished):
    code, out, _ = earthpress("run", finished)
    assert code == 0
    assert "nothing to do" in out


@pytest.mark.parametrize("command", ["status", "report", "preview"])
def test_commands_on_a_finished_run_speak_json(earthpress, finished, command):
    code, out, _ = earthpress(command, finished, "--json")
    assert code == 0
    assert json.loads(out)


def test_report_says_that_a_cpu_run_has_no_gpu_hours(earthpress, finished):
    code, out, _ = earthpress("report", finished)
    assert code == 0
    assert "no GPU" in out or "GPU-hours are 0" in out


def test_commands_without_a_plan_say_how_to_make_one(earthpress, tmp_path):
    for command in ("status", "report", "run"):
        code, _, err = earthpress(command, tmp_path)
        assert code == 2
        assert "earthpress plan" in err


def test_doctor_and_model_speak_json(earthpress):
    code, out, _ = earthpress("doctor", "--json")
    found = json.loads(out)
    assert (code, found["torch"] != "missing") == (0, True)
    assert ("no CUDA device" in found["advice"]) == found["device"].startswith("cpu")
    code, out, _ = earthpress("model", MODEL, "--set", "encode.patch_px=8", "--json")
    card = json.loads(out)
    assert code == 0
    assert card["weights"] == "UNTRAINED random"
    assert "passed" in card["start-up gate"]


def test_every_command_has_help_with_an_example(earthpress):
    for command in ("plan", "run", "status", "report", "preview", "map", "model", "doctor", "demo"):
        code, out, _ = earthpress(command, "--help")
        assert code == 0
        assert "xample" in out
        assert f"earthpress {command}" in out


def test_ctrl_c_stops_with_75_and_closes_the_lease(sample, tmp_path):
    out = tmp_path / "out"
    west, south, east, north = sample.bbox
    args = options(sample, out, bbox=f"{west},{south},{east},{north}")
    command = [sys.executable, "-m", "pipeline.cli", "run", *map(str, args), "--set", "encode.patch_px=2",
               "--set", "encode.window_px=32", "--set", "encode.overlap_px=16"]  # fmt: skip
    root = Path(__file__).resolve().parents[1]
    process = subprocess.Popen(
        command, cwd=root, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list(out.glob("attempts/*/*.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)  # a signal while a thread is being started makes Python itself print a traceback
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert "Traceback" not in err
    events = [json.loads(line) for path in out.glob("ledger/*/*.jsonl") for line in path.read_text().splitlines()]
    assert events[-1]["event"] == "lease_end"
    assert events[-1]["reason"] == "stopped"
