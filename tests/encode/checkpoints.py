"""Random checkpoints in the official layout, made with the reference package's own model class.

Every tensor that training could have moved is perturbed, keyed by (seed, name), so that a parity test sees a forgotten
bias, norm or encoding.
"""

from __future__ import annotations

import json
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from olmoearth_pretrain_minimal.olmoearth_pretrain_v1.nn.flexi_vit import (
    AttentionPoolerConfig,
    EncoderConfig,
    PredictorConfig,
)
from olmoearth_pretrain_minimal.olmoearth_pretrain_v1.nn.latent_mim import LatentMIMConfig
from olmoearth_pretrain_minimal.olmoearth_pretrain_v1.nn.tokenization import ModalityTokenization, TokenizationConfig
from olmoearth_pretrain_minimal.olmoearth_pretrain_v1.utils.constants import Modality
from olmoearth_pretrain_minimal.olmoearth_pretrain_v1.utils.datatypes import MaskedOlmoEarthSample, MaskValue

if TYPE_CHECKING:
    from pathlib import Path

SENSORS = ["sentinel2_l2a", "sentinel1", "landsat"]
MAPS = ["worldcover", "srtm"]
VERSIONS = ("v1", "v1.1", "v1.2", "v1.3")
SIZES = {
    "toy": (64, 2, 4, 8),
    "nano": (128, 4, 8, 12),
    "tiny": (192, 12, 3, 64),
    "small": (384, 12, 6, 64),
    "base": (768, 12, 12, 64),
    "large": (1024, 24, 16, 64),
}
"""width, depth, heads, hidden channels per pixel; ``toy`` also leaves the map modalities out."""
PACKAGE = "olmoearth_pretrain_minimal.olmoearth_pretrain_v1."


def reference_model(
    size: str,
    *,
    version: str = "v1.2",
    seed: int = 0,
    pooler_depth: int = 1,
    per_depth: bool = True,
) -> Any:
    """A reference model (LatentMIM) with every trainable tensor perturbed, in eval mode.

    ``pooler_depth`` and ``per_depth`` (a norm of the tokens for every layer) are those of v1.3's pooler.
    """
    configs = _configs(size, version, pooler_depth=pooler_depth, per_depth=per_depth)
    config = LatentMIMConfig(**configs, projection_only_target=version == "v1.3")
    model = config.build().eval()
    model.load_state_dict({name: _perturbed(name, value, seed) for name, value in model.state_dict().items()})
    model.made_from = (version, config)
    return model


def write_checkpoint(folder: Path, model: Any, *, style: str = "official") -> Path:
    """Write config.json and weights.pth as the released folders have them.

    ``official``: what was published (foreign class names; v1 without keys for positions and for the linear patch
    embedding, and with stored tables; v1.2 with the deprecated key of the position encoding; v1.3 with the heads of
    its training; no keys that have defaults). ``current``: as the package serialises today.
    """
    folder.mkdir(parents=True, exist_ok=True)
    version, config = model.made_from
    values, state = config.as_config_dict(), dict(model.state_dict())
    if style == "official":
        values = _as_published(values, version)
        state |= _extra_tensors(version, model.encoder.embedding_size)
    masking = {"strategy_config": {"only_decode_modalities": MAPS}}
    whole = {"run_name": "random", "model": values, "train_module": {"masking_config": masking}}
    (folder / "config.json").write_text(json.dumps(whole))
    torch.save(state, folder / "weights.pth")
    return folder


def reference_tokens(
    model: Any,
    pixels: torch.Tensor,
    dates: Any,
    *,
    patch_px: int,
    visible: torch.Tensor | None = None,
    sensor: str = "sentinel2_l2a",
) -> torch.Tensor:
    """Tokens (window, time, row, col, dim) of (window, time, band, row, col) pixels of a sensor with one band set.

    With ``visible`` (window, time, token_row, token_col) use one window only: the reference depends on batch mates.
    """
    seen = None if visible is None else {sensor: visible}
    tokens, _, _ = reference_fields(model, {sensor: pixels}, dates, patch_px=patch_px, visible=seen)
    return tokens[sensor].squeeze(-2)


def reference_locations(model: Any, pixels: dict[str, torch.Tensor], dates: Any, **options: Any) -> tuple[Any, Any]:
    """(location tokens, student's) of a v1.3 model, each (window, row, col, dim); options as ``reference_fields``."""
    return reference_fields(model, pixels, dates, **options)[1:]


def reference_fields(
    model: Any,
    pixels: dict[str, torch.Tensor],
    dates: Any,
    *,
    patch_px: int,
    visible: dict[str, torch.Tensor] | None = None,
    location_px: int | None = None,
) -> tuple[dict[str, torch.Tensor], torch.Tensor | None, torch.Tensor | None]:
    """The reference's (tokens by sensor, location tokens, student's location tokens).

    Args:
        model: From ``reference_model``.
        pixels: (window, time, band, row, col) by sensor, normalised, bands in the package's order.
        dates: One per time step, shared by the sensors.
        patch_px: Side of a token.
        visible: (window, time, token_row, token_col) bool by sensor; a sensor left out is seen whole. Use one window
            only: the reference depends on batch mates when something is missing.
        location_px: Side of a location token, default ``patch_px``; v1.3 only.

    Returns:
        Tokens (window, time, token_row, token_col, band_set, dim); the others (window, row, col, dim) or None.
    """
    windows = next(iter(pixels.values())).shape[0]
    assert visible is None or windows == 1
    stamps = torch.tensor([[d.day, d.month - 1, d.year] for d in dates]).repeat(windows, 1, 1)
    inputs: dict[str, torch.Tensor] = {}
    for sensor, values in pixels.items():
        inputs[sensor] = values.permute(0, 3, 4, 1, 2).contiguous()
        inputs[f"{sensor}_mask"] = _mask(model, sensor, values, visible and visible.get(sensor), patch_px=patch_px)
    options = {} if location_px is None else {"location_query_patch_size": location_px}
    sample = MaskedOlmoEarthSample(timestamps=stamps, **inputs)
    with torch.inference_mode():
        output = model.encoder(sample, patch_size=patch_px, fast_pass=visible is None, **options)
    tokens = {
        sensor: getattr(output["tokens_and_masks"], sensor).permute(0, 3, 1, 2, 4, 5).clone() for sensor in pixels
    }
    places = (output.get(name) for name in ("location_tokens", "student_location_tokens"))
    location, student = (None if place is None else place.clone() for place in places)
    return tokens, location, student


def _mask(
    model: Any, sensor: str, pixels: torch.Tensor, visible: torch.Tensor | None, *, patch_px: int
) -> torch.Tensor:
    """(window, row, col, time, band set): 0 is seen."""
    windows, periods, _, height, width = pixels.shape
    sets = model.encoder.tokenization_config.get_num_bandsets(sensor)
    mask = torch.zeros(windows, height, width, periods, sets)
    if visible is not None:
        fine = visible.repeat_interleave(patch_px, dim=2).repeat_interleave(patch_px, dim=3)
        mask += torch.where(fine, 0.0, float(MaskValue.MISSING.value)).permute(0, 2, 3, 1).unsqueeze(-1)
    return mask


def _configs(
    size: str, version: str, *, pooler_depth: int, per_depth: bool
) -> dict[str, EncoderConfig | PredictorConfig]:
    width, depth, heads, hidden = SIZES[size]
    common: dict[str, Any] = {
        "num_heads": heads,
        "mlp_ratio": 4.0,
        "supported_modality_names": SENSORS if size == "toy" else SENSORS + MAPS,
        "max_sequence_length": 12,
    }
    encoder: dict[str, Any] = {"embedding_size": width, "depth": depth, "max_patch_size": 8, "drop_path": 0.1}
    decoder: dict[str, Any] = {"encoder_embedding_size": width, "decoder_embedding_size": width, "depth": 1}
    if version != "v1":
        common["tokenization_config"] = _one_group()
        encoder |= {"use_linear_patch_embed": True, "patch_embed_hidden_sizes": [hidden]}
    if version in ("v1.2", "v1.3"):
        common["position_encoding"] = "rope_3d_mixed"
        common |= {"rope_mixed_base": 10_000.0, "rope_temporal_coordinate_scale": 1.0 / 30.0}
    if version == "v1.3":
        encoder["attention_pooler_config"] = AttentionPoolerConfig(
            pooler_dim=width,
            pooler_depth=pooler_depth,
            per_depth_read_proj=per_depth,
            attn_dim=width,
            student_dims=[16, 8] if size == "toy" else [128, 64],
            student_output_norm=True,
        )
        decoder |= {"use_attention_pooler": True, "pooler_dim": width}
    return {
        "encoder_config": EncoderConfig(**common | encoder),
        "decoder_config": PredictorConfig(
            **common | decoder | ({"position_encoding": "rope"} if version == "v1.3" else {})
        ),
    }


def _one_group() -> TokenizationConfig:
    """All bands of a sensor in one band set, as from v1.1 on."""
    groups = {name: [list(Modality.get(name).band_order)] for name in ("sentinel2_l2a", "landsat")}
    return TokenizationConfig(
        overrides={name: ModalityTokenization(band_groups=bands) for name, bands in groups.items()}
    )


def _as_published(values: dict[str, Any], version: str) -> dict[str, Any]:
    encoder = values["encoder_config"]
    for key in ("rope_coordinate_scale", "num_register_tokens", "qk_norm", "max_patch_size", "post_proj_hidden_sizes"):
        encoder.pop(key, None)
    if version != "v1.3":
        encoder.pop("attention_pooler_config", None)
    if version == "v1":
        for key in [key for key in encoder if key.startswith("rope") or key == "position_encoding"]:
            del encoder[key]
        del encoder["use_linear_patch_embed"]
    if version == "v1.2":
        encoder["spatial_pos_encoding"] = encoder.pop("position_encoding")
    text = json.dumps(values)
    if version == "v1":
        return json.loads(text.replace(PACKAGE, "helios.").replace("flexi_vit", "flexihelios"))
    return json.loads(text.replace(PACKAGE, "olmoearth_pretrain."))


def _extra_tensors(version: str, width: int) -> dict[str, torch.Tensor]:
    """What published files hold besides the model's own tensors."""
    if version == "v1":
        table = torch.zeros(12, width // 4)
        return {f"{part}.composite_encodings.pos_embed": table for part in ("encoder", "decoder", "target_encoder")}
    if version == "v1.3":
        heads = ("supervision_head.heads.srtm", "location_token_distillation_head.back_projections.0")
        return {f"{head}.weight": torch.full((1, 1), torch.nan) for head in heads}
    return {}


def _perturbed(name: str, value: torch.Tensor, seed: int) -> torch.Tensor:
    if not value.is_floating_point() or name.endswith(("month_embed.weight", "pos_embed")):
        return value
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    noise = torch.from_numpy(rng.standard_normal(tuple(value.shape)).astype(np.float32))
    if name.endswith("rope_mixed_freqs"):
        return noise * 10.0 ** (-2.0 * torch.arange(value.shape[-1]) / value.shape[-1]) + 0.02 * noise.flip(-1)
    if "channel_embeddings" in name or name.endswith("learned_query"):
        return 0.5 * noise
    if value.ndim <= 1:
        norm = "norm" in name or name.endswith("student.1.weight")
        return 1.0 + 0.2 * noise if norm and name.endswith("weight") else 0.1 * noise
    gain = 1.5 if ".attn.q." in name or ".attn.k." in name else 1.0
    return gain * noise / float(np.prod(value.shape[1:])) ** 0.5
