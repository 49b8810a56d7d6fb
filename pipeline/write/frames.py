"""Where a raster file lies: the plane of a zone, or any other one.

Pure: knows boxes and no file. Files south of the equator are in EPSG:327NN, because readers expect positive northings;
the lattice itself stays in the plane of 326NN.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.errors import InvalidInputError
from pipeline.types import Box

if TYPE_CHECKING:
    from collections.abc import Iterator

    from affine import Affine

SOUTH_EPSG = 32700
SOUTH_SHIFT_M = 10_000_000
"""False northing of EPSG:327NN (EPSG method 9807): its plane is that of 326NN moved by exactly this."""
ON_LATTICE = 1e-6
"""How far numbers of a transform may lie from whole ones."""
SQUARE_PX = 2048
"""Side of the squares in which files are read and written: one tile at its largest, 4 MB of a band of bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """The grid of a raster file, north-up.

    Attributes:
        crs: As GDAL takes it, ``EPSG:32631``.
        transform: (col, row) of a pixel corner to (x, y).
        height: Rows.
        width: Columns.
        row: Row of the first pixel on the lattice that ``squares`` are anchored at.
        col: Its column.
    """

    crs: str
    transform: Affine
    height: int
    width: int
    row: int = 0
    col: int = 0

    @classmethod
    def of(cls, box: Box) -> Frame:
        """The frame of a file over ``box``."""
        epsg, transform = place(box)
        return cls(
            crs=f"EPSG:{epsg}", transform=transform, height=box.height, width=box.width, row=box.row, col=box.col
        )

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width)."""
        return self.height, self.width

    def squares(self, side_px: int | None = None) -> Iterator[tuple[slice, slice]]:
        """(row, col) slices that cut the frame at lattice multiples of ``side_px`` (``SQUARE_PX``), each pixel in one.

        Example:
            >>> from pipeline.types import Box
            >>> frame = Frame.of(Box(zone=31, res_m=10, row=-300, col=0, height=400, width=10))
            >>> [rows for rows, _ in frame.squares(256)]
            [slice(0, 44, None), slice(44, 300, None), slice(300, 400, None)]
        """
        side = side_px or SQUARE_PX
        for rows in _cuts(self.row, self.height, side):
            for cols in _cuts(self.col, self.width, side):
                yield rows, cols


def place(box: Box) -> tuple[int, Affine]:
    """EPSG code and (col, row) -> (x, y) transform of a file over ``box``; 327NN when its centre lies in the south.

    Example:
        >>> from pipeline.types import Box
        >>> place(Box(zone=31, res_m=10, row=0, col=50, height=100, width=100))[0]
        32731
    """
    from affine import Affine  # noqa: PLC0415

    if box.row + box.row_stop <= 0:
        return box.epsg, box.transform
    return box.epsg + 100, Affine.translation(0, SOUTH_SHIFT_M) @ box.transform


def box_of(found: Any) -> Box:
    """The box under an open dataset that lies on a zone's lattice.

    Raises:
        InvalidInputError: It lies in another plane or between the pixels of the lattice: a mosaic, somebody's file.
    """
    transform, epsg = found.transform, (found.crs.to_epsg() if found.crs else None) or 0
    if epsg // 100 not in (326, 327) or not 1 <= epsg % 100 <= 60:
        raise InvalidInputError(f"{found.name} lies in {found.crs}, not in the plane of a UTM zone: use the zone files")
    res_m, north_m = round(transform.a), transform.f - (SOUTH_SHIFT_M if epsg > SOUTH_EPSG else 0)
    numbers = (*list(transform)[:2], *list(transform)[3:5], transform.c / max(res_m, 1), north_m / max(res_m, 1))
    wanted = (max(res_m, 1), 0, 0, -max(res_m, 1), round(numbers[4]), round(numbers[5]))
    if any(abs(one - other) > ON_LATTICE for one, other in zip(numbers, wanted, strict=True)):
        raise InvalidInputError(f"{found.name} does not lie on the lattice of its zone: transform {transform!r}")
    return Box(
        zone=epsg % 100,
        res_m=res_m,
        row=round(-north_m / res_m),
        col=round(transform.c / res_m),
        height=found.height,
        width=found.width,
    )


def part_of(box: Box, rows: slice, cols: slice) -> Box:
    """The box under (row, col) slices of an array over ``box``."""
    return Box(
        zone=box.zone,
        res_m=box.res_m,
        row=box.row + rows.start,
        col=box.col + cols.start,
        height=rows.stop - rows.start,
        width=cols.stop - cols.start,
    )


def _cuts(start: int, length: int, side_px: int) -> Iterator[slice]:
    at = 0
    while at < length:
        stop = min(length, at + side_px - (start + at) % side_px)
        yield slice(at, stop)
        at = stop
