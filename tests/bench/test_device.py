"""The device: idle or not, its peak, and the file beside the tables."""

from __future__ import annotations

import json

import pytest
import torch

from pipeline.bench import device as devices
from pipeline.bench.table import Files
from pipeline.errors import DeviceError, OutputError

CPU = torch.device("cpu")


def probe(*pairs):
    """Counters of (all, own) core-seconds, one pair per call."""
    found = iter(pairs)
    return lambda: next(found)


def test_own_work_does_not_count_as_busy():
    found = devices.busy_cpu(probe((100.0, 10.0), (102.0, 12.0)), seconds=2.0, sleep=lambda _s: None)
    assert (found.others, found.text) == (0.0, "")


def test_other_processes_are_told_in_cores():
    found = devices.busy_cpu(probe((100.0, 10.0), (103.5, 10.5)), seconds=2.0, sleep=lambda _s: None)
    assert found.others == pytest.approx(1.5)
    assert "1.50 cores" in found.text


def test_looking_at_this_cpu_gives_at_most_its_cores():
    assert 0 <= devices.look(CPU).others <= 1.2 * devices.psutil.cpu_count()


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ({}, "unknown"),
        ({"utilisation": 0.5, "others": 0}, "50%"),
        ({"utilisation": 0.0, "others": 2}, "2 other processes"),
        ({"utilisation": 0.01, "others": 0}, ""),
    ],
)
def test_a_gpu_is_idle_when_it_rests_and_nobody_else_holds_it(state, text):
    assert text in devices.busy_gpu(state).text
    assert bool(devices.busy_gpu(state).text) == bool(text)


def test_the_peak_is_that_of_a_product_this_device_can_do():
    with torch.inference_mode():
        peak = devices.gemm_peak(CPU, torch.float32, width=64, rows=64, side=256, seconds=0.05)
    assert 1e8 < peak < 1e13


def test_a_device_that_is_not_here_is_refused():
    with pytest.raises(DeviceError, match="auto, cpu or cuda"):
        devices.pick("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match="no CUDA device"):
            devices.pick("cuda")


def test_the_sidecar_adds_a_state_when_something_changes(tmp_path):
    files = Files(folder=tmp_path, device="x")
    here = devices.describe(CPU)
    for state in (here, here, here | {"commit": "other"}):
        devices.write_sidecar(files, state)
    states = json.loads(files.sidecar.read_text())
    assert [state["commit"] for state in states] == [here["commit"], "other"]
    assert states[0]["packages"]["torch"] == devices.version_of("torch")


def test_a_damaged_sidecar_is_named(tmp_path):
    (tmp_path / "x_hardware.json").write_text("{")
    with pytest.raises(OutputError, match="x_hardware"):
        devices.write_sidecar(Files(folder=tmp_path, device="x"), {})
