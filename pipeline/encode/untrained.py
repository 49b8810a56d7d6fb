"""Random weights in the shape of a released model: ``random:VERSION-SIZE:SEED``.

They need no download, so tests, the demo and a first try of the command run anywhere. Nothing they produce means
anything; ``ModelCard.trained`` is False and every product is labelled. The values are not those of a fresh model, which
has zero biases and equal norms and would hide faults: every tensor is lively, and strengths are chosen so that the
image matters, positions matter and seams between windows stay near those of trained models.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from pipeline.encode.layout import RELEASED, SIZES, EncoderConfig, PoolerConfig, default_sensors, tensor_shapes
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

SPEC = re.compile(r"random:(?P<version>v1(?:\.[123])?)-(?P<size>[a-z]+):(?P<seed>\d{1,9})")
LICENCE = "none: random numbers"
MLP_RATIO = 4
"""Width of a block's MLP over the width of a token, in every release."""
CALM = 0.25
"""Strength of the attention output in random weights. At full strength random attention, which has no locality, makes
overlapping windows disagree as much as different scenes do; at 0.2-0.3 seams come near those of trained models."""
FOCUS = 3.0
"""Strength of the common part of queries and keys where the pooler reads. With equal biases on both sides the score
peaks where query and token are at the same place, so a location token is about its own ground, as a trained one is:
overlapping windows of 32 px disagree by 0.3 of the spread inside a window (measured on ``v1.3-base:0``, patch 4)."""
IMAGE = 4.0
"""Strength of patch embeddings where positions are added (v1, v1.1): the encodings, which differ from window to window,
would else outweigh the image (disagreement 0.9 of the spread; 0.35 with it, 0.25 in v1.2, same measure)."""


def parse(model: str) -> tuple[EncoderConfig, int]:
    """(configuration, seed) of ``random:VERSION-SIZE:SEED``.

    Raises:
        ConfigError: Not a valid name, or a size that this version never had.

    >>> parse("random:v1.2-nano:7")[0].dims, parse("random:v1.2-nano:7")[1]
    (128, 7)
    """
    match = SPEC.fullmatch(model)
    if match is None or match["size"] not in ("toy", *RELEASED[match["version"]]):
        raise ConfigError(f"model {model!r} is not a random model: use {examples()} with SEED a whole number")
    return random_config(match["version"], match["size"]), int(match["seed"])


def examples() -> str:
    """The valid names, for messages."""
    return ", ".join(f"random:{version}-{'|'.join(sizes)}:SEED" for version, sizes in RELEASED.items())


def random_config(version: str, size: str) -> EncoderConfig:
    """The configuration of a released version and size (OlmoEarth model cards), or of a version's ``toy``."""
    dims, depth, heads = SIZES[size]
    student = 16 if size == "toy" else 128
    pooler = PoolerConfig(dims=dims, depth=1, heads=heads, per_depth=False, student=student, student_norm=True)
    rope = version in ("v1.2", "v1.3")
    return EncoderConfig(
        version=version,
        dims=dims,
        depth=depth,
        heads=heads,
        hidden=0 if version == "v1" else {"toy": 8, "nano": 12}.get(size, 64),
        mlp=MLP_RATIO * dims,
        rope=rope,
        coordinate_scale=1.0,
        time_scale=1.0 / 30.0 if rope else 1.0,
        sensors=default_sensors(version),
        pooler=pooler if version == "v1.3" else None,
    )


def random_tensors(config: EncoderConfig, *, seed: int) -> tuple[dict[str, torch.Tensor], str]:
    """(float32 tensors by name, sha256 over names, shapes and values), keyed by (seed, name).

    The same tensor has the same values whatever else the model holds (v1.2 and v1.3 share theirs; v1.1 has stronger
    patch embeddings, see ``IMAGE``); torch's own generator is not touched.
    """
    import torch  # noqa: PLC0415 - a room of plans reads names without torch

    tensors: dict[str, torch.Tensor] = {}
    digest = hashlib.sha256()
    for name, shape in tensor_shapes(config).items():
        value = np.ascontiguousarray(_random_value(name, shape, seed=seed))
        if name.startswith("patch_embeddings.") and name.endswith(".proj.weight") and not config.rope:
            value *= IMAGE
        digest.update(f"{name}{shape}".encode() + value.tobytes())
        tensors[name] = torch.from_numpy(value)
    return tensors, digest.hexdigest()


def _random_value(name: str, shape: tuple[int, ...], *, seed: int) -> NDArray[np.float32]:
    """Values of one tensor; none stays at a value that would hide a fault."""
    reads = ".read_blocks." in name
    key = name.replace(".attn.k.bias", ".attn.q.bias") if reads else name  # see FOCUS
    noise = np.random.default_rng([seed, zlib.crc32(key.encode())]).standard_normal(shape, dtype=np.float64)
    if name.endswith("rope_mixed_freqs"):  # a ladder of wavelengths, from a few pixels to beyond the window
        steps = np.arange(shape[-1]) / shape[-1]
        value = noise * 10.0 ** (-2.0 * steps)
    elif name.endswith("month_embed.weight"):  # the released table, slightly moved
        angle = 2 * np.pi * np.arange(12)[:, None] / 12
        half = np.ones((1, shape[1] // 2))
        value = np.concatenate([np.sin(angle) * half, np.cos(angle) * half], axis=1) + 0.1 * noise
    elif "channel_embeddings" in name or name.endswith("learned_query"):
        value = 0.5 * noise
    elif len(shape) == 1:
        value = _vector(name, noise)
    else:
        value = noise * _gain(name, shape) / np.sqrt(prod(shape[1:]))
    calm = CALM if ".attn.proj." in name and not reads else 1.0
    return (value * calm).astype(np.float32)


def _vector(name: str, noise: NDArray[np.float64]) -> NDArray[np.float64]:
    """A norm's scale around 1, every other vector around 0."""
    if name.endswith("weight") and ("norm" in name or name.endswith("student.1.weight")):
        return 1.0 + 0.2 * noise
    return (FOCUS if ".read_blocks." in name and name.endswith(("q.bias", "k.bias")) else 0.1) * noise


def _gain(name: str, shape: tuple[int, ...]) -> float:
    """Strength of a weight.

    Normalised pixels vary by about 0.2: 4 lets the image outweigh the encodings. Queries and keys: 1.5 lets positions
    matter ten times more than bfloat16 rounding does, so that the start-up gate can tell them apart; where the pooler
    reads, 0.5 leaves the say to ``FOCUS``.
    """
    if "pixel_proj" in name or len(shape) == 4:  # what reads pixels: the per-pixel layer or the convolution
        return 4.0
    if ".attn.q." in name or ".attn.k." in name:
        return 0.5 if ".read_blocks." in name else 1.5
    return 1.0
