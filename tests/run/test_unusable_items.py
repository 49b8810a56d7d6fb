"""Items that refuse a whole search: the plan fails as wrong input, not as a run with some tiles failed."""

from __future__ import annotations

import json

import pytest

from pipeline import api
from pipeline.errors import InvalidInputError
from tests.run.sampled import request_of


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "../../x"}, "the id is refused"),
        ({"assets": {"href": "/vsicurl/http://169.254.169.254/x.tif"}}, "is refused"),
    ],
    ids=["id that leaves the folder", "virtual file system"],
)
def test_an_item_that_must_not_be_used_ends_planning_with_2(sample, tmp_path, change, message):
    items = json.loads(sample.catalog.read_text(encoding="utf-8"))
    for item in items["features"]:
        item["id"] = change.get("id", item["id"])
        for asset in item["assets"].values():
            asset.update(change.get("assets", {}))
    bad = tmp_path / "items.json"
    bad.write_text(json.dumps(items), encoding="utf-8")
    with pytest.raises(InvalidInputError, match=message) as refused:
        api.plan(request_of(sample, tmp_path / "out", inputs={"catalog": str(bad)}))
    assert refused.value.exit_code == 2
    assert not (tmp_path / "out").exists()
