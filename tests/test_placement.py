"""TensorRT-RTX on the CPU takes what we emit and puts INT8 where it was asked for; what is wrong shows."""

from __future__ import annotations

import json
from collections.abc import Callable, Set
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from deploy.bundle import Bundle, Variant, write_bundle
from deploy.errors import LabError
from deploy.input_spec import InputSpec
from optimize import pack, rtx_build
from optimize.placement import Checked, Task, check, main
from optimize.qdq import emit
from optimize.qdq_lint import lint
from optimize.qdq_placement import GraphIndex
from optimize.quantize import S8_NAME, quantize_onnx
from optimize.rtx_build import COMPUTE_CAPABILITIES
from optimize.variants import Made
from tests import residual_graph
from tests.pictures import save
from tests.test_optimize_qdq import residual_scales
from tests.test_optimize_support import SPEC, batches, calibrated, exported, load

pytestmark = pytest.mark.skipif(
    not rtx_build.is_installed(), reason="TensorRT-RTX is for Linux on x86-64 only"
)


def checked(
    model: onnx.ModelProto, folder: Path, keep_float: Set[str] = frozenset(), *capabilities: str
) -> Checked:
    path = folder / "model.onnx"
    onnx.save(model, path)
    return check(Task("int8", path, True, keep_float), capabilities or COMPUTE_CAPABILITIES[:1])


def small(keep_float: Set[str] = frozenset()) -> onnx.ModelProto:
    return emit(residual_graph.residual(), residual_scales(), "s8", keep_float)


@pytest.mark.parametrize(
    ("name", "convs", "skips", "in_kernel", "padded", "capabilities"),
    [
        ("resnet18", 20, 5, 3, 1, COMPUTE_CAPABILITIES),
        ("resnet50", 53, 12, 4, 1, ("8.6",)),
        pytest.param("resnet50", 53, 12, 4, 1, ("8.9", "12.0"), marks=pytest.mark.slow),
        # A depthwise convolution reads four channels a group, three of them zeros. This is MobileNetV2 cut
        # short, with each of its kinds of block; the export of all of it takes 10 s.
        ("mobilenet", 16, 2, 0, 6, ("8.6",)),
        pytest.param("mobilenet_v2", 52, 10, 0, 18, COMPUTE_CAPABILITIES, marks=pytest.mark.slow),
    ],
)
def test_our_int8_files_are_built_in_int8(
    name: str,
    convs: int,
    skips: int,
    in_kernel: int,
    padded: int,
    capabilities: tuple[str, ...],
    tmp_path: Path,
) -> None:
    quantize_onnx(exported(name), batches(), tmp_path, "max", 99.99)
    found = check(Task(name, tmp_path / S8_NAME, True, frozenset()), capabilities)
    assert found.lint == []
    assert list(found.engines) == list(capabilities)
    for engine in found.engines.values():
        assert engine.findings == []
        assert (engine.convs, engine.products) == ({"Int8": convs}, {"Int8": 1})
        expected = {"Int8": skips, "in the kernel": in_kernel}
        assert engine.adds == {kind: count for kind, count in expected.items() if count}
        assert (len(engine.reformats), len(engine.padded)) == (1, padded)


def test_int8_is_a_quarter_of_the_weights(tmp_path: Path) -> None:
    """So what the table calls Int8 is stored as such."""
    onnx.save(emit(load("resnet18"), calibrated("resnet18"), "s8"), tmp_path / "s8.onnx")
    sizes = [
        check(Task("", path, None, frozenset()), ["8.6"]).engines["8.6"].weight_bytes
        for path in (tmp_path / "s8.onnx", exported("resnet18"))
    ]
    assert 0.25 < sizes[0] / sizes[1] < 0.26


def test_a_float_file_is_judged_by_its_own_types(tmp_path: Path) -> None:
    path = residual_graph.saved(residual_graph.residual(), tmp_path)
    found = check(Task("fp32", path, None, frozenset()), ["8.6"])
    assert (found.int8, found.ok, found.lint) == (False, True, [])
    assert found.engines["8.6"].convs == {"Float": 6}
    asked = check(Task("fp32", path, True, frozenset()), ["8.6"])
    assert sum("must be Int8" in text for text in asked.engines["8.6"].findings) == 7


def _int32_bias(model: onnx.ModelProto) -> None:
    conv = next(node for node in model.graph.node if node.name == "a2")
    u8 = emit(residual_graph.residual(), residual_scales(), "u8")
    dequantise = next(node for node in u8.graph.node if node.output[0] == "a2.bias_dq")
    model.graph.initializer.extend(i for i in u8.graph.initializer if i.name in dequantise.input)
    nodes = [dequantise, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    conv = next(node for node in model.graph.node if node.name == "a2")
    conv.input[2] = "a2.bias_dq"


def _uint8_128(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        if tensor.name == "r0_zero_point":
            tensor.CopyFrom(numpy_helper.from_array(np.array(128, np.uint8), tensor.name))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_int32_bias, r"refuses .*a2\.bias_DequantizeLinear \(DequantizeLinear\): .*Int32"),
        (_uint8_128, r"refuses .*r0_QuantizeLinear \(QuantizeLinear\): .*[Zz]ero point"),
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


def bundle(folder: Path, model: onnx.ModelProto, keep_float: Set[str] = frozenset()) -> Bundle:
    """fp32 for ONNX Runtime and int8 for TensorRT."""
    files = {"fp32": residual_graph.saved(residual_graph.residual(), folder), "int8": folder / "int8.onnx"}
    onnx.save(model, files["int8"])
    image = save(folder / "image.png", 8, 8)
    kept = {"keep_float": sorted(keep_float)}
    return write_bundle(
        folder / "bundle",
        name="residual",
        input=InputSpec(size=8, resize=8, mean=SPEC.mean, std=SPEC.std, class_names=SPEC.class_names),
        variants=[
            Variant("fp32", "", "fp32", "onnxruntime", 1, {}, {}),
            Variant("int8", "", "int8", "tensorrt", 1, {}, kept),
        ],
        models=files,
        samples=[(image, 0)],
        expected={name: np.zeros((1, 10), np.float32) for name in files},
        versions={},
        commands=[],
    )


def test_a_bundle_is_judged_by_its_own_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = bundle(tmp_path, small({"a2"}), {"a2"}).root
    assert main([str(root), "--json", str(tmp_path / "found.json")]) == 0
    out = capsys.readouterr().out
    assert [line.split()[:4] for line in out.splitlines() if " of 6" in line] == [
        [capability, "5", "of", "6"] for capability in COMPUTE_CAPABILITIES
    ]
    assert "Evidence, not proof" in out
    (found,) = json.loads((tmp_path / "found.json").read_text())
    assert found["engines"]["12.0"]["convs"] == {"Int8": 5, "Float": 1}


def test_a_finding_is_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = bundle(tmp_path, small({"a2"})).root
    assert main([str(root), "--variant", "int8", "--compute-capability", "8.6", "8.9"]) == 1
    assert "  8.6, 8.9: a2 (Conv): multiplies Float and Float, must be Int8" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{root}", "--variant", "fp32"], "no variant fp32 for TensorRT; it has int8"),
        (["{root}", "--keep-float", "a2"], "a bundle says itself"),
        (["{root}", "--compute-capability", "8.7"], "8.7: must be one of 8.6, 8.9, 12.0"),
        (["{file}", "--variant", "int8"], "is one file"),
        (["{file}", "--keep-float", "a9"], "no Conv or Gemm 'a9'"),
        (["{root}/none.onnx"], "is no ONNX file that can be read"),
        (["{image}.onnx"], "is no ONNX file that can be read"),
        (["{root}/none"], "a bundle is a folder"),
    ],
)
def test_a_users_mistake_is_exit_code_2(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = bundle(tmp_path, small()).root
    (tmp_path / "image.png.onnx").write_bytes((tmp_path / "image.png").read_bytes())
    places = {"root": root, "file": tmp_path / "int8.onnx", "image": tmp_path / "image.png"}
    given = [argument.format(**places) for argument in arguments]
    assert main([*given, "--json", str(tmp_path / "found.json")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "found.json").exists()


def test_a_dynamic_size_is_refused(tmp_path: Path) -> None:
    model = small()
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    with pytest.raises(LabError, match="only the batch may be dynamic"):
        checked(model, tmp_path)


def made(folder: Path, model: onnx.ModelProto) -> list[Made]:
    files = bundle(folder, model)
    return [Made(variant, files.path(variant.name), variant.name) for variant in files.variants]


def test_packing_records_what_was_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    fp32, int8 = pack.with_placement(made(tmp_path, small()), lines.append)
    assert "placement" not in fp32.variant.metrics
    assert list(int8.variant.metrics["placement"]["engines"]) == ["8.6"]
    json.dumps(int8.variant.metrics)
    assert lines == [
        "placement: int8: 6 of 6 convolutions, 1 of 1 products, 2 of 2 skips in INT8, 1 reformats for 8.6: "
        "as asked for"
    ]
    monkeypatch.setattr(pack, "is_installed", lambda: False)
    assert "placement" not in pack.with_placement(made(tmp_path, small()), lines.append)[1].variant.metrics
    assert "not installed here" in lines[1]
    assert len(lines) == 2


def test_packing_goes_on_with_what_tensorrt_rtx_refuses(tmp_path: Path) -> None:
    lines: list[str] = []
    model = small()
    _uint8_128(model)
    assert "placement" not in pack.with_placement(made(tmp_path, model), lines.append)[1].variant.metrics
    assert "r0_QuantizeLinear" in lines[0]
