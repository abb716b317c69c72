"""One engine build at a time on a machine, across processes."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.build_lock import build_lock
from deploy.errors import LabError
from tests.engines import lock, say_nothing
from tests.processes import ROOT

HOLD = """
import sys
from pathlib import Path
from deploy.build_lock import build_lock
with build_lock("int8 of digits", print, Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


def holder(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_build_waits_and_says_for_whom(tmp_path: Path) -> None:
    path = lock(tmp_path)
    process = holder(path)
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        assert process.stdin is not None
        process.stdin.write("\n")  # lets the first one end, and so this one go on
        process.stdin.flush()

    with build_lock("fp16 of digits", say, path):
        assert process.wait(30) == 0
        with path.open() as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert said == [
        f"fp16 of digits: waits until process {process.pid}, which builds int8 of digits, has built: one "
        f"build at a time on this machine ({path})"
    ]


def test_a_build_that_dies_lets_go(tmp_path: Path) -> None:
    process = holder(lock(tmp_path))
    process.kill()
    process.wait(30)
    with build_lock("fp16", say_nothing, lock(tmp_path)):
        assert lock(tmp_path).stat().st_mode & 0o777 == 0o666


def test_a_lock_that_cannot_be_opened_is_told(tmp_path: Path) -> None:
    with (
        pytest.raises(LabError, match="the lock of engine builds cannot be opened"),
        build_lock("x", say_nothing, tmp_path),
    ):
        pass
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LabError, match="cannot be opened"), build_lock("x", say_nothing, tmp_path / "link"):
        pass
