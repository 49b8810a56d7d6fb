"""Domains: box, core and halo that a model and a patch get, and what they cost."""

from __future__ import annotations

import pytest

from pipeline.errors import ConfigError, InvalidInputError
from pipeline.plan import domains, flops, grid
from pipeline.plan.ramp import exact_halo_px
from pipeline.types import Box, GridSpec, ModelCard, Tile


def card(
    *, version: str = "v1.2", width: int = 128, depth: int = 4, pooler: int = 0, output: str = "mean"
) -> ModelCard:
    return ModelCard(
        name="m",
        version=version,
        size="nano",
        dims=width,
        depth=depth,
        heads=8,
        parameters=0,
        sensors=("sentinel2_l2a",),
        sha256="",
        trained=False,
        output=output,
        pooler_depth=pooler,
    )


def settle(model: ModelCard, **values) -> GridSpec:
    return domains.settle_domain(model, **({"patch_px": 4, "tile_px": 2048, "device": "cpu"} | values))


def test_the_halo_is_what_attention_and_resizing_reach_and_the_margin_of_interpolation():
    spec = settle(card(), box_px=32)
    assert (spec.core_px, spec.box_px, spec.stride_px) == (256, 32, 256)
    assert spec.halo_px == 4 * 4 * 4 + 4 + 4  # four layers of four cells, one token of resizing, one of margin
    assert spec.overlap_px - spec.halo_px == 4 * 3 * 4 + 4 + 4
    assert spec.kept == (spec.halo_px // 4 - 1, 256 // 4 + 2)


def test_a_store_of_tokens_needs_no_margin():
    spec = settle(card(), token_px=4)
    assert spec.halo_px == exact_halo_px(card(), spec.box_px, 4)[0]
    assert spec.kept == (spec.halo_px // 4, 64)


def test_a_halo_that_is_set_cuts_the_reach_short_and_never_extends_it():
    deep = card(depth=12)
    front, behind = exact_halo_px(deep, 32, 4)
    cut, whole = settle(deep, halo_px=48), settle(deep, halo_px=4000)
    assert (cut.halo_px, cut.overlap_px) == (48 + 4, 2 * (48 + 4))
    assert (whole.halo_px, whole.overlap_px) == (front + 4, front + behind + 8)


def test_boxes_and_cores_follow_version_patch_and_device():
    assert [settle(card(), patch_px=p).box_px for p in (1, 2, 4, 8)] == [16, 16, 32, 64]
    assert [settle(card(version="v1.3"), patch_px=p).box_px for p in (1, 2, 4, 8)] == [16] * 4
    assert settle(card(), device="cuda").core_px == 1024


def test_a_core_grows_where_its_halo_would_be_most_of_the_work():
    deep = card(width=192, depth=12)
    assert [settle(model, patch_px=p).core_px for model, p in ((card(), 4), (card(), 8), (deep, 4))] == [256, 512, 512]
    assert settle(deep, halo_px=32).core_px == 256  # measured, cut short
    with pytest.raises(ConfigError, match=r"use store.tile_px=512 or encode.core_px=256"):
        settle(deep, tile_px=256)  # the tile must not decide a vector


@pytest.mark.parametrize(
    ("version", "values", "says"),
    [
        ("v1", {}, "rotary positions"),
        ("v1.1", {}, "rotary positions"),
        ("v1.2", {"box_px": 18}, "encode.box_px 18"),
        ("v1.2", {"halo_px": 6}, "encode.halo_px 6"),
        ("v1.2", {"core_px": 512, "tile_px": 256}, "larger than store.tile_px 256"),
        ("v1.2", {"device": "cuda", "tile_px": 512}, "use store.tile_px=1024 or encode.core_px=512"),
        ("v1.2", {"box_px": 512, "halo_px": 4}, "larger than a domain"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(version, values, says):
    with pytest.raises(ConfigError, match=says):
        settle(card(version=version), **values)


@pytest.mark.parametrize(
    "values",
    [{"overlap_px": 64, "halo_px": 32, "window_px": 300}, {"box_px": 0}, {"halo_px": 0}, {"halo_px": 112}],
)
def test_a_lattice_of_domains_that_does_not_fit_together_cannot_be_made(values):
    good = {"patch_px": 4, "window_px": 368, "overlap_px": 112, "tile_px": 512, "box_px": 32, "halo_px": 64}
    assert GridSpec(**good, stitch="neighbourhood").core_px == 256
    with pytest.raises(InvalidInputError, match="domain"):
        GridSpec(**(good | values), stitch="neighbourhood")


def test_windows_have_neither_box_nor_halo():
    with pytest.raises(InvalidInputError, match="box_px"):
        GridSpec(patch_px=4, window_px=64, overlap_px=24, tile_px=512, box_px=16)


def test_every_block_lies_in_the_core_of_one_domain_which_no_tile_decides():
    spec = settle(card(), tile_px=512)
    block = Box(zone=32, res_m=10, row=-256, col=768, height=256, width=256)
    (origin,) = grid.window_origins(block, spec)
    assert origin == (-256 - spec.halo_px, 768 - spec.halo_px)
    for tile_px in (256, 512, 1024):
        tile = Tile(zone=32, row=-256 // tile_px, col=768 // tile_px, tile_px=tile_px)
        inside = ((tile_px - 256) // 256, (768 - tile.box.col) // 256)
        assert grid.tile_windows(tile, [inside], spec) == (origin,)


def test_shifts_multiply_the_windows_and_their_cost():
    plain, dense = settle(card()), settle(card(), dense=2)
    tile = Tile(zone=32, row=0, col=0, tile_px=2048)
    many = grid.tile_windows(tile, [(0, 0)], dense)
    (origin,) = grid.tile_windows(tile, [(0, 0)], plain)
    assert many == tuple((origin[0] + a, origin[1] + b) for a in (0, 2) for b in (0, 2))
    ratio = flops.cost_per_km2(card(), dense, 3).flops / flops.cost_per_km2(card(), plain, 3).flops
    assert ratio == pytest.approx(4)


def test_a_large_core_costs_little_more_than_its_tokens_and_a_small_one_its_halo():
    """GFLOP per km2 of box 16 px, patch 4, without halos: 1.14 and 16.4 (1 and 12 periods) for nano, 7.77 for tiny."""
    tiny = card(width=192, depth=12)
    per_km2 = {
        (model.token_width, periods, core): flops.cost_per_km2(
            model, settle(model, box_px=16, core_px=core), periods
        ).flops
        / 1e9
        for model in (card(), tiny)
        for periods in (1, 12)
        for core in (256, 2048)
    }
    assert 1.14 <= per_km2[128, 1, 2048] < 1.18
    assert 16.4 <= per_km2[128, 12, 2048] < 17.0
    assert 7.77 <= per_km2[192, 1, 2048] < 8.6
    assert per_km2[192, 1, 256] > 1.6 * per_km2[192, 1, 2048]


def test_the_extent_shrinks_layer_by_layer_to_what_is_kept():
    spec = settle(card(), box_px=32)
    sides = [flops.extent(spec, layers) for layers in (0, 1, 4, 9)]
    assert sides == [66, 66 + 7, 66 + 28, 96]  # 7 cells per layer, then the domain ends


def test_the_text_names_the_box_the_halo_and_what_is_untrained():
    text = domains.explain(card(), settle(card(), box_px=64), 12)
    assert "box of 64 px (16 x 16 tokens of 4 px)" in text
    assert "all that attention reaches" in text
    assert "box 64 px at patch 4 is 16 cells per side" in text
    assert "less than attention reaches" in domains.explain(card(), settle(card(), halo_px=8), 3)


def test_a_core_whose_tokens_would_fill_the_memory_is_smaller():
    base = card(version="v1.3", width=768, depth=12)
    assert [settle(base, patch_px=4, per_cell=n, device="cuda").core_px for n in (1, 12)] == [1024, 1024]
    assert [settle(base, patch_px=1, per_cell=n, device="cuda").core_px for n in (1, 12)] == [1024, 256]
    assert [settle(base, patch_px=4, per_cell=n).core_px for n in (12, 36)] == [512, 256]
