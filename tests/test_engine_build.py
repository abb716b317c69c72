"""Building with the real TensorRT-RTX, which needs no GPU: what the parser refuses, and what a build does."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploy.engine_build import BuildOptions, Plan, build_plan
from deploy.errors import LabError
from deploy.trt_api import TensorRT
from optimize.precision import to_bf16, to_fp16, weight_only
from tests import residual_graph
from tests.engines import mocked, real_rtx
from tests.test_deploy_bundle import tiny_onnx

RTX = real_rtx()


def build(
    path: Path,
    options: BuildOptions = BuildOptions(),  # noqa: B008  # frozen
    api: TensorRT = RTX,
    capabilities: tuple[str, ...] = ("8.6",),
    **more: Any,
) -> Plan:
    settings = {
        "label": str(path),
        "compute_capabilities": capabilities,
        "workspace_bytes": None,
        "timings": b"",
    }
    return build_plan(api, path.read_bytes(), options, **settings | more)


def network(folder: Path, *nodes: onnx.NodeProto, opset: int = 20, **constants: Any) -> Path:
    """float32 [n, 8, 8, 8] "x" to "y" through these nodes."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("ours", 1)]
    path = folder / "network.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def test_engines_for_several_gpus_are_built_without_one(tmp_path: Path) -> None:
    path = residual_graph.saved(residual_graph.residual(), tmp_path)
    sizes = {}
    for capabilities in (("8.6",), ("8.9",), ("12.0",), ("8.6", "8.9", "12.0")):
        plan = build(path, capabilities=capabilities)
        assert plan.batch == (1, 1, 32)
        assert plan.timings is None
        sizes[capabilities] = memoryview(plan.data).nbytes
    assert all(size > 10_000 for size in sizes.values())
    assert sizes["8.6", "8.9", "12.0"] > max(sizes["8.6",], sizes["8.9",])


@pytest.mark.parametrize("write", [to_fp16, to_bf16, weight_only], ids=lambda write: write.__name__)
def test_the_other_precisions_of_a_bundle_are_taken(
    tmp_path: Path, write: Callable[[Path, Path], object]
) -> None:
    path = residual_graph.saved(residual_graph.residual(), tmp_path)
    write(path, tmp_path / "other.onnx")
    assert build(tmp_path / "other.onnx").quantised == ()


def test_every_error_that_the_parser_tells_is_in_one_with_its_node(tmp_path: Path) -> None:
    path = network(
        tmp_path,
        helper.make_node("Sharpen", ["x"], ["a"], "sharpen_1", domain="ours"),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Blur", ["b"], ["y"], domain="ours"),
    )
    with pytest.raises(
        LabError, match=r"TensorRT-RTX [\d.]+ does not take this network, 2 error\(s\)"
    ) as told:
        build(path)
    lines = str(told.value).splitlines()
    assert lines[0].startswith(f"{path}: ")
    assert lines[1].startswith("  node sharpen_1 (Sharpen): ")
    assert lines[2].startswith("  node 2 (Blur): ")
    assert "Plugin not found" in lines[1]


SCALE = {"s": np.float32(0.1)}
QUANTISE = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "quantise_x")
DEQUANTISE = helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], "dequantise_x")


@pytest.mark.parametrize(
    ("nodes", "constants", "message"),
    [
        (
            [
                helper.make_node("DequantizeLinear", ["b", "s", "z"], ["bias"], "dequantise_bias"),
                helper.make_node("Conv", ["x", "w", "bias"], ["y"], "conv"),
            ],
            {"w": np.ones((8, 8, 1, 1), np.float32), "b": np.ones(8, np.int32), "z": np.int32(0)},
            r"node dequantise_bias \(DequantizeLinear\): .*Int32 but must have type",
        ),
        (
            [QUANTISE, DEQUANTISE],
            {"z": np.uint8(128)},
            r"node quantise_x \(QuantizeLinear\): .*Non-zero zero point is not supported",
        ),
    ],
    ids=["int32 bias", "zero-point 128"],
)
def test_the_forms_of_int8_that_tensorrt_refuses_are_named_with_the_remedy(
    tmp_path: Path, nodes: list[onnx.NodeProto], constants: dict[str, Any], message: str
) -> None:
    path = network(tmp_path, *nodes, **SCALE, **constants)
    with pytest.raises(LabError, match=message) as told:
        build(path)
    assert "an INT8 file must have int8 tensors with zero-point 0 and float biases" in str(told.value)
    assert "cudaError" not in str(told.value)


def test_a_truncated_file_an_empty_one_and_no_onnx_are_told(tmp_path: Path) -> None:
    path = tiny_onnx(tmp_path / "whole.onnx")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(LabError, match=r"the file as a whole: .*Failed to parse the ONNX.*\nCopy or export"):
        build(path)
    path.write_bytes(b"")
    with pytest.raises(LabError, match=r"holds no network \(0 bytes\)"):
        build(path)
    path.write_bytes(b"no network at all")
    with pytest.raises(LabError, match="the file as a whole"):
        build(path)


def test_a_free_side_that_is_not_the_batch_is_told(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"image \(-1, 3, -1, -1\): a side other than the batch is free"):
        build(tiny_onnx(tmp_path / "a.onnx", side="s"))


def test_a_fixed_batch_stays_what_it_is(tmp_path: Path) -> None:
    path = tiny_onnx(tmp_path / "a.onnx", batch=4)
    assert build(path).batch == (4, 4, 4)
    assert build(path, BuildOptions(batch=(4, 4, 4))).batch == (4, 4, 4)
    with pytest.raises(LabError, match="was exported for batch 4 only"):
        build(path, BuildOptions(batch=(1, 1, 8)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": (0, 1, 2)}, "batch 0 1 2: least, most common and largest must go up, from 1"),
        ({"batch": (4, 2, 8)}, "batch 4 2 8"),
        ({"batch": (1, 8, 4)}, "batch 1 8 4"),
        ({"batch": (1, 1, 10**6)}, "from 1 to 4096"),
        ({"workspace_mib": 0}, "workspace 0 MiB: must be at least 1"),
    ],
)
def test_options_out_of_range_are_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(LabError, match=message):
        BuildOptions(**options)


def test_the_bar_is_fed_by_tensorrt_and_is_silent_without_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tiny_onnx(tmp_path / "a.onnx")
    build(path)
    assert capfd.readouterr() == ("", "")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    build(path, label="tiny")
    drawn = capfd.readouterr().err.split("\r")[1:]
    assert len(drawn) > 5
    shares = [int(line.removeprefix("building tiny").rstrip("\n%")) for line in drawn]
    assert shares == sorted(shares)
    assert shares[-1] == 100


def test_ctrl_c_stops_a_build_within_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGINT comes while TensorRT builds: from its own thread, at the first step that it tells of."""
    path = residual_graph.saved(residual_graph.residual(), tmp_path)
    steps: list[int] = []
    main = threading.get_ident()

    def monitor(self: TensorRT, phases: Any) -> Any:
        class Monitor(self.module.IProgressMonitor):  # type: ignore[misc, name-defined]
            def phase_start(self, name: str, parent: str | None, count: int) -> None:
                pass

            def phase_finish(self, name: str) -> None:
                pass

            def step_complete(self, name: str, step: int) -> bool:
                if not steps:
                    signal.pthread_kill(main, signal.SIGINT)
                    cancelled.wait(30)
                steps.append(step)
                return not phases.cancelled

        return Monitor()

    class Watched:
        def __init__(self, *_: Any) -> None:
            self._cancelled = False

        @property
        def cancelled(self) -> bool:
            return self._cancelled

        @cancelled.setter
        def cancelled(self, value: bool) -> None:
            self._cancelled = value
            cancelled.set()

    cancelled = threading.Event()
    monkeypatch.setattr(TensorRT, "monitor", monitor)
    monkeypatch.setattr("deploy.engine_build.Phases", Watched)
    with pytest.raises(KeyboardInterrupt):
        build(path)
    assert len(steps) == 1


def test_the_workspace_and_tf32_reach_tensorrt(tmp_path: Path) -> None:
    module, _, target = mocked()
    path = tiny_onnx(tmp_path / "a.onnx")
    build(path, api=target.api, capabilities=())
    build(path, BuildOptions(tf32=False), target.api, (), workspace_bytes=64 << 20)
    assert [config.pools for config in module.configs] == [{}, {"WORKSPACE": 64 << 20}]
    assert [len(config.flags) for config in module.configs] == [1, 0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "Error Code 2: OutOfMemory (no further information)",
            "ran out of memory with a workspace of 64 MiB",
        ),
        ("Error Code 10: Could not find any implementation for node a1", "cannot build an engine .* node a1"),
    ],
)
def test_a_build_that_fails_is_told_with_tensorrts_words(tmp_path: Path, words: str, message: str) -> None:
    module, _, target = mocked()
    module.build_error = words
    with pytest.raises(LabError, match=f"x: TensorRT 10.3.0 {message}"):
        build(tiny_onnx(tmp_path / "a.onnx"), api=target.api, capabilities=(), workspace_bytes=64 << 20)
