"""The commands ``earthpress bench encoder`` and ``bench loader``: parse, measure, print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from pipeline.errors import InvalidInputError

JSON = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
err = Console(stderr=True)
WIDE = 150
"""Columns of the tables where they do not go to a terminal."""

bench_app = typer.Typer(
    help="Measure on this machine: the encoder's speed, and what feeding it costs.", no_args_is_help=True
)
BENCH_OUTPUT = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        metavar="DIR",
        help="Folder of the tables; default: benchmarks/results in a checkout, or bench.",
    ),
]


@bench_app.command(
    "encoder",
    epilog="Examples: earthpress bench encoder --sizes nano,tiny --compile both   |   earthpress bench encoder "
    "--precisions bf16 --compile on --shapes T1x128/8,T12x64/8 --vs-reference   |   earthpress bench encoder "
    "--versions v1 --sizes nano,tiny,base,large --precisions bf16 --compile on --shapes T1x128/8 --batch 512 --project",
)
def bench_encoder(
    versions: Annotated[str, typer.Option(metavar="V,V", help="v1, v1.1, v1.2, v1.3.")] = "v1.2",
    sizes: Annotated[
        str, typer.Option(metavar="S,S", help="nano, tiny, small, base, large; those that a version has.")
    ] = "nano,tiny,base",
    precisions: Annotated[str, typer.Option(metavar="P,P", help="fp32, fp16, bf16, autocast.")] = "fp32",
    compiled: Annotated[str, typer.Option("--compile", metavar="on|off|both", help="Through torch.compile.")] = "off",
    shapes: Annotated[
        str, typer.Option(metavar="S,S", help="Dates x window / patch, 10 m pixels: T12x64/8.")
    ] = "T1x128/8,T12x64/8",
    batch: Annotated[int, typer.Option(metavar="N", help="Windows per pass; 0: as a run would choose.")] = 0,
    sensors: Annotated[
        str, typer.Option(metavar="S,S", help="What the encoder reads: sentinel2_l2a, sentinel1, landsat.")
    ] = "sentinel2_l2a",
    attention: Annotated[
        str, typer.Option(metavar="KERNEL", help="auto, or one of own, sdpa, flex, flash, efficient, cudnn, math.")
    ] = "auto",
    seconds: Annotated[float, typer.Option(metavar="S", help="Time per row after warming up.")] = 30.0,
    threads: Annotated[
        int, typer.Option(metavar="N", help="torch threads of a pass; a run has encoders of one thread each.")
    ] = 1,
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda", help="Where to measure.")] = "auto",
    vs_reference: Annotated[
        bool, typer.Option("--vs-reference", help="Also take turns with olmoearth-pretrain-minimal and give the ratio.")
    ] = False,
    rival_compile: Annotated[
        str, typer.Option(metavar="on|off|both", help="The reference through torch.compile.")
    ] = "both",
    project: Annotated[
        bool, typer.Option("--project", help="Device-hours and USD a year for 4 billion patches, and for an area.")
    ] = False,
    area_km2: Annotated[float | None, typer.Option(metavar="KM2", help="With --project: an area of yours.")] = None,
    revisits: Annotated[float, typer.Option(metavar="N", help="How often a year it is computed.")] = 1.0,
    usd_per_hour: Annotated[
        float | None, typer.Option(metavar="USD", help="Price of the device (CPU: of --threads cores) per hour.")
    ] = None,
    instance: Annotated[
        str | None, typer.Option(metavar="NAME", help="Row of the price table instead of --usd-per-hour.")
    ] = None,
    overlap: Annotated[
        float, typer.Option(metavar="SHARE", help="Overlap of windows as a share of their side, 0 to below 1.")
    ] = 0.25,
    augmentations: Annotated[
        int, typer.Option(metavar="N", help="Test-time augmentation: passes over every window.")
    ] = 1,
    waiting: Annotated[
        float, typer.Option(metavar="SHARE", help="Share of the time spent waiting for input, see bench loader.")
    ] = 0.0,
    output: BENCH_OUTPUT = None,
    as_json: JSON = False,
) -> None:
    """Measure images, pixels, tokens, km2, FLOP per second, memory, compile time; rows that are there are kept."""
    from pipeline.bench import device as devices  # noqa: PLC0415
    from pipeline.bench import encoder, rival, show  # noqa: PLC0415
    from pipeline.bench.project import Factors  # noqa: PLC0415
    from pipeline.bench.project import project as projected  # noqa: PLC0415
    from pipeline.bench.rows import COMPILE, Request  # noqa: PLC0415
    from pipeline.bench.table import default_folder  # noqa: PLC0415

    request = Request.parse(
        versions=versions, sizes=sizes, precisions=precisions, compiled=compiled, shapes=shapes, batch=batch,
        attention=attention, sensors=sensors,
    )  # fmt: skip
    if rival_compile not in COMPILE:
        raise InvalidInputError(f"--rival-compile is {rival_compile!r}: want on, off or both")
    factors = Factors(overlap=overlap, augmentations=augmentations, waiting=waiting)
    cuda = devices.pick(device).type == "cuda"
    price = _device_price(usd_per_hour, instance, threads=threads, cuda=cuda)
    if vs_reference:
        rival.require()
    common: dict[str, Any] = {
        "device": device, "threads": threads, "seconds": seconds, "note": _note,
        "folder": Path(output) if output else default_folder(),
    }  # fmt: skip
    rows = encoder.bench(request, **common)
    duels = rival.bench(request, rival_compiled=COMPILE[rival_compile], **common) if vs_reference else ()
    ahead = (
        projected(rows, factors=factors, area_km2=area_km2, revisits=revisits, usd_per_hour=price, cuda=cuda)
        if project
        else ()
    )
    if as_json:
        print(json.dumps(show.to_json(encoder=rows, duels=duels, projections=ahead), indent=2))
        return
    for table in (
        show.encoder_table(rows),
        *([show.duel_table(duels)] if duels else []),
        *show.projection_tables(ahead),
    ):
        _out().print(table, highlight=False)


def _device_price(usd_per_hour: float | None, instance: str | None, *, threads: int, cuda: bool) -> float | None:
    from pipeline.account import prices  # noqa: PLC0415
    from pipeline.bench.project import usd_per_device_hour  # noqa: PLC0415

    if instance is None:
        return usd_per_hour
    if usd_per_hour is not None:
        raise InvalidInputError("give the price once: --usd-per-hour or --instance")
    row = prices.load().row(instance)
    return None if row is None else usd_per_device_hour(row, threads=threads, cuda=cuda)


@bench_app.command("loader", epilog="Example: earthpress bench loader zurich --readers 4,16,64 --tiles 16")
def bench_loader(
    folder: Annotated[
        str | None, typer.Argument(metavar="[OUTPUT]", help="Folder of a plan; default: a simulated sample.")
    ] = None,
    readers: Annotated[str, typer.Option(metavar="N,N", help="Numbers of threads that read files.")] = "1,4,16",
    tiles: Annotated[int, typer.Option(metavar="N", help="Tiles of the plan; they are held in memory.")] = 4,
    rounds: Annotated[int, typer.Option(metavar="N", help="Repeats; medians are shown.")] = 3,
    threads: Annotated[int, typer.Option(metavar="N", help="Encoders at once on a CPU; 0: as a run.")] = 0,
    output: BENCH_OUTPUT = None,
    as_json: JSON = False,
) -> None:
    """Compute only, read only, and both at once as a run does: how much of the encoder's speed does feeding cost?"""
    from pipeline.bench import loader, show  # noqa: PLC0415
    from pipeline.bench.rows import words  # noqa: PLC0415
    from pipeline.bench.table import default_folder  # noqa: PLC0415

    try:
        counts = tuple(int(word) for word in words(readers))
    except ValueError:
        raise InvalidInputError(f"--readers {readers!r} is not a list of numbers, e.g. 1,4,16") from None
    rows = loader.bench(
        folder, readers=counts, tiles=tiles, rounds=rounds, threads=threads, note=_note,
        folder=Path(output) if output else default_folder(),
    )  # fmt: skip
    if as_json:
        print(json.dumps(show.to_json(loader=rows), indent=2))
    else:
        _out().print(show.loader_table(rows), highlight=False)


def _note(text: str) -> None:
    err.print(f"[dim]{escape(text)} ...[/]", highlight=False, soft_wrap=True)


def _out() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=WIDE)
