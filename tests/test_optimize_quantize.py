"""The stage writes three files that belong together, or none."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from deploy.errors import LabError
from optimize.calibrate import Scales
from optimize.qdq import emit
from optimize.qdq_lint import lint
from optimize.quantize import integer_mismatches, num_corrected, quantize_onnx
from tests.test_optimize_support import batches, calibrated, exported, images, load


def test_stage_writes_and_records(tmp_path: Path) -> None:
    record = quantize_onnx(exported("resnet18"), batches(), tmp_path, "percentile", 99.9)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["int8-cpu.onnx", "int8.onnx", "scales.json"]
    scales = Scales.from_json((tmp_path / "scales.json").read_text())
    s8, u8 = onnx.load(tmp_path / "int8.onnx"), onnx.load(tmp_path / "int8-cpu.onnx")
    assert lint(s8) == []
    assert s8 == emit(load("resnet18"), scales, "s8")
    assert u8 == emit(load("resnet18"), scales, "u8")
    assert (record.method, record.num_images, record.num_tensors) == ("percentile 99.9", 16, 30)
    assert (record.num_convs, record.num_int8_convs, record.num_checked_images) == (20, 20, 4)
    assert record.s8_bytes == (tmp_path / "int8.onnx").stat().st_size < 0.27 * record.fp32_bytes
    assert record.u8_bytes == (tmp_path / "int8-cpu.onnx").stat().st_size


@pytest.mark.parametrize(("size", "count"), [(224, 64), (32, 3136), (1024, 16)])
def test_small_images_make_up_for_their_size_in_bias_correction(size: int, count: int) -> None:
    assert num_corrected([np.zeros((8, 3, size, size), np.float32)]) == count


def test_bias_correction_takes_what_there_is(tmp_path: Path) -> None:
    record = quantize_onnx(exported("resnet18"), batches(), tmp_path, "max", 99.9, correct=True)
    assert record.bias_correction is not None
    assert record.bias_correction.num_images == 16


def test_findings_are_an_error_and_leave_no_file(tmp_path: Path) -> None:
    """A ReLU that reads a tensor which is also added: its Q/DQ would stand between convolution and ReLU."""
    model = load("resnet18")
    add = next(node for node in model.graph.node if node.op_type == "Add")
    relu = next(node for node in model.graph.node if node.op_type == "Relu" and node.output[0] == "relu_1")
    add.input[1] = relu.input[0]
    path = tmp_path / "fp32.onnx"
    onnx.save(model, path)
    with pytest.raises(LabError, match=re.escape("(Relu): Q/DQ between it and")):
        quantize_onnx(path, batches(), tmp_path / "out", "max", 99.99)
    assert not (tmp_path / "out").exists()


def test_mismatches_are_counted() -> None:
    s8 = emit(load("resnet18"), calibrated("resnet18"), "s8")
    u8 = emit(load("resnet18"), calibrated("resnet18"), "u8")
    scale = next(i for i in u8.graph.initializer if i.name == "max_pool2d_scale")
    scale.CopyFrom(numpy_helper.from_array(np.float32(1.01) * numpy_helper.to_array(scale), scale.name))
    assert integer_mismatches(s8, u8, [images(0, 1)]) > 100
    with pytest.raises(LabError, match="different tensors"):
        integer_mismatches(s8, load("resnet18"), [images(0, 1)])
