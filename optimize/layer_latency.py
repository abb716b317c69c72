"""How long each layer takes at other widths: timed on a grid, here or on the device, interpolated between."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper
from torch import nn

from configs.compress import LayersConfig
from configs.load import run_command
from deploy.errors import LabError
from deploy.layers import DEFAULT_SECONDS, LayerTable, time_layers
from optimize.export import INPUT_NAME, OPSET
from optimize.layer_clock import OUTPUT_NAME, layers_onnx
from optimize.widths import Cost, Layer, channel_groups
from train.checkpoint import load_checkpoint, restore_model
from train.structure import plain, resized

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Of a layer's widths, at which it is timed; 0 is one channel."""
EMPTY = "empty-0-0"
"""A network that does nothing: what it takes is no layer's, and is taken off each."""


def export_layers(layers: Iterable[Layer], folder: Path) -> int:
    """An ONNX file of each layer at each width of its grid, in the folder, and `EMPTY`; how many there are.

    A hundred bytes each: their weights are constants. Raises LabError where the folder holds something.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise LabError(f"out={folder} is there and not empty: give another, or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    points = {layer_key(layer, *widths): (layer, widths) for layer in layers for widths in grid(layer)}
    for key, (layer, (inputs, outputs)) in points.items():
        with torch.device("meta"):
            module = resized(layer.module, inputs, outputs)
        onnx.save(layers_onnx([module], layer.in_size), folder / f"{key}.onnx")
    onnx.save(_empty_onnx(), folder / f"{EMPTY}.onnx")
    return len(points) + 1


def measure_here(layers: Iterable[Layer], threads: int) -> LayerTable:
    """Of this machine, in FP32 ONNX Runtime at batch 1, as `python -m deploy layers` does it elsewhere."""
    with TemporaryDirectory() as folder:
        export_layers(layers, Path(folder))
        return time_layers(Path(folder), threads, DEFAULT_SECONDS)


def grid(layer: Layer) -> list[tuple[int, int]]:
    """(input, output channels) at which it is timed. What cannot be cut stays as it is."""
    ins, outs = (
        sorted({max(1, round(width * share)) for share in SHARES}) if group is not None else [width]
        for width, group in ((layer.inputs, layer.in_group), (layer.outputs, layer.out_group))
    )
    return [(width, width) for width in outs] if layer.depthwise else [(i, o) for i in ins for o in outs]


def layer_key(layer: Layer, inputs: int, outputs: int) -> str:
    """What its time depends on, as the name of a file."""
    return f"{_kind(layer)}-{inputs}-{outputs}"


def table_cost(table: LayerTable, name: str) -> Cost:
    """ms of a layer by itself; linear in the input and in the output channels between those of the table.

    Less what the call of a network takes that does nothing, where the table has it. What runs between the
    layers is in none of them, so the sum is a model of the whole, not its time.
    Raises LabError, which calls the table `name`, for a layer that it has not on either side.
    """
    kinds: dict[str, dict[int, dict[int, float]]] = {}
    call = table.latency_ms.get(EMPTY, 0.0)
    for key, ms in table.latency_ms.items():
        kind, inputs, outputs = (*key.rsplit("-", 2), "", "")[:3]
        if not (inputs.isdigit() and outputs.isdigit()):
            raise LabError(f"{name} has a layer {key!r}: the name must end with two widths, as in ...-64-128")
        kinds.setdefault(kind, {}).setdefault(int(inputs), {})[int(outputs)] = max(0.0, ms - call)

    @cache
    def at(layer: Layer, inputs: int, outputs: int) -> float:
        rows = kinds.get(_kind(layer))
        if rows is None:
            raise LabError(
                f"{name} has no layer such as {layer.name} ({_kind(layer)}): it is of another network or of "
                "another size of images; measure the layers of this one (python -m optimize.layer_latency)"
            )
        if layer.depthwise:
            ms = _between({width: row[width] for width, row in rows.items() if width in row}, outputs)
        else:
            found = {width: _between(row, outputs) for width, row in rows.items()}
            ms = _between({width: ms for width, ms in found.items() if ms is not None}, inputs)
        if ms is None:
            raise LabError(
                f"{name} has no times around {layer.name} with {inputs} input and {outputs} output channels "
                f"({_kind(layer)}): it is of a narrower network, or not whole; measure the layers of this "
                "one (python -m optimize.layer_latency)"
            )
        return ms

    return at


def _between(points: Mapping[int, float], at: int) -> float | None:
    """Linear between the neighbours; None where there is none on one side."""
    low = max((x for x in points if x <= at), default=None)
    high = min((x for x in points if x >= at), default=None)
    if low is None or high is None:
        return None
    share = (at - low) / (high - low) if high > low else 0.0
    return points[low] + share * (points[high] - points[low])


def _kind(layer: Layer) -> str:
    module = layer.module
    if not isinstance(module, nn.Conv2d):
        return "linear"
    parts: list[tuple[str, Any]] = [
        ("conv", module.kernel_size), ("s", module.stride), ("p", module.padding), ("d", module.dilation),
        ("in", layer.in_size),
    ]  # fmt: skip
    words = [f"{word}{height}x{width}" for word, (height, width) in parts]
    return "-".join([*words, "depthwise" if layer.depthwise else f"g{module.groups}"])


def _empty_onnx() -> onnx.ModelProto:
    image, out = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, 1, 1])
        for name in (INPUT_NAME, OUTPUT_NAME)
    )
    graph = helper.make_graph(
        [helper.make_node("Identity", [INPUT_NAME], [OUTPUT_NAME])], "empty", [image], [out]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)


def main(config: LayersConfig, overrides: Sequence[str]) -> None:
    checkpoint = load_checkpoint(Path(config.checkpoint))
    groups = channel_groups(plain(restore_model(checkpoint)), checkpoint.input_spec.size)
    count = export_layers(groups.layers, Path(config.out))
    print(
        f"{count} layers in {config.out}\non the device: "
        f"python3 -m deploy layers {Path(config.out).name} --out latency.json"
    )


if __name__ == "__main__":
    run_command("layers", LayersConfig, main)
