"""Checkpoints: where a model comes from, and the checked encoder that is built from it.

A model is a folder with ``config.json`` and weights, a weights file, a Hugging Face id (``hub`` fetches it into the
local cache), or seeded random weights (``untrained``). ``weights`` and ``config_json`` read the two files; this module
joins them and writes the model's card. It knows nothing of windows, devices or dtypes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.encode import config_json, hub, untrained, weights
from pipeline.encode.layout import (
    SIZES,
    EncoderConfig,
    PoolerConfig,
    SensorConfig,
    parameters,
    patch_stem,
    pooler_norm,
    tensor_shapes,
)
from pipeline.errors import CheckpointError, ConfigError
from pipeline.types import ModelCard, content_hash

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

__all__ = [
    "Checkpoint",
    "EncoderConfig",
    "PoolerConfig",
    "SensorConfig",
    "describe",
    "load",
    "patch_stem",
    "pooler_norm",
    "resolve_output",
    "tensor_shapes",
]

STUDENT_PREFIX = 64
"""Channels that ``student64`` writes: the first of the normalised student, which it was also trained for."""
LICENCE = "OlmoEarth Artifact License"
"""Licence of the released weights (OlmoEarth model cards); assumed where a folder says nothing."""


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


def describe(model: str, output: str = "auto") -> ModelCard:
    """The card of a model; arguments and errors as ``load``.

    Reads and checks everything that ``load`` does, so a model that a plan accepted will also load.
    """
    return load(model, output).card


def load(model: str, output: str = "auto") -> Checkpoint:
    """Read and check a model.

    Args:
        model: A folder (``config.json`` and ``weights.pth``, ``model.safetensors`` or ``model.ckpt``); a weights file,
            with the ``config.json`` beside it if there is one; a Hugging Face id ``owner/name`` or
            ``owner/name@revision``, with or without ``hf:``; the short name of a release, ``v1.2-nano``; or
            ``random:VERSION-SIZE:SEED``. What exists on disk wins.
        output: What is written per place: ``mean`` or ``max`` of the tokens; with v1.3 also ``location``, ``student``
            and ``student64``. ``auto``: ``student`` where there is one, else ``mean``.

    Returns:
        The checkpoint. The name on its card finds the same files again: a Hugging Face id carries its commit.

    Raises:
        ConfigError: No such model, or an output that it does not have.
        CheckpointError: A file is missing, truncated or foreign, the structure is no release's, a tensor is missing,
            has another shape or holds NaN or infinity.
        TransientError: Hugging Face cannot be reached.
    """
    if model.startswith("random:"):
        return _load_random(model, output)
    path = Path(model)
    if path.is_dir():
        return _load_folder(model, path, output)
    if path.is_file():
        return _load_files(model, path, output)
    wanted = hub.parse(model)
    if wanted is None:
        raise ConfigError(
            f"model {model} does not exist: give a folder with config.json and weights.pth, a weights file, a Hugging "
            f"Face id such as {hub.RELEASES['v1.2-nano']}, or {untrained.examples()}"
        )
    folder = hub.fetch(wanted[0], wanted[1])
    return _load_folder(f"{wanted[0]}@{folder.name}", folder, output)


def resolve_output(config: EncoderConfig, output: str) -> tuple[str, int]:
    """(output, its width) for a wish.

    Raises:
        ConfigError: An unknown output, or one that this model does not have.
    """
    pooler = config.pooler
    widths = {"mean": config.dims, "max": config.dims}
    if pooler:
        widths["location"] = pooler.dims
        if pooler.student:
            widths["student"] = pooler.student
        if pooler.student >= STUDENT_PREFIX:
            widths["student64"] = STUDENT_PREFIX
    if output == "auto":
        output = "student" if "student" in widths else "mean"
    if output not in widths:
        raise ConfigError(
            f"output {output!r} is not one of this {config.version} model: use {', '.join(widths)} or auto"
        )
    return output, widths[output]


def _load_folder(name: str, folder: Path, output: str) -> Checkpoint:
    path = next((folder / file for file in weights.FILES if (folder / file).is_file()), None)
    if path is None:
        raise CheckpointError(f"model folder {name} has none of {', '.join(weights.FILES)}: download the whole model")
    if path.suffix != ".ckpt" and not (folder / "config.json").is_file():
        raise CheckpointError(f"model folder {name} has no config.json: download the whole model")
    return _load_files(name, path, output)


def _load_files(name: str, path: Path, output: str) -> Checkpoint:
    """A weights file, with the ``config.json`` beside it or without one."""
    state = weights.read(path)
    beside = path.with_name("config.json")
    config = config_json.read(beside, state) if beside.is_file() else config_json.derive(state)
    tensors = weights.pick(state, config)
    licence = _licence(path.parent)
    card = _card(name, config, output=output, sha256=weights.sha256(path), trained=True, licence=licence)
    return Checkpoint(card=card, config=config, tensors=tensors)


def _load_random(name: str, output: str) -> Checkpoint:
    config, seed = untrained.parse(name)
    tensors, digest = untrained.random_tensors(config, seed=seed)
    card = _card(name, config, output=output, sha256=digest, trained=False, licence=untrained.LICENCE)
    return Checkpoint(card=card, config=config, tensors=tensors)


def _card(name: str, config: EncoderConfig, *, output: str, sha256: str, trained: bool, licence: str) -> ModelCard:
    output, dims = resolve_output(config, output)
    key, pooler = (config.dims, config.depth, config.heads), config.pooler
    return ModelCard(
        name=name,
        version=config.version,
        size=next((size for size, numbers in SIZES.items() if numbers == key), "custom"),
        dims=dims,
        depth=config.depth,
        heads=config.heads,
        parameters=parameters(config),
        sensors=tuple(sensor.name for sensor in config.sensors),
        sha256=sha256,
        trained=trained,
        config=content_hash(asdict(config)),
        width=config.dims,
        hidden=config.hidden,
        band_sets=tuple((s.name, tuple(len(bands) for bands in s.band_sets)) for s in config.sensors),
        pooler_depth=pooler.depth if pooler else 0,
        student=pooler.student if pooler else 0,
        output=output,
        licence=licence,
    )


def _licence(folder: Path) -> str:
    """What a model's folder says about its licence: the head of its README (a Hugging Face model card), or LICENSE."""
    readme, text = folder / "README.md", folder / "LICENSE"
    if readme.is_file():
        _, mark, rest = readme.read_text(encoding="utf-8", errors="replace").partition("---\n")
        head = rest.partition("\n---")[0] if mark else ""
        said = dict(line.split(":", 1) for line in head.splitlines() if line.startswith("license") and ":" in line)
        named = said.get("license_name") or said.get("license")
        if named:
            return named.strip().strip("'\"")
    if text.is_file():
        lines = (line.strip() for line in text.read_text(encoding="utf-8", errors="replace").splitlines())
        return next((line for line in lines if line), LICENCE)
    return LICENCE
