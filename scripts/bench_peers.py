"""`python -m scripts.bench_peers`: our training step against a bare loop and against what others offer.

The same network, optimiser, precision, layout and batches, each in a process of its own, in turns of changing
order. `ours` keeps its memory as a run does (`train.memory`).
`torchvision` is what its reference loop does in a step, in our words: two accuracies and the loss read back
from the device each time. `timm` is its ClassificationTask, NativeScaler (fp16) and AverageMeter; `fabric` is
Lightning Fabric's setup and backward. A peer that is not installed is left out, with the reason.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from configs.schema import TrainConfig
from data.loader import Batch
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
from train.optim import build_optimizer
from train.precision import autocast, choose_precision
from train.ranks import Ranks, choose_device
from train.strategy import Single

READY = "ready"
ALONE = Ranks(0, 1, 0, 1, launched=False)
Epoch = Callable[[Sequence[Batch]], None]
"""One pass of steps over batches."""
MakeEpoch = Callable[[TrainConfig, nn.Module, torch.device, str], Epoch]
"""(config, network, device, precision) -> its steps; raises ImportError where the peer is not installed."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.bench_peers", description=__doc__)
    parser.add_argument("--steps", type=int, default=20, help="in each turn (default: 20)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as python -m train takes them")
    options = parser.parse_args()
    config = bench_config(options.overrides, options.steps)
    device = choose_device(config.device, ALONE)
    precision = choose_precision(config.precision, device)
    torch.set_num_threads(usable_cores())
    if options.contender:
        take_turns(options.contender, config, device, precision, options.steps)
        return 0
    print(machine_line(device))
    print(
        f"{config.model.name} at {config.data.input.size} px, batch {config.batch_size}, {precision}, "
        f"{'compiled' if config.compile else 'eager'}, {options.rounds} rounds"
    )
    with ExitStack() as stack:
        started = {name: stack.enter_context(Contender(name)) for name in ("ours", *CONTENDERS)}
        turns = {name: contender for name, contender in started.items() if contender.ready()}
        rates: dict[str, list[float]] = {name: [] for name in turns}
        for number in range(options.rounds):
            names = list(turns)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                rates[name].append(config.batch_size * options.steps / turns[name].turn())
    for name, found in rates.items():
        print(rate_line(name, found))
    print(ratio_line("ours over bare", rates["ours"], rates["bare"], "at least 0.95"))
    peers = [name for name in rates if name not in ("ours", "bare")]
    fastest = max(peers, key=lambda name: statistics.median(rates[name]))
    what = f"ours over the fastest peer, {fastest}"
    print(ratio_line(what, rates["ours"], rates[fastest], "at least 1.0"))
    return 0


class Contender:
    """One of them in a process of its own, so that none runs in memory that another has laid out."""

    def __init__(self, name: str) -> None:
        self._name = name
        command = [sys.executable, "-m", "scripts.bench_peers", *sys.argv[1:], "--contender", name]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Contender:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait()

    def ready(self) -> bool:
        """Whether it takes part; says why not."""
        said = self._read()
        if said != READY:
            print(f"  {self._name}: left out ({said})")
        return said == READY

    def turn(self) -> float:
        """Seconds of one turn."""
        assert self._process.stdin is not None
        print("go", file=self._process.stdin, flush=True)
        return float(self._read())

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line:
            raise RuntimeError(f"{self._name} has ended with {self._process.wait()}")
        return line


def take_turns(name: str, config: TrainConfig, device: torch.device, precision: str, steps: int) -> None:
    """One contender: after a turn to warm up, one for each line of stdin; prints the seconds of each."""
    batches = random_batches(config, steps, device)
    with our_training(config, drawn_spec(config), Single(ALONE, device, precision)) as (training, job):
        if name == "ours":
            keep_memory(device)
            turn = partial(our_loop, training, InMemory(batches, len(batches)), job)
        else:
            try:
                epoch = CONTENDERS[name](config, training.model, device, precision)
            except ImportError as error:
                print(error, flush=True)
                return
            turn = partial(seconds_of, epoch, batches, device)
        turn()
        print(READY, flush=True)
        for _ in sys.stdin:
            print(turn(), flush=True)
            if device.type == "cuda":  # several networks share it
                torch.cuda.empty_cache()


def seconds_of(epoch: Epoch, batches: Sequence[Batch], device: torch.device) -> float:
    start = time.perf_counter()
    epoch(batches)
    wait(device)
    return time.perf_counter() - start


def bare(config: TrainConfig, model: nn.Module, device: torch.device, precision: str) -> Epoch:
    """Nothing but the steps."""
    optimizer = build_optimizer(config.optim, model)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")

    def epoch(batches: Sequence[Batch]) -> None:
        model.train()
        for images, labels in batches:
            with autocast(device, precision):
                loss = F.cross_entropy(model(images), labels)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)

    return epoch


def torchvision_like(config: TrainConfig, model: nn.Module, device: torch.device, precision: str) -> Epoch:
    optimizer = build_optimizer(config.optim, model)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    loss_of = nn.CrossEntropyLoss()
    sums = dict.fromkeys(("loss", "top1", "top5", "images_per_s"), 0.0)

    def epoch(batches: Sequence[Batch]) -> None:
        model.train()
        for batch in batches:
            began = time.perf_counter()
            images, labels = batch.images.to(device), batch.labels.to(device)
            with autocast(device, precision):
                logits = model(images)
                loss = loss_of(logits, labels)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            with torch.no_grad():
                hits = logits.topk(5, dim=1).indices == labels[:, None]
                shares = hits[:, 0].float().mean(), hits.any(1).float().mean()
            values = (loss.item(), *(share.item() for share in shares))
            for name, value in zip(("loss", "top1", "top5"), values, strict=True):
                sums[name] += value * len(labels)
            sums["images_per_s"] += len(labels) / (time.perf_counter() - began)

    return epoch


def timm_task(config: TrainConfig, model: nn.Module, device: torch.device, precision: str) -> Epoch:
    tasks, tools = import_module("timm.task"), import_module("timm.utils")
    optimizer = build_optimizer(config.optim, model)
    task = tasks.ClassificationTask(model, nn.CrossEntropyLoss(), device=device, verbose=False)
    scaler = tools.NativeScaler(device=device.type) if precision == "fp16" else None
    losses = tools.AverageMeter()

    def epoch(batches: Sequence[Batch]) -> None:
        task.train()
        for number, (images, labels) in enumerate(batches, 1):
            with autocast(device, precision):
                loss = task(images, labels)["loss"]
            if scaler is not None:
                scaler(loss, optimizer)
            else:
                loss.backward()
                optimizer.step()
            optimizer.zero_grad()
            if number % config.log_every == 0:
                losses.update(loss.item(), len(labels))

    return epoch


def lightning_fabric(config: TrainConfig, model: nn.Module, device: torch.device, precision: str) -> Epoch:
    fabric: Any = import_module("lightning_fabric").Fabric(
        accelerator=device.type,
        devices=1,
        precision={"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}[precision],
    )
    wrapped, optimizer = fabric.setup(model, build_optimizer(config.optim, model))

    def epoch(batches: Sequence[Batch]) -> None:
        wrapped.train()
        for images, labels in batches:
            loss = F.cross_entropy(wrapped(images), labels)
            fabric.backward(loss)
            optimizer.step()
            optimizer.zero_grad()

    return epoch


CONTENDERS: dict[str, MakeEpoch] = {
    "bare": bare,
    "torchvision": torchvision_like,
    "timm": timm_task,
    "fabric": lightning_fabric,
}


if __name__ == "__main__":
    sys.exit(main())
