"""A layer by itself, or some in a row, as an ONNX file; and how long these take beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from configs.compress import LatencyConfig
from optimize.export import INPUT_NAME, OPSET
from optimize.stage import time_in_turns

OUTPUT_NAME = "out"


class LayerClock:
    """(layer, others in a row, height and width of the input) -> p50 in ms of the one and of the others.

    In ONNX Runtime at batch 1, in turns; layers of the same shapes are measured once.
    """

    def __init__(self, config: LatencyConfig) -> None:
        self._config = config
        self._known: dict[str, tuple[float, float]] = {}

    def __call__(
        self, layer: nn.Module, others: nn.Sequential, in_size: tuple[int, int]
    ) -> tuple[float, float]:
        key = f"{layer} {others} {in_size}"
        if key not in self._known:
            models = [layers_onnx([layer], in_size), layers_onnx(list(others), in_size)]
            shape = [d.dim_value for d in models[0].graph.input[0].type.tensor_type.shape.dim]
            before, after = time_in_turns(
                [model.SerializeToString() for model in models], np.zeros(shape, np.float32), self._config
            )
            self._known[key] = (before, after)
        return self._known[key]


def layers_onnx(layers: Sequence[nn.Module], in_size: tuple[int, int]) -> onnx.ModelProto:
    """Convolutions, or linear layers, in a row for one image.

    The last has a bias of zeros, as it has one when the BatchNorm behind it is folded. The weights of a layer
    on the meta device are 0.01, written in a few bytes.
    """
    nodes, constants = [], []

    def constant(name: str, shape: Sequence[int], value: float) -> str:
        constants.append(numpy_helper.from_array(np.array(shape, np.int64), f"{name}-shape"))
        filled = numpy_helper.from_array(np.array([value], np.float32))
        nodes.append(helper.make_node("ConstantOfShape", [f"{name}-shape"], [name], value=filled))
        return name

    name = INPUT_NAME
    for number, layer in enumerate(layers):
        last = number == len(layers) - 1
        weight = cast(torch.Tensor, layer.weight).detach()
        inputs = [name, f"weight{number}"]
        if weight.is_meta:
            constant(inputs[1], weight.shape, 0.01)
        else:
            constants.append(numpy_helper.from_array(weight.float().numpy(), inputs[1]))
        if last:
            inputs.append(constant("bias", weight.shape[:1], 0.0))
        name = OUTPUT_NAME if last else f"thin{number}"
        if isinstance(layer, nn.Conv2d):
            padding = cast(tuple[int, int], layer.padding)
            nodes.append(
                helper.make_node(
                    "Conv",
                    inputs,
                    [name],
                    kernel_shape=layer.kernel_size,
                    strides=layer.stride,
                    pads=[*padding, *padding],
                    dilations=layer.dilation,
                    group=layer.groups,
                )
            )
        else:
            nodes.append(helper.make_node("Gemm", inputs, [name], transB=1))
    first = layers[0]
    if isinstance(first, nn.Conv2d):
        shape = [1, first.in_channels, *in_size]
    else:
        shape = [1, cast(nn.Linear, first).in_features]
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info(INPUT_NAME, TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(OUTPUT_NAME, TensorProto.FLOAT, None)],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
