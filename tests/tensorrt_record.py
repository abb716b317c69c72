"""The names in TensorRT's real Python modules, from tensorrt_api.json, and classes that keep to them."""

from __future__ import annotations

import json
from typing import Any

from tests.processes import ROOT

RECORD: dict[str, dict[str, list[str]]] = json.loads((ROOT / "tests" / "tensorrt_api.json").read_text())
del RECORD["about"]
REMOVED = {
    name
    for groups in RECORD.values()
    for versions, names in groups.items()
    if "11.4" not in versions.split()
    for name in names
}
"""What TensorRT 10 has somewhere and 11.4 nowhere; the tests of the source look for these too."""


def recorded(kind: str, version: str) -> set[str]:
    """The names that a class of the real module has in that version ("10.3.0")."""
    short = ".".join(version.split(".")[:2])
    return {name for versions, names in RECORD[kind].items() if short in versions.split() for name in names}


class Strict:
    def __getattr__(self, name: str) -> Any:
        refuse(name)
        raise AttributeError(name)


class StrictMeta(type):
    def __getattr__(cls, name: str) -> Any:
        refuse(name)
        raise AttributeError(name)


def refuse(name: str) -> None:
    assert name not in REMOVED, f"{name} was touched, which TensorRT 11 has no more"
