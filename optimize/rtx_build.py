"""An ONNX network built by TensorRT-RTX on a CPU, for the log that tells what it made of each layer.

The engine itself is thrown away: nothing can run it without a driver.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from deploy.errors import LabError
from optimize.layer_table import EngineTable, parse_log

_MODULE = "tensorrt_rtx_bindings"
COMPUTE_CAPABILITIES = ("8.6", "8.9", "12.0")
"""Those that are built. The same chips' 7.5 has no integer convolution; Orin's 8.7, Hopper's 9.0 and Thor's
11.0 this library does not know. 8.6 is the nearest to Orin: Ampere too."""
_BATCH = 1
_WORDS = 400


@dataclass(frozen=True)
class RtxBuild:
    version: str
    """Of TensorRT-RTX."""
    compute_capability: str
    batch: int
    table: EngineTable


def is_installed() -> bool:
    return importlib.util.find_spec(_MODULE) is not None


def build(model: onnx.ModelProto, path: Path, compute_capability: str) -> RtxBuild:
    """Parse and build `model` at batch 1; `path` is the file that it came from.

    Raises LabError where TensorRT-RTX is not installed, for an unknown compute capability, for a dynamic
    size, with all that the parser refuses in one, and where the build or its log is not as expected.
    """
    trt = _library()
    if compute_capability not in COMPUTE_CAPABILITIES:
        raise LabError(
            f"compute capability {compute_capability}: must be one of {', '.join(COMPUTE_CAPABILITIES)}"
        )
    log = _Log(trt)
    builder = trt.Builder(log.logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log.logger)
    if not parser.parse(model.SerializeToString(), str(path)):
        raise LabError(_refused(parser, model, path))
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.num_compute_capabilities = 1
    name = f"SM{compute_capability.replace('.', '')}"
    config.set_compute_capability(getattr(trt.ComputeCapability, name), 0)
    config.add_optimization_profile(_profile(builder, network, path))
    if builder.build_serialized_network(network, config) is None:
        errors = "; ".join(log.errors) or "it gives no reason"
        raise LabError(f"{path}: TensorRT-RTX cannot build it for {compute_capability}: {errors[:_WORDS]}")
    return RtxBuild(trt.__version__, compute_capability, _BATCH, parse_log("\n".join(log.messages)))


class _Log:
    """Keeps what the library says, at every severity."""

    def __init__(self, trt: Any) -> None:
        self.messages: list[str] = []
        self.errors: list[str] = []
        severe = (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR)

        def log(_: Any, severity: Any, message: str) -> None:
            self.messages.append(message)
            if severity in severe:
                self.errors.append(message)

        base = trt.ILogger
        self.logger = type("Logger", (base,), {"__init__": lambda this: base.__init__(this), "log": log})()


def _library() -> Any:
    try:
        return importlib.import_module(_MODULE)
    except ImportError as error:
        raise LabError(
            f"TensorRT-RTX does not load ({error}); install tensorrt-rtx-cu13-bindings and "
            "tensorrt-rtx-cu13-libs, which there are for Linux on x86-64"
        ) from error


def _profile(builder: Any, network: Any, path: Path) -> Any:
    profile = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        batch, *size = tuple(tensor.shape) or (1,)
        if any(dim < 0 for dim in size):
            raise LabError(
                f"{path}: input {tensor.name!r} has shape {tuple(tensor.shape)}, but only the batch may be "
                "dynamic; export it with a fixed size"
            )
        if batch < 0:
            shape = (_BATCH, *size)
            profile.set_shape(tensor.name, shape, shape, shape)
    return profile


def _refused(parser: Any, model: onnx.ModelProto, path: Path) -> str:
    nodes = model.graph.node
    told = []
    for i in range(parser.num_errors):
        error = parser.get_error(i)
        known = 0 <= error.node() < len(nodes)
        where = f"{nodes[error.node()].name} ({nodes[error.node()].op_type}): " if known else ""
        # Without a driver each of them ends with CUDA's own complaint about that.
        lines = [line for line in error.desc().splitlines() if "cudaError" not in line]
        told.append(where + " ".join(lines))
    return f"{path}: TensorRT's parser refuses it: " + "; ".join(told)
