"""One set of scales gives two files with the same integers, close to the float network."""

from __future__ import annotations

import collections
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper

from deploy.errors import LabError
from optimize.calibrate import Scales, calibrate
from optimize.qdq import NumberFormat, emit
from optimize.qdq_lint import count_int8_convs, lint
from optimize.qdq_placement import quantised_tensors
from optimize.quantize import integer_mismatches
from tests import residual_graph
from tests.test_optimize_support import calibrated, images, load

NETWORKS = ("resnet18", "mobilenet")


def emitted(name: str, number_format: NumberFormat, scales: Scales | None = None) -> onnx.ModelProto:
    return emit(load(name), scales or calibrated(name), number_format)


def logits(
    model: onnx.ModelProto, batch: npt.NDArray[Any], optimised: bool, save: Path | None = None
) -> npt.NDArray[Any]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Without VNNI the CPU's 8-bit products saturate unless told to take the exact kernels.
    options.add_session_config_entry("session.x64quantprecision", "1")
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if save:
        options.optimized_model_filepath = str(save)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    result: npt.NDArray[Any] = session.run(["logits"], {"image": batch})[0]
    return result


def without_clamps(model: onnx.ModelProto) -> onnx.ModelProto:
    clips = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Clip"}
    kept = [node for node in model.graph.node if node.op_type != "Clip"]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = clips.get(name, name)
    # integer_mismatches pairs the tensors of two files by name.
    for node in model.graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                names[i] = name.replace("_q_open", "_q")
    return model


@pytest.mark.parametrize("name", NETWORKS)
def test_integers_agree_bit_for_bit_also_beyond_the_calibrated_range(name: str) -> None:
    batch = [images(7, 3), images(8, 3, gain=3.0)]
    s8, u8 = emitted(name, "s8"), emitted(name, "u8")
    assert integer_mismatches(s8, u8, batch) == 0
    # The images do saturate: without the clamp the two part.
    assert integer_mismatches(s8, without_clamps(u8), batch) > 0


def test_relu6_within_the_range_is_clamped_at_six() -> None:
    """With amax well above 6 it is the folded Clip that must stop the integers, not 127."""
    wide = {
        tensor.name: 7.0 / 127 if tensor.non_negative else calibrated("mobilenet").tensors[tensor.name]
        for tensor in quantised_tensors(load("mobilenet"))
    }
    scales = Scales("max", 1, wide)
    u8 = emitted("mobilenet", "u8", scales)
    assert "u8_109" in {i.name for i in u8.graph.initializer}  # 6 / (7 / 127) = 108.9
    assert integer_mismatches(emitted("mobilenet", "s8", scales), u8, [images(8, 3, gain=3.0)]) == 0


def test_clip_below_zero_is_no_relu() -> None:
    """A Clip from -1 keeps its node and gets zero-point 128."""
    model = load("mobilenet")
    lowest = next(node for node in model.graph.node if node.op_type == "Clip").input[1]
    tensor = next(i for i in model.graph.initializer if i.name == lowest)
    tensor.CopyFrom(numpy_helper.from_array(np.array(-1, np.float32), lowest))
    s8, u8 = emit(model, calibrated("mobilenet"), "s8"), emit(model, calibrated("mobilenet"), "u8")
    assert integer_mismatches(s8, u8, [images(8, 2)]) == 0
    assert not any(node.op_type == "Clip" and node.input[0].endswith("_q_open") for node in u8.graph.node)


@pytest.mark.parametrize("name", NETWORKS)
def test_quantised_networks_agree_with_the_float_one(name: str) -> None:
    batch = images(11, 48)
    reference = logits(load(name), batch, optimised=True)
    emulated = logits(emitted(name, "s8"), batch, optimised=False)
    on_cpu = logits(emitted(name, "u8"), batch, optimised=True)
    for actual in (emulated, on_cpu):
        assert (actual.argmax(1) == reference.argmax(1)).mean() >= 0.75
        assert np.linalg.norm(actual - reference) / np.linalg.norm(reference) < 0.3


def test_cpu_form_reaches_the_integer_kernels(tmp_path: Path) -> None:
    path = tmp_path / "optimised.onnx"
    logits(emitted("resnet18", "u8"), images(0, 1), optimised=True, save=path)
    ops = collections.Counter(node.op_type for node in onnx.load(path).graph.node)
    assert (ops["QLinearConv"], ops["QLinearAdd"], ops["QLinearGlobalAveragePool"]) == (20, 8, 1)
    assert (ops["QGemm"], ops["QuantizeLinear"]) == (1, 1)
    assert not {"Conv", "FusedConv", "Relu", "Add", "Gemm", "DequantizeLinear"} & set(ops)


@pytest.mark.parametrize("number_format", ["s8", "u8"])
@pytest.mark.parametrize("batch", [1, 5])
def test_batch_is_dynamic(number_format: NumberFormat, batch: int) -> None:
    assert logits(emitted("resnet18", number_format), images(0, batch), optimised=True).shape == (batch, 10)


@pytest.mark.parametrize(("name", "adds"), [("resnet18", 8), ("mobilenet", 2)])
def test_placement(name: str, adds: int) -> None:
    model = emitted(name, "s8")
    producer = {output: node for node in model.graph.node for output in node.output}
    quantised = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm", "GlobalAveragePool")]
    additions = [node for node in model.graph.node if node.op_type == "Add"]
    assert len(additions) == adds
    for node in [*quantised, *additions]:
        inputs = node.input if node in additions else node.input[:1]
        assert all(producer[i].op_type == "DequantizeLinear" for i in inputs)
    assert producer["logits"].op_type == "Gemm"
    # One pair a tensor, and nobody reads the float tensor past it.
    sources = [node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert len(sources) == len(set(sources))
    for node in model.graph.node:
        assert node.op_type == "QuantizeLinear" or not set(node.input) & set(sources)


def test_zero_points_follow_the_sign() -> None:
    model = emitted("mobilenet", "u8")
    zero_points = {
        i.name.removesuffix("_zero_point"): int(numpy_helper.to_array(i))
        for i in model.graph.initializer
        if i.name.endswith("_zero_point") and not i.dims
    }
    source = load("mobilenet")
    behind_clip = {node.output[0] for node in source.graph.node if node.op_type == "Clip"}
    assert zero_points["image"] == 128
    for name, zero_point in zero_points.items():
        assert (zero_point == 0) == (name in behind_clip or name.startswith("view"))
    assert set(zero_points.values()) == {0, 128}


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_come_back_within_half_a_step(name: str) -> None:
    model, source = emitted(name, "s8"), {i.name: i for i in load(name).graph.initializer}
    arrays = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    weights = [key.removesuffix("_q") for key in arrays if key.endswith("weight_q")]
    assert len(weights) == sum(node.op_type in ("Conv", "Gemm") for node in load(name).graph.node)
    for weight in weights:
        original, integers = numpy_helper.to_array(source[weight]), arrays[f"{weight}_q"]
        scale = arrays[f"{weight}_scale"].reshape(-1, *[1] * (original.ndim - 1))
        assert integers.dtype == np.int8
        assert integers.min() >= -127
        assert (np.abs(integers).reshape(len(integers), -1).max(1) == 127).all()
        assert (np.abs(integers * scale - original) <= scale * 0.5001).all()
        assert weight not in arrays


def test_bias_of_a_dead_channel_survives() -> None:
    """Weights of 1e-20 and a bias of 0.5: counted in steps of their product it would overflow an int32."""
    model = load("resnet18")
    conv = model.graph.node[0]
    parameters = {i.name: i for i in model.graph.initializer if i.name in conv.input}
    for name, value in ((conv.input[1], 1e-20), (conv.input[2], 0.5)):
        array = numpy_helper.to_array(parameters[name]).copy()
        array[3] = value
        parameters[name].CopyFrom(numpy_helper.from_array(array, name))
    forms: tuple[NumberFormat, ...] = ("s8", "u8")
    s8, u8 = (emit(model, calibrated("resnet18"), form) for form in forms)
    arrays = {i.name: numpy_helper.to_array(i) for i in (*s8.graph.initializer, *u8.graph.initializer)}
    bias = conv.input[2]
    assert arrays[bias][3] == pytest.approx(0.5)
    assert arrays[f"{bias}_q"].dtype == np.int32
    dequantised = arrays[f"{bias}_q"].astype(np.float32) * arrays[f"{bias}_scale"]
    assert np.array_equal(dequantised, arrays[bias])


@pytest.mark.parametrize("number_format", ["s8", "u8"])
def test_float_weights_do_not_stay(number_format: NumberFormat) -> None:
    source = load("resnet18")
    before = source.SerializeToString()
    model = emit(source, calibrated("resnet18"), number_format)
    onnx.checker.check_model(model, full_check=True)
    assert model.ByteSize() < 0.27 * len(before)
    assert source.SerializeToString() == before
    floats = [i for i in model.graph.initializer if i.data_type == TensorProto.FLOAT]
    assert all(len(i.dims) <= 1 for i in floats)


def test_foreign_scales_and_formats_are_refused() -> None:
    with pytest.raises(LabError, match="another network"):
        emit(load("resnet18"), calibrated("mobilenet"), "s8")
    with pytest.raises(LabError, match="'s4' must be one of"):
        emit(load("resnet18"), calibrated("resnet18"), "s4")  # type: ignore[arg-type]


def test_shared_weight_is_refused() -> None:
    model = load("resnet18")
    convs = [node for node in model.graph.node if node.op_type == "Conv"]
    convs[2].input[1] = convs[1].input[1]
    with pytest.raises(LabError, match="used twice"):
        emit(model, calibrated("resnet18"), "s8")


def mixed(keep: set[str], number_format: NumberFormat) -> onnx.ModelProto:
    return emit(residual_graph.residual(), residual_scales(), number_format, keep)


@cache
def residual_scales() -> Scales:
    with tempfile.TemporaryDirectory() as folder:
        path = residual_graph.saved(residual_graph.residual(), Path(folder))
        return calibrate(path, [residual_graph.images(0, 16)], "max", 99.99)


def reads(model: onnx.ModelProto, node_name: str) -> list[str]:
    """What a node reads: `dq` for a DequantizeLinear, else the tensor's name."""
    producer = {output: node for node in model.graph.node for output in node.output}
    node = next(node for node in model.graph.node if node.name == node_name)
    dequantised = [i in producer and producer[i].op_type == "DequantizeLinear" for i in node.input]
    return ["dq" if yes else name for yes, name in zip(dequantised, node.input, strict=True)]


SUBSETS = [{name} for name in residual_graph.LAYERS]
SUBSETS += [set(residual_graph.LAYERS) - {name} for name in residual_graph.LAYERS]
SUBSETS += [{"a1", "a2"}, {"b2", "skip"}, {"a2", "b1", "head"}, {"stem", "a1"}]


@pytest.mark.parametrize("keep", SUBSETS, ids=lambda keep: "-".join(sorted(keep)))
def test_mixed_networks_agree_in_every_integer(keep: set[str]) -> None:
    s8, u8 = mixed(keep, "s8"), mixed(keep, "u8")
    for model in (s8, u8):
        onnx.checker.check_model(model, full_check=True)
    assert integer_mismatches(s8, u8, [3 * residual_graph.images(5, 4)]) == 0
    assert lint(s8, keep) == []
    assert count_int8_convs(s8) == count_int8_convs(u8) == (6 - len(keep - {"head"}), 6)
    sources = {i.name: i for i in residual_graph.residual().graph.initializer}
    stored = {i.name: i for i in s8.graph.initializer}
    for name in residual_graph.LAYERS:
        assert (stored.get(f"{name}.weight") == sources[f"{name}.weight"]) == (name in keep)
        assert (stored.get(f"{name}.bias") == sources[f"{name}.bias"]) or name not in keep
        assert reads(s8, name)[1] == (f"{name}.weight" if name in keep else "dq")
        assert reads(s8, name)[0] == "dq" or name in keep


def test_all_in_float_is_the_float_network() -> None:
    model = mixed(set(residual_graph.LAYERS), "u8")
    assert model.graph.node == residual_graph.residual().graph.node
    assert integer_mismatches(model, model, [residual_graph.images(0, 1)]) == 0


def test_what_float_layers_read() -> None:
    """Each line is a sentence of `optimize/qdq_placement.py`."""
    # Alone in float: its own input has no other reader, and the sum is in its kernel; the skip is rounded.
    model = mixed({"a2"}, "s8")
    assert reads(model, "a2")[0] == "r1"
    assert reads(model, "add_a") == ["a2_out", "dq"]
    # What an integer layer makes for integer readers too is read rounded; what an Add makes, before its Q.
    assert reads(mixed({"a1"}, "s8"), "a1")[0] == "dq"
    assert reads(mixed({"b1"}, "s8"), "b1")[0] == "r2"
    assert reads(mixed({"stem", "a1"}, "s8"), "a1")[0] == "r0"
    assert reads(mixed({"stem"}, "s8"), "stem")[0] == "image"
    # A float sum still has the other branch in integers, unless that is in float too.
    assert reads(mixed({"b2"}, "s8"), "add_b") == ["b2_out", "dq"]
    assert reads(mixed({"b2", "skip"}, "s8"), "add_b") == ["b2_out", "skip_out"]
    assert reads(mixed({"b2", "skip"}, "s8"), "pool") == ["r4"]
    assert reads(mixed({"b1"}, "s8"), "pool") == ["dq"]


def test_the_layers_around_a_float_one_keep_their_integer_kernels(tmp_path: Path) -> None:
    path = tmp_path / "optimised.onnx"
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path)
    onnxruntime.InferenceSession(mixed({"b1"}, "u8").SerializeToString(), options)
    ops = collections.Counter(node.op_type for node in onnx.load(path).graph.node)
    # r2, which b1 reads in float, costs the addition before it its kernel and no convolution.
    assert (ops["QLinearConv"], ops["QLinearAdd"]) == (5, 1)


def test_unknown_names_in_keep_float_are_refused() -> None:
    for name in ("a9", "add_a"):
        with pytest.raises(LabError, match=f"no Conv or Gemm '{name}'; its 7 are 'stem'|stem, a1"):
            mixed({"a1", name}, "s8")


def test_lint_finds_a_layer_that_should_be_in_float() -> None:
    findings = lint(mixed({"a2"}, "s8"), {"a2", "b1"})
    assert any("b1 (Conv): stays in float" in text for text in findings)
    assert any("a2 (Conv): input 'r1' is float" in text for text in lint(mixed({"a2"}, "s8")))


def test_mobilenet_in_a_mixture() -> None:
    source = load("mobilenet")
    convs = [node.name for node in source.graph.node if node.op_type == "Conv"]
    keep = {convs[1], convs[5], convs[6], convs[-1]}
    s8, u8 = (emit(source, calibrated("mobilenet"), form, keep) for form in ("s8", "u8"))
    assert integer_mismatches(s8, u8, [images(8, 2, gain=3.0)]) == 0
    assert lint(s8, keep) == []
    assert count_int8_convs(s8) == (12, 16)


def test_the_pool_behind_the_stem_stands_between_roundings_in_the_s8_form() -> None:
    for form, before in (("s8", "DequantizeLinear"), ("u8", "Conv")):
        model = emitted("resnet18", form)  # type: ignore[arg-type]  # both are number formats
        producer = {output: node for node in model.graph.node for output in node.output}
        (pool,) = (node for node in model.graph.node if node.op_type == "MaxPool")
        assert producer[pool.input[0]].op_type == before
        (behind,) = (node for node in model.graph.node if pool.output[0] in node.input)
        assert behind.op_type == "QuantizeLinear"
