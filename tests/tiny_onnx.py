"""Networks of some layers, made in milliseconds, for the tests of quantisation."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

CHANNELS = 8


def chain(
    *steps: str, uneven: float = 0.0, seed: int = 0, extra: tuple[onnx.NodeProto, ...] = ()
) -> onnx.ModelProto:
    """image -> steps -> logits: `dense` and `depthwise` are 3 x 3 convolutions of 8 channels, `relu`,
    `relu6` and `pool` what they say, `head` is pool, Flatten and Gemm, `add` adds what was four steps before.

    `uneven`: standard deviation of the log2 of factors that go back and forth through each ReLU, so that
    the channels' ranges differ and the function does not.
    """
    rng = np.random.default_rng(seed)
    arrays: dict[str, npt.NDArray[Any]] = {"zero": np.float32(0), "six": np.float32(6)}
    nodes: list[onnx.NodeProto] = []
    name, width, factor = "image", 3, np.ones(3)
    for i, step in enumerate(steps):
        out = "logits" if i == len(steps) - 1 else f"t{i}"
        if step in ("dense", "depthwise"):
            group = width if step == "depthwise" else 1
            weight = rng.normal(size=(CHANNELS, width // group, 3, 3)) / (9 * width / group) ** 0.5
            weight *= factor.reshape(-1, 1, 1, 1) if group > 1 else factor.reshape(1, -1, 1, 1)
            relu = steps[i + 1 : i + 2] == ("relu",)
            factor = 2.0 ** (uneven * rng.normal(size=CHANNELS)) if relu else np.ones(CHANNELS)
            arrays[f"w{i}"] = weight / factor.reshape(-1, 1, 1, 1)
            arrays[f"b{i}"] = rng.normal(size=CHANNELS) * 0.3 / factor
            nodes.append(
                helper.make_node("Conv", [name, f"w{i}", f"b{i}"], [out], group=group, pads=[1, 1, 1, 1])
            )
            width = CHANNELS
        elif step == "head":
            arrays[f"w{i}"] = rng.normal(size=(width, 10)) * factor[:, None]
            nodes += [
                helper.make_node("GlobalAveragePool", [name], ["pooled"]),
                helper.make_node("Flatten", ["pooled"], ["flat"]),
                helper.make_node("Gemm", ["flat", f"w{i}"], [out]),
            ]
        elif step == "add":
            nodes.append(helper.make_node("Add", [name, f"t{i - 4}"], [out]))
        else:
            op, more = {"relu": ("Relu", []), "relu6": ("Clip", ["zero", "six"]), "pool": ("MaxPool", [])}[
                step
            ]
            attributes: dict[str, Any] = {"kernel_shape": [2, 2], "strides": [2, 2]} if step == "pool" else {}
            nodes.append(helper.make_node(op, [name, *more], [out], **attributes))
        name = out
    graph = helper.make_graph(
        [*nodes, *extra],
        "chain",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 32, 32])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(a, np.float32), n) for n, a in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def array(model: onnx.ModelProto, name: str) -> npt.NDArray[Any]:
    result: npt.NDArray[Any] = numpy_helper.to_array(
        next(i for i in model.graph.initializer if i.name == name)
    ).copy()
    return result


def put(model: onnx.ModelProto, name: str, value: npt.NDArray[Any]) -> None:
    next(i for i in model.graph.initializer if i.name == name).CopyFrom(numpy_helper.from_array(value, name))
