"""A small residual network as an ONNX graph, for tests of `optimize`: seven layers, made in milliseconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import InferenceSession

LAYERS = ("stem", "a1", "a2", "b1", "b2", "skip", "head")
FRAGILE = "a2"
SIZE = 8


def residual(outlier: float = 1.0) -> onnx.ModelProto:
    """stem; a block whose skip is its input (a1, a2); one with a convolution there (b1, b2, skip); head.

    outlier: one channel of a2's input is that much larger, and its weights for it as much smaller: in float
    the network computes the same.
    """
    rng = np.random.default_rng(0)
    constants: list[onnx.TensorProto] = []

    def add(name: str, value: npt.NDArray[np.floating[Any]]) -> str:
        constants.append(numpy_helper.from_array(value.astype(np.float32), name))
        return name

    def conv(name: str, source: str, inputs: int, outputs: int, kernel: int = 3) -> onnx.NodeProto:
        weight = rng.normal(size=(outputs, inputs, kernel, kernel)) / (inputs * kernel**2) ** 0.5
        bias = rng.normal(size=outputs) * 0.1
        if name == "a1":
            weight[0] *= outlier
            bias[0] *= outlier
        if name == FRAGILE:
            weight[:, 0] /= outlier
        names = [source, add(f"{name}.weight", weight), add(f"{name}.bias", bias)]
        return helper.make_node("Conv", names, [f"{name}_out"], name, pads=[kernel // 2] * 4)

    def relu(name: str, source: str) -> onnx.NodeProto:
        return helper.make_node("Relu", [source], [name], f"{name}_node")

    nodes = [
        conv("stem", "image", 3, 16), relu("r0", "stem_out"),
        conv("a1", "r0", 16, 16), relu("r1", "a1_out"), conv("a2", "r1", 16, 16),
        helper.make_node("Add", ["a2_out", "r0"], ["sum_a"], "add_a"), relu("r2", "sum_a"),
        conv("b1", "r2", 16, 24), relu("r3", "b1_out"), conv("b2", "r3", 24, 24),
        conv("skip", "r2", 16, 24, kernel=1),
        helper.make_node("Add", ["b2_out", "skip_out"], ["sum_b"], "add_b"), relu("r4", "sum_b"),
        helper.make_node("GlobalAveragePool", ["r4"], ["mean"], "pool"),
        helper.make_node("Flatten", ["mean"], ["flat"], "flatten"),
        helper.make_node(
            "Gemm",
            ["flat", add("head.weight", 4 * rng.normal(size=(10, 24))), add("head.bias", np.zeros(10))],
            ["logits"], "head", transB=1,
        ),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "residual",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    # No class wins by its mean, so that the images are of many classes.
    mean = InferenceSession(model.SerializeToString()).run(None, {"image": images(99, 64)})[0].mean(0)
    model.graph.initializer[-1].CopyFrom(numpy_helper.from_array(-mean, "head.bias"))
    return model


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "fp32.onnx"
    onnx.save(model, path)
    return path


def images(seed: int, count: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(count, 3, SIZE, SIZE)).astype(np.float32)


def scaled(model: onnx.ModelProto, name: str, factor: float, rows: Sequence[int]) -> None:
    """Multiply these rows of a constant."""
    tensor = next(i for i in model.graph.initializer if i.name == name)
    array = numpy_helper.to_array(tensor).copy()
    array[list(rows)] *= factor
    tensor.CopyFrom(numpy_helper.from_array(array, name))
