"""OpenVINO on the CPU."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any

from deploy.errors import LabError
from deploy.manifest import Bundle
from deploy.runner import Arrays, Feed, TensorSpec, check_feed, check_model


class OpenVinoRunner:
    """See :class:`deploy.runner.Runner` and :func:`deploy.backends.open_runner`."""

    backend = "openvino"
    precision: str | None = None
    device: str | None = None

    def __init__(self, bundle: Bundle, variant: str, threads: int, emulate: bool, in_flight: int = 1) -> None:
        path = bundle.path(variant)
        compiled, self.backend_version = compile_model(path, threads, emulate, in_flight)
        self.threads = int(compiled.get_property("INFERENCE_NUM_THREADS"))
        self.inputs, self.outputs = _tensors(compiled.inputs), _tensors(compiled.outputs)
        check_model(str(path), self.inputs, self.outputs, bundle)
        self._names = [spec.name for spec in self.outputs]
        self._free: Any = SimpleQueue()
        for _ in range(in_flight):
            self._free.put(compiled.create_infer_request())

    def infer(self, feed: Feed) -> Arrays:
        check_feed(feed, self.inputs)
        request = self._free.get()
        # The input is read where it lies (a copy of 224 px takes 30 us): safe, because this call waits. The
        # outputs are copied: the next query writes over the request's own.
        try:
            found = request.infer(feed, share_inputs=True).to_tuple()
        finally:
            self._free.put(request)
        return dict(zip(self._names, found, strict=True))

    def __enter__(self) -> OpenVinoRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._free = None  # frees the weights; there is nothing else to close


def compile_model(path: Path, threads: int, emulate: bool, in_flight: int = 1) -> tuple[Any, str]:
    """The compiled model of an ONNX file, and OpenVINO's version. Raises LabError.

    in_flight: queries that run at once and share the threads.

    The batch stays as the file has it. A free one costs: 3 to 4 % of an INT8 ResNet-18 at 224 px against a
    model that was reshaped to batch 1 (3.06 and 2.95 ms, one AMX core), 1 % of the FP32 one.
    """
    try:
        import openvino
    except ImportError as error:
        raise LabError("the backend openvino is not installed: pip install openvino") from error
    version = str(openvino.__version__).partition("-")[0]
    try:
        return _core(openvino).compile_model(path, "CPU", _properties(threads, emulate, in_flight)), version
    # It wraps all of its own (bad protobuf, unknown operator, later opset) in RuntimeError, and a path that
    # is no file in others.
    except Exception as error:
        raise LabError(
            f"{path}: OpenVINO {version} cannot open it ({_reason(error)}); "
            "update openvino or export for a lower opset"
        ) from error


@cache
def _core(openvino: Any) -> Any:
    """One for the process.

    Where the CPU has AMX, each core gives this thread a stack for signals and puts back at its end what it
    found. Of two that overlap the last puts back what the first has freed, and then Ctrl-C is a crash.
    """
    return openvino.Core()


def _properties(threads: int, emulate: bool, in_flight: int) -> dict[str, Any]:
    properties: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",  # one query at a time has all threads
        "INFERENCE_NUM_THREADS": threads,
        # Each file runs in the types that are written in it. Left alone, a CPU with AMX or AVX512-BF16
        # computes float32 files in bfloat16 (ResNet-18: logits off by 0.4 % of their norm), and 2024.4
        # quantises the float input of a layer with 8-bit weights.
        "INFERENCE_PRECISION_HINT": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
    }
    if in_flight > 1:
        properties |= {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": in_flight}
    if emulate:
        # No public property says it. 2024.4 and 2026.4 take this one, and Q/DQ is then computed in float.
        properties["LP_TRANSFORMS_MODE"] = "NO"
    return properties


def _reason(error: Exception) -> str:
    """The last line that says something: above it stand the places in its own source."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in reversed(lines) if line), type(error).__name__)


def _tensors(ports: Any) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(p.any_name, _dtype(p), tuple(map(_side, p.partial_shape))) for p in ports)


def _dtype(port: Any) -> str:
    try:
        return str(port.element_type.to_dtype())
    except RuntimeError:  # numpy has no such type; bfloat16 is the common one
        return str(port.element_type.get_type_name())


def _side(dimension: Any) -> int | None:
    return None if dimension.is_dynamic else int(dimension.get_length())
