"""What is here: the model card with its start-up gate, and the doctor."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from pipeline.errors import ConfigError, EarthpressError
from pipeline.plan import flops
from pipeline.plan.periods import periods_of
from pipeline.run.prepare import cores, grid_of
from pipeline.types import GridSpec, ModelCard, Period

if TYPE_CHECKING:
    from pipeline.config import Settings

Rows = tuple[tuple[str, Any], ...]
PACKAGES = (
    "torch", "numpy", "rasterio", "rioxarray", "xarray", "dask", "zarr", "pystac-client", "planetary-computer",
    "pydantic", "shapely", "pyproj", "pyogrio", "geopandas", "pyarrow", "scikit-learn", "pillow", "psutil",
    "huggingface_hub", "safetensors",
)  # fmt: skip
OPTIONAL = (
    ("nvidia-ml-py", "GPU energy and memory figures: pip install 'earthpress[gpu]'"),
    ("obstore", "object stores: pip install 'earthpress[cloud]'"),
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

    model = checkpoint.load(name, output=settings.encode.output)
    card, count = model.card, _period_count(settings)
    device = session.pick_device(settings.encode)
    spec, choice = grid_of(settings, card, periods=count, tile_px=2048, calibration=None, device=device)
    numerics = session.settle(settings.encode, card=card, grid=spec, periods=count)
    runner = session.Session(model, grid=spec, periods=_periods(count), numerics=numerics, threads=1)
    warm_s = runner.warm_up()
    gate = runner.gate()
    return (
        *_card_rows(card),
        *_cost_rows(card, spec, count),
        ("window choice", choice or "within the trained grids"),
        ("numerics", f"{numerics.device} {numerics.device_name} {numerics.dtype} batch {numerics.batch_windows}"),
        ("attention", numerics.attention),
        ("warm-up", f"{warm_s:.1f} s"),
        ("start-up gate", f"passed: {gate}"),
    )


def fetch_model(name: str) -> Rows:
    """Bring a model of Hugging Face into the local cache, and read it to see that it is whole.

    Raises:
        ConfigError: Not an id, no such model or revision, or offline.
        TransientError: The network failed; what has arrived is kept.
        CheckpointError: The files cannot be used.
    """
    from pipeline.encode import checkpoint, hub  # noqa: PLC0415

    wanted = hub.parse(name)
    if wanted is None:
        raise ConfigError(f"{name!r} is not a Hugging Face id: use owner/name, owner/name@revision or a release's name")
    folder = hub.fetch(*wanted)
    return (("folder", str(folder)), *_card_rows(checkpoint.load(str(folder)).card))


def _periods(count: int) -> tuple[Period, ...]:
    start = datetime(2024, 1, 1, tzinfo=UTC)
    return tuple(
        Period(index=i, start=start + timedelta(days=30 * i), end=start + timedelta(days=30 * (i + 1)))
        for i in range(count)
    )


def _card_rows(card: ModelCard) -> Rows:
    sets = ", ".join(f"{name} {'+'.join(map(str, sizes))}" for name, sizes in card.band_sets)
    return (
        ("version", card.version),
        ("size", card.size),
        ("parameters", card.parameters),
        ("depth, heads, width", f"{card.depth}, {card.heads}, {card.token_width}"),
        ("writes", f"{card.output}, {card.dims} dimensions"),
        ("sensors: bands per token", sets),
        ("sha256", card.sha256),
        ("weights", "trained" if card.trained else "UNTRAINED random"),
        ("licence", card.licence or "unknown"),
    )


def _cost_rows(card: ModelCard, spec: GridSpec, count: int) -> Rows:
    cost = flops.cost_per_km2(card, spec, count)
    stitch = f"{spec.stitch}, one vector per {'10 m pixel' if spec.token_px == 1 else f'{spec.pixel_m} m token'}"
    return (
        ("lattice", f"{spec.summary}, {count} periods"),
        ("stitching", stitch),
        ("tokens per km2", round(cost.tokens)),
        ("GFLOP per km2", f"{cost.flops / 1e9:.4g}, of which attention {cost.work.attention_share:.0%}"),
        ("resizing per km2", f"{cost.work.resize / 1e9:.3g} GFLOP more"),
    )


def _period_count(settings: Settings) -> int:
    if settings.start and settings.end:
        return len(periods_of(settings, today=datetime.now(UTC).date()))
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
        found.append("no C++ compiler: slower attention (torch's), and encode.compile=on would not work")
    return found


def _missing() -> list[str]:
    return [f"{name} is not installed ({why})" for name, why in OPTIONAL if _version(name) == "missing"]
