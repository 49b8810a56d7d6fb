"""Tokens, location tokens and students of our encoder against the reference package's, for every release."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from functools import cache

import numpy as np
import pytest
import torch
from checkpoints import reference_fields, reference_model, write_checkpoint

from pipeline.encode import checkpoint
from pipeline.encode.attention import use_own
from pipeline.encode.olmoearth import Encoder, Head
from pipeline.encode.untrained import random_tensors
from pipeline.errors import CheckpointError, ConfigError, InvalidInputError

SQUARES = {1: 6, 2: 12, 3: 12, 4: 20, 5: 15, 8: 40}
"""Side of a window, pixels, by patch."""
RECTANGLES = {1: (8, 5), 2: (16, 8), 3: (12, 9), 4: (24, 32), 5: (10, 20), 8: (48, 32)}
BANDS = {"sentinel2_l2a": 12, "sentinel1": 2, "landsat": 11}
ALL = ("sentinel2_l2a", "sentinel1", "landsat")
TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}
MODELS = [
    ("v1", "nano"),
    ("v1", "tiny"),
    ("v1.1", "nano"),
    ("v1.1", "tiny"),
    ("v1.2", "nano"),
    ("v1.2", "tiny"),
    ("v1.3", "toy"),
]
SLOW = [("v1.2", "small"), ("v1", "base"), ("v1", "large"), ("v1.1", "base"), ("v1.2", "base"), ("v1.3", "base")]


def dates(count: int) -> tuple[date, ...]:
    """Irregular dates over a year's end and a 29 February."""
    months = [(2023, 10), (2023, 11), (2023, 12), *((2024, m) for m in range(1, 10))]
    return tuple(date(*months[i], 29 if months[i] == (2024, 2) else 1 + (5 * i) % 28) for i in range(count))


def pixels(
    windows: int, periods: int, side: tuple[int, int], *, sensors: tuple[str, ...] = ALL[:1], seed: int = 0
) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(seed)
    return {
        name: torch.from_numpy(rng.normal(0.4, 0.3, (windows, periods, BANDS[name], *side)).astype(np.float32))
        for name in sensors
    }


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """(version, size, **options) to (reference model, our checkpoint read from the folder it was written to)."""

    @cache
    def make(version, size, seed=0, style="official", pooler_depth=1):
        model = reference_model(size, version=version, seed=seed, pooler_depth=pooler_depth)
        folder = tmp_path_factory.mktemp(f"{version}-{size}-{seed}-{style}")
        return model, checkpoint.load(str(write_checkpoint(folder, model, style=style)))

    yield make
    make.cache_clear()


def compare(pair, x, days, *, patch_px, visible=None, location_px=None, **options):
    """Assert that tokens, and for v1.3 location tokens and student, equal the reference's where visible."""
    model, ours = pair
    side = tuple(next(iter(x.values())).shape[-2:])
    tokens, location, student = reference_fields(
        model, x, days, patch_px=patch_px, visible=visible, location_px=location_px
    )
    encoder = Encoder(
        ours,
        window_px=side,
        patch_px=patch_px,
        dates=days,
        sensors=tuple(x),
        output="location" if location is not None else "mean",
        location_px=location_px,
        **options,
    )
    seen = None if visible is None else torch.stack([visible[name] for name in x], dim=1)
    with torch.inference_mode():
        got = encoder.tokens(tuple(x.values()), seen)
        for name, part in zip(x, got, strict=True):
            want = tokens[name]
            if visible is not None:
                part, want = part[visible[name]], want[visible[name]]  # noqa: PLW2901
            torch.testing.assert_close(part, want, **TOLERANCE)
        if location is not None:
            field = encoder(tuple(x.values()), seen)
            torch.testing.assert_close(field, location, **TOLERANCE)
            torch.testing.assert_close(Head(ours, "student")(field), student, **TOLERANCE)


@pytest.mark.parametrize("patch_px", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize(("version", "size"), MODELS)
def test_tokens_of_one_sensor_equal_the_references(models, version, size, patch_px):
    side = SQUARES[patch_px]
    compare(models(version, size), pixels(2, 3, (side, side)), dates(3), patch_px=patch_px)


@pytest.mark.parametrize(("periods", "sensors"), [(1, ALL), (3, ALL[1:]), (12, ALL[:2]), (3, ALL)])
@pytest.mark.parametrize(("version", "size"), MODELS)
def test_tokens_of_several_sensors_equal_the_references(models, version, size, periods, sensors):
    x = pixels(1, periods, (16, 16), sensors=sensors)
    compare(models(version, size), x, dates(periods), patch_px=4)


@pytest.mark.parametrize("patch_px", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize(("version", "size"), [("v1.2", "nano"), ("v1.3", "toy")])
def test_rectangles_equal_the_references(models, version, size, patch_px):
    compare(models(version, size), pixels(1, 2, RECTANGLES[patch_px]), dates(2), patch_px=patch_px)


@pytest.mark.parametrize("sensor", ["sentinel1", "landsat"])
@pytest.mark.parametrize(("version", "size"), [("v1", "nano"), ("v1.1", "nano"), ("v1.2", "nano"), ("v1.3", "toy")])
def test_other_sensors_alone_equal_the_references(models, version, size, sensor):
    compare(models(version, size), pixels(1, 2, (16, 16), sensors=(sensor,)), dates(2), patch_px=8)


@pytest.mark.parametrize("periods", [1, 12])
@pytest.mark.parametrize(("version", "size"), MODELS)
def test_one_and_twelve_periods_equal_the_references(models, version, size, periods):
    compare(models(version, size), pixels(1, periods, (32, 32)), dates(periods), patch_px=8)


@pytest.mark.parametrize("missing", [(0,), (1,), (3,), (0, 2)])
@pytest.mark.parametrize(("version", "size"), [("v1", "nano"), ("v1.1", "nano"), ("v1.2", "tiny"), ("v1.3", "toy")])
def test_a_missing_period_equals_the_references_missing_mask(models, version, size, missing):
    """Also of v1 and v1.1, whose later periods keep their slots."""
    visible = torch.ones(1, 4, 6, 6, dtype=torch.bool)
    visible[:, list(missing)] = False
    x = pixels(1, 4, (24, 24))
    compare(models(version, size), x, dates(4), patch_px=4, visible={"sentinel2_l2a": visible})


@pytest.mark.parametrize(("version", "size"), [("v1", "nano"), ("v1.1", "nano"), ("v1.2", "nano"), ("v1.3", "toy")])
def test_single_missing_tokens_and_sensors_equal_the_references_missing_mask(models, version, size):
    rng = np.random.default_rng(2)
    visible = {name: torch.from_numpy(rng.random((1, 3, 4, 4)) > 0.35) for name in ALL}
    visible["sentinel1"][:, 1] = False
    visible["landsat"][:] = False
    x = pixels(1, 3, (32, 32), sensors=ALL, seed=5)
    compare(models(version, size), x, dates(3), patch_px=8, visible=visible)


@pytest.mark.parametrize("location_px", [1, 2, 4])
def test_locations_finer_than_a_patch_equal_the_references(models, location_px):
    compare(models("v1.3", "toy"), pixels(1, 2, (12, 16)), dates(2), patch_px=4, location_px=location_px)


def test_a_deeper_pooler_equals_the_references(models):
    compare(models("v1.3", "toy", pooler_depth=4), pixels(2, 2, (16, 24)), dates(2), patch_px=4)


@pytest.mark.parametrize("version", ["v1", "v1.1", "v1.2", "v1.3"])
def test_both_configuration_styles_equal_the_references(models, version):
    for style in ("official", "current"):
        compare(models(version, "toy", seed=4, style=style), pixels(1, 2, (16, 16)), dates(2), patch_px=4)


@pytest.mark.parametrize(("version", "size"), [("v1", "nano"), ("v1.2", "nano"), ("v1.3", "toy")])
def test_halves_for_kernels_and_compiled_graphs_equal_the_references(models, version, size):
    compare(models(version, size), pixels(2, 3, (16, 16), sensors=ALL), dates(3), patch_px=8, halves=True)


@pytest.mark.skipif(not use_own(), reason="no C++ compiler here: the own attention kernel cannot be built")
@pytest.mark.parametrize(("version", "size"), [("v1", "nano"), ("v1.2", "nano"), ("v1.2", "tiny"), ("v1.3", "toy")])
def test_the_own_attention_kernel_equals_the_references(models, version, size):
    x = pixels(2, 3, (16, 16), sensors=ALL)
    compare(models(version, size), x, dates(3), patch_px=8, attention="own")
    visible = {name: torch.from_numpy(np.random.default_rng(2).random((1, 3, 2, 2)) > 0.35) for name in ALL}
    one = {name: part[:1] for name, part in x.items()}
    compare(models(version, size), one, dates(3), patch_px=8, visible=visible, attention="own")


@pytest.mark.slow
@pytest.mark.parametrize(("version", "size"), SLOW)
def test_the_large_releases_equal_the_references(models, version, size):
    compare(models(version, size), pixels(1, 2, (16, 16), sensors=ALL), dates(2), patch_px=4)


# --- what pooling and masking promise -------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["v1.2", "v1.3"])
def test_masking_a_period_equals_leaving_it_out(models, version):
    _, ours = models(version, "toy")
    days, x = dates(4), pixels(2, 4, (32, 32))["sentinel2_l2a"]
    kept = [0, 1, 3]
    visible = torch.ones(2, 1, 4, 4, 4, dtype=torch.bool)
    visible[:, :, 2] = False
    masked = Encoder(ours, window_px=(32, 32), patch_px=8, dates=days)(x, visible)
    dropped = Encoder(ours, window_px=(32, 32), patch_px=8, dates=[days[i] for i in kept])(x[:, kept])
    torch.testing.assert_close(masked, dropped, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("version", ["v1", "v1.1"])
def test_a_period_after_a_missing_one_keeps_its_slot(models, version):
    _, ours = models(version, "toy")
    days, x = dates(3), pixels(1, 3, (32, 32))["sentinel2_l2a"]
    visible = torch.ones(1, 1, 3, 4, 4, dtype=torch.bool)
    visible[:, :, 0] = False
    masked = Encoder(ours, window_px=(32, 32), patch_px=8, dates=days)(x, visible)
    dropped = Encoder(ours, window_px=(32, 32), patch_px=8, dates=days[1:])(x[:, 1:])
    assert float((masked - dropped).abs().max()) > 1e-3


def test_what_a_masked_token_holds_has_no_influence(models):
    _, ours = models("v1.2", "nano")
    x = pixels(1, 2, (32, 32))["sentinel2_l2a"]
    visible = torch.ones(1, 1, 2, 4, 4, dtype=torch.bool)
    visible[0, 0, 1, 2, 3] = False
    other = x.clone()
    other[0, 1, :, 16:24, 24:32] = 9.0
    encoder = Encoder(ours, window_px=(32, 32), patch_px=8, dates=dates(2))
    torch.testing.assert_close(encoder(x, visible), encoder(other, visible), atol=0, rtol=0)


@pytest.mark.parametrize(("version", "size"), [("v1", "toy"), ("v1.2", "nano"), ("v1.3", "toy")])
def test_an_all_visible_mask_equals_the_unmasked_path(models, version, size):
    _, ours = models(version, size)
    x = tuple(pixels(2, 3, (32, 32), sensors=ALL).values())
    encoder = Encoder(ours, window_px=(32, 32), patch_px=8, dates=dates(3), sensors=ALL)
    masked = encoder(x, torch.ones(2, 3, 3, 4, 4, dtype=torch.bool))
    torch.testing.assert_close(masked, encoder(x), atol=1e-5, rtol=1e-5)


def holes() -> torch.Tensor:
    """(1, sensor, time, row, col): cell (0, 0) lacks a period of S2 and all of S1; cell (1, 0) has nothing."""
    visible = torch.ones(1, 2, 3, 2, 2, dtype=torch.bool)
    visible[0, 0, 1, 0, 0] = False
    visible[0, 1, :, 0, 0] = False
    visible[:, :, :, 1, 0] = False
    return visible


@pytest.mark.parametrize("version", ["v1", "v1.2"])
def test_pooling_is_over_a_sensors_visible_tokens_then_over_the_sensors_present(models, version):
    _, ours = models(version, "toy")
    x, visible = tuple(pixels(1, 3, (16, 16), sensors=ALL[:2]).values()), holes()
    encoder = Encoder(ours, window_px=(16, 16), patch_px=8, dates=dates(3), sensors=ALL[:2])
    s2, s1 = (part[0] for part in encoder.tokens(x, visible))  # (time, row, col, band set, dim)
    got = encoder(x, visible)[0]
    torch.testing.assert_close(got[0, 0], s2[[0, 2], 0, 0].mean(dim=(0, 1)))
    torch.testing.assert_close(got[0, 1], (s2[:, 0, 1].mean(dim=(0, 1)) + s1[:, 0, 1].mean(dim=(0, 1))) / 2)
    assert not got[1, 0].any()  # a cell without any visible token is zero, not NaN
    each = encoder.per_sensor(x, visible)[0]
    torch.testing.assert_close(each[1, 1, 1], s1[:, 1, 1].mean(dim=(0, 1)))
    assert not each[1, 0, 0].any()


def test_max_pooling_takes_the_largest_of_a_cells_visible_tokens(models):
    _, ours = models("v1", "toy")
    x, visible = tuple(pixels(1, 3, (16, 16), sensors=ALL[:2]).values()), holes()
    encoder = Encoder(ours, window_px=(16, 16), patch_px=8, dates=dates(3), sensors=ALL[:2], output="max")
    s2, s1 = (part[0] for part in encoder.tokens(x, visible))
    got = encoder(x, visible)[0]
    torch.testing.assert_close(got[0, 0], s2[[0, 2], 0, 0].amax(dim=(0, 1)))
    torch.testing.assert_close(got[1, 1], torch.maximum(s2[:, 1, 1].amax(dim=(0, 1)), s1[:, 1, 1].amax(dim=(0, 1))))
    assert not got[1, 0].any()


def test_the_short_student_is_a_prefix_of_the_student():
    toy = checkpoint.load("random:v1.3-toy:0")
    wide = replace(toy.config, pooler=replace(toy.config.pooler, student=128))
    ours = replace(toy, config=wide, tensors=random_tensors(wide, seed=0)[0])
    field = torch.randn(2, 3, 4, wide.dims)
    long, short = Head(ours, "student")(field), Head(ours, "student64")(field)
    assert long.shape[-1] == 128
    torch.testing.assert_close(short, long[..., :64], atol=0, rtol=0)


@pytest.mark.parametrize("attention", ["sdpa", "own"])
@pytest.mark.parametrize(("version", "core"), [("v1", (1, 3)), ("v1.2", (0, 2)), ("v1.3", (1, 2))])
def test_a_pruned_last_block_gives_the_same_core_and_nothing_else(models, version, core, attention):
    if attention == "own" and not use_own():
        pytest.skip("no C++ compiler here: the own attention kernel cannot be built")
    _, ours = models(version, "toy")
    x, days = tuple(pixels(2, 2, (40, 40), sensors=ALL[:2]).values()), dates(2)
    options = {"window_px": (40, 40), "patch_px": 8, "dates": days, "sensors": ALL[:2], "attention": attention}
    visible = torch.from_numpy(np.random.default_rng(1).random((2, 2, 2, 5, 5)) > 0.2)
    for seen in (None, visible):
        want = Encoder(ours, **options)(x, seen)
        got = Encoder(ours, **options, core=core)(x, seen)
        inside = slice(core[0], sum(core))
        torch.testing.assert_close(got[:, inside, inside], want[:, inside, inside], atol=1e-6, rtol=1e-6)
        got[:, inside, inside] = 0
        assert not got.any()


# --- precision and independence -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "size"), [("v1", "nano"), ("v1.1", "nano"), ("v1.2", "nano"), ("v1.3", "toy")])
def test_bfloat16_error_is_at_most_that_of_the_references_autocast(models, version, size):
    ratios = []
    for seed in range(3):
        model, ours = models(version, size, seed)
        x = pixels(2, 3, (32, 32), seed=seed)
        encoder = Encoder(ours, window_px=(32, 32), patch_px=4, dates=dates(3), dtype=torch.bfloat16)
        exact, exact_place, _ = reference_fields(model, x, dates(3), patch_px=4)
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
            theirs, their_place, _ = reference_fields(model, x, dates(3), patch_px=4)
        with torch.inference_mode():
            if exact_place is None:
                got, want, rival = encoder.tokens(tuple(x.values()))[0], *(t["sentinel2_l2a"] for t in (exact, theirs))
            else:
                got, want, rival = encoder(tuple(x.values())), exact_place, their_place
        ratios.append(float((got - want).norm() / (rival.float() - want).norm()))
    assert float(np.median(ratios)) <= 1.15


def test_bfloat16_keeps_norms_and_positions_in_float32():
    options = {"window_px": (32, 32), "patch_px": 8, "dates": dates(12)}
    encoder = Encoder(checkpoint.load("random:v1.2-nano:0"), dtype=torch.bfloat16, **options)
    exact = Encoder(checkpoint.load("random:v1.2-nano:0"), halves=True, **options)
    assert encoder.norm.weight.dtype == encoder.blocks[0].norm1.weight.dtype == torch.float32
    torch.testing.assert_close(encoder.blocks[0].cos.float(), exact.blocks[0].cos, atol=2**-8, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("version", "size"), [("v1", "nano"), ("v1.2", "nano"), ("v1.3", "toy")])
def test_a_windows_bytes_do_not_depend_on_its_batch_mates_or_its_position(models, version, size, dtype):
    """With different tokens missing in each, where the reference itself depends on them."""
    _, ours = models(version, size)
    encoder = Encoder(ours, window_px=(32, 32), patch_px=8, dates=dates(3), sensors=ALL[:2], dtype=dtype)
    x = tuple(pixels(4, 3, (32, 32), sensors=ALL[:2]).values())
    visible = torch.from_numpy(np.random.default_rng(3).random((4, 2, 3, 4, 4)) > 0.3)
    other = torch.tensor([2, 0, 3, 1])
    for seen in (None, visible):
        want = encoder(x, seen)
        moved = encoder(tuple(part[other] for part in x), None if seen is None else seen[other])
        torch.testing.assert_close(moved, want[other], atol=0, rtol=0)


@pytest.mark.parametrize(("version", "size"), [("v1", "nano"), ("v1.2", "nano"), ("v1.3", "toy")])
def test_float32_vectors_do_not_depend_on_the_batch_size(models, version, size):
    _, ours = models(version, size)
    encoder = Encoder(ours, window_px=(32, 32), patch_px=8, dates=dates(3))
    x = pixels(5, 3, (32, 32))["sentinel2_l2a"]
    alone = torch.cat([encoder(x[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(encoder(x), alone, atol=2e-6, rtol=2e-6)


def test_shapes_sensors_and_outputs_that_do_not_fit_are_refused():
    model = checkpoint.load("random:v1.2-nano:0")
    with pytest.raises(ConfigError, match="not a positive multiple"):
        Encoder(model, window_px=(30, 32), patch_px=4, dates=dates(1))
    with pytest.raises(CheckpointError, match="not naip"):
        Encoder(model, window_px=(32, 32), patch_px=4, dates=dates(1), sensors=("naip",))
    with pytest.raises(InvalidInputError, match="at least one date"):
        Encoder(model, window_px=(32, 32), patch_px=4, dates=())
    with pytest.raises(ConfigError, match="no location tokens"):
        Encoder(model, window_px=(32, 32), patch_px=4, dates=dates(1), output="location")
    with pytest.raises(ConfigError, match="core of 5 tokens"):
        Encoder(model, window_px=(32, 32), patch_px=8, dates=dates(1), core=(0, 5))
    toy = checkpoint.load("random:v1.3-toy:0")
    with pytest.raises(ConfigError, match="does not divide"):
        Encoder(toy, window_px=(32, 32), patch_px=8, dates=dates(1), location_px=3)
    with pytest.raises(ConfigError, match="no student"):
        Head(model, "student")
