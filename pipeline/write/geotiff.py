"""Write Cloud Optimized GeoTIFFs that are whole or absent.

A GeoTIFF writer that is killed leaves a file that opens without an error and reads zeros (measured, 3 of 3). So a file
is made in a temporary folder beside its place, read back and compared pixel by pixel, flushed, and moved by one rename.
Pictures are written from memory, maps square by square (``streamed``), so that a map may have any number of bands.
Which tiles go into which file is ``finalise``'s business.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from xml.etree import ElementTree as ET

import numpy as np

from pipeline.errors import InvalidInputError, OutputError
from pipeline.write import durable, streamed
from pipeline.write.frames import Frame, box_of, part_of, place
from pipeline.write.vrt import CLASSES_TAG, own

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from pipeline.types import Box
    from pipeline.write.durable import Checkpoint
    from pipeline.write.streamed import Read

__all__ = [
    "CLASSES_TAG",
    "Further",
    "classes_of",
    "further_of",
    "layers",
    "own_tags",
    "place",
    "range_of",
    "read_band",
    "read_classes",
    "read_layer",
    "squares",
    "tags_of",
    "write_classes",
    "write_cog",
    "write_values",
]

BLOCK_PX = streamed.BLOCK_PX
NODATA = 255
"""Of class maps and their further bands."""
LAYER_TAG = "EARTHPRESS_LAYER"
"""Tag of a further band: its short name, ``confidence``."""
RANGE_TAG = "valid_range"
"""Tag of a band of values: JSON pair of the least and the greatest value that it means to hold (as CF's attribute)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Further:
    """A continuous band beside the classes: uint8, 255 nodata.

    Attributes:
        name: Short name, by which ``read_layer`` finds it.
        title: Description of the band.
        units: Unit of the values; "" for none.
    """

    name: str
    title: str
    units: str = ""


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
    bands = array if array.ndim == 3 else array[np.newaxis]
    _check(bands, box=box, colours=colours, nodata=nodata, overview=overview)
    _check_further(bands, further)
    if further:
        layers = (bands[0], *(values for _, values in further))
        write_classes(
            path,
            lambda rows, cols: [layer[rows, cols] for layer in layers],
            box=box,
            colours=colours,
            class_names=class_names,
            tags=tags,
            further=tuple(Further(name="", title=title) for title, _ in further),
            at=at,
        )
        return

    def make(folder: Path) -> Path:
        temp = folder / "made.tif"
        _write(temp, bands, box=box, nodata=nodata, colours=colours, overview=overview, tags=tags)
        at("written")
        _verify(temp, tuple(bands), box=box)
        return temp

    _publish(durable.local_path(path), make, names=class_names, at=at)


def write_classes(
    path: str | Path,
    read: Read,
    *,
    box: Box | Frame,
    colours: Sequence[tuple[int, str]],
    class_names: Sequence[tuple[int, str]],
    tags: Sequence[tuple[str, str]] = (),
    further: Sequence[Further] = (),
    predictor: bool = False,
    at: Checkpoint = durable.passed,
) -> None:
    """Write a class map square by square, with any number of continuous bands, as ``write_cog`` would.

    Args:
        path: Local file; an existing one is replaced at once or not at all.
        read: (row, col) slices to the uint8 arrays of the classes and the further bands; None for nodata.
        box: Ground of the file, or a grid of another plane.
        colours: As ``write_cog``.
        class_names: As ``write_cog``.
        tags: As ``write_cog``.
        further: The bands after the classes.
        predictor: Whether bands are stored as differences. A file has one setting for all its bands: classes take a
            quarter more with it (1.30 to 1.58 MB), probabilities a fifth less (6.63 to 5.23 MB).
        at: Called after every step that a kill can separate (tests).

    Raises:
        InvalidInputError: Colours, or arrays that do not fit.
        OutputError: The file cannot be written or reads back differently.
    """
    form = streamed.Form(
        frame=box if isinstance(box, Frame) else Frame.of(box),
        bands=(
            streamed.Band(title="class" if further else "", overview="mode"),
            *(
                streamed.Band(title=band.title, units=band.units, tags=((LAYER_TAG, band.name),) if band.name else ())
                for band in further
            ),
        ),
        dtype="uint8",
        nodata=NODATA,
        predictor=predictor,
        colours=tuple((value, _rgb(text)) for value, text in colours),
        tags=tuple(tags),
    )
    _stream(path, form, read, names=class_names, side_colours=colours if further else (), at=at)


def write_values(
    path: str | Path,
    values: NDArray[np.float32] | Callable[[slice, slice], NDArray[np.float32] | None],
    *,
    box: Box | Frame,
    units: str,
    title: str,
    valid_range: tuple[float, float] | None = None,
    tags: Sequence[tuple[str, str]] = (),
    at: Checkpoint = durable.passed,
) -> None:
    """Write a map of numbers as a COG: float32, NaN nodata, overviews by average, floating-point predictor.

    Args:
        path: Local file; an existing one is replaced at once or not at all.
        values: (row, col) float32 over ``box``, or (row, col) slices to such an array, None where there is none.
        box: Ground of the file, or a grid of another plane.
        units: Unit of the values, ``t/ha``; "" for none.
        title: What the values are: the description of the band.
        valid_range: (least, greatest) value that styles reach over.
        tags: (key, text) pairs, e.g. the provenance as JSON.
        at: Called after every step that a kill can separate (tests).

    Raises:
        InvalidInputError: An array of another shape or type.
        OutputError: The file cannot be written or reads back differently.
    """
    frame = box if isinstance(box, Frame) else Frame.of(box)
    if isinstance(values, np.ndarray) and values.shape != frame.shape:
        raise InvalidInputError(f"GeoTIFF array {values.shape} must be {frame.shape}")
    meant = ((RANGE_TAG, json.dumps(list(valid_range))),) if valid_range is not None else ()
    form = streamed.Form(
        frame=frame,
        bands=(streamed.Band(title=title, units=units, tags=meant),),
        dtype="float32",
        nodata=float("nan"),
        predictor=True,
        tags=tuple(tags),
    )

    def read(rows: slice, cols: slice) -> list[NDArray[np.float32]] | None:
        part = values[rows, cols] if isinstance(values, np.ndarray) else values(rows, cols)
        return None if part is None else [part]

    _stream(path, form, read, names=(), side_colours=(), at=at)


def write_bands(
    path: str | Path,
    read: Read,
    *,
    box: Box | Frame,
    bands: Sequence[streamed.Band],
    dtype: Literal["int8", "float32"],
    nodata: float,
    tags: Sequence[tuple[str, str]] = (),
    at: Checkpoint = durable.passed,
) -> None:
    """Write any number of continuous bands of one kind as a COG, square by square: overviews by average, predictor.

    Args:
        path: Local file; an existing one is replaced at once or not at all.
        read: (row, col) slices to one array per band; None for nodata.
        box: Ground of the file, or a grid of another plane.
        bands: Titles, units, scales.
        dtype: Of all of them.
        nodata: Of all of them.
        tags: (key, text) pairs, e.g. the provenance as JSON.
        at: Called after every step that a kill can separate (tests).

    Raises:
        InvalidInputError: Arrays that do not fit.
        OutputError: The file cannot be written or reads back differently.
    """
    form = streamed.Form(
        frame=box if isinstance(box, Frame) else Frame.of(box),
        bands=tuple(bands),
        dtype=dtype,
        nodata=nodata,
        predictor=True,
        tags=tuple(tags),
    )
    _stream(path, form, read, names=(), side_colours=(), at=at)


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
            values, box = found.read(1), box_of(found)
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
                return np.full(found.shape, NODATA, np.uint8), box_of(found), ""
            return found.read(band), box_of(found), found.descriptions[band - 1] or ""
    except RasterioError as err:
        raise OutputError(f"{path} cannot be read: {err}") from err


def squares(path: str | Path, *, band: int = 1) -> Iterator[tuple[Box, NDArray[Any]]]:
    """One band of a file of a zone, square by square: memory is that of one.

    Args:
        path: Written by this module, or a virtual raster of such files.
        band: From 1.

    Yields:
        (box, (row, col) values); the boxes are cut at multiples of ``frames.SQUARE_PX`` of the lattice.

    Raises:
        OutputError: Not such a file.
    """
    import rasterio  # noqa: PLC0415
    from rasterio.errors import RasterioError  # noqa: PLC0415
    from rasterio.windows import Window  # noqa: PLC0415

    try:
        with rasterio.Env(GDAL_CACHEMAX=streamed.CACHE_BYTES), rasterio.open(path) as found:
            box = box_of(found)
            for rows, cols in Frame.of(box).squares():
                window = Window(cols.start, rows.start, cols.stop - cols.start, rows.stop - rows.start)
                yield part_of(box, rows, cols), found.read(band, window=window)
    except RasterioError as err:
        raise OutputError(f"{path} cannot be read: {err}") from err


def layers(path: str | Path) -> tuple[str, ...]:
    """Short names of the bands of a file; "" for the classes and for bands without one.

    Raises:
        OutputError: Not a GeoTIFF.
    """
    import rasterio  # noqa: PLC0415
    from rasterio.errors import RasterioError  # noqa: PLC0415

    try:
        with rasterio.open(path) as found:
            return tuple(found.tags(band).get(LAYER_TAG, "") for band in range(1, found.count + 1))
    except RasterioError as err:
        raise OutputError(f"{path} cannot be read: {err}") from err


def tags_of(path: str | Path) -> dict[str, str]:
    """Tags of a file and of its first band, and the band's ``title`` and ``units``.

    Raises:
        OutputError: Not a GeoTIFF.
    """
    import rasterio  # noqa: PLC0415
    from rasterio.errors import RasterioError  # noqa: PLC0415

    try:
        with rasterio.open(path) as found:
            named = {"title": found.descriptions[0] or "", "units": found.units[0] or ""}
            return {**found.tags(), **found.tags(1), **named}
    except RasterioError as err:
        raise OutputError(f"{path} cannot be read: {err}") from err


def classes_of(path: str | Path) -> tuple[tuple[int, str, str], ...]:
    """(value, name, ``#rrggbb``) of a class map, without its pixels.

    Raises:
        OutputError: Not a class map.
    """
    try:
        return tuple((int(v), str(name), str(colour)) for v, name, colour in json.loads(tags_of(path)[CLASSES_TAG]))
    except (KeyError, ValueError) as err:
        raise OutputError(f"{path} is not a class map of earthpress: {type(err).__name__}") from err


def further_of(path: str | Path) -> tuple[Further, ...]:
    """The bands after the classes of a file.

    Raises:
        OutputError: Not a GeoTIFF.
    """
    import rasterio  # noqa: PLC0415
    from rasterio.errors import RasterioError  # noqa: PLC0415

    try:
        with rasterio.open(path) as found:
            return tuple(
                Further(
                    name=found.tags(band).get(LAYER_TAG, ""),
                    title=found.descriptions[band - 1] or "",
                    units=found.units[band - 1] or "",
                )
                for band in range(2, found.count + 1)
            )
    except RasterioError as err:
        raise OutputError(f"{path} cannot be read: {err}") from err


def own_tags(path: str | Path) -> tuple[tuple[str, str], ...]:
    """The tags of a file that tell what it holds and how it was made, for files made from it.

    Raises:
        OutputError: Not a GeoTIFF.
    """
    import rasterio  # noqa: PLC0415
    from rasterio.errors import RasterioError  # noqa: PLC0415

    try:
        with rasterio.open(path) as found:
            return own(found.tags())
    except RasterioError as err:
        raise OutputError(f"{path} cannot be read: {err}") from err


def range_of(tags: dict[str, str]) -> tuple[float, float]:
    """The range of a map of numbers, from ``tags_of``.

    Raises:
        OutputError: The tags are not of such a map.
    """
    try:
        low, high = json.loads(tags[RANGE_TAG])
        return float(low), float(high)
    except (KeyError, ValueError, TypeError) as err:
        raise OutputError(f"not a map of numbers of earthpress: tag {RANGE_TAG} is {tags.get(RANGE_TAG)!r}") from err


def read_layer(path: str | Path, name: str) -> tuple[NDArray[np.uint8], Box, str]:
    """The further band with a short name; as ``read_band`` gives it, description "" where there is none.

    Raises:
        OutputError: Not a GeoTIFF.
    """
    names = layers(path)
    return read_band(path, names.index(name) + 1 if name in names else len(names) + 1)


def _publish(
    file: Path,
    make: Callable[[Path], Path],
    *,
    names: Sequence[tuple[int, str]],
    side_colours: Sequence[tuple[int, str]] = (),
    at: Checkpoint,
) -> None:
    """Let ``make`` write a file in a temporary folder, then put it and its names in place."""
    _remove_stale(file)
    folder = file.with_name(f".{file.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
    try:
        folder.mkdir(parents=True)
        temp = make(folder)
        durable.sync_file(temp)
        _publish_names(file, names, colours=side_colours)
        at("names")
        temp.replace(file)
        durable.sync_folder(file.parent)
        at("placed")
    except OSError as err:
        raise OutputError(f"{file}: cannot be written: {err}") from err
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _stream(
    path: str | Path,
    form: streamed.Form,
    read: Read,
    *,
    names: Sequence[tuple[int, str]],
    side_colours: Sequence[tuple[int, str]],
    at: Checkpoint,
) -> None:
    def make(folder: Path) -> Path:
        sources, sums = streamed.fill(folder, form, read)
        at("filled")
        temp = folder / "made.tif"
        streamed.assemble(sources, temp, form)
        at("written")
        streamed.verify(temp, form, sums)
        return temp

    _publish(durable.local_path(path), make, names=names, side_colours=side_colours, at=at)


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
                **({"OVERVIEW_COUNT": 1} if 1 < max(bands.shape[1:]) <= BLOCK_PX else {}),  # else none here
                BIGTIFF="IF_SAFER",
            )


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


def sweep(folder: Path) -> None:
    """Delete what killed writers of any GeoTIFF in ``folder`` left."""
    _remove_stale(folder / "*.tif")


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
