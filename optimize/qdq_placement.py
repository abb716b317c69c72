"""Which activations are quantised: the one rule that calibration, emission and the linter share.

A layer is a Conv, Gemm or MatMul with a constant weight. One that stays in float is a name in `keep_float`.
Around it:

- A residual Add is float too where such a Conv makes one of its inputs for it alone: ONNX Runtime and
  TensorRT both add in that convolution's kernel, which costs no rounding and no pass of its own.
- A GlobalAveragePool is float where its input is made in float.
- A tensor gets Q/DQ where an integer node reads it, and where a float Add reads what an integer layer makes:
  ONNX Runtime has an integer kernel only for a layer that writes integers.
- A float layer reads the tensor before its Q where a float layer, an Add or the input of the network makes
  it. That is exact, and the most that it breaks is an 8-bit addition. What an integer Conv or Gemm makes for
  integer readers as well it reads behind the DQ: a float reader of its output would put that layer, too,
  outside of ONNX Runtime's integer kernels.

Where a network is more than layers, ReLUs and residual adds:

- The output of a Conv that an op in float reads, such as a Sigmoid, gets Q/DQ too (behind its ReLU): ONNX
  Runtime has no integer kernel for a Conv that writes floats. For a MatMul it has one.
- A Mul of two activations, such as a SiLU, is an integer op with both inputs quantised, as an Add is, but
  where a float layer makes one. ONNX Runtime on YOLOX at 416 px: 62 ms with it, 91 without, FP32 154; the
  outputs are as near to FP32's.
- All that a quantised Concat joins has one scale, and so have both ends of an op that only moves values:
  TensorRT and ONNX Runtime then join and move bytes, and the second rounding changes nothing.
- Any other op is in float and reads what a float op makes before its Q, which costs nothing.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

import onnx

from deploy.errors import LabError
from optimize.graph_index import GraphIndex, moves


@dataclass(frozen=True)
class QuantisedTensor:
    """A float tensor that gets one QuantizeLinear and one DequantizeLinear, read by all its consumers."""

    name: str
    non_negative: bool
    """True behind a ReLU, a Clip from 0 or above, and a pool or reshape of such."""


class Placement:
    """Of one float network: the tensors to quantise, and who reads them before their Q.

    Raises LabError for a name in `keep_float` that no layer has.
    """

    def __init__(self, model: onnx.ModelProto, keep_float: Set[str] = frozenset()) -> None:
        self.index = GraphIndex(model.graph)
        self.keep_float: Set[str] = frozenset()
        known = [node.name for node in model.graph.node if self.index.weight(node) is not None]
        unknown = sorted(set(keep_float) - set(known))
        if unknown:
            raise LabError(
                f"keep_float: the network has no Conv, Gemm or MatMul {', '.join(map(repr, unknown))}; "
                + (
                    f"its {len(known)} are {', '.join(known[:3])} ..."
                    if known
                    else "it has none with float weights"
                )
            )
        # Which outputs of a Conv want a Q of their own is a matter of the network without `keep_float`: so
        # whatever stays in float, the tensors are among those that were calibrated.
        self._behind_convs = self._uncovered(self._read_by_integers())
        self.keep_float = keep_float
        self.tensors = self._tensors()

    def is_float(self, node: onnx.NodeProto) -> bool:
        """Whether `keep_float` has a layer, residual Add, product or GlobalAveragePool computed in float."""
        if self.index.weight(node) is not None:
            return node.name in self.keep_float
        if self.index.is_residual_add(node):
            return any(self._fuses(name) for name in node.input)
        if self.index.is_product(node):
            return any(self._made_in_float(name) for name in node.input)
        return node.op_type == "GlobalAveragePool" and self._made_in_float(node.input[0])

    def reads_before(self, node: onnx.NodeProto, name: str) -> bool:
        """Whether `node` reads the float tensor `name` itself although it has Q/DQ."""
        if not self.is_float(node) and self._takes_integers(node):
            return False
        if self._made_in_float(name):
            return True
        maker = self.index.maker(name)
        if self.is_float(node) and node.name not in self.keep_float:
            return False
        if maker is not None and (self.index.is_residual_add(maker) or self.index.is_product(maker)):
            return node.name in self.keep_float
        # What a Concat joins has gone through the same Q: it is on the grid already.
        return maker is None or (self.index.weight(maker) is None and maker.op_type != "Concat")

    def scale_groups(self) -> list[set[str]]:
        """Quantised tensors that share one scale, two or more a set."""
        names = {tensor.name for tensor in self.tensors}
        groups: list[set[str]] = []
        for node in self.index.graph.node:
            if node.op_type == "Concat":
                joined = {*node.input, *node.output} & names
            elif moves(node):
                joined = {node.input[0], *node.output} & names
            else:
                continue
            if len(joined) > 1:
                touched = [group for group in groups if group & joined]
                groups = [group for group in groups if not group & joined] + [joined.union(*touched)]
        return groups

    def _takes_integers(self, node: onnx.NodeProto) -> bool:
        """Whether the node has an integer kernel that reads a Q."""
        index = self.index
        layer = index.weight(node) is not None or index.is_residual_add(node) or index.is_product(node)
        return layer or node.op_type == "Concat" or self.index.hands_on(node)

    def _fuses(self, name: str) -> bool:
        """Whether a float Conv makes the tensor for one reader."""
        node = self.index.producer.get(name)
        alone = len(self.index.consumers[name]) == 1
        return node is not None and node.op_type == "Conv" and node.name in self.keep_float and alone

    def _made_in_float(self, name: str) -> bool:
        maker = self.index.maker(name)
        return maker is not None and self.is_float(maker)

    def _read_by_integers(self) -> set[str]:
        """Inputs of integer layers, residual adds, products, pools over all pixels; of what joins them."""
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
            elif index.is_product(node) and not self.is_float(node):
                wanted.update(node.input)
        for node in reversed(graph.node):
            # A MaxPool or Reshape needs no Q in front: both runtimes move the one behind it there.
            deals_out = node.op_type in ("Split", "Slice") or (node.op_type == "Resize" and moves(node))
            if deals_out and not wanted.isdisjoint(node.output):
                wanted.add(node.input[0])
            elif node.op_type == "Concat" and node.output[0] in wanted:
                wanted.update(name for name in node.input if name not in index.constants)
        return wanted

    def _uncovered(self, wanted: set[str]) -> dict[str, str]:
        """Conv to the tensor behind it, or behind its ReLU, that an op in float reads."""
        outputs = {output.name for output in self.index.graph.output}
        found = {}
        for node in self.index.graph.node:
            if node.op_type != "Conv" or self.index.weight(node) is None:
                continue
            name = node.output[0]
            if self._covered(name, wanted):
                continue
            readers = self.index.consumers.get(name, [])
            if len(readers) == 1 and self.index.clip_range(readers[0]) is not None:
                name = readers[0].output[0]
            if name not in outputs:
                found[node.name] = name
        return found

    def _covered(self, name: str, wanted: set[str]) -> bool:
        """Whether the tensor is quantised, or every reader is an integer op or hands it on to such."""
        if name in wanted:
            return True
        readers = self.index.consumers.get(name, [])
        return bool(readers) and all(
            (moves(reader) or self.index.clip_range(reader) is not None)
            and all(self._covered(output, wanted) for output in reader.output)
            for reader in readers
        )

    def _tensors(self) -> list[QuantisedTensor]:
        graph = self.index.graph
        wanted = self._read_by_integers()
        wanted.update(name for conv, name in self._behind_convs.items() if conv not in self.keep_float)
        made = [i.name for i in graph.input] + [name for node in graph.node for name in node.output]
        return [QuantisedTensor(name, self.index.is_non_negative(name)) for name in made if name in wanted]


def quantised_tensors(model: onnx.ModelProto) -> list[QuantisedTensor]:
    """The tensors to quantise where nothing stays in float, in the order in which the graph makes them.

    - the input of every layer: a Conv, Gemm or MatMul with a constant weight;
    - both inputs of every residual Add, so that the addition itself is an integer one; of a product too;
    - the input of every GlobalAveragePool;
    - the inputs of a Concat, Split, Slice and Resize to the nearest of which an output is quantised;
    - the output of a Conv that an op in float reads.

    A MaxPool needs none of its own in front: it commutes with a rounding that keeps order, so TensorRT and
    ONNX Runtime move the one behind it to the front. Logits stay float. So does every other op.
    """
    return Placement(model).tensors
