"""The frozen values that flow from stage to stage.

Stages know these values and not each other. Rules that hold for all of them: fields are tuples, never lists or dicts;
values that hold arrays compare by identity (``eq=False``); nobody writes into an array it did not create; a mask is
called ``valid`` and True means usable; rasters are indexed ``row, col`` with row 0 in the north; times are UTC.

The lattice: every UTM zone has one integer lattice in the plane of EPSG:326NN (also in the south, where northings
are negative), origin (0, 0), north-up. Lattice pixel (row, col) of resolution ``res_m`` covers
x in [col*res_m, (col+1)*res_m) and y in (-(row+1)*res_m, -row*res_m]; rows north of the equator are negative.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, replace
from datetime import date, datetime
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from affine import Affine
    from numpy.typing import NDArray

PIXEL_M = 10
"""Side of a lattice pixel of the output, metres."""
BLOCK_PX = 256
"""Side of a block: the smallest piece of a tile that an area can want."""
CELL_PX = 2048
"""Side of a ranking cell: scenes are ranked once per cell and period, whatever the tile."""
NODATA_CODE = -128
"""int8 code of a pixel without an embedding."""
COLOUR_M = 80
"""Side of a pixel of the true colours, metres."""
COLOUR_TOP = 0.3
"""Reflectance of the brightest true colour: bare soil and most roofs lie below, clouds and snow are white."""
DN_OFFSET = 1000
"""Every Sentinel-2 Stack holds DN as processing baseline 04.00 and later encodes it: reflectance * 10000 + 1000, 0 is
nodata (ESA, Sentinel-2 Products Specification, radiometric offset). Older scenes get +1000 when read, so that the
subtraction happens once, after resampling, which keeps parity with the readers the model was trained with."""


class Reason(IntEnum):
    """Why an output pixel has no embedding (layer ``reason`` of the store, uint8)."""

    VALID = 0
    NOT_REQUESTED = 1
    NO_OBSERVATION = 2
    READ_FAILED = 3
    OTHER_ZONE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A rectangle of lattice pixels in one UTM zone.

    Attributes:
        zone: UTM zone number, 1..60.
        res_m: Side of a pixel, metres.
        row: Lattice row of the northern edge (negative north of the equator).
        col: Lattice column of the western edge.
        height: Rows.
        width: Columns.
    """

    zone: int
    res_m: int
    row: int
    col: int
    height: int
    width: int

    def __post_init__(self) -> None:
        if not 1 <= self.zone <= 60:
            raise InvalidInputError(f"Box.zone is {self.zone}, must be 1..60")
        if self.res_m <= 0 or self.height <= 0 or self.width <= 0:
            raise InvalidInputError(f"Box needs positive res_m, height and width, got {self}")

    @property
    def row_stop(self) -> int:
        """Row after the southern edge."""
        return self.row + self.height

    @property
    def col_stop(self) -> int:
        """Column after the eastern edge."""
        return self.col + self.width

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width)."""
        return self.height, self.width

    @property
    def epsg(self) -> int:
        """EPSG code of the lattice plane: 326NN in both hemispheres."""
        return 32600 + self.zone

    @property
    def bounds_m(self) -> tuple[float, float, float, float]:
        """(x_min, y_min, x_max, y_max) in the lattice plane, metres."""
        r = float(self.res_m)
        return self.col * r, -self.row_stop * r, self.col_stop * r, -self.row * r

    @property
    def transform(self) -> Affine:
        """Affine from (col, row) of the array to (x, y) metres, as rasterio uses it."""
        from affine import Affine  # noqa: PLC0415

        return Affine(self.res_m, 0, self.col * self.res_m, 0, -self.res_m, -self.row * self.res_m)

    def intersect(self, other: Box) -> Box | None:
        """The common part, or None; both must share zone and resolution."""
        if (self.zone, self.res_m) != (other.zone, other.res_m):
            raise InvalidInputError(f"boxes of different lattices: {self} and {other}")
        row, col = max(self.row, other.row), max(self.col, other.col)
        height, width = min(self.row_stop, other.row_stop) - row, min(self.col_stop, other.col_stop) - col
        if height <= 0 or width <= 0:
            return None
        return Box(zone=self.zone, res_m=self.res_m, row=row, col=col, height=height, width=width)

    def pad(self, px: int) -> Box:
        """The box grown by ``px`` pixels on every side."""
        return Box(
            zone=self.zone,
            res_m=self.res_m,
            row=self.row - px,
            col=self.col - px,
            height=self.height + 2 * px,
            width=self.width + 2 * px,
        )

    def cover(self, res_m: int, *, pad_px: int = 0) -> Box:
        """The smallest box of lattice ``res_m`` that covers this one, grown by ``pad_px`` of its own pixels."""
        row, col = self.row * self.res_m // res_m, self.col * self.res_m // res_m
        row_stop = -(-self.row_stop * self.res_m // res_m)
        col_stop = -(-self.col_stop * self.res_m // res_m)
        box = Box(zone=self.zone, res_m=res_m, row=row, col=col, height=row_stop - row, width=col_stop - col)
        return box.pad(pad_px) if pad_px else box

    def slices_in(self, outer: Box) -> tuple[slice, slice]:
        """(row, col) slices that cut this box out of an array laid over ``outer``."""
        row, col = self.row - outer.row, self.col - outer.col
        if row < 0 or col < 0 or self.row_stop > outer.row_stop or self.col_stop > outer.col_stop:
            raise InvalidInputError(f"{self} does not lie inside {outer}")
        return slice(row, row + self.height), slice(col, col + self.width)


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Tile:
    """Unit of planning, reading, retry and commit.

    Attributes:
        zone: UTM zone, 1..60.
        row: Tile row of the zone lattice (lattice row // tile_px).
        col: Tile column of the zone lattice.
        tile_px: Side in 10 m pixels, a power of two, 256..2048.
    """

    zone: int
    row: int
    col: int
    tile_px: int

    @property
    def id(self) -> str:
        """Stable name, safe in file names: ``z31_r-1100_c97``."""
        return f"z{self.zone:02d}_r{self.row}_c{self.col}"

    @classmethod
    def parse(cls, tile_id: str, *, tile_px: int) -> Tile:
        """The tile of an ``id``.

        Raises:
            InvalidInputError: Not the id of a tile.

        >>> Tile.parse("z31_r-1100_c97", tile_px=512).id
        'z31_r-1100_c97'
        """
        found = re.fullmatch(r"z(\d\d)_r(-?\d+)_c(-?\d+)", tile_id)
        if found is None:
            raise InvalidInputError(f"{tile_id!r} is not the id of a tile, e.g. z31_r-1100_c97")
        zone, row, col = (int(part) for part in found.groups())
        return cls(zone=zone, row=row, col=col, tile_px=tile_px)

    @property
    def box(self) -> Box:
        """The tile's 10 m pixels."""
        n = self.tile_px
        return Box(zone=self.zone, res_m=PIXEL_M, row=self.row * n, col=self.col * n, height=n, width=n)

    def block_box(self, block_row: int, block_col: int) -> Box:
        """The 10 m pixels of block (block_row, block_col), counted from the tile's north-west corner."""
        b = self.box
        row, col = b.row + block_row * BLOCK_PX, b.col + block_col * BLOCK_PX
        return Box(zone=self.zone, res_m=PIXEL_M, row=row, col=col, height=BLOCK_PX, width=BLOCK_PX)


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Cell:
    """A square of ``CELL_PX`` lattice pixels in which scenes are ranked."""

    zone: int
    row: int
    col: int

    @property
    def id(self) -> str:
        """Stable name: ``z31_r-275_c24``."""
        return f"z{self.zone:02d}_r{self.row}_c{self.col}"

    @property
    def box(self) -> Box:
        """The cell's 10 m pixels."""
        row, col = self.row * CELL_PX, self.col * CELL_PX
        return Box(zone=self.zone, res_m=PIXEL_M, row=row, col=col, height=CELL_PX, width=CELL_PX)


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """One time step of the model: half-open UTC interval; its model date is the start."""

    index: int
    start: datetime
    end: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Asset:
    """One raster file of a scene.

    Attributes:
        band: Band name as the model calls it (``B02``, ``SCL``).
        href: Unsigned URL or path; signed at open, never stored signed.
        band_index: 1-based band of a multi-band file.
    """

    band: str
    href: str
    band_index: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One STAC item, reduced to what planning and reading need.

    Attributes:
        id: Item id.
        collection: Collection id.
        sensor: ``sentinel2_l2a``, ``sentinel1`` or ``landsat``.
        acquired: UTC time of acquisition.
        cloud_pct: Scene-level cloud cover, 0..100; None when the item does not say (ranks last).
        footprint: Valid area, lon/lat EPSG:4326, as hexadecimal WKB.
        assets: Files by band, sorted by band.
        boa_offset: What must be ADDED to a DN of this scene to reach the Stack's encoding (``DN_OFFSET``):
            0 for processing baseline >= 04.00, 1000 before.
        version: What changes when the provider reprocesses the scene (baseline, generation time or ``updated``).
        sign: True when hrefs need planetary-computer signing at open.
        acquisition: ``platform-datatake_tile``: equal for reprocessed versions of one granule; "" when unknown.
        check_offset: True when the catalogue's word on the offset is not to be trusted: the reader looks at pixels
            (``read.offsets``) before it believes ``boa_offset``.
        orbit: ``ascending`` or ``descending``; "" when the item does not say.
        quantity: What Sentinel-1 pixels are: ``gamma0`` or ``sigma0`` (linear power); "" for other sensors.
        alternates: The same product (same acquisition and version) in other catalogues, in their order: read when a
            file of this one cannot be. They have no alternates of their own.
    """

    id: str
    collection: str
    sensor: str
    acquired: datetime
    cloud_pct: float | None
    footprint: str
    assets: tuple[Asset, ...]
    boa_offset: int = 0
    version: str = ""
    sign: bool = False
    acquisition: str = ""
    check_offset: bool = False
    orbit: str = ""
    quantity: str = ""
    alternates: tuple[Scene, ...] = ()

    def href(self, band: str) -> Asset | None:
        """The asset of ``band``, or None when the scene lacks it."""
        return next((a for a in self.assets if a.band == band), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """The scenes of one sensor that may fill one period of one cell, in the order that the composite asks for.

    ``scene_ids`` are item ids; ``fingerprint`` hashes the sensor and, in that order, what of each scene decides pixels:
    id, version, offset and whether it is checked, quantity, bands.
    """

    cell: Cell
    period: int
    scene_ids: tuple[str, ...]
    fingerprint: str
    sensor: str = "sentinel2_l2a"


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a tile (or a whole plan) will need; every field has a measured twin in ``Usage``.

    Attributes:
        windows: Encoder windows evaluated.
        tokens: Tokens the encoder reads (windows x cells x periods).
        flops: Floating point operations of the encoder, attention included.
        bytes_read: Bytes of pixels decoded; an archive of COGs transfers about 0.7 of it plus whole blocks at edges.
        bytes_written: Bytes of the store.
        peak_bytes: Peak host memory of the process while the tile is in work.
        device_s: Seconds of the device (CPU: core-seconds).
        usd: Cost, None when the price is unknown.
    """

    windows: int = 0
    tokens: int = 0
    flops: float = 0.0
    bytes_read: int = 0
    bytes_written: int = 0
    peak_bytes: int = 0
    device_s: float = 0.0
    usd: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One tile of a plan: what to compute and from which candidates.

    Attributes:
        tile: Where.
        blocks: Wanted (block_row, block_col), sorted, counted from the tile's north-west corner.
        candidates: Per sensor, cell that the read halo touches and period, in the order of the plan's sensors, then
            sorted by (cell, period).
        fingerprint: Hash of everything that decides the pixels; equal fingerprints mean equal bytes.
        estimate: What it will cost.
    """

    tile: Tile
    blocks: tuple[tuple[int, int], ...]
    candidates: tuple[Candidates, ...]
    fingerprint: str
    estimate: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """What is known about a model before it is built.

    Attributes:
        name: What the user asked for (folder, file, Hugging Face id or ``random:v1.2-nano:0``).
        version: ``v1``, ``v1.1``, ``v1.2`` or ``v1.3``.
        size: ``nano``, ``tiny``, ... or ``custom``.
        dims: Width of the vector that is written, see ``output``.
        depth: Encoder blocks.
        heads: Attention heads.
        parameters: Numbers in the encoder parts that inference needs.
        sensors: Sensors that it accepts.
        sha256: Hash of the weights (file bytes; for random weights, of the tensors).
        config: Hash of the encoder's configuration (widths, band order, position scales): with ``sha256`` it decides
            every vector.
        trained: False for random weights: everything made with them must be labelled as untrained.
        width: Width of a token; 0: the same as ``dims``.
        hidden: Channels of the per-pixel layer of the patch embedding; 0: a convolution (v1).
        band_sets: (sensor, number of bands of each of its band sets) of every sensor.
        pooler_depth: Layers of the attention pooler; 0: none.
        student: Width of the pooler's student; 0: none.
        output: Which vector is written: ``mean``, ``max``, ``location``, ``student`` or ``student64``.
        licence: Of the weights, "" when unknown.
    """

    name: str
    version: str
    size: str
    dims: int
    depth: int
    heads: int
    parameters: int
    sensors: tuple[str, ...]
    sha256: str
    trained: bool
    config: str = ""
    width: int = 0
    hidden: int = 0
    band_sets: tuple[tuple[str, tuple[int, ...]], ...] = ()
    pooler_depth: int = 0
    student: int = 0
    output: str = "mean"
    licence: str = ""

    @property
    def token_width(self) -> int:
        """Width of a token inside the encoder."""
        return self.width or self.dims


@dataclass(frozen=True, slots=True, kw_only=True)
class Numerics:
    """The numerics class: two runs with equal fields give identical bytes; fixed when the store is created.

    Attributes:
        device: ``cpu`` or ``cuda``.
        device_name: Product name of the device (the instruction set level on a CPU).
        dtype: ``float32`` or ``bfloat16``.
        compiled: Whether the encoder runs through torch.compile.
        batch_windows: Windows per forward pass; the last batch is padded to it.
        torch: torch version without the local part.
        attention: Attention kernel: ``sdpa`` (torch), ``own`` (compiled for this CPU), ``flex``; others see
            ``pipeline.encode.attention``.
    """

    device: str
    device_name: str
    dtype: str
    compiled: bool
    batch_windows: int
    torch: str
    attention: str = "sdpa"


RESIZED_PX = 8
"""Samples per side that an encoder reads of a patch: smaller ones are resized to it."""
RESIZE_REACH_PX = 2
"""Pixels around a patch that its resizing reads: taps lie within 2 px of a sample (``encode.patch.resize_matrix``)."""
STITCHES = ("blend", "centre", "neighbourhood")
"""Ways to make one field of many windows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GridSpec:
    """The window lattice and the pixels of the store; all in 10 m pixels.

    Attributes:
        patch_px: Side of a token.
        window_px: Side of an encoder window, a multiple of ``patch_px``.
        overlap_px: Overlap of neighbouring windows, a multiple of ``patch_px``, smaller than ``window_px``.
        tile_px: Side of a tile.
        token_px: Side of a pixel of the store: 1, or ``patch_px`` for one vector per token.
        stitch: ``blend`` (weighted mean of all windows over a token), ``centre`` (each token from the window whose
            centre is nearest) or ``neighbourhood`` (every token attends to the box around it; a window is then a
            domain: whole blocks, the core, with a halo around them).
        box_px: ``neighbourhood``: side of the box that a token attends to, a multiple of ``patch_px``; else 0.
        halo_px: ``neighbourhood``: what a domain reads north and west of its core; else 0.
        dense: Sub-patch shifts per axis: every window is encoded at ``dense`` x ``dense`` offsets of
            ``patch_px / dense``.
    """

    patch_px: int
    window_px: int
    overlap_px: int
    tile_px: int
    token_px: int = 1
    stitch: str = "blend"
    box_px: int = 0
    halo_px: int = 0
    dense: int = 1

    def __post_init__(self) -> None:
        if self.token_px not in (1, self.patch_px):
            raise InvalidInputError(f"GridSpec.token_px is {self.token_px}, must be 1 or patch_px {self.patch_px}")
        if self.stitch not in STITCHES:
            raise InvalidInputError(f"GridSpec.stitch is {self.stitch!r}, must be one of {', '.join(STITCHES)}")
        if self.dense < 1 or self.patch_px % self.dense or (self.dense > 1 and self.token_px > 1):
            raise InvalidInputError(
                f"GridSpec.dense {self.dense} must divide patch_px {self.patch_px}; a store of tokens cannot hold it"
            )
        self._check_domain()

    def _check_domain(self) -> None:
        if self.stitch != "neighbourhood":
            if self.box_px or self.halo_px:
                raise InvalidInputError(f"GridSpec.box_px and halo_px are for 'neighbourhood', not for {self.stitch!r}")
            return
        core, behind = self.stride_px, self.overlap_px - self.halo_px
        sides = (self.box_px, self.halo_px, self.window_px)
        if (
            self.box_px < 1
            or core < 1
            or core % BLOCK_PX
            or any(side % self.patch_px for side in sides)
            or min(self.halo_px, behind) < self.margin_px
            or self.box_px > self.window_px
        ):
            raise InvalidInputError(
                f"GridSpec: a domain of {self.window_px} px with a core of {core} px, {self.halo_px} px in front and "
                f"{behind} px behind it and boxes of {self.box_px} px at patch {self.patch_px}: the core must be "
                f"whole blocks of {BLOCK_PX} px, all sides multiples of the patch, the halo at least "
                f"{self.margin_px} px and the box no larger than the domain"
            )

    @property
    def stride_px(self) -> int:
        """Distance of window origins."""
        return self.window_px - self.overlap_px

    @property
    def pixel_m(self) -> int:
        """Side of a pixel of the store, metres."""
        return PIXEL_M * self.token_px

    @property
    def trim_px(self) -> int:
        """What a window loses in the north and in the west: whole tokens, about half the overlap, 0 for ``blend``."""
        if self.stitch == "neighbourhood":
            return self.halo_px
        return self.overlap_px // self.patch_px // 2 * self.patch_px if self.stitch == "centre" else 0

    @property
    def core_px(self) -> int:
        """Side of the part of a window that is used, from ``trim_px`` on."""
        return self.window_px if self.stitch == "blend" else self.stride_px

    @property
    def margin_px(self) -> int:
        """What interpolation to pixels reads beyond the pixels that it fills: one token, none in a store of tokens."""
        return self.patch_px if self.patch_px > 1 and self.token_px == 1 else 0

    @property
    def embed_px(self) -> int:
        """What the resizing of a patch to 8 x 8 samples reads around it, pixels in whole tokens.

        0 where nothing is resized, and for a domain, whose outermost tokens are halo.
        """
        if self.patch_px == RESIZED_PX or self.stitch == "neighbourhood":
            return 0
        return -(-RESIZE_REACH_PX // self.patch_px) * self.patch_px

    @property
    def kept(self) -> tuple[int, int]:
        """(first token, tokens) along both axes that are kept of a window: the core, of a domain with its margin."""
        margin = self.margin_px if self.stitch == "neighbourhood" else 0
        return (self.trim_px - margin) // self.patch_px, (self.core_px + 2 * margin) // self.patch_px

    @property
    def step_px(self) -> int:
        """Distance of neighbouring vectors of the stitched field, before interpolation to pixels."""
        return self.patch_px // self.dense

    @property
    def summary(self) -> str:
        """The lattice in a few words."""
        shifts = f", {self.dense} x {self.dense} shifts" if self.dense > 1 else ""
        if self.stitch == "neighbourhood":
            halo = f"{self.halo_px} and {self.overlap_px - self.halo_px} px"
            return f"patch {self.patch_px}, boxes {self.box_px}, domains {self.core_px} px, halo {halo}{shifts}"
        return f"patch {self.patch_px}, window {self.window_px}, overlap {self.overlap_px}{shifts}"

    def on_store(self, box: Box) -> Box:
        """A 10 m box with edges at tokens, e.g. of a tile or a block, in pixels of the store."""
        return box.cover(self.pixel_m)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Layer:
    """The composited bands of one native resolution, all periods.

    Attributes:
        res_m: Native resolution, metres.
        bands: Band names, in the order of ``pixels`` axis 1.
        pixels: (time, band, row, col); uint16 DN, 0 is nodata (Sentinel-2 in the encoding of ``DN_OFFSET``); for
            Sentinel-1 float32 decibels at 10 m, NaN is nodata.
        valid: (time, row, col) bool: some band of the layer has data.
        box: Lattice box of ``res_m`` under the arrays; covers the Stack's box with a margin for interpolation.
    """

    res_m: int
    bands: tuple[str, ...]
    pixels: NDArray[Any]
    valid: NDArray[np.bool_]
    box: Box

    def __post_init__(self) -> None:
        want = (self.valid.shape[0], len(self.bands), *self.box.shape)
        if self.pixels.shape != want or self.valid.shape != (want[0], *want[2:]):
            raise InvalidInputError(
                f"Layer {self.res_m} m: pixels {self.pixels.shape} and valid {self.valid.shape}, want {want}"
            )
        if self.pixels.dtype not in (np.uint16, np.float32) or self.valid.dtype != np.bool_:
            raise InvalidInputError(f"Layer {self.res_m} m: dtypes {self.pixels.dtype} and {self.valid.dtype}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PeriodSource:
    """What filled one period of one cell: the record that goes into receipts.

    Attributes:
        cell_id: The cell.
        period: Index of the period.
        selected: Item ids in rank order of which at least one pixel was used somewhere in the cell's part read.
        skipped: Item ids that could not be read and were replaced by the next candidate.
        scores: SCL score of every ranked candidate, in rank order; None where it could not be read.
        sensor: Of the scenes.
        notes: What was decided while reading, for people: offsets found in pixels, files taken from an alternate.
    """

    cell_id: str
    period: int
    selected: tuple[str, ...]
    skipped: tuple[str, ...] = ()
    scores: tuple[float | None, ...] = ()
    sensor: str = "sentinel2_l2a"
    notes: tuple[str, ...] = ()


NO_CLEAR = 255
"""``Quality.clear_pct`` where nothing is known."""
FIRST_DAY = date(1970, 1, 1)
"""``Quality.first_day`` counts days from here; 0: no scene."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Quality:
    """How good the composites under a box are, per block of ``BLOCK_PX``.

    Attributes:
        box: Blocks, as a lattice box of ``BLOCK_PX * PIXEL_M`` metres.
        clear_pct: (time, row, col) uint8: percent of the block that its scenes classify as clear; ``NO_CLEAR`` where
            the sensor has no classification or the block no scene.
        scenes: (time, row, col) uint8: scenes that gave pixels to the block.
        first_day: (time, row, col) uint16: day of the first of them since ``FIRST_DAY``; 0: none.
    """

    box: Box
    clear_pct: NDArray[np.uint8]
    scenes: NDArray[np.uint8]
    first_day: NDArray[np.uint16]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stack:
    """One tile (with halo) of one sensor at native resolutions.

    Attributes:
        sensor: ``sentinel2_l2a``.
        box: The 10 m box that the layers can fill.
        layers: One per native resolution, finest first. A band that no scene of the collection has is absent.
        periods: The time axis.
        sources: Which scenes filled what, sorted by (cell, period).
        bytes_read: Bytes of pixels decoded.
        quality: Of the composites; None where nobody asked.
    """

    sensor: str
    box: Box
    layers: tuple[Layer, ...]
    periods: tuple[Period, ...]
    sources: tuple[PeriodSource, ...]
    bytes_read: int
    quality: Quality | None = None

    @property
    def degraded(self) -> bool:
        """Whether some scene could not be read and was replaced."""
        return any(s.skipped for s in self.sources)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(layer.pixels.nbytes + layer.valid.nbytes for layer in self.layers)


@dataclass(frozen=True, slots=True, kw_only=True)
class SeamProfile:
    """What was measured of a model about the seams of one shape: of windows (``rho``) or of domains (``halo_px``).

    Attributes:
        patch_px: Side of a token.
        periods: Time steps.
        sensors: What the model was fed with.
        window_px: Side of the windows; 0: of neighbourhood domains.
        overlap_px: Overlap of the windows.
        box_px: Side of the boxes of neighbourhood attention; 0: of windows.
        rho: Mean step between tokens where one centre crop meets the next, over that of the same ground inside a crop.
        rho_dim: The same of the worst dimension.
        rho_range: Smallest and largest ``rho`` of a single place.
        target: Step at a seam over the natural one that a ramp shall reach.
        halo_px: Context around a domain of which the edge error is within the tolerance: north and west of the first
            kept token; south and east as much, but no more than attention reaches.
        edge: (share of int8 codes changed, mean absolute code step) at the edge with that halo.
        tolerance: What ``edge`` had to keep to.
        sample: What it was measured on.
    """

    patch_px: int
    periods: int
    sensors: tuple[str, ...]
    window_px: int = 0
    overlap_px: int = 0
    box_px: int = 0
    rho: float = 0.0
    rho_dim: float = 0.0
    rho_range: tuple[float, float] = (0.0, 0.0)
    target: float = 1.05
    halo_px: int = 0
    edge: tuple[float, float] = (0.0, 0.0)
    tolerance: tuple[float, float] = (0.0, 0.0)
    sample: str = ""

    def __post_init__(self) -> None:
        sides = (self.window_px, self.overlap_px, self.box_px, self.halo_px)
        if self.patch_px < 1 or self.periods < 1 or min(sides) < 0 or any(side % self.patch_px for side in sides):
            raise InvalidInputError(f"SeamProfile: sides {sides} px are not whole patches of {self.patch_px} px")
        if (self.window_px > 0) == (self.box_px > 0):
            raise InvalidInputError(
                f"SeamProfile is of windows ({self.window_px} px) or of boxes ({self.box_px} px): one of them is 0"
            )
        if self.window_px and not (0 < self.rho < np.inf and 0 < self.rho_dim < np.inf):
            raise InvalidInputError(f"SeamProfile of windows needs rho above 0, got {self.rho} and {self.rho_dim}")

    @property
    def key(self) -> tuple[int, int, tuple[str, ...], int, int]:
        """What a later measurement replaces: patch, periods, sensors, window and box."""
        return self.patch_px, self.periods, self.sensors, self.window_px, self.box_px


METHODS = ("linear", "pca", "power", "power_raw", "per_pixel", "float16", "float32")
"""Ways in which vectors are stored, see ``pipeline.codes``."""
_LATER = {"method": "linear", "dims": 0, "mean": (), "components": ()}
"""Fields of a Calibration that came later: at these values they are left out of its hash, which stays what it was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """How float vectors become what the store holds, see ``pipeline.codes``; by default int8, linear, per dimension.

    Attributes:
        scale: (band,) value of one code step, for ``linear`` and ``pca`` (there all equal); else empty.
        provisional: True when derived from the weights and the packaged simulated sample only.
        source: What it was derived from, for the metadata.
        model_sha256: Weights it belongs to.
        patch_px: Patch it belongs to.
        output: Which vector of the model, see ``ModelCard.output``.
        sensors: What the model is fed with.
        seams: What was measured of the model's seams, sorted; it decides no code and is not part of ``hash``.
        method: One of ``METHODS``.
        dims: Length of a stored vector; 0: that of ``scale``.
        mean: (dim,) centre of the model's vectors, for ``pca``.
        components: (band, dim) orthonormal rows, for ``pca``: score = components @ (vector - mean).
        basis: Frozen colours of pictures (JSON of ``write.preview.Basis``), "" for none; not part of ``hash``.
    """

    scale: tuple[float, ...]
    provisional: bool
    source: str
    model_sha256: str
    patch_px: int
    output: str = "mean"
    sensors: tuple[str, ...] = ("sentinel2_l2a",)
    seams: tuple[SeamProfile, ...] = ()
    method: str = "linear"
    dims: int = 0
    mean: tuple[float, ...] = ()
    components: tuple[tuple[float, ...], ...] = ()
    basis: str = ""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InvalidInputError(f"Calibration.method is {self.method!r}, must be one of {', '.join(METHODS)}")
        if self.dims and self.scale and self.dims != len(self.scale):
            raise InvalidInputError(f"Calibration has {len(self.scale)} scales for {self.dims} dims")

    @property
    def bands(self) -> int:
        """Length of a stored vector."""
        return self.dims or len(self.scale)

    @property
    def dtype(self) -> str:
        """Name of the dtype of what is stored: ``int8``, ``float16`` or ``float32``."""
        return self.method if self.method.startswith("float") else "int8"

    @property
    def quantiser(self) -> str:
        """As ``store.quantiser`` names it: ``linear``, ``pca:64`` ..."""
        return f"pca:{self.bands}" if self.method == "pca" else self.method

    @property
    def hash(self) -> str:
        """Content hash; a store accepts only data of its own."""
        fields = {name: value for name, value in asdict(self).items() if name not in ("seams", "basis")}
        return content_hash({name: value for name, value in fields.items() if _LATER.get(name, _LATER) != value})

    def with_seams(self, *profiles: SeamProfile) -> Calibration:
        """The same scales with more measurements; one of the same key is replaced, the last one given counts."""
        known = {profile.key: profile for profile in (*self.seams, *profiles)}
        return replace(self, seams=tuple(known[key] for key in sorted(known)))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Embedding:
    """What the store holds for one tile.

    Attributes:
        codes: (band, row, col) int8, -128 is nodata; float16 or float32, NaN is nodata, where the calibration says so.
        reason: (row, col) uint8, see ``Reason``.
        n_obs: (row, col) uint8: periods with a valid observation; of any part of the pixel where it is a token.
        box: Box of the tile in pixels of the store, see ``GridSpec.token_px``.
        clipped: Share of values that were clipped at +-127, 0..1.
        quality: Of the composites under the tile, one per sensor in the plan's order.
        pixel_scale: (row, col) float32, NaN is nodata: value of one code step of a pixel, for ``per_pixel``.
        clipped_shards: (row, col, share clipped) of the shards with clipped values, counted from the tile's north-west.
        rms_error: Root mean square of (decoded - vector) over that of the vectors; None without a vector.
        colours: (period, channel, row, col) uint8 true colours at ``COLOUR_M``, 0 is nodata; None: not made.
    """

    codes: NDArray[Any]
    reason: NDArray[np.uint8]
    n_obs: NDArray[np.uint8]
    box: Box
    clipped: float
    quality: tuple[Quality, ...] = ()
    pixel_scale: NDArray[np.float32] | None = None
    clipped_shards: tuple[tuple[int, int, float], ...] = ()
    rms_error: float | None = None
    colours: NDArray[np.uint8] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a tile (or a run) used; the measured twin of ``Estimate``.

    Attributes:
        windows: Windows evaluated (padding of the last batch not counted).
        tokens: Tokens encoded.
        flops: Floating point operations of the encoder, attention included.
        bytes_read: Bytes of pixels decoded from the archive.
        bytes_written: Bytes of the objects written.
        peak_bytes: Peak resident memory of the process.
        slot_s: Seconds the device slot was held.
        busy_s: Seconds the device worked (CPU: core-seconds of the encoder threads).
        stage_s: Thread-seconds by stage; stages overlap, so they do not add up to the wall time.
    """

    windows: int = 0
    tokens: int = 0
    flops: float = 0.0
    bytes_read: int = 0
    bytes_written: int = 0
    peak_bytes: int = 0
    slot_s: float = 0.0
    busy_s: float = 0.0
    stage_s: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Area:
    """What the user asked for.

    Attributes:
        wkb: Polygon or multipolygon, lon/lat EPSG:4326, hexadecimal WKB; never crosses the antimeridian.
        km2: Geodesic area, square kilometres.
    """

    wkb: str
    km2: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All tasks and everything that they share; serialisable, spends nothing.

    Attributes:
        id: Hash of the recipe and the tasks.
        recipe: Hash of everything that decides pixels, except the area and the scenes: the identity of a store.
        created: UTC.
        output: Folder of the store and everything beside it.
        area: The request's area.
        periods: The time axis.
        grid: The window lattice.
        model: The model card.
        numerics: The numerics class.
        calibration: Of the quantiser.
        settings: Canonical JSON of the Settings.
        scenes: Every candidate scene, sorted by id, hrefs unsigned.
        tasks: Sorted by tile.
        empty_periods: Periods for which no scene was found anywhere.
        estimate: Sum over the tasks (peak_bytes: maximum).
        heads: (map name, content hash of its head) of the maps made in the same pass.
        mask: Cloud mask that ranks scenes, with its version; "" when none does.
    """

    id: str
    recipe: str
    created: datetime
    output: str
    area: Area
    periods: tuple[Period, ...]
    grid: GridSpec
    model: ModelCard
    numerics: Numerics
    calibration: Calibration
    settings: str
    scenes: tuple[Scene, ...]
    tasks: tuple[Task, ...]
    empty_periods: tuple[int, ...]
    estimate: Estimate
    heads: tuple[tuple[str, str], ...] = ()
    mask: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """The proof that a tile is committed; the last thing written.

    Attributes:
        tile_id: Which tile.
        fingerprint: Of the task.
        status: ``done``, ``degraded`` (a scene was replaced) or ``empty`` (no valid pixel; reasons recorded).
        blocks: Committed (block_row, block_col), sorted.
        objects: (name inside the store, sha256) of every object written, sorted; sha256 is "" for an elided
            all-nodata object.
        sources: Which scenes were used.
        usage: What it took.
        attempt: Number of the attempt that won.
        calibration: Hash of the calibration used.
        valid_px: Pixels of the store with an embedding.
        clipped: Share of clipped (``power_raw``: saturated) values in the whole tile, 0..1.
        weights_sha256: Of the model.
        clipped_worst: The same of the shard that has most.
        clipped_shards: (row, col, the same) of every shard that has any, counted from the tile's north-west corner.
        rms_error: What quantising lost: root mean square of (decoded - vector) over that of the vectors (``power``: of
            vectors at unit length); None without a vector, and in receipts of earlier versions.
    """

    tile_id: str
    fingerprint: str
    status: str
    blocks: tuple[tuple[int, int], ...]
    objects: tuple[tuple[str, str], ...]
    sources: tuple[PeriodSource, ...]
    usage: Usage
    attempt: int
    calibration: str
    valid_px: int
    clipped: float
    weights_sha256: str = ""
    clipped_worst: float = 0.0
    clipped_shards: tuple[tuple[int, int, float], ...] = ()
    rms_error: float | None = None


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: the form that is hashed. Datetimes become ISO strings."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=_plain, ensure_ascii=True)


def content_hash(value: Any) -> str:
    """First 32 hex digits of the sha256 of the canonical JSON of ``value``."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:32]


def block_grid(tile: Tile) -> Iterator[tuple[int, int]]:
    """All (block_row, block_col) of a tile, row by row."""
    n = tile.tile_px // BLOCK_PX
    return ((r, c) for r in range(n) for c in range(n))


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} has no canonical JSON form")
