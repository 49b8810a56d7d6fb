"""From window fields to what the store gets: pixels or tokens, the head before interpolation, honest reasons."""

from __future__ import annotations

import json
import logging
from concurrent.futures import Future
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from pipeline import codes
from pipeline.account.meter import PeakMemory, StageClock
from pipeline.encode.session import WindowFields
from pipeline.encode.stitch import stitch
from pipeline.errors import DataError
from pipeline.maps.probe import Probe
from pipeline.plan import grid
from pipeline.run.map_layers import MapHead
from pipeline.run.tile import TileContext, finish, run_tile
from pipeline.types import Box, Calibration, Estimate, GridSpec, PeriodSource, Reason, Receipt, Task, Tile
from pipeline.write import layout
from tests.encode.stacks import make_stack
from tests.quantisers import METHODS, calibration_of

TILE = Tile(zone=31, row=-2, col=97, tile_px=512)
BLOCKS = ((0, 0), (0, 1), (1, 1))
DIMS, STEP = 3, 0.02


def spec_of(token_px=1, **changes):
    return replace(GridSpec(patch_px=8, window_px=64, overlap_px=16, tile_px=512, token_px=token_px), **changes)


def task_of(tile=TILE, blocks=BLOCKS):
    return Task(tile=tile, blocks=blocks, candidates=(), fingerprint="", estimate=Estimate())


class PlaceEncoder:
    """Vectors that depend on the ground and, a little, on the window; its head doubles and bends them."""

    flops_per_window = 1.0
    busy_s = 0.0

    def __init__(self, spec, *, head=True):
        self.spec = spec
        self.head = (lambda values: torch.tanh(values * 2)) if head else (lambda values: values)

    def encode(self, stack, origins):
        n, patch = self.spec.window_px // self.spec.patch_px, self.spec.patch_px
        values, valid = [], []
        for row, col in origins:
            r, c = np.mgrid[row // patch : row // patch + n, col // patch : col // patch + n]
            own = np.sin(0.3 * r[..., None] + np.arange(DIMS)) * np.cos(0.2 * c[..., None]) + 1e-3 * np.sin(row + col)
            values.append(own.astype(np.float32))
            box = Box(zone=stack.box.zone, res_m=10, row=row, col=col, height=n * patch, width=n * patch)
            seen = stack.layers[0].valid[:, *box.slices_in(stack.layers[0].box)]
            valid.append(seen.reshape(-1, n, patch, n, patch).any(axis=(0, 2, 4)))
        return WindowFields(values=torch.from_numpy(np.stack(values)), valid=np.stack(valid))


LINEAR = Calibration(scale=(STEP,) * DIMS, provisional=True, source="t", model_sha256="", patch_px=8)


def context_of(spec, encoder, heads=(), **further):
    return TileContext(
        grid=spec, encoder=encoder, heads=heads, clock=StageClock(), memory=PeakMemory(),
        at=lambda _stage, _tile: None, **({"calibration": LINEAR, "writer": None, "commits": None} | further),
    )  # fmt: skip


def finished(spec, *, task=None, holes=(), count=2, heads=(), encoder=None, sources=(), **further):
    """(result, maps, stack, origins, encoder)."""
    task = task or task_of()
    encoder = encoder or PlaceEncoder(spec)
    origins = grid.tile_windows(task.tile, task.blocks, spec)
    stack = replace(make_stack(grid.read_box(task.tile, origins, spec), count=count, holes=holes), sources=sources)
    fields = encoder.encode(stack, origins)
    result, maps = finish(task, (stack,), fields, origins=origins, context=context_of(spec, encoder, heads, **further))
    return result, maps, stack, origins, encoder


def hole(row, col, height, width):
    """A 10 m box counted from the tile's corner."""
    return Box(zone=31, res_m=10, row=TILE.box.row + row, col=TILE.box.col + col, height=height, width=width)


def tokens_of(spec, encoder, stack, origins):
    """(row, col, dim) of all tokens of the tile, after the head."""
    box = TILE.box.cover(80)
    fields = encoder.encode(stack, origins)
    return encoder.head(stitch(fields.values, fields.valid, origins=origins, grid=spec, box=box).values).numpy()


@pytest.mark.parametrize("how", ["blend", "centre"])
def test_a_store_of_tokens_gets_the_stitched_vectors_after_the_head(how):
    spec = spec_of(8, stitch=how)
    result, _, stack, origins, encoder = finished(spec)
    wanted = np.kron([[1, 1], [0, 1]], np.ones((32, 32))) == 1
    assert result.box == TILE.box.cover(80)
    np.testing.assert_array_equal(result.reason, np.where(wanted, Reason.VALID, Reason.NOT_REQUESTED))
    want = np.rint(tokens_of(spec, encoder, stack, origins) / np.float32(STEP)).transpose(2, 0, 1)
    assert np.abs(result.codes - want)[:, wanted].max() <= 1  # the quantiser multiplies by the inverse
    assert (result.codes[:, ~wanted] == -128).all()


def test_pixels_are_interpolated_between_tokens_that_went_through_the_head():
    spec = spec_of()
    result, _, stack, origins, encoder = finished(spec)
    tokens = tokens_of(spec, encoder, stack, origins)
    row, col = 67, 130
    down, across = (row + 0.5 - 4) / 8, (col + 0.5 - 4) / 8
    r, c = int(down), int(across)
    w, v = down - r, across - c
    mixed = (tokens[r, c] * (1 - v) + tokens[r, c + 1] * v) * (1 - w) + (
        tokens[r + 1, c] * (1 - v) + tokens[r + 1, c + 1] * v
    ) * w
    np.testing.assert_allclose(result.codes[:, row, col] * STEP, mixed, atol=STEP * 0.51)


def test_a_token_is_valid_when_any_of_its_pixels_is_and_counts_every_period_that_saw_a_part_of_it():
    whole, part = hole(16, 16, 8, 8), hole(80, 24, 8, 4)
    holes = ((0, whole), (1, whole), (0, part), (1, hole(80, 28, 8, 4)), (0, hole(160, 0, 8, 8)))
    result, _, _, _, _ = finished(spec_of(8), holes=holes)
    assert result.reason[2, 2] == Reason.NO_OBSERVATION
    assert (result.codes[:, 2, 2] == -128).all()
    assert result.n_obs[2, 2] == 0
    assert result.reason[10, 3] == Reason.VALID  # west half seen in one period, east half in the other
    assert result.n_obs[10, 3] == 2
    assert result.n_obs[20, 0] == 1
    assert result.n_obs[0, 0] == 2


def test_pixels_without_an_observation_stay_holes_beside_valid_ones_of_the_same_token():
    part = hole(80, 24, 8, 4)
    result, _, _, _, _ = finished(spec_of(), holes=((0, part), (1, part)))
    assert (result.reason[80:88, 24:28] == Reason.NO_OBSERVATION).all()
    assert (result.reason[80:88, 28:32] == Reason.VALID).all()


@pytest.mark.parametrize("token_px", [1, 8])
def test_a_hole_in_a_cell_with_an_unreadable_scene_says_so(token_px):
    source = PeriodSource(cell_id=grid.cells_of(TILE.block_box(0, 0))[0].id, period=0, selected=(), skipped=("gone",))
    result, _, _, _, _ = finished(spec_of(token_px), holes=((0, hole(0, 0, 64, 64)),), count=1, sources=(source,))
    assert result.reason[0, 0] == Reason.READ_FAILED


def test_tokens_belong_to_the_zone_that_owns_their_centre():
    east = Tile(zone=31, row=-1000, col=142, tile_px=512)  # across 6 degrees east
    result, _, _, _, _ = finished(spec_of(8), task=task_of(east, ((0, 0), (0, 1), (1, 0), (1, 1))))
    own = grid.owned(east.box.cover(80))
    assert 0 < own.sum() < own.size
    np.testing.assert_array_equal(result.reason == Reason.OTHER_ZONE, ~own)
    np.testing.assert_array_equal(result.reason == Reason.VALID, own)


@pytest.mark.parametrize("token_px", [1, 8])
@pytest.mark.parametrize("how", ["blend", "centre"])
def test_the_same_ground_has_the_same_codes_in_tiles_of_another_size(token_px, how):
    small = Tile(zone=31, row=-4, col=195, tile_px=256)
    holes = ((0, hole(30, 270, 25, 90)), (1, hole(40, 290, 25, 90)))
    big, _, _, _, _ = finished(spec_of(token_px, stitch=how), holes=holes)
    one, _, _, _, _ = finished(spec_of(token_px, stitch=how, tile_px=256), task=task_of(small, ((0, 0),)), holes=holes)
    cut = one.box.slices_in(big.box)
    assert set(np.unique(one.reason)) == {Reason.VALID, Reason.NO_OBSERVATION}
    np.testing.assert_array_equal(big.codes[:, *cut], one.codes)
    np.testing.assert_array_equal(big.reason[cut], one.reason)
    np.testing.assert_array_equal(big.n_obs[cut], one.n_obs)


@pytest.mark.parametrize("token_px", [1, 8])
def test_a_map_of_the_same_pass_classifies_the_stored_codes(token_px):
    probe = Probe(
        weights=np.array([[1.0, 0, 0], [-1.0, 0, 0]]), bias=np.zeros(2), names=("up", "down"),
        colours=("#112233", "#445566"), calibration="", model_sha256="", model_name="", trained=False, patch_px=8,
        created="", report="{}",
    )  # fmt: skip
    result, maps, _, _, _ = finished(spec_of(token_px), heads=(MapHead(name="updown", head=probe),))
    valid = result.reason == Reason.VALID
    ((name, layer),) = maps
    assert name == "updown"
    assert layer.shape == result.box.shape
    np.testing.assert_array_equal(layer, np.where(valid, result.codes[0] < 0, 255))


class BrokenEncoder(PlaceEncoder):
    """One vector of one window is not a number."""

    def encode(self, stack, origins):
        fields = super().encode(stack, origins)
        inside = next(i for i, (r, c) in enumerate(origins) if r >= TILE.box.row and c >= TILE.box.col)
        fields.values[inside, 4, 4, 1] = float("nan")
        return fields


@pytest.mark.parametrize("token_px", [1, 8])
def test_a_vector_that_is_not_finite_fails_the_tile(token_px):
    spec = spec_of(token_px)
    with pytest.raises(DataError, match="not finite"):
        finished(spec, encoder=BrokenEncoder(spec))


@pytest.mark.parametrize(("method", "token_px"), [*((method, 8) for method in METHODS), ("power", 1)])
def test_every_quantiser_stores_the_codes_of_the_same_vectors(method, token_px):
    holes = tuple((period, hole(16, 16, 40, 24)) for period in (0, 1))
    plain, _, _, _, _ = finished(spec_of(token_px), holes=holes, calibration=calibration_of("float32", DIMS))
    calibration = calibration_of(method, DIMS)
    result, _, _, _, _ = finished(spec_of(token_px), holes=holes, calibration=calibration, max_clipped_pct=100)
    want = codes.encode(plain.codes, calibration)
    assert result.codes.dtype == calibration.dtype
    if method == "pca":
        assert np.abs(result.codes.astype(int) - want.codes).max() <= 1
    else:
        np.testing.assert_array_equal(result.codes, want.codes)
    np.testing.assert_array_equal(codes.valid_of(result.codes), result.reason == Reason.VALID)
    assert (result.reason == Reason.NO_OBSERVATION).any()
    assert (result.pixel_scale is None) == (method != "per_pixel")
    if method == "per_pixel":
        np.testing.assert_array_equal(result.pixel_scale, want.pixel_scale)
    assert result.rms_error < 0.02 or method == "pca"


class Records:
    """Commits and a writer that remember what they were asked."""

    def __init__(self):
        self.receipts, self.intents = [], []

    def intent(self, name, *_args, **_more):
        self.intents.append(name)

    def commit(self, receipt):
        self.receipts.append(receipt)
        return True

    def write(self, _task, _result, _maps):
        return ()

    def check(self, _objects):
        return 0


def run_with(calibration, limit, *, gain=1):
    """(records, run): what remembers, and a function that runs one tile and gives its receipt."""
    spec, records = spec_of(), Records()
    encoder = PlaceEncoder(spec)
    encoder.head = lambda values: gain * torch.tanh(values * 2)
    task = replace(task_of(), estimate=Estimate(windows=1))
    origins = grid.tile_windows(task.tile, task.blocks, spec)
    pixels = Future()
    pixels.set_result((make_stack(grid.read_box(task.tile, origins, spec), count=2),))
    encoder.encode = lambda stacks, origins: PlaceEncoder.encode(encoder, stacks[0], origins)
    context = context_of(spec, encoder, calibration=calibration, max_clipped_pct=limit, commits=records, writer=records)
    return records, lambda: run_tile(task, 1, reading=pixels, context=context)[0]


TIGHT = replace(LINEAR, scale=(0.9 / 127,) * DIMS)
"""The vectors are hyperbolic tangents: many lie above 0.9."""


def test_a_shard_with_too_many_clipped_values_fails_before_anything_says_that_it_is_written():
    records, run = run_with(TIGHT, 1.0)
    with pytest.raises(DataError, match=r"z31_r-2_c97, shard \(0, 0\): \d+.\d+% of its values are clipped.*calibrate"):
        run()
    assert records.intents == records.receipts == []


def test_what_saturates_is_called_so_and_the_way_out_is_another_quantiser():
    raw = calibration_of("power_raw", DIMS)
    assert run_with(raw, 0.0)[1]().clipped == 0  # hyperbolic tangents stay below 1
    with pytest.raises(DataError, match="values saturate with store.quantiser=power_raw.*quantiser=power"):
        run_with(raw, 1.0, gain=3)[1]()


def test_below_the_limit_clipped_values_are_a_warning_and_are_in_the_receipt(caplog):
    caplog.set_level(logging.WARNING)
    _, run = run_with(TIGHT, 100.0)
    receipt = run()
    assert "are clipped with store.quantiser=linear" in caplog.text
    ((row, col, share),) = receipt.clipped_shards
    assert (row, col) == (0, 0)
    assert receipt.clipped == receipt.clipped_worst == pytest.approx(share)
    assert 0.01 < share < 0.9
    assert 0 < receipt.rms_error < 0.2


def test_the_share_of_each_shard_counts(monkeypatch):
    """One block per shard; the limit lies between the mean of the tile and its worst shard."""
    monkeypatch.setattr(layout, "MAX_SHARD_BYTES", DIMS * 256**2)
    receipt = run_with(TIGHT, 100.0)[1]()
    shares = {(row, col): share for row, col, share in receipt.clipped_shards}
    assert shares.keys() == set(BLOCKS)
    assert receipt.clipped_worst == max(shares.values()) > receipt.clipped
    assert receipt.clipped == pytest.approx(np.mean(list(shares.values())))
    row, col = max(shares, key=shares.get)
    between = 100 * (receipt.clipped + receipt.clipped_worst) / 2
    with pytest.raises(DataError, match=rf"shard \({row}, {col}\): {receipt.clipped_worst:.2%} "):
        run_with(TIGHT, between)[1]()


def test_receipts_of_earlier_versions_are_still_read():
    _, run = run_with(LINEAR, 1.0)
    receipt = run()
    assert receipt.rms_error > 0
    old = asdict(receipt)
    for name in ("clipped_worst", "clipped_shards", "rms_error"):
        del old[name]
    found = TypeAdapter(Receipt).validate_python(json.loads(json.dumps(old)))
    assert (found.clipped, found.clipped_worst, found.clipped_shards, found.rms_error) == (0.0, 0.0, (), None)
    again = TypeAdapter(Receipt).validate_python(json.loads(json.dumps(asdict(receipt))))
    assert again == receipt
