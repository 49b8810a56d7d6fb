"""Tokens and operations against what was counted on the reference encoder and on our own."""

from __future__ import annotations

from dataclasses import replace
from datetime import date

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pipeline.encode import checkpoint
from pipeline.encode.olmoearth import Encoder, Head
from pipeline.errors import ConfigError
from pipeline.plan import flops
from pipeline.types import GridSpec, ModelCard

S2 = ("sentinel2_l2a",)
ALL = ("sentinel2_l2a", "sentinel1", "landsat")
SIZES = {
    "nano": (128, 4, 8),
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
}
# (version, size, periods, window px, patch px, tokens, GFLOP): counted on the reference encoder, attention added.
COUNTED = [
    ("v1.2", "nano", 1, 64, 8, 64, 0.123),
    ("v1.2", "nano", 1, 64, 4, 256, 0.592),
    ("v1.2", "nano", 1, 128, 2, 4096, 41.68),
    ("v1.2", "nano", 12, 64, 4, 3072, 24.82),
    ("v1.2", "nano", 12, 128, 4, 12288, 331.21),
    ("v1.2", "tiny", 1, 64, 8, 64, 0.824),
    ("v1.2", "tiny", 1, 128, 4, 1024, 22.25),
    ("v1.2", "tiny", 12, 64, 4, 3072, 124.72),
    ("v1.2", "small", 1, 128, 8, 256, 12.91),
    ("v1.2", "small", 12, 128, 4, 12288, 3344.84),
    ("v1.2", "base", 1, 64, 8, 64, 11.4),
    ("v1.2", "base", 1, 128, 2, 4096, 1340.43),
    ("v1.2", "base", 12, 64, 4, 3072, 889.36),
    ("v1", "nano", 1, 64, 8, 192, 0.39),
    ("v1", "nano", 12, 64, 4, 9216, 189.0),
    ("v1", "large", 1, 128, 4, 3072, 2784.75),
    ("v1", "large", 12, 128, 4, 36864, 155875.10),
]
# v1, 128 px, patch 8, one period: (GFLOP of a counter that misses attention, attention, both)
WITHOUT_ATTENTION = {
    "nano": (1.26, 1.21, 2.47),
    "tiny": (8.23, 5.44, 13.67),
    "base": (130.76, 21.74, 152.50),
    "large": (464.26, 57.98, 522.24),
}
# v1.2: (size, periods, patch px, window px, overlap px, GFLOP per kept km2)
PER_KM2 = [
    ("nano", 1, 8, 64, 0, 0.3),
    ("nano", 1, 8, 128, 32, 0.642),
    ("nano", 1, 4, 96, 48, 7.42),
    ("nano", 12, 4, 48, 16, 89.9),
    ("tiny", 1, 4, 64, 32, 36.6),
    ("base", 1, 8, 96, 16, 40.9),
    ("base", 12, 4, 64, 16, 3860.0),
    ("base", 12, 8, 128, 48, 1390.0),
]


def card(size: str = "nano", *, version: str = "v1.2", **more) -> ModelCard:
    dims, depth, heads = SIZES[size]
    fields = {"dims": dims, "depth": depth, "heads": heads, "sensors": (), "output": "mean"} | more
    return ModelCard(name="x", version=version, size=size, parameters=1, sha256="", trained=False, **fields)


def pooled(**more) -> ModelCard:
    """The card of a released v1.3."""
    fields = {"dims": 128, "width": 768, "pooler_depth": 1, "student": 128, "output": "student"}
    return card("base", version="v1.3", **(fields | more))


def spec(*, window: int = 64, patch: int = 4, overlap: int = 0, stitch: str = "blend") -> GridSpec:
    return GridSpec(patch_px=patch, window_px=window, overlap_px=overlap, tile_px=512, stitch=stitch)


@pytest.mark.parametrize(("version", "size", "periods", "window", "patch", "tokens", "gflop"), COUNTED)
def test_work_equals_the_count_on_the_reference_encoder(version, size, periods, window, patch, tokens, gflop):
    model, grid = card(size, version=version), spec(window=window, patch=patch)
    assert flops.tokens_per_window(model, grid, periods) == tokens
    assert flops.flops_per_window(model, grid, periods) / 1e9 == pytest.approx(gflop, rel=5e-3)


@pytest.mark.parametrize("size", WITHOUT_ATTENTION)
def test_attention_is_the_part_that_counters_miss(size):
    got = flops.window_work(card(size, version="v1"), spec(window=128, patch=8), 1)
    rest, attention, total = WITHOUT_ATTENTION[size]
    assert (got.embed + got.linear) / 1e9 == pytest.approx(rest, abs=6e-3)
    assert got.attention / 1e9 == pytest.approx(attention, abs=6e-3)
    assert got.total / 1e9 == pytest.approx(total, abs=6e-3)


@pytest.mark.parametrize(("size", "periods", "patch", "window", "overlap", "gflop"), PER_KM2)
def test_cost_per_km2_counts_the_overlap(size, periods, patch, window, overlap, gflop):
    grid = spec(window=window, patch=patch, overlap=overlap)
    got = flops.cost_per_km2(card(size), grid, periods)
    assert got.flops / 1e9 == pytest.approx(gflop, rel=5e-3)
    assert got.evaluations == pytest.approx((window / (window - overlap)) ** 2)
    assert got.tokens == pytest.approx(periods * (100 / patch) ** 2 * got.evaluations)


def counted(model: checkpoint.Checkpoint, grid: GridSpec, periods: int, sensors: tuple[str, ...]) -> tuple[int, int]:
    """(operations of our encoder on one window, of the head on its field); the math kernel shows attention."""
    side = grid.window_px
    encoder = Encoder(
        model,
        window_px=(side, side),
        patch_px=grid.patch_px,
        dates=[date(2024, 1 + i, 1) for i in range(periods)],
        sensors=sensors,
        core=(grid.trim_px // grid.patch_px, grid.core_px // grid.patch_px),
    )
    pixels = tuple(torch.zeros(1, periods, len(model.config.bands(name)), side, side) for name in sensors)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as body:
            field = encoder(pixels)
        with FlopCounterMode(display=False) as head:
            Head(model)(field.flatten(0, 2))
    return body.get_total_flops(), head.get_total_flops()


@pytest.mark.parametrize("patch", [2, 8])
@pytest.mark.parametrize("sensors", [S2, ALL])
@pytest.mark.parametrize("name", ["v1-nano", "v1.1-toy", "v1.2-nano", "v1.3-toy"])
def test_parts_add_up_to_what_our_encoder_executes(name, sensors, patch):
    model, grid = checkpoint.load(f"random:{name}:0"), spec(window=6 * patch, patch=patch)
    want = flops.window_work(model.card, grid, 2, sensors=sensors)
    body, head = counted(model, grid, 2, sensors)
    # the first read of the pooler projects one learned vector, once per batch
    extra = 2 * model.card.token_width**2 if model.card.pooler_depth else 0
    assert body == want.total + want.resize + extra
    assert head == want.student


@pytest.mark.parametrize("name", ["v1-toy", "v1.2-toy", "v1.3-toy"])
def test_pruning_counts_what_our_encoder_executes(name):
    model = checkpoint.load(f"random:{name}:0")
    whole, core = (spec(window=48, patch=8, overlap=16, stitch=stitch) for stitch in ("blend", "centre"))
    want = flops.flops_per_window(model.card, core, 2)
    body, _ = counted(model, core, 2, S2)
    # the encoder may make the queries of what it drops in the same product as keys and values
    dropped = flops.tokens_per_window(model.card, whole, 2) * (1 - (4 / 6) ** 2)
    assert want <= body <= want + 2 * model.card.token_width**2 * (dropped + 1)
    assert want < flops.flops_per_window(model.card, whole, 2)


@pytest.mark.parametrize(
    ("size", "saved"), [("nano", 17.4), ("tiny", 5.7), ("small", 5.5), ("base", 5.4), ("large", 2.7)]
)
def test_pruning_to_a_quarter_saves_this_share_of_the_blocks(size, saved):
    blend, centre = (
        flops.window_work(card(size), spec(window=128, overlap=64, stitch=stitch), 1) for stitch in ("blend", "centre")
    )
    share = 1 - (centre.linear + centre.attention) / (blend.linear + blend.attention)
    assert 100 * share == pytest.approx(saved, abs=0.06)
    assert centre.embed == blend.embed


def test_pruning_spares_the_blocks_of_a_model_whose_pooler_reads_every_token():
    blend, centre = (flops.window_work(pooled(), spec(overlap=32, stitch=stitch), 3) for stitch in ("blend", "centre"))
    assert (centre.linear, centre.attention) == (blend.linear, blend.attention)
    assert centre.pooler < blend.pooler
    assert centre.pooler_attention < blend.pooler_attention


def test_the_pooler_adds_a_sixth_at_one_period_and_two_percent_at_twelve():
    shares = []
    for periods in (1, 12):
        work = flops.window_work(pooled(), spec(window=128, patch=8), periods)
        shares.append((work.pooler + work.pooler_attention) / (work.linear + work.attention))
    assert shares == pytest.approx([0.160, 0.0186], rel=0.01)


def test_a_pooled_mean_of_v13_runs_no_pooler():
    work = flops.window_work(pooled(output="mean", dims=768), spec(), 3)
    assert (work.pooler, work.pooler_attention, work.student) == (0.0, 0.0, 0.0)
    assert work == flops.window_work(card("base"), spec(), 3)


def test_location_tokens_need_the_pooler_and_no_student():
    work = flops.window_work(pooled(output="location", dims=768), spec(), 3)
    assert work.pooler > 0
    assert work.student == 0.0


def test_the_student_runs_once_per_kept_cell_whatever_the_overlap():
    costs = [flops.cost_per_km2(pooled(), spec(overlap=overlap), 3) for overlap in (0, 32)]
    assert [c.work.student for c in costs] == pytest.approx([2 * 768 * 128 * 25**2] * 2)
    assert costs[0].flops == pytest.approx(costs[0].work.total + costs[0].work.student)
    assert costs[1].work.total == pytest.approx(4 * costs[0].work.total)


def test_work_follows_the_width_of_a_token_not_of_what_is_written():
    narrow, wide = pooled(output="student64", dims=64), pooled(output="location", dims=768)
    assert flops.flops_per_window(narrow, spec(), 2) == flops.flops_per_window(wide, spec(), 2)


def test_resizing_is_a_line_of_its_own_and_free_at_patch_8():
    assert flops.window_work(card(), spec(patch=8), 2).resize == 0.0
    work = flops.window_work(card(), spec(patch=4), 2)
    assert work.resize == 2 * 12 * 2 * (64 * 64 * 128 + 128 * 64 * 128)
    assert work.total == work.embed + work.linear + work.attention


def test_the_share_of_attention_grows_with_the_tokens():
    shares = [flops.window_work(card(), spec(window=w), t).attention_share for w, t in ((64, 1), (128, 1), (64, 12))]
    assert [round(100 * s) for s in shares] == [23, 54, 78]


@pytest.mark.parametrize(("version", "groups"), [("v1", 6), ("v1.1", 3), ("v1.2", 3), ("v1.3", 3)])
def test_every_band_set_of_every_sensor_is_a_token(version, groups):
    assert flops.tokens_per_window(card(version=version), spec(), 5, sensors=ALL) == 5 * 256 * groups


def test_the_cards_band_sets_and_hidden_channels_win_over_the_released_ones():
    model = card(band_sets=(("sentinel2_l2a", (3, 1)),), hidden=20)
    assert flops.tokens_per_window(model, spec(), 1) == 2 * 256
    got = flops.window_work(model, spec(), 1).embed
    assert got == 256 * 2 * 64 * 20 * ((3 + 128) + (1 + 128))
    assert flops.window_work(model, spec(), 1, hidden=10).embed == got / 2


def test_only_nano_has_twelve_hidden_channels():
    assert flops.window_work(card(), spec(), 1).embed == 256 * 2 * 64 * 12 * (12 + 128)
    assert flops.window_work(card("tiny"), spec(), 1).embed == 256 * 2 * 64 * 64 * (12 + 192)


@pytest.mark.parametrize("sensors", [(), ("sentinel2_l2a", "sentinel2_l2a"), ("landsat",), ("naip",)])
def test_sensors_that_the_model_does_not_take_are_refused(sensors):
    model = replace(card(), sensors=("sentinel2_l2a", "sentinel1"))
    with pytest.raises(ConfigError, match="sentinel1"):
        flops.window_work(model, spec(), 1, sensors=sensors)
