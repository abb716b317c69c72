"""CUDA's runtime on a real GPU, through cuda-python and through ctypes: memory, streams, graphs, errors.

No TensorRT is needed. Where a query is captured, a copy on the GPU stands for the network's kernels.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from deploy.cuda import Cuda, CudaError
from deploy.cuda_buffer import Buffer
from deploy.cuda_calls import CudaPython, Cudart, _load
from deploy.errors import LabError
from deploy.runner import TensorSpec
from deploy.trt_query import Query
from tests.processes import python

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no NVIDIA GPU here"),
]
SIZE = 1 << 20
DEFAULT_KIND = 4  # cudaMemcpyDefault: the addresses say between which memories


@pytest.fixture(params=["cuda-python", "ctypes"])
def cuda(request: pytest.FixtureRequest) -> Cuda:
    if request.param == "ctypes":
        return Cuda(Cudart(_load()))
    return Cuda(CudaPython(importlib.import_module("cuda.bindings.runtime")))


@pytest.fixture
def stream(cuda: Cuda) -> Iterator[int]:
    found = cuda.stream()
    yield found
    cuda.destroy_stream(found)


@pytest.fixture(params=[False, True], ids=["copied", "zero-copy"])
def buffers(request: pytest.FixtureRequest, cuda: Cuda) -> Iterator[tuple[Buffer, Buffer]]:
    pair = Buffer(cuda, SIZE, zero_copy=request.param), Buffer(cuda, SIZE, zero_copy=request.param)
    yield pair
    for buffer in pair:
        buffer.close()


def work(cuda: Cuda, source: Buffer, target: Buffer, stream: int) -> None:
    """On the GPU: what is in one buffer goes to the other."""
    cuda._run("cudaMemcpyAsync", target.device, source.device, SIZE, DEFAULT_KIND, stream)


def drawn(seed: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, SIZE, np.uint8)


def test_the_device_is_the_one_that_torch_sees(cuda: Cuda) -> None:
    seen = torch.cuda.get_device_properties(0)
    found = cuda.device()
    assert (found.name, found.compute_capability) == (seen.name, f"{seen.major}.{seen.minor}")
    assert found.integrated == bool(seen.is_integrated)


def test_memory_is_taken_and_given_back(cuda: Cuda) -> None:
    size = 256 << 20
    before = cuda.free_bytes()
    address = cuda.malloc(size)
    assert before - cuda.free_bytes() >= size
    cuda.free(address)
    assert cuda.free_bytes() >= before


def test_more_memory_than_there_is_is_told(cuda: Cuda) -> None:
    with pytest.raises(LabError, match=r"cudaErrorMemoryAllocation in cudaMalloc .*the GPU's memory is full"):
        cuda.malloc(1 << 45)
    assert cuda.free_bytes() > 0


def test_a_wrong_call_bears_cudas_name(cuda: Cuda) -> None:
    with pytest.raises(CudaError, match="cudaErrorInvalidValue in cudaFree"):
        cuda.free(SIZE)
    assert cuda.free_bytes() > 0


def test_bytes_go_there_and_back(cuda: Cuda, stream: int, buffers: tuple[Buffer, Buffer]) -> None:
    source, target = buffers
    source.host[:], target.host[:] = drawn(0), 0
    source.upload(SIZE, stream)
    work(cuda, source, target, stream)
    target.download(SIZE, stream)
    cuda.synchronize(stream)
    np.testing.assert_array_equal(target.host, drawn(0))


def test_a_graph_takes_what_lies_there_when_it_is_launched(
    cuda: Cuda, stream: int, buffers: tuple[Buffer, Buffer]
) -> None:
    source, target = buffers
    cuda.begin_capture(stream)
    source.upload(SIZE, stream)
    work(cuda, source, target, stream)
    target.download(SIZE, stream)
    graph = cuda.end_capture(stream)
    target.host[:] = 0
    cuda.synchronize(stream)
    assert not target.host.any()  # a capture runs nothing
    for seed in range(3):
        source.host[:] = drawn(seed)
        cuda.launch(graph, stream)
        cuda.synchronize(stream)
        np.testing.assert_array_equal(target.host, drawn(seed))
    cuda.destroy_graph(graph)


def test_after_a_capture_that_failed_the_stream_is_an_ordinary_one(
    cuda: Cuda, stream: int, buffers: tuple[Buffer, Buffer]
) -> None:
    source, target = buffers
    cuda.begin_capture(stream)
    with pytest.raises(CudaError, match="cudaErrorStreamCaptureUnsupported in cudaStreamSynchronize"):
        cuda.synchronize(stream)
    with pytest.raises(CudaError, match="cudaErrorStreamCaptureInvalidated in cudaStreamEndCapture"):
        cuda.end_capture(stream)
    cuda.drop_capture(stream)
    source.host[:] = drawn(1)
    source.upload(SIZE, stream)
    work(cuda, source, target, stream)
    target.download(SIZE, stream)
    cuda.synchronize(stream)
    np.testing.assert_array_equal(target.host, drawn(1))


def test_a_capture_that_is_dropped_leaves_nothing_behind(cuda: Cuda, stream: int) -> None:
    cuda.begin_capture(stream)
    cuda.drop_capture(stream)
    cuda.begin_capture(stream)
    cuda.destroy_graph(cuda.end_capture(stream))
    cuda.synchronize(stream)


def test_while_one_thread_captures_another_may_allocate(cuda: Cuda, stream: int) -> None:
    failed: list[BaseException] = []

    def allocate() -> None:
        try:
            cuda.free(cuda.malloc(SIZE))
        except BaseException as error:
            failed.append(error)

    cuda.begin_capture(stream)
    thread = threading.Thread(target=allocate)
    thread.start()
    thread.join()
    cuda.destroy_graph(cuda.end_capture(stream))
    assert failed == []


class Copying:
    """In the place of TensorRT's execution context: its network copies the input to the output."""

    def __init__(self, cuda: Cuda, captured: bool) -> None:
        self._cuda, self._captured = cuda, captured
        self._addresses: dict[str, int] = {}
        self._shape: tuple[int, ...] = ()
        self.runs = 0

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shape = shape
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._shape

    def set_tensor_address(self, name: str, address: int) -> None:
        self._addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        self.runs += 1
        size = 4 * int(np.prod(self._shape))
        given, made = self._addresses["x"], self._addresses["y"]
        self._cuda._run("cudaMemcpyAsync", made, given, size, DEFAULT_KIND, stream)
        if not self._captured and self.runs > 1:
            self._cuda.synchronize(stream)
        return True


@pytest.mark.parametrize("captured", [True, False])
def test_a_query_is_captured_once_and_right_each_time(
    cuda: Cuda, stream: int, buffers: tuple[Buffer, Buffer], captured: bool
) -> None:
    context, said = Copying(cuda, captured), list[str]()
    api: Any = SimpleNamespace(context=lambda engine: context)
    specs = [TensorSpec("x", "float32", (None, 16))], [TensorSpec("y", "float32", (None, 16))]
    engine: Any = None
    query = Query(api, cuda, engine, specs, dict(zip("xy", buffers, strict=True)), 3, stream, said.append)
    kept = []
    for seed in range(4):
        x = np.random.default_rng(seed).normal(size=(3, 16)).astype(np.float32)
        kept.append((query.run({"x": x})["y"], x))
    for got, x in kept:
        np.testing.assert_array_equal(got, x)
    query.close()
    if captured:
        assert (context.runs, said) == (2, [])
    else:
        assert context.runs == 6
        assert "without a CUDA graph" in said[0]
        assert "cudaErrorStreamCaptureUnsupported" in said[0]


KERNEL_ERROR = """
import importlib, sys, torch
from deploy.cuda import Cuda, CudaError
from deploy.cuda_calls import CudaPython, Cudart, _load
ctypes = sys.argv[1] == "ctypes"
cuda = Cuda(Cudart(_load()) if ctypes else CudaPython(importlib.import_module("cuda.bindings.runtime")))
stream = cuda.stream()
with torch.cuda.stream(torch.cuda.ExternalStream(stream)):
    torch.zeros(4, device="cuda")[torch.tensor([9], device="cuda")]
for call in (lambda: cuda.synchronize(stream), cuda.free_bytes):
    try:
        call()
    except CudaError as error:
        print(error, flush=True)
"""


@pytest.mark.parametrize("library", ["cuda-python", "ctypes"])
def test_what_a_kernel_did_wrong_comes_up_where_the_stream_is_waited_for(library: str) -> None:
    done = python("-c", KERNEL_ERROR, library)
    lines = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "cudaErrorAssert in cudaStreamSynchronize",
        "cudaErrorAssert in cudaMemGetInfo",
    ], done.stderr
