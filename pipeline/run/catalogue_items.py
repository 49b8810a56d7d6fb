"""The items of the catalogue: one per zone of the store at the plan's dates, one per file of every map."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.run import catalogue_facts as facts
from pipeline.run import catalogue_sources as scenes
from pipeline.run import ground
from pipeline.run.folder import credit_of, settings_of
from pipeline.types import PIXEL_M, content_hash
from pipeline.write import qml, stac, store
from pipeline.write import stac_fields as extensions
from pipeline.write.stac_model import UNTRAINED

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pipeline.run.published import Published
    from pipeline.types import Box, Plan, Receipt, Tile

    Committed = tuple[Tile, Receipt]

CONFIGURATION = "configuration.json"
GROUP = re.compile(r"(?P<name>.+)_utm(?P<zone>\d\d)_r-?\d+_c-?\d+")
"""Stem of the file of one group of a map, see ``class_maps``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What several items say.

    Attributes:
        id: Of the collection.
        model: Id of the item of the model.
        plan: The plan.
        made: Where everything lies.
        tiles: What is committed.
        works: What the ledger knows.
        scenes: Of the plan.
        properties: Of every item.
        seams: (key, value) properties of the seam scores.
        root: Folder of the catalogue.
    """

    id: str
    model: str
    plan: Plan
    made: Published
    tiles: Sequence[Committed]
    works: facts.Works
    scenes: scenes.Scenes
    properties: dict[str, Any]
    seams: dict[str, Any]
    root: Path

    @property
    def place(self) -> str:
        """Folder or URL of the store; a URL without user and query."""
        return facts.public_url(self.made.store) if "://" in self.made.store else self.made.store


def zone_item(shared: Shared, box: Box) -> tuple[stac.ItemContent, tuple[str, bytes]]:
    """(item of one zone at the plan's dates, the file that lists its scenes)."""
    plan = shared.plan
    start, end = plan.periods[0].start, plan.periods[-1].end
    name = f"{shared.id}-utm{box.zone:02d}-{start:%Y%m%d}-{end:%Y%m%d}"
    tiles = [(tile, receipt) for tile, receipt in shared.tiles if tile.zone == box.zone]
    receipts = [receipt for _, receipt in tiles]
    sources = shared.scenes.used(receipts)
    listed = scenes.sidecar(name, sources)
    array = f"{shared.place}/utm{box.zone:02d}"
    quantised = extensions.quantization(
        plan.calibration, about=stac.relative(f"{array}/embeddings/zarr.json", shared.root)
    )
    properties = {
        **_made_by(shared, tiles, what=f"Vectors of OlmoEarth {plan.model.version} {plan.model.size}"),
        **shared.seams,
        "title": f"Embeddings, UTM zone {box.zone}, {start:%Y-%m-%d} to {end:%Y-%m-%d}",
        "earthpress:source_scenes": len(sources),
        "emb:runtime_parameters": _runtime(plan),
        "emb:energy": facts.energy(plan, shared.works, receipts),
        **({"emb:quantization": quantised} if quantised else {}),
    }
    item = stac.ItemContent(
        id=name,
        box=box,
        start=start,
        end=end,
        assets=(_embeddings(shared, array, box.zone), *_looks(shared, box.zone), *further(shared)),
        properties=tuple(_labelled(plan, properties).items()),
        links=(
            *scenes.links_of(sources),
            stac.Link(rel="emb:source-data", href=f"./{listed[0]}", media_type=stac.JSON, title="Scenes used"),
            stac.Link(rel="emb:model", href=f"./{shared.model}.json", media_type=stac.GEOJSON, title="Model"),
        ),
        extensions=(extensions.PROJECTION, extensions.PROCESSING, extensions.EMBEDDINGS),
    )
    return item, listed


def map_items(shared: Shared, zones: dict[int, str]) -> Iterator[tuple[stac.ItemContent, str, extensions.Raster]]:
    """(item, name of the map, its raster) of the file of every group of every map."""
    plan, squares = shared.plan, _by_square(shared.tiles)
    for path in sorted(map(Path, shared.made.maps)):
        found = GROUP.fullmatch(path.stem)
        if found is None or path.suffix != ".tif":
            continue
        raster = extensions.raster_of(path)
        near = list(_near(squares, raster.box))
        name, zone = found["name"], int(found["zone"])
        properties = {
            **_made_by(
                shared, near, what=f"Map {name} by a probe on vectors of {shared.properties['earthpress:model']}"
            ),
            "title": f"Map {name}, UTM zone {zone}",
            "earthpress:map": name,
        }
        probe = raster.provenance().get("probe")
        if isinstance(probe, str):
            properties["earthpress:probe"] = probe
        above = [
            stac.Link(rel="derived_from", href=f"./{zones[zone]}.json", media_type=stac.GEOJSON, title="Embeddings")
        ]
        item = stac.ItemContent(
            id=f"{shared.id}-{path.stem}",
            box=raster.box,
            start=plan.periods[0].start,
            end=plan.periods[-1].end,
            assets=(_map_asset(name, path, raster), *_beside_map(shared, name, zone, path)),
            properties=tuple(_labelled(plan, properties).items()),
            links=(
                *(above if zone in zones else ()),
                *scenes.links_of(shared.scenes.used(receipt for _, receipt in near)),
            ),
            extensions=tuple(dict.fromkeys((extensions.PROJECTION, extensions.PROCESSING, *raster.extensions))),
        )
        yield item, name, raster


def _made_by(shared: Shared, tiles: Sequence[Committed], *, what: str) -> dict[str, Any]:
    """How something was made, out of the tiles that it shows."""
    plan, receipts = shared.plan, [receipt for _, receipt in tiles]
    when = facts.last_end(shared.works, receipts)
    degraded = sum(receipt.status == "degraded" for receipt in receipts)
    text = (
        f"{what}, {len(plan.periods)} periods of {', '.join(settings_of(plan).inputs.sensors)}; {credit_of(plan)}."
        + (f" {degraded} of {len(receipts)} tiles are degraded: a scene could not be read." if degraded else "")
    )
    return {
        **shared.properties,
        "processing:lineage": text,
        "earthpress:fingerprint": content_hash(sorted([tile.id, receipt.fingerprint] for tile, receipt in tiles)),
        "earthpress:tiles": len(receipts),
        "earthpress:degraded_tiles": degraded,
        "earthpress:valid_px": sum(receipt.valid_px for receipt in receipts),
        **({"processing:datetime": when} if when else {}),
    }


def _labelled(plan: Plan, properties: dict[str, Any]) -> dict[str, Any]:
    """The properties, with the warning in the text that people read where the weights are untrained."""
    if plan.model.trained:
        return properties
    return properties | {"title": f"UNTRAINED: {properties['title']}", "description": UNTRAINED}


def _embeddings(shared: Shared, array: str, zone: int) -> stac.Made:
    """The group of a zone: its arrays lie in the plane of EPSG:326NN, also in the south, and may be larger."""
    extent = next(box for box in store.zones(shared.made.store) if box.zone == zone)
    plan = shared.plan
    return stac.Made(
        key="embeddings",
        path=array,
        media_type=stac.ZARR,
        roles=("data",),
        title="Embedding store",
        fields=(
            *extensions.data_fields(plan.calibration).items(),
            *extensions.projection(extent, southern=False).items(),
        ),
    )


def _looks(shared: Shared, zone: int) -> Iterator[stac.Made]:
    """Pictures of the store over one zone."""
    made = shared.made
    for path in map(Path, (*made.quicklooks, *made.true_colours, *made.observations)):
        if re.search(rf"_utm{zone:02d}(?!.*_utm\d\d)", path.stem) and path.suffix in (".tif", ".png"):
            cog = path.suffix == ".tif"
            yield stac.Made(
                key=path.stem if cog else f"{path.stem}_png",
                path=str(path),
                media_type=stac.COG if cog else stac.PNG,
                roles=("overview", "visual") if cog else ("overview",),
                title=path.stem.replace("_", " "),
                fields=extensions.picture_fields(path) if cog else (),
            )


def further(shared: Shared) -> Iterator[stac.Made]:
    """Files of the whole output that every item names."""
    made = shared.made
    if made.seams:
        yield stac.Made(key="seams", path=made.seams, media_type=stac.JSON, roles=("metadata",), title="Seam scores")
    yield stac.Made(key="report", path=made.page, media_type="text/html", roles=("metadata",), title="Report")
    yield stac.Made(
        key="configuration",
        path=str(shared.root / CONFIGURATION),
        media_type=stac.JSON,
        roles=("metadata",),
        title="Settings",
    )


def _map_asset(name: str, path: Path, raster: extensions.Raster) -> stac.Made:
    return stac.Made(
        key="map", path=str(path), media_type=stac.COG, roles=("data",), title=f"Map {name}", fields=raster.fields
    )


def _beside_map(shared: Shared, name: str, zone: int, path: Path) -> Iterator[stac.Made]:
    """What lies beside the file of a map: style, names, areas, pictures of its zone; only what is there."""
    named = (
        ("style", qml.style_path(path), "text/xml", "Style for QGIS"),
        ("names", path.with_name(f"{path.name}.aux.xml"), "text/xml", "Class names for GDAL and QGIS"),
        ("areas", path.with_name(f"{name}.areas.json"), stac.JSON, "Areas of the classes, of the whole map"),
        ("zone", path.with_name(f"{name}_utm{zone:02d}_all.vrt"), "text/xml", "All files of the zone as one, for GDAL"),
    )
    for key, file, media_type, title in named:
        if file.is_file():
            yield stac.Made(key=key, path=str(file), media_type=media_type, roles=("metadata",), title=title)
    for picture in map(Path, shared.made.pictures):
        shown = re.fullmatch(rf"{re.escape(name)}(?:\.(?P<layer>[^_]+))?_utm{zone:02d}", picture.stem)
        if shown and picture.suffix == ".png":
            key = f"picture-{shown['layer']}" if shown["layer"] else "picture"
            title = f"Picture of the zone{': ' + shown['layer'] if shown['layer'] else ''}"
            yield stac.Made(key=key, path=str(picture), media_type=stac.PNG, roles=("overview",), title=title)
    yield from further(shared)


def _runtime(plan: Plan) -> dict[str, Any]:
    """What the encoder was called with."""
    numerics = {name: value for name, value in asdict(plan.numerics).items() if name != "device_name"}
    inputs = settings_of(plan).inputs
    return {
        **numerics,
        "sensors": list(inputs.sensors),
        "periods": [f"{p.start:%Y-%m-%d}/{p.end:%Y-%m-%d}" for p in plan.periods],
        "output": plan.model.output,
        "patch_px": plan.grid.patch_px,
        "stitch": plan.grid.stitch,
        "window_px": plan.grid.window_px,
        "overlap_px": plan.grid.overlap_px,
        "dense": plan.grid.dense,
        "resampling": inputs.resampling,
    }


def _by_square(tiles: Sequence[Committed]) -> dict[tuple[int, int, int], list[Committed]]:
    """Tiles by (zone, row, col) of the ground square of map files that they lie in: a country has many of both."""
    squares: dict[tuple[int, int, int], list[Committed]] = {}
    for tile, receipt in tiles:
        box = tile.box
        key = tile.zone, box.row // ground.GROUP_PX, box.col // ground.GROUP_PX
        squares.setdefault(key, []).append((tile, receipt))
    return squares


def _near(squares: dict[tuple[int, int, int], list[Committed]], box: Box) -> Iterator[Committed]:
    """The tiles that touch a box."""
    around = box.cover(ground.GROUP_PX * PIXEL_M)
    for row in range(around.row, around.row_stop):
        for col in range(around.col, around.col_stop):
            for tile, receipt in squares.get((box.zone, row, col), ()):
                if tile.box.cover(box.res_m).intersect(box) is not None:
                    yield tile, receipt
