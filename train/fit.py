"""Epoch after epoch: train, evaluate, keep what is worth keeping."""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch

from configs.schema import TrainConfig
from data.index import class_counts
from data.loader import Loader
from data.prepare import Splits
from train.checkpoint import Checkpoint
from train.class_metrics import HEADLINES, MAX_VALUES, headline, headline_reason
from train.loop import Job, Training, evaluate, train_epoch
from train.metrics import EvalResult
from train.monitor import log
from train.predictions import write_classes, write_predictions
from train.result import Result, keep_result
from train.saves import Saves
from train.strategy import Strategy
from train.transfer import freeze

BEST = "best.pt"


def fit(
    training: Training,
    loaders: tuple[Loader, Loader],
    splits: Splits,
    job: Job,
    saves: Saves,
    checkpoint: Callable[[], Checkpoint],
) -> None:
    """From where `training` stands to the end of the run, or until somebody asks it to stop.

    `loaders` are for training and for evaluation, `checkpoint` takes the state of the moment.
    """
    config, progress = job.config, training.progress
    counts = class_counts(splits.train)
    leader = headline(counts)
    log.info("%s", headline_reason(counts))
    curves_always = len(splits.val) * job.spec.num_classes <= MAX_VALUES
    if not curves_always:
        log.info(
            "AUC-ROC, average precision and the curves come with epoch %d only: %s images x %s classes are "
            "more than %s values",
            config.epochs, f"{len(splits.val):,}", f"{job.spec.num_classes:,}", f"{MAX_VALUES:,}",
        )  # fmt: skip
    over = progress.epoch == config.epochs or has_stalled(job, training)
    if over:
        log.info("this run is complete: %d epochs are done", progress.epoch)
    while not over:
        collect = curves_always or progress.epoch + 1 == config.epochs
        thaw(training, config, job.strategy)
        finished = train_epoch(training, loaders[0], job)
        result = evaluate(training.evaluated, loaders[1], job, collect=collect) if finished else None
        if result is None:
            job.stop.acknowledge()
            saves.save(checkpoint())
            saves.wait()
            log.info("stopped as asked, saved at step %d; go on with resume=true", progress.step)
            return
        progress.epoch += 1
        training.metrics = result.values
        job.monitor.eval(progress.step, progress.epoch, result, job.spec.class_names)
        log.info(
            "epoch %d of %d  %s  loss %.4f",
            progress.epoch, config.epochs, in_words(leader, result.values), result.loss,
        )  # fmt: skip
        _keep_for_later(training, job, saves, checkpoint, result.values[leader])
        over = progress.epoch == config.epochs or has_stalled(job, training)
        if over:
            # Before the last checkpoint: a run that is killed here does its last epoch again.
            _leave_scores(result, splits, training, job)
        if over or progress.epoch % config.checkpoint_epochs == 0:
            saves.save(checkpoint())
    saves.finish(checkpoint())
    if job.strategy.ranks.is_first:
        keep_result(job.run_dir, Result(config, training.metrics))
    log.info(
        "%s: %s; the best epoch's %s is %.2f %%, in %s",
        job.run_dir, in_words(leader, training.metrics), HEADLINES[leader], 100 * progress.best_score, BEST,
    )  # fmt: skip


def thaw(training: Training, config: TrainConfig, strategy: Strategy) -> None:
    """At the start of an epoch: let those stages train whose time has come."""
    if not freeze(training.model, config.transfer, training.progress.epoch):
        return
    # The wrapper before has hooks on the same parameters: it must be gone when the new one puts up its own.
    training.prepared = training.model
    gc.collect()
    if config.compile:
        # Each schedule's graphs are new; the old ones would count towards the limit of recompilations.
        torch.compiler.reset()
    training.prepared = strategy.prepare(training.model)


def has_stalled(job: Job, training: Training) -> bool:
    """Whether the score has not risen for early_stop.patience epochs: rank 0 decides for all."""
    patience, progress = job.config.early_stop.patience, training.progress
    stalled = 0 < patience <= progress.epoch - progress.best_epoch
    if not job.strategy.any(job.strategy.ranks.is_first and stalled):
        return False
    log.info(
        "stopped early: in %d epochs none was better than epoch %d (early_stop)",
        patience,
        progress.best_epoch,
    )
    return True


def in_words(leader: str, metrics: dict[str, float]) -> str:
    """The headline's figure, accuracy always beside it."""
    names = dict.fromkeys((leader, "top1"))
    return "  ".join(f"{HEADLINES[name]} {100 * metrics[name]:.2f} %" for name in names)


def _keep_for_later(
    training: Training, job: Job, saves: Saves, checkpoint: Callable[[], Checkpoint], score: float
) -> None:
    """best.pt, the epochs of keep_epochs, and after each cycle of the rate a snapshot for an ensemble."""
    config, progress = job.config, training.progress
    if progress.best_epoch == 0 or score > progress.best_score + config.early_stop.min_delta:
        progress.best_score, progress.best_epoch = score, progress.epoch
        saves.export(checkpoint(), BEST)
    if progress.epoch in config.keep_epochs:
        saves.export(checkpoint(), f"epoch-{progress.epoch}.pt")
    cycle = config.epochs // config.optim.cycles
    if config.optim.cycles > 1 and progress.epoch % cycle == 0:
        saves.export(checkpoint(), f"snapshot-{progress.epoch // cycle}.pt")


def _leave_scores(result: EvalResult, splits: Splits, training: Training, job: Job) -> None:
    if job.strategy.ranks.is_first and result.scores is not None:
        write_predictions(job.run_dir, result, splits)
        write_classes(job.run_dir, result, splits, training.progress.step, training.progress.epoch)
