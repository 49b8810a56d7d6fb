"""Random weights: every release has them, keyed by seed and name, with no tensor that would hide a fault."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.encode import checkpoint, untrained
from pipeline.encode.layout import RELEASED, parameters
from pipeline.errors import ConfigError

NEEDED = {
    "v1-nano": 999_488,
    "v1-tiny": 5_647_968,
    "v1-base": 86_292_864,
    "v1-large": 303_960_576,
    "v1.1-nano": 1_089_456,
    "v1.1-tiny": 7_701_136,
    "v1.1-base": 94_500_160,
    "v1.2-nano": 1_090_224,
    "v1.2-tiny": 7_704_592,
    "v1.2-small": 26_024_224,
    "v1.2-base": 94_513_984,
    "v1.3-base": 108_792_256,
}
"""Numbers in the parts of each released encoder that inference needs."""


def test_every_release_has_the_published_number_of_parameters():
    released = [(version, size) for version, sizes in RELEASED.items() for size in sizes]
    got = {f"{version}-{size}": parameters(untrained.random_config(version, size)) for version, size in released}
    assert got == NEEDED


@pytest.mark.parametrize("version", RELEASED)
def test_random_weights_are_seeded_labelled_and_lively(version):
    first, again = (checkpoint.load(f"random:{version}-toy:0") for _ in range(2))
    other = checkpoint.load(f"random:{version}-toy:1")
    assert first.card == again.card
    assert (first.card.version, first.card.size, first.card.trained) == (version, "toy", False)
    assert first.card.licence == "none: random numbers"
    assert first.card.sha256 != other.card.sha256
    assert [name for name, value in first.tensors.items() if float(value.std()) == 0] == []
    assert [name for name, value in first.tensors.items() if torch.equal(value, other.tensors[name])] == []


def test_random_weights_of_v1_2_never_change():
    """Stores and figures made with them name this hash."""
    card = checkpoint.describe("random:v1.2-nano:0")
    assert card.sha256 == "de7e2a47dabb66ccfe61c50637c1f36ff244bf81c481f1a5bab75a35e759ec4a"


def test_a_tensor_is_the_same_in_every_version_that_has_it():
    old, new = (checkpoint.load(f"random:{version}-toy:5").tensors for version in ("v1.2", "v1.3"))
    assert all(torch.equal(value, new[name]) for name, value in old.items())


def test_the_pooler_of_random_weights_reads_where_it_stands():
    """Equal biases of queries and keys: a score peaks at equal places, so location tokens are about their ground."""
    tensors = checkpoint.load("random:v1.3-toy:0").tensors
    query, key = (tensors[f"attention_pooler.read_blocks.0.attn.{part}.bias"] for part in "qk")
    assert torch.equal(query, key)
    own = tensors["attention_pooler.self_attn_blocks.0.attn.q.bias"]
    assert not torch.equal(own, tensors["attention_pooler.self_attn_blocks.0.attn.k.bias"])
    assert float(query.std()) > 5 * float(own.std())


def test_random_weights_do_not_touch_torchs_global_generator():
    torch.manual_seed(0)
    want = torch.rand(1)
    torch.manual_seed(0)
    checkpoint.load("random:v1.2-toy:0")
    assert torch.equal(torch.rand(1), want)


def test_random_weights_do_not_touch_numpys_global_generator():
    before = np.random.get_state()[1].copy()  # noqa: NPY002 - the global generator is what is asked about
    checkpoint.load("random:v1.3-toy:0")
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002


@pytest.mark.parametrize(
    "spec",
    [
        "random:",
        "random:v1.2-nano",
        "random:v1.2-huge:0",
        "random:v1.3-nano:0",
        "random:v1.4-base:0",
        "random:v1-nano:-1",
    ],
)
def test_an_unknown_random_model_names_the_valid_ones(spec):
    with pytest.raises(ConfigError, match=r"random:v1\.2-nano\|tiny\|small\|base:SEED"):
        checkpoint.describe(spec)
