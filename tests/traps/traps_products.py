"""Traps of products: what Sentinel-1 and Landsat items may be, and what of them is refused with which reason."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import numpy as np

from pipeline.encode import assemble, bands
from pipeline.errors import DataError, InvalidInputError
from pipeline.plan import catalog, landsat_items, select, sentinel1_items
from pipeline.plan.items import UnusableItemError, WrongProductError, scene_from_item
from pipeline.plan.select import Rule, Selector
from pipeline.read import access, allow, decibels
from pipeline.read.rules import ReadRule
from pipeline.read.windows import read_band
from tests.plan.catalog_items import AREA, PERIODS
from tests.plan.test_items_landsat import NAME as LANDSAT_NAME
from tests.plan.test_items_landsat import item as landsat_item
from tests.plan.test_items_sentinel1 import item as radar_item
from tests.read.files import make_landsat, write_cog
from tests.servers.stac import StacServer
from tests.traps.grounds import LOCAL, REGION, SELF, SMALL, radar, stack_of
from tests.traps.traps import refuses, swap, trap
from tests.traps.traps_scenes import WHOLE, chosen
from tests.traps.traps_scenes import scene as s2_scene

RADAR = Rule(sensor="sentinel1", composite="first_valid")


def s1(found):
    return scene_from_item(found, base=SELF, sign=False, sensor="sentinel1")


def landsat(found):
    return scene_from_item(found, base=SELF, sign=False, sensor="landsat")


# --- 9: Sentinel-1 ----------------------------------------------------------------------------------------------------


@trap(9, off=swap(sentinel1_items, "_require_power", lambda *_: None))
def an_item_whose_pixels_are_decibels_already_is_refused(folder, patch):
    found = radar_item()
    for asset in found["assets"].values():
        asset["raster:bands"][0]["unit"] = "dB"
    with refuses(WrongProductError, "pixels are in dB, must be linear power"):
        s1(found)


@trap(9, off=swap(decibels, "DECIBELS_BELOW", -1e9))
def a_file_that_holds_decibels_already_is_refused(folder, patch):
    power = np.random.default_rng(0).uniform(-20, -5, SMALL.shape).astype(np.float32)
    path = write_cog(folder / "vv.tif", power, box=SMALL, nodata=-32768, driver="GTiff")
    with refuses(DataError, "these are decibels, linear power is wanted"):
        read_band(radar(path), "vv", box=SMALL, access=LOCAL)


@trap(9, off=swap(sentinel1_items, "_usual_quantity", lambda found: "gamma0"))
def ground_range_detected_products_are_refused(folder, patch):
    found = radar_item() | {"collection": "sentinel-1-grd"}
    for pol, asset in found["assets"].items():
        asset["href"] = f"https://data.example/iw-{pol}.tiff"
    with refuses(WrongProductError, "is Sentinel-1 GRD", "terrain-corrected"):
        s1(found)


@trap(9, off=swap(sentinel1_items, "_require_mode", lambda found: None))
def other_modes_than_iw_are_left_out(folder, patch):
    with refuses(UnusableItemError, "the model needs IW"):
        s1(radar_item(**{"sar:instrument_mode": "EW"}))


@trap(9, off=swap(sentinel1_items, "BANDS", ("vv",)))
def scenes_without_vh_are_left_out(folder, patch):
    found = radar_item()
    del found["assets"]["vh"]
    with refuses(UnusableItemError, "has no VH"):
        s1(found)


def _without_reasons(patch):
    kept = {
        name: replace(preset, refused=(), collections=(*preset.collections, *_WRONG))
        for name, preset in catalog.PRESETS.items()
    }
    patch.setattr(catalog, "PRESETS", kept)


_WRONG = (("sentinel1", "sentinel-1-grd"), ("landsat", "landsat-c2-l2"))


def is_refused_unasked(name, sensor, *said, patch):
    """The preset is refused with the reason, and its server gets no request."""
    with StacServer([], collections=[collection for _, collection in _WRONG]) as server:
        patch.setattr(catalog, "PRESETS", {name: replace(catalog.PRESETS[name], url=server.url)})
        with refuses(InvalidInputError, *said):
            catalog.find(name, sensor=sensor, collection="auto", geometry=AREA, periods=PERIODS[:1])
        assert server.log == []


@trap(9, off=_without_reasons)
def a_catalogue_that_has_radar_as_grd_only_is_not_asked_for_it(folder, patch):
    is_refused_unasked("earth-search", "sentinel1", "Sentinel-1 GRD only", "inputs.sentinel1.catalog", patch=patch)


def three_overpasses():
    """As scenes of the cell: two ascending, of which one is newer, and a descending one in between."""
    made = s2_scene("x", shape=WHOLE)
    passes = (("b", 4, "ascending"), ("c", 3, "descending"), ("a", 2, "ascending"))
    return [
        replace(
            made, id=name, sensor="sentinel1", orbit=orbit, cloud_pct=cloud, acquired=made.acquired.replace(day=day)
        )
        for (name, day, orbit), cloud in zip(passes, (90.0, None, 0.0), strict=True)
    ]


_passes = select._passes


@trap(9, off=swap(select, "_passes", lambda scene, rule: _passes(scene, replace(rule, orbit="any"))))
def one_direction_of_flight_may_be_asked_for(folder, patch):
    scenes = three_overpasses()
    assert [chosen(*scenes, rule=replace(RADAR, orbit=o))[0] for o in ("any", "ascending", "descending")] == [
        ("b", "c", "a"),
        ("b", "a"),
        ("c",),
    ]


def _as_given(self, rule, zone):
    return np.arange(len(self._scenes))


@trap(9, off=swap(Selector, "_order", _as_given))
def the_order_of_radar_scenes_is_not_the_answers(folder, patch):
    scenes = three_overpasses()
    twin = replace(scenes[0], id="d")
    for given in ([twin, *scenes], [*scenes[::-1], twin]):
        assert chosen(*given, rule=RADAR) == [("b", "d", "c", "a")]


# --- 10: Landsat ------------------------------------------------------------------------------------------------------


@trap(10, off=swap(landsat_items, "_require_level1", lambda *_: None))
def landsat_level_2_is_refused_with_the_reason(folder, patch):
    with refuses(WrongProductError, "Landsat Level-2", "without B8, B9 and B11", "trained on Level-1"):
        landsat(landsat_item(LANDSAT_NAME.replace("L1TP", "L2SP")))


@trap(10, off=_without_reasons)
def a_catalogue_that_has_landsat_level_2_only_is_not_asked_for_it(folder, patch):
    is_refused_unasked(
        "planetary-computer", "landsat", "Level-2 only", "inputs.landsat.requester_pays=true", patch=patch
    )


@trap(10, off=swap(landsat_items, "BANDS", landsat_items.BANDS[1:9]))
def a_landsat_scene_that_lacks_a_band_is_left_out(folder, patch):
    found = landsat_item()
    del found["assets"]["pan"], found["assets"]["lwir12"]
    with refuses(UnusableItemError, "no asset for B8, B11"):
        landsat(found)


def _sorted_bands(patch):
    order = tuple(sorted(bands.DEFAULT_BANDS["landsat"], key=lambda name: int(name[1:])))
    patch.setattr(bands, "DEFAULT_BANDS", bands.DEFAULT_BANDS | {"landsat": order})


@trap(10, off=_sorted_bands)
def the_model_gets_b8_first(folder, patch):
    made = make_landsat(folder, "L", region=REGION, seed=1)
    stack = stack_of(made.scene, rule=ReadRule(sensor="landsat", composite="first_valid"))
    wanted = assemble.Input(sensor="landsat", bands=bands.DEFAULT_BANDS["landsat"])
    got = assemble.normalised(stack, REGION, wanted=wanted)[0]
    for channel, name in enumerate(("B8", "B1", "B2", "B3", "B4", "B5", "B6", "B7", "B9", "B10", "B11")):
        scale, shift = bands.scale_offset(name, sensor="landsat")
        np.testing.assert_allclose(got[channel].numpy(), made.pixels[name] * scale + shift, atol=1e-4)


@trap(10, off=swap(landsat_items, "_with_s3", lambda asset: asset))
def files_behind_the_usgs_login_are_read_from_its_bucket(folder, patch):
    found = landsat_item()
    for asset in found["assets"].values():
        asset.pop("alternate", None)
    assert {a.href.partition("/collection02")[0] for a in landsat(found).assets} == {"s3://usgs-landsat"}


@trap(10, off=swap(allow, "PAID_BUCKETS", ()))
def nobody_pays_for_a_bucket_unasked(folder, patch):
    href = landsat(landsat_item()).href("B8").href
    with refuses(InvalidInputError, "charged to the reader's AWS account", "inputs.landsat.requester_pays"):
        access.Access().check(href)
    assert access.Access(requester_pays=True).check(href) == "s3"


_environment = access.environment


@trap(10, off=swap(access, "environment", lambda settings, **more: _environment(settings, **more | {"pays": False})))
def who_agreed_to_pay_tells_the_bucket_so(folder, patch):
    patch.delenv("AWS_REQUEST_PAYER", raising=False)
    asked = []
    patch.setattr(access, "open_file", lambda path: asked.append((path, access.rasterio.env.getenv())) or 1 / 0)
    asset = landsat(landsat_item()).href("B8")
    with suppress(ZeroDivisionError):
        access.Access(requester_pays=True).read(asset, lambda dataset: None, sign=False)
    ((path, options),) = asked
    assert path.startswith("/vsis3/usgs-landsat/")
    assert options.get("AWS_REQUEST_PAYER") == "requester"
