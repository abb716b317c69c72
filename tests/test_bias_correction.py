"""Bias correction takes the mean error of each channel off, and `emit` keeps its promises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from deploy.errors import LabError
from optimize.bias_correction import correct_biases
from optimize.calibrate import Scales, calibrate
from optimize.fidelity import compare_models, plain_session
from optimize.qdq import emit
from optimize.qdq_lint import lint
from optimize.quantize import integer_mismatches
from tests.test_optimize_support import images
from tests.tiny_onnx import array, chain, put

STEPS = ("dense", "relu", "dense", "relu6", "depthwise", "add", "relu", "dense", "relu", "head")


def coarse(model: onnx.ModelProto, folder: Path, cut: float = 0.5) -> Scales:
    """Scales too small on purpose: all tensors saturate, so that their means are off."""
    onnx.save(model, folder / "network.onnx")
    scales = calibrate(folder / "network.onnx", [images(0, 8)], "max", 99.99)
    return Scales("max", 8, {name: cut * scale for name, scale in scales.tensors.items()})


def means(model: onnx.ModelProto, names: list[str], batch: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    """Channel means of the tensors `names`, float64 [C] each."""
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    exposed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name != "logits")
    values = plain_session(exposed).run(names, {"image": batch})
    return [v.mean(tuple(i for i in range(v.ndim) if i != 1), np.float64) for v in values]


def test_int8_is_closer_with_it_and_the_two_forms_agree(tmp_path: Path) -> None:
    model = chain(*STEPS)
    scales = coarse(model, tmp_path)
    before = model.SerializeToString()
    corrected, record = correct_biases(model, scales, [images(0, 8), images(1, 8)])
    assert model.SerializeToString() == before
    s8, u8 = emit(corrected, scales, "s8"), emit(corrected, scales, "u8")
    # On images that had no part in it.
    plain = compare_models(model, emit(model, scales, "s8"), [images(5, 8)])
    assert compare_models(model, s8, [images(5, 8)]).snr_db > plain.snr_db + 3
    assert record.after.snr_db > record.before.snr_db + 3
    assert integer_mismatches(s8, u8, [images(7, 2), images(8, 2, gain=3.0)]) == 0
    assert lint(s8) == []
    # The head came without a bias.
    assert (record.num_images, record.num_layers, record.num_new_biases) == (16, 5, 1)
    assert record.largest_shift > 0.01


def test_no_mean_error_is_left_in_any_layer(tmp_path: Path) -> None:
    """Each layer is measured with the corrections of the layers before it: one pass is enough."""
    model = chain(*STEPS)
    scales, batch = coarse(model, tmp_path), images(0, 8)
    corrected, _ = correct_biases(model, scales, [batch])
    layers = ["t0", "t2", "t4", "t7", "logits"]
    expected = means(model, layers, batch)
    plain, actual = (means(emit(m, scales, "s8"), layers, batch) for m in (model, corrected))
    for name, e, p, a in zip(layers, expected, plain, actual, strict=True):
        assert np.abs(a - e).max() < 0.1 * np.abs(p - e).max(), name


def test_shared_bias_becomes_the_layers_own(tmp_path: Path) -> None:
    model = chain("dense", "relu", "dense", "relu", "head")
    model.graph.node[2].input[2] = model.graph.node[0].input[2]
    corrected, record = correct_biases(model, coarse(model, tmp_path), [images(0, 4)])
    names = [node.input[2] for node in corrected.graph.node if node.op_type in ("Conv", "Gemm")]
    assert len(set(names)) == 3
    assert record.num_new_biases == 1


def test_bias_limit_holds_in_a_dead_channel(tmp_path: Path) -> None:
    """Weights of 1e-20 and a bias of 0.5: the correction goes through `emit`'s limit as any bias does."""
    model = chain("dense", "relu", "dense", "relu", "head")
    w2, b2 = array(model, "w2"), array(model, "b2")
    w2[3], b2[3] = 1e-20, 0.5
    put(model, "w2", w2)
    put(model, "b2", b2)
    scales = coarse(model, tmp_path)
    corrected, _ = correct_biases(model, scales, [images(0, 4)])
    s8, u8 = emit(corrected, scales, "s8"), emit(corrected, scales, "u8")
    assert array(s8, "b2")[3] == pytest.approx(0.5)
    assert np.abs(array(u8, "b2_q").astype(np.int64)).max() <= 2**30
    assert integer_mismatches(s8, u8, [images(7, 2)]) == 0


def test_no_images_and_foreign_scales_are_refused(tmp_path: Path) -> None:
    model = chain("dense", "relu", "head")
    with pytest.raises(LabError, match="0 images"):
        correct_biases(model, coarse(model, tmp_path), [])
    with pytest.raises(LabError, match="another network"):
        correct_biases(model, Scales("max", 1, {}), [images(0, 1)])
