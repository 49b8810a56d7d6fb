"""The start-up gate passes every version's encoder as it is and refuses planted faults."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pipeline.encode import checkpoint, gate, plain
from pipeline.encode.domain import DomainEncoder
from pipeline.encode.embed import PatchEmbed
from pipeline.encode.olmoearth import Encoder
from pipeline.errors import DeviceError, InvalidInputError

S2 = ("sentinel2_l2a",)
ALL = ("sentinel2_l2a", "sentinel1", "landsat")
CASES = [
    ("random:v1-toy:0", S2),
    ("random:v1-toy:0", ALL),
    ("random:v1.1-nano:0", S2),
    ("random:v1.1-toy:0", ALL),
    ("random:v1.2-nano:0", S2),
    pytest.param(("random:v1.2-tiny:1", S2), marks=pytest.mark.slow, id="v1.2-tiny:1-1"),
    ("random:v1.2-toy:0", ALL),
    ("random:v1.3-toy:1", S2),
    ("random:v1.3-toy:1", ALL),
]
ADDED, ROTARY, MIXED = [CASES[0], CASES[2]], [*CASES[4:7], CASES[8]], [CASES[1], CASES[4], CASES[8]]
TURNED = {
    "missing positions": lambda f: 0 * f,
    "missing times": lambda f: f * torch.tensor([0.0, 1.0, 1.0])[:, None, None],
    "missing rows": lambda f: f * torch.tensor([1.0, 0.0, 1.0])[:, None, None],
    "missing columns": lambda f: f * torch.tensor([1.0, 1.0, 0.0])[:, None, None],
    "swapped rows and columns": lambda f: f[[0, 2, 1]],
    "reversed times": lambda f: f * torch.tensor([-1.0, 1.0, 1.0])[:, None, None],
}
"""What every fault of rotary positions does to the frequencies (time, row, column)."""


def load(case):
    return checkpoint.load(case[0]), case[1]


def label(case) -> str:
    return f"{case[0].removeprefix('random:')}-{len(case[1])}"


def encoder_for(model, sensors=S2, *, patch_px=8, **options) -> Encoder:
    side = gate.gate_window(96, patch_px)
    options = {"dates": gate.DATES, **options}
    return Encoder(model, window_px=(side, side), patch_px=patch_px, sensors=sensors, **options)


def check(run, model, sensors=S2, *, patch_px=8, batch_windows=2, dtype="bfloat16", **options):
    """By default with the wide limits of bfloat16: a fault that they find is found in float32 too."""
    side = gate.gate_window(96, patch_px)
    with torch.inference_mode():
        return gate.check(
            run,
            model,
            window_px=side,
            patch_px=patch_px,
            batch_windows=batch_windows,
            dtype=dtype,
            sensors=sensors,
            **options,
        )


def with_frequencies(model, change, *, blocks=range(99)):
    """The model with other rotary frequencies in some blocks."""
    names = [f"blocks.{i}.attn.rope_mixed_freqs" for i in blocks if i < model.config.depth]
    return replace(model, tensors={**model.tensors, **{name: change(model.tensors[name]) for name in names}})


def with_encodings(encoder, model, sensors, at) -> Encoder:
    """Exchange the positions that v1 and v1.1 add to the tokens, which are part of the embedding's bias."""
    right = plain.places(model.config, gate.DATES, encoder.grid, patch_px=8)
    for embed, sensor in zip(encoder.embeds, sensors, strict=True):
        options = {"config": model.config, "sensor": sensor, "dates": gate.DATES}
        embed.bias += plain._encoding(model.tensors, at=at, **options)
        embed.bias -= plain._encoding(model.tensors, at=right.tokens, **options)
    return encoder


@pytest.fixture(scope="module")
def nano():
    return checkpoint.load("random:v1.2-nano:0")


@pytest.mark.parametrize("case", CASES, ids=label)
def test_the_eager_float32_encoder_passes_with_room(case):
    model, sensors = load(case)
    assert check(encoder_for(model, sensors), model, sensors, dtype="float32").ratio < 1e-3


@pytest.mark.parametrize("patch_px", [1, 4])
@pytest.mark.parametrize("version", ["v1", "v1.1", "v1.2", "v1.3"])
def test_it_passes_at_every_patch_size(version, patch_px):
    model = checkpoint.load(f"random:{version}-toy:0")
    report = check(encoder_for(model, patch_px=patch_px), model, patch_px=patch_px, dtype="float32")
    assert report.ratio < 1e-3


@pytest.mark.parametrize(
    ("version", "output"), [("v1", "max"), ("v1.2", "max"), ("v1.3", "mean"), ("v1.3", "location")]
)
def test_other_outputs_pass_too(version, output):
    model = checkpoint.load(f"random:{version}-toy:0")
    report = check(encoder_for(model, ALL, output=output), model, ALL, dtype="float32", output=output)
    assert report.ratio < 1e-3


@pytest.mark.parametrize("version", ["v1", "v1.2", "v1.3"])
def test_an_encoder_of_a_core_is_compared_over_the_core(version):
    model = checkpoint.load(f"random:{version}-toy:0")
    run = encoder_for(model, core=(1, 4))
    assert check(run, model, dtype="float32", core=(1, 4)).ratio < 1e-3
    with pytest.raises(DeviceError):
        check(run, model, dtype="float32")


@pytest.mark.parametrize("version", ["v1", "v1.2", "v1.3"])
def test_a_window_of_one_token_passes(version):
    model = checkpoint.load(f"random:{version}-toy:0")
    run = Encoder(model, window_px=(8, 8), patch_px=8, dates=gate.DATES)
    report = gate.check(run, model, window_px=8, patch_px=8, batch_windows=1, dtype="float32")
    assert report.ratio < 1e-3


@pytest.mark.parametrize("case", CASES, ids=label)
def test_the_bfloat16_encoder_passes(case):
    model, sensors = load(case)
    report = check(encoder_for(model, sensors, dtype=torch.bfloat16), model, sensors)
    assert report.ratio < gate.LIMIT
    assert max(abs(share) for result in report.cases for _, share in result.faults) < gate.LIMIT / 2


@pytest.mark.parametrize("fault", TURNED)
@pytest.mark.parametrize("case", ROTARY, ids=label)
def test_faults_of_rotary_positions_are_refused(case, fault):
    model, sensors = load(case)
    faulty = with_frequencies(model, TURNED[fault])
    with pytest.raises(DeviceError, match="start-up gate"):
        check(encoder_for(faulty, sensors), model, sensors)


@pytest.mark.parametrize("fault", TURNED)
@pytest.mark.parametrize("case", ADDED, ids=label)
def test_faults_of_added_positions_are_refused(case, fault):
    model, sensors = load(case)
    encoder = encoder_for(model, sensors)
    right = plain.places(model.config, gate.DATES, encoder.grid, patch_px=8)
    wrong = gate.faults(right, pooled=False)[fault].tokens
    with pytest.raises(DeviceError, match="start-up gate"):
        check(with_encodings(encoder, model, sensors, wrong), model, sensors)


def test_missing_positions_make_all_of_the_error_that_they_are_measured_by(nano):
    blind = with_frequencies(nano, TURNED["missing positions"])
    with pytest.raises(DeviceError, match=r"1\.00 of the difference that missing positions make .limit 0\.25"):
        check(encoder_for(blind), nano)


@pytest.mark.parametrize("fault", ["missing times", "missing rows", "missing columns", "reversed times"])
def test_the_fault_of_one_axis_is_named(nano, fault):
    with pytest.raises(DeviceError, match=f"looks like {fault} .share 1.0"):
        check(encoder_for(with_frequencies(nano, TURNED[fault])), nano)


@pytest.mark.parametrize("case", ROTARY, ids=label)
def test_positions_missing_in_half_of_the_blocks_are_refused(case):
    model, sensors = load(case)
    half = with_frequencies(model, TURNED["missing positions"], blocks=range(model.config.depth // 2))
    with pytest.raises(DeviceError, match="start-up gate"):
        check(encoder_for(half, sensors), model, sensors)


def test_rows_and_columns_counted_in_tokens_are_refused(nano):
    small = replace(nano, config=replace(nano.config, coordinate_scale=1 / 8))
    with pytest.raises(DeviceError, match="start-up gate"):
        check(encoder_for(small), nano)


def test_days_counted_without_the_models_scale_are_refused(nano):
    days = replace(nano, config=replace(nano.config, time_scale=1.0))
    with pytest.raises(DeviceError, match="start-up gate"):
        check(encoder_for(days), nano)


def pooler_of(model, change) -> Encoder:
    """An encoder whose pooler has other rotary tables: ``change`` of each table and its name."""
    encoder = encoder_for(model, ALL, halves=True)
    for part in (*encoder.pooler.reads, *encoder.pooler.blocks):
        for name, table in dict(part.named_buffers(recurse=False)).items():
            if name.endswith(("cos", "sin")):
                setattr(part, name, change(table, name))  # not in place: parts share tables
    return encoder


def test_a_pooler_without_positions_is_refused():
    model = checkpoint.load("random:v1.3-toy:0")
    blind = pooler_of(model, lambda table, name: torch.full_like(table, float(name.endswith("cos"))))
    with pytest.raises(DeviceError, match="looks like missing pooler positions .share 1.00"):
        check(blind, model, ALL)


def test_swapped_rows_and_columns_of_the_pooler_are_refused():
    model = checkpoint.load("random:v1.3-toy:0")
    swapped = pooler_of(model, lambda table, name: torch.cat(table.chunk(2, dim=-1)[::-1], dim=-1))
    with pytest.raises(DeviceError, match="looks like swapped pooler rows and columns .share 1.00"):
        check(swapped, model, ALL)


@pytest.mark.parametrize("case", MIXED, ids=label)
def test_positions_missing_in_the_masked_graph_alone_are_refused(case):
    model, sensors = load(case)
    right = encoder_for(model, sensors)
    if model.config.rope:
        blind = encoder_for(with_frequencies(model, TURNED["missing positions"]), sensors)
    else:
        nowhere = torch.full((len(gate.DATES), *right.grid, 3), float("nan"))
        blind = with_encodings(encoder_for(model, sensors), model, sensors, nowhere)
    with pytest.raises(DeviceError, match="with tokens missing the encoder differs"):
        check(lambda pixels, visible: (right if visible is None else blind)(pixels, visible), model, sensors)


@pytest.mark.parametrize("case", MIXED, ids=label)
def test_an_encoder_that_ignores_the_mask_is_refused(case):
    model, sensors = load(case)
    encoder = encoder_for(model, sensors)
    with pytest.raises(DeviceError, match="with tokens missing the encoder differs"):
        check(lambda pixels, visible: encoder(pixels, None), model, sensors)


@pytest.mark.parametrize("case", MIXED, ids=label)
def test_a_mask_that_reaches_the_next_window_is_refused(case):
    model, sensors = load(case)
    encoder = encoder_for(model, sensors)

    def leaking(pixels, visible):
        return encoder(pixels, None if visible is None else visible[:1].expand_as(visible))

    with pytest.raises(DeviceError, match="with windows with and without gaps the encoder differs"):
        check(leaking, model, sensors)


def test_two_exchanged_sensors_are_refused():
    model = checkpoint.load("random:v1.2-toy:0")
    encoder = encoder_for(model, ALL)

    def exchanged(pixels, visible):
        return encoder(pixels, None if visible is None else visible[:, [1, 0, 2]])

    with pytest.raises(DeviceError, match="with tokens missing the encoder differs"):
        check(exchanged, model, ALL)


def test_two_exchanged_periods_are_refused_in_float32(nano):
    wrong = encoder_for(nano, dates=(gate.DATES[1], gate.DATES[0], *gate.DATES[2:]))
    with pytest.raises(DeviceError, match="start-up gate"):
        check(wrong, nano, dtype="float32")


@pytest.mark.parametrize("bad", ["nan", "inf"])
def test_nan_and_infinity_are_refused(nano, bad):
    encoder = encoder_for(nano)
    with pytest.raises(DeviceError, match="makes NaN or infinity of ordinary pixels"):
        check(lambda pixels, visible: encoder(pixels, visible).fill_(float(bad)), nano)


@pytest.mark.parametrize("masked", [False, True])
def test_a_result_that_depends_on_the_batch_position_is_refused(nano, masked):
    encoder = encoder_for(nano)

    def drifting(pixels, visible):
        out = encoder(pixels, visible)
        out[-1, 0, 0, 0] += 1e-6 * float(masked == (visible is not None))
        return out

    with pytest.raises(DeviceError, match="position in the batch of 3"):
        check(drifting, nano, batch_windows=3)


def test_the_gates_windows_lack_tokens_periods_and_one_cell():
    for sensors in (1, 3):
        visible = gate.structured_visible(sensors, 6)[0]
        assert not visible[0, 1].any()
        assert not visible[..., -1, -1].any()
        assert visible.any(dim=0).any(dim=0).sum() == 35
        assert 0.3 < float(visible.float().mean()) < 0.7


# --- boxes ------------------------------------------------------------------------------------------------------------

BOXED = [("random:v1.2-nano:0", S2, 8, 16), ("random:v1.2-toy:0", ALL, 4, 32), ("random:v1.3-toy:0", ALL, 8, 24)]
"""Model, sensors, patch and box in pixels."""


def domain_of(model, sensors, patch_px, box_px, **options) -> DomainEncoder:
    side = gate.gate_window(512, patch_px, box_px)
    dates = gate.gate_dates(side, patch_px, len(sensors))
    options = {"dates": dates, **options}
    return DomainEncoder(model, window_px=side, patch_px=patch_px, sensors=sensors, box_px=box_px, **options)


def check_boxes(run, model, sensors, patch_px, box_px, *, dtype="bfloat16"):
    side = gate.gate_window(512, patch_px, box_px)
    dates = gate.gate_dates(side, patch_px, len(sensors))
    options = {"window_px": side, "patch_px": patch_px, "batch_windows": 1, "box_px": box_px, "dates": dates}
    with torch.inference_mode():
        return gate.check(run, model, dtype=dtype, sensors=sensors, **options)


def shifted(encoder, layers) -> DomainEncoder:
    """Boxes that begin one cell too late where they can."""
    for layer in layers:
        layer.starts = (layer.starts + 1).clamp(max=encoder.cells - layer.box)
    return encoder


@pytest.mark.parametrize("case", BOXED, ids=str)
def test_a_domain_encoder_passes_with_room(case):
    model = checkpoint.load(case[0])
    assert check_boxes(domain_of(model, *case[1:]), model, *case[1:], dtype="float32").ratio < 1e-3


@pytest.mark.parametrize("case", BOXED, ids=str)
def test_a_bfloat16_domain_encoder_passes(case):
    model = checkpoint.load(case[0])
    report = check_boxes(domain_of(model, *case[1:], dtype=torch.bfloat16), model, *case[1:])
    assert report.ratio < gate.LIMIT
    assert max(abs(share) for result in report.cases for _, share in result.faults) < gate.LIMIT / 2


def test_boxes_of_sixteen_cells_pass_with_fewer_dates():
    case = ("random:v1.2-toy:0", S2, 1, 16)
    model = checkpoint.load(case[0])
    assert check_boxes(domain_of(model, *case[1:]), model, *case[1:], dtype="float32").ratio < 1e-3


@pytest.mark.parametrize("case", BOXED, ids=str)
def test_attention_to_the_whole_domain_is_refused_and_named(case):
    model, (sensors, patch_px, box_px) = checkpoint.load(case[0]), case[1:]
    side = gate.gate_window(512, patch_px, box_px)
    dates = gate.gate_dates(side, patch_px, len(sensors))
    stock = Encoder(model, window_px=(side, side), patch_px=patch_px, dates=dates, sensors=sensors)
    with pytest.raises(DeviceError, match="looks like attention beyond the box .share 1.00"):
        check_boxes(stock, model, *case[1:])


@pytest.mark.parametrize("case", BOXED, ids=str)
def test_boxes_shifted_by_one_cell_are_refused(case):
    model = checkpoint.load(case[0])
    encoder = domain_of(model, *case[1:])
    with pytest.raises(DeviceError, match="start-up gate"):
        check_boxes(shifted(encoder, encoder.blocks), model, *case[1:])


def test_boxes_of_the_pooler_alone_shifted_by_one_cell_are_refused():
    case = BOXED[2]
    model = checkpoint.load(case[0])
    for part in ("reads", "blocks"):
        encoder = domain_of(model, *case[1:])
        with pytest.raises(DeviceError, match="start-up gate"):
            check_boxes(shifted(encoder, getattr(encoder.pooler, part)), model, *case[1:], dtype="float32")


@pytest.mark.parametrize("fault", ["missing times", "missing rows", "missing columns", "swapped rows and columns"])
def test_faults_of_positions_are_still_told_apart_with_boxes(nano, fault):
    case = BOXED[0][1:]
    with pytest.raises(DeviceError, match=f"looks like {fault} .share 1.0"):
        check_boxes(domain_of(with_frequencies(nano, TURNED[fault]), *case), nano, *case)


def test_a_domain_encoder_that_ignores_the_mask_is_refused(nano):
    case = BOXED[0][1:]
    encoder = domain_of(nano, *case)
    with pytest.raises(DeviceError, match="with tokens missing the encoder differs"):
        check_boxes(lambda pixels, visible: encoder(pixels, None), nano, *case)


def test_a_window_no_larger_than_a_box_is_refused(nano):
    with pytest.raises(InvalidInputError, match="must be larger than the box of 16 px"):
        gate.check(print, nano, window_px=16, patch_px=8, batch_windows=1, dtype="float32", box_px=16)


@pytest.mark.parametrize("version", ["v1", "v1.2", "v1.3"])
def test_windows_cut_out_of_something_larger_are_compared_without_a_border(version):
    model, margin = checkpoint.load(f"random:{version}-toy:0"), 1
    encoder = encoder_for(model, patch_px=4)
    side = gate.gate_window(96, 4)
    options = {"sensor": S2[0], "patch_px": 4, "dates": gate.DATES, "dtype": torch.float32, "margin_px": 4 * margin}
    embed = PatchEmbed(model, window_px=(side, side), **options)

    def run(pixels, visible):
        return encoder.from_patches((embed.patches(pixels[0]),), visible)

    assert check(run, model, patch_px=4, dtype="float32", margin=margin).ratio < 1e-3
    with pytest.raises(DeviceError, match="start-up gate"):
        check(lambda x, seen: encoder(x[0][..., 4:-4, 4:-4], seen), model, patch_px=4, dtype="float32", margin=margin)


def test_the_gates_window_is_larger_than_a_box_and_its_dates_cross_the_year():
    assert [gate.gate_window(512, p, box) for p, box in ((1, 16), (2, 16), (4, 32), (8, 16), (8, 0))] == [
        18,
        20,
        40,
        48,
        48,
    ]
    for side in (6, 10, 18, 30):
        dates = gate.gate_dates(side, 1, 3)
        assert dates[0].year < dates[-1].year
        assert len(dates) >= 2
    assert gate.gate_dates(6, 1, 3) == gate.DATES
