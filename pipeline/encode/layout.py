"""What an encoder is made of: its configuration, and the name and shape of every tensor that inference needs.

Names are those of the released files without the prefix ``encoder.``, in their newest form (``attention_pooler``).
This module knows neither files nor numbers: ``config_json`` fills the values from a training configuration,
``untrained`` from a short name, ``olmoearth`` builds from them.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from math import prod

from pipeline.encode.bands import DEFAULT_BANDS
from pipeline.encode.patch import KERNEL_PX
from pipeline.errors import CheckpointError

SIZES = {
    "toy": (64, 2, 4),
    "nano": (128, 4, 8),
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
}
"""(width, depth, heads) of the released sizes (OlmoEarth model cards); ``toy`` was never released, it is for tests."""
RELEASED = {
    "v1": ("nano", "tiny", "base", "large"),
    "v1.1": ("nano", "tiny", "base"),
    "v1.2": ("nano", "tiny", "small", "base"),
    "v1.3": ("base",),
}
"""Released sizes of every version."""
V1_GROUPS = {"sentinel2_l2a": (4, 6, 2), "sentinel1": (2,), "landsat": (1, 10)}
"""Bands of each band set of v1, counted along ``DEFAULT_BANDS``; later versions have one band set per sensor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SensorConfig:
    """What the patch embedding of one sensor reads.

    Attributes:
        name: ``sentinel2_l2a``, ...
        band_sets: Band names of each band set, in the order of the weights. A band set makes a token of its own.
    """

    name: str
    band_sets: tuple[tuple[str, ...], ...]

    @property
    def bands(self) -> tuple[str, ...]:
        """All bands, band set after band set: the order in which an encoder is fed."""
        return tuple(band for group in self.band_sets for band in group)


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolerConfig:
    """The attention pooler of v1.3.

    Attributes:
        dims: Width of a location token.
        depth: Layers, each a read block and a self-attention block.
        heads: Attention heads.
        per_depth: Whether every layer has its own input norm.
        student: Width of the student, 0 without one.
        student_norm: Whether a LayerNorm follows the student's linear layer.
        rope_base: Base of the axial rotary frequencies.
    """

    dims: int
    depth: int
    heads: int
    per_depth: bool
    student: int
    student_norm: bool
    rope_base: float = 10_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderConfig:
    """The parts of a configuration that decide the encoder.

    Attributes:
        version: ``v1``, ``v1.1``, ``v1.2`` or ``v1.3``.
        dims: Width of a token.
        depth: Number of blocks.
        heads: Attention heads.
        hidden: Channels of the per-pixel layer of the patch embedding; 0: v1's convolution.
        mlp: Width of the hidden layer of a block's MLP.
        rope: Rotary positions in every block (v1.2, v1.3); else absolute encodings are added (v1, v1.1).
        coordinate_scale: Factor of row and column coordinates.
        time_scale: Factor of days, per day.
        sensors: Sensors with a patch embedding.
        pooler: Of v1.3.
    """

    version: str
    dims: int
    depth: int
    heads: int
    hidden: int
    mlp: int
    rope: bool
    coordinate_scale: float
    time_scale: float
    sensors: tuple[SensorConfig, ...]
    pooler: PoolerConfig | None = None

    @property
    def head_dim(self) -> int:
        """Channels of one head."""
        return self.dims // self.heads

    def sensor(self, name: str) -> SensorConfig:
        """A sensor by name.

        Raises:
            CheckpointError: The model does not take this sensor.
        """
        for entry in self.sensors:
            if entry.name == name:
                return entry
        raise CheckpointError(f"this model takes {[s.name for s in self.sensors]}, not {name}")

    def bands(self, sensor: str) -> tuple[str, ...]:
        """Band order of a sensor.

        Raises:
            CheckpointError: The model does not take this sensor.
        """
        return self.sensor(sensor).bands


def tensor_shapes(config: EncoderConfig) -> dict[str, tuple[int, ...]]:
    """Official name (without ``encoder.``) and shape of every tensor that inference needs."""
    d = config.dims
    shapes: dict[str, tuple[int, ...]] = {"composite_encodings.month_embed.weight": (12, d // 4)}
    for sensor in config.sensors:
        for index, group in enumerate(sensor.band_sets):
            shapes |= _embed_shapes(patch_stem(sensor.name, index), len(group), config)
        shapes[f"composite_encodings.per_modality_channel_embeddings.{sensor.name}"] = (len(sensor.band_sets), d // 4)
    for i in range(config.depth):
        shapes |= _block_shapes(f"blocks.{i}", d, config.mlp)
        if config.rope:
            shapes[f"blocks.{i}.attn.rope_mixed_freqs"] = (3, config.heads, config.head_dim // 2)
    shapes |= {"norm.weight": (d,), "norm.bias": (d,)}
    return shapes | (_pooler_shapes(config.pooler, d, config.mlp) if config.pooler else {})


def parameters(config: EncoderConfig) -> int:
    """How many numbers inference needs."""
    return sum(prod(shape) for shape in tensor_shapes(config).values())


def default_sensors(version: str) -> tuple[SensorConfig, ...]:
    """The sensors and band sets of a version when a configuration does not list them.

    >>> [len(sensor.band_sets) for sensor in default_sensors("v1")], default_sensors("v1")[2].band_sets[0]
    ([3, 1, 2], ('B8',))
    """
    return tuple(SensorConfig(name=name, band_sets=default_band_sets(name, version=version)) for name in DEFAULT_BANDS)


def default_band_sets(sensor: str, *, version: str) -> tuple[tuple[str, ...], ...]:
    """Band sets of one sensor: v1's groups, one group of all bands later."""
    bands = DEFAULT_BANDS[sensor]
    ends = list(accumulate(V1_GROUPS[sensor] if version == "v1" else (len(bands),)))
    return tuple(bands[start:end] for start, end in zip([0, *ends], ends, strict=False))


def patch_stem(sensor: str, band_set: int = 0) -> str:
    """Common part of the names of the patch embedding of one band set of a sensor."""
    return f"patch_embeddings.per_modality_embeddings.{sensor}.{sensor}__{band_set}"


def pooler_norm(pooler: PoolerConfig, layer: int) -> str:
    """Name of the norm that a pooler layer puts on the tokens."""
    return f"attention_pooler.input_norms.{layer}" if pooler.per_depth else "attention_pooler.input_norm"


def _embed_shapes(stem: str, bands: int, config: EncoderConfig) -> dict[str, tuple[int, ...]]:
    d, h = config.dims, config.hidden
    if not h:
        return {f"{stem}.proj.weight": (d, bands, KERNEL_PX, KERNEL_PX), f"{stem}.proj.bias": (d,)}
    return {
        f"{stem}.pixel_proj.0.weight": (h, bands),
        f"{stem}.pixel_proj.0.bias": (h,),
        f"{stem}.proj.weight": (d, KERNEL_PX * KERNEL_PX * h),
        f"{stem}.proj.bias": (d,),
    }


def _block_shapes(block: str, d: int, mlp: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for name, rows, cols in (
        *((f"attn.{part}", d, d) for part in ("q", "k", "v", "proj")),
        ("mlp.fc1", mlp, d),
        ("mlp.fc2", d, mlp),
    ):
        shapes |= {f"{block}.{name}.weight": (rows, cols), f"{block}.{name}.bias": (rows,)}
    for name in ("norm1", "norm2"):
        shapes |= {f"{block}.{name}.weight": (d,), f"{block}.{name}.bias": (d,)}
    return shapes


def _pooler_shapes(pooler: PoolerConfig, d: int, mlp: int) -> dict[str, tuple[int, ...]]:
    stem, p = "attention_pooler", pooler.dims
    shapes: dict[str, tuple[int, ...]] = {f"{stem}.learned_query": (1, p)}
    for layer in range(pooler.depth):
        norm = pooler_norm(pooler, layer)
        shapes |= {f"{norm}.weight": (d,), f"{norm}.bias": (d,)}
        for kind in ("read_blocks", "self_attn_blocks"):
            shapes |= _block_shapes(f"{stem}.{kind}.{layer}", p, mlp)
    shapes |= {f"{stem}.norm.weight": (p,), f"{stem}.norm.bias": (p,)}
    if pooler.student:
        shapes |= {f"{stem}.student.0.weight": (pooler.student, p), f"{stem}.student.0.bias": (pooler.student,)}
        if pooler.student_norm:
            shapes |= {f"{stem}.student.1.weight": (pooler.student,), f"{stem}.student.1.bias": (pooler.student,)}
    return shapes
