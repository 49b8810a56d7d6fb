from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from pipeline.plan import estimate, flops
from pipeline.types import Box, Calibration, Candidates, Cell, Estimate, GridSpec, ModelCard, Numerics

SIZES = {"nano": (128, 4, 8), "tiny": (192, 12, 3), "base": (768, 12, 12)}


def card(size: str = "nano") -> ModelCard:
    dims, depth, heads = SIZES[size]
    return ModelCard(
        name="x",
        version="v1.2",
        size=size,
        dims=dims,
        depth=depth,
        heads=heads,
        parameters=1_000_000,
        sensors=("sentinel2_l2a",),
        sha256="",
        trained=False,
    )


STUDENT = replace(card("base"), version="v1.3", dims=128, width=768, pooler_depth=1, student=128, output="student")


def spec(*, window: int = 64, patch: int = 4, tile: int = 512) -> GridSpec:
    return GridSpec(patch_px=patch, window_px=window, overlap_px=patch, tile_px=tile)


def numerics(device: str = "cpu", name: str = "avx512_bf16", dtype: str = "float32", *, batch: int = 4) -> Numerics:
    return Numerics(device=device, device_name=name, dtype=dtype, compiled=False, batch_windows=batch, torch="2.13.0")


@dataclass(frozen=True)
class Price:
    usd_per_hour: float
    gpus: int
    cores: int


BOX = Box(zone=31, res_m=10, row=0, col=0, height=600, width=600)
CELL = Cell(zone=31, row=0, col=0)


def candidates(*counts: int) -> tuple[Candidates, ...]:
    return tuple(
        Candidates(cell=CELL, period=p, scene_ids=tuple(f"s{p}{i}" for i in range(n)), fingerprint="")
        for p, n in enumerate(counts)
    )


def tile(
    *,
    windows: int = 100,
    rate: estimate.Rate | None = None,
    found: tuple[Candidates, ...] | None = None,
    model: ModelCard | None = None,
    box: Box = BOX,
    grid: GridSpec | None = None,
    **more,
) -> Estimate:
    found = candidates(3, 3) if found is None else found
    return estimate.estimate_tile(
        windows=windows,
        blocks=4,
        card=model or card(),
        grid=grid or spec(),
        periods=2,
        read_box=box,
        candidates=found,
        cell_shares={c.cell: 0.25 for c in found},
        rate=rate or estimate.Rate(numerics=numerics()),
        **more,
    )


def test_work_of_a_tile_is_that_of_its_windows():
    got = tile(windows=7)
    assert got.flops == 7 * flops.flops_per_window(card(), spec(), 2)
    assert got.tokens == 7 * flops.tokens_per_window(card(), spec(), 2) == 7 * 2 * 256


def test_every_sensor_adds_its_tokens():
    model = replace(card(), sensors=("sentinel2_l2a", "sentinel1"))
    both = tile(model=model, feeds=(estimate.Feed(), estimate.Feed(sensor="sentinel1")))
    assert both.tokens == 2 * tile(model=model).tokens
    assert both.flops > 2 * tile(model=model).flops


def test_centre_crops_are_priced_with_the_pruned_last_block():
    grid = replace(spec(), overlap_px=32)
    assert tile(grid=replace(grid, stitch="centre")).flops < 0.9 * tile(grid=grid).flops


def test_device_seconds_are_work_over_speed():
    got = tile(rate=estimate.Rate(numerics=numerics(), flops_per_s=1e9))
    assert got.device_s == pytest.approx(got.flops / 1e9)


def test_unknown_price_is_none_and_a_known_one_is_shared_by_all_cores():
    assert tile().usd is None
    rate = estimate.rate_for(numerics(), price=Price(usd_per_hour=16.0, gpus=0, cores=16))
    got = tile(rate=rate)
    assert got.usd == pytest.approx(got.device_s / 3600.0)


def test_unknown_device_gives_no_seconds_and_no_price():
    rate = estimate.rate_for(numerics("cuda", "Other 9000", "bfloat16"), price=Price(1.0, 1, 4))
    got = tile(rate=rate)
    assert got.device_s == 0.0
    assert got.usd is None


def test_machine_without_the_device_has_no_price():
    assert estimate.rate_for(numerics("cuda", "NVIDIA L4"), price=Price(1.0, 0, 16)).usd_per_hour is None


@pytest.mark.parametrize(
    ("name", "match"),
    [("NVIDIA H200", "h200"), ("NVIDIA H100 NVL", "h100 nvl"), ("NVIDIA H100 80GB HBM3", "h100"),
     ("NVIDIA L40S", "l40s"), ("NVIDIA L4", "l4"), ("NVIDIA A100-SXM4-80GB", "a100")],
)  # fmt: skip
def test_device_names_find_their_own_row(name, match):
    row = estimate.device_rate(numerics("cuda", name, "bfloat16"), 768)
    assert row is not None
    assert row.match == match
    assert row.dims == 768


def test_wider_models_reach_a_higher_share_of_every_device():
    for device, name, dtype in (("cpu", "any", "bfloat16"), ("cuda", "nvidia h200", "bfloat16")):
        speeds = [estimate.Rate(numerics=numerics(device, name, dtype)).speed(d) or 0 for d in (128, 192, 768)]
        assert speeds == sorted(set(speeds))


def test_speed_follows_the_width_of_a_token_not_of_what_is_written():
    got = tile(model=STUDENT)
    assert got.device_s == pytest.approx(got.flops / 96e9)
    assert STUDENT.dims == 128


def test_what_is_stored_of_a_pixel_follows_the_quantiser():
    base = {"provisional": True, "source": "t", "model_sha256": "", "patch_px": 4, "scale": ()}
    sizes = {
        quantiser: estimate.Vector.of(Calibration(**base | fields)).nbytes
        for quantiser, fields in {
            "linear": {"scale": (1.0,) * 128},
            "pca:64": {"method": "pca", "scale": (1.0,) * 64},
            "per_pixel": {"method": "per_pixel", "dims": 128},
            "float16": {"method": "float16", "dims": 128},
            "float32": {"method": "float32", "dims": 128},
        }.items()
    }
    assert sizes == {"linear": 128, "pca:64": 64, "per_pixel": 132, "float16": 256, "float32": 512}


def test_bytes_written_and_memory_follow_what_is_stored_not_what_the_model_writes():
    wide = tile(model=card("base"))
    scores = tile(model=card("base"), vector=estimate.Vector(bands=64))
    floats = tile(model=card("base"), vector=estimate.Vector(bands=768, dtype="float32"))
    assert scores.bytes_written == pytest.approx(wide.bytes_written / 12, rel=0.05)
    assert floats.bytes_written > 4 * wide.bytes_written
    assert wide == tile(model=card("base"), vector=estimate.Vector(bands=768))
    assert wide.peak_bytes - scores.peak_bytes == 2 * (768 - 64) * 512**2
    assert floats.peak_bytes - wide.peak_bytes == 2 * 3 * 768 * 512**2
    assert floats.flops == wide.flops


def test_every_rate_names_its_source():
    assert all(r.source and r.gflops > 0 for r in estimate.RATES)


def test_bytes_read_are_bands_of_one_scene_per_period_and_all_classifications():
    raw = 2 * (4 * 600**2 + 6 * 304**2 + 2 * 104**2)
    got = tile(found=candidates(3, 2)).bytes_read
    assert got == pytest.approx(2 * raw + 5 * 256**2 * 0.25, rel=1e-6)


def test_a_period_without_candidates_reads_nothing():
    full, half, none = (tile(found=candidates(*n)).bytes_read for n in ((1, 1), (1, 0), (0, 0)))
    assert none == 0
    assert half == pytest.approx(full / 2, abs=1)


def test_bytes_read_of_a_box_over_two_cells_add_the_ranking_of_the_second():
    box = replace(BOX, col=2048 - 300)
    other = Cell(zone=31, row=0, col=1)
    left = candidates(1, 1)
    both = left + tuple(replace(c, cell=other) for c in left)
    extra = tile(found=both, box=box).bytes_read - tile(found=left, box=box).bytes_read
    assert extra == pytest.approx(2 * 256**2 * 0.25, rel=1e-3)


def test_bytes_read_of_a_median_are_all_its_scenes_with_their_classification_at_full_resolution():
    raw = 2 * (4 * 600**2 + 6 * 304**2 + 2 * 104**2)
    got = tile(found=candidates(3, 2), feeds=(estimate.Feed(composite="median"),)).bytes_read
    assert got == pytest.approx(5 * (raw + 300**2), rel=1e-6)


def test_every_sensor_is_read_from_its_own_candidates():
    radar = tuple(replace(c, sensor="sentinel1") for c in candidates(4, 0))
    feeds = (estimate.Feed(), estimate.Feed(sensor="sentinel1", composite="first_valid"))
    model = replace(card(), sensors=("sentinel2_l2a", "sentinel1"))
    both = tile(model=model, found=candidates(1, 1) + radar, feeds=feeds).bytes_read
    assert both - tile(found=candidates(1, 1)).bytes_read == 4 * 2 * 600**2


@pytest.mark.parametrize(
    ("feed", "bytes_per_px"),
    [
        (estimate.Feed(sensor="sentinel1"), 2 * 4 + 1),
        (estimate.Feed(sensor="landsat"), 11 * 2 + 1),
        (estimate.Feed(sensor="landsat", resampling="pretrain"), 3 + 21 / 4),
    ],
)
def test_peak_memory_holds_the_stacks_of_every_sensor(feed, bytes_per_px):
    model = replace(card(), sensors=("sentinel2_l2a", feed.sensor))
    one, both = (tile(model=model, feeds=feeds).peak_bytes for feeds in ((estimate.Feed(),), (estimate.Feed(), feed)))
    batch = flops.tokens_per_window(model, spec(), 2) * 4 * 128 * 4 * estimate.ACTIVATIONS
    stack = 2 * bytes_per_px * 600**2
    copies = estimate.READS_HELD + estimate.READERS + 1 + 4  # read ahead, windows in hand, GDAL's, decoded blocks
    assert estimate.READS_HELD * stack <= both - one <= copies * stack + batch


def test_tiles_of_a_whole_cell_keep_no_blocks_of_files():
    box = replace(BOX, height=2600, width=2600)
    gpu = estimate.Rate(numerics=numerics("cuda", "nvidia l4", "bfloat16"))
    small, whole = (tile(box=box, grid=spec(tile=side), rate=gpu).peak_bytes for side in (512, 2048))
    codes = 2 * 128 * (2048**2 - 512**2)
    assert small - whole + codes == estimate.CACHE_BYTES


def test_peak_memory_counts_encoder_processes():
    threads = estimate.Rate(numerics=numerics(), encoders=8)
    assert tile(rate=replace(threads, encoder_bytes=10**9)).peak_bytes - tile(rate=threads).peak_bytes == 8 * 10**9


def test_bytes_written_follow_blocks_and_dims():
    assert tile().bytes_written == pytest.approx(4 * 256**2 * (128 / 1.7 + 0.1), rel=1e-6)
    assert tile(model=card("base")).bytes_written > 5 * tile().bytes_written


def test_bytes_written_per_token_are_those_of_fewer_vectors_that_compress_less():
    got = tile(grid=replace(spec(), token_px=4)).bytes_written
    assert got == pytest.approx(4 * 64**2 * (128 / 1.2 + 0.1), rel=1e-6)
    assert got < tile().bytes_written / 10


def test_bytes_written_follow_what_is_written_not_the_width_of_a_token():
    assert tile(model=STUDENT).bytes_written == tile().bytes_written


def test_peak_memory_holds_windows_as_wide_as_a_token():
    small, large = (tile(windows=n, model=STUDENT).peak_bytes for n in (100, 2000))
    assert large - small == 1900 * 256 * (4 * 768 + 1)


def test_peak_memory_holds_codes_as_wide_as_what_is_written():
    # the base model and the student work alike; written vectors are six times narrower, and the field exists twice
    wide, narrow = tile(model=card("base")).peak_bytes, tile(model=STUDENT).peak_bytes
    assert wide - narrow == 640 * (4 * 4 * 256**2 + 2 * 512**2) - 4 * 128 * 150**2


def test_peak_memory_of_token_stores_is_lower():
    per_token = replace(spec(), token_px=4)
    assert tile(model=card("base"), grid=per_token).peak_bytes < tile(model=card("base")).peak_bytes


def test_peak_memory_grows_with_windows_and_width_and_is_more_than_the_arrays():
    small, large = tile(windows=100), tile(windows=2000)
    assert small.peak_bytes > estimate.PROCESS_BYTES + 4 * 128 * 256 * 100
    assert large.peak_bytes - small.peak_bytes == 1900 * 256 * (4 * 128 + 1)
    assert tile(model=card("base")).peak_bytes > small.peak_bytes


def test_peak_memory_on_a_gpu_leaves_windows_and_activations_on_the_device():
    cpu = estimate.Rate(numerics=numerics(batch=64), encoders=16)
    gpu = estimate.Rate(numerics=numerics("cuda", "nvidia l4", "bfloat16", batch=64))
    assert tile(rate=gpu).peak_bytes < tile(rate=cpu).peak_bytes
    assert tile(rate=gpu, windows=100).peak_bytes == tile(rate=gpu, windows=2000).peak_bytes


def test_total_adds_everything_but_memory():
    a, b = tile(windows=10), tile(windows=30)
    got = estimate.total([a, b])
    assert got.windows == 40
    assert got.flops == a.flops + b.flops
    assert got.peak_bytes == b.peak_bytes


def test_total_is_unknown_as_soon_as_one_price_is():
    assert estimate.total([Estimate(usd=1.0), Estimate()]).usd is None
    assert estimate.total([]).usd is None


def test_bands_of_maps_cost_bytes_and_memory():
    plain, graded = tile(), tile(layer_bytes=21)
    assert graded.peak_bytes - plain.peak_bytes == 21 * 512**2
    assert graded.bytes_written - plain.bytes_written == pytest.approx(
        4 * 256**2 * 21 / estimate.GRADED_RATIO, rel=1e-3
    )
    assert graded.flops == plain.flops
