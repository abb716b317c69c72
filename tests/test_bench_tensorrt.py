"""The benchmark of the TensorRT runner, on mocks: every contender does the same work on one engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.engine import ready_engine
from scripts.bench_tensorrt import compare, contenders, read_trtexec
from tests.engines import mocked
from tests.test_deploy_bundle import tiny_bundle

# As trtexec 10.3 prints it.
TRTEXEC = """
[11/25/2026-10:00:00] [I] Latency: min = 0.51 ms, max = 0.83 ms, mean = 0.56 ms, median = 0.553 ms, \
percentile(90%) = 0.58 ms, percentile(95%) = 0.6 ms, percentile(99%) = 0.7 ms
[11/25/2026-10:00:00] [I] H2D Latency: min = 0.02 ms, max = 0.1 ms, mean = 0.03 ms, median = 0.029 ms
"""


def test_trtexecs_median_is_that_of_the_whole_query() -> None:
    assert read_trtexec(TRTEXEC) == 0.553
    assert read_trtexec("&&&& FAILED") is None


def test_each_contender_runs_the_engine_once_a_query(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path)
    _, cuda, target = mocked()
    path = ready_engine(bundle, "int8", target, None, print, lock=tmp_path / "lock").path
    with contenders(path, target, 2) as calls:
        calls["ours"]()  # captures
        done = {}
        for name, call in calls.items():
            cuda.called.clear()
            call()
            done[name] = list(cuda.called)
    assert done == {
        "ours": ["cudaGraphLaunch", "cudaStreamSynchronize"],
        "in place": ["cudaGraphLaunch", "cudaStreamSynchronize"],
        "enqueue": ["cudaMemcpyAsync", "cudaMemcpyAsync", "cudaStreamSynchronize"],
        "graph": ["cudaGraphLaunch", "cudaStreamSynchronize"],
    }
    assert cuda.held == {}


def test_the_ratios_are_printed_beside_their_goal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no trtexec
    compare(tiny_bundle(tmp_path), "int8", mocked()[2], batch=1, seconds=0.001)
    printed = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in printed] == [
        *(f"int8, batch 1, {name}" for name in ("ours", "in place", "enqueue", "graph")), *["int8"] * 3,
    ]  # fmt: skip
    assert "int8: ours / graph " in printed[-1]
    assert printed[-1].endswith("goal: at most 1.03")
