"""Real LoadGen over real runners: its verdict, its answers, and what becomes of a failure in a callback."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from deploy.__main__ import main
from deploy.accuracy import classify, list_images, top1
from deploy.backends import open_runner
from deploy.bundle import Bundle
from deploy.child import command
from deploy.errors import LabError
from deploy.loadgen import SCENARIOS, run_loadgen
from deploy.loadgen_log import ACCURACY, DETAIL, read_classes, read_result
from deploy.loadgen_sut import Job
from deploy.results import read_measurements
from tests.test_deploy_bundle import SPEC, image_folder, tiny_bundle

ROOT = Path(__file__).parents[1]
HERE = importlib.util.find_spec("mlperf_loadgen") is not None
needs_loadgen = pytest.mark.skipif(not HERE, reason="mlcommons-loadgen is not installed")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("loadgen"))


def job(bundle: Bundle, logs: Path, **changes: object) -> Job:
    fields = {
        "root": str(bundle.root), "variant": "fp32", "backend": "onnxruntime", "threads": 1, "in_flight": 1,
        "scenario": "SingleStream", "accuracy": False, "seconds": 60.0, "warmup_s": 0.0, "batch": 4,
        "target_qps": 50.0, "target_latency_ms": 15.0, "images": None, "tensors": None, "logs": str(logs),
    }  # fmt: skip
    return Job(**fields | changes)  # type: ignore[arg-type]  # fields by name


@needs_loadgen
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_each_scenario_runs_and_is_judged_by_loadgen(shared: Bundle, tmp_path: Path, scenario: str) -> None:
    m = run_loadgen(
        shared, "fp32", scenario, threads=1, seconds=0.3, warmup_s=0, logs=tmp_path / "logs",
        target_qps=2000 if scenario == "Server" else None, target_latency_ms=100,
    )  # fmt: skip
    result = m.loadgen
    assert result is not None
    assert result.scenario == scenario
    assert m.kind == "loadgen"
    assert result.samples_per_query == {"SingleStream": 1, "MultiStream": 8, "Server": 1}.get(
        scenario, result.samples_per_query
    )
    assert (
        0 < result.min_ms <= result.percentiles_ms["50.00"] <= result.percentiles_ms["99.90"] <= result.max_ms
    )
    assert result.num_queries == (1 if scenario == "Offline" else m.rule.count) > 0
    assert result.valid == (not result.reasons)
    assert (tmp_path / "logs" / DETAIL).exists()
    if scenario in ("SingleStream", "MultiStream"):
        assert result.valid  # the others' verdict is at the mercy of other programs on this machine
    if scenario == "Server":
        assert (result.target_qps, result.target_latency_ms) == (2000, 100)


@needs_loadgen
@pytest.mark.parametrize("scenario", ["SingleStream", "Offline"])
def test_its_top1_is_ours(shared: Bundle, tmp_path: Path, scenario: str) -> None:
    """Over images of which some are in the folder of another class, so that it is not 100 %."""
    photos = tmp_path / "photos"
    image_folder(photos, 5)
    (photos / "red" / "0.png").rename(photos / "green" / "9.png")
    images = list_images(photos, SPEC.class_names)
    with open_runner(shared, "int8", threads=1) as runner:
        ours = top1(classify(runner, [path for path, _ in images], SPEC, 4), [label for _, label in images])
    m = run_loadgen(
        shared, "int8", scenario, threads=1, seconds=0.1, warmup_s=0, accuracy=True, images=images,
        logs=tmp_path / "logs",
    )  # fmt: skip
    assert (m.accuracy.top1, m.accuracy.num_images) == (ours, 10) == (0.9, 10)
    assert (tmp_path / "logs" / "accuracy" / ACCURACY).exists()


@needs_loadgen
def test_a_limit_that_is_not_kept_is_told_in_words(shared: Bundle, tmp_path: Path) -> None:
    m = run_loadgen(
        shared, "fp32", "Server", threads=1, seconds=0.3, warmup_s=0, target_qps=300,
        target_latency_ms=0.0001, logs=tmp_path,
    )  # fmt: skip
    assert m.loadgen is not None
    assert not m.loadgen.valid
    assert "the latency's limit was not kept" in m.loadgen.reasons


@needs_loadgen
def test_the_command_prints_the_verdict_and_writes_a_record(
    shared: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results.jsonl"
    options = [
        "--scenario",
        "SingleStream",
        "--variant",
        "fp32",
        "--accuracy",
        "--logs",
        str(tmp_path / "logs"),
    ]
    quick = ["--seconds", "0.1", "--warmup", "0", "--threads", "1", "--out", str(out)]
    assert main(["bench", str(shared.root), *options, *quick]) == 0
    printed = capsys.readouterr().out
    assert "VALID" in printed
    assert "100.00%" in printed
    assert "no official MLPerf result" in printed
    assert f"LoadGen's files: {tmp_path / 'logs' / 'fp32-SingleStream'}" in printed
    (m,) = read_measurements(out)
    assert (m.kind, m.loadgen is not None and m.loadgen.scenario) == ("loadgen", "SingleStream")


FAILS = """
import sys
sys.path.insert(0, sys.argv.pop(1))
from deploy import loadgen_sut, ort
from deploy.errors import LabError
infer, calls = ort.OrtRunner.infer, []
def failing(self, feed):
    calls.append(1)
    if len(calls) > 500:
        raise {error}
    return infer(self, feed)
ort.OrtRunner.infer = failing
loadgen_sut._TRIAL_S = 0
loadgen_sut.main(sys.argv[1])
"""


@needs_loadgen
@pytest.mark.parametrize(("error", "code"), [('LabError("the GPU is gone")', 2), ("OSError(5)", 1)])
@pytest.mark.parametrize("scenario", ["SingleStream", "Offline"])
def test_a_failure_in_a_callback_ends_the_test_with_one_error(
    shared: Bundle, tmp_path: Path, scenario: str, error: str, code: int
) -> None:
    """Left alone the test would go on in LoadGen's threads, and end well."""
    text = json.dumps(asdict(job(shared, tmp_path, scenario=scenario, batch=1, seconds=2.0)))
    done = subprocess.run(
        [sys.executable, "-c", FAILS.format(error=error), str(ROOT), text],
        capture_output=True, text=True, check=False, timeout=50,
    )  # fmt: skip
    assert done.returncode == code
    assert done.stderr.splitlines()[-1] == ("the GPU is gone" if code == 2 else "OSError: 5")


@needs_loadgen
@pytest.mark.parametrize("scenario", ["Server", "SingleStream"])
def test_ctrl_c_ends_it_at_once(shared: Bundle, tmp_path: Path, scenario: str) -> None:
    text = json.dumps(asdict(job(shared, tmp_path, scenario=scenario, seconds=30.0)))
    child = subprocess.Popen(
        command("deploy.loadgen_sut", text),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while not (tmp_path / DETAIL).exists():  # LoadGen has begun
        assert child.poll() is None
        os.sched_yield()
    child.send_signal(signal.SIGINT)
    assert child.wait(timeout=30) == -signal.SIGINT


def test_ctrl_c_is_told_with_where_the_files_are(
    shared: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("deploy.cli_loadgen.run_loadgen", stop)
    options = ["--scenario", "Offline", "--logs", str(tmp_path)]
    assert main(["bench", str(shared.root), *options]) == 130
    assert capsys.readouterr().err == f"cancelled: LoadGen's files so far lie in {tmp_path}/fp32-Offline\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scenario", "Foo"], "scenario 'Foo' is not known; there are: SingleStream"),
        (["--scenario", "Server"], "give --target-qps"),
        (["--scenario", "Server", "--target-qps", "0"], "target of 0.0 queries/s: must be more than 0"),
        (
            ["--scenario", "Server", "--target-qps", "9", "--target-latency-ms", "-1"],
            "target latency -1.0 ms",
        ),
        (["--scenario", "Offline", "--batch", "0"], "batch 0: must be at least 1"),
        (["--scenario", "Offline", "--batch", "1", "2"], "batch [1, 2]: give one with --scenario"),
        (["--scenario", "MultiStream", "--batch", "4"], "batch 4: of MultiStream it is 8; leave it out"),
        (
            ["--scenario", "SingleStream", "--in-flight", "2"],
            "2 queries in flight: SingleStream sends the next",
        ),
        (["--scenario", "Offline", "--seconds", "0"], "seconds 0.0: must be more than 0"),
        (["--scenario", "Offline", "--energy"], "--energy: not with --scenario"),
        (["--accuracy"], "--accuracy: not without --scenario"),
        (["--scenario", "Offline", "--variant", "int4"], "no variant 'int4'"),
    ],
)
def test_bad_values_are_told(
    shared: Bundle, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["bench", str(shared.root), *arguments]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.out == ""


def test_where_loadgen_is_missing_the_remedy_is_told(shared: Bundle, tmp_path: Path) -> None:
    code = 'import sys; sys.path.insert(0, sys.argv.pop(1)); sys.modules["mlperf_loadgen"] = None\n'
    code += "from deploy.loadgen_sut import main; main(sys.argv[1])"
    text = json.dumps(asdict(job(shared, tmp_path)))
    done = subprocess.run(
        [sys.executable, "-c", code, str(ROOT), text], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "LoadGen is not installed: pip install mlcommons-loadgen\n"


def test_logs_that_break_off_are_told(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="cannot be read as LoadGen's log"):
        read_result(tmp_path)
    entry = {"key": "a", "value": 1, "metadata": {"is_error": False, "is_warning": False}}
    (tmp_path / DETAIL).write_text(f":::MLLOG {json.dumps(entry)}\n")
    with pytest.raises(LabError, match="breaks off before LoadGen's verdict"):
        read_result(tmp_path)
    (tmp_path / DETAIL).write_text(':::MLLOG {"key": "a", "val')
    with pytest.raises(LabError, match="cannot be read as LoadGen's log"):
        read_result(tmp_path)
    (tmp_path / ACCURACY).write_text('[{"qsl_idx": 3, "data": "0100')
    with pytest.raises(LabError, match="cannot be read as LoadGen's answers"):
        read_classes(tmp_path)
    data = np.array([7], "<i8").tobytes().hex().upper()
    (tmp_path / ACCURACY).write_text(json.dumps([{"seq_id": 0, "qsl_idx": 3, "data": data}]))
    assert read_classes(tmp_path) == {3: 7}
