"""`python -m deploy demo` as a user starts and ends it: the true show of a tiny bundle, over HTTP."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deploy.cli_demo import choose_lanes
from deploy.demo.show import Lane
from deploy.errors import LabError
from tests.demo_client import Viewer, ask, classify, switch
from tests.processes import ROOT, environment, python
from tests.test_deploy_bundle import tiny_bundle

FP32, INT8 = Lane("fp32", "onnxruntime"), Lane("int8", "onnxruntime")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("tiny")).root


@contextmanager
def demo(bundle: Path, *options: str, **extra: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command and the first line that it says."""
    with subprocess.Popen(
        [sys.executable, "-m", "deploy", "demo", str(bundle), "--threads", "1", "--port", "0", *options],
        cwd=ROOT, env=environment(extra), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as started:  # fmt: skip
        assert started.stdout is not None
        try:
            yield started, started.stdout.readline()
        finally:
            started.kill()


def port_of(line: str) -> int:
    found = re.fullmatch(r"demo: http://[\w.]+:(\d+)/(#token=[\w-]+)?  \(.*Ctrl-C ends it\)\n", line)
    assert found, line
    return int(found[1])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_folder_is_shown_switched_and_ended(bundle: Path, number: signal.Signals) -> None:
    photos = bundle.parent / "photos"
    with demo(bundle, "--source", str(photos / "red")) as (started, line):
        port = port_of(line)
        with Viewer(port) as viewer:
            message, picture = viewer.message()
            while message["shown"] is None:
                message, picture = viewer.message()
        assert picture[:2] == b"\xff\xd8"
        answers = message["shown"]["answers"]
        assert [(a["variant"], a["top"][0]["name"], a["error"]) for a in answers] == [
            ("fp32", "red", None), ("int8", "red", None),
        ]  # fmt: skip
        reply = classify(port, (photos / "green" / "0.png").read_bytes()).json()
        assert [a["top"][0]["name"] for a in reply["shown"]["answers"]] == ["green", "green"]
        assert switch(port, side=0, variant="int8", backend="onnxruntime").status == 200
        assert switch(port, side=0, variant="none", backend="onnxruntime").status == 409
        started.send_signal(number)
        assert started.wait(30) == 0
        assert started.stderr is not None
        assert started.stderr.read() == ""


def test_for_others_a_token_is_made_and_told_once(bundle: Path) -> None:
    with demo(bundle, "--host", "0.0.0.0") as (started, line):
        port, token = port_of(line), line.partition("#token=")[2].split()[0]
        assert classify(port, b"x").status == 401
        assert classify(port, b"x", Authorization=f"Bearer {token}").status == 422
        started.send_signal(signal.SIGINT)
        out, err = started.communicate(timeout=30)
        assert (out.strip(), err) == ("", "")


def test_a_token_of_the_environment_is_not_printed(bundle: Path) -> None:
    token = "a-token-of-this-test"
    with demo(bundle, "--host", "0.0.0.0", EDGELAB_TOKEN=token) as (started, line):
        assert ask(port_of(line), "GET", "/stream").status == 401
        started.send_signal(signal.SIGINT)
        out, err = started.communicate(timeout=30)
        assert "asks for your token" in line
        assert token not in line + out + err


def test_in_the_terminal_nothing_is_served(bundle: Path) -> None:
    with demo(bundle, "--terminal", "--source", str(bundle.parent / "photos" / "red")) as (started, line):
        assert "http" not in line
        started.send_signal(signal.SIGINT)
        assert started.wait(30) == 0


def test_mistakes_are_told_in_one_line(bundle: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = str(other.getsockname()[1])
        for options, said in (
            (["--port", taken], f"127.0.0.1:{taken}: address already in use; choose another --port"),
            (["--host", "0.0.0.0", "--token", "short"], "the token has 5 characters: use at least 16"),
            (["--source", "no-such-folder"], "no-such-folder"),
        ):
            done = python("-m", "deploy", "demo", str(bundle), *options)
            assert done.returncode == 2
            assert done.stdout == ""
            assert re.fullmatch(rf"error: .*{re.escape(said)}.*\n", done.stderr), done.stderr


def test_which_lanes_run(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path)
    assert choose_lanes(bundle, None, None) is None
    assert choose_lanes(bundle, ["int8", "fp32"], None) == [INT8, FP32]
    assert choose_lanes(bundle, ["int8"], ["openvino"]) == [Lane("int8", "openvino")]
    assert choose_lanes(bundle, ["fp32", "fp32"], ["onnxruntime", "openvino"]) == [
        FP32, Lane("fp32", "openvino"),
    ]  # fmt: skip
    assert choose_lanes(bundle, None, ["onnxruntime"]) == [FP32, INT8]
    for variants, backends, said in (
        (["fp64"], None, "no variant 'fp64'; there are: fp32, int8"),
        (["fp32"], ["onnx"], "backend 'onnx' is not known"),
        (["fp32"] * 3, None, "3 names, at most 2"),
        (["fp32"], ["onnxruntime", "openvino"], "2 names for 1 of --variant"),
        (None, ["tensorrt"], "runs no variant of tiny here"),
    ):
        with pytest.raises(LabError, match=said):
            choose_lanes(bundle, variants, backends)
