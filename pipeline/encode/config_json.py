"""The encoder's configuration: from a training configuration (``config.json``), or from the weights alone.

A ``config.json`` is the configuration of a whole training run, of which ``model.encoder_config`` matters. Published
ones come from several generations of code, so keys have older names and defaults that changed; what the weights show
(kind of patch embedding, widths, layers of the pooler) is taken from them. What no release has is refused by name, for
a silently wrong vector is worse than none. Class names (``_CLASS_``) are never looked at.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from pipeline.encode.bands import DEFAULT_BANDS, SENSORS
from pipeline.encode.layout import (
    SIZES,
    V1_GROUPS,
    EncoderConfig,
    PoolerConfig,
    SensorConfig,
    default_band_sets,
    patch_stem,
)
from pipeline.encode.patch import KERNEL_PX
from pipeline.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pipeline.encode.weights import State

MAX_BYTES = 4_000_000
MLP_RATIO = 4
TIME_SCALE = 1.0 / 30.0
"""Days to time coordinate in every release with rotary positions; only used when there is no configuration."""
REFUSED_TENSORS = {
    "register_tokens": "register tokens",
    ".attn.q_norm.": "norms of queries and keys",
    ".post_proj.": "layers after the patch projection",
    ".pixel_proj.2.": "more than one layer per pixel",
    "attention_pooler.kv_proj": "a pooler narrower than the encoder",
}
"""Parts of names that belong to no released model, and what they would mean."""
POOLER_KEYS = {
    "pooler_dim": ("register_dim",),
    "num_heads": ("register_num_heads",),
    "attn_dim": ("register_attn_dim",),
    "student_dims": ("register_projection_dims",),
}
"""Keys of the pooler and their older names: in ``perceiver_config``, or flat in the encoder's configuration."""
INERT = {
    "register_grid_size": (0, None),
    "register_read_depth": (1, None),
    "register_interleave": (True, None),
    "register_latent_self_attn": (True, None),
    "register_learned_read_weighting": (False, None),
    "register_projection_type": ("linear", None),
}
"""Flat keys of the oldest v1.3 configurations, with the values at which they change nothing."""


def read(path: Path, state: State) -> EncoderConfig:
    """The encoder that a ``config.json`` describes, with what only the weights know.

    Raises:
        CheckpointError: Not a model configuration, or a structure that no release has, named.
    """
    if path.stat().st_size > MAX_BYTES:
        raise CheckpointError(f"{path} is larger than {MAX_BYTES} bytes: not a model configuration")
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
        encoder = whole["model"]["encoder_config"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, RecursionError) as err:
        raise CheckpointError(f"{path} is not a model configuration with model.encoder_config") from err
    if not isinstance(encoder, dict):
        raise CheckpointError(f"{path}: model.encoder_config must hold keys and values")
    return _build(encoder, state, sensors=_sensor_names(whole, encoder, str(path)), where=str(path))


def derive(state: State) -> EncoderConfig:
    """The encoder that the weights alone show; band order and time scale are those of the releases.

    Raises:
        CheckpointError: The weights do not say how many heads they have, or are of a structure no release has.
    """
    where = f"{state.path} (no config.json beside it)"
    dims, depth = (state.shape("norm.weight") or (0,))[0], state.count("blocks")
    frequencies = state.shape("blocks.0.attn.rope_mixed_freqs")
    known = {size[:2]: size[2] for size in SIZES.values()}
    heads = frequencies[1] if frequencies is not None and len(frequencies) == 3 else known.get((dims, depth))
    if heads is None:
        raise CheckpointError(f"{where}: width {dims} and {depth} blocks are no released size: add its config.json")
    encoder: dict[str, object] = {"embedding_size": dims, "depth": depth, "num_heads": heads}
    if frequencies is not None:
        encoder |= {"position_encoding": "rope_3d_mixed", "rope_temporal_coordinate_scale": TIME_SCALE}
    query = state.shape("attention_pooler.learned_query")
    if query is not None:
        encoder["attention_pooler_config"] = {"pooler_dim": query[-1], "attn_dim": dims}
    stem = "composite_encodings.per_modality_channel_embeddings"
    sensors = tuple(name for name in SENSORS if state.shape(f"{stem}.{name}") is not None)
    return _build(encoder, state, sensors=sensors, where=where)


def _build(encoder: Mapping[str, Any], state: State, *, sensors: tuple[str, ...], where: str) -> EncoderConfig:
    try:
        return _encoder(encoder, state, sensors=sensors, where=where)
    except (
        TypeError,
        AttributeError,
        ValueError,
        LookupError,
        OverflowError,
    ) as err:  # a file may hold anything under any key
        raise CheckpointError(f"{where}: a value of the wrong kind in the encoder's configuration: {err}") from err


def _encoder(encoder: Mapping[str, Any], state: State, *, sensors: tuple[str, ...], where: str) -> EncoderConfig:
    _refuse(encoder, state, where)
    if not sensors:
        raise CheckpointError(f"{where}: the model takes none of {SENSORS}")
    dims, depth, heads = (_positive(encoder, key, where) for key in ("embedding_size", "depth", "num_heads"))
    if dims % heads or dims % 16 or (dims // heads) % 2:
        raise CheckpointError(
            f"{where}: embedding_size {dims}, num_heads {heads}: want a multiple of 16, even head width"
        )
    if state.count("blocks") != depth:
        raise CheckpointError(f"{where}: depth is {depth}, the weights have {state.count('blocks')} blocks")
    rope, hidden = _is_rope(encoder, state, where), _hidden(sensors[0], state)
    pooler = _pooler(encoder, state, dims=dims, heads=heads, where=where)
    version = {
        (False, True, False): "v1",
        (False, False, False): "v1.1",
        (True, False, False): "v1.2",
        (True, False, True): "v1.3",
    }.get((rope, hidden == 0, pooler is not None))
    if version is None:
        parts = ("rotary" if rope else "absolute", "a per-pixel layer" if hidden else "a convolution")
        also = " and a pooler" if pooler else ""
        raise CheckpointError(f"{where}: {parts[0]} positions with {parts[1]}{also} belong to no released model")
    return EncoderConfig(
        version=version,
        dims=dims,
        depth=depth,
        heads=heads,
        hidden=hidden,
        mlp=_mlp(encoder, state, dims=dims, where=where),
        rope=rope,
        coordinate_scale=_number(encoder, "rope_coordinate_scale", 1.0, where) if rope else 1.0,
        time_scale=_number(encoder, "rope_temporal_coordinate_scale", 1.0, where) if rope else 1.0,
        sensors=tuple(_sensor(name, encoder, state, where) for name in sensors),
        pooler=pooler,
    )


def _refuse(encoder: Mapping[str, Any], state: State, where: str) -> None:
    """Structures that exist in the training code and in no release."""
    for key in ("num_register_tokens", "qk_norm", "post_proj_hidden_sizes"):
        if encoder.get(key):
            raise CheckpointError(f"{where}: {key}={encoder[key]!r} belongs to no released model")
    if len(encoder.get("patch_embed_hidden_sizes") or (0,)) != 1:
        raise CheckpointError(f"{where}: patch_embed_hidden_sizes={encoder['patch_embed_hidden_sizes']!r}, want one")
    if encoder.get("max_patch_size", KERNEL_PX) != KERNEL_PX:
        raise CheckpointError(f"{where}: max_patch_size is {encoder['max_patch_size']}, want {KERNEL_PX}")
    for key, inert in INERT.items():
        if encoder.get(key) not in inert:
            raise CheckpointError(f"{where}: {key}={encoder[key]!r} belongs to no released model")
    for name, own in state.names.items():
        for part, meaning in REFUSED_TENSORS.items():
            if part in name and name.startswith(("blocks.", "patch_embeddings.", "attention_pooler.", "register")):
                raise CheckpointError(f"{state.path}: tensor {own} means {meaning}, which no released model has")


def _is_rope(encoder: Mapping[str, Any], state: State, where: str) -> bool:
    """Rotary positions; ``spatial_pos_encoding``, the older key, wins when both are there."""
    position = encoder.get("spatial_pos_encoding") or encoder.get("position_encoding") or "absolute"
    if position not in ("absolute", "rope_3d_mixed"):
        raise CheckpointError(f"{where}: position encoding {position!r} belongs to no released model")
    if position == "absolute" and state.shape("blocks.0.attn.rope_mixed_freqs") is not None:
        raise CheckpointError(f"{where}: absolute positions, but {state.path.name} holds rotary frequencies")
    return bool(position == "rope_3d_mixed")


def _hidden(sensor: str, state: State) -> int:
    """Width of the per-pixel layer, 0 for a convolution: the weights say it, configurations often do not."""
    stem = patch_stem(sensor)
    proj, pixel = state.shape(f"{stem}.proj.weight"), state.shape(f"{stem}.pixel_proj.0.weight")
    if proj is None:
        raise CheckpointError(f"{state.path} lacks tensor encoder.{stem}.proj.weight")
    if len(proj) == 4:
        return 0
    if pixel is None:
        raise CheckpointError(f"{state.path}: a linear patch embedding without encoder.{stem}.pixel_proj.0.weight")
    return pixel[0]


def _mlp(encoder: Mapping[str, Any], state: State, *, dims: int, where: str) -> int:
    if encoder.get("mlp_ratio") is None:
        return (state.shape("blocks.0.mlp.fc1.weight") or (MLP_RATIO * dims,))[0]
    return int(dims * _number(encoder, "mlp_ratio", MLP_RATIO, where))


def _pooler(encoder: Mapping[str, Any], state: State, *, dims: int, heads: int, where: str) -> PoolerConfig | None:
    stem = "attention_pooler"
    values = _pooler_values(encoder)
    if values is None:
        if state.shape(f"{stem}.learned_query") is not None:
            raise CheckpointError(f"{where}: no attention_pooler_config, but {state.path.name} holds a pooler")
        return None
    # with these equal the tokens go into the read blocks as they are; else projections that no release has
    width, inner = values.get("pooler_dim"), values.get("attn_dim")
    if width != dims or inner != dims:
        raise CheckpointError(f"{where}: pooler_dim {width!r} and attn_dim {inner!r}, want embedding_size {dims}")
    own_heads = values.get("num_heads") or heads
    if not isinstance(own_heads, int) or own_heads < 1 or dims % own_heads or (dims // own_heads) % 4:
        raise CheckpointError(f"{where}: pooler with num_heads {own_heads!r} has no head width in steps of 4")
    depth = state.count(f"{stem}.read_blocks")
    if not depth:
        raise CheckpointError(f"{state.path} lacks tensors encoder.{stem}.read_blocks.*: not a v1.3 model")
    student = state.shape(f"{stem}.student.0.weight")
    if values.get("student_dims") and student is None:
        raise CheckpointError(f"{state.path} lacks tensor encoder.{stem}.student.0.weight")
    return PoolerConfig(
        dims=dims,
        depth=depth,
        heads=own_heads,
        per_depth=state.shape(f"{stem}.input_norms.0.weight") is not None,
        student=student[0] if student else 0,
        student_norm=state.shape(f"{stem}.student.1.weight") is not None,
        rope_base=_number(encoder, "rope_base", 10_000.0, where),
    )


def _pooler_values(encoder: Mapping[str, Any]) -> dict[str, Any] | None:
    """The pooler's keys under their newest names, None without a pooler."""
    found = encoder.get("attention_pooler_config") or encoder.get("perceiver_config")
    if found is None and encoder.get("use_register_bottleneck"):
        found = {"register_dim": encoder.get("embedding_size", 0) // 2} | dict(encoder)  # its old default
        found.pop("num_heads", None)  # flat: the encoder's
    if not isinstance(found, dict):
        return None
    values: dict[str, Any] = {}
    for key, older in POOLER_KEYS.items():
        values[key] = next((found[name] for name in (key, *older) if found.get(name) is not None), None)
    return values


def _sensor_names(whole: Mapping[str, Any], encoder: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """Supported sensors, less those a training configuration marks as decode-only; maps are never read."""
    decode_only: list[object] = []
    for section in ("train_module", "data_loader"):
        node: object = whole
        for key in (section, "masking_config", "strategy_config", "only_decode_modalities"):
            node = node.get(key) if isinstance(node, dict) else None
        if isinstance(node, list):
            decode_only = node
            break
    supported = encoder.get("supported_modality_names") or SENSORS
    if not isinstance(supported, list | tuple):
        raise CheckpointError(f"{where}: supported_modality_names is {supported!r}, want a list")
    return tuple(s for s in SENSORS if s in supported and s not in decode_only)


def _sensor(name: str, encoder: Mapping[str, Any], state: State, where: str) -> SensorConfig:
    """The band sets of a sensor; without a list of them, the released ones that the weights have room for."""
    overrides = (encoder.get("tokenization_config") or {}).get("overrides") or {}
    groups = (overrides.get(name) or {}).get("band_groups")
    if groups is not None:
        sets = tuple(tuple(group) for group in groups)
        if sorted(band for group in sets for band in group) != sorted(DEFAULT_BANDS[name]):
            raise CheckpointError(
                f"{where}: band_groups of {name} are {groups}, want every band of {DEFAULT_BANDS[name]} once"
            )
        return SensorConfig(name=name, band_sets=sets)
    count = (state.shape(f"composite_encodings.per_modality_channel_embeddings.{name}") or (0,))[0]
    if count not in (1, len(V1_GROUPS[name])):
        raise CheckpointError(
            f"{where}: no band_groups of {name}, and its {count} band sets are not those of a release"
        )
    return SensorConfig(name=name, band_sets=default_band_sets(name, version="v1" if count > 1 else "v1.1"))


def _positive(encoder: Mapping[str, Any], key: str, where: str) -> int:
    value = encoder.get(key)
    if not isinstance(value, int) or value <= 0:
        raise CheckpointError(f"{where}: {key} is {value!r}, want a positive integer")
    return value


def _number(encoder: Mapping[str, Any], key: str, default: float, where: str) -> float:
    value = encoder.get(key, default)
    if not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise CheckpointError(f"{where}: {key} is {value!r}, want a positive number")
    return float(value)
