"""What an embedding store is, from the store alone: ``earthpress inspect``."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import OutputError
from pipeline.run.folder import store_at
from pipeline.run.words import size_text
from pipeline.types import BLOCK_PX, Box, Reason
from pipeline.write import store
from pipeline.write.commit import Commits
from pipeline.write.layout import zone_name
from pipeline.write.place import place_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pipeline.write.place import LocalPlace, ObjectPlace

SAMPLES = 16
"""Objects of the layer ``reason`` that are looked at for the valid share, evenly over all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Zone:
    """One UTM zone of a store.

    Attributes:
        name: Group.
        epsg: Of its coordinates; the northern plane on both sides of the equator.
        shape: (row, col) pixels.
        pixel_m: Side of a pixel.
        bbox: Degrees west, south, east, north around the extent.
        km2: Area of the extent in the projection.
    """

    name: str
    epsg: int
    shape: tuple[int, int]
    pixel_m: int
    bbox: tuple[float, float, float, float]
    km2: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreFacts:
    """What ``inspect`` finds out.

    Attributes:
        place: Folder or URL.
        title: Name of the store.
        zones: The zones.
        times: (first day, day after the last) of every time step.
        dims: Length of a vector.
        dtype: Of the codes.
        quantiser: As ``store.quantiser`` names it.
        calibration: Hash, where it comes from, whether provisional.
        model: Name, version, size, sha256, whether trained.
        recipe: Hash of everything that decides pixels but the dates.
        chunk: Shape of a chunk of ``embeddings``.
        shard: Shape of what one of its objects holds.
        arrays: Array to (objects, bytes) of its pixels, all zones.
        objects: Of everything, with metadata.
        bytes: Of everything.
        ratio: Bytes of the codes over their bytes on disk, in objects that exist; None without one.
        valid: Share of the requested pixels that have a vector; None when nothing is written.
        valid_from: What the share was taken from.
        decode: One line of Python, ``ds`` is ``xarray.open_zarr(STORE, group=ZONE)``.
        software: What made it.
        warnings: What a user must know.
    """

    place: str
    title: str
    zones: tuple[Zone, ...]
    times: tuple[tuple[str, str], ...]
    dims: int
    dtype: str
    quantiser: str
    calibration: dict[str, Any]
    model: dict[str, Any]
    recipe: str
    chunk: tuple[int, ...]
    shard: tuple[int, ...]
    arrays: dict[str, tuple[int, int]]
    objects: int
    bytes: int
    ratio: float | None
    valid: float | None
    valid_from: str
    decode: str
    software: str = ""
    warnings: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        return asdict(self)

    def rows(self) -> tuple[tuple[str, str], ...]:
        """(label, text) for people; warnings are apart."""
        model, calibration = self.model, self.calibration
        label = "" if model["trained"] else ", UNTRAINED random weights"
        provisional = " (provisional)" if calibration["provisional"] else ""
        steps = ", ".join(f"{start} to {end}" for start, end in self.times)
        layers = ", ".join(name for name in self.arrays if name != "embeddings")
        codes, size = self.arrays["embeddings"]
        ratio = "" if self.ratio is None else f", {self.ratio:.2f} times smaller than the codes in them"
        valid = "nothing is written yet" if self.valid is None else f"{self.valid:.1%} of the pixels asked for"
        return (
            ("title", self.title),
            *((zone.name, _zone_text(zone)) for zone in self.zones),
            ("time steps", f"{len(self.times)}: {steps}"),
            ("vectors", f"{self.dims} dimensions, {self.dtype}, quantiser {self.quantiser}"),
            ("decode", self.decode),
            ("calibration", f"{calibration['hash']}{provisional}, from {calibration['source']}"),
            ("model", f"{model['name']}, OlmoEarth {model['version']} {model['size']}{label}, {model['sha256'][:12]}"),
            ("recipe", self.recipe),
            ("made by", self.software or "an earlier earthpress"),
            ("layers", layers),
            ("shards, chunks", f"{_shape(self.shard)} in chunks of {_shape(self.chunk)} (time, band, y, x)"),
            ("embeddings", f"{codes} objects, {size_text(size)}{ratio}"),
            ("everything", f"{self.objects} objects, {size_text(self.bytes)}"),
            ("valid", f"{valid}{f' ({self.valid_from})' if self.valid_from else ''}"),
        )


def inspect_store(text: str) -> StoreFacts:
    """Look at a store.

    Args:
        text: Output folder, store folder, zone group (``<store>/utm31``), or URL of a store or zone.

    Raises:
        OutputError: There is no earthpress store.
        ConfigError: A URL that cannot be one.
    """
    whole, only = _place(text)
    place = place_of(whole)
    attributes = store.root_attributes(whole)
    own = attributes.get("earthpress")
    if not isinstance(own, dict):
        hint = "no Zarr store there" if not attributes else "another program's Zarr store"
        raise OutputError(f"{text} is not an earthpress store: {hint}; give an output folder, a store or its URL")
    boxes = tuple(box for box in store.zones(whole) if only in ("", zone_name(box.zone)))
    files = [(key, size) for key, size in place.list() if not only or key.startswith(f"{only}/")]
    node = json.loads(place.read(f"{zone_name(boxes[0].zone)}/embeddings/zarr.json") or b"")
    shard, chunk = _cut(node)
    steps = store.times(whole)
    valid, valid_from = _valid(text, whole, files, boxes=boxes, last=len(steps) - 1)
    arrays = _arrays(files)
    count, stored = arrays.get("embeddings", (0, 0))
    dtype = str(node["data_type"])
    calibration = own["calibration"]
    return StoreFacts(
        place=str(place),
        title=str(attributes.get("title", "")),
        zones=tuple(_zone(box) for box in boxes),
        times=tuple((f"{a:%Y-%m-%d}", f"{b:%Y-%m-%d}") for a, b in steps),
        dims=int(node["shape"][1]),
        dtype=dtype,
        quantiser=str(calibration.get("quantiser", "linear")),
        calibration=calibration,
        model={k: own["model"].get(k) for k in ("name", "version", "size", "sha256", "trained")},
        recipe=str(own["identity"]["recipe"]),
        chunk=chunk,
        shard=shard,
        arrays={"embeddings": (0, 0)} | arrays,
        objects=len(files),
        bytes=sum(size for _, size in files),
        ratio=count * float(np.prod(shard)) * np.dtype(dtype).itemsize / stored if stored else None,
        valid=valid,
        valid_from=valid_from,
        decode=str(node["attributes"].get("dequantise", "")),
        software=str(own.get("software", "")),
        warnings=tuple(_warnings(place, attributes)),
    )


def _place(text: str) -> tuple[str, str]:
    """(store, zone group or "") that ``text`` means."""
    place = store_at(text.rstrip("/"))
    head, _, name = place.rpartition("/")
    if re.fullmatch(r"utm\d\d", name) and head:
        return head, name
    return place, ""


def _zone(box: Box) -> Zone:
    from pyproj import Transformer  # noqa: PLC0415

    to_degrees = Transformer.from_crs(box.epsg, 4326, always_xy=True)
    west, south, east, north = (round(v, 6) for v in to_degrees.transform_bounds(*box.bounds_m))
    return Zone(
        name=zone_name(box.zone),
        epsg=box.epsg,
        shape=box.shape,
        pixel_m=box.res_m,
        bbox=(west, south, east, north),
        km2=box.height * box.width * box.res_m**2 / 1e6,
    )


def _cut(node: dict[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(shard, chunk) shapes of an array's metadata."""
    shard = tuple(node["chunk_grid"]["configuration"]["chunk_shape"])
    inner = [c["configuration"]["chunk_shape"] for c in node["codecs"] if c["name"] == "sharding_indexed"]
    return shard, tuple(inner[0]) if inner else shard


def _arrays(files: Iterable[tuple[str, int]]) -> dict[str, tuple[int, int]]:
    """Objects and bytes of the pixels of every array."""
    found: dict[str, tuple[int, int]] = {}
    for key, size in files:
        parts = key.split("/")
        if len(parts) > 5 and parts[2] == "c":  # zone/array/c/time/.../row/col; coordinates have fewer axes
            count, total = found.get(parts[1], (0, 0))
            found[parts[1]] = (count + 1, total + size)
    return found


def _valid(
    text: str, whole: str, files: list[tuple[str, int]], *, boxes: tuple[Box, ...], last: int
) -> tuple[float | None, str]:
    """Share of the pixels asked for, in the zones of ``boxes``, that have a vector, and what says so."""
    for output in (Path(text), Path(whole).parent):
        if "://" not in str(text) and (output / "receipts").is_dir() and _is_of(output, whole):
            return _valid_of_receipts(output, whole, zones=tuple(f"z{box.zone:02d}_" for box in boxes))
    keys = [key for key, _ in files if "/reason/c/" in key]
    if not keys:
        return None, ""
    picked = [keys[i] for i in np.unique(np.linspace(0, len(keys) - 1, SAMPLES).astype(int))]
    place, asked, valid = place_of(whole), 0, 0
    for key in picked:
        reason = _reason(place, key)
        asked += int((reason != Reason.NOT_REQUESTED).sum())
        valid += int((reason == Reason.VALID).sum())
    steps = "" if last == 0 else ", all time steps"
    return (valid / asked if asked else None), f"sample of {len(picked)} of {len(keys)} shards{steps}"


def _is_of(output: Path, whole: str) -> bool:
    """Whether the receipts in a folder are about this store."""
    return store_at(str(output)) == whole or (output / "store.zarr").absolute() == Path(whole).absolute()


def _valid_of_receipts(output: Path, whole: str, *, zones: tuple[str, ...]) -> tuple[float | None, str]:
    commits = Commits(output)
    tiles = sorted(p.name for p in (output / "receipts").iterdir() if p.is_dir() and p.name.startswith(zones))
    newest = [max(found, key=lambda r: (len(r.blocks), r.attempt)) for t in tiles if (found := commits.current(t))]
    token_px = int(store.root_attributes(whole)["earthpress"]["token_px"])
    asked = sum(len(r.blocks) for r in newest) * (BLOCK_PX // token_px) ** 2
    text = f"{len(newest)} receipts in {output.name or output}"
    return (sum(r.valid_px for r in newest) / asked if asked else None), text


def _reason(place: LocalPlace | ObjectPlace, key: str) -> Any:
    """One shard of the layer ``reason``."""
    import zarr  # noqa: PLC0415

    zone, name, _, *index = key.split("/")
    array = zarr.open_array(place.zarr(), path=f"{zone}/{name}", mode="r")
    side = int(array.shards[-1])
    step, row, col = map(int, index)
    return array[step, row * side : (row + 1) * side, col * side : (col + 1) * side]


def _warnings(place: LocalPlace | ObjectPlace, attributes: dict[str, Any]) -> Iterable[str]:
    if attributes.get("warning"):
        yield str(attributes["warning"])
    if "consolidated_metadata" not in json.loads(place.read("zarr.json") or b"{}"):
        yield "the root has no consolidated metadata: readers need many requests to open it"


def _zone_text(zone: Zone) -> str:
    west, south, east, north = zone.bbox
    return (
        f"EPSG:{zone.epsg}, {zone.shape[0]} x {zone.shape[1]} pixels of {zone.pixel_m} m, {zone.km2:,.1f} km2, "
        f"{west:.4f},{south:.4f} to {east:.4f},{north:.4f}"
    )


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
