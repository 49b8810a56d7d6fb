"""What reading plain windows needs of an open file, whichever backend opened it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from affine import Affine
    from numpy.typing import NDArray
    from rasterio.crs import CRS
    from rasterio.windows import Window


class Raster(Protocol):
    """An open file; rasterio's dataset is one. Warping and overviews need rasterio's itself."""

    @property
    def count(self) -> int:
        """Number of bands."""

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Names of numpy's types, one per band."""

    @property
    def crs(self) -> CRS | None:
        """Coordinate reference system; None: the file names none."""

    @property
    def transform(self) -> Affine:
        """(column, row) of pixel corners to coordinates."""

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width)."""

    @property
    def width(self) -> int:
        """Columns."""

    @property
    def height(self) -> int:
        """Rows."""

    @property
    def nodata(self) -> float | None:
        """The value that stands for a missing pixel; None: there is none."""

    def read(self, index: int, *, window: Window) -> NDArray[Any]:
        """(row, col) raw values of band ``index``, counted from 1; ``window`` lies within the file."""
