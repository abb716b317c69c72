"""TensorRT-RTX on the CPU takes what we emit and puts INT8 where it was asked for; what is wrong shows."""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from deploy.errors import LabError
from optimize import rtx_build
from optimize.graph_index import GraphIndex
from optimize.placement import Checked, Task, check, main
from optimize.qdq import emit
from optimize.qdq_lint import lint
from optimize.rtx_build import COMPUTE_CAPABILITIES
from tests import residual_graph
from tests.test_optimize_qdq import residual_scales

pytestmark = pytest.mark.skipif(
    not rtx_build.is_installed(), reason="TensorRT-RTX is for Linux on x86-64 only"
)


def checked(model: onnx.ModelProto, folder: Path, keep_float: Set[str] = frozenset()) -> Checked:
    path = folder / "model.onnx"
    onnx.save(model, path)
    return check(Task("int8", path, True, keep_float), COMPUTE_CAPABILITIES[:1])


def small(keep_float: Set[str] = frozenset()) -> onnx.ModelProto:
    return emit(residual_graph.residual(), residual_scales(), "s8", keep_float)


def test_a_float_file_is_judged_by_its_own_types(tmp_path: Path) -> None:
    path = residual_graph.saved(residual_graph.residual(), tmp_path)
    found = check(Task("fp32", path, None, frozenset()), ["8.6"])
    assert (found.int8, found.ok, found.lint) == (False, True, [])
    assert found.engines["8.6"].convs == {"Float": 6}
    asked = check(Task("fp32", path, True, frozenset()), ["8.6"])
    assert sum("must be Int8" in text for text in asked.engines["8.6"].findings) == 7


def _int32_bias(model: onnx.ModelProto) -> None:
    u8 = emit(residual_graph.residual(), residual_scales(), "u8")
    dequantise = next(node for node in u8.graph.node if node.output[0] == "a2.bias_dq")
    model.graph.initializer.extend(i for i in u8.graph.initializer if i.name in dequantise.input)
    nodes = [dequantise, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    conv = next(node for node in model.graph.node if node.name == "a2")
    conv.input[2] = "a2.bias_dq"


def uint8_128(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        if tensor.name == "r0_zero_point":
            tensor.CopyFrom(numpy_helper.from_array(np.array(128, np.uint8), tensor.name))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_int32_bias, r"(?s)does not take .*a2\.bias_DequantizeLinear \(DequantizeLinear\): .*Int32"),
        (uint8_128, r"(?s)does not take .*r0_QuantizeLinear \(QuantizeLinear\): .*[Zz]ero point"),
    ],
)
def test_what_the_parser_refuses_is_named(
    spoil: Callable[[onnx.ModelProto], None], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = small()
    spoil(model)
    with pytest.raises(LabError, match=said):
        checked(model, tmp_path)
    assert main([str(tmp_path / "model.onnx"), "--compute-capability", "8.6"]) == 2
    assert "error: model.onnx: " in capsys.readouterr().err


def _before_q(model: onnx.ModelProto, node_name: str, read: str) -> None:
    """Let the node read the float tensor in front of the Q."""
    index = GraphIndex(model.graph)
    node = next(node for node in model.graph.node if node.name == node_name)
    at = list(node.input).index(read)
    dequantise = index.producer[read]
    quantise = index.producer[dequantise.input[0]]
    node.input[at] = quantise.input[0]
    if len(index.consumers[read]) == 1:
        model.graph.node.remove(dequantise)
        model.graph.node.remove(quantise)


def test_a_missing_skip_qdq_is_found(tmp_path: Path) -> None:
    model = small()
    _before_q(model, "add_a", "r0_dq")
    engine = checked(model, tmp_path).engines["8.6"]
    assert engine.adds == {"Float": 1, "in the kernel": 1}
    assert [text.split(" reads")[0] for text in engine.findings] == ["add_a (Add):"]


def test_an_add_of_two_convolutions_without_any_qdq_is_found(tmp_path: Path) -> None:
    model = small()
    _before_q(model, "add_b", "b2_out_dq")
    assert checked(model, tmp_path).ok  # this one TensorRT may add in its accumulator
    _before_q(model, "add_b", "skip_out_dq")
    assert [text.split(" reads")[0] for text in checked(model, tmp_path).engines["8.6"].findings] == [
        "add_b (Add):"
    ]


def test_a_skip_that_a_convolution_makes_for_others_too_is_found(tmp_path: Path) -> None:
    """As in MobileNetV2, whose blocks end without a ReLU."""
    source = residual_graph.residual()
    relu = next(node for node in source.graph.node if node.output[0] == "r0")
    source.graph.node.remove(relu)
    for node in source.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = "stem_out" if name == "r0" else name
    scales = residual_scales()
    model = emit(source, replace(scales, tensors=scales.tensors | {"stem_out": scales.tensors["r0"]}), "s8")
    assert checked(model, tmp_path).ok
    _before_q(model, "add_a", "stem_out_dq")
    assert [text.split(" reads")[0] for text in checked(model, tmp_path).engines["8.6"].findings] == [
        "add_a (Add):"
    ]
    assert [text.split(": skip")[0] for text in lint(model)] == ["add_a (Add)"]


@pytest.mark.parametrize("what", ["weight", "input", "both"])
def test_a_convolution_left_in_float_is_found(what: str, tmp_path: Path) -> None:
    model = small({"b1"}) if what == "both" else small()
    if what == "weight":
        weight = next(i for i in residual_graph.residual().graph.initializer if i.name == "b1.weight")
        model.graph.initializer.append(weight)
        next(node for node in model.graph.node if node.name == "b1").input[1] = weight.name
    elif what == "input":
        _before_q(model, "b1", "r2_dq")
    engine = checked(model, tmp_path).engines["8.6"]
    assert engine.convs == {"Float": 1, "Int8": 5}
    assert [text for text in engine.findings if text.startswith("b1 (Conv): multiplies Float and Float")]


# a1: its input has a float copy for it, which the add beside it reads too; a2: a float sum.
@pytest.mark.parametrize("keep", [{"a1"}, {"a2"}, {"b2", "skip"}, {"stem", "a1"}, {"head"}])
def test_layers_that_are_to_be_in_float_are_no_findings(keep: set[str], tmp_path: Path) -> None:
    assert checked(small(keep), tmp_path, keep).ok
    assert not checked(small(keep), tmp_path).ok


def test_nodes_without_names_get_some(tmp_path: Path) -> None:
    model = small()
    for node in model.graph.node:
        node.name = "twice" if node.op_type == "Conv" else ""
    found = checked(model, tmp_path)
    assert found.engines["8.6"].convs == {"Int8": 6}
    assert found.ok


def test_a_dynamic_size_is_refused(tmp_path: Path) -> None:
    model = small()
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    with pytest.raises(LabError, match="a side other than the batch is free"):
        checked(model, tmp_path)
