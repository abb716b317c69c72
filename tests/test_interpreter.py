"""Which libraries a Python can load: a library that crashes, hangs or is broken harms nobody."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import deploy.interpreter
from deploy.interpreter import ASKED, this_interpreter


@pytest.fixture
def libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder from which this Python and its children load first."""
    monkeypatch.syspath_prepend(tmp_path)
    for name in ASKED:  # what another test has imported stands before any folder
        if name != "numpy":
            monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def test_this_python_tells_what_it_has() -> None:
    found = this_interpreter()
    assert found.version == ".".join(map(str, sys.version_info[:3]))
    assert found.executable == sys.executable
    assert set(found.libraries) <= set(ASKED)
    assert found.libraries["numpy"].version is not None
    assert "CPUExecutionProvider" in found.libraries["onnxruntime"].told["providers"]
    assert found.usable("nothing", "numpy") == "numpy"


def test_libraries_that_crash_or_fail(libraries: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deploy.interpreter, "ASKED", ("numpy", "cv2", "tensorrt", "tensorrt_rtx"))
    (libraries / "cv2.py").write_text("import os\nos.abort()\n")
    (libraries / "tensorrt.py").write_text(
        "raise ImportError('libnvinfer.so.10: cannot open shared object')\n"
    )
    (libraries / "tensorrt_rtx").mkdir()  # a folder without content is no library
    found = this_interpreter()
    assert "signal 6" in (found.libraries["cv2"].error or "")
    assert found.libraries["tensorrt"].error == "ImportError: libnvinfer.so.10: cannot open shared object"
    assert found.libraries["numpy"].error is None
    assert "tensorrt_rtx" not in found.libraries
    assert found.usable("tensorrt", "cv2") is None


def test_one_that_hangs_is_ended(libraries: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deploy.interpreter, "ASKED", ("cv2",))
    (libraries / "cv2.py").write_text("import time\ntime.sleep(600)\n")
    assert this_interpreter(seconds=0.1).libraries["cv2"].error == "it did not answer in time"


def test_a_tensorrt_tells_its_dla_cores_or_why_it_cannot_start(
    libraries: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deploy.interpreter, "ASKED", ("tensorrt",))
    plain = "class Logger:\n    ERROR = 1\n    def __init__(self, least): pass\n\n__version__ = '10.3.0'\n"
    builder = "class Builder:\n    def __init__(self, logger): {}\n    num_DLA_cores = 2\n"
    (libraries / "tensorrt.py").write_text(plain + builder.format("print('a greeting')"))
    assert this_interpreter().libraries["tensorrt"].told == {"num_dla_cores": 2}
    (libraries / "tensorrt.py").write_text(
        plain + builder.format("raise TypeError('factory returned nullptr')")
    )
    told = this_interpreter().libraries["tensorrt"]
    assert (told.version, told.error) == ("10.3.0", None)
    assert told.told == {"fault": "TypeError: factory returned nullptr"}


def test_a_python_that_cannot_start_itself_loads_them_here(
    libraries: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under an emulator, whose Python is no program to the system."""

    def refuse(*arguments: object, **keywords: object) -> None:
        raise OSError(8, "Exec format error")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr(deploy.interpreter, "ASKED", ("numpy", "cv2"))
    monkeypatch.delitem(sys.modules, "cv2", raising=False)
    (libraries / "cv2.py").write_text("raise RuntimeError('made for another CPU')\n")
    found = this_interpreter()
    assert found.libraries["numpy"].version is not None
    assert found.libraries["cv2"].error == "RuntimeError: made for another CPU"
