"""Any float32 network in float16, with inputs and outputs as they are.

ONNX Runtime's converter writes it; what it would turn into the largest number without a word, layers with a
weight or an output beyond float16's range, stays in float32 and is named.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, numpy_helper, shape_inference

from optimize.foreign_sensitivity import Feed, answers, closeness
from optimize.precision import FP16_LARGEST

_LEAST = 5.96e-08
"""The least number of float16, the converter's own limit; what is smaller becomes it."""


def half_precision(
    model: onnx.ModelProto, feeds: Sequence[Feed], checks: Sequence[Feed], threads: int
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """The network and its record. `feeds`: samples that show which outputs overflow."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    over = _overflowing(model, feeds)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    half = convert_float_to_float16(
        copy,
        keep_io_types=True,
        disable_shape_infer=True,
        node_block_list=sorted(over),
        min_positive_val=_LEAST,
    )
    del half.graph.value_info[:]
    _sort(half.graph)
    _join_float(half.graph, _float32(shape_inference.infer_shapes(half).graph))
    half = shape_inference.infer_shapes(half)
    outputs = [output.name for output in model.graph.output]
    close = closeness(outputs, answers(half, checks, threads), answers(model, checks, threads))
    weights = [numpy_helper.to_array(t) for t in model.graph.initializer if t.data_type == TensorProto.FLOAT]
    record = {
        "keep_float": sorted(over),
        "overflows": over,
        "num_flushed": int(
            sum(((w != 0) & (w.astype(np.float16) == 0)).sum() for w in map(_within, weights))
        ),
        "outputs": [asdict(one) for one in close],
    }
    return half, record


def _float32(graph: onnx.GraphProto) -> set[str]:
    values = (*graph.value_info, *graph.input, *graph.output)
    return {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}


def _join_float(graph: onnx.GraphProto, floats: set[str]) -> None:
    """Nodes in float32 read each other directly: the converter goes through a float16 between them, where
    the value that they were kept for would overflow."""
    casts = {node.output[0]: node for node in graph.node if node.op_type == "Cast"}
    to = {name: node.attribute[0].i for name, node in casts.items()}
    source = {
        name: casts[node.input[0]].input[0]
        for name, node in casts.items()
        if to[name] == TensorProto.FLOAT
        and to.get(node.input[0]) == TensorProto.FLOAT16
        and casts[node.input[0]].input[0] in floats
    }
    outputs = {output.name for output in graph.output}
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = source.get(name, name)
    read = outputs | {name for node in graph.node for name in node.input}
    unread = [node for node in graph.node if node.op_type == "Cast" and node.output[0] not in read]
    # A Cast that only fed a Cast is unread once that one is gone, but costs nothing: runtimes drop it.
    for node in unread:
        graph.node.remove(node)


def _sort(graph: onnx.GraphProto) -> None:
    """Each node behind those whose outputs it reads: the converter adds its Casts at the end."""
    made = {name for node in graph.node for name in node.output}
    waiting, ready, nodes = list(graph.node), {""}, []
    while waiting:
        late = []
        for node in waiting:
            if all(name in ready or name not in made for name in node.input):
                nodes.append(onnx.NodeProto.FromString(node.SerializeToString()))
                ready.update(node.output)
            else:
                late.append(node)
        waiting = late
    del graph.node[:]
    graph.node.extend(nodes)


def _within(weight: Any) -> Any:
    return np.clip(weight, -FP16_LARGEST, FP16_LARGEST)


def _overflowing(model: onnx.ModelProto, feeds: Sequence[Feed]) -> dict[str, int]:
    """Node to the number of values beyond float16's range: of its constants, or of what it makes or reads."""
    big: dict[str, int] = {}
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            count = int((np.abs(numpy_helper.to_array(tensor)) > FP16_LARGEST).sum())
            big |= {tensor.name: count} if count else {}
    floats, outputs = _float32(model.graph), {output.name for output in model.graph.output}
    watched = [name for node in model.graph.node for name in node.output if name in floats]
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    exposed.graph.output.extend(onnx.ValueInfoProto(name=n) for n in watched if n not in outputs)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        exposed.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    for feed in feeds:
        for name, value in zip(watched, session.run(watched, feed), strict=True):
            count = int((np.abs(value) > FP16_LARGEST).sum())
            if count:
                big[name] = big.get(name, 0) + count
    found = {}
    for node in model.graph.node:
        count = sum(big.get(name, 0) for name in (*node.input, *node.output))
        if count:
            found[node.name] = count
    return found
