"""The layers of an engine, read from the log of a TensorRT-RTX build.

The log is no interface: its form may change with any version. So every line of the table must be understood
whole, and what is not is an error, never a layer less.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from deploy.errors import LabError

_HEAD = "Layers:\n"
_WEIGHTS = re.compile(r"Total Weights Memory: (\d+) bytes")
_LAYER = re.compile(
    r"Name: (?P<name>.+?), LayerType: (?P<kind>\w+), Inputs: (?P<inputs>\[.*\]), "
    r"Constants: (?P<constants>\[.*\]), Outputs: (?P<outputs>\[.*\]), TacticName: .*?, StreamId: \d+, "
    r"(?:EventId: \d+, )?Metadata: ?(?P<nodes>.*)"
)
_TENSOR = re.compile(
    r"\{ Name: (?P<name>[^{}]+?), Dimensions: \[(?P<dims>[\d,]*)\], [^{}]*?"
    r"Datatype: (?P<dtype>\w+), Format: [^{}]*\}"
)
_NODE = re.compile(r"\[ONNX Layer: (.+)\]")
_BETWEEN_NODES = "\x1f"


@dataclass(frozen=True)
class EngineTensor:
    name: str
    dims: tuple[int, ...]
    dtype: str
    """As TensorRT names it: Int8, Half, BFloat16, Float ..."""

    @property
    def num_elements(self) -> int:
        return math.prod(self.dims)


@dataclass(frozen=True)
class EngineLayer:
    name: str
    kind: str
    """correlation (a convolution), gemm, kgen (a kernel made of elementwise steps), maxpool ..."""
    inputs: tuple[EngineTensor, ...]
    constants: tuple[EngineTensor, ...]
    outputs: tuple[EngineTensor, ...]
    nodes: tuple[str, ...]
    """The ONNX nodes that it comes from."""


@dataclass(frozen=True)
class EngineTable:
    layers: tuple[EngineLayer, ...]
    weight_bytes: int
    """Of all constants of the engine."""


def parse_log(log: str) -> EngineTable:
    """The table that a build at ProfilingVerbosity.DETAILED prints to a logger of severity VERBOSE.

    Raises LabError where the log has none, more than one, or any line of another form.
    """
    sections = log.split(_HEAD)
    if len(sections) != 2:
        raise _unknown(f"{len(sections) - 1} sections {_HEAD.strip()!r} where one is expected")
    weights = _WEIGHTS.findall(log)
    if len(weights) != 1:
        raise _unknown(f"{len(weights)} lines 'Total Weights Memory' where one is expected")
    lines = sections[1].split("\n\n")[0].split("\n")
    return EngineTable(tuple(_layer(line) for line in lines), int(weights[0]))


def _layer(line: str) -> EngineLayer:
    match = _LAYER.fullmatch(line)
    if match is None:
        raise _unknown(f"the line {line[:120]!r}")
    inputs, constants, outputs = (_tensors(match[part]) for part in ("inputs", "constants", "outputs"))
    return EngineLayer(match["name"], match["kind"], inputs, constants, outputs, _nodes(match["nodes"]))


def _nodes(text: str) -> tuple[str, ...]:
    found = [_NODE.fullmatch(part) for part in text.split(_BETWEEN_NODES) if part]
    names = [one[1] for one in found if one is not None]
    if len(names) != len(found):
        raise _unknown(f"the metadata {text[:120]!r}")
    return tuple(names)


def _tensors(text: str) -> tuple[EngineTensor, ...]:
    found = list(_TENSOR.finditer(text))
    if len(found) != text.count("{"):
        raise _unknown(f"the tensors {text[:120]!r}")
    return tuple(
        EngineTensor(one["name"], tuple(int(dim) for dim in one["dims"].split(",") if dim), one["dtype"])
        for one in found
    )


def _unknown(what: str) -> LabError:
    return LabError(
        f"cannot judge: the build's log has {what}; this version of TensorRT-RTX prints another table than "
        "1.7, which is the one that is known here: install tensorrt-rtx-cu13-bindings and -libs 1.7"
    )
