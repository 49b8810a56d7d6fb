"""Requests, cases and the arithmetic of a row."""

from __future__ import annotations

import pytest

from pipeline.bench.rows import Case, Request, Shape, figures
from pipeline.encode import checkpoint
from pipeline.errors import InvalidInputError

WORDS = {"versions": "v1.2", "sizes": "nano", "precisions": "fp32", "compiled": "off", "shapes": "T1x64/8"}


def case(**changed):
    values = {
        "device": "a", "threads": 1, "version": "v1.2", "size": "toy", "precision": "fp32", "compiled": False,
        "attention": "sdpa", "periods": 3, "window_px": 64, "patch_px": 8, "batch": 10,
    }  # fmt: skip
    return Case(**values | changed)


def test_a_row_follows_from_its_median_pass():
    card = checkpoint.describe("random:v1.2-toy:0")
    row = figures(case(), card, pass_s=0.5, gemm=1e9)
    assert row["images_per_s"] == 20  # 10 windows in half a second
    assert row["mpx_per_s"] == pytest.approx(20 * 64 * 64 * 3 / 1e6)  # three dates
    assert row["tokens_per_s"] == 20 * 8 * 8 * 3
    assert row["km2_per_s"] == pytest.approx(20 * 0.64**2)  # ground counts once
    assert row["gflop_per_s"] == pytest.approx(20 * row["gflop_per_image"])
    assert row["share_of_gemm"] == pytest.approx(row["gflop_per_s"])  # of 1 GFLOP/s


def test_work_counts_attention():
    """By hand: toy is 64 wide and 2 deep; 64 tokens; per block 4 w n n for scores and sums."""
    card = checkpoint.describe("random:v1.2-toy:0")
    row = figures(case(periods=1), card, pass_s=1.0, gemm=None)
    attention = 2 * 4 * 64 * 64 * 64
    linear = 2 * 2 * 12 * 64 * 64 * 64
    embed = 2 * 64 * 64 * 8 * (12 + 64)  # tokens x samples x hidden 8 x (bands + width)
    assert row["gflop_per_image"] == pytest.approx((attention + linear + embed) / 1e9)
    assert row["attention_share"] == pytest.approx(attention / (attention + linear + embed))
    assert row["share_of_gemm"] is None


def test_the_published_rows_of_v1_are_counted_as_their_source_counts_them_plus_attention():
    """ThroughputBench's macs_G (which are FLOPs without attention): nano 1.26, tiny 8.23 at T1x128/8."""
    for size, plain in (("nano", 1.26), ("tiny", 8.23)):
        row = figures(case(periods=1, window_px=128), checkpoint.describe(f"random:v1-{size}:0"), pass_s=1.0, gemm=None)
        assert row["gflop_per_image"] * (1 - row["attention_share"]) == pytest.approx(plain, abs=0.005)


def test_a_request_leaves_out_what_was_never_released():
    request = Request.parse(**WORDS | {"versions": "v1,v1.3", "sizes": "nano,base"})
    assert request.models == (("v1", "nano"), ("v1", "base"), ("v1.3", "base"))


BAD = [
    ({"versions": "v2"}, "v2"),
    ({"sizes": "huge"}, "huge"),
    ({"versions": "v1.3", "sizes": "nano"}, "none of the versions"),
    ({"precisions": "fp8"}, "fp8"),
    ({"compiled": "perhaps"}, "perhaps"),
    ({"shapes": "64/8"}, "T12x64/8"),
    ({"shapes": "T1x60/8"}, "multiple"),
    ({"shapes": "T13x64/8"}, "1..12"),
    ({"batch": -1}, "batch"),
    ({"sizes": ""}, "empty"),
]


@pytest.mark.parametrize(("changed", "text"), BAD, ids=[text for _, text in BAD])
def test_unknown_words_are_named(changed, text):
    with pytest.raises(InvalidInputError, match=text):
        Request.parse(**WORDS | changed)


def test_a_shape_reads_what_it_writes():
    assert str(Shape.parse(" T12x64/4 ")) == "T12x64/4"
