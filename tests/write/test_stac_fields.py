"""Fields of the extensions: what a GeoTIFF, a calibration and a model say, read back by pystac's classes."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pystac
import pytest
from pystac.extensions.classification import ClassificationExtension
from pystac.extensions.mlm import MLMExtension
from pystac.extensions.projection import ProjectionExtension
from pystac.extensions.raster import RasterExtension

from pipeline.errors import OutputError
from pipeline.types import Box, Calibration, GridSpec
from pipeline.write import geotiff
from pipeline.write import stac_fields as extensions
from pipeline.write.attributes import METHODS
from pipeline.write.stac import CatalogContent, ItemContent, Made, write_catalog
from pipeline.write.stac_model import SensorInput, model_item

BOX = Box(zone=31, res_m=10, row=-500_096, col=50_000, height=96, width=64)
SOUTH = Box(zone=19, res_m=40, row=80_000, col=12_000, height=32, width=48)
CLASSES = ((0, "Bare soil", "#884400"), (3, "Forêt", "#00aa00"), (7, "森", "#0000ff"))
SPAN = (datetime(2024, 3, 1, tzinfo=UTC), datetime(2024, 9, 1, tzinfo=UTC))
GRID = GridSpec(patch_px=4, window_px=64, overlap_px=24, tile_px=256)
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def class_map(tmp_path):
    """(path, values): a quarter without data."""
    values = np.full(BOX.shape, 3, np.uint8)
    values[:, :16] = 255
    values[:, 40:] = 0
    geotiff.write_cog(
        tmp_path / "crops.tif",
        values,
        box=BOX,
        colours=[(value, colour) for value, _, colour in CLASSES],
        class_names=[(value, name) for value, name, _ in CLASSES],
        tags=[
            (geotiff.CLASSES_TAG, json.dumps(CLASSES)),
            ("EARTHPRESS_PROVENANCE", json.dumps({"probe": "abc"})),
        ],
    )
    return tmp_path / "crops.tif"


def asset_of(tmp_path, path, raster):
    """The asset as pystac reads it back from a written catalogue."""
    item = ItemContent(
        id="x",
        box=raster.box,
        start=SPAN[0],
        end=SPAN[1],
        assets=(Made(key="map", path=str(path), media_type="image/tiff", roles=("data",), fields=raster.fields),),
        extensions=raster.extensions,
    )
    written = write_catalog(
        tmp_path / "stac",
        CatalogContent(id="c", title="c", description="c", start=SPAN[0], end=SPAN[1], items=(item,)),
    )
    (found,) = pystac.Collection.from_file(written).get_items()
    return found.assets["map"]


def test_a_class_map_says_its_classes_projection_and_nodata(tmp_path, class_map):
    asset = asset_of(tmp_path, class_map, extensions.raster_of(class_map))
    (band,) = RasterExtension.ext(asset).bands
    assert (band.nodata, band.data_type, band.sampling, band.spatial_resolution) == (255, "uint8", "area", 10)
    assert (band.statistics.minimum, band.statistics.maximum, band.statistics.valid_percent) == (0, 3, 75)
    assert band.statistics.mean is None
    place = ProjectionExtension.ext(asset)
    assert (place.code, place.shape) == ("EPSG:32631", [96, 64])
    assert place.transform == list(BOX.transform)[:6]
    classes = ClassificationExtension.ext(asset).classes
    assert [(c.value, c.name, c.title, c.color_hint) for c in classes] == [
        (0, "bare_soil", "Bare soil", "884400"),
        (3, "foret", "Forêt", "00AA00"),
        (7, "class_7", "森", "0000FF"),
    ]
    assert asset.extra_fields["bands"][0]["name"] == "class"


def test_class_names_are_what_the_extension_allows_and_differ():
    found = extensions.class_objects([(1, "a b", "#000000"), (2, "A-b!", "#000000"), (3, "a  b", "#000000")])
    names = [one["name"] for one in found]
    assert len(set(names)) == 3
    assert all(re.fullmatch(r"[0-9A-Za-z_-]+", name) for name in names)
    assert all(re.fullmatch("[0-9A-F]{6}", one["color_hint"]) for one in found)


def test_further_bands_have_their_own_names_and_the_classes_stay_with_the_first(tmp_path, class_map):
    layer = np.arange(96 * 64, dtype=np.uint16).reshape(96, 64) % 101
    values, _, _ = geotiff.read_classes(class_map)
    geotiff.write_classes(
        tmp_path / "two.tif",
        lambda rows, cols: [values[rows, cols], layer.astype(np.uint8)[rows, cols]],
        box=BOX,
        colours=[(value, colour) for value, _, colour in CLASSES],
        class_names=[(value, name) for value, name, _ in CLASSES],
        tags=[(geotiff.CLASSES_TAG, json.dumps(CLASSES))],
        further=[geotiff.Further(name="confidence", title="How far ahead", units="%")],
    )
    asset = asset_of(tmp_path, tmp_path / "two.tif", extensions.raster_of(tmp_path / "two.tif"))
    first, second = RasterExtension.ext(asset).bands
    assert [band["name"] for band in asset.extra_fields["bands"]] == ["class", "confidence"]
    assert (second.unit, second.statistics.maximum, second.statistics.mean) == ("%", 100, pytest.approx(50, abs=1))
    assert [c.value for c in ClassificationExtension.ext(first).classes] == [0, 3, 7]
    assert "classification:classes" not in second.properties
    assert ClassificationExtension.ext(asset).classes is None


def test_a_map_of_numbers_in_the_south_says_its_unit_and_nan(tmp_path):
    values = np.linspace(1, 3, SOUTH.height * SOUTH.width, dtype=np.float32).reshape(SOUTH.shape)
    values[0] = np.nan
    path = tmp_path / "biomass.tif"
    geotiff.write_values(path, values, box=SOUTH, units="t/ha", title="Biomass", valid_range=(0.0, 5.0))
    raster = extensions.raster_of(path)
    asset = asset_of(tmp_path, path, raster)
    (band,) = RasterExtension.ext(asset).bands
    assert (band.nodata, band.unit, band.data_type) == ("nan", "t/ha", "float32")
    assert band.statistics.maximum == pytest.approx(3)
    assert band.statistics.valid_percent == pytest.approx(100 * 31 / 32)
    assert band.properties["earthpress:valid_range"] == [0, 5]
    assert ProjectionExtension.ext(asset).code == "EPSG:32719"
    assert raster.box == SOUTH
    assert extensions.CLASSIFICATION not in raster.extensions


def test_a_file_without_a_single_valid_pixel_has_statistics_without_nan(tmp_path):
    geotiff.write_cog(tmp_path / "empty.tif", np.full(BOX.shape, 255, np.uint8), box=BOX)
    fields = dict(extensions.raster_of(tmp_path / "empty.tif").fields)
    assert fields["raster:bands"][0]["statistics"] == {"valid_percent": 0}


def test_statistics_of_a_large_file_say_that_they_come_from_an_overview(tmp_path, monkeypatch):
    monkeypatch.setattr(extensions, "STATISTICS_PX", 32)
    values = np.full(BOX.shape, 3, np.uint8)
    geotiff.write_cog(tmp_path / "large.tif", values, box=BOX)
    (band,) = dict(extensions.raster_of(tmp_path / "large.tif").fields)["raster:bands"]
    assert band["earthpress:statistics_factor"] == 3
    assert band["statistics"]["valid_percent"] == 100


def test_something_that_is_no_geotiff_is_refused(tmp_path):
    (tmp_path / "no.tif").write_bytes(b"no")
    with pytest.raises(OutputError, match=r"no\.tif is not a GeoTIFF"):
        extensions.raster_of(tmp_path / "no.tif")


def test_a_picture_in_another_plane_is_described_in_it(tmp_path):
    import rasterio

    for name, crs in (("web.tif", "EPSG:3857"), ("own.tif", "+proj=laea +lat_0=50 +lon_0=9")):
        profile = {"driver": "GTiff", "width": 4, "height": 2, "count": 1, "dtype": "uint8", "crs": crs}
        with rasterio.open(tmp_path / name, "w", transform=rasterio.Affine(20, 0, 100, 0, -20, 400), **profile):
            pass
    web, own = (dict(extensions.picture_fields(tmp_path / name)) for name in ("web.tif", "own.tif"))
    assert (web["proj:code"], web["proj:shape"], web["gsd"]) == ("EPSG:3857", [2, 4], 20)
    assert web["proj:bbox"] == [100, 360, 180, 400]
    assert own["proj:code"] is None
    assert "LAMBERT" in own["proj:wkt2"].upper()


def calibration(**fields):
    base = {"scale": (0.1, 0.2), "provisional": False, "source": "x", "model_sha256": "ab" * 32, "patch_px": 4}
    return Calibration(**(base | fields))


def test_a_linear_calibration_gives_scale_and_offset_lists():
    found = extensions.quantization(calibration(), about="./x")
    assert (found["scale"], found["offset"]) == ([0.1, 0.2], [0.0, 0.0])
    assert (found["method"], found["original_dtype"], found["quantized_dtype"]) == (
        "linear_per_dimension",
        "float32",
        "int8",
    )
    assert found.keys() <= {"method", "original_dtype", "quantized_dtype", "scale", "offset", "link"}
    assert found["link"].keys() >= {"rel", "href"}


@pytest.mark.parametrize(
    ("method", "nodata", "dtype"),
    [("power", -128, "int8"), ("per_pixel", -128, "int8"), ("float16", "nan", "float16")],
)
def test_other_methods_have_a_name_and_no_scale(method, nodata, dtype):
    found = calibration(method=method, dims=2, scale=())
    described = extensions.quantization(found, about="./x")
    assert described["method"] == METHODS[method] != ""
    assert "scale" not in described
    assert extensions.data_fields(found) == {"data_type": dtype, "nodata": nodata}


def test_float32_is_not_quantised():
    assert extensions.quantization(calibration(method="float32", dims=2, scale=()), about="./x") is None


def test_a_store_of_tokens_has_a_chip_layout_and_one_of_pixels_has_none():
    pixels = extensions.embedding_fields(calibration(), GRID, temporal="6 periods of 30 days")
    assert (pixels["emb:type"], pixels["emb:dimensions"], pixels["data_type"], pixels["gsd"]) == (
        "pixel",
        2,
        "int8",
        10,
    )
    assert "emb:chip_layout" not in pixels
    tokens = extensions.embedding_fields(calibration(), replace(GRID, token_px=4), temporal="x")
    assert tokens["emb:chip_layout"] == {"layout_type": "regular_grid", "chip_size": [4, 4], "stride": [4, 4]}
    assert tokens["gsd"] == 40


INPUTS = (SensorInput(name="sentinel2_l2a", bands=(("B02", -100.0, 5000.0), ("B03", -50.0, 4000.0))),)


def model_of(spec, tmp_path, **fields):
    """The model item as pystac reads it back."""
    item = model_item(
        replace(spec.model, **fields), grid=spec.grid, numerics=spec.numerics, inputs=INPUTS, periods=6, span=SPAN
    )
    place = ItemContent(id="x", box=BOX, start=SPAN[0], end=SPAN[1], assets=())
    write_catalog(
        tmp_path / "stac",
        CatalogContent(id="c", title="c", description="c", start=SPAN[0], end=SPAN[1], items=(place,), model=item),
    )
    return pystac.Item.from_file(str(tmp_path / "stac" / f"{item.id}.json"))


def test_the_model_item_has_what_the_extension_requires(spec, tmp_path):
    item = model_of(spec, tmp_path)
    model = MLMExtension.ext(item)
    assert re.fullmatch(r"[a-zA-Z][a-zA-Z0-9_.\-\s]+[a-zA-Z0-9]", model.mlm_name)
    assert model.architecture == "Vision Transformer"
    assert model.tasks == ["similarity-search"]
    assert (model.framework, model.framework_version) == ("PyTorch", "2.13.0")
    assert (model.total_parameters, model.batch_size_suggestion) == (10, 4)
    (taken,) = model.input
    assert [band.name if hasattr(band, "name") else band for band in taken.bands] == ["B02", "B03"]
    assert (taken.input.shape, taken.input.dim_order) == (
        [4, 64, 64, 6, 2],
        ["batch", "height", "width", "time", "channel"],
    )
    # pystac-ext-mlm 1.4.1 takes the list, which the schema asks for, for a single object
    assert item.properties["mlm:input"][0]["value_scaling"] == [
        {"type": "min-max", "minimum": -100, "maximum": 5000},
        {"type": "min-max", "minimum": -50, "maximum": 4000},
    ]
    (given,) = model.output
    assert given.result.shape == [4, 16, 16, 4]
    weights = item.assets["weights"]
    assert "mlm:model" in weights.roles
    assert weights.extra_fields["mlm:artifact_type"]
    assert {band["name"] for band in item.properties["bands"]} == {"B02", "B03"}
    assert item.geometry is None


def test_random_weights_cannot_be_mistaken(spec, tmp_path):
    item = model_of(spec, tmp_path)
    assert item.properties["mlm:pretrained"] is False
    assert item.properties["mlm:pretrained_source"] is None
    texts = (
        item.properties["title"],
        item.properties["mlm:name"],
        item.properties["description"],
        item.assets["weights"].title,
    )
    assert all("UNTRAINED" in text for text in texts)
    assert item.assets["weights"].href == f"urn:olmoearth:v1.2:nano:sha256:{'ab' * 32}"


def test_weights_of_the_hub_are_linked_by_their_commit(spec, tmp_path):
    item = model_of(spec, tmp_path, name=f"allenai/OlmoEarth-v1_2-Nano@{COMMIT}", trained=True, licence="apache-2.0")
    assert item.assets["weights"].href == f"https://huggingface.co/allenai/OlmoEarth-v1_2-Nano/tree/{COMMIT}"
    assert item.assets["weights"].extra_fields["file:checksum"] == f"1220{'ab' * 32}"
    assert item.properties["license"] == "Apache-2.0"
    assert item.properties["mlm:pretrained"] is True
    assert "UNTRAINED" not in json.dumps(item.to_dict())


def test_weights_of_a_folder_are_named_by_their_hash_alone(spec, tmp_path):
    item = model_of(spec, tmp_path, name="/home/somebody/models/olmo", trained=True)
    assert item.assets["weights"].href.startswith("urn:olmoearth:")
    assert "somebody" not in json.dumps(item.to_dict())
