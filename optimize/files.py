"""Files that appear complete or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import onnx


def write_bytes(data: bytes, path: Path) -> None:
    """Write beside `path` under a temporary name, sync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_model(model: onnx.ModelProto, path: Path) -> None:
    """Check `model` with onnx.checker (shapes and types too) and write it as one file."""
    onnx.checker.check_model(model, full_check=True)
    write_bytes(model.SerializeToString(), path)
