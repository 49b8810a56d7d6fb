"""Rows of the encoder, on toy models."""

from __future__ import annotations

import pytest
import torch

from pipeline.bench import encoder, show, timing
from pipeline.bench.rows import Case, Request, Result
from pipeline.encode.olmoearth import Encoder
from pipeline.errors import DeviceError, InvalidInputError

CPU = torch.device("cpu")
WORDS = {
    "versions": "v1.2", "sizes": "toy", "precisions": "fp32", "compiled": "off", "shapes": "T2x16/8",
    "attention": "sdpa",
}  # fmt: skip


@pytest.fixture
def lab():
    """A device whose peak is known: measuring it takes a second."""

    class Known(encoder.Lab):
        def peak(self, dtype, *, width, tokens):
            return 1e11

    return Known(CPU)


@pytest.fixture
def bench(tmp_path, lab):
    def call(seconds=0.05, **changed):
        notes = []
        request = Request.parse(**WORDS | {"batch": 8} | changed)
        rows = encoder.bench(request, device="cpu", seconds=seconds, folder=tmp_path, note=notes.append, lab=lab)
        return rows, " | ".join(notes)

    return call


def first_case(**changed):
    return next(encoder.cases(Request.parse(**WORDS | changed), CPU, threads=1))


def test_a_row_is_measured_and_agrees_with_itself(bench):
    ((case, row),), _ = bench()
    assert row.error == ""
    assert row.passes >= timing.LEAST
    assert row.pass_low_s <= row.pass_s <= row.pass_high_s
    assert row.images_per_s == pytest.approx(case.batch / row.pass_s)
    assert row.share_of_gemm == pytest.approx(row.gflop_per_s * 1e9 / 1e11)
    assert row.peak_mb > 0
    assert row.compile_s is None


def test_rows_that_are_there_are_not_measured_again(bench):
    (before,), _ = bench()
    (after, new), notes = bench(versions="v1.2,v1")
    assert "1 rows to measure, 1 are in" in notes
    assert after[1].measured == before[1].measured
    assert after[1].images_per_s == pytest.approx(before[1].images_per_s, rel=1e-5)
    assert new[0].version == "v1"


def test_a_row_that_fails_is_kept_with_its_reason_and_the_others_go_on(bench):
    rows, notes = bench(sizes="toy", attention="own", precisions="fp16,fp32", shapes="T1x16/8", batch=1)
    failed, fine = (row for _, row in rows)
    assert "DeviceError: attention kernel own" in failed.error
    assert "failed: DeviceError" in notes
    assert failed.images_per_s is None
    assert fine.error == "" or "own" in fine.error  # a machine without a compiler has no kernel of ours at all
    assert "1 of these failed" in bench(precisions="fp16", attention="own", shapes="T1x16/8", batch=1)[1]


def test_an_interrupted_run_keeps_its_finished_rows(bench, lab):
    peak = lab.peak

    def interrupted(dtype, **shape):
        if dtype == torch.bfloat16:
            raise KeyboardInterrupt
        return peak(dtype, **shape)

    lab.peak = interrupted
    with pytest.raises(KeyboardInterrupt):
        bench(precisions="fp32,bf16")
    lab.peak = peak
    assert "1 rows to measure, 1 are in" in bench(precisions="fp32,bf16")[1]


@pytest.mark.parametrize("precision", ["fp32", "autocast", "bf16"])
@pytest.mark.parametrize("version", ["v1", "v1.1", "v1.2", "v1.3"])
def test_every_version_and_precision_gives_the_encoder_s_field(version, precision):
    case = first_case(versions=version, precisions=precision, batch=2)
    model = encoder.Lab(CPU).model(case.model)
    built = encoder.build_encoder(case, CPU, model)
    plain = Encoder(model, window_px=(16, 16), patch_px=8, dates=encoder.DATES[:2]).eval()
    with torch.inference_mode():
        want = plain(built.pixels)
    assert torch.linalg.norm(built.run() - want) < (1e-5 if precision == "fp32" else 0.05) * torch.linalg.norm(want)


def test_memory_counts_weights_and_input():
    case = first_case(batch=3)
    model = encoder.Lab(CPU).model(case.model)
    built = encoder.build_encoder(case, CPU, model)
    weights = sum(t.nbytes for name, t in model.tensors.items() if name.startswith("blocks."))
    assert built.held > weights + 3 * 2 * 12 * 16 * 16 * 4
    assert timing.peak_bytes(built.run, CPU, held=built.held) >= built.held


def test_the_batch_is_a_run_s_own_unless_it_is_given():
    assert first_case().batch == 128  # 1024 tokens of 8 per window
    assert first_case(versions="v1").batch == 42  # three tokens per cell and date
    assert first_case(batch=7).batch == 7


def test_several_sensors_make_one_image(lab):
    case = first_case(sensors="sentinel2_l2a,sentinel1", batch=1)
    row = encoder.attempt(case, lab, seconds=0.0)
    assert row.error == ""
    assert row.mpx_per_s == pytest.approx(row.images_per_s * 16 * 16 * 2 * 2 / 1e6)


def test_threads_are_put_back(lab):
    before = torch.get_num_threads()
    seen = []
    with encoder.threads_of(2):
        seen.append(torch.get_num_threads())
    assert (seen, torch.get_num_threads()) == ([2], before)


def test_negative_times_and_missing_devices_are_refused(bench, tmp_path):
    with pytest.raises(InvalidInputError, match="seconds"):
        bench(seconds=-1)
    with pytest.raises(DeviceError):
        encoder.bench(Request.parse(**WORDS), device="tpu", folder=tmp_path)


def test_an_error_is_one_short_line():
    assert encoder.reason(RuntimeError("\n first \n second")) == "RuntimeError: first"


def test_calls_take_turns_in_a_duel():
    order = []
    found = timing.duel(lambda: order.append("a"), lambda: order.append("b"), CPU, seconds=0.0, least=3)
    assert order == ["a", "b"] * 3
    assert found.ratio.count == 3


def test_tables_show_rows_and_reasons(bench):
    rows, _ = bench()
    case, row = rows[0]
    table = show.encoder_table([*rows, (case, Result(error="out of memory"))])
    assert table.row_count == 2
    assert next(iter(table.columns[-1].cells)).startswith("sdpa, ")
    assert list(table.columns[-1].cells)[1] == "out of memory"
    assert show.to_json(encoder=rows)["encoder"][0]["images_per_s"] == row.images_per_s


def test_the_published_row_stands_beside_ours():
    shape = {"periods": 1, "window_px": 128, "patch_px": 8, "batch": 512}
    case = Case(
        device="H100", threads=1, version="v1", size="base", precision="bf16", compiled=True, attention="auto", **shape
    )
    assert "1,838 images/s, 33.6% of peak; here 2.00x" in show.published(case, Result(images_per_s=3676.0))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's compiler
def test_a_compiled_row_has_the_seconds_it_took_to_compile(lab):
    row = encoder.attempt(first_case(compiled="on", batch=1), lab, seconds=0.05)
    assert row.error == ""
    assert row.compile_s > 10 * row.pass_s
