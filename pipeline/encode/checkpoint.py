"""Checkpoints: the official folder layout, or seeded random weights; read, checked and described.

A folder holds ``config.json`` (a training configuration, of which ``model.encoder_config`` matters) and ``weights.pth``
(a plain state dict). The file is untrusted: it is read with ``weights_only``, every tensor the encoder needs is checked
for shape and finite values, everything else is ignored. This module knows nothing of windows, devices or dtypes.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import zipfile
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.encode.bands import DEFAULT_BANDS, SENSORS
from pipeline.encode.patch import KERNEL_PX
from pipeline.errors import CheckpointError, ConfigError
from pipeline.types import ModelCard, content_hash

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from numpy.typing import NDArray

SIZES = {"nano": (128, 4, 8), "tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12)}
"""(width, depth, heads) of the released v1.2 sizes."""
MLP_RATIO = 4
MAX_CONFIG_BYTES = 4_000_000
RANDOM = re.compile(r"random:v1\.2-(?P<size>[a-z]+):(?P<seed>\d{1,9})")
CALM = 0.25
"""Strength of the attention output in random weights. At full strength random attention, which has no locality, makes
overlapping windows disagree as much as different scenes do; at 0.2-0.3 seams come near those of trained models."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SensorConfig:
    """What the patch embedding of one sensor reads.

    Attributes:
        name: ``sentinel2_l2a``, ...
        bands: Band names in the order of the weights.
    """

    name: str
    bands: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderConfig:
    """The parts of a configuration that decide the encoder.

    Attributes:
        version: ``v1.2``.
        dims: Width of a token.
        depth: Number of blocks.
        heads: Attention heads.
        hidden: Channels of the per-pixel layer of the patch embedding.
        mlp: Width of the hidden layer of a block's MLP.
        coordinate_scale: Factor of row and column coordinates.
        time_scale: Factor of days, per day.
        sensors: Sensors with a patch embedding.
    """

    version: str
    dims: int
    depth: int
    heads: int
    hidden: int
    mlp: int
    coordinate_scale: float
    time_scale: float
    sensors: tuple[SensorConfig, ...]

    @property
    def head_dim(self) -> int:
        """Channels of one head."""
        return self.dims // self.heads

    def bands(self, sensor: str) -> tuple[str, ...]:
        """Band order of a sensor.

        Raises:
            CheckpointError: The model does not take this sensor.
        """
        for entry in self.sensors:
            if entry.name == sensor:
                return entry.bands
        raise CheckpointError(f"this model takes {[s.name for s in self.sensors]}, not {sensor}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Checkpoint:
    """A checked model.

    Attributes:
        card: What is known about it.
        config: How to build it.
        tensors: float32 CPU tensors by official name without the prefix ``encoder.``; nobody writes into them.
    """

    card: ModelCard
    config: EncoderConfig
    tensors: Mapping[str, torch.Tensor]


def describe(model: str) -> ModelCard:
    """The card of a model: a folder, or ``random:v1.2-SIZE:SEED``.

    Reads and checks everything that ``load`` does, so a model that a plan accepted will also load.

    Raises:
        ConfigError: No such folder, or not a valid random specification.
        CheckpointError: The files cannot be used.
    """
    return load(model).card


def load(model: str) -> Checkpoint:
    """Read and check a model: a folder with config.json and weights.pth, or ``random:v1.2-SIZE:SEED``.

    Raises:
        ConfigError: No such folder, or not a valid random specification.
        CheckpointError: A file is missing, truncated or foreign, the version is not supported, a tensor is missing, has
            another shape or holds NaN or infinity.
    """
    return _load_random(model) if model.startswith("random:") else _load_folder(model)


def tensor_shapes(config: EncoderConfig) -> dict[str, tuple[int, ...]]:
    """Official name (without ``encoder.``) and shape of every tensor that inference needs."""
    d, h = config.dims, config.hidden
    shapes: dict[str, tuple[int, ...]] = {"composite_encodings.month_embed.weight": (12, d // 4)}
    for sensor in config.sensors:
        stem = patch_stem(sensor.name)
        shapes |= {
            f"{stem}.pixel_proj.0.weight": (h, len(sensor.bands)),
            f"{stem}.pixel_proj.0.bias": (h,),
            f"{stem}.proj.weight": (d, KERNEL_PX * KERNEL_PX * h),
            f"{stem}.proj.bias": (d,),
            f"composite_encodings.per_modality_channel_embeddings.{sensor.name}": (1, d // 4),
        }
    for i in range(config.depth):
        block = f"blocks.{i}"
        for name, rows, cols in (
            *((f"attn.{part}", d, d) for part in ("q", "k", "v", "proj")),
            ("mlp.fc1", config.mlp, d),
            ("mlp.fc2", d, config.mlp),
        ):
            shapes |= {f"{block}.{name}.weight": (rows, cols), f"{block}.{name}.bias": (rows,)}
        for name in ("norm1", "norm2"):
            shapes |= {f"{block}.{name}.weight": (d,), f"{block}.{name}.bias": (d,)}
        shapes[f"{block}.attn.rope_mixed_freqs"] = (3, config.heads, config.head_dim // 2)
    return shapes | {"norm.weight": (d,), "norm.bias": (d,)}


def patch_stem(sensor: str) -> str:
    """Common part of the names of a sensor's patch embedding (one band set)."""
    return f"patch_embeddings.per_modality_embeddings.{sensor}.{sensor}__0"


def _card(name: str, config: EncoderConfig, *, sha256: str, trained: bool) -> ModelCard:
    key = (config.dims, config.depth, config.heads)
    return ModelCard(
        name=name,
        version=config.version,
        size=next((size for size, numbers in SIZES.items() if numbers == key), "custom"),
        dims=config.dims,
        depth=config.depth,
        heads=config.heads,
        parameters=sum(int(np.prod(shape)) for shape in tensor_shapes(config).values()),
        sensors=tuple(s.name for s in config.sensors),
        sha256=sha256,
        trained=trained,
        config=content_hash(asdict(config)),
    )


# --- folders -------------------------------------------------------------------------------------------------------


def _load_folder(model: str) -> Checkpoint:
    folder = Path(model)
    if not folder.is_dir():
        raise ConfigError(
            f"model folder {model} does not exist: give a folder with config.json and weights.pth, or {_examples()}"
        )
    for name in ("config.json", "weights.pth"):
        if not (folder / name).is_file():
            raise CheckpointError(f"model folder {model} has no {name}: download both files of the released model")
    raw = _read_state(folder / "weights.pth")
    config = _read_config(folder / "config.json", raw)
    tensors = _pick(config, raw, where=str(folder / "weights.pth"))
    with (folder / "weights.pth").open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Checkpoint(card=_card(model, config, sha256=digest, trained=True), config=config, tensors=tensors)


def _read_state(path: Path) -> dict[str, Any]:
    import torch  # noqa: PLC0415 - a plan of a random model needs no torch file reader

    if not zipfile.is_zipfile(path):
        raise CheckpointError(
            f"{path} is not a weights file: truncated, a web page, or a bare pickle, which is never run"
        )
    try:
        # mmap leaves the decoder and the training target, more than half of an official file, on disk
        raw = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as err:
        raise CheckpointError(f"{path} holds more than tensors: it carries Python code, which is never run") from err
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError, OSError) as err:
        first = str(err).splitlines()[0] if str(err) else type(err).__name__
        raise CheckpointError(f"{path} cannot be read, probably truncated: {first}") from err
    if not isinstance(raw, dict) or not all(isinstance(k, str) for k in raw):
        raise CheckpointError(f"{path} holds a {type(raw).__name__}, not a state dict of named tensors")
    return raw


def _pick(config: EncoderConfig, raw: Mapping[str, Any], *, where: str) -> dict[str, torch.Tensor]:
    import torch  # noqa: PLC0415

    tensors: dict[str, torch.Tensor] = {}
    for name, shape in tensor_shapes(config).items():
        value = raw.get(f"encoder.{name}")
        if value is None:
            raise CheckpointError(f"{where} lacks tensor encoder.{name} {shape}: not the weights of this config.json?")
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            raise CheckpointError(f"{where}: encoder.{name} is not a floating point tensor")
        if tuple(value.shape) != shape:
            raise CheckpointError(f"{where}: encoder.{name} has shape {tuple(value.shape)}, want {shape}")
        if not bool(torch.isfinite(value).all()):
            raise CheckpointError(f"{where}: encoder.{name} holds NaN or infinity; download the file again")
        # a copy: a mapped tensor would change, or crash the process, with the file
        tensors[name] = value.detach().to(torch.float32).clone(memory_format=torch.contiguous_format)
    return tensors


def _read_config(path: Path, raw: Mapping[str, Any]) -> EncoderConfig:
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise CheckpointError(f"{path} is larger than {MAX_CONFIG_BYTES} bytes: not a model configuration")
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
        encoder = whole["model"]["encoder_config"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as err:
        raise CheckpointError(f"{path} is not a model configuration with model.encoder_config") from err
    if not isinstance(encoder, dict):
        raise CheckpointError(f"{path}: model.encoder_config must hold keys and values")
    version = _version(encoder, path)
    dims, depth, heads = (_positive(encoder, key, path) for key in ("embedding_size", "depth", "num_heads"))
    if dims % heads or dims % 4 or (dims // heads) % 2:
        raise CheckpointError(f"{path}: embedding_size {dims} with num_heads {heads} has no even head width")
    sensors = tuple(_sensor(name, encoder, path) for name in _sensor_names(whole, encoder, path))
    stem = f"encoder.{patch_stem(sensors[0].name)}.pixel_proj.0.weight"
    hidden = getattr(raw.get(stem), "shape", (0,))[0]  # an early config lacks patch_embed_hidden_sizes
    return EncoderConfig(
        version=version,
        dims=dims,
        depth=depth,
        heads=heads,
        hidden=int(hidden),
        mlp=int(dims * _number(encoder, "mlp_ratio", MLP_RATIO, path)),
        coordinate_scale=_number(encoder, "rope_coordinate_scale", 1.0, path),
        time_scale=_number(encoder, "rope_temporal_coordinate_scale", 1.0, path),
        sensors=sensors,
    )


def _version(encoder: Mapping[str, Any], path: Path) -> str:
    """The model version, from the keys that differ; only v1.2 passes."""
    position = encoder.get("spatial_pos_encoding") or encoder.get("position_encoding") or "absolute"
    pooler = encoder.get("attention_pooler_config") or encoder.get("perceiver_config")
    if position == "absolute":
        version = "v1.1" if encoder.get("use_linear_patch_embed") else "v1"
    elif position == "rope_3d_mixed":
        version = "v1.3" if pooler else "v1.2"
    else:
        raise CheckpointError(f"{path}: position encoding {position!r} belongs to no released model")
    if version != "v1.2":
        raise CheckpointError(f"{path}: this is an OlmoEarth {version} model; only v1.2 is supported for now")
    for key in ("num_register_tokens", "qk_norm", "post_proj_hidden_sizes"):
        if encoder.get(key):
            raise CheckpointError(f"{path}: {key}={encoder[key]!r} belongs to no released model")
    if encoder.get("use_linear_patch_embed") is not True or len(encoder.get("patch_embed_hidden_sizes") or (0,)) != 1:
        raise CheckpointError(f"{path}: v1.2 needs use_linear_patch_embed and one patch_embed_hidden_sizes entry")
    if encoder.get("max_patch_size", KERNEL_PX) != KERNEL_PX:
        raise CheckpointError(f"{path}: max_patch_size is {encoder['max_patch_size']}, want {KERNEL_PX}")
    return version


def _sensor_names(whole: Mapping[str, Any], encoder: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    """Supported sensors, less those a training configuration marks as decode-only."""
    decode_only: object = ()
    for section in ("train_module", "data_loader"):
        node: object = whole
        for key in (section, "masking_config", "strategy_config", "only_decode_modalities"):
            node = node.get(key) if isinstance(node, dict) else None
        if isinstance(node, list):
            decode_only = node
            break
    supported = encoder.get("supported_modality_names") or SENSORS
    names = tuple(s for s in SENSORS if s in supported and s not in tuple(decode_only))  # type: ignore[arg-type]
    if not names:
        raise CheckpointError(f"{path}: the model takes none of {SENSORS}")
    return names


def _sensor(name: str, encoder: Mapping[str, Any], path: Path) -> SensorConfig:
    overrides = (encoder.get("tokenization_config") or {}).get("overrides") or {}
    groups = (overrides.get(name) or {}).get("band_groups")
    if groups is None and name != "sentinel1":
        raise CheckpointError(f"{path}: v1.2 needs tokenization_config.overrides.{name}.band_groups")
    bands = DEFAULT_BANDS[name] if groups is None else tuple(groups[0])
    if (groups is not None and len(groups) != 1) or set(bands) != set(DEFAULT_BANDS[name]):
        raise CheckpointError(f"{path}: {name} must have one band group of {DEFAULT_BANDS[name]}, has {groups}")
    return SensorConfig(name=name, bands=bands)


def _positive(encoder: Mapping[str, Any], key: str, path: Path) -> int:
    value = encoder.get(key)
    if not isinstance(value, int) or value <= 0:
        raise CheckpointError(f"{path}: {key} is {value!r}, want a positive integer")
    return value


def _number(encoder: Mapping[str, Any], key: str, default: float, path: Path) -> float:
    value = encoder.get(key, default)
    if not isinstance(value, int | float) or not np.isfinite(value) or value <= 0:
        raise CheckpointError(f"{path}: {key} is {value!r}, want a positive number")
    return float(value)


# --- random weights ------------------------------------------------------------------------------------------------


def _examples() -> str:
    return ", ".join(f"random:v1.2-{size}:SEED" for size in SIZES)


def _load_random(model: str) -> Checkpoint:
    import torch  # noqa: PLC0415

    match = RANDOM.fullmatch(model)
    if match is None or match["size"] not in SIZES:
        raise ConfigError(f"model {model!r} is not a random model: use {_examples()} with SEED a whole number")
    config = random_config(match["size"])
    seed, digest = int(match["seed"]), hashlib.sha256()
    tensors: dict[str, torch.Tensor] = {}
    for name, shape in tensor_shapes(config).items():
        value = np.ascontiguousarray(_random_value(name, shape, seed=seed))
        digest.update(f"{name}{shape}".encode() + value.tobytes())
        tensors[name] = torch.from_numpy(value)
    card = _card(model, config, sha256=digest.hexdigest(), trained=False)
    return Checkpoint(card=card, config=config, tensors=tensors)


def random_config(size: str) -> EncoderConfig:
    """The configuration of a released v1.2 size."""
    dims, depth, heads = SIZES[size]
    return EncoderConfig(
        version="v1.2",
        dims=dims,
        depth=depth,
        heads=heads,
        hidden=12 if size == "nano" else 64,
        mlp=MLP_RATIO * dims,
        coordinate_scale=1.0,
        time_scale=1.0 / 30.0,
        sensors=tuple(SensorConfig(name=name, bands=bands) for name, bands in DEFAULT_BANDS.items()),
    )


def _random_value(name: str, shape: tuple[int, ...], *, seed: int) -> NDArray[np.float32]:
    """Values of one tensor, keyed by (seed, name); no tensor stays at a value that would hide a fault."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    noise = rng.standard_normal(shape, dtype=np.float64)
    if name.endswith("rope_mixed_freqs"):  # a ladder of wavelengths, from a few pixels to beyond the window
        steps = np.arange(shape[-1]) / shape[-1]
        value = noise * 10.0 ** (-2.0 * steps)
    elif name.endswith("month_embed.weight"):  # the released table, slightly moved
        angle = 2 * np.pi * np.arange(12)[:, None] / 12
        half = np.ones((1, shape[1] // 2))
        value = np.concatenate([np.sin(angle) * half, np.cos(angle) * half], axis=1) + 0.1 * noise
    elif "channel_embeddings" in name:
        value = 0.5 * noise
    elif len(shape) == 1:
        is_norm = ".norm" in f".{name}" and name.endswith("weight")
        value = 1.0 + 0.2 * noise if is_norm else 0.1 * noise
    else:
        value = noise * _gain(name) / np.sqrt(shape[1])
    return (value * (CALM if ".attn.proj." in name else 1.0)).astype(np.float32)


def _gain(name: str) -> float:
    """Strength of a weight.

    Normalised pixels vary by about 0.2: 4 lets the image outweigh the encodings. Queries and keys: 1.5 lets positions
    matter ten times more than bfloat16 rounding does, so that the start-up gate can tell them apart.
    """
    if "pixel_proj" in name:
        return 4.0
    return 1.5 if ".attn.q." in name or ".attn.k." in name else 1.0
