"""What TensorRT wants of a Q/DQ network, checked without TensorRT."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, numpy_helper

from optimize.graph_index import WEIGHTED, GraphIndex, output_axis

AGAIN = "quantise the FP32 file again"


def lint(model: onnx.ModelProto, keep_float: Set[str] = frozenset()) -> list[str]:
    """Findings, each with node, value and remedy, on a network in the `s8` form; empty when it is clean.

    TensorRT's parser refuses some of these (zero-point, int32 bias); others it takes, and runs the layer in
    float without a word (an add or a convolution with a float input, a Q/DQ before a ReLU). Nodes named in
    `keep_float` are to be in float, and so are the adds of what they make.
    """
    index = GraphIndex(model.graph)
    findings = _lint_sizes(model)
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            findings += _lint_qdq(node, index)
        elif node.name in keep_float:
            findings += _lint_kept(node, index)
        elif index.is_layer(node):
            findings += _lint_weighted(node, index)
        elif index.is_residual_add(node):
            findings += _lint_add(node, index, keep_float)
        elif index.clip_range(node) is not None:
            findings += _lint_activation(node, index)
    return findings


def count_int8_convs(model: onnx.ModelProto) -> tuple[int, int]:
    """(convolutions with input and weight behind a DequantizeLinear, all convolutions)."""
    index = GraphIndex(model.graph)
    convs = [node for node in model.graph.node if node.op_type == "Conv"]
    return sum(all(_dequantise(name, index) for name in node.input[:2]) for node in convs), len(convs)


def _lint_sizes(model: onnx.ModelProto) -> list[str]:
    """Integer kernels and an engine are chosen for one size; only the batch, the first side, may be free."""
    findings = []
    for tensor in model.graph.input:
        dims = [d.dim_value or d.dim_param or "?" for d in tensor.type.tensor_type.shape.dim]
        if not all(isinstance(d, int) for d in dims[1:]):
            findings.append(f"ONNX input {tensor.name!r} has shape {dims}; fix all sides but the batch")
    return findings


def _dequantise(name: str, index: GraphIndex) -> onnx.NodeProto | None:
    node = index.producer.get(name)
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def _array(name: str, index: GraphIndex) -> npt.NDArray[Any] | None:
    return numpy_helper.to_array(index.constants[name]) if name in index.constants else None


def _lint_qdq(node: onnx.NodeProto, index: GraphIndex) -> list[str]:
    findings = []
    scale = _array(node.input[1], index)
    if scale is None or not np.isfinite(scale).all() or not (scale > 0).all():
        findings.append(f"{node.name}: scale {scale} must be a constant, finite and above 0; {AGAIN}")
    zero_point = _array(node.input[2], index) if len(node.input) > 2 else None
    data = _array(node.input[0], index)
    if node.op_type == "DequantizeLinear" and data is not None and data.dtype != np.int8:
        findings.append(f"{node.name}: constant is {data.dtype}, must be int8; leave a bias in float32")
    elif zero_point is None and node.op_type == "QuantizeLinear":
        findings.append(f"{node.name}: no zero-point means uint8, must be int8; add an int8 zero-point of 0")
    elif zero_point is not None and zero_point.dtype != np.int8:
        findings.append(f"{node.name}: zero-point is {zero_point.dtype}, must be int8; emit the s8 form")
    if zero_point is not None and zero_point.any():
        findings.append(f"{node.name}: zero-point {zero_point.ravel()[:4]} must be 0; emit the s8 form")
    return findings


def _lint_weighted(node: onnx.NodeProto, index: GraphIndex) -> list[str]:
    findings = []
    what = f"{node.name} ({node.op_type})"
    if _dequantise(node.input[0], index) is None:
        findings.append(
            f"{what}: input {node.input[0]!r} is float, must come from a DequantizeLinear; {AGAIN}"
        )
    weight = _dequantise(node.input[1], index)
    if weight is None:
        findings.append(f"{what}: weight {node.input[1]!r} is float, must be int8 and dequantised; {AGAIN}")
    else:
        data, scale = _array(weight.input[0], index), _array(weight.input[1], index)
        right = output_axis(node)
        axis = next((a.i for a in weight.attribute if a.name == "axis"), 1)
        if data is None or scale is None or scale.shape != (data.shape[right],) or axis != right:
            shapes = [None if array is None else array.shape for array in (data, scale)]
            findings.append(
                f"{what}: weight and scale of shape {shapes} on axis {axis}, must be constants with one "
                f"scale for each output channel on axis {right}; {AGAIN}"
            )
    if len(node.input) > 2 and node.input[2]:
        bias = index.constants.get(node.input[2])
        if bias is None or bias.data_type != TensorProto.FLOAT:
            findings.append(f"{what}: bias {node.input[2]!r} is not a float32 constant; leave it in float32")
    return findings


def _lint_kept(node: onnx.NodeProto, index: GraphIndex) -> list[str]:
    if all(name in index.constants for name in node.input[1:]):
        return []
    return [f"{node.name} ({node.op_type}): stays in float, but its weight or bias is dequantised; {AGAIN}"]


def _lint_add(node: onnx.NodeProto, index: GraphIndex, keep_float: Set[str]) -> list[str]:
    """One input may be a convolution's float output, which TensorRT adds in its accumulator, where nobody
    else reads that: then it is stored in float. No more, but where that convolution is float itself, which
    makes the add a float one."""
    if any(name in index.producer and index.producer[name].name in keep_float for name in node.input):
        return []
    floats = [name for name in node.input if _dequantise(name, index) is None]
    handed_over = [
        name
        for name in floats
        if name in index.producer
        and index.producer[name].op_type == "Conv"
        and len(index.consumers[name]) == 1
    ]
    if not floats or (len(floats) == 1 and handed_over):
        return []
    return [f"{node.name} (Add): skip input among {floats} is float, so the add is too; put Q/DQ on it"]


def _lint_activation(node: onnx.NodeProto, index: GraphIndex) -> list[str]:
    dequantise = _dequantise(node.input[0], index)
    quantise = index.producer.get(dequantise.input[0]) if dequantise else None
    before = index.producer.get(quantise.input[0]) if quantise else None
    if before is None or before.op_type not in (*WEIGHTED, "Add"):
        return []
    return [
        f"{node.name} ({node.op_type}): Q/DQ between it and {before.name} ({before.op_type}) keeps the two "
        "from becoming one kernel; move the Q/DQ behind it"
    ]
