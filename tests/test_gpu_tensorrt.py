"""What only a GPU can show of TensorRT: engines that are opened, run, captured and compared.

TensorRT-RTX is enough where its GPUs are; a test says so where the GPU is not one of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from deploy.bundle import Bundle, Variant, write_bundle
from deploy.cuda import Cuda, find_cuda
from deploy.cuda_calls import CudaPython, Cudart, _load, find_calls
from deploy.engine import Target, find_target, ready_engine
from deploy.engine_build import BuildOptions
from deploy.errors import LabError
from deploy.trt import TensorRTRunner
from deploy.trt_api import find_tensorrt
from deploy.verify import relative_error, verify
from optimize.qdq import emit
from scripts.bench_tensorrt import contenders, try_portable
from tests.test_deploy_bundle import image_folder
from tests.test_optimize_support import SIZE, SPEC, calibrated, images, load

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no NVIDIA GPU here"),
]
BATCHES = (1, 3, 32)


@pytest.fixture(scope="module")
def target() -> Target:
    try:
        return find_target(find_tensorrt(), find_cuda())
    except LabError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """ResNet-18 at 32 px with random weights: fp32, and the INT8 file that is made for TensorRT."""
    folder = tmp_path_factory.mktemp("gpu")
    models = {"fp32": load("resnet18"), "int8": emit(load("resnet18"), calibrated("resnet18"), "s8")}
    for name, model in models.items():
        onnx.save(model, folder / f"{name}.onnx")
    backends = {"fp32": "onnxruntime", "int8": "tensorrt"}
    photos = [(path, 0) for path, _ in image_folder(folder / "photos")]
    draft = np.zeros((len(photos), SPEC.num_classes), np.float32)
    settings = {
        "name": "gpu",
        "input": SPEC,
        "variants": [Variant(name, "", name, backends[name], 1, {}, {}) for name in models],
        "models": {name: folder / f"{name}.onnx" for name in models},
        "samples": photos,
        "versions": {},
        "commands": [],
    }
    made = write_bundle(folder / "bundle", expected=dict.fromkeys(models, draft), **settings)  # type: ignore[arg-type]
    expected = {name: reference(made, name, _samples(made)) for name in models}
    return write_bundle(folder / "bundle", expected=expected, **settings)  # type: ignore[arg-type]


def _samples(bundle: Bundle) -> NDArray[np.float32]:
    return bundle.tensors().arrays["image"]


def reference(bundle: Bundle, variant: str, batch: NDArray[np.float32]) -> NDArray[np.float32]:
    """As ONNX defines the operators, without any backend's optimisations."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(bundle.path(variant), options, providers=["CPUExecutionProvider"])
    logits: NDArray[np.float32] = session.run(["logits"], {"image": batch})[0]
    return logits


@pytest.fixture(scope="module", params=["fp32", "int8"])
def opened(
    request: pytest.FixtureRequest, bundle: Bundle, target: Target
) -> Iterator[tuple[str, TensorRTRunner]]:
    """A variant and its runner; FP32 without TF32, so that it can be held against a CPU."""
    path = ready_engine(bundle, request.param, target, BuildOptions(tf32=False), print).path
    with TensorRTRunner(path, target, bundle) as runner:
        yield request.param, runner


def test_the_gpu_computes_what_the_file_says(
    bundle: Bundle, opened: tuple[str, TensorRTRunner], capsys: pytest.CaptureFixture[str]
) -> None:
    variant, runner = opened
    for round_, count in enumerate((*BATCHES, *BATCHES)):
        batch = images(round_, count)
        got, expected = runner.infer({"image": batch})["logits"], reference(bundle, variant, batch)
        # A rounding that turns in INT8 grows through the layers to the noise of rounding itself.
        assert relative_error(got, expected) < (1e-3 if variant == "fp32" else 0.1), (variant, count)
    assert "without a CUDA graph" not in capsys.readouterr().err
    assert all(query._graph is not None for query in runner._lanes[0].queries.values())


def test_the_engine_says_what_its_layers_run_in(
    bundle: Bundle, target: Target, opened: tuple[str, TensorRTRunner]
) -> None:
    variant, runner = opened
    precision = runner._record.precision
    assert precision is not None
    assert sum(precision.layers.values()) > 5
    print(f"{target.api} on {target}: {variant}: {precision}, not INT8: {precision.not_int8}")
    assert precision.asked == (21 if variant == "int8" else 0)
    assert runner.precision is not None
    if not target.api.rtx:  # its compiler splits a convolution into layers that need not bear its name
        assert precision.not_int8 == {}
        assert runner.precision == variant


def test_ctypes_reaches_the_gpu_as_cuda_python_does(
    bundle: Bundle, target: Target, opened: tuple[str, TensorRTRunner]
) -> None:
    _, runner = opened
    calls = find_calls()
    assert isinstance(calls, CudaPython)
    other = Cuda(Cudart(_load()))
    assert other.device() == Cuda(calls).device() == target.device
    assert other.free_bytes() > 0
    batch = images(9, 2)
    with TensorRTRunner(runner._path, Target(target.api, other, target.device), bundle) as second:
        got = second.infer({"image": batch})["logits"]
    np.testing.assert_array_equal(got, runner.infer({"image": batch})["logits"])


def test_memory_that_cpu_and_gpu_share_is_read_where_it_lies(
    bundle: Bundle, target: Target, opened: tuple[str, TensorRTRunner]
) -> None:
    """As on a Jetson: the GPU reads and writes pinned host memory itself."""
    assert target.device is not None
    shared = Target(target.api, target.cuda, replace(target.device, integrated=True))
    _, runner = opened
    with TensorRTRunner(runner._path, shared, bundle) as second:
        for count in BATCHES:
            batch = images(count, count)
            got = second.infer({"image": batch})["logits"]
            np.testing.assert_array_equal(got, runner.infer({"image": batch})["logits"])


def test_many_batch_sizes_in_turn_stay_right(bundle: Bundle, opened: tuple[str, TensorRTRunner]) -> None:
    variant, runner = opened
    for count in (*range(1, 13), 1, 5):
        batch = images(count, count)
        expected = reference(bundle, variant, batch)
        error = relative_error(runner.infer({"image": batch})["logits"], expected)
        assert error < (1e-3 if variant == "fp32" else 0.1), count


def test_queries_in_flight_get_their_own_answers(
    bundle: Bundle, opened: tuple[str, TensorRTRunner], target: Target
) -> None:
    _, runner = opened
    batches = [images(3, seed) for seed in range(20)]
    with (
        TensorRTRunner(runner._path, target, bundle, in_flight=2) as two,
        ThreadPoolExecutor(2) as callers,
    ):
        found = list(callers.map(lambda batch: two.infer({"image": batch})["logits"], batches))
    for batch, got in zip(batches, found, strict=True):
        np.testing.assert_array_equal(got, runner.infer({"image": batch})["logits"])


def test_verify_passes_on_the_gpu(bundle: Bundle, opened: tuple[str, TensorRTRunner]) -> None:
    report = verify(bundle.root, backend="tensorrt")
    assert report.ok, str(report)
    assert [check.name for check in report.checks] == ["files", "fp32, optimised", "int8, optimised"]


def test_the_benchmarks_contenders_run(target: Target, opened: tuple[str, TensorRTRunner]) -> None:
    with contenders(opened[1]._path, target, 1) as calls:
        assert list(calls) == ["ours", "in place", "enqueue", "graph"]
        for call in calls.values():
            call()


def test_an_engine_for_8_0_runs_here_or_is_refused_with_one_error(bundle: Bundle, target: Target) -> None:
    if not target.api.rtx:
        pytest.skip(f"{target.api} builds for its own GPU only")
    told = try_portable(bundle, "int8", target)
    print(told)
    assert told.startswith("an engine for 8.0 ")
    assert target.device is not None
    if target.device.compute_capability.startswith("8."):
        assert " runs on " in told


def test_an_engine_of_another_gpu_is_refused(bundle: Bundle, target: Target, tmp_path: Path) -> None:
    if not target.api.rtx:
        pytest.skip(f"{target.api} builds for its own GPU only")
    elsewhere = find_target(target.api, target.cuda, ("12.0",))
    path = ready_engine(bundle, "int8", elsewhere, None, print, cache=tmp_path).path
    with pytest.raises(LabError, match=r"does not run here: compute capability 12\.0 -> "):
        TensorRTRunner(path, target)


def test_sizes_are_of_the_network(opened: tuple[str, TensorRTRunner]) -> None:
    assert [str(spec) for spec in opened[1].inputs] == [f"float32 N x 3 x {SIZE} x {SIZE}"]
