"""Runs over parts of one small archive, made in many ways, and what of the stores differs. Helpers, no tests.

The ground is chosen to be awkward: four ranking cells of zone 31 meet in it, the border to zone 32 runs 130 pixels east
of that corner, and in zone 32 the same ground lies across a cell border again. Scenes of one zone only, so that the
other one is warped. Clouds lie such that cells, tiles and blocks would each choose another scene; a swath edge, scenes
of a part of the area and a hole that no scene fills make windows with missing dates.

Places in here are pixels (x east, y south) from the corner of the four cells. Knows nothing of how vectors are made.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, date, datetime
from functools import cache
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
import zarr
from hypothesis import assume
from hypothesis import strategies as st
from pyproj import Transformer

from pipeline import api
from pipeline.encode import checkpoint
from pipeline.maps.probe import Probe
from pipeline.plan.planner import load_plan
from pipeline.run.folder import store_path
from pipeline.run.local import run
from pipeline.run.prepare import provisional
from pipeline.run.status import to_do
from pipeline.run.tile import STAGES
from pipeline.simulate.clouds import SCL_CLOUD_HIGH, SCL_VEGETATION, Weather
from pipeline.simulate.items import item_id, make_item
from pipeline.simulate.items_radar import make_radar_item, radar_id
from pipeline.simulate.radar import NODATA, RadarImage, RadarPass, write_radar
from pipeline.simulate.scenes import Datatake, Granule, SceneImage, block_mean, write_scene
from pipeline.simulate.spectra import BANDS, RES_M
from pipeline.types import BLOCK_PX, CELL_PX, PIXEL_M, Box, Tile
from pipeline.write import store
from pipeline.write.commit import Commits
from tests.run.sampled import request_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray
    from shapely.geometry.base import BaseGeometry

    from pipeline.config import Settings
    from pipeline.types import Calibration, GridSpec, Plan

ZONE, CORNER_ROW, CORNER_COL = 31, 434176, 75776
"""Where four cells meet; 39.2 degrees south, a little west of 6 degrees east."""
WEST, NORTH, EAST, SOUTH = -500, -244, 170, 244
"""Around the whole area, see ``WHOLE``."""
ZONE_BORDER_X = 136
"""Where 6 degrees east crosses y = 0; 8 pixels further west at ``SOUTH``, as many further east at ``NORTH``."""
SCENES = Box(zone=ZONE, res_m=PIXEL_M, row=CORNER_ROW - 352, col=CORNER_COL - 608, height=720, width=1080)
"""What a scene covers; multiples of 24, the side of its fields, so that pixels of 20 and 60 m nest."""
TWO_PERIODS, THREE_PERIODS = date(2024, 5, 31), date(2024, 6, 30)
"""Ends of the request; of 30 days each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """The archive and the request, as ``sampled.request_of`` wants them."""

    catalog: Path
    start: date = date(2024, 4, 1)
    end: date = TWO_PERIODS
    bbox: None = None


Rectangle = tuple[int, int, int, int]
"""west, north, east, south."""
HOLE: Rectangle = (-275, -30, -235, 15)
"""Ground that no scene sees: across tiles, blocks and cells."""
PATCHES = (HOLE, (60, 100, 130, 180))
"""The second one no optical scene sees."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _View:
    """What one scene sees.

    Attributes:
        day: Date.
        clouds: Rectangles of high cloud.
        sees: (x, y) in pixels to whether the scene has data there.
    """

    day: date
    clouds: tuple[Rectangle, ...] = ()
    sees: Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.bool_]] = lambda x, y: (x < 1e9) & (y < 1e9)
    baseline: str = "05.10"


VIEWS = (
    # The north-west cell takes the first, whose clouds there are the smaller part; its western block would not.
    _View(
        day=date(2024, 4, 5),
        clouds=((-512, -256, -300, -60), (-256, 20, 0, 256), (-500, 40, -300, 256), (40, -256, 256, -100)),
    ),
    _View(
        day=date(2024, 4, 15),
        clouds=((-256, -256, 0, 0), (-420, -220, -330, -90), (-230, 60, -60, 200), (20, 30, 256, 256)),
        sees=lambda x, y: x + 0.0 * y > -540,
    ),
    # Together they leave a strip of missing second dates; nearly level, because rows of windows without a gap are fast.
    _View(day=date(2024, 5, 10), sees=lambda x, y: y < -80 + 0.1 * x, baseline="02.14"),
    _View(day=date(2024, 5, 20), sees=lambda x, y: y > -50 + 0.1 * x, clouds=((40, 40, 80, 90),)),
    # Third dates exist in the north only.
    _View(day=date(2024, 6, 8), sees=lambda x, y: y + 0.0 * x < -77),
)
RADAR_VIEWS = (
    _View(day=date(2024, 4, 9), sees=lambda x, y: x - 0.3 * y > -330),
    _View(day=date(2024, 5, 14), sees=lambda x, y: y + 0.0 * x > -140),
)


def make_archive(folder: Path, *, write: bool = True) -> Archive:
    """Write the scenes and their items, the same bytes every time; or take those that are there."""
    catalog = folder / "items.json"
    if write:
        folder.mkdir(exist_ok=True)
        items = [_write_optical(folder, view, seed=i) for i, view in enumerate(VIEWS)]
        items += [_write_radar(folder, view, seed=100 + i) for i, view in enumerate(RADAR_VIEWS)]
        catalog.write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    return Archive(catalog=catalog)


def _write_optical(folder: Path, view: _View, *, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    textures = [_texture(rng) for _ in range(3)]
    cloudy = _inside(view.clouds, SCENES)
    bands = []
    for band in BANDS:
        mixed = sum(t * np.float32(w) for t, w in zip(textures, rng.uniform(-400, 400, 3), strict=True))
        fine = np.where(cloudy, np.float32(9000), np.float32(rng.uniform(1200, 3000))) + mixed
        box = SCENES.cover(RES_M[band])
        pixels = np.clip(np.rint(block_mean(fine, RES_M[band] // PIXEL_M)), 1, 20000).astype(np.uint16)
        bands.append((band, np.where(_seen(view, box, PATCHES), pixels, 0).astype(np.uint16)))
    box = SCENES.cover(20)
    scl = np.where(_inside(view.clouds, box), SCL_CLOUD_HIGH, SCL_VEGETATION)
    image = SceneImage(
        granule=Granule(name="31HGA", box=SCENES),
        datatake=Datatake(
            acquired=datetime(view.day.year, view.day.month, view.day.day, 10, 26, 1, tzinfo=UTC),
            platform="S2A",
            relative_orbit=65,
            absolute_orbit=46000 + seed,
            baseline=view.baseline,
            weather=Weather(salt=seed),
        ),
        bands=tuple(bands),
        scl=np.where(_seen(view, box, PATCHES), scl, 0).astype(np.uint8),
    )
    name = f"scenes/{item_id(image.granule, image.datatake)}"
    return make_item(image, files=write_scene(image, folder / name), folder=name)


def _write_radar(folder: Path, view: _View, *, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    seen = _seen(view, SCENES, (HOLE,))
    power = [np.exp(np.float32(0.4) * _texture(rng) - np.float32(level)) for level in (2.5, 4.0)]
    image = RadarImage(
        box=SCENES,
        overpass=RadarPass(
            acquired=datetime(view.day.year, view.day.month, view.day.day, 17, 9, 3, tzinfo=UTC),
            platform="S1A",
            orbit_state="ascending",
            relative_orbit=117,
            absolute_orbit=53000 + seed,
            take=0x067000 + seed,
        ),
        bands=tuple((b, np.where(seen, p, np.float32(NODATA))) for b, p in zip(("vv", "vh"), power, strict=True)),
    )
    name = f"scenes/{radar_id(image.overpass)}"
    return make_radar_item(image, files=write_radar(image, folder / name), folder=name)


def _texture(rng: np.random.Generator) -> NDArray[np.float32]:
    """Fields of 24 pixels with noise on every pixel, (row, col) float32 over ``SCENES``."""
    coarse = rng.standard_normal((SCENES.height // 24, SCENES.width // 24), np.float32)
    return coarse.repeat(24, axis=0).repeat(24, axis=1) + np.float32(0.3) * rng.standard_normal(
        SCENES.shape, np.float32
    )


def _places(box: Box) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(x, y) of the centres of a box of any resolution, in pixels from the corner; to be broadcast."""
    side = box.res_m / PIXEL_M
    x = (np.arange(box.col, box.col_stop) + 0.5) * side - CORNER_COL
    y = (np.arange(box.row, box.row_stop) + 0.5) * side - CORNER_ROW
    return x[None, :], y[:, None]


def _inside(rectangles: tuple[Rectangle, ...], box: Box) -> NDArray[np.bool_]:
    x, y = _places(box)
    found = np.zeros(box.shape, bool)
    for west, north, east, south in rectangles:
        found |= (x > west) & (x < east) & (y > north) & (y < south)
    return found


def _seen(view: _View, box: Box, holes: tuple[Rectangle, ...]) -> NDArray[np.bool_]:
    return np.asarray(view.sees(*_places(box)) & ~_inside(holes, box))


WHOLE = shapely.box(WEST, NORTH, EAST, SOUTH).difference(shapely.box(WEST, -6, -250, SOUTH))
"""2 blocks of zone 31 in the north-west cell, one in each of the others, and 2 of zone 32."""
NORTHERN = WHOLE.intersection(shapely.box(WEST, NORTH, EAST, -6))
"""3 blocks of zone 31 in two cells and one of zone 32."""
ONE_ZONE = NORTHERN.intersection(shapely.box(WEST, NORTH, ZONE_BORDER_X - 16, SOUTH))
"""Without that one, which costs as much as the others: its pixels are warped."""

# Ways of making vectors -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """A model and a way of stitching: what decides vectors. One line in ``MODES`` puts it through every test.

    Attributes:
        name: For messages.
        model: The smallest of its kind.
        overrides: As ``--set`` takes them.
        end: End of the request.
        ground: Where areas lie; less of it is faster.
        examples: Stores that are drawn.
    """

    name: str
    model: str
    overrides: tuple[str, ...]
    end: date = TWO_PERIODS
    ground: BaseGeometry = ONE_ZONE
    examples: int = 2

    def request(self, archive: Archive, output: Path, *overrides: str, **values: Any) -> Settings:
        """Settings of a run."""
        return request_of(archive, output, *self.overrides, *overrides, model=self.model, end=self.end, **values)


WINDOWS = ("encode.window_px=64", "encode.overlap_px=16", "encode.batch_windows=3")
"""Strides of 48 px fall on other pixels in every block; batches of several windows, so that mates matter."""
WINDOWS_OF_4 = ("encode.patch_px=4", "encode.window_px=32", "encode.overlap_px=12", "encode.batch_windows=5")
"""At patch 4 pixels are resized before they are embedded, which reads beyond a patch; an odd overlap in tokens."""
NO_WINDOWS = ("encode.window_px=auto", "encode.overlap_px=auto", "encode.stitch=neighbourhood", "encode.box_px=32")
RADAR = ("inputs.sensors=[sentinel2_l2a, sentinel1]",)
V12, V13 = "random:v1.2-toy:7", "random:v1.3-toy:1"
MODES = (
    Mode(
        name="blend",
        model=V12,
        overrides=(*WINDOWS, "encode.stitch=blend"),
        ground=WHOLE,
    ),
    Mode(name="blend-student-radar", model=V13, overrides=(*WINDOWS_OF_4, *RADAR, "encode.stitch=blend")),
    Mode(name="blend-dense", model=V12, overrides=(*WINDOWS, "encode.stitch=blend", "encode.dense=2"), examples=2),
    Mode(
        name="centre-tokens",
        model="random:v1-toy:3",
        overrides=(*WINDOWS_OF_4, "encode.stitch=centre", "encode.resolution=token"),
        examples=2,
    ),
    Mode(
        name="neighbourhood-radar",
        model=V12,
        overrides=(*NO_WINDOWS, *RADAR),
        end=THREE_PERIODS,
        ground=NORTHERN,
        examples=2,
    ),
    Mode(
        name="neighbourhood-student-cut",
        model=V13,
        overrides=(*NO_WINDOWS, "encode.patch_px=4", "encode.halo_px=16"),
        examples=2,
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A mode with a calibration and a head of its own: made once, so that no run derives them again."""

    mode: Mode
    archive: Archive
    folder: Path
    given: tuple[str, ...]

    def request(self, output: Path, area: BaseGeometry, *overrides: str) -> Settings:
        """Settings of a run over an area."""
        aoi = output.with_name(f"{output.name}-area.geojson")
        aoi.parent.mkdir(parents=True, exist_ok=True)
        aoi.write_text(json.dumps(shapely.geometry.mapping(lonlat(area))))
        return self.mode.request(self.archive, output, *self.given, *overrides, aoi=str(aoi))


def make(mode: Mode, archive: Archive, folder: Path) -> Made:
    """Calibrate a mode and give it a head with random weights."""
    given, model = mode.request(archive, Path("none")), checkpoint.load(mode.model)
    calibration = replace(_calibration(mode.model), patch_px=given.encode.patch_px, sensors=given.inputs.sensors)
    (folder / "calibration.json").write_text(json.dumps(asdict(calibration)))
    rng = np.random.default_rng(5)
    head = Probe(  # of many classes: most of a random vector is common to all places
        weights=rng.standard_normal((24, len(calibration.scale))),
        bias=np.zeros(24),
        names=tuple(f"class {i}" for i in range(24)),
        colours=tuple(f"#{i:02x}4080" for i in range(24)),
        calibration=calibration.hash,
        model_sha256=model.card.sha256,
        model_name=model.card.name,
        trained=False,
        patch_px=given.encode.patch_px,
        created="2024-07-01T00:00:00Z",
        report="{}",
    )
    head.save(str(folder / "head.json"))
    files = (
        f"store.calibration={folder / 'calibration.json'}",
        f"maps=[{{name: drawn, head: {folder / 'head.json'}}}]",
    )
    return Made(mode=mode, archive=archive, folder=folder, given=files)


@cache
def _calibration(model: str) -> Calibration:
    """Good enough for every patch and sensor: what is compared needs codes that are neither clipped nor flat."""
    return provisional(checkpoint.load(model), patch_px=8)


# Ways of running ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How a store is made; nothing of it may decide a pixel.

    Attributes:
        areas: Areas computed one after the other in one output, which grows.
        tile_px: Side of a tile.
        threads: Encoders.
        encoders: ``threads`` or ``processes``.
        io_threads: Threads that read.
        order: Seed of the order of the tiles; 0: as planned.
        stop: (stage, how many tiles reach it before) at which the last run is killed, then resumed; None: never.
    """

    areas: tuple[BaseGeometry, ...]
    tile_px: int = 256
    threads: int = 1
    encoders: str = "threads"
    io_threads: int = 16
    order: int = 0
    stop: tuple[str, int] | None = None

    def __str__(self) -> str:
        areas = " then ".join(shapely.to_wkt(area, rounding_precision=1) for area in self.areas)
        rest = ", ".join(f"{f.name}={getattr(self, f.name)}" for f in fields(self) if f.name != "areas")
        return f"{rest}, areas {areas}"

    @property
    def overrides(self) -> tuple[str, ...]:
        """As ``--set`` takes them."""
        return (
            f"store.tile_px={self.tile_px}",
            f"run.encoder_threads={self.threads}",
            f"run.encoders={self.encoders}",
            f"run.io_threads={self.io_threads}",
        )


# Hypothesis begins with the first of every choice: a store that is worth its seconds.
_NEAR_X = tuple(line + off for line in (0, ZONE_BORDER_X, -256) for off in (-30, -2, 3, 12))
_NEAR_Y = (-60, -15, -2, 3, -160)
_SIDES = (200, 3, 30, 120, 300, 3)


@st.composite
def _rectangles(draw: st.DrawFn) -> BaseGeometry:
    """From a pixel or two to several blocks, with a bias to begin close to a border of block, cell or zone."""
    x = draw(st.one_of(st.sampled_from(_NEAR_X), st.integers(WEST, EAST - 2)))
    y = draw(st.one_of(st.sampled_from(_NEAR_Y), st.integers(NORTH, SOUTH - 2)))
    width, height = draw(st.sampled_from(_SIDES)), draw(st.sampled_from(_SIDES))
    return shapely.box(x, y, min(x + width, EAST), min(y + height, SOUTH))


@st.composite
def areas(draw: st.DrawFn, whole: BaseGeometry) -> BaseGeometry:
    """L shapes, rectangles, triangles and two islands, inside ``whole``."""
    kind = draw(st.sampled_from(("L", "rectangle", "triangle", "islands")))
    shape = draw(_rectangles())
    west, north, east, south = shape.bounds
    if kind == "L":
        shape = shape.difference(shapely.box((west + east) / 2, north, east, (north + south) / 2))
    elif kind == "triangle":
        shape = shapely.Polygon([(west, south), (east, south), (draw(st.sampled_from((west, east))), north)])
    elif kind == "islands":
        shape = shape.union(draw(_rectangles()))
    shape = shapely.normalize(shape.intersection(whole))
    assume(shape.area > 1 and shape.geom_type in ("Polygon", "MultiPolygon"))
    return shape


def reference_of(mode: Mode) -> Setting:
    """How the store is made that all others are compared with: everything at once."""
    return Setting(areas=(mode.ground,), tile_px=1024, threads=2)


@st.composite
def settings(draw: st.DrawFn, mode: Mode) -> Setting:
    """Any way of making a store, of threads: processes take seconds to start, so they are tried by hand."""
    stops = st.tuples(st.sampled_from(("written", *STAGES)), st.integers(0, 2))
    return Setting(
        areas=tuple(draw(st.lists(areas(mode.ground), min_size=1, max_size=2))),
        tile_px=draw(st.sampled_from((512, 256, 1024))),
        threads=draw(st.sampled_from((2, 1))),
        io_threads=draw(st.sampled_from((3, 1, 16))),
        order=draw(st.integers(0, 3)),
        stop=draw(st.one_of(stops, st.none())),
    )


def lonlat(area: BaseGeometry) -> BaseGeometry:
    """An area in degrees."""
    to_lonlat = Transformer.from_crs(32600 + ZONE, 4326, always_xy=True)
    plane = shapely.transform(
        area, lambda x, y: (PIXEL_M * (x + CORNER_COL), -PIXEL_M * (y + CORNER_ROW)), interleaved=False
    )
    return shapely.transform(plane, to_lonlat.transform, interleaved=False)


class KilledError(BaseException):
    """As if the process had gone: nothing in a run may catch it."""


def compute(made: Made, setting: Setting, output: Path) -> Plan:
    """Make a store in ``output``; returns the plan of the last area."""
    for area in setting.areas:
        plan = api.plan(made.request(output, area, *setting.overrides))
        tasks = list(plan.tasks)
        if setting.order:
            Random(setting.order).shuffle(tasks)
        if setting.stop and area is setting.areas[-1]:
            _killed(replace(plan, tasks=tuple(tasks)), *setting.stop)
        outcome = run(replace(plan, tasks=tuple(tasks)), pictures=False)
        if outcome.failures or outcome.degraded:
            raise AssertionError(f"{made.mode.name}: {outcome.text()}\n{setting}")
    return plan


def _killed(plan: Plan, stage: str, number: int) -> None:
    """Run until the ``number``-th tile after the first reaches ``stage``, counted round; not where all is done."""
    reached, tiles = 0, len(to_do(plan))

    def at(name: str, _tile: str) -> None:
        nonlocal reached
        if name == stage:
            reached += 1
            if reached > number % len(plan.tasks):
                raise KilledError

    try:
        run(plan, at=at, pictures=False)
    except KilledError:
        return
    if tiles:
        raise AssertionError(f"{tiles} tiles to do, and none of them was killed at {stage}")


# What differs ---------------------------------------------------------------------------------------------------------

Key = tuple[int, int, int]
"""zone, block row, block column of the lattice."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stored:
    """What a store holds, by block of the lattice.

    Attributes:
        grid: The plan's.
        layers: Key -> name of an array -> its pixels (or its one value per block), axes before row and col kept.
        tiles: Key -> the tile that wrote it.
        wanted: Blocks that the last plan wants.
    """

    grid: GridSpec
    layers: Mapping[Key, Mapping[str, NDArray[Any]]]
    tiles: Mapping[Key, Tile]
    wanted: frozenset[Key]

    def all(self, name: str) -> NDArray[Any]:
        """One layer of every block, rows and columns last."""
        return np.stack([layers[name] for layers in self.layers.values()])


def stored(output: Path) -> Stored:
    """Every committed block with all arrays of the store that lie on its ground, whatever they are called."""
    plan = load_plan(str(output))
    tiles = {
        key: tile
        for receipt in Commits(output).receipts()
        for tile in (Tile.parse(receipt.tile_id, tile_px=plan.grid.tile_px),)
        for key in _keys(tile, receipt.blocks)
    }
    wanted = frozenset(key for task in plan.tasks for key in _keys(task.tile, task.blocks))
    layers: dict[Key, dict[str, NDArray[Any]]] = {key: {} for key in sorted(tiles)}
    for extent in store.zones(store_path(output)):
        group = zarr.open_group(store_path(output) / f"utm{extent.zone:02d}", mode="r")
        for name, array in group.arrays():
            side = {("y", "x"): BLOCK_PX // plan.grid.token_px, ("block_y", "block_x"): 1}.get(
                tuple((array.metadata.dimension_names or ())[-2:])
            )
            if side is None:  # a coordinate
                continue
            values, top = array[:], extent.row * extent.res_m // (BLOCK_PX * PIXEL_M)
            left = extent.col * extent.res_m // (BLOCK_PX * PIXEL_M)
            for (zone, row, col), found in layers.items():
                if zone == extent.zone:
                    r, c = (row - top) * side, (col - left) * side
                    found[name] = values[..., r : r + side, c : c + side]
    return Stored(grid=plan.grid, layers=layers, tiles=tiles, wanted=wanted)


def _keys(tile: Tile, blocks: tuple[tuple[int, int], ...]) -> Iterator[Key]:
    for block in blocks:
        box = tile.block_box(*block)
        yield tile.zone, box.row // BLOCK_PX, box.col // BLOCK_PX


def differences(found: Stored, reference: Stored) -> list[str]:
    """Every layer of every block that is missing or not the reference's, each with its first pixel."""
    lines = [f"block {key} is wanted and not there" for key in sorted(found.wanted - found.layers.keys())]
    for key, layers in found.layers.items():
        if key not in reference.layers:
            lines.append(f"block {key} is there and the reference, which covers every area, has it not")
            continue
        theirs = reference.layers[key]
        lines += [
            f"block {key}: the layers are {set(layers) ^ set(theirs)}" for _ in (0,) if set(layers) != set(theirs)
        ]
        for name in sorted(layers.keys() & theirs.keys()):
            if not np.array_equal(layers[name], theirs[name]):
                lines.append(_described(name, key, found, ours=layers[name], theirs=theirs[name]))
    return lines


def _described(name: str, key: Key, found: Stored, *, ours: NDArray[Any], theirs: NDArray[Any]) -> str:
    head = f"{name} of block {key}"
    if ours.shape != theirs.shape:
        return f"{head}: shape {ours.shape}, in the reference {theirs.shape}"
    wrong = (ours != theirs).reshape(-1, *ours.shape[-2:]).any(axis=0)
    r, c = (int(i) for i in np.argwhere(wrong)[0])
    here, there = (a[..., r, c].ravel()[:6].tolist() for a in (ours, theirs))
    side = BLOCK_PX // wrong.shape[0]
    row, col, grid, tile = key[1] * BLOCK_PX + r * side, key[2] * BLOCK_PX + c * side, found.grid, found.tiles[key]
    most = int(np.abs(ours.astype(np.int64) - theirs.astype(np.int64)).max())
    return (
        f"{head}: {int(wrong.sum())} of {wrong.size} places differ by up to {most}, the first at row {row}, col {col} "
        f"of zone {key[0]}: {row - tile.box.row}, {col - tile.box.col} in tile {tile.id} of {tile.tile_px} px, phase "
        f"{row % grid.stride_px}, {col % grid.stride_px} of the window stride {grid.stride_px} px, "
        f"{row % CELL_PX}, {col % CELL_PX} in cell ({row // CELL_PX}, {col // CELL_PX}); {here} here, {there} there"
    )


def report(made: Made, setting: Setting, lines: list[str]) -> str:
    """The message of a failure."""
    shown = "\n  ".join(lines[:12])
    return (
        f"mode {made.mode.name} ({', '.join(made.mode.overrides)}), {len(lines)} differences with {setting}:\n  {shown}"
    )
