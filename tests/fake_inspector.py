"""A mock of the JSON that TensorRT's engine inspector writes, from its documentation of 10 and of 11.

It proves what we make of those two forms, not that a real inspector writes them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

Row = tuple[str, str, Sequence[str], Sequence[str], str | None, str]
"""Name, LayerType, formats read, formats written, type of the weights, names of the ONNX nodes (blanks)."""


def layers_json(major: int, rows: Sequence[Row]) -> str:
    """What the inspector writes: 10 as in its developer guide, 11 as in its page on the change.

    A format is 10's own ("Row major Int8 format"); 11's has the last word but one as its DataType.
    """
    layers = []
    for name, kind, reads, writes, weights, nodes in rows:
        told = "\x1e".join(f"[ONNX Layer: {node}]" for node in nodes.split())
        layer: dict[str, Any] = {
            "Name": name,
            "LayerType": kind,
            "Inputs": [_format(major, form) for form in reads],
            "Outputs": [_format(major, form) for form in writes],
            "TacticValue": "0x0",
            "StreamId": 0,
            "Metadata": told,
        }
        if weights is not None:
            layer |= {"ParameterType": "Convolution", "Weights": {"Type": weights, "Count": 64}}
        layers.append(layer)
    if major < 11:
        return json.dumps({"Layers": layers, "Bindings": ["image", "logits"]})
    ends = [{"Name": "image", "IOMode": "Input", "DataType": "Float", "Dimensions": [1, 3, 8, 8]}]
    return json.dumps({"Layers": layers, "I/O Tensors": ends})


def _format(major: int, form: str) -> dict[str, Any]:
    tensor: dict[str, Any] = {"Name": "t", "Location": "Device", "Dimensions": [1, 8, 8, 8]}
    if major < 11:
        return {**tensor, "Format/Datatype": form}
    layout, _, kind = form.removesuffix(" format").rpartition(" ")
    return {**tensor, "Format": f"{layout} (kLINEAR)", "DataType": {"FP32": "Float"}.get(kind, kind)}
