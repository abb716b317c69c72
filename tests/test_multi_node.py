"""torchrun's restarts and lost machines: the run goes on from its checkpoint, each image once an epoch.

The two machines are two network namespaces of this one, joined by a cable that is cut.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from configs.load import load
from configs.schema import TrainConfig
from deploy.errors import LabError
from tests.processes import ROOT, environment, python
from train.checkpoint import load_checkpoint
from train.machines import load_shared, require_resume

TINY = [
    "data=synthetic", "data.num_classes=2", "data.num_train=24", "data.num_val=4", "data.width=40",
    "data.height=40", "data.input.size=32", "data.input.resize=32", "model=mobilenet_v2", "batch_size=4",
    "epochs=3", "checkpoint_every=2", "log_every=2", "optim.lr=0.001", "optim.warmup_epochs=0",
    "optim.momentum=0.5", "clip_grad_norm=1.0", "device=cpu", "precision=fp32", "loader=torch",
    "loader.threads=1",
]  # fmt: skip
STEPS = 3 * 24 // 4
LAUNCHER = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "OMP_NUM_THREADS": "1"}

# Notes the rows of each step in a file of each process; in the first life, at step AT, does what WHAT says.
WORKER = """
import json, os, signal, sys, time
from pathlib import Path
import torch
import train.loop as loop
import train.run as story
from configs.load import load
from configs.schema import TrainConfig

notes, what, at, *overrides = sys.argv[1:]
notes = Path(notes)
rank, world, life = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT"))
file = (notes / f"seen-{os.getpid()}-{life}.jsonl").open("a", buffering=1)
now = {}

class Plan(story.TrainPlan):
    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        now["plan"] = self

def manual_seed(value, seed=torch.manual_seed):
    now["step"] = value >> 12  # the loop seeds each step with its number there, for seed=0
    return seed(value)

def set_lr(*arguments, set_lr=loop.set_lr):
    set_lr(*arguments)
    step = now["step"]
    if "began" not in now:  # names the group of ranks: torchrun's count of restarts is each machine's own
        began = [time.time()]
        torch.distributed.broadcast_object_list(began, src=0)
        now["began"] = began[0]
    if step == int(at):
        if what == "die" and rank == 1 and life == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "wait" and world == 2 and not (notes / "cut").exists():
            (notes / f"ready-{rank}").touch()
            while not (notes / "cut").exists():
                time.sleep(0.05)
    record = {"step": step, "began": now["began"], "world": world, "rows": now["plan"].at(step).rows.tolist()}
    file.write(json.dumps(record) + "\\n")

story.TrainPlan, torch.manual_seed, loop.set_lr = Plan, manual_seed, set_lr
story.run(load("train", TrainConfig, overrides))
"""


def overrides(folder: Path, run_dir: Path, *more: str) -> list[str]:
    images = [f"data.root={folder}/images", f"data.cache_dir={folder}/cache"]
    return [*TINY, *images, f"run_dir={run_dir}", "resume=true", *more]


def worker(folder: Path, what: str, at: int) -> list[str]:
    (folder / "notes").mkdir()
    (folder / "worker.py").write_text(WORKER)
    return [str(folder / "worker.py"), str(folder / "notes"), what, str(at)]


def surviving_rows(notes: Path) -> dict[int, list[int]]:
    """Of each step, those that went into the final weights: what the last group that did it saw."""
    seen = [json.loads(line) for file in notes.glob("seen-*") for line in file.read_text().splitlines()]
    last = {record["step"]: record["began"] for record in sorted(seen, key=lambda record: record["began"])}
    rows: dict[int, list[int]] = {step: [] for step in last}
    for record in seen:
        if record["began"] == last[record["step"]]:
            rows[record["step"]] += record["rows"]
    return rows


def assert_every_image_once(notes: Path) -> None:
    rows = surviving_rows(notes)
    assert sorted(rows) == list(range(STEPS))
    for epoch in range(3):
        counts = Counter(row for step in range(epoch * 6, epoch * 6 + 6) for row in rows[step])
        assert counts == Counter(range(24))


@pytest.mark.slow
def test_a_restarted_job_ends_with_the_weights_of_an_uninterrupted_one(tmp_path: Path) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    whole = python(*launcher, "-m", "train", *overrides(tmp_path, tmp_path / "whole"), env=LAUNCHER)
    assert whole.returncode == 0, whole.stderr
    script = worker(tmp_path, "die", 9)
    done = python(
        *launcher, "--max-restarts=1", *script, *overrides(tmp_path, tmp_path / "run"), env=LAUNCHER
    )
    assert done.returncode == 0, done.stderr
    assert "resumed at step" in done.stderr
    expected, got = (load_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("whole", "run"))
    assert got.progress.step == STEPS
    assert [k for k in expected.model if not torch.equal(expected.model[k], got.model[k])] == []
    assert_every_image_once(tmp_path / "notes")


@pytest.mark.parametrize("given", [["resume=true"], ["run_dir=runs/x"]])
def test_restarts_that_would_lose_the_run_are_refused(
    given: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    with pytest.raises(LabError, match=r"add (run_dir=runs/NAME|resume=true), or leave --max-restarts out"):
        require_resume(load("train", TrainConfig, given))
    whole = load("train", TrainConfig, ["resume=true", "run_dir=runs/x"])
    require_resume(whole)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    with pytest.raises(LabError, match="set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
        require_resume(whole)
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "0")
    require_resume(load("train", TrainConfig, given))


def test_a_folder_that_is_not_shared_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(LabError, match="file system that all machines share"):
        load_shared(tmp_path / "data", rank=3)
    assert "rank 3" in capsys.readouterr().err


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def two_machines() -> Iterator[list[str]]:
    """Names of two network namespaces: 10.77.0.1 is `veth0` of the first, 10.77.0.2 `veth1` of the second."""
    names = [f"edgelab-{os.getpid()}-{number}" for number in range(2)]
    if shutil.which("ip") is None:
        pytest.skip("needs iproute2's ip")
    try:
        try:
            for name in names:
                ip("netns", "add", name)
            ip(
                "-n",
                names[0],
                "link",
                "add",
                "veth0",
                "type",
                "veth",
                "peer",
                "name",
                "veth1",
                "netns",
                names[1],
            )
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are not allowed here: {error.stderr.strip()}")
        for number, name in enumerate(names):
            ip("-n", name, "address", "add", f"10.77.0.{number + 1}/24", "dev", f"veth{number}")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", f"veth{number}", "up")
            # torchrun reads from its store without a limit of its own: the end comes when the kernel gives up
            # on the connection, by default after a quarter of an hour.
            ip("netns", "exec", name, "sysctl", "-qw", "net.ipv4.tcp_retries2=5")
        yield names
    finally:
        for name in names:
            if Path("/run/netns", name).exists():
                for pid in ip("netns", "pids", name).split():
                    os.kill(int(pid), signal.SIGKILL)
                ip("netns", "delete", name)


@pytest.mark.slow
def test_a_job_outlives_a_machine_whose_cable_is_cut(two_machines: list[str], tmp_path: Path) -> None:
    script = worker(tmp_path, "wait", 9)
    notes = tmp_path / "notes"
    settings = (
        "join_timeout=120,last_call_timeout=5,keep_alive_interval=1,keep_alive_max_attempt=10,read_timeout=20"
    )
    agents = []
    for number, name in enumerate(two_machines):
        command = [
            "ip", "netns", "exec", name, sys.executable, "-m", "torch.distributed.run", "--nnodes=1:2",
            "--nproc-per-node=1", "--max-restarts=3", "--rdzv-backend=c10d", "--rdzv-id=cut",
            "--rdzv-endpoint=10.77.0.1:29400", f"--rdzv-conf={settings},is_host={1 - number}",
            f"--local-addr=10.77.0.{number + 1}", *script,
            *overrides(tmp_path, tmp_path / "run", "strategy.timeout_s=45"),
        ]  # fmt: skip
        env = environment({"GLOO_SOCKET_IFNAME": f"veth{number}", **LAUNCHER})
        log = (tmp_path / f"agent{number}.log").open("w")
        agents.append(subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log))
    while not ((notes / "ready-0").exists() and (notes / "ready-1").exists()):
        assert [agent.poll() for agent in agents] == [None, None], (tmp_path / "agent0.log").read_text()
    ip("-n", two_machines[1], "link", "set", "veth1", "down")
    (notes / "cut").touch()
    assert agents[0].wait(400) == 0, (tmp_path / "agent0.log").read_text()
    assert agents[1].wait(120) != 0
    assert load_checkpoint(tmp_path / "run" / "checkpoint.pt").progress.step == STEPS
    assert_every_image_once(notes)
    worlds = {
        json.loads(line)["world"] for file in notes.glob("seen-*") for line in file.read_text().splitlines()
    }
    assert worlds == {1, 2}
