"""Where everything that a run shows lies."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """Where everything is.

    Attributes:
        store: The embedding store.
        page: report.html.
        ledger: Folder of the ledger.
        seams: JSON of the seam scores.
        stac: STAC collection.
        seam_faults: One sentence per seam score above ``run.max_seam_score``.
        quicklooks: PNG and COG of the embeddings.
        true_colours: PNG and COG of the true colours of every period, and a sheet of all.
        observations: PNG and COG of how often and how clearly the ground was seen.
        maps: COGs of the maps, one per 8192 px square.
        pictures: PNG of the maps.
        virtuals: One virtual raster per map and zone over its COGs.
        areas: Class areas of the maps, JSON and CSV.
        mosaics: COGs of all zones of a map, made by ``earthpress finalise --mosaic``, that are up to date.
    """

    store: str
    page: str
    ledger: str
    seams: str = ""
    stac: str = ""
    seam_faults: tuple[str, ...] = ()
    quicklooks: tuple[str, ...] = ()
    true_colours: tuple[str, ...] = ()
    observations: tuple[str, ...] = ()
    maps: tuple[str, ...] = ()
    pictures: tuple[str, ...] = ()
    virtuals: tuple[str, ...] = ()
    areas: tuple[str, ...] = ()
    mosaics: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        return asdict(self)

    def lines(self) -> tuple[str, ...]:
        """For people."""
        named = [("store", (self.store,)), ("quicklook", self.quicklooks), ("colours", self.true_colours)]
        named += [("seen", self.observations), ("map", self.maps + self.pictures)]
        named += [("map, whole", self.virtuals + self.mosaics), ("areas", self.areas)]
        named += [("stac", (self.stac,)), ("seams", (self.seams,))]
        named += [("ledger", (self.ledger,)), ("report", (self.page,))]
        return tuple(f"{label:<10} {path}" for label, paths in named for path in paths if path)
