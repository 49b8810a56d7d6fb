"""Weights files: which tensors of an encoder they hold, checked before anything is built from them.

Three kinds are read: ``weights.pth`` (a state dict of the released layout), ``*.safetensors`` (the same names) and the
checkpoint that rslearn's Lightning trainer writes (``model.ckpt``: a dict whose ``state_dict`` holds the encoder deep
inside). A file is untrusted: a pickle is read with ``weights_only``, so no code of the file is ever run.

Names are reduced to those of ``layout``: the prefix is cut off, and names that the attention pooler of v1.3 had before
its release are replaced. This module knows nothing of configurations.
"""

from __future__ import annotations

import hashlib
import pickle
import re
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.encode.layout import EncoderConfig, tensor_shapes
from pipeline.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

FILES = ("weights.pth", "model.safetensors", "model.ckpt")
"""Names under which a folder holds its weights, the first that is there wins."""
ANCHOR = "patch_embeddings.per_modality_embeddings."
"""What only an encoder (and its frozen copy, the target encoder) holds: it shows where the encoder's names start."""
OLDER = (
    (re.compile(r"^register_projection_norm\."), "attention_pooler.student.1."),
    (re.compile(r"^register_projection\."), "attention_pooler.student.0."),
    (re.compile(r"^register_student\."), "attention_pooler.student."),
    (re.compile(r"^(perceiver|register_bottleneck)\."), "attention_pooler."),
    (re.compile(r"^attention_pooler\.register$"), "attention_pooler.learned_query"),
    (re.compile(r"^attention_pooler\.latent_blocks\."), "attention_pooler.self_attn_blocks."),
)
"""Older names of the pooler's tensors, applied in this order. ``perceiver``: olmoearth-pretrain-minimal up to 0.1.2;
``register_bottleneck`` and the student beside it: the training code before that."""
LORA = re.compile(r"\.lora_[AB]\b|\.lora_(embedding|magnitude)")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class State:
    """The encoder's part of a weights file, not yet checked.

    Attributes:
        path: The file.
        raw: Everything in it by its own name.
        names: Own name by the name of ``layout``.
    """

    path: Path
    raw: Mapping[str, Any]
    names: Mapping[str, str]

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Shape of a tensor by its name of ``layout``; None when the file lacks it."""
        value = self.raw.get(self.names.get(name, ""))
        return None if value is None else tuple(getattr(value, "shape", ()))

    def count(self, stem: str) -> int:
        """How many entries a numbered list of modules has, e.g. ``blocks``."""
        found = (re.match(rf"{re.escape(stem)}\.(\d+)\.", name) for name in self.names)
        return len({match[1] for match in found if match})


def read(path: Path) -> State:
    """Find the encoder in a weights file; tensors stay on disk until they are used.

    Raises:
        CheckpointError: Truncated, foreign, carrying code, or without exactly one OlmoEarth encoder.
    """
    refuse_foreign(path)
    raw = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    if any(LORA.search(name) for name in raw):
        raise CheckpointError(f"{path} holds LoRA adapters: merge them into the weights before saving")
    prefix = _prefix(raw, path)
    names: dict[str, str] = {}
    for own in raw:
        if own.startswith(prefix):
            name = own.removeprefix(prefix)
            for pattern, newer in OLDER:
                name = pattern.sub(newer, name)
            names[name] = own
    return State(path=path, raw=raw, names=names)


def pick(state: State, config: EncoderConfig) -> dict[str, torch.Tensor]:
    """The tensors that inference needs: float32, contiguous, copied from the file.

    Raises:
        CheckpointError: A tensor is missing, has another shape, or holds NaN or infinity.
    """
    import torch  # noqa: PLC0415 - a plan of a random model needs no torch file reader

    tensors: dict[str, torch.Tensor] = {}
    for name, shape in tensor_shapes(config).items():
        own = state.names.get(name)
        if own is None:
            raise CheckpointError(
                f"{state.path} lacks tensor encoder.{name} {shape}: not the weights of this config.json?"
            )
        value = state.raw[own]
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            raise CheckpointError(f"{state.path}: {own} is not a floating point tensor")
        if tuple(value.shape) != shape:
            raise CheckpointError(f"{state.path}: {own} has shape {tuple(value.shape)}, want {shape}")
        if not bool(torch.isfinite(value).all()):
            raise CheckpointError(f"{state.path}: {own} holds NaN or infinity; download the file again")
        # a copy: a mapped tensor would change, or crash the process, with the file
        tensors[name] = value.detach().to(torch.float32).clone(memory_format=torch.contiguous_format)
    return tensors


def sha256(path: Path) -> str:
    """Hash of the file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def refuse_foreign(path: Path) -> None:
    """Refuse what often arrives in place of a weights file.

    Raises:
        CheckpointError: Unreadable, empty, a pointer of git-lfs, or a web page.
    """
    try:
        with path.open("rb") as file:
            start = file.read(256).lstrip().lower()
    except OSError as err:
        raise CheckpointError(f"{path} cannot be read: {err.strerror or type(err).__name__}") from err
    if not start:
        raise CheckpointError(f"{path} is empty: download it again")
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a pointer of git-lfs, not the weights: run `git lfs pull` there")
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError(f"{path} is a web page, not the weights: download the file itself")


def _prefix(raw: Mapping[str, Any], path: Path) -> str:
    """What stands before the names of the one encoder in the file."""
    found = {name[: name.index(ANCHOR)] for name in raw if ANCHOR in name}
    found = {prefix for prefix in found if not prefix.endswith("target_encoder.")}
    if "encoder." in found:
        return "encoder."
    if len(found) > 1:
        raise CheckpointError(f"{path} holds {len(found)} encoders: {', '.join(sorted(found))}; one is wanted")
    if not found:
        raise CheckpointError(
            f"{path} holds no OlmoEarth encoder (no tensor *.{ANCHOR}*); its first tensors: {', '.join(list(raw)[:3])}"
        )
    return found.pop()


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open  # noqa: PLC0415 - only for such files

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it has no iterator
    except (SafetensorError, OSError) as err:
        raise CheckpointError(f"{path} is not a safetensors file, or truncated: {err}") from err


def _read_torch(path: Path) -> dict[str, Any]:
    import torch  # noqa: PLC0415

    if not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path} is not a weights file: truncated, or a bare pickle, which is never run")
    try:
        # mmap leaves the decoder and the training target, more than half of an official file, on disk
        raw = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as err:
        raise CheckpointError(
            f"{path} holds more than tensors ({_globals(path)}), and code in a file is never run. Where you trust it, "
            "save its tensors alone: torch.save(torch.load(PATH, weights_only=False)['state_dict'], 'weights.pth')"
        ) from err
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError, OSError) as err:
        first = str(err).splitlines()[0] if str(err) else type(err).__name__
        raise CheckpointError(f"{path} cannot be read, probably truncated: {first}") from err
    state = raw["state_dict"] if isinstance(raw, dict) and isinstance(raw.get("state_dict"), dict) else raw
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise CheckpointError(f"{path} holds a {type(state).__name__}, not a state dict of named tensors")
    return state


def _globals(path: Path) -> str:
    """What a file refers to besides tensors, for a message."""
    import torch  # noqa: PLC0415

    try:
        found = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (RuntimeError, ValueError, TypeError, pickle.UnpicklingError):
        found = []
    return ", ".join(found[:5]) or "Python objects"
