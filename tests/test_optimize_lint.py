"""The linter passes what we emit, which TensorRT-RTX builds in INT8, and finds what TensorRT minds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import helper, numpy_helper

from optimize.placement import Task, check
from optimize.qdq import emit
from optimize.qdq_lint import count_int8_convs, lint
from optimize.rtx_build import COMPUTE_CAPABILITIES, is_installed
from tests.test_optimize_support import calibrated, exported, load


def s8(name: str = "resnet18") -> onnx.ModelProto:
    return emit(load(name), calibrated(name), "s8")


def first(model: onnx.ModelProto, op_type: str) -> onnx.NodeProto:
    nodes: list[onnx.NodeProto] = [node for node in model.graph.node if node.op_type == op_type]
    return nodes[0]


def producer(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    nodes: list[onnx.NodeProto] = [node for node in model.graph.node if name in node.output]
    return nodes[0]


def put(model: onnx.ModelProto, name: str, value: npt.NDArray[Any]) -> None:
    tensor = next(i for i in model.graph.initializer if i.name == name)
    tensor.CopyFrom(numpy_helper.from_array(value, name))


@pytest.mark.parametrize(
    ("name", "convs", "adds"), [("resnet18", 20, 8), ("resnet50", 53, 16), ("mobilenet", 16, 2)]
)
def test_our_own_form_is_clean(name: str, convs: int, adds: int) -> None:
    model = s8(name)
    assert lint(model) == []
    assert count_int8_convs(model) == (convs, convs)
    assert sum(node.op_type == "Add" for node in model.graph.node) == adds


@pytest.mark.skipif(not is_installed(), reason="TensorRT-RTX is for Linux on x86-64 only")
@pytest.mark.parametrize(
    ("name", "convs", "skips", "in_kernel", "padded", "capabilities"),
    [
        ("resnet18", 20, 5, 3, 1, COMPUTE_CAPABILITIES),
        ("resnet50", 53, 12, 4, 1, ("8.6",)),
        pytest.param("resnet50", 53, 12, 4, 1, ("8.9", "12.0"), marks=pytest.mark.slow),
        # A depthwise convolution reads four channels a group, three of them zeros.
        ("mobilenet", 16, 2, 0, 6, ("8.6",)),
        pytest.param("mobilenet_v2", 52, 10, 0, 18, COMPUTE_CAPABILITIES, marks=pytest.mark.slow),
    ],
)
def test_tensorrt_rtx_builds_it_in_int8(
    name: str,
    convs: int,
    skips: int,
    in_kernel: int,
    padded: int,
    capabilities: Sequence[str],
    tmp_path: Path,
) -> None:
    onnx.save(s8(name), tmp_path / "int8.onnx")
    found = check(Task(name, tmp_path / "int8.onnx", True, frozenset()), capabilities)
    assert found.lint == []
    assert list(found.engines) == list(capabilities)
    # The stored weights are a quarter: what the table calls Int8 is. Depthwise ones come with their zeros.
    size = 0.26 * exported(name).stat().st_size
    for engine in found.engines.values():
        assert engine.findings == []
        assert (engine.convs, engine.products) == ({"Int8": convs}, {"Int8": 1})
        expected = {"Int8": skips, "in the kernel": in_kernel}
        assert engine.adds == {kind: count for kind, count in expected.items() if count}
        assert (len(engine.reformats), len(engine.padded)) == (1, padded)
        assert padded > 1 or engine.weight_bytes < size


def test_float_network_is_not() -> None:
    findings = lint(load("resnet18"))
    assert sum("(Add)" in text for text in findings) == 8
    assert sum("(Conv): input" in text for text in findings) == 20
    assert sum("(Conv): weight" in text for text in findings) == 20
    assert count_int8_convs(load("resnet18")) == (0, 20)


def test_cpu_form_is_not_for_tensorrt() -> None:
    findings = lint(emit(load("resnet18"), calibrated("resnet18"), "u8"))
    assert any("zero-point is uint8" in text for text in findings)
    assert any("constant is int32" in text for text in findings)


def test_one_float_branch_of_an_add_may_come_from_a_convolution() -> None:
    """TensorRT adds the skip input in that convolution's accumulator, where nobody else reads that; a float
    skip input it cannot."""
    model = s8()
    add = first(model, "Add")
    names = list(add.input)
    main = [producer(model, producer(model, producer(model, name).input[0]).input[0]) for name in names]
    branch = next(i for i, node in enumerate(main) if node.op_type == "Conv")
    add.input[branch] = main[branch].output[0]
    # Its Q/DQ have another reader yet, for which the convolution's output is stored.
    model.graph.node.append(helper.make_node("Identity", [names[branch]], ["unused"]))
    assert [text.split()[1] for text in lint(model)] == ["(Add):"]
    model.graph.node.pop()
    dequantise = producer(model, names[branch])
    quantise = producer(model, dequantise.input[0])
    for node in (dequantise, quantise):
        model.graph.node.remove(node)
    assert lint(model) == []
    model.graph.node.extend([quantise, dequantise])
    add.input[branch], add.input[1 - branch] = names[branch], main[1 - branch].output[0]
    assert [text.split()[1] for text in lint(model)] == ["(Add):"]


def _zero_point_value(model: onnx.ModelProto) -> None:
    put(model, "image_zero_point", np.array(3, np.int8))


def _zero_point_type(model: onnx.ModelProto) -> None:
    put(model, "image_zero_point", np.array(0, np.uint8))


def _no_zero_point(model: onnx.ModelProto) -> None:
    del first(model, "QuantizeLinear").input[2]


def _scale(model: onnx.ModelProto) -> None:
    put(model, "image_scale", np.array(np.inf, np.float32))


def _negative_scale(model: onnx.ModelProto) -> None:
    put(model, "image_scale", np.array(-1, np.float32))


def _weight_axis(model: onnx.ModelProto) -> None:
    dequantise = producer(model, first(model, "Conv").input[1])
    del dequantise.attribute[:]
    dequantise.attribute.append(helper.make_attribute("axis", 1))


def _weight_per_tensor(model: onnx.ModelProto) -> None:
    put(model, producer(model, first(model, "Conv").input[1]).input[1], np.array(0.1, np.float32))


def _int32_bias(model: onnx.ModelProto) -> None:
    conv = first(model, "Conv")
    size = len(numpy_helper.to_array(next(i for i in model.graph.initializer if i.name == conv.input[2])))
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(size, np.int32), "bias_q"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(0.1, np.float32), "bias_scale"))
    model.graph.node.insert(
        0, helper.make_node("DequantizeLinear", ["bias_q", "bias_scale"], ["bias"], "bias_dq")
    )
    conv.input[2] = "bias"


def _float_input(model: onnx.ModelProto) -> None:
    first(model, "Conv").input[0] = "image"


def _float_weight(model: onnx.ModelProto) -> None:
    gemm = first(model, "Gemm")
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((10, 512), np.float32), "float_weight"))
    gemm.input[1] = "float_weight"


def _before_relu(model: onnx.ModelProto) -> None:
    relu = first(model, "Relu")
    by = ["image_scale", "image_zero_point"]
    nodes = [
        helper.make_node("QuantizeLinear", [relu.input[0], *by], ["early_q"], "early_QuantizeLinear"),
        helper.make_node("DequantizeLinear", ["early_q", *by], ["early_dq"], "early_DequantizeLinear"),
    ]
    position = list(model.graph.node).index(relu)
    relu.input[0] = "early_dq"
    for node in reversed(nodes):
        model.graph.node.insert(position, node)


def _dynamic_size(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (_zero_point_value, "zero-point [3] must be 0"),
        (_zero_point_type, "zero-point is uint8"),
        (_no_zero_point, "no zero-point means uint8"),
        (_scale, "scale inf must be"),
        (_negative_scale, "scale -1.0 must be"),
        (_weight_axis, "on axis 1, must be constants"),
        (_weight_per_tensor, "one scale for each output channel on axis 0"),
        (_int32_bias, "bias 'bias' is not a float32 constant"),
        (_float_input, "input 'image' is float"),
        (_float_weight, "(Gemm): weight 'float_weight' is float"),
        (_before_relu, "(Relu): Q/DQ between it and"),
        (_dynamic_size, "'height'"),
    ],
)
def test_damage_is_found(damage: Callable[[onnx.ModelProto], None], text: str) -> None:
    model = s8()
    damage(model)
    findings = lint(model)
    assert any(text in finding for finding in findings), findings
