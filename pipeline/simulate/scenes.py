"""Sentinel-2-like scenes of the landscape: pixels at native resolutions, written as COGs.

The items that describe them are made in ``items``. DN follow the product format: ``reflectance * 10000`` plus 1000
from processing baseline 04.00 on, 0 is nodata and a valid pixel is at least 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.simulate.clouds import Weather, classify, seen_through, sky_over
from pipeline.simulate.landscape import DEFAULT_SEED, reflectance_of
from pipeline.simulate.spectra import BANDS, RES_M
from pipeline.types import DN_OFFSET, PIXEL_M, Box

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from affine import Affine
    from numpy.typing import NDArray

    from pipeline.simulate.landscape import Ground

_COG = {
    "driver": "COG",
    "COMPRESS": "DEFLATE",
    "LEVEL": "4",
    "PREDICTOR": "YES",
    "BLOCKSIZE": 512,
    "OVERVIEW_COMPRESS": "DEFLATE",
    "OVERVIEW_PREDICTOR": "YES",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Granule:
    """A tile of the product grid.

    Attributes:
        name: MGRS name, ``32UMA``.
        box: 10 m box; row, col and size are multiples of 6, so that 20 and 60 m pixels nest.
    """

    name: str
    box: Box


@dataclass(frozen=True, slots=True, kw_only=True)
class OrbitEdge:
    """The border of the swath: pixels whose centre has ``(x - x_m) + slope * (y - y_m) <= 0`` were seen."""

    x_m: float
    y_m: float
    slope: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Datatake:
    """One pass of a satellite.

    Attributes:
        acquired: UTC time of the start of sensing.
        platform: ``S2A`` or ``S2B``.
        relative_orbit: Relative orbit, 1..143.
        absolute_orbit: Absolute orbit.
        baseline: Processing baseline as the items write it: ``05.10``.
        weather: The clouds.
        edge: Border of the swath, None when the tiles lie inside.
    """

    acquired: datetime
    platform: str
    relative_orbit: int
    absolute_orbit: int
    baseline: str
    weather: Weather
    edge: OrbitEdge | None = None

    @property
    def offset(self) -> int:
        """What the processor added to each DN."""
        return DN_OFFSET if float(self.baseline) >= 4.0 else 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SceneImage:
    """The pixels of one tile of one datatake.

    Attributes:
        granule: Which tile.
        datatake: Which pass.
        bands: (band, (row, col) uint16 DN at the band's native resolution), order of ``BANDS``.
        scl: (row, col) uint8 at 20 m.
    """

    granule: Granule
    datatake: Datatake
    bands: tuple[tuple[str, NDArray[np.uint16]], ...]
    scl: NDArray[np.uint8]


def block_mean(fine: NDArray[np.float32], factor: int) -> NDArray[np.float32]:
    """Mean of factor x factor blocks, summed in one order whatever the size, so that every window agrees."""
    if factor == 1:
        return fine
    total = np.zeros((fine.shape[0] // factor, fine.shape[1] // factor), np.float32)
    for row in range(factor):
        for col in range(factor):
            total += fine[row::factor, col::factor]
    return (total / np.float32(factor * factor)).astype(np.float32)


def digital_numbers(reflectance: NDArray[np.float32], *, offset: int = DN_OFFSET) -> NDArray[np.uint16]:
    """Product DN of reflectance 0..1; at least 1, because 0 means nodata."""
    scaled = np.rint(reflectance.astype(np.float64) * 10000.0) + offset
    return np.asarray(np.clip(scaled, 1, 65535), np.uint16)


def native_dn(
    reflectance: dict[str, NDArray[np.float32]], *, offset: int = DN_OFFSET
) -> tuple[tuple[str, NDArray[np.uint16]], ...]:
    """DN of every band at its native resolution, from 10 m reflectance over a box of whole 60 m pixels."""
    return tuple(
        (band, digital_numbers(block_mean(reflectance[band], RES_M[band] // PIXEL_M), offset=offset)) for band in BANDS
    )


def observe(ground: Ground, granule: Granule, datatake: Datatake, *, seed: int = DEFAULT_SEED) -> SceneImage:
    """Look at surveyed ground through the clouds of a datatake; ``ground`` must lie over the granule's box."""
    sky = sky_over(granule.box, datatake.weather)
    seen = seen_through(reflectance_of(ground, datatake.acquired, seed=seed), sky)
    scl = classify(
        truth=ground.truth,
        red=block_mean(seen["B04"], 2),
        nir=block_mean(seen["B8A"], 2),
        opacity=sky.opacity,
        shadow=sky.shadow,
    )
    bands = native_dn(seen, offset=datatake.offset)
    if datatake.edge is not None:
        seen_at = {res: swath(granule.box.cover(res), datatake.edge) for res in (10, 20, 60)}
        bands = tuple((band, np.where(seen_at[RES_M[band]], dn, 0).astype(np.uint16)) for band, dn in bands)
        scl = np.where(seen_at[20], scl, 0).astype(np.uint8)
    return SceneImage(granule=granule, datatake=datatake, bands=bands, scl=scl)


def swath(box: Box, edge: OrbitEdge) -> NDArray[np.bool_]:
    """Which pixels of a box of any resolution lie inside the swath, (row, col) bool."""
    x = (np.arange(box.col, box.col_stop) + 0.5) * box.res_m
    y = -(np.arange(box.row, box.row_stop) + 0.5) * box.res_m
    return np.asarray((x[None, :] - edge.x_m) + edge.slope * (y[:, None] - edge.y_m) <= 0)


def write_scene(image: SceneImage, folder: Path) -> dict[str, str]:
    """Write one COG per band and the SCL into ``folder``; returns asset key -> file name."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"T{image.granule.name}_{image.datatake.acquired:%Y%m%dT%H%M%S}"
    names: dict[str, str] = {}
    rasters: list[tuple[str, NDArray[Any]]] = [*image.bands, ("SCL", image.scl)]
    for band, pixels in rasters:
        res_m = RES_M.get(band, 20)
        names[band] = f"{stem}_{band}_{res_m}m.tif"
        write_raster(folder / names[band], pixels, box=image.granule.box.cover(res_m), nodata=0)
    return names


def write_raster(
    path: Path,
    pixels: NDArray[Any],
    *,
    box: Box,
    nodata: int,
    colours: dict[int, tuple[int, int, int, int]] | None = None,
) -> None:
    """Write a (row, col) array over a lattice box, see ``write_cog``."""
    write_cog(path, pixels, epsg=box.epsg, transform=box.transform, nodata=nodata, colours=colours)


def write_cog(
    path: Path,
    pixels: NDArray[Any],
    *,
    epsg: int,
    transform: Affine,
    nodata: int,
    colours: dict[int, tuple[int, int, int, int]] | None = None,
) -> None:
    """Write a (row, col) array as a tiled, deflated COG with overviews; codes (uint8) get nearest overviews."""
    import rasterio  # noqa: PLC0415

    resampling = "NEAREST" if pixels.dtype == np.uint8 else "AVERAGE"
    profile = {
        "width": pixels.shape[1],
        "height": pixels.shape[0],
        "count": 1,
        "dtype": pixels.dtype.name,
        "crs": f"EPSG:{epsg}",
        "transform": transform,
        "nodata": nodata,
    }
    with rasterio.open(path, "w", **_COG, **profile, OVERVIEW_RESAMPLING=resampling) as file:
        file.write(pixels, 1)
        if colours is not None:
            file.write_colormap(1, colours)
