"""The shape of an embedding store: sizes of shards and chunks, names of groups and objects, what a store promises.

Pure: knows the values and no file. ``attributes.py`` writes the metadata text, ``zones.py`` the arrays, ``shards.py``
the pixels. A store is a Zarr v3 hierarchy: root group, one group ``utmNN`` per UTM zone, and in it ``embeddings (time,
band, y, x)`` with its coordinates (int8, or floats where the quantiser says so), for ``per_pixel`` ``pixel_scale
(time, y, x)`` float32, and the layers ``reason``, ``n_obs`` and ``map_<name>`` (time, y, x) uint8; a map of numbers is
float32; ``map_<name>_p<value>`` and ``map_<name>_confidence`` say how sure a class is, a map with its instability has
``map_<name>_instability`` beside it, and the store one ``map_embedding_spread``.
All of them share one shard side, so that a tile is a whole number of shards of every array. A pixel of the arrays is
``GridSpec.token_px`` lattice pixels of 10 m wide: 1, or a token. The layers of ``quality.py`` have one value per block,
``true_colour.py`` has pixels of 80 m.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import InvalidInputError
from pipeline.types import BLOCK_PX, COLOUR_M, NODATA_CODE, PIXEL_M, Box, Reason, canonical_json
from pipeline.write import quality, true_colour

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from pipeline.types import Calibration, GridSpec, ModelCard, Numerics, Period, Tile

FORMAT_VERSION = 1
"""Raised when a store of the old form cannot be read or appended to any more."""
MAX_SHARD_BYTES = 256 * 2**20
MAX_CHUNK_BYTES = 4 * 2**20
MAX_LAYER_CHUNK_PX = 512
"""Chunk side of the uint8 layers: 256 KiB before compression, one request of a map viewer."""
PIXEL_SCALE = "pixel_scale"
"""Array of the value of one code step of each pixel, for ``per_pixel``."""
MAP_FILL = 255
SPREAD = "embedding_spread"
"""Name of the layer that says how far the vectors of overlapping windows lie apart."""
SPREAD_TITLE = "spread of the vectors of overlapping windows, tenths of a code step (254: 25.4 or more)"


@dataclass(frozen=True, slots=True, kw_only=True)
class MapLayer:
    """One map made in the same pass, or a band of it, stored as ``map_<name>`` (time, y, x).

    Attributes:
        name: Name of the map.
        classes: (value 0..254, name, colour ``#rrggbb``), sorted by value; empty for a continuous layer.
        title: One line for people.
        dtype: ``uint8``, 255 nodata; ``float32``, NaN nodata, for a map of numbers.
        units: Of the values; "" where they have none or nobody said.
        fitted_range: (least, greatest) number that a map of numbers was fitted on.
    """

    name: str
    classes: tuple[tuple[int, str, str], ...] = ()
    title: str = ""
    dtype: str = "uint8"
    units: str = ""
    fitted_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.dtype not in ("uint8", "float32") or (self.classes and self.dtype != "uint8"):
            raise InvalidInputError(f"map {self.name} is {self.dtype}, must be uint8, or float32 without classes")
        values = [c[0] for c in self.classes]
        if values != sorted(set(values)) or any(not 0 <= v < MAP_FILL for v in values):
            raise InvalidInputError(f"map {self.name}: class values {values} must be rising and in 0..254")

    @property
    def array(self) -> str:
        """Name of the array in the zone group."""
        return f"map_{self.name}"

    @property
    def fill(self) -> float:
        """Nodata."""
        return MAP_FILL if self.dtype == "uint8" else np.nan


def probability_of(name: str, value: int) -> str:
    """Name of the layer that holds the probability of a class of a map, per cent."""
    return f"{name}_p{value}"


def confidence_of(name: str) -> str:
    """Name of the layer that says how far the best class of a map is ahead of the second, per cent."""
    return f"{name}_confidence"


def instability_of(name: str) -> str:
    """Name of the layer that says where overlapping windows disagree about the class of a map."""
    return f"{name}_instability"


def instability_title(name: str) -> str:
    """That layer in words."""
    return f"weight of the overlapping windows that see another class than {name}, per cent"


def instability_layers(names: Sequence[str]) -> tuple[MapLayer, ...]:
    """The continuous layers of the maps that have an instability, in the order of ``names``; none for none."""
    if not names:
        return ()
    own = tuple(MapLayer(name=instability_of(name), title=instability_title(name)) for name in names)
    return (*own, MapLayer(name=SPREAD, title=SPREAD_TITLE))


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSpec:
    """Everything the metadata of a store says.

    Attributes:
        name: Name for people.
        dims: Length of a stored vector.
        grid: The window lattice; ``grid.tile_px`` fixes the shards.
        times: (start, end) UTC of every time step, half-open; one embedding per step.
        model: The model card.
        calibration: How vectors are stored.
        numerics: The numerics class.
        recipe: Hash of everything that decides pixels but the dates; a store accepts data of one recipe only.
        dated_recipe: The same with the dates, "" for none: what stores of earlier versions hold instead.
        extents: One 10 m box per zone, edges at multiples of ``tile_px``.
        maps: Maps made in the same pass.
        source_data: URIs of the collections the model saw.
        attrs: Further (key, text) pairs for the root group.
        sensors: Sensors that the embeddings were made from: the order of ``Embedding.quality``.
        periods: The model's periods inside all time steps, step by step; every step has as many. Empty: no layers
            about the quality of the composites.
        true_colour: Whether there is a layer of the true colours of the periods. Like the quality it is no part of
            a store's identity.
    """

    name: str
    dims: int
    grid: GridSpec
    times: tuple[tuple[datetime, datetime], ...]
    model: ModelCard
    calibration: Calibration
    numerics: Numerics
    recipe: str
    extents: tuple[Box, ...]
    maps: tuple[MapLayer, ...] = ()
    source_data: tuple[str, ...] = ()
    attrs: tuple[tuple[str, str], ...] = ()
    sensors: tuple[str, ...] = ("sentinel2_l2a",)
    periods: tuple[Period, ...] = ()
    true_colour: bool = False
    dated_recipe: str = ""

    def __post_init__(self) -> None:
        if self.calibration.bands != self.dims:
            raise InvalidInputError(f"calibration has {self.calibration.bands} bands, the store {self.dims} dims")
        zones = [b.zone for b in self.extents]
        if not zones or len(set(zones)) != len(zones):
            raise InvalidInputError(f"StoreSpec.extents needs one box per zone, got zones {zones}")
        if not self.times:
            raise InvalidInputError("StoreSpec.times is empty: a store has at least one time step")
        names = [m.name for m in self.maps]
        if len(set(names)) != len(names):
            raise InvalidInputError(f"StoreSpec.maps has a name twice: {names}")
        if self.tile_px % self.grid.token_px:
            raise InvalidInputError(f"tile_px {self.tile_px} is not a multiple of token_px {self.grid.token_px}")
        for box in self.extents:
            check_extent(box, tile_px=self.grid.tile_px)
        self._check_periods()

    def _check_periods(self) -> None:
        if not self.sensors or len(set(self.sensors)) != len(self.sensors):
            raise InvalidInputError(f"StoreSpec.sensors must be different names, got {self.sensors}")
        if len(self.periods) % len(self.times):
            raise InvalidInputError(f"StoreSpec has {len(self.periods)} periods in {len(self.times)} time steps")
        for (start, end), inside in zip(self.times, self.steps, strict=True):
            if any(p.start < start or p.end > end for p in inside):
                raise InvalidInputError(f"StoreSpec.periods of step {start:%Y-%m-%d}..{end:%Y-%m-%d} do not lie in it")

    @property
    def tile_px(self) -> int:
        """Side of a tile, 10 m pixels."""
        return self.grid.tile_px

    @property
    def shard_px(self) -> int:
        """Side of a shard of every array, in pixels of the arrays."""
        return shard_of(self.calibration, self.grid)

    @property
    def steps(self) -> tuple[tuple[Period, ...], ...]:
        """The periods of every time step."""
        n = len(self.periods) // len(self.times)
        return tuple(self.periods[k * n : (k + 1) * n] for k in range(len(self.times)))

    @property
    def boxes(self) -> tuple[Box, ...]:
        """``extents`` in pixels of the arrays."""
        return tuple(self.grid.on_store(box) for box in self.extents)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayLayout:
    """One pixel array of a zone group.

    Attributes:
        name: Array name.
        dtype: numpy name.
        px_m: Side of a pixel, metres.
        chunk_px: Side of an inner chunk.
        shard_px: Side of a shard; equal to ``chunk_px`` and no shard where ``sharded`` is False.
        fill: Value of pixels that no object holds, NaN in arrays of floats.
        lead: (name, length) of the axes between time and space; an object holds them whole.
        space: Names of the (row, col) axes.
        sharded: Whether the objects are shards of chunks, or plain chunks.
    """

    name: str
    dtype: str
    px_m: int
    chunk_px: int
    shard_px: int
    fill: float
    lead: tuple[tuple[str, int], ...] = ()
    space: tuple[str, str] = ("y", "x")
    sharded: bool = True

    @property
    def dims(self) -> tuple[str, ...]:
        """Axis names."""
        return ("time", *(name for name, _ in self.lead), *self.space)

    def sizes(self, times: int, rows: int, cols: int) -> tuple[int, ...]:
        """Lengths in the order of ``dims``."""
        return (times, *(length for _, length in self.lead), rows, cols)


def shard_px(dims: int, *, tile_px: int, itemsize: int = 1) -> int:
    """Side of a shard: the largest power of two of which the vectors take up to 256 MiB and that divides the tile.

    Args:
        dims: Length of a stored vector.
        tile_px: Side of a tile, in pixels of the store.
        itemsize: Bytes of one of its numbers.

    Example:
        >>> shard_px(192, tile_px=2048), shard_px(64, tile_px=2048), shard_px(128, tile_px=512)
        (1024, 2048, 512)
        >>> shard_px(192, tile_px=2048, itemsize=4)
        512
    """
    px = _largest_power(MAX_SHARD_BYTES, dims * itemsize)
    while tile_px % px:
        px //= 2
    return px


def shard_of(calibration: Calibration, grid: GridSpec) -> int:
    """Side of a shard of every array of a store, in pixels of the store."""
    itemsize = np.dtype(calibration.dtype).itemsize
    return shard_px(calibration.bands, tile_px=grid.tile_px // grid.token_px, itemsize=itemsize)


def chunk_px(dims: int, *, shard: int, itemsize: int = 1) -> int:
    """Side of an inner chunk: the largest power of two of which the vectors take up to 4 MiB, at most the shard.

    Example:
        >>> chunk_px(192, shard=1024), chunk_px(64, shard=2048), chunk_px(64, shard=2048, itemsize=4)
        (128, 256, 128)
    """
    return min(_largest_power(MAX_CHUNK_BYTES, dims * itemsize), shard)


def arrays(spec: StoreSpec) -> tuple[ArrayLayout, ...]:
    """The pixel arrays of a zone group, ``embeddings`` first, those of blocks last."""
    shard, px_m = spec.shard_px, spec.grid.pixel_m
    layers = (
        ("reason", "uint8", int(Reason.NOT_REQUESTED)),
        ("n_obs", "uint8", 0),
        *((m.array, m.dtype, m.fill) for m in spec.maps),
    )
    dtype = np.dtype(spec.calibration.dtype)
    return (
        ArrayLayout(
            name="embeddings",
            dtype=dtype.name,
            px_m=px_m,
            lead=(("band", spec.dims),),
            chunk_px=chunk_px(spec.dims, shard=shard, itemsize=dtype.itemsize),
            shard_px=shard,
            fill=NODATA_CODE if dtype == np.int8 else np.nan,
        ),
        *(_scale_layer(spec) if spec.calibration.method == "per_pixel" else ()),
        *(
            ArrayLayout(
                name=name, dtype=own, px_m=px_m, chunk_px=_layer_chunk_px(own, shard), shard_px=shard, fill=fill
            )
            for name, own, fill in layers
        ),
        *(_block_layers(spec) if spec.periods else ()),
        *(_colour_layer(spec) if spec.periods and spec.true_colour else ()),
    )


def zone_name(zone: int) -> str:
    """Group of a zone: ``utm31``."""
    return f"utm{zone:02d}"


def check_extent(box: Box, *, tile_px: int) -> None:
    """Refuse an extent that is not whole 10 m tiles.

    Raises:
        InvalidInputError: Another resolution, or an edge that is not a multiple of ``tile_px``.
    """
    if box.res_m != PIXEL_M or any(v % tile_px for v in (box.row, box.col, box.height, box.width)):
        raise InvalidInputError(f"extent {box} must be {PIXEL_M} m and have edges at multiples of tile_px {tile_px}")


def union(one: Box, other: Box) -> Box:
    """The smallest box that holds both boxes of one lattice."""
    row, col = min(one.row, other.row), min(one.col, other.col)
    return Box(
        zone=one.zone,
        res_m=one.res_m,
        row=row,
        col=col,
        height=max(one.row_stop, other.row_stop) - row,
        width=max(one.col_stop, other.col_stop) - col,
    )


def tile_shards(tile: Tile, *, extent: Box, shard: int) -> tuple[tuple[int, int, slice, slice], ...]:
    """The shards of a tile: (shard_row, shard_col) in the array, and their (row, col) slices in the tile.

    Args:
        tile: The tile.
        extent: Box under the array, in its pixels.
        shard: Side of a shard in these pixels.

    Raises:
        InvalidInputError: The tile lies outside the extent of the store.
    """
    box = tile.box.cover(extent.res_m)
    rows, cols = box.slices_in(extent)
    return tuple(
        (
            (rows.start + row) // shard,
            (cols.start + col) // shard,
            slice(row, row + shard),
            slice(col, col + shard),
        )
        for row in range(0, box.height, shard)
        for col in range(0, box.width, shard)
    )


def identity(spec: StoreSpec) -> dict[str, str]:
    """What must be equal for data to be added to a store: readable name -> value."""
    grid = spec.grid
    # Without periods as it was before there were any: such stores can still be added to.
    blocks = {"quality": f"{', '.join(spec.sensors)}; {len(spec.steps[0])} periods"} if spec.periods else {}
    return blocks | {
        "recipe": spec.recipe,
        "calibration": spec.calibration.hash,
        "dims": str(spec.dims),
        "grid": f"{grid.summary}, tile {grid.tile_px} px, one vector per {grid.pixel_m} m, {grid.stitch}",
        "maps": canonical_json([_identity_of(m) for m in spec.maps]),
    }


def _identity_of(layer: MapLayer) -> list[object]:
    """As it was before there were maps of numbers, for all others: their stores can still be added to."""
    return [layer.name, layer.classes, *([layer.dtype, layer.units] if layer.dtype != "uint8" else [])]


def _layer_chunk_px(dtype: str, shard: int) -> int:
    """Side of a chunk of a layer of one value per pixel: as many bytes in every dtype."""
    return min(MAX_LAYER_CHUNK_PX if dtype == "uint8" else MAX_LAYER_CHUNK_PX // 2, shard)


def _scale_layer(spec: StoreSpec) -> tuple[ArrayLayout, ...]:
    return (
        ArrayLayout(
            name=PIXEL_SCALE,
            dtype="float32",
            px_m=spec.grid.pixel_m,
            chunk_px=_layer_chunk_px("float32", spec.shard_px),
            shard_px=spec.shard_px,
            fill=np.nan,
        ),
    )


def _block_layers(spec: StoreSpec) -> tuple[ArrayLayout, ...]:
    if spec.tile_px % BLOCK_PX:
        raise InvalidInputError(f"tile_px {spec.tile_px} is not a multiple of {BLOCK_PX}: no layers of blocks")
    side = spec.tile_px // BLOCK_PX
    return tuple(
        ArrayLayout(
            name=name,
            dtype=dtype,
            px_m=quality.BLOCK_M,
            lead=(("sensor", len(spec.sensors)), ("period", len(spec.steps[0]))),
            space=quality.SPACE,
            chunk_px=side,
            shard_px=side,
            sharded=False,
            fill=fill,
        )
        for name, dtype, fill in quality.LAYERS
    )


def _colour_layer(spec: StoreSpec) -> tuple[ArrayLayout, ...]:
    side = spec.tile_px * PIXEL_M // COLOUR_M
    lead = (("period", len(spec.steps[0])), ("channel", len(true_colour.CHANNELS)))
    return (
        ArrayLayout(
            name=true_colour.NAME,
            dtype="uint8",
            px_m=COLOUR_M,
            lead=lead,
            space=true_colour.SPACE,
            chunk_px=side,
            shard_px=side,
            sharded=False,
            fill=true_colour.FILL,
        ),
    )


def _largest_power(limit_bytes: int, vector_bytes: int) -> int:
    if vector_bytes <= 0 or vector_bytes > limit_bytes:
        raise InvalidInputError(f"a vector of {vector_bytes} bytes, must be 1..{limit_bytes}")
    px = 1
    while vector_bytes * (2 * px) ** 2 <= limit_bytes:
        px *= 2
    return px
