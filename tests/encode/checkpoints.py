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
from olmoearth_pretrain_minimal.olmoearth_pretrain_v1.nn.flexi_vit import EncoderConfig, PredictorConfig
from olmoearth_pretrain_minimal.olmoearth_pretrain_v1.nn.latent_mim import LatentMIMConfig
from olmoearth_pretrain_minimal.olmoearth_pretrain_v1.nn.tokenization import ModalityTokenization, TokenizationConfig
from olmoearth_pretrain_minimal.olmoearth_pretrain_v1.utils.constants import Modality
from olmoearth_pretrain_minimal.olmoearth_pretrain_v1.utils.datatypes import MaskedOlmoEarthSample, MaskValue

if TYPE_CHECKING:
    from pathlib import Path

SENSORS = ["sentinel2_l2a", "sentinel1", "landsat"]
MAPS = ["worldcover", "srtm"]
SIZES = {"nano": (128, 4, 8, 12), "tiny": (192, 12, 3, 64)}
"""width, depth, heads, hidden channels per pixel."""


def reference_model(size: str, *, seed: int = 0, position: str = "rope_3d_mixed") -> Any:
    """A reference model (LatentMIM) of v1.2 structure with every trainable tensor perturbed, in eval mode."""
    model = LatentMIMConfig(**_configs(size, position=position)).build().eval()
    state = {name: _perturbed(name, value, seed) for name, value in model.state_dict().items()}
    model.load_state_dict(state)
    return model


def write_checkpoint(folder: Path, model: Any, *, style: str = "official") -> Path:
    """Write config.json and weights.pth as the released folders have them.

    ``official``: deprecated key of the position encoding, foreign class names, no heads or scales that have defaults.
    ``current``: as the package serialises today.
    """
    folder.mkdir(parents=True, exist_ok=True)
    size = {width: size for size, (width, *_rest) in SIZES.items()}[model.encoder.embedding_size]
    config = LatentMIMConfig(**_configs(size)).as_config_dict()
    if style == "official":
        encoder = config["encoder_config"]
        encoder["spatial_pos_encoding"] = encoder.pop("position_encoding")
        for key in (
            "rope_coordinate_scale",
            "num_register_tokens",
            "qk_norm",
            "attention_pooler_config",
            "max_patch_size",
        ):
            encoder.pop(key, None)
        config = json.loads(json.dumps(config).replace("olmoearth_pretrain_minimal.olmoearth_pretrain_v1.", "helios."))
    masking = {"strategy_config": {"only_decode_modalities": MAPS}}
    whole = {"model": config, "train_module": {"masking_config": masking}}
    (folder / "config.json").write_text(json.dumps(whole))
    torch.save(model.state_dict(), folder / "weights.pth")
    return folder


def _configs(size: str, *, position: str = "rope_3d_mixed") -> dict[str, Any]:
    width, depth, heads, hidden = SIZES[size]
    groups = TokenizationConfig(
        overrides={
            name: ModalityTokenization(band_groups=[list(Modality.get(name).band_order)])
            for name in ("sentinel2_l2a", "landsat")
        }
    )
    common: dict[str, Any] = {
        "num_heads": heads,
        "mlp_ratio": 4.0,
        "supported_modality_names": SENSORS + MAPS,
        "max_sequence_length": 12,
        "tokenization_config": groups,
        "position_encoding": position,
        "rope_mixed_base": 10_000.0,
        "rope_temporal_coordinate_scale": 1.0 / 30.0,
    }
    return {
        "encoder_config": EncoderConfig(
            embedding_size=width,
            depth=depth,
            max_patch_size=8,
            drop_path=0.1,
            use_linear_patch_embed=True,
            patch_embed_hidden_sizes=[hidden],
            **common,
        ),
        "decoder_config": PredictorConfig(
            encoder_embedding_size=width, decoder_embedding_size=width, depth=1, **common
        ),
    }


def _perturbed(name: str, value: torch.Tensor, seed: int) -> torch.Tensor:
    if not value.is_floating_point() or name.endswith("month_embed.weight"):
        return value
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    noise = torch.from_numpy(rng.standard_normal(tuple(value.shape)).astype(np.float32))
    if name.endswith("rope_mixed_freqs"):
        return noise * 10.0 ** (-2.0 * torch.arange(value.shape[-1]) / value.shape[-1]) + 0.02 * noise.flip(-1)
    if "channel_embeddings" in name:
        return 0.5 * noise
    if value.ndim <= 1:
        norm = "norm" in name.rsplit(".", 2)[-2] if "." in name else False
        return 1.0 + 0.2 * noise if norm and name.endswith("weight") else 0.1 * noise
    gain = 1.5 if ".attn.q." in name or ".attn.k." in name else 1.0
    return gain * noise / float(np.prod(value.shape[1:])) ** 0.5


def reference_tokens(
    model: Any,
    pixels: torch.Tensor,
    dates: Any,
    *,
    patch_px: int,
    visible: torch.Tensor | None = None,
    sensor: str = "sentinel2_l2a",
) -> torch.Tensor:
    """The reference's tokens (window, time, token_row, token_col, dim) of (window, time, band, row, col) pixels.

    With ``visible`` (window, time, token_row, token_col) use one window only: the reference depends on batch mates.
    """
    windows, periods, _, height, width = pixels.shape
    mask = torch.zeros(windows, height, width, periods, 1)
    if visible is not None:
        assert windows == 1
        fine = visible.repeat_interleave(patch_px, dim=2).repeat_interleave(patch_px, dim=3)
        mask = torch.where(fine, 0.0, float(MaskValue.MISSING.value)).permute(0, 2, 3, 1).unsqueeze(-1)
    stamps = torch.tensor([[d.day, d.month - 1, d.year] for d in dates]).repeat(windows, 1, 1)
    sample = MaskedOlmoEarthSample(
        timestamps=stamps, **{sensor: pixels.permute(0, 3, 4, 1, 2).contiguous(), f"{sensor}_mask": mask}
    )
    with torch.inference_mode():
        output = model.encoder(sample, patch_size=patch_px, fast_pass=visible is None)
    tokens = getattr(output["tokens_and_masks"], sensor)  # (window, row, col, time, band set, dim)
    return tokens.squeeze(-2).permute(0, 3, 1, 2, 4).clone()
