"""Variants in other number formats: what is in the file, how far its answers are, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper

from deploy.errors import LabError
from optimize.calibrate import calibrate
from optimize.precision import PrecisionRecord, emulated, to_bf16, to_fp16, weight_only
from optimize.qdq import emit
from tests.residual_graph import images, residual, saved, scaled

MAKERS = {"fp16": to_fp16, "bf16": to_bf16}


@pytest.mark.parametrize(("form", "element", "opset", "snr"), [
    ("fp16", TensorProto.FLOAT16, 20, (40, 80)),
    ("bf16", TensorProto.BFLOAT16, 22, (25, 50)),
])  # fmt: skip
def test_every_tensor_inside_has_the_type(
    tmp_path: Path, form: str, element: int, opset: int, snr: tuple[float, float]
) -> None:
    path, out = saved(residual(), tmp_path), tmp_path / "half.onnx"
    record = MAKERS[form](path, out, [images(0, 8), images(1, 5)])
    model = onnx.load(out)
    onnx.checker.check_model(model, full_check=True)
    assert all(i.data_type == element for i in model.graph.initializer)
    typed = {
        v.name: v.type.tensor_type.elem_type
        for v in onnx.shape_inference.infer_shapes(model).graph.value_info
    }
    assert len(typed) == len(model.graph.node) - 1
    assert set(typed.values()) == {element}
    ends = [*model.graph.input, *model.graph.output]
    assert [(e.name, e.type.tensor_type.elem_type) for e in ends] == [
        ("image", TensorProto.FLOAT), ("logits", TensorProto.FLOAT),
    ]  # fmt: skip
    assert (record.number_format, record.opset, model.opset_import[0].version) == (form, opset, opset)
    assert record.bytes == out.stat().st_size < 0.6 * record.fp32_bytes
    assert (record.num_images, record.num_not_finite, record.num_activations_over) == (13, 0, 0)
    assert record.snr_db is not None
    assert snr[0] < record.snr_db < snr[1]
    assert record.top1_agreement == 1.0


def test_emulation_is_float32_with_each_rounding_once(tmp_path: Path) -> None:
    """What a tensor holds is of its type, and the sum before it is of float32 products."""
    to_bf16(saved(residual(), tmp_path), tmp_path / "half.onnx")
    model = emulated(onnx.load(tmp_path / "half.onnx"))
    onnx.checker.check_model(model, full_check=True)
    probe = [f"{name}_out" for name in ("stem", "a1", "b2")] + ["sum_a", "mean"]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in [*probe, "stem_out_exact"])
    session = onnxruntime.InferenceSession(model.SerializeToString())
    values = session.run([*probe, "stem_out_exact"], {"image": images(0, 2)})
    for value in values[:-1]:
        assert value.dtype == np.float32
        assert np.array_equal(value, value.astype(ml_dtypes.bfloat16).astype(np.float32))
    # The convolution before its rounding: exact products of rounded numbers.
    image = images(0, 2).astype(ml_dtypes.bfloat16).astype(np.float32)
    weight, bias = (
        next(numpy_helper.to_array(i) for i in model.graph.initializer if i.name == f"stem.{part}")
        for part in ("weight", "bias")
    )
    padded = np.pad(image, [(0, 0), (0, 0), (1, 1), (1, 1)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    expected = np.einsum("nchwij,ocij->nohw", windows, weight) + bias[:, None, None]
    np.testing.assert_allclose(values[-1], expected, atol=1e-5)
    assert np.array_equal(values[0], values[-1].astype(ml_dtypes.bfloat16).astype(np.float32))


def test_fp16_file_runs_on_the_cpu(tmp_path: Path) -> None:
    path, out = saved(residual(), tmp_path), tmp_path / "half.onnx"
    to_fp16(path, out)
    batch = images(0, 5)
    answers = [onnxruntime.InferenceSession(str(p)).run(["logits"], {"image": batch})[0] for p in (path, out)]
    assert answers[1].dtype == np.float32
    np.testing.assert_allclose(answers[1], answers[0], rtol=0.05, atol=0.05)


def test_a_weight_beyond_fp16_is_refused_and_bf16_takes_it(tmp_path: Path) -> None:
    model = residual()
    scaled(model, "a2.weight", 1e6, [3])
    path, out = saved(model, tmp_path), tmp_path / "half.onnx"
    with pytest.raises(LabError, match=r"fp16: 1 tensors .* a2\.weight"):
        to_fp16(path, out)
    assert not out.exists()
    assert to_bf16(path, out, [images(0, 2)]).num_not_finite == 0


def test_what_vanishes_and_what_overflows_is_counted(tmp_path: Path) -> None:
    model = residual()
    scaled(model, "a2.weight", 1e-9, [3])
    out = tmp_path / "half.onnx"
    record = to_fp16(saved(model, tmp_path), out)
    assert record.num_flushed == 16 * 9
    assert (record.snr_db, record.top1_agreement, record.num_images) == (None, None, 0)
    assert to_bf16(tmp_path / "fp32.onnx", out).num_flushed == 0
    # Weights that fit, whose products do not.
    scaled(model, "stem.weight", 6e4, range(16))
    scaled(model, "a1.weight", 1e4, range(16))
    record = to_fp16(saved(model, tmp_path), out, [images(0, 3)])
    assert record.num_activations_over > 100
    assert record.num_not_finite == 3
    assert record.snr_db is None


def test_weight_only_is_int8_weights_and_float_arithmetic(tmp_path: Path) -> None:
    path, out = saved(residual(), tmp_path), tmp_path / "w8.onnx"
    record = weight_only(path, out, [images(0, 16)])
    model = onnx.load(out)
    before = {i.name: numpy_helper.to_array(i) for i in onnx.load(path).graph.initializer}
    after = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    for name, weight in before.items():
        if not name.endswith(".weight"):
            assert np.array_equal(after[name], weight)
            continue
        assert name not in after
        scale = after[f"{name}_scale"].reshape(-1, *[1] * (weight.ndim - 1))
        assert after[f"{name}_q"].dtype == np.int8
        assert (np.abs(after[f"{name}_q"] * scale - weight) <= 0.5001 * scale).all()
    assert not any(node.op_type == "QuantizeLinear" for node in model.graph.node)
    assert sum(node.op_type == "DequantizeLinear" for node in model.graph.node) == 7
    assert record.bytes == out.stat().st_size < 0.45 * record.fp32_bytes
    assert record.num_weights == sum(w.size for n, w in before.items() if n.endswith(".weight"))
    assert record.snr_db is not None
    assert 15 < record.snr_db < 45
    assert record.opset == 20


@pytest.mark.parametrize("make", [to_fp16, to_bf16, weight_only])
def test_a_quantised_file_is_refused(tmp_path: Path, make: Callable[[Path, Path], PrecisionRecord]) -> None:
    path = saved(residual(), tmp_path)
    onnx.save(emit(residual(), calibrate(path, [images(0, 4)], "max", 99.99), "s8"), path)
    with pytest.raises(LabError, match="give the FP32 file"):
        make(path, tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()
