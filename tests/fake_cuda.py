"""A mock of CUDA's runtime library, from its documented behaviour: no GPU is here.

Streams are lazy, as real ones are: what is queued happens when the stream is synchronised, so a result that
is read too early is a wrong one. Device memory is apart from host memory. It proves the order of our calls,
what is freed, and what follows from an error code. It proves nothing of a real driver, of kernels or timing.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field

Work = Callable[[], None]

OUT_OF_MEMORY, ILLEGAL_ADDRESS, NOT_IN_A_CAPTURE = 2, 700, 900
NAMES = {
    OUT_OF_MEMORY: ("cudaErrorMemoryAllocation", "out of memory"),
    ILLEGAL_ADDRESS: ("cudaErrorIllegalAddress", "an illegal memory access was encountered"),
    NOT_IN_A_CAPTURE: (
        "cudaErrorStreamCaptureUnsupported",
        "not permitted when a stream is capturing",
    ),
    901: ("cudaErrorStreamCaptureInvalidated", "operation failed due to a previous error during capture"),
    100: ("cudaErrorNoDevice", "no CUDA-capable device is detected"),
}


@dataclass
class FakeCuda:
    """See `deploy.cuda_calls.Calls`. `fails`: error codes by function, given once each. `kernel_error`: comes
    up when a stream is synchronised, and in every call from then on, as an illegal address does."""

    name: str = "Fake Orin"
    capability: tuple[int, int] = (8, 7)
    integrated: bool = False
    num_devices: int = 1
    memory: int = 1 << 30
    fails: dict[str, int] = field(default_factory=dict)
    called: list[str] = field(default_factory=list)
    invalid_capture: bool = False
    kernel_error: int = 0
    sticky: int = 0

    def __post_init__(self) -> None:
        self.held: dict[int, object] = {}
        self.queues: dict[int, list[Work]] = {}
        self.capturing: list[Work] | None = None
        self.graphs: dict[int, list[Work]] = {}
        self._next = 1

    def queue(self, stream: int, work: Work) -> None:
        """What a kernel launch does: into the graph while capturing, else onto the stream."""
        (self.queues[stream] if self.capturing is None else self.capturing).append(work)

    def call(self, function: str, *arguments: int) -> tuple[int, tuple[int, ...]]:
        self.called.append(function)
        if code := self.fails.pop(function, 0) or self.sticky:
            return code, (0, 0)
        return getattr(self, function)(*arguments)  # type: ignore[no-any-return]  # by the function's name

    def device_name(self, index: int) -> tuple[int, str]:
        return 0, self.name

    def describe(self, code: int) -> tuple[str, str]:
        return NAMES[code]

    def handle(self, thing: object) -> int:
        self._next += 1
        self.held[self._next] = thing
        return self._next

    def cudaGetDeviceCount(self) -> tuple[int, tuple[int, ...]]:  # noqa: N802
        return (0, (self.num_devices,)) if self.num_devices else (100, (0,))

    def cudaDeviceGetAttribute(self, attribute: int, device: int) -> tuple[int, tuple[int, ...]]:  # noqa: N802
        return 0, ({75: self.capability[0], 76: self.capability[1], 18: int(self.integrated)}[attribute],)

    def cudaMemGetInfo(self) -> tuple[int, tuple[int, ...]]:  # noqa: N802
        return 0, (self.memory, 2 * self.memory)

    def cudaGetLastError(self) -> tuple[int, tuple[int, ...]]:  # noqa: N802
        return 0, ()

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[int, tuple[int, ...]]:  # noqa: N802
        stream = self.handle("stream")
        self.queues[stream] = []
        return 0, (stream,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[int, tuple[int, ...]]:  # noqa: N802
        if self.capturing is not None:
            self.invalid_capture = True
            return NOT_IN_A_CAPTURE, ()
        for work in self.queues[stream]:
            work()
        self.queues[stream].clear()
        self.sticky = self.kernel_error
        return self.sticky, ()

    def cudaStreamDestroy(self, stream: int) -> tuple[int, tuple[int, ...]]:  # noqa: N802
        del self.held[stream], self.queues[stream]
        return 0, ()

    def _allocate(self, size: int) -> tuple[int, tuple[int, ...]]:
        if size > self.memory:
            return OUT_OF_MEMORY, (0,)
        buffer = ctypes.create_string_buffer(size)
        address = ctypes.addressof(buffer)
        self.held[address] = buffer
        return 0, (address,)

    def cudaMalloc(self, size: int) -> tuple[int, tuple[int, ...]]:  # noqa: N802
        return self._allocate(size)

    def cudaFree(self, address: int) -> tuple[int, tuple[int, ...]]:  # noqa: N802
        del self.held[address]
        return 0, ()

    def cudaHostAlloc(self, size: int, flags: int) -> tuple[int, tuple[int, ...]]:  # noqa: N802
        assert flags in (0, 2)
        return self._allocate(size)

    def cudaHostGetDevicePointer(self, host: int, flags: int) -> tuple[int, tuple[int, ...]]:  # noqa: N802
        return 0, (host,)

    cudaFreeHost = cudaFree  # noqa: N815

    def cudaMemcpyAsync(  # noqa: N802
        self, target: int, source: int, size: int, kind: int, stream: int
    ) -> tuple[int, tuple[int, ...]]:
        assert kind in (1, 2)

        def copy() -> None:
            ctypes.memmove(target, source, size)

        self.queue(stream, copy)
        return 0, ()

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple[int, tuple[int, ...]]:  # noqa: N802
        self.capturing = []
        return 0, ()

    def cudaStreamEndCapture(self, stream: int) -> tuple[int, tuple[int, ...]]:  # noqa: N802
        recorded, self.capturing = self.capturing, None
        if self.invalid_capture:
            self.invalid_capture = False
            return 901, (0,)
        return 0, (self.handle(recorded),)

    def cudaGraphInstantiate(self, graph: int, flags: int) -> tuple[int, tuple[int, ...]]:  # noqa: N802
        executable = self.handle("graph")
        self.graphs[executable] = self.held[graph]  # type: ignore[assignment]
        return 0, (executable,)

    def cudaGraphDestroy(self, graph: int) -> tuple[int, tuple[int, ...]]:  # noqa: N802
        del self.held[graph]
        return 0, ()

    def cudaGraphLaunch(self, graph: int, stream: int) -> tuple[int, tuple[int, ...]]:  # noqa: N802
        self.queues[stream] += self.graphs[graph]
        return 0, ()

    def cudaGraphExecDestroy(self, graph: int) -> tuple[int, tuple[int, ...]]:  # noqa: N802
        del self.held[graph], self.graphs[graph]
        return 0, ()
