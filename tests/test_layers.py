"""The arrows between rooms, read from the imports: data goes one way and no room knows another."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "pipeline"
ROOMS = {"plan", "read", "encode", "maps", "write", "account", "simulate"}
VALUES = {"types", "errors", "config", "codes"}
FILES = sorted(ROOT.rglob("*.py"))


def imports(path, *, top_level_only=False):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(path):
    parts = path.relative_to(ROOT).parts
    return parts[0] if len(parts) > 1 else parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_room_imports_values_and_itself_only(path):
    room = room_of(path)
    if room not in ROOMS | VALUES:
        return
    allowed = VALUES | {room}
    reached = {name.split(".")[1] for name in imports(path) if name.startswith("pipeline.") and name.count(".") >= 1}
    assert reached <= allowed, f"{path.name} reaches {reached - allowed}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_torch_and_dask_stay_where_they_belong(path):
    heavy = {name.split(".")[0] for name in imports(path)}
    where = str(path.relative_to(ROOT))
    if "torch" in heavy:
        assert room_of(path) in {"encode", "maps", "bench"}
    if {"dask", "distributed"} & heavy:
        assert where == "read/tiles.py" or room_of(path) == "run"


def test_only_the_command_line_prints():
    for path in FILES:
        calls = (n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Call))
        names = {n.func.id for n in calls if isinstance(n.func, ast.Name)}
        assert path.name == "cli.py" or "print" not in names, path
