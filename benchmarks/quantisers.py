"""What quantising costs a classifier, and what it saves: every quantiser beside float32, as Markdown tables.

    OMP_NUM_THREADS=1 python benchmarks/quantisers.py [--model v1.2-nano] [--seeds 0,1,2]
        [--places simulated,river,flanders]

**Vectors.** Random weights of several seeds at patch 4, encoded and stitched as a run does, brought to 10 m pixels in
float32. Then ``codes.encode`` and ``codes.decode``: what a store would give back.

**Places.** ``simulated``: 3.2 km of the simulated sample and its truth, four periods. ``river``: a real scene of
``rstoolbox-sen2`` with labelled polygons, one date. ``flanders``: the real chip of ``worldcereal-patches`` and its
land cover, four dates. A calibration is made of all other places, of the real 6 km chip ``dsen2-s2-l1c``, and of those
places of the packaged sample that do not lie on the one that is scored.

**Scores.** Accuracy over held-out folds: ``kNN`` by cosine with k = 5, ``probe`` logistic regression on standardised
vectors. Folds keep whole squares of 640 m together (simulated), polygons (river), squares of 160 m (flanders, a chip
of 640 m, so that the encoder has seen what is held out). Beside each accuracy stands how many pixels only float32 got
right and how many only the other, over all seeds, and the p of McNemar's exact test. Pixels of a field are not
independent, which makes these p smaller than they should be; of 42 tests at 0.05, two come out by chance.

``pca:64`` scores are centred; ``+ mean`` adds the mean back (``ds.pca_components``, ``ds.pca_mean``), which is what
cosine of the other rows is of. ``bytes``: of a pixel, then after the store's compression (Blosc zstd 1, bitshuffle) of
the whole place. ``clipped``: of the codes of all pixels of the place.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from seams import DATA, Ground, ground_of, session_of

from pipeline import codes
from pipeline.encode import calibration as making
from pipeline.encode import checkpoint, stitch
from pipeline.plan import windows
from pipeline.plan.grid import window_origins
from pipeline.run import prepare
from pipeline.simulate.landscape import CLASSES, survey
from pipeline.simulate.sample import AREA
from pipeline.simulate.stacks import calibration_places
from pipeline.types import PIXEL_M, Box, GridSpec, Period

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.types import Calibration

PATCH_PX = 4
QUANTISERS = ("float32", "float16", "linear", "power", "power_raw", "per_pixel", "pca:64", "pca:64 + mean")
PER_CLASS = 400
"""Scored pixels of a class at most."""
FOLDS = 5
NEIGHBOURS = 5
SIMULATED_PX = 320
SQUARE_PX = {"simulated": 64, "flanders": 16}
ZONE = 32


@dataclass(frozen=True, eq=False)
class Place:
    """A ground with labels: (row, col) int16 classes, -1 unlabelled, and the group of every pixel."""

    ground: Ground
    labels: NDArray[np.int16]
    groups: NDArray[np.int64]
    classes: tuple[str, ...]


# ---- places ----------------------------------------------------------------------------------------------------------


def squares(shape: tuple[int, int], side: int) -> NDArray[np.int64]:
    rows, cols = (np.arange(n) // side for n in shape)
    return rows[:, None] * 1000 + cols[None, :]


def simulated() -> Place:
    whole = ground_of("simulated", 4)
    side = SIMULATED_PX
    truth = survey(AREA).truth[:side, :side].astype(np.int16)
    truth[truth == 255] = -1
    return Place(
        ground=replace(whole, dn=whole.dn[..., :side, :side]),
        labels=truth,
        groups=squares(truth.shape, SQUARE_PX["simulated"]),
        classes=tuple(land.name for land in CLASSES),
    )


def flanders() -> Place:
    import h5py

    folder, name = DATA / "worldcereal-patches", "00002806639B424A"
    with h5py.File(folder / name / f"OUTPUT_POLY-110_10m_{name}_32631_2017-08-01_2018-11-30.nc") as file:
        cover = file["LC"][:]
    known = {11: "crops", 13: "grassland", 60: "built or other"}
    labels = np.full(cover.shape, -1, np.int16)
    for code, value in enumerate(known):
        labels[cover == value] = code
    return Place(ground_of("flanders", 4), labels, squares(labels.shape, SQUARE_PX["flanders"]), tuple(known.values()))


def river() -> Place:
    import geopandas
    import rasterio
    from rasterio.features import rasterize

    folder = DATA / "rstoolbox-sen2"
    with rasterio.open(folder / "sen2_dn.tif") as file:
        dn, bands, transform = file.read().astype(np.uint16), file.descriptions, file.transform
    frame = geopandas.read_file(folder / "trainingPolygons_sen2.geojson")
    names = tuple(sorted(set(frame["class"])))
    shape, side = dn.shape[1:], max(dn.shape[1:])

    def burnt(values: list[int]) -> NDArray[np.int64]:
        found = rasterize(zip(frame.geometry, values, strict=True), shape, fill=-1, transform=transform, dtype="int16")
        return np.pad(found, [(0, side - n) for n in shape], constant_values=-1).astype(np.int64)

    start = datetime(2022, 8, 1, tzinfo=UTC)  # the source records no date
    square = np.pad(dn, ((0, 0), *((0, side - n) for n in shape)))
    ground = Ground(
        "river", tuple(bands), square[None], (Period(index=0, start=start, end=start + timedelta(days=30)),)
    )
    labels = burnt([names.index(value) for value in frame["class"]]).astype(np.int16)
    return Place(ground, labels, burnt(list(range(len(frame)))), names)


PLACES = {"simulated": simulated, "river": river, "flanders": flanders}


# ---- vectors ---------------------------------------------------------------------------------------------------------


def fields(model: checkpoint.Checkpoint, ground: Ground) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """((token, dim) valid vectors, (row, col, dim) of the pixels, NaN where there is none), as a run makes them."""
    periods = len(ground.periods)
    window, overlap, _ = windows.settle(model.card, patch_px=PATCH_PX, periods=periods, stitch="blend")
    grid = GridSpec(patch_px=PATCH_PX, window_px=window, overlap_px=overlap, tile_px=256)
    box = Box(zone=ZONE, res_m=PIXEL_M, row=0, col=0, height=ground.side_px, width=ground.side_px)
    origins = window_origins(box.pad(PATCH_PX), grid)
    low, high = min(origins), max(origins)
    read = Box(
        zone=ZONE,
        res_m=PIXEL_M,
        row=low[0],
        col=low[1],
        height=high[0] + window - low[0],
        width=high[1] + window - low[1],
    ).pad(grid.embed_px)
    stack = ground.stack(0, read)
    session = session_of(model, grid, ground.periods)
    made = session.encode(stack, origins)
    tokens = stitch.stitch(
        made.values, made.valid, origins=origins, grid=grid, box=box.pad(PATCH_PX).cover(PIXEL_M * PATCH_PX)
    )
    tokens = stitch.with_head(tokens, session.head)
    seen = stack.layers[0].valid.any(axis=0)[box.slices_in(read)]
    pixels = stitch.to_pixels(tokens, seen, box)
    return tokens.values.numpy()[tokens.valid], np.where(pixels.valid[..., None], pixels.values.numpy(), np.nan)


def samples_of(model: checkpoint.Checkpoint, own: dict[str, NDArray[np.float32]]) -> dict[str, list[making.Sample]]:
    """By scored place, the samples of all other ground: ``own`` are the tokens of the scored places."""
    chip = ground_of("farmland", 1)
    everywhere = {"farmland": fields(model, replace(chip, dn=chip.dn[..., :256, :256]))[0]} | own
    dims = model.card.dims
    made = {name: making.Sample.of([tokens], dims=dims) for name, tokens in everywhere.items()}
    packaged = prepare.sample_vectors(model, patch_px=PATCH_PX, sensors=("sentinel2_l2a",))
    known = calibration_places(prepare.CALIBRATION_PERIODS)
    packs = [
        (place.box.zone == AREA.zone and place.box.intersect(AREA) is not None, making.Sample.of([vectors], dims=dims))
        for place, vectors in zip(known, packaged, strict=True)
    ]
    return {
        name: [sample for other, sample in made.items() if other != name]
        + [sample for near, sample in packs if not (near and name == "simulated")]
        for name in own
    }


# ---- scores ----------------------------------------------------------------------------------------------------------


def chosen(place: Place, valid: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Flat indices of the scored pixels: of every class as many, at random; the same for every seed and quantiser."""
    rng, labels = np.random.default_rng(0), np.where(valid, place.labels, -1).ravel()
    parts = []
    for code in range(len(place.classes)):
        held = np.flatnonzero(labels == code)
        parts.append(np.sort(rng.permutation(held)[:PER_CLASS]))
    return np.concatenate(parts)


def stored(values: NDArray[np.float32], calibration: Calibration) -> tuple[codes.Coded, NDArray[np.float32]]:
    """Codes of (row, col, dim) vectors and what they decode to, (row, col, band)."""
    coded = codes.encode(np.ascontiguousarray(np.moveaxis(values, -1, 0)), calibration)
    return coded, np.moveaxis(codes.decode(coded, calibration), 0, -1)


def nearest(train: Any, y: Any, test: Any) -> NDArray[np.int64]:
    from sklearn.neighbors import KNeighborsClassifier

    return KNeighborsClassifier(NEIGHBOURS, metric="cosine", algorithm="brute").fit(train, y).predict(test)


def linear(train: Any, y: Any, test: Any) -> NDArray[np.int64]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=2000))
    return probe.fit(train.astype(np.float64), y).predict(test.astype(np.float64))


CLASSIFIERS = {"kNN": nearest, "probe": linear}


def right(
    vectors: NDArray[np.float32], y: NDArray[np.int64], groups: NDArray[np.int64]
) -> dict[str, NDArray[np.bool_]]:
    """Per classifier, which held-out pixels it got right."""
    from sklearn.model_selection import StratifiedGroupKFold

    found = {name: np.zeros(len(y), bool) for name in CLASSIFIERS}
    for train, test in StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0).split(vectors, y, groups):
        for name, classify in CLASSIFIERS.items():
            found[name][test] = classify(vectors[train], y[train], vectors[test]) == y[test]
    return found


def compressed_bytes(array: NDArray[Any]) -> int:
    """Bytes of an array (band, row, col) under the codec of the store, in one chunk."""
    from numcodecs import Blosc

    return len(Blosc("zstd", 1, Blosc.BITSHUFFLE).encode(np.ascontiguousarray(array)))


def mcnemar(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> tuple[int, int, float]:
    """(only the first right, only the second right, two-sided exact p)."""
    from scipy.stats import binomtest

    lost, won = int((one & ~other).sum()), int((other & ~one).sum())
    return lost, won, 1.0 if lost + won == 0 else float(binomtest(min(lost, won), lost + won).pvalue)


@dataclass(eq=False)
class Row:
    """What one quantiser gave on one place, over the seeds."""

    bytes_px: float = 0.0
    stored_px: list[float] | None = None
    clipped: list[float] | None = None
    right: dict[str, list[NDArray[np.bool_]]] | None = None


def score(
    place: Place, pixels: NDArray[np.float32], samples: list[making.Sample], model: Any, rows: dict[str, Row]
) -> None:
    valid = ~np.isnan(pixels[..., 0])
    index = chosen(place, valid)
    y, groups = place.labels.ravel()[index].astype(np.int64), place.groups.ravel()[index]
    sample = making.Sample.merged(samples)
    for name in QUANTISERS:
        calibration = making.calibrate(
            sample, name.partition(" ")[0], card=model.card, patch_px=PATCH_PX, source="other places", provisional=False
        )
        coded, values = stored(pixels, calibration)
        if name.endswith("mean"):
            values = values @ np.asarray(calibration.components, np.float32) + np.asarray(calibration.mean, np.float32)
        arrays = [coded.codes] if coded.pixel_scale is None else [coded.codes, coded.pixel_scale]
        row = rows.setdefault(name, Row(stored_px=[], clipped=[], right={c: [] for c in CLASSIFIERS}))
        row.bytes_px = sum(a.nbytes for a in arrays) / valid.size
        row.stored_px.append(sum(map(compressed_bytes, arrays)) / valid.size)
        row.clipped.append(codes.clipped(pixels[valid].T, calibration) / (valid.sum() * calibration.bands))
        for classifier, hits in right(values.reshape(valid.size, -1)[index], y, groups).items():
            row.right[classifier].append(hits)


def table(name: str, place: Place, rows: dict[str, Row], *, dims: int) -> str:
    first = rows["float32"]
    count, seeds = len(first.right["kNN"][0]), len(first.right["kNN"])
    title = f"**{name}**: {count} pixels of {len(place.classes)} classes ({', '.join(place.classes)})"
    lines = [
        f"{title}, {dims} dimensions, models of {seeds} seeds",
        "",
        "| quantiser | bytes | compressed | clipped % | kNN | lost : won | p | probe | lost : won | p |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for quantiser, row in rows.items():
        cells = [quantiser, f"{row.bytes_px:.0f}", f"{np.mean(row.stored_px):.0f}", f"{100 * np.mean(row.clipped):.3g}"]
        for classifier in CLASSIFIERS:
            mine, theirs = (np.concatenate(r.right[classifier]) for r in (row, first))
            lost, won, p = mcnemar(theirs, mine)
            test = ["", ""] if quantiser == "float32" else [f"{lost} : {won}", f"{p:.2g}"]
            cells += [f"{100 * mine.mean():.1f}", *test]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def verdict(results: dict[str, dict[str, Row]]) -> str:
    """int8 against float32 in one sentence."""
    tests = [
        mcnemar(*(np.concatenate(rows[name].right[classifier]) for name in ("float32", "linear")))
        for rows in results.values()
        for classifier in CLASSIFIERS
    ]
    smallest, lost, won = min(p for _, _, p in tests), sum(t[0] for t in tests), sum(t[1] for t in tests)
    return (
        f"linear against float32: {lost} lost, {won} won in {len(tests)} tests, smallest p {smallest:.2g}. "
        "Published: int8 is statistically indistinguishable from float32."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="v1.2-nano")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--places", default=",".join(PLACES))
    given = parser.parse_args()
    began, places = time.perf_counter(), {name: PLACES[name]() for name in given.places.split(",")}
    results: dict[str, dict[str, Row]] = {name: {} for name in places}
    for seed in given.seeds.split(","):
        model = checkpoint.load(f"random:{given.model}:{seed}")
        made = {name: fields(model, place.ground) for name, place in places.items()}
        others = samples_of(model, {name: tokens for name, (tokens, _) in made.items()})
        for name, place in places.items():
            score(place, made[name][1], others[name], model, results[name])
        print(f"seed {seed}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    for name, place in places.items():
        print(table(name, place, results[name], dims=model.card.dims), end="\n\n")
    print(verdict(results))


if __name__ == "__main__":
    main()
