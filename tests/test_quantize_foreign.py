"""Any network to its files: what stays in float is measured, both INT8 forms hold the same integers, TensorRT
takes them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from deploy.errors import LabError
from optimize.calibrate import Scales, calibrate_feeds
from optimize.foreign import Foreign, fix_dims, read_onnx
from optimize.foreign_sensitivity import Feed, answers, closeness
from optimize.qdq import emit
from optimize.qdq_lint import lint
from optimize.qdq_placement import Placement
from optimize.quantize import feed_mismatches
from optimize.quantize_foreign import ForeignFiles, quantize_foreign
from optimize.sensitivity import weighted_nodes
from tests.foreign_graphs import FRAGILE, TOKENS, Builder, detector, encoder, pictures, texts

KINDS: dict[str, tuple[Callable[[], onnx.ModelProto], Callable[[int, int], list[Feed]]]] = {
    "detector": (detector, pictures),
    "encoder": (encoder, texts),
}


def read(model: onnx.ModelProto, folder: Path) -> Foreign:
    onnx.save(model, folder / "theirs.onnx")
    return read_onnx(folder / "theirs.onnx")


def quantised(kind: str, folder: Path, **more: Any) -> ForeignFiles:
    make, feeds = KINDS[kind]
    settings: dict[str, Any] = {
        "method": "max", "percentile": 99.99, "precisions": ["int8"], "min_snr_db": None,
    }  # fmt: skip
    return quantize_foreign(
        read(make(), folder), feeds(0, 16), folder / "out", checks=feeds(1, 8), **(settings | more)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_all_layers_in_int8(kind: str, tmp_path: Path) -> None:
    files = quantised(kind, tmp_path)
    names = ["fp32.onnx", "int8-cpu.onnx", "int8.onnx", "scales.json"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert files.int8 is not None
    assert files.int8_cpu is not None
    assert files.fp16 is None
    s8, u8, fp32 = (onnx.load(path) for path in (files.int8, files.int8_cpu, files.fp32))
    assert lint(s8) == []
    feeds = KINDS[kind][1](2, 4)
    assert feed_mismatches(s8, u8, feeds) == 0
    record = files.record["int8"]
    assert json.loads(json.dumps(files.record)) == files.record
    assert record["num_layers"] == record["num_int8_layers"] == len(weighted_nodes(fp32))
    assert record["keep_float"] == []
    outputs = [output.name for output in fp32.graph.output]
    assert [one["output"] for one in record["outputs"]] == outputs
    measured = closeness(
        outputs, answers(u8, KINDS[kind][1](1, 8), 1), answers(fp32, KINDS[kind][1](1, 8), 1)
    )
    assert [one["snr_db"] for one in record["outputs"]] == [one.snr_db for one in measured]
    assert not any(node.domain for node in u8.graph.node)


def test_the_box_head_stays_in_float_because_it_was_measured(tmp_path: Path) -> None:
    files = quantised("detector", tmp_path, min_snr_db=30.0)
    record = files.record["int8"]
    assert record["keep_float"] == [FRAGILE]
    assert record["int8_snr_db"] < 30.0 <= min(one["snr_db"] for one in record["outputs"])
    first, second = record["layers"][:2]
    assert first["layer"] == FRAGILE
    assert first["snr_db"] < second["snr_db"] - 6
    assert files.int8 is not None
    network = onnx.load(files.int8)
    assert lint(network, {FRAGILE}) == []
    node = next(node for node in network.graph.node if node.name == FRAGILE)
    assert list(node.input[1:]) == ["box.1.weight", "box.1.bias"]


def test_a_share_of_rows_may_be_the_gate(tmp_path: Path) -> None:
    loose = quantised("encoder", tmp_path, min_top1=0.5).record["int8"]
    assert loose["keep_float"] == []
    strict = quantised("encoder", tmp_path, min_snr_db=45.0, min_top1=0.9).record["int8"]
    assert strict["keep_float"]
    assert min(one["top1"] for one in strict["outputs"]) >= 0.9
    assert min(one["snr_db"] for one in strict["outputs"]) >= 45.0


def test_scores_count_beside_boxes() -> None:
    """One output of 4 rows of pixels and 3 of shares, as a YOLO has; the noise is on the shares alone."""
    rng = np.random.default_rng(0)
    boxes, scores = 200 * rng.random((1, 4, 50)), 0.05 * rng.random((1, 3, 50))
    noisy = scores * (1 + 0.1 * rng.choice([-1, 1], scores.shape))
    expected, actual = (np.concatenate([boxes, part], 1) for part in (scores, noisy))
    assert closeness(["out"], [[actual]], [[expected]])[0].snr_db == pytest.approx(20)
    assert closeness(["out"], [[expected]], [[expected]])[0].snr_db == 300
    assert closeness(["out"], [[actual[:, :3]]], [[expected]])[0].snr_db == -300


def test_no_time_tries_no_layer_and_still_meets_the_gate(tmp_path: Path) -> None:
    record = quantised("detector", tmp_path, min_snr_db=30.0, seconds=0.0).record["int8"]
    assert {loss["snr_db"] for loss in record["layers"]} == {None}
    assert min(one["snr_db"] for one in record["outputs"]) >= 30.0


def test_a_gate_that_nothing_meets_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"min_snr_db=299.*more samples"):
        quantised("encoder", tmp_path, min_snr_db=299.0)
    assert not (tmp_path / "out").exists()


def test_placement_of_a_detector(tmp_path: Path) -> None:
    foreign = read(detector(), tmp_path)
    scales = calibrate_feeds(foreign.model, pictures(0, 4), "max", 99.99)
    made = {name: node.name for node in foreign.model.graph.node for name in node.output}
    joined = [
        scales.tensors[name] for name, node in made.items() if node in ("split", "skip", "pool", "join")
    ]
    assert len(set(joined)) == 1
    # Both of a SiLU, and of what weighs the channels; not what the heads end in.
    quantised_by = {made[tensor.name] for tensor in Placement(foreign.model).tensors if tensor.name in made}
    assert {"stem", "stem.gate", "stem.silu", "excite", "weigh", "up", "neck", "box.relu"} <= quantised_by
    assert not {"bound", "exp", "last"} & quantised_by


def test_only_layers_of_an_encoder_read_integers(tmp_path: Path) -> None:
    files = quantised("encoder", tmp_path)
    assert files.int8 is not None
    network = onnx.load(files.int8)
    makers = {name: node.op_type for node in network.graph.node for name in node.output}
    for node in network.graph.node:
        read_from = {makers.get(name) for name in node.input}
        if node.name in ("products", "mix", "skip.1", "skip.2", "attention", "norm.1"):
            assert "DequantizeLinear" not in read_from, node.name
        elif node.name in ("query", "up", "head"):
            assert read_from - {None} == {"DequantizeLinear"}
    axes = {
        n.input[0]: n.attribute[0].i for n in network.graph.node if n.attribute and "weight_q" in n.input[0]
    }
    assert axes == {f"{name}.weight_q": 1 for name in ("query", "key", "value", "out", "up", "down")} | {
        "head.weight_q": 0
    }


@pytest.mark.parametrize("kind", KINDS)
def test_onnx_runtime_has_integer_kernels_for_it(kind: str, tmp_path: Path) -> None:
    import onnxruntime

    files = quantised(kind, tmp_path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(str(files.int8_cpu), options, providers=["CPUExecutionProvider"])
    ops = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    if kind == "detector":
        assert (ops["QLinearConv"], ops["Conv"] + ops["FusedConv"]) == (8, 0)
        assert ops["QLinearMul"] == 5
        assert ops["QLinearConcat"] == 2
    else:
        assert ops["MatMulIntegerToFloat"] == 6
        assert ops["QGemm"] == 1


def test_half_precision_keeps_what_overflows(tmp_path: Path) -> None:
    model = detector()
    weight = next(t for t in model.graph.initializer if t.name == "down.weight")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1e5), weight.name))
    shrink = helper.make_node("Div", ["down_conv", "shrink"], ["down_out"], "shrink")
    position = next(i for i, node in enumerate(model.graph.node) if node.name == "down")
    model.graph.node[position].output[0] = "down_conv"
    model.graph.node.insert(position + 1, shrink)
    model.graph.initializer.append(numpy_helper.from_array(np.float32(1e5), "shrink"))
    foreign = read(model, tmp_path)
    files = quantize_foreign(
        foreign, pictures(0, 4), tmp_path / "out", method="max", percentile=100, precisions=["fp16"],
        min_snr_db=None,
    )  # fmt: skip
    record = files.record["fp16"]
    assert set(record["keep_float"]) == {"down", "shrink"}
    assert record["overflows"]["down"] > 100
    assert min(one["snr_db"] for one in record["outputs"]) > 50
    assert files.fp16 is not None
    half = onnx.load(files.fp16)
    kinds = Counter(tensor.data_type for tensor in half.graph.initializer)
    assert kinds[onnx.TensorProto.FLOAT16] > kinds[onnx.TensorProto.FLOAT]
    ports = [*half.graph.input, *half.graph.output]
    assert {t.type.tensor_type.elem_type for t in ports} == {onnx.TensorProto.FLOAT}


def test_samples_fix_the_free_sides(tmp_path: Path) -> None:
    foreign = read(encoder(), tmp_path)
    assert [spec.shape for spec in foreign.inputs] == [(None, None), (None, None)]
    fixed = fix_dims(foreign, texts(0, 2))
    assert [spec.shape for spec in fixed.inputs] == [(None, TOKENS)] * 2
    assert [spec.shape for spec in fixed.outputs] == [(None, TOKENS, 16), (None, 5)]
    assert fixed.changes[-1].startswith("free sides fixed: ids int64 N x 6")
    assert fix_dims(fixed, texts(0, 2)) is fixed


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda feed: feed.pop("mask"), "sample 1: feed has"),
        (lambda feed: feed.update(ids=feed["ids"].astype(np.int32)), "'ids' is int32 1 x 6|must be int64"),
        (lambda feed: feed.update(ids=feed["ids"][:, :4]), "sample 1: input 'ids' is int64"),
        (lambda feed: feed.update({k: np.repeat(v, 2, 0) for k, v in feed.items()}), "batch above 1"),
    ],
)
def test_samples_that_do_not_fit(damage: Callable[[Feed], Any], text: str, tmp_path: Path) -> None:
    feeds = texts(0, 3)
    damage(feeds[1])
    with pytest.raises(LabError, match=text):
        fix_dims(read(encoder(), tmp_path), feeds)
    with pytest.raises(LabError, match="0 samples"):
        fix_dims(read(encoder(), tmp_path), [])


def test_values_that_the_network_cannot_take(tmp_path: Path) -> None:
    feeds = texts(0, 2)
    for feed in feeds:
        feed["ids"] += 1000
    with pytest.raises(LabError, match=r"fails on a sample .*vocabulary"):
        quantize_foreign(
            read(encoder(), tmp_path), feeds, tmp_path / "out", method="max", percentile=100,
            precisions=["int8"], min_snr_db=None,
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_one_bad_sample_of_many_is_named(tmp_path: Path) -> None:
    feeds = texts(0, 4)
    feeds[2]["ids"] += 1000
    with pytest.raises(LabError, match="the network fails on image 2 "):
        quantize_foreign(
            read(encoder(), tmp_path), feeds, tmp_path / "out", method="max", percentile=100,
            precisions=["int8"], min_snr_db=None, checks=texts(1, 2),
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_precisions_and_networks_without_layers(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="'int4' must be one of int8, fp16"):
        quantised("encoder", tmp_path, precisions=["int4"])
    builder = Builder()
    builder.node("Relu", ["image"], "only", ["out"])
    model = builder.model({"image": (1, ["batch", 3, 4, 4])}, {"out": ["batch", 3, 4, 4]})
    with pytest.raises(LabError, match="no Conv, Gemm or MatMul"):
        quantize_foreign(
            read(model, tmp_path), pictures(0, 1, size=4), tmp_path / "out", method="max", percentile=100,
            precisions=["int8"], min_snr_db=None,
        )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_tensorrt_builds_it(kind: str, tmp_path: Path) -> None:
    """In a strongly typed network, for a GPU of compute capability 8.6, with none at hand."""
    trt = pytest.importorskip("tensorrt_rtx_bindings")
    files = quantised(kind, tmp_path)
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert files.int8 is not None
    parsed = parser.parse(files.int8.read_bytes())
    assert parsed, [parser.get_error(i).desc() for i in range(parser.num_errors)]
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    profile = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        shape = (1, *tuple(tensor.shape)[1:])
        profile.set_shape(tensor.name, shape, shape, shape)
    config.add_optimization_profile(profile)
    assert builder.build_serialized_network(network, config) is not None


def test_scales_of_another_network_are_refused(tmp_path: Path) -> None:
    foreign = read(encoder(), tmp_path)
    with pytest.raises(LabError, match="belong to another network"):
        emit(foreign.model, Scales("max", 1, {}), "s8")
