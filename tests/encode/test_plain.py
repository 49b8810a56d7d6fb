"""The plain forward pass, which the start-up gate trusts, against the reference package's for every version."""

from __future__ import annotations

from dataclasses import replace
from datetime import date

import numpy as np
import pytest
import torch
from checkpoints import VERSIONS, reference_fields, reference_model, write_checkpoint
from olmoearth_pretrain_minimal.olmoearth_pretrain_v1.nn.searchlight import SearchlightSettings
from olmoearth_pretrain_minimal.olmoearth_pretrain_v1.utils.datatypes import MaskedOlmoEarthSample

from pipeline.encode import checkpoint, plain
from pipeline.errors import InvalidInputError

DATES = (date(2023, 11, 5), date(2023, 12, 31), date(2024, 2, 29), date(2024, 3, 1))
SENSORS = ("sentinel2_l2a", "sentinel1", "landsat")
TOGETHER = [*((name,) for name in SENSORS), ("landsat", "sentinel2_l2a"), SENSORS]
MODELS = [*((version, "toy") for version in VERSIONS), *((version, "nano") for version in VERSIONS[:3])]
TOLERANCE = {"atol": 5e-5, "rtol": 1e-4}


@pytest.fixture(scope="module", params=MODELS, ids="-".join)
def pair(request, tmp_path_factory):
    """(reference model, our checkpoint read from the folder it was written to)."""
    version, size = request.param
    return make(tmp_path_factory, size, version=version)


@pytest.fixture(scope="module")
def pooled(tmp_path_factory):
    return make(tmp_path_factory, "toy", version="v1.3")


def make(tmp_path_factory, size, **options):
    model = reference_model(size, **options)
    return model, checkpoint.load(str(write_checkpoint(tmp_path_factory.mktemp("model"), model)))


def pixels(model, sensors, side, *, windows=1, seed=0) -> tuple[torch.Tensor, ...]:
    rng = np.random.default_rng(seed)
    shapes = [(windows, len(DATES), len(model.config.bands(name)), *side) for name in sensors]
    return tuple(torch.from_numpy(rng.normal(0.4, 0.3, shape).astype(np.float32)) for shape in shapes)


def gaps(sensors, grid, *, seed=0) -> torch.Tensor:
    """(1, sensor, time, row, col): single tokens, one period of the first sensor and, of several, one whole sensor."""
    visible = torch.from_numpy(np.random.default_rng(seed).random((1, len(sensors), len(DATES), *grid)) > 0.3)
    visible[:, 0, 1] = False
    visible[:, 0, 2, 0, 0] = True
    if len(sensors) == len(SENSORS):
        visible[:, 1] = False
    return visible


def both(pair, sensors, side, *, patch_px, visible=None, windows=1):
    """((tokens, places) of ours, all results of the reference)."""
    model, ours = pair
    x = pixels(ours, sensors, side, windows=windows)
    at = plain.places(ours.config, DATES, (side[0] // patch_px, side[1] // patch_px), patch_px=patch_px)
    got = plain.tokens(ours, x, visible, sensors=sensors, dates=DATES, patch_px=patch_px, at=at)
    seen = None if visible is None else dict(zip(sensors, visible.unbind(1), strict=True))
    want = reference_fields(model, dict(zip(sensors, x, strict=True)), DATES, patch_px=patch_px, visible=seen)
    return (got, at), want


@pytest.mark.parametrize("sensors", TOGETHER, ids="+".join)
def test_tokens_of_sensors_alone_and_together_equal_the_references(pair, sensors):
    (got, _), (want, _, _) = both(pair, sensors, (16, 16), patch_px=4, windows=2)
    for name, found in zip(sensors, got, strict=True):
        torch.testing.assert_close(found, want[name], **TOLERANCE)


@pytest.mark.parametrize("patch_px", [1, 2, 3, 5, 8])
def test_every_patch_size_equals_the_references(pair, patch_px):
    (got, _), (want, _, _) = both(pair, SENSORS[:1], (2 * patch_px, 2 * patch_px), patch_px=patch_px)
    torch.testing.assert_close(got[0], want[SENSORS[0]], **TOLERANCE)


@pytest.mark.parametrize("side", [(5, 1), (1, 5), (1, 1), (6, 3)])
def test_narrow_windows_equal_the_references(pooled, side):
    (got, _), (want, _, _) = both(pooled, SENSORS[:1], side, patch_px=1)
    torch.testing.assert_close(got[0], want[SENSORS[0]], **TOLERANCE)


@pytest.mark.parametrize("sensors", TOGETHER, ids="+".join)
def test_missing_tokens_periods_and_sensors_equal_the_references_missing_mask(pair, sensors):
    visible = gaps(sensors, (3, 3))
    (got, _), (want, _, _) = both(pair, sensors, (12, 12), patch_px=4, visible=visible)
    for i, name in enumerate(sensors):
        seen = visible[:, i]
        torch.testing.assert_close(got[i][seen], want[name][seen], **TOLERANCE)
        assert not got[i][~seen].any()


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("sensors", TOGETHER, ids="+".join)
def test_location_tokens_and_student_equal_the_references(pooled, sensors, hidden):
    visible = gaps(sensors, (3, 2)) if hidden else None
    (got, at), (_, location, student) = both(pooled, sensors, (12, 8), patch_px=4, visible=visible)
    found = plain.field(pooled[1], got, visible, output="student", at=at)
    torch.testing.assert_close(found, location, **TOLERANCE)
    torch.testing.assert_close(plain.student(pooled[1], found), student, **TOLERANCE)
    torch.testing.assert_close(plain.student(pooled[1], found, dims=8), student[..., :8], **TOLERANCE)


@pytest.mark.parametrize("per_depth", [False, True])
def test_a_deeper_pooler_equals_the_references(tmp_path_factory, per_depth):
    pair = make(tmp_path_factory, "toy", version="v1.3", pooler_depth=2, per_depth=per_depth, seed=1)
    (got, at), (_, location, _) = both(pair, SENSORS[:1], (12, 8), patch_px=4)
    torch.testing.assert_close(plain.field(pair[1], got, output="location", at=at), location, **TOLERANCE)


def test_location_tokens_finer_than_a_patch_equal_the_references(pooled):
    model, ours = pooled
    (got, at), _ = both(pooled, SENSORS[:1], (8, 4), patch_px=4)
    rows, cols = (torch.arange(n) - 1.5 for n in (8, 4))  # in pixels, 0 is the middle of the first patch
    fine = replace(at, queries=torch.stack(torch.meshgrid(rows, cols, indexing="ij"), dim=-1))
    x = {SENSORS[0]: pixels(ours, SENSORS[:1], (8, 4))[0]}
    _, want, _ = reference_fields(model, x, DATES, patch_px=4, location_px=1)
    torch.testing.assert_close(plain.field(ours, got, output="location", at=fine), want, **TOLERANCE)


def some_tokens(model, *, visible=None, output):
    """(tokens of two sensors, their field) of a model in a window of 2 x 2 cells."""
    sensors = SENSORS[:2]
    at = plain.places(model.config, DATES, (2, 2), patch_px=8)
    x = pixels(model, sensors, (16, 16))
    found = plain.tokens(model, x, visible, sensors=sensors, dates=DATES, patch_px=8, at=at)
    return found, plain.field(model, found, visible, output=output, at=at)


def test_the_mean_is_over_a_sensors_visible_tokens_then_over_the_sensors_present():
    model = checkpoint.load("random:v1-toy:0")
    visible = torch.ones(1, 2, len(DATES), 2, 2, dtype=torch.bool)
    visible[0, 0, :2, 0, 0] = False
    visible[0, 1, :, 0, 1] = False
    visible[0, :, :, 1, 1] = False
    (s2, s1), field = some_tokens(model, visible=visible, output="mean")
    torch.testing.assert_close(field[0, 0, 0], (s2[0, 2:, 0, 0].mean((0, 1)) + s1[0, :, 0, 0].mean((0, 1))) / 2)
    torch.testing.assert_close(field[0, 0, 1], s2[0, :, 0, 1].mean((0, 1)))
    assert not field[0, 1, 1].any()


def test_the_maximum_is_over_all_visible_tokens_of_a_cell():
    model = checkpoint.load("random:v1-toy:0")
    visible = torch.ones(1, 2, len(DATES), 2, 2, dtype=torch.bool)
    visible[0, 0, :, 0, 0] = False
    visible[0, :, :, 1, 1] = False
    (s2, s1), field = some_tokens(model, visible=visible, output="max")
    torch.testing.assert_close(field[0, 0, 0], s1[0, :, 0, 0].amax((0, 1)))
    torch.testing.assert_close(field[0, 1, 0], torch.maximum(s2[0, :, 1, 0].amax((0, 1)), s1[0, :, 1, 0].amax((0, 1))))
    assert not field[0, 1, 1].any()


@pytest.mark.parametrize("version", ["v1.2", "v1.3"])
def test_coordinates_not_told_are_as_frequencies_of_zero(version):
    model = checkpoint.load(f"random:{version}-toy:0")
    still = {name: 0 * value for name, value in model.tensors.items() if name.endswith("rope_mixed_freqs")}
    x, at = pixels(model, SENSORS[:1], (16, 16)), plain.places(model.config, DATES, (2, 2), patch_px=8)
    lost = replace(at, tokens=at.tokens * float("nan"))
    options = {"sensors": SENSORS[:1], "dates": DATES, "patch_px": 8}
    got = plain.tokens(model, x, at=lost, **options)
    want = plain.tokens(replace(model, tensors={**model.tensors, **still}), x, at=at, **options)
    torch.testing.assert_close(got, want)


def test_without_coordinates_an_absolute_model_cannot_tell_places_apart():
    model = checkpoint.load("random:v1.1-toy:0")
    x, at = (torch.full((1, len(DATES), 12, 16, 16), 0.4),), plain.places(model.config, DATES, (2, 2), patch_px=8)
    options = {"sensors": SENSORS[:1], "dates": (DATES[0],) * len(DATES), "patch_px": 8}
    lost = plain.tokens(model, x, at=replace(at, tokens=at.tokens * float("nan")), **options)[0]
    told = plain.tokens(model, x, at=at, **options)[0]
    assert float((lost - lost[:, :1, :1, :1]).abs().max()) < 1e-5
    assert float((told - told[:, :1, :1, :1]).abs().max()) > 0.1


def test_location_tokens_of_a_model_without_a_pooler_are_refused():
    with pytest.raises(InvalidInputError, match="v1.2. has no location tokens"):
        some_tokens(checkpoint.load("random:v1.2-toy:0"), output="location")


@pytest.mark.parametrize("version", ["v1.2", "v1.3"])
def test_tokens_that_attend_to_boxes_equal_the_references_own_mode(tmp_path_factory, version):
    """The encoder over domains compares other shapes, and location tokens finer than a patch, with that mode itself."""
    model, ours = make(tmp_path_factory, "toy", version=version)
    x, at = pixels(ours, SENSORS[:2], (24, 32)), plain.places(ours.config, DATES, (6, 8), patch_px=4)
    inputs = {}
    for name, part in zip(SENSORS, x, strict=False):
        inputs[name] = part.permute(0, 3, 4, 1, 2).contiguous()
        inputs[f"{name}_mask"] = torch.zeros(*inputs[name].shape[:4], 1)
    stamps = torch.tensor([[day.day, day.month - 1, day.year] for day in DATES])[None]
    with torch.inference_mode():
        want = model.encoder(
            MaskedOlmoEarthSample(timestamps=stamps, **inputs),
            patch_size=4,
            fast_pass=False,
            searchlight=SearchlightSettings(neighborhood_attention_size_px=16),
        )
    got = plain.tokens(ours, x, sensors=SENSORS[:2], dates=DATES, patch_px=4, at=at, box=4)
    for name, found in zip(SENSORS, got, strict=False):
        same = getattr(want["tokens_and_masks"], name).permute(0, 3, 1, 2, 4, 5)
        torch.testing.assert_close(found, same, **TOLERANCE)
    if version == "v1.3":
        location = plain.field(ours, got, output="location", at=at, box=4)
        torch.testing.assert_close(location, want["location_tokens"], **TOLERANCE)


@pytest.mark.parametrize(("box", "first"), [(2, 5), (3, 3), (4, 3)])
def test_boxes_of_location_tokens_are_those_of_their_cells(pooled, box, first):
    """Of 6 cells: those that see the last one in their read, and those that see one of these in the block after it."""
    _, ours = pooled
    x, right = pixels(ours, SENSORS[:1], (24, 24)), plain.places(ours.config, DATES, (6, 6), patch_px=4)
    rows = torch.arange(12) * 2 - 1.0
    fine = replace(right, queries=torch.stack(torch.meshgrid(rows, rows, indexing="ij"), dim=-1))
    found = plain.tokens(ours, x, sensors=SENSORS[:1], dates=DATES, patch_px=4, at=right, box=box)
    other = tuple(part.clone() for part in found)
    other[0][:, :, 5, 5] += torch.randn(len(DATES), 1, found[0].shape[-1])  # not the same for all channels
    one, two = (plain.field(ours, part, output="location", at=fine, box=box)[0] for part in (found, other))
    sees = (one - two).abs().amax(dim=-1) > 1e-6
    want = torch.zeros(12, 12, dtype=torch.bool)
    want[2 * first :, 2 * first :] = True
    assert torch.equal(sees, want)


def test_a_box_as_large_as_the_window_is_no_box(pooled):
    _, ours = pooled
    x, at = pixels(ours, SENSORS[:1], (16, 16)), plain.places(ours.config, DATES, (4, 4), patch_px=4)
    options = {"sensors": SENSORS[:1], "dates": DATES, "patch_px": 4, "at": at}
    visible = gaps(SENSORS[:1], (4, 4))
    boxed, whole = (plain.tokens(ours, x, visible, **options, box=box) for box in (4, None))
    torch.testing.assert_close(boxed, whole)
    boxed, whole = (plain.field(ours, whole, visible, output="location", at=at, box=box) for box in (4, None))
    torch.testing.assert_close(boxed, whole)


def test_a_location_token_without_any_token_in_its_box_is_finite(pooled):
    _, ours = pooled
    x, at = pixels(ours, SENSORS[:1], (24, 24)), plain.places(ours.config, DATES, (6, 6), patch_px=4)
    visible = torch.zeros(1, 1, len(DATES), 6, 6, dtype=torch.bool)
    visible[..., 5, 5] = True
    found = plain.tokens(ours, x, visible, sensors=SENSORS[:1], dates=DATES, patch_px=4, at=at, box=2)
    assert bool(plain.field(ours, found, visible, output="location", at=at, box=2).isfinite().all())


@pytest.mark.parametrize("patch_px", [1, 4, 8])
def test_a_margin_is_embedded_and_cut_off(patch_px):
    model, margin = checkpoint.load("random:v1.2-toy:0"), 2
    n, day = 5, DATES[:1]
    x = pixels(model, SENSORS[:1], (n * patch_px, n * patch_px))[0][:, :1]
    options = {"config": model.config, "sensor": SENSORS[0], "patch_px": patch_px}
    want = plain._embed(model.tensors, x, **options)[:, :, margin:-margin, margin:-margin]
    at = plain.places(model.config, day, (1, 1), patch_px=patch_px)
    shape = {"sensors": SENSORS[:1], "dates": day, "patch_px": patch_px, "at": at}
    got = plain.tokens(model, (x,), margin=margin, **shape)[0]
    added = plain._encoding(model.tensors, config=model.config, sensor=SENSORS[0], dates=day, at=at.tokens)
    alone = plain._blocks(
        model.tensors, (want + added).flatten(0, 4), at.tokens.flatten(0, 2), config=model.config, mask=None
    )
    torch.testing.assert_close(got.flatten(0, 4), alone)
