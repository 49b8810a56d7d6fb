"""Reading checkpoints: both configuration styles, every fault by name, random weights."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import reference_model, write_checkpoint

from pipeline.encode import checkpoint
from pipeline.errors import CheckpointError, ConfigError


@pytest.fixture(scope="module")
def nano():
    return reference_model("nano")


@pytest.fixture
def folder(nano, tmp_path):
    return write_checkpoint(tmp_path / "model", nano)


def edit_config(folder: Path, **changes) -> None:
    whole = json.loads((folder / "config.json").read_text())
    for key, value in changes.items():
        if value is None:
            whole["model"]["encoder_config"].pop(key, None)
        else:
            whole["model"]["encoder_config"][key] = value
    (folder / "config.json").write_text(json.dumps(whole))


def edit_weights(folder: Path, name: str, value: torch.Tensor | None) -> None:
    state = torch.load(folder / "weights.pth", weights_only=True)
    if value is None:
        del state[name]
    else:
        state[name] = value
    torch.save(state, folder / "weights.pth")


@pytest.mark.parametrize("style", ["official", "current"])
def test_both_configuration_styles_give_the_same_model(nano, tmp_path, style):
    got = checkpoint.load(str(write_checkpoint(tmp_path, nano, style=style)))
    assert (got.card.version, got.card.size, got.card.dims, got.card.depth, got.card.heads) == (
        "v1.2",
        "nano",
        128,
        4,
        8,
    )
    assert got.card.trained
    assert got.card.parameters == 1_090_224  # the released nano's part that inference needs
    assert got.config.time_scale == pytest.approx(1 / 30)
    state = nano.state_dict()
    assert all(torch.equal(value, state[f"encoder.{name}"]) for name, value in got.tensors.items())


def test_only_the_three_trained_sensors_are_read(folder):
    model = checkpoint.load(str(folder))
    assert model.card.sensors == ("sentinel2_l2a", "sentinel1", "landsat")
    assert not any("worldcover" in name or "decoder" in name for name in model.tensors)


def test_the_hash_is_that_of_the_weights_file(folder):
    want = hashlib.sha256((folder / "weights.pth").read_bytes()).hexdigest()
    assert checkpoint.describe(str(folder)).sha256 == want


def test_hidden_size_comes_from_the_weights_when_the_configuration_lacks_it(folder):
    edit_config(folder, patch_embed_hidden_sizes=None)
    assert checkpoint.load(str(folder)).config.hidden == 12


def test_a_missing_folder_is_a_configuration_error(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        checkpoint.load(str(tmp_path / "nothing"))


@pytest.mark.parametrize("name", ["config.json", "weights.pth"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        checkpoint.describe(str(folder))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_a_truncated_weights_file_is_refused(folder, share):
    data = (folder / "weights.pth").read_bytes()
    (folder / "weights.pth").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(CheckpointError, match=r"weights\.pth"):
        checkpoint.load(str(folder))


def test_a_page_saved_instead_of_the_weights_is_refused(folder):
    (folder / "weights.pth").write_text("<html>version https://git-lfs.github.com/spec/v1</html>")
    with pytest.raises(CheckpointError, match=r"weights\.pth"):
        checkpoint.load(str(folder))


class _Evil:
    def __reduce__(self):
        return (Path.touch, (Path("touched-by-a-pickle"),))


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_code_in_the_weights_file_is_never_run(folder, tmp_path, monkeypatch, writer):
    monkeypatch.chdir(tmp_path)
    if writer == "torch":
        torch.save({"encoder.norm.weight": _Evil()}, folder / "weights.pth")
    else:
        (folder / "weights.pth").write_bytes(pickle.dumps(_Evil()))
    with pytest.raises(CheckpointError, match="never run"):
        checkpoint.load(str(folder))
    assert not Path("touched-by-a-pickle").exists()


@pytest.mark.parametrize("value", [torch.zeros(3), [torch.zeros(3)]])
def test_something_other_than_a_state_dict_is_refused(folder, value):
    torch.save(value, folder / "weights.pth")
    with pytest.raises(CheckpointError, match="not a state dict"):
        checkpoint.load(str(folder))


def test_a_missing_tensor_is_named(folder):
    edit_weights(folder, "encoder.blocks.2.attn.rope_mixed_freqs", None)
    with pytest.raises(CheckpointError, match=r"encoder\.blocks\.2\.attn\.rope_mixed_freqs"):
        checkpoint.load(str(folder))


def test_a_wrong_shape_is_named_with_both_shapes(folder):
    edit_weights(folder, "encoder.blocks.1.mlp.fc1.weight", torch.zeros(512, 64))
    with pytest.raises(CheckpointError, match=r"blocks\.1\.mlp\.fc1\.weight has shape \(512, 64\), want \(512, 128\)"):
        checkpoint.load(str(folder))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_tensor_that_is_not_finite_is_named(folder, bad):
    weight = torch.ones(128)
    weight[77] = bad
    edit_weights(folder, "encoder.norm.weight", weight)
    with pytest.raises(CheckpointError, match=r"encoder\.norm\.weight holds NaN or infinity"):
        checkpoint.load(str(folder))


def test_a_tensor_of_whole_numbers_is_refused(folder):
    edit_weights(folder, "encoder.norm.weight", torch.ones(128, dtype=torch.int64))
    with pytest.raises(CheckpointError, match="not a floating point tensor"):
        checkpoint.load(str(folder))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model": {}}', '{"model": {"encoder_config": 3}}'])
def test_a_broken_configuration_is_refused(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        checkpoint.load(str(folder))


@pytest.mark.parametrize(
    ("changes", "version"),
    [
        ({"spatial_pos_encoding": None, "use_linear_patch_embed": None}, "v1 "),
        ({"spatial_pos_encoding": None}, "v1.1 "),
        ({"attention_pooler_config": {"pooler_dim": 128}}, "v1.3 "),
        ({"perceiver_config": {"register_dim": 128}}, "v1.3 "),
    ],
)
def test_other_versions_are_refused_by_name(folder, changes, version):
    edit_config(folder, **changes)
    with pytest.raises(CheckpointError, match=version):
        checkpoint.load(str(folder))


@pytest.mark.parametrize(
    "changes",
    [
        {"spatial_pos_encoding": "rope_3d"},
        {"num_register_tokens": 4},
        {"qk_norm": True},
        {"post_proj_hidden_sizes": [12]},
        {"patch_embed_hidden_sizes": [12, 12]},
        {"max_patch_size": 16},
        {"num_heads": 7},
        {"depth": 0},
        {"embedding_size": "128"},
        {"rope_temporal_coordinate_scale": 0},
        {"supported_modality_names": ["srtm"]},
        {"tokenization_config": None},
    ],
)
def test_structures_no_release_has_are_refused(folder, changes):
    edit_config(folder, **changes)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        checkpoint.load(str(folder))


def test_the_old_position_key_wins_over_the_new_one(folder):
    edit_config(folder, position_encoding="absolute")
    assert checkpoint.describe(str(folder)).version == "v1.2"


def test_random_weights_are_seeded_labelled_and_lively():
    first, again = checkpoint.load("random:v1.2-nano:0"), checkpoint.load("random:v1.2-nano:0")
    other = checkpoint.load("random:v1.2-nano:1")
    assert first.card == again.card
    assert first.card.sha256 != other.card.sha256
    assert not first.card.trained
    assert first.card.parameters == 1_090_224
    flat = [name for name, value in first.tensors.items() if float(value.std()) == 0]
    assert flat == []
    same = [name for name, value in first.tensors.items() if torch.equal(value, other.tensors[name])]
    assert same == []


def test_random_weights_do_not_touch_torchs_global_generator():
    torch.manual_seed(0)
    want = torch.rand(1)
    torch.manual_seed(0)
    checkpoint.load("random:v1.2-nano:0")
    assert torch.equal(torch.rand(1), want)


@pytest.mark.parametrize("size", ["nano", "tiny", "small", "base"])
def test_random_models_have_the_released_shapes(size):
    config = checkpoint.random_config(size)
    parameters = sum(int(np.prod(shape)) for shape in checkpoint.tensor_shapes(config).values())
    assert parameters == {"nano": 1_090_224, "tiny": 7_704_592, "small": 26_024_224, "base": 94_513_984}[size]


@pytest.mark.parametrize(
    "spec", ["random:", "random:v1.2-nano", "random:v1.2-huge:0", "random:v1.1-nano:0", "random:v1.2-nano:-1"]
)
def test_an_unknown_random_model_names_the_valid_ones(spec):
    with pytest.raises(ConfigError, match=r"random:v1\.2-nano:SEED"):
        checkpoint.describe(spec)
