"""The metadata text of a store: CF, the proj/spatial/geoemb Zarr conventions, and earthpress' own provenance.

Pure. Both CF (``grid_mapping`` + x/y cell centres) and proj/spatial are written, because no reader of today understands
both: xarray + rioxarray and titiler need CF, GDAL >= 3.13 and the GeoZarr viewers look for the conventions.
Sources: CF-1.11 sections 4, 5.6 and 7.1; https://github.com/zarr-conventions (proj, spatial; matched by UUID);
https://github.com/geo-embeddings/embeddings-zarr-convention.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pipeline.types import NODATA_CODE, Reason
from pipeline.write import quality
from pipeline.write.layout import FORMAT_VERSION, MAP_FILL, identity

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
DEQUANTISE = "ds.embeddings.where(ds.embeddings != -128) * ds.scale"
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
    "schema_url": "https://raw.githubusercontent.com/geo-embeddings/embeddings-zarr-convention/refs/heads/main/schema.json",
    "spec_url": "https://github.com/geo-embeddings/embeddings-zarr-convention/blob/main/README.md",
    "description": "Geospatial embeddings",
}


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
    if name == "embeddings":
        own = {
            "long_name": "embedding, int8 codes",
            "units": "1",
            "nodata": NODATA_CODE,
            "valid_min": -127,
            "valid_max": 127,
            "coordinates": "scale",
            "dequantise": DEQUANTISE,
            **_labels(spec),
        }
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
        "recipe": spec.recipe,
        "trained": spec.model.trained,
        "model": asdict(spec.model),
        "calibration": {
            "hash": calibration.hash,
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
    return {
        "geoemb:type": "pixel",
        "geoemb:dimensions": spec.dims,
        # A folder name would say something about a machine and nothing about the model; the hash identifies it.
        "geoemb:model": f"urn:olmoearth:{model.version}:{model.size}:sha256:{model.sha256}",
        "geoemb:source_data": list(spec.source_data) or ["unknown"],
        "geoemb:data_type": "int8",
        "geoemb:gsd": spec.grid.pixel_m,
        "geoemb:spatial_layout": "utm_zones",
        "geoemb:quantization": {
            "method": "linear_per_dimension",
            "original_dtype": "float32",
            "quantized_dtype": "int8",
            "description": f"value = code * scale(band), -128 is nodata: {DEQUANTISE}",
        },
    }


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
    attrs: dict[str, Any] = {"long_name": layer.title or layer.name, "nodata": MAP_FILL}
    if layer.classes:
        attrs |= {
            "flag_values": [c[0] for c in layer.classes],
            "flag_meanings": " ".join("_".join(c[1].split()) for c in layer.classes),
            "flag_colors": " ".join(c[2] for c in layer.classes),
            "class_names": [c[1] for c in layer.classes],
        }
    return attrs
