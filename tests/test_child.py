"""Processes that `bench` starts for itself, from a folder and from a zip alike; a failure is one error."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from deploy.bundle import Bundle
from deploy.child import run_child
from deploy.errors import LabError
from deploy.memory import Memory, peak_memory
from tests.test_deploy_bundle import tiny_bundle

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("child"))


def test_it_runs_from_a_zip(bundle: Bundle, tmp_path: Path) -> None:
    """Whatever lies in the current folder: a stranger's `deploy` is not taken for ours."""
    archive = tmp_path / "edge.pyz"
    with zipfile.ZipFile(archive, "w") as file:
        for path in (ROOT / "deploy").glob("*.py"):
            file.write(path, f"deploy/{path.name}")
    (tmp_path / "deploy").mkdir()
    (tmp_path / "deploy" / "__init__.py").write_text("raise SystemExit('a stranger')")
    code = f"""
import sys; sys.path.insert(0, {str(archive)!r})
from deploy import memory, bundle
assert memory.__file__.startswith({str(archive)!r})
print(memory.peak_memory(bundle.open_bundle({str(bundle.root)!r}), "fp32", "onnxruntime", 1, 1).peak_mib)
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert 20 < float(done.stdout) < 2000


def test_memory_counts_what_queries_in_flight_take(bundle: Bundle) -> None:
    found = run_child("deploy.memory", str(bundle.root), "fp32", "onnxruntime", "1", "2", "1")
    assert set(json.loads(found.stdout)) == {"peak_mib", "device_mib"}
    memory = peak_memory(bundle, "fp32", "onnxruntime", 1, 2)
    assert memory.peak_mib is not None
    assert memory == Memory(memory.peak_mib, None)  # on a CPU there is no other memory


def test_a_process_that_dies_is_told(bundle: Bundle) -> None:
    with pytest.raises(LabError, match=r"(?s)fp32: its process ended with 1 .* at batch 2: .*in flight"):
        peak_memory(bundle, "fp32", "onnxruntime", 1, 2, in_flight=2)
