"""What INT8 brings each layer on this machine: measured alone, in float and in integers, in turns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx.shape_inference import infer_shapes
from onnx.utils import Extractor

from configs.compress import LatencyConfig
from optimize.calibrate import Scales
from optimize.qdq import emit
from optimize.qdq_placement import Placement
from optimize.stage import time_in_turns

SECONDS = 0.1
"""Of measuring each of the two, at most."""


@dataclass(frozen=True)
class LayerTimes:
    """p50 in ms at batch 1 in ONNX Runtime, with what follows the layer up to the next quantised tensor."""

    float_ms: float
    int8_ms: float


def layer_times(
    model: onnx.ModelProto, scales: Scales, config: LatencyConfig, advance: Callable[[float], None]
) -> dict[str, LayerTimes]:
    """Of every Conv and Gemm node with a constant weight; layers of the same shapes are measured once.

    The integer one is cut out of the `u8` network between two integer tensors, so that it has the kernel that
    it has there and pays for no Q or DQ: in a mixed network those at the border come on top.
    `advance` is told of each layer.
    """
    placement = Placement(model)
    index = placement.index
    networks = [model, emit(model, scales, "u8")]
    cut_float, cut_int8 = (Extractor(infer_shapes(network)) for network in networks)
    stops = {tensor.name for tensor in placement.tensors} | {output.name for output in model.graph.output}
    known: dict[str, LayerTimes] = {}
    times = {}
    for node in model.graph.node:
        if index.weight(node) is None:
            continue
        start, stop = node.input[0], node.output[0]
        while stop not in stops:
            stop = index.consumers[stop][0].output[0]
        quantised_stop = stop if stop in {o.name for o in model.graph.output} else f"{stop}_q"
        pair = [
            cut_float.extract_model([start], [stop]),
            cut_int8.extract_model([f"{start}_q"], [quantised_stop]),
        ]
        key = _shapes(pair[0])
        if key not in known:
            dims = [d.dim_value for d in pair[0].graph.input[0].type.tensor_type.shape.dim]
            # Zeros would do for a convolution, but not for what a processor does with denormal numbers.
            image = np.ones([1, *dims[1:]], np.float32)
            known[key] = LayerTimes(
                *time_in_turns(
                    [part.SerializeToString() for part in pair],
                    image,
                    replace(config, seconds=min(SECONDS, config.seconds)),
                )
            )
        times[node.name] = known[key]
        advance(1)
    return times


def _shapes(model: onnx.ModelProto) -> str:
    """What the time of a part of a network depends on: its ops, their attributes and all shapes."""
    ops = [(node.op_type, [str(a) for a in node.attribute]) for node in model.graph.node]
    dims = [list(i.dims) for i in model.graph.initializer]
    return f"{ops} {dims} {model.graph.input[0].type.tensor_type.shape}"
