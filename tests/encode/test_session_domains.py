"""Sessions over domains: what is kept of each, whatever tile, threads or processes computed it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from stacks import make_stack, periods

from pipeline.config import EncodeSettings
from pipeline.encode import assemble, checkpoint, session
from pipeline.encode.bands import DEFAULT_BANDS
from pipeline.encode.domain import DomainEncoder
from pipeline.encode.workers import Workers
from pipeline.errors import ConfigError
from pipeline.plan import domains
from pipeline.plan import grid as lattice
from pipeline.types import Box, GridSpec, Tile

S2 = assemble.Input(sensor="sentinel2_l2a", bands=DEFAULT_BANDS["sentinel2_l2a"])
TILE = Tile(zone=32, row=-1, col=2, tile_px=512)
COUNT = 2


@pytest.fixture(scope="module")
def model():
    return checkpoint.load("random:v1.2-toy:0")


@pytest.fixture(scope="module")
def spec(model) -> GridSpec:
    return domains.settle_domain(model.card, patch_px=8, tile_px=512, device="cpu", box_px=32)


def settled(model, spec, **values):
    settings = EncodeSettings(**({"device": "cpu", "dtype": "float32", "attention": "sdpa"} | values))
    return session.settle(settings, card=model.card, grid=spec, periods=COUNT)


def opened(model, spec, *, threads: int = 1) -> session.Session:
    return session.Session(model, grid=spec, periods=periods(COUNT), numerics=settled(model, spec), threads=threads)


@pytest.fixture(scope="module")
def origins(spec):
    return lattice.tile_windows(TILE, ((0, 0), (0, 1)), spec)


@pytest.fixture(scope="module")
def stack(spec, origins):
    west = TILE.box.col
    hole = Box(zone=32, res_m=10, row=TILE.box.row, col=west, height=96, width=100)
    return make_stack(lattice.read_box(TILE, origins, spec), count=COUNT, holes=((0, hole),))


@pytest.fixture(scope="module")
def fields(model, spec, stack, origins):
    return opened(model, spec).encode(stack, origins)


def test_domains_hold_what_the_encoder_gives_of_their_pixels(model, spec, stack, origins, fields):
    encoder = DomainEncoder(
        model,
        window_px=spec.window_px,
        patch_px=8,
        dates=[p.start.date() for p in periods(COUNT)],
        box_px=spec.box_px,
        core=spec.kept,
        dtype=torch.float32,
        attention="sdpa",
    )
    resident, kinds = assemble.Resident((stack,)), set()
    first, side = spec.kept
    for i, origin in enumerate(origins):
        (pixels,), visible = session.domain_pixels(resident, origin, grid=spec, inputs=(S2,))
        seen = None if visible.all() else torch.from_numpy(visible[None])
        kinds.add(seen is None)
        with torch.inference_mode():
            assert torch.equal(fields.values[i], encoder(pixels[None], seen)[0])
        kept = visible[..., first : first + side, first : first + side].any(axis=(0, 1))
        np.testing.assert_array_equal(fields.valid[i], kept)
    assert kinds == {True, False}
    assert fields.values.shape == (2, 34, 34, 64)  # a core of 32 tokens and the margin of interpolation


@pytest.mark.parametrize("threads", [2, 3])
def test_bytes_do_not_depend_on_threads_or_order(model, spec, stack, origins, fields, threads):
    got = opened(model, spec, threads=threads).encode(stack, origins[::-1])
    assert torch.equal(got.values.flip(0), fields.values)


def test_bytes_do_not_depend_on_the_tile(model, spec, origins, fields):
    small = Tile(zone=32, row=-2, col=5, tile_px=256)
    assert small.box.col == TILE.box.col + 256
    (only,) = lattice.tile_windows(small, ((0, 0),), spec)
    got = opened(model, spec).encode(make_stack(lattice.read_box(small, (only,), spec), count=COUNT), [only])
    assert torch.equal(got.values[0], fields.values[origins.index(only)])


def test_processes_give_the_same_bytes(model, spec, stack, origins, fields):
    numerics = settled(model, spec)
    with Workers(model, grid=spec, periods=periods(COUNT), numerics=numerics, processes=2) as workers:
        got = workers.encode((stack,), origins)
    assert torch.equal(got.values, fields.values)
    np.testing.assert_array_equal(got.valid, fields.valid)


def test_a_domain_whose_core_has_no_pixel_is_not_encoded(model, spec, origins):
    box = lattice.read_box(TILE, origins, spec)
    core = Box(zone=32, res_m=10, row=TILE.box.row, col=TILE.box.col, height=256, width=256).pad(8)
    stack = make_stack(box, count=COUNT, holes=((0, core), (1, core)))
    run = opened(model, spec)
    got = run.encode(stack, origins[:1])
    assert not got.valid.any()
    assert not got.values.any()
    assert run.busy_s == 0


def test_the_gate_passes_on_domains_of_this_machine(model, spec):
    assert opened(model, spec).gate().ratio < 0.01


def test_a_domain_is_a_batch_and_is_not_compiled(model, spec):
    assert (settled(model, spec).batch_windows, settled(model, spec, compile="auto").compiled) == (1, False)
    with pytest.raises(ConfigError, match="neighbourhood runs eagerly"):
        settled(model, spec, compile="on")
