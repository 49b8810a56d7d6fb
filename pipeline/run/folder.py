"""Where things lie in an output folder, and what its plan was made with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import Settings
from pipeline.plan import catalog, planner
from pipeline.read.access import Access

if TYPE_CHECKING:
    from pipeline.types import Plan

STORE_NAME = "store.zarr"


def store_path(output: str | Path) -> Path:
    """The embedding store of an output folder; the store itself is accepted too."""
    place = Path(output)
    return place if place.name == STORE_NAME else place / STORE_NAME


def store_of(plan: Plan) -> str:
    """Where the embedding store of a plan lies: a local folder or the URL of an object store."""
    return settings_of(plan).store.path or str(store_path(plan.output))


def store_at(what: str | Path) -> str:
    """The store that somebody means: itself, its URL, or an output folder.

    An output's store is the one in its folder, else the one that its plan names.
    """
    place = str(what)
    if "://" in place or (Path(place) / "zarr.json").is_file():
        return place
    own = store_path(place)
    if not (own / "zarr.json").is_file() and (Path(place) / planner.PLAN_FOLDER / "request.json").is_file():
        return store_of(planner.load_plan(place))
    return str(own)


def output_of(place: str) -> str:
    """The output folder, given it or its store."""
    return str(store_path(place).parent)


def settings_of(plan: Plan) -> Settings:
    """The settings that a plan was made with."""
    return Settings.model_validate_json(plan.settings)


def credit_of(plan: Plan) -> str:
    """What the archives ask to be said beside anything made of their data.

    Sources: Copernicus Sentinel Data Legal Notice, 2 (derived products); USGS, "How to acknowledge or cite USGS data".
    """
    sensors = set(settings_of(plan).inputs.sensors)
    words = ["contains modified Copernicus Sentinel data"] if sensors & {"sentinel2_l2a", "sentinel1"} else []
    if "landsat" in sensors:
        words.append("Landsat Level-1 courtesy of the U.S. Geological Survey")
    return "; ".join(words)


def encoder_arguments(plan: Plan) -> dict[str, Any]:
    """What an encoder of this plan is built with, beside its weights and threads."""
    inputs = settings_of(plan).inputs
    return {
        "grid": plan.grid,
        "periods": plan.periods,
        "numerics": plan.numerics,
        "sensors": inputs.sensors,
        "resampling": inputs.resampling,
    }


def access_of(plan: Plan) -> Access:
    """What may be opened for a plan: local files only when a catalogue itself is local."""
    inputs = settings_of(plan).inputs
    return Access(
        allow_local=any(catalog.is_local(inputs.catalog_of(name)) for name in inputs.sensors),
        allow_private=inputs.allow_private_hosts,
        hosts=inputs.allowed_hosts,
        requester_pays="landsat" in inputs.sensors and inputs.landsat.requester_pays,
        backend=inputs.reader,
    )
