"""The Python that `make demo` ends with: it has what a device has, and the .pyz runs by it."""

from __future__ import annotations

import subprocess
from pathlib import Path

from scripts.device_python import ABSENT, device_environment, device_python, found_by


def test_the_pyz_runs_where_neither_torch_nor_hydra_is(tmp_path: Path) -> None:
    python = device_python(tmp_path / "python")
    assert {"torch", "hydra"} <= set(ABSENT)
    assert found_by(python, ABSENT) == []
    assert found_by(python, ["numpy", "onnxruntime", "PIL"]) == ["numpy", "onnxruntime", "PIL"]
    for command in (
        ["verify"],
        ["targets"],
        ["bench", "--seconds", "0.003", "--warmup", "0", "--threads", "1"],
    ):
        done = subprocess.run(
            [str(python), str(archive), *command],
            cwd=tmp_path, env=device_environment(tmp_path / "cache"),
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
