"""A learning-rate range test with a run's own data, network and optimiser: a suggestion and a picture.

`python -m scripts.find_lr experiment=demo --steps 100`
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from configs.load import load
from configs.schema import TrainConfig
from data.build import build_loader
from data.index import class_counts
from data.prepare import input_spec
from deploy.errors import LabError
from train.launch import require_no_launcher
from train.lr_range import DIVERGED, HIGHEST, LOWEST, Curve, Suggestion, range_test, suggest
from train.model import build_model
from train.monitor import start_logging
from train.optim import build_optimizer
from train.precision import choose_precision
from train.ranks import Ranks, choose_device
from train.result import write_json
from train.run import open_run_dir, prepare_data, train_plan
from train.strategy import Single
from train.task import classification
from train.weights import starting_weights

MIN_STEPS = 20
NAME = "find_lr.json"
PICTURE = "find_lr.svg"


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 for a user's mistake, told on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.find_lr",
        description=f"Train with a learning rate that grows from {LOWEST:g} to {HIGHEST:g}, in one process.",
        epilog="example: python -m scripts.find_lr experiment=demo --steps 100",
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as python -m train takes them")
    parser.add_argument("--steps", type=int, default=100, help="optimiser steps (default: 100)")
    options = parser.parse_intermixed_args(argv)
    try:
        require_no_launcher()
        if options.steps < MIN_STEPS:
            raise LabError(f"--steps={options.steps}: give {MIN_STEPS} or more, or the curve says nothing")
        config = load("train", TrainConfig, options.overrides)
        folder = open_run_dir(config)
        found = find_lr(config, folder, options.steps)
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    advice = suggest(found)
    write_json(folder / NAME, asdict(found) | {"suggestion": asdict(advice)})
    draw(found, advice, folder / PICTURE)
    print("\n".join([*words(advice), f"the curve: {folder / PICTURE}, {folder / NAME}"]))
    return 0


def find_lr(config: TrainConfig, folder: Path, num_steps: int) -> Curve:
    device = choose_device(config.device, Ranks.from_environ())
    strategy = Single(Ranks.from_environ(), device, choose_precision(config.precision, device))
    start_logging(folder / "logs", 0)
    splits = prepare_data(config, folder, strategy)
    spec = input_spec(config.data, splits.train.class_names)
    build = partial(build_loader, config.loader, spec=spec, device=device, channels_last=config.channels_last)
    loader = build(train_plan(config, splits.train, spec, strategy))
    torch.manual_seed(config.seed)
    model = build_model(config.model, spec.num_classes)
    if config.model.weights is not None:
        model.load_state_dict(starting_weights(config.model, model), strict=False)
    model = model.to(device)
    if config.channels_last:
        model = model.to(memory_format=torch.channels_last)
    task = classification(config, class_counts(splits.train), device)
    try:
        optimizer = build_optimizer(config.optim, model)
        return range_test(config, model, optimizer, loader, strategy, task, num_steps)
    finally:
        loader.close()


def words(advice: Suggestion) -> list[str]:
    lines = []
    if advice.steepest is not None:
        lines.append(f"the loss falls fastest at optim.lr={advice.steepest:.2g}")
    else:
        lines.append("the loss never falls: more --steps, a larger batch_size, or another network")
    if advice.tenth is not None:
        lines.append(
            f"it diverges at {advice.tenth * 10:.2g}; a tenth of that is optim.lr={advice.tenth:.2g}"
        )
    else:
        lines.append(f"it does not reach {DIVERGED:g} x its best up to {HIGHEST:g}")
    return lines


def draw(found: Curve, advice: Suggestion, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(found.lrs, found.losses, color="#3b82f6", alpha=0.3, linewidth=1, label="loss")
    axes.plot(found.lrs[: len(found.smoothed)], found.smoothed, color="#3b82f6", label="smoothed")
    for lr, colour, name in (
        (advice.steepest, "#10b981", "steepest"),
        (advice.tenth, "#f59e0b", "a tenth of divergence"),
        (found.diverged, "#ef5b4c", "divergence"),
    ):
        if lr is not None:
            axes.axvline(lr, color=colour, linestyle="--", label=f"{name}: {lr:.2g}")
    axes.set_xscale("log")
    if found.smoothed:
        axes.set_ylim(0, DIVERGED * 1.1 * min(found.smoothed))
    axes.set_xlabel("learning rate")
    axes.set_ylabel("training loss")
    axes.legend()
    figure.savefig(path)


if __name__ == "__main__":
    sys.exit(main())
