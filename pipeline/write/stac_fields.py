"""What the STAC extensions say about a box, a GeoTIFF, a calibration: plain dictionaries as JSON has them.

Extensions and the versions that are written, each the newest that pystac reads: projection 2.0, raster 1.1,
classification 2.0, processing 1.2, file 2.1, scientific 1.0, mlm 1.4 (https://github.com/stac-extensions), and the
proposal ``emb`` 0.0.1 (https://github.com/geo-embeddings/embeddings-stac-specification).
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import InvalidInputError, OutputError
from pipeline.types import NODATA_CODE
from pipeline.write import frames, geotiff
from pipeline.write.attributes import METHODS, SCALED

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.types import Box, Calibration, GridSpec

Fields = tuple[tuple[str, Any], ...]
"""(key, value) pairs, values as JSON has them."""

_EXTENSIONS = "https://stac-extensions.github.io"
PROJECTION = f"{_EXTENSIONS}/projection/v2.0.0/schema.json"
PROCESSING = f"{_EXTENSIONS}/processing/v1.2.0/schema.json"
RASTER = f"{_EXTENSIONS}/raster/v1.1.0/schema.json"
CLASSIFICATION = f"{_EXTENSIONS}/classification/v2.0.0/schema.json"
EMBEDDINGS = f"{_EXTENSIONS}/embeddings/v0.0.1/schema.json"
MLM = f"{_EXTENSIONS}/mlm/v1.4.0/schema.json"
FILE = f"{_EXTENSIONS}/file/v2.1.0/schema.json"
SCIENTIFIC = f"{_EXTENSIONS}/scientific/v1.0.0/schema.json"
EDGE_POINTS = 16
"""Points along a side of the footprint: a straight side of a UTM box is curved in lon/lat, by 20 m over 100 km."""
STATISTICS_PX = 1024
"""Side of what is read of a file for its statistics: at most some ten milliseconds, whatever the file's size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Raster:
    """What a GeoTIFF says about itself.

    Attributes:
        box: Its ground.
        fields: Fields of its asset: projection, ``bands``, ``raster:bands``, classes.
        extensions: Of these fields.
        tags: Its tags.
    """

    box: Box
    fields: Fields
    extensions: tuple[str, ...]
    tags: tuple[tuple[str, str], ...]

    def provenance(self) -> dict[str, Any]:
        """The provenance that ``run`` wrote into the file, empty where there is none."""
        try:
            found = json.loads(dict(self.tags).get("EARTHPRESS_PROVENANCE", "{}"))
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}


def footprint(box: Box) -> tuple[dict[str, Any], list[float]]:
    """GeoJSON geometry and bbox (west, south, east, north) of a box, lon/lat degrees.

    A box across the antimeridian becomes two polygons with a bbox whose west is larger than its east (RFC 7946, 3.1.9
    and 5.2).
    """
    from pyproj import Transformer  # noqa: PLC0415
    from shapely import box as rectangle  # noqa: PLC0415
    from shapely import intersection  # noqa: PLC0415
    from shapely.affinity import translate  # noqa: PLC0415
    from shapely.geometry import MultiPolygon, Polygon, mapping  # noqa: PLC0415

    west, south, east, north = box.bounds_m
    share = np.linspace(0, 1, EDGE_POINTS, endpoint=False)
    x, y = west + share * (east - west), south + share * (north - south)
    # counter-clockwise from the south-west
    edge_x = np.concatenate([x, np.full_like(y, east), x[::-1] + (east - x[-1]), np.full_like(y, west)])
    edge_y = np.concatenate([np.full_like(x, south), y, np.full_like(x, north), y[::-1] + (north - y[-1])])
    lon, lat = Transformer.from_crs(box.epsg, 4326, always_xy=True).transform(edge_x, edge_y)
    crossing = lon.max() - lon.min() > 180
    ring = Polygon(np.round(np.column_stack([np.where(crossing & (lon < 0), lon + 360, lon), lat]), 7))
    bounds = ring.bounds
    if not crossing:
        return mapping(ring), list(bounds)
    parts = [
        intersection(ring, rectangle(0, -90, 180, 90)),
        translate(intersection(ring, rectangle(180, -90, 360, 90)), -360),
    ]
    return mapping(MultiPolygon(parts)), [bounds[0], bounds[1], bounds[2] - 360, bounds[3]]


def projection(box: Box, *, southern: bool = True) -> dict[str, Any]:
    """``proj:`` fields and ``gsd`` of a box.

    Args:
        box: The ground.
        southern: As GeoTIFFs are: EPSG:327NN where its centre lies south of the equator; False: as stores are, whose
            plane is that of 326NN everywhere, with negative northings.
    """
    epsg, transform = frames.place(box) if southern else (box.epsg, box.transform)
    return _projection(epsg, list(transform)[:6], box.shape) | {"gsd": box.res_m}


def raster_of(path: str | Path) -> Raster:
    """Read what a GeoTIFF says about itself: projection, bands, units, classes; pixels for the statistics only.

    Statistics are exact up to ``STATISTICS_PX`` pixels per side; of larger files they are taken from an overview, and
    ``earthpress:statistics_factor`` says from every how many'th pixel.

    Raises:
        OutputError: Not a GeoTIFF on a UTM lattice.
    """
    import rasterio  # noqa: PLC0415
    from rasterio.errors import RasterioError  # noqa: PLC0415

    try:
        with rasterio.open(path) as found:
            classes = _classes(found.tags())
            bands = [_band(found, number, classes=classes) for number in range(1, found.count + 1)]
            place, box = _projection_of(found), frames.box_of(found)
            tags = tuple(sorted((str(k), str(v)) for k, v in found.tags().items()))
    except (RasterioError, InvalidInputError, AttributeError, TypeError, ValueError) as err:
        raise OutputError(
            f"{path} is not a GeoTIFF that a catalogue can describe: {type(err).__name__}: {err}"
        ) from err
    fields: dict[str, Any] = place | {"gsd": box.res_m}
    fields |= {"bands": [common for common, _ in bands], "raster:bands": [own for _, own in bands]}
    objects = class_objects(classes)
    if objects and len(bands) == 1:
        fields["classification:classes"] = objects
    elif objects:
        for described in bands[0]:
            described["classification:classes"] = objects
    return Raster(
        box=box,
        fields=tuple(fields.items()),
        extensions=(PROJECTION, RASTER, *((CLASSIFICATION,) if objects else ())),
        tags=tags,
    )


def picture_fields(path: str | Path) -> Fields:
    """``proj:`` fields of any GeoTIFF, and ``gsd`` of a projected one; nothing of its pixels is read.

    Raises:
        OutputError: Not such a file.
    """
    import rasterio  # noqa: PLC0415
    from rasterio.errors import RasterioError  # noqa: PLC0415

    try:
        with rasterio.open(path) as found:
            metres = {"gsd": abs(found.transform.a)} if found.crs.is_projected else {}
            return tuple((_projection_of(found) | metres).items())
    except (RasterioError, AttributeError, TypeError) as err:
        raise OutputError(
            f"{path} is not a GeoTIFF that a catalogue can describe: {type(err).__name__}: {err}"
        ) from err


def class_objects(classes: Sequence[tuple[int, str, str]]) -> list[dict[str, Any]]:
    """``classification:classes`` of (value, name, ``#rrggbb``).

    Names for machines consist of letters, digits, ``-`` and ``_`` (classification 2.0); the title is the name as given.

    >>> class_objects([(3, "Forêt, dense", "#00aa00")])[0]["name"]
    'foret_dense'
    """
    found: list[dict[str, Any]] = []
    for value, title, colour in classes:
        plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
        name = re.sub(r"[^a-z0-9-]+", "_", plain).strip("_") or f"class_{value}"
        if any(other["name"] == name for other in found):
            name = f"{name}_{value}"
        found.append(
            {
                "value": value,
                "name": name,
                "title": title,
                "description": title or name,
                "color_hint": colour.removeprefix("#").upper(),
            }
        )
    return found


def quantization(calibration: Calibration, *, about: str) -> dict[str, Any] | None:
    """``emb:quantization``, None for float32; scale and offset lists where a code is a multiple of its dimension.

    For ``pca`` they give the scores; the components lie in the store, as does the decoding line of every method.

    Args:
        calibration: Of the store.
        about: href of the metadata of the array.
    """
    if not METHODS[calibration.method]:
        return None
    found: dict[str, Any] = {
        "method": METHODS[calibration.method],
        "original_dtype": "float32",
        "quantized_dtype": calibration.dtype,
        "link": {
            "rel": "about",
            "href": about,
            "type": "application/json",
            "title": "Metadata of the array: its attribute 'dequantise' is the line that decodes it",
        },
    }
    if calibration.method in SCALED:
        found |= {"scale": list(calibration.scale), "offset": [0.0] * len(calibration.scale)}
    return found


def data_fields(calibration: Calibration) -> dict[str, Any]:
    """``data_type`` and ``nodata`` of the array of embeddings."""
    return {"data_type": calibration.dtype, "nodata": NODATA_CODE if calibration.dtype == "int8" else "nan"}


def embedding_fields(calibration: Calibration, grid: GridSpec, *, temporal: str) -> dict[str, Any]:
    """Fields of the collection: type, dimensions, data type and, where a vector stands for a patch, its layout."""
    fields: dict[str, Any] = {
        "emb:type": "pixel",
        "emb:dimensions": calibration.bands,
        "emb:temporal_resolution": temporal,
        "data_type": calibration.dtype,
        "gsd": grid.pixel_m,
    }
    if grid.token_px > 1:
        side = [grid.token_px, grid.token_px]
        fields["emb:chip_layout"] = {"layout_type": "regular_grid", "chip_size": side, "stride": side}
    return fields


def _projection(epsg: int, transform: Sequence[float], shape: tuple[int, int]) -> dict[str, Any]:
    height, width = shape
    a, _, west, _, e, north = (float(value) for value in transform)
    return {
        "proj:code": f"EPSG:{epsg}",
        "proj:shape": [int(height), int(width)],
        "proj:transform": [float(value) for value in transform],
        "proj:bbox": [west, north + height * e, west + width * a, north],
    }


def _projection_of(found: Any) -> dict[str, Any]:
    epsg = found.crs.to_epsg()
    fields = _projection(epsg or 0, list(found.transform)[:6], found.shape)
    return fields if epsg else fields | {"proj:code": None, "proj:wkt2": found.crs.to_wkt()}


def _classes(tags: dict[str, str]) -> tuple[tuple[int, str, str], ...]:
    found = json.loads(tags.get(geotiff.CLASSES_TAG, "[]"))
    return tuple((int(value), str(name), str(colour)) for value, name, colour in found)


def _band(found: Any, number: int, *, classes: Sequence[Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(core ``bands`` object, ``raster:bands`` object) of a band; both hold what STAC 1.1 moved into the core."""
    first, tags = number == 1, found.tags(number)
    name = tags.get(geotiff.LAYER_TAG) or (("class" if classes else "value") if first else f"band{number}")
    nodata, unit = found.nodatavals[number - 1], found.units[number - 1]
    shared: dict[str, Any] = {
        "name": name,
        "description": found.descriptions[number - 1] or name,
        "data_type": str(found.dtypes[number - 1]),
    }
    if nodata is not None:
        shared["nodata"] = "nan" if math.isnan(nodata) else nodata
    if unit:
        shared["unit"] = unit
    if geotiff.RANGE_TAG in tags:
        shared["earthpress:valid_range"] = list(geotiff.range_of(tags))
    shared["statistics"], factor = _statistics(found, number, classes=bool(classes) and first)
    if factor > 1:
        shared["earthpress:statistics_factor"] = factor
    return shared, {**shared, "sampling": "area", "spatial_resolution": abs(found.transform.a)}


def _statistics(found: Any, number: int, *, classes: bool) -> tuple[dict[str, float], int]:
    """(statistics, every how many'th pixel); a mean of class numbers would mean nothing."""
    factor = -(-max(found.shape) // STATISTICS_PX)
    shape = tuple(-(-side // factor) for side in found.shape)
    values: NDArray[Any] = found.read(number, out_shape=shape)
    nodata = found.nodatavals[number - 1]
    valid = np.isfinite(values) if nodata is None or math.isnan(nodata) else values != nodata
    seen = values[valid].astype(np.float64)
    statistics = {"valid_percent": 100 * seen.size / values.size}
    if seen.size:
        statistics |= {"minimum": seen.min(), "maximum": seen.max()}
    if seen.size and not classes:
        statistics |= {"mean": seen.mean(), "stddev": seen.std()}
    return {name: float(f"{value:.6g}") for name, value in statistics.items()}, factor
