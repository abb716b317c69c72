"""Learning from other networks besides the labels: a task around another task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from configs.schema import DistillConfig, TrainConfig
from data.loader import Batch
from deploy.input_spec import InputSpec
from train.checkpoint import read_facts
from train.ensemble import (
    as_network,
    load_members,
    log_probabilities,
    mean_log_probabilities,
    require_same_input,
)
from train.monitor import log, own_mistakes
from train.precision import autocast
from train.strategy import Strategy
from train.task import Criterion, Rows, Task


def with_teachers(task: Task, config: TrainConfig, spec: InputSpec, strategy: Strategy) -> Task:
    """`task` with the teachers of `config.distill` beside its labels; `task` itself where there are none.

    Called on every rank. Raises LabError where a teacher is missing, or sees other images or classes.
    """
    if not config.distill.teachers:
        return task
    paths = [Path(teacher) for teacher in config.distill.teachers]

    def check() -> None:
        for path in paths:
            require_same_input(path, read_facts(path).input_spec, spec)
        log.info("distilling from %s", ", ".join(map(str, paths)))

    strategy.on_first(check)
    with own_mistakes(strategy.ranks.rank):
        members = load_members(paths, spec)
    teachers = [as_network(m, strategy.device, channels_last=config.channels_last) for m in members]
    return distilled(task, teachers, config.distill, strategy.device, strategy.precision)


def distilled(
    task: Task, teachers: Sequence[nn.Module], config: DistillConfig, device: torch.device, precision: str
) -> Task:
    """Hinton et al. 2015: weight x T^2 x KL(teachers at T || network at T) + (1 - weight) x the task's loss.

    The teachers, in evaluation mode, see the images that the network sees, mixed ones too; their
    probabilities are averaged.
    """

    def distilled_task(batch: Batch, draws: np.random.Generator) -> tuple[torch.Tensor, Criterion]:
        images, criterion = task(batch, draws)
        targets: list[torch.Tensor] = []

        def loss(logits: torch.Tensor, rows: Rows) -> torch.Tensor:
            # Asked for only here, so that of a pipeline's ranks the last one alone runs the teachers.
            if not targets:
                with autocast(device, precision):
                    found = log_probabilities(teachers, images, config.temperature)
                targets.append(mean_log_probabilities(found))
            soft = soft_loss(logits, targets[0][rows], config.temperature)
            return config.weight * soft + (1 - config.weight) * criterion(logits, rows)

        return images, loss

    return distilled_task


def soft_loss(logits: torch.Tensor, targets: torch.Tensor, temperature: float) -> torch.Tensor:
    """T^2 x KL(targets || network at T), the mean over the rows.

    `logits` float [n, classes]; `targets` float32 [n, classes], log-probabilities at that temperature. The
    factor keeps the gradient's size, which falls with 1 / T^2 (Hinton et al. 2015, section 2).
    """
    ours = (logits.float() / temperature).log_softmax(1)
    return temperature**2 * F.kl_div(ours, targets, reduction="batchmean", log_target=True)
