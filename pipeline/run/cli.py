"""Commands about what a run left: parse, call one function, print. They join the commands of ``pipeline/cli.py``."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from pipeline.config import load

outputs_app = typer.Typer(no_args_is_help=True)
"""The commands of this file; the main command line takes them in without a name of their own."""

out = Console()
err = Console(stderr=True)

FOLDER = Annotated[str, typer.Argument(metavar="OUTPUT", help="Output folder of a plan or run.")]
JSON = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


def note(text: str) -> None:
    """A line before a slow step."""
    err.print(f"[dim]{escape(text)} ...[/]", highlight=False, soft_wrap=True)


def escape(text: str) -> str:
    """Text that rich prints as it is."""
    return text.replace("[", r"\[")


@outputs_app.command(
    epilog="Example: earthpress calibrate --config my.yaml --places places.geojson --output nano-p4.json"
)
def calibrate(
    places: Annotated[
        str,
        typer.Option(
            "--places",
            metavar="FILE",
            help="Points or polygons (any vector format, or CSV with lon, lat); simulated: the packaged sample.",
        ),
    ],
    output: Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="Calibration file (JSON) to write.")],
    config: Annotated[
        str | None, typer.Option("--config", metavar="FILE", help="YAML settings; see configs/example.yaml.")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", metavar="MODEL", help="As for 'earthpress plan'.")] = None,
    catalog: Annotated[
        str | None, typer.Option("--catalog", metavar="CATALOG", help="As for 'earthpress plan'.")
    ] = None,
    start: Annotated[str | None, typer.Option("--start", metavar="DATE", help="First day, e.g. 2024-04-01.")] = None,
    end: Annotated[str | None, typer.Option("--end", metavar="DATE", help="Day after the last one.")] = None,
    quantiser: Annotated[
        str | None,
        typer.Option("--quantiser", metavar="NAME", help="linear, pca:64, ...; default: store.quantiser."),
    ] = None,
    per_place: Annotated[int, typer.Option(min=1, help="Blocks of 2.56 km per place, at most.")] = 1,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one setting; repeatable.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a calibration file; its measured seams are kept.")
    ] = False,
    as_json: JSON = False,
) -> None:
    """Make the scales of a store from many places: give it places that are as different as where it will be used.

    Dates, inputs and encode are those of a plan; the area is the places'. The file is named in store.calibration.
    """
    from pipeline.run.calibrate import calibrate as make  # noqa: PLC0415

    given = (("inputs.catalog", catalog), ("store.quantiser", quantiser))
    settings = load(
        config,
        overrides=[*(set_ or []), *(f"{key}={json.dumps(value)}" for key, value in given if value is not None)],
        values={"model": model, "start": start, "end": end},
    )
    made = make(settings, places, output=output, per_place=per_place, overwrite=overwrite, note=note)
    if as_json:
        print(json.dumps(made.to_json(), indent=2))
        return
    table = Table(*made.table[0], title=f"Calibration of {escape(made.model)}", title_justify="left")
    for row in made.table[1:]:
        table.add_row(*map(escape, row))
    out.print(table, highlight=False)
    for line in made.lines:
        out.print(escape(line), highlight=False, soft_wrap=True)
    for text in made.warnings:
        err.print(f"[yellow]warning:[/] {escape(text)}", highlight=False, soft_wrap=True)


@outputs_app.command(epilog="Example: earthpress finalise zurich --mosaic auto")
def finalise(
    folder: FOLDER,
    mosaic: Annotated[
        str | None,
        typer.Option(
            "--mosaic",
            metavar="CRS",
            help="Also one GeoTIFF of all zones per map, e.g. in EPSG:3035; auto: the map's own zone, or for several "
            "zones EPSG:3035 in Europe and EPSG:4326 elsewhere.",
        ),
    ] = None,
    only: Annotated[str | None, typer.Option("--map", metavar="NAME", help="Only this map.")] = None,
    resolution: Annotated[
        float | None,
        typer.Option("--resolution", metavar="METRES", help="Pixel of the mosaic; default: that of the map."),
    ] = None,
    as_json: JSON = False,
) -> None:
    """Bring the map files up to date and check them: GeoTIFFs, one VRT per zone, QGIS styles, class areas, mosaics.

    A run does this at its end, without checking files and without mosaics. Called again it changes nothing.
    """
    from pipeline.run.finalise import finalise as make  # noqa: PLC0415
    from pipeline.run.folder import output_of  # noqa: PLC0415
    from pipeline.run.publish import refresh  # noqa: PLC0415

    note("checking the map files")
    made = make(folder, crs=mosaic, only=only, resolution_m=resolution)
    refresh(output_of(folder), made)
    if as_json:
        print(json.dumps(made.to_json(), indent=2))
        return
    for line in made.lines():
        out.print(escape(line), highlight=False, soft_wrap=True)


@outputs_app.command(epilog="Examples: earthpress serve zurich   |   earthpress serve maps/crops.tif --port 9000")
def serve(
    places: Annotated[
        list[str],
        typer.Argument(metavar="OUTPUT | STORE | FILE.tif ...", help="Folders of runs, stores, local GeoTIFFs."),
    ],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at; 0: any that is free.")] = 8765,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address to listen at; any but the default opens it to others.")
    ] = "127.0.0.1",
    as_json: JSON = False,
) -> None:
    """Show stores and maps in a browser, and as XYZ tiles for QGIS, until Ctrl-C. Writes nothing."""
    from pipeline.run.serve import is_loopback, server_of  # noqa: PLC0415

    if not is_loopback(host):
        text = f"everybody who reaches {host} can look at these layers: there is no password"
        err.print(f"[yellow]warning:[/] {escape(text)}", highlight=False, soft_wrap=True)
    with server_of(places, host=host, port=port) as server:
        if as_json:
            print(json.dumps({"url": server.url, "layers": sorted(server.layers)}), flush=True)
        else:
            line = f"{server.url} shows {len(server.layers)} layers; Ctrl-C ends it"
            out.print(line, highlight=False, soft_wrap=True)
            for layer in server.layers.values():
                line = f"{server.url}{layer.info.name}/{{z}}/{{x}}/{{y}}.png"
                out.print(escape(line), highlight=False, soft_wrap=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            err.print("stopped")


@outputs_app.command(epilog="Examples: earthpress inspect zurich   |   earthpress inspect s3://bucket/zurich.zarr")
def inspect(
    store: Annotated[
        str, typer.Argument(metavar="STORE", help="Output folder, store, one zone of it (.../utm31), or a URL.")
    ],
    as_json: JSON = False,
) -> None:
    """Say what an embedding store is: ground, dates, model, quantiser, size, and how to decode it. Needs no plan."""
    from pipeline.run.inspect_store import inspect_store  # noqa: PLC0415

    found = inspect_store(store)
    if as_json:
        print(json.dumps(found.to_json(), indent=2))
        return
    table = Table(title=f"Store {escape(found.place)}", show_header=False, title_justify="left")
    for label, text in found.rows():
        table.add_row(label, escape(text))
    out.print(table, highlight=False)
    for text in found.warnings:
        err.print(f"[yellow]warning:[/] {escape(text)}", highlight=False, soft_wrap=True)


@outputs_app.command(
    epilog="Examples: earthpress export zurich parquet --cell 4   |   earthpress export zurich pca --components 8   "
    "|   earthpress export zurich polygons --map crops --simplify 20"
)
def export(
    what: Annotated[
        str,
        typer.Argument(metavar="OUTPUT | STORE", help="Output folder, store, URL; for polygons also a class GeoTIFF."),
    ],
    form: Annotated[
        str,
        typer.Argument(
            metavar="FORM",
            help="cog (bands), pca (principal components as GeoTIFF), parquet (GeoParquet, one row per vector), npy, "
            "polygons (of a class map).",
        ),
    ],
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="PATH", help="File or folder; default: exports/ in the output."),
    ] = None,
    bbox: Annotated[str | None, typer.Option("--bbox", metavar="W,S,E,N", help="Only this part, degrees.")] = None,
    date: Annotated[
        str | None,
        typer.Option("--date", metavar="DATE", help="A day of the step; default: the output's, else the newest."),
    ] = None,
    zone: Annotated[int | None, typer.Option("--zone", help="Only this UTM zone.")] = None,
    bands: Annotated[str | None, typer.Option("--bands", metavar="0,5,10-19", help="Only these bands.")] = None,
    components: Annotated[int | None, typer.Option("--components", help="pca: how many; default 3.")] = None,
    cell: Annotated[
        int | None, typer.Option("--cell", metavar="N", help="parquet, npy: means over N x N vectors.")
    ] = None,
    values: Annotated[
        bool, typer.Option("--values", help="Float values instead of int8 codes with their scales.")
    ] = False,
    squares: Annotated[bool, typer.Option("--squares", help="parquet: outlines instead of points.")] = False,
    map_: Annotated[str | None, typer.Option("--map", metavar="NAME", help="polygons: which map.")] = None,
    simplify: Annotated[
        float | None, typer.Option("--simplify", metavar="METRES", help="polygons: simplify; neighbours stay joined.")
    ] = None,
    crs: Annotated[
        str | None, typer.Option("--crs", metavar="CRS", help="polygons: of the file, e.g. EPSG:3035.")
    ] = None,
    as_json: JSON = False,
) -> None:
    """Take vectors or a map out of a store, for tools that read no Zarr."""
    from pipeline.run import export as exports  # noqa: PLC0415

    options = {
        "--bands": bands, "--components": components, "--cell": cell, "--values": values or None,
        "--squares": squares or None, "--map": map_, "--simplify": simplify, "--crs": crs, "--date": date,
        "--zone": zone,
    }  # fmt: skip
    exports.refuse_useless(form, [name for name, value in options.items() if value is not None])
    area = exports.bbox_of(bbox)
    if form == "polygons":
        note("making polygons")
        made = exports.export_polygons(what, name=map_, to=output, bbox=area, simplify_m=simplify or 0.0, crs=crs or "")
    else:
        request = exports.request_of(
            form,
            bbox=area,
            zone=zone,
            on=date,
            bands=bands,
            components=components,
            cell_px=cell,
            values=values,
            shape="square" if squares else "point",
        )
        made = exports.export(what, request, to=output, note=note)
    if as_json:
        print(json.dumps(made.to_json(), indent=2))
        return
    for line in made.lines():
        out.print(escape(line), highlight=False, soft_wrap=True)
