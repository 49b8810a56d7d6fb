"""Disagreement and spread of overlapping windows: their definition, whose vote counts, independence of the tile."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.codes import Coded
from pipeline.encode import instability, quantize, stitch
from pipeline.errors import ConfigError
from pipeline.plan.grid import window_origins
from pipeline.types import BLOCK_PX, Box, Calibration, GridSpec

PATCH, DIMS, STEP = 4, 5, 0.05
CALIBRATION = Calibration(scale=(STEP,) * DIMS, provisional=True, source="t", model_sha256="", patch_px=PATCH)
PLACE = Box(zone=31, res_m=40, row=-30, col=11, height=22, width=26)
HOLE = (slice(-22, -19), slice(20, 22))
"""Lattice rows and columns of tokens that no window sees."""


def spec_of(overlap_px, **changes):
    fields = {"patch_px": PATCH, "window_px": 32, "overlap_px": overlap_px, "tile_px": 256, "token_px": PATCH}
    return GridSpec(**(fields | changes))


def classify(coded, valid):
    """Two classes, by the sign of the first dimension."""
    return np.where(valid, coded.codes[0] < 0, instability.NODATA).astype(np.uint8)


def windows_over(box, spec, noise=1.0):
    """(origins, values, valid): a smooth field and what every window adds of its own; NaN in the hole."""
    side = spec.window_px // PATCH
    ground = Box(zone=31, res_m=10, row=box.row * 4, col=box.col * 4, height=box.height * 4, width=box.width * 4)
    origins = window_origins(ground, spec)
    values, valid = [], []
    for row, col in origins:
        r, c = np.mgrid[row // 4 : row // 4 + side, col // 4 : col // 4 + side]
        smooth = np.sin(0.4 * r[..., None] + np.arange(DIMS)) + np.cos(0.3 * c[..., None])
        own = np.random.default_rng([row + 10**6, col + 10**6]).standard_normal((side, side, DIMS)) * noise
        (top, bottom), (left, right) = ((cut.start, cut.stop) for cut in HOLE)
        seen = ~((r >= top) & (r < bottom) & (c >= left) & (c < right))
        values.append(np.where(seen[..., None], smooth + own, np.nan))
        valid.append(seen)
    return origins, torch.from_numpy(np.stack(values).astype(np.float32)), np.stack(valid)


def identity(values):
    return values


def part_of(box, spec, place, origins, values, valid, head=identity):
    """What a run writes over ``box``, with layers still to fill."""
    field = stitch.with_head(stitch.stitch(values, valid, origins=origins, grid=spec, box=place), head)
    pixels = stitch.to_pixels(field, np.ones(box.shape, np.bool_), box)
    codes = quantize.Quantiser(CALIBRATION, torch.device("cpu")).coded(pixels).codes
    return instability.Part(
        box=box, codes=codes, valid=pixels.valid, classes=(classify(Coded(codes=codes), pixels.valid),),
        disagreement=(np.full(box.shape, 7, np.uint8),), spread=np.full(box.shape, 7, np.uint8),
    )  # fmt: skip


def filled(spec, box=PLACE, *, place=None, noise=1.0, head=identity):
    """(part, windows): the layers over ``box``, computed from a token box ``place``."""
    place = place or box
    seen = windows_over(place, spec, noise)
    part = part_of(box, spec, place, *seen, head)
    instability.fill(
        seen[1], seen[2], origins=seen[0], grid=spec, box=place, head=head, calibration=CALIBRATION,
        classifiers=[classify], parts=[part],
    )  # fmt: skip
    return part, seen


def plain(spec, part, origins, values, valid):
    """The definition, token by token in numpy."""
    ramp, side = stitch.ramp(spec), spec.window_px // PATCH
    inverse = np.float32(1) / np.float32(STEP)
    dis, spread = np.full(part.box.shape, 255), np.full(part.box.shape, 255)
    for y, x in np.ndindex(part.box.shape):
        votes = []
        for k, (row, col) in enumerate(origins):
            r, c = part.box.row + y - row // 4, part.box.col + x - col // 4
            if 0 <= r < side and 0 <= c < side and valid[k, r, c]:
                code = np.clip(np.rint(values[k, r, c].numpy() * inverse), -127, 127)
                votes.append((float(ramp[r] * ramp[c]), code))
        if len(votes) < 2:
            continue
        total, written = sum(w for w, _ in votes), part.codes[:, y, x].astype(float)
        against = sum(w for w, code in votes if (code[0] < 0) != (written[0] < 0))
        dis[y, x] = np.rint(100 * against / total)
        spread[y, x] = min(np.rint(10 * (sum(w * ((v - written) ** 2).mean() for w, v in votes) / total) ** 0.5), 254)
    return dis, spread


@pytest.mark.parametrize("overlap", [4, 12, 16, 20, 24])
def test_disagreement_and_spread_are_what_their_definition_says(overlap):
    spec = spec_of(overlap)
    part, seen = filled(spec)
    dis, spread = plain(spec, part, *seen)
    assert len(np.unique(dis)) >= 4
    assert np.abs(part.disagreement[0] - dis).max() <= 1  # the definition adds in another order
    assert np.abs(part.spread - spread).max() <= 1
    np.testing.assert_array_equal(part.spread == 255, spread == 255)


@pytest.mark.parametrize("overlap", [4, 12, 16, 20])
def test_every_window_votes_once_with_its_weight_in_the_blend(overlap):
    spec = spec_of(overlap)
    origins, values, valid = windows_over(PLACE, spec)
    total, weight = np.zeros((*PLACE.shape, DIMS)), np.zeros(PLACE.shape)
    for own, share in instability.group_fields(values, valid, origins=origins, grid=spec, box=PLACE):
        total += own.values.numpy() * share.values.numpy()
        weight += share.values[..., 0].numpy()
        np.testing.assert_array_equal(own.valid, share.values[..., 0].numpy() > 0)
    blended = stitch.stitch(values, valid, origins=origins, grid=spec, box=PLACE)
    np.testing.assert_array_equal(weight > 0, blended.valid)
    ok = blended.valid
    np.testing.assert_allclose((total[ok] / weight[ok][:, None]), blended.values.numpy()[ok], atol=1e-5)


def test_windows_that_say_the_same_agree():
    part, _ = filled(spec_of(16), noise=0.0)
    seen = part.spread != 255
    assert seen.sum() == PLACE.height * PLACE.width - 6  # all but the hole
    assert (part.disagreement[0][seen] == 0).all()
    assert (part.spread[seen] == 0).all()


def test_tokens_without_an_observation_are_nodata_and_do_not_leak():
    part, _ = filled(spec_of(16))
    hole = tuple(slice(cut.start - at, cut.stop - at) for cut, at in zip(HOLE, (PLACE.row, PLACE.col), strict=True))
    assert (part.disagreement[0][hole] == 255).all()
    assert (part.spread[hole] == 255).all()
    assert (part.disagreement[0] == 255).sum() == 6
    assert part.disagreement[0][part.valid].max() <= 100


@pytest.mark.parametrize(("overlap", "alone"), [(4, 6), (12, 2)])
def test_what_one_window_alone_sees_is_nodata(overlap, alone):
    """``alone`` of a stride's tokens per axis lie in one window only."""
    spec = spec_of(overlap)
    part, _ = filled(spec)
    stride = spec.stride_px // PATCH
    lone_row, lone_col = (
        (np.arange(start, start + count) % stride >= stride - alone)
        for start, count in ((PLACE.row, PLACE.height), (PLACE.col, PLACE.width))
    )
    lone = lone_row[:, None] & lone_col[None, :]
    np.testing.assert_array_equal(part.spread == 255, lone | ~part.valid)


def test_a_spread_beyond_the_scale_is_the_largest_value_not_nodata():
    part, _ = filled(spec_of(16), noise=30.0)
    assert part.spread[part.valid].max() == instability.MAX_SPREAD


def test_windows_vote_after_the_head():
    calm = filled(spec_of(16))[0].spread
    part, _ = filled(spec_of(16), head=lambda values: values * 0.25)
    seen = part.valid
    assert part.spread[seen].mean() == pytest.approx(calm[seen].mean() / 4, rel=0.1)


@pytest.mark.parametrize("token_px", [1, PATCH])
@pytest.mark.parametrize("overlap", [12, 20])
def test_the_bytes_of_a_pixel_do_not_depend_on_the_box(overlap, token_px):
    spec = spec_of(overlap, token_px=token_px)
    small = Box(zone=31, res_m=40, row=-26, col=15, height=9, width=12)
    boxes = [(PLACE, PLACE.pad(-1)), (small, small.pad(-1))]
    if token_px == 1:
        boxes = [(a, Box(zone=31, res_m=10, row=b.row * 4, col=b.col * 4, height=b.height * 4, width=b.width * 4))
                 for a, b in boxes]  # fmt: skip
    (big, _), (one, _) = (filled(spec, box, place=place) for place, box in boxes)
    cut = one.box.slices_in(big.box)
    assert len(np.unique(one.disagreement[0])) > 5
    np.testing.assert_array_equal(big.disagreement[0][cut], one.disagreement[0])
    np.testing.assert_array_equal(big.spread[cut], one.spread)


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (spec_of(12, stitch="centre"), "stitch=centre"),
        (spec_of(0), "overlap_px is 0"),
        (spec_of(12, token_px=1, dense=2), "dense=2"),
        (
            replace(
                spec_of(64, token_px=1, window_px=BLOCK_PX + 64), stitch="neighbourhood", box_px=16, halo_px=32,
            ),
            "stitch=neighbourhood",
        ),
    ],
)  # fmt: skip
def test_a_lattice_without_two_windows_over_a_pixel_is_refused(spec, text):
    with pytest.raises(ConfigError, match=f"{text}.*leave out"):
        instability.check(spec, CALIBRATION)


def test_a_blend_of_overlapping_windows_is_accepted():
    instability.check(spec_of(4), CALIBRATION)


@pytest.mark.parametrize("method", ["per_pixel", "float16", "float32"])
def test_a_quantiser_without_a_frozen_step_is_refused(method):
    with pytest.raises(ConfigError, match=f"store.quantiser={method} does not have.*leave out"):
        instability.check(spec_of(4), replace(CALIBRATION, scale=(), method=method, dims=DIMS))


@pytest.mark.parametrize("method", ["pca", "power", "power_raw"])
def test_other_codes_with_a_frozen_step_have_a_spread(method):
    """The classifier sees the codes of the same quantiser."""
    own = {"dims": DIMS, "scale": ()}
    if method == "pca":
        rows = np.linalg.qr(np.random.default_rng(1).standard_normal((DIMS, DIMS)))[0][:2]
        own = {"scale": (0.05, 0.05), "mean": (0.0,) * DIMS, "components": tuple(map(tuple, rows.tolist()))}
    calibration = replace(CALIBRATION, method=method, **own)
    spec = spec_of(16)
    origins, values, valid = windows_over(PLACE, spec, 0.3)
    quantiser = quantize.Quantiser(calibration, values.device)
    blended = stitch.stitch(values, valid, origins=origins, grid=spec, box=PLACE)
    written = quantiser.coded(stitch.to_pixels(blended, np.ones(PLACE.shape, np.bool_), PLACE))
    part = instability.Part(
        box=PLACE, codes=written.codes, valid=written.valid, classes=(classify(written, written.valid),),
        disagreement=(np.full(PLACE.shape, 7, np.uint8),), spread=np.full(PLACE.shape, 7, np.uint8),
    )  # fmt: skip
    instability.fill(
        values, valid, origins=origins, grid=spec, box=PLACE, head=identity, calibration=calibration,
        classifiers=[classify], parts=[part],
    )  # fmt: skip
    known = part.spread[part.spread != instability.NODATA]
    assert known.size > 50
    assert np.median(known) > 4  # rounding alone
