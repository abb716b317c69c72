"""Scales are what their method says, for exactly the tensors that are quantised."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from configs.quantize import CalibrationMethod
from data.calibration import choose_images
from data.index import Index
from deploy.errors import LabError
from optimize.calibrate import CHUNK, NUM_BINS, Histogram, Scales, calibrate
from optimize.qdq_placement import quantised_tensors
from tests.test_optimize_support import batches, calibrated, exported, load


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """image -> Relu -> Conv 1 x 1 -> logits, N x 3 x 2 x 2."""
    nodes = [
        helper.make_node("Relu", ["image"], ["positive"]),
        helper.make_node("Conv", ["positive", "w"], ["logits"]),
    ]
    shapes = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", channels, 2, 2])
        for name, channels in (("image", 3), ("logits", 1))
    ]
    weight = numpy_helper.from_array(np.ones((1, 3, 1, 1), np.float32), "w")
    graph = helper.make_graph(nodes, "tiny", shapes[:1], shapes[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path = tmp_path / "tiny.onnx"
    onnx.save(model, path)
    return path


def of_values(*values: float) -> npt.NDArray[Any]:
    batch = np.zeros((1, 3, 2, 2), np.float32)
    batch.flat[: len(values)] = values
    return batch


def test_max_scale_is_exact_over_all_batches(tiny: Path) -> None:
    scales = calibrate(tiny, [of_values(1.0, -50.0), of_values(2.54), of_values(0.3)], "max", 99.99)
    assert scales.tensors == {"positive": float(np.float32(np.float32(2.54) / np.float32(127)))}
    assert (scales.method, scales.num_images) == ("max", 3)


def test_zero_tensor_gets_the_scale_of_one(tiny: Path) -> None:
    for method in get_args(CalibrationMethod):
        scales = calibrate(tiny, [of_values(-1.0)], method, 99.99)
        assert scales.tensors["positive"] == pytest.approx(1 / 127)


def test_scales_cover_exactly_the_quantised_tensors() -> None:
    assert set(calibrated("resnet18").tensors) == {t.name for t in quantised_tensors(load("resnet18"))}


def test_other_methods_stay_at_or_below_the_max() -> None:
    largest = calibrated("resnet18").tensors
    for method in ("percentile", "entropy", "mse"):
        scales = calibrated("resnet18", method).tensors
        assert all(0 < scales[name] <= largest[name] for name in largest)
        assert any(scales[name] < 0.99 * largest[name] for name in largest)


def test_percentile_of_a_uniform_tensor() -> None:
    histogram = Histogram()
    histogram.add(np.linspace(-3, 3, 60_001, dtype=np.float32))
    assert histogram.amax("percentile", 90) == pytest.approx(2.7, abs=4 / 4096)
    assert histogram.amax("percentile", 100) == 3.0


def test_entropy_cuts_an_outlier_and_keeps_a_uniform_range() -> None:
    histogram = Histogram()
    histogram.add(np.random.default_rng(0).normal(size=100_000).astype(np.float32))
    histogram.add(np.array([40.0], np.float32))
    assert histogram.amax("max", 0) == 40.0
    assert 2.0 < histogram.amax("entropy", 0) < 10.0
    flat = Histogram()
    flat.add(np.linspace(0, 1, 100_000, dtype=np.float32))
    assert flat.amax("entropy", 0) > 0.95


@pytest.mark.parametrize("outliers", [0, 1, 1000])
def test_mse_is_the_cut_with_the_least_error_of_the_values_themselves(outliers: int) -> None:
    values = np.random.default_rng(0).laplace(size=100_000).astype(np.float32)
    values[:outliers] = 40.0
    histogram = Histogram()
    histogram.add(values)

    def error(amax: float) -> float:
        scale = amax / 127
        back = np.clip(np.rint(values / scale), -127, 127) * scale
        return float(np.square(values.astype(np.float64) - back).mean())

    found = histogram.amax("mse", 0)
    best = min(error(amax) for amax in np.linspace(histogram.max / 100, histogram.max, 300))
    assert error(found) <= 1.01 * best
    # A single outlier is let go, a thousand are not.
    assert (found > 30) == (outliers == 1000)


def indexed(*counts: int) -> Index:
    labels = np.repeat(np.arange(len(counts)), counts)
    paths = tuple(str(i) for i in range(len(labels)))
    return Index(paths, labels, np.ones((len(labels), 2), np.int64), tuple("abc"[: len(counts)]))


def test_balanced_images_are_equally_many_as_far_as_they_go() -> None:
    index = indexed(100, 3, 40)
    chosen = choose_images(index, 24, 0, balanced=True)
    assert np.bincount(chosen.labels).tolist() == [11, 3, 10]
    assert len(set(chosen.paths)) == 24
    assert chosen.paths != choose_images(index, 24, 1, balanced=True).paths
    assert np.bincount(choose_images(index, 24, 0).labels).tolist() == [17, 0, 7]
    assert len(choose_images(index, 1000, 0, balanced=True)) == 143
    assert np.bincount(choose_images(index, 3, 0, balanced=True).labels).tolist() == [1, 1, 1]
    with pytest.raises(LabError, match="2 balanced images cannot hold each of the 3 classes"):
        choose_images(index, 2, 0, balanced=True)


def test_order_of_batches_does_not_matter() -> None:
    forward = calibrate(exported("resnet18"), batches(), "percentile", 99.0)
    backward = calibrate(exported("resnet18"), reversed(list(batches())), "percentile", 99.0)
    assert forward == backward


def test_mistakes_are_named(tiny: Path) -> None:
    with pytest.raises(LabError, match="0 images"):
        calibrate(tiny, [], "max", 99.99)
    with pytest.raises(LabError, match="'positive' holds NaN"):
        calibrate(tiny, [of_values(1.0), of_values(float("nan"))], "max", 99.99)
    with pytest.raises(LabError, match="'median' must be one of max, percentile, entropy, mse"):
        # As a caller without a type checker may give it.
        calibrate(tiny, [of_values(1.0)], "median", 99.99)  # type: ignore[arg-type]
    with pytest.raises(LabError, match=r"percentile 0\.0"):
        calibrate(tiny, [of_values(1.0)], "percentile", 0.0)


def test_json_round_trip_is_exact() -> None:
    scales = calibrated("resnet18", "percentile")
    assert Scales.from_json(scales.to_json()) == scales
    assert scales.method == "percentile 99.99"


@pytest.mark.parametrize(
    "text",
    ["[]", "{", '{"method": "max"}', '{"method": "max", "num_images": 1, "tensors": {"a": -1.0}}'],
)
def test_bad_json_is_refused(text: str) -> None:
    with pytest.raises(LabError, match="scales"):
        Scales.from_json(text)


def test_every_image_of_a_batch_counts(tiny: Path) -> None:
    batch = np.concatenate([of_values(1.0)] * 19 + [of_values(7.0)])
    scales = calibrate(tiny, [batch], "max", 99.99)
    assert scales.num_images == 20
    assert scales.tensors["positive"] == float(np.float32(7.0 / 127))


def test_a_histogram_counts_every_value_once() -> None:
    """Of more values than are counted at a time, the largest at the limit itself."""
    values = np.random.default_rng(0).uniform(-4, 4, size=(3, CHUNK)).astype(np.float32)
    values[1, 5] = -4.0
    histogram = Histogram()
    histogram.add(values)
    expected, _ = np.histogram(np.abs(values), bins=NUM_BINS, range=(0, 4))
    assert (histogram.limit, histogram.max) == (4.0, 4.0)
    np.testing.assert_array_equal(histogram.counts, expected)
