"""The files for clusters: what they would start is a command of ours that composes.

SLURM is not at hand: its commands are replaced by scripts that note how they were called.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from configs.load import from_yaml, load
from configs.schema import TrainConfig
from tests.processes import ROOT, environment

SBATCH = ROOT / "scripts" / "slurm" / "train.sbatch"
STAND_INS = {
    "scontrol": 'echo "$@" >> {log}; echo node7; echo node8',
    "scancel": 'echo "scancel $@" >> {log}; touch {log}.stop',
    "srun": 'echo "srun $@" >> {log}; [ -z "$WAIT" ] || until [ -e {log}.stop ]; do sleep 0.05; done',
}


def start_sbatch(folder: Path, wait: str) -> tuple[subprocess.Popen[str], Path]:
    log = folder / "log"
    for name, script in STAND_INS.items():
        (folder / name).write_text(f"#!/bin/bash\n{script.format(log=log)}\n")
        (folder / name).chmod(0o755)
    slurm = {
        "SLURM_JOB_ID": "31", "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_NNODES": "2",
        "SLURM_GPUS_ON_NODE": "8", "PATH": f"{folder}:{os.environ['PATH']}", "WAIT": wait,
    }  # fmt: skip
    command = ["bash", str(SBATCH), "data=image_folder", "data.root=/shared/my images"]
    return subprocess.Popen(command, env=environment(slurm), text=True, stderr=subprocess.PIPE), log


def test_slurm_starts_an_elastic_job_that_can_go_on(tmp_path: Path) -> None:
    process, log = start_sbatch(tmp_path, wait="")
    assert process.wait(30) == 0
    srun = log.read_text().splitlines()[-1]
    assert "--nnodes=2 --nproc-per-node=8" in srun
    assert "--rdzv-endpoint=node7:20031" in srun
    assert srun.endswith(
        "-m train data=image_folder data.root=/shared/my images run_dir=runs/slurm-31 resume=true"
    )


def test_slurms_warning_saves_and_requeues(tmp_path: Path) -> None:
    process, log = start_sbatch(tmp_path, wait="yes")
    while not (log.exists() and "srun" in log.read_text()):
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert log.read_text().splitlines()[-2:] == ["scancel --signal=TERM 31", "requeue 31"]


def test_the_batch_file_asks_for_the_warning_and_the_requeue() -> None:
    options = re.findall(r"^#SBATCH (\S+)", SBATCH.read_text(), re.MULTILINE)
    assert {"--requeue", "--signal=B:TERM@120", "--ntasks-per-node=1"} <= set(options)


@pytest.mark.parametrize(
    "file", sorted((ROOT / "scripts" / "kubernetes").glob("*.yaml")), ids=lambda f: f.name
)
def test_a_pods_command_composes(file: Path) -> None:
    job = from_yaml(file.read_text())
    (worker,) = job["spec"]["pytorchReplicaSpecs"].values()
    (container,) = worker["template"]["spec"]["containers"]
    program, *words = container["command"]
    assert (program, words[:2]) == ("torchrun", ["-m", "train"])
    config = load("train", TrainConfig, words[2:])
    assert config.resume
    shared = [mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "shared"]
    assert config.run_dir is not None
    assert config.run_dir.startswith(shared[0])
    elastic = job["spec"]["elasticPolicy"]
    worlds = [elastic["nProcPerNode"] * n for n in range(elastic["minReplicas"], elastic["maxReplicas"] + 1)]
    assert [world for world in worlds if config.batch_size % world] == []
