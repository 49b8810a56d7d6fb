"""rslearn's own choice of scenes, for comparison; runs where rslearn is installed and needs nothing of this project.

Standard input: JSON list of cases {"zone", "window": [col, row, col_stop, row_stop], "start", "end", "days", "items":
[{"id", "wkt", "time", "cloud"}]}, lattice pixels of 10 m in EPSG:326NN, footprints lon/lat, items in the order in which
the catalogue answers. Standard output: JSON, for every case and period from ``start`` on the ids taken, in order.
"""

from __future__ import annotations

import json
import sys
from datetime import datetime, timedelta

import shapely
from rasterio.crs import CRS
from rslearn.config import QueryConfig, SpaceMode
from rslearn.data_sources import Item
from rslearn.data_sources.utils import match_candidate_items_to_window
from rslearn.utils.geometry import WGS84_PROJECTION, Projection, STGeometry


def choose(case):
    start, end = datetime.fromisoformat(case["start"]), datetime.fromisoformat(case["end"])
    length = timedelta(days=case["days"])
    plane = Projection(CRS.from_epsg(32600 + case["zone"]), 10, -10)
    window = STGeometry(plane, shapely.box(*case["window"]), (start, end))
    found = sorted(case["items"], key=lambda item: item["cloud"])  # StacDataSource.get_items with sort_by
    items = []
    for item in found:
        time = datetime.fromisoformat(item["time"])
        items.append(Item(item["id"], STGeometry(WGS84_PROJECTION, shapely.from_wkt(item["wkt"]), (time, time))))
    query = QueryConfig(
        space_mode=SpaceMode.MOSAIC,
        period_duration=length,
        max_matches=12,
        per_period_mosaic_reverse_time_order=False,
    )
    groups = match_candidate_items_to_window(window, items, query)
    taken = {group.request_time_range[0]: [item.name for item in group.items] for group in groups}
    return [taken.get(start + length * i, []) for i in range((end - start) // length)]


if __name__ == "__main__":
    json.dump([choose(case) for case in json.load(sys.stdin)], sys.stdout)
