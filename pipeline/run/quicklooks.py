"""Quicklooks of a store: the embeddings as colours, GeoTIFF for work and PNG for people."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.run import ground
from pipeline.run.stored import Stored
from pipeline.types import NODATA_CODE, Box, Plan, Tile
from pipeline.write import durable, geotiff, preview

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray


QUICKLOOK_PX = 8192
"""Longest side of the quicklook GeoTIFF; larger areas are averaged down."""
SAMPLE_PX = 40_000
"""Pixels from which the colours of the quicklook are derived; the basis is then frozen for the store."""
MIN_SAMPLE = 256
"""No picture, and no frozen colours, from fewer pixels than this or than dimensions, whichever is less: a block of a
store of token resolution has 1024 pixels and may have as many dimensions."""


def quicklooks(plan: Plan, tiles: Sequence[Tile]) -> tuple[str, ...]:
    """Write PNG and GeoTIFF of the embeddings' first three components, per zone; paths, none without valid pixels."""
    folder = Path(plan.output) / "preview"
    folder.mkdir(parents=True, exist_ok=True)
    basis = _basis(plan, folder / "basis.json", tiles)
    if basis is None:
        return ()
    made: list[str] = []
    for extent in ground.extents(plan):
        factor = ground.factor(plan, extent, QUICKLOOK_PX)
        picture = canvas(plan, extent, tiles=tiles, basis=basis, factor=factor)
        made += _quicklook_files(plan, folder, extent, canvas=picture, factor=factor)
    return tuple(made)


def basis_of(plan: Plan) -> preview.Basis | None:
    """The frozen colours of the store; None before there is a quicklook."""
    path = Path(plan.output) / "preview" / "basis.json"
    return preview.Basis.from_json(path.read_text(encoding="utf-8")) if path.is_file() else None


def canvas(plan: Plan, extent: Box, *, tiles: Sequence[Tile], basis: preview.Basis, factor: int) -> NDArray[np.uint8]:
    """(row, col, 4) uint8 colours of the embeddings over ``extent``, averaged down by ``factor``."""
    scale = np.asarray(plan.calibration.scale, np.float32)
    canvas = np.zeros((extent.height // factor, extent.width // factor, 4), np.uint8)
    held = Stored.of(plan)
    for tile, box, part in ground.parts(tiles, extent):
        codes = held.coded(tile).codes[:, *part.slices_in(box)]
        colours = preview.render(codes, scale, codes[0] != NODATA_CODE, basis)
        canvas[ground.place(part, extent, factor)] = preview.shrink_rgba(colours, factor=factor)
    return canvas


def _quicklook_files(
    plan: Plan, folder: Path, extent: Box, *, canvas: NDArray[np.uint8], factor: int
) -> tuple[str, str]:
    png, cog = folder / f"quicklook_utm{extent.zone:02d}.png", folder / f"quicklook_utm{extent.zone:02d}.tif"
    further = preview.factor_for(*canvas.shape[:2])
    titles = ground.titles(plan, "Embeddings, first three principal components")
    preview.save_png(
        str(png), preview.shrink_rgba(canvas, factor=further), title_lines=titles, label=ground.label(plan)
    )
    geotiff.write_cog(
        cog,
        np.moveaxis(canvas, -1, 0),
        box=ground.coarse(extent, factor),
        nodata=None,
        overview="average",
        tags=ground.provenance(plan),
    )
    return str(png), str(cog)


def _basis(plan: Plan, path: Path, tiles: Sequence[Tile]) -> preview.Basis | None:
    """The frozen colours of the store; made from a regular sample of the first tiles that have data."""
    if path.is_file():
        return preview.Basis.from_json(path.read_text(encoding="utf-8"))
    scale = np.asarray(plan.calibration.scale, np.float32)
    samples = list(_sample(plan, tiles))
    if sum(len(s) for s in samples) < min(plan.model.dims, MIN_SAMPLE):
        return None
    basis = preview.pca_basis(np.concatenate(samples) * scale)
    durable.replace(path, basis.to_json().encode())
    return basis


def _sample(plan: Plan, tiles: Sequence[Tile]) -> Iterator[NDArray[np.float32]]:
    per_tile = max(1, SAMPLE_PX // max(1, len(tiles)))
    step = max(1, round(plan.grid.tile_px // plan.grid.token_px / per_tile**0.5))
    every = max(1, len(tiles) * plan.model.dims // (SAMPLE_PX * 4))
    held = Stored.of(plan)
    for tile in tiles[::every]:
        codes = held.coded(tile).codes
        thin = codes[:, ::step, ::step].reshape(codes.shape[0], -1)
        yield thin[:, thin[0] != NODATA_CODE].T.astype(np.float32)
