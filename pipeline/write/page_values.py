"""What the report page is made of: finished values, no files and no pixels to read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.write.mercator import Bounds

Value = str | int | float | None
"""A cell: numbers get thousands separators, None is shown as 'unknown'."""
Ring = tuple[tuple[float, float], ...]
"""(lon, lat) degrees of the corners of a polygon."""
KINDS = ("base", "period", "class", "ramp", "")
"""What a picture is on the map, see ``Picture.kind``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One picture. With ``bounds`` it lies on the map; pictures of one kind and name are one layer of several zones.

    Attributes:
        name: Short title; of all steps the same for ``period``.
        png: PNG file (``preview.png_bytes``, ``page_map.small_png``), transparent where nodata.
        caption: One sentence: what the colours mean.
        legend: (class, ``#rrggbb``) pairs.
        kind: ``base`` (a background), ``period`` (a step of a series of backgrounds), ``class`` (every colour is one
            class of the legend), ``ramp`` (colours stand for values) or "": a layer whose colours say nothing more.
        bounds: Of a picture in Web Mercator (``mercator.Warp``); None: not on the map.
        step: Which step of the series, for ``period``: its dates.
        ramp: (value, ``#rrggbb``) of the ends of the straight pieces of the colours, rising, for ``ramp``.
        unit: Of the values of the ramp.
        pixel_m: Ground that the smallest thing in the picture stands for, metres; 0: unknown.
    """

    name: str
    png: bytes
    caption: str = ""
    legend: tuple[tuple[str, str], ...] = ()
    kind: str = ""
    bounds: Bounds | None = None
    step: str = ""
    ramp: tuple[tuple[float, str], ...] = ()
    unit: str = ""
    pixel_m: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MapTile:
    """A tile on the map.

    Attributes:
        tile_id: As ``types.Tile.id``: where it lies is read from it, too.
        state: ``done``, ``degraded``, ``failed``, ``interrupted``, ``pending`` or ``empty``.
        ring: Its corners.
        facts: (label, text) shown beside it.
    """

    tile_id: str
    state: str
    ring: Ring
    facts: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MapView:
    """What the map shows beside the pictures.

    Attributes:
        tiles: Those drawn.
        tile_m: Side of a tile, metres.
        area: What was asked for; holes are rings too.
        reference_lon: Longitudes are drawn within 180 degrees of it.
        label: A warning over the map, e.g. ``UNTRAINED random weights``.
        note: A sentence below, e.g. that not every tile is drawn.
    """

    tiles: tuple[MapTile, ...] = ()
    tile_m: int = 0
    area: tuple[Ring, ...] = ()
    reference_lon: float = 0.0
    label: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table of any content, e.g. the scores of a probe.

    Attributes:
        title: Heading.
        columns: Column names; a column called ``status`` or ``state`` is shown as coloured badges.
        rows: Cells, one tuple per row.
        note: A sentence below.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeamSection:
    """The seam scores of a run.

    Attributes:
        table: Scores per lattice and axis.
        picture: The ground around the worst line.
        profile: From ``seam_picture.profile_svg``: the only markup that a value of this page may hold.
        caption: Of the profile.
    """

    table: Table
    picture: Picture | None = None
    profile: str = ""
    caption: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PageContent:
    """Everything the page shows; empty parts are left out.

    Attributes:
        title: Name of the run or store.
        subtitle: Area, dates, model in one line.
        warnings: What makes the result less than it looks (untrained weights, provisional calibration, degraded tiles).
        facts: (label, value, unit) shown large at the top: area, tiles, device-hours, cost.
        pictures: The backgrounds first, then what lies over them.
        view: Tiles and area of the map.
        tiles: Status of tiles.
        cost: (label, value, unit) of the ledger.
        storage: (label, value, unit) of the store.
        estimates: (label, estimate, actual, unit).
        seams: The seam scores.
        tables: Further tables.
        provenance: (key, value).
        notes: Sentences at the end.
        made: When and by what the page was made.
    """

    title: str
    subtitle: str = ""
    warnings: tuple[str, ...] = ()
    facts: tuple[tuple[str, Value, str], ...] = ()
    pictures: tuple[Picture, ...] = ()
    view: MapView | None = None
    tiles: Table | None = None
    cost: tuple[tuple[str, Value, str], ...] = ()
    storage: tuple[tuple[str, Value, str], ...] = ()
    estimates: tuple[tuple[str, Value, Value, str], ...] = ()
    seams: SeamSection | None = None
    tables: tuple[Table, ...] = ()
    provenance: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    made: str = ""
