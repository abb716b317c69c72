"""The learning-rate range test (Smith 2017, section 3.3, with the exponential steps of Gugger 2018): the rate
grows with every batch, and the loss tells where it begins to help and where it is too much."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, repeat

import numpy as np
import torch
from torch import nn

from configs.schema import TrainConfig
from data.loader import Batch, Loader
from train.optim import add_l1, set_lr
from train.strategy import Strategy
from train.task import Task, draws_for

LOWEST, HIGHEST = 1e-6, 10.0
DIVERGED = 4.0
"""Times the best loss."""
SPAN = 20
"""The loss is averaged over about 1/SPAN of the test: with its seven decades, a third of one."""


@dataclass(frozen=True)
class Curve:
    lrs: list[float]
    losses: list[float]
    """As they came; shorter than was asked for where the loss diverged."""
    smoothed: list[float]
    diverged: float | None
    """Learning rate at which the smoothed loss was above DIVERGED x the best, or the loss not finite."""


@dataclass(frozen=True)
class Suggestion:
    steepest: float | None
    """Where the smoothed loss falls fastest with the logarithm of the rate; None where it never falls."""
    tenth: float | None
    """A tenth of where it diverged; None where it did not."""


def range_test(
    config: TrainConfig,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: Loader,
    strategy: Strategy,
    task: Task,
    num_steps: int,
) -> Curve:
    """Train for `num_steps` optimiser steps at most, the rate growing from LOWEST to HIGHEST, with the
    config's batch, task, precision, clipping and optimiser."""
    scaler = torch.amp.GradScaler(strategy.device.type, enabled=strategy.precision == "fp16")
    prepared = strategy.prepare(model).train()
    batches: Iterator[Batch] = chain.from_iterable(repeat(loader))
    losses: list[float] = []
    lrs = rates(num_steps)
    for step, lr in enumerate(lrs):
        torch.manual_seed((config.seed << 40) + (step << 12))
        set_lr(optimizer, lr)
        loss = 0.0
        for part in range(config.accumulate):
            images, criterion = task(next(batches), draws_for(config.seed, step, part, strategy.replica))
            share = 1 / config.accumulate
            loss += float(strategy.backward(prepared, images, criterion, scaler, share=share, exchange=True))
        losses.append(loss)
        if curve(lrs[: step + 1], losses, num_steps).diverged is not None:
            break
        scaler.unscale_(optimizer)
        if config.optim.l1:
            add_l1(optimizer, config.optim.l1)
        if config.clip_grad_norm:
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_grad_norm)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
    return curve(lrs[: len(losses)], losses, num_steps)


def rates(num_steps: int) -> list[float]:
    """Evenly on a logarithmic axis."""
    return [float(lr) for lr in np.geomspace(LOWEST, HIGHEST, num_steps)]


def curve(lrs: list[float], losses: list[float], num_steps: int) -> Curve:
    """Smoothed by an exponential average, corrected for its start as Adam's (Kingma and Ba 2015). A loss
    that is not finite ends the smoothed curve."""
    keep = max(0.0, 1 - SPAN / num_steps)
    average, smoothed, diverged = 0.0, [], None
    for count, (lr, loss) in enumerate(zip(lrs, losses, strict=True), start=1):
        average = keep * average + (1 - keep) * loss
        value = average / (1 - keep**count)
        if math.isfinite(value):
            smoothed.append(value)
        if not math.isfinite(value) or value > DIVERGED * min(smoothed):
            diverged = lr
            break
    return Curve(lrs, losses, smoothed, diverged)


def suggest(found: Curve) -> Suggestion:
    steepest = None
    end = int(np.argmin(found.smoothed)) + 1 if found.smoothed else 0
    if end > 2:  # after its lowest point the loss only rises
        slopes = np.gradient(found.smoothed[:end], np.log(found.lrs[:end]))
        place = int(np.argmin(slopes))
        steepest = found.lrs[place] if slopes[place] < 0 else None
    return Suggestion(steepest, found.diverged / 10 if found.diverged is not None else None)
