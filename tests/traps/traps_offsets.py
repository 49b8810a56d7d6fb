"""Traps of radiometry: the +1000 of baseline 04.00, who knows of it, and what must not be rescaled."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import rasterio
import torch

from pipeline.encode import assemble
from pipeline.encode.bands import scale_offset
from pipeline.errors import DataError
from pipeline.plan import catalog, select, sentinel2_items
from pipeline.plan.items import acquired_of, scene_from_item
from pipeline.read import reads, warp, windows
from pipeline.read.offsets import offset_key
from pipeline.read.rank import MemoryRanks
from pipeline.read.reads import Reads
from pipeline.types import DN_OFFSET, Box, Layer, Stack
from tests.gdal import warped
from tests.plan.catalog_items import AREA, PERIODS, item
from tests.read.files import make_scene, periods, scene_of
from tests.servers.stac import StacServer
from tests.traps.grounds import LOCAL, REGION, SMALL, blue, s2, with_files
from tests.traps.traps import refuses, swap, trap

BASELINE = "s2:processing_baseline"
FLAG = "earthsearch:boa_offset_applied"
SCENE = {"s2:mgrs_tile": "32UPU", "s2:datatake_id": "GS2B_20240302T100000_012081_N05.10"}

# --- 1: baseline 04.00 ------------------------------------------------------------------------------------------------


def _by_date(found):
    return 5.1 if acquired_of(found) >= datetime(2022, 1, 25, tzinfo=UTC) else 2.14


@trap(1, off=swap(sentinel2_items, "_baseline", _by_date))
def an_offset_follows_the_baseline_not_the_date(folder, patch):
    again = s2("again", datetime="2018-06-01T10:00:00Z", **{BASELINE: "05.00"})
    late = s2("late", datetime="2022-03-01T10:00:00Z", **{BASELINE: "03.01"})
    assert (again.boa_offset, late.boa_offset) == (0, DN_OFFSET)
    for scene, dn in ((again, 1500), (late, 500)):  # the same reflectance
        assert set(blue(with_files(scene, folder, B02=dn)).ravel()) == {1500}


_read_native = windows.read_native


def _with_offset(scene, asset, **how):
    return windows.add_offset(_read_native(scene, asset, **how), scene.boa_offset)


@trap(1, off=swap(reads, "read_native", _with_offset))
def the_scene_classification_never_gets_an_offset(folder, patch):
    made = make_scene(folder, "old", region=REGION, seed=1, boa_offset=DN_OFFSET)
    got = Reads(LOCAL, MemoryRanks()).classes(made.scene, "SCL", made.boxes[20]).values
    np.testing.assert_array_equal(got, made.pixels["SCL"])


@trap(1, off=swap(windows, "add_offset", lambda pixels, offset: pixels + np.uint16(offset)))
def nodata_stays_nodata_under_an_offset(folder, patch):
    pixels = np.full(SMALL.shape, 500)
    pixels[:8] = 0
    got = blue(with_files(scene_of("S", boa_offset=DN_OFFSET), folder, B02=pixels))
    assert (set(got[:8].ravel()), set(got[8:].ravel())) == ({0}, {1500})


def _clipped_at_0(value, sensor, scale, offset):
    return (value - DN_OFFSET).clamp(min=0) * scale + offset


@trap(1, off=swap(assemble, "_scaled", _clipped_at_0))
def a_valid_pixel_that_reaches_0_is_lifted_to_1(folder, patch):
    dn = np.array([[400, 1000, 1001, 1500, 0]], np.uint16)
    box = Box(zone=32, res_m=10, row=0, col=0, height=1, width=5)
    layer = Layer(res_m=10, bands=("B02",), pixels=dn[None, None], valid=(dn > 0)[None], box=box)
    got = assemble.normalised(_stack(layer, box), box, wanted=assemble.Input(sensor="sentinel2_l2a", bands=("B02",)))
    scale, shift = scale_offset("B02")
    want = [v * scale + shift for v in (1, 1, 1, 500)] + [0.0]
    np.testing.assert_allclose(got.numpy().ravel(), want, atol=1e-6)


@trap(1, off=swap(sentinel2_items, "_product_id", lambda found: ""))
def without_the_property_the_product_name_tells_the_baseline(folder, patch):
    for number, offset in (("0500", 0), ("0212", DN_OFFSET)):
        name = f"S2A_MSIL2A_20180601T100031_N{number}_R122_T32UPU_20230601T100031.SAFE"
        assert s2("s", without=(BASELINE,), **{"s2:product_uri": name}).boa_offset == offset


def _with_metadata(folder, text):
    (folder / "MTD_MSIL2A.xml").write_text(text)
    found = item("s")
    del found["properties"][BASELINE]
    found["assets"]["product-metadata"] = {"href": "./MTD_MSIL2A.xml"}
    return scene_from_item(found, base=str(folder / "items.json"), sign=False)


@trap(1, off=swap(sentinel2_items, "_xml_offset", lambda found, *, base: None))
def without_either_the_product_metadata_tell_the_offset(folder, patch):
    quantity = "<BOA_QUANTIFICATION_VALUE unit='none'>10000</BOA_QUANTIFICATION_VALUE>"
    added = "".join(f"<BOA_ADD_OFFSET band_id='{i}'>-1000</BOA_ADD_OFFSET>" for i in range(13))
    assert _with_metadata(folder, quantity + added).boa_offset == 0
    assert _with_metadata(folder, quantity).boa_offset == DN_OFFSET


@trap(1, off=swap(sentinel2_items, "_xml_offset", lambda found, *, base: 0))
def an_item_that_tells_nothing_is_refused_and_not_guessed(folder, patch):
    with refuses(DataError, "does not say whether its DN hold the +1000 offset", "inputs.sentinel2.offset"):
        s2("s", without=(BASELINE,))


# --- 2: order of operations -------------------------------------------------------------------------------------------


def _stack(layer, box):
    return Stack(sensor="sentinel2_l2a", box=box, layers=(layer,), periods=periods(1), sources=(), bytes_read=0)


_resampled = assemble._resampled


def _subtracted_first(layer, box, *, period, place):
    plain = np.where(layer.pixels > 0, np.maximum(layer.pixels.astype(int) - DN_OFFSET, 1), 0).astype(np.uint16)
    got = _resampled(replace(layer, pixels=plain), box, period=period, place=assemble.Resident(()))
    return torch.where(got > 0, got + DN_OFFSET, got)


@trap(2, off=swap(assemble, "_resampled", _subtracted_first))
def the_offset_is_subtracted_after_resampling(folder, patch):
    raster = Box(zone=32, res_m=20, row=-240_003, col=25_001, height=20, width=20)
    box = Box(zone=32, res_m=10, row=(raster.row + 4) * 2, col=(raster.col + 4) * 2, height=20, width=20)
    dn = np.random.default_rng(3).integers(300, 2600, raster.shape).astype(np.uint16)  # water: below 1000 and above
    layer = Layer(res_m=20, bands=("B11",), pixels=dn[None, None], valid=(dn > 0)[None], box=raster)
    got = assemble.normalised(_stack(layer, box), box, wanted=assemble.Input(sensor="sentinel2_l2a", bands=("B11",)))
    scale, shift = scale_offset("B11")
    want = np.maximum(warped(dn, raster.transform, box).astype(float) - DN_OFFSET, 1) * scale + shift
    np.testing.assert_allclose(got[0, 0].numpy(), want, atol=1e-6)


# --- 3: earth-search's flag -------------------------------------------------------------------------------------------


def _flagged(folder, *, applied, inside, offset="auto"):
    """An item of earth-search's old collection over dark ground, whatever its flag says."""
    first = 1190 if inside else 190
    return with_files(s2("E", offset=offset, **{FLAG: applied}), folder, B02=first, B12=first + 260)


def _believed(scene, *, access, memory=None):
    return scene.boa_offset, ""


@trap(3, off=swap(windows, "offset_of", _believed))
def a_flag_that_the_offset_was_subtracted_is_overruled_by_pixels_that_hold_it(folder, patch):
    assert set(blue(_flagged(folder, applied=True, inside=True)).ravel()) == {1190}


@trap(3, off=swap(windows, "offset_of", _believed))
def a_flag_that_the_offset_is_still_in_is_overruled_by_pixels_without_it(folder, patch):
    assert set(blue(_flagged(folder, applied=False, inside=False)).ravel()) == {1190}


_offset_of = windows.offset_of


def _silent(scene, *, access, memory=None):
    return _offset_of(scene, access=access)[0], ""


@trap(3, off=swap(windows, "offset_of", _silent))
def what_the_pixels_said_of_the_offset_is_recorded(folder, patch):
    scene, memory = _flagged(folder, applied=True, inside=True), MemoryRanks()
    got = Reads(LOCAL, memory).band(scene, "B02", SMALL)
    assert "offset still in by its pixels, AGAINST the item" in " ".join(got.notes)
    assert '"offset":0' in memory.get(offset_key(scene)).replace(" ", "")


_offset = sentinel2_items._offset


def _never_asked(found, *, choice, **more):
    return _offset(found, choice="auto", **more)


@trap(3, off=swap(sentinel2_items, "_offset", _never_asked))
def the_users_word_goes_before_the_flag_and_the_pixels(folder, patch):
    assert set(blue(_flagged(folder, applied=True, inside=True, offset="removed")).ravel()) == {2190}
    assert set(blue(_flagged(folder, applied=False, inside=False, offset="present")).ravel()) == {190}


def _by_id(scenes):
    return sorted(range(len(scenes)), key=lambda i: scenes[i].id)


@trap(3, off=swap(select, "_newest_first", _by_id))
def of_two_copies_of_a_product_the_one_whose_offset_is_certain_is_taken(folder, patch):
    old = s2("a", **SCENE, **{FLAG: True})
    certain = s2("b", collection="sentinel-2-c1-l2a", **SCENE)
    assert (old.check_offset, certain.check_offset) == (True, False)
    assert select.newest_versions([old, certain], [AREA, AREA]) == (certain,)


def _old_collection(patch):
    preset = replace(catalog.PRESETS["earth-search"], collections=(("sentinel2_l2a", "sentinel-2-l2a"),))
    patch.setattr(catalog, "PRESETS", {"earth-search": preset})


@trap(3, off=_old_collection)
def earth_search_is_asked_for_the_collection_whose_pixels_are_esas(folder, patch):
    names = ("sentinel-2-l2a", "sentinel-2-c1-l2a")
    items = [item(f"of-{name}", collection=name) for name in names]
    with StacServer(items, collections=names) as server:
        preset = replace(catalog.PRESETS["earth-search"], url=server.url)
        patch.setattr(catalog, "PRESETS", {"earth-search": preset})
        found = catalog.find(
            "earth-search", sensor="sentinel2_l2a", collection="auto", geometry=AREA, periods=PERIODS[:1]
        )
    assert [s.id for s in found] == ["of-sentinel-2-c1-l2a"]


# --- 4: rescaling -----------------------------------------------------------------------------------------------------

_cut = warp.cut


def _rescaled(dataset, index, **more):
    return (_cut(dataset, index, **more) * dataset.scales[0] + dataset.offsets[0]).astype(np.uint16)


@trap(4, off=swap(warp, "cut", _rescaled))
def scale_and_offset_tags_of_a_file_are_never_applied(folder, patch):
    scene = with_files(scene_of("S"), folder, B02=3456)
    with rasterio.open(scene.href("B02").href, "r+") as file:
        file.scales, file.offsets = (0.5,), (-1000.0,)
    assert set(blue(scene).ravel()) == {3456}


@trap(4, off=swap(windows, "_numbers", lambda raw, **_: raw.astype(np.uint16)))
def a_file_that_somebody_rescaled_to_floats_is_refused(folder, patch):
    scene = with_files(scene_of("S"), folder, B02=3456)
    with rasterio.open(scene.href("B02").href) as file:
        profile, pixels = file.profile, file.read() * np.float32(1e-4)
    with rasterio.open(scene.href("B02").href, "w", **profile | {"dtype": "float32"}) as file:
        file.write(pixels)
    with refuses(DataError, "digital numbers must be integers"):
        blue(scene)
