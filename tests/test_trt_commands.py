"""`python -m deploy build`, `engine`, `verify` and `bench` on a device with TensorRT, which is a mock."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploy.__main__ import main
from deploy.bundle import Bundle, open_bundle
from deploy.cuda import Cuda
from deploy.memory import Memory
from deploy.results import read_measurements
from tests.engines import mocked
from tests.fake_inspector import Row, layers_json
from tests.test_deploy_bundle import tiny_bundle


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("made"))


@pytest.fixture
def bundle(made: Bundle, tmp_path: Path) -> Bundle:
    return open_bundle(shutil.copytree(made.root, tmp_path / "bundle"))


INT8_ROWS: list[Row] = [("pooled", "CaskPooling", ["Int8"], ["Int8"], None, "pooled")]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """`python -m deploy` on a mocked device; gives the mocked module."""

    def use(version: str = "10.3.0") -> Any:
        module, _, target = mocked(version)
        module.inspector = layers_json(10, INT8_ROWS)
        for name in ("deploy.trt", "deploy.cli_build"):
            monkeypatch.setattr(f"{name}.find_tensorrt", lambda: target.api)
            monkeypatch.setattr(f"{name}.find_cuda", lambda: Cuda(module.cuda))
        # Its process has no mocks.
        monkeypatch.setattr("deploy.bench.peak_memory", lambda *_: Memory(None, None))
        return module

    return use


def test_the_commands_build_verify_and_bench(
    bundle: Bundle, tmp_path: Path, device: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    device()
    root = str(bundle.root)
    assert main(["build", root, "--variant", "int8", "--batch", "1", "2", "32"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "TensorRT 10.3.0 for Fake Orin (compute capability 8.7)"
    assert lines[1].startswith("int8: built in ")
    assert lines[2] == "  layers: 1 int8, 0 reformats"
    engine_file = lines[1].rpartition(": ")[2]
    assert main(["engine", engine_file]) == 0
    assert "batch 1 to 32, most often 2" in capsys.readouterr().out

    assert main(["verify", root, "--backend", "tensorrt"]) == 0
    printed = capsys.readouterr()
    rows = [line.split()[:2] for line in printed.out.splitlines()]
    assert rows == [["ok", "files"], ["ok", "fp32,"], ["info", "int8"]]
    assert printed.out.count("optimised") == 1
    assert "its integers have the form of onnxruntime, which TensorRT's parser refuses" in printed.out

    out = tmp_path / "results.jsonl"
    options = ["--seconds", "0.003", "--warmup", "0", "--batch", "1", "4", "--no-copies", "--out", str(out)]
    assert main(["bench", root, "--backend", "tensorrt", "--variant", "int8", *options]) == 0
    assert "int8, batch 4, no copy in" in capsys.readouterr().out
    found = read_measurements(out)
    latency = [(m.batch, m.inside) for m in found if m.kind == "latency"]
    assert latency == [(1, "host"), (4, "host"), (1, "in place"), (4, "in place")]
    assert {m.in_flight for m in found if m.kind == "throughput"} <= {1, 2}
    for m in found:
        assert (m.backend, m.backend_version, m.precision) == ("tensorrt", "10.3.0", "int8")
        assert m.machine["device"] == "Fake Orin"

    device("10.16.2")
    assert main(["engine", engine_file]) == 2
    assert "TensorRT 10.3.0 -> 10.16.2" in capsys.readouterr().err
    assert main(["verify", root, "--backend", "tensorrt"]) == 0
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "fp32: TensorRT 10.3.0 -> 10.16.2: building anew"
    assert said[1].startswith("fp32: built in ")
    assert said[2] == "  layers: 1 int8, 0 reformats"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--variant", "int4"], "no variant 'int4'; there are: fp32, int8"),
        (["--variant", "int8", "--batch", "1", "2"], "batch [1, 2]: give one size, or three"),
        (["--variant", "int8", "--compute-capability", "8.6"], "builds for this machine's own GPU only"),
        (["--variant", "int8", "--workspace-mib", "-1"], "workspace -1 MiB: must be at least 1"),
    ],
)
def test_bad_values_of_build_are_told(
    bundle: Bundle,
    device: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    device()
    assert main(["build", str(bundle.root), *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert message in printed.err
    assert not bundle.root.with_name("bundle.engines").exists()


def test_what_is_not_int8_is_named_by_build(
    bundle: Bundle,
    device: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    device()
    monkeypatch.setattr("deploy.engine_build.quantised_nodes", lambda network: ("pooled", "conv1"))
    assert main(["build", str(bundle.root), "--variant", "int8"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "  layers: 1 int8, 0 reformats; 1 of 2 quantised nodes in int8"
    assert lines[3] == "  WARNING: not in INT8, though the file asks for it: conv1 (?)"


def test_ctrl_c_ends_build_with_a_word(
    bundle: Bundle,
    device: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    device()

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("deploy.cli_build.ready_engine", stop)
    assert main(["build", str(bundle.root), "--variant", "int8"]) == 130
    assert capsys.readouterr().err == "cancelled: no engine was written\n"
