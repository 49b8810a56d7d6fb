"""What GDAL itself makes of pixels: the reference for windows, warping and upsampling."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rasterio.enums import Resampling
from rasterio.io import MemoryFile
from rasterio.vrt import WarpedVRT

if TYPE_CHECKING:
    from affine import Affine
    from numpy.typing import NDArray

    from pipeline.types import Box


def warped(
    pixels: NDArray, transform: Affine, target: Box, *, epsg: int | None = None, nodata: float = 0, **more: object
) -> NDArray:
    """(row, col) over a lattice box by the bilinear warper; ``more`` are options of WarpedVRT."""
    height, width = pixels.shape
    profile = {"driver": "GTiff", "height": height, "width": width, "count": 1, "dtype": pixels.dtype}
    profile |= {"crs": f"EPSG:{epsg or target.epsg}", "transform": transform, "nodata": nodata}
    options = {"crs": f"EPSG:{target.epsg}", "transform": target.transform, "nodata": nodata}
    options |= {"height": target.height, "width": target.width, "resampling": Resampling.bilinear}
    with MemoryFile() as memory:
        with memory.open(**profile) as file:
            file.write(pixels, 1)
        with memory.open() as file, WarpedVRT(file, **options, **more) as vrt:
            return vrt.read(1)
