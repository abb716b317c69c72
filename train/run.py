"""A training run from the config to the last checkpoint: the page that tells the story."""

from __future__ import annotations

import copy
import itertools
import os
import time
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from configs.load import to_yaml
from configs.schema import TrainConfig
from data.build import build_loader
from data.folds import subset
from data.index import Index, class_counts
from data.loader import Loader
from data.plan import EvalPlan, TrainPlan
from data.prepare import Splits, input_spec, prepare, resplit
from data.sampling import sampling_lines
from deploy.errors import LabError
from deploy.input_spec import InputSpec
from deploy.machine import usable_cores
from train.checkpoint import Checkpoint, Progress, require_same_run
from train.diagnosis import Diagnosis
from train.distill import with_teachers
from train.ema import Ema
from train.fit import fit
from train.group import is_lost_rank, lost_rank
from train.loop import Job, Training, require_finite_weights
from train.machines import load_shared, require_resume
from train.memory import keep_memory
from train.model import count_parameters
from train.monitor import Monitor, log, log_file, own_mistakes, progress_bar, start_logging
from train.optim import build_optimizer
from train.precision import choose_precision
from train.profiler import Profiler
from train.ranks import Ranks, choose_device
from train.saves import Saves, checkpoints, saved_config, saved_structure
from train.state import optimizer_tensors
from train.stop import StopRequest
from train.strategies import build_strategy
from train.strategy import Strategy
from train.structure import Structure, build_network
from train.task import classification
from train.transfer import freeze
from train.wandb_log import open_wandb, require_wandb
from train.watchdog import Watchdog
from train.weights import starting_structure, starting_weights


def run(config: TrainConfig) -> dict[str, float]:
    """Train as the config says; the metrics of the last evaluation. Raises LabError for a user's mistake."""
    require_resume(config)
    if not config.strategy.elastic:
        return run_on(config, Ranks.from_environ())
    from train.horovod import run_elastic

    return run_elastic(config.strategy, partial(run_on, config))


def run_on(config: TrainConfig, ranks: Ranks) -> dict[str, float]:
    """`run` on ranks that stay as they are."""
    device = choose_device(config.device, ranks)
    # torchrun sets OMP_NUM_THREADS=1 by itself, so only without it is the variable the user's word.
    if device.type == "cpu" and (ranks.launched or "OMP_NUM_THREADS" not in os.environ):
        torch.set_num_threads(max(1, usable_cores() // ranks.local_world))
    keep_memory(device)
    # The sizes of the images never change, so the search for the fastest kernels pays after a few steps.
    torch.backends.cudnn.benchmark = True
    strategy = build_strategy(config.strategy, ranks, device, choose_precision(config.precision, device))
    strategy.on_first(partial(require_wandb, config.wandb))
    run_dir = strategy.on_first(partial(open_run_dir, config))
    start_logging(run_dir / "logs", ranks.rank)
    # Closed on an error too: an elastic run goes on in this process after one.
    with ExitStack() as resources:
        try:
            metrics = _train(config, run_dir, strategy, resources)
        except BaseException as error:
            # Before anything is closed, which may take as long as a lost rank's answer. No farewell to the
            # other ranks: they may be waiting for this one, and the launcher ends them.
            log_file.error("%s", error, exc_info=True)
            if is_lost_rank(error):
                raise lost_rank(error, run_dir) from error
            raise
    strategy.close()
    return metrics


def open_run_dir(config: TrainConfig) -> Path:
    """The run's folder. Raises LabError where it holds another run."""
    if config.run_dir is None:
        return _new_run_dir(f"{time.strftime('%Y%m%d-%H%M%S')}-{config.name}")
    run_dir = Path(config.run_dir)
    if checkpoints(run_dir) and not config.resume:
        raise LabError(
            f"run_dir={run_dir} holds a checkpoint already: go on from it with resume=true, "
            "or give another run_dir"
        )
    saved = saved_config(run_dir)
    if saved is not None:
        require_same_run(saved, config)
    run_dir.mkdir(parents=True, exist_ok=True)
    return run_dir


def _new_run_dir(name: str) -> Path:
    """runs/NAME, or with a number behind it where two runs began in the same second."""
    for number in itertools.count(1):
        run_dir = Path("runs", name if number == 1 else f"{name}-{number}")
        try:
            run_dir.mkdir(parents=True)
        except FileExistsError:
            continue
        return run_dir
    raise AssertionError("unreachable")


def _train(config: TrainConfig, run_dir: Path, strategy: Strategy, resources: ExitStack) -> dict[str, float]:
    splits = prepare_data(config, run_dir, strategy)
    spec = input_spec(config.data, splits.train.class_names)
    task = classification(config, class_counts(splits.train), strategy.device)
    plan = train_plan(config, splits.train, spec, strategy)
    loaders = _open_loaders(config, splits, plan, strategy)
    for loader in loaders:
        resources.callback(loader.close)
    saves = Saves(run_dir, strategy)
    structure = strategy.on_first(lambda: saved_structure(run_dir) or starting_structure(config.model))
    training = _begin(config, spec, structure, strategy, saves, loaders[0])
    task = with_teachers(task, config, spec, strategy, training.model)
    ranks, progress = strategy.ranks, training.progress
    evaluated = progress.step == progress.epoch * (len(loaders[0]) // config.accumulate)
    wandb = open_wandb(config, run_dir) if ranks.is_first else None
    monitor = Monitor(run_dir, progress.step, evaluated=evaluated, enabled=ranks.is_first, wandb=wandb)
    resources.callback(monitor.close)

    def checkpoint() -> Checkpoint:
        require_finite_weights(training, strategy)
        return Checkpoint(
            config=config,
            input_spec=spec,
            structure=list(structure),
            scaler=training.scaler.state_dict(),
            loader=loaders[0].state_dict(),
            progress=training.progress,
            metrics=training.metrics,
            model=training.model.state_dict(),
            ema=training.ema.model.state_dict() if training.ema is not None else None,
            optimizer=optimizer_tensors(training.optimizer, training.model),
        )

    log.info(
        "%s: %s (%.1f M parameters), %d classes, %d + %d images, batch %d over %d rank(s) on %s in %s",
        run_dir, config.model.name, count_parameters(training.model) / 1e6, spec.num_classes,
        len(splits.train), len(splits.val), config.batch_size, ranks.world, strategy.device.type,
        strategy.precision,
    )  # fmt: skip
    rank_log = run_dir / "logs" / f"rank{ranks.rank}.log"
    with (
        own_mistakes(ranks.rank),
        StopRequest(rank_log) as stop,
        Watchdog(config.strategy.timeout_s, rank_log) as watchdog,
        Profiler(config.profile, run_dir, strategy) as profiler,
        progress_bar(config.name, ranks.is_first) as show,
    ):
        job = Job(
            config=config,
            run_dir=run_dir,
            spec=spec,
            strategy=strategy,
            task=task,
            files_of=plan.files_of,
            monitor=monitor,
            diagnosis=Diagnosis(config, run_dir, training.model, strategy, monitor),
            profiler=profiler,
            stop=stop,
            watchdog=watchdog,
            save=lambda: saves.save(checkpoint()),
            show=show,
        )
        fit(training, loaders, splits, job, saves, checkpoint)
    return training.metrics


def train_plan(config: TrainConfig, index: Index, spec: InputSpec, strategy: Strategy) -> TrainPlan:
    return TrainPlan(
        index,
        spec,
        config.data.augment,
        batch_size=config.batch_size,
        accumulate=config.accumulate,
        rank=strategy.replica,
        world=strategy.replicas,
        seed=config.seed,
        sampling=config.sampling,
        progressive=config.data.input.progressive,
        shuffle_shards=config.data.storage.shuffle_shards,
    )


def _open_loaders(
    config: TrainConfig, splits: Splits, plan: TrainPlan, strategy: Strategy
) -> tuple[Loader, Loader]:
    """For training and for evaluation."""
    spec = input_spec(config.data, splits.train.class_names)
    eval_plan = EvalPlan(
        splits.val, spec, batch_size=plan.batch_size, rank=strategy.replica, world=strategy.replicas
    )
    loader_for = partial(
        build_loader,
        config.loader,
        spec=spec,
        device=strategy.device,
        channels_last=config.channels_last,
        local_world=strategy.ranks.local_world,
        data=config.data,
    )
    return loader_for(plan), loader_for(eval_plan)


def _begin(
    config: TrainConfig,
    spec: InputSpec,
    structure: Structure,
    strategy: Strategy,
    saves: Saves,
    loader: Loader,
) -> Training:
    """The network and all that trains it, as new or as the last checkpoint has it."""
    torch.manual_seed(config.seed)
    model = build_network(config.model, spec.num_classes, structure)
    if config.model.weights is not None and not saves.begun():
        # Read once for all ranks, of which only the first need have the file.
        model.load_state_dict(strategy.on_first(partial(starting_weights, config.model, model)), strict=False)
    model = model.to(strategy.device)
    if config.channels_last:
        model = model.to(memory_format=torch.channels_last)
    average = copy.deepcopy(model) if config.ema_decay else None
    strategy.shard(model)
    if average is not None:
        strategy.shard(average)
    optimizer = build_optimizer(config.optim, model, config.transfer.lr_decay)
    scaler = torch.amp.GradScaler(strategy.device.type, enabled=strategy.precision == "fp16")
    saved = saves.restore(model, average, optimizer)
    if saved is not None:
        scaler.load_state_dict(saved.scaler)
        loader.load_state_dict(saved.loader)
        log.info("resumed at step %d", saved.progress.step)
    ema = Ema(average, model, config.ema_decay) if average is not None else None
    if config.compile:
        model.compile()
    progress = saved.progress if saved is not None else Progress()
    freeze(model, config.transfer, progress.epoch)
    return Training(
        model=model,
        prepared=strategy.prepare(model),
        optimizer=optimizer,
        scaler=scaler,
        ema=ema,
        progress=progress,
        metrics=saved.metrics if saved is not None else {},
    )


def prepare_data(config: TrainConfig, run_dir: Path, strategy: Strategy) -> Splits:
    """Rank 0 makes and checks the images for all, and keeps the config that passed every check."""
    folder = run_dir / "data"

    def work() -> None:
        with progress_bar("checking images", enabled=True) as show:
            splits = prepare(config.data, folder, log.info, show)
        if config.cv.fold is not None:
            splits = resplit(splits, config.cv.folds, config.cv.fold, config.cv.stratified, config.seed)
        if config.train_fraction < 1:
            whole = len(splits.train)
            splits = replace(splits, train=subset(splits.train, config.train_fraction, config.seed))
            log.info("%d of %d training images (train_fraction)", len(splits.train), whole)
        for line in sampling_lines(config.sampling, splits.train, config.seed):
            log.info("%s", line)
        splits.save(folder)
        (run_dir / "config.yaml").write_text(to_yaml(config))

    strategy.on_first(work)
    return load_shared(folder, strategy.ranks.rank)
