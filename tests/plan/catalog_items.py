"""Items, areas and periods for tests of catalogues."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import shapely

from pipeline.plan.catalog import ApiCatalog, scenes_of
from pipeline.plan.items import BAND_RES_M
from pipeline.types import Period

START = datetime(2024, 3, 1, tzinfo=UTC)
PERIODS = tuple(
    Period(index=i, start=START + timedelta(days=30 * i), end=START + timedelta(days=30 * (i + 1))) for i in range(3)
)
AREA = shapely.box(10.2, 48.2, 10.8, 48.8)


def item(name, *, days=1.0, shape=None, collection="sentinel-2-l2a", **properties):
    shape = shape or shapely.box(10, 48, 11, 49)
    time = (START + timedelta(days=days)).isoformat().replace("+00:00", "Z")
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "collection": collection,
        "geometry": shapely.geometry.mapping(shape),
        "bbox": list(shape.bounds),
        "properties": {"datetime": time, "eo:cloud_cover": 10.0, "s2:processing_baseline": "05.10"} | properties,
        "assets": {band: {"href": f"https://data.example/{name}/{band}.tif?sig=hunter2"} for band in BAND_RES_M},
        "links": [],
    }


ITEMS = [item(f"s{i:02d}", days=i * 4.0 + 0.5) for i in range(23)]


def find(catalog, *, geometry=AREA, periods=PERIODS, collection="sentinel-2-l2a"):
    return scenes_of(catalog, collection=collection, geometry=geometry, periods=periods)


def names(*args, **more):
    return [s.id for s in find(*args, **more)]


def api(server):
    return ApiCatalog(server.url, sign=False, backoff_s=0)


WANTED = [f"s{i:02d}" for i in range(23)]
