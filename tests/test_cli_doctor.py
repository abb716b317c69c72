"""`python -m deploy doctor` on this very machine, as a user calls it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import deploy.interpreter
from deploy.__main__ import main
from tests.doctor_python import KEYS
from tests.processes import python
from tests.test_deploy_bundle import edit, tiny_bundle


@pytest.fixture
def few_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them take seconds to load."""
    monkeypatch.setattr(deploy.interpreter, "ASKED", ("numpy", "PIL", "onnxruntime"))


def test_without_a_bundle_it_tells_of_this_machine() -> None:
    done = python("-m", "deploy", "doctor")
    assert done.returncode == 0, done.stderr
    assert "Backends that work here: onnxruntime" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80 + len(str(Path.cwd()))


@pytest.mark.usefixtures("few_libraries")
def test_with_a_bundle_it_tells_what_can_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = tiny_bundle(tmp_path)
    before = sorted(path for path in tmp_path.rglob("*"))
    assert main(["doctor", str(bundle.root), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert tuple(told["findings"]) == KEYS
    assert told["can_run"] is True
    assert told["bundle"] == "tiny"
    assert [(one["name"], one["backends"]["onnxruntime"]) for one in told["variants"]] == [
        ("fp32", None), ("int8", None),
    ]  # fmt: skip
    assert sorted(path for path in tmp_path.rglob("*")) == before


@pytest.mark.usefixtures("few_libraries")
def test_the_bundle_of_a_pyz_is_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = tiny_bundle(tmp_path)
    assert main(["doctor"], own=bundle.root) == 0
    assert "bundle tiny:" in capsys.readouterr().out


@pytest.mark.usefixtures("few_libraries")
def test_a_bundle_that_nothing_runs_is_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only TensorRT on a DLA reads such a variant."""
    bundle = tiny_bundle(tmp_path)
    manifest = json.loads((bundle.root / "bundle.json").read_text())
    edit(bundle, variants=[one | {"backend": "tensorrt-dla"} for one in manifest["variants"]])
    assert main(["doctor", str(bundle.root)]) == 1
    assert "Nothing of this bundle can run here." in capsys.readouterr().out


def test_no_bundle_there_is_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    bundle = tiny_bundle(tmp_path)
    shutil.rmtree(bundle.root / "models")
    assert main(["doctor", str(bundle.root)]) == 2
    assert "copy the bundle again" in capsys.readouterr().err
