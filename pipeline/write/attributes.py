"""The metadata text of a store: CF, the proj/spatial/geoemb Zarr conventions, and earthpress' own provenance.

Pure. Both CF (``grid_mapping`` + x/y cell centres) and proj/spatial are written, because no reader of today understands
both: xarray + rioxarray and titiler need CF, GDAL >= 3.13 and the GeoZarr viewers look for the conventions.
``geoemb`` is written as its tag v1 says.
Sources: CF-1.11 sections 4, 5.6 and 7.1; https://github.com/zarr-conventions (proj, spatial; matched by UUID);
https://github.com/geo-embeddings/embeddings-zarr-convention.
"""

from __future__ import annotations

import base64
import importlib.metadata
import math
import struct
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pipeline.codes import DEQUANTISE, RECONSTRUCT
from pipeline.types import COLOUR_M, NODATA_CODE, Reason
from pipeline.write import quality, true_colour
from pipeline.write.layout import FORMAT_VERSION, MAP_FILL, PIXEL_SCALE, identity

if TYPE_CHECKING:
    from pipeline.types import Box
    from pipeline.write.layout import MapLayer, StoreSpec

UNTRAINED_WARNING = (
    "UNTRAINED MODEL: these embeddings come from random weights. They show that the software works and mean nothing "
    "about the ground."
)
PROVISIONAL_WARNING = (
    "PROVISIONAL CALIBRATION: the int8 scales were derived from the weights and a packaged simulated sample, not from "
    "a calibration file. Do not mix these codes with those of another calibration."
)
NAN_FILL = base64.standard_b64encode(struct.pack("<d", math.nan)).decode()
"""``_FillValue`` of float arrays as xarray writes it into Zarr v3 (``xarray.backends.zarr.FillValueCoder``); it changes
no value, and rioxarray then knows that NaN is nodata."""
_TAG = "refs/tags/v0.1"
_CONVENTIONS: tuple[dict[str, str], ...] = (
    {
        "name": "proj",
        "uuid": "f17cb550-5864-4468-aeb7-f3180cfb622f",
        "schema_url": f"https://raw.githubusercontent.com/zarr-conventions/proj/{_TAG}/schema.json",
        "spec_url": "https://github.com/zarr-conventions/proj/blob/v0.1/README.md",
        "description": "Coordinate reference system information for geospatial data",
    },
    {
        "name": "spatial",
        "uuid": "689b58e2-cf7b-45e0-9fff-9cfc0883d6b4",
        "schema_url": f"https://raw.githubusercontent.com/zarr-conventions/spatial/{_TAG}/schema.json",
        "spec_url": "https://github.com/zarr-conventions/spatial/blob/v0.1/README.md",
        "description": "Spatial coordinate information",
    },
)
_GEOEMB: dict[str, str] = {
    "name": "geoemb:",
    "uuid": "61c12cc5-0e28-4056-999a-480cf3fb7e4c",
    "schema_url": "https://raw.githubusercontent.com/geo-embeddings/embeddings-zarr-convention/refs/tags/v1/schema.json",
    "spec_url": "https://github.com/geo-embeddings/embeddings-zarr-convention/blob/v1/README.md",
    "description": "Geoembeddings convention for geospatial embedding arrays with model provenance",
}


METHODS = {
    "linear": "linear_per_dimension",
    "pca": "pca_linear",
    "power": "signed_power_unit_length",
    "power_raw": "signed_power",
    "per_pixel": "per_pixel_scale",
    "float16": "cast",
    "float32": "",
}
"""``quantization.method`` of the convention and of the STAC catalogue; "": not quantised."""
SCALED = ("linear", "pca")
"""Methods with a scale of each band: the coordinate ``scale``."""


def root_attributes(spec: StoreSpec) -> dict[str, Any]:
    """Attributes of the root group: they do not depend on the extents, so growing never rewrites them."""
    return {
        "Conventions": "CF-1.11",
        "title": spec.name,
        "zarr_conventions": [_GEOEMB],
        **_geoemb(spec),
        **_labels(spec),
        "earthpress": _provenance(spec),
        **dict(spec.attrs),
    }


def zone_attributes(spec: StoreSpec, extent: Box) -> dict[str, Any]:
    """Attributes of a zone group; ``earthpress.extent`` is the box under its arrays, in their pixels."""
    own = _provenance(spec) | {
        "zone": extent.zone,
        "extent": {"row": extent.row, "col": extent.col, "height": extent.height, "width": extent.width},
    }
    return {
        "Conventions": "CF-1.11",
        "title": f"{spec.name}, UTM zone {extent.zone}",
        "zarr_conventions": [*_CONVENTIONS, _GEOEMB],
        **_spatial(extent),
        **_geoemb(spec),
        **_labels(spec),
        "earthpress": own,
    }


def array_attributes(name: str, spec: StoreSpec, extent: Box) -> dict[str, Any]:
    """Attributes of one pixel array. There is no ``_FillValue``: xarray would turn the codes into float32."""
    common = {"grid_mapping": "spatial_ref", "zarr_conventions": list(_CONVENTIONS), **_spatial(extent)}
    if name.startswith(quality.PREFIX):
        blocks = _spatial(extent.cover(quality.BLOCK_M), dims=quality.SPACE)
        mapping = {"grid_mapping": quality.GRID_MAPPING, "coordinates": "period_start period_end"}
        return quality.attributes(name) | common | blocks | mapping
    if name == true_colour.NAME:
        pixels = _spatial(extent.cover(COLOUR_M), dims=true_colour.SPACE)
        mapping = {"grid_mapping": true_colour.GRID_MAPPING, "coordinates": "period_start period_end"}
        return true_colour.attributes() | common | pixels | mapping
    if name == "embeddings":
        own = {**_embedding_attributes(spec), **_geoemb(spec), **_labels(spec)}
    elif name == PIXEL_SCALE:
        own = {"long_name": "value of one code step of the pixel", "units": "1", "_FillValue": NAN_FILL}
    elif name == "reason":
        own = {
            "long_name": "why a pixel has no embedding",
            "flag_values": [int(r) for r in Reason],
            "flag_meanings": " ".join(r.name.lower() for r in Reason),
        }
    elif name == "n_obs":
        where = " in any 10 m pixel of the token" if spec.grid.token_px > 1 else ""
        own = {"long_name": f"periods with a valid observation{where}", "units": "1"}
    else:
        layer = next(m for m in spec.maps if m.array == name)
        own = {**_map_attributes(layer), **_labels(spec)}
    return {**own, **common}


def _embedding_attributes(spec: StoreSpec) -> dict[str, Any]:
    calibration = spec.calibration
    what = "scores of principal components" if calibration.method == "pca" else "embedding"
    own: dict[str, Any] = {"units": "1", "quantiser": calibration.quantiser}
    if calibration.dtype == "int8":
        own |= {"long_name": f"{what}, int8 codes", "nodata": NODATA_CODE, "valid_min": -127, "valid_max": 127}
    else:
        own |= {"long_name": what, "_FillValue": NAN_FILL}
    if calibration.method in SCALED:
        own["coordinates"] = "scale"
    own["dequantise"] = DEQUANTISE[calibration.method]
    return own | ({"reconstruct": RECONSTRUCT} if calibration.method == "pca" else {})


def crs_attributes(extent: Box) -> dict[str, Any]:
    """Attributes of a grid mapping: CF with WKT, and GDAL's transform of the north-west corner of ``extent``."""
    from pyproj import CRS  # noqa: PLC0415

    x_min, _, _, y_max = extent.bounds_m
    attrs: dict[str, Any] = dict(CRS.from_epsg(extent.epsg).to_cf())
    return attrs | {"GeoTransform": f"{x_min:.1f} {extent.res_m}.0 0.0 {y_max:.1f} 0.0 -{extent.res_m}.0"}


def _provenance(spec: StoreSpec) -> dict[str, Any]:
    calibration = spec.calibration
    return {
        "format": FORMAT_VERSION,
        "software": software(),
        "recipe": spec.recipe,
        "trained": spec.model.trained,
        "model": asdict(spec.model),
        "calibration": {
            "hash": calibration.hash,
            "quantiser": calibration.quantiser,
            "method": calibration.method,
            "provisional": calibration.provisional,
            "source": calibration.source,
            "model_sha256": calibration.model_sha256,
            "patch_px": calibration.patch_px,
        },
        "numerics": asdict(spec.numerics),
        "grid": asdict(spec.grid),
        "shard_px": spec.shard_px,
        "pixel_m": spec.grid.pixel_m,
        "token_px": spec.grid.token_px,
        "identity": identity(spec),
    }


def _labels(spec: StoreSpec) -> dict[str, Any]:
    warnings = []
    if not spec.model.trained:
        warnings.append(UNTRAINED_WARNING)
    if spec.calibration.provisional:
        warnings.append(PROVISIONAL_WARNING)
    labels: dict[str, Any] = {"trained": spec.model.trained}
    return labels | ({"warning": " ".join(warnings)} if warnings else {})


def _geoemb(spec: StoreSpec) -> dict[str, Any]:
    model = spec.model
    # The convention calls a vector of a region a chip and wants its size in pixels of the imagery: that is a token. It
    # is for groups only: the array of vectors says the same, for who opens nothing else, and does not claim it.
    side = spec.grid.token_px
    layout: dict[str, Any] = {"geoemb:type": "pixel"}
    if side > 1:
        chips = {"layout_type": "regular_grid", "chip_size": [side, side], "stride": [side, side]}
        layout = {"geoemb:type": "chip", "geoemb:chip_layout": chips}
    return {
        **layout,
        "geoemb:dimensions": spec.dims,
        # A folder name would say something about a machine and nothing about the model; the hash identifies it.
        "geoemb:model": f"urn:olmoearth:{model.version}:{model.size}:sha256:{model.sha256}",
        "geoemb:source_data": list(spec.source_data) or ["unknown"],
        "geoemb:data_type": spec.calibration.dtype,
        "geoemb:gsd": spec.grid.pixel_m,
        "geoemb:spatial_layout": "utm_zones",
        "geoemb:build_version": software(),
        **_quantization(spec),
    }


def software() -> str:
    """Name and version of what makes the store."""
    try:
        return f"earthpress {importlib.metadata.version('earthpress')}"
    except importlib.metadata.PackageNotFoundError:
        return "earthpress"


def _quantization(spec: StoreSpec) -> dict[str, Any]:
    """In the convention's words; it has none for a scale per dimension, which ``dequantise`` of the array says."""
    calibration = spec.calibration
    method = METHODS[calibration.method]
    if not method:
        return {}
    own: dict[str, Any] = {"method": method, "original_dtype": "float32", "quantized_dtype": calibration.dtype}
    if calibration.method == "pca":
        own["scale"] = {"type": "scalar", "scale": calibration.scale[0]}
    if calibration.method == "per_pixel":
        own["scale"] = {"type": "array", "array_name": PIXEL_SCALE, "nodata": "NaN"}
    return {"geoemb:quantization": own}


def _spatial(extent: Box, *, dims: tuple[str, str] = ("y", "x")) -> dict[str, Any]:
    x_min, y_min, x_max, y_max = extent.bounds_m
    code = f"EPSG:{extent.epsg}"
    return {
        "proj:code": code,
        # Not part of the convention any more; readers of its first drafts look for it.
        "proj:epsg": extent.epsg,
        "spatial:dimensions": list(dims),
        "spatial:shape": list(extent.shape),
        "spatial:transform": [float(extent.res_m), 0.0, x_min, 0.0, -float(extent.res_m), y_max],
        "spatial:bbox": [x_min, y_min, x_max, y_max],
        "spatial:registration": "pixel",
    }


def _map_attributes(layer: MapLayer) -> dict[str, Any]:
    attrs: dict[str, Any] = {"long_name": layer.title or layer.name}
    if layer.dtype == "uint8":  # NaN says itself, and JSON has no word for it
        attrs["nodata"] = MAP_FILL
    else:
        attrs["_FillValue"] = NAN_FILL
    if layer.units:
        attrs["units"] = layer.units
    if layer.fitted_range:  # not CF's valid_range: readers would mask what lies outside
        attrs["fitted_range"] = list(layer.fitted_range)
    if layer.classes:
        attrs |= {
            "flag_values": [c[0] for c in layer.classes],
            "flag_meanings": " ".join("_".join(c[1].split()) for c in layer.classes),
            "flag_colors": " ".join(c[2] for c in layer.classes),
            "class_names": [c[1] for c in layer.classes],
        }
    return attrs
