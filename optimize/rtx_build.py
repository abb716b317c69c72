"""An ONNX network built by TensorRT-RTX on a CPU, for the log that tells what it made of each layer.

The engine itself is thrown away: nothing can run it without a driver.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from deploy.engine_build import BuildOptions, build_plan
from deploy.errors import LabError
from deploy.trt_api import find_tensorrt
from optimize.layer_table import EngineTable, parse_log

_MODULE = "tensorrt_rtx_bindings"
COMPUTE_CAPABILITIES = ("8.6", "8.9", "12.0")
"""Those that are built. The same chips' 7.5 has no integer convolution; Orin's 8.7, Hopper's 9.0 and Thor's
11.0 this library does not know. 8.6 is the nearest to Orin: Ampere too."""


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
    """Parse and build `model` at batch 1, or its own; `path` is the file that it came from.

    Raises LabError where TensorRT-RTX is not installed, for an unknown compute capability, for a dynamic
    size, with all that the parser refuses in one, and where the build or its log is not as expected.
    """
    if not is_installed():
        raise LabError(
            "TensorRT-RTX is not installed: pip install tensorrt-rtx-cu13-bindings tensorrt-rtx-cu13-libs, "
            "which there are for Linux on x86-64"
        )
    if compute_capability not in COMPUTE_CAPABILITIES:
        raise LabError(
            f"compute capability {compute_capability}: must be one of {', '.join(COMPUTE_CAPABILITIES)}"
        )
    api = replace(find_tensorrt((_MODULE,)), verbose=True)
    fixed = all(
        i.type.tensor_type.shape.dim[:1] and i.type.tensor_type.shape.dim[0].dim_value
        for i in model.graph.input
    )
    plan = build_plan(
        api,
        model.SerializeToString(),
        BuildOptions() if fixed else BuildOptions(batch=(1, 1, 1)),
        label=str(path),
        compute_capabilities=(compute_capability,),
        workspace_bytes=None,
        timings=b"",
    )
    table = parse_log("\n".join(api.log.everything))
    return RtxBuild(api.version, compute_capability, plan.batch[0], table)
