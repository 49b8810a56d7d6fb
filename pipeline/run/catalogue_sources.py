"""The scenes that committed tiles were made of, and where their catalogues show them. No signature, no file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

from pipeline.plan import catalog
from pipeline.run.catalogue_facts import public_url
from pipeline.run.folder import settings_of
from pipeline.write import stac

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pipeline.config import InputSettings
    from pipeline.types import Plan, Receipt, Scene

MAX_LINKS = 400
"""Links to scenes in one item; an item with more names the file that lists them. A viewer asks for every link."""
PUBLISHERS = {
    "sentinel2_l2a": ("Copernicus", "Sentinel-2 Level-2A", "https://dataspace.copernicus.eu/"),
    "sentinel1": ("Copernicus", "Sentinel-1 IW, radiometrically terrain corrected", "https://dataspace.copernicus.eu/"),
    "landsat": ("USGS", "Landsat 8 and 9 Collection 2 Level-1", "https://www.usgs.gov/landsat-missions"),
}
"""Who published what, by sensor."""
LICENCES = {
    "Copernicus": "https://sentinels.copernicus.eu/documents/247904/690755/Sentinel_Data_Legal_Notice",
    "USGS": "https://www.usgs.gov/information-policies-and-instructions/copyrights-and-credits",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A scene that gave pixels.

    Attributes:
        id: Of its item.
        sensor: Of the scene.
        collection: Of its item, "" when unknown.
        acquired: RFC 3339, "" when unknown: a scene of an earlier plan on the same output.
        href: Its item in the catalogue, "" for a local catalogue or when several may have it.
    """

    id: str
    sensor: str
    collection: str
    acquired: str
    href: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenes:
    """The scenes of a plan, looked up for many items.

    Attributes:
        inputs: Settings of the catalogues.
        known: (sensor, id) and the scene, of every candidate of the plan.
    """

    inputs: InputSettings
    known: dict[tuple[str, str], Scene]

    @classmethod
    def of(cls, plan: Plan) -> Scenes:
        """The scenes of ``plan``."""
        return cls(inputs=settings_of(plan).inputs, known={(scene.sensor, scene.id): scene for scene in plan.scenes})

    def used(self, receipts: Iterable[Receipt]) -> tuple[Source, ...]:
        """Every scene that some of these tiles took a pixel of, once, sorted."""
        used = {(source.sensor, name) for receipt in receipts for source in receipt.sources for name in source.selected}
        return tuple(
            _source(self.inputs, sensor, name, self.known.get((sensor, name))) for sensor, name in sorted(used)
        )


def sidecar(item_id: str, sources: Sequence[Source]) -> tuple[str, bytes]:
    """(name, content) of the file that lists the scenes of an item."""
    scenes = [{key: getattr(source, key) for key in Source.__dataclass_fields__} for source in sources]
    return f"{item_id}.sources.json", stac.json_bytes({"earthpress:item": item_id, "scenes": scenes})


def links_of(sources: Sequence[Source]) -> tuple[stac.Link, ...]:
    """``derived_from`` links to the items; none where there would be more than ``MAX_LINKS``: a part would mislead."""
    found = [source for source in sources if source.href]
    if len(found) > MAX_LINKS:
        return ()
    return tuple(
        stac.Link(rel="derived_from", href=source.href, media_type=stac.GEOJSON, title=source.id) for source in found
    )


def collection_links(plan: Plan) -> tuple[stac.Link, ...]:
    """``emb:source-data`` links to the collections of the catalogues that are on the network."""
    inputs = settings_of(plan).inputs
    pairs = {
        (sensor, api, _collection(inputs, sensor, part))
        for sensor in inputs.sensors
        for part in _parts(inputs.catalog_of(sensor))
        if (api := _api(part))
    }
    return tuple(
        stac.Link(
            rel="emb:source-data",
            href=f"{api}/collections/{quote(collection, safe='')}",
            media_type=stac.JSON,
            title=f"{PUBLISHERS[sensor][1]}: {collection}",
        )
        for sensor, api, collection in sorted(pairs)
    )


def _source(inputs: InputSettings, sensor: str, name: str, scene: Scene | None) -> Source:
    part = _part_of(inputs, sensor, scene)
    collection = scene.collection if scene else _collection(inputs, sensor, part)
    api = _api(part)
    place = f"{api}/collections/{quote(collection, safe='')}/items/{quote(name, safe='')}" if api and collection else ""
    acquired = scene.acquired.strftime("%Y-%m-%dT%H:%M:%SZ") if scene else ""
    return Source(id=name, sensor=sensor, collection=collection, acquired=acquired, href=place)


def _parts(spec: str) -> tuple[str, ...]:
    """The catalogues of a setting, as ``plan.catalog`` reads it; a local one stays whole."""
    parts = tuple(part.strip() for part in spec.split(",") if part.strip())
    return parts if all(part in catalog.PRESETS or "://" in part for part in parts) else (spec,)


def _part_of(inputs: InputSettings, sensor: str, scene: Scene | None) -> str:
    """The catalogue that a scene came from, "" when that cannot be told."""
    parts = _parts(inputs.catalog_of(sensor))
    if len(parts) > 1 and scene is not None:
        parts = tuple(part for part in parts if _may_hold(part, scene))
    return parts[0] if len(parts) == 1 else ""


def _may_hold(part: str, scene: Scene) -> bool:
    preset = catalog.PRESETS.get(part)
    if preset is None:
        return not scene.sign
    return preset.sign == scene.sign and dict(preset.collections).get(scene.sensor) == scene.collection


def _api(part: str) -> str:
    """Landing page of a catalogue on the network, "" for a local one."""
    preset = catalog.PRESETS.get(part)
    if preset is not None:
        return preset.url
    return public_url(part).rstrip("/") if part.startswith(("https://", "http://")) else ""


def _collection(inputs: InputSettings, sensor: str, part: str) -> str:
    """The collection that a catalogue was asked for."""
    own = inputs.of(sensor).collection
    if own != "auto":
        return own
    preset = catalog.PRESETS.get(part)
    return (dict(preset.collections).get(sensor, "") if preset else "") or catalog.USUAL.get(sensor, "")
