"""Seam scores of a committed store: what is read for them, where they are kept, and what they say to people.

The scores are in ``seams.json`` beside ``report.html`` and are measured again only when the store has changed. Reading
is bounded: a store of up to ``FULL_BYTES`` is read whole, of a larger one a fixed choice of strips, spread evenly.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import TypeAdapter

from pipeline.codes import valid_of
from pipeline.run.folder import settings_of, store_of
from pipeline.run.stored import Stored
from pipeline.types import CELL_PX, NODATA_CODE, PIXEL_M, Box, Plan, Reason, Receipt, Tile, content_hash
from pipeline.write import durable, page, preview, seam_picture, seams, store
from pipeline.write.layout import chunk_px, shard_of, shard_px

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

VERSION = 2
"""Raised when the same store would get other scores."""
SEAMS_FILE = "seams.json"
WARNING = 1.15
"""Lower end of an interval above which the report warns where no limit is set: about where a step can be seen."""
FULL_BYTES = 2**28
"""Stores up to this size (of codes) are read whole: about a second per axis."""
SAMPLE_BYTES = 2**29
"""Codes read per axis of a larger store: two to four seconds."""
PIECE_BYTES = 2**26
"""Codes held at once."""
RUN_PX = 2 * CELL_PX
"""Longest strip of a larger store: it crosses two lines of every lattice, cells included."""
GOLDEN = (5**0.5 - 1) / 2
BORDER_SEGMENTS = 48
"""Segments of the border between two zones that are looked at."""
NEAR_COLS = 8
"""Columns around the middle of a segment in which its rows end: the meridian leans by less than 3 degrees."""
NEAR_PX = 0.2
"""Pixels of two zones are neighbours when their distance is one pixel up to this share."""
TYPES = ("window", "domain", "block", "tile", "shard", "cell", "zone")
WAY_OUT = {
    "window": "another output with a longer overlap (encode.ramp) or, for v1.2 and v1.3, encode.stitch=neighbourhood "
    "has fainter ones",
    "domain": "encode.halo_px=exact removes what a cut halo leaves",
    "block": "blocks share their scenes and their weights, so look for degraded tiles and run again",
    "tile": "tiles of one numerics class agree, so look for degraded tiles and run again",
    "shard": "shards only store pixels, so look for degraded tiles and run again",
    "cell": "each cell ranks its own scenes: longer periods or a composite of several scenes bring them nearer",
    "zone": "two zones see the ground on turned grids: a smaller encode.patch_px makes it fainter",
}
ELSEWHERE = "no line of this lattice lies there, so the edge of a scene or of the ground is likelier than a seam"
FEW_LINES = 3
"""Fewer lines than this beside a lattice's own may be one straight edge of the ground: no reason to fail a run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seams:
    """The scores of a store.

    Attributes:
        scores: Per lattice and axis, and the border between zones; lattices without a line are absent.
        anisotropy: See ``seams.anisotropy``.
        strips: Strips that were read.
        read: Share of the committed vectors in them, per axis, 0..1.
    """

    scores: tuple[seams.Score, ...]
    anisotropy: float | None
    strips: int
    read: float

    @property
    def worst(self) -> seams.Score | None:
        """The score whose interval begins highest."""
        return max(self.scores, key=lambda s: s.low, default=None)


@dataclass(frozen=True, slots=True)
class Band:
    """A strip to read.

    Attributes:
        axis: Which steps.
        box: Which vectors.
    """

    axis: seams.Axis
    box: Box

    @property
    def vectors(self) -> int:
        """How many."""
        return self.box.height * self.box.width


def measured(plan: Plan, tiles: Sequence[tuple[Tile, Receipt]]) -> Seams:
    """The scores of what ``tiles`` committed: those of ``seams.json``, or new ones when the store has changed.

    Raises:
        OutputError: There is no store, or ``seams.json`` cannot be written.
    """
    state = content_hash([VERSION, plan.recipe, [[t.id, r.fingerprint, r.objects] for t, r in tiles]])
    path = Path(plan.output) / SEAMS_FILE
    kept = _kept(path, state)
    if kept is not None:
        return kept
    found = _measure(plan, [tile for tile, receipt in tiles if receipt.valid_px])
    record = {"state": state, "version": VERSION, "method": " ".join((seams.__doc__ or "").split()), **asdict(found)}
    durable.replace(path, (json.dumps(record, indent=None, allow_nan=False) + "\n").encode())
    return found


def over_limit(plan: Plan, found: Seams) -> tuple[str, ...]:
    """One sentence per score whose whole interval lies above ``run.max_seam_score``, worst first."""
    limit = settings_of(plan).run.max_seam_score
    bad = [s for s in found.scores if limit is not None and s.low > limit and (s.at_line or s.lines >= FEW_LINES)]
    return tuple(
        f"seam at {_what(s)}: score {s.score:.3f}, interval {s.low:.3f} to {s.high:.3f}, is above "
        f"run.max_seam_score={limit:g}: {_way_out(s)}; or plan with a higher limit"
        for s in sorted(bad, key=lambda s: -s.low)
    )


def warnings(plan: Plan, found: Seams) -> tuple[str, ...]:
    """What the report says first: scores over the limit, or without a limit those that can be seen."""
    if settings_of(plan).run.max_seam_score is not None:
        return over_limit(plan, found)
    bad = sorted((s for s in found.scores if s.low > WARNING), key=lambda s: -s.low)
    return tuple(
        f"Seam at {_what(s)}: score {s.score:.3f}, interval {s.low:.3f} to {s.high:.3f}: {_way_out(s)}." for s in bad
    )


def properties(found: Seams) -> dict[str, Any]:
    """The scores as STAC properties.

    The headline is the lower end of the worst interval, at least 1: what is certain. A few lines have wide intervals,
    so the score itself would rank stores by their size.
    """
    worst = found.worst
    return {
        "earthpress:seam_score": None if worst is None else round(max(1.0, worst.low), 4),
        "earthpress:seam_scores": {
            s.name: {
                "score": round(s.score, 4),
                "low": round(s.low, 4),
                "high": round(s.high, 4),
                "lines": s.lines,
            }
            for s in found.scores
        },
    }


def section(plan: Plan, found: Seams, basis: preview.Basis | None) -> page.SeamSection | None:
    """The part of the report about seams, with a picture of the worst line; None when no line was seen."""
    worst = found.worst
    if worst is None:
        return None
    limit = settings_of(plan).run.max_seam_score
    px = plan.grid.token_px
    return page.SeamSection(
        table=page.Table(
            title="Seams",
            columns=(
                "lines",
                "steps between",
                "score",
                "from",
                "to",
                "at px",
                "own line",
                "lines seen",
                "segments",
                "FFT",
            ),
            rows=tuple(
                (
                    s.kind,
                    {"row": "rows", "col": "columns"}.get(s.axis, "zones"),
                    round(s.score, 3),
                    round(s.low, 3),
                    round(s.high, 3),
                    f"{s.phase * px} of {s.period * px}" if s.period else "border",
                    None if s.line is None else round(s.line, 3),
                    s.lines,
                    s.segments,
                    "-" if s.fft is None else f"{s.fft:.2f}",
                )
                for s in sorted(found.scores, key=lambda s: (TYPES.index(s.kind), s.axis))
            ),
            note=_note(found, limit),
        ),
        picture=None if basis is None else _picture(plan, worst, basis),
        profile=seam_picture.profile_svg(worst, token_px=px, limit=WARNING if limit is None else limit),
        caption=f"Steps by phase at {_what(worst)}: the dot is the worst phase with its interval, upright lines are "
        f"where the lattice has a line, the dashed line is {_dashed(limit)}."
        + ("" if worst.low > 1 else " The interval holds 1: no seam can be told from the ground."),
    )


def border_score(
    held: Stored, tiles: Sequence[Tile], *, zone: int, token: int = 1, segment: int = seams.SEGMENT_PX
) -> seams.Score | None:
    """Steps from the last vectors of ``zone`` to the first of the next zone in the east, over steps just beside.

    Vectors of both zones are neighbours where they are one pixel apart, up to ``NEAR_PX``; their grids are turned, so
    only some are.

    Args:
        held: The store.
        tiles: Committed tiles of ``zone``.
        zone: The western zone.
        token: Vectors of a token along an axis.
        segment: Rows that are averaged.

    Returns:
        The score; None where the zones do not meet, or not along enough rows.
    """
    pairs = [
        pair
        for rows in _border_rows(held.place, tiles, zone=zone, segment=segment)
        if (pair := _border_segment(held, rows, token=token)) is not None
    ]
    steps, base = (np.array([p[k] for p in pairs], np.float32) for k in (0, 1))
    middle = pairs[len(pairs) // 2][2] if pairs else (zone, 0, 0)
    return seams.pair_score(steps, base, at=middle)


def _kept(path: Path, state: str) -> Seams | None:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["state"] != state:
            return None
        return TypeAdapter(Seams).validate_python({k: record[k] for k in ("scores", "anisotropy", "strips", "read")})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _measure(plan: Plan, tiles: Sequence[Tile]) -> Seams:
    grid, held = plan.grid, Stored.of(plan)
    bands, read = chosen(
        tiles,
        dims=plan.calibration.bands,
        token_px=grid.token_px,
        itemsize=np.dtype(plan.calibration.dtype).itemsize,
    )
    segment = seams.segment_of(grid.token_px)
    strips = [_strip(held, band, segment=segment) for band in bands]
    scores = seams.measure(strips, seams.lattices(grid, shard=shard_of(plan.calibration, grid)))
    token = max(1, grid.step_px // grid.token_px)
    for zone in sorted({tile.zone for tile in tiles}):
        own = [tile for tile in tiles if tile.zone == zone]
        found = border_score(held, own, zone=zone, token=token, segment=segment)
        scores += (found,) if found is not None else ()
    return Seams(scores=scores, anisotropy=seams.anisotropy(strips), strips=len(strips), read=read)


def chosen(tiles: Sequence[Tile], *, dims: int, token_px: int, itemsize: int = 1) -> tuple[tuple[Band, ...], float]:
    """The strips that are read, and the share of the vectors in them; decided by the tiles and the size of a vector.

    Everything up to ``FULL_BYTES``; else strips of ``RUN_PX`` that are spread evenly over all of both axes.
    """
    if not tiles:
        return (), 0.0
    side = tiles[0].tile_px // token_px
    # whole chunks, which are decoded whole, and at least one segment
    shard = shard_px(dims, tile_px=side, itemsize=itemsize)
    width = min(side, max(chunk_px(dims, shard=shard, itemsize=itemsize), seams.segment_of(token_px)))
    whole = len(tiles) * side * side * dims * itemsize <= FULL_BYTES
    picked: list[Band] = []
    for axis in seams.AXES:
        boxes = _runs(tiles, axis=axis, token_px=token_px, width=width, cut=not whole)
        bands = [Band(axis, box) for box in boxes]
        picked += bands if whole else _spread(bands, SAMPLE_BYTES // (dims * itemsize))
    total = 2 * len(tiles) * side * side
    return tuple(picked), sum(band.vectors for band in picked) / total


def _spread(bands: Sequence[Band], most: int) -> list[Band]:
    """Bands of ``most`` vectors in all, spread evenly by what lies between them; the same bands every time."""
    ends = np.cumsum([band.vectors for band in bands])
    count = max(1, most // max(band.vectors for band in bands))
    # multiples of the golden ratio are even, and never in step with the rows of tiles as equal distances are
    places = np.arange(1, count + 1) * GOLDEN % 1 * ends[-1]
    return [bands[int(n)] for n in np.unique(np.searchsorted(ends, places, side="right"))]


def _runs(tiles: Sequence[Tile], *, axis: seams.Axis, token_px: int, width: int, cut: bool) -> Iterator[Box]:
    """Strips over rows (``col``) or columns (``row``) of tiles without a gap."""
    side = tiles[0].tile_px // token_px
    lanes: dict[tuple[int, int], list[int]] = {}
    for tile in tiles:
        lane, place = (tile.row, tile.col) if axis == "col" else (tile.col, tile.row)
        lanes.setdefault((tile.zone, lane), []).append(place)
    for (zone, lane), places in sorted(lanes.items()):
        for first, stop in _without_gaps(sorted(places)):
            for low, high in _cut(first * side, stop * side, RUN_PX // token_px if cut else 0):
                for start in range(lane * side, (lane + 1) * side, width):
                    across = {"row": start, "height": width, "col": low, "width": high - low}
                    down = {"row": low, "height": high - low, "col": start, "width": width}
                    yield Box(zone=zone, res_m=PIXEL_M * token_px, **(across if axis == "col" else down))


def _without_gaps(places: Sequence[int]) -> Iterator[tuple[int, int]]:
    first = last = places[0]
    for place in places[1:]:
        if place != last + 1:
            yield first, last + 1
            first = place
        last = place
    yield first, last + 1


def _cut(start: int, stop: int, length: int) -> Iterator[tuple[int, int]]:
    """Pieces of ``length`` that begin a quarter of it before its multiples, so that cell lines lie inside."""
    if not length:
        yield start, stop
        return
    shift = length // 4
    for at in range((start + shift) // length * length - shift, stop, length):
        low, high = max(at, start), min(at + length, stop)
        if high - low > 1:
            yield low, high


def _strip(held: Stored, band: Band, *, segment: int) -> seams.Strip:
    """Read a band piece by piece and keep only its steps."""
    down = band.axis == "row"
    first, length, width = (
        (band.box.row, band.box.height, band.box.width) if down else (band.box.col, band.box.width, band.box.height)
    )
    unit = held.unit
    each = len(unit) if held.calibration.scale else 2 * unit.nbytes  # what is stored, and float32
    most = max(width, PIECE_BYTES // (width * each))
    pieces = []
    for at in range(first, first + length - 1, most):
        count = min(most + 1, first + length - at)
        box = replace(band.box, row=at, height=count) if down else replace(band.box, col=at, width=count)
        found = held.steps(box)
        pieces.append(
            seams.strip(
                found,
                valid_of(found),
                axis=band.axis,
                first=at,
                along=box.col if down else box.row,
                zone=box.zone,
                scale=unit,
                segment=segment,
            )
        )
    return seams.join(pieces)


def _border_rows(path: str | Path, tiles: Sequence[Tile], *, zone: int, segment: int) -> list[Box]:
    """Boxes of ``segment`` rows around the zone's eastern border inside its tiles; evenly chosen when many."""
    from pyproj import Transformer  # noqa: PLC0415

    extents = {box.zone: box for box in store.zones(path)}
    if not tiles or _next(zone) not in extents:
        return []
    res = extents[zone].res_m
    # zones have opposite signs of longitude at the antimeridian, whose border is 180 from both sides
    into = Transformer.from_crs(4326, extents[zone].epsg, always_xy=True)
    back = Transformer.from_crs(extents[zone].epsg, 4326, always_xy=True)
    found = []
    for tile in sorted(tiles):
        box = tile.box.cover(res)
        for row in range(box.row, box.row_stop - segment + 1, segment):
            y = -(row + segment / 2) * res
            _, lat = back.transform((box.col + box.width / 2) * res, y)
            col = int(into.transform(zone * 6.0 - 180.0, lat)[0] // res)
            if box.col + 2 * NEAR_COLS < col < box.col_stop + NEAR_COLS:
                wanted = replace(box, row=row, height=segment, col=col - 3 * NEAR_COLS, width=4 * NEAR_COLS)
                part = wanted.intersect(extents[zone])
                found += [part] if part is not None and part.height == segment else []
    many = max(1, -(-len(found) // BORDER_SEGMENTS))
    return found[many // 2 :: many]


def _next(zone: int) -> int:
    return zone % 60 + 1


def _border_segment(held: Stored, box: Box, *, token: int) -> tuple[float, float, tuple[int, int, int]] | None:
    """(step across the border, step beside it, place) of one segment; None where too few vectors are neighbours."""
    from pyproj import Transformer  # noqa: PLC0415

    here, unit = held.steps(box), held.unit
    rows, last = _ends(valid_of(here), held.layer(box, "reason"), token)
    if not len(rows):
        return None
    res, cols = float(box.res_m), last
    x, y = (box.col + cols + 0.5) * res, -(box.row + rows + 0.5) * res
    there_epsg = 32600 + _next(box.zone)
    tx, ty = Transformer.from_crs(box.epsg, there_epsg, always_xy=True).transform(x + res, y)
    to_row, to_col = np.floor(-np.asarray(ty) / res).astype(int), np.floor(np.asarray(tx) / res).astype(int)
    bx, by = Transformer.from_crs(there_epsg, box.epsg, always_xy=True).transform(
        (to_col + 0.5) * res, -(to_row + 0.5) * res
    )
    near = np.abs(np.hypot(np.asarray(bx) - x, np.asarray(by) - y) / res - 1) <= NEAR_PX
    over = _points(held, to_row, to_col, zone=_next(box.zone), res_m=box.res_m)
    near &= valid_of(over)
    if 4 * near.sum() < box.height:
        return None
    rows, cols, over = rows[near], cols[near], over[:, near]
    across = _mean_step(over, here[:, rows, cols], unit)
    beside = np.mean([_mean_step(here[:, rows, cols - k], here[:, rows, cols - k - 1], unit) for k in range(token)])
    return across, float(beside), (box.zone, box.row + int(rows[len(rows) // 2]), box.col + int(cols[len(cols) // 2]))


def _ends(valid: NDArray[np.bool_], reason: NDArray[np.uint8], token: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows that reach the next zone with a token of valid vectors and one more, and the last column of each."""
    last = valid.shape[1] - 1 - np.argmax(valid[:, ::-1], axis=1)
    rows = np.flatnonzero(valid.any(axis=1) & (last >= token) & (last < valid.shape[1] - 1))
    ends = [
        bool(valid[r, last[r] - token : last[r]].all()) and reason[r, last[r] + 1] == Reason.OTHER_ZONE for r in rows
    ]
    rows = rows[np.array(ends, np.bool_)]
    return rows, last[rows]


def _points(held: Stored, rows: NDArray[np.int_], cols: NDArray[np.int_], *, zone: int, res_m: int) -> NDArray[Any]:
    """(band, point) ``Stored.steps`` at lattice places of a zone; nodata beyond its extent."""
    extent = next(box for box in store.zones(held.place) if box.zone == zone)
    row, col = int(rows.min()), int(cols.min())
    box = Box(
        zone=zone, res_m=res_m, row=row, col=col, height=int(rows.max()) - row + 1, width=int(cols.max()) - col + 1
    )
    part = box.intersect(extent)
    if part is None:
        return np.full((1, len(rows)), NODATA_CODE, np.int8)
    steps = held.steps(part)
    inside = (rows >= part.row) & (rows < part.row_stop) & (cols >= part.col) & (cols < part.col_stop)
    found = steps[:, np.where(inside, rows - part.row, 0), np.where(inside, cols - part.col, 0)]
    found[:, ~inside] = NODATA_CODE if found.dtype == np.int8 else np.nan
    return found


def _mean_step(a: NDArray[Any], b: NDArray[Any], unit: NDArray[np.float32]) -> float:
    return float((np.abs(a.astype(np.float32) - b) * unit[:, None]).mean())


def _what(score: seams.Score) -> str:
    if score.kind == "zone":
        return "the border between two zones"
    between = "rows" if score.axis == "row" else "columns"
    if not score.at_line:
        return f"phase {score.phase} of the {score.kind} lattice, steps between {between}"
    return f"{score.kind} lines, steps between {between}"


def _dashed(limit: float | None) -> str:
    return "where a step can be seen" if limit is None else "the limit"


def _way_out(score: seams.Score) -> str:
    return WAY_OUT[score.kind] if score.at_line else ELSEWHERE


def _note(found: Seams, limit: float | None) -> str:
    turned = "" if found.anisotropy is None else f" Variance of row steps over column steps: {found.anisotropy:.3f}."
    bound = f"run.max_seam_score is {limit:g}." if limit is not None else f"No limit is set; {WARNING:g} can be seen."
    return (
        "Score: mean absolute step between neighbouring vectors at the worst phase of the lattice over the median of "
        "all phases, same position within a token, with its simultaneous 99 % interval (Student's t over segments of "
        "lines, Bonferroni over phases, axes and lattices). 1 is no seam; few lines make a wide interval. FFT: energy "
        f"at the period and its harmonics over that between them.{turned} {found.strips} strips, {found.read:.0%} of "
        f"the vectors read. {bound}"
    )


def _picture(plan: Plan, worst: seams.Score, basis: preview.Basis) -> page.Picture | None:
    """Colours around the worst line, one pixel per vector, with arrow heads at the margins."""
    zone, row, col = worst.at
    path = store_of(plan)
    extent = next((box for box in store.zones(path) if box.zone == zone), None)
    if extent is None:
        return None
    height, width = (min(seam_picture.SIDE, side) for side in extent.shape)
    box = replace(
        extent,
        row=min(max(row - height // 2, extent.row), extent.row_stop - height),
        col=min(max(col - width // 2, extent.col), extent.col_stop - width),
        height=height,
        width=width,
    )
    colours = preview.render_coded(Stored.of(plan).coded(box), plan.calibration, basis)
    shown, times = seam_picture.enlarged(colours)
    at_row = (row - box.row) * times if worst.axis == "row" else None
    at_col = (col - box.col) * times if worst.axis != "row" else None
    size = "at 100 %" if times == 1 else f"enlarged {times} times"
    return page.Picture(
        name="Worst line",
        png=preview.png_bytes(seam_picture.marked(shown, row=at_row, col=at_col)),
        caption=f"{_what(worst)}, score {worst.score:.3f}, {size}: the line lies between the arrow heads. "
        f"Zone {zone}, row {row}, column {col}.",
    )
