"""Errors against the number of training images: child runs on shares of them, a picture and a verdict.

`python -m scripts.learning_curve experiment=demo --fractions 0.1,0.25,0.5,1 --seeds 0,1`
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from configs.load import SweepJob, load
from configs.schema import TrainConfig
from data.build import build_loader
from data.plan import EvalPlan
from data.prepare import Splits
from deploy.errors import LabError
from scripts.sweep import places_for, run_parallel, visible_gpus
from train.checkpoint import NAME as CHECKPOINT
from train.checkpoint import load_checkpoint, restore_model
from train.launch import is_cross_validation, require_no_launcher
from train.learning_curve import Point, Verdict, longer, point, verdict
from train.metrics import EvalCounts
from train.precision import autocast, choose_precision
from train.ranks import Ranks, choose_device
from train.result import write_json
from train.sweep import Job, collect, open_sweep_dir, require_all, say, with_advice

NAME = "learning_curve.json"
PICTURE = "learning_curve.svg"
Number = TypeVar("Number", int, float)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, 1 where a run has no result, or 2 for a user's mistake, told on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.learning_curve",
        description="Train on growing shares of the training images, each with as many steps as the whole.",
        epilog="example: python -m scripts.learning_curve experiment=demo --fractions 0.1,0.25,0.5,1",
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as python -m train takes them")
    parser.add_argument("--fractions", default="0.1,0.25,0.5,1", help="shares (default: 0.1,0.25,0.5,1)")
    parser.add_argument("--seeds", default="0", help="each share is trained on once a seed (default: 0)")
    parser.add_argument("--slots", type=int, help="runs at a time, as python -m scripts.sweep has it")
    parser.add_argument(
        "--target", type=float, default=0.0, help="the error one could live with, a share (default: 0)"
    )
    options = parser.parse_intermixed_args(argv)
    try:
        require_no_launcher()
        fractions = sorted(set(_numbers("--fractions", options.fractions, float)))
        seeds = sorted(set(_numbers("--seeds", options.seeds, int)))
        jobs = make_jobs(options.overrides, fractions, seeds)
        config = jobs[-1].config
        gpus = visible_gpus(
            os.environ.get("CUDA_VISIBLE_DEVICES"), 0 if config.device == "cpu" else torch.cuda.device_count()
        )
        places = places_for(gpus, config.processes or 1, options.slots)
        folder = open_sweep_dir(jobs)
        with_advice(folder, lambda: run_parallel(folder, jobs, places))
        points, num_val = measure(folder, jobs)
        said = verdict(points, num_val, options.target)
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write_json(folder / NAME, {"points": [asdict(p) for p in points], "verdict": asdict(said)})
    draw(points, said, options.target, folder / PICTURE)
    print("\n".join([*table(points), said.words, f"the curve: {folder / PICTURE}, {folder / NAME}"]))
    return 0


def make_jobs(overrides: Sequence[str], fractions: Sequence[float], seeds: Sequence[int]) -> list[Job]:
    """A run for each share and seed, ascending. Raises LabError for a share or a seed that cannot be."""
    whole = load("train", TrainConfig, overrides)
    if is_cross_validation(whole):
        raise LabError(
            "a learning curve of a cross-validation is not known here: give cv.fold, or no cv.folds"
        )
    jobs = []
    for fraction in fractions:
        grown = longer(whole, fraction)
        for seed in seeds:
            own = (
                *overrides,
                f"train_fraction={fraction:g}",
                f"seed={seed}",
                f"epochs={grown.epochs}",
                f"checkpoint_epochs={grown.checkpoint_epochs}",
                f"optim.warmup_epochs={grown.optim.warmup_epochs!r}",
                f"data.input.progressive.epochs={grown.data.input.progressive.epochs}",
            )
            name = f"fraction-{fraction:g},seed-{seed}"
            jobs.append(SweepJob(name, load("train", TrainConfig, own), own))
    return jobs


def measure(folder: Path, jobs: Sequence[Job]) -> tuple[list[Point], int]:
    """Both errors of every share, and the number of validation images. SystemExit(1) names failed runs."""
    results = collect(folder, jobs)
    require_all(folder, jobs, results)
    points = []
    for fraction in dict.fromkeys(job.config.train_fraction for job in jobs):
        runs = [job for job in jobs if job.config.train_fraction == fraction]
        say(f"training error of {len(runs)} run(s) on {fraction:.4g} of the images")
        train = [training_error(folder / job.name) for job in runs]
        splits = Splits.load(folder / runs[0].name / "data")
        val = [1 - results[job.name]["top1"] for job in runs]
        points.append(point(fraction, len(splits.train), train, val))
    return points, len(splits.val)


def training_error(run_dir: Path) -> float:
    """Of the last weights on the images that they were trained on, each once and prepared as for evaluation:
    what the training loss says of augmented images, with dropout, could not be held against validation."""
    saved = load_checkpoint(run_dir / CHECKPOINT)
    config, spec = saved.config, saved.input_spec
    device = choose_device(config.device, Ranks.from_environ())
    index = Splits.load(run_dir / "data").train
    # An image that is there several times, in place of a missing one, is asked once.
    index = index.take(np.sort(np.unique(index.paths, return_index=True)[1]))
    batch = config.batch_size // config.accumulate // (config.processes or 1)
    plan = EvalPlan(index, spec, batch_size=batch, rank=0, world=1)
    loader = build_loader(config.loader, plan, spec, device)
    model, counts = restore_model(saved).to(device), EvalCounts(spec.num_classes, device)
    with torch.inference_mode(), autocast(device, choose_precision(config.precision, device)):
        for images, labels in loader:
            counts.add(model(images), labels)
    loader.close()
    return 1 - counts.result().top1


def table(points: Sequence[Point]) -> list[str]:
    lines = ["  share   images  training error  validation error     gap"]
    for p in points:
        train, val = (
            f"{e:7.2%} ± {d:.2%}" for e, d in ((p.train_error, p.train_std), (p.val_error, p.val_std))
        )
        lines.append(f"{p.fraction:7.3g} {p.num_images:8d} {train:>15} {val:>17} {p.gap:7.2%}")
    return lines


def draw(points: Sequence[Point], said: Verdict, target: float, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    images = [p.num_images for p in points]
    for name, errors, deviations, colour in (
        ("validation", [p.val_error for p in points], [p.val_std for p in points], "#f59e0b"),
        ("training", [p.train_error for p in points], [p.train_std for p in points], "#3b82f6"),
    ):
        axes.errorbar(
            images, [100 * e for e in errors], [100 * d for d in deviations],
            color=colour, marker="o", capsize=3, label=name,
        )  # fmt: skip
    if target:
        axes.axhline(100 * target, color="#94a3b8", linestyle="--", label="target")
    axes.set_xscale("log")
    axes.set_xticks(images, [f"{n:,}" for n in images])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("training images (log)")
    axes.set_ylabel("error, %")
    axes.set_title(said.name)
    axes.legend()
    figure.savefig(path)


def _numbers(option: str, text: str, kind: Callable[[str], Number]) -> list[Number]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError as error:
        raise LabError(f"{option}={text}: give numbers with commas between them") from error


if __name__ == "__main__":
    sys.exit(main())
