"""The archives' traps: a table of them, and how a check and the switch of what it checks are registered.

A trap is a check, which runs a scenario through the real code and asserts the right outcome, and a switch, which takes
away exactly the handling of that trap. ``test_traps`` runs every check twice: it must pass, and it must fail with the
switch thrown.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import pytest

    Check = Callable[[Path, pytest.MonkeyPatch], None]
    Switch = Callable[[pytest.MonkeyPatch], None]

ROWS = {
    1: "Sentinel-2 from baseline 04.00 on holds +1000",
    2: "the offset is subtracted after resampling",
    3: "earth-search's offset flag is wrong in both directions",
    4: "readers that apply scale and offset tags",
    5: "reprocessed duplicates and split datastrips",
    6: "neighbouring MGRS tiles overlap, across UTM zones too",
    7: "partial footprints, coarser than the pixels",
    8: "nodata 0, -32768, and borders of zeros in old radar scenes",
    9: "Sentinel-1 is linear power: decibels once, IW, VV and VH, orbits, order",
    10: "Landsat is Collection 2 Level-1, B8 first, requester-pays",
    11: "mixed resolutions",
    12: "areas over several UTM zones",
    13: "the antimeridian",
    14: "paging",
    15: "timeouts and load of a STAC API",
    16: "STAC intervals are closed at both ends",
    17: "the order of results differs by server",
    18: "signatures expire",
    19: "the token service limits its rate",
    20: "the archive throttles with 503",
    21: "files that are corrupt or gone",
    22: "items without a cloud cover",
}
"""The archives' traps, by number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trap:
    """One check.

    Attributes:
        row: Of ``ROWS``.
        check: Gets an empty folder and a monkeypatch; raises when the outcome is wrong.
        off: Takes the handling away; applied before ``check``.
        sample: Whether the folder must hold a copy of the simulated sample, as ``sample``.
    """

    row: int
    check: Check
    off: Switch
    sample: bool = False


TRAPS: dict[str, Trap] = {}
"""By name."""


def trap(row: int, *, off: Switch, sample: bool = False) -> Callable[[Check], Check]:
    """Register a check under its own name."""

    def keep(check: Check) -> Check:
        name = check.__name__.strip("_").replace("_", "-")
        if name in TRAPS:
            raise ValueError(f"two traps are called {name}")
        TRAPS[name] = Trap(row=row, check=check, off=off, sample=sample)
        return check

    return keep


def swap(target: Any, name: str, value: Any) -> Switch:
    """The switch that puts ``value`` in the place of an attribute, which must exist."""
    return lambda patch: patch.setattr(target, name, value)


@contextmanager
def refuses(kind: type[Exception], *said: str) -> Iterator[None]:
    """What is inside must be refused with an error of this kind that says all of these."""
    try:
        yield
    except kind as err:
        text = str(err)
    else:
        raise AssertionError(f"nothing was refused, {kind.__name__} is wanted")
    missing = [word for word in said if word not in text]
    assert not missing, f"{missing} not in: {text}"
