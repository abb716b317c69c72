"""Which activations are quantised: the one rule that calibration, emission and the linter share.

A Conv or Gemm that stays in float is a name in `keep_float`. Around it:

- A residual Add is float too where such a Conv makes one of its inputs for it alone: ONNX Runtime and
  TensorRT both add in that convolution's kernel, which costs no rounding and no pass of its own.
- A GlobalAveragePool is float where its input is made in float.
- A tensor gets Q/DQ where an integer node reads it, and where a float Add reads what an integer layer makes:
  ONNX Runtime has an integer kernel only for a layer that writes integers.
- A float layer reads the tensor before its Q where a float layer, an Add or the input of the network makes
  it. That is exact, and the most that it breaks is an 8-bit addition. What an integer Conv or Gemm makes for
  integer readers as well it reads behind the DQ: a float reader of its output would put that layer, too,
  outside of ONNX Runtime's integer kernels.
"""

from __future__ import annotations

import math
from collections.abc import Set
from dataclasses import dataclass

import onnx
from onnx import numpy_helper

from deploy.errors import LabError

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

    def maker(self, name: str) -> onnx.NodeProto | None:
        """What makes the values of a tensor, behind activations and PASS_ON; None: the network's input."""
        node = self.producer.get(name)
        if node is not None and (node.op_type in PASS_ON or self.clip_range(node) is not None):
            return self.maker(node.input[0])
        return node

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


class Placement:
    """Of one float network: the tensors to quantise, and who reads them before their Q.

    Raises LabError for a name in `keep_float` that no Conv or Gemm with a constant weight has.
    """

    def __init__(self, model: onnx.ModelProto, keep_float: Set[str] = frozenset()) -> None:
        self.index = GraphIndex(model.graph)
        self.keep_float = keep_float
        known = [node.name for node in model.graph.node if self.index.weight(node) is not None]
        unknown = sorted(set(keep_float) - set(known))
        if unknown:
            raise LabError(
                f"keep_float: the network has no Conv or Gemm {', '.join(map(repr, unknown))}; "
                f"its {len(known)} are {', '.join(known[:3])} ..."
            )
        self.tensors = self._tensors()

    def is_float(self, node: onnx.NodeProto) -> bool:
        """Whether `keep_float` has a Conv, Gemm, residual Add or GlobalAveragePool computed in float."""
        if self.index.weight(node) is not None:
            return node.name in self.keep_float
        if self.index.is_residual_add(node):
            return any(self._fuses(name) for name in node.input)
        return node.op_type == "GlobalAveragePool" and self._made_in_float(node.input[0])

    def reads_before(self, node: onnx.NodeProto, name: str) -> bool:
        """Whether `node` reads the float tensor `name` itself although it has Q/DQ."""
        if not self.is_float(node):
            return False
        if self._made_in_float(name):
            return True
        maker = self.index.maker(name)
        return node.name in self.keep_float and (maker is None or self.index.is_residual_add(maker))

    def _fuses(self, name: str) -> bool:
        """Whether a float Conv makes the tensor for one reader."""
        node = self.index.producer.get(name)
        alone = len(self.index.consumers[name]) == 1
        return node is not None and node.op_type == "Conv" and node.name in self.keep_float and alone

    def _made_in_float(self, name: str) -> bool:
        maker = self.index.maker(name)
        return maker is not None and self.is_float(maker)

    def _tensors(self) -> list[QuantisedTensor]:
        graph, index = self.index.graph, self.index
        wanted: set[str] = set()
        for node in graph.node:
            if index.weight(node) is not None or node.op_type == "GlobalAveragePool":
                if not self.is_float(node):
                    wanted.add(node.input[0])
            elif index.is_residual_add(node):
                if self.is_float(node):
                    makers = {name: index.maker(name) for name in node.input}
                    wanted.update(
                        name
                        for name, maker in makers.items()
                        if maker is not None and index.weight(maker) is not None and not self.is_float(maker)
                    )
                else:
                    wanted.update(node.input)
        made = [i.name for i in graph.input] + [name for node in graph.node for name in node.output]
        return [QuantisedTensor(name, index.is_non_negative(name)) for name in made if name in wanted]


def quantised_tensors(model: onnx.ModelProto) -> list[QuantisedTensor]:
    """The tensors to quantise where nothing stays in float, in the order in which the graph makes them.

    - the input of every Conv and Gemm with a constant weight;
    - both inputs of every residual Add, so that the addition itself is an integer one;
    - the input of every GlobalAveragePool.

    A MaxPool needs none of its own in front: it commutes with a rounding that keeps order, so TensorRT and
    ONNX Runtime move the one behind it to the front. Logits stay float. So does every other op.
    """
    return Placement(model).tensors
