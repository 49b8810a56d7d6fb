"""Loading models: every version and style gives the reference's tensors, the right card and the outputs it has."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace

import pytest
import torch
from checkpoints import VERSIONS, reference_model, write_checkpoint
from safetensors.torch import save_file

from pipeline.encode import checkpoint, untrained
from pipeline.errors import CheckpointError, ConfigError

MODELS = [(version, "toy") for version in VERSIONS] + [("v1", "nano"), ("v1.1", "nano"), ("v1.2", "nano")]
SENSORS = ("sentinel2_l2a", "sentinel1", "landsat")


@pytest.fixture(scope="module")
def models():
    return {key: reference_model(key[1], version=key[0]) for key in MODELS}


@pytest.fixture(scope="module")
def folders(models, tmp_path_factory):
    """One written folder per toy version, not to be changed."""
    root = tmp_path_factory.mktemp("models")
    return {version: write_checkpoint(root / version, models[version, "toy"]) for version in VERSIONS}


@pytest.fixture
def folder(folders, tmp_path):
    """A toy of v1.2 that a test may change."""
    return shutil.copytree(folders["v1.2"], tmp_path / "model")


@pytest.mark.parametrize("style", ["official", "current"])
@pytest.mark.parametrize("key", MODELS, ids="-".join)
def test_every_version_and_style_gives_the_references_tensors(models, tmp_path, key, style):
    got = checkpoint.load(str(write_checkpoint(tmp_path, models[key], style=style)))
    assert (got.card.version, got.card.size, got.card.trained) == (*key, True)
    state = models[key].state_dict()
    assert all(torch.equal(value, state[f"encoder.{name}"]) for name, value in got.tensors.items())
    unused = {name.removeprefix("encoder.") for name in state if name.startswith("encoder.")} - set(got.tensors)
    assert all(name.startswith(("project_and_aggregate.", "patch_embeddings.", "composite_")) for name in unused)
    assert not any(sensor in name for name in unused for sensor in SENSORS)


@pytest.mark.parametrize(
    ("version", "numbers"),
    [
        ("v1", (0, ((4, 6, 2), (2,), (1, 10)), 0, 0)),
        ("v1.1", (8, ((12,), (2,), (11,)), 0, 0)),
        ("v1.2", (8, ((12,), (2,), (11,)), 0, 0)),
        ("v1.3", (8, ((12,), (2,), (11,)), 1, 16)),
    ],
)
def test_the_card_says_what_the_encoder_is_made_of(folders, version, numbers):
    card = checkpoint.describe(str(folders[version]))
    sets = tuple(zip(SENSORS, numbers[1], strict=True))
    assert (card.width, card.depth, card.heads) == (64, 2, 4)
    assert (card.hidden, card.band_sets, card.pooler_depth, card.student) == (numbers[0], sets, *numbers[2:])
    assert card.sensors == SENSORS


@pytest.mark.parametrize(
    ("version", "output", "want"),
    [
        ("v1", "auto", ("mean", 64)),
        ("v1.2", "max", ("max", 64)),
        ("v1.3", "auto", ("student", 16)),
        ("v1.3", "location", ("location", 64)),
        ("v1.3", "mean", ("mean", 64)),
    ],
)
def test_the_output_decides_the_width_that_is_written(folders, version, output, want):
    card = checkpoint.describe(str(folders[version]), output)
    assert (card.output, card.dims) == want


def test_64_channels_of_a_wide_student_can_be_written():
    config = untrained.random_config("v1.3", "base")
    assert checkpoint.resolve_output(config, "auto") == ("student", 128)
    assert checkpoint.resolve_output(config, "student64") == ("student64", 64)


@pytest.mark.parametrize(("version", "output"), [("v1.2", "location"), ("v1", "student"), ("v1.3", "student64")])
def test_an_output_that_a_model_lacks_is_refused_with_those_it_has(folders, version, output):
    with pytest.raises(ConfigError, match=f"{output}.*mean, max"):
        checkpoint.load(str(folders[version]), output)


def test_a_pooler_without_a_student_writes_means_unless_asked(folders):
    config = checkpoint.load(str(folders["v1.3"])).config
    bare = replace(config, pooler=replace(config.pooler, student=0))
    assert checkpoint.resolve_output(bare, "auto") == ("mean", 64)
    assert checkpoint.resolve_output(bare, "location") == ("location", 64)


def test_heads_that_only_training_used_are_not_even_checked(folders):
    stored = torch.load(folders["v1.3"] / "weights.pth", weights_only=True)
    assert bool(torch.isnan(stored["supervision_head.heads.srtm.weight"]).all())
    assert not any("head" in name for name in checkpoint.load(str(folders["v1.3"])).tensors)


def test_the_hash_is_that_of_the_weights_file(folder):
    want = hashlib.sha256((folder / "weights.pth").read_bytes()).hexdigest()
    assert checkpoint.describe(str(folder)).sha256 == want


def test_a_weights_file_alone_shows_the_same_encoder(folders, tmp_path):
    for version, folder in folders.items():
        alone = shutil.copy(folder / "weights.pth", tmp_path / f"{version}.pth")
        assert checkpoint.load(str(alone)).config == checkpoint.load(str(folder)).config


def test_a_weights_file_is_read_with_the_configuration_beside_it(folder):
    whole = json.loads((folder / "config.json").read_text())
    whole["model"]["encoder_config"]["rope_temporal_coordinate_scale"] = 0.5
    (folder / "config.json").write_text(json.dumps(whole))
    assert checkpoint.load(str(folder / "weights.pth")).config.time_scale == 0.5


def test_safetensors_hold_the_same_model(folder):
    want = checkpoint.load(str(folder))
    state = torch.load(folder / "weights.pth", weights_only=True)
    (folder / "weights.pth").unlink()
    save_file(
        {name: value for name, value in state.items() if name.startswith("encoder.")}, folder / "model.safetensors"
    )
    got = checkpoint.load(str(folder))
    assert got.config == want.config
    assert all(torch.equal(value, want.tensors[name]) for name, value in got.tensors.items())


@pytest.mark.parametrize("name", ["config.json", "weights.pth"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        checkpoint.describe(str(folder))


@pytest.mark.parametrize("name", ["nothing", "nothing/deeper/still", "weights.pth"])
def test_a_model_that_is_nowhere_is_a_configuration_error(tmp_path, name):
    with pytest.raises(ConfigError, match="does not exist"):
        checkpoint.load(str(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "text", "want"),
    [
        (None, None, "OlmoEarth Artifact License"),
        ("README.md", "---\nlicense: apache-2.0\ntags: []\n---\n# Model", "apache-2.0"),
        ("README.md", "---\nlicense: other\nlicense_name: 'my own'\n---\n", "my own"),
        ("README.md", "# A model\n\nlicense: in the text only\n", "OlmoEarth Artifact License"),
        ("LICENSE", "\n  MIT License\n\nCopyright", "MIT License"),
    ],
)
def test_the_licence_is_what_the_folder_says(folder, name, text, want):
    if name:
        (folder / name).write_text(text)
    assert checkpoint.describe(str(folder)).licence == want
