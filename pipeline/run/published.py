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
        maps: Class map COGs.
        pictures: PNG of the class maps.
    """

    store: str
    page: str
    ledger: str
    seams: str = ""
    stac: str = ""
    seam_faults: tuple[str, ...] = ()
    quicklooks: tuple[str, ...] = ()
    maps: tuple[str, ...] = ()
    pictures: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        return asdict(self)

    def lines(self) -> tuple[str, ...]:
        """For people."""
        named = [("store", (self.store,)), ("quicklook", self.quicklooks), ("map", self.maps + self.pictures)]
        named += [("stac", (self.stac,)), ("seams", (self.seams,))]
        named += [("ledger", (self.ledger,)), ("report", (self.page,))]
        return tuple(f"{label:<10} {path}" for label, paths in named for path in paths if path)
