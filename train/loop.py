"""Training and evaluation, whatever the strategy, the loader or the task."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from configs.schema import TrainConfig
from data.loader import Loader
from deploy.errors import LabError
from deploy.input_spec import InputSpec
from train.checkpoint import Progress
from train.diagnosis import Diagnosis
from train.ema import Ema
from train.metrics import EvalCounts, EvalResult, EvalScores
from train.monitor import Monitor, log
from train.optim import add_l1, lr_at, set_lr
from train.profiler import Profiler
from train.state import local
from train.stop import StopRequest
from train.strategy import Strategy
from train.task import Task, draws_for
from train.transfer import keep_frozen
from train.watchdog import Watchdog
from train.window import Window

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
    metrics: dict[str, float]
    """Of the last evaluation."""

    @property
    def evaluated(self) -> nn.Module:
        return self.ema.model if self.ema is not None else self.model


@dataclass(frozen=True)
class Job:
    """What stays as it is for a whole run."""

    config: TrainConfig
    run_dir: Path
    spec: InputSpec
    strategy: Strategy
    task: Task
    files_of: Callable[[int], list[str]]
    """The images of an optimiser step, over all ranks."""
    monitor: Monitor
    diagnosis: Diagnosis
    profiler: Profiler
    stop: StopRequest
    watchdog: Watchdog
    save: Callable[[], None]
    """Writes a checkpoint of the moment; called on every rank."""
    show: Callable[[int, int, str], None]
    """Progress: done, of how many, a few words."""


def train_epoch(training: Training, loader: Loader, job: Job) -> bool:
    """Go on to the end of the epoch. False where a stop was asked for before.

    Raises LabError where the loss is no longer finite and the config does not let such steps be skipped.
    """
    config, strategy, progress = job.config, job.strategy, training.progress
    parameters = [p for p in training.model.parameters() if not p.is_meta]
    buffers = [b for b in training.model.buffers() if not b.is_meta] if config.on_nan == "skip" else []
    steps_per_epoch = len(loader) // config.accumulate
    start, end = progress.epoch * steps_per_epoch, (progress.epoch + 1) * steps_per_epoch
    training.prepared.train()
    keep_frozen(training.model)
    window = Window(strategy)
    batches = iter(loader)
    title = text = f"epoch {progress.epoch + 1} of {config.epochs}"
    while progress.step < end:
        job.watchdog.beat()
        job.show(progress.step - start, steps_per_epoch, text)
        if progress.step % STOP_CHECK_STEPS == 0 and strategy.stops(job.stop.requested):
            _require_savable(window, progress.step, job)
            return False
        # Dropout draws from here on, so that a continued run draws what the uninterrupted one did.
        torch.manual_seed((config.seed << 40) + (progress.step << 12) + strategy.ranks.rank)
        lr = lr_at(progress.step, steps_per_epoch, config.epochs, config.optim)
        set_lr(training.optimizer, lr)
        job.profiler.begin(progress.step)
        job.diagnosis.begin(progress.step + 1)
        before = [buffer.clone() for buffer in buffers]
        for part in range(config.accumulate):
            batch = window.next(batches)
            if progress.step == 0 and part == 0:
                job.monitor.inputs(0, batch.images, job.spec)
            images, criterion = job.task(batch, draws_for(config.seed, progress.step, part, strategy.replica))
            value = strategy.backward(
                training.prepared,
                images,
                criterion,
                training.scaler,
                share=1 / config.accumulate,
                exchange=part == config.accumulate - 1,
            )
            window.add(value)
        progress.step += 1
        logs = progress.step % config.log_every == 0 or progress.step == end
        looks = job.diagnosis.due(progress.step)
        norm = _finish_gradients(training, parameters, job, measure=logs or looks)
        job.diagnosis.end(progress.step, progress.epoch + 1)
        if config.on_nan == "skip" and not _is_finite(window, norm, job):
            _skip(training, job, buffers, before)
        else:
            training.scaler.step(training.optimizer)
            training.scaler.update()
            if training.ema is not None:
                training.ema.update(progress.step)
        training.optimizer.zero_grad(set_to_none=True)
        window.end_step()
        job.profiler.end(progress.step)
        if logs:
            values = window.close() | {"lr": lr, "grad_norm": float(norm)}
            if config.on_nan == "stop":
                _require_finite(window.losses, progress.step, job)
            job.monitor.train(progress.step, progress.epoch + 1, values)
            text = f"{title}  loss {values['loss']:.3f}  {values['images_per_s']:,.0f} img/s"
        if config.checkpoint_every and progress.step % config.checkpoint_every == 0 and progress.step < end:
            _require_savable(window, progress.step, job)
            job.save()
    log.info("%s: %s", title, window.summary())
    return True


@torch.no_grad()
def evaluate(network: nn.Module, loader: Loader, job: Job, *, collect: bool) -> EvalResult | None:
    """Over every image exactly once, whatever the number of ranks. None where a stop was asked for.

    `collect` brings every image's probabilities to rank 0, and with them what the curves take.
    """
    strategy = job.strategy
    strategy.align(network)
    network.eval()
    counts = EvalCounts(job.spec.num_classes, strategy.device)
    scores = EvalScores() if collect else None
    for number, batch in enumerate(loader):
        job.watchdog.beat()
        if number % STOP_CHECK_STEPS == 0 and strategy.stops(job.stop.requested):
            return None
        logits = strategy.logits(network, batch.images)
        counts.add(logits, batch.labels)
        if scores is not None:
            scores.add(logits, batch.labels)
        job.show(number + 1, len(loader), "evaluation")
    counts.values = strategy.sum(counts.values)
    return counts.result(scores.gather(strategy) if scores is not None else None)


def _finish_gradients(
    training: Training, parameters: list[nn.Parameter], job: Job, *, measure: bool
) -> torch.Tensor:
    """Unscale, add the L1 term, clip; the norm before clipping where somebody wants it, else 0."""
    config = job.config
    norm = torch.zeros(())
    wanted = measure or config.clip_grad_norm or config.on_nan == "skip"
    if wanted or config.optim.l1:
        training.scaler.unscale_(training.optimizer)
    if config.optim.l1:
        add_l1(training.optimizer, config.optim.l1)
    if wanted:
        gradients = [local(p.grad) for p in parameters if p.grad is not None]
        squared = torch.nn.utils.get_total_norm(gradients).to(job.strategy.device) ** 2
        norm = job.strategy.sum_parts(squared).sqrt()
        if config.clip_grad_norm and gradients:  # a rank of a pipeline may hold frozen stages only
            torch._foreach_mul_(gradients, (config.clip_grad_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


def _is_finite(window: Window, norm: torch.Tensor, job: Job) -> bool:
    """Of this step, the same answer on every rank. Waits for the GPU."""
    loss = float(job.strategy.sum(window.step_loss))
    # In fp16 gradients overflow now and then, which the scaler sees to.
    return math.isfinite(loss) and (job.strategy.precision == "fp16" or math.isfinite(float(norm)))


def _skip(training: Training, job: Job, buffers: list[torch.Tensor], before: list[torch.Tensor]) -> None:
    """Leave a step out: weights, average and BatchNorm's statistics stay as they were."""
    progress, config = training.progress, job.config
    for buffer, old in zip(buffers, before, strict=True):
        buffer.copy_(old)
    progress.nan_steps += 1
    record = _record_files(progress.step, job)
    log.warning("step %d is left out, its loss is not finite; its images are in %s", progress.step, record)
    if progress.nan_steps > config.max_nan_steps:
        raise LabError(
            f"{progress.nan_steps} steps without a finite loss, max_nan_steps={config.max_nan_steps} are let "
            f"pass: look at the images named in {record.parent}, lower optim.lr={config.optim.lr:g}, or set "
            "clip_grad_norm=1; the last checkpoint stands"
        )


def require_finite_weights(training: Training, strategy: Strategy) -> None:
    """On every rank, before a save: gradients may overflow though the loss does not. Raises LabError."""
    tensors = [local(tensor) for tensor in training.model.state_dict().values() if not tensor.is_meta]
    finite = torch.stack([tensor.isfinite().all() for tensor in tensors]).all()
    if strategy.any(not bool(finite)):
        raise LabError(
            f"the weights are not finite after step {training.progress.step}: lower optim.lr, set "
            "clip_grad_norm=1, or use on_nan=skip; they are not saved, the last checkpoint stands"
        )


def _require_savable(window: Window, step: int, job: Job) -> None:
    """A loss between two records must not get into a checkpoint unseen."""
    if job.config.on_nan == "stop":
        _require_finite(window.losses_so_far(), step, job)


def _require_finite(losses: list[float], step: int, job: Job) -> None:
    """`losses` are those of the steps up to `step`."""
    bad = [step - len(losses) + 1 + n for n, loss in enumerate(losses) if not math.isfinite(loss)]
    if bad:
        raise LabError(
            f"the loss is {losses[bad[0] - step - 1]} at step {bad[0]}: lower "
            f"optim.lr={job.config.optim.lr:g}, set clip_grad_norm=1, use precision=fp32, or "
            "on_nan=skip; the images of that step are in "
            f"{_record_files(bad[0], job)}; the last checkpoint stands"
        )


def _record_files(step: int, job: Job) -> Path:
    """Rank 0 writes which images a step, counted from 1, was computed from."""
    path = job.run_dir / "nan" / f"step-{step:08d}.json"
    if job.strategy.ranks.is_first:
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"step": step, "images": job.files_of(step - 1)}, indent=1))
    return path
