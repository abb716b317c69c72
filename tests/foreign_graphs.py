"""Networks such as others make, made in milliseconds: a detector, an encoder; for the tests of any ONNX."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from optimize.foreign_sensitivity import Feed

SIZE, TOKENS, WORDS, WIDTH = 16, 6, 50, 16
FRAGILE = "box.1"


class Builder:
    """Nodes and constants of a graph."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[TensorProto] = []

    def constant(self, name: str, value: Any) -> str:
        array = np.asarray(value)
        kept = array if array.dtype in (np.int64, np.float16) else array.astype(np.float32)
        self.constants.append(numpy_helper.from_array(kept, name))
        return name

    def node(
        self, op: str, inputs: list[str], name: str, outputs: list[str] | None = None, **more: Any
    ) -> str:
        self.nodes.append(helper.make_node(op, inputs, outputs or [f"{name}_out"], name, **more))
        return str(self.nodes[-1].output[0])

    def conv(self, name: str, source: str, inputs: int, outputs: int, kernel: int = 3, **more: Any) -> str:
        weight = self.rng.normal(size=(outputs, inputs, kernel, kernel)) / (inputs * kernel**2) ** 0.5
        parts = [
            self.constant(f"{name}.weight", weight),
            self.constant(f"{name}.bias", self.rng.normal(size=outputs) * 0.1),
        ]
        return self.node("Conv", [source, *parts], name, pads=[kernel // 2] * 4, **more)

    def silu(self, name: str, source: str) -> str:
        gate = self.node("Sigmoid", [source], f"{name}.gate")
        return self.node("Mul", [source, gate], f"{name}.silu")

    def linear(self, name: str, source: str, inputs: int, outputs: int) -> str:
        weight = self.constant(f"{name}.weight", self.rng.normal(size=(inputs, outputs)) / inputs**0.5)
        product = self.node("MatMul", [source, weight], name)
        bias = self.constant(f"{name}.bias", self.rng.normal(size=outputs) * 0.1)
        return self.node("Add", [product, bias], f"{name}.add")

    def norm(self, name: str, source: str) -> str:
        parts = [
            self.constant(f"{name}.gain", np.ones(WIDTH)),
            self.constant(f"{name}.shift", np.zeros(WIDTH)),
        ]
        return self.node("LayerNormalization", [source, *parts], name)

    def model(
        self, inputs: dict[str, tuple[int, list[Any]]], outputs: dict[str, list[Any]], opset: int = 20
    ) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "foreign",
            [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, s) for name, s in outputs.items()],
            self.constants,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def detector(outlier: float = 300.0) -> onnx.ModelProto:
    """SiLU, Split, MaxPool, Resize, Concat, squeeze and excitation; `scores` and `boxes`.

    outlier: one channel of the last box layer's input is that much larger and its weights as much smaller.
    """
    b = Builder()
    stem = b.silu("stem", b.conv("stem", "image", 3, 8))
    left, right = "left", "right"
    b.node("Split", [stem], "split", [left, right], axis=1, num_outputs=2)
    inner = b.silu("inner", b.conv("inner", right, 4, 4))
    added = b.node("Add", [inner, right], "skip")
    pooled = b.node("MaxPool", [added], "pool", kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    joined = b.node("Concat", [left, added, pooled], "join", axis=1)
    down = b.silu("down", b.conv("down", joined, 12, 16, strides=[2, 2]))
    mean = b.node("GlobalAveragePool", [down], "mean")
    gate = b.node("Sigmoid", [b.conv("squeeze", mean, 16, 16, 1)], "excite")
    weighed = b.node("Mul", [down, gate], "weigh")
    scale = b.constant("factors", [1.0, 1.0, 2.0, 2.0])
    up = b.node("Resize", [weighed, "", scale], "up", mode="nearest")
    both = b.node("Concat", [up, stem], "neck", axis=1)
    scores = b.conv("score.1", b.silu("score.0", b.conv("score.0", both, 24, 8)), 8, 4, 1)
    hidden = b.node("Relu", [b.conv("box.0", both, 24, 8)], "box.relu")
    boxes = b.conv("box.1", hidden, 8, 4, 1)
    for tensor in b.constants:
        array = numpy_helper.to_array(tensor).copy()
        if tensor.name in ("box.0.weight", "box.0.bias"):
            array[0] *= outlier
        elif tensor.name == "box.1.weight":
            array[:, 0] /= outlier
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    rows = b.constant("rows", np.array([0, 4, -1]))
    flat = [
        b.node("Reshape", [name, rows], f"{kind}.flat") for name, kind in ((scores, "score"), (boxes, "box"))
    ]
    b.node("Sigmoid", [flat[0]], "last", ["scores"])
    b.node("Exp", [b.node("Tanh", [flat[1]], "bound")], "exp", ["boxes"])
    sides = ["batch", 4, SIZE * SIZE]
    return b.model(
        {"image": (TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])}, {"scores": sides, "boxes": sides}
    )


def encoder() -> onnx.ModelProto:
    """A transformer layer of two int64 inputs of a free length: `hidden`, and `logits` of the first token."""
    b = Builder()
    table = b.constant("words", b.rng.normal(size=(WORDS, WIDTH)))
    x = b.norm("norm.0", b.node("Gather", [table, "ids"], "embed"))
    query, key, value = (b.linear(name, x, WIDTH, WIDTH) for name in ("query", "key", "value"))
    turned = b.node("Transpose", [key], "turn", perm=[0, 2, 1])
    products = b.node("MatMul", [query, turned], "products")
    scaled = b.node("Mul", [products, b.constant("root", WIDTH**-0.5)], "scale")
    mask = b.node("Cast", ["mask"], "cast", to=TensorProto.FLOAT)
    off = b.node("Sub", [mask, b.constant("one", 1.0)], "off")
    penalty = b.node("Mul", [off, b.constant("much", 1e4)], "penalty")
    wide = b.node("Unsqueeze", [penalty, b.constant("axis", np.array([1]))], "wide")
    attention = b.node("Softmax", [b.node("Add", [scaled, wide], "masked")], "attention", axis=-1)
    mixed = b.linear("out", b.node("MatMul", [attention, value], "mix"), WIDTH, WIDTH)
    x = b.norm("norm.1", b.node("Add", [mixed, x], "skip.1"))
    wide_layer = b.node("Gelu", [b.linear("up", x, WIDTH, 4 * WIDTH)], "gelu")
    x = b.node("Add", [b.linear("down", wide_layer, 4 * WIDTH, WIDTH), x], "skip.2")
    parts = [b.constant("norm.2.gain", np.ones(WIDTH)), b.constant("norm.2.shift", np.zeros(WIDTH))]
    b.node("LayerNormalization", [x, *parts], "norm.2", ["hidden"])
    first = b.node("Gather", ["hidden", b.constant("zero", np.array(0))], "first", axis=1)
    weight = b.constant("head.weight", b.rng.normal(size=(5, WIDTH)))
    b.node("Gemm", [first, weight, b.constant("head.bias", np.ones(5))], "head", ["logits"], transB=1)
    sides = (TensorProto.INT64, ["batch", "tokens"])
    return b.model(
        {"ids": sides, "mask": sides}, {"hidden": ["batch", "tokens", WIDTH], "logits": ["batch", 5]}
    )


def pictures(seed: int, count: int, size: int = SIZE) -> list[Feed]:
    rng = np.random.default_rng(seed)
    return [{"image": rng.normal(size=(1, 3, size, size)).astype(np.float32)} for _ in range(count)]


def texts(seed: int, count: int) -> list[Feed]:
    rng = np.random.default_rng(seed)
    mask: NDArray[np.int64] = np.array([[1] * (TOKENS - 1) + [0]])
    return [{"ids": rng.integers(0, WORDS, (1, TOKENS)), "mask": mask} for _ in range(count)]
