"""What goes to DLA under JetPack 6: the same network and the same scales, in files that trtexec takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import helper
from onnxruntime import InferenceSession

from deploy.errors import LabError
from deploy.target_file import read_jetpacks
from optimize.calibrate import Scales, calibrate
from optimize.dla import TENSORRT, format_cache, read_cache, to_dla, with_neighbours, write_dla
from optimize.graph_index import GraphIndex
from optimize.qdq_placement import quantised_tensors
from tests.residual_graph import FRAGILE, images, residual, saved
from tests.tiny_onnx import chain


@pytest.fixture(scope="module")
def network() -> onnx.ModelProto:
    return residual()


@pytest.fixture(scope="module")
def scales(network: onnx.ModelProto, tmp_path_factory: pytest.TempPathFactory) -> Scales:
    return calibrate(saved(network, tmp_path_factory.mktemp("dla")), [images(0, 16)], "max", 99.9)


def logits(model: onnx.ModelProto, batch: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    found: npt.NDArray[np.float32] = InferenceSession(model.SerializeToString()).run(None, {"image": batch})[
        0
    ]
    return found


def test_the_network_computes_the_same_in_dlas_own_layers(network: onnx.ModelProto, scales: Scales) -> None:
    made = to_dla(network, scales)
    onnx.checker.check_model(made.model, full_check=True)
    for image in images(1, 4):
        np.testing.assert_allclose(logits(made.model, image[None]), logits(network, image[None]), atol=1e-5)
    shape = made.model.graph.input[0].type.tensor_type.shape
    assert [d.dim_value for d in shape.dim] == [1, 3, 8, 8]
    ops = [node.op_type for node in made.model.graph.node]
    assert not {"QuantizeLinear", "DequantizeLinear", "GlobalAveragePool", "Gemm"} & set(ops)
    assert ops[-3:] == ["AveragePool", "Conv", "Flatten"]


@pytest.mark.parametrize("steps", [("dense", "relu", "head"), ("dense", "pool", "pool", "head")])
def test_the_end_of_a_network_computes_the_same(steps: tuple[str, ...]) -> None:
    """A Gemm of weights the other way round; and a pool of 32 x 32, which is no window of DLA's."""
    model = chain(*steps)
    scales = Scales("max", 1, {tensor.name: 0.5 for tensor in quantised_tensors(model)})
    made = to_dla(model, scales)
    image = np.random.default_rng(0).normal(size=(1, 3, 32, 32)).astype(np.float32)
    np.testing.assert_allclose(logits(made.model, image), logits(model, image), atol=1e-5)
    wanted = ["Flatten"] if "pool" in steps else ["GlobalAveragePool", "Flatten"]
    assert [f.op for f in made.report.fallbacks] == wanted


def test_the_cache_holds_every_scale_bit_for_bit(
    network: onnx.ModelProto, scales: Scales, tmp_path: Path
) -> None:
    write_dla(network, scales, frozenset(), tmp_path)
    text = (tmp_path / "dla.cache").read_text()
    version, found = read_cache(text)
    assert version == 100300
    assert text.splitlines()[0] == "TRT-100300-EntropyCalibration2"
    tensors = {value for node in onnx.load(tmp_path / "dla.onnx").graph.node for value in node.input}
    # The Gemm's input is gone, and with it its scale is that of the pool before it.
    kept = set(scales.tensors) - {"flat"}
    assert kept <= tensors
    assert {name: found[name] for name in kept} == {name: scales.tensors[name] for name in kept}
    assert found["mean"] == scales.tensors["flat"]
    # Neighbours through an op that keeps the range; a2's output has a scale of its own.
    assert found["stem_out"] == found["r0"]
    assert found["sum_a"] == found["r2"]
    assert "logits" not in found


def test_bits_survive_the_text() -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(1, 0x7F7FFFFF, 500, dtype=np.uint32)
    values = {f"t {i}: x": float(v) for i, v in enumerate(bits.view(np.float32))}
    assert read_cache(format_cache(values, "10.14.1")) == (101401, values)
    assert format_cache({"input": float(np.uint32(0x3CAA54FC).view(np.float32))}, "8.4.0") == (
        "TRT-8400-EntropyCalibration2\ninput: 3caa54fc\n"
    )


@pytest.mark.parametrize(
    ("text", "line"),
    [("", "''"), ("TRT-1-MinMax\n", "TRT-1-MinMax"), ("TRT-1-EntropyCalibration2\na 3c\n", "a 3c")],
)
def test_a_cache_that_is_none(text: str, line: str) -> None:
    with pytest.raises(LabError, match=line):
        read_cache(text)


def test_what_a_cache_cannot_hold() -> None:
    for values in ({"a\nb": 1.0}, {"": 1.0}, {"a": 0.1}, {"a": 0.0}):
        with pytest.raises(LabError, match="cannot be written"):
            format_cache(values, "10.3.0")


def test_layers_are_int8_but_those_kept_in_float(network: onnx.ModelProto, scales: Scales) -> None:
    every = to_dla(network, scales).precisions
    assert {name for name, p in every.items() if p == "fp16"} == {"head", "head_flatten"}
    mixed = to_dla(network, scales, {FRAGILE})
    # The addition that TensorRT does in the float convolution's kernel is float as well.
    assert {name for name, p in mixed.precisions.items() if p == "fp16"} == {
        FRAGILE, "add_a", "head", "head_flatten",
    }  # fmt: skip


def test_a_scale_goes_backwards_only_where_nobody_else_reads() -> None:
    """In front of a ReLU there are values below zero, which a second reader may need."""
    scales = {"t1": 0.5}
    alone = GraphIndex(chain("dense", "relu", "dense").graph)
    extra = (helper.make_node("Neg", ["t0"], ["other"]),)
    read_twice = GraphIndex(chain("dense", "relu", "dense", extra=extra).graph)
    assert with_neighbours(scales, alone) == {"t0": 0.5, "t1": 0.5}
    assert with_neighbours(scales, read_twice) == scales


def test_trtexec_can_split_the_list(tmp_path: Path) -> None:
    model = chain("dense", "relu", "dense")
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("logits", 1, ["batch", 8, 32, 32]))
    model.graph.node[0].name = model.graph.node[2].name = "a:b,*"
    scales = Scales("max", 1, {"image": 0.25, "t1": 0.5})
    write_dla(model, scales, frozenset(), tmp_path)
    text = (tmp_path / "dla.layers.txt").read_text()
    assert text == "a_b__:int8,t1:int8,a_b___2:fp16\n"
    names = [node.name for node in onnx.load(tmp_path / "dla.onnx").graph.node]
    assert [item.split(":")[0] for item in text.strip().split(",")] == names


def test_scales_of_another_network_write_nothing(network: onnx.ModelProto, tmp_path: Path) -> None:
    with pytest.raises(LabError, match="the scales lack"):
        write_dla(network, Scales("max", 1, {"image": 0.25}), frozenset(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_caches_version_is_that_of_the_jetpacks_that_read_it() -> None:
    readers = {j.tensorrt for j in read_jetpacks().values() if j.dla == "calibration-cache"}
    assert {f"{version}.0" for version in readers} == {TENSORRT}
