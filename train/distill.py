"""Learning from other networks besides the labels: a task around another task."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
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
from train.model import stages
from train.monitor import log, own_mistakes
from train.precision import autocast
from train.strategy import Strategy
from train.task import Criterion, Rows, Task


class Taps:
    """Where the stages of a network looked, in its last forward pass."""

    def __init__(self, network: nn.Module) -> None:
        parts = [modules[-1] for name, modules in stages(network).items() if name not in ("stem", "head")]
        self.maps: list[torch.Tensor] = [torch.empty(0)] * len(parts)
        for number, part in enumerate(parts):
            part.register_forward_hook(partial(self._note, number))

    def _note(self, number: int, module: nn.Module, given: object, made: torch.Tensor) -> None:
        self.maps[number] = attention(made)


def attention(activation: torch.Tensor) -> torch.Tensor:
    """float [n, channels, h, w] -> float32 [n, h, w]: the mean square over the channels."""
    return activation.float().square().mean(1)


def attention_loss(ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> torch.Tensor:
    """Zagoruyko and Komodakis 2017, equation 2, with squared distances: half the sum over the stages of the
    distance between the two maps, each of length 1; the mean over the images.

    `ours`, `theirs`: of each stage float32 [n, h, w], the last ones belong together; the larger map of two
    is averaged to the size of the smaller. It takes no layer of its own, so the widths may differ.
    """
    total = torch.zeros((), device=ours[-1].device)
    for one, other in zip(reversed(ours), reversed(theirs), strict=False):
        height, width = min(tuple(one.shape[-2:]), tuple(other.shape[-2:]))
        flat = [F.adaptive_avg_pool2d(m[:, None], (height, width)).flatten(1) for m in (one, other)]
        a, b = (F.normalize(m, dim=1) for m in flat)
        total = total + (a - b).square().sum(1).mean() / 2
    return total


def with_teachers(
    task: Task, config: TrainConfig, spec: InputSpec, strategy: Strategy, model: nn.Module
) -> Task:
    """`task` with the teachers of `config.distill` beside its labels; `task` itself where there are none.

    `model` learns; with `distill.features` its stages are looked into.

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
    taps = Taps(model) if config.distill.features else None
    return distilled(task, teachers, config.distill, strategy.device, strategy.precision, taps)


def distilled(
    task: Task,
    teachers: Sequence[nn.Module],
    config: DistillConfig,
    device: torch.device,
    precision: str,
    taps: Taps | None = None,
) -> Task:
    """weight x (`soft_loss` or `dist_loss`) + (1 - weight) x the task's loss, and with `taps`, those of the
    network that learns, features x `attention_loss`, the mean over the teachers.

    The teachers, in evaluation mode, see the images that the network sees, mixed ones too; their
    probabilities are averaged.
    """
    theirs = [Taps(teacher) for teacher in teachers] if taps is not None else []
    match = soft_loss if config.method == "kd" else dist_loss

    def distilled_task(batch: Batch, draws: np.random.Generator) -> tuple[torch.Tensor, Criterion]:
        images, criterion = task(batch, draws)
        targets: list[torch.Tensor] = []

        def loss(logits: torch.Tensor, rows: Rows) -> torch.Tensor:
            # Asked for only here, so that of a pipeline's ranks the last one alone runs the teachers.
            if not targets:
                with autocast(device, precision):
                    found = log_probabilities(teachers, images, config.temperature)
                targets.append(mean_log_probabilities(found))
            soft = match(logits, targets[0][rows], config.temperature)
            value = config.weight * soft + (1 - config.weight) * criterion(logits, rows)
            if taps is not None:
                looks = [attention_loss(taps.maps, their.maps) for their in theirs]
                value = value + config.features * torch.stack(looks).mean()
            return value

        return images, loss

    return distilled_task


def soft_loss(logits: torch.Tensor, targets: torch.Tensor, temperature: float) -> torch.Tensor:
    """T^2 x KL(targets || network at T), the mean over the rows.

    `logits` float [n, classes]; `targets` float32 [n, classes], log-probabilities at that temperature. The
    factor keeps the gradient's size, which falls with 1 / T^2 (Hinton et al. 2015, section 2).
    """
    ours = (logits.float() / temperature).log_softmax(1)
    return temperature**2 * F.kl_div(ours, targets, reduction="batchmean", log_target=True)


def dist_loss(logits: torch.Tensor, targets: torch.Tensor, temperature: float) -> torch.Tensor:
    """Huang et al. 2022, "Knowledge Distillation from A Stronger Teacher", section 4, with both weights 1:
    T^2 x (1 - the correlation of each image's probabilities, and 1 - that of each class's over the images).

    Shapes as in `soft_loss`. The second part is of these rows: ranks and micro-batches make it another one.
    """
    ours, theirs = (logits.float() / temperature).softmax(1), targets.exp()
    between = 1 - _correlation(ours, theirs)
    within = 1 - _correlation(ours.T, theirs.T)
    return temperature**2 * (between.mean() + within.mean())


def _correlation(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Pearson's, of the rows: float [n, m] twice -> float [n]."""
    one, other = (values - values.mean(1, keepdim=True) for values in (one, other))
    return F.cosine_similarity(one, other, dim=1, eps=1e-8)
