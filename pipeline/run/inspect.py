"""What is here: the model card with its start-up gate, and the doctor."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from pipeline.errors import EarthpressError
from pipeline.plan import estimate
from pipeline.run.prepare import cores
from pipeline.types import GridSpec, Period

if TYPE_CHECKING:
    from pipeline.config import Settings

Rows = tuple[tuple[str, Any], ...]
PACKAGES = (
    "torch", "numpy", "rasterio", "rioxarray", "xarray", "dask", "zarr", "pystac-client", "planetary-computer",
    "pydantic", "shapely", "pyproj", "pyogrio", "geopandas", "pyarrow", "scikit-learn", "pillow", "psutil",
)  # fmt: skip
OPTIONAL = (
    ("nvidia-ml-py", "GPU energy and memory figures: pip install 'earthpress[gpu]'"),
    ("fsspec", "object stores: pip install 'earthpress[cloud]'"),
)
LOW_MEMORY_BYTES = 6_000_000_000
CARD_PERIODS = 12


def inspect_model(name: str, settings: Settings) -> Rows:
    """The card of a model, what it costs per km2 with these settings, and the start-up gate's verdict here.

    Raises:
        CheckpointError: The model's files cannot be used.
        DeviceError: The start-up gate refuses.
    """
    from pipeline.encode import checkpoint, session  # noqa: PLC0415

    model = checkpoint.load(name)
    encode = settings.encode
    spec = GridSpec(patch_px=encode.patch_px, window_px=encode.window(), overlap_px=encode.overlap(), tile_px=512)
    start = datetime(2024, 1, 1, tzinfo=UTC)
    count = _period_count(settings)
    periods = tuple(
        Period(index=i, start=start + timedelta(days=30 * i), end=start + timedelta(days=30 * (i + 1)))
        for i in range(count)
    )
    numerics = session.settle(encode, card=model.card, grid=spec, periods=count)
    runner = session.Session(model, grid=spec, periods=periods, numerics=numerics, threads=1)
    warm_s = runner.warm_up()
    gate = runner.gate()
    kept_km2 = (spec.stride_px * 10 / 1000) ** 2
    tokens = (spec.window_px // spec.patch_px) ** 2 * count
    card = model.card
    return (
        ("version", card.version),
        ("size", card.size),
        ("dims", card.dims),
        ("depth, heads", f"{card.depth}, {card.heads}"),
        ("parameters", card.parameters),
        ("sensors", ", ".join(card.sensors)),
        ("sha256", card.sha256),
        ("weights", "trained" if card.trained else "UNTRAINED random"),
        ("licence", "OlmoEarth Artifact License (weights)" if card.trained else "none: random numbers"),
        ("windows", f"{spec.window_px} px, overlap {spec.overlap_px} px, patch {spec.patch_px}, {count} periods"),
        ("tokens per km2", round(tokens / kept_km2)),
        ("GFLOP per km2", round(estimate.flops_per_window(card, spec, count) / kept_km2 / 1e9, 2)),
        ("numerics", f"{numerics.device} {numerics.device_name} {numerics.dtype} batch {numerics.batch_windows}"),
        ("warm-up", f"{warm_s:.1f} s"),
        ("start-up gate", f"passed: {gate}"),
    )


def _period_count(settings: Settings) -> int:
    if settings.start and settings.end:
        return len(settings.periods(today=datetime.now(UTC).date()))
    return CARD_PERIODS


def doctor() -> Rows:
    """What is installed, which device would be used, what would be slow or missing."""
    rows: list[tuple[str, Any]] = [("earthpress", _version("earthpress")), ("python", platform.python_version())]
    rows += [(name, _version(name)) for name in PACKAGES]
    rows += [("GDAL", _gdal())]
    device = _device()
    rows += list(device)
    memory = psutil.virtual_memory()
    rows += [
        ("cores", cores()),
        ("memory", f"{memory.total / 1e9:.1f} GB, {memory.available / 1e9:.1f} GB free"),
        ("free disk here", f"{shutil.disk_usage(Path.cwd()).free / 1e9:.1f} GB"),
    ]
    warnings = [*_slow(memory.total, dict(device)), *_missing()]
    rows.append(("advice", "; ".join(warnings) if warnings else "nothing to improve"))
    return tuple(rows)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _gdal() -> str:
    try:
        import rasterio  # noqa: PLC0415
    except ImportError as err:
        return f"missing ({err})"
    return str(rasterio.__gdal_version__)


def _device() -> Rows:
    from pipeline.config import EncodeSettings  # noqa: PLC0415
    from pipeline.encode import session  # noqa: PLC0415

    try:
        kind = session.pick_device(EncodeSettings())
        name, dtype = session.describe_device(EncodeSettings())
    except EarthpressError as err:
        return (("device", f"unusable: {err}"),)
    return (("device", f"{kind} {name}"), ("dtype", dtype))


def _slow(memory_bytes: int, device: dict[str, Any]) -> list[str]:
    found = []
    if str(device.get("device", "")).startswith("cpu"):
        found.append("no CUDA device: the encoder runs on the CPU, tens to hundreds of times slower")
        if device.get("dtype") == "float32":
            found.append("this CPU has no bfloat16 instructions: float32")
    if memory_bytes < LOW_MEMORY_BYTES:
        found.append(f"{memory_bytes / 1e9:.1f} GB of memory: use store.tile_px=256")
    if shutil.which("c++") is None and shutil.which("g++") is None:
        found.append("no C++ compiler: encode.compile=on would not work")
    return found


def _missing() -> list[str]:
    return [f"{name} is not installed ({why})" for name, why in OPTIONAL if _version(name) == "missing"]
