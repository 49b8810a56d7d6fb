"""The price table: what an hour of a machine costs, as dated data that a user replaces by their own.

Pure but for reading one YAML file. A price that is not in the table is unknown (None), never zero.
"""

from __future__ import annotations

import difflib
from datetime import date  # noqa: TC003  (pydantic reads the annotation)
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import ConfigError

MAX_PRICE_FILE_BYTES = 1_000_000
PACKAGED = (Path(__file__).with_name("prices.yaml"), Path(__file__).parents[2] / "configs" / "prices.yaml")
"""The table inside an installed wheel; in a checkout the one under ``configs``."""


class PriceRow(BaseModel):
    """One billable machine, or one device's share of it; spot and on-demand are different rows.

    ``cores`` are vCPUs as the provider counts them. Only USD: conversion would need a rate with a date of its own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    instance: str = Field(min_length=1)
    usd_per_hour: float = Field(ge=0, allow_inf_nan=False)
    currency: Literal["USD"]
    region: str = Field(min_length=1)
    date: date
    source: str = Field(min_length=1)
    spot: bool
    gpus: int = Field(ge=0)
    cores: int = Field(ge=1)
    note: str = ""


class StorageRow(BaseModel):
    """One kind of storage; None where the price is unknown."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    usd_per_gb_month: float | None = Field(None, ge=0)
    egress_usd_per_gb: float | None = Field(None, ge=0)
    currency: Literal["USD"]
    region: str
    date: date
    source: str
    note: str = ""


class PriceTable(BaseModel):
    """All rows of one file; ``load`` builds it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    instances: tuple[PriceRow, ...]
    storage: tuple[StorageRow, ...] = ()

    def row(self, instance: str) -> PriceRow | None:
        """The row of ``instance``; None for "" (the price is unknown).

        Raises:
            ConfigError: No such row; the nearest ones are named.
        """
        if not instance:
            return None
        found = next((r for r in self.instances if r.instance == instance), None)
        if found is None:
            names = [r.instance for r in self.instances]
            near = difflib.get_close_matches(instance, names, n=3, cutoff=0.4) or names[:3]
            raise ConfigError(
                f"account.instance {instance!r} is not in the price table; nearest: {', '.join(near)}. Add a row to a "
                'copy of the table and name it in account.prices, or set account.instance to "" (USD unknown)'
            )
        return found


def load(path: str = "") -> PriceTable:
    """Read a price table.

    Args:
        path: YAML file; empty: the packaged table.

    Raises:
        ConfigError: File missing, too large, not YAML, an instance twice, or a row that is not as ``PriceRow`` says.
    """
    file = Path(path) if path else next((p for p in PACKAGED if p.is_file()), PACKAGED[0])
    if not file.is_file():
        raise ConfigError(f"price table {file} does not exist")
    if file.stat().st_size > MAX_PRICE_FILE_BYTES:
        raise ConfigError(f"price table {file} is larger than {MAX_PRICE_FILE_BYTES} bytes")
    try:
        table = PriceTable.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError) as err:
        raise ConfigError(f"price table {file} is not YAML: {err}") from err
    except ValidationError as err:
        first = err.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ConfigError(f"price table {file}: {where}: {first['msg']} ({err.error_count()} problems)") from err
    names = [r.instance for r in table.instances]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise ConfigError(f"price table {file} has these instances twice: {', '.join(twice)}")
    return table


def find(instance: str, *, path: str = "") -> PriceRow | None:
    """The row of ``instance`` in the table at ``path``; see ``load`` and ``PriceTable.row``.

    Raises:
        ConfigError: The table cannot be used, or has no such row.
    """
    return load(path).row(instance)
