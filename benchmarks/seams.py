"""Seams of every way to make one field, and their cost, as Markdown tables; and pictures of the same place.

    OMP_NUM_THREADS=1 python benchmarks/seams.py [--quick] [--places simulated,farmland,flanders]
        [--models v1-nano,v1.2-nano] [--seeds 0,1,2] [--periods 1,4] [--strength 0.25] [--json FILE] [--pictures DIR]

**Ways.** No overlap (``centre`` with 0), blends of 25 % and 50 % of the window in whole tokens, the planner's own blend
and centre, all with the planner's window; neighbourhood with its own box and with 16 px, rotary models only. Fields are
made by the session and the stitcher of a run, on one thread, in float32.

**Places.** ``simulated``: the ground of the simulated sample. ``farmland``: the real chip ``dsen2-s2-l1c`` (6 km, one
date; the series of four are made from it: a gain per date and a smooth change per band). ``flanders``: a real chip of
``worldcereal-patches`` (640 m, four dates of 2018, ten bands); it is smaller than two of the planner's windows, so
windows are 16 px at patch 2 and 24 px at patch 4. Bands are brought to 10 m first, as a run does, to the same whole DN.

**Scores.** A field's step is the change from one token to the next. The same ground is encoded on two or three lattices
(the Stack is laid elsewhere in the zone, where lattices are anchored), and steps of a phase are compared with the
same lines where they have another phase: 1.00 is no seam (``pipeline.write.seams.paired_score``). ``line``: the worst
phase at which a window begins or ends; ``max``: of all phases; ``dim``: of all phases in the worst dimension.
``lattice``: rms change of the ground when the lattice moves, over the rms deviation of the field. A domain has its own
lattice, of cores; one of its borders crosses the ground. Where a domain is larger than a chip, what lies around the
chip is nodata, as beyond the edge of a scene.

Steps of v1 are those of its positions, which every window repeats: only ``lattice`` says something about it.

``--strength`` is that of the attention output of the random weights: 0.25 is what earthpress has, 1 what a fresh random
model has. ``--json`` keeps every case, and what it holds is not computed again. Seconds are those of the thread, from
pixels to written vectors, medians of passes in turn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline import api
from pipeline.config import EncodeSettings
from pipeline.config import load as load_settings
from pipeline.encode import attention, boxes, checkpoint, stitch, untrained
from pipeline.encode.assemble import upsampled
from pipeline.encode.session import Session, settle
from pipeline.plan import domains, windows
from pipeline.plan.flops import cost_per_km2
from pipeline.plan.grid import window_origins
from pipeline.run import seam_report
from pipeline.simulate.sample import AREA, sample_stack
from pipeline.types import DN_OFFSET, PIXEL_M, Box, GridSpec, Layer, Period, Stack, Tile
from pipeline.write import preview, seams
from pipeline.write.commit import Commits
from pipeline.write.seams import lattice_dependence, paired_score

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

DATA = Path(__file__).resolve().parents[1] / "../shared/data"
SENSOR = "sentinel2_l2a"
NATIVE = {
    10: ("B04", "B03", "B02", "B08"),
    20: ("B05", "B06", "B07", "B8A", "B11", "B12"),
    60: ("B01", "B09"),
}
"""Bands by resolution, in the order of the farmland chip."""
FOLDERS = {"farmland": "dsen2-s2-l1c", "flanders": "worldcereal-patches"}
ZONE = 32
WAYS = {
    "none": "no overlap",
    "25 %": "blend, 25 %",
    "50 %": "blend, 50 %",
    "blend": "blend, default",
    "centre": "centre, default",
    "boxes": "neighbourhood",
    "boxes 16": "neighbourhood, 16 px",
}
TILE_PX = 512
DATES = {
    "simulated": (datetime(2024, 4, 1, tzinfo=UTC), 30),
    "farmland": (datetime(2017, 5, 20, tzinfo=UTC), 30),
    "flanders": (datetime(2018, 5, 10, tzinfo=UTC), 48),
}
"""First period and its days."""
CLEAR = (69, 59, 81, 108)
"""Acquisitions of the Flanders chip without any cloud: June, May, August and October 2018."""
SMALL_WINDOWS = {2: 16, 4: 24}
"""Window by patch on the Flanders chip, px."""
TIMED_TOKENS = 48
WIDE, NARROW = 36, 24
"""Tokens along the scored ground: of one period, and where a token costs more."""


# ---- ground ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Ground:
    """Pixels of a place at 10 m: (time, band, row, col) uint16 DN with the offset of baseline 04.00."""

    name: str
    bands: tuple[str, ...]
    dn: NDArray[np.uint16]
    periods: tuple[Period, ...]

    @property
    def side_px(self) -> int:
        return self.dn.shape[-1]

    def stack(self, shift_px: int, box: Box) -> Stack:
        """The place at (shift, shift) of zone 32, seen through ``box``; nodata around it."""
        place = Box(zone=box.zone, res_m=PIXEL_M, row=shift_px, col=shift_px, height=self.side_px, width=self.side_px)
        dn = np.zeros((*self.dn.shape[:2], *box.shape), np.uint16)
        common = place.intersect(box)
        dn[(..., *common.slices_in(box))] = self.dn[(..., *common.slices_in(place))]
        return self._stack(dn, box)

    def repeated(self, box: Box) -> Stack:
        """The place over and over, for timing."""
        rows, cols = (
            np.arange(first, first + count) % self.side_px
            for first, count in ((box.row, box.height), (box.col, box.width))
        )
        return self._stack(self.dn[:, :, rows[:, None], cols], box)

    def _stack(self, dn: NDArray[np.uint16], box: Box) -> Stack:
        layer = Layer(res_m=PIXEL_M, bands=self.bands, pixels=dn, valid=(dn > 0).any(axis=1), box=box)
        return Stack(sensor=SENSOR, box=box, layers=(layer,), periods=self.periods, sources=(), bytes_read=0)


def periods_of(place: str, count: int) -> tuple[Period, ...]:
    first, days = DATES[place]
    edges = [first + timedelta(days=days * i) for i in range(count + 1)]
    return tuple(Period(index=i, start=edges[i], end=edges[i + 1]) for i in range(count))


def ground_of(place: str, count: int) -> Ground:
    periods = periods_of(place, count)
    if place == "simulated":
        stack = sample_stack(AREA, periods)
    elif place == "farmland":
        stack = farmland(periods)
    else:
        stack = flanders(periods)
    bands = tuple(band for layer in stack.layers for band in layer.bands)
    dn = [torch.cat([upsampled(layer, stack.box, period=t) for layer in stack.layers]).numpy() for t in range(count)]
    return Ground(place, bands, np.stack(dn).astype(np.uint16), periods)


def stack_of(native: dict[int, NDArray[Any]], periods: tuple[Period, ...]) -> Stack:
    """A Stack of (time, band, row, col) reflectance * 1e4 by resolution; edges repeated as margin of interpolation."""
    side = native[10].shape[-1]
    box = Box(zone=ZONE, res_m=PIXEL_M, row=0, col=0, height=side, width=side)
    layers = []
    for res, values in native.items():
        pad = 0 if res == PIXEL_M else 2
        dn = (np.pad(values, ((0, 0), (0, 0), (pad, pad), (pad, pad)), mode="edge") + DN_OFFSET).astype(np.uint16)
        valid = np.ones((len(dn), *dn.shape[2:]), bool)
        layers.append(Layer(res_m=res, bands=NATIVE[res], pixels=dn, valid=valid, box=box.cover(res, pad_px=pad)))
    return Stack(sensor=SENSOR, box=box, layers=tuple(layers), periods=periods, sources=(), bytes_read=0)


def chip() -> dict[int, NDArray[np.float32]]:
    """(band, row, col) reflectance * 1e4 of the real 6 km chip by resolution."""
    import h5py

    with h5py.File(DATA / "dsen2-s2-l1c/S2A_MSIL1C_20170527_T33UUB.mat") as file:
        return {res: file[f"im{res}"][:].transpose(0, 2, 1) for res in (10, 20, 60)}  # MATLAB writes columns first


def farmland(periods: tuple[Period, ...]) -> Stack:
    """The first date is the chip; later ones are made: a gain, and smooth waves of 1 to 2 km that differ by band."""
    native = {}
    for res, values in chip().items():
        row, col = np.mgrid[: values.shape[1], : values.shape[2]] * (res / 1000)  # km
        dates = [values]
        for t in range(1, len(periods)):
            wave = [np.sin(2.1 * row + 1.3 * t + b) * np.cos(2.7 * col - 0.9 * t + 2 * b) for b in range(len(values))]
            dates.append(np.clip(values * (1 + 0.12 * np.sin(2.4 * t)) + 150 * np.stack(wave), 1, None))
        native[res] = np.stack(dates)
    return stack_of(native, periods)


def flanders(periods: tuple[Period, ...]) -> Stack:
    import h5py

    folder, name = DATA / "worldcereal-patches", "00002806639B424A"
    native, chosen = {}, sorted(CLEAR[: len(periods)])
    for res in (10, 20):
        path = folder / name / f"S2_L2A_{res}m_{name}_32631_2017-08-01_2018-11-30.nc"
        with h5py.File(path) as file:
            native[res] = np.stack([file[band][:][chosen] for band in NATIVE[res]], axis=1)
    return stack_of(native, periods)


# ---- fields ----------------------------------------------------------------------------------------------------------


def ways_of(card: Any, *, patch_px: int, periods: int, window_px: int | None) -> dict[str, GridSpec]:
    options: dict[str, Any] = {"patch_px": patch_px, "periods": periods, "window_px": window_px}
    window, overlap, _ = windows.settle(card, stitch="blend", **options)
    cropped = windows.settle(card, stitch="centre", **options)
    cells = window // patch_px

    def grid(side: int, over: int, how: str = "blend") -> GridSpec:
        return GridSpec(patch_px=patch_px, window_px=side, overlap_px=over, tile_px=TILE_PX, stitch=how)

    found = {
        "none": grid(window, 0, "centre"),
        "25 %": grid(window, round(cells / 4) * patch_px),
        "50 %": grid(window, cells // 2 * patch_px),
        "blend": grid(window, overlap),
        "centre": grid(*cropped[:2], "centre"),
    }
    if card.version in domains.ROTARY:
        for name, box in (("boxes", None), ("boxes 16", 16)):
            found[name] = domains.settle_domain(card, patch_px=patch_px, tile_px=TILE_PX, device="cpu", box_px=box)
    return found


def kernel_of(card: Any) -> str:
    """Our own attention kernel if windows and boxes both have it here, else torch's."""
    width = card.token_width // card.heads
    kinds = (attention.available, boxes.available_boxes)
    return "own" if all("own" in kind(torch.device("cpu"), torch.float32, width) for kind in kinds) else "sdpa"


def session_of(model: checkpoint.Checkpoint, grid: GridSpec, periods: tuple[Period, ...]) -> Session:
    settings = EncodeSettings(device="cpu", dtype="float32", compile="off", attention=kernel_of(model.card))
    numerics = settle(settings, card=model.card, grid=grid, periods=len(periods))
    return Session(model, grid=grid, periods=periods, numerics=numerics, threads=1)


def origins_of(grid: GridSpec, shift_px: int, span: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    return window_origins(place_of(grid, shift_px, span), grid)


def place_of(grid: GridSpec, shift_px: int, span: tuple[int, int]) -> Box:
    """The 10 m box of the scored tokens (first, count) of a ground that lies at ``shift_px``."""
    first, side = shift_px + span[0] * grid.patch_px, span[1] * grid.patch_px
    return Box(zone=ZONE, res_m=PIXEL_M, row=first, col=first, height=side, width=side)


def field(
    session: Session, grid: GridSpec, ground: Ground, *, shift_px: int, span: tuple[int, int]
) -> NDArray[np.float32]:
    """(row, col, dim) written vectors of the scored tokens."""
    box = place_of(grid, shift_px, span)
    origins = window_origins(box, grid)
    rows, cols = ([o[k] for o in origins] for k in (0, 1))
    read = Box(
        zone=ZONE,
        res_m=PIXEL_M,
        row=min(rows),
        col=min(cols),
        height=max(rows) + grid.window_px - min(rows),
        width=max(cols) + grid.window_px - min(cols),
    ).pad(grid.embed_px)
    made = session.encode(ground.stack(shift_px, read), origins)
    tokens = box.cover(PIXEL_M * grid.patch_px)
    if grid.stitch != "neighbourhood":
        whole = stitch.stitch_shifts(made.values, made.valid, origins=origins, grid=grid, box=tokens)
        return checked(stitch.with_head(whole, session.head))
    out, side = None, grid.core_px
    for row, col in origins:
        core = Box(zone=ZONE, res_m=PIXEL_M, row=row + grid.halo_px, col=col + grid.halo_px, height=side, width=side)
        part = stitch.domain_field(made.values, made.valid, origins=origins, grid=grid, box=core)
        common = core.cover(tokens.res_m).intersect(tokens)
        cut = common.slices_in(part.box)
        part = stitch.Field(values=part.values[cut].contiguous(), valid=part.valid[cut], box=common)
        vectors = checked(stitch.with_head(part, session.head))
        out = np.zeros((*tokens.shape, vectors.shape[-1]), np.float32) if out is None else out
        out[common.slices_in(tokens)] = vectors
    return out


def checked(made: stitch.Field) -> NDArray[np.float32]:
    if not made.valid.all():
        raise SystemExit("a scored token is missing: the place is too small")
    return made.values.numpy()


def shifts_of(grid: GridSpec, span: tuple[int, int], *, lattices: int) -> list[int]:
    """Where the ground lies, px, so that lattices differ: windows by parts of a stride, domains by where cores meet."""
    stride, patch = grid.stride_px // grid.patch_px, grid.patch_px
    if grid.stitch != "neighbourhood":
        count = min(lattices, stride)
        return [j * stride // count * patch for j in range(count)]
    # a core begins at these tokens of the scored ground: an odd one in its middle, and half a core from there
    middle_token = span[1] // 2 | 1
    at = (middle_token, middle_token + stride // 2, span[1] // 4)[:lattices]
    return [(-span[0] - token) % stride * patch for token in at]


def span_of(grids: Iterable[GridSpec], ground: Ground, *, lattices: int, most: int) -> tuple[int, int]:
    """(first token, tokens) that every window over them, on every lattice, sees whole; from the middle, ``most``."""
    spans = []
    for grid in grids:
        tokens = ground.side_px // grid.patch_px
        for shift in shifts_of(grid, (0, tokens), lattices=lattices):
            whole = [
                t
                for t in range(tokens)
                if all(
                    shift <= row and row + grid.window_px <= shift + ground.side_px
                    for row, _ in origins_of(grid, shift, (t, 1))
                )
            ]
            spans.append((whole[0], whole[-1] + 1))
    first, stop = max(a for a, _ in spans), min(b for _, b in spans)
    count = min(most, stop - first)
    return first + (stop - first - count) // 2, count


def lines_of(grid: GridSpec) -> tuple[int, ...]:
    if grid.stitch == "neighbourhood":
        return (0,)
    return (grid.trim_px // grid.patch_px,) if grid.stitch == "centre" else (0, grid.overlap_px // grid.patch_px)


# ---- cases -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    place: str
    model: str
    seed: int
    periods: int
    patch_px: int
    strength: float

    @property
    def name(self) -> str:
        return "/".join(str(value) for value in asdict(self).values())

    @property
    def window_px(self) -> int | None:
        return SMALL_WINDOWS[self.patch_px] if self.place == "flanders" else None

    @property
    def costly(self) -> bool:
        return self.periods > 1 or self.model.startswith("v1-")


def load(case: Case) -> checkpoint.Checkpoint:
    untrained.CALM = case.strength
    return checkpoint.load(f"random:{case.model}:{case.seed}")


def scored(case: Case, ground: Ground) -> dict[str, dict[str, float]]:
    """Scores of every way: {way: {line, max, dim, lattice}}."""
    model = load(case)
    ways = ways_of(model.card, patch_px=case.patch_px, periods=case.periods, window_px=case.window_px)
    lattices = 2 if case.costly else 3
    windowed = [grid for grid in ways.values() if grid.stitch != "neighbourhood"]
    span = span_of(windowed, ground, lattices=lattices, most=NARROW if case.costly else WIDE)
    known: dict[GridSpec, dict[str, float]] = {}
    for grid in ways.values():
        known[grid] = known.get(grid) or scores(model, grid, ground, span=span, lattices=lattices)
    return {way: known[grid] for way, grid in ways.items()}


def scores(
    model: checkpoint.Checkpoint, grid: GridSpec, ground: Ground, *, span: tuple[int, int], lattices: int
) -> dict[str, float]:
    session, stride = session_of(model, grid, ground.periods), grid.stride_px // grid.patch_px
    shifts = shifts_of(grid, span, lattices=lattices)
    fields = []
    for shift in shifts:
        at = -(shift // grid.patch_px + span[0])  # the zone's origin, in tokens of the field
        fields.append(((at, at), field(session, grid, ground, shift_px=shift, span=span)))
    pair = paired_score(fields, stride=stride, lines=lines_of(grid))
    moved = max(lattice_dependence(fields[0][1], other) for _, other in fields[1:])
    return {"line": pair.line, "max": pair.max, "dim": pair.dim, "lattice": moved}


def timed(case: Case, ground: Ground, *, passes: int) -> dict[str, dict[str, float]]:
    """Cost of every way: {way: {seconds, ratio}}, seconds of this thread per kept km2, ratio to ``none``."""
    model = load(case)
    ways = ways_of(model.card, patch_px=case.patch_px, periods=case.periods, window_px=case.window_px)
    jobs: dict[GridSpec, tuple[float, Callable[[], object]]] = {}
    for grid in dict.fromkeys(ways.values()):
        # one domain, or whole windows over as many tokens: three squares of patches, which are embedded as a whole
        domain, first = grid.stitch == "neighbourhood", -grid.halo_px
        count = 1 if domain else (TIMED_TOKENS * grid.patch_px - grid.window_px) // grid.stride_px + 1
        places = [first + n * grid.stride_px for n in range(count)]
        side = places[-1] + grid.window_px - first
        box = Box(zone=ZONE, res_m=PIXEL_M, row=first, col=first, height=side, width=side)
        session, stack = session_of(model, grid, ground.periods), ground.repeated(box.pad(grid.embed_px))
        session.warm_up()
        job = partial(encoded, session, grid, stack, tuple((r, c) for r in places for c in places))
        jobs[grid] = ((count * grid.stride_px * PIXEL_M / 1000) ** 2, job)
    times: dict[GridSpec, list[float]] = {grid: [] for grid in jobs}
    for _ in range(passes):
        for grid, (km2, job) in jobs.items():
            start = time.thread_time()
            job()
            times[grid].append((time.thread_time() - start) / km2)
    base = times[ways["none"]]
    return {
        way: {
            "seconds": statistics.median(times[grid]),
            "ratio": statistics.median(a / b for a, b in zip(times[grid], base, strict=True)),
        }
        for way, grid in ways.items()
    }


def encoded(session: Session, grid: GridSpec, stack: Stack, origins: tuple[tuple[int, int], ...]) -> None:
    """From pixels to written vectors of the tokens of ``origins``."""
    made = session.encode(stack, origins)
    if grid.stitch == "neighbourhood":
        core = Box(zone=ZONE, res_m=PIXEL_M, row=0, col=0, height=grid.core_px, width=grid.core_px)
        whole = stitch.domain_field(made.values, made.valid, origins=origins, grid=grid, box=core)
    else:
        box = stack.box.pad(-grid.embed_px).cover(PIXEL_M * grid.patch_px)
        whole = stitch.stitch_shifts(made.values, made.valid, origins=origins, grid=grid, box=box)
    stitch.with_head(whole, session.head)


# ---- tables ----------------------------------------------------------------------------------------------------------


class Kept:
    """Results by name, in a file if there is one."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.found: dict[str, Any] = json.loads(path.read_text()) if path is not None and path.exists() else {}

    def get(self, key: str, make: Callable[[], Any]) -> Any:
        if key not in self.found:
            self.found[key] = make()
            if self.path is not None:
                self.path.write_text(json.dumps(self.found, indent=1) + "\n")
        return self.found[key]


def cases_of(args: argparse.Namespace) -> list[Case]:
    return [
        Case(place, model, seed, periods, patch, args.strength)
        for place in args.places
        for model in args.models
        for periods in args.periods
        for patch in ((2, 4) if place == "flanders" else (4, 8))
        for seed in args.seeds
    ]


def show(cases: Sequence[Case], results: dict[Case, Any], costs: dict[str, Any]) -> None:
    """One row per model, periods, patch, window and way: medians over places and seeds."""
    print(
        "\n| model | T | patch | way | window / overlap, px | max, median (worst) | line | worst dim | lattice "
        "| GFLOP/km2 | CPU s/km2 | over no overlap |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    groups: dict[tuple[Any, ...], list[Case]] = {}
    for case in cases:
        groups.setdefault((case.model, case.periods, case.patch_px, case.window_px), []).append(case)
    for (name, periods, patch, window), members in groups.items():
        card = load(members[0]).card
        for way, grid in ways_of(card, patch_px=patch, periods=periods, window_px=window).items():
            rows = [results[case][way] for case in members]
            shape = f"box {grid.box_px}" if grid.box_px else f"{grid.window_px} / {grid.overlap_px}"
            cost = cost_per_km2(card, grid, periods).flops / 1e9
            spent = None if window else costs.get(cost_name(members[0]), {}).get(way)
            text = (
                *(name, str(periods), str(patch), WAYS[way], shape),
                *stepped(name, rows),
                small(middle(rows, "lattice")),
                f"{cost:.3g}",
                *(("-", "-") if spent is None else (f"{spent['seconds']:.3f}", f"{spent['ratio']:.2f}")),
            )
            print("| " + " | ".join(text) + " |")


def cost_name(case: Case) -> str:
    return f"cost/{case.model}/{case.periods}/{case.patch_px}"


def stepped(model: str, rows: Sequence[dict[str, float]]) -> tuple[str, str, str]:
    if model.startswith("v1-"):
        return "-", "-", "-"
    worst = max(row["max"] for row in rows)
    return f"{middle(rows, 'max'):.3f} ({worst:.3f})", f"{middle(rows, 'line'):.3f}", f"{middle(rows, 'dim'):.2f}"


def middle(rows: Sequence[dict[str, float]], key: str) -> float:
    return statistics.median(row[key] for row in rows)


def small(value: float) -> str:
    return f"{value:.2f}" if value >= 0.005 else f"{value:.0e}"


def summarise(cases: Sequence[Case], results: dict[Case, Any]) -> None:
    """One row per way: all cases of rotary models, by place."""
    rotary = [case for case in cases if not case.model.startswith("v1-")]
    places = list(dict.fromkeys(case.place for case in rotary))
    if not places:
        return
    print(f"\nmax, median (worst) of all rotary cases, {len(rotary)} of them:\n")
    print("| way | " + " | ".join((*places, "all", "lattice, all")) + " |")
    print("|---|" + "---|" * (len(places) + 2))
    for way, shown in WAYS.items():
        parts = [[results[case][way] for case in rotary if place in (case.place, "")] for place in (*places, "")]
        text = [f"{middle(part, 'max'):.3f} ({max(row['max'] for row in part):.3f})" for part in parts]
        print(f"| {shown} | " + " | ".join((*text, small(middle(parts[-1], "lattice")))) + " |")


# ---- pictures --------------------------------------------------------------------------------------------------------

PANELS = {
    "no overlap": ("encode.stitch=centre", "encode.overlap_px=0"),
    "blend": ("encode.stitch=blend",),
    "neighbourhood": ("encode.stitch=neighbourhood",),
}
SHOWN_PX, ZOOM, GAP_PX = 160, 2, 4
CHIP = Box(zone=33, res_m=PIXEL_M, row=-618798, col=32466, height=600, width=600)
"""Where the real chip is laid: on its granule's lattice; its place within the granule is not recorded."""
CHIP_AREA = Box(zone=33, res_m=PIXEL_M, row=-618752, col=32512, height=512, width=512)
"""The four blocks that lie wholly in the chip."""


def pictures(folder: Path, *, model: str) -> None:
    """Whole runs on the simulated sample and on the real chip, cut into two items that overlap; the same crop of each.

    Args:
        folder: Where the pictures go.
        model: As for ``earthpress run``.
    """
    from pipeline.simulate.sample import make_sample

    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        sample = make_sample(work / "sample")
        request = {"start": str(sample.start), "end": str(sample.end), "inputs": {"catalog": str(sample.catalog)}}
        title = "Simulated sample, T=4"
        draw(folder / "seams-simulated.png", AREA, work / "simulated", request | {"model": model}, title=title)
        if (DATA / "dsen2-s2-l1c").is_dir():
            request = two_items(work / "items") | {"model": model}
            title = "Real pixels: Sentinel-2, T33UUB, 27 May 2017, T=1"
            draw(folder / "seams-farmland.png", CHIP_AREA, work / "farmland", request, title=title)


def two_items(folder: Path) -> dict[str, Any]:
    """A catalogue of the chip as two items, west and east, that share 200 px; classes by NDVI and NDWI are ours."""
    from tests.real import archive

    pixels = {res: values.astype(np.uint16) for res, values in chip().items()}
    means = pixels[10].astype(float).reshape(4, 300, 2, 300, 2).mean(axis=(2, 4))
    red, green, _, nir = means
    ndwi, ndvi = (green - nir) / (green + nir), (nir - red) / (nir + red)
    scl = np.select([ndwi > 0, ndvi > 0.4], [6, 4], default=5).astype(np.uint8)
    layers = [(res, band, pixels[res][i]) for res, bands in NATIVE.items() for i, band in enumerate(bands)]
    items = []
    for n, (first, stop) in enumerate(((0, 402), (198, 600))):  # whole 60 m pixels
        part = replace(CHIP, col=CHIP.col + first, width=stop - first)
        assets = {}
        for res, band, values in (*layers, (20, "SCL", scl)):
            cut = values[:, first * PIXEL_M // res : stop * PIXEL_M // res]
            path = archive.write_cog(folder / f"{band}-{n}.tif", cut, box=part.cover(res))
            assets[band] = archive.asset(path, gsd=res)
        acquired = datetime(2017, 5, 27, 10, 20, n, tzinfo=UTC)
        items.append(
            archive.item(
                f"S2A_T33UUB_20170527_{n}",
                assets,
                acquired=acquired,
                ring=archive.ring_of(part),
                cloud_pct=0.0,
                baseline=archive.BELOW_4,
                tile="33UUB",
            )
        )
    catalog = archive.write_catalog(folder / "items.json", items)
    return {"start": "2017-05-20", "end": "2017-06-10", "inputs": {"catalog": str(catalog)}}


@dataclass(frozen=True, eq=False)
class Made:
    """What a whole run wrote over an area: (dim, row, col) codes, (dim,) scale, lattice, scores of the report."""

    area: Box
    codes: NDArray[np.int8]
    scale: NDArray[np.float32]
    grid: GridSpec
    scores: tuple[seams.Score, ...]

    def on_lines(self, period: int) -> float:
        """Steps of a lattice of ``period`` pixels over those beside it, at its lines; the worse of the two axes."""
        valid = np.ones(self.codes.shape[1:], bool)
        firsts = {"row": self.area.row, "col": self.area.col}
        strips = [seams.strip(self.codes, valid, axis=a, first=firsts[a], scale=self.scale) for a in seams.AXES]
        lattice = seams.Lattice(kind="window", period=period, token=self.grid.patch_px)
        return max(score.line for score in seams.measure(strips, (lattice,)))


def draw(path: Path, area: Box, work: Path, request: dict[str, Any], *, title: str) -> None:
    """Run every panel's way over ``area``, print the scores of the report, and save crops in one set of colours."""
    blend = run_way(area, work / "blend", request, sets=PANELS["blend"])
    window = blend.grid.window_px  # without overlap the planner would take windows of one token
    made = {
        "no overlap": run_way(area, work / "none", request, sets=(*PANELS["no overlap"], f"encode.window_px={window}")),
        "blend": blend,
        "neighbourhood": run_way(area, work / "boxes", request, sets=PANELS["neighbourhood"]),
    }
    crop = slice((area.height - SHOWN_PX) // 2, (area.height + SHOWN_PX) // 2)  # around a corner of four blocks
    samples = [(m.codes.reshape(len(m.codes), -1).T * m.scale)[::37] for m in made.values()]
    basis = preview.pca_basis(np.concatenate(samples).astype(np.float32))
    parts = []
    for m in made.values():
        colours = preview.render(m.codes[:, crop, crop], m.scale, np.ones((SHOWN_PX, SHOWN_PX), bool), basis)
        parts += [np.kron(colours, np.ones((ZOOM, ZOOM, 1), np.uint8)), np.full((SHOWN_PX * ZOOM, GAP_PX, 4), 255)]
    names = ", ".join(f"{name} {m.on_lines(window):.2f}" for name, m in made.items())
    print(f"\n{title}\nsteps at the lines of {window} px windows: {names}")
    for name, m in made.items():
        text = [f"{s.name} {s.score:.2f} ({s.low:.2f} to {s.high:.2f}, at its lines {s.line:.2f})" for s in m.scores]
        print(f"report of {name}, {m.grid.summary}: {'; '.join(text)}")
    lines = (title, f"steps at the lines of {window} px windows, from the left: {names}; {SHOWN_PX / 100:g} km wide")
    label = (
        "UNTRAINED random weights, attention at full strength" if untrained.CALM == 1 else "UNTRAINED random weights"
    )
    preview.save_png(str(path), np.concatenate(parts[:-1], axis=1).astype(np.uint8), title_lines=lines, label=label)


def run_way(area: Box, output: Path, request: dict[str, Any], *, sets: tuple[str, ...]) -> Made:
    from tests.real.archive import bbox_of, mosaic

    bbox = tuple(float(v) for v in bbox_of(area.pad(-8)).split(","))
    plan = api.plan(load_settings(None, overrides=sets, values=request | {"bbox": bbox, "output": str(output)}))
    outcome = api.run(plan, pictures=False)
    if outcome.exit_code:
        raise SystemExit(f"the run in {output} ended with {outcome.exit_code}")
    tiles = [(Tile.parse(r.tile_id, tile_px=plan.grid.tile_px), r) for r in Commits(output).receipts()]
    codes, _, _ = mosaic(output, area)
    scale = np.asarray(plan.calibration.scale, np.float32)
    return Made(area, codes, scale, plan.grid, seam_report.measured(plan, tiles).scores)


def main() -> None:
    def words(text: str) -> list[str]:
        return text.split(",")

    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--places", type=words, default=["simulated", "farmland", "flanders"])
    parser.add_argument("--models", type=words, default=["v1-nano", "v1.2-nano"])
    parser.add_argument("--seeds", type=numbers, default=[0, 1, 2])
    parser.add_argument("--periods", type=numbers, default=[1, 4])
    parser.add_argument("--strength", type=float, default=untrained.CALM)
    parser.add_argument("--passes", type=int, default=3, help="of the timing; 0: no timing")
    parser.add_argument("--quick", action="store_true", help="simulated, v1.2-nano, one seed, one period, no timing")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="make the pictures, and no table")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.quick:
        args.places, args.models, args.seeds, args.periods, args.passes = ["simulated"], ["v1.2-nano"], [0], [1], 0
    if args.pictures is not None:
        untrained.CALM = args.strength
        pictures(args.pictures, model=f"random:{args.models[-1]}:{args.seeds[0]}")
        return
    missing = [place for place, name in FOLDERS.items() if place in args.places and not (DATA / name).is_dir()]
    args.places = [place for place in args.places if place not in missing]
    print(
        f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, 1 thread, {datetime.now(UTC):%Y-%m-%d}"
    )
    print(f"strength {args.strength:g}, seeds {args.seeds}, {', '.join(args.places)}; not at hand: {missing or 'none'}")
    tables(args)


def tables(args: argparse.Namespace) -> None:
    kept, cases = Kept(args.json), cases_of(args)
    grounds = {(place, count): ground_of(place, count) for place in args.places for count in args.periods}
    results, costs = {}, {}
    for case in cases:
        ground = grounds[case.place, case.periods]
        results[case] = kept.get(case.name, partial(scored, case, ground))
        name = cost_name(case)
        if args.passes and name not in costs and case.place != "flanders":
            costs[name] = kept.get(name, partial(timed, case, ground, passes=args.passes))
    show(cases, results, costs)
    summarise(cases, results)


if __name__ == "__main__":
    main()
