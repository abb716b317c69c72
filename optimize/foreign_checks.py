"""What is wrong with an ONNX file of someone else: each finding says what, where and what to do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import ExternalDataInfo, load_external_data_for_model, uses_external_data

from deploy.errors import LabError

STANDARD = ("", "ai.onnx")
_QUANTISED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger",
              "QLinearConv", "QLinearMatMul")  # fmt: skip
# What multiplies: an infinity there is a broken weight, elsewhere it may be a mask.
_MULTIPLY = (
    "Conv",
    "ConvTranspose",
    "Gemm",
    "MatMul",
    "BatchNormalization",
    "LayerNormalization",
    "LSTM",
    "GRU",
)
_NUM_NAMED = 5


def load_proto(path: Path) -> onnx.ModelProto:
    """The file with all its weights inside. Raises LabError for a file that is no whole ONNX file of an IR
    version that `onnx` knows, and for external data that is missing, cut short, or not beside it."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LabError(
            f"{path}: cannot be read ({error.strerror}); give the path of an .onnx file"
        ) from error
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except Exception as error:  # DecodeError has another home in each version of protobuf
        raise LabError(
            f"{path}: {len(data)} bytes that are no ONNX file or only a part of one ({error}); copy or "
            "export it again"
        ) from error
    if not model.HasField("graph") or not model.ir_version:
        raise LabError(f"{path}: {len(data)} bytes without a graph, not an ONNX file; export it again")
    if model.ir_version > onnx.IR_VERSION:
        raise LabError(
            f"{path}: IR version {model.ir_version}, onnx {onnx.__version__} reads up to {onnx.IR_VERSION}; "
            "update onnx, or export for an older one"
        )
    _load_external(model, path)
    return model


def _load_external(model: onnx.ModelProto, path: Path) -> None:
    external = [tensor for tensor in tensors_of(model.graph) if uses_external_data(tensor)]
    problems = [text for tensor in external if (text := _external_problem(tensor, path.parent))]
    raise_for(path, list(dict.fromkeys(problems)))
    if not external:
        return
    try:
        load_external_data_for_model(model, str(path.parent))
    except Exception as error:  # its checker raises errors of its own
        raise LabError(
            f"{path}: its external data cannot be read ({error}); export it as one file"
        ) from error


def _external_problem(tensor: TensorProto, folder: Path) -> str | None:
    info = ExternalDataInfo(tensor)
    location, where = info.location, f"tensor {tensor.name!r}: external data {info.location!r}"
    outside = PurePosixPath(location).is_absolute() or PureWindowsPath(location).is_absolute()
    if not location or outside or ".." in PureWindowsPath(location).parts:
        return f"{where} is not a path inside the model's folder; put the file beside the model"
    file = folder / location
    if not file.resolve().is_relative_to(folder.resolve()):
        return f"{where} leads out of the model's folder by a link; put the file itself beside the model"
    if not file.is_file():
        return f"{where} is missing; copy it beside the model"
    end = (info.offset or 0) + (info.length or 0)
    if end > file.stat().st_size:
        return f"{where} has {file.stat().st_size} bytes, {end} are needed; copy it again"
    return None


def tensors_of(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    """Every constant, in nodes and in their subgraphs too."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from tensors_of(inner)


def raise_for(path: Path, problems: Sequence[str]) -> None:
    """All of them as one LabError; none: returns."""
    if problems:
        raise LabError(f"{path}: " + "; ".join(problems))


def place(node: onnx.NodeProto) -> str:
    """A node in words; one without a name by what it makes."""
    return f"{node.op_type} {node.name!r}" if node.name else f"{node.op_type} that makes {node.output[0]!r}"


def some(items: Sequence[str]) -> str:
    more = f" and {len(items) - _NUM_NAMED} more" if len(items) > _NUM_NAMED else ""
    return ", ".join(items[:_NUM_NAMED]) + more


def opset_of(model: onnx.ModelProto) -> int:
    """Of the standard operators; 0 where the file states none."""
    return max((o.version for o in model.opset_import if o.domain in STANDARD), default=0)


def graph_problems(model: onnx.ModelProto) -> list[str]:
    """Of the operators, the weights and the interface, each list complete."""
    graph = model.graph
    if not graph.node or not graph.output:
        return [
            f"the graph has {len(graph.node)} nodes and {len(graph.output)} outputs; export the network again"
        ]
    return [*_operator_problems(model), *_weight_problems(graph), *_interface_problems(graph)]


def _operator_problems(model: onnx.ModelProto) -> list[str]:
    opset, newest = opset_of(model), onnx.defs.onnx_opset_version()
    nodes = model.graph.node
    problems = []
    if not 1 <= opset <= newest:
        problems.append(
            f"opset {opset or 'not stated'}, onnx {onnx.__version__} knows 1 to {newest}; update onnx, or "
            "export for opset 20"
        )
    custom = [f"{place(n)} of domain {n.domain!r}" for n in nodes if n.domain not in STANDARD]
    if custom:
        problems.append(
            f"{len(custom)} operators outside of the ONNX standard: {some(custom)}; export without custom "
            "operators and without a runtime's own fusions"
        )
    elif quantised := [place(n) for n in nodes if n.op_type in _QUANTISED]:
        problems.append(
            f"it is quantised already: {some(quantised)}; give the float32 file that it was made from"
        )
    unknown = [
        place(n) for n in nodes if n.domain in STANDARD and 0 < opset <= newest and not _known(n, opset)
    ]
    if unknown:
        problems.append(f"opset {opset} has no {some(unknown)}; export it again for opset 20")
    return problems


def _known(node: onnx.NodeProto, opset: int) -> bool:
    try:
        return not onnx.defs.get_schema(node.op_type, opset, "").deprecated
    except onnx.defs.SchemaError:
        return False


def _weight_problems(graph: onnx.GraphProto) -> list[str]:
    multiply = {name for node in graph.node if node.op_type in _MULTIPLY for name in node.input}
    problems = []
    for tensor in tensors_of(graph):
        if tensor.data_type not in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE):
            continue
        try:
            array = numpy_helper.to_array(tensor)
        except (ValueError, TypeError) as error:
            problems.append(f"tensor {tensor.name!r} of shape {list(tensor.dims)} is cut short ({error})")
            continue
        bad = np.isnan(array) | (np.isinf(array) if tensor.name in multiply else False)
        if bad.any():
            readers = [place(n) for n in graph.node if tensor.name in n.input]
            problems.append(
                f"tensor {tensor.name!r} ({some(readers)}) holds {int(bad.sum())} of {array.size} values "
                "that are NaN or infinite; export a network that has trained well"
            )
    return problems


def _interface_problems(graph: onnx.GraphProto) -> list[str]:
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [tensor for tensor in graph.input if tensor.name not in constants]
    problems = [] if inputs else ["the graph has no input; export the network again"]
    for kind, tensors in (("input", inputs), ("output", graph.output)):
        for tensor in tensors:
            if not tensor.type.HasField("tensor_type"):
                found = tensor.type.WhichOneof("value") or "of no type"
                problems.append(f"{kind} {tensor.name!r} is {found}, must be a tensor; export it as one")
    for tensor in inputs:
        type_ = tensor.type.tensor_type
        if tensor.type.HasField("tensor_type") and type_.elem_type in (
            TensorProto.STRING,
            TensorProto.DOUBLE,
        ):
            name = helper.tensor_dtype_to_string(type_.elem_type).removeprefix("TensorProto.").lower()
            problems.append(f"input {tensor.name!r} is {name}; export it with float32 or integers")
        sides = [dim.dim_value for dim in type_.shape.dim]
        if not sides or sides[0] > 1:
            shape = (
                " x ".join(str(side) if side > 0 else "?" for side in sides) or "unknown or of no dimension"
            )
            problems.append(
                f"input {tensor.name!r}: shape {shape}, must begin with the batch, free or 1; export it with "
                "a batch dimension"
            )
    return problems
