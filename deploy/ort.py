"""ONNX Runtime on the CPU."""

from __future__ import annotations

import platform
from pathlib import Path
from types import TracebackType
from typing import Any

from deploy.errors import LabError
from deploy.machine import has_int8_dot_product
from deploy.manifest import Bundle
from deploy.runner import Arrays, Feed, TensorSpec, check_feed, check_model


class OrtRunner:
    """See :class:`deploy.runner.Runner` and :func:`deploy.backends.open_runner`."""

    backend = "onnxruntime"
    precision: str | None = None
    device: str | None = None

    def __init__(
        self,
        bundle: Bundle,
        variant: str,
        threads: int,
        emulate: bool,
        in_flight: int = 1,
        in_turn: bool = False,
    ) -> None:
        path = bundle.path(variant)
        # One session takes queries from several threads at once, and then each runs in its caller's.
        session, self.backend_version = open_session(path, threads // in_flight, emulate, in_turn)
        self.threads = threads
        self._session: Any = session
        self.inputs, self.outputs = _tensors(session.get_inputs()), _tensors(session.get_outputs())
        self._names = [spec.name for spec in self.outputs]
        check_model(str(path), self.inputs, self.outputs, bundle)

    def infer(self, feed: Feed) -> Arrays:
        check_feed(feed, self.inputs)
        return dict(zip(self._names, self._session.run(self._names, feed), strict=True))

    def __enter__(self) -> OrtRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session = None  # frees the weights; there is nothing else to close


def open_session(path: Path, threads: int, emulate: bool, in_turn: bool = False) -> tuple[Any, str]:
    """The session of an ONNX file, and ONNX Runtime's version. Raises LabError."""
    try:
        import onnxruntime
    except ImportError as error:
        raise LabError("the backend onnxruntime is not installed: pip install onnxruntime") from error
    version = str(onnxruntime.__version__)
    options = session_options(onnxruntime, threads, emulate, in_turn)
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]), version
    # Its exceptions (bad protobuf, unknown operator, later opset) share no base but Exception.
    except Exception as error:
        raise LabError(
            f"{path}: ONNX Runtime {version} cannot open it ({error}); "
            "update onnxruntime or export for a lower opset"
        ) from error


def session_options(onnxruntime: Any, threads: int, emulate: bool, in_turn: bool = False) -> Any:
    """How the runner opens a file; `emulate` and `in_turn` as in :func:`deploy.backends.open_runner`."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # warnings about its own graph rewriting would fill the terminal
    if emulate:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if in_turn:
        # Its threads wait busily after a query, on two cores for 40 ms of CPU time: the next runner's query
        # finds the cores taken, and a picture a second heats a device for nothing.
        options.add_session_config_entry("session.force_spinning_stop", "1")
    if platform.machine() in ("x86_64", "AMD64") and not has_int8_dot_product():
        # Without VNNI the u8 x s8 kernels add pairs of products in 16 bits, which saturate: wrong numbers,
        # not just coarse ones. Measured on an AVX2 CPU, ResNet-18 at 64 px, relative error of the logits to
        # the emulated graph: S8 Q/DQ 0.197 without this option and 0.063 with it, U8 0.073 and 0.035 (a
        # last-bit difference in rounding gives as much). It costs: U8 3.0 ms becomes 4.0 ms at batch 1.
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


# ONNX Runtime writes a type as `tensor(float)`; those that numpy names alike are left out.
_DTYPES = {"float": "float32", "double": "float64"}


def _tensors(arguments: Any) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(a.name, _dtype(a.type), tuple(_side(d) for d in a.shape)) for a in arguments)


def _dtype(kind: str) -> str:
    name = kind.removeprefix("tensor(").removesuffix(")")
    return _DTYPES.get(name, name)


def _side(dimension: Any) -> int | None:
    """A free side is a name or None there."""
    return dimension if isinstance(dimension, int) else None
