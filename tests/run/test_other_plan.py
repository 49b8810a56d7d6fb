"""The message about another plan names the settings that differ, and only those that decide pixels."""

from __future__ import annotations

import pytest

from pipeline import api
from pipeline.errors import OutputError
from tests.run.sampled import request_of


def test_another_plan_names_only_the_input_settings_that_differ(sample, tmp_path):
    out = tmp_path / "out"
    west, south, _, _ = sample.bbox
    bbox = (west + 0.02, south + 0.02, west + 0.03, south + 0.03)
    api.plan(request_of(sample, out, bbox=bbox))
    other = {"sentinel2": {"composite": "median"}, "reader": "async-geotiff", "allow_private_hosts": True}
    with pytest.raises(OutputError, match="another plan") as refused:
        api.plan(request_of(sample, out, bbox=bbox, inputs={"catalog": str(sample.catalog), **other}))
    assert "inputs.sentinel2.composite there scl_first_valid, here median" in str(refused.value)
    assert "reader" not in str(refused.value)
    assert "allow_private_hosts" not in str(refused.value)
    assert "sentinel1" not in str(refused.value)
