"""Look-ups in a float ONNX graph, and what its ops do to values."""

from __future__ import annotations

import math

import onnx
from onnx import numpy_helper

WEIGHTED = ("Conv", "Gemm", "MatMul")
# Ops that move values or choose among them, so that integers of one scale go in and come out.
MOVE = ("MaxPool", "Reshape", "Flatten", "Identity", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split",
        "DepthToSpace", "SpaceToDepth")  # fmt: skip
# Ops that hand values on: never negative in, never negative out.
PASS_ON = (*MOVE, "AveragePool", "GlobalAveragePool")
NON_NEGATIVE = ("Sigmoid", "HardSigmoid", "Softmax")


def moves(node: onnx.NodeProto) -> bool:
    """Whether integers of one scale go in and come out."""
    nearest = any(a.name == "mode" and a.s == b"nearest" for a in node.attribute)
    return node.op_type in MOVE or (node.op_type == "Resize" and nearest)


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
        self._reaches: dict[str, bool] = {}

    def weight(self, node: onnx.NodeProto) -> str | None:
        """Name of the constant weight of a layer, None for anything else.

        No layer: a weight that is not float32, a MatMul with a stack of them, a Gemm that scales or
        transposes its input or adds more than one bias a channel. There is no integer kernel for these.
        """
        if node.op_type not in WEIGHTED or node.input[1] not in self.constants:
            return None
        tensor = self.constants[node.input[1]]
        if tensor.data_type != onnx.TensorProto.FLOAT or not self.is_layer(node):
            return None
        return str(node.input[1])

    def is_layer(self, node: onnx.NodeProto) -> bool:
        """As `weight`, of a quantised network too, where the weight is behind a DequantizeLinear."""
        if node.op_type not in WEIGHTED:
            return False
        source = self.producer.get(node.input[1])
        behind = source.input[0] if source is not None and source.op_type == "DequantizeLinear" else ""
        tensor = self.constants.get(node.input[1]) or self.constants.get(behind)
        if tensor is None or (node.op_type == "MatMul" and len(tensor.dims) != 2):
            return False
        if node.op_type == "Gemm":
            given = {a.name: a.i if a.type == onnx.AttributeProto.INT else a.f for a in node.attribute}
            bias = self.constants.get(node.input[2]) if len(node.input) > 2 else None
            plain = given.get("transA", 0) == 0 and given.get("alpha", 1) == given.get("beta", 1) == 1
            return plain and (bias is None or list(bias.dims) == [tensor.dims[output_axis(node)]])
        return True

    def maker(self, name: str) -> onnx.NodeProto | None:
        """What makes the values of a tensor, behind activations and PASS_ON; None: the network's input."""
        node = self.producer.get(name)
        if node is not None and self.hands_on(node):
            return self.maker(node.input[0])
        return node

    def hands_on(self, node: onnx.NodeProto) -> bool:
        """An activation that cuts off, or an op that moves, chooses or averages values."""
        return moves(node) or node.op_type in PASS_ON or self.clip_range(node) is not None

    def is_residual_add(self, node: onnx.NodeProto) -> bool:
        """An Add of two activations, as against a bias, on the way to a layer or to a Q.

        A sum that ends in an op in float, such as a LayerNormalization, is one itself.
        """
        activations = node.op_type == "Add" and not any(name in self.constants for name in node.input)
        return activations and self._reaches_layer(node)

    def is_product(self, node: onnx.NodeProto) -> bool:
        """A Mul of two activations on the way to a layer or to a Q."""
        activations = node.op_type == "Mul" and not any(name in self.constants for name in node.input)
        return activations and self._reaches_layer(node)

    def _reaches_layer(self, node: onnx.NodeProto) -> bool:
        """Whether a layer, a pool over all pixels or a Q reads what `node` makes, behind what hands it on."""
        if node.output[0] not in self._reaches:
            self._reaches[node.output[0]] = self._reaches_by_readers(node)
        return self._reaches[node.output[0]]

    def _reaches_by_readers(self, node: onnx.NodeProto) -> bool:
        for name in node.output:
            for reader in self.consumers.get(name, []):
                if reader.op_type in ("GlobalAveragePool", "QuantizeLinear"):
                    return True
                if reader.op_type in WEIGHTED and reader.input[0] == name:
                    return True
                passes = reader.op_type in ("Add", "Mul", "Concat") or self.hands_on(reader)
                if passes and self._reaches_layer(reader):
                    return True
        return False

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
        if node.op_type in NON_NEGATIVE or (limits is not None and limits[0] >= 0):
            return True
        return (moves(node) or node.op_type in PASS_ON) and self.is_non_negative(node.input[0])


def output_axis(node: onnx.NodeProto) -> int:
    """The axis of a layer's weight that counts output channels."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "MatMul":
        return 1
    return 0 if any(a.name == "transB" and a.i == 1 for a in node.attribute) else 1
