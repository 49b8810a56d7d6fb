"""Write, check and read the pixels of one tile.

A tile is a whole number of shards, a shard has one writer and is written by one PUT (temporary name + rename), so any
number of processes may write tiles at the same time. An object that is missing means an all-nodata shard and nothing
else: whether a tile is done is said by its receipt (``commit.py``), never by its files. No metadata is written here.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.storage import LocalStore

from pipeline.errors import InvalidInputError, OutputError
from pipeline.types import COLOUR_M
from pipeline.write import durable, quality, true_colour
from pipeline.write.layout import PIXEL_SCALE, tile_shards, zone_name
from pipeline.write.opened import consolidated, open_zone, shared
from pipeline.write.place import LocalPlace, ObjectPlace, place_of
from pipeline.write.place_object import SpokenStore
from pipeline.write.zones import read_times

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.types import Box, Embedding, Tile
    from pipeline.write.durable import Checkpoint

Objects = tuple[tuple[str, str], ...]
"""(name inside the store, sha256 of the bytes), sorted; "" for an all-nodata shard that has no object."""


def write_tile(
    path: str | Path,
    tile: Tile,
    int8: Embedding,
    *,
    time_index: int = 0,
    maps: tuple[tuple[str, NDArray[np.uint8]], ...] = (),
    at: Checkpoint = durable.passed,
) -> Objects:
    """Write all shards of a tile, one PUT each, and flush them to the disk.

    What the tile held before is replaced whole; a shard that is all nodata has no object afterwards.

    Args:
        path: The store.
        tile: Which tile; must equal the box of ``int8``.
        int8: codes (dim, row, col), reason and n_obs (row, col), in pixels of the store. Its quality is not used when
            the store has no layers of blocks.
        time_index: Index of the time step.
        maps: (map name, (row, col) uint8) of every map of the store.
        at: Called after every shard with its key (tests).

    Returns:
        (object name, sha256) of every shard, sorted; sha256 is of the bytes handed to the file system, so that
        ``check_objects`` finds what the disk changed.

    Raises:
        InvalidInputError: Shapes, dtypes, place or names do not fit the store.
        OutputError: The store is missing or cannot be written.
    """
    place = place_of(path)
    with shared(place):
        group, extent = open_zone(place, tile.zone)
        layers = _layers(int8, maps)
        if quality.LAYERS[0][0] in group:
            layers = (*layers, *quality.layers(int8.quality, tile))
        if true_colour.NAME in group:
            shape = group[true_colour.NAME].shape[1:3]
            layers = (*layers, true_colour.layer(int8.colours, tile, shape=shape))
        _check_tile(group, tile, int8=int8, layers=layers, time_index=time_index, res_m=extent.res_m)
        # Hashes are of this call only: a writer of its own keeps concurrent tiles of one process apart.
        writer = _writer_of(place)
        target = zarr.open_group(
            writer, path=zone_name(tile.zone), mode="r+", zarr_format=3, use_consolidated=consolidated(place)
        )
        keys: list[str] = []
        for name, values in layers:
            array = target[name]
            shard = _object_px(array)
            for row, col, rows, cols in tile_shards(tile, extent=_ground(name, extent), shard=shard):
                key = _key(array, tile.zone, name=name, index=(time_index, row, col))
                where = (slice(row * shard, (row + 1) * shard), slice(col * shard, (col + 1) * shard))
                _put(array, (time_index, ..., *where), values[..., rows, cols], key=key)
                keys.append(key)
                at(f"shard:{key}")
        return _written(place, writer, keys=keys)


def check_objects(path: str | Path, objects: Objects, *, tile: Tile | None = None) -> int:
    """Read the objects back, compare their hashes, and decode one chunk of each array; returns their bytes.

    Args:
        path: The store.
        objects: What ``write_tile`` returned.
        tile: The tile they belong to. Needed for objects of old receipts: when a store has grown to the north or
            west, its objects have new names, which are found from the tile's place.

    Raises:
        OutputError: An object is missing, changed, left over, or cannot be decoded; all such are named.
    """
    place = place_of(path)
    with shared(place):
        current = _moved(place, objects, tile=tile) if tile is not None else objects
        wrong = [f"{key}: {text}" for key, digest in current if (text := _difference(place, key, digest))]
        if wrong:
            raise OutputError(f"store {place.name}: {len(wrong)} objects are not as written: {'; '.join(wrong[:5])}")
        first = {key.split("/")[1]: key for key, digest in reversed(current) if digest}
        for key in first.values():
            _decode_one(place, key)
        return sum(place.size(key) or 0 for key, digest in current if digest)


def read_tile(
    path: str | Path, tile: Tile, *, time_index: int = 0
) -> tuple[NDArray[np.int8], NDArray[np.uint8], NDArray[np.uint8]]:
    """Read codes (band, row, col) int8, reason (row, col) uint8 and n_obs (row, col) uint8 of a tile, in its pixels.

    Raises:
        OutputError: The store or the zone does not exist.
        InvalidInputError: The tile lies outside the store.
    """
    codes = _read(path, tile, name="embeddings", time_index=time_index)
    reason = _read(path, tile, name="reason", time_index=time_index)
    return codes, reason, _read(path, tile, name="n_obs", time_index=time_index)


def read_box(path: str | Path, box: Box, name: str, *, time_index: int = 0) -> NDArray[Any]:
    """(..., row, col) of array ``name`` in a box inside the store's extent, in pixels of that array.

    Raises:
        OutputError: The store, the zone or the array does not exist.
        InvalidInputError: The box lies outside the store, or counts other pixels.
    """
    place = place_of(path)
    with shared(place):
        group, extent = open_zone(place, box.zone)
        if name not in group:
            raise OutputError(f"store {place.name} has no array {name} in zone {box.zone}")
        ground = _ground(name, extent)
        if box.res_m != ground.res_m:
            raise InvalidInputError(f"{box} counts pixels of {box.res_m} m, {name} has {ground.res_m} m")
        return np.asarray(group[name][(time_index, ..., *box.slices_in(ground))])


def array_names(path: str | Path, zone: int) -> tuple[str, ...]:
    """Names of the arrays of a zone, sorted.

    Raises:
        OutputError: The store or the zone does not exist.
    """
    place = place_of(path)
    with shared(place):
        return tuple(sorted(open_zone(place, zone)[0].array_keys()))


def read_map(path: str | Path, tile: Tile, name: str, *, time_index: int = 0) -> NDArray[np.uint8]:
    """(row, col) uint8 of map ``name`` in a tile; 255 is nodata.

    Raises:
        OutputError: The store, the zone or the map does not exist.
    """
    return _read(path, tile, name=f"map_{name}", time_index=time_index)


class _FolderWriter(LocalStore):  # type: ignore[misc]
    """A local store that replaces shards whole, counts PUTs and keeps the hash of what was put.

    Reading a shard answers "not there": zarr would otherwise load and decode the old one before it replaces every chunk
    of it, which doubles the input and fails on a broken object that the write is about to heal.
    """

    def __init__(self, root: Path | str, *, read_only: bool = False) -> None:
        super().__init__(root, read_only=read_only)
        self.digests: dict[str, list[str]] = {}

    async def get(self, key: str, prototype: Any = None, byte_range: Any = None) -> Any:
        if "/c/" in key:
            return None
        return await super().get(key, prototype, byte_range)

    async def set(self, key: str, value: Any) -> None:
        digest = await asyncio.to_thread(_sha256, value)
        await super().set(key, value)
        await asyncio.to_thread(durable.sync_file, self.root / key)
        self.digests.setdefault(key, []).append(digest)


class _ObjectWriter(SpokenStore):
    """The same for an object store, where a PUT that was answered is on disks already."""

    def __init__(self, store: Any, *, read_only: bool = False) -> None:
        super().__init__(store, read_only=read_only)
        self.digests: dict[str, list[str]] = {}

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        if "/c/" in key:
            return None
        return await super().get(key, prototype, byte_range)

    async def set(self, key: str, value: Any) -> None:
        digest = await asyncio.to_thread(_sha256, value)
        await super().set(key, value)
        self.digests.setdefault(key, []).append(digest)


def _writer_of(place: LocalPlace | ObjectPlace) -> _FolderWriter | _ObjectWriter:
    return _FolderWriter(place.root) if isinstance(place, LocalPlace) else _ObjectWriter(place.zarr().store)


def _sha256(value: Any) -> str:
    return hashlib.sha256(value.as_buffer_like()).hexdigest()


def _layers(int8: Embedding, maps: Sequence[tuple[str, NDArray[np.uint8]]]) -> tuple[tuple[str, NDArray[Any]], ...]:
    named = tuple((f"map_{name}", values) for name, values in maps)
    scale = () if int8.pixel_scale is None else ((PIXEL_SCALE, int8.pixel_scale),)
    return (("embeddings", int8.codes), *scale, ("reason", int8.reason), ("n_obs", int8.n_obs), *named)


def _check_tile(
    group: Any,
    tile: Tile,
    *,
    int8: Embedding,
    layers: Sequence[tuple[str, NDArray[Any]]],
    time_index: int,
    res_m: int,
) -> None:
    own, box = group.attrs["earthpress"], tile.box.cover(res_m)
    if int8.box != box or tile.tile_px != own["grid"]["tile_px"]:
        raise InvalidInputError(f"tile {tile.id}: data is on {int8.box}, the tile of the store is {box}")
    wanted = {
        name
        for name in group.array_keys()
        if name in ("embeddings", PIXEL_SCALE, "reason", "n_obs", true_colour.NAME)
        or name.startswith(("map_", quality.PREFIX))
    }
    if {name for name, _ in layers} != wanted:
        raise InvalidInputError(f"tile {tile.id}: got {[n for n, _ in layers]}, the store needs {sorted(wanted)}")
    for name, values in layers:
        array = group[name]
        shape = (*array.shape[1:-2], *_ground(name, box).shape)
        if values.shape != shape or values.dtype != array.dtype:
            raise InvalidInputError(
                f"tile {tile.id}: {name} is {values.dtype} {values.shape}, the store has {array.dtype} {shape}"
            )
    steps = len(read_times(group))
    if not 0 <= time_index < steps:
        raise InvalidInputError(f"tile {tile.id}: time_index {time_index}, the store has {steps} time steps")


def _key(array: Any, zone: int, *, name: str, index: tuple[int, int, int]) -> str:
    step, row, col = index
    lead = "0/" * (array.ndim - 3)
    return f"{zone_name(zone)}/{name}/c/{step}/{lead}{row}/{col}"


def _object_px(array: Any) -> int:
    """Side of what one object holds, in pixels of the array."""
    return int((array.shards or array.chunks)[-1])


def _ground(name: str, extent: Box) -> Box:
    """``extent``, which counts pixels of the store, in pixels of array ``name``."""
    if name == true_colour.NAME:
        return extent.cover(COLOUR_M)
    return extent.cover(quality.BLOCK_M) if name.startswith(quality.PREFIX) else extent


def _put(array: Any, selection: tuple[Any, ...], values: NDArray[Any], *, key: str) -> None:
    try:
        array[selection] = values
    except OSError as err:
        raise OutputError(f"{key}: cannot be written: {err.strerror or err}") from err


def _written(place: LocalPlace | ObjectPlace, writer: _FolderWriter | _ObjectWriter, *, keys: Sequence[str]) -> Objects:
    """Flush the folders and pair every key with the hash of its one PUT."""
    if isinstance(place, LocalPlace):
        for folder in {(place.root / key).parent for key in keys}:
            if folder.is_dir():
                durable.sync_folder(folder)
    puts = {key: writer.digests.get(key, []) for key in keys}
    if any(len(v) > 1 for v in puts.values()) or writer.digests.keys() - puts.keys():
        # Would mean that the tile is not a whole number of shards: other tiles' pixels are at stake.
        raise OutputError(f"store {place.name}: a shard was written more than once or belongs to no tile")
    return tuple(sorted((key, digests[0] if digests else "") for key, digests in puts.items()))


def _difference(place: LocalPlace | ObjectPlace, key: str, digest: str) -> str:
    """What is wrong with an object, or ""."""
    try:
        found = place.digest(key)
    except OSError as err:
        return f"cannot be read ({err.strerror})"
    if found is None:
        return "missing" if digest else ""
    if not digest:
        return "left over, the shard is all nodata"
    return "" if found == digest else f"sha256 {found[:12]}, want {digest[:12]}"


def _decode_one(place: LocalPlace | ObjectPlace, key: str) -> None:
    zone, name, _, *index = key.split("/")
    array = zarr.open_array(place.zarr(), path=f"{zone}/{name}", mode="r", zarr_format=3)
    step, row, col = int(index[0]), int(index[-2]), int(index[-1])
    shard, chunk = _object_px(array), int(array.chunks[-1])
    try:
        # An object exists only when some chunk of it is not all fill; elided chunks cost one read of the shard's index.
        for y in range(row * shard, (row + 1) * shard, chunk):
            for x in range(col * shard, (col + 1) * shard, chunk):
                values = array[(step, ..., slice(y, y + chunk), slice(x, x + chunk))]
                # A float's nodata is NaN, which differs from itself.
                if (~np.isnan(values) if values.dtype.kind == "f" else values != array.fill_value).any():
                    return
    except (ValueError, RuntimeError, OSError) as err:
        raise OutputError(f"store {place.name}: {key} cannot be decoded: {err}") from err
    raise OutputError(f"store {place.name}: {key} holds no pixel although it exists")


def _moved(place: LocalPlace | ObjectPlace, objects: Objects, *, tile: Tile) -> Objects:
    """The objects under the names that they have now."""
    group, extent = open_zone(place, tile.zone)
    moved: list[tuple[str, str]] = []
    parts = [(key.split("/"), digest) for key, digest in objects]
    for name in dict.fromkeys(p[1] for p, _ in parts):
        own = [(p, digest) for p, digest in parts if p[1] == name]
        places = tile_shards(tile, extent=_ground(name, extent), shard=_object_px(group[name]))
        rows = min(p[0] for p in places) - min(int(p[-2]) for p, _ in own)
        cols = min(p[1] for p in places) - min(int(p[-1]) for p, _ in own)
        moved += [("/".join((*p[:-2], str(int(p[-2]) + rows), str(int(p[-1]) + cols))), digest) for p, digest in own]
    return tuple(moved)


def _read(path: str | Path, tile: Tile, *, name: str, time_index: int) -> NDArray[Any]:
    place = place_of(path)
    with shared(place):
        group, extent = open_zone(place, tile.zone)
        if name not in group:
            raise OutputError(f"store {place.name} has no array {name} in zone {tile.zone}")
        rows, cols = tile.box.cover(extent.res_m).slices_in(extent)
        return np.asarray(group[name][(time_index, ..., rows, cols)])
