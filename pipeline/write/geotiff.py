"""Write Cloud Optimized GeoTIFFs that are whole or absent.

A GeoTIFF writer that is killed leaves a file that opens without an error and reads zeros (measured, 3 of 3). So a file
is made in a temporary folder beside its place, read back and compared pixel by pixel, flushed, and moved by one rename.
Knows rasterio only; which tiles go into which file is ``finalise``'s business.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from xml.etree import ElementTree as ET

import numpy as np

from pipeline.errors import InvalidInputError, OutputError
from pipeline.types import Box
from pipeline.write import durable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from affine import Affine
    from numpy.typing import NDArray

    from pipeline.write.durable import Checkpoint

BLOCK_PX = 512
CLASSES_TAG = "EARTHPRESS_CLASSES"
"""Tag of a class map: JSON list of (value, name, colour)."""
SOUTH_EPSG = 32700
SOUTH_SHIFT_M = 10_000_000
"""False northing of EPSG:327NN (EPSG method 9807): its plane is that of 326NN moved by exactly this."""


def write_cog(
    path: str | Path,
    array: NDArray[Any],
    *,
    box: Box,
    nodata: float | None = 255,
    colours: Sequence[tuple[int, str]] = (),
    class_names: Sequence[tuple[int, str]] = (),
    overview: Literal["mode", "average"] = "mode",
    tags: Sequence[tuple[str, str]] = (),
    at: Checkpoint = durable.passed,
) -> None:
    """Write an array as a COG: DEFLATE 6, 512 px blocks, overviews, BIGTIFF when needed.

    Classes (``overview="mode"``) get no predictor, continuous data (``"average"``) does: measured 1.30 against 1.58 MB
    and 6.6 against 5.2 MB. Report areas from full resolution only, mode overviews shift them.

    Args:
        path: Local file; an existing one is replaced at once or not at all.
        array: (row, col), or (band, row, col) with 3 (RGB) or 4 (RGBA) uint8 bands.
        box: Ground of the array. South of the equator the file is in EPSG:327NN.
        nodata: Nodata value; None for RGBA, whose alpha says it.
        colours: (value, ``#rrggbb``) of a uint8 class map: the embedded colour table.
        class_names: (value, name): category names, in ``PATH.aux.xml``, which QGIS and GDAL read.
        overview: How overviews are made.
        tags: (key, text) pairs, e.g. the provenance as JSON.
        at: Called after every step that a kill can separate (tests).

    Raises:
        InvalidInputError: Shape, dtype, colour or nodata do not fit together.
        OutputError: The file cannot be written or reads back differently.
    """
    file = durable.local_path(path)
    bands = array if array.ndim == 3 else array[np.newaxis]
    _check(bands, box=box, colours=colours, nodata=nodata, overview=overview)
    _remove_stale(file)
    folder = file.with_name(f".{file.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
    try:
        folder.mkdir(parents=True)
        temp = folder / file.name
        _write(temp, bands, box=box, nodata=nodata, colours=colours, overview=overview, tags=tags)
        at("written")
        _verify(temp, bands, box=box)
        durable.sync_file(temp)
        _publish_names(file, class_names)
        at("names")
        temp.replace(file)
        durable.sync_folder(file.parent)
        at("placed")
    except OSError as err:
        raise OutputError(f"{file}: cannot be written: {err}") from err
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def read_classes(path: str | Path) -> tuple[NDArray[np.uint8], Box, tuple[tuple[int, str, str], ...]]:
    """Read a class map that ``write_cog`` wrote.

    Returns:
        ((row, col) uint8, its box, ((value, name, ``#rrggbb``), ...)).

    Raises:
        OutputError: Not such a file.
    """
    import rasterio  # noqa: PLC0415
    from rasterio.errors import RasterioError  # noqa: PLC0415

    try:
        with rasterio.open(path) as found:
            values, transform, epsg = found.read(1), found.transform, found.crs.to_epsg()
            classes = json.loads(found.tags()[CLASSES_TAG])
    except (RasterioError, KeyError, ValueError) as err:
        raise OutputError(f"{path} is not a class map of earthpress: {type(err).__name__}") from err
    res_m, north_m = round(transform.a), transform.f - (SOUTH_SHIFT_M if epsg > SOUTH_EPSG else 0)
    box = Box(
        zone=epsg % 100,
        res_m=res_m,
        row=round(-north_m / res_m),
        col=round(transform.c / res_m),
        height=values.shape[0],
        width=values.shape[1],
    )
    return values, box, tuple((int(value), str(name), str(colour)) for value, name, colour in classes)


def place(box: Box) -> tuple[int, Affine]:
    """EPSG code and (col, row) -> (x, y) transform of a file over ``box``; 327NN when its centre lies in the south.

    Example:
        >>> from pipeline.types import Box
        >>> place(Box(zone=31, res_m=10, row=0, col=50, height=100, width=100))[0]
        32731
    """
    from affine import Affine  # noqa: PLC0415

    if box.row + box.row_stop <= 0:
        return box.epsg, box.transform
    return box.epsg + 100, Affine.translation(0, SOUTH_SHIFT_M) @ box.transform


def _check(
    bands: NDArray[Any], *, box: Box, colours: Sequence[tuple[int, str]], nodata: float | None, overview: str
) -> None:
    if bands.ndim != 3 or bands.shape[0] not in (1, 3, 4) or bands.shape[1:] != box.shape:
        raise InvalidInputError(f"GeoTIFF array {bands.shape} must be (1, 3 or 4, {box.height}, {box.width})")
    if bands.shape[0] > 1 and (bands.dtype != np.uint8 or colours):
        raise InvalidInputError(f"a colour picture is uint8 without a colour table, got {bands.dtype}")
    if bands.shape[0] == 4 and nodata is not None:
        raise InvalidInputError(f"an RGBA picture says nodata by alpha: nodata must be None, got {nodata}")
    if colours and bands.dtype != np.uint8:
        raise InvalidInputError(f"a colour table needs uint8 classes, got {bands.dtype}")
    if colours and overview != "mode":
        raise InvalidInputError(f"overviews of classes are made by mode: {overview} would mix their numbers")


def _write(
    temp: Path,
    bands: NDArray[Any],
    *,
    box: Box,
    nodata: float | None,
    colours: Sequence[tuple[int, str]],
    overview: str,
    tags: Sequence[tuple[str, str]],
) -> None:
    import rasterio  # noqa: PLC0415
    from rasterio.enums import ColorInterp  # noqa: PLC0415
    from rasterio.io import MemoryFile  # noqa: PLC0415
    from rasterio.shutil import copy  # noqa: PLC0415

    epsg, transform = place(box)
    profile: dict[str, Any] = {
        "driver": "GTiff",
        "count": bands.shape[0],
        "height": box.height,
        "width": box.width,
        "dtype": bands.dtype.name,
        "crs": f"EPSG:{epsg}",
        "transform": transform,
        "nodata": nodata,
    }
    if bands.shape[0] > 1:
        profile |= {"photometric": "RGB", "ALPHA": "YES" if bands.shape[0] == 4 else "NO"}
    # Without PAM the driver writes no side file of its own: names.aux.xml is ours and published with the picture.
    with rasterio.Env(GDAL_PAM_ENABLED="NO"), MemoryFile() as memory:
        with memory.open(**profile) as source:
            source.write(bands)
            if colours:
                source.write_colormap(1, {value: _rgb(text) for value, text in colours})
            if bands.shape[0] == 4:
                source.colorinterp = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha)
            source.update_tags(**dict(tags))
        with memory.open() as source:
            copy(
                source,
                temp,
                driver="COG",
                COMPRESS="DEFLATE",
                LEVEL="6",
                PREDICTOR="YES" if overview == "average" else "NO",
                BLOCKSIZE=str(BLOCK_PX),
                OVERVIEW_RESAMPLING=overview.upper(),
                **({"OVERVIEW_COUNT": 1} if max(bands.shape[1:]) <= BLOCK_PX else {}),  # else GDAL makes none here
                BIGTIFF="IF_SAFER",
            )


def _verify(temp: Path, bands: NDArray[Any], *, box: Box) -> None:
    import rasterio  # noqa: PLC0415
    from rasterio.errors import RasterioError  # noqa: PLC0415

    epsg, transform = place(box)
    try:
        with rasterio.open(temp) as found:
            same_place = found.crs.to_epsg() == epsg and found.transform.almost_equals(transform)
            same = same_place and np.array_equal(found.read(), bands, equal_nan=bands.dtype.kind == "f")
    except RasterioError as err:
        raise OutputError(f"{temp.name} cannot be read back: {err}") from err
    if not same:
        raise OutputError(f"{temp.name} reads back differently from what was written")


def _publish_names(file: Path, class_names: Sequence[tuple[int, str]]) -> None:
    """Write the category names beside the picture, before it: names without a picture do no harm."""
    side = file.with_name(f"{file.name}.aux.xml")
    if not class_names:
        side.unlink(missing_ok=True)
        return
    names = dict(class_names)
    root = ET.Element("PAMDataset")
    categories = ET.SubElement(ET.SubElement(root, "PAMRasterBand", band="1"), "CategoryNames")
    for value in range(max(names) + 1):
        ET.SubElement(categories, "Category").text = names.get(value, "")
    # GDAL 3.10 takes an XML declaration for the document and then finds no names; without one the file is UTF-8 anyway.
    durable.replace(side, ET.tostring(root, encoding="unicode").encode())


def _remove_stale(file: Path) -> None:
    """Delete what killed writers of this file left; their process ids are in the names."""
    for folder in file.parent.glob(f".{file.name}.*.tmp"):
        pid = folder.name.removesuffix(".tmp").rsplit(".", 1)[-1].split("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists() and Path("/proc/self").exists():
            shutil.rmtree(folder, ignore_errors=True)


def _rgb(text: str) -> tuple[int, int, int]:
    if not re.fullmatch("#[0-9a-fA-F]{6}", text):
        raise InvalidInputError(f"colour {text!r} is not of the form #rrggbb")
    red, green, blue = bytes.fromhex(text[1:])
    return red, green, blue
