"""The encoder over a domain against the reference package's own Searchlight mode, the stock encoder and itself."""

from __future__ import annotations

from datetime import date
from functools import cache

import numpy as np
import pytest
import torch
from checkpoints import reference_model, write_checkpoint
from olmoearth_pretrain_minimal.olmoearth_pretrain_v1.nn.searchlight import SearchlightSettings
from olmoearth_pretrain_minimal.olmoearth_pretrain_v1.utils.datatypes import MaskedOlmoEarthSample
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.encode import boxes, checkpoint, domain_layers, plain
from pipeline.encode.domain import DomainEncoder
from pipeline.encode.domain_embed import Embed
from pipeline.encode.domain_layers import Span
from pipeline.encode.embed import PatchEmbed
from pipeline.encode.kernel import use_own
from pipeline.encode.olmoearth import Encoder, Head
from pipeline.errors import CheckpointError, ConfigError, InvalidInputError

BANDS = {"sentinel2_l2a": 12, "sentinel1": 2, "landsat": 11}
ALL = ("sentinel2_l2a", "sentinel1", "landsat")
DATES = (date(2023, 11, 5), date(2023, 12, 31), date(2024, 2, 29))
TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}
SAME = {"atol": 1e-5, "rtol": 1e-5}
SHAPES = [
    (1, 20, 16, 1, ALL[:1]),
    (2, 28, 16, 3, ALL[:2]),
    (4, 40, 16, 3, ALL),
    (4, 48, 32, 1, ALL[1:]),
    (8, 72, 16, 3, ALL[:1]),
    (8, 40, 24, 1, ALL[:2]),
]
"""Patch, domain and box in pixels, periods, sensors; a box of 3 cells is odd."""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """(version, size, **options) to (reference model, our checkpoint read from the folder it was written to)."""

    @cache
    def make(version, size, seed=0, pooler_depth=1):
        model = reference_model(size, version=version, seed=seed, pooler_depth=pooler_depth)
        return model, checkpoint.load(str(write_checkpoint(tmp_path_factory.mktemp("model"), model)))

    yield make
    make.cache_clear()


def pixels(side, periods, sensors=ALL[:1], *, seed=0) -> tuple[torch.Tensor, ...]:
    rng = np.random.default_rng(seed)
    shapes = [(1, periods, BANDS[name], side, side) for name in sensors]
    return tuple(torch.from_numpy(rng.normal(0.4, 0.3, shape).astype(np.float32)) for shape in shapes)


def searchlight(model, x, periods, sensors, *, patch_px, box_px, shown=None, location_px=None):
    """The reference's field in its own mode: mean of the tokens in ``shown`` periods per sensor, or location tokens."""
    inputs = {}
    for name, part in zip(sensors, x, strict=True):
        inputs[name] = part.permute(0, 3, 4, 1, 2).contiguous()
        inputs[f"{name}_mask"] = torch.zeros(*inputs[name].shape[:4], 1)
        hidden = [] if shown is None else [t for t in range(periods) if t not in shown[name]]
        inputs[f"{name}_mask"][:, :, :, hidden] = 3
    stamps = torch.tensor([[d.day, d.month - 1, d.year] for d in DATES[:periods]])[None]
    options = {} if location_px is None else {"location_query_patch_size": location_px}
    with torch.inference_mode():
        out = model.encoder(
            MaskedOlmoEarthSample(timestamps=stamps, **inputs),
            patch_size=patch_px,
            fast_pass=False,
            searchlight=SearchlightSettings(neighborhood_attention_size_px=box_px),
            **options,
        )
    if "location_tokens" in out:
        return out["location_tokens"].clone()
    kept = [list(range(periods) if shown is None else shown[name]) for name in sensors]
    tokens = [getattr(out["tokens_and_masks"], name)[:, :, :, times] for name, times in zip(sensors, kept, strict=True)]
    return torch.stack([part.mean(dim=(3, 4)) for part in tokens if part.shape[3]]).mean(dim=0)


def encoder_of(ours, *, patch_px, side, box_px, periods=1, sensors=ALL[:1], **options) -> DomainEncoder:
    options = {"dates": DATES[:periods], "sensors": sensors, **options}
    return DomainEncoder(ours, window_px=side, patch_px=patch_px, box_px=box_px, **options)


def run(encoder, x, visible=None):
    with torch.inference_mode():
        return encoder(x, visible)


@pytest.mark.parametrize(("version", "size"), [("v1.2", "nano"), ("v1.2", "toy"), ("v1.3", "toy")])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_domains_larger_than_a_box_equal_the_references_own_mode(models, version, size, shape):
    patch_px, side, box_px, periods, sensors = shape
    model, ours = models(version, size)
    x = pixels(side, periods, sensors)
    want = searchlight(model, x, periods, sensors, patch_px=patch_px, box_px=box_px)
    output = "location" if version == "v1.3" else "mean"
    options = {"patch_px": patch_px, "side": side, "box_px": box_px, "periods": periods, "sensors": sensors}
    torch.testing.assert_close(run(encoder_of(ours, output=output, **options), x), want, **TOLERANCE)


@pytest.mark.parametrize(("version", "size"), [("v1.2", "nano"), ("v1.3", "toy")])
def test_missing_periods_and_sensors_equal_the_references_own_mode(models, version, size):
    model, ours = models(version, size)
    x, shown = pixels(32, 3, ALL), {"sentinel2_l2a": (0, 2), "sentinel1": (1,), "landsat": ()}
    visible = torch.zeros(1, 3, 3, 8, 8, dtype=torch.bool)
    for i, name in enumerate(ALL):
        visible[0, i, list(shown[name])] = True
    want = searchlight(model, x, 3, ALL, patch_px=4, box_px=16, shown=shown)
    encoder = encoder_of(ours, patch_px=4, side=32, box_px=16, periods=3, sensors=ALL)
    torch.testing.assert_close(run(encoder, x, visible), want, **TOLERANCE)


@pytest.mark.parametrize(("patch_px", "location_px"), [(2, 1), (4, 1), (8, 4)])
def test_locations_finer_than_a_patch_equal_the_references_own_mode(models, patch_px, location_px):
    model, ours = models("v1.3", "toy")
    side, x = 6 * patch_px, pixels(6 * patch_px, 2, ALL[:2])
    options = {"patch_px": patch_px, "box_px": 4 * patch_px, "location_px": location_px}
    want = searchlight(model, x, 2, ALL[:2], **options)
    encoder = encoder_of(ours, side=side, periods=2, sensors=ALL[:2], **options)
    torch.testing.assert_close(run(encoder, x), want, **TOLERANCE)


def test_a_deeper_pooler_equals_the_references_own_mode(models):
    model, ours = models("v1.3", "toy", pooler_depth=3)
    x = pixels(40, 2)
    want = searchlight(model, x, 2, ALL[:1], patch_px=4, box_px=16)
    whole = encoder_of(ours, patch_px=4, side=40, box_px=16, periods=2)
    torch.testing.assert_close(run(whole, x), want, **TOLERANCE)
    core = encoder_of(ours, patch_px=4, side=40, box_px=16, periods=2, core=(6, 3))
    torch.testing.assert_close(run(core, x), want[:, 6:9, 6:9], **TOLERANCE)


@pytest.mark.parametrize("output", ["mean", "max", "location"])
@pytest.mark.parametrize("hidden", [False, True])
def test_a_domain_one_box_wide_equals_the_stock_encoder(models, output, hidden):
    _, ours = models("v1.3", "toy")
    x = pixels(16, 3, ALL[:2])
    visible = torch.from_numpy(np.random.default_rng(0).random((1, 2, 3, 8, 8)) > 0.4) if hidden else None
    shape = {"patch_px": 2, "dates": DATES, "sensors": ALL[:2], "output": output}
    want = run(Encoder(ours, window_px=(16, 16), **shape), x, visible)
    got = run(DomainEncoder(ours, window_px=16, box_px=16, **shape), x, visible)
    some = torch.ones(8, 8, dtype=torch.bool) if visible is None else visible[0].flatten(0, 1).any(dim=0)
    torch.testing.assert_close(got[0, some], want[0, some], **SAME)
    if output == "location":
        torch.testing.assert_close(Head(ours, "student")(got[0, some]), Head(ours, "student")(want[0, some]), **SAME)


def gaps(sensors, periods, side) -> torch.Tensor:
    """(1, sensor, time, row, col): tokens missing at random, and an area larger than a box without any."""
    visible = torch.from_numpy(np.random.default_rng(4).random((1, sensors, periods, side, side)) > 0.4)
    visible[..., :6, :7] = False
    return visible


@pytest.mark.parametrize(("version", "size"), [("v1.2", "nano"), ("v1.3", "toy")])
@pytest.mark.parametrize("kind", ["sdpa", "own"])
def test_any_missing_tokens_equal_the_plain_pass_with_boxes(models, version, size, kind):
    if kind == "own" and not use_own():
        pytest.skip("no C++ compiler here: the own attention kernel cannot be built")
    _, ours = models(version, size)
    x, visible = pixels(36, 3, ALL[:2]), gaps(2, 3, 9)
    at = plain.places(ours.config, DATES, (9, 9), patch_px=4)
    found = plain.tokens(ours, x, visible, sensors=ALL[:2], dates=DATES, patch_px=4, at=at, box=4)
    want = plain.field(ours, found, visible, output=ours.card.output, at=at, box=4)
    got = run(encoder_of(ours, patch_px=4, side=36, box_px=16, periods=3, sensors=ALL[:2], attention=kind), x, visible)
    some = visible[0].flatten(0, 1).any(dim=0)
    torch.testing.assert_close(got[0, some], want[0, some], **TOLERANCE)
    assert not got[0, ~some].any()


# --- reach and lattice ------------------------------------------------------------------------------------------------

REACHES = [("v1.2", "nano", 4), ("v1.3", "toy", 4), ("v1.3", "toy", 3)]
"""Version, size, box in cells."""


def layers(ours) -> int:
    """How often attention spreads what a token sees."""
    return ours.config.depth + (1 + ours.config.pooler.depth if ours.config.pooler else 0)


def ends(ours, box, *, patch_px=4) -> tuple[int, int]:
    """(cells before, cells behind) that an output depends on, with those that resizing sees."""
    return layers(ours) * (box // 2) + 1, layers(ours) * (box - 1 - box // 2) + 1


@pytest.mark.parametrize(("version", "size", "box"), REACHES)
def test_a_core_with_all_that_it_reaches_equals_the_same_place_in_a_larger_domain(models, version, size, box):
    _, ours = models(version, size)
    before, behind = ends(ours, box)
    count, ahead = 3, 3
    small = before + count + behind
    n = ahead + small + 2
    x = pixels(4 * n, 2)
    cut = slice(4 * ahead, 4 * (ahead + small))
    options = {"patch_px": 4, "box_px": 4 * box, "periods": 2}
    whole = run(encoder_of(ours, side=4 * n, **options), x)
    inside = slice(ahead + before, ahead + before + count)
    part = encoder_of(ours, side=4 * small, core=(before, count), **options)
    got = run(part, (x[0][..., cut, cut],))
    torch.testing.assert_close(got, whole[:, inside, inside], **SAME)
    short = slice(4 * (ahead + 2), 4 * (ahead + small))  # two cells less than needed, one for the resizing
    less = encoder_of(ours, side=4 * (small - 2), core=(before - 2, count), **options)
    missed = run(less, (x[0][..., short, short],))
    assert float((missed - whole[:, inside, inside]).abs().max()) > 1e-4


@pytest.mark.parametrize(("version", "size", "box"), REACHES)
def test_layers_compute_no_more_cells_than_the_core_reaches(models, version, size, box):
    _, ours = models(version, size)
    encoder = encoder_of(ours, patch_px=4, side=160, box_px=4 * box, core=(20, 3))
    pooled = 1 + ours.config.pooler.depth if ours.config.pooler else 0
    spread = [(i + pooled) * (box - 1) for i in range(ours.config.depth, -1, -1)]
    assert [span.count for span in encoder.spans] == [3 + more for more in spread]
    assert encoder.spans[0].first == 20 - layers(ours) * (box // 2)


@pytest.mark.parametrize("kind", ["sdpa", "own"])
@pytest.mark.parametrize("patch_px", [1, 4, 8])
def test_a_domain_that_begins_elsewhere_gives_the_same_tokens(models, kind, patch_px):
    if kind == "own" and not use_own():
        pytest.skip("no C++ compiler here: the own attention kernel cannot be built")
    _, ours = models("v1.3", "toy")
    n, box = 32, 4
    before, behind = (cells + 2 for cells in ends(ours, box))
    x = pixels((n + 5) * patch_px, 2)
    fields = []
    for moved in (0, 5):
        encoder = encoder_of(
            ours,
            patch_px=patch_px,
            side=n * patch_px,
            box_px=box * patch_px,
            periods=2,
            core=(5 + before - moved, n - 5 - before - behind),
            attention=kind,
        )
        cut = slice(moved * patch_px, (moved + n) * patch_px)
        fields.append(run(encoder, (x[0][..., cut, cut],)))
    assert float((fields[0] - fields[1]).abs().max()) < 1e-5


@pytest.mark.parametrize(("version", "size", "box"), REACHES)
def test_a_pixel_beyond_the_reach_changes_nothing_and_the_next_one_does(models, version, size, box):
    """At patch 8 nothing is resized, so that the reach is that of attention alone."""
    _, ours = models(version, size)
    before, behind = (cells - 1 for cells in ends(ours, box))
    n = before + behind + 3
    centre = before + 1
    x = pixels(8 * n, 1)[0]
    encoder = encoder_of(ours, patch_px=8, side=8 * n, box_px=8 * box, core=(centre, 1))
    want = run(encoder, x)

    def changed(row, col):
        other = x.clone()
        other[..., 8 * row : 8 * row + 8, 8 * col : 8 * col + 8] += 1.0
        return not torch.equal(run(encoder, other), want)

    assert [changed(row, centre) for row in (centre - before - 1, centre - before)] == [False, True]
    assert [changed(centre, col) for col in (centre + behind, centre + behind + 1)] == [True, False]


# --- numbers, memory, gradients ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "size"), [("v1.2", "nano"), ("v1.3", "toy")])
def test_bfloat16_error_is_at_most_that_of_the_references_autocast(models, version, size):
    ratios = []
    for seed in range(3):
        model, ours = models(version, size, seed)
        x = pixels(40, 2, seed=seed)
        want = searchlight(model, x, 2, ALL[:1], patch_px=4, box_px=16)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rival = searchlight(model, x, 2, ALL[:1], patch_px=4, box_px=16)
        encoder = encoder_of(ours, patch_px=4, side=40, box_px=16, periods=2, dtype=torch.bfloat16, output=None)
        ratios.append(float((run(encoder, x) - want).norm() / (rival.float() - want).norm()))
    assert float(np.median(ratios)) <= 1.15


@pytest.mark.parametrize(("version", "size"), [("v1.2", "nano"), ("v1.3", "toy")])
def test_short_strips_change_nothing_but_rounding(models, version, size, monkeypatch):
    _, ours = models(version, size)
    x, visible = pixels(48, 3, ALL[:2]), gaps(2, 3, 12)
    options = {"patch_px": 4, "side": 48, "box_px": 16, "periods": 3, "sensors": ALL[:2], "core": (4, 5)}
    want = run(encoder_of(ours, **options), x, visible)
    monkeypatch.setattr(domain_layers, "STRIP_TOKENS", {"cpu": 1})
    torch.testing.assert_close(run(encoder_of(ours, **options), x, visible), want, **SAME)


class Largest(TorchDispatchMode):
    """Remembers what every operation made anew, bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for part in tree_leaves(out):
            if isinstance(part, torch.Tensor):
                self.made[part.untyped_storage()._cdata] = part.untyped_storage().nbytes()
        return out


def test_beside_the_stream_keys_and_values_nothing_grows_with_the_domain(monkeypatch):
    ours = checkpoint.load("random:v1.3-toy:0")
    strip, gather = 256, 1 << 17
    monkeypatch.setattr(domain_layers, "STRIP_TOKENS", {"cpu": strip})
    monkeypatch.setattr(boxes, "GATHER_BYTES", gather)
    side = 64
    encoder = encoder_of(ours, patch_px=1, side=side, box_px=4, output="location", sensors=ALL[1:2])
    x = pixels(side, 1, ALL[1:2])
    with Largest() as largest:
        run(encoder, x)
    whole = side**2 * ours.config.dims * 4  # the stream, keys, values, location tokens
    samples = strip * 64 * ours.config.hidden * 4  # the widest layer within a strip, in the patch embedding
    assert max(samples, gather) <= whole / 2
    assert {size for size in largest.made.values() if size > max(samples, gather)} == {whole}


def test_gradients_are_those_of_the_stock_encoder(models):
    for version, size in (("v1.2", "nano"), ("v1.3", "toy")):
        _, ours = models(version, size)
        shape = {"patch_px": 4, "dates": DATES[:2]}
        grads = []
        for encoder in (
            Encoder(ours, window_px=(16, 16), **shape),
            DomainEncoder(ours, window_px=16, box_px=16, **shape),
        ):
            x = pixels(16, 2)[0].requires_grad_()
            encoder(x)[0, 1, 2].square().sum().backward()
            grads.append(x.grad)
        torch.testing.assert_close(*grads, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("patch_px", [1, 2, 3, 4, 7, 8])
def test_squares_are_embedded_as_the_whole_domain_at_once(patch_px):
    """Also those at its edges, where the resizing is cut."""
    ours = checkpoint.load("random:v1.2-toy:0")
    n, x = 37, pixels(37 * patch_px, 2)[0]
    options = {"sensor": ALL[0], "patch_px": patch_px, "dates": DATES[:2], "dtype": torch.float32}
    whole = PatchEmbed(ours, window_px=(n * patch_px, n * patch_px), **options)(x)[0].view(2, n, n, -1)
    squares = Embed(ours, cells=n, **options)
    for wanted in (Span(0, n), Span(1, 35), Span(17, 18), Span(30, 7)):
        into = torch.full((wanted.count, wanted.count, 2, whole.shape[-1]), torch.nan)
        squares(x[0], into=into, wanted=wanted)
        inside = wanted.within(Span(0, n))
        torch.testing.assert_close(into, whole[:, inside, inside].permute(1, 2, 0, 3), atol=1e-6, rtol=1e-5)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["v1", "v1.1"])
def test_versions_with_added_positions_are_refused_with_the_reason(version):
    with pytest.raises(ConfigError, match="adds positions to its tokens.*grid.stitch=centre"):
        encoder_of(checkpoint.load(f"random:{version}-toy:0"), patch_px=4, side=32, box_px=16)


def test_shapes_outputs_and_batches_that_do_not_fit_are_refused():
    model, toy = checkpoint.load("random:v1.2-toy:0"), checkpoint.load("random:v1.3-toy:0")
    shape = {"patch_px": 4, "side": 32, "box_px": 16}
    with pytest.raises(ConfigError, match="not a positive multiple"):
        encoder_of(model, **{**shape, "side": 30})
    for box_px in (0, 6, 36):
        with pytest.raises(ConfigError, match=f"box of {box_px} px"):
            encoder_of(model, **{**shape, "box_px": box_px})
    with pytest.raises(ConfigError, match="core of 5 tokens from 4"):
        encoder_of(model, core=(4, 5), **shape)
    with pytest.raises(ConfigError, match="no location tokens"):
        encoder_of(model, output="location", **shape)
    with pytest.raises(ConfigError, match="none of mean, max"):
        encoder_of(model, output="median", **shape)
    with pytest.raises(ConfigError, match="does not divide"):
        encoder_of(toy, location_px=3, **shape)
    with pytest.raises(CheckpointError, match="not naip"):
        encoder_of(model, sensors=("naip",), **shape)
    with pytest.raises(InvalidInputError, match="at least one date"):
        encoder_of(model, dates=(), **shape)
    with pytest.raises(InvalidInputError, match="one domain at a time"):
        run(encoder_of(model, **shape), pixels(32, 1)[0].expand(2, -1, -1, -1, -1))
