"""The CSV: what was appended is read back, whatever happened to the file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.bench.table import Files, Table
from pipeline.errors import OutputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    name: str
    fast: bool
    batch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    speed: float | None = None
    error: str = ""


def table(folder):
    return Table(folder / "t.csv", Key, Value)


KEY = Key(name="a, b", fast=True, batch=4)


def test_rows_come_back_as_they_were(tmp_path):
    table(tmp_path).append(KEY, Value(speed=1.5))
    table(tmp_path).append(Key(name="c", fast=False, batch=1), Value(error='RuntimeError: "no"\nmemory'))
    assert table(tmp_path).rows() == (
        (KEY, Value(speed=1.5)),
        (Key(name="c", fast=False, batch=1), Value(error='RuntimeError: "no" memory')),
    )


def test_a_table_knows_its_keys(tmp_path):
    table(tmp_path).append(KEY, Value(speed=1.5))
    assert KEY in table(tmp_path)
    assert Key(name="a, b", fast=True, batch=5) not in table(tmp_path)


def test_a_line_that_was_cut_is_ignored_and_the_next_one_stands_by_itself(tmp_path):
    table(tmp_path).append(KEY, Value(speed=1.5))
    with (tmp_path / "t.csv").open("a") as file:
        file.write("d,true,")
    table(tmp_path).append(Key(name="e", fast=True, batch=2), Value(speed=2.0))
    assert [key.name for key, _ in table(tmp_path).rows()] == ["a, b", "e"]


def test_another_version_s_columns_are_refused(tmp_path):
    (tmp_path / "t.csv").write_text("name,batch\nx,1\n")
    with pytest.raises(OutputError, match="other columns"):
        table(tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="--output"):
        Table(tmp_path / "file" / "t.csv", Key, Value).append(KEY, Value())


def test_every_device_has_its_own_files():
    names = [Files(folder=Path(), device=name).csv().name for name in ("NVIDIA H100 NVL", "AMD EPYC AVX2")]
    assert names == ["nvidia_h100_nvl.csv", "amd_epyc_avx2.csv"]
