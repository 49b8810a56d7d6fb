"""Results laid out for people, as rich tables, and for machines, as JSON values."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.table import Table

from pipeline.bench.rows import Shape

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.bench.loader import LoaderCase, LoaderResult
    from pipeline.bench.project import Projection
    from pipeline.bench.rows import Case, DuelCase, DuelResult, Result

PUBLISHED = {"nano": (29_063, 0.086), "tiny": (10_887, 0.178), "base": (1_838, 0.336), "large": (604, 0.378)}
"""(images per second, share of the 835 TFLOP/s dense bfloat16 peak with attention counted) of OlmoEarth v1, T1x128/8,
batch 512, bf16 compiled, on an H100 NVL: results/nvidia_h100_nvl.csv of github.com/calebrob6/throughput-bench. Its
column ``macs_G`` counts two per multiply-add and leaves attention out; the shares here count it."""
PUBLISHED_SHAPE = Shape(periods=1, window_px=128, patch_px=8)


def encoder_table(rows: Sequence[tuple[Case, Result]]) -> Table:
    """The rows of ``bench encoder``; failed ones say why."""
    device = rows[0][0].device if rows else ""
    table = Table(title=f"Encoder on {device}", title_justify="left")
    for name in ("model", "shape", "precision", "batch", "images/s", "MPx/s", "tokens/s", "km2/s", "GFLOP/s"):
        table.add_column(name, justify="left" if name in ("model", "shape", "precision") else "right")
    for name in ("of GEMM peak", "peak MB", "compile s", "attention", "others busy", "note"):
        table.add_column(name, justify="left" if name in ("attention", "note") else "right")
    for case, r in rows:
        table.add_row(
            *_case_cells(case),
            number(r.images_per_s),
            number(r.mpx_per_s),
            number(r.tokens_per_s),
            number(r.km2_per_s),
            number(r.gflop_per_s),
            share(r.share_of_gemm),
            number(r.peak_mb),
            number(r.compile_s),
            f"{r.kernel} {share(r.attention_share)}".strip(),
            number(r.others_busy),
            r.error or published(case, r),
        )
    return table


def duel_table(rows: Sequence[tuple[DuelCase, DuelResult]]) -> Table:
    """The rows of ``bench encoder --vs-reference``."""
    table = Table(title="Beside olmoearth-pretrain-minimal, same weights, pixels and threads", title_justify="left")
    for name in ("model", "shape", "ours", "batch", "reference", "ours images/s", "its images/s", "ratio", "quartiles"):
        table.add_column(name, justify="left" if name in ("model", "shape", "ours", "reference") else "right")
    for name in ("difference", "note"):
        table.add_column(name)
    for case, r in rows:
        quartiles = "" if r.ratio_low is None else f"{r.ratio_low:.2f}-{r.ratio_high:.2f} of {r.pairs}"
        table.add_row(
            *_case_cells(case),
            f"{case.rival_precision}{' compiled' if case.rival_compiled else ''}",
            number(r.images_per_s),
            number(r.rival_images_per_s),
            "" if r.ratio is None else f"{r.ratio:.2f}x",
            quartiles,
            "" if r.difference is None else f"{r.difference:.1e}",
            r.error,
        )
    return table


def loader_table(rows: Sequence[tuple[LoaderCase, LoaderResult]]) -> Table:
    """The rows of ``bench loader``."""
    case = rows[0][0]
    title = f"{case.tiles} tiles, {case.model}, {case.threads} encoder threads, {case.device}"
    table = Table(title=title, title_justify="left")
    for name in ("reading threads", "", "tiles/s", "km2/s", "MB/s", "feeding loss"):
        table.add_column(name, justify="left" if not name else "right")
    for key, r in rows:
        loss = f"{r.feeding_loss:.1%}"
        table.add_row(str(key.workers), "compute", number(r.compute_tiles_per_s), number(r.compute_km2_per_s), "", "")
        fetch = (number(r.fetch_tiles_per_s), number(r.fetch_km2_per_s), number(r.fetch_mb_per_s))
        table.add_row("", "fetch", *fetch, "")
        table.add_row("", "end to end", number(r.tiles_per_s), number(r.km2_per_s), number(r.mb_per_s), loss)
    return table


def projection_tables(projections: Sequence[Projection]) -> tuple[Table, ...]:
    """One table per row and workload; each multiplier on a line of its own."""
    tables = []
    for found in projections:
        work = found.workload
        title = f"{found.case.label()} on {found.case.device}: {work.name} ({work.images:,.0f} windows) a year"
        table = Table(title=title, title_justify="left")
        table.add_column("what")
        for name in ("factor", found.unit, "USD"):
            table.add_column(name, justify="right")
        for line in found.lines:
            usd = "unknown" if line.usd is None else f"{line.usd:,.0f}"
            table.add_row(line.what, f"x {line.factor:.3g}", f"{line.hours:,.0f}", usd)
        tables.append(table)
    return tuple(tables)


def to_json(
    *,
    encoder: Sequence[tuple[Case, Result]] = (),
    duels: Sequence[tuple[DuelCase, DuelResult]] = (),
    loader: Sequence[tuple[LoaderCase, LoaderResult]] = (),
    projections: Sequence[Projection] = (),
) -> dict[str, Any]:
    """Everything as JSON values: lists of flat rows, and of projections."""
    lists: dict[str, Sequence[tuple[Any, Any]]] = {"encoder": encoder, "vs_reference": duels, "loader": loader}
    flat = {name: [asdict(key) | asdict(value) for key, value in rows] for name, rows in lists.items() if rows}
    return flat | ({"projections": [asdict(found) for found in projections]} if projections else {})


def published(case: Case, result: Result) -> str:
    """What ThroughputBench measured for the same row, "" where it has none."""
    shape = Shape(periods=case.periods, window_px=case.window_px, patch_px=case.patch_px)
    same = (case.version, case.precision, case.compiled, case.batch, shape) == (
        "v1",
        "bf16",
        True,
        512,
        PUBLISHED_SHAPE,
    )
    if not same or case.size not in PUBLISHED or result.images_per_s is None:
        return ""
    images, mfu = PUBLISHED[case.size]
    return (
        f"ThroughputBench, H100 NVL: {images:,} images/s, {mfu:.1%} of peak; here {result.images_per_s / images:.2f}x"
    )


def _case_cells(case: Case) -> tuple[str, str, str, str]:
    shape = Shape(periods=case.periods, window_px=case.window_px, patch_px=case.patch_px)
    return (
        f"{case.version} {case.size}",
        str(shape),
        f"{case.precision}{' compiled' if case.compiled else ''}",
        str(case.batch),
    )


def number(value: float | None) -> str:
    """Three significant digits; "" for None.

    >>> number(1234.5), number(0.01234), number(None)
    ('1,234', '0.0123', '')
    """
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def share(value: float | None) -> str:
    """A share in per cent; "" for None."""
    return "" if value is None else f"{value:.0%}"
