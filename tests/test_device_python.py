"""The Python that `make demo` ends with: it has what a device has, and the .pyz runs by it."""

from __future__ import annotations

import subprocess
import urllib.request
from pathlib import Path

from scripts.device_python import ABSENT, device_environment, device_python, found_by
from tests.archives import tiny_pyz


def test_the_pyz_runs_where_neither_torch_nor_hydra_is(tmp_path: Path) -> None:
    python = device_python(tmp_path / "python")
    assert {"torch", "hydra"} <= set(ABSENT)
    assert found_by(python, ABSENT) == []
    assert found_by(python, ["numpy", "onnxruntime", "PIL"]) == ["numpy", "onnxruntime", "PIL"]
    archive = tiny_pyz(tmp_path / "made")
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


def test_the_page_is_served_with_the_libraries_of_the_file(tmp_path: Path) -> None:
    python = device_python(tmp_path / "python")
    archive = tiny_pyz(tmp_path / "made")
    with subprocess.Popen(
        [str(python), str(archive), "demo", "--port", "0", "--source", "upload"],
        cwd=tmp_path, env=device_environment(tmp_path / "cache"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as serving:  # fmt: skip
        assert serving.stdout is not None
        assert serving.stderr is not None
        line = serving.stdout.readline()
        try:
            assert line.startswith("demo: http://127.0.0.1:"), serving.stderr.read()
            with urllib.request.urlopen(line.split()[1], timeout=20) as answer:
                assert b"<html" in answer.read()
        finally:
            serving.terminate()
        serving.communicate(timeout=20)
    assert serving.returncode == 0
