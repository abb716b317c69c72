"""A training run from the config to the last checkpoint: the page that tells the story."""

from __future__ import annotations

import itertools
import os
import time
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

import torch

from configs.load import to_yaml
from configs.schema import TrainConfig
from data.build import build_loader
from data.plan import EvalPlan, TrainPlan
from data.prepare import Splits, input_spec, prepare
from deploy.errors import LabError
from deploy.machine import usable_cores
from train.checkpoint import NAME, Checkpoint, Progress, load_checkpoint, require_same_run, save_checkpoint
from train.ema import Ema
from train.loop import Job, Training, choose_precision, classification_loss, evaluate, train_epoch
from train.model import build_model, count_parameters
from train.monitor import Monitor, log, log_file, own_mistakes, progress_bar, start_logging
from train.optim import build_optimizer
from train.ranks import Ranks, choose_device
from train.stop import StopRequest
from train.strategy import Strategy, build_strategy

BEST = "best.pt"


def run(config: TrainConfig) -> dict[str, float]:
    """Train as the config says; the metrics of the last evaluation. Raises LabError for a user's mistake."""
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
    # The sizes of the images never change, so the search for the fastest kernels pays after a few steps.
    torch.backends.cudnn.benchmark = True
    precision = choose_precision(config.precision, device)
    strategy = build_strategy(config.strategy, ranks, device)
    run_dir = strategy.on_first(partial(open_run_dir, config))
    start_logging(run_dir / "logs", ranks.rank)
    try:
        # Closed on an error too: an elastic run goes on in this process after one.
        with ExitStack() as resources:
            metrics = _train(config, run_dir, strategy, precision, resources)
    except BaseException as error:
        # No farewell to the other ranks: they may be waiting for this one, and the launcher ends them.
        log_file.error("%s", error, exc_info=True)
        raise
    strategy.close()
    return metrics


def open_run_dir(config: TrainConfig) -> Path:
    """The run's folder. Raises LabError where it holds another run."""
    if config.run_dir is None:
        return _new_run_dir(f"{time.strftime('%Y%m%d-%H%M%S')}-{config.name}")
    run_dir = Path(config.run_dir)
    checkpoint = run_dir / NAME
    if checkpoint.exists() and not config.resume:
        raise LabError(
            f"run_dir={run_dir} holds a checkpoint already: go on from it with resume=true, "
            "or give another run_dir"
        )
    if checkpoint.exists():
        require_same_run(load_checkpoint(checkpoint).config, config)
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


def _train(
    config: TrainConfig, run_dir: Path, strategy: Strategy, precision: str, resources: ExitStack
) -> dict[str, float]:
    ranks, device = strategy.ranks, strategy.device

    splits = _prepare_data(config, run_dir, strategy)
    spec = input_spec(config.data, splits.train.class_names)
    train_plan = TrainPlan(
        splits.train,
        spec,
        config.data.augment,
        batch_size=config.batch_size,
        accumulate=config.accumulate,
        rank=ranks.rank,
        world=ranks.world,
        seed=config.seed,
    )
    eval_plan = EvalPlan(
        splits.val, spec, batch_size=train_plan.batch_size, rank=ranks.rank, world=ranks.world
    )
    loader_for = partial(
        build_loader,
        config.loader,
        spec=spec,
        device=device,
        channels_last=config.channels_last,
        local_world=ranks.local_world,
    )
    train_loader = resources.enter_context(closing(loader_for(train_plan)))
    eval_loader = resources.enter_context(closing(loader_for(eval_plan)))

    torch.manual_seed(config.seed)
    model = build_model(config.model, spec.num_classes, load_pretrained=True).to(device)
    if config.channels_last:
        model = model.to(memory_format=torch.channels_last)
    optimizer = build_optimizer(config.optim, model)
    ema = Ema(model, config.ema_decay) if config.ema_decay else None
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    progress = Progress()
    metrics: dict[str, float] = {}

    if (run_dir / NAME).exists():
        saved = load_checkpoint(run_dir / NAME)
        model.load_state_dict(saved.model)
        if ema is not None and saved.ema is not None:
            ema.model.load_state_dict(saved.ema)
        optimizer.load_state_dict(saved.optimizer)
        scaler.load_state_dict(saved.scaler)
        train_loader.load_state_dict(saved.loader)
        progress, metrics = saved.progress, saved.metrics
        log.info("resumed from %s at step %d", run_dir / NAME, progress.step)

    if config.compile:
        model.compile()
    training = Training(model, strategy.prepare(model), optimizer, scaler, ema, progress)
    monitor = resources.enter_context(closing(Monitor(run_dir, progress.step, ranks.is_first)))

    def save(name: str = NAME) -> None:
        if not ranks.is_first:
            return
        checkpoint = Checkpoint(
            config=config,
            input_spec=spec,
            structure=[],
            model=model.state_dict(),
            ema=ema.model.state_dict() if ema is not None else None,
            optimizer=optimizer.state_dict(),
            scaler=scaler.state_dict(),
            loader=train_loader.state_dict(),
            progress=progress,
            metrics=metrics,
        )
        save_checkpoint(run_dir / name, checkpoint)

    log.info(
        "%s: %s (%.1f M parameters), %d classes, %d + %d images, batch %d over %d rank(s) on %s in %s",
        run_dir, config.model.name, count_parameters(model) / 1e6, spec.num_classes,
        len(splits.train), len(splits.val), config.batch_size, ranks.world, device.type, precision,
    )  # fmt: skip
    with own_mistakes(ranks.rank), StopRequest() as stop, progress_bar(config.name, ranks.is_first) as show:
        job = Job(config, spec, precision, strategy, classification_loss(config), monitor, stop, save, show)
        if progress.epoch == config.epochs:
            log.info("this run is complete: all %d epochs are done", config.epochs)
        while progress.epoch < config.epochs:
            finished = train_epoch(training, train_loader, job)
            result = evaluate(training.evaluated, eval_loader, job) if finished else None
            if result is None:
                stop.acknowledge()
                save()
                log.info("stopped as asked, saved at step %d; go on with resume=true", progress.step)
                break
            progress.epoch += 1
            metrics = {"loss": result.loss, "top1": result.top1, "top5": result.top5}
            monitor.eval(progress.step, progress.epoch, result, spec.class_names)
            log.info(
                "epoch %d of %d  top-1 %.2f %%  loss %.4f",
                progress.epoch, config.epochs, 100 * result.top1, result.loss,
            )  # fmt: skip
            if result.top1 > progress.best_top1:
                progress.best_top1 = result.top1
                save(BEST)
            if progress.epoch % config.checkpoint_epochs == 0 or progress.epoch == config.epochs:
                save()
    return metrics


def _prepare_data(config: TrainConfig, run_dir: Path, strategy: Strategy) -> Splits:
    """Rank 0 makes and checks the images for all, and keeps the config that passed every check."""
    folder = run_dir / "data"

    def work() -> None:
        with progress_bar("checking images", enabled=True) as show:
            prepare(config.data, folder, log.info, show).save(folder)
        (run_dir / "config.yaml").write_text(to_yaml(config))

    strategy.on_first(work)
    return Splits.load(folder)
