"""The doctor's question to a tree of files, and Pythons of devices that are not at hand.

What a library tells of itself (providers, DLA cores) is documented in its own API reference.
"""

from __future__ import annotations

from pathlib import Path

from deploy.doctor import Diagnosis, examine
from deploy.finding import Finding
from deploy.interpreter import Interpreter, Library
from deploy.manifest import Bundle
from tests.system_tree import Files, write_tree

KEYS = (
    "machine", "jetpack", "python", "numpy", "images", "cuda", "tensorrt", "onnxruntime", "openvino", "dla",
    "memory", "swap", "disk", "power_mode", "clocks", "temperature", "throttling", "power_meter", "cameras",
    "programs", "backends",
)  # fmt: skip
"""What programs read: none may go or be renamed."""


def interpreter(
    version: str = "3.10.12", *, environment: bool = False, **more: Library | None
) -> Interpreter:
    """The Python of a device, with what the commands need; None takes something away."""
    libraries: dict[str, Library | None] = {
        "numpy": Library("1.26.4"),
        "PIL": Library("10.3.0"),
        "yaml": Library("6.0.1"),
        "onnxruntime": Library("1.20.1", None, {"providers": ["CPUExecutionProvider"]}),
        **more,
    }
    there = {name: library for name, library in libraries.items() if library is not None}
    return Interpreter(version, "/usr/bin/python3", environment, there)


def tensorrt(version: str, num_dla_cores: int = 0) -> Library:
    return Library(version, None, {"num_dla_cores": num_dla_cores})


def looked(
    root: Path, files: Files, python: Interpreter | None = None, bundle: Bundle | None = None
) -> tuple[Diagnosis, dict[str, Finding]]:
    diagnosis = examine(bundle, write_tree(root, files), python or interpreter())
    return diagnosis, {finding.key: finding for finding in diagnosis.findings}
