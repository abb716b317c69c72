"""A trained network to one FP32 ONNX file, and the proof that the file computes what the network does."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from torch import fx, nn
from torch.fx.experimental.optimization import fuse

from deploy.errors import LabError
from deploy.input_spec import InputSpec
from optimize.fidelity import Fidelity, compare_logits, session_logits
from optimize.files import write_model
from train.structure import plain

INPUT_NAME = "image"
OUTPUT_NAME = "logits"
# The newest that TensorRT 10.3 (JetPack 6.2) and ONNX Runtime 1.20 take, and the exporter's own default.
OPSET = 20


def export_onnx(model: nn.Module, spec: InputSpec, path: Path) -> None:
    """Write `model` in evaluation mode as FP32 ONNX: `image` N x 3 x size x size to `logits` N x classes.

    N is dynamic, the size is not. BatchNorm is folded into the convolutions, on a copy: the quantiser then
    sees the weights that the device multiplies with, and `model` stays as it was. The file appears at `path`
    complete or not at all, checked by onnx.checker, without the traces and paths of this machine.
    """
    folded = fuse(plain(model).cpu().float().eval(), inplace=True)
    # A batch of 1 would be taken as a constant by torch.export.
    image = torch.zeros(2, 3, spec.size, spec.size)
    with _quiet():
        program = torch.onnx.export(
            folded,
            (image,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT_NAME],
            output_names=[OUTPUT_NAME],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    assert program is not None, "the dynamo exporter returns a program"
    proto = program.model_proto
    _strip(proto)
    _mean_to_pool(proto)
    check_static_size(proto)
    write_model(proto, path)


def folded_norms(model: nn.Module) -> dict[str, str]:
    """The BatchNorm that `export_onnx` folds into each convolution, both by name."""
    traced = fx.symbolic_trace(plain(model).cpu().float().eval())
    modules = dict(traced.named_modules())
    found = {}
    for node in traced.graph.nodes:
        if isinstance(modules.get(str(node.target)), nn.BatchNorm2d):
            before = node.args[0]
            if isinstance(modules.get(str(before.target)), nn.Conv2d) and len(before.users) == 1:
                found[str(before.target)] = str(node.target)
    return found


def compare_onnx(model: nn.Module, path: Path, batches: Iterable[npt.NDArray[Any]]) -> Fidelity:
    """Run `model` and the file (ONNX Runtime, CPU, its default optimisations) on the same images; in float,
    fake quantisers of activations are off.

    `batches`: float32 N x 3 x size x size each. Raises LabError when there are none.
    """
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    network = plain(model).cpu().float().eval()
    with torch.no_grad():
        return compare_logits(
            lambda batch: network(torch.from_numpy(batch)).numpy(), session_logits(session), batches
        )


def check_static_size(model: onnx.ModelProto) -> None:
    """Raises LabError unless every input dimension but the batch is a number.

    INT8 kernels and a TensorRT engine are chosen for one image size, so a dynamic one is a mistake upstream.
    """
    for tensor in model.graph.input:
        dims = [d.dim_value or d.dim_param or "?" for d in tensor.type.tensor_type.shape.dim]
        if len(dims) != 4 or not all(isinstance(d, int) for d in dims[1:]):
            raise LabError(
                f"ONNX input {tensor.name!r} has shape {dims}, but only the batch of N x 3 x size x size may "
                "be dynamic; export again with a fixed size"
            )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter reports its progress by print, warning and log; what goes wrong is still raised."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


def _strip(model: onnx.ModelProto) -> None:
    """The exporter writes stack traces with this machine's paths into every node and value."""
    graph = model.graph
    parts = (graph.node, graph.input, graph.output, graph.value_info, graph.initializer)
    for item in (model, graph, *(item for part in parts for item in part)):
        item.doc_string = ""
        del item.metadata_props[:]


def _mean_to_pool(model: onnx.ModelProto) -> None:
    """ReduceMean over height and width is GlobalAveragePool, and only that name has an integer kernel."""
    constants = {i.name: i for i in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type != "ReduceMean" or len(node.input) != 2 or node.input[1] not in constants:
            continue
        axes = sorted(numpy_helper.to_array(constants[node.input[1]]).tolist())
        keep = all(a.i == 1 for a in node.attribute if a.name == "keepdims")
        if keep and axes in ([-2, -1], [2, 3]):
            node.op_type = "GlobalAveragePool"
            del node.input[1:]
            del node.attribute[:]
    read = {name for node in model.graph.node for name in node.input}
    used = [i for name, i in constants.items() if name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(used)
