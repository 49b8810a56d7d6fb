"""Settings: every wrong key or value is named with the way out."""

from __future__ import annotations

from datetime import date

import pytest

from pipeline.config import load, valid_keys
from pipeline.errors import ConfigError
from pipeline.run.prepare import stitching


@pytest.mark.parametrize(
    ("text", "hint"),
    [("encode.pach_px=4", "encode.patch_px"), ("strat=2024-01-01", "start"), ("run.iothreads=3", "run.io_threads")],
)
def test_an_unknown_key_names_the_nearest_valid_one(text, hint):
    with pytest.raises(ConfigError, match=f"did you mean '{hint}'"):
        load(None, overrides=[text])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("encode.window_px=62", "not a positive multiple of encode.patch_px 4"),
        ("encode.overlap_px=10", "not a multiple"),
        ("encode={window_px: 64, overlap_px: 64}", "must be smaller than encode.window_px 64"),
        ("encode.margin_px=-1", "must not be negative"),
        ("encode.patch_px=3", "patch_px"),
        ("store.tile_px=300", "tile_px"),
        ("inputs.sentinel2.max_cloud_pct=140", "less than or equal to 100"),
        ("encode.batch_windows=0", "at least 1"),
        ("run.io_threads=none", "io_threads"),
        ("maps=[1", "not a YAML value"),
    ],
)
def test_an_impossible_value_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        load(None, overrides=[text])


def test_overrides_win_over_the_file_and_values_over_both(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("encode: {patch_px: 2}\nstart: 2024-01-01\nmodel: a\n")
    got = load(str(path), overrides=["encode.patch_px=8", "model=b"], values={"model": "c", "end": None})
    assert (got.encode.patch_px, got.model, got.start) == (8, "c", date(2024, 1, 1))


@pytest.mark.parametrize("text", ["- 1\n- 2\n", "a: [", "\x00\x01"])
def test_a_file_that_is_no_configuration_is_refused(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="configuration"):
        load(str(path))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        load(str(tmp_path / "none.yaml"))


def test_an_override_without_equals_sign_is_refused():
    with pytest.raises(ConfigError, match="key=value"):
        load(None, overrides=["encode.patch_px"])


def test_overlap_and_margin_exclude_each_other():
    assert load(None, overrides=["encode.margin_px=8"]).encode.margin_px == 8
    with pytest.raises(ConfigError, match="give one of them"):
        load(None, overrides=["encode.margin_px=8", "encode.overlap_px=16"])


def test_stitching_and_resolution_follow_the_model():
    encode = load(None).encode
    assert [stitching(encode, version=v) for v in ("v1", "v1.1", "v1.2", "v1.3")] == [
        "centre",
        "centre",
        "blend",
        "neighbourhood",
    ]
    assert (encode.token_px(192), encode.token_px(768)) == (1, encode.patch_px)
    fixed = load(None, overrides=["encode.stitch=blend", "encode.resolution=pixel"]).encode
    assert (stitching(fixed, version="v1"), fixed.token_px(768)) == ("blend", 1)
    dense = load(None, overrides=["encode.dense=2"]).encode
    assert dense.token_px(768) == 1  # shifted tokens do not fit a store of tokens


def test_windows_that_are_set_are_windows_for_every_version():
    encode = load(None, overrides=["encode.window_px=32"]).encode
    assert stitching(encode, version="v1.3") == "blend"


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["encode.stitch=neighbourhood", "encode.window_px=64"], "encode.window_px: these are for windows"),
        (["encode.stitch=neighbourhood", "encode.ramp=3", "encode.batch_windows=4"], "ramp and encode.batch_windows"),
        (["encode.stitch=blend", "encode.box_px=16"], "encode.box_px are for encode.stitch=neighbourhood"),
        (["encode.box_px=18"], "encode.box_px 18 is not a multiple"),
        (["encode.halo_px=-4"], "encode.halo_px -4 is not a multiple"),
        (["encode.ramp=-1"], "must not be negative"),
        (["encode.ramp=2", "encode.overlap_px=8"], "give one of them"),
        (["encode.dense=2", "encode.resolution=token"], "use encode.resolution=pixel"),
        (["encode.dense=2", "encode.patch_px=1"], "needs an even encode.patch_px"),
    ],
)
def test_settings_of_stitching_that_exclude_each_other_are_refused(overrides, says):
    with pytest.raises(ConfigError, match=says):
        load(None, overrides=overrides)


def test_two_maps_of_one_name_are_refused():
    with pytest.raises(ConfigError, match="same name"):
        load(None, overrides=["maps=[{name: a, head: x}, {name: a, head: y}]"])


def test_every_key_can_be_set_to_what_it_is():
    assert "encode.window_px" in valid_keys()
    assert len(set(valid_keys())) == len(valid_keys())


def test_a_refused_entry_of_a_list_is_not_also_called_an_empty_list():
    with pytest.raises(ConfigError, match="sensors.0") as refused:
        load(None, overrides=["inputs.sensors=[sentinel2]"])
    assert "at least 1 item" not in str(refused.value)
