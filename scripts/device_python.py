"""A Python as a device has it: numpy, ONNX Runtime and Pillow, and nothing else that is installed here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

LIBRARIES = ("numpy", "onnxruntime", "pillow")
ABSENT = ("torch", "hydra", "onnx", "yaml", "uvicorn", "deploy")
"""What must not be found, for that is what the .pyz is to do without or to bring along."""


def device_python(folder: Path) -> Path:
    """The Python of a new virtual environment in `folder`; its libraries are links to those of this one."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    (site,) = _ask(python, "sysconfig.get_path('purelib')")
    for library in LIBRARIES:
        distribution = metadata.distribution(library)
        for top in sorted({file.parts[0] for file in distribution.files or () if file.parts[0] != ".."}):
            (Path(site) / top).symlink_to(Path(str(distribution.locate_file(top))))
    return python


def found_by(python: Path, names: Sequence[str]) -> list[str]:
    """Which of those modules that Python can import."""
    return _ask(python, *(f"importlib.util.find_spec({name!r}) and {name!r}" for name in names))


def device_environment(cache: Path) -> Mapping[str, str]:
    """Without what leads to this repository's own environment; the .pyz unpacks into `cache`."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    return {**kept, "EDGELAB_CACHE": str(cache)}


def _ask(python: Path, *expressions: str) -> list[str]:
    """Their values in that Python, without those that are None."""
    code = f"import importlib.util, json, sysconfig; print(json.dumps([{', '.join(expressions)}]))"
    done = subprocess.run(
        [str(python), "-c", code],
        cwd=python.parent,  # not here, whose folders could be imported
        env=device_environment(python.parent), capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [value for value in json.loads(done.stdout) if value is not None]
