"""Equalisation keeps the float network and evens out the channels that share an int8 scale."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from deploy.errors import LabError
from optimize.calibrate import calibrate
from optimize.equalize import channel_ranges, equalize, find_pairs
from optimize.fidelity import compare_models
from optimize.qdq import emit
from optimize.quantize import integer_mismatches
from tests.test_optimize_support import images
from tests.tiny_onnx import array, chain, put


def snr(model: onnx.ModelProto, reference: onnx.ModelProto, folder: Path) -> float:
    """dB of the INT8 network's outputs, on images that nothing was set by."""
    path = folder / "network.onnx"
    onnx.save(model, path)
    int8 = emit(model, calibrate(path, [images(0, 8)], "max", 99.99), "s8")
    return compare_models(reference, int8, [images(5, 8)]).snr_db


@pytest.mark.parametrize(
    ("steps", "num_pairs"),
    [
        (("dense", "relu", "dense"), 1),
        (("dense", "relu", "depthwise", "relu", "dense", "relu", "head"), 3),
        (("dense", "depthwise", "relu", "pool", "dense"), 2),
    ],
)
def test_function_stays_and_channels_become_alike(steps: tuple[str, ...], num_pairs: int) -> None:
    model = chain(*steps, uneven=2.0)
    before = model.SerializeToString()
    result, record = equalize(model, [images(0, 8)], 1.0)
    assert model.SerializeToString() == before
    assert len(record.pairs) == num_pairs
    # Also far beyond the images that set the ranges.
    assert compare_models(model, result, [images(3, 4, gain=20.0)]).relative_error < 1e-4
    for pair in record.pairs:
        assert pair.use_after > pair.use_before
        ranges = channel_ranges(result, [pair.tensor], [image[None] for image in images(0, 8)])[pair.tensor]
        # Images 4 and 8 set no range, so they may exceed it a little.
        assert (ranges / ranges.max()).mean() == pytest.approx(pair.use_after, abs=0.1)


def test_range_is_balanced_half_way() -> None:
    """Behind s = sqrt(a / max a), a channel's range is sqrt(a x max a)."""
    model = chain("dense", "relu", "dense", uneven=2.0)
    seen = [images(0, 3)]
    tensor = find_pairs(model)[0].tensor
    before, after = (
        channel_ranges(m, [tensor], [image[None] for image in seen[0]])[tensor]
        for m in (model, equalize(model, seen, 1.0)[0])
    )
    np.testing.assert_allclose(after, np.sqrt(before * before.max()), rtol=1e-4)


def test_int8_is_closer_with_it(tmp_path: Path) -> None:
    model = chain("dense", "relu", "depthwise", "relu", "dense", "relu", "head", uneven=2.0)
    result, _ = equalize(model, [images(0, 8)], 1.0)
    assert snr(result, model, tmp_path) > snr(model, model, tmp_path) + 3


def test_dead_channels_are_left_alone() -> None:
    model = chain("dense", "relu", "dense", uneven=2.0)
    w0, b0, w2 = (array(model, name) for name in ("w0", "b0", "w2"))
    w0[2], b0[2] = 0, 0  # makes nothing
    b0[3] = -1e4  # never gets through the ReLU
    w2[:, 5] = 0  # is not read
    for name, value in (("w0", w0), ("b0", b0), ("w2", w2)):
        put(model, name, value)
    result, record = equalize(model, [images(0, 8)], 1.0)
    assert record.pairs[0].num_dead == 3
    for channel in (2, 3, 5):
        assert np.array_equal(array(result, "w0")[channel], w0[channel])
        assert array(result, "b0")[channel] == b0[channel]
        assert np.array_equal(array(result, "w2")[:, channel], w2[:, channel])
    assert not np.array_equal(array(result, "w0"), w0)
    assert compare_models(model, result, [images(3, 4)]).relative_error < 1e-4


def test_relu6_stays_and_what_was_seen_stays() -> None:
    """One channel reaches 6, the others do not; no image that was seen comes out differently."""
    model = chain("dense", "relu6", "depthwise", "relu6", "head")
    w0 = array(model, "w0")
    w0[0] *= 10
    put(model, "w0", w0)
    seen = images(0, 3)
    result, record = equalize(model, [seen], 1.0)
    assert [node.op_type for node in result.graph.node] == [node.op_type for node in model.graph.node]
    assert np.array_equal(array(result, "w0")[0], w0[0])
    assert all(pair.use_after > pair.use_before for pair in record.pairs)
    assert compare_models(model, result, [seen]).relative_error < 1e-4


def test_change_beyond_what_was_seen_is_measured_on_images_that_set_no_range() -> None:
    """Every fourth image is 30 times as bright: the limit of a Clip now cuts it off."""
    model = chain("dense", "relu6", "depthwise", "relu6", "head")
    batch = images(0, 16, gain=0.05)
    batch[3::4] *= 30
    _, record = equalize(model, [batch], 0.0)
    assert record.fidelity.num_images == 4
    assert record.fidelity.relative_error > 0.05
    with pytest.raises(LabError, match=r"of 4 images, at least 110\.00% is asked for"):
        equalize(model, [batch], 1.1)


def test_tensors_with_other_readers_are_left() -> None:
    add = helper.make_node("Add", ["t1", "logits"], ["sum"])
    assert find_pairs(chain("dense", "relu", "dense", extra=(add,))) == []
    model = chain("dense", "relu", "dense")
    model.graph.output.append(onnx.ValueInfoProto(name="t1"))
    assert find_pairs(model) == []
    shared = chain("dense", "dense", "dense")
    shared.graph.node[2].input[1] = shared.graph.node[1].input[1]
    assert find_pairs(shared) == []


def test_residual_is_left_and_the_two_forms_agree(tmp_path: Path) -> None:
    steps = ("dense", "relu6", "dense", "relu6", "depthwise", "add", "dense", "relu6", "head")
    model = chain(*steps)
    # Not t1 and not the sum's inputs: what an Add reads stays.
    assert [pair.tensor for pair in find_pairs(model)] == ["t3", "t7"]
    result, _ = equalize(model, [images(0, 8)], 0.0)
    path = tmp_path / "equalised.onnx"
    onnx.save(result, path)
    scales = calibrate(path, [images(0, 8)], "max", 99.99)
    s8, u8 = emit(result, scales, "s8"), emit(result, scales, "u8")
    assert integer_mismatches(s8, u8, [images(8, 2, gain=3.0)]) == 0


def test_no_images_and_broken_ones_are_refused() -> None:
    with pytest.raises(LabError, match="0 images"):
        equalize(chain("dense", "dense"), [], 1.0)
    with pytest.raises(LabError, match="NaN or infinity"):
        equalize(chain("dense", "dense"), [np.full((1, 3, 32, 32), np.nan, np.float32)], 1.0)
