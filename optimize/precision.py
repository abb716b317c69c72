"""Variants of one FP32 file in other number formats: FP16, BF16, and float with 8-bit weights.

Own code rather than onnxruntime.transformers.float16: that one writes the largest number where a weight
overflows and the smallest where one vanishes, without a word, and knows no bfloat16.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper, version_converter

from deploy.errors import LabError
from optimize.calibrate import LEVELS
from optimize.export import INPUT_NAME, OUTPUT_NAME, check_static_size
from optimize.fidelity import plain_session, snr_db
from optimize.files import write_model
from optimize.graph_index import PASS_ON, GraphIndex, output_axis
from optimize.qdq import weight_scales

BF16_OPSET = 22
"""The first in which a Conv may be bfloat16; from the export's 20 to it our ops change in types alone."""
Half = Literal["fp16", "bf16"]
_TYPES: dict[Half, tuple[int, npt.DTypeLike]] = {
    "fp16": (TensorProto.FLOAT16, np.float16),
    "bf16": (TensorProto.BFLOAT16, ml_dtypes.bfloat16),
}
FP16_LARGEST = 65504.0
# Their values come out of their inputs, so they need no rounding of their own.
_EXACT = {"Relu", "Clip", "MaxPool", "Reshape", "Flatten", "Identity"}


@dataclass(frozen=True)
class PrecisionRecord:
    """What a variant is, and how far from FP32. Against the FP32 file in ONNX Runtime, image by image."""

    number_format: Literal["fp16", "bf16", "int8-weights"]
    fp32_bytes: int
    bytes: int
    opset: int
    num_weights: int
    """Numbers that changed their format: weights, and biases where these did."""
    num_flushed: int
    """Of them not zero in FP32, and zero now."""
    num_activations_over: int
    """For fp16: activations of the FP32 network, over all images, of a magnitude beyond 65504. Else 0."""
    snr_db: float | None
    """Of the logits; None without images, and where one is not finite."""
    top1_agreement: float | None
    """Share, 0 to 1, of the images of which both name the same class; None without images."""
    num_images: int
    num_not_finite: int
    """Of the images, those with a logit that is not finite."""


def to_fp16(path: Path, out: Path, batches: Iterable[npt.NDArray[Any]] = ()) -> PrecisionRecord:
    """Every float tensor of the file at `path` in float16, but for input and output, which stay float32.

    So it is FP16 by its types, as TensorRT's strongly typed networks want it, and not by a builder's flag.
    `batches`: float32 [n, 3, size, size] each, read once; measured on :func:`emulated`, for ONNX Runtime on
    an x86 CPU opens the file and then computes in float32.
    Raises LabError for a weight beyond 65504, for a file that is no FP32 export, and for a tensor type that
    the network states itself; nothing is written then.
    """
    return _to_half(path, out, batches, "fp16")


def to_bf16(path: Path, out: Path, batches: Iterable[npt.NDArray[Any]] = ()) -> PrecisionRecord:
    """As :func:`to_fp16` in bfloat16: the range of float32, 8 bits of fraction.

    In opset 22. ONNX Runtime (1.32) has no bfloat16 Conv on a CPU and refuses the file; onnx.reference
    takes it, but sums in bfloat16, as no device does: what a device answers is computed on :func:`emulated`.
    """
    return _to_half(path, out, batches, "bf16")


def weight_only(path: Path, out: Path, batches: Iterable[npt.NDArray[Any]] = ()) -> PrecisionRecord:
    """Weights of Conv and Gemm as int8, one scale an output channel, behind a DequantizeLinear; float else.

    A file of about a quarter, for storage and transfer; the arithmetic stays float32. Measured in ONNX
    Runtime.
    """
    model = _load_fp32(path)
    index = GraphIndex(model.graph)
    nodes: list[onnx.NodeProto] = []
    done: dict[str, tuple[int, int]] = {}
    for node in model.graph.node:
        name = index.weight(node)
        if name is not None:
            if name not in done:
                dequantise, parts, done[name] = _int8_weight(index.constants[name], output_axis(node))
                nodes.append(dequantise)
                model.graph.initializer.extend(parts)
                model.graph.initializer.remove(index.constants[name])
            node.input[1] = f"{name}_dq"
        nodes.append(node)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    write_model(model, out)
    counts = [sum(column) for column in zip(*done.values(), strict=True)] or [0, 0]
    return _record(path, out, model, model, batches, "int8-weights", counts[0], counts[1])


def emulated(model: onnx.ModelProto) -> onnx.ModelProto:
    """A network of :func:`to_fp16` or :func:`to_bf16` in float32, with the roundings of its types as Casts.

    Each op sums in float32 and rounds once, as the matrix units of a GPU do. ONNX Runtime runs it, and its
    answers are those to expect of a device, to within the ops that this fuses.
    """
    to = next(node.attribute[0].i for node in model.graph.node if node.op_type == "Cast")
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:], result.graph.initializer[:]
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        half = tensor.data_type == to
        result.graph.initializer.append(
            numpy_helper.from_array(array.astype(np.float32), tensor.name) if half else tensor
        )
    for original in model.graph.node:
        node = onnx.NodeProto()
        node.CopyFrom(original)
        name, rounded = node.output[0], f"{node.output[0]}_rounded"
        to_float = helper.make_node("Cast", [rounded], [name], to=TensorProto.FLOAT)
        if node.op_type == "Cast" and node.attribute[0].i == to:
            node.output[0] = rounded
            result.graph.node.extend([node, to_float])
        elif node.op_type in _EXACT or node.op_type == "Cast":
            result.graph.node.append(node)
        else:
            node.output[0] = f"{name}_exact"
            rounding = helper.make_node("Cast", [f"{name}_exact"], [rounded], to=to)
            result.graph.node.extend([node, rounding, to_float])
    return result


def _to_half(path: Path, out: Path, batches: Iterable[npt.NDArray[Any]], form: Half) -> PrecisionRecord:
    model = _load_fp32(path)
    if form == "bf16":
        model = version_converter.convert_version(model, BF16_OPSET)
    element, dtype = _TYPES[form]
    graph = model.graph
    del graph.value_info[:]
    num_weights = num_flushed = 0
    over: list[str] = []
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        array = numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            half = array.astype(dtype)
        if (np.isfinite(array) & ~np.isfinite(half.astype(np.float32))).any():
            over.append(f"{tensor.name} (up to {np.abs(array).max():.3g})")
        num_weights += array.size
        num_flushed += int(((array != 0) & (half == 0)).sum())
        tensor.CopyFrom(numpy_helper.from_array(half, tensor.name))
    if over:
        raise LabError(
            f"{form}: {len(over)} tensors of {path.name} hold weights that it cannot: {', '.join(over[:3])}; "
            "fp16 ends at 65504, take bf16, which has the range of float32, or int8"
        )
    inside = {graph.input[0].name: f"{INPUT_NAME}_{form}", graph.output[0].name: f"{OUTPUT_NAME}_{form}"}
    for node in graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                names[i] = inside.get(name, name)
    outer = [graph.input[0].name, graph.output[0].name]
    graph.node.insert(0, helper.make_node("Cast", [outer[0]], [inside[outer[0]]], "input_Cast", to=element))
    graph.node.append(
        helper.make_node("Cast", [inside[outer[1]]], [outer[1]], "output_Cast", to=TensorProto.FLOAT)
    )
    write_model(model, out)
    return _record(path, out, model, emulated(model), batches, form, num_weights, num_flushed)


def _load_fp32(path: Path) -> onnx.ModelProto:
    """Raises LabError for a file that is quantised, or states types in its nodes."""
    model = onnx.load(path)
    check_static_size(model)
    stated = {"Cast", "Constant", "ConstantOfShape", "QuantizeLinear", "DequantizeLinear"}
    found = sorted({node.op_type for node in model.graph.node} & stated)
    if found:
        raise LabError(
            f"{path.name} has {', '.join(found)}, which state types: give the FP32 file of the export"
        )
    return model


def _int8_weight(
    tensor: onnx.TensorProto, axis: int
) -> tuple[onnx.NodeProto, list[onnx.TensorProto], tuple[int, int]]:
    """The node, its constants, and how many weights there are and became zero."""
    name, weight = tensor.name, numpy_helper.to_array(tensor)
    scale = weight_scales(weight, axis)
    shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
    integers = np.clip(np.rint(weight / scale.reshape(shape)), -LEVELS, LEVELS).astype(np.int8)
    parts = [
        numpy_helper.from_array(integers, f"{name}_q"),
        numpy_helper.from_array(scale, f"{name}_scale"),
        numpy_helper.from_array(np.zeros(len(scale), np.int8), f"{name}_zero_point"),
    ]
    node = helper.make_node(
        "DequantizeLinear",
        [part.name for part in parts],
        [f"{name}_dq"],
        f"{name}_DequantizeLinear",
        axis=axis,
    )
    return node, parts, (weight.size, int(((weight != 0) & (integers == 0)).sum()))


def _record(
    path: Path,
    out: Path,
    model: onnx.ModelProto,
    runnable: onnx.ModelProto,
    batches: Iterable[npt.NDArray[Any]],
    form: Literal["fp16", "bf16", "int8-weights"],
    num_weights: int,
    num_flushed: int,
) -> PrecisionRecord:
    float_model = onnx.load(path)
    # Activations and pools hand on what others make: nothing in them is beyond what was counted there.
    made = [node.output[0] for node in float_model.graph.node if node.op_type not in (*PASS_ON, *_EXACT)]
    watched = made if form == "fp16" else []
    float_model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in watched if n != OUTPUT_NAME)
    reference_session, session = plain_session(float_model), plain_session(runnable)
    references, answers = [], []
    num_over = 0
    for batch in batches:
        # Image by image, as in calibration: every activation is in memory.
        for image in batch:
            reference, *activations = reference_session.run(
                [OUTPUT_NAME, *watched], {INPUT_NAME: image[None]}
            )
            num_over += sum(int((np.abs(a) > FP16_LARGEST).sum()) for a in activations)
            references.append(reference)
            answers.append(session.run([OUTPUT_NAME], {INPUT_NAME: image[None]})[0])
    expected, actual = (
        np.concatenate(x) if x else np.zeros((0, 1), np.float32) for x in (references, answers)
    )
    finite = np.isfinite(actual).all(1)
    return PrecisionRecord(
        number_format=form,
        fp32_bytes=path.stat().st_size,
        bytes=out.stat().st_size,
        opset=model.opset_import[0].version,
        num_weights=num_weights,
        num_flushed=num_flushed,
        num_activations_over=num_over,
        snr_db=snr_db(actual, expected) if len(actual) and finite.all() else None,
        top1_agreement=float((actual.argmax(1) == expected.argmax(1))[finite].sum() / len(actual))
        if len(actual)
        else None,
        num_images=len(actual),
        num_not_finite=int((~finite).sum()),
    )
