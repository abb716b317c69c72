"""Training and evaluation, whatever the strategy, the loader or the loss."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from configs.schema import TrainConfig
from data.loader import Batch, Loader
from deploy.errors import LabError
from deploy.input_spec import InputSpec
from train.checkpoint import Progress
from train.ema import Ema
from train.metrics import EvalCounts, EvalResult, EvalScores
from train.monitor import Monitor
from train.optim import lr_at, set_lr
from train.stop import StopRequest
from train.strategy import Strategy

Loss = Callable[[nn.Module, Batch, int], torch.Tensor]
"""(network, batch, optimiser step) -> scalar: a task, such as classification or distillation."""

STOP_CHECK_STEPS = 4
"""Between two votes on a stop request: often enough for the grace of SIGTERM, rare enough to cost nothing."""


@dataclass
class Training:
    """What training changes. Everything here is in the checkpoint."""

    model: nn.Module
    prepared: nn.Module
    """`model` as the strategy wraps it."""
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: Ema | None
    progress: Progress

    @property
    def evaluated(self) -> nn.Module:
        return self.ema.model if self.ema is not None else self.model


@dataclass(frozen=True)
class Job:
    """What stays as it is for a whole run."""

    config: TrainConfig
    spec: InputSpec
    precision: str
    strategy: Strategy
    loss: Loss
    monitor: Monitor
    stop: StopRequest
    save: Callable[[], None]
    """Writes a checkpoint of the moment; called on every rank."""
    show: Callable[[int, int, str], None]
    """Progress: done, of how many, a few words."""


def choose_precision(wanted: str, device: torch.device) -> str:
    """fp32, bf16 or fp16. Raises LabError for fp16 without a GPU."""
    on_gpu = device.type == "cuda"
    if wanted == "fp16" and not on_gpu:
        raise LabError("precision=fp16 needs a GPU: use precision=bf16 or fp32 on a CPU")
    if wanted != "auto":
        return wanted
    # Without native bf16 a CPU emulates it, at several times the cost of fp32.
    native = torch.cuda.is_bf16_supported() if on_gpu else torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return "bf16" if native else "fp32"


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return torch.autocast(device.type, dtypes[precision]) if precision in dtypes else nullcontext()


def classification_loss(config: TrainConfig) -> Loss:
    """Cross entropy with label smoothing and mixup (Zhang et al. 2018: each image with the one opposite it in
    the shuffled batch, one weight a batch)."""

    def loss(network: nn.Module, batch: Batch, step: int) -> torch.Tensor:
        images, labels = batch
        if config.mixup == 0:
            return F.cross_entropy(network(images), labels, label_smoothing=config.label_smoothing)
        weight = float(torch.distributions.Beta(config.mixup, config.mixup).sample())
        logits = network(images.mul(weight).add_(images.flip(0), alpha=1 - weight))
        ours = F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
        theirs = F.cross_entropy(logits, labels.flip(0), label_smoothing=config.label_smoothing)
        return weight * ours + (1 - weight) * theirs

    return loss


def train_epoch(training: Training, loader: Loader, job: Job) -> bool:
    """Go on to the end of the epoch. False where a stop was asked for before.

    Raises LabError where the loss is no longer finite.
    """
    config, strategy, progress = job.config, job.strategy, training.progress
    parameters = list(training.model.parameters())
    steps_per_epoch = len(loader) // config.accumulate
    start, end = progress.epoch * steps_per_epoch, (progress.epoch + 1) * steps_per_epoch
    training.prepared.train()
    window = _Window(strategy.device)
    batches = iter(loader)
    title = text = f"epoch {progress.epoch + 1} of {config.epochs}"
    while progress.step < end:
        job.show(progress.step - start, steps_per_epoch, text)
        if progress.step % STOP_CHECK_STEPS == 0 and strategy.any(job.stop.requested):
            return False
        # Dropout and mixup draw from here on, so that a continued run draws what the uninterrupted one did.
        torch.manual_seed((config.seed << 40) + (progress.step << 12) + strategy.ranks.rank)
        lr = lr_at(progress.step, steps_per_epoch, config.epochs, config.optim)
        set_lr(training.optimizer, lr)
        for part in range(config.accumulate):
            batch = window.next(batches)
            if progress.step == 0 and part == 0:
                job.monitor.inputs(0, batch.images, job.spec)
            exchanges = part == config.accumulate - 1
            with nullcontext() if exchanges else strategy.accumulating(training.prepared):
                with autocast(strategy.device, job.precision):
                    value = job.loss(training.prepared, batch, progress.step) / config.accumulate
                training.scaler.scale(value).backward()
            window.add(value, 1 / config.accumulate)
        progress.step += 1
        logs = progress.step % config.log_every == 0 or progress.step == end
        grad_norm = _step(training, parameters, config.clip_grad_norm, measure=logs)
        if training.ema is not None:
            training.ema.update(progress.step)
        if logs:
            values = window.close(strategy) | {"lr": lr, "grad_norm": grad_norm}
            if not math.isfinite(values["loss"]):
                raise LabError(
                    f"the loss is {values['loss']} at step {progress.step}: lower "
                    f"optim.lr={config.optim.lr:g}, set clip_grad_norm=1, or use precision=fp32; "
                    "the last checkpoint stands"
                )
            job.monitor.train(progress.step, progress.epoch + 1, values)
            text = f"{title}  loss {values['loss']:.3f}  {values['images_per_s']:,.0f} img/s"
        if config.checkpoint_every and progress.step % config.checkpoint_every == 0 and progress.step < end:
            job.save()
    return True


@torch.inference_mode()
def evaluate(network: nn.Module, loader: Loader, job: Job, *, collect: bool) -> EvalResult | None:
    """Over every image exactly once, whatever the number of ranks. None where a stop was asked for.

    `collect` brings every image's probabilities to rank 0, and with them what the curves take.
    """
    job.strategy.align(network)
    network.eval()
    counts = EvalCounts(job.spec.num_classes, job.strategy.device)
    scores = EvalScores() if collect else None
    for number, batch in enumerate(loader):
        if number % STOP_CHECK_STEPS == 0 and job.strategy.any(job.stop.requested):
            return None
        with autocast(job.strategy.device, job.precision):
            logits = network(batch.images)
        counts.add(logits, batch.labels)
        if scores is not None:
            scores.add(logits, batch.labels)
        job.show(number + 1, len(loader), "evaluation")
    counts.values = job.strategy.sum(counts.values)
    return counts.result(scores.gather(job.strategy) if scores is not None else None)


def _step(training: Training, parameters: list[nn.Parameter], max_norm: float, *, measure: bool) -> float:
    """One optimiser step; the norm of the gradients before clipping where it is wanted, else 0."""
    norm = torch.zeros(())
    if max_norm or measure:
        training.scaler.unscale_(training.optimizer)
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if max_norm:
            torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    training.scaler.step(training.optimizer)
    training.scaler.update()
    training.optimizer.zero_grad(set_to_none=True)
    return float(norm) if measure else 0.0


class _Window:
    """What is measured between two records. Nothing here waits for the GPU before `close`."""

    def __init__(self, device: torch.device) -> None:
        self._loss = torch.zeros((), device=device)
        self._start()

    def next(self, batches: Iterator[Batch]) -> Batch:
        before = time.perf_counter()
        batch = next(batches)
        self._waited += time.perf_counter() - before
        self._images += len(batch.labels)
        return batch

    def add(self, loss: torch.Tensor, share: float) -> None:
        self._loss += loss.detach()
        self._steps += share

    def close(self, strategy: Strategy) -> dict[str, float]:
        """Means over the ranks; images_per_s over all of them."""
        world = strategy.ranks.world
        loss = float(strategy.sum(self._loss)) / world / self._steps
        seconds = time.perf_counter() - self._began
        values = {
            "loss": loss,
            "images_per_s": world * self._images / seconds,
            "data_wait": self._waited / seconds,
        }
        self._loss.zero_()
        self._start()
        return values

    def _start(self) -> None:
        self._began = time.perf_counter()
        self._waited = 0.0
        self._images = 0
        self._steps = 0.0
