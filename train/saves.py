"""Which checkpoints a run folder has, how they get there, and which one a run goes on from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from configs.schema import TrainConfig
from train.checkpoint import (
    NAME,
    Checkpoint,
    Facts,
    UnreadableError,
    load_checkpoint,
    read_facts,
    save_checkpoint,
)
from train.monitor import log
from train.sharded import FACTS, ShardedWriter, read_sharded, sharded_folders
from train.state import load_model, load_optimizer
from train.strategy import Strategy
from train.structure import Structure

PREVIOUS = "previous.pt"


class Saves:
    """The checkpoints of one run. Every method is called on every rank."""

    def __init__(self, run_dir: Path, strategy: Strategy) -> None:
        self._run_dir = run_dir
        self._strategy = strategy
        self._sharded = ShardedWriter(run_dir, strategy.on_first) if strategy.sharded else None

    def save(self, checkpoint: Checkpoint) -> None:
        """As the latest one, beside the one before it."""
        if self._sharded is not None:
            self._sharded.save(checkpoint)
        else:
            self.export(checkpoint, NAME)

    def export(self, checkpoint: Checkpoint, name: str) -> None:
        """As one file, in the form that is the same for every strategy."""
        whole = self._strategy.whole
        checkpoint = replace(
            checkpoint,
            model=whole(checkpoint.model),
            ema=whole(checkpoint.ema) if checkpoint.ema is not None else None,
            optimizer=whole(checkpoint.optimizer),
        )
        if self._strategy.ranks.is_first:
            previous = self._run_dir / PREVIOUS if name == NAME else None
            save_checkpoint(self._run_dir / name, checkpoint, previous)

    def wait(self) -> None:
        """Until what is being written is there: before the ranks part."""
        if self._sharded is not None:
            self._sharded.wait()

    def finish(self, checkpoint: Checkpoint) -> None:
        """Of a sharded run leave one file too."""
        self.wait()
        if self._sharded is not None:
            self.export(checkpoint, NAME)

    def begun(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return self._strategy.on_first(lambda: bool(checkpoints(self._run_dir)))

    def restore(
        self, model: nn.Module, ema: nn.Module | None, optimizer: torch.optim.Optimizer
    ) -> Checkpoint | None:
        """Load the newest checkpoint that every rank can read; None where there is none yet.

        Raises LabError where there are some, and none can be read.
        """
        paths = self._strategy.on_first(lambda: [str(path) for path in checkpoints(self._run_dir)])
        problem = UnreadableError("no checkpoint")
        for path in paths:
            found: Checkpoint | None = None
            try:
                found = _load(Path(path), model, ema, optimizer)
            except UnreadableError as error:
                problem = error
            if not self._strategy.any(found is None):
                return found
            log.warning("%s; falling back to the one before", problem)
        if paths:
            raise problem
        return None


def checkpoints(run_dir: Path) -> list[Path]:
    """What a run can go on from, newest first; what cannot be read stands first, so that it is told."""
    found = [path for path in (run_dir / NAME, run_dir / PREVIOUS) if path.exists()]
    return sorted([*found, *sharded_folders(run_dir)], key=_step, reverse=True)


def saved_config(run_dir: Path) -> TrainConfig | None:
    """Of the newest readable checkpoint; None where there is no checkpoint. Raises UnreadableError."""
    facts = _saved_facts(run_dir)
    return facts.config if facts is not None else None


def saved_structure(run_dir: Path) -> Structure:
    """Likewise; empty where there is no checkpoint."""
    facts = _saved_facts(run_dir)
    return facts.structure if facts is not None else []


def _saved_facts(run_dir: Path) -> Facts | None:
    problem: UnreadableError | None = None
    for path in checkpoints(run_dir):
        try:
            return read_facts(path / FACTS if path.is_dir() else path)
        except UnreadableError as error:
            problem = problem or error
    if problem is not None:
        raise problem
    return None


def _step(path: Path) -> float:
    try:
        return read_facts(path / FACTS if path.is_dir() else path).progress.step
    except UnreadableError:
        return float("inf")


def _load(
    path: Path, model: nn.Module, ema: nn.Module | None, optimizer: torch.optim.Optimizer
) -> Checkpoint:
    if path.is_dir():
        return read_sharded(path, model, ema, optimizer)
    saved = load_checkpoint(path)
    load_model(model, saved.model)
    if ema is not None and saved.ema is not None:
        load_model(ema, saved.ema)
    load_optimizer(optimizer, model, saved.optimizer)
    return saved
