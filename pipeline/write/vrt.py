"""Virtual rasters (GDAL VRT): one file name for many GeoTIFFs of one grid.

Written as XML, because rasterio builds none. Every source is named relative to the VRT, so that a folder can be moved,
and lies where its own georeference puts it, pixel for pixel; nothing is resampled.
Form: https://gdal.org/drivers/raster/vrt.html
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from pipeline.errors import InvalidInputError, OutputError
from pipeline.write import durable
from pipeline.write.frames import Frame, box_of
from pipeline.write.layout import union

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.types import Box
    from pipeline.write.durable import Checkpoint

CLASSES_TAG = "EARTHPRESS_CLASSES"
"""Tag of a class map: JSON list of (value, name, colour)."""
_OVERVIEWS = "OVR_RESAMPLING_ALG"
_GDAL_NAMES = {"uint8": "Byte", "int8": "Int8", "float32": "Float32"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One band of one file inside a virtual band.

    Attributes:
        path: As it stands in the VRT.
        relative: Whether the path is relative to the VRT.
        band: Band of the file, from 1.
        row: Row of the virtual raster at which the file begins.
        col: Column of the same.
        height: Rows of the file.
        width: Columns of the file.
        block: (height, width) of its blocks; with it readers need not open the file before they read it.
    """

    path: str
    relative: bool
    band: int
    row: int
    col: int
    height: int
    width: int
    block: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualBand:
    """A band of a virtual raster.

    Attributes:
        dtype: ``uint8``, ``int8`` or ``float32``.
        sources: What it is put together from; they must not overlap.
        nodata: Value of pixels that no source covers.
        description: Name for people.
        units: Unit of the values; "" for none.
        scale: Value of one number of the band.
        palette: Whether it says that its values are colours of a table.
        colours: Value to (red, green, blue, alpha), from 0 on; () for no table.
        names: Category names of the values 0, 1, ...
        tags: (key, text) of the band.
        overviews: Names that GDAL opens as the band at half size, a quarter, and so on; without them it takes those of
            the sources, but none that is narrower than 128 pixels.
    """

    dtype: str
    sources: tuple[Source, ...]
    nodata: float | None = None
    description: str = ""
    units: str = ""
    scale: float = 1.0
    palette: bool = False
    colours: tuple[tuple[int, int, int, int], ...] = ()
    names: tuple[str, ...] = ()
    tags: tuple[tuple[str, str], ...] = ()
    overviews: tuple[str, ...] = ()


def text_of(frame: Frame, bands: Sequence[VirtualBand], *, tags: Sequence[tuple[str, str]] = ()) -> str:
    """The XML of a virtual raster; the order of the elements is that of GDAL's own schema."""
    root = ET.Element("VRTDataset", rasterXSize=str(frame.width), rasterYSize=str(frame.height))
    ET.SubElement(root, "SRS").text = frame.crs
    ET.SubElement(root, "GeoTransform").text = ", ".join(repr(float(v)) for v in frame.transform.to_gdal())
    _add_tags(root, tags)
    for number, band in enumerate(bands, 1):
        _add_band(root, number, band)
    return ET.tostring(root, encoding="unicode")


def write_vrt(path: str | Path, files: Sequence[str | Path], *, at: Checkpoint = durable.passed) -> None:
    """Write one virtual raster over GeoTIFFs of a zone, with the names, colours and tags of the first.

    Args:
        path: The VRT; replaced at once. The files lie in its folder or elsewhere on the same disk.
        files: Written by ``geotiff``, of one zone and one map; they must not overlap. A zone that lies on both sides of
            the equator gets one raster in the plane in which its larger part lies.
        at: Called after every step that a kill can separate (tests).

    Raises:
        InvalidInputError: No files, or they overlap.
        OutputError: A file cannot be read, or its bands are not those of the first.
    """
    place = durable.local_path(path)
    found = [_Seen.of(durable.local_path(file)) for file in files]
    if not found:
        raise InvalidInputError(f"{place.name}: a virtual raster needs files")
    _check(found)
    box = reduce(union, (seen.box for seen in found))
    first = found[0]
    bands = [_band(number, box, found, folder=place.parent) for number in range(1, len(first.bands) + 1)]
    text = text_of(Frame.of(box), bands, tags=first.tags)
    at("virtual")
    durable.replace(place, text.encode(), at=at)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """What the header of a file says."""

    path: Path
    box: Box
    bands: tuple[tuple[str, str, str, str], ...]  # dtype, nodata, description, units: equal in all files
    nodata: float | None
    blocks: tuple[tuple[int, int], ...]
    palette: bool
    colours: tuple[tuple[int, int, int, int], ...]
    names: tuple[str, ...]
    tags: tuple[tuple[str, str], ...]
    band_tags: tuple[tuple[tuple[str, str], ...], ...]

    @classmethod
    def of(cls, path: Path) -> _Seen:
        import rasterio  # noqa: PLC0415
        from rasterio.enums import ColorInterp  # noqa: PLC0415
        from rasterio.errors import RasterioError  # noqa: PLC0415

        try:
            with rasterio.open(path) as file:
                palette = file.colorinterp[0] == ColorInterp.palette
                return cls(
                    path=path,
                    box=box_of(file),
                    bands=tuple(
                        (file.dtypes[k], str(file.nodatavals[k]), file.descriptions[k] or "", file.units[k] or "")
                        for k in range(file.count)
                    ),
                    nodata=file.nodata,
                    blocks=tuple((int(h), int(w)) for h, w in file.block_shapes),
                    palette=palette,
                    colours=_colours(file.colormap(1)) if palette else (),
                    names=_names(file.tags()),
                    tags=own(file.tags()),
                    band_tags=tuple(own(file.tags(k)) for k in range(1, file.count + 1)),
                )
        except RasterioError as err:
            raise OutputError(f"{path} cannot be read: {err}") from err


def _check(found: Sequence[_Seen]) -> None:
    first = found[0]
    for seen in found[1:]:
        same_lattice = (seen.box.zone, seen.box.res_m) == (first.box.zone, first.box.res_m)
        if not same_lattice or seen.bands != first.bands:
            raise OutputError(
                f"{seen.path.name} and {first.path.name} have other bands or another grid: make the map again"
            )
    for k, seen in enumerate(found):
        for other in found[k + 1 :]:
            if seen.box.intersect(other.box) is not None:
                raise InvalidInputError(f"{seen.path.name} and {other.path.name} overlap")


def _band(number: int, box: Box, found: Sequence[_Seen], *, folder: Path) -> VirtualBand:
    first = found[0]
    dtype, _, description, units = first.bands[number - 1]
    leading = number == 1
    return VirtualBand(
        dtype=dtype,
        sources=tuple(
            Source(
                path=Path(os.path.relpath(seen.path, folder)).as_posix(),
                relative=True,
                band=number,
                row=seen.box.row - box.row,
                col=seen.box.col - box.col,
                height=seen.box.height,
                width=seen.box.width,
                block=seen.blocks[number - 1],
            )
            for seen in found
        ),
        nodata=first.nodata,
        description=description,
        units=units,
        palette=leading and first.palette,
        colours=first.colours if leading else (),
        names=first.names if leading else (),
        tags=first.band_tags[number - 1],
    )


def _add_band(root: ET.Element, number: int, band: VirtualBand) -> None:
    element = ET.SubElement(root, "VRTRasterBand", dataType=_GDAL_NAMES[band.dtype], band=str(number))
    _add_tags(element, band.tags)
    for tag, value in (
        ("Description", band.description),
        ("UnitType", band.units),
        ("Scale", "" if band.scale == 1 else repr(band.scale)),
        ("NoDataValue", "" if band.nodata is None else str(band.nodata)),
    ):
        if value:
            ET.SubElement(element, tag).text = value
    ET.SubElement(element, "ColorInterp").text = "Palette" if band.palette else "Undefined"
    if band.names:
        categories = ET.SubElement(element, "CategoryNames")
        for name in band.names:
            ET.SubElement(categories, "Category").text = name
    if band.colours:
        table = ET.SubElement(element, "ColorTable")
        for red, green, blue, alpha in band.colours:
            ET.SubElement(table, "Entry", c1=str(red), c2=str(green), c3=str(blue), c4=str(alpha))
    for name in band.overviews:
        overview = ET.SubElement(element, "Overview")
        ET.SubElement(overview, "SourceFilename", relativeToVRT="0").text = name
        ET.SubElement(overview, "SourceBand").text = "1"
    for source in band.sources:
        _add_source(element, band, source)


def _add_source(element: ET.Element, band: VirtualBand, source: Source) -> None:
    part = ET.SubElement(element, "SimpleSource")
    ET.SubElement(part, "SourceFilename", relativeToVRT=str(int(source.relative))).text = source.path
    ET.SubElement(part, "SourceBand").text = str(source.band)
    width, height = str(source.width), str(source.height)
    ET.SubElement(
        part,
        "SourceProperties",
        RasterXSize=str(source.width),
        RasterYSize=str(source.height),
        DataType=_GDAL_NAMES[band.dtype],
        BlockXSize=str(source.block[1]),
        BlockYSize=str(source.block[0]),
    )
    ET.SubElement(part, "SrcRect", xOff="0", yOff="0", xSize=width, ySize=height)
    ET.SubElement(part, "DstRect", xOff=str(source.col), yOff=str(source.row), xSize=width, ySize=height)


def _add_tags(element: ET.Element, tags: Sequence[tuple[str, str]]) -> None:
    if tags:
        metadata = ET.SubElement(element, "Metadata")
        for key, text in tags:
            ET.SubElement(metadata, "MDI", key=key).text = text


def own(tags: dict[str, str]) -> tuple[tuple[str, str], ...]:
    """The tags that describe content, without what GDAL says about the form of the file."""
    return tuple(
        (key, text) for key, text in sorted(tags.items()) if key not in {"AREA_OR_POINT", "OVR_RESAMPLING_ALG"}
    )


def _colours(table: dict[int, tuple[int, ...]]) -> tuple[tuple[int, int, int, int], ...]:
    rows = [table[value] for value in sorted(table)]
    return tuple((row[0], row[1], row[2], row[3] if len(row) > 3 else 255) for row in rows)


def _names(tags: dict[str, str]) -> tuple[str, ...]:
    """Category names of a class map; rasterio does not read those of the side file."""
    names = {int(value): str(name) for value, name, _ in json.loads(tags.get(CLASSES_TAG, "[]"))}
    return tuple(names.get(value, "") for value in range(max(names, default=-1) + 1))
