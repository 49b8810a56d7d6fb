"""What the device is, how fast its matrix products are, and whether it is idle.

The peak is measured, not looked up: torch's linear layer in the row's dtype, over the model's own products and a large
square one, in the process that measures the row. On CPUs oneDNN's packed product is tried too, because frozen compiled
graphs use it and it can be twice as fast as torch's default.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import statistics
import subprocess
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch
import torch.nn.functional as F  # noqa: N812

from pipeline.bench.rows import IDLE_CORES
from pipeline.bench.timing import synchronise, timed
from pipeline.encode import session
from pipeline.errors import DeviceError, OutputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.bench.table import Files

IDLE_GPU = 0.05
"""Share of the time that a GPU may work for others and still count as idle."""
SQUARE = {"cpu": 2048, "cuda": 8192}
"""Side of the square product: large enough for the peak, short enough to repeat."""
PACKAGES = ("torch", "numpy", "triton", "nvidia-ml-py", "olmoearth-pretrain-minimal")


@dataclass(frozen=True, slots=True, kw_only=True)
class Busy:
    """How busy a device was before a row.

    Attributes:
        others: CPU: cores kept busy by other processes; GPU: share of the time it worked. None: not to be known.
        text: What to tell, "" when idle.
    """

    others: float | None
    text: str = ""


def pick(device: str) -> torch.device:
    """``auto``, ``cpu`` or ``cuda`` as a torch device.

    Raises:
        DeviceError: No CUDA device, but one is asked for; or an unknown word.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise DeviceError(f"device is {device!r}, want auto, cpu or cuda")
    cuda = torch.cuda.is_available()
    if device == "cuda" and not cuda:
        raise DeviceError("device is cuda, but torch finds no CUDA device: use --device cpu")
    return torch.device("cuda" if cuda and device != "cpu" else "cpu")


def name_of(device: torch.device) -> str:
    """Product name; for a CPU with the instruction sets that decide its speed."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{cpu_model()} {session.device_name('cpu')}"


def cpu_model() -> str:
    """Product name of the processor as the system gives it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():
                return value.strip()
    return platform.processor() or platform.machine() or "CPU"


def dtype_of(precision: str, device: torch.device) -> torch.dtype:
    """Dtype of the products at a precision; autocast is bfloat16 where the device has it, as torch's own is on CPUs."""
    if precision == "autocast":
        half = device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.float16 if half else torch.bfloat16
    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]


# --- peak of matrix products ------------------------------------------------------------------------------------------


def gemm_peak(
    device: torch.device, dtype: torch.dtype, *, width: int, rows: int, side: int | None = None, seconds: float = 1.0
) -> float:
    """The largest matrix product rate, operations per second (two per multiply-add).

    Args:
        device: Where.
        dtype: Of both factors.
        width: Width of a token: products (rows, w) x (w, 3w), (rows, w) x (w, 4w) and (rows, 4w) x (4w, w).
        rows: Tokens of a pass.
        side: Side of the square product; None: by device.
        seconds: Time for all of them; each runs at least twice, unless that alone would take longer.
    """
    side = side or SQUARE[device.type]
    shapes = ((rows, width, 3 * width), (rows, width, 4 * width), (rows, 4 * width, width), (side, side, side))
    best = 0.0
    with torch.inference_mode():
        for m, k, n in shapes:
            if best and 2.0 * m * k * n / best > seconds:  # emulated: nothing larger can be learned in that time
                continue
            for call in _products(device, dtype, m=m, k=k, n=n):
                best = max(best, 2.0 * m * k * n / _fast(call, device, seconds=seconds / len(shapes)))
    return best


def _products(device: torch.device, dtype: torch.dtype, *, m: int, k: int, n: int) -> list[Callable[[], object]]:
    """The ways to multiply (m, k) by (k, n) that this device has."""
    x, weight = (torch.randn(shape, device=device).to(dtype) for shape in ((m, k), (n, k)))
    calls: list[Callable[[], object]] = [lambda: F.linear(x, weight)]
    if device.type == "cpu":
        try:
            packed = torch.ops.mkldnn._reorder_linear_weight(weight, m)  # noqa: SLF001 - what frozen graphs call
            product = torch.ops.mkldnn._linear_pointwise  # noqa: SLF001
            product(x, packed, None, "none", [], "")
        except (AttributeError, RuntimeError):  # a build without oneDNN, or a dtype that it has not on this processor
            return calls
        calls.append(lambda: product(x, packed, None, "none", [], ""))
    return calls


def _fast(call: Callable[[], object], device: torch.device, *, seconds: float) -> float:
    """Median seconds of a call."""
    begin = time.perf_counter()
    call()
    synchronise(device)
    once = max(time.perf_counter() - begin, 1e-7)
    repeats = max(1, round(0.005 / once)) if device.type == "cuda" else 1
    times: list[float] = []
    stop = time.perf_counter() + seconds
    while len(times) < 1 or time.perf_counter() < stop:
        times.append(timed(call, device, repeats=repeats))
    return statistics.median(times)


# --- idle -------------------------------------------------------------------------------------------------------------


def look(device: torch.device) -> Busy:
    """Watch for a moment what others do with the device; this process must rest meanwhile."""
    if device.type == "cpu":
        return busy_cpu(cpu_seconds, seconds=0.5)
    time.sleep(1.2)  # NVML's utilisation looks back for up to a second, in which this process has worked
    return busy_gpu(gpu_state(device))


def cpu_seconds() -> tuple[float, float]:
    """(core-seconds that all processes have used since boot, those of this process)."""
    used, own = psutil.cpu_times(), psutil.Process().cpu_times()
    # time of guests is inside user; what waits for a disk is not busy
    busy = sum(getattr(used, part, 0.0) for part in ("user", "nice", "system", "irq", "softirq", "steal"))
    return float(busy), float(own.user + own.system)


def busy_cpu(
    probe: Callable[[], tuple[float, float]], *, seconds: float, sleep: Callable[[float], None] = time.sleep
) -> Busy:
    """Cores that other processes keep busy.

    Args:
        probe: As ``cpu_seconds``.
        seconds: How long to watch.
        sleep: Waits.
    """
    before = probe()
    sleep(seconds)
    after = probe()
    others = max(0.0, (after[0] - before[0]) - (after[1] - before[1])) / seconds
    text = f"not idle: other processes keep {others:.2f} cores busy" if others > IDLE_CORES else ""
    return Busy(others=others, text=text)


def busy_gpu(state: dict[str, Any]) -> Busy:
    """From ``gpu_state``: the share of the time that the GPU worked in the last moment, and who holds it."""
    if "utilisation" not in state:
        return Busy(others=None, text="whether the GPU is idle is unknown: pip install nvidia-ml-py")
    others, share = state["others"], state["utilisation"]
    if share > IDLE_GPU or others:
        return Busy(others=share, text=f"not idle: the GPU works {share:.0%} of the time, {others} other processes")
    return Busy(others=share)


def gpu_state(device: torch.device) -> dict[str, Any]:
    """Driver, power limit, clocks and load of the GPU from NVML; empty without the package or the driver."""
    try:
        import pynvml  # noqa: PLC0415
    except ImportError:
        return {}
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}".encode())
        return {
            "driver": _plain(pynvml.nvmlSystemGetDriverVersion()),
            "utilisation": pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100,
            # one of them is this process, whose number inside a container is another
            "others": max(0, len(pynvml.nvmlDeviceGetComputeRunningProcesses(handle)) - 1),
            "power_limit_w": pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000,
            "max_sm_mhz": pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_SM),
        }
    except pynvml.NVMLError:  # no driver library, or a virtual GPU that does not tell
        return {}


def _plain(text: str | bytes) -> str:
    return text.decode() if isinstance(text, bytes) else text


# --- sidecar ----------------------------------------------------------------------------------------------------------


def describe(device: torch.device) -> dict[str, Any]:
    """Hardware, driver, software and commit, as JSON values."""
    here: dict[str, Any] = {
        "device": name_of(device),
        "cpu": cpu_model(),
        "cpu_instructions": session.device_name("cpu"),
        "cores": psutil.cpu_count(logical=False),
        "threads": psutil.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "os": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := version_of(name))},
        "commit": commit(),
    }
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        state = {key: value for key, value in gpu_state(device).items() if key not in ("utilisation", "others")}
        gpu = {"memory_gb": round(found.total_memory / 1e9, 1), "multiprocessors": found.multi_processor_count}
        here["gpu"] = gpu | {"capability": f"{found.major}.{found.minor}", "cuda": torch.version.cuda} | state
    return here


def version_of(package: str) -> str:
    """Installed version, "" without it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def commit() -> str:
    """The checkout's commit, ``-dirty`` if files differ from it; the package's version outside a checkout."""
    root = str(Path(__file__).resolve().parents[2])
    try:
        head, changed = (
            subprocess.run(["git", "-C", root, *args], capture_output=True, text=True, check=True, timeout=20).stdout
            for args in (("rev-parse", "--short=10", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.SubprocessError):
        return version_of("earthpress")
    return head.strip() + ("-dirty" if changed.strip() else "")


def write_sidecar(files: Files, here: dict[str, Any]) -> Path:
    """Write beside the tables what the device is; a changed driver or commit is added, nothing is lost.

    Raises:
        OutputError: The file cannot be read or written.
    """
    path = files.sidecar
    try:
        states = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        if not any({k: v for k, v in state.items() if k != "since"} == here for state in states):
            path.parent.mkdir(parents=True, exist_ok=True)
            states.append({"since": datetime.now(UTC).isoformat(timespec="seconds")} | here)
            path.write_text(json.dumps(states, indent=1) + "\n", encoding="utf-8")
    except (OSError, ValueError, AttributeError) as err:
        raise OutputError(f"{path} cannot be used: {err}; move it away or choose another folder") from err
    return path


def now() -> str:
    """UTC to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
