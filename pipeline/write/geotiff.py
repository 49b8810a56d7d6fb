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
from contextlib import ExitStack
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
NODATA = 255
"""Of class maps and their further bands."""
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
    further: Sequence[tuple[str, NDArray[np.uint8]]] = (),
    at: Checkpoint = durable.passed,
) -> None:
    """Write an array as a COG: DEFLATE 6, 512 px blocks, overviews, BIGTIFF when needed.

    Classes (``overview="mode"``) get no predictor, continuous data (``"average"``) does: measured 1.30 against 1.58 MB
    and 6.6 against 5.2 MB. Report areas from full resolution only, mode overviews shift them.

    With ``further`` bands the overviews of the classes are made by mode and those of the others by average, and bands
    lie one after the other, so that whoever wants the classes reads them only. A TIFF of several such bands cannot
    hold the colour table (GDAL: one band, or a second one that is transparency): it then lies in ``PATH.aux.xml``,
    where the names are, and software that does not read that file shows the classes in grey.

    Args:
        path: Local file; an existing one is replaced at once or not at all.
        array: (row, col), or (band, row, col) with 3 (RGB) or 4 (RGBA) uint8 bands.
        box: Ground of the array. South of the equator the file is in EPSG:327NN.
        nodata: Nodata value; None for RGBA, whose alpha says it.
        colours: (value, ``#rrggbb``) of a uint8 class map: the embedded colour table.
        class_names: (value, name): category names, in ``PATH.aux.xml``, which QGIS and GDAL read.
        overview: How overviews are made; with ``further`` bands, of the classes.
        tags: (key, text) pairs, e.g. the provenance as JSON.
        further: (description, (row, col) uint8) of continuous bands after the classes, with the same nodata value.
        at: Called after every step that a kill can separate (tests).

    Raises:
        InvalidInputError: Shape, dtype, colour or nodata do not fit together.
        OutputError: The file cannot be written or reads back differently.
    """
    file = durable.local_path(path)
    bands = array if array.ndim == 3 else array[np.newaxis]
    _check(bands, box=box, colours=colours, nodata=nodata, overview=overview)
    _check_further(bands, further)
    _remove_stale(file)
    folder = file.with_name(f".{file.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
    try:
        folder.mkdir(parents=True)
        temp = folder / file.name
        if further:
            _write_further(temp, bands[0], further, box=box, nodata=nodata, colours=colours, tags=tags)
        else:
            _write(temp, bands, box=box, nodata=nodata, colours=colours, overview=overview, tags=tags)
        at("written")
        _verify(temp, (*bands, *(values for _, values in further)), box=box)
        durable.sync_file(temp)
        _publish_names(file, class_names, colours=colours if further else ())
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
            values, box = found.read(1), _box(found)
            classes = json.loads(found.tags()[CLASSES_TAG])
    except (RasterioError, KeyError, ValueError) as err:
        raise OutputError(f"{path} is not a class map of earthpress: {type(err).__name__}") from err
    return values, box, tuple((int(value), str(name), str(colour)) for value, name, colour in classes)


def read_band(path: str | Path, band: int) -> tuple[NDArray[np.uint8], Box, str]:
    """One further band of a class map and its description.

    Args:
        path: Written by ``write_cog``.
        band: 2 and more.

    Returns:
        ((row, col) uint8, its box, description); the description is "" and the values are nodata where the file has
        no such band.

    Raises:
        OutputError: Not a GeoTIFF.
    """
    import rasterio  # noqa: PLC0415
    from rasterio.errors import RasterioError  # noqa: PLC0415

    try:
        with rasterio.open(path) as found:
            if band > found.count:
                return np.full(found.shape, NODATA, np.uint8), _box(found), ""
            return found.read(band), _box(found), found.descriptions[band - 1] or ""
    except RasterioError as err:
        raise OutputError(f"{path} cannot be read: {err}") from err


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


def _box(found: Any) -> Box:
    """The box under an open file of ``write_cog``."""
    transform, epsg = found.transform, found.crs.to_epsg()
    res_m, north_m = round(transform.a), transform.f - (SOUTH_SHIFT_M if epsg > SOUTH_EPSG else 0)
    return Box(
        zone=epsg % 100,
        res_m=res_m,
        row=round(-north_m / res_m),
        col=round(transform.c / res_m),
        height=found.height,
        width=found.width,
    )


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


def _check_further(bands: NDArray[Any], further: Sequence[tuple[str, NDArray[np.uint8]]]) -> None:
    if not further:
        return
    if len(bands) > 1 or bands.dtype != np.uint8:
        raise InvalidInputError(
            f"further bands stand beside one band of uint8 classes, got {bands.dtype} {bands.shape}"
        )
    for name, values in further:
        if not name or values.shape != bands.shape[1:] or values.dtype != np.uint8:
            raise InvalidInputError(
                f"band {name!r} is {values.dtype} {values.shape}, must have a name and be uint8 {bands.shape[1:]}"
            )


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


def _write_further(
    temp: Path,
    classes: NDArray[Any],
    further: Sequence[tuple[str, NDArray[np.uint8]]],
    *,
    box: Box,
    nodata: float | None,
    colours: Sequence[tuple[int, str]],
    tags: Sequence[tuple[str, str]],
) -> None:
    """Every band with overviews of its own kind in memory, put together by a virtual file that GDAL copies.

    The COG driver would take three bands of bytes for a colour picture and make all overviews in one way; the GTiff
    driver copies overviews in the same layout and can be told.
    """
    import rasterio  # noqa: PLC0415
    from rasterio.enums import Resampling  # noqa: PLC0415
    from rasterio.io import MemoryFile  # noqa: PLC0415
    from rasterio.shutil import copy  # noqa: PLC0415

    epsg, transform = place(box)
    profile: dict[str, Any] = {
        "driver": "GTiff",
        "count": 1,
        "height": box.height,
        "width": box.width,
        "dtype": "uint8",
        "crs": f"EPSG:{epsg}",
        "transform": transform,
        "nodata": nodata,
    }
    factors = [2]
    while -(-max(box.shape) // factors[-1]) > BLOCK_PX:
        factors.append(2 * factors[-1])
    with rasterio.Env(GDAL_PAM_ENABLED="NO"), ExitStack() as held:
        sources: list[str] = []
        for number, values in enumerate((classes, *(values for _, values in further))):
            memory = held.enter_context(MemoryFile(ext=".tif"))
            with memory.open(**profile) as made:
                made.write(values, 1)
            with rasterio.open(memory.name, "r+") as made:
                made.build_overviews(factors, Resampling.average if number else Resampling.mode)
            sources.append(memory.name)
        names = ("class", *(name for name, _ in further))
        virtual = _virtual(sources, names, box=box, nodata=nodata, palette=bool(colours), tags=tags)
        copy(
            virtual,
            temp,
            driver="GTiff",
            COMPRESS="DEFLATE",
            ZLEVEL="6",
            TILED="YES",
            BLOCKXSIZE=str(BLOCK_PX),
            BLOCKYSIZE=str(BLOCK_PX),
            INTERLEAVE="BAND",
            PHOTOMETRIC="MINISBLACK",
            ALPHA="NO",
            COPY_SRC_OVERVIEWS="YES",
            BIGTIFF="IF_SAFER",
        )


def _virtual(
    sources: Sequence[str],
    names: Sequence[str],
    *,
    box: Box,
    nodata: float | None,
    palette: bool,
    tags: Sequence[tuple[str, str]],
) -> str:
    """A VRT of one file per band; its overviews are those of the files (https://gdal.org/drivers/raster/vrt.html)."""
    epsg, transform = place(box)
    root = ET.Element("VRTDataset", rasterXSize=str(box.width), rasterYSize=str(box.height))
    ET.SubElement(root, "SRS").text = f"EPSG:{epsg}"
    ET.SubElement(root, "GeoTransform").text = ", ".join(str(float(value)) for value in transform.to_gdal())
    metadata = ET.SubElement(root, "Metadata")
    for key, text in tags:
        ET.SubElement(metadata, "MDI", key=key).text = text
    whole = {"xOff": "0", "yOff": "0", "xSize": str(box.width), "ySize": str(box.height)}
    for number, (source, name) in enumerate(zip(sources, names, strict=True)):
        band = ET.SubElement(root, "VRTRasterBand", dataType="Byte", band=str(number + 1))
        ET.SubElement(band, "Description").text = name
        ET.SubElement(band, "NoDataValue").text = str(nodata)
        ET.SubElement(band, "ColorInterp").text = "Undefined" if number or not palette else "Palette"
        part = ET.SubElement(band, "SimpleSource")
        ET.SubElement(part, "SourceFilename").text = source
        ET.SubElement(part, "SourceBand").text = "1"
        ET.SubElement(part, "SrcRect", whole)
        ET.SubElement(part, "DstRect", whole)
    return ET.tostring(root, encoding="unicode")


def _verify(temp: Path, bands: Sequence[NDArray[Any]], *, box: Box) -> None:
    import rasterio  # noqa: PLC0415
    from rasterio.errors import RasterioError  # noqa: PLC0415

    epsg, transform = place(box)
    try:
        with rasterio.open(temp) as found:
            same_place = found.crs.to_epsg() == epsg and found.transform.almost_equals(transform)
            same = (
                same_place
                and found.count == len(bands)
                and all(
                    np.array_equal(found.read(number), band, equal_nan=band.dtype.kind == "f")
                    for number, band in enumerate(bands, 1)
                )
            )
    except RasterioError as err:
        raise OutputError(f"{temp.name} cannot be read back: {err}") from err
    if not same:
        raise OutputError(f"{temp.name} reads back differently from what was written")


def _publish_names(
    file: Path, class_names: Sequence[tuple[int, str]], *, colours: Sequence[tuple[int, str]] = ()
) -> None:
    """Write category names and colours beside the picture, before it: they do no harm without a picture."""
    side = file.with_name(f"{file.name}.aux.xml")
    if not class_names and not colours:
        side.unlink(missing_ok=True)
        return
    root = ET.Element("PAMDataset")
    band = ET.SubElement(root, "PAMRasterBand", band="1")
    if colours:
        table = {value: _rgb(text) for value, text in colours}
        entries = ET.SubElement(band, "ColorTable")
        for value in range(max(table) + 1):
            red, green, blue = table.get(value, (0, 0, 0))
            ET.SubElement(entries, "Entry", c1=str(red), c2=str(green), c3=str(blue), c4="255")
    if class_names:
        names = dict(class_names)
        categories = ET.SubElement(band, "CategoryNames")
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
