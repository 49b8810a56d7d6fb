"""Bands in a Stack's encoding, and another archive's copy where a file cannot be read."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
from files import scene_of, write_cog

from pipeline.errors import DataError, InvalidInputError, TransientError
from pipeline.read.access import Access
from pipeline.read.windows import read_band
from pipeline.types import Asset, Box

LOCAL = Access(allow_local=True)
BOX = Box(zone=32, res_m=10, row=-550_000, col=40_000, height=64, width=64)


def scene(scene_id: str, href, *, offset: int = 0, collection: str = "sentinel-2-l2a", **changes):
    found = scene_of(scene_id, Asset(band="B02", href=str(href)), boa_offset=offset)
    return replace(found, collection=collection, **changes)


@pytest.fixture
def files(tmp_path):
    values = np.random.default_rng(0).integers(1, 9000, BOX.shape).astype(np.uint16)
    values[:4] = 0
    harmonised = write_cog(tmp_path / "harmonised.tif", values, box=BOX)
    original = write_cog(tmp_path / "original.tif", np.where(values, values + 1000, 0).astype(np.uint16), box=BOX)
    torn = tmp_path / "torn.tif"
    torn.write_bytes(original.read_bytes()[:900])
    return {"harmonised": harmonised, "original": original, "torn": torn, "gone": tmp_path / "gone.tif"}


def read(found, **options):
    return read_band(found, "B02", box=BOX, access=options.pop("access", LOCAL), **options)


def test_a_band_comes_in_the_encoding_of_a_stack(files):
    np.testing.assert_array_equal(
        read(scene("A", files["harmonised"], offset=1000)), read(scene("B", files["original"]))
    )
    assert not read(scene("A", files["harmonised"], offset=1000))[:4].any()


@pytest.mark.parametrize("broken", ["torn", "gone"])
def test_an_alternate_is_read_with_its_own_offset_where_a_file_is_broken(files, broken):
    other = scene("B", files["harmonised"], offset=1000, collection="sentinel-2-c1-l2a")
    notes = []
    got = read(scene("A", files[broken], alternates=(other,)), note=notes.append)
    np.testing.assert_array_equal(got, read(scene("A", files["original"])))
    assert notes == ["B02 of A read from its alternate B (sentinel-2-c1-l2a)"]


def test_the_use_of_an_alternate_is_logged(files, caplog):
    caplog.set_level(logging.INFO, logger="pipeline.read.alternates")
    read(scene("A", files["gone"], alternates=(scene("B", files["original"]),)))
    assert "read from its alternate B" in caplog.text


def test_an_alternate_is_not_touched_while_the_scenes_own_file_is_readable(files):
    notes = []
    read(scene("A", files["original"], alternates=(scene("B", files["gone"]),)), note=notes.append)
    assert notes == []


def test_alternates_are_tried_in_their_order(files):
    others = (scene("B", files["torn"]), scene("C", files["harmonised"], offset=1000), scene("D", files["gone"]))
    notes = []
    read(scene("A", files["gone"], alternates=others), note=notes.append)
    assert notes == ["B02 of A read from its alternate C (sentinel-2-l2a)"]


def test_a_band_that_only_an_alternate_has_is_read_there(files):
    empty = replace(scene("A", files["gone"]), assets=(), alternates=(scene("B", files["original"]),))
    np.testing.assert_array_equal(read(empty), read(scene("B", files["original"])))


def test_the_error_is_that_of_the_scenes_own_file_when_no_copy_is_readable(files):
    with pytest.raises(DataError, match=r"item A, band B02.*gone\.tif"):
        read(scene("A", files["gone"], alternates=(scene("B", files["torn"]),)))


def test_a_band_that_no_copy_has_is_a_data_error(files):
    with pytest.raises(DataError, match="item A, band B09: the item has no such file"):
        read_band(scene("A", files["original"]), "B09", box=BOX, access=LOCAL)


def test_an_alternate_whose_location_is_not_allowed_is_left_out(files):
    far = scene("B", "ftp://example.org/B02.tif")
    with pytest.raises(DataError, match="item A"):
        read(scene("A", files["gone"], alternates=(far,)))
    near = scene("C", files["original"])
    np.testing.assert_array_equal(read(scene("A", files["gone"], alternates=(far, near))), read(near))


def test_a_scene_whose_own_location_is_not_allowed_is_an_error_in_spite_of_its_alternates(files):
    with pytest.raises(InvalidInputError, match="not allowed"):
        read(scene("A", "ftp://example.org/B02.tif", alternates=(scene("B", files["original"]),)))


def test_a_scene_that_gets_no_token_is_read_from_its_alternate(files):
    class Mute:
        def sign(self, href):
            raise TransientError("no token")

        def forget(self, href): ...

    access = Access(allow_local=True, signer=Mute())
    unsigned = scene("B", files["original"])
    got = read(scene("A", files["original"], sign=True, alternates=(unsigned,)), access=access)
    np.testing.assert_array_equal(got, read(unsigned))
    with pytest.raises(TransientError):
        read(scene("A", files["original"], sign=True), access=access)
