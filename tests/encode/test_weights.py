"""Weights files: Lightning checkpoints, faults by file and tensor, and code in a file that is never run."""

from __future__ import annotations

import argparse
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch
from checkpoints import VERSIONS, reference_model, write_checkpoint
from safetensors.torch import save_file

from pipeline.encode import checkpoint
from pipeline.errors import CheckpointError


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {v: write_checkpoint(root / v, reference_model("toy", version=v)) for v in VERSIONS}


@pytest.fixture
def folder(folders, tmp_path):
    return shutil.copytree(folders["v1.2"], tmp_path / "model")


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "weights.pth", weights_only=True)


def edit(folder: Path, name: str, value: torch.Tensor | None) -> None:
    state = state_of(folder)
    if value is None:
        del state[name]
    else:
        state[name] = value
    torch.save(state, folder / "weights.pth")


def lightning(path: Path, folder: Path, *, prefix: str, **extra) -> Path:
    """A checkpoint as rslearn's trainer writes it: the encoder under ``prefix``, a decoder, counters."""
    encoder = {name.removeprefix("encoder."): v for name, v in state_of(folder).items() if name.startswith("encoder.")}
    state = {f"{prefix}{name}": value for name, value in encoder.items()}
    state |= {
        "model.decoders.segment.1.layer.weight": torch.rand(10, 64, 1, 1),
        "model.decoders.segment.1.layer.bias": torch.rand(10),
    }
    whole = {"state_dict": state, "epoch": 3, "pytorch-lightning_version": "2.5.0", "optimizer_states": [], **extra}
    torch.save(whole, path)
    return path


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "prefix", ["model.encoder.0.model.", "model.encoder.0.model.encoder.", "model.encoder.0.encoder.model."]
)
def test_a_lightning_checkpoint_holds_the_same_encoder(folders, tmp_path, version, prefix):
    want = checkpoint.load(str(folders[version]))
    got = checkpoint.load(str(lightning(tmp_path / "model.ckpt", folders[version], prefix=prefix)))
    assert got.config == want.config
    assert all(torch.equal(value, want.tensors[name]) for name, value in got.tensors.items())


def test_a_folder_with_a_lightning_checkpoint_needs_no_configuration(folders, tmp_path):
    lightning(tmp_path / "model.ckpt", folders["v1"], prefix="model.encoder.0.model.")
    assert checkpoint.describe(str(tmp_path)).version == "v1"


def test_a_configuration_beside_a_lightning_checkpoint_is_read(folders, tmp_path):
    path = lightning(tmp_path / "model.ckpt", folders["v1.2"], prefix="model.encoder.0.model.")
    text = (folders["v1.2"] / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"num_heads": 4', '"num_heads": 2'))
    with pytest.raises(CheckpointError, match=r"model\.encoder\.0\.model\.blocks\.0\.attn\.rope_mixed_freqs has shape"):
        checkpoint.load(str(path))


def test_hyper_parameters_that_are_objects_are_named_with_the_way_out(folders, tmp_path):
    path = lightning(
        tmp_path / "model.ckpt",
        folders["v1.2"],
        prefix="model.encoder.0.model.",
        hyper_parameters=argparse.Namespace(lr=1e-4),
    )
    with pytest.raises(CheckpointError, match=r"argparse\.Namespace.*save its tensors alone"):
        checkpoint.load(str(path))


def test_weights_of_no_released_size_need_their_configuration(tmp_path):
    model = reference_model("toy", version="v1.1")
    state = {k: v for k, v in model.state_dict().items() if k.startswith("encoder.") and ".blocks.1." not in k}
    torch.save({k: v for k, v in state.items() if not k.startswith("encoder.blocks.1.")}, tmp_path / "one.pth")
    with pytest.raises(CheckpointError, match=r"width 64 and 1 blocks are no released size: add its config\.json"):
        checkpoint.load(str(tmp_path / "one.pth"))


def test_two_encoders_in_one_file_are_refused_by_name(folders, tmp_path):
    first = torch.load(lightning(tmp_path / "a", folders["v1"], prefix="model.encoder.0.model."), weights_only=True)
    second = torch.load(lightning(tmp_path / "b", folders["v1"], prefix="model.encoder.1.model."), weights_only=True)
    torch.save({"state_dict": first["state_dict"] | second["state_dict"]}, tmp_path / "model.ckpt")
    with pytest.raises(CheckpointError, match=r"2 encoders: model\.encoder\.0\.model\., model\.encoder\.1\.model\."):
        checkpoint.load(str(tmp_path / "model.ckpt"))


def test_adapters_that_were_not_merged_are_refused(folder):
    edit(folder, "encoder.blocks.0.attn.q.lora_A.default.weight", torch.zeros(4, 64))
    with pytest.raises(CheckpointError, match="LoRA"):
        checkpoint.load(str(folder))


def test_another_network_is_refused_with_what_it_holds(tmp_path):
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "resnet.pth")
    with pytest.raises(CheckpointError, match=r"no OlmoEarth encoder.*conv1\.weight"):
        checkpoint.load(str(tmp_path / "resnet.pth"))


def test_half_precision_weights_become_float32(folder):
    halves = {name: v.bfloat16() if v.is_floating_point() else v for name, v in state_of(folder).items()}
    torch.save(halves, folder / "weights.pth")
    tensors = checkpoint.load(str(folder)).tensors
    assert {value.dtype for value in tensors.values()} == {torch.float32}
    assert torch.equal(tensors["norm.weight"], halves["encoder.norm.weight"].float())


def test_tensors_outlive_their_file(folder):
    tensors = checkpoint.load(str(folder)).tensors
    before = {name: value.clone() for name, value in tensors.items()}
    with (folder / "weights.pth").open("r+b") as file:
        file.write(b"\0" * (folder / "weights.pth").stat().st_size)
    assert all(torch.equal(value, before[name]) for name, value in tensors.items())


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
@pytest.mark.parametrize("name", ["weights.pth", "model.safetensors"])
def test_a_truncated_file_is_refused_by_name(folder, name, share):
    if name == "model.safetensors":
        save_file({k: v for k, v in state_of(folder).items() if k.startswith("encoder.")}, folder / name)
        (folder / "weights.pth").unlink()
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: int(len(data) * share)])
    with pytest.raises(CheckpointError, match=re.escape(name)):
        checkpoint.load(str(folder))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("<!DOCTYPE html><html>Sign in</html>", "web page"),
        ("\n<html>", "web page"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1234\n", "git lfs pull"),
        ("just text", "not a weights file"),
    ],
)
def test_what_arrives_instead_of_the_weights_is_said(folder, text, match):
    (folder / "weights.pth").write_text(text)
    with pytest.raises(CheckpointError, match=rf"weights\.pth .*{match}"):
        checkpoint.load(str(folder))


class _Evil:
    def __reduce__(self):
        return (Path.touch, (Path("touched-by-a-pickle"),))


@pytest.mark.parametrize("writer", ["torch", "legacy", "pickle"])
def test_code_in_the_file_is_never_run(folder, tmp_path, monkeypatch, writer):
    monkeypatch.chdir(tmp_path)
    state = {"encoder.norm.weight": _Evil()}
    if writer == "pickle":
        (folder / "weights.pth").write_bytes(pickle.dumps(state))
    else:
        torch.save(state, folder / "weights.pth", _use_new_zipfile_serialization=writer == "torch")
    with pytest.raises(CheckpointError, match="never run"):
        checkpoint.load(str(folder))
    assert not Path("touched-by-a-pickle").exists()


@pytest.mark.parametrize("value", [torch.zeros(3), [torch.zeros(3)], {1: torch.zeros(3)}])
def test_something_other_than_a_state_dict_is_refused(folder, value):
    torch.save(value, folder / "weights.pth")
    with pytest.raises(CheckpointError, match="not a state dict"):
        checkpoint.load(str(folder))


def test_a_missing_tensor_is_named(folder):
    edit(folder, "encoder.blocks.1.attn.rope_mixed_freqs", None)
    with pytest.raises(CheckpointError, match=r"encoder\.blocks\.1\.attn\.rope_mixed_freqs"):
        checkpoint.load(str(folder))


def test_a_wrong_shape_is_named_with_both_shapes(folder):
    edit(folder, "encoder.blocks.1.mlp.fc1.weight", torch.zeros(256, 32))
    with pytest.raises(CheckpointError, match=r"blocks\.1\.mlp\.fc1\.weight has shape \(256, 32\), want \(256, 64\)"):
        checkpoint.load(str(folder))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_tensor_that_is_not_finite_is_named(folder, bad):
    weight = torch.ones(64)
    weight[33] = bad
    edit(folder, "encoder.norm.weight", weight)
    with pytest.raises(CheckpointError, match=r"encoder\.norm\.weight holds NaN or infinity"):
        checkpoint.load(str(folder))


@pytest.mark.parametrize("value", [torch.ones(64, dtype=torch.int64), "64 ones"])
def test_a_value_that_is_not_a_float_tensor_is_refused(folder, value):
    edit(folder, "encoder.norm.weight", value)
    with pytest.raises(CheckpointError, match=r"encoder\.norm\.weight is not a floating point tensor"):
        checkpoint.load(str(folder))


def test_a_folder_under_the_name_of_a_weights_file_does_not_count(folder):
    (folder / "weights.pth").unlink()
    (folder / "model.safetensors").mkdir()
    with pytest.raises(CheckpointError, match="none of"):
        checkpoint.load(str(folder))
