"""What an engine's table of layers says of the placement that the ONNX file asked for."""

from __future__ import annotations

import collections
import math
from collections.abc import Sequence, Set
from dataclasses import dataclass

import onnx
from onnx import TensorProto, helper

from deploy.errors import LabError
from optimize.graph_index import WEIGHTED
from optimize.layer_table import EngineLayer, EngineTable, EngineTensor
from optimize.qdq_placement import Placement

QDQ = ("QuantizeLinear", "DequantizeLinear")
INT8 = "Int8"
IN_KERNEL = "in the kernel"
_PRODUCTS = ("Gemm", "MatMul")
# What lies between a stored weight and the layer that multiplies with it.
_OF_WEIGHTS = (*QDQ, "Transpose", "Reshape", "Identity", "Cast")
_TYPES = {TensorProto.FLOAT: "Float", TensorProto.FLOAT16: "Half", TensorProto.BFLOAT16: "BFloat16"}
_SYNCHRONISE = ("wait", "signal")
_MADE_UP = "kgen"


@dataclass(frozen=True)
class Judgement:
    """Of one engine. Counts are by the type that is computed in, as TensorRT names it."""

    convs: dict[str, int]
    products: dict[str, int]
    """Gemm, and MatMul with a constant."""
    adds: dict[str, int]
    """Residual adds by the type of the skip tensor that they read; `in the kernel`: both inputs come from
    convolutions, and the add's own kernel rounds them."""
    reformats: list[str]
    """Kernels that compute no node of the network: they convert, copy or move a tensor."""
    padded: list[str]
    """Convolutions that read more channels than the network has, zeros."""
    weight_bytes: int
    findings: list[str]

    @property
    def ok(self) -> bool:
        return not self.findings


def judge_engine(
    model: onnx.ModelProto, table: EngineTable, int8: bool, keep_float: Set[str] = frozenset()
) -> Judgement:
    """Hold the engine against `model`, whose nodes have names of their own.

    int8: whether every Conv, Gemm and MatMul with a constant is to be in INT8 but those of `keep_float`;
    otherwise each in the type of its weight. A residual add is to read its skip tensor in INT8 where its sum
    is quantised, unless a layer of `keep_float` makes it a float one (`optimize/qdq_placement.py`) or reads
    that tensor too: then there is a float copy of it, and the add takes that.
    Raises LabError where the table does not name a layer that must be judged.
    """
    return _Judge(model, table, int8, keep_float).run()


class _Judge:
    def __init__(self, model: onnx.ModelProto, table: EngineTable, int8: bool, keep_float: Set[str]) -> None:
        self.placement = Placement(model, keep_float)
        self.index = self.placement.index
        self.ops = {node.name: node.op_type for node in model.graph.node}
        self.table = table
        self.int8 = int8
        self.findings: list[str] = []
        self.weighted = {node.name: node for node in model.graph.node if self._weight(node) is not None}
        self.layers_of: dict[str, list[EngineLayer]] = collections.defaultdict(list)
        for layer in table.layers:
            for name in layer.nodes:
                self.layers_of[name].append(layer)
        self.computes = {name: self._computing(node) for name, node in self.weighted.items()}

    def run(self) -> Judgement:
        precisions = {name: self._judge_weighted(node) for name, node in self.weighted.items()}
        adds = [self._judge_add(n) for n in self.index.graph.node if self.index.is_residual_add(n)]
        return Judgement(
            convs=self._count(precisions, ("Conv",)),
            products=self._count(precisions, _PRODUCTS),
            adds=dict(collections.Counter(add for add in adds if add)),
            reformats=[layer.name for layer in self.table.layers if self._is_reformat(layer)],
            padded=[text for node in self.weighted.values() for text in self._padding(node)],
            weight_bytes=self.table.weight_bytes,
            findings=self.findings,
        )

    def _count(self, precisions: dict[str, str], ops: Sequence[str]) -> dict[str, int]:
        return dict(collections.Counter(p for name, p in precisions.items() if self.ops[name] in ops))

    def _weight(self, node: onnx.NodeProto) -> TensorProto | None:
        """The stored weight of a layer, also behind Q/DQ."""
        if node.op_type not in (*WEIGHTED, *_PRODUCTS):
            return None
        name = node.input[1]
        while name in self.index.producer and self.index.producer[name].op_type in _OF_WEIGHTS:
            name = self.index.producer[name].input[0]
        return self.index.constants.get(name)

    def _computing(self, node: onnx.NodeProto) -> list[EngineLayer]:
        """The layers that multiply with its weight. A kernel of elementwise steps that names it may be what
        pads its input or scales its output, unless it holds that weight."""
        layers = self.layers_of[node.name]
        weight = self._weight(node)
        assert weight is not None, "asked of weighted nodes"
        found = [layer for layer in layers if layer.kind != _MADE_UP] or [
            layer
            for layer in layers
            if any(constant.num_elements >= math.prod(weight.dims) for constant in layer.constants)
        ]
        if not found:
            raise LabError(
                f"cannot judge: no layer of the engine is known to compute {node.name} ({node.op_type}); "
                f"{len(layers)} name it"
            )
        return found

    def _judge_weighted(self, node: onnx.NodeProto) -> str:
        operands = [
            tensor
            for layer in self.computes[node.name]
            for tensor in _operands(layer)[int(self._rounds(node.input[0], layer)) :]
        ]
        found = next((tensor.dtype for tensor in operands if tensor.dtype != INT8), INT8)
        if node.name in self.placement.keep_float:
            return found
        wanted = INT8 if self.int8 else self._type_of_weight(node)
        if found != wanted:
            types = " and ".join(tensor.dtype for tensor in operands)
            self.findings.append(
                f"{node.name} ({node.op_type}): multiplies {types}, must be {wanted}"
                + ("; put Q/DQ on its input and its weight, or name it in keep_float" if self.int8 else "")
            )
        return found

    def _type_of_weight(self, node: onnx.NodeProto) -> str:
        producer = self.index.producer.get(node.input[1])
        name = producer.input[1] if producer is not None and producer.op_type in QDQ else node.input[1]
        constant = self.index.constants.get(name)
        if constant is None or constant.data_type not in _TYPES:
            raise LabError(f"cannot judge: {node.name} ({node.op_type}) has a weight of a type unknown here")
        return _TYPES[constant.data_type]

    def _judge_add(self, node: onnx.NodeProto) -> str | None:
        """The type of its skip tensor; None for an Add that no layer names, such as one of shapes."""
        layers = self.layers_of[node.name]
        wanted = self.int8 and not self._is_float(node) and self._is_quantised(node.output[0])
        if not layers:
            if wanted:
                raise LabError(f"cannot judge: no layer of the engine names {node.name} (Add)")
            return None
        found = [self._skip_type(node, layer) for layer in layers]
        worst = next((kind for kind in found if kind not in (INT8, IN_KERNEL)), found[0])
        if wanted and worst not in (INT8, IN_KERNEL):
            self.findings.append(
                f"{node.name} (Add): reads a {worst} copy of its skip tensor, must be {INT8}; put Q/DQ on "
                f"both of its inputs ({', '.join(node.input)})"
            )
        return worst

    def _skip_type(self, add: onnx.NodeProto, layer: EngineLayer) -> str:
        read = self._summands(layer)
        floats = [tensor.dtype for tensor in read if tensor.dtype != INT8]
        if len(floats) > sum(self._is_fresh(name, layer) for name in add.input):
            return floats[0]
        if len(floats) < len(read):
            return INT8
        rounded = any(self._rounds(name, layer) for name in add.input)
        return IN_KERNEL if rounded or not floats else floats[0]

    def _summands(self, layer: EngineLayer) -> list[EngineTensor]:
        """The activations that it reads at full size, without the one that a convolution in it multiplies."""
        fused = any(layer in layers for layers in self.computes.values())
        read = layer.inputs[1:] if fused else layer.inputs
        size = max((tensor.num_elements for tensor in read), default=0)
        return [tensor for tensor in read if tensor.num_elements == size]

    def _path(self, name: str) -> list[str]:
        """From what a node reads back through DQ and Q to the float tensor."""
        producer = self.index.producer.get(name)
        if producer is None or producer.op_type not in QDQ:
            return [name]
        return [name, *self._path(producer.input[0])]

    def _rounds(self, name: str, layer: EngineLayer) -> bool:
        """Whether the layer itself quantises what it reads of a tensor."""
        makers = (self.index.producer[step] for step in self._path(name)[:-1])
        return any(maker.op_type == "QuantizeLinear" and maker.name in layer.nodes for maker in makers)

    def _is_fresh(self, name: str, layer: EngineLayer) -> bool:
        """Whether a convolution hands it over in float for the add alone: its sum, which is nowhere else."""
        path = self._path(name)
        maker = self.index.producer.get(path[-1])
        alone = all(len(self.index.consumers[step]) == 1 for step in path)
        return maker is not None and alone and layer not in self.computes.get(maker.name, [layer])

    def _is_float(self, add: onnx.NodeProto) -> bool:
        """Whether `keep_float` makes it a float one, or has what it adds read in float by another layer."""
        readers = {
            reader.name
            for source in add.input
            for name in self._path(source)
            for reader in self.index.consumers[name]
        }
        return self.placement.is_float(add) or not readers.isdisjoint(self.placement.keep_float)

    def _is_quantised(self, name: str) -> bool:
        """Whether a tensor, or what activations make of it, has Q/DQ."""
        readers = self.index.consumers.get(name, [])
        return any(
            reader.op_type == "QuantizeLinear"
            or (self.index.clip_range(reader) is not None and self._is_quantised(reader.output[0]))
            for reader in readers
        )

    def _is_reformat(self, layer: EngineLayer) -> bool:
        if layer.kind in _SYNCHRONISE:
            return False
        weighted = [one for layers in self.computes.values() for one in layers]
        made = {tensor.name for one in weighted for tensor in one.outputs}
        if layer in weighted or any(tensor.name in made for tensor in layer.inputs):
            return False
        elsewhere = {name for one in weighted for name in one.nodes}
        return all(self.ops.get(name) in (*QDQ, "Cast") or name in elsewhere for name in layer.nodes)

    def _padding(self, node: onnx.NodeProto) -> list[str]:
        weight = self._weight(node)
        if node.op_type != "Conv" or weight is None:
            return []
        groups = next((helper.get_attribute_value(a) for a in node.attribute if a.name == "group"), 1)
        channels = weight.dims[1] * groups
        read = {layer.inputs[0].dims[1] for layer in self.computes[node.name] if layer.inputs}
        return [f"{node.name}: {channels} -> {wider}" for wider in sorted(read) if wider > channels]


def _operands(layer: EngineLayer) -> tuple[EngineTensor, EngineTensor]:
    """What a layer multiplies: its input, and its weight, which is an input too where it is not stored."""
    weights = sorted(layer.constants, key=lambda tensor: -tensor.num_elements) or layer.inputs[1:]
    if not layer.inputs or not weights:
        raise LabError(
            f"cannot judge: layer {layer.name} of the engine multiplies, but not an input by a weight"
        )
    return layer.inputs[0], weights[0]
