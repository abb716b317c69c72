"""The arrows between the rooms, as the imports have them."""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("deploy", "configs", "data", "train", "optimize", "scripts")
"""Each may import itself and those to its left."""
FILES = [
    pytest.param(path, id=str(path.relative_to(ROOT)))
    for room in ROOMS
    for path in ROOT.glob(f"{room}/**/*.py")
]


def imports(source: str) -> Iterator[tuple[str, bool]]:
    """Dotted name of everything that is imported, and whether that happens when the module is loaded."""

    def walk(node: ast.AST, on_load: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((alias.name, on_load) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, "relative imports hide the room"
                yield from ((f"{child.module}.{alias.name}", on_load) for alias in child.names)
            else:
                function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                yield from walk(child, on_load and not function)

    return walk(ast.parse(source), True)


def breaches(room: str, name: str, source: str) -> list[str]:
    """What a file of a room imports against the rules."""
    allowed = set(ROOMS[: ROOMS.index(room) + 1])
    found = []
    for imported, on_load in imports(source):
        top = imported.partition(".")[0]
        if top in {*ROOMS, "tests"} - allowed:
            found.append(f"{room} must not know {top}: {imported}")
        elif room == "deploy" and on_load and top not in {*sys.stdlib_module_names, "numpy", "deploy"}:
            found.append(f"deploy must load without {imported}")
        if top == "nvidia" and imported.startswith("nvidia.dali") and room not in ("data", "scripts"):
            found.append(f"only data may know {imported}, and a benchmark that runs it bare")
        if imported.startswith("torch.distributed") and room == "data":
            found.append(f"data gets rank and world as plain values, not from {imported}")
        if top in ("hydra", "omegaconf") and (room, name) != ("configs", "load.py"):
            found.append(f"only configs/load.py may know {imported}")
    return found


@pytest.mark.parametrize("path", FILES)
def test_a_file_imports_only_what_its_room_may_know(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    assert breaches(room, path.name, path.read_text()) == []


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("deploy", "from configs.schema import TrainConfig"),
        ("deploy", "import torch"),
        ("deploy", "try:\n    import cv2\nexcept ImportError:\n    pass"),
        ("configs", "import data.plan"),
        ("data", "def f():\n    from train import run"),
        ("data", "from torch import distributed"),
        ("train", "from nvidia import dali"),
        ("train", "import optimize"),
        ("optimize", "from scripts.report import write_report"),
        ("scripts", "from tests.pictures import save"),
        ("scripts", "import omegaconf"),
    ],
)
def test_a_breach_is_seen(room: str, line: str) -> None:
    assert len(breaches(room, "x.py", line)) == 1


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("deploy", "import json\nimport numpy as np\nfrom deploy.errors import LabError"),
        ("deploy", "def f():\n    import onnxruntime"),
        ("data", "from nvidia.dali import fn\nfrom configs.schema import DataConfig"),
        ("optimize", "import torch\nfrom train.model import build_model\nfrom data.index import Index"),
    ],
)
def test_what_is_allowed_is_let_through(room: str, line: str) -> None:
    assert breaches(room, "x.py", line) == []


def test_there_is_no_drawer() -> None:
    drawers = {"utils", "util", "helpers", "common", "misc"}
    assert [path for room in ROOMS for path in ROOT.glob(f"{room}/**/*") if path.stem in drawers] == []


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_is_ours_and_no_stranger_of_the_same_name(room: str) -> None:
    spec = importlib.util.find_spec(room)
    assert spec is not None, f"no package {room}: run from the root of the repository"
    places = [Path(place).resolve() for place in spec.submodule_search_locations or []]
    assert places == [ROOT / room], f"`import {room}` finds {places or spec.origin} and not {ROOT / room}"
