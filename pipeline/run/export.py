"""Take vectors and maps out of a store, for tools that read no Zarr: GeoTIFF, GeoParquet, NumPy, polygons.

Vectors come from any embedding store (an output folder, a store, a URL); no plan is needed. Class polygons come from
the GeoTIFFs of a map. Memory is bounded: all is read in squares of at most 2048 pixels a side, less for long vectors.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from pipeline import codes
from pipeline.errors import InvalidInputError, NoDataError, OutputError
from pipeline.plan import planner
from pipeline.run.folder import store_at
from pipeline.run.ground import GROUP_PX
from pipeline.run.stored import Stored
from pipeline.types import NODATA_CODE, PIXEL_M, Box, canonical_json
from pipeline.write import arrays_npy, durable, geotiff, polygons, store, streamed, vectors
from pipeline.write.frames import Frame, part_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

Form = Literal["cog", "pca", "parquet", "npy"]
"""How vectors leave a store: GeoTIFF of bands, GeoTIFF of principal components, GeoParquet, NumPy arrays."""
FORMS: tuple[Form, ...] = ("cog", "pca", "parquet", "npy")
PIECE_BYTES = 256 * 2**20
"""Float vectors that are held at once."""
PARQUET_PX = 256
"""Side of a row group: 65,536 rows at most."""
SAMPLE_SQUARES = 24
"""Squares, spread evenly, of which principal components are made."""
SAMPLE_STEP = 4
"""Every fourth row and column of them."""
MOST_COMPONENTS = 64
"""Bands of one GeoTIFF that people still open."""
HEADROOM = 1.25
"""Largest score that is not clipped, over the largest of the sample."""
SWEEP_S = 3600.0
"""Temporary files of killed exports are deleted when they have not changed for so long."""
NEAR_DEGREES = 30.0
"""How far from its central meridian a zone is looked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What was written.

    Attributes:
        files: Paths.
        rows: Vectors or polygons.
        bytes: Of all files.
        notes: What a reader of the files must know.
    """

    files: tuple[str, ...]
    rows: int
    bytes: int
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        return asdict(self)

    def lines(self) -> tuple[str, ...]:
        """For people."""
        return (*self.files, f"{self.rows:,} rows or pixels, {self.bytes / 1e6:,.1f} MB", *self.notes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to take out of a store.

    Attributes:
        form: As what.
        bbox: (west, south, east, north) degrees; None: everything.
        zone: UTM zone; None: all.
        on: A day of the time step; None: that of ``span``.
        span: Start and end of the time step; None: the newest one.
        bands: Which bands, from 0; none: all.
        components: Principal components, for ``pca``.
        cell_px: Average over squares of this many pixels of the store, for ``parquet`` and ``npy``.
        values: Float values instead of the stored codes.
        shape: Geometry of a row of GeoParquet.
    """

    form: Form
    bbox: tuple[float, float, float, float] | None = None
    zone: int | None = None
    on: date | None = None
    span: tuple[datetime, datetime] | None = None
    bands: tuple[int, ...] = ()
    components: int = 3
    cell_px: int = 1
    values: bool = False
    shape: Literal["point", "square"] = "point"

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise InvalidInputError(f"export as {self.form!r}: must be one of {', '.join(FORMS)} or polygons")
        if self.cell_px < 1 or self.cell_px > PARQUET_PX or PARQUET_PX % self.cell_px:
            raise InvalidInputError(f"--cell {self.cell_px} must divide {PARQUET_PX}: 1, 2, 4, ... {PARQUET_PX}")
        if self.cell_px > 1 and self.form in ("cog", "pca"):
            raise InvalidInputError("--cell averages rows of parquet and npy; GeoTIFFs have overviews for that")
        if not 1 <= self.components <= MOST_COMPONENTS:
            raise InvalidInputError(f"--components {self.components} must be 1 to {MOST_COMPONENTS}")


USEFUL = {
    "cog": ("--bands", "--values", "--date", "--zone"),
    "pca": ("--bands", "--components", "--date", "--zone"),
    "parquet": ("--bands", "--cell", "--values", "--squares", "--date", "--zone"),
    "npy": ("--bands", "--cell", "--values", "--date", "--zone"),
    "polygons": ("--map", "--simplify", "--crs"),
}
"""Options that mean something, by form."""


def refuse_useless(form: str, given: Sequence[str]) -> None:
    """Refuse options that a form would drop without a word.

    Raises:
        InvalidInputError: An option means nothing for the form, or there is no such form.
    """
    if form not in USEFUL:
        raise InvalidInputError(f"export as {form!r}: must be one of {', '.join(USEFUL)}")
    useless = [name for name in given if name not in USEFUL[form]]
    if useless:
        raise InvalidInputError(f"{' and '.join(useless)}: nothing to do for {form}; it has {', '.join(USEFUL[form])}")


def bbox_of(text: str | None) -> tuple[float, float, float, float] | None:
    """West, south, east, north of ``W,S,E,N``.

    Raises:
        InvalidInputError: Not four numbers in order.
    """
    if text is None:
        return None
    try:
        west, south, east, north = (float(part) for part in text.split(","))
    except ValueError:
        raise InvalidInputError(
            f"--bbox {text!r} is not four numbers west,south,east,north, e.g. 8.9,47.3,9.1,47.4"
        ) from None
    if not (-180 <= west < east <= 180 and -90 <= south < north <= 90):
        raise InvalidInputError(f"--bbox {text!r} must be west,south,east,north in degrees, west smaller than east")
    return west, south, east, north


def request_of(
    form: str,
    *,
    bbox: tuple[float, float, float, float] | None = None,
    zone: int | None = None,
    on: str | None = None,
    bands: str | None = None,
    components: int | None = None,
    cell_px: int | None = None,
    values: bool = False,
    shape: Literal["point", "square"] = "point",
) -> Request:
    """A request from the words of the command line.

    Raises:
        InvalidInputError: A word means nothing.
    """
    try:
        day = None if on is None else date.fromisoformat(on)
    except ValueError:
        raise InvalidInputError(f"--date {on!r} is not a date, e.g. 2024-04-01") from None
    return Request(
        form=cast("Form", form),
        bbox=bbox,
        zone=zone,
        on=day,
        bands=() if bands is None else _numbers(bands),
        components=3 if components is None else components,
        cell_px=1 if cell_px is None else cell_px,
        values=values,
        shape=shape,
    )


def _numbers(text: str) -> tuple[int, ...]:
    """``0,5,10-12`` as numbers."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise InvalidInputError(f"--bands {text!r} is not a list of numbers and ranges, e.g. 0,5,10-19")
        found += range(int(first), int(last if dash else first) + 1)
    return tuple(found)


def export(
    what: str, request: Request, *, to: str | None = None, note: Callable[[str], None] = lambda _text: None
) -> Exported:
    """Take vectors out of a store.

    Args:
        what: Output folder, store or URL of a store.
        request: Which, and as what.
        to: File (``parquet``) or folder; None: ``exports`` in the output, beside a store, or here for a URL.
        note: Called with a line of text before each slow step.

    Raises:
        InvalidInputError: The request does not fit the store.
        NoDataError: No vector lies there, or an output has written nothing yet.
        OutputError: There is no store, or a file cannot be written.
    """
    place = store_at(what)
    is_output = (Path(what) / planner.PLAN_FOLDER / "request.json").is_file()
    held = _Held.of(place, _of_output(what, place, request) if is_output else request)
    folder = Path(what) / "exports" if is_output else _beside(place)
    target = Path(to) if to else folder / (f"{held.name}.parquet" if request.form == "parquet" else held.name)
    _clean(target.parent if request.form == "parquet" else target)
    if request.form == "parquet":
        note(f"writing {target}")
        return _parquet(held, target)
    if request.form == "npy":
        note(f"writing arrays into {target}")
        return _arrays(held, target)
    basis = None
    if request.form == "pca":
        note("principal components of a sample of the store")
        basis = _components(held)
    note(f"writing GeoTIFFs into {target}")
    return _rasters(held, target, basis)


def export_polygons(
    what: str,
    *,
    name: str | None = None,
    to: str | None = None,
    bbox: tuple[float, float, float, float] | None = None,
    simplify_m: float = 0.0,
    crs: str = "",
) -> Exported:
    """The class map of an output, or class GeoTIFFs, as polygons with class and area.

    Args:
        what: Output folder, or a GeoTIFF of a class map.
        name: Which map; None: the only one.
        to: ``.parquet`` or ``.gpkg``; None: ``exports/<map>.gpkg`` in the output.
        bbox: (west, south, east, north) degrees; None: everything.
        simplify_m: Tolerance, metres; 0 keeps the outlines of pixels.
        crs: Of the file; "": the zone's, or EPSG:4326 for several zones.

    Raises:
        InvalidInputError: There is no such class map, or nothing to write.
        OutputError: The file cannot be written.
    """
    if not 0 <= simplify_m < float("inf"):
        raise InvalidInputError(f"--simplify {simplify_m} must be 0 or a number of metres")
    files, title, folder = _map_files(Path(what), name)
    classes = geotiff.classes_of(files[0])
    zones: dict[int, polygons.Patches] = {}
    for path in files:
        for box, values in geotiff.squares(path):
            part = box if bbox is None else _cut(box, bbox)
            if part is None:
                continue
            patches = zones.setdefault(part.zone, polygons.Patches(zone=part.zone, res_m=part.res_m))
            patches.add(part, values[part.slices_in(box)])
    target = Path(to) if to else folder / "exports" / f"{title}.gpkg"
    _clean(target.parent)
    patches_of = (zones[zone] for zone in sorted(zones))
    count = polygons.write_polygons(target, patches_of, classes=classes, simplify_m=simplify_m, crs=crs)
    note = "area_m2 and pixels are those of the map's pixels" + (", before simplifying" if simplify_m else "")
    return _done((target,), count, (note,))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Held:
    """A store, and what of it is asked for.

    Attributes:
        stored: The store at its time step.
        request: What is asked for.
        extents: Ground per zone, pixels of the store.
        bands: Indices of the bands.
        span: Dates of the time step.
        warning: Of the store.
    """

    stored: Stored
    request: Request
    extents: tuple[Box, ...]
    bands: tuple[int, ...]
    span: tuple[datetime, datetime]
    warning: str

    @classmethod
    def of(cls, place_text: str, request: Request) -> _Held:
        steps = store.times(place_text)
        step = steps.index(request.span) if request.span and request.on is None else _step(steps, request.on)
        stored = Stored.at(place_text, step)
        bands = request.bands or tuple(range(stored.calibration.bands))
        wrong = [band for band in bands if not 0 <= band < stored.calibration.bands]
        if wrong or len(set(bands)) != len(bands):
            raise InvalidInputError(
                f"--bands {wrong or bands}: the store has bands 0 to {stored.calibration.bands - 1}"
            )
        extents = [box for box in store.zones(place_text) if request.zone in (None, box.zone)]
        if not extents:
            raise InvalidInputError(f"the store has no zone {request.zone}")
        cut = [box if request.bbox is None else _cut(box, request.bbox, cell=request.cell_px) for box in extents]
        found = tuple(box for box in cut if box is not None)
        if not found:
            raise NoDataError(f"--bbox {request.bbox} does not touch the ground of the store")
        warning = str(store.root_attributes(place_text).get("warning", ""))
        return cls(stored=stored, request=request, extents=found, bands=bands, span=steps[step], warning=warning)

    @property
    def name(self) -> str:
        """First part of file names."""
        what = f"pca{self.request.components}" if self.request.form == "pca" else "embeddings"
        return f"{what}_{self.span[0]:%Y-%m-%d}"

    @property
    def scaled(self) -> bool:
        """Whether codes leave as they are: int8 with one value of a step per band."""
        return bool(self.stored.calibration.scale) and not self.request.values

    @property
    def dtype(self) -> str:
        """Of what leaves."""
        return "int8" if self.scaled else "float32"

    def read(self, box: Box) -> tuple[NDArray[Any], NDArray[np.bool_]] | None:
        """((band, row, col) of ``dtype``, (row, col) valid) of a box; None where there is no vector."""
        coded = self.stored.coded(box)
        valid = coded.valid
        if not valid.any():
            return None
        bands = list(self.bands)
        if self.scaled:
            return coded.codes[bands], valid
        return codes.decode(coded, self.stored.calibration)[bands], valid

    def pieces(self, side_px: int) -> Iterator[Box]:
        """The ground in squares of the lattice, along a Hilbert curve in every zone."""
        for extent in self.extents:
            boxes = [part_of(extent, *cut) for cut in Frame.of(extent).squares(side_px)]
            row, col = min(b.row // side_px for b in boxes), min(b.col // side_px for b in boxes)
            places = vectors.hilbert(
                np.array([b.col // side_px - col for b in boxes]), np.array([b.row // side_px - row for b in boxes])
            )
            yield from (boxes[k] for k in np.argsort(places, kind="stable"))

    def about(self) -> dict[str, Any]:
        """How to read what was written."""
        calibration = self.stored.calibration
        own: dict[str, Any] = {
            "software": "earthpress",
            "start": self.span[0].isoformat(),
            "end": self.span[1].isoformat(),
            "bands": list(self.bands),
            "dtype": self.dtype,
            "quantiser": calibration.quantiser,
            "pixel_m": self.extents[0].res_m,
            "warning": self.warning,
        }
        if self.scaled:
            own |= {"nodata": NODATA_CODE, "scale": [calibration.scale[band] for band in self.bands]}
            own["dequantise"] = "value = code * scale[band]"
        return own


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Basis:
    """Principal components of a store.

    Attributes:
        mean: (dim,) centre.
        components: (k, dim) orthonormal rows, largest variance first, the largest loading positive.
        step: Value of one code step, shared by all.
        explained: Share of the sample's variance of each.
    """

    mean: NDArray[np.float64]
    components: NDArray[np.float64]
    step: float
    explained: tuple[float, ...]

    def codes(self, values: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.int8]:
        """(k, row, col) int8 scores of (dim, row, col) values; -128 where not valid."""
        flat = np.where(valid, values, 0).reshape(len(values), -1)
        scores = (self.components / self.step) @ flat - ((self.components / self.step) @ self.mean)[:, None]
        made = np.clip(np.rint(scores), -codes.MAX_CODE, codes.MAX_CODE).astype(np.int8).reshape(-1, *valid.shape)
        return np.where(valid, made, np.int8(NODATA_CODE))


def _of_output(what: str, place_text: str, request: Request) -> Request:
    """The request at the dates of an output: its store may hold newer ones of other outputs."""
    plan = planner.load_plan(what)
    span = plan.periods[0].start, plan.periods[-1].end
    if request.on is not None:
        return request
    if span not in store.times(place_text):
        raise NoDataError(f"{what} has written no vector of its dates yet: earthpress run {what}, or --date")
    return replace(request, span=span)


def _step(steps: Sequence[tuple[datetime, datetime]], on: date | None) -> int:
    if on is None:
        return max(range(len(steps)), key=lambda k: steps[k])
    moment = datetime(on.year, on.month, on.day, tzinfo=UTC)
    inside = [k for k, (start, end) in enumerate(steps) if start <= moment < end]
    if not inside:
        held = ", ".join(f"{start:%Y-%m-%d} to {end:%Y-%m-%d}" for start, end in steps)
        raise InvalidInputError(f"--date {on:%Y-%m-%d} lies in no time step of the store: {held}")
    return inside[-1]


def _cut(box: Box, bbox: tuple[float, float, float, float], *, cell: int = 1) -> Box | None:
    """The pixels of a box around a rectangle of degrees, whole cells of them; None where they do not meet."""
    from pyproj import Transformer  # noqa: PLC0415

    west, south, east, north = bbox
    middle = 6 * box.zone - 183
    # Zones 1 and 60 have ground on both sides of the 180th meridian: the rectangle is looked at one turn away too.
    turns = [(west + turn, east + turn) for turn in (-360, 0, 360)]
    near = [(w, e) for w, e in turns if w < middle + NEAR_DEGREES and e > middle - NEAR_DEGREES]
    if not near:
        return None  # far away, where the projection folds
    west = max(min(w for w, _ in near), middle - NEAR_DEGREES)
    east = min(max(e for _, e in near), middle + NEAR_DEGREES)
    x0, y0, x1, y1 = Transformer.from_crs(4326, box.epsg, always_xy=True).transform_bounds(west, south, east, north)
    if not np.isfinite([x0, y0, x1, y1]).all():
        return None
    res = box.res_m
    rows, cols = (int(-y1 // res), int(-(y0 // res))), (int(x0 // res), int(-(-x1 // res)))
    wanted = Box(
        zone=box.zone, res_m=res, row=rows[0], col=cols[0],
        height=max(1, rows[1] - rows[0]), width=max(1, cols[1] - cols[0]),
    )  # fmt: skip
    # A cell is a mean of all its pixels, whatever part is asked for.
    return box.intersect(_whole_cells(wanted, cell))


def _clean(folder: Path) -> None:
    """Delete what killed exports left in a folder that users may share with other things: not below it."""
    durable.sweep(folder, older_than_s=SWEEP_S, below=False)
    if folder.is_dir():
        geotiff.sweep(folder)


def _beside(place_text: str) -> Path:
    return Path("exports") if "://" in place_text else Path(place_text).parent / "exports"


def _side_px(held: _Held) -> int:
    """Side of the squares that are read: a power of two."""
    side = 2048
    while side > PARQUET_PX and held.stored.calibration.bands * side * side * 4 > PIECE_BYTES:
        side //= 2
    return side


def _parquet(held: _Held, target: Path) -> Exported:
    if target.suffix != ".parquet":
        raise InvalidInputError(f"{target.name}: GeoParquet files end with .parquet")
    cell = held.request.cell_px
    columns = () if cell > 1 else (("n_obs", "uint8"),)
    dtype = "float32" if cell > 1 and not held.scaled else held.dtype

    def pieces() -> Iterator[vectors.Piece]:
        for box in held.pieces(PARQUET_PX):
            found = _averaged(held, box) if cell > 1 else held.read(box)
            if found is None:
                continue
            further = () if cell > 1 else (("n_obs", held.stored.layer(box, "n_obs")),)
            yield vectors.Piece(box=_coarse(box, cell), values=found[0], valid=found[1], columns=further)

    about = held.about() | {"cell_px": cell}
    try:
        rows = vectors.write_parquet(
            target, pieces(), bands=len(held.bands), dtype=dtype, shape=held.request.shape, columns=columns, about=about
        )
    except InvalidInputError as err:
        raise NoDataError(str(err)) from err
    return _done((target,), rows, ("how to read the vectors is in the file's metadata, key 'earthpress'",))


def _averaged(held: _Held, box: Box) -> tuple[NDArray[Any], NDArray[np.bool_]] | None:
    """Means over cells; the codes' means where codes leave, which are the codes of the means."""
    grown = _whole_cells(box, held.request.cell_px)
    found = held.read(box)
    if found is None:
        return None
    values = np.where(found[1], found[0].astype(np.float32), np.float32(np.nan))
    whole = np.full((len(values), *grown.shape), np.nan, np.float32)
    whole[:, *box.slices_in(grown)] = values
    means, enough = vectors.averaged(whole, held.request.cell_px)
    if held.scaled:
        return np.where(enough, np.rint(means), NODATA_CODE).astype(np.int8), enough
    return means, enough


def _whole_cells(box: Box, cell: int) -> Box:
    return Box(
        zone=box.zone,
        res_m=box.res_m,
        row=box.row // cell * cell,
        col=box.col // cell * cell,
        height=-(-box.row_stop // cell) * cell - box.row // cell * cell,
        width=-(-box.col_stop // cell) * cell - box.col // cell * cell,
    )


def _coarse(box: Box, cell: int) -> Box:
    return box if cell == 1 else _whole_cells(box, cell).cover(box.res_m * cell)


def _arrays(held: _Held, folder: Path) -> Exported:
    """One array and one text file per zone."""
    cell, files, pixels = held.request.cell_px, [], 0
    side = _side_px(held)
    for zone, group in groupby(held.pieces(side), key=lambda box: box.zone):
        extent = next(box for box in held.extents if box.zone == zone)
        whole = _coarse(extent, cell)
        path = folder / f"{held.name}_utm{zone:02d}.npy"

        def filled(boxes: Iterator[Box] = group) -> Iterator[tuple[Box, NDArray[Any], int]]:
            for box in boxes:
                found = _averaged(held, box) if cell > 1 else held.read(box)
                if found is not None:
                    yield _coarse(box, cell), found[0], int(found[1].sum())

        nodata = NODATA_CODE if held.scaled else np.nan
        count = arrays_npy.write_array(
            path,
            filled(),
            box=whole,
            bands=len(held.bands),
            dtype=held.dtype,
            nodata=nodata,
            about=held.about() | {"cell_px": cell},
        )
        pixels += count
        files += [path, path.with_suffix(".json")] if count else []
    if not pixels:
        raise NoDataError("there is no vector to write")
    return _done(tuple(files), pixels, ("the .json beside each array has its transform, scales and dates",))


def _components(held: _Held) -> _Basis:
    """Components of a regular sample of the store; the first bands of a store that holds scores already."""
    k, chosen = held.request.components, held.stored.calibration
    if k > len(held.bands):
        raise InvalidInputError(f"--components {k}: there are {len(held.bands)} bands")
    boxes = list(held.pieces(PARQUET_PX))
    picked = {round(at) for at in np.linspace(0, len(boxes) - 1, min(SAMPLE_SQUARES, len(boxes)))}
    rows = []
    for box in (boxes[n] for n in sorted(picked)):
        found = codes.decode(held.stored.coded(box), chosen)[list(held.bands), ::SAMPLE_STEP, ::SAMPLE_STEP]
        flat = found.reshape(len(found), -1)
        rows.append(flat[:, np.isfinite(flat[0])].T.astype(np.float64))
    sample = np.concatenate(rows)
    if len(sample) <= k:
        raise NoDataError(f"{len(sample)} vectors in the sample are too few for {k} components")
    mean = sample.mean(axis=0)
    components, variances = codes.principal(np.atleast_2d(np.cov(sample - mean, rowvar=False)), k)
    peak = float(np.abs((sample - mean) @ components.T).max())
    share = np.maximum(variances[:k], 0) / max(float(variances.sum()), 1e-30)
    return _Basis(
        mean=mean,
        components=components,
        step=max(HEADROOM * peak / codes.MAX_CODE, 1e-30),
        explained=tuple(float(f"{value:.4g}") for value in share),
    )


def _rasters(held: _Held, folder: Path, basis: _Basis | None) -> Exported:
    """One GeoTIFF per 8192 px square of ground and zone."""
    files, pixels = [], 0
    scale = held.stored.calibration.scale
    if basis is not None:
        bands = tuple(streamed.Band(title=f"component {n}", scale=basis.step) for n in range(len(basis.components)))
        about = held.about() | {
            "components": basis.components.tolist(),
            "mean": basis.mean.tolist(),
            "scale": basis.step,
            "explained": list(basis.explained),
            "dequantise": "score = code * scale = components @ (vector - mean)",
            "dtype": "int8",
            "nodata": NODATA_CODE,
        }
    else:
        bands = tuple(
            streamed.Band(title=f"band {band}", scale=scale[band] if held.scaled else 1.0) for band in held.bands
        )
        about = held.about()
    int8 = basis is not None or held.scaled
    tags = (
        ("EARTHPRESS_EMBEDDING", canonical_json({k: v for k, v in about.items() if k not in ("components", "mean")})),
        ("TIFFTAG_SOFTWARE", "earthpress"),
    )
    for box in _groups(held):
        if all(_raster_part(held, part_of(box, *cut), basis) is None for cut in Frame.of(box).squares()):
            continue
        square = GROUP_PX * PIXEL_M // box.res_m
        path = folder / f"{held.name}_utm{box.zone:02d}_r{box.row // square}_c{box.col // square}.tif"
        count = [0]

        def read(rows: slice, cols: slice, box: Box = box, count: list[int] = count) -> list[NDArray[Any]] | None:
            found = _raster_part(held, part_of(box, rows, cols), basis)
            if found is None:
                return None
            count[0] += int(found[1].sum())
            return list(found[0])

        geotiff.write_bands(
            path,
            read,
            box=box,
            bands=bands,
            dtype="int8" if int8 else "float32",
            nodata=NODATA_CODE if int8 else float("nan"),
            tags=tags,
        )
        files.append(path)
        pixels += count[0]
    if not files:
        raise NoDataError("there is no vector to write")
    side = folder / f"{held.name}.json"
    durable.replace(side, (json.dumps(about, indent=1) + "\n").encode())
    note = "codes with their scale per band (GDAL's scale); -128 is nodata" if int8 else "values; NaN is nodata"
    return _done((*files, side), pixels, (note,))


def _raster_part(held: _Held, box: Box, basis: _Basis | None) -> tuple[NDArray[Any], NDArray[np.bool_]] | None:
    """The bands of a square, read in smaller ones where vectors are long."""
    out: NDArray[Any] | None = None
    valid = np.zeros(box.shape, np.bool_)
    for rows, cols in Frame.of(box).squares(_side_px(held)):
        part = part_of(box, rows, cols)
        if basis is None:
            found = held.read(part)
        else:
            values = codes.decode(held.stored.coded(part), held.stored.calibration)[list(held.bands)]
            seen = np.isfinite(values[0])
            found = (basis.codes(values, seen), seen) if seen.any() else None
        if found is None:
            continue
        if out is None:
            nodata: Any = NODATA_CODE if found[0].dtype == np.int8 else np.nan
            out = np.full((len(found[0]), *box.shape), nodata, found[0].dtype)
        out[:, rows, cols], valid[rows, cols] = found
    return None if out is None else (out, valid)


def _groups(held: _Held) -> Iterator[Box]:
    """The ground of every GeoTIFF."""
    for extent in held.extents:
        side = GROUP_PX * PIXEL_M // extent.res_m
        yield from (part_of(extent, *cut) for cut in Frame.of(extent).squares(side))


def _map_files(what: Path, name: str | None) -> tuple[list[Path], str, Path]:
    """The GeoTIFFs of a class map, its name, and the folder of the output."""
    if what.suffix == ".tif":
        return [what], what.stem, what.parent
    folder = what / "maps"
    named: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*_utm*_r*_c*.tif")):
        named.setdefault(path.name.rsplit("_utm", 1)[0], []).append(path)
    classed = {title: files for title, files in named.items() if _has_classes(files[0])}
    if name is not None and name not in classed:
        raise InvalidInputError(f"{what} has no class map {name!r}; it has {', '.join(classed) or 'none'}")
    if name is None and len(classed) != 1:
        raise InvalidInputError(f"{what} has the class maps {', '.join(classed) or 'none'}: say which, --map NAME")
    title = name or next(iter(classed))
    return classed[title], title, what


def _has_classes(path: Path) -> bool:
    try:
        return bool(geotiff.classes_of(path))
    except OutputError:
        return False


def _done(files: Sequence[Path], rows: int, notes: tuple[str, ...]) -> Exported:
    size = sum(file.stat().st_size for file in files)
    return Exported(files=tuple(str(file) for file in files), rows=rows, bytes=size, notes=notes)
