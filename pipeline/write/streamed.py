"""Rasters of any number of bands written square by square, so that memory does not grow with bands or ground.

A COG begins with its smallest overview, so it can only be copied from something whole. Every band goes into a file of
its own in a temporary folder, gets overviews of its own kind there, and GDAL copies all of them into one file. What was
written is known by a checksum per square and compared with what the result reads back. Whose values they are, and when
the file becomes visible, is ``geotiff``'s business.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pipeline.errors import InvalidInputError, OutputError
from pipeline.write import vrt

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.write.frames import Frame

Read = Callable[[slice, slice], "Sequence[NDArray[Any]] | None"]
"""(row, col) slices of a frame to one (row, col) array per band; None where everything is nodata."""
Sums = tuple[tuple[int | None, ...], ...]
"""Per square the checksum of every band; None for nodata everywhere."""

BLOCK_PX = 512
WORK_BLOCK_PX = 256
"""Blocks of the temporary files: a block of the plan's area is whole, so none is written twice."""
CACHE_BYTES = 96 << 20
"""GDAL's cache of blocks while a file is made; by default it takes 5 % of the machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """One band of a file.

    Attributes:
        title: Its description in the file.
        overview: How its overviews are made.
        units: Unit of the values; "" for none.
        tags: (key, text) of the band.
        scale: Value of one number of the band (GDAL's scale).
    """

    title: str = ""
    overview: Literal["mode", "average"] = "average"
    units: str = ""
    tags: tuple[tuple[str, str], ...] = ()
    scale: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """What holds for a whole file.

    Attributes:
        frame: Its grid.
        bands: Its bands.
        dtype: ``uint8``, ``int8`` or ``float32``, of all of them.
        nodata: Of all of them.
        predictor: Whether values are stored as differences: good for continuous data, bad for classes.
        colours: Value to (red, green, blue) of the first band.
        tags: (key, text) of the file.
    """

    frame: Frame
    bands: tuple[Band, ...]
    dtype: str
    nodata: float | None
    predictor: bool
    colours: tuple[tuple[int, tuple[int, int, int]], ...] = ()
    tags: tuple[tuple[str, str], ...] = ()


def fill(folder: Path, form: Form, read: Read) -> tuple[tuple[Path, ...], Sums]:
    """Write every band into a file of its own in ``folder``; squares that are all nodata take no space.

    Returns:
        (paths in the order of the bands, checksums in the order of ``form.frame.squares()``).

    Raises:
        InvalidInputError: ``read`` gave other shapes or types than the form says.
    """
    import rasterio  # noqa: PLC0415
    from rasterio.windows import Window  # noqa: PLC0415

    paths = tuple(folder / f"band{number}.tif" for number in range(1, len(form.bands) + 1))
    sums: list[tuple[int | None, ...]] = []
    with _quiet():
        files = [rasterio.open(path, "w", **_profile(form)) for path in paths]
        try:
            for rows, cols in form.frame.squares():
                arrays = read(rows, cols)
                if arrays is None:
                    sums.append((None,) * len(files))
                    continue
                _check(arrays, form, rows, cols)
                window = Window(cols.start, rows.start, cols.stop - cols.start, rows.stop - rows.start)
                for file, array in zip(files, arrays, strict=True):
                    file.write(array, 1, window=window)
                sums.append(tuple(_sum(array) for array in arrays))
            if len(files) == 1:
                _describe(files[0], form)
        finally:
            for file in files:
                file.close()
    return paths, tuple(sums)


def assemble(sources: Sequence[Path], target: Path, form: Form) -> None:
    """Copy what ``fill`` wrote into one COG.

    One band goes through GDAL's COG driver. That driver makes all overviews in one way and would take three bands of
    bytes for a colour picture, so several bands get their overviews first, are put together by a virtual raster, and
    the GTiff driver copies them in the same layout.
    """
    from rasterio.enums import Resampling  # noqa: PLC0415
    from rasterio.shutil import copy  # noqa: PLC0415

    longest = max(form.frame.shape)
    with _quiet():
        if len(sources) == 1:
            copy(
                str(sources[0]),
                target,
                driver="COG",
                COMPRESS="DEFLATE",
                LEVEL="6",
                PREDICTOR="YES" if form.predictor else "NO",
                BLOCKSIZE=str(BLOCK_PX),
                OVERVIEW_RESAMPLING=form.bands[0].overview.upper(),
                **({"OVERVIEW_COUNT": 1} if longest <= BLOCK_PX else {}),  # else GDAL makes none here
                BIGTIFF="IF_SAFER",
                NUM_THREADS="ALL_CPUS",
            )
            return
        factors = [2]
        while -(-longest // factors[-1]) > BLOCK_PX:
            factors.append(2 * factors[-1])
        for path, band in zip(sources, form.bands, strict=True):
            _build_overviews(path, factors, Resampling[band.overview])
        virtual = target.with_suffix(".vrt")
        virtual.write_text(_virtual(sources, form, overviews=len(factors)), encoding="utf-8")
        predictor = "3" if form.dtype == "float32" else "2"
        copy(
            str(virtual),
            target,
            driver="GTiff",
            COMPRESS="DEFLATE",
            ZLEVEL="6",
            PREDICTOR=predictor if form.predictor else "1",
            TILED="YES",
            BLOCKXSIZE=str(BLOCK_PX),
            BLOCKYSIZE=str(BLOCK_PX),
            INTERLEAVE="BAND",
            PHOTOMETRIC="MINISBLACK",
            ALPHA="NO",
            COPY_SRC_OVERVIEWS="YES",
            BIGTIFF="IF_SAFER",
            NUM_THREADS="ALL_CPUS",
        )


def verify(target: Path, form: Form, sums: Sums) -> None:
    """Compare a file with what went into it.

    Raises:
        OutputError: It cannot be read, lies elsewhere, or reads back differently.
    """
    import rasterio  # noqa: PLC0415
    from rasterio.crs import CRS  # noqa: PLC0415
    from rasterio.errors import RasterioError  # noqa: PLC0415
    from rasterio.windows import Window  # noqa: PLC0415

    try:
        with _quiet(), rasterio.open(target) as found:
            same = (
                found.crs == CRS.from_user_input(form.frame.crs)
                and found.transform.almost_equals(form.frame.transform)
                and found.count == len(form.bands)
                and found.shape == form.frame.shape
            )
            for (rows, cols), wanted in zip(form.frame.squares(), sums, strict=True):
                window = Window(cols.start, rows.start, cols.stop - cols.start, rows.stop - rows.start)
                # One band at a time: the blocks of a band lie together, and memory stays that of one.
                same = same and all(
                    _same(found.read(number, window=window), total, form.nodata)
                    for number, total in enumerate(wanted, 1)
                )
    except RasterioError as err:
        raise OutputError(f"{target.name} cannot be read back: {err}") from err
    if not same:
        raise OutputError(f"{target.name} reads back differently from what was written")


def _quiet() -> Any:
    """GDAL with a small cache and without side files of its own."""
    import rasterio  # noqa: PLC0415

    return rasterio.Env(GDAL_PAM_ENABLED="NO", GDAL_CACHEMAX=CACHE_BYTES)


def _profile(form: Form) -> dict[str, Any]:
    frame = form.frame
    aligned = frame.row % WORK_BLOCK_PX == 0 and frame.col % WORK_BLOCK_PX == 0
    # A compressed block that is written twice leaves a hole, so only squares of whole blocks are compressed.
    packed = {"compress": "DEFLATE", "zlevel": 1} if aligned else {}
    return {
        "driver": "GTiff",
        "count": 1,
        "height": frame.height,
        "width": frame.width,
        "dtype": form.dtype,
        "crs": frame.crs,
        "transform": frame.transform,
        "nodata": form.nodata,
        "tiled": True,
        "blockxsize": WORK_BLOCK_PX,
        "blockysize": WORK_BLOCK_PX,
        "sparse_ok": True,
        "bigtiff": "IF_SAFER",
        **packed,
    }


def _describe(file: Any, form: Form) -> None:
    (band,) = form.bands
    if form.colours:
        file.write_colormap(1, dict(form.colours))
    if band.title:
        file.set_band_description(1, band.title)
    if band.units:
        file.set_band_unit(1, band.units)
    if band.scale != 1:
        file.scales = (band.scale,)
    file.update_tags(**dict(form.tags))
    file.update_tags(1, **dict(band.tags))


def _build_overviews(path: Path, factors: Sequence[int], kind: Any) -> None:
    import rasterio  # noqa: PLC0415

    with rasterio.Env(COMPRESS_OVERVIEW="DEFLATE", ZLEVEL_OVERVIEW="1"), rasterio.open(path, "r+") as made:
        made.build_overviews(list(factors), kind)


def _virtual(sources: Sequence[Path], form: Form, *, overviews: int) -> str:
    frame = form.frame
    bands = [
        vrt.VirtualBand(
            dtype=form.dtype,
            sources=(
                vrt.Source(
                    path=path.name,
                    relative=True,
                    band=1,
                    row=0,
                    col=0,
                    height=frame.height,
                    width=frame.width,
                    block=(WORK_BLOCK_PX, WORK_BLOCK_PX),
                ),
            ),
            nodata=form.nodata,
            description=band.title,
            units=band.units,
            scale=band.scale,
            palette=bool(form.colours) and not number,
            tags=band.tags,
            # Directory 1 of a TIFF is the full picture, the next ones are its overviews.
            overviews=tuple(f"GTIFF_DIR:{k + 2}:{path.absolute()}" for k in range(overviews)),
        )
        for number, (path, band) in enumerate(zip(sources, form.bands, strict=True))
    ]
    return vrt.text_of(frame, bands, tags=form.tags)


def _check(arrays: Sequence[NDArray[Any]], form: Form, rows: slice, cols: slice) -> None:
    want = (rows.stop - rows.start, cols.stop - cols.start)
    if len(arrays) != len(form.bands):
        raise InvalidInputError(f"{len(arrays)} arrays for {len(form.bands)} bands")
    for band, array in zip(form.bands, arrays, strict=True):
        if array.shape != want or array.dtype.name != form.dtype:
            raise InvalidInputError(
                f"band {band.title!r} is {array.dtype} {array.shape}, must have a name and be {form.dtype} {want}"
            )


def _sum(array: NDArray[Any]) -> int:
    return zlib.crc32(np.ascontiguousarray(array).data)


def _same(values: NDArray[Any], total: int | None, nodata: float | None) -> bool:
    if total is not None:
        return _sum(values) == total
    empty = np.isnan(values) if nodata is not None and np.isnan(nodata) else values == nodata
    return bool(empty.all())
