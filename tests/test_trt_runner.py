"""The TensorRT runner on mocks of TensorRT and CUDA: the order of calls, the memory, what errors become."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from deploy.backends import open_runner
from deploy.bench_inside import figures_in_place
from deploy.bundle import Bundle, open_bundle
from deploy.cuda import CudaError
from deploy.engine import Target, ready_engine
from deploy.engine_build import BuildOptions
from deploy.errors import LabError
from deploy.trt import TensorRTRunner
from tests.engines import lock, mocked
from tests.fake_cuda import ILLEGAL_ADDRESS
from tests.test_deploy_bundle import SIZE, tiny_bundle

VERSIONS = ["10.3.0", "10.16.2", "11.4.0"]
WARM_UP = ["cudaMemcpyAsync", "cudaMemcpyAsync", "cudaStreamSynchronize"]
CAPTURE = [
    "cudaStreamBeginCapture", "cudaMemcpyAsync", "cudaMemcpyAsync", "cudaStreamEndCapture",
    "cudaGraphInstantiate", "cudaGraphDestroy",
]  # fmt: skip
RUN = ["cudaGraphLaunch", "cudaStreamSynchronize"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("made"))


@pytest.fixture
def bundle(made: Bundle, tmp_path: Path) -> Bundle:
    return open_bundle(shutil.copytree(made.root, tmp_path / "bundle"))


def engine(bundle: Bundle, target: Target, options: BuildOptions | None = None) -> Path:
    place = lock(bundle.root.parent)
    return ready_engine(bundle, "int8", target, options, lambda text: None, lock=place).path


def images(count: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(count, 3, SIZE, SIZE)).astype(np.float32)


def reference(bundle: Bundle, batch: NDArray[np.float32]) -> NDArray[Any]:
    with open_runner(bundle, "int8", threads=1) as runner:
        return runner.infer({"image": batch})["logits"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("integrated", [False, True])
def test_it_computes_what_the_network_computes(bundle: Bundle, version: str, integrated: bool) -> None:
    _, cuda, target = mocked(version, integrated=integrated)
    with TensorRTRunner(engine(bundle, target), target, bundle) as runner:
        assert (runner.backend, runner.backend_version, runner.threads) == ("tensorrt", version, 1)
        assert runner.device == "Fake Orin"
        assert [str(t) for t in (*runner.inputs, *runner.outputs)] == [
            "float32 N x 3 x 8 x 8",
            "float32 N x 2",
        ]
        kept = []
        for count, seed in ((1, 0), (3, 1), (1, 2), (32, 3), (3, 4)):
            batch = images(count, seed)
            kept.append((runner.infer({"image": batch})["logits"], reference(bundle, batch)))
        for got, expected in kept:  # after the last query: what was returned is no view of a buffer
            np.testing.assert_array_equal(got, expected)
    assert cuda.held == cuda.queues == cuda.graphs == {}


def test_a_query_is_one_launch_of_a_graph_that_was_captured_after_a_plain_run(bundle: Bundle) -> None:
    _, cuda, target = mocked()
    with TensorRTRunner(engine(bundle, target), target) as runner:
        cuda.called.clear()
        runner.infer({"image": images(2)})
        assert cuda.called == [*WARM_UP, *CAPTURE, *RUN]
        cuda.called.clear()
        runner.infer({"image": images(2)})
        assert cuda.called == RUN


def test_what_is_written_in_place_is_not_copied(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, target = mocked()
    with TensorRTRunner(engine(bundle, target), target) as runner:
        for count in (2, 3, 2):
            batch = images(count, count)
            staged = runner.staging(count)
            staged["image"][...] = batch
            with monkeypatch.context() as patch:
                patch.setattr("deploy.trt_query.np.copyto", None)
                got = runner.infer(staged)["logits"]
            np.testing.assert_array_equal(got, reference(bundle, batch))
            other = images(count, 9)
            np.testing.assert_array_equal(runner.infer({"image": other})["logits"], reference(bundle, other))


def test_the_benchmark_without_copies_copies_nothing(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, target = mocked()
    samples = {"image": images(2)}
    with TensorRTRunner(engine(bundle, target), target) as runner:
        (figure,) = figures_in_place("int8", runner, samples, [4])
        expected = reference(bundle, np.resize(samples["image"], (4, 3, SIZE, SIZE)))
        with monkeypatch.context() as without:
            without.setattr("deploy.trt_query.np.copyto", None)
            np.testing.assert_array_equal(figure.call()["logits"], expected)  # type: ignore[index]


def test_on_shared_memory_nothing_is_copied(bundle: Bundle) -> None:
    _, cuda, target = mocked(integrated=True)
    with TensorRTRunner(engine(bundle, target), target) as runner:
        runner.infer({"image": images(2)})
    assert {"cudaMemcpyAsync", "cudaMalloc"} & set(cuda.called) == set()
    assert cuda.called.count("cudaHostGetDevicePointer") == 2


def test_a_graph_that_cannot_be_captured_is_done_without_and_why_is_said(
    bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    module, cuda, target = mocked()
    module.no_capture = True
    with TensorRTRunner(engine(bundle, target), target) as runner:
        for seed in range(2):
            batch = images(2, seed)
            expected = reference(bundle, batch)
            np.testing.assert_array_equal(runner.infer({"image": batch})["logits"], expected)
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "batch 2 runs without a CUDA graph, which takes longer to launch: TensorRT in execute_async_v3: it "
        "does not say why"
    ]
    assert cuda.capturing is None
    assert cuda.held == {}


def test_batches_are_held_ready_but_not_without_limit(bundle: Bundle) -> None:
    _, cuda, target = mocked()
    with TensorRTRunner(engine(bundle, target), target) as runner:
        for count in range(1, 13):
            runner.infer({"image": images(count)})
        assert len(cuda.graphs) == 8
        cuda.called.clear()
        runner.infer({"image": images(12)})
        assert cuda.called == RUN
        batch = images(1)
        np.testing.assert_array_equal(runner.infer({"image": batch})["logits"], reference(bundle, batch))


@pytest.mark.parametrize(
    ("feed", "message"),
    [
        ({"picture": images(1)}, r"the model's only input is 'image'"),
        ({"image": images(1).astype(np.float64)}, r"is float64 1 x 3 x 8 x 8, must be float32 N x 3 x 8 x 8"),
        ({"image": images(1)[:, :2]}, "must be float32 N x 3 x 8 x 8"),
        ({"image": images(9)}, r"batch 9: int8.fake-orin.engine was built for 2 to 8.*--batch 2 4 9"),
        ({"image": images(1)}, r"batch 1: .*--variant int8 --batch 1 4 8"),
    ],
)
def test_a_feed_that_does_not_fit_is_refused(bundle: Bundle, feed: Any, message: str) -> None:
    _, cuda, target = mocked()
    with TensorRTRunner(engine(bundle, target, BuildOptions((2, 4, 8))), target) as runner:
        cuda.called.clear()
        with pytest.raises(LabError, match=message):
            runner.infer(feed)
        assert cuda.called == []


def test_a_kernels_error_has_cudas_name_and_is_not_hidden_by_the_closing(bundle: Bundle) -> None:
    _, cuda, target = mocked()
    path = engine(bundle, target)

    def query() -> None:
        with TensorRTRunner(path, target) as runner:
            runner.infer({"image": images(1)})
            cuda.kernel_error = ILLEGAL_ADDRESS
            runner.infer({"image": images(1)})

    with pytest.raises(CudaError, match="cudaErrorIllegalAddress in cudaStreamSynchronize: an illegal"):
        query()
    assert cuda.called[-1] == "cudaStreamDestroy"


@pytest.mark.parametrize("function", ["cudaMalloc", "cudaHostAlloc"])
def test_memory_that_is_not_to_be_had_is_told_and_nothing_stays_held(bundle: Bundle, function: str) -> None:
    _, cuda, target = mocked()
    path = engine(bundle, target)
    cuda.fails[function] = 2
    with pytest.raises(LabError, match=rf"cudaErrorMemoryAllocation in {function} .*close other programs"):
        TensorRTRunner(path, target)
    assert cuda.held == {}


def test_a_context_without_memory_is_told(bundle: Bundle) -> None:
    module, _, target = mocked()
    with TensorRTRunner(engine(bundle, target), target) as runner:
        module.no_memory = True
        with pytest.raises(LabError, match="has no memory for an execution context"):
            runner.infer({"image": images(1)})


def test_an_engine_of_another_version_or_device_is_refused(bundle: Bundle) -> None:
    path = engine(bundle, mocked("10.3.0")[2])
    _, cuda, target = mocked("10.16.2")
    with pytest.raises(LabError, match=r"does not run here: TensorRT 10\.3\.0 -> 10\.16\.2"):
        TensorRTRunner(path, target)
    assert cuda.held == {}


def half(folder: Path, kind: int) -> Path:
    """A model with inputs and outputs of that type."""
    given = helper.make_tensor_value_info("x", kind, ["n", 4])
    out = helper.make_tensor_value_info("y", kind, ["n", 4])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"], "relu")], "g", [given], [out])
    path = folder / "half.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def swapped(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    monkeypatch.setattr(Bundle, "path", lambda self, variant: model)


def test_inputs_in_half_precision_are_taken_as_they_are(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, target = mocked()
    swapped(bundle, monkeypatch, half(tmp_path, TensorProto.FLOAT16))
    path = engine(bundle, target)
    with TensorRTRunner(path, target) as runner:
        given = np.array([[-1, 2, -3, 4]], np.float16)
        got = runner.infer({"x": given})["y"]
        assert got.dtype == np.float16
        assert got.tolist() == [[0, 2, 0, 4]]
        with pytest.raises(LabError, match="is float32 1 x 4, must be float16 N x 4"):
            runner.infer({"x": given.astype(np.float32)})
    with pytest.raises(LabError, match=r"inputs|input 'x' is float16 N x 4, the bundle's input spec says"):
        TensorRTRunner(path, target, bundle)


def test_inputs_that_numpy_does_not_know_are_refused(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, cuda, target = mocked()
    swapped(bundle, monkeypatch, half(tmp_path, TensorProto.BFLOAT16))
    monkeypatch.setattr("tests.fake_tensorrt.onnxruntime.InferenceSession", lambda *_, **__: None)
    with pytest.raises(LabError, match="'x' is BF16, which numpy does not know"):
        TensorRTRunner(engine(bundle, target), target)
    assert cuda.held == {}


def test_emulation_is_refused(bundle: Bundle) -> None:
    with pytest.raises(LabError, match="backend 'tensorrt' cannot emulate"):
        open_runner(bundle, "int8", "tensorrt", emulate=True)


def test_queries_in_flight_have_buffers_and_streams_of_their_own(bundle: Bundle) -> None:
    _, cuda, target = mocked()
    with TensorRTRunner(engine(bundle, target), target, in_flight=2) as runner:
        streams = len(cuda.queues)
        batches = [images(2, seed) for seed in range(8)]
        with ThreadPoolExecutor(2) as threads:
            found = list(threads.map(lambda batch: runner.infer({"image": batch})["logits"], batches))
        for batch, got in zip(batches, found, strict=True):
            np.testing.assert_array_equal(got, reference(bundle, batch))
    assert streams == 2
    assert cuda.held == cuda.queues == cuda.graphs == {}
