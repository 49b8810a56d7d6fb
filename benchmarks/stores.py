"""What a store costs: write speed, compression, objects per 1000 km2 and random reads, as Markdown tables.

    OMP_NUM_THREADS=1 python benchmarks/stores.py [--quick] [--dims 64,128,192,768] [--quantised 192] [--rounds 3]
        [--folder DIR]

**Content.** Random weights of four widths (toy, nano, tiny, base of v1.2; patch 4, the planner's window and overlap)
over a clear date of the simulated landscape: 512 px of it, 256 px for base, encoded, stitched, interpolated and
quantised as a run does, with a run's provisional calibration. That piece is repeated over the tile. It is as wide as a
whole number of chunks, and a chunk is compressed by itself, so no chunk sees ground twice. All pixels are valid: nodata
would only make stores smaller. Beside the ratio stand two bounds: ``shuffled``, the same codes with the pixels of a
chunk in random order, which leaves only the distribution of the values; and uniform noise.

**Layouts.** What earthpress chooses for tiles of 2048 px: 10 m pixels up to 192 dimensions, above that one vector per
token; 768 also as ``pca:64`` at 10 m and as it is at 10 m. The tile that is written is smaller where 2048 px would be
more than ``--limit`` MB, but a whole number of the same shards. Objects of a tile are counted from the layout, and so
are those of the tile that is written, where they must be the files that are there. A zone has some 40 small ones more
(metadata, coordinates). Borders cut tiles: x 1.08 is what a country of France's size and shape is taken to need.

**Rival.** The same codes by ``xarray.Dataset.to_zarr`` with the defaults of Zarr v3 (zstd, no shards) and chunks of 256
px of ground, in turn with ours. It neither flushes to the disk nor keeps hashes. ``written`` of ours has both, and the
layers beside the vectors; ``checked`` is reading all objects back, comparing hashes and decoding a chunk per array.

**Figures.** MB and GB are of raw codes, medians over ``--rounds``; CPU seconds are of the process with all its threads,
and mean more than MB/s where other work shares the machine. Reads are of one store each, through a store that counts:
medians of random places, metadata not counted. A first read of a shard reads its index, then the chunk.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.storage import LocalStore

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.types import BLOCK_PX, COLOUR_M, PIXEL_M, Box, Embedding, GridSpec, Period, Quality, Tile
from pipeline.write import layout, quality, store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from pipeline.codes import Coded
    from pipeline.encode.calibration import Sample
    from pipeline.encode.stitch import Field
    from pipeline.types import Calibration, ModelCard, Numerics

PATCH_PX = 4
TILE_PX, CPU_TILE_PX = 2048, 512
"""Sides of tiles: the default on GPUs, for which objects are counted, and that on CPUs."""
EDGES = 1.08
MODELS = {64: "toy", 128: "nano", 192: "tiny", 768: "base"}
PIECE_PX = {64: 512, 128: 512, 192: 512, 768: 256}
VECTORS = ("embeddings", layout.PIXEL_SCALE)
"""Arrays that hold what a vector is decoded from."""
QUANTISERS = ("linear", "power", "per_pixel", "pca:64", "float16", "float32")
WINDOW_PX = 256
"""Side of a chunk of the rival and of the window that is read, px of ground."""
PLACES = 9
START = datetime(2024, 6, 1, tzinfo=UTC)


@dataclass(frozen=True, eq=False)
class Content:
    """Encoded ground: token field with its margin, over the 10 m pixels ``box``."""

    card: ModelCard
    grid: GridSpec
    period: Period
    numerics: Numerics
    sample: Sample
    tokens: Field
    box: Box


@dataclass(eq=False)
class Timing:
    """Wall and CPU seconds of some rounds."""

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)

    def of(self, call: Callable[[], Any]) -> Any:
        wall, cpu = time.perf_counter(), time.process_time()
        found = call()
        self.wall_s.append(time.perf_counter() - wall)
        self.cpu_s.append(time.process_time() - cpu)
        return found

    def mb_per_s(self, nbytes: int) -> float:
        return nbytes / 1e6 / statistics.median(self.wall_s)

    def cpu_s_per_gb(self, nbytes: int) -> float:
        return statistics.median(self.cpu_s) / (nbytes / 1e9)


@dataclass(frozen=True)
class Read:
    """Medians over random places."""

    objects: float
    requests: float
    nbytes: float

    def __str__(self) -> str:
        return f"{self.objects:.0f} / {self.requests:.0f} / {self.nbytes / 1e6:.2f}"


@dataclass(frozen=True)
class Codec:
    """One chunk, one thread: ratio, and MB/s of raw codes by the thread's clock."""

    name: str
    ratio: float
    packed: float
    unpacked: float


@dataclass(eq=False)
class Row:
    """What one layout gave; bytes are of the vectors of the tile that was written."""

    name: str
    spec: layout.StoreSpec
    raw_bytes: int
    stored_bytes: int = 0
    rival_bytes: int = 0
    shuffled: float = 0.0
    codecs: tuple[Codec, ...] = ()
    wrote: Timing = field(default_factory=Timing)
    checked: Timing = field(default_factory=Timing)
    rival: Timing = field(default_factory=Timing)
    reads: tuple[Read, ...] = ()
    rival_reads: tuple[Read, ...] = ()

    @property
    def km2(self) -> float:
        return (self.spec.tile_px * PIXEL_M / 1000) ** 2


# ---- content ---------------------------------------------------------------------------------------------------------


def encoded(dims: int) -> Content:
    """A piece of the simulated landscape as a run encodes it."""
    from pipeline.config import EncodeSettings
    from pipeline.encode import calibration, checkpoint, session, stitch
    from pipeline.plan import grid as lattice
    from pipeline.plan import windows
    from pipeline.run import prepare
    from pipeline.simulate.sample import AREA, sample_stack

    model, side = checkpoint.load(f"random:v1.2-{MODELS[dims]}:0"), PIECE_PX[dims]
    window, overlap, _ = windows.settle(model.card, patch_px=PATCH_PX, periods=1, stitch="blend")
    grid = GridSpec(patch_px=PATCH_PX, window_px=window, overlap_px=overlap, tile_px=TILE_PX)
    period = Period(index=0, start=START, end=START + timedelta(days=30))
    box = replace(AREA, height=side, width=side)
    origins = lattice.window_origins(box.pad(PATCH_PX), grid)
    (top, left), (bottom, right) = min(origins), max(origins)
    height, width = bottom + window - top, right + window - left
    read = Box(zone=box.zone, res_m=PIXEL_M, row=top, col=left, height=height, width=width).pad(grid.embed_px)
    settings = EncodeSettings(device="cpu", dtype="float32", compile="off")
    numerics = session.settle(settings, card=model.card, grid=grid, periods=1)
    encoder = session.Session(
        model, grid=grid, periods=(period,), numerics=numerics, threads=len(os.sched_getaffinity(0))
    )
    made = encoder.encode(sample_stack(read, (period,)), origins)
    around = box.pad(PATCH_PX).cover(PIXEL_M * PATCH_PX)
    tokens = stitch.stitch(made.values, made.valid, origins=origins, grid=grid, box=around)
    vectors = prepare.sample_vectors(model, patch_px=PATCH_PX, sensors=("sentinel2_l2a",))
    sample = calibration.Sample.merged([calibration.Sample.of([one], dims=dims) for one in vectors])
    return Content(model.card, grid, period, numerics, sample, stitch.with_head(tokens, encoder.head), box)


def coded_of(content: Content, quantiser: str, *, token_px: int) -> tuple[Coded, Calibration]:
    """The codes of the piece, in pixels of the store."""
    from pipeline.encode import calibration, quantize

    chosen = calibration.calibrate(
        content.sample, quantiser, card=content.card, patch_px=PATCH_PX, source="sample", provisional=True
    )
    box = replace(content.grid, token_px=token_px).on_store(content.box)
    tile = quantize.TileCodes(box, chosen, like=content.tokens.values)
    tile.fill(content.tokens, np.ones(box.shape, np.bool_), box)
    return tile.to_host(), chosen


def spec_of(
    calibration: Calibration, *, grid: GridSpec, card: ModelCard, numerics: Numerics, period: Period
) -> layout.StoreSpec:
    """The specification of a store of one tile, with the layers of a run without maps."""
    return layout.StoreSpec(
        name="benchmark",
        dims=calibration.bands,
        grid=grid,
        times=((period.start, period.end),),
        model=card,
        calibration=calibration,
        numerics=numerics,
        recipe="benchmark",
        extents=(tile_of(grid.tile_px).box,),
        periods=(period,),
        true_colour=True,
    )


def tile_of(tile_px: int) -> Tile:
    return Tile(zone=32, row=-270 * (2048 // tile_px), col=24 * (2048 // tile_px), tile_px=tile_px)


def resized(spec: layout.StoreSpec, tile_px: int) -> layout.StoreSpec:
    """The same store with other tiles."""
    return replace(spec, grid=replace(spec.grid, tile_px=tile_px), extents=(tile_of(tile_px).box,))


def fitting(spec: layout.StoreSpec, limit_bytes: int) -> layout.StoreSpec:
    """With the largest tile whose vectors take up to ``limit_bytes``."""
    side = spec.tile_px
    pixel_bytes = spec.dims * np.dtype(spec.calibration.dtype).itemsize / spec.grid.token_px**2
    while side > BLOCK_PX and pixel_bytes * side**2 > limit_bytes:
        side //= 2
    return resized(spec, side)


def repeated(values: NDArray[Any], side: int) -> NDArray[Any]:
    """(..., row, col) values over and over until they are ``side`` wide."""
    count = -(-side // values.shape[-1])
    return np.tile(values, (*(1,) * (values.ndim - 2), count, count))[..., :side, :side]


def embedding_of(coded: Coded, spec: layout.StoreSpec) -> Embedding:
    """A whole valid tile that holds the piece over and over."""
    tile, (box,) = tile_of(spec.tile_px), spec.boxes
    blocks = tile.box.cover(quality.BLOCK_M)
    ones = np.ones((1, *blocks.shape), np.uint8)
    colours = np.full((1, 3, *tile.box.cover(COLOUR_M).shape), 100, np.uint8)
    return Embedding(
        codes=repeated(coded.codes, box.width),
        pixel_scale=None if coded.pixel_scale is None else repeated(coded.pixel_scale, box.width),
        reason=np.zeros(box.shape, np.uint8),
        n_obs=np.ones(box.shape, np.uint8),
        box=box,
        clipped=0.0,
        quality=(Quality(box=blocks, clear_pct=100 * ones, scenes=ones, first_day=ones.astype(np.uint16)),),
        colours=colours,
    )


# ---- objects and bounds ----------------------------------------------------------------------------------------------


def objects_of_tile(spec: layout.StoreSpec, names: Sequence[str] = ()) -> int:
    """Objects of a tile without nodata: of all pixel arrays, or of those named."""
    wanted = [one for one in layout.arrays(spec) if not names or one.name in names]
    return sum((spec.tile_px * PIXEL_M // (one.px_m * one.shard_px)) ** 2 for one in wanted)


def per_1000_km2(objects: int, *, tile_px: int) -> float:
    return 1000 * objects / (tile_px * PIXEL_M / 1000) ** 2


def objects_in(folder: Path, names: Sequence[str]) -> dict[str, int]:
    """Bytes of every object of the named arrays, whatever group they are in."""
    found = {}
    for path in folder.rglob("*"):
        key = path.relative_to(folder).as_posix()
        if "/c/" in key and path.is_file() and array_of(key) in names:
            found[key] = path.stat().st_size
    return found


def array_of(key: str) -> str:
    return key.partition("/c/")[0].rpartition("/")[2]


def vector_bytes(objects: dict[str, int]) -> int:
    return sum(size for key, size in objects.items() if array_of(key) in VECTORS)


def compressed(values: NDArray[Any]) -> float:
    """Ratio of one chunk under the store's codec."""
    from numcodecs import Blosc

    data = np.ascontiguousarray(values)
    return data.nbytes / len(Blosc("zstd", 1, Blosc.BITSHUFFLE).encode(data))


def shuffled(values: NDArray[Any]) -> float:
    """The same with the pixels of (band, row, col) in random order."""
    flat = values.reshape(len(values), -1)
    return compressed(flat[:, np.random.default_rng(0).permutation(flat.shape[1])])


def codecs_of(values: NDArray[Any], *, passes: int = 3) -> tuple[Codec, ...]:
    """The store's codec beside others, on one chunk of (band, row, col) codes."""
    from numcodecs import Blosc, Zstd

    data, found = np.ascontiguousarray(values), []
    choices = {
        "Blosc zstd 1, bitshuffle": Blosc("zstd", 1, Blosc.BITSHUFFLE),
        "Blosc zstd 3, bitshuffle": Blosc("zstd", 3, Blosc.BITSHUFFLE),
        "zstd (Zarr's default)": Zstd(0),
        "Blosc lz4, bitshuffle": Blosc("lz4", 1, Blosc.BITSHUFFLE),
    }
    for name, codec in choices.items():
        spent: list[tuple[float, float]] = []
        for _ in range(passes):
            began = time.thread_time()
            packed = codec.encode(data)
            half = time.thread_time()
            codec.decode(packed)
            spent.append((half - began, time.thread_time() - half))
        speeds = (data.nbytes / 1e6 / statistics.median(column) for column in zip(*spent, strict=True))
        found.append(Codec(name, data.nbytes / len(packed), *speeds))
    return tuple(found)


def noise_ratio(shape: tuple[int, ...]) -> float:
    return compressed(np.random.default_rng(0).integers(-127, 128, shape, np.int8))


# ---- reads -----------------------------------------------------------------------------------------------------------


class Counting(LocalStore):
    """A store that notes (key, bytes) of what is read of arrays."""

    def __init__(self, root: Path | str) -> None:
        super().__init__(root, read_only=True)
        self.seen: list[tuple[str, int]] = []

    async def get(self, key: str, prototype: Any = None, byte_range: Any = None) -> Any:
        value = await super().get(key, prototype, byte_range)
        if value is not None and "/c/" in key:
            self.seen.append((key, len(value)))
        return value


def random_reads(folder: Path, name: str, *, window: int, places: int) -> tuple[Read, ...]:
    """One pixel, a window of ``window`` pixels anywhere, and one chunk, of (time, band, y, x) array ``name``."""
    counting = Counting(folder)
    array = zarr.open_array(counting, path=name, mode="r")
    side, chunk = array.shape[-1], array.chunks[-1]
    rng, found = np.random.default_rng(0), []
    for width, step in ((1, 1), (window, 1), (chunk, chunk)):
        notes = []
        for _ in range(places):
            row, col = (step * int(n) for n in rng.integers(0, (side - width) // step + 1, 2))
            counting.seen.clear()
            np.asarray(array[0, :, row : row + width, col : col + width])
            seen = list(counting.seen)
            notes.append((len({key for key, _ in seen}), len(seen), sum(size for _, size in seen)))
        found.append(Read(*(statistics.median(column) for column in zip(*notes, strict=True))))
    return tuple(found)


# ---- measuring -------------------------------------------------------------------------------------------------------


def measured(
    name: str,
    coded: Coded,
    spec: layout.StoreSpec,
    *,
    folder: Path,
    rounds: int,
    rival: bool = True,
    places: int = PLACES,
) -> Row:
    """Write, check and read one tile, in turn with the rival.

    Raises:
        SystemExit: The files are not those that the layout says.
    """
    data, tile = embedding_of(coded, spec), tile_of(spec.tile_px)
    vectors = [data.codes] if data.pixel_scale is None else [data.codes, data.pixel_scale]
    row = Row(name=name, spec=spec, raw_bytes=sum(one.nbytes for one in vectors))
    chunk, window = layout.arrays(spec)[0].chunk_px, WINDOW_PX // spec.grid.token_px
    if coded.codes.shape[-1] % chunk or coded.codes.shape[-1] % window:
        raise SystemExit(f"a piece of {coded.codes.shape[-1]} px is not whole chunks of {chunk} and {window}")
    row.shuffled = shuffled(coded.codes[:, :chunk, :chunk])
    row.codecs = codecs_of(coded.codes[:, :chunk, :chunk]) if rival else ()
    ours, theirs = folder / "ours.zarr", folder / "rival.zarr"
    for _ in range(rounds):
        for path in (ours, theirs):
            shutil.rmtree(path, ignore_errors=True)
        store.create_store(ours, spec)
        objects = row.wrote.of(lambda: store.write_tile(ours, tile, data))
        row.checked.of(lambda objects=objects: store.check_objects(ours, objects, tile=tile))
        if rival:
            row.rival.of(lambda: plain(theirs, data.codes, window))
    files = objects_in(ours, [one.name for one in layout.arrays(spec)])
    check_files(name, files, [key for key, _ in objects], count=objects_of_tile(spec))
    row.stored_bytes = vector_bytes(files)
    row.reads = random_reads(ours, f"{layout.zone_name(tile.zone)}/embeddings", window=window, places=places)
    if rival:
        row.rival_bytes = vector_bytes(objects_in(theirs, VECTORS))
        row.rival_reads = random_reads(theirs, "embeddings", window=window, places=places)
    for path in (ours, theirs):
        shutil.rmtree(path, ignore_errors=True)
    return row


def check_files(name: str, files: Iterable[str], written: Sequence[str], *, count: int) -> None:
    """Refuse figures about other objects than those of the layout.

    Raises:
        SystemExit: The files that lie there, those written and those by the layout are not the same.
    """
    there = sorted(files)
    if there != sorted(written) or len(there) != count:
        raise SystemExit(f"{name}: {len(there)} files, {len(written)} written, {count} by the layout")


def plain(path: Path, values: NDArray[np.int8], chunk: int) -> None:
    """What somebody writes who thinks of no store."""
    import xarray as xr

    data = xr.Dataset({"embeddings": (("time", "band", "y", "x"), values[None])})
    encoding = {"embeddings": {"chunks": (1, len(values), chunk, chunk)}}
    data.to_zarr(path, mode="w", zarr_format=3, consolidated=False, encoding=encoding)


# ---- tables ----------------------------------------------------------------------------------------------------------


def line(cells: Sequence[object]) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def header(*names: str) -> list[str]:
    return [line(names), line(["---"] * len(names))]


def stores_table(rows: Sequence[Row]) -> str:
    """Speeds and sizes; ours, then the rival."""
    lines = header(
        "dims, stored",
        "tile px, MB",
        "written MB/s",
        "rival",
        "CPU s/GB",
        "rival",
        "checked MB/s",
        "ratio",
        "rival",
        "shuffled",
        "MB/km2",
    )
    for row in rows:
        raw = row.raw_bytes
        lines.append(
            line(
                [
                    row.name,
                    f"{row.spec.tile_px}, {raw / 1e6:.0f}",
                    f"{row.wrote.mb_per_s(raw):.0f}",
                    f"{row.rival.mb_per_s(raw):.0f}",
                    f"{row.wrote.cpu_s_per_gb(raw):.1f}",
                    f"{row.rival.cpu_s_per_gb(raw):.1f}",
                    f"{row.checked.mb_per_s(raw):.0f}",
                    f"{raw / row.stored_bytes:.2f}",
                    f"{raw / row.rival_bytes:.2f}",
                    f"{row.shuffled:.2f}",
                    f"{row.stored_bytes / 1e6 / row.km2:.3f}",
                ]
            )
        )
    return "\n".join(lines)


def objects_table(rows: Sequence[Row]) -> str:
    """Objects per 1000 km2 by the layout."""
    lines = header(
        "objects / 1000 km2 of",
        "shard px",
        "chunk px",
        "vectors",
        "all layers",
        f"all x {EDGES}",
        f"all, tiles of {CPU_TILE_PX} px",
        "rival's vectors",
    )
    for row in rows:
        whole, small = resized(row.spec, TILE_PX), resized(row.spec, CPU_TILE_PX)
        array, every = layout.arrays(whole)[0], per_1000_km2(objects_of_tile(whole), tile_px=TILE_PX)
        lines.append(
            line(
                [
                    row.name,
                    array.shard_px,
                    array.chunk_px,
                    f"{per_1000_km2(objects_of_tile(whole, VECTORS), tile_px=TILE_PX):.1f}",
                    f"{every:.1f}",
                    f"{EDGES * every:.1f}",
                    f"{per_1000_km2(objects_of_tile(small), tile_px=CPU_TILE_PX):.0f}",
                    f"{per_1000_km2(1, tile_px=WINDOW_PX):.0f}",
                ]
            )
        )
    return "\n".join(lines)


def codecs_table(rows: Sequence[Row]) -> str:
    lines = header("ratio, MB/s packed, unpacked", *(one.name for one in rows[0].codecs))
    for row in rows:
        cells = [f"{one.ratio:.2f}, {one.packed:.0f}, {one.unpacked:.0f}" for one in row.codecs]
        lines.append(line([row.name, *cells]))
    return "\n".join(lines)


def reads_table(rows: Sequence[Row]) -> str:
    lines = header("objects / requests / MB of", "one pixel", f"{WINDOW_PX} px window", "one chunk")
    for row in rows:
        lines.append(line([row.name, *row.reads]))
        lines.append(line([f"{row.name}, rival", *row.rival_reads]))
    return "\n".join(lines)


def quantisers_table(rows: Sequence[Row]) -> str:
    lines = header(
        "quantiser", "bytes of a pixel", "shard / chunk px", "ratio", "shuffled", "MB/km2", "written MB/s", "CPU s/GB",
        "vector objects / 1000 km2",
    )  # fmt: skip
    for row in rows:
        whole, raw = resized(row.spec, TILE_PX), row.raw_bytes
        array = layout.arrays(whole)[0]
        lines.append(
            line(
                [
                    row.name,
                    raw // row.spec.tile_px**2,
                    f"{array.shard_px} / {array.chunk_px}",
                    f"{raw / row.stored_bytes:.2f}",
                    f"{row.shuffled:.2f}",
                    f"{row.stored_bytes / 1e6 / row.km2:.2f}",
                    f"{row.wrote.mb_per_s(raw):.0f}",
                    f"{row.wrote.cpu_s_per_gb(raw):.1f}",
                    f"{per_1000_km2(objects_of_tile(whole, VECTORS), tile_px=TILE_PX):.1f}",
                ]
            )
        )
    return "\n".join(lines)


# ---- the run ---------------------------------------------------------------------------------------------------------


def layouts_of(dims: int) -> tuple[tuple[str, str, int], ...]:
    """(name, quantiser, token_px) of what is measured; the default of ``encode.resolution`` first."""
    from pipeline.config import EncodeSettings

    default = EncodeSettings(patch_px=PATCH_PX).token_px(dims)
    if default == 1:
        return ((f"{dims}, 10 m", "linear", 1),)
    token = f"{dims}, token of {PIXEL_M * PATCH_PX} m (default)"
    return ((token, "linear", default), (f"{dims}, pca:64, 10 m", "pca:64", 1), (f"{dims}, 10 m", "linear", 1))


def main() -> None:
    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dims", type=numbers, default=list(MODELS))
    parser.add_argument("--quantised", type=int, default=192, help="dimensions of the table of quantisers; 0: none")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=int, default=600, help="MB of vectors of a written tile")
    parser.add_argument("--folder", type=Path, help="where to write; default: the system's temporary folder")
    parser.add_argument("--quick", action="store_true", help="64 and 128 dimensions, small tiles, one round")
    args = parser.parse_args()
    if args.quick:
        args.dims, args.quantised, args.rounds, args.limit = [64, 128], 128, 1, 40
    began, load = time.perf_counter(), os.getloadavg()[0]
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("zarr", "numcodecs", "xarray"))
    print(f"{datetime.now(UTC):%Y-%m-%d}, {len(os.sched_getaffinity(0))} cores, {versions}, load average {load:.1f}")
    rows: list[Row] = []
    quantised: list[Row] = []
    with tempfile.TemporaryDirectory(dir=args.folder) as temp:
        plain(Path(temp, "warm.zarr"), np.zeros((1, 8, 8), np.int8), 8)  # imports what the rival needs
        for dims in sorted({*args.dims, args.quantised} - {0}):
            content = encoded(dims)
            print(f"{dims}: encoded after {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
            for name, quantiser, token_px in layouts_of(dims) if dims in args.dims else ():
                rows.append(row_of(name, content, quantiser, token_px, folder=Path(temp), args=args))
            quantised += [
                row_of(quantiser, content, quantiser, 1, folder=Path(temp), args=args, rival=False)
                for quantiser in (QUANTISERS if dims == args.quantised else ())
            ]
            print(f"{dims}: done after {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    show(rows, quantised, dims=args.quantised)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    took = time.perf_counter() - began
    print(f"\n{took:.0f} s, peak memory {peak:.2f} GB, load average at the end {os.getloadavg()[0]:.1f}")


def row_of(
    name: str,
    content: Content,
    quantiser: str,
    token_px: int,
    *,
    folder: Path,
    args: argparse.Namespace,
    rival: bool = True,
) -> Row:
    coded, calibration = coded_of(content, quantiser, token_px=token_px)
    spec = spec_of(
        calibration,
        grid=replace(content.grid, token_px=token_px),
        card=content.card,
        numerics=content.numerics,
        period=content.period,
    )
    spec = fitting(spec, args.limit * 10**6)
    return measured(name, coded, spec, folder=folder, rounds=args.rounds, rival=rival)


def show(rows: Sequence[Row], quantised: Sequence[Row], *, dims: int) -> None:
    print(f"uniform noise: ratio {noise_ratio((64, 256, 256)):.2f}\n")
    print(stores_table(rows), objects_table(rows), reads_table(rows), codecs_table(rows), sep="\n\n")
    if quantised:
        print(f"\n{dims} dimensions at 10 m:\n\n{quantisers_table(quantised)}")


if __name__ == "__main__":
    main()
