"""What each layer of an ONNX file computes and moves, the layers fused as a device's builder fuses them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy.errors import LabError

# Done to values where they are made or read: no pass over memory of their own.
_POINTWISE = {
    "Relu", "Clip", "LeakyRelu", "PRelu", "Elu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Gelu", "Erf",
    "Cast", "Sqrt", "Neg", "Exp", "QuantizeLinear", "BatchNormalization",
}  # fmt: skip
_VIEWS = {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout", "DequantizeLinear"}
_BINARY = {"Add", "Sub", "Mul", "Div", "Min", "Max", "Pow"}
_KINDS = {"Conv": "conv", "ConvTranspose": "conv", "Gemm": "gemm", "MatMul": "gemm"}
_POOLS = {"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean"}
# A rounding that keeps order commutes with these: the builder moves the Q behind them to the front.
_ORDER_KEEPING = {"Relu", "Clip", "MaxPool", *_VIEWS}


@dataclass(frozen=True)
class Layer:
    """One kernel. Bytes are those that cross between kernels, each tensor once, in the type it has there."""

    name: str
    kind: str
    """conv, gemm, pool, add, or the ONNX operator in small letters."""
    precision: str
    """int8, fp16, bf16 or fp32: the type of the products, and of what is moved where there are none."""
    rows: int
    """Of the matrix product, for all images: batch x output pixels. The product is taken once a group."""
    columns: int
    """Output channels of a group."""
    depth: int
    """Products that are summed into one output."""
    groups: int
    num_parameters: int
    weight_bytes: int
    read_bytes: int
    """Activations."""
    write_bytes: int
    output_shape: tuple[int, ...]

    @property
    def macs(self) -> int:
        return self.rows * self.columns * self.depth * self.groups

    @property
    def depthwise(self) -> bool:
        return self.groups > 1 and self.columns == 1


@dataclass
class _Open:
    """A layer that still takes in what follows it."""

    node: Any
    nodes: list[Any] = field(default_factory=list)


def read_layers(path: Path, batch: int) -> list[Layer]:
    """The fused layers of an ONNX file, in the order in which they run, for `batch` images.

    Fused are: a convolution or matrix product with bias, activation, Q/DQ, and the residual add that ends in
    it, where nobody else reads what it made; a pool, a global pool and an add that no product precedes are
    layers of their own, and so are integer adds and Clips of a file for ONNX Runtime. Reshapes cost nothing.
    An int8 product has int8 activations and int8 weights; weights alone in int8 are unpacked before the
    product, as ONNX Runtime and TensorRT do it.

    Raises LabError for a file that cannot be read, a shape that does not follow from the batch, a batch
    below 1, and a machine without the library `onnx`.
    """
    if batch < 1:
        raise LabError(f"batch {batch}: must be at least 1")
    try:
        import onnx
        from onnx import shape_inference
    except ImportError as error:
        raise LabError("reading the layers of a network needs the library onnx: pip install onnx") from error
    try:
        model = onnx.load(str(path))
        for tensor in model.graph.input:
            tensor.type.tensor_type.shape.dim[0].dim_value = batch
        # Shapes that an exporter recorded name the batch; they would stand against the number.
        del model.graph.value_info[:]
        inferred = shape_inference.infer_shapes(model, data_prop=True)
    # Its exceptions (bad protobuf, unknown operator, missing external data) share no base but Exception.
    except Exception as error:
        raise LabError(f"{path}: cannot be read as ONNX ({error}); export the network again") from error
    if not inferred.graph.node:
        raise LabError(f"{path}: holds no network; export it again")
    return _Fuser(str(path), inferred.graph).layers()


class _Fuser:
    def __init__(self, path: str, graph: Any) -> None:
        self.path = path
        self.graph = graph
        self.shapes: dict[str, tuple[int | None, ...]] = {}
        self.types: dict[str, int] = {}
        for value in [*graph.input, *graph.value_info, *graph.output]:
            tensor = value.type.tensor_type
            self.types[value.name] = tensor.elem_type
            self.shapes[value.name] = tuple(
                d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim
            )
        for constant in graph.initializer:
            self.types[constant.name] = constant.data_type
            self.shapes[constant.name] = tuple(constant.dims)
        self.constants = {constant.name for constant in graph.initializer}
        self.readers: dict[str, list[Any]] = {}
        self.producer: dict[str, Any] = {}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
            for name in node.output:
                self.producer[name] = node
        self.outputs = {value.name for value in graph.output}

    def layers(self) -> list[Layer]:
        opened: list[_Open] = []
        owner: dict[str, _Open] = {}
        for node in self.graph.node:
            if all(name in self.constants for name in node.input if name):
                self.constants.update(node.output)
                continue
            active = [name for name in node.input if name and name not in self.constants]
            made = [owner[name] for name in active if name in owner]
            if node.op_type in _VIEWS:
                home = made[0] if made else None  # a view of the network's input belongs to nobody
            elif self._apart(node):
                home = None
            elif (node.op_type in _POINTWISE or node.op_type in _BINARY) and len(active) == 1 and made:
                home = made[0]
            elif node.op_type in _BINARY and made:
                home = self._adds_into(active, owner, opened)
            else:
                home = None
            if home is None and node.op_type not in _VIEWS:
                home = _Open(node)
                opened.append(home)
            if home is not None:
                home.nodes.append(node)
                owner.update(dict.fromkeys(node.output, home))
        return [self._close(layer) for layer in opened]

    def _apart(self, node: Any) -> bool:
        """What ONNX Runtime has kernels of its own for: an integer Clip, and an addition of two uint8.

        Only files for it hold uint8: TensorRT takes none.
        """
        kinds = [self.types.get(self._root(name)) for name in node.input if name not in self.constants]
        if node.op_type == "Clip":
            return kinds[0] in _INTEGERS
        return node.op_type in _BINARY and kinds == [_UINT8, _UINT8]

    def _adds_into(self, active: Sequence[str], owner: dict[str, _Open], opened: Sequence[_Open]) -> Any:
        """The product whose kernel does the addition: the last to run, if nobody else reads what it made."""
        candidates = [
            owner[name]
            for name in active
            if name in owner and owner[name].node.op_type in _KINDS and self._read_once(name)
        ]
        if not candidates:
            return None
        last = max(candidates, key=lambda layer: opened.index(layer))
        others = [owner[name] for name in active if name in owner and owner[name] is not last]
        if any(opened.index(other) > opened.index(last) for other in others):
            return None
        return last

    def _read_once(self, name: str) -> bool:
        """Down to the product, through Q, DQ and views: a single reader each."""
        while True:
            if len(self.readers.get(name, [])) != 1 or name in self.outputs:
                return False
            node = self.producer.get(name)
            if node is None or node.op_type not in {*_VIEWS, *_POINTWISE}:
                return True
            name = node.input[0]

    def _close(self, layer: _Open) -> Layer:
        node = layer.node
        inside = {name for n in layer.nodes for name in n.output}
        read = {self._root(n) for node_ in layer.nodes for n in node_.input if n and n not in self.constants}
        read -= inside
        written = [
            name
            for name in inside
            if self.producer[name].op_type not in _VIEWS and self._leaves(name, layer.nodes)
        ]
        shape = self._shape(node.output[0])
        rows = columns = depth = groups = weight_bytes = num_parameters = 0
        precision = self._moved(next(iter(read), node.output[0]))
        if node.op_type in _KINDS:
            precision = self._precision(node)
            rows, columns, depth, groups = self._product(node, shape)
            parameters = {
                self._root(name)
                for node_ in layer.nodes
                for name in node_.input
                if name in self.constants and node_.op_type in {*_KINDS, *_BINARY}
            }
            counts = {name: math.prod(self._shape(name)) for name in parameters}
            num_parameters = sum(counts.values())
            itemsize = ITEM_BYTES[precision]
            weight_bytes = sum(count * itemsize for count in counts.values())
        return Layer(
            name=node.name or node.output[0],
            kind=_KINDS.get(node.op_type) or _kind(node.op_type),
            precision=precision,
            rows=rows,
            columns=columns,
            depth=depth,
            groups=groups,
            num_parameters=num_parameters,
            weight_bytes=weight_bytes,
            read_bytes=sum(self._bytes(name) for name in read),
            write_bytes=sum(self._bytes(name) for name in written),
            output_shape=shape,
        )

    def _product(self, node: Any, shape: Sequence[int]) -> tuple[int, int, int, int]:
        """Rows, columns, depth, groups."""
        attributes = {a.name: a for a in node.attribute}
        if node.op_type in ("Conv", "ConvTranspose"):
            groups = attributes["group"].i if "group" in attributes else 1
            weight = self._shape(node.input[1])
            if node.op_type == "ConvTranspose":
                pixels = math.prod(self._shape(node.input[0])[2:])
                return shape[0] * pixels, weight[1] * math.prod(weight[2:]), weight[0] // groups, groups
            return shape[0] * math.prod(shape[2:]), shape[1] // groups, math.prod(weight[1:]), groups
        left = self._shape(node.input[0])
        turned = node.op_type == "Gemm" and any(a.name == "transA" and a.i for a in node.attribute)
        depth = left[0] if turned else left[-1]
        # A product of two activations is one for each head: it shares no weight over them.
        heads = 1 if node.input[1] in self.constants else math.prod(shape[:-2])
        return math.prod(shape[:-1]) // heads, shape[-1], depth, heads

    def _precision(self, node: Any) -> str:
        both = [self._behind_dq(name) for name in node.input[:2]]
        return "int8" if all(both) else _FLOATS.get(self.types.get(node.output[0], 1), "fp32")

    def _behind_dq(self, name: str) -> bool:
        node = self.producer.get(name)
        if node is None or node.op_type not in _VIEWS:
            return False
        return node.op_type == "DequantizeLinear" or self._behind_dq(node.input[0])

    def _root(self, name: str) -> str:
        """The tensor in memory that views and DQ stand for."""
        node = self.producer.get(name)
        while node is not None and node.op_type in _VIEWS:
            name = node.input[0]
            node = self.producer.get(name)
        return name

    def _leaves(self, name: str, nodes: Sequence[Any]) -> bool:
        if name in self.outputs:
            return True
        for reader in self.readers.get(name, []):
            if reader.op_type in _VIEWS and any(self._leaves(out, nodes) for out in reader.output):
                return True
            if reader.op_type not in _VIEWS and not any(reader is own for own in nodes):
                return True
        return False

    def _bytes(self, name: str) -> int:
        return math.prod(self._shape(name)) * ITEM_BYTES[self._moved(name)]

    def _moved(self, name: str) -> str:
        """The type that a tensor has in memory: int8 too where all that it goes to is rounded to it."""
        kind = self.types.get(name, 1)
        if kind in _INTEGERS:
            return "int8"
        readers = self.readers.get(name, [])
        rounded = bool(readers) and name not in self.outputs
        for reader in readers:
            behind = reader.op_type == "QuantizeLinear" or (
                reader.op_type in _ORDER_KEEPING and self._moved(reader.output[0]) == "int8"
            )
            rounded = rounded and behind
        return "int8" if rounded else _FLOATS.get(kind, "fp32")

    def _shape(self, name: str) -> tuple[int, ...]:
        shape = self.shapes.get(name)
        if shape is None or any(side is None for side in shape):
            raise LabError(
                f"{self.path}: the shape of {name!r} does not follow from the batch (found {shape}); "
                "export with a fixed image size"
            )
        return tuple(side for side in shape if side is not None)


ITEM_BYTES = {"int8": 1, "fp16": 2, "bf16": 2, "fp32": 4}
_FLOATS = {10: "fp16", 16: "bf16"}
_UINT8 = 2
_INTEGERS = {_UINT8, 3}
"""uint8 and int8, as onnx.TensorProto numbers types; 10 is float16, 16 bfloat16."""


def _kind(operator: str) -> str:
    if operator in _POOLS:
        return "pool"
    return "add" if operator == "Add" else operator.lower()
