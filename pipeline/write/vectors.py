"""Vectors as tables: GeoParquet with one row per pixel or square of pixels.

GeoParquet 1.1 (https://geoparquet.org/releases/v1.1.0/): WKB in longitude and latitude, a bbox column with its covering
so that readers skip row groups, and zstd. Rows of a group follow a Hilbert curve. Knows values, boxes and no store;
memory is that of one piece.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pipeline.errors import InvalidInputError
from pipeline.write import durable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.types import Box

VECTOR = "embedding"
GEOMETRY = "geometry"
HILBERT_ORDER = 16
"""Bits per axis: 65,536 squares along the side of what is ordered."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Piece:
    """Vectors of a box.

    Attributes:
        box: Ground; one row of the table per pixel of it that has a vector.
        values: (band, row, col) int8 codes or float32 values.
        valid: (row, col) bool.
        columns: (name, (row, col) array) of further columns.
    """

    box: Box
    values: NDArray[Any]
    valid: NDArray[np.bool_]
    columns: tuple[tuple[str, NDArray[Any]], ...] = ()


def write_parquet(
    path: str | Path,
    pieces: Iterable[Piece],
    *,
    bands: int,
    dtype: str,
    shape: Literal["point", "square"],
    columns: Sequence[tuple[str, str]] = (),
    about: dict[str, Any],
) -> int:
    """Write pieces, one row group each; the file appears whole or not at all.

    Args:
        path: Local file; an existing one is replaced.
        pieces: What to write, in this order.
        bands: Length of a vector.
        dtype: ``int8`` or ``float32``.
        shape: A row's geometry: the centre of its pixel, or its outline.
        columns: (name, numpy dtype) of the further columns of every piece.
        about: How to read the vectors, for the file's metadata (key ``earthpress``).

    Returns:
        Rows.

    Raises:
        InvalidInputError: A piece does not fit, or there is no row at all.
        OutputError: The file cannot be written.
    """
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    file = durable.local_path(path)
    schema = _schema(bands, dtype, columns)
    rows, edges = 0, [180.0, 90.0, -180.0, -90.0]
    with durable.placed(file) as temp, pq.ParquetWriter(temp, schema, compression="zstd", version="2.6") as writer:
        for piece in pieces:
            batch, bounds = _batch(piece, schema, bands=bands, dtype=dtype, shape=shape, columns=columns)
            if batch.num_rows:
                writer.write_table(pa.Table.from_batches([batch], schema), row_group_size=batch.num_rows)
                rows += batch.num_rows
                edges = [*map(min, edges[:2], bounds[:2]), *map(max, edges[2:], bounds[2:])]
        if not rows:
            raise InvalidInputError(f"{file.name}: there is no vector to write")
        # known only now, and the footer is written when the file is closed
        about_file = {"geo": json.dumps(_geo(edges, shape)), "earthpress": json.dumps(about, sort_keys=True)}
        writer.add_key_value_metadata(about_file)
    return rows


def averaged(values: NDArray[Any], side: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Means over squares of ``side`` pixels, of the pixels that have a vector.

    Args:
        values: (band, row, col) float32, NaN where there is none; rows and columns are multiples of ``side``.
        side: Pixels.

    Returns:
        ((band, row, col) float32, (row, col) bool: squares with at least half of their pixels).
    """
    bands, rows, cols = values.shape
    squares = values.reshape(bands, rows // side, side, cols // side, side)
    count = np.isfinite(squares[0]).sum(axis=(1, 3))
    total = np.where(np.isfinite(squares), squares, 0).sum(axis=(2, 4), dtype=np.float64)
    return (total / np.maximum(count, 1)).astype(np.float32), 2 * count >= side * side


def hilbert(col: NDArray[np.int64], row: NDArray[np.int64], *, order: int = HILBERT_ORDER) -> NDArray[np.int64]:
    """Places along a Hilbert curve over 2**order x 2**order squares (Hilbert, 1891; by bits from the largest square).

    Example:
        >>> hilbert(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 0]), order=1).tolist()
        [0, 1, 2, 3]
    """
    x, y = col.astype(np.int64).copy(), row.astype(np.int64).copy()
    place = np.zeros_like(x)
    side = 1 << (order - 1)
    while side:
        right, low = (x & side) > 0, (y & side) > 0
        place += side * side * ((3 * right) ^ low)
        # each quadrant is walked as the first one is, mirrored or turned
        turned = ~low
        mirrored = turned & right
        x, y = np.where(mirrored, side - 1 - (x & (side - 1)), x), np.where(mirrored, side - 1 - (y & (side - 1)), y)
        x, y = np.where(turned, y, x), np.where(turned, x, y)
        side >>= 1
    return place


def _schema(bands: int, dtype: str, columns: Sequence[tuple[str, str]]) -> Any:
    import pyarrow as pa  # noqa: PLC0415

    edge = pa.float64()
    return pa.schema(
        [
            pa.field("zone", pa.int8(), nullable=False),
            pa.field("row", pa.int32(), nullable=False),
            pa.field("col", pa.int32(), nullable=False),
            *(pa.field(name, pa.from_numpy_dtype(np.dtype(kind)), nullable=False) for name, kind in columns),
            pa.field(VECTOR, pa.list_(pa.field("item", pa.from_numpy_dtype(np.dtype(dtype)), nullable=False), bands)),
            pa.field("bbox", pa.struct([(name, edge) for name in ("xmin", "ymin", "xmax", "ymax")]), nullable=False),
            pa.field(GEOMETRY, pa.binary(), nullable=False),
        ]
    )


def _geo(edges: Sequence[float], shape: str) -> dict[str, Any]:
    """The file's ``geo`` metadata; without a crs it is OGC:CRS84, longitude and latitude."""
    covering = {name: ["bbox", name] for name in ("xmin", "ymin", "xmax", "ymax")}
    kind = "Point" if shape == "point" else "Polygon"
    column = {"encoding": "WKB", "geometry_types": [kind], "bbox": list(edges), "covering": {"bbox": covering}}
    return {"version": "1.1.0", "primary_column": GEOMETRY, "columns": {GEOMETRY: column}}


def _batch(
    piece: Piece, schema: Any, *, bands: int, dtype: str, shape: str, columns: Sequence[tuple[str, str]]
) -> tuple[Any, tuple[float, float, float, float]]:
    import pyarrow as pa  # noqa: PLC0415
    import shapely  # noqa: PLC0415

    box = piece.box
    if piece.values.shape != (bands, *box.shape) or piece.values.dtype != dtype or piece.valid.shape != box.shape:
        raise InvalidInputError(f"vectors {piece.values.dtype} {piece.values.shape} of {box}: want {bands} x {dtype}")
    if tuple(name for name, _ in piece.columns) != tuple(name for name, _ in columns):
        raise InvalidInputError(f"columns {[n for n, _ in piece.columns]}, the table has {[n for n, _ in columns]}")
    rows, cols = np.nonzero(piece.valid)
    order = np.argsort(hilbert(cols, rows), kind="stable")
    rows, cols = rows[order], cols[order]
    if not len(rows):
        return pa.RecordBatch.from_pylist([], schema), (180.0, 90.0, -180.0, -90.0)
    shapes = _shapes(box, rows, cols, shape)
    edges = shapely.bounds(shapes)
    flat = np.ascontiguousarray(piece.values[:, rows, cols].T).reshape(-1)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(flat), type=schema.field(VECTOR).type)
    names = ("xmin", "ymin", "xmax", "ymax")
    arrays = [
        pa.array(np.full(len(rows), box.zone, np.int8)),
        pa.array((box.row + rows).astype(np.int32)),
        pa.array((box.col + cols).astype(np.int32)),
        *(
            pa.array(np.ascontiguousarray(values[rows, cols]).astype(kind))
            for (_, values), (_, kind) in zip(piece.columns, columns, strict=True)
        ),
        vectors,
        pa.StructArray.from_arrays([pa.array(edges[:, k]) for k in range(4)], names=list(names)),
        pa.array(shapely.to_wkb(shapes), pa.binary()),
    ]
    west, south = edges[:, :2].min(axis=0)
    east, north = edges[:, 2:].max(axis=0)
    return pa.RecordBatch.from_arrays(arrays, schema=schema), (west, south, east, north)


def _shapes(box: Box, rows: NDArray[np.int64], cols: NDArray[np.int64], shape: str) -> NDArray[Any]:
    """Points or outlines of pixels, lon/lat; an outline across the antimeridian goes beyond 180 degrees."""
    import shapely  # noqa: PLC0415
    from pyproj import Transformer  # noqa: PLC0415

    to_degrees = Transformer.from_crs(box.epsg, 4326, always_xy=True)
    res = float(box.res_m)
    if shape == "point":
        lon, lat = to_degrees.transform((box.col + cols + 0.5) * res, -(box.row + rows + 0.5) * res)
        return np.asarray(shapely.points(lon, lat))
    # counter-clockwise from the south-west
    down, right = np.array([1, 1, 0, 0, 1]), np.array([0, 1, 1, 0, 0])
    x, y = (box.col + cols[:, None] + right) * res, -(box.row + rows[:, None] + down) * res
    lon, lat = to_degrees.transform(x, y)
    crossing = np.ptp(lon, axis=1, keepdims=True) > 180
    lon = np.where(crossing & (lon < 0), lon + 360, lon)
    return np.asarray(shapely.polygons(np.stack([lon, lat], axis=-1)))
