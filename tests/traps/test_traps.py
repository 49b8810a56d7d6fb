"""Every trap of the archives is handled, and its check fails when the handling is switched off."""

from __future__ import annotations

import os
import shutil

import pytest

from pipeline.errors import EarthpressError
from pipeline.read import signing, throttle
from tests.traps import traps_archives, traps_offsets, traps_pixels, traps_products, traps_scenes, traps_search
from tests.traps.traps import ROWS, TRAPS

MODULES = (traps_offsets, traps_scenes, traps_pixels, traps_products, traps_search, traps_archives)
"""Importing them fills ``TRAPS``."""


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    """No token, no slowed archive and no long wait of another test."""
    monkeypatch.setattr(signing, "_TOKENS", {})
    monkeypatch.setattr(signing, "BACKOFF_S", 0.01)
    monkeypatch.setattr(throttle, "_ALL", {})


@pytest.fixture(name="folder")
def _folder(name, tmp_path, request):
    """What a trap's check works in; its copy of the sample shares the files' bytes."""
    if TRAPS[name].sample:
        sample = request.getfixturevalue("sample")
        shutil.copytree(sample.folder, tmp_path / "sample", copy_function=os.link)
    return tmp_path


@pytest.mark.parametrize("name", TRAPS)
def test_trap(name, folder, monkeypatch):
    TRAPS[name].check(folder, monkeypatch)


@pytest.mark.parametrize("name", TRAPS)
def test_trap_bites_when_its_handling_is_off(name, folder, monkeypatch):
    TRAPS[name].off(monkeypatch)
    with pytest.raises((AssertionError, EarthpressError)):
        TRAPS[name].check(folder, monkeypatch)


def test_no_trap_is_left_out():
    assert list(ROWS) == list(range(1, 23))
    assert {t.row for t in TRAPS.values()} == set(ROWS)
