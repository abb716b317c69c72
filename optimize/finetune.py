"""Training a compressed network further, as it was trained before: a run of `train` in the stage's folder."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from configs.compress import ORIGINAL, FinetuneConfig
from configs.load import from_dict, from_yaml, to_yaml
from configs.schema import DistillConfig, EarlyStopConfig, TrainConfig, TransferConfig
from deploy.errors import LabError
from optimize.stage import Context
from train.checkpoint import read_facts
from train.launch import Child, run_children
from train.result import read_result


def finetune(source: Path, folder: Path, context: Context) -> dict[str, Any]:
    """See `optimize.stage.Stage`. Killed, it goes on from its last checkpoint, bit for bit."""
    return train(finetune_config(source, folder, context, context.config.finetune), folder)


def train(config: TrainConfig, folder: Path) -> dict[str, float]:
    """A run in that folder, in this process or under torchrun; the metrics of its end.

    One that is complete is not run again, one that was killed goes on. Raises LabError where it is stopped.
    """
    if read_result(folder, config) is None:
        _run(config, folder)
    result = read_result(folder, config)
    if result is None:
        raise LabError(f"the training in {folder} was stopped: give the command again to go on")
    return result.metrics


def _run(config: TrainConfig, folder: Path) -> None:
    if (config.processes or 1) == 1:
        from train.run import run

        run(config)
        return
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "finetune.yaml"
    file.write_text(to_yaml(config))
    launcher = ["torchrun", "--standalone", f"--nproc-per-node={config.processes}"]
    (code,) = run_children([Child([*launcher, "-m", "optimize.finetune", str(file)])])
    if code:
        raise LabError(
            f"the training in {folder} ended with exit code {code}: give the command again to go on"
        )


def finetune_config(source: Path, folder: Path, context: Context, ours: FinetuneConfig) -> TrainConfig:
    """The config of the training that made the checkpoint, with what the stage changes."""
    trained = read_facts(source).config
    teachers = [str(context.original) if teacher == ORIGINAL else teacher for teacher in ours.teachers]
    return replace(
        trained,
        name=folder.name,
        run_dir=str(folder),
        resume=True,
        epochs=ours.epochs,
        processes=context.config.processes,
        checkpoint_epochs=1,
        keep_epochs=[],
        data=context.data,
        model=replace(trained.model, weights=str(source), new_head=False),
        optim=replace(trained.optim, lr=ours.lr, warmup_epochs=ours.warmup_epochs, cycles=1),
        distill=DistillConfig(
            teachers=teachers,
            temperature=ours.temperature,
            weight=ours.weight,
            method=ours.method,
            features=ours.features,
        ),
        transfer=TransferConfig(frozen_epochs=0, gradual=0, lr_decay=1.0),
        early_stop=EarlyStopConfig(patience=0, min_delta=0.0),
    )


if __name__ == "__main__":  # one rank of several
    from train.run import run

    run(from_dict(from_yaml(Path(sys.argv[1]).read_text()), TrainConfig))
