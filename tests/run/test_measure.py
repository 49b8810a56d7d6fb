"""The commands that measure a model: figures on simulated places, kept in a calibration file that plans read."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.encode import checkpoint, rho
from pipeline.encode.calibration import calibrate, load_calibration
from pipeline.errors import ConfigError, OutputError
from pipeline.plan.ramp import halo_of, ramps_of
from pipeline.run.measure import SITES, Shape, measure_seams, save
from pipeline.run.measure_reach import measure_reach
from pipeline.write.seams import lattice_dependence, paired_score

MODEL = "random:v1.2-toy:0"
ONE = Shape(periods=1)
S2 = ONE.sensors


def scales(folder, *, name=MODEL, factor=1.0):
    """A calibration file that did not take the simulated sample to make."""
    card = checkpoint.load(name).card
    made = calibrate(
        [np.full((1, card.dims), 3.0 * factor, np.float32)], card=card, patch_px=4, source="test", provisional=True
    )
    path = Path(folder) / "scales.json"
    save(made, str(path))
    return str(path)


def read(path, name=MODEL):
    return load_calibration(path, card=checkpoint.load(name).card, patch_px=4)


@pytest.fixture(scope="module")
def seams(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seams")
    output = str(folder / "measured.json")
    found = measure_seams(MODEL, ONE, window_px=24, calibration=scales(folder), output=output)
    return found, output, str(folder / "scales.json")


@pytest.fixture(scope="module")
def reached(tmp_path_factory, seams):
    folder = tmp_path_factory.mktemp("reach")
    return measure_reach(MODEL, ONE, windows_px=(24,), box_px=16, calibration=seams[1], output=str(folder)), folder


def test_the_ramp_that_a_plan_reads_is_the_one_that_was_printed(seams):
    found, output, _ = seams
    assert ramps_of(read(output), 4, 1, S2) == {found.profile.window_px: found.ramp}
    assert f"over {found.ramp} token" in found.sentence
    assert found.blended == pytest.approx(found.predicted, rel=0.03)


def test_measuring_leaves_the_scales_and_their_hash_alone(seams):
    _, output, given = seams
    assert read(output).scale == read(given).scale
    assert read(output).hash == read(given).hash
    assert read(given).seams == ()


def test_seams_are_told_by_place_with_their_spread(seams):
    found = seams[0]
    assert [name for name, _ in found.places] == [name for _, name in SITES]
    rhos = [rho for _, rho in found.places]
    assert found.profile.rho_range == (min(rhos), max(rhos))
    assert 1 < found.profile.rho == pytest.approx(np.mean(rhos), abs=1e-4)
    assert found.profile.rho_dim > found.profile.rho
    assert found.ramp_dim >= found.ramp


def test_the_same_measurement_gives_the_same_file(seams):
    _, output, _ = seams
    before = Path(output).read_bytes()
    measure_seams(MODEL, ONE, window_px=24, output=output)
    assert Path(output).read_bytes() == before


def test_random_weights_are_said_to_say_nothing(seams, reached):
    assert "random weights" in seams[0].warnings[0]
    assert "random weights" in reached[0].warnings[0]


def test_the_halo_that_a_plan_reads_is_the_one_that_was_printed(reached, seams):
    found, folder = reached
    kept = read(str(folder / "calibration.json"))
    assert halo_of(kept, 4, 1, S2, 16) == found.edge.halo_px
    assert f"a halo of {found.edge.halo_px} px" in found.sentence
    assert list(ramps_of(kept, 4, 1, S2).values()) == [seams[0].ramp]  # what was known stays


def test_reach_writes_its_table_and_a_picture(reached):
    found, folder = reached
    table = json.loads((folder / "reach.json").read_text())
    assert [entry["box_px"] for entry in table["sides"]] == [0, 16]
    assert table["edge"]["halo_px"] == found.edge.halo_px
    with Image.open(folder / "reach.png") as picture:
        assert picture.size[0] == 900
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 50
    assert all(Path(path).is_file() for path in found.paths)


def test_a_file_with_other_scales_is_not_overwritten(seams, tmp_path):
    with pytest.raises(OutputError, match="other scales"):
        measure_seams(MODEL, ONE, window_px=24, calibration=scales(tmp_path, factor=2.0), output=seams[1])


def test_absolute_positions_are_warned_about_and_have_no_domain(tmp_path):
    name = "random:v1-toy:0"
    found = measure_reach(name, ONE, windows_px=(24,), calibration=scales(tmp_path, name=name))
    assert found.edge is None
    assert "adds positions" in found.warnings[0]
    assert found.paths == ()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"window_px": 24, "overlap_px": 4}, "even number of tokens"),
        ({"window_px": 24, "overlap_px": 20}, "even number of tokens"),
        ({"window_px": 12}, "leave two tokens"),
        ({"window_px": 22}, "--window-px 22 must be a multiple"),
        ({"window_px": 2048}, "at most 256 px"),
        ({"target": 1.0}, "--target 1 must be above 1"),
    ],
)
def test_windows_that_cannot_be_compared_are_refused(change, match):
    with pytest.raises(ConfigError, match=match):
        measure_seams(MODEL, ONE, **change)


@pytest.mark.parametrize("wrong", [{"sensors": "modis"}, {"sensors": ""}, {"patch_px": 9}, {"periods": 0}])
def test_impossible_shapes_are_refused(wrong):
    with pytest.raises(ConfigError, match=r"sensors|patch"):
        Shape.of(**({"patch_px": 4, "periods": 1, "sensors": "sentinel2_l2a"} | wrong))


def test_sensors_come_in_the_usual_order_and_all_at_once(tmp_path):
    shape = Shape.of(patch_px=4, periods=1, sensors="landsat, sentinel2_l2a,sentinel1")
    assert shape.sensors == ("sentinel2_l2a", "sentinel1", "landsat")
    assert measure_seams(MODEL, shape, window_px=16).profile.sensors == shape.sensors


def test_the_seams_command_prints_table_sentence_and_warning(earthpress):
    code, out, err = earthpress("seams", MODEL, "--periods", 1, "--window-px", 16)
    assert code == 0
    assert "worst dimension" in out
    assert "by the law (measured" in out
    assert "random weights" in err
    assert "written" not in out


def test_the_reach_command_speaks_json(earthpress, tmp_path):
    given = scales(tmp_path)
    options = ("--periods", 1, "--window-px", "16,24", "--box-px", 16, "--calibration", given)
    code, out, _ = earthpress("reach", MODEL, *options, "--json")
    told = json.loads(out)
    assert code == 0
    assert [entry["window_px"] for entry in told["contexts"]] == [16, 24]
    assert told["paths"] == [given]
    assert halo_of(read(given), 4, 1, S2, 16) == told["edge"]["halo_px"]


@pytest.mark.parametrize("text", ["0", "x", "64,", "-4"])
def test_sides_that_are_no_numbers_are_refused(earthpress, text):
    code, _, err = earthpress("reach", MODEL, "--window-px", text)
    assert code == 2
    assert "--window-px" in " ".join(err.split())


def test_the_score_of_the_commands_is_the_one_that_tests_and_benchmarks_use():
    """Two rooms score lattices, one on tensors and one on arrays: they must mean the same by it."""
    rng, stride, side = np.random.default_rng(4), 6, 60
    content, fields, firsts = rng.standard_normal((side, side, 8)), [], (0, 2, 3)
    for first in firsts:
        windows = (np.arange(side) - first) // stride
        offset = rng.standard_normal((windows.max() - windows.min() + 1, 8))[windows - windows.min()]
        fields.append(content + offset[:, None] + offset[None])
    one = rho.paired([torch.from_numpy(f) for f in fields], firsts=firsts, stride=stride)
    other = paired_score([((first, first), f) for first, f in zip(firsts, fields, strict=True)], stride=stride)
    assert one.line > 1.2
    assert one.line == pytest.approx(np.mean([axis[0] for axis in other.profile]), rel=0.02)
    moved = [lattice_dependence(a, b) for a, b in pairwise(fields)]
    assert one.lattice == pytest.approx(np.mean(moved), rel=0.02)


def test_reach_into_a_file_is_refused_before_anything_is_measured(tmp_path):
    there = tmp_path / "calibration.json"
    there.write_text("{}")
    with pytest.raises(OutputError, match="use --calibration"):
        measure_reach(MODEL, ONE, output=str(there))
