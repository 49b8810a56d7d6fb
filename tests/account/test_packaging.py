from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from pipeline.config import Settings, load, valid_keys

ROOT = Path(__file__).resolve().parents[2]
LOCK = (ROOT / "requirements.lock").read_text()
PINS = re.findall(r"^([A-Za-z0-9_.-]+)==([^ ;\\]+)", LOCK, flags=re.MULTILINE)
SETTINGS_FILES = sorted(
    p for p in (ROOT / "configs").rglob("*.yaml") if set(yaml.safe_load(p.read_text())) <= set(Settings.model_fields)
)


@pytest.mark.parametrize("path", SETTINGS_FILES, ids=lambda p: p.name)
def test_every_settings_file_loads(path):
    assert load(str(path)).output


def dotted(data, prefix=""):
    for key, value in data.items():
        yield prefix + key
        if isinstance(value, dict):
            yield from dotted(value, f"{prefix}{key}.")


def test_the_example_names_every_setting_and_its_default():
    data = yaml.safe_load((ROOT / "configs" / "example.yaml").read_text())
    assert set(valid_keys()) - set(dotted(data)) == {"aoi"}
    sections = {k for k, v in data.items() if isinstance(v, dict)}
    example, default = load(str(ROOT / "configs" / "example.yaml")), Settings()
    for section in sections:
        assert getattr(example, section) == getattr(default, section), section


def test_the_lock_holds_no_address():
    assert not re.search(r"index-url|find-links|trusted-host|://|file:|@ ", LOCK)


def test_every_pin_has_a_hash():
    blocks = re.split(r"^(?=[A-Za-z0-9])", LOCK, flags=re.MULTILINE)[1:]
    assert len(blocks) == len(PINS) > 80
    assert all("--hash=sha256:" in block for block in blocks)


def test_torch_and_its_device_libraries_are_not_locked():
    assert not [name for name, _ in PINS if re.match(r"torch$|triton$|nvidia-|cuda-", name)]


def test_every_dependency_but_torch_is_locked():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    names = {re.match(r"[A-Za-z0-9_-]+", w).group().lower().replace("_", "-") for w in wanted} - {"torch"}
    assert names <= {name.lower() for name, _ in PINS}


def test_ci_runs_the_test_command_of_the_readme():
    script = (ROOT / ".ci" / "run").read_text()
    assert "set -euo pipefail" in script
    assert script.rstrip().endswith("make test")
    fenced = re.search(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL).group(1)
    assert re.findall(r"^make \w+", fenced, flags=re.MULTILINE) == ["make demo", "make test"]


def test_the_readme_lists_the_exit_codes_of_the_error_tree():
    from pipeline import errors

    tree = {c.exit_code for c in vars(errors).values() if isinstance(c, type) and issubclass(c, Exception)}
    listed = set(map(int, re.findall(r"^\| (\d+) \|", (ROOT / "README.md").read_text(), flags=re.MULTILINE)))
    assert listed == {0} | (tree - {errors.EarthpressError.exit_code})


def test_the_image_copies_only_what_is_not_ignored():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    docker = (ROOT / "Dockerfile").read_text()
    sources = re.findall(r"^COPY (?!--from)(.+?) \S+$", docker, flags=re.MULTILINE)
    sources += re.findall(r"source=([^,]+),", docker)
    for source in (name for group in sources for name in group.split()):
        assert f"!{source}" in ignored, source
