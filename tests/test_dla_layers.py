"""Which layers DLA takes, by what is documented, and how much of a network that is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from optimize.calibrate import Scales
from optimize.dla import to_dla
from optimize.dla_report import DlaReport, dla_report
from optimize.qdq_placement import quantised_tensors
from tests.test_optimize_support import exported
from tests.tiny_onnx import chain

Arrays = dict[str, npt.NDArray[Any]]


def one(
    op: str,
    shape: Sequence[int | str] = (1, 8, 16, 16),
    arrays: Arrays | None = None,
    second: Sequence[int] | None = None,
    **attributes: Any,
) -> list[str]:
    """Why DLA does not take this layer, which reads `x`, `y` if it has a second shape, and the arrays."""
    arrays = arrays or {}
    shapes = {"x": shape} | ({"y": second} if second else {})
    names = [*shapes, *arrays]
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node(op, names, ["out"], "layer", **attributes)],
            "one",
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()],
            [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(a, n) for n, a in arrays.items()],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
    )
    report = dla_report(model)
    assert report.num_on_dla + len(report.fallbacks) == report.num_layers == 1
    return [f.why for f in report.fallbacks]


def kernel(*shape: int) -> Arrays:
    return {"w": np.ones(shape, np.float32)}


def factors(*values: float) -> Arrays:
    """Of a Resize, behind the region of interest that it leaves out."""
    return {"none": np.array([], np.float32), "f": np.array(values, np.float32)}


BATCH_CUT = {"a": np.array([0]), "b": np.array([1]), "axis": np.array([0])}
LARGE = (1, 8, 64, 64)


@pytest.mark.parametrize(
    ("op", "arguments"),
    [
        ("Conv", {"arrays": kernel(8, 8, 3, 3), "pads": [1, 1, 1, 1], "strides": [8, 8]}),
        ("Conv", {"arrays": kernel(8, 1, 3, 3), "group": 8, "dilations": [2, 2]}),
        ("ConvTranspose", {"arrays": kernel(8, 8, 2, 2), "strides": [2, 2]}),
        ("Gemm", {"shape": (1, 8), "arrays": kernel(8, 4)}),
        ("MaxPool", {"kernel_shape": [8, 8], "pads": [1, 1, 1, 1], "strides": [16, 16]}),
        ("Clip", {"arrays": {"lo": np.float32(0), "hi": np.float32(6)}}),
        ("Relu", {}),
        ("Add", {"second": (1, 8, 16, 16)}),
        ("Concat", {"second": (1, 4, 16, 16), "axis": 1}),
        ("Softmax", {"axis": 1}),
        ("Resize", {"arrays": factors(1, 1, 2, 2), "mode": "nearest"}),
        ("Slice", {"arrays": {"a": np.array([2]), "b": np.array([6]), "axis": np.array([1])}}),
        ("Transpose", {"perm": [0, 2, 3, 1]}),
        ("LRN", {"size": 5}),
        ("PRelu", {"arrays": {"slope": np.ones((8, 1, 1), np.float32)}}),
    ],
)
def test_what_dla_takes(op: str, arguments: dict[str, Any]) -> None:
    assert one(op, **arguments) == []


@pytest.mark.parametrize(
    ("op", "arguments", "why"),
    [
        ("Conv", {"arrays": kernel(8, 8, 33, 3), "pads": [16, 1, 16, 1], "shape": LARGE}, "kernel 33x3"),
        ("Conv", {"arrays": kernel(8, 8, 3, 3), "strides": [9, 1]}, "stride 9x1, must be 1 to 8"),
        ("Conv", {"arrays": kernel(8, 8, 1, 1), "pads": [1, 1, 1, 1]}, "not less than the kernel"),
        ("Conv", {"arrays": kernel(8, 8, 2, 2), "dilations": [33, 1], "shape": LARGE}, "dilation 33x1"),
        ("Conv", {"arrays": kernel(8, 8, 3, 3), "shape": ("batch", 8, 16, 16)}, "no fixed shape"),
        ("Conv", {"arrays": kernel(8, 8, 3), "shape": (1, 8, 16)}, "3 dimensions"),
        ("Conv", {"second": (8, 8, 3, 3)}, "computed at run time"),
        ("Conv", {"arrays": kernel(1, 1, 1, 1), "shape": (1, 1, 1, 8193)}, "8193: at most 4096 and then"),
        ("ConvTranspose", {"arrays": kernel(8, 8, 2, 2), "pads": [1, 1, 1, 1]}, "padding 1x1x1x1, must be 0"),
        ("ConvTranspose", {"arrays": kernel(8, 1, 2, 2), "group": 8}, "groups 8"),
        ("MaxPool", {"kernel_shape": [9, 1]}, "window 9x1, must be 1 to 8"),
        ("AveragePool", {"kernel_shape": [2, 2], "strides": [17, 1], "shape": (1, 8, 32, 32)}, "stride 17x1"),
        ("GlobalAveragePool", {}, "makes a reduction of it; up to 8 x 8"),
        ("Clip", {"arrays": {"lo": np.float32(-1), "hi": np.float32(6)}}, "clips to -1 to 6"),
        ("Concat", {"second": (1, 8, 4, 16), "axis": 2}, "along axis 2"),
        ("Softmax", {"axis": 0}, "along the batch"),
        ("Softmax", {"axis": 1, "shape": (1, 1025, 1, 1)}, "1025, must be 1 to 1024"),
        ("Resize", {"arrays": factors(1, 1, 5, 5), "mode": "linear"}, "1 to 4"),
        ("Resize", {"arrays": factors(1, 1, 2, 2), "mode": "cubic"}, "cubic"),
        ("Slice", {"arrays": BATCH_CUT, "shape": (2, 8, 4, 4)}, "the batch"),
        ("Transpose", {"perm": [1, 0, 2, 3]}, "moves the batch"),
        ("Flatten", {"axis": 1}, "2 dimensions"),
        ("LRN", {"size": 4}, "window 4"),
        ("Gelu", {}, "no form of it for DLA"),
        ("HardSwish", {}, "no form of it for DLA"),
    ],
)  # fmt: skip
def test_what_dla_does_not_take_and_why(op: str, arguments: dict[str, Any], why: str) -> None:
    (found,) = one(op, **arguments)
    assert why in found


def test_resnet18_is_one_loadable() -> None:
    model = onnx.load(exported("resnet18"))
    scales = Scales("max", 1, {tensor.name: 0.5 for tensor in quantised_tensors(model)})
    report = to_dla(model, scales).report
    assert (report.num_layers, report.num_on_dla, report.num_loadables) == (49, 48, 1)
    assert [(f.op, f.why) for f in report.fallbacks] == [
        ("Flatten", "its output has 2 dimensions, DLA's tensors have 4")
    ]
    assert report.warnings() == []
    # Without the rewriting of its end the pool would end the loadable, and its batch keeps it off altogether.
    assert dla_report(model).num_on_dla == 0


def with_gpu(*ops: str) -> DlaReport:
    """`relu` and `gelu` layers one after the other, 1 x 8 x 4 x 4."""
    names = [f"t{i}" for i in range(len(ops) + 1)]
    nodes = [
        helper.make_node({"relu": "Relu", "gelu": "Gelu"}[op], [names[i]], [names[i + 1]])
        for i, op in enumerate(ops)
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, (1, 8, 4, 4)) for n in (names[0], names[-1])]
    graph = helper.make_graph(nodes, "mixed", ends[:1], ends[1:])
    return dla_report(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]))


def test_each_layer_on_the_gpu_ends_a_loadable() -> None:
    assert with_gpu("relu", "relu", "gelu", "relu").num_loadables == 2
    assert with_gpu("gelu", "relu", "relu").num_loadables == 1
    report = with_gpu("relu", "gelu")
    assert report.share == 0.5
    assert report.fallbacks[0].layer == "t2"
    assert str(report).splitlines()[1] == "  on the GPU: t2 (Gelu): TensorRT has no form of it for DLA"


def test_a_way_over_the_gpu_parts_what_is_connected() -> None:
    """t0 goes to the Add straight and over a Gelu: they cannot be one piece."""
    model = chain("relu", "relu", extra=())
    nodes = [
        helper.make_node("Relu", ["image"], ["a"]),
        helper.make_node("Gelu", ["a"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["logits"]),
    ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    assert dla_report(model).num_loadables == 2


def test_too_much_on_the_gpu_is_warned_of() -> None:
    assert with_gpu(*["relu"] * 9, "gelu").warnings() == []
    (few,) = with_gpu("relu", "gelu").warnings()
    assert few.startswith("WARNING: DLA takes 50% of the layers, less than 80%")
    many = with_gpu(*(["relu"] * 9 + ["gelu"]) * 9).warnings()
    assert many == ["WARNING: 9 loadables, more than 8: each switch between DLA and GPU costs time"]
    (over,) = with_gpu(*(["relu"] * 9 + ["gelu"]) * 17).warnings()
    assert over == "WARNING: 17 loadables, a DLA core holds 16: it will not load"
