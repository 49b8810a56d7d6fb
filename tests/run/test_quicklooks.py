"""Pictures of a store: the same colours for every date, true colours of every period, what was seen and how clearly."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio

from pipeline.config import Settings
from pipeline.plan import grid
from pipeline.read.colours import true_colours
from pipeline.run import ground, prepare, quicklooks
from pipeline.run.folder import store_of
from pipeline.run.publish import publish
from pipeline.run.stored import Stored
from pipeline.types import COLOUR_M, Reason, Tile
from pipeline.write import preview
from tests.run.test_tile import BLOCKS, TILE, finished, spec_of, task_of
from tests.run.two_dates import DATES


def tiles_of(plan):
    return [tile for tile, _ in ground.committed(plan)]


def looks_of(plan, **options):
    return {look.name: look for look in quicklooks.looks(plan, tiles_of(plan), **options)}


@pytest.fixture(scope="module")
def shown(shared_store):
    """(plan, {name: look}) of both dates, the later one first."""
    return {name: (shared_store[name], looks_of(shared_store[name])) for name in ("late", "early")}


def test_two_dates_of_one_store_have_the_same_colours(shown):
    bases = {quicklooks.basis_of(plan) for plan, _ in shown.values()}
    assert len(bases) == 1
    assert bases != {None}
    pictures = [looks["quicklook"].rgba[..., :3].astype(float) for _, looks in shown.values()]
    for channel in range(3):
        early, late = (picture[..., channel].ravel() for picture in pictures)
        assert np.corrcoef(early, late)[0, 1] > 0.4  # the same ground; of unrelated colours it would be near 0


def test_colours_are_kept_beside_the_store_and_never_made_again(shown):
    plan, _ = shown["early"]
    kept = Path(f"{store_of(plan)}{quicklooks.BASIS_SUFFIX}")
    before = kept.read_bytes()
    other = json.loads(before) | {"mean": [9.0] * len(json.loads(before)["mean"])}
    brought = replace(plan, calibration=replace(plan.calibration, basis=json.dumps(other)))
    assert quicklooks.basis_of(brought) == preview.Basis.from_json(before.decode())
    looks_of(brought, most_px=64)
    assert kept.read_bytes() == before


def test_colours_of_the_calibration_count_for_a_store_without_its_own(shown, tmp_path):
    plan, _ = shown["early"]
    basis = quicklooks.basis_of(plan)
    moved = elsewhere(plan, tmp_path)
    assert quicklooks.basis_of(moved) is None
    brought = replace(moved, calibration=replace(plan.calibration, basis=basis.to_json()))
    assert quicklooks.basis_of(brought) == basis
    looks_of(brought, most_px=64)
    assert quicklooks.basis_of(moved) == basis  # from now on it lies beside the store


def elsewhere(plan, folder):
    """The same plan on a copy of its store."""
    path = folder / "copy.zarr"
    shutil.copytree(store_of(plan), path)
    settings = json.loads(plan.settings)
    settings["store"]["path"] = str(path)
    return replace(plan, settings=json.dumps(settings))


def test_true_colours_are_those_of_the_store(shown):
    plan, looks = shown["late"]
    found = [look for look in looks.values() if look.kind == quicklooks.TRUE_COLOUR]
    assert [look.period for look in found] == list(plan.periods)
    for index, look in enumerate(found):
        stored = Stored.of(plan).layer(look.box, "rgb")[index]
        np.testing.assert_array_equal(look.rgba, preview.brightened(preview.opaque(stored)))
        assert look.box.res_m == 80
        assert (look.rgba[..., 3] == 255).mean() > 0.9


def test_true_colours_of_a_period_do_not_depend_on_how_many_are_filled_at_once(shown, monkeypatch):
    plan, looks = shown["late"]
    monkeypatch.setattr(quicklooks, "BATCH_BYTES", 1)
    again = looks_of(plan)
    for name, look in looks.items():
        np.testing.assert_array_equal(again[name].rgba, look.rgba)


def test_observations_are_counted_and_what_was_not_asked_for_is_empty(shown):
    plan, looks = shown["early"]
    look = looks["observations"]
    held = Stored.of(plan)
    asked = ~np.isin(held.layer(look.box, "reason"), (Reason.NOT_REQUESTED, Reason.OTHER_ZONE))
    np.testing.assert_array_equal(look.values[asked], held.layer(look.box, "n_obs")[asked])
    np.testing.assert_array_equal(look.rgba[..., 3] > 0, asked)
    assert look.legend[-1] == ("2 of 2", preview.ramp(2)[-1])


def test_the_clear_share_is_the_mean_of_the_periods(shown):
    plan, looks = shown["early"]
    look = looks["clear_sentinel2_l2a"]
    stored = Stored.of(plan).layer(look.box, "qa_clear_pct")[0].astype(float)
    np.testing.assert_array_equal(look.values, np.rint(stored.mean(axis=0)))
    assert look.box.res_m == 2560


def test_large_areas_are_averaged_down(shown):
    plan, looks = shown["early"]
    small = looks_of(plan, most_px=32)
    for name, look in small.items():
        factor = look.box.res_m // looks[name].box.res_m
        assert max(look.rgba.shape) <= 32
        assert look.rgba.shape[:2] == look.box.shape
        assert look.box.bounds_m == looks[name].box.bounds_m
        if look.values is None:
            want = preview.shrink_rgba(looks[name].rgba, factor=factor)
            assert np.abs(look.rgba[..., :3].astype(int) - want[..., :3]).max() < 40


@pytest.fixture(scope="module")
def published(shared_store):
    """What ``preview`` made of the early dates."""
    return publish(shared_store["early"].output)


def test_preview_writes_every_look_as_png_and_cog(published, shared_store):
    starts = [f"{p.start:%Y-%m-%d}" for p in shared_store["early"].periods]
    assert starts[0] == DATES["early"][0]
    names = {Path(path).name for path in (*published.quicklooks, *published.true_colours, *published.observations)}
    stems = ["quicklook", "observations", "clear_sentinel2_l2a", *(f"true_colour_{start}" for start in starts)]
    want = {f"{stem}_utm32{suffix}" for stem in stems for suffix in (".png", ".tif")}
    assert names == want | {"true_colours_utm32.png"}
    with rasterio.open(next(p for p in published.observations if p.endswith("observations_utm32.tif"))) as found:
        assert found.nodata == 255
        assert found.colormap(1)[2][:3] == (253, 231, 37)
        assert found.crs.to_epsg() == 32632


def test_a_picture_that_went_missing_is_made_again(published, shared_store):
    gone = Path(published.true_colours[0])
    gone.unlink()
    assert publish(shared_store["early"].output).true_colours == published.true_colours
    assert gone.is_file()


def test_stores_without_the_layers_are_shown_without_them_and_preview_says_so(shared_store, tmp_path):
    plan = elsewhere(shared_store["early"], tmp_path)
    for name in ("rgb", "qa_clear_pct", "qa_scenes", "qa_first_day"):
        shutil.rmtree(Path(store_of(plan)) / "utm32" / name)
    assert set(looks_of(plan, most_px=64)) == {"quicklook", "observations"}
    words = " ".join(quicklooks.missing(plan))
    assert "no true colours" in words
    assert "no clear share" in words
    assert quicklooks.missing(shared_store["early"]) == ()


def test_preview_prints_everything_it_made(earthpress, published, shared_store):
    code, out, _ = earthpress("preview", shared_store["early"].output)
    assert code == 0
    for path in (*published.true_colours, *published.observations, *published.quicklooks):
        assert path in out


@pytest.mark.parametrize(
    ("sensors", "wanted", "kept"),
    [
        (("sentinel2_l2a", "sentinel1"), True, True),
        (("landsat",), True, True),
        (("sentinel1",), True, False),
        (("sentinel2_l2a",), False, False),
    ],
)
def test_true_colours_are_kept_when_asked_for_and_a_sensor_has_them(sensors, wanted, kept):
    settings = Settings(inputs={"sensors": sensors}, store={"true_colour": wanted})
    assert prepare.true_colour(settings) is kept


def test_a_tile_has_colours_of_its_wanted_blocks_only():
    result, _, stack, _, _ = finished(spec_of(), count=3, true_colour=True)
    wanted = np.kron([[1, 1], [0, 1]], np.ones((32, 32))) == 1
    assert len(BLOCKS) == 3
    assert result.colours.shape == (3, 3, 64, 64)
    assert not result.colours[..., ~wanted].any()
    whole = true_colours(stack, replace(TILE.box.cover(COLOUR_M), height=32))
    np.testing.assert_array_equal(result.colours[:, :, :32], whole)
    assert finished(spec_of())[0].colours is None


def test_ground_of_the_neighbouring_zone_has_no_colour():
    tile = Tile(zone=31, row=-1018, col=142, tile_px=512)  # 6 degrees east, the border of the zones, runs through it
    result, *_ = finished(spec_of(), task=task_of(tile, ((0, 0), (0, 1), (1, 0), (1, 1))), true_colour=True)
    mine = grid.owned(tile.box.cover(COLOUR_M))
    assert 0.02 < mine.mean() < 0.98
    np.testing.assert_array_equal(result.colours[0, 0] > 0, mine)
