"""How long each layer takes on this machine at other widths: measured on a grid, interpolated between."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import numpy as np
import numpy.typing as npt
import torch

from configs.compress import LatencyConfig
from optimize.layer_clock import layers_onnx, time_layers
from optimize.widths import Cost, Layer
from train.structure import resized

SHARES = (0.25, 0.5, 0.75, 1.0)
"""Of a layer's widths, at which it is measured."""
SECONDS = 0.02
"""Of measuring at each point."""


def measured_cost(layers: Iterable[Layer], threads: int) -> Cost:
    """p50 in ms of a layer by itself at batch 1, in FP32 ONNX Runtime on this CPU with so many threads.

    Layers of one shape are measured once, at the first call that needs it. Between the points it is linear in
    the input and in the output channels. What runs between the layers is in none of them, so the sum is a
    model of the whole, not its time.
    """
    alike: dict[str, Layer] = {}
    ours = {layer: alike.setdefault(f"{layer.module} {layer.in_size}", layer) for layer in layers}
    tables: dict[Layer, tuple[list[int], list[int], npt.NDArray[np.float64]]] = {}

    @cache
    def at(layer: Layer, inputs: int, outputs: int) -> float:
        if layer not in tables:
            tables[layer] = _table(layer, threads)
        ins, outs, times = tables[layer]
        if layer.depthwise:  # one width
            return float(np.interp(outputs, outs, times[:, 0]))
        by_inputs = [float(np.interp(outputs, outs, row)) for row in times]
        return float(np.interp(inputs, ins, by_inputs))

    return lambda layer, inputs, outputs: at(ours[layer], inputs, outputs)


def _table(layer: Layer, threads: int) -> tuple[list[int], list[int], npt.NDArray[np.float64]]:
    """Input widths, output widths, ms [inputs, outputs]; of a depthwise layer ms [widths, 1]."""
    widths = (layer.inputs, layer.outputs)
    ins, outs = (sorted({max(1, round(width * share)) for share in SHARES}) for width in widths)
    pairs = [[(w, w)] for w in outs] if layer.depthwise else [[(i, o) for o in outs] for i in ins]
    times = [[_measure(layer, i, o, threads) for i, o in row] for row in pairs]
    return ins, outs, np.array(times)


def _measure(layer: Layer, inputs: int, outputs: int, threads: int) -> float:
    with torch.device("meta"):
        module = resized(layer.module, inputs, outputs)
    (time,) = time_layers([layers_onnx([module], layer.in_size)], LatencyConfig(threads, SECONDS))
    return time
