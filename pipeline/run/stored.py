"""What the store of a plan holds for the plan's dates: codes, values and layers of tiles and boxes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import codes
from pipeline.run.folder import store_of
from pipeline.types import PIXEL_M, Box, Calibration, Plan, Tile
from pipeline.write import store
from pipeline.write.attributes import SCALED
from pipeline.write.opened import open_zone, shared
from pipeline.write.place import place_of

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A store at one time step; boxes count pixels of the store and lie inside its extent.

    Attributes:
        place: Folder or URL of the store.
        time_index: Index of the time step.
        calibration: How to read its codes.
        token_px: Side of a pixel of the store, 10 m pixels.
    """

    place: str
    time_index: int
    calibration: Calibration
    token_px: int

    @classmethod
    def of(cls, plan: Plan) -> Stored:
        """The store of a plan, at the plan's dates.

        Raises:
            OutputError: There is no store, or it has no such time step.
        """
        place = store_of(plan)
        step = store.time_index(place, plan.periods[0].start, plan.periods[-1].end)
        return cls(place=place, time_index=step, calibration=plan.calibration, token_px=plan.grid.token_px)

    @classmethod
    def at(cls, place: str, time_index: int) -> Stored:
        """A store without its plan: everything comes from its metadata.

        Raises:
            OutputError: There is no store.
        """
        found = place_of(place)
        with shared(found):
            group, _ = open_zone(found, store.zones(place)[0].zone)
        token_px = int(group.attrs["earthpress"].get("token_px", 1))
        return cls(place=place, time_index=time_index, calibration=calibration_of(group), token_px=token_px)

    def coded(self, where: Tile | Box) -> codes.Coded:
        """(band, row, col) codes of a tile or box."""
        box = self._box(where)
        scale = self._read(box, "pixel_scale") if self.calibration.method == "per_pixel" else None
        return codes.Coded(codes=self._read(box, "embeddings"), pixel_scale=scale)

    def vectors(self, where: Tile | Box) -> NDArray[np.float32]:
        """(band, row, col) float32 values of a tile or box, NaN where nodata."""
        return codes.decode(self.coded(where), self.calibration)

    def steps(self, where: Tile | Box) -> NDArray[Any]:
        """(band, row, col) numbers of which differences, times ``unit``, are differences of vectors.

        int8 codes, a quarter of the bytes, where all pixels share the value of a code step; else float32 values, NaN
        where nodata.
        """
        coded = self.coded(where)
        return coded.codes if self.calibration.scale else codes.decode(coded, self.calibration)

    @property
    def unit(self) -> NDArray[np.float32]:
        """(band,) value of one of ``steps``."""
        scale = self.calibration.scale
        return np.asarray(scale, np.float32) if scale else np.ones(self.calibration.bands, np.float32)

    def layer(self, where: Tile | Box, name: str) -> NDArray[Any]:
        """(..., row, col) of another array of the same pixels: ``reason``, ``n_obs``, ``map_<name>``."""
        return self._read(self._box(where), name)

    def _box(self, where: Tile | Box) -> Box:
        return where.box.cover(PIXEL_M * self.token_px) if isinstance(where, Tile) else where

    def _read(self, box: Box, name: str) -> NDArray[Any]:
        return store.read_box(self.place, box, name, time_index=self.time_index)


def calibration_of(group: Any) -> Calibration:
    """What is needed to read the codes of an opened zone group; scores, for ``pca``."""
    own, array = group.attrs["earthpress"]["calibration"], group["embeddings"]
    method = own.get("method") or ("linear" if array.dtype == np.int8 else array.dtype.name)
    return Calibration(
        scale=tuple(np.asarray(group["scale"][...]).tolist()) if method in SCALED else (),
        provisional=bool(own["provisional"]),
        source=str(own["source"]),
        model_sha256=str(own["model_sha256"]),
        patch_px=int(own["patch_px"]),
        method=method,
        dims=int(array.shape[1]),
    )
