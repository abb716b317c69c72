"""What an engine really computes in: the inspector's account of its layers, held against what the ONNX asks.

TensorRT 10 and 11 write different JSON, and neither promises its form; whatever is not understood stays "?"
and is said as such, never taken for the precision that was asked for.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deploy.errors import LabError
from deploy.trt_types import Network, NetworkLayer

UNKNOWN = "?"
# In this order: "BFloat16" holds "Float", and "Half" comes with "Float" in some formats' names.
_WORDS = (
    ("int8", r"u?int8|\bi8"),
    ("fp8", r"fp8|float8|e4m3"),
    ("fp4", r"fp4|float4|e2m1"),
    ("int4", r"int4"),
    ("bf16", r"bf16|bfloat16"),
    ("fp16", r"fp16|float16|half"),
    ("int64", r"int64"),
    ("int32", r"int32"),
    ("bool", r"bool"),
    ("fp32", r"fp32|float32|float"),
)
_ONNX_NAMES = re.compile(r"\[ONNX Layer: ([^\]\x1e]*)\]")
_WEIGHTED = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY")
_BETWEEN = ("SHUFFLE", "SQUEEZE", "UNSQUEEZE", "IDENTITY")


@dataclass(frozen=True)
class EngineLayer:
    """One layer of a built engine.

    reads, writes: precisions of its tensors in order. weights: that of its weights, None where it tells none.
    nodes: names of the ONNX nodes that were fused into it.
    """

    name: str
    kind: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    weights: str | None
    nodes: frozenset[str]

    @property
    def precision(self) -> str:
        """What it computes in: that of its weights where they are not INT8, else the type of the first tensor
        that it reads, else of what it writes."""
        if self.weights not in (None, "int8", UNKNOWN):
            return self.weights
        return (self.reads or self.writes or (UNKNOWN,))[0]

    @property
    def reformats(self) -> bool:
        """Whether all it does is to change a tensor's layout or type."""
        return "reformat" in self.kind.lower() or self.name.startswith("Reformatting")

    @property
    def in_int8(self) -> bool:
        """Of a fused addition the skip may come first, so any input counts."""
        return "int8" in self.reads and self.weights in (None, "int8", UNKNOWN)


@dataclass(frozen=True)
class Precision:
    """The account of an engine, in plain JSON types.

    layers: number by precision, reformats apart. not_int8: ONNX nodes whose inputs the file quantises and
    that run otherwise, each with what it runs in, "?" where no layer names it.
    """

    layers: dict[str, int]
    reformats: int
    asked: int
    not_int8: dict[str, str]

    @property
    def leading(self) -> str:
        """The one precision that tells most: INT8 only where most of what was asked to be INT8 is."""
        if 2 * len(self.not_int8) > self.asked:
            return Counter(self.not_int8.values()).most_common(1)[0][0]
        return "int8" if self.asked else next(iter(self.layers), UNKNOWN)

    def __str__(self) -> str:
        parts = [f"{count} {name}" for name, count in self.layers.items()]
        held = f"; {self.asked - len(self.not_int8)} of {self.asked} quantised nodes in int8"
        return f"layers: {', '.join(parts)}, {self.reformats} reformats{held if self.asked else ''}"


def read_layers(text: str) -> tuple[EngineLayer, ...]:
    """The inspector's JSON, of TensorRT 10 or 11. Raises LabError for what is no such account."""
    try:
        found = json.loads(text)["Layers"]
        return tuple(_layer(raw) for raw in found)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LabError(
            f"TensorRT's inspector gave no table of layers ({error!r}; it begins {text[:60]!r}): the "
            "precision of this engine is not known; report it with the version of TensorRT"
        ) from error


def quantised_nodes(network: Network) -> tuple[str, ...]:
    """Names of the ONNX nodes that multiply weights and read what a DequantizeLinear gives on both sides."""
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    makers = {
        output.name: layer
        for layer in layers
        for i in range(layer.num_outputs)
        if (output := layer.get_output(i)) is not None
    }
    return tuple(
        dict.fromkeys(
            _node(layer)
            for layer in layers
            if layer.type.name in _WEIGHTED
            and layer.num_inputs >= 2
            and all(_dequantised(layer, i, makers) for i in range(2))
        )
    )


def weigh(layers: Sequence[EngineLayer], asked: Sequence[str]) -> Precision:
    """Count the layers by precision, and find each node that was asked to run in INT8."""
    counts = Counter(layer.precision for layer in layers if not layer.reformats)
    not_int8 = {}
    for node in asked:
        inside = [layer for layer in layers if node in layer.nodes]
        if not any(layer.in_int8 for layer in inside):
            not_int8[node] = inside[0].precision if inside else UNKNOWN
    reformats = sum(layer.reformats for layer in layers)
    return Precision(dict(counts.most_common()), reformats, len(asked), not_int8)


def _layer(raw: Mapping[str, Any]) -> EngineLayer:
    name, weights = str(raw.get("Name", "")), raw.get("Weights")
    told = _ONNX_NAMES.findall(str(raw.get("Metadata", "")))
    return EngineLayer(
        name=name,
        kind=str(raw.get("LayerType", "")),
        reads=_types(raw.get("Inputs", ())),
        writes=_types(raw.get("Outputs", ())),
        weights=_word(str(weights.get("Type", ""))) if isinstance(weights, Mapping) else None,
        nodes=frozenset([*told, *name.split(" + ")]),
    )


def _types(tensors: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    return tuple(_tensor_type(tensor) for tensor in tensors)


def _tensor_type(tensor: Mapping[str, Any]) -> str:
    """11 has DataType beside Format; 10 has one field for both, which may name the layout too."""
    keys = {key.lower().replace(" ", ""): str(value) for key, value in tensor.items()}
    for key in ("datatype", "format/datatype", "format"):
        if key in keys and (word := _word(keys[key])) != UNKNOWN:
            return word
    return UNKNOWN


def _word(text: str) -> str:
    return next((name for name, form in _WORDS if re.search(form, text, re.IGNORECASE)), UNKNOWN)


def _node(layer: NetworkLayer) -> str:
    """The parser gives a second layer of one node a name of its own; the node's stands in its metadata."""
    told = _ONNX_NAMES.findall(layer.metadata)
    return told[0] if told else layer.name


def _dequantised(layer: NetworkLayer, index: int, makers: Mapping[str, NetworkLayer]) -> bool:
    for maker in _back(layer, index, makers):
        if maker.type.name == "DEQUANTIZE":
            return True
        if maker.type.name not in _BETWEEN:
            return False
    return False


def _back(layer: NetworkLayer, index: int, makers: Mapping[str, NetworkLayer]) -> Iterator[NetworkLayer]:
    """The layers before an input, along first inputs."""
    tensor = layer.get_input(index)
    while tensor is not None and tensor.name in makers:
        maker = makers[tensor.name]
        yield maker
        tensor = maker.get_input(0) if maker.num_inputs else None
