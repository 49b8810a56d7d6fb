"""Stacks and the lazy view: equal to slow numpy, the same from every box, and nothing missing in silence."""

from __future__ import annotations

import itertools
import pickle
import random
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

import files
import numpy as np
import pytest
import reference
import rioxarray  # noqa: F401
import xarray as xr
from files import CORNER, ZONE, candidates, make_radar, make_scene, periods, read_stack, region_around, scene_of

from pipeline.errors import InvalidInputError, TransientError
from pipeline.read.access import Access
from pipeline.read.composite import fill
from pipeline.read.pieces import merge_boxes
from pipeline.read.rank import MemoryRanks
from pipeline.read.tiles import layer_boxes, needed_cells, open_tiles
from pipeline.read.windows import add_offset
from pipeline.types import (
    Area,
    Asset,
    Box,
    Calibration,
    Cell,
    Estimate,
    GridSpec,
    ModelCard,
    Numerics,
    Plan,
    Task,
    Tile,
)

LOCAL = Access(allow_local=True)
REGION = region_around(*CORNER)
BOX = Box(zone=ZONE, res_m=10, row=CORNER[0] - 41, col=CORNER[1] - 37, height=83, width=79)
CELLS = tuple(Cell(zone=ZONE, row=CORNER[0] // 2048 + i, col=CORNER[1] // 2048 + j) for i in (-1, 0) for j in (-1, 0))


stack_of = partial(files.stack_of, box=BOX)


@pytest.fixture(name="made", scope="module")
def _made(tmp_path_factory):
    """Two periods of three scenes with holes; one of an old baseline, one without B05, one southern-free sliver."""
    folder = tmp_path_factory.mktemp("scenes")
    small = region_around(CORNER[0] + 30, CORNER[1] - 20, half_px=36)
    return [
        [
            make_scene(folder, "a", region=REGION, seed=1, holes=0.4),
            make_scene(folder, "b", region=REGION, seed=2, holes=0.3, boa_offset=1000),
            make_scene(folder, "c", region=REGION, seed=3, holes=0.1, without=("B05",)),
        ],
        [
            make_scene(folder, "d", region=small, seed=4, holes=0.2, classes=4),
            make_scene(folder, "e", region=REGION, seed=5, holes=0.5),
        ],
    ]


@pytest.mark.parametrize("seed", range(4))
def test_a_stack_equals_slow_numpy(made, seed):
    rng = random.Random(seed)
    row, col = CORNER[0] - rng.randrange(0, 70), CORNER[1] - rng.randrange(0, 70)
    box = Box(zone=ZONE, res_m=10, row=row, col=col, height=rng.randrange(20, 90), width=rng.randrange(20, 90))
    stack = stack_of(made, box=box)
    for layer, want_box in zip(stack.layers, layer_boxes(box), strict=True):
        assert layer.box == want_box
        want = reference.layer(layer.box, made, CELLS, layer.bands)
        np.testing.assert_array_equal(layer.pixels, want)
        np.testing.assert_array_equal(layer.valid, (want > 0).any(axis=1))


def test_layers_cover_the_box_with_the_margin_of_interpolation():
    ten, twenty, sixty = layer_boxes(BOX)
    assert ten == BOX
    assert twenty == BOX.cover(20).pad(2)
    assert sixty == BOX.cover(60).pad(2)


def test_two_boxes_over_the_same_ground_agree_across_the_cell_border(made):
    one = stack_of(made)
    two = stack_of(made, box=Box(zone=ZONE, res_m=10, row=BOX.row + 23, col=BOX.col - 31, height=90, width=100))
    for a, b in zip(one.layers, two.layers, strict=True):
        both = a.box.intersect(b.box)
        rows, cols = both.slices_in(a.box)
        other_rows, other_cols = both.slices_in(b.box)
        np.testing.assert_array_equal(a.pixels[:, :, rows, cols], b.pixels[:, :, other_rows, other_cols])
        assert a.pixels[:, :, rows, cols].any()


@pytest.mark.parametrize("seed", range(5))
def test_shared_windows_cover_every_part_and_waste_little(seed):
    rng = random.Random(seed)
    cut_rows, cut_cols = sorted(rng.sample(range(1, 40), 2)), sorted(rng.sample(range(1, 40), 2))
    edges = [(0, *cut_rows, 40), (0, *cut_cols, 40)]
    parts = [
        Box(
            zone=31,
            res_m=10,
            row=edges[0][i],
            col=edges[1][j],
            height=edges[0][i + 1] - edges[0][i],
            width=edges[1][j + 1] - edges[1][j],
        )
        for i in range(3)
        for j in range(3)
        if rng.random() < 0.7
    ]
    merged = merge_boxes(parts)
    assert all(any(m.intersect(p) == p for m in merged) for p in parts)
    assert sum(m.height * m.width for m in merged) <= 1.5 * sum(p.height * p.width for p in parts)


def test_nine_cells_at_one_scene_are_one_window():
    edges = (0, 8, 90, 99)
    parts = [
        Box(zone=31, res_m=10, row=r0, col=c0, height=r1 - r0, width=c1 - c0)
        for r0, r1 in itertools.pairwise(edges)
        for c0, c1 in itertools.pairwise(edges)
    ]
    assert [m.shape for m in merge_boxes(parts)] == [(99, 99)]


class ShuffledPool(ThreadPoolExecutor):
    """Finishes its jobs in another order than they were handed in."""

    def submit(self, fn, /, *args, **kwargs) -> Future:
        def late(*a, **k):
            time.sleep(random.random() * 0.004)
            return fn(*a, **k)

        return super().submit(late, *args, **kwargs)


def test_the_order_of_reads_plays_no_part(made):
    want = stack_of(made)
    with ShuffledPool(8) as pool:
        got = stack_of(made, pool=pool)
    assert got.sources == want.sources
    for a, b in zip(got.layers, want.layers, strict=True):
        np.testing.assert_array_equal(a.pixels, b.pixels)


def test_one_thread_is_enough(made):
    with ThreadPoolExecutor(1) as pool:
        got = stack_of(made, pool=pool)
    np.testing.assert_array_equal(got.layers[0].pixels, stack_of(made).layers[0].pixels)


def test_sources_name_what_was_used_by_cell_and_period(made):
    sources = stack_of(made).sources
    assert [(s.cell_id, s.period) for s in sources] == [(c.id, p) for c in CELLS for p in (0, 1)]
    assert all(set(s.selected) <= {"a", "b", "c"} for s in sources if s.period == 0)
    assert all(list(s.scores) == sorted(s.scores) for s in sources)
    assert not any(s.skipped for s in sources)


def test_bands_are_read_only_while_a_hole_is_left(tmp_path):
    full = make_scene(tmp_path, "full", region=REGION, seed=1, classes=4)
    spare = make_scene(tmp_path, "spare", region=REGION, seed=2, classes=9)
    for asset in spare.scene.assets:
        if asset.band != "SCL":
            (tmp_path / f"spare_{asset.band}.tif").unlink()
    stack = stack_of([[spare, full]])
    assert {s.selected for s in stack.sources} == {("full",)}
    assert not stack.degraded


def test_old_baselines_get_the_offset_except_where_nodata():
    got = add_offset(np.array([[0, 1, 64535, 64536, 65535]], np.uint16), 1000)
    np.testing.assert_array_equal(got, [[0, 1001, 65535, 65535, 65535]])


def test_a_scene_fills_only_what_is_open():
    pixels, valid = np.array([[[5, 0, 0]], [[0, 0, 0]]], np.uint16), np.array([[True, False, False]])
    bands = {0: np.array([[9, 9, 0]], np.uint16), 1: np.array([[9, 0, 0]], np.uint16)}
    found = fill(pixels, valid, bands, where=~valid)
    np.testing.assert_array_equal(found, [[False, True, False]])
    np.testing.assert_array_equal(pixels, [[[5, 9, 0]], [[0, 0, 0]]])
    np.testing.assert_array_equal(valid, [[True, True, False]])


@pytest.mark.parametrize("fault", ["gone", "truncated"])
@pytest.mark.parametrize("band", ["B02", "B12", "B09"])
def test_a_scene_with_an_unreadable_band_is_replaced_in_all_bands_and_recorded(tmp_path, band, fault):
    broken = make_scene(tmp_path, "broken", region=REGION, seed=1, classes=4)
    spare = make_scene(tmp_path, "spare", region=REGION, seed=2, classes=9)
    path = tmp_path / f"broken_{band}.tif"
    if fault == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:200])
    stack, want = stack_of([[broken, spare]]), stack_of([[spare]])
    assert stack.degraded
    assert {(s.selected, s.skipped) for s in stack.sources} == {(("spare",), ("broken",))}
    for a, b in zip(stack.layers, want.layers, strict=True):
        np.testing.assert_array_equal(a.pixels, b.pixels)


def test_a_period_whose_only_scene_fails_is_empty_and_says_so(tmp_path):
    broken = make_scene(tmp_path, "broken", region=REGION, seed=1, classes=4)
    (tmp_path / "broken_B02.tif").unlink()
    stack = stack_of([[broken]])
    assert stack.degraded
    assert not any(layer.valid.any() or layer.pixels.any() for layer in stack.layers)


def test_a_scene_without_readable_classification_degrades_the_stack(tmp_path):
    blind = make_scene(tmp_path, "blind", region=REGION, seed=1)
    (tmp_path / "blind_SCL.tif").unlink()
    stack = stack_of([[blind]])
    assert stack.degraded
    assert {(s.selected, s.skipped, s.scores) for s in stack.sources} == {(("blind",), ("blind",), (None,))}


def test_a_band_that_one_scene_lacks_is_0_there(tmp_path):
    poor = make_scene(tmp_path, "poor", region=REGION, seed=1, classes=4, without=("B05",))
    rich = make_scene(tmp_path, "rich", region=REGION, seed=2, classes=9)
    layer = stack_of([[poor, rich]]).layers[1]
    assert layer.bands == ("B05", "B06", "B07", "B8A", "B11", "B12")
    assert not layer.pixels[:, 0].any()
    assert layer.pixels[:, 1].all()


def test_a_band_that_no_scene_of_the_run_has_is_absent(tmp_path):
    only = make_scene(tmp_path, "only", region=REGION, seed=1, without=("B01", "B09", "B05"))
    assert [layer.bands for layer in stack_of([[only]]).layers] == [
        ("B02", "B03", "B04", "B08"),
        ("B06", "B07", "B8A", "B11", "B12"),
    ]


def test_bands_are_those_of_the_run_not_of_the_tile(tmp_path):
    only = make_scene(tmp_path, "only", region=REGION, seed=1, without=("B01", "B09"))
    elsewhere = scene_of("elsewhere", Asset(band="B01", href="x"))
    assert stack_of([[only]], extra=(elsewhere,)).layers[2].bands == ("B01",)


def test_no_scenes_at_all_make_an_empty_stack_of_all_bands():
    stack = stack_of([[], []])
    assert [len(layer.bands) for layer in stack.layers] == [4, 6, 2]
    assert not any(layer.valid.any() for layer in stack.layers)
    assert stack.bytes_read == 0
    assert not stack.degraded


def test_decoded_bytes_are_counted(tmp_path):
    one = make_scene(tmp_path, "one", region=REGION, seed=1, classes=4)
    stack = stack_of([[one]])
    classes = len(CELLS) * 256 * 256
    assert stack.bytes_read == classes + sum(layer.pixels.nbytes for layer in stack.layers)


def test_a_cell_without_a_plan_is_refused(made):
    with ThreadPoolExecutor(2) as pool, pytest.raises(InvalidInputError, match="no candidates for cell z32"):
        read_stack(
            box=BOX,
            periods=periods(1),
            candidates=candidates(CELLS[:3], {0: ("a",)}),
            scenes={"a": made[0][0].scene},
            access=LOCAL,
            ranks=MemoryRanks(),
            pool=pool,
        )


def test_an_unknown_scene_is_refused():
    with ThreadPoolExecutor(2) as pool, pytest.raises(InvalidInputError, match="unknown scenes"):
        read_stack(
            box=BOX,
            periods=periods(1),
            candidates=candidates(CELLS, {0: ("a",)}),
            scenes={},
            access=LOCAL,
            ranks=MemoryRanks(),
            pool=pool,
        )


def test_needed_cells_include_those_of_the_margin():
    inside = Box(zone=ZONE, res_m=10, row=CORNER[0] + 8, col=CORNER[1] + 300, height=100, width=100)
    assert len(needed_cells(inside)) == 2
    assert len(needed_cells(replace(inside, row=CORNER[0] + 300))) == 1


def test_local_files_stop_the_stack_unless_allowed(made):
    with pytest.raises(InvalidInputError, match="local file"):
        stack_of(made, access=Access())


class NoTokens:
    def sign(self, href):
        raise TransientError("the signing service failed")

    def forget(self, href):
        pass


def test_a_signing_service_that_fails_fails_the_tile_instead_of_replacing_scenes(made):
    signed = [[replace(m, scene=replace(m.scene, sign=True)) for m in period] for period in made]
    with pytest.raises(TransientError):
        stack_of(signed, access=Access(allow_local=True, signer=NoTokens()))


# The lazy view ------------------------------------------------------------------------------------------------------

TILES = tuple(
    Tile(zone=ZONE, row=CORNER[0] // 256 + i, col=CORNER[1] // 256 + j, tile_px=256)
    for i, j in ((-1, -1), (-1, 0), (0, 0))
)


def plan_of(made_by_period, *, tiles=TILES):
    ids = {t: tuple(m.scene.id for m in made) for t, made in enumerate(made_by_period)}
    tasks = tuple(
        Task(tile=tile, blocks=((0, 0),), candidates=candidates(CELLS, ids), fingerprint=tile.id, estimate=Estimate())
        for tile in sorted(tiles)
    )
    scenes = sorted((m.scene for made in made_by_period for m in made), key=lambda s: s.id)
    return Plan(
        id="plan",
        recipe="recipe",
        created=datetime(2026, 1, 1, tzinfo=UTC),
        output="out",
        area=Area(wkb="", km2=1.0),
        periods=periods(len(made_by_period)),
        grid=GridSpec(patch_px=4, window_px=64, overlap_px=24, tile_px=256),
        model=ModelCard(
            name="m",
            version="v1.2",
            size="nano",
            dims=1,
            depth=1,
            heads=1,
            parameters=1,
            sensors=(),
            sha256="",
            trained=False,
        ),
        numerics=Numerics(device="cpu", device_name="", dtype="float32", compiled=False, batch_windows=1, torch=""),
        calibration=Calibration(scale=(1.0,), provisional=True, source="", model_sha256="", patch_px=4),
        settings='{"run":{"io_threads":4}}',
        scenes=tuple(scenes),
        tasks=tasks,
        empty_periods=(),
        estimate=Estimate(),
    )


@pytest.fixture(name="tree", scope="module")
def _tree(made):
    return open_tiles(plan_of(made), access=LOCAL)


def test_opening_reads_nothing(made):
    tree = open_tiles(plan_of(made), access=Access())  # would refuse every file
    assert set(tree.groups) == {"/", "/utm32", "/utm32/10m", "/utm32/20m", "/utm32/60m"}


@pytest.fixture(name="stacks", scope="module")
def _stacks(made):
    ranks = MemoryRanks()
    return {tile: stack_of(made, box=tile.box.pad(33), ranks=ranks) for tile in TILES}


@pytest.mark.parametrize("res_m", [10, 20, 60])
def test_a_chunk_equals_the_runners_stack_byte_for_byte(stacks, tree, res_m):
    array = tree[f"/utm32/{res_m}m"]["sentinel2_l2a"].compute(scheduler="threads")
    for tile, stack in stacks.items():
        layer = next(layer for layer in stack.layers if layer.res_m == res_m)
        x0, y0, x1, y1 = tile.box.bounds_m
        got = array.sel(x=slice(x0, x1), y=slice(y1, y0))
        y, x = got.y.to_numpy(), got.x.to_numpy()
        row, col = round(-y[0] / res_m - 0.5) - layer.box.row, round(x[0] / res_m - 0.5) - layer.box.col
        want = layer.pixels[:, :, row : row + len(y), col : col + len(x)]
        np.testing.assert_array_equal(got.to_numpy(), want)
        assert got.any()


def test_chunks_are_tiles_and_60_m_pixels_belong_to_the_tile_of_their_centre(tree):
    assert tree["/utm32/10m"]["sentinel2_l2a"].chunks[2:] == ((256, 256), (256, 256))
    assert tree["/utm32/20m"]["sentinel2_l2a"].chunks[2:] == ((128, 128), (128, 128))
    sixty = tree["/utm32/60m"]["sentinel2_l2a"]
    assert set(sixty.chunks[2]) <= {42, 43}
    assert sum(sixty.chunks[2]) == sixty.sizes["y"]


def test_a_place_without_a_tile_is_0(tree):
    assert not tree["/utm32/10m"]["sentinel2_l2a"][:, :, 256:, :256].any().compute()


def test_the_view_is_georeferenced(tree):
    array = tree["/utm32/60m"]["sentinel2_l2a"]
    assert array.rio.crs.to_epsg() == 32632
    assert array.rio.resolution() == (60.0, -60.0)
    assert array.rio.nodata == 0
    assert list(array.band.values) == ["B01", "B09"]
    assert array.time.dtype.kind == "M"


def test_decoding_gives_reflectance(tree):
    raw = tree["/utm32/10m"].to_dataset().isel(time=[0], y=slice(200, 280), x=slice(200, 280)).compute()
    decoded = xr.decode_cf(raw)["sentinel2_l2a"]
    dn = raw["sentinel2_l2a"].to_numpy().astype(float)
    np.testing.assert_allclose(decoded, np.where(dn == 0, np.nan, (dn - 1000) / 10000), atol=1e-6)


def test_southern_tiles_have_negative_northings(tmp_path):
    tile = Tile(zone=33, row=400, col=100, tile_px=256)
    region = region_around(tile.box.row + 128, tile.box.col + 128, zone=33)
    made = make_scene(tmp_path, "s", region=region, seed=1, epsg=32733)
    cell = Cell(zone=33, row=tile.box.row // 2048, col=tile.box.col // 2048)
    plan = plan_of([[made]], tiles=(tile,))
    plan = replace(plan, tasks=(replace(plan.tasks[0], candidates=candidates((cell,), {0: ("s",)})),))
    array = open_tiles(plan, access=LOCAL)["/utm33/10m"]["sentinel2_l2a"].compute()
    assert (array.y < 0).all()
    assert array.rio.crs.to_epsg() == 32633
    inside = made.boxes[10].slices_in(tile.box)
    np.testing.assert_array_equal(array[0, 0].to_numpy()[inside], made.pixels["B02"])


def test_the_view_travels_to_another_process(tree):
    again = pickle.loads(pickle.dumps(tree["/utm32/60m"]["sentinel2_l2a"]))
    np.testing.assert_array_equal(again.compute(), tree["/utm32/60m"]["sentinel2_l2a"].compute())


def test_a_plan_without_tiles_is_an_empty_tree(made):
    assert not open_tiles(plan_of(made, tiles=())).children


@pytest.fixture(name="both", scope="module")
def _both(tmp_path_factory):
    """A plan of two sensors over one tile, and what each scene holds."""
    folder = tmp_path_factory.mktemp("both")
    optical = make_scene(folder, "optical", region=REGION, seed=1, classes=4)
    radar = make_radar(folder, "radar", region=REGION, seed=2)
    plan = plan_of([[optical]], tiles=(TILES[2],))
    listed = candidates(CELLS, {0: ("radar",)}, sensor="sentinel1")
    task = replace(plan.tasks[0], candidates=(*plan.tasks[0].candidates, *listed))
    settings = '{"inputs":{"sensors":["sentinel1","sentinel2_l2a"]},"run":{"io_threads":3}}'
    return replace(plan, tasks=(task,), scenes=(optical.scene, radar.scene), settings=settings), optical, radar


def test_every_sensor_of_the_plan_is_a_variable(both):
    plan, optical, radar = both
    tree = open_tiles(plan, access=LOCAL)
    assert set(tree["/utm32/10m"].data_vars) == {"sentinel2_l2a", "sentinel1"}
    assert set(tree["/utm32/20m"].data_vars) == {"sentinel2_l2a"}
    node = tree["/utm32/10m"].to_dataset().compute()
    tile = TILES[2].box
    part = tile.intersect(REGION)
    inside, own = part.slices_in(tile), part.slices_in(REGION)
    np.testing.assert_array_equal(node["sentinel2_l2a"].sel(band="B02")[0].values[inside], optical.pixels["B02"][own])
    got = node["sentinel1"].sel(sentinel1_band="vh")[0].values
    np.testing.assert_allclose(got[inside], 10 * np.log10(radar.pixels["vh"][own]), rtol=1e-5)
    assert np.isnan(got[-1, -1])
    assert node["sentinel1"].dtype == np.float32
    assert node["sentinel1"].attrs["units"] == "dB"


def test_every_variable_is_georeferenced(both):
    tree = open_tiles(both[0], access=LOCAL)
    for name in ("sentinel2_l2a", "sentinel1"):
        array = tree["/utm32/10m"].to_dataset()[name]
        assert array.rio.crs.to_epsg() == 32632


def test_the_view_follows_the_plans_composite(tmp_path):
    hazy = make_scene(tmp_path, "hazy", region=REGION, seed=1, classes=10, holes=0.2)
    thick = make_scene(tmp_path, "thick", region=REGION, seed=2, classes=9)
    plan = plan_of([[thick, hazy]], tiles=(TILES[2],))
    plan = replace(plan, settings='{"inputs":{"sentinel2":{"composite":"rslearn_mosaic"}}}')
    got = open_tiles(plan, access=LOCAL)["/utm32/20m"]["sentinel2_l2a"].sel(band="B11")[0].compute().values
    place = TILES[2].box.cover(20)
    part = place.intersect(thick.boxes[20])
    np.testing.assert_array_equal(got[part.slices_in(place)], thick.pixels["B11"][part.slices_in(thick.boxes[20])])
