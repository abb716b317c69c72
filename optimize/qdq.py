"""One float network and one set of scales to Q/DQ networks, for TensorRT and for a CPU."""

from __future__ import annotations

import math
from collections.abc import Set
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from deploy.errors import LabError
from optimize.calibrate import LEVELS, Scales
from optimize.graph_index import output_axis
from optimize.qdq_placement import Placement, QuantisedTensor

NumberFormat = Literal["s8", "u8"]
BIAS_LIMIT = 2.0**30
OPENED = "_before"
"""Ends the name of the integers in front of a pool, in the `s8` form alone."""


def emit(
    model: onnx.ModelProto,
    scales: Scales,
    number_format: NumberFormat,
    keep_float: Set[str] = frozenset(),
) -> onnx.ModelProto:
    """A copy of the float `model` with QuantizeLinear/DequantizeLinear, its weights stored as int8.

    Activation T becomes the integer tensor `T_q` and the float `T_dq`, which all consumers read; weight W
    becomes the int8 `W_q` per output channel, -127..127, behind one DequantizeLinear; a bias is rounded to
    whole steps of the integer accumulator (input scale x weight scale).

    - `s8`, for TensorRT: int8 with zero-point 0 everywhere; the bias as float32, for TensorRT's parser
      refuses an int32 one. A MaxPool whose output is quantised has its Q/DQ in front as well.
    - `u8`, for ONNX Runtime on a CPU: uint8 at the same scales, zero-point 0 where the tensor is never
      negative and 128 elsewhere, with the ReLU folded into the quantiser; the bias as int32 `B_q`, for
      ONNX Runtime 1.20 leaves a convolution with a float one in float.

    Layers named in `keep_float` keep their float weights; what that means for the tensors
    around them is said in `optimize/qdq_placement.py`. All of them: the float network itself.

    The two agree bit for bit, T_q(u8) - zero-point == T_q(s8), on any input.
    Raises LabError where `scales` lacks a tensor, as it does when it belongs to another network, and for an
    unknown name in `keep_float`.
    """
    if number_format not in get_args(NumberFormat):
        raise LabError(f"emit: number format {number_format!r} must be one of {get_args(NumberFormat)}")
    placement = Placement(model, keep_float)
    check_scales(placement, scales)
    return _Emitter(model, scales, number_format == "u8", placement).run(placement.tensors)


def check_scales(placement: Placement, scales: Scales) -> None:
    """Raises LabError where a tensor of the placement has no scale."""
    names = [tensor.name for tensor in placement.tensors]
    missing = [name for name in names if name not in scales.tensors]
    if missing:
        raise LabError(
            f"emit: the scales lack {len(missing)} of {len(names)} tensors, e.g. {missing[0]!r}; "
            "they belong to another network, calibrate this one"
        )


def weight_scales(
    weight: npt.NDArray[Any], axis: int, bias_limit: npt.NDArray[Any] | float = 0.0
) -> npt.NDArray[Any]:
    """float32 scale of each output channel: max |w| / 127, at least `bias_limit`, and 1 where both are 0.

    `bias_limit` is |bias| / (input scale x 2^30): training leaves dead channels with weights near zero, and
    their bias, counted in steps of the accumulator, must still fit into an int32 beside the sum.
    """
    rest = tuple(i for i in range(weight.ndim) if i != axis)
    scale = np.maximum(np.abs(weight).max(axis=rest) / LEVELS, bias_limit)
    result: npt.NDArray[Any] = np.where(scale > 0, scale, 1.0).astype(np.float32)
    return result


class _Emitter:
    def __init__(self, model: onnx.ModelProto, scales: Scales, unsigned: bool, placement: Placement) -> None:
        self.source = model
        self.scales = scales
        self.unsigned = unsigned
        self.placement = placement
        self.index = placement.index
        self.nodes: list[onnx.NodeProto] = []
        self.initialisers: dict[str, onnx.TensorProto] = {}
        self.renamed: dict[str, str] = {}

    def run(self, tensors: list[QuantisedTensor]) -> onnx.ModelProto:
        quantised = {tensor.name: tensor for tensor in tensors}
        folded = self._folded(quantised) if self.unsigned else {}
        for tensor in self.source.graph.input:
            if tensor.name in quantised:
                self._quantise(quantised[tensor.name], tensor.name, math.inf)
        for original in self.source.graph.node:
            if original.output[0] in folded:
                self.renamed[original.output[0]] = self._read(original.input[0])
            elif self._pools_integers(original, quantised):
                self._round_before(original)
            else:
                self._copy(original)
            for output in original.output:
                if output in quantised:
                    self._quantise(quantised[output], self._read(output), self._upper(output))
        return self._build()

    def _folded(self, quantised: dict[str, QuantisedTensor]) -> dict[str, float]:
        """Outputs of ReLUs and Clips from 0 that an unsigned quantiser does by itself."""
        folded = {}
        outputs = {output.name for output in self.source.graph.output}
        for node in self.source.graph.node:
            limits = self.index.clip_range(node)
            if limits is None or limits[0] != 0 or node.output[0] in outputs:
                continue
            readers = self._readers(node.output[0])
            pooled = readers and all(r.op_type == "MaxPool" and r.output[0] in quantised for r in readers)
            # A float layer that reads the tensor before its Q needs the ReLU as a node.
            behind = [node.output[0], *(r.output[0] for r in readers if pooled)]
            if any(self.placement.reads_before(r, name) for name in behind for r in self._readers(name)):
                continue
            if node.output[0] in quantised or pooled:
                folded[node.output[0]] = limits[1]
        return folded

    def _pools_integers(self, node: onnx.NodeProto, quantised: dict[str, QuantisedTensor]) -> bool:
        """Whether a MaxPool of the `s8` form has a Q/DQ in front too, of the scale behind it. That changes no
        value, for rounding keeps order, and OpenVINO then pools integers: ResNet-50 at 224 px, batch 16, one
        AMX core: 84 ms in place of 90. ONNX Runtime and TensorRT move the Q by themselves, and the clamp of
        the `u8` form is in the way of what OpenVINO gains there.
        """
        if self.unsigned or node.op_type != "MaxPool" or len(node.output) != 1:
            return False
        name = node.output[0]
        read = any(self.placement.reads_before(reader, name) for reader in self._readers(name))
        return name in quantised and node.input[0] not in quantised and not read

    def _round_before(self, pool: onnx.NodeProto) -> None:
        name = pool.output[0]
        by = [self._constant(f"{name}_scale", np.array(np.float32(self.scales.tensors[name])))]
        by.append(self._constant(f"{name}_zero_point", np.array(0, np.int8)))
        source, opened = self._read(pool.input[0]), f"{name}{OPENED}"
        self.nodes += [
            helper.make_node("QuantizeLinear", [source, *by], [opened], f"{opened}_QuantizeLinear"),
            helper.make_node(
                "DequantizeLinear", [opened, *by], [f"{opened}_dq"], f"{opened}_DequantizeLinear"
            ),
        ]
        self.nodes.append(onnx.NodeProto())
        self.nodes[-1].CopyFrom(pool)
        self.nodes[-1].input[0] = f"{opened}_dq"

    def _readers(self, name: str) -> list[onnx.NodeProto]:
        return self.index.consumers.get(name, [])

    def _upper(self, name: str) -> float:
        """The largest value that `name` can have by its Clip, also through MaxPools."""
        node = self.index.producer[name]
        if node.op_type == "MaxPool":
            return self._upper(node.input[0]) if node.input[0] in self.index.producer else math.inf
        limits = self.index.clip_range(node)
        return limits[1] if limits else math.inf

    def _read(self, name: str) -> str:
        return self.renamed.get(name, name)

    def _constant(self, name: str, value: npt.NDArray[Any]) -> str:
        self.initialisers[name] = numpy_helper.from_array(value, name)
        return name

    def _quantise(self, tensor: QuantisedTensor, source: str, upper: float) -> None:
        name = tensor.name
        zero_point = 0 if tensor.non_negative or not self.unsigned else 128
        scale = np.float32(self.scales.tensors[name])
        dtype = np.uint8 if self.unsigned else np.int8
        by = [self._constant(f"{name}_scale", np.array(scale))]
        by.append(self._constant(f"{name}_zero_point", np.array(zero_point, dtype)))
        # uint8 at zero-point 0 would go on to 255 where int8 stops at 127, and past the limit of a Clip that
        # was folded: so the integers are clamped. ONNX Runtime 1.20 and 1.32 fuse QLinearConv and QLinearAdd
        # around it. Cost, alternated with a file without it, batch 1, 224 px, two AVX2 cores, p50: ResNet-18
        # 14.6 against 14.3 ms, ResNet-50 28.6 against 29.0, that is 1 to 27 us a tensor. (Min has no uint8
        # kernel in 1.20.) It also keeps AVX2's 16-bit sum of two products in range: 2 x 127 x 127 < 2^15.
        clamp = self.unsigned and tensor.non_negative
        integer = f"{name}_q_open" if clamp else f"{name}_q"
        self.nodes.append(
            helper.make_node("QuantizeLinear", [source, *by], [integer], f"{name}_QuantizeLinear")
        )
        if clamp:
            limit = min(LEVELS, int(np.rint(np.float32(upper) / scale)) if math.isfinite(upper) else LEVELS)
            lowest = self._constant("u8_0", np.array(0, np.uint8))
            highest = self._constant(f"u8_{limit}", np.array(limit, np.uint8))
            clip = helper.make_node("Clip", [integer, lowest, highest], [f"{name}_q"], f"{name}_Clip")
            self.nodes.append(clip)
        self.nodes.append(
            helper.make_node(
                "DequantizeLinear", [f"{name}_q", *by], [f"{name}_dq"], f"{name}_DequantizeLinear"
            )
        )
        self.renamed[name] = f"{name}_dq"

    def _copy(self, original: onnx.NodeProto) -> None:
        node = onnx.NodeProto()
        node.CopyFrom(original)
        kept = original.name in self.placement.keep_float
        if self.index.weight(original) is not None and not kept:
            self._quantise_parameters(original)
        del node.input[:]
        for name in original.input:
            constant = name in self.index.constants
            as_it_is = (kept and constant) or self.placement.reads_before(original, name)
            node.input.append(name if as_it_is else self._read(name))
            if constant and node.input[-1] == name and name not in self.initialisers:
                self.initialisers[name] = self.index.constants[name]
        self.nodes.append(node)

    def _quantise_parameters(self, node: onnx.NodeProto) -> None:
        """Weight and bias of a layer."""
        name, axis = node.input[1], output_axis(node)
        if name in self.renamed:
            raise LabError(
                f"emit: weight {name!r} is used twice, once is supported; give {node.name!r} its own"
            )
        weight = numpy_helper.to_array(self.index.constants[name])
        bias_name = node.input[2] if len(node.input) > 2 and node.input[2] in self.index.constants else None
        input_scale = np.float32(self.scales.tensors[node.input[0]])
        if bias_name is None:
            scale = weight_scales(weight, axis)
        else:
            bias = numpy_helper.to_array(self.index.constants[bias_name])
            scale = weight_scales(weight, axis, np.abs(bias) / input_scale / BIAS_LIMIT)
            self._quantise_bias(bias_name, bias, input_scale * scale)
        shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
        integers = np.clip(np.rint(weight / scale.reshape(shape)), -LEVELS, LEVELS).astype(np.int8)
        self._dequantise_constant(name, integers, scale, axis)

    def _quantise_bias(self, name: str, bias: npt.NDArray[Any], step: npt.NDArray[Any]) -> None:
        integers = np.rint(bias / step).astype(np.int32)
        if self.unsigned:
            self._dequantise_constant(name, integers, step, 0)
        else:
            # The product that DequantizeLinear would compute, so that both forms add the same float.
            self._constant(name, integers.astype(np.float32) * step)

    def _dequantise_constant(
        self, name: str, integers: npt.NDArray[Any], scale: npt.NDArray[Any], axis: int
    ) -> None:
        inputs = [
            self._constant(f"{name}_q", integers),
            self._constant(f"{name}_scale", scale),
            self._constant(f"{name}_zero_point", np.zeros(len(scale), integers.dtype)),
        ]
        self.nodes.append(
            helper.make_node(
                "DequantizeLinear", inputs, [f"{name}_dq"], f"{name}_DequantizeLinear", axis=axis
            )
        )
        self.renamed[name] = f"{name}_dq"

    def _build(self) -> onnx.ModelProto:
        result = onnx.ModelProto()
        result.CopyFrom(self.source)
        del result.graph.node[:], result.graph.initializer[:], result.graph.value_info[:]
        result.graph.node.extend(self.nodes)
        result.graph.initializer.extend(self.initialisers.values())
        return result
