"""Training configurations of every generation, and the refusal by name of what no release has."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from checkpoints import VERSIONS, reference_model, write_checkpoint

from pipeline.encode import checkpoint
from pipeline.errors import CheckpointError

OLD_NAMES = {
    "learned_query": "register",
    "read_blocks.3.attn.q.weight": "read_blocks.3.attn.q.weight",
    "self_attn_blocks.0.mlp.fc2.bias": "latent_blocks.0.mlp.fc2.bias",
    "input_norms.2.weight": "input_norms.2.weight",
    "norm.bias": "norm.bias",
    "student.0.weight": "student.0.weight",
    "student.1.bias": "student.1.bias",
}
"""Tensors of ``attention_pooler`` and their names under ``perceiver`` in olmoearth-pretrain-minimal 0.1.2."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {v: write_checkpoint(root / v, reference_model("toy", version=v)) for v in VERSIONS}


@pytest.fixture
def copy(folders, tmp_path):
    """Copy a toy of one version and change keys of its encoder's configuration (None: leave out)."""

    def make(version, **changes):
        folder = shutil.copytree(folders[version], tmp_path / "model")
        whole = json.loads((folder / "config.json").read_text())
        encoder = whole["model"]["encoder_config"]
        encoder |= changes
        whole["model"]["encoder_config"] = {key: value for key, value in encoder.items() if value is not None}
        (folder / "config.json").write_text(json.dumps(whole))
        return folder

    return make


def rename(folder, names) -> None:
    """Rename tensors of a weights file by (pattern, replacement)."""
    state = torch.load(folder / "weights.pth", weights_only=True)
    for pattern, new in names:
        state = {re.sub(pattern, new, name): value for name, value in state.items()}
    torch.save(state, folder / "weights.pth")


@pytest.mark.parametrize(
    ("version", "missing"),
    [
        ("v1", {"use_linear_patch_embed": None, "tokenization_config": None, "supported_modality_names": None}),
        ("v1.1", {"patch_embed_hidden_sizes": None, "position_encoding": None}),
        ("v1.2", {"patch_embed_hidden_sizes": None, "mlp_ratio": None, "tokenization_config": None}),
        ("v1.3", {"rope_base": None, "rope_coordinate_scale": None, "max_patch_size": None}),
    ],
)
def test_keys_that_a_configuration_lacks_have_the_values_of_their_time(copy, folders, version, missing):
    assert checkpoint.load(str(copy(version, **missing))).config == checkpoint.load(str(folders[version])).config


def test_the_older_key_of_positions_wins_over_the_newer_one(copy):
    assert checkpoint.describe(str(copy("v1.2", position_encoding="absolute"))).version == "v1.2"


def test_a_time_scale_that_is_not_given_is_one(copy):
    assert checkpoint.load(str(copy("v1.2", rope_temporal_coordinate_scale=None))).config.time_scale == 1.0


def test_scales_of_coordinates_are_read(copy):
    config = checkpoint.load(str(copy("v1.3", rope_coordinate_scale=0.5, rope_base=100))).config
    assert config.coordinate_scale == 0.5
    assert config.pooler is not None
    assert config.pooler.rope_base == 100.0


def test_a_sensor_that_was_only_decoded_is_left_out(copy):
    folder = copy("v1.2")
    whole = json.loads((folder / "config.json").read_text())
    whole["train_module"]["masking_config"]["strategy_config"]["only_decode_modalities"].append("landsat")
    (folder / "config.json").write_text(json.dumps(whole))
    assert checkpoint.describe(str(folder)).sensors == ("sentinel2_l2a", "sentinel1")


def test_a_configuration_with_nothing_but_the_model_takes_the_three_sensors(copy):
    folder = copy("v1.3")
    whole = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"model": whole["model"]}))
    assert len(checkpoint.describe(str(folder)).sensors) == 3


def test_band_order_is_that_of_the_configuration(copy):
    bands = ["B12", "B11", "B09", "B08", "B07", "B06", "B05", "B04", "B03", "B02", "B01", "B8A"]
    config = checkpoint.load(
        str(copy("v1.2", tokenization_config={"overrides": {"sentinel2_l2a": {"band_groups": [bands]}}}))
    ).config
    assert config.bands("sentinel2_l2a") == tuple(bands)


@pytest.mark.parametrize("per_depth", [True, False])
@pytest.mark.parametrize("depth", [1, 4])
def test_any_depth_of_the_pooler_is_read_from_the_weights(tmp_path, depth, per_depth):
    model = reference_model("toy", version="v1.3", pooler_depth=depth, per_depth=per_depth)
    got = checkpoint.load(str(write_checkpoint(tmp_path, model)))
    assert got.config.pooler is not None
    assert (got.config.pooler.depth, got.config.pooler.per_depth) == (depth, per_depth and depth > 1)
    state = model.state_dict()
    assert all(torch.equal(value, state[f"encoder.{name}"]) for name, value in got.tensors.items())


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """A toy of v1.3 with four layers, as written today."""
    model = reference_model("toy", version="v1.3", pooler_depth=4)
    return write_checkpoint(tmp_path_factory.mktemp("deep"), model, style="current")


def test_the_layout_before_the_release_of_v1_3_is_read(deep, tmp_path):
    folder = shutil.copytree(deep, tmp_path / "old")
    new = [
        (r"^encoder\.attention_pooler\.learned_query$", "encoder.perceiver.register"),
        (r"^encoder\.attention_pooler\.self_attn_blocks\.", "encoder.perceiver.latent_blocks."),
        (r"^encoder\.attention_pooler\.", "encoder.perceiver."),
    ]
    rename(folder, new)
    stored = torch.load(folder / "weights.pth", weights_only=True)
    assert {f"encoder.perceiver.{old}" for old in OLD_NAMES.values()} <= set(stored)
    whole = json.loads((folder / "config.json").read_text())
    pooler = whole["model"]["encoder_config"].pop("attention_pooler_config")
    older = {"register_dim": pooler.pop("pooler_dim"), "latent_depth": pooler.pop("pooler_depth")}
    whole["model"]["encoder_config"]["perceiver_config"] = pooler | older
    (folder / "config.json").write_text(json.dumps(whole))
    got, want = checkpoint.load(str(folder)), checkpoint.load(str(deep))
    assert got.config == want.config
    assert all(torch.equal(value, want.tensors[name]) for name, value in got.tensors.items())


def test_the_layout_of_the_training_code_is_read(deep, tmp_path):
    folder = shutil.copytree(deep, tmp_path / "oldest")
    new = [
        (r"^encoder\.attention_pooler\.student\.0\.", "encoder.register_projection."),
        (r"^encoder\.attention_pooler\.student\.1\.", "encoder.register_projection_norm."),
        (r"^encoder\.attention_pooler\.learned_query$", "encoder.register_bottleneck.register"),
        (r"^encoder\.attention_pooler\.self_attn_blocks\.", "encoder.register_bottleneck.latent_blocks."),
        (r"^encoder\.attention_pooler\.", "encoder.register_bottleneck."),
    ]
    rename(folder, new)
    whole = json.loads((folder / "config.json").read_text())
    encoder = whole["model"]["encoder_config"]
    del encoder["attention_pooler_config"]
    encoder |= {"use_register_bottleneck": True, "register_dim": 64, "register_attn_dim": 64, "register_num_heads": 4}
    encoder |= {"register_projection_dims": [16, 8], "register_interleave": True, "register_grid_size": 0}
    (folder / "config.json").write_text(json.dumps(whole))
    got, want = checkpoint.load(str(folder)), checkpoint.load(str(deep))
    assert got.config == want.config
    assert all(torch.equal(value, want.tensors[name]) for name, value in got.tensors.items())


@pytest.mark.parametrize("position", ["rope", "rope_mixed", "rope_3d", "none"])
def test_other_positions_are_refused_by_name(copy, position):
    with pytest.raises(CheckpointError, match=f"'{position}' belongs to no released model"):
        checkpoint.load(str(copy("v1.2", spatial_pos_encoding=position)))


@pytest.mark.parametrize(
    ("version", "changes", "match"),
    [
        ("v1.2", {"num_register_tokens": 4}, "num_register_tokens=4"),
        ("v1.1", {"qk_norm": True}, "qk_norm=True"),
        ("v1.1", {"post_proj_hidden_sizes": [12]}, "post_proj_hidden_sizes"),
        ("v1.2", {"patch_embed_hidden_sizes": [12, 12]}, "patch_embed_hidden_sizes"),
        ("v1", {"max_patch_size": 16}, "max_patch_size is 16"),
        ("v1.2", {"num_heads": 7}, "num_heads 7"),
        ("v1.2", {"depth": 0}, "depth is 0"),
        ("v1.2", {"depth": 3}, "depth is 3, the weights have 2"),
        ("v1.2", {"embedding_size": "64"}, "embedding_size is '64'"),
        ("v1.2", {"rope_temporal_coordinate_scale": 0}, "rope_temporal_coordinate_scale is 0"),
        ("v1.2", {"supported_modality_names": ["srtm"]}, "takes none of"),
        ("v1.2", {"supported_modality_names": 3}, "want a list"),
        ("v1.2", {"tokenization_config": [1]}, "wrong kind"),
        ("v1.2", {"spatial_pos_encoding": "absolute"}, "holds rotary frequencies"),
        ("v1.3", {"attention_pooler_config": None}, "holds a pooler"),
        ("v1.2", {"attention_pooler_config": {"pooler_dim": 64, "attn_dim": 64}}, "read_blocks"),
        ("v1.3", {"attention_pooler_config": {"pooler_dim": 32, "attn_dim": 64}}, "pooler_dim 32"),
        ("v1.3", {"attention_pooler_config": {"pooler_dim": 64}}, "attn_dim None"),
        ("v1.3", {"attention_pooler_config": {"pooler_dim": 64, "attn_dim": 64, "num_heads": 32}}, "num_heads 32"),
        ("v1.3", {"register_interleave": False}, "register_interleave=False"),
    ],
)
def test_structures_that_no_release_has_are_refused_by_name(copy, version, changes, match):
    with pytest.raises(CheckpointError, match=match):
        checkpoint.load(str(copy(version, **changes)))


@pytest.mark.parametrize(
    "groups",
    [[["B02", "B03"]], [["B02"] * 12], [list("abc")], [["B02", "B03", "B04", "B08", "B05", "B06"], ["B07", "B8A"]]],
)
def test_a_band_list_that_is_not_the_sensors_is_refused(copy, groups):
    with pytest.raises(CheckpointError, match="band_groups of sentinel2_l2a"):
        checkpoint.load(
            str(copy("v1.2", tokenization_config={"overrides": {"sentinel2_l2a": {"band_groups": groups}}}))
        )


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("encoder.register_tokens", "register tokens"),
        ("encoder.blocks.0.attn.q_norm.weight", "norms of queries"),
        ("encoder.attention_pooler.kv_proj.weight", "narrower"),
        ("encoder.patch_embeddings.per_modality_embeddings.landsat.landsat__0.post_proj.0.weight", "after the patch"),
    ],
)
def test_tensors_of_structures_that_no_release_has_are_refused_by_name(copy, name, match):
    folder = copy("v1.3")
    state = torch.load(folder / "weights.pth", weights_only=True)
    torch.save(state | {name: torch.zeros(2)}, folder / "weights.pth")
    with pytest.raises(CheckpointError, match=f"{re.escape(name)} means .*{match}"):
        checkpoint.load(str(folder))


def test_rotary_positions_with_a_convolution_are_refused(copy):
    folder = copy("v1", position_encoding="rope_3d_mixed")
    with pytest.raises(CheckpointError, match="rotary positions with a convolution"):
        checkpoint.load(str(folder))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "[" * 100_000, '{"model": {}}', '{"model": []}', '{"model": {"encoder_config": 3}}']
)
def test_a_broken_configuration_is_refused(copy, text):
    folder = copy("v1.2")
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        checkpoint.load(str(folder))


def test_a_configuration_of_absurd_size_is_not_parsed(copy):
    folder = copy("v1.2")
    (folder / "config.json").write_text(" " * 4_000_001)
    with pytest.raises(CheckpointError, match="larger than"):
        checkpoint.load(str(folder))
