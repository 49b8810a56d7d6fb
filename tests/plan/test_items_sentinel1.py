"""Sentinel-1 items: only what is said to be terrain-corrected linear power of IW with VV and VH becomes a Scene."""

from __future__ import annotations

import pytest
import shapely

from pipeline.errors import DataError
from pipeline.plan.items import UnusableItemError, WrongProductError, scene_from_item

SELF = "https://archive.example/v1/collections/s1/items/x"
NAME = "S1A_IW_GRDH_1SDV_20250311T044231_20250311T044249_058252_073302"


def item(name=f"{NAME}_rtc", **properties):
    """As the Planetary Computer writes them."""
    folder = f"https://data.example/{NAME}_F851/measurement"
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "collection": "sentinel-1-rtc",
        "geometry": shapely.geometry.mapping(shapely.box(18, 29, 20, 31)),
        "properties": {
            "datetime": "2025-03-11T04:42:40.696652Z",
            "platform": "SENTINEL-1A",
            "constellation": "Sentinel-1",
            "sar:instrument_mode": "IW",
            "sar:polarizations": ["VV", "VH"],
            "sar:product_type": "GRD",
            "sat:orbit_state": "descending",
        }
        | properties,
        "assets": {
            pol: {
                "href": f"{folder}/iw-{pol}.rtc.tiff",
                "type": "image/tiff; application=geotiff; profile=cloud-optimized",
                "roles": ["data"],
                "raster:bands": [{"nodata": -32768, "data_type": "float32"}],
            }
            for pol in ("vh", "vv")
        },
        "links": [],
    }


def own(**properties):
    """As people write them for files of their own."""
    changed = item("chip-17_2020-01-03", **{"sar:product_type": None, **properties}) | {"collection": "my-radar"}
    changed["assets"] = {pol: {"href": f"https://data.example/{pol}.tif"} for pol in ("VV", "VH")}
    return changed


def scene(changed):
    return scene_from_item(changed, base=SELF, sign=False, sensor="sentinel1")


def test_an_rtc_item_becomes_a_scene_of_gamma0():
    made = scene(item())
    assert made.sensor == "sentinel1"
    assert [(a.band, a.href.rsplit("/", 1)[-1]) for a in made.assets] == [
        ("vh", "iw-vh.rtc.tiff"),
        ("vv", "iw-vv.rtc.tiff"),
    ]
    assert (made.quantity, made.orbit, made.boa_offset, made.check_offset) == ("gamma0", "descending", 0, False)
    assert made.cloud_pct is None
    assert made.acquisition == "S1A_20250311T044231_073302_gamma0"


@pytest.mark.parametrize(
    ("state", "orbit"), [("ascending", "ascending"), ("DESCENDING", "descending"), (None, ""), ("polar", ""), (3, "")]
)
def test_the_orbit_is_what_the_item_says(state, orbit):
    assert scene(item(**{"sat:orbit_state": state})).orbit == orbit


@pytest.mark.parametrize("quantity", ["gamma0", "sigma0"])
def test_items_of_ones_own_say_what_their_pixels_are(quantity):
    made = scene(own(**{"earthpress:backscatter": quantity}))
    assert made.quantity == quantity
    assert [a.band for a in made.assets] == ["vh", "vv"]
    assert made.acquisition == f"S1A_20250311T044240_{quantity}"


def test_what_the_property_says_goes_before_what_the_product_usually_is():
    assert scene(item(**{"earthpress:backscatter": "sigma0"})).quantity == "sigma0"


def test_sigma0_and_gamma0_of_one_overpass_are_no_versions_of_each_other():
    both = [scene(own(**{"earthpress:backscatter": q})).acquisition for q in ("gamma0", "sigma0")]
    assert both[0] != both[1]


@pytest.mark.parametrize("value", ["beta0", "Gamma0", 1, ["gamma0"]])
def test_an_unknown_quantity_is_refused(value):
    with pytest.raises(DataError, match="earthpress:backscatter is .* must be gamma0 or sigma0"):
        scene(own(**{"earthpress:backscatter": value}))


def test_an_item_that_does_not_say_what_its_pixels_are_is_refused_with_the_way_out():
    with pytest.raises(WrongProductError, match="does not say what its pixels are: set earthpress:backscatter to"):
        scene(own())


@pytest.mark.parametrize("kind", ["RTC", "NRB", "RTC-S1"])
def test_terrain_corrected_product_types_are_gamma0(kind):
    assert scene(own(**{"sar:product_type": kind})).quantity == "gamma0"


def grd():
    changed = item(NAME) | {"collection": "sentinel-1-grd"}
    for pol, asset in changed["assets"].items():
        asset["href"] = f"https://data.example/{NAME}_B8B7/measurement/iw-{pol}.tiff"
    return changed


@pytest.mark.parametrize(("name", "kind"), [(NAME, "GRD"), ("chip-17", "GRD"), (NAME, None)])
def test_grd_is_refused_with_the_reason(name, kind):
    changed = grd() | {"id": name}
    changed["properties"]["sar:product_type"] = kind
    with pytest.raises(WrongProductError, match=r"neither terrain-corrected nor geocoded.*sentinel-1-rtc of"):
        scene(changed)


def test_slc_is_refused_with_the_reason():
    changed = grd() | {"id": NAME.replace("GRDH", "SLC_")}
    changed["properties"]["sar:product_type"] = "SLC"
    with pytest.raises(WrongProductError, match="is Sentinel-1 SLC: neither terrain-corrected"):
        scene(changed)


@pytest.mark.parametrize("mode", ["EW", "SM", "WV"])
def test_other_modes_are_unusable(mode):
    with pytest.raises(UnusableItemError, match=f"has the mode '{mode}', the model needs IW"):
        scene(item(**{"sar:instrument_mode": mode}))


def test_the_name_of_the_product_tells_the_mode_where_the_item_does_not():
    assert scene(item(**{"sar:instrument_mode": None})).acquisition.startswith("S1A_")
    changed = own(**{"earthpress:backscatter": "gamma0", "sar:instrument_mode": None})
    with pytest.raises(UnusableItemError, match="has the mode '', the model needs IW; set sar:instrument_mode"):
        scene(changed)


@pytest.mark.parametrize(
    ("pols", "missing"), [(("vv",), "VH"), (("vh",), "VV"), (("hh", "hv"), "VV and VH"), ((), "VV and VH")]
)
def test_items_without_vv_and_vh_are_unusable(pols, missing):
    changed = item()
    asset = changed["assets"]["vv"]
    changed["assets"] = dict.fromkeys(pols, asset)
    with pytest.raises(UnusableItemError, match=f"has no {missing}: the model needs VV and VH"):
        scene(changed)


@pytest.mark.parametrize(
    "described",
    [
        {"raster:bands": [{"unit": "dB", "data_type": "float32"}]},
        {"bands": [{"name": "VV", "unit": "db"}]},
        {"raster:unit": "decibel"},
        {"unit": " dB "},
    ],
)
def test_pixels_in_db_are_refused_with_the_way_out(described):
    changed = item()
    del changed["assets"]["vv"]["raster:bands"]
    changed["assets"]["vv"] |= described
    with pytest.raises(
        WrongProductError, match=r"asset vv: pixels are in dB, must be linear power.*10 \*\* \(dB / 10\)"
    ):
        scene(changed)


@pytest.mark.parametrize("kind", ["uint16", "int16", "uint8", "cfloat32"])
def test_integers_are_no_power(kind):
    changed = item()
    changed["assets"]["vh"]["raster:bands"] = [{"data_type": kind}]
    with pytest.raises(WrongProductError, match=f"asset vh: pixels are {kind}, must be float32 or float64"):
        scene(changed)


@pytest.mark.parametrize("scaled", [{"scale": 0.0001}, {"offset": -83.0}, {"scale": 2, "offset": 0}])
def test_scaled_pixels_are_refused(scaled):
    changed = item()
    changed["assets"]["vh"]["raster:bands"] = [scaled]
    with pytest.raises(WrongProductError, match="asset vh: pixels are scaled"):
        scene(changed)


@pytest.mark.parametrize("plain", [{"scale": 1, "offset": 0}, {"unit": "1", "data_type": "float64"}, {"unit": None}])
def test_plain_pixels_may_be_described(plain):
    changed = item()
    changed["assets"]["vh"]["raster:bands"] = [plain]
    assert scene(changed).quantity == "gamma0"


def test_keys_that_name_the_quantity_are_understood():
    # stactools-sentinel1 for s3://sentinel-s1-rtc-indigo.
    changed = item("S1A_20200103_17RMJ_ASC", **{"sar:product_type": "RTC", "sentinel:mgrs": "17RMJ"})
    changed["collection"] = "sentinel1-rtc-aws"
    changed["properties"]["sentinel:product_ids"] = [
        "S1A_IW_GRDH_1SDV_20200103T233556_20200103T233621_030643_0382F7_C795"
    ]
    changed["assets"] = {
        "gamma0_vv": {"href": "https://data.example/Gamma0_VV.tif", "roles": ["data", "gamma0"]},
        "gamma0_vh": {"href": "https://data.example/Gamma0_VH.tif", "roles": ["data", "gamma0"]},
        "incidence": {"href": "https://data.example/local_incident_angle.tif", "roles": ["data"]},
    }
    made = scene(changed)
    assert [a.href.rsplit("/", 1)[-1] for a in made.assets] == ["Gamma0_VH.tif", "Gamma0_VV.tif"]
    assert made.acquisition == "S1A_20200103T233556_0382F7_17RMJ_gamma0"


def test_of_normalised_backscatter_linear_gamma0_is_read():
    changed = item(**{"sar:product_type": "NRB"})
    changed["assets"] = {
        f"{pol}-{kind}": {"href": f"https://data.example/{pol}-{kind}.tif"}
        for pol in ("vv", "vh")
        for kind in ("g-log", "g-lin")
    }
    made = scene(changed)
    assert [a.href.rsplit("/", 1)[-1] for a in made.assets] == ["vh-g-lin.tif", "vv-g-lin.tif"]


def test_gamma0_is_read_where_sigma0_lies_beside_it():
    changed = item()
    changed["assets"] = {
        f"{quantity}_{pol}": {"href": f"https://data.example/{quantity}_{pol}.tif"}
        for pol in ("vv", "vh")
        for quantity in ("sigma0", "gamma0")
    }
    made = scene(changed)
    assert made.quantity == "gamma0"
    assert {a.href.rsplit("/", 1)[-1] for a in made.assets} == {"gamma0_vv.tif", "gamma0_vh.tif"}
    changed["properties"]["earthpress:backscatter"] = "sigma0"
    assert {a.href.rsplit("/", 1)[-1] for a in scene(changed).assets} == {"sigma0_vv.tif", "sigma0_vh.tif"}


def test_a_mixture_of_quantities_is_refused():
    changed = item()
    changed["assets"] = {
        "gamma0_vv": {"href": "https://data.example/a.tif"},
        "sigma0_vh": {"href": "https://data.example/b.tif"},
    }
    with pytest.raises(DataError, match="has gamma0, sigma0, but none of them in both VV and VH"):
        scene(changed)


def test_a_property_that_contradicts_the_keys_is_refused():
    changed = item(**{"earthpress:backscatter": "sigma0"})
    changed["assets"] = {f"gamma0_{pol}": {"href": f"https://data.example/{pol}.tif"} for pol in ("vv", "vh")}
    with pytest.raises(DataError, match="earthpress:backscatter is sigma0, but its assets are gamma0; correct one"):
        scene(changed)


def test_only_db_files_are_refused_as_db():
    changed = item(**{"sar:product_type": "NRB"})
    changed["assets"] = {f"{pol}-g-log": {"href": f"https://data.example/{pol}.tif"} for pol in ("vv", "vh")}
    with pytest.raises(WrongProductError, match="pixels are in dB"):
        scene(changed)


def test_an_opera_burst_is_found_by_its_names():
    name = "OPERA_L2_RTC-S1_T009-019294-IW2_20240123T084748Z_20240123T162136Z_S1A_30_v1.0"
    changed = item(name, **{"sar:product_type": None, "sar:instrument_mode": None, "platform": None})
    changed["collection"] = None
    changed["assets"] = {
        str(n): {"href": f"https://data.example/{name}_{pol}.tif"} for n, pol in enumerate(("VH", "VV", "mask"))
    }
    made = scene(changed)
    assert [a.href.rsplit("_", 1)[-1] for a in made.assets] == ["VH.tif", "VV.tif"]
    assert made.quantity == "gamma0"
    assert made.acquisition == "S1A_20240123T084748_T009-019294-IW2_gamma0"


def test_polarisations_of_one_file_are_found_by_their_place():
    changed = own(**{"earthpress:backscatter": "gamma0"})
    changed["assets"] = {
        "stack": {"href": "https://data.example/all.tif", "bands": [{"name": "angle"}, {"name": "VH"}, {"name": "VV"}]}
    }
    assert [(a.band, a.band_index) for a in scene(changed).assets] == [("vh", 2), ("vv", 3)]


def test_a_newer_processing_has_the_later_version():
    old, new = (scene(item(**{"s1:processing_datetime": f"2025-03-{day}T00:00:00Z"})).version for day in ("11", "12"))
    assert old.partition("@")[0] == new.partition("@")[0] == "sentinel-1-rtc"
    assert old < new


def test_an_item_of_another_mission_is_unusable():
    with pytest.raises(UnusableItemError, match="is a Sentinel-2 item, Sentinel-1 is asked for"):
        scene(item(platform="sentinel-2a"))
