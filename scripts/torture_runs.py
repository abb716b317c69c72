"""Runs as processes for `scripts.torture`: started and compared with the one that nothing befell."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scripts.torture_faults import Fault
from train.checkpoint import NAME, Checkpoint, load_checkpoint

# 16 images of 32 px in batches of 4: 4 steps an epoch, a save after every second, everything on that draws.
WORKLOAD = [
    "data=synthetic", "data.num_classes=2", "data.num_train=16", "data.num_val=6",
    "data.width=40", "data.height=36", "data.input.size=32", "data.input.resize=32",
    "model=mobilenet_v2", "model.stem=small", "model.dropout=0.3",
    "mixup=0.2", "cutmix=1.0", "ema_decay=0.9", "clip_grad_norm=1.0", "optim.lr=0.01",
    "batch_size=4", "epochs=2", "log_every=1", "checkpoint_every=2", "precision=fp32", "device=cpu",
]  # fmt: skip
STEPS, SAVES, EVALUATIONS, STEPS_PER_EPOCH = 8, 4, 2, 4
STRATEGIES = ("single", "ddp", "fsdp")
LIMIT_S = 600.0
"""No life of this workload is as long on the slowest machine."""
TIMING = ("images_per_s", "data_wait")


@dataclass(frozen=True)
class Life:
    """One execution of a run, from its start to its end or to its fault's."""

    code: int
    output: str
    seconds: float
    left: list[int]
    """Processes that outlived the launcher."""


@dataclass(frozen=True)
class Runs:
    """Where the runs of one torture live."""

    folder: Path

    def live(self, strategy: str, run_dir: Path, *overrides: str, fault: Fault | None = None) -> Life:
        """One life, alone or as two ranks under torchrun; what it printed is kept beside the run's folder."""
        module = ["scripts.torture_faults", fault.to_json()] if fault is not None else ["train"]
        images = [f"data.root={self.folder / 'images'}", f"data.cache_dir={self.folder / 'cache'}"]
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        command = [sys.executable, *(launcher if strategy != "single" else []), "-m", *module]
        command += [*WORKLOAD, *images, f"strategy={strategy}", f"run_dir={run_dir}", *overrides]
        printed = run_dir.with_name(f"{run_dir.name}.txt")
        start = time.monotonic()
        with printed.open("ab") as file:
            begin = file.tell()
            process = subprocess.Popen(
                command, stdout=file, stderr=file, stdin=subprocess.DEVNULL, start_new_session=True,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )  # fmt: skip
            try:
                code = process.wait(LIMIT_S)
            except subprocess.TimeoutExpired:
                code = 124
            finally:
                seconds = time.monotonic() - start
                left = processes_of(run_dir)
                for pid in left:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                process.wait()
        return Life(code, printed.read_bytes()[begin:].decode(errors="replace"), seconds, left)

    def reference(self, strategy: str) -> Path:
        """The run of this strategy that nothing befalls; made at the first call."""
        run_dir = self.folder / f"whole-{strategy}"
        if not run_dir.exists():
            life = self.live(strategy, run_dir)
            if life.code != 0:
                raise RuntimeError(f"the run that nothing befell ended with {life.code}:\n{life.output}")
        return run_dir


def processes_of(run_dir: Path, wait_s: float = 5.0) -> list[int]:
    """Those that still name the folder after `wait_s`: SIGKILL takes a moment to be heard."""
    end = time.monotonic() + wait_s
    while True:
        commands = Path("/proc").glob("[0-9]*/cmdline")
        found = [int(path.parent.name) for path in commands if _names(path, run_dir)]
        if not found or time.monotonic() > end:
            return found
        time.sleep(0.1)


def _names(cmdline: Path, run_dir: Path) -> bool:
    try:
        return f"run_dir={run_dir}".encode() in cmdline.read_bytes().split(b"\0")
    except OSError:  # it has ended
        return False


def differences(expected: Path, got: Path) -> list[str]:
    """In what a run is not the one that it should be; empty where they are equal bit for bit."""
    found = []
    for name in (NAME, "best.pt"):
        one, other = load_checkpoint(expected / name), load_checkpoint(got / name)
        ours, theirs = tensors(one), tensors(other)
        unequal = [key for key in ours if key not in theirs or not torch.equal(ours[key], theirs[key])]
        if unequal or ours.keys() != theirs.keys():
            found.append(f"{name}: {len(unequal)} of {len(ours)} tensors differ, such as {unequal[:1]}")
        if replace(one.progress, nan_steps=0) != replace(other.progress, nan_steps=0):
            found.append(f"{name}: progress {asdict(other.progress)} and not {asdict(one.progress)}")
    if records(expected) != records(got):
        found.append("metrics.jsonl differs")
    wanted, shown = scalars(expected), scalars(got)
    found += [f"TensorBoard's {tag} differs" for tag in wanted if wanted[tag] != shown.get(tag)]
    return found


def tensors(saved: Checkpoint) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint by name."""
    parts = {"model": saved.model, "ema": saved.ema or {}, "optimizer": saved.optimizer}
    return {f"{part}/{name}": value for part, named in parts.items() for name, value in named.items()}


def records(run_dir: Path) -> list[dict[str, Any]]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMING} for line in lines]


def scalars(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    (file,) = (run_dir / "tensorboard").iterdir()
    events = EventAccumulator(str(file)).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.endswith(TIMING)]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}
