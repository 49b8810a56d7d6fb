"""From a measured row to device-hours and dollars a year: pure arithmetic, every multiplier on a line of its own.

Three workloads: 4 billion images of the row's own size (how ThroughputBench counts, whatever an image covers), the
ground of 4 billion patches of 224 x 224 px, and an area with a revisit. An image is a window with all its dates, so a
row with 12 dates prices 4 billion stacks of 12. What a row measures is the encoder alone, fed from memory and without
overlap; overlap, test-time augmentation and waiting for input come on top.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import InvalidInputError
from pipeline.types import PIXEL_M

if TYPE_CHECKING:
    from pipeline.account.prices import PriceRow
    from pipeline.bench.rows import Case, Result

PATCHES_PER_YEAR = 4_000_000_000
"""Patches of Sentinel-2 a year after filtering clouds (geospatialml.com/posts/throughput-bench, 2026)."""
PATCH_PX = 224
"""Side of such a patch, 10 m pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Factors:
    """What multiplies the encoder's time.

    Attributes:
        overlap: Overlap of neighbouring windows as a share of their side, 0 <= overlap < 1.
        augmentations: Passes over every window, e.g. 8 for all flips and quarter turns.
        waiting: Share of the time in which the device waits for input, 0 <= waiting < 1 (``bench loader`` measures it).
    """

    overlap: float = 0.25
    augmentations: int = 1
    waiting: float = 0.0

    def __post_init__(self) -> None:
        for name, value in (("overlap", self.overlap), ("waiting", self.waiting)):
            if not 0 <= value < 1:
                raise InvalidInputError(f"{name} is {value}, want a share from 0 to below 1")
        if self.augmentations < 1:
            raise InvalidInputError(f"augmentations is {self.augmentations}, want 1 or more passes")

    @property
    def multipliers(self) -> tuple[tuple[str, float], ...]:
        """(name, factor) of each.

        >>> Factors(overlap=0.5, augmentations=8, waiting=0.2).multipliers[0]
        ('overlap', 4.0)
        """
        return (
            ("overlap", 1 / (1 - self.overlap) ** 2),
            ("test-time augmentation", float(self.augmentations)),
            ("waiting for input", 1 / (1 - self.waiting)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What a year asks for.

    Attributes:
        name: For people.
        images: Windows of the row's size, without overlap.
        km2: Ground they cover, each revisit counted.
    """

    name: str
    images: float
    km2: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of a projection.

    Attributes:
        what: ``encoder alone``, a multiplier, or ``all together``.
        factor: Of the first line.
        hours: Device-hours with this factor alone.
        usd: Their price, None when unknown.
    """

    what: str
    factor: float
    hours: float
    usd: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """A row and a workload.

    Attributes:
        case: The row.
        workload: What is asked for.
        unit: What an hour is an hour of.
        lines: ``encoder alone`` first, ``all together`` last.
    """

    case: Case
    workload: Workload
    unit: str
    lines: tuple[Line, ...]


def project(
    rows: tuple[tuple[Case, Result], ...],
    *,
    factors: Factors,
    area_km2: float | None = None,
    revisits: float = 1.0,
    usd_per_hour: float | None = None,
    cuda: bool,
) -> tuple[Projection, ...]:
    """Project every row that has a speed.

    Args:
        rows: From ``encoder.bench``.
        factors: Multipliers.
        area_km2: The user's area; None: only the published workloads.
        revisits: How often a year it is computed.
        usd_per_hour: Price of an hour of the device (CPU: of the row's threads); None: unknown.
        cuda: Whether the rows are of a GPU.

    Raises:
        InvalidInputError: An area, revisit or price that is not positive.
    """
    given = (("area", area_km2, "km2"), ("revisits", revisits, "times a year"), ("price", usd_per_hour, "USD per hour"))
    for name, value, unit in given:
        if value is not None and value <= 0:
            raise InvalidInputError(f"{name} is {value} {unit}, want more than 0")
    return tuple(
        Projection(
            case=case,
            workload=workload,
            unit="GPU-hours" if cuda else f"hours of {case.threads} CPU thread{'s' if case.threads > 1 else ''}",
            lines=_lines(workload.images / result.images_per_s / 3600, factors, usd_per_hour),
        )
        for case, result in rows
        if result.images_per_s
        for workload in workloads(case, area_km2=area_km2, revisits=revisits)
    )


def workloads(case: Case, *, area_km2: float | None, revisits: float) -> tuple[Workload, ...]:
    """The workloads in windows of a row's size."""
    window_km2 = (case.window_px * PIXEL_M / 1000) ** 2
    patches_km2 = PATCHES_PER_YEAR * (PATCH_PX * PIXEL_M / 1000) ** 2
    found = [
        Workload(
            name=f"{PATCHES_PER_YEAR / 1e9:g} billion images of {case.window_px} px, as ThroughputBench counts",
            images=float(PATCHES_PER_YEAR),
            km2=PATCHES_PER_YEAR * window_km2,
        ),
        Workload(
            name=f"the ground of {PATCHES_PER_YEAR / 1e9:g} billion patches of {PATCH_PX} x {PATCH_PX} px",
            images=patches_km2 / window_km2,
            km2=patches_km2,
        ),
    ]
    if area_km2 is not None:
        km2 = area_km2 * revisits
        found.append(Workload(name=f"{area_km2:,g} km2, {revisits:g} times a year", images=km2 / window_km2, km2=km2))
    return tuple(found)


def _lines(hours: float, factors: Factors, usd_per_hour: float | None) -> tuple[Line, ...]:
    together = 1.0
    for _, factor in factors.multipliers:
        together *= factor
    named = (("encoder alone", 1.0), *factors.multipliers, ("all together", together))
    return tuple(
        Line(
            what=what,
            factor=factor,
            hours=hours * factor,
            usd=None if usd_per_hour is None else hours * factor * usd_per_hour,
        )
        for what, factor in named
    )


def usd_per_device_hour(price: PriceRow, *, threads: int, cuda: bool) -> float:
    """Price of an hour of one device from that of its machine: a GPU of several, or ``threads`` of its cores.

    Raises:
        InvalidInputError: The machine has no GPU, or fewer cores.
    """
    devices, wanted = (price.gpus, 1) if cuda else (price.cores, threads)
    if devices < wanted:
        raise InvalidInputError(
            f"{price.instance} has {price.gpus} GPUs and {price.cores} cores: not the machine of a row on "
            f"{'a GPU' if cuda else f'{threads} threads'}"
        )
    return price.usd_per_hour * wanted / devices
