"""An ONNX file of someone else, read, checked and brought into the form that quantisation works on."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, shape_inference, version_converter

from deploy.errors import LabError
from deploy.runner import TensorSpec, check_feed
from optimize.export import OPSET
from optimize.foreign_checks import STANDARD, graph_problems, load_proto, opset_of, place, raise_for, some
from optimize.graph_index import GraphIndex

LARGEST_BYTES = 2**31 - 2**20
"""A protobuf ends at 2 GiB, and so does a file without external data."""
_SUFFIXES = ("_q", "_q_open", "_dq", "_scale", "_zero_point")


@dataclass(frozen=True)
class Foreign:
    """A float32 network in opset 20: weights inside, constants as initialisers, shapes inferred, BatchNorm
    folded where a convolution is before it, every node with a name of its own."""

    model: onnx.ModelProto
    inputs: tuple[TensorSpec, ...]
    """The first side of each is the batch: None where it is free, else 1."""
    outputs: tuple[TensorSpec, ...]
    changes: tuple[str, ...]
    """What was done to the file's network, in words."""


def read_onnx(path: Path) -> Foreign:
    """Read and prepare the file. float16 networks come out in float32, which holds all their values.

    Raises LabError for everything that is wrong with the file, as many findings at once as can be had.
    """
    model = load_proto(path)
    if model.ByteSize() > LARGEST_BYTES:
        raise LabError(
            f"{path}: {model.ByteSize()} bytes, at most {LARGEST_BYTES} can be one file; take less"
        )
    raise_for(path, graph_problems(model))
    changes = []
    num_half = _to_float32(model.graph)
    if num_half:
        changes.append(f"{num_half} half-precision tensors to float32, inputs and outputs among them")
    opset = opset_of(model)
    if opset != OPSET:
        model = _converted(model, opset, path)
        changes.append(f"opset {opset} to {OPSET}")
    return _prepared(model, changes, str(path))


def fix_dims(foreign: Foreign, feeds: Sequence[Mapping[str, NDArray[Any]]]) -> Foreign:
    """The same network with every side but the batch as the feeds have it, and what follows from it folded.

    A feed is one sample: {input: array with a batch of 1}. Raises LabError where one does not fit the
    network or the first feed.
    """
    if not feeds:
        raise LabError("calibration: 0 samples, at least 1 is needed and 512 are usual")
    fixed = tuple(
        TensorSpec(spec.name, spec.dtype, (spec.shape[0], *feeds[0][spec.name].shape[1:]))
        if spec.name in feeds[0]
        else spec
        for spec in foreign.inputs
    )
    for i, feed in enumerate(feeds):
        # Against the network first: a rank that differs is its finding, not the first feed's.
        for specs in (foreign.inputs, fixed):
            try:
                check_feed(feed, specs)
            except LabError as error:
                raise LabError(f"calibration: sample {i}: {error}") from error
        if any(array.shape[0] != 1 for array in feed.values()):
            raise LabError(f"calibration: sample {i} has a batch above 1; give one sample a feed")
    if fixed == foreign.inputs:
        return foreign
    model = onnx.ModelProto()
    model.CopyFrom(foreign.model)
    del model.graph.value_info[:]
    for tensor, spec in zip(model.graph.input, fixed, strict=True):
        for dim, side in list(zip(tensor.type.tensor_type.shape.dim, spec.shape, strict=True))[1:]:
            dim.dim_value = side or 0
    for tensor in model.graph.output:
        tensor.type.tensor_type.ClearField("shape")
    sides = ", ".join(f"{spec.name} {spec}" for spec in fixed)
    return _prepared(model, [*foreign.changes, f"free sides fixed: {sides}"], "the network")


def _converted(model: onnx.ModelProto, opset: int, path: Path) -> onnx.ModelProto:
    hard = [place(node) for node in model.graph.node if node.op_type == "Hardmax"]
    if hard and opset < 13:
        raise LabError(
            f"{path}: {some(hard)} means another axis in opset {opset} than in {OPSET}; export the network "
            f"again for opset {OPSET}"
        )
    try:
        result = version_converter.convert_version(model, OPSET)
    # RuntimeError of its C++ part, which names the operator, and errors of the checker it calls.
    except Exception as error:
        raise LabError(
            f"{path}: opset {opset} cannot be converted to {OPSET} ({_line(error)}); export the network "
            f"again for opset {OPSET}"
        ) from error
    if opset < 11:
        # Until then there was one way to place pixels, which is not today's; onnx 1.23 converts without it.
        for node in result.graph.node:
            if node.op_type == "Resize":
                node.attribute.append(helper.make_attribute("coordinate_transformation_mode", "asymmetric"))
                node.attribute.append(helper.make_attribute("nearest_mode", "floor"))
    return result


def _prepared(model: onnx.ModelProto, changes: list[str], what: str) -> Foreign:
    before = Counter(node.op_type for node in model.graph.node)
    _free_batch(model.graph)
    model = _folded(model, what)
    graph = model.graph
    after = Counter(node.op_type for node in graph.node)
    gone = before - after
    if gone:
        changes.append("folded or joined: " + ", ".join(f"{n} {op}" for op, n in sorted(gone.items())))
    inner = [place(node) for node in graph.node if any(a.HasField("g") for a in node.attribute)]
    if inner:
        raise LabError(
            f"{what}: {some(inner)} hold graphs of their own, which no integer kernel takes; export without "
            "control flow, e.g. by tracing"
        )
    _name_nodes(graph)
    _rename_reserved(graph)
    _own_weights(graph)
    try:
        model = shape_inference.infer_shapes(model, check_type=True, data_prop=True)
    except shape_inference.InferenceError as error:
        raise LabError(
            f"{what}: its shapes contradict each other ({_line(error)}); export it again"
        ) from error
    inputs, outputs = (tuple(map(_spec, tensors)) for tensors in (model.graph.input, model.graph.output))
    return Foreign(model, inputs, outputs, tuple(changes))


def _folded(model: onnx.ModelProto, what: str) -> onnx.ModelProto:
    """As ONNX Runtime's basic optimisations leave it: those write standard operators only."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as work:
        options.optimized_model_filepath = str(Path(work, "folded.onnx"))
        try:
            onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its exceptions share no base
            raise LabError(
                f"{what}: ONNX Runtime {onnxruntime.__version__} cannot open it ({_line(error)}); export it "
                f"again for opset {OPSET}"
            ) from error
        result = onnx.load(options.optimized_model_filepath)
    strange = [place(node) for node in result.graph.node if node.domain not in STANDARD]
    if strange:
        raise RuntimeError(f"{what}: folding made {some(strange)}, which are no standard operators")
    del result.opset_import[:], result.metadata_props[:]
    result.opset_import.append(helper.make_opsetid("", OPSET))
    result.ir_version = 10
    return result


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _free_batch(graph: onnx.GraphProto) -> None:
    """One name for the batch of all inputs, and no constants among the inputs."""
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [tensor for tensor in graph.input if tensor.name not in constants]
    del graph.input[:]
    graph.input.extend(inputs)
    for tensor in graph.input:
        for i, dim in enumerate(tensor.type.tensor_type.shape.dim):
            if dim.dim_value < 1:
                dim.dim_param = "batch" if i == 0 else dim.dim_param or f"{tensor.name}_{i}"


def _to_float32(graph: onnx.GraphProto) -> int:
    """Turns every float16 and bfloat16 of the graph into float32; returns the number of tensors."""
    halves, count = (TensorProto.FLOAT16, TensorProto.BFLOAT16), 0

    def widened(tensor: TensorProto) -> None:
        array = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

    for tensor in graph.initializer:
        if tensor.data_type in halves:
            widened(tensor)
            count += 1
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t") and attribute.t.data_type in halves:
                widened(attribute.t)
                count += 1
            elif attribute.name in ("to", "dtype") and attribute.i in halves:
                attribute.i = TensorProto.FLOAT
            elif attribute.HasField("g"):
                count += _to_float32(attribute.g)
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type in halves:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
            count += value not in graph.value_info
    return count


def _name_nodes(graph: onnx.GraphProto) -> None:
    """`keep_float` and the linter go by names, which ONNX asks for neither to exist nor to differ."""
    taken: set[str] = set()
    for i, node in enumerate(graph.node):
        node.name = node.name or f"{node.op_type}_{i}"
        while node.name in taken:
            node.name += f"_{i}"
        taken.add(node.name)


def _rename_reserved(graph: onnx.GraphProto) -> None:
    """Names that `optimize.qdq` would make of other names of this graph: `ln_scale` beside `ln`."""
    names = {t.name for t in (*graph.initializer, *graph.input)} | {o for n in graph.node for o in n.output}
    fixed = {t.name for t in (*graph.input, *graph.output)}
    renamed = {}
    for name in sorted(names - fixed - {""}):
        base = next((name.removesuffix(s) for s in _SUFFIXES if name.endswith(s)), None)
        if base in names or name.startswith("u8_"):
            new = f"{name}_of_file"
            while new in names:
                new += "_"
            renamed[name] = new
    for tensor in graph.initializer:
        tensor.name = renamed.get(tensor.name, tensor.name)
    for value in graph.value_info:
        value.name = renamed.get(value.name, value.name)
    for node in graph.node:
        for list_ in (node.input, node.output):
            for i, name in enumerate(list_):
                list_[i] = renamed.get(name, name)


def _own_weights(graph: onnx.GraphProto) -> None:
    """A copy for each layer of a weight or bias that several nodes read: its scale is the layer's."""
    index = GraphIndex(graph)
    readers = Counter(name for node in graph.node for name in node.input)
    for node in graph.node:
        if index.weight(node) is None:
            continue
        for i, name in enumerate(node.input):
            if i > 0 and readers[name] > 1 and name in index.constants:
                copy = graph.initializer.add()
                copy.CopyFrom(index.constants[name])
                copy.name = node.input[i] = f"{name}_of_{node.name}"
                readers[name] -= 1


def _spec(tensor: onnx.ValueInfoProto) -> TensorSpec:
    kind = tensor.type.tensor_type
    sides = tuple(dim.dim_value if dim.dim_value > 0 else None for dim in kind.shape.dim)
    return TensorSpec(tensor.name, str(np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type))), sides)
