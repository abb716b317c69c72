"""How long each layer takes on this machine at other widths: measured on a grid, interpolated between."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper

from deploy.measure import measure_latency, percentile
from optimize.export import OPSET
from optimize.widths import Cost, Layer

SHARES = (0.25, 0.5, 0.75, 1.0)
"""Of a layer's widths, at which it is measured."""
SECONDS = 0.02
"""Of measuring at each point."""

Shape = tuple[tuple[int, int], int, tuple[int, int], bool, int, int]


def measured_cost(layers: Iterable[Layer], threads: int) -> Cost:
    """p50 in ms of a layer by itself at batch 1, in FP32 ONNX Runtime on this CPU with so many threads.

    Layers of one shape are measured once, at the first call that needs it. Between the points it is linear in
    the input and in the output channels. What runs between the layers is in none of them, so the sum is a
    model of the whole, not its time.
    """
    shapes = {layer: _shape(layer) for layer in layers}
    tables: dict[Shape, tuple[list[int], list[int], npt.NDArray[np.float64]]] = {}

    @cache
    def at(shape: Shape, inputs: int, outputs: int) -> float:
        if shape not in tables:
            tables[shape] = _table(shape, threads)
        ins, outs, times = tables[shape]
        if shape[3]:  # depthwise: one width
            return float(np.interp(outputs, outs, times[:, 0]))
        by_inputs = [float(np.interp(outputs, outs, row)) for row in times]
        return float(np.interp(inputs, ins, by_inputs))

    return lambda layer, inputs, outputs: at(shapes[layer], inputs, outputs)


def _shape(layer: Layer) -> Shape:
    return layer.kernel, layer.stride, layer.out_size, layer.depthwise, layer.inputs, layer.outputs


def _table(shape: Shape, threads: int) -> tuple[list[int], list[int], npt.NDArray[np.float64]]:
    """Input widths, output widths, ms [inputs, outputs]; of a depthwise layer ms [widths, 1]."""
    kernel, stride, out_size, depthwise, inputs, outputs = shape
    ins, outs = (sorted({max(1, round(width * share)) for share in SHARES}) for width in (inputs, outputs))
    pairs = [[(width, width)] for width in outs] if depthwise else [[(i, o) for o in outs] for i in ins]
    times = [[_measure(kernel, stride, out_size, depthwise, i, o, threads) for i, o in row] for row in pairs]
    return ins, outs, np.array(times)


def _measure(
    kernel: tuple[int, int],
    stride: int,
    out_size: tuple[int, int],
    depthwise: bool,
    inputs: int,
    outputs: int,
    threads: int,
) -> float:
    height, width = (side * stride for side in out_size)
    image: dict[str, npt.NDArray[Any]] = {"x": np.ones((1, inputs, height, width), np.float32)}
    weight = np.full((outputs, 1 if depthwise else inputs, *kernel), 0.01, np.float32)
    # As wide as a torch convolution with padding k // 2, for even sizes.
    pads = [kernel[0] // 2, kernel[1] // 2, (kernel[0] - 1) // 2, (kernel[1] - 1) // 2]
    conv = helper.make_node(
        "Conv", ["x", "w"], ["y"], kernel_shape=kernel, strides=[stride, stride], pads=pads,
        group=inputs if depthwise else 1,
    )  # fmt: skip
    graph = helper.make_graph(
        [conv, helper.make_node("Relu", ["y"], ["z"])],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, image["x"].shape)],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    samples = measure_latency(
        lambda: session.run(None, image), warmup_s=SECONDS / 4, min_duration_s=SECONDS, min_count=5
    )
    return percentile(samples, 50)
