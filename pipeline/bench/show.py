"""Results laid out for people, as rich tables, and for machines, as JSON values."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.table import Table

from pipeline.bench.rows import IDLE_CORES, Shape

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
    device, threads = (rows[0][0].device, rows[0][0].threads) if rows else ("", 1)
    plural = "s" if threads > 1 else ""
    table = Table(title=f"Encoder on {device}, {threads} thread{plural}", title_justify="left", show_lines=True)
    table.add_column("model, input")
    for name in ("images/s", "MPx/s", "tokens/s", "km2/s", "GFLOP/s", "of peak", "MB", "compile s"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("attention, notes")
    for case, r in rows:
        rates = (r.images_per_s, r.mpx_per_s, r.tokens_per_s, r.km2_per_s, r.gflop_per_s)
        table.add_row(
            "\n".join(_case_lines(case)),
            *(number(rate) for rate in rates),
            share(r.share_of_gemm),
            number(r.peak_mb),
            number(r.compile_s),
            r.error or "\n".join(_notes(case, r)),
        )
    return table


def _notes(case: Case, r: Result) -> list[str]:
    """Kernel, its share of the work, who else was busy, and what others published."""
    notes = [f"{r.kernel}, {share(r.attention_share)} of the work"]
    if r.others_busy is not None and r.others_busy > IDLE_CORES:
        notes.append(f"not idle: {r.others_busy:.2g} busy")
    return [*notes, *filter(None, [published(case, r)])]


def duel_table(rows: Sequence[tuple[DuelCase, DuelResult]]) -> Table:
    """The rows of ``bench encoder --vs-reference``."""
    table = Table(title="Beside olmoearth-pretrain-minimal, same weights, pixels and threads", title_justify="left")
    for name in ("model, input, ours", "reference"):
        table.add_column(name)
    for name in ("ours images/s", "its images/s", "ratio", "quartiles", "difference"):
        table.add_column(name, justify="right")
    table.add_column("notes")
    for case, r in rows:
        quartiles = "" if r.ratio_low is None else f"{r.ratio_low:.2f}-{r.ratio_high:.2f} of {r.pairs}"
        table.add_row(
            "\n".join(_case_lines(case)),
            f"{case.rival_precision}{' compiled' if case.rival_compiled else ''}",
            number(r.images_per_s),
            number(r.rival_images_per_s),
            "" if r.ratio is None else f"{r.ratio:.2f}x",
            quartiles,
            "" if r.difference is None else f"{r.difference:.1e}",
            r.error or r.kernel,
        )
    return table


def loader_table(rows: Sequence[tuple[LoaderCase, LoaderResult]]) -> Table:
    """The rows of ``bench loader``."""
    case = rows[0][0]
    kind = "processes" if case.processes else "threads"
    title = f"{case.tiles} tiles, {case.model}, {case.threads} encoder {kind}, {case.device}"
    table = Table(title=title, title_justify="left")
    for name in ("reading threads", "", "tiles/s", "km2/s", "MB/s", "feeding loss"):
        table.add_column(name, justify="left" if not name else "right")
    for key, r in rows:
        loss = f"{r.feeding_loss:.1%}"
        table.add_row(str(key.readers), "compute", number(r.compute_tiles_per_s), number(r.compute_km2_per_s), "", "")
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
            usd = "unknown" if line.usd is None else number(line.usd)
            table.add_row(line.what, f"x {line.factor:.3g}", number(line.hours), usd)
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


def _case_lines(case: Case) -> tuple[str, str]:
    shape = Shape(periods=case.periods, window_px=case.window_px, patch_px=case.patch_px)
    return (
        f"{case.version} {case.size} {shape}",
        f"{case.precision}{' compiled' if case.compiled else ''}, batch {case.batch}",
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
