"""deploy/trt_types.py says of TensorRT what TensorRT's own stubs say, as mypy has it.

The stubs (tensorrt-stubs) are generated and five lines of them are no Python, so mypy reads a mended copy.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest

from tests.processes import ROOT

PAIRS = {
    "Dims": "Dims",
    "ITensor": "NetworkTensor",
    "ILayer": "NetworkLayer",
    "INetworkDefinition": "Network",
    "ParserError": "ParserError",
    "OnnxParser": "Parser",
    "IOptimizationProfile": "Profile",
    "ITimingCache": "TimingCache",
    "IBuilderConfig": "Config",
    "Builder": "Builder",
    "EngineInspector": "Inspector",
    "IExecutionContext": "Context",
    "ICudaEngine": "Engine",
    "Runtime": "Runtime",
}


@pytest.fixture(scope="module")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stubs")
    for file in distribution("tensorrt-stubs").files or []:
        if file.suffix == ".pyi":
            text = Path(str(file.locate())).read_text()
            mended = text.replace(" in: list[", " given: list[").replace(
                "power: Weights = None, channel_axis: int)", "power: Weights = None, channel_axis: int = 0)"
            )
            (folder / file.parent).mkdir(exist_ok=True)
            (folder / file).write_text(mended)
    return folder


def test_tensorrts_objects_are_what_we_take_them_for(stubs: Path) -> None:
    pairs = [*PAIRS.items(), ("ICudaEngine", "Context")]
    lines = [f"def f{i}(found: trt.{a}) -> trt_types.{b}: return found" for i, (a, b) in enumerate(pairs)]
    source = stubs / "pairs.py"
    source.write_text("import tensorrt as trt\nfrom deploy import trt_types\n" + "\n".join(lines))
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file=", f"--cache-dir={stubs / 'cache'}", str(source)],
        env={**os.environ, "MYPYPATH": f"{stubs}:{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    errors = [line for line in done.stdout.splitlines() if source.name in line and " error: " in line]
    assert len(errors) == 1, done.stdout  # the last pair is a wrong one: that this was looked at
    assert f":{len(pairs) + 2}: error: Incompatible return value type" in errors[0]
