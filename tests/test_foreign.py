"""A file of someone else is read in full or refused with what, where and a remedy."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploy.errors import LabError
from deploy.runner import TensorSpec
from optimize.fidelity import plain_session
from optimize.foreign import read_onnx
from tests.foreign_graphs import SIZE, Builder, detector, encoder, pictures, texts


def small(opset: int = 20, kind: int = TensorProto.FLOAT) -> onnx.ModelProto:
    b = Builder()
    name = b.conv("conv", "image", 3, 4)
    b.node("Relu", [name], "relu", ["out"])
    sides = ["batch", 3, SIZE, SIZE]
    return b.model({"image": (kind, sides)}, {"out": ["batch", 4, SIZE, SIZE]}, opset)


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "theirs.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("kind", ["detector", "encoder"])
def test_it_computes_what_the_file_does(kind: str, tmp_path: Path) -> None:
    model, feeds = (detector(), pictures(0, 1)) if kind == "detector" else (encoder(), texts(0, 1))
    foreign = read_onnx(saved(model, tmp_path))
    assert foreign.model.opset_import[0].version == 20
    for ours, theirs in zip(
        *(plain_session(m).run(None, feeds[0]) for m in (foreign.model, model)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    names = [node.name for node in foreign.model.graph.node]
    assert len(set(names)) == len(names)


def test_inputs_and_outputs(tmp_path: Path) -> None:
    foreign = read_onnx(saved(encoder(), tmp_path))
    assert foreign.inputs == (
        TensorSpec("ids", "int64", (None, None)),
        TensorSpec("mask", "int64", (None, None)),
    )
    assert foreign.outputs == (
        TensorSpec("hidden", "float32", (None, None, 16)),
        TensorSpec("logits", "float32", (None, 5)),
    )


@pytest.mark.parametrize("opset", [8, 11, 17])
def test_older_opsets_are_converted_and_batchnorm_is_folded(opset: int, tmp_path: Path) -> None:
    b = Builder()
    norm = [b.constant(f"norm.{k}", np.full(4, v)) for k, v in zip("gbmv", (1.5, 0.5, 0.1, 2.0), strict=True)]
    b.node("BatchNormalization", [b.conv("conv", "image", 3, 4), *norm], "norm", ["out"])
    sides = ["batch", 3, SIZE, SIZE]
    model = b.model({"image": (1, sides)}, {"out": ["batch", 4, SIZE, SIZE]}, opset)
    foreign = read_onnx(saved(model, tmp_path))
    assert [node.op_type for node in foreign.model.graph.node] == ["Conv"]
    assert foreign.changes == (f"opset {opset} to 20", "folded or joined: 1 BatchNormalization")
    feed = pictures(0, 1)[0]
    expected, actual = (plain_session(m).run(None, feed)[0] for m in (model, foreign.model))
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_half_precision_becomes_float32(tmp_path: Path) -> None:
    model = small(kind=TensorProto.FLOAT16)
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    for tensor in model.graph.initializer:
        half = numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(half, tensor.name))
    foreign = read_onnx(saved(model, tmp_path))
    assert (foreign.inputs[0].dtype, foreign.outputs[0].dtype) == ("float32", "float32")
    assert foreign.changes == ("4 half-precision tensors to float32, inputs and outputs among them",)


def test_names_that_quantisation_makes_itself_are_moved_out_of_its_way(tmp_path: Path) -> None:
    model = small()
    for name in (model.graph.node[0].input[1], "conv_out"):
        for node in model.graph.node:
            for names in (node.input, node.output):
                for i, found in enumerate(names):
                    names[i] = "image_scale" if found == name == "conv.weight" else names[i]
    model.graph.initializer[0].name = "image_scale"
    foreign = read_onnx(saved(model, tmp_path))
    assert "image_scale" not in {tensor.name for tensor in foreign.model.graph.initializer}


def test_each_layer_has_weights_of_its_own(tmp_path: Path) -> None:
    b = Builder()
    first = b.conv("first", "image", 3, 3)
    b.node("Conv", [first, "first.weight", "first.bias"], "second", ["out"], pads=[1, 1, 1, 1])
    sides = ["batch", 3, SIZE, SIZE]
    foreign = read_onnx(saved(b.model({"image": (1, sides)}, {"out": sides}), tmp_path))
    one, two = foreign.model.graph.node
    assert not set(one.input[1:]) & set(two.input[1:])


def _external(model: onnx.ModelProto, location: str, length: int = 0) -> onnx.ModelProto:
    tensor = model.graph.initializer[0]
    data, tensor.raw_data = tensor.raw_data, b""
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("length", str(length or len(data)))):
        tensor.external_data.add(key=key, value=value)
    return model


def test_external_data_beside_the_file_is_read(tmp_path: Path) -> None:
    model = small()
    data = model.graph.initializer[0].raw_data
    (tmp_path / "weights.bin").write_bytes(data)
    foreign = read_onnx(saved(_external(model, "weights.bin"), tmp_path))
    feed = pictures(0, 1)[0]
    expected, actual = (plain_session(m).run(None, feed)[0] for m in (small(), foreign.model))
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("location", "text"),
    [
        ("gone.bin", "'gone.bin' is missing; copy it beside the model"),
        ("../outside.bin", "'../outside.bin' is not a path inside the model's folder"),
        ("/etc/hostname", "'/etc/hostname' is not a path inside the model's folder"),
        ("C:\\weights.bin", "is not a path inside the model's folder"),
        ("link.bin", "'link.bin' leads out of the model's folder by a link"),
        ("short.bin", "'short.bin' has 3 bytes, 432 are needed"),
    ],
)
def test_external_data_elsewhere_is_refused(location: str, text: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "outside.bin").write_bytes(b"\0" * 1000)
    (folder / "short.bin").write_bytes(b"abc")
    os.symlink(tmp_path / "outside.bin", folder / "link.bin")
    with pytest.raises(LabError) as caught:
        read_onnx(saved(_external(small(), location), folder))
    assert text in str(caught.value)
    assert "tensor 'conv.weight'" in str(caught.value)


def _nan(model: onnx.ModelProto) -> None:
    weight = numpy_helper.to_array(model.graph.initializer[0]).copy()
    weight[0, 0, 0, :2] = np.nan, np.inf
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "conv.weight"))


def _custom(model: onnx.ModelProto) -> None:
    model.graph.node[1].domain = "com.example"
    model.opset_import.append(helper.make_opsetid("com.example", 1))


def _unknown(model: onnx.ModelProto) -> None:
    model.graph.node[1].op_type = "Reluu"


def _quantised(model: onnx.ModelProto) -> None:
    model.graph.node[1].op_type = "QuantizeLinear"


def _empty(model: onnx.ModelProto) -> None:
    del model.graph.node[:]


def _no_batch(model: onnx.ModelProto) -> None:
    del model.graph.input[0].type.tensor_type.shape.dim[0]


def _scalar(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("rate", TensorProto.INT64, []))


def _double(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE


def _ir(model: onnx.ModelProto) -> None:
    model.ir_version = 99


def _opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 99


def _sequence(model: onnx.ModelProto) -> None:
    value = helper.make_tensor_sequence_value_info("list", TensorProto.FLOAT, None)
    model.graph.input.append(value)


def _control_flow(model: onnx.ModelProto) -> None:
    branches = [
        helper.make_graph(
            [helper.make_node(op, ["conv_out"], ["branch"])],
            op,
            [],
            [helper.make_tensor_value_info("branch", TensorProto.FLOAT, None)],
        )
        for op in ("Relu", "Neg")
    ]
    model.graph.input.append(helper.make_tensor_value_info("flag", TensorProto.BOOL, [1]))
    node = helper.make_node(
        "If", ["flag"], ["out"], "choice", then_branch=branches[0], else_branch=branches[1]
    )
    model.graph.node[1].CopyFrom(node)


def _cut_weight(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:100]


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (_nan, ["'conv.weight' (Conv 'conv') holds 2 of 108 values", "NaN or infinite"]),
        (_custom, ["Relu 'relu' of domain 'com.example'", "export without custom operators"]),
        (_unknown, ["opset 20 has no Reluu 'relu'", "export it again"]),
        (_quantised, ["quantised already: QuantizeLinear 'relu'", "float32 file"]),
        (_empty, ["0 nodes and 1 outputs"]),
        (_no_batch, ["'image': shape 3 x 16 x 16", "batch dimension"]),
        (_scalar, ["'rate': shape unknown or of no dimension", "batch dimension"]),
        (_double, ["'image' is double", "export it with float32"]),
        (_ir, ["IR version 99", "update onnx"]),
        (_opset, ["opset 99", "update onnx"]),
        (_sequence, ["'list' is sequence_type", "must be a tensor"]),
        (_control_flow, ["If 'choice'", "without control flow"]),
        (_cut_weight, ["'conv.weight'", "cut short"]),
    ],
)
def test_what_is_wrong_is_said(
    damage: Callable[[onnx.ModelProto], None], parts: list[str], tmp_path: Path
) -> None:
    model = small()
    damage(model)
    with pytest.raises(LabError) as caught:
        read_onnx(saved(model, tmp_path))
    for part in parts:
        assert part in str(caught.value)


def test_all_mistakes_at_once(tmp_path: Path) -> None:
    model = small()
    for damage in (_nan, _custom, _no_batch):
        damage(model)
    with pytest.raises(LabError, match=r"com.example.*NaN.*batch dimension"):
        read_onnx(saved(model, tmp_path))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_file_cut_short(share: float, tmp_path: Path) -> None:
    data = small().SerializeToString()
    path = tmp_path / "cut.onnx"
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(LabError, match=r"cut\.onnx: .*(again|inside)"):
        read_onnx(path)


def test_no_file_and_no_onnx(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="cannot be read"):
        read_onnx(tmp_path / "none.onnx")
    path = tmp_path / "text.onnx"
    path.write_text("this is no network")
    with pytest.raises(LabError, match="no ONNX file"):
        read_onnx(path)


def test_an_opset_that_cannot_be_converted_names_the_operator(tmp_path: Path) -> None:
    b = Builder()
    b.node("Cast", [b.conv("conv", "image", 3, 4)], "cast", ["out"], to="FLOAT")
    model = b.model({"image": (1, ["batch", 3, 8, 8])}, {"out": ["batch", 4, 8, 8]}, 5)
    with pytest.raises(LabError, match=r"opset 5 cannot be converted .*Cast.*export the network again"):
        read_onnx(saved(model, tmp_path))
    b.nodes[-1] = helper.make_node("Hardmax", ["conv_out"], ["out"], "hard", axis=1)
    model = b.model({"image": (1, ["batch", 3, 8, 8])}, {"out": ["batch", 4, 8, 8]}, 11)
    with pytest.raises(LabError, match="Hardmax 'hard' means another axis in opset 11"):
        read_onnx(saved(model, tmp_path))


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize(("op", "opset"), [("Upsample", 9), ("Resize", 10), ("Resize", 11)])
def test_pixels_stay_where_an_old_opset_put_them(op: str, opset: int, mode: str, tmp_path: Path) -> None:
    b = Builder()
    factors = b.constant("factors", [1.0, 1.0, 1.5, 2.5])
    region = [b.constant("region", np.zeros(0))] if opset == 11 else []
    b.node(op, [b.conv("conv", "image", 3, 4), *region, factors], "up", ["out"], mode=mode)
    model = b.model({"image": (1, ["batch", 3, SIZE, SIZE])}, {"out": ["batch", 4, 24, 40]}, opset)
    foreign = read_onnx(saved(model, tmp_path))
    feed = pictures(0, 1)[0]
    expected, actual = (plain_session(m).run(None, feed)[0] for m in (model, foreign.model))
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
