"""What the STAC catalogue says about everything that is committed.

An item per zone and time step of the store (a plan has one time step; outputs that share a store have a catalogue
each, and the ids of their items differ by their dates), an item per map file. What is not committed has no item.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.run import catalogue_facts as facts
from pipeline.run import catalogue_items as items
from pipeline.run import catalogue_sources as scenes
from pipeline.run import ground, seam_report
from pipeline.run.folder import credit_of, settings_of
from pipeline.write import stac
from pipeline.write import stac_fields as extensions
from pipeline.write.stac_model import UNTRAINED, SensorInput, model_item

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.run.published import Published
    from pipeline.types import GridSpec, Plan

PAPER = {
    "doi": "10.48550/arXiv.2511.13655",
    "citation": "OlmoEarth: Stable Latent Image Modeling for Multimodal Earth Observation, arXiv:2511.13655",
}
"""The publication of the models (https://arxiv.org/abs/2511.13655)."""


def catalog_of(plan: Plan, made: Published, seams: seam_report.Seams) -> stac.CatalogContent:
    """What the STAC catalogue says about everything that is committed.

    Raises:
        OutputError: A map cannot be read, or there is no store.
    """
    settings = facts.configuration(plan)
    model = _model(plan)
    shared = _shared(plan, made, seams, settings=settings, model=model.id)
    stored = [items.zone_item(shared, box) for box in ground.extents(plan)]
    maps = list(items.map_items(shared, {item.box.zone: item.id for item, _ in stored if item.box}))
    sidecars = tuple(sidecar for _, sidecar in stored)
    untrained = "" if plan.model.trained else f" {UNTRAINED}"
    return stac.CatalogContent(
        id=shared.id,
        title=("" if plan.model.trained else "UNTRAINED: ") + f"Embeddings {Path(plan.output).resolve().name}",
        description=f"{plan.calibration.quantiser} embeddings ({plan.calibration.dtype}, {plan.calibration.bands} "
        f"dimensions) of OlmoEarth {plan.model.version} {plan.model.size}, one vector per {plan.grid.pixel_m} m, and "
        f"maps made of them; {credit_of(plan)}.{untrained}",
        start=plan.periods[0].start,
        end=plan.periods[-1].end,
        items=(*(item for item, _ in stored), *(item for item, _, _ in maps)),
        keywords=_keywords(plan),
        providers=_providers(plan),
        summaries=_summaries(plan, stored, maps),
        fields=tuple(_collection_fields(plan, maps).items()),
        assets=_collection_assets(shared),
        links=_collection_links(plan, model, sidecars),
        extensions=(extensions.PROJECTION, extensions.PROCESSING, extensions.EMBEDDINGS, extensions.SCIENTIFIC),
        model=model,
        files=((items.CONFIGURATION, settings), *sidecars),
    )


def _shared(plan: Plan, made: Published, seams: seam_report.Seams, *, settings: bytes, model: str) -> items.Shared:
    tiles = ground.committed(plan)
    version, commit = facts.software(plan), facts.commit()
    properties: dict[str, Any] = {
        "processing:software": version,
        "processing:version": version["earthpress"] + (f"+g{commit}" if commit else ""),
        "processing:level": "L4",
        "earthpress:stitch": plan.grid.stitch,
        **_lattice(plan.grid),
        "earthpress:patch_px": plan.grid.patch_px,
        "earthpress:dense": plan.grid.dense,
        "earthpress:recipe": plan.recipe,
        "earthpress:calibration": plan.calibration.hash,
        "earthpress:configuration_sha256": hashlib.sha256(settings).hexdigest(),
        "earthpress:model": f"OlmoEarth {plan.model.version} {plan.model.size}",
        "earthpress:trained": plan.model.trained,
        "earthpress:report": Path(made.page).name,
    }
    if commit:
        properties["earthpress:commit"] = commit
    return items.Shared(
        id=re.sub(r"[^A-Za-z0-9._-]+", "-", Path(plan.output).resolve().name),
        model=model,
        plan=plan,
        made=made,
        tiles=tiles,
        scenes=scenes.Scenes.of(plan),
        works=facts.works_of(plan, [receipt for _, receipt in tiles]),
        properties=properties,
        seams=seam_report.properties(seams),
        root=Path(plan.output).absolute() / "stac",
    )


def _model(plan: Plan) -> stac.ItemContent:
    from pipeline.encode.bands import DEFAULT_BANDS, MEAN_STD  # noqa: PLC0415

    def scaled(sensor: str, band: str) -> tuple[str, float, float]:
        mean, std = MEAN_STD[sensor][band]
        return band, mean - 2 * std, mean + 2 * std

    return model_item(
        plan.model,
        grid=plan.grid,
        numerics=plan.numerics,
        inputs=tuple(
            SensorInput(name=sensor, bands=tuple(scaled(sensor, band) for band in DEFAULT_BANDS[sensor]))
            for sensor in settings_of(plan).inputs.sensors
        ),
        periods=len(plan.periods),
        span=(plan.periods[0].start, plan.periods[-1].end),
    )


def _lattice(grid: GridSpec) -> dict[str, Any]:
    """The sides of windows, or of boxes and domains."""
    if grid.stitch == "neighbourhood":
        sides = {"box_px": grid.box_px, "core_px": grid.core_px, "halo_px": grid.halo_px}
    else:
        sides = {"window_px": grid.window_px, "overlap_px": grid.overlap_px}
    return {f"earthpress:{name}": side for name, side in sides.items()}


def _collection_fields(plan: Plan, maps: Sequence[tuple[Any, str, extensions.Raster]]) -> dict[str, Any]:
    days = sorted({(period.end - period.start).days for period in plan.periods})
    span = f"{days[0]} days" if len(days) == 1 else f"{days[0]} to {days[-1]} days"
    temporal = f"{len(plan.periods)} periods of {span}"
    fields = extensions.embedding_fields(plan.calibration, plan.grid, temporal=temporal)
    kinds: dict[str, Any] = {
        "embeddings": {
            "type": stac.ZARR,
            "roles": ["data"],
            "title": "Embedding store",
            **extensions.data_fields(plan.calibration),
        }
    }
    if maps:
        kinds["map"] = {"type": stac.COG, "roles": ["data"], "title": "Map, one file per 8192 px group"}
    own: dict[str, Any] = {"item_assets": kinds, "sci:citation": f"{credit_of(plan)[:1].upper()}{credit_of(plan)[1:]}."}
    if plan.model.trained:
        own["sci:publications"] = [PAPER]
    return {**fields, **own, "earthpress:recipe": plan.recipe, "earthpress:trained": plan.model.trained}


def _summaries(
    plan: Plan,
    stored: Sequence[tuple[stac.ItemContent, Any]],
    maps: Sequence[tuple[stac.ItemContent, str, extensions.Raster]],
) -> tuple[tuple[str, list[Any]], ...]:
    boxes = [item.box for item in (*(item for item, _ in stored), *(item for item, _, _ in maps)) if item.box]
    found: dict[str, list[Any]] = {
        "gsd": sorted({box.res_m for box in boxes}),
        "proj:code": sorted({extensions.projection(box)["proj:code"] for box in boxes}),
        "emb:type": ["pixel"],
        "emb:dimensions": [plan.calibration.bands],
        "data_type": [plan.calibration.dtype],
        "processing:level": ["L4"],
    }
    if maps:
        found["earthpress:map"] = sorted({name for _, name, _ in maps})
    return tuple(found.items())


def _collection_assets(shared: items.Shared) -> tuple[stac.Made, ...]:
    whole = stac.Made(
        key="store", path=shared.place, media_type=stac.ZARR, roles=("data",), title="Store, one group per zone"
    )
    mosaics = (
        stac.Made(
            key=f"mosaic-{path.stem}",
            path=str(path),
            media_type=stac.COG,
            roles=("data",),
            title=f"{path.stem.replace('_', ' ')}, all zones in one file",
            fields=extensions.picture_fields(path),
        )
        for path in map(Path, shared.made.mosaics)
    )
    return (whole, *mosaics, *items.further(shared))


def _collection_links(
    plan: Plan, model: stac.ItemContent, sidecars: Sequence[tuple[str, bytes]]
) -> tuple[stac.Link, ...]:
    """Model, licences, and the source data: the catalogues' collections, or our own lists where they are local."""
    listed = scenes.collection_links(plan) or tuple(
        stac.Link(rel="emb:source-data", href=f"./{name}", media_type=stac.JSON, title="Scenes used")
        for name, _ in sidecars
    )
    owners = dict.fromkeys(scenes.PUBLISHERS[sensor][0] for sensor in settings_of(plan).inputs.sensors)
    return (
        stac.Link(rel="emb:model", href=f"./{model.id}.json", media_type=stac.GEOJSON, title="Model"),
        *listed,
        *(
            stac.Link(rel="license", href=scenes.LICENCES[owner], title=f"Terms of the source data: {owner}")
            for owner in owners
        ),
    )


def _providers(plan: Plan) -> tuple[tuple[str, str, tuple[str, ...], str], ...]:
    """Who made the source data; who made these data is not known."""
    found: dict[str, list[str]] = {}
    for sensor in settings_of(plan).inputs.sensors:
        found.setdefault(scenes.PUBLISHERS[sensor][0], []).append(sensor)
    return tuple(
        (
            owner,
            f"Source data: {', '.join(scenes.PUBLISHERS[sensor][1] for sensor in sensors)}",
            ("producer", "licensor"),
            scenes.PUBLISHERS[sensors[0]][2],
        )
        for owner, sensors in found.items()
    )


def _keywords(plan: Plan) -> tuple[str, ...]:
    sensors = {"sentinel2_l2a": "Sentinel-2", "sentinel1": "Sentinel-1", "landsat": "Landsat"}
    named = tuple(sensors[sensor] for sensor in settings_of(plan).inputs.sensors)
    return ("embeddings", "OlmoEarth", *named, *(() if plan.model.trained else ("untrained",)))
