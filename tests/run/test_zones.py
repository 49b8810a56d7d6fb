"""An area across a zone border, north and south: each ground pixel once, in the zone that owns it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pyproj import Transformer

from pipeline import api
from pipeline.errors import InvalidInputError
from pipeline.simulate.items import make_item
from pipeline.simulate.landscape import survey
from pipeline.simulate.sample import datatakes
from pipeline.simulate.scenes import Granule, observe, write_scene
from pipeline.types import Box, Reason
from tests.run.sampled import request_of, run_request

BORDER_LON = 6.0


def two_granules(folder, lat):
    """A catalogue of one clear datatake seen in zone 31 and in zone 32, over the border between them."""
    clear = datatakes()[1][0]
    items = []
    for zone in (31, 32):
        x, y = Transformer.from_crs(4326, 32600 + zone, always_xy=True).transform(BORDER_LON, lat)
        box = Box(zone=zone, res_m=10, row=int(-y // 60) * 6 - 180, col=int(x // 60) * 6 - 180, height=360, width=360)
        granule = Granule(name=f"{zone}TTT", box=box)
        image = observe(survey(box), granule, clear)
        (folder / str(zone)).mkdir(parents=True)
        files = {band: f"{zone}/{Path(name).name}" for band, name in write_scene(image, folder / str(zone)).items()}
        items.append(make_item(image, files=files, folder=Path()))
    (folder / "items.json").write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    return folder / "items.json"


@pytest.mark.parametrize("lat", [47.0, -30.0])
def test_an_area_across_a_zone_border_is_mapped_once(sample, tmp_path, lat):
    settings = request_of(
        sample, tmp_path / "out", bbox=(5.996, lat - 0.003, 6.004, lat + 0.003), end="2024-05-01",
        inputs={"catalog": str(two_granules(tmp_path / "scenes", lat))},
    )  # fmt: skip
    plan, outcome = run_request(settings, pictures=True)
    assert outcome.exit_code == 0
    assert {task.tile.zone for task in plan.tasks} == {31, 32}
    for zone, west, east in ((31, 5.9, BORDER_LON), (32, BORDER_LON, 6.1)):
        data = api.open_store(str(tmp_path / "out"), zone=zone)
        assert data.rio.crs.to_epsg() == 32600 + zone
        reason = data.reason.values[0]
        rows, cols = np.nonzero(reason == Reason.VALID)
        lon, lats = Transformer.from_crs(32600 + zone, 4326, always_xy=True).transform(
            data.x.values[cols], data.y.values[rows]
        )
        assert len(rows) > 1000
        assert ((lon >= west) & (lon < east)).all()
        assert np.abs(lats - lat).max() < 0.05
        assert (reason == Reason.OTHER_ZONE).any()
    with pytest.raises(InvalidInputError, match="zone"):
        api.open_store(str(tmp_path / "out"))
    assert len(outcome.published.quicklooks) == 4
