"""deploy/ works where nothing of the training side is installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_deploy_bundle import tiny_bundle

ROOT = Path(__file__).parents[1]
BLOCKED = [
    "torch", "torchvision", "hydra", "omegaconf", "pydantic", "nvidia", "onnx", "sklearn", "plotly",
    "configs", "data", "train", "optimize", "scripts",
]  # fmt: skip

BLOCKER = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {[*BLOCKED, "rich"]!r}:
            raise ImportError(name + " is blocked in this test")
sys.meta_path.insert(0, Block())
"""


def run(code: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-c", BLOCKER + code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_checks_and_measures_a_bundle_alone(tmp_path: Path) -> None:
    code = """
import pkgutil, importlib, deploy
for module in pkgutil.walk_packages(deploy.__path__, "deploy."):
    if module.name != "deploy.__main__":
        importlib.import_module(module.name)
from deploy.__main__ import main
assert main(["verify", sys.argv[1]]) == 0
assert main(["bench", sys.argv[1], "--seconds", "0.003", "--warmup", "0", "--threads", "1"]) == 0
"""
    assert "speed-up" in run(code, tiny_bundle(tmp_path).root)


def test_importing_needs_numpy_and_nothing_else() -> None:
    code = """
import pkgutil, importlib, deploy
before = set(sys.modules)
for module in pkgutil.walk_packages(deploy.__path__, "deploy."):
    importlib.import_module(module.name)
tops = {name.partition(".")[0] for name in set(sys.modules) - before}
print(sorted(tops - set(sys.stdlib_module_names) - {"deploy", "numpy"}))
"""
    assert run(code).strip() == "[]"


@pytest.mark.parametrize(
    ("module", "arguments", "remedy"),
    [
        ("onnxruntime", ["--backend", "onnxruntime"], "pip install onnxruntime"),
        ("openvino", ["--backend", "openvino"], "pip install openvino"),
        ("PIL", [], "pip install pillow"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, module: str, arguments: list[str], remedy: str) -> None:
    code = f"""
sys.modules[{module!r}] = sys.modules["cv2"] = None
import contextlib, io
from deploy.__main__ import main
with contextlib.redirect_stderr(io.StringIO()) as stream:
    assert main(["verify", *sys.argv[1:]]) == 2
print(stream.getvalue())
"""
    assert remedy in run(code, tiny_bundle(tmp_path).root, *arguments)
