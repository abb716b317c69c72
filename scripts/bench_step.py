"""`python -m scripts.bench_step`: our training loop against a bare loop.

The same network, optimiser, precision and batches, which lie in memory; ours with its records, its stop check
and its schedule. The two take turns, so the ratios are of the same round.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from configs.load import load
from configs.schema import TrainConfig
from data.loader import Batch, Loader, LoaderState
from deploy.input_spec import InputSpec
from deploy.machine import usable_cores
from scripts.bench_lines import machine_line, ratio_line
from train.checkpoint import Progress
from train.loop import Job, Training, train_epoch
from train.model import build_model
from train.monitor import Monitor
from train.optim import build_optimizer
from train.precision import autocast, choose_precision
from train.ranks import Ranks
from train.stop import StopRequest
from train.strategy import Single
from train.task import classification
from train.watchdog import Watchdog


class InMemory:
    """A loader of batches that are there already."""

    def __init__(self, batches: list[Batch]) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._batches)

    def state_dict(self) -> LoaderState:
        return {"position": 0, "num_steps": len(self)}

    def load_state_dict(self, state: LoaderState) -> None:
        pass

    def close(self) -> None:
        pass


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.bench_step", description=__doc__)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--size", type=int, default=64, help="side of the images, px (default: 64)")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20, help="in each turn (default: 20)")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()

    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    torch.set_num_threads(usable_cores())
    config = load(
        "train",
        TrainConfig,
        [
            f"model={options.model}",
            f"batch_size={options.batch}",
            "epochs=1000",
            f"log_every={options.steps // 2}",
        ],
    )
    precision = choose_precision(config.precision, device)
    spec = InputSpec(options.size, options.size, (0.5,) * 3, (0.5,) * 3, tuple(str(i) for i in range(10)))
    batches = [random_batch(options.batch, options.size, device) for _ in range(options.steps)]
    torch.manual_seed(0)
    model = build_model(config.model, 10).to(device).to(memory_format=torch.channels_last)
    bare_model = copy.deepcopy(model)

    with (
        tempfile.TemporaryDirectory() as folder,
        StopRequest(Path(folder, "log")) as stop,
        Watchdog(600, Path(folder, "log")) as watchdog,
    ):
        ours = Training(
            model=model,
            prepared=model,
            optimizer=build_optimizer(config.optim, model),
            scaler=torch.amp.GradScaler(device.type, enabled=precision == "fp16"),
            ema=None,
            progress=Progress(),
            metrics={},
        )
        job = Job(
            config=config,
            spec=spec,
            run_dir=Path(folder),
            strategy=Single(Ranks(0, 1, 0, 1, launched=False), device, precision),
            task=classification(config, np.full(10, 100), device),
            files_of=lambda step: [],
            monitor=Monitor(Path(folder), 0, enabled=True),
            stop=stop,
            watchdog=watchdog,
            save=lambda: None,
            show=lambda done, total, text: None,
        )
        bare_optimizer = build_optimizer(config.optim, bare_model)
        our_loop(ours, InMemory(batches), job)
        bare_loop(bare_model, bare_optimizer, batches, precision)
        seconds: dict[str, list[float]] = {"ours": [], "bare": []}
        for _ in range(options.rounds):
            seconds["ours"].append(our_loop(ours, InMemory(batches), job))
            seconds["bare"].append(bare_loop(bare_model, bare_optimizer, batches, precision))
        job.monitor.close()
    images = options.batch * options.steps
    rates = {name: [images / value for value in values] for name, values in seconds.items()}
    print(machine_line(device))
    print(
        f"{options.model} at {options.size} px, batch {options.batch}, {precision}, {options.rounds} rounds"
    )
    for name, found in rates.items():
        print(f"  {name:5} {statistics.median(found):8.0f} images/s ({min(found):.0f} to {max(found):.0f})")
    print(ratio_line("ours over bare", rates["ours"], rates["bare"], "at least 0.95"))
    return 0


def random_batch(count: int, size: int, device: torch.device) -> Batch:
    images = torch.randn(count, 3, size, size, device=device).to(memory_format=torch.channels_last)
    return Batch(images, torch.randint(10, (count,), device=device))


def our_loop(training: Training, loader: Loader, job: Job) -> float:
    """Seconds for one epoch of our loop."""
    start = time.perf_counter()
    assert train_epoch(training, loader, job)
    _wait(job.strategy.device)
    training.progress = replace(training.progress, epoch=training.progress.epoch + 1)
    return time.perf_counter() - start


def bare_loop(
    model: nn.Module, optimizer: torch.optim.Optimizer, batches: list[Batch], precision: str
) -> float:
    """Seconds for the same steps with nothing but the steps."""
    model.train()
    device = batches[0].images.device
    start = time.perf_counter()
    for images, labels in batches:
        with autocast(device, precision):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    sys.exit(main())
