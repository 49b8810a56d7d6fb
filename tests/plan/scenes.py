"""Scenes without files for the tests of selection."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import shapely

from pipeline.types import Scene

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry

START = datetime(2024, 3, 1, tzinfo=UTC)


def scene(
    name: str,
    where: BaseGeometry,
    *,
    days: float = 1.0,
    cloud: float | None = 10.0,
    sensor: str = "sentinel2_l2a",
    **more: object,
) -> Scene:
    """A scene with a footprint, ``days`` after ``START``."""
    return Scene(
        id=name,
        collection="c",
        sensor=sensor,
        acquired=START + timedelta(days=days),
        cloud_pct=cloud,
        footprint=shapely.to_wkb(where, hex=True),
        assets=(),
        **more,
    )
