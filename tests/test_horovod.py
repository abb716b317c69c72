"""Horovod as users have it: built by the script, started by horovodrun, its workers lost and added."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from configs.load import load
from configs.schema import TrainConfig
from deploy.errors import LabError
from tests.processes import ROOT, environment, torchrun
from tests.test_strategy import assert_same_gradient, gradient, strategy_config, strategy_here
from train.checkpoint import load_checkpoint
from train.horovod import in_memory_order
from train.launch import require_no_launcher
from train.ranks import Ranks
from train.run import run
from train.strategies import build_strategy

HOROVODRUN = {
    "HOROVOD_RANK": "3", "HOROVOD_SIZE": "4", "HOROVOD_LOCAL_RANK": "1", "HOROVOD_LOCAL_SIZE": "2"
}  # fmt: skip
TINY = [
    "data=synthetic", "data.num_classes=2", "data.num_train=32", "data.num_val=7",
    "data.width=48", "data.height=40", "data.input.size=32", "data.input.resize=36",
    "model=mobilenet_v2", "batch_size=8", "epochs=2", "log_every=1", "optim.lr=0.002",
    "precision=fp32", "device=cpu", "loader=torch", "loader.threads=1",
]  # fmt: skip


def test_ranks_come_from_horovodrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in HOROVODRUN.items():
        monkeypatch.setenv(name, value)
    assert Ranks.from_environ() == Ranks(3, 4, 1, 2, launched=True, horovod=True)
    monkeypatch.delenv("HOROVOD_SIZE")
    with pytest.raises(LabError, match=r"HOROVOD_SIZE.*start with horovodrun"):
        Ranks.from_environ()


def test_two_launchers_at_once_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    both = HOROVODRUN | {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    for name, value in both.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(LabError, match="both torchrun and horovodrun"):
        Ranks.from_environ()


@pytest.mark.parametrize(
    ("name", "ranks", "remedy"),
    [
        ("horovod", Ranks(0, 2, 0, 2, launched=True), "torchrun started this process: horovodrun --gloo"),
        ("horovod", Ranks(0, 1, 0, 1, launched=False), "no launcher started this process: horovodrun --gloo"),
        ("ddp", Ranks(0, 2, 0, 2, launched=True, horovod=True), "horovodrun started this process: torchrun"),
    ],
)
def test_a_strategy_under_the_wrong_launcher_is_refused(name: Any, ranks: Ranks, remedy: str) -> None:
    with pytest.raises(LabError, match=remedy):
        build_strategy(strategy_config(name), ranks, torch.device("cpu"), "fp32")


def test_its_absence_names_the_command_that_builds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "horovod.torch", None)  # Python's own way to say "cannot be imported"
    ranks = Ranks(0, 2, 0, 2, launched=True, horovod=True)
    with pytest.raises(LabError, match="make horovod"):
        build_strategy(strategy_config("auto"), ranks, torch.device("cpu"), "fp32")


def test_a_rank_of_horovodrun_starts_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOROVOD_RANK", "0")
    with pytest.raises(LabError, match="a launcher started this process"):
        require_no_launcher()


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["strategy=ddp", "strategy.compression=fp16"], "are for strategy=horovod, not ddp"),
        (["strategy=single", "strategy.elastic=true"], "are for strategy=horovod, not single"),
        (["strategy=horovod", "strategy.elastic=true"], r"needs run_dir=\.\.\. and resume=true"),
    ],
)
def test_what_horovod_alone_can_do_is_refused_elsewhere(overrides: list[str], problem: str) -> None:
    with pytest.raises(LabError, match=problem):
        load("train", TrainConfig, overrides)


def test_an_inelastic_launcher_is_refused(tmp_path: Path) -> None:
    overrides = [*TINY, "strategy=horovod", "strategy.elastic=true", "resume=true", f"run_dir={tmp_path}"]
    with pytest.raises(LabError, match="--host-discovery-script"):
        run(load("train", TrainConfig, overrides))


@pytest.mark.parametrize("shape", [(), (5,), (4, 3), (4, 3, 3, 3), (8, 1, 3, 3), (4, 3, 1, 1)])
def test_memory_order_is_a_contiguous_view(shape: tuple[int, ...]) -> None:
    tensor = torch.randn(shape)
    if len(shape) == 4:
        tensor = tensor.to(memory_format=torch.channels_last)
    view = in_memory_order(tensor)
    assert view.is_contiguous()
    assert view.data_ptr() == tensor.data_ptr()
    assert view.numel() == tensor.numel()


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH with Horovod in it. The wheel is built once a torch and kept in the cache."""
    missing = [tool for tool in ("c++", "make") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"Horovod cannot be built here: no {' and no '.join(missing)}")
    folder = tmp_path_factory.mktemp("horovod") / "site"
    install = ["scripts/install_horovod.sh", "--python", sys.executable, "--target", str(folder), "--cpu"]
    subprocess.run(["bash", *install], cwd=ROOT, check=True)
    again = subprocess.run(["bash", *install], cwd=ROOT, check=True, capture_output=True, text=True)
    assert "is installed already" in again.stdout
    return folder


def command(site: Path, options: list[str], arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    run = [sys.executable, str(site / "bin" / "horovodrun"), "--gloo", "-np", "2", *options]
    paths = os.pathsep.join((str(site), str(ROOT)))
    return [*run, sys.executable, *arguments], environment({"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"})


def horovodrun(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`horovodrun --gloo -np 2 python ARGUMENTS` to its end."""
    line, env = command(site, [], list(arguments))
    return subprocess.run(line, cwd=ROOT, env=env, timeout=600, capture_output=True, text=True, check=False)


KEEP = """
import os, pickle, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
def keep(found):
    Path(sys.argv[1], os.environ["HOROVOD_RANK"]).write_bytes(pickle.dumps(found))
"""


def on_two_ranks(site: Path, folder: Path, program: str) -> list[Any]:
    """What each rank gave to `keep`."""
    done = horovodrun(site, "-c", KEEP + program, str(folder))
    assert done.returncode == 0, done.stderr
    return [pickle.loads((folder / rank).read_bytes()) for rank in ("0", "1")]


@pytest.mark.slow
def test_it_keeps_the_promises_of_a_strategy(site: Path, tmp_path: Path) -> None:
    program = "from tests.test_strategy import one_rank; keep(one_rank('horovod'))"
    expected = gradient(strategy_here())
    for rank, got in enumerate(on_two_ranks(site, tmp_path, program)):
        for accumulate in (1, 2):
            found = got["found"][accumulate]
            assert_same_gradient(found, expected)
            assert found["norm"] == pytest.approx(expected["norm"], rel=1e-4)
            assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
            np.testing.assert_allclose(found["logits"], expected["logits"], atol=1e-5)
        assert got["answers"] == {
            "sum": [3.0, 20.0],
            "any": (True, False),
            "stops": (True, False),
            "aligned": [0.0, 0.0],
            "first": "rank 0 worked",
            "error": "no such folder",
            "gathered": None if rank else [0, 1],
        }


OTHERS = """
from tests.test_strategy import *
from train import horovod
strategy = build_strategy(strategy_config("horovod", compression="fp16"), Ranks.from_environ(), CPU, "fp32")
if strategy.ranks.is_first:
    horovod._members.on_hosts_updated(0, 0)
votes = strategy.any(False), strategy.stops(False), horovod._members.regroup
votes += strategy.stops(strategy.ranks.rank == 1), horovod._members.regroup
keep((votes, gradient(strategy, 2)["gradients"]))
strategy.close()
"""


@pytest.mark.slow
def test_other_workers_stop_the_loop_and_compression_rounds_to_halves(site: Path, tmp_path: Path) -> None:
    expected = gradient(strategy_here())["gradients"]
    largest = max(np.abs(value).max() for value in expected.values())
    for votes, got in on_two_ranks(site, tmp_path, OTHERS):
        # News of other workers are rank 0's alone. They touch no other vote, and a request goes before them.
        assert votes == (False, True, True, True, False)
        error = max(np.abs(got[name] - value).max() for name, value in expected.items())
        assert error > 1e-6
        # Two roundings to 11 bits of what each rank sends, and one of the sum.
        assert error < 2**-10 * largest


def weights(run_dir: Path) -> torch.Tensor:
    saved = load_checkpoint(run_dir / "checkpoint.pt")
    return torch.cat([value.flatten().float() for value in saved.model.values()])


@pytest.mark.slow
def test_it_trains_as_ddp_does(site: Path, tmp_path: Path) -> None:
    overrides = [*TINY, f"data.root={tmp_path / 'images'}", f"data.cache_dir={tmp_path / 'cache'}"]
    done = torchrun(2, "-m", "train", *overrides, "strategy=ddp", f"run_dir={tmp_path / '0'}")
    assert done.returncode == 0, done.stderr
    done = horovodrun(site, "-m", "train", *overrides, f"run_dir={tmp_path / '1'}")
    assert done.returncode == 0, done.stderr
    torch.testing.assert_close(weights(tmp_path / "1"), weights(tmp_path / "0"), rtol=1e-5, atol=1e-6)
    results = [json.loads((tmp_path / name / "result.json").read_text())["metrics"] for name in "01"]
    assert results[1] == pytest.approx(results[0], rel=1e-4)
    # Horovod's checkpoint is DDP's.
    done = torchrun(2, "-m", "train", *overrides, f"run_dir={tmp_path / '1'}", "strategy=ddp", "resume=true")
    assert done.returncode == 0, done.stderr
    assert "this run is complete" in done.stderr


class Elastic:
    """An elastic horovodrun whose hosts are two names of this machine, and what it has said so far."""

    def __init__(self, site: Path, folder: Path, arguments: list[str]) -> None:
        self._hosts = folder / "hosts"
        self.offer("localhost:1", "127.0.0.1:1")
        script = folder / "hosts.sh"
        script.write_text(f"#!/bin/sh\ncat {self._hosts}\n")
        script.chmod(0o755)
        options = ["--min-np", "1", "--max-np", "4", "--network-interfaces", "lo"]
        line, env = command(site, [*options, "--host-discovery-script", str(script)], arguments)
        self.process = subprocess.Popen(
            line, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.said = ""

    def offer(self, *hosts: str) -> None:
        new = self._hosts.with_suffix(".new")
        new.write_text("".join(f"{host}\n" for host in hosts))
        new.replace(self._hosts)

    def wait_for(self, words: str) -> None:
        """Read on until a line has these words."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said += line
            if words in line:
                return
        pytest.fail(f"ended without {words!r}:\n{self.said}")

    def finish(self) -> int:
        assert self.process.stdout is not None
        self.said += self.process.stdout.read()
        return self.process.wait()


def workers(run_dir: Path) -> dict[str, int]:
    """Process id of each worker by the name of its host."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode().split("\0")
            variables = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        (host,) = [v.partition("=")[2] for v in variables if v.startswith("HOROVOD_HOSTNAME=")] or [""]
        # Not the shell around a worker, and not a data loader's process below it.
        if words[:3] == [sys.executable, "-m", "train"] and f"run_dir={run_dir}" in words and host:
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            if (Path("/proc") / parent / "cmdline").read_bytes().decode().split("\0")[1:3] != ["-m", "train"]:
                found[host] = int(folder.name)
    return found


@pytest.fixture
def elastic(site: Path, tmp_path: Path) -> Iterator[Elastic]:
    overrides = [
        *TINY, f"data.root={tmp_path / 'images'}", f"data.cache_dir={tmp_path / 'cache'}", "epochs=20",
        "checkpoint_epochs=3", "strategy=horovod", "strategy.elastic=true", "resume=true",
        f"run_dir={tmp_path / 'run'}",
    ]  # fmt: skip
    started = Elastic(site, tmp_path, ["-m", "train", *overrides])
    alarm = threading.Timer(900, started.process.kill)
    alarm.start()
    yield started
    alarm.cancel()
    if started.process.poll() is None:
        started.process.terminate()
        started.finish()


@pytest.mark.slow
def test_workers_come_and_go(elastic: Elastic, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    elastic.wait_for("over 2 rank(s)")
    elastic.wait_for("epoch 4 of 20")
    victims = workers(run_dir)
    assert sorted(victims) == ["127.0.0.1", "localhost"]
    os.kill(victims["127.0.0.1"], signal.SIGKILL)
    elastic.wait_for("a worker was lost: 1 go on")
    elastic.wait_for("resumed at step")
    elastic.wait_for("over 1 rank(s)")
    elastic.wait_for("epoch 5 of 20")
    elastic.offer("localhost:2")
    elastic.wait_for("the workers have changed: 2 go on")
    elastic.wait_for("resumed at step")
    elastic.wait_for("over 2 rank(s)")
    assert elastic.finish() == 0, elastic.said
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    # Each step of the plan, whose batches are those of any number of ranks, is counted once.
    assert [r["step"] for r in records if r["kind"] == "train"] == list(range(1, 81))
    assert [r["epoch"] for r in records if r["kind"] == "eval"] == list(range(1, 21))
    assert (run_dir / "result.json").exists()
