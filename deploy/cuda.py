"""The part of CUDA's runtime that an inference takes: memory, a stream, a graph, and what the device is."""

from __future__ import annotations

from dataclasses import dataclass

from deploy.cuda_calls import Calls, find_calls
from deploy.errors import LabError

# Values of the enumerations in CUDA's driver_types.h.
_CAPABILITY_MAJOR, _CAPABILITY_MINOR, _INTEGRATED = 75, 76, 18
_NON_BLOCKING = 1
_MAPPED = 2
_TO_DEVICE, _TO_HOST = 1, 2
_THREAD_LOCAL = 1
_ABSENT = {
    "cudaErrorNoDevice": "this machine shows no NVIDIA GPU: run on the device, or give the container one",
    "cudaErrorInsufficientDriver": (
        "no NVIDIA driver is loaded, or one that is older than this CUDA: install or update the driver "
        "(on a Jetson: flash the JetPack that this TensorRT belongs to)"
    ),
    "cudaErrorSystemDriverMismatch": "driver and CUDA do not belong together: restart after the update",
    "cudaErrorMemoryAllocation": (
        "the GPU's memory is full: close other programs, or build for a smaller batch"
    ),
    "cudaErrorDevicesUnavailable": "the GPU is held by another program: close it, or wait for it",
}


class CudaError(RuntimeError):
    """A call that failed, with CUDA's name for it. After most of them the process can use the GPU no more."""

    def __init__(self, function: str, name: str, words: str) -> None:
        super().__init__(f"{name} in {function}: {words}")
        self.name = name


@dataclass(frozen=True)
class Device:
    """integrated: CPU and GPU share their memory, as on every Jetson."""

    name: str
    compute_capability: str
    integrated: bool

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.compute_capability})"


class Cuda:
    """Device 0 of this process. Every method raises CudaError, or LabError for what the user can mend."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    def device(self) -> Device:
        """Raises LabError where there is none."""
        (count,) = self._run("cudaGetDeviceCount")
        if not count:
            raise LabError(f"CUDA: {_ABSENT['cudaErrorNoDevice']}")
        code, name = self._calls.device_name(0)
        self._check(code, "cudaGetDeviceProperties")
        major, minor, integrated = (
            self._run("cudaDeviceGetAttribute", attribute, 0)[0]
            for attribute in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR, _INTEGRATED)
        )
        return Device(name, f"{major}.{minor}", bool(integrated))

    def free_bytes(self) -> int:
        """Free memory of the GPU."""
        return self._run("cudaMemGetInfo")[0]

    def stream(self) -> int:
        return self._run("cudaStreamCreateWithFlags", _NON_BLOCKING)[0]

    def synchronize(self, stream: int) -> None:
        """Wait until all of the stream is done; errors of its kernels come up here."""
        self._run("cudaStreamSynchronize", stream)

    def destroy_stream(self, stream: int) -> None:
        self._run("cudaStreamDestroy", stream)

    def malloc(self, num_bytes: int) -> int:
        return self._run("cudaMalloc", num_bytes)[0]

    def free(self, address: int) -> None:
        self._run("cudaFree", address)

    def host_alloc(self, num_bytes: int, *, mapped: bool) -> int:
        """Host memory that is never paged out; `mapped`: the GPU can read and write it where it lies."""
        return self._run("cudaHostAlloc", num_bytes, _MAPPED if mapped else 0)[0]

    def mapped_address(self, host: int) -> int:
        """Where the GPU finds mapped host memory."""
        return self._run("cudaHostGetDevicePointer", host, 0)[0]

    def free_host(self, address: int) -> None:
        self._run("cudaFreeHost", address)

    def upload(self, device: int, host: int, num_bytes: int, stream: int) -> None:
        self._run("cudaMemcpyAsync", device, host, num_bytes, _TO_DEVICE, stream)

    def download(self, host: int, device: int, num_bytes: int, stream: int) -> None:
        self._run("cudaMemcpyAsync", host, device, num_bytes, _TO_HOST, stream)

    def begin_capture(self, stream: int) -> None:
        """From here on the stream records what it is given. Other threads may go on calling CUDA."""
        self._run("cudaStreamBeginCapture", stream, _THREAD_LOCAL)

    def end_capture(self, stream: int) -> int:
        """The recorded graph, ready to launch."""
        (graph,) = self._run("cudaStreamEndCapture", stream)
        try:
            return self._run("cudaGraphInstantiate", graph, 0)[0]
        finally:
            self._run("cudaGraphDestroy", graph)

    def drop_capture(self, stream: int) -> None:
        """After a capture that failed: the stream is an ordinary one again."""
        _, (graph,) = self._calls.call("cudaStreamEndCapture", stream)
        if graph:
            self._run("cudaGraphDestroy", graph)
        self._calls.call("cudaGetLastError")  # it would come up in the next call otherwise

    def launch(self, graph: int, stream: int) -> None:
        self._run("cudaGraphLaunch", graph, stream)

    def destroy_graph(self, graph: int) -> None:
        self._run("cudaGraphExecDestroy", graph)

    def _run(self, function: str, *arguments: int) -> tuple[int, ...]:
        code, filled = self._calls.call(function, *arguments)
        self._check(code, function)
        return filled

    def _check(self, code: int, function: str) -> None:
        if code:
            name, words = self._calls.describe(code)
            if name in _ABSENT:
                raise LabError(f"CUDA: {name} in {function} ({words}): {_ABSENT[name]}")
            raise CudaError(function, name, words)


def find_cuda() -> Cuda:
    """Raises LabError where CUDA's runtime library is not there; a driver is looked for by `device`."""
    return Cuda(find_calls())
