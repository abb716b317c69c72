"""Which layers of a network DLA takes, as far as its documents say so. Nothing here asks a device.

The rules are those of TensorRT 10.3 on Orin:

- "DLA Supported Layers and Restrictions" in NVIDIA's TensorRT documentation (docs.nvidia.com/deeplearning/
  tensorrt, inference-library/dla-layer-restrictions): sizes, no dynamic shapes, and the main limits of each
  kind of layer.
- `operators/README.md` of github.com/NVIDIA/Deep-Learning-Accelerator-SW: the ONNX operators that TensorRT
  offers to DLA at all. It is of TensorRT 8.6; where the first names more (Min, Div, Pow), that counts.
- Unverified, because no text of them was at hand, and from older editions of the first: the ranges of
  padding, dilation and groups, those of pooling but for its window of 1 to 8, of clipping, softmax, resizing.

DLA's compiler has limits of its own (its buffer holds only so much of a layer's weights), so a layer that is
taken here may still fall back. `trtexec --verbose` on the device has the last word.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper, shape_inference

from optimize.graph_index import GraphIndex

MAX_BATCH, MAX_SIDE = 4096, 8192
MAX_WINDOW = 8
Shape = tuple[int | None, ...]


class LayerView(GraphIndex):
    """A graph with the shape of every tensor and the value of every constant."""

    def __init__(self, model: onnx.ModelProto) -> None:
        inferred = shape_inference.infer_shapes(model, data_prop=True)
        super().__init__(inferred.graph)
        self.shapes: dict[str, Shape] = {
            value.name: tuple(
                d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim
            )
            for value in [*self.graph.input, *self.graph.value_info, *self.graph.output]
        }

    def array(self, name: str) -> npt.NDArray[Any] | None:
        found = self.constants.get(name)
        return None if found is None else numpy_helper.to_array(found)

    def activations(self, node: onnx.NodeProto) -> list[str]:
        return [name for name in [*node.input, *node.output] if name and name not in self.constants]


def why_not(node: onnx.NodeProto, view: LayerView) -> str | None:
    """What keeps a layer off DLA; None where nothing that is documented does."""
    rule = _RULES.get(node.op_type)
    if rule is None:
        return _NONE.get(node.op_type, "TensorRT has no form of it for DLA")
    for name in view.activations(node):
        shape = view.shapes.get(name)
        if shape is None or None in shape:
            return f"{name} is of no fixed shape, and DLA has no dynamic ones"
        if len(shape) != 4 and not (node.op_type == "Gemm" and len(shape) == 2):
            return f"{name} has {len(shape)} dimensions, DLA's tensors have 4"
        if (shape[0] or 0) > MAX_BATCH or any((side or 0) > MAX_SIDE for side in shape[1:]):
            return f"{name} is {'x'.join(map(str, shape))}: at most {MAX_BATCH} and then {MAX_SIDE} a side"
    return rule(node, view)


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def _outside(what: str, values: Sequence[int], least: int, most: int) -> str | None:
    if all(least <= value <= most for value in values):
        return None
    return f"{what} {'x'.join(map(str, values))}, must be {least} to {most}"


def _first(*reasons: str | None) -> str | None:
    return next((reason for reason in reasons if reason is not None), None)


def _conv(node: onnx.NodeProto, view: LayerView) -> str | None:
    weight = view.array(node.input[1])
    if weight is None:
        return "its weights are computed at run time"
    have = _attributes(node)
    kernel = weight.shape[2:]
    pads = have.get("pads", [0, 0, 0, 0])
    too_wide = any(pad >= side for pad, side in zip(pads, [*kernel, *kernel], strict=True))
    return _first(
        _outside("kernel", kernel, 1, 32),
        _outside("stride", have.get("strides", [1, 1]), 1, 8),
        _outside("padding", pads, 0, 31),
        f"padding {pads} is not less than the kernel {kernel}" if too_wide else None,
        _outside("dilation", have.get("dilations", [1, 1]), 1, 32),
        _outside("output channels", weight.shape[:1], 1, 8192),
        _outside("groups", [have.get("group", 1)], 1, 8192),
    )


def _deconv(node: onnx.NodeProto, view: LayerView) -> str | None:
    weight = view.array(node.input[1])
    if weight is None:
        return "its weights are computed at run time"
    have = _attributes(node)
    return _first(
        _outside("kernel", weight.shape[2:], 1, 32),
        _outside("stride", have.get("strides", [1, 1]), 1, 32),
        _outside("padding", have.get("pads", [0, 0, 0, 0]), 0, 0),
        _outside("dilation", have.get("dilations", [1, 1]), 1, 1),
        _outside("groups", [have.get("group", 1)], 1, 1),
    )


def _gemm(node: onnx.NodeProto, view: LayerView) -> str | None:
    """As a convolution of 1 x 1, which needs its weights beforehand."""
    return None if view.array(node.input[1]) is not None else "its second factor is computed at run time"


def _pool(node: onnx.NodeProto, view: LayerView) -> str | None:
    have = _attributes(node)
    return _first(
        _outside("window", have["kernel_shape"], 1, MAX_WINDOW),
        _outside("padding", have.get("pads", [0, 0, 0, 0]), 0, 7),
        _outside("stride", have.get("strides", [1, 1]), 1, 16),
        _outside("dilation", have.get("dilations", [1, 1]), 1, 1),
    )


def _clip(node: onnx.NodeProto, view: LayerView) -> str | None:
    limits = view.clip_range(node)
    if limits is not None and limits[0] == 0 and 1 <= limits[1] <= 127:
        return None
    shown = "computed limits" if limits is None else f"{limits[0]:g} to {limits[1]:g}"
    return f"it clips to {shown}, DLA from 0 to a limit of 1 to 127"


def _concat(node: onnx.NodeProto, view: LayerView) -> str | None:
    axis = _attributes(node)["axis"] % 4
    if axis != 1:
        return f"it joins along axis {axis}, DLA along channels only"
    return None if len(node.input) > 1 else "it has one input, DLA's has at least 2"


def _softmax(node: onnx.NodeProto, view: LayerView) -> str | None:
    axis = _attributes(node).get("axis", -1) % 4
    if axis == 0:
        return "it goes along the batch"
    return _outside("size along its axis", [view.shapes[node.input[0]][axis] or 0], 1, 1024)


def _resize(node: onnx.NodeProto, view: LayerView) -> str | None:
    mode = _attributes(node).get("mode", b"nearest").decode()
    most = {"nearest": 32, "linear": 4}.get(mode)
    if most is None:
        return f"mode {mode}, DLA has nearest and linear"
    before, after = (np.array(view.shapes[name], float) for name in (node.input[0], node.output[0]))
    factors = after / before
    if any(factors[:2] != 1) or any(f != int(f) or not 1 <= f <= most for f in factors[2:]):
        return f"factors {factors.tolist()}, must be 1, 1 and whole ones of 1 to {most}"
    return None


def _slice(node: onnx.NodeProto, view: LayerView) -> str | None:
    if any(view.array(name) is None for name in node.input[1:] if name):
        return "its limits are computed at run time"
    before, after = (view.shapes[name][0] for name in (node.input[0], node.output[0]))
    return None if before == after else "it cuts the batch"


def _shuffle(node: onnx.NodeProto, view: LayerView) -> str | None:
    before, after = (view.shapes[name][0] for name in (node.input[0], node.output[0]))
    moved = node.op_type == "Transpose" and _attributes(node).get("perm", [3])[0] != 0
    return "it moves the batch" if moved or before != after else None


def _lrn(node: onnx.NodeProto, view: LayerView) -> str | None:
    size = _attributes(node)["size"]
    return None if size in (3, 5, 7, 9) else f"window {size}, must be 3, 5, 7 or 9"


def _prelu(node: onnx.NodeProto, view: LayerView) -> str | None:
    return None if view.array(node.input[1]) is not None else "its slope is computed at run time"


def _always(node: onnx.NodeProto, view: LayerView) -> None:
    """Taken as it is."""


_RULES: Mapping[str, Callable[[onnx.NodeProto, LayerView], str | None]] = {
    "Conv": _conv, "ConvTranspose": _deconv, "Gemm": _gemm, "MaxPool": _pool, "AveragePool": _pool,
    "Clip": _clip, "Concat": _concat, "Softmax": _softmax, "Resize": _resize, "Slice": _slice,
    "Reshape": _shuffle, "Transpose": _shuffle, "LRN": _lrn, "PRelu": _prelu,
} | dict.fromkeys(
    ["Relu", "LeakyRelu", "Sigmoid", "Tanh", "Abs", "BatchNormalization", "Add", "Sub", "Mul", "Max", "Min",
     "Div", "Pow", "Sum"], _always,
)  # fmt: skip
_NONE = {
    "GlobalAveragePool": "TensorRT makes a reduction of it; "
    f"up to {MAX_WINDOW} x {MAX_WINDOW} it can be written as AveragePool",
    "QuantizeLinear": "DLA takes no Q/DQ under TensorRT 10.3",
    "DequantizeLinear": "DLA takes no Q/DQ under TensorRT 10.3",
    "Flatten": "its output has 2 dimensions, DLA's tensors have 4",
}
