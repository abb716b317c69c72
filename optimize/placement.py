"""Which activations are quantised: the one rule that calibration, emission and the linter share."""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx
from onnx import numpy_helper

WEIGHTED = ("Conv", "Gemm")
# Ops that hand values on: never negative in, never negative out.
PASS_ON = ("MaxPool", "AveragePool", "GlobalAveragePool", "Reshape", "Flatten", "Identity")


@dataclass(frozen=True)
class QuantisedTensor:
    """A float tensor that gets one QuantizeLinear and one DequantizeLinear, read by all its consumers."""

    name: str
    non_negative: bool
    """True behind a ReLU, a Clip from 0 or above, and a pool or reshape of such."""


class GraphIndex:
    """Look-ups in a float ONNX graph: who makes a tensor, who reads it, which names are constants."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.constants = {i.name: i for i in graph.initializer}
        self.producer = {name: node for node in graph.node for name in node.output}
        self.consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self.consumers.setdefault(name, []).append(node)

    def weight(self, node: onnx.NodeProto) -> str | None:
        """Name of the constant weight of a Conv or Gemm, None for anything else."""
        if node.op_type in WEIGHTED and node.input[1] in self.constants:
            return str(node.input[1])
        return None

    def is_residual_add(self, node: onnx.NodeProto) -> bool:
        """An Add of two activations, as against a bias."""
        return node.op_type == "Add" and not any(name in self.constants for name in node.input)

    def clip_range(self, node: onnx.NodeProto) -> tuple[float, float] | None:
        """The limits of a Relu or a Clip with constant limits, None for any other node."""
        if node.op_type == "Relu":
            return 0.0, math.inf
        if node.op_type != "Clip":
            return None
        limits = [-math.inf, math.inf]
        for i, name in enumerate(node.input[1:3]):
            if name in self.constants:
                limits[i] = float(numpy_helper.to_array(self.constants[name]))
            elif name:
                return None
        return limits[0], limits[1]

    def is_non_negative(self, name: str) -> bool:
        node = self.producer.get(name)
        if node is None:
            return False
        limits = self.clip_range(node)
        if limits is not None and limits[0] >= 0:
            return True
        return node.op_type in PASS_ON and self.is_non_negative(node.input[0])


def quantised_tensors(model: onnx.ModelProto) -> list[QuantisedTensor]:
    """The tensors to quantise in a float network, in the order in which the graph makes them.

    - the input of every Conv and Gemm with a constant weight;
    - both inputs of every residual Add, so that the addition itself is an integer one;
    - the input of every GlobalAveragePool.

    A MaxPool needs none of its own in front: it commutes with a rounding that keeps order, so TensorRT and
    ONNX Runtime move the one behind it to the front. Logits stay float. So does every other op.
    """
    index = GraphIndex(model.graph)
    wanted: dict[str, None] = {}
    for node in model.graph.node:
        if index.weight(node) is not None or node.op_type == "GlobalAveragePool":
            wanted[node.input[0]] = None
        elif index.is_residual_add(node):
            wanted.update(dict.fromkeys(node.input))
    made = [i.name for i in model.graph.input] + [name for node in model.graph.node for name in node.output]
    return [QuantisedTensor(name, index.is_non_negative(name)) for name in made if name in wanted]
