"""Targets and bundles for the tests of TensorRT engines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deploy.bundle import Bundle
from deploy.cuda import Cuda
from deploy.engine import Target, find_target
from deploy.trt_api import TensorRT, find_tensorrt
from tests.fake_cuda import FakeCuda
from tests.fake_tensorrt import fake


def real_rtx() -> TensorRT:
    """The real TensorRT-RTX, which builds here for GPUs elsewhere."""
    name = "tensorrt_rtx_bindings"
    pytest.importorskip(name, reason="TensorRT-RTX has wheels for x86-64 alone")
    return find_tensorrt([name])


def rtx(*capabilities: str) -> Target:
    """GPUs elsewhere, for the real TensorRT-RTX."""
    return find_target(real_rtx(), Cuda(FakeCuda()), capabilities or ("8.6",))


def mocked(version: str = "10.3.0", **cuda: Any) -> tuple[Any, FakeCuda, Target]:
    """(the mocked module, the mocked CUDA, this "device" as a target)."""
    device = FakeCuda(**cuda)
    module = fake(version, device)
    return module, device, find_target(TensorRT(module), Cuda(device))


def say_nothing(text: str) -> None:
    raise AssertionError(f"nothing is to be said, but: {text}")


def engines(bundle: Bundle) -> list[str]:
    """Names of the files in the bundle's folder of engines."""
    folder = bundle.root.with_name("bundle.engines")
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def lock(folder: Path) -> Path:
    return folder / "build.lock"
