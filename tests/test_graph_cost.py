"""An ONNX file as fused layers: which nodes one kernel does, what it computes, and which bytes it moves."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from deploy.errors import LabError
from deploy.graph_cost import Layer, read_layers
from optimize.calibrate import Scales
from optimize.precision import to_fp16
from optimize.qdq import NumberFormat, emit
from optimize.qdq_placement import quantised_tensors
from scripts.published_latency import at_batch
from tests.residual_graph import residual, saved
from tests.tiny_onnx import chain


@pytest.fixture(scope="module")
def network() -> onnx.ModelProto:
    return residual()


def quantised(model: onnx.ModelProto, form: NumberFormat) -> onnx.ModelProto:
    return emit(model, Scales("none", 1, {t.name: 0.1 for t in quantised_tensors(model)}), form)


def layers(model: onnx.ModelProto, folder: Path, batch: int = 1) -> list[Layer]:
    return read_layers(saved(model, folder), batch)


def test_a_layer_computed_by_hand(network: onnx.ModelProto, tmp_path: Path) -> None:
    """b1: 16 channels to 24, 3 x 3, on 8 x 8 pixels; it reads r2 and writes r3."""
    (found,) = [one for one in layers(network, tmp_path, batch=2) if one.name == "b1"]
    assert found == Layer(
        name="b1",
        kind="conv",
        precision="fp32",
        rows=2 * 64,
        columns=24,
        depth=16 * 9,
        groups=1,
        num_parameters=24 * 16 * 9 + 24,
        weight_bytes=4 * (24 * 16 * 9 + 24),
        read_bytes=4 * 2 * 16 * 64,
        write_bytes=4 * 2 * 24 * 64,
        output_shape=(2, 24, 8, 8),
    )
    assert found.macs == 2 * 64 * 24 * 144


def test_the_residual_add_is_in_the_last_convolution_before_it(
    network: onnx.ModelProto, tmp_path: Path
) -> None:
    found = {one.name: one for one in layers(network, tmp_path)}
    assert list(found) == ["stem", "a1", "a2", "b1", "b2", "skip", "pool", "head"]
    assert found["a2"].read_bytes == 4 * 64 * (16 + 16)  # its input, and what is added
    assert found["skip"].read_bytes == 4 * 64 * (16 + 24)
    assert found["b2"].write_bytes == 4 * 64 * 24


def test_quantised_tensors_move_as_bytes(network: onnx.ModelProto, tmp_path: Path) -> None:
    plain = {one.name: one for one in layers(network, tmp_path)}
    found = {one.name: one for one in layers(quantised(network, "s8"), tmp_path)}
    assert set(found) == {*plain, "image_QuantizeLinear"}
    for name in ("stem", "a1", "a2", "b1", "b2", "skip", "head"):
        assert found[name].precision == "int8"
        assert found[name].macs == plain[name].macs
        assert found[name].weight_bytes * 4 == plain[name].weight_bytes
    for name in ("a1", "a2", "b1", "b2", "skip"):
        assert found[name].read_bytes * 4 == plain[name].read_bytes
        assert found[name].write_bytes * 4 == plain[name].write_bytes
    assert found["head"].write_bytes == 4 * 10  # logits stay float


def test_onnx_runtime_adds_and_clips_integers_in_kernels_of_their_own(
    network: onnx.ModelProto, tmp_path: Path
) -> None:
    found = [one.kind for one in layers(quantised(network, "u8"), tmp_path)]
    assert found.count("add") == 2
    assert found.count("clip") == 6  # r0 to r4, and their mean
    assert found.count("conv") == 6


def test_a_pool_behind_a_convolution_takes_bytes_where_its_output_is_rounded(tmp_path: Path) -> None:
    network = chain("dense", "relu", "pool", "dense", "relu", "head")
    pool = layers(quantised(network, "s8"), tmp_path)[2]
    assert (pool.kind, pool.output_shape) == ("pool", (1, 8, 16, 16))
    assert (pool.read_bytes, pool.write_bytes) == (8 * 32 * 32, 8 * 16 * 16)


def test_a_depthwise_convolution_is_one_product_a_channel(tmp_path: Path) -> None:
    found = layers(chain("dense", "relu", "depthwise", "relu", "head"), tmp_path)
    assert [one.depthwise for one in found[:2]] == [False, True]
    assert (found[1].rows, found[1].columns, found[1].depth, found[1].groups) == (1024, 1, 9, 8)


def test_half_precision_halves_the_bytes(network: onnx.ModelProto, tmp_path: Path) -> None:
    plain = {one.name: one for one in layers(network, tmp_path)}
    to_fp16(saved(network, tmp_path), tmp_path / "fp16.onnx")
    found = {one.name: one for one in read_layers(tmp_path / "fp16.onnx", 1)}
    assert found["a2"].precision == "fp16"
    assert found["a2"].read_bytes * 2 == plain["a2"].read_bytes


def test_all_but_the_weights_grow_with_the_batch(network: onnx.ModelProto, tmp_path: Path) -> None:
    model = quantised(network, "s8")
    assert at_batch(layers(model, tmp_path), 8) == layers(model, tmp_path, batch=8)


def test_a_tensor_that_others_read_too_keeps_the_add_apart(tmp_path: Path) -> None:
    """image -> Conv -> y; y + image, and y itself is an output."""
    weight = helper.make_tensor("w", TensorProto.FLOAT, [3, 3, 1, 1], [0.5] * 9)
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["y"], "conv"),
        helper.make_node("Add", ["y", "image"], ["sum"], "add"),
    ]
    value = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["b", 3, 4, 4]) for n in ("image", "y", "sum")
    ]
    graph = helper.make_graph(nodes, "g", value[:1], value[1:], [weight])
    found = layers(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), tmp_path)
    assert [(one.name, one.kind) for one in found] == [("conv", "conv"), ("add", "add")]
    assert (found[1].read_bytes, found[1].write_bytes) == (2 * 4 * 48, 4 * 48)


def test_mistakes_are_told(network: onnx.ModelProto, tmp_path: Path) -> None:
    path = saved(network, tmp_path)
    with pytest.raises(LabError, match="batch 0: must be at least 1"):
        read_layers(path, 0)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(path.read_bytes()[:200])
    with pytest.raises(LabError, match=r"broken\.onnx: cannot be read as ONNX"):
        read_layers(broken, 1)
    dynamic = onnx.ModelProto()
    dynamic.CopyFrom(network)
    dynamic.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    with pytest.raises(LabError, match="does not follow from the batch"):
        layers(dynamic, tmp_path)
