"""A tiny run whose network is compressed in rounds, and the killing of a stage in one of them."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from configs.compress import OptimizeConfig
from configs.load import load
from configs.schema import TrainConfig
from data.prepare import Splits, input_spec
from optimize.chain import open_context
from optimize.stage import Context
from tests.processes import python
from train.checkpoint import Checkpoint, Progress, load_checkpoint
from train.run import run
from train.structure import build_network

# 24 images of 32 px in batches of 4 over two backward passes: 6 steps an epoch.
TINY = [
    "data=synthetic", "data.num_classes=2", "data.num_train=24", "data.num_val=7", "data.width=48",
    "data.height=40", "data.input.size=32", "data.input.resize=36", "model=mobilenet_v2",
    "model.dropout=0.3", "mixup=0.2", "ema_decay=0.9", "batch_size=4", "accumulate=2", "epochs=1",
    "log_every=1", "checkpoint_every=4", "optim.lr=0.01", "optim.warmup_epochs=0.5", "precision=fp32",
    "device=cpu", "diagnose.every=1", "clip_grad_norm=1.0",
]  # fmt: skip
SETTINGS = [
    "latency.seconds=0", "finetune.epochs=1", "sparsify.finetune.epochs=1", "sparsify.rounds=2",
    "sparsify.finetune.lr=0.01", "sparsify.sparsity=0.9", "sparsify.scope=uniform", "lottery.rounds=2",
    "lottery.scope=uniform",
]  # fmt: skip
KILLER = """
import importlib, os, signal, sys
from pathlib import Path
import train.saves as saves
from configs.compress import OptimizeConfig
from configs.load import load
from optimize.chain import STAGES, open_context
def die():
    os.kill(os.getpid(), signal.SIGKILL)
where, name, stage, source, folder, *arguments = sys.argv[1:]
module = importlib.import_module(f"optimize.{stage}")
save, changed = saves.save_checkpoint, getattr(module, "save_changed", None)
def save_and_die(path, checkpoint, previous):
    save(path, checkpoint, previous)
    if where == "inside" and path.parent.name == name and checkpoint.progress.step == 4:
        die()
def change_or_die(folder, *rest):
    if where == "between" and folder.name == name:
        die()
    changed(folder, *rest)
saves.save_checkpoint, module.save_changed = save_and_die, change_or_die
context = open_context(load("optimize", OptimizeConfig, arguments), print)
STAGES[stage](Path(source), Path(folder), context)
"""
"""Dies `inside` a training at step 4, or `between`, before a round's network is saved."""


def weight(model: nn.Module, name: str) -> torch.Tensor:
    return cast(torch.Tensor, model.get_submodule(name).weight).detach()


def trained() -> Checkpoint:
    """Of MobileNetV2, as a run leaves it; its weights are not those that it began with."""
    config = load("train", TrainConfig, TINY)
    spec = input_spec(config.data, ("a", "b"))
    torch.manual_seed(7)
    model = build_network(config.model, 2, [])
    facts: dict[str, Any] = {"scaler": {}, "loader": {"position": 0, "num_steps": 6}, "metrics": {}}
    return Checkpoint(
        config, spec, [], **facts, progress=Progress(), model=model.state_dict(), ema=None, optimizer={}
    )


def context(config: OptimizeConfig, checkpoint: Checkpoint) -> Context:
    trained = checkpoint.config
    splits = cast(Splits, None)  # no image is looked at
    return Context(config, Path("x.pt"), checkpoint.input_spec, trained.data, trained.loader, splits)


def tiny_run(folder: Path) -> Path:
    images = [f"data.root={folder / 'images'}", f"data.cache_dir={folder / 'cache'}"]
    run(load("train", TrainConfig, [*TINY, *images, f"run_dir={folder / 'run'}"]))
    return folder / "run"


def settings(run_dir: Path, *more: str) -> list[str]:
    return [f"checkpoint={run_dir / 'checkpoint.pt'}", *SETTINGS, *more]


def opened(run_dir: Path, *more: str) -> Context:
    return open_context(load("optimize", OptimizeConfig, settings(run_dir, *more)), print)


def killed(where: str, name: str, stage: str, source: Path, folder: Path, arguments: list[str]) -> None:
    """Run that stage on `source` in a process that dies in the folder `name`."""
    done: subprocess.CompletedProcess[str] = python(
        "-c", KILLER, where, name, stage, str(source), str(folder), *arguments, timeout=900
    )
    assert done.returncode == -9, done.stderr


def different_tensors(one: Path, other: Path) -> list[str]:
    """Of two checkpoints, with their averages."""
    ours, theirs = load_checkpoint(one), load_checkpoint(other)
    found = []
    for a, b in ((ours.model, theirs.model), (ours.weights, theirs.weights)):
        assert a.keys() == b.keys()
        found += [key for key in a if not torch.equal(a[key], b[key])]
    return found
