"""`python -m scripts.bench_train`: images a second from files to updated weights, against each half alone.

Loader alone, model alone on batches in memory, and both as in a run, in turns. On a CPU the two would take
each other's cores, so each gets cores of its own: half of them, and as many threads. Overrides are those of
`python -m train`, such as model=resnet50 data.input.size=224 batch_size=256 compile=true.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from configs.schema import TrainConfig
from data.build import build_loader
from data.loader import Batch, Loader
from data.plan import TrainPlan
from data.prepare import input_spec, prepare
from deploy.machine import usable_cores
from scripts.bench_lines import machine_line, rate_line, ratio_line
from scripts.bench_loop import (
    InMemory,
    bench_config,
    drawn_spec,
    our_loop,
    our_training,
    random_batches,
    wait,
)
from train.memory import keep_memory
from train.precision import choose_precision
from train.ranks import Ranks, choose_device
from train.strategy import Single

WARM_UP = 8
"""Batches taken before each turn: more than are kept ready."""
ALONE = Ranks(0, 1, 0, 1, launched=False)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.bench_train", description=__doc__)
    parser.add_argument("--steps", type=int, default=20, help="in each turn (default: 20)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--synthetic", action="store_true", help="the model alone, on drawn tensors")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_args()
    config = bench_config(options.overrides, options.steps)
    device = choose_device(config.device, ALONE)
    keep_memory(device)
    print(machine_line(device))
    if options.synthetic:
        bench_model(config, device, options.steps, options.rounds)
    else:
        bench_all(config, device, options.steps, options.rounds)
    return 0


def bench_model(config: TrainConfig, device: torch.device, steps: int, rounds: int) -> None:
    strategy = Single(ALONE, device, choose_precision(config.precision, device))
    batches = random_batches(config, steps, device)
    with our_training(config, drawn_spec(config), strategy) as (training, job):
        our_loop(training, InMemory(batches, steps), job)
        seconds = [our_loop(training, InMemory(batches, steps), job) for _ in range(rounds)]
    print(about(config, strategy, rounds))
    print(rate_line("model", [config.batch_size * steps / value for value in seconds]))


def bench_all(config: TrainConfig, device: torch.device, steps: int, rounds: int) -> None:
    loader_cores, model_cores = split_cores(device)
    splits = prepare(config.data, Path(config.data.root) / "bench", print)
    spec = input_spec(config.data, splits.train.class_names)
    plan = TrainPlan(
        splits.train,
        spec,
        config.data.augment,
        batch_size=config.batch_size,
        accumulate=1,
        rank=0,
        world=1,
        seed=config.seed,
    )
    threads = config.loader.threads or (len(loader_cores) if loader_cores else usable_cores())
    loader = build_loader(
        type(config.loader)(config.loader.name, threads, config.loader.prefetch),
        plan,
        spec,
        device,
        channels_last=config.channels_last,
    )
    stream = endless(loader)
    # A thread inherits its cores from the one that starts it: the loader's start with the first batch.
    pin(loader_cores)
    ready = [next(stream) for _ in range(steps)]
    pin(model_cores)
    if model_cores:
        torch.set_num_threads(len(model_cores))
    strategy = Single(ALONE, device, choose_precision(config.precision, device))
    images = config.batch_size * steps
    rates: dict[str, list[float]] = {"loader": [], "model": [], "both": []}
    waits = []
    with our_training(config, spec, strategy) as (training, job):
        our_loop(training, InMemory(ready, steps), job)
        for _ in range(rounds):
            drain(stream)
            rates["loader"].append(images / take(stream, steps, device))
            rates["model"].append(images / our_loop(training, InMemory(ready, steps), job))
            drain(stream)
            rates["both"].append(images / our_loop(training, InMemory(stream, steps), job))
            waits.append(
                json.loads((job.run_dir / "metrics.jsonl").read_text().splitlines()[-1])["data_wait"]
            )
    loader.close()
    slower = [min(pair) for pair in zip(rates["loader"], rates["model"], strict=True)]
    print(about(config, strategy, rounds))
    print(f"  loader={config.loader.name}, {threads} threads on cores {loader_cores or 'any'}; "
          f"the model on {model_cores or device}")  # fmt: skip
    for name, found in rates.items():
        print(rate_line(name, found))
    print(ratio_line("both over the slower half", rates["both"], slower, "at least 0.95"))
    print(f"  waited for images {statistics.median(waits):.1%} ({min(waits):.1%} to {max(waits):.1%})")


def about(config: TrainConfig, strategy: Single, rounds: int) -> str:
    layout = "channels_last" if config.channels_last else "contiguous"
    return (
        f"{config.model.name} at {config.data.input.size} px, batch {config.batch_size}, "
        f"{strategy.precision}, {layout}, {'compiled' if config.compile else 'eager'}, {rounds} rounds"
    )


def split_cores(device: torch.device) -> tuple[set[int], set[int]]:
    """For the loader and for the model; empty: not pinned, since a GPU has its own or there is one core."""
    if device.type == "cuda" or not hasattr(os, "sched_setaffinity") or usable_cores() < 2:
        return set(), set()
    cores = sorted(os.sched_getaffinity(0))
    half = len(cores) // 2
    return set(cores[:half]), set(cores[half:])


def pin(cores: set[int]) -> None:
    """The calling thread, and those that it starts from here on."""
    if cores:
        os.sched_setaffinity(0, cores)


def endless(loader: Loader) -> Iterator[Batch]:
    while True:
        yield from loader


def drain(stream: Iterator[Batch]) -> None:
    for _ in range(WARM_UP):
        next(stream)


def take(stream: Iterator[Batch], steps: int, device: torch.device) -> float:
    start = time.perf_counter()
    for _ in range(steps):
        next(stream)
    wait(device)
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
