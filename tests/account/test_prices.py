from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pipeline.account import prices
from pipeline.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
ROW = {
    "instance": "own.gpu",
    "usd_per_hour": 2.5,
    "currency": "USD",
    "region": "here",
    "date": "2026-01-02",
    "source": "https://example.com/prices",
    "spot": False,
    "gpus": 1,
    "cores": 8,
}


def write(path: Path, *rows: dict) -> str:
    path.write_text(yaml.safe_dump({"instances": list(rows)}))
    return str(path)


def test_packaged_table_is_the_one_in_configs():
    table = prices.load()
    assert table == prices.load(str(ROOT / "configs" / "prices.yaml"))
    assert {"g5.xlarge", "c7i.4xlarge", "p5.48xlarge@1of8"} <= {r.instance for r in table.instances}


def test_every_packaged_row_has_a_date_and_a_source_link():
    table = prices.load()
    assert all(r.source.startswith("https://") and r.date.year >= 2025 for r in (*table.instances, *table.storage))


def test_shares_of_a_machine_add_up_to_the_machine():
    table = {r.instance: r for r in prices.load().instances}
    for name, row in table.items():
        if name.endswith("@1of8"):
            whole = table[name.removesuffix("@1of8")]
            assert row.usd_per_hour == pytest.approx(whole.usd_per_hour / 8, rel=1e-4)
            assert (row.gpus * 8, row.cores * 8) == (whole.gpus, whole.cores)


def test_no_instance_means_no_price():
    assert prices.find("") is None


def test_own_table_wins(tmp_path):
    row = prices.find("own.gpu", path=write(tmp_path / "p.yaml", ROW))
    assert row is not None
    assert (row.usd_per_hour, row.gpus, row.cores) == (2.5, 1, 8)


def test_unknown_instance_names_the_nearest():
    with pytest.raises(ConfigError, match=r"'g5\.xlarg'.*g5\.xlarge"):
        prices.find("g5.xlarg")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"usd_per_hour": -1}, "usd_per_hour"),
        ({"usd_per_hour": float("nan")}, "usd_per_hour"),
        ({"currency": "EUR"}, "currency"),
        ({"source": ""}, "source"),
        ({"colour": "red"}, "colour"),
        ({"date": "soon"}, "date"),
    ],
)
def test_a_wrong_row_is_refused_by_name(tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        prices.load(write(tmp_path / "p.yaml", ROW | change))


def test_an_instance_listed_twice_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"twice: own\.gpu"):
        prices.load(write(tmp_path / "p.yaml", ROW, ROW))


def test_a_missing_or_broken_table_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        prices.load(str(tmp_path / "none.yaml"))
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="not YAML"):
        prices.load(str(tmp_path / "bad.yaml"))
