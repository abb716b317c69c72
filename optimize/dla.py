"""One float network and its scales to what DLA takes under JetPack 6: a float ONNX without Q/DQ, a
calibration cache, and the precision of each layer.

The cache is TensorRT's own text file: a line `TRT-<version>-EntropyCalibration2`, then one line a tensor,
`<name>: <32 bits of the float32 scale as a hexadecimal number>`; scale = largest absolute value / 127, as in
`Scales`. TensorRT documents no format. This is what its files look like (`input: 3caa54fc`), what ONNX
Runtime reads (ReadDynamicRange of its TensorRT provider) and what NVIDIA's own translator writes
(tools/qdq-translator of github.com/NVIDIA/Deep-Learning-Accelerator-SW). <version> is NV_TENSORRT_VERSION:
8400 of 8.4.0, 101401 of 10.14.1. A TensorRT of another version may refuse the cache and ask for images.

The layers are trtexec's `--layerPrecisions`: `name:precision` with commas between them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper, shape_inference

from deploy.errors import LabError
from optimize.calibrate import Scales
from optimize.dla_layers import MAX_WINDOW
from optimize.dla_report import DlaReport, dla_report
from optimize.files import write_bytes, write_model
from optimize.graph_index import GraphIndex
from optimize.qdq import check_scales
from optimize.qdq_placement import Placement

DLA_NAME = "dla.onnx"
CACHE_NAME = "dla.cache"
LAYERS_NAME = "dla.layers.txt"
TENSORRT = "10.3.0"
"""Of every JetPack whose DLA is reached by a calibration cache."""
BATCH = 1
_KEEPS_RANGE = ("Relu", "Clip", "MaxPool", "Flatten", "Reshape", "Identity")


@dataclass(frozen=True)
class DlaNetwork:
    model: onnx.ModelProto
    """Float32, of a batch of 1, computing what the network that it came from computes."""
    scales: dict[str, float]
    """Of each tensor that is int8."""
    precisions: dict[str, str]
    """Layer to int8 or fp16."""
    report: DlaReport


def write_dla(model: onnx.ModelProto, scales: Scales, keep_float: Set[str], out_dir: Path) -> DlaReport:
    """`dla.onnx`, `dla.cache` and `dla.layers.txt` in `out_dir`; see `to_dla`. Raises LabError."""
    network = to_dla(model, scales, keep_float)
    layers = ",".join(f"{name}:{precision}" for name, precision in network.precisions.items())
    write_model(network.model, out_dir / DLA_NAME)
    write_bytes(format_cache(network.scales, TENSORRT).encode(), out_dir / CACHE_NAME)
    write_bytes(f"{layers}\n".encode(), out_dir / LAYERS_NAME)
    return network.report


def to_dla(model: onnx.ModelProto, scales: Scales, keep_float: Set[str] = frozenset()) -> DlaNetwork:
    """The same network for DLA. Two things are written another way, because it takes them only so: a
    GlobalAveragePool of at most 8 x 8 as AveragePool, and a Gemm behind it as a convolution of 1 x 1.

    A layer is int8 where `keep_float` does not make it float and all that it reads and writes has a scale:
    its own, or that of its neighbour through an op which keeps the range. The others are fp16, the last one
    among them, for logits have no scale. Unlike with Q/DQ, a float layer reads what an integer one makes for
    it rounded to int8. Raises LabError where `scales` lacks a tensor and for an unknown name in `keep_float`.
    """
    placement = Placement(model, keep_float)
    check_scales(placement, scales)
    found = with_neighbours(scales.tensors, placement.index)
    floats = {node.output[0] for node in model.graph.node if placement.is_float(node)}
    written = onnx.ModelProto()
    written.CopyFrom(model)
    _fix_batch(written)
    _pools(written)
    _heads(written, found, floats)
    _name_layers(written)
    index = GraphIndex(written.graph)
    tensors = {i.name for i in written.graph.input} | set(index.producer)
    kept = {name: scale for name, scale in found.items() if name in tensors}
    precisions = {}
    for node in written.graph.node:
        activations = [name for name in [*node.input, *node.output] if name in tensors]
        whole = all(name in kept for name in activations)
        precisions[node.name] = "int8" if whole and node.output[0] not in floats else "fp16"
    return DlaNetwork(written, kept, precisions, dla_report(written))


def format_cache(scales: Mapping[str, float], tensorrt: str) -> str:
    """The text of a calibration cache for a version such as 10.3.0. Raises LabError for a tensor's name that
    the format cannot hold, and for a scale that float32 cannot."""
    bad = [name for name in scales if "\n" in name or name != name.strip() or not name]
    bad += [name for name, scale in scales.items() if float(np.float32(scale)) != scale or not scale > 0]
    if bad:
        raise LabError(f"calibration cache: {bad} cannot be written: rename the tensor, or calibrate again")
    lines = [f"TRT-{_version_number(tensorrt)}-EntropyCalibration2"]
    lines += [f"{name}: {np.float32(scale).view(np.uint32):x}" for name, scale in scales.items()]
    return "\n".join(lines) + "\n"


def read_cache(text: str) -> tuple[int, dict[str, float]]:
    """Version number and scales of a calibration cache, each exactly the float32 there. Raises LabError."""
    head, *lines = text.splitlines() or [""]
    version = re.fullmatch(r"TRT-(\d+)-EntropyCalibration2", head)
    parts = [re.fullmatch(r"(.+): ([0-9a-f]{1,8})", line) for line in lines]
    if version is None or not all(parts):
        wrong = head if version is None else next(x for x, p in zip(lines, parts, strict=True) if not p)
        raise LabError(f"calibration cache: {wrong!r:.80} is no line of one; write it again")
    scales = {p[1]: float(np.uint32(int(p[2], 16)).view(np.float32)) for p in parts if p}
    return int(version[1]), scales


def _version_number(version: str) -> int:
    """NV_TENSORRT_VERSION: from 10 on a digit more than before."""
    major, minor, patch = (int(part) for part in (*version.split("."), "0", "0")[:3])
    return major * (10_000 if major >= 10 else 1_000) + minor * 100 + patch


def with_neighbours(scales: Mapping[str, float], index: GraphIndex) -> dict[str, float]:
    """The scales, and those of tensors beside them through an op that keeps the range. Backwards only to a
    tensor that nobody else reads: what a ReLU cuts off, another reader may need."""
    found = dict(scales)
    for forwards in (True, False):
        nodes: Iterable[onnx.NodeProto] = index.graph.node if forwards else reversed(index.graph.node)
        for node in nodes:
            if node.op_type not in _KEEPS_RANGE:
                continue
            before, after = node.input[0], node.output[0]
            if forwards and before in found:
                found.setdefault(after, found[before])
            elif not forwards and after in found and len(index.consumers[before]) == 1:
                found.setdefault(before, found[after])
    return found


def _fix_batch(model: onnx.ModelProto) -> None:
    graph = model.graph
    for value in [*graph.input, *graph.output]:
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].Clear()
            value.type.tensor_type.shape.dim[0].dim_value = BATCH
    del graph.value_info[:]


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    graph = shape_inference.infer_shapes(model, data_prop=True).graph
    return {
        value.name: tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
        for value in [*graph.input, *graph.value_info, *graph.output]
    }


def _pools(model: onnx.ModelProto) -> None:
    shapes = _shapes(model)
    for node in model.graph.node:
        window = shapes.get(node.input[0], ())[2:] if node.op_type == "GlobalAveragePool" else ()
        if len(window) == 2 and all(1 <= side <= MAX_WINDOW for side in window):
            node.op_type = "AveragePool"
            node.attribute.append(helper.make_attribute("kernel_shape", window))


def _heads(model: onnx.ModelProto, scales: dict[str, float], floats: set[str]) -> None:
    """Gemm behind a Flatten of N x C x 1 x 1 to Conv and then Flatten: what cannot run on DLA comes last.

    What is known of a tensor, its scale and whether it is made in float, passes to the tensor in its place.
    """
    shapes, graph = _shapes(model), model.graph
    index = GraphIndex(graph)
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        before = index.producer.get(node.input[0]) if node.op_type == "Gemm" else None
        if before is None or before not in nodes or not _is_head(node, before, index, shapes):
            nodes.append(node)
            continue
        nodes.remove(before)
        weight = numpy_helper.to_array(index.constants[node.input[1]])
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        rows = weight if transposed else weight.T
        kernel = f"{node.input[1]}_1x1"
        graph.initializer.append(
            numpy_helper.from_array(np.ascontiguousarray(rows)[:, :, None, None], kernel)
        )
        out = node.output[0]
        nodes += [
            helper.make_node("Conv", [before.input[0], kernel, *node.input[2:]], [f"{out}_4d"], node.name),
            helper.make_node("Flatten", [f"{out}_4d"], [out], f"{node.name}_flatten"),
        ]
        if out in scales:
            scales[f"{out}_4d"] = scales[out]
        if out in floats:
            floats.add(f"{out}_4d")
    del graph.node[:]
    graph.node.extend(nodes)
    read = {name for node in nodes for name in node.input}
    used = [constant for constant in graph.initializer if constant.name in read]
    del graph.initializer[:]
    graph.initializer.extend(used)


def _is_head(
    node: onnx.NodeProto,
    before: onnx.NodeProto,
    index: GraphIndex,
    shapes: Mapping[str, tuple[int, ...]],
) -> bool:
    have = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    plain = not have.get("transA") and have.get("alpha", 1.0) == 1.0 and have.get("beta", 1.0) == 1.0
    bias = [index.constants.get(name) for name in node.input[2:]]
    return (
        plain
        and before.op_type in ("Flatten", "Reshape")
        and index.weight(node) is not None
        and all(b is not None and len(b.dims) == 1 for b in bias)
        and shapes.get(before.input[0], ())[2:] == (1, 1)
        and len(shapes.get(before.output[0], ())) == 2
        and len(index.consumers[before.output[0]]) == 1
    )


def _name_layers(model: onnx.ModelProto) -> None:
    """trtexec splits its list at commas and colons and takes `*` for any name."""
    taken: set[str] = set()
    for node in model.graph.node:
        plain = re.sub(r"[^A-Za-z0-9_./-]", "_", node.name or node.output[0])
        name = plain
        number = 2
        while name in taken:
            name, number = f"{plain}_{number}", number + 1
        taken.add(name)
        node.name = name
