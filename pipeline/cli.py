"""The command line: parse, build, call one function, print. The only module that prints.

Exit codes follow the error tree: 0 all done, 2 usage, 3 some tiles failed, 65 no data, 73 output cannot be written,
75 stopped and resumable, 78 configuration.
"""

from __future__ import annotations

import atexit
import json
import logging
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table

from pipeline import api
from pipeline.bench.cli import bench_app
from pipeline.config import SENSOR_ORDER, Settings, load
from pipeline.errors import EarthpressError, InvalidInputError, StoppedError
from pipeline.run.cli import outputs_app
from pipeline.run.words import size_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.maps.fitting import ProbeReport
    from pipeline.maps.ridge_fit import RidgeReport
    from pipeline.run.local import Progress
    from pipeline.run.measure import Seams
    from pipeline.run.measure_reach import Reach
    from pipeline.types import Estimate, Plan

app = typer.Typer(
    name="earthpress",
    help="From an area and dates to int8 per-pixel embeddings and maps, with every tile's cost accounted for.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
probe_app = typer.Typer(help="Fit classes or a quantity on a store's embeddings.", no_args_is_help=True)
app.add_typer(probe_app, name="probe")
app.add_typer(bench_app, name="bench")
app.add_typer(outputs_app)

out = Console()
err = Console(stderr=True)

BBOX = Annotated[str | None, typer.Option("--bbox", metavar="W,S,E,N", help="Area as degrees west,south,east,north.")]
AOI = Annotated[
    str | None, typer.Option("--aoi", metavar="FILE", help="Area as a vector file (any format, GeoParquet).")
]
START = Annotated[str | None, typer.Option("--start", metavar="DATE", help="First day, e.g. 2024-04-01.")]
END = Annotated[str | None, typer.Option("--end", metavar="DATE", help="Day after the last one.")]
CONFIG = Annotated[
    str | None, typer.Option("--config", metavar="FILE", help="YAML settings; see configs/example.yaml.")
]
SET = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one setting; repeatable.")]
OUTPUT = Annotated[str | None, typer.Option("--output", "-o", metavar="DIR", help="Folder of everything written.")]
MODEL = Annotated[
    str | None,
    typer.Option("--model", metavar="MODEL", help="Folder, weights file, Hugging Face id or random:v1.2-nano:0."),
]
CATALOG = Annotated[
    str | None,
    typer.Option(
        "--catalog",
        metavar="CATALOG",
        help="planetary-computer, earth-search, cdse, a STAC API URL or a file catalogue; A,B: B completes A.",
    ),
]
JSON = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
FOLDER = Annotated[str, typer.Argument(metavar="OUTPUT", help="Output folder of a plan or run.")]


def main() -> None:
    """Entry point of the console script: turns errors into one line and an exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s", stream=sys.stderr)
    for handler in logging.getLogger().handlers:
        handler.addFilter(_worth_reading)
    try:
        app()
    except EarthpressError as error:
        err.print(f"[bold red]error:[/] {_escape(str(error))}", highlight=False, soft_wrap=True)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        err.print("stopped")
        raise SystemExit(StoppedError.exit_code) from None


def _worth_reading(record: logging.LogRecord) -> bool:
    """Whether a log line is for the terminal: libraries tell every repeated request, the ledger counts them."""
    return record.levelno >= logging.ERROR or not record.name.startswith(("rasterio", "urllib3"))


def _escape(text: str) -> str:
    return text.replace("[", r"\[")


def _settings(config: str | None, sets: list[str] | None, catalog: str | None = None, **values: Any) -> Settings:
    overrides = list(sets or [])
    if catalog is not None:
        overrides.append(f"inputs.catalog={json.dumps(catalog)}")
    if isinstance(values.get("bbox"), str):
        values["bbox"] = _bbox(values["bbox"])
    return load(config, overrides=overrides, values=values)


def _bbox(text: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != 4:
        raise InvalidInputError(f"--bbox {text!r} is not four numbers west,south,east,north, e.g. 8.9,47.3,9.1,47.4")
    return numbers


def _note(text: str) -> None:
    err.print(f"[dim]{_escape(text)} ...[/]", highlight=False, soft_wrap=True)


@app.command(
    epilog="Example: earthpress plan --bbox 8.9,47.3,9.1,47.4 --start 2024-04-01 --end 2024-09-28 "
    "--model ./olmoearth-nano --output zurich"
)
def plan(
    bbox: BBOX = None,
    aoi: AOI = None,
    start: START = None,
    end: END = None,
    config: CONFIG = None,
    set_: SET = None,
    output: OUTPUT = None,
    model: MODEL = None,
    catalog: CATALOG = None,
    as_json: JSON = False,
) -> None:
    """Price the work: search scenes, lay the lattice, write the plan folder. Computes and spends nothing."""
    settings = _settings(config, set_, catalog, bbox=bbox, aoi=aoi, start=start, end=end, output=output, model=model)
    made = api.plan(settings, note=_note)
    if as_json:
        print(json.dumps(_plan_json(made), indent=2))
    else:
        _print_plan(made)
        out.print(f"\nRun it: [bold]earthpress run {made.output}[/]", highlight=False)


def _plan_json(made: Plan) -> dict[str, Any]:
    from pipeline.plan.estimate import total  # noqa: PLC0415
    from pipeline.run.folder import store_of  # noqa: PLC0415
    from pipeline.run.status import to_do  # noqa: PLC0415

    return {
        "id": made.id,
        "output": made.output,
        "store": store_of(made),
        "area_km2": made.area.km2,
        "tiles": [
            {"tile": t.tile.id, "blocks": len(t.blocks), "fingerprint": t.fingerprint} | asdict(t.estimate)
            for t in made.tasks
        ],
        "scenes": len(made.scenes),
        "periods": [[p.start.isoformat(), p.end.isoformat()] for p in made.periods],
        "empty_periods": list(made.empty_periods),
        "model": asdict(made.model),
        "grid": asdict(made.grid),
        "numerics": asdict(made.numerics),
        "calibration": {"hash": made.calibration.hash, "provisional": made.calibration.provisional},
        "estimate": asdict(made.estimate),
        "to_do": asdict(total([t.estimate for t in to_do(made)])),
    }


def _print_plan(made: Plan) -> None:
    from pipeline.plan.estimate import total  # noqa: PLC0415
    from pipeline.run.folder import settings_of, store_of  # noqa: PLC0415
    from pipeline.run.status import to_do  # noqa: PLC0415

    table = Table(title=f"Plan {made.id[:12]} in {made.output}/plan", show_header=False, title_justify="left")
    spans = f"{made.periods[0].start:%Y-%m-%d} to {made.periods[-1].end:%Y-%m-%d}"
    rows = [
        ("area", f"{made.area.km2:,.1f} km2"),
        (
            "tiles",
            f"{len(made.tasks)} of {made.grid.tile_px} px, {sum(len(t.blocks) for t in made.tasks)} blocks of 256 px",
        ),
        ("dates", f"{spans}, {len(made.periods)} periods" + _empty(made)),
        ("candidate scenes", _scenes_line(made)),
        ("model", _model_line(made)),
        ("lattice", f"{made.grid.stitch}: {made.grid.summary}"),
        ("numerics", _numerics_line(made)),
        ("calibration", made.calibration.hash[:12] + (" (provisional)" if made.calibration.provisional else "")),
    ]
    if settings_of(made).store.path:
        rows.append(("store", store_of(made)))
    left = to_do(made)
    if len(left) < len(made.tasks):
        rows.append(("committed already", f"{len(made.tasks) - len(left)} tiles; the figures below are for the rest"))
    rows += _estimate_rows(total([t.estimate for t in left]), device=made.numerics.device)
    for label, value in rows:
        table.add_row(label, value)
    out.print(table, highlight=False)


def _empty(made: Plan) -> str:
    if not made.empty_periods:
        return ""
    names = ", ".join(f"{made.periods[i].start:%Y-%m-%d}" for i in made.empty_periods)
    return f"; no scene in the period(s) starting {names}: recorded as missing, the rest goes on"


def _scenes_line(made: Plan) -> str:
    """How many scenes of which sensor may be read."""
    counts = Counter(scene.sensor for scene in made.scenes)
    return ", ".join(f"{counts[name]} {name}" for name in SENSOR_ORDER if counts[name]) or "none"


def _model_line(made: Plan) -> str:
    card = made.model
    label = "" if card.trained else "  UNTRAINED random weights"
    return f"OlmoEarth {card.version} {card.size}, {card.dims} dims, {card.sha256[:12]}{label}"


def _numerics_line(made: Plan) -> str:
    n = made.numerics
    return f"{n.device} {n.device_name}, {n.dtype}, {'compiled' if n.compiled else 'eager'}, batch {n.batch_windows}"


def _estimate_rows(estimate: Estimate, *, device: str) -> list[tuple[str, str]]:
    unit = "GPU" if device == "cuda" else "CPU core"
    usd = "unknown (set account.instance)" if estimate.usd is None else f"{estimate.usd:,.4f} USD"
    return [
        ("tokens", f"{estimate.tokens:,} in {estimate.windows:,} windows"),
        ("to read, to write", f"{size_text(estimate.bytes_read)}, {size_text(estimate.bytes_written)}"),
        ("peak memory", size_text(estimate.peak_bytes)),
        (f"{unit} time", f"{estimate.device_s:,.1f} s"),
        ("cost", usd),
    ]


@app.command(
    epilog="Examples: earthpress run zurich   |   earthpress run --aoi canton.gpkg --start 2024-04-01 --end 2024-09-28 "
    "--model ./olmoearth-nano --output zurich"
)
def run(
    folder: Annotated[str | None, typer.Argument(metavar="[OUTPUT]", help="Folder that holds a plan.")] = None,
    bbox: BBOX = None,
    aoi: AOI = None,
    start: START = None,
    end: END = None,
    config: CONFIG = None,
    set_: SET = None,
    output: OUTPUT = None,
    model: MODEL = None,
    catalog: CATALOG = None,
    as_json: JSON = False,
) -> None:
    """Compute what a plan still lacks: embeddings, maps, pictures, receipts, ledger. Safe to stop and run again."""
    from pipeline.account.meter import process_age_s  # noqa: PLC0415
    from pipeline.plan.planner import load_plan  # noqa: PLC0415

    if folder is not None and output is not None:
        raise InvalidInputError(f"give the folder once: {folder} or --output {output}")
    given = (bbox, aoi, start, end, config, set_, model, catalog)
    place = folder or output
    if place is not None and not any(given):
        made = load_plan(place)
    else:
        made = api.plan(
            _settings(config, set_, catalog, bbox=bbox, aoi=aoi, start=start, end=end, output=place, model=model),
            note=_note,
        )
        if not as_json:
            _print_plan(made)
    outcome = api.run(made, progress=progress_printer(), signals=True, lead_s=process_age_s())
    if as_json:
        print(json.dumps(outcome.to_json(), indent=2))
    else:
        out.print(outcome.text(), highlight=False)
    raise typer.Exit(outcome.exit_code)


def progress_printer() -> Callable[[Progress], None]:
    """A progress bar on a terminal, plain lines elsewhere."""
    return _bar() if err.is_terminal else _lines()


def _lines() -> Callable[[Progress], None]:
    last = [0.0]

    def show(p: Progress) -> None:
        due = p.text or p.done == p.total or time.monotonic() - last[0] >= 1.0
        if not due:
            return
        last[0] = time.monotonic()
        err.print(p.text or p.line(), highlight=False, soft_wrap=True, markup=False)

    return show


def _bar() -> Callable[[Progress], None]:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn  # noqa: PLC0415
    from rich.progress import Progress as Bar  # noqa: PLC0415

    bar = Bar(
        TextColumn("tiles"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
        console=err,
    )
    task = bar.add_task("", total=None, rate="")
    atexit.register(bar.stop)  # an error in the middle must give the cursor back

    def show(p: Progress) -> None:
        if p.total and not bar.live.is_started and p.done < p.total:
            bar.start()
        bar.update(task, total=p.total or None, completed=p.done, rate=p.rate(), description=p.text or p.tile_id)
        if p.total and p.done >= p.total:
            bar.stop()

    return show


@app.command(epilog="Example: earthpress status zurich --json")
def status(folder: FOLDER, as_json: JSON = False) -> None:
    """Tell which tiles are done, pending, degraded or failed, and why."""
    from pipeline.run.folder import output_of  # noqa: PLC0415
    from pipeline.run.status import tile_status  # noqa: PLC0415

    rows = tile_status(output_of(folder))
    if as_json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
        return
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.state] = counts.get(row.state, 0) + 1
    out.print(", ".join(f"{n} {state}" for state, n in sorted(counts.items())), highlight=False)
    table = Table("tile", "state", "attempts since commit", Column("reason", overflow="fold"))
    for row in rows:
        if row.state != "done" or len(rows) <= 40:
            table.add_row(row.tile_id, row.state, str(row.attempts), _escape(row.reason))
    out.print(table, highlight=False)


@app.command(epilog="Example: earthpress report zurich --json > cost.json")
def report(folder: FOLDER, as_json: JSON = False) -> None:
    """Print device-hours, cost, bytes and estimate against actual; write report.html again."""
    from pipeline.account.report import tables, to_json  # noqa: PLC0415
    from pipeline.run.folder import output_of  # noqa: PLC0415
    from pipeline.run.publish import publish  # noqa: PLC0415
    from pipeline.run.summary import summarise  # noqa: PLC0415

    summary = summarise(output_of(folder))
    if as_json:
        print(to_json(summary))
        return
    for table in tables(summary):
        out.print(table, highlight=False)
    out.print(f"report: {publish(output_of(folder)).page}", highlight=False)


@app.command(epilog="Example: earthpress preview zurich")
def preview(folder: FOLDER, as_json: JSON = False) -> None:
    """Make the pictures of what is committed so far, and report.html: embeddings, true colours, maps, observations."""
    from pipeline.plan.planner import load_plan  # noqa: PLC0415
    from pipeline.run.folder import output_of  # noqa: PLC0415
    from pipeline.run.publish import publish  # noqa: PLC0415
    from pipeline.run.quicklooks import missing  # noqa: PLC0415

    place = output_of(folder)
    made = publish(place)
    lacking = missing(load_plan(place))
    if as_json:
        print(json.dumps(made.to_json() | {"missing": lacking}, indent=2))
        return
    for line in made.lines():
        out.print(line, highlight=False, soft_wrap=True)
    for text in lacking:
        err.print(f"[yellow]note:[/] {_escape(text)}", highlight=False, soft_wrap=True)


@probe_app.command(
    "fit", epilog="Example: earthpress probe fit zurich labels.geojson --column class --output crops.probe.json"
)
def probe_fit(
    store: Annotated[str, typer.Argument(metavar="STORE", help="Output folder or store.zarr.")],
    labels: Annotated[str, typer.Argument(metavar="LABELS", help="Vector file, GeoParquet, or CSV with lon, lat.")],
    column: Annotated[str, typer.Option("--column", metavar="NAME", help="Column that holds the class or number.")],
    regression: Annotated[
        bool, typer.Option("--regression", help="The column holds a quantity (height, biomass): fit ridge regression.")
    ] = False,
    units: Annotated[str, typer.Option(metavar="UNIT", help="Unit of the quantity, e.g. m; goes into the maps.")] = "",
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE", help="Where to save the probe.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of sampling and folds.")] = 0,
    as_json: JSON = False,
) -> None:
    """Fit logistic or ridge regression on labelled points or polygons, validated by polygon and place."""
    from pipeline.run.heads import fit_probe, fit_regressor  # noqa: PLC0415

    if units and not regression:
        raise InvalidInputError(f"--units {units} belongs to a quantity: use it with --regression")
    fitted: ProbeReport | RidgeReport
    if regression:
        _, fitted, path = fit_regressor(store, labels, column=column, units=units, output=output, seed=seed)
    else:
        _, fitted, path = fit_probe(store, labels, column=column, output=output, seed=seed)
    if as_json:
        print(fitted.to_json())
    else:
        out.print(fitted.table(), highlight=False)
        out.print(f"{fitted.headline()}\nsaved {path}", highlight=False)


@app.command("map", epilog="Example: earthpress map zurich --head crops.probe.json")
def map_(
    store: Annotated[str, typer.Argument(metavar="STORE", help="Output folder or store.zarr.")],
    head: Annotated[str, typer.Option("--head", metavar="PROBE", help="File written by 'probe fit'.")],
    name: Annotated[str | None, typer.Option(help="Name of the map; default: the probe's file name.")] = None,
    probability: Annotated[bool, typer.Option("--probability", help="A band per class: its probability, %.")] = False,
    confidence: Annotated[
        bool, typer.Option("--confidence", help="A band: how far the best class is ahead of the second, %.")
    ] = False,
    as_json: JSON = False,
) -> None:
    """Map a store's embeddings: classes with colours and names, or float32 numbers of a regression, as GeoTIFF.

    Instability needs the windows: only maps of the same pass have it (maps: instability: true).
    """
    from pipeline.run.heads import map_store  # noqa: PLC0415
    from pipeline.run.map_layers import CONFIDENCE, PROBABILITY  # noqa: PLC0415

    wanted = {PROBABILITY: probability, CONFIDENCE: confidence}
    bands = tuple(band for band, asked in wanted.items() if asked)
    made = map_store(store, head, name=name, bands=bands, progress=progress_printer())
    if as_json:
        print(json.dumps(made.to_json(), indent=2))
    else:
        for line in made.lines():
            out.print(line, highlight=False, soft_wrap=True)


@app.command(
    epilog="Examples: earthpress model random:v1.2-tiny:0 --set encode.patch_px=8   |   earthpress model fetch "
    "allenai/OlmoEarth-v1-Nano"
)
def model(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL | fetch MODEL",
            help="Folder, weights file, Hugging Face id (owner/name@revision) or random:v1.2-nano:0; after 'fetch': an "
            "id whose files are brought into the local cache, so that a run needs no network.",
        ),
    ],
    config: CONFIG = None,
    set_: SET = None,
    as_json: JSON = False,
) -> None:
    """Show a model's card: what it is, what it costs per km2, and whether it runs correctly here (start-up gate)."""
    from pipeline.run.inspect import fetch_model, inspect_model  # noqa: PLC0415

    fetch = names[0] == "fetch"
    if fetch and (config or set_):
        raise InvalidInputError("'model fetch' only fetches: --config and --set mean nothing to it")
    if len(names) != (2 if fetch else 1):
        raise InvalidInputError(f"one model, please: earthpress model MODEL, or earthpress model fetch ID; got {names}")
    rows = fetch_model(names[1]) if fetch else inspect_model(names[0], load(config, overrides=set_ or []))
    if as_json:
        _print_rows(rows, as_json=True, title="")
        return
    long = {label: value for label, value in rows if "\n" in str(value)}  # the table of windows needs the whole width
    _print_rows(tuple(row for row in rows if row[0] not in long), as_json=False, title=f"Model {names[-1]}")
    for label, value in long.items():
        out.print(f"{label}: {value}", highlight=False, soft_wrap=True, markup=False)


MEASURED = Annotated[str, typer.Argument(metavar="MODEL", help="As for 'earthpress model'.")]
PATCH = Annotated[int, typer.Option("--patch-px", metavar="PX", help="Side of a token: encode.patch_px.")]
PERIODS = Annotated[int, typer.Option("--periods", metavar="N", help="Time steps; a plan uses what has as many.")]
SENSORS = Annotated[str, typer.Option("--sensors", metavar="S,S", help="sentinel2_l2a, sentinel1, landsat.")]
VECTOR = Annotated[str, typer.Option("--vector", metavar="NAME", help="Vector that is written: encode.output.")]
SCALES = Annotated[
    str | None,
    typer.Option(
        "--calibration",
        metavar="FILE",
        help="Calibration file that the result is added to; default: that of --output, or a provisional one.",
    ),
]


@app.command(epilog="Example: earthpress seams ./olmoearth-nano --patch-px 4 --periods 6 --output nano-p4.json")
def seams(
    model_: MEASURED,
    patch_px: PATCH = 4,
    periods: PERIODS = 6,
    window_px: Annotated[str, typer.Option(metavar="PX|auto", help="Side of the windows; auto: as a plan.")] = "auto",
    overlap_px: Annotated[
        str, typer.Option(metavar="PX|auto", help="Overlap of the centre crops that are compared; auto: two tokens.")
    ] = "auto",
    sensors: SENSORS = "sentinel2_l2a",
    vector: VECTOR = "auto",
    target: Annotated[float, typer.Option(help="Step at a seam over the natural one that is wanted.")] = 1.05,
    calibration: SCALES = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE", help="Calibration file to write, for plans to use.")
    ] = None,
    as_json: JSON = False,
) -> None:
    """Measure the seam that a model's windows leave, and the overlap that hides it (encode.ramp=auto reads that)."""
    from pipeline.run.measure import Shape, measure_seams  # noqa: PLC0415

    found = measure_seams(
        model_,
        Shape.of(patch_px=patch_px, periods=periods, sensors=sensors, output=vector),
        window_px=_pixels("--window-px", window_px),
        overlap_px=_pixels("--overlap-px", overlap_px),
        target=target,
        calibration=calibration,
        output=output,
        note=_note,
    )
    _print_measured(found, ((f"Seams of {found.model}", found.table()),), as_json=as_json)
    if found.path and not as_json:
        out.print(f"written: {_escape(found.path)} (store.calibration)", highlight=False, soft_wrap=True)


@app.command(epilog="Example: earthpress reach ./olmoearth-nano --window-px 64,128 --output nano-reach")
def reach(
    model_: MEASURED,
    patch_px: PATCH = 4,
    periods: PERIODS = 6,
    window_px: Annotated[
        str, typer.Option(metavar="PX,PX|auto", help="Sides of windows to look into; auto: 16 tokens.")
    ] = "auto",
    box_px: Annotated[
        str, typer.Option(metavar="PX|auto", help="Boxes of neighbourhood attention; auto: as a plan.")
    ] = "auto",
    sensors: SENSORS = "sentinel2_l2a",
    vector: VECTOR = "auto",
    calibration: SCALES = None,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="DIR", help="Folder for reach.json, reach.png and calibration.json."),
    ] = None,
    as_json: JSON = False,
) -> None:
    """Measure how far the encoder looks, and the halo that domains need (encode.halo_px=auto reads that)."""
    from pipeline.run.measure import Shape  # noqa: PLC0415
    from pipeline.run.measure_reach import measure_reach  # noqa: PLC0415

    sides = (_pixels("--window-px", part) for part in window_px.split(","))
    found = measure_reach(
        model_,
        Shape.of(patch_px=patch_px, periods=periods, sensors=sensors, output=vector),
        windows_px=tuple(side for side in sides if side is not None),
        box_px=_pixels("--box-px", box_px),
        calibration=calibration,
        output=output,
        note=_note,
    )
    _print_measured(found, found.tables(), as_json=as_json)
    for path in () if as_json else found.paths:
        out.print(f"written: {_escape(path)}", highlight=False, soft_wrap=True)


def _pixels(option: str, text: str) -> int | None:
    """A side in pixels; None for ``auto``."""
    if text.strip() == "auto":
        return None
    if not text.strip().isdecimal() or int(text) < 1:
        raise InvalidInputError(f"{option} {text!r} is not a number of pixels and not 'auto'")
    return int(text)


def _grid_table(title: str, rows: tuple[tuple[str, ...], ...]) -> Table:
    table = Table(*rows[0], title=title, title_justify="left")
    for row in rows[1:]:
        table.add_row(*row)
    return table


def _print_measured(
    found: Seams | Reach, tables: tuple[tuple[str, tuple[tuple[str, ...], ...]], ...], *, as_json: bool
) -> None:
    """What a measuring command found: JSON, or tables, the finding in words and what makes it less."""
    if as_json:
        print(json.dumps(found.to_json(), indent=2))
        return
    for title, rows in tables:
        out.print(_grid_table(title, rows), highlight=False)
    out.print(_escape(found.sentence), highlight=False, soft_wrap=True)
    for text in found.warnings:
        err.print(f"[yellow]warning:[/] {_escape(text)}", highlight=False, soft_wrap=True)


@app.command(epilog="Example: earthpress doctor --json")
def doctor(as_json: JSON = False) -> None:
    """Tell what is installed, which device would be used, and what would be slow or missing."""
    from pipeline.run.inspect import doctor as examine  # noqa: PLC0415

    _print_rows(examine(), as_json=as_json, title="earthpress doctor")


def _print_rows(rows: tuple[tuple[str, Any], ...], *, as_json: bool, title: str) -> None:
    if as_json:
        print(json.dumps(dict(rows), indent=2))
        return
    table = Table(title=title, show_header=False, title_justify="left")
    for label, value in rows:
        table.add_row(label, _escape(str(value)))
    out.print(table, highlight=False)


@app.command(epilog="Example: earthpress demo --output demo")
def demo(
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="DIR", help="Folder for sample and results.")
    ] = "demo",
    as_json: JSON = False,
) -> None:
    """Run everything offline on a simulated sample: plan, run, probe, map, report."""
    from pipeline.run.demo import run_demo  # noqa: PLC0415

    made = run_demo(Path(output), note=_note, progress=progress_printer())
    if as_json:
        print(json.dumps(made.to_json(), indent=2))
    else:
        for line in made.lines():
            out.print(line, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
