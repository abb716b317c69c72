"""This Python and the libraries that it can load: each is loaded in a process of its own.

A library that was built for another CPU or another CUDA ends its process, and one that waits for a device
hangs; neither may happen to who asks.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from deploy.trt_api import NAMES as TENSORRT

ASKED = ("numpy", "PIL", "cv2", "yaml", "onnxruntime", "openvino", *TENSORRT, "pynvml")
_SECONDS = 60.0
_PROGRAM = """
import importlib, json
module = importlib.import_module(NAME)
told = {"version": str(getattr(module, "__version__", "") or "") or None}
try:
    if NAME == "onnxruntime":
        told["providers"] = list(module.get_available_providers())
    if NAME == "openvino":
        told["devices"] = list(module.Core().available_devices)
    if NAME == "tensorrt":
        told["num_dla_cores"] = module.Builder(module.Logger(module.Logger.ERROR)).num_DLA_cores
except Exception as error:
    told["fault"] = f"{type(error).__name__}: {error}"
print("\\n" + json.dumps(told))
"""


@dataclass(frozen=True)
class Library:
    """error: why it is installed and cannot be loaded. told: what it says of itself, by its name for it."""

    version: str | None = None
    error: str | None = None
    told: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Interpreter:
    """environment: whether it is a virtual one. libraries: of ASKED those that are installed."""

    version: str
    executable: str
    environment: bool
    libraries: Mapping[str, Library]

    @property
    def short(self) -> str:
        return ".".join(self.version.split(".")[:2])

    def usable(self, *names: str) -> str | None:
        """The first of these that can be loaded."""
        return next((n for n in names if n in self.libraries and self.libraries[n].error is None), None)


def this_interpreter(seconds: float = _SECONDS) -> Interpreter:
    """Never raises; every library has `seconds` to answer, all at the same time."""
    names = [name for name in ASKED if _installed(name)]
    running = {name: _start(name) for name in names}
    due = time.monotonic() + seconds
    libraries = {name: _answer(name, process, due) for name, process in running.items()}
    return Interpreter(platform.python_version(), sys.executable, sys.prefix != sys.base_prefix, libraries)


def _installed(name: str) -> bool:
    """A folder without content, such as one of stubs, is not."""
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return False
    return found is not None and found.origin is not None


def _start(name: str) -> subprocess.Popen[str] | None:
    try:
        return subprocess.Popen(
            [sys.executable, "-c", f"NAME = {name!r}\n{_PROGRAM}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
    except OSError:  # a Python that runs under an emulator cannot start itself
        return None


def _answer(name: str, process: subprocess.Popen[str] | None, due: float) -> Library:
    if process is None:
        return _load_here(name)
    try:
        out, err = process.communicate(timeout=max(0.1, due - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return Library(error="it did not answer in time")
    if process.returncode:
        last = (err.strip().splitlines() or ["it says nothing"])[-1][:200]
        killed = f"its process ended with signal {-process.returncode}: " if process.returncode < 0 else ""
        return Library(error=killed + last)
    return _read(name, out)


def _load_here(name: str) -> Library:
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            exec(_PROGRAM, {"NAME": name})
    except Exception as error:  # libraries' own loaders raise what they like
        return Library(error=f"{type(error).__name__}: {error}"[:200])
    return _read(name, printed.getvalue())


def _read(name: str, text: str) -> Library:
    try:
        told = json.loads(text.strip().splitlines()[-1])
        version = told.pop("version")
    except (IndexError, ValueError, KeyError):
        return Library(error="it gave no answer that can be read")
    return Library(version, None, told)
