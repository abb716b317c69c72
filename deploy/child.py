"""A Python process of our own that runs one function of `deploy`, from a folder or from a .pyz alike."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[1]
_CODE = """
import sys
sys.path.insert(0, sys.argv.pop(1))
from importlib import import_module
import_module(sys.argv[1]).main(*sys.argv[2:])
"""


def command(module: str, *arguments: str) -> list[str]:
    """To run `main(*arguments)` of that module."""
    return [sys.executable, "-c", _CODE, str(_ROOT), module, *arguments]


def run_child(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    return subprocess.run(command(module, *arguments), capture_output=True, text=True, check=False)
