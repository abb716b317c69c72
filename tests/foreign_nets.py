"""One small network of each kind that someone else may bring, made in milliseconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

CLASSES = 4
SIZE = 16
TOKENS, VOCABULARY, WIDTH = 6, 20, 16
Side = int | str


class _Graph:
    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, value: NDArray[Any]) -> str:
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def weight(self, name: str, *shape: int) -> str:
        fan_in = int(np.prod(shape[1:])) if len(shape) == 4 else shape[0]
        return self.constant(name, (self.rng.normal(size=shape) / fan_in**0.5).astype(np.float32))

    def node(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=f"make_{output}", **attributes))
        return output

    def conv(self, name: str, source: str, inputs: int, outputs: int, kernel: int = 3) -> str:
        weight = self.weight(f"{name}_w", outputs, inputs, kernel, kernel)
        return self.node("Conv", [source, weight], name, pads=[kernel // 2] * 4)

    def save(
        self,
        path: Path,
        inputs: Sequence[onnx.ValueInfoProto],
        outputs: Sequence[str],
        opset: int = 17,
    ) -> Path:
        ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
        graph = helper.make_graph(self.nodes, "foreign", list(inputs), ends, self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        onnx.save(model, path)
        return path


def classifier(path: Path, *, batch: Side = "n", side: Side = SIZE) -> Path:
    """pixels N x 3 x S x S to probabilities N x 4."""
    g = _Graph(0)
    g.node("Relu", [g.conv("c1", "pixels", 3, 8)], "r1")
    g.node("Relu", [g.conv("c2", "r1", 8, 8)], "r2")
    g.node("Flatten", [g.node("GlobalAveragePool", ["r2"], "pooled")], "flat")
    # Larger weights, so that the classes differ by more than INT8's noise.
    g.constant("head_w", (8 * g.rng.normal(size=(8, CLASSES))).astype(np.float32))
    g.node("Gemm", ["flat", "head_w"], "scores")
    g.node("Softmax", ["scores"], "probabilities", axis=1)
    pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [batch, 3, side, side])
    return g.save(path, [pixels], ["probabilities"])


def detector(path: Path, *, batch: Side = 1, seed: int = 1) -> Path:
    """images N x 3 x 16 x 16 to boxes N x 4 x 8 x 8 and confidences N x 2 x 8 x 8."""
    g = _Graph(seed)
    g.node("Relu", [g.conv("c1", "images", 3, 8)], "r1")
    g.node("MaxPool", ["r1"], "p1", kernel_shape=[2, 2], strides=[2, 2])
    g.node("Relu", [g.conv("c2", "p1", 8, 8)], "r2")
    g.conv("boxes", "r2", 8, 4, kernel=1)
    g.node("Sigmoid", [g.conv("logits", "r2", 8, 2, kernel=1)], "confidences")
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 3, SIZE, SIZE])
    return g.save(path, [images], ["boxes", "confidences"])


def encoder(path: Path) -> Path:
    """ids and mask, int64 N x L, to states N x L x 16: a table, one head of attention, one layer."""
    g = _Graph(2)
    g.constant("table", g.rng.normal(size=(VOCABULARY, WIDTH)).astype(np.float32))
    g.node("Gather", ["table", "ids"], "embedded")
    for name in ("query", "key", "value"):
        g.node("MatMul", ["embedded", g.weight(f"{name}_w", WIDTH, WIDTH)], name)
    g.node("MatMul", ["query", g.node("Transpose", ["key"], "turned", perm=[0, 2, 1])], "likeness")
    g.node("Cast", ["mask"], "kept", to=TensorProto.FLOAT)
    g.node("Sub", [g.constant("one", np.float32(1)), "kept"], "hidden")
    g.node("Mul", ["hidden", g.constant("far", np.float32(-1e4))], "far_off")
    g.node("Unsqueeze", ["far_off", g.constant("axis", np.array([1], np.int64))], "bias")
    g.node("Softmax", [g.node("Add", ["likeness", "bias"], "masked")], "attention", axis=-1)
    g.node("Add", [g.node("MatMul", ["attention", "value"], "mixed"), "embedded"], "summed")
    g.node("MatMul", ["summed", g.weight("out_w", WIDTH, WIDTH)], "states")
    ids, mask = (
        helper.make_tensor_value_info(n, TensorProto.INT64, ["n", "length"]) for n in ("ids", "mask")
    )
    return g.save(path, [ids, mask], ["states"])


def sentences(count: int, seed: int = 0) -> dict[str, NDArray[np.int64]]:
    """Samples of the encoder, of 2 to 6 tokens."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, TOKENS + 1, (count, 1))
    return {
        "ids": rng.integers(0, VOCABULARY, (count, TOKENS)),
        "mask": (np.arange(TOKENS) < lengths).astype(np.int64),
    }


def pictures(count: int, seed: int = 0) -> NDArray[np.float32]:
    """float32 count x 3 x 16 x 16."""
    return np.random.default_rng(seed).normal(size=(count, 3, SIZE, SIZE)).astype(np.float32)
